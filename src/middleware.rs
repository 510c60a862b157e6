//! What stands around every route, outermost first, and why each step stands where it stands:
//!
//! 1. The request id, the line in the log, the headers that every answer has: outermost, so that what the others refuse is named
//!    and logged too.
//! 2. [`cross_site::judge`]: before anything is read or looked up; and every answer from below gets its CORS headers.
//! 3. [`in_our_words`]: a panic, a fault and the router's own `405` become problems.
//! 4. The router: `404`, `405`.
//! 5. [`read_body`], for each method of each route: size and media type.
//! 6. [`require_session`], where a session is needed.
//! 7. The handler's extractors, in the order of its arguments: permission, query, body, path.
//!
//! 1 to 3 are one layer ([`around`]), 5 and 6 another ([`open`], [`signed_in`]): each layer of axum clones all those inside it,
//! for every request, so seven of them cost more than the whole check.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tracing::Instrument;

use crate::app::App;
use crate::cross_site::{self, Crossing, Passage};
use crate::error::{self, Blame, Code, Refusal};
use crate::session_extractor::{Session, require_session};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BODY_BYTES: usize = 64 * 1024;
const BODY_TIME: Duration = Duration::from_secs(30);

/// What every answer says: keep no copy, guess no type, load and frame nothing, tell nobody where one came from. ASVS 3.4.
const SAFE: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Puts steps 1 to 3 around the routes.
pub fn stack(routes: Router<App>, app: &App) -> Router<App> {
    routes.layer(from_fn_with_state(app.clone(), around))
}

async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(request.headers(), &app);
    let name = id.to_str().unwrap_or_default();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let (method, version) = (request.method().clone(), request.version());
    // What changes state says so in the log, and that line should name its request; a mere look need not pay for the span.
    let span = match method {
        Method::GET | Method::HEAD => tracing::debug_span!("request", request_id = name),
        _ => tracing::info_span!("request", request_id = name),
    };

    let Crossing { passage, reader } = cross_site::judge(&method, request.headers(), &app.config);
    let mut response = match passage {
        Passage::Through => in_our_words(next.run(request), name).instrument(span).await,
        Passage::Answered(response) => response,
    };

    let headers = response.headers_mut();
    cross_site::open_to(reader, headers, &app.config);
    for (name, value) in SAFE {
        // The pages of letters have a policy of their own.
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if app.config.public_url.https {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    headers.insert(REQUEST_ID, id.clone());
    if version < Version::HTTP_2 && app.draining.load(Ordering::Relaxed) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    log(name, &method, route.as_ref(), &response, begun.elapsed());
    response
}

/// Puts what the router and the runtime say into our words. A panic costs its own request only.
async fn in_our_words(answer: impl Future<Output = Response>, request_id: &str) -> Response {
    let caught = AssertUnwindSafe(answer).catch_unwind().await;
    let (mut response, panicked) = match caught {
        Ok(response) => (response, None),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR.into_response(), Some(Blame("a handler panicked".into()))),
    };
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => error::method_not_allowed(response.headers_mut().remove(ALLOW)),
        StatusCode::INTERNAL_SERVER_ERROR => {
            let blame = panicked.or_else(|| response.extensions_mut().remove::<Blame>());
            let mut response = error::internal(Some(request_id.into()));
            blame.map(|blame| response.extensions_mut().insert(blame));
            response
        }
        _ => response,
    }
}

/// Before a handler that anybody may reach: the body.
pub async fn open(request: Request, next: Next) -> Response {
    match read_body(request, is_json).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => hang_up(refusal),
    }
}

/// Before a page that a letter led to: the body, which a form sent.
pub async fn page(request: Request, next: Next) -> Response {
    match read_body(request, is_urlencoded).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => hang_up(refusal),
    }
}

/// Before a handler that needs a session: the body, then the session.
pub async fn signed_in(State(app): State<App>, request: Request, next: Next) -> Response {
    match read_body(request, is_json).await {
        Ok(request) => require_session(&app, request, next).await,
        Err(refusal) => hang_up(refusal),
    }
}

/// Refuses a body; the rest of it is not worth reading.
fn hang_up(refusal: Refusal) -> Response {
    let mut response = refusal.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Keeps a well-formed id that came with the request, so that it can be followed through a chain of servers.
fn request_id(headers: &HeaderMap, app: &App) -> HeaderValue {
    let mut given = headers.get_all(REQUEST_ID).iter();
    let well_formed = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=64).contains(&bytes.len()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
    };
    if let (Some(id), None) = (given.next().filter(well_formed), given.next()) {
        return id.clone();
    }
    let mut hex = [0u8; 24];
    let random: [u8; 12] = app.request_ids.next();
    for (i, byte) in random.iter().enumerate() {
        hex[2 * i] = b"0123456789abcdef"[usize::from(byte >> 4)];
        hex[2 * i + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    HeaderValue::from_bytes(&hex).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// One line per request. No query, no header, no body: a secret cannot get in.
fn log(id: &str, method: &Method, route: Option<&MatchedPath>, response: &Response, took: Duration) {
    let status = response.status().as_u16();
    let route = route.map_or("-", MatchedPath::as_str);
    let session = response.extensions().get::<Session>();
    let (user, session) = (session.map(|s| tracing::field::display(s.user_id)), session.map(|s| tracing::field::display(s.id)));
    let ms = took.as_micros() as f64 / 1000.0;
    let code = response.extensions().get::<Code>().map(|code| code.0);
    if let Some(Blame(cause)) = response.extensions().get::<Blame>() {
        tracing::error!(request_id = id, %method, route, status, ms, user, session, cause = &**cause, "fault");
    } else if status >= 400 {
        tracing::info!(request_id = id, %method, route, status, ms, user, session, code, "refused");
    } else {
        tracing::debug!(request_id = id, %method, route, status, ms, user, session, "answered");
    }
}

/// Reads the body whole, at most 64 KiB of the right type within 30 s, before the request goes on.
async fn read_body(request: Request, is_wanted: fn(&HeaderMap) -> bool) -> Result<Request, Refusal> {
    if !has_body(request.headers(), request.body()) {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let declared = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > BODY_BYTES as u64) {
        return Err(Refusal::BodyTooLarge);
    }
    if !is_wanted(&parts.headers) {
        return Err(Refusal::UnsupportedMediaType);
    }
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES).collect()).await;
    let body: Bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => return Err(Refusal::BodyTooLarge),
        Ok(Err(_)) => return Err(Refusal::MalformedRequest("The body broke off.")),
        Err(_) => return Err(Refusal::MalformedRequest("The body did not arrive within 30 seconds.")),
    };
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn has_body(headers: &HeaderMap, body: &Body) -> bool {
    use http_body::Body as _;
    let declared = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    declared || headers.contains_key(TRANSFER_ENCODING) || !body.is_end_stream()
}

/// `application/json`: anything else could be sent by a form of another site. CSRF-01.
fn is_json(headers: &HeaderMap) -> bool {
    is_of_type(headers, "application/json")
}

/// What a form sends. Those of other sites were refused before: by their origin.
fn is_urlencoded(headers: &HeaderMap) -> bool {
    is_of_type(headers, "application/x-www-form-urlencoded")
}

/// One type, once, as itself or in UTF-8.
fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(media_type), None) = (types.next().and_then(|value| value.to_str().ok()), types.next()) else { return false };
    let (essence, parameters) = media_type.split_once(';').unwrap_or((media_type, ""));
    let parameters = parameters.trim();
    let plain = !headers.contains_key(CONTENT_ENCODING);
    let utf8 = parameters.is_empty() || ["charset=utf-8", "charset=\"utf-8\""].iter().any(|known| parameters.eq_ignore_ascii_case(known));
    plain && utf8 && essence.trim().eq_ignore_ascii_case(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_TYPE, HeaderValue::from_str(line).expect("a header value"));
        }
        is_json(&headers)
    }

    /// CSRF-01.
    #[test]
    fn only_json_is_json() {
        for good in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\""] {
            assert!(json(&[good]), "{good}");
        }
        let bad = [
            "text/plain",
            "Text/Plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
            "application/jsonx",
            "application/json;charset=x, text/plain",
            "application/json, text/plain",
            "application/problem+json",
            "application/json; charset=utf-16",
        ];
        for bad in bad {
            assert!(!json(&[bad]), "{bad}");
        }
        assert!(!json(&[]) && !json(&["application/json", "text/plain"]));
    }
}
