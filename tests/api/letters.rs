//! Letters: which event makes which, what they say, and that nothing in them is anybody else's.
//! An attacker puts links and markup into names, user agents and headers, and hopes that we mail them.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::stage::{IPHONE, Stage, actions, email_of, link_of, password_of, token_of};

const CAFE: &str = "203.0.113.7";
const HOUR: Duration = Duration::from_secs(3600);

async fn new_sign_in(stage: &Stage) -> crate::stage::Actor {
    stage.sign_up("ana").await;
    stage.letters().await;
    let thief = stage.anon().from_ip(CAFE).with_agent(IPHONE);
    thief.log_in("ana").await.is(200);
    thief
}

#[tokio::test]
async fn a_sign_in_from_a_new_address_is_one_letter_with_when_where_and_what_to_do() {
    let stage = Stage::new().await;
    new_sign_in(&stage).await;
    let told = stage.letters_to(&email_of("ana"), "New sign-in").await;
    assert_eq!(told.len(), 1);
    assert!(told[0].text.contains("Device: ") && told[0].text.contains("iPhone"), "{}", told[0].text);
    assert!(told[0].text.contains(&format!("IP address: {CAFE}")) && told[0].text.contains("When: 23 November 2026, 06:36 UTC"), "{}", told[0].text);
    assert!(link_of(&told[0]).starts_with("/security/session/"));
}

/// A token is minted when its letter leaves: it never lies in the outbox.
#[tokio::test]
async fn before_its_letter_leaves_there_is_no_token() {
    let stage = Stage::new().await;
    new_sign_in(&stage).await;
    assert_eq!(stage.count("SELECT count(*) FROM letter_tokens WHERE purpose = 'end_session'"), 0);
    stage.letter(&email_of("ana"), "New sign-in").await;
    assert_eq!(stage.count("SELECT count(*) FROM letter_tokens WHERE purpose = 'end_session'"), 1);
}

/// DB-01: what is stored of a link is a hash, whatever the link is for, and the hash opens nothing.
#[tokio::test]
async fn no_token_lies_in_the_database() {
    let stage = Stage::new().await;
    let (ana, next) = (stage.sign_up("ana").await, "ana@example.org");
    stage.anon().from_ip(CAFE).log_in("ana").await.is(200);
    stage.anon().post("/password/forgot", json!({"email": email_of("ana")})).await.is(202);
    ana.put("/me/email", json!({"email": next, "current_password": password_of("ana")})).await.is(202);
    let mut issued = Vec::new();
    for subject in ["Confirm your e-mail", "New sign-in", "Choose"] {
        issued.push(token_of(&stage.letter(&email_of("ana"), subject).await));
    }
    issued.push(token_of(&stage.letter(next, "Confirm your new").await));
    all_are_hashed(&stage, &issued, "change_email end_session reset_password verify_email");
    let reset = &issued[2];
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(URL_SAFE_NO_PAD.decode(reset).expect("base64url")));
    let with = |token: &str| json!({"token": token, "new_password": "quite another password"});
    stage.anon().post("/password/reset", with(&hash)).await.is_refused(400, "invalid_token");

    ana.post("/email/change", json!({"token": issued[3]})).await.is(200);
    let page = stage.anon().submit(&format!("/security/session/{}", issued[1]), &[]).await.is(200).text();
    let mut issued = vec![token_of(&stage.letter(&email_of("ana"), "Your account").await)];
    issued.extend(actions(&page).iter().map(|action| action.rsplit('/').next().expect("a token").to_string()));
    all_are_hashed(&stage, &issued, "end_all_sessions reset_password undo_email_change");
}

/// Expects that these tokens, and no others, are stored, for these purposes, and only as hashes.
#[track_caller]
fn all_are_hashed(stage: &Stage, issued: &[String], purposes: &str) {
    let count = |condition: &str| stage.count(&format!("SELECT count(*) FROM letter_tokens WHERE {condition}"));
    assert_eq!((count("1 = 1"), issued.len()), (issued.len() as i64, purposes.split(' ').count()));
    for purpose in purposes.split(' ') {
        assert_eq!(count(&format!("purpose = '{purpose}'")), 1, "{purpose}");
    }
    for token in issued {
        let bytes = URL_SAFE_NO_PAD.decode(token).expect("base64url");
        assert!(stage.database.holds(&Sha256::digest(&bytes)));
        assert!(!stage.holds_token(token));
    }
}

/// The text and the HTML of a letter say the same, word for word.
fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn without_tags(html: &str) -> String {
    let body = html.split_once("<body").expect("a body").1;
    let mut text = String::new();
    for piece in body.split('<').skip(1) {
        text.push(' ');
        text.push_str(piece.split_once('>').expect("a tag").1);
    }
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#x27;", "'")
        .replace("&#x2f;", "/")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

/// Makes every kind of letter once.
async fn every_letter(stage: &Stage) {
    new_sign_in(stage).await;
    let admin = stage.admin("root").await;
    let ana = stage.sign_in("ana").await;
    let known = stage.anon();
    known.log_in("ana").await.is(200);
    let old = ana.copy();
    ana.change_password(&password_of("ana"), "quite another password").await.is(200);
    ana.get("/me").await.is(200);
    stage.clock.advance(Duration::from_secs(61));
    old.get("/me").await.is_refused(401, "session_rotated");
    let other = stage.anon();
    other.post("/login", json!({"email": email_of("ana"), "password": "quite another password"})).await.is(200);
    ana.delete("/me/sessions").await.is(200);
    ana.post("/password/forgot", json!({"email": email_of("ana")})).await.is(202);
    stage.letters().await;
    let change = |to: &str| json!({"email": to, "current_password": "quite another password"});
    ana.put("/me/email", change("ana@example.org")).await.is(202);
    let letter = stage.letter("ana@example.org", "Confirm").await;
    ana.put("/me/email", change(&email_of("root"))).await.is(202);
    ana.put("/me/email", change("ana@example.org")).await.is(202);
    ana.post("/email/change", json!({"token": token_of(&letter)})).await.is_refused(400, "invalid_token");
    let letter = stage.letter("ana@example.org", "Confirm").await;
    let id = ana.post("/email/change", json!({"token": token_of(&letter)})).await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    for _ in 0..10 {
        stage.anon().post("/login", json!({"email": "ana@example.org", "password": "not the password"})).await.is(401);
    }
    admin.put(&format!("/admin/users/{id}/role"), json!({"role": "admin"})).await.is(200);
    admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
    admin.poke(&format!("/admin/users/{id}/enable")).await.is(200);
}

#[tokio::test]
async fn every_kind_of_letter_says_the_same_in_text_and_in_html() {
    let stage = Stage::new().await;
    every_letter(&stage).await;
    let letters = stage.letters().await;
    let subjects: std::collections::BTreeSet<&str> = letters.iter().map(|letter| letter.subject.as_str()).collect();
    assert_eq!(subjects.len(), 14, "{subjects:#?}");
    for letter in &letters {
        assert_eq!(words(&letter.text), words(&without_tags(&letter.html)), "{}", letter.subject);
        assert!(letter.text.is_ascii() && !letter.subject.is_empty(), "{}", letter.text);
    }
}

#[tokio::test]
async fn every_kind_of_letter_looks_as_it_did() {
    let stage = Stage::new().await;
    every_letter(&stage).await;
    let mut seen = std::collections::BTreeSet::new();
    for letter in stage.letters().await.into_iter().filter(|letter| letter.to.starts_with("ana@") || letter.subject.contains("already")) {
        if !seen.insert(letter.subject.clone()) {
            continue;
        }
        let hide = |text: &str| letter.secret.iter().fold(text.to_string(), |text, secret| text.replace(secret.as_str(), "TOKEN"));
        let whole = format!("To: {}\nSubject: {}\n\n{}\n--- html\n{}", letter.to, letter.subject, hide(&letter.text), hide(&letter.html));
        let name = letter.subject.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(name, whole);
        });
    }
    assert_eq!(seen.len(), 14);
}

/// UNI-04: what somebody else chose is text, short, and never a link.
#[tokio::test]
async fn markup_links_and_line_breaks_in_a_device_or_a_name_go_nowhere() {
    let stage = Stage::new().await;
    for (n, odd) in
        ["<a href=https://evil.test>click</a>", "Visit evil.test now", "{{7*7}}", "x\u{202e}y", "<img src=//evil.test/x.png>"].into_iter().enumerate()
    {
        let (email, password) = (format!("ana{n}@example.com"), "a good password");
        let ana = stage.anon();
        ana.post("/signup", json!({"email": email, "password": password, "name": odd.replace('\u{202e}', "")})).await.is(201);
        let agent = format!("Mozilla/5.0 (Linux; Android 14; {}) AppleWebKit/537.36 Chrome/142.0 Mobile", odd.replace('\u{202e}', ""));
        let thief = stage.anon().from_ip(CAFE).with_agent(&agent);
        thief.post("/login", json!({"email": email, "password": password})).await.is(200);
        let letters: Vec<_> = stage.letters().await.into_iter().filter(|letter| letter.to == email).collect();
        assert_eq!(letters.len(), 2, "{odd}");
        for letter in letters {
            assert!(!letter.text.contains("evil.test") && !letter.html.contains("evil.test"), "{}", letter.text);
            assert_eq!(letter.html.matches("<a ").count(), 1, "{}", letter.html);
            assert!(!letter.html.contains("<img"), "{}", letter.html);
            let shown = stage.anon().get(&link_of(&letter)).await.is(200).text();
            assert!(!shown.contains("evil.test") && !shown.contains("<a ") && !shown.contains("<img"), "{shown}");
        }
    }
}

/// RST-02: no header of a request decides where a link leads.
#[tokio::test]
async fn links_are_built_from_the_public_url_only() {
    let stage = Stage::with(&[
        ("PUBLIC_URL", "https://id.example.com"),
        ("TRUSTED_PROXIES", "127.0.0.1/32"),
        ("BASE_PATH", "/auth"),
        ("SIGNUP_LIMIT_SOURCE", "none"),
        ("LETTER_LIMIT_SOURCE", "none"),
    ])
    .await;
    for header in ["host", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-prefix", "forwarded", "x-original-host"] {
        for value in ["evil.test", "user@evil.test", "host=evil.test;proto=http"] {
            let actor = stage.anon().with_header(header, value);
            let email = format!("{header}.{}@example.com", value.len());
            actor.post("/auth/signup", json!({"email": email, "password": "a good password"})).await.is(201);
            actor.post("/auth/password/forgot", json!({"email": email})).await.is(202);
            actor.post("/auth/email/verification", json!({"email": email})).await.is(202);
            actor.put("/auth/me/email", json!({"email": format!("new.{email}"), "current_password": "a good password"})).await.is(202);
        }
    }
    let letters = stage.letters().await;
    assert!(letters.len() > 60);
    for letter in letters {
        assert!(!letter.text.contains("evil.test") && !letter.html.contains("evil.test"), "{}", letter.text);
        for line in letter.text.lines().filter(|line| line.contains("://")) {
            assert!(line.starts_with("https://id.example.com/auth/security/"), "{line}");
        }
    }
}

#[tokio::test]
async fn links_lead_to_the_application_when_the_settings_say_so() {
    let stage = Stage::with(&[
        ("ALLOWED_ORIGINS", "http://app.localhost:5173"),
        ("LINK_VERIFY", "http://app.localhost:5173/verify#t={token}"),
        ("LINK_RESET", "http://localhost:8300/app/reset/{token}"),
    ])
    .await;
    let ana = stage.sign_up("ana").await;
    ana.post("/password/forgot", json!({"email": email_of("ana")})).await.is(202);
    let letter = stage.letter(&email_of("ana"), "Confirm").await;
    let token = letter.secret.as_deref().expect("a token").to_string();
    assert!(letter.text.contains(&format!("http://app.localhost:5173/verify#t={token}\n")), "{}", letter.text);
    let letter = stage.letter(&email_of("ana"), "Choose").await;
    assert!(letter.text.contains("http://localhost:8300/app/reset/"), "{}", letter.text);
    ana.post("/email/verify", json!({"token": token})).await.is(200);
}

/// ENUM-02 and more: nobody's mailbox is filled through us.
#[tokio::test]
async fn an_address_gets_at_most_five_letters_of_a_kind_in_an_hour() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let spellings = ["ana@example.com", "ANA@example.com", "Ana@EXAMPLE.com"];
    for n in 0..12 {
        stage.anon().post("/password/forgot", json!({"email": spellings[n % 3]})).await.is(202);
        stage.letters().await;
    }
    let resets = stage.letters_to(&email_of("ana"), "Choose").await;
    assert_eq!(resets.len(), 5);
    // What was refused has not made the newest link worth nothing.
    ana.post("/password/reset", json!({"token": token_of(&resets[4]), "new_password": "quite another password"})).await.is(204);
    // Another kind is another count; and an hour later it begins anew.
    assert_eq!(stage.letters_to(&email_of("ana"), "Your password").await.len(), 1);
    stage.clock.advance(HOUR + crate::stage::TICK);
    stage.anon().post("/password/forgot", json!({"email": "ana@example.com"})).await.is(202);
    assert_eq!(stage.letters_to(&email_of("ana"), "Choose").await.len(), 6);
}

/// Whoever asks for another one's new passwords must not see to it that there is none: when the last link has had its time, there is
/// another one to be had.
#[tokio::test]
async fn whoever_has_had_enough_letters_gets_another_one_when_no_link_is_good() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let asked = async |times: usize| {
        for _ in 0..times {
            stage.anon().post("/password/forgot", json!({"email": email_of("ana")})).await.is(202);
            stage.letters().await;
        }
        stage.letters_to(&email_of("ana"), "Choose").await.len()
    };
    assert_eq!(asked(8).await, 5);
    stage.clock.advance(HOUR / 2 - crate::stage::TICK);
    assert_eq!(asked(2).await, 5);
    stage.clock.advance(crate::stage::TICK);
    assert_eq!(asked(2).await, 6);
    let link = token_of(&stage.letter(&email_of("ana"), "Choose").await);
    stage.anon().post("/password/reset", json!({"token": link, "new_password": "quite another password"})).await.is(204);
}

#[tokio::test]
async fn what_an_administrator_does_is_told_without_the_administrators_place() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await.from_ip("192.0.2.99");
    let ana = stage.sign_up("ana").await;
    let id = ana.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();
    admin.delete(&format!("/admin/users/{id}/sessions")).await.is(200);
    let letter = stage.letter(&email_of("ana"), "Sessions of").await;
    assert!(letter.text.contains("One session of your account ana@example.com was ended by an administrator."), "{}", letter.text);
    assert!(!letter.text.contains("192.0.2.99") && !letter.text.contains("Device:"), "{}", letter.text);
}

#[tokio::test]
async fn the_letter_goes_to_the_address_that_counted_when_it_happened() {
    let stage = Stage::new().await;
    new_sign_in(&stage).await;
    stage.execute("UPDATE users SET email = 'thief@evil.test', email_canonical = 'thief@evil.test'");
    assert_eq!(stage.letters_to(&email_of("ana"), "New sign-in").await.len(), 1);
}
