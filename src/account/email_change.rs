//! `PUT /me/email`, `POST /email/change`, `POST /email/undo`: another address, and the way back.
//!
//! ```text
//!   PUT /me/email ──▶ letter to the new address (link, 24 h)      nothing has changed yet;
//!                     notice to the old one                       a newer request, a new password, … end the link
//!   POST /email/change ──▶ the account has moved; every other session ends; the old address gets the way back (7 days)
//!   POST /email/undo ──▶ the old address is back, every session has ended, the password is worth nothing
//! ```
//!
//! A link confirms the address that it was sent to, and no other (EML-03). The way back is not disarmed by a change of password
//! or by another change of address: of several the oldest wins, and ends those that came after it. Whether the new address has
//! an account already is told to its owner only, by letter.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::email::Email;
use super::password_change::void_password;
use super::{User, UserView, by_email, by_id, of_session};
use crate::app::App;
use crate::client::Client;
use crate::clock::Timestamp;
use crate::cookie::Name;
use crate::db::{Fault, Tx};
use crate::device_sessions::{self, DeviceSession, EndReason, holding, live_with, revoke_all_but, set_cookie, still_current};
use crate::error::{Error, Problem, Refusal};
use crate::event::{Event, Scene, record, record_asked};
use crate::factor::password::Password;
use crate::form::{Form, FromForm, Json, NoQuery, Query, Rules};
use crate::guard::{ADMIN, SignedIn};
use crate::id::UserId;
use crate::letter_token::{self, Grant, Purpose, mint, spend};
use crate::live_sessions::LiveSession;
use crate::secret::{Token, TokenHash};
use crate::session_security::{forget_all_known, rotate};

/// Asks for another address. Nothing changes until the letter that goes there is confirmed.
#[utoipa::path(put, path = "/me/email", tag = "Account", operation_id = "ask_for_email_change", request_body = EmailChange, security(("session" = [])),
    responses((status = 202), (status = 403, body = Problem), (status = 429, body = Problem, headers(("RateLimit" = String), ("RateLimit-Policy" = String)))))]
pub async fn ask(
    State(app): State<App>,
    SignedIn(me): SignedIn,
    client: Client,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<EmailChange>,
) -> Result<Response, Error> {
    let EmailChange { email, current_password } = ask;
    let user = super::prove_again(&app, &me, &client, current_password).await?;
    // Also of the owner of an account: to as many strangers as they like we would write in their name.
    let version = user.security_version;
    let asked = app.floods.letters.meter(client.ip, async {
        let scene = client.scene().await?;
        app.db.write_evenly(move |tx| post_letters(tx, &me, &email, version, scene.clone())).await?;
        Ok(StatusCode::ACCEPTED)
    });
    Ok(asked.await)
}

/// What a change of address sends.
#[derive(ToSchema)]
pub struct EmailChange {
    /// One plain address, at most 254 bytes.
    #[schema(value_type = String, format = Email, max_length = 254, example = "ada@example.org")]
    email: Email,
    /// The one that counts now.
    #[schema(value_type = String, format = Password)]
    current_password: Password,
}

impl FromForm for EmailChange {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let (email, current) = (Email::take(form, "email"), Password::take(form, "current_password"));
        Some(EmailChange { email: email?, current_password: current? })
    }
}

/// Posts the link and the notice. To an address that has an account goes another letter, and nobody else is told.
fn post_letters(tx: &mut Tx, me: &LiveSession, email: &Email, version: i64, scene: Scene) -> Result<(), Error> {
    still_current(tx, me)?;
    let user = of_session(tx, me.user_id)?;
    if user.security_version != version {
        // The password changed on another device while this one was proving the old one.
        return Err(Refusal::WrongCurrentPassword.into());
    }
    letter_token::kill_with_letters(tx, me.user_id, Purpose::ChangeEmail)?;
    let scene = scene.about(me.id);
    if !user.view.email_verified && address_of(&user)?.canonical() == email.canonical() {
        // The link of a change takes the mailbox alone. Whoever signed up with somebody else's address could so have it verified
        // by a click of theirs, and keep the password; the link that confirms an address takes that or a session too. VER-01.
        return Ok(record_asked(tx, scene.whose(me.user_id), Event::VerificationRequested)?);
    }
    record(tx, scene.clone().whose(me.user_id), Event::EmailChangeRequested { to: email.clone() })?;
    if let Some(owner) = by_email(tx, email)?.filter(|owner| owner.view.id != me.user_id) {
        letter_token::kill_with_letters(tx, me.user_id, Purpose::ChangeEmail)?;
        record(tx, Scene::to(owner.view.id), Event::AddressInUse)?;
    }
    Ok(())
}

/// Trades the token of a letter for the address that it was sent to. Every session ends but the one that comes with it.
#[utoipa::path(post, path = "/email/change", tag = "Letters", operation_id = "change_email", request_body = LetterToken,
    responses((status = 200, body = EmailChanged, headers(("Set-Cookie" = String, description = "The session cookie, if the request had a live session of the account"))),
        (status = 409, body = Problem)))]
pub async fn confirm(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<LetterToken>,
) -> Result<Response, Error> {
    let token = ask.token.ok_or(Refusal::InvalidToken)?;
    let moved = move_account(&app, &client, &headers, token.hash()).await?;
    let body = axum::Json(EmailChanged { user: moved.user.clone(), signed_out: moved.signed_out });
    Ok(moved.with_cookie(&app, body))
}

/// What carries out what a letter asks.
#[derive(ToSchema)]
pub struct LetterToken {
    /// The end of the letter's link.
    #[schema(value_type = String)]
    token: Option<Token>,
}

impl FromForm for LetterToken {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(LetterToken { token: letter_token::take(form)? })
    }
}

/// The answer to a change of address.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmailChanged {
    /// Who, with the address that counts now.
    pub user: UserView,
    /// How many sessions were ended.
    pub signed_out: u64,
}

/// An account with another address.
pub struct Moved {
    user: UserView,
    signed_out: u64,
    stays: Option<(DeviceSession, Token)>,
    now: Timestamp,
}

impl Moved {
    /// Puts the cookie of the session that stays on an answer.
    pub fn with_cookie(self, app: &App, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        if let Some((session, token)) = self.stays {
            set_cookie(&mut response, app.cookies.session(&token, session.remember, session.limits.expires_at, self.now));
        }
        response
    }
}

/// Moves an account to the address that a token was sent to.
///
/// # Errors
/// `400 invalid_token`; `409 email_taken` when the address has got an account meanwhile.
pub async fn move_account(app: &App, client: &Client, headers: &HeaderMap, token: TokenHash) -> Result<Moved, Error> {
    letter_token::refuse_unknown(app, Purpose::ChangeEmail, token).await?;
    let held = app.cookies.presented_hash(headers, Name::Session);
    let scene = client.scene().await?;
    app.db.write(move |tx| change(tx, &token, held.as_ref(), scene.clone())).await
}

fn change(tx: &mut Tx, token: &TokenHash, held: Option<&TokenHash>, scene: Scene) -> Result<Moved, Error> {
    let grant = spend(tx, Purpose::ChangeEmail, token)?.ok_or(Refusal::InvalidToken)?;
    let user = by_id(tx, grant.user)?.filter(|user| !user.disabled).ok_or(Refusal::InvalidToken)?;
    let (id, to) = (user.view.id, grant.address()?);
    let from = address_of(&user)?;
    if !set_address(tx, id, &to)? {
        return Err(Refusal::EmailTaken.into());
    }
    letter_token::kill_short_lived(tx, id)?;
    let stays = rotate_own(tx, id, held)?;
    let signed_out = revoke_all_but(tx, id, stays.as_ref().map(|(session, _)| session.id), "email_changed", scene.clone())?;
    record(tx, scene.whose(id), Event::EmailChanged { from, to })?;
    Ok(Moved { user: of_session(tx, id)?.view, signed_out, stays, now: tx.now() })
}

/// Gives the session that came along a new token, if it is one of this user.
fn rotate_own(tx: &mut Tx, user: UserId, held: Option<&TokenHash>) -> Result<Option<(DeviceSession, Token)>, Fault> {
    let Some(held) = held else { return Ok(None) };
    let Some(session) = live_with(tx, held)?.filter(|session| session.user_id == user) else { return Ok(None) };
    let Some(token) = rotate(tx, session.id, held)? else { return Ok(None) };
    let session = holding(tx, &token.hash())?.ok_or_else(|| Fault::broken("a rotated session is gone"))?;
    Ok(Some((session, token)))
}

/// Gives an account an address that was proved; false when another account has it. What was begun with the old one ends.
fn set_address(tx: &mut Tx, user: UserId, to: &Email) -> Result<bool, Fault> {
    let changed = tx.run(
        "UPDATE users SET email = ?2, email_canonical = ?3, email_verified = 1, security_version = security_version + 1
         WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM users AS other WHERE other.email_canonical = ?3 AND other.id <> ?1)",
        (user, to.shown(), to.canonical()),
    )?;
    Ok(changed == 1)
}

fn address_of(user: &User) -> Result<Email, Fault> {
    Email::parse(&user.view.email).ok_or_else(|| Fault::broken("an account's address is none"))
}

/// Trades the token of a letter for the address that it was sent to, against a thief: ends every session, voids the password.
#[utoipa::path(post, path = "/email/undo", tag = "Letters", operation_id = "undo_email_change", request_body = LetterToken,
    responses((status = 204), (status = 409, body = Problem)))]
pub async fn undo(State(app): State<App>, client: Client, Query(NoQuery): Query<NoQuery>, Json(ask): Json<LetterToken>) -> Result<StatusCode, Error> {
    let token = ask.token.ok_or(Refusal::InvalidToken)?;
    take_back(&app, &client, token.hash()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Brings an address back, and gives the right to choose a new password.
///
/// # Errors
/// `400 invalid_token`; `409 email_taken` when the address has got a verified account meanwhile.
pub async fn take_back(app: &App, client: &Client, token: TokenHash) -> Result<Token, Error> {
    letter_token::refuse_unknown(app, Purpose::UndoEmailChange, token).await?;
    let scene = client.scene().await?;
    app.db.write(move |tx| bring_back(tx, &token, scene.clone())).await
}

fn bring_back(tx: &mut Tx, token: &TokenHash, scene: Scene) -> Result<Token, Error> {
    let grant = spend(tx, Purpose::UndoEmailChange, token)?.ok_or(Refusal::InvalidToken)?;
    let user = by_id(tx, grant.user)?.ok_or(Refusal::InvalidToken)?;
    let (id, to) = (user.view.id, grant.address()?);
    let from = address_of(&user)?;
    make_way(tx, &grant, &to)?;
    if !set_address(tx, id, &to)? {
        return Err(Refusal::EmailTaken.into());
    }
    letter_token::kill_later_ways_back(tx, id, grant.letter)?;
    letter_token::kill_links_elsewhere(tx, id, &to)?;
    void_password(tx, id)?;
    // Whoever moved the account is not known any more, or the alarm would be mute from now on.
    forget_all_known(tx, id)?;
    revoke_all_but(tx, id, None, "email_change_undone", scene.clone())?;
    record(tx, scene.whose(id), Event::EmailChangeUndone { from, to })?;
    // In the same transaction: a link that is spent has led on.
    let next = grant.next_step(tx);
    Ok(mint(tx, Purpose::ResetPassword, &next)?)
}

/// Some accounts do not keep an address from the link that brings it back: a thief could otherwise open one to stop the undoing.
/// One that nobody has verified; and one that is younger than the link and came to the address by a way back itself. That is how
/// a thief has the owner verify it, with a link that looks like the right one. But never an administrator's.
fn make_way(tx: &mut Tx, grant: &Grant, address: &Email) -> Result<(), Fault> {
    let Some(other) = by_email(tx, address)?.filter(|other| other.view.id != grant.user && other.view.role != ADMIN) else { return Ok(()) };
    let id = other.view.id;
    if other.view.email_verified && !(id.0 > grant.letter.0 && was_brought_back(tx, id)?) {
        return Ok(());
    }
    let sessions = device_sessions::settle(tx, id)?;
    device_sessions::end(tx, &sessions, EndReason::Revoked)?;
    tx.run("DELETE FROM users WHERE id = ?1", (id,)).map(|_| ())
}

fn was_brought_back(tx: &mut Tx, user: UserId) -> Result<bool, Fault> {
    let found: Option<i64> = tx.row("SELECT 1 FROM events WHERE user_id = ?1 AND kind = 'email_change_undone' LIMIT 1", (user,))?;
    Ok(found.is_some())
}
