//! Laws of those who ask: each is answered once, in time, and truly.
use detcd_core::{
    error::Refusal,
    machine::{Response, membership::Membership},
    replica::{Answer, ChangeRequest},
    types::{Index, MemberId, RequestId, Ticket},
};

use super::{Law, Laws, Verdict};
use crate::disk::Disk;

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Write,
    Read,
    Change(ChangeRequest),
    Transfer(MemberId),
}

#[derive(Debug, Clone)]
pub(super) struct Waiting {
    request: Request,
    /// What a read must at least have seen.
    floor: Index,
    /// The member's tick until which it is answered.
    until: u64,
    /// It is about the removal of the member that leads.
    of_leader: bool,
}

impl Laws {
    /// A client of `who` waits from now on, for so many of the member's ticks at most.
    pub fn asked(&mut self, who: MemberId, ticket: Ticket, request: Request, ticks: u64) {
        let leads = |id: &MemberId| self.runs.get(id).is_some_and(|run| run.leading.is_some());
        let of_leader = matches!(&request, Request::Change(ChangeRequest::Remove(id)) if leads(id));
        let until = self.runs[&who].ticks + ticks;
        self.waiting.insert((who, ticket), Waiting { request, floor: self.known, until, of_leader });
    }

    pub fn ticked(&mut self, who: MemberId) {
        self.run(who).ticks += 1;
    }

    /// A turn of `who` is over.
    pub fn on_time(&self, who: MemberId) -> Verdict {
        let now = self.runs[&who].ticks;
        let mut late = self.waiting.iter().filter(|((member, _), waiting)| *member == who && waiting.until < now);
        let late = late.next();
        self.require(Law::Answered, late.is_none(), || format!("at tick {now} {who} still owes an answer: {late:?}"))
    }

    pub fn waits_for(&self, who: MemberId, ticket: Ticket) -> Option<&Request> {
        self.waiting.get(&(who, ticket)).map(|waiting| &waiting.request)
    }

    pub fn all_answered(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn require_recovered(&self, recovered: bool, what: impl FnOnce() -> String) -> Verdict {
        let waiting = &self.waiting;
        self.require(Law::Answered, self.all_answered(), || format!("{waiting:?} are never answered"))?;
        self.require(Law::Recovers, recovered, what)
    }

    pub(super) fn acknowledged(&mut self, who: MemberId, request: RequestId, index: Index, disks: &[Disk]) -> Verdict {
        self.known = self.known.max(index);
        self.run(who).acknowledged = Some(index);
        let applied = self.applied_at.get(&request).copied();
        self.require(Law::AckDurable, applied == Some(index), || {
            format!("{request} is acknowledged at {index} and applied at {applied:?}")
        })?;
        self.require_durable(Law::AckDurable, index, disks)
    }

    pub fn answered(&mut self, who: MemberId, ticket: Ticket, answer: &Answer) -> Verdict {
        let waiting = self.waiting.remove(&(who, ticket));
        let acknowledged = self.run(who).acknowledged.take();
        let Some(Waiting { request, of_leader, .. }) = waiting.filter(|waiting| waiting.request != Request::Read)
        else {
            return self.require(Law::AnsweredOnce, false, || format!("{who} answers {ticket}: {answer:?}"));
        };
        let done = answer.result.is_ok();
        match &request {
            Request::Transfer(to) => {
                *(if done { &mut self.tally.transfers } else { &mut self.tally.transfers_failed }) += 1;
                let leader = self.leaders.get(&answer.term);
                return self.require(Law::ToldTrue, !done || leader == Some(to), || {
                    format!("{who} says that {to} leads in term {}, it is {leader:?}", answer.term)
                });
            }
            Request::Change(change) => {
                *(if done { &mut self.tally.changed } else { &mut self.tally.unchanged }) += 1;
                self.tally.leaders_removed += usize::from(done && of_leader);
                if let (true, ChangeRequest::Remove(id)) = (done, change) {
                    self.dismissed.insert(*id);
                }
                self.change_made(who, change, answer, acknowledged)?;
            }
            _ if acknowledged.is_some() => self.tally.acknowledged += 1,
            _ => self.tally.refused += 1,
        }
        let Some(index) = acknowledged else {
            return self.require(Law::AckDurable, !done, || format!("{who} made up {answer:?}"));
        };
        let revision = self.states[index.0 as usize - 1].revision;
        self.require(Law::AckDurable, answer.revision == revision, || {
            format!("{who} answers {ticket} with revision {}, at {index} it was {revision}", answer.revision)
        })
    }

    fn change_made(&self, who: MemberId, change: &ChangeRequest, answer: &Answer, at: Option<Index>) -> Verdict {
        let made = match (&answer.result, at) {
            (Ok(Response::Members(members)), Some(index)) => {
                self.configuration_at(index) == Some(&members.configuration()) && is_made(change, members)
            }
            (Ok(_), _) => false,
            // What the machine refuses was tried; all else is told without.
            (Err(refusal), index) => index.is_none() || refusal.is_definite(),
        };
        self.require(Law::ToldTrue, made, || format!("{who} answers {change:?}, at {at:?}, with {answer:?}"))
    }

    /// `applied` is where the machine stands from which the read is served.
    pub fn read_ready(
        &mut self,
        who: MemberId,
        ticket: Ticket,
        result: Result<(), Refusal>,
        applied: Index,
    ) -> Verdict {
        let waiting = self.waiting.remove(&(who, ticket));
        let Some(Waiting { request: Request::Read, floor, .. }) = waiting else {
            return self.require(Law::AnsweredOnce, false, || format!("{who} answers read {ticket}: {waiting:?}"));
        };
        if result.is_err() {
            self.tally.reads_refused += 1;
            return Ok(());
        }
        self.tally.reads_served += 1;
        self.known = self.known.max(applied);
        self.require(Law::ReadFresh, applied >= floor, || {
            format!("{who} serves read {ticket} at {applied}, but {floor} was known before it was asked")
        })
    }

    /// It said that it was removed.
    pub fn said_removed(&mut self, who: MemberId) -> Verdict {
        self.tally.said_removed += 1;
        self.dismissed.insert(who);
        self.require(Law::ToldTrue, self.is_removed(who), || format!("{who} believes that it was removed"))
    }

    /// Whether nobody may need it any more.
    pub fn is_dismissed(&self, who: MemberId) -> bool {
        self.dismissed.contains(&who)
    }
}

fn is_made(change: &ChangeRequest, members: &Membership) -> bool {
    match change {
        ChangeRequest::Add(member) => members.get(member.id).is_some_and(|m| m.is_learner == member.is_learner),
        ChangeRequest::Promote(id) => members.get(*id).is_some_and(|member| !member.is_learner),
        ChangeRequest::Remove(id) => members.get(*id).is_none() && members.is_removed(*id),
        ChangeRequest::UpdatePeers(id, urls) => members.get(*id).is_some_and(|member| member.peer_urls == *urls),
    }
}
