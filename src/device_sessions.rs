//! The device sessions of a user: the table, and what the user can do with it.
//!
//! A row is one browser, app or script that has signed in. The user sees each of them, recognises it by device and address,
//! and can end it; whoever held its cookie is out with the very next request. Rows are ended, never deleted at once: the
//! holder of a dead token is told why, and nothing revives an id.
//!
//! All writing to the table is here and in [`session_security::rotate`](crate::session_security::rotate), and every ending
//! tells memory in the same breath, so a revocation cannot be forgotten. An attacker tries to end or see the sessions of
//! others: an id of somebody else, an ended one and one that never was get the same `404`.

mod ending;
mod opening;
mod row;
mod token;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::account::logout;
use crate::app::App;
use crate::client::Client;
use crate::clock::Timestamp;
use crate::db::{Fault, Tx};
use crate::error::{Error, Problem, Refusal};
use crate::event::By;
use crate::form::{Form, FromForm, NoBody, NoQuery, Nothing, Query, Rules};
use crate::guard::{PathId, SignedIn};
use crate::id::{SessionId, UserId};
use crate::letter_token::{self, Purpose};
use crate::session_security::Verdict;

pub use ending::{end, end_others_of, revoke, revoke_all, revoke_all_but, settle, settle_chunk, sign_out, time_out};
pub use opening::{Opening, open};
pub use row::{DeviceSession, EndReason, by_id, live_of};
pub(crate) use token::BY_TOKEN;
pub use token::{Known, holding, holding_with_user, live_with, look_up, looks_stolen, refusal_for, report_if_stolen, still_current};

use row::open_of;

/// `GET /me/sessions`: the user's live sessions, the current one first, then the most recently active.
#[utoipa::path(get, path = "/me/sessions", tag = "Sessions", operation_id = "list_sessions", security(("session" = [])),
    responses((status = 200, body = SessionList)))]
pub async fn list(State(app): State<App>, SignedIn(me): SignedIn, Query(NoQuery): Query<NoQuery>) -> Result<axum::Json<SessionList>, Error> {
    listed(&app, me.user_id, me.id).await
}

/// Lists a user's live sessions. What is past a deadline is not only left out but marked as ended: what was told to be gone
/// does not come back when the clock steps.
pub async fn listed(app: &App, user: UserId, current: SessionId) -> Result<axum::Json<SessionList>, Error> {
    let (sessions, some_are_dead) = app.db.read(move |tx| views_of(tx, user, current)).await?;
    if some_are_dead {
        app.db.write(move |tx| settle(tx, user).map(|_| ())).await?;
    }
    Ok(axum::Json(SessionList { sessions }))
}

/// `DELETE /me/sessions/{id}`: ends one session. One's own current one is a logout.
#[utoipa::path(delete, path = "/me/sessions/{id}", tag = "Sessions", operation_id = "end_session", params(("id" = uuid::Uuid, Path)), security(("session" = [])),
    responses((status = 204), (status = 404, body = Problem)))]
pub async fn end_one(
    State(app): State<App>,
    SignedIn(me): SignedIn,
    client: Client,
    id: Result<PathId<SessionId>, Error>,
    _: Nothing,
) -> Result<Response, Error> {
    let PathId(id) = id?;
    if id == me.id {
        return logout::end_current(&app, me.token, client).await;
    }
    let scene = client.scene().await?;
    let found = app
        .db
        .write(move |tx| -> Result<bool, Error> {
            still_current(tx, &me)?;
            Ok(revoke(tx, me.user_id, id, By::User, scene.clone())?)
        })
        .await?;
    gone(found)
}

/// `DELETE /me/sessions`: "sign out everywhere else".
#[utoipa::path(delete, path = "/me/sessions", tag = "Sessions", operation_id = "end_sessions", params(("include_current" = Option<bool>, Query)), security(("session" = [])),
    responses((status = 200, body = SignedOut)))]
pub async fn end_others(State(app): State<App>, SignedIn(me): SignedIn, client: Client, Query(ask): Query<Everywhere>, _: NoBody) -> Result<Response, Error> {
    let scene = client.scene().await?;
    let signed_out = app
        .db
        .write(move |tx| -> Result<u64, Error> {
            still_current(tx, &me)?;
            let mut ended = end_others_of(tx, &me, By::User, "asked", scene.clone())?;
            // One of the others may have asked for another address. EML-02.
            letter_token::kill_with_letters(tx, me.user_id, Purpose::ChangeEmail)?;
            if ask.include_current {
                ended += u64::from(sign_out(tx, &me.token, client.ip)?);
            }
            Ok(ended)
        })
        .await?;
    let mut response = axum::Json(SignedOut { signed_out }).into_response();
    if ask.include_current {
        logout::clear(&app, &mut response);
    }
    Ok(response)
}

/// What `DELETE /me/sessions` may be asked.
pub struct Everywhere {
    include_current: bool,
}

impl FromForm for Everywhere {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(Everywhere { include_current: form.flag("include_current", false)? })
    }
}

/// A list of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionList {
    /// Live ones only.
    pub sessions: Vec<SessionView>,
}

/// How many sessions were ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignedOut {
    /// Those that were still alive.
    pub signed_out: u64,
}

/// A session, as its owner sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
#[allow(missing_docs)] // The contract's words.
pub struct SessionView {
    #[schema(value_type = uuid::Uuid)]
    pub id: SessionId,
    /// Whether it is the one that asks.
    pub current: bool,
    #[schema(example = "Chrome on macOS")]
    pub device_name: String,
    /// `desktop`, `mobile`, `tablet`, `bot` or `other`.
    pub device_type: String,
    pub ip: String,
    pub user_agent: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_active_at: Timestamp,
    /// When it dies if nobody uses it; never after `expires_at`.
    #[schema(value_type = String, format = DateTime)]
    pub idle_expires_at: Timestamp,
    /// When it dies, however active.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub authenticated_at: Timestamp,
    pub auth_methods: Vec<String>,
    pub remember: bool,
    pub new_ip: bool,
    pub new_device: bool,
}

/// The live sessions as a list for people, and whether there are others that have yet to be marked as ended.
fn views_of(tx: &mut Tx, user: UserId, current: SessionId) -> Result<(Vec<SessionView>, bool), Fault> {
    let all = open_of(tx, user)?;
    let mut live: Vec<&DeviceSession> = all.iter().filter(|(_, verdict)| *verdict == Verdict::Live).map(|(session, _)| session).collect();
    live.sort_by_key(|session| (session.id != current, std::cmp::Reverse((session.last_active_at, session.id))));
    let views: Vec<SessionView> = live.iter().map(|session| session.view(session.id == current)).collect();
    let some_are_dead = views.len() < all.len();
    Ok((views, some_are_dead))
}

/// `204` if it was there.
pub fn gone(found: bool) -> Result<Response, Error> {
    if found { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(Refusal::NotFound.into()) }
}

/// Adds a `Set-Cookie` to an answer.
pub fn set_cookie(response: &mut Response, cookie: axum::http::HeaderValue) {
    response.headers_mut().append(SET_COOKIE, cookie);
}
