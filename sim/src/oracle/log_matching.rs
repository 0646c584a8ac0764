//! Law: entries of the same index and term are the same on all members, and so is all before them.
//!
//! Besides: a leader changes nothing in its own log, and what is committed stays, the same on all members.
//!
//! A term that its leader forgot over a restart, and in which nobody else has an entry, never was: a sole voter leads at
//! once, and tells nobody before its disk has the term. It may come to the same term again.
use std::collections::BTreeMap;

use detcd_core::event::{NodeEvent, Role};

use super::{
    Law, Resident, Verdict, Violation,
    case::{Case, Finding},
    log::{Found, MemberLog, Promise, Stamp},
    moves_in, of_node,
};
use crate::history::{Event, NodeNumber, Stamped};

#[derive(Default)]
pub struct LogMatching {
    case: Case,
    members: Vec<Member>,
    /// The first entry seen at each index, from 1 at place 0; those of other terms are in `others`.
    first: Vec<Option<Stamp>>,
    others: BTreeMap<(u64, u64), Stamp>,
    /// Of each term, who appended entries of it, if that is only one.
    writers: BTreeMap<u64, Option<NodeNumber>>,
    /// What is committed.
    agreed: Vec<Stamp>,
}

#[derive(Default)]
struct Member {
    id: u64,
    log: MemberLog,
    /// The term in which it leads.
    leads: Option<u64>,
    commit: u64,
    /// So many entries of its log are those agreed on.
    checked: usize,
}

impl Resident for Member {
    fn id(&mut self) -> &mut u64 {
        &mut self.id
    }
}

impl Law for LogMatching {
    fn name(&self) -> &'static str {
        "log_matching"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        match &event.event {
            Event::Started { node, member } => moves_in(&mut self.members, *node, *member),
            Event::Tampered { node } => {
                let own = of_node(&mut self.members, *node);
                own.log.tamper();
                (own.commit, own.checked) = (0, 0);
            }
            Event::Node { node, event: what } => {
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

impl LogMatching {
    fn look(&mut self, sequence: u64, node: NodeNumber, what: &NodeEvent) -> Finding {
        let member = of_node(&mut self.members, node);
        match *what {
            NodeEvent::Appended { index, term, hash } => return self.appended(sequence, node, index.0, term.0, hash),
            NodeEvent::Committed { index } => return self.committed(sequence, node, index.0),
            NodeEvent::LogRestarted { index, .. } => {
                member.log.restart(index.0);
                member.checked = 0;
            }
            NodeEvent::PersistStarted { persist, term, vote, .. } => {
                member.log.persist(persist.0, Promise { term: term.0, vote: vote.0 });
            }
            NodeEvent::Persisted { persist } => member.log.persisted(persist.0),
            NodeEvent::RoleChanged { role, term, .. } => member.leads = (role == Role::Leader).then_some(term.0),
            NodeEvent::Recovered { term, vote, commit, before, ref entries, .. } => {
                // What it lost is another law's business.
                let _ = member.log.recover(&Found::new(term, vote, before, entries));
                (member.leads, member.commit, member.checked) = (None, commit.0, 0);
                self.forget(node, term.0);
                return self.recovered(sequence, node, before.0);
            }
            _ => {}
        }
        Ok(())
    }

    /// What it read back is what it, or anybody else, had there in that term.
    fn recovered(&mut self, sequence: u64, node: NodeNumber, before: u64) -> Finding {
        for (index, stamp) in (1..).zip(&self.members[node.0].log.memory).skip(before as usize) {
            let known = known_as(&mut self.first, &mut self.others, index, *stamp);
            if !known.agrees(*stamp) {
                let subject = format!("{node} reads back entry {index} of term {}", stamp.term);
                let expected = format!("hash {:x}, as on the first member", known.hash);
                let got = format!("hash {:x}", stamp.hash);
                return Err(Violation::new(sequence, subject, expected, got).at_index(index));
            }
        }
        self.case.right();
        Ok(())
    }

    /// This node knows of no term after this one any more: those in which nobody else has anything never were.
    fn forget(&mut self, node: NodeNumber, known: u64) {
        for (term, _) in self.writers.extract_if(known + 1.., |_, writer| *writer == Some(node)) {
            self.others.retain(|(_, of), _| *of != term); // nobody ever had it
            for (at, first) in self.first.iter_mut().enumerate() {
                if first.take_if(|stamp| stamp.term == term).is_some() {
                    let index = at as u64 + 1;
                    let left = self.others.range((index, 0)..=(index, u64::MAX)).next().map(|(key, _)| *key);
                    *first = left.and_then(|key| self.others.remove(&key));
                }
            }
        }
    }

    fn appended(&mut self, sequence: u64, node: NodeNumber, index: u64, term: u64, hash: u64) -> Finding {
        let member = &mut self.members[node.0];
        let mut stamp = member.log.stamp(index, term, hash);
        let at = index as usize - 1;
        let violation = |expected: String, got: String| {
            let subject = format!("{node} appends entry {index} of term {term}");
            Err(Violation::new(sequence, subject, expected, got).at_index(index))
        };
        if at > member.log.memory.len() {
            let expected = format!("no gap: its log ends at {}", member.log.memory.len());
            return violation(expected, format!("index {index}"));
        }
        if let Some(old) = member.log.memory.get(at) {
            // Its entries of its own term can only come from itself.
            if member.leads == Some(term) {
                let expected = format!("as leader of term {term}, to change nothing in its log");
                return violation(expected, format!("it replaces one of term {}, hash {:x}", old.term, old.hash));
            }
            if index <= member.commit && !old.agrees(stamp) {
                let expected = format!("the committed one: term {}, hash {:x}", old.term, old.hash);
                return violation(expected, format!("term {term}, hash {hash:x}"));
            }
        }
        self.writers.entry(term).or_insert(Some(node)).take_if(|writer| *writer != node);
        let known = known_as(&mut self.first, &mut self.others, index, stamp);
        if !known.agrees(stamp) {
            return violation(format!("hash {:x}, as on the first member", known.hash), format!("hash {hash:x}"));
        }
        if stamp.chain == 0 {
            stamp.chain = known.chain; // what stands before was lost from sight
        } else if known.chain == 0 {
            *known = stamp;
        } else if known.chain != stamp.chain {
            let expected = format!("the same log before it as on the first member: chain {:x}", known.chain);
            return violation(expected, format!("chain {:x}", stamp.chain));
        }
        member.log.append(index, stamp);
        member.checked = member.checked.min(at);
        self.case.right();
        Ok(())
    }

    fn committed(&mut self, sequence: u64, node: NodeNumber, index: u64) -> Finding {
        let member = &mut self.members[node.0];
        let violation = |index: u64, expected: String, got: String| {
            Err(Violation::new(sequence, format!("{node} commits entry {index}"), expected, got).at_index(index))
        };
        if index < member.commit {
            return violation(index, format!("no less than before: {}", member.commit), format!("{index}"));
        }
        member.commit = index;
        if member.log.memory.len() < index as usize {
            return violation(index, "what it has".into(), format!("its log ends at {}", member.log.memory.len()));
        }
        for at in member.checked..index as usize {
            let held = member.log.memory[at];
            match self.agreed.get_mut(at) {
                None => self.agreed.push(held),
                Some(agreed) if agreed.term == 0 => *agreed = held,
                Some(agreed) if agreed.agrees(held) => {}
                Some(agreed) => {
                    let expected = format!("the one committed before: term {}, hash {:x}", agreed.term, agreed.hash);
                    return violation(at as u64 + 1, expected, format!("term {}, hash {:x}", held.term, held.hash));
                }
            }
        }
        member.checked = index as usize;
        self.case.right();
        Ok(())
    }
}

/// The entry of this index and term that was seen first: this one, if there was none.
fn known_as<'a>(
    first: &'a mut Vec<Option<Stamp>>,
    others: &'a mut BTreeMap<(u64, u64), Stamp>,
    index: u64,
    stamp: Stamp,
) -> &'a mut Stamp {
    let at = index as usize - 1;
    if first.len() <= at {
        first.resize(at + 1, None);
    }
    match first[at].get_or_insert(stamp).term == stamp.term {
        true => first[at].as_mut().expect("just put there"),
        false => others.entry((index, stamp.term)).or_insert(stamp),
    }
}
