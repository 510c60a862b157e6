//! Work that one instance does for all: whoever holds its lease.
//!
//! A lease is a row. It is taken or kept by one statement whose row count is the answer, and it is good for a while: its
//! holder renews it in time or is taken for dead, and then the next one who asks has it. Two instances whose clocks differ by
//! more than that while may both hold it for a moment, so what it guards must bear being done twice.

use std::time::Duration;

use uuid::Uuid;

use crate::db::{Db, Fault};

/// Takes the lease of a work for a while, or keeps it; false while somebody else holds it.
pub async fn take(db: &Db, work: &'static str, holder: Uuid, good_for: Duration) -> Result<bool, Fault> {
    // Losing the newest of these in a power cut means that it is taken again.
    let taken = db.write_relaxed(move |tx| {
        let now = tx.now();
        let until = now.plus(good_for);
        // A holder whose clock has stepped back since must not hold it until its old time has come.
        let too_far = until.plus(good_for);
        tx.run(
            "INSERT INTO leases (name, holder, leased_until) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET holder = ?2, leased_until = ?3
             WHERE leases.holder = ?2 OR leases.leased_until < ?4 OR leases.leased_until > ?5",
            (work, holder, until, now, too_far),
        )
    });
    Ok(taken.await? == 1)
}
