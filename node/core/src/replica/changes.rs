//! Changes of the membership: what may be proposed, how it stands in the log, and what becomes of it.
//!
//! The checks before a proposal protect the quorum, as etcd's do: they look at who has started and who is connected,
//! which only the member that is asked knows. Whether a change makes sense (the id is known, the URL is free) is
//! decided when it is applied, by the machine, on all members alike.
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use super::{
    Output, Recovered, Replica,
    io::{Answer, ChangeRequest, Peers},
};
use crate::{
    error::Refusal,
    event::{NodeEvent, Role},
    format::wal::HardState,
    limits,
    machine::{
        Response,
        membership::{Change, ChangeError, Configuration, Member},
    },
    proto::raftpb::{self, ConfChangeType},
    types::{Index, MemberId, RequestId, Revision, Term, Ticket, TraceId},
};

impl Replica {
    pub(super) fn change(
        &mut self,
        ticket: Ticket,
        trace: TraceId,
        change: ChangeRequest,
        peers: &Peers,
        out: &mut Vec<Output>,
    ) {
        let request = self.proposals.next_id();
        out.push(Output::Note(NodeEvent::Proposed { trace, request }));
        if let Err(refusal) = self.check_change(&change, peers) {
            self.refuse(ticket, request, refusal, out);
        } else if self.proposals.is_full() {
            self.refuse(ticket, request, Refusal::TooManyRequests, out);
        } else {
            let deadline = self.ticks + limits::CHANGE_WAIT_MS / self.config.heartbeat_ms;
            self.proposals.wait_long(request, ticket, self.ticks, deadline);
            self.proposals.enqueue(request, entry_of(change, request));
        }
    }

    fn check_change(&self, change: &ChangeRequest, peers: &Peers) -> Result<(), Refusal> {
        let membership = &self.machine.membership;
        match change {
            ChangeRequest::Add(member) => {
                if !member.is_learner && !membership.could_gain_voter() {
                    return Err(Refusal::NotEnoughStarted);
                }
                // The newcomer counts as one that is down.
                let quorum = membership.voters().count().div_ceil(2) + 1;
                let alone = membership.voters().count() == 1;
                if alone || self.healthy_voters(peers) >= quorum { Ok(()) } else { Err(Refusal::UnhealthyCluster) }
            }
            ChangeRequest::Remove(id) => self.check_removal(*id, peers),
            ChangeRequest::Promote(id) => self.check_promotion(*id),
            ChangeRequest::UpdatePeers(..) => Ok(()),
        }
    }

    fn check_removal(&self, id: MemberId, peers: &Peers) -> Result<(), Refusal> {
        let membership = &self.machine.membership;
        if membership.get(id).is_some_and(|member| member.is_learner) {
            return Ok(());
        }
        if !membership.could_lose_voter(id) {
            return Err(Refusal::NotEnoughStarted);
        }
        // One that is down is no part of the quorum at work.
        if id != self.config.id && !peers.connected.contains(&id) {
            return Ok(());
        }
        let rest = membership.voters().count().saturating_sub(1);
        if self.healthy_voters(peers) > rest / 2 + 1 { Ok(()) } else { Err(Refusal::UnhealthyCluster) }
    }

    fn check_promotion(&self, id: MemberId) -> Result<(), Refusal> {
        if self.consensus.role() != Role::Leader {
            return Err(Refusal::NotLeader);
        }
        match self.consensus.caught_up_percent(id) {
            None => Err(Refusal::MemberNotFound),
            Some(percent) if percent < limits::CAUGHT_UP_PERCENT => Err(Refusal::LearnerNotReady),
            Some(_) if !self.machine.membership.could_promote() => Err(Refusal::NotEnoughStarted),
            Some(_) => Ok(()),
        }
    }

    /// Voters that have been connected for long enough; this member is one of them.
    fn healthy_voters(&self, peers: &Peers) -> usize {
        let healthy = |member: &&Member| member.id == self.config.id || peers.healthy.contains(&member.id);
        self.machine.membership.voters().filter(healthy).count()
    }

    /// Answers whoever asked for a change that is made.
    pub(super) fn answer_decided(&mut self, out: &mut Vec<Output>) {
        if !self.consensus.changes_are_durable() || self.consensus.is_untold() {
            return;
        }
        for Decided { request, index, result, revision } in std::mem::take(&mut self.decided) {
            if let Some(ticket) = self.proposals.done(request) {
                out.push(Output::Note(NodeEvent::Acknowledged { request, index }));
                let answer = Answer { result, revision, term: self.consensus.term() };
                out.push(Output::Respond { ticket, answer });
            }
        }
    }

    pub(super) fn apply_change(&mut self, entry: Entry, out: &mut Vec<Output>) -> Result<(), String> {
        let (index, term) = (Index(entry.index), Term(entry.term));
        let (request, change) = parse_change(&entry.data)?;
        // One that the machine refuses changes nothing, here as in raft, on every member alike.
        let result = self.machine.apply_change(index, term, change.clone());
        self.consensus.change_applied(index, result.is_ok().then_some(&change));
        self.note_applied(index, term, request, out);
        let Configuration { voters, learners } = self.machine.membership.configuration();
        let valid = result.is_ok();
        out.push(Output::Note(NodeEvent::ConfigurationApplied { index, voters, learners, valid }));
        let result = result.map(|()| Response::Members(self.machine.membership.clone())).map_err(Refusal::from);
        self.decided.push(Decided { request, index, result, revision: self.machine.store.revision() });
        if self.machine.membership.is_removed(self.config.id) {
            self.leaving.removed(self.ticks);
        }
        Ok(())
    }
}

/// A change that was applied. Whoever asked learns of it once it is durable that it is committed, by one who goes on as
/// a member: they may then take a removed member's disk away, and nobody may need it again.
pub(super) struct Decided {
    request: RequestId,
    index: Index,
    result: Result<Response, Refusal>,
    /// The store's, when it was applied.
    revision: Revision,
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Refusal {
        match error {
            ChangeError::Removed(_) | ChangeError::Unknown(_) => Refusal::MemberNotFound,
            ChangeError::Exists(_) => Refusal::MemberExists,
            ChangeError::UrlInUse(_) => Refusal::PeerUrlExists,
            ChangeError::NotLearner(_) => Refusal::NotLearner,
            ChangeError::TooManyLearners => Refusal::TooManyLearners,
            ChangeError::LastVoter => Refusal::NotEnoughStarted,
        }
    }
}

/// What stands in the JSON that comes with a change: a member, and whether it is a promotion.
#[derive(serde::Serialize, serde::Deserialize)]
struct Context {
    #[serde(flatten)]
    member: Member,
    #[serde(default, rename = "isPromote", skip_serializing_if = "std::ops::Not::not")]
    promote: bool,
}

/// The change as etcd writes it: a `ConfChange` whose context is the member in JSON.
fn entry_of(change: ChangeRequest, request: RequestId) -> Entry {
    let nothing_but =
        |id, peer_urls| Member { id, peer_urls, is_learner: false, name: String::new(), client_urls: Vec::new() };
    let json = |member, promote| serde_json::to_vec(&Context { member, promote }).expect("a member is plain data");
    let (kind, id, context) = match change {
        ChangeRequest::Add(member) => {
            let learner = member.is_learner;
            let kind =
                if learner { ConfChangeType::ConfChangeAddLearnerNode } else { ConfChangeType::ConfChangeAddNode };
            (kind, member.id, Some(json(member, false)))
        }
        ChangeRequest::Promote(id) => {
            (ConfChangeType::ConfChangeAddNode, id, Some(json(nothing_but(id, Vec::new()), true)))
        }
        ChangeRequest::UpdatePeers(id, urls) => {
            (ConfChangeType::ConfChangeUpdateNode, id, Some(json(nothing_but(id, urls), false)))
        }
        ChangeRequest::Remove(id) => (ConfChangeType::ConfChangeRemoveNode, id, None),
    };
    let change = raftpb::ConfChange {
        id: Some(request.0),
        r#type: Some(kind as i32),
        node_id: Some(id.0),
        context: context.map(Bytes::from),
    };
    let mut entry = Entry { data: prost::Message::encode_to_vec(&change).into(), ..Entry::default() };
    entry.set_entry_type(EntryType::EntryConfChange);
    entry
}

pub(super) fn parse_change(data: &Bytes) -> Result<(RequestId, Change), String> {
    use ConfChangeType::*;
    // raft-rs's own type cannot tell an update from a learner's addition: their numbers clash.
    let change = <raftpb::ConfChange as prost::Message>::decode(data.clone());
    let change = change.map_err(|error| format!("no configuration change: {error}"))?;
    let (request, id) = (RequestId(change.id()), MemberId(change.node_id()));
    let kind = ConfChangeType::try_from(change.r#type.unwrap_or(0)).map_err(|error| error.to_string())?;
    if kind == ConfChangeRemoveNode {
        return Ok((request, Change::Remove(id)));
    }
    let Context { member, promote } =
        serde_json::from_slice(change.context()).map_err(|error| format!("no member: {error}"))?;
    if member.id != id {
        return Err(format!("a change of member {id} that describes member {}", member.id));
    }
    let change = match kind {
        ConfChangeAddNode if promote => Change::Promote(id),
        ConfChangeAddNode => Change::Add(member),
        ConfChangeAddLearnerNode => Change::Add(Member { is_learner: true, ..member }),
        ConfChangeUpdateNode => Change::UpdatePeers(id, member.peer_urls),
        ConfChangeRemoveNode => unreachable!("handled above"),
    };
    Ok((request, change))
}

/// The log with which a founding member begins: every founder's addition, committed in term 1, as etcd writes it.
pub fn founding_log(founders: &[Member]) -> Recovered {
    let mut founders: Vec<_> = founders.to_vec();
    founders.sort_by_key(|member| member.id);
    let entries = founders.into_iter().zip(1..).map(|(member, index)| {
        let entry = entry_of(ChangeRequest::Add(member), RequestId(0));
        Entry { term: 1, index, ..entry }
    });
    let entries: Vec<_> = entries.collect();
    let commit = Index(entries.len() as u64);
    let hard_state = HardState { term: Term(1), vote: MemberId(0), commit };
    Recovered { hard_state, entries, ..Recovered::default() }
}
