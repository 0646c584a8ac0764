//! Forgetting history, and the hash over what is left.
use std::{collections::BTreeSet, ops::Bound};

use super::{Position, Record, Store};
use crate::{error::Refusal, types::Revision};

impl Store {
    /// Forgets what no read at `revision` or later can see: of each key its versions before the newest one up to
    /// `revision`, and that one too if it is a deletion before `revision`. (A deletion at `revision` itself stays,
    /// so that a watch which starts there sees it.)
    ///
    /// Costs what happened since the last compaction, not what is stored: only a version in that window can outdate
    /// another.
    pub fn compact(&mut self, revision: Revision) -> Result<(), Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        // The last compaction may have kept deletions at its own revision: begin there.
        let first = Bound::Included(Position::start_of(self.compacted));
        let recent: Vec<_> = self.log.range(first, up_to(revision)).cloned().collect();
        for record in recent {
            self.forget(record.previous());
            if record.is_tombstone() && record.modified() < revision {
                self.forget(*record.position());
                if self.keys.get(record.key()).is_some_and(|newest| newest.position() == record.position()) {
                    self.keys.remove(record.key());
                }
            }
        }
        self.compacted = revision;
        Ok(())
    }

    fn forget(&mut self, position: Position) {
        if let Some(record) = self.log.remove(&position) {
            self.bytes -= record.stored_bytes();
        }
    }

    /// etcd's HashKV: CRC-32C over the history up to `revision`, as its backend stores it. What is left from before
    /// the compaction counts only as far as a compaction at `revision` would leave it too.
    pub fn hash(&self, revision: Revision) -> Result<u32, Refusal> {
        self.check_revision(revision)?;
        let last = if revision.0 <= 0 { self.revision } else { revision };
        let rows = || self.log.range(Bound::Unbounded, up_to(last));
        let first = Position::start_of(Revision(self.compacted.0 + 1));
        let window = rows().rev().take_while(|record| *record.position() >= first);
        let outdated: BTreeSet<_> = window.map(|record| record.previous()).filter(|old| *old < first).collect();
        // etcd leaves nothing out when a compaction would leave nothing.
        let spare = outdated.is_empty() || !self.any_live_at(last);
        let counts = |record: &&Record| {
            let dead = record.is_tombstone() && record.modified() == self.compacted;
            !dead && (spare || !outdated.contains(record.position()))
        };
        let mut value = Vec::new();
        Ok(rows().filter(counts).fold(crc32c::crc32c(b"key"), |crc, record| {
            value.clear();
            record.put_row_value(&mut value);
            crc32c::crc32c_append(crc32c::crc32c_append(crc, &record.row_key()), &value)
        }))
    }

    /// Whether any key lives at `revision`. Looks back to the newest version that is none's deletion.
    fn any_live_at(&self, revision: Revision) -> bool {
        let mut dead = BTreeSet::new();
        let mut newest = self.log.range(Bound::Unbounded, up_to(revision)).rev();
        newest.any(|record| {
            if record.is_tombstone() {
                dead.insert(record.key());
            }
            !dead.contains(record.key())
        })
    }
}

/// The end of what happened at `revision`.
fn up_to(revision: Revision) -> Bound<Position> {
    Bound::Excluded(Position::start_of(Revision(revision.0 + 1)))
}
