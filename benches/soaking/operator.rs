//! An operator at the command line, beside the running server: purges, backs up, and closes and opens an account.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Town;
use super::book::{Book, Dead};
use super::doors::{Ask, Broke, Doors};
use super::people::cookies_of;
use crate::database::Hand;
use crate::process::{PASSWORD, Place, integrity_of};

/// Within this time the server must know what the command line has ended.
const PROMISED: Duration = Duration::from_secs(1);
/// How often a command is tried that is put off because too many others write the same.
const TRIES: u32 = 3;

/// How backups are made.
pub enum Keeper {
    /// By `holdfast backup`.
    File,
    /// By PostgreSQL's own programs, in this folder.
    Server {
        /// Where they are.
        bin: PathBuf,
        /// The database.
        url: String,
    },
}

/// The operator.
pub struct Operator<'a> {
    place: &'a Place,
    keeper: Keeper,
    /// The token with which the account that is closed and opened is signed in.
    token: Option<String>,
    closed: bool,
    backups: u64,
    /// The newest backup, and how often the account had been closed when it was begun.
    newest: Option<(PathBuf, u64)>,
    doors: Doors,
    /// What the operator saw.
    pub book: Book,
}

const EMAIL: &str = "closed.and.opened@example.com";

impl<'a> Operator<'a> {
    /// Who works in this folder.
    pub fn new(place: &'a Place, keeper: Keeper) -> Self {
        Operator { place, keeper, token: None, closed: false, backups: 0, newest: None, doors: Doors::to(&[]), book: Book::default() }
    }

    /// Goes about the work, to the end of the day or of the server.
    pub fn live(&mut self, town: &Town) {
        self.doors = Doors::to(&town.addresses);
        let mut turn = 0;
        while !town.is_over() && !town.is_killed() {
            match turn % 4 {
                0 => drop(self.run("purge", &["purge"])),
                1 => self.back_up(),
                // Only a killed server breaks off here.
                _ => drop(self.close_and_open(town)),
            }
            turn += 1;
            town.pause(Duration::from_millis(300));
        }
    }

    /// Runs a command; whether it did what it was told. One that is put off, as a request is by a `503`, is tried again.
    fn run(&mut self, what: &'static str, args: &[&str]) -> bool {
        for _ in 0..TRIES {
            let begun = Instant::now();
            let done = self.place.run(args);
            self.book.took(what, begun.elapsed());
            self.book.counted(what);
            if done.code == Some(0) {
                return true;
            }
            if !done.stderr.contains("try again") {
                self.book.fault(format!("holdfast {}: {:?} {}", args.join(" "), done.code, done.stderr));
                return false;
            }
            self.book.counted("commands put off");
        }
        self.book.fault(format!("holdfast {} was put off {TRIES} times", args.join(" ")));
        false
    }

    fn back_up(&mut self) {
        self.backups += 1;
        let (name, closings) = (format!("backup-{}", self.backups), self.closings());
        let path = self.place.path(&name);
        match &self.keeper {
            Keeper::File => {
                self.run("backup", &["backup", &name]);
                let found = if path.exists() { integrity_of(&path) } else { "it is not there".into() };
                if found != "ok" {
                    self.book.fault(format!("{name}: {found}"));
                }
            }
            Keeper::Server { bin, url } => {
                let done = Command::new(bin.join("pg_dump")).args(["--format=custom", "--file"]).arg(&path).arg(url).output();
                self.book.counted("pg_dump");
                if let Some(trouble) = trouble_of(done) {
                    self.book.fault(format!("pg_dump: {trouble}"));
                }
            }
        }
        if let Some((old, _)) = self.newest.replace((path, closings)) {
            let _ = std::fs::remove_file(old);
        }
    }

    fn closings(&self) -> u64 {
        self.book.events.get("account_disabled").copied().unwrap_or(0)
    }

    fn ask(&mut self, town: &Town, door: usize, ask: &Ask) -> Result<(u16, String, Option<String>), Broke> {
        loop {
            if let Some(reply) = self.doors.ask_at(door, town, &mut self.book, ask)? {
                return Ok((reply.status, reply.code(), cookies_of(&reply).0));
            }
        }
    }

    fn sign_in(&mut self, town: &Town) -> Result<(u16, String), Broke> {
        let (status, code, token) = self.ask(town, 0, &Ask::new("sign-in", "POST", "/login").saying(json!({"email": EMAIL, "password": PASSWORD})))?;
        match status {
            200 => self.book.happened("signed_in"),
            _ => self.book.happened("sign_in_failed"),
        }
        self.token = token;
        Ok((status, code))
    }

    fn close_and_open(&mut self, town: &Town) -> Result<(), Broke> {
        if self.closed && !self.open() {
            return Ok(());
        }
        if self.token.is_none() && self.sign_in(town)?.0 == 401 {
            let (status, code, token) = self.ask(town, 0, &Ask::new("sign-up", "POST", "/signup").saying(json!({"email": EMAIL, "password": PASSWORD})))?;
            match status {
                201 => ["signed_up", "signed_in"].into_iter().for_each(|kind| self.book.happened(kind)),
                _ => self.book.fault(format!("sign-up: {status} {code}")),
            }
            self.token = token;
        }
        let Some(token) = self.token.clone() else { return Ok(()) };
        let since = Instant::now();
        if !self.close() {
            return Ok(());
        }
        self.token = None;
        let dead = Dead { token, code: "session_revoked", since };
        for door in 0..self.doors.count() {
            self.is_noticed(town, door, &dead)?;
        }
        self.book.dead.push(dead);
        let refused = self.sign_in(town)?;
        if refused != (401, "invalid_credentials".into()) {
            self.book.fault(format!("a closed account is signed in to: {refused:?}"));
        }
        if !self.open() {
            return Ok(());
        }
        match self.sign_in(town)? {
            (200, _) => Ok(()),
            other => {
                self.book.fault(format!("an opened account is not signed in to: {other:?}"));
                Ok(())
            }
        }
    }

    fn close(&mut self) -> bool {
        let done = self.run("user disable", &["user", "disable", EMAIL]);
        if done {
            self.closed = true;
            ["account_disabled", "sessions_revoked"].into_iter().for_each(|kind| self.book.happened(kind));
        }
        done
    }

    fn open(&mut self) -> bool {
        let done = self.run("user enable", &["user", "enable", EMAIL]);
        if done {
            self.closed = false;
            self.book.happened("account_enabled");
        }
        done
    }

    /// Asks until an instance knows; whoever is let in by a request that began after the promised time is a fault.
    fn is_noticed(&mut self, town: &Town, door: usize, dead: &Dead) -> Result<(), Broke> {
        let closed = Instant::now();
        loop {
            let asked = closed.elapsed();
            let (status, code, _) = self.ask(town, door, &Ask::new("check", "GET", "/check").holding(&dead.token))?;
            match status {
                401 if dead.may_hear(&code, town.retention) => {
                    self.book.took("until the command line's word counts", asked);
                    return Ok(());
                }
                204 if asked <= PROMISED => town.pause(Duration::from_millis(5)),
                _ => {
                    self.book.fault(format!("{asked:?} after its account was closed a session hears {status} {code}"));
                    return Ok(());
                }
            }
        }
    }

    /// Checks again that what was closed is closed, and what was ended is dead.
    pub fn look_back(&mut self, town: &Town) {
        self.doors = Doors::to(&town.addresses);
        for dead in self.book.dead.clone() {
            if let Ok((status, code, _)) = self.ask(town, 0, &Ask::new("a dead token", "GET", "/check").holding(&dead.token))
                && !(status == 401 && dead.may_hear(&code, town.retention))
            {
                self.book.fault(format!("a session of a closed account hears {status} {code}"));
            }
        }
        let wanted = if self.closed || self.closings() == 0 { 401 } else { 200 };
        if let Ok((status, code)) = self.sign_in(town)
            && status != wanted
        {
            self.book.fault(format!("looking back on the account that was closed and opened: {status} {code}"));
        }
    }

    /// Reads the newest backup: what was acknowledged before it was begun is in it.
    pub fn read_backup(&mut self) {
        let Some((path, closings)) = self.newest.clone() else {
            return self.book.fault("no backup was made");
        };
        let hand = match &self.keeper {
            Keeper::File => Hand::File(crate::process::open_sql(&path)),
            Keeper::Server { bin, url } => match restored(bin, url, &path) {
                Ok(hand) => hand,
                Err(trouble) => return self.book.fault(format!("the dump is not restored: {trouble}")),
            },
        };
        let there = hand.number("SELECT count(*) FROM events WHERE kind = 'account_disabled'");
        if there < i64::try_from(closings).unwrap_or(i64::MAX) {
            self.book.fault(format!("{there} closings are in the newest backup, {closings} were acknowledged before it was begun"));
        }
    }
}

/// A dump, in a database of its own beside the other.
fn restored(bin: &Path, url: &str, dump: &Path) -> Result<Hand, String> {
    Hand::server(url).execute("CREATE DATABASE restored");
    let url = url.replace("postgres:///postgres", "postgres:///restored");
    let done = Command::new(bin.join("pg_restore")).args(["--exit-on-error", "--dbname", &url]).arg(dump).output();
    trouble_of(done).map_or_else(|| Ok(Hand::server(&url)), Err)
}

fn trouble_of(done: std::io::Result<std::process::Output>) -> Option<String> {
    match done {
        Ok(done) if done.status.success() => None,
        Ok(done) => Some(String::from_utf8_lossy(&done.stderr).into_owned()),
        Err(e) => Some(e.to_string()),
    }
}
