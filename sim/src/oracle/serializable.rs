//! Law: a serializable read shows the store as it was at some revision, and on one member time never goes back.
//!
//! - The answer is the model's at the revision it carries, or at the past one that was asked for.
//! - That revision is none that the member had not applied when it answered.
//! - While a member's process lives, no serializable read shows less than any answer of that member that had returned
//!   when the read was called. A restart replays the log, and may show the past again.
use std::collections::BTreeMap;

use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    of_node,
    replay::{FUTURE_REVISION, Replay},
};
use crate::history::{Answer, Event, NodeNumber, OpId, Outcome, Request, Stamped};

#[derive(Default)]
pub struct Serializable {
    case: Case,
    replay: Replay,
    /// What is under way.
    ops: BTreeMap<OpId, Op>,
    members: Vec<Member>,
}

struct Op {
    node: NodeNumber,
    incarnation: u64,
    /// What its member had answered when it was called.
    floor: Floor,
    /// For a serializable read only.
    request: Option<Request>,
}

/// The highest revision answered, and to which operation.
#[derive(Clone, Copy)]
struct Floor(i64, OpId);

struct Member {
    incarnation: u64,
    answered: Floor,
    /// The highest revision that it has applied, in any life: an answer may outlive who sent it.
    applied: i64,
}

impl Default for Member {
    fn default() -> Member {
        Member { incarnation: 0, answered: Floor(0, OpId(0)), applied: 1 }
    }
}

impl Law for Serializable {
    fn name(&self) -> &'static str {
        "serializable_reads"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        if let Err(trouble) = self.replay.observe(event) {
            self.case.doubt(trouble.doubt());
        }
        let finding = self.look(event);
        self.case.take(finding);
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Serializable {
    fn look(&mut self, event: &Stamped) -> Finding {
        match &event.event {
            Event::Call { op, node, request, .. } => {
                let (node, member) = (*node, of_node(&mut self.members, *node));
                let request = matches!(request, Request::Range { serializable: true, .. }).then(|| request.clone());
                let (incarnation, floor) = (member.incarnation, member.answered);
                self.ops.insert(*op, Op { node, incarnation, floor, request });
            }
            Event::Return { op, outcome } => {
                let Some(state) = self.ops.remove(op) else { return Ok(()) };
                match outcome {
                    Outcome::Ok(answer) => self.answered(event.sequence, *op, &state, answer)?,
                    Outcome::Failed(why) => self.failed(event.sequence, *op, &state, why)?,
                    Outcome::Unknown(_) => {}
                }
            }
            Event::Started { node, .. } => {
                let member = of_node(&mut self.members, *node);
                member.incarnation += 1;
                member.answered = Floor(0, OpId(0));
            }
            Event::Node {
                node,
                event:
                    NodeEvent::Applied { revision, .. }
                    | NodeEvent::SnapshotInstalled { revision, .. }
                    | NodeEvent::Recovered { revision, .. },
            } => {
                let member = of_node(&mut self.members, *node);
                member.applied = member.applied.max(revision.0);
            }
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, sequence: u64, op: OpId, state: &Op, answer: &Answer) -> Finding {
        let lived = self.members[state.node.0].incarnation == state.incarnation;
        if let Some(request) = &state.request {
            self.read(sequence, op, state, request, lived, answer)?;
            self.case.right();
        }
        let member = &mut self.members[state.node.0];
        if lived && answer.revision > member.answered.0 {
            member.answered = Floor(answer.revision, op);
        }
        Ok(())
    }

    fn read(&self, sequence: u64, op: OpId, state: &Op, request: &Request, lived: bool, answer: &Answer) -> Finding {
        let violation = |expected: String, got: String| {
            Err(Violation::new(sequence, describe(op, state), expected, got).at_revision(answer.revision))
        };
        let applied = self.members[state.node.0].applied;
        if answer.revision > applied {
            let expected = format!("revision {applied} at most: the member has applied no more");
            return violation(expected, format!("revision {}", answer.revision));
        }
        let Floor(floor, by) = state.floor;
        if lived && answer.revision < floor {
            let expected = format!("revision {floor} at least, which this member had told op {by}");
            return violation(expected, format!("revision {}, {:?}", answer.revision, answer.body));
        }
        match self.replay.read(request, answer.revision) {
            Some(body) if body == answer.body => Ok(()),
            Some(body) => violation(format!("{body:?}"), format!("{:?}", answer.body)),
            None => violation("to be refused: that revision is not there yet".into(), format!("{:?}", answer.body)),
        }
    }

    fn failed(&self, sequence: u64, op: OpId, state: &Op, why: &str) -> Finding {
        let Some(Request::Range { revision: asked, .. }) = state.request else { return Ok(()) };
        let (Floor(floor, by), lived) = (state.floor, self.members[state.node.0].incarnation == state.incarnation);
        if lived && asked <= floor && why.contains(FUTURE_REVISION) {
            let expected = format!("an answer: this member had told op {by} revision {floor}");
            return Err(Violation::new(sequence, describe(op, state), expected, why).at_revision(asked));
        }
        Ok(())
    }
}

fn describe(op: OpId, state: &Op) -> String {
    let request = state.request.as_ref().expect("only serializable reads are judged");
    format!("op {op} at {}: {request:?}", state.node)
}
