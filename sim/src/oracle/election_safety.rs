//! Law: a term has one leader, and a member one vote in it.
//!
//! - Nobody else leads in a term in which one member leads, and nobody follows another.
//! - The term that a member hands to its disk never goes back, and in one term the vote, once given, stays. A failure
//!   takes back what was not durable: it bound nobody. What was durable binds, whatever the member reads back.
use std::collections::{BTreeMap, VecDeque};

use detcd_core::event::{NodeEvent, Role};

use super::{
    Law, Resident, Verdict, Violation,
    case::{Case, Finding},
    log::Promise,
    moves_in, of_node,
};
use crate::history::{Event, NodeNumber, Stamped};

#[derive(Default)]
pub struct ElectionSafety {
    case: Case,
    /// By term, the member that leads; its id.
    leaders: BTreeMap<u64, u64>,
    members: Vec<Member>,
}

#[derive(Default)]
struct Member {
    id: u64,
    /// The highest term it spoke of since it started.
    term: u64,
    promised: Promise,
    durable: Promise,
    /// Batches under way that changed the promise, by number.
    pending: VecDeque<(u64, Promise)>,
}

impl Resident for Member {
    fn id(&mut self) -> &mut u64 {
        &mut self.id
    }
}

impl Law for ElectionSafety {
    fn name(&self) -> &'static str {
        "election_safety"
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
            Event::Tampered { node } => {
                let own = of_node(&mut self.members, *node);
                *own = Member { id: own.id, ..Member::default() };
                Ok(())
            }
            Event::Node { node, event: what } => self.look(event.sequence, *node, what),
            _ => Ok(()),
        };
        self.case.take(finding);
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl ElectionSafety {
    fn look(&mut self, sequence: u64, node: NodeNumber, what: &NodeEvent) -> Finding {
        match *what {
            NodeEvent::RoleChanged { role, term, leader } => self.stands(sequence, node, role, term.0, leader.0),
            NodeEvent::PersistStarted { persist, term, vote, .. } => {
                let promise = Promise { term: term.0, vote: vote.0 };
                if promise != of_node(&mut self.members, node).promised {
                    self.promises(sequence, node, persist.0, promise)?;
                }
                Ok(())
            }
            NodeEvent::Persisted { persist } => {
                let member = of_node(&mut self.members, node);
                while member.pending.front().is_some_and(|(of, _)| *of <= persist.0) {
                    member.durable = member.pending.pop_front().expect("just seen").1;
                }
                Ok(())
            }
            NodeEvent::Recovered { term, vote, .. } => {
                let member = of_node(&mut self.members, node);
                let found = Promise { term: term.0, vote: vote.0 };
                // That it reads back less than was durable breaks another law; here it breaks none until it acts on it.
                if keeps(member.durable, found) {
                    member.durable = found;
                }
                member.promised = member.durable;
                member.term = member.durable.term;
                member.pending.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn stands(&mut self, sequence: u64, node: NodeNumber, role: Role, term: u64, leader: u64) -> Finding {
        let member = of_node(&mut self.members, node);
        if term < member.term {
            let expected = format!("term {} or a later one", member.term);
            return Err(Violation::new(sequence, format!("{node} is {role:?}"), expected, format!("term {term}")));
        }
        member.term = term;
        let leads = if role == Role::Leader { member.id } else { leader };
        if leads == 0 {
            return Ok(());
        }
        let first = *self.leaders.entry(term).or_insert(leads);
        if first != leads {
            let says = if role == Role::Leader { "leads" } else { "follows" };
            let (expected, got) = (format!("{first:x} is the one leader of term {term}"), format!("{leads:x}"));
            return Err(Violation::new(sequence, format!("{node} {says} in term {term}"), expected, got));
        }
        self.case.right();
        Ok(())
    }

    fn promises(&mut self, sequence: u64, node: NodeNumber, persist: u64, promise: Promise) -> Finding {
        let member = of_node(&mut self.members, node);
        let before = member.promised;
        if !keeps(before, promise) {
            let expected = if promise.term < before.term {
                format!("term {} or a later one", before.term)
            } else {
                format!("its vote in term {} for {:x}", before.term, before.vote)
            };
            let got = format!("term {}, vote for {:x}", promise.term, promise.vote);
            return Err(Violation::new(sequence, format!("{node} hands batch {persist} to its disk"), expected, got));
        }
        member.promised = promise;
        member.pending.push_back((persist, promise));
        self.case.right();
        Ok(())
    }
}

/// Whether who has promised the one may go on with the other.
fn keeps(before: Promise, after: Promise) -> bool {
    after.term > before.term || after.term == before.term && (before.vote == 0 || after.vote == before.vote)
}
