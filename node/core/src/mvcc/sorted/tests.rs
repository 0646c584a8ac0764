use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::mvcc::Fields;

fn record(key: u16, main: i64) -> Record {
    let position = Position { main, sub: 0 };
    Record::new(&Fields { key: &key.to_be_bytes(), position, version: 1, ..Fields::default() })
}

/// As if all keys had the same tag.
#[derive(Debug, Clone)]
struct WithoutTags;

impl Order for WithoutTags {
    type Key = [u8];
    type Bound = Key;

    fn key(record: &Record) -> &[u8] {
        ByKey::key(record)
    }

    fn bound(record: &Record) -> Key {
        ByKey::bound(record)
    }

    fn tag(_: &[u8]) -> u8 {
        7
    }
}

/// Whether they are put, whether they go up, where they begin, how many there are and how far apart.
type Run = (bool, bool, u16, u16, u16);

fn check_map<O: Order<Key = [u8], Bound = Key> + Clone>(
    runs: &[Run],
    (low, high): (u16, u16),
) -> Result<(), TestCaseError> {
    let (mut map, mut plain, mut main) = (Sorted::<O>::default(), BTreeMap::new(), 0);
    for &(inserts, up, first, count, stride) in runs {
        let (view, before) = (map.clone(), plain.clone());
        for step in 0..count {
            let key = if up { first + step * stride } else { first + (count - step) * stride };
            main += 1;
            let (was, expected) = match inserts {
                true => (map.insert(record(key, main)), plain.insert(key, record(key, main))),
                false => (map.remove(&key.to_be_bytes()), plain.remove(&key)),
            };
            prop_assert_eq!(was, expected);
        }
        map.check();
        prop_assert!(map.iter().eq(plain.values()));
        prop_assert!(view.iter().eq(before.values()));
        prop_assert!((0..8_000).all(|key: u16| map.get(&key.to_be_bytes()) == plain.get(&key)));
    }
    let (low, high) = (low.min(high), low.max(high));
    let (low_key, high_key) = (&low.to_be_bytes()[..], &high.to_be_bytes()[..]);
    let bounds = [
        (Bound::Included(low_key), Bound::Included(high_key), (Bound::Included(low), Bound::Included(high))),
        (Bound::Included(low_key), Bound::Unbounded, (Bound::Included(low), Bound::Unbounded)),
        (Bound::Excluded(low_key), Bound::Unbounded, (Bound::Excluded(low), Bound::Unbounded)),
        (Bound::Unbounded, Bound::Excluded(high_key), (Bound::Unbounded, Bound::Excluded(high))),
    ];
    for (from, to, expected) in bounds {
        prop_assert!(map.range(from, to).eq(plain.range(expected).map(|(_, record)| record)));
        prop_assert!(map.range(from, to).rev().eq(plain.range(expected).rev().map(|(_, record)| record)));
    }
    Ok(())
}

proptest! {
    /// Runs of keys, up and down, that are put or removed, so that leaves fill, split, empty and merge.
    #[test]
    fn it_is_a_map_and_views_of_it_stay(
        runs in vec((any::<bool>(), any::<bool>(), 0u16..2_000, 1u16..1_500, 1u16..5), 1..20),
        bounds in (0u16..2_500, 0u16..2_500),
        tags in any::<bool>(),
    ) {
        if tags { check_map::<ByKey>(&runs, bounds)? } else { check_map::<WithoutTags>(&runs, bounds)? }
    }
}

#[test]
fn keys_in_any_order_are_found_and_are_all_removed() {
    let mut map = Sorted::<ByKey>::default();
    let keys = || (0..u16::MAX).map(|number| number.wrapping_mul(40_503)); // all over the place, each once
    keys().for_each(|key| assert!(map.insert(record(key, 1)).is_none()));
    map.check();
    for key in keys() {
        assert!(map.remove(&key.to_be_bytes()).is_some());
        assert!(map.get(&key.to_be_bytes()).is_none());
    }
    map.check();
    assert_eq!((map.len(), map.root.len()), (0, 0));
}

#[test]
fn what_is_built_is_what_is_appended() {
    for len in [0, 1, FULL, FULL + 1, FULL * FULL, FULL * FULL + 1, 3 * FULL * FULL - 7, FULL * FULL * FULL + 5] {
        let (mut appended, mut built) = (Sorted::<ByPosition>::default(), Builder::<ByPosition>::default());
        for main in 1..=len as i64 {
            appended.insert(record(0, main));
            built.push(record(0, main));
        }
        let mut built = built.finish();
        for main in [len as i64 + 1, 0] {
            built.check();
            assert_eq!(built.len(), appended.len());
            assert!(built.iter().eq(appended.iter()));
            assert!(built.insert(record(0, main)).is_none(), "and goes on as any other");
            appended.insert(record(0, main));
        }
        for main in (0..=len as i64 + 1).rev() {
            assert!(built.remove(&Position { main, sub: 0 }).is_some());
            if main % 1_000 == 0 {
                built.check();
            }
        }
        assert_eq!(built.iter().count(), 0);
    }
}

#[test]
fn what_comes_in_descending_order_behind_a_full_leaf_fills_leaves_too() {
    let mut map = Builder::<ByKey>::default();
    (0..100 * FULL as u16).for_each(|key| map.push(record(key, 1)));
    let mut map = map.finish();
    map.insert(record(u16::MAX, 1));
    (30_000..40_000).rev().for_each(|key| assert!(map.insert(record(key, 1)).is_none()));
    map.check();
    let leaves = Leaves { nodes: [&map.root].into() }.count();
    assert!(leaves < 100 + 10_000 / (FULL / 2) + 10, "{leaves}");
}

#[test]
fn appending_leaves_full_nodes_behind() {
    let mut history = Sorted::<ByPosition>::default();
    (0..10_000).for_each(|main| assert!(history.insert(record(0, main)).is_none()));
    history.check();
    let leaves = Leaves { nodes: [&history.root].into() };
    assert_eq!(leaves.count(), 10_000_usize.div_ceil(FULL));
}
