//! Typed ids: a session's id cannot be passed where a user's belongs.
//!
//! All are UUIDv7: they sort by creation, which is what the lists page by, and they are not secret.

use std::fmt;

use serde::{Serialize, Serializer};
use uuid::{ContextV7, NoContext, Uuid};

use crate::clock::Timestamp;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Reads the hyphenated form, the only one that this API writes; anything else is no id.
            pub fn parse(text: &str) -> Option<Self> {
                if text.len() != 36 { return None; }
                Uuid::try_parse(text).ok().map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> { to.collect_str(&self.0) }
        }
    )* };
}

id! {
    /// Names an account.
    UserId;
    /// Names a device session. Knowing it gives nothing: the cookie holds another value.
    SessionId;
    /// Names an event of the audit log.
    EventId;
    /// Names a letter that waits in the outbox.
    LetterId;
}

/// Mints UUIDv7s that rise within one millisecond too, so that "newest first" is exact on one instance.
#[derive(Debug, Default)]
pub struct Mint(std::sync::Mutex<ContextV7>);

impl Mint {
    /// Makes the next id for this moment.
    pub fn next(&self, now: Timestamp) -> Uuid {
        let ms = u64::try_from(now.0).unwrap_or(0);
        let context = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let nanos = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
        Uuid::new_v7(uuid::Timestamp::from_unix(&*context, ms / 1000, nanos))
    }
}

/// The smallest UUIDv7 of a moment: ids below it are older. Lets "older than" use the primary key.
pub fn floor(at: Timestamp) -> Uuid {
    let ms = u64::try_from(at.0).unwrap_or(0);
    let nanos = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
    let mut bytes = *Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, ms / 1000, nanos)).as_bytes();
    bytes[6..].fill(0);
    Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_millisecond_rise() {
        let mint = Mint::default();
        let ids: Vec<Uuid> = (0..1000).map(|_| mint.next(Timestamp(1_795_415_768_123))).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn the_floor_of_a_moment_parts_older_from_newer() {
        let mint = Mint::default();
        let before = mint.next(Timestamp(1_000_000));
        let after = mint.next(Timestamp(1_000_001));
        assert!(before < floor(Timestamp(1_000_001)));
        assert!(floor(Timestamp(1_000_001)) < after);
    }

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        let id = "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11";
        assert!(UserId::parse(id).is_some());
        for odd in ["", "1", "{01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a11}", "01938f6e6b7a7c3c8a560f0c6f6f7a11", "01938f6e-6b7a-7c3c-8a56-0f0c6f6f7a1g"] {
            assert!(UserId::parse(odd).is_none(), "{odd}");
        }
    }
}
