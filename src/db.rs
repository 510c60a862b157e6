//! The seam: features meet [`Tx`], never a database.
//!
//! A slice writes its SQL once, in the common dialect below, inside a closure over `&mut Tx`. The closure is synchronous,
//! owns one connection for its whole length, and commits on `Ok` or rolls back on `Err`. One promise holds for all of them:
//! they are serializable. So check-then-act is one statement whose row count is the answer, and "taken" is
//! `ON CONFLICT DO NOTHING` that changed no row.
//!
//! What a commit means outside the database is handed to [`Tx::forget`] (a token that memory must not know any more) and
//! [`Tx::after_commit`] (a line for the log). It happens on the committing thread, before anybody hears of the commit and
//! whether or not the caller still listens: a revocation cannot be acknowledged before it counts.
//!
//! # The common SQL
//! - DDL words are `BIGINT` (Unix milliseconds, counts, flags), `TEXT`, `BYTEA`, `UUID`; every primary key is `NOT NULL`;
//!   foreign keys are indexed by hand.
//! - Placeholders are `?1`, `?2`. Bytes and large numbers come as arguments only. Every argument is typed, NULL too.
//! - `ON CONFLICT`, `RETURNING`, `IS NOT DISTINCT FROM`, keyset paging by `UUID` or `BIGINT`; never by `TEXT` (collation).
//! - Not portable, so not used: `max(a, b)`, `INSERT OR IGNORE`, `FOR UPDATE`, `DELETE … LIMIT`, `LIKE`, `lower()`, clock
//!   functions, `IS ?1`, `::`.
//! - The closure is `Fn` and touches nothing but `tx`: a driver may run it again. No hashing, mail or HTTP inside.

mod backup;
mod carry;
pub mod migrate;
mod postgres;
mod sqlite;
mod value;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, RwLock, Semaphore};
use tracing::Instrument;
use uuid::Uuid;

use crate::chance::Chance;
use crate::clock::{Clock, Timestamp};
use crate::device_sessions::{Known, look_up};
use crate::id::Mint;
use crate::live_sessions::LiveSessions;
use crate::secret::TokenHash;

pub use backup::backup;
pub use carry::{Carried, carry};
pub use postgres::{FEWEST_CONNECTIONS, Server};
pub use value::{Arg, Args, Col, FromRow, Row};

/// What went wrong below the seam. Its text is for the log, never for a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// What a caller can do about it.
    pub kind: Kind,
    text: String,
    rerun: Option<Rerun>,
}

/// Why a transaction that came to nothing may be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rerun {
    /// It met another one, and one of them had to give way.
    Conflict,
    /// Its connection was lost before COMMIT was sent.
    Lost,
}

/// How a fault is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The database cannot serve now: locked, full, read-only, gone. Becomes `503`; trying again may help.
    Unavailable,
    /// A mistake of ours: a constraint that a statement should have asked about, a row of the wrong shape.
    Broken,
}

impl Fault {
    /// A fault that waiting may cure.
    pub fn unavailable(text: impl Into<String>) -> Self {
        Fault { kind: Kind::Unavailable, text: text.into(), rerun: None }
    }

    /// A fault that only a new version cures.
    pub fn broken(text: impl Into<String>) -> Self {
        Fault { kind: Kind::Broken, text: text.into(), rerun: None }
    }

    /// The same, of a transaction that may be run again.
    fn again(self, why: Rerun) -> Self {
        Fault { rerun: Some(why), ..self }
    }
}

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// One snapshot, no writes.
    Read,
    /// No writes, and each statement has a snapshot of its own.
    Glance,
    /// Serializable, and on the disk before it is acknowledged.
    Write,
    /// Serializable, but a power cut may take the newest of them back: for what is only ever early when lost.
    Relaxed,
    /// A change of the schema, one at a time among all that start at once.
    Migrate,
}

/// One connection with at most one open transaction. Private to `db/`.
trait Driver: Send {
    fn begin(&mut self, mode: Mode) -> Result<(), Fault>;
    fn run(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, Fault>;
    fn run_each(&mut self, sql: &'static str, batch: &[Vec<Arg<'_>>]) -> Result<u64, Fault>;
    fn query(&mut self, sql: &'static str, args: &[Arg<'_>], each: &mut dyn FnMut(&Row<'_>) -> Result<(), Fault>) -> Result<(), Fault>;
    fn batch(&mut self, sql: &str) -> Result<(), Fault>;
    fn commit(&mut self) -> Result<(), Fault>;
    fn rollback(&mut self);
    fn has_table(&mut self, name: &str) -> Result<bool, Fault>;
}

type AfterCommit = Box<dyn FnOnce() + Send>;

/// One transaction: one connection, one now, one source of chance.
pub struct Tx {
    driver: Box<dyn Driver>,
    now: Timestamp,
    setting: Arc<Setting>,
    dead: Vec<TokenHash>,
    after: Vec<AfterCommit>,
    broken: Option<Fault>,
}

impl Tx {
    /// The moment of this transaction. It does not pass while the transaction runs.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Randomness for tokens.
    pub fn chance(&self) -> &Chance {
        &self.setting.chance
    }

    /// A new UUIDv7 for a row of this transaction.
    pub fn next_id(&self) -> Uuid {
        self.setting.mint.next(self.now)
    }

    /// The live sessions in memory, for their last-active, which may be newer than the stored one.
    pub fn live(&self) -> &LiveSessions {
        &self.setting.live
    }

    /// Rings once the transaction has committed: a letter waits in the outbox.
    pub fn ring_post_bell(&mut self) {
        let bell = self.setting.post_bell.clone();
        self.after_commit(move || bell.notify_one());
    }

    /// Makes memory forget a token once the transaction has committed, before anybody hears of the commit.
    pub fn forget(&mut self, token: &TokenHash) {
        self.dead.push(*token);
    }

    /// Does this once the transaction has committed and memory is true; never, if it rolls back.
    pub fn after_commit(&mut self, deed: impl FnOnce() + Send + 'static) {
        self.after.push(Box::new(deed));
    }

    /// Runs a statement and counts the rows that it changed.
    pub fn run<'a>(&mut self, sql: &'static str, args: impl Args<'a>) -> Result<u64, Fault> {
        let args = args.list();
        self.check(&args)?;
        let done = self.driver.run(sql, &args);
        self.note(done)
    }

    /// Runs one statement for each set of arguments, as fast as the driver can, and counts all rows changed.
    pub fn run_each(&mut self, sql: &'static str, batch: &[Vec<Arg<'_>>]) -> Result<u64, Fault> {
        for args in batch {
            self.check(args)?;
        }
        let done = self.driver.run_each(sql, batch);
        self.note(done)
    }

    /// Reads at most one row; a second one is a fault.
    pub fn row<'a, T: FromRow>(&mut self, sql: &'static str, args: impl Args<'a>) -> Result<Option<T>, Fault> {
        let mut all = self.rows(sql, args)?;
        if all.len() > 1 {
            return self.note(Err(Fault::broken("more than one row")));
        }
        Ok(all.pop())
    }

    /// Reads all rows. The statement bounds how many that can be.
    pub fn rows<'a, T: FromRow>(&mut self, sql: &'static str, args: impl Args<'a>) -> Result<Vec<T>, Fault> {
        let args = args.list();
        self.check(&args)?;
        let mut out = Vec::new();
        let done = self.driver.query(sql, &args, &mut |row| {
            out.push(T::from_row(row)?);
            Ok(())
        });
        self.note(done)?;
        Ok(out)
    }

    /// Runs DDL.
    fn batch(&mut self, sql: &str) -> Result<(), Fault> {
        let done = self.driver.batch(sql);
        self.note(done)
    }

    /// Remembers the first fault: a statement that failed spoils its transaction, also when the closure swallows the error.
    fn note<T>(&mut self, done: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &done {
            self.broken.get_or_insert_with(|| fault.clone());
        }
        done
    }

    fn check(&mut self, args: &[Arg<'_>]) -> Result<(), Fault> {
        if let Some(fault) = &self.broken {
            return Err(fault.clone());
        }
        // Postgres cannot store NUL in text; refused for all, so that no store is the odd one out.
        if args.iter().any(|arg| matches!(arg, Arg::Text(Some(text)) if text.contains('\0'))) {
            return self.note(Err(Fault::broken("NUL in text")));
        }
        Ok(())
    }
}

/// What every transaction carries.
struct Setting {
    clock: Clock,
    chance: Chance,
    mint: Mint,
    live: LiveSessions,
    post_bell: Arc<Notify>,
}

/// The database. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Db {
    store: Store,
    setting: Arc<Setting>,
    /// Held, shared, by each transaction that goes on without its caller.
    under_way: Arc<RwLock<()>>,
    /// Room for those: a caller that is gone is counted nowhere else.
    room: Arc<Semaphore>,
}

#[derive(Clone)]
enum Store {
    Sqlite(Arc<sqlite::Sqlite>),
    Postgres(Arc<postgres::Postgres>),
}

impl Store {
    /// Lends a connection for the `attempt`-th try of a transaction, counted from 1.
    async fn lend(&self, mode: Mode, attempt: u32) -> Result<Box<dyn Driver>, Fault> {
        match (self, mode) {
            (Store::Sqlite(file), Mode::Read | Mode::Glance) => file.lend_reader().await,
            (Store::Sqlite(file), Mode::Write | Mode::Relaxed | Mode::Migrate) => file.lend_writer().await,
            (Store::Postgres(server), _) => server.lend(mode, attempt).await,
        }
    }
}

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// A file of the embedded SQLite.
    Sqlite(PathBuf),
    /// A Postgres server, which several instances may share.
    Postgres(Box<Server>),
}

impl Url {
    /// Whether other instances may write there unseen, so that memory alone can say yes to nobody.
    pub fn is_shared(&self) -> bool {
        matches!(self, Url::Postgres(_))
    }

    /// How many connections over the network it may take.
    pub fn connections(&self) -> usize {
        match self {
            Url::Sqlite(_) => 0,
            Url::Postgres(server) => server.connections(),
        }
    }
}

/// For people; without the password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Url::Sqlite(path) => path.display().fmt(f),
            Url::Postgres(server) => server.fmt(f),
        }
    }
}

impl Db {
    /// Opens the database, making it if it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// One line that says what is wrong with the file: missing rights, foreign, newer than this program, damaged.
    pub async fn open(url: &Url, clock: Clock, chance: Chance, live: LiveSessions) -> Result<Db, Fault> {
        let store = match url {
            Url::Sqlite(path) => Store::Sqlite(Arc::new(sqlite::Sqlite::open(path, live.clone())?)),
            Url::Postgres(server) => Store::Postgres(Arc::new(postgres::Postgres::open(server).await?)),
        };
        let setting = Setting { clock, chance, mint: Mint::default(), live, post_bell: Arc::default() };
        let db = Db { store, setting: Arc::new(setting), under_way: Arc::default(), room: Arc::new(Semaphore::new(ROOM)) };
        migrate::run(&db).await?;
        Ok(db)
    }

    /// The live sessions that this database keeps true.
    pub fn live(&self) -> &LiveSessions {
        &self.setting.live
    }

    /// Waits until a letter was put into the outbox by this process.
    pub async fn post_bell(&self) {
        self.setting.post_bell.notified().await;
    }

    /// Randomness for salts and tokens that are made outside of a transaction.
    pub fn chance(&self) -> &Chance {
        &self.setting.chance
    }

    /// Reads on one snapshot.
    pub async fn read<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        self.transact(Mode::Read, f).await
    }

    /// Reads a few rows by key, each statement on a snapshot of its own. SQLite answers on the calling thread: for such a
    /// read the hop to another one costs several times the read itself, and a transaction as much as another read.
    pub async fn glance<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        let Store::Sqlite(file) = &self.store else { return self.read(f).await };
        match file.lend_at_once()? {
            Some(driver) => self.attempt(driver, Mode::Glance, &f).0,
            None => self.read(f).await,
        }
    }

    /// Looks a token up, as every request with a cookie needs it: each driver as fast as it can.
    pub async fn session(&self, token: &TokenHash) -> Result<Known, Fault> {
        match &self.store {
            Store::Sqlite(_) => {
                let token = *token;
                self.glance(move |tx| look_up(tx, &token)).await
            }
            Store::Postgres(server) => server.session(token).await,
        }
    }

    /// Writes: commits on `Ok`, rolls back on `Err`. Once begun it is finished, also when the caller goes away.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        self.transact(Mode::Write, f).await
    }

    /// [Writes](Self::write) what must not tell by its time what it found, for whoever asks about somebody else: it ends at a
    /// multiple of [`EVEN`] after it began, whatever there was to do. ENUM-02.
    pub async fn write_evenly<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        let begun = tokio::time::Instant::now();
        let done = self.write(f).await;
        tokio::time::sleep_until(begun + in_whole_beats(begun.elapsed())).await;
        done
    }

    /// Changes the schema.
    async fn migrate<F>(&self, f: F) -> Result<(), Fault>
    where
        F: Fn(&mut Tx) -> Result<(), Fault> + Send + 'static,
    {
        self.transact(Mode::Migrate, f).await
    }

    /// Writes what may be lost in a power cut because losing it is safe.
    pub async fn write_relaxed<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        self.transact(Mode::Relaxed, f).await
    }

    /// Looks after the database: whether it can be used; of a file, what other processes wrote, and that its log stays small.
    /// Call it often.
    ///
    /// When the look fails, or does not come to its end in time, nobody knows what others have written: then memory is not
    /// trusted either, and every session is read again before it counts.
    pub async fn tend(&self) -> Result<(), Fault> {
        let done = match &self.store {
            Store::Sqlite(file) => tokio::time::timeout(LOOK_TAKES, tend_file(file)).await.unwrap_or_else(|_| Err(Fault::unavailable("the writer is busy"))),
            Store::Postgres(server) => server.tend().await,
        };
        if done.is_err() {
            self.live().distrust();
        }
        done
    }

    /// Whether the last look found the database fit for writing. Costs nothing, so strangers may ask.
    pub fn is_usable(&self) -> bool {
        match &self.store {
            Store::Sqlite(file) => file.is_usable(),
            Store::Postgres(server) => server.is_usable(),
        }
    }

    /// Resolves when nothing goes on any more that was begun before.
    pub async fn settled(&self) {
        drop(self.under_way.write().await);
    }

    /// The earlier of a moment and the database server's own now: where instances share a database, the clock of one is no
    /// judge of all sessions.
    pub async fn at_most_now(&self, moment: Timestamp) -> Result<Timestamp, Fault> {
        match &self.store {
            Store::Sqlite(_) => Ok(moment),
            Store::Postgres(server) => Ok(moment.min(server.now().await?)),
        }
    }

    /// Runs a transaction. What may have to be run again is on a task of its own: once begun it is finished, also when the
    /// caller goes away.
    async fn transact<T, E, F>(&self, mode: Mode, f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        let Store::Postgres(_) = self.store else { return self.transact_here(mode, f).await };
        let room = self.room.clone().try_acquire_owned().map_err(|_| Fault::unavailable("too many are waiting for it"))?;
        let (db, under_way) = (self.clone(), self.under_way.clone().read_owned().await);
        let own_task = async move {
            let out = db.transact_here(mode, f).await;
            drop((under_way, room));
            out
        };
        let task = tokio::spawn(own_task.in_current_span());
        task.await.unwrap_or_else(|e| Err(Fault::broken(format!("a transaction panicked: {e}")).into()))
    }

    /// Runs a transaction on a thread that may block, and again when it came to nothing through no fault of its own.
    async fn transact_here<T, E, F>(&self, mode: Mode, mut f: F) -> Result<T, E>
    where
        F: Fn(&mut Tx) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
    {
        for attempt in 1..=ATTEMPTS {
            // The connection is fetched before the thread is taken, so that waiting for one blocks no thread.
            let driver = self.store.lend(mode, attempt).await?;
            let (db, span) = (self.clone(), tracing::Span::current());
            let (out, rerun) = blocking(move || {
                let (out, rerun) = span.in_scope(|| db.attempt(driver, mode, &f));
                Ok::<_, E>(((out, f), rerun))
            })
            .await?;
            match rerun {
                Some(Rerun::Conflict) => self.step_aside(attempt).await,
                // Whoever loses the third connection has lost the database.
                Some(Rerun::Lost) if attempt < 3 => {}
                _ => return out.0,
            }
            f = out.1;
        }
        Err(Fault::unavailable("too many others write the same; try again").into())
    }

    /// Waits a little, each time for longer, and not as long as the others do. Those of other instances, and at the command
    /// line, stop at no gate of ours: whoever loses to them again and again gets through when their rush is over.
    async fn step_aside(&self, attempt: u32) {
        let longest = 300 << attempt.min(10);
        let chance = u64::from_be_bytes(self.setting.chance.bytes());
        tokio::time::sleep(Duration::from_micros(chance % longest)).await;
    }

    /// Runs a transaction once. Says why it may be run again, where it came to nothing.
    fn attempt<T, E: From<Fault>>(&self, mut driver: Box<dyn Driver>, mode: Mode, f: &impl Fn(&mut Tx) -> Result<T, E>) -> (Result<T, E>, Option<Rerun>) {
        let failed = |fault: Fault| {
            let rerun = fault.rerun;
            (Err(fault.into()), rerun)
        };
        if let Err(fault) = driver.begin(mode) {
            return failed(fault);
        }
        // Now is read after BEGIN: whoever waited for the writer is dated by its turn, not by its arrival.
        let mut tx = Tx { driver, now: self.setting.clock.now(), setting: self.setting.clone(), dead: Vec::new(), after: Vec::new(), broken: None };
        let out = f(&mut tx);
        if let Some(fault) = tx.broken.take() {
            tx.driver.rollback();
            return failed(fault);
        }
        if out.is_err() {
            tx.driver.rollback();
            return (out, None);
        }
        let Tx { mut driver, dead, after, .. } = tx;
        if let Err(fault) = driver.commit() {
            return failed(fault);
        }
        dead.iter().for_each(|token| self.setting.live.forget(token));
        // The next one may have its turn; what follows only tells.
        drop(driver);
        after.into_iter().for_each(|deed| deed());
        (out, None)
    }
}

/// The end of the beat in which something is done that took so long.
fn in_whole_beats(took: Duration) -> Duration {
    let beats = took.as_nanos() / EVEN.as_nanos() + 1;
    EVEN * u32::try_from(beats).unwrap_or(u32::MAX)
}

async fn tend_file(file: &Arc<sqlite::Sqlite>) -> Result<(), Fault> {
    let own = file.clone();
    blocking(move || own.look_at_file()).await?;
    let (own, writer) = (file.clone(), file.turn_to_tend().await);
    blocking(move || own.tend(writer)).await
}

/// Runs `f` on a thread that may block, and waits for it.
fn blocking<T, E>(f: impl FnOnce() -> Result<T, E> + Send + 'static) -> impl Future<Output = Result<T, E>>
where
    T: Send + 'static,
    E: From<Fault> + Send + 'static,
{
    let task = tokio::task::spawn_blocking(f);
    async move {
        match task.await {
            Ok(done) => done,
            Err(e) if e.is_cancelled() => Err(Fault::unavailable("the server is stopping").into()),
            Err(e) => Err(Fault::broken(format!("a transaction panicked: {e}")).into()),
        }
    }
}

/// Transactions that may be under way on tasks of their own, those that wait for a connection included: more than all requests that
/// are worked on at once.
const ROOM: usize = 2048;
/// How often a transaction is run before its caller is told to come again: the last of these waits are up to 0.3 s.
const ATTEMPTS: u32 = 20;
/// The beat of an [even write](Db::write_evenly): several times what it takes on a machine that keeps up.
pub const EVEN: Duration = Duration::from_millis(20);
/// How long a look at the file may take before it counts as failed.
const LOOK_TAKES: Duration = Duration::from_millis(500);
/// How long a chunk of background work may hold the writer.
pub const WRITER_SHARE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// ENUM-02: what takes a little longer than a beat takes as long as what takes a little less than two.
    #[test]
    fn what_is_told_evenly_is_told_at_a_beat() {
        let told = |ms: u64| in_whole_beats(Duration::from_millis(ms)).as_millis();
        assert_eq!([0, 1, 19, 20, 21, 39, 40, 1000].map(told), [20, 20, 20, 40, 40, 40, 60, 1020]);
    }
}
