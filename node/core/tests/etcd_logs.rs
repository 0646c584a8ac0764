//! Logs that real etcds wrote, replayed: our store must come to what theirs answered, to the last field and hash.
//!
//! `tests/etcd-files` says where they come from and what happened in them.
use std::{io::Read, sync::LazyLock};

use detcd_core::{
    event::NodeEvent,
    format::wal::{HardState, Metadata, Reader, Record, Writer},
    limits,
    machine::Machine,
    mvcc::{KeyRange, RangeEnd},
    replica::{Config, Input, Output, Recovered, Replica},
    types::{Index, MemberId, Revision, Term},
};
use raft::eraftpb::Entry;
use serde_json::{Value, json};

struct Files {
    version: &'static str,
    /// A member's whole data directory.
    archive: &'static [u8],
    keys: &'static str,
    leases: &'static str,
    members: &'static str,
    removed: &'static str,
    hashkv: &'static str,
}

macro_rules! files {
    ($version:literal) => {
        Files {
            version: $version,
            archive: include_bytes!(concat!("../../../tests/etcd-files/", $version, "/data-dir.tar.xz")),
            keys: include_str!(concat!("../../../tests/etcd-files/", $version, "/keys.json")),
            leases: include_str!(concat!("../../../tests/etcd-files/", $version, "/leases.json")),
            members: include_str!(concat!("../../../tests/etcd-files/", $version, "/members.json")),
            removed: include_str!(concat!("../../../tests/etcd-files/", $version, "/removed.json")),
            hashkv: include_str!(concat!("../../../tests/etcd-files/", $version, "/hashkv.json")),
        }
    };
}

/// A log as its one segment holds it.
struct Log {
    segment: Vec<u8>,
    /// Where the zeros begin.
    end: usize,
    records: Vec<Record>,
}

impl Files {
    fn log(&self) -> Log {
        let mut files = Vec::new();
        lzma_rs::xz_decompress(&mut &self.archive[..], &mut files).expect("an xz file");
        let mut files = tar::Archive::new(&files[..]);
        let mut segments = files.entries().expect("a tar file").map(Result::unwrap).filter(|file| {
            let path = file.path().expect("an ordinary name");
            path.extension().is_some_and(|suffix| suffix == "wal")
        });
        let mut segment = Vec::new();
        segments.next().expect("there is a log").read_to_end(&mut segment).unwrap();
        assert!(segments.next().is_none(), "it is shorter than a segment");
        let (records, end) = read(&segment);
        Log { segment, end, records }
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).expect("it is JSON")
    }
}

fn read(segment: &[u8]) -> (Vec<Record>, usize) {
    let (mut reader, mut records) = (Reader::new(segment, Some(0)), Vec::new());
    while let Some(record) = reader.read().expect("it was written to the end") {
        records.push(record);
    }
    (records, reader.offset())
}

impl Log {
    fn metadata(&self) -> Metadata {
        let found = self.records.iter().find_map(|record| match record {
            Record::Metadata(metadata) => Some(*metadata),
            _ => None,
        });
        found.expect("a log says whose it is")
    }

    fn recovered(&self) -> Recovered {
        let mut recovered = Recovered::default();
        for record in &self.records {
            match record {
                Record::Entry(entry) => {
                    recovered.entries.truncate(entry.index as usize - 1);
                    recovered.entries.push(entry.clone());
                }
                Record::State(state) => recovered.hard_state = *state,
                _ => {}
            }
        }
        recovered
    }

    /// A member that starts from this log, and how far it applied.
    fn replay(&self) -> (Replica, Index) {
        let config = Config {
            id: self.metadata().member,
            name: "n1".into(),
            client_urls: Vec::new(),
            cluster_version: "3.6.0".into(),
            heartbeat_ms: limits::HEARTBEAT_MS,
            election_ms: limits::ELECTION_MS,
            request_bytes_max: limits::REQUEST_BYTES_MAX,
            tail_bytes: limits::TAIL_BYTES,
            watch_progress_ms: limits::WATCH_PROGRESS_MS,
            seed: 1,
        };
        let (mut replica, mut out) = (Replica::new(config, self.recovered()), Vec::new());
        replica.step(Input::Settle, &mut out);
        let mut applied = Index(0);
        for output in out {
            match output {
                Output::Note(NodeEvent::Applied { index, .. }) => applied = index,
                Output::Note(NodeEvent::ConfigurationApplied { .. }) => {}
                other => panic!("nothing but applying what is committed: {other:?}"),
            }
        }
        (replica, applied)
    }
}

static LOGS: LazyLock<[(Files, Log); 3]> = LazyLock::new(|| {
    [files!("3.5.1"), files!("3.6.16"), files!("3.7.3")].map(|files| {
        let log = files.log();
        (files, log)
    })
});

fn for_each_version(check: impl Fn(&Files, &Log)) {
    for (files, log) in LOGS.iter() {
        println!("etcd {}", files.version);
        check(files, log);
    }
}

#[test]
fn their_logs_make_sense() {
    for_each_version(|_, log| {
        assert!(matches!(log.records[..3], [Record::Crc(0), Record::Metadata(_), Record::Snapshot(_)]));
        assert!(log.segment[log.end..].chunks(1 << 10).all(|zeros| zeros == &[0; 1 << 10][..zeros.len()]));
        let (mut last, mut state) = (Entry::default(), HardState::default());
        for record in &log.records[3..] {
            match record {
                Record::Entry(entry) => {
                    assert!(entry.index > state.commit.0 && entry.index <= last.index + 1, "{entry:?}");
                    assert!(entry.term >= last.term, "{entry:?}");
                    last = entry.clone();
                }
                Record::State(next) => {
                    assert!(next.term >= state.term && next.commit >= state.commit, "{next:?}");
                    assert!(next.commit.0 <= last.index, "{next:?}");
                    state = *next;
                }
                Record::Snapshot(mark) => {
                    assert!(mark.index <= state.commit && mark.index.0 % 120 == 1, "{mark:?}");
                    assert_eq!(mark.conf_state.as_ref().expect("since 3.5").voters.len(), 3);
                }
                other => panic!("{other:?} belongs at the beginning"),
            }
        }
        assert!(state.commit.0 > 200 && last.index >= state.commit.0);
    });
}

#[test]
fn we_write_what_they_wrote() {
    for_each_version(|files, log| {
        let (mut writer, mut bytes) = (Writer::new(0), Vec::new());
        writer.begin(&mut bytes, log.metadata(), None);
        for record in &log.records[3..] {
            match record {
                Record::Entry(entry) => writer.entry(&mut bytes, entry),
                Record::State(state) => writer.state(&mut bytes, *state),
                Record::Snapshot(mark) => writer.snapshot(&mut bytes, mark),
                other => panic!("{other:?} belongs at the beginning"),
            }
        }
        let (again, end) = read(&bytes);
        assert!(again == log.records && end == bytes.len());
        // From 3.7 on etcd leaves out an entry's type if it is the ordinary one.
        if files.version != "3.7.3" {
            let same = bytes.iter().zip(&log.segment).take_while(|(ours, theirs)| ours == theirs).count();
            assert_eq!((same, bytes.len()), (log.end, log.end));
        }
    });
}

#[test]
fn we_come_to_what_they_answered() {
    for_each_version(|files, log| {
        let (replica, applied) = log.replay();
        let recovered = log.recovered();
        assert_eq!(applied, recovered.hard_state.commit);
        let machine = replica.machine();
        assert_eq!(machine.applied(), applied);
        assert_eq!(machine.applied_term(), Term(recovered.entries[applied.0 as usize - 1].term));
        assert_eq!(keys(machine), Files::value(files.keys));
        assert_eq!(leases(machine), sorted(Files::value(files.leases), "id"));
        assert_eq!(members(machine), sorted(Files::value(files.members), "id"));
        assert_eq!(hashkv(machine), Files::value(files.hashkv));
        let minor = files.version.split('.').nth(1).expect("a version has a minor");
        assert_eq!(machine.cluster_version.as_deref(), Some(format!("3.{minor}.0").as_str()));
        // In 3.7.3's cluster the removal never came about.
        let removed: Vec<_> = machine.membership.removed().map(hex).collect();
        let asked = Files::value(files.removed)["removed"].as_str().expect("a member").to_owned();
        assert_eq!(removed, if files.version == "3.7.3" { vec![] } else { vec![asked] });
    });
}

fn keys(machine: &Machine) -> Value {
    let all = KeyRange { start: b"\0"[..].into(), end: RangeEnd::Unbounded };
    let show = |record: &std::sync::Arc<detcd_core::mvcc::Record>| {
        json!({
            "key": String::from_utf8_lossy(&record.key),
            "value_base64": base64(&record.value),
            "create_revision": record.created.0,
            "mod_revision": record.modified().0,
            "version": record.version,
            "lease": record.lease.0,
        })
    };
    let kvs: Vec<_> = machine.store.live(&all).map(show).collect();
    json!({ "kvs": kvs, "revision": machine.store.revision().0 })
}

fn leases(machine: &Machine) -> Value {
    let show = |(id, lease): (detcd_core::types::LeaseId, &detcd_core::lease::Lease)| {
        let keys: Vec<_> = lease.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        json!({ "id": id.0, "granted_ttl": lease.ttl, "keys": keys })
    };
    sorted(machine.leases.iter().map(show).collect(), "id")
}

fn members(machine: &Machine) -> Value {
    let show = |member: &detcd_core::machine::membership::Member| {
        assert!(!member.is_learner);
        json!({
            "id": hex(member.id),
            "name": member.name,
            "peer_urls": member.peer_urls,
            "client_urls": member.client_urls,
        })
    };
    sorted(machine.membership.members().map(show).collect(), "id")
}

fn hashkv(machine: &Machine) -> Value {
    let store = &machine.store;
    let hash = store.hash(Revision(0)).expect("the present can be hashed");
    json!({ "hash": hash, "compact_revision": store.compacted().0, "revision": store.revision().0 })
}

fn hex(id: MemberId) -> String {
    id.to_string()
}

fn sorted(mut list: Value, by: &str) -> Value {
    list.as_array_mut().expect("a list").sort_by_key(|item| item[by].to_string());
    list
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let quads = bytes.chunks(3).flat_map(|chunk| {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4).map(move |at| match at <= chunk.len() {
            true => DIGITS[(bits >> (18 - 6 * at)) as usize & 63] as char,
            false => '=',
        })
    });
    quads.collect()
}
