//! Linearizable reads: raft's ReadIndex, with contexts that no leader uses twice.
//!
//! A leader's quorum confirms with one context whatever the leader was asked before it. If a context that was answered
//! comes once more (a message that came twice; a member of etcd, which asks again in the same words), raft-rs takes it
//! for a new one, and what was acknowledged the first time would confirm reads that a leader, deposed meanwhile, was
//! asked for since (etcd #20418). So a leader puts a number of its own before each context, and takes it off the answer.
use std::mem::take;

use bytes::Buf;
use raft::eraftpb::{self, MessageType};

use super::Consensus;
use crate::{event::Role, limits};

const NUMBER_BYTES: usize = size_of::<u64>();

impl Consensus {
    /// Asks for an index from which a read that begins now is linearizable. The answer bears this id, which must never
    /// have been used. It may get lost.
    pub fn read_index(&mut self, id: u64) {
        let context = id.to_be_bytes();
        let context = if self.role() == Role::Leader { self.numbered(&context) } else { context.to_vec() };
        self.raft.read_index(context);
    }

    /// A follower asks for such an index.
    pub(super) fn asked_to_read(&mut self, message: eraftpb::Message) {
        if self.role() != Role::Leader {
            // raft-rs would pass it on in the sender's name, to which nobody listens. Who asked asks again.
        } else if self.leads_with_commit() {
            self.ask_quorum(message);
        } else if self.early_reads.len() < limits::APPENDS_IN_FLIGHT_MAX {
            self.early_reads.push(message);
        }
    }

    pub(super) fn answer_early_reads(&mut self) {
        if self.role() != Role::Leader {
            self.early_reads.clear(); // who asked asks again
        } else if self.leads_with_commit() {
            take(&mut self.early_reads).into_iter().for_each(|message| self.ask_quorum(message));
        }
    }

    fn ask_quorum(&mut self, mut message: eraftpb::Message) {
        let context = &mut message.entries[0].data; // sound messages have one
        *context = self.numbered(context).into();
        let _ = self.raft.step(message); // what raft-rs refuses is the network's noise
    }

    fn numbered(&mut self, context: &[u8]) -> Vec<u8> {
        self.questions += 1;
        [&self.questions.to_be_bytes(), context].concat()
    }
}

/// With which id it was asked for here, by this member as a follower or as the leader.
pub(super) fn parse_id(context: &[u8]) -> Option<u64> {
    context.last_chunk().copied().map(u64::from_be_bytes)
}

/// Whoever asked gets its own context back.
pub(super) fn take_number_off(message: &mut eraftpb::Message) {
    if message.msg_type == MessageType::MsgReadIndexResp {
        message.entries[0].data.advance(NUMBER_BYTES);
    }
}
