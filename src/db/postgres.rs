//! Postgres: one database for several instances. An asynchronous client, driven from a blocking thread.
//!
//! # Isolation
//! Writes are SERIALIZABLE; a transaction that the database refuses for a conflict (`40001`, `40P01`) is run again by the
//! seam. Reads are REPEATABLE READ, READ ONLY. BEGIN travels with the first statement, and nobody waits for the COMMIT of a
//! read.
//!
//! # Durability
//! An acknowledged write is as safe as the server's `synchronous_commit` makes it; only the write-back of last-active and
//! the purge set it to `off` for themselves: losing the newest of those is harmless.
//!
//! # Losing the connection
//! Before COMMIT was sent nothing has happened, and the seam runs the transaction again on a fresh connection. When the
//! connection is lost *during* COMMIT nobody knows: that is a fault (`503`), and is not tried again. No statement, lock or
//! connection is waited for without a bound, here or at the server.

mod look_up;
mod tls;
mod url;

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{ConfigConnectImpl, Connect, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use futures_util::future::{FutureExt, join, join_all};
use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinHandle;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::value::Raw;
use super::{Arg, Driver, Fault, Mode, Rerun, Row};
use crate::clock::Timestamp;
use crate::device_sessions::Known;
use crate::secret::TokenHash;
use look_up::LookUps;
pub use url::Server;

/// How long a caller waits for a connection of the pool.
const TURN: Duration = Duration::from_secs(5);
/// How long the server may take for a statement; we wait a little longer than it does.
const STATEMENT: Duration = Duration::from_secs(5);
/// How long a statement waits for a row that another transaction has changed. Under SERIALIZABLE it will be refused once that
/// one commits, so to wait is of no use; and two that wait for each other are parted long before the server would notice.
const LOCK: Duration = Duration::from_millis(200);
const MARGIN: Duration = Duration::from_secs(1);
/// How long a transaction may do nothing before the server ends it with its connection.
const IDLE: Duration = Duration::from_secs(10);
/// How long one host may take to accept a new connection.
const CONNECT: Duration = Duration::from_secs(1);
/// How long it may take until that can be used.
const GREETING: Duration = Duration::from_secs(1);
/// Connections that transactions do not get: two for look-ups of tokens, one for the watch.
const OWN_CONNECTIONS: usize = 3;
/// The fewest connections that one instance can work with.
pub const FEWEST_CONNECTIONS: u32 = OWN_CONNECTIONS as u32 + 1;

/// Begins a change of the schema, behind a lock ("holdfast" in ASCII) at which all that start together take turns. READ
/// COMMITTED: a snapshot from before the lock was granted would not see what the one before has done.
pub(super) const BEGIN_MIGRATION: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
    SELECT pg_advisory_xact_lock(7525199577110373236)";

pub(super) struct Postgres {
    transactions: Pool,
    own: Pool,
    look_ups: Arc<LookUps>,
    /// How long a connection may take.
    patience: Duration,
    usable: AtomicBool,
    gate: Arc<RwLock<()>>,
}

/// What a transaction holds of the gate while it runs.
#[allow(dead_code)] // It is held, not read.
enum Turn {
    NotNeeded,
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

impl Postgres {
    /// Connects, so that a wrong address, user or password stops the start with its reason.
    pub(super) async fn open(server: &Server) -> Result<Self, Fault> {
        let own = pool(server, OWN_CONNECTIONS)?;
        let store = Postgres {
            transactions: pool(server, server.connections.saturating_sub(OWN_CONNECTIONS).max(1))?,
            look_ups: LookUps::over(own.clone()),
            own,
            patience: server.patience(),
            usable: AtomicBool::new(true),
            gate: Arc::default(),
        };
        refuse_foreign(&get(&store.own).await?).await?;
        Ok(store)
    }

    /// Lends a connection that is not in use. Who writes shares the gate with the others; who has lost to them twice has it
    /// alone, and so cannot lose to a neighbour again.
    pub(super) async fn lend(&self, mode: Mode, attempt: u32) -> Result<Box<dyn Driver>, Fault> {
        // The connection first: whoever waits for one behind the gate would wait for those who wait for the gate.
        let client = get(&self.transactions).await?;
        let turn = match mode {
            Mode::Read | Mode::Glance | Mode::Migrate => Turn::NotNeeded,
            Mode::Write | Mode::Relaxed if attempt <= 2 => Turn::Shared(in_turn(self.gate.clone().read_owned()).await?),
            Mode::Write | Mode::Relaxed => Turn::Alone(in_turn(self.gate.clone().write_owned()).await?),
        };
        Ok(Box::new(Conn { client: Some(client), pool: self.transactions.clone(), runtime: Handle::current(), pending: None, open: false, mode, _turn: turn }))
    }

    /// Looks a token up. Those that ask together are answered together.
    pub(super) async fn session(&self, token: &TokenHash) -> Result<Known, Fault> {
        self.look_ups.find(token).await
    }

    /// Looks whether the database takes writes.
    pub(super) async fn tend(&self) -> Result<(), Fault> {
        let look = async {
            let client = Lent::of(&self.own).await?;
            let sql = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";
            let read_only: bool = client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(fault)?;
            if read_only {
                // Dropped, not given back: whoever connects anew may be led to the one that takes writes.
                return Err(Fault::unavailable("it takes no writes: a standby, or read-only"));
            }
            client.give_back();
            Ok(())
        };
        let done = within(self.patience, look).await;
        if done.is_err() {
            // After a fail-over that nobody announced, all the others are as dead as this one.
            [&self.transactions, &self.own].into_iter().for_each(forget_idle);
        }
        self.usable.store(done.is_ok(), Ordering::Relaxed);
        done
    }

    /// What the server's clock says. It is one for all instances.
    pub(super) async fn now(&self) -> Result<Timestamp, Fault> {
        let look = async {
            let client = Lent::of(&self.own).await?;
            let now = client.query_one("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)", &[]).await.map_err(fault)?;
            client.give_back();
            now.try_get(0).map(Timestamp).map_err(fault)
        };
        within(self.patience, look).await
    }

    /// What the last look found.
    pub(super) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }
}

fn pool(server: &Server, size: usize) -> Result<Pool, Fault> {
    let how = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let connect = Bounded(ConfigConnectImpl { tls: tls::connector(server)? });
    let manager = Manager::from_connect(server.client(), connect, how);
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(TURN))
        .create_timeout(Some(server.patience()))
        .recycle_timeout(Some(CONNECT))
        .build()
        .map_err(|e| Fault::broken(e.to_string()))
}

/// Connects, and tells the server how long anything may take there. In a statement, not as a parameter of the start: a pooler
/// in between knows which of those it passes on, and these are not among them.
struct Bounded(ConfigConnectImpl<MakeRustlsConnect>);

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl Connect for Bounded {
    fn connect(&self, config: &tokio_postgres::Config) -> Connecting<'_> {
        let connecting = self.0.connect(config);
        Box::pin(async move {
            let (client, connection) = connecting.await?;
            client.batch_execute(&bounds()).await?;
            Ok((client, connection))
        })
    }
}

fn bounds() -> String {
    let (statement, lock, idle) = (STATEMENT.as_millis(), LOCK.as_millis(), IDLE.as_millis());
    format!("SET statement_timeout = {statement}; SET lock_timeout = {lock}; SET idle_in_transaction_session_timeout = {idle}")
}

/// One connection.
pub(super) async fn connect(server: &Server) -> Result<Object, Fault> {
    get(&pool(server, 1)?).await
}

async fn get(pool: &Pool) -> Result<Object, Fault> {
    pool.get().await.map_err(|e| match e {
        // What it is, the operator reads; waiting may cure all of it.
        PoolError::Backend(e) => Fault::unavailable(fault(e).to_string()),
        PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => Fault::unavailable("too many are waiting for it"),
        PoolError::Timeout(_) => Fault::unavailable("it does not answer"),
        e => Fault::broken(e.to_string()),
    })
}

/// A connection that goes back to the pool only when it is said so: what is given up half-way leaves an answer under way,
/// and perhaps a connection that nobody answers on any more.
struct Lent(Option<Object>);

impl Lent {
    async fn of(pool: &Pool) -> Result<Self, Fault> {
        get(pool).await.map(|client| Lent(Some(client)))
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Lent {
    type Target = Object;

    #[allow(clippy::expect_used)] // Only `give_back` and `drop` take it out, and both are its end.
    fn deref(&self) -> &Object {
        self.0.as_ref().expect("present until its end")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(discard);
    }
}

/// Closes a connection instead of giving it back.
fn discard(client: Object) {
    drop(Object::take(client));
}

/// Tables of another program stay untouched, and ours stay apart from them.
async fn refuse_foreign(client: &Object) -> Result<(), Fault> {
    let sql = "SELECT count(*), count(*) FILTER (WHERE table_name = 'migrations') FROM information_schema.tables
        WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'";
    let row = client.query_one(sql, &[]).await.map_err(fault)?;
    let (tables, ours): (i64, i64) = (row.try_get(0).map_err(fault)?, row.try_get(1).map_err(fault)?);
    if tables > 0 && ours == 0 {
        return Err(Fault::broken("it holds tables of another program; give Holdfast a database of its own"));
    }
    Ok(())
}

/// Waits for a turn at the gate.
async fn in_turn<T>(gate: impl Future<Output = T>) -> Result<T, Fault> {
    tokio::time::timeout(TURN, gate).await.map_err(|_| Fault::unavailable("too many are waiting for it"))
}

/// Closes the connections of a pool that nobody uses.
fn forget_idle(pool: &Pool) {
    drop(pool.retain(|_, _| false));
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(Fault::unavailable("it does not answer")))
}

struct Conn {
    /// Present until it is discarded.
    client: Option<Object>,
    /// Where it came from.
    pool: Pool,
    runtime: Handle,
    /// A BEGIN that waits for the first statement.
    pending: Option<&'static str>,
    open: bool,
    mode: Mode,
    _turn: Turn,
}

impl Conn {
    fn client(&self) -> Result<&Object, Fault> {
        self.client.as_ref().ok_or_else(|| Fault::unavailable("the connection is closed"))
    }

    async fn prepare(&self, sql: &str, args: &[Arg<'_>]) -> Result<Statement, Fault> {
        // Every type is given, so the server guesses none, also for NULL.
        let types: Vec<Type> = args.iter().map(type_of).collect();
        self.client()?.prepare_typed_cached(&in_own_words(sql), &types).await.map_err(fault)
    }

    /// Sends a waiting BEGIN in front of the first statement: one flight for both.
    async fn with_begin<T>(&self, begin: Option<&'static str>, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Fault> {
        let Some(begin) = begin else { return work.await.map_err(fault) };
        let (begun, done) = join(self.client()?.batch_execute(begin), work).await;
        begun.map_err(fault)?;
        done.map_err(fault)
    }

    /// Does one thing on the connection. An answer that does not come in time makes the connection useless: it would come
    /// to the next one who asks.
    fn wait_for<T>(&mut self, work: impl AsyncFnOnce(&Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let limit = if self.mode == Mode::Migrate { Duration::from_secs(3600) } else { STATEMENT + MARGIN };
        let runtime = self.runtime.clone();
        match runtime.block_on(async { tokio::time::timeout(limit, work(self)).await }) {
            Ok(done) => {
                // Also one that is closed to writes only: it must not come back from the pool.
                if done.as_ref().is_err_and(|fault| fault.rerun == Some(Rerun::Lost)) {
                    self.discard();
                }
                done
            }
            Err(_) => {
                self.discard();
                // Not even the server's own limit was kept: nobody is there, for the others either.
                forget_idle(&self.pool);
                Err(Fault::unavailable("it does not answer").again(Rerun::Lost))
            }
        }
    }

    fn discard(&mut self) {
        self.open = false;
        if let Some(client) = self.client.take() {
            discard(client);
        }
    }
}

fn refs<'a>(args: &'a [Arg<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    args.iter().map(|arg| arg as &(dyn ToSql + Sync)).collect()
}

impl Driver for Conn {
    fn begin(&mut self, mode: Mode) -> Result<(), Fault> {
        self.mode = mode;
        self.open = true;
        self.pending = Some(match mode {
            Mode::Read | Mode::Glance => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Mode::Write => "BEGIN ISOLATION LEVEL SERIALIZABLE",
            Mode::Relaxed => "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL synchronous_commit = off",
            Mode::Migrate => {
                self.pending = None;
                return self.batch(BEGIN_MIGRATION);
            }
        });
        Ok(())
    }

    fn run(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, Fault> {
        let begin = self.pending.take();
        self.wait_for(async |conn: &Self| {
            let statement = conn.prepare(sql, args).await?;
            let args = refs(args);
            conn.with_begin(begin, conn.client()?.execute(&statement, &args)).await
        })
    }

    fn run_each(&mut self, sql: &'static str, batch: &[Vec<Arg<'_>>]) -> Result<u64, Fault> {
        let Some(first) = batch.first() else { return Ok(0) };
        let begin = self.pending.take();
        self.wait_for(async |conn: &Self| {
            let statement = &conn.prepare(sql, first).await?;
            let client = conn.client()?;
            let each = batch.iter().map(|args| async move {
                let args = refs(args);
                client.execute(statement, &args).await
            });
            // To the end of all: the first that fails says why, and what comes after it only that something has failed before.
            let all = async { join_all(each).await.into_iter().sum() };
            conn.with_begin(begin, all).await
        })
    }

    fn query(&mut self, sql: &'static str, args: &[Arg<'_>], each: &mut dyn FnMut(&Row<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        let begin = self.pending.take();
        let rows = self.wait_for(async |conn: &Self| {
            let statement = conn.prepare(sql, args).await?;
            let args = refs(args);
            conn.with_begin(begin, conn.client()?.query(&statement, &args)).await
        })?;
        rows.iter().try_for_each(|row| each(&Row(Raw::Postgres(row))))
    }

    fn batch(&mut self, sql: &str) -> Result<(), Fault> {
        let begin = self.pending.take();
        self.wait_for(async |conn: &Self| conn.with_begin(begin, conn.client()?.batch_execute(sql)).await)
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.open = false;
        if self.pending.take().is_some() {
            return Ok(());
        }
        if matches!(self.mode, Mode::Read | Mode::Glance) {
            // Nothing hangs on the answer, and whoever borrows the connection next queues behind it.
            let runtime = self.runtime.clone();
            let mut end = Box::pin(self.client()?.batch_execute("COMMIT"));
            let _sent = runtime.block_on(async { (&mut end).now_or_never() });
            return Ok(());
        }
        let done = self.wait_for(async |conn: &Self| conn.client()?.batch_execute("COMMIT").await.map_err(fault));
        done.map_err(|fault| match fault.rerun {
            Some(Rerun::Lost) => Fault::unavailable(format!("{fault}; whether the transaction was committed is not known")),
            _ => fault,
        })
    }

    fn rollback(&mut self) {
        self.open = false;
        if self.pending.take().is_some() || self.client.is_none() {
            return;
        }
        if self.wait_for(async |conn: &Self| conn.client()?.batch_execute("ROLLBACK").await.map_err(fault)).is_err() {
            self.discard();
        }
    }

    fn has_table(&mut self, name: &str) -> Result<bool, Fault> {
        let mut found = false;
        let sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = ?1";
        self.query(sql, &[Arg::Text(Some(name))], &mut |_| {
            found = true;
            Ok(())
        })?;
        Ok(found)
    }
}

// A closure that panicked leaves a transaction open: such a connection is closed, not given back.
impl Drop for Conn {
    fn drop(&mut self) {
        if self.open && self.pending.is_none() {
            self.discard();
        }
    }
}

impl ToSql for Arg<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Arg::Int(Some(i)) => out.extend_from_slice(&i.to_be_bytes()),
            Arg::Text(Some(s)) => out.extend_from_slice(s.as_bytes()),
            Arg::Bytes(Some(b)) => out.extend_from_slice(b),
            Arg::Uuid(Some(u)) => out.extend_from_slice(u.as_bytes()),
            _ => return Ok(IsNull::Yes),
        }
        Ok(IsNull::No)
    }

    // The statement was prepared with exactly these types, so each is the right one.
    fn accepts(given: &Type) -> bool {
        matches!(*given, Type::INT8 | Type::TEXT | Type::BYTEA | Type::UUID)
    }

    to_sql_checked!();
}

fn type_of(arg: &Arg<'_>) -> Type {
    match arg {
        Arg::Int(_) => Type::INT8,
        Arg::Text(_) => Type::TEXT,
        Arg::Bytes(_) => Type::BYTEA,
        Arg::Uuid(_) => Type::UUID,
    }
}

type Unreadable = Box<dyn std::error::Error + Sync + Send>;

/// A whole number of any width: a literal is an `int4`, a count an `int8`.
pub(super) struct AnyInt(pub i64);

impl<'a> FromSql<'a> for AnyInt {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Unreadable> {
        Ok(AnyInt(match *kind {
            Type::INT8 => i64::from_sql(kind, raw)?,
            Type::INT4 => i64::from(i32::from_sql(kind, raw)?),
            _ => i64::from(i16::from_sql(kind, raw)?),
        }))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::INT4 | Type::INT2)
    }
}

/// A flag: a `BIGINT` column, or what EXISTS answers.
pub(super) struct AnyBool(pub bool);

impl<'a> FromSql<'a> for AnyBool {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Unreadable> {
        Ok(AnyBool(if *kind == Type::BOOL { bool::from_sql(kind, raw)? } else { AnyInt::from_sql(kind, raw)?.0 != 0 }))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::BOOL || AnyInt::accepts(kind)
    }
}

/// Exactly 32 bytes.
pub(super) struct Bytes32(pub [u8; 32]);

impl<'a> FromSql<'a> for Bytes32 {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Unreadable> {
        Ok(Bytes32(raw.try_into()?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::BYTEA
    }
}

/// The common SQL in Postgres's words: `?1` becomes `$1`, outside of quotes and comments.
fn in_own_words(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut until: Option<char> = None;
    let mut rest = sql.chars().peekable();
    while let Some(c) = rest.next() {
        match (until, c) {
            (Some(end), _) => until = (c != end).then_some(end),
            (None, '\'' | '"') => until = Some(c),
            (None, '-') if rest.peek() == Some(&'-') => until = Some('\n'),
            _ => {}
        }
        out.push(if until.is_none() && c == '?' { '$' } else { c });
    }
    out
}

pub(super) fn fault(e: tokio_postgres::Error) -> Fault {
    let Some(told) = e.as_db_error() else {
        let cause = e.source();
        let text = cause.map_or_else(|| e.to_string(), |cause| format!("{e}: {cause}"));
        let gone = e.is_closed() || cause.is_some_and(|cause| cause.is::<io::Error>());
        return if gone { Fault::unavailable(text).again(Rerun::Lost) } else { Fault::broken(text) };
    };
    let code = told.code().code();
    let text = format!("{} ({code})", told.message());
    match code {
        // A lock that was not had in time is a conflict too, see `LOCK`.
        "40001" | "40P01" | "55P03" => Fault::unavailable(text).again(Rerun::Conflict),
        // Ended by an administrator, a shutdown or a fail-over; or a standby now: whoever connects anew may find a primary.
        "57P01" | "57P02" | "57P03" | "57P05" | "25006" | "25P03" | "0A000" => Fault::unavailable(text).again(Rerun::Lost),
        // A statement took too long.
        "57014" => Fault::unavailable(text),
        _ => match &code[..2] {
            "08" => Fault::unavailable(text).again(Rerun::Lost),
            // Resources, the system below it, damage.
            "53" | "58" | "XX" => Fault::unavailable(text),
            _ => Fault::broken(text),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_rewritten_outside_of_quotes_and_comments_only() {
        assert_eq!(in_own_words("SELECT '?1', \"?2\", ?1 -- ?3\n, ?2"), "SELECT '?1', \"?2\", $1 -- ?3\n, $2");
    }
}
