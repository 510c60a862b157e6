//! Mail against a real SMTP server, and against ones that refuse, fall silent, or die with a letter in hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use holdfast::event::outbox::deliver_due;

use crate::process::{PATIENCE, Place, soon};
use crate::stage::{Stage, email_of, password_of};

/// An SMTP server. It ends with its standard input, which ends with this.
struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    port: u64,
}

impl Server {
    fn start(mode: &str) -> Self {
        Server::start_with(&[mode])
    }

    fn start_with(args: &[&str]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/smtp_server.py");
        let mut child = Command::new(python()).arg(script).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the SMTP server starts");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        let mut server = Server { child, stdin, lines: BufReader::new(stdout), port: 0 };
        server.port = server.line().as_u64().expect("a port");
        server
    }

    fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.port)
    }

    /// The next thing that it says.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// Lets the patient one acknowledge a message.
    fn nod(&mut self) {
        self.stdin.as_mut().expect("it runs").write_all(b"\n").expect("it reads");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python that has aiosmtpd: Debian's, or that of the environment.
fn python() -> &'static str {
    let has_it = |python: &&str| Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    ["/usr/bin/python3", "python3"].into_iter().find(has_it).expect("the tests need aiosmtpd: apt-get install python3-aiosmtpd")
}

fn header<'a>(message: &'a Value, name: &str) -> Vec<&'a str> {
    let all = message["headers"].as_array().expect("headers").iter();
    all.filter(|pair| pair[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name))).filter_map(|pair| pair[1].as_str()).collect()
}

/// UNI-03: one recipient, and no header that is not ours.
#[tokio::test]
async fn a_letter_arrives_whole_with_one_recipient_and_our_headers_only() {
    let mut server = Server::start("good");
    let stage = Stage::with(&[("MAIL", &server.url()), ("MAIL_FROM", "Holdfast <post@id.example.com>")]).await;
    stage.sign_up("ana").await;
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
    let message = server.line();
    assert_eq!((&message["to"], &message["from"]), (&json!([email_of("ana")]), &json!("post@id.example.com")));
    let mut names: Vec<String> = message["headers"].as_array().expect("headers").iter().map(|pair| pair[0].as_str().expect("a name").to_lowercase()).collect();
    names.sort();
    assert_eq!(names, ["auto-submitted", "content-type", "date", "from", "message-id", "mime-version", "subject", "to"]);
    assert_eq!(header(&message, "from"), ["Holdfast <post@id.example.com>"]);
    assert!(header(&message, "message-id")[0].ends_with("@localhost>"));
    let (text, html) = (message["parts"]["text/plain"].as_str().expect("text"), message["parts"]["text/html"].as_str().expect("HTML"));
    assert!(text.contains("/security/verify/") && html.contains("<a href"), "{message}");
}

#[tokio::test]
async fn an_address_in_unicode_gets_its_letter() {
    let mut server = Server::start("good");
    let stage = Stage::with(&[("MAIL", &server.url())]).await;
    stage.anon().post("/signup", json!({"email": "\u{7528}\u{6237}@\u{4f8b}\u{3048}.jp", "password": "a good password"})).await.is(201);
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
    assert_eq!(server.line()["to"], json!(["\u{7528}\u{6237}@xn--r8jz45g.jp"]));
}

/// The bound is that of the whole address; a local part of more than 64 bytes is rare, and its owner may forget a password too.
#[tokio::test]
async fn the_longest_address_gets_its_letter() {
    let mut server = Server::start("good");
    let stage = Stage::with(&[("MAIL", &server.url())]).await;
    let longest = format!("{}@example.com", "a".repeat(242));
    stage.anon().post("/signup", json!({"email": longest, "password": "a good password"})).await.is(201);
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
    assert_eq!(server.line()["to"], json!([longest]));
}

#[tokio::test]
async fn a_server_that_wants_a_login_gets_it() {
    let mut server = Server::start("login");
    let stage = Stage::with(&[("MAIL", &format!("smtp://post:p%40ss%20word@127.0.0.1:{}", server.port))]).await;
    stage.sign_up("ana").await;
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
    assert_eq!(server.line()["to"], json!([email_of("ana")]));
}

#[tokio::test]
async fn a_wrong_login_or_a_refusal_or_nobody_there_puts_the_letter_off() {
    let (login, refusing) = (Server::start("login"), Server::start("refuse"));
    for url in [format!("smtp://post:wrong@127.0.0.1:{}", login.port), refusing.url(), "smtp://127.0.0.1:1".into()] {
        let stage = Stage::with(&[("MAIL", &url)]).await;
        let ana = stage.sign_up("ana").await;
        assert_eq!(deliver_due(&stage.app).await.expect("works"), 0, "{url}");
        assert_eq!(stage.count("SELECT count(*) FROM outbox WHERE done_at IS NULL AND attempts = 1 AND leased_until = 0"), 1, "{url}");
        ana.get("/me").await.is(200);
    }
}

/// Everything was sent and nothing acknowledged: it goes again, and a mail program sees by the Message-ID that it is the same.
#[tokio::test]
async fn a_server_that_dies_mid_transfer_gets_the_letter_again_with_the_same_message_id() {
    let mut server = Server::start("die-once");
    let stage = Stage::with(&[("MAIL", &server.url())]).await;
    stage.sign_up("ana").await;
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 0);
    let first = server.line();
    stage.clock.advance(Duration::from_secs(10));
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 1);
    let second = server.line();
    assert_eq!(first["died"], true);
    assert_eq!(header(&first, "message-id"), header(&second, "message-id"));
    assert_ne!(first["parts"], second["parts"], "each delivery has a token of its own");
}

/// ENUM-02: a mail server that says nothing holds up the delivery, and no request.
#[tokio::test]
async fn a_silent_server_holds_up_no_request() {
    let server = Server::start("silent");
    let stage = Stage::with(&[("MAIL", &server.url())]).await;
    let ana = stage.sign_up("ana").await;
    let requests = async {
        for email in [email_of("ana"), email_of("nobody")] {
            stage.anon().post("/password/forgot", json!({"email": email})).await.is(202);
            stage.anon().post("/email/verification", json!({"email": email})).await.is(202);
        }
        ana.change_password(&password_of("ana"), "quite another password").await.is(200);
        ana.get("/me").await.is(200);
    };
    tokio::select! {
        biased;
        sent = deliver_due(&stage.app) => panic!("the silent server answered: {sent:?}"),
        () = requests => {}
    }
}

/// A host that is not this machine by its name gets nothing before TLS, not even the login.
#[tokio::test]
async fn without_tls_a_server_elsewhere_gets_nothing() {
    let mut server = Server::start("watch");
    // By this address the system comes to this machine, but it is not known as it.
    let stage = Stage::with(&[("MAIL", &format!("smtp://post:p%40ss%20word@0.0.0.0:{}", server.port))]).await;
    stage.sign_up("ana").await;
    assert_eq!(deliver_due(&stage.app).await.expect("works"), 0);
    assert!(server.line()["ehlo"].is_string());
    drop(server.stdin.take());
    let mut rest = String::new();
    server.lines.read_to_string(&mut rest).expect("the end");
    assert_eq!(rest, "", "neither a login nor a letter");
}

// ---- the program itself

fn letters_in(place: &Place) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(place.path("post")) else { return Vec::new() };
    let files = folder.map(|entry| entry.expect("an entry").path()).filter(|path| path.extension().is_some_and(|ending| ending == "eml"));
    files.map(|path| std::fs::read_to_string(path).expect("a letter")).collect()
}

/// Makes a certificate of this machine in `place`, signed by an authority that is made for it.
fn certify(place: &Place) {
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 -subj '/CN=ca' -addext basicConstraints=critical,CA:TRUE
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout mail.key -out mail.csr -subj /CN=mail
        printf 'subjectAltName=DNS:localhost,IP:0.0.0.0\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' >mail.ext
        openssl x509 -req -in mail.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile mail.ext -out mail.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(place.path("")).output().expect("a shell");
    assert!(made.status.success(), "the tests need openssl: {}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn tls_reaches_a_server_whose_certificate_is_trusted_and_no_other() {
    let mut place = Place::new();
    certify(&place);
    let (certificate, key) = (place.path("mail.pem").display().to_string(), place.path("mail.key").display().to_string());
    for (mode, scheme, host) in [("starttls", "smtp", "0.0.0.0"), ("tls", "smtps", "localhost")] {
        let mut mail = Server::start_with(&[mode, &certificate, &key]);
        place.set("MAIL", &format!("{scheme}://{host}:{}", mail.port));
        place.set("DATABASE_URL", &format!("sqlite:{mode}/holdfast.db"));
        // An authority that has signed nothing.
        place.set("SSL_CERT_FILE", &certificate);
        let server = place.start();
        server.sign_up("ana@example.com");
        server.wait_for("a letter could not be sent");
        server.stop();
        place.set("SSL_CERT_FILE", &place.path("ca.pem").display().to_string());
        let server = place.start();
        server.sign_up("ben@example.com");
        // On a slow machine the first letter may be due again by now.
        let reached = std::iter::from_fn(|| Some(mail.line())).take(2).any(|message| message["to"] == json!(["ben@example.com"]));
        assert!(reached, "{mode}");
        server.stop();
    }
}

#[test]
fn no_letter_is_lost_by_kill_9() {
    let silent = Server::start("silent");
    let mut place = Place::with(&[("MAIL", &silent.url())]);
    let server = place.start();
    for n in 0..5 {
        server.sign_up(&format!("user{n}@example.com"));
    }
    // Some are in its hands by now, on their way to a server that says nothing.
    let in_hand = || place.sql().query_row("SELECT count(*) FROM outbox WHERE attempts > 0", [], |row| row.get::<_, i64>(0)).expect("a number");
    assert!(soon(PATIENCE, || in_hand() > 0));
    server.kill();
    // Two minutes later.
    place.sql().execute_batch("UPDATE outbox SET leased_until = 0").expect("the statement runs");
    place.set("MAIL", "file:post");
    let server = place.start();
    assert!(soon(PATIENCE, || letters_in(&place).len() == 5));
    server.stop();
    let mut recipients: Vec<String> =
        letters_in(&place).iter().filter_map(|text| text.lines().find_map(|line| line.strip_prefix("To: ").map(String::from))).collect();
    recipients.sort();
    assert_eq!(recipients, (0..5).map(|n| format!("user{n}@example.com")).collect::<Vec<_>>());
}

/// Cut off, it would be told of as a failure, and go out once more.
#[test]
fn a_stop_waits_for_the_letter_that_is_on_its_way() {
    let mut mail = Server::start("patient");
    let place = Place::with(&[("MAIL", &mail.url())]);
    let server = place.start();
    server.sign_up("ana@example.com");
    mail.line();
    server.signal(Signal::TERM);
    server.wait_for("stopping");
    mail.nod();
    let (_, log) = server.ends_within(PATIENCE);
    assert!(!log.contains("could not be sent"), "{log}");
    assert_eq!(place.sql().query_row("SELECT count(*) FROM outbox WHERE done_at IS NULL", [], |row| row.get::<_, i64>(0)).expect("a number"), 0);
}

#[test]
fn a_stop_waits_for_no_letter_longer_than_its_grace() {
    let mut mail = Server::start("patient");
    let place = Place::with(&[("MAIL", &mail.url()), ("SHUTDOWN_GRACE", "1s")]);
    let server = place.start();
    server.sign_up("ana@example.com");
    mail.line();
    server.signal(Signal::TERM);
    let (_, log) = server.ends_within(PATIENCE);
    assert!(log.contains("some letters were still on their way"), "{log}");
    let lease = "SELECT count(*) FROM outbox WHERE done_at IS NULL AND leased_until > 0";
    assert_eq!(place.sql().query_row(lease, [], |row| row.get::<_, i64>(0)).expect("a number"), 1, "it goes out again");
}

#[test]
fn letters_in_a_folder_are_for_their_owner_only_and_a_link_in_them_works() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::with(&[("MAIL", "file:post")]);
    let server = place.start_unmasked();
    let mut ana = server.sign_up("ana@example.com");
    assert!(soon(PATIENCE, || letters_in(&place).len() == 1));
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(place.path("post")), 0o700);
    let file = std::fs::read_dir(place.path("post")).expect("a folder").next().expect("a letter").expect("a letter").path();
    assert_eq!(mode(file), 0o600);
    let letter = letters_in(&place).pop().expect("a letter");
    let token = letter.lines().find_map(|line| line.trim().split("/security/verify/").nth(1)).expect("a link").to_string();
    ana.post("/email/verify", json!({"token": token})).is(200);
    server.stop();
}

/// LOG-01.
#[test]
fn letters_in_the_log_hold_no_secret_and_the_operator_is_warned() {
    let place = Place::with(&[("MAIL", "log"), ("LOG_FORMAT", "json")]);
    let server = place.start();
    server.wait_for("MAIL=log");
    server.sign_up("ana@example.com");
    let line = server.wait_for("Confirm your e-mail address");
    assert!(line.contains("ana@example.com") && line.contains("/security/verify/(secret)"), "{line}");
    server.stop();
    // Its owner was never asked, so it is never removed for not having answered.
    assert_eq!(place.sql().query_row("SELECT count(*) FROM users WHERE verification_sent_at IS NULL", [], |row| row.get::<_, i64>(0)).expect("a number"), 1);
}

#[test]
fn the_password_of_the_mail_server_comes_from_a_file_and_is_shown_nowhere() {
    let mut place = Place::new();
    std::fs::write(place.path("mail-secret"), "smtp://post:hunter2@mail.example.com:587\n").expect("a file");
    place.set("MAIL_FILE", "mail-secret");
    let done = place.run(&["check-config"]).ok();
    assert!(!done.stdout.contains("hunter2"), "{}", done.stdout);
    place.set("MAIL", "smtp://post:hunter2@mail.example.com");
    let done = place.run(&["check-config"]).exits(2);
    assert!(done.stderr.contains("MAIL_FILE") && !done.stderr.contains("hunter2"), "{}", done.stderr);
    let place = Place::with(&[("MAIL", "smtp://post:hunter2@mail.example.com")]);
    let done = place.run(&["check-config", "--json"]).ok();
    assert!(!done.stdout.contains("hunter2"), "{}", done.stdout);
}

#[test]
fn a_template_of_the_operators_own_takes_the_place_of_ours_and_a_broken_one_stops_the_start() {
    let mut place = Place::with(&[("MAIL", "file:post"), ("TEMPLATE_DIR", "own")]);
    std::fs::create_dir(place.path("own")).expect("a folder");
    std::fs::write(place.path("own/verify_email.txt"), "Subject: Willkommen\n\nHallo {{ account }}.\n\n[Hier] {{ link }}\n").expect("a file");
    let server = place.start();
    server.sign_up("ana@example.com");
    assert!(soon(PATIENCE, || letters_in(&place).len() == 1));
    assert!(letters_in(&place)[0].contains("Subject: Willkommen") && letters_in(&place)[0].contains("Hallo ana@example.com."));
    server.stop();
    std::fs::write(place.path("own/verify_email.txt"), "Subject: Willkommen\n\n{{ nonsense }}\n").expect("a file");
    let done = place.run(&["check-config"]).exits_with_one_line(2);
    assert!(done.stderr.contains("TEMPLATE_DIR: verify_email.txt"), "{}", done.stderr);
    place.set("TEMPLATE_DIR", "nowhere");
    place.run(&["check-config"]).exits_with_one_line(2);
}
