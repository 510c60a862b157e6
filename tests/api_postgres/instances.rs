//! Several instances on one database: every promise of the contract holds across them.
//!
//! First inside one process, with a clock that tests move: `here` and `there` are two servers that know nothing of each other
//! but the database. Then the program itself, twice, behind nginx.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};

use holdfast::background::{self, PURGE_LEASE};

use crate::cluster::Cluster;
use crate::database::Database;
use crate::nginx::Front;
use crate::process::{Browser, PASSWORD, PATIENCE, Place, Server, soon};
use crate::stage::{Actor, IDLE_TIMEOUT, START, Stage, TICK, email_of, password_of};

const MANY: usize = 20;
/// How often somebody knocks before the test fails: a build that lets everybody in for ever must not make it run for ever.
const MOST_KNOCKS: usize = 10_000;

async fn two() -> (Stage, Stage) {
    let here = Stage::new().await;
    let there = here.another().await;
    (here, there)
}

/// Runs all at once.
async fn at_once<T: Send + 'static>(deeds: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let tasks: Vec<_> = deeds.into_iter().map(tokio::spawn).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.expect("no panic"));
    }
    done
}

async fn id_of(actor: &Actor) -> String {
    actor.get("/me").await.is(200).json()["session"]["id"].as_str().expect("an id").to_string()
}

async fn user_of(actor: &Actor) -> String {
    actor.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string()
}

#[tokio::test]
async fn whatever_ends_a_session_on_one_instance_ends_it_on_all_before_its_answer() {
    let (here, there) = two().await;
    let admin = here.admin("admin").await;
    let ways = ["logout", "elsewhere", "everywhere else", "password", "admin", "role", "disabled"];
    for (n, way) in ways.into_iter().enumerate() {
        let name = format!("ana{n}");
        let (victim, phone) = (here.sign_up(&name).await, here.sign_in(&name).await);
        let (id, user) = (id_of(&victim).await, user_of(&victim).await);
        let copy = there.browser_of(&victim.copy());
        copy.get("/check").await.is(204);
        let (answer, code) = match way {
            "logout" => (victim.poke("/logout").await, "session_logged_out"),
            "elsewhere" => (phone.delete(&format!("/me/sessions/{id}")).await, "session_revoked"),
            "everywhere else" => (phone.delete("/me/sessions").await, "session_revoked"),
            "password" => (phone.change_password(&password_of(&name), "another good password").await, "session_revoked"),
            "admin" => (admin.delete(&format!("/admin/users/{user}/sessions/{id}")).await, "session_revoked"),
            "role" => (admin.put(&format!("/admin/users/{user}/role"), json!({"role": "admin"})).await, "session_revoked"),
            _ => (admin.poke(&format!("/admin/users/{user}/disable")).await, "session_revoked"),
        };
        assert!(answer.status.is_success(), "{way}: {}", answer.status);
        for path in ["/check", "/me", "/me/sessions"] {
            copy.get(path).await.is_refused(401, code);
        }
    }
}

/// The race: nobody who asks after the answer gets in, on either instance, while both are asked all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_gets_in_after_the_answer_while_both_instances_are_asked_all_the_time() {
    let (here, there) = two().await;
    for round in 0..10 {
        let name = format!("ana{round}");
        let (victim, phone) = (here.sign_up(&name).await, here.sign_in(&name).await);
        let id = id_of(&victim).await;
        let (ended, late, knocks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let doors = [victim.clone(), there.browser_of(&victim)];
        let asking = (0..8).map(|n| {
            let (door, ended, late, knocks) = (doors[n % 2].clone(), ended.clone(), late.clone(), knocks.clone());
            tokio::spawn(async move {
                let mut after = 0;
                for _ in 0..MOST_KNOCKS {
                    let was_over = ended.load(SeqCst);
                    let let_in = door.get("/check").await.status == 204;
                    knocks.fetch_add(1, SeqCst);
                    late.fetch_add(usize::from(was_over && let_in), SeqCst);
                    after += usize::from(was_over);
                    if after == 5 {
                        return;
                    }
                }
                panic!("the answer did not come");
            })
        });
        let asking: Vec<_> = asking.collect();
        while knocks.load(SeqCst) < 20 {
            tokio::task::yield_now().await;
        }
        there.browser_of(&phone).delete(&format!("/me/sessions/{id}")).await.is(204);
        ended.store(true, SeqCst);
        for task in asking {
            task.await.expect("no panic");
        }
        assert_eq!(late.load(SeqCst), 0, "somebody got in after the answer");
    }
}

#[tokio::test]
async fn a_session_that_is_used_on_one_instance_only_is_alive_on_the_other() {
    let (here, there) = two().await;
    let ana = here.sign_up("ana").await;
    let elsewhere = there.browser_of(&ana);
    elsewhere.get("/check").await.is(204);
    for _ in 0..6 {
        here.clock.advance(IDLE_TIMEOUT - TICK);
        ana.get("/check").await.is(204);
    }
    here.clock.advance(IDLE_TIMEOUT - TICK);
    elsewhere.with_header("x-session-passive", "1").get("/check").await.is(204);
    here.clock.advance(TICK);
    there.browser_of(&ana).get("/check").await.is(204);
    here.clock.advance(IDLE_TIMEOUT + TICK);
    there.browser_of(&ana).get("/check").await.is_refused(401, "session_idle_timeout");
    ana.get("/check").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn last_active_that_two_instances_write_back_never_goes_back() {
    let (here, there) = two().await;
    let ana = here.sign_up("ana").await;
    let elsewhere = there.browser_of(&ana);
    let stored = || here.count("SELECT last_active_at FROM device_sessions");
    here.clock.advance(Duration::from_secs(10));
    ana.get("/check").await.is(204);
    here.clock.advance(Duration::from_secs(10));
    elsewhere.get("/check").await.is(204);
    background::write_back_all(&there.app).await.expect("written");
    assert_eq!(stored(), START.0 + 20_000);
    background::write_back_all(&here.app).await.expect("written");
    assert_eq!(stored(), START.0 + 20_000);
}

#[tokio::test]
async fn a_retired_token_is_known_on_every_instance_and_its_reuse_is_told_once() {
    let (here, there) = two().await;
    let ana = here.sign_up("ana").await;
    let (thief, other_thief) = (ana.copy(), there.browser_of(&ana.copy()));
    ana.change_password(&password_of("ana"), "another good password").await.is(200);
    there.browser_of(&ana).get("/check").await.is(204);
    other_thief.get("/check").await.is_refused(401, "session_rotated");
    here.clock.advance(Duration::from_secs(61));
    at_once((0..MANY).map(|n| {
        let thief = if n % 2 == 0 { thief.copy() } else { other_thief.copy() };
        async move { thief.get("/check").await.is_refused(401, "session_rotated") }
    }))
    .await;
    assert_eq!(here.count("SELECT count(*) FROM events WHERE kind = 'rotated_token_reused'"), 1);
    ana.get("/check").await.is(204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_sign_ins_on_two_instances_leave_as_many_sessions_as_allowed() {
    // What the other instance has under way is not known here, and so many at once look like guesses.
    let here = Stage::with(&[("MAX_SESSIONS_PER_USER", "5"), ("GUESS_LIMIT_ACCOUNT", "none")]).await;
    let there = here.another().await;
    here.sign_up("ana").await;
    for _ in 0..5 {
        let browsers = (0..MANY).map(|n| if n % 2 == 0 { here.anon() } else { there.anon() });
        // Each from an address of its own: nothing but what they read together sets them against each other.
        let browsers = browsers.enumerate().map(|(n, browser)| browser.from_ip(&format!("203.0.113.{n}")));
        at_once(browsers.map(|browser| async move { browser.log_in("ana").await.is(200) })).await;
        assert_eq!(here.count("SELECT count(*) FROM device_sessions WHERE ended_at IS NULL"), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_rotations_on_two_instances_exactly_one_wins() {
    let (here, there) = two().await;
    for round in 0..5 {
        let name = format!("ana{round}");
        let ana = here.sign_up(&name).await;
        let browsers = (0..MANY).map(|n| if n % 2 == 0 { ana.copy() } else { there.browser_of(&ana.copy()) });
        let answers = at_once(browsers.enumerate().map(|(n, browser)| {
            let current = password_of(&name);
            async move { browser.change_password(&current, &format!("a new password, number {n}")).await }
        }))
        .await;
        let won = answers.iter().filter(|answer| answer.status == 200).count();
        let lost = answers.iter().filter(|answer| answer.code() == "session_rotated").count();
        assert_eq!((won, lost), (1, MANY - 1), "{answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_sign_ups_with_one_address_on_two_instances_exactly_one_wins() {
    let here = Stage::without_limits().await;
    let there = here.another().await;
    for round in 0..5 {
        let name = format!("ana{round}");
        let browsers = (0..MANY).map(|n| if n % 2 == 0 { here.anon() } else { there.anon() });
        let answers = at_once(browsers.map(|browser| {
            let body = json!({"email": email_of(&name), "password": password_of(&name)});
            async move { browser.post("/signup", body).await.status.as_u16() }
        }))
        .await;
        assert_eq!(answers.iter().filter(|status| **status == 201).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|status| **status == 409).count(), MANY - 1, "{answers:?}");
    }
}

async fn guess(stage: &Stage, n: usize, password: &str) -> u16 {
    let eve = stage.anon().from_ip(&format!("203.0.113.{n}"));
    eve.post("/login", json!({"email": email_of("ana"), "password": password})).await.status.as_u16()
}

#[tokio::test]
async fn wrong_passwords_count_on_all_instances_together() {
    let (here, there) = two().await;
    here.sign_up("ana").await;
    for n in 0..10 {
        assert_eq!(guess(if n % 2 == 0 { &here } else { &there }, n, "not the password").await, 401);
    }
    for stage in [&here, &there] {
        assert_eq!(guess(stage, 11, &password_of("ana")).await, 429);
    }
    here.clock.advance(Duration::from_secs(30));
    assert_eq!((guess(&there, 12, "not the password").await, guess(&here, 13, "not the password").await), (401, 429));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_wrong_passwords_at_once_on_two_instances_ten_are_checked() {
    let (here, there) = two().await;
    here.sign_up("ana").await;
    let (here, there) = (Arc::new(here), Arc::new(there));
    let answers = at_once((0..200).map(|n| {
        let stage = if n % 2 == 0 { here.clone() } else { there.clone() };
        async move { guess(&stage, n, "not the password").await }
    }))
    .await;
    assert_eq!(answers.iter().filter(|status| **status == 401).count(), 10, "{answers:?}");
    assert_eq!(here.count("SELECT count(*) FROM events WHERE kind = 'sign_in_failed'"), 10);
    assert_eq!(here.count("SELECT count(*) FROM events WHERE kind = 'sign_in_throttled'"), 1);
}

#[tokio::test]
async fn one_instance_purges_until_it_falls_silent_and_then_another_does() {
    let (here, there) = two().await;
    let purges = |stage: &Stage| {
        let app = stage.app.clone();
        async move { background::purge_for_all(&app).await.expect("the database answers") }
    };
    assert!(purges(&here).await);
    assert!(!purges(&there).await);
    here.clock.advance(PURGE_LEASE);
    assert!(purges(&here).await && !purges(&there).await);
    here.clock.advance(PURGE_LEASE + TICK);
    assert!(purges(&there).await && !purges(&here).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn instances_that_start_at_once_on_an_empty_database_make_its_tables_once() {
    for _ in 0..3 {
        let database = Arc::new(Database::new());
        let started = at_once((0..8).map(|_| {
            let database = database.clone();
            async move { Stage::on(database, &[]).await }
        }))
        .await;
        assert_eq!(started[0].count("SELECT count(*) FROM migrations"), started[7].count("SELECT count(DISTINCT name) FROM migrations"));
        started[3].sign_up("ana").await.get("/check").await.is(204);
    }
}

// ---- the program itself

fn place_on(url: &str) -> Place {
    Place::with(&[("DATABASE_URL", url)])
}

#[test]
fn a_newer_schema_is_refused_in_one_line() {
    let database = Database::new();
    let place = place_on(&database.url());
    place.start().stop();
    database.by_hand(|hand| hand.execute("INSERT INTO migrations (name, sql, applied_at) VALUES ('9999_future', 'SELECT 1', 0)"));
    let done = place.run(&[]).exits_with_one_line(1);
    assert!(done.stderr.contains("newer Holdfast (migration 9999_future)"), "{}", done.stderr);
}

#[test]
fn a_database_of_another_program_is_refused_and_left_as_it_is() {
    let database = Database::new();
    database.by_hand(|hand| hand.execute("CREATE TABLE notes (id bigint)"));
    let done = place_on(&database.url()).run(&[]).exits_with_one_line(1);
    assert!(done.stderr.contains("another program"), "{}", done.stderr);
    let tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()";
    assert_eq!(database.by_hand(|hand| hand.number(tables)), 1);
}

#[test]
fn a_server_that_cannot_be_reached_stops_the_start_and_the_password_is_not_told() {
    let place = place_on("postgres://ana:hunter2@127.0.0.1:1/x");
    let done = place.run(&[]).exits_with_one_line(1);
    assert!(done.stderr.contains("127.0.0.1:1/x") && !done.stderr.contains("hunter2"), "{}", done.stderr);
    let told = place.run(&["check-config"]).ok();
    assert!(!told.stdout.contains("hunter2"), "{}", told.stdout);
}

#[test]
fn the_command_line_and_two_instances_share_the_database() {
    let database = Database::new();
    let place = place_on(&database.url());
    let (one, other) = (place.start(), place.start());
    let mut ana = one.sign_up("ana@example.com");
    let mut elsewhere = Browser::at(other.address()).holding(&ana.token());
    elsewhere.get("/check").is(204);
    place.run(&["sessions", "revoke", "--user", "ana@example.com"]).ok();
    elsewhere.get("/check").is_refused(401, "session_revoked");
    ana.get("/check").is_refused(401, "session_revoked");
    let backup = place.run(&["backup", "copy"]).exits_with_one_line(1);
    assert!(backup.stderr.contains("pg_dump"), "{}", backup.stderr);
}

/// A browser that goes through the front, and to the instances in turn where there is none.
fn through(front: &Front, n: usize, token: &str) -> Browser {
    Browser::at(front.door(n)).holding(token)
}

#[test]
fn sessions_opened_and_ended_behind_a_load_balancer_are_the_same_on_every_instance() {
    let database = Database::new();
    let place = place_on(&database.url());
    let (one, other) = (place.start(), place.start());
    let front = Front::of(&[&one, &other]);
    for n in 0..10 {
        let email = format!("ana{n}@example.com");
        let mut first = Browser::at(front.door(n));
        first.post("/signup", json!({"email": email, "password": PASSWORD})).is(201);
        let mut second = Browser::at(front.door(n + 1));
        second.log_in(&email, PASSWORD).is(200);
        let (old, kept) = (first.token(), second.token());
        for turn in 0..6 {
            through(&front, turn, &old).get("/check").is(204);
        }
        let id = first.get("/me").is(200).json()["session"]["id"].as_str().expect("an id").to_string();
        through(&front, n, &kept).send("DELETE", &format!("/me/sessions/{id}"), None).is(204);
        for turn in 0..6 {
            through(&front, turn, &old).get("/check").is_refused(401, "session_revoked");
            through(&front, turn, &kept).get("/check").is(204);
        }
        let new: Value = json!({"current_password": PASSWORD, "new_password": "one more good password"});
        let mut rotating = through(&front, n, &kept);
        rotating.put("/me/password", new).is(200);
        for turn in 0..4 {
            through(&front, turn, &kept).get("/check").is_refused(401, "session_rotated");
            through(&front, turn, &rotating.token()).get("/check").is(204);
        }
    }
}

/// What a load saw.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    let_in: AtomicUsize,
    not_now: AtomicUsize,
    /// A live session was refused, or an ended one let in.
    wrong: std::sync::Mutex<Vec<String>>,
    /// Tokens whose logout was acknowledged.
    ended: std::sync::Mutex<Vec<String>>,
}

/// Asks with a session that lives, all the time, until it is over.
fn check_all_the_time(front: &Front, seen: &Arc<Seen>, token: String) -> std::thread::JoinHandle<()> {
    let (doors, seen) = (front.doors.clone(), seen.clone());
    std::thread::spawn(move || {
        let mut n = 0;
        let mut browsers: Vec<Browser> = doors.iter().map(|door| Browser::at(*door).holding(&token)).collect();
        while !seen.over.load(SeqCst) {
            n += 1;
            let browser = n % browsers.len();
            match browsers[browser].try_send("GET", "/check", None) {
                Ok(reply) if reply.status == 204 => drop(seen.let_in.fetch_add(1, SeqCst)),
                Ok(reply) if matches!(reply.status, 502..=504) => drop(seen.not_now.fetch_add(1, SeqCst)),
                Ok(reply) => seen.wrong.lock().expect("no panic").push(format!("{} {}", reply.status, reply.code())),
                Err(_) => drop(seen.not_now.fetch_add(1, SeqCst)),
            }
        }
    })
}

/// Signs in and out, all the time, and writes down which ends were acknowledged.
fn sign_out_all_the_time(front: &Front, seen: &Arc<Seen>, email: String) -> std::thread::JoinHandle<()> {
    let (doors, seen) = (front.doors.clone(), seen.clone());
    std::thread::spawn(move || {
        let mut n = 0;
        while !seen.over.load(SeqCst) {
            n += 1;
            let mut browser = Browser::at(doors[n % doors.len()]);
            let body = json!({"email": email, "password": PASSWORD});
            if !browser.try_send("POST", "/login", Some(&body)).is_ok_and(|reply| reply.status == 200) {
                continue;
            }
            let token = browser.token();
            let mut leaving = Browser::at(doors[(n + 1) % doors.len()]).holding(&token);
            if leaving.try_send("POST", "/logout", None).is_ok_and(|reply| reply.status == 204) {
                seen.ended.lock().expect("no panic").push(token);
            }
        }
    })
}

struct Load {
    seen: Arc<Seen>,
    threads: Vec<std::thread::JoinHandle<()>>,
    tokens: Vec<String>,
}

impl Load {
    fn begin(front: &Front, through: &Server) -> Self {
        let seen = Arc::<Seen>::default();
        let mut load = Load { seen, threads: Vec::new(), tokens: Vec::new() };
        for n in 0..4 {
            let email = format!("load{n}@example.com");
            let token = through.sign_up(&email).token();
            load.threads.push(check_all_the_time(front, &load.seen, token.clone()));
            load.threads.push(sign_out_all_the_time(front, &load.seen, email));
            load.tokens.push(token);
        }
        load.goes_on();
        load
    }

    /// Waits until it is let in, and signs out, again and again.
    #[track_caller]
    fn goes_on(&self) {
        let (let_in, ended) = (self.seen.let_in.load(SeqCst), self.seen.ended.lock().expect("no panic").len());
        let went_on = || self.seen.let_in.load(SeqCst) >= let_in + 50 && self.seen.ended.lock().expect("no panic").len() >= ended + 5;
        assert!(soon(PATIENCE, went_on), "the load does not go on");
    }

    /// Ends it; nothing that it saw was wrong, and what was acknowledged is so on this server.
    #[track_caller]
    fn end(mut self, at: &Server) {
        self.seen.over.store(true, SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no panic"));
        let wrong = self.seen.wrong.lock().expect("no panic");
        assert!(wrong.is_empty(), "{} wrong answers, such as {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        for token in &self.tokens {
            at.browser().holding(token).get("/check").is(204);
        }
        for token in self.seen.ended.lock().expect("no panic").iter() {
            at.browser().holding(token).get("/check").is_refused(401, "session_logged_out");
        }
    }
}

#[test]
fn an_instance_that_is_killed_under_load_takes_no_session_and_no_acknowledged_logout_with_it() {
    let database = Database::new();
    let place = place_on(&database.url());
    let (one, other) = (place.start(), place.start());
    let front = Front::of(&[&one, &other]);
    let load = Load::begin(&front, &one);
    one.kill();
    load.goes_on();
    load.end(&other);
}

#[test]
fn with_the_database_away_the_answer_is_503_and_with_its_return_everything_goes_on() {
    let mut cluster = Cluster::start().unwrap_or_else(|| crate::cluster::none_found());
    let place = place_on(cluster.url());
    let (one, other) = (place.start(), place.start());
    let front = Front::of(&[&one, &other]);
    let load = Load::begin(&front, &one);
    for crash in [false, true] {
        if crash {
            cluster.crash();
        } else {
            cluster.stop();
        }
        for server in [&one, &other] {
            let mut ana = server.browser().holding(&load.tokens[0]);
            let away = ana.get("/check").is(503);
            assert_eq!((away.code().as_str(), away.header("retry-after").is_some()), ("overloaded", true));
            assert!(away.header("set-cookie").is_none());
            server.browser().post("/login", json!({"email": "load0@example.com", "password": PASSWORD})).is(503);
            assert!(soon(PATIENCE, || server.browser().get("/health/ready").status == 503), "it says that it is ready");
            server.browser().get("/health/live").is(200);
        }
        cluster.begin();
        for server in [&one, &other] {
            assert!(soon(PATIENCE, || server.browser().holding(&load.tokens[0]).get("/check").status == 204), "it does not come back");
            assert!(soon(PATIENCE, || server.browser().get("/health/ready").status == 200), "it does not say that it is back");
        }
        load.goes_on();
    }
    load.end(&other);
}
