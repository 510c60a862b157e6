//! `holdfast user …`

use std::io::{IsTerminal, Read};
use std::net::{IpAddr, Ipv4Addr};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::table::{print, print_json, say};
use super::{Failure, Who, find};
use crate::account::User;
use crate::account::email::Email;
use crate::account::password_change::set_password;
use crate::account::signup::{NewAccount, name_fault, open_account};
use crate::admin::{self, AdminUserView};
use crate::app::App;
use crate::device_sessions::revoke_all;
use crate::error::{Error, Refusal};
use crate::event::{By, Event, Scene, record};
use crate::factor::password::{Password, PasswordHash};
use crate::guard::NEWEST;
use crate::id::UserId;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Create an account; its address counts as verified
    Create {
        /// Its e-mail address
        #[arg(long)]
        email: String,
        /// Its role, one of ROLES; that of a new account if not given
        #[arg(long)]
        role: Option<String>,
        /// What to call its owner
        #[arg(long, default_value = "")]
        name: String,
        #[command(flatten)]
        password: PasswordSource,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List accounts, newest first
    List {
        /// Only the one with this address
        #[arg(long)]
        email: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give an account another role, and end its sessions
    SetRole {
        #[command(flatten)]
        who: Who,
        /// One of ROLES
        #[arg(long)]
        role: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give an account another password, and end its sessions
    SetPassword {
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        password: PasswordSource,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Close an account, and end its sessions
    Disable {
        #[command(flatten)]
        who: Who,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Open a closed account again
    Enable {
        #[command(flatten)]
        who: Who,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Where a password comes from: never an argument.
#[derive(Args)]
pub(super) struct PasswordSource {
    /// Read the password from standard input; one line break at the end is dropped
    #[arg(long)]
    password_stdin: bool,
}

pub(super) async fn run(app: &App, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { email, role, name, password, json } => create(app, &email, role, name, &password, json).await,
        Command::List { email, json } => list(app, email.as_deref(), json).await,
        Command::SetRole { who, role, json } => {
            let role = known_role(app, Some(role))?;
            change(app, who, json, move |tx, id| admin::set_role(tx, id, &role, By::Cli, Scene::to(id))).await
        }
        Command::SetPassword { who, password, json } => replace_password(app, who, &password, json).await,
        Command::Disable { who, json } => change(app, who, json, |tx, id| admin::disable(tx, id, By::Cli, Scene::to(id))).await,
        Command::Enable { who, json } => change(app, who, json, |tx, id| admin::enable(tx, id, By::Cli, Scene::to(id)).map(|()| 0)).await,
    }
}

async fn create(app: &App, email: &str, role: Option<String>, name: String, password: &PasswordSource, json: bool) -> Result<(), Failure> {
    let email = Email::parse(email).ok_or_else(|| Failure::Failed("email: this is not an e-mail address that can be used here".into()))?;
    let role = known_role(app, role)?;
    if let Some((_, message)) = name_fault(&name) {
        return Err(Failure::Failed(format!("name: {message}")));
    }
    let hash = new_password(app, password, Some(&email)).await?;
    let account = NewAccount { email, hash, name, role };
    let opened = app.db.write(move |tx| -> Result<_, Error> { Ok(open_account(tx, &account, By::Cli, Scene::default())?) }).await?;
    let user = opened.ok_or(Error::Refused(Refusal::EmailTaken))?;
    show(user, 0, json)
}

async fn list(app: &App, email: Option<&str>, json: bool) -> Result<(), Failure> {
    let email = match email {
        Some(text) => Some(Email::parse(text).ok_or_else(|| Failure::Failed("email: this is not an e-mail address".into()))?),
        None => None,
    };
    let mut all: Vec<User> = Vec::new();
    let mut before = UserId(NEWEST);
    loop {
        let email = email.clone();
        let page = app.db.read(move |tx| admin::users(tx, email.as_ref(), before, 1000)).await.map_err(|fault: crate::db::Fault| fault)?;
        let Some(last) = page.last() else { break };
        before = last.view.id;
        all.extend(page);
    }
    if json {
        return print_json(&all.into_iter().map(AdminUserView::of).collect::<Vec<_>>());
    }
    let rows = all.into_iter().map(|user| {
        let state = if user.disabled { "disabled" } else { "enabled" };
        vec![user.view.id.to_string(), user.view.email, user.view.role, state.into(), user.view.created_at.to_string(), user.view.name]
    });
    print(&["ID", "E-MAIL", "ROLE", "STATE", "CREATED", "NAME"], rows)
}

async fn replace_password(app: &App, who: Who, password: &PasswordSource, json: bool) -> Result<(), Failure> {
    let name = who.named().to_string();
    let user = app.db.read(move |tx| find(tx, &name)).await?;
    let hash = new_password(app, password, Email::parse(&user.view.email).as_ref()).await?;
    let id = user.view.id;
    let signed_out = app
        .db
        .write(move |tx| -> Result<u64, Error> {
            if !set_password(tx, id, &hash, None)? {
                return Err(Refusal::NotFound.into());
            }
            let signed_out = revoke_all(tx, id, By::Cli, "password_changed", Scene::default())?;
            record(tx, Scene::to(id), Event::PasswordChanged { by: By::Cli })?;
            Ok(signed_out)
        })
        .await?;
    show(user, signed_out, json)
}

async fn change(app: &App, who: Who, json: bool, deed: impl Fn(&mut crate::db::Tx, UserId) -> Result<u64, Error> + Send + 'static) -> Result<(), Failure> {
    let name = who.named().to_string();
    let (user, signed_out) = app
        .db
        .write(move |tx| -> Result<(User, u64), Error> {
            let id = find(tx, &name)?.view.id;
            let signed_out = deed(tx, id)?;
            Ok((find(tx, &id.to_string())?, signed_out))
        })
        .await?;
    show(user, signed_out, json)
}

fn show(user: User, signed_out: u64, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&serde_json::json!({"user": AdminUserView::of(user), "signed_out": signed_out}));
    }
    let state = if user.disabled { "disabled" } else { "enabled" };
    say(&format!("{} {} role {}, {state}, {signed_out} sessions ended", user.view.id, user.view.email, user.view.role))
}

fn known_role(app: &App, role: Option<String>) -> Result<String, Failure> {
    match role {
        None => Ok(app.config.first_role().into()),
        Some(role) if app.config.roles.contains(&role) => Ok(role),
        Some(role) => Err(Failure::Usage(format!("role {role}: must be one of {}", app.config.roles.join(", ")))),
    }
}

/// Reads a new password, judges it by the same rules as the API, and hashes it.
async fn new_password(app: &App, source: &PasswordSource, email: Option<&Email>) -> Result<PasswordHash, Failure> {
    let password = Password::typed(std::mem::take(&mut *typed(source)?));
    if let Some((_, message)) = password.weakness(app.config.password_min_length, email) {
        return Err(Failure::Failed(format!("password: {message}")));
    }
    Ok(app.hasher.hash(IpAddr::V4(Ipv4Addr::LOCALHOST), password, app.db.chance()).await?)
}

fn typed(source: &PasswordSource) -> Result<Zeroizing<String>, Failure> {
    if !source.password_stdin {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Usage("there is no terminal to ask for the password; use --password-stdin".into()));
        }
        let password = Zeroizing::new(rpassword::prompt_password("Password: ")?);
        let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
        return if password == again { Ok(password) } else { Err(Failure::Failed("the two passwords differ".into())) };
    }
    // More than any password: the rules will refuse it, and the memory is bounded. A buffer that grew would leave copies behind.
    const MOST: usize = 64 * 1024;
    let mut text = Zeroizing::new(String::with_capacity(2 * MOST));
    std::io::stdin().take(MOST as u64).read_to_string(&mut text).map_err(|_| Failure::Failed("password: standard input is not UTF-8".into()))?;
    let without_break = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
    let length = without_break.unwrap_or(&text).len();
    text.truncate(length);
    Ok(text)
}
