//! `GET /me`, `PATCH /me`, `GET /me/activity`: one's own account.

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::signup::take_name;
use super::{SignedInView, UserView, of_session};
use crate::app::App;
use crate::clock::Timestamp;
use crate::db::Tx;
use crate::device_sessions::{holding_with_user, still_current};
use crate::error::{Error, Refusal};
use crate::event::{self, Recorded};
use crate::form::{Form, FromForm, Json, NoQuery, Query, Rules};
use crate::guard::{NEWEST, SignedIn};
use crate::id::{EventId, SessionId};
use crate::live_sessions::LiveSession;

/// `GET /me`: who is signed in, and on which device.
#[utoipa::path(get, path = "/me", tag = "Account", operation_id = "me", security(("session" = [])),
    responses((status = 200, body = SignedInView)))]
pub async fn show(State(app): State<App>, SignedIn(me): SignedIn, Query(NoQuery): Query<NoQuery>) -> Result<axum::Json<SignedInView>, Error> {
    app.db.glance(move |tx| both(tx, &me)).await.map(axum::Json)
}

fn both(tx: &mut Tx, me: &LiveSession) -> Result<SignedInView, Error> {
    let Some((session, user)) = holding_with_user(tx, &me.token)? else {
        // It ended between the check and here.
        still_current(tx, me)?;
        return Err(Refusal::Unauthenticated.into());
    };
    Ok(SignedInView { user, session: session.view(true) })
}

/// `PATCH /me`: what to call oneself.
#[utoipa::path(patch, path = "/me", tag = "Account", operation_id = "rename_me", request_body = Rename, security(("session" = [])),
    responses((status = 200, body = UserAnswer)))]
pub async fn rename(
    State(app): State<App>,
    SignedIn(me): SignedIn,
    Query(NoQuery): Query<NoQuery>,
    Json(ask): Json<Rename>,
) -> Result<axum::Json<UserAnswer>, Error> {
    let user = app
        .db
        .write(move |tx| -> Result<UserView, Error> {
            still_current(tx, &me)?;
            tx.run("UPDATE users SET name = ?2 WHERE id = ?1", (me.user_id, &ask.name))?;
            Ok(of_session(tx, me.user_id)?.view)
        })
        .await?;
    Ok(axum::Json(UserAnswer { user }))
}

/// What a renaming sends.
#[derive(ToSchema)]
pub struct Rename {
    /// At most 200 characters, no control characters; may be empty.
    #[schema(max_length = 200, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
}

impl FromForm for Rename {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(Rename { name: take_name(form)? })
    }
}

/// A user, alone.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserAnswer {
    /// As changed.
    pub user: UserView,
}

/// `GET /me/activity`: this account's security events, newest first.
#[utoipa::path(get, path = "/me/activity", tag = "Account", operation_id = "my_activity", security(("session" = [])),
    params(("before" = Option<Uuid>, Query, description = "The `next` of the page before"), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100)),
    responses((status = 200, body = Activity)))]
pub async fn activity(State(app): State<App>, SignedIn(me): SignedIn, Query(page): Query<Page>) -> Result<axum::Json<Activity>, Error> {
    let limit = page.limit;
    let events = app.db.read(move |tx| event::of_user(tx, me.user_id, EventId(page.before), page.limit + 1).map_err(Error::from)).await?;
    let (events, next) = page_of(events, limit, |event| event.id);
    Ok(axum::Json(Activity { events: events.into_iter().map(EventView::of_own).collect(), next }))
}

/// Which part of a list.
pub struct Page {
    /// Only what is older than this.
    pub before: Uuid,
    /// At most so many.
    pub limit: i64,
}

impl FromForm for Page {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        let before = form.parameter("before", "This must be the `next` of the page before.", |text| EventId::parse(text).map(|id| id.0));
        let limit = form.parameter("limit", "This must be a whole number from 1 to 100.", |text| {
            text.parse::<i64>().ok().filter(|n| (1..=100).contains(n) && !text.starts_with('+'))
        });
        Some(Page { before: before?.unwrap_or(NEWEST), limit: limit?.unwrap_or(50) })
    }
}

/// Cuts a list that was read with one row too many, and says where the next page begins.
pub fn page_of<T, I>(mut rows: Vec<T>, limit: i64, id: impl Fn(&T) -> I) -> (Vec<T>, Option<I>) {
    let limit = usize::try_from(limit).unwrap_or(0);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(id);
    (rows, next)
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct Activity {
    /// Newest first.
    pub events: Vec<EventView>,
    /// Give it as `before` for the next page; `null` when there is none.
    #[schema(value_type = Option<Uuid>, required = true)]
    pub next: Option<EventId>,
}

/// An event, as the account's owner sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
#[allow(missing_docs)] // The contract's words.
pub struct EventView {
    #[schema(value_type = Uuid)]
    pub id: EventId,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    #[schema(example = "new_ip_login")]
    pub kind: String,
    #[schema(required = true)]
    pub ip: Option<String>,
    #[schema(required = true)]
    pub device_name: Option<String>,
    #[schema(value_type = Option<Uuid>, required = true)]
    pub session_id: Option<SessionId>,
    /// An object; what it holds depends on the kind.
    #[schema(value_type = Object)]
    pub detail: Value,
}

impl EventView {
    /// Shows everything.
    pub fn of(event: Recorded) -> Self {
        let Recorded { id, at, kind, session_id, ip, device_name, detail, .. } = event;
        EventView { id, at, kind, ip, device_name, session_id, detail }
    }

    /// Leaves out where an administrator sat who did something to the account. IDOR-03.
    fn of_own(mut event: Recorded) -> Self {
        if event.actor_id.is_some_and(|actor| Some(actor) != event.user_id) {
            event.ip = None;
            event.device_name = None;
        }
        EventView::of(event)
    }
}
