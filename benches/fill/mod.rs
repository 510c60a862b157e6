//! Fills a database with users and sessions, fast.
//!
//! The product makes the empty database, so the schema is always its own. Then rows go in by SQL, in the order of their
//! keys as far as they have one, without a journal, and the indexes that are not part of a table are made afterwards.
//! Everything follows from the number of a row: session `n` has the token `token(n)` and belongs to the user `n % users`.

use std::path::Path;

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use holdfast::app::App;
use holdfast::chance::Chance;
use holdfast::clock::Clock;
use holdfast::config::{Config, Variables};
use holdfast::factor::password::{Cost, Memory, Password, PasswordHash};

/// The password of every user.
pub const PASSWORD: &str = "correct horse battery";

const AGENT: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// What to fill in.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The number of the first user and of the first session.
    pub first: u64,
    /// How many users.
    pub users: u64,
    /// How many live sessions.
    pub sessions: u64,
    /// How many ended sessions besides.
    pub ended: u64,
    /// How many days ago those ended.
    pub ended_days: i64,
    /// The idle timeout of the live ones, in seconds.
    pub idle_s: i64,
    /// How long the live ones have been silent, in seconds.
    pub silent_s: i64,
    /// The database has rows already and keeps its indexes.
    pub append: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { first: 0, users: 1, sessions: 1, ended: 0, ended_days: 1, idle_s: 7 * 86_400, silent_s: 600, append: false }
    }
}

/// The cookie of session `n`.
pub fn token(n: u64) -> [u8; 32] {
    Sha256::new_with_prefix(b"a token for the benchmark").chain_update(n.to_be_bytes()).finalize().into()
}

/// The address of user `n`.
pub fn email(n: u64) -> String {
    format!("user-{n:012}@example.com")
}

/// Opens the application on a database.
pub async fn open(path: &Path) -> App {
    let url = format!("sqlite:{}", path.display());
    let config = Config::read(&Variables::of(&[("DATABASE_URL", &url)])).expect("the defaults are right");
    App::open(config, Clock::System, Chance::System).await.expect("the database opens")
}

/// Fills the database at `path`.
pub fn fill(path: &Path, plan: Plan) -> rusqlite::Result<()> {
    if !plan.append {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        drop(runtime.block_on(open(path)));
    }
    let mut db = Connection::open(path)?;
    db.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -2500000; PRAGMA temp_store = MEMORY;")?;
    let mut indexes = Vec::new();
    if !plan.append {
        db.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF;")?;
        indexes = db
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")?
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        for (name, _) in &indexes {
            db.execute_batch(&format!("DROP INDEX {name}"))?;
        }
    }
    rows(&mut db, plan)?;
    for (_, sql) in indexes {
        db.execute_batch(&sql)?;
    }
    let last = if plan.append { "PRAGMA wal_checkpoint(TRUNCATE)" } else { "PRAGMA locking_mode = NORMAL; PRAGMA journal_mode = WAL;" };
    db.execute_batch(last)?;
    db.close().map_err(|(_, e)| e)
}

fn rows(db: &mut Connection, plan: Plan) -> rusqlite::Result<()> {
    let now = Clock::System.now().0;
    let cost = Cost { memory_kib: 19_456, iterations: 2 };
    let hash = PasswordHash::of(&Password::typed(PASSWORD.into()), cost, &Chance::seeded(1), &mut Memory::default()).expect("a cost that Argon2 takes");

    let tx = db.transaction()?;
    let long_ago = now - 100 * DAY;
    {
        let mut user = tx.prepare(
            "INSERT INTO users (id, email, email_canonical, email_verified, name, role, password_hash, security_version, first_signed_in_at, created_at)
             VALUES (?1, ?2, ?2, 0, 'A Name', 'user', ?3, 0, ?4, ?4)",
        )?;
        let mut known = tx.prepare("INSERT INTO known_ips (user_id, network, last_seen_at) VALUES (?1, '127.0.0.1', ?2)")?;
        for n in plan.first..plan.first + plan.users {
            let id = id(long_ago, n);
            user.execute(params![id, email(n), hash.as_str(), long_ago])?;
            known.execute(params![id, now - DAY])?;
        }
        let mut session = tx.prepare(
            "INSERT INTO device_sessions (id, user_id, token_hash, created_at, authenticated_at, auth_methods, last_active_at, idle_timeout_ms,
                 expires_at, remember, ip, user_agent, device_name, device_type, new_ip, new_device, ended_at, ended_reason)
             VALUES (?1, ?2, ?3, ?4, ?4, 'password', ?5, ?6, ?7, 1, '127.0.0.1', ?8, 'Chrome on macOS', 'desktop', 0, 0, ?9, ?10)",
        )?;
        let all = plan.sessions + plan.ended;
        for i in 0..all {
            // The oldest first, as in life; the ended ones are the oldest.
            let ended = (i < plan.ended).then(|| now - plan.ended_days * DAY);
            let age = (12 * HOUR).max(plan.silent_s * 2000) as u64;
            let created = ended.unwrap_or(now) - (age - age / 2 * i / all) as i64;
            let last_active = ended.unwrap_or(now - plan.silent_s * 1000);
            // The live ones have the first numbers.
            let n = plan.first + if i < plan.ended { plan.sessions + i } else { i - plan.ended };
            let owner = id(long_ago, plan.first + (n - plan.first) % plan.users);
            let hash: [u8; 32] = Sha256::digest(token(n)).into();
            session.execute(params![
                id(created, n),
                owner,
                hash,
                created,
                last_active,
                plan.idle_s * 1000,
                created + 30 * DAY,
                AGENT,
                ended,
                ended.map(|_| "session_logged_out"),
            ])?;
        }
    }
    tx.commit()
}

/// A UUIDv7 of that moment.
fn id(ms: i64, n: u64) -> [u8; 16] {
    // The finalizer of splitmix64: spreads the number over all bits.
    let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let mut id = [0; 16];
    id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    id[6..8].copy_from_slice(&(0x7000 | (n & 0xfff) as u16).to_be_bytes());
    id[8..].copy_from_slice(&(x >> 2 | 1 << 63).to_be_bytes());
    id
}
