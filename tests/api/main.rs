//! The contract, as sentences, on SQLite; `../api_postgres` runs the same on Postgres. One binary; the stage and its actors
//! are in `stage.rs`.

// An expectation reads as a sentence: the answer `is(200)`, ana is `from_ip(…)`.
#![allow(clippy::wrong_self_convention)]

#[allow(dead_code)] // For `../api_postgres`.
mod cluster;
#[allow(dead_code)]
mod database;
mod process;
mod stage;

mod account;
mod admin;
mod cross_site;
mod crowd;
mod email_change;
mod email_verification;
mod every_route;
mod file;
mod flood;
mod fuzzing;
mod guessing;
mod letters;
mod life_cycle;
mod mail;
mod new_sign_in;
mod outbox;
mod password_reset;
mod program;
mod proof;
mod races;
mod requests;
mod rotation;
mod security_page;
mod sessions;
mod timeouts;
mod wire;
