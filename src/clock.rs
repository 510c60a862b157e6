//! Now, handed in.
//!
//! Every rule of this server that depends on time takes it as a value, so that a test can stand exactly on a
//! deadline and an operator's NTP step is one more input, not a surprise. The wall clock is read in one place: here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A moment: milliseconds since the Unix epoch. What the database stores as `BIGINT`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Adds a span; saturates instead of overflowing.
    pub fn plus(self, span: Duration) -> Self {
        Timestamp(self.0.saturating_add(millis(span)))
    }

    /// Subtracts a span; saturates instead of overflowing.
    pub fn minus(self, span: Duration) -> Self {
        Timestamp(self.0.saturating_sub(millis(span)))
    }

    /// Milliseconds from `earlier` to here; negative when the clock stepped back in between.
    pub fn since(self, earlier: Timestamp) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Whole milliseconds of a span, as the database counts them.
pub fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with exactly three decimals: `2026-11-23T06:36:08.123Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{at:.3}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Where now comes from: the machine, or a test's hand.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's wall clock.
    System,
    /// A clock that stands still until it is moved.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Makes a clock that only `advance` and `set` move.
    pub fn manual(start: Timestamp) -> Self {
        Clock::Manual(Arc::new(AtomicI64::new(start.0)))
    }

    /// Reads the time.
    #[allow(clippy::disallowed_methods)] // The one place that asks the machine.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System => Timestamp(jiff::Timestamp::now().as_millisecond()),
            Clock::Manual(at) => Timestamp(at.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward. The machine's clock does not obey.
    pub fn advance(&self, span: Duration) {
        if let Clock::Manual(at) = self {
            at.fetch_add(millis(span), Ordering::SeqCst);
        }
    }

    /// Steps a manual clock back, as a correction by NTP would.
    pub fn step_back(&self, span: Duration) {
        if let Clock::Manual(at) = self {
            at.fetch_sub(millis(span), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc_with_three_decimals() {
        assert_eq!(Timestamp(1_795_415_768_123).to_string(), "2026-11-23T06:36:08.123Z");
        assert_eq!(Timestamp(1_795_415_768_000).to_string(), "2026-11-23T06:36:08.000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp(i64::MAX).plus(Duration::from_secs(1)), Timestamp(i64::MAX));
        assert_eq!(Timestamp(5).minus(Duration::from_millis(7)), Timestamp(-2));
    }
}
