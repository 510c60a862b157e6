//! What people read: the letters and the small pages, from templates.
//!
//! They are embedded in the binary; a file of the same name in `TEMPLATE_DIR` takes the place of one. All are tried at start,
//! with sample values, so that a mistake is told then and not by a letter that never comes.
//!
//! A letter has one template, of plain text: a `Subject:` line, and blocks with an empty line between them. A block
//! `[what to do] link` is the link. The text part is that text; the HTML part is made from the same blocks by `letter.html`,
//! so the two cannot disagree. Values are put in as single lines of bounded length in which nothing looks like a link
//! (UNI-04), and only the one link that we made becomes one.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::letters::LetterKind;
use crate::event::outbox::Errand;
use crate::letter_token::Purpose;
use crate::mail::Letter;
use crate::secret::Token;

macro_rules! embedded { ($($name:literal),* $(,)?) => {
    const EMBEDDED: &[(&str, &str)] = &[$(($name, include_str!(concat!("../templates/", $name)))),*];
} }
embedded!(
    "new_sign_in.txt",
    "sign_in_throttled.txt",
    "password_changed.txt",
    "sessions_revoked.txt",
    "rotated_token_reused.txt",
    "role_changed.txt",
    "account_disabled.txt",
    "account_enabled.txt",
    "verify_email.txt",
    "address_in_use.txt",
    "reset_password.txt",
    "change_email.txt",
    "email_change_requested.txt",
    "email_changed.txt",
    "letter.html",
    "page.html",
    "page.css",
);

/// All templates, tried. Cheap to clone.
#[derive(Clone)]
pub struct Templates(Arc<Tried>);

struct Tried {
    environment: Environment<'static>,
    css: String,
    policy: String,
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Templates(…)")
    }
}

impl Templates {
    /// Reads them, those of `folder` over the embedded ones, and tries each.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn load(folder: Option<&Path>) -> Result<Self, String> {
        let mut texts: BTreeMap<String, String> = EMBEDDED.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        if let Some(folder) = folder {
            put_over(&mut texts, folder)?;
        }
        let css = texts.remove("page.css").unwrap_or_default();
        if css.contains('<') {
            return Err("page.css: a style sheet has no <".into());
        }
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
        environment.set_formatter(write_value);
        for (name, text) in texts {
            environment.add_template_owned(name.clone(), text).map_err(|e| format!("{name}: {e:#}"))?;
        }
        let policy = policy(&css);
        let templates = Templates(Arc::new(Tried { environment, css, policy }));
        templates.try_all()?;
        Ok(templates)
    }

    /// The content security policy of the pages: their own style, a form to ourselves, and nothing else.
    pub fn policy(&self) -> &str {
        &self.0.policy
    }

    /// Writes a letter.
    ///
    /// # Errors
    /// A template that worked at start does not work now; the text says which.
    pub fn letter(&self, errand: &Errand, config: &Config) -> Result<Letter, String> {
        let link = errand.token.as_ref().and_then(|token| errand.kind.purpose().map(|purpose| link(config, purpose, token)));
        let values = values(errand, config, link.as_deref());
        let (subject, text, html) = self.write(errand.kind.template(), &values, link.as_deref())?;
        Ok(Letter { id: errand.id, to: errand.recipient.clone(), subject, text, html, secret: errand.token.as_ref().map(Token::reveal) })
    }

    /// Writes a page.
    ///
    /// # Errors
    /// As [`letter`](Self::letter).
    pub fn page(&self, page: &impl Serialize) -> Result<String, String> {
        let values = minijinja::context! { css => Value::from_safe_string(self.0.css.clone()), ..Value::from(Serde(page)) };
        self.render("page.html", values)
    }

    fn render(&self, name: &str, values: Value) -> Result<String, String> {
        let template = self.0.environment.get_template(name).map_err(|e| format!("{name}: {e:#}"))?;
        template.render(values).map_err(|e| format!("{name}: {e:#}"))
    }

    fn write(&self, name: &str, values: &serde_json::Value, link: Option<&str>) -> Result<(String, String, String), String> {
        let name = format!("{name}.txt");
        let whole = self.render(&name, Value::from(Serde(values)))?;
        let (head, body) = whole.split_once('\n').unwrap_or((&whole, ""));
        let subject = head.strip_prefix("Subject: ").ok_or_else(|| format!("{name}: the first line must be Subject: …"))?.trim();
        let blocks = blocks_of(body, link);
        if link.is_some() && !blocks.iter().any(|block| block.link.is_some()) {
            return Err(format!("{name}: it must hold its link, in a block of its own: [What to do] {{{{ link }}}}"));
        }
        let text = blocks.iter().map(Block::as_text).collect::<Vec<_>>().join("\n\n") + "\n";
        let html = self.render("letter.html", Value::from(Serde(json!({"subject": subject, "blocks": blocks}))))?;
        Ok((subject.into(), text, html))
    }

    /// Tries every template with sample values.
    fn try_all(&self) -> Result<(), String> {
        for kind in LetterKind::ALL {
            let link = kind.purpose().map(|_| "https://id.example.com/security/sample");
            for device in ["Chrome on macOS", ""] {
                let mut sample =
                    json!({"novelty": "from an IP address that is new for it", "count": "2 sessions", "was": "were", "by": "", "from": "a", "to": "b"});
                put_common(&mut sample, "id.example.com", "ada@example.com", Timestamp(0), "203.0.113.7", device, link);
                self.write(kind.template(), &sample, link)?;
            }
        }
        let form = json!({"action": "/", "button": "Go", "field": {"label": "Password", "name": "password", "autocomplete": "off", "needed": true}});
        let page = json!({"title": "Title", "site": "id.example.com", "wrong": "Wrong", "texts": ["Text"], "facts": [["Device", "x"]], "forms": [form]});
        self.page(&page).map(|_| ())
    }
}

/// Puts the files of a folder over the embedded ones. A file that is no template is a misspelt one.
fn put_over(texts: &mut BTreeMap<String, String>, folder: &Path) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let name = entry.map_err(|e| format!("{}: {e}", folder.display()))?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        if !known.contains(&name.as_str()) {
            return Err(format!("{name} is no template; allowed: {}", known.join(", ")));
        }
        let text = std::fs::read_to_string(folder.join(&name)).map_err(|e| format!("{name}: {e}"))?;
        texts.insert(name, text);
    }
    Ok(())
}

/// Writes a value into a template. The engine's own way would escape the slashes of our links too, which not every mail program
/// reads.
fn write_value(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    if !matches!(state.auto_escape(), AutoEscape::Html) || value.is_safe() || value.is_undefined() {
        return minijinja::escape_formatter(out, state, value);
    }
    for c in value.to_string().chars() {
        match c {
            '&' => out.write_str("&amp;")?,
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '"' => out.write_str("&quot;")?,
            '\'' => out.write_str("&#39;")?,
            c => out.write_char(c)?,
        }
    }
    Ok(())
}

fn policy(css: &str) -> String {
    let hash = STANDARD.encode(Sha256::digest(css));
    format!("default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
}

/// A part of a letter.
#[derive(Serialize)]
struct Block {
    lines: Vec<String>,
    label: String,
    link: Option<String>,
}

impl Block {
    fn as_text(&self) -> String {
        match &self.link {
            Some(link) => format!("{}:\n{link}", self.label),
            None => self.lines.join("\n"),
        }
    }
}

/// Cuts a text into blocks. Only our own link, byte for byte, is one.
fn blocks_of(body: &str, link: Option<&str>) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for line in body.lines().map(str::trim_end) {
        if line.is_empty() {
            open = false;
            continue;
        }
        let labelled = link.and_then(|link| line.strip_suffix(link)?.trim_end().strip_prefix('[')?.strip_suffix(']'));
        match (labelled, blocks.last_mut()) {
            (Some(label), _) => {
                blocks.push(Block { lines: Vec::new(), label: label.into(), link: link.map(String::from) });
                open = false;
            }
            (None, Some(block)) if open => block.lines.push(line.into()),
            (None, _) => {
                blocks.push(Block { lines: vec![line.into()], label: String::new(), link: None });
                open = true;
            }
        }
    }
    blocks
}

/// Where a token leads: to our own page, or to the application's. The token is the last thing in it.
pub fn link(config: &Config, purpose: Purpose, token: &Token) -> String {
    let own = |page: &str| format!("{}{}/security/{page}/{}", config.public_url.origin, config.base_path, *token.reveal());
    let at = |application: &Option<String>, page| match application {
        Some(url) => format!("{url}{}", *token.reveal()),
        None => own(page),
    };
    match purpose {
        Purpose::VerifyEmail => at(&config.link_verify, "verify"),
        Purpose::ResetPassword => at(&config.link_reset, "reset"),
        Purpose::ChangeEmail => at(&config.link_email_change, "email-change"),
        Purpose::UndoEmailChange => at(&config.link_email_undo, "email-undo"),
        Purpose::EndSession => own("session"),
        Purpose::EndAllSessions => own("sessions"),
    }
}

/// What the letter tells.
fn values(errand: &Errand, config: &Config, link: Option<&str>) -> serde_json::Value {
    let event = &errand.event;
    // What an administrator did came from the administrator's machine: that is nobody's business. IDOR-03.
    let by_other = event.detail["by"].as_str().is_some_and(|by| by != "user");
    let novelty = match (errand.kind, event.kind.as_str()) {
        (LetterKind::NewDeviceLogin, _) => "on a device that is new for it",
        _ => "from an IP address that is new for it",
    };
    let count = event.detail["count"].as_i64().unwrap_or(0);
    let (from, to) = (event.detail["from"].as_str().unwrap_or(""), event.detail["to"].as_str().unwrap_or(""));
    let mut values = json!({
        "novelty": novelty,
        "count": if count == 1 { "One session".into() } else { format!("{count} sessions") },
        "was": if count == 1 { "was" } else { "were" },
        "by": if by_other { " by an administrator" } else { "" },
        "from": one_line(from),
        "to": one_line(to),
    });
    let (ip, device) = match by_other {
        true => ("", ""),
        false => (event.ip.as_deref().unwrap_or("unknown"), event.device_name.as_deref().unwrap_or("Unknown device")),
    };
    // A letter to the new address of an account does not tell a stranger the old one.
    let account = if errand.kind == LetterKind::ChangeEmail { &errand.recipient } else { &errand.user.view.email };
    put_common(&mut values, &config.public_url.host(), account, event.at, ip, &plain(device), link);
    values
}

fn put_common(values: &mut serde_json::Value, site: &str, account: &str, at: Timestamp, ip: &str, device: &str, link: Option<&str>) {
    values["site"] = json!(site);
    values["account"] = json!(one_line(account));
    values["when"] = json!(for_people(at));
    values["ip"] = json!(ip);
    values["device"] = json!(device);
    if let Some(link) = link {
        values["link"] = json!(link);
    }
}

/// `23 November 2026, 06:36 UTC`.
pub fn for_people(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::MAX);
    at.strftime("%-d %B %Y, %H:%M UTC").to_string()
}

/// Longest value in a letter or a page.
const MOST: usize = 80;

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A text that somebody else chose, as a piece of ours: one line, not long, and nothing in it that a mail program would turn
/// into a link. UNI-04.
pub fn plain(text: &str) -> String {
    let spaced: String = text.replace("://", " ").chars().map(|c| if crate::account::email::is_unseen(c) { ' ' } else { c }).collect();
    let words = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out = String::new();
    let mut rest = words.chars().peekable();
    while let Some(c) = rest.next() {
        // A dot before a letter makes a domain; in a version number a digit follows.
        let is_link = c == '.' && rest.peek().is_some_and(|next| !next.is_ascii_digit() && !next.is_whitespace());
        out.push(if is_link { ' ' } else { c });
    }
    match out.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{}...", &out[..cut]),
        None => out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_is_one_short_line_without_links() {
        assert_eq!(plain("Chrome 142.0 on macOS"), "Chrome 142.0 on macOS");
        assert_eq!(plain("Visit evil.test now"), "Visit evil test now");
        assert_eq!(plain("https://evil.test/x\r\n\r\nBcc: e@e.test"), "https evil test/x Bcc: e@e test");
        assert_eq!(plain("a\u{202e}b\u{200b}c"), "a b c");
        assert_eq!(plain(&"x".repeat(200)).len(), MOST + 3);
    }

    #[test]
    fn only_our_own_link_becomes_one() {
        let ours = "https://id.example.com/security/session/abc";
        let body = format!("Text\nmore\n\n[Do it] https://evil.test/\n\n[Do it] {ours}\nafter\n");
        let blocks = blocks_of(&body, Some(ours));
        let links: Vec<Option<&str>> = blocks.iter().map(|block| block.link.as_deref()).collect();
        assert_eq!(links, [None, None, Some(ours), None]);
        assert_eq!(blocks[0].lines, ["Text", "more"]);
    }

    #[test]
    fn the_embedded_templates_work() {
        Templates::load(None).expect("they work");
    }

    #[test]
    fn a_broken_template_is_told_at_start() {
        for (name, text, told) in [
            ("new_sign_in.txt", "Subject: x\n\n{{ nonsense }} {{ link }}", "new_sign_in.txt"),
            ("new_sign_in.txt", "Subject: x\n\nno link", "must hold its link"),
            ("verify_email.txt", "no subject\n\n[x] {{ link }}", "Subject"),
            ("letter.html", "{% for %}", "letter.html"),
            ("page.css", "</style>", "page.css"),
            ("sign_in.txt", "Subject: x", "is no template"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(name), text).expect("a file");
            let fault = Templates::load(Some(folder.path())).err().unwrap_or_else(|| panic!("{name} was accepted"));
            assert!(fault.contains(told), "{fault}");
        }
    }
}
