//! `GET /openapi.json`: the contract, for machines. Made from the handlers themselves.

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{MethodRouter, get};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, ServerBuilder};
use utoipa::{Modify, OpenApi};

use crate::app::App;
use crate::config::Config;

/// Where it is served, below `BASE_PATH`.
pub const PATH: &str = "/openapi.json";

/// What stands above the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast",
        description = "Session security server. Errors are RFC 9457 problem documents; clients switch on their `code`. \
            State-changing requests of browsers must come from PUBLIC_URL or an allowed origin, else `403 cross_site_request`."
    ),
    modifiers(&Cookie)
)]
pub struct Description;

struct Cookie;

impl Modify for Cookie {
    fn modify(&self, document: &mut Document) {
        let cookie = ApiKey::Cookie(ApiKeyValue::with_description("__Host-holdfast", "The session cookie; `holdfast` on plain http."));
        document.components.get_or_insert_default().add_security_scheme("session", SecurityScheme::ApiKey(cookie));
    }
}

/// Puts in what only the settings know.
pub fn complete(document: &mut Document, config: &Config) {
    let url = format!("{}{}", config.public_url.origin, config.base_path);
    document.servers = Some(vec![ServerBuilder::new().url(url).build()]);
}

/// Serves the document: written once, at start.
pub fn route(document: &Document) -> MethodRouter<App> {
    // A document of strings and maps always serializes.
    let text = Bytes::from(document.to_json().unwrap_or_default());
    get(move || {
        let text = text.clone();
        async move { ([(CONTENT_TYPE, "application/json")], text) }
    })
}
