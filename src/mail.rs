//! How letters leave: to an SMTP server, into a folder, into the log, or into a test's hands.
//!
//! Whoever calls waits for no mail server: only the delivery in the background meets a transport. Towards SMTP, TLS is required
//! unless the server is on this machine: an attacker on the way could otherwise read the links.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use lettre::address::Envelope;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, Message, MultiPart, SinglePart};
use lettre::transport::smtp::PoolConfig;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use zeroize::Zeroizing;

use crate::account::email::Email;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::db::Fault;
use crate::id::LetterId;

/// A letter, ready to leave.
#[derive(Clone)]
pub struct Letter {
    /// Its id: the same at each delivery.
    pub id: LetterId,
    /// Whom it goes to.
    pub to: String,
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub text: String,
    /// The same in HTML.
    pub html: String,
    /// What must not be logged: the secret of its link.
    pub secret: Option<Zeroizing<String>>,
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Letter({} to {})", self.id, self.to)
    }
}

/// Where `MAIL` says that letters go.
#[derive(Clone, PartialEq, Eq)]
pub enum Route {
    /// To this server.
    Smtp(Server),
    /// Into this folder, a file each.
    File(PathBuf),
    /// Into the log, without the secrets of the links.
    Log,
}

/// An SMTP server.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS from the first byte, rather than by STARTTLS.
    pub tls_at_once: bool,
    /// On this machine: TLS is not needed.
    pub loopback: bool,
    /// User and password.
    pub login: Option<(String, Zeroizing<String>)>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Smtp(Server { host, port, .. }) => write!(f, "Smtp({host}:{port})"),
            Route::File(folder) => write!(f, "File({})", folder.display()),
            Route::Log => f.write_str("Log"),
        }
    }
}

/// A transport, with the sender's address.
pub struct Mail {
    from: Mailbox,
    domain: String,
    way: Way,
}

enum Way {
    Smtp { server: Box<Server>, pool: Mutex<AsyncSmtpTransport<Tokio1Executor>> },
    File(PathBuf),
    Log,
    Memory(Mailbag),
}

/// How long a mail server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(20);
/// How long one attempt at delivery may take.
const ATTEMPT: Duration = Duration::from_secs(60);
const CONNECTIONS: u32 = 4;

impl Mail {
    /// Makes the transport that the settings name. No connection is made yet.
    ///
    /// # Errors
    /// This machine has no usable TLS.
    pub fn start(config: &Config) -> Result<Self, Fault> {
        let way = match &config.mail {
            Route::Smtp(server) => {
                let pool = smtp(server).map_err(|e| Fault::broken(format!("MAIL: {e}")))?;
                Way::Smtp { server: Box::new(server.clone()), pool: Mutex::new(pool) }
            }
            Route::File(folder) => Way::File(folder.clone()),
            Route::Log => Way::Log,
        };
        Ok(Mail::by(way, config))
    }

    /// A transport that keeps everything in memory, for tests.
    pub fn into(bag: Mailbag, config: &Config) -> Self {
        Mail::by(Way::Memory(bag), config)
    }

    fn by(way: Way, config: &Config) -> Self {
        Mail { from: config.mail_from.clone(), domain: config.public_url.host(), way }
    }

    /// Whether letters get out, so that their recipients can act on them.
    pub fn leaves(&self) -> bool {
        !matches!(self.way, Way::Log)
    }

    /// Hands a letter over.
    ///
    /// # Errors
    /// Why it was not taken, for the log.
    pub async fn send(&self, letter: &Letter, now: Timestamp) -> Result<(), String> {
        match &self.way {
            Way::Smtp { server, pool } => {
                let message = self.message(letter, now)?;
                let transport = pool.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Ok(sent) = tokio::time::timeout(ATTEMPT, transport.send(message)).await {
                    return sent.map(|_| ()).map_err(|e| told(&e));
                }
                // What was given up half-way lies in the pool with an answer still to come, which the next letter would take
                // for its own: nobody uses that pool any more.
                *pool.lock().unwrap_or_else(PoisonError::into_inner) = smtp(server).map_err(|e| told(&e))?;
                Err("it took too long".into())
            }
            Way::File(folder) => {
                let (folder, id, message) = (folder.clone(), letter.id, self.message(letter, now)?.formatted());
                let written = tokio::task::spawn_blocking(move || write_file(&folder, id, &message).map_err(|e| format!("{}: {e}", folder.display())));
                written.await.unwrap_or_else(|e| Err(e.to_string()))
            }
            Way::Log => {
                let without_secret = letter.secret.iter().fold(letter.text.clone(), |text, secret| text.replace(secret.as_str(), "(secret)"));
                tracing::info!(to = letter.to, subject = letter.subject, text = ?without_secret, "letter");
                Ok(())
            }
            Way::Memory(bag) => bag.take(letter),
        }
    }

    fn message(&self, letter: &Letter, now: Timestamp) -> Result<Message, String> {
        let to = recipient(&letter.to)?;
        let envelope = Envelope::new(Some(self.from.email.clone()), vec![to.clone()]).map_err(|e| format!("the envelope: {e}"))?;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
        Message::builder()
            // Said outright: lettre would read it out of the headers again, by its own rules for addresses.
            .envelope(envelope)
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(&letter.subject)
            .date(at)
            .message_id(Some(format!("<{}@{}>", letter.id, self.domain)))
            // RFC 3834: nobody's out-of-office note should answer.
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".into()))
            .multipart(MultiPart::alternative().singlepart(part(ContentType::TEXT_PLAIN, &letter.text)).singlepart(part(ContentType::TEXT_HTML, &letter.html)))
            .map_err(|e| format!("the letter: {e}"))
    }
}

/// The address of an account. Our rules have read it, and bound it as a whole; lettre's own would refuse a local part of more
/// than 64 bytes, whose owner could then never reset a password.
fn recipient(address: &str) -> Result<Address, String> {
    let email = Email::parse(address).ok_or("the recipient's address is none")?;
    let (local, domain) = email.shown().rsplit_once('@').ok_or("the recipient's address is none")?;
    Ok(Address::new_dangerous(local, domain))
}

/// Longest line of a body, in bytes. RFC 5322 §2.1.1.
const LINE: usize = 998;

/// A part of a letter. Plain ASCII goes as it is: quoted-printable would cut the link, which people copy out of files and logs.
fn part(kind: ContentType, text: &str) -> SinglePart {
    let body = match text.is_ascii() && text.lines().all(|line| line.len() <= LINE) {
        true => {
            let lines: String = text.lines().flat_map(|line| [line, "\r\n"]).collect();
            Body::dangerous_pre_encoded(lines.into_bytes(), ContentTransferEncoding::SevenBit)
        }
        false => Body::new(text.to_string()),
    };
    SinglePart::builder().header(kind).body(body)
}

fn smtp(server: &Server) -> Result<AsyncSmtpTransport<Tokio1Executor>, lettre::transport::smtp::Error> {
    let Server { host, port, tls_at_once, loopback, login } = server;
    let builder = match (tls_at_once, loopback) {
        (true, _) => AsyncSmtpTransport::<Tokio1Executor>::relay(host)?,
        (false, true) => AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host),
        (false, false) => AsyncSmtpTransport::<Tokio1Executor>::starttls_relay(host)?,
    };
    let builder = builder.port(*port).timeout(Some(CONNECT)).pool_config(PoolConfig::new().max_size(CONNECTIONS));
    Ok(match login {
        Some((user, password)) => builder.credentials(Credentials::new(user.clone(), password.to_string())).build(),
        None => builder.build(),
    })
}

/// An error with its causes, each once.
fn told(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Writes one file, whole or not at all; a second delivery takes the place of the first. Readable by this user only.
fn write_file(folder: &Path, id: LetterId, message: &[u8]) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (whole, part) = (folder.join(format!("{id}.eml")), folder.join(format!(".{id}.part")));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(message)?;
    file.sync_all()?;
    std::fs::rename(part, whole)
}

/// What a test's transport has taken. A clone is the same bag.
#[derive(Clone, Default)]
pub struct Mailbag(Arc<Mutex<Bag>>);

#[derive(Default)]
struct Bag {
    letters: Vec<Letter>,
    refuses: bool,
}

impl Mailbag {
    fn take(&self, letter: &Letter) -> Result<(), String> {
        let mut bag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bag.refuses {
            return Err("the bag is closed".into());
        }
        bag.letters.push(letter.clone());
        Ok(())
    }

    /// Everything that has come so far, oldest first.
    pub fn letters(&self) -> Vec<Letter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).letters.clone()
    }

    /// Makes it take nothing, or take again.
    pub fn refuse(&self, refuses: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refuses = refuses;
    }
}
