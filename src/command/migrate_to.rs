//! `holdfast migrate-to postgres://…`: for people who grow.

use indicatif::{ProgressBar, ProgressStyle};
use zeroize::Zeroizing;

use super::Failure;
use super::table::print;
use super::upkeep::quiet;
use crate::config::Config;
use crate::db::{self, Url};

/// Carries the SQLite database of `DATABASE_URL` over to `url`, all or nothing, and prints what went over.
pub(super) async fn migrate_to(config: &Config, url: &str) -> Result<(), Failure> {
    let Url::Sqlite(from) = &config.database_url else {
        return Err(Failure::Usage("DATABASE_URL: is no SQLite database; migrate-to carries one of those over to Postgres".into()));
    };
    let typed = Zeroizing::new(match url {
        "-" => std::io::read_to_string(std::io::stdin())?,
        given => given.into(),
    });
    let to = db::Server::parse(typed.trim()).map_err(|wrong| Failure::Usage(format!("the target {wrong}")))?;
    to.warning().iter().for_each(|warning| eprintln!("warning: {warning}"));
    let bar = quiet(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent}% {eta} {msg}") {
        bar.set_style(style);
    }
    let step = |table: &str, done: u64, all: u64| {
        bar.set_length(all);
        bar.set_position(done);
        bar.set_message(table.to_string());
    };
    let carried = db::carry(from, &to, step).await;
    bar.finish_and_clear();
    let carried = carried.map_err(|fault| Failure::Failed(format!("{} to {to}: {fault}", from.display())))?;
    print(&["TABLE", "ROWS", "CHECKSUM"], carried.iter().map(|table| vec![table.table.clone(), table.rows.to_string(), format!("{:032x}", table.checksum)]))?;
    eprintln!("Now set DATABASE_URL to the target and start the server. {} stays as it was.", from.display());
    Ok(())
}
