//! Settings: typed, checked once, all with a default.
//!
//! They come from the environment, and from `.env` in the working directory if there is one; the environment wins. A
//! wrong setting stops the start, and every fault is told at once, one line each: its name, what is wrong, what is allowed.
//! Nothing after this module reads the environment or parses a setting.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::db;

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
    "DATABASE_URL" = "sqlite:data/holdfast.db", "The database; folder and file are made, readable by this user only.";
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
    "HASH_THREADS" = "cores", "Threads that hash passwords.";
    "PASSWORD_MIN_LENGTH" = "8", "Shortest new password, in characters.";
    "ARGON2_MEMORY_KIB" = "19456", "Memory of one password hash.";
    "ARGON2_ITERATIONS" = "2", "Passes of one password hash.";
    "ROLES" = "user,admin", "The roles. admin administers; new accounts get the first other one.";
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
    pub hash_threads: usize,
    pub password_min_length: usize,
    pub argon2_memory_kib: u32,
    pub argon2_iterations: u32,
    pub roles: Vec<String>,
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

/// The variables that count: `.env`, overridden by the environment.
#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

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
                    all.insert(name, value);
                }
            }
            Err(e) if e.not_found() => {}
            Err(_) => return Err(ConfigError(vec![".env: cannot be read".into()])),
        }
        for setting in SETTINGS {
            match std::env::var(setting.name) {
                Ok(value) => drop(all.insert(setting.name.into(), value)),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => return Err(ConfigError(vec![format!("{}: is not UTF-8", setting.name)])),
            }
        }
        Ok(Variables(all))
    }

    /// Makes a set for tests.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Variables(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    /// What is set for a setting, if anything is.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
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
        let hash_threads = self.parse("HASH_THREADS", hash_threads);
        let password_min_length = self.parse("PASSWORD_MIN_LENGTH", |text| number(text, 8, 128));
        let argon2_memory_kib = self.parse("ARGON2_MEMORY_KIB", |text| number(text, 8, 4 << 20));
        let argon2_iterations = self.parse("ARGON2_ITERATIONS", |text| number(text, 1, 1000));
        let shutdown_grace = self.parse("SHUTDOWN_GRACE", timeout);
        let log = self.parse("LOG", level);
        let log_format = self.parse("LOG_FORMAT", log_format);

        if let (Some(public_url), Some(insecure)) = (&public_url, insecure) {
            self.judge_transport(public_url, insecure, &mut warnings);
        }
        let (public_url, allowed_origins) = (public_url?, allowed_origins?);
        warn_of_other_sites(&public_url, &allowed_origins, &mut warnings);
        let (memory, iterations) = (argon2_memory_kib?, argon2_iterations?);
        if memory * iterations < 19_456 * 2 {
            warnings.push(format!("ARGON2_MEMORY_KIB={memory} and ARGON2_ITERATIONS={iterations} are weaker than OWASP's minimum of 19456 and 2"));
        }
        Some(Config {
            listen_addr: listen_addr?,
            trusted_proxies: proxies?.unwrap_or_else(|| if public_url.loopback { loopback_nets() } else { Vec::new() }),
            public_url,
            base_path: base_path?,
            database_url: database_url?,
            allowed_origins,
            clear_site_data: clear_site_data?,
            timeouts: Timeouts { idle: idle?, absolute: absolute? },
            role_timeouts: role_timeouts?,
            remember_timeouts: remember_timeouts?,
            known_ip_retention: known_ip_retention?,
            ended_session_retention: ended_session_retention?,
            event_retention: event_retention?,
            max_sessions_per_user: usize::try_from(max_sessions_per_user?).ok()?,
            hash_threads: hash_threads?,
            password_min_length: usize::try_from(password_min_length?).ok()?,
            argon2_memory_kib: memory,
            argon2_iterations: iterations,
            roles: roles?,
            shutdown_grace: shutdown_grace?,
            log: log?,
            log_format: log_format?,
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

fn listen_addr(text: &str) -> Result<String, String> {
    let wrong = || format!("\"{text}\" is no address; allowed: host:port, such as localhost:8300, 0.0.0.0:8300 or [::]:8300");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(char::is_whitespace) || (host.contains(':') && !bracketed) {
        return Err(wrong());
    }
    Ok(text.into())
}

fn public_url(text: &str) -> Result<PublicUrl, String> {
    let origin = origin(text.strip_suffix('/').unwrap_or(text))?;
    let url = url::Url::parse(&origin).map_err(|e| e.to_string())?;
    Ok(PublicUrl { https: url.scheme() == "https", loopback: is_loopback(&url), origin })
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// Reads an origin, and writes it as a browser does: lower case, IDNA, no default port.
fn origin(text: &str) -> Result<String, String> {
    // A URL with a user may have a password too: it is not repeated.
    let shown = if text.contains('@') { "a URL with a user" } else { text };
    let wrong = || format!("\"{shown}\" is no origin; allowed: scheme://host[:port] without a path, such as https://app.example.com");
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let bare = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    let nothing_after_the_host = !text.split_once("://").ok_or_else(wrong)?.1.contains(['/', '?', '#', '\\', '@', '*']);
    if !bare || !nothing_after_the_host {
        return Err(wrong());
    }
    Ok(url.origin().ascii_serialization())
}

/// `SameSite=Lax` cookies are sent within one site only: the same scheme and registrable domain. Without a list of public
/// suffixes the last two labels stand for it: a warning may be missing, but none is false.
fn warn_of_other_sites(public_url: &PublicUrl, allowed: &[String], warnings: &mut Vec<String>) {
    let site = |origin: &str| -> Option<(String, String)> {
        let url = url::Url::parse(origin).ok()?;
        let site = match url.host()? {
            url::Host::Domain(name) => {
                let labels: Vec<&str> = name.rsplit('.').take(2).collect();
                labels.join(".")
            }
            ip => ip.to_string(),
        };
        Some((url.scheme().to_string(), site))
    };
    for origin in allowed.iter().filter(|origin| site(origin) != site(&public_url.origin)) {
        warnings.push(format!(
            "ALLOWED_ORIGINS: {origin} is on another site than PUBLIC_URL ({}); browsers will not send the SameSite=Lax session cookie from there",
            public_url.origin
        ));
    }
}

fn base_path(text: &str) -> Result<String, String> {
    let plain =
        |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c));
    match text.strip_prefix('/') {
        None if text.is_empty() => Ok(String::new()),
        Some(rest) if rest.split('/').all(plain) => Ok(text.into()),
        _ => Err("must be empty or a path such as /auth: a leading slash, none at the end".into()),
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

fn database_url(text: &str) -> Result<db::Url, String> {
    // The value is not echoed: the URL of a database may hold a password.
    let wrong = || "must be sqlite:PATH, such as sqlite:data/holdfast.db".to_string();
    let rest = text.strip_prefix("sqlite:").ok_or_else(wrong)?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path.contains(['?', '\0']) || path.starts_with("file:") || path == ":memory:" {
        return Err(wrong());
    }
    Ok(db::Url::Sqlite(PathBuf::from(path)))
}

fn list<T>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let (good, wrong): (Vec<_>, Vec<_>) = text.split(',').map(|part| item(part.trim())).partition(Result::is_ok);
    if wrong.is_empty() {
        return Ok(good.into_iter().flatten().collect());
    }
    // Every item at fault gets its line.
    Err(wrong.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("\n"))
}

fn loopback_nets() -> Vec<IpNet> {
    [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])].map(IpNet::from).into()
}

fn proxies(text: &str) -> Result<Option<Vec<IpNet>>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let net = |part: &str| {
        let mapped = part.to_ascii_lowercase().starts_with("::ffff:");
        if mapped {
            return Err(format!("\"{part}\" is an IPv4 network in IPv6 clothes; allowed: its IPv4 form"));
        }
        let net = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| format!("\"{part}\" is no network; allowed: CIDRs such as 10.0.0.0/8 or ::1/128, comma-separated"))
    };
    list(text, net).map(Some)
}

fn clear_site_data(text: &str) -> Result<Option<String>, String> {
    const KNOWN: [&str; 7] = ["cache", "clientHints", "cookies", "executionContexts", "prefetchCache", "storage", "*"];
    let quoted = list(text, |part| match KNOWN.contains(&part) {
        true => Ok(format!("\"{part}\"")),
        false => Err(format!("\"{part}\" is unknown; allowed: {}", KNOWN.join(", "))),
    })?;
    Ok((!quoted.is_empty()).then(|| quoted.join(", ")))
}

const DURATION: &str = "allowed: a whole number and a unit, such as 5s, 30m, 24h, 7d";

/// Reads `90s`, `30m`, `24h`, `7d`, `1h30m`. Without a unit it is wrong: seconds and minutes are too easily confused.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no duration; {DURATION}");
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| format!("\"{text}\" has no unit; {DURATION}"))?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    if text.is_empty() || seconds > 100 * 366 * 86_400 {
        return Err(wrong());
    }
    Ok(Duration::from_secs(seconds))
}

fn timeout(text: &str) -> Result<Duration, String> {
    if text == "none" {
        return Err(format!("none is not possible here; {DURATION}"));
    }
    match duration(text)? {
        Duration::ZERO => Err(format!("zero is not possible; {DURATION}")),
        span => Ok(span),
    }
}

fn timeout_or_none(text: &str) -> Result<Option<Duration>, String> {
    if text == "none" { Ok(None) } else { timeout(text).map(Some).map_err(|wrong| format!("{wrong}, or none")) }
}

fn timeouts(text: &str) -> Result<Timeouts, String> {
    let (idle, absolute) = text.split_once('/').ok_or_else(|| format!("\"{text}\" must be idle/absolute, such as 7d/30d or none/24h"))?;
    Ok(Timeouts { idle: timeout_or_none(idle.trim())?, absolute: timeout(absolute.trim())? })
}

fn roles(text: &str) -> Result<Vec<String>, String> {
    let rule = "allowed: different lower-case names of letters, digits, - and _, admin and at least one other";
    let roles = list(text, |role| {
        let well_formed = role.starts_with(|c: char| c.is_ascii_lowercase())
            && role.len() <= 32
            && role.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
        if well_formed { Ok(role.to_string()) } else { Err(format!("\"{role}\" is no role; {rule}")) }
    })?;
    let twice = roles.iter().enumerate().any(|(i, role)| roles[..i].contains(role));
    if twice || roles.len() < 2 || !roles.iter().any(|role| role == "admin") {
        return Err(format!("\"{text}\" does not do; {rule}"));
    }
    Ok(roles)
}

fn role_timeouts(text: &str, roles: Option<&[String]>) -> Result<BTreeMap<String, Timeouts>, String> {
    let mut all = BTreeMap::new();
    list(text, |part| {
        let (role, limits) = part.split_once('=').ok_or_else(|| format!("\"{part}\" must be role=idle/absolute, such as admin=5m/8h"))?;
        let role = role.trim();
        if roles.is_some_and(|known| !known.iter().any(|r| r == role)) {
            return Err(format!("\"{role}\" is not one of ROLES; allowed: {}", roles.map(|known| known.join(", ")).unwrap_or_default()));
        }
        Ok((role.to_string(), timeouts(limits.trim())?))
    })?
    .into_iter()
    .try_for_each(|(role, limits)| match all.insert(role.clone(), limits) {
        None => Ok(()),
        Some(_) => Err(format!("\"{role}\" is given twice; allowed: each role once")),
    })?;
    Ok(all)
}

fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(format!("\"{text}\" must be a whole number from {least} to {most}")),
    }
}

fn hash_threads(text: &str) -> Result<usize, String> {
    if text == "cores" {
        return Ok(std::thread::available_parallelism().map_or(1, usize::from));
    }
    number(text, 1, 256).map(|n| n as usize).map_err(|wrong| format!("{wrong}, or cores"))
}

fn level(text: &str) -> Result<tracing::level_filters::LevelFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let wrong = || format!("\"{text}\" must be one of {}", LEVELS.join(", "));
    if !LEVELS.contains(&text) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("\"{text}\" must be text or json")),
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
            ("LISTEN_ADDR", "8300"),
            ("LISTEN_ADDR", "::1:8300"),
            ("LISTEN_ADDR", "localhost:99999"),
            ("HASH_THREADS", "0"),
            ("PASSWORD_MIN_LENGTH", "7"),
            ("ARGON2_MEMORY_KIB", "7"),
            ("MAX_SESSIONS_PER_USER", "0"),
            ("CLEAR_SITE_DATA", "everything"),
            ("LOG_FORMAT", "xml"),
            ("ALLOW_INSECURE_HTTP", "yes"),
        ];
        for (name, value) in wrong {
            let fault = fault_of(name, value).unwrap_or_else(|| panic!("{name}={value} was accepted"));
            assert!(fault.starts_with(&format!("{name}: ")), "{fault}");
        }
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        let config = read(&[("ALLOWED_ORIGINS", "https://App.Example.com:443, http://localhost:5173")]).expect("right");
        assert_eq!(config.allowed_origins, ["https://app.example.com", "http://localhost:5173"]);
    }

    #[test]
    fn an_allowed_origin_on_another_site_is_a_warning() {
        let at = |origins| read(&[("PUBLIC_URL", "https://id.example.com"), ("ALLOWED_ORIGINS", origins)]).expect("right").warnings.len();
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
    fn secrets_are_not_echoed() {
        assert!(!fault_of("DATABASE_URL", "mysql://root:hunter2@db/x").expect("wrong").contains("hunter2"));
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
