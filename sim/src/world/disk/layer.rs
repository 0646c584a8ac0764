//! One file as a medium holds it: its bytes, and what is known of its sectors and blocks.
use std::ops::Range;

use super::{extents::Extents, sparse::Sparse};

/// What a disk writes as a whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
/// What a file occupies is a multiple of this, in bytes.
pub const BLOCK: u64 = 4 << 10;

/// Copies share what neither of them has changed since.
///
/// Invariant: nothing is known of sectors and blocks beyond the end.
#[derive(Clone, Default)]
pub struct Layer {
    bytes: Sparse,
    /// Sectors that hold what somebody wrote, rather than the zeros of reserved space.
    written: Extents,
    /// Blocks that are occupied, by bytes or by a reservation.
    allocated: Extents,
    /// Sectors that cannot be read.
    broken: Extents,
}

impl Layer {
    pub fn len(&self) -> u64 {
        self.bytes.len()
    }

    /// Fills `window` with what stands at `offset`; zeros beyond the end.
    pub fn read(&self, offset: u64, window: &mut [u8]) {
        self.bytes.read(offset, window);
    }

    /// What is written can be read again.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let range = offset..offset + data.len() as u64;
        self.bytes.write(offset, data);
        self.written.insert(units(&range, SECTOR));
        self.allocated.insert(units(&range, BLOCK));
        self.broken.remove(units(&range, SECTOR));
    }

    /// Changes bytes where they lie, behind everybody's back: within the file, and nothing becomes readable by it.
    pub fn corrupt(&mut self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.len(), "corruption stays within the file");
        self.bytes.write(offset, data);
    }

    /// Cuts, or extends by zeros, and occupies the `reserved` blocks.
    pub fn resize(&mut self, len: u64, reserved: Range<u64>) {
        self.bytes.set_len(len);
        self.written.remove(len.div_ceil(SECTOR)..u64::MAX);
        self.broken.remove(len.div_ceil(SECTOR)..u64::MAX);
        self.allocated.remove(len.div_ceil(BLOCK)..u64::MAX);
        self.allocated.insert(reserved);
    }

    /// Makes sectors unreadable. Returns how many of them were there, and were readable.
    pub fn break_sectors(&mut self, sectors: Range<u64>) -> u64 {
        let before = self.broken.count();
        self.broken.insert(sectors.start..sectors.end.min(self.len().div_ceil(SECTOR)));
        self.broken.count() - before
    }

    pub fn written(&self) -> &Extents {
        &self.written
    }

    pub fn allocated(&self) -> &Extents {
        &self.allocated
    }

    pub fn broken(&self) -> &Extents {
        &self.broken
    }

    /// Memory held for contents, in bytes.
    pub fn held(&self) -> u64 {
        self.bytes.held()
    }

    /// Feeds all that can ever be read to `hash`: where it is, and what.
    pub fn digest(&self, hash: &mut impl FnMut(&[u8])) {
        hash(&self.len().to_le_bytes());
        self.bytes.for_each(|offset, bytes| {
            hash(&offset.to_le_bytes());
            hash(bytes);
        });
        for range in self.broken.within(0..u64::MAX) {
            hash(&range.start.to_le_bytes());
            hash(&range.end.to_le_bytes());
        }
    }
}

/// The sectors or blocks that a range of bytes lies in.
pub fn units(bytes: &Range<u64>, unit: u64) -> Range<u64> {
    let end = if bytes.is_empty() { bytes.start / unit } else { bytes.end.div_ceil(unit) };
    bytes.start / unit..end
}

/// The parts of a write: each sector's number, and what goes where in it.
pub fn sectors(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, u64, &[u8])> {
    let end = offset + data.len() as u64;
    units(&(offset..end), SECTOR).map(move |sector| {
        let (from, to) = ((sector * SECTOR).max(offset), ((sector + 1) * SECTOR).min(end));
        (sector, from, &data[(from - offset) as usize..(to - offset) as usize])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(extents: &Extents) -> String {
        extents.within(0..u64::MAX).map(|range| format!("{range:?}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_layer_knows_what_was_written_and_what_is_only_reserved() {
        let mut layer = Layer::default();
        layer.resize(10 * BLOCK, 0..10);
        assert_eq!((layer.allocated().count(), layer.written().count()), (10, 0));
        layer.write(SECTOR - 1, &[1, 2]);
        assert_eq!((&*show(layer.written()), layer.allocated().count()), ("0..2", 10));
        layer.write(12 * BLOCK, &[1]);
        assert_eq!((&*show(layer.allocated()), layer.len()), ("0..10 12..13", 12 * BLOCK + 1));
        layer.resize(BLOCK + 1, 0..0);
        assert_eq!((&*show(layer.allocated()), &*show(layer.written())), ("0..2", "0..2"));
        layer.resize(0, 0..0);
        assert_eq!((layer.allocated().count(), layer.written().count()), (0, 0));
    }

    #[test]
    fn a_broken_sector_is_healed_by_writing_and_not_by_corruption() {
        let mut layer = Layer::default();
        layer.write(0, &[1; 3 * SECTOR as usize]);
        assert_eq!((layer.break_sectors(1..9), layer.break_sectors(2..3)), (2, 0));
        assert_eq!(show(layer.broken()), "1..3");
        layer.corrupt(SECTOR, &[9]);
        layer.write(2 * SECTOR, &[2; SECTOR as usize]);
        assert_eq!(show(layer.broken()), "1..2");
        layer.resize(SECTOR, 0..0);
        layer.resize(3 * SECTOR, 0..0);
        assert_eq!(layer.broken().count(), 0);
    }

    #[test]
    fn copies_are_independent() {
        let mut layer = Layer::default();
        layer.write(0, &[1; 3 * BLOCK as usize]);
        let copy = layer.clone();
        layer.write(BLOCK, &[2; 10]);
        layer.resize(BLOCK + 5, 0..0);
        let mut window = [0; 3 * BLOCK as usize];
        copy.read(0, &mut window);
        assert_eq!((window, copy.len()), ([1; 3 * BLOCK as usize], 3 * BLOCK));
        let digest = |layer: &Layer| {
            let mut bytes = Vec::new();
            layer.digest(&mut |part| bytes.extend_from_slice(part));
            bytes
        };
        assert_ne!(digest(&layer), digest(&copy));
        assert_eq!(digest(&copy), digest(&copy.clone()));
    }
}
