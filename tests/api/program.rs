//! The program at the command line and on the disk: its verbs and exit codes, its settings, its log, its files, its faults,
//! and what `kill -9` leaves behind.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Browser, Done, PASSWORD, PATIENCE, Place, Server, integrity_of, open_sql, soon};
use crate::stage::NO_LIMITS;

/// What the command line ends is dead for the server this long after the command's return, at the latest.
const NOTICE: Duration = Duration::from_secs(1);

// Verbs and exit codes.

#[test]
fn the_first_admin_is_made_at_the_command_line_and_administers() {
    let place = Place::new();
    let made = place.create("root@example.com", "admin");
    assert_eq!((made["user"]["email"].as_str(), made["user"]["role"].as_str()), (Some("root@example.com"), Some("admin")));

    let server = place.start();
    let mut root = server.sign_in("root@example.com");
    assert_eq!(root.get("/me").is(200).json()["user"]["role"], "admin");
    assert_eq!(root.get("/admin/users").is(200).json()["users"][0]["id"], made["user"]["id"]);
}

#[test]
fn an_account_of_the_command_line_has_the_first_role_unless_told_otherwise() {
    let place = Place::with(&[("ROLES", "guest,user,admin")]);
    let create = ["user", "create", "--email", "ana@example.com", "--name", "Ana", "--password-stdin", "--json"];
    let made = place.run_typing(&create, PASSWORD).ok().json();
    assert_eq!((made["user"]["role"].as_str(), made["user"]["name"].as_str()), (Some("guest"), Some("Ana")));
}

#[test]
fn one_line_break_at_the_end_of_a_typed_password_is_dropped_and_no_more() {
    let place = Place::new();
    let typed = [("plain", ""), ("unix", "\n"), ("windows", "\r\n"), ("two", "\n\n")];
    for (name, ending) in typed {
        let email = format!("{name}@example.com");
        place.run_typing(&["user", "create", "--email", &email, "--password-stdin"], format!("{PASSWORD}{ending}")).ok();
    }
    let server = place.start();
    for name in ["plain", "unix", "windows"] {
        server.sign_in(&format!("{name}@example.com"));
    }
    server.browser().log_in("two@example.com", PASSWORD).is_refused(401, "invalid_credentials");
    server.browser().log_in("two@example.com", &format!("{PASSWORD}\n")).is(200);
}

#[test]
fn a_typed_password_is_the_same_in_every_unicode_form() {
    let place = Place::new();
    place.run_typing(&["user", "create", "--email", "ana@example.com", "--password-stdin"], "cafe\u{301} au lait").ok();
    place.start().browser().log_in("ana@example.com", "caf\u{e9} au lait").is(200);
}

#[test]
fn without_a_terminal_a_password_comes_from_standard_input_only_when_asked_to() {
    let place = Place::new();
    place.create("ana@example.com", "user");
    place.run_typing(&["user", "create", "--email", "ben@example.com"], PASSWORD).exits_with_one_line(2);
    place.run_typing(&["user", "set-password", "--email", "ana@example.com"], "another good password").exits_with_one_line(2);
    // An argument could be read by every user of the machine.
    let done = place.run(&["user", "create", "--email", "ben@example.com", "--password", "a secret argument"]).exits(2);
    assert!(!done.stderr.contains("a secret argument") && !done.stdout.contains("a secret argument"));
    assert_eq!(place.run(&["user", "list", "--json"]).ok().json().as_array().map(Vec::len), Some(1));
}

#[test]
fn the_command_line_keeps_the_password_policy() {
    let place = Place::with(&[("PASSWORD_MIN_LENGTH", "10")]);
    place.create("somebody@example.com", "user");
    let long = "x".repeat(257);
    let endless = "x".repeat(1 << 20);
    let weak: [&[u8]; 9] = [
        b"",
        b"\n",
        b"ninechars",
        b"password123",
        b"somebody2@example.com",
        b"SOMEBODY2@Example.com",
        long.as_bytes(),
        endless.as_bytes(),
        b"not \xff UTF-8 at all",
    ];
    for password in weak {
        let shown = String::from_utf8_lossy(&password[..password.len().min(40)]).into_owned();
        for args in [
            ["user", "create", "--email", "somebody2@example.com", "--password-stdin"],
            ["user", "set-password", "--email", "somebody@example.com", "--password-stdin"],
        ] {
            // The weakness of an e-mail as a password is that it is this account's.
            if args[1] == "set-password" && shown.contains('@') {
                continue;
            }
            let done = place.run_typing(&args, password);
            assert_eq!(done.code, Some(1), "{shown:?} was accepted: {done:?}");
            assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        }
    }
    // What is too short counts in characters, not in bytes.
    place.run_typing(&["user", "create", "--email", "somebody2@example.com", "--password-stdin"], "ééééééééé").exits(1);
    place.run_typing(&["user", "create", "--email", "longlocalpart@example.com", "--password-stdin"], "LONGLOCALPART").exits(1);
    assert_eq!(place.run(&["user", "list", "--json"]).ok().json().as_array().map(Vec::len), Some(1));
    place.run_typing(&["user", "create", "--email", "somebody2@example.com", "--password-stdin"], "éééééééééé").ok();
    let server = place.start();
    server.sign_in("somebody@example.com");
}

#[test]
fn no_address_is_taken_twice_in_any_spelling() {
    let place = Place::new();
    let server = place.start();
    server.sign_up("admin@x.example");
    server.sign_up("jos\u{e9}@b\u{fc}cher.example");
    for other in [
        "admin@x.example",
        "Admin@X.example",
        "ADMIN@x.EXAMPLE",
        "jose\u{301}@b\u{fc}cher.example",
        "JOS\u{c9}@xn--bcher-kva.example",
        "jos\u{e9}@BU\u{308}CHER.example",
    ] {
        place.run_typing(&["user", "create", "--email", other, "--role", "admin", "--password-stdin"], PASSWORD).exits_with_one_line(1);
    }
    for wrong in ["", "nobody", "a@b@c.example", "\"a\"@x.example", "a@[127.0.0.1]", "a@x.example\r\nBcc: b@x.example", "a b@x.example", "a\u{202e}@x.example"]
    {
        place.run_typing(&["user", "create", "--email", wrong, "--password-stdin"], PASSWORD).exits(1);
    }
    let users = place.run(&["user", "list", "--json"]).ok().json();
    assert_eq!(users.as_array().map(Vec::len), Some(2));
    assert!(users.as_array().expect("a list").iter().all(|user| user["role"] == "user"), "{users}");
    // Who is named in another spelling is found.
    let found = place.run(&["user", "list", "--email", "ADMIN@X.example", "--json"]).ok().json();
    assert_eq!((found.as_array().map(Vec::len), found[0]["email"].as_str()), (Some(1), Some("admin@x.example")));
}

#[test]
fn wrong_usage_is_exit_2_and_help_is_exit_0() {
    let place = Place::new();
    for args in [
        &["no-such-verb"][..],
        &["--no-such-flag"],
        &["user"],
        &["user", "create"],
        &["user", "create", "--email", "a@x.example", "--role"],
        &["user", "set-role", "--email", "a@x.example"],
        &["user", "set-role", "--role", "admin"],
        &["user", "disable"],
        &["sessions"],
        &["sessions", "revoke"],
        &["sessions", "revoke", "--all", "--user", "a@x.example"],
        &["backup"],
        &["purge", "everything"],
    ] {
        let done = place.run(args);
        assert_eq!(done.code, Some(2), "{args:?}: {done:?}");
        assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "{args:?}: {done:?}");
    }
    for args in [&["--help"][..], &["--version"], &["user", "--help"], &["sessions", "revoke", "--help"]] {
        assert!(!place.run(args).ok().stdout.is_empty());
    }
    assert!(!place.database().exists(), "what only asks for help makes no database");
}

#[test]
fn a_role_outside_roles_is_refused() {
    let place = Place::new();
    place.create("ana@example.com", "user");
    place.run(&["user", "set-role", "--email", "ana@example.com", "--role", "emperor"]).exits_with_one_line(2);
    place.run_typing(&["user", "create", "--email", "ben@example.com", "--role", "Admin", "--password-stdin"], PASSWORD).exits_with_one_line(2);
    let users = place.run(&["user", "list", "--json"]).ok().json();
    assert_eq!((users.as_array().map(Vec::len), users[0]["role"].as_str()), (Some(1), Some("user")));
}

#[test]
fn who_or_what_is_not_there_is_exit_1() {
    let place = Place::new();
    place.create("ana@example.com", "user");
    let unknown = "01990000-0000-7000-8000-000000000000";
    for args in [
        &["user", "set-role", "--email", "nobody@example.com", "--role", "admin"][..],
        &["user", "disable", "--email", "nobody@example.com"],
        &["user", "enable", "--email", "nobody@example.com"],
        &["user", "set-password", "--email", "nobody@example.com", "--password-stdin"],
        &["sessions", "revoke", "--user", "nobody@example.com"],
        &["sessions", "list", "--user", "nobody@example.com"],
        &["sessions", "revoke", unknown],
        &["sessions", "revoke", "no-uuid"],
    ] {
        let done = place.run_typing(args, "another good password");
        assert_eq!(done.code, Some(1), "{args:?}: {done:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {done:?}");
    }
}

#[test]
fn every_result_is_also_json() {
    let place = Place::new();
    let made = place.create("ana@example.com", "user");
    let id = made["user"]["id"].as_str().expect("an id").to_string();
    let server = place.start();
    let mut ana = server.sign_in("ana@example.com");
    let session = ana.get("/me").is(200).json()["session"]["id"].as_str().expect("an id").to_string();

    let json = |args: &[&str]| place.run_typing(args, "another good password").ok().json();
    let listed = json(&["sessions", "list", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert!(listed.to_string().contains(&session) && listed.to_string().contains(&id), "{listed}");
    assert_eq!(json(&["sessions", "list", "--user", "ana@example.com", "--json"]), listed);
    assert_eq!(json(&["user", "list", "--json"])[0]["id"], made["user"]["id"]);
    assert_eq!(json(&["user", "set-role", "--email", "ana@example.com", "--role", "admin", "--json"])["signed_out"], 1);
    assert_eq!(json(&["user", "set-role", "--email", "ana@example.com", "--role", "admin", "--json"])["user"]["role"], "admin");
    assert_eq!(json(&["user", "set-password", "--email", "ana@example.com", "--password-stdin", "--json"])["user"]["email"], "ana@example.com");
    assert_eq!(json(&["sessions", "revoke", "--user", "ana@example.com", "--json"])["signed_out"], 0);
    assert_eq!(json(&["sessions", "revoke", "--all", "--json"])["signed_out"], 0);
    place.create("root@example.com", "admin");
    assert_eq!(json(&["user", "disable", "--email", "ana@example.com", "--json"])["user"]["disabled"], true);
    assert_eq!(json(&["user", "enable", "--email", "ana@example.com", "--json"])["user"]["disabled"], false);
    assert!(json(&["purge", "--json"]).is_object());
    assert!(json(&["check-config", "--json"])["IDLE_TIMEOUT"].is_object());
}

#[test]
fn results_for_people_name_what_they_are_about() {
    let place = Place::new();
    place.create("ana@example.com", "user");
    let server = place.start();
    let mut ana = server.sign_in("ana@example.com");
    let session = ana.get("/me").is(200).json()["session"]["id"].as_str().expect("an id").to_string();
    assert!(place.run(&["user", "list"]).ok().stdout.contains("ana@example.com"));
    assert!(place.run(&["sessions", "list"]).ok().stdout.contains(&session));
    place.run(&["purge"]).ok();
    assert!(place.run(&["check-config"]).ok().stdout.contains("IDLE_TIMEOUT"));
}

#[test]
fn the_last_enabled_admin_stays() {
    let place = Place::new();
    place.create("root@example.com", "admin");
    place.create("second@example.com", "admin");
    place.create("ana@example.com", "user");
    let (demote, disable) = (["user", "set-role", "--email", "root@example.com", "--role", "user"], ["user", "disable", "--email", "root@example.com"]);
    place.run(&["user", "disable", "--email", "second@example.com"]).ok();
    let server = place.start();
    let mut root = server.sign_in("root@example.com");
    // A disabled admin is none to rely on.
    place.run(&demote).exits_with_one_line(1);
    place.run(&disable).exits_with_one_line(1);
    root.get("/admin/users").is(200);

    place.run(&["user", "enable", "--email", "second@example.com"]).ok();
    place.run(&demote).ok();
    place.run(&["user", "disable", "--email", "second@example.com"]).exits_with_one_line(1);
    assert!(soon(NOTICE, || root.get("/check").status == 401));
}

#[test]
fn every_deed_of_the_command_line_is_in_the_audit_log() {
    let place = Place::new();
    place.create("root@example.com", "admin");
    place.create("ana@example.com", "user");
    let server = place.start();
    server.sign_in("ana@example.com");
    for args in [
        &["sessions", "revoke", "--user", "ana@example.com"][..],
        &["user", "set-password", "--email", "ana@example.com", "--password-stdin"],
        &["user", "disable", "--email", "ana@example.com"],
        &["user", "enable", "--email", "ana@example.com"],
        &["user", "set-role", "--email", "ana@example.com", "--role", "admin"],
    ] {
        place.run_typing(args, "another good password").ok();
    }
    let mut root = server.sign_in("root@example.com");
    let users = root.get("/admin/users?email=ana@example.com").is(200).json();
    let ana = users["users"][0]["id"].as_str().expect("an id");
    let events = root.get(&format!("/admin/events?user_id={ana}")).is(200).json();
    for kind in ["signed_up", "sessions_revoked", "password_changed", "account_disabled", "account_enabled", "role_changed"] {
        let by_cli = events["events"].as_array().expect("a list").iter().any(|event| event["kind"] == kind && event["detail"].to_string().contains("cli"));
        assert!(by_cli, "no {kind} by the command line: {events}");
    }
    // And its owner hears of each.
    let letters = "('sessions_revoked', 'password_changed', 'account_disabled', 'account_enabled', 'role_changed')";
    assert_eq!(count(&place, &format!("SELECT count(DISTINCT kind) FROM outbox WHERE recipient = 'ana@example.com' AND kind IN {letters}")), 5);
}

#[test]
fn the_same_role_again_changes_nothing() {
    let place = Place::new();
    let server = place.start();
    let (mut ana, mut ben) = (server.sign_up("ana@example.com"), server.sign_up("ben@example.com"));
    place.run(&["user", "set-role", "--email", "ana@example.com", "--role", "user"]).ok();
    // Once the second command is noticed, the first one is too.
    place.run(&["user", "set-role", "--email", "ben@example.com", "--role", "admin"]).ok();
    assert!(soon(NOTICE, || ben.get("/check").status == 401));
    ana.get("/check").is(204);
    let events = ana.get("/me/activity").is(200).json();
    assert!(!events.to_string().contains("role_changed"), "{events}");
}

#[test]
fn purge_forgets_what_is_older_than_its_retention_and_nothing_else() {
    let mut place = Place::new();
    let server = place.start();
    let (mut ana, mut ben) = (server.sign_up("ana@example.com"), server.sign_up("ben@example.com"));
    let (gone, alive) = (ana.token(), ben.token());
    ana.poke("/logout").is(204);
    ben.get("/check").is(204);
    server.stop();
    let events = count(&place, "SELECT count(*) FROM events");

    let purged = place.run(&["purge", "--json"]).ok().json();
    assert!(purged.as_object().expect("counts").values().all(|n| n == 0), "{purged}");
    assert_eq!((count(&place, "SELECT count(*) FROM device_sessions"), count(&place, "SELECT count(*) FROM events")), (2, events));

    place.set("ENDED_SESSION_RETENTION", "1s");
    place.set("EVENT_RETENTION", "1s");
    let all_gone = || {
        place.run(&["purge", "--json"]).ok();
        count(&place, "SELECT count(*) FROM device_sessions") == 1 && count(&place, "SELECT count(*) FROM events") == 0
    };
    assert!(soon(PATIENCE, all_gone));
    assert_eq!(count(&place, "SELECT count(*) FROM users"), 2);
    let server = place.start();
    server.browser().holding(&gone).get("/check").is_refused(401, "unauthenticated");
    server.browser().holding(&alive).get("/check").is(204);
}

fn count(place: &Place, sql: &str) -> i64 {
    place.sql().query_row(sql, [], |row| row.get(0)).expect("a number")
}

// While the server runs.

#[test]
fn what_the_command_line_ends_is_dead_for_a_running_server_within_a_second() {
    let place = Place::new();
    place.create("root@example.com", "admin");
    let server = place.start();
    let people = ["revoke-one", "revoke-user", "password", "role", "disable"];
    for person in people {
        let email = format!("{person}@example.com");
        let mut ana = server.sign_up(&email);
        let session = ana.get("/me").is(200).json()["session"]["id"].as_str().expect("an id").to_string();
        let args: Vec<&str> = match person {
            "revoke-one" => vec!["sessions", "revoke", &session],
            "revoke-user" => vec!["sessions", "revoke", "--user", &email],
            "password" => vec!["user", "set-password", "--email", &email, "--password-stdin"],
            "role" => vec!["user", "set-role", "--email", &email, "--role", "admin"],
            _ => vec!["user", "disable", "--email", &email],
        };
        // Warm: the server has the session at hand.
        ana.get("/check").is(204);
        place.run_typing(&args, "another good password").ok();
        assert!(soon(NOTICE, || ana.get("/check").status == 401), "{person}: still alive");
        for _ in 0..20 {
            ana.get("/check").is_refused(401, "session_revoked");
        }
        ana.get("/me").is_refused(401, "session_revoked");
    }
    let mut everybody: Vec<Browser> = ["password", "role"].map(|_| server.browser()).into();
    everybody[0].log_in("password@example.com", PASSWORD).is_refused(401, "invalid_credentials");
    everybody[0].log_in("password@example.com", "another good password").is(200);
    let signed_in = everybody[1].log_in("role@example.com", PASSWORD).is(200);
    assert_eq!(signed_in.json()["user"]["role"], "admin");
    server.browser().log_in("disable@example.com", PASSWORD).is_refused(401, "invalid_credentials");
    place.run(&["user", "enable", "--email", "disable@example.com"]).ok();
    everybody.push(server.sign_in("disable@example.com"));

    for browser in &mut everybody {
        browser.get("/check").is(204);
    }
    place.run(&["sessions", "revoke", "--all"]).ok();
    assert!(soon(NOTICE, || everybody.iter_mut().all(|browser| browser.get("/check").status == 401)));
    for browser in &mut everybody {
        browser.get("/check").is_refused(401, "session_revoked");
    }
    assert_eq!(place.run(&["sessions", "list", "--json"]).ok().json(), json!([]));
}

#[test]
fn commands_and_a_loaded_server_share_the_database() {
    let place = Place::with(&[("SIGNUP_LIMIT_SOURCE", "none")]);
    place.create("root@example.com", "admin");
    let server = place.start();
    let enough = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let load: Vec<_> = (0..4)
            .map(|n| {
                let (server, enough) = (&server, &enough);
                threads.spawn(move || {
                    let mut done = 0;
                    while !enough.load(Ordering::Relaxed) {
                        let mut browser = server.sign_up(&format!("load-{n}-{done}@example.com"));
                        browser.get("/check").is(204);
                        browser.poke("/logout").is(204);
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let commands: Vec<_> = (0..2)
            .map(|n| {
                let place = &place;
                threads.spawn(move || {
                    for i in 0..5 {
                        let email = format!("cli-{n}-{i}@example.com");
                        place.create(&email, "user");
                        place.run(&["user", "disable", "--email", &email]).ok();
                        place.run(&["purge", "--json"]).ok();
                    }
                })
            })
            .collect();
        for command in commands {
            command.join().expect("no command fails");
        }
        enough.store(true, Ordering::Relaxed);
        let done: i64 = load.into_iter().map(|thread| thread.join().expect("no request fails")).sum();
        assert_eq!(count(&place, "SELECT count(*) FROM users"), done + 11);
        assert_eq!(count(&place, "SELECT count(*) FROM events WHERE kind = 'signed_up'"), done + 11);
        assert_eq!(count(&place, "SELECT count(*) FROM events WHERE kind = 'signed_out'"), done);
    });
    server.stop();
    assert_eq!(integrity_of(&place.database()), "ok");
}

// Settings.

/// The lines with which a start is refused.
#[track_caller]
fn faults(place: &Place) -> Vec<String> {
    let (check, start) = (place.run(&["check-config"]), place.run(&[]));
    assert_eq!((check.code, start.code), (Some(2), Some(2)), "{check:?} {start:?}");
    assert_eq!(check.stderr, start.stderr);
    start.stderr.lines().map(String::from).collect()
}

#[test]
fn a_wrong_setting_stops_the_start_with_a_line_that_names_it() {
    let wrong = [
        ("IDLE_TIMEOUT", "30"),
        ("IDLE_TIMEOUT", "0s"),
        ("IDLE_TIMEOUT", "soon"),
        ("ABSOLUTE_TIMEOUT", "none"),
        ("ABSOLUTE_TIMEOUT", "0h"),
        ("ROLE_TIMEOUTS", "boss=5m/8h"),
        ("ROLE_TIMEOUTS", "admin=5m/none"),
        ("REMEMBER_TIMEOUTS", "7d"),
        ("ALLOWED_ORIGINS", "https://app.example.com/path"),
        ("PUBLIC_URL", "https://id.example.com/auth"),
        ("PUBLIC_URL", "http://id.example.com"),
        ("ALLOW_INSECURE_HTTP", "maybe"),
        ("TRUSTED_PROXIES", "my-proxy"),
        ("LISTEN_ADDR", "8300"),
        ("DATABASE_URL", "holdfast.db"),
        ("BASE_PATH", "auth"),
        ("HASH_THREADS", "0"),
        ("PASSWORD_MIN_LENGTH", "x"),
        ("MAX_SESSIONS_PER_USER", "0"),
        ("SHUTDOWN_GRACE", "10"),
        ("LOG", "loud"),
        ("LOG_FORMAT", "xml"),
        ("CLEAR_SITE_DATA", "everything"),
        ("ROLES", "user"),
        ("KNOWN_IP_RETENTION", "0d"),
    ];
    for (name, value) in wrong {
        let mut place = Place::bare();
        place.set(name, value);
        let lines = faults(&place);
        assert!(lines.len() == 1 && lines[0].contains(name), "{name}={value}: {lines:?}");
        assert!(!place.database().exists());
    }
}

#[test]
fn every_wrong_setting_gets_a_line_at_once() {
    let mut place = Place::bare();
    let wrong = [
        ("IDLE_TIMEOUT", "30"),
        ("ROLE_TIMEOUTS", "boss=5m/8h"),
        ("ALLOWED_ORIGINS", "https://app.example.com/path"),
        ("PUBLIC_URL", "http://id.example.com"),
        ("LOG", "loud"),
    ];
    for (name, value) in wrong {
        place.set(name, value);
    }
    let lines = faults(&place);
    for (name, value) in wrong {
        assert_eq!(lines.iter().filter(|line| line.contains(&format!("{name}:"))).count(), 1, "{name}={value}: {lines:?}");
    }
    assert_eq!(lines.len(), wrong.len(), "{lines:?}");
}

#[test]
fn secrets_in_settings_are_not_echoed() {
    for (name, value) in [("DATABASE_URL", "postgres://root:hunter2@db/x?sslmode=maybe"), ("PUBLIC_URL", "https://root:hunter2@id.example.com")] {
        let mut place = Place::bare();
        place.set(name, value);
        let lines = faults(&place);
        assert!(lines.len() == 1 && lines[0].contains(name) && !lines[0].contains("hunter2"), "{lines:?}");
    }
    let place = Place::bare();
    fs::write(place.path(".env"), "LOG=info\nhunter2 was here\n").expect("writes");
    let lines = faults(&place);
    assert!(lines.len() == 1 && lines[0].contains(".env") && !lines[0].contains("hunter2"), "{lines:?}");
}

/// DB-02: what stands in an example is no secret.
#[test]
fn the_password_of_an_example_stops_the_start_and_is_not_echoed() {
    for (name, value) in [
        ("DATABASE_URL", "postgres://holdfast:secret@db.example.com/holdfast"),
        ("DATABASE_URL", "postgres://user:password@127.0.0.1:1/database"),
        ("MAIL", "smtp://user:password@127.0.0.1:1"),
        ("MAIL_FILE", "mail-secret"),
    ] {
        let mut place = Place::bare();
        fs::write(place.path("mail-secret"), "smtp://post:secret@127.0.0.1:1\n").expect("writes");
        place.set(name, value);
        let lines = faults(&place);
        assert!(lines.len() == 1 && lines[0].contains(&format!("{name}: ")), "{lines:?}");
        assert!(["secret", ":password"].iter().all(|password| !lines[0].replace("mail-secret", "").contains(password)), "{lines:?}");
    }
    let place = Place::bare();
    let refused = place.run(&["migrate-to", "postgres://holdfast:secret@db.example.com/holdfast"]).exits_with_one_line(2).stderr;
    assert!(refused.contains("example") && !refused.contains("secret"), "{refused}");
}

#[test]
fn settings_come_from_the_file_and_the_environment_wins() {
    let mut place = Place::bare();
    fs::write(
        place.path(".env"),
        "# Ours.\nLISTEN_ADDR=127.0.0.1:0\nARGON2_MEMORY_KIB=8\nARGON2_ITERATIONS=1\nDATABASE_URL=\"sqlite:elsewhere/own.db\"\nPASSWORD_MIN_LENGTH=12\nROLES=guest,admin\nLOG=loud\n",
    )
    .expect("writes");
    // What the environment overrides does not count, right or wrong.
    assert!(faults(&place)[0].contains("LOG"));
    place.set("LOG", "info");
    place.set("PASSWORD_MIN_LENGTH", "9");
    let config = place.run(&["check-config", "--json"]).ok().json();
    assert_eq!((config.pointer("/PASSWORD_MIN_LENGTH/value"), config.pointer("/ROLES/value")), (Some(&json!("9")), Some(&json!("guest,admin"))));

    place.run_typing(&["user", "create", "--email", "cli@example.com", "--password-stdin"], "nine char").ok();
    let server = place.start();
    assert!(place.path("elsewhere/own.db").exists());
    let signed_up = server.browser().post("/signup", json!({"email": "ana@example.com", "password": "nine char"})).is(201);
    assert_eq!(signed_up.json()["user"]["role"], "guest");
    server.browser().post("/signup", json!({"email": "ben@example.com", "password": "only 8 c"})).is_refused(422, "validation_failed");
    server.browser().log_in("cli@example.com", "nine char").is(200);
}

#[test]
fn plain_http_elsewhere_is_served_only_on_demand_and_with_a_warning() {
    let mut place = Place::with(&[("PUBLIC_URL", "http://id.example.com")]);
    assert!(faults(&place)[0].contains("PUBLIC_URL"));
    place.set("ALLOW_INSECURE_HTTP", "true");
    let server = place.start();
    let log = server.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("PUBLIC_URL")), "{log}");
}

#[test]
fn an_allowed_origin_on_another_site_is_warned_of_at_start() {
    let place = Place::with(&[("PUBLIC_URL", "https://id.example.com"), ("ALLOWED_ORIGINS", "https://app.example.com,https://app.other.example")]);
    let log = place.start().log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN") && line.contains("ALLOWED_ORIGINS")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("https://app.other.example"), "{log}");
}

// Faults at start.

/// Expects that neither the server nor a command can use the database.
#[track_caller]
fn is_unusable(place: &Place) -> Done {
    place.run(&["user", "list"]).exits_with_one_line(1);
    place.run(&[]).exits_with_one_line(1)
}

#[test]
fn a_port_in_use_stops_the_start_with_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    for host in ["127.0.0.1", "localhost"] {
        let place = Place::with(&[("LISTEN_ADDR", &format!("{host}:{port}"))]);
        let done = place.run(&[]).exits_with_one_line(1);
        assert!(done.stderr.contains(&port.to_string()), "{}", done.stderr);
    }
}

#[test]
fn a_folder_in_place_of_the_database_stops_the_start_with_one_line() {
    let place = Place::new();
    fs::create_dir_all(place.database()).expect("a folder");
    assert!(is_unusable(&place).stderr.contains("data/holdfast.db"));
    assert!(place.database().is_dir());
}

#[test]
fn a_file_in_place_of_the_folder_stops_the_start_with_one_line() {
    let place = Place::new();
    fs::write(place.path("data"), "a file").expect("writes");
    assert!(is_unusable(&place).stderr.contains("data/holdfast.db"));
}

#[test]
fn a_file_that_is_no_database_stops_the_start_and_stays_as_it_is() {
    let place = Place::new();
    fs::create_dir(place.path("data")).expect("a folder");
    let text = "my letters to the editor\n".repeat(100);
    fs::write(place.database(), &text).expect("writes");
    fs::set_permissions(place.database(), fs::Permissions::from_mode(0o644)).expect("a mode");
    let done = [place.run(&["user", "list"]), place.run(&[])];
    assert_eq!(fs::read_to_string(place.database()).expect("reads"), text);
    assert_eq!(mode(&place.database()), 0o644, "the file of somebody else got another mode");
    done.into_iter().for_each(|done| drop(done.exits_with_one_line(1)));
}

#[test]
fn the_database_of_another_program_stops_the_start_and_stays_as_it_is() {
    let place = Place::new();
    fs::create_dir(place.path("data")).expect("a folder");
    let notes = rusqlite::Connection::open(place.database()).expect("opens");
    notes.execute_batch("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine');").expect("a table");
    drop(notes);
    fs::set_permissions(place.database(), fs::Permissions::from_mode(0o644)).expect("a mode");
    let before = fs::read(place.database()).expect("reads");
    let done = [place.run(&["user", "list"]), place.run(&[])];
    assert!(fs::read(place.database()).expect("reads") == before, "the file of the other program was changed");
    assert_eq!(mode(&place.database()), 0o644, "the file of the other program got another mode");
    done.into_iter().for_each(|done| drop(done.exits_with_one_line(1)));
}

#[test]
fn a_database_of_a_newer_version_stops_the_start_with_one_line() {
    let place = Place::new();
    place.create("ana@example.com", "user");
    place.sql().execute("INSERT INTO migrations (name, sql, applied_at) VALUES ('9999_future', 'SELECT 1', 0)", []).expect("a row");
    assert!(is_unusable(&place).stderr.contains("9999_future"));
    assert_eq!(count(&place, "SELECT count(*) FROM users"), 1);
}

// Faults while running.

/// Expects that the server says `503` on everything that needs the database, from a second after `since` on.
#[track_caller]
fn is_out_of_service(ana: &mut Browser, since: Instant) {
    let left = || NOTICE.saturating_sub(since.elapsed());
    assert!(soon(left(), || ana.get("/health/ready").status == 503), "still ready");
    let mut before = ana.get("/check").status;
    assert!(
        soon(left(), || {
            before = ana.get("/check").status;
            before == 503
        }),
        "a warm session still gets {before} from /check"
    );
    for _ in 0..50 {
        let reply = ana.get("/check").is(503);
        assert!(reply.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{reply:?}");
        assert_eq!(reply.header("x-holdfast-user"), None);
    }
    for reply in [ana.get("/me"), ana.get("/me/sessions"), ana.log_in("ana@example.com", PASSWORD), ana.get("/health/ready")] {
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
        reply.is_refused(503, "overloaded");
    }
    ana.get("/health/live").is(200);
}

#[test]
fn a_server_whose_database_was_removed_lets_nobody_through() {
    let place = Place::new();
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    ana.get("/check").is(204);
    fs::remove_file(place.database()).expect("removes");
    is_out_of_service(&mut ana, Instant::now());
    assert!(!place.database().exists(), "an empty database in its place would look like an answer");
}

#[test]
fn a_server_whose_database_was_replaced_lets_nobody_through_until_it_is_back() {
    let place = Place::new();
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    ana.get("/check").is(204);
    place.run(&["backup", "copy.db"]).ok();
    fs::rename(place.database(), place.path("away.db")).expect("renames");
    fs::rename(place.path("copy.db"), place.database()).expect("renames");
    is_out_of_service(&mut ana, Instant::now());
    fs::rename(place.path("away.db"), place.database()).expect("renames");
    assert!(soon(PATIENCE, || ana.get("/check").status == 204));
    ana.get("/health/ready").is(200);
}

#[test]
fn while_another_program_holds_the_lock_writes_wait_five_seconds_and_checks_go_on() {
    let place = Place::new();
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    ana.get("/check").is(204);
    // Her letter has left: a delivery that waits for the lock too would make the next one wait for both.
    server.wait_for("INFO sent user=");
    let holder = place.sql();
    holder.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    std::thread::scope(|threads| {
        let write = threads.spawn(|| {
            let begun = Instant::now();
            let reply = server.browser().post("/signup", json!({"email": "ben@example.com", "password": PASSWORD}));
            (reply, begun.elapsed())
        });
        let command = threads.spawn(|| place.run_typing(&["user", "create", "--email", "cli@example.com", "--password-stdin"], PASSWORD));
        while !write.is_finished() {
            let begun = Instant::now();
            ana.get("/check").is(204);
            assert!(begun.elapsed() < Duration::from_secs(1), "a check waited for the lock");
        }
        let (reply, took) = write.join().expect("no panic");
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
        reply.is_refused(503, "overloaded");
        assert!((4..9).contains(&took.as_secs()), "{took:?}");
        command.join().expect("no panic").exits_with_one_line(1);
    });
    holder.execute_batch("COMMIT").expect("lets go");
    server.sign_up("ben@example.com");
    assert_eq!(count(&place, "SELECT count(*) FROM users"), 2);
}

// Files.

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

/// DB-02.
#[test]
fn files_are_for_their_owner_only_whatever_the_umask() {
    let place = Place::with(&[("DATABASE_URL", "sqlite:var/lib/holdfast.db")]);
    let server = place.start_unmasked();
    server.sign_up("ana@example.com");
    let own = |name: &str| {
        assert_eq!(mode(&place.path(name)), 0o600, "{name}");
    };
    for name in ["var", "var/lib"] {
        assert_eq!(mode(&place.path(name)), 0o700, "{name}");
    }
    for name in ["var/lib/holdfast.db", "var/lib/holdfast.db-wal", "var/lib/holdfast.db-shm"] {
        own(name);
    }
    place.run_unmasked(&["backup", "copy.db"], "").ok();
    own("copy.db");

    let mut other = Place::new();
    other.set("DATABASE_URL", "sqlite:cli/holdfast.db");
    other.run_unmasked(&["user", "create", "--email", "ana@example.com", "--password-stdin"], PASSWORD).ok();
    assert_eq!((mode(&other.path("cli")), mode(&other.path("cli/holdfast.db"))), (0o700, 0o600));
}

#[test]
fn a_backup_is_one_moment_of_a_server_that_goes_on_writing() {
    let place = Place::with(&[("SIGNUP_LIMIT_SOURCE", "none")]);
    let server = place.start();
    let enough = AtomicBool::new(false);
    let (told, acknowledged) = mpsc::channel();
    std::thread::scope(|threads| {
        for n in 0..3 {
            let (server, enough, told) = (&server, &enough, told.clone());
            threads.spawn(move || {
                for i in 0.. {
                    let email = format!("u{n}-{i}@example.com");
                    let mut browser = server.sign_up(&email);
                    told.send((email, browser.token())).expect("the test listens");
                    browser.put("/me/password", json!({"current_password": PASSWORD, "new_password": "another good password"})).is(200);
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let before: Vec<(String, String)> = (0..30).map(|_| acknowledged.recv_timeout(PATIENCE).expect("sign-ups go on")).collect();
        let done = place.run(&["backup", "copy.db"]);
        // Some more, so that the backup was made in the middle.
        for _ in 0..3 {
            acknowledged.recv_timeout(PATIENCE).expect("sign-ups go on");
        }
        enough.store(true, Ordering::Relaxed);
        done.ok();
        assert_eq!(mode(&place.path("copy.db")), 0o600);
        let bytes = fs::read(place.path("copy.db")).expect("reads");
        place.run(&["backup", "copy.db"]).exits_with_one_line(1);
        assert!(fs::read(place.path("copy.db")).expect("reads") == bytes, "a backup was overwritten");

        let copy = open_sql(&place.path("copy.db"));
        let number = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        assert!(number("SELECT count(*) FROM users") >= 30);
        assert_eq!(number("SELECT count(*) FROM users"), number("SELECT count(*) FROM events WHERE kind = 'signed_up'"));
        assert_eq!(number("SELECT count(*) FROM retired_tokens"), number("SELECT count(*) FROM events WHERE kind = 'password_changed'"));
        drop(copy);
        assert_eq!(integrity_of(&place.path("copy.db")), "ok");

        let url = format!("sqlite:{}", place.path("copy.db").display());
        let second = Place::with(&[("DATABASE_URL", &url)]).start();
        for (email, token) in &before {
            let old = second.browser().log_in(email, PASSWORD).status;
            let new = second.browser().log_in(email, "another good password").status;
            assert!(matches!((old, new), (200, 401) | (401, 200)), "{email}: {old}, {new}");
            let check = second.browser().holding(token).get("/check");
            assert_eq!(check.status, if old == 200 { 204 } else { 401 });
        }
    });
}

#[test]
fn a_backup_that_cannot_be_made_leaves_nothing_behind() {
    let place = Place::new();
    // There is no database yet.
    place.run(&["backup", "copy.db"]).exits_with_one_line(1);
    place.create("ana@example.com", "user");
    place.run(&["backup", "no/such/folder/copy.db"]).exits_with_one_line(1);
    place.run(&["backup", "data"]).exits_with_one_line(1);
    let left: Vec<String> =
        fs::read_dir(place.path(".")).expect("reads").map(|entry| entry.expect("reads").file_name().into_string().expect("UTF-8")).collect();
    assert_eq!(left, ["data"]);
}

// The log.

const WRONG: &str = "a wrong password, kept secret";
const MISPLACED: &str = "typed-by-mistake-0815";
const MISPLACED_LIKE_AN_ADDRESS: &str = "typed-by-mistake@4711.example";
const BEARER: &str = "c2VjcmV0LWJlYXJlcg";

/// Runs through everything that has to do with secrets; they come back, with the bodies of all answers.
fn leave_secrets(place: &Place, server: &Server) -> (Vec<String>, String) {
    let mut bodies = String::new();
    let mut browser = server.browser().with("Authorization", &format!("Bearer {BEARER}"));
    let mut tokens = Vec::new();
    let other = "another good password";
    let asks = [
        ("POST", "/signup", json!({"email": "ana@example.com", "password": PASSWORD})),
        ("GET", "/me", Value::Null),
        ("GET", "/check", Value::Null),
        ("GET", "/me/sessions", Value::Null),
        ("GET", "/me/activity", Value::Null),
        ("POST", "/signup", json!({"email": "ana@example.com", "password": PASSWORD})),
        ("POST", "/signup", json!({"email": "ben@example.com", "password": "short-1"})),
        ("POST", "/login", json!({"email": "ana@example.com", "password": WRONG})),
        ("POST", "/login", json!({"email": "nobody@example.com", "password": WRONG})),
        ("POST", "/login", json!({"email": MISPLACED, "password": "x"})),
        ("POST", "/login", json!({"email": MISPLACED_LIKE_AN_ADDRESS, "password": "x"})),
        ("POST", "/login", json!({"email": "ana@example.com", "password": PASSWORD, "passwort": WRONG})),
        ("POST", "/login", json!({"email": "ana@example.com", "password": [PASSWORD]})),
        ("PUT", "/me/password", json!({"current_password": WRONG, "new_password": other})),
        ("PUT", "/me/password", json!({"current_password": PASSWORD, "new_password": other})),
        ("GET", "/check?password=correct+horse+battery", Value::Null),
        ("POST", "/logout", Value::Null),
        ("GET", "/me", Value::Null),
        ("POST", "/login", json!({"email": "ana@example.com", "password": other, "remember": true})),
        ("DELETE", "/me/sessions?include_current=true", Value::Null),
        ("POST", "/login", json!({"email": "ana@example.com", "password": other})),
    ];
    let mut note = |cookies: &Browser| tokens.extend(cookies.cookies.values().cloned());
    for (method, path, body) in asks {
        let reply = browser.send(method, path, (!body.is_null()).then_some(&body));
        bodies += &String::from_utf8_lossy(&reply.body);
        note(&browser);
    }
    // The links of letters, at the pages and at the API; used, and used again. A page repeats its token, in the form that it holds.
    browser.post("/password/forgot", json!({"email": "ana@example.com"})).is(202);
    browser.post("/email/verification", json!({})).is(202);
    for (page, path, rest) in [("verify", "/email/verify", json!({})), ("reset", "/password/reset", json!({"new_password": other}))] {
        let link = place.link(page);
        browser.get(&format!("/security/{page}/{link}"));
        for field in ["token", "t0ken"] {
            let mut ask = rest.clone();
            ask[field] = json!(link);
            for _ in 0..2 {
                bodies += &String::from_utf8_lossy(&browser.post(path, ask.clone()).body);
            }
        }
        tokens.push(link);
    }
    browser.log_in("ana@example.com", other).is(200);
    tokens.push(browser.token());
    let token = browser.token();
    // A token in a place where it does not belong, and bodies that break off.
    for request in [
        format!("GET /check?token={token} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET /me/sessions/{token} HTTP/1.1\r\nHost: x\r\nCookie: holdfast={token}\r\n\r\n"),
        format!("GET /check HTTP/1.1\r\nHost: x\r\nCookie: holdfast={token}; holdfast={token}\r\n\r\n"),
        format!("GET /check HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nCookie: holdfast={token}x\r\n\r\n"),
        format!("GET /{token} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("BREW/{token} / HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nCookie {token}\r\n\r\n"),
    ] {
        let mut wire = server.wire();
        wire.send(request).expect("it is sent");
        if let Ok(reply) = wire.reply() {
            bodies += &String::from_utf8_lossy(&reply.body);
        }
    }
    for body in [format!("{{\"email\": \"ana@example.com\", \"password\": \"{PASSWORD}"), format!("{{\"password\": \"{PASSWORD}\"}} {WRONG}"), WRONG.into()] {
        for kind in ["application/json", "text/plain"] {
            let head = format!("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
            bodies += &String::from_utf8_lossy(&server.wire().ask(head + &body).body);
        }
    }
    let mut secrets: Vec<String> =
        [PASSWORD, "correct+horse+battery", other, WRONG, MISPLACED, MISPLACED_LIKE_AN_ADDRESS, BEARER, "short-1"].map(String::from).into();
    tokens.sort();
    tokens.dedup();
    assert!(tokens.len() >= 5, "{tokens:?}");
    secrets.extend(tokens);
    (secrets, bodies)
}

/// Each secret, and its beginning.
fn traces(secrets: &[String]) -> impl Iterator<Item = &str> {
    secrets.iter().flat_map(|secret| [secret.as_str(), &secret[..secret.len().min(12)]])
}

#[test]
fn no_secret_is_logged_at_any_level_in_any_format() {
    for format in ["text", "json"] {
        let place = Place::with(&[("LOG", "trace"), ("LOG_FORMAT", format)]);
        let server = place.start();
        let (secrets, mut bodies) = leave_secrets(&place, &server);
        let typed = place.run_typing(&["user", "create", "--email", "cli@example.com", "--password-stdin"], "a password at the command line").ok();
        let weak = place.run_typing(&["user", "create", "--email", "cli@example.com", "--password-stdin"], "short-1").exits(1);
        // The end of the database: what is told of it must not tell too much.
        fs::rename(place.database(), place.path("away.db")).expect("renames");
        let mut late = server.browser().holding(secrets.last().expect("a token"));
        assert!(soon(PATIENCE, || late.get("/health/ready").status == 503));
        for reply in
            [late.get("/me"), late.log_in("ana@example.com", WRONG), late.put("/me/password", json!({"current_password": WRONG, "new_password": PASSWORD}))]
        {
            bodies += &String::from_utf8_lossy(&reply.body);
        }
        let log = server.stop();
        assert!(log.lines().count() > 30, "little was logged:\n{log}");
        if format == "json" {
            for line in log.lines() {
                assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()), "{line}");
            }
        }
        for trace in traces(&secrets).chain(["a password at"]) {
            for (text, place) in
                [(&log, "the log"), (&bodies, "an answer"), (&typed.stderr, "a command"), (&typed.stdout, "a command"), (&weak.stderr, "a command")]
            {
                assert!(!text.contains(trace), "{trace:?} is in {place}: {:?}", text.lines().find(|line| line.contains(trace)));
            }
        }
    }
}

/// What a core dump or a swapped page would show. What the network libraries hold is not ours to wipe: there it is not composed
/// yet.
#[test]
fn a_password_leaves_no_trace_in_memory_once_it_was_used() {
    let place = Place::new();
    let server = place.start();
    // What is freed loses its first bytes: the canary stands behind them.
    let typed = "a long beginning, and then a canary: e\u{301}-o\u{302}-u\u{308}-i\u{301}-a\u{300}-nowhere else";
    let composed = "canary: \u{e9}-\u{f4}-\u{fc}-\u{ed}-\u{e0}-nowhere else";
    let ask = json!({"email": "ana@example.com", "password": typed});
    server.browser().post("/signup", ask.clone()).is(201);
    server.browser().post("/login", ask).is(200);
    server.browser().log_in("ana@example.com", &format!("{composed} and wrong").replace('\u{e9}', "e\u{301}")).is(401);
    let Some(known) = server.copies_of(b"ana@example.com") else {
        eprintln!("NOT TESTED: this system does not let a program look into the memory of its child");
        return;
    };
    assert!(known > 0, "the search finds nothing at all");
    assert_eq!(server.copies_of(composed.as_bytes()), Some(0));
}

#[test]
fn no_secret_is_stored_as_it_was_issued_or_typed() {
    let place = Place::new();
    let server = place.start();
    let (secrets, _) = leave_secrets(&place, &server);
    place.run(&["backup", "copy.db"]).ok();
    let looked_at: Vec<Vec<u8>> =
        ["data/holdfast.db", "data/holdfast.db-wal", "copy.db"].map(|name| fs::read(place.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))).into();
    let has = |needle: &[u8]| looked_at.iter().any(|bytes| bytes.windows(needle.len()).any(|window| window == needle));
    assert!(has(b"ana@example.com"), "the search finds nothing at all");
    for secret in &secrets {
        assert!(!has(secret.as_bytes()), "{secret} is stored");
        use base64::Engine as _;
        if let Ok(raw) = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(secret)
            && raw.len() == 32
        {
            let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!has(&raw) && !has(hex.as_bytes()), "{secret} is stored in another spelling");
        }
    }
    // What is stored opens nothing.
    let stored: Vec<Vec<u8>> = {
        let copy = open_sql(&place.path("copy.db"));
        let mut read = copy.prepare("SELECT token_hash FROM device_sessions UNION SELECT token_hash FROM retired_tokens").expect("a query");
        read.query_map([], |row| row.get(0)).expect("rows").map(|row| row.expect("a row")).collect()
    };
    assert!(stored.len() > 3);
    for hash in stored {
        use base64::Engine as _;
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        for token in [base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&hash), hex] {
            server.browser().holding(&token).get("/check").is_refused(401, "unauthenticated");
        }
    }
}

#[test]
fn a_sign_in_from_a_new_ip_is_a_warning_for_operators() {
    for format in ["text", "json"] {
        let place = Place::with(&[("LOG_FORMAT", format)]);
        let server = place.start();
        let mut ana = server.browser().with("X-Forwarded-For", "203.0.113.7");
        let signed_up = ana.post("/signup", json!({"email": "ana@example.com", "password": PASSWORD})).is(201).json();
        let id = signed_up["user"]["id"].as_str().expect("an id");
        server.browser().with("X-Forwarded-For", "203.0.113.7").log_in("ana@example.com", PASSWORD).is(200);
        let elsewhere = server.browser().with("X-Forwarded-For", "198.51.100.9").log_in("ana@example.com", PASSWORD).is(200);
        assert_eq!(elsewhere.json()["session"]["new_ip"], true);
        let log = server.stop();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("new_ip_login")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(id) && lines[0].contains("198.51.100.9"), "{}", lines[0]);
        if format == "text" {
            assert!(lines[0].contains("WARN") && lines[0].contains("event=\"new_ip_login\""), "{}", lines[0]);
            continue;
        }
        for line in log.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        }
        let line: Value = serde_json::from_str(lines[0]).expect("JSON");
        assert_eq!((&line["level"], &line["event"]), (&json!("WARN"), &json!("new_ip_login")), "{line}");
    }
}

#[test]
fn a_forwarded_address_from_a_stranger_does_not_count_and_is_warned_of_once() {
    let place = Place::with(&[("TRUSTED_PROXIES", "")]);
    let server = place.start();
    // Whatever it came with: behind a proxy nothing else may ever be asked.
    server.browser().with("X-Forwarded-For", "203.0.113.7").get("/check").is_refused(401, "unauthenticated");
    server.wait_for("X-Forwarded-For");
    let mut ana = server.browser().with("X-Forwarded-For", "203.0.113.7");
    let signed_up = ana.post("/signup", json!({"email": "ana@example.com", "password": PASSWORD})).is(201).json();
    assert_eq!(signed_up["session"]["ip"], "127.0.0.1");
    for n in 1..5 {
        let signed_in = server.browser().with("X-Forwarded-For", &format!("203.0.113.{n}")).log_in("ana@example.com", PASSWORD).is(200).json();
        assert_eq!(signed_in["session"]["new_ip"], false);
    }
    let log = server.stop();
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains("X-Forwarded-For")).count();
    assert_eq!(warnings, 1, "{log}");
}

/// The first line about `route` with this status, as JSON.
fn line_about(log: &str, route: &str, status: u64) -> Value {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    let mut about = lines.filter(|line| line["route"] == route && line["status"] == status);
    about.next().unwrap_or_else(|| panic!("nothing about {route} {status}:\n{log}"))
}

#[test]
fn refusals_and_faults_are_logged_with_who_asked_for_what_and_why_not() {
    let place = Place::with(&[("LOG_FORMAT", "json")]);
    let server = place.start();
    let mut ana = server.sign_up("ana@example.com");
    let me = ana.get("/me").is(200).json();
    let forbidden = ana.get("/admin/users").is_refused(403, "forbidden");
    server.browser().with("Origin", "https://evil.test").poke("/logout").is_refused(403, "cross_site_request");
    ana.put("/me/password", json!({"current_password": "a wrong password", "new_password": "another good password"})).is_refused(403, "invalid_credentials");
    let copy = ana.token();
    let left = ana.poke("/logout").is(204);
    server.browser().holding(&copy).get("/check").is_refused(401, "session_logged_out");
    place.sql().execute_batch("ALTER TABLE events RENAME TO events_elsewhere").expect("the statement runs");
    let broken = server.browser().log_in("ana@example.com", PASSWORD).is_refused(500, "internal");

    let log = server.stop();
    let line = line_about(&log, "/admin/users", 403);
    assert!(line["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{line}");
    assert_eq!((&line["code"], &line["method"], line["request_id"].as_str()), (&json!("forbidden"), &json!("GET"), forbidden.header("x-request-id")));
    assert_eq!((&line["user"], &line["session"]), (&me["user"]["id"], &me["session"]["id"]));
    assert_eq!(line_about(&log, "-", 403)["code"], "cross_site_request");
    assert_eq!(line_about(&log, "/me/password", 403)["code"], "invalid_credentials");
    assert_eq!(line_about(&log, "/check", 401)["code"], "session_logged_out");
    // What happened is found by the same name.
    let about = |event: &str| log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line["event"] == event);
    let signed_out = about("signed_out").expect("an event");
    assert_eq!((signed_out["span"]["request_id"].as_str(), &signed_out["user"]), (left.header("x-request-id"), &me["user"]["id"]));
    let fault = line_about(&log, "/login", 500);
    assert_eq!((&fault["level"], fault["request_id"].as_str()), (&json!("ERROR"), broken.header("x-request-id")));
    assert!(fault["cause"].as_str().is_some_and(|cause| cause.contains("events")), "{fault}");
    assert!(!String::from_utf8_lossy(&broken.body).contains("events"));
}

/// Whoever writes lines of their own into a log could lay a false trail, or end an operator's terminal.
#[test]
fn nothing_that_a_client_chose_makes_a_line_of_its_own_in_the_log() {
    for format in ["text", "json"] {
        let place = Place::with(&[("LOG", "debug"), ("LOG_FORMAT", format)]);
        let server = place.start();
        let canary = "\" level=ERROR event=\"account_disabled canary";
        let mut eve = server.browser().with("User-Agent", canary).with("X-Forwarded-For", "203.0.113.7, canary").with("X-Request-Id", canary);
        eve.post("/signup", json!({"email": "ana@example.com", "password": PASSWORD, "name": "canary\u{2028}{}[31m"})).is(201);
        eve.post("/signup", json!({"email": "canary\r\nWARN canary@example.com", "password": PASSWORD})).is(422);
        eve.post("/login", json!({"email": "canary@example.com", "password": "canary canary"})).is(401);
        eve.get("/canary%0aWARN%20canary?canary=%0acanary").is(404);
        for line in ["GET /\x1b[31mcanary HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nCanary: \x1b[31m\r\n\r\n"] {
            let mut wire = server.wire();
            wire.send(line).expect("it is sent");
            let _ = wire.reply();
        }
        let log = server.stop();
        assert!(log.contains("signed_up") && !log.contains("canary") && !log.contains('\u{1b}'), "{log}");
    }
}

#[test]
fn the_level_of_the_log_is_kept() {
    let place = Place::with(&[("LOG", "trace")]);
    let server = place.start();
    server.sign_up("ana@example.com").get("/check").is(204);
    let loud = server.stop().lines().count();
    let place = Place::with(&[("LOG", "info")]);
    let server = place.start();
    server.sign_up("ana@example.com").get("/check").is(204);
    assert!(server.stop().lines().count() < loud);
}

/// What a stranger can make grow is bounded: the disk of the log too.
#[test]
fn a_flood_of_refusals_does_not_fill_the_log_and_is_counted() {
    let place = Place::new();
    let server = place.start();
    let mut stranger = server.browser();
    let told = |log: &str| log.lines().filter(|line| line.contains("refused") && line.contains("status=404")).count();
    let begun = Instant::now();
    let mut sent = 0;
    // As fast as they are answered, until the log tells that it has left some out.
    let counted = soon(PATIENCE, || {
        for _ in 0..100 {
            stranger.get("/nothing").is_refused(404, "not_found");
            sent += 1;
        }
        sent > 2000 && server.log().contains("untold=")
    });
    let log = server.log();
    assert!(counted, "{sent} were sent:\n{}", log.lines().last().unwrap_or_default());
    let most = 1000 + 20 * (begun.elapsed().as_secs() as usize + 1);
    assert!(told(&log) <= most, "{} lines about {sent} refusals", told(&log));
    let untold: usize = log.lines().filter_map(|line| line.split("untold=").nth(1)?.split(' ').next()?.parse::<usize>().ok()).sum();
    assert!(untold > 0 && untold + told(&log) <= sent, "{untold} + {} of {sent}", told(&log));
}

// kill -9.

/// What has to be true of a token after the restart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Lives,
    Ended(&'static str),
    /// The request that ends it was not answered: it lives, or has ended like this.
    Open(&'static str),
}

/// What was acknowledged to one account before the server was killed.
struct Account {
    email: String,
    /// Its sign-up was acknowledged.
    sure: bool,
    password: String,
    /// A change to this one was asked for, and not answered.
    perhaps: Option<String>,
    /// Those that count no more.
    former: Vec<String>,
    tokens: Vec<(String, Fate)>,
}

impl Account {
    fn set(&mut self, token: &str, fate: Fate) {
        match self.tokens.iter_mut().find(|(known, _)| known == token) {
            Some((_, known)) => *known = fate,
            None => self.tokens.push((token.into(), fate)),
        }
    }
}

/// Lives through one account's life; `None` when the server is gone.
fn live(account: &mut Account, address: std::net::SocketAddr, acknowledged: &mpsc::Sender<()>) -> Option<()> {
    let ask = |browser: &mut Browser, method: &str, path: &str, body: Option<Value>, status: u16| {
        let reply = browser.try_send(method, path, body.as_ref()).ok()?;
        assert_eq!(reply.status, status, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
        let _ = acknowledged.send(());
        Some(())
    };
    let (mut first, mut other) = (Browser::at(address), Browser::at(address));
    ask(&mut first, "POST", "/signup", Some(json!({"email": account.email, "password": account.password})), 201)?;
    account.sure = true;
    account.set(&first.token(), Fate::Lives);
    for change in 0..3 {
        ask(&mut first, "GET", "/check", None, 204)?;
        // In and out on another browser.
        ask(&mut other, "POST", "/login", Some(json!({"email": account.email, "password": account.password})), 200)?;
        let token = other.token();
        account.set(&token, Fate::Open("session_logged_out"));
        ask(&mut other, "POST", "/logout", None, 204)?;
        account.set(&token, Fate::Ended("session_logged_out"));
        // In again, and out by the change of the password.
        ask(&mut other, "POST", "/login", Some(json!({"email": account.email, "password": account.password})), 200)?;
        let (here, there) = (first.token(), other.token());
        let new = format!("{PASSWORD} {change}");
        account.set(&here, Fate::Open("session_rotated"));
        account.set(&there, Fate::Open("session_revoked"));
        account.perhaps = Some(new.clone());
        ask(&mut first, "PUT", "/me/password", Some(json!({"current_password": account.password, "new_password": new})), 200)?;
        account.perhaps = None;
        account.former.push(std::mem::replace(&mut account.password, new));
        account.set(&here, Fate::Ended("session_rotated"));
        account.set(&there, Fate::Ended("session_revoked"));
        account.set(&first.token(), Fate::Lives);
        // In again, and signed out from elsewhere.
        ask(&mut other, "POST", "/login", Some(json!({"email": account.email, "password": account.password})), 200)?;
        let there = other.token();
        account.set(&there, Fate::Open("session_revoked"));
        ask(&mut first, "DELETE", "/me/sessions", None, 200)?;
        account.set(&there, Fate::Ended("session_revoked"));
    }
    Some(())
}

/// Expects of the restarted server what was acknowledged before.
fn holds(account: &Account, server: &Server) {
    let email = &account.email;
    let mut alive = Vec::new();
    for (token, fate) in &account.tokens {
        let reply = server.browser().holding(token).get("/check");
        match (fate, reply.status) {
            (Fate::Lives | Fate::Open(_), 204) => alive.push(true),
            (Fate::Ended(code) | Fate::Open(code), 401) => {
                assert_eq!(reply.code(), *code, "{email}");
                alive.push(false);
            }
            (fate, status) => panic!("{email}: {fate:?}, and the answer is {status} {}", reply.code()),
        }
    }
    for former in &account.former {
        server.browser().log_in(email, former).is_refused(401, "invalid_credentials");
    }
    let entered = server.browser().log_in(email, &account.password).status;
    match &account.perhaps {
        Some(new) => {
            let changed = server.browser().log_in(email, new).status;
            assert!(matches!((entered, changed), (200, 401) | (401, 200)), "{email}: {entered} with the old password, {changed} with the new");
            // The change is whole, or it was not begun.
            for ((_, fate), alive) in account.tokens.iter().zip(alive) {
                assert!(!matches!(fate, Fate::Open(_)) || alive == (entered == 200), "{email}: half a change of the password");
            }
        }
        None if account.sure => assert_eq!(entered, 200, "{email}: an acknowledged password"),
        None if entered == 401 => drop(server.sign_up(email)),
        None => assert_eq!(entered, 200, "{email}"),
    }
}

#[test]
fn whatever_was_acknowledged_survives_kill_9() {
    let rounds: u64 = std::env::var("HOLDFAST_KILL_ROUNDS").ok().map_or(3, |n| n.parse().expect("a number"));
    let place = Place::with(&NO_LIMITS);
    let chance = RandomState::new();
    let mut server = place.start();
    for round in 0..rounds {
        let (told, acknowledged) = mpsc::channel();
        let address = server.address();
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let told = told.clone();
                std::thread::spawn(move || {
                    let mut accounts = Vec::new();
                    for n in 0.. {
                        let email = format!("r{round}-c{client}-{n}@example.com");
                        let mut account = Account { email, sure: false, password: PASSWORD.into(), perhaps: None, former: Vec::new(), tokens: Vec::new() };
                        let lived = live(&mut account, address, &told);
                        accounts.push(account);
                        if lived.is_none() {
                            break;
                        }
                    }
                    accounts
                })
            })
            .collect();
        drop(told);
        for _ in 0..20 + chance.hash_one(round) % 200 {
            acknowledged.recv_timeout(PATIENCE).expect("the server serves");
        }
        server.kill();
        let accounts: Vec<Account> = clients.into_iter().flat_map(|client| client.join().expect("no client met anything odd")).collect();

        server = place.start();
        assert_eq!(integrity_of(&place.database()), "ok");
        for account in &accounts {
            holds(account, &server);
        }
    }
}
