//! Who has a say, in raft's hands: configuration entries as they are applied, and who is fit to lead.
use raft::{
    ProgressState,
    eraftpb::{self, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, MessageType},
};

use super::Consensus;
use crate::{
    event::{NodeEvent, Role},
    machine::membership::{Change, Configuration, Member},
    types::{Index, MemberId},
};

impl Consensus {
    /// As leader: up to where another member's log is known to agree, in percent of this one's; of a stranger `None`.
    pub fn caught_up_percent(&self, member: MemberId) -> Option<u64> {
        let matched = |id| Some(self.raft.raft.prs().get(id)?.matched);
        let own = matched(self.raft.raft.id)?;
        Some(matched(member.0)? * 100 / own.max(1))
    }

    /// As leader: the voter that is best placed to lead next: heard of lately, and with the most complete log.
    pub fn heir(&self) -> Option<MemberId> {
        let raft = &self.raft.raft;
        let voters = raft.prs().conf().voters();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id && voters.contains(**id));
        // Of equals the lowest id, so that the order of a hash map decides nothing.
        let fitness = |(id, progress): &(&u64, &raft::Progress)| {
            let fed = progress.recent_active && progress.state != ProgressState::Snapshot;
            (fed, progress.matched, std::cmp::Reverse(**id))
        };
        others.max_by_key(fitness).map(|(id, _)| MemberId(*id))
    }

    /// As leader: hands leadership over, which may fail. Proposals wait meanwhile.
    pub fn transfer(&mut self, to: MemberId) {
        self.notes.push(NodeEvent::HandingOver { to });
        self.raft.transfer_leader(to.0);
    }

    /// Tells raft of a configuration entry that was applied, valid or not (`None`: it changes nothing).
    pub fn change_applied(&mut self, index: Index, change: Option<&Change>) {
        if change == Some(&Change::Remove(MemberId(self.raft.raft.id))) {
            // Who follows was told by its leader.
            let told = self.role() != Role::Leader && index > self.found;
            self.untold = (!told).then_some(index);
        }
        let single = |kind, id: MemberId| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id.0;
            single
        };
        let change = match change {
            Some(Change::Add(Member { id, is_learner: true, .. })) => single(ConfChangeType::AddLearnerNode, *id),
            Some(Change::Add(member)) => single(ConfChangeType::AddNode, member.id),
            Some(Change::Promote(id)) => single(ConfChangeType::AddNode, *id),
            Some(Change::Remove(id)) => single(ConfChangeType::RemoveNode, *id),
            // Nobody, which raft-rs takes for no change.
            Some(Change::UpdatePeers(..)) | None => single(ConfChangeType::AddNode, MemberId(0)),
        };
        let mut changes = ConfChangeV2::default();
        changes.mut_changes().push(change);
        let state: ConfState = self.raft.apply_conf_change(&changes).expect("a single change of a valid configuration");
        // In the order of ids: it goes out with snapshots, and raft-rs's sets have none.
        self.raft.mut_store().conf_state = conf_state(&configuration(&state));
        self.moved();
        self.step_down_if_removed();
    }

    /// A later leader that knows this member's removal to be committed has it on its disk.
    pub(super) fn heard_of_removal(&mut self, message: &eraftpb::Message) {
        let leads = matches!(message.msg_type, MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if leads && message.term >= self.raft.raft.term {
            self.untold.take_if(|index| message.commit >= index.0);
        }
    }

    /// A leader that removed itself would go on, count itself and, in raft-rs, stop at the next entry that becomes
    /// durable. What it committed is on its way to the others; they elect another in their own time.
    fn step_down_if_removed(&mut self) {
        if self.role() == Role::Leader && !self.is_voter() {
            self.lead_no_more();
        }
    }
}

pub(super) fn conf_state(configuration: &Configuration) -> ConfState {
    let ids = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect();
    let mut state = ConfState::default();
    (state.voters, state.learners) = (ids(&configuration.voters), ids(&configuration.learners));
    state
}

pub(super) fn configuration(state: &ConfState) -> Configuration {
    let ids = |ids: &[u64]| {
        let mut ids: Vec<_> = ids.iter().map(|id| MemberId(*id)).collect();
        ids.sort();
        ids
    };
    Configuration { voters: ids(&state.voters), learners: ids(&state.learners) }
}
