//! The targets under libFuzzer. `TARGET` says which; the rest is libFuzzer's own command line.

#![no_main]

use std::sync::LazyLock;

mod targets;

use targets::Target;

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").unwrap_or_default();
    targets::named(&name).unwrap_or_else(|| panic!("TARGET={name}; there are {:?}", targets::TARGETS.iter().map(|target| target.name).collect::<Vec<_>>()))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (CHOSEN.feed)(data));
