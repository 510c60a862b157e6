//! What goes on beside the requests: writing last-active back, watching the database file, delivering letters, purging.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::App;
use crate::clock::{Timestamp, millis};
use crate::config::Config;
use crate::db::{Arg, Db, Fault};
use crate::device_sessions::settle_chunk;
use crate::event::outbox;
use crate::id::SessionId;
use crate::lease;
use crate::live_sessions::Unwritten;
use crate::purge::purge;
use crate::secret::TokenHash;
use crate::session_security::write_back_allowance;

/// What another process writes counts here within this time; the contract allows a second.
const LOOK: Duration = Duration::from_millis(200);
/// Between two turns of the post, which wait for its bell themselves.
const POST: Duration = Duration::from_millis(10);
const PURGE: Duration = Duration::from_secs(60);
/// How long after its last purge an instance is still taken to be the one that purges.
pub const PURGE_LEASE: Duration = Duration::from_secs(90);
/// How long a request waits for its last-active to be written.
const PATIENCE: Duration = Duration::from_millis(250);
/// A correction of the clock that is smaller than this is drift, and revives nothing worth a look at every session.
const STEP: Duration = Duration::from_secs(1);
/// Rows in one transaction of the write-back: measured as the best of throughput, latency and size of the log.
const BATCH: usize = 200;

/// Starts the background tasks. They end when the set is dropped or aborted.
pub fn start(app: &App) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(every(write_back_interval(&app.config), app.clone(), "write-back of last-active", |app| async move { write_back_lagging(&app).await }));
    tasks.spawn(every(LOOK, app.clone(), "watch of the database", |app| async move { app.db.tend().await }));
    let seen = Arc::new(AtomicI64::new(app.clock.now().0));
    tasks.spawn(every(LOOK, app.clone(), "watch of the clock", move |app| watch_clock(app, seen.clone())));
    tasks.spawn(every(PURGE, app.clone(), "purge", |app| async move { purge_for_all(&app).await.map(|_| ()) }));
    tasks.spawn(every(PURGE, app.clone(), "forgetting of quiet sources", |app| async move {
        app.floods.forget_the_quiet();
        Ok(())
    }));
    tasks.spawn(every(POST, app.clone(), "delivery of letters", outbox::tend));
    tasks
}

/// Puts this thread behind those that answer requests.
pub fn at_lowest_priority() {
    if cfg!(target_os = "linux") {
        // Only Linux counts a thread's nice value on its own; where it is forbidden, the thread runs at normal priority.
        let _ = rustix::process::setpriority_process(None, 19);
    }
}

/// Does a deed at an interval, for ever. Its trouble is told once when it begins and once when it is over.
async fn every<F>(period: Duration, app: App, name: &'static str, deed: impl Fn(App) -> F)
where
    F: Future<Output = Result<(), Fault>>,
{
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut in_trouble = false;
    loop {
        ticks.tick().await;
        // A panic must not end the watch for good.
        let done = AssertUnwindSafe(deed(app.clone())).catch_unwind().await;
        match done.unwrap_or_else(|_| Err(Fault::broken("it panicked"))) {
            Ok(()) if in_trouble => tracing::info!("{name}: works again"),
            Err(fault) if !in_trouble => tracing::error!(error = %fault, "{name}: does not work; trying again"),
            _ => continue,
        }
        in_trouble = !in_trouble;
    }
}

/// Purges, if it is this instance that does; says whether it is.
pub async fn purge_for_all(app: &App) -> Result<bool, Fault> {
    let is_ours = lease::take(&app.db, "purge", app.instance, PURGE_LEASE).await?;
    if is_ours {
        purge(&app.db, &app.config, app.clock.now(), |_, _| {}).await?;
    }
    Ok(is_ours)
}

/// When the clock has stepped back since it was `seen`, marks as ended what was dead before the step: it revives nothing. Read at
/// each look, and so exact to a fraction of a second and the time of the marking; a session that was rejected is dead in any case.
///
/// # Errors
/// The database cannot be used; then the next look finds the step again.
pub async fn watch_clock(app: App, seen: Arc<AtomicI64>) -> Result<(), Fault> {
    let (before, now) = (Timestamp(seen.load(Ordering::Relaxed)), app.clock.now());
    if before.since(now) >= millis(STEP) {
        settle_all(&app.db, app.db.at_most_now(before).await?).await?;
        tracing::warn!(from = %before, to = %now, "the clock stepped back; what was past its deadline before has been ended");
    }
    seen.store(now.0, Ordering::Relaxed);
    Ok(())
}

/// Marks everything that was past a deadline at `moment` as ended.
pub async fn settle_all(db: &Db, moment: Timestamp) -> Result<(), Fault> {
    let mut after = Some(SessionId(uuid::Uuid::nil()));
    while let Some(last) = after {
        after = db.write(move |tx| settle_chunk(tx, moment, last)).await?;
    }
    Ok(())
}

/// A tenth of what the shortest idle timeout allows to be lost in a crash.
fn write_back_interval(config: &Config) -> Duration {
    let all = [config.timeouts, config.remember_timeouts].into_iter().chain(config.role_timeouts.values().copied());
    let shortest = all.map(|timeouts| write_back_allowance(timeouts.idle.map(millis))).min().unwrap_or(60_000);
    Duration::from_millis(u64::try_from(shortest / 10).unwrap_or(0).clamp(10, 1000))
}

/// Writes back the last-actives whose stored ones lag: what the background does all the time.
pub async fn write_back_lagging(app: &App) -> Result<(), Fault> {
    let _turn = app.write_back_turn.lock().await;
    write_back(&app.db, app.db.live().take_lagging()).await
}

/// Writes back a last-active that lags further than a crash may lose, before its request is answered. Those that wait
/// together are written together: whoever has the turn writes for all. Where the database does not answer, the request is
/// not held up for long, and the background goes on trying.
pub async fn write_back_now(app: &App, token: TokenHash) {
    let app = app.clone();
    // On a task of its own: a caller that goes away must not lose what was taken from the queue for the others.
    let written = tokio::spawn(async move {
        let _turn = app.write_back_turn.lock().await;
        if app.db.live().lags_too_far(&token) {
            // The background tells of the trouble, if it lasts.
            let _ = write_back(&app.db, app.db.live().take_lagging()).await;
        }
    });
    let _ = tokio::time::timeout(PATIENCE, written).await;
}

/// Writes back every last-active that the database does not know.
pub async fn write_back_all(app: &App) -> Result<(), Fault> {
    write_back(&app.db, app.db.live().unwritten()).await
}

/// Never an upsert, never backwards, and never to a session that has ended.
async fn write_back(db: &Db, all: Vec<Unwritten>) -> Result<(), Fault> {
    for (n, batch) in all.chunks(BATCH).enumerate() {
        let rows = batch.to_vec();
        let written = db
            .write_relaxed(move |tx| {
                let rows: Vec<Vec<Arg<'_>>> = rows.iter().map(|row| vec![row.last_active.into(), row.id.into()]).collect();
                tx.run_each("UPDATE device_sessions SET last_active_at = ?1 WHERE id = ?2 AND last_active_at < ?1 AND ended_at IS NULL", &rows)
            })
            .await;
        match written {
            Ok(_) => db.live().written(batch),
            Err(fault) => {
                db.live().not_written(&all[n * BATCH..]);
                return Err(fault);
            }
        }
    }
    Ok(())
}
