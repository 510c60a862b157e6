//! The device sessions of a user: the table, and what the user can do with it.
//!
//! A row is one browser, app or script that has signed in. The user sees each of them, recognises it by device and address,
//! and can end it; whoever held its cookie is out with the very next request. Rows are ended, never deleted at once: the
//! holder of a dead token is told why, and nothing revives an id.
//!
//! All writing to the table is here and in [`session_security::rotate`](crate::session_security::rotate), and every ending
//! tells memory in the same breath, so a revocation cannot be forgotten. An attacker tries to end or see the sessions of
//! others: an id of somebody else, an ended one and one that never was get the same `404`.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::account::logout;
use crate::app::App;
use crate::client::{Client, Device};
use crate::clock::Timestamp;
use crate::db::{Fault, FromRow, Row, Tx};
use crate::error::{Error, Problem, Refusal};
use crate::event::{By, Event, Scene, record};
use crate::form::{Form, FromForm, NoQuery, Nothing, Query, Rules};
use crate::guard::{PathId, SignedIn};
use crate::id::{SessionId, UserId};
use crate::live_sessions::LiveSession;
use crate::secret::{Token, TokenHash};
use crate::session_security::{Limits, Verdict, is_first_report, is_stolen, judge};

/// `GET /me/sessions`: the user's live sessions, the current one first, then the most recently active.
#[utoipa::path(get, path = "/me/sessions", tag = "Sessions", operation_id = "list_sessions", security(("session" = [])),
    responses((status = 200, body = SessionList)))]
pub async fn list(State(app): State<App>, SignedIn(me): SignedIn, Query(NoQuery): Query<NoQuery>) -> Result<axum::Json<SessionList>, Error> {
    listed(&app, me.user_id, me.id).await
}

/// Lists a user's live sessions. What is past a deadline is not only left out but marked as ended: what was told to be gone
/// does not come back when the clock steps.
pub async fn listed(app: &App, user: UserId, current: SessionId) -> Result<axum::Json<SessionList>, Error> {
    let (sessions, some_are_dead) = app.db.read(move |tx| views_of(tx, user, current)).await?;
    if some_are_dead {
        app.db.write(move |tx| settle(tx, user).map(|_| ())).await?;
    }
    Ok(axum::Json(SessionList { sessions }))
}

/// `DELETE /me/sessions/{id}`: ends one session. One's own current one is a logout.
#[utoipa::path(delete, path = "/me/sessions/{id}", tag = "Sessions", operation_id = "end_session", params(("id" = uuid::Uuid, Path)), security(("session" = [])),
    responses((status = 204), (status = 404, body = Problem)))]
pub async fn end_one(
    State(app): State<App>,
    SignedIn(me): SignedIn,
    client: Client,
    id: Result<PathId<SessionId>, Error>,
    _: Nothing,
) -> Result<Response, Error> {
    let PathId(id) = id?;
    if id == me.id {
        return logout::end_current(&app, me.token, client).await;
    }
    let scene = client.scene().await?;
    let found = app
        .db
        .write(move |tx| -> Result<bool, Error> {
            still_current(tx, &me)?;
            Ok(revoke(tx, me.user_id, id, By::User, scene.clone())?)
        })
        .await?;
    gone(found)
}

/// `DELETE /me/sessions`: "sign out everywhere else".
#[utoipa::path(delete, path = "/me/sessions", tag = "Sessions", operation_id = "end_sessions", params(("include_current" = Option<bool>, Query)), security(("session" = [])),
    responses((status = 200, body = SignedOut)))]
pub async fn end_others(State(app): State<App>, SignedIn(me): SignedIn, client: Client, Query(ask): Query<Everywhere>) -> Result<Response, Error> {
    let scene = client.scene().await?;
    let signed_out = app
        .db
        .write(move |tx| -> Result<u64, Error> {
            still_current(tx, &me)?;
            let mut ended = end_others_of(tx, &me, By::User, "asked", scene.clone())?;
            if ask.include_current {
                ended += u64::from(sign_out(tx, &me.token, client.ip)?);
            }
            Ok(ended)
        })
        .await?;
    let mut response = axum::Json(SignedOut { signed_out }).into_response();
    if ask.include_current {
        logout::clear(&app, &mut response);
    }
    Ok(response)
}

/// What `DELETE /me/sessions` may be asked.
pub struct Everywhere {
    include_current: bool,
}

impl FromForm for Everywhere {
    fn take(form: &mut Form, _: &Rules<'_>) -> Option<Self> {
        Some(Everywhere { include_current: form.flag("include_current", false)? })
    }
}

/// A list of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionList {
    /// Live ones only.
    pub sessions: Vec<SessionView>,
}

/// How many sessions were ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignedOut {
    /// Those that were still alive.
    pub signed_out: u64,
}

/// A session, as its owner sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
#[allow(missing_docs)] // The contract's words.
pub struct SessionView {
    #[schema(value_type = uuid::Uuid)]
    pub id: SessionId,
    /// Whether it is the one that asks.
    pub current: bool,
    #[schema(example = "Chrome on macOS")]
    pub device_name: String,
    /// `desktop`, `mobile`, `tablet`, `bot` or `other`.
    pub device_type: String,
    pub ip: String,
    pub user_agent: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_active_at: Timestamp,
    /// When it dies if nobody uses it; never after `expires_at`.
    #[schema(value_type = String, format = DateTime)]
    pub idle_expires_at: Timestamp,
    /// When it dies, however active.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub authenticated_at: Timestamp,
    pub auth_methods: Vec<String>,
    pub remember: bool,
    pub new_ip: bool,
    pub new_device: bool,
}

/// Why a session ended. Stored, and told to the holder of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Silent for longer than its idle timeout.
    IdleTimeout,
    /// Past its absolute deadline.
    Expired,
    /// By the user elsewhere, a password change, or an administrator.
    Revoked,
    /// By its own user, on purpose.
    LoggedOut,
    /// It made room for another sign-in.
    Replaced,
}

impl EndReason {
    /// The code that its holder gets, which is also what is stored.
    pub fn code(self) -> &'static str {
        self.told().0
    }

    /// Code, title and detail.
    pub fn told(self) -> (&'static str, &'static str, &'static str) {
        match self {
            EndReason::IdleTimeout => ("session_idle_timeout", "Signed out after inactivity", "The session was idle for too long. Sign in again."),
            EndReason::Expired => {
                ("session_expired", "The session has reached its time limit", "Every session ends some time after its sign-in. Sign in again.")
            }
            EndReason::Revoked => {
                ("session_revoked", "The session was ended", "It was ended from another device, by a password change, or by an administrator. Sign in again.")
            }
            EndReason::LoggedOut => ("session_logged_out", "Signed out", "This session was signed out. Sign in again."),
            EndReason::Replaced => ("session_replaced", "Another sign-in took its place", "A newer sign-in replaced this session. Sign in again."),
        }
    }

    fn read(code: &str) -> Result<Self, Fault> {
        let all = [EndReason::IdleTimeout, EndReason::Expired, EndReason::Revoked, EndReason::LoggedOut, EndReason::Replaced];
        all.into_iter().find(|reason| reason.code() == code).ok_or_else(|| Fault::broken(format!("a session ended for the unknown reason {code}")))
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The columns are told in the migration.
pub struct DeviceSession {
    pub id: SessionId,
    pub user_id: UserId,
    pub token: TokenHash,
    pub created_at: Timestamp,
    pub authenticated_at: Timestamp,
    pub auth_methods: String,
    pub last_active_at: Timestamp,
    pub limits: Limits,
    pub remember: bool,
    pub ip: String,
    pub user_agent: String,
    pub device_name: String,
    pub device_type: String,
    pub new_ip: bool,
    pub new_device: bool,
}

macro_rules! select_sessions {
    ($rest:literal) => {
        concat!(
            "SELECT id, user_id, token_hash, created_at, authenticated_at, auth_methods, last_active_at, idle_timeout_ms, expires_at,
         remember, ip, user_agent, device_name, device_type, new_ip, new_device FROM device_sessions WHERE ",
            $rest
        )
    };
}

impl FromRow for DeviceSession {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        Ok(DeviceSession {
            id: row.get(0)?,
            user_id: row.get(1)?,
            token: row.get(2)?,
            created_at: row.get(3)?,
            authenticated_at: row.get(4)?,
            auth_methods: row.get(5)?,
            last_active_at: row.get(6)?,
            limits: Limits { idle_ms: row.get(7)?, expires_at: row.get(8)? },
            remember: row.get(9)?,
            ip: row.get(10)?,
            user_agent: row.get(11)?,
            device_name: row.get(12)?,
            device_type: row.get(13)?,
            new_ip: row.get(14)?,
            new_device: row.get(15)?,
        })
    }
}

impl DeviceSession {
    /// As its owner sees it.
    pub fn view(&self, current: bool) -> SessionView {
        SessionView {
            id: self.id,
            current,
            device_name: self.device_name.clone(),
            device_type: self.device_type.clone(),
            ip: self.ip.clone(),
            user_agent: self.user_agent.clone(),
            created_at: self.created_at,
            last_active_at: self.last_active_at,
            idle_expires_at: self.limits.idle_expires_at(self.last_active_at),
            expires_at: self.limits.expires_at,
            authenticated_at: self.authenticated_at,
            auth_methods: self.auth_methods.split(' ').map(String::from).collect(),
            remember: self.remember,
            new_ip: self.new_ip,
            new_device: self.new_device,
        }
    }

    /// Puts in the last-active of memory, which is the truth.
    fn brought_up_to_date(mut self, tx: &Tx) -> Self {
        if let Some(newer) = tx.live().last_active(&self.token) {
            self.last_active_at = self.last_active_at.max(newer);
        }
        self
    }
}

/// What the database knows of a token.
#[derive(Debug)]
pub enum Known {
    /// It opens this session, last active then; whether it still may is for [`judge`] to say.
    Open(Box<LiveSession>, Timestamp),
    /// Its session has ended.
    Ended(EndReason),
    /// A newer token took its place in this session.
    Rotated(SessionId),
    /// Never issued, or purged since.
    Nothing,
}

/// Looks a token up by its hash: the only way in.
pub fn look_up(tx: &mut Tx, token: &TokenHash) -> Result<Known, Fault> {
    let found: Option<Found> = tx.row(
        "SELECT s.id, s.user_id, u.role, u.email, u.email_verified, s.idle_timeout_ms, s.expires_at, s.last_active_at,
                s.ended_reason, u.disabled_at,
                EXISTS (SELECT 1 FROM retired_tokens AS r WHERE r.session_id = s.id AND r.successor_used = 0)
         FROM device_sessions AS s JOIN users AS u ON u.id = s.user_id WHERE s.token_hash = ?1",
        (token,),
    )?;
    if let Some(Found { mut session, last_active, ended }) = found {
        session.token = *token;
        return Ok(match ended {
            Some(reason) => Known::Ended(reason),
            None => Known::Open(Box::new(session), last_active),
        });
    }
    let retired: Option<SessionId> = tx.row("SELECT session_id FROM retired_tokens WHERE token_hash = ?1", (token,))?;
    Ok(retired.map_or(Known::Nothing, Known::Rotated))
}

struct Found {
    session: LiveSession,
    last_active: Timestamp,
    ended: Option<EndReason>,
}

impl FromRow for Found {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        let (role, email): (String, String) = (row.get(2)?, row.get(3)?);
        let ended: Option<String> = row.get(8)?;
        let disabled: Option<Timestamp> = row.get(9)?;
        // Disabling ends all sessions; should one ever be left, it opens nothing.
        let ended = match ended {
            Some(code) => Some(EndReason::read(&code)?),
            None => disabled.map(|_| EndReason::Revoked),
        };
        let session = LiveSession {
            id: row.get(0)?,
            user_id: row.get(1)?,
            role: role.into(),
            email: email.into(),
            email_verified: row.get(4)?,
            limits: Limits { idle_ms: row.get(5)?, expires_at: row.get(6)? },
            token: TokenHash([0; 32]),
            unproved: row.get(10)?,
        };
        Ok(Found { session, last_active: row.get(7)?, ended })
    }
}

/// The session of a retired token, if the token's coming back now is a sign of theft that was not reported yet.
pub fn looks_stolen(tx: &mut Tx, retired: &TokenHash) -> Result<Option<DeviceSession>, Fault> {
    let found: Option<(SessionId, Timestamp, bool)> =
        tx.row("SELECT session_id, retired_at, successor_used FROM retired_tokens WHERE token_hash = ?1 AND reuse_seen_at IS NULL", (retired,))?;
    match found {
        Some((session, retired_at, successor_used)) if is_stolen(retired_at, successor_used, tx.now()) => by_id(tx, session),
        _ => Ok(None),
    }
}

/// Raises the alarm, once per token, if a retired token that has come back can only be a copy.
pub fn report_if_stolen(tx: &mut Tx, retired: &TokenHash, scene: Scene) -> Result<(), Fault> {
    let Some(session) = looks_stolen(tx, retired)? else { return Ok(()) };
    if is_first_report(tx, retired)? {
        record(tx, scene.whose(session.user_id).about(session.id), Event::RotatedTokenReused)?;
    }
    Ok(())
}

/// Why a token opens nothing now.
pub fn refusal_for(tx: &mut Tx, token: &TokenHash) -> Result<Option<Refusal>, Fault> {
    Ok(match look_up(tx, token)? {
        Known::Open(..) => None,
        Known::Ended(reason) => Some(Refusal::SessionEnded(reason)),
        Known::Rotated(_) => Some(Refusal::SessionRotated),
        Known::Nothing => Some(Refusal::Unauthenticated),
    })
}

/// Checks, inside the transaction that acts, that the session which asked still stands with the token that asked.
pub fn still_current(tx: &mut Tx, asking: &LiveSession) -> Result<(), Error> {
    match refusal_for(tx, &asking.token)? {
        None => Ok(()),
        Some(refusal) => Err(refusal.into()),
    }
}

/// Reads the session that holds a token.
pub fn holding(tx: &mut Tx, token: &TokenHash) -> Result<Option<DeviceSession>, Fault> {
    let found: Option<DeviceSession> = tx.row(select_sessions!("token_hash = ?1 AND ended_at IS NULL"), (token,))?;
    Ok(found.map(|session| session.brought_up_to_date(tx)))
}

/// Reads a session by its id, ended or not.
pub fn by_id(tx: &mut Tx, id: SessionId) -> Result<Option<DeviceSession>, Fault> {
    tx.row(select_sessions!("id = ?1"), (id,))
}

/// Reads a user's live sessions, with their true last-active, and nothing that is past a deadline.
pub fn live_of(tx: &mut Tx, user: UserId) -> Result<Vec<DeviceSession>, Fault> {
    Ok(open_of(tx, user)?.into_iter().filter(|(_, verdict)| *verdict == Verdict::Live).map(|(session, _)| session).collect())
}

/// Reads a user's sessions that are not marked as ended, each with its verdict.
fn open_of(tx: &mut Tx, user: UserId) -> Result<Vec<(DeviceSession, Verdict)>, Fault> {
    let rows: Vec<DeviceSession> = tx.rows(select_sessions!("user_id = ?1 AND ended_at IS NULL"), (user,))?;
    let now = tx.now();
    let judged = rows.into_iter().map(|session| session.brought_up_to_date(tx)).map(|session| {
        let verdict = judge(&session.limits, session.last_active_at, now);
        (session, verdict)
    });
    Ok(judged.collect())
}

/// The live sessions as a list for people, and whether there are others that have yet to be marked as ended.
fn views_of(tx: &mut Tx, user: UserId, current: SessionId) -> Result<(Vec<SessionView>, bool), Fault> {
    let all = open_of(tx, user)?;
    let mut live: Vec<&DeviceSession> = all.iter().filter(|(_, verdict)| *verdict == Verdict::Live).map(|(session, _)| session).collect();
    live.sort_by_key(|session| (session.id != current, std::cmp::Reverse((session.last_active_at, session.id))));
    let views: Vec<SessionView> = live.iter().map(|session| session.view(session.id == current)).collect();
    let some_are_dead = views.len() < all.len();
    Ok((views, some_are_dead))
}

/// Ends sessions. The count is of those that this call ended: a session ends once.
pub fn end(tx: &mut Tx, sessions: &[DeviceSession], why: EndReason) -> Result<u64, Fault> {
    let now = tx.now();
    let batch: Vec<_> = sessions.iter().map(|session| vec![session.id.into(), now.into(), why.code().into()]).collect();
    let ended = tx.run_each("UPDATE device_sessions SET ended_at = ?2, ended_reason = ?3 WHERE id = ?1 AND ended_at IS NULL", &batch)?;
    sessions.iter().for_each(|session| tx.forget(&session.token));
    Ok(ended)
}

/// Marks a session that is past a deadline as ended, which no step of the clock takes back.
pub fn time_out(tx: &mut Tx, session: &DeviceSession, reason: EndReason) -> Result<(), Fault> {
    if end(tx, std::slice::from_ref(session), reason)? == 1 {
        record(tx, Scene::of(session), Event::SessionTimedOut { reason })?;
    }
    Ok(())
}

/// A user's live sessions, for a transaction that is about to act on them: whatever is past a deadline is marked as ended,
/// so that it is neither counted nor ended for another reason.
pub fn settle(tx: &mut Tx, user: UserId) -> Result<Vec<DeviceSession>, Fault> {
    let mut live = Vec::new();
    for (session, verdict) in open_of(tx, user)? {
        match verdict.reason() {
            None => live.push(session),
            Some(reason) => time_out(tx, &session, reason)?,
        }
    }
    Ok(live)
}

/// Marks what was past a deadline at `moment` as ended, over all users, a chunk at a time; says where the next chunk begins.
pub fn settle_chunk(tx: &mut Tx, moment: Timestamp, after: SessionId) -> Result<Option<SessionId>, Fault> {
    let chunk: Vec<DeviceSession> = tx.rows(select_sessions!("id > ?1 AND ended_at IS NULL ORDER BY id LIMIT 200"), (after,))?;
    let next = chunk.last().map(|session| session.id);
    for session in chunk {
        let session = session.brought_up_to_date(tx);
        if let Some(reason) = judge(&session.limits, session.last_active_at, moment).reason() {
            time_out(tx, &session, reason)?;
        }
    }
    Ok(next)
}

/// Ends one live session of a user from elsewhere: from where, `scene` says. False, alike, for somebody else's, an ended and
/// an unknown id; a value and no error, since what was found to be past its deadline has to stay marked.
pub fn revoke(tx: &mut Tx, user: UserId, id: SessionId, by: By, scene: Scene) -> Result<bool, Fault> {
    let Some(session) = settle(tx, user)?.into_iter().find(|session| session.id == id) else { return Ok(false) };
    end(tx, std::slice::from_ref(&session), EndReason::Revoked)?;
    record(tx, scene.whose(user).about(id), Event::SessionRevoked { by })?;
    Ok(true)
}

/// `204` if it was there.
pub fn gone(found: bool) -> Result<Response, Error> {
    if found { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(Refusal::NotFound.into()) }
}

/// Ends all sessions of a user, and counts those that were alive.
pub fn revoke_all(tx: &mut Tx, user: UserId, by: By, because: &'static str, scene: Scene) -> Result<u64, Fault> {
    let live = settle(tx, user)?;
    revoke_these(tx, scene.whose(user), &live, by, because)
}

/// Ends all sessions of a user but the one that asks.
pub fn end_others_of(tx: &mut Tx, asking: &LiveSession, by: By, because: &'static str, scene: Scene) -> Result<u64, Fault> {
    let others: Vec<DeviceSession> = settle(tx, asking.user_id)?.into_iter().filter(|session| session.id != asking.id).collect();
    revoke_these(tx, scene.whose(asking.user_id).about(asking.id), &others, by, because)
}

fn revoke_these(tx: &mut Tx, scene: Scene, live: &[DeviceSession], by: By, because: &'static str) -> Result<u64, Fault> {
    let count = end(tx, live, EndReason::Revoked)?;
    if count > 0 {
        record(tx, scene, Event::SessionsRevoked { by, count, because })?;
    }
    Ok(count)
}

/// Signs the session out that holds a token; says whether it was alive.
pub fn sign_out(tx: &mut Tx, token: &TokenHash, from: IpAddr) -> Result<bool, Fault> {
    let Some(session) = holding(tx, token)? else { return Ok(false) };
    if let Some(reason) = judge(&session.limits, session.last_active_at, tx.now()).reason() {
        time_out(tx, &session, reason)?;
        return Ok(false);
    }
    end(tx, std::slice::from_ref(&session), EndReason::LoggedOut)?;
    record(tx, Scene::of(&session).from(from), Event::SignedOut)?;
    Ok(true)
}

/// Whom a new session is for, and how it was come by.
pub struct Opening<'a> {
    /// Whose.
    pub user: UserId,
    /// Fixed now, for the whole of its life.
    pub limits: Limits,
    /// Whether it outlives the browser.
    pub remember: bool,
    /// From where.
    pub client: &'a Client,
    /// With what.
    pub device: Device,
    /// From an address that is new for this user.
    pub new_ip: bool,
    /// On a browser that is new for this user.
    pub new_device: bool,
    /// How many live sessions the user may have.
    pub most: usize,
}

/// Opens a session with a token of its own. If the user has too many, the one idle longest makes room.
pub fn open(tx: &mut Tx, opening: Opening<'_>) -> Result<(DeviceSession, Token, u64), Fault> {
    let mut live = settle(tx, opening.user)?;
    live.sort_by_key(|session| (session.last_active_at, session.id));
    let too_many = (live.len() + 1).saturating_sub(opening.most);
    let replaced = end(tx, &live[..too_many], EndReason::Replaced)?;

    let (token, now) = (Token::mint(tx.chance()), tx.now());
    let session = DeviceSession {
        id: SessionId(tx.next_id()),
        user_id: opening.user,
        token: token.hash(),
        created_at: now,
        authenticated_at: now,
        auth_methods: "password".into(),
        last_active_at: now,
        limits: opening.limits,
        remember: opening.remember,
        ip: opening.client.ip.to_string(),
        user_agent: opening.client.user_agent.clone(),
        device_name: opening.device.name,
        device_type: opening.device.kind.into(),
        new_ip: opening.new_ip,
        new_device: opening.new_device,
    };
    tx.run(
        "INSERT INTO device_sessions (id, user_id, token_hash, created_at, authenticated_at, auth_methods, last_active_at, idle_timeout_ms,
             expires_at, remember, ip, user_agent, device_name, device_type, new_ip, new_device)
         VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?4, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        vec![
            session.id.into(),
            session.user_id.into(),
            (&session.token).into(),
            now.into(),
            (&session.auth_methods).into(),
            session.limits.idle_ms.into(),
            session.limits.expires_at.into(),
            session.remember.into(),
            (&session.ip).into(),
            (&session.user_agent).into(),
            (&session.device_name).into(),
            (&session.device_type).into(),
            session.new_ip.into(),
            session.new_device.into(),
        ],
    )?;
    Ok((session, token, replaced))
}

/// Adds a `Set-Cookie` to an answer.
pub fn set_cookie(response: &mut Response, cookie: axum::http::HeaderValue) {
    response.headers_mut().append(SET_COOKIE, cookie);
}
