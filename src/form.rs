//! What clients send: JSON bodies and queries, read strictly.
//!
//! One reader for both. A field is *taken* by name and by type; whatever is left at the end is unknown; every fault is
//! collected, so that a client hears of all of them at once. JSON that two parsers could read differently (duplicate keys,
//! trailing data, lone surrogates) is malformed here, whatever its meaning might be: JSON-01, MASS-02.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::Extensions;
use axum::http::request::Parts;
use http_body_util::BodyExt;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use crate::app::App;
use crate::config::Config;
use crate::error::{Error, FieldError, Refusal};
use crate::live_sessions::{LiveSession, Session};

/// A request body of type `T`.
pub struct Json<T>(pub T);

/// Query parameters of type `T`.
pub struct Query<T>(pub T);

/// Something that can be read from a form. `None` after it has noted what is wrong.
pub trait FromForm: Sized {
    /// Takes its fields out of the form.
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self>;
}

/// What a field may be judged by.
pub struct Rules<'a> {
    /// The settings.
    pub config: &'a Config,
    /// Who sends it, if they are signed in.
    pub sender: Option<&'a LiveSession>,
}

impl<'a> Rules<'a> {
    fn of(app: &'a App, extensions: &'a Extensions) -> Self {
        Rules { config: &app.config, sender: extensions.get::<Session>().map(|session| &**session) }
    }
}

/// Fields on their way into a type.
pub struct Form {
    fields: BTreeMap<String, Value>,
    errors: Vec<FieldError>,
}

/// At most so many faults are told: a body full of unknown fields gets no answer larger than itself.
const ERRORS: usize = 32;

impl Form {
    fn new(fields: BTreeMap<String, Value>) -> Self {
        Form { fields, errors: Vec::new() }
    }

    fn read<T: FromForm>(mut self, rules: &Rules<'_>) -> Result<T, Error> {
        let value = T::take(&mut self, rules);
        let unknown: Vec<String> = std::mem::take(&mut self.fields).into_keys().take(ERRORS).collect();
        for field in unknown {
            // Only the beginning of a name that we did not choose is echoed.
            let field: String = field.chars().take(64).collect();
            self.refuse::<()>(&field, "unknown", "This field is not known here.");
        }
        self.errors.truncate(ERRORS);
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(Refusal::Invalid(self.errors).into()),
        }
    }

    /// Notes a fault of a field.
    pub fn refuse<T>(&mut self, field: &str, code: &'static str, message: impl Into<Cow<'static, str>>) -> Option<T> {
        self.errors.push(FieldError { field: field.into(), code: code.into(), message: message.into() });
        None
    }

    /// Takes a text that must be there.
    pub fn text(&mut self, field: &str) -> Option<String> {
        match self.fields.remove(field) {
            Some(Value::Text(mut text)) => Some(std::mem::take(&mut text)),
            Some(_) => self.refuse(field, "wrong_type", "This must be a string."),
            None => self.refuse(field, "missing", "This field is needed."),
        }
    }

    /// Whether a field is there.
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Takes a yes or no that may be absent.
    pub fn flag(&mut self, field: &str, default: bool) -> Option<bool> {
        match self.fields.remove(field) {
            None => Some(default),
            Some(Value::Bool(flag)) => Some(flag),
            Some(Value::Word(word)) if word == "true" => Some(true),
            Some(Value::Word(word)) if word == "false" => Some(false),
            Some(Value::Word(_)) => self.refuse(field, "invalid", "This must be true or false."),
            Some(_) => self.refuse(field, "wrong_type", "This must be true or false."),
        }
    }

    /// Takes a query parameter, if it is there, through `parse`.
    pub fn parameter<T>(&mut self, field: &str, expected: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
        let Some(value) = self.fields.remove(field) else { return Some(None) };
        match value {
            Value::Word(word) => match parse(&word) {
                Some(value) => Some(Some(value)),
                None => self.refuse(field, "invalid", expected),
            },
            _ => self.refuse(field, "invalid", expected),
        }
    }
}

/// What a field holds. Numbers and what is nested are told apart only as "not what we asked for".
enum Value {
    /// It may be a password: what nobody takes is wiped.
    Text(Zeroizing<String>),
    /// A query parameter: a text that may stand for something else.
    Word(String),
    Bool(bool),
    Other,
    Object(BTreeMap<String, Value>),
}

/// Refuses duplicate keys at every depth, which `serde_json`'s own `Value` would silently fold.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Read)
    }
}

struct Read;

impl<'de> Visitor<'de> for Read {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(Zeroizing::new(text.into())))
    }
    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<Value>()?.is_some() {}
        Ok(Value::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            if fields.insert(name, entries.next_value::<Value>()?).is_some() {
                return Err(serde::de::Error::custom("a key stands twice in one object"));
            }
        }
        Ok(Value::Object(fields))
    }
}

/// Reads a body that the middleware has already bounded and found to be declared as JSON.
pub fn read_json<T: FromForm>(body: &[u8], rules: &Rules<'_>) -> Result<T, Error> {
    let malformed = |why: Cow<'static, str>| Error::from(Refusal::MalformedJson(why));
    if body.is_empty() {
        return Err(malformed("The body is empty; a JSON object is needed.".into()));
    }
    // The parser's own message would quote what was sent; the position is enough to find it.
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => Form::new(fields).read(rules),
        Ok(_) => {
            Err(Refusal::Invalid(vec![FieldError { field: String::new(), code: "wrong_type".into(), message: "The body must be a JSON object.".into() }])
                .into())
        }
        Err(e) => Err(malformed(format!("Look at line {}, column {}.", e.line(), e.column()).into())),
    }
}

/// A request body of type `T`, in which every field may be absent; so may the body itself.
pub struct JsonOrNothing<T>(pub T);

impl<T: FromForm> FromRequest<App> for JsonOrNothing<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let (body, rules) = (whole(body).await?, Rules::of(app, &parts.extensions));
        let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
        read_json(&body, &rules).map(JsonOrNothing)
    }
}

/// Reads a query string; a parameter that stands twice is refused.
pub fn read_query<T: FromForm>(query: &str, rules: &Rules<'_>) -> Result<T, Error> {
    let mut fields = BTreeMap::new();
    let mut twice = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if fields.insert(name.to_string(), Value::Word(value.into_owned())).is_some() {
            twice.push(name.into_owned());
        }
    }
    let mut form = Form::new(fields);
    for name in twice {
        form.refuse::<()>(&name.chars().take(64).collect::<String>(), "invalid", "This parameter stands twice.");
    }
    form.read(rules)
}

impl<T: FromForm> FromRequest<App> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let body = whole(body).await?;
        read_json(&body, &Rules::of(app, &parts.extensions)).map(Json)
    }
}

impl<T: FromForm> FromRequestParts<App> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        read_query(parts.uri.query().unwrap_or(""), &Rules::of(app, &parts.extensions)).map(Query)
    }
}

/// The body, which the middleware has read already.
async fn whole(body: Body) -> Result<Bytes, Error> {
    let collected = body.collect().await.map_err(|_| Refusal::MalformedRequest("The body broke off."))?;
    Ok(collected.to_bytes())
}

/// For routes that take no parameters: any is unknown.
pub struct NoQuery;

impl FromForm for NoQuery {
    fn take(_: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(NoQuery)
    }
}

/// For routes that take no body. One that is sent all the same may not hold anything.
pub struct NoBody;

impl FromRequest<App> for NoBody {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let body = whole(body).await?;
        if !body.is_empty() {
            let NoQuery = read_json(&body, &Rules::of(app, &parts.extensions))?;
        }
        Ok(NoBody)
    }
}

/// For routes that take neither parameters nor a body.
pub struct Nothing;

impl FromRequest<App> for Nothing {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let NoQuery = read_query(request.uri().query().unwrap_or(""), &Rules::of(app, request.extensions()))?;
        NoBody::from_request(request, app).await.map(|NoBody| Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe;

    impl FromForm for Probe {
        fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
            let (text, flag) = (form.text("text"), form.flag("flag", false));
            text.zip(flag).map(|_| Probe)
        }
    }

    fn read<T: FromForm>(read: impl FnOnce(&Rules<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let config = Config::read(&crate::config::Variables::default()).expect("the defaults are right");
        read(&Rules { config: &config, sender: None })
    }

    fn code(body: &[u8]) -> &'static str {
        match read(|rules| read_json::<Probe>(body, rules)) {
            Ok(_) => "ok",
            Err(Error::Refused(refusal)) => refusal.code(),
            Err(Error::Fault(fault)) => panic!("{fault}"),
        }
    }

    /// JSON-01.
    #[test]
    fn what_two_parsers_could_read_differently_is_malformed() {
        let deep = "[".repeat(100_000);
        let malformed: [&[u8]; 11] = [
            b"",
            b" ",
            b"{",
            b"{\"text\":\"a\"} {}",
            b"{\"text\":\"a\",\"text\":\"b\"}",
            b"{\"text\":\"\\ud800\"}",
            b"{\"text\":\"\xff\"}",
            b"\xef\xbb\xbf{\"text\":\"a\"}",
            b"{\"text\":1e400}",
            b"{\"x\":{\"a\":1,\"a\":2}}",
            deep.as_bytes(),
        ];
        for body in malformed {
            assert_eq!(code(body), "malformed_json", "{}", String::from_utf8_lossy(&body[..body.len().min(40)]));
        }
    }

    #[test]
    fn json_of_another_shape_is_not_valid() {
        let invalid: [&[u8]; 8] =
            [b"[]", b"null", b"\"text\"", b"{}", b"{\"text\":1}", b"{\"text\":null}", b"{\"text\":\"a\",\"flag\":\"true\"}", b"{\"text\":\"a\",\"more\":1}"];
        for body in invalid {
            assert_eq!(code(body), "validation_failed", "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(code(b"{\"text\":\"a\",\"flag\":true}"), "ok");
    }

    #[test]
    fn every_field_at_fault_is_named() {
        let Err(Error::Refused(Refusal::Invalid(errors))) = read(|rules| read_json::<Probe>(b"{\"flag\":1,\"admin\":true}", rules)) else { panic!("accepted") };
        let told: Vec<(&str, &str)> = errors.iter().map(|e| (e.field.as_str(), e.code.as_ref())).collect();
        assert_eq!(told, [("text", "missing"), ("flag", "wrong_type"), ("admin", "unknown")]);
    }

    #[test]
    fn a_flood_of_unknown_fields_gets_a_short_answer() {
        let body = format!("{{{}}}", (0..5000).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(","));
        let Err(Error::Refused(Refusal::Invalid(errors))) = read(|rules| read_json::<Probe>(body.as_bytes(), rules)) else { panic!("accepted") };
        assert_eq!(errors.len(), ERRORS);
    }

    #[test]
    fn a_parameter_that_stands_twice_or_is_unknown_is_refused() {
        assert!(read(|rules| read_query::<NoQuery>("", rules)).is_ok());
        for query in ["a=1", "a=1&a=2", "%00", "="] {
            assert!(read(|rules| read_query::<NoQuery>(query, rules)).is_err(), "{query}");
        }
    }
}
