//! Errors and lies: what is to go wrong, of which paths, how often or until when.
//!
//! - A sync that fails writes nothing and leaves what it was to write clean: later ones return `Ok` and do not write it
//!   either (`content.rs` tells more). So it is on Linux, and a caller that tries again has lost its data.
//! - A write that fails may have written some of its first sectors.
//! - Whatever else fails has done nothing.
//!
//! Invariant: faults are independent. Each ends by its own id, and counts what it struck.
use std::{io, path::Path, sync::Arc, time::Duration};

use super::{DiskStats, SimDisk, state::State};
use crate::seed::Rng;

/// Which paths a fault concerns. They begin at the root, as `/data/wal`.
#[derive(Clone)]
pub struct Paths(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl Paths {
    pub fn all() -> Paths {
        Paths::that(|_| true)
    }

    /// This path and, if it is a directory, all that is in it.
    pub fn under(path: impl AsRef<Path>) -> Paths {
        let root = path.as_ref().to_owned();
        Paths::that(move |path| Path::new(path).starts_with(&root))
    }

    /// Those for which `holds`.
    pub fn that(holds: impl Fn(&str) -> bool + Send + Sync + 'static) -> Paths {
        Paths(Arc::new(holds))
    }

    pub fn contain(&self, path: &str) -> bool {
        (self.0)(path)
    }
}

/// How long a fault stays armed. By when an operation takes effect, not by when it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The next so many operations that it concerns.
    Next(u64),
    /// All that it concerns before this simulated time.
    Until(Duration),
}

/// What faults tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    Read,
    /// A resize and an allocation too.
    Write,
    /// Of files and directories. A `write_sync` is a write, then a sync.
    Sync,
    /// Opens, lists, and changes of directory entries.
    Entry,
}

/// One fault of one disk; never used twice.
pub type FaultId = u64;

struct Armed {
    id: FaultId,
    io: Io,
    paths: Paths,
    lasting: Lasting,
    /// The error's number.
    error: i32,
    /// Operations that failed over it.
    struck: u64,
}

/// Syncs take this many times as long, and as much more.
struct Slow {
    id: FaultId,
    factor: u32,
    extra: Duration,
    struck: u64,
}

/// No more than so many bytes fit.
struct Limit {
    id: FaultId,
    bytes: u64,
    struck: u64,
}

impl Armed {
    fn strikes(&mut self, io: Io, paths: &[&str], at: Duration) -> bool {
        if self.io != io || !paths.iter().any(|path| self.paths.contain(path)) {
            return false;
        }
        match &mut self.lasting {
            Lasting::Next(left) => {
                let strikes = *left > 0;
                *left = left.saturating_sub(1);
                strikes
            }
            Lasting::Until(end) => at < *end,
        }
    }
}

/// What is wrong with the disk. Every operation asks here.
#[derive(Default)]
pub struct Faults {
    pub stalled_until: Duration,
    /// One sync in so many does nothing; 0 for none.
    lying: u64,
    syncs: u64,
    last: FaultId,
    slow: Vec<Slow>,
    armed: Vec<Armed>,
    limits: Vec<Limit>,
}

impl Faults {
    pub fn next_id(&mut self) -> FaultId {
        self.last += 1;
        self.last
    }

    pub fn sync_time(&mut self, drawn: Duration, stats: &mut DiskStats) -> Duration {
        stats.slowed_syncs += u64::from(!self.slow.is_empty());
        self.slow.iter_mut().fold(drawn, |time, slow| {
            slow.struck += 1;
            time.saturating_mul(slow.factor).saturating_add(slow.extra)
        })
    }

    /// Whether this sync does nothing.
    pub fn lies(&mut self) -> bool {
        self.syncs += 1;
        self.lying > 0 && self.syncs.is_multiple_of(self.lying)
    }

    /// The number of the error with which it fails, if it does. Whatever lasts until some time has its share in it; what
    /// is to strike so many times waits for its turn.
    fn strike(&mut self, io: Io, paths: &[&str], at: Duration) -> Option<i32> {
        let mut error = None;
        for armed in &mut self.armed {
            let waits = error.is_some() && matches!(armed.lasting, Lasting::Next(_));
            if !waits && armed.strikes(io, paths, at) {
                armed.struck += 1;
                error = error.or(Some(armed.error));
            }
        }
        error
    }

    /// What fits because of faults, in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.limits.iter().map(|limit| limit.bytes).min()
    }

    /// Something did not fit: that is the doing of the narrowest.
    pub fn limit_struck(&mut self) {
        if let Some(limit) = self.limits.iter_mut().min_by_key(|limit| limit.bytes) {
            limit.struck += 1;
        }
    }

    fn disarm(&mut self, id: FaultId) -> u64 {
        let armed = self.armed.extract_if(.., |armed| armed.id == id).map(|armed| armed.struck);
        let slow = self.slow.extract_if(.., |slow| slow.id == id).map(|slow| slow.struck);
        let limits = self.limits.extract_if(.., |limit| limit.id == id).map(|limit| limit.struck);
        armed.chain(slow).chain(limits).sum()
    }
}

impl State {
    /// Asked once for each operation, when it takes effect: whether it fails. One of a process that is dying never
    /// does, for nobody would hear of it.
    pub fn check(&mut self, io: Io, paths: &[&str]) -> io::Result<()> {
        if self.dying {
            return Ok(());
        }
        let Some(error) = self.faults.strike(io, paths, self.at) else { return Ok(()) };
        let stats = &mut self.stats;
        *match io {
            _ if error == libc::ENOSPC => &mut stats.full_ops,
            Io::Read => &mut stats.failed_reads,
            Io::Write => &mut stats.failed_writes,
            Io::Sync => &mut stats.failed_syncs,
            Io::Entry => &mut stats.failed_entry_ops,
        } += 1;
        Err(io::Error::from_raw_os_error(error))
    }
}

impl SimDisk {
    /// The next `count` syncs that concern these paths fail, and leave what they were to write clean.
    pub fn fail_sync(&self, count: u64, paths: Paths) -> FaultId {
        self.fail_io(Io::Sync, Lasting::Next(count), paths)
    }

    /// Such operations on these paths fail with an I/O error.
    pub fn fail_io(&self, io: Io, lasting: Lasting, paths: Paths) -> FaultId {
        self.arm(io, lasting, paths, libc::EIO)
    }

    /// What is written to these paths finds no space, as if they had a volume of their own and it were full.
    pub fn fill(&self, lasting: Lasting, paths: Paths) -> FaultId {
        self.arm(Io::Write, lasting, paths, libc::ENOSPC)
    }

    fn arm(&self, io: Io, lasting: Lasting, paths: Paths, error: i32) -> FaultId {
        self.add(|state| {
            let id = state.faults.next_id();
            state.faults.armed.push(Armed { id, io, paths, lasting, error, struck: 0 });
            id
        })
    }

    fn add(&self, fault: impl FnOnce(&mut State) -> FaultId) -> FaultId {
        self.0.with(|state, now| {
            state.settle_all(now);
            fault(state)
        })
    }

    /// From now on no more than this fits, in bytes.
    pub fn limit(&self, bytes: u64) -> FaultId {
        self.add(|state| {
            let id = state.faults.next_id();
            state.faults.limits.push(Limit { id, bytes, struck: 0 });
            id
        })
    }

    /// The next `count` writes at `from` are acknowledged and go elsewhere: `astray.rs` tells where.
    pub fn misdirect(&self, count: u64, from: Paths, to: Paths, rng: &mut impl Rng) -> FaultId {
        let seed = rng.next_u64();
        self.add(|state| {
            let id = state.faults.next_id();
            state.astray.arm(id, count, from, to, seed);
            id
        })
    }

    /// Syncs called from now on take `factor` times as long, and `extra` more, whatever else makes them slow.
    pub fn slow_sync(&self, factor: u32, extra: Duration) -> FaultId {
        self.add(|state| {
            let id = state.faults.next_id();
            state.faults.slow.push(Slow { id, factor, extra, struck: 0 });
            id
        })
    }

    /// Ends one fault, and no other. Returns how many operations it struck.
    pub fn disarm(&self, id: FaultId) -> u64 {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.faults.disarm(id) + state.astray.disarm(id)
        })
    }

    /// Ends all errors, misdirections, limits and delays, and forgets the crash that is armed and has not struck.
    pub fn disarm_all(&self) {
        self.0.with(|state, now| {
            state.stall(Duration::ZERO, now);
            state.faults.armed.clear();
            state.faults.slow.clear();
            state.faults.limits.clear();
            state.astray.disarm_all();
            state.crash.disarm();
        });
    }

    /// From now on one sync in so many returns `Ok` and makes nothing durable; 0 for none.
    pub fn lie(&self, one_in: u64) {
        self.0.with(|state, now| {
            state.settle_all(now);
            (state.faults.lying, state.faults.syncs) = (one_in, 0);
        });
    }

    /// Writes and syncs, those in flight too, are not done before this time, nor before an earlier stall ends.
    pub fn stall(&self, until: Duration) {
        self.0.with(|state, now| state.stall(until.max(state.faults.stalled_until), now));
    }
}

/// What Linux calls EIO.
pub fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
