//! Accounts: who they are, and how a sign-in becomes a session.

pub mod email;
pub mod email_change;
pub mod email_verification;
pub mod login;
pub mod logout;
pub mod me;
pub mod password_change;
pub mod password_reset;
pub mod signup;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::client::{Client, Device};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::db::{Fault, FromRow, Row, Tx};
use crate::device_sessions::{self, DeviceSession, EndReason, Opening, SessionView, set_cookie};
use crate::error::{Error, Refusal};
use crate::event::{Event, Scene, record};
use crate::factor::password::{Password, PasswordHash};
use crate::guessing::{self, Guess};
use crate::id::UserId;
use crate::live_sessions::Session;
use crate::secret::{Token, TokenHash};
use crate::session_security::{Limits, is_new_device, is_new_ip, judge};

/// A user, as the API shows one.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = User)]
#[allow(missing_docs)] // The contract's words.
pub struct UserView {
    #[schema(value_type = uuid::Uuid)]
    pub id: UserId,
    #[schema(example = "ada@example.com")]
    pub email: String,
    pub email_verified: bool,
    /// Empty when none was given.
    pub name: String,
    #[schema(example = "user")]
    pub role: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A user, as the database holds one.
#[derive(Debug, Clone)]
pub struct User {
    /// What others may see of it.
    pub view: UserView,
    /// Disabled accounts open nothing.
    pub disabled: bool,
    /// `None`: there is no password.
    pub password: Option<PasswordHash>,
    /// Rises with every change of password, role or standing.
    pub security_version: i64,
    /// Has signed in before.
    pub has_signed_in: bool,
}

macro_rules! select_users {
    ($rest:literal) => {
        concat!("SELECT id, email, email_verified, name, role, created_at, disabled_at, password_hash, security_version, first_signed_in_at FROM users ", $rest)
    };
}
pub(crate) use select_users;

impl FromRow for User {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        let (disabled_at, first_signed_in_at): (Option<Timestamp>, Option<Timestamp>) = (row.get(6)?, row.get(9)?);
        Ok(User {
            view: UserView { id: row.get(0)?, email: row.get(1)?, email_verified: row.get(2)?, name: row.get(3)?, role: row.get(4)?, created_at: row.get(5)? },
            disabled: disabled_at.is_some(),
            password: row.get::<Option<String>>(7)?.map(PasswordHash::stored),
            security_version: row.get(8)?,
            has_signed_in: first_signed_in_at.is_some(),
        })
    }
}

/// Reads a user.
pub fn by_id(tx: &mut Tx, id: UserId) -> Result<Option<User>, Fault> {
    tx.row(select_users!("WHERE id = ?1"), (id,))
}

/// Reads a user that must be there: a session points to it.
pub fn of_session(tx: &mut Tx, id: UserId) -> Result<User, Fault> {
    by_id(tx, id)?.ok_or_else(|| Fault::broken("a session without a user"))
}

/// Proves that whoever asks with a session knows the current password, and reads the user whose it is.
///
/// # Errors
/// `403 invalid_credentials`; `429` after too many wrong ones.
pub async fn prove_again(app: &App, me: &Session, client: &Client, password: Password) -> Result<User, Error> {
    let (own, asking, ip) = (app.clone(), me.clone(), client.ip);
    // The user before the session: whoever changes the password rotates the session too, so the loser of a race learns that it
    // was rotated, not that its password is wrong.
    let who_asks = move |tx: &mut Tx| {
        let user = of_session(tx, asking.user_id)?;
        device_sessions::still_current(tx, &asking)?;
        let guess = Guess::by_session(tx, &own.config, &asking, ip)?;
        Ok((user, guess))
    };
    let (user, attempt) = guessing::begin(app, ip, who_asks).await?;
    let (checked, attempt) = attempt.check(app, ip, password, user.password.clone(), false).await?;
    match attempt.settle(app, checked.fits).await? {
        None => Ok(user),
        Some(failed) => {
            failed.tell_alone(app, client.scene().await?).await?;
            Err(Refusal::WrongCurrentPassword.into())
        }
    }
}

/// Reads a user by the canonical form of the address.
pub fn by_email(tx: &mut Tx, email: &email::Email) -> Result<Option<User>, Fault> {
    tx.row(select_users!("WHERE email_canonical = ?1"), (email.canonical(),))
}

/// The answer to a sign-in.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignedInView {
    /// Who.
    pub user: UserView,
    /// On which device.
    pub session: SessionView,
}

/// How somebody came to sign in.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// From where.
    pub client: Client,
    /// With what; named before the transaction, since naming costs.
    pub device: Device,
    /// The session token that the browser held. It is never adopted; a live session that it named ends.
    pub held: Option<TokenHash>,
    /// What names the browser.
    pub known_device: Option<Token>,
    /// Whether the session is to outlive the browser.
    pub remember: bool,
}

impl Arrival {
    /// Notes how a request arrives.
    ///
    /// # Errors
    /// As [`Client::device`].
    pub async fn of(app: &App, client: Client, headers: &axum::http::HeaderMap, remember: bool) -> Result<Self, Error> {
        Ok(Arrival {
            device: client.device().await?,
            held: app.cookies.presented_hash(headers, crate::cookie::Name::Session),
            known_device: app.cookies.presented(headers, crate::cookie::Name::Device),
            client,
            remember,
        })
    }

    /// Where it comes from, for the record of what comes of it.
    pub fn scene(&self, user: Option<UserId>) -> Scene {
        let scene = user.map_or_else(Scene::default, Scene::to);
        scene.from(self.client.ip).with(&self.device.name)
    }
}

/// A session that has just been opened, with the secrets for its cookies.
#[derive(Debug)]
pub struct SignIn {
    user: UserView,
    session: DeviceSession,
    token: Token,
    device: Token,
    now: Timestamp,
}

/// Opens a session for a user who has proved who they are. The account was read in this transaction.
pub fn sign_in(tx: &mut Tx, user: User, arrival: &Arrival, config: &Config) -> Result<SignIn, Fault> {
    let (id, now) = (user.view.id, tx.now());
    let known_since = now.minus(config.known_ip_retention);
    // The first sign-in of an account is new in every way, and so in none.
    let new_ip = is_new_ip(tx, id, arrival.client.ip, known_since)? && user.has_signed_in;
    let device = is_new_device(tx, id, arrival.known_device.as_ref(), known_since)?;
    let new_device = device.is_new && user.has_signed_in;
    if !user.has_signed_in {
        tx.run("UPDATE users SET first_signed_in_at = ?2 WHERE id = ?1", (id, now))?;
    }
    let replaced_here = replace_held(tx, arrival.held.as_ref())?;
    let (session, token, made_room) = device_sessions::open(
        tx,
        Opening {
            user: id,
            limits: Limits::of(config, &user.view.role, arrival.remember, now),
            remember: arrival.remember,
            client: &arrival.client,
            device: arrival.device.clone(),
            new_ip,
            new_device,
            device_hash: device.token.hash(),
            most: config.max_sessions_per_user,
        },
    )?;
    record(tx, Scene::of(&session), Event::SignedIn { new_ip, new_device, replaced: replaced_here + made_room })?;
    if new_ip {
        record(tx, Scene::of(&session), Event::NewIpLogin)?;
    }
    if new_device {
        record(tx, Scene::of(&session), Event::NewDeviceLogin { also_new_ip: new_ip })?;
    }
    Ok(SignIn { user: user.view, session, token, device: device.token, now })
}

/// One browser, one session: the one that it held ends, whosever it was. FIX-03.
fn replace_held(tx: &mut Tx, held: Option<&TokenHash>) -> Result<u64, Fault> {
    let Some(token) = held else { return Ok(0) };
    let Some(session) = device_sessions::holding(tx, token)? else { return Ok(0) };
    match judge(&session.limits, session.last_active_at, tx.now()).reason() {
        Some(reason) => device_sessions::time_out(tx, &session, reason).map(|()| 0),
        None => device_sessions::end(tx, &[session], EndReason::Replaced),
    }
}

impl SignIn {
    /// Writes the answer with its cookies.
    pub fn answer(self, status: StatusCode, app: &App) -> Response {
        let cookie = app.cookies.session(&self.token, self.session.remember, self.session.limits.expires_at, self.now);
        let view = SignedInView { user: self.user, session: self.session.view(true) };
        let mut response = (status, axum::Json(view)).into_response();
        set_cookie(&mut response, cookie);
        set_cookie(&mut response, app.cookies.device(&self.device));
        response
    }
}
