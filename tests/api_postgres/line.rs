//! A line to the database that can go dark: connections stand, but nothing comes through any more, in either direction. So
//! do those to a machine that has lost its power, or behind a firewall that has forgotten them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Passes connections on to the socket in a folder.
pub struct Line {
    address: SocketAddr,
    /// Whether the connections that are made now are dark.
    dark: Arc<Mutex<Arc<AtomicBool>>>,
}

impl Line {
    pub fn to(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let dark: Arc<Mutex<Arc<AtomicBool>>> = Arc::default();
        let (generation, socket) = (dark.clone(), folder.join(".s.PGSQL.5432"));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let dark = generation.lock().expect("no panic").clone();
                connect(near, &socket, &dark);
            }
        });
        Line { address, dark }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// All connections that stand go dark; new ones do not.
    pub fn go_dark(&self) {
        let mut dark = self.dark.lock().expect("no panic");
        dark.store(true, SeqCst);
        *dark = Arc::default();
    }
}

fn connect(near: TcpStream, socket: &PathBuf, dark: &Arc<AtomicBool>) {
    let Ok(far) = UnixStream::connect(socket) else { return };
    let (near_too, far_too) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
    let (there, back) = (dark.clone(), dark.clone());
    std::thread::spawn(move || {
        pass_on(&near, &far, &there);
        let _ = far.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        pass_on(&far_too, &near_too, &back);
        // In the dark nobody hears of the end either.
        if !back.load(SeqCst) {
            let _ = near_too.shutdown(Shutdown::Both);
        }
    });
}

fn pass_on(mut from: impl Read, mut to: impl Write, dark: &AtomicBool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(n) = from.read(&mut bytes) {
        if n == 0 || (!dark.load(SeqCst) && to.write_all(&bytes[..n]).is_err()) {
            return;
        }
    }
}
