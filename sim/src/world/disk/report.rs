//! What a disk tells: counters of all it did, and events for whoever observes it.
use std::sync::Arc;

use super::crash::Step;

/// What the disk did. Every fault counts here once it had an effect, so that a run can prove that it fired.
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
    pub failed_reads: u64,
    pub failed_writes: u64,
    pub failed_syncs: u64,
    /// Opens, lists, and changes of directory entries.
    pub failed_entry_ops: u64,
    /// Sectors that a failed sync left clean without having written them.
    pub sectors_dropped: u64,
    /// Files of which the kernel forgot what it took for clean.
    pub evictions: u64,
    /// Reads, and writes of a part, of a sector that cannot be read.
    pub broken_ops: u64,
    /// Writes, allocations and creates for which there was no space.
    pub full_ops: u64,
    pub misdirected_writes: u64,
    /// Sectors of which bits were flipped by chance.
    pub sectors_rotted: u64,
    /// Sectors that became unreadable.
    pub sectors_broken: u64,
    /// Files that were damaged by name: a bit flipped, a range zeroed, a tail cut, or the whole removed.
    pub damages: u64,
    /// Times that the content was replaced by an image, or wiped.
    pub restores: u64,
    pub kills: u64,
    /// Those at a crash point too, once it is said what they took.
    pub power_losses: u64,
    /// Crash points at which power was lost.
    pub crashes: u64,
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
    /// It failed, and what it was to write is clean: of a file or of a directory.
    SyncFailed {
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
    /// Power was lost at a crash point. What that takes is yet to be said.
    Crashed {
        point: u64,
        before: bool,
        step: Step,
    },
    /// A write was acknowledged and went elsewhere, by whole sectors: these.
    Misdirected {
        path: Arc<str>,
        offset: u64,
        to: Arc<str>,
        to_offset: u64,
        len: u64,
        hash: u64,
    },
    /// Durable bytes are not what they were; `hash` is that of the new ones.
    Damaged {
        path: Arc<str>,
        offset: u64,
        len: u64,
        hash: u64,
    },
    /// The durable file was cut to this length.
    Truncated {
        path: Arc<str>,
        len: u64,
    },
    /// A file is gone, from the medium too.
    Vanished {
        path: Arc<str>,
    },
    /// These sectors cannot be read any more.
    Broken {
        path: Arc<str>,
        offset: u64,
        len: u64,
    },
    /// All content was replaced by an image with this digest.
    Restored {
        digest: u64,
    },
}

pub trait DiskObserver: Send + Sync + 'static {
    fn disk(&self, node: u64, what: DiskOp);
}

/// For whoever does not want to know.
impl DiskObserver for () {
    fn disk(&self, _: u64, _: DiskOp) {}
}
