//! Consensus: raft-rs's `RawNode` behind our own words, with its traps cured in one place.
//!
//! raft-rs hands out work as "readies". Here each becomes outputs in the order that is safe: a leader's messages go
//! out at once and its entries to disk beside them; everyone else's answers are held until what they promise is
//! durable. The shell sees none of this: it starts what it is told, in order, and reports what became durable.
//!
//! Invariants:
//! - A vote, a term and an entry are durable before a message that promises them leaves.
//! - Heartbeat answers and forwarded requests promise nothing but the term and the vote: they overtake entries that
//!   are still on their way to disk, but not those.
//! - Election timeouts depend on seed, member, term and how often the member stood, and on nothing else.
mod appends;
mod election;
mod log;
mod message;

use std::{collections::VecDeque, mem::take};

use bytes::Bytes;
use raft::{
    Config, RawNode, StateRole,
    eraftpb::{self, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, MessageType},
};

pub use self::message::{Message, MessageError};
use self::{election::ElectionTimer, log::Log};
use crate::{
    event::{NodeEvent, Role},
    format::wal::HardState,
    limits,
    machine::{
        hash_bytes,
        membership::{Change, Member},
    },
    replica::{Output, Persist},
    types::{Index, MemberId, PersistId, Term},
};

/// How consensus is timed, in raft ticks.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Ticks between heartbeats.
    pub heartbeat: usize,
    /// The least number of ticks without a leader before a member stands for election.
    pub election: usize,
    /// Everything random in consensus comes from here.
    pub seed: u64,
}

/// A ready that waits for the disk.
struct Held {
    /// The batch that must be durable first.
    until: PersistId,
    /// raft-rs's number of the ready.
    ready: u64,
    messages: Vec<eraftpb::Message>,
}

/// A batch on its way to the disk.
struct Writing {
    persist: PersistId,
    since_tick: u64,
}

/// What a ready brought for the machine.
#[derive(Default)]
pub struct Progress {
    pub committed: Vec<Entry>,
    /// Linearizable reads, by the context they were asked with, and the index from which they may be served.
    pub reads: Vec<(Bytes, Index)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    role: Role,
    term: Term,
    leader: MemberId,
}

/// This member's disk forgot entries that it had told the leader it holds. Going on would break what was promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the leader {leader} knows this member to hold entry {commit}, but its log ends at {last}: the disk lost data")]
pub struct ForgottenEntries {
    pub leader: MemberId,
    pub commit: Index,
    pub last: Index,
}

pub struct Consensus {
    raft: RawNode<Log>,
    timer: ElectionTimer,
    ticks: u64,
    held: VecDeque<Held>,
    writing: VecDeque<Writing>,
    persist: PersistId,
    durable: PersistId,
    /// The newest term and vote handed to the disk, and the batch that holds them.
    promised: (Term, MemberId),
    vote: PersistId,
    standing: Standing,
    commit: Index,
    /// Reads that followers asked before this leader's first commit; raft-rs would drop them.
    early_reads: Vec<eraftpb::Message>,
}

impl Consensus {
    /// `entries` is the whole log, from index 1 on; `state` was durable with it.
    pub fn new(id: MemberId, timing: &Timing, state: HardState, entries: Vec<Entry>) -> Consensus {
        let mut log = Log::default();
        log.append(entries);
        (log.hard_state.term, log.hard_state.vote, log.hard_state.commit) =
            (state.term.0, state.vote.0, state.commit.0);
        let config = Config {
            id: id.0,
            election_tick: timing.election,
            heartbeat_tick: timing.heartbeat,
            pre_vote: true,
            check_quorum: true,
            max_size_per_msg: limits::APPEND_BYTES_MAX,
            max_inflight_msgs: limits::APPENDS_IN_FLIGHT_MAX,
            max_committed_size_per_ready: limits::APPLY_BYTES_MAX,
            // Counted by raft-rs, bounded by us: what is over the bound waits instead of being dropped.
            max_uncommitted_size: u64::MAX - 1,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&config, log, &logger).expect("a recovered log is a valid start");
        let mut consensus = Consensus {
            timer: ElectionTimer::new(id, timing),
            raft,
            ticks: 0,
            held: VecDeque::new(),
            writing: VecDeque::new(),
            persist: PersistId(0),
            durable: PersistId(0),
            promised: (state.term, state.vote),
            vote: PersistId(0),
            standing: Standing { role: Role::Follower, term: state.term, leader: MemberId(0) },
            commit: state.commit,
            early_reads: Vec::new(),
        };
        consensus.timer.draw(&mut consensus.raft.raft);
        consensus
    }

    pub fn role(&self) -> Role {
        role(self.raft.raft.state)
    }

    pub fn term(&self) -> Term {
        Term(self.raft.raft.term)
    }

    /// 0 when none is known.
    pub fn leader(&self) -> MemberId {
        MemberId(self.raft.raft.leader_id)
    }

    pub fn committed(&self) -> Index {
        Index(self.raft.raft.raft_log.committed)
    }

    pub fn last(&self) -> Index {
        Index(self.raft.raft.raft_log.last_index())
    }

    /// Whether this leader knows all that was committed before its term.
    pub fn leads_with_commit(&self) -> bool {
        self.role() == Role::Leader && self.raft.raft.commit_to_current_term()
    }

    fn is_sole_voter(&self) -> bool {
        let voters = self.raft.raft.prs().conf().voters();
        voters.contains(self.raft.raft.id) && self.raft.raft.prs().is_singleton()
    }

    /// One raft tick.
    pub fn tick(&mut self, out: &mut Vec<Output>) {
        self.ticks += 1;
        if self.is_sole_voter() && self.role() != Role::Leader {
            // Nobody to wait for. But raft-rs stops a sole voter that is elected over entries not yet durable.
            if self.writing.is_empty() {
                self.raft.campaign().expect("a follower may always stand for election");
            }
        } else {
            self.raft.tick();
            self.timer.ticked(&self.raft.raft);
        }
        self.step_down_if_stalled(out);
        self.timer.draw(&mut self.raft.raft);
    }

    /// A leader that cannot write would keep its followers content and the cluster at a standstill.
    fn step_down_if_stalled(&mut self, out: &mut Vec<Output>) {
        let Some(oldest) = self.writing.front() else { return };
        let stalled = self.ticks - oldest.since_tick;
        if self.role() == Role::Leader && !self.is_sole_voter() && stalled > self.timer.election() as u64 {
            out.push(Output::Note(NodeEvent::DiskStalled { since_ms: stalled * limits::HEARTBEAT_MS }));
            let term = self.raft.raft.term;
            self.raft.raft.become_follower(term, 0);
        }
    }

    pub fn step(&mut self, message: Message) -> Result<(), ForgottenEntries> {
        let message = message.0;
        if message.to != self.raft.raft.id {
            return Ok(()); // for who had this address before
        }
        match message.msg_type {
            MessageType::MsgHeartbeat if message.term >= self.raft.raft.term => {
                let (commit, last) = (Index(message.commit), self.last());
                if commit > last {
                    return Err(ForgottenEntries { leader: MemberId(message.from), commit, last });
                }
            }
            MessageType::MsgReadIndex if self.role() == Role::Leader && !self.leads_with_commit() => {
                if self.early_reads.len() < limits::APPENDS_IN_FLIGHT_MAX {
                    self.early_reads.push(message);
                }
                return Ok(());
            }
            // raft-rs would acknowledge entries that it was not sent.
            MessageType::MsgAppend if !appends::is_contiguous(&message) => return Ok(()),
            // Nobody sends snapshots yet, and raft-rs must not believe one that cannot be installed.
            MessageType::MsgSnapshot => return Ok(()),
            MessageType::MsgTimeoutNow if self.is_sole_voter() && !self.writing.is_empty() => return Ok(()),
            _ => {}
        }
        if message.entries.iter().any(|entry| entry.entry_type == EntryType::EntryConfChangeV2) {
            return Ok(()); // etcd's peers never send one, and it must not enter the log
        }
        // What raft-rs refuses (a local message, an answer from a stranger) is the network's noise.
        let _ = self.raft.step(message);
        self.timer.draw(&mut self.raft.raft);
        Ok(())
    }

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
        // A leader that is no longer a member drops them: to the caller as if they had been lost on the way.
        let _ = self.raft.raft.step(message);
    }

    /// Asks for an index from which a read that begins now is linearizable. `context` must never have been used.
    /// The answer may get lost.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raft.read_index(context);
    }

    /// The disk holds this batch and all before it.
    pub fn persisted(&mut self, persist: PersistId, out: &mut Vec<Output>) {
        assert!(persist > self.durable && persist <= self.persist, "{persist} was never handed out, or twice");
        self.durable = persist;
        while self.writing.front().is_some_and(|writing| writing.persist <= persist) {
            self.writing.pop_front();
        }
        self.release(out);
    }

    fn release(&mut self, out: &mut Vec<Output>) {
        let mut ready = None;
        while self.held.front().is_some_and(|held| held.until <= self.durable) {
            let held = self.held.pop_front().expect("just seen");
            ready = Some(held.ready);
            send(held.messages, out);
        }
        if let Some(ready) = ready {
            self.raft.on_persist_ready(ready);
        }
    }

    /// Takes the next piece of work out of raft; `None` when there is none.
    pub fn advance(&mut self, out: &mut Vec<Output>) -> Option<Progress> {
        self.answer_early_reads();
        if !self.raft.has_ready() {
            return None;
        }
        let mut ready = self.raft.ready();
        let reads = ready.take_read_states().into_iter();
        let reads = reads.map(|read| (Bytes::from(read.request_ctx), Index(read.index))).collect();
        send(ready.take_messages(), out);
        self.persist(&mut ready, out);
        let mut messages = ready.take_persisted_messages();
        if self.durable >= self.vote {
            let free = |message: &eraftpb::Message| {
                use MessageType::{MsgHeartbeatResponse, MsgPropose, MsgReadIndex};
                matches!(message.msg_type, MsgHeartbeatResponse | MsgPropose | MsgReadIndex)
            };
            let (overtaking, kept) = messages.into_iter().partition(free);
            send(overtaking, out);
            messages = kept;
        }
        let until = self.writing.back().map_or(PersistId(0), |writing| writing.persist);
        self.held.push_back(Held { until, ready: ready.number(), messages });
        let committed = ready.take_committed_entries();
        self.raft.advance_append_async(ready);
        self.note_standing(out);
        self.release(out);
        Some(Progress { committed, reads })
    }

    /// Hands what is new to the disk, and to the log in memory, where raft-rs reads it back.
    fn persist(&mut self, ready: &mut raft::Ready, out: &mut Vec<Output>) {
        let entries = ready.take_entries();
        for entry in &entries {
            let (index, term) = (Index(entry.index), Term(entry.term));
            let hash = hash_bytes(&entry.data) ^ entry.entry_type as u64;
            out.push(Output::Note(NodeEvent::Appended { index, term, hash }));
        }
        let hard_state = ready.hs().map(|state| HardState {
            term: Term(state.term),
            vote: MemberId(state.vote),
            commit: Index(state.commit),
        });
        let log = self.raft.mut_store();
        log.append(entries.clone());
        if let Some(state) = ready.hs() {
            log.hard_state = state.clone();
        }
        if entries.is_empty() && hard_state.is_none() {
            return;
        }
        self.persist.0 += 1;
        let sync = ready.must_sync();
        if sync {
            self.writing.push_back(Writing { persist: self.persist, since_tick: self.ticks });
            if let Some(state) = hard_state
                && (state.term, state.vote) != self.promised
            {
                self.promised = (state.term, state.vote);
                self.vote = self.persist;
            }
        }
        let (raft, last) = (&self.raft.raft, entries.last());
        out.push(Output::Note(NodeEvent::PersistStarted {
            persist: self.persist,
            term: Term(raft.term),
            vote: MemberId(raft.vote),
            last: last.map(|entry| (Index(entry.index), Term(entry.term))),
        }));
        out.push(Output::Persist(Persist { id: self.persist, hard_state, entries, sync }));
    }

    /// The machine has applied everything up to here.
    pub fn applied(&mut self, index: Index) {
        self.raft.advance_apply_to(index.0);
    }

    /// Tells raft of a configuration entry that was applied, valid or not (`None`: it changes nothing).
    pub fn change_applied(&mut self, change: Option<&Change>) {
        let single = |kind, id: MemberId| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id.0;
            single
        };
        let change = match change {
            Some(Change::Add(Member { id, is_learner: true, .. })) => single(ConfChangeType::AddLearnerNode, *id),
            Some(Change::Add(member)) => single(ConfChangeType::AddNode, member.id),
            Some(Change::Promote(id)) => single(ConfChangeType::AddNode, *id),
            Some(Change::Remove(id)) => single(ConfChangeType::RemoveNode, *id),
            // Nobody, which raft-rs takes for no change.
            Some(Change::UpdatePeers(..)) | None => single(ConfChangeType::AddNode, MemberId(0)),
        };
        let mut changes = ConfChangeV2::default();
        changes.mut_changes().push(change);
        let state: ConfState = self.raft.apply_conf_change(&changes).expect("a single change of a valid configuration");
        self.raft.mut_store().conf_state = state;
        self.timer.draw(&mut self.raft.raft);
    }

    /// The last attempts to send to this member failed.
    pub fn unreachable(&mut self, member: MemberId) {
        self.raft.report_unreachable(member.0);
    }

    fn answer_early_reads(&mut self) {
        if self.role() != Role::Leader {
            self.early_reads.clear(); // who asked asks again
        } else if self.leads_with_commit() {
            for message in take(&mut self.early_reads) {
                let _ = self.raft.step(message);
            }
        }
    }

    fn note_standing(&mut self, out: &mut Vec<Output>) {
        let standing = Standing { role: self.role(), term: self.term(), leader: self.leader() };
        if standing != self.standing {
            self.standing = standing;
            let Standing { role, term, leader } = standing;
            out.push(Output::Note(NodeEvent::RoleChanged { role, term, leader }));
        }
        let commit = self.committed();
        if commit > self.commit {
            self.commit = commit;
            out.push(Output::Note(NodeEvent::Committed { index: commit }));
        }
    }
}

fn role(state: StateRole) -> Role {
    match state {
        StateRole::Follower => Role::Follower,
        StateRole::PreCandidate => Role::PreCandidate,
        StateRole::Candidate => Role::Candidate,
        StateRole::Leader => Role::Leader,
    }
}

fn send(messages: Vec<eraftpb::Message>, out: &mut Vec<Output>) {
    out.extend(appends::merge(messages).into_iter().map(|message| Output::Send(Message(message))));
}
