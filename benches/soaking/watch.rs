//! What the server takes of the machine, measured all the time: memory, open files, the write-ahead log.
//!
//! *Flat* means: the most of the last third is not above the most of the middle third by more than a margin. The first third
//! is for what fills once and stays: the page caches of SQLite, the arenas of the allocator, known sessions.

use std::fs;
use std::path::PathBuf;

use crate::database::Hand;

const MIB: u64 = 1 << 20;

/// Where the write-ahead log is.
pub enum Log {
    /// SQLite's.
    File(PathBuf),
    /// Postgres's.
    Server(Box<Hand>),
}

impl Log {
    /// How many bytes it takes.
    pub fn size(&self) -> u64 {
        match self {
            Log::File(path) => fs::metadata(path).map_or(0, |file| file.len()),
            Log::Server(hand) => u64::try_from(hand.number("SELECT CAST(sum(size) AS BIGINT) FROM pg_ls_waldir()")).unwrap_or(0),
        }
    }
}

/// One thing that is measured again and again, and how much of it is allowed.
pub struct Course {
    what: &'static str,
    unit: u64,
    /// How far the last third may be above the middle third.
    margin: u64,
    /// How much there may ever be.
    limit: Option<u64>,
    seen: Vec<u64>,
}

impl Course {
    /// The resident memory of all instances.
    pub fn of_memory(is_long: bool) -> Self {
        Course { what: "memory (RSS), MiB", unit: MIB, margin: if is_long { 8 * MIB } else { 24 * MIB }, limit: None, seen: Vec::new() }
    }

    /// The write-ahead log. SQLite's is cut when it is over 64 MiB; Postgres's server cuts its own as it is told to.
    pub fn of_log(log: &Log, is_long: bool) -> Self {
        let limit = matches!(log, Log::File(_)).then_some(64 * MIB);
        Course { what: "write-ahead log, MiB", unit: MIB, margin: if is_long { 16 * MIB } else { 64 * MIB }, limit, seen: Vec::new() }
    }

    /// Open files and connections of all instances.
    pub fn of_files(is_long: bool) -> Self {
        Course { what: "open files", unit: 1, margin: if is_long { 24 } else { 64 }, limit: None, seen: Vec::new() }
    }

    /// Notes what there is now.
    pub fn sees(&mut self, now: u64) {
        self.seen.push(now);
    }

    /// A line of the table.
    pub fn row(&self) -> String {
        let (first, most) = (self.seen.first().copied().unwrap_or(0), self.seen.iter().copied().max().unwrap_or(0));
        let thirds: Vec<String> = self.thirds().iter().map(|most| self.shown(*most)).collect();
        format!("| {} | {} | {} | {} |", self.what, self.shown(first), thirds.join(" | "), self.shown(most))
    }

    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        let [_, middle, last] = self.thirds();
        if last > middle + self.margin {
            return Some(format!("{} grows: {} in the middle third, {} in the last", self.what, self.shown(middle), self.shown(last)));
        }
        let most = self.seen.iter().copied().max().unwrap_or(0);
        let over = self.limit.filter(|limit| most > *limit)?;
        Some(format!("{}: {}, at most {} is promised", self.what, self.shown(most), self.shown(over)))
    }

    /// The most of each third.
    fn thirds(&self) -> [u64; 3] {
        let third = self.seen.len() / 3;
        let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
        [most(&self.seen[..third]), most(&self.seen[third..2 * third]), most(&self.seen[2 * third..])]
    }

    fn shown(&self, value: u64) -> String {
        if self.unit == 1 { value.to_string() } else { format!("{:.1}", value as f64 / self.unit as f64) }
    }
}
