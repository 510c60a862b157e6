//! Floods: what any stranger may ask for, and what costs others something, is had so many times an hour by one source.
//!
//! A sign-up costs a hash and a row, a letter costs its reader's patience and our name as a sender. Each has a count for each
//! source, the client's network behind the trusted proxies: [`SIGNUP_LIMIT_SOURCE`](crate::config::SETTINGS) and
//! `LETTER_LIMIT_SOURCE`. So many at once, then one whenever its part of the time has passed (GCRA, kept by `governor`). The
//! count comes after all that a request can be refused for without looking anything up, and before any hash and any look at the
//! database; what it lets through has been counted, whatever comes of it.
//!
//! The counts are in memory, of this instance, and forgotten with it: guessing is what must survive a restart, and it does
//! elsewhere. What a flood can make grow is bounded: a source is forgotten once it has everything back, and when very many are
//! known, newcomers share one count instead of taking the place of others. LOCK-05.
//!
//! The log is no way to fill a disk either: lines about what was refused are so many a second ([`Untold`]).
//!
//! The answers say how much is left (`RateLimit`, draft-ietf-httpapi-ratelimit-headers-11). Sign-in has nothing of this.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use governor::middleware::{NoOpMiddleware, StateInformationMiddleware};
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use ipnet::IpNet;

use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Rate};
use crate::error::{Error, Refusal};
use crate::session_security::network;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Sources that one limit tells apart, in some 5 MB. Whoever comes beyond shares one count.
const SOURCES: usize = 100_000;

/// Lines of one kind: so many a second, and so many at once.
const LINES: NonZeroU32 = NonZeroU32::new(20).unwrap();
const LINES_AT_ONCE: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// The limits.
pub struct Floods {
    /// Accounts.
    pub sign_ups: Limit,
    /// Letters that somebody asks for.
    pub letters: Limit,
    /// Refusals that the log need not tell of.
    pub refusals: Untold,
    /// Faults of ours, likewise: while the database is gone every request is one.
    pub faults: Untold,
}

impl Floods {
    /// Begins to count.
    pub fn new(config: &Config, clock: &Clock) -> Self {
        Floods {
            sign_ups: Limit::new("signup", config.sign_up_limit_source, clock),
            letters: Limit::new("letter", config.letter_limit_source, clock),
            refusals: Untold::new(clock),
            faults: Untold::new(clock),
        }
    }

    /// Forgets every source that has everything back.
    pub fn forget_the_quiet(&self) {
        for gauge in [&self.sign_ups, &self.letters].into_iter().filter_map(|limit| limit.0.as_ref()) {
            gauge.forget_the_quiet();
        }
    }
}

/// What the log does not tell of, because there was too much of it.
pub struct Untold {
    lines: RateLimiter<NotKeyed, InMemoryState, Steady, NoOpMiddleware<Nanos>>,
    count: AtomicU64,
}

impl Untold {
    fn new(clock: &Clock) -> Self {
        let quota = Quota::per_second(LINES).allow_burst(LINES_AT_ONCE);
        Untold { lines: RateLimiter::direct_with_clock(quota, Steady::of(clock)), count: AtomicU64::new(0) }
    }

    /// Whether there is a line for this one, and then how many went without before it.
    pub fn before_this(&self) -> Option<u64> {
        if self.lines.check().is_ok() {
            return Some(self.count.swap(0, Ordering::Relaxed));
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// What one source may have of one thing; or no limit.
pub struct Limit(Option<Gauge>);

impl Limit {
    fn new(name: &'static str, rate: Option<Rate>, clock: &Clock) -> Self {
        Limit(rate.and_then(|rate| Gauge::new(name, rate, clock)))
    }

    /// Does the deed if the source of this address has not had enough, and tells in the answer how much it has left. What is
    /// refused is not begun.
    pub async fn meter<T: IntoResponse>(&self, ip: IpAddr, deed: impl Future<Output = Result<T, Error>>) -> Response {
        let Some(gauge) = &self.0 else { return deed.await.into_response() };
        match gauge.take(network(ip)) {
            Ok(left) => gauge.tell(left, deed.await.into_response()),
            Err(wait) => gauge.tell(Left { count: 0, seconds: wait }, Refusal::RateLimited(wait).into_response()),
        }
    }
}

/// A limit that is on.
struct Gauge {
    name: &'static str,
    /// `RateLimit-Policy`.
    policy: HeaderValue,
    /// After so long there is one more.
    refill: Duration,
    sources: Sources,
    limiter: RateLimiter<IpNet, Sources, Steady, StateInformationMiddleware>,
}

/// What a source has left, and for how many seconds it is no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    count: u32,
    seconds: u32,
}

impl Gauge {
    /// `None` for a count or a time of zero, which no setting can have.
    fn new(name: &'static str, rate: Rate, clock: &Clock) -> Option<Self> {
        let refill = rate.per / rate.count;
        let quota = Quota::with_period(refill)?.allow_burst(NonZeroU32::new(rate.count)?);
        let sources = Sources::default();
        let limiter = RateLimiter::new(quota, sources.clone(), Steady::of(clock));
        let policy = HeaderValue::from_str(&format!("\"{name}\";q={};w={}", rate.count, rate.per.as_secs())).ok()?;
        Some(Gauge { name, policy, refill, sources, limiter })
    }

    /// Takes one from what the source has.
    ///
    /// # Errors
    /// It has none; the seconds after which it has one again.
    fn take(&self, source: IpNet) -> Result<Left, u32> {
        use governor::clock::Clock as _;
        match self.limiter.check_key(&source) {
            Ok(state) => {
                let full_in = self.sources.full_at(&source).saturating_sub(self.limiter.clock().now());
                Ok(Left { count: state.remaining_burst_capacity(), seconds: seconds(self.until_refill(full_in)) })
            }
            Err(until) => Err(seconds(until.wait_time_from(self.limiter.clock().now())).max(1)),
        }
    }

    /// When there is one more, where everything is back after `full_in`.
    fn until_refill(&self, full_in: Nanos) -> Duration {
        let refill = u64::try_from(self.refill.as_nanos()).unwrap_or(u64::MAX);
        match full_in.as_u64() % refill {
            0 => self.refill,
            rest => Duration::from_nanos(rest),
        }
    }

    fn tell(&self, left: Left, mut response: Response) -> Response {
        let headers = response.headers_mut();
        headers.insert(RATE_LIMIT_POLICY, self.policy.clone());
        if let Ok(left) = HeaderValue::from_str(&format!("\"{}\";r={};t={}", self.name, left.count, left.seconds)) {
            headers.insert(RATE_LIMIT, left);
        }
        response
    }

    fn forget_the_quiet(&self) {
        use governor::clock::Clock as _;
        let now = self.limiter.clock().now();
        let mut full_at = self.sources.lock();
        full_at.retain(|_, full_at| *full_at > now);
        let wanted = full_at.len() * 2;
        full_at.shrink_to(wanted);
    }
}

/// Whole seconds, rounded up: whoever waits that long does not come too early.
fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

/// When each source will have everything back (GCRA's theoretical arrival time); `None` is all that came when there were too
/// many. Who is not there has everything.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<HashMap<Option<IpNet>, Nanos>>>);

impl Sources {
    fn lock(&self) -> MutexGuard<'_, HashMap<Option<IpNet>, Nanos>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full_at(&self, source: &IpNet) -> Nanos {
        let full_at = self.lock();
        full_at.get(&Some(*source)).or_else(|| full_at.get(&None)).copied().unwrap_or(Nanos::from(0))
    }
}

impl StateStore for Sources {
    type Key = IpNet;

    fn measure_and_replace<T, F, E>(&self, source: &IpNet, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut full_at = self.lock();
        let own = Some(*source);
        let key = if full_at.len() < SOURCES || full_at.contains_key(&own) { own } else { None };
        let (outcome, next) = judge(full_at.get(&key).copied())?;
        full_at.insert(key, next);
        Ok(outcome)
    }
}

/// Time as it passes on the app's clock, forwards only: a clock that steps back would keep everybody waiting until it has
/// caught up with itself.
struct Steady {
    clock: Clock,
    passed: Mutex<Passed>,
}

struct Passed {
    seen: Timestamp,
    millis: u64,
}

impl Steady {
    fn of(clock: &Clock) -> Self {
        Steady { clock: clock.clone(), passed: Mutex::new(Passed { seen: clock.now(), millis: 0 }) }
    }
}

impl governor::clock::Clock for Steady {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        /// Two centuries: the sums of the limiter stay far from their end.
        const MOST: u64 = 200 * 366 * 86_400_000;
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let step = u64::try_from(now.since(passed.seen)).unwrap_or(0);
        passed.seen = now;
        passed.millis = passed.millis.saturating_add(step).min(MOST);
        Nanos::from(passed.millis * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    const HOUR: Duration = Duration::from_secs(3600);

    fn gauge(count: u32, per: Duration) -> (Gauge, Clock) {
        let clock = Clock::manual(Timestamp(1_795_415_768_123));
        (Gauge::new("test", Rate { count, per }, &clock).expect("a limit"), clock)
    }

    fn source(n: u32) -> IpNet {
        network(Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(n) << 64)).into())
    }

    #[test]
    fn so_many_at_once_then_one_whenever_its_part_of_the_time_has_passed() {
        let (gauge, clock) = gauge(20, HOUR);
        assert_eq!(gauge.take(source(1)), Ok(Left { count: 19, seconds: 180 }));
        clock.advance(Duration::from_millis(60_500));
        assert_eq!(gauge.take(source(1)), Ok(Left { count: 18, seconds: 120 }));
        for left in (0..18).rev() {
            assert_eq!(gauge.take(source(1)).map(|left| left.count), Ok(left));
        }
        assert_eq!(gauge.take(source(1)), Err(120));
        assert_eq!(gauge.take(source(2)).map(|left| left.count), Ok(19));
        clock.advance(Duration::from_millis(119_499));
        assert_eq!(gauge.take(source(1)), Err(1));
        clock.advance(Duration::from_millis(1));
        assert_eq!(gauge.take(source(1)), Ok(Left { count: 0, seconds: 180 }));
        assert_eq!(gauge.take(source(1)), Err(180));
    }

    #[test]
    fn refusals_do_not_make_the_wait_longer() {
        let (gauge, clock) = gauge(1, HOUR);
        gauge.take(source(1)).expect("the first");
        for _ in 0..100 {
            assert_eq!(gauge.take(source(1)), Err(3600));
        }
        clock.advance(HOUR);
        assert!(gauge.take(source(1)).is_ok());
    }

    #[test]
    fn a_clock_that_steps_back_keeps_nobody_waiting_for_longer() {
        let (gauge, clock) = gauge(1, HOUR);
        gauge.take(source(1)).expect("the first");
        clock.step_back(1000 * HOUR);
        assert_eq!(gauge.take(source(1)), Err(3600));
        clock.advance(HOUR);
        assert!(gauge.take(source(1)).is_ok());
    }

    #[test]
    fn a_clock_that_leaps_does_no_harm() {
        let (gauge, clock) = gauge(1, 100 * 366 * 24 * HOUR);
        for _ in 0..3 {
            let _ = gauge.take(source(1));
            clock.advance(Duration::from_millis(i64::MAX as u64 / 4));
        }
        assert!(gauge.take(source(2)).is_ok());
    }

    #[test]
    fn the_log_tells_of_so_many_refusals_and_counts_the_rest() {
        let clock = Clock::manual(Timestamp(1_795_415_768_123));
        let untold = Untold::new(&clock);
        for _ in 0..LINES_AT_ONCE.get() {
            assert_eq!(untold.before_this(), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(untold.before_this(), None);
        }
        clock.advance(Duration::from_secs(1));
        assert_eq!(untold.before_this(), Some(7));
        for _ in 1..LINES.get() {
            assert_eq!(untold.before_this(), Some(0));
        }
        assert_eq!(untold.before_this(), None);
    }

    /// LOCK-05: neither memory nor anybody's count falls to a flood of sources.
    #[test]
    fn more_sources_than_can_be_told_apart_share_one_count() {
        let (gauge, clock) = gauge(2, HOUR);
        let victim = source(0);
        gauge.take(victim).and_then(|_| gauge.take(victim)).expect("two");
        let most = u32::try_from(SOURCES).expect("it fits");
        let admitted = (1..most + 1000).filter(|n| gauge.take(source(*n)).is_ok()).count();
        assert_eq!(admitted, SOURCES - 1 + 2, "each of its own, and two of all the others");
        assert_eq!(gauge.sources.lock().len(), SOURCES + 1);
        assert!(gauge.take(victim).is_err(), "the flood gave it something back");
        assert!(gauge.take(source(1)).is_ok(), "the flood took what another had left");

        clock.advance(HOUR);
        gauge.forget_the_quiet();
        assert_eq!(gauge.sources.lock().len(), 0);
        assert!(gauge.sources.lock().capacity() < 1000);
    }

    #[test]
    fn who_still_owes_something_is_not_forgotten() {
        let (gauge, clock) = gauge(2, HOUR);
        gauge.take(source(1)).and_then(|_| gauge.take(source(1))).expect("two");
        gauge.take(source(2)).expect("one");
        clock.advance(HOUR / 2);
        gauge.forget_the_quiet();
        assert_eq!(gauge.sources.lock().len(), 1);
        assert_eq!(gauge.take(source(1)).map(|left| left.count), Ok(0));
        assert!(gauge.take(source(1)).is_err());
    }
}
