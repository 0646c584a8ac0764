//! Law: what is committed, and so what a client is told is done, is on the disks of a quorum at that moment, and stays.
//!
//! - When a leader commits an entry, a quorum of the voters, by the configuration that it has applied, holds that very
//!   entry durably, or a state that stands in for it.
//! - What a member acknowledges is committed.
//! - What a member reports durable its disk cannot lose.
//! - A member that starts again finds what it had reported durable, or more of what was on its way: never less, and
//!   nothing else.
//! - Whoever becomes leader has every acknowledged entry that was committed in an earlier term. (Votes that are long under
//!   way may make a leader of a term that is over; it gets nothing done.)
use detcd_core::{
    event::{NodeEvent, Role},
    types::MemberId,
};

use super::{
    Law, Resident, Verdict, Violation,
    case::{Case, Finding},
    log::{Found, MemberLog, Promise, Stamp},
    moves_in, of_node,
};
use crate::history::{Event, Nanos, NodeNumber, Stamped};

#[derive(Default)]
pub struct Durability {
    case: Case,
    members: Vec<Member>,
    /// By index, from 1 at place 0: what leaders committed. Not told of what a cluster begins with.
    committed: Vec<Option<Decided>>,
    /// As far as it was acknowledged.
    acknowledged: Vec<Option<Decided>>,
}

/// An entry that was committed.
#[derive(Clone, Copy)]
struct Decided {
    entry: Stamp,
    /// The term of the leader that committed it.
    term: u64,
}

#[derive(Default)]
struct Member {
    id: u64,
    log: MemberLog,
    /// Who has a say, by what it has applied.
    voters: Vec<u64>,
    leads: bool,
    /// In which it last led.
    term: u64,
    /// When it last ceased to lead.
    stood_down: Option<Nanos>,
    commit: u64,
    /// So many entries of its log hold all that was acknowledged among them.
    checked: usize,
}

impl Member {
    fn applied(&mut self, voters: &[MemberId]) {
        self.voters = voters.iter().map(|id| id.0).collect();
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
                let finding = self.look(event, *node, what);
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
    fn look(&mut self, event: &Stamped, node: NodeNumber, what: &NodeEvent) -> Finding {
        let (sequence, member) = (event.sequence, of_node(&mut self.members, node));
        match what {
            NodeEvent::Appended { index, term, hash } => {
                let stamp = member.log.stamp(index.0, term.0, *hash);
                member.log.append(index.0, stamp);
                member.checked = member.checked.min(index.0 as usize - 1);
            }
            NodeEvent::LogRestarted { index, .. } => {
                member.log.restart(index.0);
                member.checked = 0;
            }
            NodeEvent::ConfigurationApplied { voters, .. } => member.applied(voters),
            NodeEvent::SnapshotInstalled { index, members, .. } => {
                member.applied(&members.voters);
                member.commit = member.commit.max(index.0);
            }
            NodeEvent::PersistStarted { persist, term, vote, .. } => {
                member.log.persist(persist.0, Promise { term: term.0, vote: vote.0 });
            }
            NodeEvent::Persisted { persist } => member.log.persisted(persist.0),
            NodeEvent::Committed { index } => return self.commits(event, node, index.0),
            NodeEvent::Recovered { .. } => return self.recovered(sequence, node, what),
            NodeEvent::Acknowledged { request, index } => return self.acknowledge(sequence, node, request.0, index.0),
            NodeEvent::RoleChanged { role: Role::Leader, term, .. } => {
                (member.leads, member.term) = (true, term.0);
                return self.leads(sequence, node, term.0);
            }
            NodeEvent::RoleChanged { .. } => {
                member.stood_down = std::mem::take(&mut member.leads).then_some(event.at);
            }
            _ => {}
        }
        Ok(())
    }

    fn recovered(&mut self, sequence: u64, node: NodeNumber, what: &NodeEvent) -> Finding {
        let NodeEvent::Recovered { term, vote, commit, before, last, entries, applied, members, .. } = what else {
            unreachable!("it reads its files back")
        };
        let member = of_node(&mut self.members, node);
        let violation = |expected: String, got: String| {
            let subject = format!("{node} reads its log back");
            Err(Violation::new(sequence, subject, expected, got).at_index(last.0))
        };
        let (kept, durable) = (member.log.kept, member.log.durable.clone());
        let found = Found::new(*term, *vote, *before, entries);
        let right = member.log.recover(&found);
        (member.leads, member.stood_down, member.commit, member.checked) = (false, None, commit.0, 0);
        member.applied(&members.voters);
        if commit > last || applied > last {
            let got = format!("commit {commit}, a state as of {applied}, and a log up to {last}");
            return violation("a log that reaches as far as what it says of it".into(), got);
        }
        if !right {
            let show = |promise: Promise, log: &[Stamp]| {
                let (Promise { term, vote }, last) = (promise, log.last().map_or(0, |stamp| stamp.term));
                format!("term {term}, vote {vote:x}, entries up to {}, the last of term {last}", log.len())
            };
            let pairs = (1..).zip(durable.iter().zip(&member.log.memory));
            let other = pairs.into_iter().find(|(_, (a, b))| !a.agrees(**b));
            let other = other.map_or(String::new(), |(index, (a, b))| {
                format!("; entry {index} is one of term {}, and was one of term {}", b.term, a.term)
            });
            let expected = format!("{}, or more of what was on its way to disk", show(kept, &durable));
            return violation(expected, format!("{}{other}", show(found.promise, &member.log.memory)));
        }
        self.case.right();
        Ok(())
    }

    /// A leader's commit is its own decision; a follower's was some leader's. One that ceased to lead this very moment
    /// may mean either: it counts if it is right as the former.
    fn commits(&mut self, event: &Stamped, node: NodeNumber, index: u64) -> Finding {
        let member = of_node(&mut self.members, node);
        let before = std::mem::replace(&mut member.commit, index).min(index);
        if !member.leads && member.stood_down != Some(event.at) {
            return Ok(());
        }
        let (leads, term, voters) = (member.leads, member.term, member.voters.clone());
        let fresh = member.log.memory.get(before as usize..index as usize).map(<[Stamp]>::to_vec);
        let subject = || format!("{node} commits entry {index}");
        let Some(stamp) = fresh.as_ref().and_then(|fresh| fresh.last()).copied() else {
            let got = format!("its log ends at {}", member.log.memory.len());
            return Err(Violation::new(event.sequence, subject(), "an entry in its log", got).at_index(index));
        };
        // What another one decided may be of any term.
        if !leads && stamp.term != term {
            return Ok(());
        }
        let at = index as usize - 1;
        let holds = |member: &&Member| member.log.durable.get(at).is_some_and(|held| held.agrees(stamp));
        let holders: Vec<_> = self.members.iter().filter(holds).map(|member| member.id).collect();
        if voters.iter().filter(|id| holders.contains(id)).count() <= voters.len() / 2 {
            if !leads {
                return Ok(());
            }
            let ids = |ids: &[u64]| ids.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(" ");
            let expected = format!("it, of term {}, to be durable on a quorum of {}", stamp.term, ids(&voters));
            let term = |member: &Member| member.log.durable.get(at).map_or(0, |held| held.term);
            let terms = self.members.iter().enumerate().skip(1).map(|(node, own)| format!("n{node}: {}", term(own)));
            let terms = terms.collect::<Vec<_>>().join(", ");
            let got = format!("it is on {}; what is durable there is of these terms: {terms}", ids(&holders));
            return Err(Violation::new(event.sequence, subject(), expected, got).at_index(index));
        }
        if self.committed.len() <= at {
            self.committed.resize(at + 1, None);
        }
        // A leader commits by an entry of its own term.
        for (place, entry) in (before as usize..).zip(fresh.into_iter().flatten()) {
            self.committed[place].get_or_insert(Decided { entry, term: stamp.term });
        }
        self.case.right();
        Ok(())
    }

    fn acknowledge(&mut self, sequence: u64, node: NodeNumber, request: u64, index: u64) -> Finding {
        let at = index as usize - 1;
        let violation = |expected: String, got: String| {
            let subject = format!("request {request:x}, acknowledged by {node}");
            Err(Violation::new(sequence, subject, expected, got).at_index(index))
        };
        let Some(stamp) = self.members[node.0].log.memory.get(at).copied() else {
            let got = format!("its log ends at {}", self.members[node.0].log.memory.len());
            return violation(format!("entry {index} in its log"), got);
        };
        let committed = match self.committed.get(at).copied().flatten() {
            Some(committed) if committed.entry.agrees(stamp) => committed,
            committed => {
                let got = committed.map_or("no leader committed any there".into(), |committed| {
                    format!("one of term {} is committed there", committed.entry.term)
                });
                return violation(format!("entry {index} of term {} to be committed", stamp.term), got);
            }
        };
        self.members.iter_mut().for_each(|member| member.checked = member.checked.min(at));
        if self.acknowledged.len() <= at {
            self.acknowledged.resize(at + 1, None);
        }
        self.acknowledged[at] = Some(committed);
        self.case.right();
        Ok(())
    }

    fn leads(&mut self, sequence: u64, node: NodeNumber, term: u64) -> Finding {
        let member = &mut self.members[node.0];
        let mut checked = self.acknowledged.len();
        for (at, acknowledged) in self.acknowledged.iter().enumerate().skip(member.checked) {
            let Some(Decided { entry: stamp, term: decided }) = acknowledged else { continue };
            if *decided >= term {
                checked = checked.min(at);
                continue;
            }
            let held = member.log.memory.get(at);
            if held.is_none_or(|held| !held.agrees(*stamp)) {
                let index = at as u64 + 1;
                let expected = format!("entry {index} of term {}, which was acknowledged", stamp.term);
                let got = held.map_or("nothing there".into(), |held| format!("one of term {}", held.term));
                let subject = format!("{node} becomes leader in term {term}");
                return Err(Violation::new(sequence, subject, expected, got).at_index(index));
            }
        }
        member.checked = checked;
        self.case.right();
        Ok(())
    }
}
