//! What operators ask for: changes of the membership, and another leader.
use detcd_core::{
    limits,
    machine::membership::Member as Founder,
    replica::{ChangeRequest, Input, Peers, Recovered},
    types::{MemberId, Ticket, TraceId},
};

use crate::{
    cluster::{Cluster, MEMBERS_MAX, founder, id},
    laws::{Request, Verdict},
    steps::Change,
};

impl Cluster {
    pub fn change(&mut self, at: usize, change: Change, connected: u8, healthy: u8) -> Verdict {
        if self.members[at].replica.is_none() {
            return Ok(());
        }
        let Some((change, newcomer)) = self.request(change) else { return Ok(()) };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        if let Some(newcomer) = newcomer {
            self.members[newcomer].asked_for = true;
            self.newcomers.insert((at, ticket), newcomer);
        }
        let chosen = |bits: u8| {
            let others = (0..self.members.len()).filter(|other| *other != at && bits >> (other % 8) & 1 == 1);
            others.map(id).collect::<Vec<MemberId>>()
        };
        let peers = Peers { connected: chosen(connected), healthy: chosen(connected & healthy) };
        self.laws.asked(id(at), ticket, Request::Change(change.clone()), self.change_ticks());
        self.input(at, Input::Change { ticket, trace: TraceId(0), change, peers })
    }

    /// The request, and the number of the newcomer if it is about one. `None` if there are enough already.
    fn request(&mut self, change: Change) -> Option<(ChangeRequest, Option<usize>)> {
        let member = |number: u8| id(self.member(number));
        let change = match change {
            // One that is a learner, for most.
            Change::Promote { who } => {
                let learner = self.laws.configuration().learners.first().filter(|_| who % 4 > 0);
                ChangeRequest::Promote(learner.copied().unwrap_or(member(who)))
            }
            Change::Remove { who } => ChangeRequest::Remove(member(who)),
            Change::Update { who, url } => {
                ChangeRequest::UpdatePeers(member(who), vec![format!("http://m{}:2380", url % 8 + 1)])
            }
            Change::AddVoter | Change::AddLearner => {
                let newcomer = self.newcomer()?;
                let is_learner = change == Change::AddLearner;
                let peer_urls = vec![format!("http://n{}:2380", newcomer + 1)];
                return Some((
                    ChangeRequest::Add(Founder { is_learner, peer_urls, ..founder(newcomer) }),
                    Some(newcomer),
                ));
            }
        };
        Some((change, None))
    }

    /// One that nobody knows yet, and never will if it is not asked for again.
    fn newcomer(&mut self) -> Option<usize> {
        let unknown = self.members.iter().position(|member| !member.invited && !member.asked_for);
        if unknown.is_none() && self.members.len() < MEMBERS_MAX {
            self.add_member(Recovered::default());
            return Some(self.members.len() - 1);
        }
        unknown
    }

    pub fn transfer(&mut self, at: usize, to: usize) -> Verdict {
        if self.members[at].replica.is_none() {
            return Ok(());
        }
        self.tickets += 1;
        let (ticket, to) = (Ticket(self.tickets), id(to));
        self.laws.asked(id(at), ticket, Request::Transfer(to), self.request_ticks());
        self.input(at, Input::Transfer { ticket, to })
    }

    /// How long a change may wait, in ticks.
    pub fn change_ticks(&self) -> u64 {
        limits::CHANGE_WAIT_MS / u64::from(self.setup.heartbeat_ms)
    }
}
