//! Misdirected writes: acknowledged, whole, and in the wrong place.
//!
//! A disk moves whole sectors, so those that a write touches land elsewhere with all that stands in them, and every
//! checksum in them still holds. They land on the medium, at once, in a file that is not the intended one or at another
//! sector of it; the intended place keeps its old bytes, although the file's length grows as it would have.
//!
//! They land where data was written if they can, for there they destroy something, and never on sectors that are not
//! durable, for those would be written once more. If there is no such place, the write goes where it should, and the
//! fault waits for the next.
use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::{
    DiskOp,
    faults::{FaultId, Paths},
    layer::{BLOCK, SECTOR, units},
    state::State,
    tree::FileId,
};
use crate::seed::{ChaCha8Rng, Rng, Seed};

/// The misdirections that are armed.
#[derive(Default)]
pub struct Astray(Vec<Armed>);

struct Armed {
    id: FaultId,
    left: u64,
    from: Paths,
    to: Paths,
    rng: ChaCha8Rng,
    struck: u64,
}

impl Astray {
    pub fn arm(&mut self, id: FaultId, count: u64, from: Paths, to: Paths, seed: u64) {
        self.0.push(Armed { id, left: count, from, to, rng: Seed(seed).child("astray", 0).rng(), struck: 0 });
    }

    /// Returns how many writes it sent astray.
    pub fn disarm(&mut self, id: FaultId) -> u64 {
        self.0.extract_if(.., |armed| armed.id == id).map(|armed| armed.struck).sum()
    }

    pub fn disarm_all(&mut self) {
        self.0.clear();
    }
}

impl State {
    /// Sends a write astray if one is due. Whether it did.
    pub fn misdirect(&mut self, file: FileId, offset: u64, data: &[u8]) -> bool {
        let path = self.path(file);
        let due = |armed: &Armed| armed.left > 0 && armed.from.contain(&path);
        let Some(index) = self.astray.0.iter().position(due).filter(|_| !self.dying && !data.is_empty()) else {
            return false;
        };
        let range = offset..offset + data.len() as u64;
        let places = self.places(file, units(&range, SECTOR), &self.astray.0[index].to);
        if places.is_empty() {
            return false;
        }
        let armed = &mut self.astray.0[index];
        (armed.left, armed.struck) = (armed.left - 1, armed.struck + 1);
        let (place, sector) = places[(armed.rng.next_u64() % places.len() as u64) as usize];
        self.land_astray(file, range, data, (place, sector * SECTOR));
        true
    }

    /// Where these sectors of a file could go instead: files, and sectors in them.
    fn places(&self, file: FileId, sectors: Range<u64>, to: &Paths) -> Vec<(FileId, u64)> {
        let count = sectors.end - sectors.start;
        let (mut on_data, mut anywhere) = (Vec::new(), Vec::new());
        for (_, other) in self.tree.walk().into_iter().filter(|(path, _)| to.contain(path)) {
            let content = self.content(other);
            let mut free = content.firm();
            if other == file {
                free.remove(sectors.clone());
            }
            for part in free.within(0..u64::MAX) {
                for sector in part.start..(part.end + 1).saturating_sub(count) {
                    let on_written = content.durable().written().contains(sector);
                    if on_written { &mut on_data } else { &mut anywhere }.push((other, sector));
                }
            }
        }
        if on_data.is_empty() { anywhere } else { on_data }
    }

    fn land_astray(&mut self, file: FileId, range: Range<u64>, data: &[u8], (place, to_offset): (FileId, u64)) {
        let (sectors, path) = (units(&range, SECTOR), self.path(file));
        let inode = self.files.get_mut(&file).expect("a written file is there");
        let (start, size) = (sectors.start * SECTOR, ((sectors.end - sectors.start) * SECTOR) as usize);
        let mut bytes = inode.content.read(start, size);
        bytes.resize(size, 0);
        let within = (range.start - start) as usize;
        bytes[within..within + data.len()].copy_from_slice(data);
        let len = inode.content.len().max(range.end);
        if len > inode.content.len() {
            self.notes.push(DiskOp::Resized { path: path.clone(), len });
        }
        inode.content.resize(len, units(&range, BLOCK));
        self.stats.writes += 1;
        self.stats.bytes_written += data.len() as u64;
        self.stats.misdirected_writes += 1;
        let target = self.files.get_mut(&place).expect("a name leads to a file");
        bytes.truncate((target.content.durable().len() - to_offset).min(size as u64) as usize);
        target.content.damage(|durable| durable.write(to_offset, &bytes));
        let (to, len, hash) = (target.path.clone(), bytes.len() as u64, xxh3_64(&bytes));
        self.notes.push(DiskOp::Misdirected { path, offset: start, to, to_offset, len, hash });
    }
}
