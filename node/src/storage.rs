//! What a member keeps on disk: the log, and the state that stands in for its beginning. The order in which the two
//! become durable is decided here.
use std::{io, path::PathBuf, sync::Arc};

use detcd_core::{
    event::NodeEvent,
    format::wal::Metadata,
    replica::{Persist, Recovered, State},
    types::{Index, Term},
};
use futures::future::join;

use crate::{
    config::Config,
    error::Failure,
    host::{Clock, Disk},
    metrics::Metrics,
    snapshots::{Snapshots, Written},
    wal::{NewSegment, Sizes, Stopwatch, Wal, segments},
};

pub struct Storage {
    wal: Wal,
    snapshots: Snapshots,
}

/// What writing brought about.
#[derive(Default)]
pub struct Wrote {
    pub events: Vec<NodeEvent>,
    /// Segments that are not needed any more: sequence and path.
    pub superfluous: Vec<(u64, PathBuf)>,
}

/// Whether there is a log already.
pub async fn exists(config: &Config, disk: &dyn Disk) -> Result<bool, Failure> {
    Ok(!segments(disk, &config.wal_dir()).await?.is_empty())
}

impl Storage {
    /// Founds a log. What states lie about are none of its own, and would be taken for such.
    pub async fn create(
        config: &Config,
        disk: Arc<dyn Disk>,
        metadata: Metadata,
        founding: &Recovered,
    ) -> Result<Storage, Failure> {
        let dir = config.snap_dir();
        let (snapshots, found) = Snapshots::open(disk.clone(), &dir, config.snapshots_kept).await?;
        if snapshots.has_state().await? || !found.is_empty() {
            return Err(Failure::StrayState { path: dir, wal: config.wal_dir() });
        }
        let wal = Wal::create(disk, &config.wal_dir(), sizes(config), metadata, founding).await?;
        Ok(Storage { wal, snapshots })
    }

    /// Reads everything back: the newest state that the log confirms, and the log behind it.
    pub async fn open(config: &Config, disk: Arc<dyn Disk>) -> Result<(Storage, Metadata, Recovered), Failure> {
        let (mut snapshots, found) = Snapshots::open(disk.clone(), &config.snap_dir(), config.snapshots_kept).await?;
        let dir = config.wal_dir();
        // Either takes its time; which state it is the log knows, but there is hardly ever more than one.
        let (opened, ahead) = join(open_wal(config, disk, found), snapshots.look_ahead()).await;
        let (mut wal, metadata, mut recovered) = opened?;
        let start = recovered.before.0;
        let machine = snapshots.read(start, ahead).await?;
        let (applied, last) = (machine.applied(), recovered.last());
        if applied > last {
            let reason = format!("the state has seen entry {applied}, but the log ends at {last}");
            return Err(Failure::Log { path: dir, reason });
        }
        // All is well: from here on things are changed. The log first, for its mark decides which state counts.
        wal.renew().await?;
        snapshots.settle(start, applied).await?;
        recovered.state = State(Box::new(machine));
        Ok((Storage { wal, snapshots }, metadata, recovered))
    }

    /// Counts how long the log's syncs take.
    pub(crate) fn time_syncs(&mut self, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) {
        self.wal.stopwatch = Some(Stopwatch { clock, metrics });
    }

    /// The directory of states, for whoever writes or receives one.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// The segment that is being written.
    pub fn path(&self) -> &std::path::Path {
        self.wal.path()
    }

    /// Bytes of log that a restart would have to read.
    pub fn log_bytes(&self) -> u64 {
        self.wal.since_mark()
    }

    /// Writes batches, in order. A received state gets into its place once the batch that takes it in is durable.
    pub async fn append(&mut self, batches: &[Persist]) -> io::Result<Wrote> {
        let mut wrote = Wrote::default();
        // A state's batch ends what is written at once: its mark must be durable before the next one's.
        for batches in batches.split_inclusive(|batch| batch.snapshot.is_some()) {
            let segment = self.wal.append(batches).await?;
            wrote.note(segment);
            if let Some(mark) = batches.last().and_then(|batch| batch.snapshot.as_ref()) {
                self.snapshots.place_received(mark.index).await?;
                wrote.superfluous.extend(self.wal.take_superfluous());
            }
        }
        if !wrote.events.is_empty() {
            wrote.superfluous.extend(self.wal.take_superfluous());
        }
        Ok(wrote)
    }

    /// Writes what nobody waited for.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.wal.flush().await
    }

    /// Makes a checkpoint the place to start from.
    pub async fn adopt(&mut self, written: &Written) -> io::Result<Wrote> {
        let (index, mut wrote) = (written.mark.index, Wrote::default());
        if !self.snapshots.place_checkpoint(written).await? {
            let reason = "a newer state was received meanwhile".to_owned();
            wrote.events.push(NodeEvent::CheckpointDropped { index, reason });
            return Ok(wrote);
        }
        self.wal.mark(&written.mark).await?;
        wrote.events.push(NodeEvent::CheckpointDone { index });
        wrote.superfluous = self.wal.take_superfluous();
        // What lies about too long does no harm.
        if let Err(error) = self.snapshots.purge().await {
            tracing::warn!(target: "snapshots", %error, "cannot remove old snapshots; trying again after the next");
        }
        Ok(wrote)
    }
}

impl Wrote {
    pub fn extend(&mut self, later: Wrote) {
        self.events.extend(later.events);
        self.superfluous.extend(later.superfluous);
    }

    fn note(&mut self, segment: Option<NewSegment>) {
        if let Some(NewSegment { sequence, first }) = segment {
            self.events.push(NodeEvent::SegmentStarted { sequence, first });
        }
    }
}

/// The log behind the newest of the states in `found` that it confirms.
async fn open_wal(
    config: &Config,
    disk: Arc<dyn Disk>,
    found: Vec<(Index, Term)>,
) -> Result<(Wal, Metadata, Recovered), Failure> {
    let dir = config.wal_dir();
    for start in found.into_iter().chain([(Index(0), Term(0))]) {
        if let Some(opened) = Wal::open(disk.clone(), &dir, sizes(config), start).await? {
            return Ok(opened);
        }
    }
    Err(Failure::Log { path: dir, reason: "it does not say where it begins".to_owned() })
}

fn sizes(config: &Config) -> Sizes {
    Sizes { segment: config.segment_bytes, segments_kept: config.segments_kept }
}
