//! A change of password: a new token for this session, the end of the others, and an alarm when a token that was rotated
//! away comes back from somebody who should not have it.

use std::time::Duration;

use serde_json::{Value, json};

use holdfast::clock::Timestamp;
use holdfast::db::Fault;
use holdfast::device_sessions::{Known, look_up};
use holdfast::id::SessionId;
use holdfast::live_sessions::Met;
use holdfast::purge::purge;
use holdfast::secret::Token;
use holdfast::session_security::note_use_of_successor;

use crate::stage::{ABSOLUTE_TIMEOUT, Actor, Answer, IDLE_TIMEOUT, IPHONE, START, Stage, TICK, email_of, password_of};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const NEW: &str = "quite another password";

/// A browser whose password change has gone through, and what it was before.
async fn rotated(actor: &Actor) -> (Actor, Answer) {
    let before = actor.copy();
    let answer = actor.change_password(&password_of("ana"), NEW).await.is(200);
    (before, answer)
}

async fn sign_in_with(stage: &Stage, password: &str) -> Answer {
    stage.anon().post("/login", json!({"email": email_of("ana"), "password": password})).await
}

fn session_cookie(answer: &Answer) -> Option<String> {
    answer.set_cookies().into_iter().find(|line| line.starts_with("holdfast="))
}

async fn user_id(actor: &Actor) -> String {
    actor.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string()
}

fn alarms(stage: &Stage) -> i64 {
    stage.count("SELECT count(*) FROM events WHERE kind = 'rotated_token_reused'")
}

fn letters(stage: &Stage, kind: &str) -> i64 {
    stage.count(&format!("SELECT count(*) FROM outbox WHERE kind = '{kind}'"))
}

/// FIX-02, REV-02: three devices.
#[tokio::test]
async fn a_change_of_password_gives_a_new_token_and_ends_everything_else() {
    let stage = Stage::new().await;
    let (laptop, phone, tablet, ben) = (stage.sign_up("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await, stage.sign_up("ben").await);
    for actor in [&laptop, &phone, &tablet] {
        actor.get("/check").await.is(204);
    }
    let (before, answer) = rotated(&laptop).await;
    assert_eq!(answer.json()["signed_out"], 2);
    assert_ne!(laptop.token(), before.token());
    laptop.get("/me").await.is(200);
    before.get("/me").await.is_refused(401, "session_rotated");
    before.get("/check").await.is_refused(401, "session_rotated");
    phone.get("/me").await.is_refused(401, "session_revoked");
    tablet.get("/check").await.is_refused(401, "session_revoked");
    ben.get("/me").await.is(200);
}

#[tokio::test]
async fn the_new_password_signs_in_and_the_old_one_does_not() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    rotated(&ana).await;
    sign_in_with(&stage, &password_of("ana")).await.is_refused(401, "invalid_credentials");
    sign_in_with(&stage, NEW).await.is(200);
}

#[tokio::test]
async fn the_answer_shows_the_user_and_the_session_that_goes_on() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (_, answer) = rotated(&ana).await;
    let (answer, me) = (answer.json(), ana.clone().with_header("x-session-passive", "1").get("/me").await.is(200).json());
    assert_eq!((&answer["user"], &answer["session"]), (&me["user"], &me["session"]));
    assert_eq!(answer["session"]["current"], true);
    assert_eq!(answer["signed_out"], 0);
}

#[tokio::test]
async fn the_session_keeps_its_id_device_and_deadline() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await.from_ip("203.0.113.5").with_agent(IPHONE);
    let before = ana.get("/me").await.is(200).json()["session"].clone();
    stage.clock.advance(20 * MINUTE);
    let (_, answer) = rotated(&ana).await;
    let after = answer.json()["session"].clone();
    for field in ["id", "created_at", "expires_at", "device_name", "device_type", "user_agent", "ip", "remember", "new_ip", "new_device"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let list = ana.get("/me/sessions").await.is(200).json();
    assert_eq!(list["sessions"].as_array().expect("a list").len(), 1);
}

#[tokio::test]
async fn rotation_gives_no_new_absolute_deadline() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(23 * HOUR);
    rotated(&ana).await;
    stage.clock.advance(ABSOLUTE_TIMEOUT - 23 * HOUR);
    ana.get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
}

#[tokio::test]
async fn the_idle_clock_runs_on_with_the_new_token() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(20 * MINUTE);
    let (_, answer) = rotated(&ana).await;
    let shown: jiff::Timestamp = answer.json()["session"]["last_active_at"].as_str().expect("a time").parse().expect("RFC 3339");
    assert_eq!(Timestamp(shown.as_millisecond()), START.plus(20 * MINUTE));
    stage.clock.advance(IDLE_TIMEOUT);
    ana.clone().with_header("x-session-passive", "1").get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// COOK-01.
#[tokio::test]
async fn the_new_cookie_of_a_remembered_session_lives_for_what_is_left_of_it() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let kept = stage.anon();
    kept.post("/login", json!({"email": email_of("ana"), "password": password_of("ana"), "remember": true})).await.is(200);
    stage.clock.advance(6 * DAY);
    kept.get("/me").await.is(200);
    stage.clock.advance(4 * DAY);
    let (_, answer) = rotated(&kept).await;
    let cookie = session_cookie(&answer).expect("a new cookie");
    let seconds = 20 * 86_400;
    assert!(cookie.ends_with(&format!("Max-Age={seconds}")) || cookie.contains(&format!("Max-Age={seconds};")), "{cookie}");
    assert_eq!(answer.json()["session"]["remember"], true);
}

#[tokio::test]
async fn the_new_cookie_of_another_session_is_for_the_browser_session() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (_, answer) = rotated(&ana).await;
    let cookie = session_cookie(&answer).expect("a new cookie");
    assert!(!cookie.contains("Max-Age") && !cookie.contains("Expires"), "{cookie}");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax") && cookie.contains("Path=/"), "{cookie}");
}

/// COOK-01.
#[tokio::test]
async fn over_https_the_new_cookie_is_host_only_and_secure() {
    let stage = Stage::with(&[("PUBLIC_URL", "https://auth.example.com")]).await;
    let ana = stage.sign_up("ana").await;
    let (before, answer) = rotated(&ana).await;
    let cookie = answer.set_cookies().into_iter().find(|line| line.starts_with("__Host-holdfast=")).expect("a new cookie");
    assert!(cookie.contains("Secure") && cookie.contains("HttpOnly") && cookie.contains("Path=/") && !cookie.contains("Domain"), "{cookie}");
    before.get("/me").await.is_refused(401, "session_rotated");
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn the_other_sessions_stay_when_asked() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let before = laptop.copy();
    let ask = json!({"current_password": password_of("ana"), "new_password": NEW, "sign_out_others": false});
    let answer = laptop.put("/me/password", ask).await.is(200);
    assert_eq!(answer.json()["signed_out"], 0);
    phone.get("/me").await.is(200);
    laptop.get("/me").await.is(200);
    before.get("/me").await.is_refused(401, "session_rotated");
}

#[tokio::test]
async fn only_live_sessions_are_counted_as_signed_out() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    let (laptop, _phone, gone) = (stage.sign_in("ana").await, stage.sign_in("ana").await, stage.sign_in("ana").await);
    gone.poke("/logout").await.is(204);
    let (_, answer) = rotated(&laptop).await;
    assert_eq!(answer.json()["signed_out"], 1);
}

#[tokio::test]
async fn a_wrong_current_password_is_refused_and_changes_nothing() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let before = laptop.copy();
    let answer = laptop.change_password("not the password", NEW).await.is_refused(403, "invalid_credentials");
    assert!(answer.set_cookies().is_empty());
    before.get("/me").await.is(200);
    phone.get("/me").await.is(200);
    sign_in_with(&stage, NEW).await.is_refused(401, "invalid_credentials");
    sign_in_with(&stage, &password_of("ana")).await.is(200);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind IN ('password_changed', 'sessions_revoked')"), 0);
}

#[tokio::test]
async fn a_weak_new_password_is_refused_before_the_current_one_is_looked_at() {
    let stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let long = "x".repeat(257);
    let weak =
        [("1234567", "too_short"), ("password", "too_common"), ("PassWord", "too_common"), ("ANA@example.com", "too_common"), (long.as_str(), "too_long")];
    for current in [password_of("ana"), "not the password".into()] {
        for (new, code) in weak {
            let answer = laptop.change_password(&current, new).await.is_refused(422, "validation_failed");
            assert_eq!(answer.faults(), [format!("new_password:{code}")]);
            assert!(answer.set_cookies().is_empty());
        }
    }
    laptop.get("/me").await.is(200);
    phone.get("/me").await.is(200);
    sign_in_with(&stage, &password_of("ana")).await.is(200);
}

#[tokio::test]
async fn a_new_password_is_counted_in_characters_after_composition() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    // Eight characters typed, four after composition.
    let answer = ana.change_password(&password_of("ana"), &"e\u{301}".repeat(4)).await.is_refused(422, "validation_failed");
    assert_eq!(answer.faults(), ["new_password:too_short"]);
    ana.change_password(&password_of("ana"), &"e\u{301}".repeat(256)).await.is(200);
    sign_in_with(&stage, &"\u{e9}".repeat(256)).await.is(200);
}

#[tokio::test]
async fn every_field_at_fault_is_named() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let answer = ana.put("/me/password", json!({"sign_out_others": "no", "email": "x"})).await.is_refused(422, "validation_failed");
    let mut faults = answer.faults();
    faults.sort();
    assert_eq!(faults, ["current_password:missing", "email:unknown", "new_password:missing", "sign_out_others:wrong_type"]);
}

#[tokio::test]
async fn a_change_of_password_is_recorded_and_the_user_is_told_once() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.sign_in("ana").await;
    rotated(&ana).await;
    let activity = ana.get("/me/activity").await.is(200).json();
    let kinds: Vec<&str> = activity["events"].as_array().expect("a list").iter().filter_map(|event| event["kind"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "password_changed").count(), 1, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "sessions_revoked").count(), 1, "{kinds:?}");
    assert_eq!(letters(&stage, "password_changed"), 1);
}

/// No answer, event or letter holds a password.
#[tokio::test]
async fn neither_password_is_kept_or_repeated() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (_, answer) = rotated(&ana).await;
    assert!(!String::from_utf8_lossy(&answer.body).contains(NEW));
    for password in [NEW.to_string(), password_of("ana")] {
        assert_eq!(stage.count(&format!("SELECT count(*) FROM events WHERE instr(detail, '{password}') > 0")), 0);
        assert_eq!(stage.count(&format!("SELECT count(*) FROM users WHERE instr(password_hash, '{password}') > 0")), 0);
    }
}

#[tokio::test]
async fn a_rotated_token_changes_no_password() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    before.change_password(NEW, "a third good password").await.is_refused(401, "session_rotated");
    before.delete("/me/sessions").await.is_refused(401, "session_rotated");
    before.patch("/me", json!({"name": "Eve"})).await.is_refused(401, "session_rotated");
    sign_in_with(&stage, NEW).await.is(200);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "");
}

/// ROT-01: what comes late for the old token must not wipe the new cookie.
#[tokio::test]
async fn a_late_refusal_for_the_old_token_touches_no_cookie() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    for _ in 0..2 {
        assert!(before.get("/me").await.is_refused(401, "session_rotated").set_cookies().is_empty());
        stage.clock.advance(2 * MINUTE);
        ana.get("/me").await.is(200);
    }
}

#[tokio::test]
async fn the_old_token_is_dead_and_the_new_one_lives_after_a_crash() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    stage.crash().await;
    let (old, new) = (stage.anon(), stage.anon());
    old.set_token(before.token().as_deref());
    new.set_token(ana.token().as_deref());
    old.get("/me").await.is_refused(401, "session_rotated");
    new.get("/me").await.is(200);
}

/// ROT-03 (a).
#[tokio::test]
async fn a_logout_with_the_new_token_leaves_neither_alive() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    let after = ana.copy();
    ana.poke("/logout").await.is(204);
    for path in ["/me", "/check"] {
        before.get(path).await.is(401);
        after.get(path).await.is_refused(401, "session_logged_out");
    }
}

/// ROT-03 (b).
#[tokio::test]
async fn a_revocation_from_elsewhere_leaves_neither_alive() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, answer) = rotated(&ana).await;
    let id = answer.json()["session"]["id"].as_str().expect("an id").to_string();
    let phone = stage.anon();
    phone.post("/login", json!({"email": email_of("ana"), "password": NEW})).await.is(200);
    phone.delete(&format!("/me/sessions/{id}")).await.is(204);
    for path in ["/me", "/check"] {
        before.get(path).await.is(401);
        ana.get(path).await.is_refused(401, "session_revoked");
    }
}

/// ROT-03 (c).
#[tokio::test]
async fn a_second_change_leaves_only_the_newest_token_alive() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (first, _) = rotated(&ana).await;
    let second = ana.copy();
    ana.change_password(NEW, "a third good password").await.is(200);
    for path in ["/me", "/check"] {
        first.get(path).await.is_refused(401, "session_rotated");
        second.get(path).await.is_refused(401, "session_rotated");
    }
    ana.get("/me").await.is(200);
}

/// ROT-03 (d).
#[tokio::test]
async fn disabling_the_account_leaves_neither_alive() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    let ana = stage.sign_up("ana").await;
    let id = user_id(&ana).await;
    let (before, _) = rotated(&ana).await;
    admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
    for path in ["/me", "/check"] {
        before.get(path).await.is(401);
        ana.get(path).await.is_refused(401, "session_revoked");
    }
}

/// A logout with the old token means the session that it once named.
#[tokio::test]
async fn a_logout_with_the_old_token_ends_the_session() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    before.poke("/logout").await.is(204);
    ana.get("/me").await.is_refused(401, "session_logged_out");
    assert!(!before.poke("/logout").await.is(204).clears_session());
}

/// A thief uses the old token: told from elsewhere, more than a minute later, after its successor was used.
#[tokio::test]
async fn a_rotated_token_that_comes_back_late_raises_an_alarm_and_the_successor_lives_on() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, answer) = rotated(&ana).await;
    stage.clock.advance(30 * SECOND);
    ana.get("/me").await.is(200);
    stage.clock.advance(30 * SECOND + TICK);
    let thief = before.from_ip("203.0.113.66").with_agent(IPHONE);
    thief.get("/check").await.is_refused(401, "session_rotated");

    let activity = ana.get("/me/activity").await.is(200).json();
    let alarm = activity["events"].as_array().expect("a list").iter().find(|event| event["kind"] == "rotated_token_reused").expect("an alarm").clone();
    assert_eq!(alarm["session_id"], answer.json()["session"]["id"]);
    assert_eq!((&alarm["ip"], &alarm["device_name"]), (&Value::from("203.0.113.66"), &Value::from("Safari on iPhone")));
    assert_eq!(letters(&stage, "rotated_token_reused"), 1);
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn a_rotated_token_that_comes_back_within_a_minute_raises_no_alarm() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    stage.clock.advance(SECOND);
    ana.get("/me").await.is(200);
    before.get("/me").await.is_refused(401, "session_rotated");
    stage.clock.advance(59 * SECOND);
    before.get("/me").await.is_refused(401, "session_rotated");
    assert_eq!(alarms(&stage), 0);
    stage.clock.advance(TICK);
    before.get("/me").await.is_refused(401, "session_rotated");
    assert_eq!(alarms(&stage), 1);
}

/// ROT-04: the answer with the new cookie may have been lost on its way.
#[tokio::test]
async fn a_rotated_token_raises_no_alarm_while_nobody_has_used_its_successor() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    for _ in 0..3 {
        stage.clock.advance(5 * MINUTE);
        before.get("/me").await.is_refused(401, "session_rotated");
    }
    assert_eq!(alarms(&stage), 0);
    ana.get("/me").await.is(200);
    before.get("/me").await.is_refused(401, "session_rotated");
    assert_eq!(alarms(&stage), 1);
}

/// A poll that does not wind the idle clock is a use of the token all the same.
#[tokio::test]
async fn a_passive_request_with_the_successor_counts_as_its_use() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    stage.clock.advance(10 * SECOND);
    ana.clone().with_header("x-session-passive", "1").get("/check").await.is(204);
    stage.clock.advance(MINUTE);
    before.get("/me").await.is_refused(401, "session_rotated");
    assert_eq!(alarms(&stage), 1);
}

#[tokio::test]
async fn the_alarm_is_raised_once_for_each_token() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (first, _) = rotated(&ana).await;
    let second = ana.copy();
    stage.clock.advance(SECOND);
    ana.change_password(NEW, "a third good password").await.is(200);
    stage.clock.advance(SECOND);
    ana.get("/me").await.is(200);
    stage.clock.advance(2 * MINUTE);
    for _ in 0..3 {
        first.get("/me").await.is_refused(401, "session_rotated");
        first.get("/check").await.is_refused(401, "session_rotated");
    }
    assert_eq!(alarms(&stage), 1);
    for _ in 0..3 {
        second.get("/me").await.is_refused(401, "session_rotated");
    }
    assert_eq!(alarms(&stage), 2);
    assert_eq!(letters(&stage, "rotated_token_reused"), 2);
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn the_alarm_is_raised_once_also_across_a_crash() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    stage.clock.advance(2 * MINUTE);
    ana.get("/me").await.is(200);
    before.get("/me").await.is_refused(401, "session_rotated");
    stage.crash().await;
    let old = stage.anon();
    old.set_token(before.token().as_deref());
    old.get("/me").await.is_refused(401, "session_rotated");
    assert_eq!(alarms(&stage), 1);
}

/// Somebody who changes their password all day piles up a bounded number of retired tokens: the newest.
#[tokio::test]
async fn the_newest_hundred_rotated_tokens_of_a_session_are_remembered() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let phone = stage.sign_in("ana").await;
    let phone_before = phone.copy();
    phone.put("/me/password", json!({"current_password": password_of("ana"), "new_password": password_of("ana"), "sign_out_others": false})).await.is(200);
    let mut before = Vec::new();
    for _ in 0..102 {
        before.push(ana.copy());
        stage.clock.advance(TICK);
        let same = json!({"current_password": password_of("ana"), "new_password": password_of("ana"), "sign_out_others": false});
        ana.put("/me/password", same).await.is(200);
    }
    assert_eq!(stage.count("SELECT count(*) FROM retired_tokens"), 101);
    for old in &before[..2] {
        old.get("/me").await.is_refused(401, "unauthenticated");
    }
    for old in [&before[2], &before[101], &phone_before] {
        old.get("/me").await.is_refused(401, "session_rotated");
    }
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn a_rotated_token_is_unknown_once_its_session_is_purged() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (before, _) = rotated(&ana).await;
    ana.poke("/logout").await.is(204);
    let purged = async || purge(&stage.app.db, &stage.app.config, stage.app.clock.now(), |_, _| {}).await.expect("the purge works");
    stage.clock.advance(30 * DAY);
    purged().await;
    before.get("/me").await.is_refused(401, "session_rotated");
    stage.clock.advance(TICK);
    purged().await;
    before.get("/me").await.is_refused(401, "unauthenticated");
}

/// A request with the middle token of three may be slower than the rotation that followed it.
#[tokio::test]
async fn a_late_note_that_a_token_was_used_says_nothing_of_its_successor() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let session = ana.get("/me").await.is(200).json()["session"]["id"].as_str().and_then(SessionId::parse).expect("an id");
    let (middle, _) = rotated(&ana).await;
    let note = async |actor: &Actor| {
        let token = Token::read(&actor.token().expect("a token")).expect("a token").hash();
        stage.app.db.write(move |tx| note_use_of_successor(tx, session, &token)).await.map_err(|fault: Fault| fault).expect("a note");
    };
    note(&middle).await;
    assert_eq!(stage.count("SELECT count(*) FROM retired_tokens WHERE successor_used = 1"), 0);
    note(&ana).await;
    assert_eq!(stage.count("SELECT count(*) FROM retired_tokens WHERE successor_used = 1"), 1);
}

/// Whoever rotated it may be a step behind the commit.
#[tokio::test]
async fn a_request_that_is_refused_with_a_rotated_token_makes_memory_forget_it() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = Token::read(&ana.token().expect("a token")).expect("a token").hash();
    let Known::Open(row, last_active) = stage.app.db.glance(move |tx| look_up(tx, &token)).await.expect("a row") else { panic!("it lives") };
    let (before, _) = rotated(&ana).await;
    let live = stage.app.db.live();
    let Met::Unknown(ticket) = live.meet(&token, stage.clock.now(), true) else { panic!("it is forgotten") };
    assert!(live.admit(ticket, *row, last_active));
    live.distrust();
    before.get("/me").await.is_refused(401, "session_rotated");
    assert_eq!(live.last_active(&token), None);
}
