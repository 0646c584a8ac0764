//! The multi-version store: every key's history, and the history of all keys by revision.
//!
//! Two persistent (structure-sharing) ordered maps hold the same records: `keys` the newest version of each key,
//! `log` every version by its position. A clone of the [`Store`] is a consistent view that costs a few pointers, so
//! readers work on a clone and writers never wait for them. Beyond the bytes of key and value a version takes about 70.
//!
//! ```text
//! keys:  a -> (4,0)      log: (2,0) a=1   <-.
//!        b -> (3,0)t          (3,0) b dead  | previous
//!                             (4,0) a=2   --'
//! ```
//!
//! Invariants:
//! - A record's `previous` is the version of the same key before it. If the log no longer has it, that version was
//!   compacted away, or there was none.
//! - `keys` holds exactly the newest record of every key that `log` knows.
//! - `compacted <= revision`; every record older than `compacted` is the newest of its key up to there.
mod compact;
mod load;
mod range;
mod record;
mod row;
mod sorted;
mod write;

use std::{ops::Bound, sync::Arc};

use self::sorted::{ByKey, ByPosition, Sorted};
pub use load::Loader;
pub use range::{KeyRange, Order, RangeEnd, RangeOptions, RangeResult, SortTarget};
pub use record::{Fields, Record};
pub use row::{RowKey, RowValue};
pub use write::Writer;

use crate::{error::Refusal, types::Revision};

/// Where a version stands in history: its transaction, and its place among that transaction's changes.
/// Packed, for there are two in every version that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(Rust, packed(4))]
pub struct Position {
    pub main: i64,
    pub sub: u32,
}

/// A key's bytes, where they outlive the version they are from.
pub type Key = Arc<[u8]>;

impl Position {
    pub const fn start_of(revision: Revision) -> Position {
        Position { main: revision.0, sub: 0 }
    }
}

/// See the module's head. Cloning is cheap; a clone is a read-only view by convention.
#[derive(Debug, Clone)]
pub struct Store {
    keys: Sorted<ByKey>,
    log: Sorted<ByPosition>,
    revision: Revision,
    compacted: Revision,
    bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            keys: Sorted::default(),
            log: Sorted::default(),
            revision: Revision(1),
            compacted: Revision(0),
            bytes: 0,
        }
    }
}

impl Store {
    /// The revision of the last transaction that changed something; 1 when none has.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Reads below this revision are refused; 0 when nothing was ever compacted.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Bytes of all versions held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keys known, those with nothing but a deletion among them.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// The key's newest version, unless it is deleted.
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.keys.get(key).filter(|record| !record.is_tombstone())
    }

    /// The key's version before the transaction that wrote `record`, if it is still known and was not a deletion.
    pub fn before(&self, record: &Record) -> Option<&Record> {
        let mut before = self.log.get(&record.previous())?;
        // The transaction may have written the key more than once.
        while before.modified() == record.modified() {
            before = self.log.get(&before.previous())?;
        }
        Some(before).filter(|before| !before.is_tombstone())
    }

    /// Every version from `first` on, in the order of history.
    pub fn history(&self, first: Revision) -> impl Iterator<Item = &Record> {
        self.log.range(Bound::Included(Position::start_of(first)), Bound::Unbounded)
    }

    /// Every version after `position`, in the order of history.
    pub fn versions_after(&self, position: Position) -> impl Iterator<Item = &Record> {
        self.log.range(Bound::Excluded(position), Bound::Unbounded)
    }

    /// Whether `revision` can be read: 0 and below mean "now".
    pub fn check_revision(&self, revision: Revision) -> Result<(), Refusal> {
        if revision > self.revision {
            Err(Refusal::FutureRevision)
        } else if revision.0 > 0 && revision < self.compacted {
            Err(Refusal::Compacted)
        } else {
            Ok(())
        }
    }

    /// Checks the invariants in the module's head; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.compacted <= self.revision);
        let mut newest = std::collections::BTreeMap::new();
        let mut bytes = 0;
        self.keys.check();
        self.log.check();
        for record in self.log.iter() {
            assert!(record.previous() < *record.position());
            bytes += record.stored_bytes();
            if let Some(before) = newest.insert(record.key(), record) {
                assert_eq!(*before.position(), record.previous(), "the chain of {record:?} has a gap");
                assert!(record.modified() > self.compacted, "{record:?} should have compacted its predecessor");
            }
        }
        assert_eq!(bytes, self.bytes);
        assert!(newest.into_values().eq(self.keys.iter()), "keys must hold the newest of each chain");
    }
}

#[cfg(test)]
mod tests;
