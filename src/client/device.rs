//! What a user recognises a device by: "Chrome on macOS", "Safari on iPhone", "curl".
//!
//! Versions are left out: browsers freeze them (macOS "10.15.7" for ever), and nobody recognises a phone by them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, TrySendError};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use simple_useragent::UserAgentParser;
use tokio::sync::oneshot;

use crate::background::at_lowest_priority;
use crate::db::Fault;

/// Names that are remembered. Whoever fills them with inventions makes the next names slow, and nothing else.
const REMEMBERED: usize = 1024;
/// Devices that may wait for a name. An agent made to be slow takes 50 ms, so nobody waits for more than seconds; beyond, a device
/// goes without a name, which is better than a sign-in without an answer.
const WAITING: usize = 32;

/// Names devices, and remembers the names that it gave.
///
/// A name takes a few hundred regular expressions: two to ten milliseconds, and some 40 MiB of working memory that each thread
/// which runs them keeps. So one thread names all devices, at the lowest priority, and each but once, however many ask for it at
/// the same time. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Devices {
    book: Arc<Mutex<Book>>,
    asked: mpsc::SyncSender<Described>,
}

/// The names that were given, and those who wait for one.
#[derive(Debug, Default)]
struct Book {
    given: HashMap<Described, Device>,
    waiting: HashMap<Described, Vec<oneshot::Sender<Device>>>,
}

/// What a name is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Described {
    agent: String,
    hints: Hints,
}

impl Devices {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> Result<Self, Fault> {
        let (devices, asks) = Devices::unstarted(WAITING);
        let book = devices.book.clone();
        let thread = std::thread::Builder::new().name("devices".into());
        thread.spawn(move || name_all(&asks, &book)).map_err(|e| Fault::broken(format!("no thread for naming devices: {e}")))?;
        Ok(devices)
    }

    fn unstarted(waiting: usize) -> (Self, mpsc::Receiver<Described>) {
        let (asked, asks) = mpsc::sync_channel(waiting);
        (Devices { book: Arc::default(), asked }, asks)
    }

    /// Has the rules read, which takes a quarter of a second, so that the first sign-in need not wait for them.
    pub async fn prepare(&self) {
        // Trouble with it is told by whoever needs a name.
        let _ = self.name("", &Hints::default()).await;
    }

    /// Names a device.
    ///
    /// # Errors
    /// The naming panicked.
    pub(super) async fn name(&self, agent: &str, hints: &Hints) -> Result<Device, Fault> {
        match self.ask(Described { agent: agent.into(), hints: hints.clone() }) {
            Ok(device) => Ok(device),
            Err(named) => named.await.map_err(|_| Fault::broken("a device could not be named")),
        }
    }

    /// The name, or who will hear of it.
    fn ask(&self, described: Described) -> Result<Device, oneshot::Receiver<Device>> {
        let mut book = lock(&self.book);
        if let Some(device) = book.given.get(&described) {
            return Ok(device.clone());
        }
        let (answer, named) = oneshot::channel();
        if let Some(others) = book.waiting.get_mut(&described) {
            others.push(answer);
            return Err(named);
        }
        match self.asked.try_send(described.clone()) {
            Ok(()) => drop(book.waiting.insert(described, vec![answer])),
            Err(TrySendError::Full(_)) => return Ok(Device::unknown()),
            // There is no thread any more: the answer is dropped here.
            Err(TrySendError::Disconnected(_)) => {}
        }
        Err(named)
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names devices until nobody can ask any more. A panic costs those who asked for that name only.
fn name_all(asks: &mpsc::Receiver<Described>, book: &Mutex<Book>) {
    at_lowest_priority();
    for described in asks {
        if let Entry::Occupied(waiting) = lock(book).waiting.entry(described.clone())
            && waiting.get().iter().all(oneshot::Sender::is_closed)
        {
            // They have all gone.
            waiting.remove();
            continue;
        }
        let named = catch_unwind(AssertUnwindSafe(|| Device::of(&described.agent, &described.hints)));
        let mut book = lock(book);
        let waiting = book.waiting.remove(&described).unwrap_or_default();
        let Ok(device) = named else { continue };
        if book.given.len() >= REMEMBERED {
            book.given.clear();
        }
        book.given.insert(described, device.clone());
        // Whoever asked may have gone meanwhile.
        waiting.into_iter().for_each(|answer| drop(answer.send(device.clone())));
    }
}

/// A device, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// For people.
    pub name: String,
    /// `desktop`, `mobile`, `tablet`, `bot` or `other`.
    pub kind: &'static str,
}

/// The low-entropy client hints, where a browser sends them: they say what a frozen agent no longer does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    platform: Option<String>,
    mobile: bool,
}

impl Hints {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let platform = text("sec-ch-ua-platform").map(|quoted| quoted.trim_matches('"').chars().take(32).collect());
        Hints { platform, mobile: text("sec-ch-ua-mobile") == Some("?1") }
    }
}

static PARSER: LazyLock<UserAgentParser> = LazyLock::new(UserAgentParser::new);

impl Device {
    fn of(agent: &str, hints: &Hints) -> Self {
        let parsed = PARSER.parse(agent);
        let (family, os) = (parsed.client.family.as_str(), parsed.os.family.as_str());
        if is_bot(agent, family) {
            return Device { name: BOTS.into_iter().find(|known| *known == family).unwrap_or("Bot").into(), kind: "bot" };
        }
        let browser = browser(family);
        let platform = platform(agent, os, hints);
        let kind = kind(agent, platform, hints);
        let name = match (browser, platform) {
            (Some(browser), Some(platform)) => format!("{browser} on {platform}"),
            (Some(one), None) => one.to_string(),
            (None, Some(platform)) => format!("Unknown browser on {platform}"),
            (None, None) => return Device::unknown(),
        };
        Device { name, kind }
    }

    fn unknown() -> Self {
        Device { name: "Unknown device".into(), kind: "other" }
    }
}

/// The name that people know a browser by. Only names that we know are repeated: the owner of an account reads them, and a
/// stranger writes their own agent (UNI-04).
fn browser(family: &str) -> Option<&'static str> {
    let known = match family {
        "Mobile Safari" | "Mobile Safari UI/WKWebView" => "Safari",
        "Chrome Mobile" | "Chrome Mobile iOS" | "Chrome Mobile WebView" | "HeadlessChrome" => "Chrome",
        "Firefox Mobile" | "Firefox iOS" | "Firefox Focus" => "Firefox",
        "Edge Mobile" => "Edge",
        "Opera Mobile" | "Opera Touch" | "Opera Mini" => "Opera",
        "DuckDuckGo Mobile" => "DuckDuckGo",
        "Yandex Browser" => "Yandex",
        "Vivaldi Mobile" => "Vivaldi",
        other => BROWSERS.into_iter().find(|known| *known == other)?,
    };
    Some(known)
}

const BROWSERS: [&str; 30] = [
    "Android",
    "Apple Mail",
    "Apache-HttpClient",
    "Brave",
    "Chrome",
    "Chromium",
    "DuckDuckGo",
    "Edge",
    "Electron",
    "Epiphany",
    "Falkon",
    "Firefox",
    "Go-http-client",
    "IE",
    "Konqueror",
    "Opera",
    "Pale Moon",
    "PostmanRuntime",
    "Python Requests",
    "Python aiohttp",
    "QQ Browser",
    "Safari",
    "Samsung Internet",
    "SeaMonkey",
    "Thunderbird",
    "UC Browser",
    "Vivaldi",
    "Wget",
    "curl",
    "okhttp",
];
const BOTS: [&str; 8] = ["Googlebot", "bingbot", "DuckDuckBot", "Applebot", "YandexBot", "Baiduspider", "Facebookbot", "GPTBot"];

fn platform(agent: &str, os: &str, hints: &Hints) -> Option<&'static str> {
    // iPadOS calls itself a Mac; only the device word tells, where it is there.
    if agent.contains("iPad") {
        return Some("iPad");
    }
    if agent.contains("iPhone") || agent.contains("iPod") {
        return Some("iPhone");
    }
    let spoken = match os {
        "Other" => hints.platform.as_deref().and_then(|told| KNOWN_PLATFORMS.into_iter().find(|known| *known == told))?,
        "Mac OS X" => "macOS",
        "Chrome OS" => "ChromeOS",
        other => DESKTOPS.into_iter().chain(KNOWN_PLATFORMS).find(|known| *known == other)?,
    };
    Some(spoken)
}

/// A hint is what a client says: only names that we know are repeated.
const KNOWN_PLATFORMS: [&str; 7] = ["Android", "Chrome OS", "ChromeOS", "Linux", "macOS", "Windows", "iOS"];
const DESKTOPS: [&str; 10] = ["Windows", "macOS", "Linux", "Ubuntu", "Fedora", "Debian", "ChromeOS", "Chrome OS", "FreeBSD", "OpenBSD"];

fn kind(agent: &str, platform: Option<&str>, hints: &Hints) -> &'static str {
    match platform {
        Some("iPad") => "tablet",
        Some("iPhone" | "iOS") => "mobile",
        // Android tablets leave the word "Mobile" out.
        Some("Android") if hints.mobile || agent.contains("Mobile") => "mobile",
        Some("Android") => "tablet",
        Some(platform) if DESKTOPS.contains(&platform) => "desktop",
        _ => "other",
    }
}

fn is_bot(agent: &str, family: &str) -> bool {
    let words = ["bot/", "bot;", "bot)", "crawler", "spider", "Googlebot", "bingbot"];
    family.ends_with("Bot") || family.ends_with("bot") || words.iter().any(|word| agent.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(agent: &str) -> (String, &'static str) {
        let device = Device::of(agent, &Hints::default());
        (device.name, device.kind)
    }

    #[test]
    fn devices_are_called_what_their_owners_call_them() {
        let samples = [
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
                "Chrome on macOS",
                "desktop",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
                "Edge on Windows",
                "desktop",
            ),
            ("Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0", "Firefox on Linux", "desktop"),
            ("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0", "Firefox on Ubuntu", "desktop"),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1",
                "Safari on iPhone",
                "mobile",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/142.0.0.0 Mobile/15E148 Safari/604.1",
                "Chrome on iPhone",
                "mobile",
            ),
            (
                "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
                "Safari on iPad",
                "tablet",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Safari/605.1.15",
                "Safari on macOS",
                "desktop",
            ),
            ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36", "Chrome on Android", "mobile"),
            ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36", "Chrome on Android", "tablet"),
            ("Mozilla/5.0 (Android 14; Mobile; rv:144.0) Gecko/144.0 Firefox/144.0", "Firefox on Android", "mobile"),
            ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot", "bot"),
            ("curl/8.5.0", "curl", "other"),
            ("Call +1 555 0100 now bot/1.0", "Bot", "bot"),
            ("Pay me now Spider/1", "Unknown device", "other"),
            ("", "Unknown device", "other"),
            ("<script>alert(1)</script>", "Unknown device", "other"),
        ];
        for (agent, name, kind) in samples {
            assert_eq!(named(agent), (name.to_string(), kind), "{agent}");
        }
    }

    #[tokio::test]
    async fn a_name_is_remembered_and_inventions_do_not_fill_the_memory() {
        let devices = Devices::start().expect("a thread");
        let (agent, hints) = ("curl/8.5.0", Hints::default());
        let given = Device { name: "curl".into(), kind: "other" };
        assert_eq!(devices.name(agent, &hints).await.expect("a name"), given);
        lock(&devices.book).given.values_mut().for_each(|device| device.name = "remembered".into());
        assert_eq!(devices.name(agent, &hints).await.expect("a name").name, "remembered");
        for n in 0..REMEMBERED {
            let invented = Described { agent: n.to_string(), hints: Hints::default() };
            lock(&devices.book).given.insert(invented, given.clone());
        }
        devices.name("Wget/1.21", &hints).await.expect("a name");
        assert!(lock(&devices.book).given.len() <= REMEMBERED);
    }

    /// SLOW-03: agents that are slow to name hold nobody up for long.
    #[tokio::test]
    async fn when_too_many_wait_a_device_goes_without_a_name() {
        let (devices, asks) = Devices::unstarted(1);
        let hints = Hints::default();
        let first = devices.name("curl/8.5.0", &hints);
        tokio::pin!(first);
        assert!(futures_util::FutureExt::now_or_never(first.as_mut()).is_none(), "nobody has named it yet");
        assert_eq!(devices.name("Wget/1.21", &hints).await.expect("an answer"), Device::unknown());
        assert!(lock(&devices.book).given.is_empty(), "what was not looked at is not remembered");
        // The same device needs no place of its own.
        let again = devices.name("curl/8.5.0", &hints);
        tokio::pin!(again);
        assert!(futures_util::FutureExt::now_or_never(again.as_mut()).is_none(), "nobody has named it yet");
        let book = devices.book.clone();
        std::thread::spawn(move || name_all(&asks, &book));
        assert_eq!((first.await.expect("a name").name, again.await.expect("a name").name), ("curl".into(), "curl".into()));
        assert!(lock(&devices.book).waiting.is_empty());
    }

    #[test]
    fn a_hint_helps_where_the_agent_says_nothing_and_is_never_echoed() {
        let with = |platform: &str| Device::of("", &Hints { platform: Some(platform.into()), mobile: false }).name;
        assert_eq!(with("Windows"), "Unknown browser on Windows");
        assert_eq!(with("<b>evil</b>"), "Unknown device");
    }
}
