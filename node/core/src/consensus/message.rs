//! Messages between members: raft's, in bytes that etcd's peers understand.
use protobuf::Message as _;
use raft::eraftpb::{self, MessageType};

use super::members;
use crate::{
    machine::membership::Configuration,
    types::{Index, MemberId, Term},
};

/// A raft message. Opaque to the shell, which carries its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(pub(crate) eraftpb::Message);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no raft message: {0}")]
pub struct MessageError(String);

impl Message {
    pub fn to(&self) -> MemberId {
        MemberId(self.0.to)
    }

    pub fn from(&self) -> MemberId {
        MemberId(self.0.from)
    }

    pub fn term(&self) -> Term {
        Term(self.0.term)
    }

    pub fn index(&self) -> Index {
        Index(self.0.index)
    }

    /// Up to where the state stands in for the log, if this is a snapshot.
    pub fn snapshot_position(&self) -> Option<(Index, Term)> {
        let metadata = self.0.get_snapshot().get_metadata();
        let is_snapshot = self.0.msg_type == MessageType::MsgSnapshot && metadata.index > 0;
        is_snapshot.then_some((Index(metadata.index), Term(metadata.term)))
    }

    /// What etcd wants in the place of the state, which goes another way: its old store.
    pub fn set_snapshot_data(&mut self, data: Vec<u8>) {
        self.0.mut_snapshot().data = data.into();
    }

    /// Whether this is a snapshot of just this position, with just these members.
    pub fn is_snapshot_of(&self, index: Index, term: Term, configuration: &Configuration) -> bool {
        let state = self.0.get_snapshot().get_metadata().get_conf_state();
        let is_joint = !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave;
        self.snapshot_position() == Some((index, term)) && !is_joint && members::configuration(state) == *configuration
    }

    /// Of a forwarded proposal, leaves out the other entries.
    pub fn retain_proposals(&mut self, keep: impl Fn(&eraftpb::Entry) -> bool) {
        if self.0.msg_type == MessageType::MsgPropose {
            let mut entries = self.0.take_entries().into_vec();
            entries.retain(keep);
            self.0.set_entries(entries.into());
        }
    }

    /// etcd's name of the message's type.
    pub fn kind(&self) -> &'static str {
        match self.0.msg_type {
            MessageType::MsgHup => "hup",
            MessageType::MsgBeat => "beat",
            MessageType::MsgPropose => "propose",
            MessageType::MsgAppend => "append",
            MessageType::MsgAppendResponse => "append_response",
            MessageType::MsgRequestVote => "vote",
            MessageType::MsgRequestVoteResponse => "vote_response",
            MessageType::MsgSnapshot => "snapshot",
            MessageType::MsgHeartbeat => "heartbeat",
            MessageType::MsgHeartbeatResponse => "heartbeat_response",
            MessageType::MsgUnreachable => "unreachable",
            MessageType::MsgSnapStatus => "snapshot_status",
            MessageType::MsgCheckQuorum => "check_quorum",
            MessageType::MsgTransferLeader => "transfer_leader",
            MessageType::MsgTimeoutNow => "timeout_now",
            MessageType::MsgReadIndex => "read_index",
            MessageType::MsgReadIndexResp => "read_index_response",
            MessageType::MsgRequestPreVote => "pre_vote",
            MessageType::MsgRequestPreVoteResponse => "pre_vote_response",
        }
    }

    /// Appends the message's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.0.write_to_vec(out).expect("a Vec grows, and every field is set");
    }

    pub fn encoded_len(&self) -> usize {
        self.0.compute_size() as usize
    }

    /// Copies what it needs: the buffer is not kept alive.
    pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
        let mut message = eraftpb::Message::default();
        message.merge_from_bytes(bytes).map_err(|error| MessageError(error.to_string()))?;
        Ok(Message(message))
    }

    /// What a stream sends when it has nothing to say: a heartbeat from nobody to nobody. Swallowed by the receiver.
    pub fn keep_alive() -> Message {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgHeartbeat);
        Message(message)
    }

    pub fn is_keep_alive(&self) -> bool {
        self.0.from == 0 && self.0.to == 0 && self.0.msg_type == MessageType::MsgHeartbeat
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

    use super::*;
    use crate::proto::raftpb;

    #[test]
    fn etcd_reads_what_we_send() {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgReadIndex);
        (message.to, message.from, message.term, message.commit) = (1, 2, 3, 4);
        let entry = eraftpb::Entry { data: Bytes::from_static(b"context"), ..Default::default() };
        message.mut_entries().push(entry);
        let (message, mut bytes) = (Message(message), Vec::new());
        message.encode(&mut bytes);
        assert_eq!(bytes.len(), message.encoded_len());
        let theirs = raftpb::Message::decode(&bytes[..]).unwrap();
        assert_eq!(theirs.r#type(), raftpb::MessageType::MsgReadIndex);
        assert_eq!((theirs.to(), theirs.from(), theirs.term(), theirs.commit()), (1, 2, 3, 4));
        assert_eq!(theirs.entries[0].data(), b"context");
        assert_eq!(Message::decode(&bytes), Ok(message));
        assert!(Message::decode(b"\xff\xff").is_err());
    }

    #[test]
    fn a_keep_alive_of_etcd_is_one_of_ours() {
        // All fields written, zero or not, as etcd 3.6 does.
        let bytes = [8, 8, 0x10, 0, 0x18, 0, 0x20, 0, 0x28, 0, 0x30, 0, 0x40, 0, 0x50, 0, 0x58, 0, 0x68, 0];
        assert!(Message::decode(&bytes).unwrap().is_keep_alive());
    }
}
