//! The outbox: letters that were promised in the transaction of their cause, and how they get out.
//!
//! ```text
//!   posted ──claim (lease)──▶ being sent ──▶ done
//!     ▲                           │ no              also done: withdrawn, since what its link was for is over;
//!     └──── later, and later ─────┘                 given up after 24 hours, with an event
//! ```
//!
//! A letter is claimed by one statement that gives it a lease, so several instances deliver beside each other. Whoever dies
//! with a lease in hand loses it after two minutes, and the letter goes out again: at least once, with the same `Message-ID`.
//! The number of the attempt is the proof of the lease: an instance that comes back late marks nothing.
//!
//! No request waits for any of this. What an attacker tries: to fill somebody's mailbox (so many letters of a kind an hour),
//! to learn from an answer's time whether an account exists (a request only inserts a row), to use a link from a letter
//! that waited while the password was changed (its token is minted at delivery, and the letter is withdrawn).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::letters::{LetterKind, To};
use super::{Event, Recorded, Scene, record};
use crate::account::email::Email;
use crate::account::{self, User};
use crate::app::App;
use crate::clock::{Timestamp, millis};
use crate::db::{Arg, Fault, FromRow, Row, Tx};
use crate::id::{EventId, LetterId, SessionId, UserId};
use crate::letter_token::{self, Grant, Purpose};
use crate::mail::Letter;
use crate::secret::Token;
use crate::serve::Running;

const HOUR: Duration = Duration::from_secs(3600);
/// Letters that found no way out within a day would only confuse.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Longer than any attempt may take.
const LEASE: Duration = Duration::from_secs(120);
/// Letters that are on their way at the same time.
const AT_ONCE: i64 = 8;
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = HOUR;

/// Puts a letter into the outbox, unless its recipient has had enough of the kind. A link in it takes the place of older ones.
///
/// However many came before: when the links of all of them have had their time, one more is written. Else whoever asks for another
/// one's new passwords could see to it that there is no good link for half of each hour.
pub fn post(tx: &mut Tx, event: EventId, user: UserId, session: Option<SessionId>, kind: LetterKind, to: &To) -> Result<(), Fault> {
    let (id, now) = (LetterId(tx.next_id()), tx.now());
    let (most, within) = kind.most();
    let life = kind.purpose().map_or(within, |purpose| purpose.life().min(within));
    let (shown, key) = match to {
        To::Owner => (None, None),
        To::Address(email) => (Some(email.shown()), Some(email.canonical())),
    };
    let posted = tx.run(
        "INSERT INTO outbox (id, event_id, kind, user_id, session_id, due_at, leased_until, attempts, recipient, recipient_key, created_at)
         SELECT ?1, ?2, ?3, u.id, ?5, ?6, 0, 0, COALESCE(?7, u.email), COALESCE(?8, u.email_canonical), ?6 FROM users AS u
         WHERE u.id = ?4
             AND ((SELECT count(*) FROM outbox AS o
                   WHERE o.recipient_key = COALESCE(?8, u.email_canonical) AND o.kind = ?3 AND o.created_at > ?9) < ?10
                  OR NOT EXISTS (SELECT 1 FROM outbox AS o
                                 WHERE o.recipient_key = COALESCE(?8, u.email_canonical) AND o.kind = ?3 AND o.created_at > ?11))",
        vec![
            id.into(),
            event.into(),
            kind.word().into(),
            user.into(),
            session.into(),
            now.into(),
            shown.into(),
            key.into(),
            now.minus(within).into(),
            most.into(),
            now.minus(life).into(),
        ],
    )?;
    if posted == 0 {
        tx.after_commit(move || tracing::warn!(letter = kind.word(), %user, "not written: its recipient has had enough of the kind for now"));
        return Ok(());
    }
    if let Some(purpose) = kind.replaces_older() {
        letter_token::kill(tx, user, purpose)?;
        tx.run("UPDATE outbox SET done_at = ?4 WHERE user_id = ?1 AND kind = ?2 AND id <> ?3 AND done_at IS NULL", (user, kind.word(), id, now))?;
    }
    tx.ring_post_bell();
    Ok(())
}

/// Takes back the waiting letters of a user, posted after `after`, whose links are for this purpose.
pub fn withdraw(tx: &mut Tx, user: UserId, purpose: Purpose, after: LetterId) -> Result<(), Fault> {
    let now = tx.now();
    for kind in LetterKind::ALL.into_iter().filter(|kind| kind.purpose() == Some(purpose)) {
        tx.run("UPDATE outbox SET done_at = ?4 WHERE user_id = ?1 AND kind = ?2 AND id > ?3 AND done_at IS NULL", (user, kind.word(), after, now))?;
    }
    Ok(())
}

/// Takes back the waiting letters of a user with links for this purpose that are to go to another address than this one.
pub fn withdraw_elsewhere(tx: &mut Tx, user: UserId, purpose: Purpose, address: &Email) -> Result<(), Fault> {
    let now = tx.now();
    for kind in LetterKind::ALL.into_iter().filter(|kind| kind.purpose() == Some(purpose)) {
        tx.run(
            "UPDATE outbox SET done_at = ?4 WHERE user_id = ?1 AND kind = ?2 AND recipient <> ?3 AND done_at IS NULL",
            (user, kind.word(), address.shown(), now),
        )?;
    }
    Ok(())
}

/// A letter that this instance is to deliver now, with all that it tells.
pub struct Errand {
    /// Its id, which names it in `Message-ID` too.
    pub id: LetterId,
    /// What it is.
    pub kind: LetterKind,
    /// Whom it goes to.
    pub recipient: String,
    /// Whose account it is about.
    pub user: User,
    /// What it tells of.
    pub event: Recorded,
    /// The secret of its link.
    pub token: Option<Token>,
    /// The proof of the lease.
    lease: Lease,
}

#[derive(Clone, Copy)]
struct Lease {
    id: LetterId,
    kind: LetterKind,
    user: UserId,
    attempt: i64,
    posted_at: Timestamp,
}

/// Delivers all letters that are due, and counts those that left. Once the post is closed it begins no more.
///
/// # Errors
/// The database cannot be used. A transport that fails is no error: the letter is put off.
pub async fn deliver_due(app: &App) -> Result<usize, Fault> {
    let (mut left, mut trouble) = (0, None);
    // Each on a task of its own: one that has been given the writer's turn uses it, whatever this loop waits for.
    let mut under_way = JoinSet::new();
    loop {
        // A slow letter holds up nobody else's: its place alone is taken.
        let room = AT_ONCE - i64::try_from(under_way.len()).unwrap_or(AT_ONCE);
        // A stop waits for what has been claimed.
        let claiming = app.posting.begin();
        // Most looks find nothing, and need no turn at the writer.
        while room > 0 && trouble.is_none() && !app.post_closed.load(Ordering::SeqCst) && app.db.glance(something_is_due).await? {
            match app.db.write(move |tx| claim(tx, room)).await {
                // What was due was over: there may be more.
                Ok(errands) if errands.is_empty() => continue,
                Ok(errands) => errands.into_iter().for_each(|errand| drop(under_way.spawn(deliver(app.clone(), errand, app.posting.begin())))),
                Err(fault) => trouble = Some(fault),
            }
            break;
        }
        drop(claiming);
        if under_way.is_empty() {
            return trouble.map_or(Ok(left), Err);
        }
        tokio::select! {
            Some(done) = under_way.join_next() => match done {
                Ok(Ok(was_sent)) => left += usize::from(was_sent),
                // Those under way are finished all the same.
                Ok(Err(fault)) => trouble = Some(fault),
                Err(e) => trouble = Some(Fault::broken(format!("a delivery panicked: {e}"))),
            },
            () = app.db.post_bell() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Delivers one letter, as long as somebody who stops the server waits for those under way.
async fn deliver(app: App, errand: Errand, _posting: Running) -> Result<bool, Fault> {
    let lease = errand.lease;
    let trouble = match attempt(&app, &errand).await {
        Ok(()) => {
            let leaves = app.mail.leaves();
            app.db.write(move |tx| mark_sent(tx, lease, leaves)).await?;
            // Without its kind: whoever searches the log for an event finds the event alone.
            tracing::info!(user = %lease.user, letter = %lease.id, "sent");
            return Ok(true);
        }
        Err(trouble) => trouble,
    };
    tracing::warn!(letter = lease.kind.word(), user = %lease.user, id = %lease.id, attempt = lease.attempt, trouble, "a letter could not be sent");
    app.db.write(move |tx| put_off(tx, lease)).await?;
    Ok(false)
}

/// Renders the letter and hands it over.
async fn attempt(app: &App, errand: &Errand) -> Result<(), String> {
    let letter: Letter = app.templates.letter(errand, &app.config)?;
    app.mail.send(&letter, app.clock.now()).await
}

fn something_is_due(tx: &mut Tx) -> Result<bool, Fault> {
    let now = tx.now();
    let due: Option<i64> = tx.row("SELECT 1 FROM outbox WHERE done_at IS NULL AND due_at <= ?1 AND leased_until <= ?1 LIMIT 1", (now,))?;
    Ok(due.is_some())
}

/// A row of the outbox, as claimed.
struct Claimed {
    lease: Lease,
    event: EventId,
    session: Option<SessionId>,
    recipient: String,
}

impl FromRow for Claimed {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        let kind: String = row.get(2)?;
        let lease = Lease { id: row.get(0)?, kind: LetterKind::read(&kind)?, user: row.get(3)?, attempt: row.get(6)?, posted_at: row.get(7)? };
        Ok(Claimed { lease, event: row.get(1)?, session: row.get(4)?, recipient: row.get(5)? })
    }
}

/// Takes letters on lease, and mints the tokens of their links. What is over or too old is done with here.
fn claim(tx: &mut Tx, most: i64) -> Result<Vec<Errand>, Fault> {
    let now = tx.now();
    let claimed: Vec<Claimed> = tx.rows(
        "UPDATE outbox SET leased_until = ?2, attempts = attempts + 1
         WHERE id IN (SELECT id FROM outbox WHERE done_at IS NULL AND due_at <= ?1 AND leased_until <= ?1 ORDER BY due_at, id LIMIT ?3)
             AND done_at IS NULL AND leased_until <= ?1
         RETURNING id, event_id, kind, user_id, session_id, recipient, attempts, created_at",
        (now, now.plus(LEASE), most),
    )?;
    let mut errands = Vec::new();
    for Claimed { lease, event, session, recipient } in claimed {
        if now.since(lease.posted_at) > millis(PATIENCE) {
            give_up(tx, lease)?;
            continue;
        }
        let (user, event) = (account::by_id(tx, lease.user)?, super::by_id(tx, event)?);
        let (Some(user), Some(event)) = (user, event) else {
            finish(tx, lease)?;
            continue;
        };
        if lease.kind.is_pointless(&user) {
            finish(tx, lease)?;
            continue;
        }
        let grant = Grant::by_letter(lease.id, lease.user, session, &recipient);
        let token = lease.kind.purpose().map(|purpose| letter_token::mint(tx, purpose, &grant)).transpose()?;
        errands.push(Errand { id: lease.id, kind: lease.kind, recipient, user, event, token, lease });
    }
    Ok(errands)
}

/// Marks a letter as done, if the lease still holds.
fn finish(tx: &mut Tx, lease: Lease) -> Result<bool, Fault> {
    let now = tx.now();
    let done = tx.run("UPDATE outbox SET done_at = ?3 WHERE id = ?1 AND attempts = ?2 AND done_at IS NULL", (lease.id, lease.attempt, now))?;
    Ok(done == 1)
}

fn mark_sent(tx: &mut Tx, lease: Lease, leaves: bool) -> Result<(), Fault> {
    finish(tx, lease)?;
    if lease.kind == LetterKind::VerifyEmail && leaves {
        let now = tx.now();
        tx.run("UPDATE users SET verification_sent_at = ?2 WHERE id = ?1 AND verification_sent_at IS NULL", (lease.user, now))?;
    }
    Ok(())
}

/// Puts a letter off until later, or for good.
fn put_off(tx: &mut Tx, lease: Lease) -> Result<(), Fault> {
    let now = tx.now();
    let later = now.plus(wait_after(lease.attempt, u32::from_be_bytes(tx.chance().bytes())));
    if later.since(lease.posted_at) > millis(PATIENCE) {
        return give_up(tx, lease);
    }
    let args: Vec<Arg<'_>> = vec![lease.id.into(), lease.attempt.into(), later.into()];
    tx.run("UPDATE outbox SET due_at = ?3, leased_until = 0 WHERE id = ?1 AND attempts = ?2 AND done_at IS NULL", args).map(|_| ())
}

fn give_up(tx: &mut Tx, lease: Lease) -> Result<(), Fault> {
    if finish(tx, lease)? {
        record(tx, Scene::to(lease.user), Event::LetterFailed { letter: lease.kind, attempts: lease.attempt })?;
    }
    Ok(())
}

/// How long to wait after so many attempts: twice as long each time, up to an hour, less a random part of up to a half, so that
/// letters which failed together do not come back together.
fn wait_after(attempt: i64, chance: u32) -> Duration {
    let doublings = u32::try_from((attempt - 1).clamp(0, 16)).unwrap_or(16);
    let whole = (FIRST_WAIT * 2u32.pow(doublings)).min(LONGEST_WAIT);
    whole - (whole / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

/// What keeps the outbox moving: it is rung at by each letter of this process, and looks by itself at those of others.
pub async fn tend(app: App) -> Result<(), Fault> {
    let _ = tokio::time::timeout(LOOK, app.db.post_bell()).await;
    deliver_due(&app).await.map(|_| ())
}

/// How often the outbox is looked at when nothing rings.
const LOOK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_an_hour_and_lose_up_to_a_half_by_chance() {
        let longest: Vec<u64> = [1, 2, 3, 9, 10, 1000].map(|attempt| wait_after(attempt, 0).as_secs()).into();
        assert_eq!(longest, [10, 20, 40, 2560, 3600, 3600]);
        assert_eq!(wait_after(1, u32::MAX), Duration::from_secs(5));
        assert_eq!(wait_after(i64::MAX, u32::MAX), Duration::from_secs(1800));
    }
}
