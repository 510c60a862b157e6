//! Bodies and queries: what our reader makes of them, beside what `serde_json` and `form_urlencoded` make of them alone.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::response::IntoResponse;
use serde_json::Value;

use holdfast::account::email_change::{EmailChange, LetterToken};
use holdfast::account::email_verification::{SendAgain, Verify};
use holdfast::account::login::PasswordLogin;
use holdfast::account::me::{Page, Rename};
use holdfast::account::password_change::PasswordChange;
use holdfast::account::password_reset::{Forgotten, Reset};
use holdfast::account::signup::SignUp;
use holdfast::admin::{EventQuery, RoleChange, UserQuery};
use holdfast::config::{Config, Variables};
use holdfast::device_sessions::Everywhere;
use holdfast::error::{Error, Refusal};
use holdfast::form::{Form, FromForm, Rules, read_json, read_query};
use holdfast::forward_auth::Terms;

static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::read(&Variables::default()).expect("the defaults are right"));

fn rules() -> Rules<'static> {
    Rules { config: &CONFIG, sender: None }
}

/// A form of one text and one flag that may be absent.
#[derive(Debug, PartialEq)]
struct Probe {
    text: String,
    flag: bool,
}

impl FromForm for Probe {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let (text, flag) = (form.text("text"), form.flag("flag", false));
        Some(Probe { text: text?, flag: flag? })
    }
}

/// A body. It is malformed exactly when `serde_json` says so or a key stands twice in an object, at any depth; and what is
/// accepted is what `serde_json` reads too.
pub fn json(body: &[u8]) {
    let told = read_json::<Probe>(body, &rules());
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        assert!(matches!(told, Err(Error::Refused(Refusal::MalformedJson(_)))));
        return;
    };
    let doubled = keys_written(body) != keys_kept(&value);
    match told {
        Ok(Probe { text, flag }) => {
            let fields = value.as_object().expect("an object");
            assert!(!doubled && fields.keys().all(|name| ["text", "flag"].contains(&name.as_str())));
            assert_eq!((fields.get("text"), fields.get("flag").unwrap_or(&Value::Bool(false))), (Some(&Value::String(text)), &Value::Bool(flag)));
        }
        Err(Error::Refused(Refusal::MalformedJson(_))) => assert!(doubled),
        Err(Error::Refused(Refusal::Invalid(_))) => {
            let is_probe = value["text"].is_string()
                && value.get("flag").is_none_or(Value::is_boolean)
                && value.as_object().is_some_and(|fields| fields.keys().all(|name| ["text", "flag"].contains(&name.as_str())));
            assert!(!doubled && !is_probe);
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// In valid JSON a colon outside of strings belongs to a key.
fn keys_written(json: &[u8]) -> usize {
    let (mut colons, mut quoted, mut bytes) = (0, false, json.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => drop(bytes.next()),
            b':' if !quoted => colons += 1,
            _ => {}
        }
    }
    colons
}

fn keys_kept(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(keys_kept).sum(),
        Value::Object(fields) => fields.len() + fields.values().map(keys_kept).sum::<usize>(),
        _ => 0,
    }
}

/// Two parameters that may be absent.
struct Pair {
    a: Option<String>,
    b: Option<String>,
}

impl FromForm for Pair {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let mut take = |name| form.parameter(name, "anything", |text| Some(text.to_string()));
        let (a, b) = (take("a"), take("b"));
        Some(Pair { a: a?, b: b? })
    }
}

/// A query string. It is accepted exactly when it has known names, each once; and what was read, written down, is read again.
pub fn query(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else { return };
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(data) {
        all.entry(name.into()).or_default().push(value.into());
    }
    let plain = all.iter().all(|(name, values)| ["a", "b"].contains(&name.as_str()) && values.len() == 1);
    match read_query::<Pair>(query, &rules()) {
        Ok(Pair { a, b }) => {
            assert!(plain);
            let read = [("a", a), ("b", b)].into_iter().filter_map(|(name, value)| Some((name.to_string(), vec![value?]))).collect();
            assert_eq!(all, read);
            let written = form_urlencoded::Serializer::new(String::new()).extend_pairs(all.iter().map(|(name, values)| (name, &values[0]))).finish();
            assert!(read_query::<Pair>(&written, &rules()).is_ok());
        }
        Err(Error::Refused(Refusal::Invalid(_))) => assert!(!plain),
        Err(other) => panic!("{other:?}"),
    }
}

/// A body or a query, to every form that there is. It is accepted or refused, and a refusal is short and whole.
pub fn form(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    let query = || String::from_utf8_lossy(body);
    let rules = rules();
    let refused = match which % 16 {
        0 => read_json::<SignUp>(body, &rules).err(),
        1 => read_json::<PasswordLogin>(body, &rules).err(),
        2 => read_json::<PasswordChange>(body, &rules).err(),
        3 => read_json::<Forgotten>(body, &rules).err(),
        4 => read_json::<Reset>(body, &rules).err(),
        5 => read_json::<Verify>(body, &rules).err(),
        6 => read_json::<SendAgain>(body, &rules).err(),
        7 => read_json::<EmailChange>(body, &rules).err(),
        8 => read_json::<LetterToken>(body, &rules).err(),
        9 => read_json::<Rename>(body, &rules).err(),
        10 => read_json::<RoleChange>(body, &rules).err(),
        11 => read_query::<Page>(&query(), &rules).err(),
        12 => read_query::<UserQuery>(&query(), &rules).err(),
        13 => read_query::<EventQuery>(&query(), &rules).err(),
        14 => read_query::<Everywhere>(&query(), &rules).err(),
        _ => read_query::<Terms>(&query(), &rules).err(),
    };
    let Some(error) = refused else { return };
    let Error::Refused(refusal) = &error else { panic!("{error:?}") };
    if let Refusal::Invalid(errors) = refusal {
        assert!((1..=32).contains(&errors.len()) && errors.iter().all(|error| error.field.chars().count() <= 64), "{errors:?}");
    }
    let expected = if matches!(refusal, Refusal::Invalid(_)) { 422 } else { 400 };
    assert_eq!(error.into_response().status().as_u16(), expected);
}
