//! SQLite: many readers, and one writer that waits its turn without holding a thread.
//!
//! # Durability
//! The journal is a write-ahead log. An acknowledged write (a logout, a revocation, a password, an account) is synced to
//! the disk before its answer (`synchronous=FULL`); only the write-back of last-active runs with `NORMAL`, which may lose
//! the newest commits in a power cut, never the database: a lost last-active makes idle come early, never late. Either
//! survives `kill -9`, since the log is then in the kernel's hands.
//!
//! Measured on a virtual machine with two cores, 100,000 sessions, one commit each: 1,200 to 1,900 logouts a second with FULL,
//! 4,200 to 5,200 with NORMAL. FULL is chosen all the same: a logout that a power cut takes back was none, and a server that
//! signs out a thousand people a second has outgrown one file.
//!
//! # Other processes
//! The command line opens the same file while the server runs. The writer's `PRAGMA data_version` changes exactly when
//! another connection has written to the file, and only the writer of this process ever commits here; so a change means that
//! somebody else wrote, and every session in memory is read again before it counts.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use r2d2::{Pool, PooledConnection};
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::value::Raw;
use super::{Arg, Driver, Fault, Mode, Row};
use crate::live_sessions::LiveSessions;

/// Readers on blocking threads: lists, pages, the audit log.
const READERS: u32 = 4;
/// How long a statement waits for a lock of another process, and a caller for a turn.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// The same on the server's own threads, where nobody may wait.
const BUSY_AT_ONCE: Duration = Duration::from_millis(20);
/// The write-ahead log is emptied when it has grown past this; so it stays under 64 MiB, except while somebody reads one
/// snapshot for long (a backup).
const WAL_LIMIT: u64 = 16 << 20;

pub(super) struct Sqlite {
    readers: Pool<SqliteConnectionManager>,
    read_turn: Arc<Semaphore>,
    glancers: Pool<SqliteConnectionManager>,
    writer: Pool<SqliteConnectionManager>,
    write_turn: Arc<Semaphore>,
    watch: Arc<Watch>,
}

/// What is known of the file and of who else writes to it.
struct Watch {
    path: PathBuf,
    /// Device and inode of the file that was opened.
    identity: (u64, u64),
    /// The file at the path is no longer the one that is open: what is written now would be lost.
    gone: AtomicBool,
    /// The last look could take a turn at writing.
    usable: AtomicBool,
    /// A write failed for want of space or of rights, and none has succeeded since.
    failing: AtomicBool,
    data_version: AtomicI64,
    live: LiveSessions,
}

impl Sqlite {
    /// Opens the file at `path`, making it (0600) and its folder (0700) if need be.
    pub(super) fn open(path: &Path, live: LiveSessions) -> Result<Self, Fault> {
        let broken = |e: io::Error| Fault::broken(reason_of(&e));
        let identity = prepare_file(path).map_err(broken)?;
        refuse_foreign(path)?;
        for suffix in ["", "-wal", "-shm"] {
            close_to_others(&with_suffix(path, suffix)).map_err(broken)?;
        }
        let cache = cache_for(path);
        // The writer opens first: it is the one that may turn the write-ahead log on.
        let writer = pool(path, 1, Access { writes: true, busy: BUSY, cache })?;
        let data_version = data_version(&*writer.get().map_err(pool_fault)?)?;
        let threads = std::thread::available_parallelism().map_or(4, |n| u32::try_from(n.get()).unwrap_or(4));
        let watch = Watch {
            path: path.to_path_buf(),
            identity,
            gone: AtomicBool::new(false),
            usable: AtomicBool::new(true),
            failing: AtomicBool::new(false),
            data_version: AtomicI64::new(data_version),
            live,
        };
        Ok(Sqlite {
            readers: pool(path, READERS, Access { writes: false, busy: BUSY, cache: 2 })?,
            read_turn: Arc::new(Semaphore::new(READERS as usize)),
            // One for each of the server's own threads, which hold it without waiting: look-ups by key.
            glancers: pool(path, threads, Access { writes: false, busy: BUSY_AT_ONCE, cache })?,
            writer,
            write_turn: Arc::new(Semaphore::new(1)),
            watch: Arc::new(watch),
        })
    }

    pub(super) async fn lend_reader(&self) -> Result<Box<dyn Driver>, Fault> {
        Ok(Box::new(self.lend(&self.readers, &self.read_turn).await?))
    }

    pub(super) async fn lend_writer(&self) -> Result<Box<dyn Driver>, Fault> {
        Ok(Box::new(self.lend(&self.writer, &self.write_turn).await?))
    }

    /// Lends a reader that is free this instant, if there is one.
    pub(super) fn lend_at_once(&self) -> Result<Option<Box<dyn Driver>>, Fault> {
        self.watch.check()?;
        let Some(connection) = self.glancers.try_get() else { return Ok(None) };
        Ok(Some(Box::new(Conn { connection, open: false, relaxed: false, watch: self.watch.clone(), _turn: None })))
    }

    async fn lend(&self, pool: &Pool<SqliteConnectionManager>, turn: &Arc<Semaphore>) -> Result<Conn, Fault> {
        let turn = tokio::time::timeout(BUSY, turn.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| Fault::unavailable("too many are waiting for it"))?.map_err(|e| Fault::broken(e.to_string()))?;
        self.watch.check()?;
        // Whoever holds a turn finds a free connection, so this does not block.
        let connection = pool.get().map_err(pool_fault)?;
        Ok(Conn { connection, open: false, relaxed: false, watch: self.watch.clone(), _turn: Some(turn) })
    }

    /// Takes the writer's turn for a look at the database.
    pub(super) async fn turn_to_tend(&self) -> Result<Conn, Fault> {
        self.lend(&self.writer, &self.write_turn).await
    }

    /// Looks whether the file is still the one that is open. Before a connection is asked for: none is lent while it is not.
    pub(super) fn look_at_file(&self) -> Result<(), Fault> {
        self.watch.look_at_file();
        self.watch.check()
    }

    /// Takes a look: foreign writes, whether it can be written at all. Empties a log that has grown.
    pub(super) fn tend(&self, writer: Result<Conn, Fault>) -> Result<(), Fault> {
        let wal = fs::metadata(with_suffix(&self.watch.path, "-wal")).map_or(0, |meta| meta.len());
        let done = writer.and_then(|mut writer| writer.tend(wal > WAL_LIMIT));
        self.watch.usable.store(done.is_ok(), Ordering::Relaxed);
        done
    }

    /// What the last look found.
    pub(super) fn is_usable(&self) -> bool {
        self.watch.check().is_ok() && self.watch.usable.load(Ordering::Relaxed) && !self.watch.failing.load(Ordering::Relaxed)
    }
}

impl Watch {
    fn check(&self) -> Result<(), Fault> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Fault::unavailable("the database file was removed or replaced; put it back or restart"));
        }
        Ok(())
    }

    fn look_at_file(&self) {
        let here = fs::metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if here && self.gone.load(Ordering::Relaxed) {
            // It is back; the look that follows takes this back if it finds otherwise.
            self.usable.store(true, Ordering::Relaxed);
        }
        self.gone.store(!here, Ordering::Relaxed);
    }

    /// Compares the writer's data version with the last one seen.
    fn look_at_version(&self, writer: &Connection) -> Result<(), Fault> {
        let version = data_version(writer)?;
        if self.data_version.swap(version, Ordering::Relaxed) != version {
            self.live.distrust();
        }
        Ok(())
    }
}

fn data_version(connection: &Connection) -> Result<i64, Fault> {
    connection.prepare_cached("PRAGMA data_version").and_then(|mut st| st.query_row([], |row| row.get(0))).map_err(fault)
}

/// Makes the file with its rights before SQLite sees it; the log and the index inherit them.
fn prepare_file(path: &Path) -> io::Result<(u64, u64)> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok((meta.dev(), meta.ino()))
}

/// Looks before anything is changed: somebody else's file keeps its mode, its journal and its header.
fn refuse_foreign(path: &Path) -> Result<(), Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(fault)?;
    connection.busy_timeout(BUSY).map_err(fault)?;
    let sql = "SELECT count(*), coalesce(sum(name = 'migrations'), 0) FROM sqlite_schema WHERE type = 'table'";
    let (tables, ours): (i64, i64) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(fault)?;
    if tables > 0 && ours == 0 {
        return Err(Fault::broken("it holds tables of another program; give Holdfast a database of its own"));
    }
    Ok(())
}

fn close_to_others(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            tracing::warn!(path = %path.display(), "this file was open to others; its mode is now 0600");
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn reason_of(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "this user may not write to it".into(),
        io::ErrorKind::ReadOnlyFilesystem => "it lies on a read-only file system".into(),
        io::ErrorKind::NotADirectory => "a part of its path is not a folder".into(),
        _ => e.to_string(),
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// What a connection is for.
#[derive(Clone, Copy)]
struct Access {
    writes: bool,
    busy: Duration,
    /// How much of the file it keeps.
    cache: MiB,
}

type MiB = u64;

/// Room for the upper pages of the indexes, which every look-up passes: a hundredth of the file.
fn cache_for(path: &Path) -> MiB {
    let file = fs::metadata(path).map_or(0, |meta| meta.len());
    (file / 100 / (1 << 20)).clamp(8, 64)
}

fn pool(path: &Path, size: u32, access: Access) -> Result<Pool<SqliteConnectionManager>, Fault> {
    // No CREATE: the file was made with its rights. No shared mutex: a connection has one user at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // The writer's first connection is opened here, so that a bad file is named by its own error, not by the pool's.
    let mut first = Connection::open_with_flags(path, flags).map_err(fault)?;
    set_up(&mut first, access).map_err(fault)?;
    check_journal(&first)?;
    let manager = SqliteConnectionManager::file(path).with_flags(flags).with_init(move |c| set_up(c, access));
    Pool::builder()
        .max_size(size)
        .test_on_check_out(false)
        // A connection is never replaced: the writer's data version means something on its own connection only.
        .idle_timeout(None)
        .max_lifetime(None)
        .connection_timeout(BUSY)
        .build(manager)
        .map_err(pool_fault)
}

/// SQLite does not fail where it cannot have a write-ahead log (a network file system); it goes on without. We do not.
fn check_journal(connection: &Connection) -> Result<(), Fault> {
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(fault)?;
    if mode == "wal" { Ok(()) } else { Err(Fault::broken("its file system has no shared memory for a write-ahead log; put it on a local disk")) }
}

fn set_up(connection: &mut Connection, Access { writes, busy, cache }: Access) -> rusqlite::Result<()> {
    connection.busy_timeout(busy)?;
    if writes {
        connection.execute_batch("PRAGMA journal_mode = WAL;")?;
    }
    connection.execute_batch(&format!(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA query_only = {};
         PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 16777216; PRAGMA cache_size = -{};",
        !writes,
        cache * 1024
    ))?;
    connection.set_prepared_statement_cache_capacity(256);
    // Without this a database that was ever ANALYZEd re-plans every prepared statement at every new binding.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    Ok(())
}

// The order of the fields matters: the connection goes home before the turn does.
pub(super) struct Conn {
    connection: PooledConnection<SqliteConnectionManager>,
    open: bool,
    /// The connection stands at `synchronous=NORMAL`.
    relaxed: bool,
    watch: Arc<Watch>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Conn {
    fn execute(&self, sql: &'static str) -> Result<(), Fault> {
        self.connection.prepare_cached(sql).and_then(|mut st| st.execute([])).map(|_| ()).map_err(|e| self.failed(e))
    }

    /// Takes a turn at writing, and empties a log that has grown.
    fn tend(&mut self, wal_is_large: bool) -> Result<(), Fault> {
        // A turn at writing: it shows that one can be had, and what others have written. Only when a write has failed
        // before does it write: that costs a sync.
        self.begin(Mode::Write)?;
        if self.watch.failing.load(Ordering::Relaxed) {
            self.execute("UPDATE migrations SET applied_at = applied_at")?;
            self.commit()?;
            self.watch.failing.store(false, Ordering::Relaxed);
        } else {
            self.rollback();
        }
        if !wal_is_large {
            return Ok(());
        }
        // A reader that stays long (a backup) must not stop the writer: then this does what it can, and is tried again.
        self.connection.busy_timeout(Duration::from_millis(20)).map_err(fault)?;
        let done = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        self.connection.busy_timeout(BUSY).map_err(fault)?;
        done.map(|_| ()).map_err(fault)
    }

    /// Notes a failure that others should know of: the next writes will fail too.
    fn failed(&self, e: rusqlite::Error) -> Fault {
        use rusqlite::ErrorCode as Code;
        if matches!(e.sqlite_error_code(), Some(Code::DiskFull | Code::ReadOnly | Code::SystemIoFailure | Code::DatabaseCorrupt)) {
            self.watch.failing.store(true, Ordering::Relaxed);
        }
        fault(e)
    }
}

impl rusqlite::ToSql for Arg<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Arg::Int(Some(i)) => ToSqlOutput::from(*i),
            Arg::Text(Some(s)) => ToSqlOutput::Borrowed(ValueRef::Text(s.as_bytes())),
            Arg::Bytes(Some(b)) => ToSqlOutput::Borrowed(ValueRef::Blob(b)),
            Arg::Uuid(Some(u)) => ToSqlOutput::Borrowed(ValueRef::Blob(u.as_bytes())),
            _ => ToSqlOutput::Borrowed(ValueRef::Null),
        })
    }
}

impl Driver for Conn {
    fn begin(&mut self, mode: Mode) -> Result<(), Fault> {
        if mode == Mode::Glance {
            return Ok(());
        }
        if mode == Mode::Read {
            self.execute("BEGIN DEFERRED")?;
            self.open = true;
            return Ok(());
        }
        if mode == Mode::Relaxed {
            self.connection.execute_batch("PRAGMA synchronous = NORMAL").map_err(fault)?;
            self.relaxed = true;
        }
        self.execute("BEGIN IMMEDIATE")?;
        self.open = true;
        // Behind the lock: from here to COMMIT nobody else can write.
        self.watch.look_at_version(&self.connection)
    }

    fn run(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, Fault> {
        let mut st = self.connection.prepare_cached(sql).map_err(fault)?;
        st.execute(rusqlite::params_from_iter(args)).map(|n| n as u64).map_err(|e| self.failed(e))
    }

    fn run_each(&mut self, sql: &'static str, batch: &[Vec<Arg<'_>>]) -> Result<u64, Fault> {
        let mut st = self.connection.prepare_cached(sql).map_err(fault)?;
        let mut changed = 0;
        for args in batch {
            changed += st.execute(rusqlite::params_from_iter(args)).map_err(|e| self.failed(e))? as u64;
        }
        Ok(changed)
    }

    fn query(&mut self, sql: &'static str, args: &[Arg<'_>], each: &mut dyn FnMut(&Row<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        let mut st = self.connection.prepare_cached(sql).map_err(fault)?;
        let mut rows = st.query(rusqlite::params_from_iter(args)).map_err(fault)?;
        while let Some(row) = rows.next().map_err(fault)? {
            each(&Row(Raw::Sqlite(row)))?;
        }
        Ok(())
    }

    fn batch(&mut self, sql: &str) -> Result<(), Fault> {
        self.connection.execute_batch(&in_own_words(sql)).map_err(fault)
    }

    fn commit(&mut self) -> Result<(), Fault> {
        if !self.open {
            return Ok(());
        }
        self.execute("COMMIT")?;
        self.open = false;
        Ok(())
    }

    fn rollback(&mut self) {
        // SQLite rolls some failed transactions back by itself.
        if !self.connection.is_autocommit() && self.connection.execute_batch("ROLLBACK").is_err() {
            tracing::error!("a transaction could not be rolled back");
        }
        self.open = false;
    }

    fn has_table(&mut self, name: &str) -> Result<bool, Fault> {
        self.connection.table_exists(None, name).map_err(fault)
    }
}

// A closure that panicked must not hand back a connection with an open transaction.
impl Drop for Conn {
    fn drop(&mut self) {
        if self.open {
            self.rollback();
        }
        if self.relaxed && self.connection.execute_batch("PRAGMA synchronous = FULL").is_err() {
            // FULL is what the next borrower must find.
            self.watch.failing.store(true, Ordering::Relaxed);
            tracing::error!("the writer could not be set back to synchronous=FULL");
        }
    }
}

/// The common DDL in SQLite's words: STRICT tables know INTEGER, TEXT and BLOB.
fn in_own_words(ddl: &str) -> String {
    let mut out = String::with_capacity(ddl.len() + 64);
    let without_comments: String = ddl.lines().map(|line| line.split("--").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    for statement in without_comments.split_inclusive(';') {
        let statement = statement.replace("BIGINT", "INTEGER").replace("BYTEA", "BLOB").replace("UUID", "BLOB");
        match statement.strip_suffix(");") {
            Some(head) if head.trim_start().starts_with("CREATE TABLE") => {
                out.push_str(head);
                out.push_str(") STRICT;");
            }
            _ => out.push_str(&statement),
        }
    }
    out
}

fn pool_fault(e: r2d2::Error) -> Fault {
    Fault::unavailable(format!("no connection: {e}"))
}

pub(super) fn fault(e: rusqlite::Error) -> Fault {
    use rusqlite::ErrorCode as Code;
    match e.sqlite_error_code() {
        Some(Code::NotADatabase) => Fault::broken("it is not a SQLite database"),
        Some(Code::DatabaseCorrupt) => Fault::unavailable("it is damaged (SQLITE_CORRUPT); restore a backup"),
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Fault::unavailable("another process holds its lock"),
        Some(Code::DiskFull) => Fault::unavailable("the disk is full"),
        Some(Code::ReadOnly) => Fault::unavailable("it is read-only"),
        Some(Code::CannotOpen | Code::SystemIoFailure | Code::PermissionDenied | Code::OutOfMemory) => Fault::unavailable(e.to_string()),
        _ => Fault::broken(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ddl_becomes_strict_in_sqlites_own_words() {
        let own = in_own_words("CREATE TABLE t (\n  -- a UUID; really\n  id UUID NOT NULL,\n  at BIGINT\n);\nCREATE INDEX i ON t (at);");
        assert!(own.contains("id BLOB NOT NULL") && own.contains("at INTEGER") && own.contains(") STRICT;"));
        assert!(!own.contains("really"));
        assert!(own.trim_end().ends_with("CREATE INDEX i ON t (at);"));
    }
}
