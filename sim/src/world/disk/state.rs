//! All that a disk holds: when its operations are done, and what becomes of them when a process or a machine dies.
use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    path::{Component, Path},
    sync::Arc,
    time::Duration,
};

use detcd_node::host::Open;

use super::{
    DiskOp, DiskStats, DiskTiming,
    astray::Astray,
    content::Content,
    crash::Crash,
    faults::Faults,
    layer::BLOCK,
    queue::{Answer, HandleId, Job, Price, Queue, Ticket},
    tree::{FileId, Tree},
    work::{EntryWork, FileWork},
};
use crate::seed::{ChaCha8Rng, Rng, Seed};

/// What the kernel copies at a time of what a process writes, in bytes.
const PAGE: u64 = 4 << 10;

#[derive(Default)]
pub struct Inode {
    pub content: Content,
    pub queue: Queue<FileWork>,
    /// The name it has, or the last one it had.
    pub path: Arc<str>,
    pub handles: u64,
    pub lock: Option<HandleId>,
}

pub struct State {
    /// Grows at each fence and at each start: a handle of another epoch is dead.
    pub epoch: u64,
    pub timing: DiskTiming,
    pub faults: Faults,
    pub astray: Astray,
    pub crash: Crash,
    /// What fits, in bytes.
    pub capacity: Option<u64>,
    pub stats: DiskStats,
    pub tree: Tree,
    pub files: BTreeMap<FileId, Inode>,
    /// What the observer has yet to hear.
    pub notes: Vec<DiskOp>,
    /// What is to be called after that.
    pub then: Vec<Box<dyn FnOnce() + Send>>,
    /// When that which is being done takes effect.
    pub at: Duration,
    /// A fence is falling: what is being done is not acknowledged.
    pub dying: bool,
    pub last_file: FileId,
    pub last_handle: HandleId,
    /// How much of a failed write is done.
    pub fault_rng: ChaCha8Rng,
    entries: Queue<EntryWork>,
    rng: ChaCha8Rng,
}

impl State {
    pub fn new(timing: DiskTiming, seed: Seed) -> State {
        State {
            epoch: 0,
            timing,
            faults: Faults::default(),
            astray: Astray::default(),
            crash: Crash::default(),
            capacity: None,
            stats: DiskStats::default(),
            tree: Tree::new(),
            files: BTreeMap::new(),
            notes: Vec::new(),
            then: Vec::new(),
            at: Duration::ZERO,
            dying: false,
            last_file: 0,
            last_handle: 0,
            fault_rng: seed.child("disk faults", 0).rng(),
            entries: Queue::default(),
            rng: seed.child("disk latency", 0).rng(),
        }
    }

    pub fn content(&self, file: FileId) -> &Content {
        &self.files[&file].content
    }

    pub fn inode(&mut self, file: FileId) -> &mut Inode {
        self.files.get_mut(&file).expect("whoever names a file keeps it")
    }

    pub fn path(&self, file: FileId) -> Arc<str> {
        self.files[&file].path.clone()
    }

    /// Tells all files their names anew.
    pub fn name_files(&mut self) {
        for (path, file) in self.tree.walk() {
            self.inode(file).path = path.into();
        }
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
        let changes = !matches!(work, EntryWork::List(_) | EntryWork::Open(_, Open::Read | Open::Write));
        let cost = match &work {
            EntryWork::SyncDir(path) => {
                self.notes.push(DiskOp::SyncCalled { path: shown(path) });
                self.draw_sync()
            }
            _ => self.timing.entry.draw(&mut self.rng),
        };
        let price = self.price(changes, cost);
        let ticket = self.entries.push(work, now, price, &mut self.stats);
        self.settle_entries(now);
        ticket
    }

    fn price_of_file_work(&mut self, file: FileId, work: &FileWork) -> Price {
        let bytes_per_us = u64::from(self.timing.bytes_per_us.max(1));
        let transfer = |bytes: u64| Duration::from_nanos(bytes * 1_000 / bytes_per_us);
        match work {
            FileWork::Len => self.price(false, Duration::ZERO),
            FileWork::Read { len, .. } => {
                let bytes = self.content(file).len().min(*len as u64);
                let seek = self.timing.read.draw(&mut self.rng);
                self.price(false, seek + transfer(bytes))
            }
            FileWork::Write { data, sync, .. } => {
                let write = self.timing.write.draw(&mut self.rng) + transfer(data.len() as u64);
                let sync = if *sync { self.draw_sync() } else { Duration::ZERO };
                self.price(true, write + sync)
            }
            FileWork::SetLen { .. } | FileWork::Allocate { .. } => {
                let cost = self.timing.write.draw(&mut self.rng);
                self.price(true, cost)
            }
            FileWork::Sync => {
                let cost = self.draw_sync();
                self.price(true, cost)
            }
        }
    }

    /// A stall holds up what changes the medium.
    fn price(&self, changes: bool, cost: Duration) -> Price {
        Price { cost, stalled_until: changes.then_some(self.faults.stalled_until) }
    }

    fn draw_sync(&mut self) -> Duration {
        let drawn = self.timing.sync.draw(&mut self.rng);
        self.faults.sync_time(drawn, &mut self.stats)
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
        self.at = job.due;
        let answer = self.do_file_work(file, job.work);
        job.ticket.with(|waiting| waiting.answer = Some(answer));
    }

    fn finish_entry_job(&mut self, job: Job<EntryWork>) {
        self.at = job.due;
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

    /// Forgets the files that nobody can reach any more.
    pub fn collect(&mut self) {
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
        let torn = self.fence(|in_flight| (rng.next_u64() % (in_flight as u64 + 1)) as usize);
        torn.into_iter().for_each(|(file, work)| self.tear(file, work, rng));
        self.collect();
        self.notes.push(DiskOp::Killed);
    }

    /// A write that the kernel was at when the process died: it ends at the border of a page.
    fn tear(&mut self, file: FileId, work: FileWork, rng: &mut impl Rng) {
        let FileWork::Write { offset, mut data, .. } = work else { return };
        let borders = (offset + data.len() as u64 - 1) / PAGE - offset / PAGE;
        let kept = rng.next_u64() % (borders + 1);
        let end = if kept == 0 { 0 } else { (offset / PAGE + kept) * PAGE - offset };
        data.truncate(end.min(self.fitting(file, offset..offset + end)) as usize);
        if !data.is_empty() {
            self.land(file, offset, data);
        }
    }

    /// The kernel may forget what it believes to be clean: it is read from the medium again.
    pub fn evict(&mut self, rng: &mut impl Rng) {
        for inode in self.files.values_mut().filter(|inode| inode.content.is_clean()) {
            if rng.next_u64() >> 63 == 1 {
                inode.content.evict();
                self.stats.evictions += 1;
            }
        }
    }

    pub fn power_loss(&mut self, now: Duration, rng: &mut impl Rng) {
        self.settle_all(now);
        // A write in flight is as good as one not synced; a sync in flight made durable what the draw below keeps.
        for file in Vec::from_iter(self.files.keys().copied()) {
            let jobs = self.inode(file).queue.take();
            self.stats.aborted_ops += jobs.len() as u64;
            jobs.into_iter().for_each(|job| self.do_in_flight(file, fail(job)));
        }
        self.fence(|in_flight| (rng.next_u64() % (in_flight as u64 + 1)) as usize);
        let entries = self.tree.lose(rng);
        self.collect();
        let sectors = self.files.values_mut().map(|inode| inode.content.lose(rng)).sum();
        self.power_lost(sectors, entries);
    }

    fn do_in_flight(&mut self, file: FileId, work: FileWork) {
        match work {
            FileWork::Write { offset, mut data, .. } => {
                data.truncate(self.fitting(file, offset..offset + data.len() as u64) as usize);
                self.land(file, offset, data);
            }
            FileWork::SetLen { len } => self.inode(file).content.set_len(len),
            FileWork::Allocate { len } if self.fitting(file, 0..len) < len => {}
            FileWork::Allocate { len } => self.inode(file).content.resize(len, 0..len.div_ceil(BLOCK)),
            FileWork::Len | FileWork::Read { .. } | FileWork::Sync => {}
        }
    }

    /// Power was lost, and with it so many sectors and entries.
    pub fn power_lost(&mut self, sectors: u64, entries: u64) {
        self.collect();
        self.name_files();
        self.crash.end();
        self.stats.power_losses += 1;
        self.stats.entries_lost += entries;
        self.stats.sectors_lost += sectors;
        self.notes.push(DiskOp::PowerLost { sectors, entries });
    }

    /// Ends the process: of so many operations in flight of a queue, `done` says how many still take effect. None is
    /// acknowledged, and no lock is left. Returns of each file the first operation that does not take effect.
    pub fn fence(&mut self, mut done: impl FnMut(usize) -> usize) -> Vec<(FileId, FileWork)> {
        let mut cut_off = Vec::new();
        self.epoch += 1;
        self.dying = true;
        let mut jobs = self.entries.take();
        let rest = jobs.split_off(done(jobs.len()));
        self.stats.aborted_ops += (jobs.len() + rest.len()) as u64;
        jobs.into_iter().for_each(|job| drop(self.do_entry_work(fail(job))));
        rest.into_iter().for_each(|job| drop(fail(job)));
        for file in Vec::from_iter(self.files.keys().copied()) {
            let inode = self.files.get_mut(&file).expect("nothing was collected since");
            let mut jobs = inode.queue.take();
            let rest = if jobs.is_empty() { VecDeque::new() } else { jobs.split_off(done(jobs.len())) };
            self.stats.aborted_ops += (jobs.len() + rest.len()) as u64;
            jobs.into_iter().for_each(|job| drop(self.do_file_work(file, fail(job))));
            let mut rest = rest.into_iter().map(fail);
            cut_off.extend(rest.next().map(|work| (file, work)));
            rest.for_each(drop);
        }
        for inode in self.files.values_mut() {
            inode.handles = 0;
            inode.lock = None;
        }
        self.dying = false;
        self.collect();
        cut_off.retain(|(file, _)| self.files.contains_key(file));
        cut_off
    }
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

pub fn fenced() -> io::Error {
    io::Error::other("the process that opened this is dead")
}

/// A path as observers and faults know it: from the root, whatever the caller wrote.
pub fn shown(path: &Path) -> Arc<str> {
    let mut shown = String::new();
    for part in path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir)) {
        shown.push('/');
        shown.push_str(&part.as_os_str().to_string_lossy());
    }
    if shown.is_empty() { "/".into() } else { shown.into() }
}
