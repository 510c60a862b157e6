//! Idle and absolute timeouts, checked on every request.

use crate::stage::{ABSOLUTE_TIMEOUT, IDLE_TIMEOUT, Stage, TICK};

#[tokio::test]
async fn an_idle_session_dies_and_says_why() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn exactly_at_the_idle_limit_a_session_lives() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT);
    ana.get("/me").await.is(200);
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

#[tokio::test]
async fn an_administrator_signs_in() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    admin.get("/admin/users").await.is(200);
}
