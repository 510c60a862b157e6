//! The line in front of a full counter: attempts whose outcome is not known yet fill it too, and nobody is to be refused for
//! those.
//!
//! An attempt is *in flight* from before it is counted until its outcome is. Whoever finds a counter full that would have room
//! without those in flight here takes a [`Place`] and looks again when one of them has landed. What other instances have in
//! flight is not known here: there a newcomer is refused, and asked to come back.
//!
//! Nobody is forgotten in the line: a place is taken only while somebody is in flight, whoever lands calls the next one, and
//! whoever leaves the line without having been let in passes the call on. An entry goes with the last who needs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Key;

/// Those who may wait for one counter. Beyond, a wait would outlast people's patience.
const MOST_WAITING: usize = 128;
/// Those who may wait in all lines together: whoever has many accounts must not fill the house with people who wait.
pub const MOST_IN_ALL: usize = 256;

/// All lines of this process. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Line(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    counters: HashMap<Key, Entry>,
    /// Those who wait in any line.
    waiting: usize,
    /// How many have landed since the start.
    landed: u64,
}

#[derive(Default)]
struct Entry {
    in_flight: usize,
    waiting: usize,
    turn: Arc<Notify>,
}

/// What somebody who has found a counter full is to do.
pub enum Next {
    /// Wait in this place, then look again.
    Wait(Place),
    /// Somebody has landed since the look: look again.
    LookAgain,
    /// The line is too long.
    Overloaded,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks an attempt as in flight, until it is dropped.
    pub fn enter(&self, keys: Vec<Key>) -> InFlight {
        let mut state = self.lock();
        for key in &keys {
            state.counters.entry(*key).or_default().in_flight += 1;
        }
        drop(state);
        InFlight { line: self.clone(), keys }
    }

    /// How many have landed so far: to be asked before a look at the counters.
    pub fn landed(&self) -> u64 {
        self.lock().landed
    }

    /// What to do about a counter that was found full when so many had landed; `None`: it is full of failures, and nobody is to
    /// be waited for. `has_room_without` says whether it would have room if so many attempts proved right. Whoever has a place in
    /// the line keeps it.
    pub fn join(&self, key: Key, landed: u64, has_room_without: impl FnOnce(usize) -> bool, place: Option<Place>) -> Option<Next> {
        // Dropped here, a place in another line passes its call on; under the lock it could not.
        let place = place.filter(|place| place.key == key);
        let mut state = self.lock();
        let in_flight = state.counters.get(&key).map_or(0, |entry| entry.in_flight);
        if in_flight == 0 || !has_room_without(in_flight) {
            // What was seen may be older than the last landing: only what is seen after it is final.
            let is_final = state.landed == landed;
            drop(state);
            return (!is_final).then_some(Next::LookAgain);
        }
        Some(place.map_or_else(|| self.place(&mut state, key), Next::Wait))
    }

    /// The place of a newcomer: behind those who wait for one of these counters already, so that nobody is overtaken again and
    /// again. `None`: nobody waits.
    pub fn behind(&self, keys: impl IntoIterator<Item = Key>) -> Option<Next> {
        let mut state = self.lock();
        let is_crowded = |key: &Key| state.counters.get(key).is_some_and(|entry| entry.waiting > 0 && entry.in_flight > 0);
        let key = keys.into_iter().find(is_crowded)?;
        Some(self.place(&mut state, key))
    }

    fn place(&self, state: &mut State, key: Key) -> Next {
        if state.waiting >= MOST_IN_ALL || state.counters.get(&key).is_some_and(|entry| entry.waiting >= MOST_WAITING) {
            return Next::Overloaded;
        }
        state.waiting += 1;
        let entry = state.counters.entry(key).or_default();
        entry.waiting += 1;
        Next::Wait(Place { line: self.clone(), key, turn: entry.turn.clone(), calls_next: true })
    }

    /// Nobody is in flight, and nobody waits.
    pub fn is_empty(&self) -> bool {
        self.lock().counters.is_empty()
    }
}

impl State {
    /// Takes somebody out, and calls the next one if they are to.
    fn leave(&mut self, key: &Key, calls_next: bool, out: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.counters.get_mut(key) else { return };
        out(entry);
        if entry.in_flight == 0 && entry.waiting == 0 {
            self.counters.remove(key);
        } else if calls_next {
            entry.turn.notify_one();
        }
    }
}

/// An attempt whose outcome is not known yet.
pub struct InFlight {
    line: Line,
    keys: Vec<Key>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.landed += 1;
        self.keys.iter().for_each(|key| state.leave(key, true, |entry| entry.in_flight -= 1));
    }
}

/// A place in the line in front of one counter.
pub struct Place {
    line: Line,
    key: Key,
    turn: Arc<Notify>,
    calls_next: bool,
}

impl Place {
    /// Waits to be called.
    pub async fn turn(&self) {
        self.turn.notified().await;
    }

    /// Leaves the line for the flight, whose landing calls the next one. Who is called for nothing loses their place to those
    /// behind them.
    pub fn let_in(mut self, flight: &InFlight) {
        self.calls_next = !flight.keys.contains(&self.key);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Called or not: somebody else may find room.
        let calls_next = self.calls_next;
        let mut state = self.line.lock();
        state.waiting -= 1;
        state.leave(&self.key, calls_next, |entry| entry.waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const KEY: Key = Key([7; 32]);

    fn join(line: &Line, place: Option<Place>) -> Option<Next> {
        line.join(KEY, line.landed(), |_| true, place)
    }

    fn wait(line: &Line, place: Option<Place>) -> Place {
        match join(line, place) {
            Some(Next::Wait(place)) => place,
            _ => panic!("there is somebody to wait for"),
        }
    }

    #[test]
    fn nobody_waits_when_nobody_is_in_flight() {
        let line = Line::default();
        assert!(join(&line, None).is_none() && line.behind([KEY]).is_none());
        assert!(line.is_empty());
    }

    #[test]
    fn failures_that_are_certain_are_not_waited_for() {
        let line = Line::default();
        let _flying = line.enter(vec![KEY]);
        assert!(line.join(KEY, line.landed(), |in_flight| in_flight > 1, None).is_none());
    }

    #[test]
    fn what_was_seen_before_a_landing_is_not_final() {
        let line = Line::default();
        let seen = line.landed();
        drop(line.enter(vec![KEY]));
        assert!(matches!(line.join(KEY, seen, |_| true, None), Some(Next::LookAgain)));
    }

    #[test]
    fn the_line_is_bounded_and_leaves_nothing_behind() {
        let line = Line::default();
        let flying = line.enter(vec![KEY]);
        let places: Vec<Place> = (0..MOST_WAITING).map(|_| wait(&line, None)).collect();
        assert!(matches!(join(&line, None), Some(Next::Overloaded)) && matches!(line.behind([KEY]), Some(Next::Overloaded)));
        drop(places);
        drop(flying);
        assert!(line.is_empty());
    }

    /// SLOW-01: many lines are no way round the bound of each.
    #[test]
    fn all_lines_together_are_bounded_too() {
        let line = Line::default();
        let keys: Vec<Key> = (0..3).map(|n| Key([n; 32])).collect();
        let flying = line.enter(keys.clone());
        let join = |key: Key| line.join(key, line.landed(), |_| true, None);
        let places: Vec<Place> = (0..MOST_IN_ALL)
            .map(|n| match join(keys[n % 3]) {
                Some(Next::Wait(place)) => place,
                _ => panic!("there is room"),
            })
            .collect();
        assert!(keys.iter().all(|key| matches!(join(*key), Some(Next::Overloaded))));
        drop(places);
        assert!(matches!(join(keys[0]), Some(Next::Wait(_))));
        drop(flying);
        assert!(line.is_empty() && line.lock().waiting == 0);
    }

    #[tokio::test]
    async fn a_landing_calls_one_and_whoever_leaves_calls_the_next() {
        let line = Line::default();
        let flying = line.enter(vec![KEY]);
        let (first, second, gone) = (wait(&line, None), wait(&line, None), wait(&line, None));
        drop(gone);
        drop(flying);
        first.turn().await;
        drop(first);
        second.turn().await;
        drop(second);
        assert!(line.is_empty());
    }

    #[test]
    fn a_newcomer_overtakes_nobody() {
        let line = Line::default();
        let flying = line.enter(vec![KEY]);
        assert!(line.behind([KEY]).is_none(), "nobody waits yet");
        let place = wait(&line, None);
        let other = Key([8; 32]);
        assert!(matches!(line.behind([other, KEY]), Some(Next::Wait(_))) && line.behind([other]).is_none());
        drop(flying);
        // Whoever waits is being called; there is nobody left who could call a newcomer.
        assert!(line.behind([KEY]).is_none());
        drop(place);
        assert!(line.is_empty());
    }

    #[tokio::test]
    async fn whoever_is_let_in_calls_nobody_before_they_land() {
        let line = Line::default();
        let flying = line.enter(vec![KEY]);
        let (first, second) = (wait(&line, None), wait(&line, None));
        drop(flying);
        first.turn().await;
        let flying = line.enter(vec![KEY]);
        first.let_in(&flying);
        assert!(second.turn().now_or_never().is_none());
        drop(flying);
        second.turn().await;
        drop(second);
        assert!(line.is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_on_keeps_their_place() {
        let line = Line::default();
        let (one, two) = (line.enter(vec![KEY]), line.enter(vec![KEY]));
        let place = wait(&line, None);
        drop(one);
        place.turn().await;
        let place = wait(&line, Some(place));
        drop(two);
        place.turn().await;
        assert!(join(&line, Some(place)).is_none());
        assert!(line.is_empty());
    }
}
