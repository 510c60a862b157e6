//! `PUT /me/password`: a new password, a new token for this session, and the end of the others.
//!
//! Whoever holds a copy of any of the account's cookies is out with the next request (REV-02, FIX-02). The current password
//! is asked for, so a borrowed browser cannot take the account over. Of parallel changes with one token exactly one wins; the
//! others get `401 session_rotated` and have changed nothing, whichever password they sent.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::email::Email;
use super::{UserView, of_session};
use crate::app::App;
use crate::client::Client;
use crate::clock::Timestamp;
use crate::db::{Fault, Tx};
use crate::device_sessions::{DeviceSession, SessionView, end_others_of, holding, set_cookie, still_current};
use crate::error::{Error, Problem, Refusal};
use crate::event::{By, Event, Scene, record};
use crate::factor::password::{Password, PasswordHash};
use crate::form::{Form, FromForm, Json, NoQuery, Query, Rules};
use crate::guard::SignedIn;
use crate::id::UserId;
use crate::letter_token;
use crate::live_sessions::LiveSession;
use crate::secret::Token;
use crate::session_security::{judge, rotate};

/// Changes the password of whoever is signed in.
#[utoipa::path(put, path = "/me/password", tag = "Account", operation_id = "change_password", request_body = PasswordChange, security(("session" = [])),
    responses((status = 200, body = PasswordChanged, headers(("Set-Cookie" = String, description = "The session cookie; at sign-in the device cookie too"))), (status = 429, body = Problem)))]
pub async fn change(
    State(app): State<App>,
    SignedIn(me): SignedIn,
    client: Client,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<PasswordChange>,
) -> Result<Response, Error> {
    let PasswordChange { current_password, new_password, sign_out_others } = ask;
    let user = super::prove_again(&app, &me, &client, current_password).await?;
    let hash = app.hasher.hash(client.ip, new_password, app.db.chance()).await?;

    let version = user.security_version;
    let scene = client.scene().await?;
    let changed = app.db.write(move |tx| replace(tx, &me, &hash, version, sign_out_others, &scene)).await?;
    Ok(changed.answer(&app))
}

/// What a change of password sends.
#[derive(ToSchema)]
pub struct PasswordChange {
    /// The one that counts now.
    #[schema(value_type = String, format = Password)]
    current_password: Password,
    /// `PASSWORD_MIN_LENGTH` (8) to 256 characters, not a common one.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 256)]
    new_password: Password,
    /// Whether the other sessions end.
    #[schema(value_type = bool, required = false, default = true)]
    sign_out_others: bool,
}

impl FromForm for PasswordChange {
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self> {
        let email = rules.sender.and_then(|me| Email::parse(me.who.email()));
        let current = Password::take(form, "current_password");
        let new = Password::take_new(form, "new_password", rules.config.password_min_length, email.as_ref());
        let sign_out_others = form.flag("sign_out_others", true);
        Some(PasswordChange { current_password: current?, new_password: new?, sign_out_others: sign_out_others? })
    }
}

/// The answer to a change of password.
#[derive(Debug, Serialize, ToSchema)]
pub struct PasswordChanged {
    /// Who.
    pub user: UserView,
    /// The same session, with a new token.
    pub session: SessionView,
    /// How many other sessions were ended.
    pub signed_out: u64,
}

struct Changed {
    user: UserView,
    session: DeviceSession,
    token: Token,
    signed_out: u64,
    now: Timestamp,
}

/// Rotates, replaces the hash, ends the others: all or nothing.
fn replace(tx: &mut Tx, me: &LiveSession, hash: &PasswordHash, version: i64, sign_out_others: bool, scene: &Scene) -> Result<Changed, Error> {
    if let Some(reason) = holding(tx, &me.token)?.and_then(|session| judge(&session.limits, session.last_active_at, tx.now()).reason()) {
        // Its last moment came while the password was being hashed.
        return Err(Refusal::SessionEnded(reason).into());
    }
    let Some(token) = rotate(tx, me.id, &me.token)? else {
        still_current(tx, me)?;
        return Err(Refusal::Unauthenticated.into());
    };
    if !set_password(tx, me.user_id, hash, Some(version))? {
        // It changed on another device while this one was proving the old one.
        return Err(Refusal::WrongCurrentPassword.into());
    }
    let signed_out = if sign_out_others { end_others_of(tx, me, By::User, "password_changed", scene.clone())? } else { 0 };
    let session = holding(tx, &token.hash())?.ok_or_else(|| Fault::broken("a rotated session is gone"))?;
    record(tx, scene.clone().whose(me.user_id).about(me.id), Event::PasswordChanged { by: By::User })?;
    let user = of_session(tx, me.user_id)?.view;
    Ok(Changed { user, session, token, signed_out, now: tx.now() })
}

/// Stores a new hash, if the account still is what `version` says; `None` asks for no version. The links of older letters are
/// worth nothing from then on, but those that turn a thief out.
pub fn set_password(tx: &mut Tx, user: UserId, hash: &PasswordHash, version: Option<i64>) -> Result<bool, Fault> {
    let changed = tx.run(
        "UPDATE users SET password_hash = ?2, security_version = security_version + 1 WHERE id = ?1 AND (?3 = 1 OR security_version = ?4)",
        (user, hash.as_str(), version.is_none(), version),
    )?;
    if changed == 1 {
        letter_token::kill_short_lived(tx, user)?;
    }
    Ok(changed == 1)
}

/// Makes the password worth nothing, and with it whatever was begun with it. It can never fit again, and a check of it takes
/// as long as any.
pub fn void_password(tx: &mut Tx, user: UserId) -> Result<(), Fault> {
    tx.run("UPDATE users SET password_hash = NULL, security_version = security_version + 1 WHERE id = ?1", (user,))?;
    letter_token::kill_short_lived(tx, user)
}

impl Changed {
    fn answer(self, app: &App) -> Response {
        let cookie = app.cookies.session(&self.token, self.session.remember, self.session.limits.expires_at, self.now);
        let body = PasswordChanged { user: self.user, session: self.session.view(true), signed_out: self.signed_out };
        let mut response = axum::Json(body).into_response();
        set_cookie(&mut response, cookie);
        response
    }
}
