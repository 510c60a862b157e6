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
//! 1 to 3 are one service around the router ([`Around`]), 5 and 6 one layer of each route ([`Entrance`]). Both are written out
//! instead of made by `axum::middleware`: that clones and boxes whatever lies inside, once for each layer and each request,
//! which cost more than the whole check.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{self, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower::{Layer, Service};
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

type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

/// The routes with steps 1 to 3 around them.
#[derive(Clone)]
pub struct Around {
    app: App,
    routes: Router,
}

impl Around {
    /// Puts steps 1 to 3 around the routes.
    pub fn new(routes: Router, app: App) -> Self {
        Around { app, routes }
    }
}

impl<B> Service<http::Request<B>> for Around
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answer {
        let begun = Instant::now();
        let app = self.app.clone();
        let id = RequestId::of(request.headers(), &app);
        let (method, version) = (request.method().clone(), request.version());
        let Crossing { passage, reader } = cross_site::judge(&method, request.headers(), &app.config);
        let answer = match passage {
            Passage::Through => Ok(self.routes.call(request)),
            Passage::Answered(response) => Err(response),
        };
        Box::pin(async move {
            let mut response = match answer {
                Ok(answer) => in_our_words(answer.map(|Ok(response)| response), &id).instrument(span(&method, &id)).await,
                Err(response) => response,
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
            headers.insert(REQUEST_ID, id.header());
            if version < Version::HTTP_2 && app.draining.load(Ordering::Relaxed) {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if method == Method::HEAD {
                without_body(&mut response);
            }
            if is_logged(&response) {
                log(&id, &method, &response, begun.elapsed());
            }
            Ok(response)
        })
    }
}

/// What changes state says so in the log, and that line should name its request; a mere look need not pay for the span.
fn span(method: &Method, id: &RequestId) -> tracing::Span {
    match *method {
        Method::GET | Method::HEAD => tracing::debug_span!("request", request_id = id.text()),
        _ => tracing::info_span!("request", request_id = id.text()),
    }
}

/// Takes the body out of an answer to `HEAD`, and says how long it would have been. The router does so with its own; over
/// HTTP/2 nobody does it after us.
fn without_body(response: &mut Response) {
    match response.body().size_hint().exact() {
        Some(0) => return,
        Some(length) if !response.headers().contains_key(CONTENT_LENGTH) => {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        _ => {}
    }
    *response.body_mut() = Body::empty();
}

/// Puts what the router and the runtime say into our words. A panic costs its own request only.
async fn in_our_words(answer: impl Future<Output = Response>, id: &RequestId) -> Response {
    let caught = AssertUnwindSafe(answer).catch_unwind().await;
    let (mut response, panicked) = match caught {
        Ok(response) => (response, None),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR.into_response(), Some(Blame("a handler panicked".into()))),
    };
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => error::method_not_allowed(response.headers_mut().remove(ALLOW)),
        StatusCode::INTERNAL_SERVER_ERROR => {
            let blame = panicked.or_else(|| response.extensions_mut().remove::<Blame>());
            let seen = response.extensions_mut().remove::<Seen>();
            let mut response = error::internal(Some(id.text().into()));
            blame.map(|blame| response.extensions_mut().insert(blame));
            seen.map(|seen| response.extensions_mut().insert(seen));
            response
        }
        _ => response,
    }
}

/// What a handler is, to who comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Anybody,
    /// Anybody, with a form instead of JSON.
    Page,
    SignedIn,
}

impl To {
    /// Whether a body of this type is read at all.
    fn wants(self, headers: &HeaderMap) -> bool {
        match self {
            To::Page => is_urlencoded(headers),
            To::Anybody | To::SignedIn => is_json(headers),
        }
    }
}

/// The layer before the handlers of a route: the body, and the session where one is needed.
#[derive(Clone)]
pub struct Entrance {
    app: App,
    to: To,
}

impl Entrance {
    /// Anybody may come in: the body is read.
    pub fn open(app: &App) -> Self {
        Entrance { app: app.clone(), to: To::Anybody }
    }

    /// A page that a letter led to: anybody may come in, and the body is what a form sends.
    pub fn page(app: &App) -> Self {
        Entrance { app: app.clone(), to: To::Page }
    }

    /// Who is signed in may come in: the body is read, then the session is judged.
    pub fn signed_in(app: &App) -> Self {
        Entrance { app: app.clone(), to: To::SignedIn }
    }
}

impl Layer<Route> for Entrance {
    type Service = Entered;

    fn layer(&self, handler: Route) -> Entered {
        Entered { entrance: self.clone(), handler }
    }
}

/// A handler behind its [`Entrance`].
#[derive(Clone)]
pub struct Entered {
    entrance: Entrance,
    handler: Route,
}

impl Service<Request> for Entered {
    type Response = Response;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Answer {
        let Entered { entrance: Entrance { app, to }, handler } = self.clone();
        Box::pin(async move {
            let route = request.extensions().get::<MatchedPath>().cloned();
            let (mut response, session) = match read_body(request, to).await {
                Ok(request) if to == To::SignedIn => require_session(&app, request, handler).await,
                Ok(request) => (run(handler, request).await, None),
                Err(refusal) => (hang_up(refusal), None),
            };
            if is_logged(&response) {
                response.extensions_mut().insert(Seen { route, session });
            }
            Ok(response)
        })
    }
}

/// Hands a request to its handler.
pub async fn run(mut handler: Route, request: Request) -> Response {
    let Ok(response) = handler.call(request).await;
    response
}

/// What a route knows of its request, on its way to the log.
#[derive(Clone)]
struct Seen {
    route: Option<MatchedPath>,
    session: Option<Session>,
}

/// Refuses a body; the rest of it is not worth reading.
fn hang_up(refusal: Refusal) -> Response {
    let mut response = refusal.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The name of a request: a well-formed one that came with it, so that it can be followed through a chain of servers, or ours.
struct RequestId {
    bytes: [u8; RequestId::LONGEST],
    length: usize,
}

impl RequestId {
    const LONGEST: usize = 64;

    fn of(headers: &HeaderMap, app: &App) -> Self {
        let mut given = headers.get_all(REQUEST_ID).iter().map(HeaderValue::as_bytes);
        match (given.next(), given.next()) {
            (Some(id), None) if Self::is_well_formed(id) => Self::new(id),
            _ => Self::new(&app.request_ids.next()),
        }
    }

    fn is_well_formed(id: &[u8]) -> bool {
        (1..=Self::LONGEST).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
    }

    fn new(id: &[u8]) -> Self {
        let mut bytes = [0; Self::LONGEST];
        let length = id.len().min(Self::LONGEST);
        bytes[..length].copy_from_slice(&id[..length]);
        RequestId { bytes, length }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }

    fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.bytes[..self.length]).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }
}

/// Whether the answer will be told in the log: a refusal or a fault always, the others only at the level `debug`.
fn is_logged(response: &Response) -> bool {
    response.status().as_u16() >= 400 || tracing::enabled!(tracing::Level::DEBUG)
}

/// One line per request. No query, no header, no body: a secret cannot get in.
fn log(id: &RequestId, method: &Method, response: &Response, took: Duration) {
    let (id, status) = (id.text(), response.status().as_u16());
    let seen = response.extensions().get::<Seen>();
    let route = seen.and_then(|seen| seen.route.as_ref()).map_or("-", MatchedPath::as_str);
    let session = seen.and_then(|seen| seen.session.as_ref());
    let (user, session) = (session.map(|s| tracing::field::display(s.user_id)), session.map(|s| tracing::field::display(s.id)));
    let ms = took.as_micros() as f64 / 1000.0;
    let code = response.extensions().get::<Code>().map(|code| code.0);
    if let Some(Blame(cause)) = response.extensions().get::<Blame>() {
        tracing::error!(request_id = id, %method, route, status, ms, user, session, cause = &**cause, "fault");
    } else if status < 400 || code == Some(Refusal::Unauthenticated.code()) {
        tracing::debug!(request_id = id, %method, route, status, ms, user, session, code, "answered");
    } else {
        tracing::info!(request_id = id, %method, route, status, ms, user, session, code, "refused");
    }
}

/// Reads the body, if there is one, before the request goes on.
async fn read_body(request: Request, to: To) -> Result<Request, Refusal> {
    match has_body(request.headers(), request.body()) {
        true => Box::pin(read_whole(request, to)).await,
        false => Ok(request),
    }
}

/// Reads a body whole: at most 64 KiB of the right type within 30 s.
async fn read_whole(request: Request, to: To) -> Result<Request, Refusal> {
    let (parts, body) = request.into_parts();
    let declared = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > BODY_BYTES as u64) {
        return Err(Refusal::BodyTooLarge);
    }
    if !to.wants(&parts.headers) {
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

    /// ASVS 16.5.4.
    #[tokio::test]
    async fn a_panic_costs_its_own_request_only_and_tells_nothing() {
        let panics = std::future::poll_fn(|_| -> Poll<Response> { panic!("a detail for the log alone") });
        let response = in_our_words(panics, &RequestId::new(b"find-me")).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let told = String::from_utf8_lossy(&body);
        assert!(told.contains("find-me") && !told.contains("detail for the log"), "{told}");
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
