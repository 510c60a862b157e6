//! The soak: everybody at once, for a while, against the real program; and then everything that was acknowledged is asked
//! for again, before and after a `kill -9` under load. Started by `benches/soak`.
//!
//! - [`people`]: sign up and in, check, list, rotate, revoke and sign out, each with a model of its own account.
//! - [`operator`]: purges, backs up, closes and opens an account, at the command line beside the server.
//! - [`strangers`]: garbage without end, and clients that are slow to send or never read.
//! - [`watch`]: memory, open files and the write-ahead log, which must stay flat.
//!
//! It fails when any answer is not what the model says, when there is a `5xx` that is not `503` with `Retry-After`, when an
//! acknowledged effect is not there afterwards, when anything grows, and when too little happened to prove any of this.
//!
//! On SQLite there is one instance; on Postgres there are two, and everybody goes to either in turn.

#[allow(dead_code)] // Made for the tests.
#[path = "../tests/api/cluster.rs"]
mod cluster;
#[allow(dead_code)] // Made for the tests.
#[path = "../tests/api/database.rs"]
mod database;
#[allow(dead_code, clippy::wrong_self_convention)] // Made for the tests.
#[path = "../tests/api/process.rs"]
mod process;
mod soaking;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread::{Scope, ScopedJoinHandle, scope, sleep};
use std::time::{Duration, Instant};

use cluster::Cluster;
use database::Hand;
use process::{Place, Server, integrity_of, open_sql};
use soaking::Town;
use soaking::book::Book;
use soaking::operator::{Keeper, Operator};
use soaking::people::{Company, Person};
use soaking::strangers::{Flood, Slow};
use soaking::watch::{Course, Log};

const USAGE: &str = "benches/soak [--seconds 30] [sqlite|postgres|both]";
/// People with accounts of their own, and people who share one.
const ALONE: u64 = 12;
const IN_A_CROWD: u64 = 4;
const FLOODS: u64 = 2;
const SLOW_LINES: usize = 8;
/// Between two pieces of garbage from one source.
const BETWEEN_GARBAGE: Duration = Duration::from_millis(3);
/// How long everybody goes on before the server is killed under them.
const ENCORE: Duration = Duration::from_secs(2);
/// From here on a run is long enough to tell a slope from a warm-up.
const LONG: Duration = Duration::from_secs(120);
/// How far last-active may lie behind after a crash and between instances: the contract's 60 s.
const LAG: i64 = 60_000;
/// At least so much of each kind of request must be served, not put off.
const SERVED: f64 = 0.9;

/// Every kind of request that must have been made.
const KINDS: [&str; 19] = [
    "a dead token",
    "activity",
    "check",
    "check, passive",
    "garbage",
    "me",
    "password change",
    "password change, wrong",
    "revoke nothing",
    "revoke one",
    "revoke others",
    "sessions",
    "sign-in",
    "sign-in, wrong",
    "sign-out",
    "sign-up",
    // What is counted otherwise.
    "purge",
    "user disable",
    "user enable",
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut seconds, mut which) = (30, "both".to_string());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => match args.next().and_then(|text| text.parse().ok()) {
                Some(given) => seconds = given,
                None => return usage(),
            },
            "sqlite" | "postgres" | "both" => which = arg,
            _ => return usage(),
        }
    }
    let databases: &[&str] = if which == "both" { &["sqlite", "postgres"] } else { &[&which] };
    let share = Duration::from_secs(seconds) / u32::try_from(databases.len()).unwrap_or(1);
    let mut is_well = true;
    for database in databases {
        is_well &= soak(database, share);
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Everything that a soak needs, in a folder of its own.
struct Ground {
    place: Place,
    cluster: Option<Cluster>,
    instances: usize,
    retention: Duration,
}

impl Ground {
    fn new(database: &str, time: Duration) -> Self {
        let retention = Duration::from_secs((time.as_secs() / 5).clamp(3, 30));
        let mut place = Place::new();
        for limit in ["GUESS_LIMIT_ACCOUNT", "GUESS_LIMIT_SOURCE", "SIGNUP_LIMIT_SOURCE", "LETTER_LIMIT_SOURCE"] {
            place.set(limit, "none");
        }
        place.set("ENDED_SESSION_RETENTION", &format!("{}s", retention.as_secs()));
        place.set("MAIL", "file:mail");
        // Small, so that Postgres begins to use its log again within the first third.
        let options = ["fsync=on", "full_page_writes=on", "autovacuum=on", "min_wal_size=32MB", "max_wal_size=96MB", "checkpoint_timeout=30s"];
        let cluster = (database == "postgres").then(|| Cluster::start_with(&options).unwrap_or_else(|| cluster::none_found()));
        if let Some(cluster) = &cluster {
            place.set("DATABASE_URL", cluster.url());
        }
        Ground { place, instances: if cluster.is_some() { 2 } else { 1 }, cluster, retention }
    }

    fn keeper(&self) -> Keeper {
        match &self.cluster {
            None => Keeper::File,
            Some(cluster) => Keeper::Server { bin: cluster::programs().unwrap_or_else(|| cluster::none_found()), url: cluster.url().into() },
        }
    }

    fn hand(&self) -> Hand {
        self.cluster.as_ref().map_or_else(|| Hand::File(open_sql(&self.place.database())), |cluster| Hand::server(cluster.url()))
    }

    fn log(&self) -> Log {
        match &self.cluster {
            None => Log::File(self.place.path("data/holdfast.db-wal")),
            Some(cluster) => Log::Server(Box::new(Hand::server(cluster.url()))),
        }
    }

    fn start(&self) -> Vec<Server> {
        (0..self.instances).map(|_| self.place.start()).collect()
    }

    fn town(&self, servers: &[Server], lag: i64) -> Town {
        let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
        Town::new(addresses, self.retention, lag)
    }
}

/// Everybody who uses the server.
struct Cast<'a> {
    people: Vec<Person>,
    operator: Operator<'a>,
    floods: Vec<Flood>,
    slow: Slow,
}

impl<'a> Cast<'a> {
    fn of(ground: &'a Ground) -> Self {
        let email = "crowd@example.com";
        ground.place.create(email, "user");
        let company = |n| if n < ALONE { Company::Alone } else { Company::Crowd { email: email.into() } };
        let mut operator = Operator::new(&ground.place, ground.keeper());
        operator.book.happened("signed_up");
        Cast {
            people: (0..ALONE + IN_A_CROWD).map(|n| Person::new(n, company(n))).collect(),
            operator,
            floods: (0..FLOODS).map(|n| Flood::new(1000 + n, BETWEEN_GARBAGE)).collect(),
            slow: Slow::default(),
        }
    }

    /// Lets everybody live, while `meanwhile` happens and until it is over.
    fn live<T>(&mut self, town: &Town, meanwhile: impl FnOnce() -> T) -> T {
        scope(|threads| {
            let mut all = on_threads(threads, &mut self.people, |person| person.live(town));
            all.extend(on_threads(threads, &mut self.floods, |flood| flood.live(town)));
            all.push(threads.spawn(|| self.operator.live(town)));
            all.push(threads.spawn(|| self.slow.live(town, SLOW_LINES)));
            let done = meanwhile();
            town.end();
            all.into_iter().for_each(|thread| thread.join().expect("no panic"));
            done
        })
    }

    fn look_back(&mut self, town: &Town) {
        scope(|threads| {
            on_threads(threads, &mut self.people, |person| person.look_back(town));
        });
        self.operator.look_back(town);
    }

    fn book(self) -> Book {
        let mut all = Book::default();
        self.people.into_iter().for_each(|person| all.add(person.book));
        self.floods.into_iter().for_each(|flood| all.add(flood.book));
        all.add(self.slow.book);
        all.add(self.operator.book);
        all
    }
}

fn on_threads<'scope, T: Send>(
    threads: &'scope Scope<'scope, '_>,
    all: &'scope mut [T],
    deed: impl Fn(&mut T) + Copy + Send + 'scope,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    all.iter_mut().map(|one| threads.spawn(move || deed(one))).collect()
}

fn soak(database: &str, time: Duration) -> bool {
    let ground = Ground::new(database, time);
    let mut cast = Cast::of(&ground);
    let mut courses = [Course::of_memory(time >= LONG), Course::of_log(&ground.log(), time >= LONG), Course::of_files(time >= LONG)];
    let lag = if ground.instances == 1 { 0 } else { LAG };
    let (mut faults, mut troubles) = (Vec::new(), 0);

    let servers = ground.start();
    let town = ground.town(&servers, lag);
    let log = ground.log();
    cast.live(&town, || watch(&servers, &log, &mut courses, time));
    drop(log);
    cast.look_back(&ground.town(&servers, lag));

    let town = ground.town(&servers, lag);
    cast.live(&town, || {
        sleep(ENCORE);
        town.kill();
        faults.extend(servers.iter().filter_map(complaint_of));
        troubles += servers.iter().map(troubles_of).sum::<u64>();
        servers.into_iter().for_each(Server::kill);
    });

    let servers = ground.start();
    cast.look_back(&ground.town(&servers, LAG));
    faults.extend(servers.iter().filter_map(complaint_of));
    servers.into_iter().for_each(|server| drop(server.stop()));

    cast.operator.read_backup();
    if ground.cluster.is_none() {
        let found = integrity_of(&ground.place.database());
        faults.extend((found != "ok").then(|| format!("the database: {found}")));
    }
    let mut book = cast.book();
    if troubles > 0 {
        book.counts.insert("times that background work had to try again", troubles);
    }
    faults.extend(courses.iter().filter_map(Course::fault));
    faults.extend(missing_events(&book, &ground.hand()));
    faults.extend(too_little(&book));
    faults.extend(book.faults.iter().cloned());
    report(database, time, ground.instances, &book, &courses, &faults);
    faults.is_empty()
}

fn watch(servers: &[Server], log: &Log, courses: &mut [Course; 3], time: Duration) {
    let begun = Instant::now();
    let step = (time / 60).clamp(Duration::from_millis(100), Duration::from_secs(1));
    while begun.elapsed() < time {
        sleep(step);
        let [memory, wal, files] = courses;
        memory.sees(servers.iter().filter_map(Server::resident_kib).sum::<u64>() * 1024);
        wal.sees(log.size());
        files.sees(servers.iter().filter_map(Server::open_files).sum());
    }
}

/// A panic costs one request only, and is a fault all the same.
fn complaint_of(server: &Server) -> Option<String> {
    server.log().lines().find(|line| line.contains("panicked")).map(|line| format!("in the log: {line}"))
}

/// How often background work had to try again: on a machine that is too busy it may, but it should be seen.
fn troubles_of(server: &Server) -> u64 {
    u64::try_from(server.log().lines().filter(|line| line.contains("does not work; trying again")).count()).unwrap_or(0)
}

/// Every acknowledged fact is on record, once.
fn missing_events(book: &Book, hand: &Hand) -> Vec<String> {
    let wrong = |(kind, told): (&&str, &u64)| {
        let there = u64::try_from(hand.number(&format!("SELECT count(*) FROM events WHERE kind = '{kind}'"))).unwrap_or(0);
        let is_right = (*told..=*told + book.unsure).contains(&there);
        (!is_right).then(|| format!("{there} events {kind} are on record, {told} were acknowledged, {} are unsure", book.unsure))
    };
    book.events.iter().filter_map(wrong).collect()
}

/// A soak in which nothing happens proves nothing.
fn too_little(book: &Book) -> Vec<String> {
    let served = |what: &str| {
        let of_kind = || book.answers.iter().filter(|((kind, _), _)| *kind == what);
        let all: usize = of_kind().map(|(_, times)| times.len()).sum();
        let put_off: usize = of_kind().filter(|((_, status), _)| *status == 503).map(|(_, times)| times.len()).sum();
        if all == 0 { f64::from(u8::from(book.counts.contains_key(what))) } else { 1.0 - put_off as f64 / all as f64 }
    };
    let wanting = |what: &&str| (served(what) < SERVED).then(|| format!("{what}: only {:.0} % were served", served(what) * 100.0));
    KINDS.iter().filter_map(wanting).collect()
}

fn report(database: &str, time: Duration, instances: usize, book: &Book, courses: &[Course], faults: &[String]) {
    let all: usize = book.answers.values().map(Vec::len).sum();
    println!("\nSoak on {database}: {} s, {instances} instance(s), {} people, {all} requests\n", time.as_secs(), ALONE + IN_A_CROWD);
    println!("| requests | how many | p50 ms | p99 ms | statuses |\n|---|---|---|---|---|");
    let mut kinds: BTreeMap<&str, Vec<(u16, &Vec<u32>)>> = BTreeMap::new();
    book.answers.iter().for_each(|((what, status), times)| kinds.entry(what).or_default().push((*status, times)));
    for (what, by_status) in kinds {
        let mut times: Vec<u32> = by_status.iter().flat_map(|(_, times)| times.iter().copied()).collect();
        times.sort_unstable();
        let at = |part: f64| f64::from(times[((times.len() as f64 * part) as usize).min(times.len() - 1)]) / 1000.0;
        let statuses: Vec<String> = by_status.iter().map(|(status, times)| format!("{status}: {}", times.len())).collect();
        println!("| {what} | {} | {:.1} | {:.1} | {} |", times.len(), at(0.5), at(0.99), statuses.join(", "));
    }
    println!("\n| | first | most of the 1st third | 2nd | 3rd | most |\n|---|---|---|---|---|---|");
    courses.iter().for_each(|course| println!("{}", course.row()));
    println!();
    book.counts.iter().for_each(|(what, count)| println!("- {what}: {count}"));
    book.longest.iter().for_each(|(what, time)| println!("- {what}, at most: {:.0} ms", time.as_secs_f64() * 1000.0));
    println!("- tokens that were ended, and tried again at the end: {}", book.dead.len());
    println!("- kinds of events that were counted against what was acknowledged: {}", book.events.len());
    println!("- requests that were under way when the server was killed: {}", book.unsure);
    println!("\n{}", if faults.is_empty() { "Nothing was lost, nothing grew." } else { "FAILED:" });
    faults.iter().take(30).for_each(|fault| println!("- {fault}"));
    if faults.len() > 30 {
        println!("- and {} more", faults.len() - 30);
    }
}
