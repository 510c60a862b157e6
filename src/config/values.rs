//! How each setting is written: one pure function a value, from text to type, or one line that says what is wrong and what is
//! allowed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use lettre::message::Mailbox;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::{LogFormat, PublicUrl, Rate, SignUpMode, Timeouts};
use crate::db;
use crate::mail::{Route, Server};
use crate::secret::{EXAMPLE, is_example};

pub(super) fn listen_addr(text: &str) -> Result<String, String> {
    let wrong = || format!("\"{text}\" is no address; allowed: host:port, such as localhost:8300, 0.0.0.0:8300 or [::]:8300");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(char::is_whitespace) || (host.contains(':') && !bracketed) {
        return Err(wrong());
    }
    Ok(text.into())
}

pub(super) fn public_url(text: &str) -> Result<PublicUrl, String> {
    let origin = origin(text.strip_suffix('/').unwrap_or(text))?;
    let url = url::Url::parse(&origin).map_err(|e| e.to_string())?;
    Ok(PublicUrl { https: url.scheme() == "https", loopback: is_loopback(&url), origin })
}

pub(super) fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// A URL as it may be repeated: one with a user may have a password too.
fn without_user(url: &str) -> &str {
    if url.contains('@') { "a URL with a user" } else { url }
}

/// Reads an origin, and writes it as a browser does: lower case, IDNA, no default port.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let wrong = || format!("\"{}\" is no origin; allowed: scheme://host[:port] without a path, such as https://app.example.com", without_user(text));
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
pub(super) fn warn_of_other_sites(public_url: &PublicUrl, allowed: &[String], warnings: &mut Vec<String>) {
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

pub(super) fn base_path(text: &str) -> Result<String, String> {
    let plain =
        |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c));
    match text.strip_prefix('/') {
        None if text.is_empty() => Ok(String::new()),
        Some(rest) if rest.split('/').all(plain) => Ok(text.into()),
        _ => Err("must be empty or a path such as /auth: a leading slash, none at the end".into()),
    }
}

pub(super) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

pub(super) fn database_url(text: &str) -> Result<db::Url, String> {
    // The value is not echoed: the URL of a database may hold a password.
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return db::Server::parse(text).map(|server| db::Url::Postgres(Box::new(server)));
    }
    let wrong = || "must be sqlite:PATH, such as sqlite:data/holdfast.db, or postgres://USER:PASSWORD@HOST/DATABASE".to_string();
    let rest = text.strip_prefix("sqlite:").ok_or_else(wrong)?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path.contains(['?', '\0']) || path.starts_with("file:") || path == ":memory:" {
        return Err(wrong());
    }
    Ok(db::Url::Sqlite(PathBuf::from(path)))
}

pub(super) fn list<T>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
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

pub(super) fn loopback_nets() -> Vec<IpNet> {
    [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])].map(IpNet::from).into()
}

pub(super) fn proxies(text: &str) -> Result<Option<Vec<IpNet>>, String> {
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

pub(super) fn clear_site_data(text: &str) -> Result<Option<String>, String> {
    const KNOWN: [&str; 7] = ["cache", "clientHints", "cookies", "executionContexts", "prefetchCache", "storage", "*"];
    let quoted = list(text, |part| match KNOWN.contains(&part) {
        true => Ok(format!("\"{part}\"")),
        false => Err(format!("\"{part}\" is unknown; allowed: {}", KNOWN.join(", "))),
    })?;
    Ok((!quoted.is_empty()).then(|| quoted.join(", ")))
}

const DURATION: &str = "allowed: a whole number and a unit, such as 5s, 30m, 24h, 7d";

/// Reads `90s`, `30m`, `24h`, `7d`, `1h30m`. Without a unit it is wrong: seconds and minutes are too easily confused.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
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

pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    if text == "none" {
        return Err(format!("none is not possible here; {DURATION}"));
    }
    match duration(text)? {
        Duration::ZERO => Err(format!("zero is not possible; {DURATION}")),
        span => Ok(span),
    }
}

pub(super) fn timeout_or_none(text: &str) -> Result<Option<Duration>, String> {
    if text == "none" { Ok(None) } else { timeout(text).map(Some).map_err(|wrong| format!("{wrong}, or none")) }
}

pub(super) fn timeouts(text: &str) -> Result<Timeouts, String> {
    let (idle, absolute) = text.split_once('/').ok_or_else(|| format!("\"{text}\" must be idle/absolute, such as 7d/30d or none/24h"))?;
    Ok(Timeouts { idle: timeout_or_none(idle.trim())?, absolute: timeout(absolute.trim())? })
}

/// Reads `10/15m`: so many within so long; `None` for none.
pub(super) fn rate(text: &str) -> Result<Option<Rate>, String> {
    if text == "none" {
        return Ok(None);
    }
    let wrong = || format!("\"{text}\" must be count/duration, such as 10/15m, with a count from 1 to 1000, or none");
    let (count, per) = text.split_once('/').ok_or_else(wrong)?;
    let count = number(count.trim(), 1, 1000).map_err(|_| wrong())?;
    timeout(per.trim()).map(|per| Some(Rate { count, per }))
}

pub(super) fn roles(text: &str) -> Result<Vec<String>, String> {
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

pub(super) fn role_timeouts(text: &str, roles: Option<&[String]>) -> Result<BTreeMap<String, Timeouts>, String> {
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

pub(super) fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(format!("\"{text}\" must be a whole number from {least} to {most}")),
    }
}

pub(super) fn hash_threads(text: &str) -> Result<usize, String> {
    if text == "cores" {
        return Ok(std::thread::available_parallelism().map_or(1, usize::from));
    }
    number(text, 1, 256).map(|n| n as usize).map_err(|wrong| format!("{wrong}, or cores"))
}

pub(super) fn level(text: &str) -> Result<tracing::level_filters::LevelFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let wrong = || format!("\"{text}\" must be one of {}", LEVELS.join(", "));
    if !LEVELS.contains(&text) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("\"{text}\" must be text or json")),
    }
}

pub(super) fn sign_up_mode(text: &str) -> Result<SignUpMode, String> {
    match text {
        "open" => Ok(SignUpMode::Open),
        "verify_first" => Ok(SignUpMode::VerifyFirst),
        "closed" => Ok(SignUpMode::Closed),
        _ => Err(format!("\"{text}\" must be open, verify_first or closed")),
    }
}

/// Reads a way for letters; `None` for auto. The value is not echoed: it may hold a password.
pub(super) fn mail(text: &str) -> Result<Option<Route>, String> {
    let wrong = || "allowed: smtp://user:password@host:587, smtps://user:password@host:465, file:FOLDER, log or auto".to_string();
    match text {
        "auto" => return Ok(None),
        "log" => return Ok(Some(Route::Log)),
        _ => {}
    }
    if let Some(folder) = text.strip_prefix("file:") {
        return if folder.is_empty() { Err(wrong()) } else { Ok(Some(Route::File(PathBuf::from(folder)))) };
    }
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let tls_at_once = match url.scheme() {
        "smtp" => false,
        "smtps" => true,
        _ => return Err(wrong()),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| wrong());
    let login = match (url.username(), url.password()) {
        ("", None) => None,
        (user, password) => Some((decoded(user)?, Zeroizing::new(decoded(password.unwrap_or(""))?))),
    };
    if login.as_ref().is_some_and(|(_, password)| is_example(password.as_bytes())) {
        return Err(EXAMPLE.into());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let port = url.port().unwrap_or(if tls_at_once { 465 } else { 587 });
    Ok(Some(Route::Smtp(Server { host: host.into(), port, tls_at_once, loopback, login })))
}

/// Reads a sender; `None` for auto.
pub(super) fn mail_from(text: &str) -> Result<Option<Mailbox>, String> {
    if text == "auto" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("\"{text}\" is no sender; allowed: Name <address>, an address, or auto"))
}

/// The sender that nobody chose. A host that cannot stand in an address becomes localhost.
pub(super) fn no_reply(host: &str) -> Result<Mailbox, lettre::address::AddressError> {
    let address = lettre::Address::new("no-reply", host).or_else(|_| lettre::Address::new("no-reply", "localhost"))?;
    Ok(Mailbox::new(None, address))
}

/// Reads a link to the application, and gives what stands before the token: a token at the end cannot be cut by what follows it,
/// and an origin that is not ours would get it.
pub(super) fn application_link(text: &str, public_url: &PublicUrl, allowed: &[String]) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let rule = "allowed: a URL on PUBLIC_URL's or an allowed origin that ends with {token}, such as https://app.example.com/verify#{token}";
    let wrong = || format!("\"{}\" does not do; {rule}", without_user(text));
    let before = text.strip_suffix("{token}").filter(|before| !before.contains(['{', '}'])).ok_or_else(wrong)?;
    let url = url::Url::parse(before).map_err(|_| wrong())?;
    let origin = url.origin().ascii_serialization();
    let ours = origin == public_url.origin || allowed.contains(&origin);
    // Without a path the token would become a part of the host.
    let has_path = before.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    let plain = has_path && url.username().is_empty() && url.password().is_none() && !before.chars().any(|c| c.is_whitespace() || c.is_control());
    if ours && plain { Ok(Some(before.into())) } else { Err(wrong()) }
}
