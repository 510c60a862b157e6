//! One row of the table: what is stored of a session, and how its owner sees it.

use super::SessionView;
use crate::clock::Timestamp;
use crate::db::{Fault, FromRow, Row, Tx};
use crate::id::{SessionId, UserId};
use crate::secret::TokenHash;
use crate::session_security::{Limits, Verdict, judge};

/// Why a session ended. Stored, and told to the holder of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Silent for longer than its idle timeout.
    IdleTimeout,
    /// Past its absolute deadline.
    Expired,
    /// By the user elsewhere, a password change, or an administrator.
    Revoked,
    /// By its own user, on purpose.
    LoggedOut,
    /// It made room for another sign-in.
    Replaced,
}

impl EndReason {
    /// The code that its holder gets, which is also what is stored.
    pub fn code(self) -> &'static str {
        self.told().0
    }

    /// Code, title and detail.
    pub fn told(self) -> (&'static str, &'static str, &'static str) {
        match self {
            EndReason::IdleTimeout => ("session_idle_timeout", "Signed out after inactivity", "The session was idle for too long. Sign in again."),
            EndReason::Expired => {
                ("session_expired", "The session has reached its time limit", "Every session ends some time after its sign-in. Sign in again.")
            }
            EndReason::Revoked => {
                ("session_revoked", "The session was ended", "It was ended from another device, by a password change, or by an administrator. Sign in again.")
            }
            EndReason::LoggedOut => ("session_logged_out", "Signed out", "This session was signed out. Sign in again."),
            EndReason::Replaced => ("session_replaced", "Another sign-in took its place", "A newer sign-in replaced this session. Sign in again."),
        }
    }

    pub(super) fn read(code: &str) -> Result<Self, Fault> {
        let all = [EndReason::IdleTimeout, EndReason::Expired, EndReason::Revoked, EndReason::LoggedOut, EndReason::Replaced];
        all.into_iter().find(|reason| reason.code() == code).ok_or_else(|| Fault::broken(format!("a session ended for the unknown reason {code}")))
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The columns are told in the migration.
pub struct DeviceSession {
    pub id: SessionId,
    pub user_id: UserId,
    pub token: TokenHash,
    pub created_at: Timestamp,
    pub authenticated_at: Timestamp,
    pub auth_methods: String,
    pub last_active_at: Timestamp,
    pub limits: Limits,
    pub remember: bool,
    pub ip: String,
    pub user_agent: String,
    pub device_name: String,
    pub device_type: String,
    pub new_ip: bool,
    pub new_device: bool,
}

macro_rules! select_sessions {
    ($rest:literal) => {
        concat!(
            "SELECT id, user_id, token_hash, created_at, authenticated_at, auth_methods, last_active_at, idle_timeout_ms, expires_at,
         remember, ip, user_agent, device_name, device_type, new_ip, new_device FROM device_sessions WHERE ",
            $rest
        )
    };
}

impl FromRow for DeviceSession {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        Ok(DeviceSession {
            id: row.get(0)?,
            user_id: row.get(1)?,
            token: row.get(2)?,
            created_at: row.get(3)?,
            authenticated_at: row.get(4)?,
            auth_methods: row.get(5)?,
            last_active_at: row.get(6)?,
            limits: Limits { idle_ms: row.get(7)?, expires_at: row.get(8)? },
            remember: row.get(9)?,
            ip: row.get(10)?,
            user_agent: row.get(11)?,
            device_name: row.get(12)?,
            device_type: row.get(13)?,
            new_ip: row.get(14)?,
            new_device: row.get(15)?,
        })
    }
}

impl DeviceSession {
    /// As its owner sees it.
    pub fn view(&self, current: bool) -> SessionView {
        SessionView {
            id: self.id,
            current,
            device_name: self.device_name.clone(),
            device_type: self.device_type.clone(),
            ip: self.ip.clone(),
            user_agent: self.user_agent.clone(),
            created_at: self.created_at,
            last_active_at: self.last_active_at,
            idle_expires_at: self.limits.idle_expires_at(self.last_active_at),
            expires_at: self.limits.expires_at,
            authenticated_at: self.authenticated_at,
            auth_methods: self.auth_methods.split(' ').map(String::from).collect(),
            remember: self.remember,
            new_ip: self.new_ip,
            new_device: self.new_device,
        }
    }

    /// Puts in the last-active of memory, which is the truth.
    pub(super) fn brought_up_to_date(mut self, tx: &Tx) -> Self {
        if let Some(newer) = tx.live().last_active(&self.token) {
            self.last_active_at = self.last_active_at.max(newer);
        }
        self
    }
}
pub(super) use select_sessions;

/// Reads a session by its id, ended or not.
pub fn by_id(tx: &mut Tx, id: SessionId) -> Result<Option<DeviceSession>, Fault> {
    tx.row(select_sessions!("id = ?1"), (id,))
}

/// Reads a user's live sessions, with their true last-active, and nothing that is past a deadline.
pub fn live_of(tx: &mut Tx, user: UserId) -> Result<Vec<DeviceSession>, Fault> {
    Ok(open_of(tx, user)?.into_iter().filter(|(_, verdict)| *verdict == Verdict::Live).map(|(session, _)| session).collect())
}

/// Reads a user's sessions that are not marked as ended, each with its verdict.
pub(super) fn open_of(tx: &mut Tx, user: UserId) -> Result<Vec<(DeviceSession, Verdict)>, Fault> {
    let rows: Vec<DeviceSession> = tx.rows(select_sessions!("user_id = ?1 AND ended_at IS NULL"), (user,))?;
    let now = tx.now();
    let judged = rows.into_iter().map(|session| session.brought_up_to_date(tx)).map(|session| {
        let verdict = judge(&session.limits, session.last_active_at, now);
        (session, verdict)
    });
    Ok(judged.collect())
}
