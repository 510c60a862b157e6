//! The one hot read: what a token is worth. It is asked for every request, so it takes no blocking thread and no
//! transaction, and those that ask together travel together: whoever comes while others are under way waits for the next
//! flight, so that the more there are, the less each costs.
//!
//! A flight begins after everybody on it has asked. So what was acknowledged before a request began is seen by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::{Lent, Raw, fault, in_own_words, within};
use crate::db::{Fault, FromRow, Rerun, Row};
use crate::device_sessions::{BY_TOKEN, Known};
use crate::secret::TokenHash;

/// Flights at once: while one is answered, another is filled.
const FLIGHTS: usize = 2;
/// Who comes when so many wait is turned away.
const MOST_WAITING: usize = 20_000;
/// Seats of one flight.
const SEATS: usize = 500;
/// How long a request waits for its answer, a lost connection and a new one included.
const TAKES: Duration = Duration::from_secs(4);
/// How long one flight may take.
const FLIGHT: Duration = Duration::from_secs(3);

/// What is known of each token. One row that cannot be read is the trouble of its own token only.
type AllKnown = HashMap<TokenHash, Result<Known, Fault>>;
type Answer = oneshot::Sender<Result<Known, Fault>>;

pub(super) struct LookUps {
    pool: Pool,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    waiting: Vec<(TokenHash, Answer)>,
    flights: usize,
}

impl LookUps {
    pub(super) fn over(pool: Pool) -> Arc<Self> {
        Arc::new(LookUps { pool, desk: Mutex::default() })
    }

    pub(super) async fn find(self: &Arc<Self>, token: &TokenHash) -> Result<Known, Fault> {
        let (answer, told) = oneshot::channel();
        if let Some(pilot) = self.queue(*token, answer)? {
            tokio::spawn(fly(pilot));
        }
        let gone = |_| Err(Fault::broken("a look-up was given up"));
        tokio::time::timeout(TAKES, async { told.await.unwrap_or_else(gone) }).await.unwrap_or_else(|_| Err(Fault::unavailable("it does not answer")))
    }

    /// Takes a place, unless too many wait; with a pilot when another flight may begin.
    fn queue(self: &Arc<Self>, token: TokenHash, answer: Answer) -> Result<Option<Pilot>, Fault> {
        let mut desk = self.desk();
        if desk.waiting.len() >= MOST_WAITING {
            desk.waiting.retain(|(_, answer)| !answer.is_closed());
            if desk.waiting.len() >= MOST_WAITING {
                return Err(Fault::unavailable("too many are waiting for it"));
            }
        }
        desk.waiting.push((token, answer));
        if desk.flights == FLIGHTS {
            return Ok(None);
        }
        desk.flights += 1;
        Ok(Some(Pilot { look_ups: self.clone(), on_duty: true }))
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who may fly. There are no more of them than flights, whatever becomes of one.
struct Pilot {
    look_ups: Arc<LookUps>,
    on_duty: bool,
}

impl Pilot {
    /// Whoever waits, up to the seats there are; none, and this pilot's work is over.
    fn board(&mut self) -> Vec<(TokenHash, Answer)> {
        let mut desk = self.look_ups.desk();
        // Under one lock with the look at who waits: who comes next brings a new pilot.
        if desk.waiting.is_empty() {
            desk.flights -= 1;
            self.on_duty = false;
        }
        let seats = desk.waiting.len().min(SEATS);
        desk.waiting.drain(..seats).collect()
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if self.on_duty {
            self.look_ups.desk().flights -= 1;
        }
    }
}

async fn fly(mut pilot: Pilot) {
    let mut lent = None;
    loop {
        let aboard = pilot.board();
        if aboard.is_empty() {
            lent.into_iter().for_each(Lent::give_back);
            return;
        }
        let tokens: Vec<TokenHash> = aboard.iter().map(|(token, _)| *token).collect();
        let known = within(FLIGHT, fetch(&pilot.look_ups.pool, &mut lent, &tokens)).await;
        if known.is_err() {
            lent = None;
        }
        for (token, answer) in aboard {
            let own = known.as_ref().map_err(Clone::clone).and_then(|known| known.get(&token).cloned().unwrap_or(Ok(Known::Nothing)));
            // Whoever went away needs no answer.
            let _ = answer.send(own);
        }
    }
}

/// Reads all at once. A connection that turns out to be dead is replaced once: a read can be asked again.
async fn fetch(pool: &Pool, lent: &mut Option<Lent>, tokens: &[TokenHash]) -> Result<AllKnown, Fault> {
    for _ in 0..2 {
        if lent.is_none() {
            *lent = Some(Lent::of(pool).await?);
        }
        let Some(client) = lent.as_ref() else { continue };
        match fetch_on(client, tokens).await {
            Err(fault) if fault.rerun == Some(Rerun::Lost) => *lent = None,
            done => return done,
        }
    }
    Err(Fault::unavailable("the connection was lost"))
}

async fn fetch_on(client: &Object, tokens: &[TokenHash]) -> Result<AllKnown, Fault> {
    // The statement asks for one token; here for many.
    let of_many = in_own_words(&BY_TOKEN.replace("= ?1", "= ANY(?1)"));
    let tokens: Vec<&[u8]> = tokens.iter().map(|token| token.0.as_slice()).collect();
    let statement = client.prepare_typed_cached(&of_many, &[Type::BYTEA_ARRAY]).await.map_err(fault)?;
    let rows = client.query(&statement, &[&tokens]).await.map_err(fault)?;
    let each = rows.iter().map(|row| Row(Raw::Postgres(row)));
    each.map(|row| Ok((row.get(0)?, Known::from_row(&row)))).collect()
}
