//! Requests from other sites: nothing changes state for them, and nobody but the allowed origins may read an answer.
//! The attacker is a page in the victim's browser: it has the cookies, but cannot lie about where it is from.

use axum::body::Body;
use axum::http::{Method, header};
use serde_json::{Value, json};

use crate::stage::{ABSOLUTE_TIMEOUT, Actor, Answer, IDLE_TIMEOUT, Stage, TICK, email_of, password_of};

const OURS: &str = "https://id.example.com";
const FRIEND: &str = "https://app.example.com";
const EVIL: &str = "https://evil.test";

/// A server on https with one other front end.
async fn with_a_friend() -> Stage {
    Stage::with(&[("PUBLIC_URL", OURS), ("ALLOWED_ORIGINS", FRIEND)]).await
}

/// Everything that a request could have changed.
fn state(stage: &Stage) -> Vec<i64> {
    [
        "SELECT count(*) FROM users",
        "SELECT count(*) FROM users WHERE name = ''",
        "SELECT count(*) FROM users WHERE role = 'admin'",
        "SELECT count(*) FROM users WHERE disabled_at IS NULL",
        "SELECT CAST(coalesce(sum(security_version), 0) AS BIGINT) FROM users",
        "SELECT count(*) FROM device_sessions",
        "SELECT count(*) FROM device_sessions WHERE ended_at IS NULL",
        "SELECT count(*) FROM retired_tokens",
        "SELECT count(*) FROM events",
        "SELECT count(*) FROM outbox",
        "SELECT count(*) FROM known_devices",
    ]
    .map(|sql| stage.count(sql))
    .to_vec()
}

/// Every state-changing route, with a body that it would accept of an administrator.
struct Deed {
    method: Method,
    path: String,
    body: Option<Value>,
}

fn deeds(user: &str, session: &str, own_session: &str) -> Vec<Deed> {
    let deed = |method, path: String, body| Deed { method, path, body };
    vec![
        deed(Method::POST, "/signup".into(), Some(json!({"email": "eve@example.com", "password": "a good password"}))),
        deed(Method::POST, "/login".into(), Some(json!({"email": email_of("ben"), "password": password_of("ben")}))),
        deed(Method::POST, "/logout".into(), None),
        deed(Method::PATCH, "/me".into(), Some(json!({"name": "Eve"}))),
        deed(Method::PUT, "/me/password".into(), Some(json!({"current_password": password_of("admin"), "new_password": "a password of Eve"}))),
        deed(Method::PUT, "/me/email".into(), Some(json!({"email": "eve@example.com", "current_password": password_of("admin")}))),
        deed(Method::POST, "/password/forgot".into(), Some(json!({"email": email_of("ben")}))),
        deed(Method::POST, "/email/verification".into(), Some(json!({"email": email_of("ben")}))),
        deed(Method::DELETE, "/me/sessions".into(), None),
        deed(Method::DELETE, "/me/sessions?include_current=true".into(), None),
        deed(Method::DELETE, format!("/me/sessions/{own_session}"), None),
        deed(Method::PUT, format!("/admin/users/{user}/role"), Some(json!({"role": "admin"}))),
        deed(Method::POST, format!("/admin/users/{user}/disable"), None),
        deed(Method::POST, format!("/admin/users/{user}/enable"), None),
        deed(Method::DELETE, format!("/admin/users/{user}/sessions"), None),
        deed(Method::DELETE, format!("/admin/users/{user}/sessions/{session}"), None),
    ]
}

async fn act(actor: &Actor, deed: &Deed, headers: &[(&'static str, &str)]) -> Answer {
    let mut request = actor.request(deed.method.clone(), &deed.path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    match &deed.body {
        Some(body) => actor.send(request.header(header::CONTENT_TYPE, "application/json"), Body::from(body.to_string())).await,
        None => actor.send(request, Body::empty()).await,
    }
}

/// An administrator's browser on a server with somebody else's session to play with.
async fn a_tempting_target(stage: &Stage) -> (Actor, Vec<Deed>) {
    let admin = stage.admin("admin").await;
    let ben = stage.sign_up("ben").await.get("/me").await.is(200).json();
    let own = admin.get("/me").await.is(200).json();
    let text = |value: &Value| value.as_str().expect("an id").to_string();
    let deeds = deeds(&text(&ben["user"]["id"]), &text(&ben["session"]["id"]), &text(&own["session"]["id"]));
    (admin, deeds)
}

async fn try_a_name(actor: &Actor, headers: &[(&'static str, &str)]) -> Answer {
    act(actor, &Deed { method: Method::PATCH, path: "/me".into(), body: Some(json!({"name": "Ana"})) }, headers).await
}

// ---- who may change state

/// CSRF-01: on every state-changing route, and nothing happens.
#[tokio::test]
async fn another_site_changes_nothing_anywhere() {
    let stage = with_a_friend().await;
    let (admin, deeds) = a_tempting_target(&stage).await;
    let before = state(&stage);
    let foreign: [&[(&str, &str)]; 4] =
        [&[("origin", EVIL)], &[("sec-fetch-site", "cross-site")], &[("sec-fetch-site", "same-site")], &[("origin", EVIL), ("sec-fetch-site", "cross-site")]];
    for headers in foreign {
        for deed in &deeds {
            let answer = act(&admin, deed, headers).await.is_refused(403, "cross_site_request");
            assert_eq!(answer.set_cookies(), Vec::<String>::new(), "{} {}", deed.method, deed.path);
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    assert_eq!(state(&stage), before);
    admin.get("/admin/users").await.is(200);
}

/// The same requests do something when they come from ourselves: the test above tests what it says.
#[tokio::test]
async fn every_one_of_these_requests_passes_from_our_own_origin() {
    for n in 0..16 {
        let stage = with_a_friend().await;
        let (admin, deeds) = a_tempting_target(&stage).await;
        let deed = &deeds[n];
        let answer = act(&admin, deed, &[("origin", OURS)]).await;
        assert!(answer.status.is_success(), "{} {}: {}", deed.method, deed.path, answer.status);
    }
}

/// CSRF-01: a form can send text/plain, urlencoded and multipart without a preflight.
#[tokio::test]
async fn a_form_of_another_site_changes_nothing() {
    let stage = with_a_friend().await;
    let (admin, deeds) = a_tempting_target(&stage).await;
    let before = state(&stage);
    for deed in deeds.iter().filter(|deed| deed.body.is_some()) {
        for media_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
            let body = deed.body.as_ref().map(Value::to_string).unwrap_or_default();
            let request = admin.request(deed.method.clone(), &deed.path).header(header::CONTENT_TYPE, media_type);
            admin.send(request.header("origin", EVIL), Body::from(body.clone())).await.is_refused(403, "cross_site_request");
            // Without a word about where it comes from, the media type gives it away.
            let request = admin.request(deed.method.clone(), &deed.path).header(header::CONTENT_TYPE, media_type);
            admin.send(request, Body::from(body)).await.is_refused(415, "unsupported_media_type");
        }
    }
    assert_eq!(state(&stage), before);
}

/// CSRF-02: no trick of spelling makes another origin ours.
#[tokio::test]
async fn every_other_origin_is_another_site() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    let others = [
        "null",
        "",
        "http://id.example.com",
        "http://app.example.com",
        "https://id.example.com:444",
        "https://app.example.com:8443",
        "https://id.example.com.evil.test",
        "https://app.example.com.evil.test",
        "https://evilid.example.com",
        "https://evilapp.example.com",
        "https://user@app.example.com",
        "HTTPS://APP.EXAMPLE.COM",
        "https://ID.example.com",
        "https://x.app.example.com",
        "https://sibling.example.com",
        "https://example.com",
        "https://app.example.com/",
        "https://app.example.com.",
        "https://app.example.com, https://id.example.com",
        "https://app.example.com https://id.example.com",
        "https://\u{430}pp.example.com",
        "https://xn--pp-6kc.example.com",
        "app.example.com",
        "//app.example.com",
        "file://",
        "*",
    ];
    for origin in others {
        try_a_name(&ana, &[("origin", origin)]).await.is_refused(403, "cross_site_request");
        try_a_name(&ana, &[("origin", origin), ("sec-fetch-site", "same-site")]).await.is_refused(403, "cross_site_request");
        try_a_name(&ana, &[("origin", origin), ("sec-fetch-site", "cross-site")]).await.is_refused(403, "cross_site_request");
    }
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "");
}

#[tokio::test]
async fn our_own_origin_may_change_state() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    try_a_name(&ana, &[("origin", OURS)]).await.is(200);
    try_a_name(&ana, &[("origin", OURS), ("sec-fetch-site", "same-origin")]).await.is(200);
    try_a_name(&ana, &[("origin", OURS), ("sec-fetch-site", "same-site")]).await.is(200);
}

#[tokio::test]
async fn an_allowed_origin_may_change_state() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    try_a_name(&ana, &[("origin", FRIEND)]).await.is(200);
    try_a_name(&ana, &[("origin", FRIEND), ("sec-fetch-site", "same-site")]).await.is(200);
    try_a_name(&ana, &[("origin", FRIEND), ("sec-fetch-site", "cross-site")]).await.is(200);
}

#[tokio::test]
async fn every_one_of_several_allowed_origins_counts() {
    let stage = Stage::with(&[("PUBLIC_URL", OURS), ("ALLOWED_ORIGINS", "https://app.example.com, https://shop.example.com:8443")]).await;
    let ana = stage.sign_up("ana").await;
    try_a_name(&ana, &[("origin", "https://app.example.com")]).await.is(200);
    try_a_name(&ana, &[("origin", "https://shop.example.com:8443")]).await.is(200);
    try_a_name(&ana, &[("origin", "https://shop.example.com")]).await.is_refused(403, "cross_site_request");
}

#[tokio::test]
async fn without_a_setting_only_our_own_origin_may_change_state() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    try_a_name(&ana, &[("origin", "http://localhost:8300")]).await.is(200);
    for origin in ["http://localhost", "http://localhost:5173", "https://localhost:8300", "http://127.0.0.1:8300"] {
        try_a_name(&ana, &[("origin", origin)]).await.is_refused(403, "cross_site_request");
    }
}

/// A development server that proxies has another port, and says same-origin.
#[tokio::test]
async fn what_the_browser_calls_same_origin_or_its_user_typed_passes() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    try_a_name(&ana, &[("sec-fetch-site", "same-origin")]).await.is(200);
    try_a_name(&ana, &[("sec-fetch-site", "none")]).await.is(200);
    try_a_name(&ana, &[("origin", "http://localhost:5173"), ("sec-fetch-site", "same-origin")]).await.is(200);
    for other in ["same-site", "cross-site", "", "Same-Origin?", "same-origin, cross-site"] {
        try_a_name(&ana, &[("sec-fetch-site", other)]).await.is_refused(403, "cross_site_request");
    }
}

#[tokio::test]
async fn a_request_of_no_browser_passes() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    try_a_name(&ana, &[]).await.is(200);
    try_a_name(&ana, &[("referer", "https://evil.test/page")]).await.is(200);
}

/// CSRF-02: even if both are ours.
#[tokio::test]
async fn two_origins_are_refused() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    for (first, second) in [(OURS, OURS), (OURS, EVIL), (EVIL, OURS), (FRIEND, FRIEND), (OURS, FRIEND)] {
        try_a_name(&ana, &[("origin", first), ("origin", second)]).await.is_refused(403, "cross_site_request");
        try_a_name(&ana, &[("origin", first), ("origin", second), ("sec-fetch-site", "same-origin")]).await.is_refused(403, "cross_site_request");
    }
}

#[tokio::test]
async fn the_refusal_names_the_setting() {
    let stage = with_a_friend().await;
    let body = try_a_name(&stage.anon(), &[("origin", EVIL)]).await.is_refused(403, "cross_site_request").json();
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains("ALLOWED_ORIGINS")), "{body}");
}

#[tokio::test]
async fn looking_is_not_changing() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    for (name, value) in [("origin", EVIL), ("sec-fetch-site", "cross-site")] {
        for path in ["/me", "/me/sessions", "/openapi.json", "/health/live"] {
            let answer = ana.clone().with_header(name, value).get(path).await.is(200);
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
        ana.clone().with_header(name, value).get("/check").await.is(204);
    }
}

/// It is refused before anything is read: not even the idle clock is wound.
#[tokio::test]
async fn a_refused_request_is_no_activity() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT);
    try_a_name(&ana, &[("origin", EVIL)]).await.is_refused(403, "cross_site_request");
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// The check comes before route, method, size, media type, session and body.
#[tokio::test]
async fn the_cross_site_check_comes_first() {
    let stage = with_a_friend().await;
    let evil = stage.anon().with_header("origin", EVIL);
    evil.poke("/nowhere").await.is_refused(403, "cross_site_request");
    evil.poke("/me").await.is_refused(403, "cross_site_request");
    evil.delete("/me/sessions/no-uuid").await.is_refused(403, "cross_site_request");
    evil.patch("/me", json!({"name": 1})).await.is_refused(403, "cross_site_request");
    evil.poke("/logout?x=1").await.is_refused(403, "cross_site_request");
    let request = evil.request(Method::POST, "/login").header(header::CONTENT_TYPE, "text/plain");
    evil.send(request, Body::from("x".repeat(70_000))).await.is_refused(403, "cross_site_request");
    for method in ["PUT", "PATCH", "DELETE", "TRACE", "PURGE", "get"] {
        let request = evil.request(Method::from_bytes(method.as_bytes()).expect("a method"), "/me");
        evil.send(request, Body::empty()).await.is_refused(403, "cross_site_request");
    }
}

#[tokio::test]
async fn the_check_holds_below_a_base_path() {
    let stage = Stage::with(&[("PUBLIC_URL", OURS), ("BASE_PATH", "/auth")]).await;
    let evil = stage.anon().with_header("origin", EVIL);
    evil.post("/auth/signup", json!({"email": "eve@example.com", "password": "a good password"})).await.is_refused(403, "cross_site_request");
    evil.poke("/auth/logout").await.is_refused(403, "cross_site_request");
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);
}

// ---- who may read

fn list(answer: &Answer, name: &str) -> Vec<String> {
    let mut names: Vec<String> =
        answer.header(name).unwrap_or("").split(',').map(|part| part.trim().to_ascii_lowercase()).filter(|part| !part.is_empty()).collect();
    names.sort();
    names
}

fn varies_by_origin(answer: &Answer) -> bool {
    answer.headers.get_all(header::VARY).iter().any(|value| value.to_str().expect("ASCII").split(',').any(|part| part.trim().eq_ignore_ascii_case("origin")))
}

#[track_caller]
fn is_readable_by(answer: &Answer, origin: &str) {
    assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
    assert_eq!(answer.headers.get_all("access-control-allow-origin").iter().count(), 1);
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert!(varies_by_origin(answer));
}

#[track_caller]
fn is_readable_by_nobody(answer: &Answer) {
    for name in ["origin", "credentials", "methods", "headers"] {
        assert_eq!(answer.header(&format!("access-control-allow-{name}")), None);
    }
    assert_eq!(answer.header("access-control-expose-headers"), None);
    assert_eq!(answer.header("access-control-max-age"), None);
}

async fn preflight(actor: &Actor, path: &str, origin: &str, method: &str) -> Answer {
    let request = actor.request(Method::OPTIONS, path).header("origin", origin).header("access-control-request-method", method);
    actor.send(request.header("access-control-request-headers", "content-type,x-session-passive"), Body::empty()).await
}

#[tokio::test]
async fn an_allowed_origin_may_read_the_answers() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await.with_header("origin", FRIEND);
    let answer = ana.get("/me").await.is(200);
    is_readable_by(&answer, FRIEND);
    assert_eq!(list(&answer, "access-control-expose-headers"), ["retry-after", "x-request-id"]);
    is_readable_by(&ana.patch("/me", json!({"name": "Ana"})).await.is(200), FRIEND);
    is_readable_by(&ana.poke("/logout").await.is(204), FRIEND);
}

/// A front end must be able to tell a timeout from a broken line.
#[tokio::test]
async fn an_allowed_origin_may_read_the_refusals_too() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await.with_header("origin", FRIEND);
    stage.clock.advance(ABSOLUTE_TIMEOUT + TICK);
    is_readable_by(&ana.get("/me").await.is(401), FRIEND);
    is_readable_by(&ana.get("/nowhere").await.is(404), FRIEND);
    is_readable_by(&ana.post("/login", json!({})).await.is(422), FRIEND);
    let request = ana.request(Method::POST, "/login").header(header::CONTENT_TYPE, "text/plain");
    is_readable_by(&ana.send(request, Body::from("x")).await.is(415), FRIEND);
}

#[tokio::test]
async fn an_allowed_origin_may_read_that_a_method_is_wrong() {
    let stage = with_a_friend().await;
    let answer = stage.anon().with_header("origin", FRIEND).poke("/me").await.is_refused(405, "method_not_allowed");
    is_readable_by(&answer, FRIEND);
    assert_eq!(list(&answer, "access-control-expose-headers"), ["retry-after", "x-request-id"]);
}

/// The request id of a fault is what its reader is to quote.
#[tokio::test]
async fn an_allowed_origin_may_read_that_something_broke() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await.with_header("origin", FRIEND);
    stage.execute("ALTER TABLE events RENAME TO events_elsewhere");
    let answer = ana.log_in("ana").await.is_refused(500, "internal");
    is_readable_by(&answer, FRIEND);
    assert_eq!(list(&answer, "access-control-expose-headers"), ["retry-after", "x-request-id"]);
}

#[tokio::test]
async fn a_preflight_of_an_allowed_origin_says_what_may_be_sent() {
    let stage = with_a_friend().await;
    for (path, method) in [("/login", "POST"), ("/me", "PATCH"), ("/me/password", "PUT"), ("/me/sessions", "DELETE"), ("/me", "GET")] {
        let answer = preflight(&stage.anon(), path, FRIEND, method).await;
        assert!(answer.status.is_success(), "{}", answer.status);
        is_readable_by(&answer, FRIEND);
        assert_eq!(list(&answer, "access-control-allow-methods"), ["delete", "get", "patch", "post", "put"]);
        assert_eq!(list(&answer, "access-control-allow-headers"), ["content-type", "x-request-id", "x-session-passive"]);
        assert_eq!(answer.header("access-control-max-age"), Some("600"));
        assert!(answer.body.is_empty());
    }
}

/// A preflight carries no cookie, and needs none.
#[tokio::test]
async fn a_preflight_needs_no_session_and_sets_no_cookie() {
    let stage = with_a_friend().await;
    let answer = preflight(&stage.anon(), "/admin/users", FRIEND, "GET").await;
    assert!(answer.status.is_success());
    assert_eq!(answer.set_cookies(), Vec::<String>::new());
}

#[tokio::test]
async fn a_preflight_is_no_activity() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT);
    preflight(&ana, "/me", FRIEND, "GET").await;
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// CSRF-02: nobody else, not by a preflight, not by a request, not by `*`; our own origin needs no leave.
#[tokio::test]
async fn nobody_else_may_read() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await;
    let others = [
        "null",
        EVIL,
        OURS,
        "http://app.example.com",
        "https://app.example.com:444",
        "https://app.example.com.evil.test",
        "https://evilapp.example.com",
        "https://user@app.example.com",
        "HTTPS://APP.EXAMPLE.COM",
        "https://sibling.example.com",
        "https://\u{430}pp.example.com",
        "*",
    ];
    for origin in others {
        let read = ana.send(ana.request(Method::GET, "/me").header("origin", origin), Body::empty()).await.is(200);
        let asked = preflight(&ana, "/me", origin, "PATCH").await;
        let changed = try_a_name(&ana, &[("origin", origin)]).await;
        for answer in [&read, &asked, &changed] {
            is_readable_by_nobody(answer);
        }
        assert!(varies_by_origin(&read) && varies_by_origin(&changed), "{origin}");
    }
}

/// CSRF-02: what a cache keeps for one origin is no answer to another, refused preflights included.
#[tokio::test]
async fn a_refused_preflight_varies_by_origin() {
    let stage = with_a_friend().await;
    for origin in [EVIL, OURS, "null"] {
        assert!(varies_by_origin(&preflight(&stage.anon(), "/me", origin, "PATCH").await), "{origin}");
    }
}

#[tokio::test]
async fn an_answer_without_an_origin_varies_by_it_too() {
    let stage = with_a_friend().await;
    let answer = stage.sign_up("ana").await.get("/me").await.is(200);
    is_readable_by_nobody(&answer);
    assert!(varies_by_origin(&answer));
}

#[tokio::test]
async fn without_allowed_origins_nobody_may_read() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for origin in [EVIL, "http://localhost:8300", "null"] {
        is_readable_by_nobody(&ana.clone().with_header("origin", origin).get("/me").await.is(200));
        is_readable_by_nobody(&preflight(&ana, "/me", origin, "PATCH").await);
    }
}

#[tokio::test]
async fn two_origins_may_not_read() {
    let stage = with_a_friend().await;
    let ana = stage.sign_up("ana").await.with_header("origin", FRIEND).with_header("origin", FRIEND);
    is_readable_by_nobody(&ana.get("/me").await);
}

#[tokio::test]
async fn an_allowed_origin_is_told_back_byte_by_byte() {
    let stage = Stage::with(&[("PUBLIC_URL", OURS), ("ALLOWED_ORIGINS", "HTTPS://App.Example.com:443")]).await;
    let ana = stage.sign_up("ana").await.with_header("origin", FRIEND);
    is_readable_by(&ana.get("/me").await.is(200), FRIEND);
}

/// An OPTIONS that is no preflight is a method that no route has.
#[tokio::test]
async fn a_bare_options_is_no_preflight() {
    let stage = with_a_friend().await;
    let anon = stage.anon();
    let answer = anon.send(anon.request(Method::OPTIONS, "/me"), Body::empty()).await.is_refused(405, "method_not_allowed");
    is_readable_by_nobody(&answer);
    assert!(answer.header("allow").is_some());
}
