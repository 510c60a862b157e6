//! Floods of strangers: how often one source may sign up and ask for letters, what it is told, and what else goes on.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, header};
use serde_json::json;

use holdfast::guessing::MOST_IN_ALL;

use crate::stage::{Actor, Answer, Stage, email_of, password_of};

const HOUR: Duration = Duration::from_secs(3600);
/// An hour for twenty.
const PART: Duration = Duration::from_secs(180);

async fn sign_up(actor: &Actor, name: &str) -> Answer {
    // A browser of its own each time: what counts is where it is.
    actor.copy().post("/signup", json!({"email": email_of(name), "password": password_of(name)})).await
}

async fn forgot(actor: &Actor, name: &str) -> Answer {
    actor.post("/password/forgot", json!({"email": email_of(name)})).await
}

#[track_caller]
fn tells(answer: &Answer, policy: &str, left: &str) {
    assert_eq!(answer.header("ratelimit-policy"), Some(policy));
    assert_eq!(answer.header("ratelimit"), Some(left));
}

#[tokio::test]
async fn one_source_signs_up_twenty_times_an_hour_and_is_told_so() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    for n in 0..20 {
        let answer = sign_up(&anon, &format!("ana{n}")).await.is(201);
        tells(&answer, "\"signup\";q=20;w=3600", &format!("\"signup\";r={};t=180", 19 - n));
        assert_eq!(answer.header("retry-after"), None);
    }
    let refused = sign_up(&anon, "one-too-many").await.is_refused(429, "rate_limited");
    tells(&refused, "\"signup\";q=20;w=3600", "\"signup\";r=0;t=180");
    assert_eq!(refused.header("retry-after"), Some("180"));
    assert_eq!(stage.count("SELECT count(*) FROM users"), 20);
    // Somebody else is not concerned, and whoever waits goes on.
    sign_up(&stage.anon().from_ip("198.51.100.2"), "ben").await.is(201);
    stage.clock.advance(PART - Duration::from_millis(1));
    let refused = sign_up(&anon, "one-too-many").await.is_refused(429, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    stage.clock.advance(Duration::from_millis(1));
    sign_up(&anon, "one-too-many").await.is(201);
    sign_up(&anon, "two-too-many").await.is_refused(429, "rate_limited");
    stage.clock.advance(HOUR);
    for n in 0..20 {
        sign_up(&anon, &format!("next{n}")).await.is(201);
    }
}

#[tokio::test]
async fn every_way_to_ask_a_stranger_s_letter_of_us_has_one_count() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let policy = "\"letter\";q=20;w=3600";
    let mut left = 20;
    let mut asked = |answer: Answer| {
        left -= 1;
        tells(&answer.is(202), policy, &format!("\"letter\";r={left};t=180"));
    };
    for n in 0..5 {
        asked(forgot(&stage.anon(), "ana").await);
        asked(forgot(&stage.anon(), "nobody").await);
        asked(stage.anon().post("/email/verification", json!({"email": email_of("ana")})).await);
        asked(ana.put("/me/email", json!({"email": format!("other{n}@example.com"), "current_password": password_of("ana")})).await);
    }
    let before = stage.count("SELECT count(*) FROM events");
    let letters = stage.letters().await.len();
    for refused in [
        forgot(&stage.anon(), "ana").await,
        forgot(&stage.anon(), "nobody").await,
        stage.anon().post("/email/verification", json!({"email": email_of("ana")})).await,
        ana.poke("/email/verification").await,
        ana.put("/me/email", json!({"email": "another@example.com", "current_password": password_of("ana")})).await,
    ] {
        tells(&refused, policy, "\"letter\";r=0;t=180");
        assert_eq!(refused.header("retry-after"), Some("180"));
        refused.is_refused(429, "rate_limited");
    }
    assert_eq!(stage.count("SELECT count(*) FROM events"), before, "something was looked up or written");
    assert_eq!(stage.letters().await.len(), letters);
    // Each limit is for itself, and for its source.
    sign_up(&stage.anon(), "ben").await.is(201);
    forgot(&stage.anon().from_ip("198.51.100.2"), "ana").await.is(202);
}

/// ENUM-02: what is refused is refused alike.
#[tokio::test]
async fn the_limit_tells_nobody_who_has_an_account() {
    let stage = Stage::with(&[("SIGNUP", "verify_first"), ("SIGNUP_LIMIT_SOURCE", "4/1h"), ("LETTER_LIMIT_SOURCE", "4/1h")]).await;
    sign_up(&stage.anon().from_ip("198.51.100.9"), "ana").await.is(202);
    let mut told = Vec::new();
    for (name, ip) in [("ana", "198.51.100.1"), ("nobody", "198.51.100.2")] {
        let mut all = Vec::new();
        for _ in 0..6 {
            let anon = stage.anon().from_ip(ip);
            for mut answer in [sign_up(&anon, name).await, forgot(&anon, name).await] {
                answer.headers.remove("x-request-id");
                all.push((answer.status, answer.headers, answer.body));
            }
        }
        told.push(all);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0][11].0, 429);
}

#[tokio::test]
async fn a_network_is_one_source_and_what_a_client_says_of_itself_is_none() {
    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "2/1h")]).await;
    for (n, ip) in ["2001:db8::1", "2001:db8::ffff:1"].into_iter().enumerate() {
        sign_up(&stage.anon().from_ip(ip), &format!("ana{n}")).await.is(201);
    }
    sign_up(&stage.anon().from_ip("2001:db8:0:0:1::7"), "ana2").await.is_refused(429, "rate_limited");
    sign_up(&stage.anon().from_ip("2001:db8:0:1::1"), "ana3").await.is(201);
    // XFF-02: what stands to the left of the client's address was written by the client.
    sign_up(&stage.anon().from_ip("203.0.113.9, 2001:db8::1"), "ana4").await.is_refused(429, "rate_limited");
    // The same address in IPv6 clothes.
    sign_up(&stage.anon().from_ip("198.51.100.1"), "ana5").await.is(201);
    sign_up(&stage.anon().from_ip("::ffff:198.51.100.1"), "ana6").await.is(201);
    sign_up(&stage.anon().from_ip("[::ffff:198.51.100.1]:4711"), "ana7").await.is_refused(429, "rate_limited");
}

/// LOCK-05: no other way to write the path has a count of its own, or none.
#[tokio::test]
async fn there_is_one_way_to_spell_what_has_a_limit() {
    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "1/1h"), ("LETTER_LIMIT_SOURCE", "1/1h")]).await;
    let anon = stage.anon();
    sign_up(&anon, "ana").await.is(201);
    forgot(&anon, "ana").await.is(202);
    let body = |name: &str| json!({"email": email_of(name), "password": password_of(name)});
    for path in ["//signup", "/signup/", "/SIGNUP", "/%73ignup", "/signup;x", "/./signup", "/x/../signup", "/signup%00", "/signup?a=1", "/signup#"] {
        let answer = anon.copy().post(path, body("ben")).await;
        assert!([404, 405, 422, 429].contains(&answer.status.as_u16()), "{path}: {}", answer.status);
    }
    for path in ["//password/forgot", "/password/forgot/", "/password//forgot", "/PASSWORD/forgot", "/password%2fforgot", "/email/verification/"] {
        let answer = anon.post(path, json!({"email": email_of("ana")})).await;
        assert!([404, 405, 429].contains(&answer.status.as_u16()), "{path}: {}", answer.status);
    }
    let override_method = anon.request(Method::PUT, "/signup").header("x-http-method-override", "POST").header(header::CONTENT_TYPE, "application/json");
    anon.send(override_method, Body::from(body("ben").to_string())).await.is_refused(405, "method_not_allowed");
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
}

#[tokio::test]
async fn what_is_not_valid_is_told_so_and_costs_nothing() {
    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "1/1h"), ("LETTER_LIMIT_SOURCE", "1/1h")]).await;
    let anon = stage.anon();
    for _ in 0..2 {
        for (path, body) in [
            ("/signup", json!({"email": "ana", "password": "short"})),
            ("/signup", json!({"email": email_of("ana")})),
            ("/password/forgot", json!({"email": "ana"})),
            ("/email/verification", json!({"name": 1})),
        ] {
            let answer = anon.post(path, body).await;
            assert_eq!(answer.header("ratelimit"), None);
            answer.is_refused(422, "validation_failed");
        }
        anon.send(anon.request(Method::POST, "/signup").header(header::CONTENT_TYPE, "text/plain"), Body::from("{}")).await.is(415);
        anon.send(anon.request(Method::POST, "/signup").header(header::CONTENT_TYPE, "application/json"), Body::from("{")).await.is(400);
        anon.send(anon.request(Method::POST, "/signup").header("sec-fetch-site", "cross-site"), Body::empty()).await.is(403);
        anon.get("/signup").await.is(405);
        // The second round meets a limit that is used up, and hears the same.
        sign_up(&anon, "ana").await;
        forgot(&anon, "ana").await;
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
}

#[tokio::test]
async fn what_was_let_through_counts_whatever_comes_of_it() {
    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "3/1h")]).await;
    let anon = stage.anon();
    sign_up(&anon, "ana").await.is(201);
    for left in ["\"signup\";r=1;t=1200", "\"signup\";r=0;t=1200"] {
        let taken = sign_up(&anon, "ana").await.is_refused(409, "email_taken");
        tells(&taken, "\"signup\";q=3;w=3600", left);
    }
    sign_up(&anon, "ana").await.is_refused(429, "rate_limited");
}

#[tokio::test]
async fn of_parallel_sign_ups_no_more_than_the_limit_pass() {
    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "5/1h")]).await;
    let all: Vec<_> = (0..50)
        .map(|n| {
            let anon = stage.anon();
            tokio::spawn(async move { sign_up(&anon, &format!("ana{n}")).await.status.as_u16() })
        })
        .collect();
    let mut statuses = Vec::new();
    for task in all {
        statuses.push(task.await.expect("no panic"));
    }
    let of = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!((of(201), of(429)), (5, 45), "{statuses:?}");
}

#[tokio::test]
async fn none_turns_a_limit_off_and_the_other_stays() {
    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "none"), ("LETTER_LIMIT_SOURCE", "1/1h")]).await;
    let anon = stage.anon();
    for n in 0..30 {
        assert_eq!(sign_up(&anon, &format!("ana{n}")).await.is(201).header("ratelimit"), None);
    }
    forgot(&anon, "ana").await.is(202);
    forgot(&anon, "ana").await.is_refused(429, "rate_limited");

    let stage = Stage::with(&[("SIGNUP_LIMIT_SOURCE", "1/1h"), ("LETTER_LIMIT_SOURCE", "none")]).await;
    let anon = stage.anon();
    for _ in 0..30 {
        assert_eq!(forgot(&anon, "ana").await.is(202).header("ratelimit"), None);
    }
    sign_up(&anon, "ana").await.is(201);
    sign_up(&anon, "ben").await.is_refused(429, "rate_limited");
}

#[tokio::test]
async fn where_nobody_can_sign_up_that_is_all_that_is_said() {
    let stage = Stage::with(&[("SIGNUP", "closed"), ("SIGNUP_LIMIT_SOURCE", "1/1h")]).await;
    for _ in 0..3 {
        assert_eq!(sign_up(&stage.anon(), "ana").await.is_refused(403, "signup_closed").header("ratelimit"), None);
    }
}

#[tokio::test]
async fn the_document_tells_which_routes_have_a_limit() {
    let document = Stage::new().await.anon().get("/openapi.json").await.is(200).json();
    let headers = |method: &str, path: &str, status: &str| document["paths"][path][method]["responses"][status]["headers"].clone();
    for (method, path, status) in
        [("post", "/signup", "201"), ("post", "/password/forgot", "202"), ("post", "/email/verification", "202"), ("put", "/me/email", "202")]
    {
        for status in [status, "429"] {
            let told = headers(method, path, status);
            assert!(told["RateLimit"].is_object() && told["RateLimit-Policy"].is_object(), "{method} {path} {status}: {told}");
        }
        assert!(headers(method, path, "429")["Retry-After"].is_object());
    }
    assert!(!headers("post", "/login", "200").to_string().contains("RateLimit"));
}

#[tokio::test]
async fn sign_in_says_nothing_of_what_is_left() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for answer in [ana.log_in("ana").await, ana.log_in("nobody").await, ana.get("/me").await, ana.get("/check").await] {
        assert_eq!((answer.header("ratelimit"), answer.header("ratelimit-policy")), (None, None));
    }
}

/// The contract of CORS is what it was: a page of another origin reads `Retry-After` only.
#[tokio::test]
async fn a_front_end_of_ours_may_read_when_to_come_again() {
    let stage = Stage::with(&[("ALLOWED_ORIGINS", "http://app.localhost:5173"), ("SIGNUP_LIMIT_SOURCE", "1/1h")]).await;
    let app = stage.anon().with_header("origin", "http://app.localhost:5173");
    sign_up(&app, "ana").await.is(201);
    let refused = sign_up(&app, "ben").await.is_refused(429, "rate_limited");
    assert_eq!(refused.header("access-control-expose-headers"), Some("Retry-After, X-Request-Id"));
    assert_eq!(refused.header("access-control-allow-origin"), Some("http://app.localhost:5173"));
}

/// SLOW-03: whoever is signed in is checked, however much there is to do.
#[tokio::test]
async fn too_much_work_is_refused_and_the_check_is_not() {
    for base in ["", "/auth"] {
        let stage = Stage::with(&[("BASE_PATH", base)]).await;
        let at = |path: &str| format!("{base}{path}");
        let ana = stage.anon();
        ana.post(&at("/signup"), json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
        let most = 512 + stage.app.hasher.capacity() + MOST_IN_ALL;
        let mut work: Vec<_> = (0..most).map(|_| stage.app.serving.begin()).collect();
        ana.get(&at("/me")).await.is(200);
        work.push(stage.app.serving.begin());
        for answer in [
            ana.get(&at("/me")).await,
            ana.get(&at("/openapi.json")).await,
            ana.get(&at("/nowhere")).await,
            ana.get(&at("/check/")).await,
            ana.post(&at("/login"), json!({})).await,
            ana.post(&at("/signup"), json!({"email": email_of("ben"), "password": password_of("ben")})).await,
        ] {
            assert_eq!((answer.header("retry-after"), answer.header("cache-control")), (Some("2"), Some("no-store")));
            answer.is_refused(503, "overloaded");
        }
        ana.get(&at("/check")).await.is(204);
        stage.anon().get(&at("/check")).await.is_refused(401, "unauthenticated");
        ana.get(&at("/health/live")).await.is(200);
        ana.get(&at("/health/ready")).await.is(200);
        // What comes from another site is told so all the same.
        ana.clone().with_header("sec-fetch-site", "cross-site").post(&at("/login"), json!({})).await.is_refused(403, "cross_site_request");
        work.pop();
        ana.get(&at("/me")).await.is(200);
    }
}

/// SLOW-02
#[tokio::test]
async fn a_url_is_at_most_16_kib() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for path in ["/me?", "/check?", "/nowhere?", "/me/sessions/"] {
        let fits = format!("{path}{}", "x".repeat(16 * 1024 - path.len()));
        assert_ne!(ana.get(&fits).await.status, 414, "{path}");
        let refused = ana.get(&format!("{fits}x")).await;
        assert_eq!(refused.header("cache-control"), Some("no-store"));
        refused.is_refused(414, "url_too_long");
    }
}
