//! Bodies on their way in and out, which tell the [crowd](super::crowd) whom we wait for and what we keep: a request whose rest does
//! not come, an answer that is not taken. SLOW-02.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready as poll_ready};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::crowd::Line;

pin_project! {
    /// A body that says when its reader has to wait for more of it.
    pub(super) struct Fed<B> {
        #[pin]
        body: B,
        // `None` where there is no body: most requests have none.
        hunger: Option<Hunger>,
    }
}

struct Hunger {
    line: Arc<Line>,
    starves: bool,
    has_starved: bool,
}

impl Hunger {
    fn set(&mut self, starves: bool) {
        match (self.starves, starves) {
            (false, true) => self.line.starve(!self.has_starved),
            (true, false) => self.line.feed(),
            _ => {}
        }
        self.starves = starves;
        self.has_starved |= starves;
    }
}

impl Drop for Hunger {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl<B: Body> Fed<B> {
    pub(super) fn of(body: B, line: &Arc<Line>) -> Self {
        let hunger = (!body.is_end_stream()).then(|| Hunger { line: line.clone(), starves: false, has_starved: false });
        Fed { body, hunger }
    }
}

impl<B: Body> Body for Fed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        if let Some(hunger) = this.hunger {
            hunger.set(frame.is_pending());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The body of an answer, handed out in pieces as they are taken, so that what is kept of it is known.
    pub(super) struct Kept<A> {
        #[pin]
        body: A,
        // Of the frame that was read last.
        rest: Bytes,
        // `None` where there is no body.
        debt: Option<Debt>,
    }
}

struct Debt {
    line: Arc<Line>,
    bytes: usize,
}

impl Debt {
    fn pay(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.line.let_go(bytes);
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        self.pay(self.bytes);
    }
}

/// Less than what a connection buffers, so that the rest of a long answer stays here while its client does not read.
const PIECE: usize = 16 * 1024;
/// What is kept of an answer besides its body, in bytes: measured with twenty thousand small ones over HTTP/2 that nobody took.
const ANSWER: usize = 2 * 1024;

impl<A: Body<Data = Bytes>> Kept<A> {
    pub(super) fn of(body: A, line: &Arc<Line>) -> Self {
        let debt = (!body.is_end_stream()).then(|| {
            let bytes = usize::try_from(body.size_hint().lower()).unwrap_or(0) + ANSWER;
            line.keep(bytes);
            Debt { line: line.clone(), bytes }
        });
        Kept { body, rest: Bytes::new(), debt }
    }
}

impl<A: Body<Data = Bytes>> Body for Kept<A> {
    type Data = Bytes;
    type Error = A::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, A::Error>>> {
        let this = self.project();
        if this.rest.is_empty() {
            let Some(frame) = poll_ready!(this.body.poll_frame(cx)?) else { return Poll::Ready(None) };
            match frame.into_data() {
                Ok(data) => *this.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        if let Some(debt) = this.debt {
            debt.pay(piece.len());
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole.set_lower(hint.lower() + rest);
        whole
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::serve::Serving;
    use crate::serve::crowd::Crowd;

    #[tokio::test]
    async fn a_long_answer_is_handed_out_in_pieces_and_whole() {
        let place = Crowd::new(1, Serving::default()).enter().await;
        let long: Vec<u8> = (0..40 * 1024u32).map(|n| n as u8).collect();
        let mut kept = Kept::of(Full::new(Bytes::from(long.clone())), place.line());
        let (mut pieces, mut taken, mut left) = (Vec::new(), Vec::new(), vec![kept.size_hint().exact()]);
        while let Some(frame) = kept.frame().await {
            let piece = frame.expect("a piece").into_data().expect("data");
            pieces.push(piece.len());
            taken.extend_from_slice(&piece);
            left.push(kept.size_hint().exact());
        }
        assert_eq!((pieces, taken == long, kept.is_end_stream()), (vec![PIECE, PIECE, 8 * 1024], true, true));
        assert_eq!(left, [40, 24, 8, 0].map(|kib| Some(kib * 1024)));
    }
}
