//! Those who use the server during a soak, each with a model of its own of what must be true.

pub mod book;
pub mod doors;
pub mod operator;
pub mod people;
pub mod strangers;
pub mod watch;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// What all actors know, from one start of the server to its end.
pub struct Town {
    /// Where the instances listen.
    pub addresses: Vec<SocketAddr>,
    /// How long ended sessions are kept: after that their tokens are unknown.
    pub retention: Duration,
    /// How far the last-active that is shown may lie behind the truth, in milliseconds.
    pub lag: i64,
    over: AtomicBool,
    killed: AtomicBool,
}

impl Town {
    /// With everybody still at work.
    pub fn new(addresses: Vec<SocketAddr>, retention: Duration, lag: i64) -> Self {
        Town { addresses, retention, lag, over: AtomicBool::new(false), killed: AtomicBool::new(false) }
    }

    /// Whether everybody is to go home.
    pub fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Sends everybody home.
    pub fn end(&self) {
        self.over.store(true, SeqCst);
    }

    /// Whether a connection may break: the server is being killed.
    pub fn is_killed(&self) -> bool {
        self.killed.load(SeqCst)
    }

    /// Says so, before it happens.
    pub fn kill(&self) {
        self.killed.store(true, SeqCst);
    }

    /// Waits, but not past the end.
    pub fn pause(&self, time: Duration) {
        let step = Duration::from_millis(20);
        let mut left = time;
        while !self.is_over() && !left.is_zero() {
            std::thread::sleep(left.min(step));
            left = left.saturating_sub(step);
        }
    }
}
