//! Guessing passwords is limited. A stranger tries many passwords of one account from everywhere, one password on many accounts,
//! bursts, other spellings and routes; and then to lock the owner out, or to learn from the limit who has an account.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, header};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use holdfast::purge::purge;

use crate::stage::{Actor, Answer, Stage, TICK, email_of, link_of, password_of, token_of};

const WRONG: &str = "not the password";
const NEW: &str = "quite another password";
const ANA: &str = "ana@example.com";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A browser that was never here, from an address of its own.
fn stranger(stage: &Stage, n: usize) -> Actor {
    stage.anon().from_ip(&format!("203.0.{}.{}", 1 + n / 250, 1 + n % 250))
}

async fn try_password(browser: &Actor, email: &str, password: &str) -> Answer {
    browser.post("/login", json!({"email": email, "password": password})).await
}

async fn guess(browser: &Actor) -> Answer {
    try_password(browser, ANA, WRONG).await
}

/// So many wrong passwords for ana's account, each from somewhere else.
async fn guesses(stage: &Stage, many: usize) {
    for n in 0..many {
        guess(&stranger(stage, n)).await.is_refused(401, "invalid_credentials");
    }
}

/// Expects that the next attempt has to wait so many seconds.
#[track_caller]
fn waits(answer: Answer, seconds: u32) {
    let answer = answer.is_refused(429, "rate_limited");
    assert_eq!(answer.header("retry-after"), Some(seconds.to_string().as_str()));
}

/// All that an answer tells, but the name of the request.
fn shown(answer: &Answer) -> (u16, BTreeMap<String, String>, String) {
    let headers = answer.headers.iter().filter(|(name, _)| *name != "x-request-id");
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").to_string())).collect();
    (answer.status.as_u16(), headers, answer.text())
}

fn events(stage: &Stage, kind: &str) -> i64 {
    stage.count(&format!("SELECT count(*) FROM events WHERE kind = '{kind}'"))
}

fn counters(stage: &Stage) -> i64 {
    stage.count("SELECT count(*) FROM guesses")
}

/// As the server itself reads it.
async fn most_failures(stage: &Stage) -> i64 {
    let read = |tx: &mut holdfast::db::Tx| tx.row("SELECT failures FROM guesses ORDER BY failures DESC LIMIT 1", ());
    stage.app.db.glance(read).await.map(Option::unwrap_or_default).unwrap_or_else(|fault: holdfast::db::Fault| panic!("{fault}"))
}

async fn wait_until_nobody_is_in_flight(stage: &Stage) {
    while !stage.app.line.is_empty() {
        tokio::task::yield_now().await;
    }
}

async fn letters(stage: &Stage) -> usize {
    stage.letters_to(ANA, "Somebody is trying passwords").await.len()
}

async fn reset_token(stage: &Stage) -> String {
    stage.anon().post("/password/forgot", json!({"email": ANA})).await.is(202);
    token_of(&stage.letter(ANA, "Choose").await)
}

// ---- an account

/// WSTG-ATHN-03a, ASVS 6.3.1.
#[tokio::test]
async fn ten_wrong_passwords_from_anywhere_are_checked_and_the_eleventh_waits_half_a_minute() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    waits(guess(&stranger(&stage, 10)).await, 30);
    assert_eq!(events(&stage, "sign_in_failed"), 10);
    stage.clock.advance(29 * SECOND + TICK);
    waits(guess(&stranger(&stage, 11)).await, 1);
    stage.clock.advance(SECOND - TICK);
    guess(&stranger(&stage, 12)).await.is_refused(401, "invalid_credentials");
    waits(guess(&stranger(&stage, 13)).await, 60);
}

/// LOCK-01: the wait does not grow without bound.
#[tokio::test]
async fn each_wrong_password_after_a_wait_doubles_the_next_one_up_to_a_quarter_of_an_hour() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    let eve = stranger(&stage, 0);
    for seconds in [30, 60, 120, 240, 480, 900, 900, 900] {
        waits(guess(&eve).await, seconds);
        stage.clock.advance(SECOND * seconds);
        guess(&eve).await.is_refused(401, "invalid_credentials");
    }
}

#[tokio::test]
async fn a_quarter_of_an_hour_after_the_first_failure_or_after_the_last_wait_all_is_forgotten() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 9).await;
    stage.clock.advance(15 * MINUTE);
    guesses(&stage, 10).await;
    waits(guess(&stranger(&stage, 10)).await, 30);
    stage.clock.advance(30 * SECOND + 15 * MINUTE);
    guesses(&stage, 10).await;
    waits(guess(&stranger(&stage, 10)).await, 30);
}

/// ENUM-04: known, disabled and unknown, from the first guess through the waits: status, headers and body.
#[tokio::test]
async fn an_address_without_an_account_and_a_disabled_one_are_limited_exactly_alike() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    stage.sign_up("ana").await;
    let ben = stage.sign_up("ben").await.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();
    admin.poke(&format!("/admin/users/{ben}/disable")).await.is(200);
    let mut stories = Vec::new();
    for (n, name) in ["ana", "ben", "nobody"].into_iter().enumerate() {
        let before = stage.app.clock.now();
        let mut story = Vec::new();
        for step in 0..40 {
            let actor = stranger(&stage, 100 * n + step);
            // Somebody may send whatever cookie they like.
            actor.set_cookie("holdfast-device", Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
            story.push(shown(&try_password(&actor, &email_of(name), WRONG).await));
            if step >= 15 {
                stage.clock.advance(Duration::from_secs(25));
            }
        }
        stories.push(story);
        // Each begins at the same moment of its own time.
        assert!(stage.app.clock.now() > before);
    }
    assert!(stories[0].iter().any(|step| step.0 == 429) && stories[0][39].0 != 0);
    assert_eq!(stories[0], stories[1]);
    assert_eq!(stories[0], stories[2]);
}

/// ENUM-04: what is guessed during a wait is never learnt.
#[tokio::test]
async fn the_right_password_during_a_wait_looks_like_a_wrong_one_and_opens_the_account_after_it() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    let (wrong, right) = (guess(&stranger(&stage, 20)).await, try_password(&stranger(&stage, 21), ANA, &password_of("ana")).await);
    waits(right, 30);
    let right = try_password(&stranger(&stage, 22), ANA, &password_of("ana")).await;
    assert_eq!(shown(&wrong), shown(&right));
    stage.clock.advance(30 * SECOND);
    try_password(&stranger(&stage, 23), ANA, &password_of("ana")).await.is(200);
    // It took its own count back, and nobody else's.
    try_password(&stranger(&stage, 24), ANA, &password_of("ana")).await.is(200);
    guess(&stranger(&stage, 25)).await.is_refused(401, "invalid_credentials");
    waits(guess(&stranger(&stage, 26)).await, 60);
}

#[tokio::test]
async fn the_spelling_of_an_address_makes_no_other_counter() {
    let stage = Stage::new().await;
    stage.anon().post("/signup", json!({"email": "Am\u{e9}lie@example.com", "password": password_of("ana")})).await.is(201);
    let spellings = ["am\u{e9}lie@example.com", "AM\u{c9}LIE@EXAMPLE.COM", "Ame\u{301}lie@example.com", "AME\u{301}LIE@Example.com"];
    for n in 0..10 {
        try_password(&stranger(&stage, n), spellings[n % 4], WRONG).await.is_refused(401, "invalid_credentials");
    }
    for spelling in spellings {
        waits(try_password(&stranger(&stage, 11), spelling, WRONG).await, 30);
    }
}

/// LOCK-05: no other spelling of the route is another way in.
#[tokio::test]
async fn no_other_spelling_of_the_route_escapes_the_limit() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    let right = json!({"email": ANA, "password": password_of("ana")});
    for path in ["//login", "/login/", "/LOGIN", "/%6cogin", "/login;x", "/./login", "/login%2f", "/x/../login"] {
        stranger(&stage, 20).post(path, right.clone()).await.is_refused(404, "not_found");
    }
    for method in [Method::PUT, Method::PATCH] {
        stranger(&stage, 20).with_header("x-http-method-override", "POST").json(method, "/login", right.clone()).await.is(405);
    }
    waits(stranger(&stage, 20).post("/login", right).await, 30);
}

#[tokio::test]
async fn what_is_refused_for_its_form_is_no_guess() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for _ in 0..30 {
        stage.anon().post("/login", json!({"email": ANA})).await.is_refused(422, "validation_failed");
        stage.anon().with_header("sec-fetch-site", "cross-site").post("/login", json!({"email": ANA, "password": WRONG})).await.is(403);
    }
    assert_eq!(counters(&stage), 0);
}

// ---- the right password

#[tokio::test]
async fn right_passwords_in_a_row_from_new_browsers_are_never_refused_and_leave_nothing() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for _ in 0..30 {
        stage.anon().log_in("ana").await.is(200);
    }
    assert_eq!(counters(&stage), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn right_passwords_at_once_from_new_browsers_are_never_refused_and_leave_nothing() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    // Some failures of the user leave less room, and still nobody is refused.
    guesses(&stage, 7).await;
    let mut runs = JoinSet::new();
    for n in 0..30 {
        let browser = stranger(&stage, n);
        runs.spawn(async move { browser.log_in("ana").await.status.as_u16() });
    }
    assert_eq!(runs.join_all().await, vec![200; 30]);
    wait_until_nobody_is_in_flight(&stage).await;
    assert_eq!(stage.count("SELECT max(failures) FROM guesses"), 7);
}

#[tokio::test]
async fn success_takes_back_its_own_count_and_no_other() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 9).await;
    for _ in 0..5 {
        stage.anon().log_in("ana").await.is(200);
    }
    guess(&stranger(&stage, 9)).await.is_refused(401, "invalid_credentials");
    waits(guess(&stranger(&stage, 10)).await, 30);
}

/// WSTG-ATHN-03d.
#[tokio::test]
async fn signing_in_to_ones_own_account_between_guesses_resets_nothing() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "15/15m")]).await;
    stage.sign_up("ana").await;
    let eve = stage.sign_up("eve").await.from_ip("192.0.2.66");
    for n in 0..15 {
        let email = if n < 10 { ANA.into() } else { format!("user{n}@example.com") };
        try_password(&eve, &email, WRONG).await.is_refused(401, "invalid_credentials");
        eve.log_in("eve").await.is(200);
    }
    waits(guess(&stranger(&stage, 1)).await, 30);
    waits(try_password(&eve, "another@example.com", WRONG).await, 30);
    eve.log_in("eve").await.is(200);
}

// ---- a browser of one's own

/// LOCK-01: whoever guesses elsewhere locks nobody out.
#[tokio::test]
async fn a_browser_that_has_signed_in_before_goes_on_whatever_strangers_do() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let phone = stage.sign_in("ana").await;
    phone.poke("/logout").await.is(204);
    for n in 0..1000 {
        let status = guess(&stranger(&stage, n)).await.status.as_u16();
        assert!([401, 429].contains(&status), "{n}: {status}");
    }
    ana.get("/me").await.is(200);
    phone.clone().from_ip("192.0.2.77").log_in("ana").await.is(200);
    ana.change_password(&password_of("ana"), NEW).await.is(200);
    // Known here is not known to others.
    let ben = stage.sign_up("ben").await;
    waits(guess(&ben).await, 30);
    assert_eq!(letters(&stage).await, 1);
}

#[tokio::test]
async fn a_browser_of_ones_own_has_a_counter_of_its_own_that_success_clears() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..9 {
        guess(&ana).await.is_refused(401, "invalid_credentials");
    }
    ana.log_in("ana").await.is(200);
    for _ in 0..10 {
        guess(&ana).await.is_refused(401, "invalid_credentials");
    }
    waits(ana.log_in("ana").await, 30);
    // It is the browser's, wherever it is; other browsers do not feel it.
    waits(guess(&ana.clone().from_ip("192.0.2.77")).await, 30);
    stage.anon().log_in("ana").await.is(200);
    guess(&stranger(&stage, 1)).await.is_refused(401, "invalid_credentials");
}

#[tokio::test]
async fn an_invented_or_a_strangers_device_cookie_has_no_counter_of_its_own() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let ben = stage.sign_up("ben").await;
    for n in 0..10u8 {
        let eve = stranger(&stage, n.into());
        let token = holdfast::secret::Token::mint(&holdfast::chance::Chance::seeded(n.into())).reveal();
        eve.set_cookie("holdfast-device", Some(&token));
        guess(&eve).await.is_refused(401, "invalid_credentials");
    }
    waits(guess(&ben).await, 30);
}

/// A disowned browser is nobody's any more.
#[tokio::test]
async fn a_browser_that_was_turned_out_counts_with_the_strangers() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.letters().await;
    let thief = stage.anon().from_ip("192.0.2.66");
    thief.log_in("ana").await.is(200);
    let letter = stage.letter(ANA, "New sign-in").await;
    stage.anon().submit(&link_of(&letter), &[]).await.is(200);
    guesses(&stage, 10).await;
    waits(guess(&thief).await, 30);
}

// ---- a reset

/// LOCK-01: whoever has the mailbox gets in, and their browser is not locked out again.
#[tokio::test]
async fn a_reset_lets_the_browser_in_that_did_it_and_no_other() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    let fresh = stage.anon().from_ip("192.0.2.77");
    waits(guess(&fresh).await, 30);
    let answer = fresh.post("/password/reset", json!({"token": reset_token(&stage).await, "new_password": NEW})).await.is(204);
    assert_eq!(answer.set_cookies().len(), 1, "the device cookie, and no session");
    let issued = fresh.device_token();
    assert!(issued.is_some());
    waits(try_password(&stage.anon(), ANA, NEW).await, 30);
    guess(&fresh).await.is_refused(401, "invalid_credentials");
    let session = try_password(&fresh, ANA, NEW).await.is(200).json()["session"].clone();
    assert_eq!((&session["new_ip"], &session["new_device"]), (&json!(true), &json!(true)), "the sign-in is as new as ever");
    assert_eq!(fresh.device_token(), issued, "a cookie that we issued stays");
}

#[tokio::test]
async fn a_reset_clears_the_counter_of_its_own_browser() {
    let stage = Stage::new().await;
    let (ana, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    ana.post("/email/verify", json!({"token": token_of(&stage.letter(ANA, "Confirm").await)})).await.is(200);
    for browser in [&ana, &phone] {
        for _ in 0..10 {
            guess(browser).await.is_refused(401, "invalid_credentials");
        }
        waits(guess(browser).await, 30);
    }
    let issued = ana.device_token();
    let answer = ana.post("/password/reset", json!({"token": reset_token(&stage).await, "new_password": NEW})).await.is(204);
    assert!(answer.set_cookies().is_empty());
    waits(try_password(&phone, ANA, NEW).await, 30);
    let session = try_password(&ana, ANA, NEW).await.is(200).json()["session"].clone();
    assert_eq!((&session["new_device"], ana.device_token()), (&json!(false), issued));
}

#[tokio::test]
async fn the_page_of_a_reset_does_the_same() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    let fresh = stage.anon();
    fresh.submit(&format!("/security/reset/{}", reset_token(&stage).await), &[("new_password", NEW)]).await.is(200);
    assert!(fresh.device_token().is_some() && fresh.token().is_none());
    try_password(&fresh, ANA, NEW).await.is(200);
}

#[tokio::test]
async fn a_reset_that_fails_names_no_browser() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let token = reset_token(&stage).await;
    for (token, password) in [("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", NEW), (token.as_str(), "password")] {
        let answer = stage.anon().post("/password/reset", json!({"token": token, "new_password": password})).await;
        assert!(!answer.status.is_success() && answer.set_cookies().is_empty());
    }
}

// ---- a source

/// WSTG-ATHN-03b: one password on many accounts.
#[tokio::test]
async fn a_hundred_wrong_passwords_from_one_source_over_all_accounts_make_it_wait() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let ben = stage.sign_up("ben").await.from_ip("192.0.2.7");
    ben.poke("/logout").await.is(204);
    let eve = stage.anon().from_ip("192.0.2.7");
    for n in 0..100 {
        try_password(&eve, &format!("user{n}@example.com"), WRONG).await.is_refused(401, "invalid_credentials");
    }
    waits(try_password(&eve, "another@example.com", WRONG).await, 30);
    waits(eve.log_in("ana").await, 30);
    // Whoever has a counter of their own is not locked out by a neighbour, and other sources feel nothing.
    ben.log_in("ben").await.is(200);
    ana.log_in("ana").await.is(200);
    stage.anon().log_in("ana").await.is(200);
    stage.clock.advance(30 * SECOND);
    try_password(&eve, "another@example.com", WRONG).await.is_refused(401, "invalid_credentials");
    waits(try_password(&eve, "another@example.com", WRONG).await, 60);
}

#[tokio::test]
async fn failures_on_browsers_of_their_own_count_for_their_source() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "5/15m")]).await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..5 {
        guess(&ana).await.is_refused(401, "invalid_credentials");
    }
    waits(try_password(&stage.anon(), "somebody@example.com", WRONG).await, 30);
    guess(&ana).await.is_refused(401, "invalid_credentials");
    ana.log_in("ana").await.is(200);
}

#[tokio::test]
async fn the_64_of_an_ipv6_address_is_one_source() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "10/15m")]).await;
    for n in 0..10 {
        let eve = stage.anon().from_ip(&format!("2001:db8:0:1:{n:x}::{n:x}"));
        try_password(&eve, &format!("user{n}@example.com"), WRONG).await.is_refused(401, "invalid_credentials");
    }
    waits(try_password(&stage.anon().from_ip("2001:db8:0:1:ffff::1"), "user@example.com", WRONG).await, 30);
    try_password(&stage.anon().from_ip("2001:db8:0:2::1"), "user@example.com", WRONG).await.is_refused(401, "invalid_credentials");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn right_passwords_of_many_at_once_from_one_source_are_never_refused() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "10/15m")]).await;
    for n in 0..5 {
        stage.sign_up(&format!("user{n}")).await;
    }
    let mut runs = JoinSet::new();
    for n in 0..40 {
        let browser = stage.anon();
        runs.spawn(async move {
            loop {
                // On a machine with too much to do somebody may be put off: that is no refusal.
                match browser.log_in(&format!("user{}", n % 5)).await.status.as_u16() {
                    503 => tokio::task::yield_now().await,
                    status => return status,
                }
            }
        });
    }
    assert_eq!(runs.join_all().await, vec![200; 40]);
    wait_until_nobody_is_in_flight(&stage).await;
    assert_eq!(counters(&stage), 0);
}

// ---- bursts

/// LOCK-03: however many come at once, no more are checked than the limit has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_thousand_wrong_passwords_at_once_ten_are_checked() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let mut runs = JoinSet::new();
    for n in 0..1000 {
        let browser = stranger(&stage, n);
        runs.spawn(async move { guess(&browser).await.status.as_u16() });
    }
    let answers = runs.join_all().await;
    let checked = answers.iter().filter(|status| **status == 401).count() as i64;
    assert!(answers.iter().all(|status| [401, 429, 503].contains(status)));
    assert_eq!((checked, events(&stage, "sign_in_failed")), (10, 10));
    wait_until_nobody_is_in_flight(&stage).await;
    assert_eq!(stage.count("SELECT max(failures) FROM guesses"), 10);

    // With the limit used up, the right one among a hundred opens nothing.
    let mut runs = JoinSet::new();
    for n in 0..100 {
        let browser = stranger(&stage, n);
        let password = if n == 50 { password_of("ana") } else { WRONG.into() };
        runs.spawn(async move { try_password(&browser, ANA, &password).await.status.as_u16() });
    }
    assert_eq!(runs.join_all().await, vec![429; 100]);
    assert_eq!(events(&stage, "sign_in_failed"), 10);
}

/// One wrong password for each of 200 accounts, all from one source; the status of each answer.
async fn guess_at_many_at_once(stage: &Stage) -> Vec<u16> {
    let mut runs = JoinSet::new();
    for n in 0..200 {
        let browser = stage.anon();
        runs.spawn(async move { try_password(&browser, &format!("user{n}@example.com"), WRONG).await.status.as_u16() });
    }
    runs.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_burst_from_one_source_over_many_accounts_as_many_are_checked_as_it_may_try() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "20/15m")]).await;
    let answers = guess_at_many_at_once(&stage).await;
    let checked = answers.iter().filter(|status| **status == 401).count() as i64;
    assert_eq!((checked, events(&stage, "sign_in_failed")), (20, 20));
}

/// What the threads that hash had no time for was not checked, and so was no guess.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_refused_for_want_of_time_does_not_count() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "1000/15m"), ("HASH_THREADS", "1"), ("ARGON2_ITERATIONS", "300")]).await;
    let answers = guess_at_many_at_once(&stage).await;
    let checked = answers.iter().filter(|status| **status == 401).count() as i64;
    assert_eq!(answers.iter().filter(|status| **status == 503).count() as i64, 200 - checked);
    wait_until_nobody_is_in_flight(&stage).await;
    assert_eq!(stage.count("SELECT max(failures) FROM guesses"), checked);
    assert_eq!(counters(&stage), checked + 1);
}

/// Whoever hangs up has guessed all the same, and leaves nothing in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_hangs_up_before_the_answer_has_guessed_all_the_same() {
    let stage = Stage::with(&[("ARGON2_MEMORY_KIB", "128"), ("ARGON2_ITERATIONS", "1000")]).await;
    stage.sign_up("ana").await;
    for n in 0..10 {
        let eve = stranger(&stage, n);
        let mut request = pin!(guess(&eve));
        // Until it has been counted, which is long before its answer.
        while most_failures(&stage).await == n as i64 {
            let is_done = poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_ready())).await;
            assert!(!is_done, "the answer was quicker");
            tokio::task::yield_now().await;
        }
    }
    wait_until_nobody_is_in_flight(&stage).await;
    waits(guess(&stranger(&stage, 20)).await, 30);
    assert_eq!((events(&stage, "sign_in_failed"), events(&stage, "sign_in_throttled")), (0, 0));
    // It does not keep the user from being told: the next attempt does, even if it hangs up too.
    stage.clock.advance(30 * SECOND);
    let eve = stranger(&stage, 21);
    let mut request = pin!(guess(&eve));
    while events(&stage, "sign_in_throttled") == 0 {
        let is_done = poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_ready())).await;
        assert!(!is_done, "the answer was quicker");
        tokio::task::yield_now().await;
    }
    request.await.is_refused(401, "invalid_credentials");
    assert_eq!((events(&stage, "sign_in_throttled"), letters(&stage).await), (1, 1));
}

// ---- what lasts

/// LOCK-05.
#[tokio::test]
async fn a_restart_forgets_nothing() {
    let mut stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 6).await;
    stage.crash().await;
    guesses(&stage, 4).await;
    stage.crash().await;
    waits(guess(&stranger(&stage, 10)).await, 30);
    stage.restart().await;
    waits(guess(&stranger(&stage, 11)).await, 30);
}

/// LOCK-05: a flood of names takes nobody's place, and what it leaves goes by itself.
#[tokio::test]
async fn a_flood_of_names_does_not_lift_a_wait_and_the_purge_empties_the_table() {
    let mut stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    for n in 0..1000 {
        try_password(&stranger(&stage, 300 + n), &format!("user{n}@example.com"), WRONG).await.is_refused(401, "invalid_credentials");
    }
    assert!(stage.app.line.is_empty(), "nothing is kept in memory");
    waits(guess(&stranger(&stage, 20)).await, 30);
    stage.crash().await;
    waits(guess(&stranger(&stage, 20)).await, 30);
    assert!(!stage.database.holds(b"user7@example.com"), "an address without an account is stored nowhere");

    let clean = async |stage: &Stage| purge(&stage.app.db, &stage.app.config, stage.app.clock.now(), |_, _| {}).await.expect("the purge works");
    clean(&stage).await;
    waits(guess(&stranger(&stage, 20)).await, 30);
    stage.clock.advance(15 * MINUTE + TICK);
    clean(&stage).await;
    assert_eq!(counters(&stage), 1, "the one that made somebody wait");
    stage.clock.advance(30 * SECOND);
    clean(&stage).await;
    assert_eq!(counters(&stage), 0);
}

#[tokio::test]
async fn a_clock_that_steps_back_makes_nobody_wait_longer() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    guesses(&stage, 10).await;
    stage.clock.step_back(DAY);
    stage.anon().log_in("ana").await.is(200);
    stage.clock.advance(DAY - MINUTE);
    let waiting = guess(&stranger(&stage, 1)).await.is_refused(429, "rate_limited");
    assert_eq!(waiting.header("retry-after"), Some("90"));
}

// ---- settings

#[tokio::test]
async fn none_turns_a_limit_off() {
    let stage = Stage::with(&[("GUESS_LIMIT_ACCOUNT", "none"), ("GUESS_LIMIT_SOURCE", "none")]).await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..150 {
        guess(&ana).await.is_refused(401, "invalid_credentials");
        ana.change_password(WRONG, NEW).await.is_refused(403, "invalid_credentials");
    }
    assert_eq!(counters(&stage), 0);
    stage.anon().log_in("ana").await.is(200);
}

#[tokio::test]
async fn the_limit_is_what_the_settings_say() {
    let stage = Stage::with(&[("GUESS_LIMIT_ACCOUNT", "3/1m"), ("GUESS_LIMIT_SOURCE", "none")]).await;
    stage.sign_up("ana").await;
    guesses(&stage, 2).await;
    stage.clock.advance(MINUTE);
    guesses(&stage, 3).await;
    waits(guess(&stranger(&stage, 3)).await, 30);
    assert_eq!(counters(&stage), 1);
}

// ---- whoever is signed in

fn change_email(password: &str) -> Value {
    json!({"email": "ana@example.org", "current_password": password})
}

/// STEP-03: a stolen session is no place to guess from, however many there are.
#[tokio::test]
async fn wrong_current_passwords_count_for_all_sessions_of_the_user_together() {
    let mut stage = Stage::new().await;
    let (ana, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let thief = ana.copy().from_ip("192.0.2.66");
    for n in 0..5 {
        thief.change_password(&format!("wrong {n}"), NEW).await.is_refused(403, "invalid_credentials");
        phone.put("/me/email", change_email(WRONG)).await.is_refused(403, "invalid_credentials");
    }
    for browser in [&thief, &ana, &phone] {
        waits(browser.change_password(&password_of("ana"), NEW).await, 30);
        waits(browser.put("/me/email", change_email(&password_of("ana"))).await, 30);
        browser.get("/me").await.is(200);
    }
    stage.crash().await;
    let ana = stage.browser_of(&ana);
    waits(ana.change_password(&password_of("ana"), NEW).await, 30);
    assert_eq!(events(&stage, "sign_in_throttled"), 1);
    assert_eq!(letters(&stage).await, 1);
    // The same browsers sign in as ever: none of them has failed ten times.
    ana.log_in("ana").await.is(200);
    stage.clock.advance(30 * SECOND);
    ana.change_password(&password_of("ana"), NEW).await.is(200);
}

#[tokio::test]
async fn a_browser_that_guessed_too_often_while_signed_in_cannot_go_on_at_sign_in() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..10 {
        ana.change_password(WRONG, NEW).await.is_refused(403, "invalid_credentials");
    }
    waits(ana.change_password(WRONG, NEW).await, 30);
    waits(ana.log_in("ana").await, 30);
    assert_eq!(stage.count(r#"SELECT count(*) FROM events WHERE kind = 'sign_in_throttled' AND detail = '{"over":"device"}'"#), 1);
    assert_eq!(events(&stage, "sign_in_throttled"), 1, "one cause is told once");
    stage.anon().log_in("ana").await.is(200);
    // A letter proves whose account it is.
    ana.post("/password/reset", json!({"token": reset_token(&stage).await, "new_password": NEW})).await.is(204);
    try_password(&ana, ANA, NEW).await.is(200);
    ana.change_password(NEW, "yet another password").await.is(200);
}

/// STEP-03.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_wrong_current_passwords_at_once_ten_are_checked() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut runs = JoinSet::new();
    for _ in 0..100 {
        let browser = ana.clone();
        runs.spawn(async move { browser.change_password(WRONG, NEW).await.status.as_u16() });
    }
    let answers = runs.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 403).count(), 10, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 429).count(), 90, "{answers:?}");
    waits(ana.change_password(&password_of("ana"), NEW).await, 30);
}

#[tokio::test]
async fn right_current_passwords_leave_nothing() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.change_password(WRONG, NEW).await.is(403);
    ana.change_password(&password_of("ana"), NEW).await.is(200);
    for _ in 0..20 {
        ana.put("/me/email", change_email(NEW)).await.is(202);
    }
    assert_eq!(stage.count("SELECT max(failures) FROM guesses"), 1, "the sessions' and the source's keep the one failure");
    assert_eq!(counters(&stage), 2);
}

/// A letter of the sign-up in strange hands is no way to guess either.
#[tokio::test]
async fn the_password_that_confirms_an_address_counts_as_one_at_sign_in() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = token_of(&stage.letter(ANA, "Confirm").await);
    guesses(&stage, 7).await;
    let verify = |password: &str| json!({"token": token, "password": password});
    let eve = stranger(&stage, 20);
    for _ in 0..3 {
        eve.post("/email/verify", verify(WRONG)).await.is_refused(403, "invalid_credentials");
    }
    waits(eve.post("/email/verify", verify(&password_of("ana"))).await, 30);
    waits(guess(&eve).await, 30);
    let page = eve.submit(&format!("/security/verify/{token}"), &[("password", &password_of("ana"))]).await.is(429);
    assert_eq!(page.header("retry-after"), Some("30"));
    assert!(page.text().contains("Try again in 30 seconds."), "{}", page.text());
    assert_eq!(events(&stage, "sign_in_throttled"), 1);
    // None of these has cost the letter a try; and the owner's browser does not wait.
    assert_eq!(stage.count("SELECT tries FROM letter_tokens WHERE purpose = 'verify_email'"), 3);
    ana.poke("/logout").await.is(204);
    ana.post("/email/verify", verify(&password_of("ana"))).await.is(200);
}

// ---- who hears of it

#[tokio::test]
async fn the_user_is_told_once_a_day_and_the_audit_log_each_time() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    guesses(&stage, 9).await;
    assert_eq!((letters(&stage).await, events(&stage, "sign_in_throttled")), (0, 0));
    guess(&stranger(&stage, 9)).await.is(401);
    let told = ana.get("/me/activity").await.is(200).json()["events"][0].clone();
    assert_eq!((&told["kind"], &told["ip"], &told["detail"]), (&json!("sign_in_throttled"), &json!("203.0.1.10"), &json!({"over": "account"})));
    let letter = stage.letter(ANA, "Somebody is trying passwords").await;
    assert!(letter.text.contains("IP address: 203.0.1.10") && letter.secret.is_none(), "{}", letter.text);

    // What is refused, and what fails after a wait, is not told again.
    for _ in 0..5 {
        stage.clock.advance(15 * MINUTE);
        guess(&stranger(&stage, 9)).await.is(401);
        guess(&stranger(&stage, 9)).await.is(429);
    }
    assert_eq!((letters(&stage).await, events(&stage, "sign_in_throttled")), (1, 1));
    for day in 1..3 {
        stage.clock.advance(DAY / 2);
        guesses(&stage, 10).await;
        stage.clock.advance(DAY / 2);
        guesses(&stage, 10).await;
        assert_eq!((letters(&stage).await, events(&stage, "sign_in_throttled")), (1 + day, 1 + 2 * day as i64), "day {day}");
    }
}

#[tokio::test]
async fn of_an_address_without_an_account_and_of_a_source_only_the_operator_hears() {
    let stage = Stage::with(&[("GUESS_LIMIT_SOURCE", "20/15m")]).await;
    let admin = stage.admin("root").await;
    let eve = stage.anon().from_ip("192.0.2.66");
    for n in 0..20 {
        try_password(&eve, &format!("user{}@example.com", n / 10), WRONG).await.is(401);
    }
    let told = admin.get("/admin/events?kind=sign_in_throttled").await.is(200).json();
    let over: Vec<&Value> = told["events"].as_array().expect("a list").iter().map(|event| &event["detail"]["over"]).collect();
    assert_eq!(over.len(), 3, "{told}");
    assert_eq!(over.iter().filter(|over| ***over == json!("source")).count(), 1, "{told}");
    assert!(told["events"].as_array().expect("a list").iter().all(|event| event["user_id"].is_null()), "{told}");
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE kind = 'sign_in_throttled'"), 0);
}

/// No count of what is left helps whoever guesses.
#[tokio::test]
async fn no_answer_at_sign_in_tells_how_many_attempts_are_left() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let first = shown(&guess(&stranger(&stage, 0)).await);
    for n in 1..10 {
        assert_eq!(shown(&guess(&stranger(&stage, n)).await), first, "{n}");
    }
    let refused = guess(&stranger(&stage, 10)).await;
    assert!(refused.headers.keys().all(|name| !name.as_str().starts_with("ratelimit") && !name.as_str().starts_with("x-ratelimit")));
    let raw = stage.anon().request(Method::POST, "/login").header(header::CONTENT_TYPE, "application/json");
    let body = Body::from(json!({"email": ANA, "password": WRONG}).to_string());
    assert_eq!(shown(&stage.anon().send(raw, body).await), shown(&refused));
}
