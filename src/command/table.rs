//! Results: tables for people, JSON for scripts.

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::Failure;

/// Prints a value as one JSON document.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Failed(e.to_string()))?;
    println!("{text}");
    Ok(())
}

/// Prints rows under a head. What users wrote is shown without control characters: a name must not move the cursor.
pub(super) fn print(head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut builder = Builder::default();
    builder.push_record(head.iter().copied());
    for row in rows {
        builder.push_record(row.iter().map(|cell| cell.chars().filter(|c| !c.is_control()).collect::<String>()));
    }
    println!("{}", builder.build().with(Style::blank()));
}
