//! The database under a test: a file of its own, or a schema of its own in a Postgres server.
//!
//! The sentences are compiled twice: as `api`, which runs them on SQLite, and as `api_postgres`. Nothing but this page knows
//! the difference.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::types::Value;
use tempfile::TempDir;

use crate::cluster;

/// Whether these sentences run on Postgres.
pub const ON_POSTGRES: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"api_postgres");

/// A database that nobody else uses.
pub struct Database {
    place: Place,
    // Goes when the test is over.
    _folder: TempDir,
}

#[derive(Clone)]
enum Place {
    File(PathBuf),
    Schema(String),
}

impl Database {
    /// An empty one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = match ON_POSTGRES {
            false => Place::File(folder.path().join("holdfast.db")),
            true => Place::Schema(new_schema(cluster::common())),
        };
        Database { place, _folder: folder }
    }

    /// The whole of a server that is the test's own.
    #[allow(dead_code)] // For `../api_postgres`.
    pub fn at(url: &str) -> Self {
        Database { place: Place::Schema(url.into()), _folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// What `DATABASE_URL` is to be.
    pub fn url(&self) -> String {
        match &self.place {
            Place::File(path) => format!("sqlite:{}", path.display()),
            Place::Schema(url) => url.clone(),
        }
    }

    /// The file, for what only a file can suffer.
    #[track_caller]
    pub fn file(&self) -> PathBuf {
        match &self.place {
            Place::File(path) => path.clone(),
            Place::Schema(_) => panic!("there is no file"),
        }
    }

    /// Another connection, as another process would have it, to be opened on a thread that serves nobody.
    pub fn by_hand_later(&self) -> impl FnOnce() -> Hand + Send + 'static {
        let place = self.place.clone();
        move || match place {
            Place::File(path) => Hand::File(rusqlite::Connection::open(path).expect("the database opens")),
            Place::Schema(url) => Hand::server(&url),
        }
    }

    /// Does something on a connection of its own, also where the calling thread serves.
    pub fn by_hand<T: Send>(&self, deed: impl FnOnce(&Hand) -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| deed(&self.by_hand_later()())).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Whether these bytes stand anywhere in it.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let is_in = |all: &[u8]| all.windows(bytes.len()).any(|window| window == bytes);
        match &self.place {
            Place::File(path) => {
                let folder = path.parent().expect("a folder");
                let files = std::fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path());
                files.filter(|path| path.is_file()).any(|path| is_in(&std::fs::read(path).expect("the file")))
            }
            Place::Schema(_) => self.by_hand(|hand| {
                let tables = hand.rows("SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()");
                let names = tables.into_iter().flatten().map(|name| if let Value::Text(name) = name { name } else { panic!("no name") });
                let cells = names.flat_map(|name| hand.rows(&format!("SELECT * FROM {name}"))).flatten();
                cells.into_iter().any(|cell| match cell {
                    Value::Text(text) => is_in(text.as_bytes()),
                    Value::Blob(bytes) => is_in(&bytes),
                    _ => false,
                })
            }),
        }
    }
}

fn new_schema(server: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    std::thread::scope(|scope| scope.spawn(|| Hand::server(server).execute(&format!("CREATE SCHEMA {name}"))).join().expect("a schema is made"));
    let joint = if server.contains('?') { '&' } else { '?' };
    format!("{server}{joint}options=-csearch_path%3D{name}")
}

/// A connection to the database itself.
pub enum Hand {
    File(rusqlite::Connection),
    Server { runtime: tokio::runtime::Runtime, client: tokio_postgres::Client },
}

impl Hand {
    /// To the server at this URL.
    pub fn server(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("the server answers");
            tokio::spawn(connection);
            client
        });
        Hand::Server { runtime, client }
    }

    /// Runs statements.
    pub fn execute(&self, sql: &str) {
        match self {
            Hand::File(connection) => connection.execute_batch(sql).expect("the statement runs"),
            Hand::Server { runtime, client } => runtime.block_on(client.batch_execute(&in_its_words(sql))).expect("the statement runs"),
        }
    }

    /// Reads rows; ids come as bytes.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        match self {
            Hand::File(connection) => {
                let mut statement = connection.prepare_cached(sql).expect("SQL");
                let columns = statement.column_count();
                let rows = statement.query_map([], |row| (0..columns).map(|i| row.get(i)).collect());
                rows.expect("rows").collect::<Result<_, _>>().expect("rows")
            }
            Hand::Server { runtime, client } => {
                let rows = runtime.block_on(client.query(&in_its_words(sql), &[])).expect("rows");
                rows.iter().map(|row| (0..row.len()).map(|i| cell(row, i)).collect()).collect()
            }
        }
    }

    /// Reads one number.
    pub fn number(&self, sql: &str) -> i64 {
        match self.rows(sql).as_slice() {
            [row] => match row.as_slice() {
                [Value::Integer(number)] => *number,
                other => panic!("{other:?} is no number"),
            },
            other => panic!("{} rows", other.len()),
        }
    }
}

fn cell(row: &tokio_postgres::Row, i: usize) -> Value {
    use tokio_postgres::types::Type;
    let value = match *row.columns()[i].type_() {
        Type::INT8 => row.get::<_, Option<i64>>(i).map(Value::Integer),
        Type::INT4 => row.get::<_, Option<i32>>(i).map(|n| Value::Integer(n.into())),
        Type::BOOL => row.get::<_, Option<bool>>(i).map(|yes| Value::Integer(yes.into())),
        Type::BYTEA => row.get::<_, Option<Vec<u8>>>(i).map(Value::Blob),
        Type::UUID => row.get::<_, Option<uuid::Uuid>>(i).map(|id| Value::Blob(id.as_bytes().to_vec())),
        _ => row.get::<_, Option<String>>(i).map(Value::Text),
    };
    value.unwrap_or(Value::Null)
}

/// What the tests write in SQLite's words: `x'…'`, which is an id when it is 16 bytes long, and `instr`.
fn in_its_words(sql: &str) -> String {
    let sql = sql.replace("instr(", "strpos(");
    let mut parts = sql.split("x'");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (hex, rest) = part.split_once('\'').expect("a closed literal");
        out += &if hex.len() == 32 { format!("'{hex}'::uuid{rest}") } else { format!("'\\x{hex}'::bytea{rest}") };
    }
    out
}
