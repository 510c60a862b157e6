//! `postgres://user:password@host:port/database?sslmode=…`: where the server is and how it is spoken to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use zeroize::Zeroizing;

use super::{CONNECT, GREETING};
use crate::secret::{EXAMPLE, is_example};

/// A Postgres server, as `DATABASE_URL` names it.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    config: Config,
    pub(super) trust: Trust,
    /// How many connections this instance may hold.
    pub(super) connections: usize,
}

/// What is asked of the way to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// In clear: a socket of this machine, or a network that is trusted.
    Clear,
    /// Encrypted, to whoever answers.
    Encrypted,
    /// Encrypted, to the server that the certificates of this file, or of the system, vouch for by name.
    Verified(Option<PathBuf>),
}

const ALLOWED: &str =
    "postgres://user:password@host:port/database, with ?sslmode=disable, require or verify-full (the default unless the host is this machine)";

impl Server {
    /// Reads the URL. What is wrong is told without repeating it: it may hold a password.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("is no URL of a Postgres database; allowed: {ALLOWED}");
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", value)) => roots = Some(PathBuf::from(&*percent_decode_str(value).decode_utf8().map_err(|_| wrong())?)),
                _ => rest.push(pair),
            }
        }
        let bare = Zeroizing::new(format!("{place}?{}", rest.join("&")));
        let mut config: Config = bare.parse().map_err(|_| wrong())?;
        if config.get_password().is_some_and(is_example) {
            return Err(EXAMPLE.into());
        }
        let hosts = config.get_hosts();
        if hosts.is_empty() && config.get_hostaddrs().is_empty() {
            return Err(format!("names no host; allowed: {ALLOWED}"));
        }
        // Never a standby, also where one name leads to several servers: it may not know yet what has ended.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let trust = match (mode, roots) {
            (None, None) if hosts_are_here(&config) => Trust::Clear,
            (Some("disable"), None) => Trust::Clear,
            (Some("require"), None) => Trust::Encrypted,
            (Some("verify-full") | None, roots) => Trust::Verified(roots),
            _ => return Err("has an sslmode that is not one of disable, require, verify-full (which alone takes sslrootcert)".into()),
        };
        Ok(Server { config, trust, connections: 0 })
    }

    /// How many connections this instance may hold.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// With so many connections at most.
    pub fn with_connections(mut self, connections: u32) -> Self {
        self.connections = connections as usize;
        self
    }

    /// What should be known of it before it is used.
    pub fn warning(&self) -> Option<String> {
        let unchecked = self.trust == Trust::Encrypted;
        unchecked.then(|| "DATABASE_URL: sslmode=require encrypts, but checks nobody's certificate; use verify-full".into())
    }

    /// How long a connection may take: each host in turn, and then the greeting.
    pub(super) fn patience(&self) -> Duration {
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len()).max(1);
        CONNECT * u32::try_from(hosts).unwrap_or(1) + GREETING
    }

    /// How a connection is made: every wait has its bound. Those at the server are told when it stands, see `Bounded`.
    pub(super) fn client(&self) -> Config {
        let mut config = self.config.clone();
        config.ssl_mode(if self.trust == Trust::Clear { SslMode::Disable } else { SslMode::Require });
        config.connect_timeout(CONNECT);
        config.keepalives_idle(Duration::from_secs(15));
        config.keepalives_interval(Duration::from_secs(2));
        config.keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(10));
        if config.get_application_name().is_none() {
            config.application_name("holdfast");
        }
        config
    }
}

fn hosts_are_here(config: &Config) -> bool {
    let name_is_here = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
    };
    config.get_hosts().iter().all(name_is_here) && config.get_hostaddrs().iter().all(|ip| ip.is_loopback())
}

/// Host and database, for people; never who and with what password.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.config.get_ports();
        let hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .enumerate()
            .map(|(i, host)| {
                let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    Host::Unix(folder) => folder.display().to_string(),
                }
            })
            .collect();
        write!(f, "postgres://{}/{}", hosts.join(","), self.config.get_dbname().unwrap_or(""))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust_of(text: &str) -> Trust {
        Server::parse(text).expect("right").trust
    }

    #[test]
    fn certificates_are_checked_unless_the_server_is_on_this_machine_or_it_is_said_otherwise() {
        assert_eq!(trust_of("postgres://u:p@db.example.com/x"), Trust::Verified(None));
        assert_eq!(trust_of("postgres://u:p@db.example.com/x?sslrootcert=/etc/ca.pem"), Trust::Verified(Some("/etc/ca.pem".into())));
        assert_eq!(trust_of("postgres://u:p@db.example.com/x?sslmode=require"), Trust::Encrypted);
        assert_eq!(trust_of("postgres://u:p@db.example.com/x?sslmode=disable"), Trust::Clear);
        assert_eq!(trust_of("postgres://u:p@127.0.0.1/x"), Trust::Clear);
        assert_eq!(trust_of("postgres://u:p@localhost,db.example.com/x"), Trust::Verified(None));
        assert_eq!(trust_of("postgres:///x?host=/run/postgresql&user=u"), Trust::Clear);
        assert_eq!(trust_of("postgresql://u@%2Frun%2Fpostgresql/x"), Trust::Clear);
        assert_eq!(trust_of("postgres://u:p@localhost/x?sslmode=verify-full"), Trust::Verified(None));
    }

    #[test]
    fn a_pooler_in_between_is_asked_for_nothing_but_what_the_url_says() {
        let options = |text: &str| Server::parse(text).expect("right").client().get_options().map(String::from);
        assert_eq!(options("postgres://u:p@db/x"), None);
        assert_eq!(options("postgres://u:p@db/x?options=-csearch_path%3Down"), Some("-csearch_path=own".into()));
    }

    #[test]
    fn what_is_wrong_is_refused_and_no_password_is_repeated() {
        for wrong in [
            "postgres://u:hunter2@db/x?sslmode=prefer",
            "postgres://u:hunter2@db/x?sslmode=disable&sslrootcert=/x",
            "postgres://u:hunter2@db/x?colour=blue",
            "postgres://u:hunter2@db:hunter2/x",
            "postgres:///hunter2",
        ] {
            let fault = Server::parse(wrong).expect_err(wrong);
            assert!(!fault.contains("hunter2"), "{fault}");
        }
        let shown = Server::parse("postgres://ana:hunter2@a.example,b.example:6432/x").expect("right");
        assert_eq!(format!("{shown} {shown:?}"), "postgres://a.example:5432,b.example:6432/x postgres://a.example:5432,b.example:6432/x");
    }
}
