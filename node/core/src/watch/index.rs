//! Finds the watches that a key concerns.
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    mvcc::{KeyRange, RangeEnd},
    types::{StreamId, WatchId},
};

type Who = (StreamId, WatchId);

/// Single keys are looked up; ranges are grouped by their bounds, since many watchers share few of them.
#[derive(Debug, Default)]
pub struct Index {
    keys: BTreeMap<Bytes, BTreeSet<Who>>,
    /// By start, then end (`None` is unbounded).
    ranges: BTreeMap<(Bytes, Option<Bytes>), BTreeSet<Who>>,
}

impl Index {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }

    pub fn insert(&mut self, range: &KeyRange, who: Who) {
        let new = match bounds(range) {
            None => self.keys.entry(range.start.clone()).or_default().insert(who),
            Some(bounds) => self.ranges.entry(bounds).or_default().insert(who),
        };
        assert!(new, "a watch is indexed once");
    }

    /// Does nothing if it is not there.
    pub fn remove(&mut self, range: &KeyRange, who: Who) {
        fn drop_from<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Who>>, key: &K, who: Who) {
            if let Some(set) = map.get_mut(key) {
                set.remove(&who);
                if set.is_empty() {
                    map.remove(key);
                }
            }
        }
        match bounds(range) {
            None => drop_from(&mut self.keys, &range.start, who),
            Some(bounds) => drop_from(&mut self.ranges, &bounds, who),
        }
    }

    pub fn matching(&self, key: &[u8], mut found: impl FnMut(Who)) {
        self.keys.get(key).into_iter().flatten().for_each(|who| found(*who));
        for ((start, end), set) in &self.ranges {
            if &start[..] > key {
                break;
            }
            if end.as_ref().is_none_or(|end| key < &end[..]) {
                set.iter().for_each(|who| found(*who));
            }
        }
    }

    #[cfg(test)]
    pub fn all(&self) -> Vec<Who> {
        let all: BTreeSet<_> = self.keys.values().chain(self.ranges.values()).flatten().copied().collect();
        all.into_iter().collect()
    }
}

fn bounds(range: &KeyRange) -> Option<(Bytes, Option<Bytes>)> {
    match &range.end {
        RangeEnd::Single => None,
        RangeEnd::Before(end) => Some((range.start.clone(), Some(end.clone()))),
        RangeEnd::Unbounded => Some((range.start.clone(), None)),
    }
}
