//! The check: cookie → SHA-256 → live session → verdict → [`Session`] in the request's extensions.
//!
//! Every request to a route that needs a session passes here, and nothing else lets one in. In the common case it is one
//! look into memory; where instances share a database, one read of the row. A token that is not in memory is read from the
//! database; a session past a deadline is ended there before the answer, so that no step of the clock revives it; an error
//! anywhere is a no.
//!
//! What an attacker tries: a copied cookie after its end, a forged or cut one, two at once, a flood of garbage (which
//! costs one indexed read each, and stores nothing).

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use crate::app::App;
use crate::background;
use crate::client::Client;
use crate::clock::Timestamp;
use crate::cookie;
use crate::db::Tx;
use crate::device_sessions::{self, Known};
use crate::error::{Error, Refusal};
use crate::live_sessions::{Met, Owed, Session};
use crate::secret::TokenHash;
use crate::session_security::{judge, note_use_of_successor, refresh};

/// What memory says of a request at once.
pub enum Look {
    /// It may come in.
    Yes(Session),
    /// It may not.
    No(Refusal),
    /// The database has to be asked.
    Ask(Asked, Met),
}

/// Looks into memory: the whole check, for nearly every request.
pub fn look(app: &App, headers: &HeaderMap) -> Look {
    let Some(token) = app.cookies.presented_hash(headers, cookie::Name::Session) else { return Look::No(Refusal::Unauthenticated) };
    let asked = Asked { token, at: app.clock.now(), passive: is_passive(headers) };
    match asked.meet(app) {
        Met::Live(session, owed) if owed == Owed::default() => Look::Yes(session),
        met => Look::Ask(asked, met),
    }
}

/// Lets a request in with its session, or says why not.
///
/// # Errors
/// The reason for which the token is worth nothing; a fault, which is a no too.
pub async fn require_session(app: &App, request: Request, looked: Look) -> Result<(Request, Session), Error> {
    let (mut parts, body) = request.into_parts();
    let session = match looked {
        Look::Yes(session) => session,
        Look::No(refusal) => return Err(refusal.into()),
        Look::Ask(asked, met) => ask_database(app, &mut parts, asked, met).await?,
    };
    let mut request = Request::from_parts(parts, body);
    admit(&mut request, &session);
    Ok((request, session))
}

/// Gives a request the session that its guards will look for.
pub fn admit(request: &mut Request, session: &Session) {
    request.extensions_mut().insert(session.clone());
}

/// What a request presents, and when.
#[derive(Clone, Copy)]
pub struct Asked {
    token: TokenHash,
    at: Timestamp,
    passive: bool,
}

impl Asked {
    fn meet(&self, app: &App) -> Met {
        app.db.live().meet(&self.token, self.at, self.passive)
    }
}

/// Goes on where memory alone cannot answer.
async fn ask_database(app: &App, parts: &mut Parts, asked: Asked, first: Met) -> Result<Session, Error> {
    let Asked { token, at, .. } = asked;
    let mut met = first;
    loop {
        let ticket = match met {
            Met::Live(session, owed) => {
                settle_debts(app, &session, owed).await?;
                return Ok(session);
            }
            Met::Dead => match app.db.write(move |tx| end_by_deadline(tx, &token, at)).await? {
                Some(refusal) => return Err(refusal.into()),
                // Another process has seen it since: it is read again.
                None => {
                    met = asked.meet(app);
                    continue;
                }
            },
            Met::Unknown(ticket) => ticket,
        };
        match app.db.session(&token).await? {
            Known::Open(session, last_active) => {
                met = if app.db.live().admit(ticket, *session, last_active) {
                    app.db.live().meet_admitted(&token, at, asked.passive)
                } else {
                    // Something else ended while the row was being read: then it is read again.
                    tokio::task::yield_now().await;
                    asked.meet(app)
                };
            }
            Known::Ended(reason) => {
                app.db.live().forget(&token);
                return Err(Refusal::SessionEnded(reason).into());
            }
            Known::Rotated(_) => {
                app.db.live().forget(&token);
                let client = Client::from_request_parts(parts, app).await?;
                return Err(turn_away_retired(app, token, client).await?.into());
            }
            Known::Nothing => return Err(Refusal::Unauthenticated.into()),
        }
    }
}

const PASSIVE: HeaderName = HeaderName::from_static("x-session-passive");

/// A poll may ask not to count as activity.
fn is_passive(headers: &HeaderMap) -> bool {
    headers.get(PASSIVE).is_some_and(|value| value == "1")
}

/// Tells the database what it must know before the answer. Few requests owe anything: the first after a silence, and the
/// first with a new token.
async fn settle_debts(app: &App, session: &Session, owed: Owed) -> Result<(), Error> {
    if owed.last_active {
        background::write_back_now(app, session.token).await;
    }
    if owed.first_use {
        let (id, token) = (session.id, session.token);
        let noted = app.db.write_relaxed(move |tx| {
            note_use_of_successor(tx, id, &token)?;
            let live = tx.live().clone();
            tx.after_commit(move || live.proved(&token));
            Ok::<_, Error>(())
        });
        noted.await?;
    }
    Ok(())
}

/// Ends a session that is past a deadline at the moment of the request, and says why it is dead: for this deadline, or for
/// what came first. `None` when it lives after all, because another process wrote down a request that is not known here.
fn end_by_deadline(tx: &mut Tx, token: &TokenHash, asked_at: Timestamp) -> Result<Option<Refusal>, Error> {
    tx.forget(token);
    let Some(session) = device_sessions::holding(tx, token)? else {
        return Ok(Some(device_sessions::refusal_for(tx, token)?.unwrap_or(Refusal::Unauthenticated)));
    };
    match judge(&session.limits, session.last_active_at, asked_at).reason() {
        // What only memory knew of it is written first: memory forgets it.
        None => refresh(tx, std::slice::from_ref(&session)).map(|()| None).map_err(Error::from),
        Some(reason) => {
            device_sessions::time_out(tx, &session, reason)?;
            Ok(Some(Refusal::SessionEnded(reason)))
        }
    }
}

/// Refuses a retired token, and raises the alarm if only a thief can have sent it. The successor lives on: ending it would
/// let whoever holds an old cookie sign the user out at will.
async fn turn_away_retired(app: &App, token: TokenHash, client: Client) -> Result<Refusal, Error> {
    // Most retired tokens come from a request that was under way; for those it is only a read.
    let suspicious = app.db.glance(move |tx| device_sessions::looks_stolen(tx, &token).map(|session| session.is_some()).map_err(Error::from)).await?;
    if suspicious {
        let scene = client.scene().await?;
        app.db.write(move |tx| device_sessions::report_if_stolen(tx, &token, scene.clone()).map_err(Error::from)).await?;
    }
    Ok(Refusal::SessionRotated)
}
