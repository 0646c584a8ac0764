//! One file's bytes: what is durable, what is only written, and what a power loss leaves of it.
//!
//! A disk writes whole sectors, in any order, at any time. So of the changes since the last good sync a power loss
//! keeps, for each sector, those up to one of its versions; and of the lengths that the file has had, any one.
//!
//! After a sync that failed the kernel believes that what it could not write is clean. Such changes are still read, as
//! long as power lasts, and a power loss may still find any of them on the medium; but no later sync writes them. A
//! sector that is written again afterwards is dirty as a whole, older changes in it included, and so is the length.
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Range,
};

use super::{
    extents::Extents,
    layer::{BLOCK, Layer, SECTOR, sectors, units},
};
use crate::seed::Rng;

/// Invariants: `len` and `allocated` are those after all pending changes; the first `clean` pending changes are those
/// that no sync writes any more.
#[derive(Clone, Default)]
pub struct Content {
    durable: Layer,
    pending: Vec<Change>,
    clean: usize,
    len: u64,
    allocated: Extents,
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Resize { len: u64, reserved: Range<u64> },
}

impl Change {
    fn account(&self, len: &mut u64, allocated: &mut Extents) {
        match self {
            Change::Write { offset, data } => {
                let range = *offset..offset + data.len() as u64;
                *len = range.end.max(*len);
                allocated.insert(units(&range, BLOCK));
            }
            Change::Resize { len: to, reserved } => {
                *len = *to;
                allocated.remove(to.div_ceil(BLOCK)..u64::MAX);
                allocated.insert(reserved.clone());
            }
        }
    }
}

/// How much a power loss takes of one file. All and nothing are made likely even for many sectors.
enum Taken {
    Everything,
    Nothing,
    Some,
}

impl Content {
    pub fn new(durable: Layer) -> Content {
        let (len, allocated) = (durable.len(), durable.allocated().clone());
        Content { durable, pending: Vec::new(), clean: 0, len, allocated }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn durable(&self) -> &Layer {
        &self.durable
    }

    /// Blocks that are occupied after all pending changes.
    pub fn allocated(&self) -> &Extents {
        &self.allocated
    }

    pub fn write(&mut self, offset: u64, data: Vec<u8>) {
        if !data.is_empty() {
            self.change(Change::Write { offset, data });
        }
    }

    pub fn set_len(&mut self, len: u64) {
        self.resize(len, 0..0);
    }

    /// Cuts, or extends by zeros, and occupies the `reserved` blocks.
    pub fn resize(&mut self, len: u64, reserved: Range<u64>) {
        if len != self.len || self.allocated.missing(reserved.clone()) > 0 {
            self.change(Change::Resize { len, reserved });
        }
    }

    fn change(&mut self, change: Change) {
        change.account(&mut self.len, &mut self.allocated);
        self.pending.push(change);
    }

    /// What a process sees: the durable bytes under all pending changes.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut window = vec![0; len.min(self.len.saturating_sub(offset) as usize)];
        self.durable.read(offset, &mut window);
        for change in &self.pending {
            match change {
                Change::Resize { len, .. } => {
                    let kept = len.saturating_sub(offset).min(window.len() as u64);
                    window[kept as usize..].fill(0);
                }
                Change::Write { offset: at, data } => {
                    let end = offset + window.len() as u64;
                    let (from, to) = (offset.max(*at), end.min(at + data.len() as u64));
                    if from < to {
                        let source = &data[(from - at) as usize..(to - at) as usize];
                        window[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
                    }
                }
            }
        }
        window
    }

    /// Whether a sector of this range cannot be read. What was written since is read from memory.
    pub fn is_broken(&self, range: Range<u64>) -> bool {
        let range = range.start.min(self.len)..range.end.min(self.len);
        let broken = self.durable.broken().within(units(&range, SECTOR)).flatten();
        let hidden = |sector: u64| {
            self.pending.iter().any(|change| match change {
                Change::Write { offset, data } => {
                    units(&(*offset..offset + data.len() as u64), SECTOR).contains(&sector)
                }
                Change::Resize { len, .. } => *len <= sector * SECTOR,
            })
        };
        broken.into_iter().any(|sector| !hidden(sector))
    }

    pub fn sync(&mut self) {
        if self.clean == 0 {
            for change in self.pending.drain(..) {
                match change {
                    Change::Write { offset, data } => self.durable.write(offset, &data),
                    Change::Resize { len, reserved } => self.durable.resize(len, reserved),
                }
            }
        } else if self.clean < self.pending.len() {
            self.sync_dirty();
        } else {
            return;
        }
        assert_eq!(self.durable.len(), self.len);
        debug_assert_eq!(self.durable.allocated(), &self.allocated);
    }

    /// Writes the sectors that are dirty, as they are now, and the length; leaves the clean changes of others pending.
    fn sync_dirty(&mut self) {
        let mut dirty = touched(&self.pending[self.clean..]);
        // What was cut off since and not written again is a hole: there is nothing to write.
        dirty.retain(|sector| self.allocated.contains(sector * SECTOR / BLOCK));
        let bytes: Vec<_> = dirty.iter().map(|sector| self.read(sector * SECTOR, SECTOR as usize)).collect();
        let left = self.lasting(self.clean).into_iter().filter(|(offset, _)| !dirty.contains(&(offset / SECTOR)));
        let left = left.map(|(offset, data)| Change::Write { offset, data: data.to_vec() }).collect::<Vec<_>>();
        self.resize_durable();
        for (sector, bytes) in dirty.iter().zip(bytes).filter(|(_, bytes)| !bytes.is_empty()) {
            self.durable.write(sector * SECTOR, &bytes);
        }
        self.pending = left;
        self.clean = self.pending.len();
    }

    /// Makes all pending lengths and reservations durable, without any bytes.
    fn resize_durable(&mut self) {
        for change in &self.pending {
            if let Change::Resize { len, reserved } = change {
                self.durable.resize(*len, reserved.clone());
            }
        }
        self.durable.resize(self.len, 0..0);
        self.allocated.within(0..u64::MAX).for_each(|blocks| self.durable.resize(self.len, blocks));
    }

    /// A sync failed: what it was to write is clean from now on. Returns how many sectors that concerns.
    pub fn drop_dirty(&mut self) -> u64 {
        let dropped = touched(&self.pending[self.clean..]).len() as u64;
        self.clean = self.pending.len();
        dropped
    }

    /// What is left of the first so many changes: the parts of their writes, by sectors, that no later resize cut.
    fn lasting(&self, count: usize) -> Vec<(u64, &[u8])> {
        let (mut parts, mut end) = (Vec::new(), u64::MAX);
        for (number, change) in self.pending.iter().enumerate().rev() {
            match change {
                Change::Resize { len, .. } => end = end.min(*len),
                Change::Write { offset, data } if number < count => {
                    let kept = end.saturating_sub(*offset).min(data.len() as u64) as usize;
                    let of_write = sectors(*offset, &data[..kept]).map(|(_, at, part)| (at, part));
                    parts.extend(of_write.collect::<Vec<_>>().into_iter().rev());
                }
                Change::Write { .. } => {}
            }
        }
        parts.reverse();
        parts
    }

    /// The sectors that no pending change touches.
    pub fn firm(&self) -> Extents {
        let mut firm = Extents::default();
        firm.insert(0..self.durable.len().div_ceil(SECTOR));
        for change in &self.pending {
            match change {
                Change::Write { offset, data } => firm.remove(units(&(*offset..offset + data.len() as u64), SECTOR)),
                Change::Resize { len, .. } => firm.remove(len / SECTOR..u64::MAX),
            }
        }
        firm
    }

    /// Whether a sync failed, and nothing was changed since.
    pub fn is_clean(&self) -> bool {
        self.clean > 0 && self.clean == self.pending.len()
    }

    /// Forgets the bytes that are clean, and keeps the lengths and the blocks that they brought about: those are the
    /// file's, not its pages'.
    pub fn evict(&mut self) {
        assert!(self.is_clean());
        let mut end = self.durable.len();
        for change in &mut self.pending {
            match change {
                Change::Resize { len, .. } => end = *len,
                Change::Write { offset, data } => {
                    let range = *offset..*offset + data.len() as u64;
                    end = end.max(range.end);
                    *change = Change::Resize { len: end, reserved: units(&range, BLOCK) };
                }
            }
        }
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The length that is not durable, if there is one.
    pub fn pending_len(&self) -> Option<u64> {
        let resized = || self.pending.iter().any(|change| matches!(change, Change::Resize { .. }));
        (self.len != self.durable.len() || resized()).then_some(self.len)
    }

    /// The sectors whose bytes are not durable, in order.
    pub fn pending_sectors(&self) -> BTreeSet<u64> {
        self.lasting(self.pending.len()).into_iter().map(|(offset, _)| offset / SECTOR).collect()
    }

    /// Keeps the pending length and each pending sector, in this order, or not, as `keep` says. Returns how many
    /// sectors were not kept.
    pub fn lose_exactly(&mut self, keep: &mut impl FnMut() -> bool) -> u64 {
        let lengths = if self.pending_len().is_some() && keep() { self.pending.len() } else { 0 };
        let sectors = self.pending_sectors();
        let count = sectors.len();
        let kept = sectors.into_iter().filter(|_| keep());
        let kept: BTreeMap<u64, u64> = kept.map(|sector| (sector, u64::MAX)).collect();
        let lost = count - kept.len();
        self.leave(kept, lengths);
        lost as u64
    }

    /// Takes what is not durable, or some of it. Returns how many sectors were not kept as they were last written.
    pub fn lose(&mut self, rng: &mut impl Rng) -> u64 {
        if self.pending.is_empty() {
            return 0;
        }
        let taken = match rng.next_u64() % 4 {
            0 => Taken::Everything,
            1 => Taken::Nothing,
            _ => Taken::Some,
        };
        // Lengths reach the disk in their order: those after some point are lost.
        let lengths = match taken {
            Taken::Everything => 0,
            Taken::Nothing => self.pending.len(),
            Taken::Some => (rng.next_u64() % (self.pending.len() as u64 + 1)) as usize,
        };
        let (versions, lost) = choose_versions(&self.pending, taken, rng);
        self.leave(versions, lengths);
        lost
    }

    /// Makes so many writes of each sector durable, and so many of the lengths; the rest never was.
    fn leave(&mut self, mut versions: BTreeMap<u64, u64>, lengths: usize) {
        let (mut durable, pending) = (mem::take(&mut self.durable), mem::take(&mut self.pending));
        let mut len = durable.len();
        let mut kept_len = len;
        for (number, change) in pending.into_iter().enumerate() {
            match change {
                Change::Write { offset, data } => {
                    len = len.max(offset + data.len() as u64);
                    for (sector, at, part) in sectors(offset, &data) {
                        if let Some(left) = versions.get_mut(&sector).filter(|left| **left > 0) {
                            *left -= 1;
                            durable.write(at, part);
                        }
                    }
                }
                Change::Resize { len: to, reserved } => {
                    len = to;
                    if number < lengths {
                        durable.resize(to, reserved);
                    }
                }
            }
            if number < lengths {
                kept_len = len;
            }
        }
        durable.resize(kept_len, 0..0);
        *self = Content::new(durable);
    }

    /// Changes the medium behind everybody's back. What is pending stays so, on top of it.
    pub fn damage<R>(&mut self, with: impl FnOnce(&mut Layer) -> R) -> R {
        let result = with(&mut self.durable);
        (self.len, self.allocated) = (self.durable.len(), self.durable.allocated().clone());
        self.pending.iter().for_each(|change| change.account(&mut self.len, &mut self.allocated));
        result
    }

    /// Memory held for contents, in bytes.
    pub fn held(&self) -> u64 {
        let pending = self.pending.iter().map(|change| match change {
            Change::Write { data, .. } => data.capacity() as u64,
            Change::Resize { .. } => 0,
        });
        self.durable.held() + pending.sum::<u64>()
    }
}

/// The sectors that changes write to.
fn touched(changes: &[Change]) -> BTreeSet<u64> {
    let writes = changes.iter().filter_map(|change| match change {
        Change::Write { offset, data } => Some(units(&(*offset..offset + data.len() as u64), SECTOR)),
        Change::Resize { .. } => None,
    });
    writes.flatten().collect()
}

/// For each sector with pending writes: how many of them reach the disk. And in how many sectors that is not all.
fn choose_versions(pending: &[Change], taken: Taken, rng: &mut impl Rng) -> (BTreeMap<u64, u64>, u64) {
    let mut versions = BTreeMap::<u64, u64>::new();
    for change in pending {
        if let Change::Write { offset, data } = change {
            for (sector, ..) in sectors(*offset, data) {
                *versions.entry(sector).or_default() += 1;
            }
        }
    }
    let mut lost = 0;
    for count in versions.values_mut() {
        let kept = match taken {
            Taken::Everything => 0,
            Taken::Nothing => *count,
            Taken::Some => rng.next_u64() % (*count + 1),
        };
        lost += u64::from(kept < *count);
        *count = kept;
    }
    (versions, lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn synced(len: usize) -> Content {
        let mut content = Content::default();
        content.write(0, vec![b'.'; len]);
        content.sync();
        content
    }

    /// One letter a sector.
    fn letters(content: &Content) -> String {
        let bytes = content.read(0, usize::MAX);
        bytes.chunks(SECTOR as usize).map(|sector| sector[0] as char).collect()
    }

    /// All that a power loss can leave, over many seeds.
    fn outcomes(make: impl Fn() -> Content) -> BTreeSet<String> {
        let lose = |seed| {
            let (mut content, mut rng) = (make(), Seed(seed).rng());
            content.lose(&mut rng);
            assert!(content.pending.is_empty() && content.durable.len() == content.len());
            letters(&content)
        };
        (0..3_000).map(lose).collect()
    }

    #[test]
    fn every_subset_of_unsynced_sectors_can_survive() {
        for n in 1..=6usize {
            let found = outcomes(|| {
                let mut content = synced(8 * SECTOR as usize);
                content.write(SECTOR, vec![b'x'; n * SECTOR as usize]);
                content
            });
            let subset = |bits: usize| -> String {
                (0..8).map(|i| if (1..=n).contains(&i) && bits >> (i - 1) & 1 == 1 { 'x' } else { '.' }).collect()
            };
            assert_eq!(found, (0..1 << n).map(subset).collect(), "{n} sectors");
        }
    }

    #[test]
    fn a_sector_written_twice_shows_one_of_its_versions() {
        let found = outcomes(|| {
            let mut content = synced(2 * SECTOR as usize);
            content.write(0, vec![b'a'; SECTOR as usize]);
            content.write(0, vec![b'b'; 2 * SECTOR as usize]);
            content
        });
        assert_eq!(found.into_iter().collect::<Vec<_>>().join(" "), ".. .b a. ab b. bb");
    }

    #[test]
    fn lengths_are_lost_too_and_a_gap_reads_as_zeros() {
        let found = outcomes(|| {
            let mut content = synced(SECTOR as usize);
            content.write(SECTOR, vec![b'x'; SECTOR as usize]);
            content.write(2 * SECTOR, vec![b'y'; SECTOR as usize]);
            content
        });
        let expected = [".", ".\0", ".x", ".\0\0", ".x\0", ".\0y", ".xy"];
        assert_eq!(found, expected.map(String::from).into());
        let cut = outcomes(|| {
            let mut content = synced(3 * SECTOR as usize);
            content.set_len(SECTOR);
            content.set_len(2 * SECTOR);
            content
        });
        assert_eq!(cut, ["...", ".", ".\0"].map(String::from).into());
    }

    #[test]
    fn synced_bytes_are_never_lost() {
        let mut rng = Seed(1).rng();
        for _ in 0..200 {
            let (mut content, mut plain) = (Content::default(), Vec::new());
            for _ in 0..rng.next_u64() % 20 {
                let (offset, len) = ((rng.next_u64() % 5_000) as usize, (1 + rng.next_u64() % 3_000) as usize);
                if rng.next_u64().is_multiple_of(4) {
                    content.set_len(offset as u64);
                    plain.resize(offset, 0);
                } else {
                    let byte = rng.next_u64() as u8;
                    content.write(offset as u64, vec![byte; len]);
                    plain.resize(plain.len().max(offset + len), 0);
                    plain[offset..offset + len].fill(byte);
                }
                assert!(content.read(0, usize::MAX) == plain, "a process sees all it wrote");
                assert_eq!(content.read(700, 900), plain.get(700..).map_or(&[][..], |p| &p[..p.len().min(900)]));
            }
            content.sync();
            assert_eq!(content.lose(&mut rng), 0);
            content.write(8_192, vec![1; 600]);
            content.lose(&mut rng);
            let left = content.read(0, plain.len());
            assert!(left == plain, "and keeps all it synced");
        }
    }

    #[test]
    fn a_lost_sector_is_counted() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..100 {
            let mut content = synced(SECTOR as usize);
            content.write(0, vec![b'x'; 10]);
            match content.lose(&mut Seed(seed).rng()) {
                0 => kept += u64::from(letters(&content) == "x"),
                1 => lost += u64::from(letters(&content) == "."),
                many => panic!("{many} of one sector"),
            }
        }
        assert_eq!(kept + lost, 100);
        assert!(kept > 30 && lost > 30);
    }
}
