//! The targets of `../../fuzz`, fed with mutations of its corpus. libFuzzer follows the branches and finds more (`.ci/fuzz`);
//! this needs no instrumented build, and keeps what was found from coming back.
//!
//! `HOLDFAST_FUZZ_CASES` sets the number of inputs to a target. A failure shrinks to the fewest edits of a seed that still fail.

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use targets::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The seeds of a target, by name, so that a run can be repeated.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = corpus().join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect()
}

/// One change to an input. Places are chosen among those that it has when its turn comes.
#[derive(Clone, Debug)]
enum Edit {
    Put { at: Index, bytes: Vec<u8> },
    Overwrite { at: Index, byte: u8 },
    Cut { from: Index, to: Index },
    Repeat { from: Index, to: Index, times: usize },
    Borrow { at: Index, seed: Vec<u8>, from: Index, to: Index },
}

impl Edit {
    fn make(self, input: &mut Vec<u8>) {
        let place = |index: Index, length: usize| index.index(length + 1);
        let span = |a: Index, b: Index, length: usize| {
            let (a, b) = (place(a, length), place(b, length));
            a.min(b)..a.max(b)
        };
        match self {
            Edit::Put { at, bytes } => {
                let at = place(at, input.len());
                input.splice(at..at, bytes);
            }
            Edit::Overwrite { at, byte } => {
                let at = place(at, input.len());
                if let Some(old) = input.get_mut(at) {
                    *old = byte;
                }
            }
            Edit::Cut { from, to } => drop(input.drain(span(from, to, input.len()))),
            Edit::Repeat { from, to, times } => {
                let span = span(from, to, input.len());
                let copies = input[span.clone()].repeat(times);
                input.splice(span.end..span.end, copies);
            }
            Edit::Borrow { at, seed, from, to } => {
                let (at, span) = (place(at, input.len()), span(from, to, seed.len()));
                input.splice(at..at, seed[span].to_vec());
            }
        }
    }
}

/// Bytes that mean something to some reader, and any others.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => "[ -~]{1,3}".prop_map(String::into_bytes),
        2 => "\\PC{1,2}".prop_map(String::into_bytes),
        1 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
        1 => vec(any::<u8>(), 1..4),
    ]
}

fn edit(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), piece()).prop_map(|(at, bytes)| Edit::Put { at, bytes }),
        3 => (at(), prop_oneof![3 => 0x20u8..0x7f, 1 => any::<u8>()]).prop_map(|(at, byte)| Edit::Overwrite { at, byte }),
        2 => (at(), at()).prop_map(|(from, to)| Edit::Cut { from, to }),
        1 => (at(), at(), 1..40usize).prop_map(|(from, to, times)| Edit::Repeat { from, to, times }),
        2 => (at(), select(seeds), at(), at()).prop_map(|(at, seed, from, to)| Edit::Borrow { at, seed, from, to }),
    ]
}

/// Longer inputs only take time.
const LONGEST: usize = 8 * 1024;

fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (select(seeds.clone()), vec(edit(seeds), 0..5)).prop_map(|(mut input, edits)| {
        edits.into_iter().for_each(|edit| edit.make(&mut input));
        input.truncate(LONGEST);
        input
    })
}

/// The targets that cost more get a smaller share of the inputs.
fn hold(name: &str, share: u32) {
    let target = targets::named(name).expect("a target");
    let seeds = seeds(name);
    seeds.iter().for_each(|seed| (target.feed)(seed));
    let cases = std::env::var("HOLDFAST_FUZZ_CASES").map_or(256, |text| text.parse().expect("HOLDFAST_FUZZ_CASES is a number"));
    let config = Config { cases: cases / share, failure_persistence: None, ..Config::default() };
    // A panic of the target is a failure to proptest.
    let outcome = TestRunner::new(config).run(&mutated(seeds), |input| {
        (target.feed)(&input);
        Ok::<_, TestCaseError>(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => panic!("{why}\non {:?}\nPut it into fuzz/corpus/{name}/ once it is mended.", input.escape_ascii().to_string()),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[test]
fn every_target_has_seeds_and_no_seeds_are_left_without_a_target() {
    let folders = std::fs::read_dir(corpus()).expect("the corpus").map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let (mut found, mut known): (Vec<String>, Vec<String>) = (folders.collect(), TARGETS.iter().map(|target| target.name.into()).collect());
    found.sort();
    known.sort();
    assert_eq!(found, known);
}

macro_rules! hold { ($($sentence:ident: $target:literal / $share:literal;)*) => { $(
    #[test]
    fn $sentence() {
        hold($target, $share);
    }
)* } }
hold! {
    a_token_is_found_exactly_when_one_cookie_of_its_name_holds_one: "cookie" / 1;
    nobody_but_a_trusted_proxy_says_who_calls: "forwarded" / 1;
    a_device_is_named_in_our_own_words_whatever_it_calls_itself: "user_agent" / 10;
    only_our_own_pages_let_a_change_through: "origin" / 1;
    an_address_that_is_accepted_is_one_address_in_every_form: "email" / 1;
    no_form_of_a_weak_password_is_a_good_one: "password" / 1;
    a_token_has_one_spelling: "token" / 1;
    a_setting_is_accepted_or_told_in_lines_that_name_it: "setting" / 10;
    a_body_is_read_as_another_parser_reads_it_or_not_at_all: "json" / 1;
    a_query_is_read_as_another_parser_reads_it_or_not_at_all: "query" / 1;
    every_form_is_accepted_or_refused_in_few_words: "form" / 1;
    no_request_is_the_servers_fault: "request" / 2;
}
