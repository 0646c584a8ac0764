//! The raft log in memory: what raft-rs reads back while the shell writes it to disk.
//!
//! Only a tail of the log is held. What comes before it is in the machine, whose state stands in for it: a follower
//! that needs more than the tail gets the state instead.
use std::collections::VecDeque;

use bytes::Bytes;
use raft::{
    Error, GetEntriesContext, RaftState, Result, Storage, StorageError,
    eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata},
};

/// Invariants: entries are contiguous, the first follows `before`; terms never go down; `bytes` are theirs.
#[derive(Debug, Default)]
pub struct Log {
    /// The position right before the first entry, index and term: (0, 0), or where the log was cut.
    before: (u64, u64),
    entries: VecDeque<Slot>,
    bytes: u64,
    pub hard_state: HardState,
    pub conf_state: ConfState,
    /// What the machine has applied, index and term: a snapshot would be of this.
    pub applied: (u64, u64),
}

impl Log {
    /// An empty log that goes on after this index and term.
    pub fn after(before: (u64, u64)) -> Log {
        Log { before, applied: before, ..Log::default() }
    }

    /// Bytes of the entries that are held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

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
        let kept = (first - self.first()) as usize;
        self.bytes -= self.entries.iter().skip(kept).map(Slot::bytes).sum::<u64>();
        self.entries.truncate(kept);
        // Grows by a quarter, not by doubling: this is most of what a busy node holds.
        if self.entries.len() + entries.len() > self.entries.capacity() {
            self.entries.reserve_exact(entries.len() + self.entries.len() / 4);
        }
        for entry in entries {
            let slot = Slot::from(entry);
            self.bytes += slot.bytes();
            self.entries.push_back(slot);
        }
    }

    /// Whether an entry that is held, after the one index and up to the other, asks for a change of the membership.
    pub fn has_change(&self, after: u64, last: u64) -> bool {
        let [from, to] = [after, last].map(|index| index.clamp(self.before.0, self.last()) - self.before.0);
        let mut slots = self.entries.range(from as usize..to.max(from) as usize);
        slots.any(|slot| slot.kind == EntryType::EntryConfChange)
    }

    /// Forgets everything: the log goes on after a snapshot.
    pub fn restart_after(&mut self, metadata: &SnapshotMetadata) {
        (self.before, self.entries, self.bytes) = ((metadata.index, metadata.term), VecDeque::new(), 0);
        self.conf_state = metadata.get_conf_state().clone();
    }

    /// The last index that must go for the rest to fit into so many bytes, of those that are applied; at most the position
    /// before the log if all fits.
    pub fn overhang(&self, bytes_max: u64) -> u64 {
        let (mut bytes, mut index) = (self.bytes, self.before.0.min(self.applied.0));
        // A restart may have far more to apply than may stay, and this is asked again and again.
        let applied = self.applied.0.saturating_sub(self.before.0) as usize;
        for slot in self.entries.iter().take(applied) {
            if bytes <= bytes_max {
                break;
            }
            bytes -= slot.bytes();
            index += 1;
        }
        index
    }

    /// Forgets the entries up to this one. Whether there was anything to forget.
    pub fn cut(&mut self, index: u64) -> bool {
        assert!(index <= self.applied.0, "entry {index} is not applied yet");
        if index <= self.before.0 {
            return false;
        }
        let count = (index - self.before.0) as usize;
        let term = self.entries[count - 1].term;
        self.bytes -= self.entries.drain(..count).map(|slot| slot.bytes()).sum::<u64>();
        self.before = (index, term);
        // What a burst needed is not kept for ever.
        if self.entries.capacity() > 4 * self.entries.len() + 1_024 {
            self.entries.shrink_to_fit();
        }
        true
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
    fn bytes(&self) -> u64 {
        bytes_of(&self.data)
    }

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
            size += slot.bytes();
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

    /// Its metadata only: the state itself does not pass through raft-rs.
    fn snapshot(&self, _: u64, _: u64) -> Result<Snapshot> {
        if self.applied.0 == 0 {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = self.applied;
        metadata.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

/// An entry's size on the wire, closely enough for bounds.
pub fn entry_bytes(entry: &Entry) -> u64 {
    bytes_of(&entry.data)
}

fn bytes_of(data: &Bytes) -> u64 {
    data.len() as u64 + 24
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64, size: usize) -> Vec<Entry> {
        indexes.map(|index| Entry { index, term, data: vec![0; size].into(), ..Entry::default() }).collect()
    }

    fn log() -> Log {
        let mut log = Log::after((4, 2));
        log.append(entries(5..=8, 2, 76)); // 100 bytes each
        log.append(entries(7..=10, 3, 176)); // replaces two; 200 bytes each
        log.applied = (9, 3);
        log
    }

    #[test]
    fn bytes_follow_what_is_replaced_and_cut() {
        let mut log = log();
        assert_eq!((log.bytes, log.last(), log.first()), (1_000, 10, 5));
        assert_eq!([1_000, 999, 700, 1].map(|max| log.overhang(max)), [4, 5, 7, 9]);
        assert!(log.cut(7));
        assert_eq!((log.bytes, log.before, log.last()), (600, (7, 3), 10));
        assert!(!log.cut(6));
        assert_eq!(log.term(7), Ok(3));
        assert_eq!(log.term(6), Err(Error::Store(StorageError::Compacted)));
        log.append(entries(8..=8, 4, 0));
        assert_eq!((log.bytes, log.last()), (24, 8));
    }

    #[test]
    fn changes_are_found_among_what_is_held() {
        let mut log = log();
        let mut change = Entry { index: 8, term: 3, ..Entry::default() };
        change.set_entry_type(EntryType::EntryConfChange);
        log.append(vec![change]);
        for (after, last, found) in
            [(7, 8, true), (0, 8, true), (7, 99, true), (8, 99, false), (5, 7, false), (9, 3, false)]
        {
            assert_eq!(log.has_change(after, last), found, "{after} to {last}");
        }
        log.cut(8);
        assert!(!log.has_change(0, 99));
    }

    #[test]
    #[should_panic(expected = "entry 10 is not applied yet")]
    fn what_is_not_applied_is_never_cut() {
        log().cut(10);
    }

    #[test]
    fn after_a_snapshot_nothing_of_before_is_left() {
        let mut log = log();
        let mut metadata = SnapshotMetadata { index: 20, term: 5, ..Default::default() };
        metadata.mut_conf_state().voters = vec![1, 2];
        log.restart_after(&metadata);
        assert_eq!((log.bytes, log.first(), log.last(), log.term(20)), (0, 21, 20, Ok(5)));
        assert_eq!(log.conf_state.voters, [1, 2]);
    }
}
