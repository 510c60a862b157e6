//! How sessions end: once, for a reason that their holders are told, and in memory before anybody hears of it.

use std::net::IpAddr;

use super::row::{DeviceSession, EndReason, open_of, select_sessions};
use super::token::holding;
use crate::clock::Timestamp;
use crate::db::{Fault, Tx};
use crate::event::{By, Event, Scene, record};
use crate::id::{SessionId, UserId};
use crate::letter_token;
use crate::live_sessions::LiveSession;
use crate::secret::TokenHash;
use crate::session_security::judge;

/// Ends sessions. The count is of those that this call ended: a session ends once.
pub fn end(tx: &mut Tx, sessions: &[DeviceSession], why: EndReason) -> Result<u64, Fault> {
    let now = tx.now();
    let batch: Vec<_> = sessions.iter().map(|session| vec![session.id.into(), now.into(), why.code().into()]).collect();
    let ended = tx.run_each("UPDATE device_sessions SET ended_at = ?2, ended_reason = ?3 WHERE id = ?1 AND ended_at IS NULL", &batch)?;
    sessions.iter().for_each(|session| tx.forget(&session.token));
    Ok(ended)
}

/// Marks a session that is past a deadline as ended, which no step of the clock takes back.
pub fn time_out(tx: &mut Tx, session: &DeviceSession, reason: EndReason) -> Result<(), Fault> {
    if end(tx, std::slice::from_ref(session), reason)? == 1 {
        record(tx, Scene::of(session), Event::SessionTimedOut { reason })?;
    }
    Ok(())
}

/// A user's live sessions, for a transaction that is about to act on them: whatever is past a deadline is marked as ended,
/// so that it is neither counted nor ended for another reason.
pub fn settle(tx: &mut Tx, user: UserId) -> Result<Vec<DeviceSession>, Fault> {
    let mut live = Vec::new();
    for (session, verdict) in open_of(tx, user)? {
        match verdict.reason() {
            None => live.push(session),
            Some(reason) => time_out(tx, &session, reason)?,
        }
    }
    Ok(live)
}

/// Marks what was past a deadline at `moment` as ended, over all users, a chunk at a time; says where the next chunk begins.
pub fn settle_chunk(tx: &mut Tx, moment: Timestamp, after: SessionId) -> Result<Option<SessionId>, Fault> {
    let chunk: Vec<DeviceSession> = tx.rows(select_sessions!("id > ?1 AND ended_at IS NULL ORDER BY id LIMIT 200"), (after,))?;
    let next = chunk.last().map(|session| session.id);
    for session in chunk {
        let session = session.brought_up_to_date(tx);
        if let Some(reason) = judge(&session.limits, session.last_active_at, moment).reason() {
            time_out(tx, &session, reason)?;
        }
    }
    Ok(next)
}

/// Ends one live session of a user from elsewhere: from where, `scene` says. False, alike, for somebody else's, an ended and
/// an unknown id; a value and no error, since what was found to be past its deadline has to stay marked.
pub fn revoke(tx: &mut Tx, user: UserId, id: SessionId, by: By, scene: Scene) -> Result<bool, Fault> {
    let Some(session) = settle(tx, user)?.into_iter().find(|session| session.id == id) else { return Ok(false) };
    turn_out(tx, std::slice::from_ref(&session))?;
    record(tx, scene.whose(user).about(id), Event::SessionRevoked { by })?;
    Ok(true)
}

/// Ends all sessions of a user, and counts those that were alive.
pub fn revoke_all(tx: &mut Tx, user: UserId, by: By, because: &'static str, scene: Scene) -> Result<u64, Fault> {
    let live = settle(tx, user)?;
    revoke_these(tx, scene.whose(user), &live, by, because)
}

/// Ends all sessions of a user but the one that asks.
pub fn end_others_of(tx: &mut Tx, asking: &LiveSession, by: By, because: &'static str, scene: Scene) -> Result<u64, Fault> {
    let others: Vec<DeviceSession> = settle(tx, asking.user_id)?.into_iter().filter(|session| session.id != asking.id).collect();
    revoke_these(tx, scene.whose(asking.user_id).about(asking.id), &others, by, because)
}

/// Ends all sessions of a user, but the one that may stay, and counts those that were alive.
pub fn revoke_all_but(tx: &mut Tx, user: UserId, stays: Option<SessionId>, because: &'static str, scene: Scene) -> Result<u64, Fault> {
    let others: Vec<DeviceSession> = settle(tx, user)?.into_iter().filter(|session| Some(session.id) != stays).collect();
    revoke_these(tx, scene.whose(user), &others, By::User, because)
}

/// Ends sessions of a user from elsewhere, and what they had begun.
fn turn_out(tx: &mut Tx, sessions: &[DeviceSession]) -> Result<u64, Fault> {
    let Some(first) = sessions.first() else { return Ok(0) };
    let ids: Vec<SessionId> = sessions.iter().map(|session| session.id).collect();
    letter_token::kill_begun_by(tx, first.user_id, &ids)?;
    end(tx, sessions, EndReason::Revoked)
}

fn revoke_these(tx: &mut Tx, scene: Scene, live: &[DeviceSession], by: By, because: &'static str) -> Result<u64, Fault> {
    let count = turn_out(tx, live)?;
    if count > 0 {
        record(tx, scene, Event::SessionsRevoked { by, count, because })?;
    }
    Ok(count)
}

/// Signs the session out that holds a token; says whether it was alive.
pub fn sign_out(tx: &mut Tx, token: &TokenHash, from: IpAddr) -> Result<bool, Fault> {
    let Some(session) = holding(tx, token)? else { return Ok(false) };
    if let Some(reason) = judge(&session.limits, session.last_active_at, tx.now()).reason() {
        time_out(tx, &session, reason)?;
        return Ok(false);
    }
    end(tx, std::slice::from_ref(&session), EndReason::LoggedOut)?;
    record(tx, Scene::of(&session).from(from), Event::SignedOut)?;
    Ok(true)
}
