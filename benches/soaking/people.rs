//! People with accounts. Each does one thing after the other, chosen by a seeded chance, and knows after each which of its
//! sessions live and which tokens must be dead, why, and when they were last used.
//!
//! Most have accounts of their own, and know everything about them. Some share one ([`Company::Crowd`]), and know only about
//! the sessions that they opened themselves.

use std::collections::BTreeSet;
use std::time::Instant;

use holdfast::clock::Clock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::Town;
use super::book::{Book, Dead};
use super::doors::{Ask, Broke, Doors};
use crate::process::Reply;

/// Sessions that one person keeps open.
const MOST_SESSIONS: usize = 5;
/// Deeds with one account; then it is left for a new one.
const DEEDS: u32 = 300;

/// Who else uses the account.
#[derive(Clone, PartialEq, Eq)]
pub enum Company {
    /// Nobody.
    Alone,
    /// Others, who opened it.
    Crowd {
        /// Its address.
        email: String,
    },
}

/// Somebody with an account.
pub struct Person {
    name: String,
    company: Company,
    chance: StdRng,
    clock: Clock,
    doors: Doors,
    account: Option<Account>,
    accounts: u32,
    left: Vec<Account>,
    /// What this person saw.
    pub book: Book,
}

struct Account {
    email: String,
    password: String,
    sessions: Vec<Held>,
    deeds: u32,
}

/// A live session, as its browser knows it.
struct Held {
    token: String,
    device: String,
    id: String,
    /// Between when and when it was last active, in Unix milliseconds.
    active: (i64, i64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    Check,
    CheckPassively,
    Look,
    ListSessions,
    SignIn,
    SignInOver,
    MistypePassword,
    MistypeCurrentPassword,
    ChangePasswordKeepingOthers,
    ChangePassword,
    RevokeOne,
    RevokeWhatIsNotTheirs,
    RevokeOthers,
    SignOut,
    TryOldToken,
    Leave,
}

use Deed::*;

const DEEDS_OF_ONE: [(Deed, u32); 15] = [
    (Check, 300),
    (CheckPassively, 80),
    (Look, 60),
    (ListSessions, 80),
    (SignIn, 120),
    (SignInOver, 20),
    (MistypePassword, 20),
    (MistypeCurrentPassword, 15),
    (ChangePasswordKeepingOthers, 25),
    (ChangePassword, 15),
    (RevokeOne, 50),
    (RevokeWhatIsNotTheirs, 10),
    (RevokeOthers, 15),
    (SignOut, 40),
    (TryOldToken, 60),
];

const DEEDS_OF_A_CROWD: [(Deed, u32); 8] =
    [(Check, 150), (CheckPassively, 30), (Look, 30), (ListSessions, 40), (SignIn, 100), (RevokeOne, 30), (SignOut, 60), (TryOldToken, 30)];

impl Deed {
    /// Whether it changes more than a last-active.
    fn writes(self) -> bool {
        !matches!(self, Check | CheckPassively | Look | ListSessions | TryOldToken)
    }
}

impl Person {
    /// The `n`-th.
    pub fn new(n: u64, company: Company) -> Self {
        Person {
            name: format!("person{n}"),
            company,
            chance: StdRng::seed_from_u64(n),
            clock: Clock::System,
            doors: Doors::to(&[]),
            account: None,
            accounts: 0,
            left: Vec::new(),
            book: Book::default(),
        }
    }

    /// Does one thing after the other, to the end of the day or of the server.
    pub fn live(&mut self, town: &Town) {
        self.doors = Doors::to(&town.addresses);
        while !town.is_over() {
            if self.act(town).is_err() && town.is_killed() {
                return;
            }
        }
    }

    fn act(&mut self, town: &Town) -> Result<(), Broke> {
        let Some(mut account) = self.account.take() else {
            self.account = self.find_account(town)?;
            return Ok(());
        };
        let deed = self.choose(&account);
        account.deeds += 1;
        let done = self.perform(deed, town, &mut account);
        match done {
            // It may or may not have happened: nothing is known any more of the sessions that live.
            Err(Broke) if deed.writes() => {}
            _ if deed == Leave => self.left.push(account),
            _ => self.account = Some(account),
        }
        done
    }

    fn choose(&mut self, account: &Account) -> Deed {
        let live = account.sessions.len();
        let deeds = match self.company {
            Company::Alone if account.deeds >= DEEDS => return Leave,
            Company::Alone => &DEEDS_OF_ONE[..],
            Company::Crowd { .. } => &DEEDS_OF_A_CROWD[..],
        };
        if live == 0 {
            return SignIn;
        }
        let mut turn = self.chance.random_range(0..deeds.iter().map(|(_, weight)| weight).sum());
        let chosen = deeds.iter().find(|(_, weight)| {
            let is_it = turn < *weight;
            turn = turn.saturating_sub(*weight);
            is_it
        });
        match chosen.map_or(Check, |(deed, _)| *deed) {
            SignIn if live >= MOST_SESSIONS => SignOut,
            RevokeOne if live < 2 => Check,
            deed => deed,
        }
    }

    fn perform(&mut self, deed: Deed, town: &Town, account: &mut Account) -> Result<(), Broke> {
        match deed {
            Check => self.check(town, account, false),
            CheckPassively => self.check(town, account, true),
            Look => self.look(town, account),
            ListSessions => self.list_sessions(town, account),
            SignIn => self.sign_in(town, account, None),
            SignInOver => {
                let held = self.any(account);
                self.sign_in(town, account, Some(held))
            }
            MistypePassword => self.mistype_password(town, account),
            MistypeCurrentPassword => self.mistype_current_password(town, account),
            ChangePasswordKeepingOthers => self.change_password(town, account, false),
            ChangePassword => self.change_password(town, account, true),
            RevokeOne => self.revoke_one(town, account),
            RevokeWhatIsNotTheirs => self.revoke_what_is_not_theirs(town, account),
            RevokeOthers => self.revoke_others(town, account),
            SignOut => self.sign_out(town, account),
            TryOldToken => self.try_old_token(town),
            Leave => self.leave(town, account),
        }
    }

    // ---- asking

    fn now(&self) -> i64 {
        self.clock.now().0
    }

    /// One of the browsers that are signed in.
    fn any(&mut self, account: &Account) -> usize {
        self.chance.random_range(0..account.sessions.len())
    }

    fn ask(&mut self, town: &Town, ask: Ask) -> Result<Option<Reply>, Broke> {
        // A few addresses, so that some are new.
        let from = format!("10.{}.7.{}", self.accounts % 250, self.chance.random_range(1..4));
        self.doors.ask(town, &mut self.chance, &mut self.book, &ask.with("X-Forwarded-For", &from))
    }

    /// Asks with a session, and winds its clock.
    fn ask_as(&mut self, town: &Town, held: &mut Held, ask: Ask) -> Result<Option<Reply>, Broke> {
        let before = self.now();
        let reply = self.ask(town, ask.holding(&held.token).on(&held.device));
        held.active = match &reply {
            Ok(Some(_)) => (before, self.now()),
            // Perhaps it counted, perhaps not.
            Ok(None) => (held.active.0, self.now()),
            Err(Broke) => (held.active.0, i64::MAX),
        };
        reply
    }

    /// Writes it down unless this is the answer. What is at fault is told, and this person goes on.
    fn is(&mut self, reply: &Reply, what: &str, status: u16, code: &str) -> bool {
        let right = reply.status == status && (status < 400 || reply.code() == code);
        if !right {
            let told = format!("{} {}", reply.status, reply.code());
            self.book.fault(format!("{}: {what}: {told} instead of {status} {code}", self.name));
        }
        right
    }

    /// A token has ended: from now on every instance says so.
    fn ended(&mut self, town: &Town, token: String, code: &'static str, since: Instant) -> Result<(), Broke> {
        let dead = Dead { token, code, since };
        self.book.dead.push(dead.clone());
        for door in 0..self.doors.count() {
            self.is_dead(town, &dead, Some(door))?;
        }
        Ok(())
    }

    fn is_dead(&mut self, town: &Town, dead: &Dead, door: Option<usize>) -> Result<(), Broke> {
        let door = door.unwrap_or_else(|| self.chance.random_range(0..self.doors.count()));
        let ask = Ask::new("a dead token", "GET", "/check").holding(&dead.token);
        if let Some(reply) = self.doors.ask_at(door, town, &mut self.book, &ask)?
            && !(reply.status == 401 && dead.may_hear(&reply.code(), town.retention))
        {
            let age = dead.since.elapsed();
            let heard = format!("{} {}", reply.status, reply.code());
            self.book.fault(format!("{}: a token that is dead for {age:?} ({}) hears {heard}", self.name, dead.code));
        }
        Ok(())
    }

    // ---- deeds

    fn find_account(&mut self, town: &Town) -> Result<Option<Account>, Broke> {
        self.accounts += 1;
        match &self.company {
            Company::Crowd { email } => {
                let email = email.clone();
                Ok(Some(Account { email, password: crate::process::PASSWORD.into(), sessions: Vec::new(), deeds: 0 }))
            }
            Company::Alone => self.sign_up(town),
        }
    }

    fn sign_up(&mut self, town: &Town) -> Result<Option<Account>, Broke> {
        let email = format!("{}-{}@example.com", self.name, self.accounts);
        let password = "a first good password".to_string();
        let before = self.now();
        let Some(reply) = self.ask(town, Ask::new("sign-up", "POST", "/signup").saying(json!({"email": email, "password": password})))? else {
            return Ok(None);
        };
        if !self.is(&reply, "sign-up", 201, "") {
            return Ok(None);
        }
        self.book.happened("signed_up");
        self.book.happened("signed_in");
        let session = Held::of(&reply, (before, self.now()));
        Ok(Some(Account { email, password, sessions: vec![session], deeds: 0 }))
    }

    fn check(&mut self, town: &Town, account: &mut Account, passive: bool) -> Result<(), Broke> {
        let held = self.any(account);
        let held = &mut account.sessions[held];
        let reply = match passive {
            false => self.ask_as(town, held, Ask::new("check", "GET", "/check"))?,
            true => {
                let ask = Ask::new("check, passive", "GET", "/check").with("X-Session-Passive", "1");
                self.ask(town, ask.holding(&held.token))?
            }
        };
        if let Some(reply) = reply
            && self.is(&reply, "a check", 204, "")
            && reply.header("x-holdfast-session") != Some(&held.id)
        {
            self.book.fault(format!("{}: a check names another session", self.name));
        }
        Ok(())
    }

    fn look(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let held = self.any(account);
        if let Some(reply) = self.ask_as(town, &mut account.sessions[held], Ask::new("me", "GET", "/me"))?
            && self.is(&reply, "me", 200, "")
            && reply.json()["user"]["email"] != account.email.as_str()
        {
            self.book.fault(format!("{}: somebody else's account is shown", self.name));
        }
        Ok(())
    }

    fn list_sessions(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let asking = self.any(account);
        let Some(reply) = self.ask_as(town, &mut account.sessions[asking], Ask::new("sessions", "GET", "/me/sessions"))? else { return Ok(()) };
        if !self.is(&reply, "the list of sessions", 200, "") {
            return Ok(());
        }
        let body = reply.json();
        let listed: Vec<&Value> = body["sessions"].as_array().into_iter().flatten().collect();
        let ids: BTreeSet<&str> = listed.iter().filter_map(|session| session["id"].as_str()).collect();
        let held: BTreeSet<&str> = account.sessions.iter().map(|held| held.id.as_str()).collect();
        let is_right = if self.company == Company::Alone { ids == held } else { ids.is_superset(&held) };
        if !is_right || listed.first().is_none_or(|first| first["id"] != account.sessions[asking].id.as_str()) {
            self.book.fault(format!("{}: {ids:?} are listed, {held:?} live", self.name));
        }
        for session in listed {
            let Some(held) = account.sessions.iter().find(|held| session["id"] == held.id.as_str()) else { continue };
            let shown = session["last_active_at"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_millisecond);
            let (from, until) = held.active;
            if shown < from - town.lag || shown > until {
                self.book.fault(format!("{}: last active at {shown}, but it was between {from} and {until}", self.name));
            }
        }
        Ok(())
    }

    /// Signs in, on a browser that nobody is signed in on, or over a session that lives.
    fn sign_in(&mut self, town: &Town, account: &mut Account, over: Option<usize>) -> Result<(), Broke> {
        let mut ask = Ask::new("sign-in", "POST", "/login").saying(json!({"email": account.email, "password": account.password}));
        match over {
            Some(held) => ask = ask.holding(&account.sessions[held].token).on(&account.sessions[held].device),
            // Often a browser that is known.
            None if self.chance.random_bool(0.7) => {
                if let Some(held) = account.sessions.first() {
                    ask = ask.on(&held.device);
                }
            }
            None => {}
        }
        let (before, since) = (self.now(), Instant::now());
        let Some(reply) = self.ask(town, ask)? else { return Ok(()) };
        if !self.is(&reply, "a sign-in", 200, "") {
            return Ok(());
        }
        self.book.happened("signed_in");
        let new = Held::of(&reply, (before, self.now()));
        let replaced = over.map(|held| account.sessions.remove(held).token);
        account.sessions.push(new);
        if let Some(token) = replaced {
            self.ended(town, token, "session_replaced", since)?;
        }
        if self.chance.random_bool(0.2) { self.find_in_activity(town, account) } else { Ok(()) }
    }

    /// The newest sign-in is in the list of activity.
    fn find_in_activity(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let Some(newest) = account.sessions.last_mut() else { return Ok(()) };
        let id = newest.id.clone();
        let limit = if self.company == Company::Alone { 10 } else { 100 };
        if let Some(reply) = self.ask_as(town, newest, Ask::new("activity", "GET", format!("/me/activity?limit={limit}")))?
            && self.is(&reply, "activity", 200, "")
        {
            let body = reply.json();
            let mut events = body["events"].as_array().into_iter().flatten();
            if !events.any(|event| event["kind"] == "signed_in" && event["session_id"] == id.as_str()) {
                self.book.fault(format!("{}: a sign-in is not in the list of activity", self.name));
            }
        }
        Ok(())
    }

    fn mistype_password(&mut self, town: &Town, account: &Account) -> Result<(), Broke> {
        let ask = Ask::new("sign-in, wrong", "POST", "/login").saying(json!({"email": account.email, "password": "not at all the password"}));
        if let Some(reply) = self.ask(town, ask)?
            && self.is(&reply, "a wrong password", 401, "invalid_credentials")
        {
            self.book.happened("sign_in_failed");
        }
        Ok(())
    }

    fn mistype_current_password(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let held = self.any(account);
        let body = json!({"current_password": "not at all the password", "new_password": "never to be the password"});
        let ask = Ask::new("password change, wrong", "PUT", "/me/password").saying(body);
        if let Some(reply) = self.ask_as(town, &mut account.sessions[held], ask)? {
            self.is(&reply, "a wrong current password", 403, "invalid_credentials");
        }
        Ok(())
    }

    fn change_password(&mut self, town: &Town, account: &mut Account, alone: bool) -> Result<(), Broke> {
        let (asking, since) = (self.any(account), Instant::now());
        let new = format!("good password, number {}", account.deeds);
        let body = json!({"current_password": account.password, "new_password": new, "sign_out_others": alone});
        let held = &mut account.sessions[asking];
        let Some(reply) = self.ask_as(town, held, Ask::new("password change", "PUT", "/me/password").saying(body))? else { return Ok(()) };
        if !self.is(&reply, "a change of password", 200, "") {
            return Ok(());
        }
        self.book.happened("password_changed");
        account.password = new;
        let (Some(token), _) = cookies_of(&reply) else {
            self.book.fault(format!("{}: a change of password without a new token", self.name));
            return Ok(());
        };
        let old = std::mem::replace(&mut held.token, token);
        self.ended(town, old, "session_rotated", since)?;
        let others = if alone { account.sessions.len() - 1 } else { 0 };
        if reply.json()["signed_out"] != others {
            self.book.fault(format!("{}: {} were signed out, {others} should be", self.name, reply.json()["signed_out"]));
        }
        if others > 0 {
            self.book.happened("sessions_revoked");
            self.others_ended(town, account, asking, since)?;
        }
        self.check(town, account, false)
    }

    fn others_ended(&mut self, town: &Town, account: &mut Account, stays: usize, since: Instant) -> Result<(), Broke> {
        let stays = account.sessions.swap_remove(stays);
        let others = std::mem::replace(&mut account.sessions, vec![stays]);
        others.into_iter().try_for_each(|held| self.ended(town, held.token, "session_revoked", since))
    }

    fn revoke_one(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let since = Instant::now();
        let held = self.any(account);
        let victim = account.sessions.swap_remove(held);
        let asking = self.any(account);
        let ask = Ask::new("revoke one", "DELETE", format!("/me/sessions/{}", victim.id));
        let reply = self.ask_as(town, &mut account.sessions[asking], ask)?;
        if reply.is_some_and(|reply| self.is(&reply, "a revocation", 204, "")) {
            self.book.happened("session_revoked");
            return self.ended(town, victim.token, "session_revoked", since);
        }
        account.sessions.push(victim);
        Ok(())
    }

    fn revoke_what_is_not_theirs(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let held = self.any(account);
        let ask = Ask::new("revoke nothing", "DELETE", "/me/sessions/0198f3a0-0000-7000-8000-000000000000");
        if let Some(reply) = self.ask_as(town, &mut account.sessions[held], ask)? {
            self.is(&reply, "a revocation of nothing", 404, "not_found");
        }
        Ok(())
    }

    fn revoke_others(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let (asking, since) = (self.any(account), Instant::now());
        let Some(reply) = self.ask_as(town, &mut account.sessions[asking], Ask::new("revoke others", "DELETE", "/me/sessions"))? else { return Ok(()) };
        if self.is(&reply, "signing out everywhere else", 200, "") {
            let others = account.sessions.len() - 1;
            if reply.json()["signed_out"] != others {
                self.book.fault(format!("{}: {} were signed out, {others} should be", self.name, reply.json()["signed_out"]));
            }
            if others > 0 {
                self.book.happened("sessions_revoked");
            }
            self.others_ended(town, account, asking, since)?;
        }
        Ok(())
    }

    fn sign_out(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        let (held, since) = (self.any(account), Instant::now());
        let reply = self.ask_as(town, &mut account.sessions[held], Ask::new("sign-out", "POST", "/logout"))?;
        if reply.is_some_and(|reply| self.is(&reply, "a sign-out", 204, "")) {
            self.book.happened("signed_out");
            let token = account.sessions.swap_remove(held).token;
            self.ended(town, token, "session_logged_out", since)?;
        }
        Ok(())
    }

    fn try_old_token(&mut self, town: &Town) -> Result<(), Broke> {
        if self.book.dead.is_empty() {
            return Ok(());
        }
        let any = self.chance.random_range(0..self.book.dead.len());
        let dead = self.book.dead[any].clone();
        self.is_dead(town, &dead, None)
    }

    /// Leaves the account, mostly without a session, so that those who live do not become ever more.
    fn leave(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        while !account.sessions.is_empty() && self.chance.random_bool(0.9) && !town.is_over() {
            self.sign_out(town, account)?;
        }
        Ok(())
    }

    // ---- looking back

    /// Checks again all that was acknowledged: live sessions live, dead ones are dead, passwords are what they were changed to.
    pub fn look_back(&mut self, town: &Town) {
        self.doors = Doors::to(&town.addresses);
        let mut accounts = std::mem::take(&mut self.left);
        accounts.extend(self.account.take());
        for account in &mut accounts {
            // Whoever breaks off here is told as a fault.
            let _ = self.look_back_on(town, account);
        }
        self.left = accounts;
        for dead in self.book.dead.clone() {
            let _ = self.is_dead(town, &dead, None);
        }
    }

    fn look_back_on(&mut self, town: &Town, account: &mut Account) -> Result<(), Broke> {
        if !account.sessions.is_empty() {
            self.list_sessions(town, account)?;
        }
        for held in &mut account.sessions {
            if let Some(reply) = self.ask_as(town, held, Ask::new("check", "GET", "/check"))? {
                self.is(&reply, "looking back on a live session", 204, "");
            }
        }
        self.book.counted("accounts looked back on");
        if self.company == Company::Alone {
            self.sign_in(town, account, None)?;
        }
        Ok(())
    }
}

impl Held {
    fn of(reply: &Reply, active: (i64, i64)) -> Self {
        let (token, device) = cookies_of(reply);
        let id = reply.json()["session"]["id"].as_str().unwrap_or_default().to_string();
        Held { token: token.unwrap_or_default(), device: device.unwrap_or_default(), id, active }
    }
}

/// The session token and the browser's own that come with an answer.
pub fn cookies_of(reply: &Reply) -> (Option<String>, Option<String>) {
    let named = |name: &str| {
        let mut lines = reply.headers.iter().filter(|(header, _)| header == "set-cookie");
        lines.find_map(|(_, line)| Some(line.split(';').next()?.strip_prefix(name)?.strip_prefix('=')?.to_string()))
    };
    (named("holdfast"), named("holdfast-device"))
}
