//! Carrying a file over to a server: every row of every table, all or nothing.
//!
//! The file is locked first, so that no server writes it meanwhile; the other side must be empty. Schema and rows go over in
//! one transaction, which commits only after all rows were read back and gave the same counts and checksums. Which tables
//! there are, and what their columns hold, is asked of the databases: a migration that adds one need not be told here.

use std::path::Path;

use deadpool_postgres::Object;
use futures_util::TryStreamExt;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::migrate::{OWN_TABLE, STEPS};
use super::postgres::{self, Server};
use super::sqlite::fault as file_fault;
use super::value::Raw;
use super::{Arg, Fault, Row};

/// A table that was carried over.
#[derive(Debug, PartialEq, Eq)]
pub struct Carried {
    /// Its name.
    pub table: String,
    /// How many rows it has, there as here.
    pub rows: u64,
    /// The sum of the rows' SHA-256, cut to 128 bits: the same in any order.
    pub checksum: u128,
}

/// Carries the database of the file at `from` over to the empty database `to`. `step` hears the table, how many rows have
/// gone over or been read back, and how many that will be in all.
///
/// # Errors
/// The file is in use or of another version, the other side is not empty, or anything fails: then nothing has changed.
pub async fn carry(from: &Path, to: &Server, mut step: impl FnMut(&str, u64, u64)) -> Result<Vec<Carried>, Fault> {
    let file = lock(from)?;
    let client = postgres::connect(to).await?;
    client.batch_execute(postgres::BEGIN_MIGRATION).await.map_err(postgres::fault)?;
    client.batch_execute("SET LOCAL idle_in_transaction_session_timeout = 0").await.map_err(postgres::fault)?;
    refuse_what_is_not_empty(&client).await?;
    for sql in [OWN_TABLE].into_iter().chain(STEPS.iter().map(|(_, sql)| *sql)) {
        client.batch_execute(sql).await.map_err(postgres::fault)?;
    }

    let tables = tables_of(&file)?;
    let all: u64 = tables.iter().map(|name| count(&file, name)).sum::<Result<u64, Fault>>()? * 2;
    let (mut done, mut carried) = (0, Vec::new());
    for name in tables {
        let mut tick = |rows: u64| {
            done += rows;
            step(&name, done, all);
        };
        let table = Table::of(&client, &name).await?;
        let sent = table.send(&file, &client, &mut tick).await?;
        let arrived = table.read_back(&client, &mut tick).await?;
        if sent != arrived {
            let (rows, back) = (sent.rows, arrived.rows);
            return Err(Fault::broken(format!("{name} did not arrive as it was sent: {rows} rows went, {back} came; nothing was carried over")));
        }
        carried.push(sent);
    }
    client.batch_execute("COMMIT").await.map_err(postgres::fault)?;
    // The planner should know the tables before the first request; if this fails, autovacuum does it later.
    let _ = client.batch_execute("ANALYZE").await;
    Ok(carried)
}

/// Opens the file for this process alone, as a server that has it open would not allow.
fn lock(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(path, flags).map_err(file_fault)?;
    let locked = file.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE;");
    locked.map_err(|e| match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy) => Fault::unavailable("a server or another program has the file open; stop it first"),
        _ => file_fault(e),
    })?;
    let known: Vec<(String, String)> = STEPS.iter().map(|(name, sql)| (name.to_string(), sql.to_string())).collect();
    let applied = || -> rusqlite::Result<Vec<(String, String)>> {
        file.prepare("SELECT name, sql FROM migrations ORDER BY name")?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    if applied().map_err(file_fault)? != known {
        return Err(Fault::broken("its schema is not the one of this version; run `holdfast purge` once with this version, then try again"));
    }
    Ok(file)
}

async fn refuse_what_is_not_empty(client: &Object) -> Result<(), Fault> {
    let sql = "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'";
    let tables: i64 = client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(postgres::fault)?;
    if tables == 0 { Ok(()) } else { Err(Fault::broken("the target is not empty; give Holdfast a new database")) }
}

/// The tables in the order in which they were made: whatever refers to another one comes after it.
fn tables_of(file: &Connection) -> Result<Vec<String>, Fault> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*' ORDER BY rowid";
    let mut tables = file.prepare(sql).map_err(file_fault)?;
    tables.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(file_fault)
}

fn count(file: &Connection, table: &str) -> Result<u64, Fault> {
    file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).map(|n| n.unsigned_abs()).map_err(file_fault)
}

struct Table {
    name: String,
    columns: Vec<String>,
    types: Vec<Type>,
}

/// Rows between two words to whoever watches.
const BATCH: u64 = 1000;

impl Table {
    async fn of(client: &Object, name: &str) -> Result<Self, Fault> {
        let statement = client.prepare(&format!("SELECT * FROM {name}")).await.map_err(postgres::fault)?;
        let columns = statement.columns().iter().map(|column| format!("\"{}\"", column.name())).collect();
        Ok(Table { name: name.into(), columns, types: statement.columns().iter().map(|column| column.type_().clone()).collect() })
    }

    fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.columns.join(", "), self.name)
    }

    async fn send(&self, file: &Connection, client: &Object, tick: &mut impl FnMut(u64)) -> Result<Carried, Fault> {
        let copy = format!("COPY {} ({}) FROM STDIN BINARY", self.name, self.columns.join(", "));
        let sink = client.copy_in(&copy).await.map_err(postgres::fault)?;
        let mut writer = Box::pin(BinaryCopyInWriter::new(sink, &self.types));
        let mut select = file.prepare(&self.select()).map_err(file_fault)?;
        let mut rows = select.query([]).map_err(file_fault)?;
        let mut sum = Sum::default();
        while let Some(row) = rows.next().map_err(file_fault)? {
            let cells: Vec<Arg<'_>> =
                self.types.iter().enumerate().map(|(i, kind)| cell(kind, row.get_ref(i).map_err(file_fault)?)).collect::<Result<_, _>>()?;
            sum.add(&cells);
            let cells: Vec<&(dyn ToSql + Sync)> = cells.iter().map(|cell| cell as &(dyn ToSql + Sync)).collect();
            writer.as_mut().write(&cells).await.map_err(postgres::fault)?;
            sum.tell(tick);
        }
        writer.as_mut().finish().await.map_err(postgres::fault)?;
        Ok(sum.of(self, tick))
    }

    async fn read_back(&self, client: &Object, tick: &mut impl FnMut(u64)) -> Result<Carried, Fault> {
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut rows = Box::pin(client.query_raw(&self.select(), none).await.map_err(postgres::fault)?);
        let mut sum = Sum::default();
        while let Some(row) = rows.try_next().await.map_err(postgres::fault)? {
            let row = Row(Raw::Postgres(&row));
            let cells: Vec<Owned> = self.types.iter().enumerate().map(|(i, kind)| Owned::read(&row, i, kind)).collect::<Result<_, _>>()?;
            sum.add(&cells.iter().map(Owned::lend).collect::<Vec<_>>());
            sum.tell(tick);
        }
        Ok(sum.of(self, tick))
    }
}

/// A value of the file as the column over there takes it.
fn cell<'a>(kind: &Type, value: ValueRef<'a>) -> Result<Arg<'a>, Fault> {
    let wrong = || Fault::broken(format!("a value of the file does not fit a column of type {kind}"));
    Ok(match (kind, value) {
        (&Type::INT8, ValueRef::Integer(n)) => Arg::Int(Some(n)),
        (&Type::INT8, ValueRef::Null) => Arg::Int(None),
        (&Type::TEXT, ValueRef::Text(text)) => Arg::Text(Some(std::str::from_utf8(text).map_err(|_| wrong())?)),
        (&Type::TEXT, ValueRef::Null) => Arg::Text(None),
        (&Type::BYTEA, ValueRef::Blob(bytes)) => Arg::Bytes(Some(bytes)),
        (&Type::BYTEA, ValueRef::Null) => Arg::Bytes(None),
        (&Type::UUID, ValueRef::Blob(bytes)) => Arg::Uuid(Some(Uuid::from_slice(bytes).map_err(|_| wrong())?)),
        (&Type::UUID, ValueRef::Null) => Arg::Uuid(None),
        _ => return Err(wrong()),
    })
}

/// A value that came back.
enum Owned {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Uuid(Option<Uuid>),
}

impl Owned {
    fn read(row: &Row<'_>, i: usize, kind: &Type) -> Result<Self, Fault> {
        Ok(match *kind {
            Type::INT8 => Owned::Int(row.get(i)?),
            Type::TEXT => Owned::Text(row.get(i)?),
            Type::UUID => Owned::Uuid(row.get(i)?),
            _ => Owned::Bytes(row.get(i)?),
        })
    }

    fn lend(&self) -> Arg<'_> {
        match self {
            Owned::Int(n) => Arg::Int(*n),
            Owned::Text(text) => Arg::Text(text.as_deref()),
            Owned::Bytes(bytes) => Arg::Bytes(bytes.as_deref()),
            Owned::Uuid(id) => Arg::Uuid(*id),
        }
    }
}

/// Counts rows and adds their digests up.
#[derive(Default)]
struct Sum {
    rows: u64,
    digests: u128,
}

impl Sum {
    fn add(&mut self, cells: &[Arg<'_>]) {
        let mut digest = Sha256::new();
        for cell in cells {
            let number;
            let bytes: Option<&[u8]> = match cell {
                Arg::Int(n) => {
                    number = n.unwrap_or_default().to_be_bytes();
                    n.map(|_| number.as_slice())
                }
                Arg::Text(text) => text.map(str::as_bytes),
                Arg::Bytes(bytes) => *bytes,
                Arg::Uuid(id) => id.as_ref().map(|id| id.as_bytes().as_slice()),
            };
            // The length first, and none of it for NULL: no two rows are spelled alike.
            digest.update(bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_be_bytes());
            digest.update(bytes.unwrap_or_default());
        }
        let mut first = [0; 16];
        first.copy_from_slice(&digest.finalize()[..16]);
        self.digests = self.digests.wrapping_add(u128::from_be_bytes(first));
        self.rows += 1;
    }

    fn tell(&self, tick: &mut impl FnMut(u64)) {
        if self.rows.is_multiple_of(BATCH) {
            tick(BATCH);
        }
    }

    fn of(self, table: &Table, tick: &mut impl FnMut(u64)) -> Carried {
        tick(self.rows % BATCH);
        Carried { table: table.name.clone(), rows: self.rows, checksum: self.digests }
    }
}
