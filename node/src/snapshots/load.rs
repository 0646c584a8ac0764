//! Reads a state's file back into a machine, off the driver's thread and without holding the file in memory.
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
};

use bytes::Bytes;
use detcd_core::{
    format::bbolt::{self, Next, Reader},
    machine::{
        Machine,
        backend::{BackendError, Builder},
    },
};
use futures::future::join3;

use super::Checksum;
use crate::{
    background,
    disk::failed,
    error::Failure,
    host::{Disk, File, Open},
};

/// Bytes read at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Chunks that are kept: etcd's files are read here and there.
const CHUNKS_KEPT: usize = 64;

pub struct Loaded {
    pub machine: Machine,
    /// Of the whole file, if it was asked for, and if the file is as our writer left it: etcd counts its transactions on.
    pub checksum: Option<Checksum>,
}

/// What is wrong with a file's contents, and where.
struct Damage {
    offset: u64,
    reason: String,
}

/// Reads rows for as long as it has the bytes.
struct Parser {
    reader: Reader,
    builder: Builder,
    chunks: Chunks,
    transaction: u64,
}

enum Turn {
    /// The chunk at this offset is missing.
    Read(u64),
    End,
}

/// The parts of the file that are at hand.
struct Chunks {
    file_bytes: u64,
    /// By offset.
    kept: BTreeMap<u64, Bytes>,
    /// Their offsets, in the order in which they were read.
    order: VecDeque<u64>,
    /// How many the slice in question takes: a value may be larger than all that is kept otherwise.
    needed: usize,
}

pub async fn load(disk: &dyn Disk, path: &Path, with_checksum: bool) -> Result<Loaded, Failure> {
    let file = disk.open(path, Open::Read).await.map_err(|error| failed("open", path, error))?;
    let file_bytes = file.len().await.map_err(|error| failed("read", path, error))?;
    let mut sum = with_checksum.then(Sum::default);
    let (machine, is_ours) = parse(&*file, file_bytes, path, sum.as_mut()).await?;
    let checksum = match sum.filter(|_| is_ours) {
        Some(sum) => Some(sum.finish(&*file, file_bytes).await.map_err(|error| failed("read", path, error))?),
        None => None,
    };
    Ok(Loaded { machine, checksum })
}

/// The machine, and whether the file is as our writer left it. While rows are taken from one chunk, those before it are
/// summed, and the next one is read, if it looks as if chunks were asked for in the order of the file.
async fn parse(
    file: &dyn File,
    file_bytes: u64,
    path: &Path,
    mut sum: Option<&mut Sum>,
) -> Result<(Machine, bool), Failure> {
    let damaged = |Damage { offset, reason }| Failure::DamagedState { path: path.to_owned(), offset, reason };
    let mut parser = Box::new(Parser::new(file_bytes));
    let (mut last, mut next) = (None, None);
    loop {
        let parsing = background::run(move || {
            let turn = parser.run();
            (parser, turn)
        });
        let reading = async {
            // What cannot be read is told when it is needed.
            let offset = next?;
            Some((offset, read_chunk(file, offset, file_bytes).await.ok()?))
        };
        let summing = async {
            if let Some(sum) = &mut sum {
                sum.work_off();
            }
        };
        let (turn, read);
        ((parser, turn), read, ()) = join3(parsing, reading, summing).await;
        let Turn::Read(offset) = turn.map_err(damaged)? else { break };
        let chunks = &mut parser.chunks;
        let is_in_order = chunks.next_missing(last) == Some(offset);
        if let Some((offset, chunk)) = read {
            chunks.keep(offset, chunk);
        }
        if !chunks.kept.contains_key(&offset) {
            let chunk = read_chunk(file, offset, file_bytes).await;
            chunks.keep(offset, chunk.map_err(|error| failed("read", path, error))?);
        }
        last = Some(offset);
        next = chunks.next_missing(last).filter(|_| is_in_order);
        if let Some(sum) = &mut sum {
            sum.note(&chunks.kept);
        }
    }
    let Parser { builder, transaction, chunks, .. } = *parser;
    drop(chunks);
    let machine = background::run(move || builder.finish()).await;
    let machine = machine.map_err(|error| match error {
        // Nothing is wrong with it.
        BackendError::AuthEnabled => Failure::Unsupported { path: path.to_owned(), reason: error.to_string() },
        _ => damaged(Damage { offset: 0, reason: error.to_string() }),
    })?;
    Ok((machine, transaction == bbolt::TRANSACTION))
}

async fn read_chunk(file: &dyn File, offset: u64, file_bytes: u64) -> std::io::Result<Bytes> {
    let len = CHUNK_BYTES.min(file_bytes - offset) as usize;
    let bytes = file.read_at(offset, len).await?;
    if bytes.len() != len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.into())
}

/// The checksum of a file whose chunks are read for another reason, mostly in order.
#[derive(Default)]
struct Sum {
    checksum: Checksum,
    /// What is summed or waits for it ends here.
    end: u64,
    waiting: Vec<Bytes>,
}

impl Sum {
    /// Takes what follows in the file, as far as it is at hand.
    fn note(&mut self, chunks: &BTreeMap<u64, Bytes>) {
        while let Some(chunk) = chunks.get(&self.end) {
            self.end += chunk.len() as u64;
            self.waiting.push(chunk.clone());
        }
    }

    fn work_off(&mut self) {
        self.waiting.drain(..).for_each(|chunk| self.checksum.update(&chunk));
    }

    /// Reads what has not come by.
    async fn finish(mut self, file: &dyn File, file_bytes: u64) -> std::io::Result<Checksum> {
        self.work_off();
        while self.end < file_bytes {
            let chunk = read_chunk(file, self.end, file_bytes).await?;
            self.end += chunk.len() as u64;
            self.checksum.update(&chunk);
        }
        Ok(self.checksum)
    }
}

impl Parser {
    fn new(file_bytes: u64) -> Parser {
        Parser {
            reader: Reader::new(file_bytes),
            builder: Builder::default(),
            chunks: Chunks { file_bytes, kept: BTreeMap::new(), order: VecDeque::new(), needed: 0 },
            transaction: 0,
        }
    }

    fn run(&mut self) -> Result<Turn, Damage> {
        loop {
            let next = self
                .reader
                .pull()
                .map_err(|damage| Damage { offset: damage.offset, reason: damage.reason.to_string() })?;
            match next {
                Next::Bucket(_) => {}
                Next::Row { bucket, key, value } => self
                    .builder
                    .row(bucket, key, value)
                    .map_err(|error| Damage { offset: 0, reason: error.to_string() })?,
                Next::End(totals) => {
                    self.transaction = totals.transaction;
                    return Ok(Turn::End);
                }
                Next::Bytes { offset, len } => match self.chunks.slice(offset, len) {
                    Ok(bytes) => self.reader.give(bytes),
                    Err(missing) => return Ok(Turn::Read(missing)),
                },
            }
        }
    }
}

impl Chunks {
    /// Bytes of the file; the error is the offset of a chunk that is missing.
    fn slice(&mut self, offset: u64, len: usize) -> Result<Bytes, u64> {
        let chunk_of = |at: u64| at / CHUNK_BYTES * CHUNK_BYTES;
        debug_assert!(len > 0 && offset + len as u64 <= self.file_bytes, "the reader asks for what is there");
        let (first, last) = (chunk_of(offset), chunk_of(offset + len as u64 - 1));
        self.needed = ((last - first) / CHUNK_BYTES) as usize + 1;
        let chunk = |at: u64| self.kept.get(&at).ok_or(at);
        if first == last {
            let start = (offset - first) as usize;
            return Ok(chunk(first)?.slice(start..start + len));
        }
        let mut bytes = Vec::with_capacity(len);
        let mut at = first;
        while at <= last {
            let chunk = chunk(at)?;
            let start = offset.saturating_sub(at) as usize;
            let end = (chunk.len() as u64).min(offset + len as u64 - at) as usize;
            bytes.extend_from_slice(&chunk[start..end]);
            at += CHUNK_BYTES;
        }
        Ok(bytes.into())
    }

    /// The first missing chunk after one, if there is any.
    fn next_missing(&self, after: Option<u64>) -> Option<u64> {
        let mut following = (after? + CHUNK_BYTES..self.file_bytes).step_by(CHUNK_BYTES as usize);
        following.find(|offset| !self.kept.contains_key(offset))
    }

    /// The oldest go when there are too many. Between two that are needed one may come that is not: none of those
    /// that are needed goes before all are there.
    fn keep(&mut self, offset: u64, chunk: Bytes) {
        while self.order.len() >= CHUNKS_KEPT.max(2 * self.needed) {
            let oldest = self.order.pop_front().expect("it is not empty");
            self.kept.remove(&oldest);
        }
        self.order.push_back(offset);
        self.kept.insert(offset, chunk);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use detcd_core::{replica::State, types::Index};
    use parking_lot::Mutex;

    use super::*;
    use crate::{
        snapshots::Image,
        testing::{Memory, state, state_of},
    };

    const PATH: &str = "/snap/db";

    fn memory(file: Vec<u8>) -> Memory {
        let memory = Memory::default();
        memory.files.lock().insert(PATH.into(), Arc::new(Mutex::new(file)));
        memory
    }

    fn sum(bytes: &[u8]) -> [u8; Checksum::BYTES] {
        let mut checksum = Checksum::default();
        checksum.update(bytes);
        checksum.bytes()
    }

    async fn file_of(state: State) -> Vec<u8> {
        let (mut image, mut file) = (Image::of(state).await, Vec::new());
        while let Some(piece) = image.next().await {
            file.extend_from_slice(&piece);
        }
        file
    }

    /// All of its chunks are needed at once.
    #[tokio::test]
    async fn a_value_larger_than_what_is_kept_is_loaded() {
        let value = Bytes::from(vec![b'v'; (CHUNKS_KEPT + 3) * CHUNK_BYTES as usize]);
        let few = || std::iter::repeat_n(Bytes::from_static(b"value"), 5_000);
        let file = file_of(state_of(few().chain([value.clone()]).chain(few()))).await;
        let (chunks, memory) = (file.len().div_ceil(CHUNK_BYTES as usize), memory(file));
        let loaded = load(&memory, Path::new(PATH), false).await.map_err(|failure| failure.to_string()).unwrap();
        assert_eq!(loaded.machine.store.get(b"key 5001").expect("it was put").value(), value);
        let reads = memory.reads.lock().len();
        assert!(reads <= chunks + 3, "{reads} reads of {chunks} chunks");
    }

    #[tokio::test]
    async fn a_file_of_ours_is_read_once_for_rows_and_checksum() {
        let file = file_of(state(60_000)).await;
        let (chunks, expected) = (file.len().div_ceil(CHUNK_BYTES as usize), sum(&file));
        assert!(chunks > 2, "{chunks}");
        let memory = memory(file);
        let loaded = load(&memory, Path::new(PATH), true).await.map_err(|failure| failure.to_string()).unwrap();
        assert_eq!(loaded.checksum.expect("it was asked for").bytes(), expected);
        assert_eq!(loaded.machine.applied(), Index(60_000));
        let mut reads = memory.reads.lock().clone();
        reads.sort();
        assert_eq!(reads, (0..chunks as u64).map(|chunk| chunk * CHUNK_BYTES).collect::<Vec<_>>());
    }

    /// As it is with a file that etcd wrote.
    #[tokio::test]
    async fn what_does_not_come_by_in_order_is_read_for_the_checksum() {
        let file: Vec<_> = (0..3 * CHUNK_BYTES + 5).map(|at| (at / 1_000) as u8).collect();
        let memory = memory(file.clone());
        let opened = memory.open(Path::new(PATH), Open::Read).await.unwrap();
        let (mut summed, mut chunks) = (Sum::default(), BTreeMap::new());
        for offset in [2 * CHUNK_BYTES, 0] {
            chunks.insert(offset, read_chunk(&*opened, offset, file.len() as u64).await.unwrap());
            summed.note(&chunks);
            summed.work_off();
        }
        memory.reads.lock().clear();
        assert_eq!(summed.finish(&*opened, file.len() as u64).await.unwrap().bytes(), sum(&file));
        assert_eq!(*memory.reads.lock(), [CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]);
    }
}
