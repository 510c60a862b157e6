//! What clients send and what every answer has: bodies, queries, paths, headers, and the order in which they are judged.
//! An attacker looks for the one input that two readers read differently, that is judged too late, or that brings a `500`.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, header};
use axum::routing::get;
use futures_util::stream;
use serde_json::{Value, json};
use tower::Service;

use holdfast::middleware::Around;

use crate::stage::{Actor, Answer, CHROME, Stage, email_of, password_of};

const LIMIT: usize = 64 * 1024;
const NOBODY: &str = "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11";

async fn send(actor: &Actor, method: &Method, path: &str, media_type: &str, body: impl Into<Body>) -> Answer {
    actor.send(actor.request(method.clone(), path).header(header::CONTENT_TYPE, media_type), body.into()).await
}

async fn send_json(actor: &Actor, method: &Method, path: &str, body: impl Into<Body>) -> Answer {
    send(actor, method, path, "application/json", body).await
}

/// The routes that need a body.
fn body_routes() -> Vec<(Method, String)> {
    vec![
        (Method::POST, "/signup".into()),
        (Method::POST, "/login".into()),
        (Method::POST, "/email/verify".into()),
        (Method::POST, "/password/forgot".into()),
        (Method::POST, "/password/reset".into()),
        (Method::POST, "/email/change".into()),
        (Method::POST, "/email/undo".into()),
        (Method::PATCH, "/me".into()),
        (Method::PUT, "/me/password".into()),
        (Method::PUT, "/me/email".into()),
        (Method::PUT, format!("/admin/users/{NOBODY}/role")),
    ]
}

/// The routes, each with its methods.
fn routes() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("/signup", &["POST"]),
        ("/login", &["POST"]),
        ("/logout", &["POST"]),
        ("/me", &["GET", "PATCH"]),
        ("/me/password", &["PUT"]),
        ("/me/sessions", &["DELETE", "GET"]),
        ("/me/sessions/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11", &["DELETE"]),
        ("/check", &["GET"]),
        ("/me/activity", &["GET"]),
        ("/admin/users", &["GET"]),
        ("/admin/users/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11", &["GET"]),
        ("/admin/users/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11/role", &["PUT"]),
        ("/admin/users/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11/disable", &["POST"]),
        ("/admin/users/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11/enable", &["POST"]),
        ("/admin/users/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11/sessions", &["DELETE", "GET"]),
        ("/admin/users/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11/sessions/01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11", &["DELETE"]),
        ("/admin/events", &["GET"]),
        ("/health/live", &["GET"]),
        ("/health/ready", &["GET"]),
        ("/openapi.json", &["GET"]),
    ]
}

fn id_of(value: &Value) -> String {
    value.as_str().expect("an id").to_string()
}

// ---- bodies

/// JSON-01: what two parsers could read differently, or none can read, is malformed on every route.
#[tokio::test]
async fn json_that_is_no_json_is_malformed_everywhere() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let rows = |table: &str| stage.count(&format!("SELECT count(*) FROM {table}"));
    let before = (rows("users"), rows("events"), rows("device_sessions"));
    let deep = "[".repeat(60_000);
    let deep_field = format!("{{\"name\":{}", "[".repeat(60_000));
    let malformed: [&[u8]; 25] = [
        b"",
        b" ",
        b"{",
        b"}",
        b"{} {}",
        b"{}x",
        b"{},",
        b"{\"a\":1,\"a\":2}",
        b"{\"a\":1,\"\\u0061\":2}",
        b"{\"x\":{\"a\":1,\"a\":2}}",
        b"{\"x\":[{\"a\":1,\"a\":1}]}",
        b"\"\\ud800\"",
        b"{\"name\":\"\\ud800\"}",
        b"{\"name\":\"\\udc00\\ud800\"}",
        b"{\"\\ud800\":1}",
        b"\xff",
        b"{\"name\":\"\xff\"}",
        b"{\"name\":\"\xed\xa0\x80\"}",
        b"{\"name\":\"\xc0\xaf\"}",
        b"\xef\xbb\xbf{\"name\":\"a\"}",
        b"{\"name\":NaN}",
        b"{'name':'a'}",
        b"{\"name\":\"a\",}",
        deep.as_bytes(),
        deep_field.as_bytes(),
    ];
    for (method, path) in body_routes() {
        for body in malformed {
            let answer = send_json(&admin, &method, &path, body.to_vec()).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (400, "malformed_json"),
                "{path} {:?}",
                String::from_utf8_lossy(&body[..body.len().min(40)])
            );
        }
    }
    assert_eq!((rows("users"), rows("events"), rows("device_sessions")), before);
}

/// JSON-01: numbers that no double holds and nests that no client means are refused one way or the other, never a `500`.
#[tokio::test]
async fn extreme_json_is_refused() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let nested = format!("{{\"name\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
    for (method, path) in body_routes() {
        for body in ["1e400", "-0", "{\"name\":1e400}", "{\"name\":-0}", "{\"name\":1E-400}", &nested, "{\"\\u0000\":1}", "\"\\u0000\""] {
            let answer = send_json(&admin, &method, &path, body.to_string()).await;
            assert!([400, 422].contains(&answer.status.as_u16()), "{path} {body:.20}: {}", answer.status);
        }
    }
}

/// JSON-01: a million keys do not fit.
#[tokio::test]
async fn a_flood_of_keys_is_too_large() {
    let stage = Stage::new().await;
    let keys: Vec<String> = (0..20_000).map(|n| format!("\"{n}\":1")).collect();
    let body = format!("{{{}}}", keys.join(","));
    assert!(body.len() > LIMIT);
    send_json(&stage.anon(), &Method::POST, "/login", body).await.is_refused(413, "body_too_large");
}

#[tokio::test]
async fn a_body_that_is_no_object_is_not_valid() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for (method, path) in body_routes() {
        for body in ["null", "true", "[]", "[{}]", "1", "\"text\"", "[\"email\",\"password\"]"] {
            send_json(&admin, &method, &path, body).await.is_refused(422, "validation_failed");
        }
    }
}

#[tokio::test]
async fn space_around_the_object_is_fine() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    send_json(&ana, &Method::PATCH, "/me", "\r\n\t {\"name\" : \"A\\u00e9\\ud83e\\udd8a\"} \n").await.is(200);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "A\u{e9}\u{1f98a}");
}

#[tokio::test]
async fn no_body_at_all_is_malformed() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for (method, path) in body_routes() {
        let answer = admin.send(admin.request(method, &path), Body::empty()).await;
        answer.is_refused(400, "malformed_json");
    }
}

/// JSON-01
#[tokio::test]
async fn a_value_of_another_type_is_not_valid() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for (method, path) in body_routes() {
        let fields: &[(&str, bool)] = match path.as_str() {
            "/signup" => &[("email", true), ("password", true), ("name", true)],
            "/login" => &[("email", true), ("password", true), ("remember", false)],
            "/me" => &[("name", true)],
            "/me/password" => &[("current_password", true), ("new_password", true), ("sign_out_others", false)],
            "/me/email" => &[("email", true), ("current_password", true)],
            "/email/verify" => &[("token", true), ("password", true)],
            "/password/forgot" => &[("email", true)],
            "/password/reset" => &[("token", true), ("new_password", true)],
            "/email/change" | "/email/undo" => &[("token", true)],
            _ => &[("role", true)],
        };
        let good = json!({"email": "eve@example.com", "password": "a good password", "name": "Eve", "current_password": "not this one",
            "new_password": "a good password", "role": "user", "token": "A".repeat(43)});
        for (field, text) in fields {
            for wrong in [json!(1), json!(1.5), json!(null), json!([]), json!({}), json!(["a"]), if *text { json!(true) } else { json!("true") }] {
                let mut body: Value = fields.iter().filter(|(_, text)| *text).map(|(name, _)| (name.to_string(), good[*name].clone())).collect();
                body[*field] = wrong.clone();
                let answer = admin.json(method.clone(), &path, body).await.is_refused(422, "validation_failed");
                let faults = answer.faults();
                assert!(faults.len() == 1 && faults[0].starts_with(&format!("{field}:")), "{path} {field} {wrong}: {faults:?}");
            }
        }
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
}

fn names(answer: &Answer) -> BTreeSet<String> {
    answer.faults().iter().map(|fault| fault.split(':').next().unwrap_or_default().to_string()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[tokio::test]
async fn missing_and_unknown_fields_are_all_named() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let asked: [(Method, &str, &[&str]); 9] = [
        (Method::POST, "/signup", &["email", "password"]),
        (Method::POST, "/login", &["email", "password"]),
        (Method::PATCH, "/me", &["name"]),
        (Method::PUT, "/me/password", &["current_password", "new_password"]),
        (Method::PUT, "/me/email", &["email", "current_password"]),
        (Method::POST, "/password/forgot", &["email"]),
        (Method::POST, "/password/reset", &["token", "new_password"]),
        (Method::POST, "/email/change", &["token"]),
        (Method::PUT, &format!("/admin/users/{NOBODY}/role"), &["role"]),
    ];
    for (method, path, needed) in asked {
        let answer = admin.json(method.clone(), path, json!({})).await.is_refused(422, "validation_failed");
        assert_eq!(names(&answer), set(needed), "{path}");
        let answer = admin.json(method, path, json!({"bogus": 1, "Email": "x", "": 2})).await.is_refused(422, "validation_failed");
        assert_eq!(names(&answer), &set(needed) | &set(&["bogus", "Email", ""]), "{path}");
    }
}

#[tokio::test]
async fn every_field_of_a_sign_up_at_fault_is_named() {
    let stage = Stage::new().await;
    let answer = stage.anon().post("/signup", json!({"email": "nobody", "password": 1, "name": "\u{7}", "role": "admin"})).await;
    assert_eq!(names(&answer.is_refused(422, "validation_failed")), set(&["email", "password", "name", "role"]));
}

/// A weak password is a fault like any other: whoever mends the address hears of both at once.
#[tokio::test]
async fn a_weak_password_is_named_together_with_the_other_faults() {
    let stage = Stage::new().await;
    for weak in ["short", "password", &"x1".repeat(129)] {
        let answer = stage.anon().post("/signup", json!({"email": "nobody", "password": weak})).await;
        assert_eq!(names(&answer.is_refused(422, "validation_failed")), set(&["email", "password"]));
        let answer = stage.anon().post("/signup", json!({"email": "eve@example.com", "password": weak, "name": "\u{7}", "role": "admin"})).await;
        assert_eq!(names(&answer.is_refused(422, "validation_failed")), set(&["password", "name", "role"]));
    }
}

#[tokio::test]
async fn a_weak_new_password_is_named_together_with_the_other_faults() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let answer = ana.put("/me/password", json!({"new_password": "short", "sign_out_others": 1, "bogus": 1})).await;
    assert_eq!(names(&answer.is_refused(422, "validation_failed")), set(&["current_password", "new_password", "sign_out_others", "bogus"]));
}

#[tokio::test]
async fn an_unknown_role_is_named_together_with_the_other_faults() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let id = id_of(&admin.get("/me").await.is(200).json()["user"]["id"]);
    let answer = admin.put(&format!("/admin/users/{id}/role"), json!({"role": "king", "bogus": 1})).await;
    assert_eq!(names(&answer.is_refused(422, "validation_failed")), set(&["role", "bogus"]));
}

#[tokio::test]
async fn field_names_are_case_sensitive() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let answer = stage.anon().post("/login", json!({"Email": email_of("ana"), "PASSWORD": password_of("ana")})).await;
    assert_eq!(names(&answer.is_refused(422, "validation_failed")), set(&["email", "password", "Email", "PASSWORD"]));
}

/// JSON-01: PATCH with null clears nothing.
#[tokio::test]
async fn a_null_is_not_an_absent_field() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.post("/login", json!({"email": email_of("ana"), "password": password_of("ana"), "remember": null})).await.is_refused(422, "validation_failed");
    ana.patch("/me", json!({"name": null})).await.is_refused(422, "validation_failed");
    ana.put("/me/password", json!({"current_password": password_of("ana"), "new_password": "a good password", "sign_out_others": null}))
        .await
        .is_refused(422, "validation_failed");
    stage.anon().post("/signup", json!({"email": "eve@example.com", "password": "a good password", "name": null})).await.is_refused(422, "validation_failed");
}

// ---- size and media type

/// A name of Ana's, padded with spaces to so many bytes.
fn padded(bytes: usize) -> String {
    let body = "{\"name\":\"Ana\"}";
    format!("{body}{}", " ".repeat(bytes - body.len()))
}

#[tokio::test]
async fn a_body_of_exactly_64_kib_is_read() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    send_json(&ana, &Method::PATCH, "/me", padded(LIMIT)).await.is(200);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "Ana");
}

#[tokio::test]
async fn a_body_of_one_byte_more_is_too_large() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    send_json(&ana, &Method::PATCH, "/me", padded(LIMIT + 1)).await.is_refused(413, "body_too_large");
    let request = ana.request(Method::PATCH, "/me").header(header::CONTENT_TYPE, "application/json").header(header::CONTENT_LENGTH, LIMIT + 1);
    ana.send(request, Body::from(padded(LIMIT + 1))).await.is_refused(413, "body_too_large");
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "");
}

fn chunked(body: &str) -> Body {
    let chunks: Vec<Result<Bytes, std::io::Error>> = body.as_bytes().chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    Body::from_stream(stream::iter(chunks))
}

async fn send_chunked(actor: &Actor, body: Body) -> Answer {
    let request = actor.request(Method::PATCH, "/me").header(header::CONTENT_TYPE, "application/json").header(header::TRANSFER_ENCODING, "chunked");
    actor.send(request, body).await
}

/// SLOW-02: the limit is the same without a declared length.
#[tokio::test]
async fn a_chunked_body_has_the_same_limit() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    send_chunked(&ana, chunked(&padded(LIMIT))).await.is(200);
    send_chunked(&ana, chunked(&padded(LIMIT + 1))).await.is_refused(413, "body_too_large");
    send_chunked(&ana, chunked("")).await.is_refused(400, "malformed_json");
}

/// SLOW-02
#[tokio::test]
async fn an_endless_body_is_cut_at_the_limit() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1000])));
    send_chunked(&ana, Body::from_stream(endless)).await.is_refused(413, "body_too_large");
}

/// SLOW-02
#[tokio::test]
async fn every_route_and_method_refuses_a_large_body() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for (path, methods) in routes().into_iter().filter(|(path, _)| *path != "/openapi.json") {
        for method in methods {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            for actor in [&admin, &stage.anon()] {
                let answer = send_json(actor, &method, path, padded(LIMIT + 1)).await;
                assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"), "{method} {path}");
            }
        }
    }
    admin.get("/me").await.is(200);
}

/// SLOW-02: the one route that is no operation keeps the rules too.
#[tokio::test]
async fn the_openapi_document_refuses_a_large_body_and_a_form() {
    let stage = Stage::new().await;
    send_json(&stage.anon(), &Method::GET, "/openapi.json", padded(LIMIT + 1)).await.is_refused(413, "body_too_large");
    send(&stage.anon(), &Method::GET, "/openapi.json", "text/plain", "x").await.is_refused(415, "unsupported_media_type");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let broken: [Result<Bytes, std::io::Error>; 2] = [Ok(Bytes::from_static(b"{\"name\":\"A\"}")), Err(std::io::Error::other("cut"))];
    assert_eq!(send_chunked(&ana, Body::from_stream(stream::iter(broken))).await.status.as_u16(), 400);
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["name"], "");
}

/// CSRF-01: what a form can send is no JSON, whatever is in it.
#[tokio::test]
async fn only_json_is_read() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let types = [
        "text/plain",
        "Text/Plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json;charset=x, text/plain",
        "application/json, text/plain",
        "text/plain, application/json",
        "application/jsonp",
        "application/problem+json",
        "application/ld+json",
        "text/json",
        "application/*",
        "*/*",
        "json",
        "",
    ];
    for (method, path) in body_routes() {
        for media_type in types {
            send(&admin, &method, &path, media_type, "{}").await.is_refused(415, "unsupported_media_type");
        }
        // What a bomb is packed in is not unpacked. SLOW-02.
        for packed in ["gzip", "identity", "br"] {
            let packed = admin.request(method.clone(), &path).header(header::CONTENT_TYPE, "application/json").header(header::CONTENT_ENCODING, packed);
            admin.send(packed, Body::from("{}")).await.is_refused(415, "unsupported_media_type");
        }
        let nothing = admin.request(method.clone(), &path);
        admin.send(nothing, Body::from("{}")).await.is_refused(415, "unsupported_media_type");
        let twice = admin.request(method, &path).header(header::CONTENT_TYPE, "application/json").header(header::CONTENT_TYPE, "text/plain");
        admin.send(twice, Body::from("{}")).await.is_refused(415, "unsupported_media_type");
    }
}

#[tokio::test]
async fn json_is_json_in_any_case_and_in_utf_8() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for media_type in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8"] {
        send(&ana, &Method::PATCH, "/me", media_type, "{\"name\":\"Ana\"}").await.is(200);
    }
}

/// ASVS 16.5.4.
#[tokio::test]
async fn a_handler_that_panics_costs_nobody_else_their_answer() {
    let stage = Stage::new().await;
    let works = || async { "well" };
    let panics = || async {
        if std::hint::black_box(true) {
            panic!("a detail")
        }
    };
    let mut around = Around::new(Router::new().route("/panics", get(panics)).route("/works", get(works)), stage.app.clone());
    for (path, status) in [("/panics", 500), ("/works", 200)] {
        let answer = around.call(Request::get(path).body(Body::empty()).expect("a request")).await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.headers()[header::CACHE_CONTROL].as_bytes()), (status, &b"no-store"[..]), "{path}");
    }
}

/// What somebody sends along is not passed over in silence: they would take it as done.
#[tokio::test]
async fn a_route_without_a_body_takes_an_empty_one_and_refuses_what_it_holds() {
    let stage = Stage::new().await;
    let (ana, other) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    for (method, path) in [(Method::POST, "/logout"), (Method::DELETE, "/me/sessions"), (Method::DELETE, &format!("/me/sessions/{NOBODY}"))] {
        for (body, status, code) in [("{", 400, "malformed_json"), ("{\"a\":1,\"a\":2}", 400, "malformed_json"), ("[]", 422, "validation_failed")] {
            send_json(&ana, &method, path, body).await.is_refused(status, code);
        }
        let answer = send_json(&ana, &method, path, "{\"include_current\": true}").await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), ["include_current:unknown"], "{method} {path}");
    }
    other.get("/me").await.is(200);
    send_json(&ana, &Method::DELETE, "/me/sessions", "{}").await.is(200);
    other.get("/me").await.is_refused(401, "session_revoked");
}

/// CSRF-01: a route without a body refuses one that is no JSON, and does nothing.
#[tokio::test]
async fn a_route_without_a_body_refuses_a_form() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for media_type in ["text/plain", "application/x-www-form-urlencoded"] {
        send(&ana, &Method::POST, "/logout", media_type, "a=b").await.is_refused(415, "unsupported_media_type");
        send(&ana, &Method::DELETE, "/me/sessions", media_type, "a=b").await.is_refused(415, "unsupported_media_type");
    }
    ana.get("/me").await.is(200);
}

// ---- the order of the checks

/// Route and method come before size and media type.
#[tokio::test]
async fn an_unknown_route_is_not_found_whatever_the_body() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    send(&anon, &Method::POST, "/nowhere", "text/plain", "x").await.is_refused(404, "not_found");
    send(&anon, &Method::POST, "/nowhere", "text/plain", "x".repeat(LIMIT + 1)).await.is_refused(404, "not_found");
    send(&anon, &Method::POST, "/me", "text/plain", "x").await.is_refused(405, "method_not_allowed");
    send(&anon, &Method::POST, "/me", "text/plain", "x".repeat(LIMIT + 1)).await.is_refused(405, "method_not_allowed");
}

/// Size comes before media type.
#[tokio::test]
async fn a_body_that_is_too_large_is_so_in_any_media_type() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    let request = anon.request(Method::POST, "/login").header(header::CONTENT_TYPE, "text/plain").header(header::CONTENT_LENGTH, LIMIT + 1);
    anon.send(request, Body::from("x".repeat(LIMIT + 1))).await.is_refused(413, "body_too_large");
}

/// Size and media type come before who is asking.
#[tokio::test]
async fn a_stranger_hears_of_the_media_type_first() {
    let stage = Stage::new().await;
    let (anon, ana) = (stage.anon(), stage.sign_up("ana").await);
    for (method, path) in [(Method::PATCH, "/me"), (Method::PUT, "/me/password"), (Method::DELETE, "/me/sessions"), (Method::GET, "/admin/users")] {
        send(&anon, &method, path, "text/plain", "x").await.is_refused(415, "unsupported_media_type");
        send_json(&anon, &method, path, padded(LIMIT + 1)).await.is_refused(413, "body_too_large");
    }
    send(&ana, &Method::PUT, &format!("/admin/users/{NOBODY}/role"), "text/plain", "x").await.is_refused(415, "unsupported_media_type");
}

/// Who is asking comes before query and body.
#[tokio::test]
async fn a_stranger_learns_nothing_about_their_body_or_query() {
    let stage = Stage::new().await;
    let (anon, ana) = (stage.anon(), stage.sign_up("ana").await);
    for (method, path) in body_routes().into_iter().filter(|(_, path)| path.starts_with("/me") || path.starts_with("/admin")) {
        for body in ["", "{", "[]", "{\"bogus\":1}"] {
            send_json(&anon, &method, &path, body).await.is_refused(401, "unauthenticated");
        }
    }
    for path in ["/me?bogus=1", "/me/activity?limit=0", "/check?bogus=1", "/admin/users?limit=x", "/admin/events?bogus=1"] {
        anon.get(path).await.is_refused(401, "unauthenticated");
    }
    for path in ["/admin/users?limit=x", "/admin/events?bogus=1", "/admin/users/no-uuid?bogus=1"] {
        ana.get(path).await.is_refused(403, "forbidden");
    }
    for body in ["", "{", "{\"role\":\"king\"}"] {
        send_json(&ana, &Method::PUT, &format!("/admin/users/{NOBODY}/role"), body).await.is_refused(403, "forbidden");
    }
}

/// Query and body come before what is asked for.
#[tokio::test]
async fn what_is_asked_for_is_looked_up_last() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let own = id_of(&admin.get("/me").await.is(200).json()["user"]["id"]);
    let nobody = format!("/admin/users/{NOBODY}");
    admin.put(&format!("{nobody}/role"), json!({"role": "king"})).await.is_refused(422, "validation_failed");
    admin.put(&format!("{nobody}/role"), json!({})).await.is_refused(422, "validation_failed");
    send_json(&admin, &Method::PUT, &format!("{nobody}/role"), "{").await.is_refused(400, "malformed_json");
    admin.get(&format!("{nobody}?bogus=1")).await.is_refused(422, "validation_failed");
    admin.delete(&format!("{nobody}/sessions?bogus=1")).await.is_refused(422, "validation_failed");
    admin.delete(&format!("/me/sessions/{NOBODY}?bogus=1")).await.is_refused(422, "validation_failed");
    admin.put(&format!("{nobody}/role"), json!({"role": "user"})).await.is_refused(404, "not_found");
    // 409 comes last too: the last admin, an address that is taken.
    admin.put(&format!("/admin/users/{own}/role"), json!({"role": "king"})).await.is_refused(422, "validation_failed");
    admin.put(&format!("/admin/users/{own}/role"), json!({"role": "user"})).await.is_refused(409, "last_admin");
    stage.anon().post("/signup", json!({"email": email_of("admin"), "password": "short"})).await.is_refused(422, "validation_failed");
    stage.anon().post("/signup?bogus=1", json!({"email": email_of("admin"), "password": "a good password"})).await.is_refused(422, "validation_failed");
    stage.anon().post("/signup", json!({"email": email_of("admin"), "password": "a good password"})).await.is_refused(409, "email_taken");
}

// ---- headers of every answer

/// One answer of every kind there is.
async fn answers_of_all_kinds() -> Vec<Answer> {
    let stage = Stage::with(&[("ALLOWED_ORIGINS", "http://localhost:5173")]).await;
    let (admin, ana, anon) = (stage.admin("admin").await, stage.sign_up("ana").await, stage.anon());
    let mut answers = vec![
        anon.post("/signup", json!({"email": email_of("ben"), "password": password_of("ben")})).await.is(201),
        ana.get("/me").await.is(200),
        ana.get("/check").await.is(204),
        admin.get("/admin/users").await.is(200),
        anon.get("/health/live").await.is(200),
        anon.get("/health/ready").await.is(200),
        anon.get("/openapi.json").await.is(200),
        send_json(&anon, &Method::POST, "/login", "{").await.is(400),
        stage.anon().get("/me").await.is(401),
        ana.get("/admin/users").await.is(403),
        anon.clone().with_header("origin", "https://evil.test").poke("/logout").await.is(403),
        anon.get("/nowhere").await.is(404),
        anon.poke("/me").await.is(405),
        anon.post("/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(409),
        send_json(&anon, &Method::POST, "/login", padded(LIMIT + 1)).await.is(413),
        send(&anon, &Method::POST, "/login", "text/plain", "x").await.is(415),
        anon.post("/login", json!({})).await.is(422),
        ana.poke("/logout").await.is(204),
    ];
    let preflight = anon.request(Method::OPTIONS, "/me").header("origin", "http://localhost:5173").header("access-control-request-method", "GET");
    answers.push(anon.send(preflight, Body::empty()).await);
    stage.execute("ALTER TABLE events RENAME TO events_elsewhere");
    answers.push(stage.anon().log_in("admin").await.is(500));
    answers
}

#[tokio::test]
async fn no_answer_may_be_stored() {
    for answer in answers_of_all_kinds().await {
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{}", answer.status);
        assert_eq!(answer.headers.get_all(header::CACHE_CONTROL).iter().count(), 1);
    }
}

/// What a browser must not do with an answer, it is told with every one: guess its type, run or frame it, hand it to another
/// site, or say where its reader came from.
#[tokio::test]
async fn every_answer_forbids_guessing_framing_embedding_and_referring() {
    for answer in answers_of_all_kinds().await {
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            let told: Vec<&str> = answer.headers.get_all(name).iter().map(|value| value.to_str().expect("ASCII")).collect();
            assert_eq!(told, [value], "{name} of {}", answer.status);
        }
        assert_eq!(answer.header("strict-transport-security"), None, "on plain http nobody may be told to use https");
    }
}

#[tokio::test]
async fn no_answer_names_the_program_that_gives_it() {
    for answer in answers_of_all_kinds().await {
        for name in ["server", "x-powered-by", "via"] {
            assert_eq!(answer.header(name), None, "{}", answer.status);
        }
    }
}

#[tokio::test]
async fn every_answer_has_an_id_of_its_own() {
    let answers = answers_of_all_kinds().await;
    let ids: BTreeSet<&str> = answers.iter().map(|answer| answer.header("x-request-id").expect("an id")).collect();
    assert_eq!(ids.len(), answers.len());
    assert!(ids.iter().all(|id| !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))));
}

#[tokio::test]
async fn every_error_is_a_problem_document() {
    for answer in answers_of_all_kinds().await.into_iter().filter(|answer| answer.status.as_u16() >= 400) {
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let body = answer.json();
        let code = body["code"].as_str().expect("a code");
        assert_eq!(body["type"], format!("urn:holdfast:problem:{code}"));
        assert_eq!(body["status"], answer.status.as_u16());
        assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()));
        assert_eq!(body["errors"].is_array(), code == "validation_failed", "{body}");
        for error in body["errors"].as_array().into_iter().flatten() {
            assert!(error["field"].is_string() && error["code"].is_string() && error["message"].is_string(), "{body}");
        }
    }
}

/// The cause of a fault is for the log only.
#[tokio::test]
async fn an_internal_error_tells_the_request_id_and_nothing_else() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    stage.execute("ALTER TABLE events RENAME TO events_elsewhere");
    let answer = stage.anon().with_header("x-request-id", "find-me-1").log_in("ana").await.is_refused(500, "internal");
    let body = answer.json();
    let keys: BTreeSet<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["type", "title", "status", "code", "request_id"]));
    assert_eq!((body["request_id"].as_str(), answer.header("x-request-id")), (Some("find-me-1"), Some("find-me-1")));
    assert_eq!(answer.set_cookies(), Vec::<String>::new());
    // It was rolled back as a whole.
    assert_eq!(stage.count("SELECT count(*) FROM device_sessions"), 1);
}

#[tokio::test]
async fn json_answers_are_declared_as_json() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for path in ["/me", "/me/sessions", "/me/activity", "/openapi.json"] {
        assert!(ana.get(path).await.is(200).header("content-type").is_some_and(|media_type| media_type.starts_with("application/json")), "{path}");
    }
}

#[tokio::test]
async fn a_well_formed_request_id_is_kept() {
    let stage = Stage::new().await;
    for id in ["a", "0", "abc-DEF_1.2", "-", "...", &"x".repeat(64)] {
        assert_eq!(stage.anon().with_header("x-request-id", id).get("/health/live").await.header("x-request-id"), Some(id));
        assert_eq!(stage.anon().with_header("x-request-id", id).get("/nowhere").await.header("x-request-id"), Some(id));
    }
}

#[tokio::test]
async fn any_other_request_id_is_replaced() {
    let stage = Stage::new().await;
    for id in ["", " ", "a b", "a/b", "a,b", "<script>", "\u{e9}", "a\tb", "{}", &"x".repeat(65)] {
        let answer = stage.anon().with_header("x-request-id", id).get("/health/live").await;
        let given = answer.header("x-request-id").expect("an id");
        assert!(given != id && !given.is_empty() && given.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{id:?}: {given}");
        assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
    }
}

// ---- routes and methods

fn allowed(answer: &Answer) -> BTreeSet<String> {
    let line = answer.header("allow").expect("Allow");
    // HEAD and OPTIONS come with GET and with HTTP.
    line.split(',').map(|method| method.trim().to_string()).filter(|method| method != "HEAD" && method != "OPTIONS").collect()
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for (path, methods) in routes() {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE"].into_iter().filter(|method| !methods.contains(method)) {
            for actor in [&admin, &stage.anon()] {
                let answer = actor.send(actor.request(Method::from_bytes(method.as_bytes()).expect("a method"), path), Body::empty()).await;
                assert_eq!((answer.status.as_u16(), answer.code().as_str()), (405, "method_not_allowed"), "{method} {path}");
                assert_eq!(allowed(&answer), set(methods), "{method} {path}");
            }
        }
    }
}

#[tokio::test]
async fn the_method_that_is_told_works() {
    let stage = Stage::new().await;
    for (path, methods) in routes() {
        for method in methods {
            let anon = stage.anon();
            let answer = anon.send(anon.request(Method::from_bytes(method.as_bytes()).expect("a method"), path), Body::empty()).await;
            assert!(![404, 405].contains(&answer.status.as_u16()), "{method} {path}: {}", answer.status);
        }
    }
}

#[tokio::test]
async fn a_head_is_a_get_without_a_body() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let answer = ana.send(ana.request(Method::HEAD, "/me"), Body::empty()).await.is(200);
    assert!(answer.body.is_empty());
    let anon = stage.anon();
    anon.send(anon.request(Method::HEAD, "/me"), Body::empty()).await.is(401);
    ana.send(ana.request(Method::HEAD, "/admin/users"), Body::empty()).await.is(403);
}

#[tokio::test]
async fn an_unknown_route_is_not_found_by_anybody() {
    let stage = Stage::new().await;
    for actor in [stage.admin("admin").await, stage.anon()] {
        for path in ["/", "/nowhere", "/api", "/me/nowhere", "/admin", "/health", "/signup/x", "/admin/users/x/y/z", "/.env", "/robots.txt"] {
            actor.get(path).await.is_refused(404, "not_found");
            actor.poke(path).await.is_refused(404, "not_found");
        }
    }
}

#[tokio::test]
async fn an_id_that_is_no_uuid_is_not_found() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let odd = [
        "x",
        "0",
        "-1",
        "me",
        "%00",
        "%ff",
        "%2e%2e",
        "..",
        "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a1",
        "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a111",
        "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a1g",
        "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11%00",
        "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11'",
        "'%20OR%201=1--",
        &"a".repeat(10_000),
    ];
    for id in odd {
        admin.delete(&format!("/me/sessions/{id}")).await.is_refused(404, "not_found");
        admin.get(&format!("/admin/users/{id}")).await.is_refused(404, "not_found");
        admin.put(&format!("/admin/users/{id}/role"), json!({"role": "user"})).await.is_refused(404, "not_found");
        admin.poke(&format!("/admin/users/{id}/disable")).await.is_refused(404, "not_found");
        admin.poke(&format!("/admin/users/{id}/enable")).await.is_refused(404, "not_found");
        admin.get(&format!("/admin/users/{id}/sessions")).await.is_refused(404, "not_found");
        admin.delete(&format!("/admin/users/{id}/sessions")).await.is_refused(404, "not_found");
        admin.delete(&format!("/admin/users/{NOBODY}/sessions/{id}")).await.is_refused(404, "not_found");
    }
}

// ---- queries

/// PAGE-02
#[tokio::test]
async fn a_limit_lies_between_1_and_100() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for path in ["/me/activity", "/admin/users", "/admin/events"] {
        for wrong in ["0", "-1", "101", "1000000000", "99999999999999999999", "a", "", "1.5", "1e1", "0x10", "%2B5", "5%20", "5%00", "%D9%A5", "none", "50;100"]
        {
            let answer = admin.get(&format!("{path}?limit={wrong}")).await.is_refused(422, "validation_failed");
            assert_eq!(names(&answer), set(&["limit"]), "{path} {wrong}");
        }
        for right in ["1", "2", "100"] {
            admin.get(&format!("{path}?limit={right}")).await.is(200);
        }
    }
}

/// PAGE-02: sorting and filtering by hidden columns is no offer.
#[tokio::test]
async fn an_unknown_parameter_is_named() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for path in ["/me", "/check", "/me/sessions", "/me/activity", "/admin/users", "/admin/events"] {
        for wrong in ["sort=password_hash", "sort=last_login", "filter[x]=1", "q=%25", "Limit=5", "offset=1", "debug", "_=1"] {
            let answer = admin.get(&format!("{path}?{wrong}")).await.is_refused(422, "validation_failed");
            let name = wrong.split('=').next().unwrap_or_default();
            assert_eq!(names(&answer), set(&[name]), "{path}?{wrong}");
        }
    }
}

#[tokio::test]
async fn routes_for_everybody_know_no_parameters_either() {
    let stage = Stage::new().await;
    for path in ["/health/live", "/health/ready", "/openapi.json"] {
        let answer = stage.anon().get(&format!("{path}?bogus=1")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "validation_failed"), "{path}");
    }
}

#[tokio::test]
async fn every_parameter_at_fault_is_named() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let answer = admin.get("/admin/events?kind=x&user_id=x&before=x&limit=0&bogus=1").await.is_refused(422, "validation_failed");
    assert_eq!(names(&answer), set(&["kind", "user_id", "before", "limit", "bogus"]));
    let answer = admin.get("/admin/users?email=x&before=x&limit=0&bogus=1").await.is_refused(422, "validation_failed");
    assert_eq!(names(&answer), set(&["email", "before", "limit", "bogus"]));
    let answer = stage.sign_up("ana").await.get("/me/activity?before=x&limit=0&bogus=1").await.is_refused(422, "validation_failed");
    assert_eq!(names(&answer), set(&["before", "limit", "bogus"]));
}

/// A parameter that stands twice could be read as either.
#[tokio::test]
async fn a_parameter_that_stands_twice_is_refused() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for path in ["/me/activity", "/admin/users", "/admin/events"] {
        admin.get(&format!("{path}?limit=5&limit=5")).await.is_refused(422, "validation_failed");
        admin.get(&format!("{path}?limit=5&li%6dit=6")).await.is_refused(422, "validation_failed");
    }
}

#[tokio::test]
async fn a_deed_with_an_unknown_parameter_is_not_done() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let copy = stage.sign_in("ana").await;
    ana.poke("/logout?everywhere=true").await.is_refused(422, "validation_failed");
    ana.delete("/me/sessions?include_curent=true").await.is_refused(422, "validation_failed");
    for wrong in ["yes", "1", "", "TRUE", "true&include_current=false"] {
        ana.delete(&format!("/me/sessions?include_current={wrong}")).await.is_refused(422, "validation_failed");
    }
    ana.post("/login?remember=true", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is_refused(422, "validation_failed");
    ana.get("/me").await.is(200);
    copy.get("/me").await.is(200);
}

/// PAGE-01: a cursor is a place in one's own list, and nothing that SQL reads.
#[tokio::test]
async fn a_cursor_that_is_none_is_refused() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let long = "a".repeat(10_000);
    for path in ["/me/activity", "/admin/users", "/admin/events"] {
        for wrong in [
            "",
            "x",
            "-1",
            "0",
            "null",
            "'",
            "%27%20OR%201=1--",
            "{}",
            "eyJpZCI6MX0",
            "01938f6e-6b7a-7c3c-8a56",
            "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11'",
            "%00",
            long.as_str(),
        ] {
            let answer = admin.get(&format!("{path}?before={wrong}")).await.is_refused(422, "validation_failed");
            assert_eq!(names(&answer), set(&["before"]), "{path} {wrong:.40}");
        }
    }
}

/// PAGE-01: another user's cursor opens nothing of theirs.
#[tokio::test]
async fn another_users_cursor_shows_ones_own_list_only() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    ben.log_in("ben").await.is(200);
    let ids = |body: &Value| -> BTreeSet<String> { body["events"].as_array().expect("a list").iter().map(|event| id_of(&event["id"])).collect() };
    let own = ids(&ana.get("/me/activity").await.is(200).json());
    for foreign in ids(&ben.get("/me/activity").await.is(200).json()) {
        let page = ids(&ana.get(&format!("/me/activity?before={foreign}")).await.is(200).json());
        assert!(page.is_subset(&own));
    }
}

/// PAGE-01: walking the pages gives every event once.
#[tokio::test]
async fn pages_are_whole_and_do_not_overlap() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for _ in 0..6 {
        ana.log_in("ana").await.is(200);
    }
    let all = ana.get("/me/activity?limit=100").await.is(200).json();
    assert_eq!(all["next"], Value::Null);
    let (mut walked, mut path) = (Vec::new(), "/me/activity?limit=3".to_string());
    loop {
        let page = ana.get(&path).await.is(200).json();
        let events = page["events"].as_array().cloned().expect("a list");
        assert!(events.len() <= 3);
        walked.extend(events);
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/me/activity?limit=3&before={next}");
    }
    assert_eq!(Value::Array(walked), all["events"]);
}

/// PAGE-02: an address is matched exactly: no wildcard finds anybody.
#[tokio::test]
async fn an_address_filter_has_no_wildcards() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    stage.sign_up("ana").await;
    let found = |answer: Answer| answer.json()["users"].as_array().map_or(0, Vec::len);
    for pattern in ["_na@example.com", "%25@example.com", "an%25@example.com", "*@example.com"] {
        let answer = admin.get(&format!("/admin/users?email={pattern}")).await;
        assert!(answer.status == 422 || found(answer.is(200)) == 0, "{pattern}");
    }
    assert_eq!(found(admin.get("/admin/users?email=ANA@Example.COM").await.is(200)), 1);
    assert_eq!(found(admin.get("/admin/users?email=ben@example.com").await.is(200)), 0);
}

/// PAGE-02: who is no administrator sees no count of anybody else.
#[tokio::test]
async fn nobody_is_told_how_many_there_are() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    for path in ["/admin/users", "/admin/events", "/me/activity"] {
        let body = admin.get(path).await.is(200).json();
        assert!(body.as_object().expect("an object").keys().all(|key| ["users", "events", "next"].contains(&key.as_str())), "{body}");
    }
}

/// LOG-02: a token is read from the cookie and from nowhere else.
#[tokio::test]
async fn a_token_anywhere_but_in_the_cookie_is_nobody() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let (token, anon) = (admin.token().expect("a token"), stage.anon());
    for name in ["session", "access_token", "token", "holdfast", "__Host-holdfast", "sid", "cookie"] {
        for path in ["/me", "/check", "/admin/users", "/me/sessions"] {
            anon.get(&format!("{path}?{name}={token}")).await.is_refused(401, "unauthenticated");
        }
    }
    let bearer = format!("Bearer {token}");
    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("authorization", &token),
        ("x-session-token", &token),
        ("x-holdfast-session", &token),
        ("x-auth-token", &token),
        ("holdfast", &token),
    ] {
        for path in ["/me", "/check", "/admin/users"] {
            anon.clone().with_header(name, value).get(path).await.is_refused(401, "unauthenticated");
        }
    }
    for cookie in ["session", "Holdfast", "__Host-holdfast", "holdfast2", "xholdfast", "holdfast-device"] {
        anon.clone().with_header("cookie", &format!("{cookie}={token}")).get("/me").await.is_refused(401, "unauthenticated");
    }
    // It does not help in a body, and it is not told back.
    let answer = anon.post("/login", json!({"token": token, "holdfast": token})).await.is_refused(422, "validation_failed");
    assert!(!String::from_utf8_lossy(&answer.body).contains(&token));
    let answer = admin.get(&format!("/me?token={token}")).await.is_refused(422, "validation_failed");
    assert!(!String::from_utf8_lossy(&answer.body).contains(&token));
}

// ---- paths

/// CACHE-02: no suffix makes a private answer look like a file.
#[tokio::test]
async fn a_path_with_an_odd_tail_is_not_found() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let odd = [
        "/me/x.css",
        "/me.js",
        "/me.json",
        "/me;a.png",
        "/me;x",
        "/me%2fx.css",
        "/me%3fx.css",
        "/me%23x.css",
        "/me%00",
        "/me%20",
        "/me.",
        "/me/",
        "//me",
        "/me//",
        "/./me",
        "/x/../me",
        "/x/%2e%2e/me",
        "/%2e/me",
        "/Me",
        "/ME",
        "/m%65",
        "/me/sessions/..%2fstatic/a.js",
        "/me/sessions/",
        "/me//sessions",
        "/check/x.png",
        "/check;a.png",
        "/sessions/..%2fstatic/a.js",
    ];
    for path in odd {
        // A redirect or a 405 would do no harm; an answer about somebody would.
        let answer = ana.get(path).await;
        assert!(![200, 204].contains(&answer.status.as_u16()), "{path}: {}", answer.status);
        assert!(!String::from_utf8_lossy(&answer.body).contains(&email_of("ana")), "{path}");
        if path != "/me/sessions/..%2fstatic/a.js" {
            answer.is_refused(404, "not_found");
        }
    }
}

/// ADM-05: no spelling of a path gets a plain user into the administration.
#[tokio::test]
async fn no_spelling_of_a_path_lets_a_plain_user_in() {
    let stage = Stage::new().await;
    let admin = stage.admin("admin").await;
    let ana = stage.sign_up("ana").await;
    let id = id_of(&admin.get("/me").await.is(200).json()["user"]["id"]);
    let users = format!("/admin/users/{id}");
    let odd = [
        "/admin/users".to_string(),
        "//admin/users".into(),
        "/admin//users".into(),
        "/./admin/users".into(),
        "/admin/./users".into(),
        "/x/../admin/users".into(),
        "/me/../admin/users".into(),
        "/me/%2e%2e/admin/users".into(),
        "/%2fadmin/users".into(),
        "/admin%2fusers".into(),
        "/admin%2f..%2fusers".into(),
        "/%61dmin/users".into(),
        "/Admin/users".into(),
        "/ADMIN/USERS".into(),
        "/admin/Users".into(),
        "/admin;x/users".into(),
        "/admin/users;x".into(),
        "/admin/users/".into(),
        "/admin/users.".into(),
        "/admin/users%20".into(),
        "/admin/users%00".into(),
        "/admin/users%09".into(),
        "/admin/users.json".into(),
        "/admin/users%3flimit=1".into(),
        "http://localhost:8300/admin/users".into(),
        "http://admin@localhost:8300/admin/users".into(),
        "/admin/events".into(),
        users.clone(),
        format!("{users}/"),
        format!("{users}/sessions"),
        format!("/{users}"),
        format!("{users}%2fsessions"),
    ];
    for path in &odd {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let answer = ana.send(ana.request(method.clone(), path), Body::empty()).await;
            let refused: &[u16] = if method == Method::OPTIONS { &[401, 403, 404, 405] } else { &[401, 403, 404] };
            assert!(refused.contains(&answer.status.as_u16()), "{method} {path}: {}", answer.status);
            assert!(!String::from_utf8_lossy(&answer.body).contains(&email_of("admin")), "{method} {path}");
        }
    }
    for (method, path) in [
        (Method::POST, format!("/{users}/disable")),
        (Method::POST, format!("{users}/disable/")),
        (Method::POST, format!("{users}/disable")),
        (Method::POST, format!("{users}%2fdisable")),
        (Method::DELETE, format!("{users}/sessions")),
        (Method::DELETE, format!("/{users}/sessions")),
    ] {
        let answer = ana.send(ana.request(method.clone(), &path), Body::empty()).await;
        // An escaped slash is part of an id, and an id has no such method.
        assert!([401, 403, 404, 405].contains(&answer.status.as_u16()), "{method} {path}: {}", answer.status);
    }
    ana.put(&format!("{users}/role"), json!({"role": "user"})).await.is_refused(403, "forbidden");
    admin.get("/admin/users").await.is(200);
}

/// ADM-05: a proxy in front that trusts other headers gives nothing away either.
#[tokio::test]
async fn no_header_rewrites_the_path_or_the_method() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    for (name, value) in
        [("x-original-url", "/health/live"), ("x-rewrite-url", "/health/live"), ("x-forwarded-uri", "/health/live"), ("x-holdfast-role", "admin")]
    {
        ana.clone().with_header(name, value).get("/admin/users").await.is_refused(403, "forbidden");
        stage.anon().with_header(name, value).get("/admin/users").await.is_refused(401, "unauthenticated");
    }
    for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
        ana.clone().with_header(name, "DELETE").get("/me/sessions").await.is(200);
        ana.clone().with_header(name, "GET").poke("/me").await.is_refused(405, "method_not_allowed");
    }
    ana.get("/me").await.is(200);
}

// ---- the client's address

/// The address of a sign-in whose proxy said this, one line each.
async fn seen_as(stage: &Stage, lines: &[&str]) -> String {
    let mut browser = stage.anon().from_ip(lines[0]);
    for line in &lines[1..] {
        browser = browser.with_header("x-forwarded-for", line);
    }
    browser.log_in("ana").await.is(200);
    let sessions = browser.get("/me/sessions").await.is(200).json();
    let ip = id_of(&sessions["sessions"][0]["ip"]);
    assert_eq!(sessions["sessions"][0]["current"], true);
    assert_eq!(browser.get("/me/activity?limit=1").await.is(200).json()["events"][0]["ip"], ip);
    ip
}

/// XFF-02: what the client itself wrote stands to the left.
#[tokio::test]
async fn the_right_most_address_that_is_no_proxy_is_the_clients() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    assert_eq!(seen_as(&stage, &["1.2.3.4, 198.51.100.7"]).await, "198.51.100.7");
    assert_eq!(seen_as(&stage, &["1.2.3.4", "198.51.100.7"]).await, "198.51.100.7");
    assert_eq!(seen_as(&stage, &["198.51.100.7, 127.0.0.1", "::1"]).await, "198.51.100.7");
    assert_eq!(seen_as(&stage, &["198.51.100.7,127.0.0.1,::1,::ffff:127.0.0.1"]).await, "198.51.100.7");
}

/// XFF-02
#[tokio::test]
async fn further_proxies_are_a_setting() {
    let stage = Stage::with(&[("TRUSTED_PROXIES", "127.0.0.1/32, 198.51.100.0/24, 2001:db8:ff::/48")]).await;
    stage.sign_up("ana").await;
    assert_eq!(seen_as(&stage, &["1.2.3.4, 198.51.100.7"]).await, "1.2.3.4");
    assert_eq!(seen_as(&stage, &["1.2.3.4", "198.51.100.7"]).await, "1.2.3.4");
    assert_eq!(seen_as(&stage, &["1.2.3.4, 2001:db8:ff::1, 198.51.100.7"]).await, "1.2.3.4");
    // If every entry is a proxy the left-most counts.
    assert_eq!(seen_as(&stage, &["198.51.100.1, 198.51.100.2", "127.0.0.1"]).await, "198.51.100.1");
}

/// XFF-02: other headers that say the same are not asked.
#[tokio::test]
async fn only_x_forwarded_for_is_read() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for (name, value) in
        [("forwarded", "for=1.2.3.4"), ("x-real-ip", "1.2.3.4"), ("cf-connecting-ip", "1.2.3.4"), ("true-client-ip", "1.2.3.4"), ("x-client-ip", "1.2.3.4")]
    {
        let browser = stage.anon().from_ip("198.51.100.7").with_header(name, value);
        assert_eq!(browser.log_in("ana").await.is(200).json()["session"]["ip"], "198.51.100.7", "{name}");
    }
}

/// XFF-03: ports and brackets are stripped, mapped addresses are IPv4, and IPv6 has one spelling.
#[tokio::test]
async fn addresses_are_shown_in_their_canonical_form() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for (written, shown) in [
        ("1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:0DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::ffff:1.2.3.4]:80", "1.2.3.4"),
        (" 1.2.3.4 ", "1.2.3.4"),
        (", ,1.2.3.4,, ", "1.2.3.4"),
    ] {
        assert_eq!(seen_as(&stage, &[written]).await, shown, "{written}");
    }
}

/// XFF-03: what is malformed ends the walk: the last good address counts, or the peer.
#[tokio::test]
async fn a_malformed_entry_ends_the_walk() {
    let stage = Stage::with(&[("TRUSTED_PROXIES", "127.0.0.1/32, 10.0.0.0/8")]).await;
    stage.sign_up("ana").await;
    for odd in [
        "a",
        "unknown",
        "_x",
        "fe80::1%eth0",
        "0177.0.0.1",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "0x7f.1",
        "2130706433",
        "[::1",
        "\u{e9}",
        "\"1.2.3.4\"",
        "1.2.3.4 5.6.7.8",
        "for=1.2.3.4",
    ] {
        assert_eq!(seen_as(&stage, &[odd]).await, "127.0.0.1", "{odd}");
        assert_eq!(seen_as(&stage, &[&format!("1.2.3.4, {odd}, 10.0.0.5")]).await, "10.0.0.5", "{odd}");
        assert_eq!(seen_as(&stage, &[&format!("{odd}, 1.2.3.4")]).await, "1.2.3.4", "{odd}");
    }
    assert_eq!(seen_as(&stage, &[""]).await, "127.0.0.1");
    assert_eq!(seen_as(&stage, &[", ,"]).await, "127.0.0.1");
}

/// XFF-03
#[tokio::test]
async fn a_long_list_of_addresses_does_no_harm() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    assert_eq!(seen_as(&stage, &[&vec!["1.2.3.4"; 300].join(",")]).await, "1.2.3.4");
    assert_eq!(seen_as(&stage, &[&vec!["127.0.0.1"; 300].join(",")]).await, "127.0.0.1");
    assert_eq!(seen_as(&stage, &[&"x".repeat(30 * 1024)]).await, "127.0.0.1");
    assert_eq!(seen_as(&stage, &[&",".repeat(30 * 1024)]).await, "127.0.0.1");
}

/// On a public URL no proxy is trusted until the operator names it.
#[tokio::test]
async fn an_untrusted_peer_does_not_say_who_the_client_is() {
    for settings in [&[("PUBLIC_URL", "https://id.example.com")][..], &[("TRUSTED_PROXIES", "192.0.2.1/32")]] {
        let stage = Stage::with(settings).await;
        stage.sign_up("ana").await;
        assert_eq!(seen_as(&stage, &["1.2.3.4"]).await, "127.0.0.1");
    }
}

#[tokio::test]
async fn a_long_user_agent_is_cut() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let browser = stage.anon().with_agent(&format!("{CHROME} {}", "x".repeat(10_000)));
    let session = browser.log_in("ana").await.is(200).json()["session"].clone();
    assert_eq!(session["user_agent"].as_str().map(|agent| agent.chars().count()), Some(512));
    assert_eq!(session["device_name"], "Chrome on macOS");
}

#[tokio::test]
async fn an_unparsable_user_agent_is_an_unknown_device() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    for agent in ["", "x", "<script>alert(1)</script>", "{{7*7}}"] {
        let session = stage.anon().with_agent(agent).log_in("ana").await.is(200).json()["session"].clone();
        assert_eq!((&session["device_name"], &session["device_type"], &session["user_agent"]), (&json!("Unknown device"), &json!("other"), &json!(agent)));
    }
}

// ---- below a base path

#[tokio::test]
async fn a_base_path_holds_every_route() {
    let stage = Stage::with(&[("BASE_PATH", "/auth")]).await;
    for (path, methods) in routes() {
        for method in methods {
            let anon = stage.anon();
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let below = anon.send(anon.request(method.clone(), &format!("/auth{path}")), Body::empty()).await;
            assert!(![404, 405].contains(&below.status.as_u16()), "{method} /auth{path}: {}", below.status);
            anon.send(anon.request(method, path), Body::empty()).await.is_refused(404, "not_found");
        }
    }
}

#[tokio::test]
async fn a_base_path_changes_nothing_else() {
    let stage = Stage::with(&[("BASE_PATH", "/auth")]).await;
    let ana = stage.anon();
    let answer = ana.post("/auth/signup", json!({"email": email_of("ana"), "password": password_of("ana")})).await.is(201);
    assert!(answer.set_cookies().iter().all(|line| line.contains("; Path=/;") || line.ends_with("; Path=/")), "{:?}", answer.set_cookies());
    ana.get("/auth/me").await.is(200);
    ana.get("/auth/check").await.is(204);
    let sessions = ana.get("/auth/me/sessions").await.is(200).json();
    ana.delete(&format!("/auth/me/sessions/{}", id_of(&sessions["sessions"][0]["id"]))).await.is(204);
    ana.get("/auth/me").await.is(401);
}

#[tokio::test]
async fn below_a_base_path_errors_look_the_same() {
    let stage = Stage::with(&[("BASE_PATH", "/auth")]).await;
    let anon = stage.anon();
    for path in ["/auth", "/auth/", "/auth/nowhere", "/auth/auth/me", "/authme", "/auth//me", "/Auth/me", "/", "/me"] {
        let answer = anon.get(path).await.is_refused(404, "not_found");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.header("x-request-id").is_some());
    }
    let answer = anon.poke("/auth/me").await.is_refused(405, "method_not_allowed");
    assert_eq!(allowed(&answer), set(&["GET", "PATCH"]));
    anon.get("/auth/me").await.is_refused(401, "unauthenticated");
}

/// LOCK-05: there is one way to spell the sign-in, so nothing that counts its failures can be walked around.
#[tokio::test]
async fn the_sign_in_has_one_spelling() {
    let stage = Stage::new().await;
    stage.sign_up("ana").await;
    let ask = json!({"email": email_of("ana"), "password": password_of("ana")});
    for path in ["//login", "/login/", "/LOGIN", "/%6cogin/", "/login;x", "/login/.", "/./login"] {
        stage.anon().post(path, ask.clone()).await.is_refused(404, "not_found");
    }
    stage.anon().with_header("x-http-method-override", "POST").get("/login").await.is_refused(405, "method_not_allowed");
}

/// DB-04: what one store would keep and another refuse is refused, or kept as it is, by all.
#[tokio::test]
async fn nul_and_wildcards_in_texts_are_refused_or_kept_as_they_are() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    ana.patch("/me", json!({"name": "a\u{0}b"})).await.is_refused(422, "validation_failed");
    for name in ["100 %", "_", "'; DROP TABLE users; --", "\\", "É"] {
        assert_eq!(ana.patch("/me", json!({"name": name})).await.is(200).json()["user"]["name"], name);
    }
    stage.anon().post("/login", json!({"email": "an_@example.com", "password": password_of("ana")})).await.is_refused(401, "invalid_credentials");
    stage.anon().post("/login", json!({"email": "%@example.com", "password": password_of("ana")})).await.is_refused(401, "invalid_credentials");
}
