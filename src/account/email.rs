//! E-mail addresses: what is accepted, what is shown, what is one and the same.
//!
//! One address has many spellings, and a lookup that folds more than the mail system does hands one person's letters to
//! another (UNI-01). So three things are kept apart: the *shown* form, which is also the one written to (the local part as
//! first given, at the mapped domain), the *canonical* form, which is unique (NFC, full lower-casing), and what was typed,
//! which is kept nowhere. Odd syntax that mail programs disagree about is refused: quotes, comments, literals (UNI-03).

use unicode_normalization::UnicodeNormalization;

use crate::form::Form;

/// A mail address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    shown: String,
    canonical: String,
}

/// Longest address, in bytes. RFC 5321 §4.5.3.1.3 less the brackets.
const MAX_BYTES: usize = 254;

impl Email {
    /// Reads one `addr-spec`. `None` if it is none, or one of a kind that is not accepted.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_BYTES || text.chars().any(is_unseen) {
            return None;
        }
        let (local, domain) = text.rsplit_once('@')?;
        // A leading hyphen is an option to a mail program's command line. Composed, since a mail program may compose it too: the
        // Greek question mark is then a semicolon, which parts the addresses of a list.
        let composed: String = local.nfc().collect();
        if local.starts_with('-') || ![local, &composed].into_iter().all(|form| form.split('.').all(is_atom)) {
            return None;
        }
        // Composed first: the mapping takes each character by itself, so the forms of one name could come out as two.
        let domain = idna::domain_to_ascii_strict(&domain.nfc().collect::<String>()).ok()?.to_lowercase();
        // A name with a dot in it that is no number: neither a host of the local network nor an address in disguise.
        let (_, top) = domain.rsplit_once('.')?;
        if top.is_empty() || top.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let shown = format!("{local}@{domain}");
        let canonical: String = shown.nfc().collect::<String>().to_lowercase().nfc().collect();
        (shown.len() <= MAX_BYTES).then_some(Email { shown, canonical })
    }

    /// Takes a field of a form.
    pub fn take(form: &mut Form, field: &str) -> Option<Self> {
        let text = form.text(field)?;
        Email::parse(&text).or_else(|| form.refuse(field, "invalid", "This is not an e-mail address that can be used here."))
    }

    /// As its owner wrote it; what letters go to.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What is unique.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Whether a lower-case text is this address, in the spelling of mail or of people, or its local part.
    pub fn is_spelled(&self, folded: &str) -> bool {
        let (local, domain) = self.canonical.rsplit_once('@').unwrap_or((&self.canonical, ""));
        let (for_people, _) = idna::domain_to_unicode(domain);
        folded == self.canonical || folded == local || folded.strip_prefix(local).and_then(|rest| rest.strip_prefix('@')) == Some(&for_people)
    }
}

/// An atom of RFC 5322 §3.2.3, with the UTF-8 of RFC 6531 §3.3.
fn is_atom(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c))
}

/// White space, control, invisible and bidirectional characters: what a reader cannot see, an address may not hold.
pub fn is_unseen(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{2800}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffd}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_part_is_shown_as_given_at_the_mapped_domain() {
        let email = Email::parse("Ada.Lovelace+x@EXAMPLE.com").expect("an address");
        assert_eq!((email.shown(), email.canonical()), ("Ada.Lovelace+x@example.com", "ada.lovelace+x@example.com"));
        let email = Email::parse("ana@Bücher.example").expect("an address");
        assert_eq!(email.shown(), "ana@xn--bcher-kva.example");
    }

    #[test]
    fn spellings_of_one_address_are_one() {
        let canonical = |text: &str| Email::parse(text).expect("an address").canonical().to_string();
        assert_eq!(canonical("JOS\u{c9}@example.com"), canonical("jose\u{301}@example.com"));
        assert_eq!(canonical("a@xn--bcher-kva.example"), canonical("A@B\u{fc}CHER.example"));
        assert_eq!(canonical("a@\u{1f82}\u{300}.example"), canonical("a@\u{3b1}\u{313}\u{300}\u{345}\u{300}.example"));
    }

    /// UNI-01: look-alikes that a wider folding would merge stay apart.
    #[test]
    fn look_alikes_are_others() {
        let canonical = |text: &str| Email::parse(text).expect("an address").canonical().to_string();
        for other in ["m\u{131}ke@x.test", "mik\u{e9}@x.test", "\u{ff4d}ike@x.test"] {
            assert_ne!(canonical(other), "mike@x.test", "{other}");
        }
        assert_eq!(canonical("mike@\u{24cd}.test"), "mike@x.test");
    }

    /// UNI-03.
    #[test]
    fn odd_addresses_are_refused() {
        let long = format!("{}@example.com", "a".repeat(250));
        let odd = [
            "",
            "a",
            "a@",
            "@a.test",
            "a@b@c.test",
            "a@evil@allowed.test",
            "\"a@evil\"@allowed.test",
            "a@allowed.test(.evil)",
            "<a@x.test>",
            "Ana <a@x.test>",
            "-oQ/tmp@x",
            "-oQ/tmp@x.test",
            "a@[127.0.0.1]",
            "a@x.test\r\nBcc: e@e.test",
            "a\u{202e}b@x.test",
            "a\u{200b}@x.test",
            "a\u{2800}b@x.test",
            "a\u{1bca0}b@x.test",
            "a\u{1d159}b@x.test",
            "a\u{1d173}b@x.test",
            "a@x\u{2800}.test",
            ".a@x.test",
            "a.@x.test",
            ".a..@x",
            "a b@x.test",
            " a@x.test",
            "a@x.test ",
            "a@x..test",
            "a@-x.test",
            "a@x.test.",
            "a\0@x.test",
            "a@x_y.test",
            "a@localhost",
            "a@127.0.0.1",
            "a@\u{200b}x.test",
            // The Greek question mark, which is a semicolon once it is composed.
            "a\u{37e}b@x.test",
            &long,
        ];
        for text in odd {
            assert_eq!(Email::parse(text), None, "{text:?}");
        }
        for text in [
            "o'brien@example.com",
            "a+b@example.co.uk",
            "x@sub.example.com",
            "\u{7528}\u{6237}@\u{4f8b}\u{3048}.jp",
            "user_name@example.com",
            "\u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940}@example.com",
        ] {
            assert!(Email::parse(text).is_some(), "{text}");
        }
    }
}
