//! Spoilt accounts of the nodes.
use detcd_core::{
    event::{Members, NodeEvent, Role},
    types::{Digest, Index, MemberId, PersistId, RequestId, Revision, Term},
};

use super::{CONFIG, History, breaks, breaks_both, cluster::id, judge};
use crate::{
    history::{Content, Event, KeyValue, Keys, Nanos, NodeNumber, Stamped},
    oracle::Verdict,
};

const DURABILITY: &str = "durability";
const AGREEMENT: &str = "agreement";
const ELECTION: &str = "election_safety";
const LOGS: &str = "log_matching";
const MEMBERSHIP: &str = "membership";

impl History {
    pub fn node_event(&mut self, at: usize) -> &mut NodeEvent {
        match &mut self.events[at].event {
            Event::Node { event, .. } => event,
            other => panic!("{other:?}"),
        }
    }

    /// What a member read back at a later start, if it is as wanted.
    pub fn recovered(&mut self, wanted: impl Fn(&NodeEvent) -> bool) -> Option<&mut NodeEvent> {
        let recovered = |event: &NodeEvent| matches!(event, NodeEvent::Recovered { .. }).then(|| wanted(event));
        let (at, ..) = self.nodes(recovered).skip(3).find(|(.., wanted)| *wanted)?;
        Some(self.node_event(at))
    }

    /// Who leads at the end.
    pub fn last_leader(&self) -> (NodeNumber, Term) {
        let leads = |event: &NodeEvent| match event {
            NodeEvent::RoleChanged { role: Role::Leader, term, .. } => Some(*term),
            _ => None,
        };
        let (_, node, term) = self.nodes(leads).next_back().expect("somebody leads");
        (node, term)
    }
}

fn acknowledged(event: &NodeEvent) -> Option<Index> {
    match event {
        NodeEvent::Acknowledged { index, .. } => Some(*index),
        _ => None,
    }
}

#[test]
fn what_is_not_on_a_quorum_breaks_durability() {
    // Two disks of three never finish anything.
    breaks(DURABILITY, |history| {
        history.events.retain(|event| {
            let Event::Node { node, event: NodeEvent::Persisted { .. } } = event.event else { return true };
            node == NodeNumber(1)
        });
        true
    });
    // One disk finished last before an acknowledgement, and was needed: now it finishes right after.
    breaks(DURABILITY, |history| {
        let (end, _, index) = history.nodes(acknowledged).nth(5).expect("writes are acknowledged");
        let appended = |event: &NodeEvent| match event {
            NodeEvent::Appended { index: at, .. } => *at == index,
            _ => false,
        };
        let begin = history.nodes(|event| appended(event).then_some(())).next().expect("it was appended").0;
        let is_persisted =
            |at: &usize| matches!(history.events[*at].event, Event::Node { event: NodeEvent::Persisted { .. }, .. });
        let late: Vec<_> = (begin..end).filter(is_persisted).collect();
        for at in late.into_iter().rev() {
            let event = history.events.remove(at);
            history.events.insert(end, event);
        }
        true
    });
    // Nobody knows of such an entry.
    breaks_both(DURABILITY, &["strict_serializability"], |history| {
        let (at, ..) = history.nodes(acknowledged).nth(5).expect("writes are acknowledged");
        let NodeEvent::Acknowledged { index, .. } = history.node_event(at) else { unreachable!() };
        index.0 += 100_000;
        true
    });
}

#[test]
fn what_is_lost_over_a_restart_breaks_durability() {
    // Then its log has gaps, too.
    breaks_both(DURABILITY, &[LOGS], |history| {
        let Some(NodeEvent::Recovered { last, entries, .. }) = history.recovered(|_| true) else { return false };
        *last = Index(3);
        *entries = entries[..3].into();
        true
    });
    // As many, but not the same.
    breaks_both(DURABILITY, &[LOGS], |history| {
        let Some(NodeEvent::Recovered { entries, .. }) = history.recovered(|_| true) else { return false };
        let middle = entries.len() / 2;
        entries[middle].0.0 += 1_000;
        true
    });
    breaks(DURABILITY, |history| {
        let voted = |event: &NodeEvent| matches!(event, NodeEvent::Recovered { vote, .. } if vote.0 != 0);
        let Some(NodeEvent::Recovered { vote, .. }) = history.recovered(voted) else { return false };
        *vote = MemberId(0);
        true
    });
    breaks(DURABILITY, |history| {
        let Some(NodeEvent::Recovered { term, .. }) = history.recovered(|_| true) else { return false };
        term.0 -= 1;
        true
    });
    // It says that more is committed than it has.
    breaks_both(DURABILITY, &[LOGS], |history| {
        let Some(NodeEvent::Recovered { commit, last, .. }) = history.recovered(|_| true) else { return false };
        *commit = Index(last.0 + 1);
        true
    });
    // A later leader has something else where a write was acknowledged.
    breaks_both(DURABILITY, &[LOGS], |history| {
        let leads =
            |event: &NodeEvent| matches!(event, NodeEvent::RoleChanged { role: Role::Leader, .. }).then_some(());
        let changes: Vec<_> = history.nodes(leads).map(|(at, node, ())| (at, node)).collect();
        for (elected, leader) in changes.into_iter().skip(1) {
            let told = history.nodes(acknowledged).rfind(|(at, node, _)| *at < elected && *node != leader);
            let Some((_, _, index)) = told else { continue };
            let appended = |event: &NodeEvent| matches!(event, NodeEvent::Appended { index: at, .. } if *at == index);
            let of_leader = |(at, node, ()): &(usize, NodeNumber, ())| *at < elected && *node == leader;
            let found = history.nodes(|event| appended(event).then_some(())).rfind(of_leader);
            let Some((at, ..)) = found else {
                continue;
            };
            let NodeEvent::Appended { hash, .. } = history.node_event(at) else { unreachable!() };
            *hash += 1;
            return true;
        }
        false
    });
}

/// What the store holds at its last revision, version by version.
fn content(history: &History) -> (i64, Content) {
    let (mut content, everything) = (Content::default(), Keys { start: "".into(), end: Some("z".into()) });
    for (before, after) in history.states.iter().zip(&history.states[1..]) {
        for event in before.events(after, &everything, false) {
            let KeyValue { key, value, created, modified, version } = &event.kv;
            let alive = (!event.deleted).then_some((value.as_bytes(), *created, *version));
            content.add(key.as_bytes(), *modified, alive);
        }
    }
    (history.states.last().expect("there are some").revision, content)
}

/// The label is right, and what is behind it is not.
#[test]
fn a_state_that_lacks_a_version_breaks_agreement() {
    let holds = |history: &mut History, revision: i64, content: Content| {
        let end = history.events.len() - 1;
        history.insert(end, Event::Store { node: NodeNumber(2), revision, content });
    };
    breaks(AGREEMENT, |history| {
        let (revision, content) = self::content(history);
        holds(history, revision, content);
        holds(history, revision, Content(content.0 - 1));
        true
    });
    breaks(AGREEMENT, |history| {
        let (revision, content) = self::content(history);
        holds(history, revision + 1, content);
        true
    });
    let (events, states) = super::cluster::history(1, 3);
    let mut history = History { events, states };
    let (revision, content) = self::content(&history);
    holds(&mut history, revision, content);
    let verdicts = super::judge(&super::CONFIG, &history.events);
    let (_, verdict) = verdicts.iter().find(|(law, _)| *law == AGREEMENT).expect("it is a law");
    assert!(matches!(verdict, super::Verdict::Holds { .. }), "{verdict:?}");
}

/// What another member than the first applies at some index after the founding entries.
pub fn spoil_second(history: &mut History, spoil: impl Fn(&mut NodeEvent)) -> bool {
    let applied = |event: &NodeEvent| match event {
        NodeEvent::Applied { index, .. } if index.0 == 20 => Some(()),
        _ => None,
    };
    let Some((at, ..)) = history.nodes(applied).nth(1) else { return false };
    spoil(history.node_event(at));
    true
}

#[test]
fn members_that_differ_break_agreement() {
    breaks(AGREEMENT, |history| {
        spoil_second(history, |event| {
            let NodeEvent::Applied { digest, .. } = event else { unreachable!() };
            *digest = Digest(digest.0 + 1);
        })
    });
    breaks(AGREEMENT, |history| {
        spoil_second(history, |event| {
            let NodeEvent::Applied { request, .. } = event else { unreachable!() };
            *request = RequestId(request.0 + 1);
        })
    });
    breaks(AGREEMENT, |history| {
        spoil_second(history, |event| {
            let NodeEvent::Applied { term, .. } = event else { unreachable!() };
            term.0 += 1;
        })
    });
    // A state that was taken over and is not what others had there.
    breaks(AGREEMENT, |history| {
        spoil_second(history, |event| {
            let NodeEvent::Applied { index, term, revision, digest, .. } = *event else { unreachable!() };
            let digest = Digest(digest.0 + 1);
            let voters = [0, 1, 2].map(|at| MemberId(id(at))).to_vec();
            let members = Box::new(Members { voters, ..Members::default() });
            *event = NodeEvent::SnapshotInstalled { index, term, revision, digest, members };
        })
    });
    // One entry left out, and one taken twice.
    breaks(AGREEMENT, |history| spoil_second(history, |event| *event = NodeEvent::Serving));
    breaks(AGREEMENT, |history| {
        let applied = |event: &NodeEvent| matches!(event, NodeEvent::Applied { .. }).then_some(());
        let (at, ..) = history.nodes(applied).nth(200).expect("there are more");
        let copy = history.events[at].event.clone();
        history.insert(at + 1, copy);
        true
    });
    // After a restart, not from the beginning.
    breaks(AGREEMENT, |history| {
        let start = history.last_start();
        let Event::Started { node, .. } = history.events[start].event else { unreachable!() };
        let first = |event: &NodeEvent| matches!(event, NodeEvent::Applied { index: Index(1), .. }).then_some(());
        let Some((at, ..)) = history.nodes(first).find(|(at, of, ())| *at > start && *of == node) else { return false };
        history.events.remove(at);
        true
    });
}

#[test]
fn two_leaders_in_a_term_break_election_safety() {
    let end = |history: &History| history.events.len() - 1;
    breaks(ELECTION, |history| {
        let (node, term) = history.last_leader();
        let other = node.0 % 3;
        let event = NodeEvent::RoleChanged { role: Role::Leader, term, leader: MemberId(id(other)) };
        history.insert(end(history), Event::Node { node: NodeNumber(other + 1), event });
        true
    });
    // One follows somebody else.
    breaks(ELECTION, |history| {
        let (node, term) = history.last_leader();
        let other = node.0 % 3;
        let event = NodeEvent::RoleChanged { role: Role::Follower, term, leader: MemberId(id(other)) };
        history.insert(end(history), Event::Node { node: NodeNumber(other + 1), event });
        true
    });
    breaks(ELECTION, |history| {
        let (node, term) = history.last_leader();
        let event = NodeEvent::RoleChanged { role: Role::Follower, term: Term(term.0 - 1), leader: MemberId(0) };
        history.insert(end(history), Event::Node { node, event });
        true
    });
}

#[test]
fn two_votes_in_a_term_break_election_safety() {
    let started = |event: &NodeEvent| match event {
        NodeEvent::PersistStarted { vote, .. } if vote.0 != 0 => Some(()),
        _ => None,
    };
    breaks(ELECTION, move |history| {
        let from = history.last_start();
        let Some((at, ..)) = history.nodes(started).rfind(|(at, ..)| *at > from) else { return false };
        let NodeEvent::PersistStarted { vote, .. } = history.node_event(at) else { unreachable!() };
        *vote = MemberId(vote.0 + 1);
        true
    });
    breaks(ELECTION, move |history| {
        let from = history.last_start();
        let Some((at, ..)) = history.nodes(started).rfind(|(at, ..)| *at > from) else { return false };
        let NodeEvent::PersistStarted { term, .. } = history.node_event(at) else { unreachable!() };
        term.0 -= 1;
        true
    });
    // Its vote was durable before it started again, whatever it says it found.
    breaks_both(ELECTION, &[DURABILITY], |history| {
        let voted = |event: &NodeEvent| match event {
            NodeEvent::Recovered { term, vote, .. } if vote.0 != 0 => Some((*term, *vote)),
            _ => None,
        };
        let Some((at, node, (term, vote))) = history.nodes(voted).next() else { return false };
        if let NodeEvent::Recovered { vote, .. } = history.node_event(at) {
            *vote = MemberId(0);
        }
        let (persist, vote) = (PersistId(1), MemberId(vote.0 + 1));
        history.insert(
            at + 1,
            Event::Node { node, event: NodeEvent::PersistStarted { persist, term, vote, last: None, snapshot: None } },
        );
        true
    });
}

#[test]
fn logs_that_differ_break_log_matching() {
    // In an entry that no client asked for: nobody acknowledges it.
    let leaders_entry = |history: &History| {
        let bare = |event: &NodeEvent| match event {
            NodeEvent::Applied { index, request: RequestId(0), .. } if index.0 > 3 => Some(*index),
            _ => None,
        };
        let (_, _, index) = history.nodes(bare).next().expect("leaders begin with one");
        let appended = move |event: &NodeEvent| matches!(event, NodeEvent::Appended { index: at, .. } if *at == index);
        history.nodes(move |event| appended(event).then_some(())).nth(1).expect("it is replicated").0
    };
    breaks_both(LOGS, &[DURABILITY], move |history| {
        let at = leaders_entry(history);
        let NodeEvent::Appended { hash, .. } = history.node_event(at) else { unreachable!() };
        *hash += 1;
        true
    });
    // The same entry, but something else before it.
    breaks_both(LOGS, &[DURABILITY], move |history| {
        let at = leaders_entry(history);
        let NodeEvent::Appended { term, .. } = history.node_event(at) else { unreachable!() };
        term.0 += 1_000;
        true
    });
    breaks_both(LOGS, &[DURABILITY], move |history| {
        let at = leaders_entry(history);
        history.events.remove(at);
        true
    });
}

/// One more entry at the end of the run, at the place of the last one.
fn append_at_end(history: &mut History, node: NodeNumber, change: impl Fn(&mut Term, &mut u64)) -> bool {
    let appended = |event: &NodeEvent| match event {
        NodeEvent::Appended { index, term, hash } => Some((*index, *term, *hash)),
        _ => None,
    };
    let last = history.nodes(appended).rfind(|(_, of, _)| *of == node);
    let Some((_, _, (index, mut term, mut hash))) = last else { return false };
    change(&mut term, &mut hash);
    let end = history.events.len() - 1;
    history.insert(end, Event::Node { node, event: NodeEvent::Appended { index, term, hash } });
    true
}

/// A sole voter leads in term 2, appends an entry of it and dies; it starts again and knows of some term, leads in
/// term 2 once more, and appends another entry in that place. What the law finds, if a second node appended some before.
fn led_twice(known: u64, second_appends: bool) -> Verdict {
    let (one, two) = (NodeNumber(1), NodeNumber(2));
    let recovered = |term: u64| NodeEvent::Recovered {
        term: Term(term),
        vote: MemberId(1),
        commit: Index(0),
        before: Index(0),
        last: Index(0),
        entries: Box::default(),
        applied: Index(0),
        revision: Revision(1),
        digest: Digest(0),
        members: Box::default(),
    };
    let leads = || NodeEvent::RoleChanged { role: Role::Leader, term: Term(2), leader: MemberId(1) };
    let appended = |hash: u64| NodeEvent::Appended { index: Index(1), term: Term(2), hash };
    let mut events = vec![Event::Started { node: one, member: 1 }];
    events.extend([recovered(1), leads(), appended(7)].map(|event| Event::Node { node: one, event }));
    if second_appends {
        events.push(Event::Started { node: two, member: 2 });
        events.push(Event::Node { node: two, event: appended(7) });
    }
    events.extend([Event::Killed { node: one, power_loss: false }, Event::Started { node: one, member: 1 }]);
    events.extend([recovered(known), leads(), appended(9)].map(|event| Event::Node { node: one, event }));
    let stamped = (0..).zip(events).map(|(sequence, event)| Stamped { at: Nanos(sequence), sequence, event });
    let mut verdicts = judge(&CONFIG, &stamped.collect::<Vec<_>>()).into_iter();
    verdicts.find(|(law, _)| *law == LOGS).expect("it is a law").1
}

#[test]
fn a_term_that_nobody_remembers_may_come_again() {
    assert!(matches!(led_twice(1, false), Verdict::Holds { .. }));
    assert!(matches!(led_twice(2, false), Verdict::Violated(_)), "it remembers");
    assert!(matches!(led_twice(1, true), Verdict::Violated(_)), "somebody has heard of it");
}

#[test]
fn logs_that_change_break_log_matching() {
    // A leader does over what it did.
    breaks(LOGS, |history| {
        let (leader, _) = history.last_leader();
        append_at_end(history, leader, |_, _| {})
    });
    // A follower gives up what is committed.
    breaks(LOGS, |history| {
        let (leader, _) = history.last_leader();
        append_at_end(history, NodeNumber(leader.0 % 3 + 1), |term, _| term.0 += 1)
    });
    // A member commits what it does not have, and less than before.
    breaks(LOGS, |history| {
        let end = history.events.len() - 1;
        let event = NodeEvent::Committed { index: Index(1_000_000) };
        history.insert(end, Event::Node { node: NodeNumber(1), event });
        true
    });
    breaks(LOGS, |history| {
        let end = history.events.len() - 1;
        history.insert(end, Event::Node { node: NodeNumber(1), event: NodeEvent::Committed { index: Index(5) } });
        true
    });
}

/// By what the first member to apply some entry, who leads then, applies with it these have a say.
fn change_voters(history: &mut History, voters: impl IntoIterator<Item = u64>) -> bool {
    let applied = |event: &NodeEvent| match event {
        NodeEvent::Applied { index, .. } if index.0 == 20 => Some(*index),
        _ => None,
    };
    let Some((at, node, index)) = history.nodes(applied).next() else { return false };
    let (voters, learners) = (voters.into_iter().map(MemberId).collect(), Vec::new());
    let event = NodeEvent::ConfigurationApplied { index, voters, learners, valid: true };
    history.insert(at + 1, Event::Node { node, event });
    true
}

#[test]
fn a_quorum_is_one_of_the_voters_in_force() {
    // What three of five would have to hold, two of three do.
    breaks_both(DURABILITY, &[MEMBERSHIP], |history| change_voters(history, [1, 2, 3, 4, 5].map(|id| id << 32)));
    // A fourth member joined: two are not enough any more.
    breaks(DURABILITY, |history| change_voters(history, [id(0), id(1), id(2), 1 << 32]));
}

#[test]
fn what_is_read_back_was_there_before() {
    // Whatever may have happened to its disk. If it leads later, what was acknowledged is missing, too.
    breaks_both(LOGS, &[DURABILITY], |history| {
        let Some(NodeEvent::Recovered { entries, .. }) = history.recovered(|_| true) else { return false };
        let middle = entries.len() / 2;
        entries[middle].1 += 1;
        let recovered = |event: &NodeEvent| matches!(event, NodeEvent::Recovered { .. }).then_some(());
        let (at, node, ()) = history.nodes(recovered).nth(3).expect("just seen");
        history.insert(at, Event::Tampered { node });
        true
    });
}

/// One of three leads in a term, writes, commits and acknowledges. Then another one, which knows nothing of it, becomes
/// leader in `late`.
fn leads_late(late: u64) -> Verdict {
    let voters: Vec<_> = (1..=3).map(MemberId).collect();
    let configured = NodeEvent::ConfigurationApplied { index: Index(0), voters, learners: Vec::new(), valid: true };
    let leads =
        |node: u64, term: u64| NodeEvent::RoleChanged { role: Role::Leader, term: Term(term), leader: MemberId(node) };
    let appended = NodeEvent::Appended { index: Index(1), term: Term(5), hash: 7 };
    let persist = PersistId(1);
    let started = |term: u64| NodeEvent::PersistStarted {
        persist,
        term: Term(term),
        vote: MemberId(1),
        last: Some((Index(1), Term(term))),
        snapshot: None,
    };
    let mut events: Vec<_> =
        (1..=3).map(|node| Event::Started { node: NodeNumber(node), member: node as u64 }).collect();
    let mut note = |node: usize, event: NodeEvent| events.push(Event::Node { node: NodeNumber(node), event });
    (1..=3).for_each(|node| note(node, configured.clone()));
    note(1, leads(1, 5));
    for node in [1, 2] {
        [appended.clone(), started(5), NodeEvent::Persisted { persist }]
            .into_iter()
            .for_each(|event| note(node, event));
    }
    note(1, NodeEvent::Committed { index: Index(1) });
    note(1, NodeEvent::Acknowledged { request: RequestId(1), index: Index(1) });
    note(3, leads(3, late));
    let stamped = (0..).zip(events).map(|(sequence, event)| Stamped { at: Nanos(sequence), sequence, event });
    let mut verdicts = judge(&CONFIG, &stamped.collect::<Vec<_>>()).into_iter();
    verdicts.find(|(law, _)| *law == DURABILITY).expect("it is a law").1
}

/// Its votes were long under way. What was decided since it need not have.
#[test]
fn a_leader_of_a_term_that_is_over_may_lack_what_was_decided_since() {
    assert!(matches!(leads_late(4), Verdict::Holds { .. }), "{:?}", leads_late(4));
    assert!(matches!(leads_late(6), Verdict::Violated(_)), "{:?}", leads_late(6));
}
