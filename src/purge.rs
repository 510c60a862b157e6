//! What is old enough goes: in small chunks, so that nobody waits for the writer.

use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::config::Config;
use crate::cookie::DEVICE_DAYS;
use crate::db::{Db, Fault, WRITER_SHARE};
use crate::id::{EventId, floor};

/// The outbox gives a letter up after a day. What has left is kept for as long, since it counts against the next ones.
const LETTER_RETENTION: Duration = Duration::from_secs(48 * 3600);

/// A kind of row that grows old, and how a chunk of it goes. `?1` is the limit of its age, `?2` the size of the chunk, `?3` now.
struct Kind {
    name: &'static str,
    older_than: fn(&Config) -> Duration,
    sql: &'static str,
    age: Age,
    /// It takes sessions along that memory may still trust, should the clock have run ahead and come back.
    open_sessions: bool,
}

/// How a statement tells the age of a row.
#[derive(Clone, Copy)]
enum Age {
    /// By a column.
    Column,
    /// By its id.
    Id,
    /// By a column, and it needs to know now.
    ColumnAndNow,
}

/// Accounts whose address nobody has proved, and which should be free for its owner. VER-04. Whose letter never left was never asked;
/// whoever is signed in, or was within the time, is using the account (a session that was used within the time has ended within it, if
/// it has ended); and an administrator is somebody whom the operator knows.
macro_rules! unverified {
    () => {
        "u.email_verified = 0 AND u.created_at < ?1 AND u.role <> 'admin'
             AND u.verification_sent_at IS NOT NULL AND u.verification_sent_at < ?1
             AND NOT EXISTS (SELECT 1 FROM device_sessions AS s WHERE s.user_id = u.id AND s.ended_at IS NULL
                                 AND (s.last_active_at >= ?1 OR s.expires_at >= ?3))
             AND NOT EXISTS (SELECT 1 FROM device_sessions AS s WHERE s.user_id = u.id AND s.ended_at >= ?1 AND s.last_active_at >= ?1)"
    };
}

/// Retired tokens go with their session, by the foreign key. So would all of an account; but of what somebody could pile up there
/// by signing in all day, one statement must not take the whole.
const KINDS: [Kind; 12] = [
    Kind {
        name: "ended sessions",
        older_than: |config| config.ended_session_retention,
        sql: "DELETE FROM device_sessions WHERE id IN (SELECT id FROM device_sessions WHERE ended_at IS NOT NULL AND ended_at < ?1 LIMIT ?2)",
        age: Age::Column,
        open_sessions: false,
    },
    Kind {
        // Nobody came back with their token, so nobody was told; they have been dead since their deadline.
        name: "expired sessions",
        older_than: |config| config.ended_session_retention,
        sql: "DELETE FROM device_sessions WHERE id IN (SELECT id FROM device_sessions WHERE ended_at IS NULL AND expires_at < ?1 LIMIT ?2)",
        age: Age::Column,
        open_sessions: true,
    },
    Kind {
        name: "known IPs",
        older_than: |config| config.known_ip_retention,
        sql: "DELETE FROM known_ips WHERE (user_id, network) IN (SELECT user_id, network FROM known_ips WHERE last_seen_at < ?1 LIMIT ?2)",
        age: Age::Column,
        open_sessions: false,
    },
    Kind {
        // As long as browsers keep the cookie.
        name: "known devices",
        older_than: |config| config.known_ip_retention.max(Duration::from_secs(DEVICE_DAYS * 86_400)),
        sql: "DELETE FROM known_devices WHERE (user_id, device_hash) IN
              (SELECT user_id, device_hash FROM known_devices WHERE last_seen_at < ?1 LIMIT ?2)",
        age: Age::Column,
        open_sessions: false,
    },
    Kind {
        // UUIDv7: the id says when, so the primary key is the index.
        name: "events",
        older_than: |config| config.event_retention,
        sql: "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < ?1 LIMIT ?2)",
        age: Age::Id,
        open_sessions: false,
    },
    Kind {
        name: "letters",
        older_than: |_| LETTER_RETENTION,
        sql: "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE created_at < ?1 AND done_at IS NOT NULL LIMIT ?2)",
        age: Age::Column,
        open_sessions: false,
    },
    Kind {
        // They count no more; the next failure would begin anew.
        name: "counters of guesses",
        older_than: |_| Duration::ZERO,
        sql: "DELETE FROM guesses WHERE counter IN (SELECT counter FROM guesses WHERE forgotten_at < ?1 LIMIT ?2)",
        age: Age::Column,
        open_sessions: false,
    },
    Kind {
        name: "links of letters",
        older_than: |_| Duration::ZERO,
        sql: "DELETE FROM letter_tokens WHERE token_hash IN (SELECT token_hash FROM letter_tokens WHERE expires_at < ?1 LIMIT ?2)",
        age: Age::Column,
        open_sessions: false,
    },
    Kind {
        name: "sessions of unverified accounts",
        older_than: |config| config.unverified_retention,
        sql: concat!(
            "DELETE FROM device_sessions WHERE id IN
                 (SELECT own.id FROM users AS u JOIN device_sessions AS own ON own.user_id = u.id WHERE ",
            unverified!(),
            " LIMIT ?2)"
        ),
        age: Age::ColumnAndNow,
        open_sessions: true,
    },
    Kind {
        name: "known IPs of unverified accounts",
        older_than: |config| config.unverified_retention,
        sql: concat!(
            "DELETE FROM known_ips WHERE (user_id, network) IN
                 (SELECT own.user_id, own.network FROM users AS u JOIN known_ips AS own ON own.user_id = u.id WHERE ",
            unverified!(),
            " LIMIT ?2)"
        ),
        age: Age::ColumnAndNow,
        open_sessions: false,
    },
    Kind {
        name: "known devices of unverified accounts",
        older_than: |config| config.unverified_retention,
        sql: concat!(
            "DELETE FROM known_devices WHERE (user_id, device_hash) IN
                 (SELECT own.user_id, own.device_hash FROM users AS u JOIN known_devices AS own ON own.user_id = u.id WHERE ",
            unverified!(),
            " LIMIT ?2)"
        ),
        age: Age::ColumnAndNow,
        open_sessions: false,
    },
    Kind {
        name: "unverified accounts",
        older_than: |config| config.unverified_retention,
        sql: concat!("DELETE FROM users WHERE id IN (SELECT u.id FROM users AS u WHERE ", unverified!(), " LIMIT ?2)"),
        age: Age::ColumnAndNow,
        open_sessions: true,
    },
];

/// How many rows of each kind went.
pub type Purged = Vec<(&'static str, u64)>;

/// Deletes everything that is older than its retention. `progress` hears the kind and the count so far after each chunk.
pub async fn purge(db: &Db, config: &Config, now: Timestamp, mut progress: impl FnMut(&'static str, u64)) -> Result<Purged, Fault> {
    let mut purged = Vec::new();
    for kind in KINDS {
        let limit = now.minus((kind.older_than)(config));
        let (mut gone, mut chunk) = (0, FIRST_CHUNK);
        loop {
            let (deleted, took) = delete(db, &kind, limit, chunk, now).await?;
            gone += deleted;
            progress(kind.name, gone);
            if deleted < chunk as u64 {
                break;
            }
            chunk = next_chunk(chunk, took);
        }
        purged.push((kind.name, gone));
    }
    Ok(purged)
}

const FIRST_CHUNK: i64 = 100;
const MOST: i64 = 2000;

/// Half of the time that background work may hold the writer is aimed at: a disk is not always as fast as it just was.
fn next_chunk(chunk: i64, took: Duration) -> i64 {
    if took > WRITER_SHARE / 2 {
        (chunk / 2).max(1)
    } else if took < WRITER_SHARE / 8 {
        (chunk * 2).min(MOST)
    } else {
        chunk
    }
}

/// Deletes a chunk, and says how long the writer was held; waiting for it is nobody's loss.
async fn delete(db: &Db, kind: &Kind, limit: Timestamp, chunk: i64, now: Timestamp) -> Result<(u64, Duration), Fault> {
    let (sql, age, open_sessions) = (kind.sql, kind.age, kind.open_sessions);
    // Losing the newest of these in a power cut only means to delete them again.
    db.write_relaxed(move |tx| {
        let begun = Instant::now();
        let deleted = match age {
            Age::Id => tx.run(sql, (EventId(floor(limit)), chunk)),
            Age::Column => tx.run(sql, (limit, chunk)),
            Age::ColumnAndNow => tx.run(sql, (limit, chunk, now)),
        }?;
        if open_sessions && deleted > 0 {
            let live = tx.live().clone();
            tx.after_commit(move || live.distrust());
        }
        Ok((deleted, begun.elapsed()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_shrink_when_the_writer_is_held_too_long_and_grow_when_it_is_not() {
        assert_eq!(next_chunk(100, Duration::from_millis(30)), 50);
        assert_eq!(next_chunk(1, Duration::from_millis(500)), 1);
        assert_eq!(next_chunk(100, Duration::from_millis(10)), 100);
        assert_eq!(next_chunk(100, Duration::from_millis(1)), 200);
        assert_eq!(next_chunk(2000, Duration::from_millis(1)), 2000);
    }
}
