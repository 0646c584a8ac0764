//! Law, where a scenario expects that the cluster stops or refuses: it does, and acknowledges nothing meanwhile.
//!
//! So many voters ended by themselves over their disks that no quorum is left. While that is so, nothing that was called
//! since is acknowledged but serializable reads. If it is to stop, that must have been so at some time; if it is to
//! refuse, at the end. A run in which it did not come to that shows nothing.
use std::collections::BTreeSet;

use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    of_node,
    roster::{Roster, is_for_learners},
};
use crate::{
    history::{Event, ExitKind, NodeNumber, OpId, Outcome, Phase, Stamped},
    scenario::Ending,
};

pub struct Ended {
    case: Case,
    ending: Ending,
    roster: Roster,
    /// By node number: how its process ended by itself, unless it started again.
    ended: Vec<Option<ExitKind>>,
    /// Calls since there is no quorum any more; none while there may be one.
    called: Option<BTreeSet<OpId>>,
    /// Whether it came to what is expected.
    came_about: bool,
}

impl Ended {
    pub fn new(ending: Ending) -> Ended {
        let (case, roster) = (Case::default(), Roster::default());
        Ended { case, ending, roster, ended: Vec::new(), called: None, came_about: false }
    }

    fn is_expected(&self, kind: ExitKind) -> bool {
        match self.ending {
            Ending::Stops => kind == ExitKind::Disk,
            _ => [ExitKind::Damage, ExitKind::Halted, ExitKind::Disk].contains(&kind),
        }
    }

    fn has_ended(&self, node: NodeNumber) -> bool {
        self.ended.get(node.0).copied().flatten().is_some_and(|kind| self.is_expected(kind))
    }

    /// A process started, or ended.
    fn count(&mut self) {
        let voters = self.roster.voters();
        // Nobody has told yet who they are.
        if voters.len() == 0 {
            return;
        }
        let quorum = voters.len() / 2 + 1;
        let left = voters.filter(|voter| !voter.is_some_and(|node| self.has_ended(node))).count();
        if left >= quorum {
            self.called = None;
        } else if self.called.is_none() {
            self.called = Some(BTreeSet::new());
            self.came_about |= self.ending == Ending::Stops;
            self.case.right();
        }
    }

    fn returned(&mut self, sequence: u64, op: OpId, outcome: &Outcome) -> Finding {
        if !self.called.as_mut().is_some_and(|called| called.remove(&op)) {
            return Ok(());
        }
        if let Outcome::Ok(answer) = outcome {
            let expected = "not acknowledged: the voters that did not stop over their disks are no quorum";
            let got = format!("member {:x} acknowledged it", answer.member);
            return Err(Violation::new(sequence, format!("op {op}"), expected, got));
        }
        self.case.right();
        Ok(())
    }
}

impl Law for Ended {
    fn name(&self) -> &'static str {
        "ending"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        self.roster.observe(event);
        let finding = match &event.event {
            Event::Started { node, .. } => {
                *of_node(&mut self.ended, *node) = None;
                self.count();
                Ok(())
            }
            Event::Ended { node, kind } => {
                *of_node(&mut self.ended, *node) = Some(*kind);
                self.count();
                Ok(())
            }
            Event::Node { event: NodeEvent::ConfigurationApplied { .. }, .. } => {
                self.count();
                Ok(())
            }
            Event::Call { op, request, .. } if !is_for_learners(request) => {
                if let Some(called) = &mut self.called {
                    called.insert(*op);
                }
                Ok(())
            }
            Event::Return { op, outcome } => self.returned(event.sequence, *op, outcome),
            Event::Phase(Phase::Over) => {
                self.came_about |= self.called.is_some();
                Ok(())
            }
            _ => Ok(()),
        };
        self.case.take(finding);
    }

    fn finish(&mut self) -> Verdict {
        if !self.came_about {
            let why = match self.ending {
                Ending::Stops => "at no time were fewer than a quorum left because members stopped over their disks",
                _ => "at the end a quorum of the members was left that did not refuse to start",
            };
            self.case.doubt(why.into());
        }
        self.case.verdict()
    }
}
