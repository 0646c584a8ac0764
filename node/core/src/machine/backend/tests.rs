//! A machine, its file, and the machine from that file: equal, and equal in whatever comes after.
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    format::bbolt::{Next, Reader, Source, Writer},
    machine::{
        Machine,
        command::{Command, Delete, Op, Put, Txn},
        membership::{Change, Member},
    },
    mvcc::{Fields, KeyRange, Position, RangeEnd, RangeOptions, Record},
    types::{Digest, Index, LeaseId, MemberId, RequestId, Revision, Term},
};

/// What happens next, by what numbers come to.
type Step = (u8, u8, u8, u16);

fn key(n: u8) -> Bytes {
    Bytes::from(format!("/registry/{}", "abcdefgh".split_at(usize::from(n % 8)).0))
}

fn range(from: u8, to: u8) -> KeyRange {
    let end = if to.is_multiple_of(4) { RangeEnd::Unbounded } else { RangeEnd::Before(key(to)) };
    KeyRange { start: key(from), end }
}

fn put(a: u8, b: u8, size: u16) -> Put {
    // Now and then a value that needs pages of its own.
    let size = if b % 16 == 3 { usize::from(size) } else { usize::from(size % 64) };
    Put {
        key: key(a),
        value: vec![b; size].into(),
        lease: LeaseId(if b.is_multiple_of(3) { i64::from(b % 5) - 2 } else { 0 }),
        previous: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn command(machine: &Machine, (kind, a, b, c): Step) -> Command {
    let back = i64::from(a % 16);
    match kind % 20 {
        0..8 => Command::Put(put(a, b, c)),
        8..10 => Command::Delete(Delete { range: range(a, b), previous: false }),
        10..12 => {
            let delete = Op::Delete(Delete { range: range(a, b), previous: false });
            let twice = Op::Txn(Txn { success: vec![Op::Put(put(b, a, c)), Op::Put(put(b, b, c))], ..Txn::default() });
            Command::Txn(Txn { success: vec![Op::Put(put(a, b, c)), delete, twice], ..Txn::default() })
        }
        12..14 => Command::Compact { revision: Revision(machine.store.revision().0 - back) },
        14..16 => Command::LeaseGrant { id: LeaseId(i64::from(b % 5) - 2), ttl: i64::from(c) + 1 },
        16 => Command::LeaseRevoke { id: LeaseId(i64::from(b % 5) - 2) },
        17 => Command::ClusterVersion { version: format!("3.{}.0", 5 + a % 3) },
        _ => Command::MemberAttributes {
            member: member(a).id,
            name: format!("n{}", a % 4),
            client_urls: vec![format!("http://127.0.0.1:{c}")],
        },
    }
}

fn member(a: u8) -> Member {
    Member { is_learner: a % 8 > 5, ..Member::founding("m", vec![format!("http://127.0.0.1:{}", a % 4)], "t") }
}

fn change((_, a, b, c): Step) -> Change {
    match b % 5 {
        0..3 => Change::Add(member(a)),
        3 => Change::Promote(member(a).id),
        _ if c % 2 == 0 => Change::UpdatePeers(member(a).id, vec![format!("http://127.0.0.1:{c}")]),
        _ => Change::Remove(member(a).id),
    }
}

/// Applies a step; what it came to, as text.
fn apply(machine: &mut Machine, step: Step) -> String {
    let (index, term) = (Index(machine.applied().0 + 1), Term(1 + machine.applied().0 / 10));
    match step.0 % 23 {
        kind @ 0..20 => {
            let data = command(machine, (kind, step.1, step.2, step.3)).encode(RequestId(index.0)).into();
            let outcome = machine.apply(index, term, data, |_| true).expect("a command that this version knows");
            let records = outcome.changes.iter().map(|record| visible(machine, record));
            let changes: Vec<_> = records.collect();
            format!("{:?} {:?} {changes:?}", outcome.result.map(drop), outcome.revision)
        }
        _ => format!("{:?}", machine.apply_change(index, term, change(step))),
    }
}

fn machine(steps: &[Step]) -> Machine {
    let mut machine = Machine::default();
    steps.iter().for_each(|step| drop(apply(&mut machine, *step)));
    machine
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(any::<Step>(), 0..120)
}

fn file(machine: &Machine) -> Bytes {
    let mut writer = Writer::new(View::new(machine.clone()));
    let mut file = Vec::new();
    while let Some(chunk) = writer.next_chunk(1 << 16) {
        file.extend(chunk);
    }
    file.into()
}

fn load(file: &Bytes) -> Result<Machine, String> {
    let (mut reader, mut builder) = (Reader::new(file.len() as u64), Builder::default());
    loop {
        match reader.pull().map_err(|damage| damage.to_string())? {
            Next::Bytes { offset, len } => reader.give(file.slice(offset as usize..offset as usize + len)),
            Next::Bucket(_) => {}
            Next::Row { bucket, key, value } => builder.row(bucket, key, value).map_err(|error| error.to_string())?,
            Next::End(_) => return builder.finish().map_err(|error| error.to_string()),
        }
    }
}

/// Links count as far as they lead to something.
fn visible(machine: &Machine, record: &Record) -> Record {
    let previous = if machine.store.holds(record.previous()) { record.previous() } else { Position::default() };
    Record::new(&Fields { previous, ..record.fields() })
}

/// Everything that can be asked of a machine.
fn state(machine: &Machine) -> impl PartialEq + std::fmt::Debug + use<> {
    let store = &machine.store;
    let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    let readable = store.compacted().0.max(1)..=store.revision().0;
    let reads = readable.map(|at| {
        let options = RangeOptions { revision: Revision(at), ..RangeOptions::default() };
        let records = store.range(&everything, &options).expect("it is readable").records;
        (records.iter().map(|record| *record.position()).collect::<Vec<_>>(), store.hash(Revision(at)))
    });
    (
        store.history(Revision(0)).map(|record| visible(machine, record)).collect::<Vec<_>>(),
        reads.collect::<Vec<_>>(),
        (store.revision(), store.compacted(), store.bytes(), store.keys()),
        machine.leases.iter().map(|(id, lease)| (id, lease.clone())).collect::<Vec<_>>(),
        (machine.membership.clone(), machine.cluster_version.clone(), machine.kept.clone()),
        (machine.applied(), machine.applied_term(), machine.digest(), machine.digest_is_whole()),
    )
}

proptest! {
    #[test]
    fn a_loaded_machine_is_the_machine_and_goes_on_alike(steps in steps(), more in steps()) {
        let mut machine = machine(&steps);
        let file = file(&machine);
        let mut loaded = load(&file).unwrap();
        loaded.store.check();
        prop_assert_eq!(state(&loaded), state(&machine));
        prop_assert_eq!(&self::file(&loaded), &file);
        for step in more {
            prop_assert_eq!(apply(&mut loaded, step), apply(&mut machine, step));
            prop_assert_eq!(loaded.digest(), machine.digest());
        }
        loaded.store.check();
        prop_assert_eq!(state(&loaded), state(&machine));
    }

    #[test]
    fn rows_can_be_taken_up_after_any(steps in steps()) {
        use crate::format::bbolt::Row as _;
        let view = View::new(machine(&steps));
        for bucket in view.buckets() {
            let keys = |after: Option<&[u8]>| view.rows(bucket, after).map(|row| row.key().to_vec()).collect::<Vec<_>>();
            let all = keys(None);
            prop_assert!(all.is_sorted());
            for (at, key) in all.iter().enumerate() {
                prop_assert_eq!(&keys(Some(key)), &all[at + 1..]);
            }
        }
    }

    /// A damaged file is refused, or gives a machine that is sound and whose own file is read.
    #[test]
    fn damage_never_makes_an_unsound_machine(steps in steps(), flips in vec(any::<(u32, u8)>(), 64)) {
        let whole = file(&machine(&steps));
        // Where something is written.
        let places: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
        for (at, bit) in flips {
            let mut bad = whole.to_vec();
            bad[places[at as usize % places.len()]] ^= 1 << (bit % 8);
            if let Ok(machine) = load(&bad.into()) {
                machine.store.check();
                let again = load(&file(&machine)).unwrap();
                prop_assert_eq!(state(&again), state(&machine));
            }
        }
    }
}

#[test]
fn a_file_can_be_written_by_turns_of_several_threads() {
    fn can_be_moved<T: Send + 'static>() {}
    can_be_moved::<Writer<View>>();
    can_be_moved::<Reader>();
    can_be_moved::<Builder>();
}

fn built(rows: &[(&str, &[u8], &[u8])]) -> Result<Machine, BackendError> {
    let mut builder = Builder::default();
    for (bucket, key, value) in rows {
        builder.row(bucket.as_bytes(), key, value)?;
    }
    builder.finish()
}

const INDEX: (&str, &[u8], &[u8]) = (META, CONSISTENT_INDEX, &[0, 0, 0, 0, 0, 0, 0, 9]);

#[test]
fn rows_without_meaning_go_back_unchanged() {
    let kept: [(&str, &[u8], &[u8]); 7] = [
        (ALARM, b"\x08\x07\x10\x01", b""),
        (AUTH, AUTH_ENABLED, &[0]),
        (AUTH, b"authRevision", &[0, 0, 0, 0, 0, 0, 0, 1]),
        (AUTH_ROLES, b"root", b"\n\x04root"),
        (AUTH_USERS, b"root", b"\n\x04root"),
        (CLUSTER, b"downgrade", br#"{"target-version":"","enabled":false}"#),
        (META, b"of-a-later-version", b"\x01"),
    ];
    let machine = built(&[&kept[..], &[INDEX]].concat()).unwrap();
    let loaded = load(&file(&machine)).unwrap();
    assert_eq!(state(&loaded), state(&machine));
    assert_eq!(loaded.kept.len(), kept.len());
    for (bucket, key, value) in kept {
        assert_eq!(loaded.kept.get(&(bucket, Bytes::from_static(key))).map(|value| &value[..]), Some(value));
    }
}

#[test]
fn a_digest_counts_only_at_its_own_index() {
    let mut machine = machine(&[(0, 1, 2, 3), (0, 2, 3, 4)]);
    let Machine { applied, digest, .. } = machine;
    let row = [applied.0.to_be_bytes(), digest.0.to_be_bytes()].concat();
    let index = |index: u64| built(&[(META, DIGEST, &row), (META, CONSISTENT_INDEX, &index.to_be_bytes())]).unwrap();
    assert_eq!((index(2).digest(), index(2).digest_is_whole()), (digest, true));
    // etcd went on and left the row behind.
    let cut = index(3);
    assert_eq!((cut.digest(), cut.digest_is_whole()), (Digest::default(), false));
    let mut view = load(&file(&cut)).unwrap();
    assert!(!view.digest_is_whole(), "a digest that was cut is not written");
    apply(&mut view, (0, 1, 1, 1));
    assert!(!view.digest_is_whole());
    apply(&mut machine, (0, 1, 1, 1));
    assert!(machine.digest_is_whole());
}

#[test]
fn an_unfinished_compaction_is_finished() {
    let mut machine = machine(&[(0, 1, 1, 5), (0, 1, 2, 5), (8, 0, 0, 0), (0, 2, 1, 5), (0, 2, 2, 5), (0, 2, 4, 5)]);
    let rows = |view: &View| -> Vec<(Vec<u8>, Vec<u8>)> {
        use crate::format::bbolt::Row as _;
        let row = |row: Row<'_>| {
            let mut value = Vec::new();
            row.put_value(&mut value);
            (row.key().to_vec(), value)
        };
        view.rows(KEY, None).map(row).collect()
    };
    let before = rows(&View::new(machine.clone()));
    machine.store.compact(Revision(6)).unwrap();
    // etcd had noted the compaction and removed some rows, from the first on.
    let scheduled = RowKey::new(Position { main: 6, sub: 0 }, false);
    for removed in 0..4 {
        let mut builder = Builder::default();
        before[removed..].iter().for_each(|(key, value)| builder.row(KEY.as_bytes(), key, value).unwrap());
        builder.row(META.as_bytes(), SCHEDULED_COMPACTION, &scheduled).unwrap();
        builder.row(META.as_bytes(), CONSISTENT_INDEX, &7u64.to_be_bytes()).unwrap();
        let loaded = builder.finish().unwrap();
        loaded.store.check();
        assert_eq!(rows(&View::new(loaded.clone())), rows(&View::new(machine.clone())));
        assert_eq!((loaded.store.compacted(), loaded.store.revision()), (Revision(6), Revision(7)));
    }
}

#[test]
fn backends_that_do_not_hold_together_are_refused_by_name() {
    #[track_caller]
    fn check(rows: &[(&str, &[u8], &[u8])], words: &[&str]) {
        let error = built(rows).expect_err("it is refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let member = br#"{"id":161,"peerURLs":["http://a:1"],"name":"a"}"#;
    assert!(built(&[]).is_ok());
    assert!(built(&[(MEMBERS, b"a1", member), INDEX]).is_ok());
    check(&[(MEMBERS, b"a1", member)], &["bucket meta", "consistent_index"]);
    check(&[(MEMBERS, b"0a1", member)], &["row 306131 of bucket members", "no member's id"]);
    check(&[(MEMBERS, b"+a1", member)], &["no member's id"]);
    check(&[(MEMBERS, b"a2", member)], &["holds member a1"]);
    check(&[(MEMBERS, b"a1", b"{}")], &["row 6131 of bucket members", "missing field `id`"]);
    check(&[(MEMBERS, b"a1", member), (MEMBERS, b"a1", member), INDEX], &["bucket members", "a1 exists"]);
    check(&[(MEMBERS, b"a1", member), (MEMBERS_REMOVED, b"a1", b""), INDEX], &["members_removed too"]);
    check(&[(LEASE, &[0, 0, 0, 0, 0, 0, 0, 7], b"\x08\x08\x10\x01")], &["row 0000000000000007 of bucket lease"]);
    check(&[(LEASE, &[0; 8], b"\x10\x01")], &["row 0000000000000000 of bucket lease"]);
    check(&[(META, TERM, &[0, 0, 0, 0, 0, 0, 0, 2])], &["bucket meta", "consistent_index"]);
    check(&[(META, CONSISTENT_INDEX, &[1])], &["bucket meta", "1 bytes"]);
    check(&[(META, CONSISTENT_INDEX, &[0; 8])], &["index of 0"]);
    check(&[(META, FINISHED_COMPACTION, b"5")], &["no revision"]);
    check(&[(META, DIGEST, b"5")], &["no index and digest"]);
    check(&[(CLUSTER, CLUSTER_VERSION, b"three")], &["no version"]);
    check(&[(KEY, b"5", b"")], &["row 35 of bucket key", "no revision"]);
    check(&[("keys", b"5", b"")], &["bucket keys"]);
    check(&[(ALARM, b"5", b""), (ALARM, b"5", b"")], &["twice"]);
    check(&[(AUTH, AUTH_ENABLED, &[1])], &["authentication is enabled", "etcdctl auth disable"]);
    assert_eq!(built(&[(AUTH, AUTH_ENABLED, &[1])]).unwrap_err(), BackendError::AuthEnabled);
}

#[test]
fn every_bucket_is_there_and_the_storage_version_follows_the_clusters() {
    use crate::format::bbolt::Row as _;
    #[track_caller]
    fn check(cluster_version: Option<&str>, expected: &[&str]) {
        let mut machine = machine(&[(0, 1, 1, 1)]);
        machine.cluster_version = cluster_version.map(Into::into);
        let view = View::new(machine);
        assert_eq!(view.buckets(), BUCKETS);
        assert!(view.buckets().is_sorted());
        let meta: Vec<_> = view.rows(META, None).map(|row| String::from_utf8_lossy(row.key()).into_owned()).collect();
        assert_eq!(meta, expected);
    }
    check(None, &["confState", "consistent_index", "detcdDigest", "term"]);
    check(Some("3.5.0"), &["confState", "consistent_index", "detcdDigest", "term"]);
    check(Some("3.6.0"), &["confState", "consistent_index", "detcdDigest", "storageVersion", "term"]);
    check(Some("3.10.0"), &["confState", "consistent_index", "detcdDigest", "storageVersion", "term"]);
}

#[test]
fn a_removed_member_stays_removed() {
    let id = member(1).id;
    let mut machine = machine(&[]);
    for (at, change) in [Change::Add(member(1)), Change::Add(member(2)), Change::Remove(id)].into_iter().enumerate() {
        machine.apply_change(Index(at as u64 + 1), Term(1), change).unwrap();
    }
    let loaded = load(&file(&machine)).unwrap();
    assert!(loaded.membership.is_removed(id) && !loaded.membership.is_removed(MemberId(1)));
    assert_eq!(loaded.membership.members().count(), 1);
}
