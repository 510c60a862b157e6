//! What an actor writes down: each answer with its time, each effect that was acknowledged, and what was not as promised.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One actor's, or, put together, everybody's.
#[derive(Default)]
pub struct Book {
    /// How long answers took, in microseconds, by kind of request and status.
    pub answers: BTreeMap<(&'static str, u16), Vec<u32>>,
    /// How often each kind of event was acknowledged.
    pub events: BTreeMap<&'static str, u64>,
    /// Requests of which nobody knows whether they took effect: the server was killed under them.
    pub unsure: u64,
    /// Tokens that must never be let in again.
    pub dead: Vec<Dead>,
    /// What is told at the end besides: the longest of each.
    pub longest: BTreeMap<&'static str, Duration>,
    /// How often something happened that is worth telling.
    pub counts: BTreeMap<&'static str, u64>,
    /// What was not as promised.
    pub faults: Vec<String>,
}

/// A token whose end was acknowledged.
#[derive(Clone)]
pub struct Dead {
    /// The token.
    pub token: String,
    /// What its holder must hear.
    pub code: &'static str,
    /// When its end was asked for: it cannot have ended before.
    pub since: Instant,
}

impl Dead {
    /// Whether this is what its holder may hear. It is forgotten once ended sessions are purged.
    pub fn may_hear(&self, code: &str, retention: Duration) -> bool {
        code == self.code || (code == "unauthenticated" && self.since.elapsed() >= retention)
    }
}

impl Book {
    /// Writes an answer down.
    pub fn answered(&mut self, what: &'static str, status: u16, took: Duration) {
        self.answers.entry((what, status)).or_default().push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// Writes down that an event must be on record.
    pub fn happened(&mut self, kind: &'static str) {
        *self.events.entry(kind).or_default() += 1;
    }

    /// Writes down that something happened once more.
    pub fn counted(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Writes down how long something took, if it is the longest so far.
    pub fn took(&mut self, what: &'static str, time: Duration) {
        let longest = self.longest.entry(what).or_default();
        *longest = time.max(*longest);
    }

    /// Writes down what was not as promised.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    /// Takes over what another actor wrote.
    pub fn add(&mut self, other: Book) {
        for (what, mut times) in other.answers {
            self.answers.entry(what).or_default().append(&mut times);
        }
        for (kind, count) in other.events {
            *self.events.entry(kind).or_default() += count;
        }
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        for (what, time) in other.longest {
            self.took(what, time);
        }
        self.unsure += other.unsure;
        self.dead.extend(other.dead);
        self.faults.extend(other.faults);
    }
}
