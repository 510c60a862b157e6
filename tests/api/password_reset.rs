//! A forgotten password: a letter, a link, a new one. Whoever has the mailbox gets the account back, and nobody else learns
//! anything. An attacker asks for others, uses links twice, and keeps what they had before.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::task::JoinSet;

use holdfast::db::EVEN;

use crate::stage::{Actor, Answer, Stage, TICK, email_of, password_of, token_of};

const ANA: &str = "ana@example.com";
const NEW: &str = "quite another password";

async fn ask(stage: &Stage) -> String {
    stage.anon().post("/password/forgot", json!({"email": ANA})).await.is(202);
    token_of(&stage.letter(ANA, "Choose").await)
}

async fn reset(actor: &Actor, token: &str, password: &str) -> Answer {
    actor.post("/password/reset", json!({"token": token, "new_password": password})).await
}

async fn log_in_with(stage: &Stage, password: &str) -> Answer {
    stage.anon().post("/login", json!({"email": ANA, "password": password})).await
}

#[tokio::test]
async fn a_reset_sets_the_password_ends_every_session_and_signs_nobody_in() {
    let stage = Stage::new().await;
    let (ana, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let token = ask(&stage).await;
    let answer = reset(&ana, &token, NEW).await.is(204);
    assert!(answer.set_cookies().is_empty());
    ana.get("/me").await.is_refused(401, "session_revoked");
    phone.get("/me").await.is_refused(401, "session_revoked");
    log_in_with(&stage, &password_of("ana")).await.is_refused(401, "invalid_credentials");
    log_in_with(&stage, NEW).await.is(200);
    assert_eq!(stage.letters_to(ANA, "Your password").await.len(), 1);
}

/// RST-01.
#[tokio::test]
async fn a_link_works_once_and_only_the_newest_does() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let (first, second) = (ask(&stage).await, ask(&stage).await);
    reset(&ana, &first, NEW).await.is_refused(400, "invalid_token");
    reset(&ana, &second, NEW).await.is(204);
    reset(&ana, &second, "yet another password").await.is_refused(400, "invalid_token");
    log_in_with(&stage, NEW).await.is(200);
}

/// RST-01: what changes the account ends the link, also one in a letter that has not left yet.
#[tokio::test]
async fn a_change_of_password_address_or_standing_ends_the_link() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    let ana = stage.sign_up("ana").await;
    let id = ana.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();

    let token = ask(&stage).await;
    stage.anon().post("/password/forgot", json!({"email": ANA})).await.is(202);
    ana.change_password(&password_of("ana"), NEW).await.is(200);
    reset(&ana, &token, "yet another password").await.is_refused(400, "invalid_token");
    let before = stage.letters_to(ANA, "Choose").await.len();
    assert_eq!(before, 1, "the letter that waited is withdrawn");

    let token = ask(&stage).await;
    ana.put("/me/email", json!({"email": "ana@example.org", "current_password": NEW})).await.is(202);
    let change = token_of(&stage.letter("ana@example.org", "Confirm").await);
    ana.post("/email/change", json!({"token": change})).await.is(200);
    reset(&ana, &token, "yet another password").await.is_refused(400, "invalid_token");

    ana.post("/password/forgot", json!({"email": "ana@example.org"})).await.is(202);
    let token = token_of(&stage.letter("ana@example.org", "Choose").await);
    admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
    reset(&ana, &token, "yet another password").await.is_refused(400, "invalid_token");
    admin.poke(&format!("/admin/users/{id}/enable")).await.is(200);
    reset(&ana, &token, "yet another password").await.is_refused(400, "invalid_token");
}

/// RST-05.
#[tokio::test]
async fn a_link_is_good_for_thirty_minutes() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage).await;
    stage.clock.advance(Duration::from_secs(30 * 60) + TICK);
    reset(&ana, &token, NEW).await.is_refused(400, "invalid_token");
    let token = ask(&stage).await;
    stage.clock.advance(Duration::from_secs(30 * 60));
    reset(&ana, &token, NEW).await.is(204);
}

/// RACE-01.
#[tokio::test]
async fn of_parallel_resets_with_one_link_exactly_one_wins() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let token = ask(&stage).await;
    let mut runs = JoinSet::new();
    for n in 0..20 {
        let (anon, token) = (stage.anon(), token.clone());
        runs.spawn(async move { (n, reset(&anon, &token, &format!("a good password {n}")).await.status.as_u16()) });
    }
    let answers = runs.join_all().await;
    let winners: Vec<i32> = answers.iter().filter(|(_, status)| *status == 204).map(|(n, _)| *n).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|(_, status)| [204, 400].contains(status)));
    log_in_with(&stage, &format!("a good password {}", winners[0])).await.is(200);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'password_reset'"), 1);
    assert_eq!(stage.letters_to(ANA, "Your password").await.len(), 1);
}

/// Delivered at least once may be twice: both links are good until one is used.
#[tokio::test]
async fn the_links_of_a_letter_that_came_twice_are_both_good_until_one_is_used() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let first = ask(&stage).await;
    // What a crash between the sending and its record leaves behind.
    stage.execute("UPDATE outbox SET done_at = NULL, leased_until = 0 WHERE kind = 'reset_password'");
    let letters = stage.letters_to(ANA, "Choose").await;
    assert_eq!((letters.len(), letters[0].id), (2, letters[1].id));
    let second = token_of(&letters[1]);
    assert_ne!(first, second);
    reset(&ana, &first, "short").await.is_refused(422, "validation_failed");
    reset(&ana, &first, NEW).await.is(204);
    reset(&ana, &second, "yet another password").await.is_refused(400, "invalid_token");
}

#[tokio::test]
async fn a_password_that_is_no_good_leaves_the_link_good() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage).await;
    for (weak, code) in [("short", "too_short"), ("password1", "too_common"), (ANA, "too_common")] {
        let faults = reset(&ana, &token, weak).await.is_refused(422, "validation_failed").faults();
        assert_eq!(faults, [format!("new_password:{code}")]);
    }
    // Whoever asks for others takes nothing from them.
    ana.get("/me").await.is(200);
    log_in_with(&stage, &password_of("ana")).await.is(200);
    reset(&ana, &token, NEW).await.is(204);
}

/// ENUM-02: byte for byte the same, and a letter to nobody but the owner. UNI-01: at the address on record.
#[tokio::test]
async fn asking_is_answered_alike_and_the_letter_goes_to_the_address_on_record() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    stage.sign_up("mike").await;
    let id = stage.sign_up("eve").await.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();
    admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
    let before = stage.letters().await.len();
    let spellings = ["MIKE@example.com", "eve@example.com", "nobody@example.com", "m\u{131}ke@example.com", "mik\u{e9}@example.com", "\u{ff4d}ike@example.com"];
    let answers: Vec<_> = {
        let mut all = Vec::new();
        for (n, email) in spellings.into_iter().enumerate() {
            // Each from its own address: the answers say how much that has left.
            let anon = stage.anon().from_ip(&format!("198.51.100.{n}")).with_header("x-request-id", "same");
            all.push(anon.post("/password/forgot", json!({"email": email})).await.is(202));
        }
        all
    };
    for answer in &answers {
        assert_eq!((&answer.body, &answer.headers), (&answers[0].body, &answers[0].headers));
    }
    let letters = stage.letters().await.split_off(before);
    assert_eq!(letters.iter().map(|letter| letter.to.as_str()).collect::<Vec<_>>(), [email_of("mike")]);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'password_reset_requested'"), 6);
    let odd = ["a@x.test\r\nBcc: e@e.test", "a@evil@allowed.test", "<a@x.test>", "-oQ/tmp@x.test", "a@[127.0.0.1]"];
    for email in odd {
        stage.anon().post("/password/forgot", json!({"email": email})).await.is_refused(422, "validation_failed");
    }
}

/// ENUM-02: what there was to write hides behind a time that is the same for all.
#[tokio::test]
async fn who_asks_about_an_address_hears_at_the_same_time_whatever_there_was_to_do() {
    let (stage, by_letter) = (Stage::new().await, Stage::with(&[("SIGNUP", "verify_first")]).await);
    let ana = stage.sign_up("ana").await;
    stage.sign_up("ben").await;
    for name in ["ben", "nobody"] {
        let (anon, newcomer, email) = (stage.anon(), by_letter.anon(), json!(email_of(name)));
        let evenly = async |answer: BoxFuture<'_, Answer>| {
            let began = Instant::now();
            answer.await.is(202);
            assert!(began.elapsed() >= EVEN, "{name}");
        };
        evenly(anon.post("/password/forgot", json!({"email": email})).boxed()).await;
        evenly(anon.post("/email/verification", json!({"email": email})).boxed()).await;
        evenly(ana.put("/me/email", json!({"email": email, "current_password": password_of("ana")})).boxed()).await;
        for _ in 0..2 {
            evenly(newcomer.post("/signup", json!({"email": email, "password": "a good password"})).boxed()).await;
        }
    }
}

/// ENUM-02: no request waits for mail, dead or slow.
#[tokio::test]
async fn a_dead_mail_server_changes_no_answer() {
    let stage = Stage::new().await;
    stage.mailbag.refuse(true);
    let ana = stage.sign_up("ana").await;
    ana.post("/password/forgot", json!({"email": ANA})).await.is(202);
    assert!(stage.letters().await.is_empty());
    ana.get("/me").await.is(200);
    stage.mailbag.refuse(false);
    stage.clock.advance(Duration::from_secs(10));
    let letter = stage.letter(ANA, "Choose").await;
    reset(&ana, &token_of(&letter), NEW).await.is(204);
}

/// VER-01: whoever proves the address is the sole owner.
#[tokio::test]
async fn a_reset_of_an_unverified_account_forgets_whoever_opened_it() {
    let stage = Stage::new().await;
    let thief = stage.anon().from_ip("203.0.113.66");
    thief.post("/signup", json!({"email": ANA, "password": "the thief's password", "name": "Thief"})).await.is(201);
    thief.put("/me/email", json!({"email": "thief@evil.test", "current_password": "the thief's password"})).await.is(202);
    let pending = token_of(&stage.letter("thief@evil.test", "Confirm").await);
    let token = ask(&stage).await;
    reset(&stage.anon(), &token, NEW).await.is(204);
    thief.get("/me").await.is_refused(401, "session_revoked");
    log_in_with(&stage, "the thief's password").await.is_refused(401, "invalid_credentials");
    thief.post("/email/change", json!({"token": pending})).await.is_refused(400, "invalid_token");
    let me = log_in_with(&stage, NEW).await.is(200).json();
    assert_eq!((&me["user"]["email_verified"], &me["user"]["name"], &me["session"]["new_ip"]), (&json!(true), &json!(""), &json!(true)));
    assert_eq!(stage.count("SELECT count(*) FROM known_ips"), 1);
}

#[tokio::test]
async fn a_reset_of_a_verified_account_keeps_its_name_and_what_it_knows() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.patch("/me", json!({"name": "Ana"})).await.is(200);
    ana.post("/email/verify", json!({"token": token_of(&stage.letter(ANA, "Confirm").await)})).await.is(200);
    let token = ask(&stage).await;
    reset(&ana, &token, NEW).await.is(204);
    let me = ana.post("/login", json!({"email": ANA, "password": NEW})).await.is(200).json();
    assert_eq!((&me["user"]["name"], &me["session"]["new_ip"], &me["session"]["new_device"]), (&json!("Ana"), &json!(false), &json!(false)));
}
