//! Logs that real etcds wrote, replayed: our store must come to what theirs answered.
use bytes::Bytes;
use detcd_core::{
    event::NodeEvent,
    format::wal::{HardState, Metadata, Reader, Record, Writer},
    limits,
    replica::{Config, Input, Output, Recovered, Replica},
    types::{Index, Term},
};
use raft::eraftpb::Entry;

use super::files::{self, Files};

/// A log as its one segment holds it.
pub struct Log<'a> {
    segment: &'a Bytes,
    /// Where the zeros begin.
    end: usize,
    pub records: Vec<Record>,
}

fn read(segment: &Bytes) -> (Vec<Record>, usize) {
    let (mut reader, mut records) = (Reader::new(segment, Some(0)), Vec::new());
    while let Some(record) = reader.read().expect("it was written to the end") {
        records.push(record);
    }
    (records, reader.offset())
}

impl<'a> Log<'a> {
    pub fn of(files: &'a Files) -> Log<'a> {
        let (records, end) = read(&files.segment);
        Log { segment: &files.segment, end, records }
    }

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
    pub fn replay(&self) -> (Replica, Index) {
        let config = Config {
            id: self.metadata().member,
            name: "n1".into(),
            client_urls: Vec::new(),
            cluster_version: "3.6.0".into(),
            heartbeat_ms: limits::HEARTBEAT_MS,
            election_ms: limits::ELECTION_MS,
            tail_bytes: limits::TAIL_BYTES,
            outputs_max: limits::OUTPUTS_MAX,
            request_bytes_max: limits::REQUEST_BYTES_MAX,
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

fn for_each_version(check: impl Fn(&Files, &Log<'_>)) {
    files::for_each_version(|files| check(files, &Log::of(files)));
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
        let bytes = Bytes::from(bytes);
        let (again, end) = read(&bytes);
        assert!(again == log.records && end == bytes.len());
        // From 3.7 on etcd leaves out an entry's type if it is the ordinary one.
        if files.version != "3.7.3" {
            let same = bytes.iter().zip(log.segment).take_while(|(ours, theirs)| ours == theirs).count();
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
        assert_eq!(files::keys(machine), files.keys);
        assert_eq!(files::leases(machine), files.leases);
        assert_eq!(files::members(machine), files.members);
        assert_eq!(files::hashkv(machine), files.hashkv);
        assert_eq!(machine.cluster_version.as_deref(), Some(files.cluster_version().as_str()));
        let removed: Vec<_> = machine.membership.removed().map(files::hex).collect();
        assert_eq!(removed, files.removed());
    });
}
