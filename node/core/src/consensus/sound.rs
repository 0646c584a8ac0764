//! What of a peer's message may reach raft-rs: it takes its peers at their word, and stops the process at what no correct
//! member says. That would be this one's end for another one's fault, and at the next such message its end again.
use raft::{
    StateRole,
    eraftpb::{Entry, EntryType, Message, MessageType},
};

use super::Consensus;
use crate::limits;

/// How far a sender's term may be ahead: nobody misses so many elections, and no number may run over. A bound on the
/// term itself would be one that somebody's word can reach, and behind it nobody could be elected.
const TERM_LEAD_MAX: u64 = 1 << 32;

impl Consensus {
    /// Whether a correct member may have sent this.
    pub(super) fn is_sound(&self, message: &Message) -> bool {
        let raft = &self.raft.raft;
        let from_another = message.from != 0 && message.from != raft.id;
        from_another && has_sound_term(message, raft.term) && has_sound_entries(message) && self.fits(message)
    }

    fn fits(&self, message: &Message) -> bool {
        let raft = &self.raft.raft;
        match message.msg_type {
            MessageType::MsgAppend => is_sound_append(message),
            // A leader knows best what its log holds, and so what may be acknowledged. raft-rs's members may ask for
            // snapshots; etcd's do not, and here nobody does.
            MessageType::MsgAppendResponse if raft.state == StateRole::Leader => {
                let hint = if message.reject { message.reject_hint } else { 0 };
                message.index <= raft.raft_log.last_index() && hint <= message.index && message.request_snapshot == 0
            }
            // What a candidate asks is asked once its log is durable: before that nobody answers.
            MessageType::MsgRequestVoteResponse => {
                raft.state != StateRole::Candidate || raft.raft_log.persisted == raft.raft_log.last_index()
            }
            MessageType::MsgSnapshot => message.get_snapshot().get_metadata().term <= message.term,
            MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
                matches!(&*message.entries, [entry] if entry.data.len() <= limits::READ_CONTEXT_BYTES_MAX)
            }
            // Operators ask the leader itself.
            MessageType::MsgTransferLeader => false,
            _ => true,
        }
    }
}

/// raft-rs takes a message without a term for one of its own. Only requests that are passed on to a leader have none.
fn has_sound_term(message: &Message, own: u64) -> bool {
    match message.msg_type {
        MessageType::MsgReadIndex => message.term == 0,
        MessageType::MsgPropose => true,
        _ => (1..=own.saturating_add(TERM_LEAD_MAX)).contains(&message.term),
    }
}

/// etcd knows neither contexts nor joint changes in a log.
fn has_sound_entries(message: &Message) -> bool {
    message.entries.iter().all(|entry| {
        let plain = entry.context.is_empty() && !entry.sync_log;
        plain && entry.entry_type != EntryType::EntryConfChangeV2 && entry.data.len() <= limits::ENTRY_BYTES_MAX
    })
}

/// Whether the entries follow the position that the message names, one after the other, in terms that never go down.
/// Otherwise raft-rs would acknowledge entries that it was not sent. Of a position that it does not know it takes the
/// term for 0: then only the log's very beginning may have that term.
fn is_sound_append(message: &Message) -> bool {
    let mut term = message.log_term;
    let mut follows = |(entry, offset): (&Entry, u64)| {
        let ascends = entry.term >= term.max(1) && entry.term <= message.term;
        term = entry.term;
        ascends && Some(entry.index) == message.index.checked_add(offset)
    };
    (message.index == 0) == (message.log_term == 0)
        && message.log_term <= message.term
        && message.entries.iter().zip(1..).all(&mut follows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_is_a_piece_of_a_log() {
        #[track_caller]
        fn check(before: (u64, u64), entries: &[(u64, u64)], sound: bool) {
            let entry = |(index, term): &(u64, u64)| Entry { index: *index, term: *term, ..Entry::default() };
            let entries: Vec<_> = entries.iter().map(entry).collect();
            let (index, log_term) = before;
            let message = Message { index, log_term, term: 5, entries: entries.into(), ..Message::default() };
            assert_eq!(is_sound_append(&message), sound);
        }
        check((0, 0), &[], true);
        check((0, 0), &[(1, 1), (2, 1)], true);
        check((7, 3), &[(8, 3), (9, 5)], true);
        check((7, 3), &[(9, 3)], false); // a gap
        check((7, 3), &[(8, 3), (8, 3)], false);
        check((u64::MAX, 3), &[(0, 3)], false);
        check((7, 3), &[(8, 2)], false);
        check((7, 3), &[(8, 5), (9, 4)], false);
        check((7, 3), &[(8, 6)], false); // of a later term than who sends it
        check((7, 6), &[], false);
        check((7, 0), &[(8, 1)], false);
        check((0, 1), &[], false);
        check((0, 0), &[(1, 0)], false);
    }
}
