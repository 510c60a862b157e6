//! Holdfast: a session security server.
//!
//! The map, in reading order:
//!
//! - [`config`]: the settings; [`app`]: what every handler can reach; [`router`]: every route on one page; [`middleware`]: the
//!   stack around them; [`serve`]: listening and stopping; [`background`] and [`purge`]: what goes on beside the requests.
//! - [`session_security`]: the rules of a session, pure; [`device_sessions`]: the table, and what a user can do with it;
//!   [`live_sessions`]: the same in memory; [`session_extractor`]: the check of every request; [`guard`]: extractors whose
//!   type is the permission.
//! - [`account`]: sign-up, sign-in, sign-out, password change, one's own account; [`factor`]: passwords and the threads that
//!   hash them; [`guessing`]: how often a password may be tried; [`forward_auth`]: the question of reverse proxies; [`admin`]: the administrator's view.
//! - [`event`]: everything that can happen, and the one way to say that it did; its letters and their outbox. [`templates`] and
//!   [`mail`]: how they are written and how they leave; [`letter_token`]: the links in them; [`security_page`]: where those lead.
//! - [`flood`]: how often strangers may ask for what costs something; [`client`]: who calls; [`cookie`], [`cross_site`], [`form`]: what browsers send, read strictly; [`error`]: the two kinds of
//!   "no"; [`health`], [`openapi`]: for operators and machines; [`command`]: the command line; [`log`]: where lines go.
//! - [`db`]: the seam to the database; [`clock`], [`chance`], [`id`], [`secret`]: now, randomness, typed ids, tokens and their
//!   hashes.

#![warn(missing_docs)]

pub mod account;
pub mod admin;
pub mod app;
pub mod background;
pub mod chance;
pub mod client;
pub mod clock;
pub mod command;
pub mod config;
pub mod cookie;
pub mod cross_site;
pub mod db;
pub mod device_sessions;
pub mod error;
pub mod event;
pub mod factor;
pub mod flood;
pub mod form;
pub mod forward_auth;
pub mod guard;
pub mod guessing;
pub mod health;
pub mod id;
pub mod lease;
pub mod letter_token;
pub mod live_sessions;
pub mod log;
pub mod mail;
pub mod middleware;
pub mod openapi;
pub mod purge;
pub mod router;
pub mod secret;
pub mod security_page;
pub mod serve;
pub mod session_extractor;
pub mod session_security;
pub mod templates;
