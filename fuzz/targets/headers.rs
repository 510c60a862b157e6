//! Headers: a line of the input is the value of one.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use axum::http::header::{COOKIE, ORIGIN, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum_extra::extract::cookie::CookieJar;
use ipnet::IpNet;
use tokio::runtime::Runtime;

use holdfast::client::{Client, Device, Devices};
use holdfast::clock::Timestamp;
use holdfast::config::{Config, Variables};
use holdfast::cookie::{Cookies, Name};
use holdfast::cross_site::{Passage, judge};

use super::texts::is_token;

fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == b'\n')
}

/// A header with these lines; what no header can hold is left out.
fn header<'a>(name: HeaderName, lines: impl Iterator<Item = &'a [u8]>) -> HeaderMap {
    lines.filter_map(|line| HeaderValue::from_bytes(line).ok()).map(|value| (name.clone(), value)).collect()
}

/// Lines of `Cookie`. A token is found exactly when a plain reader finds one cookie of that name, and the standard parser
/// reads the same; and what we write, we read.
pub fn cookie(data: &[u8]) {
    let headers = header(COOKIE, lines(data));
    for secure in [true, false] {
        let cookies = Cookies { secure };
        let prefix = if secure { "__Host-" } else { "" };
        for (which, name) in [(Name::Session, "holdfast"), (Name::Device, "holdfast-device")] {
            let name = format!("{prefix}{name}");
            let found = cookies.presented(&headers, which);
            let written = found.as_ref().map(|token| token.reveal().to_string());
            assert_eq!(written, the_only_token(&headers, &name));
            let Some(token) = found else { continue };
            // That parser trims names, reads no line with a byte that is not ASCII, and takes the last of two.
            let spellings = pairs(&headers).filter(|(found, _)| found.trim_ascii() == name.as_bytes()).count();
            if spellings == 1 && headers.get_all(COOKIE).iter().all(|line| line.to_str().is_ok()) {
                let jar = CookieJar::from_headers(&headers);
                assert_eq!(jar.get(&name).map(|cookie| cookie.value().to_string()), written);
            }
            let line = match which {
                Name::Session => cookies.session(&token, true, Timestamp(1_000), Timestamp(0)),
                Name::Device => cookies.device(&token),
            };
            let pair = line.as_bytes().split(|byte| *byte == b';').take(1);
            assert_eq!(cookies.presented(&header(COOKIE, pair), which).map(|token| token.hash()), Some(token.hash()));
        }
    }
}

/// Every cookie of the request: its name, with what stands behind it up to the `=`, and its value.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    all.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..at].trim_ascii_start(), &pair[at + 1..]))
    })
}

/// The value of the cookie of this name, if there is exactly one and it can be a token.
fn the_only_token(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<&[u8]> = pairs(headers).filter(|(found, _)| *found == name.as_bytes()).map(|(_, value)| value).collect();
    match values[..] {
        [value] if is_token(value) => std::str::from_utf8(value).ok().map(String::from),
        _ => None,
    }
}

static TRUSTED: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let nets = ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "2001:db8::/32"];
    nets.into_iter().filter_map(|net| net.parse().ok()).collect()
});

fn is_trusted(ip: IpAddr) -> bool {
    TRUSTED.iter().any(|net| net.contains(&ip))
}

/// The peer, and lines of `X-Forwarded-For`. The client is the one that a walk written down another way finds, and who is not
/// a proxy cannot say who they are.
pub fn forwarded(data: &[u8]) {
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    let mut lines = lines(data);
    let peer = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok()).unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let headers = header(FORWARDED_FOR, lines);
    let ip = Client::of(peer, &headers, &TRUSTED, &DEVICES).ip;
    assert_eq!(ip, walked(peer.to_canonical(), headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes)));
    assert_eq!(ip, ip.to_canonical());
    if is_trusted(ip) {
        return;
    }
    // Whatever a client puts before what the proxies have written counts for nothing.
    for lie in ["6.6.6.6", "10.6.6.6", "nonsense", "[", ","] {
        let values = headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        let lied = header(FORWARDED_FOR, std::iter::once(lie.as_bytes()).chain(values));
        assert_eq!(Client::of(peer, &lied, &TRUSTED, &DEVICES).ip, ip, "{lie}");
    }
}

/// The walk from its other end: the chain of who vouches for whom is written down, and its last good link is the client.
fn walked<'a>(peer: IpAddr, lines: impl Iterator<Item = &'a [u8]>) -> IpAddr {
    let list = lines.collect::<Vec<_>>().join(&b',');
    let entries: Vec<&[u8]> = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()).collect();
    let mut chain = vec![Some(peer)];
    chain.extend(entries.into_iter().rev().map(|entry| std::str::from_utf8(entry).ok().and_then(address)));
    let first_stranger = chain.iter().position(|link| link.is_none_or(|ip| !is_trusted(ip))).unwrap_or(chain.len() - 1);
    chain[..=first_stranger].iter().rev().find_map(|link| *link).unwrap_or(peer)
}

/// An address as the standard library reads it: bare, with a port, in brackets. No zones.
fn address(text: &str) -> Option<IpAddr> {
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok();
    let bracketed = || {
        let (inside, port) = text.strip_prefix('[')?.split_once(']')?;
        (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| inside.parse().ok()).flatten()
    };
    let with_port = || text.parse::<SocketAddr>().ok().filter(|_| !text.contains('%')).map(|socket| socket.ip());
    text.parse().ok().or_else(with_port).or_else(bracketed).map(|ip: IpAddr| ip.to_canonical())
}

static DEVICES: LazyLock<Devices> = LazyLock::new(|| Devices::start().expect("a thread"));
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));

/// An agent, and two hints. A device is named in our own few words, whatever it calls itself.
pub fn user_agent(data: &[u8]) {
    let names = [USER_AGENT, HeaderName::from_static("sec-ch-ua-platform"), HeaderName::from_static("sec-ch-ua-mobile")];
    let pairs = names.into_iter().zip(lines(data)).filter_map(|(name, line)| Some((name, HeaderValue::from_bytes(line).ok()?)));
    let client = Client::of(IpAddr::from([127, 0, 0, 1]), &pairs.collect(), &[], &DEVICES);
    assert!(client.user_agent.chars().count() <= 512 && !client.user_agent.contains(char::is_control));
    let Device { name, kind } = RUNTIME.block_on(client.device()).expect("a device can always be named");
    assert!(["desktop", "mobile", "tablet", "bot", "other"].contains(&kind), "{kind}");
    assert!(name.len() <= 40 && name.chars().all(|c| c.is_ascii_alphabetic() || c == ' ' || c == '-'), "{name}");
    assert_eq!(kind == "bot", ["bot", "Bot", "Baiduspider"].iter().any(|word| name.ends_with(word)), "{name}: {kind}");
}

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let settings = [("PUBLIC_URL", "https://id.example.com"), ("ALLOWED_ORIGINS", "https://app.example.com")];
    Config::read(&Variables::of(&settings)).expect("the settings are right")
});

/// `Origin` lines, a NUL, `Sec-Fetch-Site` lines. Only what a browser writes for our own pages lets a change through.
pub fn origin(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\0');
    let (origins, sites) = (parts.next().unwrap_or_default(), parts.next());
    let mut headers = header(ORIGIN, lines(origins));
    headers.extend(header(HeaderName::from_static("sec-fetch-site"), sites.into_iter().flat_map(lines)));
    let crossing = judge(&Method::POST, &headers, &CONFIG);

    let all = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let (origins, sites) = (all("origin"), all("sec-fetch-site"));
    let ours = [&b"https://id.example.com"[..], b"https://app.example.com"];
    let same_site = match sites[..] {
        [] => origins.is_empty(),
        [one] => one == b"same-origin" || one == b"none",
        _ => false,
    };
    let may = origins.len() < 2 && (origins.first().is_some_and(|one| ours.contains(one)) || same_site);
    assert_eq!(matches!(crossing.passage, Passage::Through), may, "{origins:?} {sites:?}");
    assert_eq!(crossing.reader.is_some(), origins == [ours[1]], "{origins:?}");
    // A look is free, but its answer is still for those who may read it.
    let look = judge(&Method::GET, &headers, &CONFIG);
    assert!(matches!(look.passage, Passage::Through) && look.reader == crossing.reader);
}
