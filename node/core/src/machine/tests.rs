use super::{
    command::{Compare, Delete, Op, Put, Relation, Target, Txn},
    *,
};

fn put(key: &'static str, value: &'static str) -> Put {
    Put {
        key: key.into(),
        value: value.into(),
        lease: LeaseId(0),
        previous: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn delete(key: &'static str, end: RangeEnd) -> Delete {
    Delete { range: KeyRange { start: key.into(), end }, previous: false }
}

/// Runs commands in order on a fresh machine and returns it with the last outcome.
fn run(commands: Vec<Command>) -> (Machine, Outcome) {
    let mut machine = Machine::default();
    let mut last = None;
    for (n, command) in commands.into_iter().enumerate() {
        let data = command.encode(RequestId(n as u64 + 1)).into();
        let outcome = machine.apply(Index(n as u64 + 1), Term(1), data, |_| true).unwrap();
        machine.store.check();
        last = Some(outcome);
    }
    (machine, last.expect("at least one command"))
}

fn value<'a>(machine: &'a Machine, key: &str) -> Option<&'a [u8]> {
    machine.store.get(key.as_bytes()).map(|record| record.value())
}

#[test]
fn a_deletion_then_a_put_in_one_transaction_makes_the_key_anew() {
    let txn =
        Txn { success: vec![Op::Delete(delete("b", RangeEnd::Unbounded)), Op::Put(put("c", "new"))], ..Txn::default() };
    let (machine, _) = run(vec![Command::Put(put("c", "old")), Command::Txn(txn)]);
    let record = machine.store.get(b"c").unwrap();
    assert_eq!((record.version(), record.created(), record.value()), (1, Revision(3), &b"new"[..]));
}

#[test]
fn ignoring_the_value_of_a_key_deleted_just_before_is_refused_and_changes_nothing() {
    let again = Put { ignore_value: true, value: Bytes::new(), ..put("c", "") };
    let txn = Txn { success: vec![Op::Delete(delete("b", RangeEnd::Unbounded)), Op::Put(again)], ..Txn::default() };
    let (machine, outcome) = run(vec![Command::Put(put("c", "old")), Command::Txn(txn)]);
    assert_eq!(outcome.result, Err(Refusal::KeyNotFound));
    assert_eq!(value(&machine, "c"), Some(&b"old"[..]));
    assert_eq!(machine.store.revision(), Revision(2));
}

#[test]
fn compares_treat_a_missing_key_as_zero_but_never_match_its_value() {
    #[track_caller]
    fn check(key: &'static str, end: RangeEnd, relation: Relation, target: Target, expected: bool) {
        let compare = Compare { range: KeyRange { start: key.into(), end }, relation, target };
        let txn = Txn { compare: vec![compare], ..Txn::default() };
        let (_, outcome) = run(vec![
            Command::Put(put("a", "1")),
            Command::Put(put("b", "2")),
            Command::Put(put("b", "3")),
            Command::Txn(txn),
        ]);
        let Ok(Response::Txn { succeeded, .. }) = outcome.result else { panic!("{outcome:?}") };
        assert_eq!(succeeded, expected);
    }
    use Relation::*;
    use Target::*;
    check("a", RangeEnd::Single, Equal, Version(1), true);
    check("b", RangeEnd::Single, Equal, Created(3), true);
    check("b", RangeEnd::Single, Equal, Modified(4), true);
    check("b", RangeEnd::Single, Greater, Value("2".into()), true);
    check("x", RangeEnd::Single, Equal, Version(0), true);
    check("x", RangeEnd::Single, NotEqual, Value("1".into()), false);
    check("a", RangeEnd::Before("c".into()), Less, Modified(5), true);
    check("a", RangeEnd::Before("c".into()), Equal, Version(1), false); // must hold of all
    check("x", RangeEnd::Unbounded, Equal, Lease(0), true); // an empty range is like a missing key
}

#[test]
fn operations_see_the_writes_before_them_and_share_a_revision() {
    let read = |key: &'static str| {
        Op::Range(command::Range {
            range: KeyRange { start: key.into(), end: RangeEnd::Single },
            options: Default::default(),
            keys_only: false,
            serializable: false,
        })
    };
    let nested = Txn { success: vec![Op::Put(put("b", "2")), read("a")], ..Txn::default() };
    let txn = Txn { success: vec![read("a"), Op::Put(put("a", "1")), Op::Txn(nested)], ..Txn::default() };
    let (machine, outcome) = run(vec![Command::Txn(txn)]);
    let Ok(Response::Txn { responses, .. }) = outcome.result else { panic!() };
    assert_eq!(responses.iter().map(|r| r.revision.0).collect::<Vec<_>>(), [1, 2, 2]);
    let Response::Txn { responses: inner, .. } = &responses[2].response else { panic!() };
    let Response::Range { result, .. } = &inner[1].response else { panic!() };
    assert_eq!(result.records[0].value(), b"1");
    assert_eq!(outcome.changes.len(), 2);
    assert_eq!(machine.store.revision(), Revision(2));
}

#[test]
fn a_revoked_lease_takes_its_keys_along_in_one_revision() {
    let leased = |key| Command::Put(Put { lease: LeaseId(-7), ..put(key, "x") });
    let (machine, outcome) = run(vec![
        Command::LeaseGrant { id: LeaseId(-7), ttl: 5 },
        leased("b"),
        leased("a"),
        Command::Put(put("b", "free")), // a put without a lease detaches the key
        leased("c"),
        Command::LeaseRevoke { id: LeaseId(-7) },
    ]);
    let dead: Vec<_> = outcome.changes.iter().map(|record| record.key()).collect();
    assert_eq!(dead, [b"a", b"c"]);
    assert_eq!(value(&machine, "b"), Some(&b"free"[..]));
    assert_eq!(machine.store.revision(), Revision(6));
    let (_, outcome) = run(vec![leased("a")]);
    assert_eq!(outcome.result, Err(Refusal::LeaseNotFound));
}

#[test]
fn the_digest_tells_apart_what_differs_and_nothing_else() {
    let script = |last: &'static str| run(vec![Command::Put(put("a", "1")), Command::Put(put("a", last))]).0.digest();
    assert_eq!(script("2"), script("2"));
    assert_ne!(script("2"), script("3"));
    let (refused, _) = run(vec![Command::Put(put("a", "1")), Command::Compact { revision: Revision(9) }]);
    let (other, _) = run(vec![Command::Put(put("a", "1")), Command::LeaseRevoke { id: LeaseId(1) }]);
    assert_ne!(refused.digest(), script("2"));
    assert_ne!(refused.digest(), Machine::default().digest());
    assert_ne!(other.digest(), Machine::default().digest());
}
