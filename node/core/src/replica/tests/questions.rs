//! Followers, also ones of another make, ask a leader from where on they may read.
use raft::eraftpb::{Entry, Message as Raw, MessageType};

use super::*;

fn question(from: u64, to: u64, context: &[u8]) -> Raw {
    let mut question = Raw { from, to, ..Raw::default() };
    question.set_msg_type(MessageType::MsgReadIndex);
    question.entries = vec![Entry { data: context.to_vec().into(), ..Entry::default() }].into();
    question
}

/// Whom a leader answered, and what to: each question comes back with its answer.
fn answered(leader: &mut Hands) -> Vec<(u64, Vec<u8>)> {
    let answers = leader.sent.extract_if(.., |message| message.msg_type == MessageType::MsgReadIndexResp);
    answers.map(|answer| (answer.to, answer.entries[0].data.to_vec())).collect()
}

/// One follower hears the leader's heartbeats, and it hears the answers.
fn confirm(members: &mut [Hands]) {
    let is_heartbeat = |message: &mut Raw| message.msg_type == MessageType::MsgHeartbeat && message.to == 2;
    let heartbeats: Vec<_> = members[0].sent.extract_if(.., is_heartbeat).collect();
    members[1].hear(heartbeats);
    let answers = members[1].sent_to(1);
    members[0].hear(answers);
}

/// etcd's members take no other answer for theirs, and would ask for ever.
#[test]
fn who_asks_gets_its_own_words_back() {
    let mut members = cluster(3);
    elect(&mut members, 0);
    let longest = [7; limits::READ_CONTEXT_BYTES_MAX];
    members[0].hear([question(2, 1, b"8 bytes!"), question(3, 1, b""), question(2, 1, &longest)]);
    assert_eq!(answered(&mut members[0]), [], "nobody confirmed it yet");
    confirm(&mut members);
    let expected = [(2, b"8 bytes!".to_vec()), (3, Vec::new()), (2, longest.to_vec())];
    assert_eq!(answered(&mut members[0]), expected);
    // The same words are another question.
    members[0].hear([question(2, 1, b"8 bytes!")]);
    assert_eq!(answered(&mut members[0]), []);
    confirm(&mut members);
    assert_eq!(answered(&mut members[0]), expected[..1]);
}

#[test]
fn a_sole_voter_answers_at_once() {
    let mut members = cluster(1);
    elect(&mut members, 0);
    members[0].hear([question(2, 1, b"learner"), question(2, 1, b"")]);
    assert_eq!(answered(&mut members[0]), [(2, b"learner".to_vec()), (2, Vec::new())]);
}

/// The leader would repeat it to everybody.
#[test]
fn a_question_of_many_words_is_not_heard() {
    let mut members = cluster(3);
    elect(&mut members, 0);
    members[0].sent.clear();
    members[0].hear([question(2, 1, &[7; limits::READ_CONTEXT_BYTES_MAX + 1])]);
    assert!(members[0].sent.is_empty(), "{:?}", members[0].sent);
}
