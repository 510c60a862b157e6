//! Chance, handed in: tokens and salts from the operating system, or from a seed in tests.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng, TryRng};

/// Where randomness comes from.
#[derive(Clone, Debug)]
pub enum Chance {
    /// The operating system's generator: the only source that may mint a secret in earnest.
    System,
    /// A seeded generator, for tests that want the same run twice.
    Seeded(Arc<Mutex<StdRng>>),
}

impl Chance {
    /// Makes a repeatable source for tests.
    pub fn seeded(seed: u64) -> Self {
        Chance::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Draws `N` random bytes.
    ///
    /// # Panics
    /// When the operating system has no randomness to give. A server that cannot draw must not issue tokens, and the
    /// panic is caught per request (`500`), so it fails closed.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0u8; N];
        self.fill(&mut out);
        out
    }

    /// Fills these bytes.
    ///
    /// # Panics
    /// As [`bytes`](Self::bytes).
    pub fn fill(&self, out: &mut [u8]) {
        match self {
            Chance::System => SysRng.try_fill_bytes(out).unwrap_or_else(|e| panic!("the operating system gave no randomness: {e}")),
            Chance::Seeded(rng) => {
                rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(out);
            }
        }
    }
}
