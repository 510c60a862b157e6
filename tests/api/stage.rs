//! The stage: a whole server on a database of its own, a clock that tests move, and the actors.
//!
//! `ana`, `ben` and `admin` are browsers: each has its own cookies, address and user agent. Requests go through the whole
//! stack, from the outermost layer in; only the socket is left out (`wire.rs` has that).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use holdfast::app::App;
use holdfast::background;
use holdfast::chance::Chance;
use holdfast::client::Peer;
use holdfast::clock::{Clock, Timestamp};
use holdfast::config::{Config, Variables};
use holdfast::event::outbox;
use holdfast::mail::{Letter, Mailbag};
use holdfast::middleware::Around;
use holdfast::router::router;

use crate::database::Database;

/// 2026-11-23T06:36:08.123Z.
pub const START: Timestamp = Timestamp(1_795_415_768_123);
/// The default idle timeout.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// The default absolute timeout.
pub const ABSOLUTE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The smallest step of time.
pub const TICK: Duration = Duration::from_millis(1);

pub const CHROME: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
pub const IPHONE: &str =
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1";

/// For sentences that do the work of many to say something else.
pub const NO_LIMITS: [(&str, &str); 4] =
    [("GUESS_LIMIT_ACCOUNT", "none"), ("GUESS_LIMIT_SOURCE", "none"), ("SIGNUP_LIMIT_SOURCE", "none"), ("LETTER_LIMIT_SOURCE", "none")];

/// The password of an actor.
pub fn password_of(name: &str) -> String {
    format!("{name} has a good password")
}

/// The address of an actor.
pub fn email_of(name: &str) -> String {
    format!("{name}@example.com")
}

/// A server and its database.
pub struct Stage {
    pub app: App,
    pub clock: Clock,
    pub mailbag: Mailbag,
    router: Around,
    settings: Vec<(String, String)>,
    pub database: Arc<Database>,
}

impl Stage {
    /// A server with the default settings, and cheap hashes.
    pub async fn new() -> Self {
        Stage::with(&[]).await
    }

    /// A server with these settings over the defaults.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        Stage::on(Arc::new(Database::new()), settings).await
    }

    /// A server that one address may ask as often as it likes: for sentences in which it does the work of many.
    pub async fn without_limits() -> Self {
        Stage::with(&NO_LIMITS).await
    }

    /// A server on this database.
    pub async fn on(database: Arc<Database>, settings: &[(&str, &str)]) -> Self {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let clock = Clock::manual(START);
        let mailbag = Mailbag::default();
        let app = open(&settings, &database, &clock, &mailbag).await;
        Stage { router: router(app.clone()), app, clock, mailbag, settings, database }
    }

    /// One more instance on the same database; it has the same clock.
    #[allow(dead_code)] // For `../api_postgres`.
    pub async fn another(&self) -> Self {
        let app = open(&self.settings, &self.database, &self.clock, &self.mailbag).await;
        Stage {
            router: router(app.clone()),
            app,
            clock: self.clock.clone(),
            mailbag: self.mailbag.clone(),
            settings: self.settings.clone(),
            database: self.database.clone(),
        }
    }

    /// The same browser, calling here.
    pub fn browser_of(&self, actor: &Actor) -> Actor {
        Actor { router: self.router.clone(), ..actor.clone() }
    }

    /// Stops the server as SIGTERM would, and starts it again on the same database.
    pub async fn restart(&mut self) {
        background::write_back_all(&self.app).await.expect("what is unwritten is written");
        self.crash().await;
    }

    /// Starts another server on the same database, without a word to the old one: what `kill -9` leaves behind.
    pub async fn crash(&mut self) {
        self.app = open(&self.settings, &self.database, &self.clock, &self.mailbag).await;
        self.router = router(self.app.clone());
    }

    /// The same database with other settings, as after an operator's edit and a restart.
    pub async fn restart_with(&mut self, settings: &[(&str, &str)]) {
        self.settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        self.restart().await;
    }

    /// Delivers what is due, and gives all letters that have come so far, oldest first.
    pub async fn letters(&self) -> Vec<Letter> {
        outbox::deliver_due(&self.app).await.expect("the outbox works");
        self.mailbag.letters()
    }

    /// Delivers what is due, and gives the letters to an address whose subject begins so.
    pub async fn letters_to(&self, address: &str, subject: &str) -> Vec<Letter> {
        let all = self.letters().await.into_iter();
        all.filter(|letter| letter.to == address && letter.subject.starts_with(subject)).collect()
    }

    /// The newest letter of that kind.
    #[track_caller]
    pub fn letter<'a>(&'a self, address: &'a str, subject: &'a str) -> impl Future<Output = Letter> + 'a {
        let caller = std::panic::Location::caller();
        async move { self.letters_to(address, subject).await.pop().unwrap_or_else(|| panic!("no letter \"{subject}\" to {address}, {caller}")) }
    }

    /// A look at the database itself: one number.
    pub fn count(&self, sql: &str) -> i64 {
        self.database.by_hand(|hand| hand.number(sql))
    }

    /// A hand in the database itself, as another process would have it.
    pub fn execute(&self, sql: &str) {
        self.database.by_hand(|hand| hand.execute(sql));
    }

    /// Whether a token, as its holder has it, stands anywhere in the database in a form from which it could be had again.
    pub fn holds_token(&self, token: &str) -> bool {
        let bytes = URL_SAFE_NO_PAD.decode(token).expect("base64url");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let forms = [token.as_bytes(), &bytes, hex.as_bytes(), hex.to_uppercase().as_bytes(), STANDARD_NO_PAD.encode(&bytes).as_bytes()].map(Vec::from);
        forms.iter().any(|form| self.database.holds(form))
    }

    /// Somebody who is not signed in, on a browser that was never here.
    pub fn anon(&self) -> Actor {
        Actor {
            router: self.router.clone(),
            cookies: Arc::default(),
            headers: HeaderMap::new(),
            ip: "198.51.100.1".into(),
            agent: CHROME.into(),
            secure: self.app.config.public_url.https,
        }
    }

    /// A new account, signed in on its first browser.
    pub async fn sign_up(&self, name: &str) -> Actor {
        let actor = self.anon();
        actor.post("/signup", json!({"email": email_of(name), "password": password_of(name)})).await.is(201);
        actor
    }

    /// The same person on one more browser.
    pub async fn sign_in(&self, name: &str) -> Actor {
        let actor = self.anon();
        actor.log_in(name).await.is(200);
        actor
    }

    /// An administrator, made as the command line makes one, signed in.
    pub async fn admin(&self, name: &str) -> Actor {
        self.sign_up(name).await;
        // The command line has tests of its own; here the role is what counts.
        self.execute(&format!("UPDATE users SET role = 'admin' WHERE email_canonical = '{}'", email_of(name)));
        self.app.db.tend().await.expect("the foreign write is noticed");
        self.app.db.write(|_| Ok::<_, holdfast::db::Fault>(())).await.expect("the writer works");
        self.sign_in(name).await
    }
}

async fn open(settings: &[(String, String)], database: &Database, clock: &Clock, letters: &Mailbag) -> App {
    let url = database.url();
    let mut all = vec![("DATABASE_URL", url.as_str()), ("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", "1"), ("HASH_THREADS", "2")];
    all.extend(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let config = Config::read(&Variables::of(&all)).expect("the settings are right");
    let (clock, chance) = (clock.clone(), Chance::System);
    let opened = match all.iter().any(|(name, _)| *name == "MAIL") {
        true => App::open(config, clock, chance).await,
        false => App::open_with(config, clock, chance, letters.clone()).await,
    };
    opened.expect("the server starts")
}

/// A browser, app or script. A clone is the same browser: it shares the cookies.
#[derive(Clone)]
pub struct Actor {
    router: Around,
    cookies: Arc<Mutex<BTreeMap<String, String>>>,
    headers: HeaderMap,
    ip: String,
    agent: String,
    secure: bool,
}

impl Actor {
    /// The same browser, calling from this address (told by a trusted proxy).
    pub fn from_ip(mut self, ip: &str) -> Self {
        self.ip = ip.into();
        self
    }

    /// With this user agent.
    pub fn with_agent(mut self, agent: &str) -> Self {
        self.agent = agent.into();
        self
    }

    /// Sending this header too, with every request.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().expect("a header value"));
        self
    }

    /// A copy of the browser as it is now: what a thief of the cookies has.
    pub fn copy(&self) -> Self {
        let cookies = self.cookies.lock().expect("no panic").clone();
        Actor { cookies: Arc::new(Mutex::new(cookies)), ..self.clone() }
    }

    fn cookie_name(&self, name: &str) -> String {
        if self.secure { format!("__Host-{name}") } else { name.to_string() }
    }

    /// The session token that the browser holds.
    pub fn token(&self) -> Option<String> {
        self.cookies.lock().expect("no panic").get(&self.cookie_name("holdfast")).cloned()
    }

    /// Puts a session token into the browser, or takes it out.
    pub fn set_token(&self, token: Option<&str>) {
        self.set_cookie("holdfast", token);
    }

    /// The cookie that names the browser.
    pub fn device_token(&self) -> Option<String> {
        self.cookies.lock().expect("no panic").get(&self.cookie_name("holdfast-device")).cloned()
    }

    /// Puts a cookie of ours into the browser, or takes it out.
    pub fn set_cookie(&self, name: &str, value: Option<&str>) {
        let (name, mut cookies) = (self.cookie_name(name), self.cookies.lock().expect("no panic"));
        match value {
            Some(value) => drop(cookies.insert(name, value.into())),
            None => drop(cookies.remove(&name)),
        }
    }

    pub async fn log_in(&self, name: &str) -> Answer {
        self.post("/login", json!({"email": email_of(name), "password": password_of(name)})).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path), Body::empty()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path), Body::empty()).await
    }

    /// A POST without a body.
    pub async fn poke(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path), Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.json(Method::POST, path, body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.json(Method::PUT, path, body).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.json(Method::PATCH, path, body).await
    }

    pub async fn json(&self, method: Method, path: &str, body: Value) -> Answer {
        let request = self.request(method, path).header(header::CONTENT_TYPE, "application/json");
        self.send(request, Body::from(body.to_string())).await
    }

    /// A form of a page, sent as a browser does.
    pub async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.send(self.request(Method::POST, path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded"), Body::from(body)).await
    }

    /// Changes the password of `name` to `new`.
    pub async fn change_password(&self, current: &str, new: &str) -> Answer {
        self.put("/me/password", json!({"current_password": current, "new_password": new})).await
    }

    /// A request of this browser, to be completed and sent.
    pub fn request(&self, method: Method, path: &str) -> axum::http::request::Builder {
        let mut request = Request::builder().method(method).uri(path).header(header::USER_AGENT, &self.agent).header("x-forwarded-for", &self.ip);
        let cookies: Vec<String> = self.cookies.lock().expect("no panic").iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies.join("; "));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }

    /// Sends it, from a trusted proxy on this machine, and keeps the cookies of the answer as a browser does.
    pub async fn send(&self, request: axum::http::request::Builder, body: Body) -> Answer {
        let mut request = request.body(body).expect("a request");
        request.extensions_mut().insert(ConnectInfo(Peer(SocketAddr::from(([127, 0, 0, 1], 40_000)))));
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let answer = Answer { status: parts.status, headers: parts.headers, body: body.collect().await.expect("a body").to_bytes().to_vec() };
        for line in answer.set_cookies() {
            let (pair, attributes) = line.split_once(';').unwrap_or((&line, ""));
            let (name, value) = pair.split_once('=').expect("a cookie");
            let mut cookies = self.cookies.lock().expect("no panic");
            if attributes.contains("Max-Age=0") {
                cookies.remove(name);
            } else {
                cookies.insert(name.into(), value.into());
            }
        }
        answer
    }
}

/// The path of the one link in a letter, as a click follows it.
#[track_caller]
pub fn link_of(letter: &Letter) -> String {
    let links: Vec<&str> = letter.text.lines().filter(|line| line.starts_with("http")).collect();
    assert_eq!(links.len(), 1, "{}", letter.text);
    let after_scheme = links[0].split_once("://").expect("a URL").1;
    after_scheme.find('/').map_or_else(String::new, |at| after_scheme[at..].to_string())
}

/// The token at the end of it.
#[track_caller]
pub fn token_of(letter: &Letter) -> String {
    link_of(letter).rsplit('/').next().expect("a token").to_string()
}

/// Where the forms of a page go.
pub fn actions(page: &str) -> Vec<String> {
    page.split("action=\"").skip(1).map(|rest| rest.split('"').next().expect("an end").replace("&#x2f;", "/")).collect()
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// Expects this status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    /// Expects a refusal with this status and code.
    #[track_caller]
    pub fn is_refused(self, status: u16, code: &str) -> Self {
        let told = (self.status.as_u16(), self.code());
        assert_eq!(told, (status, code.to_string()), "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        self
    }

    /// The code of a problem; empty when it is none.
    pub fn code(&self) -> String {
        serde_json::from_slice::<Value>(&self.body).ok().and_then(|body| body["code"].as_str().map(String::from)).unwrap_or_default()
    }

    /// The body.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The fields at fault, each with its code: `email:invalid`.
    pub fn faults(&self) -> Vec<String> {
        let body = self.json();
        let errors = body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|e| format!("{}:{}", e["field"].as_str().unwrap_or(""), e["code"].as_str().unwrap_or(""))).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn set_cookies(&self) -> Vec<String> {
        self.headers.get_all(header::SET_COOKIE).iter().map(|value| value.to_str().expect("ASCII").to_string()).collect()
    }

    /// Whether it takes the session cookie back.
    pub fn clears_session(&self) -> bool {
        self.set_cookies().iter().any(|line| (line.starts_with("holdfast=;") || line.starts_with("__Host-holdfast=;")) && line.contains("Max-Age=0"))
    }
}
