//! `seed DATABASE COOKIES [name=value …]`: fills a database, and writes the cookies of its live sessions, one on a line.
//!
//! The names are those of [`fill::Plan`], and `cookies`, how many to write at most. Started by `benches/run`.

mod fill;

use std::io::{BufWriter, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [database, cookies, settings @ ..] = args.as_slice() else {
        return println!("seed is started by benches/run");
    };
    let (mut plan, mut most) = (fill::Plan::default(), u64::MAX);
    for setting in settings {
        let (name, value) = setting.split_once('=').expect("name=value");
        let number: u64 = value.parse().expect("a number");
        match name {
            "first" => plan.first = number,
            "users" => plan.users = number,
            "sessions" => plan.sessions = number,
            "ended" => plan.ended = number,
            "ended_days" => plan.ended_days = number as i64,
            "idle_s" => plan.idle_s = number as i64,
            "silent_s" => plan.silent_s = number as i64,
            "append" => plan.append = number == 1,
            "cookies" => most = number,
            other => panic!("no such setting: {other}"),
        }
    }
    fill::fill(Path::new(database), plan).expect("the database takes the rows");
    let mut out = BufWriter::new(std::fs::File::create(cookies).expect("a file for the cookies"));
    for n in plan.first..plan.first + plan.sessions.min(most) {
        writeln!(out, "{}", URL_SAFE_NO_PAD.encode(fill::token(n))).expect("room for the cookies");
    }
    out.flush().expect("room for the cookies");
}
