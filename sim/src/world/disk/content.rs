//! One file's bytes: what is durable, what is only written, and what a power loss leaves of it.
//!
//! A disk writes whole sectors, in any order, at any time. So of the changes since the last good sync a power loss
//! keeps, for each sector, those up to one of its versions; and of the lengths that the file has had, any one.
use std::collections::BTreeMap;

use super::sparse::Sparse;
use crate::seed::Rng;

/// What a disk writes as a whole or not at all, in bytes.
pub const SECTOR: u64 = 512;

/// Invariant: `len` is the length after all pending changes.
#[derive(Default)]
pub struct Content {
    durable: Sparse,
    pending: Vec<Change>,
    len: u64,
}

enum Change {
    Write { offset: u64, data: Vec<u8> },
    Resize { len: u64 },
}

/// How much a power loss takes of one file. All and nothing are made likely even for many sectors.
enum Taken {
    Everything,
    Nothing,
    Some,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn write(&mut self, offset: u64, data: Vec<u8>) {
        if !data.is_empty() {
            self.len = self.len.max(offset + data.len() as u64);
            self.pending.push(Change::Write { offset, data });
        }
    }

    pub fn set_len(&mut self, len: u64) {
        if len != self.len {
            self.len = len;
            self.pending.push(Change::Resize { len });
        }
    }

    /// What a process sees: the durable bytes under all pending changes.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut window = vec![0; len.min(self.len.saturating_sub(offset) as usize)];
        self.durable.read(offset, &mut window);
        for change in &self.pending {
            match change {
                Change::Resize { len } => {
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

    pub fn sync(&mut self) {
        for change in self.pending.drain(..) {
            match change {
                Change::Write { offset, data } => self.durable.write(offset, &data),
                Change::Resize { len } => self.durable.set_len(len),
            }
        }
        assert_eq!(self.durable.len(), self.len);
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
        let pending = std::mem::take(&mut self.pending);
        // Lengths reach the disk in their order: those after some point are lost.
        let lengths = match taken {
            Taken::Everything => 0,
            Taken::Nothing => pending.len(),
            Taken::Some => (rng.next_u64() % (pending.len() as u64 + 1)) as usize,
        };
        let (mut versions, lost) = choose_versions(&pending, taken, rng);
        let mut len = self.durable.len();
        let mut kept_len = len;
        for (number, change) in pending.iter().enumerate() {
            match change {
                Change::Write { offset, data } => {
                    len = len.max(offset + data.len() as u64);
                    for (sector, at, part) in sectors(*offset, data) {
                        let left = versions.get_mut(&sector).expect("every pending sector was counted");
                        if *left > 0 {
                            *left -= 1;
                            self.durable.write(at, part);
                        }
                    }
                }
                Change::Resize { len: to } => {
                    len = *to;
                    if number < lengths {
                        self.durable.set_len(*to);
                    }
                }
            }
            if number < lengths {
                kept_len = len;
            }
        }
        self.durable.set_len(kept_len);
        self.len = kept_len;
        lost
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

/// The parts of a write: each sector's number, and what goes where in it.
fn sectors(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, u64, &[u8])> {
    let end = offset + data.len() as u64;
    (offset / SECTOR..end.div_ceil(SECTOR)).map(move |sector| {
        let (from, to) = ((sector * SECTOR).max(offset), ((sector + 1) * SECTOR).min(end));
        (sector, from, &data[(from - offset) as usize..(to - offset) as usize])
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
