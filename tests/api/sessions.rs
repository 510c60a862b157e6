//! What a user sees of their sessions and what they can end; that an ended session is dead with the very next request, on
//! every road; what is kept of it, and for how long; and the question of reverse proxies.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use holdfast::clock::Timestamp;
use holdfast::purge::purge;

use crate::every_route::{CONTRACT, NOBODYS_ID, Needs, bare, filled};
use crate::stage::{Actor, CHROME, IDLE_TIMEOUT, IPHONE, START, Stage, TICK, email_of, password_of};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Every kind of event of the contract.
const KINDS: [&str; 14] = [
    "signed_up",
    "signed_in",
    "sign_in_failed",
    "new_ip_login",
    "new_device_login",
    "signed_out",
    "session_revoked",
    "sessions_revoked",
    "session_timed_out",
    "password_changed",
    "rotated_token_reused",
    "role_changed",
    "account_disabled",
    "account_enabled",
];

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_string()
}

fn moment(value: &Value) -> Timestamp {
    let at: jiff::Timestamp = value.as_str().expect("a time").parse().expect("RFC 3339");
    Timestamp(at.as_millisecond())
}

/// The same browser, whose polls are no activity.
fn passive(actor: &Actor) -> Actor {
    actor.clone().with_header("x-session-passive", "1")
}

/// The id of the session that a browser holds, without winding its clock.
async fn id_of(actor: &Actor) -> String {
    text(&passive(actor).get("/me").await.is(200).json()["session"]["id"])
}

async fn list_of(actor: &Actor) -> Vec<Value> {
    actor.get("/me/sessions").await.is(200).json()["sessions"].as_array().expect("a list").clone()
}

async fn ids_of(actor: &Actor) -> Vec<String> {
    list_of(actor).await.iter().map(|session| text(&session["id"])).collect()
}

async fn events_of(actor: &Actor) -> Vec<Value> {
    actor.get("/me/activity?limit=100").await.is(200).json()["events"].as_array().expect("a list").clone()
}

async fn kinds_of(actor: &Actor) -> Vec<String> {
    events_of(actor).await.iter().map(|event| text(&event["kind"])).collect()
}

async fn purge_now(stage: &Stage) {
    purge(&stage.app.db, &stage.app.config, stage.app.clock.now(), |_, _| {}).await.expect("the purge works");
}

/// The same token, met by the server as it stands now.
fn again(stage: &Stage, before: &Actor) -> Actor {
    let actor = stage.anon();
    actor.set_token(before.token().as_deref());
    actor
}

// The list.

#[tokio::test]
async fn the_list_has_the_current_session_first_and_then_the_most_recently_active() {
    let stage = Stage::new().await;
    let first = stage.sign_up("ana").await;
    let mut others = Vec::new();
    for _ in 0..3 {
        stage.clock.advance(SECOND);
        others.push(stage.sign_in("ana").await);
    }
    for n in [1, 0, 2] {
        stage.clock.advance(SECOND);
        others[n].get("/check").await.is(204);
    }
    stage.clock.advance(SECOND);
    let (a, b, c, d) = (id_of(&first).await, id_of(&others[2]).await, id_of(&others[0]).await, id_of(&others[1]).await);
    assert_eq!(ids_of(&passive(&first)).await, [a.clone(), b.clone(), c.clone(), d.clone()]);
    assert_eq!(ids_of(&passive(&others[1])).await, [d, b, c, a]);
}

#[tokio::test]
async fn exactly_one_session_of_the_list_is_the_current_one() {
    let stage = Stage::new().await;
    let laptop = stage.sign_up("ana").await;
    stage.sign_in("ana").await;
    stage.sign_in("ana").await;
    let current: Vec<bool> = list_of(&laptop).await.iter().map(|session| session["current"] == true).collect();
    assert_eq!(current, [true, false, false]);
}

#[tokio::test]
async fn a_session_is_shown_with_the_fields_of_the_contract() {
    let stage = Stage::new().await;
    let phone = stage.anon().with_agent(IPHONE).from_ip("203.0.113.7");
    phone.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    stage.clock.advance(SECOND);
    let list = list_of(&phone).await;
    let id = text(&list[0]["id"]);
    assert_eq!(
        list[0],
        json!({
            "id": id, "current": true, "device_name": "Safari on iPhone", "device_type": "mobile", "ip": "203.0.113.7", "user_agent": IPHONE,
            "created_at": "2026-11-23T06:36:08.123Z", "last_active_at": "2026-11-23T06:36:09.123Z", "idle_expires_at": "2026-11-23T07:06:09.123Z",
            "expires_at": "2026-11-24T06:36:08.123Z", "authenticated_at": "2026-11-23T06:36:08.123Z", "auth_methods": ["password"],
            "remember": false, "new_ip": false, "new_device": false
        })
    );
    assert_eq!(phone.get("/me").await.is(200).json()["session"], list[0]);
}

#[tokio::test]
async fn each_session_is_named_by_its_own_device() {
    let stage = Stage::new().await;
    let laptop = stage.sign_up("ana").await;
    for agent in [IPHONE, "curl/8.5.0", "zzz"] {
        stage.clock.advance(SECOND);
        stage.anon().with_agent(agent).log_in("ana").await.is(200);
    }
    let list = list_of(&laptop).await;
    let names: Vec<(String, String)> = list.iter().map(|session| (text(&session["device_name"]), text(&session["user_agent"]))).collect();
    assert_eq!(names[0], ("Chrome on macOS".into(), CHROME.into()));
    assert_eq!(names[2].1, "curl/8.5.0");
    assert_eq!(names[3], ("Safari on iPhone".into(), IPHONE.into()));
    for session in list {
        assert!(["desktop", "mobile", "tablet", "bot", "other"].contains(&session["device_type"].as_str().expect("a type")));
    }
}

#[tokio::test]
async fn a_user_agent_is_cut_at_512_characters_and_an_odd_one_is_an_unknown_device() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let odd = stage.anon().with_agent(&"?".repeat(600));
    let session = odd.log_in("ana").await.is(200).json()["session"].clone();
    assert_eq!(session["user_agent"], "?".repeat(512));
    assert_eq!(session["device_name"], "Unknown device");
    assert_eq!(session["device_type"], "other");
}

#[tokio::test]
async fn the_list_holds_live_sessions_only() {
    let stage = Stage::new().await;
    let idle = stage.sign_up("ana").await;
    let idle_id = id_of(&idle).await;
    stage.clock.advance(20 * MINUTE);
    let (laptop, revoked, logged_out, replaced) =
        (stage.sign_in("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await);
    let keeps = replaced.copy();
    laptop.delete(&format!("/me/sessions/{}", id_of(&revoked).await)).await.is(204);
    logged_out.poke("/logout").await.is(204);
    replaced.log_in("ana").await.is(200);
    assert_eq!(ids_of(&laptop).await.len(), 3);
    stage.clock.advance(10 * MINUTE + TICK);
    // Nobody has come back with its token, but it is past its deadline.
    let listed = ids_of(&laptop).await;
    assert!(!listed.contains(&idle_id));
    assert_eq!(listed.len(), 2);
    keeps.get("/me").await.is_refused(401, "session_replaced");
}

#[tokio::test]
async fn the_list_holds_ones_own_sessions_only() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    stage.sign_in("ben").await;
    assert_eq!(ids_of(&ana).await, [id_of(&ana).await]);
    assert_eq!(ids_of(&ben).await.len(), 2);
}

/// IDOR-03: no answer holds a token, or what a token hashes to, and an id is no token.
#[tokio::test]
async fn no_answer_holds_a_secret() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    let token = admin.token().expect("a token");
    let hash = Sha256::digest(URL_SAFE_NO_PAD.decode(&token).expect("base64url"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let secrets = [token, hex, URL_SAFE_NO_PAD.encode(hash), STANDARD.encode(hash), admin.device_token().expect("a device"), "$argon2".into()];
    let own = text(&admin.get("/me").await.json()["user"]["id"]);
    for (name, path, _) in CONTRACT.into_iter().filter(|(name, _, _)| *name == "GET") {
        let answer = bare(&admin, name, &path.replace("{id}", &own)).await;
        let whole = format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body));
        assert!(secrets.iter().all(|secret| !whole.contains(secret)), "{path}: {whole}");
    }
    let thief = stage.anon();
    thief.set_token(Some(&id_of(&admin).await));
    thief.get("/me").await.is_refused(401, "unauthenticated");
}

// Ending one.

#[tokio::test]
async fn a_user_ends_one_of_their_sessions_and_only_that() {
    let stage = Stage::new().await;
    let (laptop, phone, tablet) = (stage.sign_up("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await);
    let answer = laptop.delete(&format!("/me/sessions/{}", id_of(&phone).await)).await.is(204);
    assert!(answer.body.is_empty() && answer.set_cookies().is_empty());
    phone.get("/me").await.is_refused(401, "session_revoked");
    laptop.get("/me").await.is(200);
    tablet.get("/me").await.is(200);
}

#[tokio::test]
async fn ending_ones_current_session_is_a_logout() {
    let stage = Stage::with(&[("CLEAR_SITE_DATA", "storage")]).await;
    let ana = stage.sign_up("ana").await;
    let thief = ana.copy();
    let answer = ana.delete(&format!("/me/sessions/{}", id_of(&ana).await)).await.is(204);
    assert!(answer.clears_session());
    assert_eq!(answer.header("clear-site-data"), Some("\"storage\""));
    assert_eq!(ana.token(), None);
    thief.get("/me").await.is_refused(401, "session_logged_out");
    ana.log_in("ana").await.is(200);
    assert!(kinds_of(&ana).await.contains(&"signed_out".to_string()));
}

/// IDOR: what is somebody else's, ended, timed out or unknown is told apart by nothing, and nothing happens.
#[tokio::test]
async fn an_id_that_is_not_of_a_live_session_of_ones_own_is_not_found_whatever_it_is() {
    let stage = Stage::new().await;
    let timed_out = id_of(&stage.sign_up("ana").await).await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    let ben = stage.sign_up("ben").await;
    let ana = stage.sign_in("ana").await;
    let (revoked, logged_out) = (stage.sign_in("ana").await, stage.sign_in("ana").await);
    let (revoked_id, logged_out_id) = (id_of(&revoked).await, id_of(&logged_out).await);
    ana.delete(&format!("/me/sessions/{revoked_id}")).await.is(204);
    logged_out.poke("/logout").await.is(204);
    let bens_own_id = text(&ben.get("/me").await.json()["user"]["id"]);

    let before = stage.count("SELECT count(*) FROM events");
    let mut answers = Vec::new();
    for id in [id_of(&ben).await, timed_out, revoked_id, logged_out_id, bens_own_id, NOBODYS_ID.into(), "nonsense".into()] {
        let mut answer = ana.delete(&format!("/me/sessions/{id}")).await.is_refused(404, "not_found");
        answer.headers.remove("x-request-id");
        answers.push((answer.status, answer.headers, answer.body));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(stage.count("SELECT count(*) FROM events"), before);
    ben.get("/me").await.is(200);
}

#[tokio::test]
async fn ending_a_session_twice_succeeds_once() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let path = format!("/me/sessions/{}", id_of(&phone).await);
    laptop.delete(&path).await.is(204);
    laptop.delete(&path).await.is_refused(404, "not_found");
    assert_eq!(kinds_of(&laptop).await.iter().filter(|kind| *kind == "session_revoked").count(), 1);
}

#[tokio::test]
async fn a_revoked_session_ends_no_other() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let (laptop_id, phone_id) = (id_of(&laptop).await, id_of(&phone).await);
    laptop.delete(&format!("/me/sessions/{phone_id}")).await.is(204);
    phone.delete(&format!("/me/sessions/{laptop_id}")).await.is_refused(401, "session_revoked");
    phone.delete("/me/sessions").await.is_refused(401, "session_revoked");
    phone.delete("/me/sessions?include_current=true").await.is_refused(401, "session_revoked");
    laptop.get("/me").await.is(200);
}

// Ending the others.

#[tokio::test]
async fn signing_out_everywhere_else_spares_the_current_session() {
    let stage = Stage::new().await;
    let (laptop, phone, tablet, ben) = (stage.sign_up("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await, stage.sign_up("ben").await);
    let answer = laptop.delete("/me/sessions").await.is(200);
    assert_eq!(answer.json(), json!({"signed_out": 2}));
    assert!(answer.set_cookies().is_empty());
    phone.get("/me").await.is_refused(401, "session_revoked");
    tablet.get("/me").await.is_refused(401, "session_revoked");
    laptop.get("/me").await.is(200);
    ben.get("/me").await.is(200);
    assert_eq!(laptop.delete("/me/sessions?include_current=false").await.is(200).json(), json!({"signed_out": 0}));
}

#[tokio::test]
async fn signing_out_everywhere_counts_the_current_session_which_has_logged_out() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let thief = laptop.copy();
    let answer = laptop.delete("/me/sessions?include_current=true").await.is(200);
    assert_eq!(answer.json(), json!({"signed_out": 2}));
    assert!(answer.clears_session());
    thief.get("/me").await.is_refused(401, "session_logged_out");
    phone.get("/me").await.is_refused(401, "session_revoked");
}

#[tokio::test]
async fn only_live_sessions_count_as_signed_out() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    let (laptop, logged_out, _live) = (stage.sign_in("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await);
    logged_out.poke("/logout").await.is(204);
    assert_eq!(laptop.delete("/me/sessions").await.is(200).json()["signed_out"], 1);
}

#[tokio::test]
async fn an_odd_include_current_is_refused_and_ends_nothing() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    for query in ["include_current=1", "include_current=", "include_current=True", "include_current=true&include_current=false", "included=true"] {
        laptop.delete(&format!("/me/sessions?{query}")).await.is_refused(422, "validation_failed");
    }
    phone.get("/me").await.is(200);
}

#[tokio::test]
async fn each_ending_is_recorded() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let phone = stage.sign_in("ana").await;
    let phone_id = id_of(&phone).await;
    ana.delete(&format!("/me/sessions/{phone_id}")).await.is(204);
    let newest = events_of(&ana).await[0].clone();
    assert_eq!((text(&newest["kind"]), text(&newest["session_id"])), ("session_revoked".into(), phone_id));

    stage.sign_in("ana").await;
    stage.sign_in("ana").await;
    ana.delete("/me/sessions").await.is(200);
    let newest = events_of(&ana).await[0].clone();
    assert_eq!(newest["kind"], "sessions_revoked");
    assert_eq!(newest["detail"]["count"], 2);

    let gone = id_of(&ana).await;
    ana.poke("/logout").await.is(204);
    ana.log_in("ana").await.is(200);
    let out = events_of(&ana).await.into_iter().find(|event| event["kind"] == "signed_out").expect("an event");
    assert_eq!(text(&out["session_id"]), gone);
}

// Dead with the next request.

/// REV-01.
#[tokio::test]
async fn a_copied_cookie_is_dead_after_the_logout() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let thief = ana.copy();
    for _ in 0..20 {
        thief.get("/me").await.is(200);
    }
    let token = ana.token();
    assert!(ana.poke("/logout").await.is(204).clears_session());
    for (name, path, needs) in CONTRACT {
        if needs != Needs::Nobody {
            bare(&thief, name, &filled(path)).await.is_refused(401, "session_logged_out");
        }
    }
    assert!(!thief.poke("/logout").await.is(204).clears_session());
    thief.set_token(token.as_deref());
    stage.crash().await;
    again(&stage, &thief).get("/me").await.is_refused(401, "session_logged_out");
}

/// REV-03: the first request after the revocation's answer is refused, on every route, also when memory was warm.
#[tokio::test]
async fn a_revocation_counts_with_the_next_request_on_every_route() {
    let stage = Stage::new().await;
    let laptop = stage.sign_up("ana").await;
    for (name, path, needs) in CONTRACT {
        if needs == Needs::Nobody {
            continue;
        }
        let phone = stage.sign_in("ana").await;
        for _ in 0..5 {
            phone.get("/me").await.is(200);
            phone.get("/check").await.is(204);
        }
        laptop.delete(&format!("/me/sessions/{}", id_of(&phone).await)).await.is(204);
        bare(&phone, name, &filled(path)).await.is_refused(401, "session_revoked");
    }
}

/// REV-03.
#[tokio::test]
async fn two_hundred_warm_requests_do_not_outlive_a_revocation() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    for _ in 0..100 {
        phone.get("/me").await.is(200);
        phone.get("/check").await.is(204);
    }
    laptop.delete("/me/sessions").await.is(200);
    phone.get("/check").await.is_refused(401, "session_revoked");
    phone.get("/me").await.is_refused(401, "session_revoked");
}

#[tokio::test]
async fn a_revoked_session_stays_dead_after_a_crash_and_after_a_restart() {
    let mut stage = Stage::new().await;
    let (laptop, phone, tablet) = (stage.sign_up("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await);
    stage.clock.advance(10 * MINUTE);
    phone.get("/me").await.is(200);
    laptop.delete(&format!("/me/sessions/{}", id_of(&phone).await)).await.is(204);
    tablet.poke("/logout").await.is(204);
    stage.crash().await;
    again(&stage, &phone).get("/check").await.is_refused(401, "session_revoked");
    stage.restart().await;
    again(&stage, &phone).get("/me").await.is_refused(401, "session_revoked");
    again(&stage, &laptop).get("/me").await.is(200);
}

#[tokio::test]
async fn the_reason_is_told_to_the_holder_of_the_token_alone() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let (token, id) = (phone.token().expect("a token"), id_of(&phone).await);
    laptop.delete(&format!("/me/sessions/{id}")).await.is(204);
    let first = if token.starts_with('A') { "B" } else { "A" };
    let near = format!("{first}{}", &token[1..]);
    for invented in [near.as_str(), id.as_str(), &token[..42], &format!("{token}="), &token.to_lowercase()] {
        let stranger = stage.anon();
        stranger.set_token(Some(invented));
        stranger.get("/me").await.is_refused(401, "unauthenticated");
    }
    // A second cookie beside it makes it nobody's.
    stage.anon().with_header("cookie", &format!("holdfast={token}; holdfast=x")).get("/me").await.is_refused(401, "unauthenticated");
    phone.get("/me").await.is_refused(401, "session_revoked");
}

// At most so many.

#[tokio::test]
async fn the_session_idle_longest_makes_room_for_one_too_many() {
    let stage = Stage::with(&[("MAX_SESSIONS_PER_USER", "2")]).await;
    let (ben, first) = (stage.sign_up("ben").await, stage.sign_up("ana").await);
    stage.clock.advance(MINUTE);
    let second = stage.sign_in("ana").await;
    stage.clock.advance(MINUTE);
    // Older, but used since: only memory knows.
    first.get("/check").await.is(204);
    stage.clock.advance(MINUTE);
    let third = stage.sign_in("ana").await;
    second.get("/me").await.is_refused(401, "session_replaced");
    first.get("/me").await.is(200);
    assert_eq!(list_of(&third).await.len(), 2);
    ben.get("/me").await.is(200);
}

#[tokio::test]
async fn a_dead_session_takes_no_place() {
    let stage = Stage::with(&[("MAX_SESSIONS_PER_USER", "2")]).await;
    let dead = stage.sign_up("ana").await;
    stage.clock.advance(20 * MINUTE);
    let live = stage.sign_in("ana").await;
    stage.clock.advance(10 * MINUTE + TICK);
    let newest = stage.sign_in("ana").await;
    live.get("/me").await.is(200);
    newest.get("/me").await.is(200);
    dead.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_lowered_limit_counts_with_the_next_sign_in() {
    let mut stage = Stage::new().await;
    let mut all = vec![stage.sign_up("ana").await];
    for _ in 0..3 {
        stage.clock.advance(SECOND);
        all.push(stage.sign_in("ana").await);
    }
    stage.restart_with(&[("MAX_SESSIONS_PER_USER", "2")]).await;
    stage.clock.advance(SECOND);
    let newest = stage.sign_in("ana").await;
    for gone in &all[..3] {
        again(&stage, gone).get("/me").await.is_refused(401, "session_replaced");
    }
    assert_eq!(list_of(&newest).await.len(), 2);
}

#[tokio::test]
async fn a_hundred_sessions_are_allowed_by_default_and_no_more() {
    let stage = Stage::new().await;
    let first = stage.sign_up("ana").await;
    for _ in 0..99 {
        stage.clock.advance(TICK);
        stage.sign_in("ana").await;
    }
    assert_eq!(list_of(&passive(&first)).await.len(), 100);
    stage.clock.advance(TICK);
    let newest = stage.sign_in("ana").await;
    first.get("/me").await.is_refused(401, "session_replaced");
    assert_eq!(list_of(&newest).await.len(), 100);
}

// What is kept, and for how long.

#[tokio::test]
async fn an_ended_session_is_kept_for_its_retention_and_then_its_token_is_unknown() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let thief = laptop.copy();
    laptop.delete("/me/sessions").await.is(200);
    laptop.poke("/logout").await.is(204);
    stage.clock.advance(30 * DAY);
    purge_now(&stage).await;
    phone.get("/me").await.is_refused(401, "session_revoked");
    thief.get("/me").await.is_refused(401, "session_logged_out");
    stage.clock.advance(TICK);
    purge_now(&stage).await;
    phone.get("/me").await.is_refused(401, "unauthenticated");
    thief.get("/me").await.is_refused(401, "unauthenticated");
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 0);
}

#[tokio::test]
async fn the_retention_of_ended_sessions_is_a_setting() {
    let stage = Stage::with(&[("ENDED_SESSION_RETENTION", "1h")]).await;
    let ana = stage.sign_up("ana").await;
    let thief = ana.copy();
    ana.poke("/logout").await.is(204);
    stage.clock.advance(60 * MINUTE);
    purge_now(&stage).await;
    thief.get("/me").await.is_refused(401, "session_logged_out");
    stage.clock.advance(TICK);
    purge_now(&stage).await;
    thief.get("/me").await.is_refused(401, "unauthenticated");
}

#[tokio::test]
async fn a_session_that_nobody_came_back_to_goes_after_its_deadline_and_the_retention() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(31 * DAY);
    purge_now(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 1);
    stage.clock.advance(TICK);
    purge_now(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 0);
    ana.get("/me").await.is_refused(401, "unauthenticated");
}

#[tokio::test]
async fn the_purge_takes_no_live_session() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none"), ("ABSOLUTE_TIMEOUT", "400d")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(400 * DAY);
    purge_now(&stage).await;
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn known_addresses_are_forgotten_after_their_retention_and_browsers_when_their_cookie_dies() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (ips, devices) = ("SELECT count(*) FROM known_ips", "SELECT count(*) FROM known_devices");
    stage.clock.advance(180 * DAY);
    purge_now(&stage).await;
    assert_eq!((stage.count(ips), stage.count(devices)), (1, 1));
    let session = ana.log_in("ana").await.is(200).json()["session"].clone();
    assert_eq!((&session["new_ip"], &session["new_device"]), (&json!(false), &json!(false)));

    stage.clock.advance(180 * DAY + TICK);
    purge_now(&stage).await;
    assert_eq!((stage.count(ips), stage.count(devices)), (0, 1));
    let issued = ana.device_token();
    let session = ana.log_in("ana").await.is(200).json()["session"].clone();
    assert_eq!((&session["new_ip"], &session["new_device"]), (&json!(true), &json!(true)));
    assert_eq!(ana.device_token(), issued, "a cookie that we issued stays");

    stage.clock.advance(400 * DAY + TICK);
    purge_now(&stage).await;
    assert_eq!((stage.count(ips), stage.count(devices)), (0, 0));
}

#[tokio::test]
async fn a_known_address_is_forgotten_on_time_whether_or_not_the_purge_has_run() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(180 * DAY + TICK);
    assert_eq!(ana.log_in("ana").await.is(200).json()["session"]["new_ip"], true);
}

#[tokio::test]
async fn events_are_kept_for_their_retention_and_then_go() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(365 * DAY);
    purge_now(&stage).await;
    ana.log_in("ana").await.is(200);
    assert!(kinds_of(&ana).await.contains(&"signed_up".to_string()));
    stage.clock.advance(TICK);
    purge_now(&stage).await;
    let left = kinds_of(&ana).await;
    assert!(!left.contains(&"signed_up".to_string()) && left.contains(&"signed_in".to_string()), "{left:?}");
}

#[tokio::test]
async fn letters_and_retired_tokens_do_not_pile_up() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.change_password(&password_of("ana"), "quite another password").await.is(200);
    stage.anon().from_ip("203.0.113.9").post("/login", json!({"email": email_of("ana"), "password": "quite another password"})).await.is(200);
    stage.letters().await;
    let (letters, links) = ("SELECT count(*) FROM outbox", "SELECT count(*) FROM letter_tokens");
    let (letters_before, links_before) = (stage.count(letters), stage.count(links));
    assert!(letters_before >= 2 && links_before >= 1);
    // Each is there to the end of its time, and gone after it.
    stage.clock.advance(2 * DAY);
    purge_now(&stage).await;
    assert_eq!((stage.count(letters), stage.count(links)), (letters_before, links_before));
    stage.clock.advance(TICK);
    purge_now(&stage).await;
    assert_eq!((stage.count(letters), stage.count(links)), (0, links_before));
    stage.clock.advance(5 * DAY);
    purge_now(&stage).await;
    assert_eq!(stage.count(links), 0);
    assert!(stage.count("SELECT count(*) FROM retired_tokens") >= 1);
    stage.clock.advance(32 * DAY);
    purge_now(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM retired_tokens"), 0);
}

#[tokio::test]
async fn the_purge_works_through_more_rows_than_one_chunk() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..250 {
        ana.log_in("ana").await.is(200);
    }
    stage.clock.advance(400 * DAY);
    purge_now(&stage).await;
    assert_eq!(stage.count("SELECT (SELECT count(*) FROM device_sessions) + (SELECT count(*) FROM events)"), 0);
}

// The activity.

#[tokio::test]
async fn the_activity_shows_ones_own_events_newest_first() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    stage.clock.advance(MINUTE);
    let failed = stage.anon().with_agent(IPHONE).from_ip("203.0.113.9");
    failed.post("/login", json!({"email": email_of("ana"), "password": "wrong"})).await.is_refused(401, "invalid_credentials");
    stage.clock.advance(MINUTE);
    stage.sign_in("ana").await;

    let events = events_of(&ana).await;
    let times: Vec<Timestamp> = events.iter().map(|event| moment(&event["at"])).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    assert_eq!(*times.last().expect("an event"), START);
    let kinds: BTreeSet<String> = events.iter().map(|event| text(&event["kind"])).collect();
    assert!(["signed_up", "signed_in", "sign_in_failed"].iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
    let failed = events.iter().find(|event| event["kind"] == "sign_in_failed").expect("an event");
    assert_eq!((text(&failed["ip"]), text(&failed["device_name"])), ("203.0.113.9".into(), "Safari on iPhone".into()));
    assert!(events_of(&ben).await.iter().all(|event| event["kind"] != "sign_in_failed"));
}

#[tokio::test]
async fn an_event_has_the_fields_and_one_of_the_kinds_of_the_contract() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.anon().from_ip("203.0.113.9").log_in("ana").await.is(200);
    ana.delete("/me/sessions").await.is(200);
    ana.change_password(&password_of("ana"), "quite another password").await.is(200);
    let events = events_of(&ana).await;
    assert!(events.len() >= 6);
    for event in events {
        let fields: BTreeSet<&str> = event.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(fields, BTreeSet::from(["id", "at", "kind", "ip", "device_name", "session_id", "detail"]));
        assert!(KINDS.contains(&event["kind"].as_str().expect("a kind")), "{event}");
    }
}

#[tokio::test]
async fn the_activity_is_read_page_by_page_without_gap_or_repetition() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..6 {
        ana.log_in("ana").await.is(200);
    }
    let all: Vec<String> = events_of(&ana).await.iter().map(|event| text(&event["id"])).collect();
    for limit in [1, 3, all.len() - 1, all.len(), all.len() + 1] {
        let (mut read, mut query) = (Vec::new(), format!("limit={limit}"));
        loop {
            let page = ana.get(&format!("/me/activity?{query}")).await.is(200).json();
            let events = page["events"].as_array().expect("a list");
            assert!(events.len() <= limit);
            read.extend(events.iter().map(|event| text(&event["id"])));
            match page["next"].as_str() {
                Some(next) => query = format!("limit={limit}&before={next}"),
                None => break,
            }
        }
        assert_eq!(read, all, "{limit}");
    }
}

#[tokio::test]
async fn a_page_of_activity_has_fifty_events_unless_asked_otherwise() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..60 {
        ana.log_in("ana").await.is(200);
    }
    let page = ana.get("/me/activity").await.is(200).json();
    assert_eq!(page["events"].as_array().expect("a list").len(), 50);
    assert!(page["next"].is_string());
}

/// PAGE-02.
#[tokio::test]
async fn a_limit_out_of_range_is_refused() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for limit in ["0", "-1", "101", "1000000000", "99999999999999999999", "a", "", "1.5", "0x10", "%2B5", "1e1"] {
        let answer = ana.get(&format!("/me/activity?limit={limit}")).await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), ["limit:invalid"], "{limit}");
    }
    for query in ["sort=at", "offset=1", "user_id=x", "limit=5&limit=6"] {
        ana.get(&format!("/me/activity?{query}")).await.is_refused(422, "validation_failed");
    }
    ana.get("/me/activity?limit=1").await.is(200);
    ana.get("/me/activity?limit=100").await.is(200);
}

/// PAGE-01: a cursor is only a place; whose list it is says the session.
#[tokio::test]
async fn an_odd_cursor_is_refused_and_a_foreign_one_shows_ones_own_events_only() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let long = "1".repeat(2000);
    for cursor in ["", "1", "-1", "'", "%27%20OR%201=1--", "%7B%22id%22:1%7D", "null", "01938f6e6b7a7c3c8a560f0c6f6f7a11", long.as_str()] {
        let answer = ana.get(&format!("/me/activity?before={cursor}")).await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), ["before:invalid"], "{cursor}");
    }
    let bens_newest = text(&events_of(&ben).await[0]["id"]);
    let bens: BTreeSet<String> = events_of(&ben).await.iter().map(|event| text(&event["id"])).collect();
    let page = ana.get(&format!("/me/activity?before={bens_newest}")).await.is(200).json();
    let read = page["events"].as_array().expect("a list");
    assert!(!read.is_empty() && read.iter().all(|event| !bens.contains(event["id"].as_str().expect("an id"))));
}

// The question of reverse proxies.

#[tokio::test]
async fn a_proxy_is_told_who_calls() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let me = ana.get("/me").await.is(200).json();
    let answer = ana.get("/check").await.is(204);
    assert!(answer.body.is_empty());
    assert_eq!(answer.header("x-holdfast-user"), me["user"]["id"].as_str());
    assert_eq!(answer.header("x-holdfast-session"), me["session"]["id"].as_str());
    assert_eq!(answer.header("x-holdfast-role"), Some("user"));
    let email = percent_encoding::percent_decode_str(answer.header("x-holdfast-email").expect("an e-mail")).decode_utf8_lossy().into_owned();
    assert_eq!(email, "ana@example.com");
    assert_eq!(answer.header("x-holdfast-email-verified"), Some("false"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.set_cookies().is_empty());
}

/// FWD-05: whatever an address holds, the header is one value of plain ASCII that means exactly that address.
#[tokio::test]
async fn an_address_outside_ascii_is_percent_encoded_for_the_proxy() {
    let stage = Stage::new().await;
    for email in ["zo\u{eb}@example.com", "\u{540d}@example.com", "\u{1f680}@example.com", "100%41@example.com", "a+b=c@example.com", "o'brien@example.com"] {
        let actor = stage.anon();
        let signed_up = actor.post("/signup", json!({"email": email, "password": password_of("ana")})).await.is(201).json();
        assert_eq!(signed_up["user"]["email"], email);
        let answer = actor.get("/check").await.is(204);
        let header = answer.header("x-holdfast-email").unwrap_or_else(|| panic!("no header for {email}")).to_string();
        assert!(header.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','), "{header}");
        assert_eq!(percent_encoding::percent_decode_str(&header).decode_utf8().expect("UTF-8"), email);
        assert_eq!(answer.headers.get_all("x-holdfast-email").iter().count(), 1);
    }
}

/// FWD-05: a name is told to nobody here, and what would split a header is no name.
#[tokio::test]
async fn a_name_adds_no_header_to_the_check() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.patch("/me", json!({"name": "a\r\nX-Holdfast-Role: admin"})).await.is_refused(422, "validation_failed");
    ana.patch("/me", json!({"name": "x,admin \u{540d} \u{1f680}"})).await.is(200);
    let answer = ana.get("/check").await.is(204);
    assert_eq!(answer.header("x-holdfast-role"), Some("user"));
    let ours: BTreeSet<&str> = answer.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-holdfast")).collect();
    assert_eq!(ours.len(), 5, "{ours:?}");
}

#[tokio::test]
async fn headers_that_a_client_invents_do_not_come_back_from_the_check() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.with_header("x-holdfast-role", "admin").with_header("x-holdfast-user", NOBODYS_ID);
    let answer = ana.get("/check").await.is(204);
    assert_eq!(answer.header("x-holdfast-role"), Some("user"));
    assert_ne!(answer.header("x-holdfast-user"), Some(NOBODYS_ID));
    let anon = stage.anon().with_header("x-holdfast-user", NOBODYS_ID);
    let refused = anon.get("/check").await.is_refused(401, "unauthenticated");
    assert_eq!(refused.header("x-holdfast-user"), None);
}

/// FWD-06: many callers, and each answer is the caller's own.
#[tokio::test]
async fn answers_of_the_check_are_never_mixed_up() {
    let stage = Stage::new().await;
    let mut actors = Vec::new();
    for n in 0..10 {
        let actor = stage.sign_up(&format!("user{n}")).await;
        let id = text(&actor.get("/me").await.json()["user"]["id"]);
        actors.push((actor, id));
    }
    let mut asked = Vec::new();
    for n in 0..500 {
        let (actor, id) = actors[n % 10].clone();
        asked.push(tokio::spawn(async move { actor.get("/check").await.is(204).header("x-holdfast-user") == Some(id.as_str()) }));
    }
    for one in asked {
        assert!(one.await.expect("an answer"));
    }
}

// Writes of others.

fn blob(id: &str) -> String {
    format!("x'{}'", id.replace('-', ""))
}

#[tokio::test]
async fn what_another_process_ends_is_refused_with_the_next_request_and_the_others_keep_their_last_active() {
    let stage = Stage::new().await;
    let (laptop, phone, tablet) = (stage.sign_up("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await);
    stage.clock.advance(Duration::from_millis(10_123));
    phone.get("/check").await.is(204);
    tablet.get("/check").await.is(204);
    stage.execute(&format!(
        "UPDATE device_sessions SET ended_at = {}, ended_reason = 'session_revoked' WHERE id = {}",
        stage.clock.now().0,
        blob(&id_of(&phone).await)
    ));
    stage.app.db.tend().await.expect("the foreign write is noticed");
    phone.get("/check").await.is_refused(401, "session_revoked");
    phone.get("/me").await.is_refused(401, "session_revoked");
    stage.clock.advance(SECOND);
    let other = list_of(&laptop).await.into_iter().find(|session| session["current"] == false).expect("the tablet");
    assert_eq!(moment(&other["last_active_at"]), Timestamp(START.0 + 10_123));
    tablet.get("/check").await.is(204);
}

#[tokio::test]
async fn a_foreign_write_does_not_set_the_idle_clock_of_anybody_back() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(20 * MINUTE);
    ana.get("/check").await.is(204);
    stage.execute("UPDATE users SET name = 'Ana'");
    stage.app.db.tend().await.expect("the foreign write is noticed");
    stage.clock.advance(IDLE_TIMEOUT);
    passive(&ana).get("/check").await.is(204);
    stage.clock.advance(TICK);
    ana.get("/check").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_session_that_another_process_deletes_is_unknown_with_the_next_request() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.get("/check").await.is(204);
    stage.execute("DELETE FROM device_sessions");
    stage.app.db.tend().await.expect("the foreign write is noticed");
    ana.get("/check").await.is_refused(401, "unauthenticated");
}

/// A row that says `disabled` opens nothing, even if somebody forgot to end its sessions.
#[tokio::test]
async fn a_session_of_a_disabled_account_opens_nothing_whoever_disabled_it() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.get("/check").await.is(204);
    stage.execute(&format!("UPDATE users SET disabled_at = {}", stage.clock.now().0));
    stage.app.db.tend().await.expect("the foreign write is noticed");
    ana.get("/check").await.is(401);
    ana.get("/me").await.is(401);
}
