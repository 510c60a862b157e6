//! A copy of the database as of one moment, while others go on writing.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Fault;
use super::sqlite::{BUSY, fault, reason_of, with_suffix};
use crate::chance::Chance;

/// Copies the database at `from` to the new file `to` (0600), as of one moment, while others go on writing.
///
/// The copy appears whole or not at all: it is written beside its place, synced, and then renamed. `step` hears the
/// pages that are left and the pages in all.
///
/// # Errors
/// `to` exists already, or either file cannot be used.
pub fn backup(from: &Path, to: &Path, mut step: impl FnMut(u64, u64)) -> Result<(), Fault> {
    if to.exists() {
        return Err(Fault::broken(format!("{} exists already", to.display())));
    }
    // A name that nobody can have waited for, and a file that is new: never one that somebody else put there.
    let partial = with_suffix(to, &format!(".{:016x}.partial", u64::from_be_bytes(Chance::System.bytes())));
    let made = copy(from, &partial, &mut step).and_then(|()| {
        let settle = || -> io::Result<()> {
            fs::File::open(&partial)?.sync_all()?;
            // A hard link refuses to replace a file that appeared meanwhile; a rename would not.
            fs::hard_link(&partial, to)?;
            let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(folder)?.sync_all()
        };
        settle().map_err(|e| Fault::broken(format!("{}: {}", to.display(), reason_of(&e))))
    });
    let _ = fs::remove_file(&partial);
    made
}

fn copy(from: &Path, to: &Path, step: &mut impl FnMut(u64, u64)) -> Result<(), Fault> {
    let named = |e: io::Error| Fault::broken(format!("{}: {}", to.display(), reason_of(&e)));
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(named)?;
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(fault)?;
    source.busy_timeout(BUSY).map_err(fault)?;
    // The open snapshot makes all steps copy one moment; without it every write by the server would start the copy again.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").map_err(fault)?;
    let mut target = Connection::open(to).map_err(fault)?;
    let copy = rusqlite::backup::Backup::new(&source, &mut target).map_err(fault)?;
    loop {
        let state = copy.step(1000).map_err(fault)?;
        let progress = copy.progress();
        step(u64::try_from(progress.remaining).unwrap_or(0), u64::try_from(progress.pagecount).unwrap_or(0));
        match state {
            rusqlite::backup::StepResult::Done => return Ok(()),
            rusqlite::backup::StepResult::More => {}
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
