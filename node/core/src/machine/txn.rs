//! Transactions: choose the branches, check every operation, only then write.
use std::sync::Arc;

use super::command::{Compare, Delete, Op, Put, Range, Relation, Target, Txn};
use super::membership::Membership;
use crate::{
    error::Refusal,
    lease::Leases,
    mvcc::{KeyRange, RangeResult, Record, Store, Writer},
    types::{LeaseId, Revision},
};

/// What one operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    Put {
        previous: Option<Record>,
    },
    Range {
        result: RangeResult,
        keys_only: bool,
    },
    Delete {
        deleted: i64,
        previous: Vec<Record>,
    },
    Txn {
        succeeded: bool,
        responses: Vec<OpResponse>,
    },
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
    },
    /// The membership after a change of it.
    Members(Arc<Membership>),
    /// Done, and nothing to tell.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpResponse {
    /// The store's revision right after the operation, as if the transaction ended there.
    pub revision: Revision,
    pub response: Response,
}

/// A store and its leases while one command writes to them.
pub(super) struct Apply<'a> {
    pub writer: Writer<'a>,
    pub leases: &'a mut Leases,
    /// Whether this member answers the client: others need not collect what was read.
    pub serving: bool,
}

/// A transaction with its branches chosen.
struct Plan<'a> {
    succeeded: bool,
    steps: Vec<Step<'a>>,
}

enum Step<'a> {
    Op(&'a Op),
    Txn(Plan<'a>),
}

/// All compares, of every level on the path taken, see the state before the transaction.
fn plan<'a>(store: &Store, txn: &'a Txn) -> Plan<'a> {
    let succeeded = txn.compare.iter().all(|compare| holds(store, compare));
    let ops = if succeeded { &txn.success } else { &txn.failure };
    let steps = ops.iter().map(|op| match op {
        Op::Txn(txn) => Step::Txn(plan(store, txn)),
        op => Step::Op(op),
    });
    Plan { succeeded, steps: steps.collect() }
}

/// Must hold of all keys in the range; an empty range is like a key that does not exist.
fn holds(store: &Store, compare: &Compare) -> bool {
    let mut records = store.live(&compare.range).peekable();
    if records.peek().is_none() {
        return related(None, compare);
    }
    records.all(|record| related(Some(record), compare))
}

fn related(record: Option<&Record>, compare: &Compare) -> bool {
    let number = |of: fn(&Record) -> i64, than: i64| record.map_or(0, of).cmp(&than);
    let order = match &compare.target {
        Target::Version(than) => number(Record::version, *than),
        Target::Created(than) => number(|record| record.created().0, *than),
        Target::Modified(than) => number(|record| record.modified().0, *than),
        Target::Lease(than) => number(|record| record.lease().0, *than),
        Target::Value(than) => match record {
            Some(record) => record.value().cmp(than),
            None => return false,
        },
    };
    match compare.relation {
        Relation::Equal => order.is_eq(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
        Relation::NotEqual => order.is_ne(),
    }
}

/// What the operations before have done to keys, as far as a later check depends on it.
#[derive(Default)]
struct Effects<'a> {
    in_order: Vec<Effect<'a>>,
}

enum Effect<'a> {
    Put(&'a [u8]),
    Delete(&'a KeyRange),
}

impl Effects<'_> {
    /// Whether `key` will exist once the operations so far are done. etcd asks only whether it exists before them,
    /// and stops for good when the two differ.
    fn exists(&self, store: &Store, key: &[u8]) -> bool {
        let last = self.in_order.iter().rev().find_map(|effect| match effect {
            Effect::Put(put) => (*put == key).then_some(true),
            Effect::Delete(range) => range.contains(key).then_some(false),
        });
        last.unwrap_or_else(|| store.get(key).is_some())
    }
}

/// Checks all that can fail, so that the writes that follow cannot.
fn check<'a>(store: &Store, leases: &Leases, plan: &Plan<'a>, effects: &mut Effects<'a>) -> Result<(), Refusal> {
    for step in &plan.steps {
        match step {
            Step::Txn(plan) => check(store, leases, plan, effects)?,
            Step::Op(Op::Range(range)) => check_range(store, range)?,
            Step::Op(Op::Put(put)) => {
                let missing = || !effects.exists(store, &put.key);
                if (put.ignore_value || put.ignore_lease) && missing() {
                    return Err(Refusal::KeyNotFound);
                }
                leases.check(put.lease)?;
                effects.in_order.push(Effect::Put(&put.key));
            }
            Step::Op(Op::Delete(delete)) => effects.in_order.push(Effect::Delete(&delete.range)),
            Step::Op(Op::Txn(_)) => unreachable!("nested transactions are planned"),
        }
    }
    Ok(())
}

/// In a logged transaction a revision below the compacted one is refused even if it is negative, as etcd does.
fn check_range(store: &Store, range: &Range) -> Result<(), Refusal> {
    let revision = range.options.revision;
    if revision > store.revision() {
        Err(Refusal::FutureRevision)
    } else if revision.0 != 0 && revision < store.compacted() {
        Err(Refusal::Compacted)
    } else {
        Ok(())
    }
}

impl Apply<'_> {
    pub fn txn(&mut self, txn: &Txn) -> Result<Response, Refusal> {
        let store = self.writer.store();
        let plan = plan(store, txn);
        check(store, self.leases, &plan, &mut Effects::default())?;
        Ok(self.run(&plan))
    }

    fn run(&mut self, plan: &Plan<'_>) -> Response {
        let steps = plan.steps.iter();
        let responses = steps.map(|step| {
            let response = match step {
                Step::Txn(plan) => self.run(plan),
                Step::Op(Op::Range(range)) => self.range(range).expect("checked before the first write"),
                Step::Op(Op::Put(put)) => self.write(put),
                Step::Op(Op::Delete(delete)) => self.delete(delete),
                Step::Op(Op::Txn(_)) => unreachable!("nested transactions are planned"),
            };
            OpResponse { revision: self.writer.revision(), response }
        });
        Response::Txn { succeeded: plan.succeeded, responses: responses.collect() }
    }

    pub fn put(&mut self, put: &Put) -> Result<Response, Refusal> {
        if (put.ignore_value || put.ignore_lease) && self.writer.store().get(&put.key).is_none() {
            return Err(Refusal::KeyNotFound);
        }
        self.leases.check(put.lease)?;
        Ok(self.write(put))
    }

    fn write(&mut self, put: &Put) -> Response {
        let old = if put.ignore_value || put.ignore_lease { self.writer.store().get(&put.key).cloned() } else { None };
        let kept = || old.as_ref().expect("ignore_* of a missing key is refused before");
        let value = if put.ignore_value { kept().value() } else { &put.value };
        let lease = if put.ignore_lease { kept().lease() } else { put.lease };
        let previous = self.writer.put(&put.key, value, lease);
        let before = previous.as_ref().map_or(LeaseId(0), Record::lease);
        self.leases.move_key(&put.key, before, lease);
        Response::Put { previous: previous.filter(|_| put.previous) }
    }

    pub fn delete(&mut self, delete: &Delete) -> Response {
        let dead = self.writer.delete(&delete.range);
        for record in &dead {
            self.leases.move_key(record.key(), record.lease(), LeaseId(0));
        }
        Response::Delete { deleted: dead.len() as i64, previous: if delete.previous { dead } else { Vec::new() } }
    }

    pub fn range(&mut self, range: &Range) -> Result<Response, Refusal> {
        let store = self.writer.store();
        let result = if self.serving {
            store.range(&range.range, &range.options)?
        } else {
            store.check_revision(range.options.revision)?;
            RangeResult::default()
        };
        Ok(Response::Range { result, keys_only: range.keys_only })
    }
}
