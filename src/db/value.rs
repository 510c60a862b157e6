//! What goes into a statement and what comes out: typed arguments, and rows read by position.

use uuid::Uuid;

use super::{Fault, sqlite};
use crate::clock::Timestamp;
use crate::secret::TokenHash;

/// An SQL argument. Its type is known even when it is NULL, so that no driver has to infer one.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// `BIGINT`.
    Int(Option<i64>),
    /// `TEXT`.
    Text(Option<&'a str>),
    /// `BYTEA`.
    Bytes(Option<&'a [u8]>),
    /// `UUID`.
    Uuid(Option<Uuid>),
}

macro_rules! arg { ($($t:ty, $variant:ident, $x:ident => $e:expr;)*) => { $(
    impl<'a> From<$t> for Arg<'a> { fn from($x: $t) -> Self { Arg::$variant(Some($e)) } }
    impl<'a> From<Option<$t>> for Arg<'a> { fn from(o: Option<$t>) -> Self { Arg::$variant(o.map(|$x| $e)) } }
)* } }
arg! {
    i64, Int, x => x;
    bool, Int, x => i64::from(x);
    Timestamp, Int, x => x.0;
    &'a str, Text, x => x;
    &'a String, Text, x => x.as_str();
    &'a [u8], Bytes, x => x;
    &'a TokenHash, Bytes, x => x.0.as_slice();
    Uuid, Uuid, x => x;
    crate::id::UserId, Uuid, x => x.0;
    crate::id::SessionId, Uuid, x => x.0;
    crate::id::EventId, Uuid, x => x.0;
    crate::id::LetterId, Uuid, x => x.0;
}

/// A tuple of arguments, in the order of `?1, ?2, …`.
pub trait Args<'a> {
    /// Spells the tuple out.
    fn list(self) -> Vec<Arg<'a>>;
}

macro_rules! args { ($($($n:ident)*;)*) => { $(
    #[allow(non_snake_case, unused_parens)]
    impl<'a, $($n: Into<Arg<'a>>),*> Args<'a> for ($($n,)*) {
        fn list(self) -> Vec<Arg<'a>> { let ($($n,)*) = self; vec![$($n.into()),*] }
    }
)* } }
args! { ; A; A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; A B C D E F G H I; }

impl<'a> Args<'a> for Vec<Arg<'a>> {
    fn list(self) -> Vec<Arg<'a>> {
        self
    }
}

/// One row of an answer, read by position.
pub struct Row<'r>(pub(super) &'r rusqlite::Row<'r>);

impl Row<'_> {
    /// Reads the column at `i`, counted from 0.
    pub fn get<T: Col>(&self, i: usize) -> Result<T, Fault> {
        T::read(self, i)
    }
}

/// A type that a column can be read as.
pub trait Col: Sized {
    /// Reads it.
    fn read(row: &Row<'_>, i: usize) -> Result<Self, Fault>;
}

macro_rules! col { ($($t:ty, $raw:ty, |$x:ident| $e:expr;)*) => { $(
    impl Col for $t {
        fn read(row: &Row<'_>, i: usize) -> Result<Self, Fault> {
            row.0.get::<_, $raw>(i).map(|$x| $e).map_err(sqlite::fault)
        }
    }
    impl Col for Option<$t> {
        fn read(row: &Row<'_>, i: usize) -> Result<Self, Fault> {
            row.0.get::<_, Option<$raw>>(i).map(|o| o.map(|$x| $e)).map_err(sqlite::fault)
        }
    }
)* } }
col! {
    i64, i64, |x| x;
    bool, i64, |x| x != 0;
    Timestamp, i64, |x| Timestamp(x);
    String, String, |x| x;
    TokenHash, [u8; 32], |x| TokenHash(x);
    Uuid, [u8; 16], |x| Uuid::from_bytes(x);
    crate::id::UserId, [u8; 16], |x| crate::id::UserId(Uuid::from_bytes(x));
    crate::id::SessionId, [u8; 16], |x| crate::id::SessionId(Uuid::from_bytes(x));
    crate::id::EventId, [u8; 16], |x| crate::id::EventId(Uuid::from_bytes(x));
    crate::id::LetterId, [u8; 16], |x| crate::id::LetterId(Uuid::from_bytes(x));
}

/// A value made from one row.
pub trait FromRow: Sized {
    /// Reads it.
    fn from_row(row: &Row<'_>) -> Result<Self, Fault>;
}

impl<T: Col> FromRow for T {
    fn from_row(row: &Row<'_>) -> Result<Self, Fault> {
        row.get(0)
    }
}

macro_rules! rows { ($($($n:ident $i:literal)*;)*) => { $(
    impl<$($n: Col),*> FromRow for ($($n,)*) {
        fn from_row(row: &Row<'_>) -> Result<Self, Fault> { Ok(($(row.get::<$n>($i)?,)*)) }
    }
)* } }
rows! { A 0 B 1; A 0 B 1 C 2; A 0 B 1 C 2 D 3; A 0 B 1 C 2 D 3 E 4; }
