//! `migrate-to`: people who grow do not lose their users.

use serde_json::json;

use crate::database::Database;
use crate::process::{Browser, PASSWORD, Place};

const TABLES: &str = "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()";

/// A place with a file in which something has happened.
fn grown() -> (Place, Vec<Browser>) {
    let place = Place::new();
    let server = place.start();
    let mut browsers: Vec<Browser> = (0..5).map(|n| server.sign_up(&format!("ana{n}@example.com"))).collect();
    browsers[0].put("/me/password", json!({"current_password": PASSWORD, "new_password": "one more good password"})).is(200);
    browsers[1].poke("/logout").is(204);
    server.stop();
    (place, browsers)
}

#[test]
fn everything_is_carried_over_and_the_sessions_live_on() {
    let (mut place, mut browsers) = grown();
    let database = Database::new();
    let done = place.run_typing(&["migrate-to", "-"], database.url()).ok();
    let own = place.sql();
    let mut tables = own.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'").expect("SQL");
    let tables: Vec<String> = tables.query_map([], |row| row.get(0)).expect("rows").collect::<Result<_, _>>().expect("names");
    assert!(tables.len() > 5, "{tables:?}");
    for table in &tables {
        let there = database.by_hand(|hand| hand.number(&format!("SELECT count(*) FROM {table}")));
        let here: i64 = own.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a number");
        assert_eq!(there, here, "{table}");
        assert!(done.stdout.contains(table.as_str()), "{}", done.stdout);
    }
    place.set("DATABASE_URL", &database.url());
    let server = place.start();
    browsers.remove(1);
    for browser in &browsers {
        Browser::at(server.address()).holding(&browser.token()).get("/check").is(204);
    }
    server.sign_in("ana4@example.com");
    server.browser().log_in("ana0@example.com", PASSWORD).is_refused(401, "invalid_credentials");
    server.browser().log_in("ana0@example.com", "one more good password").is(200);
}

#[test]
fn a_target_that_is_not_empty_is_refused() {
    let (place, _) = grown();
    let database = Database::new();
    place.run(&["migrate-to", &database.url()]).ok();
    let again = place.run(&["migrate-to", &database.url()]).exits_with_one_line(1);
    assert!(again.stderr.contains("not empty"), "{}", again.stderr);
}

#[test]
fn a_file_that_a_server_has_open_is_refused() {
    let place = Place::new();
    let server = place.start();
    server.sign_up("ana@example.com");
    let database = Database::new();
    let done = place.run(&["migrate-to", &database.url()]).exits_with_one_line(1);
    assert!(done.stderr.contains("stop it first"), "{}", done.stderr);
    assert_eq!(database.by_hand(|hand| hand.number(TABLES)), 0);
    server.sign_in("ana@example.com");
}

#[test]
fn what_cannot_be_carried_over_leaves_nothing_behind() {
    let (place, _) = grown();
    // A row that refers to nothing: the file can be made to hold it, the server refuses it.
    let bad = "PRAGMA foreign_keys = OFF; INSERT INTO known_ips (user_id, network, last_seen_at) VALUES (zeroblob(16), '10.0.0.1', 1)";
    place.sql().execute_batch(bad).expect("a row");
    let database = Database::new();
    let done = place.run(&["migrate-to", &database.url()]).exits_with_one_line(1);
    assert!(done.stderr.contains("known_ips"), "{}", done.stderr);
    assert_eq!(database.by_hand(|hand| hand.number(TABLES)), 0);
}

#[test]
fn only_a_file_is_carried_over_and_only_to_a_server() {
    let place = Place::with(&[("DATABASE_URL", "postgres://u:p@127.0.0.1:1/x")]);
    place.run(&["migrate-to", "postgres://u:p@127.0.0.1:1/y"]).exits_with_one_line(2);
    let done = Place::new().run(&["migrate-to", "sqlite:other.db"]).exits_with_one_line(2);
    assert!(done.stderr.contains("postgres://"), "{}", done.stderr);
}
