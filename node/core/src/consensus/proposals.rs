//! Proposals on their way into the log: those that raft-rs cannot take at once wait here.
//!
//! raft-rs drops what is proposed while leadership is handed over, and it empties a configuration change while another
//! one is not applied: whoever asked would wait in vain. And a leader that is asked to remove itself hands leadership
//! over first, if it can: a member that goes on is better placed to see the change through. What waits when leadership
//! is lost goes on to the next leader, if one is known soon.
//!
//! Changes do not pass through raft-rs's proposals: it would read their bytes by its own numbers, which are not etcd's,
//! and drop what it cannot read.
use std::mem::take;

use raft::eraftpb::{self, Entry, EntryType, MessageType};

use super::{Consensus, limits, log::entry_bytes};
use crate::{event::Role, proto::raftpb, types::MemberId};

/// What to do with a proposal.
enum Fate {
    Take,
    /// Another member leads.
    PassOn,
    Wait,
    /// Wait until leadership went over to this member.
    HandOver(MemberId),
}

impl Consensus {
    /// Whether [`Consensus::propose`] would take entries now: if not, they wait.
    pub fn takes_proposals(&self) -> bool {
        let raft = &self.raft.raft;
        raft.leader_id != 0 && raft.lead_transferee.is_none() && self.has_room()
    }

    /// Whether the entries that this leader proposed and did not commit yet leave room for more. Whoever follows has no
    /// such entries: raft-rs counts on from its last time as leader.
    fn has_room(&self) -> bool {
        self.role() != Role::Leader || (self.raft.raft.uncommitted_size() as u64) < limits::UNCOMMITTED_BYTES_MAX
    }

    /// Appends entries, or forwards them to the leader, where they may get lost.
    pub fn propose(&mut self, entries: Vec<Entry>) {
        assert!(self.takes_proposals());
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raft.raft.id;
        message.entries = entries.into();
        self.take(message);
    }

    /// Takes a proposal in, as far as it can be; configuration changes each by itself, for they may have to wait. What
    /// would wait and finds no room is lost, as on the way here.
    pub(super) fn take(&mut self, mut message: eraftpb::Message) {
        let entries = message.take_entries().into_vec();
        // Whatever came with it, a proposal has no term.
        let part = |entries: Vec<Entry>| eraftpb::Message { entries: entries.into(), term: 0, ..message.clone() };
        self.deferred.extend(split(entries).into_iter().map(part));
        self.take_deferred();
        let mut bytes = 0;
        let fitting = self.deferred.iter().take(limits::DEFERRED_MAX).take_while(|message| {
            bytes += message.entries.iter().map(entry_bytes).sum::<u64>();
            bytes <= limits::DEFERRED_BYTES_MAX
        });
        let fitting = fitting.count();
        self.deferred.truncate(fitting);
    }

    /// Proposes what can be proposed by now. A change that must wait holds up nothing but other changes.
    pub(super) fn take_deferred(&mut self) {
        for message in take(&mut self.deferred) {
            match self.fate(&message) {
                Fate::Take => self.append(message),
                Fate::PassOn => self.pass_on(message),
                Fate::Wait => self.deferred.push_back(message),
                Fate::HandOver(heir) => {
                    self.transfer(heir);
                    self.handed_over_for = Some(self.raft.raft.term);
                    self.deferred.push_back(message);
                }
            }
        }
    }

    /// A tick is over. Nobody is to be surprised by what they asked for long ago: it is lost if nobody leads.
    pub(super) fn forget_deferred(&mut self) {
        self.leaderless = if self.raft.raft.leader_id == 0 { self.leaderless + 1 } else { 0 };
        if self.leaderless > 2 * self.timer.election() {
            self.deferred.clear();
        }
    }

    fn fate(&self, message: &eraftpb::Message) -> Fate {
        let raft = &self.raft.raft;
        if self.role() != Role::Leader {
            return if raft.leader_id == 0 { Fate::Wait } else { Fate::PassOn };
        }
        if raft.lead_transferee.is_some() || !self.has_room() {
            return Fate::Wait;
        }
        if !is_change(message.get_entries()) {
            return Fate::Take;
        }
        if raft.has_pending_conf() {
            return Fate::Wait;
        }
        match self.heir() {
            // One try a term: if it fails, the change goes its way without.
            Some(heir)
                if removes(&message.get_entries()[0]) == Some(raft.id) && self.handed_over_for != Some(raft.term) =>
            {
                Fate::HandOver(heir)
            }
            _ => Fate::Take,
        }
    }

    fn append(&mut self, mut message: eraftpb::Message) {
        let raft = &mut self.raft.raft;
        let mut entries = message.take_entries().into_vec();
        if is_change(&entries) {
            raft.pending_conf_index = raft.raft_log.last_index() + 1;
        }
        assert!(raft.append_entry(&mut entries), "the bound is ours");
        raft.bcast_append();
    }

    /// To the leader, where it may get lost.
    fn pass_on(&mut self, mut message: eraftpb::Message) {
        // Whoever sent it here: members listen to who speaks for itself.
        message.from = self.raft.raft.id;
        self.raft.raft.step(message).expect("a follower that knows its leader passes proposals on");
    }
}

/// Into parts that a message to another member has room for, with every change by itself.
fn split(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let (mut parts, mut bytes): (Vec<Vec<Entry>>, u64) = (Vec::new(), 0);
    for entry in entries {
        bytes += entry_bytes(&entry);
        let is_change = |entry: &Entry| entry.entry_type == EntryType::EntryConfChange;
        match parts.last_mut() {
            Some(part) if bytes <= limits::APPEND_BYTES_MAX && !is_change(&entry) && !is_change(&part[0]) => {
                part.push(entry);
            }
            _ => {
                bytes = entry_bytes(&entry);
                parts.push(vec![entry]);
            }
        }
    }
    parts
}

/// A change comes by itself.
fn is_change(entries: &[Entry]) -> bool {
    matches!(entries, [entry] if entry.entry_type == EntryType::EntryConfChange)
}

/// Whom a configuration entry removes.
fn removes(entry: &Entry) -> Option<u64> {
    let change = <raftpb::ConfChange as prost::Message>::decode(entry.data.clone()).ok()?;
    (change.r#type() == raftpb::ConfChangeType::ConfChangeRemoveNode).then(|| change.node_id())
}
