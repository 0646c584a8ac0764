//! The clever store against the dumbest one that is right: a list of whole states, one a revision.
use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::types::LeaseId;

type State = BTreeMap<Bytes, (Bytes, i64, i64, i64)>;

/// Every state there ever was, by revision; index 0 and 1 are empty.
struct Plain {
    states: Vec<State>,
    compacted: i64,
}

impl Plain {
    fn put(state: &mut State, revision: i64, key: &Bytes, value: &Bytes) {
        let entry = state.entry(key.clone()).or_insert((Bytes::new(), revision, 0, 0));
        *entry = (value.clone(), entry.1, revision, entry.3 + 1);
    }
}

#[derive(Debug, Clone)]
enum Change {
    Put(u8, u8),
    Delete(u8, u8),
    Compact(u8),
    Both(u8, u8),
}

fn key(n: u8) -> Bytes {
    Bytes::from(vec![b'a' + n % 6])
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (any::<u8>(), any::<u8>()).prop_map(|(k, v)| Change::Put(k, v)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Change::Delete(a, b)),
        1 => any::<u8>().prop_map(Change::Compact),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Change::Both(a, b)),
    ];
    vec(change, 0..60)
}

fn run(changes: &[Change]) -> (Store, Plain) {
    let mut store = Store::default();
    let mut plain = Plain { states: vec![State::new(), State::new()], compacted: 0 };
    for change in changes {
        let mut state = plain.states.last().unwrap().clone();
        let revision = plain.states.len() as i64;
        let mut writer = store.write();
        match change {
            Change::Put(k, v) => {
                let value = Bytes::from(vec![*v]);
                writer.put(&key(*k), &value, LeaseId(0));
                Plain::put(&mut state, revision, &key(*k), &value);
            }
            Change::Delete(a, b) => {
                let range = KeyRange { start: key(*a), end: RangeEnd::Before(key(*b)) };
                let dead = writer.delete(&range).len();
                let before = state.len();
                state.retain(|key, _| !range.contains(key));
                assert_eq!(dead, before - state.len());
            }
            Change::Both(a, b) => {
                // From-key deletion, then a put in the same transaction: a key may die and live again at one revision.
                let range = KeyRange { start: key(*a), end: RangeEnd::Unbounded };
                writer.delete(&range);
                writer.put(&key(*b), b"again", LeaseId(0));
                state.retain(|key, _| !range.contains(key));
                Plain::put(&mut state, revision, &key(*b), &Bytes::from_static(b"again"));
            }
            Change::Compact(_) => {}
        }
        let changed = !writer.finish().is_empty();
        if changed {
            plain.states.push(state);
        }
        if let Change::Compact(n) = change {
            let revision = Revision(i64::from(*n) % (store.revision().0 + 2));
            if store.compact(revision).is_ok() {
                plain.compacted = revision.0;
            }
        }
        store.check();
    }
    (store, plain)
}

proptest! {
    #[test]
    fn every_revision_reads_as_it_was(changes in changes()) {
        let (store, plain) = run(&changes);
        prop_assert_eq!(store.revision().0, plain.states.len() as i64 - 1);
        let all = KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded };
        for revision in 1..=store.revision().0 + 1 {
            let options = RangeOptions { revision: Revision(revision), ..Default::default() };
            let read = store.range(&all, &options);
            if revision > store.revision().0 {
                prop_assert_eq!(read, Err(Refusal::FutureRevision));
            } else if revision < plain.compacted {
                prop_assert_eq!(read, Err(Refusal::Compacted));
            } else {
                let read = read.unwrap();
                let got: Vec<_> = read.records.iter()
                    .map(|r| (r.key().to_vec().into(), (r.value_bytes(), r.created().0, r.modified().0, r.version())))
                    .collect();
                let expected: Vec<_> = plain.states[revision as usize].clone().into_iter().collect();
                prop_assert_eq!(got, expected, "at revision {}", revision);
                prop_assert_eq!(read.count as usize, plain.states[revision as usize].len());
            }
        }
    }

    #[test]
    fn a_view_never_changes(changes in changes(), more in changes()) {
        let (mut store, _) = run(&changes);
        let view = store.clone();
        let before = view.hash(Revision(0));
        for change in &more {
            let mut writer = store.write();
            if let Change::Put(k, v) = change {
                writer.put(&key(*k), &[*v], LeaseId(0));
            }
            let _ = writer.finish();
        }
        prop_assert_eq!(view.hash(Revision(0)), before);
    }
}

fn three_keys() -> Store {
    let mut store = Store::default();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2")] {
        let mut writer = store.write();
        writer.put(key.as_bytes(), value.as_bytes(), LeaseId(0));
        let _ = writer.finish();
    }
    store
}

#[test]
fn limits_sorts_and_filters_work_together_as_in_etcd() {
    let store = three_keys();
    #[track_caller]
    fn check(store: &Store, options: RangeOptions, keys: &str, count: i64, more: bool) {
        let all = KeyRange { start: Bytes::from_static(b"a"), end: RangeEnd::Unbounded };
        let result = store.range(&all, &options).unwrap();
        let got: String = result.records.iter().map(|r| std::str::from_utf8(r.key()).unwrap()).collect();
        assert_eq!((&got[..], result.count, result.more), (keys, count, more));
    }
    let plain = RangeOptions::default();
    check(&store, plain.clone(), "abc", 3, false);
    check(&store, RangeOptions { limit: 2, ..plain.clone() }, "ab", 3, true);
    check(&store, RangeOptions { limit: 3, ..plain.clone() }, "abc", 3, false);
    check(&store, RangeOptions { count_only: true, limit: 1, ..plain.clone() }, "", 3, false);
    check(&store, RangeOptions { order: Order::Descending, limit: 1, ..plain.clone() }, "c", 3, true);
    let by_value = RangeOptions { target: SortTarget::Value, ..plain.clone() };
    check(&store, RangeOptions { order: Order::Ascending, limit: 2, ..by_value.clone() }, "bc", 3, true);
    // Without an order the sort happens on what the limit, and one more, left.
    check(&store, RangeOptions { limit: 1, ..by_value }, "b", 3, true);
    check(&store, RangeOptions { modified_min: 3, ..plain.clone() }, "bc", 3, false);
    check(&store, RangeOptions { created_max: 2, limit: 1, ..plain.clone() }, "a", 3, false);
    check(&store, RangeOptions { revision: Revision(2), ..plain }, "a", 1, false);
}

#[test]
fn a_deletion_at_the_compacted_revision_stays_until_the_next() {
    let mut store = three_keys();
    let mut writer = store.write();
    writer.delete(&KeyRange { start: Bytes::from_static(b"b"), end: RangeEnd::Single });
    let _ = writer.finish(); // revision 5
    store.compact(Revision(5)).unwrap();
    assert!(store.holds(Position { main: 5, sub: 0 }));
    assert!(!store.holds(Position { main: 3, sub: 0 }));
    let mut writer = store.write();
    writer.put(b"d", b"4", LeaseId(0));
    let _ = writer.finish(); // revision 6
    store.compact(Revision(6)).unwrap();
    assert!(!store.holds(Position { main: 5, sub: 0 }));
    store.check();
    assert_eq!(store.compact(Revision(6)), Err(Refusal::Compacted));
    assert_eq!(store.compact(Revision(7)), Err(Refusal::FutureRevision));
}

/// Rows up to `revision`; of those up to the compacted one, only what would outlive a compaction at `revision`.
fn plain_hash(store: &Store, revision: Revision) -> u32 {
    let rows: Vec<_> = store.history(Revision(0)).filter(|row| row.modified() <= revision).collect();
    let newest =
        |row: &Record| rows.iter().rev().find(|other| other.key() == row.key()).unwrap().position() == row.position();
    let keep: Vec<_> = rows.iter().filter(|row| newest(row) && !row.is_tombstone()).collect();
    let counts = |row: &Record| {
        let recent = row.modified() > store.compacted();
        let kept = keep.is_empty() || keep.iter().any(|kept| kept.position() == row.position());
        (recent || kept) && !(row.is_tombstone() && row.modified() == store.compacted())
    };
    let mut bytes = b"key".to_vec();
    for row in rows.iter().filter(|row| counts(row)) {
        bytes.extend_from_slice(&row.row_key());
        row.put_row_value(&mut bytes);
    }
    crc32c::crc32c(&bytes)
}

proptest! {
    #[test]
    fn the_hash_is_that_of_etcd(changes in changes()) {
        let (store, plain) = run(&changes);
        for revision in plain.compacted.max(1)..=store.revision().0 {
            prop_assert_eq!(store.hash(Revision(revision)), Ok(plain_hash(&store, Revision(revision))));
        }
    }
}

#[test]
fn what_a_transaction_wrote_itself_is_not_what_was_before_it() {
    let (mut store, one) = (Store::default(), |key| KeyRange { start: key, end: RangeEnd::Single });
    let mut writer = store.write();
    writer.put(&key(1), b"old", LeaseId(0));
    writer.finish();
    let mut writer = store.write();
    writer.put(&key(1), b"new", LeaseId(0));
    writer.put(&key(2), b"new", LeaseId(0));
    writer.delete(&one(key(1)));
    writer.delete(&one(key(2)));
    writer.put(&key(1), b"newest", LeaseId(0));
    let before: Vec<_> =
        writer.finish().iter().map(|record| store.before(record).map(|old| old.value().to_vec())).collect();
    let old = || Some(b"old".to_vec());
    assert_eq!(before, [old(), None, old(), None, old()]);
    // A deletion before it is no value.
    let mut writer = store.write();
    writer.delete(&one(key(1)));
    writer.finish();
    let mut writer = store.write();
    writer.put(&key(1), b"again", LeaseId(0));
    writer.put(&key(1), b"and again", LeaseId(0));
    assert!(writer.finish().iter().all(|record| store.before(record).is_none()));
}
