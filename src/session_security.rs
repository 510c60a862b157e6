//! The rules of a session: how long it lives, what makes a sign-in new, how a stolen cookie dies.
//!
//! ```text
//!            open                 rotate (same session, new token)
//!   (none) ────────▶  live  ◀────────────┐
//!                      │  └──────────────┘
//!                      │ idle · expired · revoked · logged out · replaced
//!                      ▼
//!                    ended   (for ever: nothing revives a session)
//! ```
//!
//! [`judge`] is a pure function of the session's own limits, its last request and now. Deadlines are columns, fixed when
//! the session opens, so that a changed configuration re-dates nobody. What an attacker tries here: keep a copied cookie
//! alive by polling (absolute timeout), use one that was left lying about (idle timeout), go on after the victim changed
//! the password (rotation), sign in unnoticed from elsewhere (new IP, new device), step the clock.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};

use crate::clock::{Timestamp, millis};
use crate::config::{Config, Timeouts};
use crate::db::{Fault, Tx};
use crate::device_sessions::{DeviceSession, EndReason};
use crate::id::{SessionId, UserId};
use crate::secret::{Token, TokenHash};

/// The limits of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest silence in milliseconds; `None`: any silence is allowed. ASVS 7.3.1.
    pub idle_ms: Option<i64>,
    /// Last moment of its life, however active it is. ASVS 7.3.2.
    pub expires_at: Timestamp,
}

impl Limits {
    /// Fixes the limits of a session that opens now: the role's own, else those of remembered sessions, else the common ones.
    pub fn of(config: &Config, role: &str, remember: bool, now: Timestamp) -> Self {
        let Timeouts { idle, absolute } = match config.role_timeouts.get(role) {
            Some(of_role) => *of_role,
            None if remember => config.remember_timeouts,
            None => config.timeouts,
        };
        Limits { idle_ms: idle.map(millis), expires_at: now.plus(absolute) }
    }

    /// The last moment at which the session still lives if nobody uses it.
    pub fn idle_expires_at(&self, last_active: Timestamp) -> Timestamp {
        match self.idle_ms {
            Some(idle) => Timestamp(last_active.0.saturating_add(idle)).min(self.expires_at),
            None => self.expires_at,
        }
    }
}

/// What the rules say of a session at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives.
    Live,
    /// It was silent for longer than its idle timeout.
    Idle,
    /// Its absolute deadline has passed.
    Expired,
}

/// Judges a session. Exactly at a deadline it is still alive; of two deadlines that have passed the earlier one is the reason.
pub fn judge(limits: &Limits, last_active: Timestamp, now: Timestamp) -> Verdict {
    let idle_deadline = limits.idle_expires_at(last_active);
    if now <= idle_deadline {
        Verdict::Live
    } else if idle_deadline < limits.expires_at {
        Verdict::Idle
    } else {
        Verdict::Expired
    }
}

impl Verdict {
    /// The reason that a rejected session is stored with; `None` while it lives.
    pub fn reason(self) -> Option<EndReason> {
        match self {
            Verdict::Live => None,
            Verdict::Idle => Some(EndReason::IdleTimeout),
            Verdict::Expired => Some(EndReason::Expired),
        }
    }
}

/// How far the stored last-active may lag behind the truth, in milliseconds: 1/30 of the idle timeout, at most a minute.
pub fn write_back_allowance(idle_ms: Option<i64>) -> i64 {
    idle_ms.map_or(60_000, |idle| (idle / 30).clamp(1, 60_000))
}

/// The network that counts as one place: an IPv4 address, or the /64 of an IPv6 one (a household, a phone).
pub fn network(ip: IpAddr) -> IpNet {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpNet::V4(v4.into()),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, 64).trunc()),
    }
}

/// The same as the database has it.
pub fn network_of(ip: IpAddr) -> String {
    match network(ip) {
        IpNet::V4(v4) => v4.addr().to_string(),
        IpNet::V6(v6) => v6.to_string(),
    }
}

/// Says whether this user has not signed in from this place since `since`, and remembers that they now have.
///
/// Transactions are serializable, so of parallel sign-ins from one new place exactly one is new. The table outlives the
/// sessions: signing out does not make a known place new again.
pub fn is_new_ip(tx: &mut Tx, user: UserId, ip: IpAddr, since: Timestamp) -> Result<bool, Fault> {
    let (network, now) = (network_of(ip), tx.now());
    let known = tx.run("UPDATE known_ips SET last_seen_at = ?3 WHERE user_id = ?1 AND network = ?2 AND last_seen_at >= ?4", (user, &network, now, since))?;
    if known == 1 {
        return Ok(false);
    }
    tx.run(
        "INSERT INTO known_ips (user_id, network, last_seen_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (user_id, network) DO UPDATE SET last_seen_at = ?3",
        (user, &network, now),
    )?;
    Ok(true)
}

/// The browser that signs in: its long-lived cookie, and whether this user is new there.
#[derive(Debug)]
pub struct Device {
    /// What the cookie will hold; the database holds its hash.
    pub token: Token,
    /// This user has not signed in there before.
    pub is_new: bool,
}

/// Says whether this user has not signed in on this browser since `since`, and remembers that they now have.
///
/// A cookie that some sign-in here issued stays; an invented one is replaced, so nobody can plant a device name.
pub fn is_new_device(tx: &mut Tx, user: UserId, presented: Option<&Token>, since: Timestamp) -> Result<Device, Fault> {
    let token = issued(tx, presented)?.unwrap_or_else(|| Token::mint(tx.chance()));
    let (hash, now) = (token.hash(), tx.now());
    let known = tx.run(
        "UPDATE known_devices SET last_seen_at = ?3 WHERE user_id = ?1 AND device_hash = ?2 AND last_seen_at >= ?4 AND signed_in = 1",
        (user, &hash, now, since),
    )?;
    if known == 0 {
        tx.run(
            "INSERT INTO known_devices (user_id, device_hash, last_seen_at, signed_in) VALUES (?1, ?2, ?3, 1)
             ON CONFLICT (user_id, device_hash) DO UPDATE SET last_seen_at = ?3, signed_in = 1",
            (user, &hash, now),
        )?;
    }
    Ok(Device { token, is_new: known == 0 })
}

/// The cookie that was presented, if we have issued it. A device is known for as long as its cookie lives; only newness has
/// a shorter memory.
pub fn issued(tx: &mut Tx, presented: Option<&Token>) -> Result<Option<Token>, Fault> {
    let Some(token) = presented else { return Ok(None) };
    let seen: Option<i64> = tx.row("SELECT 1 FROM known_devices WHERE device_hash = ?1 LIMIT 1", (&token.hash(),))?;
    Ok(seen.map(|_| token.clone()))
}

/// Makes the browser at which a user has proved to have the mailbox one of theirs, without a sign-in: the first one there is
/// still new. A cookie that we [`issued`] stays.
pub fn adopt_device(tx: &mut Tx, user: UserId, issued: Option<Token>) -> Result<Adopted, Fault> {
    let is_fresh = issued.is_none();
    let token = issued.unwrap_or_else(|| Token::mint(tx.chance()));
    let now = tx.now();
    tx.run(
        "INSERT INTO known_devices (user_id, device_hash, last_seen_at, signed_in) VALUES (?1, ?2, ?3, 0)
         ON CONFLICT (user_id, device_hash) DO NOTHING",
        (user, &token.hash(), now),
    )?;
    Ok(Adopted { device: token.hash(), cookie: is_fresh.then_some(token) })
}

/// A browser that is one of a user's.
#[derive(Debug)]
pub struct Adopted {
    /// What its cookie hashes to.
    pub device: TokenHash,
    /// The cookie, if it has none of ours yet.
    pub cookie: Option<Token>,
}

/// Whether a browser is one of this user's.
pub fn is_known_device(tx: &mut Tx, user: UserId, device: &TokenHash) -> Result<bool, Fault> {
    let known: Option<i64> = tx.row("SELECT 1 FROM known_devices WHERE user_id = ?1 AND device_hash = ?2", (user, device))?;
    Ok(known.is_some())
}

/// Gives a session a new token and retires the old one; the session keeps its id, device and absolute deadline.
///
/// One compare-and-swap: of parallel rotations of one token exactly one wins, the others get `None` and have changed nothing.
/// The old token is dead before the answer, and is kept so that its holder can be told `session_rotated`, as are the
/// [newest](RETIRED) of those before it. ASVS 7.2.4.
pub fn rotate(tx: &mut Tx, session: SessionId, old: &TokenHash) -> Result<Option<Token>, Fault> {
    let token = Token::mint(tx.chance());
    let (new, now) = (token.hash(), tx.now());
    // The newest last-active is in memory under the old token, which memory is about to forget.
    let last_active = tx.live().last_active(old).unwrap_or(now).max(now);
    let won = tx.run(
        "UPDATE device_sessions SET token_hash = ?3, authenticated_at = ?4, last_active_at = ?5
         WHERE id = ?1 AND token_hash = ?2 AND ended_at IS NULL",
        (session, old, &new, now, last_active),
    )?;
    if won == 0 {
        return Ok(None);
    }
    tx.run("INSERT INTO retired_tokens (token_hash, session_id, retired_at, successor_used) VALUES (?1, ?2, ?3, 0)", (old, session, now))?;
    // A bound to what somebody can pile up who changes their password all day.
    tx.run(
        "DELETE FROM retired_tokens WHERE token_hash IN
             (SELECT token_hash FROM retired_tokens WHERE session_id = ?1 ORDER BY retired_at DESC LIMIT 1000 OFFSET ?2)",
        (session, RETIRED),
    )?;
    tx.forget(old);
    Ok(Some(token))
}

/// How many tokens of a session are remembered after they were rotated away. An older one is as unknown as any other.
pub const RETIRED: i64 = 100;

/// Makes memory read these sessions again: something that it keeps of their user has changed. Their last-active is written
/// back before, since memory forgets it.
pub fn refresh(tx: &mut Tx, sessions: &[DeviceSession]) -> Result<(), Fault> {
    let rows: Vec<_> = sessions.iter().map(|session| vec![session.last_active_at.into(), session.id.into()]).collect();
    tx.run_each("UPDATE device_sessions SET last_active_at = ?1 WHERE id = ?2 AND last_active_at < ?1 AND ended_at IS NULL", &rows)?;
    sessions.iter().for_each(|session| tx.forget(&session.token));
    Ok(())
}

/// Forgets where a session was opened and on which browser: the next sign-in from there is new again.
pub fn forget_as_known(tx: &mut Tx, session: &DeviceSession) -> Result<(), Fault> {
    if let Ok(ip) = session.ip.parse() {
        tx.run("DELETE FROM known_ips WHERE user_id = ?1 AND network = ?2", (session.user_id, &network_of(ip)))?;
    }
    tx.run(
        "DELETE FROM known_devices WHERE user_id = ?1 AND device_hash IN (SELECT device_hash FROM device_sessions WHERE id = ?2)",
        (session.user_id, session.id),
    )
    .map(|_| ())
}

/// Forgets all places and browsers of a user, as [`forget_as_known`] does those of a session.
pub fn forget_all_known(tx: &mut Tx, user: UserId) -> Result<(), Fault> {
    tx.run("DELETE FROM known_ips WHERE user_id = ?1", (user,))?;
    tx.run("DELETE FROM known_devices WHERE user_id = ?1", (user,)).map(|_| ())
}

/// How long a retired token may still come back by accident: a request that was under way, a tab that was asleep.
const ROTATION_ECHO_MS: i64 = 60_000;

/// Whether a retired token that comes back now can only be a copy: more than a minute after it was retired, when the browser
/// that got its successor has already used that.
pub fn is_stolen(retired_at: Timestamp, successor_used: bool, now: Timestamp) -> bool {
    now.since(retired_at) > ROTATION_ECHO_MS && successor_used
}

/// Notes that a request has come with the newest token of a session: from now on the older ones can only be copies. When a newer one
/// has taken its place meanwhile, nothing is noted: nobody has used that one yet.
pub fn note_use_of_successor(tx: &mut Tx, session: SessionId, token: &TokenHash) -> Result<(), Fault> {
    tx.run(
        "UPDATE retired_tokens SET successor_used = 1 WHERE session_id = ?1 AND successor_used = 0
         AND EXISTS (SELECT 1 FROM device_sessions WHERE id = ?1 AND token_hash = ?2)",
        (session, token),
    )
    .map(|_| ())
}

/// Marks a retired token as reported; false when it was already. One alarm per token.
pub fn is_first_report(tx: &mut Tx, retired: &TokenHash) -> Result<bool, Fault> {
    let now = tx.now();
    let marked = tx.run("UPDATE retired_tokens SET reuse_seen_at = ?2 WHERE token_hash = ?1 AND reuse_seen_at IS NULL", (retired, now))?;
    Ok(marked == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_000_000);
    const LIMITS: Limits = Limits { idle_ms: Some(1_800_000), expires_at: Timestamp(START.0 + 86_400_000) };

    fn at(ms: i64) -> Timestamp {
        Timestamp(START.0 + ms)
    }

    #[test]
    fn exactly_at_the_idle_limit_a_session_lives_and_a_millisecond_later_it_is_dead() {
        assert_eq!(judge(&LIMITS, START, at(1_800_000)), Verdict::Live);
        assert_eq!(judge(&LIMITS, START, at(1_800_001)), Verdict::Idle);
    }

    #[test]
    fn exactly_at_the_absolute_limit_a_session_lives_and_a_millisecond_later_it_is_dead() {
        let busy = at(86_399_999);
        assert_eq!(judge(&LIMITS, busy, at(86_400_000)), Verdict::Live);
        assert_eq!(judge(&LIMITS, busy, at(86_400_001)), Verdict::Expired);
    }

    #[test]
    fn the_deadline_that_passed_first_is_the_reason() {
        assert_eq!(judge(&LIMITS, START, at(90_000_000)), Verdict::Idle);
        assert_eq!(judge(&LIMITS, at(86_000_000), at(90_000_000)), Verdict::Expired);
    }

    #[test]
    fn without_an_idle_timeout_only_the_absolute_one_counts() {
        let limits = Limits { idle_ms: None, ..LIMITS };
        assert_eq!(judge(&limits, START, at(86_400_000)), Verdict::Live);
        assert_eq!(judge(&limits, START, at(86_400_001)), Verdict::Expired);
        assert_eq!(limits.idle_expires_at(START), limits.expires_at);
    }

    #[test]
    fn a_last_request_in_the_future_extends_nothing_past_the_absolute_deadline() {
        assert_eq!(judge(&LIMITS, at(1_000_000_000), at(86_400_001)), Verdict::Expired);
        assert_eq!(judge(&LIMITS, Timestamp(i64::MAX), at(0)), Verdict::Live);
    }

    /// XFF-04: the spellings and the neighbours of one place are one place.
    #[test]
    fn an_ipv6_place_is_its_64_and_a_mapped_ipv4_is_ipv4() {
        let place = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(place("2001:db8::1"), "2001:db8::/64");
        assert_eq!(place("2001:0DB8:0:0:ffff::2"), "2001:db8::/64");
        assert_eq!(place("2001:db8:0:1::1"), "2001:db8:0:1::/64");
        assert_eq!(place("::ffff:203.0.113.7"), "203.0.113.7");
    }

    #[test]
    fn a_retired_token_is_stolen_only_after_a_minute_and_when_its_successor_was_used() {
        let retired = at(0);
        assert!(is_stolen(retired, true, at(60_001)));
        assert!(!is_stolen(retired, true, at(60_000)));
        assert!(!is_stolen(retired, false, at(1_000_000)));
    }

    #[test]
    fn the_write_back_may_lag_by_a_thirtieth_and_never_by_more_than_a_minute() {
        assert_eq!(write_back_allowance(Some(1_800_000)), 60_000);
        assert_eq!(write_back_allowance(Some(5_000)), 166);
        assert_eq!(write_back_allowance(Some(1)), 1);
        assert_eq!(write_back_allowance(None), 60_000);
    }
}
