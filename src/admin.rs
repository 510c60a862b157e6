//! The administrator's view: users, their roles and standing, their sessions, the audit log.
//!
//! Every handler takes [`Admin`], so there is no check to forget. What changes somebody's privileges ends all their
//! sessions, the administrator's own too, before the answer. There is always one enabled admin: two who demote each other
//! at the same instant cannot both succeed (ADM-03). The command line does its deeds through the same functions (CLI-02).

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::account::email::Email;
use crate::account::me::{EventView, Page, page_of};
use crate::account::{User, UserView, by_email, by_id, logout, select_users};
use crate::app::App;
use crate::client::Client;
use crate::db::{Fault, Tx};
use crate::device_sessions::{SessionList, SignedOut, gone, listed, revoke, revoke_all, still_current};
use crate::error::{Error, Problem, Refusal};
use crate::event::{self, By, Event, KINDS, Scene, record};
use crate::form::{Form, FromForm, Json, NoQuery, Nothing, Query, Rules};
use crate::guard::{ADMIN, Admin, PathId, PathIds};
use crate::id::{EventId, UserId};
use crate::letter_token;
use crate::live_sessions::Session;

/// `GET /admin/users`: the users, newest first.
#[utoipa::path(get, path = "/admin/users", tag = "Administration", operation_id = "list_users", security(("session" = [])),
    params(("email" = Option<String>, Query, format = Email, max_length = 254, description = "Exactly this address, after normalisation"), ("before" = Option<Uuid>, Query), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100)),
    responses((status = 200, body = UserPage), (status = 403, body = Problem)))]
pub async fn list_users(State(app): State<App>, Admin(_): Admin, Query(ask): Query<UserQuery>) -> Result<axum::Json<UserPage>, Error> {
    let UserQuery { email, page: Page { before, limit } } = ask;
    let users = app.db.read(move |tx| users(tx, email.as_ref(), UserId(before), limit + 1).map_err(Error::from)).await?;
    let (users, next) = page_of(users, limit, |user| user.view.id);
    Ok(axum::Json(UserPage { users: users.into_iter().map(AdminUserView::of).collect(), next }))
}

/// `GET /admin/users/{id}`: one user.
#[utoipa::path(get, path = "/admin/users/{id}", tag = "Administration", operation_id = "show_user", params(("id" = Uuid, Path)), security(("session" = [])),
    responses((status = 200, body = AdminUserAnswer), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn show_user(
    State(app): State<App>,
    Admin(_): Admin,
    Query(NoQuery): Query<NoQuery>,
    PathId(id): PathId<UserId>,
) -> Result<axum::Json<AdminUserAnswer>, Error> {
    let user = app.db.read(move |tx| existing(tx, id)).await?;
    Ok(axum::Json(AdminUserAnswer { user: AdminUserView::of(user) }))
}

/// `PUT /admin/users/{id}/role`: gives a user another role, and ends all their sessions.
#[utoipa::path(put, path = "/admin/users/{id}/role", tag = "Administration", operation_id = "set_role", request_body = RoleChange, params(("id" = Uuid, Path)), security(("session" = [])),
    responses((status = 200, body = UserChanged), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
pub async fn put_role(
    State(app): State<App>,
    Admin(me): Admin,
    client: Client,
    Query(NoQuery): Query<NoQuery>,
    id: Result<PathId<UserId>, Error>,
    Json(RoleChange { role }): Json<RoleChange>,
) -> Result<axum::Json<UserChanged>, Error> {
    let PathId(id) = id?;
    change(&app, me, &client, id, move |tx, by, scene| set_role(tx, id, &role, by, scene)).await
}

/// `POST /admin/users/{id}/disable`: closes an account, and ends all its sessions.
#[utoipa::path(post, path = "/admin/users/{id}/disable", tag = "Administration", operation_id = "disable_user", params(("id" = Uuid, Path)), security(("session" = [])),
    responses((status = 200, body = UserChanged), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn disable_user(
    State(app): State<App>,
    Admin(me): Admin,
    client: Client,
    id: Result<PathId<UserId>, Error>,
    _: Nothing,
) -> Result<axum::Json<UserChanged>, Error> {
    let PathId(id) = id?;
    change(&app, me, &client, id, move |tx, by, scene| disable(tx, id, by, scene)).await
}

/// `POST /admin/users/{id}/enable`: opens it again. No session comes back.
#[utoipa::path(post, path = "/admin/users/{id}/enable", tag = "Administration", operation_id = "enable_user", params(("id" = Uuid, Path)), security(("session" = [])),
    responses((status = 200, body = UserChanged), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn enable_user(
    State(app): State<App>,
    Admin(me): Admin,
    client: Client,
    id: Result<PathId<UserId>, Error>,
    _: Nothing,
) -> Result<axum::Json<UserChanged>, Error> {
    let PathId(id) = id?;
    change(&app, me, &client, id, move |tx, by, scene| enable(tx, id, by, scene).map(|()| 0)).await
}

/// `GET /admin/users/{id}/sessions`: a user's live sessions.
#[utoipa::path(get, path = "/admin/users/{id}/sessions", tag = "Administration", operation_id = "list_sessions_of_user", params(("id" = Uuid, Path)), security(("session" = [])),
    responses((status = 200, body = SessionList), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn list_sessions(
    State(app): State<App>,
    Admin(me): Admin,
    Query(NoQuery): Query<NoQuery>,
    PathId(id): PathId<UserId>,
) -> Result<axum::Json<SessionList>, Error> {
    app.db.read(move |tx| existing(tx, id).map(|_| ())).await?;
    listed(&app, id, me.id).await
}

/// `DELETE /admin/users/{id}/sessions`: ends all of a user's sessions.
#[utoipa::path(delete, path = "/admin/users/{id}/sessions", tag = "Administration", operation_id = "end_sessions_of_user", params(("id" = Uuid, Path)), security(("session" = [])),
    responses((status = 200, body = SignedOut), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn end_sessions(State(app): State<App>, Admin(me): Admin, client: Client, id: Result<PathId<UserId>, Error>, _: Nothing) -> Result<Response, Error> {
    let PathId(id) = id?;
    let own = me.user_id == id;
    let scene = client.scene().await?;
    let signed_out = app
        .db
        .write(move |tx| -> Result<u64, Error> {
            still_current(tx, &me)?;
            existing(tx, id)?;
            Ok(revoke_all(tx, id, By::Admin(me.user_id), "asked", scene.clone())?)
        })
        .await?;
    let mut response = axum::Json(SignedOut { signed_out }).into_response();
    if own {
        logout::clear(&app, &mut response);
    }
    Ok(response)
}

/// `DELETE /admin/users/{id}/sessions/{session_id}`: ends one of them.
#[utoipa::path(delete, path = "/admin/users/{id}/sessions/{session_id}", tag = "Administration", operation_id = "end_session_of_user", params(("id" = Uuid, Path), ("session_id" = Uuid, Path)), security(("session" = [])),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn end_session(State(app): State<App>, Admin(me): Admin, client: Client, ids: Result<PathIds, Error>, _: Nothing) -> Result<Response, Error> {
    let PathIds(user, session) = ids?;
    let own = me.id == session;
    let scene = client.scene().await?;
    let found = app
        .db
        .write(move |tx| -> Result<bool, Error> {
            still_current(tx, &me)?;
            Ok(revoke(tx, user, session, By::Admin(me.user_id), scene.clone())?)
        })
        .await?;
    let mut response = gone(found)?;
    if own {
        logout::clear(&app, &mut response);
    }
    Ok(response)
}

/// `GET /admin/events`: the audit log, newest first.
#[utoipa::path(get, path = "/admin/events", tag = "Administration", operation_id = "list_events", security(("session" = [])),
    params(("kind" = inline(Option<Kind>), Query), ("user_id" = Option<Uuid>, Query), ("before" = Option<Uuid>, Query), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100)),
    responses((status = 200, body = EventPage), (status = 403, body = Problem)))]
pub async fn list_events(State(app): State<App>, Admin(_): Admin, Query(ask): Query<EventQuery>) -> Result<axum::Json<EventPage>, Error> {
    let EventQuery { kind, user, page: Page { before, limit } } = ask;
    let events = app.db.read(move |tx| event::all(tx, kind, user, EventId(before), limit + 1).map_err(Error::from)).await?;
    let (events, next) = page_of(events, limit, |event| event.id);
    Ok(axum::Json(EventPage { events: events.into_iter().map(AuditView::of).collect(), next }))
}

/// Does something to a user's account in one transaction, and answers with what became of it.
async fn change(
    app: &App,
    me: Session,
    client: &Client,
    id: UserId,
    deed: impl Fn(&mut Tx, By, Scene) -> Result<u64, Error> + Send + 'static,
) -> Result<axum::Json<UserChanged>, Error> {
    let scene = client.scene().await?.whose(id);
    let changed = app
        .db
        .write(move |tx| -> Result<UserChanged, Error> {
            still_current(tx, &me)?;
            let signed_out = deed(tx, By::Admin(me.user_id), scene.clone())?;
            Ok(UserChanged { user: AdminUserView::of(existing(tx, id)?), signed_out })
        })
        .await?;
    Ok(axum::Json(changed))
}

fn existing(tx: &mut Tx, id: UserId) -> Result<User, Error> {
    by_id(tx, id)?.ok_or_else(|| Refusal::NotFound.into())
}

/// Reads users, newest first, `limit` at most.
pub fn users(tx: &mut Tx, email: Option<&Email>, before: UserId, limit: i64) -> Result<Vec<User>, Fault> {
    match email {
        Some(email) => Ok(by_email(tx, email)?.into_iter().filter(|user| user.view.id < before).collect()),
        None => tx.rows(select_users!("WHERE id < ?1 ORDER BY id DESC LIMIT ?2"), (before, limit)),
    }
}

/// Gives a user a role, ends all their sessions, and counts those. The same role again changes nothing.
///
/// # Errors
/// `404` without such a user; `409 last_admin` when nobody enabled would be left to administer.
pub fn set_role(tx: &mut Tx, id: UserId, role: &str, by: By, scene: Scene) -> Result<u64, Error> {
    let user = existing(tx, id)?;
    if user.view.role == role {
        return Ok(0);
    }
    keep_an_admin(tx, &user)?;
    tx.run("UPDATE users SET role = ?2, security_version = security_version + 1 WHERE id = ?1", (id, role))?;
    let signed_out = revoke_all(tx, id, by, "role_changed", scene.clone())?;
    record(tx, scene, Event::RoleChanged { by, from: user.view.role, to: role.into() })?;
    Ok(signed_out)
}

/// Disables an account, ends all its sessions, and counts those. A second time changes nothing.
///
/// # Errors
/// `404` without such a user; `409 last_admin` when nobody enabled would be left to administer.
pub fn disable(tx: &mut Tx, id: UserId, by: By, scene: Scene) -> Result<u64, Error> {
    let user = existing(tx, id)?;
    if user.disabled {
        return Ok(0);
    }
    keep_an_admin(tx, &user)?;
    let now = tx.now();
    tx.run("UPDATE users SET disabled_at = ?2, security_version = security_version + 1 WHERE id = ?1", (id, now))?;
    letter_token::kill_short_lived(tx, id)?;
    let signed_out = revoke_all(tx, id, by, "account_disabled", scene.clone())?;
    record(tx, scene, Event::AccountDisabled { by })?;
    Ok(signed_out)
}

/// Enables an account. Its old sessions stay dead.
///
/// # Errors
/// `404` without such a user.
pub fn enable(tx: &mut Tx, id: UserId, by: By, scene: Scene) -> Result<(), Error> {
    if existing(tx, id)?.disabled {
        tx.run("UPDATE users SET disabled_at = ?2, security_version = security_version + 1 WHERE id = ?1", (id, None::<i64>))?;
        record(tx, scene, Event::AccountEnabled { by })?;
    }
    Ok(())
}

/// Refuses to take away the last enabled admin. Transactions are serializable, so two at once cannot both see the other.
fn keep_an_admin(tx: &mut Tx, user: &User) -> Result<(), Error> {
    if user.view.role != ADMIN || user.disabled {
        return Ok(());
    }
    let another: Option<i64> = tx.row("SELECT 1 FROM users WHERE role = ?1 AND disabled_at IS NULL AND id <> ?2 LIMIT 1", (ADMIN, user.view.id))?;
    if another.is_some() { Ok(()) } else { Err(Refusal::LastAdmin.into()) }
}

/// A user, as an administrator sees one.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AdminUser)]
pub struct AdminUserView {
    #[serde(flatten)]
    user: UserView,
    disabled: bool,
}

impl AdminUserView {
    /// Leaves out what nobody needs to see: the hash, the version.
    pub fn of(user: User) -> Self {
        AdminUserView { user: user.view, disabled: user.disabled }
    }
}

/// A page of users.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserPage {
    users: Vec<AdminUserView>,
    /// Give it as `before` for the next page; `null` when there is none.
    #[schema(value_type = Option<Uuid>, required = true)]
    next: Option<UserId>,
}

/// One user.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminUserAnswer {
    user: AdminUserView,
}

/// A user, as changed, and how many sessions that ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserChanged {
    user: AdminUserView,
    signed_out: u64,
}

/// What a change of role sends.
#[derive(ToSchema)]
pub struct RoleChange {
    /// One of `ROLES`.
    #[schema(example = "admin")]
    role: String,
}

impl FromForm for RoleChange {
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self> {
        let (role, known) = (form.text("role")?, &rules.config.roles);
        if !known.contains(&role) {
            return form.refuse("role", "invalid", format!("This must be one of {}.", known.join(", ")));
        }
        Some(RoleChange { role })
    }
}

/// An event, as an administrator sees one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEvent)]
pub struct AuditView {
    #[serde(flatten)]
    event: EventView,
    /// Whose account; `null` for a failed sign-in to no account.
    #[schema(value_type = Option<Uuid>, required = true)]
    user_id: Option<UserId>,
    /// The administrator who did it, if one did.
    #[schema(value_type = Option<Uuid>, required = true)]
    actor_id: Option<UserId>,
}

impl AuditView {
    fn of(event: event::Recorded) -> Self {
        let (user_id, actor_id) = (event.user_id, event.actor_id);
        AuditView { event: EventView::of(event), user_id, actor_id }
    }
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    events: Vec<AuditView>,
    /// Give it as `before` for the next page; `null` when there is none.
    #[schema(value_type = Option<Uuid>, required = true)]
    next: Option<EventId>,
}

/// Which users.
pub struct UserQuery {
    email: Option<Email>,
    page: Page,
}

impl FromForm for UserQuery {
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self> {
        let email = form.parameter("email", "This is not an e-mail address that can be used here.", Email::parse);
        let page = Page::take(form, rules);
        Some(UserQuery { email: email?, page: page? })
    }
}

/// A kind of event, for the document.
struct Kind;

impl PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(KINDS)).into()
    }
}

impl ToSchema for Kind {}

/// Which events.
pub struct EventQuery {
    kind: Option<&'static str>,
    user: Option<UserId>,
    page: Page,
}

impl FromForm for EventQuery {
    fn take(form: &mut Form, rules: &Rules<'_>) -> Option<Self> {
        let kind = form.parameter("kind", "This is no kind of event.", |text| KINDS.into_iter().find(|kind| *kind == text));
        let user = form.parameter("user_id", "This must be the id of a user.", UserId::parse);
        let page = Page::take(form, rules);
        Some(EventQuery { kind: kind?, user: user?, page: page? })
    }
}
