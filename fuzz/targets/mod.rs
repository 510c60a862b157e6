//! What strangers send, and what holds whatever they send.
//!
//! A target is a function of bytes that panics when a promise is broken: an answer differs from that of a second reader, a
//! text that was read does not survive being written, somebody can change what they have no say in. "It does not panic" is
//! the least of it.
//!
//! One set of targets, two drivers: `tests/api/fuzzing.rs` mutates the committed corpus with `cargo test`; `main.rs` gives the
//! targets to libFuzzer, which follows the branches (`.ci/fuzz`). Whatever fails under either becomes a file of the corpus.

mod bodies;
mod headers;
mod server;
mod texts;

/// Something to feed bytes to. Its seeds are `corpus/` and its name.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub feed: fn(&[u8]),
}

macro_rules! targets { ($($module:ident :: $name:ident),* $(,)?) => {
    pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), feed: $module::$name }),*];
} }
targets! {
    headers::cookie, headers::forwarded, headers::user_agent, headers::origin,
    texts::email, texts::password, texts::token, texts::setting,
    bodies::json, bodies::query, bodies::form,
    server::request,
}

/// The target of this name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
