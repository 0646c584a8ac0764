//! Whatever a peer says, it ends no member but by a verdict of its own.
use proptest::{collection::vec, prelude::*, sample::select};
use raft::eraftpb::{Entry, EntryType, Message as Raw, MessageType};

use super::*;
use crate::proto::raftpb::{self, ConfChangeType};

/// A number by how far it is from one that makes sense.
#[derive(Debug, Clone, Copy)]
enum Number {
    Near(i64),
    Exactly(u64),
}

impl Number {
    fn of(self, sensible: u64) -> u64 {
        match self {
            Number::Near(by) => sensible.saturating_add_signed(by),
            Number::Exactly(number) => number,
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    let exactly = select(vec![0, 1, u64::MAX - 1, u64::MAX, 1 << 32, 1 << 63]);
    prop_oneof![4 => Just(Number::Near(0)), 3 => (-4i64..5).prop_map(Number::Near), 1 => exactly.prop_map(Number::Exactly)]
}

/// What a message says, its numbers by where the member that hears it is.
#[derive(Debug, Clone)]
struct Said {
    kind: MessageType,
    from: u64,
    term: Number,
    index: Number,
    log_term: Number,
    commit: Number,
    others: [Number; 4],
    entries: Vec<(Number, Number, Entry)>,
    reject: bool,
    context: Vec<u8>,
}

impl Said {
    fn to(&self, replica: &Replica) -> Raw {
        let (term, last) = (replica.consensus.term().0, replica.consensus.last().0);
        let committed = replica.consensus.committed().0;
        let [hint, commit_term, request_snapshot, priority] = self.others;
        let mut message = Raw { to: replica.config.id.0, from: self.from, reject: self.reject, ..Raw::default() };
        message.set_msg_type(self.kind);
        message.term = self.term.of(term);
        message.index = self.index.of(last);
        message.log_term = self.log_term.of(term);
        message.commit = self.commit.of(committed);
        message.commit_term = commit_term.of(term);
        message.reject_hint = hint.of(last);
        message.request_snapshot = request_snapshot.of(0);
        message.priority = priority.of(0) as i64;
        message.context = self.context.clone().into();
        for ((index, entry_term, entry), offset) in self.entries.iter().zip(1..) {
            let index = index.of(message.index.saturating_add(offset));
            message.mut_entries().push(Entry { index, term: entry_term.of(term), ..entry.clone() });
        }
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (self.index.of(committed), self.log_term.of(term));
        message
    }
}

fn change(kind: ConfChangeType, id: u64, context: &str) -> Entry {
    let (r#type, node_id) = (Some(kind as i32), Some(id));
    let context = Some(context.as_bytes().to_vec().into());
    let change = raftpb::ConfChange { id: Some(7), r#type, node_id, context };
    let mut entry = Entry { data: prost::Message::encode_to_vec(&change).into(), ..Entry::default() };
    entry.set_entry_type(EntryType::EntryConfChange);
    entry
}

fn plain(data: &[u8]) -> Entry {
    Entry { data: data.to_vec().into(), ..Entry::default() }
}

fn put_of(key: &'static [u8]) -> Put {
    let (key, value) = (key.into(), b"v"[..].into());
    Put { key, value, lease: LeaseId(0), previous: false, ignore_value: false, ignore_lease: false }
}

/// Entries that no member can apply.
fn inapplicable() -> Vec<Entry> {
    use crate::machine::command::{Op, Txn};
    let nested = |op| Txn { failure: vec![op], ..Txn::default() };
    let empty_key = Op::Txn(nested(Op::Put(put_of(b""))));
    let mut entries = vec![
        plain(b"\xff\xff"),
        plain(b"\x08\x01"), // a request with an id and nothing else
        plain(&Command::Put(put_of(b"")).encode(RequestId(1))),
        plain(&Command::Txn(nested(empty_key)).encode(RequestId(1))),
        change(ConfChangeType::ConfChangeAddNode, 9, "no JSON"),
        change(ConfChangeType::ConfChangeAddNode, 9, r#"{"id":8,"peerURLs":[]}"#),
    ];
    for kind in [EntryType::EntryConfChange, EntryType::EntryConfChangeV2] {
        let mut garbage = plain(b"\xff\xff");
        garbage.set_entry_type(kind);
        entries.push(garbage);
    }
    entries
}

fn entry() -> impl Strategy<Value = Entry> {
    let mut entries = inapplicable();
    entries.push(plain(b""));
    entries.push(plain(&Command::Put(put_of(b"k")).encode(RequestId(1))));
    entries.push(change(ConfChangeType::ConfChangeAddNode, 0, r#"{"id":0,"peerURLs":[]}"#));
    entries.push(change(ConfChangeType::ConfChangeAddLearnerNode, 4, r#"{"id":4,"peerURLs":["http://m4:1"]}"#));
    entries.extend((0..4).map(|id| change(ConfChangeType::ConfChangeRemoveNode, id, "")));
    entries.push(Entry { context: vec![1].into(), ..plain(b"") });
    select(entries)
}

fn said() -> impl Strategy<Value = Said> {
    use MessageType::*;
    let kinds = vec![
        MsgHup,
        MsgBeat,
        MsgPropose,
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgSnapshot,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgUnreachable,
        MsgSnapStatus,
        MsgCheckQuorum,
        MsgTransferLeader,
        MsgTimeoutNow,
        MsgReadIndex,
        MsgReadIndexResp,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ];
    let entries = vec((number(), number(), entry()), 0..4);
    let context = select(vec![vec![], vec![1; 8], b"CampaignTransfer".to_vec()]);
    let numbers = (number(), number(), number(), number(), [number(), number(), number(), number()]);
    (select(kinds), 0u64..5, numbers, entries, any::<bool>(), context).prop_map(
        |(kind, from, (term, index, log_term, commit, others), entries, reject, context)| Said {
            kind,
            from,
            term,
            index,
            log_term,
            commit,
            others,
            entries,
            reject,
            context,
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    /// All in one turn, and then the time.
    Hear(Vec<Said>, bool),
    /// So many ticks.
    Wait(usize),
    /// The others vote for it, if it stands for election.
    Win,
    Write(usize),
    Ask,
    Remove(u64),
    Transfer(u64),
    Unreachable(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (vec(said(), 1..4), any::<bool>()).prop_map(|(said, ticks)| Step::Hear(said, ticks)),
        2 => (1usize..30).prop_map(Step::Wait),
        3 => Just(Step::Win),
        3 => (1usize..4).prop_map(Step::Write),
        2 => Just(Step::Ask),
        1 => (1u64..4).prop_map(Step::Remove),
        1 => (1u64..4).prop_map(Step::Transfer),
        1 => (0u64..5).prop_map(Step::Unreachable),
    ]
}

impl Hands {
    fn take(&mut self, step: Step) {
        match step {
            Step::Hear(said, ticks) => {
                let messages: Vec<_> = said.iter().map(|said| Message(said.to(&self.replica))).collect();
                let now = Millis(self.now);
                let tick = ticks.then_some(Input::Tick { now });
                self.turn(messages.into_iter().map(Input::Message).chain(tick));
            }
            Step::Wait(ticks) => (0..ticks).for_each(|_| self.tick()),
            Step::Win => self.win(),
            Step::Write(count) => self.write(count),
            Step::Ask => self.turn([proposal(1, 10), Input::Read { ticket: Ticket(2) }]),
            Step::Remove(id) => self.turn([removal(3, id)]),
            Step::Transfer(to) => self.turn([Input::Transfer { ticket: Ticket(4), to: MemberId(to) }]),
            Step::Unreachable(id) => self.turn([Input::Unreachable(MemberId(id))]),
        }
    }

    fn win(&mut self) {
        for (kind, above) in [(MessageType::MsgRequestPreVoteResponse, 1), (MessageType::MsgRequestVoteResponse, 0)] {
            self.write(9);
            for from in [2, 3] {
                let term = self.replica.consensus.term().0 + above;
                let mut vote = Raw { to: self.replica.config.id.0, from, term, ..Raw::default() };
                vote.set_msg_type(kind);
                self.hear([vote]);
            }
        }
    }
}

/// `PROPTEST_CASES` for more.
fn config() -> ProptestConfig {
    let given = ProptestConfig::default();
    ProptestConfig { cases: given.cases.max(3_000), failure_persistence: None, ..given }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn no_message_ends_a_member(count in 1u64..4, steps in vec(step(), 1..40)) {
        let mut member = cluster(count).swap_remove(0);
        for step in steps {
            member.take(step);
        }
    }
}

/// It needs nobody's vote, but raft-rs must not count what it was sent a moment ago as its own.
#[test]
fn a_sole_voter_stands_for_election_once_its_log_is_durable() {
    let mut members = cluster(1);
    elect(&mut members, 0);
    let (last, term) = (members[0].replica.consensus.last().0, members[0].replica.consensus.term().0);
    let say = |kind, term, entries: Vec<Entry>| {
        let mut message = Raw { to: 1, from: 9, term, index: last, log_term: term - 1, ..Raw::default() };
        message.set_msg_type(kind);
        message.set_entries(entries.into());
        Input::Message(Message(message))
    };
    let entry = Entry { index: last + 1, term: term + 1, ..Entry::default() };
    let append = say(MessageType::MsgAppend, term + 1, vec![entry]);
    let now = Millis(members[0].now);
    members[0].turn([append, say(MessageType::MsgTimeoutNow, term + 1, Vec::new()), Input::Tick { now }]);
    assert_eq!((members[0].role(), members[0].replica.consensus.last()), (Role::Follower, Index(last + 1)));
    elect(&mut members, 0);
}

#[test]
fn what_no_member_could_apply_is_not_replicated() {
    let mut members = cluster(1);
    elect(&mut members, 0);
    let last = members[0].replica.consensus.last();
    for entry in inapplicable() {
        let mut message = Raw { to: 1, from: 2, ..Raw::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.mut_entries().push(entry);
        members[0].hear([message]);
        exchange(&mut members);
    }
    assert!(!members[0].replica.halted);
    assert_eq!(members[0].replica.consensus.last(), last);
}

#[test]
fn a_put_of_no_key_that_was_replicated_is_refused() {
    for command in inapplicable().into_iter().skip(2).take(2) {
        let mut machine = Machine::default();
        let outcome = machine.apply(Index(1), Term(1), command.data, |_| true).expect("it is refused");
        assert_eq!((outcome.result, machine.applied()), (Err(Refusal::EmptyKey), Index(1)));
    }
}
