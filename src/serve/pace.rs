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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready as poll_ready};
use std::time::Duration;

use axum::http::{Request, Version};
use axum_server::accept::Accept;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tower::Service;

const HEADERS: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);

/// How many requests run, on all connections.
#[derive(Clone, Default)]
pub(super) struct Serving(Arc<All>);

#[derive(Default)]
struct All {
    running: AtomicUsize,
    none: Notify,
}

impl Serving {
    /// Resolves when no request runs.
    pub(super) async fn idle(&self) {
        loop {
            let none = self.0.none.notified();
            if self.0.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }
}

/// Puts the pace on every connection.
#[derive(Clone)]
pub(super) struct Paced {
    serving: Serving,
}

impl Paced {
    pub(super) fn new(serving: Serving) -> Self {
        Paced { serving }
    }
}

impl<I, S> Accept<I, S> for Paced {
    type Stream = PacedStream<I>;
    type Service = PacedService<S>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let line = Arc::new(Line::default());
        let deadline = Instant::now() + HEADERS;
        let stream = PacedStream {
            inner: stream,
            line: line.clone(),
            phase: Phase::Headers,
            begun: 0,
            deadline,
            write_deadline: None,
            armed: deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
        };
        ready(Ok((stream, PacedService { inner: service, line, serving: self.serving.clone() })))
    }
}

/// What the service of a connection tells its stream.
#[derive(Default)]
struct Line {
    /// Requests that run on it.
    running: AtomicUsize,
    /// Requests that have begun on it: a quick one is over before the stream is asked again.
    begun: AtomicUsize,
    /// It speaks HTTP/2, whose frames say nothing about requests: there only silence counts.
    http2: AtomicBool,
}

/// Counts the requests that run on a connection.
#[derive(Clone)]
pub(super) struct PacedService<S> {
    inner: S,
    line: Arc<Line>,
    serving: Serving,
}

struct Running(Arc<Line>, Serving);

impl Running {
    fn begin(on: &Arc<Line>, serving: &Serving) -> Self {
        on.running.fetch_add(1, Ordering::SeqCst);
        on.begun.fetch_add(1, Ordering::SeqCst);
        serving.0.running.fetch_add(1, Ordering::SeqCst);
        Running(on.clone(), serving.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if self.1.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1.0.none.notify_waiters();
        }
    }
}

impl<S, B> Service<Request<B>> for PacedService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.version() == Version::HTTP_2 {
            self.line.http2.store(true, Ordering::Relaxed);
        }
        let running = Running::begin(&self.line, &self.serving);
        Counted { answer: self.inner.call(request), _running: running }
    }
}

pin_project! {
    /// An answer that counts as running until it is there, or nobody wants it any more.
    pub(super) struct Counted<F> {
        #[pin]
        answer: F,
        _running: Running,
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().answer.poll(cx)
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
    line: Arc<Line>,
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

    fn note_arrival(&mut self) {
        if self.phase == Phase::Silent && !self.line.http2.load(Ordering::Relaxed) {
            self.phase = Phase::Headers;
            self.deadline = Instant::now() + HEADERS;
        }
    }

    fn poll_written<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let deadline = *self.write_deadline.get_or_insert_with(|| Instant::now() + SILENCE);
        self.poll_deadline(deadline, cx).map(Err)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for PacedStream<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.line.running.load(Ordering::SeqCst) > 0 {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let begun = this.line.begun.load(Ordering::SeqCst);
        if this.begun != begun {
            this.begun = begun;
            this.phase = Phase::Silent;
            this.deadline = Instant::now() + SILENCE;
        }
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buffer) {
            if buffer.filled().len() > before {
                this.note_arrival();
            }
            return Poll::Ready(read);
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
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    /// What happens to a connection on which the client does this, on tokio's stopped clock.
    struct Scene {
        client: DuplexStream,
        server: PacedStream<DuplexStream>,
        serving: Serving,
    }

    impl Scene {
        fn open() -> Self {
            let (client, server) = tokio::io::duplex(16);
            let serving = Serving::default();
            let (server, _) = Paced::new(serving.clone()).accept(server, ()).into_inner().expect("accepts");
            Scene { client, server, serving }
        }

        /// Reads one byte, and says how many seconds it took.
        async fn read(&mut self) -> (Result<u8, io::ErrorKind>, u64) {
            let begun = Instant::now();
            let read = self.server.read_u8().await.map_err(|e| e.kind());
            (read, begun.elapsed().as_secs())
        }

        /// Runs a request: hyper asks for more while it runs.
        async fn run_a_request(&mut self, took: Duration) {
            let running = Running::begin(&self.server.line, &self.serving);
            assert!(tokio::time::timeout(took, self.server.read_u8()).await.is_err());
            drop(running);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn headers_that_do_not_come_in_ten_seconds_are_cut() {
        let mut line = Scene::open();
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
        // SLOW-01: a byte now and then does not help.
        let mut line = Scene::open();
        for _ in 0..9 {
            line.client.write_u8(b'G').await.expect("room");
            assert_eq!(line.read().await.0, Ok(b'G'));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_be_silent_for_a_minute() {
        let mut line = Scene::open();
        line.client.write_u8(b'G').await.expect("room");
        line.read().await.0.expect("a byte");
        line.run_a_request(Duration::from_secs(30)).await;
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 60));
    }

    /// Most requests are over before hyper asks for more.
    #[tokio::test(start_paused = true)]
    async fn a_quick_request_makes_a_kept_connection_too() {
        let mut line = Scene::open();
        for _ in 0..3 {
            line.client.write_u8(b'G').await.expect("room");
            line.read().await.0.expect("a byte");
            drop(Running::begin(&line.server.line, &line.serving));
            assert!(tokio::time::timeout(Duration::from_secs(50), line.server.read_u8()).await.is_err());
        }
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_request_has_ten_seconds_from_its_first_byte() {
        let mut line = Scene::open();
        line.run_a_request(Duration::from_secs(1)).await;
        assert!(tokio::time::timeout(Duration::from_secs(40), line.server.read_u8()).await.is_err());
        line.client.write_u8(b'G').await.expect("room");
        assert_eq!(line.read().await.0, Ok(b'G'));
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 10));
    }

    /// `POST`, `PUT` and `PATCH` begin like the preface of HTTP/2.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_began_with_a_post_is_cut_like_any_other() {
        let mut line = Scene::open();
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
        let mut line = Scene::open();
        line.server.line.http2.store(true, Ordering::Relaxed);
        line.run_a_request(Duration::from_secs(1)).await;
        line.client.write_u8(0).await.expect("room");
        assert_eq!(line.read().await.0, Ok(0));
        assert_eq!(line.read().await, (Err(io::ErrorKind::TimedOut), 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut_after_a_minute() {
        let mut line = Scene::open();
        let begun = Instant::now();
        let written = line.server.write_all(&[0; 64]).await;
        assert_eq!(written.map_err(|e| e.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(begun.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_what_runs() {
        let line = Scene::open();
        let running = Running::begin(&line.server.line, &line.serving);
        assert!(tokio::time::timeout(Duration::from_secs(5), line.serving.idle()).await.is_err());
        drop(running);
        line.serving.idle().await;
    }
}
