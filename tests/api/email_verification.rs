//! The proof of an address: one link, once, and never by a click alone. What an unverified account may do, and when it goes.
//! An attacker opens accounts in the names of others, and hopes that they make them valid.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use holdfast::purge::Purged;

use crate::stage::{Stage, TICK, email_of, password_of, token_of};

const DAY: Duration = Duration::from_secs(24 * 3600);
const ANA: &str = "ana@example.com";

async fn verification(stage: &Stage) -> String {
    token_of(&stage.letter(ANA, "Confirm your e-mail").await)
}

async fn purge(stage: &Stage) -> Purged {
    holdfast::purge::purge(&stage.app.db, &stage.app.config, stage.app.clock.now(), |_, _| {}).await.expect("the purge works")
}

#[tokio::test]
async fn the_letter_of_the_sign_up_and_a_session_prove_the_address() {
    let stage = Stage::new().await;
    let (ana, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    for browser in [&ana, &phone] {
        assert_eq!(browser.get("/check").await.is(204).header("x-holdfast-email-verified"), Some("false"));
        browser.get("/check?verified=true").await.is_refused(403, "email_unverified");
        browser.get("/check?verified=false").await.is(204);
    }
    let token = verification(&stage).await;
    let answer = ana.post("/email/verify", json!({"token": token})).await.is(200);
    assert_eq!(answer.json()["user"]["email_verified"], true);
    for browser in [&ana, &phone] {
        assert_eq!(browser.get("/check?verified=true").await.is(204).header("x-holdfast-email-verified"), Some("true"));
    }
    // Single use.
    ana.post("/email/verify", json!({"token": token})).await.is_refused(400, "invalid_token");
}

#[tokio::test]
async fn a_verification_keeps_the_last_active_of_the_sessions() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = verification(&stage).await;
    stage.clock.advance(Duration::from_secs(50));
    ana.get("/me").await.is(200);
    ana.post("/email/verify", json!({"token": token})).await.is(200);
    stage.crash().await;
    assert_eq!(stage.count("SELECT max(last_active_at) - min(created_at) FROM device_sessions"), 50_000);
}

#[tokio::test]
async fn without_a_session_it_takes_the_password() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let ben = stage.sign_up("ben").await;
    let token = verification(&stage).await;
    stage.anon().post("/email/verify", json!({"token": token})).await.is_refused(403, "invalid_credentials");
    ben.post("/email/verify", json!({"token": token})).await.is_refused(403, "invalid_credentials");
    ben.post("/email/verify", json!({"token": token, "password": password_of("ben")})).await.is_refused(403, "invalid_credentials");
    let answer = stage.anon().post("/email/verify", json!({"token": token, "password": password_of("ana")})).await.is(200);
    assert!(answer.set_cookies().is_empty());
}

#[tokio::test]
async fn five_wrong_passwords_and_the_token_is_worth_nothing() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = verification(&stage).await;
    for _ in 0..5 {
        stage.anon().post("/email/verify", json!({"token": token, "password": "wrong password"})).await.is_refused(403, "invalid_credentials");
    }
    stage.anon().post("/email/verify", json!({"token": token, "password": password_of("ana")})).await.is_refused(400, "invalid_token");
    ana.post("/email/verify", json!({"token": token})).await.is_refused(400, "invalid_token");
}

#[tokio::test]
async fn parallel_guesses_are_five_at_most() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let token = verification(&stage).await;
    let mut runs = JoinSet::new();
    for _ in 0..20 {
        let (anon, token) = (stage.anon(), token.clone());
        runs.spawn(async move { anon.post("/email/verify", json!({"token": token, "password": "wrong password"})).await.status.as_u16() });
    }
    let answers = runs.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 403).count(), 5, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 400).count(), 15, "{answers:?}");
}

/// RACE-01.
#[tokio::test]
async fn of_parallel_uses_exactly_one_wins() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = verification(&stage).await;
    let mut runs = JoinSet::new();
    for _ in 0..20 {
        let (ana, token) = (ana.clone(), token.clone());
        runs.spawn(async move { ana.post("/email/verify", json!({"token": token})).await.status.as_u16() });
    }
    let answers = runs.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'email_verified'"), 1);
}

#[tokio::test]
async fn a_token_is_good_for_a_day_and_a_newer_letter_ends_it() {
    let stage = Stage::with(&[("ABSOLUTE_TIMEOUT", "30d"), ("IDLE_TIMEOUT", "none")]).await;
    let ana = stage.sign_up("ana").await;
    let first = verification(&stage).await;
    stage.clock.advance(DAY + TICK);
    ana.post("/email/verify", json!({"token": first})).await.is_refused(400, "invalid_token");
    ana.poke("/email/verification").await.is(202);
    let second = verification(&stage).await;
    ana.post("/email/verification", json!({"email": "ANA@example.com"})).await.is(202);
    let third = verification(&stage).await;
    ana.post("/email/verify", json!({"token": second})).await.is_refused(400, "invalid_token");
    stage.clock.advance(DAY);
    ana.post("/email/verify", json!({"token": third})).await.is(200);
}

/// ENUM-02: the same answer for every address, and letters only to whom they are due.
#[tokio::test]
async fn asking_again_tells_nobody_anything() {
    let stage = Stage::new().await;
    let (ana, admin) = (stage.sign_up("ana").await, stage.admin("root").await);
    ana.post("/email/verify", json!({"token": verification(&stage).await})).await.is(200);
    stage.sign_up("ben").await;
    let closed = stage.sign_up("eve").await.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();
    admin.poke(&format!("/admin/users/{closed}/disable")).await.is(200);
    let before = stage.letters().await.len();
    let bodies = [ANA, "ben@example.com", "eve@example.com", "nobody@example.com"].map(|email| json!({"email": email}));
    for body in bodies {
        let answer = stage.anon().post("/email/verification", body).await.is(202);
        assert!(answer.body.is_empty() && answer.set_cookies().is_empty());
    }
    stage.anon().poke("/email/verification").await.is(202);
    let letters = stage.letters().await.split_off(before);
    assert_eq!(letters.iter().map(|letter| letter.to.as_str()).collect::<Vec<_>>(), ["ben@example.com"]);
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_like_one_that_was_good() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let unknown = "A".repeat(43);
    for token in ["", "x", "é", unknown.as_str()] {
        ana.post("/email/verify", json!({"token": token})).await.is_refused(400, "invalid_token");
        ana.post("/password/reset", json!({"token": token, "new_password": "quite another password"})).await.is_refused(400, "invalid_token");
        ana.post("/email/change", json!({"token": token})).await.is_refused(400, "invalid_token");
        ana.post("/email/undo", json!({"token": token})).await.is_refused(400, "invalid_token");
    }
    assert_eq!(ana.post("/email/verify", json!({})).await.is_refused(422, "validation_failed").faults(), ["token:missing"]);
}

/// A token is bound to its purpose.
#[tokio::test]
async fn a_token_for_one_thing_does_no_other() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let verify = verification(&stage).await;
    ana.post("/password/forgot", json!({"email": ANA})).await.is(202);
    let reset = token_of(&stage.letter(ANA, "Choose").await);
    ana.post("/password/reset", json!({"token": verify, "new_password": "quite another password"})).await.is_refused(400, "invalid_token");
    for path in ["/email/change", "/email/undo"] {
        ana.post(path, json!({"token": verify})).await.is_refused(400, "invalid_token");
        ana.post(path, json!({"token": reset})).await.is_refused(400, "invalid_token");
    }
    ana.post("/email/verify", json!({"token": reset})).await.is_refused(400, "invalid_token");
    ana.submit(&format!("/security/session/{reset}"), &[]).await.is(400);
    ana.post("/email/verify", json!({"token": verify})).await.is(200);
    ana.post("/password/reset", json!({"token": reset, "new_password": "quite another password"})).await.is(204);
}

/// VER-02.
#[tokio::test]
async fn nothing_but_the_letter_makes_an_address_verified() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for field in ["email_verified", "verified", "emailVerifiedAt", "status"] {
        let mut body = json!({"email": "new@example.com", "current_password": password_of("ana")});
        body[field] = json!(true);
        ana.put("/me/email", body).await.is_refused(422, "validation_failed");
        ana.put(&format!("/me/email?{field}=true"), json!({"email": "new@example.com", "current_password": password_of("ana")})).await.is(422);
    }
    ana.get("/check?verified=true").await.is_refused(403, "email_unverified");
}

/// VER-04.
#[tokio::test]
async fn an_account_that_nobody_verifies_is_removed_when_its_letter_has_left() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.letters().await;
    stage.clock.advance(7 * DAY);
    purge(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
    stage.clock.advance(TICK);
    purge(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);
    stage.sign_up("ana").await;
}

/// DEL-03: whoever has the address next inherits nothing. The audit log keeps its own time.
#[tokio::test]
async fn a_removed_account_leaves_nothing_to_the_next_one_with_its_address() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let id = |me: Value| me["user"]["id"].as_str().expect("an id").to_string();
    let (first, copy) = (id(ana.get("/me").await.is(200).json()), ana.copy());
    stage.letters().await;
    ana.change_password(&password_of("ana"), "quite another password").await.is(200);
    stage.clock.advance(7 * DAY + TICK);
    let tables = ["device_sessions", "retired_tokens", "known_ips", "known_devices"];
    let rows = |table: &str| stage.count(&format!("SELECT count(*) FROM {table}"));
    assert!(tables.iter().all(|table| rows(table) > 0));
    purge(&stage).await;
    for table in ["users", "outbox", "letter_tokens"].iter().chain(&tables) {
        assert_eq!(rows(table), 0, "{table}");
    }
    copy.get("/me").await.is_refused(401, "unauthenticated");
    ana.get("/me").await.is_refused(401, "unauthenticated");
    let next = stage.sign_up("ana").await;
    assert_ne!(id(next.get("/me").await.is(200).json()), first);
    assert_eq!(next.get("/me/sessions").await.is(200).json()["sessions"].as_array().map(Vec::len), Some(1));
    let seen = next.get("/me/activity").await.is(200).json();
    assert!(seen["events"].as_array().is_some_and(|events| events.iter().all(|event| event["kind"] != "password_changed")), "{seen}");
}

/// Whoever signs in all day to an account that is to go must not make its going hold up everybody else.
#[tokio::test]
async fn what_an_unverified_account_has_piled_up_goes_ahead_of_it() {
    let stage = Stage::without_limits().await;
    stage.sign_up("ana").await;
    stage.letters().await;
    for n in 0..150 {
        stage.anon().from_ip(&format!("203.0.113.{n}")).log_in("ana").await.is(200);
    }
    stage.clock.advance(7 * DAY + TICK);
    let kinds = purge(&stage).await;
    let gone = |kind: &str| kinds.iter().find(|(name, _)| *name == kind).map(|(_, gone)| *gone);
    assert_eq!(gone("sessions of unverified accounts"), Some(151));
    assert_eq!((gone("known IPs of unverified accounts"), gone("known devices of unverified accounts")), (Some(151), Some(151)));
    assert_eq!((gone("unverified accounts"), stage.count("SELECT count(*) FROM users")), (Some(1), 0));
}

#[tokio::test]
async fn an_account_stays_whose_letter_never_left_or_that_is_signed_in_or_verified() {
    let stage = Stage::with(&[("ABSOLUTE_TIMEOUT", "30d"), ("IDLE_TIMEOUT", "none"), ("ROLE_TIMEOUTS", "admin=none/30d")]).await;
    let ana = stage.sign_up("ana").await;
    ana.post("/email/verify", json!({"token": verification(&stage).await})).await.is(200);
    ana.poke("/logout").await.is(204);
    stage.sign_up("ben").await;
    stage.letters().await;
    stage.mailbag.refuse(true);
    let eve = stage.sign_up("eve").await;
    eve.poke("/logout").await.is(204);
    stage.letters().await;
    stage.clock.advance(8 * DAY);
    purge(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM users"), 3);
}

#[tokio::test]
async fn an_account_stays_that_was_used_within_the_time_and_is_signed_out_now() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.letters().await;
    for _ in 0..8 {
        stage.clock.advance(DAY);
        let ana = stage.sign_in("ana").await;
        ana.poke("/logout").await.is(204);
        purge(&stage).await;
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
}

#[tokio::test]
async fn verify_first_answers_alike_for_every_address_and_signs_nobody_in() {
    let stage = Stage::with(&[("SIGNUP", "verify_first")]).await;
    let ask = json!({"email": ANA, "password": password_of("ana")});
    let first = stage.anon().post("/signup", ask.clone()).await.is(202);
    let again = stage.anon().post("/signup", json!({"email": "ANA@example.com", "password": "quite another password"})).await.is(202);
    for answer in [&first, &again] {
        assert!(answer.body.is_empty() && answer.set_cookies().is_empty());
    }
    let subjects: Vec<String> = stage.letters().await.into_iter().map(|letter| letter.subject).collect();
    assert_eq!(subjects, ["Confirm your e-mail address at localhost", "You already have an account at localhost"]);
    let token = verification(&stage).await;
    // Nor does a sign-in tell whether the address was free.
    stage.anon().post("/login", ask.clone()).await.is_refused(401, "invalid_credentials");
    stage.anon().post("/email/verify", json!({"token": token, "password": "quite another password"})).await.is_refused(403, "invalid_credentials");
    stage.anon().post("/email/verify", json!({"token": token, "password": password_of("ana")})).await.is(200);
    stage.sign_in("ana").await;
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
}

/// RACE-04.
#[tokio::test]
async fn parallel_sign_ups_by_letter_make_one_account() {
    let stage = Stage::with(&[("SIGNUP", "verify_first")]).await;
    let mut runs = JoinSet::new();
    for n in 0..20 {
        let (anon, email) = (stage.anon(), ["ana@example.com", "ANA@example.com", "Ana@Example.com", "aNa@EXAMPLE.COM"][n % 4]);
        runs.spawn(async move { anon.post("/signup", json!({"email": email, "password": format!("a good password {n}")})).await.status.as_u16() });
    }
    assert_eq!(runs.join_all().await, vec![202; 20]);
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
    let letters = stage.letters().await;
    assert_eq!(letters.iter().filter(|letter| letter.subject.starts_with("Confirm")).count(), 1);
    assert_eq!(letters.len(), 6);
}

#[tokio::test]
async fn closed_lets_nobody_sign_up() {
    let stage = Stage::with(&[("SIGNUP", "closed")]).await;
    stage.anon().post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is_refused(403, "signup_closed");
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);
}
