//! `GET /health/live`, `GET /health/ready`: for whoever starts, stops and balances this server.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;

use crate::app::App;
use crate::error::Refusal;
use crate::form::{NoQuery, Query};

/// `200` while the process serves.
#[utoipa::path(get, path = "/health/live", tag = "Operations", operation_id = "live", responses((status = 200)))]
pub async fn live(Query(NoQuery): Query<NoQuery>) -> StatusCode {
    StatusCode::OK
}

/// `200` while it can be given work: the database can be written, and no stop is under way.
#[utoipa::path(get, path = "/health/ready", tag = "Operations", operation_id = "ready", responses((status = 200)))]
pub async fn ready(State(app): State<App>, Query(NoQuery): Query<NoQuery>) -> Result<StatusCode, Refusal> {
    if app.draining.load(Ordering::Relaxed) || !app.db.is_usable() {
        return Err(Refusal::Overloaded(1));
    }
    Ok(StatusCode::OK)
}
