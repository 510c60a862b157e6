//! The life of sessions, whatever happens to them: random sequences of deeds, played on a server and told to a model of the
//! contract. After each deed the server's answer is one that the model expects.
//!
//! The model knows no tokens, no memory and no database: a session has two deadlines and perhaps an end. Only a crash leaves
//! it in doubt, within what the contract allows to be lost; then it takes either answer, and learns from it.
//!
//! `PROPTEST_CASES` sets the number of sequences. A failure shrinks to the shortest sequence that still fails.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use serde_json::{Value, json};

use holdfast::admin;
use holdfast::background::write_back_lagging;
use holdfast::clock::Timestamp;
use holdfast::event::{By, Scene};
use holdfast::id::UserId;

use crate::stage::{Actor, Answer, NO_LIMITS, Stage, email_of, password_of};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// Short, so that a few steps of time cross them all.
const SETTINGS: [(&str, &str); 7] = [
    ("IDLE_TIMEOUT", "10m"),
    ("ABSOLUTE_TIMEOUT", "1h"),
    ("REMEMBER_TIMEOUTS", "50m/3h"),
    ("ROLES", "user,staff,admin"),
    ("ROLE_TIMEOUTS", "staff=none/30m"),
    NO_LIMITS[0],
    NO_LIMITS[1],
];

const BROWSERS: usize = 2;
const NAME: &str = "ana";

/// A deed. Numbers that choose among what there is are taken modulo its count.
#[derive(Clone, Debug)]
enum Step {
    SignsIn {
        browser: usize,
        remember: bool,
    },
    SignsInWithAWrongPassword {
        browser: usize,
    },
    Asks {
        browser: usize,
        passively: bool,
    },
    AThiefAsks {
        token: usize,
        passively: bool,
    },
    AsksForTheList {
        browser: usize,
    },
    ChangesThePassword {
        browser: usize,
        and_signs_out_others: bool,
    },
    MistypesTheCurrentPassword {
        browser: usize,
    },
    Revokes {
        browser: usize,
        session: usize,
    },
    SignsOutEverywhereElse {
        browser: usize,
        and_here: bool,
    },
    LogsOut {
        browser: usize,
    },
    AThiefLogsOut {
        token: usize,
    },
    TheAccountIsDisabled,
    TheAccountIsEnabled,
    TheRoleIsChanged,
    AnotherProcessEnds {
        session: usize,
    },
    TimePasses {
        ms: i64,
    },
    /// A limit of one of those that live.
    TimePassesUpTo {
        limit: Limit,
        of_session: usize,
        and: i64,
    },
    TheClockStepsBack {
        ms: i64,
    },
    TheServerRestarts,
    TheServerCrashes,
}

use Step::*;

#[derive(Clone, Copy, Debug)]
enum Limit {
    Idle,
    IdleAfterACrash,
    Absolute,
}

fn step() -> impl Strategy<Value = Step> {
    let browser = || 0..BROWSERS;
    let one = || 0..64usize;
    let limit = prop_oneof![3 => Just(Limit::Idle), 2 => Just(Limit::IdleAfterACrash), 2 => Just(Limit::Absolute)];
    prop_oneof![
        5 => (browser(), any::<bool>()).prop_map(|(browser, remember)| SignsIn { browser, remember }),
        1 => browser().prop_map(|browser| SignsInWithAWrongPassword { browser }),
        10 => (browser(), prop::bool::weighted(0.3)).prop_map(|(browser, passively)| Asks { browser, passively }),
        4 => (one(), any::<bool>()).prop_map(|(token, passively)| AThiefAsks { token, passively }),
        1 => browser().prop_map(|browser| AsksForTheList { browser }),
        2 => (browser(), any::<bool>()).prop_map(|(browser, and_signs_out_others)| ChangesThePassword { browser, and_signs_out_others }),
        1 => browser().prop_map(|browser| MistypesTheCurrentPassword { browser }),
        2 => (browser(), one()).prop_map(|(browser, session)| Revokes { browser, session }),
        1 => (browser(), any::<bool>()).prop_map(|(browser, and_here)| SignsOutEverywhereElse { browser, and_here }),
        1 => browser().prop_map(|browser| LogsOut { browser }),
        1 => one().prop_map(|token| AThiefLogsOut { token }),
        1 => Just(TheAccountIsDisabled),
        2 => Just(TheAccountIsEnabled),
        1 => Just(TheRoleIsChanged),
        1 => one().prop_map(|session| AnotherProcessEnds { session }),
        3 => (1..5 * MINUTE).prop_map(|ms| TimePasses { ms }),
        1 => (1..2 * HOUR).prop_map(|ms| TimePasses { ms }),
        8 => (limit, one(), -1..=1i64).prop_map(|(limit, of_session, and)| TimePassesUpTo { limit, of_session, and }),
        2 => (1..20 * MINUTE).prop_map(|ms| TheClockStepsBack { ms }),
        1 => Just(TheServerRestarts),
        3 => Just(TheServerCrashes),
    ]
}

// The model.

/// That it lives; otherwise an answer is the code of a refusal.
const LIVE: &str = "live";

/// A session, as the contract tells of one.
#[derive(Debug)]
struct Session {
    id: String,
    /// When it was last active: the earliest and the latest that it may be. They differ after a crash only.
    last_active: (i64, i64),
    idle: Option<i64>,
    expires_at: i64,
    /// What it was ended with; more than one if it is in doubt which came first.
    ended: Option<BTreeSet<&'static str>>,
}

impl Session {
    fn idle_expires_at(&self, last_active: i64) -> i64 {
        self.idle.map_or(self.expires_at, |idle| self.expires_at.min(last_active + idle))
    }

    /// What may be answered to its token.
    fn answers(&self, now: i64) -> BTreeSet<&'static str> {
        let answer = |last_active| match self.idle_expires_at(last_active) {
            deadline if now <= deadline => LIVE,
            deadline if deadline < self.expires_at => "session_idle_timeout",
            _ => "session_expired",
        };
        self.ended.clone().unwrap_or_else(|| BTreeSet::from([answer(self.last_active.0), answer(self.last_active.1)]))
    }

    fn lives_for_sure(&self, now: i64) -> bool {
        self.answers(now) == BTreeSet::from([LIVE])
    }

    fn may_live(&self, now: i64) -> bool {
        self.answers(now).contains(LIVE)
    }

    /// Learns from an answer to its token.
    fn was_told(&mut self, answer: &'static str, now: i64) {
        match (answer, self.idle) {
            (LIVE, Some(idle)) => self.last_active.0 = self.last_active.0.max(now - idle),
            (LIVE, None) => {}
            (code, _) => self.ended = Some(BTreeSet::from([code])),
        }
    }

    /// A clock that has stepped back takes no activity back.
    fn was_active(&mut self, now: i64) {
        self.last_active = (self.last_active.0.max(now), self.last_active.1.max(now));
    }

    /// Ends it, if it lives.
    fn end(&mut self, code: &'static str, now: i64) {
        let answers = self.answers(now).into_iter().map(|answer| if answer == LIVE { code } else { answer });
        self.ended = Some(answers.collect());
    }

    /// What is not yet written is lost: at most 1/30 of the idle timeout, and never more than a minute.
    fn survives_a_crash(&mut self) {
        let allowance = self.idle.map_or(MINUTE, |idle| (idle / 30).min(MINUTE));
        self.last_active.0 = self.last_active.0.min(self.last_active.1 - allowance);
    }
}

/// A token that was once given out, and the session that it named.
struct Token {
    text: String,
    session: usize,
    rotated_away: bool,
}

/// A server, and what the model knows of it.
struct World {
    stage: Stage,
    user: UserId,
    sessions: Vec<Session>,
    tokens: Vec<Token>,
    /// Which token each browser holds.
    browsers: [Option<usize>; BROWSERS],
    password: String,
    passwords: usize,
    is_staff: bool,
    is_disabled: bool,
}

type Played = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($otherwise:tt)*) => { if !$holds { return Err(format!($($otherwise)*)); } };
}

fn expect_status(answer: &Answer, status: u16) -> Played {
    let told = (answer.status.as_u16(), answer.code());
    ensure!(told.0 == status, "expected {status}, got {told:?}");
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

impl World {
    async fn begin() -> Self {
        let stage = Stage::with(&SETTINGS).await;
        let browser = stage.anon();
        let answer = browser.post("/signup", json!({"email": email_of(NAME), "password": password_of(NAME)})).await.is(201).json();
        let user = UserId::parse(&text(&answer["user"]["id"])).expect("an id");
        let mut world = World {
            stage,
            user,
            sessions: Vec::new(),
            tokens: Vec::new(),
            browsers: [None; BROWSERS],
            password: password_of(NAME),
            passwords: 0,
            is_staff: false,
            is_disabled: false,
        };
        world.opens(0, &browser, &answer["session"], false).expect("the first session is as it should be");
        world
    }

    fn now(&self) -> i64 {
        self.stage.clock.now().0
    }

    /// Somebody who holds this token and nothing else.
    fn holder(&self, token: Option<usize>) -> Actor {
        let actor = self.stage.anon();
        actor.set_token(token.map(|token| self.tokens[token].text.as_str()));
        actor
    }

    /// A new session, as told to whoever has just signed in.
    fn opens(&mut self, browser: usize, actor: &Actor, told: &Value, remember: bool) -> Played {
        let (idle, absolute) = match (self.is_staff, remember) {
            (true, _) => (None, HOUR / 2),
            (false, true) => (Some(50 * MINUTE), 3 * HOUR),
            (false, false) => (Some(10 * MINUTE), HOUR),
        };
        let now = self.now();
        let session = Session { id: text(&told["id"]), last_active: (now, now), idle, expires_at: now + absolute, ended: None };
        self.sessions.push(session);
        let session = self.sessions.len() - 1;
        self.holds_a_new_token(browser, actor, session)?;
        self.is_shown_exactly(session, told)
    }

    fn holds_a_new_token(&mut self, browser: usize, actor: &Actor, session: usize) -> Played {
        let Some(text) = actor.token() else { return Err("no cookie was handed out that a browser keeps".into()) };
        self.tokens.push(Token { text, session, rotated_away: false });
        self.browsers[browser] = Some(self.tokens.len() - 1);
        Ok(())
    }

    /// The deadlines as shown are those that count.
    fn is_shown_exactly(&self, session: usize, told: &Value) -> Played {
        let session = &self.sessions[session];
        let (earliest, latest) = (session.idle_expires_at(session.last_active.0), session.idle_expires_at(session.last_active.1));
        // These texts sort as the times do.
        let shown = text(&told["idle_expires_at"]);
        let right = (Timestamp(earliest).to_string()..=Timestamp(latest).to_string()).contains(&shown);
        ensure!(right, "shown to be idle after {shown}; it is between {} and {}", Timestamp(earliest), Timestamp(latest));
        let expires_at = Timestamp(session.expires_at).to_string();
        ensure!(text(&told["expires_at"]) == expires_at, "shown to expire at {}; it is {expires_at}", told["expires_at"]);
        Ok(())
    }

    /// Checks an answer that needed a session, and learns from it. `Some`: it was let in, in this session.
    fn is_let_in(&mut self, token: Option<usize>, answer: &Answer, passively: bool) -> Result<Option<usize>, String> {
        let now = self.now();
        let got = if answer.status == 401 { answer.code() } else { LIVE.to_string() };
        let Some(Token { session, rotated_away, .. }) = token.map(|token| &self.tokens[token]) else {
            ensure!(got == "unauthenticated", "expected unauthenticated without a token, got {got}");
            return Ok(None);
        };
        if *rotated_away {
            ensure!(got == "session_rotated", "expected session_rotated, got {got}");
            return Ok(None);
        }
        ensure!(!answer.clears_session() || got == LIVE, "a 401 took the cookie back");
        let (index, session) = (*session, &mut self.sessions[*session]);
        let expected = session.answers(now);
        let Some(got) = expected.get(got.as_str()).copied() else { return Err(format!("expected {expected:?}, got {got}")) };
        session.was_told(got, now);
        if got == LIVE && !passively {
            session.was_active(now);
        }
        Ok((got == LIVE).then_some(index))
    }

    /// Ends all sessions for which `which` holds, and checks how many of them are said to have been alive.
    fn end_those(&mut self, which: impl Fn(usize) -> bool, code: &'static str, said: u64) -> Played {
        let now = self.now();
        let (mut surely, mut perhaps) = (0, 0);
        for (_, session) in self.sessions.iter_mut().enumerate().filter(|(index, _)| which(*index)) {
            surely += u64::from(session.lives_for_sure(now));
            perhaps += u64::from(session.may_live(now));
            session.end(code, now);
        }
        ensure!((surely..=perhaps).contains(&said), "said to have ended {said} sessions; it is {surely} to {perhaps}");
        Ok(())
    }

    /// Asks twice: once by what is in memory, and, without counting as activity, for what is shown.
    async fn asks(&mut self, token: Option<usize>, passively: bool) -> Played {
        let holder = self.holder(token);
        let looking = holder.clone().with_header("x-session-passive", "1");
        let answer = if passively { &looking } else { &holder }.get("/check").await;
        let Some(session) = self.is_let_in(token, &answer, passively)? else { return Ok(()) };
        expect_status(&answer, 204)?;
        let id = &self.sessions[session].id;
        ensure!(answer.header("x-holdfast-session") == Some(id), "let in to another session");
        let role = if self.is_staff { "staff" } else { "user" };
        ensure!(answer.header("x-holdfast-role") == Some(role), "let in as {:?}", answer.header("x-holdfast-role"));

        let told = looking.get("/me").await;
        expect_status(&told, 200)?;
        self.is_shown_exactly(session, &told.json()["session"])
    }

    /// A logout always works, and takes the cookie back if it has ended something. Says whether it has.
    async fn logs_out(&mut self, token: Option<usize>) -> Result<bool, String> {
        let answer = self.holder(token).poke("/logout").await;
        expect_status(&answer, 204)?;
        match token {
            Some(token) => self.has_ended(self.tokens[token].session, answer.clears_session(), "session_logged_out")?,
            None => ensure!(!answer.clears_session(), "took back a cookie that was never there"),
        }
        Ok(answer.clears_session())
    }

    /// Somebody tried to end a session, and was told whether they have.
    fn has_ended(&mut self, session: usize, ended: bool, code: &'static str) -> Played {
        let (now, session) = (self.now(), &mut self.sessions[session]);
        let mut answers = session.answers(now);
        ensure!(!ended || answers.contains(LIVE), "said to have ended a session that was dead: {answers:?}");
        ensure!(ended || answers.iter().any(|answer| *answer != LIVE), "said to have found nothing, but it lived");
        answers.remove(LIVE);
        session.ended = Some(if ended { BTreeSet::from([code]) } else { answers });
        Ok(())
    }

    async fn play(&mut self, step: &Step) -> Played {
        match *step {
            SignsIn { browser, remember } => {
                let held = self.browsers[browser];
                let actor = self.holder(held);
                let answer = actor.post("/login", json!({"email": email_of(NAME), "password": self.password, "remember": remember})).await;
                if self.is_disabled {
                    ensure!(answer.code() == "invalid_credentials", "a disabled account was not refused: {}", answer.status);
                    return Ok(());
                }
                expect_status(&answer, 200)?;
                // One browser, one session.
                if let Some(token) = held {
                    let (now, session) = (self.now(), self.tokens[token].session);
                    self.sessions[session].end("session_replaced", now);
                }
                self.opens(browser, &actor, &answer.json()["session"], remember)?;
            }
            SignsInWithAWrongPassword { browser } => {
                let actor = self.holder(self.browsers[browser]);
                let answer = actor.post("/login", json!({"email": email_of(NAME), "password": "not the password"})).await;
                ensure!(answer.code() == "invalid_credentials", "not refused: {}", answer.status);
            }
            Asks { browser, passively } => self.asks(self.browsers[browser], passively).await?,
            AThiefAsks { token, passively } => self.asks(Some(token % self.tokens.len()), passively).await?,
            AsksForTheList { browser } => {
                let token = self.browsers[browser];
                let answer = self.holder(token).get("/me/sessions").await;
                if let Some(current) = self.is_let_in(token, &answer, false)? {
                    self.is_listed(current, &answer.is(200).json()["sessions"])?;
                }
            }
            ChangesThePassword { browser, and_signs_out_others } => {
                let token = self.browsers[browser];
                let (actor, new) = (self.holder(token), format!("the new password number {}", self.passwords));
                let body = json!({"current_password": self.password, "new_password": new, "sign_out_others": and_signs_out_others});
                let answer = actor.put("/me/password", body).await;
                let (Some(current), Some(token)) = (self.is_let_in(token, &answer, false)?, token) else { return Ok(()) };
                expect_status(&answer, 200)?;
                (self.password, self.passwords) = (new, self.passwords + 1);
                let told = answer.json();
                let said = told["signed_out"].as_u64().unwrap_or(u64::MAX);
                self.end_those(|index| and_signs_out_others && index != current, "session_revoked", said)?;
                self.tokens[token].rotated_away = true;
                self.holds_a_new_token(browser, &actor, current)?;
                ensure!(text(&told["session"]["id"]) == self.sessions[current].id, "the session did not keep its id");
                self.is_shown_exactly(current, &told["session"])?;
            }
            MistypesTheCurrentPassword { browser } => {
                let token = self.browsers[browser];
                let answer = self.holder(token).change_password("not the password", "another good password").await;
                if self.is_let_in(token, &answer, false)?.is_some() {
                    expect_status(&answer, 403)?;
                }
            }
            Revokes { browser, session } => {
                let (token, session) = (self.browsers[browser], session % self.sessions.len());
                let answer = self.holder(token).delete(&format!("/me/sessions/{}", self.sessions[session].id)).await;
                let Some(current) = self.is_let_in(token, &answer, false)? else { return Ok(()) };
                let code = if session == current { "session_logged_out" } else { "session_revoked" };
                ensure!([204, 404].contains(&answer.status.as_u16()), "got {}", answer.status);
                self.has_ended(session, answer.status == 204, code)?;
                ensure!(answer.clears_session() == (session == current), "only the end of one's own session takes the cookie back");
                if session == current {
                    self.browsers[browser] = None;
                }
            }
            SignsOutEverywhereElse { browser, and_here } => {
                let token = self.browsers[browser];
                let answer = self.holder(token).delete(&format!("/me/sessions?include_current={and_here}")).await;
                let Some(current) = self.is_let_in(token, &answer, false)? else { return Ok(()) };
                expect_status(&answer, 200)?;
                let said = answer.json()["signed_out"].as_u64().unwrap_or(u64::MAX);
                self.end_those(|index| index != current, "session_revoked", said - u64::from(and_here))?;
                ensure!(answer.clears_session() == and_here, "only the end of one's own session takes the cookie back");
                if and_here {
                    self.has_ended(current, true, "session_logged_out")?;
                    self.browsers[browser] = None;
                }
            }
            LogsOut { browser } => {
                if self.logs_out(self.browsers[browser]).await? {
                    self.browsers[browser] = None;
                }
            }
            AThiefLogsOut { token } => drop(self.logs_out(Some(token % self.tokens.len())).await?),
            TheAccountIsDisabled => {
                let user = self.user;
                let ended = self.stage.app.db.write(move |tx| admin::disable(tx, user, By::Cli, Scene::to(user))).await;
                self.is_disabled = true;
                self.end_those(|_| true, "session_revoked", ended.map_err(|e| format!("{e:?}"))?)?;
            }
            TheAccountIsEnabled => {
                let user = self.user;
                let enabled = self.stage.app.db.write(move |tx| admin::enable(tx, user, By::Cli, Scene::to(user))).await;
                enabled.map_err(|e| format!("{e:?}"))?;
                self.is_disabled = false;
            }
            TheRoleIsChanged => {
                self.is_staff = !self.is_staff;
                let (user, role) = (self.user, if self.is_staff { "staff" } else { "user" });
                let ended = self.stage.app.db.write(move |tx| admin::set_role(tx, user, role, By::Cli, Scene::to(user))).await;
                self.end_those(|_| true, "session_revoked", ended.map_err(|e| format!("{e:?}"))?)?;
            }
            AnotherProcessEnds { session } => {
                let (now, session) = (self.now(), session % self.sessions.len());
                // It would keep the same rules; this hand in the database keeps them by ending only what lives.
                if self.sessions[session].lives_for_sure(now) {
                    let id = self.sessions[session].id.replace('-', "");
                    self.stage.execute(&format!("UPDATE device_sessions SET ended_at = {now}, ended_reason = 'session_revoked' WHERE id = x'{id}'"));
                    self.stage.app.db.tend().await.map_err(|e| e.to_string())?;
                    self.sessions[session].end("session_revoked", now);
                }
            }
            TimePasses { ms } => self.passes(ms),
            TimePassesUpTo { limit, of_session, and } => {
                let now = self.now();
                let alive: Vec<&Session> = self.sessions.iter().filter(|session| session.may_live(now)).collect();
                let Some(session) = alive.get(of_session % alive.len().max(1)) else { return Ok(()) };
                let limit = match limit {
                    Limit::Idle => session.idle_expires_at(session.last_active.1),
                    Limit::IdleAfterACrash => session.idle_expires_at(session.last_active.0),
                    Limit::Absolute => session.expires_at,
                };
                self.passes(limit + and - self.now());
            }
            TheClockStepsBack { ms } => {
                // Only what was rejected has to stay dead, so all that are dead are rejected now.
                for token in 0..self.tokens.len() {
                    self.asks(Some(token), true).await?;
                }
                self.stage.clock.step_back(Duration::from_millis(ms.unsigned_abs()));
            }
            TheServerRestarts => self.stage.restart().await,
            TheServerCrashes => {
                self.stage.crash().await;
                self.sessions.iter_mut().for_each(Session::survives_a_crash);
            }
        }
        Ok(())
    }

    fn is_listed(&self, current: usize, list: &Value) -> Played {
        let now = self.now();
        let ids: Vec<String> = list.as_array().into_iter().flatten().map(|session| text(&session["id"])).collect();
        ensure!(ids.first() == Some(&self.sessions[current].id), "the current session is not the first");
        for (index, session) in self.sessions.iter().enumerate() {
            let listed = ids.iter().filter(|id| **id == session.id).count();
            ensure!(listed <= usize::from(session.may_live(now)), "the session {index} is listed {listed} times");
            ensure!(listed == 1 || !session.lives_for_sure(now), "the session {index} lives, but is not listed");
        }
        Ok(())
    }

    fn passes(&self, ms: i64) {
        self.stage.clock.advance(Duration::from_millis(ms.max(0).unsigned_abs()));
    }
}

async fn play(steps: &[Step]) -> Played {
    let mut world = World::begin().await;
    for (n, step) in steps.iter().enumerate() {
        let begun = world.now();
        let played = world.play(step).await;
        played.map_err(|reason| format!("step {}, {step:?}, at {}: {reason}", n + 1, Timestamp(begun)))?;
        // What goes on beside the requests.
        write_back_lagging(&world.stage.app).await.map_err(|e| e.to_string())?;
    }
    for token in 0..world.tokens.len() {
        world.asks(Some(token), true).await.map_err(|reason| format!("afterwards, the token {}: {reason}", token + 1))?;
    }
    Ok(())
}

/// Plays one story.
#[track_caller]
fn tell(steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Err(reason) = runtime.block_on(play(steps)) {
        panic!("{reason}");
    }
}

/// Found by the stories below: a cookie with `Max-Age=0` is a cookie taken back.
#[test]
fn a_remembered_session_that_rotates_in_its_last_second_keeps_its_cookie() {
    let mut steps = vec![SignsIn { browser: 0, remember: true }];
    for _ in 0..4 {
        steps.extend([TimePasses { ms: 40 * MINUTE }, Asks { browser: 0, passively: false }]);
    }
    steps.extend([
        TimePassesUpTo { limit: Limit::Absolute, of_session: 0, and: -1 },
        ChangesThePassword { browser: 0, and_signs_out_others: true },
        Asks { browser: 0, passively: false },
    ]);
    tell(&steps);
}

#[test]
fn a_crash_loses_no_more_activity_than_is_allowed() {
    for ms in [SECOND, 18 * SECOND, 20 * SECOND, MINUTE, 9 * MINUTE] {
        for and in [-1, 0] {
            tell(&[
                TimePasses { ms },
                Asks { browser: 0, passively: false },
                TheServerCrashes,
                TimePassesUpTo { limit: Limit::IdleAfterACrash, of_session: 0, and },
                Asks { browser: 0, passively: false },
                TimePassesUpTo { limit: Limit::Idle, of_session: 0, and: 1 },
                Asks { browser: 0, passively: false },
            ]);
        }
    }
}

#[test]
fn a_request_after_the_clock_has_stepped_back_takes_no_earlier_activity_back() {
    for and in [-1, 0, 1] {
        tell(&[
            TimePasses { ms: 5 * MINUTE },
            Asks { browser: 0, passively: false },
            TheClockStepsBack { ms: 4 * MINUTE },
            Asks { browser: 0, passively: false },
            TimePassesUpTo { limit: Limit::Idle, of_session: 0, and },
            Asks { browser: 0, passively: true },
        ]);
    }
}

#[test]
fn whatever_happens_to_sessions_they_live_and_die_as_the_contract_says() {
    let cases = std::env::var("PROPTEST_CASES").map_or(64, |text| text.parse().expect("PROPTEST_CASES is a number"));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = TestRunner::new(config).run(&vec(step(), 1..40), |steps| runtime.block_on(play(&steps)).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, steps)) => {
            let mut story = String::new();
            for (n, step) in steps.iter().enumerate() {
                writeln!(story, "{:>3}. {step:?}", n + 1).expect("a string takes it");
            }
            panic!("{reason}\nThe shortest story that ends so, after a sign-up on browser 0:\n{story}");
        }
        Err(TestError::Abort(reason)) => panic!("given up: {reason}"),
    }
}
