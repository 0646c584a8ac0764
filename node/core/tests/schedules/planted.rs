//! Proof that the laws can fail: each bug planted here must be noticed, by the law named, within a few hundred schedules.
use detcd_core::{
    event::{NodeEvent, Role},
    machine::membership::Member,
    replica::founding_log,
    types::{Digest, Index, MemberId, RequestId, Revision, Term},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner},
};

use crate::{
    STEPS,
    cluster::Plant,
    config,
    disk::Disk,
    laws::{
        Law::{self, *},
        Laws,
    },
    schedule::Schedules,
};

/// Runs schedules with the bug in until a law notices. Laws in `blind` are not looked at.
#[track_caller]
fn check(plant: Plant, blind: &[Law], expected: &[Law]) {
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(1), ..config(0) });
    for tried in 1..=300 {
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

/// What no plant above brings about within a few hundred schedules, or only by way of another law: told directly.
#[test]
fn every_other_law_notices_what_breaks_it() {
    #[track_caller]
    fn check(law: Law, events: &[(u64, NodeEvent)]) {
        let disk = || Disk::new(founding_log(&[Member::founding("m", vec!["http://m:1".into()], "token")]));
        let (disks, mut laws) = ([disk(), disk(), disk()], Laws::new(3, &disk(), Vec::new()));
        (1..=3).for_each(|id| laws.started(MemberId(id), &disk()));
        let (last, before) = events.split_last().expect("something happens");
        let mut note = |(id, event): &(u64, NodeEvent)| laws.note(MemberId(*id), event, &disks);
        assert_eq!(before.iter().try_for_each(&mut note), Ok(()));
        assert_eq!(note(last).expect_err("it breaks a law").law, law);
    }
    let leads = |id, term| {
        let leader = MemberId(id);
        (id, NodeEvent::RoleChanged { role: Role::Leader, term: Term(term), leader })
    };
    let appends = |id, index, hash| (id, NodeEvent::Appended { index: Index(index), term: Term(2), hash });
    let applies = |id, index, request, digest| {
        let (index, term, request) = (Index(index), Term(2), RequestId(request));
        (id, NodeEvent::Applied { index, term, request, revision: Revision(1), digest: Digest(digest) })
    };
    let refuses = |request| (1, NodeEvent::Refused { request: RequestId(request), definite: true });
    let acknowledges = |request, index| {
        let (request, index) = (RequestId(request), Index(index));
        (1, NodeEvent::Acknowledged { request, index })
    };
    check(OneLeader, &[leads(1, 2), leads(2, 2)]);
    check(LeaderAppends, &[leads(1, 2), appends(1, 2, 7), appends(1, 3, 7), appends(1, 2, 7)]);
    check(LogsMatch, &[appends(1, 2, 7), appends(2, 2, 8)]);
    check(LogsMatch, &[appends(1, 2, 7), appends(1, 3, 9), appends(2, 2, 7), appends(2, 3, 8)]);
    check(CommitDurable, &[appends(1, 2, 7), (1, NodeEvent::Committed { index: Index(2) })]);
    check(OneState, &[applies(1, 1, 0, 7), applies(2, 1, 0, 8)]);
    check(AppliedForward, &[applies(1, 1, 0, 7), applies(1, 3, 0, 8)]);
    check(AppliedForward, &[applies(1, 1, 0, 7), applies(1, 1, 0, 7)]);
    check(AppliedOnce, &[applies(1, 1, 5, 7), applies(1, 2, 5, 8)]);
    check(RefusedForGood, &[refuses(5), applies(1, 1, 5, 7)]);
    check(RefusedForGood, &[applies(1, 1, 5, 7), refuses(5)]);
    check(AckDurable, &[applies(1, 1, 5, 7), acknowledges(6, 1)]);
    check(AckDurable, &[applies(1, 1, 4, 7), applies(1, 2, 5, 8), acknowledges(5, 2)]);
}
