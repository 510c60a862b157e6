//! What a token is worth: the only way from a cookie to a session.

use super::row::{DeviceSession, EndReason, by_id, select_sessions};
use crate::account::UserView;
use crate::clock::Timestamp;
use crate::db::{Fault, FromRow, Row, Tx};
use crate::error::{Error, Refusal};
use crate::event::{Event, Scene, record};
use crate::id::SessionId;
use crate::live_sessions::{LiveSession, Who};
use crate::secret::TokenHash;
use crate::session_security::{Limits, Verdict, is_first_report, is_stolen, judge};

/// What the database knows of a token.
#[derive(Clone, Debug)]
pub enum Known {
    /// It opens this session, last active then; whether it still may is for [`judge`] to say.
    Open(Box<LiveSession>, Timestamp),
    /// Its session has ended.
    Ended(EndReason),
    /// A newer token took its place in this session.
    Rotated(SessionId),
    /// Never issued, or purged since.
    Nothing,
}

/// Finds what a token opens, opened, or opened before another one took its place. Asks for one token, which it names: a
/// driver may ask for many.
pub(crate) const BY_TOKEN: &str = "SELECT s.token_hash, s.id, s.user_id, u.role, u.email, u.email_verified, s.idle_timeout_ms, s.expires_at,
            s.last_active_at, s.ended_reason, u.disabled_at,
            EXISTS (SELECT 1 FROM retired_tokens AS r WHERE r.session_id = s.id AND r.successor_used = 0)
     FROM device_sessions AS s JOIN users AS u ON u.id = s.user_id WHERE s.token_hash = ?1
     UNION ALL
     SELECT token_hash, session_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM retired_tokens WHERE token_hash = ?1";

/// Looks a token up by its hash: the only way in.
pub fn look_up(tx: &mut Tx, token: &TokenHash) -> Result<Known, Fault> {
    Ok(tx.row(BY_TOKEN, (token,))?.unwrap_or(Known::Nothing))
}

/// What [`BY_TOKEN`] finds.
impl FromRow for Known {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        let (token, id): (TokenHash, SessionId) = (row.get(0)?, row.get(1)?);
        // A retired token has a session, but opens it for nobody.
        let Some(user_id) = row.get(2)? else { return Ok(Known::Rotated(id)) };
        let (role, email): (String, String) = (row.get(3)?, row.get(4)?);
        let ended: Option<String> = row.get(9)?;
        let disabled: Option<Timestamp> = row.get(10)?;
        // Disabling ends all sessions; should one ever be left, it opens nothing.
        let ended = match ended {
            Some(code) => Some(EndReason::read(&code)?),
            None => disabled.map(|_| EndReason::Revoked),
        };
        if let Some(reason) = ended {
            return Ok(Known::Ended(reason));
        }
        let session = LiveSession {
            id,
            user_id,
            who: Who::new(&role, &email),
            email_verified: row.get(5)?,
            limits: Limits { idle_ms: row.get(6)?, expires_at: row.get(7)? },
            token,
            unproved: row.get(11)?,
        };
        Ok(Known::Open(Box::new(session), row.get(8)?))
    }
}

/// The session of a retired token, if the token's coming back now is a sign of theft that was not reported yet.
pub fn looks_stolen(tx: &mut Tx, retired: &TokenHash) -> Result<Option<DeviceSession>, Fault> {
    let found: Option<(SessionId, Timestamp, bool)> =
        tx.row("SELECT session_id, retired_at, successor_used FROM retired_tokens WHERE token_hash = ?1 AND reuse_seen_at IS NULL", (retired,))?;
    match found {
        Some((session, retired_at, successor_used)) if is_stolen(retired_at, successor_used, tx.now()) => by_id(tx, session),
        _ => Ok(None),
    }
}

/// Raises the alarm, once per token, if a retired token that has come back can only be a copy.
pub fn report_if_stolen(tx: &mut Tx, retired: &TokenHash, scene: Scene) -> Result<(), Fault> {
    let Some(session) = looks_stolen(tx, retired)? else { return Ok(()) };
    if is_first_report(tx, retired)? {
        record(tx, scene.whose(session.user_id).about(session.id), Event::RotatedTokenReused)?;
    }
    Ok(())
}

/// Why a token opens nothing now.
pub fn refusal_for(tx: &mut Tx, token: &TokenHash) -> Result<Option<Refusal>, Fault> {
    Ok(match look_up(tx, token)? {
        Known::Open(..) => None,
        Known::Ended(reason) => Some(Refusal::SessionEnded(reason)),
        Known::Rotated(_) => Some(Refusal::SessionRotated),
        Known::Nothing => Some(Refusal::Unauthenticated),
    })
}

/// Checks, inside the transaction that acts, that the session which asked still stands with the token that asked.
pub fn still_current(tx: &mut Tx, asking: &LiveSession) -> Result<(), Error> {
    match refusal_for(tx, &asking.token)? {
        None => Ok(()),
        Some(refusal) => Err(refusal.into()),
    }
}

/// Reads the session that holds a token, and its user, in one statement.
pub fn holding_with_user(tx: &mut Tx, token: &TokenHash) -> Result<Option<(DeviceSession, UserView)>, Fault> {
    let sql = concat!(
        "SELECT s.*, u.email, u.email_verified, u.name, u.role, u.created_at FROM (",
        select_sessions!("token_hash = ?1 AND ended_at IS NULL"),
        ") AS s JOIN users AS u ON u.id = s.user_id"
    );
    let found: Option<WithUser> = tx.row(sql, (token,))?;
    Ok(found.map(|WithUser(session, user)| (session.brought_up_to_date(tx), user)))
}

struct WithUser(DeviceSession, UserView);

impl FromRow for WithUser {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        let session = DeviceSession::from_row(row)?;
        let user = UserView {
            id: session.user_id,
            email: row.get(16)?,
            email_verified: row.get(17)?,
            name: row.get(18)?,
            role: row.get(19)?,
            created_at: row.get(20)?,
        };
        Ok(WithUser(session, user))
    }
}

/// Reads the session that holds a token.
pub fn holding(tx: &mut Tx, token: &TokenHash) -> Result<Option<DeviceSession>, Fault> {
    let found: Option<DeviceSession> = tx.row(select_sessions!("token_hash = ?1 AND ended_at IS NULL"), (token,))?;
    Ok(found.map(|session| session.brought_up_to_date(tx)))
}

/// Reads the session that a token opens now, as the check of a request would find it.
pub fn live_with(tx: &mut Tx, token: &TokenHash) -> Result<Option<DeviceSession>, Fault> {
    let now = tx.now();
    let Known::Open(..) = look_up(tx, token)? else { return Ok(None) };
    Ok(holding(tx, token)?.filter(|session| judge(&session.limits, session.last_active_at, now) == Verdict::Live))
}
