//! What is refused before it costs anything: requests that make no sense whatever the state.
use detcd_core::{
    error::Refusal,
    limits::TXN_DEPTH_MAX,
    machine::command::{Delete, Op, Put, Range, Txn},
    mvcc::KeyRange,
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
    duplicates(&request.success)?;
    duplicates(&request.failure)?;
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
    puts: Vec<&'a [u8]>,
    deletes: Vec<&'a KeyRange>,
}

/// In one branch a key is put once at most, and not both put and deleted. The two branches of a nested transaction
/// exclude each other, so they may write the same key.
fn duplicates(ops: &[Op]) -> Result<Written<'_>, Refusal> {
    let mut written = Written::default();
    for op in ops {
        match op {
            Op::Delete(delete) => written.deletes.push(&delete.range),
            Op::Txn(txn) => {
                for branch in [&txn.success, &txn.failure] {
                    let inner = duplicates(branch)?;
                    let clash = inner.puts.iter().any(|key| written.puts.contains(key) || deleted(&written, key))
                        || written.puts.iter().any(|key| inner.deletes.iter().any(|range| covers(range, key)));
                    if clash {
                        return Err(Refusal::DuplicateKey);
                    }
                }
                for branch in [&txn.success, &txn.failure] {
                    let inner = duplicates(branch)?;
                    written.puts.extend(inner.puts);
                    written.deletes.extend(inner.deletes);
                }
            }
            Op::Put(_) | Op::Range(_) => {}
        }
    }
    for op in ops {
        let Op::Put(put) = op else { continue };
        if written.puts.contains(&&put.key[..]) || deleted(&written, &put.key) {
            return Err(Refusal::DuplicateKey);
        }
        written.puts.push(&put.key);
    }
    Ok(written)
}

fn deleted(written: &Written<'_>, key: &[u8]) -> bool {
    written.deletes.iter().any(|range| covers(range, key))
}

/// A hole in etcd's check, which its clients may have come to rely on: a range without an end covers nothing here.
fn covers(range: &KeyRange, key: &[u8]) -> bool {
    range.end != detcd_core::mvcc::RangeEnd::Unbounded && range.contains(key)
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
    }

    #[test]
    fn a_nested_transaction_gets_what_its_parent_leaves() {
        let nested = |n: usize| op_txn((0..n).map(|_| op_delete("a", "")).collect(), vec![]);
        let with = |n| Txn { success: vec![op_delete("b", ""), nested(n)], ..Txn::default() };
        assert_eq!(txn(&with(3), 5), Ok(()));
        assert_eq!(txn(&with(4), 5), Err(Refusal::TooManyOps));
    }
}
