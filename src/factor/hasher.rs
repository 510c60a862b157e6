//! The threads that hash passwords, and the queue in front of them.
//!
//! A hash takes some 17 ms of a core by design. So it never runs on the threads that answer requests: it has threads of its
//! own, at the lowest priority, each with memory that it keeps. Whoever is signed in does not feel a flood of sign-ins.
//!
//! The queue is bounded, and fair: sources take turns, and when it is full a newcomer takes the place of the newest job of
//! the source that has most. What does not fit is refused at once (`503 overloaded`); what nobody waits for any more is not
//! computed. SLOW-03.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::password::{Cost, Memory, Password, PasswordHash};
use crate::background::at_lowest_priority;
use crate::chance::Chance;
use crate::config::Config;
use crate::db::Fault;
use crate::error::{Error, Refusal};
use crate::session_security::network_of;

/// Jobs that one source may have waiting, for each thread: a little over a second of work.
const PER_SOURCE: usize = 64;
/// Jobs that may wait in all, for each thread. Beyond, a wait would outlast people's patience.
const IN_ALL: usize = 128;

/// Hashes and checks passwords.
pub struct Hasher {
    queue: Arc<Queue>,
    cost: Cost,
    decoy: PasswordHash,
    threads: usize,
}

struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    /// Each source's jobs, in order.
    jobs: HashMap<String, VecDeque<Job>>,
    /// Sources with jobs, in the order of their turns.
    turns: VecDeque<String>,
    waiting: usize,
    closed: bool,
}

type Work = Box<dyn FnOnce(&mut Memory) + Send>;

struct Job {
    work: Work,
    /// Whether anybody still waits for it.
    wanted: Box<dyn Fn() -> bool + Send>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hasher {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(config: &Config, chance: &Chance) -> Result<Self, Fault> {
        let queue = Arc::new(Queue { state: Mutex::default(), filled: Condvar::new() });
        for n in 0..config.hash_threads {
            let queue = queue.clone();
            let thread = std::thread::Builder::new().name(format!("hash-{n}"));
            thread.spawn(move || work_off(&queue)).map_err(|e| Fault::broken(format!("no thread for hashing: {e}")))?;
        }
        let cost = Cost { memory_kib: config.argon2_memory_kib, iterations: config.argon2_iterations };
        Ok(Hasher { queue, cost, decoy: PasswordHash::decoy(cost, chance), threads: config.hash_threads })
    }

    /// Hashes a new password.
    ///
    /// # Errors
    /// `503` when the queue is full, for all or for this source.
    pub async fn hash(&self, source: IpAddr, password: Password, chance: &Chance) -> Result<PasswordHash, Error> {
        let (cost, chance) = (self.cost, chance.clone());
        let made = self.queued(source, move |memory| PasswordHash::of(&password, cost, &chance, memory)).await?;
        made.map_err(|e| Fault::broken(format!("argon2: {e}")).into())
    }

    /// Checks a password against what is stored; where nothing is, against a decoy, which takes as long and never fits.
    /// A refusal costs as much for a hash from cheaper times, also that of the right password of an account that `is_closed`; for one
    /// that was made at greater cost than today's it costs more.
    ///
    /// # Errors
    /// `503` when the queue is full, for all or for this source.
    pub async fn check(&self, source: IpAddr, password: Password, stored: Option<PasswordHash>, is_closed: bool) -> Result<Checked, Error> {
        let (hash, known) = stored.map_or_else(|| (self.decoy.clone(), false), |hash| (hash, true));
        let weak = known && hash.is_weaker_than(self.cost);
        let rest = hash.cost().and_then(|cost| cost.short_of(self.cost));
        self.queued(source, move |memory| {
            let fits = hash.fits(&password, memory) && known;
            if let (false, Some(rest)) = (fits && !is_closed, rest) {
                // A hash from cheaper times must not tell by the time of its refusal that there is one.
                PasswordHash::go_through_the_motions(&password, rest, memory);
            }
            Checked { fits, upgrade: (fits && !is_closed && weak).then_some(password) }
        })
        .await
    }

    /// How many jobs may be waiting or under way.
    pub fn capacity(&self) -> usize {
        (IN_ALL + 1) * self.threads
    }

    async fn queued<T: Send + 'static>(&self, source: IpAddr, work: impl FnOnce(&mut Memory) -> T + Send + 'static) -> Result<T, Error> {
        let (answer, result) = oneshot::channel();
        let answer = Arc::new(Mutex::new(Some(answer)));
        let asked = answer.clone();
        let wanted = move || asked.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|answer| !answer.is_closed());
        let work: Work = Box::new(move |memory| {
            let done = work(memory);
            if let Some(answer) = answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
                // Whoever asked may have gone meanwhile.
                let _ = answer.send(done);
            }
        });
        self.push(network_of(source), Job { work, wanted: Box::new(wanted) })?;
        // The sender is dropped with a job that was pushed out of the queue.
        result.await.map_err(|_| Refusal::Overloaded(2).into())
    }

    fn push(&self, source: String, job: Job) -> Result<(), Error> {
        let mut state = self.queue.lock();
        let State { jobs, turns, waiting, .. } = &mut *state;
        let of_source = jobs.get(&source).map_or(0, VecDeque::len);
        if of_source >= PER_SOURCE * self.threads {
            return Err(Refusal::Overloaded(2).into());
        }
        if *waiting >= IN_ALL * self.threads {
            // Whoever is pushed out loses the sender of its answer, and hears the same.
            match jobs.values_mut().max_by_key(|queued| queued.len()) {
                Some(longest) if longest.len() > of_source + 1 => drop(longest.pop_back()),
                _ => return Err(Refusal::Overloaded(2).into()),
            }
            *waiting -= 1;
        }
        if of_source == 0 {
            turns.push_back(source.clone());
        }
        jobs.entry(source).or_default().push_back(job);
        *waiting += 1;
        drop(state);
        self.queue.filled.notify_one();
        Ok(())
    }
}

/// What a check found.
pub struct Checked {
    /// The password is right.
    pub fits: bool,
    /// It is right, and its hash was made at less cost than today's: the password comes back to be hashed anew.
    pub upgrade: Option<Password>,
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.filled.notify_all();
    }
}

fn work_off(queue: &Queue) {
    at_lowest_priority();
    let mut memory = Memory::default();
    while let Some(job) = next(queue) {
        if (job.wanted)() {
            // A panic here would cost a thread for good; the job's caller hears of it by its channel.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (job.work)(&mut memory)));
        }
    }
}

/// Waits for the next job: the oldest of the source whose turn it is.
fn next(queue: &Queue) -> Option<Job> {
    let mut state = queue.lock();
    loop {
        if state.closed {
            return None;
        }
        if let Some(job) = state.next() {
            return Some(job);
        }
        state = queue.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

impl State {
    fn next(&mut self) -> Option<Job> {
        let source = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&source)?;
        let job = jobs.pop_front();
        self.waiting -= usize::from(job.is_some());
        if jobs.is_empty() {
            self.jobs.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Variables;
    use std::sync::mpsc;

    fn hasher() -> Hasher {
        hasher_of("1")
    }

    fn hasher_of(iterations: &str) -> Hasher {
        let cheap = [("HASH_THREADS", "1"), ("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", iterations)];
        Hasher::start(&Config::read(&Variables::of(&cheap)).expect("right"), &Chance::seeded(1)).expect("starts")
    }

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([203, 0, 113, n])
    }

    /// Keeps the only thread busy until the sender is dropped.
    fn block(hasher: &Hasher) -> mpsc::Sender<()> {
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let work: Work = Box::new(move |_| {
            begun.send(()).expect("the test waits");
            let _ = held.recv();
        });
        hasher.push("blocker".into(), Job { work, wanted: Box::new(|| true) }).map_err(|_| "full").expect("an empty queue");
        begins.recv().expect("the thread begins");
        hold
    }

    fn job(log: &Arc<Mutex<Vec<u8>>>, n: u8) -> Job {
        let log = log.clone();
        Job { work: Box::new(move |_| log.lock().expect("no panic").push(n)), wanted: Box::new(|| true) }
    }

    #[tokio::test]
    async fn the_right_password_fits_and_nothing_fits_the_decoy() {
        let hasher = hasher();
        let password = || Password::typed("a good password".into());
        let hash = hasher.hash(ip(1), password(), &Chance::seeded(2)).await.expect("hashes");
        assert!(hasher.check(ip(1), password(), Some(hash.clone()), false).await.expect("checks").fits);
        assert!(!hasher.check(ip(1), Password::typed("another".into()), Some(hash), false).await.expect("checks").fits);
        assert!(!hasher.check(ip(1), password(), None, false).await.expect("checks").fits);
    }

    /// ENUM-01: a second hash would tell that the password is right.
    #[tokio::test]
    async fn the_hash_of_a_closed_account_is_not_made_anew() {
        let (cheap, dear) = (hasher(), hasher_of("2"));
        let password = || Password::typed("a good password".into());
        let hash = cheap.hash(ip(1), password(), &Chance::seeded(2)).await.expect("hashes");
        for is_closed in [false, true] {
            let checked = dear.check(ip(1), password(), Some(hash.clone()), is_closed).await.expect("checks");
            assert_eq!((checked.fits, checked.upgrade.is_some()), (true, !is_closed));
        }
    }

    #[test]
    fn one_source_cannot_fill_the_queue_for_the_others() {
        let hasher = hasher();
        let hold = block(&hasher);
        let log = Arc::default();
        let accepted = (0..1000).filter(|_| hasher.push("flood".into(), job(&log, 1)).is_ok()).count();
        assert_eq!(accepted, PER_SOURCE);
        assert!(hasher.push("ana".into(), job(&log, 2)).is_ok());
        drop(hold);
    }

    #[test]
    fn several_floods_cannot_fill_the_queue_either() {
        let hasher = hasher();
        let hold = block(&hasher);
        let log = Arc::default();
        for n in 0..1000 {
            let _ = hasher.push(format!("flood {}", n % 4), job(&log, 1));
        }
        assert_eq!(hasher.queue.lock().waiting, IN_ALL);
        for _ in 0..10 {
            assert!(hasher.push("ana".into(), job(&log, 2)).is_ok());
        }
        assert_eq!(hasher.queue.lock().waiting, IN_ALL);
        assert_eq!(hasher.queue.lock().jobs["ana"].len(), 10);
        drop(hold);
    }

    #[test]
    fn sources_take_turns() {
        let hasher = hasher();
        let hold = block(&hasher);
        let log: Arc<Mutex<Vec<u8>>> = Arc::default();
        for _ in 0..10 {
            assert!(hasher.push("flood".into(), job(&log, 1)).is_ok());
        }
        assert!(hasher.push("ana".into(), job(&log, 2)).is_ok());
        let (done, finished) = mpsc::channel();
        let work: Work = Box::new(move |_| {
            let _ = done.send(());
        });
        assert!(hasher.push("flood".into(), Job { work, wanted: Box::new(|| true) }).is_ok());
        drop(hold);
        finished.recv().expect("all is worked off");
        assert_eq!(log.lock().expect("no panic")[..2], [1, 2]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_computed() {
        let hasher = hasher();
        let hold = block(&hasher);
        let log: Arc<Mutex<Vec<u8>>> = Arc::default();
        assert!(hasher.push("gone".into(), Job { wanted: Box::new(|| false), ..job(&log, 1) }).is_ok());
        let (done, finished) = mpsc::channel();
        let work: Work = Box::new(move |_| {
            let _ = done.send(());
        });
        assert!(hasher.push("there".into(), Job { work, wanted: Box::new(|| true) }).is_ok());
        drop(hold);
        finished.recv().expect("all is worked off");
        assert!(log.lock().expect("no panic").is_empty());
    }
}
