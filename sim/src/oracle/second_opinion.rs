//! Law: each key, for itself, is a register whose operations take effect one after the other.
//!
//! A second opinion on strict serializability. It believes no revision and no index: it looks at calls and answers, and
//! searches for an order ([`check_history`]). Of the nodes it believes one thing only: a write whose outcome is unknown
//! took effect between its call and the first time that a node applied it, and before that nobody saw it.
//!
//! The search is exponential in what is in flight at a time, so it takes windows, which are cut where no operation on
//! the key was in flight. What a key holds when a window begins is not known; windows overlap, so that little slips
//! through. A window without a cut, or too hard, is given up; the law does not hold if that is more than a small part.
use std::collections::BTreeMap;

use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::Case,
    register::{Operation, Register, State, Told},
};
use crate::{
    check::{self, Budget, check_history},
    history::{Answer, Body, Event, KeyValue, Keys, OpId, Outcome, Request, Stamped, Text},
};

/// Operations in a window: it is cut at the first chance from here on, and given up when there was none up to there.
const WINDOW_OPS_MIN: usize = 150;
const WINDOW_OPS_MAX: usize = 300;
/// Operations that two windows share.
const OVERLAP_OPS: usize = 30;
/// What one search may look at; a healthy window takes less than a tenth.
const BUDGET: Budget = Budget(30_000);
/// Of all operations, what it may give up on.
const GIVEN_UP_PERCENT_MAX: u64 = 10;

#[derive(Default)]
pub struct SecondOpinion {
    case: Case,
    flying: BTreeMap<OpId, Flying>,
    /// Writes whose outcome is unknown, and that no node has applied.
    lost: BTreeMap<OpId, Flying>,
    /// Requests that no node has applied, and whose they are.
    requests: BTreeMap<u64, OpId>,
    keys: BTreeMap<Text, Track>,
}

struct Flying {
    client: u64,
    called_at: u64,
    request: Request,
    /// When a node first applied it.
    applied_at: Option<u64>,
}

/// One key's window.
struct Track {
    begins: State,
    ops: Vec<check::Operation<Operation>>,
    /// Lengths of `ops` at which nothing was in flight.
    cuts: Vec<usize>,
    in_flight: usize,
    /// The window grew too long: all up to the next cut is given up.
    too_long: bool,
}

impl Law for SecondOpinion {
    fn name(&self) -> &'static str {
        "second_opinion"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        match &event.event {
            Event::Call { op, client, request, .. } if is_judged(request) => {
                let (client, called_at, request) = (*client, event.sequence, request.clone());
                self.called(*op, Flying { client, called_at, request, applied_at: None });
            }
            Event::Return { op, outcome } => {
                if let Some(flying) = self.flying.remove(op) {
                    self.returned(event.sequence, *op, flying, outcome);
                }
            }
            Event::Node { event: NodeEvent::Proposed { trace, request }, .. } => {
                self.requests.insert(request.0, OpId(trace.0));
            }
            Event::Node { event: NodeEvent::Applied { request, .. }, .. } => {
                if let Some(op) = self.requests.remove(&request.0) {
                    self.applied(event.sequence, op);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> Verdict {
        for (op, flying) in std::mem::take(&mut self.flying) {
            self.returned(u64::MAX, op, flying, &Outcome::Unknown("the run ended first".into()));
        }
        for (key, track) in &self.keys {
            judge(key, track, &mut self.case);
        }
        let percent = self.case.given_up_percent();
        if percent > GIVEN_UP_PERCENT_MAX {
            self.case.doubt(format!("gave up on {percent} % of the operations"));
        }
        self.case.verdict()
    }
}

/// Whether it is an operation on single keys: a deletion of a range is one on each of them.
fn is_judged(request: &Request) -> bool {
    match request {
        Request::Put { .. } | Request::Delete { .. } | Request::CompareAndSet { .. } => true,
        Request::Range { keys, revision, serializable, keys_only, count_only, .. } => {
            keys.end.is_none() && *revision <= 0 && !serializable && !keys_only && !count_only
        }
    }
}

fn keys_of(request: &Request) -> Keys {
    match request {
        Request::Put { key, .. } | Request::CompareAndSet { key, .. } => Keys { start: key.clone(), end: None },
        Request::Range { keys, .. } | Request::Delete { keys, .. } => keys.clone(),
    }
}

impl SecondOpinion {
    fn called(&mut self, op: OpId, flying: Flying) {
        let keys = keys_of(&flying.request);
        if keys.end.is_none() && !self.keys.contains_key(&keys.start) {
            let covers = |flying: &&Flying| keys_of(&flying.request).contains(&keys.start);
            let in_flight = self.flying.values().filter(covers).count();
            self.keys.insert(keys.start.clone(), Track::new(in_flight));
        }
        self.of_keys(&keys, |_, track, _| track.in_flight += 1);
        self.flying.insert(op, flying);
    }

    /// Does something with the tracks of these keys.
    fn of_keys(&mut self, keys: &Keys, mut act: impl FnMut(&Text, &mut Track, &mut Case)) {
        let SecondOpinion { keys: tracks, case, .. } = self;
        if keys.end.is_none() {
            let track = tracks.get_mut(&keys.start).expect("a key has a track from its first call on");
            act(&keys.start, track, case);
        } else {
            let covered = tracks.iter_mut().filter(|(key, _)| keys.contains(key));
            covered.for_each(|(key, track)| act(key, track, case));
        }
    }

    fn returned(&mut self, sequence: u64, op: OpId, flying: Flying, outcome: &Outcome) {
        let keys = keys_of(&flying.request);
        let ended = match outcome {
            Outcome::Ok(answer) => Some((Some(answer), sequence)),
            Outcome::Unknown(_) => flying.applied_at.map(|at| (None, at)),
            Outcome::Failed(_) => None,
        };
        self.of_keys(&keys, |key, track, case| {
            track.in_flight -= 1;
            if let Some((answer, at)) = ended {
                track.push(&flying, key, answer, at, case);
            }
            track.settle(key, case);
        });
        if matches!(outcome, Outcome::Unknown(_)) && ended.is_none() && flying.request.writes() {
            self.lost.insert(op, flying);
        }
    }

    fn applied(&mut self, sequence: u64, op: OpId) {
        if let Some(flying) = self.flying.get_mut(&op) {
            flying.applied_at = Some(sequence);
        } else if let Some(flying) = self.lost.remove(&op) {
            let keys = keys_of(&flying.request);
            self.of_keys(&keys, |key, track, case| track.push(&flying, key, None, sequence, case));
        }
    }
}

impl Track {
    fn new(in_flight: usize) -> Track {
        Track { begins: State::Nothing, ops: Vec::new(), cuts: Vec::new(), in_flight, too_long: false }
    }

    fn push(&mut self, flying: &Flying, key: &Text, answer: Option<&Answer>, at: u64, case: &mut Case) {
        if self.too_long {
            return case.give_up(1);
        }
        let Flying { client, called_at, request, .. } = flying;
        let op = answer.map_or_else(|| asked(request), |answer| answered(request, answer, key));
        self.ops.push(check::Operation { client: *client, op, called_at: *called_at, returned_at: Some(at) });
    }

    /// An operation returned: perhaps the window is full.
    fn settle(&mut self, key: &str, case: &mut Case) {
        if self.in_flight > 0 {
            if self.ops.len() >= WINDOW_OPS_MAX {
                case.give_up(self.ops.len());
                self.ops.clear();
                self.too_long = true;
            }
            return;
        }
        if self.too_long {
            self.begin(0);
        }
        self.cuts.push(self.ops.len());
        if self.ops.len() >= WINDOW_OPS_MIN {
            judge(key, self, case);
            let kept = self.cuts.iter().rev().find(|cut| **cut + OVERLAP_OPS <= self.ops.len());
            self.begin(kept.copied().unwrap_or(self.ops.len()));
        }
    }

    /// A new window begins, with the operations from this one on.
    fn begin(&mut self, from: usize) {
        self.ops.drain(..from);
        self.cuts.clear();
        (self.begins, self.too_long) = (State::Anything, false);
    }
}

/// Searches the window.
fn judge(key: &str, track: &Track, case: &mut Case) {
    match check_history(&Register(track.begins.clone()), &track.ops, BUDGET) {
        check::Verdict::Linearizable => track.ops.iter().for_each(|_| case.right()),
        check::Verdict::Unknown { .. } => case.give_up(track.ops.len()),
        check::Verdict::Violation(violation) => {
            let stuck = &violation.stuck[0];
            let subject = format!("key {key:?}: {}", stuck.op);
            let last = violation.order.last().map_or("nothing", String::as_str);
            let expected = format!("another answer, {}", stuck.expected.join(" or "));
            let got = format!("it fits nowhere after {} operations, the last of them {last}", violation.order.len());
            case.take(Err(Violation::new(violation.at, subject, expected, got)));
        }
    }
}

fn seen(kv: &KeyValue) -> (Text, i64) {
    (kv.value.clone(), kv.version)
}

/// What was asked of a key, with no answer.
fn asked(request: &Request) -> Operation {
    match request {
        Request::Put { value, .. } => Operation::Put { value: value.clone(), previous: None },
        Request::Delete { .. } => Operation::Delete { existed: None, previous: None },
        Request::CompareAndSet { expected, new, .. } => {
            Operation::CompareAndSet { expected: expected.clone(), new: new.clone(), told: None }
        }
        Request::Range { .. } => unreachable!("a read without an answer is nothing"),
    }
}

/// The same with the answer, as far as it is about this key.
fn answered(request: &Request, answer: &Answer, key: &Text) -> Operation {
    let of_key = |kvs: &[KeyValue]| kvs.iter().find(|kv| kv.key == *key).map(seen);
    match (request, &answer.body) {
        (Request::Put { value, previous: true, .. }, Body::Put { previous }) => {
            Operation::Put { value: value.clone(), previous: Some(previous.as_ref().map(seen)) }
        }
        (Request::Delete { keys, previous: asked }, Body::Delete { deleted, previous }) => Operation::Delete {
            existed: keys.end.is_none().then_some(*deleted > 0),
            previous: asked.then(|| of_key(previous)),
        },
        (Request::CompareAndSet { expected, new, .. }, Body::CompareAndSet { succeeded, read }) => {
            let told = if *succeeded { Told::Swapped } else { Told::Kept { read: read.as_ref().map(seen) } };
            Operation::CompareAndSet { expected: expected.clone(), new: new.clone(), told: Some(told) }
        }
        (Request::Range { .. }, Body::Range { kvs, .. }) => Operation::Get { saw: of_key(kvs) },
        // Nothing asked for, or an answer to something else, which is for others to judge.
        (Request::Range { .. }, _) => Operation::Get { saw: None },
        _ => asked(request),
    }
}
