//! Races: many requests at the same instant, on several threads, for many rounds. What a rule promises once it promises
//! however its requests fall, and a request that its client abandons is finished or has not begun.
//!
//! `HOLDFAST_RACE_ROUNDS` sets the number of rounds. In each of them the outcome is one that some order of the requests
//! explains; no order is waited for.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use rusqlite::types::Value;
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::yield_now;

use holdfast::app::App;
use holdfast::background::write_back_all;
use holdfast::db::Fault;
use holdfast::device_sessions::{Known, look_up};
use holdfast::live_sessions::Met;
use holdfast::secret::Token;

use crate::database::{Hand, ON_POSTGRES};
use crate::stage::{ABSOLUTE_TIMEOUT, Actor, Answer, IDLE_TIMEOUT, Stage, TICK, email_of, password_of};

/// Requests in one round.
const MANY: usize = 20;
/// How long a rotated-away token may come back by accident.
const ROTATION_ECHO: Duration = Duration::from_secs(60);

/// How often each race is run.
fn rounds() -> usize {
    std::env::var("HOLDFAST_RACE_ROUNDS").ok().map_or(10, |text| text.parse().expect("HOLDFAST_RACE_ROUNDS is a number"))
}

type Deed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

fn deed<T>(deed: impl Future<Output = T> + Send + 'static) -> Deed<T> {
    Box::pin(deed)
}

/// Does all of them at once: each has a task of its own, and none begins before all are there.
async fn at_once<T: Send + 'static>(deeds: impl IntoIterator<Item = Deed<T>>) -> Vec<T> {
    let deeds: Vec<_> = deeds.into_iter().collect();
    let gate = Arc::new(Barrier::new(deeds.len()));
    let begin = |deed| {
        let gate = gate.clone();
        tokio::spawn(async move {
            gate.wait().await;
            deed.await
        })
    };
    let tasks: Vec<_> = deeds.into_iter().map(begin).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.expect("no panic"));
    }
    done
}

/// What was told: the status, and the code of a refusal.
fn told(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.code())
}

fn refusal(status: u16, code: &str) -> (u16, String) {
    (status, code.to_string())
}

/// How often each thing was told.
fn tally<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> BTreeMap<(u16, String), usize> {
    let mut tally = BTreeMap::new();
    for answer in answers {
        *tally.entry(told(answer)).or_default() += 1;
    }
    tally
}

/// The only one that holds.
#[track_caller]
fn only<T: Debug>(all: impl IntoIterator<Item = T>) -> T {
    let all: Vec<T> = all.into_iter().collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().expect("one")
}

async fn log_in_with(browser: &Actor, name: &str, password: &str) -> Answer {
    browser.post("/login", json!({"email": email_of(name), "password": password})).await
}

async fn id_of(browser: &Actor) -> String {
    browser.get("/me").await.is(200).json()["session"]["id"].as_str().expect("an id").to_string()
}

async fn user_id_of(browser: &Actor) -> String {
    browser.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string()
}

async fn sessions_of(browser: &Actor) -> usize {
    browser.get("/me/sessions").await.is(200).json()["sessions"].as_array().expect("a list").len()
}

/// How many events of a kind an account has.
fn events(stage: &Stage, name: &str, kind: &str) -> i64 {
    count_of(stage, name, &format!("events WHERE kind = '{kind}'"))
}

/// How many letters of a kind wait for an account's owner.
fn letters(stage: &Stage, name: &str, kind: &str) -> i64 {
    count_of(stage, name, &format!("outbox WHERE kind = '{kind}'"))
}

/// How many sessions of an account are not marked as ended.
fn open_sessions(stage: &Stage, name: &str) -> i64 {
    count_of(stage, name, "device_sessions WHERE ended_at IS NULL")
}

fn count_of(stage: &Stage, name: &str, what: &str) -> i64 {
    stage.count(&format!("SELECT count(*) FROM {what} AND user_id = (SELECT id FROM users WHERE email_canonical = '{}')", email_of(name)))
}

/// Waits until whatever was being written is written, by holding every connection that writes at one moment.
async fn quiet(app: &App) {
    app.db.settled().await;
    // The default pool without the three connections that transactions do not get.
    let writers = if ON_POSTGRES { 13 } else { 1 };
    let all = Arc::new(std::sync::Barrier::new(writers));
    let held = (0..writers).map(|_| {
        let (app, all) = (app.clone(), all.clone());
        deed(async move {
            let held = app.db.write(move |_| {
                all.wait();
                Ok::<_, Fault>(())
            });
            held.await.expect("the writers work");
        })
    });
    at_once(held).await;
}

// Rotation.

/// ROT-01, RACE-06.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_password_changes_with_one_token_exactly_one_wins_and_the_others_change_nothing() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let elsewhere = stage.sign_in(&name).await;
        let before = ana.get("/me").await.is(200).json()["session"].clone();

        let browsers: Vec<Actor> = (0..MANY).map(|_| ana.copy()).collect();
        let new = |n: usize| format!("the new password number {n}");
        let answers = at_once(browsers.iter().enumerate().map(|(n, browser)| {
            let (browser, current, new) = (browser.clone(), password_of(&name), new(n));
            deed(async move { browser.change_password(&current, &new).await })
        }))
        .await;

        let winner = only((0..MANY).filter(|n| answers[*n].status == 200));
        for (n, answer) in answers.iter().enumerate().filter(|(n, _)| *n != winner) {
            assert_eq!(told(answer), refusal(401, "session_rotated"), "the change number {n}");
            assert!(answer.set_cookies().is_empty(), "a loser's late answer must not touch the winner's cookie");
        }
        assert_eq!(answers[winner].json()["signed_out"], 1);

        let after = browsers[winner].get("/me").await.is(200).json()["session"].clone();
        for kept in ["id", "created_at", "expires_at", "device_name"] {
            assert_eq!(after[kept], before[kept]);
        }
        ana.get("/me").await.is_refused(401, "session_rotated");
        elsewhere.get("/me").await.is_refused(401, "session_revoked");
        assert_eq!(sessions_of(&browsers[winner]).await, 1);
        assert_eq!((open_sessions(&stage, &name), events(&stage, &name, "password_changed"), letters(&stage, &name, "password_changed")), (1, 1, 1));

        for n in 0..MANY {
            let status = log_in_with(&stage.anon(), &name, &new(n)).await.status;
            assert_eq!(status == 200, n == winner, "the password number {n} when {winner} has won");
        }
        stage.anon().log_in(&name).await.is_refused(401, "invalid_credentials");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_password_changes_on_several_devices_one_wins_and_signs_the_others_out() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let mut browsers = vec![stage.sign_up(&name).await];
        while browsers.len() < MANY {
            browsers.push(stage.sign_in(&name).await);
        }
        let answers = at_once(browsers.iter().enumerate().map(|(n, browser)| {
            let (browser, current) = (browser.clone(), password_of(&name));
            deed(async move { browser.change_password(&current, &format!("the new password number {n}")).await })
        }))
        .await;
        let winner = only((0..MANY).filter(|n| answers[*n].status == 200));
        assert_eq!(tally(&answers).get(&refusal(401, "session_revoked")), Some(&(MANY - 1)), "{:?}", tally(&answers));
        assert_eq!(answers[winner].json()["signed_out"], MANY - 1);
        assert_eq!((sessions_of(&browsers[winner]).await, events(&stage, &name, "password_changed")), (1, 1));
        log_in_with(&stage.anon(), &name, &format!("the new password number {winner}")).await.is(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_password_changes_that_leave_the_others_signed_in_one_wins_and_the_losers_keep_their_tokens() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let mut browsers = vec![stage.sign_up(&name).await];
        while browsers.len() < MANY {
            browsers.push(stage.sign_in(&name).await);
        }
        let copies: Vec<Actor> = browsers.iter().map(Actor::copy).collect();
        let answers = at_once(browsers.iter().enumerate().map(|(n, browser)| {
            let (browser, current, new) = (browser.clone(), password_of(&name), format!("the new password number {n}"));
            let body = json!({"current_password": current, "new_password": new, "sign_out_others": false});
            deed(async move { browser.put("/me/password", body).await })
        }))
        .await;
        let winner = only((0..MANY).filter(|n| answers[*n].status == 200));
        assert_eq!(tally(&answers).get(&refusal(403, "invalid_credentials")), Some(&(MANY - 1)), "{:?}", tally(&answers));
        for (n, (browser, copy)) in browsers.iter().zip(&copies).enumerate() {
            browser.get("/me").await.is(200);
            let of_copy = told(&copy.get("/me").await);
            assert_eq!(of_copy, if n == winner { refusal(401, "session_rotated") } else { refusal(200, "") });
        }
        assert_eq!((open_sessions(&stage, &name), events(&stage, &name, "password_changed")), (MANY as i64, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stolen_token_that_comes_back_many_times_at_once_is_reported_once() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let thief = ana.copy();
        ana.change_password(&password_of(&name), "another good password").await.is(200);
        stage.clock.advance(ROTATION_ECHO + TICK);
        ana.get("/check").await.is(204);

        let answers = at_once((0..MANY).map(|_| {
            let thief = thief.copy();
            deed(async move { thief.get("/check").await })
        }))
        .await;
        assert_eq!(tally(&answers), BTreeMap::from([(refusal(401, "session_rotated"), MANY)]));
        assert_eq!((events(&stage, &name, "rotated_token_reused"), letters(&stage, &name, "rotated_token_reused")), (1, 1));
        ana.get("/check").await.is(204);
    }
}

// Endings.

/// A way to end a session.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    LogsOut,
    EndsItselfById,
    SignsOutEverywhere,
    Rotates,
    IsRevokedFromElsewhere,
    IsAmongTheOthers,
    PasswordIsChangedElsewhere,
    AdminRevokesIt,
    AdminRevokesAll,
    AdminDisablesTheAccount,
    AdminChangesTheRole,
}

use Ending::*;

const ENDINGS: [Ending; 11] = [
    LogsOut,
    EndsItselfById,
    SignsOutEverywhere,
    Rotates,
    IsRevokedFromElsewhere,
    IsAmongTheOthers,
    PasswordIsChangedElsewhere,
    AdminRevokesIt,
    AdminRevokesAll,
    AdminDisablesTheAccount,
    AdminChangesTheRole,
];

impl Ending {
    fn code(self) -> &'static str {
        match self {
            LogsOut | EndsItselfById | SignsOutEverywhere => "session_logged_out",
            Rotates => "session_rotated",
            _ => "session_revoked",
        }
    }
}

/// Whoever has to do with the end of a session.
#[derive(Clone)]
struct Cast {
    victim: Actor,
    elsewhere: Actor,
    admin: Actor,
    name: String,
    user: String,
    session: String,
}

impl Cast {
    async fn gather(stage: &Stage, admin: &Actor, name: String) -> Self {
        let victim = stage.sign_up(&name).await;
        let elsewhere = stage.sign_in(&name).await;
        let (user, session) = (user_id_of(&victim).await, id_of(&victim).await);
        Cast { victim, elsewhere, admin: admin.clone(), name, user, session }
    }

    /// Ends the victim's session; the victim's own cookies stay as they were.
    async fn end(self, how: Ending) -> Answer {
        let Cast { victim, elsewhere, admin, name, user, session } = self;
        let victim = victim.copy();
        match how {
            LogsOut => victim.poke("/logout").await,
            EndsItselfById => victim.delete(&format!("/me/sessions/{session}")).await,
            SignsOutEverywhere => victim.delete("/me/sessions?include_current=true").await,
            Rotates => victim.change_password(&password_of(&name), "another good password").await,
            IsRevokedFromElsewhere => elsewhere.delete(&format!("/me/sessions/{session}")).await,
            IsAmongTheOthers => elsewhere.delete("/me/sessions").await,
            PasswordIsChangedElsewhere => elsewhere.change_password(&password_of(&name), "another good password").await,
            AdminRevokesIt => admin.delete(&format!("/admin/users/{user}/sessions/{session}")).await,
            AdminRevokesAll => admin.delete(&format!("/admin/users/{user}/sessions")).await,
            AdminDisablesTheAccount => admin.poke(&format!("/admin/users/{user}/disable")).await,
            AdminChangesTheRole => admin.put(&format!("/admin/users/{user}/role"), json!({"role": "admin"})).await,
        }
    }
}

/// What those who go on asking with a session know of its end.
struct Door {
    app: App,
    /// The answer of whoever ended the session has arrived.
    ended: AtomicBool,
    knocks: AtomicUsize,
    /// Memory is made to miss before every request, so that the row is read again and again while the session ends.
    forgetful: bool,
    code: &'static str,
    /// For the message.
    how: Option<Ending>,
}

impl Door {
    /// Goes on asking until the session has ended and two requests that started later have been refused.
    async fn knock(&self, browser: &Actor, path: &str) {
        let (mut refused, mut refused_after) = (false, 0);
        while refused_after < 2 {
            let after = self.ended.load(SeqCst);
            if self.forgetful && !after {
                self.app.db.live().distrust();
            }
            let answer = browser.get(path).await;
            match answer.status.as_u16() {
                200 | 204 => assert!(!after && !refused, "{:?}: {path} let a dead session in: after the answer {after}, after a refusal {refused}", self.how),
                _ => {
                    assert_eq!(told(&answer), refusal(401, self.code), "{path}");
                    refused = true;
                    refused_after += usize::from(after);
                }
            }
            self.knocks.fetch_add(1, SeqCst);
            // A check that finds everything in memory never waits; the others must have their turn too.
            yield_now().await;
        }
    }

    /// Waits until requests are coming in, and ends the session.
    async fn shut(&self, end: impl Future<Output = Answer>) -> Answer {
        while self.knocks.load(SeqCst) < MANY {
            yield_now().await;
        }
        let answer = end.await;
        if answer.status.is_success() {
            self.ended.store(true, SeqCst);
        }
        answer
    }
}

const PATHS: [&str; 4] = ["/check", "/me", "/me/sessions", "/check"];

/// REV-03, ROT-03 and the load race: four endings at once, against twenty who go on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_that_starts_after_the_answer_to_an_ending_is_let_in() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    for round in 0..rounds() {
        for how in ENDINGS {
            let cast = Cast::gather(&stage, &admin, format!("ana-{how:?}-{round}").to_lowercase()).await;
            let door = Arc::new(Door {
                app: stage.app.clone(),
                ended: AtomicBool::new(false),
                knocks: AtomicUsize::new(0),
                forgetful: round % 2 == 0,
                code: how.code(),
                how: Some(how),
            });
            let knocking = (0..MANY).map(|n| {
                let (door, browser) = (door.clone(), cast.victim.copy());
                deed(async move {
                    door.knock(&browser, PATHS[n % PATHS.len()]).await;
                    None
                })
            });
            let ending = (0..4).map(|_| {
                let (door, cast) = (door.clone(), cast.clone());
                deed(async move { Some(door.shut(cast.end(how)).await) })
            });
            let answers: Vec<Answer> = at_once(knocking.chain(ending)).await.into_iter().flatten().collect();
            assert!(answers.iter().all(|answer| !answer.status.is_server_error()), "{how:?}: {:?}", tally(&answers));
            for path in PATHS {
                cast.victim.get(path).await.is_refused(401, how.code());
            }
        }
    }
}

/// The load race, step by step: a row that was read before the end is not taken into memory after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_row_that_was_read_before_its_session_ended_does_not_come_into_memory_afterwards() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    for how in ENDINGS {
        for in_memory_before in [false, true] {
            let cast = Cast::gather(&stage, &admin, format!("ana-{how:?}-{in_memory_before}").to_lowercase()).await;
            let (live, now) = (stage.app.db.live(), stage.clock.now());
            let token = Token::read(&cast.victim.token().expect("a token")).expect("a token").hash();
            if in_memory_before {
                live.distrust();
            } else {
                live.forget(&token);
            }
            let Met::Unknown(ticket) = live.meet(&token, now, true) else { panic!("it is to be read") };
            let Known::Open(row, last_active) = stage.app.db.glance(move |tx| look_up(tx, &token)).await.expect("a row") else { panic!("it lives") };
            assert!(cast.clone().end(how).await.status.is_success());
            // Where instances share a database nobody builds on what another one has read: it may come in, and opens nothing.
            assert_eq!(live.admit(ticket, *row, last_active), ON_POSTGRES, "{how:?}");
            cast.victim.get("/check").await.is_refused(401, how.code());
        }
    }
}

/// The load race itself: each token is met for the first time, and its row read, while one deed ends them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_whose_row_is_just_being_read_while_it_ends_does_not_stay_in_memory() {
    let stage = Stage::without_limits().await;
    // How many turns the ending took in the round before: the reads are spread over as many.
    let mut spread = 1000;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let signing_in = (0..MANY * 4).map(|_| {
            let (browser, name) = (stage.anon(), name.clone());
            deed(async move {
                browser.log_in(&name).await.is(200);
                browser
            })
        });
        let browsers = at_once(signing_in).await;
        let turns = Arc::new(AtomicUsize::new(0));
        let asking = browsers.iter().enumerate().map(|(n, browser)| {
            let (browser, turns, turn) = (browser.clone(), turns.clone(), spread * n / browsers.len());
            deed(async move {
                while turns.fetch_add(1, SeqCst) < turn {
                    yield_now().await;
                }
                let answer = told(&browser.get("/check").await);
                assert!([refusal(204, ""), refusal(401, "session_revoked")].contains(&answer), "{answer:?}");
                0
            })
        });
        let (counted, own) = (turns.clone(), ana.clone());
        let ending = deed(async move {
            assert_eq!(own.delete("/me/sessions").await.is(200).json()["signed_out"], MANY * 4);
            counted.load(SeqCst)
        });
        spread = at_once([ending].into_iter().chain(asking)).await[0].max(1000);
        for browser in &browsers {
            browser.get("/check").await.is_refused(401, "session_revoked");
        }
    }
}

/// What the command line ends is dead as soon as the server has looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_another_process_ends_stays_dead_however_many_requests_read_its_row_at_that_moment() {
    let stage = Arc::new(Stage::without_limits().await);
    for round in 0..rounds() {
        let ana = stage.sign_up(&format!("ana{round}")).await;
        let session = id_of(&ana).await.replace('-', "");
        let door = Arc::new(Door {
            app: stage.app.clone(),
            ended: AtomicBool::new(false),
            knocks: AtomicUsize::new(0),
            forgetful: false,
            code: "session_revoked",
            how: None,
        });
        let knocking = (0..MANY).map(|n| {
            let (door, browser) = (door.clone(), ana.copy());
            deed(async move { door.knock(&browser, PATHS[n % PATHS.len()]).await })
        });
        let (own, at) = (door.clone(), stage.clone());
        let ending = deed(async move {
            while own.knocks.load(SeqCst) < MANY {
                yield_now().await;
            }
            let now = at.clock.now().0;
            at.execute(&format!("UPDATE device_sessions SET ended_at = {now}, ended_reason = 'session_revoked' WHERE id = x'{session}'"));
            at.app.db.tend().await.expect("the server looks");
            own.ended.store(true, SeqCst);
        });
        at_once(knocking.chain([ending])).await;
        ana.get("/check").await.is_refused(401, "session_revoked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_endings_of_one_session_count_it_once() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    for round in 0..rounds() {
        let cast = Cast::gather(&stage, &admin, format!("ana{round}")).await;
        let ways = [LogsOut, IsRevokedFromElsewhere, IsAmongTheOthers, AdminRevokesIt, EndsItselfById];
        let answers = at_once((0..MANY).map(|n| {
            let (cast, how) = (cast.clone(), ways[n % ways.len()]);
            deed(async move { (how, cast.end(how).await) })
        }))
        .await;
        let mut ended = 0;
        for (how, answer) in &answers {
            match (how, told(answer).0) {
                (IsAmongTheOthers, 200) => ended += answer.json()["signed_out"].as_u64().expect("a count"),
                (IsRevokedFromElsewhere | AdminRevokesIt, 204) => ended += 1,
                (IsRevokedFromElsewhere | AdminRevokesIt, 404) => {}
                // Only an answer that ended a live session takes the cookie back.
                (LogsOut | EndsItselfById, 204) => ended += u64::from(answer.clears_session()),
                (EndsItselfById, 401) => {}
                _ => panic!("{how:?}: {:?}", told(answer)),
            }
        }
        assert_eq!(ended, 1, "how often somebody was told to have ended it");
        let told_of: i64 = ["signed_out", "session_revoked", "sessions_revoked"].iter().map(|kind| events(&stage, &cast.name, kind)).sum();
        assert_eq!(told_of, 1);
        let code = cast.victim.get("/check").await.is(401).code();
        assert!(["session_logged_out", "session_revoked"].contains(&code.as_str()), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_idle_session_that_many_requests_meet_at_once_times_out_once() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        // Both with the session in memory, and with its row still to be read.
        if round % 2 == 0 {
            stage.app.db.live().distrust();
        } else {
            ana.get("/check").await.is(204);
        }
        stage.clock.advance(IDLE_TIMEOUT + TICK);
        let answers = at_once((0..MANY).map(|n| {
            let browser = ana.copy();
            deed(async move { browser.get(PATHS[n % PATHS.len()]).await })
        }))
        .await;
        assert_eq!(tally(&answers), BTreeMap::from([(refusal(401, "session_idle_timeout"), MANY)]));
        assert_eq!(events(&stage, &name, "session_timed_out"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_expired_session_that_many_requests_end_in_many_ways_has_expired_and_nothing_else() {
    let stage = Stage::with(&[("IDLE_TIMEOUT", "none"), ("SIGNUP_LIMIT_SOURCE", "none")]).await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        stage.clock.advance(ABSOLUTE_TIMEOUT + TICK);
        let elsewhere = stage.sign_in(&name).await;
        // The sign-in has looked at the sessions of the account; this one has not been looked at.
        let second = stage.sign_up(&format!("ben{round}")).await;
        stage.clock.advance(ABSOLUTE_TIMEOUT + TICK);
        let answers = at_once((0..MANY).map(|n| {
            let (browser, second) = (ana.copy(), second.copy());
            deed(async move {
                match n % 4 {
                    0 => browser.get("/check").await,
                    1 => second.get("/me").await,
                    2 => second.poke("/logout").await,
                    _ => second.delete("/me/sessions?include_current=true").await,
                }
            })
        }))
        .await;
        let expected = BTreeMap::from([(refusal(401, "session_expired"), MANY * 3 / 4), (refusal(204, ""), MANY / 4)]);
        assert_eq!(tally(&answers), expected);
        assert!(answers.iter().all(|answer| !answer.clears_session()), "nothing live was ended");
        for who in [&name, &format!("ben{round}")] {
            assert_eq!((events(&stage, who, "session_timed_out"), events(&stage, who, "signed_out")), (1, 0));
        }
        elsewhere.get("/check").await.is_refused(401, "session_expired");
    }
}

// Signing up and in.

/// RACE-04.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_sign_ups_with_one_address_in_five_spellings_one_gets_it() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let spellings = [
            format!("jos\u{e9}.{round}@b\u{fc}cher.example"),
            format!("JOS\u{c9}.{round}@B\u{dc}CHER.example"),
            format!("jose\u{301}.{round}@xn--bcher-kva.example"),
            format!("Jose\u{301}.{round}@bu\u{308}cher.Example"),
            format!("JoSE\u{301}.{round}@XN--BCHER-KVA.EXAMPLE"),
        ];
        let password = |n: usize| format!("the password number {n}");
        let browsers: Vec<Actor> = (0..MANY).map(|_| stage.anon()).collect();
        let answers = at_once(browsers.iter().enumerate().map(|(n, browser)| {
            let (browser, body) = (browser.clone(), json!({"email": spellings[n % 5], "password": password(n)}));
            deed(async move { browser.post("/signup", body).await })
        }))
        .await;

        let winner = only((0..MANY).filter(|n| answers[*n].status == 201));
        assert_eq!(tally(&answers).get(&refusal(409, "email_taken")), Some(&(MANY - 1)), "{:?}", tally(&answers));
        // Canonically, and nothing of the losers is left behind.
        let one = format!("FROM users WHERE email_canonical = 'jos\u{e9}.{round}@xn--bcher-kva.example'");
        assert_eq!(stage.count(&format!("SELECT count(*) {one}")), 1);
        let accounts = round as i64 + 1;
        for table in ["users", "known_ips", "known_devices", "events WHERE kind = 'signed_up'"] {
            assert_eq!(stage.count(&format!("SELECT count(*) FROM {table}")), accounts, "{table}");
        }
        assert_eq!(stage.count(&format!("SELECT count(*) FROM device_sessions WHERE user_id = (SELECT id {one})")), 1);
        for (n, browser) in browsers.iter().enumerate() {
            assert_eq!((browser.token().is_some(), browser.get("/check").await.status == 204), (n == winner, n == winner));
        }
        let (local, _) = spellings[winner % 5].rsplit_once('@').expect("an address");
        let shown = browsers[winner].get("/me").await.is(200).json()["user"]["email"].clone();
        assert_eq!(shown, format!("{local}@xn--bcher-kva.example"));
        let device = browsers[winner].device_token();
        for n in 0..MANY {
            let browser = stage.anon();
            browser.set_cookie("holdfast-device", device.as_deref());
            let answer = browser.post("/login", json!({"email": spellings[(n + 1) % 5], "password": password(n)})).await;
            assert_eq!(answer.status == 200, n == winner, "the password number {n} when {winner} has won");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_sign_ins_from_one_new_address_exactly_one_is_new() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let device = stage.sign_up(&name).await.device_token();
        // One place: an IPv4 address, or any of a /64.
        let ip = |n: usize| if round % 2 == 0 { "203.0.113.7".to_string() } else { format!("2001:db8:0:{round}::{n:x}") };
        let answers = at_once((0..MANY).map(|n| {
            let (browser, name) = (stage.anon().from_ip(&ip(n)), name.clone());
            browser.set_cookie("holdfast-device", device.as_deref());
            deed(async move { browser.log_in(&name).await.is(200) })
        }))
        .await;
        let is_new = |answer: &Answer, what: &str| answer.json()["session"][what] == true;
        only(answers.iter().filter(|answer| is_new(answer, "new_ip")));
        assert!(!answers.iter().any(|answer| is_new(answer, "new_device")), "the browser was known");
        assert_eq!((events(&stage, &name, "new_ip_login"), letters(&stage, &name, "new_ip_login")), (1, 1));
        assert_eq!(count_of(&stage, &name, "device_sessions WHERE new_ip = 1"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_sign_ins_on_one_new_browser_exactly_one_is_new() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        stage.sign_up(&name).await;
        let bens = stage.sign_up(&format!("ben{round}")).await;
        let answers = at_once((0..MANY).map(|_| {
            let (browser, name) = (bens.copy(), name.clone());
            deed(async move {
                let answer = browser.log_in(&name).await.is(200);
                (browser.device_token(), answer)
            })
        }))
        .await;
        only(answers.iter().filter(|(_, answer)| answer.json()["session"]["new_device"] == true));
        assert!(answers.iter().all(|(device, _)| *device == bens.device_token()), "a cookie that we issued stays");
        assert_eq!((events(&stage, &name, "new_device_login"), letters(&stage, &name, "new_device_login")), (1, 1));
        // One browser, one session: ben's made room, once.
        bens.get("/check").await.is_refused(401, "session_replaced");
        assert_eq!(open_sessions(&stage, &name), MANY as i64 + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_sign_ins_never_leave_more_live_sessions_than_allowed() {
    const MOST: i64 = 5;
    let stage = Stage::with(&[("MAX_SESSIONS_PER_USER", "5"), ("SIGNUP_LIMIT_SOURCE", "none")]).await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let first = stage.sign_up(&name).await;
        let watch = Watch::begin(&stage, move |rows| {
            let open = rows.values().filter(|row| row.ended_at.is_none()).count();
            // The accounts of the rounds before keep theirs.
            assert!(open <= (round + 1) * MOST as usize, "{open} live sessions after {round} rounds");
        });
        let browsers: Vec<Actor> = (0..MANY).map(|_| stage.anon()).collect();
        at_once(browsers.iter().map(|browser| {
            let (browser, name) = (browser.clone(), name.clone());
            deed(async move { browser.log_in(&name).await.is(200) })
        }))
        .await;
        watch.end();

        assert_eq!(open_sessions(&stage, &name), MOST);
        let mut answers = vec![first.get("/check").await];
        for browser in &browsers {
            answers.push(browser.get("/check").await);
        }
        let expected = BTreeMap::from([(refusal(204, ""), MOST as usize), (refusal(401, "session_replaced"), MANY + 1 - MOST as usize)]);
        assert_eq!(tally(&answers), expected);
    }
}

/// What a sign-in can overlap with. All of it ends the sessions of the account.
const CHANGES: [Ending; 3] = [PasswordIsChangedElsewhere, AdminChangesTheRole, AdminDisablesTheAccount];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_sign_in_that_races_with_a_change_of_the_account_opens_a_session_of_the_account_as_it_was() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    for round in 0..rounds() {
        for change in CHANGES {
            let cast = Cast::gather(&stage, &admin, format!("ana-{change:?}-{round}").to_lowercase()).await;
            let begun = Arc::new(AtomicUsize::new(0));
            let browsers: Vec<Actor> = (0..MANY).map(|_| stage.anon()).collect();
            let signing_in = browsers.iter().map(|browser| {
                let (browser, name, begun) = (browser.clone(), cast.name.clone(), begun.clone());
                deed(async move {
                    begun.fetch_add(1, SeqCst);
                    browser.log_in(&name).await
                })
            });
            let (counted, of_change) = (begun.clone(), cast.clone());
            let changing = deed(async move {
                // More of them have begun from round to round.
                while counted.load(SeqCst) < 1 + round * 2 % MANY {
                    yield_now().await;
                }
                of_change.end(change).await.is(200)
            });
            let answers = at_once(signing_in.chain([changing])).await;

            for (browser, answer) in browsers.iter().zip(answers) {
                assert!([refusal(200, ""), refusal(401, "invalid_credentials")].contains(&told(&answer)), "{change:?}: {:?}", told(&answer));
                let check = browser.get("/check").await;
                match told(&check) {
                    // It may have begun when the change was done, before its answer arrived; then the new role counts.
                    (204, _) => assert_eq!((change, check.header("x-holdfast-role")), (AdminChangesTheRole, Some("admin"))),
                    refused if answer.status == 200 => assert_eq!(refused, refusal(401, "session_revoked"), "{change:?}"),
                    refused => assert_eq!(refused, refusal(401, "unauthenticated"), "{change:?}"),
                }
            }
        }
    }
}

/// A sign-in that stands still at any place while the account changes, and then goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sign_in_that_is_overtaken_by_a_change_of_the_account_opens_nothing_that_outlives_it() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    for waits in 0..WAITS {
        for change in CHANGES {
            let cast = Cast::gather(&stage, &admin, format!("ana-{change:?}-{waits}").to_lowercase()).await;
            let (browser, own, name) = (stage.anon(), stage.anon(), cast.name.clone());
            let signing_in = own.clone();
            let mut request = deed(async move { signing_in.log_in(&name).await });
            let early = until_it_waits(waits, request.as_mut()).await;
            cast.clone().end(change).await.is(200);
            let answer = match early {
                Some(answer) => answer,
                None => request.await,
            };
            let expected = if answer.status == 200 { "session_revoked" } else { "unauthenticated" };
            assert!(answer.status == 200 || told(&answer) == refusal(401, "invalid_credentials"), "{change:?}: {:?}", told(&answer));
            own.get("/check").await.is_refused(401, expected);
            assert_eq!(open_sessions(&stage, &cast.name), i64::from(change == PasswordIsChangedElsewhere), "{change:?} after {waits} waits");
            // Whoever comes later is let in as the account is now.
            let again = match change {
                PasswordIsChangedElsewhere => log_in_with(&browser, &cast.name, "another good password").await,
                _ => browser.log_in(&cast.name).await,
            };
            assert_eq!(again.status == 200, change != AdminDisablesTheAccount);
        }
    }
}

/// The same for a change of the password whose own session ends while the hash is being made.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_password_change_that_is_overtaken_by_the_end_of_its_session_changes_nothing() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    let mut overtaken = 0;
    for how in ENDINGS {
        for waits in 0..WAITS {
            let cast = Cast::gather(&stage, &admin, format!("ana-{how:?}-{waits}").to_lowercase()).await;
            let (own, current) = (cast.victim.copy(), password_of(&cast.name));
            let changing = own.clone();
            let mut request = deed(async move { changing.change_password(&current, "the password that comes too late").await });
            let early = until_it_waits(waits, request.as_mut()).await;
            let ending = cast.clone().end(how).await;
            let answer = match early {
                Some(answer) => answer,
                None => request.await,
            };
            let changed = log_in_with(&stage.anon(), &cast.name, "the password that comes too late").await.status == 200;
            if answer.status == 200 {
                // It was quicker. The end of the session has then met its new token, or was itself refused.
                assert!(changed || matches!(how, AdminDisablesTheAccount), "{how:?} after {waits} waits");
                assert!(own.get("/check").await.status == 401 || !ending.status.is_success(), "{how:?} after {waits} waits");
            } else {
                answer.is_refused(401, how.code());
                assert!(ending.status.is_success() && !changed, "{how:?} after {waits} waits");
                assert_eq!(events(&stage, &cast.name, "password_changed"), i64::from(matches!(how, Rotates | PasswordIsChangedElsewhere)));
                overtaken += 1;
            }
        }
    }
    assert!(overtaken > 0);
}

// Signing out everywhere else.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn signing_out_everywhere_else_while_others_sign_in_ends_each_session_once_or_not_at_all() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let earlier = stage.sign_in(&name).await;
        let browsers: Vec<Actor> = (0..MANY / 2).map(|_| stage.anon()).collect();
        let signing_in = browsers.iter().map(|browser| {
            let (browser, name) = (browser.clone(), name.clone());
            deed(async move {
                browser.log_in(&name).await.is(200);
                0
            })
        });
        let signing_out = (0..MANY / 2).map(|_| {
            let ana = ana.copy();
            deed(async move { ana.delete("/me/sessions").await.is(200).json()["signed_out"].as_u64().expect("a count") })
        });
        let signed_out: u64 = at_once(signing_in.chain(signing_out)).await.iter().sum();

        earlier.get("/check").await.is_refused(401, "session_revoked");
        ana.get("/check").await.is(204);
        let mut alive = 0;
        for browser in &browsers {
            match told(&browser.get("/check").await) {
                (204, _) => alive += 1,
                refused => assert_eq!(refused, refusal(401, "session_revoked")),
            }
        }
        assert_eq!(signed_out as usize + alive, 1 + browsers.len(), "each of them is counted as ended, or lives");
        assert_eq!(sessions_of(&ana).await, 1 + alive);
        assert_eq!(ana.delete("/me/sessions").await.is(200).json()["signed_out"], alive);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn signing_out_everywhere_else_while_the_same_token_is_rotated_happens_before_or_not_at_all() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(stage.sign_in(&name).await);
        }
        let browsers: Vec<Actor> = (0..MANY).map(|_| ana.copy()).collect();
        let answers = at_once(browsers.iter().enumerate().map(|(n, browser)| {
            let (browser, current) = (browser.clone(), password_of(&name));
            deed(async move {
                match n % 2 {
                    0 => browser.change_password(&current, "another good password").await,
                    _ => browser.delete("/me/sessions").await,
                }
            })
        }))
        .await;
        let winner = only((0..MANY).filter(|n| n % 2 == 0 && answers[*n].status == 200));
        let mut signed_out = 0;
        for answer in &answers {
            match answer.status.as_u16() {
                200 => signed_out += answer.json()["signed_out"].as_u64().expect("a count"),
                _ => assert_eq!(told(answer), refusal(401, "session_rotated")),
            }
        }
        assert_eq!(signed_out, 3);
        assert_eq!(sessions_of(&browsers[winner]).await, 1);
        for other in others {
            other.get("/check").await.is_refused(401, "session_revoked");
        }
    }
}

/// The session that is to end may just be getting a new token.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_rotates_while_it_is_signed_out_from_elsewhere_is_out_with_both_tokens() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let rotating = stage.sign_in(&name).await;
        let (old, session) = (rotating.copy(), id_of(&rotating).await);
        let browsers: Vec<Actor> = (0..MANY / 2).map(|_| rotating.copy()).collect();
        let changing = browsers.iter().map(|browser| {
            let body = json!({"current_password": password_of(&name), "new_password": "another good password", "sign_out_others": false});
            let browser = browser.clone();
            deed(async move { browser.put("/me/password", body).await })
        });
        let ending = (0..MANY / 2).map(|n| {
            let (ana, path) = (ana.copy(), if n % 2 == 0 { "/me/sessions".to_string() } else { format!("/me/sessions/{session}") });
            deed(async move { ana.delete(&path).await })
        });
        let answers = at_once(changing.chain(ending)).await;
        let (changes, endings) = answers.split_at(MANY / 2);

        let changed = changes.iter().filter(|answer| answer.status == 200).count();
        assert!(changed <= 1);
        for answer in changes.iter().filter(|answer| answer.status != 200) {
            let code = told(answer);
            assert!([refusal(401, "session_rotated"), refusal(401, "session_revoked")].contains(&code), "{code:?}");
            // Who comes with a token that was never rotated is told of the end.
            assert!(changed == 1 || code == refusal(401, "session_revoked"), "{code:?}");
        }
        let ended: u64 = endings
            .iter()
            .map(|answer| match answer.status.as_u16() {
                200 => answer.json()["signed_out"].as_u64().expect("a count"),
                204 => 1,
                404 => 0,
                _ => panic!("{:?}", told(answer)),
            })
            .sum();
        assert_eq!(ended, 1);
        old.get("/check").await.is_refused(401, if changed == 1 { "session_rotated" } else { "session_revoked" });
        for (browser, answer) in browsers.iter().zip(changes) {
            if answer.status == 200 {
                browser.get("/check").await.is_refused(401, "session_revoked");
            }
        }
        assert_eq!(sessions_of(&ana).await, 1);
        assert_eq!(events(&stage, &name, "password_changed"), changed as i64);
        let password = if changed == 1 { "another good password".into() } else { password_of(&name) };
        log_in_with(&stage.anon(), &name, &password).await.is(200);
    }
}

// Administrators.

/// ADM-03.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_administrators_who_take_each_others_rights_cannot_both_succeed() {
    let stage = Stage::without_limits().await;
    stage.admin("ana").await;
    stage.admin("ben").await;
    let deeds = ["demote", "disable"];
    for round in 0..rounds() {
        for (of_ana, of_ben) in [(0, 0), (1, 1), (0, 1)] {
            let (ana, ben) = (stage.sign_in("ana").await, stage.sign_in("ben").await);
            let (anas, bens) = (user_id_of(&ana).await, user_id_of(&ben).await);
            let answers = at_once((0..MANY).map(|n| {
                let (browser, target, how) = if n % 2 == 0 { (ana.copy(), bens.clone(), of_ana) } else { (ben.copy(), anas.clone(), of_ben) };
                deed(async move { act(&browser, &target, deeds[how]).await })
            }))
            .await;
            let (by_ana, by_ben) = (tally(answers.iter().step_by(2)), tally(answers.iter().skip(1).step_by(2)));
            let all = |told| BTreeMap::from([(told, MANY / 2)]);
            let (done, refused) = (all(refusal(200, "")), all(refusal(401, "session_revoked")));
            let ana_stays = by_ana == done;
            let expected = if ana_stays { (done, refused) } else { (refused, done) };
            assert_eq!((by_ana, by_ben), expected, "round {round}");
            let (survivor, victim) = if ana_stays { (&ana, &ben) } else { (&ben, &ana) };
            survivor.get("/admin/users").await.is(200);
            victim.get("/admin/users").await.is_refused(401, "session_revoked");
            assert_eq!(stage.count("SELECT count(*) FROM users WHERE role = 'admin' AND disabled_at IS NULL"), 1);
            reinstate(&stage).await;
        }
    }
}

/// ADM-03: and of two who give up their own rights, one has to stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_administrators_who_all_give_up_their_rights_at_once_one_stays() {
    let stage = Stage::without_limits().await;
    stage.admin("ana").await;
    stage.admin("ben").await;
    for round in 0..rounds() {
        for how in ["demote", "disable"] {
            let browsers = [stage.sign_in("ana").await, stage.sign_in("ben").await];
            let ids = [user_id_of(&browsers[0]).await, user_id_of(&browsers[1]).await];
            let answers = at_once((0..MANY).map(|n| {
                let (browser, own) = (browsers[n % 2].copy(), ids[n % 2].clone());
                deed(async move { act(&browser, &own, how).await })
            }))
            .await;
            let gone = only((0..MANY).filter(|n| answers[*n].status == 200)) % 2;
            for (n, answer) in answers.iter().enumerate().filter(|(_, answer)| answer.status != 200) {
                let expected = if n % 2 == gone { refusal(401, "session_revoked") } else { refusal(409, "last_admin") };
                assert_eq!(told(answer), expected, "round {round}, {how}");
            }
            assert_eq!(stage.count("SELECT count(*) FROM users WHERE role = 'admin' AND disabled_at IS NULL"), 1);
            browsers[1 - gone].get("/admin/users").await.is(200);
            reinstate(&stage).await;
        }
    }
}

async fn act(browser: &Actor, target: &str, how: &str) -> Answer {
    match how {
        "demote" => browser.put(&format!("/admin/users/{target}/role"), json!({"role": "user"})).await,
        _ => browser.poke(&format!("/admin/users/{target}/{how}")).await,
    }
}

/// Makes everybody an administrator again.
async fn reinstate(stage: &Stage) {
    stage.execute("UPDATE users SET role = 'admin', disabled_at = NULL");
    stage.app.db.tend().await.expect("the foreign write is noticed");
}

// Last-active.

/// A row of `device_sessions`, as far as it changes.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    token: Vec<u8>,
    last_active: i64,
    ended_at: Option<i64>,
    reason: Option<String>,
}

type Rows = BTreeMap<Vec<u8>, Row>;

fn read_rows(hand: &Hand) -> Rows {
    let rows = hand.rows("SELECT id, token_hash, last_active_at, ended_at, ended_reason FROM device_sessions").into_iter();
    let row = |cells: Vec<Value>| -> Option<(Vec<u8>, Row)> {
        let [Value::Blob(id), Value::Blob(token), Value::Integer(last_active), ended_at, reason] = <[Value; 5]>::try_from(cells).ok()? else { return None };
        let ended_at = if let Value::Integer(at) = ended_at { Some(at) } else { None };
        let reason = if let Value::Text(reason) = reason { Some(reason) } else { None };
        Some((id, Row { token, last_active, ended_at, reason }))
    };
    rows.map(|cells| row(cells).expect("a row")).collect()
}

/// Reads the table of sessions over and over on a connection of its own, and checks each state that it sees.
struct Watch {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn begin(stage: &Stage, check: impl Fn(&Rows) + Send + 'static) -> Self {
        let over: Arc<AtomicBool> = Arc::default();
        let hand = stage.database.by_hand_later();
        let seen_over = over.clone();
        let thread = std::thread::spawn(move || {
            let hand = hand();
            let mut last = Rows::new();
            loop {
                // Looked at first, so that the last look sees the end.
                let over = seen_over.load(SeqCst);
                let rows = read_rows(&hand);
                check(&rows);
                for (id, before) in &last {
                    let after = rows.get(id).expect("a session is ended, never deleted at once");
                    assert!(after.last_active >= before.last_active, "last-active went back: {before:?} {after:?}");
                    assert!(before.ended_at.is_none() || after == before, "an ended row changed: {before:?} {after:?}");
                }
                last = rows;
                if over {
                    break;
                }
                std::thread::yield_now();
            }
        });
        Watch { over, thread }
    }

    /// Looks a last time.
    #[track_caller]
    fn end(self) {
        self.over.store(true, SeqCst);
        self.thread.join().expect("everything that was seen was right");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writing_last_active_back_never_changes_an_ended_session_and_never_goes_back() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let mut browsers = vec![stage.sign_up(&name).await];
        while browsers.len() < 14 {
            browsers.push(stage.sign_in(&name).await);
        }
        let watch = Watch::begin(&stage, |_| ());
        let mut deeds = Vec::new();
        for browser in &browsers {
            let (browser, clock) = (browser.copy(), stage.clock.clone());
            deeds.push(deed(async move {
                for _ in 0..10 {
                    clock.advance(Duration::from_millis(500));
                    browser.get("/check").await;
                    yield_now().await;
                }
            }));
        }
        for _ in 0..4 {
            let app = stage.app.clone();
            deeds.push(deed(async move {
                for _ in 0..10 {
                    write_back_all(&app).await.expect("it is written");
                    yield_now().await;
                }
            }));
        }
        // The first revokes the next five, two log out, and one rotates again and again.
        for victim in &browsers[1..6] {
            let (ana, session) = (browsers[0].copy(), id_of(victim).await);
            deeds.push(deed(async move { drop(ana.delete(&format!("/me/sessions/{session}")).await.is(204)) }));
        }
        for leaving in &browsers[6..8] {
            let leaving = leaving.copy();
            deeds.push(deed(async move { drop(leaving.poke("/logout").await.is(204)) }));
        }
        let (rotating, first) = (browsers[8].clone(), password_of(&name));
        deeds.push(deed(async move {
            let mut current = first;
            for n in 0..4 {
                let new = format!("the new password number {n}");
                rotating.put("/me/password", json!({"current_password": current, "new_password": new, "sign_out_others": false})).await.is(200);
                current = new;
            }
        }));
        at_once(deeds).await;

        // What was in memory all the time is exact: everybody who lives was here a moment ago.
        stage.clock.advance(Duration::from_secs(1));
        for (n, browser) in browsers.iter().enumerate() {
            let expected = match n {
                1..6 => refusal(401, "session_revoked"),
                6..8 => refusal(401, "session_logged_out"),
                _ => refusal(204, ""),
            };
            assert_eq!(told(&browser.get("/check").await), expected, "the browser number {n}");
        }
        write_back_all(&stage.app).await.expect("it is written");
        watch.end();
        let now = stage.clock.now().0;
        assert_eq!(count_of(&stage, &name, &format!("device_sessions WHERE ended_at IS NULL AND last_active_at = {now}")), 7);
        assert_eq!(open_sessions(&stage, &name), 7);
    }
}

// Abandoned requests.

/// Goes on with a request until it has waited `waits` times and waits again, and leaves it there. Each place at which a
/// handler can be overtaken or cancelled is met so.
async fn until_it_waits<T>(waits: usize, mut request: Pin<&mut (dyn Future<Output = T> + Send)>) -> Option<T> {
    let mut waited = 0;
    std::future::poll_fn(|cx| match request.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if waited == waits => Poll::Ready(None),
        Poll::Pending => {
            waited += 1;
            Poll::Pending
        }
    })
    .await
}

/// More waits than any request has.
const WAITS: usize = 12;

/// What became of the abandoned requests. A test that has not seen all three kinds has proved nothing: it goes on for a while, since
/// when a request gets how far is a matter of luck.
#[derive(Debug, Default)]
struct Seen {
    rounds: usize,
    answered: usize,
    finished_unheard: usize,
    not_begun: usize,
}

impl Seen {
    /// The number of the next round; `None` when there have been enough.
    fn next_round(&mut self) -> Option<usize> {
        let patience = rounds() + if self.is_complete() { 0 } else { 50 };
        let round = self.rounds;
        self.rounds += 1;
        (round < patience).then_some(round)
    }

    fn is_complete(&self) -> bool {
        self.answered > 0 && self.finished_unheard > 0 && self.not_begun > 0
    }

    fn note(&mut self, finished: bool, heard: bool) {
        match (finished, heard) {
            (true, true) => self.answered += 1,
            (true, false) => self.finished_unheard += 1,
            (false, _) => self.not_begun += 1,
        }
    }

    #[track_caller]
    fn all(&self) {
        assert!(self.is_complete(), "{self:?}");
    }
}

/// What each browser is told: first by memory, and then, which must be the same, by the database. Distrust is of all
/// entries, so all are asked before any is distrusted.
async fn told_by_both(stage: &Stage, browsers: impl Iterator<Item = &Actor> + Clone) -> Vec<(u16, String)> {
    let mut told_by = [Vec::new(), Vec::new()];
    for answers in &mut told_by {
        for browser in browsers.clone() {
            answers.push(told(&browser.get("/check").await));
        }
        stage.app.db.live().distrust();
    }
    let [by_memory, by_database] = told_by;
    assert_eq!(by_memory, by_database, "memory and the database disagree");
    by_memory
}

/// Abandons many of the same kind at once, each somewhere else, and waits until what has begun is finished.
async fn abandon_many<T: Send + 'static>(stage: &Stage, requests: Vec<Deed<T>>) -> Vec<Option<T>> {
    let done = at_once(requests.into_iter().enumerate().map(|(n, mut request)| deed(async move { until_it_waits(n % WAITS, request.as_mut()).await }))).await;
    quiet(&stage.app).await;
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_abandoned_password_change_is_finished_or_has_not_begun() {
    let stage = Stage::without_limits().await;
    let mut seen = Seen::default();
    while let Some(round) = seen.next_round() {
        let mut people = Vec::new();
        for n in 0..MANY {
            let name = format!("ana{round}x{n}");
            let (ana, elsewhere) = (stage.sign_up(&name).await, stage.sign_in(&name).await);
            // In memory, so that there is something to forget.
            ana.get("/check").await.is(204);
            elsewhere.get("/check").await.is(204);
            people.push((ana, elsewhere, name));
        }
        let requests = people.iter().map(|(ana, _, name)| {
            let (ana, current) = (ana.copy(), password_of(name));
            deed(async move { ana.change_password(&current, "another good password").await })
        });
        let answers = abandon_many(&stage, requests.collect()).await;
        let told = told_by_both(&stage, people.iter().flat_map(|(ana, elsewhere, _)| [ana, elsewhere])).await;
        for (((_, _, name), answer), told) in people.iter().zip(answers).zip(told.chunks(2)) {
            let old = stage.anon().log_in(name).await.status == 200;
            let new = log_in_with(&stage.anon(), name, "another good password").await.status == 200;
            assert!(old != new, "{name}: the old password works: {old}, the new one: {new}");
            assert!(new || answer.is_none(), "{name}: what was answered has happened");
            let expected =
                if new { ([refusal(401, "session_rotated"), refusal(401, "session_revoked")], 1) } else { ([refusal(204, ""), refusal(204, "")], 0) };
            assert_eq!((told, events(&stage, name, "password_changed")), (&expected.0[..], expected.1), "{name}");
            // The abandoned session, or those that were left alone, and the sign-in just now.
            assert_eq!(open_sessions(&stage, name), if new { 2 } else { 3 });
            seen.note(new, answer.is_some());
        }
    }
    seen.all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_abandoned_ending_is_finished_or_has_not_begun_and_memory_knows_which() {
    let stage = Stage::without_limits().await;
    let admin = stage.admin("root").await;
    let mut seen = Seen::default();
    while let Some(round) = seen.next_round() {
        let mut casts = Vec::new();
        for n in 0..MANY + 2 {
            let how = ENDINGS[n % ENDINGS.len()];
            casts.push((how, Cast::gather(&stage, &admin, format!("ana{round}x{n}")).await));
            // In memory, so that there is something to forget.
            casts[n].1.victim.get("/check").await.is(204);
        }
        let requests = casts.iter().map(|(how, cast)| {
            let (how, cast) = (*how, cast.clone());
            deed(async move { cast.end(how).await })
        });
        // The endings and the waits go round at different lengths: in eleven rounds each meets each.
        let mut requests: Vec<_> = requests.collect();
        let shift = round % requests.len();
        requests.rotate_left(shift);
        casts.rotate_left(shift);
        let answers = abandon_many(&stage, requests).await;
        let of_victims = told_by_both(&stage, casts.iter().map(|(_, cast)| &cast.victim)).await;
        for (((how, cast), answer), found) in casts.iter().zip(answers).zip(of_victims) {
            let ended = found != refusal(204, "");
            assert!(!ended || found == refusal(401, how.code()), "{how:?}: {found:?}");
            assert!(ended || answer.is_none(), "{how:?}: what was answered has happened");
            let session = cast.session.replace('-', "");
            let live = stage.count(&format!("SELECT count(*) FROM device_sessions WHERE id = x'{session}' AND ended_at IS NULL"));
            // A rotated session lives on, with a token that nobody got.
            assert_eq!(live == 1, !ended || matches!(how, Rotates), "{how:?}");
            let told_of: i64 =
                ["signed_out", "session_revoked", "sessions_revoked", "password_changed"].iter().map(|kind| events(&stage, &cast.name, kind)).sum();
            assert_eq!(told_of > 0, ended, "{how:?}");
            seen.note(ended, answer.is_some());
        }
    }
    seen.all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_abandoned_sign_up_is_a_whole_account_or_none() {
    let stage = Stage::without_limits().await;
    let mut seen = Seen::default();
    while let Some(round) = seen.next_round() {
        let names: Vec<String> = (0..MANY).map(|n| format!("ana{round}x{n}")).collect();
        let requests = names.iter().map(|name| {
            let (browser, body) = (stage.anon(), json!({"email": email_of(name), "password": password_of(name)}));
            deed(async move { browser.post("/signup", body).await })
        });
        let answers = abandon_many(&stage, requests.collect()).await;
        for (name, answer) in names.iter().zip(answers) {
            let made = stage.anon().log_in(name).await.status == 200;
            assert!(made || answer.is_none(), "{name}: what was answered has happened");
            let found = (open_sessions(&stage, name), events(&stage, name, "signed_up"), events(&stage, name, "signed_in"));
            assert_eq!(found, if made { (2, 1, 2) } else { (0, 0, 0) }, "{name}");
            seen.note(made, answer.is_some());
        }
    }
    seen.all();
}

/// Killed from outside at whatever it is doing, on another thread: the server goes on as if nothing had happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn aborted_requests_leave_the_server_whole() {
    let stage = Stage::without_limits().await;
    for round in 0..rounds() {
        let name = format!("ana{round}");
        let ana = stage.sign_up(&name).await;
        let mut tasks = Vec::new();
        for n in 0..MANY * 2 {
            let (browser, own, name) = (stage.anon(), ana.copy(), name.clone());
            tasks.push(tokio::spawn(async move {
                match n % 4 {
                    0 => browser.log_in(&name).await,
                    1 => own.get("/me/sessions").await,
                    2 => own.delete("/me/sessions").await,
                    _ => own.patch("/me", json!({"name": "Ana"})).await,
                }
            }));
            for _ in 0..n % 7 {
                yield_now().await;
            }
            if let Some(task) = tasks.get(n / 2) {
                task.abort();
            }
        }
        for task in tasks {
            task.abort();
            match task.await {
                Ok(answer) => assert_eq!(told(&answer), refusal(200, "")),
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
        quiet(&stage.app).await;
        ana.get("/me").await.is(200);
        let left = sessions_of(&ana).await;
        assert_eq!(open_sessions(&stage, &name), left as i64);
        assert_eq!(events(&stage, &name, "signed_in"), count_of(&stage, &name, "device_sessions WHERE 1 = 1"));
        assert_eq!(ana.delete("/me/sessions").await.is(200).json()["signed_out"], left - 1);
        log_in_with(&stage.anon(), &name, &password_of(&name)).await.is(200);
    }
}
