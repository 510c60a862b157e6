//! Who calls: the address behind the trusted proxies, and the device that the headers describe.
//!
//! `X-Forwarded-For` is written by whoever likes to write it. It counts only from a peer that the operator trusts, and then
//! from the right: each trusted hop vouches for the address to its left, and the first that is not itself a trusted proxy
//! is the client. What cannot be parsed ends the walk; it never skips a check. XFF-02, XFF-03.
//!
//! The device name is display text for the owner of an account, parsed once, at sign-in. It authenticates nobody.

mod device;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::app::App;
use crate::error::{Error, Refusal};
use crate::event::Scene;

pub use device::{Device, Devices};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Longer agents are cut: what lies beyond is padding.
const AGENT_CHARS: usize = 512;

/// The address of the TCP peer, as the server loop found it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Who calls.
#[derive(Clone, Debug)]
pub struct Client {
    /// The address behind the trusted proxies; IPv4-mapped IPv6 is IPv4.
    pub ip: IpAddr,
    /// `User-Agent`, cut at 512 characters, without control characters.
    pub user_agent: String,
    hints: device::Hints,
    devices: Devices,
}

impl Client {
    /// Reads what the headers say of who calls, as far as these proxies vouch for it; `devices` will name the device.
    pub fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet], devices: &Devices) -> Self {
        Client { ip: client_ip(peer, headers, trusted), user_agent: user_agent(headers), hints: device::Hints::of(headers), devices: devices.clone() }
    }

    /// Names the device. Unless it was named before that takes milliseconds, so only where something is to be recorded.
    ///
    /// # Errors
    /// The naming panicked.
    pub async fn device(&self) -> Result<Device, Error> {
        Ok(self.devices.name(&self.user_agent, &self.hints).await?)
    }

    /// Where it is and what it is, for the record of what it does.
    ///
    /// # Errors
    /// As [`device`](Self::device).
    pub async fn scene(&self) -> Result<Scene, Error> {
        Ok(Scene::default().from(self.ip).with(&self.device().await?.name))
    }
}

impl FromRequestParts<App> for Client {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        // Without a peer nobody can say who calls; there always is one behind our server loop.
        let ConnectInfo(Peer(peer)) = parts.extensions.get().ok_or(Refusal::MalformedRequest("The connection has no peer address."))?;
        Ok(Client::of(peer.ip(), &parts.headers, &app.config.trusted_proxies, &app.devices))
    }
}

/// Warns the operator, once, of an `X-Forwarded-For` that does not count, whatever it came with.
pub fn warn_of_untrusted(app: &App, extensions: &Extensions, headers: &HeaderMap) {
    if !headers.contains_key(FORWARDED_FOR) {
        return;
    }
    let Some(ConnectInfo(Peer(peer))) = extensions.get() else { return };
    if !is_trusted(peer.ip(), &app.config.trusted_proxies) && !app.told_of_untrusted_proxy.swap(true, Ordering::Relaxed) {
        tracing::warn!(peer = %peer.ip(), "X-Forwarded-For from a peer that is not in TRUSTED_PROXIES is ignored; if that is your proxy, add it: until then all its clients are one source");
    }
}

fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get("user-agent").map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    agent.chars().filter(|c| !c.is_control()).take(AGENT_CHARS).collect()
}

fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    trusted.iter().any(|net| net.contains(&ip))
}

/// Finds the client's address.
fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    // Several header lines are one list; each step left is vouched for by the trusted address on its right.
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    let entries = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for entry in entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
        let Some(ip) = std::str::from_utf8(entry).ok().and_then(address) else { break };
        client = ip;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    client
}

/// Reads an address as proxies write it: bare, in brackets, with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            let port = after.strip_prefix(':');
            if !(after.is_empty() || port.is_some_and(is_port)) {
                return None;
            }
            inside
        }
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => {
                if !is_port(port) {
                    return None;
                }
                host
            }
            _ => text,
        },
    };
    // The standard parser refuses zones, names and octal.
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn from(peer: &str, lines: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(line).expect("a header value"));
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().expect("a network")).collect();
        client_ip(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    /// XFF-02: the client's own entries stand to the left, and do not count.
    #[test]
    fn the_right_most_address_that_is_no_trusted_proxy_is_the_client() {
        let local = ["127.0.0.2/32"];
        assert_eq!(from("127.0.0.2", &["1.2.3.4, 198.51.100.7"], &local), "198.51.100.7");
        assert_eq!(from("127.0.0.2", &["1.2.3.4, 198.51.100.7"], &["127.0.0.2/32", "198.51.100.0/24"]), "1.2.3.4");
        assert_eq!(from("127.0.0.2", &["1.2.3.4", "198.51.100.7"], &local), "198.51.100.7");
        assert_eq!(from("127.0.0.2", &["127.0.0.2, 127.0.0.2"], &local), "127.0.0.2");
        assert_eq!(from("127.0.0.2", &["198.51.100.1, 198.51.100.2"], &["127.0.0.2/32", "198.51.100.0/24"]), "198.51.100.1");
    }

    #[test]
    fn a_stranger_cannot_say_who_they_are() {
        assert_eq!(from("203.0.113.9", &["1.2.3.4"], &["127.0.0.1/32"]), "203.0.113.9");
        assert_eq!(from("127.0.0.1", &["1.2.3.4"], &[]), "127.0.0.1");
    }

    /// XFF-03: what cannot be parsed ends the walk at the last good address.
    #[test]
    fn what_cannot_be_parsed_ends_the_walk() {
        let local = ["127.0.0.1/32", "10.0.0.0/8"];
        for odd in ["a", "unknown", "_x", "fe80::1%eth0", "0177.0.0.1", "1.2.3", "[1.2.3.4", "[::1", "1.2.3.4:99999", "1.2.3.4:", "é", "1.2.3.4 5.6.7.8"] {
            assert_eq!(from("127.0.0.1", &[odd], &local), "127.0.0.1", "{odd}");
            assert_eq!(from("127.0.0.1", &[&format!("1.2.3.4, {odd}, 10.0.0.5")], &local), "10.0.0.5", "{odd}");
        }
        for (good, meant) in [
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[1.2.3.4]:80", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            (" 1.2.3.4 , ,", "1.2.3.4"),
        ] {
            assert_eq!(from("127.0.0.1", &[good], &local), meant, "{good}");
        }
        assert_eq!(from("127.0.0.1", &[&vec!["1.2.3.4"; 300].join(",")], &local), "1.2.3.4");
        assert_eq!(from("::ffff:127.0.0.1", &["1.2.3.4"], &local), "1.2.3.4");
    }
}
