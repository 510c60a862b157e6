//! The check: cookie → SHA-256 → live session → verdict → [`Session`] in the request's extensions.
//!
//! Every request to a route that needs a session passes here, and nothing else lets one in. In the common case it is one
//! look into memory. A token that is not there is read from the database; a session past a deadline is ended in the
//! database before the answer, so that no step of the clock revives it; an error anywhere is a no.
//!
//! What an attacker tries: a copied cookie after its end, a forged or cut one, two at once, a flood of garbage (which
//! costs one indexed read each, and stores nothing).

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::client::Client;
use crate::cookie;
use crate::db::{Fault, Tx};
use crate::device_sessions::{self, EndReason, Known};
use crate::error::{Error, Refusal};
use crate::event::{Event, record};
use crate::id::SessionId;
use crate::live_sessions::{LiveSession, Met};
use crate::secret::TokenHash;
use crate::session_security::{Verdict, is_first_report};

/// The session of a request that passed the check.
pub type Session = Arc<LiveSession>;

/// Lets a request in with its session, or answers `401` with the reason.
pub async fn require_session(State(app): State<App>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match check(&app, &mut parts).await {
        Ok(session) => {
            parts.extensions.insert(session.clone());
            let mut response = next.run(Request::from_parts(parts, body)).await;
            // For the line in the log.
            response.extensions_mut().insert(session);
            response
        }
        Err(error) => error.into_response(),
    }
}

async fn check(app: &App, parts: &mut axum::http::request::Parts) -> Result<Session, Error> {
    let token = app.cookies.presented(&parts.headers, cookie::Name::Session).ok_or(Refusal::Unauthenticated)?.hash();
    let (now, passive) = (app.clock.now(), is_passive(&parts.headers));
    loop {
        let ticket = match app.db.live().meet(&token, now, passive) {
            Met::Live(session) => return Ok(session),
            Met::Dead(session, verdict) => return Err(reject(app, session, verdict).await),
            Met::Unknown(ticket) => ticket,
        };
        match app.db.glance(move |tx| device_sessions::look_up(tx, &token)).await? {
            // Something else ended while the row was being read: then it is read again.
            Known::Open(session, last_active) => {
                if !app.db.live().admit(ticket, *session, last_active) {
                    tokio::task::yield_now().await;
                }
            }
            Known::Ended(reason) => {
                app.db.live().drop_foreign(&token);
                return Err(Refusal::SessionEnded(reason).into());
            }
            Known::Rotated(session) => {
                let client = Client::from_request_parts(parts, app).await?;
                return Err(turn_away_retired(app, token, session, client).await?.into());
            }
            Known::Nothing => return Err(Refusal::Unauthenticated.into()),
        }
    }
}

/// A poll may ask not to count as activity.
fn is_passive(headers: &HeaderMap) -> bool {
    headers.get("x-session-passive").is_some_and(|value| value == "1")
}

/// Ends a session that is past a deadline, and says why it is dead: for this deadline, or for what came first.
async fn reject(app: &App, session: Session, verdict: Verdict) -> Error {
    let Some(reason) = verdict.reason() else { return Refusal::Unauthenticated.into() };
    let done = app.db.write(move |tx| end_by_deadline(tx, &session.token, reason)).await;
    match done {
        Ok(refusal) => refusal.into(),
        Err(fault) => Error::Fault(fault),
    }
}

fn end_by_deadline(tx: &mut Tx, token: &TokenHash, reason: EndReason) -> Result<Refusal, Fault> {
    if let Some(session) = device_sessions::holding(tx, token)? {
        device_sessions::time_out(tx, &session, reason)?;
        return Ok(Refusal::SessionEnded(reason));
    }
    tx.forget(token);
    Ok(device_sessions::refusal_for(tx, token)?.unwrap_or(Refusal::Unauthenticated))
}

/// Refuses a retired token, and raises the alarm if only a thief can have sent it. The successor lives on: ending it would
/// let whoever holds an old cookie sign the user out at will.
async fn turn_away_retired(app: &App, token: TokenHash, session: SessionId, client: Client) -> Result<Refusal, Error> {
    // Most retired tokens come from a request that was under way; for those it is only a read.
    if !app.db.glance(move |tx| device_sessions::looks_stolen(tx, &token, session).map(|row| row.is_some())).await.map_err(|fault: Fault| fault)? {
        return Ok(Refusal::SessionRotated);
    }
    let scene = client.scene().await?;
    app.db
        .write(move |tx| -> Result<(), Fault> {
            let Some(row) = device_sessions::looks_stolen(tx, &token, session)? else { return Ok(()) };
            if is_first_report(tx, &token)? {
                record(tx, scene.clone().whose(row.user_id).about(row.id), Event::RotatedTokenReused)?;
            }
            Ok(())
        })
        .await?;
    Ok(Refusal::SessionRotated)
}
