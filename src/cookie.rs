//! The two cookies, and the one place that writes them.
//!
//! Over https they carry the `__Host-` prefix: a browser accepts such a cookie only when it is `Secure`, host-only and for
//! `/`, so no sibling domain can toss one at us. A request that brings two of one name is ambiguous and gets none (COOK-02).

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use axum_extra::extract::cookie::{Cookie, SameSite};

use crate::clock::Timestamp;
use crate::secret::{Token, TokenHash};

/// How long a browser remembers that it is known here: as long as browsers allow.
pub const DEVICE_DAYS: u64 = 400;

/// Which of our cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Carries the session token.
    Session,
    /// Names the browser. Authenticates nobody.
    Device,
}

/// Reads and writes our cookies for one kind of transport.
#[derive(Clone, Copy, Debug)]
pub struct Cookies {
    /// Whether browsers reach us by https.
    pub secure: bool,
}

impl Cookies {
    fn name(self, which: Name) -> &'static str {
        match (which, self.secure) {
            (Name::Session, true) => "__Host-holdfast",
            (Name::Session, false) => "holdfast",
            (Name::Device, true) => "__Host-holdfast-device",
            (Name::Device, false) => "holdfast-device",
        }
    }

    /// The token that a request presents: none when there is no such cookie, more than one, or one that is no token.
    pub fn presented(self, headers: &HeaderMap, which: Name) -> Option<Token> {
        Token::read(self.value(headers, which)?)
    }

    /// The hash of the token that a request presents.
    pub fn presented_hash(self, headers: &HeaderMap, which: Name) -> Option<TokenHash> {
        TokenHash::of_written(self.value(headers, which)?)
    }

    fn value(self, headers: &HeaderMap, which: Name) -> Option<&str> {
        let name = self.name(which);
        let mut values = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).filter_map(|pair| {
            let pair = pair.trim_ascii_start();
            pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
        });
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        std::str::from_utf8(value).ok()
    }

    /// Hands a session token to the browser: for this browser session, or, if it is remembered, for what is left of the
    /// session's own absolute timeout.
    pub fn session(self, token: &Token, remember: bool, expires_at: Timestamp, now: Timestamp) -> HeaderValue {
        // Never zero: that would take the cookie back which it hands out.
        let max_age = remember.then(|| (expires_at.since(now) / 1000).max(1));
        self.write(Name::Session, &token.reveal(), max_age)
    }

    /// Takes the session token back.
    pub fn clear_session(self) -> HeaderValue {
        self.write(Name::Session, "", Some(0))
    }

    /// Names the browser.
    pub fn device(self, token: &Token) -> HeaderValue {
        self.write(Name::Device, &token.reveal(), Some(DEVICE_DAYS as i64 * 86_400))
    }

    fn write(self, which: Name, value: &str, max_age_seconds: Option<i64>) -> HeaderValue {
        let mut cookie = Cookie::build((self.name(which), value)).path("/").http_only(true).same_site(SameSite::Lax).secure(self.secure);
        if let Some(seconds) = max_age_seconds {
            cookie = cookie.max_age(time::Duration::seconds(seconds));
        }
        let mut value = HeaderValue::try_from(cookie.build().to_string()).unwrap_or_else(|_| unreachable!("our names and base64url are ASCII"));
        // Keeps the value out of anything that prints headers.
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    const HTTPS: Cookies = Cookies { secure: true };

    fn presented(lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_str(line).expect("a header value"));
        }
        let (token, hash) = (HTTPS.presented(&headers, Name::Session), HTTPS.presented_hash(&headers, Name::Session));
        assert_eq!(token.map(|token| token.hash()), hash);
        hash.is_some()
    }

    /// COOK-01.
    #[test]
    fn over_https_a_cookie_is_host_only_secure_http_only_and_lax() {
        let token = Token::mint(&Chance::seeded(1));
        let line = |value: HeaderValue| value.to_str().expect("ASCII").to_string();
        let plain = line(HTTPS.session(&token, false, Timestamp(99_000), Timestamp(0)));
        assert_eq!(plain, format!("__Host-holdfast={}; HttpOnly; SameSite=Lax; Secure; Path=/", *token.reveal()));
        let remembered = line(HTTPS.session(&token, true, Timestamp(99_999), Timestamp(0)));
        assert!(remembered.ends_with("; Max-Age=99"), "{remembered}");
        let cleared = line(HTTPS.clear_session());
        assert_eq!(cleared, "__Host-holdfast=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0");
        assert!(line(Cookies { secure: false }.device(&token)).starts_with("holdfast-device="));
    }

    /// COOK-02: which of two a browser meant cannot be known.
    #[test]
    fn two_cookies_of_the_name_are_none() {
        let (a, b) = (Token::mint(&Chance::seeded(1)).reveal().to_string(), Token::mint(&Chance::seeded(2)).reveal().to_string());
        assert!(presented(&[&format!("x=1; __Host-holdfast={a}; y=2")]));
        assert!(!presented(&[&format!("__Host-holdfast={a}; __Host-holdfast={b}")]));
        assert!(!presented(&[&format!("__Host-holdfast={a}"), &format!("__Host-holdfast={b}")]));
        assert!(!presented(&[&format!("__Host-holdfast={a}; __Host-holdfast={a}")]));
        assert!(!presented(&[&format!("__Host-holdfast={a}; __Host-holdfast=")]));
        assert!(!presented(&[&format!("__host-holdfast={a}")]));
        assert!(!presented(&[&format!("holdfast={a}")]));
    }

    /// COOK-04.
    #[test]
    fn a_quoted_or_padded_value_is_no_token() {
        let a = Token::mint(&Chance::seeded(1)).reveal().to_string();
        for value in [format!("\"{a}\""), format!("{a}="), format!(" {a}"), format!("{a} "), a[..42].to_string(), format!("{a}%00")] {
            assert!(!presented(&[&format!("__Host-holdfast={value}")]), "{value}");
        }
    }
}
