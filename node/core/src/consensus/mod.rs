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
//! - A member that waits for a snapshot to become durable stands for no election: raft-rs could not read what it would
//!   have to look through.
//! - Proposals that raft-rs would drop or empty in silence wait instead (`proposals.rs`), as far as there is room.
mod appends;
mod election;
mod log;
mod message;
mod proposals;

use std::{collections::VecDeque, mem::take};

use bytes::Bytes;
use raft::{
    Config, ProgressState, RawNode, SnapshotStatus, StateRole,
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
        membership::{Change, Configuration, Member},
    },
    replica::{Output, Persist, SnapshotMark},
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

/// Where a member begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// Durable with the log.
    pub state: HardState,
    /// The position right before the first entry.
    pub before: (Index, Term),
    pub entries: Vec<Entry>,
    /// What the machine has applied already: `before`, or some entry after it.
    pub applied: (Index, Term),
    /// Who had a say then.
    pub configuration: Configuration,
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
    /// For followers too far behind: each is to get the machine's present state with its message.
    pub snapshots: Vec<Message>,
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
    /// Proposals that cannot be taken right now.
    deferred: VecDeque<eraftpb::Message>,
    /// The last term in which this leader tried to hand over before its own removal.
    handed_over_for: Option<u64>,
    /// The batch with which the last snapshot that was taken in becomes durable, until it is.
    installing: Option<PersistId>,
}

impl Consensus {
    pub fn new(id: MemberId, timing: &Timing, start: Start) -> Consensus {
        let Start { state, before, entries, applied, configuration } = start;
        let mut log = Log::after((before.0.0, before.1.0));
        log.append(entries);
        // The machine may be ahead of the commit index that is durable: what it applied was committed all the same.
        let commit = state.commit.max(applied.0);
        (log.hard_state.term, log.hard_state.vote, log.hard_state.commit) = (state.term.0, state.vote.0, commit.0);
        log.conf_state = conf_state(&configuration);
        log.applied = (applied.0.0, applied.1.0);
        let config = Config {
            id: id.0,
            applied: applied.0.0,
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
            commit,
            early_reads: Vec::new(),
            deferred: VecDeque::new(),
            handed_over_for: None,
            installing: None,
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

    /// Whether this member has a say, as far as it has applied the log.
    pub fn is_voter(&self) -> bool {
        self.raft.raft.promotable()
    }

    /// The batch with which a snapshot that was taken in becomes durable, while it is on its way.
    pub fn installing(&self) -> Option<PersistId> {
        self.installing
    }

    /// Whom leadership is on its way to.
    pub fn transferee(&self) -> Option<MemberId> {
        self.raft.raft.lead_transferee.map(MemberId)
    }

    /// As leader: up to where another member's log is known to agree, in percent of this one's; of a stranger `None`.
    pub fn caught_up_percent(&self, member: MemberId) -> Option<u64> {
        let matched = |id| Some(self.raft.raft.prs().get(id)?.matched);
        let own = matched(self.raft.raft.id)?;
        Some(matched(member.0)? * 100 / own.max(1))
    }

    /// As leader: the voter that is best placed to lead next: heard of lately, and with the most complete log.
    pub fn heir(&self) -> Option<MemberId> {
        let raft = &self.raft.raft;
        let voters = raft.prs().conf().voters();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id && voters.contains(**id));
        // Of equals the lowest id, so that the order of a hash map decides nothing.
        let fitness = |(id, progress): &(&u64, &raft::Progress)| {
            let fed = progress.recent_active && progress.state != ProgressState::Snapshot;
            (fed, progress.matched, std::cmp::Reverse(**id))
        };
        others.max_by_key(fitness).map(|(id, _)| MemberId(*id))
    }

    /// As leader: hands leadership over, which may fail. Proposals wait meanwhile.
    pub fn transfer(&mut self, to: MemberId) {
        self.raft.transfer_leader(to.0);
    }

    fn is_sole_voter(&self) -> bool {
        let voters = self.raft.raft.prs().conf().voters();
        voters.contains(self.raft.raft.id) && self.raft.raft.prs().is_singleton()
    }

    /// One raft tick.
    pub fn tick(&mut self, out: &mut Vec<Output>) {
        self.ticks += 1;
        if self.installing.is_some() {
            // See the head of this module.
        } else if self.is_sole_voter() && self.role() != Role::Leader {
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
            // A snapshot comes with its state, another way; raft-rs must not believe one that cannot be installed.
            MessageType::MsgSnapshot => return Ok(()),
            MessageType::MsgTimeoutNow
                if self.installing.is_some() || (self.is_sole_voter() && !self.writing.is_empty()) =>
            {
                return Ok(());
            }
            _ => {}
        }
        if message.entries.iter().any(|entry| entry.entry_type == EntryType::EntryConfChangeV2) {
            return Ok(()); // etcd's peers never send one, and it must not enter the log
        }
        if message.msg_type == MessageType::MsgPropose {
            self.defer(message);
            self.take_deferred();
            return Ok(());
        }
        // What raft-rs refuses (a local message, an answer from a stranger) is the network's noise.
        let _ = self.raft.step(message);
        self.timer.draw(&mut self.raft.raft);
        Ok(())
    }

    /// Asks for an index from which a read that begins now is linearizable. `context` must never have been used.
    /// The answer may get lost.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raft.read_index(context);
    }

    /// A snapshot arrived, and its state is at hand. Whether it is taken in: its state replaces the machine's once the
    /// batch that is handed out with it is durable. If not, this member needs none.
    pub fn step_snapshot(&mut self, message: Message) -> bool {
        let message = message.0;
        let index = message.get_snapshot().get_metadata().index;
        if message.to != self.raft.raft.id || message.msg_type != MessageType::MsgSnapshot {
            return false;
        }
        let _ = self.raft.step(message);
        self.timer.draw(&mut self.raft.raft);
        self.raft.raft.snap().is_some_and(|snapshot| snapshot.get_metadata().index == index)
    }

    /// The snapshot that was sent to this member arrived there, or did not.
    pub fn snapshot_sent(&mut self, to: MemberId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raft.report_snapshot(to.0, status);
    }

    /// The disk holds this batch and all before it.
    pub fn persisted(&mut self, persist: PersistId, out: &mut Vec<Output>) {
        assert!(persist > self.durable && persist <= self.persist, "{persist} was never handed out, or twice");
        self.durable = persist;
        while self.writing.front().is_some_and(|writing| writing.persist <= persist) {
            self.writing.pop_front();
        }
        self.installing.take_if(|installing| *installing <= persist);
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
        self.take_deferred();
        if !self.raft.has_ready() {
            return None;
        }
        let mut ready = self.raft.ready();
        let reads = ready.take_read_states().into_iter();
        let reads = reads.map(|read| (Bytes::from(read.request_ctx), Index(read.index))).collect();
        let (snapshots, messages) = self.part_snapshots(ready.take_messages());
        send(messages, out);
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
        Some(Progress { committed, reads, snapshots })
    }

    /// Takes the snapshots out, and makes them ones of the present state: raft-rs asked for them a little earlier.
    fn part_snapshots(&self, messages: Vec<eraftpb::Message>) -> (Vec<Message>, Vec<eraftpb::Message>) {
        let is_snapshot = |message: &eraftpb::Message| message.msg_type == MessageType::MsgSnapshot;
        let (mut snapshots, messages): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_snapshot);
        let log = self.raft.store();
        for message in &mut snapshots {
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = log.applied;
            metadata.set_conf_state(log.conf_state.clone());
        }
        (snapshots.into_iter().map(Message).collect(), messages)
    }

    /// Hands what is new to the disk, and to the log in memory, where raft-rs reads it back.
    fn persist(&mut self, ready: &mut raft::Ready, out: &mut Vec<Output>) {
        let snapshot = Some(ready.snapshot().get_metadata()).filter(|metadata| metadata.index > 0).cloned();
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
        if let Some(metadata) = &snapshot {
            log.restart_after(metadata);
        }
        log.append(entries.clone());
        if let Some(state) = ready.hs() {
            log.hard_state = state.clone();
        }
        if entries.is_empty() && hard_state.is_none() && snapshot.is_none() {
            return;
        }
        self.persist.0 += 1;
        if snapshot.is_some() {
            self.installing = Some(self.persist);
        }
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
            snapshot: snapshot.as_ref().map(|metadata| (Index(metadata.index), Term(metadata.term))),
        }));
        let snapshot = snapshot.map(|metadata| SnapshotMark {
            index: Index(metadata.index),
            term: Term(metadata.term),
            configuration: configuration(metadata.get_conf_state()),
        });
        // With a snapshot the commit index must be durable too, or the log would begin behind what is committed.
        let (term, vote, commit) = (Term(raft.term), MemberId(raft.vote), self.committed());
        let hard_state = hard_state.or(snapshot.as_ref().map(|_| HardState { term, vote, commit }));
        out.push(Output::Persist(Persist { id: self.persist, hard_state, entries, snapshot, sync }));
    }

    /// The machine has applied everything up to here, entry by entry or by taking over a snapshot's state.
    pub fn applied(&mut self, index: Index, term: Term) {
        self.raft.advance_apply_to(index.0);
        self.raft.mut_store().applied = (index.0, term.0);
    }

    /// Forgets the log up to where the rest fits into so many bytes. As leader it keeps, up to `held_bytes`, what a
    /// follower that is alive still needs. Where the log begins now, if it was cut.
    pub fn cut(&mut self, tail_bytes: u64, held_bytes: u64) -> Option<Index> {
        let raft = &self.raft.raft;
        let log = &raft.raft_log.store;
        // Not a little at every step.
        if log.bytes() <= tail_bytes + tail_bytes / 4 {
            return None;
        }
        let mut index = log.overhang(tail_bytes).min(log.applied.0);
        if raft.state == StateRole::Leader {
            let needed = raft.prs().iter().filter(|(id, progress)| **id != raft.id && progress.recent_active);
            let needed = needed.map(|(_, progress)| match progress.state {
                ProgressState::Snapshot => progress.pending_snapshot,
                _ => progress.matched,
            });
            let at_least = log.overhang(held_bytes).min(log.applied.0);
            index = needed.min().map_or(index, |needed| index.min(needed).max(at_least));
        }
        self.raft.mut_store().cut(index).then_some(Index(index))
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
        self.step_down_if_removed();
        self.timer.draw(&mut self.raft.raft);
    }

    /// A leader that removed itself would go on, count itself and, in raft-rs, stop at the next entry that becomes
    /// durable. It tells the others what is committed, asks the best of them to take over, and leads no more.
    fn step_down_if_removed(&mut self) {
        if self.role() != Role::Leader || self.is_voter() {
            return;
        }
        self.raft.raft.bcast_append();
        if let Some(heir) = self.heir() {
            self.raft.raft.send_timeout_now(heir.0);
        }
        let term = self.raft.raft.term;
        self.raft.raft.become_follower(term, 0);
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

fn conf_state(configuration: &Configuration) -> ConfState {
    let ids = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect();
    let mut state = ConfState::default();
    (state.voters, state.learners) = (ids(&configuration.voters), ids(&configuration.learners));
    state
}

fn configuration(state: &ConfState) -> Configuration {
    let ids = |ids: &[u64]| {
        let mut ids: Vec<_> = ids.iter().map(|id| MemberId(*id)).collect();
        ids.sort();
        ids
    };
    Configuration { voters: ids(&state.voters), learners: ids(&state.learners) }
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
