//! Every law on good histories, which it must let pass, and on the same spoilt, which it must not.
//!
//! A spoilt history differs from a good one by one edit, and exactly the law that the edit breaks must say so. Some
//! edits break a second law beyond remedy; these name it. The others may say that they cannot judge any more.
mod answers;
mod cluster;
mod ending;
mod members;
mod nodes;
mod time;
mod traffic;
mod watches;

use std::collections::BTreeSet;

use detcd_core::{event::NodeEvent, types::MemberId};

use self::traffic::State;
use super::{Judge, LawConfig, Verdict, all};
use crate::{
    history::{Answer, Event, NodeNumber, OpId, Outcome, Request, Stamped},
    scenario::Ending,
};

const CONFIG: LawConfig =
    LawConfig { nodes: 3, recovery_bound_ms: 4_000, prompt_bound_ms: 60, ending: Ending::Converges };

/// How many good histories an edit is tried on.
const SEEDS: u64 = 5;

/// A history, to be spoilt.
struct History {
    events: Vec<Stamped>,
    /// The store at each revision.
    states: Vec<State>,
}

/// An operation that was answered: where its call and its return stand in the history.
struct Done {
    call: usize,
    at: usize,
    op: OpId,
    node: NodeNumber,
    request: Request,
}

fn judge(config: &LawConfig, history: &[Stamped]) -> Vec<(&'static str, Verdict)> {
    let mut judge = Judge::new(all(config));
    history.iter().for_each(|event| judge.observe(event));
    judge.finish()
}

#[test]
fn good_histories_hold() {
    for seed in 0..20 {
        let nodes = if seed % 4 == 3 { 5 } else { 3 };
        let (events, _) = cluster::history(seed, nodes);
        for (law, verdict) in judge(&LawConfig { nodes, ..CONFIG }, &events) {
            assert!(matches!(verdict, Verdict::Holds { judged: 3.., given_up: 0 }), "seed {seed}, {law}: {verdict:#?}");
        }
    }
}

#[test]
fn nothing_judged_is_not_held_for_good() {
    for (law, verdict) in judge(&CONFIG, &[]) {
        assert!(matches!(verdict, Verdict::Holds { judged: 0, .. } | Verdict::Unknown { .. }), "{law}: {verdict:?}");
    }
}

/// `spoil` returns false if the history gives it no occasion: some must. The edit must break `law`, may break `also`,
/// and nothing else.
#[track_caller]
fn breaks_both(law: &str, also: &[&str], spoil: impl Fn(&mut History) -> bool) {
    let mut occasions = 0;
    for seed in 0..SEEDS {
        let (events, states) = cluster::history(seed, 3);
        let mut history = History { events, states };
        if !spoil(&mut history) {
            continue;
        }
        occasions += 1;
        for (number, event) in history.events.iter_mut().enumerate() {
            event.sequence = number as u64;
        }
        let verdicts = judge(&CONFIG, &history.events);
        let violated = |verdict: &Verdict| matches!(verdict, Verdict::Violated(_));
        let broken: BTreeSet<_> =
            verdicts.iter().filter(|(_, verdict)| violated(verdict)).map(|(law, _)| *law).collect();
        assert!(broken.contains(law), "seed {seed}: {verdicts:#?}");
        let excused = |other: &&str| *other == law || also.contains(other);
        assert!(broken.iter().all(excused), "seed {seed}: {verdicts:#?}");
        let Some((_, Verdict::Violated(found))) = verdicts.iter().find(|(other, _)| *other == law) else {
            unreachable!()
        };
        assert!((found.sequence as usize) < history.events.len(), "{found:?}");
        assert!(![&found.subject, &found.expected, &found.got].contains(&&String::new()), "{found:?}");
        assert_ne!(found.expected, found.got);
    }
    assert!(occasions > 0, "no history gave an occasion");
}

#[track_caller]
fn breaks(law: &str, spoil: impl Fn(&mut History) -> bool) {
    breaks_both(law, &[], spoil);
}

impl History {
    /// All operations that were answered, in the order of their returns.
    fn done(&self) -> Vec<Done> {
        let mut calls = std::collections::BTreeMap::new();
        let mut done = Vec::new();
        for (at, event) in self.events.iter().enumerate() {
            match &event.event {
                Event::Call { op, node, request, .. } => drop(calls.insert(*op, (at, *node, request.clone()))),
                Event::Return { op, outcome: Outcome::Ok(_) } => {
                    let (call, node, request) = calls.remove(op).expect("returns have calls");
                    done.push(Done { call, at, op: *op, node, request });
                }
                _ => {}
            }
        }
        done
    }

    fn answer(&mut self, at: usize) -> &mut Answer {
        match &mut self.events[at].event {
            Event::Return { outcome: Outcome::Ok(answer), .. } => answer,
            other => panic!("{other:?}"),
        }
    }

    fn revision(&self, at: usize) -> i64 {
        match &self.events[at].event {
            Event::Return { outcome: Outcome::Ok(answer), .. } => answer.revision,
            other => panic!("{other:?}"),
        }
    }

    /// What the store answers to a request for the present, as of a past revision.
    fn answer_then(&mut self, done: &Done, revision: i64) {
        let state = self.states[revision as usize].clone();
        let answer = self.answer(done.at);
        (answer.revision, answer.body) = (revision, state.answer(&state, &done.request));
    }

    /// The node events of a kind, with their places, in order.
    fn nodes<'a, T>(
        &'a self,
        pick: impl Fn(&'a NodeEvent) -> Option<T> + 'a,
    ) -> impl DoubleEndedIterator<Item = (usize, NodeNumber, T)> + 'a {
        self.events.iter().enumerate().filter_map(move |(at, event)| match &event.event {
            Event::Node { node, event } => pick(event).map(|what| (at, *node, what)),
            _ => None,
        })
    }

    /// Who lives on this machine.
    fn member(&self, on: NodeNumber) -> MemberId {
        let started = self.events.iter().rev().find_map(|event| match event.event {
            Event::Started { node, member } if node == on => Some(MemberId(member)),
            _ => None,
        });
        started.expect("members start")
    }

    fn last_start(&self) -> usize {
        self.events.iter().rposition(|event| matches!(event.event, Event::Started { .. })).expect("members start")
    }

    fn insert(&mut self, at: usize, event: Event) {
        let copy = Stamped { event, ..self.events[at] };
        self.events.insert(at, copy);
    }
}

fn reads_now(request: &Request, serializable: bool) -> bool {
    matches!(request, Request::Range { revision: 0, serializable: it, .. } if *it == serializable)
}

fn is_single(request: &Request) -> bool {
    matches!(request, Request::Range { keys, .. } if keys.end.is_none())
}
