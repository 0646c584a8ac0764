//! What is refused before it costs anything: requests that make no sense whatever the state.
use std::collections::{BTreeMap, BTreeSet};

use detcd_core::{
    error::Refusal,
    limits::TXN_DEPTH_MAX,
    machine::command::{Delete, Op, Put, Range, Txn},
    mvcc::{KeyRange, RangeEnd},
};

pub fn put(put: &Put) -> Result<(), Refusal> {
    if put.key.is_empty() {
        Err(Refusal::EmptyKey)
    } else if put.ignore_value && !put.value.is_empty() {
        Err(Refusal::ValueProvided)
    } else if put.ignore_lease && put.lease.0 != 0 {
        Err(Refusal::LeaseProvided)
    } else {
        Ok(())
    }
}

pub fn range(range: &Range) -> Result<(), Refusal> {
    if range.range.start.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

pub fn delete(delete: &Delete) -> Result<(), Refusal> {
    if delete.range.start.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

pub fn txn(request: &Txn, ops_max: usize) -> Result<(), Refusal> {
    counts(request, ops_max, TXN_DEPTH_MAX)?;
    let mut duplicates = Duplicates::default();
    duplicates.branch(&request.success)?;
    duplicates.branch(&request.failure)?;
    Ok(())
}

/// A nested transaction gets what its parent's largest list leaves over.
fn counts(txn: &Txn, ops_max: usize, depth: usize) -> Result<(), Refusal> {
    let most = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if most > ops_max || depth == 0 {
        return Err(Refusal::TooManyOps);
    }
    if txn.compare.iter().any(|compare| compare.range.start.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put(op) => put(op)?,
            Op::Range(op) => range(op)?,
            Op::Delete(op) => delete(op)?,
            Op::Txn(nested) => counts(nested, ops_max - most, depth - 1)?,
        }
    }
    Ok(())
}

/// The keys that one branch, with all below it, puts and deletes.
#[derive(Default)]
struct Written<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deleted<'a>,
}

#[derive(Default)]
struct Deleted<'a> {
    keys: BTreeSet<&'a [u8]>,
    /// From a start to before an end; no two of them overlap or touch.
    ranges: BTreeMap<&'a [u8], &'a [u8]>,
}

impl<'a> Deleted<'a> {
    fn add(&mut self, range: &'a KeyRange) {
        match &range.end {
            RangeEnd::Single => drop(self.keys.insert(&range.start)),
            RangeEnd::Before(end) if !range.is_empty() => self.add_range(&range.start, end),
            // A hole in etcd's check, which its clients may have come to rely on: a range without an end covers nothing.
            RangeEnd::Before(_) | RangeEnd::Unbounded => {}
        }
    }

    fn add_range(&mut self, mut start: &'a [u8], mut end: &'a [u8]) {
        while let Some((&earlier, &its_end)) = self.ranges.range(..=end).next_back()
            && its_end >= start
        {
            self.ranges.remove(earlier);
            (start, end) = (start.min(earlier), end.max(its_end));
        }
        self.ranges.insert(start, end);
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || self.ranges.range(..=key).next_back().is_some_and(|(_, end)| key < *end)
    }

    /// The smaller one is added to the larger, so that deep nesting costs little.
    fn merge(&mut self, mut other: Deleted<'a>) {
        merge(&mut self.keys, other.keys);
        if other.ranges.len() > self.ranges.len() {
            std::mem::swap(&mut self.ranges, &mut other.ranges);
        }
        other.ranges.into_iter().for_each(|(start, end)| self.add_range(start, end));
    }
}

fn merge<'a>(all: &mut BTreeSet<&'a [u8]>, mut more: BTreeSet<&'a [u8]>) {
    if more.len() > all.len() {
        std::mem::swap(all, &mut more);
    }
    all.extend(more);
}

/// Looks for keys that are written twice. A client may nest as deep as it likes, so each operation is looked at once.
#[derive(Default)]
struct Duplicates {
    /// Operations so far.
    looked_at: usize,
}

impl Duplicates {
    /// etcd's rule: in one branch a key is put once at most, and not both put and deleted; the two branches of a nested
    /// transaction exclude each other, so they may write the same key. And its order: a branch's own deletes count before
    /// what is nested in it, its own puts after; of nested transactions one may delete what an earlier one puts.
    fn branch<'a>(&mut self, ops: &'a [Op]) -> Result<Written<'a>, Refusal> {
        self.looked_at += ops.len();
        let mut written = Written::default();
        for op in ops {
            if let Op::Delete(delete) = op {
                written.deletes.add(&delete.range);
            }
        }
        for op in ops {
            let Op::Txn(txn) = op else { continue };
            let [success, failure] = [self.branch(&txn.success)?, self.branch(&txn.failure)?];
            let mut puts = success.puts.iter().chain(&failure.puts);
            if puts.any(|key| written.puts.contains(key) || written.deletes.covers(key)) {
                return Err(Refusal::DuplicateKey);
            }
            for branch in [success, failure] {
                merge(&mut written.puts, branch.puts);
                written.deletes.merge(branch.deletes);
            }
        }
        for op in ops {
            let Op::Put(put) = op else { continue };
            if written.deletes.covers(&put.key) || !written.puts.insert(&put.key) {
                return Err(Refusal::DuplicateKey);
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use detcd_core::types::LeaseId;

    use super::*;

    fn op_put(key: &'static str) -> Op {
        Op::Put(Put {
            key: key.into(),
            value: Bytes::new(),
            lease: LeaseId(0),
            previous: false,
            ignore_value: false,
            ignore_lease: false,
        })
    }

    fn op_delete(key: &'static str, end: &'static str) -> Op {
        Op::Delete(Delete { range: KeyRange::new(key.into(), end.into()), previous: false })
    }

    fn op_txn(success: Vec<Op>, failure: Vec<Op>) -> Op {
        Op::Txn(Txn { compare: Vec::new(), success, failure })
    }

    #[track_caller]
    fn check(success: Vec<Op>, expected: Result<(), Refusal>) {
        assert_eq!(txn(&Txn { success, ..Txn::default() }, 128), expected);
    }

    #[test]
    fn keys_written_twice_in_a_branch_are_refused_as_in_etcd() {
        let duplicate = Err(Refusal::DuplicateKey);
        check(vec![op_put("a"), op_put("b")], Ok(()));
        check(vec![op_put("a"), op_put("a")], duplicate);
        check(vec![op_put("b"), op_delete("a", "c")], duplicate);
        check(vec![op_delete("a", "c"), op_delete("a", "d")], Ok(()));
        check(vec![op_delete("a", "\0"), op_put("b")], Ok(())); // the hole
        check(vec![op_txn(vec![op_put("a")], vec![op_put("a")])], Ok(()));
        check(vec![op_put("a"), op_txn(vec![op_put("a")], vec![])], duplicate);
        check(vec![op_txn(vec![op_put("a")], vec![]), op_txn(vec![], vec![op_put("a")])], duplicate);
        check(vec![op_txn(vec![op_delete("a", "c")], vec![]), op_put("b")], duplicate);
        check(vec![op_txn(vec![op_put("b")], vec![]), op_delete("a", "c")], duplicate);
        check(vec![op_txn(vec![op_put("b")], vec![]), op_txn(vec![op_delete("a", "c")], vec![])], Ok(()));
        check(vec![op_txn(vec![op_delete("a", "c")], vec![]), op_txn(vec![op_put("b")], vec![])], duplicate);
        check(vec![op_txn(vec![op_put("b")], vec![op_delete("a", "c")])], Ok(()));
        check(vec![op_delete("c", "a"), op_put("b")], Ok(())); // an empty range
    }

    #[test]
    fn deleted_ranges_cover_what_each_of_them_does() {
        let keys = ["a", "b", "c", "d", "e", "f"];
        let ends = ["", "\0", "a", "c", "d", "f"];
        let ranges: Vec<_> = keys.iter().flat_map(|key| ends.map(|end| op_delete(key, end))).collect();
        let range = |op: &'static Op| match op {
            Op::Delete(delete) => &delete.range,
            _ => unreachable!("they are deletes"),
        };
        let ranges: &'static [Op] = ranges.leak();
        for (first, second, third) in ranges.iter().flat_map(|first| {
            let pairs = ranges.iter().zip(ranges.iter().cycle().skip(7));
            pairs.map(move |(second, third)| (range(first), range(second), range(third)))
        }) {
            let [mut all, mut merged] = [Deleted::default(), Deleted::default()];
            [first, second].into_iter().for_each(|range| all.add(range));
            merged.add(third);
            all.merge(merged);
            for key in keys {
                let covers = |range: &KeyRange| range.end != RangeEnd::Unbounded && range.contains(key.as_bytes());
                let expected = [first, second, third].iter().any(|range| covers(range));
                assert_eq!(all.covers(key.as_bytes()), expected, "{key} in {first:?}, {second:?}, {third:?}");
            }
        }
    }

    #[test]
    fn a_full_tree_is_looked_at_once() {
        let mut tree = Txn::default();
        for _ in 1..TXN_DEPTH_MAX {
            tree = Txn { success: vec![Op::Txn(tree.clone())], failure: vec![Op::Txn(tree)], ..Txn::default() };
        }
        assert_eq!(txn(&tree, 128), Ok(()));
        let mut duplicates = Duplicates::default();
        duplicates.branch(&tree.success).map(drop).unwrap();
        assert_eq!(duplicates.looked_at, (1 << (TXN_DEPTH_MAX - 1)) - 1);
    }

    #[test]
    fn a_nested_transaction_gets_what_its_parent_leaves() {
        let nested = |n: usize| op_txn((0..n).map(|_| op_delete("a", "")).collect(), vec![]);
        let with = |n| Txn { success: vec![op_delete("b", ""), nested(n)], ..Txn::default() };
        assert_eq!(txn(&with(3), 5), Ok(()));
        assert_eq!(txn(&with(4), 5), Err(Refusal::TooManyOps));
    }
}
