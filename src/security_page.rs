//! The small pages that the links of letters lead to, where the application has none of its own.
//!
//! No script, one button, and the browser's own rules on our side: nothing is loaded, a form goes to us only, and the referrer
//! is our origin, never the path, which holds a secret (`no-referrer` would make browsers send `Origin: null` with the form). A
//! `GET` changes nothing, so mail scanners and previews may come as often as they like (RST-06); the deed is a `POST` with an
//! urlencoded body. Query parameters are not looked at: link trackers add some.
//!
//! A page tells nothing about its token: known, spent, expired and unknown ones get the same. The one exception is the page of
//! a letter about a sign-in, which has to name the session; without one it looks like the answer to any dead link.

use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::account::password_change::void_password;
use crate::account::{email_change, email_verification, password_reset};
use crate::app::App;
use crate::client::Client;
use crate::cookie::Name;
use crate::db::{Fault, Tx};
use crate::device_sessions::{self, DeviceSession, revoke, revoke_all};
use crate::error::{Error, Refusal};
use crate::event::{By, Event, Scene, record};
use crate::factor::password::Password;
use crate::letter_token::{self, Grant, Purpose, look, mint, spend};
use crate::secret::{Token, TokenHash};
use crate::session_security::forget_as_known;
use crate::templates::{for_people, plain};

/// What a page shows.
#[derive(Serialize, Default)]
struct Page {
    title: &'static str,
    wrong: String,
    texts: Vec<String>,
    facts: Vec<(&'static str, String)>,
    forms: Vec<PageForm>,
    site: String,
}

#[derive(Serialize)]
struct PageForm {
    action: String,
    button: &'static str,
    field: Option<Field>,
}

#[derive(Serialize)]
struct Field {
    label: &'static str,
    name: &'static str,
    autocomplete: &'static str,
    needed: bool,
}

impl Page {
    fn new(title: &'static str, texts: &[&str]) -> Self {
        Page { title, texts: texts.iter().map(|text| (*text).into()).collect(), ..Page::default() }
    }

    fn with_form(mut self, action: String, button: &'static str, field: Option<Field>) -> Self {
        self.forms.push(PageForm { action, button, field });
        self
    }

    fn but(mut self, wrong: impl Into<String>) -> Self {
        self.wrong = wrong.into();
        self
    }

    fn show(mut self, app: &App, status: StatusCode) -> Result<Response, Error> {
        self.site = app.config.public_url.host();
        let html = app.templates.page(&self).map_err(Fault::broken)?;
        let policy = HeaderValue::from_str(app.templates.policy()).map_err(|e| Fault::broken(e.to_string()))?;
        let mut response = (status, html).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("strict-origin"));
        // Whoever opened the page in a window of theirs keeps no hold on it. ASVS 3.4.8.
        headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
        Ok(response)
    }
}

/// Where a form goes: to the page that it stands on.
fn action(app: &App, page: &str, token: &str) -> String {
    // What is no token is not repeated.
    let token = Token::read(token).map_or_else(|| String::from("none").into(), |token| token.reveal());
    format!("{}/security/{page}/{}", app.config.base_path, *token)
}

/// Spent, expired, replaced, unknown: the same.
fn dead_link(app: &App) -> Result<Response, Error> {
    let texts =
        ["It was used already, it has expired, or a newer letter has taken its place. Nothing was changed.", "If you still need it, ask for another letter."];
    Page::new("This link is not good any more", &texts).show(app, StatusCode::BAD_REQUEST)
}

/// Turns a refusal into a page where a reader can do something about it.
fn told(app: &App, refused: Error, again: Page) -> Result<Response, Error> {
    match refused {
        Error::Refused(Refusal::InvalidToken) => dead_link(app),
        Error::Refused(Refusal::Invalid(errors)) => {
            let wrong = errors.into_iter().map(|error| error.message.into_owned()).collect::<Vec<_>>().join(" ");
            again.but(wrong).show(app, StatusCode::UNPROCESSABLE_ENTITY)
        }
        Error::Refused(Refusal::WrongCurrentPassword) => {
            again.but("That is not the password of this account. Nothing was changed.").show(app, StatusCode::FORBIDDEN)
        }
        Error::Refused(Refusal::RateLimited(seconds)) => {
            let wrong = format!("Too many wrong passwords were tried. Nothing was changed. Try again in {}.", in_words(seconds));
            let mut response = again.but(wrong).show(app, StatusCode::TOO_MANY_REQUESTS)?;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            Ok(response)
        }
        Error::Refused(Refusal::EmailTaken) => {
            Page::new("This address has an account", &["Another account has this address by now. Nothing was changed."]).show(app, StatusCode::CONFLICT)
        }
        other => Err(other),
    }
}

/// A wait, in words that do not promise too much.
fn in_words(seconds: u32) -> String {
    match seconds {
        ..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    }
}

/// The end of a letter's link, as it is written in the path.
pub struct LinkToken(String);

impl<S: Send + Sync> FromRequestParts<S> for LinkToken {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        // What is no text is no token, and gets the page of links that are good no more.
        let Ok(Path(token)) = Path::<String>::from_request_parts(parts, state).await else { return Ok(LinkToken("-".into())) };
        Ok(LinkToken(token))
    }
}

fn hash_of(token: &str) -> Result<TokenHash, Error> {
    TokenHash::of_written(token).ok_or_else(|| Refusal::InvalidToken.into())
}

/// A field of an urlencoded body; an empty one is none, and so are two. ASVS 15.3.7.
fn field(body: &Bytes, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(body).filter(|(key, _)| key == name).map(|(_, value)| value);
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    (!value.is_empty()).then(|| value.into_owned())
}

// ---- a session that somebody does not know

/// Names the session that a letter told of, and asks.
#[utoipa::path(get, path = "/security/session/{token}", tag = "Pages", operation_id = "session_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String)))]
pub async fn session(State(app): State<App>, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    let found = app
        .db
        .glance(move |tx| -> Result<_, Error> {
            let Some(grant) = look(tx, Purpose::EndSession, &hash)? else { return Ok(None) };
            Ok(Some(session_of(tx, &grant)?))
        })
        .await?;
    let Some(session) = found else { return dead_link(&app) };
    let text = "This ends the session, makes your password worth nothing, since whoever signed in knew it, and lets you choose a new one.";
    let mut page = Page::new("Was this not you?", &[text]).with_form(action(&app, "session", &token), "This was not me: end the session", None);
    if let Some(session) = session {
        page.facts = vec![("Signed in", for_people(session.created_at)), ("Device", plain(&session.device_name)), ("IP address", session.ip)];
    }
    page.show(&app, StatusCode::OK)
}

/// Ends that session, voids the password, and goes on to a new one.
#[utoipa::path(post, path = "/security/session/{token}", tag = "Pages", operation_id = "disown_session", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String)))]
pub async fn disown(State(app): State<App>, client: Client, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    let turned_out = async {
        letter_token::refuse_unknown(&app, Purpose::EndSession, hash).await?;
        let scene = client.scene().await?;
        app.db.write(move |tx| turn_out(tx, &hash, scene.clone())).await
    };
    match turned_out.await {
        Ok((reset, end_all)) => {
            let texts =
                ["The session has ended. Nobody can sign in with your old password any more.", "Choose a new password now. That signs you out everywhere."];
            let page = choose_form(Page::new("That session has ended", &texts), &app, &reset.reveal());
            page.with_form(action(&app, "sessions", &end_all.reveal()), "Only end all my sessions", None).show(&app, StatusCode::OK)
        }
        Err(refused) => told(&app, refused, Page::default()),
    }
}

/// The session may have been purged since; the link is good all the same, since the password is still known.
fn session_of(tx: &mut Tx, grant: &Grant) -> Result<Option<DeviceSession>, Fault> {
    match grant.session {
        Some(id) => device_sessions::by_id(tx, id),
        None => Ok(None),
    }
}

/// Ends exactly that session, forgets its address and browser as known (or the alarm would be mute from now on), and voids the
/// password. What follows, a new password and the end of all sessions, gets tokens of its own.
fn turn_out(tx: &mut Tx, token: &TokenHash, scene: Scene) -> Result<(Token, Token), Error> {
    let grant = spend(tx, Purpose::EndSession, token)?.ok_or(Refusal::InvalidToken)?;
    let (user, mut scene) = (grant.user, scene.whose(grant.user));
    if let Some(session) = session_of(tx, &grant)? {
        scene = scene.about(session.id);
        forget_as_known(tx, &session)?;
        revoke(tx, user, session.id, By::User, scene.clone())?;
    }
    void_password(tx, user)?;
    record(tx, scene, Event::SessionDisowned)?;
    let next = grant.next_step(tx);
    Ok((mint(tx, Purpose::ResetPassword, &next)?, mint(tx, Purpose::EndAllSessions, &next)?))
}

/// Ends all sessions, after one was disowned.
#[utoipa::path(post, path = "/security/sessions/{token}", tag = "Pages", operation_id = "end_all_by_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String)))]
pub async fn end_all(State(app): State<App>, client: Client, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    let ended = async {
        letter_token::refuse_unknown(&app, Purpose::EndAllSessions, hash).await?;
        let scene = client.scene().await?;
        app.db.write(move |tx| end_all_of(tx, &hash, scene.clone())).await
    };
    match ended.await {
        Ok(_) => {
            let text = "You are signed out everywhere. To sign in again, ask for a new password (\"forgot password\").";
            Page::new("All sessions have ended", &[text]).show(&app, StatusCode::OK)
        }
        Err(refused) => told(&app, refused, Page::default()),
    }
}

fn end_all_of(tx: &mut Tx, token: &TokenHash, scene: Scene) -> Result<u64, Error> {
    let grant = spend(tx, Purpose::EndAllSessions, token)?.ok_or(Refusal::InvalidToken)?;
    Ok(revoke_all(tx, grant.user, By::User, "asked", scene)?)
}

// ---- an address to be confirmed

fn verify_form(app: &App, token: &str) -> Page {
    let text = "If you are signed in in this browser, leave the password empty.";
    let password = Field { label: "Password of the account", name: "password", autocomplete: "current-password", needed: false };
    Page::new("Confirm your e-mail address", &[text]).with_form(action(app, "verify", token), "Confirm this address", Some(password))
}

/// Asks for the password, or a session.
#[utoipa::path(get, path = "/security/verify/{token}", tag = "Pages", operation_id = "verify_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String)))]
pub async fn verify_page(State(app): State<App>, LinkToken(token): LinkToken) -> Result<Response, Error> {
    verify_form(&app, &token).show(&app, StatusCode::OK)
}

/// What the form sends, for the document.
#[derive(ToSchema)]
#[allow(dead_code)]
struct VerifyFields {
    /// The account's password; not needed with a session of that account.
    #[schema(format = Password)]
    password: Option<String>,
}

/// Confirms an address, as `POST /email/verify`.
#[utoipa::path(post, path = "/security/verify/{token}", tag = "Pages", operation_id = "verify_by_page", params(("token" = String, Path)),
    request_body(content = Option<VerifyFields>, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String),
        (status = 429, content_type = "text/html", body = String)))]
pub async fn verify(State(app): State<App>, client: Client, headers: HeaderMap, LinkToken(token): LinkToken, body: Bytes) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    let password = field(&body, "password").map(Password::typed);
    match email_verification::prove(&app, &client, &headers, hash, password).await {
        Ok(_) => Page::new("Your address is confirmed", &["You can close this page."]).show(&app, StatusCode::OK),
        Err(refused) => told(&app, refused, verify_form(&app, &token)),
    }
}

// ---- a new password

fn choose_form(page: Page, app: &App, token: &str) -> Page {
    let password = Field { label: "New password", name: "new_password", autocomplete: "new-password", needed: true };
    page.with_form(action(app, "reset", token), "Save the new password", Some(password))
}

fn reset_form(app: &App, token: &str) -> Page {
    let text = format!("At least {} characters. Saving it signs you out everywhere.", app.config.password_min_length);
    choose_form(Page::new("Choose a new password", &[&text]), app, token)
}

/// Asks for a new password.
#[utoipa::path(get, path = "/security/reset/{token}", tag = "Pages", operation_id = "reset_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String)))]
pub async fn reset_page(State(app): State<App>, LinkToken(token): LinkToken) -> Result<Response, Error> {
    reset_form(&app, &token).show(&app, StatusCode::OK)
}

/// What the form sends, for the document.
#[derive(ToSchema)]
#[allow(dead_code)]
struct ResetFields {
    /// As for `POST /password/reset`.
    #[schema(format = Password)]
    new_password: Option<String>,
}

/// Sets a new password, as `POST /password/reset`.
#[utoipa::path(post, path = "/security/reset/{token}", tag = "Pages", operation_id = "reset_by_page", params(("token" = String, Path)),
    request_body(content = Option<ResetFields>, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String)))]
pub async fn reset(State(app): State<App>, client: Client, headers: HeaderMap, LinkToken(token): LinkToken, body: Bytes) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    let password = Password::typed(field(&body, "new_password").unwrap_or_default());
    let device = app.cookies.presented(&headers, Name::Device);
    match password_reset::choose(&app, &client, device, hash, password).await {
        Ok(adopted) => {
            let page = Page::new("Your password is changed", &["You are signed out everywhere. Sign in with the new password."]).show(&app, StatusCode::OK)?;
            Ok(password_reset::with_cookie(&app, adopted, page))
        }
        Err(refused) => told(&app, refused, reset_form(&app, &token)),
    }
}

// ---- another address, and the way back

/// Asks whether the address is to be used.
#[utoipa::path(get, path = "/security/email-change/{token}", tag = "Pages", operation_id = "email_change_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String)))]
pub async fn change_page(State(app): State<App>, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let text = "From then on you sign in with the new address, and letters go there. You are signed out on your other devices.";
    let page = Page::new("Use your new e-mail address", &[text]);
    page.with_form(action(&app, "email-change", &token), "Use this address", None).show(&app, StatusCode::OK)
}

/// Moves the account, as `POST /email/change`.
#[utoipa::path(post, path = "/security/email-change/{token}", tag = "Pages", operation_id = "change_email_by_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String)))]
pub async fn change(State(app): State<App>, client: Client, headers: HeaderMap, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    match email_change::move_account(&app, &client, &headers, hash).await {
        Ok(moved) => {
            let page = Page::new("Your address is changed", &["You can close this page. The old address got a letter about it."]).show(&app, StatusCode::OK)?;
            Ok(moved.with_cookie(&app, page))
        }
        Err(refused) => told(&app, refused, Page::default()),
    }
}

/// Asks whether the address is to come back.
#[utoipa::path(get, path = "/security/email-undo/{token}", tag = "Pages", operation_id = "email_undo_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String)))]
pub async fn undo_page(State(app): State<App>, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let text = "This gives the account its old address back, signs everybody out of it, makes its password worth nothing, and lets you choose a new one.";
    let page = Page::new("Bring your old address back?", &[text]);
    page.with_form(action(&app, "email-undo", &token), "Bring the old address back", None).show(&app, StatusCode::OK)
}

/// Brings the address back, as `POST /email/undo`, and goes on to a new password.
#[utoipa::path(post, path = "/security/email-undo/{token}", tag = "Pages", operation_id = "undo_email_change_by_page", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), (status = 400, content_type = "text/html", body = String)))]
pub async fn undo(State(app): State<App>, client: Client, LinkToken(token): LinkToken) -> Result<Response, Error> {
    let Ok(hash) = hash_of(&token) else { return dead_link(&app) };
    match email_change::take_back(&app, &client, hash).await {
        Ok(reset) => {
            let texts = ["The account has its old address again, and everybody is signed out.", "Choose a new password now."];
            choose_form(Page::new("Your old address is back", &texts), &app, &reset.reveal()).show(&app, StatusCode::OK)
        }
        Err(refused) => told(&app, refused, Page::default()),
    }
}
