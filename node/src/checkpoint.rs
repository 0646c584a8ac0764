//! When a checkpoint is due, and what becomes of one: written beside the driver, put into its place between two batches
//! of the log.
use std::{io, path::PathBuf, sync::Arc};

use detcd_core::{
    event::NodeEvent,
    limits::{CHECKPOINT_RETRY_MS, CHECKPOINT_STATE_SHARE},
    machine::Machine,
    replica::State,
    types::{Index, Millis},
};

use crate::{
    config::Config,
    host::Host,
    inbox::{Handle, Item},
    snapshots::{Snapshots, Written},
};

pub struct Checkpoints {
    host: Host,
    snapshots: Snapshots,
    /// See the configuration.
    bytes: u64,
    entries: Option<u64>,
    /// The index of the state in force.
    done: Index,
    stage: Stage,
    /// Not before this time.
    retry_at: Millis,
}

enum Stage {
    Idle,
    Writing,
    Written(Written),
    Placing,
}

impl Checkpoints {
    pub fn new(config: &Config, host: Host, snapshots: Snapshots, done: Index) -> Checkpoints {
        Checkpoints {
            host,
            snapshots,
            bytes: config.checkpoint_bytes,
            entries: config.checkpoint_entries,
            done,
            stage: Stage::Idle,
            retry_at: Millis(0),
        }
    }

    pub fn is_due(&self, log_bytes: u64, machine: &Machine, now: Millis) -> bool {
        let applied = machine.applied();
        if !matches!(self.stage, Stage::Idle) || now < self.retry_at || applied <= self.done {
            return false;
        }
        let entries = applied.0 - self.done.0;
        match self.entries {
            Some(count) => entries > count,
            None => log_bytes > self.bytes.max(machine.store.bytes() / CHECKPOINT_STATE_SHARE),
        }
    }

    /// Starts writing the machine's state as it is now; returns the index it is of.
    pub fn begin(&mut self, machine: &Machine, handle: &Handle) -> Index {
        self.stage = Stage::Writing;
        let (index, state) = (machine.applied(), State(Box::new(machine.clone())));
        let (snapshots, clock, handle) = (self.snapshots.clone(), self.host.clock.clone(), handle.clone());
        tokio::spawn(async move {
            let result = snapshots.write_checkpoint(state, &*clock).await;
            handle.push(Item::Checkpoint { index, result });
        });
        index
    }

    /// It is written, or could not be: a full disk is no reason to stop, for the log still holds everything.
    pub fn written(&mut self, index: Index, result: io::Result<Written>, now: Millis) -> Option<NodeEvent> {
        match result {
            Ok(written) => {
                self.stage = Stage::Written(written);
                None
            }
            Err(error) => {
                self.stage = Stage::Idle;
                self.retry_at = Millis(now.0 + CHECKPOINT_RETRY_MS);
                tracing::warn!(target: "snapshots", %index, %error, "a checkpoint came to nothing; trying again later");
                Some(NodeEvent::CheckpointDropped { index, reason: error.to_string() })
            }
        }
    }

    pub fn has_written(&self) -> bool {
        matches!(self.stage, Stage::Written(_))
    }

    pub fn take_written(&mut self) -> Option<Written> {
        if !self.has_written() {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Placing) {
            Stage::Written(written) => Some(written),
            _ => unreachable!("just seen"),
        }
    }

    /// What came of putting one into its place, and of states that were received.
    pub fn observe(&mut self, event: &NodeEvent) {
        match event {
            NodeEvent::CheckpointDone { index } => (self.done, self.stage) = (*index, Stage::Idle),
            // A newer state is in force.
            NodeEvent::CheckpointDropped { index, .. } => {
                (self.done, self.stage) = (self.done.max(*index), Stage::Idle);
            }
            _ => {}
        }
    }

    pub fn drop_received(&self, index: Index) {
        let snapshots = self.snapshots.clone();
        tokio::spawn(async move {
            if let Err(error) = snapshots.drop_received(index).await {
                tracing::warn!(target: "snapshots", %index, %error, "cannot remove a state that is not needed");
            }
        });
    }

    /// Removes segments beside everything else: freeing much space takes a disk its time.
    pub fn remove(&self, superfluous: Vec<(u64, PathBuf)>) {
        if superfluous.is_empty() {
            return;
        }
        let (disk, probe) = (self.host.disk.clone(), Arc::clone(&self.host.probe));
        tokio::spawn(async move {
            for (sequence, path) in superfluous {
                match disk.remove(&path).await {
                    Ok(()) => probe.note(NodeEvent::SegmentRemoved { sequence }),
                    Err(error) => {
                        tracing::warn!(target: "snapshots", path = %path.display(), %error, "cannot remove a segment");
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::testing;

    /// It would be written again and again, for as long as nothing else happens.
    #[tokio::test]
    async fn a_checkpoint_of_what_is_in_force_already_is_not_due_again() {
        let host = testing::host();
        let (snapshots, _) = Snapshots::open(host.disk.clone(), Path::new("/snap"), 5).await.unwrap();
        let config = Config { checkpoint_entries: Some(1), ..Config::new("n1", Path::new("/data")) };
        let mut checkpoints = Checkpoints::new(&config, host, snapshots, Index(0));
        let machine = testing::state(5).0;
        assert!(checkpoints.is_due(0, &machine, Millis(0)));
        let reason = "a newer state was received meanwhile".to_owned();
        checkpoints.observe(&NodeEvent::CheckpointDropped { index: Index(5), reason });
        assert!(!checkpoints.is_due(0, &machine, Millis(0)));
        assert!(checkpoints.is_due(0, &testing::state(7).0, Millis(0)));
    }
}
