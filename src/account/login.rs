//! `POST /login`: an address and a password for a session.
//!
//! An unknown address, a wrong password and a disabled account are told apart by nothing: the same answer after the same
//! work: one look, one count, one hash, one write (ENUM-01). The account is read again in the transaction that opens the session: a
//! password, a role or a standing that changed while the password was being hashed opens nothing.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use utoipa::ToSchema;

use super::email::Email;
use super::{Arrival, SignIn, SignedInView, User, by_email};
use crate::app::App;
use crate::client::Client;
use crate::config::{Config, SignUpMode};
use crate::cookie::Name;
use crate::db::{Fault, Tx};
use crate::error::{Error, Problem, Refusal};
use crate::event::{Event, record};
use crate::factor::password::{Password, PasswordHash};
use crate::form::{Form, FromForm, Json, NoQuery, Query, Rules};
use crate::guessing::{self, Failed, Guess};
use crate::id::UserId;

/// Trades an address and a password for a session.
#[utoipa::path(post, path = "/login", tag = "Account", operation_id = "log_in", request_body = PasswordLogin,
    responses((status = 200, body = SignedInView, headers(("Set-Cookie" = String, description = "The session cookie; at sign-in the device cookie too"))), (status = 401, body = Problem), (status = 429, body = Problem)))]
pub async fn log_in(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<PasswordLogin>,
) -> Result<Response, Error> {
    let PasswordLogin { email, password, remember } = ask;
    let device = app.cookies.presented_hash(&headers, Name::Device);
    let (own, wanted, ip) = (app.clone(), email.clone(), client.ip);
    let look = move |tx: &mut Tx| {
        let user = by_email(tx, &wanted)?;
        let guess = Guess::by_stranger(tx, &own.config, &wanted, user.as_ref().map(|user| user.view.id), device.as_ref(), ip)?;
        Ok((user, guess))
    };
    let (known, attempt) = guessing::begin(&app, ip, look).await?;
    let is_closed = known.as_ref().is_some_and(|user| !may_sign_in(user, &app.config));
    let whose = known.as_ref().map(|user| user.view.id);
    let (stored, version) = known.map_or((None, 0), |user| (user.password, user.security_version));

    // An unknown address meets a decoy, so the time of the answer tells nobody who exists.
    let (checked, attempt) = attempt.check(&app, client.ip, password, stored.clone(), is_closed).await?;
    let failed = attempt.settle(&app, checked.fits && !is_closed).await?;
    let upgrade = match checked.upgrade {
        // It can wait for the next sign-in; and an account that opens nothing must not be told by the time of a second hash.
        Some(password) if !is_closed => app.hasher.hash(client.ip, password, app.db.chance()).await.ok(),
        _ => None,
    };
    let proof = Proof { email, whose, fits: checked.fits, version, stored, upgrade, failed };
    let arrival = Arrival::of(&app, client, &headers, remember).await?;
    let own = app.clone();
    let opened = app.db.write(move |tx| decide(tx, &proof, &arrival, &own.config)).await.map_err(|fault: Fault| Error::from(fault))?;
    match opened {
        Some(signed_in) => Ok(signed_in.answer(StatusCode::OK, &app)),
        None => Err(Refusal::WrongCredentials.into()),
    }
}

/// What a sign-in sends.
#[derive(ToSchema)]
pub struct PasswordLogin {
    /// The account's address, in any case.
    #[schema(value_type = String, format = Email, max_length = 254, example = "ada@example.com")]
    email: Email,
    /// Whatever was typed.
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Whether the session is to outlive the browser, within `REMEMBER_TIMEOUTS`.
    #[schema(value_type = bool, required = false, default = false)]
    remember: bool,
}

impl FromForm for PasswordLogin {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let (email, password, remember) = (Email::take(form, "email"), Password::take(form, "password"), form.flag("remember", false));
        Some(PasswordLogin { email: email?, password: password?, remember: remember? })
    }
}

/// What the check of a password found, and of which account in which state.
struct Proof {
    email: Email,
    /// The address may go to another account while the password is hashed.
    whose: Option<UserId>,
    fits: bool,
    version: i64,
    stored: Option<PasswordHash>,
    upgrade: Option<PasswordHash>,
    /// It counts as a guess.
    failed: Option<Failed>,
}

/// Whether the right password is enough. With `SIGNUP=verify_first` an unproved address opens nothing: whoever signs up with
/// somebody's address could otherwise tell by signing in whether it had an account.
fn may_sign_in(user: &User, config: &Config) -> bool {
    !user.disabled && (user.view.email_verified || config.sign_up != SignUpMode::VerifyFirst)
}

/// Decides what a checked password opens. A refusal is a value: its record must commit.
fn decide(tx: &mut Tx, proof: &Proof, arrival: &Arrival, config: &Config) -> Result<Option<SignIn>, Fault> {
    let user = by_email(tx, &proof.email)?.filter(|user| Some(user.view.id) == proof.whose);
    let user = match user {
        Some(user) if proof.fits && may_sign_in(&user, config) && user.security_version == proof.version => user,
        other => {
            let (id, disabled) = other.map_or((None, false), |user| (Some(user.view.id), user.disabled));
            record(tx, arrival.scene(id), Event::SignInFailed { disabled: disabled && proof.fits })?;
            if let Some(failed) = &proof.failed {
                failed.tell(tx, &arrival.scene(None))?;
            }
            return Ok(None);
        }
    };
    if let (Some(better), Some(worse)) = (&proof.upgrade, &proof.stored) {
        // Only over the very hash that was checked: a change of password meanwhile wins.
        tx.run("UPDATE users SET password_hash = ?2 WHERE id = ?1 AND password_hash = ?3", (user.view.id, better.as_str(), worse.as_str()))?;
    }
    super::sign_in(tx, user, arrival, config).map(Some)
}
