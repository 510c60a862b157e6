//! Guards: extractors whose type is the permission.
//!
//! A handler that takes [`Admin`] cannot be reached by anybody else; there is no check to forget. The session itself was
//! judged by [`require_session`](crate::session_extractor::require_session) before any of these look at it. If a route
//! were mounted without that middleware its guard would find no session and refuse: a mistake fails closed.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use uuid::Uuid;

use crate::error::{Error, Refusal};
use crate::id::{SessionId, UserId};
use crate::live_sessions::Session;

/// The role that administers.
pub const ADMIN: &str = "admin";

/// Somebody who is signed in.
pub struct SignedIn(pub Session);

impl<S: Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get::<Session>().cloned().map(SignedIn).ok_or_else(|| Refusal::Unauthenticated.into())
    }
}

/// Somebody who is signed in and has the role `admin`.
pub struct Admin(pub Session);

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let SignedIn(session) = SignedIn::from_request_parts(parts, state).await?;
        if session.who.role() != ADMIN {
            return Err(Refusal::Forbidden.into());
        }
        Ok(Admin(session))
    }
}

/// An id in the path. One that is no UUID names nothing: `404`.
pub struct PathId<T>(pub T);

/// A user's id and the id of one of their sessions, in the path.
pub struct PathIds(pub UserId, pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for PathId<UserId> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| Refusal::NotFound)?;
        UserId::parse(&text).map(PathId).ok_or_else(|| Refusal::NotFound.into())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathId<SessionId> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| Refusal::NotFound)?;
        SessionId::parse(&text).map(PathId).ok_or_else(|| Refusal::NotFound.into())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathIds {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path((user, session)) = Path::<(String, String)>::from_request_parts(parts, state).await.map_err(|_| Refusal::NotFound)?;
        let ids = UserId::parse(&user).zip(SessionId::parse(&session));
        ids.map(|(user, session)| PathIds(user, session)).ok_or_else(|| Refusal::NotFound.into())
    }
}

/// The floor and the ceiling of ids: "before nothing" starts a list at its newest.
pub const NEWEST: Uuid = Uuid::max();
