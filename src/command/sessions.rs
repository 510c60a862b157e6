//! `holdfast sessions …`

use clap::{Args, Subcommand};
use serde::Serialize;

use super::table::{print, print_json, say};
use super::{Failure, find};
use crate::account::{self, User};
use crate::app::App;
use crate::db::{Fault, Tx};
use crate::device_sessions::{self, DeviceSession, SessionView, live_of, revoke, revoke_all};
use crate::error::{Error, Refusal};
use crate::event::{By, Scene};
use crate::id::{SessionId, UserId};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List live sessions, the most recently active first
    List {
        /// Only those of this account (e-mail address or id)
        #[arg(long)]
        user: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End sessions; they are dead for a running server within a second
    Revoke {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// One session, by its id
    #[arg(value_name = "SESSION")]
    session: Option<String>,
    /// All of an account (e-mail address or id)
    #[arg(long)]
    user: Option<String>,
    /// All of everybody
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(app: &App, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { user, json } => list(app, user, json).await,
        Command::Revoke { which, json } => end(app, which, json).await,
    }
}

/// A live session, and whose it is.
#[derive(Serialize)]
struct Listed {
    user_id: UserId,
    email: String,
    #[serde(flatten)]
    session: SessionView,
}

fn listed(tx: &mut Tx, user: &User) -> Result<Vec<Listed>, Fault> {
    let sessions = live_of(tx, user.view.id)?;
    let whose = |session: &DeviceSession| Listed { user_id: user.view.id, email: user.view.email.clone(), session: session.view(false) };
    Ok(sessions.iter().map(whose).collect())
}

async fn list(app: &App, user: Option<String>, json: bool) -> Result<(), Failure> {
    let mut all = Vec::new();
    match user {
        Some(who) => all = app.db.read(move |tx| -> Result<_, Error> { find(tx, &who).and_then(|user| Ok(listed(tx, &user)?)) }).await?,
        None => {
            let mut after = None;
            while let Some(user) = next_user(app, after).await? {
                all.extend(app.db.read(move |tx| -> Result<_, Fault> { account::of_session(tx, user).and_then(|user| listed(tx, &user)) }).await?);
                after = Some(user);
            }
        }
    }
    all.sort_by_key(|one| std::cmp::Reverse((one.session.last_active_at, one.session.id)));
    if json {
        return print_json(&all);
    }
    let rows = all.into_iter().map(|Listed { email, session, .. }| {
        let new = match (session.new_ip, session.new_device) {
            (true, true) => "ip, device",
            (true, false) => "ip",
            (false, true) => "device",
            (false, false) => "",
        };
        vec![session.id.to_string(), email, session.device_name, session.ip, session.last_active_at.to_string(), session.expires_at.to_string(), new.into()]
    });
    print(&["ID", "USER", "DEVICE", "IP", "LAST ACTIVE", "EXPIRES", "NEW"], rows)
}

async fn end(app: &App, which: Which, json: bool) -> Result<(), Failure> {
    let ended = match (which.session, which.user) {
        (Some(session), _) => end_one(app, &session).await?,
        (None, Some(who)) => {
            app.db
                .write(move |tx| -> Result<u64, Error> {
                    let id = find(tx, &who)?.view.id;
                    Ok(revoke_all(tx, id, By::Cli, "asked", Scene::default())?)
                })
                .await?
        }
        (None, None) => end_all(app).await?,
    };
    if json {
        return print_json(&serde_json::json!({"signed_out": ended}));
    }
    say(&format!("{ended} sessions ended"))
}

async fn end_one(app: &App, session: &str) -> Result<u64, Failure> {
    let id = SessionId::parse(session).ok_or_else(|| Failure::Failed("there is no such session".into()))?;
    let found = app
        .db
        .write(move |tx| -> Result<bool, Fault> {
            let Some(session) = device_sessions::by_id(tx, id)? else { return Ok(false) };
            revoke(tx, session.user_id, id, By::Cli, Scene::default())
        })
        .await?;
    if found { Ok(1) } else { Err(Error::Refused(Refusal::NotFound).into()) }
}

/// One user, one transaction: the server gets its turns in between.
async fn end_all(app: &App) -> Result<u64, Failure> {
    let bar = super::upkeep::progress_spinner();
    let (mut ended, mut after) = (0, None);
    while let Some(user) = next_user(app, after).await? {
        ended += app.db.write(move |tx| revoke_all(tx, user, By::Cli, "asked", Scene::default())).await.map_err(|fault: Fault| fault)?;
        bar.set_message(format!("{ended} sessions ended"));
        after = Some(user);
    }
    bar.finish_and_clear();
    Ok(ended)
}

/// The next user, by id, who has a session that is not marked as ended.
async fn next_user(app: &App, after: Option<UserId>) -> Result<Option<UserId>, Fault> {
    let after = after.unwrap_or(UserId(uuid::Uuid::nil()));
    app.db.read(move |tx| tx.row("SELECT user_id FROM device_sessions WHERE user_id > ?1 AND ended_at IS NULL ORDER BY user_id LIMIT 1", (after,))).await
}
