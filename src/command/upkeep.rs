//! `holdfast purge`, `backup`, `check-config`.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;
use super::table::{print, print_json, say};
use crate::app::App;
use crate::config::{Config, SETTINGS, Variables};
use crate::db::{self, Url};

/// A bar that shows itself on a terminal only, and only when there is something to wait for.
pub(super) fn quiet(bar: ProgressBar) -> ProgressBar {
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

pub(super) fn progress_spinner() -> ProgressBar {
    quiet(ProgressBar::new_spinner())
}

pub(super) async fn purge(app: &App, json: bool) -> Result<(), Failure> {
    let bar = progress_spinner();
    let purged = crate::purge::purge(&app.db, &app.config, app.clock.now(), |kind, gone| bar.set_message(format!("{kind}: {gone}"))).await?;
    bar.finish_and_clear();
    if json {
        let counts: serde_json::Map<String, serde_json::Value> = purged.iter().map(|(kind, gone)| (kind.replace(' ', "_"), (*gone).into())).collect();
        return print_json(&counts);
    }
    print(&["WHAT", "DELETED"], purged.into_iter().map(|(kind, gone)| vec![kind.into(), gone.to_string()]))
}

pub(super) fn backup(config: &Config, file: &Path) -> Result<(), Failure> {
    let Url::Sqlite(path) = &config.database_url else {
        return Err(Failure::Failed("backup copies a database file; for a server's database use its own tool: pg_dump --format=custom".into()));
    };
    let bar = quiet(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent}% {eta}") {
        bar.set_style(style);
    }
    let step = |remaining: u64, all: u64| {
        bar.set_length(all);
        bar.set_position(all - remaining.min(all));
    };
    let done = db::backup(path, file, step).map_err(|fault| Failure::Failed(fault.to_string()));
    bar.finish_and_clear();
    done?;
    say(&file.display().to_string())
}

/// Prints the settings that count, and where each comes from.
pub(super) fn check_config(config: &Config, variables: &Variables, json: bool) -> Result<(), Failure> {
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    // A URL may hold a password; where it leads is what one wants to know.
    let place = config.database_url.to_string();
    let rows = SETTINGS.iter().map(|setting| match variables.get(setting.name) {
        Some(_) if setting.name == "DATABASE_URL" && config.database_url.is_shared() => (setting.name, place.as_str(), "set"),
        Some(value) if setting.name == "MAIL" && value.contains('@') => (setting.name, "(not shown: it may hold a password)", "set"),
        Some(value) => (setting.name, value, "set"),
        None => (setting.name, setting.default, "default"),
    });
    if json {
        let all: serde_json::Map<String, serde_json::Value> =
            rows.map(|(name, value, from)| (name.into(), serde_json::json!({"value": value, "from": from}))).collect();
        return print_json(&all);
    }
    print(&["SETTING", "VALUE", "FROM"], rows.map(|(name, value, from)| vec![name.into(), value.into(), from.into()]))
}
