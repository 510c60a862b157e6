//! On the socket: crowds of connections, floods of requests and of frames, and requests that are too large.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::json;

use crate::process::{PASSWORD, PATIENCE, Place, Reply, Server, Wire, soon};

const LIVE: &str = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// Takes about a second or two to hash a password.
const EXPENSIVE: [(&str, &str); 3] = [("ARGON2_MEMORY_KIB", "16384"), ("ARGON2_ITERATIONS", "60"), ("HASH_THREADS", "1")];

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn credentials(email: &str) -> String {
    json!({"email": email, "password": PASSWORD}).to_string()
}

// Room for so many.

fn used(server: &Server) -> Wire {
    let mut wire = server.wire();
    wire.ask(LIVE).is(200);
    wire
}

/// A connection on which a request has begun whose body does not come.
fn starving(server: &Server) -> Wire {
    let mut wire = server.wire();
    wire.send("POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        .expect("it is sent");
    wire.head().expect("an answer").is(100);
    wire
}

/// SLOW-01. A kept connection may be silent for a minute; nobody has to wait for that.
#[test]
fn a_newcomer_gets_the_place_of_whoever_has_kept_us_waiting_longest() {
    let place = Place::with(&[("MAX_CONNECTIONS", "4")]);
    let server = place.start();
    let silent = used(&server);
    // A little time goes by, so that there is an order.
    server.is_well();
    let mut half_a_head = server.wire();
    half_a_head.send("GET /health/live HTTP/1.1\r\nX-Slow: ").expect("it is sent");
    server.is_well();
    let half_a_body = starving(&server);
    server.is_well();
    let newest = used(&server);
    let mut newcomers = Vec::new();
    for (who, mut wire) in [("silent", silent), ("half a head", half_a_head), ("half a body", half_a_body), ("newest", newest)] {
        newcomers.push(used(&server));
        assert!(wire.ends_within(PATIENCE), "{who} is still there");
        let said = String::from_utf8_lossy(&wire.is_closed()).into_owned();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 400"), "{who}: {said}");
    }
    // Those are the four, and none of them has gone.
    for wire in &mut newcomers {
        wire.ask(LIVE).is(200);
    }
}

#[test]
fn a_crowd_that_keeps_coming_locks_nobody_out() {
    let place = Place::with(&[("MAX_CONNECTIONS", "20")]);
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    let mut crowd = Vec::new();
    for n in 0..200 {
        crowd.push(match n % 4 {
            0 => server.wire(),
            1 => starving(&server),
            2 => used(&server),
            _ => {
                let mut wire = server.wire();
                wire.send("GET /check HTTP/1.1\r\nX-Slow: ").expect("it is sent");
                wire
            }
        });
        if n % 10 == 0 {
            // Her kept connection may have made room; a browser opens another one then.
            let token = ana.token();
            ana = server.browser().holding(&token);
            ana.get("/check").is(204);
            server.sign_in("ana@example.com").get("/me").is(200);
        }
    }
    drop(crowd);
    server.is_well();
}

#[test]
fn what_we_are_at_work_on_is_never_cut() {
    let mut settings = EXPENSIVE.to_vec();
    settings.push(("MAX_CONNECTIONS", "2"));
    let place = Place::with(&settings);
    let server = place.start();
    let address = server.address();
    let mut working: Vec<Wire> = Vec::new();
    for n in 0..2 {
        let body = credentials(&format!("ana{n}@example.com"));
        let mut wire = server.wire();
        wire.send(post("/signup", "Expect: 100-continue\r\n", "").replace("Content-Length: 0", &format!("Content-Length: {}", body.len())))
            .expect("it is sent");
        wire.head().expect("an answer").is(100);
        wire.send(body).expect("it is sent");
        working.push(wire);
    }
    std::thread::scope(|threads| {
        // They wait, and one after the other gets a place.
        let newcomers: Vec<_> = (0..5).map(|_| threads.spawn(move || Wire::open(address).ask(LIVE).status)).collect();
        for wire in &mut working {
            wire.reply().expect("an answer").is(201);
        }
        for newcomer in newcomers {
            assert_eq!(newcomer.join().expect("no panic"), 200);
        }
    });
}

#[test]
fn where_the_system_has_few_files_there_is_room_for_fewer_and_the_log_says_so() {
    let place = Place::new();
    let server = place.start_with_files(200, 400);
    let warning = server.wait_for("MAX_CONNECTIONS=10000");
    assert!(warning.contains("WARN") && warning.contains("room for 200") && warning.contains("ulimit -n"), "{warning}");
    assert_eq!(server.file_limit().unwrap_or(400), 400, "not all of what may be had");
    let mut crowd: Vec<Wire> = (0..450).map(|_| server.wire()).collect();
    server.sign_up("ana@example.com").get("/check").is(204);
    for wire in &mut crowd[..200] {
        wire.is_closed();
    }
    drop(crowd);
    assert!(!server.stop().contains("ERROR"));
    let server = Place::with(&[("MAX_CONNECTIONS", "20")]).start();
    assert!(!server.log().contains("MAX_CONNECTIONS"), "{}", server.log());
}

// Too much to do.

/// SLOW-03: a flood of sign-ins from many sources, known and unknown. What does not fit is refused at once; who is signed in
/// feels nothing.
#[test]
fn a_flood_of_sign_ins_leaves_the_check_alone() {
    let place = Place::with(&[("ARGON2_MEMORY_KIB", "4096"), ("ARGON2_ITERATIONS", "10"), ("HASH_THREADS", "1"), ("GUESS_LIMIT_ACCOUNT", "none")]);
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    let mut flood: Vec<Wire> = (0..400)
        .map(|n: u32| {
            let email = if n.is_multiple_of(2) { "ana@example.com".into() } else { format!("nobody{n}@example.com") };
            let body = json!({"email": email, "password": "wrong password"}).to_string();
            let mut wire = server.wire();
            wire.send(post("/login", &format!("X-Forwarded-For: 198.51.{}.{}\r\n", n / 200, n % 200), &body)).expect("it is sent");
            wire
        })
        .collect();
    for _ in 0..50 {
        ana.get("/check").is(204);
        server.is_well();
    }
    let replies: Vec<Reply> = flood.iter_mut().map(|wire| wire.reply().expect("an answer")).collect();
    let (mut wrong, mut surplus) = (0, 0);
    for reply in replies {
        match reply.status {
            401 => wrong += 1,
            _ => {
                assert!(reply.header("retry-after").is_some(), "{reply:?}");
                reply.is_refused(503, "overloaded");
                surplus += 1;
            }
        }
    }
    assert!(wrong >= 100 && surplus >= 100, "{wrong} checked, {surplus} refused");
    server.sign_in("ana@example.com").get("/me").is(200);
}

/// SLOW-02: more requests than we would work on at once, of which not one has a body yet.
#[test]
fn bodies_that_do_not_come_are_no_reason_to_refuse_others() {
    let place = Place::with(&[("HASH_THREADS", "1")]);
    let server = place.start();
    server.sign_up("ana@example.com");
    let mut crowd: Vec<Http2> = (0..8).map(|_| Http2::open(&server)).collect();
    for line in &mut crowd {
        for n in 0..100 {
            line.send(HEADERS, END_HEADERS, 2 * n + 1, &request(POST, "/login", &[("content-type", "application/json"), ("content-length", "10")]));
        }
        line.send(PING, 0, 0, b"the end.");
        assert!(line.hears_the_end(), "it was closed");
    }
    for _ in 0..5 {
        server.sign_in("ana@example.com").get("/me").is(200);
    }
    drop(crowd);
    server.is_well();
}

// Frames.

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// From HPACK's static table.
const GET: u8 = 0x82;
const POST: u8 = 0x83;
const STATUS_200: u8 = 0x88;

const ENHANCE_YOUR_CALM: u32 = 0xb;

/// A request, as HPACK writes it without Huffman codes and without a table.
fn request(method: u8, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |block: &mut Vec<u8>, text: &str| {
        assert!(text.len() < 127, "long texts are written otherwise");
        block.push(u8::try_from(text.len()).expect("short"));
        block.extend_from_slice(text.as_bytes());
    };
    // :scheme http; then :path and :authority by the names of the static table.
    let mut block = vec![method, 0x86, 0x04];
    text(&mut block, path);
    block.push(0x01);
    text(&mut block, "localhost");
    for (name, value) in headers {
        block.push(0x00);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A connection that speaks HTTP/2.
struct Http2 {
    wire: Wire,
}

impl Http2 {
    fn open(server: &Server) -> Self {
        let mut wire = server.wire();
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it is sent");
        wire.send(frame(SETTINGS, 0, 0, &[])).expect("it is sent");
        Http2 { wire }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.send(frame(kind, flags, stream, payload)).expect("it is sent");
    }

    /// The next frame; `None` at the end of the connection.
    #[track_caller]
    fn next(&mut self) -> Option<Frame> {
        let head = match self.wire.bytes(9) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("the connection is open, and silent"),
            head => head.ok()?,
        };
        let size = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload: self.wire.bytes(size).ok()? })
    }

    /// Waits for the answer to the ping that ends what was sent; false if the connection ends before.
    fn hears_the_end(&mut self) -> bool {
        std::iter::from_fn(|| self.next()).any(|frame| frame.kind == PING && frame.flags & ACK != 0 && frame.payload == b"the end.")
    }

    /// The first byte of the header block that answers this stream.
    #[track_caller]
    fn answer(&mut self, stream: u32) -> u8 {
        while let Some(frame) = self.next() {
            if frame.kind == HEADERS && frame.stream == stream {
                return frame.payload[0];
            }
        }
        panic!("it is closed");
    }

    /// Why the server ended the connection, if it said so before the end.
    fn goodbye(&mut self) -> Option<u32> {
        let mut reason = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                reason = Some(u32::from_be_bytes(frame.payload[4..8].try_into().expect("four bytes")));
            }
        }
        reason
    }
}

#[test]
fn http_2_tells_its_limits() {
    let place = Place::new();
    let server = place.start();
    let mut line = Http2::open(&server);
    let settings = std::iter::from_fn(|| line.next()).find(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).expect("settings");
    let value = |id: u8| {
        let setting = settings.payload.chunks(6).find(|setting| setting[1] == id)?;
        Some(u32::from_be_bytes(setting[2..6].try_into().expect("four bytes")))
    };
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
    assert_eq!((value(3), value(6)), (Some(100), Some(32 * 1024)));
}

/// Sends all of it on one connection of HTTP/2, which the server ends and is none the worse for.
fn ends_its_connection(flood: Vec<u8>) {
    let place = Place::new();
    let server = place.start();
    let mut line = Http2::open(&server);
    // It may be closed before all is written.
    let _ = line.wire.send(flood);
    if let Some(reason) = line.goodbye() {
        assert_eq!(reason, ENHANCE_YOUR_CALM);
    }
    server.is_well();
}

/// Rapid Reset, CVE-2023-44487.
#[test]
fn streams_that_are_opened_and_reset_end_their_connection() {
    let mut flood = Vec::new();
    for n in 0..10_000 {
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request(GET, "/openapi.json", &[])));
        flood.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    ends_its_connection(flood);
}

/// MadeYouReset, CVE-2025-8671: mistakes that make the server reset a stream whose request it works on.
#[test]
fn streams_that_the_server_is_made_to_reset_end_their_connection() {
    let mut flood = Vec::new();
    for n in 0..1000 {
        flood.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &request(POST, "/login", &[("content-type", "application/json"), ("content-length", "10")])));
        // More than a window can be.
        flood.extend(frame(WINDOW_UPDATE, 0, 2 * n + 1, &0x7fff_ffff_u32.to_be_bytes()));
    }
    ends_its_connection(flood);
}

/// CVE-2024-27316: headers that never end, in large frames and in empty ones.
#[test]
fn headers_that_never_end_end_their_connection_and_cost_no_memory() {
    let place = Place::new();
    let server = place.start();
    // What a server makes ready after its start is ready once somebody has signed up.
    server.sign_up("ana@example.com");
    let before = server.resident_kib();
    for piece in [&[0u8; 16 * 1024][..], &[]] {
        let mut line = Http2::open(&server);
        line.send(HEADERS, 0, 1, &request(GET, "/health/live", &[]));
        let more = frame(CONTINUATION, 0, 1, piece).repeat(16);
        // A server that reads on for ever would take all of it. It is more than waits on its way to one that has no time to read.
        let times = 256 * 1024 * 1024 / more.len();
        let refused = (0..times).any(|_| line.wire.send(&more).is_err());
        assert!(refused, "{} bytes were taken", times * more.len());
        line.goodbye();
    }
    if let (Some(before), Some(after)) = (before, server.resident_kib()) {
        assert!(after < before + 10 * 1024, "{before} KiB before, {after} after");
    }
    server.is_well();
}

#[test]
fn a_header_list_of_http_2_has_a_bound_and_the_connection_lives_on() {
    let place = Place::new();
    let server = place.start();
    let mut line = Http2::open(&server);
    let long = "x".repeat(100);
    let block = request(GET, "/health/live", &vec![("x-large", long.as_str()); 300]);
    line.send(HEADERS, END_STREAM, 1, &block[..16 * 1024]);
    line.send(CONTINUATION, 0, 1, &block[16 * 1024..32 * 1024]);
    line.send(CONTINUATION, END_HEADERS, 1, &block[32 * 1024..]);
    assert_ne!(line.answer(1), STATUS_200);
    line.send(HEADERS, END_HEADERS | END_STREAM, 3, &request(GET, "/health/live", &[]));
    assert_eq!(line.answer(3), STATUS_200);
}

/// Frames that cost more than they say: they are answered or end the connection, and nothing of them is kept.
#[test]
fn a_flood_of_small_frames_does_no_harm() {
    let place = Place::new();
    let server = place.start();
    // What a server makes ready after its start is ready once somebody has signed up.
    server.sign_up("ana@example.com");
    let before = server.resident_kib();
    let odd = [frame(DATA, 0, 1, &[]), frame(PING, 0, 0, b"are you?"), frame(PING, ACK, 0, b"you are."), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])];
    for one in odd {
        let mut line = Http2::open(&server);
        line.send(HEADERS, END_HEADERS, 1, &request(POST, "/login", &[("content-type", "application/json")]));
        let flood = [one.repeat(1000), frame(PING, 0, 0, b"the end.")].concat();
        for _ in 0..100 {
            if line.wire.send(&flood).is_err() || !line.hears_the_end() {
                break;
            }
        }
    }
    if let (Some(before), Some(after)) = (before, server.resident_kib()) {
        assert!(after < before + 10 * 1024, "{before} KiB before, {after} after");
    }
    server.is_well();
    // Nor does it fill the disk.
    let log = server.stop();
    assert!(log.lines().count() < 100, "{} lines: {}", log.lines().count(), log.lines().last().unwrap_or_default());
}

/// SLOW-02: a client that opens no window leaves its answers with us, a hundred on each connection.
#[test]
fn answers_that_nobody_takes_are_kept_up_to_a_bound() {
    let place = Place::new();
    let server = place.start();
    let size = server.wire().ask("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n").body.len();
    let deaf = || {
        let mut line = Http2::open(&server);
        // SETTINGS_INITIAL_WINDOW_SIZE.
        line.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let asks: Vec<u8> = (0..100).flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request(GET, "/openapi.json", &[]))).collect();
        line.wire.send(asks).expect("it is sent");
        line
    };
    let room = 64 * 1024 * 1024 / (100 * size);
    let mut lines: Vec<Http2> = (0..room).map(|_| deaf()).collect();
    for line in &mut lines {
        let heads = std::iter::from_fn(|| line.next()).filter(|frame| frame.kind == HEADERS);
        assert!(heads.take(100).all(|head| head.payload[0] == STATUS_200));
    }
    // As many again take the places of those, or of each other.
    lines.extend((0..room).map(|_| deaf()));
    let moment = Duration::from_millis(20);
    assert!(soon(PATIENCE, || lines.iter_mut().map(|line| line.wire.ends_within(moment)).filter(|gone| *gone).count() >= room - 1), "all of it is kept");
    server.is_well();
}

// Too large.

/// SLOW-02: the same refusal with or without a session, wherever it goes.
#[test]
fn a_head_of_http_1_has_a_bound() {
    let place = Place::new();
    let server = place.start();
    let ana = server.sign_up("ana@example.com");
    let cookie = format!("Cookie: holdfast={}\r\n", ana.token());
    for (path, cookie) in [("/check", cookie.as_str()), ("/check", ""), ("/nowhere", "")] {
        let ask = |headers: String| {
            let mut wire = server.wire();
            // The answer may come before all is sent.
            let _ = wire.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{cookie}{headers}\r\n"));
            wire.reply().expect("an answer")
        };
        assert!([204, 401, 404].contains(&ask(format!("X-Large: {}\r\n", "x".repeat(30 * 1024))).status));
        assert!([204, 401, 404].contains(&ask("A: b\r\n".repeat(98)).status));
        ask(format!("X-Large: {}\r\n", "x".repeat(33 * 1024))).is_refused(431, "headers_too_large");
        ask(format!("X-Large: {}\r\n", "x".repeat(200 * 1024))).is(431);
        ask("A: b\r\n".repeat(101)).is(431);
        ask("A: b\r\n".repeat(100_000)).is(431);
    }
    server.is_well();
}

/// What is refused before it is a request: without a body, without a cookie, and the connection is over. Nothing but the status
/// can be had there, and no cache keeps either of them.
#[test]
fn what_is_no_request_gets_a_status_and_nothing_else() {
    let place = Place::new();
    let server = place.start();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nNo colon\r\n\r\n".to_string(), 400),
        ("GET /\u{0} HTTP/1.1\r\nHost: localhost\r\n\r\n".to_string(), 400),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\nA: {}\r\n\r\n", "x".repeat(200_000)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(200_000)), 431),
    ] {
        let mut wire = server.wire();
        let _ = wire.send(request);
        let reply = wire.reply().expect("an answer").is(status);
        assert_eq!((reply.header("content-length"), reply.header("connection"), reply.body.len()), (Some("0"), Some("close"), 0), "{reply:?}");
        wire.is_closed();
    }
}

#[test]
fn every_answer_has_the_headers_that_keep_it_safe() {
    let place = Place::with(&[("PUBLIC_URL", "https://id.example.com"), ("TRUSTED_PROXIES", "127.0.0.1"), ("SIGNUP_LIMIT_SOURCE", "1/1h")]);
    let server = place.start();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let sign_up = || post("/signup", "", &credentials("ana@example.com"));
    let requests = [
        (200, LIVE.to_string()),
        (200, get("/openapi.json")),
        (200, LIVE.replace("GET", "HEAD")),
        (201, sign_up()),
        (429, sign_up()),
        (204, post("/logout", "", "")),
        (400, post("/login", "", "{")),
        (401, get("/check")),
        (401, post("/login", "", &credentials("nobody@example.com"))),
        (403, post("/login", "Origin: https://evil.example\r\n", "{}")),
        (404, get("/nowhere")),
        (405, post("/check", "", "")),
        (413, post("/login", "", "").replace("Content-Length: 0", "Content-Length: 70000")),
        (414, get(&format!("/{}", "x".repeat(17_000)))),
        (415, post("/login", "", "{}").replace("application/json", "text/plain")),
        (422, post("/login", "", "{}")),
    ];
    let is_safe = |status: u16, request: &str| {
        let shown = request.lines().next().unwrap_or_default().chars().take(60).collect::<String>();
        let mut wire = server.wire();
        wire.send(request).expect("it is sent");
        let reply = wire.head().expect("an answer").is(status);
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("cross-origin-resource-policy", "same-origin"),
            ("strict-transport-security", "max-age=31536000"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{status} {shown}");
        }
        assert!(reply.header("x-request-id").is_some(), "{status} {shown}");
    };
    requests.iter().for_each(|(status, request)| is_safe(*status, request));
    place.sql().execute_batch("ALTER TABLE events RENAME TO events_elsewhere").expect("the statement runs");
    is_safe(500, &post("/login", "", &credentials("ana@example.com")));
    // A page has a policy of its own.
    let reply = server.wire().ask(get("/security/reset/none")).is(200);
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff"), ("strict-transport-security", "max-age=31536000")] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert!(reply.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")), "{reply:?}");
}
