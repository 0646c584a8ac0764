//! Law: what a client was told is done is on the disks of a quorum at that moment, and stays.
//!
//! - When a member acknowledges a request, a quorum of the voters then holds that very entry durably, or a state that
//!   stands in for it.
//! - What a member reports durable its disk cannot lose.
//! - A member that starts again finds what it had reported durable, or more of what was on its way: never less.
//! - Whoever becomes leader has every acknowledged entry.
use std::collections::BTreeMap;

use detcd_core::event::{NodeEvent, Role};

use super::{
    Law, Resident, Verdict, Violation,
    case::{Case, Finding},
    log::{MemberLog, Promise, Stamp},
    moves_in, of_node,
};
use crate::history::{Event, NodeNumber, Stamped};

pub struct Durability {
    case: Case,
    /// Whoever had a say, by the index from which on; until it is told, all the nodes that there are.
    configurations: BTreeMap<u64, Vec<u64>>,
    nodes: usize,
    members: Vec<Member>,
    /// By index, from 1 at place 0; entries nobody acknowledged are not told.
    acknowledged: Vec<Option<Stamp>>,
}

#[derive(Default)]
struct Member {
    id: u64,
    log: MemberLog,
    /// So many entries of its log hold all that was acknowledged among them.
    checked: usize,
}

impl Durability {
    pub fn new(nodes: usize) -> Durability {
        let configurations = BTreeMap::new();
        Durability { case: Case::default(), configurations, nodes, members: Vec::new(), acknowledged: Vec::new() }
    }

    /// Whether these members, by id, suffice for an entry to be committed. A change and the entries behind it may be
    /// committed at once, by those who had a say before it: the change takes effect when it is applied.
    fn is_quorum(&self, index: u64, holders: &[u64]) -> bool {
        let most = |voters: &Vec<u64>| voters.iter().filter(|id| holders.contains(id)).count() > voters.len() / 2;
        let mut in_force = self.configurations.range(..=index).rev().take(2).peekable();
        match in_force.peek() {
            Some(_) => in_force.any(|(_, voters)| most(voters)),
            None => holders.len() > self.nodes / 2,
        }
    }
}

impl Resident for Member {
    fn id(&mut self) -> &mut u64 {
        &mut self.id
    }
}

impl Law for Durability {
    fn name(&self) -> &'static str {
        "durability"
    }

    fn observe(&mut self, event: &Stamped) {
        match &event.event {
            Event::Started { node, member } => moves_in(&mut self.members, *node, *member),
            Event::Tampered { node } => of_node(&mut self.members, *node).log.tamper(),
            Event::Unsynced { node, persist, what } if !self.case.is_closed() => {
                let subject = format!("{node} reports batch {persist} durable");
                let expected = "all of its log on the disk";
                self.case.take(Err(Violation::new(event.sequence, subject, expected, &**what)));
            }
            Event::Node { node, event: what } if !self.case.is_closed() => {
                let finding = self.look(event.sequence, *node, what);
                self.case.take(finding);
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Durability {
    fn look(&mut self, sequence: u64, node: NodeNumber, what: &NodeEvent) -> Finding {
        let member = of_node(&mut self.members, node);
        match *what {
            NodeEvent::Appended { index, term, hash } => {
                let stamp = member.log.stamp(index.0, term.0, hash);
                member.log.append(index.0, stamp);
                member.checked = member.checked.min(index.0 as usize - 1);
                Ok(())
            }
            NodeEvent::LogRestarted { index, .. } => {
                member.log.restart(index.0);
                member.checked = 0;
                Ok(())
            }
            NodeEvent::ConfigurationApplied { index, ref voters, valid: true, .. } => {
                let voters = voters.iter().map(|id| id.0).collect();
                self.configurations.entry(index.0).or_insert(voters);
                Ok(())
            }
            NodeEvent::PersistStarted { persist, term, vote, .. } => {
                member.log.persist(persist.0, Promise { term: term.0, vote: vote.0 });
                Ok(())
            }
            NodeEvent::Persisted { persist } => {
                member.log.persisted(persist.0);
                Ok(())
            }
            NodeEvent::Recovered { commit, last, applied, .. } if commit > last || applied > last => {
                let got = format!("commit {commit}, a state as of {applied}, and a log up to {last}");
                let expected = "a log that reaches as far as what it says of it";
                Err(Violation::new(sequence, format!("{node} reads its log back"), expected, got).at_index(last.0))
            }
            NodeEvent::Recovered { term, vote, last, .. } => {
                self.recovered(sequence, node, Promise { term: term.0, vote: vote.0 }, last.0)
            }
            NodeEvent::Acknowledged { request, index } => self.acknowledge(sequence, node, request.0, index.0),
            NodeEvent::RoleChanged { role: Role::Leader, term, .. } => self.leads(sequence, node, term.0),
            _ => Ok(()),
        }
    }

    fn recovered(&mut self, sequence: u64, node: NodeNumber, promise: Promise, last: u64) -> Finding {
        let member = of_node(&mut self.members, node);
        let (kept, held) = (member.log.kept, member.log.durable.len());
        member.checked = 0;
        if member.log.recover(promise, last) {
            self.case.right();
            return Ok(());
        }
        let show = |promise: Promise, last: usize| {
            let Promise { term, vote } = promise;
            format!("term {term}, vote {vote:x}, entries up to {last}")
        };
        let expected = format!("{}, or more of what was on its way to disk", show(kept, held));
        let got = show(promise, last as usize);
        Err(Violation::new(sequence, format!("{node} reads its log back"), expected, got).at_index(last))
    }

    fn acknowledge(&mut self, sequence: u64, node: NodeNumber, request: u64, index: u64) -> Finding {
        let subject = || format!("request {request:x}, acknowledged by {node}");
        let at = index as usize - 1;
        let Some(stamp) = self.members[node.0].log.memory.get(at).copied() else {
            let got = format!("its log ends at {}", self.members[node.0].log.memory.len());
            return Err(Violation::new(sequence, subject(), format!("entry {index} in its log"), got).at_index(index));
        };
        let mut holders = Vec::new();
        for member in &mut self.members {
            if member.log.durable.get(at).is_some_and(|held| held.agrees(stamp)) {
                holders.push(member.id);
            }
            member.checked = member.checked.min(at);
        }
        if !self.is_quorum(index, &holders) {
            let expected = format!("entry {index} of term {} durable on a quorum of the voters", stamp.term);
            let holds = |member: &Member| member.log.durable.get(at).map_or(0, |held| held.term);
            let terms = (1..self.members.len()).map(|node| format!("n{node}: {}", holds(&self.members[node])));
            let terms = terms.collect::<Vec<_>>().join(", ");
            let holders = holders.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(" ");
            let got = format!("it is on {holders}; what is durable there is of these terms: {terms}");
            return Err(Violation::new(sequence, subject(), expected, got).at_index(index));
        }
        if self.acknowledged.len() <= at {
            self.acknowledged.resize(at + 1, None);
        }
        self.acknowledged[at] = Some(stamp);
        self.case.right();
        Ok(())
    }

    fn leads(&mut self, sequence: u64, node: NodeNumber, term: u64) -> Finding {
        let member = &mut self.members[node.0];
        for (at, acknowledged) in self.acknowledged.iter().enumerate().skip(member.checked) {
            let Some(stamp) = acknowledged else { continue };
            let held = member.log.memory.get(at);
            if held.is_none_or(|held| !held.agrees(*stamp)) {
                let index = at as u64 + 1;
                let expected = format!("entry {index} of term {}, which was acknowledged", stamp.term);
                let got = held.map_or("nothing there".into(), |held| format!("one of term {}", held.term));
                let subject = format!("{node} becomes leader in term {term}");
                return Err(Violation::new(sequence, subject, expected, got).at_index(index));
            }
        }
        member.checked = self.acknowledged.len();
        self.case.right();
        Ok(())
    }
}
