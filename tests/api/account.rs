//! Signing up, in and out, and one's own account: what is accepted, what a sign-in hands out, and that nothing else does.
//! Strangers try spellings, borrowed cookies and overlapping requests; none of them is worth more than a right password.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use axum::body::Body;
use axum::http::{Method, header};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::database::ON_POSTGRES;
use crate::stage::{ABSOLUTE_TIMEOUT, Actor, Answer, CHROME, IDLE_TIMEOUT, Stage, TICK, email_of, password_of};

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Another good password.
const OTHER: &str = "quite another one";

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// The line that sets the session cookie.
fn session_cookie(answer: &Answer) -> Option<String> {
    answer.set_cookies().into_iter().find(|line| line.starts_with("holdfast=") || line.starts_with("__Host-holdfast="))
}

fn attributes(line: &str) -> BTreeMap<String, String> {
    let parts = line.split(';').skip(1).map(|part| part.trim().split_once('=').unwrap_or((part.trim(), "")));
    parts.map(|(name, value)| (name.to_ascii_lowercase(), value.to_string())).collect()
}

fn max_age(line: &str) -> Option<i64> {
    attributes(line).get("max-age").map(|seconds| seconds.parse().expect("a number"))
}

/// Everything that a client sees of an answer, but for the id of the request.
fn shown(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let mut headers: Vec<_> = answer.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").to_string())).collect();
    headers.retain(|(name, _)| name != "x-request-id");
    headers.sort();
    (answer.status.as_u16(), headers, String::from_utf8(answer.body.clone()).expect("UTF-8"))
}

async fn sign_up_as(stage: &Stage, email: &str, password: &str) -> Answer {
    stage.anon().post("/signup", json!({"email": email, "password": password})).await
}

async fn log_in_as(stage: &Stage, email: &str, password: &str) -> Answer {
    stage.anon().post("/login", json!({"email": email, "password": password})).await
}

/// Sends a request with this `Cookie` line and no other.
async fn with_cookies(stage: &Stage, method: Method, path: &str, lines: &[&str]) -> Answer {
    let anon = stage.anon();
    let mut request = anon.request(method, path);
    for line in lines {
        request = request.header(header::COOKIE, *line);
    }
    anon.send(request, Body::empty()).await
}

// ---- signing up

#[tokio::test]
async fn a_sign_up_answers_with_the_user_and_the_session() {
    let stage = Stage::new().await;
    let answer = stage.anon().post("/signup", json!({"email": "ada@example.com", "password": "a good password", "name": "Ada"})).await.is(201);
    let body = answer.json();
    assert_eq!(keys(&body), BTreeSet::from(["user", "session"]));
    let (user, session) = (&body["user"], &body["session"]);
    assert_eq!(keys(user), BTreeSet::from(["id", "email", "email_verified", "name", "role", "created_at"]));
    assert_eq!(
        (&user["email"], &user["email_verified"], &user["name"], &user["role"]),
        (&json!("ada@example.com"), &json!(false), &json!("Ada"), &json!("user"))
    );
    assert_eq!(user["created_at"], "2026-11-23T06:36:08.123Z");
    let expected = json!({
        "id": session["id"], "current": true, "device_name": "Chrome on macOS", "device_type": "desktop", "ip": "198.51.100.1",
        "user_agent": CHROME, "created_at": "2026-11-23T06:36:08.123Z", "last_active_at": "2026-11-23T06:36:08.123Z",
        "idle_expires_at": "2026-11-23T07:06:08.123Z", "expires_at": "2026-11-24T06:36:08.123Z",
        "authenticated_at": "2026-11-23T06:36:08.123Z", "auth_methods": ["password"], "remember": false, "new_ip": false, "new_device": false,
    });
    assert_eq!(session, &expected);
}

#[tokio::test]
async fn ids_are_version_7_uuids() {
    let stage = Stage::new().await;
    let body = sign_up_as(&stage, "ada@example.com", "a good password").await.is(201).json();
    for id in [&body["user"]["id"], &body["session"]["id"]] {
        let id: uuid::Uuid = id.as_str().expect("a string").parse().expect("a UUID");
        assert_eq!(id.get_version_num(), 7);
    }
}

#[tokio::test]
async fn a_sign_up_signs_in() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn without_a_name_the_name_is_empty() {
    let stage = Stage::new().await;
    assert_eq!(sign_up_as(&stage, "ada@example.com", "a good password").await.is(201).json()["user"]["name"], "");
}

#[tokio::test]
async fn an_address_is_taken_once() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let again = sign_up_as(&stage, &email_of("ana"), OTHER).await.is_refused(409, "email_taken");
    assert_eq!(session_cookie(&again), None);
    log_in_as(&stage, &email_of("ana"), OTHER).await.is_refused(401, "invalid_credentials");
}

/// RACE-04: case and Unicode form make no other address.
#[tokio::test]
async fn an_address_is_taken_in_all_its_spellings() {
    let stage = Stage::new().await;
    sign_up_as(&stage, "Jos\u{e9}@B\u{fc}cher.example", "a good password").await.is(201);
    for spelling in [
        "jos\u{e9}@b\u{fc}cher.example",
        "JOS\u{c9}@B\u{dc}CHER.EXAMPLE",
        "jose\u{301}@bu\u{308}cher.example",
        "JOSE\u{301}@xn--bcher-kva.example",
        "jOS\u{e9}@XN--BCHER-KVA.example",
    ] {
        sign_up_as(&stage, spelling, "a good password").await.is_refused(409, "email_taken");
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
}

/// RACE-04
#[tokio::test]
async fn of_parallel_sign_ups_with_one_address_in_five_spellings_one_wins() {
    let stage = Stage::new().await;
    let mut runs = JoinSet::new();
    for spelling in ["jos\u{e9}@example.com", "JOS\u{c9}@example.com", "jose\u{301}@example.com", "JOSE\u{301}@EXAMPLE.com", "Jos\u{e9}@Example.Com"].repeat(4)
    {
        let anon = stage.anon();
        runs.spawn(async move { anon.post("/signup", json!({"email": spelling, "password": "a good password"})).await });
    }
    let answers = runs.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(answers.iter().all(|answer| answer.status == 201 || answer.code() == "email_taken"));
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 1);
}

#[tokio::test]
async fn an_address_is_shown_as_first_given_at_the_mapped_domain() {
    let stage = Stage::new().await;
    let ada = stage.anon();
    let signed_up = ada.post("/signup", json!({"email": "Ada.Lovelace+x@B\u{fc}cher.EXAMPLE", "password": "a good password"})).await.is(201);
    assert_eq!(signed_up.json()["user"]["email"], "Ada.Lovelace+x@xn--bcher-kva.example");
    let again = log_in_as(&stage, "ADA.LOVELACE+X@b\u{fc}cher.example", "a good password").await.is(200);
    assert_eq!(again.json()["user"]["email"], "Ada.Lovelace+x@xn--bcher-kva.example");
}

/// UNI-01: what looks alike is another account; only case and Unicode form are looked through.
#[tokio::test]
async fn look_alikes_are_other_accounts() {
    let stage = Stage::new().await;
    sign_up_as(&stage, "mike@x.test", "a good password").await.is(201);
    sign_up_as(&stage, "kate@x.test", "a good password").await.is(201);
    for other in ["m\u{131}ke@x.test", "mik\u{e9}@x.test", "\u{ff4d}ike@x.test", "mi\u{212a}e\u{301}@x.test", "mike@x\u{2010}.test", "mike@xn--x-xka.test"] {
        assert_ne!(log_in_as(&stage, other, "a good password").await.status, 200, "{other}");
    }
}

/// UNI-01: whatever spelling opens the account, the address on record is the one that letters go to.
#[tokio::test]
async fn the_spelling_that_signs_in_never_becomes_the_address() {
    let stage = Stage::new().await;
    sign_up_as(&stage, "mike@x.test", "a good password").await.is(201);
    for spelling in ["MIKE@x.test", "mike@\u{24cd}.test", "mi\u{212a}e@x.test", "mike@X.TEST"] {
        let body = log_in_as(&stage, spelling, "a good password").await.is(200).json();
        assert_eq!(body["user"]["email"], "mike@x.test", "{spelling}");
    }
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'mike@x.test'"), 1);
}

/// UNI-03
#[tokio::test]
async fn odd_addresses_open_no_account() {
    let stage = Stage::new().await;
    let too_long = format!("{}@example.com", "a".repeat(243));
    assert_eq!(too_long.len(), 255);
    let odd = [
        "",
        "a",
        "@x.test",
        "a@",
        "a@x.test\r\nBcc: e@e.test",
        "a@x.test\n",
        "a\0@x.test",
        "a@x.test\0",
        "a@evil@allowed.test",
        "\"a@evil\"@allowed.test",
        "\"a\"@allowed.test",
        "a@allowed.test(.evil)",
        "a(comment)@allowed.test",
        "<a@x.test>",
        "Ana <a@x.test>",
        "a@x.test, b@x.test",
        "-oQ/tmp@x",
        "a@[127.0.0.1]",
        "a@[IPv6:::1]",
        "a\u{202e}b@x.test",
        "a\u{200b}@x.test",
        "a\u{2066}@x.test",
        "a\u{feff}@x.test",
        "a\u{ad}b@x.test",
        "a\u{a0}b@x.test",
        "a@x\u{200b}.test",
        ".a..@x",
        ".a@x.test",
        "a.@x.test",
        "a..b@x.test",
        "a b@x.test",
        " a@x.test",
        "a@x.test ",
        "a@x..test",
        &too_long,
    ];
    for email in odd {
        let answer = sign_up_as(&stage, email, "a good password").await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), ["email:invalid"], "{email:?}");
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);
}

#[tokio::test]
async fn an_address_of_254_bytes_is_accepted() {
    let stage = Stage::new().await;
    let longest = format!("{}@example.com", "a".repeat(242));
    assert_eq!(longest.len(), 254);
    sign_up_as(&stage, &longest, "a good password").await.is(201);
}

#[tokio::test]
async fn unusual_but_plain_addresses_are_accepted() {
    let stage = Stage::new().await;
    for email in ["o'brien@example.com", "a+b@example.co.uk", "user_name@sub.example.com", "\u{7528}\u{6237}@\u{4f8b}\u{3048}.jp", "1@example.com"] {
        sign_up_as(&stage, email, "a good password").await.is(201);
    }
}

// ---- passwords

async fn password_faults(stage: &Stage, email: &str, password: &str) -> Vec<String> {
    sign_up_as(stage, email, password).await.is_refused(422, "validation_failed").faults()
}

#[tokio::test]
async fn a_password_has_8_to_256_characters() {
    let stage = Stage::new().await;
    for wrong in ["", "7 chars", &"x1".repeat(129)] {
        let faults = password_faults(&stage, "ada@example.com", wrong).await;
        assert!(faults.len() == 1 && faults[0].starts_with("password:"), "{faults:?}");
    }
    sign_up_as(&stage, "eight@example.com", "8 chars!").await.is(201);
    let longest = "x1".repeat(128);
    sign_up_as(&stage, "long@example.com", &longest).await.is(201);
    log_in_as(&stage, "long@example.com", &longest).await.is(200);
}

#[tokio::test]
async fn the_shortest_password_is_a_setting() {
    let stage = Stage::with(&[("PASSWORD_MIN_LENGTH", "15")]).await;
    assert_eq!(password_faults(&stage, "ada@example.com", "fourteen chars").await.len(), 1);
    sign_up_as(&stage, "ada@example.com", "fifteen charact").await.is(201);
}

#[tokio::test]
async fn characters_are_counted_in_their_composed_form() {
    let stage = Stage::new().await;
    assert_eq!(password_faults(&stage, "ada@example.com", &"e\u{301}".repeat(7)).await.len(), 1);
    let longest = "e\u{301}".repeat(256);
    sign_up_as(&stage, "ada@example.com", &longest).await.is(201);
    log_in_as(&stage, "ada@example.com", &"\u{e9}".repeat(256)).await.is(200);
}

#[tokio::test]
async fn a_password_is_the_same_in_both_unicode_forms() {
    let stage = Stage::new().await;
    sign_up_as(&stage, "ada@example.com", "Ame\u{301}lie und ich").await.is(201);
    log_in_as(&stage, "ada@example.com", "Am\u{e9}lie und ich").await.is(200);
}

#[tokio::test]
async fn compatibility_forms_are_other_passwords() {
    let stage = Stage::new().await;
    sign_up_as(&stage, "ada@example.com", "the file is here").await.is(201);
    log_in_as(&stage, "ada@example.com", "the \u{fb01}le is here").await.is_refused(401, "invalid_credentials");
}

#[tokio::test]
async fn there_are_no_composition_rules() {
    let stage = Stage::new().await;
    let printable: String = (' '..='~').collect();
    for (n, password) in [
        printable.as_str(),
        "qxvzkjwpfh",
        "        x",
        "4815162342108",
        "\u{43f}\u{430}\u{440}\u{43e}\u{43b}\u{44c}-\u{438}\u{437}-\u{441}\u{43b}\u{43e}\u{432}",
    ]
    .iter()
    .enumerate()
    {
        sign_up_as(&stage, &format!("n{n}@example.com"), password).await.is(201);
        log_in_as(&stage, &format!("n{n}@example.com"), password).await.is(200);
    }
}

#[tokio::test]
async fn a_common_password_is_refused_in_any_case() {
    let stage = Stage::new().await;
    for common in ["password", "PassWord", "12345678", "QWERTYUIOP"] {
        assert_eq!(password_faults(&stage, "ada@example.com", common).await, ["password:too_common"], "{common}");
    }
}

#[tokio::test]
async fn a_password_that_is_the_own_address_is_refused() {
    let stage = Stage::new().await;
    for own in ["ada.lovelace@example.com", "ADA.Lovelace@Example.Com", "ada.lovelace", "ADA.LOVELACE"] {
        assert_eq!(password_faults(&stage, "Ada.Lovelace@example.com", own).await, ["password:too_common"], "{own}");
    }
    sign_up_as(&stage, "Ada.Lovelace@example.com", "ada.lovelace!").await.is(201);
}

/// The address as it was typed is the address too, not only its mapped form.
#[tokio::test]
async fn a_password_that_is_the_own_address_at_an_international_domain_is_refused() {
    let stage = Stage::new().await;
    assert_eq!(password_faults(&stage, "ada@B\u{fc}cher.example", "ada@b\u{fc}cher.example").await, ["password:too_common"]);
    assert_eq!(password_faults(&stage, "ada@B\u{fc}cher.example", "ada@xn--bcher-kva.example").await, ["password:too_common"]);
}

/// Some letters compose only once they are lower case: the same text is the same all the same.
#[tokio::test]
async fn a_password_that_is_the_own_address_is_refused_in_any_unicode_form() {
    let stage = Stage::new().await;
    for own in ["J\u{30c}eannette", "j\u{30c}eannette", "\u{1f0}eannette"] {
        assert_eq!(password_faults(&stage, "J\u{30c}eannette@example.com", own).await, ["password:too_common"], "{own}");
    }
}

/// PASS-01: nothing is cut off, not at 72 bytes, not at a NUL.
#[tokio::test]
async fn every_character_of_a_password_counts() {
    let stage = Stage::new().await;
    let long = "x".repeat(99);
    sign_up_as(&stage, "long@example.com", &format!("{long}a")).await.is(201);
    let spellings = [format!("{long}A"), format!("{}a", long.to_uppercase()), format!("{long}a "), format!(" {long}a"), format!("{long}a\n")];
    for wrong in [format!("{long}b"), long[..72].to_string(), long.clone(), format!("{long}aa")].into_iter().chain(spellings) {
        log_in_as(&stage, "long@example.com", &wrong).await.is_refused(401, "invalid_credentials");
    }
    log_in_as(&stage, "long@example.com", &format!("{long}a")).await.is(200);

    sign_up_as(&stage, "wide@example.com", &"\u{1f98a}".repeat(64)).await.is(201);
    log_in_as(&stage, "wide@example.com", &"\u{1f98a}".repeat(63)).await.is_refused(401, "invalid_credentials");
    log_in_as(&stage, "wide@example.com", &"\u{1f98a}".repeat(64)).await.is(200);

    // A NUL is refused, or it counts like any other character.
    if sign_up_as(&stage, "nul@example.com", "abcdefgh\0ijkl").await.status == 201 {
        log_in_as(&stage, "nul@example.com", "abcdefgh").await.is_refused(401, "invalid_credentials");
    }
}

/// PASS-01: the limit is the same where a password is changed.
#[tokio::test]
async fn a_change_of_password_keeps_the_same_rules() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for wrong in ["7 chars", "password", "ANA@EXAMPLE.COM", &"x1".repeat(129)] {
        let faults = ana.change_password(&password_of("ana"), wrong).await.is_refused(422, "validation_failed").faults();
        assert!(faults.len() == 1 && faults[0].starts_with("new_password:"), "{wrong}: {faults:?}");
    }
    ana.change_password(&password_of("ana"), &"x1".repeat(128)).await.is(200);
}

/// At login a password that could never be one is just a wrong one.
#[tokio::test]
async fn at_login_an_impossible_password_is_a_wrong_one() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for impossible in ["", "x", "password", &"x".repeat(257), &"x".repeat(20_000), "\0"] {
        log_in_as(&stage, &email_of("ana"), impossible).await.is_refused(401, "invalid_credentials");
    }
}

/// Nobody is made to choose another one because time has passed.
#[tokio::test]
async fn a_password_is_good_until_it_is_changed() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.clock.advance(730 * DAY);
    log_in_as(&stage, &email_of("ana"), &password_of("ana")).await.is(200);
}

#[tokio::test]
async fn a_new_server_has_no_account_to_sign_in_with() {
    let stage = Stage::new().await;
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);
    for name in ["admin", "root", "holdfast", "test", "user"] {
        for password in ["", "admin", "password", "holdfast", name] {
            log_in_as(&stage, &email_of(name), password).await.is_refused(401, "invalid_credentials");
        }
    }
}

// ---- what a stranger cannot set

/// MASS-02 and VER-02: role, standing and verification are nobody's to send.
#[tokio::test]
async fn a_sign_up_cannot_set_anything_else() {
    let stage = Stage::new().await;
    let extras =
        ["role", "Role", "ROLE", "is_admin", "email_verified", "emailVerifiedAt", "verified", "status", "disabled", "id", "user", "__proto__", "remember"];
    for extra in extras {
        let mut body = json!({"email": "ada@example.com", "password": "a good password"});
        body[extra] = if extra == "role" { json!("admin") } else { json!(true) };
        let answer = stage.anon().post("/signup", body).await.is_refused(422, "validation_failed");
        let faults = answer.faults();
        assert!(faults.len() == 1 && faults[0].starts_with(&format!("{extra}:")), "{extra}: {faults:?}");
    }
    for query in ["?email_verified=true", "?role=admin"] {
        stage
            .anon()
            .post(&format!("/signup{query}"), json!({"email": "ada@example.com", "password": "a good password"}))
            .await
            .is_refused(422, "validation_failed");
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);
}

/// MASS-02 and VER-02
#[tokio::test]
async fn a_profile_cannot_set_anything_but_the_name() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let before = ana.get("/me").await.is(200).json();
    let bodies = [
        json!({"password": null, "email": null, "totp": null, "sessions": []}),
        json!({"name": "Eve", "email_verified": true}),
        json!({"name": "Eve", "role": "admin"}),
        json!({"name": "Eve", "NAME": "Eve"}),
        json!({"name": "Eve", "user": {"email_verified": true}}),
        json!({"name": "Eve", "status": "verified"}),
    ];
    for body in bodies {
        ana.patch("/me", body).await.is_refused(422, "validation_failed");
    }
    ana.patch("/me?email_verified=true", json!({"name": "Eve"})).await.is_refused(422, "validation_failed");
    assert_eq!(ana.get("/me").await.is(200).json(), before);
    assert_eq!(ana.get("/check").await.is(204).header("x-holdfast-email-verified"), Some("false"));
    log_in_as(&stage, &email_of("ana"), &password_of("ana")).await.is(200);
}

/// VER-02
#[tokio::test]
async fn a_new_account_is_unverified_to_itself_and_to_the_admin() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["email_verified"], false);
    let seen = admin.get("/admin/users?email=ana@example.com").await.is(200).json();
    assert_eq!(seen["users"][0]["email_verified"], false);
}

// ---- /me

#[tokio::test]
async fn me_shows_what_the_sign_in_showed() {
    let stage = Stage::new().await;
    let ana = stage.anon();
    let signed_up = ana.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201).json();
    assert_eq!(ana.get("/me").await.is(200).json(), signed_up);
}

#[tokio::test]
async fn a_name_can_be_changed_and_emptied() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let answer = ana.patch("/me", json!({"name": "Ana Lima"})).await.is(200);
    assert_eq!(keys(&answer.json()), BTreeSet::from(["user"]));
    assert_eq!(answer.json()["user"]["name"], "Ana Lima");
    assert_eq!(session_cookie(&answer), None);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "Ana Lima");
    ana.patch("/me", json!({"name": ""})).await.is(200);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "");
}

#[tokio::test]
async fn a_name_has_at_most_200_characters_and_no_control_characters() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.patch("/me", json!({"name": "\u{1f98a}".repeat(200)})).await.is(200);
    for wrong in [&"x".repeat(201), "a\r\nRemote-Groups: admin", "a\0", "a\u{7f}", "a\u{85}b", "tab\there"] {
        let faults = ana.patch("/me", json!({"name": wrong})).await.is_refused(422, "validation_failed").faults();
        assert!(faults.len() == 1 && faults[0].starts_with("name:"), "{faults:?}");
        let body = json!({"email": "ada@example.com", "password": "a good password", "name": wrong});
        let faults = stage.anon().post("/signup", body).await.is_refused(422, "validation_failed").faults();
        assert!(faults.len() == 1 && faults[0].starts_with("name:"), "{faults:?}");
    }
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "\u{1f98a}".repeat(200));
}

#[tokio::test]
async fn strangers_have_no_account_page() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    anon.get("/me").await.is_refused(401, "unauthenticated");
    anon.patch("/me", json!({"name": "Eve"})).await.is_refused(401, "unauthenticated");
}

// ---- signing in

#[tokio::test]
async fn a_login_answers_as_a_sign_up_does() {
    let stage = Stage::new().await;
    let signed_up = stage.sign_up("ana").await.get("/me").await.is(200).json();
    stage.clock.advance(TICK);
    let signed_in = log_in_as(&stage, &email_of("ana"), &password_of("ana")).await.is(200).json();
    assert_eq!(signed_in["user"], signed_up["user"]);
    assert_eq!(keys(&signed_in["session"]), keys(&signed_up["session"]));
    assert_ne!(signed_in["session"]["id"], signed_up["session"]["id"]);
    assert_eq!(signed_in["session"]["created_at"], "2026-11-23T06:36:08.124Z");
    assert_eq!(signed_in["session"]["authenticated_at"], "2026-11-23T06:36:08.124Z");
}

/// ENUM-01: unknown, wrong and disabled are one answer: status, headers and body.
#[tokio::test]
async fn a_failed_login_does_not_tell_why() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    stage.sign_up("ana").await;
    let ben = stage.sign_up("ben").await.get("/me").await.is(200).json();
    admin.poke(&format!("/admin/users/{}/disable", ben["user"]["id"].as_str().expect("an id"))).await.is(200);

    let unknown = log_in_as(&stage, "nobody@example.com", &password_of("ben")).await.is_refused(401, "invalid_credentials");
    let wrong = log_in_as(&stage, &email_of("ana"), "not this one").await;
    let disabled = log_in_as(&stage, &email_of("ben"), &password_of("ben")).await;
    let disabled_and_wrong = log_in_as(&stage, &email_of("ben"), "not this one").await;
    for answer in [wrong, disabled, disabled_and_wrong] {
        assert_eq!(shown(&answer), shown(&unknown));
    }
    assert_eq!(unknown.set_cookies(), Vec::<String>::new());
}

/// ENUM-01: neither does one whose browser holds a session, a dead token or nothing.
#[tokio::test]
async fn a_failed_login_costs_no_session_and_sets_no_cookie() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for body in [json!({"email": email_of("ana"), "password": "not this one"}), json!({"email": "nobody@example.com", "password": "not this one"})] {
        let answer = ana.post("/login", body).await.is_refused(401, "invalid_credentials");
        assert_eq!(answer.set_cookies(), Vec::<String>::new());
    }
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn what_a_stranger_typed_is_stored_only_if_it_is_an_account() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    log_in_as(&stage, "my.secret.address@example.com", "not this one").await.is(401);
    log_in_as(&stage, &email_of("ana"), "not this one").await.is(401);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'sign_in_failed' AND user_id IS NULL"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'sign_in_failed' AND user_id IS NOT NULL"), 1);
    assert!(!is_stored(&stage, b"my.secret.address"));
}

#[tokio::test]
async fn a_disabled_account_signs_in_again_once_it_is_enabled() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let ana = stage.sign_up("ana").await;
    let id = ana.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
    ana.log_in("ana").await.is_refused(401, "invalid_credentials");
    admin.poke(&format!("/admin/users/{id}/enable")).await.is(200);
    ana.log_in("ana").await.is(200);
}

#[tokio::test]
async fn a_dead_token_is_no_obstacle_to_signing_in() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
    ana.log_in("ana").await.is(200);
    ana.get("/me").await.is(200);
    let eve = stage.anon();
    for garbage in ["x", "", &"A".repeat(43), "%00", "\"quoted\""] {
        eve.set_token(Some(garbage));
        eve.log_in("ana").await.is(200);
        eve.get("/me").await.is(200);
    }
}

// ---- cookies

/// COOK-01
#[tokio::test]
async fn over_https_cookies_are_host_only_secure_and_lax() {
    let stage = Stage::with(&[("PUBLIC_URL", "https://id.example.com")]).await;
    let ana = stage.anon();
    let signed_up = ana.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    let logged_in = ana.log_in("ana").await.is(200);
    let remembered = ana.post("/login", json!({"email": email_of("ana"), "password": password_of("ana"), "remember": true})).await.is(200);
    let rotated = ana.change_password(&password_of("ana"), OTHER).await.is(200);
    let logged_out = ana.poke("/logout").await.is(204);
    for answer in [&signed_up, &logged_in, &remembered, &rotated, &logged_out] {
        assert!(session_cookie(answer).is_some_and(|line| line.starts_with("__Host-holdfast=")));
        for line in answer.set_cookies() {
            assert!(line.starts_with("__Host-holdfast=") || line.starts_with("__Host-holdfast-device="), "{line}");
            let mut attributes = attributes(&line);
            attributes.remove("max-age");
            let expected = [("secure", ""), ("httponly", ""), ("samesite", "Lax"), ("path", "/")];
            assert_eq!(attributes, expected.map(|(name, value)| (name.to_string(), value.to_string())).into(), "{line}");
        }
    }
    assert!(logged_out.clears_session());
}

#[tokio::test]
async fn over_plain_http_the_cookie_has_a_plain_name_and_is_not_secure() {
    let stage = Stage::new().await;
    let ana = stage.anon();
    let answer = ana.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    let names: BTreeSet<String> = answer.set_cookies().iter().map(|line| line.split('=').next().unwrap_or_default().to_string()).collect();
    assert_eq!(names, BTreeSet::from(["holdfast".to_string(), "holdfast-device".to_string()]));
    for line in answer.set_cookies() {
        let attributes = attributes(&line);
        assert!(!attributes.contains_key("secure") && !attributes.contains_key("domain"), "{line}");
        assert!(attributes.contains_key("httponly") && attributes["samesite"] == "Lax" && attributes["path"] == "/", "{line}");
    }
}

#[tokio::test]
async fn over_https_the_plain_name_is_not_read() {
    let stage = Stage::with(&[("PUBLIC_URL", "https://id.example.com")]).await;
    let token = stage.sign_up("ana").await.token().expect("a token");
    for name in ["holdfast", "__host-holdfast", "__HOST-HOLDFAST", "__Secure-holdfast", "__Host-holdfast-device"] {
        with_cookies(&stage, Method::GET, "/me", &[&format!("{name}={token}")]).await.is_refused(401, "unauthenticated");
    }
    with_cookies(&stage, Method::GET, "/me", &[&format!("a=b; __Host-holdfast={token}; c=d")]).await.is(200);
}

#[tokio::test]
async fn without_remember_the_cookie_ends_with_the_browser() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for body in [
        json!({"email": email_of("ana"), "password": password_of("ana")}),
        json!({"email": email_of("ana"), "password": password_of("ana"), "remember": false}),
    ] {
        let answer = ana.post("/login", body).await.is(200);
        let line = session_cookie(&answer).expect("a cookie");
        assert!(max_age(&line).is_none() && !attributes(&line).contains_key("expires"), "{line}");
        assert_eq!(answer.json()["session"]["remember"], false);
    }
}

async fn remembered(actor: &Actor, name: &str) -> Answer {
    actor.post("/login", json!({"email": email_of(name), "password": password_of(name), "remember": true})).await.is(200)
}

#[tokio::test]
async fn with_remember_the_cookie_lives_as_long_as_the_session_may() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let answer = remembered(&ana, "ana").await;
    assert_eq!(answer.json()["session"]["remember"], true);
    assert_eq!(answer.json()["session"]["expires_at"], "2026-12-23T06:36:08.123Z");
    assert_eq!(answer.json()["session"]["idle_expires_at"], "2026-11-30T06:36:08.123Z");
    assert_eq!(max_age(&session_cookie(&answer).expect("a cookie")), Some(30 * 24 * 3600));
}

/// COOK-01: the cookie never outlives the session.
#[tokio::test]
async fn a_rotated_remembered_cookie_lives_for_what_is_left() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    remembered(&ana, "ana").await;
    stage.clock.advance(DAY + TICK);
    let rotated = ana.change_password(&password_of("ana"), OTHER).await.is(200);
    let left = max_age(&session_cookie(&rotated).expect("a cookie")).expect("an age");
    // A day and a millisecond are gone; what is not a whole second is not left.
    assert_eq!(left, 29 * 24 * 3600 - 1);
    assert_eq!(rotated.json()["session"]["expires_at"], "2026-12-23T06:36:08.123Z");
}

#[tokio::test]
async fn the_remembered_cookie_follows_the_settings_and_the_role() {
    let stage = Stage::with(&[("REMEMBER_TIMEOUTS", "2d/3d"), ("ROLE_TIMEOUTS", "admin=5m/8h")]).await;
    let ana = stage.sign_up("ana").await;
    assert_eq!(max_age(&session_cookie(&remembered(&ana, "ana").await).expect("a cookie")), Some(3 * 24 * 3600));
    let admin = stage.admin("admin").await;
    assert_eq!(max_age(&session_cookie(&remembered(&admin, "admin").await).expect("a cookie")), Some(8 * 3600));
}

#[tokio::test]
async fn only_a_sign_in_a_rotation_and_a_logout_set_the_session_cookie() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for path in ["/me", "/me/sessions", "/me/activity", "/check", "/health/live", "/health/ready", "/openapi.json", "/nowhere"] {
        assert_eq!(ana.get(path).await.set_cookies(), Vec::<String>::new(), "{path}");
    }
}

/// COOK-02: which of two a browser meant cannot be known, so neither counts.
#[tokio::test]
async fn two_cookies_of_the_name_are_no_session() {
    let stage = Stage::new().await;
    let (a, b) = (stage.sign_up("ana").await.token().expect("a token"), stage.sign_up("ben").await.token().expect("a token"));
    let (ab, ba) = (format!("holdfast={a}; holdfast={b}"), format!("holdfast={b}; holdfast={a}"));
    let (only_a, only_b) = (format!("holdfast={a}"), format!("holdfast={b}"));
    let twice = format!("holdfast={a}; x=y; holdfast={a}");
    let with_dead = format!("holdfast={a}; holdfast=");
    for lines in [vec![ab.as_str()], vec![&ba], vec![&only_a, &only_b], vec![&only_b, &only_a], vec![&twice], vec![&with_dead]] {
        for path in ["/me", "/check", "/me/sessions"] {
            with_cookies(&stage, Method::GET, path, &lines).await.is_refused(401, "unauthenticated");
        }
    }
    with_cookies(&stage, Method::GET, "/me", &[&only_a]).await.is(200);
}

/// COOK-02: a sign-in while both are sent opens a fresh session, and neither of the two is touched.
#[tokio::test]
async fn a_sign_in_with_two_cookies_touches_neither() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let both = format!("holdfast={}; holdfast={}", ana.token().expect("a token"), ben.token().expect("a token"));
    let carol = stage.anon();
    let request = carol.request(Method::POST, "/signup").header(header::COOKIE, &both).header(header::CONTENT_TYPE, "application/json");
    carol.send(request, Body::from(json!({"email": email_of("carol"), "password": password_of("carol")}).to_string())).await.is(201);
    assert_eq!(carol.get("/me").await.is(200).json()["user"]["email"], email_of("carol"));
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["email"], email_of("ana"));
    assert_eq!(ben.get("/me").await.is(200).json()["user"]["email"], email_of("ben"));
}

/// COOK-02
#[tokio::test]
async fn a_logout_with_two_cookies_ends_neither_and_clears_nothing() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let both = format!("holdfast={}; holdfast={}", ana.token().expect("a token"), ben.token().expect("a token"));
    let answer = with_cookies(&stage, Method::POST, "/logout", &[&both]).await.is(204);
    assert_eq!(answer.set_cookies(), Vec::<String>::new());
    ana.get("/me").await.is(200);
    ben.get("/me").await.is(200);
}

/// COOK-04: a token has one spelling.
#[tokio::test]
async fn only_the_exact_token_opens_the_session() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ana.token().expect("a token");
    assert_eq!(token.len(), 43);
    let mut variants: Vec<String> = (0..token.len()).map(|end| token[..end].to_string()).collect();
    variants.extend((1..token.len()).map(|start| token[start..].to_string()));
    variants.extend(["A", "=", "==", "%00", " ", "%3D", ".", "\t"].map(|more| format!("{token}{more}")));
    variants.extend([format!(" {token}"), format!("\"{token}\""), format!("'{token}'"), format!("%{:02X}{}", token.as_bytes()[0], &token[1..])]);
    let swapped = token.chars().map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() });
    variants.extend([token.to_lowercase(), token.to_uppercase(), swapped.collect()]);
    // The last character carries four bits; the two others must be zero.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(&token[42..]).expect("base64url");
    variants.extend((1..4).map(|unused| format!("{}{}", &token[..42], &alphabet[last + unused..=last + unused])));
    let bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64url");
    variants.extend([STANDARD.encode(&bytes), hex(&bytes), token.replace('-', "+").replace('_', "/") + "="]);
    for variant in variants.iter().filter(|variant| **variant != token) {
        with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={variant}")]).await.is_refused(401, "unauthenticated");
    }
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn a_token_carries_256_bits_and_is_not_the_id() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ana.token().expect("a token");
    assert_eq!(URL_SAFE_NO_PAD.decode(&token).expect("base64url").len(), 32);
    let id = ana.get("/me").await.is(200).json()["session"]["id"].as_str().expect("an id").to_string();
    with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={id}")]).await.is_refused(401, "unauthenticated");
}

/// COOK-06: whoever is not signed in fills no table.
#[tokio::test]
async fn invented_cookies_store_nothing_and_get_none() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let stored = |stage: &Stage| {
        ["device_sessions", "retired_tokens", "events", "known_ips", "known_devices", "outbox"]
            .map(|table| stage.count(&format!("SELECT count(*) FROM {table}")))
    };
    let before = stored(&stage);
    for n in 0..100u8 {
        let invented = URL_SAFE_NO_PAD.encode(Sha256::digest([n]));
        for (method, path) in
            [(Method::GET, "/me"), (Method::GET, "/check"), (Method::POST, "/logout"), (Method::GET, "/health/live"), (Method::GET, "/nowhere")]
        {
            let line = format!("holdfast={invented}; holdfast-device={invented}");
            let answer = with_cookies(&stage, method, path, &[&line]).await;
            assert_eq!(answer.set_cookies(), Vec::<String>::new(), "{path}");
        }
    }
    assert_eq!(stored(&stage), before);
}

// ---- fixation

/// FIX-02: a token that was there before the sign-in never names the session after it.
#[tokio::test]
async fn a_sign_in_never_adopts_a_token() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let planted = URL_SAFE_NO_PAD.encode([7; 32]);
    let victim = stage.anon();
    for path in ["/signup", "/login"] {
        victim.set_token(Some(&planted));
        let name = if path == "/signup" { "ben" } else { "ana" };
        assert!(victim.post(path, json!({"email": email_of(name), "password": password_of(name)})).await.status.is_success());
        assert_ne!(victim.token().expect("a token"), planted);
        with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={planted}")]).await.is_refused(401, "unauthenticated");
    }
}

/// FIX-02
#[tokio::test]
async fn every_sign_in_mints_a_new_token() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut seen = HashSet::from([ana.token()]);
    for _ in 0..5 {
        ana.log_in("ana").await.is(200);
        assert!(seen.insert(ana.token()));
    }
}

/// FIX-02: the old token is dead when the new one is there.
#[tokio::test]
async fn a_change_of_password_changes_the_token() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let thief = ana.copy();
    ana.change_password(&password_of("ana"), OTHER).await.is(200);
    assert_ne!(ana.token(), thief.token());
    thief.get("/me").await.is_refused(401, "session_rotated");
    ana.get("/me").await.is(200);
}

/// FIX-02
#[tokio::test]
async fn fifty_parallel_logins_with_one_stale_cookie_get_fifty_tokens() {
    let stage = Stage::new().await;
    let names = ["ana", "ben", "carol", "dan", "eve"];
    let mut stale = None;
    for name in names {
        let actor = stage.sign_up(name).await;
        stale = actor.token();
        actor.poke("/logout").await.is(204);
    }
    let mut runs = JoinSet::new();
    for name in names.repeat(10) {
        let browser = stage.anon();
        browser.set_token(stale.as_deref());
        runs.spawn(async move {
            browser.log_in(name).await.is(200);
            (name, browser)
        });
    }
    let browsers = runs.join_all().await;
    let tokens: HashSet<_> = browsers.iter().map(|(_, browser)| browser.token()).collect();
    assert_eq!(tokens.len(), 50);
    assert!(!tokens.contains(&stale));
    for (name, browser) in browsers {
        assert_eq!(browser.get("/me").await.is(200).json()["user"]["email"], email_of(name));
    }
}

/// FIX-02: and when the cookie that all of them hold names a live session, that session ends once.
#[tokio::test]
async fn parallel_logins_that_hold_one_live_session_replace_it() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut runs = JoinSet::new();
    for _ in 0..10 {
        let browser = ana.copy();
        runs.spawn(async move {
            browser.log_in("ana").await.is(200);
            browser
        });
    }
    let browsers = runs.join_all().await;
    for browser in &browsers {
        browser.get("/me").await.is(200);
    }
    ana.get("/me").await.is_refused(401, "session_replaced");
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions WHERE ended_at IS NULL"), 10);
}

/// FIX-03: one browser, one session, whosever the other was.
#[tokio::test]
async fn a_login_over_somebody_elses_session_ends_that_session() {
    let stage = Stage::new().await;
    let ben_before = stage.sign_up("ben").await;
    ben_before.poke("/logout").await.is(204);
    let browser = stage.sign_up("ana").await;
    let anas = browser.copy();
    browser.log_in("ben").await.is(200);
    anas.get("/me").await.is_refused(401, "session_replaced");
    let sessions = browser.get("/me/sessions").await.is(200).json();
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1));
    assert_eq!(browser.get("/me").await.is(200).json()["user"]["email"], email_of("ben"));
}

/// FIX-03
#[tokio::test]
async fn a_sign_up_over_a_live_session_ends_that_session() {
    let stage = Stage::new().await;
    let browser = stage.sign_up("ana").await;
    let anas = browser.copy();
    browser.post("/signup", json!({"email": email_of("ben"), "password": password_of("ben")})).await.is(201);
    anas.get("/me").await.is_refused(401, "session_replaced");
}

#[tokio::test]
async fn a_refused_sign_up_leaves_the_held_session_alone() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.post("/signup", json!({"email": email_of("ana"), "password": OTHER})).await.is_refused(409, "email_taken");
    ana.post("/signup", json!({"email": "x", "password": OTHER})).await.is_refused(422, "validation_failed");
    ana.get("/me").await.is(200);
}

#[tokio::test]
async fn other_browsers_keep_their_sessions_when_one_signs_in_again() {
    let stage = Stage::new().await;
    let (phone, laptop) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    laptop.log_in("ana").await.is(200);
    phone.get("/me").await.is(200);
}

// ---- signing out

#[tokio::test]
async fn a_logout_clears_the_cookie_and_has_no_body() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let answer = ana.poke("/logout").await.is(204);
    assert!(answer.clears_session() && answer.body.is_empty());
    assert_eq!(ana.token(), None);
}

/// REV-01: a copy of the cookie dies with the session, on every route and for good.
#[tokio::test]
async fn after_a_logout_a_copy_of_the_cookie_is_worthless() {
    let mut stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let copy = admin.copy();
    copy.get("/me").await.is(200);
    admin.poke("/logout").await.is(204);
    for path in ["/me", "/check", "/me/sessions", "/me/activity", "/admin/users", "/admin/events"] {
        copy.get(path).await.is_refused(401, "session_logged_out");
    }
    copy.patch("/me", json!({"name": "Eve"})).await.is_refused(401, "session_logged_out");
    stage.crash().await;
    let token = copy.token().expect("a token");
    with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={token}")]).await.is_refused(401, "session_logged_out");
}

/// REV-01: whatever the cookie is worth, a logout is harmless; and a dead one clears nothing, since the browser may hold a
/// newer one by then.
#[tokio::test]
async fn a_logout_without_a_live_session_succeeds_and_clears_nothing() {
    let stage = Stage::with(&[("CLEAR_SITE_DATA", "cookies")]).await;
    let ana = stage.sign_up("ana").await;
    let copy = ana.copy();
    ana.poke("/logout").await.is(204);
    let unknown = stage.anon();
    unknown.set_token(Some(&"A".repeat(43)));
    let garbage = stage.anon();
    garbage.set_token(Some("garbage"));
    for browser in [copy, stage.anon(), unknown, garbage] {
        let answer = browser.poke("/logout").await.is(204);
        assert_eq!(answer.set_cookies(), Vec::<String>::new());
        assert_eq!(answer.header("clear-site-data"), None);
    }
}

/// REV-01: a session that its clock has ended is dead already: the logout changes neither that nor the reason.
#[tokio::test]
async fn a_logout_of_a_timed_out_session_clears_nothing() {
    for (wait, code) in [(IDLE_TIMEOUT, "session_idle_timeout"), (ABSOLUTE_TIMEOUT, "session_expired")] {
        let stage = Stage::with(&[("IDLE_TIMEOUT", if code == "session_expired" { "none" } else { "30m" })]).await;
        let ana = stage.sign_up("ana").await;
        stage.clock.advance(wait + TICK);
        assert!(!ana.poke("/logout").await.is(204).clears_session());
        ana.get("/me").await.is_refused(401, code);
    }
}

#[tokio::test]
async fn a_401_never_clears_the_cookie() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let copy = ana.copy();
    ana.poke("/logout").await.is(204);
    for path in ["/me", "/check", "/me/sessions", "/admin/users"] {
        assert_eq!(copy.get(path).await.is(401).set_cookies(), Vec::<String>::new());
    }
    assert_eq!(copy.delete("/me/sessions").await.is(401).set_cookies(), Vec::<String>::new());
}

/// REV-01: the holder of a rotated-away token wanted out, so out they are.
#[tokio::test]
async fn a_rotated_away_token_logs_its_session_out() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let old = ana.copy();
    ana.change_password(&password_of("ana"), OTHER).await.is(200);
    ana.get("/me").await.is(200);
    old.poke("/logout").await.is(204);
    ana.get("/me").await.is_refused(401, "session_logged_out");
}

#[tokio::test]
async fn a_logout_leaves_the_other_devices_alone() {
    let stage = Stage::new().await;
    let (phone, laptop) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    phone.poke("/logout").await.is(204);
    laptop.get("/me").await.is(200);
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'signed_out'"), 1);
}

#[tokio::test]
async fn a_logout_says_what_browsers_are_to_forget_only_if_the_operator_wants_it() {
    let stage = Stage::new().await;
    assert_eq!(stage.sign_up("ana").await.poke("/logout").await.is(204).header("clear-site-data"), None);
    let stage = Stage::with(&[("CLEAR_SITE_DATA", "storage")]).await;
    assert_eq!(stage.sign_up("ana").await.poke("/logout").await.is(204).header("clear-site-data"), Some("\"storage\""));
}

/// Ending one's own current session is a logout by another name.
#[tokio::test]
async fn ending_the_current_session_answers_as_a_logout_does() {
    let stage = Stage::with(&[("CLEAR_SITE_DATA", "storage")]).await;
    let ana = stage.sign_up("ana").await;
    let copy = ana.copy();
    let id = ana.get("/me").await.is(200).json()["session"]["id"].as_str().expect("an id").to_string();
    let answer = ana.delete(&format!("/me/sessions/{id}")).await.is(204);
    assert!(answer.clears_session());
    assert_eq!(answer.header("clear-site-data"), Some("\"storage\""));
    copy.get("/me").await.is_refused(401, "session_logged_out");
}

#[tokio::test]
async fn parallel_logouts_of_one_session_all_succeed_and_one_ends_it() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut runs = JoinSet::new();
    for _ in 0..10 {
        let copy = ana.copy();
        runs.spawn(async move { copy.poke("/logout").await.is(204) });
    }
    let answers = runs.join_all().await;
    assert!(answers.iter().any(Answer::clears_session));
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'signed_out'"), 1);
    ana.get("/me").await.is_refused(401, "session_logged_out");
}

// ---- hashes

const STRONGER: &[(&str, &str)] = &[("ARGON2_MEMORY_KIB", "16"), ("ARGON2_ITERATIONS", "2")];
const OF_THE_STRONGER: &str = "SELECT count(*) FROM users WHERE password_hash LIKE '$argon2id$v=19$m=16,t=2,p=1$%'";

#[tokio::test]
async fn a_weaker_hash_is_upgraded_at_the_next_sign_in() {
    let mut stage = Stage::new().await;
    stage.sign_up("ana").await;
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE password_hash LIKE '$argon2id$v=19$m=8,t=1,p=1$%'"), 1);
    stage.restart_with(STRONGER).await;
    log_in_as(&stage, &email_of("ana"), "not this one").await.is(401);
    assert_eq!(stage.count(OF_THE_STRONGER), 0);
    stage.sign_in("ana").await;
    assert_eq!(stage.count(OF_THE_STRONGER), 1);
    stage.sign_in("ana").await;
}

#[tokio::test]
async fn an_upgrade_of_the_hash_ends_no_session() {
    let mut stage = Stage::new().await;
    let token = stage.sign_up("ana").await.token().expect("a token");
    stage.restart_with(STRONGER).await;
    stage.sign_in("ana").await;
    with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={token}")]).await.is(200);
}

#[tokio::test]
async fn a_stronger_hash_is_not_made_weaker() {
    let mut stage = Stage::with(STRONGER).await;
    stage.sign_up("ana").await;
    stage.restart_with(&[]).await;
    stage.sign_in("ana").await;
    assert_eq!(stage.count(OF_THE_STRONGER), 1);
}

#[tokio::test]
async fn two_accounts_with_one_password_have_different_hashes() {
    let stage = Stage::new().await;
    sign_up_as(&stage, "a@example.com", "a good password").await.is(201);
    sign_up_as(&stage, "b@example.com", "a good password").await.is(201);
    assert_eq!(stage.count("SELECT count(DISTINCT password_hash) FROM users"), 2);
}

// ---- sign-ins that overlap a change

/// Whichever of the two comes first, the old password leaves no live session behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_that_overlaps_a_password_change_opens_nothing_that_outlives_it() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut current = password_of("ana");
    for round in 0..20 {
        let new = format!("password of round {round}");
        let (thief, old) = (stage.anon(), current.clone());
        let stale = {
            let (thief, old) = (thief.clone(), old.clone());
            tokio::spawn(async move { thief.post("/login", json!({"email": email_of("ana"), "password": old})).await })
        };
        ana.change_password(&old, &new).await.is(200);
        match stale.await.expect("no panic").status.as_u16() {
            200 => thief.get("/me").await.is_refused(401, "session_revoked"),
            401 => thief.get("/me").await.is_refused(401, "unauthenticated"),
            other => panic!("{other}"),
        };
        assert_eq!(ana.get("/me/sessions").await.is(200).json()["sessions"].as_array().map(Vec::len), Some(1));
        current = new;
    }
}

/// The password was checked for whoever had the address then.
#[tokio::test]
async fn a_sign_in_does_not_follow_an_address_to_another_account() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.sign_up("ben").await;
    // It moves when the guess is counted: after the look at the account, before the password is checked.
    let moves = "UPDATE users SET email_canonical = 'elsewhere@example.com' WHERE email = 'ana@example.com';
                 UPDATE users SET email_canonical = 'ana@example.com' WHERE email = 'ben@example.com';";
    if ON_POSTGRES {
        stage.execute(&format!("CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {moves} RETURN NULL; END $$"));
        stage.execute("CREATE TRIGGER moves AFTER INSERT ON guesses FOR EACH ROW EXECUTE FUNCTION moves()");
    } else {
        stage.execute(&format!("CREATE TRIGGER moves AFTER INSERT ON guesses BEGIN {moves} END"));
    }
    stage.anon().log_in("ana").await.is_refused(401, "invalid_credentials");
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'ben@example.com' AND email_canonical = 'ana@example.com'"), 1, "it has moved");
}

/// REV-05
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_that_overlaps_the_disabling_of_the_account_opens_nothing_that_outlives_it() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let id = stage.sign_up("ana").await.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    for _ in 0..20 {
        let browser = stage.anon();
        let overlapping = {
            let browser = browser.clone();
            tokio::spawn(async move { browser.log_in("ana").await })
        };
        admin.poke(&format!("/admin/users/{id}/disable")).await.is(200);
        let answer = overlapping.await.expect("no panic");
        browser.get("/me").await.is_refused(401, if answer.status == 200 { "session_revoked" } else { "unauthenticated" });
        admin.poke(&format!("/admin/users/{id}/enable")).await.is(200);
        assert_eq!(browser.get("/me").await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_that_overlaps_a_role_change_opens_nothing_that_outlives_it() {
    let stage = Stage::with(&[("ROLES", "user,clerk,admin")]).await;
    let admin = stage.admin("admin").await;
    let id = stage.sign_up("ana").await.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    for role in ["clerk", "user"].repeat(10) {
        let browser = stage.anon();
        let overlapping = {
            let browser = browser.clone();
            tokio::spawn(async move { browser.log_in("ana").await })
        };
        admin.put(&format!("/admin/users/{id}/role"), json!({"role": role})).await.is(200);
        // Whoever got in has the new role, or came in before the change and is out again.
        overlapping.await.expect("no panic");
        let answer = browser.get("/me").await;
        assert!(answer.status == 401 || answer.json()["user"]["role"] == role, "{}", answer.status);
        let check = browser.get("/check").await;
        assert!(check.status == 401 || check.header("x-holdfast-role") == Some(role), "{}", check.status);
    }
}

// ---- what is kept and what is shown

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the bytes are anywhere in the database.
fn is_stored(stage: &Stage, bytes: &[u8]) -> bool {
    stage.database.holds(bytes)
}

/// DB-01: a stolen database signs nobody in.
#[tokio::test]
async fn no_token_is_in_the_database_in_any_form() {
    let mut stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let mut issued: Vec<String> = vec![ana.token().expect("a token"), ana.device_token().expect("a device")];
    ana.change_password(&password_of("ana"), OTHER).await.is(200);
    issued.extend(ana.token());
    ana.poke("/logout").await.is(204);
    let ben = stage.sign_up("ben").await;
    ben.get("/me").await.is(200);
    issued.extend(ben.token());
    stage.restart().await;

    // The search finds what is there.
    assert!(is_stored(&stage, email_of("ana").as_bytes()));
    let bytes = URL_SAFE_NO_PAD.decode(&issued[0]).expect("base64url");
    assert!(is_stored(&stage, &Sha256::digest(&bytes)));
    for token in &issued {
        assert!(!stage.holds_token(token));
    }
    assert!(!is_stored(&stage, password_of("ana").as_bytes()) && !is_stored(&stage, OTHER.as_bytes()));
}

/// DB-01: what is stored is no token.
#[tokio::test]
async fn a_stored_hash_opens_nothing() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let hash = Sha256::digest(URL_SAFE_NO_PAD.decode(ana.token().expect("a token")).expect("base64url"));
    for form in [URL_SAFE_NO_PAD.encode(hash), STANDARD.encode(hash), hex(&hash)] {
        with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={form}")]).await.is_refused(401, "unauthenticated");
    }
}

/// IDOR-03: no body holds a secret, or what a secret is stored as.
#[tokio::test]
async fn no_body_holds_a_token_or_a_hash() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let ana = stage.sign_up("ana").await;
    let signed_in = ana.log_in("ana").await.is(200);
    let changed = ana.change_password(&password_of("ana"), OTHER).await.is(200);
    let failed = stage.anon().log_in("ana").await.is(401);
    let id = changed.json()["user"]["id"].as_str().expect("an id").to_string();

    let mut answers = vec![signed_in, changed, failed];
    for path in ["/me", "/me/sessions", "/me/activity", "/check", "/openapi.json"] {
        answers.push(ana.get(path).await);
    }
    for path in ["/admin/users", "/admin/events", &format!("/admin/users/{id}"), &format!("/admin/users/{id}/sessions"), "/me/sessions"] {
        answers.push(admin.get(path).await.is(200));
    }
    let mut secrets: Vec<String> = Vec::new();
    for token in [ana.token(), ana.device_token(), admin.token(), admin.device_token()].into_iter().flatten() {
        let bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64url");
        let hash = Sha256::digest(&bytes);
        secrets.extend([token, hex(&bytes), hex(&hash), STANDARD_NO_PAD.encode(&bytes), STANDARD_NO_PAD.encode(hash), URL_SAFE_NO_PAD.encode(hash)]);
    }
    secrets.extend(["$argon2".to_string(), password_of("ana"), OTHER.to_string()]);
    for answer in &answers {
        let body = String::from_utf8(answer.body.clone()).expect("UTF-8");
        for secret in &secrets {
            assert!(!body.contains(secret.as_str()), "{body}");
        }
    }
}

/// IDOR-03: knowing the public ids gives nothing.
#[tokio::test]
async fn no_id_that_is_shown_is_a_cookie() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let body = ana.get("/me").await.is(200).json();
    let event = ana.get("/me/activity").await.is(200).json()["events"][0]["id"].clone();
    for id in [&body["session"]["id"], &body["user"]["id"], &event] {
        let id = id.as_str().expect("an id");
        let bytes = uuid::Uuid::parse_str(id).expect("a UUID");
        for form in [id.to_string(), URL_SAFE_NO_PAD.encode(bytes.as_bytes())] {
            with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={form}")]).await.is_refused(401, "unauthenticated");
        }
    }
}

/// IDOR-03
#[tokio::test]
async fn a_list_of_sessions_holds_ones_own_only() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let ids = |body: Value| -> BTreeSet<String> { body["sessions"].as_array().expect("a list").iter().map(|session| session["id"].to_string()).collect() };
    let (anas, bens) = (ids(ana.get("/me/sessions").await.is(200).json()), ids(ben.get("/me/sessions").await.is(200).json()));
    assert!(anas.len() == 1 && bens.len() == 1 && anas.is_disjoint(&bens));
}

/// The cookie that names the browser authenticates nobody.
#[tokio::test]
async fn the_device_cookie_is_no_session() {
    let stage = Stage::new().await;
    let device = stage.sign_up("ana").await.device_token().expect("a device");
    with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast-device={device}")]).await.is_refused(401, "unauthenticated");
    with_cookies(&stage, Method::GET, "/me", &[&format!("holdfast={device}")]).await.is_refused(401, "unauthenticated");
}
