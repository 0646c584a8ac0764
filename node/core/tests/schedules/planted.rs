//! Proof that the laws can fail: each bug planted here must be noticed, by the law named, within a few hundred schedules.
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{RngSeed, TestRunner},
};

use crate::{
    STEPS,
    cluster::Plant,
    config,
    laws::Law::{self, *},
    schedule::Schedules,
};

/// Runs schedules with the bug in until a law notices. Laws in `blind` are not looked at.
#[track_caller]
fn check(plant: Plant, blind: &[Law], expected: &[Law]) {
    let mut runner = TestRunner::new(proptest::test_runner::Config { rng_seed: RngSeed::Fixed(1), ..config(0) });
    for tried in 1..=30000 {
        let schedule = Schedules(STEPS).new_tree(&mut runner).expect("nothing is filtered").current();
        let Err(violation) = schedule.run(Some(plant), blind) else { continue };
        println!("{plant:?}, schedule {tried}: {violation}");
        assert!(expected.contains(&violation.law), "{plant:?} broke {violation}, not one of {expected:?}");
        return;
    }
    panic!("{plant:?} went unnoticed");
}

#[test]
fn a_batch_reported_before_it_is_durable_is_noticed() {
    check(Plant::PersistedEarly, &[], &[PromiseDurable]);
    // And by what comes of it.
    check(Plant::PersistedEarly, &[PromiseDurable], &[CommitDurable]);
    check(Plant::PersistedEarly, &[PromiseDurable, CommitDurable], &[AckDurable]);
    let durable = [PromiseDurable, CommitDurable, AckDurable];
    check(Plant::PersistedEarly, &durable, &[OneLeader, LeaderHasAll, LogsMatch, OneState, OneVote, Lives]);
}

#[test]
fn a_vote_that_does_not_reach_the_disk_is_noticed() {
    check(Plant::VotesForgotten, &[], &[PromiseDurable]);
    check(Plant::VotesForgotten, &[PromiseDurable], &[OneVote]);
    check(Plant::VotesForgotten, &[PromiseDurable, OneVote], &[OneLeader]);
}

#[test]
fn a_read_that_nobody_confirmed_is_noticed() {
    check(Plant::ReadsUnconfirmed, &[], &[ReadFresh]);
}

#[test]
fn a_member_that_applies_another_value_is_noticed() {
    check(Plant::OtherValueApplied, &[], &[OneState]);
    check(Plant::OtherValueApplied, &[OneState], &[Recovers]);
}

#[test]
fn an_answer_too_many_or_too_few_is_noticed() {
    check(Plant::AnsweredTwice, &[], &[AnsweredOnce]);
    check(Plant::RefusalsSwallowed, &[], &[Answered]);
}
