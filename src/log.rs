//! Where log lines go, and which.
//!
//! Only our own lines follow `LOG`; those of libraries are let through from WARN on. They do not know what is a secret
//! here, so their finer levels stay off even at `trace`. LOG-01. Those of HTTP/2 stay off altogether: a client makes one with each
//! frame that it should not have sent, as many as it likes.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::LogFormat;

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Standard output: the server's.
    Stdout,
    /// Standard error: the command line's, whose standard output is its result.
    Stderr,
}

/// Starts logging, for the life of the process.
pub fn start(level: LevelFilter, format: LogFormat, to: To) {
    let (writer, terminal) = match to {
        To::Stdout => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        To::Stderr => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
    };
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("holdfast", level).with_target("h2", LevelFilter::OFF);
    let layer = fmt::layer().with_writer(writer).with_ansi(terminal).with_target(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).init();
}
