//! Bytes of a file, without the zeros: a preallocated file costs what was written into it, and a copy of one nothing
//! until it differs.
use std::{collections::BTreeMap, sync::Arc};

const CHUNK: u64 = 4 << 10;

/// Invariants: a chunk that is not there reads as zeros; every byte at `len` and beyond is zero.
#[derive(Clone, Default)]
pub struct Sparse {
    chunks: BTreeMap<u64, Arc<[u8; CHUNK as usize]>>,
    len: u64,
}

impl Sparse {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Memory held for contents, in bytes.
    pub fn held(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK
    }

    /// Fills `window` with what stands at `offset`; zeros beyond the end.
    pub fn read(&self, offset: u64, window: &mut [u8]) {
        window.fill(0);
        let end = offset + window.len() as u64;
        for (&index, chunk) in self.chunks.range(offset / CHUNK..end.div_ceil(CHUNK)) {
            let start = index * CHUNK;
            let (from, to) = (start.max(offset), (start + CHUNK).min(end));
            let target = &mut window[(from - offset) as usize..(to - offset) as usize];
            target.copy_from_slice(&chunk[(from - start) as usize..(to - start) as usize]);
        }
    }

    /// Every part that is not all zeros, with its offset, in order.
    pub fn for_each(&self, mut f: impl FnMut(u64, &[u8])) {
        for (index, chunk) in &self.chunks {
            if chunk.iter().any(|byte| *byte != 0) {
                f(index * CHUNK, &**chunk);
            }
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let within = (at % CHUNK) as usize;
            let (part, after) = rest.split_at(rest.len().min(CHUNK as usize - within));
            let index = at / CHUNK;
            let chunk = match self.chunks.get_mut(&index) {
                Some(chunk) => Some(chunk),
                None if part.iter().all(|byte| *byte == 0) => None,
                None => Some(self.chunks.entry(index).or_insert_with(|| Arc::new([0; CHUNK as usize]))),
            };
            if let Some(chunk) = chunk {
                Arc::make_mut(chunk)[within..within + part.len()].copy_from_slice(part);
            }
            at += part.len() as u64;
            rest = after;
        }
    }

    /// Cuts, or extends by zeros.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.chunks.split_off(&len.div_ceil(CHUNK));
            if let Some(chunk) = self.chunks.get_mut(&(len / CHUNK)) {
                Arc::make_mut(chunk)[(len % CHUNK) as usize..].fill(0);
            }
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Rng, Seed};

    #[test]
    fn agrees_with_a_plain_vector() {
        let (mut rng, mut sparse, mut plain) = (Seed(1).rng(), Sparse::default(), Vec::new());
        for _ in 0..2_000 {
            let (offset, len) = ((rng.next_u64() % 20_000) as usize, (rng.next_u64() % 9_000) as usize);
            match rng.next_u64() % 4 {
                0 => {
                    sparse.set_len(offset as u64);
                    plain.resize(offset, 0);
                }
                kind => {
                    let data = vec![if kind == 1 { 0 } else { rng.next_u64() as u8 }; len];
                    sparse.write(offset as u64, &data);
                    plain.resize(plain.len().max(offset + len), 0);
                    plain[offset..offset + len].copy_from_slice(&data);
                }
            }
            let mut window = vec![1; 30_000];
            sparse.read(0, &mut window);
            assert_eq!(&window[..plain.len()], &plain[..]);
            assert!(window[plain.len()..].iter().all(|byte| *byte == 0));
            let (from, to) = (offset, offset + len);
            let mut part = vec![1; to - from];
            sparse.read(from as u64, &mut part);
            assert_eq!(part, window[from..to]);
            assert_eq!(sparse.len(), plain.len() as u64);
        }
    }

    #[test]
    fn zeros_cost_nothing() {
        let mut sparse = Sparse::default();
        sparse.set_len(64 << 20);
        sparse.write(0, &vec![0; 1 << 20]);
        assert_eq!(sparse.held(), 0);
        sparse.write(100, b"record");
        assert_eq!((sparse.held(), sparse.len()), (CHUNK, 64 << 20));
    }
}
