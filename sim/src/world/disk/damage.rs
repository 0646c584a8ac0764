//! Damage to what is durable: bit rot, sectors that cannot be read, and harm done to files by name.
//!
//! It is done on the medium, while a process runs or while none does. A process reads it at once, except where it has
//! written since its last sync: there it reads its own bytes, which bury the damage once they are durable.
use std::{collections::BTreeSet, io, ops::Range, path::Path, sync::Arc};

use xxhash_rust::xxh3::xxh3_64;

use super::{
    DiskOp, SimDisk,
    content::Content,
    faults::Paths,
    layer::{Layer, SECTOR},
    state::{State, shown},
    tree::FileId,
};
use crate::seed::Rng;

/// How bits rot.
#[derive(Clone)]
pub struct Rot {
    pub paths: Paths,
    /// How many sectors rot, of those that hold durable data.
    pub sectors: u64,
    /// How many bits of each are flipped.
    pub bits: u32,
}

/// Where bits were flipped: from the first changed byte to the last one. In bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotted {
    pub path: Arc<str>,
    pub offset: u64,
    pub len: u64,
}

impl SimDisk {
    /// Flips bits in durable sectors that hold data, each sector as likely as any other, none of them twice.
    pub fn rot(&self, rot: &Rot, rng: &mut impl Rng) -> Vec<Rotted> {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.rot(rot, rng)
        })
    }

    /// Makes durable sectors that hold data unreadable until they are written anew, each as likely as any other. Returns
    /// how many.
    pub fn break_some(&self, paths: &Paths, count: u64, rng: &mut impl Rng) -> u64 {
        self.0.with(|state, now| {
            state.settle_all(now);
            let sectors = state.durable_sectors(paths);
            let chosen = sample(sectors.len() as u64, count, rng);
            chosen.into_iter().map(|chosen| state.break_sector(&sectors[chosen as usize])).sum()
        })
    }

    /// Flips one bit of a durable byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        assert!(bit < 8, "a byte has eight bits");
        let flipped = self.damage_range(path, offset..offset.saturating_add(1), |byte| byte ^ 1 << bit)?;
        if flipped { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Zeroes durable bytes. Whether any of them was not zero.
    pub fn zero_range(&self, path: &Path, range: Range<u64>) -> io::Result<bool> {
        self.damage_range(path, range, |_| 0)
    }

    /// Cuts the durable file, if it is longer. Whether it was.
    pub fn cut_tail(&self, path: &Path, len: u64) -> io::Result<bool> {
        self.damage(path, |content, path| {
            let cut = len < content.durable().len();
            if cut {
                content.damage(|durable| durable.resize(len, 0..0));
            }
            cut.then_some(DiskOp::Truncated { path, len })
        })
    }

    /// Removes a file's name, durably. Whoever has the file open goes on with it.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.tree.remove_durably(path)?;
            state.stats.damages += 1;
            state.notes.push(DiskOp::Vanished { path: shown(path) });
            state.collect();
            Ok(())
        })
    }

    /// Makes durable sectors of a file unreadable until they are written anew, as wholes. Returns how many were not
    /// so before; sectors beyond the end do not count.
    pub fn break_sectors(&self, path: &Path, sectors: Range<u64>) -> io::Result<u64> {
        self.0.with(|state, now| {
            state.settle_all(now);
            let file = state.tree.file(path)?;
            let content = &mut state.files.get_mut(&file).expect("a name leads to a file").content;
            let end = sectors.end.min(content.durable().len().div_ceil(SECTOR));
            let count = content.damage(|durable| durable.break_sectors(sectors.clone()));
            if count > 0 {
                let (offset, len) = (sectors.start * SECTOR, (end - sectors.start) * SECTOR);
                state.stats.sectors_broken += count;
                state.notes.push(DiskOp::Broken { path: shown(path), offset, len });
            }
            Ok(count)
        })
    }

    /// Whether there was damage is what `with` says, by the event that tells of it.
    fn damage(&self, path: &Path, with: impl FnOnce(&mut Content, Arc<str>) -> Option<DiskOp>) -> io::Result<bool> {
        self.0.with(|state, now| {
            state.settle_all(now);
            let file = state.tree.file(path)?;
            let content = &mut state.files.get_mut(&file).expect("a name leads to a file").content;
            let done = with(content, shown(path));
            state.stats.damages += u64::from(done.is_some());
            Ok(done.map(|note| state.notes.push(note)).is_some())
        })
    }

    fn damage_range(&self, path: &Path, range: Range<u64>, change: impl Fn(u8) -> u8) -> io::Result<bool> {
        self.damage(path, |content, path| {
            let len = content.durable().len();
            let (offset, end) = (range.start.min(len), range.end.min(len));
            content.damage(|durable| change_bytes(durable, offset..end.max(offset), path, change))
        })
    }
}

/// Changes durable bytes, if that changes any.
fn change_bytes(durable: &mut Layer, range: Range<u64>, path: Arc<str>, change: impl Fn(u8) -> u8) -> Option<DiskOp> {
    let mut old = vec![0; (range.end - range.start) as usize];
    durable.read(range.start, &mut old);
    let new: Vec<u8> = old.iter().map(|byte| change(*byte)).collect();
    durable.corrupt(range.start, &new);
    let (offset, len, hash) = (range.start, new.len() as u64, xxh3_64(&new));
    (new != old).then_some(DiskOp::Damaged { path, offset, len, hash })
}

/// A sector of a file, by its number in it.
struct Place {
    path: Arc<str>,
    file: FileId,
    sector: u64,
}

impl State {
    /// Those that hold data.
    fn durable_sectors(&self, paths: &Paths) -> Vec<Place> {
        let mut sectors = Vec::new();
        for (path, file) in self.tree.walk().into_iter().filter(|(path, _)| paths.contain(path)) {
            let (content, path) = (self.content(file), Arc::<str>::from(path));
            let written = content.durable().written();
            let firm = content.firm();
            let both = firm.within(0..u64::MAX).flat_map(|part| written.within(part)).flatten();
            sectors.extend(both.map(|sector| Place { path: path.clone(), file, sector }));
        }
        sectors
    }

    /// Returns 1 if it could be read before.
    fn break_sector(&mut self, Place { path, file, sector }: &Place) -> u64 {
        let content = &mut self.files.get_mut(file).expect("a name leads to a file").content;
        let count = content.damage(|durable| durable.break_sectors(*sector..sector + 1));
        if count > 0 {
            self.stats.sectors_broken += count;
            self.notes.push(DiskOp::Broken { path: path.clone(), offset: sector * SECTOR, len: SECTOR });
        }
        count
    }

    fn rot(&mut self, rot: &Rot, rng: &mut impl Rng) -> Vec<Rotted> {
        let sectors = self.durable_sectors(&rot.paths);
        let mut rotted = Vec::new();
        for chosen in sample(sectors.len() as u64, rot.sectors, rng) {
            let Place { path, file, sector } = &sectors[chosen as usize];
            let content = &mut self.files.get_mut(file).expect("a name leads to a file").content;
            let start = sector * SECTOR;
            let mut bytes = vec![0; (content.durable().len() - start).min(SECTOR) as usize];
            content.durable().read(start, &mut bytes);
            let bits = sample(bytes.len() as u64 * 8, u64::from(rot.bits), rng);
            let (Some(first), Some(last)) = (bits.first(), bits.last()) else { continue };
            let (from, to) = (first / 8, last / 8 + 1);
            bits.iter().for_each(|bit| bytes[(bit / 8) as usize] ^= 1 << (bit % 8));
            let (offset, new) = (start + from, &bytes[from as usize..to as usize]);
            content.damage(|durable| durable.corrupt(offset, new));
            let (len, hash) = (to - from, xxh3_64(new));
            self.stats.sectors_rotted += 1;
            self.notes.push(DiskOp::Damaged { path: path.clone(), offset, len, hash });
            rotted.push(Rotted { path: path.clone(), offset, len });
        }
        rotted
    }
}

/// So many different numbers below `end`, or all of them; every choice is equally likely.
fn sample(end: u64, count: u64, rng: &mut impl Rng) -> BTreeSet<u64> {
    let mut chosen = BTreeSet::new();
    // Floyd's way: each step has one more number to choose from than the step before.
    for last in end.saturating_sub(count)..end {
        if !chosen.insert(rng.next_u64() % (last + 1)) {
            chosen.insert(last);
        }
    }
    chosen
}
