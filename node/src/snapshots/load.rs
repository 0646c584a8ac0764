//! Reads a state's file back into a machine, off the driver's thread and without holding the file in memory.
use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use detcd_core::{
    format::bbolt::{self, Next, Reader},
    machine::{
        Machine,
        backend::{BackendError, Builder},
    },
};
use futures::future::try_join;

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
const CHUNKS_MAX: usize = 64;

pub struct Loaded {
    pub machine: Machine,
    /// Of the whole file, if it was asked for.
    pub checksum: Option<Checksum>,
    /// Whether the file is as our writer left it: etcd counts its transactions on.
    pub is_ours: bool,
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
    /// By offset.
    chunks: BTreeMap<u64, Bytes>,
    /// In the order in which they were read.
    order: std::collections::VecDeque<u64>,
    file_bytes: u64,
    transaction: u64,
}

enum Turn {
    /// The chunk at this offset is missing.
    Read(u64),
    End,
}

pub async fn load(disk: &dyn Disk, path: &Path, with_checksum: bool) -> Result<Loaded, Failure> {
    let file = disk.open(path, Open::Read).await.map_err(|error| failed("open", path, error))?;
    let file_bytes = file.len().await.map_err(|error| failed("read", path, error))?;
    // Side by side: rows are not read in the order of the file.
    let parsing = parse(&*file, file_bytes, path);
    let summing = async {
        match with_checksum {
            true => checksum(&*file, file_bytes).await.map(Some).map_err(|error| failed("read", path, error)),
            false => Ok(None),
        }
    };
    let ((machine, is_ours), checksum) = try_join(parsing, summing).await?;
    Ok(Loaded { machine, checksum, is_ours })
}

/// The machine, and whether the file is as our writer left it.
async fn parse(file: &dyn File, file_bytes: u64, path: &Path) -> Result<(Machine, bool), Failure> {
    let damaged = |Damage { offset, reason }| Failure::DamagedState { path: path.to_owned(), offset, reason };
    let mut parser = Box::new(Parser::new(file_bytes));
    loop {
        let turn;
        (parser, turn) = background::run(move || {
            let turn = parser.run();
            (parser, turn)
        })
        .await;
        match turn.map_err(damaged)? {
            Turn::End => break,
            Turn::Read(offset) => {
                let chunk = read_chunk(file, offset, file_bytes).await;
                parser.keep(offset, chunk.map_err(|error| failed("read", path, error))?);
            }
        }
    }
    let Parser { builder, transaction, .. } = *parser;
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

async fn checksum(file: &dyn File, file_bytes: u64) -> std::io::Result<Checksum> {
    let (mut checksum, mut offset) = (Checksum::default(), 0);
    while offset < file_bytes {
        let chunk = read_chunk(file, offset, file_bytes).await?;
        offset += chunk.len() as u64;
        checksum.update(&chunk);
    }
    Ok(checksum)
}

impl Parser {
    fn new(file_bytes: u64) -> Parser {
        Parser {
            reader: Reader::new(file_bytes),
            builder: Builder::default(),
            chunks: BTreeMap::new(),
            order: Default::default(),
            file_bytes,
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
                Next::Bytes { offset, len } => match self.slice(offset, len) {
                    Ok(bytes) => self.reader.give(bytes),
                    Err(missing) => return Ok(Turn::Read(missing)),
                },
            }
        }
    }

    /// Bytes out of the chunks; the error is the offset of one that is missing.
    fn slice(&self, offset: u64, len: usize) -> Result<Bytes, u64> {
        let chunk_of = |at: u64| at / CHUNK_BYTES * CHUNK_BYTES;
        let (first, last) = (chunk_of(offset), chunk_of(offset + len.max(1) as u64 - 1));
        debug_assert!(offset + len as u64 <= self.file_bytes, "the reader asks for what is there");
        let chunk = |at: u64| self.chunks.get(&at).ok_or(at);
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

    fn keep(&mut self, offset: u64, chunk: Bytes) {
        if self.order.len() >= CHUNKS_MAX.max(self.wanted_chunks()) {
            let oldest = self.order.pop_front().expect("it is full");
            self.chunks.remove(&oldest);
        }
        self.order.push_back(offset);
        self.chunks.insert(offset, chunk);
    }

    /// A value may be larger than all chunks that are kept otherwise.
    fn wanted_chunks(&mut self) -> usize {
        match self.reader.pull() {
            Ok(Next::Bytes { len, .. }) => len / CHUNK_BYTES as usize + 2,
            _ => 0,
        }
    }
}
