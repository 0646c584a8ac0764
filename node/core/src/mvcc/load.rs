//! Building a store at once from the rows of etcd's bucket `key`, as if the log behind them had been applied.
//!
//! The rows tell less than a log would: not which version of a key a version replaced. So the rows are sorted by key,
//! which puts each key's versions side by side, and the links follow. Sorting, rather than looking each row's key up,
//! costs no more, gives the keys in the order in which a map is built fast, and no choice of keys makes it slow.
//!
//! Invariants:
//! - After the last compaction a key's history must be whole: each version continues the one before it. Of what is
//!   older, rows that a compaction should have removed may be left over, for etcd compacts in the background and may
//!   stop halfway; they are left out here.
use super::{
    Fields, Position, Record, RowKey, RowValue, Store,
    sorted::{Builder, ByKey},
};
use crate::types::Revision;

/// Rows this few are sorted by whole keys.
const RUN_FEW: usize = 16;
/// Bytes of a key that are compared at once.
const HEAD_BYTES: usize = 16;
/// Bytes of common prefix after which rows are sorted by whole keys: bounds the recursion.
const PREFIX_MAX: usize = 1 << 11;

#[derive(Debug, Default)]
pub struct Loader {
    /// In the order of history.
    records: Vec<Record>,
    /// Of each record, by its place: noted while it is at hand, for by the end all of them are far away in memory.
    standings: Vec<Standing>,
    slots: Vec<Slot>,
    /// What all of them take, as [`Record::stored_bytes`] counts.
    bytes: u64,
}

/// A row that does not fit in with the rest.
#[derive(Debug, Clone)]
pub struct Misfit {
    pub row: RowKey,
    pub reason: String,
}

impl Loader {
    /// Rows come in the order of their keys, which is that of history.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let (position, tombstone) = RowKey::parse(key)?;
        if self.standings.last().is_some_and(|last| last.position >= position) {
            return Err("it does not come after the row before it".into());
        }
        let row = RowValue::parse(value)?;
        check(position, tombstone, &row)?;
        let RowValue { key, created, version, value, lease, .. } = row;
        let previous = Position::default();
        let record = Record::new(&Fields { key, value, position, created, version, lease, previous });
        self.slots.push(Slot { head: head(key, 0), at: self.records.len() as u32, length: key.len() as u32 });
        self.standings.push(Standing { position, created, version });
        self.bytes += record.stored_bytes();
        self.records.push(record);
        Ok(())
    }

    /// The store that had these rows after a compaction at `compacted`; 0 if there was none.
    pub fn finish(self, compacted: Revision) -> Result<Store, Misfit> {
        let Loader { records, standings, mut slots, bytes } = self;
        let last = standings.last().map_or(1, |standing| standing.position.main);
        let mut assembly = Assembly {
            outdated: vec![false; records.len()],
            records,
            standings,
            compacted,
            newest: Builder::default(),
        };
        assembly.keys(&mut slots, 0)?;
        drop(slots);
        let Assembly { records, standings, outdated, newest, .. } = assembly;
        drop(standings);
        let mut store = Store { compacted, revision: Revision(last.max(compacted.0)), bytes, ..Store::default() };
        let mut history = Builder::default();
        for (record, outdated) in records.into_iter().zip(outdated) {
            match outdated {
                true => store.bytes -= record.stored_bytes(),
                false => history.push(record),
            }
        }
        (store.keys, store.log) = (newest.finish(), history.finish());
        Ok(store)
    }
}

/// The keys of a store that is being built.
struct Assembly {
    records: Vec<Record>,
    /// These, like what follows, by place among the records.
    standings: Vec<Standing>,
    /// Whether the compaction left it out.
    outdated: Vec<bool>,
    compacted: Revision,
    newest: Builder<ByKey>,
}

/// A record's place in history, and what its key is sorted by.
#[derive(Debug, Clone, Copy)]
struct Slot {
    head: [u64; 2],
    at: u32,
    length: u32,
}

impl Assembly {
    /// Sorts records by key from byte `depth` on, up to which all are equal, and links them key by key. Records of one
    /// key stay in the order of history. The slots' heads are those at `depth`.
    fn keys(&mut self, slots: &mut [Slot], depth: usize) -> Result<(), Misfit> {
        if slots.len() <= RUN_FEW || depth >= PREFIX_MAX {
            slots.sort_by(|a, b| self.key(a).cmp(self.key(b)));
            let mut rest = &slots[..];
            while let [first, ..] = rest {
                let same = rest.iter().take_while(|slot| self.key(slot) == self.key(first)).count();
                self.link(&rest[..same])?;
                rest = &rest[same..];
            }
            return Ok(());
        }
        let end = depth + HEAD_BYTES;
        // A head does not tell whether a key ends in it or goes on with zeros; where it does end, its length does.
        slots.sort_by_key(|slot| (slot.head, slot.length.min(end as u32)));
        for run in slots.chunk_by_mut(|a, b| a.head == b.head && a.length.min(end as u32) == b.length.min(end as u32)) {
            if run.len() == 1 || (run[0].length as usize) < end {
                self.link(run)?;
            } else {
                run.iter_mut().for_each(|slot| slot.head = head(self.key(slot), end));
                self.keys(run, end)?;
            }
        }
        Ok(())
    }

    fn key(&self, slot: &Slot) -> &[u8] {
        self.records[slot.at as usize].key()
    }

    /// Links the versions of one key, and enters the newest that the compaction leaves. Keys come in their order.
    fn link(&mut self, versions: &[Slot]) -> Result<(), Misfit> {
        let mut before: Option<(usize, Standing)> = None;
        for &Slot { at, length, .. } in versions {
            let (at, is_bump) = (at as usize, length == 0);
            let standing = self.standings[at];
            if let Some((_, before)) = &before {
                self.records[at].set_previous(before.position);
            }
            if standing.modified() > self.compacted {
                if !is_bump {
                    standing
                        .check_link(before.map(|(_, standing)| standing))
                        .map_err(|reason| Misfit { row: self.records[at].row_key(), reason: reason.into() })?;
                }
            } else if let Some((at, _)) = before {
                self.outdated[at] = true;
            }
            self.outdated[at] = standing.version == 0 && !is_bump && standing.modified() < self.compacted;
            before = Some((at, standing));
        }
        let (newest, _) = before.expect("a key has versions");
        if !self.outdated[newest] {
            self.newest.push(self.records[newest].clone());
        }
        Ok(())
    }
}

/// What the next version of a key must continue.
#[derive(Debug, Clone, Copy)]
struct Standing {
    position: Position,
    created: Revision,
    /// 0 if it is dead.
    version: i64,
}

impl Standing {
    fn modified(&self) -> Revision {
        Revision(self.position.main)
    }

    /// Whether a version or deletion of a key, which no compaction touched, continues what was before it.
    fn check_link(&self, before: Option<Standing>) -> Result<(), &'static str> {
        let alive = before.filter(|before| before.version > 0);
        if self.version == 0 {
            return if alive.is_some() { Ok(()) } else { Err("it deletes a key that does not exist") };
        }
        let expected = match alive {
            Some(alive) => (alive.created, alive.version.checked_add(1).ok_or("its version cannot be followed")?),
            None => (self.modified(), 1),
        };
        match (self.created, self.version) == expected {
            true => Ok(()),
            false => Err("its creation and version do not continue the key's history"),
        }
    }
}

/// What can be said of a row alone.
fn check(position: Position, tombstone: bool, row: &RowValue<'_>) -> Result<(), String> {
    let rest = RowValue { key: &[], ..*row };
    if tombstone && !row.key.is_empty() {
        return if rest == RowValue::default() { Ok(()) } else { Err("a deletion with more than a key".into()) };
    }
    if row.key.is_empty() {
        let bump = !tombstone && rest == RowValue::default();
        return if bump { Ok(()) } else { Err("a version of no key".into()) };
    }
    let (main, created) = (position.main, row.created.0);
    if row.modified.0 != main {
        Err(format!("it says that it was written at revision {}", row.modified))
    } else if created < 1 || created > main || row.version < 1 || (row.version == 1 && created != main) {
        Err(format!("version {} of a key created at revision {created} cannot be", row.version))
    } else {
        Ok(())
    }
}

/// Bytes of the key, such that numbers compare as bytes do.
fn head(key: &[u8], depth: usize) -> [u64; 2] {
    let rest = &key[depth.min(key.len())..];
    let mut head = [0; HEAD_BYTES];
    let len = rest.len().min(HEAD_BYTES);
    head[..len].copy_from_slice(&rest[..len]);
    let (first, second) = head.split_at(HEAD_BYTES / 2);
    [first, second].map(|half| u64::from_be_bytes(half.try_into().expect("half of a head")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        mvcc::{KeyRange, RangeEnd},
        types::LeaseId,
    };

    fn rows(store: &Store) -> Vec<(Vec<u8>, Vec<u8>)> {
        let row = |record: &Record| {
            let mut value = Vec::new();
            record.put_row_value(&mut value);
            (record.row_key().to_vec(), value)
        };
        store.history(Revision(0)).map(row).collect()
    }

    fn load(rows: &[(Vec<u8>, Vec<u8>)], compacted: Revision) -> Result<Store, String> {
        let mut loader = Loader::default();
        for (key, value) in rows {
            loader.row(key, value)?;
        }
        let store = loader.finish(compacted).map_err(|misfit| misfit.reason)?;
        store.check();
        Ok(store)
    }

    /// Revision, place, kind and rest of a row: "p" for a put with creation and version, "d" for a deletion.
    fn row(main: i64, key: &str, created: i64, version: i64) -> (Vec<u8>, Vec<u8>) {
        let record = Record::new(&Fields {
            key: key.as_bytes(),
            value: if version == 0 { b"" } else { b"v" },
            position: Position { main, sub: 0 },
            created: Revision(created),
            version,
            ..Fields::default()
        });
        let mut value = Vec::new();
        record.put_row_value(&mut value);
        (record.row_key().to_vec(), value)
    }

    #[test]
    fn histories_that_do_not_hold_together_are_refused() {
        #[track_caller]
        fn check(rows: &[(i64, &str, i64, i64)], compacted: i64, expected: Result<usize, &str>) {
            let rows: Vec<_> =
                rows.iter().map(|(main, key, created, version)| row(*main, key, *created, *version)).collect();
            let loaded = load(&rows, Revision(compacted)).map(|store| store.history(Revision(0)).count());
            match (loaded, expected) {
                (Ok(versions), Ok(expected)) => assert_eq!(versions, expected),
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
                (loaded, _) => panic!("{loaded:?}"),
            }
        }
        check(&[(2, "a", 2, 1), (3, "a", 2, 2), (4, "a", 0, 0), (5, "a", 5, 1)], 0, Ok(4));
        check(&[(2, "a", 2, 1), (3, "a", 2, 3)], 0, Err("continue"));
        check(&[(2, "a", 2, 1), (3, "a", 3, 1)], 0, Err("continue"));
        check(&[(2, "a", 2, 1), (3, "a", 0, 0), (4, "a", 2, 2)], 0, Err("continue"));
        check(&[(3, "a", 2, 2)], 2, Err("continue"));
        check(&[(3, "a", 2, 2)], 3, Ok(1)); // what was before is compacted
        check(&[(3, "a", 0, 0)], 2, Err("does not exist"));
        check(&[(3, "a", 0, 0)], 3, Ok(1));
        check(&[(3, "a", 0, 0)], 4, Ok(0));
        check(&[(3, "a", 3, 1), (2, "b", 2, 1)], 0, Err("after the row before"));
        check(&[(3, "a", 3, 1), (3, "b", 3, 1)], 0, Err("after the row before"));
        check(&[(3, "a", 4, 2)], 0, Err("cannot be"));
        check(&[(3, "a", 2, 1)], 3, Err("cannot be"));
        // A compaction that stopped halfway is finished.
        check(&[(2, "a", 2, 1), (3, "a", 2, 2), (4, "b", 0, 0), (5, "a", 2, 3), (6, "a", 2, 4)], 5, Ok(2));
    }

    #[test]
    fn a_bumped_revision_is_kept_through_every_compaction() {
        let bump = RowKey::new(Position { main: 1_000, sub: 0 }, false).to_vec();
        let rows = vec![row(2, "a", 2, 1), row(3, "b", 3, 1), (bump, Vec::new())];
        let mut store = load(&rows, Revision(1_000)).unwrap();
        assert_eq!((store.revision(), store.compacted()), (Revision(1_000), Revision(1_000)));
        assert_eq!(self::rows(&store), rows);
        let everything = KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded };
        let mut writer = store.write();
        assert_eq!(writer.delete(&everything).len(), 2);
        let _ = writer.finish();
        store.compact(Revision(1_001)).unwrap();
        store.check();
        assert_eq!(self::rows(&store).len(), 3, "the bump, and deletions at the compacted revision");
    }

    proptest! {
        #[test]
        fn keys_are_sorted_and_history_stays_in_order(keys in vec((0usize..60, vec(0u8..2, 1..5)), 0..300)) {
            // Long prefixes in common, and zeros, which a head is padded with.
            let keys: Vec<_> = keys.into_iter().map(|(zeros, end)| [vec![0; zeros], end].concat()).collect();
            let mut loader = Loader::default();
            let mut versions = BTreeMap::<_, i64>::new();
            for (at, key) in keys.iter().enumerate() {
                let version = versions.entry(key.clone()).or_default();
                *version += 1;
                let created = 2 + keys.iter().position(|first| first == key).unwrap() as i64;
                let (row, value) = row(2 + at as i64, std::str::from_utf8(key).unwrap(), created, *version);
                loader.row(&row, &value).unwrap();
            }
            let store = loader.finish(Revision(0)).unwrap();
            store.check();
            let found = store.keys.iter().map(|record| (record.key().to_vec(), record.version()));
            prop_assert_eq!(found.collect::<Vec<_>>(), versions.into_iter().collect::<Vec<_>>());
        }

        /// A store that was written to and compacted equals one that is loaded from its rows, and both go on alike.
        #[test]
        fn a_loaded_store_is_the_store(steps in vec((0u8..12, 0u8..6, 0u8..6), 0..80), split in 0usize..80) {
            let split = split.min(steps.len());
            let mut store = Store::default();
            steps[..split].iter().for_each(|step| apply(&mut store, *step));
            let mut loaded = load(&rows(&store), store.compacted()).unwrap();
            prop_assert_eq!(state(&loaded), state(&store));
            for step in &steps[split..] {
                apply(&mut store, *step);
                apply(&mut loaded, *step);
                loaded.check();
                prop_assert_eq!(state(&loaded), state(&store));
            }
        }
    }

    fn apply(store: &mut Store, (kind, from, to): (u8, u8, u8)) {
        let key = |n: u8| Bytes::from(vec![b'a' + n; 1 + usize::from(n) * 7]);
        let mut writer = store.write();
        match kind {
            0..=6 => drop(writer.put(&key(from), &key(to), LeaseId(i64::from(to)))),
            7..=8 => drop(writer.delete(&KeyRange { start: key(from), end: RangeEnd::Before(key(to)) })),
            9 => {
                writer.delete(&KeyRange { start: key(from), end: RangeEnd::Unbounded });
                writer.put(&key(to), &key(from), LeaseId(0));
            }
            _ => {
                drop(writer.finish());
                let back = i64::from(from) + i64::from(to);
                let _ = store.compact(Revision(store.revision().0 - back));
                return;
            }
        }
        drop(writer.finish());
    }

    type State = (Vec<Record>, Vec<Position>, [i64; 2], u64, BTreeMap<i64, u32>);

    /// Everything that can be told apart: links count as far as they lead to something.
    fn state(store: &Store) -> State {
        let visible = |record: &Record| {
            let previous = if store.holds(record.previous()) { record.previous() } else { Position::default() };
            Record::new(&Fields { previous, ..record.fields() })
        };
        let hashes =
            (store.compacted().0.max(1)..=store.revision().0).map(|at| (at, store.hash(Revision(at)).unwrap()));
        let records = store.history(Revision(0)).map(visible).collect();
        let newest = store.keys.iter().map(|record| *record.position()).collect();
        (records, newest, [store.revision().0, store.compacted().0], store.bytes(), hashes.collect())
    }
}
