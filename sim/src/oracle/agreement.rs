//! Law: members that have applied as much are in the same state.
//!
//! The first member to apply an index fixes what it was: term, request, revision and the digest of all there is. A
//! member applies entry after entry, from where its files left it, or from a state that it took over; both must be what
//! others had at that index. What they hold is compared too, version by version, with what the log makes of the model:
//! the digest of a state that comes from a file says what it was, not what is in the file.
use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    of_node,
    replay::Replay,
};
use crate::history::{Content, Event, NodeNumber, Stamped};

#[derive(Default)]
pub struct Agreement {
    case: Case,
    replay: Replay,
    /// The replay cannot go on: contents are not judged any more.
    lost: bool,
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
        self.lost |= self.replay.observe(event).is_err();
        match &event.event {
            Event::Store { node, revision, content } if !self.lost => {
                let finding = self.holds(event.sequence, *node, *revision, *content);
                self.case.take(finding);
            }
            Event::Started { node, .. } => *of_node(&mut self.applied, *node) = 0,
            Event::Node { node, event: NodeEvent::Recovered { applied, digest, .. } } => {
                let finding = self.goes_on(event.sequence, *node, "starts from", applied.0, digest.0);
                self.case.take(finding);
            }
            Event::Node { node, event: NodeEvent::SnapshotInstalled { index, digest, .. } } => {
                let finding = self.goes_on(event.sequence, *node, "takes over", index.0, digest.0);
                self.case.take(finding);
            }
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
    fn goes_on(&mut self, sequence: u64, node: NodeNumber, how: &str, index: u64, digest: u64) -> Finding {
        *of_node(&mut self.applied, node) = index;
        let Some(at) = (index as usize).checked_sub(1) else { return Ok(()) };
        let subject = format!("{node} {how} a state of index {index}");
        let Some(first) = self.states.get(at) else {
            let got = "nobody has applied so much".to_owned();
            return Err(Violation::new(sequence, subject, "a state that was applied", got).at_index(index));
        };
        if first.digest != digest {
            let (expected, got) = (format!("digest {:x}, as on {}", first.digest, first.by), format!("{digest:x}"));
            return Err(Violation::new(sequence, subject, expected, got).at_index(index).at_revision(first.revision));
        }
        self.case.right();
        Ok(())
    }

    fn holds(&mut self, sequence: u64, node: NodeNumber, revision: i64, content: Content) -> Finding {
        let (subject, now) =
            (format!("{node} goes on from a store at revision {revision}"), self.replay.store.revision());
        let violation =
            |expected: String, got: String| Err(Violation::new(sequence, subject, expected, got).at_revision(revision));
        if revision > now {
            return violation(
                format!("revision {now} at most: nobody has applied more"),
                format!("revision {revision}"),
            );
        }
        let due = self.replay.store.content(revision);
        if content != due {
            return violation(format!("all versions up to there: {:x}", due.0), format!("{:x}", content.0));
        }
        self.case.right();
        Ok(())
    }

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
