//! Law: each key, for itself, is a register whose operations take effect one after the other.
//!
//! A second opinion on strict serializability. It believes no revision and no index: it looks at calls and answers, and
//! searches for an order ([`check_history`]). Of the nodes it believes one thing only: a write whose outcome is unknown
//! took effect between its call and the first time that a node applied it, and before that nobody saw it. The order in
//! which nodes applied things it also tries first; but any order that it finds it holds against calls and answers alone.
//!
//! The search is exponential in what is in flight at a time, and nearly linear in the length of a history: it takes the
//! whole of each key's, once the run is over. Of a key that is too hard it says so, and does not hold.
use std::collections::BTreeMap;

use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::Case,
    register::{Operation, Register, Told},
};
use crate::{
    check::{self, Budget, check_history},
    history::{Answer, Body, Event, KeyValue, Keys, OpId, Outcome, Request, Stamped, Text},
};

/// What one search may look at: so much for each operation, where a healthy history takes little more than one, and
/// something on top for short ones.
const LOOKS_PER_OP: u64 = 500;
const LOOKS_ON_TOP: u64 = 20_000;

#[derive(Default)]
pub struct SecondOpinion {
    case: Case,
    flying: BTreeMap<OpId, Flying>,
    /// Writes whose outcome is unknown, and that no node has applied.
    lost: BTreeMap<OpId, Flying>,
    /// Requests that no node has applied, and whose they are.
    requests: BTreeMap<u64, OpId>,
    /// What was done to each key.
    keys: BTreeMap<Text, Vec<check::Operation<Operation>>>,
}

struct Flying {
    client: u64,
    called_at: u64,
    request: Request,
    /// When a node first applied it.
    applied_at: Option<u64>,
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
        let mut doubts = Vec::new();
        for (key, ops) in &self.keys {
            doubts.extend(judge(key, ops, &mut self.case));
        }
        // A violation of another key outweighs it.
        if let Some(why) = doubts.into_iter().next() {
            self.case.doubt(why);
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
        if keys.end.is_none() {
            self.keys.entry(keys.start).or_default();
        }
        self.flying.insert(op, flying);
    }

    fn returned(&mut self, sequence: u64, op: OpId, flying: Flying, outcome: &Outcome) {
        match (outcome, flying.applied_at) {
            // Reads change nothing: they are tried wherever they may come.
            (Outcome::Ok(answer), at) => self.done(&flying, Some(answer), sequence, at.unwrap_or(0)),
            (Outcome::Unknown(_), Some(at)) => self.done(&flying, None, at, at),
            (Outcome::Unknown(_), None) if flying.request.writes() => drop(self.lost.insert(op, flying)),
            (Outcome::Unknown(_) | Outcome::Failed(_), _) => {}
        }
    }

    fn applied(&mut self, sequence: u64, op: OpId) {
        if let Some(flying) = self.flying.get_mut(&op) {
            flying.applied_at = Some(sequence);
        } else if let Some(flying) = self.lost.remove(&op) {
            self.done(&flying, None, sequence, sequence);
        }
    }

    /// It took effect by then, perhaps when guessed, on each of its keys of which there is more to judge.
    fn done(&mut self, flying: &Flying, answer: Option<&Answer>, at: u64, guess: u64) {
        let Flying { client, called_at, request, .. } = flying;
        let keys = keys_of(request);
        let end = keys.end.as_ref().unwrap_or(&keys.start);
        for (key, ops) in self.keys.range_mut::<Text, _>(&keys.start..=end).filter(|(key, _)| keys.contains(key)) {
            let op = answer.map_or_else(|| asked(request), |answer| answered(request, answer, key));
            ops.push(check::Operation { client: *client, op, called_at: *called_at, returned_at: Some(at), guess });
        }
    }
}

/// Searches what was done to a key; why that told nothing, if it did not.
fn judge(key: &str, ops: &[check::Operation<Operation>], case: &mut Case) -> Option<String> {
    let budget = Budget(LOOKS_ON_TOP + LOOKS_PER_OP * ops.len() as u64);
    // Dozens of writes may be in flight at once, and their orders are too many to try. Nearly always this one is right.
    let verdict = match check_history(&Register, &as_applied(ops), budget) {
        check::Verdict::Linearizable => check::Verdict::Linearizable,
        _ => check_history(&Register, ops, budget),
    };
    match verdict {
        check::Verdict::Linearizable => ops.iter().for_each(|_| case.right()),
        // Where all is well an operation takes a look or two: this may well hide what is wrong.
        check::Verdict::Unknown { why } => return Some(format!("key {key:?}: {why}")),
        check::Verdict::Violation(violation) => {
            let stuck = &violation.stuck[0];
            let subject = format!("key {key:?}: {}", stuck.op);
            let last = violation.order.last().map_or("nothing", String::as_str);
            let expected = format!("another answer, {}", stuck.expected.join(" or "));
            let got = format!("it fits nowhere after {} operations, the last of them {last}", violation.order.len());
            case.take(Err(Violation::new(violation.at, subject, expected, got)));
        }
    }
    None
}

/// The same, as if each took effect at that very moment at which a node first applied it. Any order of these is one of
/// the others, too.
fn as_applied(ops: &[check::Operation<Operation>]) -> Vec<check::Operation<Operation>> {
    let narrow = |op: &check::Operation<Operation>| {
        let is_within = op.called_at <= op.guess && op.returned_at.is_none_or(|at| op.guess <= at);
        let at = if is_within { (op.guess, Some(op.guess)) } else { (op.called_at, op.returned_at) };
        check::Operation { called_at: at.0, returned_at: at.1, ..op.clone() }
    };
    ops.iter().map(narrow).collect()
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
