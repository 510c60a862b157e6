//! The server loop: listening, finding room for newcomers, cutting slow clients, and stopping without losing anything.
//!
//! A stop goes in this order: no new connections; what runs is finished, while connections that are already open hear `503`
//! from `/health/ready`; letters that are on their way arrive, and no more are begun; the open connections are closed; what is
//! unwritten is written. Nothing that was acknowledged depends on any of it: `kill -9` at any line loses at most a little of
//! last-active, which makes idle come early.

mod bodies;
mod crowd;
mod pace;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::ServiceExt;
use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum_server::{AddrListener, Address, Handle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::app::App;
use crate::background;
use crate::client::Peer;
use crate::config::Config;
use crate::router::router;
use crowd::Crowd;
use pace::{Guest, Paced};

pub use crowd::{Running, Serving};

/// What is kept of a request head of HTTP/1 while it comes. What is longer, hyper refuses by `431` alone; the limits that a client
/// meets first are the middleware's.
const HEAD_BYTES: usize = 64 * 1024;
/// Header lines of HTTP/1.
const HEADERS: usize = 100;
/// The headers of a request of HTTP/2, in all its `CONTINUATION` frames.
const HEADER_LIST_BYTES: u32 = 32 * 1024;

/// Files that are open for something else than connections: databases, letters, the program itself.
const OTHER_FILES: usize = 256;

/// How long a connection may take to close once nothing runs on it any more.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves until `stop` resolves, then finishes what runs.
///
/// # Errors
/// A listening address that cannot be used, in one line.
pub async fn serve(app: App, listener: Listener, stop: impl Future<Output = ()> + Send) -> io::Result<()> {
    let (closing, closed) = watch::channel(false);
    let handle = Handle::new();
    let crowd = Crowd::new(room(&app.config), app.serving.clone());
    let gate = Gate { sockets: Mutex::new(listener.0.into_iter().map(Arc::new).collect()), closed, crowd };
    let mut server = axum_server::Server::<Remote>::from_listener(gate).handle(handle.clone()).acceptor(Paced);
    // Tried again after a moment, so that no lack of files or memory becomes a busy loop.
    server = server.accept_error_handler(|_, e| tracing::warn!(error = %e, "a connection could not be accepted"));
    // The time for the headers is kept by `pace`, which knows an idle connection from a slow one; hyper's timer does not.
    server.http_builder().http1().max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    server
        .http_builder()
        .http2()
        .max_concurrent_streams(100)
        .max_header_list_size(HEADER_LIST_BYTES)
        // What is kept of bodies that nobody reads: one body, and four on a connection.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        // Rapid Reset, CVE-2023-44487: streams that were reset before we came to them. MadeYouReset, CVE-2025-8671: streams that
        // a client's mistakes made us reset. One more of either, and the connection is over.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100);

    let mut background = background::start(&app);
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<Peer>(router(app.clone()));
    let server = tokio::spawn(server.serve(service));

    stop.await;
    app.draining.store(true, Ordering::Relaxed);
    let _ = closing.send(true);
    tracing::info!("stopping: no new connections, finishing what runs");
    // Before the wait, should somebody's patience be shorter than ours; and once more after it.
    let _ = background::write_back_all(&app).await;
    let until = tokio::time::Instant::now() + app.config.shutdown_grace;
    if tokio::time::timeout_at(until, app.serving.idle()).await.is_err() {
        tracing::warn!(grace = ?app.config.shutdown_grace, "some requests did not finish in time");
        handle.shutdown();
    }
    app.post_closed.store(true, Ordering::SeqCst);
    if tokio::time::timeout_at(until, app.posting.idle()).await.is_err() {
        tracing::warn!("some letters were still on their way; they go out again after the next start");
    }
    // Also what goes on for callers that have gone away.
    let _ = tokio::time::timeout(GOODBYE, app.db.settled()).await;
    handle.graceful_shutdown(Some(GOODBYE));
    let served = server.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    // To its end: what is cut off while the runtime goes down would tell of troubles that are none.
    background.shutdown().await;
    match background::write_back_all(&app).await {
        Ok(()) => tracing::info!("stopped"),
        Err(fault) => tracing::error!(error = %fault, "stopped, but the newest last-active times could not be written: idle may come early"),
    }
    served
}

/// How many connections there is room for: as many as the operator wants, if the system has files for them.
fn room(config: &Config) -> usize {
    let files = raise_file_limit().and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let others = OTHER_FILES + config.database_url.connections();
    // Where there are few files, half of them.
    let most = files.saturating_sub(others).max(files / 2).max(1);
    if most < config.max_connections {
        tracing::warn!(
            "MAX_CONNECTIONS={} is more than this system allows: there is room for {most}; raise its limit of open files (ulimit -n, LimitNOFILE=)",
            config.max_connections
        );
    }
    config.max_connections.min(most)
}

/// Takes all the open files that this process may have without asking; says how many, if there is a limit.
fn raise_file_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Sockets that listen.
pub struct Listener(Vec<TcpListener>);

impl Listener {
    /// Listens on every address that `host:port` resolves to. Port 0 takes a free one, the same for all.
    ///
    /// # Errors
    /// No address can be had, or one of them is in use.
    pub async fn bind(listen_addr: &str) -> io::Result<Self> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("LISTEN_ADDR {listen_addr}: {}", reason_of(&e)));
        let mut listeners: Vec<TcpListener> = Vec::new();
        let mut missing = None;
        // A name may be written down twice for one address.
        let addresses: BTreeSet<SocketAddr> = tokio::net::lookup_host(listen_addr).await.map_err(named)?.collect();
        for mut address in addresses {
            if let (0, Some(first)) = (address.port(), listeners.first()) {
                address.set_port(first.local_addr()?.port());
            }
            match TcpListener::bind(address).await {
                Ok(listener) => listeners.push(listener),
                // A machine without IPv6 still resolves localhost to ::1.
                Err(e) if matches!(e.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) || e.raw_os_error() == Some(97) => missing = Some(e),
                Err(e) => return Err(named(e)),
            }
        }
        match (listeners.is_empty(), missing) {
            (false, _) => Ok(Listener(listeners)),
            (true, Some(e)) => Err(named(e)),
            (true, None) => Err(named(io::Error::new(io::ErrorKind::NotFound, "it resolves to nothing"))),
        }
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

fn reason_of(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::AddrInUse => "another program listens there already; stop it or choose another port".into(),
        io::ErrorKind::PermissionDenied => "this user may not listen on that port".into(),
        _ => e.to_string(),
    }
}

/// The sockets, until they are closed: from then on the system refuses new connections.
struct Gate {
    sockets: Mutex<Vec<Arc<TcpListener>>>,
    closed: watch::Receiver<bool>,
    crowd: Crowd,
}

impl Gate {
    fn sockets(&self) -> Vec<Arc<TcpListener>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the next connection, once there is room for it.
    async fn admit(&self, sockets: &[Arc<TcpListener>]) -> io::Result<(Guest<TcpStream>, Remote)> {
        let (stream, remote) = accept_any(sockets).await?;
        Ok((Guest { stream, place: self.crowd.enter().await }, remote))
    }

    fn close(&self) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl AddrListener<Guest<TcpStream>, Remote> for Gate {
    async fn bind_to(remote: Remote) -> io::Result<Self> {
        let (_, closed) = watch::channel(false);
        let crowd = Crowd::new(usize::MAX, Serving::default());
        Ok(Gate { sockets: Mutex::new(vec![Arc::new(TcpListener::bind(remote.0).await?)]), closed, crowd })
    }

    async fn accept_stream(&self) -> io::Result<(Guest<TcpStream>, Remote)> {
        let sockets = self.sockets();
        let mut closed = self.closed.clone();
        tokio::select! {
            biased;
            _ = async { drop(closed.wait_for(|closed| *closed).await) } => {
                drop(sockets);
                self.close();
                // The server stops asking once its connections are told to end.
                std::future::pending().await
            }
            accepted = self.admit(&sockets) => accepted,
        }
    }

    fn get_local_addr(&self) -> io::Result<Remote> {
        let first = self.sockets().first().cloned().ok_or(io::ErrorKind::NotConnected)?;
        first.local_addr().map(Remote)
    }
}

async fn accept_any(sockets: &[Arc<TcpListener>]) -> io::Result<(TcpStream, Remote)> {
    let (stream, remote) = std::future::poll_fn(|cx| {
        for socket in sockets {
            if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await?;
    // A connection without it is slower, not wrong.
    let _ = stream.set_nodelay(true);
    Ok((stream, Remote(remote)))
}

/// The address of a connection's other end.
#[derive(Clone)]
struct Remote(SocketAddr);

impl Address for Remote {
    type Stream = Guest<TcpStream>;
    type Listener = Gate;
}

impl Connected<Remote> for Peer {
    fn connect_info(remote: Remote) -> Self {
        Peer(remote.0)
    }
}
