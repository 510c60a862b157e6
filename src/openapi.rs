//! `GET /openapi.json`: the contract, for machines.
//!
//! The routes, bodies and answers come from the handlers themselves. What is true of every route (how it refuses, which
//! header polls may send) is put in here, in one place, so that no handler can forget it.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use crate::app::App;
use crate::config::Config;
use crate::error::Problem;
use crate::form::{NoQuery, Query};

/// What stands above the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast",
        description = "Session security server. Errors are RFC 9457 problem documents; clients switch on their `code`. \
            State-changing requests of browsers must come from PUBLIC_URL or an allowed origin, else `403 cross_site_request`. \
            Another method than those of a route is `405 method_not_allowed`, any other path `404 not_found`."
    ),
    components(schemas(Problem))
)]
pub struct Description;

/// Writes the document for these settings.
pub fn written(document: &Document, config: &Config) -> Bytes {
    Bytes::from(complete(document, config).to_string())
}

/// Serves the document.
#[utoipa::path(get, path = "/openapi.json", tag = "Operations", operation_id = "openapi", responses((status = 200, content_type = "application/json", body = Object)))]
pub async fn show(State(app): State<App>, Query(NoQuery): Query<NoQuery>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], app.contract.get().cloned().unwrap_or_default())
}

/// Puts in what holds for all routes, and what only the settings know.
pub fn complete(document: &Document, config: &Config) -> Value {
    let mut whole = serde_json::to_value(document).unwrap_or_default();
    whole["servers"] = json!([{"url": format!("{}{}", config.public_url.origin, config.base_path)}]);
    let cookie = if config.public_url.https { "__Host-holdfast" } else { "holdfast" };
    whole["components"]["securitySchemes"] = json!({"session": {"type": "apiKey", "in": "cookie", "name": cookie, "description": "The session cookie."}});
    let mut bodies = Vec::new();
    let paths = whole["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for (method, operation) in paths.filter_map(Value::as_object_mut).flatten() {
        complete_operation(method, operation);
        bodies.extend(body_of(operation));
    }
    for body in bodies {
        // An unknown field is refused; an answer may get new ones.
        whole["components"]["schemas"][body]["additionalProperties"] = json!(false);
    }
    whole["components"]["schemas"]["RoleChange"]["properties"]["role"]["enum"] = json!(config.roles);
    whole
}

/// The name of the schema of an operation's JSON body. A body that may be left out is not `null` instead.
fn body_of(operation: &mut Value) -> Option<String> {
    let content = operation.pointer_mut("/requestBody/content")?.as_object_mut()?;
    for body in content.values_mut() {
        let present = body["schema"]["oneOf"].as_array().and_then(|either| either.iter().find(|one| one.get("$ref").is_some())).cloned();
        if let Some(present) = present {
            body["schema"] = present;
        }
    }
    content.get("application/json")?["schema"]["$ref"].as_str()?.rsplit('/').next().map(String::from)
}

fn complete_operation(method: &str, operation: &mut Value) {
    let signed_in = operation.get("security").is_some();
    let mut refusals = vec![400, 413, 415, 422, 500, 503];
    if method != "get" {
        refusals.push(403);
    }
    if signed_in {
        refusals.push(401);
        let passive = json!({"name": "X-Session-Passive", "in": "header", "required": false, "schema": {"type": "string", "example": "1"},
            "description": "1: this request does not count as activity; anything else says nothing."});
        match operation.get_mut("parameters").and_then(Value::as_array_mut) {
            Some(parameters) => parameters.push(passive),
            None => operation["parameters"] = json!([passive]),
        }
    }
    for status in refusals {
        let responses = &mut operation["responses"];
        if responses.get(status.to_string()).is_none() {
            responses[status.to_string()] = json!({"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}});
        }
    }
    let metered = operation["responses"]["429"]["headers"].get("RateLimit").is_some();
    let is_page = operation["tags"][0] == "Pages";
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        complete_response(status, response);
        if metered && (status == "429" || status.starts_with('2')) {
            tell_of_the_limit(response);
        }
        if is_page && ["403", "422"].contains(&status.as_str()) {
            // What a reader of the page can do something about is told on a page.
            response["content"]["text/html"] = json!({"schema": {"type": "string"}});
        }
    }
}

/// What the answers of a route with a [`Limit`](crate::flood::Limit) say of it.
fn tell_of_the_limit(response: &mut Value) {
    let header = |about: &str| json!({"description": about, "schema": {"type": "string"}});
    response["headers"]["RateLimit"] = header("What this source has left, and for how many seconds it is no more than that: `\"signup\";r=19;t=180`.");
    response["headers"]["RateLimit-Policy"] = header("What a source has, and within how many seconds: `\"signup\";q=20;w=3600`.");
}

fn complete_response(status: &str, response: &mut Value) {
    if response["description"].as_str().is_none_or(str::is_empty) {
        response["description"] = json!(words_for(status));
    }
    response["headers"]["X-Request-Id"] = json!({"schema": {"type": "string"}});
    if matches!(status, "429" | "503") {
        response["headers"]["Retry-After"] = json!({"description": "Seconds.", "schema": {"type": "integer"}});
    }
    let is_problem = !status.starts_with('2');
    if let (true, Some(content)) = (is_problem, response.get_mut("content").and_then(Value::as_object_mut))
        && let Some(schema) = content.remove("application/json")
    {
        content.insert("application/problem+json".into(), schema);
    }
}

fn words_for(status: &str) -> &'static str {
    match status {
        "200" => "Done.",
        "201" => "Made.",
        "204" => "Done; there is nothing to say.",
        "202" => "Taken; a letter may follow.",
        "400" => "`malformed_json`, `malformed_request`, `invalid_token`",
        "401" => "`unauthenticated`, `invalid_credentials`, or why the session is dead: `session_…`",
        "403" => "`cross_site_request`, `forbidden`, `invalid_credentials`, `email_unverified`, `signup_closed`",
        "404" => "`not_found`",
        "409" => "`email_taken`, `last_admin`",
        "413" => "`body_too_large`",
        "415" => "`unsupported_media_type`",
        "422" => "`validation_failed`: `errors` names every field at fault",
        "429" => "`rate_limited`: try again after `Retry-After` seconds",
        "503" => "`overloaded`: try again after `Retry-After` seconds",
        _ => "`internal`",
    }
}
