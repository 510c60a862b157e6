//! On the socket: stopping without losing anything, slow and broken clients, and what HTTP allows but few send.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{Browser, PASSWORD, PATIENCE, Place, Reply, Server, Wire, soon};

const LIVE: &str = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A POST with this body, or with these headers and whatever follows.
fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n{body}")
}

fn length(body: &str) -> String {
    format!("Content-Length: {}\r\n", body.len())
}

fn sign_up_body(email: &str) -> String {
    json!({"email": email, "password": PASSWORD}).to_string()
}

// Stopping.

/// Takes about a second or two to hash a password.
const EXPENSIVE: [(&str, &str); 2] = [("ARGON2_MEMORY_KIB", "16384"), ("ARGON2_ITERATIONS", "60")];

/// Sends a request in two parts, so that it surely runs when this returns: the server has asked for the second one.
fn begin(server: &Server, path: &str, body: &str) -> Wire {
    let mut wire = server.wire();
    wire.send(post(path, &format!("Expect: 100-continue\r\n{}", length(body)), "")).expect("it is sent");
    wire.head().expect("an answer").is(100);
    wire.send(body).expect("it is sent");
    wire
}

#[track_caller]
fn is_refused_a_connection(address: SocketAddr) {
    assert!(soon(Duration::from_secs(1), || TcpStream::connect_timeout(&address, PATIENCE).is_err()), "{address} still takes connections");
}

#[test]
fn a_stop_finishes_what_runs_and_takes_nothing_new() {
    let mut place = Place::with(&EXPENSIVE);
    let server = place.start();
    let address = server.address();
    let mut kept = server.wire();
    kept.ask("GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n").is(200);
    let mut running = begin(&server, "/signup", &sign_up_body("ana@example.com"));

    server.signal(Signal::TERM);
    server.wait_for("stopping");
    let draining = kept.ask("GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(draining.header("retry-after").is_some(), "{draining:?}");
    draining.is_refused(503, "overloaded");
    is_refused_a_connection(address);
    let signed_up = running.reply().expect("an answer").is(201);
    let (status, log) = server.ends_within(PATIENCE);
    assert_eq!(status.code(), Some(0), "{log}");

    for (name, value) in [("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", "1")] {
        place.set(name, value);
    }
    let server = place.start();
    let cookie = signed_up.header("set-cookie").expect("a cookie");
    let token = signed_up.headers.iter().find_map(|(_, value)| value.strip_prefix("holdfast=")).unwrap_or(cookie);
    server.browser().holding(token.split(';').next().expect("a value")).get("/check").is(204);
}

#[test]
fn a_stop_writes_down_when_a_session_was_last_active() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let server = place.start();
        let mut ana = server.sign_up("ana@example.com");
        let seen = |ana: &mut Browser| -> (String, String) {
            let sessions = ana.get("/me/sessions").is(200).json();
            let text = |name: &str| sessions["sessions"][0][name].as_str().expect("a time").to_string();
            (text("created_at"), text("last_active_at"))
        };
        // The look is no activity, so it shows what was before.
        let passive = |server: &Server, token: &str| server.browser().holding(token).with("X-Session-Passive", "1");
        let mut look = passive(&server, &ana.token());
        assert!(soon(PATIENCE, || {
            ana.get("/check").is(204);
            let (created, active) = seen(&mut look);
            active > created
        }));
        let before = seen(&mut look);
        server.signal(signal);
        let (status, log) = server.ends_within(PATIENCE);
        assert_eq!(status.code(), Some(0), "{log}");
        let server = place.start();
        assert_eq!(seen(&mut passive(&server, &ana.token())), before, "{signal:?}");
    }
}

#[test]
fn idle_connections_do_not_delay_a_stop() {
    let place = Place::new();
    let server = place.start();
    let mut kept: Vec<Wire> = (0..20).map(|_| server.wire()).collect();
    for wire in &mut kept[..10] {
        wire.ask(LIVE).is(200);
    }
    server.signal(Signal::TERM);
    let (status, log) = server.ends_within(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{log}");
    for mut wire in kept {
        wire.is_closed();
    }
}

#[test]
fn a_stop_waits_no_longer_than_its_grace() {
    let place = Place::with(&[("SHUTDOWN_GRACE", "1s")]);
    let server = place.start();
    // Its body never comes.
    let mut stuck = server.wire();
    stuck.send(post("/login", "Expect: 100-continue\r\nContent-Length: 10\r\n", "")).expect("it is sent");
    stuck.head().expect("an answer").is(100);
    let begun = Instant::now();
    server.signal(Signal::TERM);
    let (status, log) = server.ends_within(Duration::from_secs(8));
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(begun.elapsed() >= Duration::from_millis(900), "it did not wait");
    stuck.is_closed();
}

// Listening.

#[test]
fn a_name_listens_on_every_address_it_resolves_to() {
    let place = Place::with(&[("LISTEN_ADDR", "localhost:0")]);
    let server = place.start();
    let port = server.address().port();
    let mut expected: Vec<SocketAddr> = ("localhost", port).to_socket_addrs().expect("localhost has addresses").collect();
    expected.retain(|address| TcpListener::bind(SocketAddr::new(address.ip(), 0)).is_ok());
    assert!(!expected.is_empty());
    for address in &expected {
        assert!(server.addresses().contains(address), "{address} is not in {:?}", server.addresses());
        Wire::open(*address).ask(LIVE).is(200);
    }
}

#[test]
fn ipv6_alone_is_served() {
    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let place = Place::with(&[("LISTEN_ADDR", "[::1]:0")]);
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    assert_eq!(ana.get("/me").is(200).json()["session"]["ip"], "::1");
}

// Slow clients.

/// Sends `first`, then one byte of `rest` twice a second, and says how long the connection lived.
fn drip(mut wire: Wire, first: &str, rest: &str) -> (Duration, Vec<u8>) {
    let begun = Instant::now();
    wire.send(first).expect("it is sent");
    for byte in rest.as_bytes().iter().cycle().take(60) {
        // A write may succeed after the end; a read tells.
        if wire.send([*byte]).is_err() || wire.ends_within(Duration::from_millis(500)) {
            break;
        }
    }
    wire.ends_within(PATIENCE);
    (begun.elapsed(), wire.is_closed())
}

/// SLOW-01, SLOW-02. All at once, for each takes its time.
#[test]
fn slow_headers_are_cut_at_ten_seconds_and_kept_connections_are_not() {
    let place = Place::new();
    let server = place.start();
    let ana = server.sign_up("ana@example.com");
    let cookie = format!("GET /check HTTP/1.1\r\nHost: localhost\r\nCookie: holdfast={}\r\n\r\n", ana.token());
    std::thread::scope(|threads| {
        let cut = |what: &'static str, wire: Wire, first: &'static str, rest: &'static str| {
            threads.spawn(move || {
                let (lived, said) = drip(wire, first, rest);
                assert!((9.0..13.0).contains(&lived.as_secs_f64()), "{what}: cut after {lived:?}");
                assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{what}: {}", String::from_utf8_lossy(&said));
            })
        };
        let used = |request: &str| {
            let mut wire = server.wire();
            assert!(wire.ask(request).status < 300);
            wire
        };
        let mut all = vec![
            cut("a request line and no more", server.wire(), "GET /health/live HTTP/1.1\r\n", ""),
            cut("half a request line", server.wire(), "GE", ""),
            cut("a header byte by byte", server.wire(), "GET /health/live HTTP/1.1\r\nX-Slow: ", "x"),
            cut("headers line by line", server.wire(), "GET /health/live HTTP/1.1\r\n", "A: b\r\n"),
            cut("the second request of a connection", used(LIVE), "GET /health/live HTTP/1.1\r\nX-Slow: ", "x"),
            cut("the second request of a session", used(&cookie), "GET /check HTTP/1.1\r\nX-Slow: ", "x"),
        ];
        // A request whose beginning came in one piece with a whole one.
        all.push(threads.spawn(|| {
            let mut wire = server.wire();
            wire.ask(format!("{LIVE}GET /health/live HTTP/1.1\r\nX-Slow: ")).is(200);
            let (lived, _) = drip(wire, "", "x");
            assert!((9.0..13.0).contains(&lived.as_secs_f64()), "a pipelined request: cut after {lived:?}");
        }));
        all.push(silence(threads, used(LIVE), LIVE, "a connection that had one request"));
        all.push(silence(threads, used(&cookie), cookie.as_str(), "a connection that had one check"));
        // One request a second for longer than the time for headers.
        all.push(threads.spawn(|| {
            let (mut wire, begun) = (server.wire(), Instant::now());
            while begun.elapsed() < Duration::from_secs(11) {
                wire.ask(LIVE).is(200);
                assert!(!wire.ends_within(Duration::from_secs(1)), "a busy connection was cut after {:?}", begun.elapsed());
            }
        }));
        // SLOW-01: many slow ones keep nobody else waiting.
        let slow: Vec<Wire> = (0..200)
            .map(|_| {
                let mut wire = server.wire();
                wire.send("POST /login HTTP/1.1\r\nX-Slow: ").expect("it is sent");
                wire
            })
            .collect();
        let begun = Instant::now();
        server.sign_in("ana@example.com").get("/check").is(204);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let failures: Vec<String> = all.into_iter().filter_map(|thread| thread.join().err()).map(|panic| panic_text(&*panic)).collect();
        assert!(failures.is_empty(), "{failures:#?}");
        drop(slow);
    });
    server.is_well();
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// A kept connection may be silent for a minute; eleven seconds are enough to tell it from a slow one.
fn silence<'s>(threads: &'s Scope<'s, '_>, mut wire: Wire, request: &'s str, what: &'static str) -> ScopedJoinHandle<'s, ()> {
    threads.spawn(move || {
        let begun = Instant::now();
        assert!(!wire.ends_within(Duration::from_secs(11)), "{what} was cut after {:?} of silence", begun.elapsed());
        assert!(wire.ask(request).status < 300);
    })
}

// Bodies.

#[test]
fn a_gigabyte_is_refused_before_it_is_sent() {
    let place = Place::new();
    let server = place.start();
    for (expect, body) in [("", ""), ("", "{\"email\""), ("Expect: 100-continue\r\n", "")] {
        let begun = Instant::now();
        let mut wire = server.wire();
        let reply = wire.ask(post("/login", &format!("{expect}Content-Length: 1073741824\r\n"), body));
        reply.is_refused(413, "body_too_large");
        wire.is_closed();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    // More than any number of bytes, and no number at all.
    for wrong in ["99999999999999999999999999", "-1", "1e3", "0x10", "10, 11", ""] {
        let mut wire = server.wire();
        wire.send(post("/login", &format!("Content-Length: {wrong}\r\n"), "{}")).expect("it is sent");
        wire.finish();
        if let Ok(reply) = wire.reply() {
            assert!((400..500).contains(&reply.status), "{wrong}: {reply:?}");
        }
        wire.is_closed();
    }
    // Elsewhere it is not read either.
    for path in ["/nowhere", "/health/live", "/me", "/logout"] {
        let mut wire = server.wire();
        let reply = wire.ask(post(path, "Content-Length: 1073741824\r\n", ""));
        assert!((400..500).contains(&reply.status), "{path}: {reply:?}");
        wire.is_closed();
    }
    server.is_well();
}

#[test]
fn a_body_of_exactly_64_kib_is_read_and_one_byte_more_is_not() {
    let place = Place::new();
    let server = place.start();
    let padded = |bytes: usize| {
        let body = sign_up_body("ana@example.com");
        format!("{body}{}", " ".repeat(bytes - body.len()))
    };
    let (fits, exceeds) = (padded(64 * 1024), padded(64 * 1024 + 1));
    server.wire().ask(post("/signup", &length(&exceeds), &exceeds)).is_refused(413, "body_too_large");
    let chunked = |body: &str| post("/signup", "Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    server.wire().ask(chunked(&exceeds)).is_refused(413, "body_too_large");
    server.wire().ask(post("/signup", &length(&fits), &fits)).is(201);
    server.wire().ask(chunked(&fits)).is_refused(409, "email_taken");
}

#[test]
fn endless_chunks_are_refused_and_cost_no_memory() {
    let place = Place::new();
    let server = place.start();
    server.sign_up("ana@example.com");
    let before = server.resident_kib();
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    let endless: Vec<Wire> = (0..20)
        .map(|_| {
            let mut wire = server.wire();
            wire.send(post("/login", "Transfer-Encoding: chunked\r\n", "")).expect("it is sent");
            // A server that reads on for ever would take all of it.
            let refused = (0..4096).any(|_| wire.send(&chunk).is_err() || wire.has_news());
            assert!(refused, "64 MiB were taken");
            // The answer may be lost to the reset that follows it.
            if let Ok(reply) = wire.reply() {
                reply.is_refused(413, "body_too_large");
            }
            wire
        })
        .collect();
    if let (Some(before), Some(after)) = (before, server.resident_kib()) {
        assert!(after < before + 10 * 1024, "{before} KiB before, {after} after");
    }
    for mut wire in endless {
        wire.is_closed();
    }
    // At least who sends no more than is read hears why.
    let mut wire = server.wire();
    let reply = wire.ask(post("/login", "Transfer-Encoding: chunked\r\n", &chunk.repeat(5)));
    reply.is_refused(413, "body_too_large");
    wire.is_closed();
    server.is_well();
}

#[test]
fn a_length_that_is_wrong_does_no_harm() {
    let place = Place::new();
    let server = place.start();
    let body = sign_up_body("ana@example.com");
    // Too long: the rest never comes.
    let mut wire = server.wire();
    wire.send(post("/signup", &format!("Content-Length: {}\r\n", body.len() + 1), &body)).expect("it is sent");
    wire.finish();
    if let Ok(reply) = wire.reply() {
        assert!((400..500).contains(&reply.status), "{reply:?}");
    }
    wire.is_closed();
    // A chunk that breaks off.
    let mut wire = server.wire();
    wire.send(post("/signup", "Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{body}\r\n", body.len()))).expect("it is sent");
    wire.finish();
    if let Ok(reply) = wire.reply() {
        assert!((400..500).contains(&reply.status), "{reply:?}");
    }
    wire.is_closed();
    // Too short: what follows is no request.
    let mut wire = server.wire();
    wire.send(post("/signup", &format!("Content-Length: {}\r\n", body.len() - 1), &body)).expect("it is sent");
    wire.reply().expect("an answer").is_refused(400, "malformed_json");
    wire.finish();
    wire.is_closed();
    // None of them signed anybody up.
    server.wire().ask(post("/signup", &length(&body), &body)).is(201);
}

/// A proxy and a server that read one request differently smuggle a second one.
#[test]
fn a_request_with_two_lengths_is_one_request_at_most() {
    let place = Place::new();
    let server = place.start();
    let hidden = "GET /me HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let ambiguous = [
        format!("Content-Length: 0\r\nContent-Length: {}\r\n", hidden.len()),
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", 5 + hidden.len()),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".to_string(),
        "Transfer-Encoding: xchunked\r\n".to_string(),
        "Transfer-Encoding : chunked\r\n".to_string(),
    ];
    for headers in ambiguous {
        let mut wire = server.wire();
        wire.send(post("/logout", &headers, &format!("0\r\n\r\n{hidden}"))).expect("it is sent");
        wire.finish();
        let said = String::from_utf8_lossy(&wire.is_closed()).into_owned();
        assert!(said.matches("HTTP/1.1 ").count() <= 1, "{headers}: {said}");
    }
    server.is_well();
}

// Odd requests.

#[test]
fn requests_that_are_too_large_or_garbage_are_refused_without_harm() {
    let place = Place::new();
    let server = place.start();
    let path = "x".repeat(64 * 1024);
    let large = [
        format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /health/live?{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(100_000)),
        format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(100_000)),
        format!("GET /check HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n", "a=b; ".repeat(20_000)),
    ];
    for request in &large {
        let shown = &request[..60];
        let mut wire = server.wire();
        // The answer may come before all is sent.
        let _ = wire.send(request);
        if let Ok(reply) = wire.reply() {
            assert!(matches!(reply.status, 400 | 414 | 431), "{shown}: {reply:?}");
        }
        wire.is_closed();
    }
    let garbage: [&[u8]; 10] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ];
    for bytes in garbage {
        let shown = String::from_utf8_lossy(bytes);
        let mut wire = server.wire();
        wire.send(bytes).expect("it is sent");
        wire.finish();
        if let Ok(reply) = wire.reply() {
            assert!((400..506).contains(&reply.status) && reply.status != 500, "{shown:?}: {reply:?}");
        }
        wire.is_closed();
    }
    server.is_well();
    let log = server.stop();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn http_1_0_is_served() {
    let place = Place::new();
    let server = place.start();
    let mut wire = server.wire();
    wire.ask("GET /health/live HTTP/1.0\r\n\r\n").is(200);
    assert!(wire.is_closed().is_empty());
    let body = sign_up_body("ana@example.com");
    let head = format!("POST /signup HTTP/1.0\r\nContent-Type: application/json\r\n{}\r\n", length(&body));
    let mut wire = server.wire();
    let reply = wire.ask(head + &body).is(201);
    assert_eq!(reply.json()["user"]["email"], "ana@example.com");
    // A client of 1.0 does not know chunks.
    assert!(reply.header("transfer-encoding").is_none(), "{reply:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let place = Place::new();
    let server = place.start();
    let ana = server.sign_up("ana@example.com");
    let get = |path: &str, id: usize| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: n-{id}\r\nCookie: holdfast={}\r\n\r\n", ana.token());
    let paths = [("/check", 204), ("/me", 200), ("/nowhere", 404), ("/health/live", 200), ("/me/sessions", 200)];
    let all: String = paths.iter().enumerate().map(|(id, (path, _))| get(path, id)).collect();
    let body = json!({"email": "ana@example.com", "password": "wrong password"}).to_string();
    let mut wire = server.wire();
    wire.send(format!("{all}{}{LIVE}", post("/login", &length(&body), &body))).expect("it is sent");
    for (id, (path, status)) in paths.into_iter().enumerate() {
        let reply = wire.reply().expect("an answer").is(status);
        assert_eq!(reply.header("x-request-id"), Some(format!("n-{id}").as_str()), "{path}");
    }
    wire.reply().expect("an answer").is_refused(401, "invalid_credentials");
    wire.reply().expect("an answer").is(200);
}

#[test]
fn head_is_get_without_its_body() {
    let place = Place::new();
    let server = place.start();
    let ana = server.sign_up("ana@example.com");
    let ask = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nCookie: holdfast={}\r\n\r\n", ana.token());
    let mut wire = server.wire();
    for (path, status) in [("/health/live", 200), ("/openapi.json", 200), ("/me", 200), ("/check", 204), ("/nowhere", 404)] {
        wire.send(ask("HEAD", path)).expect("it is sent");
        let head = wire.head().expect("an answer").is(status);
        assert_eq!(head.header("cache-control"), Some("no-store"), "{path}");
        // A body would be taken for the next answer.
        wire.ask(ask("GET", path)).is(status);
    }
}

#[test]
fn neither_the_host_nor_an_absolute_uri_changes_the_answer() {
    let place = Place::new();
    let server = place.start();
    let body = sign_up_body("ana@example.com");
    let head = format!("POST http://evil.example/signup HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n{}\r\n", length(&body));
    let signed_up = server.wire().ask(head + &body).is(201);
    assert!(!format!("{signed_up:?}").contains("evil") && !String::from_utf8_lossy(&signed_up.body).contains("evil"), "{signed_up:?}");
    assert!(signed_up.headers.iter().all(|(name, value)| name != "set-cookie" || !value.contains("Domain")), "{signed_up:?}");
    for request in [
        "GET http://evil.example/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET http://evil.example:9999/health/live HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET /health/live HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    ] {
        let reply = server.wire().ask(request);
        assert!(!format!("{reply:?}{}", String::from_utf8_lossy(&reply.body)).contains("evil"), "{request}: {reply:?}");
        assert!(if request.starts_with("GET") { reply.status == 200 } else { (400..500).contains(&reply.status) }, "{request}: {reply:?}");
    }
    server.is_well();
}

/// FWD-04: hop-by-hop names do not make headers disappear.
#[test]
fn a_connection_header_takes_no_other_header_away() {
    let place = Place::new();
    let server = place.start();
    let ana = server.sign_up("ana@example.com");
    let ask = |extra: &str| {
        let cookie = format!("Cookie: holdfast={}\r\nX-Forwarded-For: 203.0.113.7\r\n", ana.token());
        server.wire().ask(format!("GET /check HTTP/1.1\r\nHost: localhost\r\n{cookie}{extra}\r\n"))
    };
    let plain = ask("").is(204);
    let tricked = ask("Connection: keep-alive, Cookie, X-Forwarded-For\r\nConnection: x-holdfast-user\r\nX-Holdfast-User: somebody\r\n").is(204);
    assert_eq!(tricked.header("x-holdfast-user"), plain.header("x-holdfast-user"));
    assert_eq!(tricked.header("x-holdfast-session"), plain.header("x-holdfast-session"));
    let body = json!({"email": "ana@example.com", "password": PASSWORD}).to_string();
    let from = "X-Forwarded-For: 203.0.113.7\r\nConnection: close, X-Forwarded-For\r\nContent-Type: application/json\r\n";
    let signed_in = server.wire().ask(format!("POST /login HTTP/1.1\r\nHost: localhost\r\n{from}Content-Length: {}\r\n\r\n{body}", body.len())).is(200);
    assert_eq!(signed_in.json()["session"]["ip"], "203.0.113.7");
}

#[test]
fn a_client_that_asks_before_it_sends_its_body_is_told_to_go_on() {
    let place = Place::new();
    let server = place.start();
    let mut wire = begin(&server, "/signup", &sign_up_body("ana@example.com"));
    wire.reply().expect("an answer").is(201);
    // The connection is good for more.
    wire.ask(LIVE).is(200);
}

#[test]
fn two_session_cookies_are_none_in_one_line_or_in_two() {
    let place = Place::new();
    let server = place.start();
    let (ana, ben) = (server.sign_up("ana@example.com").token(), server.sign_up("ben@example.com").token());
    let ask = |lines: &[String]| -> Reply {
        let lines: String = lines.iter().map(|line| format!("Cookie: {line}\r\n")).collect();
        server.wire().ask(format!("GET /check HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n"))
    };
    for (one, other) in [(&ana, &ben), (&ben, &ana), (&ana, &ana)] {
        ask(&[format!("holdfast={one}; holdfast={other}")]).is_refused(401, "unauthenticated");
        ask(&[format!("holdfast={one}"), format!("holdfast={other}")]).is_refused(401, "unauthenticated");
        ask(&[format!("holdfast={one}"), "a=b".into(), format!("c=d; holdfast={other}")]).is_refused(401, "unauthenticated");
    }
    // Two lines with one session are one list of cookies.
    ask(&["a=b".into(), format!("holdfast={ana}")]).is(204);
    ask(&[format!("holdfast={ana}")]).is(204);
}

#[test]
fn http_2_is_served_to_whoever_begins_with_it() {
    let place = Place::new();
    let server = place.start();
    let mut wire = server.wire();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::try_from(payload.len()).expect("short"), kind, flags, 0, 0, 0, stream];
        bytes.extend_from_slice(payload);
        bytes
    };
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    // :method GET and :scheme http from the static table; :path and :authority spelled out.
    let mut headers = vec![0x82, 0x86, 0x04, 12];
    headers.extend_from_slice(b"/health/live");
    headers.extend_from_slice(&[0x01, 9]);
    headers.extend_from_slice(b"localhost");
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it is sent");
    wire.send(frame(SETTINGS, 0, 0, &[])).expect("it is sent");
    // END_STREAM and END_HEADERS.
    wire.send(frame(HEADERS, 0x5, 1, &headers)).expect("it is sent");
    let mut kinds = Vec::new();
    loop {
        let head = wire.bytes(9).expect("a frame");
        let size = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let payload = wire.bytes(size).expect("its payload");
        kinds.push(head[3]);
        if head[3] == HEADERS {
            // :status 200 from the static table comes first.
            assert_eq!((head[8], payload.first()), (1, Some(&0x88)), "{payload:?}");
            break;
        }
    }
    assert!(kinds.contains(&SETTINGS), "{kinds:?}");
    // Garbage after the preface costs its own connection only.
    let mut wire = server.wire();
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it is sent");
    wire.send([0xff; 200]).expect("it is sent");
    wire.is_closed();
    server.is_well();
}

/// What says how a message is framed in HTTP/1 has no meaning in HTTP/2, and a line break in a value would have one in HTTP/1.
#[test]
fn http_2_takes_no_headers_of_connections_and_no_line_breaks() {
    let place = Place::new();
    let server = place.start();
    let literal = |name: &[u8], value: &[u8]| -> Vec<u8> {
        let short = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
        [&[0, short(name)][..], name, &[short(value)], value].concat()
    };
    let odd: [(&[u8], &[u8]); 6] = [
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"),
        (b"x-note", b"a\r\nx-holdfast-role: admin"),
        (b"x-note", b"a\0b"),
        (b"X-Note", b"upper case"),
        (b"x note", b"a space"),
    ];
    for (name, value) in odd {
        // :method GET and :scheme http from the static table; :path and :authority spelled out.
        let mut block = vec![0x82, 0x86, 0x04, 12];
        block.extend_from_slice(b"/health/live");
        block.extend_from_slice(&[0x01, 9]);
        block.extend_from_slice(b"localhost");
        block.extend(literal(name, value));
        let head = [0, 0, u8::try_from(block.len()).expect("short"), 1, 0x5, 0, 0, 0, 1];
        let mut wire = server.wire();
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("it is sent");
        wire.send([&head[..], &block].concat()).expect("it is sent");
        // The answer is the end of the stream or of the connection, not a status.
        let refused = loop {
            let Ok(head) = wire.bytes(9) else { break true };
            let size = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Ok(payload) = wire.bytes(size) else { break true };
            match head[3] {
                1 => break payload.first() != Some(&0x88),
                3 | 7 => break true,
                _ => {}
            }
        };
        assert!(refused, "{} was taken", String::from_utf8_lossy(name));
    }
    server.is_well();
}

// Clients that go away.

#[test]
fn what_a_client_abandons_is_finished_or_was_not_begun() {
    let place = Place::with(&[("HASH_THREADS", "1"), ("ARGON2_MEMORY_KIB", "256"), ("ARGON2_ITERATIONS", "200"), ("SIGNUP_LIMIT_SOURCE", "none")]);
    let server = place.start();
    let new = "another good password";
    let change = json!({"current_password": PASSWORD, "new_password": new}).to_string();
    let mut changed = Vec::new();
    for n in 0..10 {
        let browser = server.sign_up(&format!("changes-{n}@example.com"));
        let cookie = format!("Cookie: holdfast={}\r\n{}", browser.token(), length(&change));
        let request = post("/me/password", &cookie, &change).replacen("POST", "PUT", 1);
        let mut wire = server.wire();
        wire.send(request).expect("it is sent");
        changed.push((n, browser.token()));
        // Gone at once, or after a little of what others need.
        if n % 2 == 0 {
            server.is_well();
        }
        drop(wire);
    }
    for n in 0..20 {
        let body = sign_up_body(&format!("signs-up-{n}@example.com"));
        let mut wire = server.wire();
        wire.send(post("/signup", &length(&body), &body)).expect("it is sent");
        if n % 2 == 0 {
            server.is_well();
        }
        drop(wire);
    }
    let leaving = server.sign_up("leaves@example.com");
    let mut wire = server.wire();
    wire.send(post("/logout", &format!("Cookie: holdfast={}\r\nContent-Length: 0\r\n", leaving.token()), "")).expect("it is sent");
    drop(wire);

    // A stop finishes what runs, so nothing is still under way.
    let log = server.stop();
    assert!(!log.contains("panicked"), "{log}");
    let server = place.start();
    for (n, token) in changed {
        let email = format!("changes-{n}@example.com");
        let enters = |password: &str| server.browser().log_in(&email, password).status == 200;
        let (with_old, with_new) = (enters(PASSWORD), enters(new));
        assert!(with_old != with_new, "{email}: old {with_old}, new {with_new}");
        let check = server.browser().holding(&token).get("/check");
        assert_eq!((check.status, check.code().as_str()), if with_old { (204, "") } else { (401, "session_rotated") }, "{email}");
    }
    for n in 0..20 {
        let email = format!("signs-up-{n}@example.com");
        let status = server.browser().log_in(&email, PASSWORD).status;
        let sessions: i64 = place
            .sql()
            .query_row("SELECT count(*) FROM users JOIN device_sessions ON user_id = users.id WHERE email_canonical = ?1", [&email], |row| row.get(0))
            .expect("a number");
        match status {
            200 => assert_eq!(sessions, 2, "{email}: an account without its first session"),
            _ => drop(server.sign_up(&email)),
        }
    }
    let reply = server.browser().holding(&leaving.token()).get("/check");
    assert!(reply.status == 204 || reply.code() == "session_logged_out", "{reply:?}");
}

#[test]
fn answers_nobody_reads_do_no_harm() {
    let place = Place::new();
    let server = place.start();
    let ana = server.sign_up("ana@example.com");
    for _ in 0..20 {
        let mut wire = server.wire();
        let ask = format!("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nCookie: holdfast={}\r\n\r\n", ana.token());
        // The connection may be reset while this is written.
        let _ = wire.send(ask.repeat(50));
        drop(wire);
    }
    server.is_well();
    let described: Value = server.wire().ask("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n").is(200).json();
    assert!(described["paths"].is_object());
}
