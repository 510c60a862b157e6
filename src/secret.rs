//! "Shown once" and "stored" are different types, and neither can be printed.
//!
//! A [`Token`] is the secret that a cookie carries: 256 bits from the operating system. The database and the memory
//! hold only its [`TokenHash`]. A token is found by looking its hash up, never by comparing secrets byte by byte, so
//! nothing about it leaks through time; and SHA-256 without a salt is enough, since there is nothing to guess.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::chance::Chance;

/// A bearer secret in clear. It exists between its minting and its `Set-Cookie`. In a box: whoever passes it on leaves no copy
/// of it behind, and there is one place to wipe.
#[derive(Clone)]
pub struct Token(Box<[u8; BYTES]>);

const BYTES: usize = 32;
/// Length of the written form: base64url without padding.
const WRITTEN: usize = 43;

impl Token {
    /// Draws a new one.
    pub fn mint(chance: &Chance) -> Self {
        let mut token = Token(Box::new([0; BYTES]));
        chance.fill(&mut *token.0);
        token
    }

    /// Reads the written form. Strict: one spelling per token, so a truncated, padded or re-encoded one is none.
    pub fn read(text: &str) -> Option<Self> {
        let mut token = Token(Box::new([0; BYTES]));
        decode(text, &mut token.0)?;
        Some(token)
    }

    /// Writes it for a cookie or a link. The only way out.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_slice()))
    }

    /// What is stored and looked up.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_slice()).into())
    }
}

fn decode(text: &str, bytes: &mut [u8; BYTES]) -> Option<()> {
    if text.len() != WRITTEN {
        return None;
    }
    let length = URL_SAFE_NO_PAD.decode_slice_unchecked(text, bytes).ok()?;
    (length == BYTES).then_some(())
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// SHA-256 of a token. Useless as a cookie, but still not for logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// Hashes the token that is written here, as strictly as [`Token::read`]. For whoever needs no more of it, as every request
    /// with a cookie does: nothing is allocated.
    pub fn of_written(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        decode(text, &mut bytes)?;
        Some(TokenHash(Sha256::digest(bytes.as_slice()).into()))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// The passwords that stand in the examples of our pages, and so in nobody's settings: everybody knows them.
const EXAMPLES: [&[u8]; 2] = [b"password", b"secret"];

/// What is wrong with a setting whose password was copied from an example.
pub const EXAMPLE: &str = "has the password of an example of ours, which everybody knows; allowed: one of its own";

/// Whether a password of the settings was copied from an example.
pub fn is_example(password: &[u8]) -> bool {
    EXAMPLES.iter().any(|example| password.eq_ignore_ascii_case(example))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_writing_and_reading() {
        let token = Token::mint(&Chance::seeded(1));
        let read = Token::read(&token.reveal()).map(|t| t.hash());
        assert_eq!((read, TokenHash::of_written(&token.reveal())), (Some(token.hash()), Some(token.hash())));
    }

    /// COOK-04: other spellings of a token are not the token.
    #[test]
    fn no_other_spelling_is_read() {
        let written = Token::mint(&Chance::seeded(2)).reveal().to_string();
        let cut = &written[..42];
        // The last character carries two bits that must be zero.
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let readable = alphabet.chars().filter(|c| Token::read(&format!("{cut}{c}")).is_some()).count();
        assert_eq!(readable, 16);
        for odd in [cut.to_string(), format!("{written}="), format!("{written}A"), format!(" {written}"), format!("\"{written}\"")] {
            assert!(Token::read(&odd).is_none() && TokenHash::of_written(&odd).is_none());
        }
    }

    /// Drawn at once on several threads, no two are the same, and no bit of them leans to one side.
    #[test]
    fn tokens_are_alike_in_nothing() {
        const EACH: usize = 5_000;
        let drawn = std::thread::scope(|threads| {
            let all: Vec<_> = (0..4).map(|_| threads.spawn(|| (0..EACH).map(|_| *Token::mint(&Chance::System).0).collect::<Vec<_>>())).collect();
            all.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        assert_eq!(drawn.iter().collect::<std::collections::HashSet<_>>().len(), 4 * EACH);
        for bit in 0..256 {
            let ones = drawn.iter().filter(|token| token[bit / 8] >> (bit % 8) & 1 == 1).count();
            // Ten standard deviations: once in 10^22 runs.
            assert!(ones.abs_diff(2 * EACH) < 707, "bit {bit} is set in {ones} of {}", 4 * EACH);
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let token = Token::mint(&Chance::seeded(3));
        assert_eq!(format!("{token:?} {:?}", token.hash()), "Token(…) TokenHash(…)");
    }
}
