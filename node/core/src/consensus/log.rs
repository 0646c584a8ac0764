//! The raft log in memory: what raft-rs reads back while the shell writes it to disk.
use std::collections::VecDeque;

use bytes::Bytes;
use raft::{
    Error, GetEntriesContext, RaftState, Result, Storage, StorageError,
    eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot},
};

/// Invariants: entries are contiguous, the first follows `before`; terms never go down.
#[derive(Debug, Default)]
pub struct Log {
    /// The position right before the first entry: (0, 0), or where the log was cut.
    before: (u64, u64),
    entries: VecDeque<Slot>,
    pub hard_state: HardState,
    pub conf_state: ConfState,
}

impl Log {
    pub fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    fn first(&self) -> u64 {
        self.before.0 + 1
    }

    /// Appends; what stood at or after the first new index goes.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        assert!(first >= self.first() && first <= self.last() + 1, "{first} leaves a gap after {}", self.last());
        self.entries.truncate((first - self.first()) as usize);
        // Grows by a quarter, not by doubling: this is most of what a busy node holds.
        if self.entries.len() + entries.len() > self.entries.capacity() {
            self.entries.reserve_exact(entries.len() + self.entries.len() / 4);
        }
        self.entries.extend(entries.into_iter().map(Slot::from));
    }
}

/// An entry without what follows from its place, or is never set: half the size.
#[derive(Debug)]
struct Slot {
    term: u64,
    data: Bytes,
    kind: EntryType,
}

impl From<Entry> for Slot {
    fn from(entry: Entry) -> Slot {
        debug_assert!(entry.context.is_empty() && !entry.sync_log, "etcd knows neither");
        Slot { term: entry.term, data: entry.data, kind: entry.entry_type }
    }
}

impl Slot {
    fn entry(&self, index: u64) -> Entry {
        let mut entry = Entry::default();
        entry.set_entry_type(self.kind);
        (entry.index, entry.term, entry.data) = (index, self.term, self.data.clone());
        entry
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(&self, low: u64, high: u64, max: impl Into<Option<u64>>, _: GetEntriesContext) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "raft asks for {high}, the log ends at {}", self.last());
        let max = max.into().unwrap_or(u64::MAX);
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut size = 0;
        let slots = (low..).zip(self.entries.range(range)).take_while(|(index, slot)| {
            size += bytes_of(&slot.data);
            *index == low || size <= max
        });
        Ok(slots.map(|(index, slot)| slot.entry(index)).collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let slot = self.entries.get((index - self.first()) as usize);
        slot.map(|slot| slot.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// The log is never cut yet, so every follower can be fed from it.
    fn snapshot(&self, _: u64, _: u64) -> Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// An entry's size on the wire, closely enough for bounds.
pub fn entry_bytes(entry: &Entry) -> u64 {
    bytes_of(&entry.data)
}

fn bytes_of(data: &Bytes) -> u64 {
    data.len() as u64 + 24
}
