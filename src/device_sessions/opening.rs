//! How a session opens: with a token of its own, and room made for it.

use super::ending::{end, settle};
use super::row::{DeviceSession, EndReason};
use crate::client::{Client, Device};
use crate::db::{Fault, Tx};
use crate::id::{SessionId, UserId};
use crate::secret::{Token, TokenHash};
use crate::session_security::Limits;

/// Whom a new session is for, and how it was come by.
pub struct Opening<'a> {
    /// Whose.
    pub user: UserId,
    /// Fixed now, for the whole of its life.
    pub limits: Limits,
    /// Whether it outlives the browser.
    pub remember: bool,
    /// From where.
    pub client: &'a Client,
    /// With what.
    pub device: Device,
    /// From an address that is new for this user.
    pub new_ip: bool,
    /// On a browser that is new for this user.
    pub new_device: bool,
    /// What that browser's own cookie hashes to.
    pub device_hash: TokenHash,
    /// How many live sessions the user may have.
    pub most: usize,
}

/// Opens a session with a token of its own. If the user has too many, the one idle longest makes room.
pub fn open(tx: &mut Tx, opening: Opening<'_>) -> Result<(DeviceSession, Token, u64), Fault> {
    let mut live = settle(tx, opening.user)?;
    live.sort_by_key(|session| (session.last_active_at, session.id));
    let too_many = (live.len() + 1).saturating_sub(opening.most);
    let replaced = end(tx, &live[..too_many], EndReason::Replaced)?;

    let (token, now) = (Token::mint(tx.chance()), tx.now());
    let session = DeviceSession {
        id: SessionId(tx.next_id()),
        user_id: opening.user,
        token: token.hash(),
        created_at: now,
        authenticated_at: now,
        auth_methods: "password".into(),
        last_active_at: now,
        limits: opening.limits,
        remember: opening.remember,
        ip: opening.client.ip.to_string(),
        user_agent: opening.client.user_agent.clone(),
        device_name: opening.device.name,
        device_type: opening.device.kind.into(),
        new_ip: opening.new_ip,
        new_device: opening.new_device,
    };
    tx.run(
        "INSERT INTO device_sessions (id, user_id, token_hash, created_at, authenticated_at, auth_methods, last_active_at, idle_timeout_ms,
             expires_at, remember, ip, user_agent, device_name, device_type, new_ip, new_device, device_hash)
         VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?4, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        vec![
            session.id.into(),
            session.user_id.into(),
            (&session.token).into(),
            now.into(),
            (&session.auth_methods).into(),
            session.limits.idle_ms.into(),
            session.limits.expires_at.into(),
            session.remember.into(),
            (&session.ip).into(),
            (&session.user_agent).into(),
            (&session.device_name).into(),
            (&session.device_type).into(),
            session.new_ip.into(),
            session.new_device.into(),
            (&opening.device_hash).into(),
        ],
    )?;
    Ok((session, token, replaced))
}
