//! Spoilt accounts of who is a member.
use detcd_core::{
    event::{Members, NodeEvent},
    types::{Index, MemberId, TraceId},
};

use super::{History, breaks, breaks_both, cluster::id, nodes::spoil_second};
use crate::history::{CHANGE_TRACE, Change, Event, NodeNumber, Peer, Refused};

const DURABILITY: &str = "durability";
const MEMBERSHIP: &str = "membership";

/// Every account of the change at this index.
fn at_change(history: &mut History, index: u64, spoil: impl Fn(&mut Vec<MemberId>, &mut Vec<MemberId>)) {
    for event in &mut history.events {
        if let Event::Node { event: NodeEvent::ConfigurationApplied { index: at, voters, learners, .. }, .. } =
            &mut event.event
            && at.0 == index
        {
            spoil(voters, learners);
        }
    }
}

#[test]
fn memberships_that_make_no_sense_break_membership() {
    // One member has it otherwise.
    breaks(MEMBERSHIP, |history| {
        let change = |event: &NodeEvent| match event {
            NodeEvent::ConfigurationApplied { index, .. } if index.0 == 2 => Some(()),
            _ => None,
        };
        let (at, ..) = history.nodes(change).nth(1).expect("all apply it");
        let NodeEvent::ConfigurationApplied { voters, learners, .. } = history.node_event(at) else { unreachable!() };
        learners.extend(voters.pop());
        true
    });
    // One takes a state over that says otherwise.
    breaks_both(MEMBERSHIP, &[DURABILITY], |history| {
        spoil_second(history, |event| {
            let NodeEvent::Applied { index, term, revision, digest, .. } = *event else { unreachable!() };
            let voters = [0, 1].map(|at| MemberId(id(at))).to_vec();
            let members = Box::new(Members { voters, ..Members::default() });
            *event = NodeEvent::SnapshotInstalled { index, term, revision, digest, members };
        })
    });
    // What was not valid changed something.
    breaks_both(MEMBERSHIP, &[DURABILITY], |history| {
        let applied = |event: &NodeEvent| matches!(event, NodeEvent::Applied { index: Index(20), .. }).then_some(());
        let Some((at, node, ())) = history.nodes(applied).next() else { return false };
        let voters = [0, 1].map(|at| MemberId(id(at))).to_vec();
        let event = NodeEvent::ConfigurationApplied { index: Index(20), voters, learners: Vec::new(), valid: false };
        history.insert(at + 1, Event::Node { node, event });
        true
    });
    // Two at once.
    breaks(MEMBERSHIP, |history| {
        at_change(history, 2, |voters, _| voters.push(MemberId(id(2))));
        true
    });
    // Who was removed is back.
    breaks_both(MEMBERSHIP, &[DURABILITY], |history| {
        at_change(history, 2, |voters, _| *voters = vec![MemberId(id(1))]);
        true
    });
    // Nobody is left.
    breaks_both(MEMBERSHIP, &[DURABILITY], |history| {
        at_change(history, 1, |voters, _| voters.clear());
        true
    });
}

#[test]
fn what_a_member_starts_from_is_judged_by_who_belongs_to_it() {
    // The state that it starts from knows of members, as of index 0 nobody does.
    breaks(MEMBERSHIP, |history| {
        let Some(NodeEvent::Recovered { members, .. }) = history.recovered(|_| true) else { return false };
        members.learners.push(MemberId(id(1)));
        true
    });
    // It forgot who was removed, or made that up.
    breaks(MEMBERSHIP, |history| {
        let Some(NodeEvent::Recovered { members, .. }) = history.recovered(|_| true) else { return false };
        members.removed.push(MemberId(id(1)));
        true
    });
}

/// An operator asks for something, before some event or at the end; then these things happen, and it gets its answer.
fn ask(
    history: &mut History,
    at: Option<usize>,
    what: Change,
    meanwhile: Vec<Event>,
    outcome: Result<Vec<Peer>, Refused>,
) {
    let at = at.unwrap_or(history.events.len() - 1);
    let asked = Event::Asked { change: 9, node: NodeNumber(1), what };
    let events = [vec![asked], meanwhile, vec![Event::Told { change: 9, outcome }]].concat();
    events.into_iter().rev().for_each(|event| history.insert(at, event));
}

#[test]
fn a_change_that_was_refused_for_good_and_is_made_breaks_membership() {
    let refused = |definite| Err(Refused { definite, why: "no".into() });
    let made = |history: &mut History, first: bool, definite: bool| {
        let applied = |event: &NodeEvent| match event {
            NodeEvent::Applied { index, request, .. } if index.0 == 20 => Some((*index, *request)),
            _ => None,
        };
        let (at, node, (index, request)) = history.nodes(applied).next().expect("it is applied");
        let members = || [0, 1, 2].map(|at| MemberId(id(at))).to_vec();
        let learners = vec![MemberId(1 << 32)];
        let configuration = NodeEvent::ConfigurationApplied { index, voters: members(), learners, valid: true };
        history.insert(at + 1, Event::Node { node, event: configuration });
        let proposed = NodeEvent::Proposed { trace: TraceId(CHANGE_TRACE | 9), request };
        let meanwhile = vec![Event::Node { node, event: proposed }];
        let what = Change::Add { url: "x".into(), learner: true };
        ask(history, Some(if first { at } else { at + 2 }), what, meanwhile, refused(definite));
        if !first {
            // It is proposed before all that.
            let proposed = history.events.remove(at + 3);
            history.events.insert(at, proposed);
        }
        true
    };
    breaks(MEMBERSHIP, |history| made(history, true, true));
    breaks(MEMBERSHIP, |history| made(history, false, true));
    // A refusal that may mean anything is none.
    let (events, states) = super::cluster::history(0, 3);
    let mut history = History { events, states };
    made(&mut history, true, false);
    let verdicts = super::judge(&super::CONFIG, &history.events);
    let (_, verdict) = verdicts.iter().find(|(law, _)| *law == MEMBERSHIP).expect("it is a law");
    assert!(matches!(verdict, super::Verdict::Holds { .. }), "{verdict:?}");
}

#[test]
fn a_leader_that_never_led_breaks_membership() {
    let other = |history: &History| id(history.last_leader().0.0 % 3);
    breaks(MEMBERSHIP, |history| {
        let to = other(history);
        ask(history, None, Change::MoveLeader { to }, vec![], Ok(vec![]));
        true
    });
    // Nor does who led leads for ever.
    breaks(MEMBERSHIP, |history| {
        let (leader, _) = history.last_leader();
        history.insert(history.events.len() - 1, Event::Killed { node: leader, power_loss: false });
        ask(history, None, Change::MoveLeader { to: id(leader.0 - 1) }, vec![], Ok(vec![]));
        true
    });
    // Who leads already is no lie.
    breaks(MEMBERSHIP, |history| {
        let (to, leader) = (other(history), id(history.last_leader().0.0 - 1));
        ask(history, None, Change::MoveLeader { to: leader }, vec![], Ok(vec![]));
        ask(history, None, Change::MoveLeader { to }, vec![], Ok(vec![]));
        true
    });
}

#[test]
fn who_stands_for_election_without_a_vote_breaks_membership() {
    breaks_both(MEMBERSHIP, &[DURABILITY], |history| {
        let (leader, _) = history.last_leader();
        let leader = MemberId(id(leader.0 - 1));
        at_change(history, 3, |voters, learners| {
            voters.retain(|voter| *voter != leader);
            learners.push(leader);
        });
        // Removed and a learner at once is two changes, unless it came last.
        leader == MemberId(id(2))
    });
}

#[test]
fn a_false_word_of_who_is_a_member_breaks_membership() {
    let told = |history: &mut History, what: Change, peers: Vec<Peer>| {
        let mut event = history.events.last().expect("it ends").clone();
        event.event = Event::Asked { change: 1, node: NodeNumber(1), what };
        history.events.push(event.clone());
        event.event = Event::Told { change: 1, outcome: Ok(peers) };
        history.events.push(event);
    };
    let peer = |at: usize| Peer { member: id(at), name: "".into(), urls: vec!["x".into()], learner: false };
    // As it is: that is no lie.
    let good = |history: &mut History| {
        told(history, Change::Update { member: id(0), urls: vec!["x".into()] }, (0..3).map(peer).collect());
    };
    breaks(MEMBERSHIP, |history| {
        good(history);
        told(history, Change::Remove { member: id(2) }, (0..3).map(peer).collect());
        true
    });
    breaks(MEMBERSHIP, |history| {
        good(history);
        told(history, Change::Remove { member: id(0) }, vec![peer(1), peer(2)]);
        true
    });
    breaks(MEMBERSHIP, |history| {
        good(history);
        told(history, Change::Add { url: "x".into(), learner: true }, (0..3).map(peer).collect());
        true
    });
    breaks(MEMBERSHIP, |history| {
        let mut event = history.events.last().expect("it ends").clone();
        event.event = Event::Node { node: NodeNumber(2), event: NodeEvent::Removed };
        history.events.push(event);
        true
    });
}
