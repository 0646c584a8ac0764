//! A node's disk, which knows what is durable from what is only written.
//!
//! One [`SimDisk`] outlives all processes of its node. Each start of a process takes a [`SimDisk::fresh`] handle; the
//! fence falls with `kill`, `power_loss` or the next `fresh`, and whatever was opened before is dead: its operations
//! fail and change nothing, and none in flight is acknowledged.
//!
//! An operation is queued when it is called, one queue a file and one for all directories, and takes effect when its
//! time has come, whether or not somebody awaits it.
//!
//! Invariants:
//! - What a sync acknowledged survives every power loss, unless the disk was told to lie.
//! - Operations of one queue take effect in the order of their calls.
//! - The observer hears of an effect when somebody looks, in the order of the effects of each queue; no lock is held,
//!   so it may strike back at once.
mod content;
mod handle;
mod queue;
mod sparse;
mod state;
#[cfg(test)]
mod tests;
mod tree;

use std::{io, mem, path::Path, sync::Arc, time::Duration};

use detcd_node::host::Disk;
use parking_lot::Mutex;

pub use self::content::SECTOR;
use self::{handle::DiskHandle, state::State};
use super::clock::{Delay, SimTime};
use crate::seed::{Rng, Seed};

/// How long operations take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskTiming {
    pub read: Delay,
    pub write: Delay,
    pub sync: Delay,
    /// Opening, listing, and changes of directory entries.
    pub entry: Delay,
    /// What reads and writes move in a microsecond, in bytes: as many as megabytes a second.
    pub bytes_per_us: u32,
}

impl Default for DiskTiming {
    /// A cloud volume on a good day.
    fn default() -> DiskTiming {
        DiskTiming {
            read: Delay::new(10, 40),
            write: Delay::new(5, 20),
            sync: Delay::new(150, 400),
            entry: Delay::new(10, 50),
            bytes_per_us: 400,
        }
    }
}

/// What the disk did. Every fault counts here, so that a run can prove that it fired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    pub reads: u64,
    pub writes: u64,
    /// Of files and directories.
    pub syncs: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Operations that a stall held up.
    pub stalled_ops: u64,
    pub slowed_syncs: u64,
    /// Syncs that returned `Ok` and did nothing.
    pub lied_syncs: u64,
    pub kills: u64,
    pub power_losses: u64,
    /// Operations in flight when a fence fell.
    pub aborted_ops: u64,
    /// Sectors that a power loss did not keep as they were last written.
    pub sectors_lost: u64,
    /// Creates, renames and removes that a power loss undid.
    pub entries_lost: u64,
}

/// What happened on a disk. Offsets and lengths in bytes; `hash` is the xxh3 of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOp {
    Created {
        path: Arc<str>,
    },
    Written {
        path: Arc<str>,
        offset: u64,
        len: u64,
        hash: u64,
    },
    Resized {
        path: Arc<str>,
        len: u64,
    },
    /// A sync was called; it covers the writes that were called before it.
    SyncCalled {
        path: Arc<str>,
    },
    /// It took effect and is about to be acknowledged.
    Synced {
        path: Arc<str>,
    },
    DirsCreated {
        path: Arc<str>,
    },
    Renamed {
        from: Arc<str>,
        to: Arc<str>,
    },
    Removed {
        path: Arc<str>,
    },
    DirSynced {
        path: Arc<str>,
    },
    Killed,
    PowerLost {
        sectors: u64,
        entries: u64,
    },
}

pub trait DiskObserver: Send + Sync + 'static {
    fn disk(&self, node: u64, what: DiskOp);
}

/// For whoever does not want to know.
impl DiskObserver for () {
    fn disk(&self, _: u64, _: DiskOp) {}
}

/// One node's disk. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimDisk(Arc<Shared>);

struct Shared {
    node: u64,
    time: SimTime,
    observer: Arc<dyn DiskObserver>,
    state: Mutex<State>,
}

impl Shared {
    /// Runs `f` on the state as of now, then tells the observer what came of it.
    fn with<R>(&self, f: impl FnOnce(&mut State, Duration) -> R) -> R {
        let (result, notes) = {
            let mut state = self.state.lock();
            let result = f(&mut state, self.time.now());
            (result, mem::take(&mut state.notes))
        };
        for note in notes {
            self.observer.disk(self.node, note);
        }
        result
    }
}

impl SimDisk {
    /// An empty disk. `seed` decides how long its operations take, and nothing else.
    pub fn new(node: u64, time: SimTime, timing: DiskTiming, seed: Seed, observer: Arc<dyn DiskObserver>) -> SimDisk {
        let state = Mutex::new(State::new(timing, seed));
        SimDisk(Arc::new(Shared { node, time, observer, state }))
    }

    /// The disk for a new process. Whatever an earlier one still holds is dead; what it had called is done.
    pub fn fresh(&self) -> Arc<dyn Disk> {
        let epoch = self.0.with(|state, _| {
            state.fence(|in_flight| in_flight);
            state.epoch
        });
        Arc::new(DiskHandle { shared: self.0.clone(), epoch })
    }

    /// The process dies, the machine does not: what was written stays. Of the operations in flight some are done, the
    /// earlier ones of each queue rather than the later.
    pub fn kill(&self, rng: &mut impl Rng) {
        self.0.with(|state, now| state.kill(now, rng));
    }

    /// The machine dies: any part of what was not synced is lost, and the process's handles with it.
    pub fn power_loss(&self, rng: &mut impl Rng) {
        self.0.with(|state, now| state.power_loss(now, rng));
    }

    /// Writes and syncs, those in flight too, are not done before this time. An earlier one ends the stall.
    pub fn stall(&self, until: Duration) {
        self.0.with(|state, now| state.stall(until.max(now), now));
    }

    /// Syncs called from now on take `factor` times as long, and `extra` more. `(1, ZERO)` is normal.
    pub fn slow_sync(&self, factor: u32, extra: Duration) {
        self.0.with(|state, _| state.faults.slow_sync(factor, extra));
    }

    /// While it lies, a sync returns `Ok` and makes nothing durable.
    pub fn lie(&self, lying: bool) {
        self.0.with(|state, _| state.faults.lie(lying));
    }

    pub fn set_timing(&self, timing: DiskTiming) {
        self.0.with(|state, _| state.timing = timing);
    }

    pub fn stats(&self) -> DiskStats {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.stats
        })
    }

    /// Makes a directory that is durable at once, as a machine has it before its first start.
    pub fn prepare_dir(&self, path: &Path) -> io::Result<()> {
        self.0.with(|state, _| {
            state.tree.create_dir_all(path)?;
            state.tree.sync_all();
            Ok(())
        })
    }

    /// A file's bytes as a process would read them now. For tests and laws; it takes no time.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.with(|state, now| {
            state.settle_all(now);
            Ok(state.content(state.tree.file(path)?).read(0, usize::MAX))
        })
    }

    /// Memory held for contents, in bytes.
    pub fn held(&self) -> u64 {
        self.0.with(|state, _| state.held())
    }
}
