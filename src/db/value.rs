//! What goes into a statement and what comes out: typed arguments, and rows read by position.

use uuid::Uuid;

use super::postgres::{self, AnyBool, AnyInt, Bytes32};
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
pub struct Row<'r>(pub(super) Raw<'r>);

/// A row as its driver has it.
pub(super) enum Raw<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r tokio_postgres::Row),
}

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

// What SQLite has, and what Postgres has.
macro_rules! col { ($($t:ty, |$x:ident: $sqlite:ty| $e:expr, |$y:ident: $postgres:ty| $g:expr;)*) => { $(
    impl Col for Option<$t> {
        fn read(row: &Row<'_>, i: usize) -> Result<Self, Fault> {
            match &row.0 {
                Raw::Sqlite(row) => row.get::<_, Option<$sqlite>>(i).map(|o| o.map(|$x| $e)).map_err(sqlite::fault),
                Raw::Postgres(row) => row.try_get::<_, Option<$postgres>>(i).map(|o| o.map(|$y| $g)).map_err(postgres::fault),
            }
        }
    }
    impl Col for $t {
        fn read(row: &Row<'_>, i: usize) -> Result<Self, Fault> {
            Option::<$t>::read(row, i)?.ok_or_else(|| Fault::broken(format!("column {i} is NULL")))
        }
    }
)* } }
col! {
    i64, |x: i64| x, |x: AnyInt| x.0;
    bool, |x: i64| x != 0, |x: AnyBool| x.0;
    Timestamp, |x: i64| Timestamp(x), |x: AnyInt| Timestamp(x.0);
    String, |x: String| x, |x: String| x;
    Vec<u8>, |x: Vec<u8>| x, |x: Vec<u8>| x;
    TokenHash, |x: [u8; 32]| TokenHash(x), |x: Bytes32| TokenHash(x.0);
    Uuid, |x: [u8; 16]| Uuid::from_bytes(x), |x: Uuid| x;
    crate::id::UserId, |x: [u8; 16]| crate::id::UserId(Uuid::from_bytes(x)), |x: Uuid| crate::id::UserId(x);
    crate::id::SessionId, |x: [u8; 16]| crate::id::SessionId(Uuid::from_bytes(x)), |x: Uuid| crate::id::SessionId(x);
    crate::id::EventId, |x: [u8; 16]| crate::id::EventId(Uuid::from_bytes(x)), |x: Uuid| crate::id::EventId(x);
    crate::id::LetterId, |x: [u8; 16]| crate::id::LetterId(Uuid::from_bytes(x)), |x: Uuid| crate::id::LetterId(x);
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
