//! Consensus: raft-rs's `RawNode` behind our own words, with its traps cured in one place.
//!
//! raft-rs hands out work as "readies". Here each becomes outputs in the order that is safe: a leader's messages go
//! out at once and its entries to disk beside them; everyone else's answers are held until what they promise is
//! durable. The shell sees none of this: it starts what it is told, in order, and reports what became durable.
//!
//! Invariants:
//! - A vote, a term and an entry are durable before a message that promises them leaves, and so is that a change of the
//!   membership is committed before its leader says so: whoever hears of it may be gone for good.
//! - A log on disk holds at most one change that is not known there to be committed: or its member's quorums might not
//!   meet those of the others.
//! - Heartbeat answers and forwarded requests promise nothing but the term and the vote: they overtake entries that
//!   are still on their way to disk, but not those.
//! - Election timeouts depend on seed, member, term and how often the member stood, and on nothing else.
//! - A member that waits for a snapshot to become durable stands for no election: raft-rs could not read what it would
//!   have to look through.
//! - What no correct member says does not reach raft-rs, which would stop at it (`sound.rs`).
//! - Proposals that raft-rs would drop or empty in silence wait instead (`proposals.rs`), as far as there is room.
mod appends;
mod election;
mod log;
mod members;
mod message;
mod proposals;
mod reads;
mod ready;
mod sound;

use std::collections::VecDeque;

use raft::{
    Config, Progress, ProgressState, RawNode, SnapshotStatus, StateRole,
    eraftpb::{self, MessageType},
};

pub use raft::eraftpb::Entry;

use self::{
    election::ElectionTimer,
    log::Log,
    ready::{Held, Standing, Writing},
};
pub use self::{
    message::{Message, MessageError},
    ready::hash_entry,
};
use crate::{
    event::{NodeEvent, Role},
    format::wal::HardState,
    limits,
    machine::membership::Configuration,
    replica::Output,
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
    /// This member was removed by then.
    pub removed: bool,
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
    /// Bytes of the entries in the batches that were handed to the disk, ever, and up to which of them it is durable.
    written_bytes: u64,
    durable_bytes: u64,
    persist: PersistId,
    durable: PersistId,
    /// The last that was handed to the disk.
    handed: HardState,
    /// The newest term and vote among that, and the batch with which they are durable.
    promised: (Term, MemberId),
    vote: PersistId,
    /// The batch with which it is durable that every change is committed that is, as far as the disk was told.
    change: PersistId,
    standing: Standing,
    /// What happened since the last ready.
    notes: Vec<NodeEvent>,
    commit: Index,
    /// Reads that followers asked before this leader's first commit; raft-rs would drop them.
    early_reads: Vec<eraftpb::Message>,
    /// How often this member asked its quorum whether it still leads.
    questions: u64,
    /// Proposals that cannot be taken right now.
    deferred: VecDeque<eraftpb::Message>,
    /// For so many ticks nobody leads.
    leaderless: usize,
    /// The last term in which this leader tried to hand over before its own removal.
    handed_over_for: Option<u64>,
    /// The batch with which the last snapshot that was taken in becomes durable, until it is.
    installing: Option<PersistId>,
    /// As leader: whom it heard of before it last began to count anew. raft-rs forgets them in that tick.
    heard: Vec<u64>,
    /// What was known to be committed at the start.
    found: Index,
    /// The index of this member's own removal, if no other member is known to know that it is committed.
    untold: Option<Index>,
}

impl Consensus {
    pub fn new(id: MemberId, timing: &Timing, start: Start) -> Consensus {
        let Start { state, before, entries, applied, configuration, removed } = start;
        let mut log = Log::after((before.0.0, before.1.0));
        log.append(entries);
        // The machine may be ahead of the commit index that is durable: what it applied was committed all the same.
        let commit = state.commit.max(applied.0);
        (log.hard_state.term, log.hard_state.vote, log.hard_state.commit) = (state.term.0, state.vote.0, commit.0);
        log.conf_state = members::conf_state(&configuration);
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
            written_bytes: 0,
            durable_bytes: 0,
            persist: PersistId(0),
            durable: PersistId(0),
            handed: HardState { commit, ..state },
            promised: (state.term, state.vote),
            vote: PersistId(0),
            change: PersistId(0),
            standing: Standing { role: Role::Follower, term: state.term, leader: MemberId(0) },
            notes: Vec::new(),
            commit,
            early_reads: Vec::new(),
            questions: 0,
            deferred: VecDeque::new(),
            leaderless: 0,
            handed_over_for: None,
            installing: None,
            heard: Vec::new(),
            found: commit,
            untold: removed.then_some(applied.0),
        };
        consensus.moved();
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

    /// Whether it is durable of every change applied so far that it is committed.
    pub fn changes_are_durable(&self) -> bool {
        self.durable >= self.change
    }

    /// Whether this member was removed, and nobody else may know.
    pub fn is_untold(&self) -> bool {
        self.untold.is_some()
    }

    /// Whom leadership is on its way to.
    pub fn transferee(&self) -> Option<MemberId> {
        self.raft.raft.lead_transferee.map(MemberId)
    }

    fn is_sole_voter(&self) -> bool {
        let voters = self.raft.raft.prs().conf().voters();
        voters.contains(self.raft.raft.id) && self.raft.raft.prs().is_singleton()
    }

    /// Whether the disk holds all of the log, what this turn brought with it, and nothing else is on its way there.
    fn log_is_durable(&self) -> bool {
        let log = &self.raft.raft.raft_log;
        self.writing.is_empty() && log.persisted == log.last_index()
    }

    /// One raft tick.
    pub fn tick(&mut self, out: &mut Vec<Output>) {
        self.ticks += 1;
        self.remember_heard();
        if self.installing.is_some() {
            // See the head of this module.
        } else if self.is_sole_voter() && self.role() != Role::Leader {
            // Nobody to wait for. But raft-rs stops a sole voter that is elected over entries not yet durable.
            if self.log_is_durable() {
                self.raft.campaign().expect("a follower may always stand for election");
            }
        } else {
            self.raft.tick();
            self.timer.ticked(&self.raft.raft);
        }
        self.moved();
        self.step_down_if_stalled(out);
        self.forget_deferred();
    }

    fn remember_heard(&mut self) {
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader {
            self.heard.clear();
        } else if raft.election_elapsed + 1 >= raft.election_timeout() {
            let heard = raft.prs().iter().filter(|(_, progress)| progress.recent_active);
            self.heard = heard.map(|(id, _)| *id).collect();
        }
    }

    /// A leader that cannot write would keep its followers content and the cluster at a standstill.
    fn step_down_if_stalled(&mut self, out: &mut Vec<Output>) {
        let Some(oldest) = self.writing.front() else { return };
        let stalled = self.ticks - oldest.since_tick;
        if self.role() == Role::Leader && !self.is_sole_voter() && stalled > self.timer.election() as u64 {
            out.push(Output::Note(NodeEvent::DiskStalled { since_ms: stalled * limits::HEARTBEAT_MS }));
            self.lead_no_more();
        }
    }

    fn lead_no_more(&mut self) {
        let term = self.raft.raft.term;
        self.raft.raft.become_follower(term, 0);
        self.moved();
    }

    /// After anything that may have changed the role.
    fn moved(&mut self) {
        self.timer.draw(&mut self.raft.raft);
        let standing = Standing { role: self.role(), term: self.term(), leader: self.leader() };
        if standing != self.standing {
            self.standing = standing;
            let Standing { role, term, leader } = standing;
            self.notes.push(NodeEvent::RoleChanged { role, term, leader });
        }
    }

    pub fn step(&mut self, message: Message) -> Result<(), ForgottenEntries> {
        let message = message.0;
        if message.to != self.raft.raft.id || !self.is_sound(&message) {
            return Ok(()); // for who had this address before, or nothing that a member says
        }
        match message.msg_type {
            MessageType::MsgHeartbeat if message.term >= self.raft.raft.term => {
                let (commit, last) = (Index(message.commit), self.last());
                if commit > last {
                    return Err(ForgottenEntries { leader: MemberId(message.from), commit, last });
                }
            }
            MessageType::MsgReadIndex => {
                self.asked_to_read(message);
                return Ok(());
            }
            // Heartbeats are answered while the disk hangs, so the leader goes on sending: it does again what is lost.
            MessageType::MsgAppend if !message.entries.is_empty() && !self.has_room_to_write() => return Ok(()),
            // A snapshot comes with its state, another way; raft-rs must not believe one that cannot be installed.
            MessageType::MsgSnapshot => return Ok(()),
            MessageType::MsgTimeoutNow
                if self.installing.is_some() || (self.is_sole_voter() && !self.log_is_durable()) =>
            {
                return Ok(());
            }
            MessageType::MsgPropose => {
                self.take(message);
                return Ok(());
            }
            _ => {}
        }
        self.heard_of_removal(&message);
        // What raft-rs refuses (a local message, an answer from a stranger) is the network's noise.
        let _ = self.raft.step(message);
        self.moved();
        Ok(())
    }

    /// A snapshot arrived, and its state is at hand. Whether it is taken in: its state replaces the machine's once the
    /// batch that is handed out with it is durable. If not, this member needs none.
    pub fn step_snapshot(&mut self, message: Message) -> bool {
        let message = message.0;
        let index = message.get_snapshot().get_metadata().index;
        let is_one = message.to == self.raft.raft.id && message.msg_type == MessageType::MsgSnapshot;
        if !is_one || !self.is_sound(&message) {
            return false;
        }
        let _ = self.raft.step(message);
        self.moved();
        self.raft.raft.snap().is_some_and(|snapshot| snapshot.get_metadata().index == index)
    }

    /// The snapshot that was sent to this member arrived there, or did not.
    pub fn snapshot_sent(&mut self, to: MemberId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raft.report_snapshot(to.0, status);
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
        let mut index = log.overhang(tail_bytes);
        if raft.state == StateRole::Leader {
            let alive = |id, progress: &Progress| progress.recent_active || self.heard.contains(id);
            let needed = raft.prs().iter().filter(|(id, progress)| **id != raft.id && alive(id, progress));
            let needed = needed.map(|(_, progress)| match progress.state {
                ProgressState::Snapshot => progress.pending_snapshot,
                _ => progress.matched,
            });
            let at_least = log.overhang(held_bytes);
            index = needed.min().map_or(index, |needed| index.min(needed).max(at_least));
        }
        self.raft.mut_store().cut(index).then_some(Index(index))
    }

    /// The last attempts to send to this member failed.
    pub fn unreachable(&mut self, member: MemberId) {
        self.raft.report_unreachable(member.0);
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
