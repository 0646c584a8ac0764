//! Proposals on their way into the log: those that raft-rs cannot take at once wait here.
//!
//! raft-rs drops what is proposed while leadership is handed over, and it empties a configuration change while another
//! one is not applied: whoever asked would wait in vain. And a leader that is asked to remove itself hands leadership
//! over first, if it can: a member that goes on is better placed to see the change through.
use std::mem::take;

use raft::eraftpb::{self, Entry, EntryType, MessageType};

use super::{Consensus, limits};
use crate::{event::Role, proto::raftpb, types::MemberId};

/// What to do with a proposal.
enum Fate {
    Take,
    Wait,
    /// Wait until leadership went over to this member.
    HandOver(MemberId),
}

impl Consensus {
    /// Whether [`Consensus::propose`] would take entries now: if not, they wait.
    pub fn takes_proposals(&self) -> bool {
        let raft = &self.raft.raft;
        raft.leader_id != 0
            && raft.lead_transferee.is_none()
            && (raft.uncommitted_size() as u64) < limits::UNCOMMITTED_BYTES_MAX
    }

    /// Appends entries, or forwards them to the leader, where they may get lost.
    pub fn propose(&mut self, entries: Vec<Entry>) {
        assert!(self.takes_proposals());
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raft.raft.id;
        message.entries = entries.into();
        if self.role() == Role::Leader {
            self.defer(message);
            self.take_deferred();
        } else {
            self.pass_on(message);
        }
    }

    /// Puts a proposal into the queue; configuration changes each by itself, for they may have to wait. What there is
    /// no room for is lost, as on the way here.
    pub(super) fn defer(&mut self, mut message: eraftpb::Message) {
        let mut part = eraftpb::Message { entries: Vec::new().into(), ..message.clone() };
        let mut parts = Vec::new();
        for entry in message.take_entries() {
            let alone = entry.entry_type == EntryType::EntryConfChange;
            if alone && !part.entries.is_empty() {
                parts.push(part.clone());
                part.mut_entries().clear();
            }
            part.mut_entries().push(entry);
            if alone {
                parts.push(part.clone());
                part.mut_entries().clear();
            }
        }
        if !part.entries.is_empty() {
            parts.push(part);
        }
        let room = limits::DEFERRED_MAX.saturating_sub(self.deferred.len());
        self.deferred.extend(parts.into_iter().take(room));
    }

    /// Proposes what can be proposed by now. A change that must wait holds up nothing but other changes.
    pub(super) fn take_deferred(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        for message in take(&mut self.deferred) {
            if self.role() != Role::Leader {
                self.pass_on(message);
                continue;
            }
            match self.fate(&message) {
                Fate::Take => self.pass_on(message),
                Fate::Wait => self.deferred.push_back(message),
                Fate::HandOver(heir) => {
                    self.transfer(heir);
                    self.handed_over_for = Some(self.raft.raft.term);
                    self.deferred.push_back(message);
                }
            }
        }
    }

    fn fate(&self, message: &eraftpb::Message) -> Fate {
        let raft = &self.raft.raft;
        if raft.lead_transferee.is_some() {
            return Fate::Wait;
        }
        let [entry] = message.get_entries() else { return Fate::Take };
        if entry.entry_type != EntryType::EntryConfChange {
            return Fate::Take;
        }
        if raft.has_pending_conf() {
            return Fate::Wait;
        }
        match self.heir() {
            // One try a term: if it fails, the change goes its way without.
            Some(heir) if removes(entry) == Some(raft.id) && self.handed_over_for != Some(raft.term) => {
                Fate::HandOver(heir)
            }
            _ => Fate::Take,
        }
    }

    /// To raft-rs, which appends as leader and forwards as follower.
    fn pass_on(&mut self, message: eraftpb::Message) {
        // What it drops (nobody leads; the leader is no member) is to the caller as if it had been lost on the way.
        let _ = self.raft.raft.step(message);
    }
}

/// Whom a configuration entry removes.
fn removes(entry: &Entry) -> Option<u64> {
    let change = <raftpb::ConfChange as prost::Message>::decode(entry.data.clone()).ok()?;
    (change.r#type() == raftpb::ConfChangeType::ConfChangeRemoveNode).then(|| change.node_id())
}
