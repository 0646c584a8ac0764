//! A state that comes from a leader: written beside the one in force, read back and checked, and only then shown to
//! the replica.
use std::{io, sync::Arc};

use bytes::Bytes;
use detcd_core::{consensus::Message, format::snap, replica::State, types::Index};

use super::{Checksum, Snapshots, checksum_names, image, load, mark_of, snap_file};
use crate::{
    disk::read_whole,
    error::Failure,
    host::{File, Open},
};

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("the message is no snapshot")]
    NoSnapshot,
    #[error("another snapshot is being received")]
    Another,
    #[error("another state of index {0} is still on its way into its place")]
    Busy(Index),
    #[error("the stream ended early: {0}")]
    Cut(String),
    #[error("its checksum does not fit: it was damaged on the way")]
    Checksum,
    #[error("the state is of {state}, the message of {message}")]
    Mismatch { state: String, message: String },
    #[error(transparent)]
    State(#[from] Failure),
    #[error("cannot keep it: {0}")]
    Disk(#[from] io::Error),
}

/// Where the pieces of a state come from.
pub trait Pieces: Send {
    /// `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, String>>> + Send;
}

/// Takes a state in. It is durable when this returns, and nothing depends on it yet; its index is taken until the state
/// is put into its place or dropped. `checksum`: the state is followed by the [`Checksum`] of its bytes.
pub async fn receive(
    snapshots: &Snapshots,
    message: &Message,
    pieces: &mut impl Pieces,
    checksum: bool,
) -> Result<State, ReceiveError> {
    let (index, term) = message.snapshot_position().ok_or(ReceiveError::NoSnapshot)?;
    if !snapshots.shared.received.lock().insert(index) {
        return Err(ReceiveError::Busy(index));
    }
    let name = format!("tmp-received-{:016x}.db", index.0);
    let result = take_in(snapshots, &name, pieces, checksum).await;
    let result = match result {
        Ok((state, _)) if (state.0.applied(), state.0.applied_term()) != (index, term) => {
            let of = |index, term| format!("index {index}, term {term}");
            let state = of(state.0.applied(), state.0.applied_term());
            Err(ReceiveError::Mismatch { state, message: of(index, term) })
        }
        Ok((state, sum)) => keep(snapshots, &name, &state, &sum).await.map(|()| state).map_err(ReceiveError::from),
        Err(error) => Err(error),
    };
    if result.is_err() {
        // The error before is the one to tell.
        let _ = snapshots.remove(&name).await;
        let _ = snapshots.remove_received(index).await;
        snapshots.shared.received.lock().remove(&index);
    }
    result
}

async fn take_in(
    snapshots: &Snapshots,
    name: &str,
    pieces: &mut impl Pieces,
    checksum: bool,
) -> Result<(State, Checksum), ReceiveError> {
    let file = snapshots.create(name).await?;
    let mut sink = Sink { file, offset: 0, checksum: Checksum::default(), held: Vec::new() };
    let tail = if checksum { Checksum::BYTES } else { 0 };
    while let Some(piece) = pieces.next().await {
        sink.put(&piece.map_err(ReceiveError::Cut)?, tail).await?;
    }
    let Some(ready) = sink.held.len().checked_sub(tail) else {
        return Err(ReceiveError::Cut("not even its checksum came".into()));
    };
    sink.write(ready).await?;
    sink.file.sync().await?;
    if checksum && sink.held != sink.checksum.bytes() {
        return Err(ReceiveError::Checksum);
    }
    drop(sink.file);
    let loaded = load::load(&*snapshots.disk, &snapshots.dir.join(name), false).await?;
    Ok((State(Box::new(loaded.machine)), sink.checksum))
}

/// Gives the files the names under which the log's mark will find them.
async fn keep(snapshots: &Snapshots, name: &str, state: &State, sum: &Checksum) -> io::Result<()> {
    let mark = mark_of(&state.0);
    let [_, checksum] = checksum_names(mark.index);
    let mut sums = image::hex(&sum.bytes());
    if mark.index == snapshots.state()
        && let Ok(file) = snapshots.disk.open(&snapshots.dir.join(&checksum), Open::Read).await
    {
        // That is in force, and has come once more.
        let earlier = String::from_utf8(read_whole(&*file).await?).map_err(io::Error::other)?;
        if !earlier.lines().any(|line| line == sums) {
            sums = format!("{sums}\n{}", earlier.lines().next().unwrap_or_default());
        }
    }
    snapshots.write_sum(sums, &format!("tmp-received-{:016x}.xxh3", mark.index.0), &checksum).await?;
    let snap = format!("tmp-received-{:016x}.snap", mark.index.0);
    snapshots.write_small(&snap, snap_file(&state.0, &mark)).await?;
    let (dir, disk) = (&snapshots.dir, &snapshots.disk);
    disk.rename(&dir.join(snap), &dir.join(snap::name(mark.term, mark.index))).await?;
    disk.rename(&dir.join(name), &dir.join(snap::db_name(mark.index))).await?;
    disk.sync_dir(dir).await
}

/// Writes what comes, but for the last bytes, of which nobody knows yet that they are the last.
struct Sink {
    file: Arc<dyn File>,
    offset: u64,
    checksum: Checksum,
    held: Vec<u8>,
}

impl Sink {
    async fn put(&mut self, piece: &[u8], tail: usize) -> io::Result<()> {
        self.held.extend_from_slice(piece);
        let ready = self.held.len().saturating_sub(tail);
        // Not a write for every little piece.
        if ready < WRITE_BYTES { Ok(()) } else { self.write(ready).await }
    }

    async fn write(&mut self, ready: usize) -> io::Result<()> {
        let rest = self.held.split_off(ready);
        let bytes = std::mem::replace(&mut self.held, rest);
        self.checksum.update(&bytes);
        let len = bytes.len() as u64;
        self.file.write_at(self.offset, bytes).await?;
        self.offset += len;
        Ok(())
    }
}
