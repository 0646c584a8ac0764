//! The write-ahead log on disk: etcd's files, through [`Disk`].
//!
//! - A segment is preallocated, so that appending to it changes no metadata; one fsync covers a batch.
//! - A new segment is made as `N.tmp` and renamed once it is complete and durable: a segment that exists can be read.
//! - The directory counts as a log once it has a segment. A crash before that leaves nothing.
//! - Recovery cuts the tail that an interrupted write left, zeroes it, makes that durable, and only then appends:
//!   or a later crash could put new records in front of old ones.
//!
//! How frames look is [`detcd_core::format::wal`]'s business.
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use detcd_core::{
    format::wal::{self as format, Damage, HardState, Metadata, Reader, Record},
    replica::{Persist, Recovered},
    types::Index,
};

use crate::{
    error::Failure,
    host::{Disk, File, Open},
};

/// Bytes of records that nobody waits for; beyond it they are written without being asked.
const LAZY_BYTES_MAX: usize = 64 << 10;

pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    metadata: Metadata,
    writer: format::Writer,
    file: Arc<dyn File>,
    /// The last segment's, which `file` is.
    path: PathBuf,
    sequence: u64,
    /// Where the next record goes in the last segment.
    offset: u64,
    /// Encoded, not yet written.
    buffer: Vec<u8>,
    state: HardState,
    last: Index,
}

/// A segment that was begun by the last append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewSegment {
    pub sequence: u64,
    pub first: Index,
}

/// The segments in `dir`, in order; empty if there is no log.
pub async fn segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, Index)>, Failure> {
    let names = match disk.list(dir).await {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed("list", dir, error)),
    };
    let mut segments: Vec<_> = names.iter().filter_map(|name| format::parse_segment_name(name)).collect();
    segments.sort();
    Ok(segments)
}

impl Wal {
    /// Founds a log with what it begins with, durable when this returns.
    pub async fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
        metadata: Metadata,
        founding: &Recovered,
    ) -> Result<Wal, Failure> {
        create_dir(&*disk, dir).await?;
        let (mut writer, mut bytes) = (format::Writer::new(0), Vec::new());
        writer.begin(&mut bytes, metadata, None);
        founding.entries.iter().for_each(|entry| writer.entry(&mut bytes, entry));
        writer.state(&mut bytes, founding.hard_state);
        let offset = bytes.len() as u64;
        let last = Index(founding.entries.last().map_or(0, |entry| entry.index));
        let file = new_segment(&*disk, dir, 0, Index(0), segment_bytes, bytes).await?;
        Ok(Wal {
            disk,
            path: dir.join(format::segment_name(0, Index(0))),
            dir: dir.to_owned(),
            segment_bytes,
            metadata,
            writer,
            file,
            sequence: 0,
            offset,
            buffer: Vec::new(),
            state: founding.hard_state,
            last,
        })
    }

    /// Reads the log back and makes it ready for more. Changes nothing if it is damaged.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
    ) -> Result<(Wal, Metadata, Recovered), Failure> {
        let segments = segments(&*disk, dir).await?;
        let senseless = |reason: String| Failure::Log { path: dir.to_owned(), reason };
        let (Some(first), Some(last)) = (segments.first(), segments.last().copied()) else {
            return Err(senseless("it has no segment".into()));
        };
        if first.1 != Index(0) {
            let reason = format!("it begins at index {}, and no snapshot holds what was before", first.1);
            return Err(senseless(reason));
        }
        let mut replay = Replay::default();
        let mut tail = None;
        for (at, (sequence, index)) in segments.iter().copied().enumerate() {
            if sequence != first.0 + at as u64 {
                return Err(senseless(format!("segment {} is missing", first.0 + at as u64)));
            }
            let path = dir.join(format::segment_name(sequence, index));
            let is_last = (sequence, index) == last;
            let how = if is_last { Open::Write } else { Open::Read };
            let file = disk.open(&path, how).await.map_err(|error| open_failed(&path, error))?;
            let bytes = read_whole(&*file).await.map_err(|error| failed("read", &path, error))?;
            let end = replay.segment(&bytes, is_last).map_err(|damage| damaged(&path, damage))?;
            if is_last {
                tail = Some((file, bytes, end, path));
            }
        }
        let (file, bytes, end, path) = tail.expect("there is a last segment");
        let (metadata, recovered) = replay.finish().map_err(senseless)?;
        cut(&*file, &bytes, end, segment_bytes).await.map_err(|error| failed("repair", &path, error))?;
        let wal = Wal {
            disk,
            dir: dir.to_owned(),
            segment_bytes,
            metadata,
            writer: format::Writer::new(replay.crc),
            file,
            path,
            sequence: last.0,
            offset: end as u64,
            buffer: Vec::new(),
            state: recovered.hard_state,
            last: Index(recovered.entries.last().map_or(0, |entry| entry.index)),
        };
        Ok((wal, metadata, recovered))
    }

    /// The segment that is being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes batches, in order, with one fsync if any of them wants it.
    pub async fn append(&mut self, batches: &[Persist]) -> io::Result<Option<NewSegment>> {
        let mut sync = false;
        for Persist { entries, hard_state, sync: wanted, .. } in batches {
            for entry in entries {
                self.writer.entry(&mut self.buffer, entry);
                self.last = Index(entry.index);
            }
            if let Some(state) = hard_state {
                self.state = *state;
                self.writer.state(&mut self.buffer, *state);
            }
            sync |= wanted;
        }
        if sync || self.buffer.len() > LAZY_BYTES_MAX {
            self.flush().await?;
        }
        if self.offset < self.segment_bytes {
            return Ok(None);
        }
        self.rotate().await.map(Some)
    }

    /// Writes what nobody waited for.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.buffer);
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        self.file.write_sync(offset, bytes).await
    }

    /// Goes over to a new segment. The old one loses its zeros: whoever reads it sees a clean end.
    async fn rotate(&mut self) -> io::Result<NewSegment> {
        // What nobody waited for belongs to the old one: the new one goes on from its checksum.
        self.flush().await?;
        self.file.set_len(self.offset).await?;
        self.file.sync().await?;
        let (sequence, first) = (self.sequence + 1, Index(self.last.0 + 1));
        let mut bytes = Vec::new();
        self.writer.begin(&mut bytes, self.metadata, Some(self.state));
        let offset = bytes.len() as u64;
        let new = new_segment(&*self.disk, &self.dir, sequence, first, self.segment_bytes, bytes).await;
        self.file = new.map_err(|failure| match failure {
            Failure::Disk { error, .. } => error,
            other => io::Error::other(other.to_string()),
        })?;
        (self.sequence, self.offset) = (sequence, offset);
        self.path = self.dir.join(format::segment_name(sequence, first));
        Ok(NewSegment { sequence, first })
    }
}

/// Makes the directory and whatever is missing above it, durably: a log in a directory that is forgotten is forgotten.
async fn create_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for ancestor in dir.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        match disk.list(ancestor).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            _ => break,
        }
    }
    disk.create_dir_all(dir).await.map_err(|error| failed("create", dir, error))?;
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        disk.sync_dir(parent).await.map_err(|error| failed("sync", parent, error))?;
    }
    Ok(())
}

/// A segment under its final name, beginning with `bytes`, durable when this returns.
async fn new_segment(
    disk: &dyn Disk,
    dir: &Path,
    sequence: u64,
    first: Index,
    segment_bytes: u64,
    bytes: Vec<u8>,
) -> Result<Arc<dyn File>, Failure> {
    let temporary = dir.join(format!("{}.tmp", sequence % 2));
    match disk.remove(&temporary).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove", &temporary, error)),
    }
    let fail = |action, error| failed(action, &temporary, error);
    let file = disk.open(&temporary, Open::Create).await.map_err(|error| fail("create", error))?;
    let length = segment_bytes.max(bytes.len() as u64);
    file.allocate(length).await.map_err(|error| fail("allocate space for", error))?;
    file.write_sync(0, bytes).await.map_err(|error| fail("write", error))?;
    let path = dir.join(format::segment_name(sequence, first));
    disk.rename(&temporary, &path).await.map_err(|error| fail("rename", error))?;
    disk.sync_dir(dir).await.map_err(|error| failed("sync", dir, error))?;
    Ok(file)
}

async fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let length = file.len().await?;
    file.read_at(0, usize::try_from(length).map_err(io::Error::other)?).await
}

/// Leaves nothing but zeros behind `end`, up to the segment's size, and makes it durable.
async fn cut(file: &dyn File, bytes: &[u8], end: usize, segment_bytes: u64) -> io::Result<()> {
    let dirty = bytes[end..].iter().any(|byte| *byte != 0);
    if dirty {
        file.set_len(end as u64).await?;
        file.sync().await?;
    }
    if dirty || (bytes.len() as u64) < segment_bytes {
        file.allocate(segment_bytes.max(end as u64)).await?;
        file.sync().await?;
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> Failure {
    Failure::Disk { action, path: path.to_owned(), error }
}

fn open_failed(path: &Path, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock => Failure::Locked { path: path.to_owned() },
        _ => failed("open", path, error),
    }
}

fn damaged(path: &Path, damage: Damage) -> Failure {
    Failure::Damaged { path: path.to_owned(), offset: damage.offset as u64, reason: damage.reason }
}

/// Puts the records of all segments together.
#[derive(Default)]
struct Replay {
    metadata: Option<Metadata>,
    recovered: Recovered,
    crc: u32,
    read_any: bool,
}

impl Replay {
    /// Returns where the segment's records end. In the last segment a torn record ends the log.
    fn segment(&mut self, bytes: &[u8], is_last: bool) -> Result<usize, Damage> {
        let mut reader = Reader::new(bytes, self.read_any.then_some(self.crc));
        self.read_any = true;
        loop {
            let offset = reader.offset();
            match reader.read() {
                Ok(Some(record)) => {
                    self.record(record).map_err(|reason| Damage { offset, torn: false, reason })?;
                }
                Ok(None) => break,
                Err(damage) if damage.torn && is_last => break,
                Err(damage) => return Err(damage),
            }
        }
        self.crc = reader.crc().ok_or_else(|| Damage {
            offset: 0,
            torn: false,
            reason: "the segment does not begin with its checksum".into(),
        })?;
        Ok(reader.offset())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Metadata(metadata) => match self.metadata {
                Some(known) if known != metadata => {
                    return Err(format!("the segment is of member {}, the log of {}", metadata.member, known.member));
                }
                _ => self.metadata = Some(metadata),
            },
            Record::Entry(entry) => {
                let entries = &mut self.recovered.entries;
                let last = entries.last().map_or(0, |entry| entry.index);
                if entry.index == 0 || entry.index > last + 1 {
                    return Err(format!("entry {} follows entry {last}", entry.index));
                }
                // A later write of an index replaces what stood there and after it.
                entries.truncate(entry.index as usize - 1);
                entries.push(entry);
            }
            Record::State(state) => self.recovered.hard_state = state,
            Record::Crc(_) | Record::Snapshot(_) => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(Metadata, Recovered), String> {
        let metadata = self.metadata.ok_or("it does not say whose it is")?;
        let recovered = std::mem::take(&mut self.recovered);
        let (commit, last) = (recovered.hard_state.commit, recovered.entries.last().map_or(0, |entry| entry.index));
        if commit.0 > last {
            return Err(format!("entry {commit} was committed, but the log ends at {last}"));
        }
        Ok((metadata, recovered))
    }
}
