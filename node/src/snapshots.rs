//! States on disk: the file from which a member starts, and those that are on their way into its place.
//!
//! ```text
//! member/snap/db                    the state: etcd's backend, as of the index that stands in it
//!             TERM-INDEX.snap       says who voted as of the index; counts if the log has a mark of the same
//!             INDEX.snap.db         a state that came from a leader, until the log's mark is durable
//!             INDEX.db.xxh3         what `db` comes to while it is as we wrote it: its pages carry no checksum
//!             INDEX.received.db.xxh3  the same of one that came from a leader, before it is `db` and after
//!             tmp-*                 what is being written or received; nothing, after a crash
//! ```
//!
//! A checkpoint becomes the place to start from in this order: `db` and `.snap` renamed, their directory durable, then
//! the log's mark. A crash in between leaves a `db` that is ahead of what the log begins with, which is fine: entries
//! that it has seen are not applied again. A received state waits beside `db` until the mark is durable, since the log
//! before the mark may be of another history; whoever finds it there after a crash puts it into its place.
//!
//! Only one of these is under way at a time in the log's hands (`storage.rs`); writing a checkpoint's file and
//! receiving one go on beside it, each under names of its own. A received state's index is its own until the state is in
//! its place or gone: another one of that index is refused meanwhile, or either would take the other's file for its own.
//!
//! The directory is locked for as long as it is used, and so is `db`, as etcd does it.
mod image;
mod load;
mod receive;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use detcd_core::{
    format::{snap, v2store},
    machine::{Machine, membership::Configuration},
    replica::{SnapshotMark, State},
    types::{Index, Term},
};
use parking_lot::Mutex;

pub use self::{
    image::{Checksum, Image},
    receive::{Pieces, ReceiveError, receive},
};
use crate::{
    background,
    disk::{create_dir, failed, open_failed, read_whole},
    error::Failure,
    host::{Clock, Disk, File, Lock, Open},
};

/// The directory of states.
#[derive(Clone)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// How many `.snap` files to keep; 0 is all.
    kept: usize,
    shared: Arc<Shared>,
}

/// What all that use one directory share.
struct Shared {
    _dir: Lock,
    /// `None` while there is no state.
    db: Mutex<Option<Lock>>,
    /// The index that `db` is of; 0 if there is none.
    state: AtomicU64,
    /// The indexes of states that are being received, or were and are neither in their place nor gone.
    received: Mutex<BTreeSet<Index>>,
}

/// A checkpoint that is durable under temporary names.
#[derive(Debug)]
pub struct Written {
    pub mark: SnapshotMark,
    db: PathBuf,
    snap: PathBuf,
}

impl Snapshots {
    /// Finds what is there, and removes what is left from writing. The `.snap` files, the newest first.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        kept: usize,
    ) -> Result<(Snapshots, Vec<(Index, Term)>), Failure> {
        create_dir(&*disk, dir).await?;
        // Before anything is changed: it may be another process's.
        let lock = disk.lock(dir).await.map_err(|error| open_failed(dir, error))?;
        let shared = Shared { _dir: lock, db: Mutex::default(), state: AtomicU64::new(0), received: Mutex::default() };
        let snapshots = Snapshots { disk, dir: dir.to_owned(), kept, shared: Arc::new(shared) };
        let names = snapshots.names().await.map_err(|error| failed("list", dir, error))?;
        if names.iter().any(|name| name == "db") {
            let path = dir.join("db");
            let lock = snapshots.disk.lock(&path).await.map_err(|error| open_failed(&path, error))?;
            *snapshots.shared.db.lock() = Some(lock);
        }
        for name in names.iter().filter(|name| name.starts_with("tmp") || name.starts_with("db.tmp")) {
            snapshots.remove(name).await.map_err(|error| failed("remove", &dir.join(name), error))?;
        }
        // Whoever gave the others their names may have been killed before that was durable.
        snapshots.disk.sync_dir(dir).await.map_err(|error| failed("sync", dir, error))?;
        let mut found: Vec<_> = names.iter().filter_map(|name| snap::parse_name(name)).collect();
        found.sort();
        let mut usable = Vec::new();
        for (term, index) in found.into_iter().rev() {
            let path = dir.join(snap::name(term, index));
            match snapshots.read_snap(&path).await {
                Ok(Ok(())) => usable.push((index, term)),
                Ok(Err(error)) => {
                    tracing::warn!(target: "snapshots", path = %path.display(), %error, "left a snapshot aside");
                }
                Err(error) => return Err(failed("read", &path, error)),
            }
        }
        Ok((snapshots, usable))
    }

    async fn read_snap(&self, path: &Path) -> io::Result<Result<(), snap::SnapError>> {
        let file = self.disk.open(path, Open::Read).await?;
        let bytes = read_whole(&*file).await?;
        Ok(snap::Snapshot::decode(&bytes).map(drop))
    }

    /// Whether there is a state that some member starts from.
    pub async fn has_state(&self) -> Result<bool, Failure> {
        let names = self.names().await.map_err(|error| failed("list", &self.dir, error))?;
        Ok(names.iter().any(|name| name == "db"))
    }

    async fn names(&self) -> io::Result<Vec<String>> {
        self.disk.list(&self.dir).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        match self.disk.remove(&self.dir.join(name)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Reads the state that is most likely to go on from while the log has not told yet, and changes nothing; `None`
    /// where the log has to tell first.
    pub async fn look_ahead(&self) -> Option<Result<Machine, Failure>> {
        let names = self.names().await.ok()?;
        let has_received = names.iter().any(|name| snap::parse_db_name(name).is_some());
        let is_likely = !has_received && names.iter().any(|name| name == "db");
        if is_likely { Some(self.load("db", &names).await) } else { None }
    }

    /// The state to go on from, given where the log begins and what [`Snapshots::look_ahead`] found. Changes nothing.
    pub async fn read(&self, start: Index, ahead: Option<Result<Machine, Failure>>) -> Result<Machine, Failure> {
        let names = self.names().await.map_err(|error| failed("list", &self.dir, error))?;
        let received = snap::db_name(start);
        if names.contains(&received) && start > Index(0) {
            let machine = self.load(&received, &names).await?;
            self.check_reaches(&received, machine.applied(), start)?;
            return Ok(machine);
        }
        if !names.iter().any(|name| name == "db") {
            self.check_reaches("db", Index(0), start)?;
            return Ok(Machine::default());
        }
        let machine = match ahead {
            Some(machine) => machine?,
            None => self.load("db", &names).await?,
        };
        self.check_reaches("db", machine.applied(), start)?;
        Ok(machine)
    }

    /// Makes that state, of this index, the one to start from: puts a received one into its place if a crash came between
    /// the log's mark, which is durable, and that; and removes those that no mark is of.
    pub async fn settle(&mut self, start: Index, applied: Index) -> Result<(), Failure> {
        let dir = self.dir.clone();
        let names = self.names().await.map_err(|error| failed("list", &dir, error))?;
        for name in names.iter().filter(|name| snap::parse_db_name(name).is_some_and(|index| index != start)) {
            self.remove(name).await.map_err(|error| failed("remove", &dir.join(name), error))?;
        }
        let received = snap::db_name(start);
        if names.contains(&received) && start > Index(0) {
            return self
                .place_received(start)
                .await
                .map_err(|error| failed("put into place", &dir.join(&received), error));
        }
        self.shared.state.store(applied.0, Relaxed);
        Ok(())
    }

    /// The index that `db` is of; 0 if there is none.
    fn state(&self) -> Index {
        Index(self.shared.state.load(Relaxed))
    }

    async fn load(&self, name: &str, names: &[String]) -> Result<Machine, Failure> {
        let path = self.dir.join(name);
        let has_checksum = names.iter().any(|name| name.ends_with(CHECKSUM_SUFFIX));
        let loaded = load::load(&*self.disk, &path, has_checksum).await?;
        let machine = loaded.machine;
        // A file that etcd has written to since is checked by its structure alone.
        if let Some(found) = loaded.checksum {
            let found = image::hex(&found.bytes());
            let sidecars = checksum_names(machine.applied()).into_iter().filter(|sidecar| names.contains(sidecar));
            self.check_sum(name, &found, sidecars.collect()).await?;
        }
        Ok(machine)
    }

    /// A state of one index may have been written and have come from a leader, twice even: any file of these may be the one
    /// in force, and a sidecar has a line for each.
    async fn check_sum(&self, name: &str, found: &str, sidecars: Vec<String>) -> Result<(), Failure> {
        for sidecar in &sidecars {
            let path = self.dir.join(sidecar);
            let file = self.disk.open(&path, Open::Read).await.map_err(|error| failed("open", &path, error))?;
            let expected = read_whole(&*file).await.map_err(|error| failed("read", &path, error))?;
            if expected.split(|byte| *byte == b'\n').any(|line| line == found.as_bytes()) {
                return Ok(());
            }
        }
        if sidecars.is_empty() {
            return Ok(());
        }
        let reason = format!("its checksum is {found}, {} says otherwise", sidecars.join(" and "));
        Err(Failure::DamagedState { path: self.dir.join(name), offset: 0, reason })
    }

    fn check_reaches(&self, name: &str, index: Index, start: Index) -> Result<(), Failure> {
        if index >= start {
            return Ok(());
        }
        let reason = format!("it is of index {index}, and the log begins behind {start}");
        Err(Failure::DamagedState { path: self.dir.join(name), offset: 0, reason })
    }

    /// Makes a received state the one to start from; the log's mark of it is durable.
    pub async fn place_received(&mut self, index: Index) -> io::Result<()> {
        self.install(&self.dir.join(snap::db_name(index))).await?;
        self.disk.sync_dir(&self.dir).await?;
        self.shared.state.store(index.0, Relaxed);
        self.shared.received.lock().remove(&index);
        Ok(())
    }

    /// A received state is not needed. (Its `.snap` without a mark means nothing.)
    pub async fn drop_received(&self, index: Index) -> io::Result<()> {
        let result = self.remove_received(index).await;
        self.shared.received.lock().remove(&index);
        result
    }

    /// One may come once more when it has been put into its place: that one's checksum stays.
    async fn remove_received(&self, index: Index) -> io::Result<()> {
        self.remove(&snap::db_name(index)).await?;
        let [_, checksum] = checksum_names(index);
        if index == self.state() { Ok(()) } else { self.remove(&checksum).await }
    }

    /// Gives a state the name of the one in force, locked already.
    async fn install(&self, path: &Path) -> io::Result<()> {
        let lock = self.disk.lock(path).await?;
        self.disk.rename(path, &self.dir.join("db")).await?;
        // With the old one's lock its file goes, which takes a disk its time.
        if let Some(old) = self.shared.db.lock().replace(lock) {
            background::discard(old);
        }
        Ok(())
    }

    /// Writes a state under temporary names, durably and at leisure. What is left of one that fails is removed.
    pub async fn write_checkpoint(&self, state: State, clock: &dyn Clock) -> io::Result<Written> {
        let index = state.0.applied();
        let names = ["db", "snap", "xxh3"].map(|kind| format!("tmp-{:016x}.{kind}", index.0));
        let result = self.write_files(state, &names, clock).await;
        if result.is_err() {
            for name in &names {
                let _ = self.remove(name).await; // the error before is the one to tell
            }
        }
        result
    }

    async fn write_files(
        &self,
        state: State,
        [db, snap, checksum]: &[String; 3],
        clock: &dyn Clock,
    ) -> io::Result<Written> {
        let machine = &*state.0;
        let mark = mark_of(machine);
        let snap_bytes = snap_file(machine, &mark);
        let mut image = Image::of(state).await;
        let file = self.create(db).await?;
        // What does not fit on the disk is known at once, and the log's syncs have no growing file to wait for.
        file.allocate(image.total_len()).await?;
        let (mut sum, mut offset, mut begun) = (Checksum::default(), 0, clock.now());
        while let Some(chunk) = image.next().await {
            sum.update(&chunk);
            let len = chunk.len() as u64;
            file.write_at(offset, chunk).await?;
            offset += len;
            if offset < image.total_len() {
                clock.sleep(clock.now().saturating_sub(begun).min(REST_MAX)).await;
                begun = clock.now();
            }
        }
        file.sync().await?;
        let [name, _] = checksum_names(mark.index);
        self.write_sum(image::hex(&sum.bytes()), checksum, &name).await?;
        self.write_small(snap, snap_bytes).await?;
        Ok(Written { mark, db: self.dir.join(db), snap: self.dir.join(snap) })
    }

    /// The sidecar of a state, whole or not at all.
    async fn write_sum(&self, sum: String, temporary: &str, name: &str) -> io::Result<()> {
        self.write_small(temporary, sum.into_bytes()).await?;
        self.disk.rename(&self.dir.join(temporary), &self.dir.join(name)).await
    }

    async fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.remove(name).await?;
        self.disk.open(&self.dir.join(name), Open::Create).await
    }

    async fn write_small(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let file = self.create(name).await?;
        file.write_at(0, bytes).await?;
        file.sync().await
    }

    /// Puts a checkpoint into its place; the log's mark comes next. Whether it is still worth it: a state that was
    /// received meanwhile may be newer.
    pub async fn place_checkpoint(&mut self, written: &Written) -> io::Result<bool> {
        let Written { mark, db, snap } = written;
        if mark.index <= self.state() {
            self.disk.remove(db).await?;
            self.disk.remove(snap).await?;
            return Ok(false);
        }
        self.install(db).await?;
        self.disk.rename(snap, &self.dir.join(snap::name(mark.term, mark.index))).await?;
        self.disk.sync_dir(&self.dir).await?;
        self.shared.state.store(mark.index.0, Relaxed);
        Ok(true)
    }

    /// Removes `.snap` files over the number to keep, the oldest first and never the one in force, and the checksums
    /// of states that are gone.
    pub async fn purge(&self) -> io::Result<()> {
        let names = self.names().await?;
        let received = self.shared.received.lock().clone();
        let needed: Vec<_> = received.into_iter().chain([self.state()]).flat_map(checksum_names).collect();
        for name in names.iter().filter(|name| name.ends_with(CHECKSUM_SUFFIX) && !needed.contains(name)) {
            self.remove(name).await?;
        }
        let mut snaps: Vec<_> = names.iter().filter_map(|name| snap::parse_name(name)).collect();
        snaps.sort();
        let surplus = if self.kept == 0 { 0 } else { snaps.len().saturating_sub(self.kept) };
        for (term, index) in snaps.into_iter().take(surplus).filter(|(_, index)| *index != self.state()) {
            self.remove(&snap::name(term, index)).await?;
        }
        Ok(())
    }
}

/// A checkpoint is in no hurry, and puts are: after each piece it rests for as long as that took, up to this. So half of
/// a core and of the disk is left to them, though it may take twice as long.
const REST_MAX: Duration = Duration::from_millis(100);

const CHECKSUM_SUFFIX: &str = ".db.xxh3";

/// The sidecar of a checkpoint, and that of a state that came from a leader.
fn checksum_names(index: Index) -> [String; 2] {
    ["", ".received"].map(|kind| format!("{:016x}{kind}{CHECKSUM_SUFFIX}", index.0))
}

fn mark_of(machine: &Machine) -> SnapshotMark {
    let configuration: Configuration = machine.membership.configuration();
    SnapshotMark { index: machine.applied(), term: machine.applied_term(), configuration }
}

/// The `.snap` that goes with a state.
fn snap_file(machine: &Machine, mark: &SnapshotMark) -> Vec<u8> {
    let data = v2store::write(&machine.membership, machine.cluster_version.as_deref());
    let conf_state = machine.membership.conf_state();
    snap::Snapshot { index: mark.index, term: mark.term, conf_state, data: data.into() }.encode()
}
