//! Idle and absolute timeouts, checked on every request: to the millisecond, whatever the clock, the configuration or a
//! crash does in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use holdfast::background::{self, watch_clock};
use holdfast::clock::Timestamp;
use holdfast::purge::purge;
use holdfast::session_extractor::{look, require_session};

use crate::database::ON_POSTGRES;
use crate::every_route::{CONTRACT, Needs, bare, filled};
use crate::stage::{ABSOLUTE_TIMEOUT, Actor, Answer, IDLE_TIMEOUT, START, Stage, TICK, email_of, password_of};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A time of an answer, as the clock counts.
fn moment(value: &Value) -> Timestamp {
    let at: jiff::Timestamp = value.as_str().expect("a time").parse().expect("RFC 3339");
    Timestamp(at.as_millisecond())
}

/// The session of `GET /me`.
async fn own_session(actor: &Actor) -> Value {
    actor.get("/me").await.is(200).json()["session"].clone()
}

/// The same browser, whose polls are no activity.
fn passive(actor: &Actor) -> Actor {
    actor.clone().with_header("x-session-passive", "1")
}

async fn remembered(stage: &Stage, name: &str) -> (Actor, Answer) {
    let actor = stage.anon();
    let answer = actor.post("/login", json!({"email": email_of(name), "password": password_of(name), "remember": true})).await.is(200);
    (actor, answer)
}

/// CLK-01.
#[tokio::test]
async fn an_idle_session_dies_and_says_why() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// CLK-01.
#[tokio::test]
async fn exactly_at_the_idle_limit_a_session_lives() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT);
    ana.get("/me").await.is(200);
}

/// CLK-01.
#[tokio::test]
async fn exactly_at_the_absolute_limit_a_session_lives_and_then_it_dies_and_says_why() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(ABSOLUTE_TIMEOUT);
    ana.get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
}

/// TIME-03: every request is made exactly at the idle limit.
#[tokio::test]
async fn activity_keeps_a_session_alive_until_its_absolute_deadline_and_no_longer() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..48 {
        stage.clock.advance(IDLE_TIMEOUT);
        ana.get("/me").await.is(200);
    }
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
}

/// TIME-03: idle is counted from the last request, not from when it was written down.
#[tokio::test]
async fn idle_is_counted_from_the_last_request() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(29 * MINUTE);
    ana.get("/check").await.is(204);
    background::write_back_lagging(&stage.app).await.expect("written");
    stage.clock.advance(IDLE_TIMEOUT);
    passive(&ana).get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_session_that_was_long_idle_when_its_absolute_deadline_passed_died_of_idleness() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(2 * ABSOLUTE_TIMEOUT);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_session_that_was_in_use_up_to_its_absolute_deadline_has_expired_however_late_one_asks() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    for _ in 0..95 {
        stage.clock.advance(15 * MINUTE);
        ana.get("/me").await.is(200);
        ben.get("/me").await.is(200);
    }
    stage.clock.advance(15 * MINUTE + TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
    // Past what would have been its idle limit too: the deadline that it met first is the reason.
    stage.clock.advance(DAY);
    ben.get("/me").await.is_refused(401, "session_expired");
}

#[tokio::test]
async fn the_reason_that_was_told_first_stays_the_reason() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    stage.clock.advance(2 * DAY);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_refusal_for_a_timeout_leaves_the_cookie_alone() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    assert!(ana.get("/me").await.is(401).set_cookies().is_empty());
    assert!(ana.get("/me").await.is(401).set_cookies().is_empty());
}

#[tokio::test]
async fn every_route_that_needs_a_session_is_checked() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let mut browsers = Vec::new();
    for (name, path, needs) in CONTRACT {
        if needs != Needs::Nobody {
            browsers.push((name, path, stage.sign_in("ana").await, stage.sign_in("ana").await));
        }
    }
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    for (name, path, first, polling) in &browsers {
        bare(first, name, &filled(path)).await.is_refused(401, "session_idle_timeout");
        bare(&passive(polling), name, &filled(path)).await.is_refused(401, "session_idle_timeout");
    }
}

#[tokio::test]
async fn open_routes_ignore_a_dead_token() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    ana.get("/health/live").await.is(200);
    assert!(!ana.poke("/logout").await.is(204).clears_session());
    ana.log_in("ana").await.is(200);
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn a_remembered_session_has_timeouts_of_its_own() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let (idle, _) = remembered(&stage, "ana").await;
    let (busy, _) = remembered(&stage, "ana").await;
    stage.clock.advance(7 * DAY);
    busy.get("/me").await.is(200);
    passive(&idle).get("/me").await.is(200);
    stage.clock.advance(TICK);
    idle.get("/me").await.is_refused(401, "session_idle_timeout");
    busy.get("/me").await.is(200);
    for _ in 0..3 {
        stage.clock.advance(7 * DAY);
        busy.get("/me").await.is(200);
    }
    stage.clock.advance(2 * DAY - TICK);
    busy.get("/me").await.is(200);
    stage.clock.advance(TICK);
    busy.get("/me").await.is_refused(401, "session_expired");
}

/// COOK-01: the cookie lives no longer than its session.
#[tokio::test]
async fn the_timeouts_of_a_role_win_over_the_common_ones_and_over_those_of_remembered_sessions() {
    let stage = Stage::with(&[("ROLE_TIMEOUTS", "admin=5m/8h")]).await;
    let admin = stage.admin("root").await;
    let (kept, answer) = remembered(&stage, "root").await;
    let ana = stage.sign_up("ana").await;
    let cookie = answer.set_cookies().into_iter().find(|line| line.starts_with("holdfast=")).expect("a cookie");
    assert!(cookie.contains("Max-Age=28800"), "{cookie}");
    let session = &answer.json()["session"];
    assert_eq!(session["remember"], true);
    assert_eq!(moment(&session["expires_at"]), START.plus(8 * HOUR));
    assert_eq!(moment(&session["idle_expires_at"]), START.plus(5 * MINUTE));

    stage.clock.advance(5 * MINUTE);
    passive(&admin).get("/me").await.is(200);
    passive(&kept).get("/me").await.is(200);
    stage.clock.advance(TICK);
    admin.get("/me").await.is_refused(401, "session_idle_timeout");
    kept.get("/me").await.is_refused(401, "session_idle_timeout");
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn the_absolute_timeout_of_a_role_counts_however_active() {
    let stage = Stage::with(&[("ROLE_TIMEOUTS", "admin=none/8h")]).await;
    let admin = stage.admin("root").await;
    stage.clock.advance(8 * HOUR);
    admin.get("/me").await.is(200);
    stage.clock.advance(TICK);
    admin.get("/me").await.is_refused(401, "session_expired");
}

#[tokio::test]
async fn a_role_without_timeouts_of_its_own_keeps_those_of_remembered_sessions() {
    let stage = Stage::with(&[("ROLE_TIMEOUTS", "admin=5m/8h")]).await;
    stage.sign_up("ana").await;
    let (_, answer) = remembered(&stage, "ana").await;
    assert_eq!(moment(&answer.json()["session"]["expires_at"]), START.plus(30 * DAY));
    assert_eq!(moment(&answer.json()["session"]["idle_expires_at"]), START.plus(7 * DAY));
}

#[tokio::test]
async fn without_an_idle_timeout_silence_is_no_reason() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none"), ("REMEMBER_TIMEOUTS", "none/30d")]).await;
    let ana = stage.sign_up("ana").await;
    let (kept, _) = remembered(&stage, "ana").await;
    assert_eq!(moment(&own_session(&ana).await["idle_expires_at"]), START.plus(ABSOLUTE_TIMEOUT));
    stage.clock.advance(ABSOLUTE_TIMEOUT);
    passive(&ana).get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
    stage.clock.advance(29 * DAY - TICK);
    kept.get("/me").await.is(200);
    stage.clock.advance(TICK);
    kept.get("/me").await.is_refused(401, "session_expired");
}

#[tokio::test]
async fn shorter_settings_after_a_restart_count_for_new_sessions_only() {
    let mut stage = Stage::new().await;
    let old = stage.sign_up("ana").await;
    stage.restart_with(&[("IDLE_TIMEOUT", "5m"), ("ABSOLUTE_TIMEOUT", "1h")]).await;
    let old_again = stage.anon();
    old_again.set_token(old.token().as_deref());
    let new = stage.sign_in("ana").await;
    let shown = own_session(&old_again).await;
    assert_eq!(moment(&shown["idle_expires_at"]), START.plus(IDLE_TIMEOUT));
    assert_eq!(moment(&shown["expires_at"]), START.plus(ABSOLUTE_TIMEOUT));
    stage.clock.advance(5 * MINUTE + TICK);
    new.get("/me").await.is_refused(401, "session_idle_timeout");
    stage.clock.advance(25 * MINUTE - TICK);
    old_again.get("/me").await.is(200);
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    old_again.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn longer_settings_after_a_restart_lengthen_no_session() {
    let mut stage = Stage::new().await;
    let old = stage.sign_up("ana").await;
    stage.restart_with(&[("IDLE_TIMEOUT", "none"), ("ABSOLUTE_TIMEOUT", "30d"), ("ROLE_TIMEOUTS", "user=none/60d")]).await;
    let old_again = stage.anon();
    old_again.set_token(old.token().as_deref());
    stage.clock.advance(IDLE_TIMEOUT);
    passive(&old_again).get("/me").await.is(200);
    stage.clock.advance(TICK);
    old_again.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// TIME-04.
#[tokio::test]
async fn passive_polls_get_their_answers_and_keep_nobody_signed_in() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for path in ["/me", "/me/sessions", "/me/activity"] {
        stage.clock.advance(10 * MINUTE);
        passive(&ana).get(path).await.is(200);
        passive(&ana).get("/check").await.is(204);
    }
    stage.clock.advance(TICK);
    passive(&ana).get("/check").await.is_refused(401, "session_idle_timeout");
}

/// TIME-04: also when the session is not in memory yet.
#[tokio::test]
async fn a_passive_poll_after_a_restart_is_no_activity_either() {
    let mut stage = Stage::new().await;
    let before = stage.sign_up("ana").await;
    stage.clock.advance(20 * MINUTE);
    stage.restart().await;
    let ana = stage.anon();
    ana.set_token(before.token().as_deref());
    passive(&ana).get("/me").await.is(200);
    stage.clock.advance(10 * MINUTE + TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_passive_poll_shows_the_last_activity_and_not_itself() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(7 * MINUTE);
    let shown = own_session(&passive(&ana)).await;
    assert_eq!(moment(&shown["last_active_at"]), START);
    assert_eq!(moment(&shown["idle_expires_at"]), START.plus(IDLE_TIMEOUT));
}

#[tokio::test]
async fn only_a_1_makes_a_request_passive() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for value in ["0", "true", "", "yes"] {
        stage.clock.advance(20 * MINUTE);
        ana.clone().with_header("x-session-passive", value).get("/me").await.is(200);
    }
}

#[tokio::test]
async fn the_check_of_a_proxy_is_activity() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..4 {
        stage.clock.advance(20 * MINUTE);
        ana.get("/check").await.is(204);
    }
}

#[tokio::test]
async fn requests_that_failed_the_check_are_no_activity() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ana.token().expect("a token");
    stage.clock.advance(20 * MINUTE);
    // Two cookies of the name: nobody can say which is meant.
    let twice = stage.anon().with_header("cookie", &format!("holdfast={token}; holdfast={token}"));
    twice.get("/me").await.is_refused(401, "unauthenticated");
    // Refused before anything is read.
    ana.clone().with_header("origin", "https://evil.example").patch("/me", json!({"name": "Eve"})).await.is_refused(403, "cross_site_request");
    stage.clock.advance(10 * MINUTE);
    assert_eq!(moment(&own_session(&passive(&ana)).await["last_active_at"]), START);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_refused_request_does_not_wind_the_clock_of_a_session_that_is_dead() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    for _ in 0..3 {
        ana.get("/me").await.is_refused(401, "session_idle_timeout");
    }
    stage.sign_in("ana").await;
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions WHERE ended_at IS NULL"), 1);
}

/// CLK-02.
#[tokio::test]
async fn a_clock_that_steps_back_revives_nothing() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(ABSOLUTE_TIMEOUT);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    stage.clock.step_back(ABSOLUTE_TIMEOUT);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// CLK-02.
#[tokio::test]
async fn a_rejected_session_stays_dead_after_a_restart_and_a_crash_whatever_the_clock_says() {
    let mut stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    passive(&ana).get("/check").await.is_refused(401, "session_idle_timeout");
    ben.get("/me").await.is_refused(401, "session_idle_timeout");
    stage.crash().await;
    stage.clock.step_back(IDLE_TIMEOUT);
    for before in [&ana, &ben] {
        let again = stage.anon();
        again.set_token(before.token().as_deref());
        again.get("/me").await.is_refused(401, "session_idle_timeout");
    }
    stage.restart().await;
    let again = stage.anon();
    again.set_token(ana.token().as_deref());
    again.get("/check").await.is_refused(401, "session_idle_timeout");
}

/// CLK-02.
#[tokio::test]
async fn an_expired_session_stays_dead_when_the_clock_steps_back() {
    let mut stage = Stage::with(&[("IDLE_TIMEOUT", "none")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(ABSOLUTE_TIMEOUT + TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
    stage.clock.step_back(2 * HOUR);
    ana.get("/me").await.is_refused(401, "session_expired");
    stage.crash().await;
    let again = stage.anon();
    again.set_token(ana.token().as_deref());
    again.get("/me").await.is_refused(401, "session_expired");
}

/// CLK-02: nobody came with it before the step, so nobody was told that it is over.
#[tokio::test]
async fn a_session_that_was_dead_before_the_clock_stepped_back_stays_dead_unmet() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let seen = Arc::new(AtomicI64::new(0));
    stage.clock.advance(IDLE_TIMEOUT / 2);
    ben.get("/me").await.is(200);
    stage.clock.advance(IDLE_TIMEOUT / 2 + TICK);
    watch_clock(stage.app.clone(), seen.clone()).await.expect("nothing to do");
    stage.clock.step_back(TICK * 2_000);
    watch_clock(stage.app.clone(), seen.clone()).await.expect("the database is there");
    ben.get("/me").await.is(200);
    if ON_POSTGRES {
        // There the database's own clock is asked too, and it knows nothing of this test's.
        return;
    }
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// CLK-02: a database that is gone for a moment does not make a step forgotten.
#[tokio::test]
async fn a_step_back_that_could_not_be_dealt_with_is_found_again() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let seen = Arc::new(AtomicI64::new(stage.clock.now().0));
    stage.clock.step_back(Duration::from_secs(3600));
    let before = seen.load(Ordering::Relaxed);
    stage.execute("ALTER TABLE device_sessions RENAME TO elsewhere");
    watch_clock(stage.app.clone(), seen.clone()).await.expect_err("no such table");
    assert_eq!(seen.load(Ordering::Relaxed), before);
    stage.execute("ALTER TABLE elsewhere RENAME TO device_sessions");
    watch_clock(stage.app.clone(), seen.clone()).await.expect("the database is there");
    assert_eq!(seen.load(Ordering::Relaxed), stage.clock.now().0);
}

/// CLK-02: the clock ran ahead for a while, and what was purged by it must not live on in memory.
#[tokio::test]
async fn a_session_that_a_fast_clock_had_purged_opens_nothing_when_the_clock_comes_back() {
    let stage = Stage::with(&[("ENDED_SESSION_RETENTION", "1h"), ("ABSOLUTE_TIMEOUT", "8h"), ("IDLE_TIMEOUT", "none")]).await;
    let ana = stage.sign_up("ana").await;
    ana.get("/check").await.is(204);
    stage.clock.advance(10 * HOUR);
    purge(&stage.app.db, &stage.app.config, stage.app.clock.now(), |_, _| {}).await.expect("the purge works");
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 0);
    stage.clock.step_back(10 * HOUR);
    ana.get("/check").await.is_refused(401, "unauthenticated");
}

/// CLK-02.
#[tokio::test]
async fn a_clock_that_steps_back_extends_nothing_beyond_the_step() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    stage.clock.step_back(2 * HOUR);
    ana.get("/me").await.is(200);
    stage.clock.advance(2 * HOUR + IDLE_TIMEOUT);
    passive(&ana).get("/me").await.is(200);
    passive(&ben).get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    ben.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// CLK-02.
#[tokio::test]
async fn a_clock_that_steps_back_moves_no_absolute_deadline() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.step_back(2 * HOUR);
    assert_eq!(moment(&own_session(&ana).await["expires_at"]), START.plus(ABSOLUTE_TIMEOUT));
    stage.clock.advance(2 * HOUR + ABSOLUTE_TIMEOUT);
    ana.get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
}

/// CLK-02: an error of twenty minutes that was soon put right.
#[tokio::test]
async fn activity_on_a_fast_clock_extends_nothing_beyond_the_step() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(20 * MINUTE);
    ana.get("/me").await.is(200);
    stage.clock.step_back(20 * MINUTE);
    ana.get("/me").await.is(200);
    stage.clock.advance(20 * MINUTE + IDLE_TIMEOUT);
    passive(&ana).get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// CLK-02: those who did not call meanwhile noticed nothing.
#[tokio::test]
async fn a_clock_that_ran_ahead_and_came_back_costs_only_those_who_called_meanwhile() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    stage.clock.advance(2 * HOUR);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    stage.clock.step_back(2 * HOUR);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    ben.get("/me").await.is(200);
    ana.log_in("ana").await.is(200);
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn the_idle_deadline_that_is_shown_is_the_one_that_is_enforced() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "7m")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(Duration::from_millis(123_457));
    let shown = moment(&own_session(&ana).await["idle_expires_at"]);
    let left = u64::try_from(shown.since(stage.clock.now())).expect("in the future");
    stage.clock.advance(Duration::from_millis(left));
    passive(&ana).get("/me").await.is(200);
    stage.clock.advance(TICK);
    passive(&ana).get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn the_absolute_deadline_that_is_shown_is_the_one_that_is_enforced() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none"), ("ABSOLUTE_TIMEOUT", "90m")]).await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(Duration::from_millis(123_457));
    let shown = moment(&own_session(&ana).await["expires_at"]);
    let left = u64::try_from(shown.since(stage.clock.now())).expect("in the future");
    stage.clock.advance(Duration::from_millis(left));
    ana.get("/me").await.is(200);
    stage.clock.advance(TICK);
    ana.get("/me").await.is_refused(401, "session_expired");
}

#[tokio::test]
async fn the_idle_deadline_never_lies_after_the_absolute_one() {
    let stage = Stage::with(&[("ABSOLUTE_TIMEOUT", "1h")]).await;
    let ana = stage.sign_up("ana").await;
    for minutes in [0, 15, 15, 15, 15] {
        stage.clock.advance(minutes * MINUTE);
        let shown = own_session(&ana).await;
        let (idle, absolute) = (moment(&shown["idle_expires_at"]), moment(&shown["expires_at"]));
        assert_eq!(absolute, START.plus(HOUR));
        assert_eq!(idle, stage.clock.now().plus(IDLE_TIMEOUT).min(absolute));
    }
}

#[tokio::test]
async fn last_active_is_exact_for_every_session_of_the_list() {
    let stage = Stage::new().await;
    let laptop = stage.sign_up("ana").await;
    let phone = stage.sign_in("ana").await;
    stage.clock.advance(Duration::from_millis(12_345));
    phone.get("/check").await.is(204);
    stage.clock.advance(Duration::from_millis(1));
    let list = laptop.get("/me/sessions").await.is(200).json();
    let times: Vec<Timestamp> = list["sessions"].as_array().expect("a list").iter().map(|session| moment(&session["last_active_at"])).collect();
    assert_eq!(times, [Timestamp(START.0 + 12_346), Timestamp(START.0 + 12_345)]);
}

/// What `laptop` sees as the last activity of the other session.
async fn last_active_of_the_other(stage: &Stage, laptop: &Actor) -> Timestamp {
    let again = stage.anon();
    again.set_token(laptop.token().as_deref());
    let list = again.get("/me/sessions").await.is(200).json();
    let all = list["sessions"].as_array().expect("a list").clone();
    let other = all.iter().find(|session| session["current"] == false).expect("another session");
    moment(&other["last_active_at"])
}

/// TIME-03.
#[tokio::test]
async fn last_active_survives_a_restart_exactly() {
    let mut stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    stage.clock.advance(Duration::from_millis(12_345));
    phone.get("/me").await.is(200);
    stage.clock.advance(MINUTE);
    stage.restart().await;
    assert_eq!(last_active_of_the_other(&stage, &laptop).await, Timestamp(START.0 + 12_345));
}

/// Uses a session every `step`, with the background at work, and says by how many milliseconds a crash sets it back.
async fn lost_in_a_crash(setting: (&str, &str), step: Duration, requests: u32) -> i64 {
    let mut stage = Stage::with(&[setting]).await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    for _ in 0..requests {
        stage.clock.advance(step);
        phone.get("/check").await.is(204);
        laptop.get("/check").await.is(204);
        background::write_back_lagging(&stage.app).await.expect("written");
    }
    let truth = stage.clock.now();
    stage.crash().await;
    truth.since(last_active_of_the_other(&stage, &laptop).await)
}

/// TIME-03.
#[tokio::test]
async fn after_a_crash_last_active_is_older_by_at_most_a_thirtieth_of_the_idle_timeout() {
    // 5m allow 10 s.
    for requests in [1, 2, 3, 7, 20] {
        let lost = lost_in_a_crash(("IDLE_TIMEOUT", "5m"), 3 * SECOND, requests).await;
        assert!((0..=10_000).contains(&lost), "{requests}: {lost} ms");
    }
    let lost = lost_in_a_crash(("IDLE_TIMEOUT", "5m"), Duration::from_millis(9_999), 5).await;
    assert!((0..=10_000).contains(&lost), "{lost} ms");
    for requests in [1, 2, 9, 20] {
        let lost = lost_in_a_crash(("IDLE_TIMEOUT", "5s"), Duration::from_millis(70), requests).await;
        assert!((0..=166).contains(&lost), "{requests}: {lost} ms");
        // What counts is the session's own idle timeout.
        let lost = lost_in_a_crash(("ROLE_TIMEOUTS", "user=1m/8h"), Duration::from_millis(900), requests).await;
        assert!((0..=2_000).contains(&lost), "{requests}: {lost} ms");
    }
}

/// TIME-03.
#[tokio::test]
async fn after_a_crash_last_active_is_never_older_by_more_than_a_minute() {
    for (idle, step) in [("30m", 7 * SECOND), ("20h", 50 * SECOND), ("none", 59 * SECOND), ("none", 10 * MINUTE)] {
        for requests in [1, 2, 9, 20] {
            let lost = lost_in_a_crash(("IDLE_TIMEOUT", idle), step, requests).await;
            assert!((0..=60_000).contains(&lost), "{idle}, {requests} times {step:?}: {lost} ms");
        }
    }
}

/// TIME-03: a crash may make idle come early by what was lost, never late.
#[tokio::test]
async fn after_a_crash_idle_comes_at_most_a_minute_early_and_never_late() {
    let mut stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    for _ in 0..9 {
        stage.clock.advance(7 * SECOND);
        ana.get("/me").await.is(200);
        ben.get("/me").await.is(200);
        background::write_back_lagging(&stage.app).await.expect("written");
    }
    stage.crash().await;
    let (ana_again, ben_again) = (stage.anon(), stage.anon());
    ana_again.set_token(ana.token().as_deref());
    ben_again.set_token(ben.token().as_deref());
    stage.clock.advance(IDLE_TIMEOUT - MINUTE);
    passive(&ana_again).get("/me").await.is(200);
    stage.clock.advance(MINUTE + TICK);
    ana_again.get("/me").await.is_refused(401, "session_idle_timeout");
    ben_again.get("/me").await.is_refused(401, "session_idle_timeout");
}

/// Between instances idle may come a minute early, not half an hour: what another one has written down counts.
#[tokio::test]
async fn an_instance_rejects_no_session_that_another_one_has_seen_and_written_down() {
    let mut stage = Stage::new().await;
    let here = stage.sign_up("ana").await;
    let app = stage.app.clone();
    stage.crash().await;
    let there = stage.anon();
    there.set_token(here.token().as_deref());
    passive(&there).get("/check").await.is(204);
    stage.clock.advance(IDLE_TIMEOUT - TICK);
    here.get("/check").await.is(204);
    background::write_back_lagging(&app).await.expect("written");
    stage.clock.advance(2 * TICK);
    there.get("/check").await.is(204);
    here.get("/check").await.is(204);
}

/// TIME-03: the request that is judged late may be overtaken by one that came in time, of which only memory knows yet.
#[tokio::test]
async fn a_late_look_that_was_overtaken_takes_no_activity_back() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.get("/check").await.is(204);
    let poll = passive(&ana).request(Method::GET, "/me").body(Body::empty()).expect("a request");
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    let late = look(&stage.app, poll.headers());
    stage.clock.step_back(MINUTE);
    ana.get("/check").await.is(204);
    stage.clock.advance(30 * SECOND);
    ana.get("/check").await.is(204);
    assert!(require_session(&stage.app, poll, late).await.is_ok());
    assert_eq!(moment(&own_session(&passive(&ana)).await["last_active_at"]), stage.clock.now());
}

#[tokio::test]
async fn a_logout_that_comes_too_late_leaves_the_timeout_as_the_reason() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    let answer = ana.poke("/logout").await.is(204);
    assert!(answer.set_cookies().is_empty());
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn a_sign_in_over_a_timed_out_session_leaves_the_timeout_as_the_reason() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let before = ana.copy();
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    ana.log_in("ana").await.is(200);
    before.get("/me").await.is_refused(401, "session_idle_timeout");
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'session_timed_out'"), 1);
}

/// TIME-03: the write-back of a session that has ended meanwhile brings nothing back.
#[tokio::test]
async fn the_write_back_revives_no_session() {
    let mut stage = Stage::new().await;
    let (laptop, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    stage.clock.advance(2 * MINUTE);
    phone.get("/me").await.is(200);
    laptop.delete("/me/sessions").await.is(200);
    background::write_back_lagging(&stage.app).await.expect("written");
    background::write_back_all(&stage.app).await.expect("written");
    phone.get("/me").await.is_refused(401, "session_revoked");
    stage.crash().await;
    let again = stage.anon();
    again.set_token(phone.token().as_deref());
    again.get("/me").await.is_refused(401, "session_revoked");
}

#[tokio::test]
async fn a_timeout_is_recorded_once_with_its_session_and_reason() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let session = own_session(&ana).await["id"].clone();
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    for _ in 0..3 {
        ana.get("/me").await.is_refused(401, "session_idle_timeout");
        ana.get("/check").await.is_refused(401, "session_idle_timeout");
    }
    ana.log_in("ana").await.is(200);
    let activity = ana.get("/me/activity").await.is(200).json();
    let told: Vec<&Value> = activity["events"].as_array().expect("a list").iter().filter(|event| event["kind"] == "session_timed_out").collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["session_id"], session);
    assert!(told[0]["detail"].to_string().contains("session_idle_timeout"), "{}", told[0]);
}

#[tokio::test]
async fn a_timeout_is_recorded_once_also_when_the_user_meanwhile_acted_elsewhere() {
    let stage = Stage::new().await;
    let (old, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    stage.clock.advance(20 * MINUTE);
    phone.get("/me").await.is(200);
    stage.clock.advance(20 * MINUTE);
    assert_eq!(phone.delete("/me/sessions").await.is(200).json()["signed_out"], 0);
    old.get("/me").await.is_refused(401, "session_idle_timeout");
    old.get("/me").await.is_refused(401, "session_idle_timeout");
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'session_timed_out'"), 1);
}

#[tokio::test]
async fn an_administrator_signs_in() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    admin.get("/admin/users").await.is(200);
}
