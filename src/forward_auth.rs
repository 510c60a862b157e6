//! `GET /check`: the question that reverse proxies and backends ask on every request of every user.
//!
//! The answer is headers only, made from memory: who, in which session, in which role. Values are made safe for a header
//! before they get there (FWD-05), and the answer is a `204` or a refusal, so a proxy that reads only the status fails
//! closed (FWD-06).

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use uuid::Uuid;

use crate::error::{Error, Problem, Refusal};
use crate::form::{Form, FromForm, Query, Rules};
use crate::guard::SignedIn;

const USER: HeaderName = HeaderName::from_static("x-holdfast-user");
const SESSION: HeaderName = HeaderName::from_static("x-holdfast-session");
const ROLE: HeaderName = HeaderName::from_static("x-holdfast-role");
const EMAIL: HeaderName = HeaderName::from_static("x-holdfast-email");
const EMAIL_VERIFIED: HeaderName = HeaderName::from_static("x-holdfast-email-verified");

/// What cannot stand in a header, or would be read as an escape.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%').add(b' ').add(b'"').add(b',').add(b';');

/// Says whose request it is.
#[utoipa::path(get, path = "/check", tag = "Check", operation_id = "check", security(("session" = [])),
    params(("verified" = Option<bool>, Query, description = "true: `403 email_unverified` for accounts whose address is not confirmed")),
    responses((status = 204, headers(
            ("X-Holdfast-User" = String, description = "The user's id"), ("X-Holdfast-Session" = String, description = "The session's id"),
            ("X-Holdfast-Role" = String), ("X-Holdfast-Email" = String, description = "Percent-encoded UTF-8"),
            ("X-Holdfast-Email-Verified" = bool))), (status = 403, body = Problem)))]
pub async fn check(SignedIn(me): SignedIn, Query(Terms { verified }): Query<Terms>) -> Result<Response, Error> {
    if verified && !me.email_verified {
        return Err(Refusal::EmailUnverified.into());
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    // With room for what every answer says besides.
    headers.reserve(12);
    headers.insert(USER, id(me.user_id.0));
    headers.insert(SESSION, id(me.id.0));
    headers.insert(ROLE, text(me.who.role()));
    headers.insert(EMAIL, text(&Cow::from(utf8_percent_encode(me.who.email(), ESCAPED))));
    headers.insert(EMAIL_VERIFIED, HeaderValue::from_static(if me.email_verified { "true" } else { "false" }));
    Ok(response)
}

/// What a proxy may ask for beyond a session.
pub struct Terms {
    verified: bool,
}

impl FromForm for Terms {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(Terms { verified: form.flag("verified", false)? })
    }
}

fn id(id: Uuid) -> HeaderValue {
    text(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
}

/// Ids, roles and percent-encoded text are printable ASCII.
fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| unreachable!("printable ASCII is a header value"))
}
