//! A sign-in from a new address or on a new browser: noticed once, told once, and never in anybody's way.
//! A thief tries to be taken for known: from the same network, with a planted device cookie, in a burst, or after a sign-out.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::stage::{Actor, Answer, IPHONE, Stage, TICK, email_of, password_of};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// `KNOWN_IP_RETENTION`.
const RETENTION: Duration = Duration::from_secs(180 * 24 * 3600);

const HOME: &str = "198.51.100.1";
const CAFE: &str = "203.0.113.7";

/// Signs in and says what was new: the address, the browser.
async fn sign_in(browser: &Actor, name: &str) -> (bool, bool) {
    news(&browser.log_in(name).await.is(200))
}

fn news(answer: &Answer) -> (bool, bool) {
    let session = &answer.json()["session"];
    (session["new_ip"].as_bool().expect("a flag"), session["new_device"].as_bool().expect("a flag"))
}

/// The user's own events of a kind, newest first.
async fn events(actor: &Actor, kind: &str) -> Vec<Value> {
    let events = actor.get("/me/activity?limit=100").await.is(200).json()["events"].as_array().cloned().expect("a list");
    events.into_iter().filter(|event| event["kind"] == kind).collect()
}

fn letters(stage: &Stage, kind: &str) -> i64 {
    stage.count(&format!("SELECT count(*) FROM outbox WHERE kind = '{kind}'"))
}

/// A browser that has the device cookie of another, and nothing else of it.
fn same_browser_elsewhere(stage: &Stage, browser: &Actor, ip: &str) -> Actor {
    let other = stage.anon().from_ip(ip);
    other.set_cookie("holdfast-device", browser.device_token().as_deref());
    other
}

// ---- addresses

#[tokio::test]
async fn the_sign_up_is_never_new() {
    let stage = Stage::new().await;
    let ana = stage.anon().from_ip(CAFE);
    let answer = ana.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    assert_eq!(news(&answer), (false, false));
    assert!(events(&ana, "new_ip_login").await.is_empty() && events(&ana, "new_device_login").await.is_empty());
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind <> 'verify_email'"), 0);
}

#[tokio::test]
async fn the_address_of_the_sign_up_is_known() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
}

#[tokio::test]
async fn another_address_is_new_once() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.from_ip(CAFE);
    assert_eq!(sign_in(&ana, "ana").await, (true, false));
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
    assert_eq!(sign_in(&ana.clone().from_ip(HOME), "ana").await, (false, false));
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'new_ip_login'"), 1);
}

#[tokio::test]
async fn a_new_address_is_told_with_user_address_and_device() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.from_ip(CAFE).with_agent(IPHONE);
    let body = ana.log_in("ana").await.is(200).json();
    let told = events(&ana, "new_ip_login").await;
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0]["ip"], &told[0]["session_id"]), (&json!(CAFE), &body["session"]["id"]));
    assert_eq!(told[0]["device_name"], body["session"]["device_name"]);
    assert!(told[0]["device_name"].as_str().is_some_and(|name| name.contains("iPhone") || name.contains("iOS")), "{}", told[0]["device_name"]);
    assert_eq!(stage.count("SELECT count(*) FROM events JOIN users ON users.id = events.user_id WHERE kind = 'new_ip_login'"), 1);
}

#[tokio::test]
async fn the_operator_finds_it_in_the_audit_log() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let ana = stage.sign_up("ana").await.from_ip(CAFE);
    let user = ana.log_in("ana").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    let log = admin.get(&format!("/admin/events?kind=new_ip_login&user_id={user}")).await.is(200).json();
    assert_eq!(log["events"].as_array().map(Vec::len), Some(1));
    assert_eq!(log["events"][0]["ip"], CAFE);
}

#[tokio::test]
async fn a_new_address_gives_one_letter() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.from_ip(CAFE);
    sign_in(&ana, "ana").await;
    assert_eq!(letters(&stage, "new_ip_login"), 1);
    sign_in(&ana, "ana").await;
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind <> 'verify_email'"), 1);
}

#[tokio::test]
async fn a_known_address_gives_no_letter() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    sign_in(&ana, "ana").await;
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind <> 'verify_email'"), 0);
}

#[tokio::test]
async fn a_new_sign_in_is_not_blocked_and_the_session_stays_marked() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let away = ana.from_ip(CAFE);
    sign_in(&away, "ana").await;
    let me = away.get("/me").await.is(200).json();
    assert_eq!((&me["session"]["new_ip"], &me["session"]["new_device"]), (&json!(true), &json!(false)));
    let listed = away.get("/me/sessions").await.is(200).json();
    assert_eq!(listed["sessions"][0]["new_ip"], true);
    let token = away.token();
    stage.restart().await;
    let after = stage.anon().from_ip(CAFE);
    after.set_token(token.as_deref());
    assert_eq!(after.get("/me").await.is(200).json()["session"]["new_ip"], true);
}

#[tokio::test]
async fn a_known_address_is_known_to_its_user_only() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    assert_eq!(sign_in(&ana.from_ip(CAFE), "ana").await, (true, false));
    assert_eq!(sign_in(&ben.from_ip(CAFE), "ben").await, (true, false));
}

#[tokio::test]
async fn a_known_address_survives_sign_outs_and_restarts() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let away = ana.clone().from_ip(CAFE);
    sign_in(&away, "ana").await;
    away.poke("/logout").await.is(204);
    assert_eq!(sign_in(&away, "ana").await, (false, false));
    away.delete("/me/sessions?include_current=true").await.is(200);
    stage.crash().await;
    assert_eq!(sign_in(&same_browser_elsewhere(&stage, &away, CAFE), "ana").await, (false, false));
}

#[tokio::test]
async fn a_failed_sign_in_makes_no_address_known() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.from_ip(CAFE);
    ana.post("/login", json!({"email": email_of("ana"), "password": "not this one"})).await.is(401);
    assert_eq!(sign_in(&ana, "ana").await, (true, false));
}

#[tokio::test]
async fn requests_of_a_session_make_no_address_known() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.from_ip(CAFE);
    ana.get("/me").await.is(200);
    ana.get("/check").await.is(204);
    assert_eq!(sign_in(&ana, "ana").await, (true, false));
}

#[tokio::test]
async fn an_address_is_forgotten_after_its_retention() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(RETENTION + TICK);
    assert_eq!(sign_in(&ana, "ana").await, (true, true));
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
}

#[tokio::test]
async fn within_the_retention_an_address_is_known() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(RETENTION - TICK);
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
}

#[tokio::test]
async fn every_sign_in_renews_what_is_known() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..4 {
        stage.clock.advance(RETENTION - DAY);
        assert_eq!(sign_in(&ana, "ana").await, (false, false));
    }
}

#[tokio::test]
async fn the_retention_is_a_setting() {
    let stage = Stage::with(&[("KNOWN_IP_RETENTION", "2d")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(DAY);
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
    stage.clock.advance(DAY + DAY + TICK);
    assert_eq!(sign_in(&ana, "ana").await, (true, true));
}

/// XFF-04: an IPv6 network of 64 bits is one place, however its addresses are written.
#[tokio::test]
async fn addresses_of_one_ipv6_network_are_one_place() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(sign_in(&ana.clone().from_ip("2001:db8::1"), "ana").await, (true, false));
    for same in ["2001:0DB8:0:0:0:0:0:1", "2001:db8::2", "[2001:db8:0:0:ffff:ffff:ffff:ffff]:443"] {
        assert_eq!(sign_in(&ana.clone().from_ip(same), "ana").await, (false, false), "{same}");
    }
    assert_eq!(sign_in(&ana.clone().from_ip("2001:db8:0:1::1"), "ana").await, (true, false));
    assert_eq!(letters(&stage, "new_ip_login"), 2);
}

/// XFF-04
#[tokio::test]
async fn fifty_sign_ins_from_one_ipv6_network_are_told_once() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for host in 1..=50 {
        sign_in(&ana.clone().from_ip(&format!("2001:db8::{host:x}")), "ana").await;
    }
    assert_eq!(letters(&stage, "new_ip_login"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'new_ip_login'"), 1);
}

/// XFF-04
#[tokio::test]
async fn a_mapped_ipv4_address_is_the_ipv4_address() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(sign_in(&ana.clone().from_ip("::ffff:198.51.100.1"), "ana").await, (false, false));
    assert_eq!(ana.get("/me").await.is(200).json()["session"]["ip"], HOME);
}

#[tokio::test]
async fn ipv4_neighbours_are_other_places() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(sign_in(&ana.from_ip("198.51.100.2"), "ana").await, (true, false));
}

#[tokio::test]
async fn of_parallel_sign_ins_from_one_new_address_exactly_one_is_new() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut runs = JoinSet::new();
    for _ in 0..20 {
        let browser = same_browser_elsewhere(&stage, &ana, CAFE);
        runs.spawn(async move { sign_in(&browser, "ana").await });
    }
    let news = runs.join_all().await;
    assert_eq!(news.iter().filter(|(new_ip, _)| *new_ip).count(), 1);
    assert!(news.iter().all(|(_, new_device)| !new_device));
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'new_ip_login'"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind <> 'verify_email'"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions WHERE new_ip = 1"), 1);
}

#[tokio::test]
async fn a_rotation_changes_no_mark_and_is_no_sign_in() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let away = ana.from_ip(CAFE);
    let body = away.change_password(&password_of("ana"), "quite another one").await.is(200).json();
    assert_eq!((&body["session"]["new_ip"], &body["session"]["ip"]), (&json!(false), &json!(HOME)));
    assert!(events(&away, "new_ip_login").await.is_empty());
}

// ---- devices

fn device_cookie(answer: &Answer) -> Option<String> {
    answer.set_cookies().into_iter().find(|line| line.starts_with("holdfast-device=") || line.starts_with("__Host-holdfast-device="))
}

#[tokio::test]
async fn a_sign_in_names_the_browser_for_400_days() {
    let stage = Stage::new().await;
    let ana = stage.anon();
    let answer = ana.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    let line = device_cookie(&answer).expect("a device cookie");
    assert!(line.contains("Max-Age=34560000"), "{line}");
    let named = ana.device_token().expect("a device");
    assert!(URL_SAFE_NO_PAD.decode(&named).expect("base64url").len() >= 16);
    assert_ne!(Some(named), ana.token());
}

#[tokio::test]
async fn over_https_the_device_cookie_is_host_only() {
    let stage = Stage::with(&[("PUBLIC_URL", "https://id.example.com")]).await;
    let ana = stage.anon();
    let answer = ana.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    let line = device_cookie(&answer).expect("a device cookie");
    assert!(line.starts_with("__Host-holdfast-device="), "{line}");
    for attribute in ["; Secure", "; HttpOnly", "; Path=/", "; Max-Age=34560000"] {
        assert!(line.contains(attribute), "{line}");
    }
    assert!(!line.contains("Domain"), "{line}");
}

#[tokio::test]
async fn another_browser_is_new_once() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let laptop = stage.anon();
    assert_eq!(sign_in(&laptop, "ana").await, (false, true));
    assert_eq!(sign_in(&laptop, "ana").await, (false, false));
    assert_eq!(events(&laptop, "new_device_login").await.len(), 1);
    assert_eq!(letters(&stage, "new_device_login"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind <> 'verify_email'"), 1);
}

#[tokio::test]
async fn a_known_browser_at_another_address_is_no_new_device() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(sign_in(&ana.from_ip(CAFE), "ana").await, (true, false));
    assert_eq!(letters(&stage, "new_device_login"), 0);
}

#[tokio::test]
async fn a_sign_in_that_is_new_in_both_ways_is_told_once() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let thief = stage.anon().from_ip(CAFE);
    assert_eq!(sign_in(&thief, "ana").await, (true, true));
    assert_eq!(events(&thief, "new_ip_login").await.len(), 1);
    assert_eq!(events(&thief, "new_device_login").await.len(), 1);
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind <> 'verify_email'"), 1);
}

#[tokio::test]
async fn the_user_agent_does_not_make_a_browser_known() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(sign_in(&stage.anon(), "ana").await, (false, true));
    assert_eq!(sign_in(&ana.with_agent(IPHONE), "ana").await, (false, false));
}

#[tokio::test]
async fn an_issued_device_cookie_stays() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let issued = ana.device_token();
    for _ in 0..3 {
        ana.log_in("ana").await.is(200);
        assert_eq!(ana.device_token(), issued);
        ana.poke("/logout").await.is(204);
        assert_eq!(ana.device_token(), issued);
    }
}

/// Nobody can plant a name for somebody else's browser.
#[tokio::test]
async fn an_invented_device_cookie_is_replaced() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for invented in [URL_SAFE_NO_PAD.encode([7; 32]), "A".repeat(43), "garbage".into(), String::new()] {
        let browser = stage.anon();
        browser.set_cookie("holdfast-device", Some(&invented));
        assert_eq!(sign_in(&browser, "ana").await, (false, true));
        assert_ne!(browser.device_token(), Some(invented));
        assert_eq!(sign_in(&browser, "ana").await, (false, false));
    }
}

/// COOK-02: nor by a second cookie of the name.
#[tokio::test]
async fn two_device_cookies_name_no_browser() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let (a, b) = (ana.device_token().expect("a device"), ben.device_token().expect("a device"));
    let browser = stage.anon();
    let request = browser.request(Method::POST, "/login").header(header::COOKIE, format!("holdfast-device={a}; holdfast-device={b}"));
    let body = json!({"email": email_of("ana"), "password": password_of("ana")}).to_string();
    browser.send(request.header(header::CONTENT_TYPE, "application/json"), Body::from(body)).await.is(200);
    let named = browser.device_token().expect("a device");
    assert!(named != a && named != b);
}

#[tokio::test]
async fn a_failed_sign_in_names_no_browser() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let browser = stage.anon();
    let failed = browser.post("/login", json!({"email": email_of("ana"), "password": "not this one"})).await.is(401);
    assert_eq!(device_cookie(&failed), None);
    assert_eq!(sign_in(&browser, "ana").await, (false, true));
}

#[tokio::test]
async fn a_browser_is_new_once_for_each_user_who_signs_in_there() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let shared = ana.device_token();
    ana.poke("/logout").await.is(204);
    assert_eq!(sign_in(&ana, "ben").await, (false, true));
    assert_eq!(ana.device_token(), shared);
    assert_eq!(sign_in(&ana, "ben").await, (false, false));
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
    assert_eq!(events(&ben, "new_device_login").await.len(), 1);
}

#[tokio::test]
async fn a_sign_up_on_somebody_elses_browser_is_not_new_either() {
    let stage = Stage::new().await;
    let browser = stage.sign_up("ana").await;
    let named = browser.device_token();
    let answer = browser.post("/signup", json!({"email": email_of("ben"), "password": password_of("ben")})).await.is(201);
    assert_eq!(news(&answer), (false, false));
    assert_eq!(browser.device_token(), named);
    assert_eq!(sign_in(&browser, "ben").await, (false, false));
}

#[tokio::test]
async fn a_browser_is_forgotten_after_its_retention() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let laptop = stage.anon();
    sign_in(&laptop, "ana").await;
    stage.clock.advance(RETENTION - DAY);
    sign_in(&ana, "ana").await;
    stage.clock.advance(DAY + TICK);
    assert_eq!(sign_in(&laptop, "ana").await, (false, true));
    assert_eq!(sign_in(&ana, "ana").await, (false, false));
}

#[tokio::test]
async fn of_parallel_sign_ins_on_one_new_browser_exactly_one_is_new() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let shared = stage.sign_up("ben").await;
    let mut runs = JoinSet::new();
    for _ in 0..20 {
        let browser = same_browser_elsewhere(&stage, &shared, HOME);
        runs.spawn(async move { sign_in(&browser, "ana").await });
    }
    let news = runs.join_all().await;
    assert_eq!(news.iter().filter(|(_, new_device)| *new_device).count(), 1);
    assert_eq!(letters(&stage, "new_device_login"), 1);
}

#[tokio::test]
async fn a_stored_device_is_a_hash() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let named = URL_SAFE_NO_PAD.decode(ana.device_token().expect("a device")).expect("base64url");
    let hex: String = named.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(stage.count(&format!("SELECT count(*) FROM known_devices WHERE device_hash = x'{hex}'")), 0);
    assert_eq!(stage.count("SELECT count(*) FROM known_devices"), 1);
}

#[tokio::test]
async fn the_names_of_browsers_tell_two_of_them_apart() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    assert_ne!(ana.device_token(), ben.device_token());
}

// ---- what an administrator's or a disabled account sees

#[tokio::test]
async fn a_disabled_account_is_told_of_no_sign_in() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let ana = stage.sign_up("ana").await;
    let id = ana.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
    stage.anon().from_ip(CAFE).log_in("ana").await.is(401);
    assert_eq!(letters(&stage, "new_ip_login"), 0);
    admin.poke(&format!("/admin/users/{id}/enable")).await.is(200);
    assert_eq!(sign_in(&ana.from_ip(CAFE), "ana").await, (true, false));
}
