//! Every route on one page: open ones, the pages of letters, those that need a session, those for administrators.

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::account::{email_change, email_verification, login, logout, me, password_change, password_reset, signup};
use crate::app::App;
use crate::error::Refusal;
use crate::middleware::{Around, Entrance};
use crate::{admin, device_sessions, forward_auth, health, openapi, security_page};

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
    let page = |(schemas, paths, route): UtoipaMethodRouter<App>| (schemas, paths, route.route_layer(Entrance::page(app)));
    // What needs the role admin says so in its handler's type.
    let admin = signed_in;

    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(open(routes!(signup::sign_up)))
        .routes(open(routes!(login::log_in)))
        .routes(open(routes!(logout::log_out)))
        .routes(open(routes!(health::live)))
        .routes(open(routes!(health::ready)))
        .routes(open(routes!(openapi::show)))
        .routes(open(routes!(email_verification::verify)))
        .routes(open(routes!(email_verification::send_again)))
        .routes(open(routes!(password_reset::forgot)))
        .routes(open(routes!(password_reset::reset)))
        .routes(open(routes!(email_change::confirm)))
        .routes(open(routes!(email_change::undo)))
        .routes(page(routes!(security_page::session, security_page::disown)))
        .routes(page(routes!(security_page::end_all)))
        .routes(page(routes!(security_page::verify_page, security_page::verify)))
        .routes(page(routes!(security_page::reset_page, security_page::reset)))
        .routes(page(routes!(security_page::change_page, security_page::change)))
        .routes(page(routes!(security_page::undo_page, security_page::undo)))
        .routes(signed_in(routes!(forward_auth::check)))
        .routes(signed_in(routes!(me::show, me::rename)))
        .routes(signed_in(routes!(me::activity)))
        .routes(signed_in(routes!(password_change::change)))
        .routes(signed_in(routes!(email_change::ask)))
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
