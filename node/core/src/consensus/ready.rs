//! What raft has ready, as outputs in the order that is safe, and what becomes of it once it is durable.
use std::mem::take;

use raft::eraftpb::{self, Entry, EntryType, MessageType};

use super::{
    Consensus, Message, appends,
    log::entry_bytes,
    members::configuration,
    reads::{parse_id, take_number_off},
};
use crate::{
    event::{NodeEvent, Role},
    format::wal::HardState,
    limits,
    machine::hash_bytes,
    replica::{Output, Persist, SnapshotMark},
    types::{Index, MemberId, PersistId, Term},
};

/// A ready that waits for the disk.
pub(super) struct Held {
    /// The batch that must be durable first.
    until: PersistId,
    /// raft-rs's number of the ready.
    ready: u64,
    messages: Vec<eraftpb::Message>,
}

/// A batch on its way to the disk.
pub(super) struct Writing {
    persist: PersistId,
    pub since_tick: u64,
    /// Bytes of the entries that were handed to the disk up to and with it.
    written_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub role: Role,
    pub term: Term,
    pub leader: MemberId,
}

/// What a ready brought for the machine.
#[derive(Default)]
pub struct Progress {
    pub committed: Vec<Entry>,
    /// Linearizable reads, by the id they were asked with, and the index from which they may be served.
    pub reads: Vec<(u64, Index)>,
    /// For followers too far behind: each is to get the machine's present state with its message.
    pub snapshots: Vec<Message>,
}

impl Consensus {
    /// The disk holds this batch and all before it.
    pub fn persisted(&mut self, persist: PersistId, out: &mut Vec<Output>) {
        assert!(persist > self.durable && persist <= self.persist, "{persist} was never handed out, or twice");
        self.durable = persist;
        while let Some(writing) = self.writing.pop_front_if(|writing| writing.persist <= persist) {
            self.durable_bytes = writing.written_bytes;
        }
        self.installing.take_if(|installing| *installing <= persist);
        self.release(out);
    }

    /// Whether the entries that are on their way to the disk, or will be after this turn, leave room for more.
    pub(super) fn has_room_to_write(&self) -> bool {
        let unstable = self.raft.raft.raft_log.unstable.entries_size as u64;
        self.written_bytes - self.durable_bytes + unstable < limits::UNWRITTEN_BYTES_MAX
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
        let reads = reads.filter_map(|read| Some((parse_id(&read.request_ctx)?, Index(read.index)))).collect();
        let mut messages = ready.take_messages();
        messages.extend(ready.take_persisted_messages());
        let (snapshots, mut messages) = self.part_snapshots(messages);
        let speaks = self.may_speak(&ready);
        if speaks {
            send(take(&mut messages), out);
        }
        self.persist(&mut ready, out);
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
        // Only who leads and may say so sends its state. Whoever was to get it asks again.
        let (snapshots, unsent) = if speaks { (snapshots, Vec::new()) } else { (Vec::new(), snapshots) };
        unsent.iter().for_each(|message| self.snapshot_sent(message.to(), false));
        self.note(out);
        self.release(out);
        Some(Progress { committed, reads, snapshots })
    }

    /// Whether what this member has to say may leave before the ready is durable: a leader's may, for its entries are
    /// not promised by it. But a sole voter leads as soon as it stands for election, and its learners must not hear of
    /// a term that may be lost. And whoever hears that a change is committed may act on it, and be gone for good: that
    /// must not be lost either.
    fn may_speak(&self, ready: &raft::Ready) -> bool {
        let new_term = ready.hs().is_some_and(|state| (Term(state.term), MemberId(state.vote)) != self.promised);
        let settled = self.durable >= self.vote.max(self.change);
        self.role() == Role::Leader && settled && !new_term && !self.decides_change()
    }

    /// Whether a change was committed since the disk was last told of a commit index. Not only among what the ready
    /// brings for the machine: that may end before the commit index, which is in every message.
    fn decides_change(&self) -> bool {
        self.raft.store().has_change(self.handed.commit.0, self.committed().0)
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
        let mut entries = ready.take_entries();
        if let Some(metadata) = &snapshot {
            let (index, term) = (Index(metadata.index), Term(metadata.term));
            out.push(Output::Note(NodeEvent::LogRestarted { index, term }));
        }
        for entry in &entries {
            let (index, term) = (Index(entry.index), Term(entry.term));
            out.push(Output::Note(NodeEvent::Appended { index, term, hash: hash_entry(entry) }));
            if entry.entry_type == EntryType::EntryConfChange {
                out.push(Output::Note(NodeEvent::ChangeAppended { index }));
            }
        }
        let log = self.raft.mut_store();
        if let Some(metadata) = &snapshot {
            log.restart_after(metadata);
        }
        log.append(entries.clone());
        if let Some(state) = ready.hs() {
            log.hard_state = state.clone();
        }
        let decides = self.decides_change();
        // With a snapshot the commit index must be durable too, or the log would begin behind what is committed.
        let writes_state = ready.hs().is_some() || snapshot.is_some() || decides;
        let raft = &self.raft.raft;
        let state = HardState { term: Term(raft.term), vote: MemberId(raft.vote), commit: self.committed() };
        if entries.is_empty() && !writes_state {
            return;
        }
        let snapshot = snapshot.map(|metadata| SnapshotMark {
            index: Index(metadata.index),
            term: Term(metadata.term),
            configuration: configuration(metadata.get_conf_state()),
        });
        while let Some(at) = self.second_open_change(&entries) {
            let rest = entries.split_off(at);
            let commit = state.commit.min(Index(rest[0].index - 1));
            let (hard_state, entries) = (Some(HardState { commit, ..state }), std::mem::replace(&mut entries, rest));
            self.hand_over(Persist { id: PersistId(0), hard_state, entries, snapshot: None, sync: false }, out);
        }
        let hard_state = writes_state.then_some(state);
        let (id, sync) = (PersistId(0), ready.must_sync() || decides);
        self.hand_over(Persist { id, hard_state, entries, snapshot, sync }, out);
        if decides {
            self.change = self.persist;
        }
    }

    /// Of the entries the first change before which it must be on record that the one before it is committed. A log that
    /// holds two that may not be committed, as a torn write leaves it, belongs to a member whose quorums are two changes
    /// old, and need not meet those of the others.
    fn second_open_change(&self, entries: &[Entry]) -> Option<usize> {
        let first = entries.iter().find(|entry| is_change(entry))?.index;
        let handed = self.handed.commit.0;
        let mut open = self.raft.store().has_change(handed, first - 1);
        entries.iter().position(|entry| {
            is_change(entry) && std::mem::replace(&mut open, entry.index > handed) && self.committed().0 > handed
        })
    }

    /// To the disk, under the next number.
    fn hand_over(&mut self, mut batch: Persist, out: &mut Vec<Output>) {
        self.persist.0 += 1;
        batch.id = self.persist;
        self.handed = batch.hard_state.unwrap_or(self.handed);
        self.written_bytes += batch.entries.iter().map(entry_bytes).sum::<u64>();
        if batch.snapshot.is_some() {
            self.installing = Some(self.persist);
        }
        if batch.sync {
            let (persist, since_tick, written_bytes) = (self.persist, self.ticks, self.written_bytes);
            self.writing.push_back(Writing { persist, since_tick, written_bytes });
            // What was handed over without a sync before becomes durable with it.
            let HardState { term, vote, .. } = self.handed;
            if (term, vote) != self.promised {
                (self.promised, self.vote) = ((term, vote), self.persist);
            }
        }
        let last = batch.entries.last().map(|entry| (Index(entry.index), Term(entry.term)));
        out.push(Output::Note(NodeEvent::PersistStarted {
            persist: self.persist,
            term: Term(self.raft.raft.term),
            vote: MemberId(self.raft.raft.vote),
            last,
            snapshot: batch.snapshot.as_ref().map(|mark| (mark.index, mark.term)),
        }));
        out.push(Output::Persist(batch));
    }

    fn note(&mut self, out: &mut Vec<Output>) {
        out.extend(self.notes.drain(..).map(Output::Note));
        let commit = self.committed();
        if commit > self.commit {
            self.commit = commit;
            out.push(Output::Note(NodeEvent::Committed { index: commit }));
        }
    }
}

fn send(mut messages: Vec<eraftpb::Message>, out: &mut Vec<Output>) {
    messages.iter_mut().for_each(take_number_off);
    out.extend(appends::merge(messages).into_iter().map(|message| Output::Send(Message(message))));
}

/// What tells an entry from another of the same index and term.
pub fn hash_entry(entry: &Entry) -> u64 {
    hash_bytes(&entry.data) ^ entry.entry_type as u64
}

fn is_change(entry: &Entry) -> bool {
    entry.entry_type == EntryType::EntryConfChange
}
