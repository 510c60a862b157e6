//! Guessing passwords is limited: per account, per browser, per source.
//!
//! ```text
//!   look ──▶ count, as a failure ──▶ check the password ──▶ right: take the count back
//!    │         │ (committed)            │ (hashed)          wrong: it stays
//!    └─ 429 ◀──┘ somebody must wait     └─ gone, crashed: it stays
//! ```
//!
//! Whose guess counts where:
//!
//! - A **browser** on which the user has signed in before, or has chosen a new password with a letter, has a counter of its own
//!   for that account (OWASP's device cookie). So nobody locks the owner out by guessing elsewhere.
//! - All other browsers share the **account's**, which is kept by the address that was typed: an address without an account has
//!   one too, and is told apart by nothing (ENUM-04).
//! - Whoever is signed in counts for their browser and for the **user's sessions** as a whole, so that a stolen one gives no
//!   more guesses than all of them have (STEP-03).
//! - All count for their **source**, an IPv4 address or the /64 of an IPv6 one; but it stops only those who have no counter of
//!   their own, so that an office behind one address is not locked out by a neighbour.
//!
//! The counters are in the database: they outlive a restart, and instances share them. An attempt is counted before its
//! password is checked, in a transaction of its own that nothing rolls back, so of any number of parallel guesses no more are
//! checked than the limit has room for (LOCK-03). The right password takes its own count back, and nobody else's; on a browser
//! with a counter of its own it clears that. During a wait the right password looks like a wrong one.
//!
//! What an attacker tries: many sources against one account, one source against many accounts, bursts, other spellings of an
//! address, to lock the owner out, to learn from the limit who has an account, to fill the table (each row costs a place under
//! the source's limit and a hash, and goes with [`purge`](crate::purge)), to hang up before the answer so that nobody is told.

mod counter;
mod line;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use crate::account::email::Email;
use crate::app::App;
use crate::clock::Timestamp;
use crate::config::{Config, Rate};
use crate::db::{Arg, Fault, FromRow, Row, Tx};
use crate::error::{Error, Refusal};
use crate::event::{Event, Scene, record};
use crate::factor::hasher::Checked;
use crate::factor::password::{Password, PasswordHash};
use crate::id::UserId;
use crate::live_sessions::LiveSession;
use crate::secret::TokenHash;
use crate::session_security::{is_known_device, network_of};
use counter::{Counter, Trace};
use line::{InFlight, Next, Place};
pub use line::{Line, MOST_IN_ALL};

/// How long somebody waits for the outcome of others' attempts: as long as for a turn at the database.
const PATIENCE: Duration = Duration::from_secs(5);
/// When whoever found no room in the line may come back, in seconds.
const COME_BACK: u32 = 2;

/// What is counted: a hash, so that the table names nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

/// What a counter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// An account, from browsers without a counter of their own.
    Account,
    /// One browser of a user.
    Device,
    /// A user's sessions.
    Sessions,
    /// An IPv4 address, or the /64 of an IPv6 one.
    Source,
}

impl Over {
    /// How events spell it.
    pub fn word(self) -> &'static str {
        match self {
            Over::Account => "account",
            Over::Device => "device",
            Over::Sessions => "sessions",
            Over::Source => "source",
        }
    }

    fn key(self, parts: &[&[u8]]) -> Key {
        let mut digest = Sha256::new();
        for part in [self.word().as_bytes()].iter().chain(parts) {
            // The length first: no two lists of parts are spelled alike.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Key(digest.finalize().into())
    }
}

/// A counter that a guess counts for.
#[derive(Clone, Copy)]
struct Stake {
    over: Over,
    key: Key,
    rate: Rate,
    /// Its wait is the guess's, too.
    stops: bool,
}

/// A guess: whose password is tried, and what it counts for.
#[derive(Clone)]
pub struct Guess {
    user: Option<UserId>,
    stakes: Vec<Stake>,
}

impl Guess {
    /// By somebody who is not signed in: at the password of the account with this address, on the browser that this cookie names.
    /// The same reads whether there is such an account or not.
    pub fn by_stranger(tx: &mut Tx, config: &Config, email: &Email, user: Option<UserId>, device: Option<&TokenHash>, ip: IpAddr) -> Result<Self, Fault> {
        let nobody = UserId(uuid::Uuid::nil());
        let device = match device {
            Some(device) if is_known_device(tx, user.unwrap_or(nobody), device)? => Some(device),
            _ => None,
        };
        let own = match (user, device) {
            (Some(user), Some(device)) => (Over::Device, device_key(user, device)),
            _ => (Over::Account, Over::Account.key(&[email.canonical().as_bytes()])),
        };
        let guess = Guess { user, stakes: Vec::new() }.counted_for(own, config.guess_limit_account, true);
        Ok(guess.counted_for(source(ip), config.guess_limit_source, own.0 == Over::Account))
    }

    /// By somebody who is signed in, at their own password.
    pub fn by_session(tx: &mut Tx, config: &Config, me: &LiveSession, ip: IpAddr) -> Result<Self, Fault> {
        let device: Option<Option<TokenHash>> = tx.row("SELECT device_hash FROM device_sessions WHERE id = ?1", (me.id,))?;
        let own = match device.flatten() {
            Some(device) => device_key(me.user_id, &device),
            // A session from before browsers were noted is a browser of its own.
            None => Over::Device.key(&[me.user_id.0.as_bytes(), me.id.0.as_bytes()]),
        };
        let guess = Guess { user: Some(me.user_id), stakes: Vec::new() }.counted_for((Over::Device, own), config.guess_limit_account, true);
        let guess = guess.counted_for((Over::Sessions, sessions_key(me.user_id)), config.guess_limit_account, true);
        Ok(guess.counted_for(source(ip), config.guess_limit_source, false))
    }

    fn counted_for(mut self, (over, key): (Over, Key), rate: Option<Rate>, stops: bool) -> Self {
        self.stakes.extend(rate.map(|rate| Stake { over, key, rate, stops }));
        // In one order for all: transactions that change the same rows must not wait for each other in a circle.
        self.stakes.sort_by_key(|stake| stake.key);
        self
    }
}

fn device_key(user: UserId, device: &TokenHash) -> Key {
    Over::Device.key(&[user.0.as_bytes(), &device.0])
}

fn sessions_key(user: UserId) -> Key {
    Over::Sessions.key(&[user.0.as_bytes()])
}

fn source(ip: IpAddr) -> (Over, Key) {
    (Over::Source, Over::Source.key(&[network_of(ip).as_bytes()]))
}

// ---- an attempt

/// A guess that has been counted, as a failure, and whose password is about to be checked. Dropped, it stays one.
pub struct Attempt {
    guess: Guess,
    counted: Vec<Counted>,
    in_flight: Arc<InFlight>,
}

/// What it has done to one counter.
#[derive(Clone, Copy)]
struct Counted {
    stake: Stake,
    trace: Trace,
    filled: bool,
    /// It was full before, of attempts that are over, and nobody had been told.
    untold: bool,
}

/// Why a guess may not be made now.
#[derive(Clone, Copy)]
struct Full {
    stake: Stake,
    counter: Counter,
    wait_ms: i64,
}

impl Full {
    /// Waits for those in flight, if there is room without them.
    fn line_up(self, line: &Line, landed: u64, place: Option<Place>) -> Result<Next, Refusal> {
        let has_room_without = |in_flight| self.counter.failures - i64::try_from(in_flight).unwrap_or(0) < i64::from(self.stake.rate.count);
        line.join(self.stake.key, landed, has_room_without, place).ok_or(Refusal::RateLimited(seconds(self.wait_ms)))
    }
}

/// Lets a guess through, and counts it. `look` reads what the handler needs, and whose guess it is; it may be asked again.
///
/// # Errors
/// `429` with the seconds to wait; `503` when too many attempts at the same account, or from the same source, are under way.
pub async fn begin<T, F>(app: &App, ip: IpAddr, look: F) -> Result<(T, Attempt), Error>
where
    F: Fn(&mut Tx) -> Result<(T, Guess), Error> + Clone + Send + 'static,
    T: Send + 'static,
{
    let patience = Instant::now() + PATIENCE;
    let mut place: Option<Place> = None;
    loop {
        let (landed, ask) = (app.line.landed(), look.clone());
        let looked = app.db.glance(move |tx| -> Result<_, Error> {
            let (found, guess) = ask(tx)?;
            let full = full(tx, &guess.stakes)?;
            Ok((found, guess, full))
        });
        let (found, guess, full) = looked.await?;
        let crowd = match (&full, &place) {
            (None, None) => app.line.behind(guess.stakes.iter().filter(|stake| stake.stops).map(|stake| stake.key)),
            _ => None,
        };
        let next = match (full, crowd) {
            (Some(full), _) => full.line_up(&app.line, landed, place.take())?,
            (None, Some(behind_the_others)) => behind_the_others,
            (None, None) => match count(app, ip, guess).await? {
                Ok(attempt) => {
                    place.into_iter().for_each(|place| place.let_in(&attempt.in_flight));
                    return Ok((found, attempt));
                }
                Err(full) => full.line_up(&app.line, landed, place.take())?,
            },
        };
        match next {
            Next::LookAgain if Instant::now() < patience => {}
            Next::LookAgain | Next::Overloaded => return Err(Refusal::Overloaded(COME_BACK).into()),
            Next::Wait(mine) => {
                timeout_at(patience, mine.turn()).await.map_err(|_| Refusal::Overloaded(COME_BACK))?;
                place = Some(mine);
            }
        }
    }
}

/// Counts a guess before its password is checked, unless somebody else was faster. What a power cut takes of it is
/// milliseconds; `kill -9` takes nothing.
async fn count(app: &App, ip: IpAddr, guess: Guess) -> Result<Result<Attempt, Full>, Error> {
    let in_flight = Arc::new(app.line.enter(guess.stakes.iter().map(|stake| stake.key).collect()));
    if guess.stakes.is_empty() {
        return Ok(Ok(Attempt { guess, counted: Vec::new(), in_flight }));
    }
    // It lands with the transaction, also when the caller is gone before that.
    let (user, stakes, flight) = (guess.user, guess.stakes.clone(), in_flight.clone());
    let counted = app.db.write_relaxed(move |tx| -> Result<_, Error> {
        let _flight = &flight;
        let counted = count_all(tx, &stakes)?;
        // Those whose failures had filled a counter and are over, without a word to anybody: they have hung up before they failed.
        let filled = counted.iter().flatten().filter(|counted| counted.untold).map(|counted| counted.stake).collect();
        Failed { user, filled }.tell(tx, &Scene::default().from(ip))?;
        Ok(counted)
    });
    Ok(counted.await?.map(|counted| Attempt { guess, counted, in_flight }))
}

impl Attempt {
    /// Checks the password, of an account that opens nothing if it `is_closed`. What was not checked, since the threads that hash
    /// have too much to do, was no guess.
    ///
    /// # Errors
    /// As [`Hasher::check`](crate::factor::hasher::Hasher::check).
    pub async fn check(
        self,
        app: &App,
        source: IpAddr,
        password: Password,
        stored: Option<PasswordHash>,
        is_closed: bool,
    ) -> Result<(Checked, Attempt), Error> {
        match app.hasher.check(source, password, stored, is_closed).await {
            Ok(checked) => Ok((checked, self)),
            Err(overloaded) => {
                self.withdraw(app).await?;
                Err(overloaded)
            }
        }
    }

    /// Takes the count back: no password was checked.
    pub async fn withdraw(self, app: &App) -> Result<(), Error> {
        self.take_back(app, false).await
    }

    /// Says what came of it: the right password takes the count back. `Some`: it was wrong, and its user may have to be told.
    pub async fn settle(self, app: &App, is_right: bool) -> Result<Option<Failed>, Error> {
        match is_right {
            true => self.take_back(app, true).await.map(|()| None),
            false => Ok(Some(Failed {
                user: self.guess.user,
                filled: self.counted.into_iter().filter(|counted| counted.filled).map(|counted| counted.stake).collect(),
            })),
        }
    }

    /// In a transaction of its own: a source's counter is hot, and a sign-in is long.
    async fn take_back(self, app: &App, proved_right: bool) -> Result<(), Error> {
        if self.counted.is_empty() {
            return Ok(());
        }
        let attempt = self;
        let taken_back = app.db.write_relaxed(move |tx| {
            // The whole of it: it lands with the transaction.
            let attempt = &attempt;
            uncount_all(tx, &attempt.counted, proved_right)
        });
        Ok(taken_back.await?)
    }
}

/// An attempt that has failed.
pub struct Failed {
    user: Option<UserId>,
    /// The counters that were full with it.
    filled: Vec<Stake>,
}

impl Failed {
    /// Tells the user and the operator, once, that a limit was reached: by whichever failure finds it so first.
    pub fn tell(&self, tx: &mut Tx, scene: &Scene) -> Result<(), Fault> {
        let mut reached = Vec::new();
        for Stake { over, key, rate, .. } in &self.filled {
            let sql = "UPDATE guesses SET told = 1 WHERE counter = ?1 AND failures >= ?2 AND told = 0";
            if tx.run(sql, (key.0.as_slice(), i64::from(rate.count)))? == 1 {
                reached.push(*over);
            }
        }
        // One cause is told once, whatever it has filled of the user's.
        if let Some(over) = [Over::Account, Over::Device, Over::Sessions].into_iter().find(|over| reached.contains(over)) {
            record(tx, scene.clone().whose_if(self.user), Event::SignInThrottled { over })?;
        }
        if reached.contains(&Over::Source) {
            record(tx, scene.clone(), Event::SignInThrottled { over: Over::Source })?;
        }
        Ok(())
    }

    /// The same where nothing else is written.
    pub async fn tell_alone(self, app: &App, scene: Scene) -> Result<(), Error> {
        if self.filled.is_empty() {
            return Ok(());
        }
        app.db.write(move |tx| self.tell(tx, &scene).map_err(Error::from)).await
    }
}

/// Whole seconds, rounded up: whoever waits as long as told is let through.
fn seconds(ms: i64) -> u32 {
    u32::try_from(ms.saturating_add(999) / 1000).unwrap_or(u32::MAX).max(1)
}

// ---- SQL

struct Found(Key, Counter);

impl FromRow for Found {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        let TokenHash(key) = row.get(0)?;
        Ok(Found(Key(key), Counter { begun_at: row.get(1)?, failures: row.get(2)?, waits_until: row.get(3)?, told: row.get(4)? }))
    }
}

/// Reads the counters of some stakes: three at most.
fn read(tx: &mut Tx, stakes: &[Stake]) -> Result<HashMap<Key, Counter>, Fault> {
    let key = |n: usize| stakes.get(n).map(|stake| stake.key.0.as_slice());
    let found: Vec<Found> =
        tx.rows("SELECT counter, begun_at, failures, waits_until, told FROM guesses WHERE counter IN (?1, ?2, ?3)", (key(0), key(1), key(2)))?;
    Ok(found.into_iter().map(|Found(key, counter)| (key, counter)).collect())
}

/// The counter that makes a guess wait, for longest if there are several.
fn full(tx: &mut Tx, stakes: &[Stake]) -> Result<Option<Full>, Fault> {
    if stakes.is_empty() {
        return Ok(None);
    }
    let counters = read(tx, stakes)?;
    Ok(longest_wait(&counters, stakes, tx.now()))
}

fn longest_wait(counters: &HashMap<Key, Counter>, stakes: &[Stake], now: Timestamp) -> Option<Full> {
    let stopping = stakes.iter().filter(|stake| stake.stops);
    let waits = stopping.filter_map(|stake| {
        let counter = *counters.get(&stake.key)?;
        Some(Full { stake: *stake, counter, wait_ms: counter.wait(now)? })
    });
    waits.max_by_key(|full| full.wait_ms)
}

/// Counts a guess for all of its stakes, or for none when one of them makes it wait. The transaction is serializable: what was
/// read still holds when it is written.
fn count_all(tx: &mut Tx, stakes: &[Stake]) -> Result<Result<Vec<Counted>, Full>, Error> {
    let (counters, now) = (read(tx, stakes)?, tx.now());
    if let Some(full) = longest_wait(&counters, stakes, now) {
        return Ok(Err(full));
    }
    let mut counted = Vec::new();
    let mut changed = Vec::new();
    for stake in stakes {
        let (counter, trace) = Counter::counted(counters.get(&stake.key).copied(), stake.rate, now);
        // Whom its wait does not stop may come while those who caused it are still under way.
        let untold = stake.stops && !counter.told && counter.failures > i64::from(stake.rate.count);
        counted.push(Counted { stake: *stake, trace, filled: counter.is_full(stake.rate), untold });
        changed.push((*stake, counter));
    }
    write(tx, &changed)?;
    Ok(Ok(counted))
}

/// Takes a guess back. One that proved right clears the counter of its browser.
fn uncount_all(tx: &mut Tx, counted: &[Counted], proved_right: bool) -> Result<(), Fault> {
    let stakes: Vec<Stake> = counted.iter().map(|counted| counted.stake).collect();
    let counters = read(tx, &stakes)?;
    for Counted { stake, trace, .. } in counted {
        let Some(counter) = counters.get(&stake.key) else { continue };
        let is_cleared = proved_right && stake.over == Over::Device;
        match counter.without(trace, stake.rate).filter(|_| !is_cleared) {
            Some(left) => write(tx, &[(*stake, left)])?,
            None => clear(tx, stake.key)?,
        }
    }
    Ok(())
}

fn write(tx: &mut Tx, counters: &[(Stake, Counter)]) -> Result<(), Fault> {
    let rows: Vec<Vec<Arg<'_>>> = counters
        .iter()
        .map(|(stake, counter)| {
            let Counter { begun_at, failures, waits_until, told } = *counter;
            vec![stake.key.0.as_slice().into(), begun_at.into(), failures.into(), waits_until.into(), told.into(), counter.forgotten_at(stake.rate).into()]
        })
        .collect();
    tx.run_each(
        "INSERT INTO guesses (counter, begun_at, failures, waits_until, told, forgotten_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (counter) DO UPDATE SET begun_at = ?2, failures = ?3, waits_until = ?4, told = ?5, forgotten_at = ?6",
        &rows,
    )
    .map(|_| ())
}

fn clear(tx: &mut Tx, key: Key) -> Result<(), Fault> {
    tx.run("DELETE FROM guesses WHERE counter = ?1", (key.0.as_slice(),)).map(|_| ())
}

/// Lets a user's browser begin anew, and their sessions as a whole: a letter has proved whose account it is.
pub fn pardon(tx: &mut Tx, user: UserId, device: &TokenHash) -> Result<(), Fault> {
    let mut keys = [device_key(user, device), sessions_key(user)];
    keys.sort();
    keys.into_iter().try_for_each(|key| clear(tx, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_things_that_are_counted_are_one() {
        let user = UserId(uuid::Uuid::from_bytes([1; 16]));
        let ip = |text: &str| source(text.parse().expect("an address")).1;
        let keys = [
            Over::Account.key(&[b"ab", b"c"]),
            Over::Account.key(&[b"a", b"bc"]),
            Over::Source.key(&[b"ab", b"c"]),
            device_key(user, &TokenHash([2; 32])),
            device_key(user, &TokenHash([3; 32])),
            sessions_key(user),
            ip("203.0.113.7"),
            ip("203.0.113.8"),
            ip("2001:db8:0:1::1"),
            ip("2001:db8:0:2::1"),
        ];
        let different: std::collections::HashSet<&Key> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert!(ip("2001:db8:0:1::1") == ip("2001:db8:0:1:ffff::2") && ip("::ffff:203.0.113.7") == ip("203.0.113.7"));
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_and_never_too_short() {
        assert_eq!([1, 999, 1000, 1001, 30_000].map(seconds), [1, 1, 1, 2, 30]);
    }
}
