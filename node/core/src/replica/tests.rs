//! Members by hand: what they send and write stays where it is until a test moves it.
use raft::eraftpb::{self, MessageType};

use super::*;
use crate::{
    limits::{APPEND_BYTES_MAX, UNCOMMITTED_BYTES_MAX, UNWRITTEN_BYTES_MAX},
    machine::{command::Put, membership::Member},
    types::{LeaseId, TraceId},
};

mod questions;
mod untrusted;

pub(super) struct Hands {
    pub replica: Replica,
    now: u64,
    /// Of the messages that were sent and are not delivered.
    pub sent: Vec<eraftpb::Message>,
    pub writing: VecDeque<Persist>,
    /// Every other output.
    pub told: Vec<Output>,
}

/// The members 1 to `count` of a cluster that was just founded, by their places.
pub(super) fn cluster(count: u64) -> Vec<Hands> {
    let founders: Vec<_> = (1..=count).map(founder).collect();
    let start = |id| {
        let replica = Replica::new(config(id), founding_log(&founders));
        Hands { replica, now: 0, sent: Vec::new(), writing: VecDeque::new(), told: Vec::new() }
    };
    (1..=count).map(start).collect()
}

fn config(id: u64) -> Config {
    Config {
        id: MemberId(id),
        name: format!("m{id}"),
        client_urls: vec![format!("http://m{id}:2379")],
        cluster_version: "3.6.0".into(),
        heartbeat_ms: limits::HEARTBEAT_MS,
        election_ms: limits::ELECTION_MS,
        request_bytes_max: limits::REQUEST_BYTES_MAX,
        tail_bytes: limits::TAIL_BYTES,
        outputs_max: limits::OUTPUTS_MAX,
        watch_progress_ms: limits::WATCH_PROGRESS_MS,
        seed: id,
    }
}

fn founder(id: u64) -> Member {
    let mut founder = Member::founding(&format!("m{id}"), vec![format!("http://m{id}:2380")], "token");
    (founder.id, founder.client_urls) = (MemberId(id), vec![format!("http://m{id}:2379")]);
    founder
}

impl Hands {
    pub fn turn(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let mut out = Vec::new();
        for input in inputs.into_iter().chain([Input::Settle]) {
            if !self.replica.halted {
                self.replica.step(input, &mut out);
            }
        }
        for output in out {
            match output {
                Output::Send(message) => self.sent.push(message.0),
                Output::Persist(batch) => self.writing.push_back(batch),
                other => self.told.push(other),
            }
        }
    }

    pub fn tick(&mut self) {
        self.now += limits::HEARTBEAT_MS;
        self.turn([Input::Tick { now: Millis(self.now) }]);
    }

    /// The disk completes the batches up to the next `count` that are waited for.
    fn write(&mut self, count: usize) {
        for _ in 0..count {
            let Some(at) = self.writing.iter().position(|batch| batch.sync) else { return };
            let last = self.writing.drain(..=at).next_back().expect("it was just seen").id;
            self.turn([Input::Persisted(last)]);
        }
    }

    fn hear(&mut self, messages: impl IntoIterator<Item = eraftpb::Message>) {
        self.turn(messages.into_iter().map(|message| Input::Message(Message(message))));
    }

    fn propose(&mut self, ticket: u64, bytes: usize) {
        self.turn([proposal(ticket, bytes)]);
    }

    /// What it sent to this member.
    fn sent_to(&mut self, to: u64) -> Vec<eraftpb::Message> {
        self.sent.extract_if(.., |message| message.to == to).collect()
    }

    fn role(&self) -> Role {
        self.replica.consensus.role()
    }

    /// The highest commit index that anyone was told of.
    fn told_commit(&self) -> u64 {
        self.sent.iter().map(|message| message.commit).max().unwrap_or(0)
    }

    fn written_bytes(&self) -> u64 {
        self.writing.iter().flat_map(|batch| &batch.entries).map(|entry| entry.data.len() as u64).sum()
    }

    fn answers(&self) -> Vec<(u64, Result<(), Refusal>)> {
        let answers = self.told.iter().filter_map(|output| match output {
            Output::Respond { ticket, answer } => Some((ticket.0, answer.result.clone().map(|_| ()))),
            Output::ReadReady { ticket, result } => Some((ticket.0, *result)),
            _ => None,
        });
        answers.collect()
    }
}

fn proposal(ticket: u64, bytes: usize) -> Input {
    let command = Command::Put(Put {
        key: b"k"[..].into(),
        value: vec![7; bytes].into(),
        lease: LeaseId(0),
        previous: false,
        ignore_value: false,
        ignore_lease: false,
    });
    Input::Propose(Proposal { ticket: Ticket(ticket), trace: TraceId(0), command })
}

fn removal(ticket: u64, id: u64) -> Input {
    let all: Vec<_> = (1..=3).map(MemberId).collect();
    let peers = Peers { connected: all.clone(), healthy: all };
    Input::Change { ticket: Ticket(ticket), trace: TraceId(0), change: ChangeRequest::Remove(MemberId(id)), peers }
}

/// Everything that these members send each other arrives and all that they write becomes durable, until all is quiet.
pub(super) fn exchange(members: &mut [Hands]) {
    loop {
        let mut messages = Vec::new();
        for member in members.iter_mut() {
            member.write(usize::MAX);
            messages.append(&mut member.sent);
        }
        if messages.is_empty() && members.iter().all(|member| !member.writing.iter().any(|batch| batch.sync)) {
            return;
        }
        for message in messages {
            let to = members.iter_mut().find(|member| member.replica.config.id.0 == message.to);
            to.into_iter().for_each(|member| member.hear([message.clone()]));
        }
    }
}

/// Time passes until this member leads: another one that does hands over.
fn elect(members: &mut [Hands], at: usize) {
    let to = members[at].replica.config.id;
    while members[at].role() != Role::Leader {
        for member in members.iter_mut() {
            match member.role() {
                Role::Leader => member.turn([Input::Transfer { ticket: Ticket(0), to }]),
                _ => member.tick(),
            }
        }
        exchange(members);
    }
    members[at].tick();
    exchange(members);
    members.iter_mut().for_each(|member| member.told.clear());
}

#[test]
fn who_led_with_much_uncommitted_takes_proposals_as_a_follower() {
    let mut members = cluster(3);
    elect(&mut members, 0);
    for ticket in 0..=UNCOMMITTED_BYTES_MAX / 1_500_000 {
        members[0].propose(ticket, 1_500_000);
        members[0].sent.clear();
    }
    assert!(!members[0].replica.consensus.takes_proposals());
    elect(&mut members[1..], 0);
    members[1].tick();
    let heartbeats = members[1].sent_to(1);
    members[0].hear(heartbeats);
    assert_eq!(members[0].role(), Role::Follower);
    members[0].write(usize::MAX);
    members[0].sent.clear();
    members[0].propose(1_000, 10);
    let forwarded = members[0].sent_to(2);
    assert!(forwarded.iter().any(|message| message.msg_type == MessageType::MsgPropose), "{forwarded:?}");
}

/// The puts before the change are more than is applied in one go.
#[test]
fn a_change_is_told_once_it_is_durable_that_it_is_committed() {
    let mut members = cluster(2);
    elect(&mut members, 0);
    members[0].turn([proposal(1, 1_200_000), removal(2, 2)]);
    members[0].write(9);
    let change = members[0].replica.consensus.last().0;
    let appends = members[0].sent_to(2);
    members[1].hear(appends);
    members[1].write(9);
    let acknowledged = members[1].sent_to(1);
    members[0].hear(acknowledged);
    assert_eq!(members[0].replica.consensus.committed(), Index(change));
    assert!(members[0].told_commit() < change, "{:?}", members[0].sent);
    members[0].write(1);
    assert_eq!(members[0].told_commit(), change);
}

#[test]
fn a_change_is_not_told_while_the_leaders_disk_lags_behind_the_others() {
    let mut members = cluster(3);
    elect(&mut members, 0);
    members[0].turn([removal(1, 3)]);
    let change = members[0].replica.consensus.last().0;
    for at in [1, 2] {
        let appends = members[0].sent_to(at as u64 + 1);
        members[at].hear(appends);
        members[at].write(9);
        let acknowledged = members[at].sent_to(1);
        // With more to write, in the same turn.
        let inputs = acknowledged.into_iter().map(|message| Input::Message(Message(message)));
        members[0].turn(inputs.chain([proposal(9 + at as u64, 10)]));
    }
    assert_eq!(members[0].replica.consensus.committed(), Index(change));
    assert!(members[0].told_commit() < change, "{:?}", members[0].sent);
    // The entry is durable now, and so it is applied; its commit is not.
    while members[0].replica.machine.applied() < Index(change) {
        assert!(members[0].told_commit() < change);
        members[0].write(1);
    }
    let durable = |member: &Hands| !member.writing.iter().any(|batch| batch.hard_state.is_some());
    while !durable(&members[0]) {
        assert_eq!((members[0].told_commit() >= change, members[0].answers()), (false, vec![]));
        members[0].write(1);
    }
    assert_eq!(members[0].answers(), [(1, Ok(()))]);
    assert!(members[0].told_commit() >= change);
}

#[test]
fn a_follower_whose_disk_hangs_takes_so_much_and_no_more() {
    let mut members = cluster(3);
    elect(&mut members, 0);
    let last = members[1].replica.consensus.last().0;
    let term = members[0].replica.consensus.term().0;
    let append = |index: u64| {
        let data: bytes::Bytes = vec![7; APPEND_BYTES_MAX as usize].into();
        let entry = eraftpb::Entry { index: index + 1, term, data, ..Default::default() };
        let mut message = eraftpb::Message { to: 2, from: 1, term, index, log_term: term, ..Default::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.mut_entries().push(entry);
        message
    };
    let many = 2 * UNWRITTEN_BYTES_MAX / APPEND_BYTES_MAX;
    (last..last + many).for_each(|index| members[1].hear([append(index)]));
    let taken = members[1].written_bytes();
    assert!((UNWRITTEN_BYTES_MAX / 2..UNWRITTEN_BYTES_MAX + 2 * APPEND_BYTES_MAX).contains(&taken), "{taken} bytes");
    // It still says that it is there, and what comes is not lost any more once the disk goes on.
    members[1].write(usize::MAX);
    let next = members[1].replica.consensus.last().0;
    members[1].hear((next..next + many).map(append));
    let taken = members[1].written_bytes();
    assert!(
        (UNWRITTEN_BYTES_MAX / 2..UNWRITTEN_BYTES_MAX + 2 * APPEND_BYTES_MAX).contains(&taken),
        "in one turn: {taken} bytes"
    );
}

#[test]
fn what_is_forwarded_to_a_leader_has_a_bound_in_bytes() {
    let mut members = cluster(3);
    elect(&mut members, 0);
    let forwarded = |ticket: u64| {
        let Input::Propose(proposal) = proposal(ticket, 1 << 20) else { unreachable!("it is one") };
        let data = proposal.command.encode(RequestId(ticket)).into();
        let mut message = eraftpb::Message { to: 1, from: 2, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.mut_entries().push(Entry { data, ..Entry::default() });
        message
    };
    let many = 3 * (UNCOMMITTED_BYTES_MAX >> 20);
    (1..=many).for_each(|ticket| {
        members[0].hear([forwarded(ticket)]);
        members[0].sent.clear();
    });
    let taken = members[0].written_bytes();
    assert!(taken <= UNCOMMITTED_BYTES_MAX + (2 << 20), "{taken} bytes");
    // What waited follows once that is committed, and the rest is lost.
    members[0].replica.consensus.unreachable(MemberId(2));
    (0..40).for_each(|_| {
        members[0].tick();
        exchange(&mut members[..2]);
    });
    let applied = members[0].replica.machine.store.revision().0 as u64 - 1;
    let expected = UNCOMMITTED_BYTES_MAX >> 19;
    assert!((expected - 4..=expected + 2).contains(&applied), "{applied} puts");
}

#[test]
fn what_waits_for_a_leader_has_a_bound_in_bytes() {
    let mut members = cluster(3);
    (0..100).for_each(|ticket| members[0].propose(ticket, 1_500_000));
    let refused: Vec<_> = members[0].answers();
    let kept = 100 - refused.len();
    assert_eq!(refused, (kept as u64..100).map(|ticket| (ticket, Err(Refusal::TooManyRequests))).collect::<Vec<_>>());
    assert!(kept * 1_500_000 <= limits::PROPOSALS_BYTES_MAX + 1_500_000 && kept > 30, "{kept} are kept");
    // The leader gets them in messages that a stream takes.
    elect(&mut members[1..], 0);
    members[1].tick();
    let heartbeats = members[1].sent_to(1);
    members[0].hear(heartbeats);
    members[0].write(usize::MAX);
    let forwarded = members[0].sent_to(2);
    let largest = forwarded.iter().map(|message| Message(message.clone()).encoded_len()).max();
    assert!(largest.is_some_and(|bytes| bytes < 3 << 20), "{largest:?} bytes");
}

#[test]
fn reads_that_wait_have_a_bound() {
    let mut members = cluster(3);
    let count = limits::READS_WAITING_MAX as u64 + 2;
    members[0].turn((0..count).map(|ticket| Input::Read { ticket: Ticket(ticket) }));
    let refused = (Err(Refusal::TooManyRequests), Err(Refusal::TooManyRequests));
    assert_eq!(members[0].answers(), [(count - 2, refused.0), (count - 1, refused.1)]);
}

/// Of three members, so that none campaigns by itself: a log of so many entries behind the founding ones, all committed.
fn recovered(entries: u64) -> Recovered {
    let founders = [1, 2, 3].map(founder);
    let mut recovered = founding_log(&founders);
    let last = recovered.last().0 + entries;
    let command = Command::MemberAttributes { member: MemberId(2), name: "n".repeat(300), client_urls: Vec::new() };
    let data = bytes::Bytes::from(command.encode(RequestId(7)));
    let entry = |index| eraftpb::Entry { index, term: 1, data: data.clone(), ..eraftpb::Entry::default() };
    let more = (recovered.last().0 + 1..=last).map(entry);
    recovered.entries.extend(more);
    recovered.hard_state = HardState { term: Term(1), vote: MemberId(0), commit: Index(last) };
    recovered
}

#[test]
fn a_long_log_is_applied_in_several_steps() {
    let recovered = recovered(3 * limits::OUTPUTS_MAX as u64);
    let last = recovered.last();
    let (mut replica, mut steps) = (Replica::new(config(1), recovered), 0);
    loop {
        let mut out = Vec::new();
        replica.step(Input::Settle, &mut out);
        assert!(out.len() < 2 * limits::OUTPUTS_MAX, "{} outputs at once", out.len());
        steps += 1;
        if !replica.has_work() {
            break;
        }
    }
    assert_eq!(replica.machine().applied(), last);
    assert!(steps >= 3, "{steps} steps");
}

#[test]
fn a_state_that_arrives_while_a_long_log_is_applied_takes_its_place() {
    let backlog = 3 * limits::OUTPUTS_MAX as u64;
    let mut ahead = Replica::new(config(1), recovered(backlog + 100));
    while ahead.has_work() || ahead.machine().applied() < recovered(backlog + 100).last() {
        ahead.step(Input::Settle, &mut Vec::new());
    }
    let state = State(Box::new(ahead.machine().clone()));
    let (index, term) = (state.0.applied(), state.0.applied_term());
    let mut message = eraftpb::Message { from: 2, to: 1, term: 1, ..Default::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index.0, term.0);
    metadata.mut_conf_state().voters = vec![1, 2, 3];

    let recovered = recovered(backlog);
    let mut replica = Replica::new(config(1), recovered);
    replica.step(Input::Settle, &mut Vec::new());
    assert!(replica.has_work());
    let mut out = Vec::new();
    replica.step(Input::Snapshot { message: Message(message), state }, &mut out);
    let mut batches: Vec<_> = out.extract_if(.., |output| matches!(output, Output::Persist(_))).collect();
    let Some(Output::Persist(batch)) = batches.pop() else { panic!("nothing is written") };
    assert!(batch.snapshot.is_some());
    replica.step(Input::Persisted(batch.id), &mut out);
    assert_eq!(replica.machine().applied(), index);
    replica.step(Input::Settle, &mut out);
    assert!(!replica.has_work());
}
