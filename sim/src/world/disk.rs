//! A node's disk, which knows what is durable from what is only written.
//!
//! One [`SimDisk`] outlives all processes of its node. Each start of a process takes a [`SimDisk::fresh`] handle; the
//! fence falls with `kill`, `power_loss` or the next `fresh`, and whatever was opened before is dead: its operations
//! fail and change nothing, and none in flight is acknowledged.
//!
//! An operation is queued when it is called, one queue a file and one for all directories, and takes effect when its
//! time has come, whether or not somebody awaits it.
//!
//! It fails in every way that real ones do, each at its own place: `faults.rs` has errors, lies and delays, `space.rs`
//! the full disk, `damage.rs` rot and harm, `astray.rs` misdirected writes, `image.rs` disks that are swapped, and
//! `crash.rs` a power loss at any chosen step. What each has done counts in [`DiskStats`].
//!
//! Invariants:
//! - What a sync acknowledged survives every power loss, unless the disk was told to lie, to misdirect it or to damage
//!   it, or a sync before it failed: what that one was to write stays unsynced.
//! - Operations of one queue take effect in the order of their calls.
//! - An operation meets the faults that are armed when it takes effect.
//! - The observer hears of an effect when somebody looks, in the order of the effects of each queue; no lock is held,
//!   so it may strike back at once.
mod astray;
mod content;
mod crash;
mod damage;
mod extents;
mod faults;
mod handle;
mod image;
mod layer;
mod queue;
mod report;
mod space;
mod sparse;
mod state;
#[cfg(test)]
mod tests;
mod tree;
mod work;

use std::{io, mem, path::Path, sync::Arc, time::Duration};

use detcd_node::host::Disk;
use parking_lot::Mutex;

pub use self::{
    crash::{Step, Unsynced},
    damage::{Rot, Rotted},
    faults::{FaultId, Io, Lasting, Paths},
    image::Image,
    layer::{BLOCK, SECTOR},
    report::{DiskObserver, DiskOp, DiskStats},
};
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
    /// Runs `f` on the state as of now, then tells the observer what came of it, then calls whom a crash calls.
    fn with<R>(&self, f: impl FnOnce(&mut State, Duration) -> R) -> R {
        let (result, notes, then) = {
            let mut state = self.state.lock();
            let result = f(&mut state, self.time.now());
            (result, mem::take(&mut state.notes), mem::take(&mut state.then))
        };
        for note in notes {
            self.observer.disk(self.node, note);
        }
        then.into_iter().for_each(|then| then());
        result
    }
}

impl SimDisk {
    /// An empty disk. `seed` decides how long its operations take and how much of a failed write is done, and nothing
    /// else.
    pub fn new(node: u64, time: SimTime, timing: DiskTiming, seed: Seed, observer: Arc<dyn DiskObserver>) -> SimDisk {
        let state = Mutex::new(State::new(timing, seed));
        SimDisk(Arc::new(Shared { node, time, observer, state }))
    }

    /// The disk for a new process. Whatever an earlier one still holds is dead; what it had called is done.
    pub fn fresh(&self) -> Arc<dyn Disk> {
        let epoch = self.0.with(|state, _| {
            state.decide_crash();
            state.fence(|in_flight| in_flight);
            state.epoch
        });
        Arc::new(DiskHandle { shared: self.0.clone(), epoch })
    }

    /// What a sync that failed left clean the kernel may forget at any time; here it does, of some files.
    pub fn evict(&self, rng: &mut impl Rng) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.evict(rng);
        });
    }

    /// The process dies, the machine does not: what was written stays. Of the operations in flight some are done, the
    /// earlier ones of each queue rather than the later; of one write, only its first pages may be.
    pub fn kill(&self, rng: &mut impl Rng) {
        self.0.with(|state, now| state.kill(now, rng));
    }

    /// The machine dies: any part of what was not synced is lost, and the process's handles with it.
    pub fn power_loss(&self, rng: &mut impl Rng) {
        self.0.with(|state, now| state.power_loss(now, rng));
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

    /// How many files have a name.
    pub fn files(&self) -> usize {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.tree.walk().len()
        })
    }

    /// Memory held for contents, in bytes.
    pub fn held(&self) -> u64 {
        self.0.with(|state, _| state.held())
    }
}
