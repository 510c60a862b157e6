//! What every handler can reach, and nothing else is reachable: no globals, no ambient clock, no ambient chance.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;

use uuid::Uuid;

use crate::chance::Chance;
use crate::client::Devices;
use crate::clock::Clock;
use crate::config::Config;
use crate::cookie::Cookies;
use crate::db::{Db, Fault};
use crate::factor::hasher::Hasher;
use crate::flood::Floods;
use crate::guessing::Line;
use crate::live_sessions::LiveSessions;
use crate::mail::{Mail, Mailbag};
use crate::serve::Serving;
use crate::templates::Templates;

/// The application. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// Its parts.
pub struct Parts {
    /// The settings.
    pub config: Config,
    /// Now.
    pub clock: Clock,
    /// The database, which keeps the live sessions in memory true.
    pub db: Db,
    /// The threads that hash passwords.
    pub hasher: Hasher,
    /// The letters that are being delivered.
    pub posting: Serving,
    /// No more of them are begun: the server stops.
    pub post_closed: AtomicBool,
    /// The thread that names devices.
    pub devices: Devices,
    /// How often strangers may ask for what costs something.
    pub floods: Floods,
    /// Who tries a password right now, and who waits for what comes of it.
    pub line: Line,
    /// How letters leave.
    pub mail: Mail,
    /// What letters and pages look like.
    pub templates: Templates,
    /// The cookies of this transport.
    pub cookies: Cookies,
    /// Which of the instances on this database it is.
    pub instance: Uuid,
    /// The requests that run.
    pub serving: Serving,
    /// No new connections are taken, and what runs is being finished.
    pub draining: AtomicBool,
    /// One write-back of last-active at a time.
    pub write_back_turn: tokio::sync::Mutex<()>,
    /// The OpenAPI document, written once the routes are known.
    pub contract: OnceLock<Bytes>,
    /// Names for requests that bring none.
    pub request_ids: RequestIds,
    /// The operator has been told of an `X-Forwarded-For` that does not count.
    pub told_of_untrusted_proxy: AtomicBool,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Opens the database and starts the threads that hash and name.
    ///
    /// # Errors
    /// The database cannot be used; the text says why in one line.
    pub async fn open(config: Config, clock: Clock, chance: Chance) -> Result<App, Fault> {
        let mail = Mail::start(&config)?;
        App::assemble(config, clock, chance, mail).await
    }

    /// The same with a mailbag for letters, for tests.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(config: Config, clock: Clock, chance: Chance, letters: Mailbag) -> Result<App, Fault> {
        let mail = Mail::into(letters, &config);
        App::assemble(config, clock, chance, mail).await
    }

    async fn assemble(config: Config, clock: Clock, chance: Chance, mail: Mail) -> Result<App, Fault> {
        let table = if config.database_url.is_shared() { LiveSessions::shared } else { LiveSessions::new };
        let live = table(LiveSessions::CAPACITY);
        let db = Db::open(&config.database_url, clock.clone(), chance.clone(), live).await?;
        let hasher = Hasher::start(&config, &chance)?;
        Ok(App(Arc::new(Parts {
            floods: Floods::new(&config, &clock),
            cookies: Cookies { secure: config.public_url.https },
            mail,
            templates: config.templates.clone(),
            config,
            clock,
            db,
            hasher,
            devices: Devices::start()?,
            posting: Serving::default(),
            post_closed: AtomicBool::new(false),
            line: Line::default(),
            instance: Uuid::from_bytes(chance.bytes()),
            serving: Serving::default(),
            draining: AtomicBool::new(false),
            write_back_turn: tokio::sync::Mutex::new(()),
            contract: OnceLock::new(),
            request_ids: RequestIds { process: chance.bytes(), count: AtomicU64::new(0) },
            told_of_untrusted_proxy: AtomicBool::new(false),
        })))
    }
}

/// Names requests: a random name for the process, and a count. Unique, cheap, and not secret.
pub struct RequestIds {
    process: [u8; 4],
    count: AtomicU64,
}

impl RequestIds {
    /// The next name, in hexadecimal.
    pub fn next(&self) -> [u8; 24] {
        let mut name = [0; 12];
        name[..4].copy_from_slice(&self.process);
        name[4..].copy_from_slice(&self.count.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let mut hex = [0; 24];
        for (i, byte) in name.iter().enumerate() {
            hex[2 * i] = b"0123456789abcdef"[usize::from(byte >> 4)];
            hex[2 * i + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        hex
    }
}
