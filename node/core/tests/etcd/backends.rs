//! Backends that real etcds wrote: a member's own, and the one that `snapshot save` got from it.
use std::collections::BTreeMap;

use bytes::Bytes;
use detcd_core::{
    format::{
        bbolt::{Damage, Next, Reader, Totals, Writer},
        snap::Snapshot,
        v2store,
    },
    machine::{
        Machine,
        backend::{Builder, Status, StatusFold, View},
    },
    mvcc::{KeyRange, RangeEnd, RangeOptions},
    types::{Digest, Revision},
};
use serde_json::{Value, json};

use super::{
    files::{self, FILES, Files, for_each_version},
    logs::Log,
};

/// Rows by bucket.
type Content = BTreeMap<Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>>;

fn read(file: &Bytes) -> Result<(Content, Status, Totals), Damage> {
    let (mut reader, mut status) = (Reader::new(file.len() as u64), StatusFold::default());
    let mut content = Content::new();
    loop {
        match reader.pull()? {
            Next::Bytes { offset, len } => reader.give(file.slice(offset as usize..offset as usize + len)),
            Next::Bucket(name) => {
                status.bucket(name);
                content.insert(name.to_vec(), Vec::new());
            }
            Next::Row { bucket, key, value } => {
                let told = status.row(bucket, key, value);
                told.map_err(|error| Damage { offset: 0, reason: error.to_string() })?;
                content.get_mut(bucket).expect("its bucket began").push((key.to_vec(), value.to_vec()));
            }
            Next::End(totals) => return Ok((content, status.finish(), totals)),
        }
    }
}

fn build(content: &Content) -> Result<Machine, String> {
    let mut builder = Builder::default();
    for (bucket, rows) in content {
        for (key, value) in rows {
            builder.row(bucket, key, value).map_err(|error| error.to_string())?;
        }
    }
    builder.finish().map_err(|error| error.to_string())
}

fn write(machine: Machine) -> Bytes {
    let mut writer = Writer::new(View::new(machine));
    let mut file = Vec::new();
    while let Some(chunk) = writer.next_chunk(10_000) {
        file.extend(chunk);
    }
    file.into()
}

/// Both of a version's backends, as they hold the same.
fn for_each_backend(check: impl Fn(&Files, &Bytes)) {
    for_each_version(|files| [&files.db, &files.snapshot].into_iter().for_each(|file| check(files, file)));
}

/// Members' client URLs, which 3.5.1 keeps in its old store only.
fn machine(files: &Files, file: &Bytes) -> Machine {
    let mut machine = build(&read(file).expect("an undamaged file").0).expect("a sound backend");
    let snapshot = Snapshot::decode(&files.snap).expect("an undamaged file");
    let (old, _) = v2store::read(&snapshot.data).expect("a tree of its own");
    std::sync::Arc::make_mut(&mut machine.membership).fill_attributes(&old);
    machine
}

#[test]
fn we_read_what_they_answered() {
    for_each_backend(|files, file| {
        let machine = machine(files, file);
        assert_eq!(files::keys(&machine), files.keys);
        assert_eq!(files::leases(&machine), files.leases);
        assert_eq!(files::members(&machine), files.members);
        assert_eq!(files::hashkv(&machine), files.hashkv);
        assert_eq!(machine.cluster_version.as_deref(), Some(files.cluster_version().as_str()));
        let removed: Vec<_> = machine.membership.removed().map(files::hex).collect();
        assert_eq!(removed, files.removed());
        assert_eq!((machine.digest(), machine.digest_is_whole()), (Digest::default(), false));
    });
}

#[test]
fn the_backend_is_what_the_log_comes_to() {
    for_each_version(|files| {
        let (replica, applied) = Log::of(files).replay();
        let (ours, theirs) = (replica.machine(), machine(files, &files.db));
        assert_eq!((theirs.applied(), theirs.applied_term()), (applied, ours.applied_term()));
        assert_eq!(theirs.membership, ours.membership);
        assert!(theirs.leases.iter().eq(ours.leases.iter()));
        let (first, last) = (ours.store.compacted(), ours.store.revision());
        assert_eq!((theirs.store.compacted(), theirs.store.revision()), (first, last));
        let everything = KeyRange { start: b"\0"[..].into(), end: RangeEnd::Unbounded };
        for revision in first.0..=last.0 {
            let options = RangeOptions { revision: Revision(revision), ..RangeOptions::default() };
            // Which version came before one is not told of those that were compacted away.
            let read = |machine: &Machine| {
                let result = machine.store.range(&everything, &options).expect("a revision that is not compacted");
                (result.records.iter().map(|record| record.to_proto()).collect::<Vec<_>>(), result.count)
            };
            assert!(read(&theirs) == read(ours), "at revision {revision}");
            let hash = |machine: &Machine| machine.store.hash(Revision(revision));
            assert_eq!(hash(&theirs), hash(ours), "at revision {revision}");
        }
    });
}

#[test]
fn the_status_is_theirs() {
    for_each_version(|files| {
        let (_, status, totals) = read(&files.snapshot).unwrap();
        let Status { hash, revision, rows, live_keys, storage_version } = status;
        let by_36 = json!({
            "hash": hash,
            "revision": revision.0,
            "totalKey": live_keys,
            "totalSize": totals.bytes,
            "version": storage_version,
        });
        assert_eq!(by_36, files.status_by_36);
        let by_35 = json!({ "hash": hash, "revision": revision.0, "totalKey": rows, "totalSize": totals.bytes });
        let expected: &Value = if files.version == "3.5.1" { &by_35 } else { &by_36 };
        assert_eq!(expected, &files.status);
    });
}

#[test]
fn we_write_the_rows_that_they_wrote() {
    for_each_backend(|_, file| {
        let (content, status, _) = read(file).unwrap();
        let (again, status_again, totals) = read(&write(build(&content).unwrap())).unwrap();
        assert_eq!(again, content);
        assert_eq!((status_again, totals.buckets, totals.free_pages), (status, 10, 0));
    });
}

#[test]
fn every_cut_is_noticed() {
    let file = &FILES[0].snapshot;
    for cut in (0..file.len()).step_by(97) {
        assert!(read(&file.slice(..cut)).is_err(), "cut at {cut}");
    }
    // A member's own file is longer than what is in it.
    let (content, _, totals) = read(&FILES[1].db).unwrap();
    assert!((FILES[1].db.len() as u64) > totals.bytes);
    assert_eq!(read(&FILES[1].db.slice(..totals.bytes as usize)).unwrap().0, content);
    assert!(read(&FILES[1].db.slice(..totals.bytes as usize - 1)).is_err());
}

/// What a flipped bit leads to: an error; the same rows; another name, key or value; or, where it spoils the newer
/// meta, the rows of the transaction before.
#[test]
fn flipped_bits_are_noticed_or_change_one_row() {
    for_each_version(|files| {
        let (content, _, totals) = read(&files.snapshot).unwrap();
        let rows = |content: &Content| -> Vec<(Vec<u8>, Vec<u8>)> { content.values().flatten().cloned().collect() };
        let whole = rows(&content);
        let mut noticed = 0;
        let mut bad = files.snapshot.to_vec();
        let written: Vec<_> = (0..bad.len()).filter(|at| bad[*at] != 0).collect();
        for (turn, at) in written.into_iter().step_by(5).enumerate() {
            let bit = 1 << (turn % 8);
            bad[at] ^= bit;
            match read(&Bytes::copy_from_slice(&bad)) {
                Err(_) => noticed += 1,
                Ok((content, _, others)) => {
                    let rows = rows(&content);
                    let changed = rows.iter().zip(&whole).filter(|(a, b)| a != b).count();
                    let spoilt_meta = at < 2 * 4096;
                    assert!(spoilt_meta || (others, rows.len()) == (totals, whole.len()), "offset {at}");
                    assert!(spoilt_meta || changed <= 1, "offset {at} changes {changed} rows");
                    // Whether the machine is refused or not, there is an answer.
                    let _ = build(&content);
                }
            }
            bad[at] ^= bit;
        }
        assert!(noticed > 100, "{noticed} flips noticed");
    });
}
