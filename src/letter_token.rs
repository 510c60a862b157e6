//! The single-use links of letters: one table, one module, for every purpose.
//!
//! A token is 256 random bits. It is minted when its letter is rendered for delivery, so it never lies in the outbox, and
//! the database holds only its hash. It is bound to a purpose, a user and, where it proves one, an address. A use is one
//! statement whose row count is the answer, so of parallel uses exactly one wins (RACE-01).
//!
//! ```text
//!   mint ──▶ good ──spend──▶ gone        also gone: expired · a newer letter of its kind was asked for ·
//!                                        the password, the address or the standing of the account changed
//! ```
//!
//! A letter that is delivered twice has two tokens; both are good until one is used. The links that turn a thief out
//! ([`Purpose::EndSession`], [`Purpose::UndoEmailChange`]) outlive changes of password and address: a thief could otherwise
//! disarm them. Spent, expired and unknown tokens are told apart by nothing.

use std::time::Duration;

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::account::email::Email;
use crate::app::App;
use crate::db::{Fault, FromRow, Row, Tx};
use crate::error::{Error, Refusal};
use crate::event::letters::LetterKind;
use crate::event::outbox;
use crate::form::Form;
use crate::id::{LetterId, SessionId, UserId};
use crate::secret::{Token, TokenHash};

/// What a token is good for, and for nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Proves an address.
    VerifyEmail,
    /// Sets a new password.
    ResetPassword,
    /// Moves the account to the address that it was sent to.
    ChangeEmail,
    /// Brings back the address that it was sent to.
    UndoEmailChange,
    /// Ends the session that a letter told of.
    EndSession,
    /// Ends all sessions, after [`Purpose::EndSession`] was used.
    EndAllSessions,
}

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 3600;

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Purpose::VerifyEmail => "verify_email",
            Purpose::ResetPassword => "reset_password",
            Purpose::ChangeEmail => "change_email",
            Purpose::UndoEmailChange => "undo_email_change",
            Purpose::EndSession => "end_session",
            Purpose::EndAllSessions => "end_all_sessions",
        }
    }

    /// How long a token lives from its minting on. RST-05: each purpose has a time of its own.
    pub fn life(self) -> Duration {
        Duration::from_secs(match self {
            Purpose::VerifyEmail | Purpose::ChangeEmail => DAY,
            Purpose::ResetPassword | Purpose::EndAllSessions => 30 * MINUTE,
            Purpose::UndoEmailChange | Purpose::EndSession => 7 * DAY,
        })
    }
}

/// What dies when the password, the address or the standing of an account changes. RST-01, EML-02.
const SHORT_LIVED: [Purpose; 3] = [Purpose::VerifyEmail, Purpose::ResetPassword, Purpose::ChangeEmail];
/// Wrong passwords that may come with one token before it is worth nothing.
const MOST_TRIES: i64 = 5;

/// Takes a token out of a form. One that cannot be any is as good as one that is unknown.
pub fn take(form: &mut Form) -> Option<Option<Token>> {
    form.text("token").map(|text| Token::read(&Zeroizing::new(text)))
}

/// A token's row.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The letter that it came with.
    pub letter: LetterId,
    /// Whose.
    pub user: UserId,
    /// Which session it ends.
    pub session: Option<SessionId>,
    address: String,
}

impl FromRow for Grant {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        Ok(Grant { letter: row.get(0)?, user: row.get(1)?, session: row.get(2)?, address: row.get(3)? })
    }
}

impl Grant {
    /// For a letter that is about to be delivered to `address`.
    pub fn by_letter(letter: LetterId, user: UserId, session: Option<SessionId>, address: &str) -> Self {
        Grant { letter, user, session, address: address.into() }
    }

    /// For a page that follows upon the use of this one. It proves no more than this one did.
    pub fn next_step(&self, tx: &mut Tx) -> Self {
        Grant { letter: LetterId(tx.next_id()), user: self.user, session: None, address: self.address.clone() }
    }

    /// The address that it was sent to, and so proves.
    pub fn address(&self) -> Result<Email, Fault> {
        Email::parse(&self.address).ok_or_else(|| Fault::broken("a letter's token without an address"))
    }

    /// Whether it was sent to this address, byte for byte.
    pub fn proves(&self, address: &str) -> bool {
        self.address == address
    }
}

/// Makes a token good.
pub fn mint(tx: &mut Tx, purpose: Purpose, grant: &Grant) -> Result<Token, Fault> {
    let token = Token::mint(tx.chance());
    let (hash, until) = (token.hash(), tx.now().plus(purpose.life()));
    let Grant { letter, user, session, address } = grant;
    tx.run(
        "INSERT INTO letter_tokens (token_hash, letter_id, purpose, user_id, session_id, address, expires_at, tries)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)",
        (&hash, *letter, purpose.word(), *user, *session, address, until),
    )?;
    Ok(token)
}

/// Looks at a token without using it.
pub fn look(tx: &mut Tx, purpose: Purpose, token: &TokenHash) -> Result<Option<Grant>, Fault> {
    let now = tx.now();
    tx.row(
        "SELECT letter_id, user_id, session_id, address FROM letter_tokens
         WHERE token_hash = ?1 AND purpose = ?2 AND expires_at >= ?3 AND tries < ?4",
        (token, purpose.word(), now, MOST_TRIES),
    )
}

/// Refuses a token that is not good, before it costs a turn at the writer. Whether a good one still is, is for [`spend`] to say.
///
/// # Errors
/// `400 invalid_token`.
pub async fn refuse_unknown(app: &App, purpose: Purpose, token: TokenHash) -> Result<(), Error> {
    let found = app.db.glance(move |tx| look(tx, purpose, &token).map_err(Error::from)).await?;
    found.map(|_| ()).ok_or_else(|| Refusal::InvalidToken.into())
}

/// Notes that a password is about to be tried with a token; false when it has had its tries. Noted before the password is
/// checked, so that tries at the same moment count too.
pub fn note_try(tx: &mut Tx, purpose: Purpose, token: &TokenHash) -> Result<bool, Fault> {
    let now = tx.now();
    let noted = tx.run(
        "UPDATE letter_tokens SET tries = tries + 1 WHERE token_hash = ?1 AND purpose = ?2 AND expires_at >= ?3 AND tries < ?4",
        (token, purpose.word(), now, MOST_TRIES),
    )?;
    Ok(noted == 1)
}

/// Uses a token, and its letter's other one with it, also one that was still to come. `None`: it is not good, or somebody else was faster.
pub fn spend(tx: &mut Tx, purpose: Purpose, token: &TokenHash) -> Result<Option<Grant>, Fault> {
    let now = tx.now();
    // Its tries do not count here: the last of them may have been the right one.
    let grant: Option<Grant> = tx.row(
        "DELETE FROM letter_tokens WHERE token_hash = ?1 AND purpose = ?2 AND expires_at >= ?3 RETURNING letter_id, user_id, session_id, address",
        (token, purpose.word(), now),
    )?;
    if let Some(grant) = &grant {
        tx.run("DELETE FROM letter_tokens WHERE letter_id = ?1 AND purpose = ?2", (grant.letter, purpose.word()))?;
        // It has arrived, whatever the mail server said.
        tx.run("UPDATE outbox SET done_at = ?2 WHERE id = ?1 AND done_at IS NULL", (grant.letter, now))?;
    }
    Ok(grant)
}

/// Ends a user's outstanding tokens of a purpose.
pub fn kill(tx: &mut Tx, user: UserId, purpose: Purpose) -> Result<(), Fault> {
    tx.run("DELETE FROM letter_tokens WHERE user_id = ?1 AND purpose = ?2", (user, purpose.word())).map(|_| ())
}

/// Ends what must not outlive a change of the account's password, address or standing, also in letters that still wait.
pub fn kill_short_lived(tx: &mut Tx, user: UserId) -> Result<(), Fault> {
    for purpose in SHORT_LIVED {
        kill_with_letters(tx, user, purpose)?;
    }
    Ok(())
}

/// Ends a user's outstanding tokens of a purpose, also in letters that still wait.
pub fn kill_with_letters(tx: &mut Tx, user: UserId, purpose: Purpose) -> Result<(), Fault> {
    kill(tx, user, purpose)?;
    outbox::withdraw(tx, user, purpose, LetterId(Uuid::nil()))
}

/// Ends the links that went to addresses which the account no longer has, now that the true one is back: a thief who had moved
/// the account got letters about sign-ins, and could use their links to turn the owner out. Older ways back stay good.
pub fn kill_links_elsewhere(tx: &mut Tx, user: UserId, address: &Email) -> Result<(), Fault> {
    for purpose in [Purpose::EndSession, Purpose::EndAllSessions] {
        tx.run("DELETE FROM letter_tokens WHERE user_id = ?1 AND purpose = ?2 AND address <> ?3", (user, purpose.word(), address.shown()))?;
    }
    outbox::withdraw_elsewhere(tx, user, Purpose::EndSession, address)
}

/// Ends a change of address that was begun by one of these sessions, which are being turned out. EML-02.
pub fn kill_begun_by(tx: &mut Tx, user: UserId, sessions: &[SessionId]) -> Result<(), Fault> {
    let began: Vec<SessionId> = tx.rows(
        "SELECT session_id FROM letter_tokens WHERE user_id = ?1 AND purpose = ?2 AND session_id IS NOT NULL
         UNION ALL SELECT session_id FROM outbox WHERE user_id = ?1 AND kind = ?3 AND session_id IS NOT NULL AND done_at IS NULL",
        (user, Purpose::ChangeEmail.word(), LetterKind::ChangeEmail.word()),
    )?;
    match began.iter().any(|session| sessions.contains(session)) {
        true => kill_with_letters(tx, user, Purpose::ChangeEmail),
        false => Ok(()),
    }
}

/// Ends the ways back from changes of address that came after the one of `letter`: the oldest address wins.
pub fn kill_later_ways_back(tx: &mut Tx, user: UserId, letter: LetterId) -> Result<(), Fault> {
    tx.run("DELETE FROM letter_tokens WHERE user_id = ?1 AND purpose = ?2 AND letter_id > ?3", (user, Purpose::UndoEmailChange.word(), letter))?;
    outbox::withdraw(tx, user, Purpose::UndoEmailChange, letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Purpose; 6] =
        [Purpose::VerifyEmail, Purpose::ResetPassword, Purpose::ChangeEmail, Purpose::UndoEmailChange, Purpose::EndSession, Purpose::EndAllSessions];

    /// RST-05.
    #[test]
    fn each_purpose_has_a_time_of_its_own() {
        let minutes = ALL.map(|purpose| purpose.life().as_secs() / 60);
        assert_eq!(minutes, [24 * 60, 30, 24 * 60, 7 * 24 * 60, 7 * 24 * 60, 30]);
    }

    /// A token is good for what its row says; two purposes of one word would be one.
    #[test]
    fn each_purpose_has_a_word_of_its_own() {
        let words = ALL.map(Purpose::word);
        assert!(words.iter().enumerate().all(|(i, word)| !word.is_empty() && !words[..i].contains(word)), "{words:?}");
    }

    #[test]
    fn a_letter_proves_the_address_that_it_was_sent_to_byte_for_byte() {
        let grant = Grant::by_letter(LetterId(Uuid::nil()), UserId(Uuid::nil()), None, "Ana@example.com");
        assert!(grant.proves("Ana@example.com"));
        assert!(!grant.proves("ana@example.com") && !grant.proves("ben@example.com"));
    }
}
