//! A member's log on a disk that takes its time: batches are handed over, become durable in order, and are lost from
//! the last one back when the power goes.
use std::collections::VecDeque;

use detcd_core::{
    machine::hash_bytes,
    replica::{Persist, Recovered},
    types::{Index, PersistId, Term},
};
use raft::eraftpb::Entry;

/// An entry's term, and what the log up to it comes to: equal stamps, equal logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub term: Term,
    pub chain: u64,
}

impl Stamp {
    /// `hash` is of the entry's type and data, as `NodeEvent::Appended` gives it.
    pub fn after(before: Option<&Stamp>, term: Term, hash: u64) -> Stamp {
        let before = before.map_or(0, |stamp| stamp.chain);
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&before.to_le_bytes());
        bytes[8..16].copy_from_slice(&term.0.to_le_bytes());
        bytes[16..].copy_from_slice(&hash.to_le_bytes());
        Stamp { term, chain: hash_bytes(&bytes) }
    }
}

/// Invariant: `stamps` has one for each durable entry.
pub struct Disk {
    durable: Recovered,
    stamps: Vec<Stamp>,
    writing: VecDeque<Persist>,
}

impl Disk {
    pub fn new(durable: Recovered) -> Disk {
        let entries = durable.entries;
        let durable = Recovered { entries: Vec::new(), ..durable };
        let mut disk = Disk { durable, stamps: Vec::new(), writing: VecDeque::new() };
        disk.write_entries(entries);
        disk
    }

    /// What a member that starts now reads.
    pub fn durable(&self) -> &Recovered {
        &self.durable
    }

    pub fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    pub fn stamp(&self, index: Index) -> Option<&Stamp> {
        self.stamps.get((index.0 as usize).checked_sub(1)?)
    }

    pub fn start(&mut self, persist: Persist) {
        assert!(self.writing.back().is_none_or(|last| last.id < persist.id), "batches are numbered in order");
        self.writing.push_back(persist);
    }

    /// Batches under way whose end is waited for.
    pub fn waited_for(&self) -> usize {
        self.writing.iter().filter(|persist| persist.sync).count()
    }

    /// The next `count` batches that are waited for become durable, and all before them. Returns the last one's id.
    pub fn complete(&mut self, count: usize) -> Option<PersistId> {
        let mut last = None;
        for _ in 0..count.min(self.waited_for()) {
            while let Some(persist) = self.writing.pop_front() {
                let (id, sync) = (persist.id, persist.sync);
                self.write(persist);
                if sync {
                    last = Some(id);
                    break;
                }
            }
        }
        last
    }

    /// The power goes. Of what is under way, `survived` batches became durable all the same, and `torn` entries of the
    /// one after them; the rest is gone.
    pub fn fail(&mut self, survived: usize, torn: usize) {
        let mut lost = std::mem::take(&mut self.writing).into_iter();
        lost.by_ref().take(survived).for_each(|persist| self.write(persist));
        let torn = lost.next().map(|persist| persist.entries.into_iter().take(torn).collect());
        self.write_entries(torn.unwrap_or_default());
    }

    fn write(&mut self, persist: Persist) {
        self.write_entries(persist.entries);
        if let Some(state) = persist.hard_state {
            self.durable.hard_state = state;
        }
    }

    fn write_entries(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|entry| entry.index as usize) else { return };
        assert!(first >= 1 && first <= self.stamps.len() + 1, "entry {first} leaves a gap in the log on disk");
        self.durable.entries.truncate(first - 1);
        self.stamps.truncate(first - 1);
        for (entry, index) in entries.into_iter().zip(first as u64..) {
            assert_eq!(entry.index, index, "a batch is contiguous");
            let hash = hash_bytes(&entry.data) ^ entry.entry_type as u64;
            self.stamps.push(Stamp::after(self.stamps.last(), Term(entry.term), hash));
            self.durable.entries.push(entry);
        }
    }
}
