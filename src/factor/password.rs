//! Passwords: what a new one must be, and how one is kept.
//!
//! The rules are NIST SP 800-63B's and ASVS 6.2's: long enough, not among the common ones, not one's own address; no
//! composition rules, no truncation, all of Unicode. A password is NFC-normalised before it is counted or hashed, since the
//! same key presses reach us in different forms from different systems.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use crate::account::email::Email;
use crate::chance::Chance;
use crate::form::Form;

/// Longest password, in characters. All of it is hashed. PASS-01.
pub const MAX_CHARS: usize = 256;

/// Passwords that are guessed first: zxcvbn's list and Django's, those of eight characters and more, in lower case,
/// sorted by their bytes.
static COMMON: &str = include_str!("common_passwords.txt");

/// A password in clear, NFC-normalised. It cannot be printed, and is wiped when it goes.
pub struct Password(Zeroizing<String>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What is wrong with a new password: a stable code, and a sentence.
pub type Weakness = (&'static str, String);

impl Password {
    /// Takes what was typed, whatever it is: at sign-in a password that could never be one is just a wrong one.
    pub fn typed(text: String) -> Self {
        Password(composed(&Zeroizing::new(text)))
    }

    /// Takes a field of a form as it was typed.
    pub fn take(form: &mut Form, field: &str) -> Option<Self> {
        form.text(field).map(Password::typed)
    }

    /// Takes a field of a form as a new password: of the account with this address.
    pub fn take_new(form: &mut Form, field: &str, min_length: usize, email: Option<&Email>) -> Option<Self> {
        let password = Password::take(form, field)?;
        match password.weakness(min_length, email) {
            Some((code, message)) => form.refuse(field, code, message),
            None => Some(password),
        }
    }

    /// Judges it as a new password. NIST SP 800-63B §3.1.1.2, ASVS 6.2.1 to 6.2.9.
    pub fn weakness(&self, min_length: usize, email: Option<&Email>) -> Option<Weakness> {
        let length = self.0.chars().count();
        if length < min_length {
            return Some(("too_short", format!("Use at least {min_length} characters.")));
        }
        if length > MAX_CHARS {
            return Some(("too_long", format!("Use at most {MAX_CHARS} characters.")));
        }
        let folded = composed(&Zeroizing::new(self.0.to_lowercase()));
        if is_common(&folded) {
            return Some(("too_common", "This password is among those that are guessed first. Choose another.".into()));
        }
        if email.is_some_and(|email| email.is_spelled(&folded)) {
            return Some(("too_common", "This is your e-mail address. Choose another password.".into()));
        }
        None
    }
}

/// The NFC form of a secret, in a buffer that never grows: growing would leave a copy behind that nobody wipes.
fn composed(text: &str) -> Zeroizing<String> {
    let mut composed = Zeroizing::new(String::with_capacity(NFC_GROWS * text.len()));
    composed.extend(text.nfc());
    composed
}

/// How many times as long as a text, in bytes, its NFC form can be. Unicode Standard Annex #15.
const NFC_GROWS: usize = 3;

/// The list is sorted by bytes: a binary search over lines needs no table in memory.
fn is_common(folded: &str) -> bool {
    let (mut low, mut high) = (0, COMMON.len());
    while low < high {
        let middle = (low + high) / 2;
        let start = COMMON.as_bytes()[..middle].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let end = COMMON.as_bytes()[start..].iter().position(|byte| *byte == b'\n').map_or(COMMON.len(), |at| start + at);
        match COMMON.as_bytes()[start..end].cmp(folded.as_bytes()) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => low = end + 1,
            std::cmp::Ordering::Greater => high = start,
        }
    }
    false
}

/// What one hash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub iterations: u32,
}

impl Cost {
    fn passes_over_memory(self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.iterations)
    }

    /// What is left to do, for a check at this cost, to have cost as much as one at `full`; `None` when nothing is.
    pub fn short_of(self, full: Cost) -> Option<Cost> {
        let missing = full.passes_over_memory().checked_sub(self.passes_over_memory())?;
        let memory_kib = u32::try_from(missing / u64::from(full.iterations)).ok()?;
        (memory_kib >= 8).then_some(Cost { memory_kib, ..full })
    }
}

/// A stored hash, in the PHC string format: `$argon2id$v=19$m=…,t=…,p=1$salt$hash`.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// The parts of a stored hash.
struct Parsed {
    cost: Cost,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// The memory that hashes are computed in; kept by a thread from one to the next.
#[derive(Default)]
pub struct Memory(Vec<Block>);

const HASH_BYTES: usize = 32;

impl PasswordHash {
    /// Takes what the database holds.
    pub fn stored(text: String) -> Self {
        PasswordHash(text)
    }

    /// What the database is to hold.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Hashes a password with a new salt. Takes milliseconds of a core: only on the hashing threads.
    ///
    /// # Errors
    /// A cost that Argon2 refuses, which the settings rule out.
    pub fn of(password: &Password, cost: Cost, chance: &Chance, memory: &mut Memory) -> Result<Self, argon2::Error> {
        let salt: [u8; 16] = chance.bytes();
        let mut hash = [0u8; HASH_BYTES];
        fill(password, cost, &salt, &mut hash, memory)?;
        let Cost { memory_kib, iterations } = cost;
        let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
        Ok(PasswordHash(format!("$argon2id$v=19$m={memory_kib},t={iterations},p=1${salt}${hash}")))
    }

    /// A hash that no password has, but that takes as long to check: for accounts that do not exist.
    pub fn decoy(cost: Cost, chance: &Chance) -> Self {
        let (salt, hash): ([u8; 16], [u8; HASH_BYTES]) = (chance.bytes(), chance.bytes());
        let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
        PasswordHash(format!("$argon2id$v=19$m={},t={},p=1${salt}${hash}", cost.memory_kib, cost.iterations))
    }

    /// Checks a password. A stored text that is no Argon2id hash fits no password.
    pub fn fits(&self, password: &Password, memory: &mut Memory) -> bool {
        let Some(parsed) = self.parse() else { return false };
        let mut hash = [0u8; HASH_BYTES];
        fill(password, parsed.cost, &parsed.salt, &mut hash, memory).is_ok() && bool::from(hash.as_slice().ct_eq(&parsed.hash))
    }

    /// What it was made at; `None` if it is no hash of ours.
    pub fn cost(&self) -> Option<Cost> {
        self.parse().map(|parsed| parsed.cost)
    }

    /// Whether it was made at less cost than today's.
    pub fn is_weaker_than(&self, today: Cost) -> bool {
        self.cost().is_none_or(|cost| cost.memory_kib < today.memory_kib || cost.iterations < today.iterations)
    }

    /// Does the work of a check, for nothing.
    pub fn go_through_the_motions(password: &Password, cost: Cost, memory: &mut Memory) {
        let _ = fill(password, cost, &[0; 16], &mut [0; HASH_BYTES], memory);
    }

    fn parse(&self) -> Option<Parsed> {
        let mut parts = self.0.strip_prefix("$argon2id$v=19$")?.split('$');
        let (cost, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
        let mut numbers = cost.split(',').map(|part| part.get(2..).and_then(|number| number.parse::<u32>().ok()));
        let (memory_kib, iterations, lanes) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let parsed = Parsed { cost: Cost { memory_kib, iterations }, salt: STANDARD_NO_PAD.decode(salt).ok()?, hash: STANDARD_NO_PAD.decode(hash).ok()? };
        (lanes == 1 && parts.next().is_none() && parsed.hash.len() == HASH_BYTES).then_some(parsed)
    }
}

fn fill(password: &Password, cost: Cost, salt: &[u8], out: &mut [u8], Memory(blocks): &mut Memory) -> Result<(), argon2::Error> {
    let params = Params::new(cost.memory_kib, cost.iterations, 1, Some(HASH_BYTES))?;
    let needed = params.block_count();
    if blocks.len() < needed {
        blocks.resize(needed, Block::default());
    }
    let blocks = &mut blocks[..needed];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(password.0.as_bytes(), salt, out, &mut *blocks)?;
    if cost.iterations == 1 {
        // After one pass the first blocks are what the password alone makes of them: a guess could be checked against them for
        // next to nothing. A second pass leaves none that took less than the whole first to make.
        blocks.fill(Block::default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 8, iterations: 1 };

    fn code(text: &str) -> &'static str {
        let email = Email::parse("Ana.Lima@Example.com").expect("an address");
        Password::typed(text.into()).weakness(8, Some(&email)).map_or("fine", |(code, _)| code)
    }

    #[test]
    fn a_new_password_is_long_enough_uncommon_and_not_ones_own_address() {
        assert_eq!(code("short"), "too_short");
        assert_eq!(code("ééééééé"), "too_short");
        assert_eq!(code(&"x".repeat(257)), "too_long");
        assert_eq!(code("password"), "too_common");
        assert_eq!(code("PassWord1"), "too_common");
        assert_eq!(code("ANA.LIMA@example.COM"), "too_common");
        assert_eq!(code("ana.lima"), "too_common");
        let email = Email::parse("longname@B\u{fc}cher.example").expect("an address");
        assert!(Password::typed("Longname@b\u{fc}cher.example".into()).weakness(8, Some(&email)).is_some());
        assert_eq!(code("ana.lima and more"), "fine");
        assert_eq!(code("пароль-из-слов"), "fine");
        assert_eq!(code("a b c d e f"), "fine");
    }

    #[test]
    fn the_list_is_sorted_and_every_entry_is_found() {
        let lines: Vec<&str> = COMMON.lines().collect();
        assert!(lines.len() > 16_000 && lines.windows(2).all(|pair| pair[0].as_bytes() < pair[1].as_bytes()));
        assert!(lines.iter().all(|line| is_common(line) && line.chars().count() >= 8));
        assert!(!is_common("correct horse battery staple") && !is_common("") && !is_common("zzzzzzzzzzzzz9z"));
    }

    #[test]
    fn a_single_pass_leaves_nothing_in_memory_that_a_guess_could_be_checked_against() {
        let mut memory = Memory::default();
        PasswordHash::of(&Password::typed("correct horse".into()), CHEAP, &Chance::seeded(1), &mut memory).expect("hashes");
        assert!(memory.0.iter().all(|block| block.as_ref().iter().all(|word| *word == 0)));
    }

    /// PASS-01: nothing is cut off, not at 72 bytes, not at a NUL.
    #[test]
    fn every_byte_of_a_password_counts() {
        let mut memory = Memory::default();
        let long = "x".repeat(100);
        let cases = [(format!("{long}a"), format!("{long}b")), (long.clone(), "x".repeat(72)), ("abc\0defgh".into(), "abc".into())];
        for (right, wrong) in cases {
            let hash = PasswordHash::of(&Password::typed(right.clone()), CHEAP, &Chance::seeded(1), &mut memory).expect("hashes");
            assert!(hash.fits(&Password::typed(right), &mut memory));
            assert!(!hash.fits(&Password::typed(wrong), &mut memory));
        }
    }

    #[test]
    fn two_forms_of_one_text_are_one_password() {
        let mut memory = Memory::default();
        let hash = PasswordHash::of(&Password::typed("Ame\u{301}lie-1".into()), CHEAP, &Chance::seeded(1), &mut memory).expect("hashes");
        assert!(hash.fits(&Password::typed("Am\u{e9}lie-1".into()), &mut memory));
    }

    #[test]
    fn composing_a_password_never_moves_it() {
        // All that lies beyond is private or unassigned, and stays as it is.
        for c in '\0'..'\u{30000}' {
            let text = c.to_string();
            assert!(text.nfc().map(char::len_utf8).sum::<usize>() <= NFC_GROWS * text.len(), "{c:?}");
        }
        let longest = "\u{1d160}".repeat(64);
        assert_eq!(composed(&longest).capacity(), NFC_GROWS * longest.len());
    }

    #[test]
    fn a_hash_is_argon2id_in_the_phc_format() {
        let mut memory = Memory::default();
        let password = Password::typed("a good password".into());
        let hash = PasswordHash::of(&password, CHEAP, &Chance::seeded(1), &mut memory).expect("hashes");
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=8,t=1,p=1$"));
        assert_eq!(hash.parse().map(|parsed| (parsed.salt.len(), parsed.hash.len())), Some((16, 32)));
        assert!(hash.is_weaker_than(Cost { iterations: 2, ..CHEAP }) && !hash.is_weaker_than(CHEAP));
        for odd in ["", "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA", "$argon2id$v=19$m=8,t=1$x$y", "plain"] {
            assert!(!PasswordHash::stored(odd.into()).fits(&password, &mut memory), "{odd}");
        }
    }

    #[test]
    fn a_cheaper_check_and_what_it_is_short_of_cost_as_much_as_a_full_one() {
        let full = Cost { memory_kib: 19_456, iterations: 2 };
        let cheap = Cost { memory_kib: 4096, iterations: 1 };
        let rest = cheap.short_of(full).expect("it is cheaper");
        assert_eq!(cheap.passes_over_memory() + rest.passes_over_memory(), full.passes_over_memory());
        assert_eq!(full.short_of(full), None);
        assert_eq!(full.short_of(cheap), None);
    }

    #[test]
    fn memory_is_reused_between_costs() {
        let mut memory = Memory::default();
        let password = Password::typed("a good password".into());
        let hashes: Vec<_> = [64, 8, 32]
            .into_iter()
            .map(|memory_kib| PasswordHash::of(&password, Cost { memory_kib, iterations: 1 }, &Chance::seeded(1), &mut memory).expect("hashes"))
            .collect();
        for hash in &hashes {
            assert!(hash.fits(&password, &mut memory) && hash.fits(&password, &mut Memory::default()));
        }
    }
}
