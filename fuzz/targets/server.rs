//! A whole server, from the outermost layer in.

use std::cell::RefCell;
use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use holdfast::app::App;
use holdfast::chance::Chance;
use holdfast::client::Peer;
use holdfast::clock::{Clock, Timestamp};
use holdfast::config::{Config, Variables};
use holdfast::db::{Db, Fault};
use holdfast::mail::Mailbag;
use holdfast::middleware::Around;
use holdfast::router::router;

/// A request, as text: a line with method and path, lines with headers, an empty line, the body. Where it says `$COOKIE` stands
/// the cookie of an administrator, and where it says `$ID` their id.
///
/// No request is our fault: the answer is no `5xx`, says what all answers say, and explains itself; and it holds no secret
/// but in the header that is for secrets.
pub fn request(data: &[u8]) {
    HOUSE.with_borrow_mut(|house| house.get_or_insert_with(House::open).ask(data));
}

thread_local! {
    /// A house for each thread, on a folder that goes with it.
    static HOUSE: RefCell<Option<House>> = const { RefCell::new(None) };
}

struct House {
    runtime: Runtime,
    router: Around,
    cookie: String,
    id: String,
    // Last, so that the database is closed before.
    _folder: TempDir,
}

const ADA: &str = r#"{"email":"ada@example.com","password":"correct horse battery"}"#;
/// More and longer requests than this teach nothing new and only take time.
const LONGEST: usize = 16 * 1024;

fn head_and_body(data: &[u8]) -> (&[u8], &[u8]) {
    let blank = data.windows(2).position(|pair| pair == b"\n\n");
    blank.map_or((data, &data[data.len()..]), |at| (&data[..at], &data[at + 2..]))
}

impl House {
    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite:{}", folder.path().join("holdfast.db").display());
        let cheap = [("DATABASE_URL", url.as_str()), ("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", "1"), ("HASH_THREADS", "1")];
        // The clock stands still: what is limited would be refused for ever.
        let unlimited = ["GUESS_LIMIT_ACCOUNT", "GUESS_LIMIT_SOURCE", "SIGNUP_LIMIT_SOURCE", "LETTER_LIMIT_SOURCE"].map(|name| (name, "none"));
        let config = Config::read(&Variables::of(&[&cheap[..], &unlimited].concat())).expect("the settings are right");
        let clock = Clock::manual(Timestamp(1_795_415_768_123));
        let opened = runtime.block_on(App::open_with(config, clock, Chance::seeded(1), Mailbag::default()));
        let app = opened.unwrap_or_else(|fault| panic!("{fault}"));
        let mut house = House { router: router(app.clone()), runtime, cookie: String::new(), id: String::new(), _folder: folder };
        house.sign("/signup", StatusCode::CREATED);
        house.make_admin(&app.db);
        house.sign("/login", StatusCode::OK);
        house
    }

    fn make_admin(&self, db: &Db) {
        let made = self.runtime.block_on(db.write(|tx| tx.run("UPDATE users SET role = 'admin'", ())));
        made.unwrap_or_else(|fault: Fault| panic!("{fault}"));
    }

    fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut request = request;
        request.extensions_mut().insert(ConnectInfo(Peer(SocketAddr::from(([127, 0, 0, 1], 40_000)))));
        self.runtime.block_on(async {
            let response: Response<Body> = self.router.clone().oneshot(request).await.expect("an answer");
            let (parts, body) = response.into_parts();
            (parts.status, parts.headers, body.collect().await.expect("a body").to_bytes().to_vec())
        })
    }

    /// Opens a session, and keeps its cookie.
    fn sign(&mut self, path: &str, expected: StatusCode) {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").body(Body::from(ADA)).expect("a request");
        let (status, headers, body) = self.send(request);
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body));
        let line = headers.get(header::SET_COOKIE).and_then(|line| line.to_str().ok()).expect("a cookie");
        self.cookie = line.split(';').next().unwrap_or_default().into();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        self.id = body["user"]["id"].as_str().expect("an id").into();
    }

    fn is_signed_in(&self) -> bool {
        let request = Request::get("/me").header(header::COOKIE, &self.cookie).body(Body::empty()).expect("a request");
        self.send(request).0 == StatusCode::OK
    }

    fn ask(&mut self, data: &[u8]) {
        let Some(request) = self.read(data) else { return };
        let (is_page, is_head) = (request.uri().path().starts_with("/security/"), request.method() == "HEAD");
        let (head, content) = head_and_body(data);
        let beside_cookies = head.split(|byte| *byte == b'\n').filter(|line| !line.to_ascii_lowercase().starts_with(b"cookie"));
        let said: Vec<u8> = beside_cookies.chain([content]).flat_map(|part| self.filled(part)).collect();
        let (status, headers, body) = self.send(request);
        assert!(status.as_u16() < 500, "{status}: {}", String::from_utf8_lossy(&body));
        for name in ["x-request-id", "content-security-policy", "referrer-policy", "x-content-type-options"] {
            assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
        }
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
        if status.is_client_error() && !is_page && !is_head {
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
            let problem: Value = serde_json::from_slice(&body).expect("a problem is JSON");
            assert_eq!(problem["status"], status.as_u16());
            assert_eq!(problem["type"], format!("urn:holdfast:problem:{}", problem["code"].as_str().expect("a code")));
        }
        // A late 401 must not wipe a new cookie.
        assert!(status != StatusCode::UNAUTHORIZED || !headers.contains_key(header::SET_COOKIE));
        let secret = self.cookie.split_once('=').map_or("", |(_, token)| token).as_bytes();
        let holds = |text: &[u8]| text.windows(secret.len()).any(|window| window == secret);
        // The name of a field that does not belong, or a user agent, is repeated to whoever sent it, whatever it is.
        assert!(!holds(&body) || holds(&said), "a body holds the session token");
        if !self.is_signed_in() {
            self.sign_in_again();
        }
    }

    /// A request may have ended the session, and more: then the house is opened anew.
    fn sign_in_again(&mut self) {
        let request = Request::post("/login").header(header::CONTENT_TYPE, "application/json").body(Body::from(ADA)).expect("a request");
        match self.send(request).0 {
            StatusCode::OK => self.sign("/login", StatusCode::OK),
            _ => *self = House::open(),
        }
    }

    fn read(&self, data: &[u8]) -> Option<Request<Body>> {
        if data.len() > LONGEST {
            return None;
        }
        let (head, body) = head_and_body(data);
        let mut lines = head.split(|byte| *byte == b'\n');
        let (method, path) = std::str::from_utf8(lines.next()?).ok()?.split_once(' ')?;
        let mut request = Request::builder().method(method).uri(self.filled(path.as_bytes()));
        for line in lines {
            let at = line.iter().position(|byte| *byte == b':')?;
            request = request.header(&line[..at], self.filled(line[at + 1..].trim_ascii()));
        }
        request.body(Body::from(self.filled(body))).ok().filter(|request| request.uri().path().starts_with('/'))
    }

    fn filled(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(byte) = rest.first() {
            let known = [("$COOKIE", &self.cookie), ("$ID", &self.id)];
            match known.into_iter().find_map(|(name, value)| Some((value, rest.strip_prefix(name.as_bytes())?))) {
                Some((value, after)) => {
                    out.extend_from_slice(value.as_bytes());
                    rest = after;
                }
                None => {
                    out.push(*byte);
                    rest = &rest[1..];
                }
            }
        }
        out
    }
}
