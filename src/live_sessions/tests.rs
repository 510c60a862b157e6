//! The memory of live sessions, alone: races by hand, one step at a time.

use super::*;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn session(n: u8) -> LiveSession {
    LiveSession {
        id: SessionId(Uuid::from_u128(u128::from(n))),
        user_id: UserId(Uuid::from_u128(1)),
        who: Who::new("user", "ana@example.com"),
        email_verified: false,
        limits: Limits { idle_ms: Some(1_800_000), expires_at: Timestamp(NOW.0 + 86_400_000) },
        unproved: false,
        // The same last byte: all in one shard.
        token: TokenHash([n, n, n, n, n, n, n, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    }
}

fn ticket(live: &LiveSessions, token: &TokenHash) -> Ticket {
    match live.meet(token, NOW, true) {
        Met::Unknown(ticket) => ticket,
        other => panic!("not unknown: {other:?}"),
    }
}

fn with(n: u8) -> (LiveSessions, TokenHash) {
    let live = LiveSessions::new(1000);
    let token = session(n).token;
    assert!(live.admit(ticket(&live, &token), session(n), NOW));
    (live, token)
}

#[test]
fn a_row_read_before_an_ending_does_not_come_in_after_it() {
    let live = LiveSessions::new(1000);
    let token = session(1).token;
    let early = ticket(&live, &token);
    live.forget(&token);
    assert!(!live.admit(early, session(1), NOW));
    assert!(matches!(live.meet(&token, NOW, false), Met::Unknown(_)));
}

#[test]
fn what_another_process_may_have_ended_is_read_again_and_keeps_its_newer_last_active() {
    let (live, token) = with(1);
    let later = Timestamp(NOW.0 + 10_000);
    assert!(matches!(live.meet(&token, later, false), Met::Live(..)));
    live.distrust();
    let ticket = ticket(&live, &token);
    assert!(live.admit(ticket, session(1), NOW));
    assert_eq!((live.last_active(&token), live.len()), (Some(later), 1));
}

#[test]
fn a_row_read_before_a_distrust_is_read_once_more() {
    let live = LiveSessions::new(1000);
    let token = session(1).token;
    let early = ticket(&live, &token);
    live.distrust();
    assert!(live.admit(early, session(1), NOW));
    assert!(matches!(live.meet(&token, NOW, false), Met::Unknown(_)));
}

#[test]
fn a_passive_request_is_no_activity() {
    let (live, token) = with(1);
    assert!(matches!(live.meet(&token, Timestamp(NOW.0 + 5_000), true), Met::Live(..)));
    assert_eq!(live.last_active(&token), Some(NOW));
}

#[test]
fn last_active_never_goes_back() {
    let (live, token) = with(1);
    live.meet(&token, Timestamp(NOW.0 + 5_000), false);
    live.meet(&token, Timestamp(NOW.0 + 1_000), false);
    assert_eq!(live.last_active(&token), Some(Timestamp(NOW.0 + 5_000)));
}

#[test]
fn only_what_lags_too_far_is_taken_and_it_is_taken_once() {
    let (live, token) = with(1);
    live.meet(&token, Timestamp(NOW.0 + 53_999), false);
    assert!(live.take_lagging().is_empty());
    live.meet(&token, Timestamp(NOW.0 + 54_000), false);
    live.meet(&token, Timestamp(NOW.0 + 54_001), false);
    let taken = live.take_lagging();
    assert_eq!(taken.iter().map(|u| u.last_active.0 - NOW.0).collect::<Vec<_>>(), [54_001]);
    assert!(live.take_lagging().is_empty());
    live.not_written(&taken);
    assert_eq!(live.take_lagging().len(), 1);
    live.written(&taken);
    assert!(live.unwritten().is_empty());
}

#[test]
fn the_first_request_after_a_silence_owes_its_last_active_and_one_that_comes_often_owes_nothing() {
    let (live, token) = with(1);
    let owes = |at: i64, passive: bool| match live.meet(&token, Timestamp(NOW.0 + at), passive) {
        Met::Live(_, owed) => owed.last_active,
        other => panic!("not live: {other:?}"),
    };
    assert!(!owes(60_000, false));
    assert!(owes(60_001, false) && live.lags_too_far(&token));
    assert!(!owes(60_002, true));
    let taken = live.take_lagging();
    live.written(&taken);
    assert!(!live.lags_too_far(&token) && !owes(60_003, false));
}

#[test]
fn the_first_use_of_a_successor_is_owed_until_the_database_knows_of_it() {
    let live = LiveSessions::new(1000);
    let successor = LiveSession { unproved: true, ..session(1) };
    assert!(live.admit(ticket(&live, &successor.token), successor.clone(), NOW));
    let first = |passive| matches!(live.meet(&successor.token, NOW, passive), Met::Live(_, Owed { first_use: true, .. }));
    assert!(first(true) && first(false));
    live.proved(&successor.token);
    assert!(!first(true) && !first(false));
}

#[test]
fn what_fell_behind_while_being_written_is_queued_again() {
    let (live, token) = with(1);
    live.meet(&token, Timestamp(NOW.0 + 60_000), false);
    let taken = live.take_lagging();
    live.meet(&token, Timestamp(NOW.0 + 200_000), false);
    live.written(&taken);
    assert_eq!(live.take_lagging().len(), 1);
}

#[test]
fn a_full_shard_drops_an_entry_at_rest_and_never_an_unwritten_one() {
    let live = LiveSessions::new(SHARDS); // One entry a shard.
    for n in [1, 2] {
        let token = session(n).token;
        assert!(live.admit(ticket(&live, &token), session(n), NOW));
    }
    assert_eq!(live.len(), 1);
    live.meet(&session(2).token, Timestamp(NOW.0 + 1), false);
    assert!(live.admit(ticket(&live, &session(3).token), session(3), NOW));
    assert_eq!(live.last_active(&session(2).token), Some(Timestamp(NOW.0 + 1)));
    // It was put in line, so that after the next write-back it may go.
    assert_eq!(live.take_lagging().len(), 1);
}

#[test]
fn nothing_is_dropped_while_there_is_room() {
    let live = LiveSessions::new(2 * SHARDS);
    assert!(live.is_empty());
    for n in [1, 2] {
        let token = session(n).token;
        assert!(live.admit(ticket(&live, &token), session(n), NOW));
    }
    assert_eq!(live.len(), 2);
    assert!(!live.is_empty());
}

#[test]
fn of_two_entries_at_rest_the_one_that_was_used_stays() {
    let live = LiveSessions::new(2 * SHARDS); // Two entries a shard.
    for n in [1, 2] {
        assert!(live.admit(ticket(&live, &session(n).token), session(n), NOW));
    }
    live.meet(&session(1).token, NOW, true);
    assert!(live.admit(ticket(&live, &session(3).token), session(3), NOW));
    assert!(live.last_active(&session(1).token).is_some() && live.last_active(&session(2).token).is_none());
}

#[test]
fn however_many_are_unwritten_none_is_dropped_and_a_new_one_finds_room() {
    let live = LiveSessions::new(SHARDS);
    for n in 1..=20 {
        let token = session(n).token;
        assert!(live.admit(ticket(&live, &token), session(n), NOW));
        live.meet(&token, Timestamp(NOW.0 + 1), false);
    }
    assert_eq!((live.len(), live.unwritten().len()), (20, 20));
}

/// The row may be older than the last-active that was written back before the entry was dropped.
#[test]
fn a_row_read_before_its_entry_was_dropped_does_not_come_in_after_it() {
    let live = LiveSessions::new(SHARDS);
    let (kept, other) = (session(1), session(2));
    assert!(live.admit(ticket(&live, &kept.token), kept.clone(), NOW));
    live.distrust();
    let early = ticket(&live, &kept.token);
    assert!(live.admit(ticket(&live, &other.token), other, NOW));
    assert_eq!(live.last_active(&kept.token), None);
    assert!(!live.admit(early, kept, NOW));
}

#[test]
fn what_is_written_already_is_not_queued_however_short_the_idle_timeout() {
    let live = LiveSessions::new(1000);
    let hasty = LiveSession { limits: Limits { idle_ms: Some(1), ..session(1).limits }, ..session(1) };
    assert!(live.admit(ticket(&live, &hasty.token), hasty.clone(), NOW));
    live.meet(&hasty.token, NOW, false);
    assert!(live.take_lagging().is_empty());
    live.meet(&hasty.token, Timestamp(NOW.0 + 1), false);
    assert_eq!(live.take_lagging().len(), 1);
}

/// A stranger cannot choose a token's hash, but a bad mixture of it would make every look slow.
#[test]
fn tokens_spread_over_all_shards_and_over_the_buckets_of_each() {
    let live = LiveSessions::new(1000);
    let ending = |byte| TokenHash([[0; 31].as_slice(), &[byte]].concat().try_into().expect("32 bytes"));
    let shards: std::collections::HashSet<_> = (0..=255).map(|byte| std::ptr::from_ref(live.shard(&ending(byte)))).collect();
    assert_eq!(shards.len(), SHARDS);
    let token = TokenHash(std::array::from_fn(|i| i as u8 + 1));
    assert_eq!(std::hash::BuildHasher::hash_one(&BuildHasherDefault::<FirstBytes>::default(), token), 0x0807_0605_0403_0201);
}

#[test]
fn names_of_those_that_went_together_are_swept_away() {
    let live = LiveSessions::new(100_000);
    let come = |n| assert!(live.admit(ticket(&live, &session(n).token), session(n), NOW));
    (1..=100).for_each(come);
    (1..=100).for_each(|n| live.forget(&session(n).token));
    for _ in 0..1000 {
        come(1);
        live.forget(&session(1).token);
    }
    assert!(live.read(&session(1).token).hand.len() < 100);
}

#[test]
fn sessions_that_come_and_go_leave_nothing_behind() {
    let live = LiveSessions::new(100_000);
    for _ in 0..10_000 {
        let token = session(1).token;
        assert!(live.admit(ticket(&live, &token), session(1), NOW));
        live.forget(&token);
    }
    assert!(live.is_empty());
    assert!(live.read(&session(1).token).hand.len() < 100);
}
