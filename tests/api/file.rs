//! What only a file can suffer, and how SQLite finds what it is asked for. `instances.rs` of `../api_postgres` has the same of
//! a server.

use std::path::Path;

use serde_json::json;

use crate::stage::Stage;

/// FWD-06: without its database the server lets nobody in, neither from memory nor by looking.
#[tokio::test]
async fn with_the_database_gone_the_check_lets_nobody_in() {
    let stage = Stage::new().await;
    let (cold, warm) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    warm.get("/check").await.is(204);
    std::fs::remove_file(stage.database.file()).expect("removed");
    stage.app.db.tend().await.expect_err("the file is gone");
    for (what, actor) in [("not in memory", cold), ("in memory", warm), ("a stranger", stage.anon())] {
        let answer = actor.get("/check").await;
        assert!([401, 503].contains(&answer.status.as_u16()), "{what}: {}", answer.status);
        let answer = actor.get("/me").await;
        assert!([401, 503].contains(&answer.status.as_u16()), "{what}: {}", answer.status);
    }
    stage.anon().get("/health/ready").await.is(503);
    stage.anon().get("/health/live").await.is(200);
}

/// Strangers have as many of them as they like: such a link costs a look.
#[tokio::test]
async fn a_link_that_is_not_good_takes_no_turn_at_the_writer() {
    let stage = Stage::new().await;
    let other = rusqlite::Connection::open(stage.database.file()).expect("the database opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("a turn");
    let (anon, token) = (stage.anon(), "A".repeat(43));
    for path in ["/email/verify", "/email/change", "/email/undo", "/password/reset"] {
        let ask = match path {
            "/password/reset" => json!({"token": token, "new_password": "quite another password"}),
            _ => json!({"token": token}),
        };
        anon.post(path, ask).await.is_refused(400, "invalid_token");
    }
    for page in ["session", "sessions", "verify", "reset", "email-change", "email-undo"] {
        anon.submit(&format!("/security/{page}/{token}"), &[("new_password", "quite another password")]).await.is(400);
    }
    other.execute_batch("ROLLBACK").expect("the turn is over");
}

// How the database finds them.

/// The code of all slices; below the seam the databases speak their own words.
fn code() -> String {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut code = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("db") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("db.rs") {
                let text = std::fs::read_to_string(path).expect("a source file");
                text.lines().filter(|line| !line.trim_start().starts_with("//")).for_each(|line| code.extend([line, "\n"]));
            }
        }
    }
    code
}

/// The literals that begin with `start`, and what follows each.
fn literals<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let opener = format!("\"{start}");
    let places: Vec<usize> = code.match_indices(&opener).map(|(at, _)| at + 1).collect();
    places.into_iter().filter_map(|at| code[at..].split_once('"'))
}

/// All SQL of the slices: every literal that begins with a verb; what `select_sessions!` and `select_users!` make of theirs;
/// the one statement that is put around such a one; and those that ask which accounts are `unverified!`.
fn statements() -> Vec<String> {
    let code = code();
    let (mut whole, mut begun) = (Vec::new(), Vec::new());
    let unverified = literals(&code, "u.email_verified = 0").next().expect("the condition").0;
    for verb in ["SELECT ", "UPDATE ", "DELETE ", "INSERT "] {
        for (literal, rest) in literals(&code, verb) {
            match [" FROM device_sessions WHERE ", " FROM users ", " FROM ("].iter().find(|end| literal.ends_with(**end)) {
                Some(end) => begun.push((*end, literal, rest)),
                None if rest.trim_start_matches([',', '\n', ' ']).starts_with("unverified!()") => {
                    whole.push([literal, unverified, rest.split('"').nth(1).expect("an end")].concat());
                }
                None => whole.push(literal.to_string()),
            }
        }
    }
    let beginning = |wanted: &str| begun.iter().find(|(end, ..)| *end == wanted).map(|(_, literal, rest)| (*literal, *rest)).expect("a beginning");
    for (name, end) in [("select_sessions!(", " FROM device_sessions WHERE "), ("select_users!(", " FROM users ")] {
        let uses =
            code.match_indices(&format!("{name}\"")).map(|(at, opener)| code[at + opener.len()..].split('"').next().expect("a literal")).collect::<Vec<_>>();
        whole.extend(uses.into_iter().map(|literal| format!("{}{literal}", beginning(end).0)));
    }
    let (head, rest) = beginning(" FROM (");
    let parts: Vec<&str> = rest.splitn(5, '"').collect();
    whole.push(format!("{head}{}{}{}", beginning(" FROM device_sessions WHERE ").0, parts[1], parts[3]));
    whole
}

#[tokio::test]
async fn every_statement_is_served_by_an_index() {
    let stage = Stage::new().await;
    let connection = rusqlite::Connection::open(stage.database.file()).expect("the database opens");
    let mut explained = 0;
    for sql in statements() {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap_or_else(|e| panic!("{e}: {sql}"));
        let unbound: Vec<Option<i64>> = vec![None; plan.parameter_count()];
        let steps: Vec<String> =
            plan.query_map(rusqlite::params_from_iter(unbound), |row| row.get(3)).and_then(Iterator::collect).unwrap_or_else(|e| panic!("{e}: {sql}"));
        assert!(steps.iter().all(|step| !step.starts_with("SCAN") && !step.contains("TEMP B-TREE")), "{sql}: {steps:?}");
        explained += 1;
    }
    assert!(explained >= 60, "the search finds too little: {explained}");
}

/// The hot ones: by token, and the live ones of a user.
#[tokio::test]
async fn a_token_is_found_by_its_unique_index_and_the_live_sessions_of_a_user_by_theirs() {
    let stage = Stage::new().await;
    let connection = rusqlite::Connection::open(stage.database.file()).expect("the database opens");
    let plan_of = |part: &str| -> String {
        let sql = statements().into_iter().find(|sql| sql.contains(part)).unwrap_or_else(|| panic!("no statement with {part}"));
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a plan");
        let steps: Vec<String> = plan.query_map([None::<i64>], |row| row.get(3)).and_then(Iterator::collect).expect("steps");
        steps.join("; ")
    };
    let by_token = plan_of("s.token_hash = ?1");
    assert!(by_token.contains("SEARCH s USING INDEX") && by_token.contains("(token_hash=?)"), "{by_token}");
    // Whoever has rotated often must not pay for it, nor others with them, at every look-up.
    assert!(by_token.contains("retired_tokens_unproved (session_id=?)"), "{by_token}");
    let of_user = plan_of("user_id = ?1 AND ended_at IS NULL");
    // Ended sessions are kept for a month: whoever has many of them must not pay for them at every sign-in.
    assert!(of_user.contains("device_sessions_of_user (user_id=?)") || of_user.contains("(user_id=? AND ended_at=?)"), "{of_user}");
}
