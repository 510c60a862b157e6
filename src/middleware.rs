//! What stands around every route, outermost first, and why each step stands where it stands:
//!
//! 1. The request id, the line in the log, the headers that every answer has: outermost, so that what the others refuse is named
//!    and logged too.
//! 2. [`cross_site::judge`]: before anything is read or looked up; and every answer from below gets its CORS headers. Then
//!    [`turned_away`](Around::turned_away): a head that is too large, and what there is no capacity for.
//! 3. [`in_our_words`]: a panic, a fault and the router's own `405` become problems.
//! 4. The router: `404`, `405`.
//! 5. [`read_body`], for each method of each route: size and media type.
//! 6. [`require_session`], where a session is needed.
//! 7. The handler's extractors, in the order of its arguments: permission, query, body, path.
//!
//! 1 to 3 are one service around the router ([`Around`]), 5 and 6 one layer of each route ([`Entrance`]). Both are written out,
//! futures and all, instead of made by `axum::middleware`: that clones and boxes whatever lies inside, once for each layer and
//! each request, which cost more than the whole check.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
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
use axum::routing::future::RouteFuture;
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::Span;

use crate::app::App;
use crate::client;
use crate::cross_site::{self, Crossing, Passage};
use crate::error::{self, Blame, Code, Refusal};
use crate::guessing::MOST_IN_ALL;
use crate::live_sessions::Session;
use crate::session_extractor::{Look, admit, look, require_session};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BODY_BYTES: usize = 64 * 1024;
const BODY_TIME: Duration = Duration::from_secs(30);
/// Path and query. The longest that anybody needs, a link with a token, has some hundred.
const URL_BYTES: usize = 16 * 1024;
/// Names and values of all headers; as much as HTTP/2 lets through.
const HEADER_BYTES: usize = 32 * 1024;
/// Requests that we work on at the same time, besides those that wait for a hash or for others' guesses, whose queues have bounds of
/// their own.
const AT_WORK: usize = 512;
/// What a proxy needs for every request to the application, and what tells an operator of the trouble: cheap, and never refused.
const SPARED: [&str; 3] = ["/check", "/health/live", "/health/ready"];

/// What every answer says: keep no copy, guess no type, load and frame nothing, tell nobody where one came from. ASVS 3.4.
const SAFE: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

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

    /// What a request is refused for by its size, or by how much else there is to do, before its body is read.
    fn turned_away(&self, uri: &http::Uri, headers: &HeaderMap) -> Option<Refusal> {
        if headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() > HEADER_BYTES {
            return Some(Refusal::HeadersTooLarge);
        }
        if uri.path_and_query().is_some_and(|url| url.as_str().len() > URL_BYTES) {
            return Some(Refusal::UrlTooLong);
        }
        if self.app.serving.at_work() <= AT_WORK + self.app.hasher.capacity() + MOST_IN_ALL {
            return None;
        }
        let path = uri.path().strip_prefix(self.app.config.base_path.as_str());
        let spared = path.is_some_and(|path| SPARED.contains(&path));
        (!spared).then_some(Refusal::Overloaded(2))
    }
}

impl<B> Service<http::Request<B>> for Around
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answering {
        let begun = Instant::now();
        let id = RequestId::of(request.headers(), &self.app);
        let (method, version) = (request.method().clone(), request.version());
        client::warn_of_untrusted(&self.app, request.extensions(), request.headers());
        let Crossing { passage, reader } = cross_site::judge(&method, request.headers(), &self.app.config);
        let course = match passage {
            Passage::Through => match self.turned_away(request.uri(), request.headers()) {
                None => Course::Routed { answer: self.routes.call(request), span: span(&method, &id) },
                Some(refusal) => Course::Answered { response: Some(refusal.into_response()) },
            },
            Passage::Answered(response) => Course::Answered { response: Some(response) },
        };
        Answering { course, asked: Asked { app: self.app.clone(), id, method, version, reader, begun } }
    }
}

pin_project! {
    /// An answer on its way out through steps 3 to 1.
    pub struct Answering {
        #[pin]
        course: Course,
        asked: Asked,
    }
}

pin_project! {
    /// What became of a request.
    #[project = CourseProjection]
    enum Course {
        /// The router has it.
        Routed { #[pin] answer: RouteFuture<Infallible>, span: Span },
        /// It got no further.
        Answered { response: Option<Response> },
    }
}

impl Future for Answering {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.course.project() {
            CourseProjection::Routed { answer, span } => {
                let _entered = span.enter();
                ready!(caught(|| answer.poll(cx), &this.asked.id))
            }
            CourseProjection::Answered { response } => response.take().unwrap_or_else(|| broken(None, None, &this.asked.id)),
        };
        Poll::Ready(Ok(this.asked.finish(response)))
    }
}

/// What is known of a request when its answer leaves.
struct Asked {
    app: App,
    id: RequestId,
    method: Method,
    version: Version,
    /// The origin that may read the answer.
    reader: Option<HeaderValue>,
    begun: Instant,
}

impl Asked {
    /// Puts on what every answer has, and tells the log.
    fn finish(&mut self, mut response: Response) -> Response {
        let (config, headers) = (&self.app.config, response.headers_mut());
        cross_site::open_to(self.reader.take(), headers, config);
        for (name, value) in SAFE {
            // The pages of letters have a policy of their own.
            headers.entry(name).or_insert(HeaderValue::from_static(value));
        }
        if config.public_url.https {
            headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
        }
        headers.insert(REQUEST_ID, self.id.header());
        if self.version < Version::HTTP_2 && self.app.draining.load(Ordering::Relaxed) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.method == Method::HEAD {
            without_body(&mut response);
        }
        if is_logged(&response) {
            self.log(&response);
        }
        response
    }

    /// One line per request. No query, no header, no body: a secret cannot get in.
    fn log(&self, response: &Response) {
        let (id, method, status) = (self.id.text(), &self.method, response.status().as_u16());
        let seen = response.extensions().get::<Seen>();
        let route = seen.and_then(|seen| seen.route.as_ref()).map_or("-", MatchedPath::as_str);
        let session = seen.and_then(|seen| seen.session.as_ref());
        let (user, session) = (session.map(|s| tracing::field::display(s.user_id)), session.map(|s| tracing::field::display(s.id)));
        let ms = self.begun.elapsed().as_micros() as f64 / 1000.0;
        let code = response.extensions().get::<Code>().map(|code| code.0);
        let blame = response.extensions().get::<Blame>();
        if blame.is_none() && (status < 400 || code == Some(Refusal::Unauthenticated.code())) {
            tracing::debug!(request_id = id, %method, route, status, ms, user, session, code, "answered");
            return;
        }
        let floods = &self.app.floods;
        let Some(untold) = (if blame.is_some() { &floods.faults } else { &floods.refusals }).before_this() else { return };
        let untold = (untold > 0).then_some(untold);
        match blame {
            Some(Blame(cause)) => tracing::error!(request_id = id, %method, route, status, ms, user, session, cause = &**cause, untold, "fault"),
            None => tracing::info!(request_id = id, %method, route, status, ms, user, session, code, untold, "refused"),
        }
    }
}

/// What changes state says so in the log, and that line should name its request; a mere look need not pay for the span.
fn span(method: &Method, id: &RequestId) -> Span {
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

/// Lets the routes answer. A panic costs its own request only.
fn caught(poll: impl FnOnce() -> Poll<Result<Response, Infallible>>, id: &RequestId) -> Poll<Response> {
    match std::panic::catch_unwind(AssertUnwindSafe(poll)) {
        Ok(answer) => answer.map(|Ok(response)| in_our_words(response, id)),
        Err(_) => Poll::Ready(broken(Some(Blame("a handler panicked".into())), None, id)),
    }
}

/// Puts what the router and the runtime say into our words.
fn in_our_words(mut response: Response, id: &RequestId) -> Response {
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => error::method_not_allowed(response.headers_mut().remove(ALLOW)),
        StatusCode::INTERNAL_SERVER_ERROR => {
            let (blame, seen) = (response.extensions_mut().remove(), response.extensions_mut().remove());
            broken(blame, seen, id)
        }
        _ => response,
    }
}

/// Our fault, with its cause for the log alone.
fn broken(blame: Option<Blame>, seen: Option<Seen>, id: &RequestId) -> Response {
    let mut response = error::internal(Some(id.text().into()));
    blame.map(|blame| response.extensions_mut().insert(blame));
    seen.map(|seen| response.extensions_mut().insert(seen));
    response
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
    type Future = Entering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Entering {
        let Entrance { app, to } = &self.entrance;
        let route = request.extensions().get::<MatchedPath>().cloned();
        // Without a body there is nothing to wait for before the look, and most looks are all there is.
        let looked = match *to == To::SignedIn && !has_body(request.headers(), request.body()) {
            true => Some(look(app, request.headers())),
            false => None,
        };
        if let Some(Look::Yes(session)) = looked {
            admit(&mut request, &session);
            return Entering { way: Way::Straight { answer: self.handler.call(request) }, seen: Seen { route, session: Some(session) } };
        }
        Entering { way: Way::Whole { answer: Box::pin(enter(self.clone(), request, looked)) }, seen: Seen { route, session: None } }
    }
}

pin_project! {
    /// An answer on its way out of a route.
    pub struct Entering {
        #[pin]
        way: Way,
        seen: Seen,
    }
}

pin_project! {
    /// How far a request had to go.
    #[project = WayProjection]
    enum Way {
        /// Memory let it in at once.
        Straight { #[pin] answer: RouteFuture<Infallible> },
        /// Something had to be waited for.
        Whole { answer: Pin<Box<dyn Future<Output = (Response, Option<Session>)> + Send>> },
    }
}

impl Future for Entering {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.way.project() {
            WayProjection::Straight { answer } => ready!(answer.poll(cx))?,
            WayProjection::Whole { answer } => {
                let (response, session) = ready!(answer.as_mut().poll(cx));
                this.seen.session = session;
                response
            }
        };
        if is_logged(&response) {
            response.extensions_mut().insert(std::mem::take(this.seen));
        }
        Poll::Ready(Ok(response))
    }
}

/// The whole way in: the body, the session if one is needed, the handler.
async fn enter(entered: Entered, request: Request, looked: Option<Look>) -> (Response, Option<Session>) {
    let Entered { entrance: Entrance { app, to }, mut handler } = entered;
    let (mut request, mut session) = match read_body(request, to).await {
        Ok(request) => (request, None),
        Err(refusal) => return (hang_up(refusal), None),
    };
    if to == To::SignedIn {
        let looked = looked.unwrap_or_else(|| look(&app, request.headers()));
        match require_session(&app, request, looked).await {
            Ok((admitted, whose)) => (request, session) = (admitted, Some(whose)),
            Err(error) => return (error.into_response(), None),
        }
    }
    let Ok(response) = handler.call(request).await;
    (response, session)
}

/// What a route knows of its request, on its way to the log.
#[derive(Clone, Default)]
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
    let gathered = tokio::time::timeout(BODY_TIME, gather(body)).await;
    let body = gathered.unwrap_or(Err(Refusal::MalformedRequest("The body did not arrive within 30 seconds.")))?;
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Copies a body together. Each frame that is kept would keep the buffer that it was read into, 8 KiB for a single byte.
async fn gather(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::MalformedRequest("The body broke off."))?;
        // Trailers say nothing here.
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > BODY_BYTES {
            return Err(Refusal::BodyTooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
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
    use std::sync::Arc;

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
        let answer = caught(|| panic!("a detail for the log alone"), &RequestId::new(b"find-me"));
        let Poll::Ready(response) = answer else { panic!("still waiting") };
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let told = String::from_utf8_lossy(&body);
        assert!(told.contains("find-me") && !told.contains("detail for the log"), "{told}");
    }

    /// SLOW-02.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_takes_longer_than_half_a_minute_is_refused() {
        let never = || Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let request = Request::post("/login").header(CONTENT_TYPE, "application/json").body(never()).expect("a request");
        let begun = tokio::time::Instant::now();
        let read = read_body(request, To::Anybody).await;
        assert!(matches!(read, Err(Refusal::MalformedRequest(_))));
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    /// SLOW-02: a client decides how large the pieces are, and so how many there are.
    #[tokio::test]
    async fn a_body_in_many_pieces_takes_no_more_memory_than_its_bytes() {
        struct Buffer {
            _held: Arc<()>,
        }
        impl AsRef<[u8]> for Buffer {
            fn as_ref(&self) -> &[u8] {
                b" "
            }
        }
        let buffers = Arc::new(());
        let read = buffers.clone();
        let pieces = (0..1000).map(move |_| {
            assert!(Arc::strong_count(&read) <= 4, "the buffers of earlier pieces are free");
            Ok::<_, std::io::Error>(Bytes::from_owner(Buffer { _held: read.clone() }))
        });
        assert_eq!(gather(Body::from_stream(futures_util::stream::iter(pieces))).await.ok().map(|body| body.len()), Some(1000));
        let pieces = (0..=BODY_BYTES).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b" ")));
        assert!(matches!(gather(Body::from_stream(futures_util::stream::iter(pieces))).await, Err(Refusal::BodyTooLarge)));
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
