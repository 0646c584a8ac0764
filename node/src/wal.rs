//! The write-ahead log on disk: etcd's files, through [`Disk`].
//!
//! - A segment is preallocated, so that appending to it changes no metadata; one fsync covers a batch.
//! - A new segment is made as `N.tmp` and renamed once it is complete and durable: a segment that exists can be read.
//! - The directory counts as a log once it has a segment. A crash before that leaves nothing.
//! - The tail that an interrupted write left is gone, durably, before anything is appended: or a later crash could put
//!   new records in front of old ones.
//! - What recovery has read it makes durable, names too: whoever wrote it may have been killed before its sync, and the
//!   member answers for it from now on. If the last process stopped over a sync that failed, the system shows bytes and
//!   a name that are on no disk, and takes them for written; no sync would write them. So the last segment is written
//!   anew, and gets its name once more.
//! - A mark is a record which says that a state stands in for the log up to some index. It is durable together with a
//!   commit index that has reached it; alone it does not count, and recovery cuts it off. What a log of another history
//!   holds before its mark is void.
//! - Segments that a mark made superfluous go, the oldest first, once there are more than are to be kept.
//!
//! How frames look is [`detcd_core::format::wal`]'s business; states are that of `snapshots.rs`.
mod replay;
mod segment;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use detcd_core::{
    format::wal::{self as format, Damage, HardState, Metadata},
    proto::raftpb,
    replica::{Persist, Recovered, SnapshotMark},
    types::{Index, MemberId, Term},
};

use self::{replay::Replay, segment::Segment};

use crate::{
    background,
    disk::{create_dir, failed, open_failed, read_whole},
    error::Failure,
    host::{Clock, Disk, File, Open},
    metrics::Metrics,
};

/// Bytes of records that nobody waits for; beyond it they are written without being asked.
const LAZY_BYTES_MAX: usize = 64 << 10;

pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    sizes: Sizes,
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
    /// All that are there, in order, the one that is being written last: sequence and first index.
    segments: VecDeque<(u64, Index)>,
    /// Entries up to here are in a state that is durable.
    released: Index,
    /// Bytes written since the last mark.
    since_mark: u64,
    /// The last segment as it was found, and where it ends, until it is renewed.
    found: Option<(Bytes, usize)>,
    pub stopwatch: Option<Stopwatch>,
}

/// For what an operator wants to know of the disk: how long the log's syncs take.
pub struct Stopwatch {
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
}

/// How much there is of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// At which a segment is full, in bytes.
    pub segment: u64,
    /// Segments to keep although they are superfluous; 0 keeps all.
    pub segments_kept: usize,
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
        sizes: Sizes,
        metadata: Metadata,
        founding: &Recovered,
    ) -> Result<Wal, Failure> {
        create_dir(&*disk, dir).await?;
        let (mut writer, mut bytes) = (format::Writer::new(0), Vec::new());
        writer.begin(&mut bytes, metadata, None);
        founding.entries.iter().for_each(|entry| writer.entry(&mut bytes, entry));
        writer.state(&mut bytes, founding.hard_state);
        let offset = bytes.len() as u64;
        let segment = Segment { disk: &*disk, dir, sequence: 0, first: Index(0), size: sizes.segment };
        let (file, path) = (segment.create(bytes).await?, segment.path());
        Ok(Wal {
            disk,
            path,
            dir: dir.to_owned(),
            sizes,
            metadata,
            writer,
            file,
            sequence: 0,
            offset,
            buffer: Vec::new(),
            state: founding.hard_state,
            last: founding.last(),
            segments: [(0, Index(0))].into(),
            released: Index(0),
            since_mark: offset,
            found: None,
            stopwatch: None,
        })
    }

    /// Reads the log back from behind `start`, which a mark must confirm; `None` if no mark does. (0, 0) is the log's
    /// beginning. The state that is recovered with it is for the caller to fill in. Changes nothing: [`Wal::renew`] must
    /// come before anything is appended.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        sizes: Sizes,
        start: (Index, Term),
    ) -> Result<Option<(Wal, Metadata, Recovered)>, Failure> {
        let segments = segments(&*disk, dir).await?;
        let senseless = |reason: String| Failure::Log { path: dir.to_owned(), reason };
        let first = segments.iter().rposition(|(_, first)| *first <= start.0);
        let Some(first) = first else {
            let begins = segments.first().map_or(Index(0), |(_, first)| *first);
            return Err(senseless(format!("it begins at index {begins}, and nothing that is known reaches so far")));
        };
        let mut replay = Replay::default();
        let (mut tail, mut read) = (None, 0);
        for (at, (sequence, index)) in segments[first..].iter().copied().enumerate() {
            if sequence != segments[first].0 + at as u64 {
                return Err(senseless(format!("segment {} is missing", segments[first].0 + at as u64)));
            }
            let path = dir.join(format::segment_name(sequence, index));
            let is_last = first + at + 1 == segments.len();
            let how = if is_last { Open::Write } else { Open::Read };
            let file = disk.open(&path, how).await.map_err(|error| open_failed(&path, error))?;
            let mut bytes = Bytes::from(read_whole(&*file).await.map_err(|error| failed("read", &path, error))?);
            let end;
            (replay, bytes, end) = background::run(move || {
                let end = replay.segment(&bytes, is_last);
                (replay, bytes, end)
            })
            .await;
            let end = end.map_err(|damage| damaged(&path, damage))?;
            read += end as u64;
            tail = is_last.then_some((file, bytes, end, path));
        }
        let (file, bytes, end, path) = tail.expect("there is a last segment");
        let Some((metadata, recovered)) = replay.finish(start).map_err(senseless)? else { return Ok(None) };
        let (sequence, _) = *segments.last().expect("there is a last segment");
        let wal = Wal {
            disk,
            dir: dir.to_owned(),
            sizes,
            metadata,
            writer: format::Writer::new(replay.crc),
            file,
            path,
            sequence,
            offset: end as u64,
            buffer: Vec::new(),
            state: recovered.hard_state,
            last: recovered.last(),
            segments: segments.into(),
            released: start.0,
            since_mark: read,
            found: Some((bytes, end)),
            stopwatch: None,
        };
        Ok(Some((wal, metadata, recovered)))
    }

    /// Makes durable what `open` has read, and the log ready for more: see [`Segment::renew`].
    pub async fn renew(&mut self) -> Result<(), Failure> {
        let Some((bytes, end)) = self.found.take() else { return Ok(()) };
        let (sequence, first) = *self.segments.back().expect("there is a last segment");
        self.file = self.segment(sequence, first).renew(&self.file, &bytes, end).await?;
        Ok(())
    }

    fn segment(&self, sequence: u64, first: Index) -> Segment<'_> {
        Segment { disk: &*self.disk, dir: &self.dir, sequence, first, size: self.sizes.segment }
    }

    /// The segment that is being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes written since the last mark: what a restart would have to read.
    pub fn since_mark(&self) -> u64 {
        self.since_mark
    }

    /// Writes batches, in order, with one fsync if any of them wants it.
    pub async fn append(&mut self, batches: &[Persist]) -> io::Result<Option<NewSegment>> {
        let mut sync = false;
        for Persist { entries, hard_state, snapshot, sync: wanted, .. } in batches {
            if let Some(mark) = snapshot {
                self.put_mark(mark);
                self.put_state(hard_state.expect("a snapshot is committed"));
                self.last = mark.index;
            }
            for entry in entries {
                self.writer.entry(&mut self.buffer, entry);
                self.last = Index(entry.index);
            }
            if let Some(state) = hard_state.filter(|_| snapshot.is_none()) {
                self.put_state(state);
            }
            sync |= wanted;
        }
        if sync || self.buffer.len() > LAZY_BYTES_MAX {
            self.flush().await?;
        }
        if self.offset < self.sizes.segment {
            return Ok(None);
        }
        self.rotate().await.map(Some)
    }

    /// Notes that a state stands in for the log up to here, durably.
    pub async fn mark(&mut self, mark: &SnapshotMark) -> io::Result<()> {
        assert!(mark.index <= self.state.commit, "{mark:?} is of what is not committed: {:?}", self.state);
        self.put_mark(mark);
        self.flush().await
    }

    fn put_mark(&mut self, mark: &SnapshotMark) {
        let ids = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect();
        let conf_state = raftpb::ConfState {
            voters: ids(&mark.configuration.voters),
            learners: ids(&mark.configuration.learners),
            auto_leave: Some(false),
            ..Default::default()
        };
        let (index, term) = (mark.index, mark.term);
        self.writer.snapshot(&mut self.buffer, &format::SnapshotMark { index, term, conf_state: Some(conf_state) });
        self.released = mark.index;
        self.since_mark = 0;
    }

    fn put_state(&mut self, state: HardState) {
        self.state = state;
        self.writer.state(&mut self.buffer, state);
    }

    /// Takes the segments off the list that may be removed by now, oldest first.
    pub fn take_superfluous(&mut self) -> Vec<(u64, PathBuf)> {
        let needed = self.segments.iter().rposition(|(_, first)| *first < self.released).unwrap_or(0);
        let kept = match self.sizes.segments_kept {
            0 => 0,
            kept => needed.min(self.segments.len().saturating_sub(kept)),
        };
        let gone = self.segments.drain(..kept);
        gone.map(|(sequence, first)| (sequence, self.dir.join(format::segment_name(sequence, first)))).collect()
    }

    /// Writes what nobody waited for.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        assert!(self.found.is_none(), "a log is renewed before anything is written to it");
        let bytes = std::mem::take(&mut self.buffer);
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        self.since_mark += bytes.len() as u64;
        let begun = self.stopwatch.as_ref().map(|stopwatch| stopwatch.clock.now());
        self.file.write_sync(offset, bytes).await?;
        if let (Some(begun), Some(Stopwatch { clock, metrics })) = (begun, &self.stopwatch) {
            metrics.log_synced(clock.now().saturating_sub(begun));
        }
        Ok(())
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
        let segment = self.segment(sequence, first);
        let (new, path) = (segment.create(bytes).await, segment.path());
        self.file = new.map_err(|failure| match failure {
            Failure::Disk { error, .. } => error,
            other => io::Error::other(other.to_string()),
        })?;
        (self.sequence, self.offset) = (sequence, offset);
        self.segments.push_back((sequence, first));
        self.path = path;
        Ok(NewSegment { sequence, first })
    }
}

fn damaged(path: &Path, damage: Damage) -> Failure {
    Failure::Damaged { path: path.to_owned(), offset: damage.offset as u64, reason: damage.reason }
}
