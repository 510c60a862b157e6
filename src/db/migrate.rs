//! Migrations: one portable set, run in order, each remembered with its whole text.
//!
//! Programs that start together take turns, and the second finds nothing left to do. A text that changed after it was applied, or a step that this program does not know (the
//! database was written by a newer one), stops the start with one line: guessing would risk people's accounts.

use super::{Db, Fault};

/// Every step, in order. Append only: an applied text never changes.
pub(super) const STEPS: &[(&str, &str)] = &[
    ("0001_sessions", include_str!("../../migrations/0001_sessions.sql")),
    ("0002_leases", include_str!("../../migrations/0002_leases.sql")),
    ("0003_letters", include_str!("../../migrations/0003_letters.sql")),
    ("0004_guessing", include_str!("../../migrations/0004_guessing.sql")),
    ("0005_retired_tokens", include_str!("../../migrations/0005_retired_tokens.sql")),
];

/// Where the steps themselves are remembered.
pub(super) const OWN_TABLE: &str = "CREATE TABLE IF NOT EXISTS migrations (name TEXT NOT NULL PRIMARY KEY, sql TEXT NOT NULL, applied_at BIGINT NOT NULL);";

/// Applies what is missing.
pub(super) async fn run(db: &Db) -> Result<(), Fault> {
    // An up-to-date database is only read, so that starting needs no turn at the writer.
    if db.read(|tx| applied(tx).map(|done| done.len() == STEPS.len())).await? {
        return Ok(());
    }
    db.migrate(|tx| {
        tx.batch(OWN_TABLE)?;
        let done = applied(tx)?.len();
        for (name, sql) in &STEPS[done..] {
            tx.batch(sql)?;
            let now = tx.now();
            tx.run("INSERT INTO migrations (name, sql, applied_at) VALUES (?1, ?2, ?3)", (*name, *sql, now))?;
        }
        Ok(())
    })
    .await
}

/// Lists what was applied, after checking that it is a beginning of [`STEPS`].
fn applied(tx: &mut super::Tx) -> Result<Vec<(String, String)>, Fault> {
    if !tx.driver.has_table("migrations")? {
        return Ok(Vec::new());
    }
    let mut done: Vec<(String, String)> = tx.rows("SELECT name, sql FROM migrations", ())?;
    done.sort();
    for (i, (name, sql)) in done.iter().enumerate() {
        match STEPS.get(i) {
            Some((known, text)) if known == name && text == sql => {}
            Some((known, _)) if known == name => {
                return Err(Fault::broken(format!("its migration {name} differs from this program's; use the version that made it")));
            }
            _ => return Err(Fault::broken(format!("it was written by a newer Holdfast (migration {name}); use that version or a later one"))),
        }
    }
    Ok(done)
}
