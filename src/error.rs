//! Two kinds of "no".
//!
//! A [`Refusal`] is part of the contract: it has a stable code, and tells its reader what to do. A fault is ours: its
//! reader learns only that it happened and the request id; the cause goes to the log. The response carries the fault to the
//! logging middleware instead of logging it here, so that there is one line per request.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::{Fault, Kind};
use crate::device_sessions::EndReason;

/// Why a request got nothing.
#[derive(Debug, Clone)]
pub enum Error {
    /// The client can do something about it.
    Refused(Refusal),
    /// Only we can.
    Fault(Fault),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Fault(fault)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Refused(refusal)
    }
}

/// A refusal with a stable code. RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The codes are the contract's, and `told` says each in a sentence.
pub enum Refusal {
    MalformedJson(Cow<'static, str>),
    MalformedRequest(&'static str),
    Unauthenticated,
    /// At sign-in: `401`. An unknown e-mail, a wrong password and a disabled account are one.
    WrongCredentials,
    /// For someone who is signed in: `403`. Their session is fine, what they typed is not.
    WrongCurrentPassword,
    SessionEnded(EndReason),
    SessionRotated,
    Forbidden,
    CrossSite,
    NotFound,
    MethodNotAllowed,
    EmailTaken,
    EmailUnverified,
    /// The link of a letter: spent, expired, replaced by a newer one, or unknown.
    InvalidToken,
    SignUpClosed,
    LastAdmin,
    BodyTooLarge,
    UnsupportedMediaType,
    Invalid(Vec<FieldError>),
    /// Somebody tried too often: go on after so many seconds.
    RateLimited(u32),
    /// Try again after so many seconds.
    Overloaded(u32),
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's name.
    #[schema(example = "email")]
    pub field: String,
    /// A stable code: `missing`, `unknown`, `wrong_type`, `invalid`, `too_short`, `too_long`, `too_common`.
    #[schema(value_type = String, example = "invalid")]
    pub code: Cow<'static, str>,
    /// What to do, for people.
    #[schema(value_type = String)]
    pub message: Cow<'static, str>,
}

/// The body of every error: `application/problem+json`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:holdfast:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:holdfast:problem:validation_failed")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What clients switch on.
    #[schema(example = "validation_failed")]
    pub code: String,
    /// What happened, and what to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The fields at fault, with `validation_failed` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// With `internal` only: what to quote to the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A fault on its way to the logging middleware.
#[derive(Clone)]
pub struct Blame(pub Arc<str>);

/// The code of a refusal, on its way to the log.
#[derive(Clone, Copy)]
pub struct Code(pub &'static str);

type Told = (StatusCode, &'static str, &'static str, Cow<'static, str>);

impl Refusal {
    /// Status, code, title and detail.
    fn told(&self) -> Told {
        use StatusCode as S;
        let t = |status, code, title, detail: &'static str| (status, code, title, Cow::Borrowed(detail));
        match self {
            Refusal::MalformedJson(why) => (S::BAD_REQUEST, "malformed_json", "The body is not valid JSON", why.clone()),
            Refusal::MalformedRequest(why) => t(S::BAD_REQUEST, "malformed_request", "The request is malformed", why),
            Refusal::Unauthenticated => t(S::UNAUTHORIZED, "unauthenticated", "Not signed in", "Sign in and try again."),
            Refusal::WrongCredentials => t(S::UNAUTHORIZED, "invalid_credentials", "Wrong e-mail or password", "Check both and try again."),
            Refusal::WrongCurrentPassword => {
                t(S::FORBIDDEN, "invalid_credentials", "Wrong password", "The current password is not right. Nothing was changed.")
            }
            Refusal::SessionEnded(why) => {
                let (code, title, detail) = why.told();
                t(S::UNAUTHORIZED, code, title, detail)
            }
            Refusal::SessionRotated => t(
                S::UNAUTHORIZED,
                "session_rotated",
                "This session has a newer token",
                "Its token was replaced when its credentials changed. Try once more with the cookie that the browser holds now.",
            ),
            Refusal::Forbidden => t(S::FORBIDDEN, "forbidden", "Not allowed", "This needs the role admin."),
            Refusal::CrossSite => t(
                S::FORBIDDEN,
                "cross_site_request",
                "Refused: the request comes from another site",
                "If this front end is yours, add its origin to ALLOWED_ORIGINS, or set PUBLIC_URL to the origin that browsers see.",
            ),
            Refusal::NotFound => t(S::NOT_FOUND, "not_found", "Not found", "There is nothing here."),
            Refusal::MethodNotAllowed => {
                t(S::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed", "The Allow header lists the methods of this route.")
            }
            Refusal::EmailTaken => t(S::CONFLICT, "email_taken", "This e-mail has an account", "Sign in instead, or use another address."),
            Refusal::EmailUnverified => {
                t(S::FORBIDDEN, "email_unverified", "The e-mail address is not confirmed", "Follow the link in the letter, or ask for another one.")
            }
            Refusal::InvalidToken => {
                t(S::BAD_REQUEST, "invalid_token", "This link is not good any more", "It was used, has expired, or a newer one was sent. Ask for another.")
            }
            Refusal::SignUpClosed => t(S::FORBIDDEN, "signup_closed", "Nobody can sign up here", "Ask the people who run this site for an account."),
            Refusal::LastAdmin => {
                t(S::CONFLICT, "last_admin", "This is the last admin", "Make somebody else admin first, or nobody could administer this server.")
            }
            Refusal::BodyTooLarge => t(S::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large", "At most 64 KiB are accepted."),
            Refusal::UnsupportedMediaType => {
                t(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body is not declared as JSON", "Send it with Content-Type: application/json.")
            }
            Refusal::Invalid(_) => t(S::UNPROCESSABLE_ENTITY, "validation_failed", "Some fields are not valid", "See errors for each of them."),
            // It says nothing of who or what was asked for too often: that would tell which accounts there are.
            Refusal::RateLimited(_) => t(S::TOO_MANY_REQUESTS, "rate_limited", "Too many attempts", "Wait as long as Retry-After says, then try again."),
            Refusal::Overloaded(_) => {
                t(S::SERVICE_UNAVAILABLE, "overloaded", "The server cannot answer right now", "Wait as long as Retry-After says, then try again.")
            }
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.told().1
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, _, title, detail) = self.told();
        write!(f, "{title}. {detail}")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, title, detail) = self.told();
        let retry = match self {
            Refusal::RateLimited(seconds) | Refusal::Overloaded(seconds) => Some(seconds),
            _ => None,
        };
        let errors = match self {
            Refusal::Invalid(errors) => errors,
            _ => Vec::new(),
        };
        let mut response = problem(status, code, title, Some(detail.into_owned()), errors, None);
        response.extensions_mut().insert(Code(code));
        if let Some(seconds) = retry {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let fault = match self {
            Error::Refused(refusal) => return refusal.into_response(),
            Error::Fault(fault) => fault,
        };
        let mut response = match fault.kind {
            Kind::Unavailable => Refusal::Overloaded(1).into_response(),
            // The request id is filled in by the middleware, which knows it.
            Kind::Broken => internal(None),
        };
        response.extensions_mut().insert(Blame(fault.to_string().into()));
        response
    }
}

/// `500 internal`: the request id, and nothing else.
pub fn internal(request_id: Option<String>) -> Response {
    problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side", None, Vec::new(), request_id)
}

fn problem(status: StatusCode, code: &str, title: &str, detail: Option<String>, errors: Vec<FieldError>, request_id: Option<String>) -> Response {
    let body =
        Problem { kind: format!("urn:holdfast:problem:{code}"), title: title.into(), status: status.as_u16(), code: code.into(), detail, errors, request_id };
    // A struct of strings and numbers always serializes; if it did not, the status alone would still be true.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))], body).into_response()
}

/// Axum's own `405` keeps its `Allow` header and gets our words.
pub fn method_not_allowed(allow: Option<HeaderValue>) -> Response {
    let mut response = Refusal::MethodNotAllowed.into_response();
    if let Some(allow) = allow {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}
