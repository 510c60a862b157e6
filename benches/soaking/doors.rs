//! The way to the instances: one kept connection to each, and whatever comes back judged by what holds for every answer.

use std::net::SocketAddr;
use std::time::Instant;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

use super::Town;
use super::book::Book;
use crate::process::{Reply, Wire};

/// Nobody knows whether a request took effect: its connection broke, or the server was at fault.
pub struct Broke;

/// A request of somebody who behaves.
pub struct Ask {
    what: &'static str,
    method: &'static str,
    path: String,
    cookies: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
}

impl Ask {
    /// A request; `what` is its kind in the table.
    pub fn new(what: &'static str, method: &'static str, path: impl Into<String>) -> Self {
        Ask { what, method, path: path.into(), cookies: Vec::new(), headers: Vec::new(), body: None }
    }

    /// With this session token.
    pub fn holding(mut self, token: &str) -> Self {
        self.cookies.push(("holdfast", token.into()));
        self
    }

    /// On this browser.
    pub fn on(mut self, device: &str) -> Self {
        self.cookies.push(("holdfast-device", device.into()));
        self
    }

    /// With this header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With this body.
    pub fn saying(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    fn text(&self) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: soak\r\n", self.method, self.path);
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            text += &format!("Cookie: {}\r\n", pairs.join("; "));
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        match &self.body {
            Some(body) => {
                let body = body.to_string();
                text + &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
            None if self.method == "GET" => text + "\r\n",
            None => text + "Content-Length: 0\r\n\r\n",
        }
    }
}

/// Kept connections to all instances.
pub struct Doors {
    doors: Vec<(SocketAddr, Option<Wire>)>,
}

impl Doors {
    /// To these instances.
    pub fn to(addresses: &[SocketAddr]) -> Self {
        Doors { doors: addresses.iter().map(|address| (*address, None)).collect() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.doors.len()
    }

    /// Asks any instance. `None`: not now, and nothing has happened.
    pub fn ask(&mut self, town: &Town, chance: &mut StdRng, book: &mut Book, ask: &Ask) -> Result<Option<Reply>, Broke> {
        let any = chance.random_range(0..self.doors.len());
        self.ask_at(any, town, book, ask)
    }

    /// Asks one instance.
    pub fn ask_at(&mut self, door: usize, town: &Town, book: &mut Book, ask: &Ask) -> Result<Option<Reply>, Broke> {
        let begun = Instant::now();
        let (address, kept) = &mut self.doors[door];
        let sent = (|| {
            let mut wire = kept.take().map_or_else(|| Wire::try_open(*address), Ok)?;
            wire.send(ask.text())?;
            let reply = wire.reply()?;
            if reply.header("connection") != Some("close") {
                *kept = Some(wire);
            }
            Ok::<_, std::io::Error>(reply)
        })();
        let reply = match sent {
            Ok(reply) => reply,
            Err(e) => {
                book.unsure += u64::from(ask.method != "GET");
                if !town.is_killed() {
                    book.fault(format!("{} {}: {e}", ask.method, ask.path));
                }
                return Err(Broke);
            }
        };
        book.answered(ask.what, reply.status, begun.elapsed());
        match reply.status {
            503 if reply.header("retry-after").is_some() => Ok(None),
            500.. => {
                book.unsure += u64::from(ask.method != "GET");
                book.fault(format!("{} {}: {} {}", ask.method, ask.path, reply.status, String::from_utf8_lossy(&reply.body)));
                Err(Broke)
            }
            _ => Ok(Some(reply)),
        }
    }
}
