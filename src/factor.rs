//! Ways to prove who one is. So far: the password.

pub mod hasher;
pub mod password;
