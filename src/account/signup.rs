//! `POST /signup`: an account, and its first session.
//!
//! A stranger gets an account with the first of the roles, and nothing that they send can change that (MASS-02, VER-02).
//! Of parallel sign-ups with one address, in whatever spelling, one gets it (RACE-04): the canonical form is unique, and
//! "taken" is an insert that changed no row.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

use super::email::Email;
use super::{Arrival, SignIn, SignedInView, User, UserView, by_email};
use crate::app::App;
use crate::client::Client;
use crate::config::SignUpMode;
use crate::db::{Fault, Tx};
use crate::error::{Error, Problem, Refusal};
use crate::event::{By, Event, Scene, record};
use crate::factor::password::{Password, PasswordHash};
use crate::form::{Form, FromForm, Json, NoQuery, Query, Rules};
use crate::id::UserId;

/// Trades an address and a password for an account and a session.
#[utoipa::path(post, path = "/signup", tag = "Account", operation_id = "sign_up", request_body = SignUp,
    responses((status = 201, body = SignedInView, headers(("Set-Cookie" = String, description = "The session cookie; at sign-in the device cookie too"))), (status = 202, description = "With `SIGNUP=verify_first`, whatever the address: a letter tells the rest."), (status = 409, body = Problem),
        (status = 429, body = Problem, headers(("RateLimit" = String), ("RateLimit-Policy" = String)))))]
pub async fn sign_up(State(app): State<App>, client: Client, headers: HeaderMap, Query(NoQuery): Query<NoQuery>, Json(ask): Json<SignUp>) -> Response {
    match app.config.sign_up {
        SignUpMode::Open => app.floods.sign_ups.meter(client.ip, at_once(&app, client, &headers, ask)).await,
        SignUpMode::VerifyFirst => app.floods.sign_ups.meter(client.ip, by_letter(&app, &client, ask)).await,
        SignUpMode::Closed => Refusal::SignUpClosed.into_response(),
    }
}

/// Opens the account and its first session.
async fn at_once(app: &App, client: Client, headers: &HeaderMap, ask: SignUp) -> Result<Response, Error> {
    let SignUp { email, password, name } = ask;
    // Refused before the hash: what is taken need not cost 17 ms.
    let wanted = email.clone();
    if app.db.glance(move |tx| by_email(tx, &wanted)).await?.is_some() {
        return Err(Refusal::EmailTaken.into());
    }
    let hash = app.hasher.hash(client.ip, password, app.db.chance()).await?;

    let arrival = Arrival::of(app, client, headers, false).await?;
    let account = NewAccount { email, hash, name, role: app.config.first_role().into() };
    let own = app.clone();
    let signed_in = app
        .db
        .write(move |tx| -> Result<Option<SignIn>, Error> {
            let Some(user) = open_account(tx, &account, By::User, arrival.scene(None))? else { return Ok(None) };
            Ok(Some(super::sign_in(tx, user, &arrival, &own.config)?))
        })
        .await?;
    match signed_in {
        Some(signed_in) => Ok(signed_in.answer(StatusCode::CREATED, app)),
        None => Err(Refusal::EmailTaken.into()),
    }
}

/// Opens the account and no session, and answers alike for every address: the letter tells its owner how to go on, or that
/// there is an account already. The same time for both: one hash, one even write.
async fn by_letter(app: &App, client: &Client, ask: SignUp) -> Result<Response, Error> {
    let SignUp { email, password, name } = ask;
    let hash = app.hasher.hash(client.ip, password, app.db.chance()).await?;
    let scene = client.scene().await?;
    let account = NewAccount { email, hash, name, role: app.config.first_role().into() };
    app.db
        .write_evenly(move |tx| -> Result<(), Error> {
            if open_account(tx, &account, By::User, scene.clone())?.is_none()
                && let Some(owner) = by_email(tx, &account.email)?
            {
                record(tx, scene.clone().whose(owner.view.id), Event::AddressInUse)?;
            }
            Ok(())
        })
        .await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

/// What a sign-up sends.
#[derive(ToSchema)]
pub struct SignUp {
    /// One plain address, at most 254 bytes.
    #[schema(value_type = String, format = Email, max_length = 254, example = "ada@example.com")]
    email: Email,
    /// `PASSWORD_MIN_LENGTH` (8) to 256 characters, not a common one.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 256)]
    password: Password,
    /// At most 200 characters.
    #[schema(value_type = String, required = false, max_length = 200, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
}

impl FromForm for SignUp {
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self> {
        let email = Email::take(form, "email");
        let password = Password::take_new(form, "password", rules.config.password_min_length, email.as_ref());
        let name = take_optional_name(form);
        Some(SignUp { email: email?, password: password?, name: name? })
    }
}

/// Longest name, in characters.
const NAME_CHARS: usize = 200;

/// What is wrong with a name.
pub fn name_fault(name: &str) -> Option<(&'static str, &'static str)> {
    if name.chars().count() > NAME_CHARS {
        Some(("too_long", "Use at most 200 characters."))
    } else if name.chars().any(char::is_control) {
        Some(("invalid", "Control characters cannot be used here."))
    } else {
        None
    }
}

/// Takes a name that must be there.
pub fn take_name(form: &mut Form) -> Option<String> {
    let name = form.text("name")?;
    match name_fault(&name) {
        Some((code, message)) => form.refuse("name", code, message),
        None => Some(name),
    }
}

fn take_optional_name(form: &mut Form) -> Option<String> {
    if form.has("name") { take_name(form) } else { Some(String::new()) }
}

/// An account that is to be opened. Its password was judged before it was hashed.
pub struct NewAccount {
    /// Its address.
    pub email: Email,
    /// Its password's hash.
    pub hash: PasswordHash,
    /// What to call its owner; may be empty.
    pub name: String,
    /// One of `ROLES`.
    pub role: String,
}

/// Opens an account; `None` when the address has one. Whoever has the command line vouches for the address.
pub fn open_account(tx: &mut Tx, new: &NewAccount, by: By, scene: Scene) -> Result<Option<User>, Fault> {
    let (id, now, verified) = (UserId(tx.next_id()), tx.now(), by == By::Cli);
    let NewAccount { email, hash, name, role } = new;
    let made = tx.run(
        "INSERT INTO users (id, email, email_canonical, email_verified, name, role, password_hash, security_version, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8) ON CONFLICT (email_canonical) DO NOTHING",
        (id, email.shown(), email.canonical(), verified, name, role, hash.as_str(), now),
    )?;
    if made == 0 {
        return Ok(None);
    }
    record(tx, scene.whose(id), Event::SignedUp { by })?;
    let view = UserView { id, email: email.shown().into(), email_verified: verified, name: name.clone(), role: role.clone(), created_at: now };
    Ok(Some(User { view, disabled: false, password: Some(hash.clone()), security_version: 0, has_signed_in: false }))
}
