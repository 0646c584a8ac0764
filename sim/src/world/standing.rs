//! How things stand among the nodes, by what they note of themselves: who leads, who has a say, who holds what.
use std::collections::VecDeque;

use detcd_core::{
    event::{NodeEvent, Role},
    types::MemberId,
};

use crate::history::NodeNumber;

#[derive(Debug, Default)]
pub struct Standing {
    /// The highest term in which somebody led, and who.
    newest: Option<(u64, NodeNumber)>,
    /// By number; place 0 is nobody.
    nodes: Vec<Node>,
    /// The index of the newest configuration that somebody applied, and its members.
    configured: (u64, Members),
}

/// Ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    member: u64,
    term: u64,
    /// The index before the first one in memory, the last one in memory, and on disk.
    before: u64,
    last: u64,
    durable: u64,
    /// What is on its way to disk: batch, and the log's last index with it.
    writing: VecDeque<(u64, u64)>,
}

impl Standing {
    pub fn started(&mut self, number: NodeNumber, member: u64) {
        *self.node(number) = Node { member, ..Node::default() };
    }

    pub fn observe(&mut self, number: NodeNumber, event: &NodeEvent) {
        match event {
            NodeEvent::RoleChanged { role, term, .. } => {
                self.node(number).term = term.0;
                if *role == Role::Leader && self.newest.is_none_or(|(newest, _)| newest <= term.0) {
                    self.newest = Some((term.0, number));
                }
            }
            NodeEvent::ConfigurationApplied { index, voters, learners, valid: true } if index.0 > self.configured.0 => {
                let ids = |members: &[MemberId]| members.iter().map(|id| id.0).collect();
                self.configured = (index.0, Members { voters: ids(voters), learners: ids(learners) });
            }
            NodeEvent::Recovered { term, before, last, .. } => {
                let node = self.node(number);
                (node.term, node.before, node.last, node.durable) = (term.0, before.0, last.0, last.0);
            }
            NodeEvent::LogCut { before } => self.node(number).before = before.0,
            NodeEvent::Appended { index, .. } => self.node(number).last = index.0,
            NodeEvent::LogRestarted { index, .. } => {
                let node = self.node(number);
                (node.before, node.last) = (index.0, index.0);
            }
            NodeEvent::PersistStarted { persist, .. } => {
                let node = self.node(number);
                node.writing.push_back((persist.0, node.last));
            }
            NodeEvent::Persisted { persist } => {
                let node = self.node(number);
                while let Some((_, last)) = node.writing.pop_front_if(|(batch, _)| *batch <= persist.0) {
                    node.durable = last;
                }
            }
            _ => {}
        }
    }

    fn node(&mut self, number: NodeNumber) -> &mut Node {
        self.nodes.resize(self.nodes.len().max(number.0 + 1), Node::default());
        &mut self.nodes[number.0]
    }

    pub fn leader(&self) -> Option<NodeNumber> {
        self.newest.map(|(_, node)| node)
    }

    pub fn members(&self) -> &Members {
        &self.configured.1
    }

    /// How many entries it holds in memory.
    pub fn tail(&self, number: NodeNumber) -> u64 {
        self.nodes.get(number.0).map_or(0, |node| node.last - node.before)
    }

    pub fn is_learner(&self, number: NodeNumber) -> bool {
        self.nodes.get(number.0).is_some_and(|node| self.configured.1.learners.contains(&node.member))
    }

    /// Whether nothing would be lost with all that this node knows: every other voter has on its disk whatever it has,
    /// and the elections that it may have voted in are over.
    pub fn is_dispensable(&self, number: NodeNumber) -> bool {
        let Some(own) = self.nodes.get(number.0) else { return false };
        let voters = &self.configured.1.voters;
        let others = || self.nodes.iter().filter(|node| node.member != own.member && voters.contains(&node.member));
        let over = self.newest.is_some_and(|(term, leader)| term >= own.term && leader != number);
        over && others().count() + 1 == voters.len()
            && others().all(|other| other.durable >= own.last && other.term >= own.term)
    }
}

#[cfg(test)]
mod tests {
    use detcd_core::types::{Index, PersistId, Term};

    use super::*;

    fn standing() -> Standing {
        let mut standing = Standing::default();
        for number in 1..=3 {
            standing.started(NodeNumber(number), number as u64 * 10);
        }
        let voters = vec![MemberId(10), MemberId(20), MemberId(30)];
        let applied = NodeEvent::ConfigurationApplied { index: Index(3), voters, learners: vec![], valid: true };
        standing.observe(NodeNumber(1), &applied);
        for number in 1..=3 {
            leads(&mut standing, number, 1, 2);
        }
        standing
    }

    fn leads(standing: &mut Standing, number: usize, leader: usize, term: u64) {
        let role = if number == leader { Role::Leader } else { Role::Follower };
        let leader = MemberId(leader as u64 * 10);
        standing.observe(NodeNumber(number), &NodeEvent::RoleChanged { role, term: Term(term), leader });
    }

    fn appends(standing: &mut Standing, number: usize, index: u64) {
        let (number, term) = (NodeNumber(number), Term(2));
        standing.observe(number, &NodeEvent::Appended { index: Index(index), term, hash: 0 });
        let (persist, vote) = (PersistId(index), MemberId(0));
        let last = Some((Index(index), term));
        standing.observe(number, &NodeEvent::PersistStarted { persist, term, vote, last, snapshot: None });
    }

    #[test]
    fn who_alone_holds_something_cannot_be_spared() {
        let mut standing = standing();
        assert!(standing.is_dispensable(NodeNumber(3)));
        assert!(!standing.is_dispensable(NodeNumber(1)), "it leads");
        for number in 1..=3 {
            appends(&mut standing, number, 4);
        }
        standing.observe(NodeNumber(1), &NodeEvent::Persisted { persist: PersistId(4) });
        assert!(!standing.is_dispensable(NodeNumber(3)), "the second has it in memory only");
        standing.observe(NodeNumber(2), &NodeEvent::Persisted { persist: PersistId(4) });
        assert!(standing.is_dispensable(NodeNumber(3)));
        leads(&mut standing, 3, 0, 3);
        assert!(!standing.is_dispensable(NodeNumber(3)), "it may have voted in a later term");
    }
}
