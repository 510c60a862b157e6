//! What `wrk` cannot do. Started by `benches/run`; each prints one line of JSON.
//!
//! - `load pace ADDRESS METHOD PATH FILE FIRST COUNT RATE CONNECTIONS SECONDS`: requests at a fixed rate. A request has its
//!   moment, whether or not the ones before it have been answered, and its latency counts from that moment; so a server that
//!   stands still is seen to stand still. The lines of `FILE` are cookies, or with `POST` bodies.
//! - `load argon2 THREADS SECONDS`: password hashes at the default cost, as fast as the machine can, with memory reused.
//! - `load durability FOLDER SECONDS`: rotations and logouts, one commit each, with `synchronous` `NORMAL` and `FULL`.

mod fill;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |i: usize| args[i].parse::<f64>().expect("a number");
    let found = match args.first().map(String::as_str) {
        Some("pace") => pace(&Course {
            address: args[1].clone(),
            requests: requests(&args[2], &args[3], &args[4], number(5) as usize, number(6) as usize),
            rate: number(7),
            connections: number(8) as usize,
            time: Duration::from_secs_f64(number(9)),
        }),
        Some("argon2") => argon2_per_second(number(1) as usize, Duration::from_secs_f64(number(2))),
        Some("durability") => durability(Path::new(&args[1]), Duration::from_secs_f64(number(2))),
        _ => return println!("load is started by benches/run"),
    };
    println!("{found}");
}

/// A fixed rate, and what to send.
struct Course {
    address: String,
    requests: Vec<String>,
    rate: f64,
    connections: usize,
    time: Duration,
}

fn requests(method: &str, path: &str, file: &str, first: usize, count: usize) -> Vec<String> {
    let text = std::fs::read_to_string(file).expect("the file of cookies or bodies");
    let request = |line: &str| match method {
        "POST" => format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{line}", line.len()),
        _ => format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nCookie: holdfast={line}\r\n\r\n"),
    };
    text.lines().skip(first).take(count).map(request).collect()
}

/// One answer.
struct Answer {
    status: u16,
    retry_after: bool,
    took: Duration,
}

fn pace(course: &Course) -> Value {
    let begin = Instant::now() + Duration::from_millis(100);
    let one = |number: usize| {
        let mut answers = Vec::new();
        let mut faults = 0u64;
        let mut line: Option<TcpStream> = None;
        for turn in (number..).step_by(course.connections) {
            let at = Duration::from_secs_f64(turn as f64 / course.rate);
            if at > course.time {
                break;
            }
            let moment = begin + at;
            std::thread::sleep(moment.saturating_duration_since(Instant::now()));
            match ask(&mut line, &course.address, &course.requests[turn % course.requests.len()]) {
                Ok((status, retry_after)) => answers.push(Answer { status, retry_after, took: moment.elapsed() }),
                Err(_) => {
                    line = None;
                    faults += 1;
                }
            }
        }
        (answers, faults)
    };
    let (mut answers, mut faults) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let start = |number| std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, move || one(number)).expect("a thread");
        let all: Vec<_> = (0..course.connections).map(start).collect();
        for thread in all {
            let (some, few) = thread.join().expect("no panic");
            answers.extend(some);
            faults += few;
        }
    });
    let mut by_status = std::collections::BTreeMap::<u16, Vec<&Answer>>::new();
    answers.iter().for_each(|answer| by_status.entry(answer.status).or_default().push(answer));
    let statuses: serde_json::Map<String, Value> = by_status.into_iter().map(|(status, answers)| (status.to_string(), summary(&answers))).collect();
    json!({"all": summary(&answers.iter().collect::<Vec<_>>()), "faults": faults, "statuses": statuses, "seconds": begin.elapsed().as_secs_f64()})
}

fn summary(answers: &[&Answer]) -> Value {
    let mut all: Vec<Duration> = answers.iter().map(|answer| answer.took).collect();
    all.sort();
    let at = |part: f64| all.get(((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1))).map_or(0.0, |took| took.as_secs_f64() * 1000.0);
    let told = answers.iter().filter(|answer| answer.retry_after).count();
    json!({"count": all.len(), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1.0), "retry_after": told})
}

/// Sends a request on a kept connection and reads the whole answer.
fn ask(line: &mut Option<TcpStream>, address: &str, request: &str) -> io::Result<(u16, bool)> {
    let stream = match line {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            line.insert(stream)
        }
    };
    stream.write_all(request.as_bytes())?;
    let (mut buffer, mut filled) = ([0u8; 16 << 10], 0);
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let end = loop {
        filled += read_some(stream, &mut buffer[filled..])?;
        if let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let head = std::str::from_utf8(&buffer[..end]).map_err(|_| broken())?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(broken)?;
    let header = |name: &str| head.lines().filter_map(|line| line.split_once(": ")).find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let length: usize = header("content-length").map_or(Ok(0), str::parse).map_err(|_| broken())?;
    let (retry_after, close) = (header("retry-after").is_some(), header("connection") == Some("close"));
    let mut left = (end + 4 + length).saturating_sub(filled);
    while left > 0 {
        left = left.saturating_sub(read_some(stream, &mut buffer)?);
    }
    if close {
        *line = None;
    }
    Ok((status, retry_after))
}

fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        some => Ok(some),
    }
}

fn argon2_per_second(threads: usize, time: Duration) -> Value {
    let begun = Instant::now();
    let hash = || {
        let params = Params::new(19_456, 2, 1, Some(32)).expect("a cost that Argon2 takes");
        let mut blocks = vec![Block::default(); params.block_count()];
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let (mut out, mut count) = ([0u8; 32], 0u64);
        while begun.elapsed() < time {
            argon2.hash_password_into_with_memory(fill::PASSWORD.as_bytes(), &[7; 16], &mut out, &mut blocks).expect("room for the blocks");
            std::hint::black_box(&out);
            count += 1;
        }
        // Each thread by its own time: the last hash ends after the bell.
        count as f64 / begun.elapsed().as_secs_f64()
    };
    let per_second: f64 = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(hash)).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    json!({"per_second": per_second})
}

/// The statements of a rotation and of a logout, as the product runs them.
fn durability(folder: &Path, time: Duration) -> Value {
    const SESSIONS: u64 = 100_000;
    let path = folder.join("durability.db");
    let remove = || ["", "-wal", "-shm"].iter().for_each(|suffix| drop(std::fs::remove_file(format!("{}{suffix}", path.display()))));
    remove();
    fill::fill(&path, fill::Plan { users: SESSIONS / 5, sessions: SESSIONS, ..fill::Plan::default() }).expect("a database");
    let db = Connection::open(&path).expect("the database");
    let ids: Arc<[[u8; 16]]> = {
        let mut ids = db.prepare("SELECT id FROM device_sessions ORDER BY token_hash").expect("SQL");
        ids.query_map([], |row| row.get(0)).expect("rows").collect::<rusqlite::Result<_>>().expect("rows")
    };
    // A session is rotated again and again, but signed out once: half of them for either.
    let (share, mut next) = (ids.len() / 12, 1 << 40);
    let mut run = |synchronous: &str, logout: bool, from: usize| {
        db.execute_batch(&format!("PRAGMA synchronous = {synchronous}")).expect("a pragma");
        let (begun, mut count) = (Instant::now(), 0usize);
        while begun.elapsed() < time && count < share {
            let id = &ids[from + count];
            next += 1;
            if logout { log_out(&db, id, next) } else { rotate(&db, id, next) }.expect("a write");
            count += 1;
        }
        count as f64 / begun.elapsed().as_secs_f64()
    };
    // In turns, so that a slow moment of the disk meets both.
    let mut found = [[0.0; 2]; 2];
    for round in 0..3 {
        for (i, synchronous) in ["NORMAL", "FULL"].into_iter().enumerate() {
            let from = (round * 2 + i) * share;
            found[i][0] += run(synchronous, false, from) / 3.0;
            found[i][1] += run(synchronous, true, ids.len() / 2 + from) / 3.0;
        }
    }
    db.close().expect("it closes");
    remove();
    let of = |of: [f64; 2]| json!({"rotations": of[0], "logouts": of[1]});
    json!({"normal": of(found[0]), "full": of(found[1])})
}

fn rotate(db: &Connection, id: &[u8; 16], next: u64) -> rusqlite::Result<()> {
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let old: [u8; 32] = db.prepare_cached("SELECT token_hash FROM device_sessions WHERE id = ?1 AND ended_at IS NULL")?.query_row([id], |row| row.get(0))?;
    let sql = "UPDATE device_sessions SET token_hash = ?3, authenticated_at = ?4, last_active_at = ?5 WHERE id = ?1 AND token_hash = ?2 AND ended_at IS NULL";
    db.prepare_cached(sql)?.execute(params![id, old, fill::token(next), 1, 1])?;
    db.prepare_cached("INSERT INTO retired_tokens (token_hash, session_id, retired_at, successor_used) VALUES (?1, ?2, ?3, 0)")?
        .execute(params![old, id, 0])?;
    record(db, id, next, "password_changed")?;
    db.prepare_cached("COMMIT")?.execute([]).map(|_| ())
}

fn log_out(db: &Connection, id: &[u8; 16], next: u64) -> rusqlite::Result<()> {
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    db.prepare_cached("UPDATE device_sessions SET ended_at = ?2, ended_reason = ?3 WHERE id = ?1 AND ended_at IS NULL")?.execute(params![
        id,
        1,
        "session_logged_out"
    ])?;
    record(db, id, next, "signed_out")?;
    db.prepare_cached("COMMIT")?.execute([]).map(|_| ())
}

fn record(db: &Connection, session: &[u8; 16], next: u64, kind: &str) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO events (id, at, kind, user_id, session_id, ip, device_name, detail) VALUES (?1, ?2, ?3, ?4, ?5, '127.0.0.1', 'Chrome on macOS', '{}')";
    db.prepare_cached(sql)?.execute(params![&u128::from(next).to_be_bytes(), 0, kind, session, session]).map(|_| ())
}
