//! How much fits on a disk.
//!
//! Blocks are occupied by bytes and by reservations; the zeros by which a `set_len` extends a file are not. A file that
//! is removed occupies its blocks until it is closed. A new entry takes no space, but finds none on a full disk.
//!
//! What a power loss brings back may be more than fits; then nothing is written until enough is freed.
use std::{collections::BTreeSet, io, ops::Range};

use super::{
    SimDisk,
    layer::{BLOCK, units},
    state::State,
    tree::FileId,
};

impl State {
    /// What files occupy, in bytes: those that have a name, and those that are open.
    pub fn used(&self) -> u64 {
        let named: BTreeSet<FileId> = self.tree.walk().into_iter().map(|(_, file)| file).collect();
        let there = self.files.iter().filter(|(file, inode)| inode.handles > 0 || named.contains(file));
        there.map(|(_, inode)| inode.content.allocated().count() * BLOCK).sum()
    }

    /// What fits, in bytes, if not everything does.
    fn fits(&self) -> Option<u64> {
        self.capacity.into_iter().chain(self.faults.limit()).min()
    }

    fn free_blocks(&self) -> u64 {
        self.fits().map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()) / BLOCK)
    }

    /// How many bytes from the start of this range on find space.
    pub fn fitting(&self, file: FileId, range: Range<u64>) -> u64 {
        let allocated = self.content(file).allocated();
        let blocks = units(&range, BLOCK);
        if self.fits().is_none() || allocated.missing(blocks.clone()) == 0 {
            return range.end - range.start;
        }
        let mut free = self.free_blocks();
        for block in blocks {
            if !allocated.contains(block) {
                if free == 0 {
                    return (block * BLOCK).saturating_sub(range.start);
                }
                free -= 1;
            }
        }
        range.end - range.start
    }

    /// Whether a new entry finds space.
    pub fn check_entry_space(&mut self) -> io::Result<()> {
        if self.free_blocks() > 0 {
            return Ok(());
        }
        Err(self.no_space())
    }

    pub fn no_space(&mut self) -> io::Error {
        self.stats.full_ops += 1;
        self.faults.limit_struck();
        io::Error::from_raw_os_error(libc::ENOSPC)
    }
}

impl SimDisk {
    /// What fits on the disk, in bytes; none for as much as you like.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.capacity = capacity;
        });
    }

    /// What files occupy, in bytes.
    pub fn used(&self) -> u64 {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.used()
        })
    }
}
