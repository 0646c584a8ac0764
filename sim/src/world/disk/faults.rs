//! Errors and lies: what is to go wrong, of which paths, how often or until when.
//!
//! - A sync that fails writes nothing and leaves what it was to write clean: later ones return `Ok` and do not write it
//!   either (`content.rs` tells more). So it is on Linux, and a caller that tries again has lost its data.
//! - A write that fails may have written some of its first sectors.
//! - Whatever else fails has done nothing.
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

struct Armed {
    io: Io,
    paths: Paths,
    lasting: Lasting,
    /// The error's number.
    error: i32,
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
    /// Syncs take this many times as long, and as much more.
    slow: Option<(u32, Duration)>,
    pub lying: bool,
    armed: Vec<Armed>,
}

impl Faults {
    pub fn slow_sync(&mut self, factor: u32, extra: Duration) {
        self.slow = (factor != 1 || extra > Duration::ZERO).then_some((factor, extra));
    }

    pub fn sync_time(&self, drawn: Duration, stats: &mut DiskStats) -> Duration {
        let Some((factor, extra)) = self.slow else { return drawn };
        stats.slowed_syncs += 1;
        drawn * factor + extra
    }

    fn arm(&mut self, armed: Armed) {
        self.armed.retain(|armed| armed.lasting != Lasting::Next(0));
        self.armed.push(armed);
    }

    /// The number of the error with which it fails, if it does.
    fn strike(&mut self, io: Io, paths: &[&str], at: Duration) -> Option<i32> {
        self.armed.iter_mut().find_map(|armed| armed.strikes(io, paths, at).then_some(armed.error))
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
    pub fn fail_sync(&self, count: u64, paths: Paths) {
        self.fail_io(Io::Sync, Lasting::Next(count), paths);
    }

    /// Such operations on these paths fail with an I/O error.
    pub fn fail_io(&self, io: Io, lasting: Lasting, paths: Paths) {
        self.arm(Armed { io, paths, lasting, error: libc::EIO });
    }

    /// What is written to these paths finds no space, as if they had a volume of their own and it were full.
    pub fn fill(&self, lasting: Lasting, paths: Paths) {
        self.arm(Armed { io: Io::Write, paths, lasting, error: libc::ENOSPC });
    }

    fn arm(&self, armed: Armed) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.faults.arm(armed);
        });
    }

    /// The next `count` writes at `from` are acknowledged and go elsewhere: `astray.rs` tells where.
    pub fn misdirect(&self, count: u64, from: Paths, to: Paths, rng: &mut impl Rng) {
        let seed = rng.next_u64();
        self.0.with(|state, now| {
            state.settle_all(now);
            state.astray.arm(count, from, to, seed);
        });
    }

    /// Forgets the errors, misdirections and the crash that are armed and have not struck.
    pub fn disarm(&self) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.faults.armed.clear();
            state.astray.disarm();
            state.crash.disarm();
        });
    }

    /// While it lies, a sync returns `Ok` and makes nothing durable.
    pub fn lie(&self, lying: bool) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.faults.lying = lying;
        });
    }

    /// Syncs called from now on take `factor` times as long, and `extra` more. `(1, ZERO)` is normal.
    pub fn slow_sync(&self, factor: u32, extra: Duration) {
        self.0.with(|state, _| state.faults.slow_sync(factor, extra));
    }

    /// Writes and syncs, those in flight too, are not done before this time. An earlier one ends the stall.
    pub fn stall(&self, until: Duration) {
        self.0.with(|state, now| state.stall(until.max(now), now));
    }
}

/// What Linux calls EIO.
pub fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
