//! All that a disk holds, and what each operation does to it.
use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use detcd_node::host::Open;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    DiskOp, DiskStats, DiskTiming,
    content::Content,
    queue::{Answer, HandleId, Job, Price, Queue, Ticket},
    tree::{FileId, Tree},
};
use crate::seed::{ChaCha8Rng, Rng, Seed};

/// Work on one file.
pub enum FileWork {
    Len,
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Vec<u8>, sync: bool },
    SetLen { len: u64 },
    Sync,
}

/// Work on directory entries.
pub enum EntryWork {
    CreateDirAll(PathBuf),
    List(PathBuf),
    Open(PathBuf, Open),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

/// What faults tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
}

#[derive(Default)]
struct Inode {
    content: Content,
    queue: Queue<FileWork>,
    /// As it was opened or last renamed.
    path: Arc<str>,
    handles: u64,
    lock: Option<HandleId>,
}

/// What is wrong with the disk. Every operation asks here, and nowhere else.
#[derive(Default)]
pub struct Faults {
    stalled_until: Duration,
    /// Syncs take this many times as long, and as much more.
    slow: Option<(u32, Duration)>,
    lying: bool,
}

/// How an operation is to go.
enum Verdict {
    Honest,
    /// Claim that it is done, and do nothing.
    Pretend,
}

impl Faults {
    pub fn slow_sync(&mut self, factor: u32, extra: Duration) {
        self.slow = (factor != 1 || extra > Duration::ZERO).then_some((factor, extra));
    }

    pub fn lie(&mut self, lying: bool) {
        self.lying = lying;
    }

    /// Asked once for each operation, when it takes effect. Here is the place for errors and for full disks.
    fn judge(&self, kind: Kind, stats: &mut DiskStats) -> io::Result<Verdict> {
        if self.lying && kind == Kind::Sync {
            stats.lied_syncs += 1;
            return Ok(Verdict::Pretend);
        }
        Ok(Verdict::Honest)
    }
}

pub struct State {
    /// Grows at each fence and at each start: a handle of another epoch is dead.
    pub epoch: u64,
    pub timing: DiskTiming,
    pub faults: Faults,
    pub stats: DiskStats,
    pub tree: Tree,
    /// What the observer has yet to hear.
    pub notes: Vec<DiskOp>,
    files: BTreeMap<FileId, Inode>,
    entries: Queue<EntryWork>,
    last_file: FileId,
    last_handle: HandleId,
    rng: ChaCha8Rng,
}

impl State {
    pub fn new(timing: DiskTiming, seed: Seed) -> State {
        State {
            epoch: 0,
            timing,
            faults: Faults::default(),
            stats: DiskStats::default(),
            tree: Tree::new(),
            notes: Vec::new(),
            files: BTreeMap::new(),
            entries: Queue::default(),
            last_file: 0,
            last_handle: 0,
            rng: seed.child("disk latency", 0).rng(),
        }
    }

    pub fn content(&self, file: FileId) -> &Content {
        &self.files[&file].content
    }

    pub fn held(&self) -> u64 {
        self.files.values().map(|inode| inode.content.held()).sum()
    }

    pub fn call_file(&mut self, file: FileId, work: FileWork, now: Duration) -> Ticket {
        let price = self.price_of_file_work(file, &work);
        let inode = self.files.get_mut(&file).expect("an open file is there");
        if let FileWork::Sync | FileWork::Write { sync: true, .. } = work {
            self.notes.push(DiskOp::SyncCalled { path: inode.path.clone() });
        }
        let ticket = inode.queue.push(work, now, price, &mut self.stats);
        self.settle_file(file, now);
        ticket
    }

    pub fn call_entry(&mut self, work: EntryWork, now: Duration) -> Ticket {
        let kind = match &work {
            EntryWork::List(_) | EntryWork::Open(_, Open::Read | Open::Write) => Kind::Read,
            EntryWork::SyncDir(_) => Kind::Sync,
            _ => Kind::Write,
        };
        let cost = match &work {
            EntryWork::SyncDir(path) => {
                self.notes.push(DiskOp::SyncCalled { path: shown(path) });
                self.draw_sync()
            }
            _ => self.timing.entry.draw(&mut self.rng),
        };
        let price = self.price(kind, cost);
        let ticket = self.entries.push(work, now, price, &mut self.stats);
        self.settle_entries(now);
        ticket
    }

    fn price_of_file_work(&mut self, file: FileId, work: &FileWork) -> Price {
        let bytes_per_us = u64::from(self.timing.bytes_per_us.max(1));
        let transfer = |bytes: u64| Duration::from_nanos(bytes * 1_000 / bytes_per_us);
        match work {
            FileWork::Len => self.price(Kind::Read, Duration::ZERO),
            FileWork::Read { len, .. } => {
                let bytes = self.content(file).len().min(*len as u64);
                let seek = self.timing.read.draw(&mut self.rng);
                self.price(Kind::Read, seek + transfer(bytes))
            }
            FileWork::Write { data, sync, .. } => {
                let write = self.timing.write.draw(&mut self.rng) + transfer(data.len() as u64);
                let sync = if *sync { self.draw_sync() } else { Duration::ZERO };
                self.price(Kind::Write, write + sync)
            }
            FileWork::SetLen { .. } => {
                let cost = self.timing.write.draw(&mut self.rng);
                self.price(Kind::Write, cost)
            }
            FileWork::Sync => {
                let cost = self.draw_sync();
                self.price(Kind::Sync, cost)
            }
        }
    }

    fn price(&self, kind: Kind, cost: Duration) -> Price {
        Price { cost, stalled_until: (kind != Kind::Read).then_some(self.faults.stalled_until) }
    }

    fn draw_sync(&mut self) -> Duration {
        let drawn = self.timing.sync.draw(&mut self.rng);
        let Some((factor, extra)) = self.faults.slow else { return drawn };
        self.stats.slowed_syncs += 1;
        drawn * factor + extra
    }

    /// Does all work on a file whose time has come.
    pub fn settle_file(&mut self, file: FileId, now: Duration) {
        while let Some(job) = self.files.get_mut(&file).and_then(|inode| inode.queue.pop_due(now)) {
            self.finish_file_job(file, job);
        }
    }

    pub fn settle_entries(&mut self, now: Duration) {
        while let Some(job) = self.entries.pop_due(now) {
            self.finish_entry_job(job);
        }
    }

    pub fn settle_all(&mut self, now: Duration) {
        self.settle_entries(now);
        for file in Vec::from_iter(self.files.keys().copied()) {
            self.settle_file(file, now);
        }
    }

    fn finish_file_job(&mut self, file: FileId, job: Job<FileWork>) {
        let answer = self.do_file_work(file, job.work);
        job.ticket.with(|waiting| waiting.answer = Some(answer));
    }

    fn finish_entry_job(&mut self, job: Job<EntryWork>) {
        let answer = self.do_entry_work(job.work);
        let unclaimed = job.ticket.with(|waiting| match answer {
            Ok(Answer::Opened(file, handle)) if waiting.abandoned => Some((file, handle)),
            answer => {
                waiting.answer = Some(answer);
                None
            }
        });
        if let Some((file, handle)) = unclaimed {
            self.close(file, handle);
        }
    }

    fn do_file_work(&mut self, file: FileId, work: FileWork) -> io::Result<Answer> {
        let (faults, stats, notes) = (&self.faults, &mut self.stats, &mut self.notes);
        let inode = self.files.get_mut(&file).expect("a queue lives in its file");
        let path = || inode.path.clone();
        match work {
            FileWork::Len => return Ok(Answer::Length(inode.content.len())),
            FileWork::Read { offset, len } => {
                faults.judge(Kind::Read, stats)?;
                let bytes = inode.content.read(offset, len);
                stats.reads += 1;
                stats.bytes_read += bytes.len() as u64;
                return Ok(Answer::Bytes(bytes));
            }
            FileWork::Write { offset, data, sync } => {
                faults.judge(Kind::Write, stats)?;
                stats.writes += 1;
                stats.bytes_written += data.len() as u64;
                notes.push(DiskOp::Written { path: path(), offset, len: data.len() as u64, hash: xxh3_64(&data) });
                inode.content.write(offset, data);
                if sync {
                    sync_file(inode, faults, stats, notes)?;
                }
            }
            FileWork::SetLen { len } => {
                faults.judge(Kind::Write, stats)?;
                notes.push(DiskOp::Resized { path: path(), len });
                inode.content.set_len(len);
            }
            FileWork::Sync => sync_file(inode, faults, stats, notes)?,
        }
        Ok(Answer::Done)
    }

    fn do_entry_work(&mut self, work: EntryWork) -> io::Result<Answer> {
        match work {
            EntryWork::List(path) => {
                self.faults.judge(Kind::Read, &mut self.stats)?;
                return Ok(Answer::Names(self.tree.list(&path)?));
            }
            EntryWork::Open(path, how) => return self.open(&path, how),
            EntryWork::SyncDir(path) => {
                let verdict = self.faults.judge(Kind::Sync, &mut self.stats)?;
                self.tree.sync_dir(&path, matches!(verdict, Verdict::Honest))?;
                self.stats.syncs += 1;
                self.notes.push(DiskOp::DirSynced { path: shown(&path) });
                self.collect();
            }
            EntryWork::CreateDirAll(path) => {
                self.faults.judge(Kind::Write, &mut self.stats)?;
                self.tree.create_dir_all(&path)?;
                self.notes.push(DiskOp::DirsCreated { path: shown(&path) });
            }
            EntryWork::Rename(from, to) => {
                self.faults.judge(Kind::Write, &mut self.stats)?;
                if let Some(file) = self.tree.rename(&from, &to)? {
                    self.files.get_mut(&file).expect("a name leads to a file").path = shown(&to);
                }
                self.notes.push(DiskOp::Renamed { from: shown(&from), to: shown(&to) });
            }
            EntryWork::Remove(path) => {
                self.faults.judge(Kind::Write, &mut self.stats)?;
                self.tree.remove(&path)?;
                self.notes.push(DiskOp::Removed { path: shown(&path) });
            }
        }
        Ok(Answer::Done)
    }

    fn open(&mut self, path: &Path, how: Open) -> io::Result<Answer> {
        self.faults.judge(if how == Open::Create { Kind::Write } else { Kind::Read }, &mut self.stats)?;
        let file = if how == Open::Create {
            self.tree.create(path, self.last_file + 1)?;
            self.last_file += 1;
            self.files.insert(self.last_file, Inode { path: shown(path), ..Inode::default() });
            self.notes.push(DiskOp::Created { path: shown(path) });
            self.last_file
        } else {
            self.tree.file(path)?
        };
        let inode = self.files.get_mut(&file).expect("a name leads to a file");
        self.last_handle += 1;
        if how != Open::Read {
            if inode.lock.is_some() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            inode.lock = Some(self.last_handle);
        }
        inode.handles += 1;
        Ok(Answer::Opened(file, self.last_handle))
    }

    pub fn close(&mut self, file: FileId, handle: HandleId) {
        let inode = self.files.get_mut(&file).expect("an open file is there");
        inode.handles -= 1;
        inode.lock.take_if(|holder| *holder == handle);
        if inode.handles == 0 {
            self.collect();
        }
    }

    /// Forgets the files that nobody can reach any more.
    fn collect(&mut self) {
        let named = self.tree.files();
        self.files.retain(|file, inode| inode.handles > 0 || !inode.queue.is_empty() || named.contains(file));
    }

    pub fn stall(&mut self, until: Duration, now: Duration) {
        self.settle_all(now);
        self.faults.stalled_until = until;
        self.entries.reschedule(until, &mut self.stats);
        self.files.values_mut().for_each(|inode| inode.queue.reschedule(until, &mut self.stats));
    }

    pub fn kill(&mut self, now: Duration, rng: &mut impl Rng) {
        self.settle_all(now);
        self.stats.kills += 1;
        self.fence(|in_flight| (rng.next_u64() % (in_flight as u64 + 1)) as usize);
        self.notes.push(DiskOp::Killed);
    }

    pub fn power_loss(&mut self, now: Duration, rng: &mut impl Rng) {
        self.settle_all(now);
        self.stats.power_losses += 1;
        // A write in flight is as good as one not synced; a sync in flight made durable what the draw below keeps.
        for inode in self.files.values_mut() {
            let (jobs, path) = (inode.queue.take(), inode.path.clone());
            for job in &jobs {
                if let FileWork::Write { offset, data, .. } = &job.work {
                    let (offset, len, hash) = (*offset, data.len() as u64, xxh3_64(data));
                    self.notes.push(DiskOp::Written { path: path.clone(), offset, len, hash });
                }
            }
            self.stats.aborted_ops += abort(jobs, |work| match work {
                FileWork::Write { offset, data, .. } => inode.content.write(offset, data),
                FileWork::SetLen { len } => inode.content.set_len(len),
                FileWork::Len | FileWork::Read { .. } | FileWork::Sync => {}
            });
        }
        self.fence(|in_flight| (rng.next_u64() % (in_flight as u64 + 1)) as usize);
        let entries = self.tree.lose(rng);
        self.collect();
        let sectors = self.files.values_mut().map(|inode| inode.content.lose(rng)).sum();
        self.stats.entries_lost += entries;
        self.stats.sectors_lost += sectors;
        self.notes.push(DiskOp::PowerLost { sectors, entries });
    }

    /// Ends the process: of so many operations in flight of a queue, `done` says how many still take effect. None is
    /// acknowledged, and no lock is left.
    pub fn fence(&mut self, mut done: impl FnMut(usize) -> usize) {
        self.epoch += 1;
        let mut jobs = self.entries.take();
        let rest = jobs.split_off(done(jobs.len()));
        self.stats.aborted_ops += (jobs.len() + rest.len()) as u64;
        jobs.into_iter().for_each(|job| drop(self.do_entry_work(fail(job))));
        abort(rest, drop);
        for file in Vec::from_iter(self.files.keys().copied()) {
            let inode = self.files.get_mut(&file).expect("nothing was collected since");
            let mut jobs = inode.queue.take();
            let rest = if jobs.is_empty() { VecDeque::new() } else { jobs.split_off(done(jobs.len())) };
            self.stats.aborted_ops += (jobs.len() + rest.len()) as u64;
            jobs.into_iter().for_each(|job| drop(self.do_file_work(file, fail(job))));
            abort(rest, drop);
        }
        for inode in self.files.values_mut() {
            inode.handles = 0;
            inode.lock = None;
        }
        self.collect();
    }
}

fn sync_file(inode: &mut Inode, faults: &Faults, stats: &mut DiskStats, notes: &mut Vec<DiskOp>) -> io::Result<()> {
    if let Verdict::Honest = faults.judge(Kind::Sync, stats)? {
        inode.content.sync();
    }
    stats.syncs += 1;
    notes.push(DiskOp::Synced { path: inode.path.clone() });
    Ok(())
}

/// Tells whoever waits that the process is dead.
fn fail<W>(job: Job<W>) -> W {
    job.ticket.with(|waiting| {
        waiting.answer = Some(Err(fenced()));
        if let Some(waker) = mem::take(&mut waiting.waker) {
            waker.wake();
        }
    });
    job.work
}

fn abort<W>(jobs: VecDeque<Job<W>>, mut with: impl FnMut(W)) -> u64 {
    let count = jobs.len() as u64;
    jobs.into_iter().for_each(|job| with(fail(job)));
    count
}

pub fn fenced() -> io::Error {
    io::Error::other("the process that opened this is dead")
}

/// A path as observers see it.
pub fn shown(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}
