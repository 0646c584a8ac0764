//! Law: reads and writes are strictly serializable, in the order of the log.
//!
//! The log orders the writes and the revision in its answer places a read, so there is nothing to search. What is left
//! to check, each in constant time:
//! - Legality: every answer, revision included, is the model's at that place.
//! - Real time: nothing is placed before what had returned when it was called. For a read, the highest revision that
//!   had returned by then is all there is to know. A write cannot break this: only what has a place may return, and
//!   places are given in order.
//! - A write that failed for good is never applied. One whose outcome is unknown is applied once (its place counts, its
//!   answer is nobody's), or never. What is acknowledged is applied, once, where the node said.
use std::collections::BTreeMap;

use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    of_node,
    replay::{Answered, FUTURE_REVISION, Replay, Trouble},
};
use crate::history::{Answer, Body, Event, NodeNumber, OpId, Outcome, Request, Stamped};

#[derive(Default)]
pub struct Linearizable {
    case: Case,
    replay: Replay,
    /// Those that may still return or take effect, and those that must not take effect any more.
    ops: BTreeMap<OpId, Op>,
    returned: Floor,
    /// The members' ids, by node; 0 before it started.
    members: Vec<u64>,
}

struct Op {
    node: NodeNumber,
    request: Request,
    /// What had returned when it was called.
    floor: Floor,
    /// For a write: where it was applied, and the answer due.
    placed: Option<Placed>,
    /// Why it must not take effect.
    failed: Option<String>,
}

struct Placed {
    index: u64,
    revision: i64,
    body: Body,
}

/// The highest revision answered, and to which operation.
#[derive(Clone, Copy)]
struct Floor(i64, OpId);

impl Default for Floor {
    fn default() -> Floor {
        Floor(0, OpId(0))
    }
}

impl Law for Linearizable {
    fn name(&self) -> &'static str {
        "strict_serializability"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        match self.replay.observe(event) {
            Ok(Some(step)) => {
                if let Some(write) = step.write {
                    let finding = self.applied(event.sequence, step.index, write);
                    self.case.take(finding);
                }
            }
            Ok(None) => {
                let finding = self.look(event);
                self.case.take(finding);
            }
            Err(Trouble::Wrong(violation)) => self.case.take(Err(violation)),
            Err(Trouble::Gap(why)) => self.case.doubt(why),
        }
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Linearizable {
    fn look(&mut self, event: &Stamped) -> Finding {
        match &event.event {
            Event::Call { request: Request::Range { serializable: true, .. }, .. } => Ok(()),
            Event::Call { op, node, request, .. } => {
                let (node, request) = (*node, request.clone());
                let op_state = Op { node, request, floor: self.returned, placed: None, failed: None };
                self.ops.insert(*op, op_state);
                Ok(())
            }
            Event::Return { op, outcome } => match outcome {
                Outcome::Ok(answer) => self.answered(event.sequence, *op, answer),
                Outcome::Failed(why) => self.failed(event.sequence, *op, why),
                // A write may still take effect; a read has none.
                Outcome::Unknown(_) => {
                    if self.ops.get(op).is_some_and(|state| !state.request.writes()) {
                        self.ops.remove(op);
                    }
                    Ok(())
                }
            },
            Event::Started { node, member } => {
                *of_node(&mut self.members, *node) = *member;
                Ok(())
            }
            Event::Node { node, event: NodeEvent::Acknowledged { request, index } } => {
                self.acknowledged(event.sequence, *node, request.0, index.0)
            }
            Event::Node { event: NodeEvent::Refused { request, definite: true }, .. } => {
                match self.replay.op(request.0) {
                    Some(op) => self.must_not_apply(event.sequence, op, "its node refused it for good".into()),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// A write got its place.
    fn applied(&mut self, sequence: u64, index: u64, write: Answered) -> Finding {
        let Answered { op, body } = write;
        let revision = self.replay.store.revision();
        let Some(state) = self.ops.get_mut(&op) else { return Ok(()) };
        let violation = |expected: String, got: String| {
            Err(Violation::new(sequence, describe(op, state), expected, got).at_index(index).at_revision(revision))
        };
        if let Some(why) = &state.failed {
            return violation(format!("never to be applied: {why}"), format!("applied at index {index}"));
        }
        state.placed = Some(Placed { index, revision, body });
        Ok(())
    }

    fn answered(&mut self, sequence: u64, op: OpId, answer: &Answer) -> Finding {
        let Some(state) = self.ops.remove(&op) else { return Ok(()) };
        let member = self.members.get(state.node.0).copied().unwrap_or(0);
        if member != 0 && answer.member != member {
            let (expected, got) = (format!("an answer of member {member:x}"), format!("member {:x}", answer.member));
            return Err(Violation::new(sequence, describe(op, &state), expected, got).at_revision(answer.revision));
        }
        match state.request {
            Request::Range { .. } => self.read(sequence, op, &state, answer)?,
            _ => self.written(sequence, op, &state, answer)?,
        }
        if answer.revision > self.returned.0 {
            self.returned = Floor(answer.revision, op);
        }
        self.case.right();
        Ok(())
    }

    fn written(&mut self, sequence: u64, op: OpId, state: &Op, answer: &Answer) -> Finding {
        let Some(placed) = &state.placed else {
            let got = format!("an answer at revision {}, and no member applied it", answer.revision);
            let violation = Violation::new(sequence, describe(op, state), "to be applied before it is answered", got);
            return Err(violation.at_revision(answer.revision));
        };
        if (answer.revision, &answer.body) != (placed.revision, &placed.body) {
            let expected = format!("revision {}, {:?}", placed.revision, placed.body);
            let got = format!("revision {}, {:?}", answer.revision, answer.body);
            let violation = Violation::new(sequence, describe(op, state), expected, got);
            return Err(violation.at_index(placed.index).at_revision(placed.revision));
        }
        Ok(())
    }

    fn read(&self, sequence: u64, op: OpId, state: &Op, answer: &Answer) -> Finding {
        let now = self.replay.store.revision();
        let violation = |expected: String, got: String| {
            Err(Violation::new(sequence, describe(op, state), expected, got).at_revision(answer.revision))
        };
        let Floor(floor, by) = state.floor;
        if answer.revision < floor {
            let expected = format!("revision {floor} at least, which op {by} had returned before it was called");
            return violation(expected, format!("revision {}, {:?}", answer.revision, answer.body));
        }
        if answer.revision > now {
            let expected = format!("revision {now} at most: no member has applied more");
            return violation(expected, format!("revision {}", answer.revision));
        }
        match self.replay.read(&state.request, answer.revision) {
            Some(body) if body == answer.body => Ok(()),
            Some(body) => violation(format!("{body:?}"), format!("{:?}", answer.body)),
            None => violation("to be refused: that revision is not there yet".into(), format!("{:?}", answer.body)),
        }
    }

    fn failed(&mut self, sequence: u64, op: OpId, why: &str) -> Finding {
        let Some(state) = self.ops.get(&op) else { return Ok(()) };
        if state.request.writes() {
            return self.must_not_apply(sequence, op, format!("it failed with {why:?}"));
        }
        let state = self.ops.remove(&op).expect("just seen");
        let Floor(floor, by) = state.floor;
        let asked = if let Request::Range { revision, .. } = state.request { revision } else { 0 };
        if asked <= floor && why.contains(FUTURE_REVISION) {
            let expected = format!("an answer: op {by} had returned revision {floor} before it was called");
            return Err(Violation::new(sequence, describe(op, &state), expected, why).at_revision(asked));
        }
        Ok(())
    }

    fn must_not_apply(&mut self, sequence: u64, op: OpId, why: String) -> Finding {
        let Some(state) = self.ops.get_mut(&op) else { return Ok(()) };
        if let Some(placed) = &state.placed {
            let (expected, got) = (format!("never to be applied: {why}"), format!("applied at index {}", placed.index));
            let violation = Violation::new(sequence, describe(op, state), expected, got);
            return Err(violation.at_index(placed.index).at_revision(placed.revision));
        }
        state.failed = Some(why);
        Ok(())
    }

    fn acknowledged(&self, sequence: u64, node: NodeNumber, request: u64, index: u64) -> Finding {
        let Some(op) = self.replay.op(request) else { return Ok(()) };
        let applied = self.replay.index(op);
        if applied == Some(index) {
            return Ok(());
        }
        let expected = applied.map_or("not to be acknowledged: nobody applied it".into(), |at| format!("index {at}"));
        let subject = format!("op {op}, request {request:x}, acknowledged by {node}");
        Err(Violation::new(sequence, subject, expected, format!("index {index}")).at_index(index))
    }
}

fn describe(op: OpId, state: &Op) -> String {
    format!("op {op} at {}: {:?}", state.node, state.request)
}
