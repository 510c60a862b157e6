//! The rule of a counter, pure: how failures add up, and how long the next attempt waits.
//!
//! ```text
//!            a failure                  the limit is reached
//!   (none) ────────────▶  counting  ──────────────────────────▶  waiting: 30 s, nobody may try
//!     ▲                      │                                     │   ▲
//!     │   the window is over │                        the wait is  │   │ it failed: twice as long, up to 15 min
//!     ├──────────────────────┘                        over         ▼   │
//!     │   nobody tried for a window                              one may try
//!     └────────────────────────────────────────────────────────────┘
//! ```
//!
//! A failure is counted, and its wait set, before the password is checked; the right password takes its own count back. Whom a wait
//! does not stop is counted during it, too, and makes it no longer: right ones that overlap could else draw it out for others.

use crate::clock::Timestamp;
use crate::config::Rate;

/// The wait after the failure that reached the limit.
const FIRST_WAIT_MS: i64 = 30_000;
/// The longest one.
const LONGEST_WAIT_MS: i64 = 15 * 60_000;
/// Nobody waits.
const NEVER: Timestamp = Timestamp(0);

/// What is known of one thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// When its window began: with the first failure.
    pub begun_at: Timestamp,
    /// Failures, and attempts whose outcome is not known yet.
    pub failures: i64,
    /// Nobody may try before.
    pub waits_until: Timestamp,
    /// Its user has been told that the limit was reached.
    pub told: bool,
}

/// What one attempt has done to a counter, so that it can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    begun_at: Timestamp,
    waited_until: Timestamp,
    waits_until: Timestamp,
}

impl Counter {
    /// How long nobody may try, in milliseconds; `None`: somebody may.
    pub fn wait(&self, now: Timestamp) -> Option<i64> {
        let left = self.waits_until.since(now);
        // No wait is longer: such a one was set by a clock that has stepped back since, and would never end.
        (left > 0 && left <= LONGEST_WAIT_MS).then_some(left)
    }

    /// Whether the limit was reached.
    pub fn is_full(&self, rate: Rate) -> bool {
        self.failures >= i64::from(rate.count)
    }

    /// When it counts no more: a window after it began, or after its last wait.
    pub fn forgotten_at(&self, rate: Rate) -> Timestamp {
        self.begun_at.max(self.waits_until).plus(rate.per)
    }

    /// Counts an attempt, as a failure until it proves right.
    pub fn counted(before: Option<Counter>, rate: Rate, now: Timestamp) -> (Counter, Trace) {
        let kept = before.filter(|counter| now < counter.forgotten_at(rate));
        let kept = kept.unwrap_or(Counter { begun_at: now, failures: 0, waits_until: NEVER, told: false });
        let failures = kept.failures.saturating_add(1);
        let waits_until = match failures - i64::from(rate.count) {
            ..0 => NEVER,
            _ if kept.wait(now).is_some() => kept.waits_until,
            further => Timestamp(now.0.saturating_add(wait_after(further))),
        };
        // A window that began in the future began with a clock that has stepped back since.
        let begun_at = kept.begun_at.min(now);
        (Counter { begun_at, failures, waits_until, told: kept.told }, Trace { begun_at, waited_until: kept.waits_until, waits_until })
    }

    /// Takes back what one attempt has done, the wait that it caused too; `None` when nothing is left. What was forgotten
    /// meanwhile cannot be taken back.
    pub fn without(self, trace: &Trace, rate: Rate) -> Option<Counter> {
        if self.begun_at != trace.begun_at {
            return Some(self);
        }
        let without = Counter { failures: self.failures - 1, ..self };
        if !without.is_full(rate) {
            return (without.failures > 0).then_some(Counter { waits_until: NEVER, told: false, ..without });
        }
        let is_own_wait = self.waits_until == trace.waits_until;
        Some(Counter { waits_until: if is_own_wait { trace.waited_until } else { self.waits_until }, ..without })
    }
}

/// The wait after so many failures beyond the limit: twice as long each time.
fn wait_after(further: i64) -> i64 {
    let doublings = u32::try_from(further).unwrap_or(u32::MAX).min(16);
    (FIRST_WAIT_MS << doublings).min(LONGEST_WAIT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RATE: Rate = Rate { count: 10, per: Duration::from_secs(900) };
    const START: Timestamp = Timestamp(1_000_000_000);
    const SECOND: i64 = 1000;
    const MINUTE: i64 = 60 * SECOND;

    fn at(ms: i64) -> Timestamp {
        Timestamp(START.0 + ms)
    }

    fn fail(before: Option<Counter>, now: Timestamp) -> Option<Counter> {
        Some(Counter::counted(before, RATE, now).0)
    }

    fn failed(times: u32, now: Timestamp) -> Option<Counter> {
        (0..times).fold(None, |counter, _| fail(counter, now))
    }

    fn wait(counter: Option<Counter>, now: Timestamp) -> Option<i64> {
        counter.and_then(|counter| counter.wait(now))
    }

    #[test]
    fn nine_failures_wait_for_nothing_and_the_tenth_for_half_a_minute() {
        assert_eq!(wait(failed(9, START), START), None);
        assert_eq!(wait(failed(10, START), START), Some(30 * SECOND));
        assert_eq!(wait(failed(10, START), at(30 * SECOND - 1)), Some(1));
        assert_eq!(wait(failed(10, START), at(30 * SECOND)), None);
    }

    #[test]
    fn each_failure_after_a_wait_doubles_the_next_one_up_to_a_quarter_of_an_hour() {
        let (mut counter, mut now, mut waits) = (failed(10, START), START, Vec::new());
        for _ in 0..8 {
            let wait = wait(counter, now).expect("a wait");
            waits.push(wait / SECOND);
            now = Timestamp(now.0 + wait);
            counter = fail(counter, now);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900, 900]);
    }

    #[test]
    fn the_window_begins_with_the_first_failure_and_does_not_slide() {
        let counter = fail(failed(8, START), at(15 * MINUTE - 1));
        assert_eq!(counter.map(|counter| counter.failures), Some(9));
        assert_eq!(fail(counter, at(15 * MINUTE)).map(|counter| (counter.failures, counter.begun_at)), Some((1, at(15 * MINUTE))));
    }

    #[test]
    fn a_full_counter_is_forgotten_a_window_after_its_last_wait() {
        let full = failed(10, START);
        let over = 30 * SECOND + 15 * MINUTE;
        assert_eq!(wait(fail(full, at(over - 1)), at(over - 1)), Some(60 * SECOND));
        assert_eq!(fail(full, at(over)).map(|counter| counter.failures), Some(1));
    }

    #[test]
    fn what_proves_right_leaves_no_trace() {
        for times in 0..13 {
            let before = failed(times, START);
            let later = at(20 * SECOND);
            let (counted, trace) = Counter::counted(before, RATE, later);
            assert_eq!(counted.without(&trace, RATE), before, "after {times}");
        }
    }

    #[test]
    fn the_wait_goes_when_any_of_those_that_filled_the_counter_proves_right() {
        let (first, trace) = Counter::counted(None, RATE, START);
        let full = (1..10).try_fold(first, |counter, _| fail(Some(counter), at(5))).expect("a counter");
        assert_eq!(full.wait(at(5)), Some(30 * SECOND));
        let left = full.without(&trace, RATE).expect("nine failures");
        assert_eq!((left.failures, left.wait(at(5))), (9, None));
    }

    /// Whom a wait does not stop may be many, and they overlap.
    #[test]
    fn attempts_that_a_wait_does_not_stop_make_it_no_longer() {
        let full = failed(10, START).expect("a counter");
        let (first, first_trace) = Counter::counted(Some(full), RATE, at(SECOND));
        let (second, second_trace) = Counter::counted(Some(first), RATE, at(2 * SECOND));
        assert_eq!((second.failures, second.waits_until), (12, full.waits_until));
        let left = second.without(&first_trace, RATE).and_then(|counter| counter.without(&second_trace, RATE));
        assert_eq!(left, Some(full));
        assert_eq!(fail(left, at(30 * SECOND)).and_then(|counter| counter.wait(at(30 * SECOND))), Some(60 * SECOND));
    }

    #[test]
    fn the_wait_of_another_attempt_stays() {
        let (eleventh, trace) = Counter::counted(failed(10, START), RATE, at(30 * SECOND));
        let twelfth = fail(Some(eleventh), at(90 * SECOND)).expect("a counter");
        let left = twelfth.without(&trace, RATE).expect("eleven failures");
        assert_eq!((left.failures, left.waits_until), (11, twelfth.waits_until));
    }

    #[test]
    fn what_was_forgotten_meanwhile_is_not_taken_back() {
        let (_, trace) = Counter::counted(None, RATE, START);
        let anew = failed(3, at(15 * MINUTE)).expect("a counter");
        assert_eq!(anew.without(&trace, RATE), Some(anew));
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_wait_longer_than_a_quarter_of_an_hour() {
        let full = Some(Counter { begun_at: START, failures: 15, waits_until: at(15 * MINUTE), told: true });
        for back in [MINUTE, 10 * MINUTE, 60 * MINUTE, 365 * 24 * 60 * MINUTE] {
            let now = at(-back);
            assert!(wait(full, now).unwrap_or(0) <= 15 * MINUTE, "{back}");
            let next = fail(full, now).expect("a counter");
            assert!(next.failures == 16 && next.wait(now) == Some(15 * MINUTE), "{back}");
            assert!(next.forgotten_at(RATE) <= Timestamp(now.0 + 30 * MINUTE), "{back}");
        }
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let endless = Counter { begun_at: START, failures: i64::MAX, waits_until: START, told: true };
        assert_eq!(wait(fail(Some(endless), START), START), Some(15 * MINUTE));
    }
}
