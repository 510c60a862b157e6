//! A database that is away, frozen, read-only, or another one by now: `503`, never a wrong yes and never a logout; and with
//! its return everything goes on, without a restart. Each on a server of its own, which it may treat as it likes.

use std::path::Path;
use std::sync::Arc;

use holdfast::db::Fault;

use crate::cluster::{Cluster, none_found};
use crate::database::{Database, Hand};
use crate::line::Line;
use crate::process::{Browser, PASSWORD, PATIENCE, Place, Server, soon};
use crate::stage::Stage;

/// As many as there are connections for transactions: each gets to be used.
const ALL_CONNECTIONS: usize = 13;

fn cluster() -> Cluster {
    Cluster::start().unwrap_or_else(|| none_found())
}

fn place_on(url: &str) -> Place {
    Place::with(&[("DATABASE_URL", url)])
}

/// The URL of several servers, in this order, by the folders of their sockets.
fn of_several(folders: &[&Path]) -> String {
    let hosts: Vec<String> = folders.iter().map(|folder| folder.display().to_string().replace('/', "%2F")).collect();
    format!("postgres://holdfast@{}/postgres", hosts.join(","))
}

fn check(server: &Server, token: &str) -> crate::process::Reply {
    server.browser().holding(token).get("/check")
}

fn log_in(server: &Server) -> crate::process::Reply {
    server.browser().log_in("ana@example.com", PASSWORD)
}

/// Not now: with the time to come again, and nothing said of who is signed in.
#[track_caller]
fn is_not_now(reply: crate::process::Reply) {
    let reply = reply.is_refused(503, "overloaded");
    assert!(reply.header("retry-after").is_some() && reply.header("set-cookie").is_none(), "{reply:?}");
}

/// Says that it is not ready, to whoever asks.
#[track_caller]
fn is_not_ready(server: &Server) {
    assert!(soon(PATIENCE, || server.browser().get("/health/ready").status == 503), "it says that it is ready");
    server.browser().get("/health/live").is(200);
}

/// Comes back by itself: once it says that it is ready, the first who asks is served.
#[track_caller]
fn is_back(server: &Server, token: &str) {
    assert!(soon(PATIENCE, || server.browser().get("/health/ready").status == 200), "it does not come back");
    check(server, token).is(204);
    log_in(server).is(200);
}

#[test]
fn while_the_primary_is_frozen_the_answer_is_503_and_when_it_goes_on_so_does_everything() {
    let mut cluster = cluster();
    let place = place_on(cluster.url());
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    let (live, dead) = (ana.token(), server.sign_in("ana@example.com").token());
    Browser::at(server.address()).holding(&dead).poke("/logout").is(204);
    cluster.freeze();
    std::thread::scope(|threads| {
        // Together: each waits for its own bound.
        threads.spawn(|| is_not_now(check(&server, &live)));
        threads.spawn(|| is_not_now(check(&server, &dead)));
        threads.spawn(|| is_not_now(log_in(&server)));
        threads.spawn(|| is_not_now(server.browser().holding(&live).poke("/logout")));
        threads.spawn(|| is_not_ready(&server));
    });
    cluster.thaw();
    is_back(&server, &live);
    check(&server, &dead).is_refused(401, "session_logged_out");
    ana.get("/me").is(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_that_takes_no_writes_any_more_is_unavailable_and_no_fault_of_ours() {
    let cluster = cluster();
    let stage = Stage::on(Arc::new(Database::at(cluster.url())), &[]).await;
    let ana = stage.sign_up("ana").await;
    let turn = |word: &str| {
        stage.execute(&format!("ALTER SYSTEM SET default_transaction_read_only = {word}"));
        stage.execute("SELECT pg_reload_conf()");
    };
    turn("on");
    // The connections that stand hear of it a little later than we do, and new ones are refused.
    let mut heard = 200;
    for _ in 0..10_000 {
        heard = stage.anon().log_in("ana").await.status.as_u16();
        if heard != 200 {
            break;
        }
    }
    assert_eq!(heard, 503);
    for _ in 0..20 {
        let refused = stage.anon().log_in("ana").await.is_refused(503, "overloaded");
        assert!(refused.headers.contains_key("retry-after"));
        // What can still be read says yes, or nothing at all.
        let status = ana.get("/check").await.status.as_u16();
        assert!(matches!(status, 204 | 503), "{status}");
    }
    assert!(stage.app.db.tend().await.is_err() && !stage.app.db.is_usable());
    turn("off");
    assert!(soon(PATIENCE, || stage.count("SELECT count(*) FROM pg_settings WHERE name = 'default_transaction_read_only' AND setting = 'off'") == 1));
    stage.app.db.tend().await.expect("it takes writes again");
    ana.get("/check").await.is(204);
    stage.sign_in("ana").await;
}

#[test]
fn of_several_hosts_the_one_that_takes_writes_is_used_also_after_a_fail_over() {
    // Nothing is acknowledged that the standby does not have.
    let mut primary = Cluster::start_with(&["synchronous_standby_names=*"]).unwrap_or_else(|| none_found());
    let standby = primary.standby();
    // Nobody listens at the first, and the second takes no writes.
    let url = of_several(&[Path::new("/tmp/nobody"), standby.folder(), primary.folder()]);
    let alone = place_on(standby.url()).run(&[]).exits_with_one_line(1);
    assert!(alone.stderr.contains("does not allow writes"), "{}", alone.stderr);
    let place = place_on(&url);
    let server = place.start();
    let (live, dead) = (server.sign_up("ana@example.com").token(), server.sign_in("ana@example.com").token());
    server.browser().holding(&dead).poke("/logout").is(204);
    primary.crash();
    is_not_now(check(&server, &live));
    Hand::server(standby.url()).execute("SELECT pg_promote()");
    is_back(&server, &live);
    check(&server, &dead).is_refused(401, "session_logged_out");
}

/// Signs in as often as there are connections, at once; says how each was answered.
async fn sign_in_at_once(stage: &Stage) -> Vec<u16> {
    let tasks: Vec<_> = (0..ALL_CONNECTIONS)
        .map(|_| {
            let browser = stage.anon();
            tokio::spawn(async move { browser.log_in("ana").await.status.as_u16() })
        })
        .collect();
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.expect("no panic"));
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_went_dark_are_all_dropped_when_one_look_fails() {
    let cluster = cluster();
    let line = Line::to(cluster.folder());
    let url = format!("postgres://holdfast@127.0.0.1:{}/postgres", line.port());
    let stage = Stage::on(Arc::new(Database::at(&url)), &[]).await;
    let ana = stage.sign_up("ana").await;
    sign_in_at_once(&stage).await;
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdfast'";
    let around = Database::at(cluster.url());
    assert!(around.by_hand(|hand| hand.number(ours)) > 1);
    line.go_dark();
    assert!(stage.app.db.tend().await.is_err(), "the look finds nothing wrong");
    // From here on nobody meets one of them, and waits for what does not come.
    assert!(around.by_hand(|hand| soon(PATIENCE, || hand.number(ours) == 0)), "dark connections are kept");
    stage.app.db.tend().await.expect("the second look has a new connection");
    ana.get("/check").await.is(204);
    assert!(sign_in_at_once(&stage).await.iter().all(|status| *status == 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_restart_of_the_database_the_first_look_finds_it_and_the_first_request_is_served() {
    let mut cluster = cluster();
    let stage = Stage::on(Arc::new(Database::at(cluster.url())), &[]).await;
    let ana = stage.sign_up("ana").await;
    sign_in_at_once(&stage).await;
    for crash in [false, true] {
        if crash {
            cluster.crash();
        } else {
            cluster.stop();
        }
        assert!(stage.app.db.tend().await.is_err() && !stage.app.db.is_usable());
        ana.get("/check").await.is_refused(503, "overloaded");
        cluster.begin();
        stage.app.db.tend().await.expect("the first look finds it");
        assert!(stage.app.db.is_usable());
        ana.get("/check").await.is(204);
        assert!(sign_in_at_once(&stage).await.iter().all(|status| *status == 200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_row_that_cannot_be_read_costs_its_own_token_only_also_when_it_travels_with_others() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    stage.execute(
        "UPDATE device_sessions SET ended_at = 1, ended_reason = 'no reason of ours' WHERE user_id = (SELECT id FROM users WHERE email = 'ana@example.com')",
    );
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let (browser, wanted) = if n % 2 == 0 { (ana.clone(), 500) } else { (ben.clone(), 204) };
            tokio::spawn(async move { (browser.get("/check").await.status.as_u16(), wanted) })
        })
        .collect();
    for task in tasks {
        let (status, wanted) = task.await.expect("no panic");
        assert_eq!(status, wanted);
    }
}

#[tokio::test]
async fn the_server_knows_how_long_a_statement_a_lock_and_an_idle_transaction_may_take() {
    let stage = Stage::new().await;
    for (name, wanted) in [("statement_timeout", "5s"), ("lock_timeout", "200ms"), ("idle_in_transaction_session_timeout", "10s")] {
        let told = stage.app.db.read(move |tx| tx.row::<String>("SELECT current_setting(?1)", (name,))).await;
        assert_eq!(told.map_err(|fault: Fault| fault).expect("it answers"), Some(wanted.to_string()));
    }
}
