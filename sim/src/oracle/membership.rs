//! Law: there is one history of the membership, and everybody is in it what it says.
//!
//! - At one index all members have the same voters and learners, told by an entry, by a state that was taken over, or by
//!   what a member starts from; the latter two also know who was removed.
//! - A valid change changes one member, leaves a voter, and never brings back who was removed.
//! - Who stands for election is a voter by all that it has applied itself, and says that it was removed only if it was.
//! - What an operator is told is a membership that some member has applied, and what was asked for is done in it; if it
//!   was to be another leader, that member led meanwhile.
//! - A change that was refused for good never takes effect.
use std::collections::{BTreeMap, BTreeSet};

use detcd_core::{
    event::{Members, NodeEvent, Role},
    types::MemberId,
};

use super::{
    Law, Resident, Verdict, Violation,
    case::{Case, Finding},
    moves_in, of_node,
};
use crate::history::{CHANGE_TRACE, Change, Event, NodeNumber, Peer, Refused, Stamped, Text};

#[derive(Default)]
pub struct Membership {
    case: Case,
    /// By the index of the change; those that were not valid change nothing, and are not here.
    configurations: BTreeMap<u64, Configuration>,
    /// The indexes of changes that were not valid.
    invalid: BTreeSet<u64>,
    /// Who was removed, and by which index.
    removed: BTreeMap<u64, u64>,
    members: Vec<Member>,
    /// What operators wait for.
    asked: BTreeMap<u64, Asked>,
    fates: Fates,
}

struct Asked {
    what: Change,
    /// Whether it is about a leader, and the member led meanwhile.
    led: bool,
}

/// What becomes of changes. A member that forwards one to the leader does not tell which: of these nothing is known.
#[derive(Default)]
struct Fates {
    /// By the request's id in the log.
    requests: BTreeMap<u64, u64>,
    /// By the index of its entry.
    entries: BTreeMap<u64, u64>,
    /// Those that took effect, and where.
    done: BTreeMap<u64, u64>,
    /// Those that were refused for good, and how.
    refused: BTreeMap<u64, Text>,
}

#[derive(Default)]
struct Member {
    id: u64,
    /// The index of the newest change that it has applied.
    known: u64,
    leads: bool,
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
                of_node(&mut self.members, *node).leads = false;
                Ok(())
            }
            Event::Killed { node, .. } | Event::Node { node, event: NodeEvent::Stopped { .. } } => {
                of_node(&mut self.members, *node).leads = false;
                Ok(())
            }
            Event::Node { node, event: what } => self.look(event.sequence, *node, what),
            Event::Asked { change, what, .. } => {
                let leads = |id: u64| self.members.iter().any(|member| member.id == id && member.leads);
                let led = matches!(what, Change::MoveLeader { to } if leads(*to));
                self.asked.insert(*change, Asked { what: what.clone(), led });
                Ok(())
            }
            Event::Told { change, outcome } => match (self.asked.remove(change), outcome) {
                (Some(asked), Ok(peers)) => self.told(event.sequence, &asked, peers),
                (Some(_), Err(Refused { definite: true, why })) => {
                    self.fates.refused.insert(*change, why.clone());
                    self.fates.judge(event.sequence, *change)
                }
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
        if let NodeEvent::RoleChanged { role, .. } = what {
            let member = of_node(&mut self.members, node);
            member.leads = *role == Role::Leader;
            let (id, leads) = (member.id, member.leads);
            let is_to = |asked: &&mut Asked| matches!(asked.what, Change::MoveLeader { to } if to == id && leads);
            self.asked.values_mut().filter(is_to).for_each(|asked| asked.led = true);
        }
        match what {
            NodeEvent::Proposed { trace, request } if trace.0 & CHANGE_TRACE != 0 => {
                self.fates.requests.insert(request.0, trace.0 & !CHANGE_TRACE);
                Ok(())
            }
            NodeEvent::Applied { index, request, .. } => {
                let change = self.fates.requests.get(&request.0);
                self.fates.entries.extend(change.map(|change| (index.0, *change)));
                Ok(())
            }
            NodeEvent::ConfigurationApplied { index, voters, learners, valid } => {
                let configuration = Configuration::new(voters, learners);
                self.applied(sequence, node, index.0, configuration, *valid)?;
                match self.fates.entries.get(&index.0).copied().filter(|_| *valid) {
                    Some(change) => {
                        self.fates.done.insert(change, index.0);
                        self.fates.judge(sequence, change)
                    }
                    None => Ok(()),
                }
            }
            NodeEvent::SnapshotInstalled { index, members, .. } => {
                self.goes_on(sequence, node, "takes over", index.0, members)
            }
            NodeEvent::Recovered { applied, members, .. } => {
                self.goes_on(sequence, node, "starts from", applied.0, members)
            }
            NodeEvent::RoleChanged { role: Role::Candidate | Role::Leader, .. } => self.stands(sequence, node),
            NodeEvent::Removed => {
                let id = of_node(&mut self.members, node).id;
                self.right_if(self.removed.contains_key(&id), || {
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
        if valid && self.invalid.contains(&index) {
            return Err(violation("not valid, as on the first member".into(), now.show()));
        }
        if !valid {
            self.invalid.insert(index);
            let expected = format!("nothing changed: {}", before.show());
            return self.right_if(before == now, || violation(expected, now.show()));
        }
        if now.voters.is_empty() || before.distance(&now) > 1 {
            return Err(violation(format!("one member more, less or other than {}", before.show()), now.show()));
        }
        if let Some(back) = now.all().into_iter().find(|id| self.removed.contains_key(id)) {
            return Err(violation(format!("{back:x}, which was removed, to stay away"), now.show()));
        }
        self.removed.extend(before.all().difference(&now.all()).map(|id| (*id, index)));
        self.configurations.insert(index, now);
        self.case.right();
        Ok(())
    }

    /// It goes on from a state as of this index.
    fn goes_on(&mut self, sequence: u64, node: NodeNumber, how: &str, index: u64, members: &Members) -> Finding {
        let Members { voters, learners, removed } = members;
        let now = Configuration::new(voters, learners);
        of_node(&mut self.members, node).known = index;
        let expected = self.before(index + 1);
        let gone: BTreeSet<_> = self.removed.iter().filter(|(_, at)| **at <= index).map(|(id, _)| *id).collect();
        let told: BTreeSet<_> = removed.iter().map(|id| id.0).collect();
        self.right_if(expected == now && gone == told, || {
            let show = |members: &Configuration, removed: &BTreeSet<u64>| {
                let removed = removed.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(" ");
                format!("{}; removed {removed}", members.show())
            };
            let subject = format!("{node} {how} a state of index {index}");
            Violation::new(sequence, subject, show(&expected, &gone), show(&now, &told)).at_index(index)
        })
    }

    fn stands(&mut self, sequence: u64, node: NodeNumber) -> Finding {
        let Member { id, known, .. } = *of_node(&mut self.members, node);
        let by = self.before(known + 1);
        let right = by.voters.contains(&id);
        self.right_if(right, || {
            let expected = format!("a voter by what it applied up to {known}: {}", by.show());
            Violation::new(sequence, format!("{node} stands for election"), expected, format!("{id:x}")).at_index(known)
        })
    }

    fn told(&mut self, sequence: u64, asked: &Asked, peers: &[Peer]) -> Finding {
        let Asked { what, led } = asked;
        let subject = format!("an operator who asked for {what:?}");
        if let Change::MoveLeader { to } = what {
            return self.right_if(*led, || {
                Violation::new(sequence, subject, format!("{to:x} led since it was asked for"), "it is said to be done")
            });
        }
        let told = Configuration::told(peers);
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

impl Fates {
    fn judge(&self, sequence: u64, change: u64) -> Finding {
        let (Some(index), Some(why)) = (self.done.get(&change), self.refused.get(&change)) else { return Ok(()) };
        let (subject, got) = (format!("change {change}"), format!("made by entry {index}"));
        Err(Violation::new(sequence, subject, format!("never to be made: {why}"), got).at_index(*index))
    }
}
