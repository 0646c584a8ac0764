//! Who has a say: the newest configuration that anybody applied, and on which machines its members live.
use std::collections::BTreeMap;

use detcd_core::event::NodeEvent;

use super::of_node;
use crate::history::{Event, Nanos, NodeNumber, Request, Stamped};

/// With what a learner refuses everything but serializable reads.
const NOT_FOR_LEARNERS: &str = "rpc not supported for learner";

#[derive(Default)]
pub struct Roster {
    /// By node, its member's id.
    members: Vec<u64>,
    index: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
    /// When members that were learners ceased to be.
    risen: BTreeMap<u64, Nanos>,
}

impl Roster {
    pub fn observe(&mut self, event: &Stamped) {
        match &event.event {
            Event::Started { node, member } => *of_node(&mut self.members, *node) = *member,
            Event::Node { event: NodeEvent::ConfigurationApplied { index, voters, learners, valid: true }, .. }
                if index.0 > self.index =>
            {
                self.index = index.0;
                self.voters = voters.iter().map(|id| id.0).collect();
                let learners: Vec<_> = learners.iter().map(|id| id.0).collect();
                let risen = self.learners.iter().filter(|id| !learners.contains(id));
                self.risen.extend(risen.map(|id| (*id, event.at)));
                self.learners = learners;
            }
            _ => {}
        }
    }

    /// The voters' machines; none for one that never started.
    pub fn voters(&self) -> impl ExactSizeIterator<Item = Option<NodeNumber>> {
        self.voters.iter().map(|id| self.members.iter().position(|member| member == id).map(NodeNumber))
    }

    /// Whether this node may have refused something in these words: from `since` on it was a learner for a while, by
    /// what anybody knew.
    pub fn may_refuse(&self, node: NodeNumber, since: Nanos, why: &str) -> bool {
        let Some(id) = self.members.get(node.0) else { return false };
        let was_learner = self.learners.contains(id) || self.risen.get(id).is_some_and(|risen| *risen >= since);
        why.contains(NOT_FOR_LEARNERS) && was_learner
    }
}

/// Whether learners answer it.
pub fn is_for_learners(request: &Request) -> bool {
    matches!(request, Request::Range { serializable: true, .. })
}
