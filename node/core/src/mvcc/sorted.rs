//! Records in order: a persistent map whose entries are the records themselves, a word each.
//!
//! The records stand in leaves of a few dozen, in order; a persistent map (imbl's) finds the leaf by a bound that no
//! record in it is below. Appending leaves full leaves behind. A clone shares every leaf; a write to a leaf that is
//! shared copies it.
//!
//! Invariants:
//! - Every record in a leaf is at or above the leaf's bound, and below the bound of the next leaf.
//! - The first leaf, if there is one, has the least bound of all. Only it may be empty.
use std::{borrow::Borrow, fmt::Debug, ops::Bound, sync::Arc};

use imbl::OrdMap;

use super::{Key, Position, Record};

/// The most records in a leaf: what a write copies while a view is alive.
const LEAF_MAX: usize = 32;
/// A leaf with fewer is merged with the one beside it, if they fit into one.
const LEAF_MIN: usize = 8;
/// Room that a leaf gets at a time, in records.
const LEAF_STEP: usize = 8;

/// What records are in order of.
pub trait Order {
    type Key: Ord + ?Sized;
    /// A key that is kept. The default is the least there is.
    type Bound: Borrow<Self::Key> + Ord + Clone + Default + Debug;

    fn key(record: &Record) -> &Self::Key;
    fn bound(record: &Record) -> Self::Bound;
}

/// In the order of keys, a record for each.
#[derive(Debug, Clone)]
pub struct ByKey;

impl Order for ByKey {
    type Key = [u8];
    type Bound = Key;

    fn key(record: &Record) -> &[u8] {
        record.key()
    }

    fn bound(record: &Record) -> Key {
        Key::from(record.key())
    }
}

/// In the order of history.
#[derive(Debug, Clone)]
pub struct ByPosition;

impl Order for ByPosition {
    type Key = Position;
    type Bound = Position;

    fn key(record: &Record) -> &Position {
        record.position()
    }

    fn bound(record: &Record) -> Position {
        *record.position()
    }
}

#[derive(Debug, Clone)]
pub struct Sorted<O: Order> {
    leaves: OrdMap<O::Bound, Arc<Vec<Record>>>,
    len: usize,
}

impl<O: Order> Default for Sorted<O> {
    fn default() -> Self {
        Sorted { leaves: OrdMap::new(), len: 0 }
    }
}

impl<O: Order> Sorted<O> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, key: &O::Key) -> Option<&Record> {
        let (_, leaf) = self.leaves.get_prev(key)?;
        search::<O>(leaf, key).ok().map(|at| &leaf[at])
    }

    /// Puts the record into its place, and returns the one that had it.
    pub fn insert(&mut self, record: Record) -> Option<Record> {
        let key = O::key(&record);
        let last = self.leaves.get_max().map(|(bound, _)| bound).filter(|bound| (*bound).borrow() <= key);
        let bound = last.or_else(|| self.leaves.get_prev(key).map(|(bound, _)| bound)).cloned();
        let Some(bound) = bound else {
            self.leaves.insert(O::Bound::default(), Arc::new(vec![record]));
            self.len += 1;
            return None;
        };
        let leaf = self.leaf_mut(&bound);
        match search::<O>(leaf, key) {
            Ok(at) => return Some(std::mem::replace(&mut leaf[at], record)),
            Err(at) if leaf.len() < LEAF_MAX => put(leaf, at, record),
            Err(at) => {
                // Whoever appends leaves full leaves behind.
                let middle = if at == LEAF_MAX { LEAF_MAX } else { LEAF_MAX / 2 };
                let mut right = leaf.split_off(middle);
                match at.checked_sub(middle) {
                    Some(at) => put(&mut right, at, record),
                    None => put(leaf, at, record),
                }
                leaf.shrink_to_fit();
                self.leaves.insert(O::bound(&right[0]), Arc::new(right));
            }
        }
        self.len += 1;
        None
    }

    pub fn remove(&mut self, key: &O::Key) -> Option<Record> {
        let (bound, leaf) = self.leaves.get_prev(key)?;
        let (bound, at) = (bound.clone(), search::<O>(leaf, key).ok()?);
        let leaf = self.leaf_mut(&bound);
        let removed = leaf.remove(at);
        if leaf.len() < LEAF_MIN {
            self.merge(&bound);
        }
        self.len -= 1;
        Some(removed)
    }

    /// Joins a leaf to the one before or after it, if they fit into one.
    fn merge(&mut self, bound: &O::Bound) {
        let own = self.leaves[bound.borrow()].len();
        let fits = |(_, other): &(&O::Bound, &Arc<Vec<Record>>)| own + other.len() <= LEAF_MAX;
        let key = bound.borrow();
        let before = self.leaves.range::<_, O::Key>((Bound::Unbounded, Bound::Excluded(key))).next_back().filter(fits);
        let after = self.leaves.range::<_, O::Key>((Bound::Excluded(key), Bound::Unbounded)).next().filter(fits);
        let (left, right) = match (before, after) {
            (Some((before, _)), _) => (before.clone(), bound.clone()),
            (None, Some((after, _))) => (bound.clone(), after.clone()),
            // An empty one fits anywhere, but for the only one.
            (None, None) => return,
        };
        let records = self.leaves.remove::<O::Key>(right.borrow()).expect("just found");
        let leaf = self.leaf_mut(&left);
        leaf.reserve_exact(records.len());
        leaf.extend(records.iter().cloned());
    }

    fn leaf_mut(&mut self, bound: &O::Bound) -> &mut Vec<Record> {
        Arc::make_mut(self.leaves.get_mut::<O::Key>(bound.borrow()).expect("the bound of a leaf"))
    }

    /// The records within bounds, the first of which is not above the second.
    pub fn range<K: Borrow<O::Key>>(&self, low: Bound<K>, high: Bound<K>) -> impl DoubleEndedIterator<Item = &Record> {
        let first = match borrowed::<O, K>(&low) {
            Bound::Included(key) | Bound::Excluded(key) => self.leaves.get_prev(key),
            Bound::Unbounded => None,
        };
        let first = first.map_or(Bound::Unbounded, |(bound, _)| Bound::Included(bound.borrow()));
        let leaves = self.leaves.range::<_, O::Key>((first, borrowed::<O, K>(&high)));
        leaves.flat_map(move |(_, leaf)| within::<O>(leaf, borrowed::<O, K>(&low), borrowed::<O, K>(&high)).iter())
    }
}

fn borrowed<O: Order, K: Borrow<O::Key>>(bound: &Bound<K>) -> Bound<&O::Key> {
    match bound {
        Bound::Included(key) => Bound::Included(key.borrow()),
        Bound::Excluded(key) => Bound::Excluded(key.borrow()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

fn search<O: Order>(leaf: &[Record], key: &O::Key) -> Result<usize, usize> {
    leaf.binary_search_by(|record| O::key(record).cmp(key))
}

fn put(leaf: &mut Vec<Record>, at: usize, record: Record) {
    if leaf.len() == leaf.capacity() {
        leaf.reserve_exact(LEAF_STEP);
    }
    leaf.insert(at, record);
}

fn within<'a, O: Order>(leaf: &'a [Record], low: Bound<&O::Key>, high: Bound<&O::Key>) -> &'a [Record] {
    let below = |record: &Record| match low {
        Bound::Included(low) => O::key(record) < low,
        Bound::Excluded(low) => O::key(record) <= low,
        Bound::Unbounded => false,
    };
    let above = |record: &Record| match high {
        Bound::Included(high) => O::key(record) > high,
        Bound::Excluded(high) => O::key(record) >= high,
        Bound::Unbounded => false,
    };
    // Most leaves of a long range lie in it as a whole.
    let start = if leaf.first().is_some_and(below) { leaf.partition_point(below) } else { 0 };
    let leaf = &leaf[start..];
    let end = if leaf.last().is_some_and(above) { leaf.partition_point(|record| !above(record)) } else { leaf.len() };
    &leaf[..end]
}

#[cfg(test)]
impl<O: Order> Sorted<O> {
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.leaves.values().flat_map(|leaf| leaf.iter())
    }

    /// Checks the invariants in the module's head.
    pub fn check(&self) {
        let bounds: Vec<_> = self.leaves.keys().collect();
        assert!(bounds.first().is_none_or(|least| **least == O::Bound::default()));
        for (at, (bound, leaf)) in self.leaves.iter().enumerate() {
            assert!(leaf.len() <= LEAF_MAX && (at == 0 || !leaf.is_empty()));
            let inside = |record: &Record| {
                let key = O::key(record);
                key >= bound.borrow() && bounds.get(at + 1).is_none_or(|next| key < (**next).borrow())
            };
            assert!(leaf.iter().all(inside));
        }
        assert!(self.iter().is_sorted_by(|one, other| O::key(one) < O::key(other)));
        assert_eq!(self.iter().count(), self.len);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::mvcc::Fields;

    fn record(key: u16, main: i64) -> Record {
        let position = Position { main, sub: 0 };
        Record::new(&Fields { key: &key.to_be_bytes(), position, version: 1, ..Fields::default() })
    }

    proptest! {
        /// Runs of keys, up and down, that are put or removed, so that leaves fill, split, empty and merge.
        #[test]
        fn it_is_a_map_and_views_of_it_stay(
            runs in vec((any::<bool>(), any::<bool>(), 0u16..500, 1u16..120), 1..20),
            (low, high) in (0u16..500, 0u16..500),
        ) {
            let (mut map, mut plain, mut main) = (Sorted::<ByKey>::default(), BTreeMap::new(), 0);
            for (inserts, up, first, count) in runs {
                let (view, before) = (map.clone(), plain.clone());
                for step in 0..count {
                    let key = if up { first + step } else { first + count - step };
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
                prop_assert_eq!(map.get(&low.to_be_bytes()), plain.get(&low));
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
        }
    }

    #[test]
    fn appending_leaves_full_leaves_behind() {
        let mut history = Sorted::<ByPosition>::default();
        (0..1_000).for_each(|main| assert!(history.insert(record(0, main)).is_none()));
        history.check();
        assert_eq!(history.leaves.len(), 1_000_usize.div_ceil(LEAF_MAX));
    }
}
