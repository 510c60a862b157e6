//! The command line: the same deeds as the API, by the same functions, for whoever has the machine.
//!
//! It opens the same database while the server runs; the server notices within a fraction of a second. Passwords come from
//! standard input or a prompt, never from an argument, which every user of the machine could read. Tables are for people,
//! `--json` is for scripts. Exit codes: 0 done, 1 refused or failed, 2 wrong usage or settings.

mod migrate_to;
mod sessions;
mod table;
mod upkeep;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::account::email::Email;
use crate::account::{self, User};
use crate::app::App;
use crate::chance::Chance;
use crate::clock::Clock;
use crate::config::{Config, Variables};
use crate::db::{Fault, Tx};
use crate::error::{Error, Refusal};
use crate::id::UserId;
use crate::log::{self, To};
use crate::serve::{Listener, serve};

/// Holdfast, a session security server. Settings come from the environment and .env; see .env.example.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (the default)
    Serve,
    /// Create, list and change accounts
    #[command(subcommand)]
    User(user::Command),
    /// List and end sessions
    #[command(subcommand)]
    Sessions(sessions::Command),
    /// Delete what is older than its retention
    Purge {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the database to a new file, as of one moment, also while the server runs
    Backup {
        /// The file to make
        file: PathBuf,
    },
    /// Carry a stopped SQLite database over to an empty Postgres database
    MigrateTo {
        /// postgres://user:password@host/database, or - to read that from standard input
        url: String,
    },
    /// Check the settings and print those that count
    CheckConfig {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which account: an e-mail address or an id.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// The account's e-mail address or id
    #[arg(value_name = "USER")]
    user: Option<String>,
    /// The account's e-mail address
    #[arg(long, value_name = "EMAIL")]
    email: Option<String>,
    /// The account's id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

impl Who {
    fn named(&self) -> &str {
        [&self.user, &self.email, &self.id].into_iter().flatten().next().map_or("", String::as_str)
    }
}

/// Why a command did not do what it was asked.
enum Failure {
    /// Exit 2: it was asked in the wrong way.
    Usage(String),
    /// Exit 1.
    Failed(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Failed(format!("the database: {fault}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Fault(fault) => fault.into(),
            Error::Refused(Refusal::Invalid(errors)) => {
                let each: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
                Failure::Failed(each.join("\n"))
            }
            Error::Refused(Refusal::NotFound) => Failure::Failed("there is no such user or session".into()),
            Error::Refused(refusal) => Failure::Failed(refusal.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Failure::Failed(e.to_string())
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = run(cli.command.unwrap_or(Command::Serve));
    let (code, text) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(text)) => (1, text),
        Err(Failure::Usage(text)) => (2, text),
    };
    for line in text.lines() {
        eprintln!("holdfast: {line}");
    }
    ExitCode::from(code)
}

fn run(command: Command) -> Result<(), Failure> {
    let variables = Variables::of_process().map_err(|e| Failure::Usage(e.to_string()))?;
    let config = Config::read(&variables).map_err(|e| Failure::Usage(e.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Serve => {
            // What was read as text is not needed again, and may hold passwords.
            drop(variables);
            log::start(config.log, config.log_format, To::Stdout);
            let served = runtime.block_on(run_server(config));
            // What still runs after the grace is left behind; its transactions are whole or not at all.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            served
        }
        Command::CheckConfig { json } => upkeep::check_config(&config, &variables, json),
        Command::Backup { file } => upkeep::backup(&config, &file),
        Command::MigrateTo { url } => runtime.block_on(migrate_to::migrate_to(&config, &url)),
        other => {
            log::start(config.log.min(tracing::level_filters::LevelFilter::WARN), config.log_format, To::Stderr);
            runtime.block_on(run_on_database(config, other))
        }
    }
}

async fn run_on_database(config: Config, command: Command) -> Result<(), Failure> {
    let app = open(config).await?;
    match command {
        Command::User(command) => user::run(&app, command).await,
        Command::Sessions(command) => sessions::run(&app, command).await,
        Command::Purge { json } => upkeep::purge(&app, json).await,
        Command::Serve | Command::Backup { .. } | Command::MigrateTo { .. } | Command::CheckConfig { .. } => Ok(()),
    }
}

async fn open(config: Config) -> Result<App, Failure> {
    let place = config.database_url.to_string();
    App::open(config, Clock::System, Chance::System).await.map_err(|fault| Failure::Failed(format!("DATABASE_URL {place}: {fault}")))
}

async fn run_server(config: Config) -> Result<(), Failure> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let stop = stop_signal()?;
    let listener = Listener::bind(&config.listen_addr).await?;
    let app = open(config).await?;
    for address in listener.addresses() {
        tracing::info!("listening on http://{address}");
    }
    tracing::info!("ready: {}{}", app.config.public_url.origin, app.config.base_path);
    let devices = app.devices.clone();
    tokio::spawn(async move { devices.prepare().await });
    serve(app, listener, stop).await.map_err(Failure::from)
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    })
}

/// Finds the account that a command names.
fn find(tx: &mut Tx, who: &str) -> Result<User, Error> {
    let user = match (UserId::parse(who), Email::parse(who)) {
        (Some(id), _) => account::by_id(tx, id)?,
        (None, Some(email)) => account::by_email(tx, &email)?,
        (None, None) => None,
    };
    user.ok_or_else(|| Refusal::NotFound.into())
}
