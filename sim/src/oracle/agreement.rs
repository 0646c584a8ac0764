//! Law: members that have applied as much are in the same state.
//!
//! The first member to apply an index fixes what it was: term, request, revision and the digest of all there is. A
//! member applies entry after entry, from the first one at every start: its log is never cut yet.
use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    of_node,
};
use crate::history::{Event, NodeNumber, Stamped};

#[derive(Default)]
pub struct Agreement {
    case: Case,
    /// By index, from 1 at place 0.
    states: Vec<State>,
    /// How far each member has got since it started.
    applied: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    term: u64,
    request: u64,
    revision: i64,
    digest: u64,
    /// Who was here first; not part of the state.
    by: NodeNumber,
}

impl Law for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        match &event.event {
            Event::Started { node, .. } => *of_node(&mut self.applied, *node) = 0,
            Event::Node { node, event: NodeEvent::Applied { index, term, request, revision, digest } } => {
                let (term, request, revision, digest) = (term.0, request.0, revision.0, digest.0);
                let finding =
                    self.applied(event.sequence, index.0, State { term, request, revision, digest, by: *node });
                self.case.take(finding);
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Agreement {
    fn applied(&mut self, sequence: u64, index: u64, state: State) -> Finding {
        let node = state.by;
        let before = std::mem::replace(of_node(&mut self.applied, node), index);
        if index != before + 1 {
            let (subject, expected) = (format!("{node} applies"), format!("entry {}", before + 1));
            return Err(Violation::new(sequence, subject, expected, format!("entry {index}")).at_index(index));
        }
        let at = index as usize - 1;
        if at == self.states.len() {
            self.states.push(state);
        }
        let first = self.states[at];
        if first != (State { by: first.by, ..state }) {
            let (expected, got) = (format!("as on {}: {}", first.by, first.show()), state.show());
            let violation = Violation::new(sequence, format!("{node} applied entry {index}"), expected, got);
            return Err(violation.at_index(index).at_revision(first.revision));
        }
        self.case.right();
        Ok(())
    }
}

impl State {
    fn show(&self) -> String {
        let State { term, request, revision, digest, .. } = self;
        format!("term {term}, request {request:x}, revision {revision}, digest {digest:x}")
    }
}
