//! Strangers: a flood of garbage, of which nothing is let in and nothing is a fault of ours; and clients that are slow to
//! send or never read, which are cut and cost nobody else anything.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::Town;
use super::book::Book;
use crate::process::Wire;

/// Headers that have not come within 10 s are not waited for; the rest is for a busy machine.
const CUT: Duration = Duration::from_secs(15);

/// Sends garbage, as fast as `pause` lets it.
pub struct Flood {
    chance: StdRng,
    pause: Duration,
    /// What came back.
    pub book: Book,
}

/// What is sent, and what may come back; nothing, where the connection may just end.
struct Garbage {
    bytes: Vec<u8>,
    allowed: &'static [u16],
    may_end: bool,
}

fn garbage(text: String, allowed: &'static [u16]) -> Garbage {
    Garbage { bytes: text.into_bytes(), allowed, may_end: false }
}

fn with_body(head: &str, media_type: &str, body: &str) -> String {
    format!("{head} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

impl Flood {
    /// The `n`-th.
    pub fn new(n: u64, pause: Duration) -> Self {
        Flood { chance: StdRng::seed_from_u64(n), pause, book: Book::default() }
    }

    /// Sends, to the end of the day or of the server.
    pub fn live(&mut self, town: &Town) {
        let mut kept: Option<Wire> = None;
        while !town.is_over() && !town.is_killed() {
            let address = town.addresses[self.chance.random_range(0..town.addresses.len())];
            let what = self.think();
            kept = self.send(town, address, kept.take(), &what);
            std::thread::sleep(self.pause);
        }
    }

    fn token(&mut self) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..43).map(|_| char::from(LETTERS[self.chance.random_range(0..LETTERS.len())])).collect()
    }

    fn think(&mut self) -> Garbage {
        let (one, other) = (self.token(), self.token());
        let get = |path: &str, cookie: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n");
        match self.chance.random_range(0..16) {
            0..=3 => garbage(get("/check", &format!("holdfast={one}")), &[401]),
            4 => garbage(get("/me/sessions", "holdfast=%00%ff; holdfast-device=\"\""), &[401]),
            5 => garbage(get("/me", &format!("holdfast={one}; holdfast={other}")), &[401]),
            6 => garbage(get(&format!("/{one}"), ""), &[404]),
            7 => garbage(with_body("POST /login", "application/json", "{\"email\": "), &[400]),
            8 => garbage(with_body("POST /login", "text/plain", "{}"), &[415]),
            9 => garbage(with_body("POST /login", "application/json", "{\"email\": 7, \"colour\": null}"), &[422]),
            10 => garbage("POST /signup HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n".into(), &[413]),
            11 => garbage(format!("DELETE /me/sessions HTTP/1.1\r\nHost: localhost\r\nOrigin: https://{one}.example\r\nContent-Length: 0\r\n\r\n"), &[403]),
            12 => garbage("PUT /check HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".into(), &[405]),
            13 => garbage(
                with_body("POST /login", "application/json", &format!("{{\"email\": \"nobody.{one}@example.com\", \"password\": \"{other}\"}}")),
                &[401],
            ),
            14 => {
                let mut bytes = vec![0; 200];
                self.chance.fill_bytes(&mut bytes);
                Garbage { bytes, allowed: &[400], may_end: true }
            }
            _ => Garbage {
                bytes: format!("GET /check HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(600_000)).into_bytes(),
                allowed: &[400, 431],
                may_end: true,
            },
        }
    }

    fn send(&mut self, town: &Town, address: SocketAddr, kept: Option<Wire>, what: &Garbage) -> Option<Wire> {
        let begun = Instant::now();
        let mut wire = match kept.map_or_else(|| Wire::try_open(address), Ok) {
            Ok(wire) => wire,
            Err(e) => {
                if !town.is_killed() {
                    self.book.fault(format!("no connection for garbage: {e}"));
                }
                return None;
            }
        };
        let sent = wire.send(&what.bytes);
        if what.may_end {
            // It may be half a request: then nothing comes until we say that nothing more will.
            wire.finish();
        }
        match sent.and_then(|()| wire.reply()) {
            Ok(reply) => {
                self.book.answered("garbage", reply.status, begun.elapsed());
                let is_refused = what.allowed.contains(&reply.status) || (reply.status == 503 && reply.header("retry-after").is_some());
                if !is_refused {
                    let start = String::from_utf8_lossy(&what.bytes[..what.bytes.len().min(60)]).into_owned();
                    self.book.fault(format!("garbage {start:?}: {} instead of {:?}", reply.status, what.allowed));
                }
                // The sign-in of nobody is on record too.
                if reply.status == 401 && what.bytes.starts_with(b"POST") {
                    self.book.happened("sign_in_failed");
                }
                (reply.header("connection") != Some("close") && !what.may_end).then_some(wire)
            }
            Err(_) if what.may_end => {
                self.book.counted("garbage cut off");
                None
            }
            Err(e) => {
                self.book.unsure += u64::from(what.bytes.starts_with(b"POST"));
                if !town.is_killed() {
                    self.book.fault(format!("garbage, connection broke: {e}"));
                }
                None
            }
        }
    }
}

/// Clients that take their time, all on one thread.
#[derive(Default)]
pub struct Slow {
    /// What became of them.
    pub book: Book,
}

/// A connection whose request never ends, or whose answers are never read.
struct Line {
    stream: TcpStream,
    begun: Instant,
    reads: bool,
}

impl Line {
    fn open(address: SocketAddr, reads: bool) -> std::io::Result<Line> {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        let mut line = Line { stream, begun: Instant::now(), reads };
        if reads {
            line.stream.write_all(b"GET /check HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")?;
        }
        Ok(line)
    }

    /// Sends a little more: a byte of a header, or as many requests as there is room for. Whether it still stands.
    fn drip(&mut self) -> bool {
        if !self.reads {
            let many = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20);
            return match self.stream.write(&many) {
                Ok(_) => true,
                Err(e) => e.kind() == ErrorKind::WouldBlock,
            };
        }
        // Whatever comes back is the end of it.
        self.stream.read(&mut [0; 512]).is_err() && self.stream.write(b"x").is_ok()
    }
}

impl Slow {
    /// Holds `count` lines of each kind, to the end of the day or of the server.
    pub fn live(&mut self, town: &Town, count: usize) {
        let mut lines: Vec<Line> = Vec::new();
        while !town.is_over() && !town.is_killed() {
            for reads in [true, false] {
                while lines.iter().filter(|line| line.reads == reads).count() < count {
                    match Line::open(town.addresses[lines.len() % town.addresses.len()], reads) {
                        Ok(line) => lines.push(line),
                        Err(e) if !town.is_killed() => return self.book.fault(format!("no connection for a slow client: {e}")),
                        Err(_) => return,
                    }
                }
            }
            lines.retain_mut(|line| {
                let stands = line.drip();
                if !stands && line.reads {
                    self.book.counted("slow headers cut off");
                    self.book.took("slow headers, cut off after", line.begun.elapsed());
                } else if !stands {
                    self.book.counted("unread answers cut off");
                } else if line.reads && line.begun.elapsed() > CUT {
                    self.book.fault("headers that drip are waited for");
                    return false;
                }
                stands
            });
            town.pause(Duration::from_millis(250));
        }
    }
}
