//! Schedules that once broke a law, as small as they could be made.
use crate::{
    schedule::Schedule,
    steps::{LEADER, Request, Setup, Step, Step::*},
};

#[track_caller]
fn check(setup: Setup, steps: &[Step]) {
    let schedule = Schedule { setup, steps: steps.to_vec() };
    if let Err(violation) = schedule.run(None, &[]) {
        panic!("{violation}");
    }
}

/// An empty append and older entries, both for a follower found unreachable in between, became one message. The
/// follower acknowledged three entries more than it had.
#[test]
fn a_follower_acknowledges_what_it_has() {
    let setup =
        Setup { members: 4, election_ticks: 3, heartbeat_ms: 500, tail_bytes: 1 << 20, seed: 13888740159074598291 };
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
    let setup =
        Setup { members: 3, election_ticks: 2, heartbeat_ms: 500, tail_bytes: 1 << 20, seed: 9510990744032055631 };
    let crash = |member, survived, torn| Crash { member, survived, torn };
    let steps = [Tick { member: 3 }, Calm { ticks: 3 }, crash(LEADER, 1, 1), crash(LEADER, 0, 1), crash(13, 0, 2)];
    check(setup, &steps);
}
