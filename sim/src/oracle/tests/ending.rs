//! Clusters that stop or refuse, as they should or not.
use detcd_core::{
    event::NodeEvent,
    types::{Index, MemberId},
};

use super::CONFIG;
use crate::{
    history::{Answer, Body, Event, ExitKind, Keys, Nanos, NodeNumber, OpId, Outcome, Phase, Request, Stamped},
    oracle::{Judge, LawConfig, Verdict, all},
    scenario::Ending,
};

/// Three voters, of whom the first two end in this way.
fn ended(kind: ExitKind) -> Vec<Event> {
    let mut events: Vec<_> = (1..=3).map(started).collect();
    let voters = vec![MemberId(10), MemberId(20), MemberId(30)];
    let event = NodeEvent::ConfigurationApplied { index: Index(3), voters, learners: vec![], valid: true };
    events.push(Event::Node { node: NodeNumber(1), event });
    events.extend([1, 2].map(|node| Event::Ended { node: NodeNumber(node), kind }));
    events
}

fn started(node: usize) -> Event {
    Event::Started { node: NodeNumber(node), member: node as u64 * 10 }
}

/// A call of the third member, and what came of it.
fn called(request: Request, is_acknowledged: bool) -> [Event; 2] {
    let body = Body::Put { previous: None };
    let answer = Answer { member: 30, revision: 2, term: 2, body };
    let outcome = if is_acknowledged { Outcome::Ok(answer) } else { Outcome::Unknown("no answer in time".into()) };
    let op = OpId(1);
    [Event::Call { op, client: 0, node: NodeNumber(3), request }, Event::Return { op, outcome }]
}

fn put() -> Request {
    Request::Put { key: "k".into(), value: "v".into(), previous: false }
}

fn get(serializable: bool) -> Request {
    let keys = Keys { start: "k".into(), end: None };
    Request::Range { keys, revision: 0, limit: 0, serializable, keys_only: false, count_only: false }
}

fn verdict(ending: Ending, events: Vec<Event>) -> Verdict {
    let mut judge = Judge::new(all(&LawConfig { ending, ..CONFIG }));
    for (sequence, event) in (0..).zip(events.into_iter().chain([Event::Phase(Phase::Over)])) {
        judge.observe(&Stamped { at: Nanos(sequence), sequence, event });
    }
    judge.finish().into_iter().find(|(law, _)| *law == "ending").expect("it is asked").1
}

#[track_caller]
fn holds(ending: Ending, events: Vec<Event>) {
    let verdict = verdict(ending, events);
    assert!(matches!(verdict, Verdict::Holds { judged: 1.., .. }), "{verdict:?}");
}

#[track_caller]
fn shows_nothing(ending: Ending, events: Vec<Event>) {
    let verdict = verdict(ending, events);
    assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
}

#[test]
fn a_cluster_without_a_quorum_acknowledges_nothing() {
    for (ending, kind) in [(Ending::Stops, ExitKind::Disk), (Ending::Refuses, ExitKind::Damage)] {
        holds(ending, [&ended(kind)[..], &called(put(), false)].concat());
        holds(ending, [&ended(kind)[..], &called(get(true), true)].concat());
        for request in [put(), get(false)] {
            let events = [&ended(kind)[..], &called(request, true)].concat();
            assert!(matches!(verdict(ending, events), Verdict::Violated(_)), "{ending:?}");
        }
        // It was called before, or one of the two is back.
        let [call, outcome] = called(put(), true);
        let late = [&[call.clone()][..], &ended(kind), std::slice::from_ref(&outcome)].concat();
        holds(ending, late);
        let back = [&ended(kind)[..], &[call, started(1), outcome]].concat();
        let back = verdict(ending, back);
        assert!(!matches!(back, Verdict::Violated(_)), "{back:?}");
    }
}

#[test]
fn who_expects_it_wants_to_see_it() {
    shows_nothing(Ending::Stops, ended(ExitKind::Damage));
    shows_nothing(Ending::Refuses, ended(ExitKind::Removed));
    for (ending, kind) in [(Ending::Stops, ExitKind::Disk), (Ending::Refuses, ExitKind::Damage)] {
        let mut one = ended(kind);
        one.pop();
        shows_nothing(ending, one);
    }
    // Who stopped may be back, who refused may not.
    let back = |kind| [&ended(kind)[..], &[started(1)]].concat();
    holds(Ending::Stops, back(ExitKind::Disk));
    shows_nothing(Ending::Refuses, back(ExitKind::Damage));
}
