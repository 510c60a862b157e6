//! `POST /password/forgot`, `POST /password/reset`: a way back in for whoever has the mailbox.
//!
//! Asking tells nobody whether an account exists: the same answer for every address at the same time, whatever was to be
//! written, and no wait for a mail server (ENUM-02). The letter goes to the address on record, byte for byte, whatever spelling
//! was asked for (UNI-01). Its link is good for 30 minutes, once; it sets a password, ends every session, and signs nobody in
//! (RST-05). It also lets the browser in which the password was chosen sign in, however often others have guessed meanwhile.
//!
//! The letter also proves the address. If nobody had, the account may have been opened by a stranger in the owner's name: then
//! everything that was set before is forgotten (VER-01).

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

use super::email::Email;
use super::password_change::set_password;
use super::{User, by_email, by_id};
use crate::app::App;
use crate::client::Client;
use crate::cookie::Name;
use crate::db::{Fault, Tx};
use crate::device_sessions::{revoke_all, set_cookie};
use crate::error::{Error, FieldError, Problem, Refusal};
use crate::event::{By, Event, Scene, record, record_asked};
use crate::factor::password::{Password, PasswordHash};
use crate::form::{Form, FromForm, Json, NoQuery, Query, Rules};
use crate::guessing;
use crate::id::UserId;
use crate::letter_token::{self, Purpose, look, spend};
use crate::secret::{Token, TokenHash};
use crate::session_security::forget_all_known;
use crate::session_security::{Adopted, adopt_device, issued};

/// Sends a letter with a way to a new password, if the address has an account.
#[utoipa::path(post, path = "/password/forgot", tag = "Letters", operation_id = "forgot_password", request_body = Forgotten,
    responses((status = 202), (status = 429, body = Problem, headers(("RateLimit" = String), ("RateLimit-Policy" = String)))))]
pub async fn forgot(State(app): State<App>, client: Client, Query(NoQuery): Query<NoQuery>, Json(ask): Json<Forgotten>) -> Response {
    app.floods.letters.meter(client.ip, post_link(&app, &client, ask.email)).await
}

async fn post_link(app: &App, client: &Client, email: Email) -> Result<StatusCode, Error> {
    let scene = client.scene().await?;
    app.db.write_evenly(move |tx| ask_for_reset(tx, &email, scene.clone()).map_err(Error::from)).await?;
    Ok(StatusCode::ACCEPTED)
}

/// What asking for a new password sends.
#[derive(ToSchema)]
pub struct Forgotten {
    /// The account's address, in any case.
    #[schema(value_type = String, format = Email, max_length = 254, example = "ada@example.com")]
    email: Email,
}

impl FromForm for Forgotten {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(Forgotten { email: Email::take(form, "email")? })
    }
}

/// For an address without an account the event is recorded all the same: the same work, and the operator sees a search.
fn ask_for_reset(tx: &mut Tx, email: &Email, scene: Scene) -> Result<(), Fault> {
    let scene = match by_email(tx, email)? {
        Some(user) => scene.whose(user.view.id),
        None => scene,
    };
    record_asked(tx, scene, Event::PasswordResetRequested)
}

/// Trades the token of a letter for a new password. Ends every session and signs nobody in.
#[utoipa::path(post, path = "/password/reset", tag = "Letters", operation_id = "reset_password", request_body = Reset,
    responses((status = 204, headers(("Set-Cookie" = String, description = "The device cookie, if the browser has none of ours")))))]
pub async fn reset(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<Reset>,
) -> Result<Response, Error> {
    let token = ask.token.ok_or(Refusal::InvalidToken)?;
    let device = app.cookies.presented(&headers, Name::Device);
    let adopted = choose(&app, &client, device, token.hash(), ask.new_password).await?;
    Ok(with_cookie(&app, adopted, StatusCode::NO_CONTENT))
}

/// What a reset sends.
#[derive(ToSchema)]
pub struct Reset {
    /// The end of the letter's link.
    #[schema(value_type = String)]
    token: Option<Token>,
    /// `PASSWORD_MIN_LENGTH` (8) to 256 characters, not a common one.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 256)]
    new_password: Password,
}

impl FromForm for Reset {
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self> {
        let token = letter_token::take(form);
        // Whose it is, and so whether it is their address, is known only once the token is.
        let new = Password::take_new(form, "new_password", rules.config.password_min_length, None);
        Some(Reset { token: token?, new_password: new? })
    }
}

/// Names the browser on an answer, if it has no name of ours yet.
pub fn with_cookie(app: &App, adopted: Adopted, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    if let Some(name) = adopted.cookie {
        set_cookie(&mut response, app.cookies.device(&name));
    }
    response
}

/// Chooses a new password with a token.
///
/// # Errors
/// `400 invalid_token`; `422` for a password that is no good, with which the token stays good.
pub async fn choose(app: &App, client: &Client, device: Option<Token>, token: TokenHash, password: Password) -> Result<Adopted, Error> {
    // A token that is not good costs no hash.
    let user = app.db.glance(move |tx| owner_of(tx, &token)).await?.ok_or(Refusal::InvalidToken)?;
    if let Some((code, message)) = password.weakness(app.config.password_min_length, Email::parse(&user.view.email).as_ref()) {
        let fault = FieldError { field: "new_password".into(), code: code.into(), message: message.into() };
        return Err(Refusal::Invalid(vec![fault]).into());
    }
    let hash = app.hasher.hash(client.ip, password, app.db.chance()).await?;
    let scene = client.scene().await?;
    app.db.write(move |tx| replace(tx, &token, &hash, device.as_ref(), scene.clone())).await
}

fn owner_of(tx: &mut Tx, token: &TokenHash) -> Result<Option<User>, Error> {
    let Some(grant) = look(tx, Purpose::ResetPassword, token)? else { return Ok(None) };
    Ok(by_id(tx, grant.user)?.filter(|user| !user.disabled))
}

/// Spends the token, sets the password, ends the sessions, lets this browser sign in: all or nothing.
fn replace(tx: &mut Tx, token: &TokenHash, hash: &PasswordHash, device: Option<&Token>, scene: Scene) -> Result<Adopted, Error> {
    let grant = spend(tx, Purpose::ResetPassword, token)?.ok_or(Refusal::InvalidToken)?;
    let user = by_id(tx, grant.user)?.filter(|user| !user.disabled).ok_or(Refusal::InvalidToken)?;
    let id = user.view.id;
    set_password(tx, id, hash, None)?;
    revoke_all(tx, id, By::User, "password_reset", scene.clone())?;
    // Before the account may forget all of its browsers.
    let device = issued(tx, device)?;
    if !user.view.email_verified && grant.proves(&user.view.email) {
        begin_anew(tx, id)?;
    }
    let adopted = adopt_device(tx, id, device)?;
    guessing::pardon(tx, id, &adopted.device)?;
    record(tx, scene.whose(id), Event::PasswordReset)?;
    Ok(adopted)
}

/// Makes an account the property of whoever has just proved its address: nothing that somebody set before counts. Its next
/// sign-in is told as new, wherever it comes from: better a letter too many than a mute alarm.
fn begin_anew(tx: &mut Tx, user: UserId) -> Result<(), Fault> {
    tx.run("UPDATE users SET email_verified = 1, name = '' WHERE id = ?1", (user,))?;
    forget_all_known(tx, user)
}
