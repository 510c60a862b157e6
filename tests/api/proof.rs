//! `SECURITY.md` says of each requirement which test shows it. Those tests are there: what a table claims cannot be renamed away
//! or deleted without a word here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A line of a table: which requirements, how they stand, and what shows it or why not.
struct Row {
    ids: Vec<String>,
    state: String,
    proof: String,
}

/// How a requirement can stand. `not yet`: what it speaks of is not there yet.
const STATES: [&str; 5] = ["met", "in part", "not met", "not yet", "not ours"];

/// The lines of the tables whose first column is `id`.
fn rows(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut counts = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        match cells.as_slice() {
            ["id", "state", _] => counts = true,
            _ if !line.starts_with('|') => counts = false,
            [ids, state, proof] if counts && !ids.starts_with('-') => {
                rows.push(Row { ids: ids.split(", ").map(String::from).collect(), state: (*state).into(), proof: (*proof).into() });
            }
            _ if counts => assert!(line.starts_with("|--"), "no row of three: {line}"),
            _ => {}
        }
    }
    rows
}

/// ASVS `V6.2.1`, NIST `63B-5.1-s1`, WSTG `WSTG-SESS-01a`, attacks `COOK-01`.
fn is_id(id: &str) -> bool {
    let asvs = id.strip_prefix('V').is_some_and(|rest| rest.split('.').count() == 3 && rest.split('.').all(|part| part.parse::<u8>().is_ok()));
    let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b));
    let (area, number) = id.rsplit_once('-').unwrap_or((id, ""));
    let attack = area.bytes().all(|b| b.is_ascii_uppercase()) && number.len() == 2 && number.bytes().all(|b| b.is_ascii_digit());
    asvs || (plain && (id.starts_with("63B-") || id.starts_with("WSTG-"))) || attack
}

/// What stands in backticks and is a path of modules.
fn named_tests(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect()
}

/// Where the links of a text lead: a page, and a heading of it.
fn links(text: &str) -> Vec<(&str, &str)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(|target| target.split_once('#').unwrap_or((target, ""))).collect()
}

/// The headings of a page, as links spell them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim().to_lowercase());
    headings.map(|heading| heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }
    all
}

/// Every test of the project, as `cargo test -- --list` names it.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests/api", "tests/api_postgres"] {
        let folder = root().join(folder);
        for path in sources(&folder) {
            let below = path.strip_prefix(&folder).expect("below its folder").with_extension("");
            let mut module: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            let text = fs::read_to_string(&path).expect("a source file");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if line == "mod tests {" {
                    module.push("tests".into());
                } else if let (true, Some((_, rest))) = (is_test, line.split_once("fn ")) {
                    let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().expect("a name");
                    tests.insert(format!("{}::{name}", module.join("::")));
                    is_test = false;
                }
            }
        }
    }
    tests
}

#[test]
fn every_test_that_the_tables_name_is_there() {
    let (text, tests) = (page("SECURITY.md"), tests());
    assert!(tests.len() > 700, "the search finds too little: {}", tests.len());
    let missing: Vec<&str> = named_tests(&text).into_iter().filter(|name| !tests.contains(*name)).collect();
    assert!(missing.is_empty(), "SECURITY.md names tests that are not there: {missing:#?}");
}

#[test]
fn every_requirement_stands_in_one_row_with_its_proof_or_its_reason() {
    let text = page("SECURITY.md");
    let (rows, mut seen) = (rows(&text), BTreeSet::new());
    for Row { ids, state, proof } in &rows {
        assert!(STATES.contains(&state.as_str()), "{ids:?}: {state}");
        assert!(proof.len() > 10, "{ids:?} gives no reason");
        let is_claim = ["met", "in part"].contains(&state.as_str());
        assert!(!is_claim || !named_tests(proof).is_empty() || !links(proof).is_empty(), "{ids:?} claims without a proof");
        for id in ids {
            assert!(is_id(id), "{id} is no id");
            assert!(seen.insert(id), "{id} stands twice");
        }
    }
    assert!(seen.len() > 400, "rows are missing: {}", seen.len());
}

#[test]
fn every_section_that_the_page_refers_to_is_there() {
    let text = page("SECURITY.md");
    let all = links(&text);
    assert!(all.len() > 10, "{all:?}");
    for (file, heading) in all {
        let target = page(if file.is_empty() { "SECURITY.md" } else { file });
        assert!(heading.is_empty() || anchors(&target).contains(heading), "{file}#{heading} leads nowhere");
    }
}

/// The readers of the page find what is wrong: these tests can fail.
#[test]
fn a_wrong_table_is_noticed() {
    let table = rows("| id | state | shown by |\n|---|---|---|\n| V6.2.1, COOK-01 | met | `account::it_works` |\n\n| other | table | here |");
    assert_eq!((table.len(), table[0].ids.len(), table[0].state.as_str()), (1, 2, "met"));
    assert_eq!(named_tests(&table[0].proof), ["account::it_works"]);
    for odd in ["", "V6.2", "V6.2.x", "cook-01", "COOK-1", "COOK", "V6.2.1-V6.2.3", "WSTG SESS"] {
        assert!(!is_id(odd), "{odd}");
    }
    let tests = tests();
    assert!(tests.contains("proof::a_wrong_table_is_noticed") && !tests.contains("proof::rows"));
    assert!(tests.contains("secret::tests::secrets_do_not_print") && tests.contains("live_sessions::tests::a_passive_request_is_no_activity"));
}
