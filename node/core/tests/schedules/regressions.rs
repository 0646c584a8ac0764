//! Schedules that once broke a law, as small as they could be made.
use crate::{
    schedule::Schedule,
    steps::{Change, LEADER, Request, Setup, Step, Step::*},
};

#[track_caller]
fn check(setup: Setup, steps: &[Step]) {
    let schedule = Schedule { setup, steps: steps.to_vec() };
    if let Err(violation) = schedule.run(None, &[]) {
        panic!("{violation}");
    }
}

/// Everybody is connected with everybody.
fn change(member: u8, change: Change) -> Step {
    Step::Change { member, change, connected: u8::MAX, healthy: u8::MAX }
}

/// An empty append and older entries, both for a follower found unreachable in between, became one message. The
/// follower acknowledged three entries more than it had.
#[test]
fn a_follower_acknowledges_what_it_has() {
    let setup = Setup {
        members: 4,
        election_ticks: 3,
        heartbeat_ms: 500,
        tail_bytes: 1 << 20,
        outputs_max: 16 << 10,
        seed: 13888740159074598291,
    };
    let steps = [
        Tick { member: 0 },
        TickAll,
        Calm { ticks: 2 },
        TickAll,
        TickAll,
        Busy { member: 36, inputs: 10 },
        Flow { count: 32 },
        Propose { member: 36, request: Request::Range },
        Reset { from: LEADER, to: 29 },
    ];
    check(setup, &steps);
}

/// Two members whose seeds differ as their ids do drew the same election timeouts for ever.
#[test]
fn neighbouring_seeds_do_not_tie_for_ever() {
    let setup = Setup {
        members: 3,
        election_ticks: 2,
        heartbeat_ms: 500,
        tail_bytes: 1 << 20,
        outputs_max: 16 << 10,
        seed: 9510990744032055631,
    };
    let crash = |member, survived, torn| Crash { member, survived, torn };
    let steps = [Tick { member: 3 }, Calm { ticks: 3 }, crash(LEADER, 1, 1), crash(LEADER, 0, 1), crash(13, 0, 2)];
    check(setup, &steps);
}

/// A change that made no sense when it was applied was told as one that never is.
#[test]
fn what_is_applied_is_not_refused_for_good() {
    let setup = Setup {
        members: 5,
        election_ticks: 3,
        heartbeat_ms: 100,
        tail_bytes: 1926,
        outputs_max: 16 << 10,
        seed: 13407604693879136909,
    };
    check(setup, &[Calm { ticks: 4 }, change(34, Change::AddVoter), change(LEADER, Change::Remove { who: 23 })]);
}

/// A hand-over was never answered while nobody led.
#[test]
fn a_hand_over_has_its_time() {
    let setup = Setup {
        members: 3,
        election_ticks: 3,
        heartbeat_ms: 250,
        tail_bytes: 837,
        outputs_max: 16 << 10,
        seed: 11375045235377898588,
    };
    let before = [Tick { member: 25 }, Calm { ticks: 3 }, change(LEADER, Change::AddVoter), TickAll];
    let steps = before.into_iter().chain([Transfer { member: LEADER, to: 28 }]).chain([TickAll; 60]);
    check(setup, &steps.collect::<Vec<_>>());
}

/// A sole voter told its learner of a term that was on no disk yet, and led in it again after it had ended.
#[test]
fn a_sole_voter_speaks_of_durable_terms_only() {
    let setup = Setup {
        members: 3,
        election_ticks: 4,
        heartbeat_ms: 500,
        tail_bytes: 35,
        outputs_max: 16 << 10,
        seed: 577525821555258242,
    };
    let steps = [
        change(49, Change::AddLearner),
        Calm { ticks: 4 },
        change(LEADER, Change::Remove { who: LEADER }),
        change(16, Change::Remove { who: 32 }),
        Calm { ticks: 4 },
        Stop { member: LEADER, survived: 3 },
    ];
    check(setup, &steps);
}

/// A member that led for less than a turn was never told of as a leader.
#[test]
fn who_leads_for_a_moment_is_told_of() {
    let setup = Setup {
        members: 5,
        election_ticks: 4,
        heartbeat_ms: 250,
        tail_bytes: 1 << 20,
        outputs_max: 16 << 10,
        seed: 10498984434000456050,
    };
    let steps = [
        Calm { ticks: 5 },
        Transfer { member: LEADER, to: 38 },
        Flow { count: 9 },
        Write { member: 3, batches: 2 },
        Busy { member: 43, inputs: 8 },
        Rest,
        TickAll,
        TickAll,
        TickAll,
    ];
    check(setup, &steps);
}

/// The last but one voter was removed and gone. The last one's disk forgot: it had known only in memory, and waited for
/// the other one's vote for ever.
#[test]
fn who_was_removed_is_not_needed_after_a_power_failure() {
    let setup = Setup {
        members: 3,
        election_ticks: 3,
        heartbeat_ms: 500,
        tail_bytes: 1 << 20,
        outputs_max: 16 << 10,
        seed: 12492825024103661454,
    };
    let steps = [
        Calm { ticks: 3 },
        change(11, Change::Remove { who: 7 }),
        change(LEADER, Change::Remove { who: 44 }),
        Calm { ticks: 1 },
        Stop { member: LEADER, survived: 0 },
    ];
    check(setup, &steps);
}

/// A leader that removed itself from two went before the other one knew.
#[test]
fn a_removed_leader_stays_until_another_knows() {
    let setup = Setup {
        members: 4,
        election_ticks: 4,
        heartbeat_ms: 500,
        tail_bytes: 5,
        outputs_max: 16 << 10,
        seed: 11107252271515510535,
    };
    let steps = [
        Calm { ticks: 1 },
        Tick { member: 6 },
        change(23, Change::AddVoter),
        Calm { ticks: 1 },
        TickAll,
        Rest,
        change(LEADER, Change::Remove { who: LEADER }),
        Calm { ticks: 4 },
        change(26, Change::Remove { who: LEADER }),
        Rest,
        change(LEADER, Change::Remove { who: LEADER }),
        Crash { member: 13, survived: 3, torn: 2 },
        Stop { member: LEADER, survived: 5 },
        Flow { count: 16 },
    ];
    check(setup, &steps);
}

/// A torn write left two changes in a log, and not that the first was committed: that member would have counted quorums
/// that need not meet the others'.
#[test]
fn a_torn_write_leaves_one_open_change() {
    let setup =
        Setup { members: 3, election_ticks: 4, heartbeat_ms: 500, tail_bytes: 1 << 20, outputs_max: 16 << 10, seed: 7 };
    let steps = [
        Calm { ticks: 20 },
        Busy { member: 0, inputs: 30 },
        change(LEADER, Change::AddLearner),
        change(LEADER, Change::Update { who: 0, url: 7 }),
        Rest,
        Busy { member: 0, inputs: 0 },
        Tick { member: 0 },
        Crash { member: 0, survived: 1, torn: 2 },
    ];
    check(setup, &steps);
}
