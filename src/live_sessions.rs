//! The live sessions in memory: what the check needs to know, and last-active until it is written back.
//!
//! The check of a request is one look into this table; the database is asked only about a token that is not here. Three
//! things keep that exact:
//!
//! - **Endings.** A transaction that ends or rotates a session commits and then, before anybody hears of it, calls
//!   [`LiveSessions::forget`].
//! - **The load race.** "Missing here → read the row → put it here" could put back what an ending has just taken out. So a
//!   miss hands out a [`Ticket`] with the shard's epoch, an ending moves the epoch on, and [`LiveSessions::admit`] takes a
//!   row only while its ticket's epoch still stands.
//! - **Other processes.** When somebody else wrote the database, [`LiveSessions::distrust`] makes every entry count as
//!   missing until it was read again; its last-active stays.
//!
//! Where several instances share a database, no memory can know what another one has ended: there every request reads its
//! row, and only last-active is kept here ([`LiveSessions::shared`]).
//!
//! Last-active rises here with every request and is written back in batches when the stored one lags too far. An entry whose
//! last-active is not yet stored is never dropped to make room. Strangers cannot grow this table: only a token that the
//! database knows as live gets in.

use std::borrow::Borrow;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::clock::Timestamp;
use crate::id::{SessionId, UserId};
use crate::secret::TokenHash;
use crate::session_security::{Limits, Verdict, judge, write_back_allowance};

/// A live session, as far as the check of a request is concerned.
#[derive(Clone, Debug)]
pub struct LiveSession {
    /// Its public id.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// The user's role and e-mail.
    pub who: Who,
    /// Whether the user has proved that address.
    pub email_verified: bool,
    /// Its deadlines.
    pub limits: Limits,
    /// What its cookie hashes to.
    pub token: TokenHash,
    /// The token took the place of another one, and no request has come with it yet.
    pub unproved: bool,
}

/// A role and an e-mail in one allocation: hundreds of thousands of them are kept, and each is read as a whole.
#[derive(Clone, Debug)]
pub struct Who {
    /// The role, then the e-mail.
    text: Box<str>,
    role_ends: usize,
}

impl Who {
    /// Keeps both.
    pub fn new(role: &str, email: &str) -> Self {
        Who { text: [role, email].concat().into(), role_ends: role.len() }
    }

    /// The user's role. A change of role ends the session, so it cannot be stale.
    pub fn role(&self) -> &str {
        &self.text[..self.role_ends]
    }

    /// The user's e-mail, as shown.
    pub fn email(&self) -> &str {
        &self.text[self.role_ends..]
    }
}

/// What a look at a token finds.
#[derive(Debug)]
pub enum Met {
    /// A live session; if the request counts as activity, it has been counted.
    Live(Session, Owed),
    /// A session that is past a deadline. It has to be ended in the database before the answer.
    Dead,
    /// Nothing that can be relied on: ask the database, and bring the ticket back.
    Unknown(Ticket),
}

/// What the database must be told before the request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owed {
    /// The stored last-active lags further than a crash may lose.
    pub last_active: bool,
    /// The database does not know yet of a request with the token that took another one's place.
    pub first_use: bool,
}

/// The right to put a row here if nothing has ended since the ticket was handed out.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    epoch: u64,
    trust: u64,
}

/// A last-active that the database does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwritten {
    /// Which session's.
    pub id: SessionId,
    /// Where the entry is to be found again.
    pub token: TokenHash,
    /// What to write.
    pub last_active: Timestamp,
}

/// The table. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct LiveSessions(Arc<Table>);

struct Table {
    shards: Box<[RwLock<Shard>]>,
    shard_capacity: usize,
    /// Moves on when another process has written: entries of an older trust are read again before they count.
    trust: AtomicU64,
    /// Other instances write the same database: an entry counts only for a request that has read its row.
    shared: bool,
}

#[derive(Default)]
struct Shard {
    entries: HashSet<Session, BuildHasherDefault<FirstBytes>>,
    /// Whom to drop first: a clock over the entries, oldest at the front. May name entries that are gone.
    hand: VecDeque<TokenHash>,
    /// Moves on with every ending.
    epoch: u64,
    /// Entries whose stored last-active lags too far.
    lagging: std::sync::Mutex<Vec<TokenHash>>,
}

/// A live session as a request holds it. Cheap to clone; what it says stays as it was when the request was let in.
#[derive(Clone, Debug)]
pub struct Session(Arc<Entry>);

/// All of a session in one allocation: a check touches few lines of memory, and a place in the table is a pointer.
#[derive(Debug)]
struct Entry {
    session: LiveSession,
    trust: u64,
    last_active: AtomicI64,
    /// The last-active that the database has.
    stored: AtomicI64,
    /// It is in `lagging`, or on its way to the database.
    queued: AtomicBool,
    /// No request has come with the token yet, and the database should hear of the first.
    unproved: AtomicBool,
    /// Used since the hand last passed.
    used: AtomicBool,
}

impl Deref for Session {
    type Target = LiveSession;

    fn deref(&self) -> &LiveSession {
        &self.0.session
    }
}

impl Borrow<TokenHash> for Session {
    fn borrow(&self) -> &TokenHash {
        &self.token
    }
}

impl Hash for Session {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.token.hash(state);
    }
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        self.token == other.token
    }
}

impl Eq for Session {}

impl Entry {
    fn last_active(&self) -> Timestamp {
        Timestamp(self.last_active.load(Ordering::Relaxed))
    }

    /// Takes over what memory knows better than the row that was just read. Under the shard's lock, so nobody touches either.
    fn go_on_from(&mut self, older: &Entry) {
        *self.last_active.get_mut() = self.last_active.load(Ordering::Relaxed).max(older.last_active.load(Ordering::Relaxed));
        *self.stored.get_mut() = self.stored.load(Ordering::Relaxed).max(older.stored.load(Ordering::Relaxed));
        *self.queued.get_mut() = older.queued.load(Ordering::Relaxed);
        *self.used.get_mut() = older.used.load(Ordering::Relaxed);
    }

    fn is_unwritten(&self) -> bool {
        self.last_active.load(Ordering::Relaxed) > self.stored.load(Ordering::Relaxed)
    }

    fn lag(&self) -> i64 {
        self.last_active.load(Ordering::Relaxed) - self.stored.load(Ordering::Relaxed)
    }

    /// Nine tenths of what may be lost in a crash: who comes at least that often is written back without waiting for it.
    fn lags(&self) -> bool {
        self.lag() > 0 && self.lag() >= write_back_allowance(self.session.limits.idle_ms) * 9 / 10
    }

    /// More than may be lost in a crash: the first request after a silence.
    fn lags_too_far(&self) -> bool {
        self.lag() > write_back_allowance(self.session.limits.idle_ms)
    }

    fn unwritten(&self) -> Unwritten {
        Unwritten { id: self.session.id, token: self.session.token, last_active: self.last_active() }
    }
}

/// A token hash is uniform and secret already: its first bytes are its hash.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().copied().map_or(0, u64::from_le_bytes);
    }
}

impl Hash for TokenHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0[..8]);
    }
}

const SHARDS: usize = 64;
/// How many entries the hand looks at before a new one may stand beside the limit until the next write-back.
const STEPS: usize = 8;

impl LiveSessions {
    /// How many sessions are kept by default: about 300 bytes each, measured.
    pub const CAPACITY: usize = 500_000;

    /// Makes an empty table for about `capacity` sessions.
    pub fn new(capacity: usize) -> Self {
        LiveSessions::make(capacity, false)
    }

    /// Makes an empty table beside a database that other instances write too. It answers nobody by itself: every request
    /// reads its row, and only last-active is kept here until it is written back.
    pub fn shared(capacity: usize) -> Self {
        LiveSessions::make(capacity, true)
    }

    fn make(capacity: usize, shared: bool) -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        LiveSessions(Arc::new(Table { shards, shard_capacity: capacity.div_ceil(SHARDS), trust: AtomicU64::new(0), shared }))
    }

    /// Looks a token up, judges its session, and counts the request as activity unless it is passive.
    pub fn meet(&self, token: &TokenHash, now: Timestamp, passive: bool) -> Met {
        if self.0.shared {
            // Nothing hangs on the epoch or the trust here: no later request builds on what this one reads.
            return Met::Unknown(Ticket { epoch: 0, trust: 0 });
        }
        self.meet_admitted(token, now, passive)
    }

    /// The same for a request that has just read the row and had it [admitted](Self::admit).
    pub fn meet_admitted(&self, token: &TokenHash, now: Timestamp, passive: bool) -> Met {
        let trust = self.0.trust.load(Ordering::Acquire);
        let shard = self.read(token);
        let entry = match shard.entries.get(token) {
            Some(entry) if entry.0.trust == trust || self.0.shared => entry,
            _ => return Met::Unknown(Ticket { epoch: shard.epoch, trust }),
        };
        let verdict = judge(&entry.limits, entry.0.last_active(), now);
        if verdict != Verdict::Live {
            return Met::Dead;
        }
        if !passive {
            // Under the shard's lock, so that a touch is never lost to an entry being read again.
            entry.0.last_active.fetch_max(now.0, Ordering::Relaxed);
            shard.queue_if_lagging(entry);
        }
        let first_use = entry.0.unproved.load(Ordering::Relaxed);
        let owed = Owed { last_active: !passive && entry.0.lags_too_far(), first_use };
        if !entry.0.used.load(Ordering::Relaxed) {
            entry.0.used.store(true, Ordering::Relaxed);
        }
        Met::Live(entry.clone(), owed)
    }

    /// Takes in a row that was read for `ticket`; false when something ended meanwhile, and the row must be read again.
    pub fn admit(&self, ticket: Ticket, session: LiveSession, stored: Timestamp) -> bool {
        let token = session.token;
        let mut shard = self.write(&token);
        if shard.epoch != ticket.epoch && !self.0.shared {
            return false;
        }
        let mut entry = Entry {
            unproved: AtomicBool::new(session.unproved),
            session,
            trust: ticket.trust,
            last_active: AtomicI64::new(stored.0),
            stored: AtomicI64::new(stored.0),
            queued: AtomicBool::new(false),
            used: AtomicBool::new(false),
        };
        match shard.entries.get(&token) {
            Some(older) => entry.go_on_from(&older.0),
            None => {
                shard.make_room(self.0.shard_capacity);
                shard.hand.push_back(token);
            }
        }
        shard.entries.replace(Session(Arc::new(entry)));
        true
    }

    /// Notes that the database knows of a request with this token.
    pub fn proved(&self, token: &TokenHash) {
        if let Some(entry) = self.read(token).entries.get(token) {
            entry.0.unproved.store(false, Ordering::Relaxed);
        }
    }

    /// Forgets a token whose session has ended or moved on to another token. Called after the commit, before the answer; and by
    /// whoever finds in the database that it has ended, since the one that ended it may be a step behind its commit.
    pub fn forget(&self, token: &TokenHash) {
        let mut shard = self.write(token);
        shard.epoch += 1;
        shard.entries.remove(token);
    }

    /// Makes every entry be read again before it counts: another process has written the database.
    pub fn distrust(&self) {
        self.0.trust.fetch_add(1, Ordering::AcqRel);
    }

    /// The last-active of a session, which may be newer than the stored one.
    pub fn last_active(&self, token: &TokenHash) -> Option<Timestamp> {
        let shard = self.read(token);
        shard.entries.get(token).map(|entry| entry.0.last_active())
    }

    /// Whether the stored last-active of a session lags further than a crash may lose.
    pub fn lags_too_far(&self, token: &TokenHash) -> bool {
        self.read(token).entries.get(token).is_some_and(|entry| entry.0.lags_too_far())
    }

    /// Takes the last-actives that lag. Each is to come back by [`written`](Self::written) or
    /// [`not_written`](Self::not_written).
    pub fn take_lagging(&self) -> Vec<Unwritten> {
        let mut out = Vec::new();
        for shard in &self.0.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let tokens = std::mem::take(&mut *shard.lagging.lock().unwrap_or_else(PoisonError::into_inner));
            out.extend(tokens.iter().filter_map(|token| shard.entries.get(token)).map(|entry| entry.0.unwritten()));
        }
        out
    }

    /// All last-actives that the database does not know: what a shutdown has to write.
    pub fn unwritten(&self) -> Vec<Unwritten> {
        let mut out = Vec::new();
        for shard in &self.0.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            out.extend(shard.entries.iter().filter(|entry| entry.0.is_unwritten()).map(|entry| entry.0.unwritten()));
        }
        out
    }

    /// Notes what the database now knows.
    pub fn written(&self, batch: &[Unwritten]) {
        for Unwritten { token, last_active, .. } in batch {
            let shard = self.read(token);
            let Some(entry) = shard.entries.get(token) else { continue };
            entry.0.stored.fetch_max(last_active.0, Ordering::Relaxed);
            entry.0.queued.store(false, Ordering::Relaxed);
            shard.queue_if_lagging(entry);
        }
    }

    /// Puts back what could not be written.
    pub fn not_written(&self, batch: &[Unwritten]) {
        for Unwritten { token, .. } in batch {
            let shard = self.read(token);
            if shard.entries.contains(token) {
                shard.lagging.lock().unwrap_or_else(PoisonError::into_inner).push(*token);
            }
        }
    }

    /// How many sessions are in memory.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).entries.len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, token: &TokenHash) -> &RwLock<Shard> {
        // Another byte than the entries' hash begins with, or each shard would use a 64th of its buckets.
        &self.0.shards[usize::from(token.0[31]) % SHARDS]
    }

    fn read(&self, token: &TokenHash) -> RwLockReadGuard<'_, Shard> {
        self.shard(token).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, token: &TokenHash) -> RwLockWriteGuard<'_, Shard> {
        self.shard(token).write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn queue_if_lagging(&self, entry: &Session) {
        if entry.0.lags() && !entry.0.queued.swap(true, Ordering::Relaxed) {
            self.lagging.lock().unwrap_or_else(PoisonError::into_inner).push(entry.token);
        }
    }

    /// Drops an entry that is neither in use nor unwritten, if the shard is full.
    fn make_room(&mut self, capacity: usize) {
        // Names of entries that ended pile up in the hand; they leave when they outnumber the living.
        if self.hand.len() > 2 * self.entries.len() + STEPS {
            self.hand.retain(|token| self.entries.contains(token));
        }
        let mut steps = STEPS;
        while self.entries.len() >= capacity && steps > 0 {
            steps -= 1;
            let Some(token) = self.hand.pop_front() else { return };
            let Some(entry) = self.entries.get(&token) else { continue };
            if entry.0.is_unwritten() {
                if !entry.0.queued.swap(true, Ordering::Relaxed) {
                    self.lagging.lock().unwrap_or_else(PoisonError::into_inner).push(token);
                }
                self.hand.push_back(token);
            } else if entry.0.used.swap(false, Ordering::Relaxed) {
                self.hand.push_back(token);
            } else {
                // A row that was read before the entry's last-active was written back must not come in now.
                self.epoch += 1;
                self.entries.remove(&token);
            }
        }
    }
}

#[cfg(test)]
mod tests;
