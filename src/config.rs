//! Settings: typed, checked once, all with a default.
//!
//! They come from the environment, and from `.env` in the working directory if there is one; the environment wins. A
//! wrong setting stops the start, and every fault is told at once, one line each: its name, what is wrong, what is allowed.
//! Nothing after this module reads the environment or parses a setting.

mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use lettre::message::Mailbox;
use zeroize::Zeroizing;

use crate::db;
use crate::mail::Route;
use crate::templates::Templates;
use values::*;

/// One setting: its name, its default as an operator would write it, and what it is for.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name of the variable.
    pub name: &'static str,
    /// What counts when it is not set.
    pub default: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
}

macro_rules! settings { ($($name:literal = $default:literal, $about:literal;)*) => {
    /// Every setting, in the order of `.env.example`.
    pub const SETTINGS: &[Setting] = &[$(Setting { name: $name, default: $default, about: $about }),*];
} }
settings! {
    "LISTEN_ADDR" = "localhost:8300", "Host and port to listen on; a name listens on every address it resolves to.";
    "PUBLIC_URL" = "http://localhost:8300", "The origin that browsers see. https turns on Secure, __Host- cookies.";
    "BASE_PATH" = "", "Prefix of all routes, such as /auth, where the host is shared with an application.";
    "ALLOW_INSECURE_HTTP" = "false", "true accepts an http PUBLIC_URL that is not loopback: cookies then travel in clear.";
    "DATABASE_URL" = "sqlite:data/holdfast.db", "The database: a file, made for this user only, or postgres://user:password@host/database.";
    "DATABASE_POOL_SIZE" = "16", "Connections of this instance to Postgres.";
    "ALLOWED_ORIGINS" = "", "Origins of other front ends that may call, comma-separated: https://app.example.com.";
    "TRUSTED_PROXIES" = "auto", "Proxies whose X-Forwarded-For counts, as CIDRs; auto: loopback if PUBLIC_URL is, else none.";
    "CLEAR_SITE_DATA" = "", "What browsers forget at logout: cache, cookies, storage, executionContexts, comma-separated.";
    "IDLE_TIMEOUT" = "30m", "Longest silence of a session; none for no limit.";
    "ABSOLUTE_TIMEOUT" = "24h", "Longest life of a session, however active.";
    "ROLE_TIMEOUTS" = "", "Idle/absolute for roles, over both others: admin=5m/8h,auditor=none/8h.";
    "REMEMBER_TIMEOUTS" = "7d/30d", "Idle/absolute of sessions opened with \"remember\": true.";
    "KNOWN_IP_RETENTION" = "180d", "How long an IP or device stays known after its last sign-in.";
    "ENDED_SESSION_RETENTION" = "30d", "How long ended sessions are kept, so that their holders can be told why.";
    "EVENT_RETENTION" = "365d", "How long the audit log goes back.";
    "MAX_SESSIONS_PER_USER" = "100", "Live sessions of one user; the one idle longest makes room.";
    "GUESS_LIMIT_ACCOUNT" = "10/15m", "Wrong passwords for one account from unknown browsers, and from each known one, before further ones wait; none for no limit.";
    "GUESS_LIMIT_SOURCE" = "100/15m", "Wrong passwords from one IPv4 address or IPv6 /64 over all accounts before further ones wait; none for no limit.";
    "HASH_THREADS" = "cores", "Threads that hash passwords.";
    "PASSWORD_MIN_LENGTH" = "8", "Shortest new password, in characters.";
    "ARGON2_MEMORY_KIB" = "19456", "Memory of one password hash.";
    "ARGON2_ITERATIONS" = "2", "Passes of one password hash.";
    "ROLES" = "user,admin", "The roles. admin administers; new accounts get the first other one.";
    "SIGNUP_LIMIT_SOURCE" = "20/1h", "Sign-ups from one IPv4 address or IPv6 /64; none for no limit.";
    "LETTER_LIMIT_SOURCE" = "20/1h", "Requests for letters (a new password, a confirmation) from one IPv4 address or IPv6 /64; none for no limit.";
    "SIGNUP" = "open", "Who may sign up: open; verify_first, after a letter, so that nobody learns who has an account; closed.";
    "UNVERIFIED_RETENTION" = "7d", "How long an account that nobody uses may leave the letter that asks for its address unanswered.";
    "MAIL" = "auto", "smtp://user:password@host:587 (STARTTLS), smtps://… (TLS), file:FOLDER, log; auto: file:data/mail if PUBLIC_URL is loopback, else log.";
    "MAIL_FILE" = "", "A file that holds the value of MAIL, so that its password is in no environment.";
    "MAIL_FROM" = "auto", "The sender of letters: Name <address>; auto: no-reply at PUBLIC_URL's host.";
    "TEMPLATE_DIR" = "", "A folder with letters and pages that take the place of the built-in ones of the same name.";
    "LINK_VERIFY" = "", "The application's page for confirming an address, such as https://app.example.com/verify#{token}; else ours.";
    "LINK_RESET" = "", "The same for choosing a new password.";
    "LINK_EMAIL_CHANGE" = "", "The same for confirming a change of address.";
    "LINK_EMAIL_UNDO" = "", "The same for taking a change of address back.";
    "MAX_CONNECTIONS" = "10000", "Open connections; a newcomer gets the place of the one that has kept us waiting longest.";
    "SHUTDOWN_GRACE" = "10s", "How long a stop waits for what runs.";
    "LOG" = "info", "How much is logged: off, error, warn, info, debug, trace.";
    "LOG_FORMAT" = "text", "text for people, json for machines.";
}

/// An idle and an absolute timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `None`: no idle timeout.
    pub idle: Option<Duration>,
    /// There always is one.
    pub absolute: Duration,
}

/// So many within so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least one.
    pub count: u32,
    /// From the first of them on.
    pub per: Duration,
}

/// The origin that browsers see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    /// As a browser writes it in `Origin`.
    pub origin: String,
    /// Whether cookies are `Secure` and `__Host-`.
    pub https: bool,
    /// Whether it can only be this machine.
    pub loopback: bool,
}

impl PublicUrl {
    /// The host, without a port: what people call this site.
    pub fn host(&self) -> String {
        let url = url::Url::parse(&self.origin).ok();
        url.and_then(|url| url.host_str().map(String::from)).unwrap_or_else(|| "localhost".into())
    }
}

/// Who may sign up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignUpMode {
    /// Anybody, at once.
    Open,
    /// Anybody, after a letter; the answer is the same for every address.
    VerifyFirst,
    /// Nobody: accounts come from the command line.
    Closed,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// All settings, checked.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Each field is told in `SETTINGS`.
pub struct Config {
    pub listen_addr: String,
    pub public_url: PublicUrl,
    pub base_path: String,
    pub database_url: db::Url,
    pub allowed_origins: Vec<String>,
    pub trusted_proxies: Vec<IpNet>,
    pub clear_site_data: Option<String>,
    pub timeouts: Timeouts,
    pub role_timeouts: BTreeMap<String, Timeouts>,
    pub remember_timeouts: Timeouts,
    pub known_ip_retention: Duration,
    pub ended_session_retention: Duration,
    pub event_retention: Duration,
    pub max_sessions_per_user: usize,
    /// `None`: no limit.
    pub guess_limit_account: Option<Rate>,
    pub guess_limit_source: Option<Rate>,
    pub sign_up_limit_source: Option<Rate>,
    pub letter_limit_source: Option<Rate>,
    pub hash_threads: usize,
    pub password_min_length: usize,
    pub argon2_memory_kib: u32,
    pub argon2_iterations: u32,
    pub roles: Vec<String>,
    pub sign_up: SignUpMode,
    pub unverified_retention: Duration,
    pub mail: Route,
    pub mail_from: Mailbox,
    pub templates: Templates,
    /// What stands before the token in a link to the application.
    pub link_verify: Option<String>,
    pub link_reset: Option<String>,
    pub link_email_change: Option<String>,
    pub link_email_undo: Option<String>,
    pub max_connections: usize,
    pub shutdown_grace: Duration,
    pub log: tracing::level_filters::LevelFilter,
    pub log_format: LogFormat,
    /// What is allowed but should be known: logged at start.
    pub warnings: Vec<String>,
}

/// What is wrong with the settings, a line for each fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// The variables that count: `.env`, overridden by the environment. Their values may hold passwords.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, Zeroizing<String>>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Variables {
    /// Reads `.env`, if there is one, and the environment over it.
    ///
    /// # Errors
    /// A `.env` that cannot be read or parsed, or a variable of ours that is not UTF-8.
    pub fn of_process() -> Result<Self, ConfigError> {
        let mut all = BTreeMap::new();
        match dotenvy::from_path_iter(".env") {
            Ok(lines) => {
                let mut after = "the beginning".to_string();
                for line in lines {
                    // The error would quote the line, which may hold a secret.
                    let wrong = |_| ConfigError(vec![format!(".env: cannot be read after {after}; allowed: lines of NAME=value, and comments after #")]);
                    let (name, value) = line.map_err(wrong)?;
                    after.clone_from(&name);
                    all.insert(name, Zeroizing::new(value));
                }
            }
            Err(e) if e.not_found() => {}
            Err(_) => return Err(ConfigError(vec![".env: cannot be read".into()])),
        }
        for setting in SETTINGS {
            match std::env::var(setting.name) {
                Ok(value) => drop(all.insert(setting.name.into(), value.into())),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => return Err(ConfigError(vec![format!("{}: is not UTF-8", setting.name)])),
            }
        }
        Ok(Variables(all))
    }

    /// Makes a set for tests.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Variables(pairs.iter().map(|(name, value)| ((*name).into(), Zeroizing::new((*value).into()))).collect())
    }

    /// What is set for a setting, if anything is.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str())
    }
}

impl Config {
    /// What a new account is: the first role that is not `admin`.
    pub fn first_role(&self) -> &str {
        self.roles.iter().find(|role| *role != "admin").map_or("user", String::as_str)
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// Every fault of every setting, a line each.
    pub fn read(variables: &Variables) -> Result<Config, ConfigError> {
        let mut read = Reader { variables, faults: Vec::new() };
        let config = read.all();
        match config {
            Some(config) if read.faults.is_empty() => Ok(config),
            _ => Err(ConfigError(read.faults)),
        }
    }
}

struct Reader<'v> {
    variables: &'v Variables,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn all(&mut self) -> Option<Config> {
        let mut warnings = Vec::new();
        let listen_addr = self.parse("LISTEN_ADDR", listen_addr);
        let public_url = self.parse("PUBLIC_URL", public_url);
        let base_path = self.parse("BASE_PATH", base_path);
        let insecure = self.parse("ALLOW_INSECURE_HTTP", yes_or_no);
        let database_url = self.parse("DATABASE_URL", database_url);
        let pool_size = self.parse("DATABASE_POOL_SIZE", |text| number(text, db::FEWEST_CONNECTIONS, 1000));
        let allowed_origins = self.parse("ALLOWED_ORIGINS", |text| list(text, origin));
        let proxies = self.parse("TRUSTED_PROXIES", proxies);
        let clear_site_data = self.parse("CLEAR_SITE_DATA", clear_site_data);
        let idle = self.parse("IDLE_TIMEOUT", timeout_or_none);
        let absolute = self.parse("ABSOLUTE_TIMEOUT", timeout);
        let roles = self.parse("ROLES", roles);
        let role_timeouts = self.parse("ROLE_TIMEOUTS", |text| role_timeouts(text, roles.as_deref()));
        let remember_timeouts = self.parse("REMEMBER_TIMEOUTS", timeouts);
        let known_ip_retention = self.parse("KNOWN_IP_RETENTION", timeout);
        let ended_session_retention = self.parse("ENDED_SESSION_RETENTION", timeout);
        let event_retention = self.parse("EVENT_RETENTION", timeout);
        let max_sessions_per_user = self.parse("MAX_SESSIONS_PER_USER", |text| number(text, 1, 10_000));
        let guess_limit_account = self.parse("GUESS_LIMIT_ACCOUNT", rate);
        let guess_limit_source = self.parse("GUESS_LIMIT_SOURCE", rate);
        let sign_up_limit_source = self.parse("SIGNUP_LIMIT_SOURCE", rate);
        let letter_limit_source = self.parse("LETTER_LIMIT_SOURCE", rate);
        let hash_threads = self.parse("HASH_THREADS", hash_threads);
        let password_min_length = self.parse("PASSWORD_MIN_LENGTH", |text| number(text, 8, 128));
        let argon2_memory_kib = self.parse("ARGON2_MEMORY_KIB", |text| number(text, 8, 4 << 20));
        let argon2_iterations = self.parse("ARGON2_ITERATIONS", |text| number(text, 1, 1000));
        let sign_up = self.parse("SIGNUP", sign_up_mode);
        let unverified_retention = self.parse("UNVERIFIED_RETENTION", timeout);
        let mail = self.mail();
        let mail_from = self.parse("MAIL_FROM", mail_from);
        let templates = self.parse("TEMPLATE_DIR", |text| Templates::load((!text.is_empty()).then(|| Path::new(text))));
        let max_connections = self.parse("MAX_CONNECTIONS", |text| number(text, 1, 1_000_000));
        let shutdown_grace = self.parse("SHUTDOWN_GRACE", timeout);
        let log = self.parse("LOG", level);
        let log_format = self.parse("LOG_FORMAT", log_format);

        if let (Some(public_url), Some(insecure)) = (&public_url, insecure) {
            self.judge_transport(public_url, insecure, &mut warnings);
        }
        let (public_url, allowed_origins) = (public_url?, allowed_origins?);
        let mut application = |name| self.parse(name, |text| application_link(text, &public_url, &allowed_origins));
        let (link_verify, link_reset) = (application("LINK_VERIFY"), application("LINK_RESET"));
        let (link_email_change, link_email_undo) = (application("LINK_EMAIL_CHANGE"), application("LINK_EMAIL_UNDO"));
        let mail = mail?.unwrap_or_else(|| if public_url.loopback { Route::File("data/mail".into()) } else { Route::Log });
        if mail == Route::Log {
            warnings.push("MAIL=log: no letter leaves, so nobody hears of a new sign-in or can reset a password; set MAIL=smtp://…".into());
        }
        warn_of_other_sites(&public_url, &allowed_origins, &mut warnings);
        let database_url = match (database_url?, pool_size?) {
            (db::Url::Postgres(server), connections) => {
                warnings.extend(server.warning());
                db::Url::Postgres(Box::new(server.with_connections(connections)))
            }
            (file, _) => file,
        };
        let (memory, iterations) = (argon2_memory_kib?, argon2_iterations?);
        if memory * iterations < 19_456 * 2 {
            warnings.push(format!("ARGON2_MEMORY_KIB={memory} and ARGON2_ITERATIONS={iterations} are weaker than OWASP's minimum of 19456 and 2"));
        }
        Some(Config {
            listen_addr: listen_addr?,
            trusted_proxies: proxies?.unwrap_or_else(|| if public_url.loopback { loopback_nets() } else { Vec::new() }),
            base_path: base_path?,
            database_url,
            allowed_origins,
            clear_site_data: clear_site_data?,
            timeouts: Timeouts { idle: idle?, absolute: absolute? },
            role_timeouts: role_timeouts?,
            remember_timeouts: remember_timeouts?,
            known_ip_retention: known_ip_retention?,
            ended_session_retention: ended_session_retention?,
            event_retention: event_retention?,
            max_sessions_per_user: usize::try_from(max_sessions_per_user?).ok()?,
            guess_limit_account: guess_limit_account?,
            guess_limit_source: guess_limit_source?,
            sign_up_limit_source: sign_up_limit_source?,
            letter_limit_source: letter_limit_source?,
            hash_threads: hash_threads?,
            password_min_length: usize::try_from(password_min_length?).ok()?,
            argon2_memory_kib: memory,
            argon2_iterations: iterations,
            roles: roles?,
            sign_up: sign_up?,
            unverified_retention: unverified_retention?,
            mail,
            mail_from: mail_from?.map_or_else(|| no_reply(&public_url.host()), Ok).ok()?,
            templates: templates?,
            link_verify: link_verify?,
            link_reset: link_reset?,
            link_email_change: link_email_change?,
            link_email_undo: link_email_undo?,
            max_connections: usize::try_from(max_connections?).ok()?,
            shutdown_grace: shutdown_grace?,
            log: log?,
            log_format: log_format?,
            public_url,
            warnings,
        })
    }

    /// Reads one setting; a fault is noted and the others are read all the same.
    fn parse<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let default = SETTINGS.iter().find(|s| s.name == name).map_or("", |s| s.default);
        let text = self.variables.get(name).unwrap_or(default).trim();
        match parse(text) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.faults.extend(wrong.lines().map(|wrong| format!("{name}: {wrong}")));
                None
            }
        }
    }

    /// Reads `MAIL`, or what `MAIL_FILE` holds. `None`: it depends on where this server is.
    fn mail(&mut self) -> Option<Option<Route>> {
        let file = self.variables.get("MAIL_FILE").unwrap_or("").trim();
        if file.is_empty() {
            return self.parse("MAIL", mail);
        }
        if self.variables.get("MAIL").is_some() {
            self.faults.push("MAIL_FILE: MAIL is set too; allowed: one of them".into());
            return None;
        }
        self.parse("MAIL_FILE", |path| {
            let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| format!("\"{path}\" cannot be read: {e}"))?);
            mail(text.trim())
        })
    }

    fn judge_transport(&mut self, public_url: &PublicUrl, insecure: bool, warnings: &mut Vec<String>) {
        if public_url.https || public_url.loopback {
            return;
        }
        if insecure {
            warnings.push("PUBLIC_URL is plain http: session cookies travel in clear and can be stolen on the way".into());
        } else {
            self.faults.push("PUBLIC_URL: plain http is accepted for a loopback host only; allowed: https://…, or set ALLOW_INSECURE_HTTP=true".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(&Variables::of(pairs))
    }

    fn fault_of(name: &str, value: &str) -> Option<String> {
        read(&[(name, value)]).err().map(|e| e.0.join("|"))
    }

    #[test]
    fn everything_has_a_default() {
        let config = read(&[]).expect("the defaults are right");
        assert_eq!(config.timeouts, Timeouts { idle: Some(Duration::from_secs(1800)), absolute: Duration::from_secs(86_400) });
        assert_eq!(config.trusted_proxies.len(), 2);
        assert!(config.warnings.is_empty());
    }

    /// OWASP's cheat sheet on storing passwords; ASVS appendix C.
    #[test]
    fn a_hash_costs_what_owasp_asks_for_and_less_is_a_warning() {
        let config = read(&[]).expect("the defaults are right");
        assert_eq!((config.argon2_memory_kib, config.argon2_iterations), (19_456, 2));
        for (memory, iterations) in [("19455", "2"), ("19456", "1"), ("8", "1")] {
            let weaker = read(&[("ARGON2_MEMORY_KIB", memory), ("ARGON2_ITERATIONS", iterations)]).expect("right");
            assert!(weaker.warnings.iter().any(|warning| warning.starts_with("ARGON2_MEMORY_KIB")), "{memory} {iterations}");
        }
        assert!(read(&[("ARGON2_MEMORY_KIB", "47104"), ("ARGON2_ITERATIONS", "1")]).expect("right").warnings.is_empty());
    }

    #[test]
    fn wrong_settings_are_all_told_at_once_by_name() {
        let faults = read(&[("IDLE_TIMEOUT", "30"), ("ABSOLUTE_TIMEOUT", "none"), ("LOG", "loud")]).expect_err("wrong").0;
        let names: Vec<&str> = faults.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(names, ["IDLE_TIMEOUT", "ABSOLUTE_TIMEOUT", "LOG"]);
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        let wrong = [
            ("IDLE_TIMEOUT", "0s"),
            ("IDLE_TIMEOUT", "5"),
            ("IDLE_TIMEOUT", ""),
            ("IDLE_TIMEOUT", "-5s"),
            ("IDLE_TIMEOUT", "5 m"),
            ("ABSOLUTE_TIMEOUT", "0h"),
            ("ABSOLUTE_TIMEOUT", "99999999999999999999d"),
            ("REMEMBER_TIMEOUTS", "7d"),
            ("REMEMBER_TIMEOUTS", "7d/none"),
            ("ROLE_TIMEOUTS", "boss=5m/8h"),
            ("ROLE_TIMEOUTS", "admin=5m"),
            ("ROLE_TIMEOUTS", "admin=5m/8h,admin=5m/8h"),
            ("ROLES", "admin"),
            ("ROLES", "user"),
            ("ROLES", "user,editor"),
            ("ROLES", "user,user,admin"),
            ("ROLES", "User,admin"),
            ("ALLOWED_ORIGINS", "https://a.example/x"),
            ("ALLOWED_ORIGINS", "https://a.example/"),
            ("ALLOWED_ORIGINS", "*"),
            ("ALLOWED_ORIGINS", "https://*.example.com"),
            ("ALLOWED_ORIGINS", "https://u@a.example"),
            ("ALLOWED_ORIGINS", "null"),
            ("PUBLIC_URL", "https://a.example/auth"),
            ("PUBLIC_URL", "http://a.example"),
            ("PUBLIC_URL", "ftp://a.example"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("TRUSTED_PROXIES", "proxy.example"),
            ("BASE_PATH", "auth"),
            ("BASE_PATH", "/auth/"),
            ("BASE_PATH", "/a//b"),
            ("BASE_PATH", "/.."),
            ("DATABASE_URL", "mysql://x"),
            ("DATABASE_URL", "sqlite:"),
            ("DATABASE_URL", "postgres://"),
            ("DATABASE_URL", "postgres://db/x?sslmode=maybe"),
            ("DATABASE_POOL_SIZE", "3"),
            ("LISTEN_ADDR", "8300"),
            ("LISTEN_ADDR", "::1:8300"),
            ("LISTEN_ADDR", "localhost:99999"),
            ("GUESS_LIMIT_ACCOUNT", "10"),
            ("GUESS_LIMIT_ACCOUNT", "0/15m"),
            ("GUESS_LIMIT_ACCOUNT", "10/15"),
            ("GUESS_LIMIT_ACCOUNT", "10/none"),
            ("GUESS_LIMIT_ACCOUNT", "10/0m"),
            ("GUESS_LIMIT_SOURCE", "1001/15m"),
            ("GUESS_LIMIT_SOURCE", ""),
            ("SIGNUP_LIMIT_SOURCE", "20"),
            ("LETTER_LIMIT_SOURCE", "0/1h"),
            ("MAX_CONNECTIONS", "0"),
            ("MAX_CONNECTIONS", "none"),
            ("HASH_THREADS", "0"),
            ("PASSWORD_MIN_LENGTH", "7"),
            ("ARGON2_MEMORY_KIB", "7"),
            ("MAX_SESSIONS_PER_USER", "0"),
            ("CLEAR_SITE_DATA", "everything"),
            ("LOG_FORMAT", "xml"),
            ("SIGNUP", "yes"),
            ("UNVERIFIED_RETENTION", "7"),
            ("MAIL", "sendmail"),
            ("MAIL", "smtp://"),
            ("MAIL", "smtp://mail.example.com/path"),
            ("MAIL", "file:"),
            ("MAIL_FILE", "/nowhere/at/all"),
            ("MAIL_FROM", "nobody"),
            ("MAIL_FROM", "a@x.test, b@x.test"),
            ("TEMPLATE_DIR", "/nowhere/at/all"),
            ("LINK_RESET", "http://localhost:8300/reset"),
            ("LINK_RESET", "http://localhost:8300/{token}/reset"),
            ("LINK_RESET", "https://evil.test/{token}"),
            ("LINK_RESET", "http://localhost:8300{token}"),
            ("LINK_RESET", "{token}"),
            ("ALLOW_INSECURE_HTTP", "yes"),
        ];
        for (name, value) in wrong {
            let fault = fault_of(name, value).unwrap_or_else(|| panic!("{name}={value} was accepted"));
            assert!(fault.starts_with(&format!("{name}: ")), "{fault}");
        }
    }

    #[test]
    fn a_limit_is_a_count_within_a_time_or_none() {
        let limits = |account, source| {
            let config = read(&[("GUESS_LIMIT_ACCOUNT", account), ("GUESS_LIMIT_SOURCE", source)]).expect("right");
            (config.guess_limit_account, config.guess_limit_source)
        };
        let rate = |count, minutes: u64| Some(Rate { count, per: Duration::from_secs(60 * minutes) });
        assert_eq!(limits("10/15m", "100/15m"), (rate(10, 15), rate(100, 15)));
        assert_eq!(limits("none", "1000 / 1h"), (None, rate(1000, 60)));
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        let config = read(&[("ALLOWED_ORIGINS", "https://App.Example.com:443, http://localhost:5173")]).expect("right");
        assert_eq!(config.allowed_origins, ["https://app.example.com", "http://localhost:5173"]);
    }

    #[test]
    fn an_allowed_origin_on_another_site_is_a_warning() {
        let at = |origins| {
            let config = read(&[("PUBLIC_URL", "https://id.example.com"), ("ALLOWED_ORIGINS", origins)]).expect("right");
            config.warnings.iter().filter(|warning| warning.starts_with("ALLOWED_ORIGINS")).count()
        };
        assert_eq!(at("https://app.example.com"), 0);
        assert_eq!(at("https://app.example.org"), 1);
        assert_eq!(at("http://app.example.com"), 1);
    }

    #[test]
    fn proxies_are_trusted_by_default_on_loopback_only() {
        let trusted = |pairs: &[(&str, &str)]| read(pairs).expect("right").trusted_proxies.len();
        assert_eq!(trusted(&[("PUBLIC_URL", "https://id.example.com")]), 0);
        assert_eq!(trusted(&[("TRUSTED_PROXIES", "")]), 0);
        assert_eq!(trusted(&[("TRUSTED_PROXIES", "10.0.0.0/8, 192.168.1.1")]), 2);
    }

    #[test]
    fn a_mail_server_is_a_url_and_its_password_is_not_shown() {
        let config = read(&[("MAIL", "smtp://post:p%40ss@mail.example.com")]).expect("right");
        let Route::Smtp(server) = &config.mail else { panic!("no server") };
        assert_eq!((server.port, server.tls_at_once, server.loopback), (587, false, false));
        assert_eq!(server.login, Some(("post".into(), Zeroizing::new("p@ss".into()))));
        assert!(!format!("{config:?}").contains("p@ss"));
        assert!(!fault_of("MAIL", "smtp://post:hunter2@mail.example.com/x").expect("wrong").contains("hunter2"));
        let Route::Smtp(server) = read(&[("MAIL", "smtps://mail.example.com")]).expect("right").mail else { panic!("no server") };
        assert_eq!((server.port, server.tls_at_once), (465, true));
    }

    #[test]
    fn without_a_setting_letters_go_to_a_folder_on_this_machine_and_to_the_log_elsewhere() {
        assert_eq!(read(&[]).expect("right").mail, Route::File("data/mail".into()));
        let config = read(&[("PUBLIC_URL", "https://id.example.com")]).expect("right");
        assert_eq!(config.mail, Route::Log);
        assert!(config.warnings.iter().any(|warning| warning.starts_with("MAIL=log")));
        assert_eq!(config.mail_from.to_string(), "no-reply@id.example.com");
    }

    #[test]
    fn a_link_to_the_application_ends_with_the_token_and_stays_with_ours() {
        let set = [("ALLOWED_ORIGINS", "https://app.example.com"), ("LINK_RESET", "https://app.example.com/reset#t={token}")];
        assert_eq!(read(&set).expect("right").link_reset.as_deref(), Some("https://app.example.com/reset#t="));
        assert_eq!(
            read(&[("LINK_VERIFY", "http://localhost:8300/app/verify/{token}")]).expect("right").link_verify.as_deref(),
            Some("http://localhost:8300/app/verify/")
        );
    }

    #[test]
    fn what_was_set_does_not_print() {
        let shown = format!("{:?}", Variables::of(&[("MAIL", "smtp://post:hunter2@mail.example.com")]));
        assert_eq!(shown, "{\"MAIL\"}");
    }

    #[test]
    fn secrets_are_not_echoed() {
        assert!(!fault_of("DATABASE_URL", "mysql://root:hunter2@db/x").expect("wrong").contains("hunter2"));
        assert!(!fault_of("DATABASE_URL", "postgres://root:hunter2@db/x?sslmode=maybe").expect("wrong").contains("hunter2"));
        let right = read(&[("DATABASE_URL", "postgres://root:hunter2@db/x")]).expect("right");
        assert!(!format!("{right:?}").contains("hunter2"));
        for name in ["PUBLIC_URL", "ALLOWED_ORIGINS", "LINK_RESET"] {
            assert!(!fault_of(name, "https://root:hunter2@app.example.com/x{token}").expect("wrong").contains("hunter2"), "{name}");
        }
    }

    /// Whoever copies a line from our pages must not run with a password that everybody knows. DB-02.
    #[test]
    fn the_passwords_of_our_examples_are_refused() {
        for password in ["password", "secret", "PASSWORD", "p%61ssword"] {
            for (name, value) in [
                ("DATABASE_URL", format!("postgres://holdfast:{password}@db.example.com/holdfast")),
                ("DATABASE_URL", format!("postgres://db.example.com/holdfast?user=holdfast&password={password}")),
                ("MAIL", format!("smtp://holdfast:{password}@mail.example.com:587")),
                ("MAIL", format!("smtps://holdfast:{password}@mail.example.com")),
            ] {
                let fault = fault_of(name, &value).unwrap_or_else(|| panic!("{name}={value} was accepted"));
                assert_eq!(fault, format!("{name}: {}", crate::secret::EXAMPLE));
            }
        }
        assert!(read(&[("MAIL", "smtp://secret:passwords@mail.example.com")]).is_ok());
    }

    #[test]
    fn every_password_in_an_example_of_ours_is_refused() {
        let mut pages = vec![include_str!("../README.md"), include_str!("../.env.example"), include_str!("command.rs")];
        pages.extend(SETTINGS.iter().map(|setting| setting.about));
        let logins = pages.iter().flat_map(|page| page.split("://").skip(1)).filter_map(|rest| {
            let (login, _) = rest.split_once('@')?;
            login.split_once(':').filter(|(user, password)| !format!("{user}{password}").contains([' ', '/', '\n', '`', '"']))
        });
        let passwords: Vec<&str> = logins.map(|(_, password)| password).collect();
        assert!(passwords.len() >= 6, "{passwords:?}");
        assert!(passwords.iter().all(|password| crate::secret::is_example(password.as_bytes())), "{passwords:?}");
    }

    #[test]
    fn the_example_file_names_every_setting_with_its_default() {
        let example = include_str!("../.env.example");
        let listed: Vec<String> = example.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' ')).map(String::from).collect();
        let expected: Vec<String> = SETTINGS.iter().map(|s| format!("{}={}", s.name, s.default)).collect();
        assert_eq!(listed, expected);
        for setting in SETTINGS {
            assert!(example.contains(&format!("# {}\n", setting.about)), "{} lacks its reason", setting.name);
        }
    }
}
