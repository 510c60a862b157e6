//! `POST /logout`: ends the session that the cookie names.
//!
//! The session ends on the server, so whoever copied the cookie is out too (REV-01). The cookie is taken back only by an
//! answer that ended a live session: a late logout with a dead token must not wipe the cookie of a newer sign-in. A
//! rotated-away token still ends the session that it once named, since its holder wanted out.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::header::{HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::client::Client;
use crate::cookie::Name;
use crate::db::{Fault, Tx};
use crate::device_sessions::{self, Known, set_cookie, sign_out};
use crate::error::Error;
use crate::event::Scene;
use crate::form::Nothing;
use crate::secret::TokenHash;

const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// Signs out, whatever the cookie is worth.
#[utoipa::path(post, path = "/logout", tag = "Account", operation_id = "log_out",
    responses((status = 204, headers(("Set-Cookie" = String, description = "Takes the cookie back, if it ended a live session")))))]
pub async fn log_out(State(app): State<App>, client: Client, headers: HeaderMap, _: Nothing) -> Result<Response, Error> {
    match app.cookies.presented_hash(&headers, Name::Session) {
        Some(token) => end_current(&app, token, client).await,
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// Ends the session of a token, and answers as a logout does.
pub async fn end_current(app: &App, token: TokenHash, client: Client) -> Result<Response, Error> {
    // A dead or invented token costs a read, not a turn at the writer.
    let known = app.db.session(&token).await?;
    let scene = client.scene().await?;
    let ended = match known {
        Known::Open(..) | Known::Rotated(_) => {
            app.db.write(move |tx| end_held(tx, &token, &scene, client.ip)).await.map_err(|fault: Fault| Error::from(fault))?
        }
        Known::Ended(_) => {
            // Whoever ended it may have committed and not yet told memory; this answer must not be ahead of that.
            app.db.live().forget(&token);
            false
        }
        Known::Nothing => false,
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    if ended {
        clear(app, &mut response);
    }
    Ok(response)
}

fn end_held(tx: &mut Tx, token: &TokenHash, scene: &Scene, from: IpAddr) -> Result<bool, Fault> {
    match device_sessions::look_up(tx, token)? {
        Known::Open(..) => sign_out(tx, token, from),
        Known::Rotated(session) => match device_sessions::by_id(tx, session)? {
            // It may be the owner, in a tab that slept through the rotation, or a thief: either way it ends.
            Some(session) => {
                device_sessions::report_if_stolen(tx, token, scene.clone())?;
                sign_out(tx, &session.token, from)
            }
            None => Ok(false),
        },
        Known::Ended(_) | Known::Nothing => Ok(false),
    }
}

/// Takes the cookie back, and what else the operator wants forgotten.
pub fn clear(app: &App, response: &mut Response) {
    set_cookie(response, app.cookies.clear_session());
    if let Some(value) = app.config.clear_site_data.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(CLEAR_SITE_DATA, value);
    }
}
