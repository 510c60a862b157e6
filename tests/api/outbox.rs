//! The outbox: every letter gets out once it can, at least once, and none is lost. Mail servers die, instances crash with letters
//! in hand, clocks go on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use holdfast::event::outbox::deliver_due;

use crate::stage::{Stage, TICK, email_of, password_of};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_letter_goes_out_once() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
    stage.clock.advance(2 * HOUR);
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 0);
    assert_eq!(stage.mailbag.letters().len(), 1);
}

/// So that a server which stops can wait for those that are on their way.
#[tokio::test]
async fn once_the_post_is_closed_no_letter_is_begun() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.app.post_closed.store(true, Ordering::SeqCst);
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 0);
    assert_eq!(stage.count("SELECT attempts FROM outbox"), 0);
    stage.app.post_closed.store(false, Ordering::SeqCst);
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
}

#[tokio::test]
async fn a_letter_whose_cause_was_rolled_back_was_never_written() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let before = stage.letters().await.len();
    ana.change_password("wrong password", "quite another password").await.is(403);
    stage.anon().post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(409);
    assert_eq!(stage.letters().await.len(), before);
}

#[tokio::test]
async fn a_refused_letter_comes_back_later_and_later() {
    let stage = Stage::new().await;
    stage.mailbag.refuse(true);
    stage.sign_up("ana").await;
    let attempts = |stage: &Stage| stage.count("SELECT attempts FROM outbox");
    let wait = |stage: &Stage| stage.count("SELECT due_at FROM outbox") - stage.app.clock.now().0;
    for (n, longest) in [(1, 10_000), (2, 20_000), (3, 40_000), (4, 80_000)] {
        assert_eq!(deliver_due(&stage.app).await.expect("works"), 0);
        assert_eq!(attempts(&stage), n);
        assert!((longest / 2..=longest).contains(&wait(&stage)), "{n}: {}", wait(&stage));
        stage.clock.advance(Duration::from_millis(u64::try_from(wait(&stage)).expect("later")) - TICK);
        deliver_due(&stage.app).await.expect("works");
        assert_eq!(attempts(&stage), n, "not a millisecond early");
        stage.clock.advance(TICK);
    }
    stage.mailbag.refuse(false);
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
}

#[tokio::test]
async fn after_a_day_a_letter_is_given_up_with_an_event() {
    let stage = Stage::new().await;
    stage.mailbag.refuse(true);
    let admin = stage.admin("root").await;
    stage.sign_up("ana").await;
    for _ in 0..60 {
        deliver_due(&stage.app).await.expect("works");
        stage.clock.advance(HOUR / 2);
    }
    assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE done_at IS NULL"), 0);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'letter_failed'"), stage.count("SELECT count(*) FROM outbox"));
    let attempts = stage.count("SELECT max(attempts) FROM outbox");
    assert!((15..=40).contains(&attempts), "{attempts}");
    admin.log_in("root").await.is(200);
    let told = admin.get("/admin/events?kind=letter_failed").await.is(200).json();
    let kinds: Vec<&str> = told["events"].as_array().expect("a list").iter().filter_map(|event| event["detail"]["letter"].as_str()).collect();
    assert!(kinds.contains(&"verify_email") && kinds.contains(&"new_device_login"), "{kinds:?}");
    stage.mailbag.refuse(false);
    assert!(stage.letters().await.is_empty());
}

/// What `kill -9` leaves behind: a lease that nobody holds.
#[tokio::test]
async fn a_letter_in_the_hands_of_a_dead_instance_goes_out_when_its_lease_is_over() {
    let mut stage = Stage::new().await;
    stage.sign_up("ana").await;
    let now = stage.app.clock.now().0;
    stage.execute(&format!("UPDATE outbox SET attempts = 1, leased_until = {}", now + 120_000));
    stage.crash().await;
    assert!(stage.letters().await.is_empty());
    stage.clock.advance(Duration::from_secs(120));
    assert_eq!(stage.letters().await.len(), 1);
}

#[tokio::test]
async fn several_instances_deliver_each_letter_once() {
    let mut stage = Stage::without_limits().await;
    for n in 0..40 {
        stage.anon().post("/signup", json!({"email": format!("user{n}@example.com"), "password": "a good password"})).await.is(201);
    }
    let first = stage.app.clone();
    stage.crash().await;
    let (one, two) = tokio::join!(deliver_due(&first), deliver_due(&stage.app));
    assert_eq!(one.expect("works") + two.expect("works"), 40);
    let mut letters: Vec<String> = stage.mailbag.letters().into_iter().map(|letter| letter.to).collect();
    letters.sort();
    letters.dedup();
    assert_eq!((letters.len(), stage.mailbag.letters().len()), (40, 40));
}

#[tokio::test]
async fn letters_of_a_removed_account_are_not_sent() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.execute("DELETE FROM users");
    assert!(stage.letters().await.is_empty());
    assert_eq!(stage.count("SELECT count(*) FROM outbox"), 0);
}
