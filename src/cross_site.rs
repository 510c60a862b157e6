//! Requests from other sites: who may change state, and who may read the answer.
//!
//! Called first, before anything is read. A browser says in `Origin` and `Sec-Fetch-Site` where a request comes from, and
//! a page cannot lie about either; a request with neither comes from no browser, and cookies are not sent along by accident
//! there. `SameSite=Lax` alone would not do: it lets sibling domains through, and old browsers ignore it. CSRF-01, CSRF-02.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::config::Config;
use crate::error::Refusal;

/// What a request's origin means for it.
pub enum Passage {
    /// It may go on.
    Through,
    /// It is answered here: a preflight, or a refusal.
    Answered(Response),
}

/// A request on its way past the guard.
pub struct Crossing {
    /// Whether it goes on.
    pub passage: Passage,
    /// The allowed origin that may read the answer, whatever the answer is.
    pub reader: Option<HeaderValue>,
}

/// Refuses what another site may not change, and answers preflights. Looks at the method and the headers only.
pub fn judge(method: &Method, headers: &HeaderMap, config: &Config) -> Crossing {
    let reader = allowed_reader(headers, config);
    let passage = if reader.is_some() && method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        Passage::Answered(preflight())
    } else if is_safe(method) || may_change(headers, config) {
        Passage::Through
    } else {
        Passage::Answered(Refusal::CrossSite.into_response())
    };
    Crossing { passage, reader }
}

/// Lets the allowed origin read an answer.
pub fn open_to(reader: Option<HeaderValue>, headers: &mut HeaderMap, config: &Config) {
    if !config.allowed_origins.is_empty() {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    if let Some(origin) = reader {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After, X-Request-Id"));
    }
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether a request may change state.
fn may_change(headers: &HeaderMap, config: &Config) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (Some(_), Some(_)) => return false,
        (Some(origin), None) if is_ours(origin, config) => return true,
        _ => {}
    }
    let mut sites = headers.get_all("sec-fetch-site").iter();
    match (sites.next(), sites.next()) {
        (Some(site), None) => site == "same-origin" || site == "none",
        (None, None) => !headers.contains_key(ORIGIN),
        _ => false,
    }
}

/// Byte by byte: an origin has one spelling, and browsers write that.
fn is_ours(origin: &HeaderValue, config: &Config) -> bool {
    origin == config.public_url.origin.as_str() || config.allowed_origins.iter().any(|allowed| origin == allowed.as_str())
}

fn allowed_reader(headers: &HeaderMap, config: &Config) -> Option<HeaderValue> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let (origin, None) = (origins.next()?, origins.next()) else { return None };
    config.allowed_origins.iter().any(|allowed| origin == allowed.as_str()).then(|| origin.clone())
}

fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE")),
        (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Content-Type, X-Request-Id, X-Session-Passive")),
        (ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Variables;

    fn passes(pairs: &[(&'static str, &str)]) -> bool {
        let settings = [("PUBLIC_URL", "https://id.example.com"), ("ALLOWED_ORIGINS", "https://app.example.com")];
        let config = Config::read(&Variables::of(&settings)).expect("right");
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("a header value"));
        }
        may_change(&headers, &config)
    }

    #[test]
    fn our_own_and_the_allowed_origins_may_change_state() {
        assert!(passes(&[("origin", "https://id.example.com")]));
        assert!(passes(&[("origin", "https://app.example.com"), ("sec-fetch-site", "same-site")]));
        assert!(passes(&[("sec-fetch-site", "same-origin")]));
        assert!(passes(&[("sec-fetch-site", "none")]));
        assert!(passes(&[]));
        // A dev server that proxies: the origin is another port, the fetch is same-origin all the same.
        assert!(passes(&[("origin", "http://localhost:5173"), ("sec-fetch-site", "same-origin")]));
    }

    /// CSRF-02: no prefix, suffix, case or scheme trick makes another origin ours.
    #[test]
    fn every_other_origin_may_not() {
        let others = [
            "null",
            "http://id.example.com",
            "https://id.example.com:444",
            "https://id.example.com.evil.test",
            "https://evilid.example.com",
            "https://user@id.example.com",
            "HTTPS://ID.EXAMPLE.COM",
            "https://example.com",
            "https://x.id.example.com",
            "",
        ];
        for origin in others {
            assert!(!passes(&[("origin", origin)]), "{origin}");
            assert!(!passes(&[("origin", origin), ("sec-fetch-site", "cross-site")]), "{origin}");
            assert!(!passes(&[("origin", origin), ("sec-fetch-site", "same-site")]), "{origin}");
        }
        assert!(!passes(&[("sec-fetch-site", "cross-site")]));
        assert!(!passes(&[("sec-fetch-site", "same-site")]));
        assert!(!passes(&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn two_origins_may_not_even_if_both_are_ours() {
        assert!(!passes(&[("origin", "https://id.example.com"), ("origin", "https://id.example.com"), ("sec-fetch-site", "same-origin")]));
    }
}
