//! The document that the server serves is the contract's list of routes, and every one of them keeps the rules that all
//! share: who is let in, which methods there are, what every answer carries. And where in the source which tables are written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::stage::{Actor, Answer, Stage};

/// Who may call a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    Nobody,
    Session,
    Admin,
}
use Needs::{Admin, Nobody, Session};

/// The routes of the contract's sections 3 to 6. Of those that need nobody the list may only shrink.
pub const CONTRACT: [(&str, &str, Needs); 30] = [
    ("POST", "/signup", Nobody),
    ("POST", "/login", Nobody),
    ("POST", "/logout", Nobody),
    ("POST", "/email/verify", Nobody),
    ("POST", "/email/verification", Nobody),
    ("POST", "/password/forgot", Nobody),
    ("POST", "/password/reset", Nobody),
    ("POST", "/email/change", Nobody),
    ("POST", "/email/undo", Nobody),
    ("GET", "/health/live", Nobody),
    ("GET", "/health/ready", Nobody),
    ("GET", "/openapi.json", Nobody),
    ("GET", "/me", Session),
    ("PATCH", "/me", Session),
    ("PUT", "/me/password", Session),
    ("PUT", "/me/email", Session),
    ("GET", "/me/sessions", Session),
    ("DELETE", "/me/sessions", Session),
    ("DELETE", "/me/sessions/{id}", Session),
    ("GET", "/me/activity", Session),
    ("GET", "/check", Session),
    ("GET", "/admin/users", Admin),
    ("GET", "/admin/users/{id}", Admin),
    ("PUT", "/admin/users/{id}/role", Admin),
    ("POST", "/admin/users/{id}/disable", Admin),
    ("POST", "/admin/users/{id}/enable", Admin),
    ("GET", "/admin/users/{id}/sessions", Admin),
    ("DELETE", "/admin/users/{id}/sessions", Admin),
    ("DELETE", "/admin/users/{id}/sessions/{session_id}", Admin),
    ("GET", "/admin/events", Admin),
];

/// The pages that links of letters lead to: HTML, forms, and whatever parameters a link tracker adds.
pub const PAGES: [(&str, &str); 11] = [
    ("GET", "/security/session/{token}"),
    ("POST", "/security/session/{token}"),
    ("POST", "/security/sessions/{token}"),
    ("GET", "/security/verify/{token}"),
    ("POST", "/security/verify/{token}"),
    ("GET", "/security/reset/{token}"),
    ("POST", "/security/reset/{token}"),
    ("GET", "/security/email-change/{token}"),
    ("POST", "/security/email-change/{token}"),
    ("GET", "/security/email-undo/{token}"),
    ("POST", "/security/email-undo/{token}"),
];

/// The document describes itself too.
const DOCUMENT: &str = "/openapi.json";

/// A UUIDv7 that names nothing.
pub const NOBODYS_ID: &str = "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11";

/// The path of a route, with ids that name nothing.
pub fn filled(path: &str) -> String {
    filled_with(path, NOBODYS_ID)
}

fn filled_with(path: &str, id: &str) -> String {
    path.replace("{id}", id).replace("{session_id}", id)
}

fn method(name: &str) -> Method {
    name.parse().expect("a method")
}

/// A request without a body.
pub async fn bare(actor: &Actor, name: &str, path: &str) -> Answer {
    actor.send(actor.request(method(name), path), Body::empty()).await
}

async fn served_document(stage: &Stage) -> Value {
    stage.anon().get(DOCUMENT).await.is(200).json()
}

/// Every operation that the document lists: method, path, and the operation itself.
async fn operations(stage: &Stage) -> Vec<(String, String, Value)> {
    const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
    let document = served_document(stage).await;
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (name, operation) in item.as_object().expect("a path item").iter().filter(|(name, _)| METHODS.contains(&name.as_str())) {
            all.push((name.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    all
}

fn needs(name: &str, path: &str) -> Needs {
    if PAGES.contains(&(name, path)) {
        return Nobody;
    }
    CONTRACT.iter().find(|(m, p, _)| (*m, *p) == (name, path)).map_or(Session, |(_, _, needs)| *needs)
}

/// The methods of each path of the contract, the document's own too.
fn methods_by_path() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (name, path) in CONTRACT.into_iter().map(|(name, path, _)| (name, path)).chain(PAGES) {
        all.entry(path).or_default().insert(name);
    }
    all
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_needs_no_session() {
    let stage = Stage::new().await;
    let answer = stage.anon().get(DOCUMENT).await.is(200);
    assert!(answer.header("content-type").expect("a type").starts_with("application/json"));
    let document = answer.json();
    assert!(document["openapi"].as_str().expect("a version").starts_with("3.1."), "{}", document["openapi"]);
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
}

#[tokio::test]
async fn the_document_lists_every_route_of_the_contract_and_no_other() {
    let stage = Stage::new().await;
    let told: BTreeSet<(String, String)> = operations(&stage).await.into_iter().map(|(name, path, _)| (name, path)).collect();
    let routes = CONTRACT.iter().map(|(name, path, _)| (*name, *path)).chain(PAGES);
    let promised: BTreeSet<(String, String)> = routes.map(|(name, path)| (name.to_string(), path.to_string())).collect();
    assert_eq!(told, promised);
}

#[tokio::test]
async fn the_document_tells_which_operations_need_a_session_and_what_refuses_them() {
    let stage = Stage::new().await;
    for (name, path, operation) in operations(&stage).await {
        let secured = operation["security"].as_array().is_some_and(|all| all.iter().any(|one| one.get("session").is_some()));
        assert_eq!(secured, needs(&name, &path) != Nobody, "{name} {path}");
        if secured {
            assert!(operation["responses"]["401"].is_object(), "{name} {path}");
        }
        if needs(&name, &path) == Admin {
            assert!(operation["responses"]["403"].is_object(), "{name} {path}");
        }
    }
}

#[tokio::test]
async fn every_operation_of_the_document_has_an_id_of_its_own() {
    let stage = Stage::new().await;
    let all = operations(&stage).await;
    let ids: BTreeSet<&str> = all.iter().map(|(_, _, operation)| operation["operationId"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), all.len());
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    let stage = Stage::new().await;
    let document = served_document(&stage).await;
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().expect("an end")) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn every_operation_but_the_open_ones_refuses_strangers() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    for (name, path, _) in operations(&stage).await {
        if needs(&name, &path) != Nobody {
            let answer = bare(&anon, &name, &filled(&path)).await.is_refused(401, "unauthenticated");
            assert!(answer.set_cookies().is_empty(), "{name} {path}");
        }
    }
}

#[tokio::test]
async fn every_operation_but_the_open_ones_refuses_an_invented_token() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    anon.set_token(Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
    for (name, path, needs) in CONTRACT {
        if needs != Nobody {
            bare(&anon, name, &filled(path)).await.is_refused(401, "unauthenticated");
        }
    }
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 0);
}

/// Who is asking comes before body, query and what is asked for: a user learns nothing of what there is.
#[tokio::test]
async fn every_admin_operation_refuses_plain_users_whatever_they_ask_for() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let own = ana.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();
    for (name, path, _) in operations(&stage).await.into_iter().filter(|(name, path, _)| needs(name, path) == Admin) {
        for id in [NOBODYS_ID, "nonsense", own.as_str()] {
            let path = filled_with(&path, id);
            bare(&ana, &name, &path).await.is_refused(403, "forbidden");
            bare(&ana, &name, &format!("{path}?surprise=1")).await.is_refused(403, "forbidden");
            ana.json(method(&name), &path, json!({"role": "admin", "surprise": 1})).await.is_refused(403, "forbidden");
        }
    }
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["role"], "user");
}

#[tokio::test]
async fn every_route_refuses_other_methods_and_lists_its_own() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    for (path, own) in methods_by_path() {
        for wrong in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
            if own.contains(wrong) || (wrong == "HEAD" && own.contains("GET")) {
                continue;
            }
            let answer = bare(&anon, wrong, &filled(path)).await.is(405);
            match wrong {
                // HTTP/2 takes a body for a breach of the protocol there.
                "HEAD" => assert!(answer.body.is_empty(), "{path}"),
                _ => assert_eq!(answer.code(), "method_not_allowed", "{wrong} {path}"),
            }
            let allowed: BTreeSet<&str> = answer.header("allow").expect("Allow").split(',').map(str::trim).filter(|name| *name != "HEAD").collect();
            assert_eq!(allowed, own, "{wrong} {path}");
        }
    }
}

/// Route and method are looked at before who is asking.
#[tokio::test]
async fn a_wrong_method_is_told_to_everybody_alike() {
    let stage = Stage::new().await;
    let (anon, ana) = (stage.anon(), stage.sign_up("ana").await);
    for actor in [&anon, &ana] {
        actor.delete("/me").await.is_refused(405, "method_not_allowed");
        actor.delete("/admin/users").await.is_refused(405, "method_not_allowed");
    }
}

#[track_caller]
fn carries_what_all_answers_carry(answer: &Answer, what: &str) {
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
    let id = answer.header("x-request-id").unwrap_or_else(|| panic!("no request id: {what}"));
    assert!((1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{what}: {id}");
}

#[tokio::test]
async fn every_answer_says_no_store_and_names_its_request() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.admin("root").await;
    for (name, path, _) in CONTRACT {
        // Some of these end the session that asks, so each has one of its own.
        let (ana, root) = (stage.sign_in("ana").await, stage.sign_in("root").await);
        for (who, actor) in [("a stranger", stage.anon()), ("a user", ana), ("an admin", root)] {
            let answer = bare(&actor, name, &filled(path)).await;
            carries_what_all_answers_carry(&answer, &format!("{name} {path} for {who}: {}", answer.status));
        }
    }
}

#[tokio::test]
async fn every_refusal_before_the_routes_says_no_store_and_names_its_request() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    carries_what_all_answers_carry(&anon.get("/nowhere").await.is_refused(404, "not_found"), "404");
    carries_what_all_answers_carry(&anon.delete("/login").await.is_refused(405, "method_not_allowed"), "405");
    let elsewhere = anon.clone().with_header("origin", "https://evil.example");
    carries_what_all_answers_carry(&elsewhere.poke("/logout").await.is_refused(403, "cross_site_request"), "403");
    let text = anon.send(anon.request(Method::POST, "/login").header("content-type", "text/plain"), Body::from("{}")).await;
    carries_what_all_answers_carry(&text.is_refused(415, "unsupported_media_type"), "415");
    let large = anon.send(anon.request(Method::POST, "/login").header("content-type", "application/json"), Body::from(vec![b' '; 64 * 1024 + 1])).await;
    carries_what_all_answers_carry(&large.is_refused(413, "body_too_large"), "413");
    let broken = anon.send(anon.request(Method::POST, "/login").header("content-type", "application/json"), Body::from("{")).await;
    carries_what_all_answers_carry(&broken.is_refused(400, "malformed_json"), "400");
}

#[tokio::test]
async fn a_well_formed_request_id_is_kept_and_another_is_replaced() {
    let stage = Stage::new().await;
    let longest = "x".repeat(64);
    for kept in ["abc", "A.b_c-9", longest.as_str()] {
        let answer = stage.anon().with_header("x-request-id", kept).get("/health/live").await;
        assert_eq!(answer.header("x-request-id"), Some(kept));
    }
    let too_long = "x".repeat(65);
    for odd in ["a b", "a/b", "a\"b", "", too_long.as_str()] {
        let answer = stage.anon().with_header("x-request-id", odd).get("/health/live").await;
        assert_ne!(answer.header("x-request-id"), Some(odd));
        carries_what_all_answers_carry(&answer, odd);
    }
}

#[tokio::test]
async fn every_route_that_the_document_describes_refuses_a_parameter_that_it_does_not_know() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    for (name, path, _) in CONTRACT.into_iter().filter(|(_, path, _)| !path.starts_with("/health/") && *path != DOCUMENT) {
        let answer = admin.json(method(name), &format!("{}?surprise=1", filled(path)), json!({})).await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), ["surprise:unknown"], "{name} {path}");
    }
    admin.get("/me").await.is(200);
}

#[tokio::test]
async fn health_and_the_document_refuse_a_parameter_that_they_do_not_know() {
    let stage = Stage::new().await;
    for path in ["/health/live", "/health/ready", DOCUMENT] {
        let answer = stage.anon().get(&format!("{path}?surprise=1")).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (422, "validation_failed".into()), "{path}");
    }
}

#[tokio::test]
async fn an_id_that_is_no_uuid_names_nothing_on_any_route() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    for (name, path, _) in CONTRACT.into_iter().filter(|(_, path, _)| path.contains('{')) {
        for id in ["nonsense", "1", "%00", "%ff", "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a1g", "'%20OR%201=1", "..%2f..%2fme"] {
            let path = filled_with(path, id);
            let answer = match name {
                "PUT" => admin.put(&path, json!({"role": "user"})).await,
                _ => bare(&admin, name, &path).await,
            };
            assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found".into()), "{name} {path}");
        }
    }
}

/// The contract's order: query and body come before what is asked for.
#[tokio::test]
async fn a_wrong_query_is_told_before_an_id_that_names_nothing() {
    let stage = Stage::new().await;
    let admin = stage.admin("root").await;
    for (name, path, _) in CONTRACT.into_iter().filter(|(_, path, _)| path.contains('{')) {
        for id in [NOBODYS_ID, "nonsense"] {
            let path = format!("{}?surprise=1", filled_with(path, id));
            let answer = match name {
                "PUT" => admin.put(&path, json!({"role": "user"})).await,
                _ => bare(&admin, name, &path).await,
            };
            assert_eq!((answer.status.as_u16(), answer.code()), (422, "validation_failed".into()), "{name} {path}");
        }
    }
}

fn variants(path: &str) -> Vec<String> {
    let encoded_first = format!("/%{:02x}{}", path.as_bytes()[1], &path[2..]);
    vec![
        format!("/{path}"),
        format!("/.{path}"),
        format!("/x/..{path}"),
        format!("{path}/"),
        format!("{path}/."),
        format!("{path}."),
        format!("{path}%20"),
        format!("{path}%00"),
        format!("{path};x"),
        format!("{path}.css"),
        format!("{path}/x.css"),
        format!("{path}%2fx.css"),
        format!("{path}%3fx.css"),
        format!("/%2f{}", &path[1..]),
        format!("/v1{path}"),
        format!("/static/..{path}"),
        path.replacen('/', "//", 2),
        path.to_uppercase().replace("%2F", "%2f"),
        encoded_first,
    ]
}

/// STEP-04, ADM-05: no other spelling of a route, by any method, does what the route does.
#[tokio::test]
async fn no_other_spelling_of_a_route_lets_a_stranger_in() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    for (_, path, _) in CONTRACT.into_iter().filter(|(_, _, needs)| *needs != Nobody) {
        for variant in variants(&filled(path)) {
            for name in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
                let status = bare(&anon, name, &variant).await.status.as_u16();
                assert!([401, 404, 405].contains(&status), "{name} {variant}: {status}");
            }
        }
    }
}

/// ADM-05.
#[tokio::test]
async fn no_other_spelling_of_an_admin_route_lets_a_plain_user_in() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let own = ana.get("/me").await.json()["user"]["id"].as_str().expect("an id").to_string();
    for (_, path, _) in CONTRACT.into_iter().filter(|(_, _, needs)| *needs == Admin) {
        for variant in variants(&filled_with(path, &own)) {
            for name in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
                let status = ana.json(method(name), &variant, json!({"role": "admin"})).await.status.as_u16();
                assert!([403, 404, 405].contains(&status), "{name} {variant}: {status}");
            }
        }
    }
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["role"], "user");
    ben.get("/me").await.is(200);
}

/// REDIR-01: there is no answer that sends a browser anywhere, so nobody can choose where.
#[tokio::test]
async fn no_route_sends_anybody_elsewhere() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for (name, path, _) in CONTRACT.into_iter().chain(PAGES.map(|(name, path)| (name, path, Nobody))) {
        // Some of these end the session that asks.
        for actor in [stage.anon(), stage.sign_in("ana").await] {
            for target in ["//evil.test", "/%5cevil.test", "https:evil.test", "javascript:alert(1)"] {
                let led = actor.clone().with_header("referer", "https://evil.test/").with_header("x-forwarded-proto", "http");
                for query in [format!("return_to={target}"), format!("next={target}"), format!("RelayState={target}&callback=evil")] {
                    let answer = bare(&led, name, &format!("{}?{query}", filled(path).replace("{token}", "nonsense"))).await;
                    assert!(!answer.status.is_redirection() && answer.header("location").is_none(), "{name} {path}: {}", answer.status);
                    assert!(answer.header("refresh").is_none() && !answer.text().contains("evil"), "{name} {path}");
                }
            }
        }
    }
}

/// CACHE-02: what looks like a file holds nothing personal.
#[tokio::test]
async fn a_route_that_looks_like_a_file_is_not_found_with_a_live_session() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for path in ["/me/x.css", "/me.js", "/me;a.png", "/me%2fx.css", "/me%3fx.css", "/me/sessions/..%2fstatic/a.js", "/me/", "/ME"] {
        let answer = ana.get(path).await.is_refused(404, "not_found");
        assert!(!String::from_utf8_lossy(&answer.body).contains("ana@example.com"), "{path}");
    }
}

/// STEP-04: a header cannot turn one method into another.
#[tokio::test]
async fn a_method_override_is_not_heard() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for header in ["x-http-method-override", "x-method-override", "x-http-method"] {
        ana.clone().with_header(header, "DELETE").poke("/me/sessions").await.is_refused(405, "method_not_allowed");
        ana.clone().with_header(header, "DELETE").get("/me/sessions").await.is(200);
    }
    let phone = stage.sign_in("ana").await;
    ana.clone().with_header("x-http-method-override", "DELETE").get("/me/sessions").await.is(200);
    phone.get("/me").await.is(200);
}

/// LOG-02: no other place than the cookie is read for a token.
#[tokio::test]
async fn a_token_outside_the_cookie_opens_nothing() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ana.token().expect("a token");
    for header in ["authorization", "x-session-token", "x-holdfast-session", "x-auth-token"] {
        stage.anon().with_header(header, &token).get("/me").await.is_refused(401, "unauthenticated");
        stage.anon().with_header(header, &format!("Bearer {token}")).get("/check").await.is_refused(401, "unauthenticated");
    }
    for parameter in ["session", "token", "access_token", "holdfast", "__Host-holdfast"] {
        stage.anon().get(&format!("/me?{parameter}={token}")).await.is_refused(401, "unauthenticated");
        stage.anon().get(&format!("/check?{parameter}={token}")).await.is_refused(401, "unauthenticated");
    }
}

#[tokio::test]
async fn all_routes_lie_under_the_base_path_and_nowhere_else() {
    let stage = Stage::with(&[("BASE_PATH", "/auth")]).await;
    let anon = stage.anon();
    for (name, path, needs) in CONTRACT {
        let status = bare(&anon, name, &format!("/auth{}", filled(path))).await.status.as_u16();
        match needs {
            Nobody => assert!(![401, 403, 404, 405].contains(&status), "{name} {path}: {status}"),
            _ => assert_eq!(status, 401, "{name} {path}"),
        }
        let outside = bare(&anon, name, &filled(path)).await.is_refused(404, "not_found");
        carries_what_all_answers_carry(&outside, path);
    }
    carries_what_all_answers_carry(&anon.get("/auth/nowhere").await.is_refused(404, "not_found"), "nowhere");
    let wrong = anon.delete("/auth/login").await.is_refused(405, "method_not_allowed");
    assert!(wrong.header("allow").is_some());
    let document = anon.get("/auth/openapi.json").await.is(200).json();
    assert_eq!(document["servers"][0]["url"], "http://localhost:8300/auth");
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file: its path below `src/`, and its text.
fn sources() -> Vec<(String, String)> {
    let (mut folders, mut all) = (vec![source()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(source()).expect("below src").display().to_string();
                all.push((name, std::fs::read_to_string(&path).expect("a text")));
            }
        }
    }
    all
}

/// The document is made from the routes: one that was mounted past it would be checked by none of these sentences. ADM-02.
#[test]
fn every_route_is_mounted_in_the_document() {
    let all = sources();
    let (_, router) = all.iter().find(|(name, _)| name == "router.rs").expect("the routes");
    let mounted = router.lines().map(str::trim).filter(|line| line.starts_with('.'));
    let others: Vec<&str> = mounted
        .filter(|line| {
            !["(open(routes!(", "(page(routes!(", "(signed_in(routes!(", "(admin(routes!("].iter().any(|way| line.starts_with(&format!(".routes{way}")))
        })
        .collect();
    assert!(others.is_empty(), "{others:?}");
    for way in [".route(", ".route_service(", ".nest_service(", ".fallback_service(", ".merge("] {
        let elsewhere: Vec<&str> =
            all.iter().filter(|(_, text)| text.split("#[cfg(test)]").next().is_some_and(|text| text.contains(way))).map(|(name, _)| name.as_str()).collect();
        assert!(elsewhere.is_empty(), "{way} in {elsewhere:?}");
    }
}

/// What is no setting has no effect: no variable switches something on that is told nowhere. ASVS 13.4.2.
#[test]
fn only_the_settings_are_read_from_the_environment() {
    let readers: Vec<String> = sources().into_iter().filter(|(_, text)| text.contains("env::var")).map(|(name, _)| name).collect();
    assert_eq!(readers, ["config.rs"]);
}

/// A revocation that did not go through the one place that also tells memory would not count.
#[test]
fn the_sessions_table_is_written_by_its_own_module_and_three_files_only() {
    let allowed = ["device_sessions/ending.rs", "device_sessions/opening.rs", "session_security.rs", "background.rs", "purge.rs"];
    let mut writers = BTreeSet::new();
    for (name, text) in sources() {
        let words = text.split_whitespace().map(|word| word.trim_start_matches('"')).collect::<Vec<_>>().join(" ");
        for deed in ["INSERT INTO", "UPDATE", "DELETE FROM", "REPLACE INTO"] {
            if words.contains(&format!("{deed} device_sessions")) {
                writers.insert(name.clone());
            }
        }
    }
    assert!(writers.iter().all(|name| allowed.contains(&name.as_str())), "{writers:?}");
    assert!(writers.contains("device_sessions/ending.rs"), "the search finds nothing: {writers:?}");
}

/// Features meet the seam, never a database: another store is one more file under `src/db/`.
#[test]
fn only_the_seam_and_what_names_the_setting_know_which_database_it_is() {
    let may = |name: &str| name == "db.rs" || name.starts_with("db/") || name.starts_with("config") || name == "lib.rs" || name.starts_with("command");
    let all = sources();
    assert!(all.len() > 20);
    for (name, text) in all.iter().filter(|(name, _)| !may(name)) {
        let text = text.to_lowercase();
        assert!(!text.contains("sqlite") && !text.contains("postgres"), "{name}");
    }
}
