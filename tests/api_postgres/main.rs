//! The contract, as sentences, once more: on Postgres. The files are those of `../api`; what they run on is told by the name
//! of this program (`database.rs`).
//!
//! Beyond those: several instances on one database (`instances.rs`), a database that is away, frozen, read-only or another
//! one by now (`failover.rs`), the way to it (`tls.rs`), and the way from a file to a server (`growing.rs`).
//!
//! Left out is what tells of SQLite's file (`file.rs`), of the program around it (`program.rs`: the same code as here, and a
//! file that is damaged, moved, foreign or on a full disk), and of sockets
//! and mail servers, which no database has a part in (`wire.rs`, `mail.rs`).

#![allow(clippy::wrong_self_convention)]

#[path = "../api/cluster.rs"]
mod cluster;
#[allow(dead_code)] // Some of it is for files.
#[path = "../api/database.rs"]
mod database;
mod nginx;
#[allow(dead_code)] // Made for the sentences about the program and its sockets.
#[path = "../api/process.rs"]
mod process;
#[path = "../api/stage.rs"]
mod stage;

mod failover;
mod growing;
mod instances;
mod line;
mod tls;

#[path = "../api/account.rs"]
mod account;
#[path = "../api/admin.rs"]
mod admin;
#[path = "../api/cross_site.rs"]
mod cross_site;
#[path = "../api/email_change.rs"]
mod email_change;
#[path = "../api/email_verification.rs"]
mod email_verification;
#[path = "../api/every_route.rs"]
mod every_route;
#[path = "../api/flood.rs"]
mod flood;
#[path = "../api/guessing.rs"]
mod guessing;
#[path = "../api/letters.rs"]
mod letters;
#[path = "../api/life_cycle.rs"]
mod life_cycle;
#[path = "../api/new_sign_in.rs"]
mod new_sign_in;
#[path = "../api/outbox.rs"]
mod outbox;
#[path = "../api/password_reset.rs"]
mod password_reset;
#[path = "../api/races.rs"]
mod races;
#[path = "../api/requests.rs"]
mod requests;
#[path = "../api/rotation.rs"]
mod rotation;
#[path = "../api/security_page.rs"]
mod security_page;
#[path = "../api/sessions.rs"]
mod sessions;
#[path = "../api/timeouts.rs"]
mod timeouts;
