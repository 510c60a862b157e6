//! Slow clients are cut: 10 s for the headers, 60 s of silence on a kept connection. The 30 s for a body are the
//! middleware's, which knows when one begins.
//!
//! Hyper's own header timer starts as soon as a connection is idle, so it cannot tell a kept connection from a slow one. This
//! stream can: it knows from the service beside it whether a request is running, and sees when the first byte of the next one
//! arrives. It only ever ends a read or a write with `TimedOut`; hyper closes the connection.

use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready as poll_ready};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, Response, Version};
use axum_server::accept::Accept;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tower::Service;

use super::bodies::{Fed, Kept};
use super::crowd::{Line, Place};

const HEADERS: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);

/// A new connection that has found its place.
pub(super) struct Guest<I> {
    pub(super) stream: I,
    pub(super) place: Place,
}

/// Puts the pace on every connection.
#[derive(Clone)]
pub(super) struct Paced;

impl<I, S> Accept<Guest<I>, S> for Paced {
    type Stream = PacedStream<I>;
    type Service = PacedService<S>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, Guest { stream, place }: Guest<I>, service: S) -> Self::Future {
        let line = place.line().clone();
        let deadline = Instant::now() + HEADERS;
        let stream = PacedStream {
            inner: stream,
            place,
            known: None,
            phase: Phase::Headers,
            begun: 0,
            deadline,
            write_deadline: None,
            armed: deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
        };
        ready(Ok((stream, PacedService { inner: service, line })))
    }
}

/// Counts the requests that run on a connection.
#[derive(Clone)]
pub(super) struct PacedService<S> {
    inner: S,
    line: Arc<Line>,
}

struct RunsOn(Arc<Line>);

impl Drop for RunsOn {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl<S, B, A> Service<Request<B>> for PacedService<S>
where
    S: Service<Request<Fed<B>>, Response = Response<A>>,
    B: Body,
    A: Body<Data = Bytes>,
{
    type Response = Response<Kept<A>>;
    type Error = S::Error;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.line.begin(request.version() == Version::HTTP_2);
        let runs = RunsOn(self.line.clone());
        let request = request.map(|body| Fed::of(body, &self.line));
        Counted { answer: self.inner.call(request), runs }
    }
}

pin_project! {
    /// An answer that counts as running until it is there, or nobody wants it any more.
    pub(super) struct Counted<F> {
        #[pin]
        answer: F,
        runs: RunsOn,
    }
}

impl<F, A, E> Future for Counted<F>
where
    F: Future<Output = Result<Response<A>, E>>,
    A: Body<Data = Bytes>,
{
    type Output = Result<Response<Kept<A>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = poll_ready!(this.answer.poll(cx))?;
        Poll::Ready(Ok(answer.map(|body| Kept::of(body, &this.runs.0))))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has arrived since the last answer.
    Silent,
    /// A request has begun to arrive.
    Headers,
}

/// A connection with deadlines.
pub(super) struct PacedStream<I> {
    inner: I,
    place: Place,
    /// Who is woken when the place is somebody else's.
    known: Option<Waker>,
    phase: Phase,
    /// The requests that had begun when the stream was last asked.
    begun: usize,
    deadline: Instant,
    write_deadline: Option<Instant>,
    /// When the timer will ring. It is set late and seldom: most requests arrive in one piece and never wait for it.
    armed: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<I> PacedStream<I> {
    /// Waits for the deadline; resolves only when it has passed.
    fn poll_deadline(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.armed > deadline {
            self.arm(deadline);
        }
        loop {
            poll_ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.arm(deadline);
        }
    }

    fn arm(&mut self, deadline: Instant) {
        self.timer.as_mut().reset(deadline);
        self.armed = deadline;
    }

    /// Whether requests have been answered since the stream was last asked. From then on the client may be silent for a while.
    fn note_answers(&mut self) -> bool {
        let line = self.place.line();
        let begun = line.begun();
        if self.begun == begun {
            return false;
        }
        let now = Instant::now();
        line.waits_from(now);
        self.begun = begun;
        self.phase = Phase::Silent;
        self.deadline = now + SILENCE;
        true
    }

    fn note_arrival(&mut self) {
        if self.phase == Phase::Silent && !self.place.line().is_http2() {
            self.phase = Phase::Headers;
            self.deadline = Instant::now() + HEADERS;
        }
    }

    fn poll_written<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        if self.must_go(cx.waker()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let deadline = match self.write_deadline {
            Some(deadline) => deadline,
            None => self.wait_for_reader(),
        };
        self.poll_deadline(deadline, cx).map(Err)
    }

    /// The client does not read: it may take a minute.
    fn wait_for_reader(&mut self) -> Instant {
        let now = Instant::now();
        self.place.line().waits_from(now);
        *self.write_deadline.insert(now + SILENCE)
    }

    /// Whether somebody else gets the place; whoever asks is woken when that becomes so.
    fn must_go(&mut self, waker: &Waker) -> bool {
        if !self.known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.place.line().wake_by(waker);
            self.known = Some(waker.clone());
        }
        self.place.line().must_go()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for PacedStream<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let runs = this.place.line().is_running();
        let has_answered = !runs && this.note_answers();
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buffer) {
            if !runs && buffer.filled().len() > before {
                this.note_arrival();
            }
            return Poll::Ready(read);
        }
        if this.must_go(cx.waker()) {
            if !has_answered {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // What has just been answered is written first.
            cx.waker().wake_by_ref();
        }
        if runs {
            return Poll::Pending;
        }
        let deadline = this.deadline;
        this.poll_deadline(deadline, cx).map(Err)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for PacedStream<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.poll_written(written, cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.poll_written(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.poll_written(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.poll_written(shut, cx)
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;

    use super::*;
    use crate::serve::crowd::{Crowd, Serving};
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    /// What happens to a connection on which the client does this, on tokio's stopped clock.
    struct Scene {
        client: DuplexStream,
        server: PacedStream<DuplexStream>,
        serving: Serving,
    }

    impl Scene {
        async fn open() -> Self {
            let serving = Serving::default();
            Scene::among(&Crowd::new(1, serving.clone()), serving).await
        }

        async fn among(crowd: &Crowd, serving: Serving) -> Self {
            let (client, stream) = tokio::io::duplex(16);
            let (server, _) = Paced.accept(Guest { stream, place: crowd.enter().await }, ()).into_inner().expect("accepts");
            Scene { client, server, serving }
        }

        fn line(&self) -> Arc<Line> {
            self.server.place.line().clone()
        }

        /// Reads one byte, and says how many seconds it took.
        async fn read(&mut self) -> (Result<u8, io::ErrorKind>, u64) {
            let begun = Instant::now();
            let read = self.server.read_u8().await.map_err(|e| e.kind());
            (read, begun.elapsed().as_secs())
        }

        /// Runs a request: hyper asks for more while it runs.
        async fn run_a_request(&mut self, took: Duration) {
            let running = run(&self.line());
            assert!(tokio::time::timeout(took, self.server.read_u8()).await.is_err());
            drop(running);
        }

        /// Asks for more, as hyper does, until the connection is closed.
        fn serve(self) -> tokio::task::JoinHandle<io::ErrorKind> {
            let Scene { client, mut server, .. } = self;
            tokio::spawn(async move {
                let _open = client;
                loop {
                    if let Err(e) = server.read_u8().await {
                        return e.kind();
                    }
                }
            })
        }
    }

    fn run(line: &Arc<Line>) -> RunsOn {
        line.begin(false);
        RunsOn(line.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn headers_that_do_not_come_in_ten_seconds_are_cut() {
        let mut line = Scene::open().await;
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
        // SLOW-01: a byte now and then does not help.
        let mut line = Scene::open().await;
        for _ in 0..9 {
            line.client.write_u8(b'G').await.expect("room");
            assert_eq!(line.read().await.0, Ok(b'G'));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_be_silent_for_a_minute() {
        let mut line = Scene::open().await;
        line.client.write_u8(b'G').await.expect("room");
        line.read().await.0.expect("a byte");
        line.run_a_request(Duration::from_secs(30)).await;
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 60));
    }

    /// Most requests are over before hyper asks for more.
    #[tokio::test(start_paused = true)]
    async fn a_quick_request_makes_a_kept_connection_too() {
        let mut line = Scene::open().await;
        for _ in 0..3 {
            line.client.write_u8(b'G').await.expect("room");
            line.read().await.0.expect("a byte");
            drop(run(&line.line()));
            assert!(tokio::time::timeout(Duration::from_secs(50), line.server.read_u8()).await.is_err());
        }
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_request_has_ten_seconds_from_its_first_byte() {
        let mut line = Scene::open().await;
        line.run_a_request(Duration::from_secs(1)).await;
        assert!(tokio::time::timeout(Duration::from_secs(40), line.server.read_u8()).await.is_err());
        line.client.write_u8(b'G').await.expect("room");
        assert_eq!(line.read().await.0, Ok(b'G'));
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
    }

    /// `POST`, `PUT` and `PATCH` begin like the preface of HTTP/2.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_began_with_a_post_is_cut_like_any_other() {
        let mut line = Scene::open().await;
        for _ in 0..2 {
            line.client.write_u8(b'P').await.expect("room");
            assert_eq!(line.read().await.0, Ok(b'P'));
            line.run_a_request(Duration::from_secs(1)).await;
        }
        line.client.write_u8(b'P').await.expect("room");
        assert_eq!(line.read().await.0, Ok(b'P'));
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_do_not_start_the_clock_of_a_request() {
        let mut line = Scene::open().await;
        line.line().begin(true);
        line.line().finish();
        line.run_a_request(Duration::from_secs(1)).await;
        line.client.write_u8(0).await.expect("room");
        assert_eq!(line.read().await.0, Ok(0));
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut_after_a_minute() {
        let mut line = Scene::open().await;
        let begun = Instant::now();
        let written = line.server.write_all(&[0; 64]).await;
        assert_eq!(written.map_err(|e| e.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(begun.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_what_runs() {
        let line = Scene::open().await;
        let running = run(&line.line());
        assert!(tokio::time::timeout(Duration::from_secs(5), line.serving.idle()).await.is_err());
        drop(running);
        line.serving.idle().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_the_place_of_whoever_has_kept_us_waiting_longest() {
        let crowd = Crowd::new(3, Serving::default());
        let mut tasks = Vec::new();
        let mut clients = Vec::new();
        let mut lines = Vec::new();
        for _ in 0..3 {
            let Scene { client, server, serving } = Scene::among(&crowd, Serving::default()).await;
            lines.push(server.place.line().clone());
            tasks.push(Scene { client: tokio::io::duplex(1).0, server, serving }.serve());
            clients.push(client);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // The first has just been answered, and a byte now and then does not make the second any newer.
        drop(run(&lines[0]));
        clients[0].write_u8(b'G').await.expect("room");
        clients[1].write_u8(b'G').await.expect("room");
        tokio::task::yield_now().await;
        drop(crowd.enter().await);
        assert_eq!((tasks[0].is_finished(), tasks[1].is_finished(), tasks[2].is_finished()), (false, true, false));
        assert_eq!(tasks.remove(1).await.expect("no panic"), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_keeps_its_place_and_a_newcomer_waits_for_it() {
        let crowd = Crowd::new(1, Serving::default());
        let scene = Scene::among(&crowd, Serving::default()).await;
        let line = scene.line();
        let running = run(&line);
        let served = scene.serve();
        assert!(tokio::time::timeout(Duration::from_secs(5), crowd.enter()).await.is_err(), "there was no room");
        assert!(!served.is_finished());
        drop(running);
        drop(crowd.enter().await);
        assert_eq!(served.await.expect("no panic"), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_sent_away_while_a_request_begins_gets_its_answer_first() {
        let crowd = Crowd::new(1, Serving::default());
        let mut scene = Scene::among(&crowd, Serving::default()).await;
        let line = scene.line();
        tokio::time::advance(Duration::from_secs(1)).await;
        // It was waiting when the newcomer came, and is not when it is looked after.
        let newcomer = tokio::spawn({
            let crowd = crowd.clone();
            async move { drop(crowd.enter().await) }
        });
        tokio::task::yield_now().await;
        assert!(line.must_go());
        let running = run(&line);
        assert!(tokio::time::timeout(Duration::from_secs(5), scene.server.read_u8()).await.is_err(), "it was cut");
        drop(running);
        scene.server.write_all(b"answer").await.expect("the answer is written");
        assert_eq!(scene.read().await, (Err(io::ErrorKind::TimedOut), 0));
        drop(scene);
        newcomer.await.expect("no panic");
    }

    /// SLOW-02: a body that does not come holds nobody else up.
    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_for_its_body_is_not_work() {
        let serving = Serving::default();
        let crowd = Crowd::new(1, serving.clone());
        let scene = Scene::among(&crowd, serving.clone()).await;
        let line = scene.line();
        let running = run(&line);
        assert_eq!(serving.at_work(), 1);
        let (sender, body) = tokio::sync::mpsc::channel::<()>(1);
        let mut body = Fed::of(Slow(body), &line);
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(serving.at_work(), 0);
        sender.send(()).await.expect("room");
        assert!(body.frame().now_or_never().is_some());
        assert_eq!(serving.at_work(), 1);
        assert!(body.frame().now_or_never().is_none());
        let served = scene.serve();
        drop(crowd.enter().await);
        assert_eq!(served.await.expect("no panic"), io::ErrorKind::TimedOut);
        drop(body);
        assert_eq!(serving.at_work(), 1);
        drop(running);
        assert_eq!(serving.at_work(), 0);
    }

    /// A body that comes in pieces.
    struct Slow(tokio::sync::mpsc::Receiver<()>);

    impl Body for Slow {
        type Data = axum::body::Bytes;
        type Error = io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, io::Error>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|()| Ok(Frame::data(axum::body::Bytes::from_static(b"x")))))
        }
    }
}
