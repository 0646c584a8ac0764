//! The core alone: three to five replicas, disks that take their time and lose what they did not finish, a network that
//! loses, doubles and reorders, crashes, partitions, and clients. Schedules of 500 steps are drawn at random; after
//! every step the [laws](laws::Law) are looked at, and at the end everything is healed and must recover.
//!
//! A failing schedule is printed as small as it could be made, in a form to paste into `regressions.rs`.
//! `DETCD_SCHEDULES` says how many to run, `PROPTEST_RNG_SEED` which:
//!
//! ```text
//! DETCD_SCHEDULES=2000 PROPTEST_RNG_SEED=7 cargo test -p detcd-core --test schedules
//! ```
mod cluster;
#[path = "../disk/mod.rs"]
mod disk;
mod laws;
mod planted;
mod schedule;

use std::cell::Cell;

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use self::{
    laws::Tally,
    schedule::{Schedule, Schedules},
};

/// The length of a schedule, in steps.
const STEPS: usize = 500;
/// What a build without optimisation runs in half a minute; the full number is 2,000.
const SCHEDULES: u32 = 300;

fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() }
}

#[test]
fn every_schedule_keeps_the_laws() {
    let cases = std::env::var("DETCD_SCHEDULES").ok().and_then(|number| number.parse().ok()).unwrap_or(SCHEDULES);
    let total = Cell::new(Tally::default());
    let run = |schedule: Schedule| {
        let tally = schedule.run(None, &[]).map_err(|violation| TestCaseError::fail(violation.to_string()))?;
        total.set(total.get() + tally);
        Ok(())
    };
    match TestRunner::new(config(cases)).run(&Schedules(STEPS), run) {
        Ok(()) => {}
        Err(TestError::Fail(why, schedule)) => panic!("{why}\n{schedule:?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
    // Had less than this happened in an average schedule, it would have tested little.
    let (total, cases) = (total.get(), cases as usize);
    println!("{cases} schedules: {total:?}");
    let enough = [
        (total.leaders, 5),
        (total.committed, 30),
        (total.truncated, 1),
        (total.acknowledged, 10),
        (total.reads_served, 10),
        (total.starts, 8),
    ];
    assert!(enough.iter().all(|(seen, least)| *seen >= least * cases), "too little happened: {total:?}");
}

#[test]
fn debug_one() {
    use cluster::{Setup, Request::*, Step::*};
    let schedule = Schedule { setup: Setup { members: 3, election_ticks: 2, heartbeat_ms: 500, seed: 13428912955091308628 }, steps: vec![Tick { member: 19 }, Calm { ticks: 3 }, Isolate { member: 29 }] };
    let mut cluster = cluster::Cluster::new(schedule.setup, None, Vec::new());
    cluster.trace = Some(Vec::new());
    let verdict = schedule.steps.iter().try_for_each(|step| {cluster.trace.as_mut().unwrap().push(format!("--- {step:?}")); cluster.step(*step)});
    let x = cluster.recover();for line in cluster.trace.unwrap() { println!("{line}"); } panic!("{verdict:?} {x:?}");
}
