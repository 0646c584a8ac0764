//! A member's process, as far as its disk is concerned: what `run` and the driver do with [`Storage`], without a replica.
use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use detcd_core::{
    consensus::Message,
    proto::raftpb::{self, MessageType},
    replica::Recovered,
};
use detcd_node::{
    config::Config,
    host::Disk,
    snapshots::{Checksum, Pieces, Written, receive},
    storage::{self, Storage, Wrote},
};
use detcd_sim::world::clock::{SimClock, SimTime};
use prost::Message as _;

use crate::{
    history::{History, hash_entry, hash_state},
    script::{Action, Member, Script},
};

pub struct Process {
    disk: Arc<dyn Disk>,
    history: Arc<History>,
    storage: Storage,
    written: Option<Written>,
}

fn config(script: &Script) -> Config {
    Config {
        segment_bytes: script.segment_bytes,
        segments_kept: 1,
        snapshots_kept: 1,
        ..Config::new("n1", Path::new("/var/data"))
    }
}

impl Process {
    /// Starts: founds a log if there is none. Returns what it found, or founded.
    pub async fn start(script: &Script, disk: Arc<dyn Disk>) -> Result<(Process, Member), String> {
        let (config, history) = (config(script), script.history.clone());
        let told = |failure: detcd_node::error::Failure| failure.to_string();
        let (storage, recovered) = if storage::exists(&config, &*disk).await.map_err(told)? {
            let (storage, metadata, recovered) = Storage::open(&config, disk.clone()).await.map_err(told)?;
            assert_eq!(metadata, history.metadata());
            (storage, recovered)
        } else {
            let founding = history.founding();
            let storage = Storage::create(&config, disk.clone(), history.metadata(), &founding).await.map_err(told)?;
            (storage, founding)
        };
        let member = member(&recovered, &history)?;
        Ok((Process { disk, history, storage, written: None }, member))
    }

    pub async fn act(&mut self, action: &Action) -> Result<(), String> {
        let told = |error: std::io::Error| error.to_string();
        match action {
            Action::Append(batches) => {
                let wrote = self.storage.append(batches).await.map_err(told)?;
                self.tidy(wrote).await
            }
            Action::Flush => self.storage.flush().await.map_err(told),
            Action::Write(index) => {
                let state = self.history.state(*index).clone();
                let clock = SimClock::new(SimTime::current(), Duration::ZERO, 0);
                self.written = Some(self.storage.snapshots().write_checkpoint(state, &clock).await.map_err(told)?);
                Ok(())
            }
            Action::Adopt(_) => {
                let written = self.written.take().expect("it was written before");
                let wrote = self.storage.adopt(&written).await.map_err(told)?;
                self.tidy(wrote).await
            }
            Action::Receive(index) => {
                let (message, mut stream) = (message(&self.history, *index), stream(&self.history, *index));
                let received = receive(self.storage.snapshots(), &message, &mut stream, true).await;
                let state = received.map_err(|error| error.to_string())?;
                if state == *self.history.state(*index) { Ok(()) } else { Err("another state arrived".into()) }
            }
            Action::Drop(index) => {
                let index = self.history.mark(*index).index;
                self.storage.snapshots().drop_received(index).await.map_err(told)
            }
        }
    }

    /// Removes what is superfluous, as the driver does.
    async fn tidy(&self, wrote: Wrote) -> Result<(), String> {
        for (_, path) in wrote.superfluous {
            self.disk.remove(&path).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// What was found, if it is of this history.
fn member(recovered: &Recovered, history: &History) -> Result<Member, String> {
    let Recovered { hard_state, before, entries, state } = recovered;
    let machine = &*state.0;
    let applied = machine.applied().0;
    if applied > history.last() || *state != *history.state(applied) {
        return Err(format!("the state of {applied} is not the one that was agreed on"));
    }
    if hash_state(machine) != history.state_hash(applied) {
        return Err(format!("the state of {applied} does not hold what was agreed on"));
    }
    let log = entries.iter().map(|entry| (entry.index, entry.term, hash_entry(entry))).collect();
    Ok(Member { hard_state: *hard_state, start: (before.0.0, before.1.0), log, state: applied })
}

/// The leader's message that comes before a state.
fn message(history: &History, index: u64) -> Message {
    let mark = history.mark(index);
    let voters = mark.configuration.voters.iter().map(|id| id.0).collect();
    let conf_state = raftpb::ConfState { voters, auto_leave: Some(false), ..Default::default() };
    let metadata =
        raftpb::SnapshotMetadata { conf_state: Some(conf_state), index: Some(mark.index.0), term: Some(mark.term.0) };
    let message = raftpb::Message {
        r#type: Some(MessageType::MsgSnap as i32),
        to: Some(history.metadata().member.0),
        from: Some(history.leader().0),
        term: Some(history.term(history.last())),
        snapshot: Some(raftpb::Snapshot { data: None, metadata: Some(metadata) }),
        ..Default::default()
    };
    Message::decode(&message.encode_to_vec()).expect("a message of raft's")
}

/// A state as it comes over the wire, in a few pieces: its file and the file's checksum.
struct Stream(std::vec::IntoIter<Bytes>);

fn stream(history: &History, index: u64) -> Stream {
    let mut bytes = history.file(index);
    let mut checksum = Checksum::default();
    checksum.update(&bytes);
    bytes.extend_from_slice(&checksum.bytes());
    let pieces: Vec<_> = bytes.chunks(10_000).map(Bytes::copy_from_slice).collect();
    Stream(pieces.into_iter())
}

impl Pieces for Stream {
    async fn next(&mut self) -> Option<Result<Bytes, String>> {
        self.0.next().map(Ok)
    }
}
