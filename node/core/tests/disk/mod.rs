//! A member's files on a disk that takes its time: batches are handed over, become durable in order, and are lost from
//! the last one back when the power goes.
//!
//! What a member starts from is a state and a log, which begins at the state or earlier. Two things move the state on:
//! a checkpoint, which the shell writes whenever it likes and then marks in the log, and a state that came from the
//! leader, which the batch that takes it in puts into its place. If the log does not hold the mark's very entry, it is
//! of another history and goes: a conflicting tail must not rise again.
#![allow(dead_code, reason = "two tests share it, and each uses a part")]
use std::collections::{BTreeMap, VecDeque};

use detcd_core::{
    format::wal::HardState,
    machine::hash_bytes,
    replica::{Persist, Recovered, SnapshotMark, State},
    types::{Index, PersistId, Term},
};
use raft::eraftpb::{Entry, EntryType};

/// An entry's term, and what the log up to it comes to: equal stamps, equal logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    pub term: Term,
    pub chain: u64,
}

impl Stamp {
    /// `hash` is of the entry's type and data, as `NodeEvent::Appended` gives it.
    pub fn after(before: &Stamp, term: Term, hash: u64) -> Stamp {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&before.chain.to_le_bytes());
        bytes[8..16].copy_from_slice(&term.0.to_le_bytes());
        bytes[16..].copy_from_slice(&hash.to_le_bytes());
        Stamp { term, chain: hash_bytes(&bytes) }
    }
}

/// A log, as its entries' stamps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// The index right before the first entry, and its stamp.
    before: (Index, Stamp),
    stamps: Vec<Stamp>,
}

impl Log {
    /// An empty one that goes on after this entry.
    pub fn after(index: Index, stamp: Stamp) -> Log {
        Log { before: (index, stamp), stamps: Vec::new() }
    }

    pub fn before(&self) -> Index {
        self.before.0
    }

    pub fn last(&self) -> Index {
        Index(self.before.0.0 + self.stamps.len() as u64)
    }

    /// Of an entry, or of the one before the first.
    pub fn stamp(&self, index: Index) -> Option<&Stamp> {
        match index.0.checked_sub(self.before.0.0)? {
            0 => Some(&self.before.1),
            at => self.stamps.get(at as usize - 1),
        }
    }

    pub fn stamps(&self) -> impl Iterator<Item = (Index, &Stamp)> + Clone {
        (self.before.0.0 + 1..).map(Index).zip(&self.stamps)
    }

    /// Appends an entry at `index`, in place of what stood there and after it. Returns how many entries that was.
    pub fn put(&mut self, index: Index, term: Term, hash: u64) -> usize {
        let at = (index.0 - self.before.0.0) as usize - 1;
        assert!(at <= self.stamps.len(), "entry {index} leaves a gap after {}", self.last());
        let replaced = self.stamps.len() - at;
        self.stamps.truncate(at);
        self.stamps.push(Stamp::after(self.stamps.last().unwrap_or(&self.before.1), term, hash));
        replaced
    }

    /// Forgets the beginning, up to this entry.
    fn cut(&mut self, index: Index) {
        let stamp = *self.stamp(index).expect("what is cut is there");
        self.stamps.drain(..(index.0 - self.before.0.0) as usize);
        self.before = (index, stamp);
    }
}

enum Write {
    /// With the stamp of the entry that its snapshot stands in for.
    Batch(Persist, Option<Stamp>),
    /// A checkpoint's mark: its file is durable.
    Mark(State),
}

/// Invariants: `log` has a stamp for each of `entries`; `state` is of an entry among them, or of the one before.
#[derive(Default)]
pub struct Disk {
    hard_state: HardState,
    log: Log,
    entries: Vec<Entry>,
    state: State,
    /// States that came from a leader, each in a file named by its index.
    received: BTreeMap<Index, State>,
    writing: VecDeque<Write>,
    /// A checkpoint whose file is being written.
    checkpoint: Option<State>,
    /// A bug put in on purpose: what conflicts with a state that was taken in stays in the log.
    pub keeps_conflicts: bool,
}

impl Disk {
    /// That of a member that was just founded, or of one that knows nothing.
    pub fn new(founding: Recovered) -> Disk {
        assert_eq!(founding.before, (Index(0), Term(0)));
        let mut disk = Disk { hard_state: founding.hard_state, state: founding.state, ..Disk::default() };
        disk.write_entries(founding.entries);
        disk
    }

    /// What a member that starts now reads.
    pub fn durable(&self) -> Recovered {
        let (index, stamp) = self.log.before;
        let (state, entries) = (self.state.clone(), self.entries.clone());
        Recovered { hard_state: self.hard_state, before: (index, stamp.term), entries, state }
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The log as it is durable.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The state from which a member starts.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether this entry is durable, or a state that holds what it did.
    pub fn holds(&self, index: Index, stamp: &Stamp) -> bool {
        index <= self.state.0.applied() || self.log.stamp(index) == Some(stamp)
    }

    /// Changes of the membership in the log that are not known to be committed.
    pub fn open_changes(&self) -> usize {
        let open = |entry: &&Entry| entry.index > self.hard_state.commit.0.max(self.state.0.applied().0);
        self.entries.iter().filter(open).filter(|entry| entry.entry_type == EntryType::EntryConfChange).count()
    }

    /// `stamp` is of the entry that the batch's snapshot stands in for.
    pub fn start(&mut self, persist: Persist, stamp: Option<Stamp>) {
        let mut ids = self.writing.iter().filter_map(|write| match write {
            Write::Batch(persist, _) => Some(persist.id),
            Write::Mark(_) => None,
        });
        assert!(ids.next_back().is_none_or(|last| last < persist.id), "batches are numbered in order");
        assert_eq!(persist.snapshot.is_some(), stamp.is_some());
        self.writing.push_back(Write::Batch(persist, stamp));
    }

    /// Keeps a state that came from the leader, until it is needed or dropped. Whether there is none of this index yet.
    pub fn receive(&mut self, state: &State) -> bool {
        let index = state.0.applied();
        let new = !self.received.contains_key(&index);
        self.received.entry(index).or_insert_with(|| state.clone());
        new
    }

    /// States that came and are neither taken in nor dropped.
    pub fn received(&self) -> usize {
        self.received.len()
    }

    pub fn drop_received(&mut self, index: Index) {
        assert!(self.received.remove(&index).is_some(), "the state of {index} is not there to be dropped");
    }

    /// Whether the log says, durable or not yet, that what the state holds is committed.
    pub fn covers(&self, state: &State) -> bool {
        let batches = self.writing.iter().rev().filter_map(|write| match write {
            Write::Batch(persist, _) => persist.hard_state,
            Write::Mark(_) => None,
        });
        let newest = batches.chain([self.hard_state]).next().expect("there is the durable one");
        state.0.applied() <= newest.commit
    }

    /// Begins to write the state to a file, or if one is being written, marks it in the log: it is done.
    pub fn checkpoint(&mut self, state: State) {
        match self.checkpoint.take() {
            None => self.checkpoint = Some(state),
            Some(written) => self.writing.push_back(Write::Mark(written)),
        }
    }

    /// The log before the state is not needed any more, but for `keep` entries. Returns how many go.
    pub fn release(&mut self, keep: u64) -> usize {
        let count = self.state.0.applied().0.saturating_sub(self.log.before().0 + keep) as usize;
        self.log.cut(Index(self.log.before().0 + count as u64));
        self.entries.drain(..count).count()
    }

    /// Writes under way whose end is waited for.
    pub fn waited_for(&self) -> usize {
        self.writing.iter().filter(|write| is_waited_for(write)).count()
    }

    /// The next `count` writes that are waited for become durable, and all before them. Returns the last batch's id.
    pub fn complete(&mut self, count: usize) -> Option<PersistId> {
        let mut last = None;
        for _ in 0..count.min(self.waited_for()) {
            while let Some(write) = self.writing.pop_front() {
                let done = is_waited_for(&write);
                if let Write::Batch(Persist { id, sync: true, .. }, _) = &write {
                    last = Some(*id);
                }
                self.write(write);
                if done {
                    break;
                }
            }
        }
        last
    }

    /// The power goes. Of what is under way, `survived` writes became durable all the same, and `torn` entries of the
    /// one after them; the rest is gone.
    pub fn fail(&mut self, survived: usize, torn: usize) {
        let mut lost = std::mem::take(&mut self.writing).into_iter();
        lost.by_ref().take(survived).for_each(|write| self.write(write));
        if let Some(Write::Batch(Persist { entries, snapshot: None, .. }, _)) = lost.next() {
            self.write_entries(entries.into_iter().take(torn).collect());
        }
        (self.received, self.checkpoint) = (BTreeMap::new(), None);
    }

    /// The last entries are lost although they were durable.
    pub fn lose(&mut self, count: usize) {
        let kept = self.entries.len() - count;
        self.entries.truncate(kept);
        self.log.stamps.truncate(kept);
        self.hard_state.commit = self.hard_state.commit.min(self.log.last());
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Batch(persist, stamp) => {
                if let Some(mark) = persist.snapshot {
                    let hard_state = persist.hard_state.expect("what is taken in is committed");
                    assert!(hard_state.commit >= mark.index, "{mark:?} is ahead of {hard_state:?}");
                    self.take_in(&mark, stamp.expect("it came with the mark"));
                }
                self.write_entries(persist.entries);
                self.hard_state = persist.hard_state.unwrap_or(self.hard_state);
            }
            // One that was received meanwhile may be newer.
            Write::Mark(state) if state.0.applied() <= self.state.0.applied() => {}
            Write::Mark(state) => {
                let stamp = self.log.stamp(state.0.applied()).expect("what is applied is in the log");
                assert_eq!(stamp.term, state.0.applied_term());
                self.state = state;
            }
        }
    }

    fn take_in(&mut self, mark: &SnapshotMark, stamp: Stamp) {
        let state = self.received.remove(&mark.index);
        self.state = state.unwrap_or_else(|| panic!("the state for {mark:?} is not there"));
        let machine = &self.state.0;
        assert_eq!((machine.applied(), machine.applied_term()), (mark.index, mark.term));
        assert_eq!(machine.membership.configuration(), mark.configuration);
        let kept = match self.log.stamp(mark.index) {
            Some(own) if own.term == mark.term || self.keeps_conflicts => self.log.last().0 - mark.index.0,
            _ => 0,
        };
        let tail = self.entries.split_off(self.entries.len() - kept as usize);
        (self.log, self.entries) = (Log::after(mark.index, stamp), Vec::new());
        self.write_entries(tail);
    }

    fn write_entries(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let hash = hash_bytes(&entry.data) ^ entry.entry_type as u64;
            self.log.put(Index(entry.index), Term(entry.term), hash);
            self.entries.truncate((entry.index - self.log.before().0) as usize - 1);
            self.entries.push(entry);
        }
    }
}

fn is_waited_for(write: &Write) -> bool {
    match write {
        Write::Batch(persist, _) => persist.sync,
        Write::Mark(_) => true,
    }
}
