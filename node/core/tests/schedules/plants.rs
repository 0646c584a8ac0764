//! Bugs put in on purpose, around a replica: a law must notice each.
use bytes::Bytes;
use detcd_core::{
    machine::command::{Command, Put},
    proto::raftpb::{self, ConfChangeType},
    replica::{Persist, Recovered},
    types::MemberId,
};
use prost::Message as _;
use raft::eraftpb::EntryType;

use crate::laws::Laws;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Every batch is reported durable when it is handed over.
    PersistedEarly,
    /// Those with which a state is taken in are.
    InstalledEarly,
    /// Votes do not reach the disk.
    VotesForgotten,
    /// Commit indexes do not.
    CommitsForgotten,
    /// A log that conflicts with a state that was taken in stays on the disk.
    ConflictsKept,
    /// Reads are served from whatever state the member is in.
    ReadsUnconfirmed,
    /// One member reads an entry back from its disk with another value.
    OtherValueApplied,
    /// One member reads removals back from its disk as nothing.
    RemovalsForgotten,
    /// What a learner acknowledges counts as a voter's word.
    LearnersCounted,
    /// Answers come twice.
    AnsweredTwice,
    /// Refused reads are never answered.
    RefusalsSwallowed,
    /// Refused changes are never answered.
    ChangesSwallowed,
    /// Nobody learns how a hand-over went.
    TransfersSwallowed,
    /// The leader does not learn that a state did not arrive.
    LossesSwallowed,
    /// Now and then a watch does not get what it is owed.
    EventsSwallowed,
}

impl Plant {
    /// Whether a batch is reported when it is handed over instead of when it is durable.
    pub fn reports_early(self, persist: &Persist) -> bool {
        match self {
            Plant::PersistedEarly => persist.sync,
            Plant::InstalledEarly => persist.snapshot.is_some(),
            _ => false,
        }
    }

    pub fn spoil_batch(self, persist: &mut Persist, commit: detcd_core::types::Index) {
        let Some(state) = &mut persist.hard_state else { return };
        match self {
            Plant::VotesForgotten => state.vote = MemberId(0),
            Plant::CommitsForgotten if persist.snapshot.is_none() => state.commit = commit,
            _ => {}
        }
    }

    /// What the first member reads from its disk.
    pub fn spoil_files(self, recovered: &mut Recovered) {
        match self {
            Plant::OtherValueApplied => change_a_value(recovered),
            Plant::RemovalsForgotten => forget_removals(recovered),
            _ => {}
        }
    }

    /// What goes to `to` besides the message.
    pub fn forge(self, bytes: &[u8], to: MemberId, laws: &Laws) -> Option<Vec<u8>> {
        let mut message = raftpb::Message::decode(bytes).expect("as it was encoded");
        let configuration = laws.configuration();
        let is_learner = configuration.learners.contains(&MemberId(message.from()));
        if self != Plant::LearnersCounted || message.r#type() != raftpb::MessageType::MsgAppResp || !is_learner {
            return None;
        }
        let other = configuration.voters.iter().find(|voter| **voter != to)?;
        message.from = Some(other.0);
        Some(message.encode_to_vec())
    }
}

fn change_a_value(recovered: &mut Recovered) {
    for entry in &mut recovered.entries {
        let Ok((request, Command::Put(put))) = Command::decode(entry.data.clone()) else { continue };
        entry.data = Command::Put(Put { value: Bytes::from_static(b"other"), ..put }).encode(request).into();
        return;
    }
}

fn forget_removals(recovered: &mut Recovered) {
    for entry in recovered.entries.iter_mut().filter(|entry| entry.entry_type == EntryType::EntryConfChange) {
        let change = raftpb::ConfChange::decode(entry.data.clone()).expect("a change");
        if change.r#type() == ConfChangeType::ConfChangeRemoveNode {
            entry.set_entry_type(EntryType::EntryNormal);
            entry.data = Bytes::new();
        }
    }
}
