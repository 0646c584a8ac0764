//! Giving up leadership and going away: on request, when asked to stop, and when removed from the cluster.
use super::{Output, Replica, io::Answer};
use crate::{
    error::Refusal,
    event::{NodeEvent, Role},
    machine::Response,
    types::{MemberId, Ticket},
};

/// A hand-over that somebody waits for.
struct Transfer {
    ticket: Ticket,
    to: MemberId,
    /// A tick.
    deadline: u64,
}

/// Whether, why and until when a member is on its way out.
#[derive(Default)]
pub(super) struct Leaving {
    transfers: Vec<Transfer>,
    /// Asked to stop; until this tick it tries to hand over leadership first.
    stop_by: Option<u64>,
    /// It led when it was asked to stop: it waits until it knows who leads next, and gives that one its vote.
    hands_over: bool,
    /// The tick since which it knows that it was removed. It stays for a while, for the others to hear of it.
    removed: Option<u64>,
}

impl Leaving {
    /// `removed`: it was removed in an earlier run.
    pub fn new(removed: bool) -> Leaving {
        Leaving { removed: removed.then_some(0), ..Leaving::default() }
    }

    pub fn begin(&mut self, stop_by: u64) {
        self.stop_by.get_or_insert(stop_by);
    }

    pub fn removed(&mut self, now: u64) {
        self.removed.get_or_insert(now);
    }
}

impl Replica {
    pub(super) fn transfer(&mut self, ticket: Ticket, to: MemberId, out: &mut Vec<Output>) {
        let refusal = match self.machine.membership.get(to) {
            _ if self.consensus.role() != Role::Leader => Refusal::NotLeader,
            Some(member) if !member.is_learner => {
                if to != self.config.id {
                    self.consensus.transfer(to);
                }
                let deadline = self.ticks + self.config.request_ticks();
                return self.leaving.transfers.push(Transfer { ticket, to, deadline });
            }
            _ => Refusal::BadTransferee,
        };
        self.answer(ticket, Err(refusal), out);
    }

    /// Answers those whose hand-over succeeded, or cannot any more, or took too long.
    pub(super) fn end_transfers(&mut self, out: &mut Vec<Output>) {
        if self.leaving.transfers.is_empty() {
            return;
        }
        let (leader, transferee) = (self.consensus.leader(), self.consensus.transferee());
        for transfer in std::mem::take(&mut self.leaving.transfers) {
            let Transfer { ticket, to, deadline } = transfer;
            if leader == to {
                self.answer(ticket, Ok(Response::Done), out);
            } else if self.ticks < deadline && (transferee == Some(to) || leader == MemberId(0)) {
                self.leaving.transfers.push(transfer);
            } else {
                // Somebody else leads: raft gave up after an election timeout, or another hand-over came between.
                self.answer(ticket, Err(Refusal::Timeout), out);
            }
        }
    }

    pub(super) fn refuse_transfers(&mut self, refusal: Refusal, out: &mut Vec<Output>) {
        for Transfer { ticket, .. } in std::mem::take(&mut self.leaving.transfers) {
            self.answer(ticket, Err(refusal), out);
        }
    }

    fn answer(&self, ticket: Ticket, result: Result<Response, Refusal>, out: &mut Vec<Output>) {
        let (revision, term) = (self.machine.store.revision(), self.consensus.term());
        out.push(Output::Respond { ticket, answer: Answer { result, revision, term } });
    }

    /// Ends the run if it is time to.
    pub(super) fn leave(&mut self, out: &mut Vec<Output>) {
        let stays = if self.consensus.is_untold() { self.config.removed_ticks() } else { self.config.election_ticks() };
        if self.leaving.removed.is_some_and(|since| self.ticks >= since + stays) {
            self.refuse_all(out);
            out.push(Output::Note(NodeEvent::Removed));
            out.push(Output::Removed);
            self.halted = true;
        } else if self.leaving.stop_by.is_some_and(|by| self.ticks >= by || !self.leaving.hands_over) {
            self.refuse_all(out);
            out.push(Output::Stopped);
            self.halted = true;
        }
    }

    /// On the way out: asks somebody to take over leadership, if it is this member's, until somebody did.
    pub(super) fn hand_over(&mut self) {
        if self.leaving.stop_by.is_none() {
            return;
        }
        let (leads, leader) = (self.consensus.role() == Role::Leader, self.consensus.leader());
        let heir = if leads { self.consensus.heir() } else { None };
        self.leaving.hands_over = heir.is_some() || (self.leaving.hands_over && !leads && leader == MemberId(0));
        if let Some(heir) = heir
            && self.consensus.transferee().is_none()
        {
            self.consensus.transfer(heir);
        }
    }
}
