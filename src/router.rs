//! Every route on one page: open ones, those that need a session, those for administrators.

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::account::{login, logout, me, password_change, signup};
use crate::app::App;
use crate::error::Refusal;
use crate::middleware::{Around, Entrance};
use crate::{admin, device_sessions, forward_auth, health, openapi};

/// Builds the service: the routes, and the stack around them.
pub fn router(app: App) -> Around {
    let (routes, document) = routes(&app).split_for_parts();
    app.contract.get_or_init(|| openapi::written(&document, &app.config));
    let mounted = match app.config.base_path.as_str() {
        "" => routes,
        base => Router::new().nest(base, routes),
    };
    Around::new(mounted.fallback(|| async { Refusal::NotFound }).with_state(app.clone()), app)
}

fn routes(app: &App) -> OpenApiRouter<App> {
    // Each entrance stands before a route's own methods only: another method is `405` to everybody.
    let open = |(schemas, paths, route): UtoipaMethodRouter<App>| (schemas, paths, route.route_layer(Entrance::open(app)));
    let signed_in = |(schemas, paths, route): UtoipaMethodRouter<App>| (schemas, paths, route.route_layer(Entrance::signed_in(app)));
    // What needs the role admin says so in its handler's type.
    let admin = signed_in;

    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(open(routes!(signup::sign_up)))
        .routes(open(routes!(login::log_in)))
        .routes(open(routes!(logout::log_out)))
        .routes(open(routes!(health::live)))
        .routes(open(routes!(health::ready)))
        .routes(open(routes!(openapi::show)))
        .routes(signed_in(routes!(forward_auth::check)))
        .routes(signed_in(routes!(me::show, me::rename)))
        .routes(signed_in(routes!(me::activity)))
        .routes(signed_in(routes!(password_change::change)))
        .routes(signed_in(routes!(device_sessions::list, device_sessions::end_others)))
        .routes(signed_in(routes!(device_sessions::end_one)))
        .routes(admin(routes!(admin::list_users)))
        .routes(admin(routes!(admin::show_user)))
        .routes(admin(routes!(admin::put_role)))
        .routes(admin(routes!(admin::disable_user)))
        .routes(admin(routes!(admin::enable_user)))
        .routes(admin(routes!(admin::list_sessions, admin::end_sessions)))
        .routes(admin(routes!(admin::end_session)))
        .routes(admin(routes!(admin::list_events)))
}
