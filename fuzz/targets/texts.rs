//! Texts: addresses, passwords, tokens, ids, and the values of settings.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use holdfast::account::email::{Email, is_unseen};
use holdfast::config::{Config, ConfigError, SETTINGS, Variables};
use holdfast::factor::password::{MAX_CHARS, Password};
use holdfast::id::UserId;
use holdfast::secret::Token;

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

/// What is accepted holds nothing unseen, survives being written, and is the same address in every form of it.
pub fn email(data: &[u8]) {
    let text = text(data);
    let Some(email) = Email::parse(text) else { return };
    let (shown, canonical) = (email.shown(), email.canonical());
    assert!(text.len() <= 254 && shown.len() <= 254);
    assert_eq!(Email::parse(shown).as_ref(), Some(&email));
    for form in [shown, canonical] {
        let (local, domain) = form.rsplit_once('@').expect("an address");
        // Mail programs read these as lists, groups, comments, quotes, routes and options.
        assert!(!form.chars().any(is_unseen) && !local.contains(['@', ',', ';', ':', '<', '>', '(', ')', '[', ']', '"', '\\']), "{form}");
        assert!(!local.starts_with('-') && !local.split('.').any(str::is_empty), "{form}");
        assert!(domain.contains('.') && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-'), "{form}");
    }
    let same = |other: Option<Email>, what: &str| {
        if let Some(other) = other {
            assert_eq!(other.canonical(), canonical, "{what}");
        }
    };
    // Some forms are longer than an address may be; else each is this address.
    if canonical.len() <= 254 {
        assert_eq!(Email::parse(canonical).expect("the canonical form is an address").canonical(), canonical);
    }
    same(Email::parse(&text.nfc().collect::<String>()), "composed");
    same(Email::parse(&text.nfd().collect::<String>()), "decomposed");
    same(Some(Email::parse(&text.to_ascii_uppercase()).expect("capitals are no fault")), "capitals");
    let local = canonical.rsplit_once('@').map_or("", |(local, _)| local);
    assert!(email.is_spelled(canonical) && email.is_spelled(local));
}

/// An address, and a password for it. What is accepted has the promised length; neither the Unicode form nor the case makes a
/// weak password a good one.
pub fn password(data: &[u8]) {
    let (address, typed) = text(data).split_once('\n').unwrap_or(("", text(data)));
    let email = Email::parse(address);
    let fault = |typed: &str| Password::typed(typed.into()).weakness(8, email.as_ref()).map(|(code, _)| code);
    let told = fault(typed);
    let length = typed.nfc().count();
    assert_eq!(told == Some("too_short"), length < 8);
    assert_eq!(told == Some("too_long"), length > MAX_CHARS);
    assert_eq!(told, fault(&typed.nfc().collect::<String>()));
    assert_eq!(told, fault(&typed.nfd().collect::<String>()));
    assert_eq!(told, fault(&typed.to_ascii_uppercase()));
    if let Some(email) = email.filter(|_| told.is_none()) {
        assert_ne!(typed.to_lowercase().nfc().collect::<String>(), email.canonical());
    }
}

/// Whether these bytes are 256 bits in base64url, in its one spelling: the two bits that are left over are zero.
pub fn is_token(text: &[u8]) -> bool {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let worth = |byte: &u8| alphabet.iter().position(|letter| letter == byte);
    text.len() == 43 && text.iter().all(|byte| worth(byte).is_some()) && text.last().and_then(worth).is_some_and(|bits| bits % 4 == 0)
}

/// A token has one spelling, and its hash is that of its bits. So has an id, but for the case of its letters.
pub fn token(data: &[u8]) {
    let text = text(data);
    let token = Token::read(text);
    assert_eq!(token.is_some(), is_token(text.as_bytes()));
    if let Some(token) = token {
        assert_eq!(token.reveal(), text);
        let bits = URL_SAFE_NO_PAD.decode(text).expect("base64url");
        assert_eq!(token.hash().0[..], Sha256::digest(bits)[..]);
    }
    let is_id = text.len() == 36 && text.bytes().enumerate().all(|(at, b)| if [8, 13, 18, 23].contains(&at) { b == b'-' } else { b.is_ascii_hexdigit() });
    assert_eq!(UserId::parse(text).map(|id| id.to_string()), is_id.then(|| text.to_ascii_lowercase()));
}

/// The settings that read a file which they name.
const FILES: [&str; 2] = ["TEMPLATE_DIR", "MAIL_FILE"];

/// A setting, `NAME=value`. It is accepted, or told in lines that name it; a URL with a password is
/// not repeated. A duration is the sum of its parts.
pub fn setting(data: &[u8]) {
    let Some((name, value)) = text(data).split_once('=') else { return };
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name && !FILES.contains(&name)) else { return };
    let read = |value: &str| Config::read(&Variables::of(&[(setting.name, value)]));
    match read(value) {
        Ok(_) if setting.name == "ABSOLUTE_TIMEOUT" => is_a_sum(value),
        Ok(_) => {}
        Err(ConfigError(faults)) => {
            let names = |fault: &String| SETTINGS.iter().any(|known| fault.strip_prefix(known.name).is_some_and(|rest| rest.starts_with(": ")));
            assert!(!faults.is_empty() && faults.iter().all(|fault| names(fault) && !fault.contains('\n')), "{faults:?}");
            if ["DATABASE_URL", "MAIL"].contains(&setting.name) && value.len() > 20 {
                assert!(!faults.iter().any(|fault| fault.contains(value)), "{faults:?}");
            }
        }
    }
}

fn is_a_sum(value: &str) {
    let seconds = |value: &str| Config::read(&Variables::of(&[("ABSOLUTE_TIMEOUT", value)])).map(|config| config.timeouts.absolute.as_secs()).ok();
    let whole = seconds(value).expect("it was accepted");
    assert_eq!(seconds(&format!("{whole}s")), Some(whole));
    if seconds(&format!("{whole}s1s")).is_none() {
        return; // The longest.
    }
    let parts = value.split_inclusive(|c: char| c.is_ascii_alphabetic());
    // A part may be zero, which the whole may not.
    let sum: u64 = parts.map(|part| seconds(&format!("{part}1s")).map_or(0, |with_one| with_one - 1)).sum();
    assert_eq!(sum, whole, "{value}");
}
