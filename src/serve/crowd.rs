//! Everybody who is connected, what runs for them, and who has to go when there is no room for a newcomer.
//!
//! There is room for so many connections. When all of it is taken, a newcomer gets the place of the one that has kept us waiting
//! for longest: that is kept but silent, or has sent only a part of its headers or of a body. What we are at work on is never
//! cut off. So slow clients, however many, lock nobody out: they push each other out. SLOW-01.
//!
//! A request pays nothing for it. Connections are listed when they open and when they close; who has waited for how long is
//! looked up only when there is no room, among some of them, in turn.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Requests that may wait for the rest of their bodies, each with some tens of KiB of what has come. One more, and the connection
/// with such requests that has kept us waiting longest goes: HTTP/2 has a hundred on each.
const STARVING: usize = 4096;
/// What may be kept of answers that their clients do not take. One more, and the connection with most of them goes: HTTP/2 can
/// leave a hundred on each.
const UNSENT: usize = 64 * 1024 * 1024;
/// Connections that are looked at to find the one that goes. All of a small crowd; of a large one enough that whoever has just
/// come is safe.
const LOOK: usize = 64;
/// Who has waited for less has not kept us waiting: what they send may be on its way.
const GRACE: Duration = Duration::from_millis(250);
/// How soon it is looked again whether anybody is waiting.
const AGAIN: Duration = Duration::from_millis(50);
/// How soon somebody else is sent away, should the first one have begun a request in the meantime.
const GOES: Duration = Duration::from_secs(1);

/// The requests that run, on all connections. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Serving(Arc<All>);

#[derive(Default)]
struct All {
    running: AtomicUsize,
    /// Those among them that cannot go on before their client has sent more.
    starving: AtomicUsize,
    none: Notify,
}

impl Serving {
    /// One more request runs, until the value is dropped.
    pub fn begin(&self) -> Running {
        self.start();
        Running(self.clone())
    }

    fn start(&self) {
        self.0.running.fetch_add(1, Ordering::SeqCst);
    }

    fn finish(&self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none.notify_waiters();
        }
    }

    /// Requests that we are at work on. One that waits for the rest of its body is none: its client can make it last.
    pub fn at_work(&self) -> usize {
        self.0.running.load(Ordering::Relaxed).saturating_sub(self.0.starving.load(Ordering::Relaxed))
    }

    /// Resolves when no request runs.
    pub(super) async fn idle(&self) {
        loop {
            let none = self.0.none.notified();
            if self.0.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }
}

/// A request that runs.
pub struct Running(Serving);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// The connections. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Crowd(Arc<Hall>);

struct Hall {
    room: usize,
    /// What is kept of answers on all connections, in bytes.
    unsent: AtomicUsize,
    serving: Serving,
    opened: Instant,
    present: Mutex<Present>,
    left: Notify,
}

#[derive(Default)]
struct Present {
    lines: Vec<Arc<Line>>,
    /// Where the next look begins.
    next: usize,
}

impl Present {
    /// Those that are looked at now; the next look goes on where this one ends.
    fn some(&mut self) -> impl Iterator<Item = &Arc<Line>> {
        let (all, from) = (self.lines.len(), self.next);
        self.next = if all > LOOK { (from + LOOK) % all } else { 0 };
        let lines = &self.lines;
        (0..all.min(LOOK)).map(move |n| &lines[(from + n) % all])
    }
}

impl Crowd {
    pub(super) fn new(room: usize, serving: Serving) -> Self {
        let hall = Hall { room, unsent: AtomicUsize::new(0), serving, opened: Instant::now(), present: Mutex::default(), left: Notify::new() };
        Crowd(Arc::new(hall))
    }

    /// Takes a place for a new connection. If there is none, somebody else's; if we are at work for everybody, waits.
    pub(super) async fn enter(&self) -> Place {
        loop {
            let left = self.0.left.notified();
            tokio::pin!(left);
            // From here on a place that becomes free is heard of.
            left.as_mut().enable();
            if let Some(place) = self.take() {
                return place;
            }
            let patience = if self.0.send_somebody_away(|_| true) { GOES } else { AGAIN };
            let _ = tokio::time::timeout(patience, left).await;
        }
    }

    fn take(&self) -> Option<Place> {
        let mut present = self.0.present();
        if present.lines.len() >= self.0.room {
            return None;
        }
        let line = Arc::new(Line::new(&self.0, present.lines.len()));
        present.lines.push(line.clone());
        Some(Place { line, crowd: self.clone() })
    }
}

impl Hall {
    /// Sends away whoever of these has been waiting for longest among those that are looked at, if anybody has.
    fn send_somebody_away(&self, of_these: impl Fn(&Line) -> bool) -> bool {
        let latest = micros_between(self.opened, Instant::now()).saturating_sub(GRACE.as_micros() as u64);
        let mut present = self.present();
        let waiting = present.some().filter(|line| of_these(line) && line.is_waiting() && !line.sent_away.load(Ordering::Relaxed));
        let longest = waiting.map(|line| (line.since.load(Ordering::Relaxed), line)).filter(|(since, _)| *since <= latest).min_by_key(|(since, _)| *since);
        if let Some((_, line)) = longest {
            line.send_away();
        }
        longest.is_some()
    }

    /// Sends away whoever among those that are looked at has most of our answers lie, and more than their share. Whether they have
    /// just asked for another one is no matter: that costs them nothing.
    fn send_the_deafest_away(&self) {
        let mut present = self.present();
        let share = UNSENT / present.lines.len().max(1);
        let unsent = |line: &Arc<Line>| line.unsent.load(Ordering::Relaxed);
        let deaf = present.some().filter(|line| unsent(line) > share && !line.sent_away.load(Ordering::Relaxed));
        if let Some(deafest) = deaf.max_by_key(|line| unsent(line)) {
            deafest.send_away();
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros_between(earlier: Instant, later: Instant) -> u64 {
    u64::try_from(later.duration_since(earlier).as_micros()).unwrap_or(u64::MAX)
}

/// A place in the crowd, until it is dropped.
pub(super) struct Place {
    line: Arc<Line>,
    crowd: Crowd,
}

impl Place {
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = self.crowd.0.present();
        let at = self.line.place.load(Ordering::Relaxed);
        present.lines.swap_remove(at);
        if let Some(moved) = present.lines.get(at) {
            moved.place.store(at, Ordering::Relaxed);
        }
        drop(present);
        self.crowd.0.left.notify_waiters();
    }
}

/// A connection, as its stream, its service and the crowd know it.
pub(super) struct Line {
    hall: Arc<Hall>,
    /// Where it stands among those present; changed under their lock.
    place: AtomicUsize,
    /// Requests that run on it.
    running: AtomicUsize,
    /// Requests that have begun on it: a quick one is over before the stream is asked again.
    begun: AtomicUsize,
    /// Requests on it that wait for the rest of their bodies.
    starving: AtomicUsize,
    /// What is kept of answers on it, in bytes.
    unsent: AtomicUsize,
    /// It speaks HTTP/2, whose frames say nothing about requests: there only silence counts.
    http2: AtomicBool,
    /// Since when it has been waiting for its client, if it is: microseconds since the server began, for many come within a millisecond.
    since: AtomicU64,
    sent_away: AtomicBool,
    /// Whom to wake when it is sent away.
    waker: Mutex<Option<Waker>>,
}

impl Line {
    fn new(hall: &Arc<Hall>, place: usize) -> Self {
        let line = Line {
            hall: hall.clone(),
            place: AtomicUsize::new(place),
            running: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            starving: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            http2: AtomicBool::new(false),
            since: AtomicU64::new(0),
            sent_away: AtomicBool::new(false),
            waker: Mutex::new(None),
        };
        line.waits_from(Instant::now());
        line
    }

    /// A request begins.
    pub(super) fn begin(&self, is_http2: bool) {
        if is_http2 {
            self.http2.store(true, Ordering::Relaxed);
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.hall.serving.start();
    }

    /// A request has been answered, or nobody wants its answer any more.
    pub(super) fn finish(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.hall.serving.finish();
    }

    /// A request waits for the rest of its body; `anew` if it has not done so before. A body that comes in drops keeps us waiting
    /// from its first drop on, and bodies beside it from the first one's: neither may keep its place by that. SLOW-01.
    pub(super) fn starve(&self, anew: bool) {
        if self.starving.fetch_add(1, Ordering::SeqCst) == 0 && anew {
            self.waits_from(Instant::now());
        }
        if self.hall.serving.0.starving.fetch_add(1, Ordering::Relaxed) >= STARVING {
            self.hall.send_somebody_away(|line| line.starving.load(Ordering::Relaxed) > 0);
        }
    }

    /// Some of it has come, or is not wanted any more.
    pub(super) fn feed(&self) {
        self.starving.fetch_sub(1, Ordering::SeqCst);
        self.hall.serving.0.starving.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many bytes of an answer are kept until the client takes them.
    pub(super) fn keep(&self, bytes: usize) {
        self.unsent.fetch_add(bytes, Ordering::Relaxed);
        if self.hall.unsent.fetch_add(bytes, Ordering::Relaxed) + bytes > UNSENT {
            self.hall.send_the_deafest_away();
        }
    }

    /// They have been taken, or nobody wants them any more.
    pub(super) fn let_go(&self, bytes: usize) {
        self.unsent.fetch_sub(bytes, Ordering::Relaxed);
        self.hall.unsent.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }

    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// From now on it is the client's turn.
    pub(super) fn waits_from(&self, now: Instant) {
        self.since.store(micros_between(self.hall.opened, now), Ordering::Relaxed);
    }

    /// Whether nothing can go on before the client has sent more.
    fn is_waiting(&self) -> bool {
        self.running.load(Ordering::SeqCst) <= self.starving.load(Ordering::SeqCst)
    }

    fn send_away(&self) {
        self.sent_away.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waker().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Whether somebody else gets its place. A request that began meanwhile is answered first.
    pub(super) fn must_go(&self) -> bool {
        self.sent_away.load(Ordering::SeqCst) && self.is_waiting()
    }

    /// Whom to wake when it must go.
    pub(super) fn wake_by(&self, waker: &Waker) {
        *self.waker() = Some(waker.clone());
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(place: &Place) -> Arc<Line> {
        place.line().clone()
    }

    /// A request whose body does not come.
    fn starve(line: &Line) {
        line.begin(true);
        line.starve(true);
    }

    /// SLOW-02: what has come of bodies is bounded, and the slowest pay for it.
    #[tokio::test(start_paused = true)]
    async fn more_unfinished_bodies_than_there_is_memory_for_cost_the_slowest_their_connection() {
        let crowd = Crowd::new(1000, Serving::default());
        let silent = crowd.enter().await;
        let slow = crowd.enter().await;
        for _ in 0..STARVING {
            starve(slow.line());
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!slow.line().must_go());
        let newest = crowd.enter().await;
        starve(newest.line());
        assert_eq!((silent.line().must_go(), slow.line().must_go(), newest.line().must_go()), (false, true, false));
    }

    /// SLOW-02: what is kept of answers is bounded, and whoever does not take theirs pays for it.
    #[tokio::test(start_paused = true)]
    async fn more_unsent_answers_than_there_is_memory_for_cost_whoever_has_most_their_connection() {
        let crowd = Crowd::new(1000, Serving::default());
        let silent = crowd.enter().await;
        let deaf = crowd.enter().await;
        deaf.line().keep(UNSENT);
        let newest = crowd.enter().await;
        assert!(!deaf.line().must_go());
        newest.line().keep(1);
        assert_eq!((silent.line().must_go(), deaf.line().must_go(), newest.line().must_go()), (false, true, false));
        deaf.line().let_go(UNSENT);
        newest.line().keep(UNSENT - 1);
        assert!(!newest.line().must_go() && !silent.line().must_go());
        // Nobody goes who has no more than their share, however many do.
        silent.line().keep(UNSENT / 3);
        assert!(newest.line().must_go() && !silent.line().must_go());
        newest.line().let_go(UNSENT - 1);
    }

    /// Of a large crowd some are looked at, in turn: those who take their answers are not taken for those who do not.
    #[tokio::test(start_paused = true)]
    async fn nobody_goes_for_what_others_do_not_take() {
        let crowd = Crowd::new(LOOK * 4, Serving::default());
        let mut places = Vec::new();
        for _ in 0..LOOK * 4 {
            places.push(crowd.enter().await);
        }
        let deaf = places[LOOK * 3].line();
        deaf.keep(UNSENT);
        places[0].line().keep(10);
        (0..4).for_each(|_| places[0].line().keep(1));
        assert!(deaf.must_go() && places.iter().filter(|place| place.line().must_go()).count() == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_drops_keeps_no_place_from_a_newcomer() {
        let crowd = Crowd::new(1, Serving::default());
        let dripping = crowd.enter().await;
        starve(dripping.line());
        for _ in 0..10 {
            tokio::time::advance(GRACE / 2).await;
            dripping.line().feed();
            dripping.line().starve(false);
        }
        assert!(tokio::time::timeout(Duration::ZERO, crowd.enter()).await.is_err());
        assert!(dripping.line().must_go());
    }

    /// HTTP/2: a hundred bodies on one connection, begun one after the other.
    #[tokio::test(start_paused = true)]
    async fn bodies_that_begin_beside_an_unfinished_one_keep_no_place_either() {
        let crowd = Crowd::new(1, Serving::default());
        let greedy = crowd.enter().await;
        for _ in 0..10 {
            starve(greedy.line());
            tokio::time::advance(GRACE / 2).await;
        }
        assert!(tokio::time::timeout(Duration::ZERO, crowd.enter()).await.is_err());
        assert!(greedy.line().must_go());
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_is_safe_from_those_that_come_after_it() {
        let crowd = Crowd::new(2, Serving::default());
        let first = crowd.enter().await;
        tokio::time::advance(GRACE * 2).await;
        let second = crowd.enter().await;
        let third = crowd.enter();
        assert!(tokio::time::timeout(Duration::ZERO, third).await.is_err());
        assert_eq!((first.line().must_go(), second.line().must_go()), (true, false));
        drop(first);
        let third = crowd.enter().await;
        assert!(tokio::time::timeout(GRACE / 2, crowd.enter()).await.is_err());
        assert!(!second.line().must_go() && !third.line().must_go(), "they have just come");
    }

    /// Of a large crowd some are looked at, in turn; in the end everybody.
    #[tokio::test(start_paused = true)]
    async fn in_a_large_crowd_nobody_can_hide() {
        let crowd = Crowd::new(LOOK * 10, Serving::default());
        let mut places = Vec::new();
        for _ in 0..LOOK * 10 {
            places.push(crowd.enter().await);
        }
        let at_work: Vec<_> = places.iter().skip(1).map(line_of).collect();
        at_work.iter().for_each(|line| line.begin(false));
        tokio::time::advance(GRACE * 2).await;
        let looks = (0..10).filter(|_| crowd.0.send_somebody_away(|_| true)).count();
        assert_eq!((looks, places[0].line().must_go()), (1, true));
        // A place that is left in the middle is found again by nobody else.
        drop(places.swap_remove(5));
        drop(places.remove(0));
        let again = crowd.enter().await;
        assert_eq!(crowd.0.present().lines.len(), LOOK * 10 - 1);
        drop((places, again));
        assert!(crowd.0.present().lines.is_empty());
    }
}
