//! Appends of one turn, made into as few messages as fit.
//!
//! raft-rs can do this itself (`batch_append`), but wrongly: it adds entries to an empty append whatever that one's
//! index, so that a follower acknowledges entries which it does not have; and it knows no bound, so that a follower
//! far behind is sent everything at once, in a message that no stream takes.
use raft::eraftpb::{Message, MessageType};

use super::log::entry_bytes;
use crate::limits::APPEND_BYTES_MAX;

/// Joins each append to the one before it to the same member, if it continues that one.
pub fn merge(messages: Vec<Message>) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::with_capacity(messages.len());
    for mut message in messages {
        let alike = |before: &&mut Message| before.to == message.to && before.msg_type == MessageType::MsgAppend;
        match merged.iter_mut().rev().find(alike) {
            Some(before) if message.msg_type == MessageType::MsgAppend && continues(before, &message) => {
                before.commit = message.commit.max(before.commit);
                before.mut_entries().extend(message.take_entries());
            }
            _ => merged.push(message),
        }
    }
    merged
}

fn continues(before: &Message, message: &Message) -> bool {
    let bytes = |message: &Message| message.entries.iter().map(entry_bytes).sum::<u64>();
    message.term == before.term
        && message.index == before.index + before.entries.len() as u64
        && (message.entries.is_empty() || bytes(before) + bytes(message) <= APPEND_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;

    fn append(to: u64, index: u64, commit: u64, sizes: &[usize]) -> Message {
        let mut message = Message { to, index, commit, term: 3, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        for (size, index) in sizes.iter().zip(index + 1..) {
            message.mut_entries().push(Entry { index, term: 3, data: vec![0; *size].into(), ..Entry::default() });
        }
        message
    }

    #[test]
    fn appends_merge_where_they_continue_each_other_and_fit() {
        #[track_caller]
        fn check(messages: &[Message], expected: &[Message]) {
            assert_eq!(merge(messages.to_vec()), expected);
        }
        let heartbeat = Message { to: 1, ..Message::default() };
        check(&[append(1, 4, 3, &[1]), append(1, 5, 4, &[2, 3])], &[append(1, 4, 4, &[1, 2, 3])]);
        check(&[append(1, 4, 3, &[1]), append(1, 5, 4, &[])], &[append(1, 4, 4, &[1])]);
        check(
            &[append(1, 4, 3, &[]), append(2, 2, 3, &[]), heartbeat.clone(), append(1, 4, 4, &[1])],
            &[append(1, 4, 4, &[1]), append(2, 2, 3, &[]), heartbeat],
        );
        // An empty append, then older entries again: the follower was found unreachable in between.
        let again = [append(1, 9, 7, &[]), append(1, 7, 7, &[1, 2, 3])];
        check(&again, &again);
        let large = [append(1, 4, 3, &[1 << 20]), append(1, 5, 3, &[1])];
        check(&large, &large);
    }
}
