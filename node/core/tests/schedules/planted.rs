//! Proof that the laws can fail: each bug planted here must be noticed, by the law named, within a few hundred schedules.
use detcd_core::{
    event::{NodeEvent, Role},
    machine::membership::Member,
    proto::raftpb,
    replica::founding_log,
    types::{Digest, Index, MemberId, PersistId, RequestId, Revision, Term},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner},
};

use crate::{
    STEPS, config,
    disk::Disk,
    laws::{
        Law::{self, *},
        Laws,
    },
    plants::Plant,
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
fn a_state_that_is_not_durable_when_it_is_used_is_noticed() {
    check(Plant::InstalledEarly, &[], &[PromiseDurable]);
}

#[test]
fn what_does_not_reach_the_disk_is_noticed() {
    check(Plant::VotesForgotten, &[], &[PromiseDurable]);
    check(Plant::VotesForgotten, &[PromiseDurable], &[OneVote]);
    check(Plant::CommitsForgotten, &[], &[StateCommitted, OneOpenChange]);
    check(Plant::CommitsForgotten, &[StateCommitted], &[OneOpenChange]);
}

#[test]
fn a_conflicting_tail_that_rises_again_is_noticed() {
    check(Plant::ConflictsKept, &[], &[LogsMatch]);
}

#[test]
fn a_read_that_nobody_confirmed_is_noticed() {
    check(Plant::ReadsUnconfirmed, &[], &[ReadFresh]);
}

#[test]
fn a_member_that_applies_something_else_is_noticed() {
    check(Plant::OtherValueApplied, &[], &[OneState]);
    check(Plant::OtherValueApplied, &[OneState], &[WatchComplete, Recovers]);
    check(Plant::RemovalsForgotten, &[], &[OneState]);
    check(Plant::RemovalsForgotten, &[OneState], &[OneConfiguration]);
}

#[test]
fn a_learner_that_counts_is_noticed() {
    // Or by who is told, in the voter's place, that it holds what it does not.
    check(Plant::LearnersCounted, &[], &[CommitDurable, Lives]);
}

#[test]
fn an_answer_too_many_or_too_few_is_noticed() {
    check(Plant::AnsweredTwice, &[], &[AnsweredOnce]);
    check(Plant::RefusalsSwallowed, &[], &[Answered]);
    check(Plant::ChangesSwallowed, &[], &[Answered]);
    check(Plant::TransfersSwallowed, &[], &[Answered]);
}

#[test]
fn a_follower_that_waits_for_a_lost_state_is_noticed() {
    check(Plant::LossesSwallowed, &[], &[Recovers]);
}

#[test]
fn a_watch_that_misses_something_is_noticed() {
    check(Plant::EventsSwallowed, &[], &[WatchComplete]);
}

/// What no plant above brings about within a few hundred schedules, or only by way of another law: told directly. There
/// are three founders, and nothing but their own additions in the log.
#[test]
fn every_other_law_notices_what_breaks_it() {
    #[track_caller]
    fn check(law: Law, events: &[(u64, NodeEvent)]) {
        let disk = || Disk::new(founding_log(&[1, 2, 3].map(founder)));
        // No election takes place, so that nobody has votes.
        let blind = if law == Elected { Vec::new() } else { vec![Elected] };
        let (disks, mut laws) = ([disk(), disk(), disk()], Laws::new(&disk(), blind));
        for who in (1..=3).map(MemberId) {
            laws.started(who, &disk()).unwrap();
            let founders = knows(who.0, 3, &[1, 2, 3], &[]);
            laws.note(who, &founders.1, &disks).unwrap();
        }
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
    let takes_in = |index| {
        let (persist, term, vote, snapshot) = (PersistId(1), Term(2), MemberId(0), Some((Index(index), Term(2))));
        (1, NodeEvent::PersistStarted { persist, term, vote, last: None, snapshot })
    };
    let refuses = |request| (1, NodeEvent::Refused { request: RequestId(request), definite: true });
    let acknowledges = |request, index| {
        let (request, index) = (RequestId(request), Index(index));
        (1, NodeEvent::Acknowledged { request, index })
    };
    check(OneLeader, &[leads(1, 2), leads(2, 2)]);
    check(Elected, &[leads(1, 2)]);
    check(VoterLeads, &[knows(1, 4, &[1, 2, 3], &[4]), knows(1, 5, &[2, 3], &[4]), leads(1, 2)]);
    check(LeaderAppends, &[leads(1, 2), appends(1, 4, 7), appends(1, 5, 7), appends(1, 4, 7)]);
    check(LogsMatch, &[appends(1, 4, 7), appends(2, 4, 8)]);
    check(LogsMatch, &[appends(1, 4, 7), appends(1, 5, 9), appends(2, 4, 7), appends(2, 5, 8)]);
    check(CommitDurable, &[appends(1, 4, 7), (1, NodeEvent::Committed { index: Index(4) })]);
    check(CommitDurable, &[takes_in(4)]);
    check(OneState, &[applies(1, 1, 0, 7), applies(2, 1, 0, 8)]);
    check(AppliedForward, &[applies(1, 1, 0, 7), applies(1, 3, 0, 8)]);
    check(AppliedForward, &[applies(1, 1, 0, 7), applies(1, 1, 0, 7)]);
    check(AppliedOnce, &[applies(1, 1, 5, 7), applies(1, 2, 5, 8)]);
    check(RefusedForGood, &[refuses(5), applies(1, 1, 5, 7)]);
    check(RefusedForGood, &[applies(1, 1, 5, 7), refuses(5)]);
    check(AckDurable, &[applies(1, 1, 5, 7), acknowledges(6, 1)]);
    check(AckDurable, &[applies(1, 1, 4, 7), applies(1, 2, 5, 8), acknowledges(5, 2)]);
    check(OneConfiguration, &[knows(1, 4, &[1, 2, 3, 4], &[]), knows(2, 4, &[1, 2, 3], &[4])]);
    check(QuorumsMeet, &[knows(1, 4, &[1, 2, 3, 4, 5], &[])]);
    check(QuorumsMeet, &[knows(1, 4, &[1, 4], &[])]);
    check(QuorumsMeet, &[knows(1, 4, &[1, 2, 3], &[3])]);
    check(NoReturn, &[knows(1, 4, &[1, 2], &[]), knows(1, 5, &[1, 2], &[3])]);
}

#[test]
fn a_message_in_another_name_is_noticed() {
    let disk = Disk::new(founding_log(&[1, 2, 3].map(founder)));
    let mut laws = Laws::new(&disk, Vec::new());
    laws.started(MemberId(1), &disk).unwrap();
    let proposal = |from| raftpb::Message {
        r#type: Some(raftpb::MessageType::MsgProp as i32),
        from: Some(from),
        ..raftpb::Message::default()
    };
    assert_eq!(laws.sent(MemberId(1), &proposal(1), Term(1), &disk), Ok(()));
    let violation = laws.sent(MemberId(1), &proposal(2), Term(1), &disk).expect_err("it is not its own");
    assert_eq!(violation.law, OwnName);
}

fn founder(id: u64) -> Member {
    Member { id: MemberId(id), ..Member::founding("", vec![format!("http://m{id}:2380")], "token") }
}

fn knows(id: u64, index: u64, voters: &[u64], learners: &[u64]) -> (u64, NodeEvent) {
    let ids = |ids: &[u64]| ids.iter().map(|id| MemberId(*id)).collect();
    let (index, voters, learners) = (Index(index), ids(voters), ids(learners));
    (id, NodeEvent::ConfigurationApplied { index, voters, learners, valid: true })
}
