//! What only a file can suffer, and how SQLite finds what it is asked for. `instances.rs` of `../api_postgres` has the same of
//! a server.

use std::path::Path;

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

// How the database finds them.

/// The files with SQL about sessions; `select_sessions!` is made in the first.
const WITH_SQL: [&str; 8] = [
    "device_sessions/row.rs",
    "device_sessions/token.rs",
    "device_sessions/ending.rs",
    "device_sessions/opening.rs",
    "session_security.rs",
    "background.rs",
    "purge.rs",
    "event.rs",
];

/// The SQL of these files: every literal that begins with a verb, and what `select_sessions!` makes.
fn statements() -> Vec<String> {
    let (mut prefix, mut around) = (String::new(), None);
    let mut all: Vec<String> = Vec::new();
    for file in WITH_SQL {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file)).expect("a source file");
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let literals: Vec<&str> = code.split('"').collect();
        for n in (1..literals.len()).step_by(2) {
            let (before, literal) = (literals[n - 1], literals[n]);
            let verb = ["SELECT ", "UPDATE ", "DELETE ", "INSERT "].iter().any(|verb| literal.starts_with(verb));
            if literal.ends_with("FROM device_sessions WHERE ") {
                prefix = literal.into();
            } else if literal.ends_with(" FROM (") {
                around = Some(literal.to_string());
            } else if let (Some(head), true) = (&around, before.ends_with("select_sessions!(")) {
                // What follows closes the parenthesis.
                all.push(format!("{head}{prefix}{literal}{}", literals[n + 2]));
                around = None;
            } else if before.ends_with("select_sessions!(") {
                all.push(format!("{prefix}{literal}"));
            } else if verb {
                all.push(literal.into());
            }
        }
    }
    all
}

#[tokio::test]
async fn every_statement_about_sessions_is_served_by_an_index() {
    let stage = Stage::new().await;
    let connection = rusqlite::Connection::open(stage.database.file()).expect("the database opens");
    let mut explained = 0;
    for sql in statements() {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap_or_else(|e| panic!("{e}: {sql}"));
        let unbound: Vec<Option<i64>> = vec![None; plan.parameter_count()];
        let steps: Vec<String> =
            plan.query_map(rusqlite::params_from_iter(unbound), |row| row.get(3)).and_then(Iterator::collect).unwrap_or_else(|e| panic!("{e}: {sql}"));
        assert!(steps.iter().all(|step| !step.starts_with("SCAN") && !step.contains("TEMP B-TREE")), "{sql}: {steps:?}");
        if sql.contains("device_sessions") && !sql.starts_with("INSERT") {
            assert!(steps.iter().any(|step| step.contains("USING") && step.contains("INDEX")), "{sql}: {steps:?}");
            explained += 1;
        }
    }
    assert!(explained >= 9, "the search finds too little: {explained}");
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
    let of_user = plan_of("user_id = ?1 AND ended_at IS NULL");
    // Ended sessions are kept for a month: whoever has many of them must not pay for them at every sign-in.
    assert!(of_user.contains("device_sessions_of_user (user_id=?)") || of_user.contains("(user_id=? AND ended_at=?)"), "{of_user}");
}
