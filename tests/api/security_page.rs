//! The pages that links lead to: no script, one button, and nothing happens by looking. "This was not me" ends the right session,
//! makes the alarm loud again, and takes the password from whoever knew it.

use axum::body::Body;
use axum::http::Method;
use serde_json::json;

use crate::every_route::bare;
use crate::stage::{Actor, Stage, TICK, actions, email_of, link_of, password_of, token_of};

const ANA: &str = "ana@example.com";
const CAFE: &str = "203.0.113.7";
const NEW: &str = "quite another password";

/// A thief who knows the password has signed in, and the owner has the letter.
async fn burgled(stage: &Stage) -> (Actor, Actor, String) {
    let ana = stage.sign_up("ana").await;
    let thief = stage.anon().from_ip(CAFE);
    thief.log_in("ana").await.is(200);
    let link = link_of(&stage.letter(ANA, "New sign-in").await);
    (ana, thief, link)
}

#[tokio::test]
async fn the_page_names_the_session_and_the_button_ends_exactly_that_one() {
    let stage = Stage::new().await;
    let (ana, thief, link) = burgled(&stage).await;
    let other = stage.sign_in("ana").await;
    let page = stage.anon().get(&link).await.is(200).text();
    assert!(page.contains(CAFE) && page.contains("Chrome on macOS") && page.contains("23 November 2026"), "{page}");
    assert_eq!(actions(&page), [link.as_str()]);
    stage.anon().submit(&link, &[]).await.is(200);
    thief.get("/me").await.is_refused(401, "session_revoked");
    ana.get("/me").await.is(200);
    other.get("/me").await.is(200);
    stage.anon().log_in("ana").await.is_refused(401, "invalid_credentials");
    ana.change_password(&password_of("ana"), NEW).await.is_refused(403, "invalid_credentials");
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'session_disowned'"), 1);
}

#[tokio::test]
async fn it_goes_on_to_a_new_password_and_the_alarm_rings_again() {
    let stage = Stage::new().await;
    let (ana, thief, link) = burgled(&stage).await;
    let page = stage.anon().submit(&link, &[]).await.is(200).text();
    let forms = actions(&page);
    assert!(forms.len() == 2 && forms[0].starts_with("/security/reset/") && forms[1].starts_with("/security/sessions/"), "{forms:?}");
    let again = stage.anon().submit(&forms[0], &[("new_password", "short")]).await.is(422).text();
    assert!(again.contains("Use at least 8 characters.") && actions(&again) == [forms[0].clone()], "{again}");
    // Of two it would be a guess which one was meant. ASVS 15.3.7.
    stage.anon().submit(&forms[0], &[("new_password", NEW), ("new_password", "another one, quite good")]).await.is(422);
    let done = stage.anon().submit(&forms[0], &[("new_password", NEW)]).await.is(200).text();
    assert!(done.contains("Your password is changed"), "{done}");
    ana.get("/me").await.is_refused(401, "session_revoked");
    let back = thief.post("/login", json!({"email": ANA, "password": NEW})).await.is(200).json();
    assert_eq!((&back["session"]["new_ip"], &back["session"]["new_device"]), (&json!(true), &json!(true)));
    assert_eq!(stage.letters_to(ANA, "New sign-in").await.len(), 2);
}

/// Here the new password alone would forget nothing: the address was proved before.
#[tokio::test]
async fn the_alarm_rings_again_for_a_verified_account_too() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.post("/email/verify", json!({"token": token_of(&stage.letter(ANA, "Confirm").await)})).await.is(200);
    let thief = stage.anon().from_ip(CAFE);
    thief.log_in("ana").await.is(200);
    let page = stage.anon().submit(&link_of(&stage.letter(ANA, "New sign-in").await), &[]).await.is(200).text();
    stage.anon().submit(&actions(&page)[0], &[("new_password", NEW)]).await.is(200);
    let back = thief.post("/login", json!({"email": ANA, "password": NEW})).await.is(200).json();
    assert_eq!((&back["session"]["new_ip"], &back["session"]["new_device"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn it_offers_to_end_all_sessions() {
    let stage = Stage::new().await;
    let (ana, _, link) = burgled(&stage).await;
    let forms = actions(&stage.anon().submit(&link, &[]).await.is(200).text());
    stage.anon().submit(&forms[1], &[]).await.is(200);
    ana.get("/me").await.is_refused(401, "session_revoked");
    stage.anon().submit(&forms[1], &[]).await.is(400);
    stage.anon().submit(&forms[0], &[("new_password", NEW)]).await.is(200);
}

/// RST-06: scanners and previews may look as often as they like.
#[tokio::test]
async fn looking_at_a_link_changes_nothing() {
    let stage = Stage::new().await;
    let (ana, thief, link) = burgled(&stage).await;
    ana.post("/password/forgot", json!({"email": ANA})).await.is(202);
    let reset = link_of(&stage.letter(ANA, "Choose").await);
    let verify = link_of(&stage.letter(ANA, "Confirm").await);
    for path in [&link, &reset, &verify] {
        let events = stage.count("SELECT count(*) FROM events");
        for name in ["GET", "HEAD", "OPTIONS", "GET", "HEAD", "GET"] {
            for suffix in ["", "?utm_source=mail&utm_campaign=x&x=1"] {
                let status = bare(&stage.anon(), name, &format!("{path}{suffix}")).await.status.as_u16();
                assert_eq!(status, if name == "OPTIONS" { 405 } else { 200 }, "{name} {path}");
            }
        }
        assert_eq!(stage.count("SELECT count(*) FROM events"), events);
    }
    thief.get("/me").await.is(200);
    stage.anon().submit(&format!("{verify}?utm_source=mail"), &[("password", &password_of("ana"))]).await.is(200);
    stage.anon().submit(&format!("{reset}?utm_source=mail"), &[("new_password", NEW)]).await.is(200);
    stage.anon().submit(&format!("{link}?utm_source=mail"), &[]).await.is(200);
    thief.get("/me").await.is_refused(401, "session_revoked");
}

/// RST-06: a page does not tell whether its token is known.
#[tokio::test]
async fn spent_expired_and_unknown_links_get_the_same_page() {
    let stage = Stage::new().await;
    let (ana, _, link) = burgled(&stage).await;
    ana.submit(&link, &[]).await.is(200);
    let unknown = format!("/security/session/{}", "A".repeat(43));
    let elsewhere = stage.anon().from_ip("203.0.113.8");
    let forms = actions(&stage.anon().get(&link).await.is(400).text());
    assert!(forms.is_empty());
    let spent = stage.anon().get(&link).await.is(400).body;
    assert_eq!(stage.anon().get(&unknown).await.is(400).body, spent);
    for nonsense in ["nonsense", "%ff", "%00"] {
        assert_eq!(stage.anon().get(&format!("/security/session/{nonsense}")).await.is(400).body, spent);
    }
    stage.anon().get("/security/verify/%ff").await.is(200);
    assert_eq!(stage.anon().submit("/security/reset/%ff", &[("new_password", NEW)]).await.is(400).body, spent);
    assert_eq!(elsewhere.submit(&unknown, &[]).await.is(400).body, spent);
    assert_eq!(elsewhere.submit(&link, &[]).await.is(400).body, spent);
    for page in ["verify", "reset", "email-change", "email-undo"] {
        let hide = |token: &str, text: String| text.replace(token, "TOKEN");
        let (one, two) = ("A".repeat(43), format!("{}E", "B".repeat(42)));
        let (first, second) =
            (stage.anon().get(&format!("/security/{page}/{one}")).await.is(200), stage.anon().get(&format!("/security/{page}/{two}")).await.is(200));
        assert_eq!(hide(&one, first.text()), hide(&two, second.text()));
        assert_eq!(stage.anon().submit(&format!("/security/{page}/{one}"), &[("new_password", NEW)]).await.is(400).body, spent);
    }
}

#[tokio::test]
async fn a_link_is_good_for_seven_days_and_outlives_a_change_of_password_and_address() {
    let stage = Stage::new().await;
    let (_, thief, link) = burgled(&stage).await;
    // The thief changes everything.
    thief.change_password(&password_of("ana"), "the thief's password").await.is(200);
    thief.put("/me/email", json!({"email": "thief@evil.test", "current_password": "the thief's password"})).await.is(202);
    let change = token_of(&stage.letter("thief@evil.test", "Confirm").await);
    thief.post("/email/change", json!({"token": change})).await.is(200);
    let page = stage.anon().submit(&link, &[]).await.is(200).text();
    thief.get("/me").await.is_refused(401, "session_revoked");
    thief.post("/login", json!({"email": "thief@evil.test", "password": "the thief's password"})).await.is_refused(401, "invalid_credentials");
    assert_eq!(actions(&page).len(), 2);

    let stage = Stage::new().await;
    let (_, _, link) = burgled(&stage).await;
    stage.clock.advance(std::time::Duration::from_secs(7 * 24 * 3600));
    stage.anon().get(&link).await.is(200);
    stage.clock.advance(TICK);
    stage.anon().get(&link).await.is(400);
    stage.anon().submit(&link, &[]).await.is(400);
}

#[tokio::test]
async fn a_link_whose_session_has_ended_or_is_purged_still_voids_the_password() {
    let stage = Stage::new().await;
    let (_, thief, link) = burgled(&stage).await;
    thief.poke("/logout").await.is(204);
    stage.execute("DELETE FROM device_sessions WHERE ended_at IS NOT NULL");
    stage.anon().get(&link).await.is(200);
    stage.anon().submit(&link, &[]).await.is(200);
    stage.anon().log_in("ana").await.is_refused(401, "invalid_credentials");
}

/// RACE-01.
#[tokio::test]
async fn of_parallel_clicks_exactly_one_counts() {
    let stage = Stage::new().await;
    let (_, _, link) = burgled(&stage).await;
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (anon, link) = (stage.anon(), link.clone());
        runs.spawn(async move { anon.submit(&link, &[]).await.status.as_u16() });
    }
    let answers = runs.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(stage.count("SELECT count(*) FROM events WHERE kind = 'session_disowned'"), 1);
}

#[tokio::test]
async fn the_pages_for_addresses_do_what_the_routes_do() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let verify = link_of(&stage.letter(ANA, "Confirm").await);
    let wrong = stage.anon().submit(&verify, &[("password", "wrong password")]).await.is(403).text();
    assert!(wrong.contains("not the password") && actions(&wrong) == [verify.clone()], "{wrong}");
    ana.submit(&verify, &[("password", "")]).await.is(200);
    ana.get("/check?verified=true").await.is(204);

    ana.put("/me/email", json!({"email": "ana@example.org", "current_password": password_of("ana")})).await.is(202);
    let change = link_of(&stage.letter("ana@example.org", "Confirm").await);
    stage.anon().get(&change).await.is(200);
    ana.submit(&change, &[]).await.is(200);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["email"], "ana@example.org");
    let undo = link_of(&stage.letter(ANA, "Your account at localhost has").await);
    stage.anon().get(&undo).await.is(200);
    let page = stage.anon().submit(&undo, &[]).await.is(200).text();
    stage.anon().submit(&actions(&page)[0], &[("new_password", NEW)]).await.is(200);
    stage.anon().post("/login", json!({"email": email_of("ana"), "password": NEW})).await.is(200);
}

#[tokio::test]
async fn the_pages_carry_a_strict_policy_and_no_script() {
    let stage = Stage::with(&[("BASE_PATH", "/auth")]).await;
    for page in ["session", "verify", "reset", "email-change", "email-undo"] {
        let answer = stage.anon().get(&format!("/auth/security/{page}/{}", "A".repeat(43))).await;
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-")
                && ["form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"].iter().all(|rule| policy.contains(rule)),
            "{policy}"
        );
        assert_eq!((answer.header("referrer-policy"), answer.header("cache-control")), (Some("strict-origin"), Some("no-store")));
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!((answer.header("x-content-type-options"), answer.header("cross-origin-opener-policy")), (Some("nosniff"), Some("same-origin")));
        let html = answer.text();
        assert!(!html.contains("<script") && !html.contains(" style=") && !html.contains("href="), "{html}");
        assert!(actions(&html).iter().all(|action| action.starts_with("/auth/security/")), "{html}");
    }
    // All other answers keep the stricter ones.
    let other = stage.anon().get("/auth/health/live").await;
    assert_eq!(other.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(other.header("content-security-policy"), Some("default-src 'none'; frame-ancestors 'none'"));
}

/// A password is hidden from who looks over the shoulder, and known to the browser for what it is, so that password managers fill
/// it in; nothing stands in the way of pasting.
#[tokio::test]
async fn password_fields_are_masked_and_open_to_password_managers() {
    let stage = Stage::new().await;
    for (page, purpose) in [("verify", "current-password"), ("reset", "new-password")] {
        let html = stage.anon().get(&format!("/security/{page}/{}", "A".repeat(43))).await.is(200).text();
        let fields: Vec<&str> = html.split("<input").skip(1).map(|rest| rest.split('>').next().expect("an end")).collect();
        assert_eq!(fields.len(), 1, "{html}");
        assert!(fields[0].contains("type=\"password\"") && fields[0].contains(&format!("autocomplete=\"{purpose}\"")), "{}", fields[0]);
        assert!(!fields[0].contains("onpaste") && !fields[0].contains("readonly"), "{}", fields[0]);
    }
}

/// CSRF-01: the forms are ours alone; and only the pages take forms.
#[tokio::test]
async fn a_form_of_another_site_is_refused_and_json_is_no_form() {
    let stage = Stage::new().await;
    let (_, thief, link) = burgled(&stage).await;
    for (header, value) in [("origin", "https://evil.test"), ("origin", "null"), ("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site")] {
        stage.anon().with_header(header, value).submit(&link, &[]).await.is_refused(403, "cross_site_request");
    }
    stage.anon().post(&link, json!({})).await.is_refused(415, "unsupported_media_type");
    let form = stage.anon().request(Method::POST, "/password/reset").header("content-type", "application/x-www-form-urlencoded");
    stage.anon().send(form, Body::from("token=x&new_password=y")).await.is_refused(415, "unsupported_media_type");
    let large = stage.anon().request(Method::POST, &link).header("content-type", "application/x-www-form-urlencoded");
    stage.anon().send(large, Body::from(vec![b'a'; 64 * 1024 + 1])).await.is_refused(413, "body_too_large");
    thief.get("/me").await.is(200);
    stage.anon().with_header("origin", "http://localhost:8300").submit(&link, &[]).await.is(200);
}
