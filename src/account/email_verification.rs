//! `POST /email/verify`, `POST /email/verification`: the proof that an address is its user's.
//!
//! The letter of the sign-up carries a token, good for 24 hours, once. It is not enough: whoever gets a letter for an account
//! that a stranger opened in their name must not make it valid with a click. So it also takes a live session of that account,
//! or its password; five wrong ones, counted before they are checked, and the token is worth nothing. They count as guesses, too.
//!
//! Asking for another letter is answered alike for everybody: no account, one that is verified, one that is not (ENUM-02).

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use utoipa::ToSchema;

use super::email::Email;
use super::me::UserAnswer;
use super::{User, UserView, by_email, by_id};
use crate::app::App;
use crate::client::Client;
use crate::cookie::Name;
use crate::db::{Fault, Tx};
use crate::device_sessions::{live_of, live_with};
use crate::error::{Error, Problem, Refusal};
use crate::event::{Event, Scene, record, record_asked};
use crate::factor::password::Password;
use crate::form::{Form, FromForm, Json, JsonOrNothing, NoQuery, Query, Rules};
use crate::guessing::{self, Attempt, Guess};
use crate::id::UserId;
use crate::letter_token::{self, Purpose, look, note_try, spend};
use crate::secret::{Token, TokenHash};
use crate::session_security::refresh;

/// Trades the token of a letter, and a session or the password of its account, for a verified address.
#[utoipa::path(post, path = "/email/verify", tag = "Letters", operation_id = "verify_email", request_body = Verify,
    responses((status = 200, body = UserAnswer), (status = 403, body = Problem), (status = 429, body = Problem)))]
pub async fn verify(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<Verify>,
) -> Result<axum::Json<UserAnswer>, Error> {
    let token = ask.token.ok_or(Refusal::InvalidToken)?;
    let user = prove(&app, &client, &headers, token.hash(), ask.password).await?;
    Ok(axum::Json(UserAnswer { user }))
}

/// What a verification sends.
#[derive(ToSchema)]
pub struct Verify {
    /// The end of the letter's link.
    #[schema(value_type = String)]
    token: Option<Token>,
    /// The account's password; not needed with a session of that account.
    #[schema(value_type = String, format = Password, required = false)]
    password: Option<Password>,
}

impl FromForm for Verify {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let token = letter_token::take(form);
        let password = if form.has("password") { Password::take(form, "password").map(Some) } else { Some(None) };
        Some(Verify { token: token?, password: password? })
    }
}

/// Proves an address.
///
/// # Errors
/// `400 invalid_token`; `403 invalid_credentials` without a session of the account and without its password; `429` after too
/// many wrong ones.
pub async fn prove(app: &App, client: &Client, headers: &HeaderMap, token: TokenHash, password: Option<Password>) -> Result<UserView, Error> {
    let held = app.cookies.presented_hash(headers, Name::Session);
    let (user, has_session) = app.db.glance(move |tx| standing(tx, &token, held.as_ref())).await?.ok_or(Refusal::InvalidToken)?;
    let version = user.security_version;
    if !has_session {
        let attempt = let_guess(app, client, headers, &user).await?;
        if !app.db.write(move |tx| note_try(tx, Purpose::VerifyEmail, &token).map_err(Error::from)).await? {
            attempt.withdraw(app).await?;
            return Err(Refusal::InvalidToken.into());
        }
        let password = password.ok_or(Refusal::WrongCurrentPassword)?;
        let (checked, attempt) = attempt.check(app, client.ip, password, user.password, false).await?;
        if let Some(failed) = attempt.settle(app, checked.fits).await? {
            failed.tell_alone(app, client.scene().await?).await?;
            return Err(Refusal::WrongCurrentPassword.into());
        }
    }
    let scene = client.scene().await?;
    let by_session = held.filter(|_| has_session);
    app.db.write(move |tx| settle(tx, &token, by_session.as_ref(), version, scene.clone())).await
}

/// Counts a guess at the password, as one at sign-in: whoever has the letter need not be who knows it.
async fn let_guess(app: &App, client: &Client, headers: &HeaderMap, user: &User) -> Result<Attempt, Error> {
    let email = Email::parse(&user.view.email).ok_or_else(|| Fault::broken("an account's address is none"))?;
    let device = app.cookies.presented_hash(headers, Name::Device);
    let (own, id, ip) = (app.clone(), user.view.id, client.ip);
    let look = move |tx: &mut Tx| Ok(((), Guess::by_stranger(tx, &own.config, &email, Some(id), device.as_ref(), ip)?));
    Ok(guessing::begin(app, ip, look).await?.1)
}

/// Whose the token is, and whether the cookie opens a session of theirs.
fn standing(tx: &mut Tx, token: &TokenHash, held: Option<&TokenHash>) -> Result<Option<(User, bool)>, Error> {
    let Some(grant) = look(tx, Purpose::VerifyEmail, token)? else { return Ok(None) };
    let Some(user) = by_id(tx, grant.user)?.filter(|user| !user.disabled) else { return Ok(None) };
    let has_session = is_theirs(tx, grant.user, held)?;
    Ok(Some((user, has_session)))
}

fn is_theirs(tx: &mut Tx, user: UserId, held: Option<&TokenHash>) -> Result<bool, Fault> {
    let Some(held) = held else { return Ok(false) };
    Ok(live_with(tx, held)?.is_some_and(|session| session.user_id == user))
}

/// Spends the token and marks the address, if what was proved still holds.
fn settle(tx: &mut Tx, token: &TokenHash, by_session: Option<&TokenHash>, version: i64, scene: Scene) -> Result<UserView, Error> {
    let grant = spend(tx, Purpose::VerifyEmail, token)?.ok_or(Refusal::InvalidToken)?;
    let id = grant.user;
    if by_session.is_some() && !is_theirs(tx, id, by_session)? {
        return Err(Refusal::WrongCurrentPassword.into());
    }
    let marked = tx.run(
        "UPDATE users SET email_verified = 1 WHERE id = ?1 AND email = ?2 AND disabled_at IS NULL AND security_version = ?3",
        (id, grant.address()?.shown(), version),
    )?;
    if marked == 0 {
        return Err(Refusal::InvalidToken.into());
    }
    let sessions = live_of(tx, id)?;
    refresh(tx, &sessions)?;
    record(tx, scene.whose(id), Event::EmailVerified)?;
    Ok(super::of_session(tx, id)?.view)
}

/// Sends the letter once more: for the address that is given, else for the one that is signed in.
#[utoipa::path(post, path = "/email/verification", tag = "Letters", operation_id = "send_verification", request_body = Option<SendAgain>,
    responses((status = 202), (status = 429, body = Problem, headers(("RateLimit" = String), ("RateLimit-Policy" = String)))))]
pub async fn send_again(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    Query(NoQuery): Query<NoQuery>,
    JsonOrNothing(ask): JsonOrNothing<SendAgain>,
) -> Response {
    app.floods.letters.meter(client.ip, post_link(&app, &client, &headers, ask)).await
}

async fn post_link(app: &App, client: &Client, headers: &HeaderMap, ask: SendAgain) -> Result<StatusCode, Error> {
    let held = app.cookies.presented_hash(headers, Name::Session);
    let scene = client.scene().await?;
    app.db
        .write_evenly(move |tx| -> Result<(), Error> {
            let user = match (&ask.email, &held) {
                (Some(email), _) => by_email(tx, email)?.map(|user| user.view.id),
                (None, Some(token)) => live_with(tx, token)?.map(|session| session.user_id),
                (None, None) => return Ok(()),
            };
            let scene = scene.clone().whose_if(user);
            Ok(record_asked(tx, scene, Event::VerificationRequested)?)
        })
        .await?;
    Ok(StatusCode::ACCEPTED)
}

/// What asking for another letter sends.
#[derive(ToSchema)]
pub struct SendAgain {
    /// The account's address, in any case; without it, the account that is signed in.
    #[schema(value_type = String, format = Email, max_length = 254, required = false, example = "ada@example.com")]
    email: Option<Email>,
}

impl FromForm for SendAgain {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let email = if form.has("email") { Email::take(form, "email").map(Some) } else { Some(None) };
        Some(SendAgain { email: email? })
    }
}
