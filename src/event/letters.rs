//! Which letters there are, what each is for, and when one is pointless.

use std::time::Duration;

use crate::account::User;
use crate::account::email::Email;
use crate::db::Fault;
use crate::letter_token::Purpose;

/// Whom a letter goes to.
#[derive(Clone, Debug)]
pub enum To {
    /// The account's address, as it is at the moment of the cause.
    Owner,
    /// This one.
    Address(Email),
}

macro_rules! letters { ($($(#[$doc:meta])* $name:ident = $word:literal from $template:literal;)*) => {
    /// A kind of letter.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum LetterKind { $($(#[$doc])* $name),* }

    impl LetterKind {
        /// Every kind.
        pub const ALL: [LetterKind; [$($word),*].len()] = [$(LetterKind::$name),*];

        /// How the outbox spells it.
        pub fn word(self) -> &'static str {
            match self { $(LetterKind::$name => $word),* }
        }

        /// The name of its template, without the ending.
        pub fn template(self) -> &'static str {
            match self { $(LetterKind::$name => $template),* }
        }
    }
} }
letters! {
    /// A sign-in from an address that is new for the account, perhaps on a new browser too.
    NewIpLogin = "new_ip_login" from "new_sign_in";
    /// Somebody tries passwords.
    SignInThrottled = "sign_in_throttled" from "sign_in_throttled";
    /// A sign-in on a browser that is new for the account.
    NewDeviceLogin = "new_device_login" from "new_sign_in";
    /// The password was changed or reset.
    PasswordChanged = "password_changed" from "password_changed";
    /// Other sessions were ended.
    SessionsRevoked = "sessions_revoked" from "sessions_revoked";
    /// A cookie came back that only a copy can hold.
    RotatedTokenReused = "rotated_token_reused" from "rotated_token_reused";
    /// An administrator gave another role.
    RoleChanged = "role_changed" from "role_changed";
    /// An administrator closed the account.
    AccountDisabled = "account_disabled" from "account_disabled";
    /// And opened it again.
    AccountEnabled = "account_enabled" from "account_enabled";
    /// Asks for the proof of the address.
    VerifyEmail = "verify_email" from "verify_email";
    /// Somebody wanted an account with an address that has one.
    AddressInUse = "address_in_use" from "address_in_use";
    /// A way to a new password.
    ResetPassword = "reset_password" from "reset_password";
    /// Asks the new address whether it wants the account.
    ChangeEmail = "change_email" from "change_email";
    /// Tells the old address that this was asked.
    EmailChangeRequested = "email_change_requested" from "email_change_requested";
    /// Tells the old address that it happened, with the way back.
    EmailChanged = "email_changed" from "email_changed";
}

impl LetterKind {
    /// Reads what the outbox holds.
    pub fn read(word: &str) -> Result<Self, Fault> {
        let all = LetterKind::ALL.into_iter();
        all.into_iter().find(|kind| kind.word() == word).ok_or_else(|| Fault::broken(format!("the outbox holds a letter of the unknown kind {word}")))
    }

    /// What its link is for; `None`: it has none.
    pub fn purpose(self) -> Option<Purpose> {
        match self {
            LetterKind::NewIpLogin | LetterKind::NewDeviceLogin => Some(Purpose::EndSession),
            LetterKind::VerifyEmail => Some(Purpose::VerifyEmail),
            LetterKind::ResetPassword => Some(Purpose::ResetPassword),
            LetterKind::ChangeEmail => Some(Purpose::ChangeEmail),
            LetterKind::EmailChanged => Some(Purpose::UndoEmailChange),
            _ => None,
        }
    }

    /// The purpose for which only the newest link is good.
    pub fn replaces_older(self) -> Option<Purpose> {
        self.purpose().filter(|purpose| matches!(purpose, Purpose::VerifyEmail | Purpose::ResetPassword | Purpose::ChangeEmail))
    }

    /// How many of it one address may get, and in how long.
    pub fn most(self) -> (i64, Duration) {
        match self {
            // Whoever guesses on does so for days, and there is nothing new to tell.
            LetterKind::SignInThrottled => (1, Duration::from_secs(24 * 3600)),
            _ => (5, Duration::from_secs(3600)),
        }
    }

    /// Whether nobody needs it any more. Asked at delivery, not when it is posted: so a request does the same work for all.
    pub fn is_pointless(self, user: &User) -> bool {
        match self {
            LetterKind::VerifyEmail => user.disabled || user.view.email_verified,
            LetterKind::SignInThrottled | LetterKind::ResetPassword | LetterKind::ChangeEmail | LetterKind::EmailChangeRequested => user.disabled,
            _ => false,
        }
    }
}
