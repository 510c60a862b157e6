//! Everything that can happen to an account, and the one way to say that it did.
//!
//! A slice states one fact, in the transaction of its cause: [`record`] writes the audit row, puts a letter into the outbox
//! where the user is to be told, and, once the whole has committed, a line into the log. What was rolled back was never
//! said. No event holds a secret, and what a stranger typed is not repeated: a failed sign-in names an account only if
//! there is one.

pub mod letters;
pub mod outbox;

use std::time::Duration;

use serde_json::{Value, json};

use crate::account::email::Email;
use crate::clock::Timestamp;
use crate::db::{Fault, Tx};
use crate::device_sessions::{DeviceSession, EndReason};
use crate::guessing::Over;
use crate::id::{EventId, SessionId, UserId, floor};
use letters::{LetterKind, To};

/// Who caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The user, or whoever holds their credentials.
    User,
    /// An administrator, through the API.
    Admin(UserId),
    /// An operator, at the command line.
    Cli,
}

impl By {
    fn word(self) -> &'static str {
        match self {
            By::User => "user",
            By::Admin(_) => "admin",
            By::Cli => "cli",
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Their names are the contract's.
pub enum Event {
    SignedUp {
        by: By,
    },
    SignedIn {
        new_ip: bool,
        new_device: bool,
        replaced: u64,
    },
    SignInFailed {
        disabled: bool,
    },
    /// So many wrong passwords were tried that the next ones wait.
    SignInThrottled {
        over: Over,
    },
    NewIpLogin,
    /// `also_new_ip`: the letter about the new IP tells of the device too, so there is only one.
    NewDeviceLogin {
        also_new_ip: bool,
    },
    SignedOut,
    SessionRevoked {
        by: By,
    },
    SessionsRevoked {
        by: By,
        count: u64,
        because: &'static str,
    },
    SessionTimedOut {
        reason: EndReason,
    },
    PasswordChanged {
        by: By,
    },
    RotatedTokenReused,
    RoleChanged {
        by: By,
        from: String,
        to: String,
    },
    AccountDisabled {
        by: By,
    },
    AccountEnabled {
        by: By,
    },
    VerificationRequested,
    EmailVerified,
    /// Somebody wanted to open an account with this one's address, or to move theirs to it.
    AddressInUse,
    PasswordResetRequested,
    PasswordReset,
    EmailChangeRequested {
        to: Email,
    },
    EmailChanged {
        from: Email,
        to: Email,
    },
    EmailChangeUndone {
        from: Email,
        to: Email,
    },
    /// "This was not me."
    SessionDisowned,
    LetterFailed {
        letter: LetterKind,
        attempts: i64,
    },
}

/// Every kind, as the API spells it.
pub const KINDS: [&str; 25] = [
    "signed_up",
    "signed_in",
    "sign_in_failed",
    "sign_in_throttled",
    "new_ip_login",
    "new_device_login",
    "signed_out",
    "session_revoked",
    "sessions_revoked",
    "session_timed_out",
    "password_changed",
    "rotated_token_reused",
    "role_changed",
    "account_disabled",
    "account_enabled",
    "verification_requested",
    "email_verified",
    "address_in_use",
    "password_reset_requested",
    "password_reset",
    "email_change_requested",
    "email_changed",
    "email_change_undone",
    "session_disowned",
    "letter_failed",
];

impl Event {
    /// How the API spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::SignedUp { .. } => "signed_up",
            Event::SignedIn { .. } => "signed_in",
            Event::SignInFailed { .. } => "sign_in_failed",
            Event::SignInThrottled { .. } => "sign_in_throttled",
            Event::NewIpLogin => "new_ip_login",
            Event::NewDeviceLogin { .. } => "new_device_login",
            Event::SignedOut => "signed_out",
            Event::SessionRevoked { .. } => "session_revoked",
            Event::SessionsRevoked { .. } => "sessions_revoked",
            Event::SessionTimedOut { .. } => "session_timed_out",
            Event::PasswordChanged { .. } => "password_changed",
            Event::RotatedTokenReused => "rotated_token_reused",
            Event::RoleChanged { .. } => "role_changed",
            Event::AccountDisabled { .. } => "account_disabled",
            Event::AccountEnabled { .. } => "account_enabled",
            Event::VerificationRequested => "verification_requested",
            Event::EmailVerified => "email_verified",
            Event::AddressInUse => "address_in_use",
            Event::PasswordResetRequested => "password_reset_requested",
            Event::PasswordReset => "password_reset",
            Event::EmailChangeRequested { .. } => "email_change_requested",
            Event::EmailChanged { .. } => "email_changed",
            Event::EmailChangeUndone { .. } => "email_change_undone",
            Event::SessionDisowned => "session_disowned",
            Event::LetterFailed { .. } => "letter_failed",
        }
    }

    fn by(&self) -> By {
        match self {
            Event::SignedUp { by }
            | Event::SessionRevoked { by }
            | Event::SessionsRevoked { by, .. }
            | Event::PasswordChanged { by }
            | Event::RoleChanged { by, .. }
            | Event::AccountDisabled { by }
            | Event::AccountEnabled { by } => *by,
            _ => By::User,
        }
    }

    /// What its reader needs beyond the kind.
    fn detail(&self) -> Value {
        match self {
            Event::SignedIn { new_ip, new_device, replaced } => json!({"new_ip": new_ip, "new_device": new_device, "replaced": replaced}),
            Event::SessionsRevoked { by, count, because } => json!({"by": by.word(), "count": count, "because": because}),
            Event::SessionTimedOut { reason } => json!({"reason": reason.code()}),
            Event::RoleChanged { by, from, to } => json!({"by": by.word(), "from": from, "to": to}),
            Event::SignedUp { by }
            | Event::SessionRevoked { by }
            | Event::PasswordChanged { by }
            | Event::AccountDisabled { by }
            | Event::AccountEnabled { by } => json!({"by": by.word()}),
            // The answer to a stranger is the same; the operator may know that it was not the password.
            Event::SignInFailed { disabled: true } => json!({"disabled": true}),
            Event::SignInThrottled { over } => json!({"over": over.word()}),
            Event::EmailChangeRequested { to } => json!({"to": to.shown()}),
            Event::EmailChanged { from, to } | Event::EmailChangeUndone { from, to } => json!({"from": from.shown(), "to": to.shown()}),
            Event::LetterFailed { letter, attempts } => json!({"letter": letter.word(), "attempts": attempts}),
            _ => json!({}),
        }
    }

    /// Which letters it makes, and to whom. ASVS 6.3.5, 6.3.7.
    fn letters(&self) -> Vec<(LetterKind, To)> {
        let owner = |kind| vec![(kind, To::Owner)];
        match self {
            Event::SignedUp { by: By::User } | Event::VerificationRequested => owner(LetterKind::VerifyEmail),
            Event::SignInThrottled { .. } => owner(LetterKind::SignInThrottled),
            Event::NewIpLogin => owner(LetterKind::NewIpLogin),
            Event::NewDeviceLogin { also_new_ip: false } => owner(LetterKind::NewDeviceLogin),
            Event::PasswordChanged { .. } | Event::PasswordReset => owner(LetterKind::PasswordChanged),
            // The letter about a change tells of the sessions that it ended.
            Event::SessionsRevoked { because: "asked", .. } => owner(LetterKind::SessionsRevoked),
            Event::RotatedTokenReused => owner(LetterKind::RotatedTokenReused),
            Event::RoleChanged { .. } => owner(LetterKind::RoleChanged),
            Event::AccountDisabled { .. } => owner(LetterKind::AccountDisabled),
            Event::AccountEnabled { .. } => owner(LetterKind::AccountEnabled),
            Event::AddressInUse => owner(LetterKind::AddressInUse),
            Event::PasswordResetRequested => owner(LetterKind::ResetPassword),
            Event::EmailChangeRequested { to } => vec![(LetterKind::ChangeEmail, To::Address(to.clone())), (LetterKind::EmailChangeRequested, To::Owner)],
            Event::EmailChanged { from, .. } => vec![(LetterKind::EmailChanged, To::Address(from.clone()))],
            _ => Vec::new(),
        }
    }

    /// Whether an operator should look at it.
    fn is_alarm(&self) -> bool {
        matches!(
            self,
            Event::SignInThrottled { .. }
                | Event::NewIpLogin
                | Event::RotatedTokenReused
                | Event::SessionDisowned
                | Event::EmailChangeUndone { .. }
                | Event::LetterFailed { .. }
        )
    }
}

/// Whom an event concerns, and where it came from.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    user: Option<UserId>,
    session: Option<SessionId>,
    ip: Option<String>,
    device_name: Option<String>,
}

impl Scene {
    /// At a session, as it was opened.
    pub fn of(session: &DeviceSession) -> Self {
        Scene { user: Some(session.user_id), session: Some(session.id), ip: Some(session.ip.clone()), device_name: Some(session.device_name.clone()) }
    }

    /// Done to an account from elsewhere.
    pub fn to(user: UserId) -> Self {
        Scene { user: Some(user), ..Scene::default() }
    }

    /// Concerning this account.
    pub fn whose(mut self, user: UserId) -> Self {
        self.user = Some(user);
        self
    }

    /// Concerning this account, if there is one.
    pub fn whose_if(self, user: Option<UserId>) -> Self {
        user.into_iter().fold(self, Scene::whose)
    }

    /// About this session, without claiming that it was done there.
    pub fn about(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Done with this device.
    pub fn with(mut self, device_name: &str) -> Self {
        self.device_name = Some(device_name.into());
        self
    }

    /// Done from this address.
    pub fn from(mut self, ip: impl ToString) -> Self {
        self.ip = Some(ip.to_string());
        self
    }
}

/// Requests of one kind that are recorded for one account in an hour; its letters are capped below that.
const MOST_ASKED: i64 = 20;
/// The same for all addresses that have no account.
const MOST_ASKED_OF_NONE: i64 = 1000;

/// Says that somebody asked for something that anybody may ask for, unless it has been said often enough within the hour.
pub fn record_asked(tx: &mut Tx, scene: Scene, event: Event) -> Result<(), Fault> {
    let since = EventId(floor(tx.now().minus(Duration::from_secs(3600))));
    let (recent, most): (Vec<i64>, i64) = match scene.user {
        Some(user) => {
            let sql = "SELECT 1 FROM events WHERE user_id = ?1 AND kind = ?2 AND id > ?3 LIMIT ?4";
            (tx.rows(sql, (user, event.kind(), since, MOST_ASKED))?, MOST_ASKED)
        }
        None => {
            let sql = "SELECT 1 FROM events WHERE kind = ?1 AND id > ?2 AND user_id IS NULL LIMIT ?3";
            (tx.rows(sql, (event.kind(), since, MOST_ASKED_OF_NONE))?, MOST_ASKED_OF_NONE)
        }
    };
    if (recent.len() as i64) < most { record(tx, scene, event) } else { Ok(()) }
}

/// Says that it happened.
pub fn record(tx: &mut Tx, scene: Scene, event: Event) -> Result<(), Fault> {
    let (id, now) = (EventId(tx.next_id()), tx.now());
    let actor = match event.by() {
        By::Admin(admin) => Some(admin),
        By::User | By::Cli => None,
    };
    let detail = event.detail().to_string();
    tx.run(
        "INSERT INTO events (id, at, kind, user_id, actor_id, session_id, ip, device_name, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        (id, now, event.kind(), scene.user, actor, scene.session, scene.ip.as_deref(), scene.device_name.as_deref(), &detail),
    )?;
    if let Some(user) = scene.user {
        for (kind, to) in event.letters() {
            outbox::post(tx, id, user, scene.session, kind, &to)?;
        }
    }
    tx.after_commit(move || log(&scene, &event));
    Ok(())
}

fn log(scene: &Scene, event: &Event) {
    let user = scene.user.map(|id| id.to_string());
    let session = scene.session.map(|id| id.to_string());
    let (user, session) = (user.as_deref(), session.as_deref());
    let (ip, device) = (scene.ip.as_deref(), scene.device_name.as_deref());
    let (kind, detail) = (event.kind(), event.detail());
    if event.is_alarm() {
        tracing::warn!(event = kind, user, session, ip, device, %detail);
    } else {
        tracing::info!(event = kind, user, session, ip, device, %detail);
    }
}

/// One event, as it is read back.
#[derive(Debug)]
pub struct Recorded {
    /// Its id, which is also the cursor of its place in the list.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: String,
    /// Whose.
    pub user_id: Option<UserId>,
    /// The administrator who did it.
    pub actor_id: Option<UserId>,
    /// At or about which session.
    pub session_id: Option<SessionId>,
    /// From where.
    pub ip: Option<String>,
    /// With what.
    pub device_name: Option<String>,
    /// The rest.
    pub detail: Value,
}

impl crate::db::FromRow for Recorded {
    fn from_row(row: &crate::db::Row<'_>) -> Result<Self, Fault> {
        let detail: String = row.get(8)?;
        Ok(Recorded {
            id: row.get(0)?,
            at: row.get(1)?,
            kind: row.get(2)?,
            user_id: row.get(3)?,
            actor_id: row.get(4)?,
            session_id: row.get(5)?,
            ip: row.get(6)?,
            device_name: row.get(7)?,
            detail: serde_json::from_str(&detail).map_err(|e| Fault::broken(format!("an event's detail: {e}")))?,
        })
    }
}

/// Reads one event.
pub fn by_id(tx: &mut Tx, id: EventId) -> Result<Option<Recorded>, Fault> {
    tx.row("SELECT id, at, kind, user_id, actor_id, session_id, ip, device_name, detail FROM events WHERE id = ?1", (id,))
}

/// Reads a user's events, newest first, `limit` at most.
pub fn of_user(tx: &mut Tx, user: UserId, before: EventId, limit: i64) -> Result<Vec<Recorded>, Fault> {
    tx.rows(
        "SELECT id, at, kind, user_id, actor_id, session_id, ip, device_name, detail FROM events
         WHERE user_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3",
        (user, before, limit),
    )
}

/// Reads the audit log, newest first, `limit` at most; each filter has a statement that an index serves.
pub fn all(tx: &mut Tx, kind: Option<&str>, user: Option<UserId>, before: EventId, limit: i64) -> Result<Vec<Recorded>, Fault> {
    match (kind, user) {
        (None, None) => tx.rows(
            "SELECT id, at, kind, user_id, actor_id, session_id, ip, device_name, detail FROM events
             WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            (before, limit),
        ),
        (None, Some(user)) => of_user(tx, user, before, limit),
        (Some(kind), None) => tx.rows(
            "SELECT id, at, kind, user_id, actor_id, session_id, ip, device_name, detail FROM events
             WHERE kind = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3",
            (kind, before, limit),
        ),
        (Some(kind), Some(user)) => tx.rows(
            "SELECT id, at, kind, user_id, actor_id, session_id, ip, device_name, detail FROM events
             WHERE user_id = ?1 AND kind = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4",
            (user, kind, before, limit),
        ),
    }
}
