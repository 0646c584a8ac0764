//! Law: there is one history of the membership, and everybody is in it what it says.
//!
//! - At one index all members have the same voters and learners, told by an entry or by a state that was taken over.
//! - A valid change changes one member, leaves a voter, and never brings back who was removed.
//! - Who stands for election is a voter by all that it has applied itself, and says that it was removed only if it was.
//! - What an operator is told is a membership that some member has applied, and what was asked for is done in it.
use std::collections::{BTreeMap, BTreeSet};

use detcd_core::{
    event::{NodeEvent, Role},
    types::MemberId,
};

use super::{
    Law, Resident, Verdict, Violation,
    case::{Case, Finding},
    moves_in, of_node,
};
use crate::history::{Change, Event, NodeNumber, Peer, Stamped};

#[derive(Default)]
pub struct Membership {
    case: Case,
    /// By the index of the change; those that were not valid change nothing, and are not here.
    configurations: BTreeMap<u64, Configuration>,
    removed: BTreeSet<u64>,
    members: Vec<Member>,
    /// What operators wait for.
    asked: BTreeMap<u64, Change>,
}

#[derive(Default)]
struct Member {
    id: u64,
    /// The index of the newest change that it has applied.
    known: u64,
}

/// Ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Configuration {
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
}

impl Configuration {
    fn new(voters: &[MemberId], learners: &[MemberId]) -> Configuration {
        let ids = |members: &[MemberId]| members.iter().map(|id| id.0).collect();
        Configuration { voters: ids(voters), learners: ids(learners) }
    }

    fn told(peers: &[Peer]) -> Configuration {
        let ids = |learners| peers.iter().filter(|peer| peer.learner == learners).map(|peer| peer.member).collect();
        Configuration { voters: ids(false), learners: ids(true) }
    }

    fn all(&self) -> BTreeSet<u64> {
        self.voters.union(&self.learners).copied().collect()
    }

    /// How many members differ.
    fn distance(&self, other: &Configuration) -> usize {
        let is_same = |id: &&u64| {
            self.voters.contains(id) == other.voters.contains(id)
                && self.learners.contains(id) == other.learners.contains(id)
        };
        self.all().union(&other.all()).filter(|id| !is_same(id)).count()
    }

    fn show(&self) -> String {
        let ids = |ids: &BTreeSet<u64>| ids.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(" ");
        format!("voters {}; learners {}", ids(&self.voters), ids(&self.learners))
    }
}

impl Resident for Member {
    fn id(&mut self) -> &mut u64 {
        &mut self.id
    }
}

impl Law for Membership {
    fn name(&self) -> &'static str {
        "membership"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        let finding = match &event.event {
            Event::Started { node, member } => {
                moves_in(&mut self.members, *node, *member);
                Ok(())
            }
            Event::Node { node, event: what } => self.look(event.sequence, *node, what),
            Event::Asked { change, what, .. } => {
                self.asked.insert(*change, what.clone());
                Ok(())
            }
            Event::Told { change, outcome } => match (self.asked.remove(change), outcome) {
                (Some(what), Ok(peers)) => self.told(event.sequence, &what, peers),
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        self.case.take(finding);
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Membership {
    fn look(&mut self, sequence: u64, node: NodeNumber, what: &NodeEvent) -> Finding {
        match what {
            NodeEvent::ConfigurationApplied { index, voters, learners, valid } => {
                let configuration = Configuration::new(voters, learners);
                self.applied(sequence, node, index.0, configuration, *valid)
            }
            NodeEvent::SnapshotInstalled { index, voters, learners, .. } => {
                self.installed(sequence, node, index.0, &Configuration::new(voters, learners))
            }
            NodeEvent::RoleChanged { role: Role::Candidate | Role::Leader, .. } => self.stands(sequence, node),
            NodeEvent::Removed => {
                let id = of_node(&mut self.members, node).id;
                self.right_if(self.removed.contains(&id), || {
                    let subject = format!("{node} says that it was removed");
                    Violation::new(sequence, subject, format!("{id:x} removed by some entry"), "it is a member")
                })
            }
            _ => Ok(()),
        }
    }

    fn right_if(&mut self, right: bool, violation: impl FnOnce() -> Violation) -> Finding {
        if !right {
            return Err(violation());
        }
        self.case.right();
        Ok(())
    }

    /// What holds right before this index.
    fn before(&self, index: u64) -> Configuration {
        self.configurations.range(..index).next_back().map(|(_, before)| before.clone()).unwrap_or_default()
    }

    fn applied(&mut self, sequence: u64, node: NodeNumber, index: u64, now: Configuration, valid: bool) -> Finding {
        of_node(&mut self.members, node).known = index;
        let before = self.before(index);
        let subject = format!("{node} applies a change of the membership");
        let violation =
            |expected: String, got: String| Violation::new(sequence, subject, expected, got).at_index(index);
        if let Some(first) = self.configurations.get(&index) {
            let right = *first == now && valid;
            let first = first.show();
            return self.right_if(right, || violation(format!("as on the first member: {first}"), now.show()));
        }
        if !valid {
            let expected = format!("nothing changed: {}", before.show());
            return self.right_if(before == now, || violation(expected, now.show()));
        }
        if now.voters.is_empty() || before.distance(&now) > 1 {
            return Err(violation(format!("one member more, less or other than {}", before.show()), now.show()));
        }
        if let Some(back) = now.all().intersection(&self.removed).next() {
            return Err(violation(format!("{back:x}, which was removed, to stay away"), now.show()));
        }
        self.removed.extend(before.all().difference(&now.all()));
        self.configurations.insert(index, now);
        self.case.right();
        Ok(())
    }

    fn installed(&mut self, sequence: u64, node: NodeNumber, index: u64, now: &Configuration) -> Finding {
        of_node(&mut self.members, node).known = index;
        let expected = self.before(index + 1);
        self.right_if(expected == *now, || {
            let subject = format!("{node} takes over a state");
            Violation::new(sequence, subject, expected.show(), now.show()).at_index(index)
        })
    }

    fn stands(&mut self, sequence: u64, node: NodeNumber) -> Finding {
        let Member { id, known } = *of_node(&mut self.members, node);
        let by = self.before(known + 1);
        // One that starts has applied what it starts from, of which nothing is told.
        let right = known == 0 || by.voters.contains(&id);
        self.right_if(right, || {
            let expected = format!("a voter by what it applied up to {known}: {}", by.show());
            Violation::new(sequence, format!("{node} stands for election"), expected, format!("{id:x}")).at_index(known)
        })
    }

    fn told(&mut self, sequence: u64, what: &Change, peers: &[Peer]) -> Finding {
        if let Change::MoveLeader { .. } = what {
            return Ok(());
        }
        let told = Configuration::told(peers);
        let subject = format!("an operator who asked for {what:?}");
        let place = self.configurations.iter().rev().find(|(_, known)| **known == told);
        let Some((&index, _)) = place else {
            return Err(Violation::new(sequence, subject, "a membership that somebody applied", told.show()));
        };
        let done = match what {
            Change::Add { url, learner } => {
                peers.iter().any(|peer| peer.urls == [url.clone()] && peer.learner == *learner)
            }
            Change::Remove { member } => !told.all().contains(member),
            Change::Promote { member } => told.voters.contains(member),
            Change::Update { member, urls } => peers.iter().any(|peer| peer.member == *member && peer.urls == *urls),
            Change::MoveLeader { .. } => true,
        };
        self.right_if(done, || {
            let got = format!("{}: {peers:?}", told.show());
            Violation::new(sequence, subject, "it is done", got).at_index(index)
        })
    }
}
