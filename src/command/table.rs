//! Results: tables for people, JSON for scripts.

use std::io::Write;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::Failure;

/// Prints a line of the result. Whoever reads may have had enough (`| head`): that is an end, not a failure.
pub(super) fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Prints a value as one JSON document.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    say(&serde_json::to_string_pretty(value).map_err(|e| Failure::Failed(e.to_string()))?)
}

/// Prints rows under a head. What users wrote is shown without control characters: a name must not move the cursor.
pub(super) fn print(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<(), Failure> {
    let mut builder = Builder::default();
    builder.push_record(head.iter().copied());
    for row in rows {
        builder.push_record(row.iter().map(|cell| cell.chars().filter(|c| !c.is_control()).collect::<String>()));
    }
    say(&builder.build().with(Style::blank()).to_string())
}
