//! The core alone: three to five replicas and whoever joins them, disks that take their time and lose what they did not
//! finish, a network that loses, doubles and reorders messages and states, crashes, partitions, clients, and operators
//! who change the membership all the while. Schedules of 500 steps are drawn at random; after every step the
//! [laws](laws::Law) are looked at, and at the end everything is healed and must recover.
//!
//! A failing schedule is printed as small as it could be made, in a form to paste into `regressions.rs`.
//! 2,000 schedules take about a minute without optimisation; `DETCD_SCHEDULES` is how many to run instead,
//! `PROPTEST_RNG_SEED` which (1 if not given):
//!
//! ```text
//! DETCD_SCHEDULES=50000 PROPTEST_RNG_SEED=7 cargo test -p detcd-core --test schedules every
//! ```
mod cluster;
#[path = "../disk/mod.rs"]
mod disk;
mod laws;
mod operators;
mod outputs;
mod planted;
mod plants;
mod recovery;
mod regressions;
mod schedule;
mod steps;

use std::cell::Cell;

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner},
};

use self::{
    cluster::Cluster,
    laws::Tally,
    schedule::{Schedule, Schedules},
};

/// The length of a schedule, in steps.
const STEPS: usize = 500;
const SCHEDULES: u32 = 2_000;

/// The same schedules each time, unless others are asked for: no failing one is ever lost.
fn config(cases: u32) -> Config {
    let given = Config::default();
    let rng_seed = if given.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { given.rng_seed };
    Config { cases, failure_persistence: None, max_shrink_iters: 20_000, rng_seed, ..given }
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
    let (total, cases) = (total.get(), cases as usize);
    println!("{cases} schedules: {total:?}");
    let little = too_little(&total, cases);
    assert!(little.is_empty() || cases < 200, "too little happened: {little:?} of {total:?}");
}

/// Had less than this happened in a hundred schedules, they would have tested little.
fn too_little(total: &Tally, cases: usize) -> Vec<&'static str> {
    let least = [
        ("leaders", total.leaders, 400),
        ("committed", total.committed, 3_500),
        ("truncated", total.truncated, 70),
        ("acknowledged", total.acknowledged, 1_800),
        ("reads_served", total.reads_served, 1_300),
        ("starts", total.starts, 900),
        ("stalls", total.stalls, 25),
        ("installs", total.installs, 110),
        ("dropped", total.dropped, 5),
        ("lost", total.lost, 4),
        ("cuts", total.cuts, 3_500),
        ("checkpoints", total.checkpoints, 400),
        ("released", total.released, 700),
        ("voters_added", total.voters_added, 60),
        ("learners_added", total.learners_added, 50),
        ("promoted", total.promoted, 15),
        ("removed", total.removed, 90),
        ("updated", total.updated, 25),
        ("invalid", total.invalid, 140),
        ("changed", total.changed, 200),
        ("leaders_removed", total.leaders_removed, 35),
        ("removed_themselves", total.removed_themselves, 3),
        ("to_one", total.to_one, 6),
        ("transfers", total.transfers, 45),
        ("stops", total.stops, 120),
        ("said_removed", total.said_removed, 60),
        ("removed_started", total.removed_started, 40),
        ("joined", total.joined, 100),
        ("events_watched", total.events_watched, 8_000),
        ("watches_canceled", total.watches_canceled, 10),
    ];
    least.iter().filter(|(_, seen, least)| seen * 100 < least * cases).map(|(name, ..)| *name).collect()
}

#[test]
fn the_same_schedule_gives_the_same_outputs() {
    let mut runner = TestRunner::new(config(0));
    for _ in 0..10 {
        let schedule = Schedules(STEPS).new_tree(&mut runner).expect("nothing is filtered").current();
        let (first, second) = (schedule.trace(), schedule.trace());
        let same = first.iter().zip(&second).take_while(|(first, second)| first == second).count();
        assert_eq!(first.get(same), second.get(same), "{schedule:?}");
    }
}

#[test]
fn recovering_twice_equals_recovering_once() {
    let mut runner = TestRunner::new(config(0));
    for _ in 0..50 {
        let Schedule { setup, steps } = Schedules(STEPS).new_tree(&mut runner).expect("nothing is filtered").current();
        let mut cluster = Cluster::new(setup, None, Vec::new());
        cluster.start_all().unwrap_or_else(|violation| panic!("{violation}"));
        for step in steps {
            cluster.step(step).unwrap_or_else(|violation| panic!("{violation}"));
        }
        for at in 0..cluster.members.len() {
            let mut once = || {
                cluster.crash(at, 0, 0);
                let files = cluster.disks[at].durable();
                cluster.start(at).unwrap_or_else(|violation| panic!("{violation}"));
                let replica = cluster.members[at].replica.as_ref().expect("it started");
                (files, replica.status(), replica.machine().digest(), replica.machine().membership.clone())
            };
            assert_eq!(once(), once());
        }
    }
}
