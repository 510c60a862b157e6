//! TLS to the database: to the server that the right certificates vouch for by name, and to no other.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::cluster::{Cluster, UNPRIVILEGED, none_found};
use crate::line::Line;
use crate::process::{PATIENCE, Place, soon};

/// Makes an authority, another one that has signed nothing, and a certificate for `localhost`, in a folder that the server
/// can read.
fn certify() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("hf-tls-").tempdir_in("/tmp").expect("a temporary folder");
    let script = "set -e
        key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        for name in ca other; do
            openssl req -x509 $key -keyout $name.key -out $name.pem -days 2 -subj /CN=$name -addext basicConstraints=critical,CA:TRUE
        done
        openssl req $key -keyout server.key -out server.csr -subj /CN=server
        printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\nextendedKeyUsage=serverAuth\\n' >server.ext
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder.path()).output().expect("a shell");
    assert!(made.status.success(), "the tests need openssl: {}", String::from_utf8_lossy(&made.stderr));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let key = folder.path().join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    if rustix::process::geteuid().is_root() {
        chown(&key, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("an owner");
    }
    folder
}

fn refused(url: &str) -> String {
    Place::with(&[("DATABASE_URL", url)]).run(&[]).exits_with_one_line(1).stderr
}

#[test]
fn the_server_that_the_right_authority_vouches_for_by_name_is_spoken_to_and_no_other() {
    let folder = certify();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let (certificate, key) = (format!("ssl_cert_file={}", path("server.pem")), format!("ssl_key_file={}", path("server.key")));
    let settings = ["listen_addresses=127.0.0.1", &format!("port={port}"), "ssl=on", &certificate, &key];
    let cluster = Cluster::start_with(&settings).unwrap_or_else(|| none_found());
    let url = |host: &str, query: &str| format!("postgres://holdfast@{host}:{port}/postgres?{query}");
    let (ca, other) = (format!("sslrootcert={}", path("ca.pem")), format!("sslrootcert={}", path("other.pem")));

    let place = Place::with(&[("DATABASE_URL", &url("localhost", &format!("sslmode=verify-full&{ca}")))]);
    let server = place.start();
    server.sign_up("ana@example.com");
    let hand = crate::database::Hand::server(cluster.url());
    let clear = "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name = 'holdfast' AND NOT ssl";
    assert_eq!(hand.number(clear), 0);
    assert!(hand.number(&clear.replace("NOT ssl", "ssl")) > 0, "nobody is encrypted");
    server.stop();

    // The name is checked, not only the signature; and an authority that has not signed it vouches for nobody.
    let named = refused(&url("127.0.0.1", &format!("sslmode=verify-full&{ca}")));
    assert!(named.contains("not valid for name"), "{named}");
    for query in [format!("sslmode=verify-full&{other}"), other.clone(), "sslmode=verify-full".into()] {
        let unknown = refused(&url("localhost", &query));
        assert!(unknown.contains("UnknownIssuer") || unknown.contains("no certificates"), "{unknown}");
    }
    let missing = refused(&url("localhost", "sslmode=verify-full&sslrootcert=/nowhere/ca.pem"));
    assert!(missing.contains("/nowhere/ca.pem"), "{missing}");

    // `require` encrypts to whoever answers, and says at the start that it does no more.
    let place = Place::with(&[("DATABASE_URL", &url("127.0.0.1", "sslmode=require"))]);
    let server = place.start();
    server.wait_for("checks nobody's certificate");
    server.sign_in("ana@example.com");
    assert_eq!(hand.number(clear), 0);
    assert!(soon(PATIENCE, || server.browser().get("/health/ready").status == 200));
}

#[test]
fn a_server_that_does_not_speak_tls_is_refused_when_tls_was_asked_for() {
    let cluster = Cluster::start().unwrap_or_else(|| none_found());
    let line = Line::to(cluster.folder());
    for mode in ["require", "verify-full"] {
        let told = refused(&format!("postgres://holdfast@127.0.0.1:{}/postgres?sslmode={mode}", line.port()));
        assert!(told.contains("TLS"), "{told}");
    }
}
