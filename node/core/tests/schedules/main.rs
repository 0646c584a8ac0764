//! The core alone: three to five replicas and whoever joins them, disks that take their time and lose what they did not
//! finish, a network that loses, doubles and reorders messages and states, crashes, partitions, clients, and operators
//! who change the membership all the while. Schedules of 500 steps are drawn at random; after every step the
//! [laws](laws::Law) are looked at, and at the end everything is healed and must recover.
//!
//! A failing schedule is printed as small as it could be made, in a form to paste into `regressions.rs`.
//! 2,000 schedules take about 20 s without optimisation; `DETCD_SCHEDULES` is how many to run instead,
//! `PROPTEST_RNG_SEED` which:
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

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner},
};

use self::{
    laws::Tally,
    schedule::{Schedule, Schedules},
};

/// The length of a schedule, in steps.
const STEPS: usize = 500;
const SCHEDULES: u32 = 2_000;

/// What to run, and the seed it is drawn from: a failure names it, so that no failing schedule is ever lost.
fn config(cases: u32) -> (Config, u64) {
    let given = Config::default();
    let seed = match given.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one("schedules"),
    };
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 20_000, rng_seed: RngSeed::Fixed(seed), ..given };
    (config, seed)
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
    let (config, seed) = config(cases);
    println!("DETCD_SCHEDULES={cases} PROPTEST_RNG_SEED={seed}");
    match TestRunner::new(config).run(&Schedules(STEPS), run) {
        Ok(()) => {}
        Err(TestError::Fail(why, schedule)) => panic!("{why}\n{schedule:?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
    let (total, cases) = (total.get(), cases as usize);
    println!("{cases} schedules: {total:?}");
    // Had less than this happened in ten schedules, they would have tested little.
    let enough = [
        (total.leaders, 30),
        (total.committed, 250),
        (total.truncated, 4),
        (total.acknowledged, 150),
        (total.reads_served, 120),
        (total.starts, 80),
        (total.stalls, 3),
    ];
    let little = enough.iter().any(|(seen, least)| seen * 10 < least * cases);
    assert!(!little || cases < 100, "too little happened: {total:?}");
}

#[test]
fn the_same_schedule_gives_the_same_outputs() {
    let mut runner = TestRunner::new(config(0).0);
    for _ in 0..10 {
        let schedule = Schedules(STEPS).new_tree(&mut runner).expect("nothing is filtered").current();
        let (first, second) = (schedule.trace(), schedule.trace());
        let same = first.iter().zip(&second).take_while(|(first, second)| first == second).count();
        assert_eq!(first.get(same), second.get(same), "{schedule:?}");
    }
}
