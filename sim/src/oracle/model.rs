//! etcd's promise, written a second time: a store of versions in which every revision can be read.
//!
//! Plain rather than clever. A key is the list of all its versions, and nothing is ever forgotten: compaction, leases
//! and transactions of many operations will have to be added here before clients may use them.
use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included},
};

use crate::history::{Body, Content, KeyValue, Keys, Request, Text};

/// Invariants: a key's versions ascend by `modified`; `changes` ascend by revision; no version is of a later revision.
#[derive(Debug)]
pub struct Store {
    revision: i64,
    keys: BTreeMap<Text, Vec<Version>>,
    /// Every change, in order, by its key.
    changes: Vec<Text>,
    /// For each revision from the second on, where its changes end, and what all versions up to there come to.
    ends: Vec<(usize, Content)>,
}

#[derive(Debug, Clone)]
struct Version {
    created: i64,
    modified: i64,
    /// 0 for a deletion.
    version: i64,
    /// `None` for a deletion.
    value: Option<Text>,
}

/// An empty store is at 1.
const FIRST_REVISION: i64 = 1;

impl Default for Store {
    fn default() -> Store {
        Store { revision: FIRST_REVISION, keys: BTreeMap::new(), changes: Vec::new(), ends: Vec::new() }
    }
}

impl Store {
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Does what is asked; the answer. Whether the revision went up tells whether anything changed.
    pub fn apply(&mut self, request: &Request) -> Body {
        match request {
            Request::Put { key, value, previous } => {
                let before = if *previous { self.get(key, self.revision) } else { None };
                self.put(key, value);
                Body::Put { previous: before }
            }
            Request::Delete { keys, previous } => self.delete(keys, *previous),
            Request::CompareAndSet { key, expected, new } => {
                let read = self.get(key, self.revision);
                if read.as_ref().map(|kv| &kv.value) == expected.as_ref() {
                    self.put(key, new);
                    Body::CompareAndSet { succeeded: true, read: None }
                } else {
                    Body::CompareAndSet { succeeded: false, read }
                }
            }
            Request::Range { keys, revision, limit, keys_only, count_only, .. } => {
                let revision = if *revision <= 0 { self.revision } else { *revision };
                self.range(keys, revision, *limit, *keys_only, *count_only)
            }
        }
    }

    fn put(&mut self, key: &Text, value: &Text) {
        let revision = self.revision + 1;
        let versions = self.keys.entry(key.clone()).or_default();
        let (created, version) = match versions.last() {
            Some(last) if last.value.is_some() => (last.created, last.version + 1),
            _ => (revision, 1),
        };
        versions.push(Version { created, modified: revision, version, value: Some(value.clone()) });
        self.changes.push(key.clone());
        self.end_revision();
    }

    fn delete(&mut self, keys: &Keys, previous: bool) -> Body {
        let dead: Vec<_> = self.live(keys, self.revision).map(|(key, version)| key_value(key, version)).collect();
        for kv in &dead {
            let versions = self.keys.get_mut(&kv.key).expect("just seen");
            versions.push(Version { created: 0, modified: self.revision + 1, version: 0, value: None });
            self.changes.push(kv.key.clone());
        }
        if !dead.is_empty() {
            self.end_revision();
        }
        Body::Delete { deleted: dead.len() as i64, previous: if previous { dead } else { Vec::new() } }
    }

    fn end_revision(&mut self) {
        self.revision += 1;
        let (begun, mut content) = self.ends.last().copied().unwrap_or_default();
        for key in &self.changes[begun..] {
            let version = self.keys[key].last().expect("it changed");
            let alive = version.value.as_ref().map(|value| (value.as_bytes(), version.created, version.version));
            content.add(key.as_bytes(), version.modified, alive);
        }
        self.ends.push((self.changes.len(), content));
    }

    /// What all versions up to this revision come to.
    pub fn content(&self, revision: i64) -> Content {
        self.end_of(revision).1
    }

    fn end_of(&self, revision: i64) -> (usize, Content) {
        let at = usize::try_from(revision - FIRST_REVISION - 1).ok();
        at.map_or_else(Default::default, |at| self.ends[at])
    }

    /// What a range answers of the store as it was at `revision`; `limit` 0 is none.
    pub fn range(&self, keys: &Keys, revision: i64, limit: i64, keys_only: bool, count_only: bool) -> Body {
        let live = self.live(keys, revision);
        if count_only {
            return Body::Range { kvs: Vec::new(), count: live.count() as i64, more: false };
        }
        let mut kvs: Vec<_> = live.map(|(key, version)| key_value(key, version)).collect();
        let count = kvs.len();
        if limit > 0 {
            kvs.truncate(limit as usize);
        }
        if keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = "".into());
        }
        Body::Range { more: kvs.len() < count, count: count as i64, kvs }
    }

    /// The key as it was at `revision`, if it existed.
    pub fn get(&self, key: &str, revision: i64) -> Option<KeyValue> {
        let (key, versions) = self.keys.get_key_value(key)?;
        let version = at(versions, revision)?;
        version.value.is_some().then(|| key_value(key, version))
    }

    /// The keys that changed at `revision`, in order.
    pub fn changes(&self, revision: i64) -> &[Text] {
        assert!(revision <= self.revision);
        &self.changes[self.end_of(revision - 1).0..self.end_of(revision).0]
    }

    /// The keys that existed at `revision`, in order.
    fn live<'a>(&'a self, keys: &'a Keys, revision: i64) -> impl Iterator<Item = (&'a Text, &'a Version)> {
        let start = &*keys.start;
        let bounds = match &keys.end {
            None => (Included(start), Included(start)),
            // A range that ends before it begins holds nothing.
            Some(end) => (Included(start), Excluded(start.max(end))),
        };
        let all = self.keys.range::<str, _>(bounds);
        let versions = all.filter_map(move |(key, versions)| Some((key, at(versions, revision)?)));
        versions.filter(|(_, version)| version.value.is_some())
    }
}

/// The version that held at `revision`.
fn at(versions: &[Version], revision: i64) -> Option<&Version> {
    match versions.last() {
        Some(last) if last.modified <= revision => Some(last), // mostly it is the present that is read
        _ => versions[..versions.partition_point(|version| version.modified <= revision)].last(),
    }
}

fn key_value(key: &Text, version: &Version) -> KeyValue {
    let Version { created, modified, version, ref value } = *version;
    KeyValue { key: key.clone(), value: value.clone().unwrap_or_default(), created, modified, version }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(start: &str, end: Option<&str>) -> Keys {
        Keys { start: start.into(), end: end.map(Into::into) }
    }

    fn put(key: &str, value: &str) -> Request {
        Request::Put { key: key.into(), value: value.into(), previous: true }
    }

    fn compare_and_set(key: &str, expected: Option<&str>, new: &str) -> Request {
        Request::CompareAndSet { key: key.into(), expected: expected.map(Into::into), new: new.into() }
    }

    fn kv(key: &str, value: &str, created: i64, modified: i64, version: i64) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), created, modified, version }
    }

    /// The answers are etcd's own, taken down from a real one.
    #[test]
    fn writes_are_answered_as_etcd_does() {
        let mut store = Store::default();
        let mut check = |request: Request, revision: i64, body: Body| {
            assert_eq!((store.apply(&request), store.revision()), (body, revision), "{request:?}");
        };
        let swapped = || Body::CompareAndSet { succeeded: true, read: None };
        let kept = |read| Body::CompareAndSet { succeeded: false, read };
        check(
            Request::Delete { keys: keys("a", None), previous: true },
            1,
            Body::Delete { deleted: 0, previous: vec![] },
        );
        check(put("b", "1"), 2, Body::Put { previous: None });
        check(put("b", "2"), 3, Body::Put { previous: Some(kv("b", "1", 2, 2, 1)) });
        check(compare_and_set("a", Some("x"), "y"), 3, kept(None));
        check(compare_and_set("a", None, "y"), 4, swapped());
        check(compare_and_set("a", None, "z"), 4, kept(Some(kv("a", "y", 4, 4, 1))));
        check(compare_and_set("b", Some("2"), "3"), 5, swapped());
        let previous = vec![kv("a", "y", 4, 4, 1), kv("b", "3", 2, 5, 3)];
        let all = || keys("a", Some("c"));
        check(Request::Delete { keys: all(), previous: true }, 6, Body::Delete { deleted: 2, previous });
        check(put("b", "4"), 7, Body::Put { previous: None });
        check(Request::Delete { keys: all(), previous: false }, 8, Body::Delete { deleted: 1, previous: vec![] });
        assert_eq!(store.changes(6), ["a".into(), "b".into()] as [Text; 2]);
        assert_eq!(
            (store.changes(1).len(), store.changes(2), store.changes(8)),
            (0, &["b".into()][..], &["b".into()][..])
        );
    }

    #[test]
    fn ranges_read_any_revision() {
        let mut store = Store::default();
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")] {
            store.apply(&put(key, value));
        }
        store.apply(&Request::Delete { keys: keys("b", None), previous: false });
        let check = |keys: Keys, revision: i64, limit: i64, expected: &[KeyValue], count: i64, more: bool| {
            let body = Body::Range { kvs: expected.to_vec(), count, more };
            assert_eq!(store.range(&keys, revision, limit, false, false), body, "{keys:?} at {revision}");
        };
        let (old, new, b, c) =
            (kv("a", "1", 2, 2, 1), kv("a", "4", 2, 5, 2), kv("b", "2", 3, 3, 1), kv("c", "3", 4, 4, 1));
        check(keys("a", None), 1, 0, &[], 0, false);
        check(keys("a", None), 4, 0, std::slice::from_ref(&old), 1, false);
        check(keys("a", Some("d")), 4, 0, &[old, b, c.clone()], 3, false);
        check(keys("a", Some("d")), 6, 0, &[new.clone(), c.clone()], 2, false);
        check(keys("a", Some("d")), 6, 1, &[new], 2, true);
        check(keys("b", Some("d")), 6, 1, &[c], 1, false);
        check(keys("d", Some("a")), 6, 0, &[], 0, false);
        check(keys("a", Some("a")), 6, 0, &[], 0, false);
        let count = Body::Range { kvs: vec![], count: 2, more: false };
        assert_eq!(store.range(&keys("a", Some("d")), 6, 1, false, true), count);
        let bare = Body::Range { kvs: vec![kv("a", "", 2, 5, 2)], count: 1, more: false };
        assert_eq!(store.range(&keys("a", None), 6, 0, true, false), bare);
    }
}
