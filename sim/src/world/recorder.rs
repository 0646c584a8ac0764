//! Sees everything: every byte at the seam goes into the run's hash, every event into the history and to the laws.
//!
//! The hash rolls over each thing that happens, with its time: two runs with the same hash did the same. At every
//! checkpoint one draw of the executor's generator goes in too, which fingerprints the order in which tasks ran.
use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    fs::File,
    hash::{Hash, Hasher},
    io::{BufWriter, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use detcd_core::event::NodeEvent;
use futures::channel::oneshot;
use parking_lot::Mutex;

use super::{
    addresses::host_of,
    clock::SimTime,
    disk::{DiskObserver, DiskOp},
    net::{NetObserver, NetOp},
    standing::{Members, Standing},
};
use crate::{
    history::{Event, Nanos, NodeNumber, Stamped},
    names::Names,
    oracle::Judge,
    scenario::{
        fault::Victim,
        trigger::{Point, Trigger},
    },
};

/// Events between two draws of the executor's generator.
const CHECKPOINT_EVENTS: u64 = 1_000;
/// What a history has room for from the start. Memory that nobody touched costs nothing; a history that outgrows its place
/// is copied.
const HISTORY_EVENTS: usize = 2_000_000;

/// Simulated nanoseconds of the run under way, for the watchdog outside of the simulation.
pub static SIMULATED: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Record>>);

pub struct Record {
    time: SimTime,
    hash: RollingHash,
    seam_events: u64,
    next_checkpoint: u64,
    standing: Standing,
    /// The run is over: what the end of the world brings about is no part of it.
    closed: bool,
    /// The history is not kept, and nobody judges.
    forgetful: bool,
    pub history: Vec<Stamped>,
    pub judge: Judge,
    trace: Option<BufWriter<File>>,
    ambushes: Vec<Ambush>,
}

/// Somebody who waits for a node to do something.
struct Ambush {
    trigger: Trigger,
    by: Victim,
    /// Of each node that began: how often it came to the point. Absent: the point behind `after` is yet to come.
    counts: BTreeMap<NodeNumber, u64>,
    tell: oneshot::Sender<NodeNumber>,
}

impl Recorder {
    /// `trace` gets a line for every event that goes into the hash.
    pub fn new(time: SimTime, judge: Judge, trace: Option<File>) -> Recorder {
        Recorder::with_history(time, judge, trace, Some(Vec::with_capacity(HISTORY_EVENTS)))
    }

    /// For runs that last too long to remember all of them.
    pub fn forgetful(time: SimTime) -> Recorder {
        Recorder::with_history(time, Judge::new(Vec::new()), None, None)
    }

    fn with_history(time: SimTime, judge: Judge, trace: Option<File>, history: Option<Vec<Stamped>>) -> Recorder {
        Recorder(Arc::new(Mutex::new(Record {
            time,
            hash: RollingHash(0xcbf2_9ce4_8422_2325),
            seam_events: 0,
            next_checkpoint: CHECKPOINT_EVENTS,
            standing: Standing::default(),
            closed: false,
            forgetful: history.is_none(),
            history: history.unwrap_or_default(),
            judge,
            trace: trace.map(BufWriter::new),
            ambushes: Vec::new(),
        })))
    }

    /// Adds an event to the history.
    pub fn record(&self, event: Event) {
        self.0.lock().record(event);
    }

    /// Who led last, as far as anybody noted.
    pub fn leader(&self) -> Option<NodeNumber> {
        self.0.lock().standing.leader()
    }

    /// Who has a say, as far as anybody noted.
    pub fn members(&self) -> Members {
        self.0.lock().standing.members().clone()
    }

    /// See [`Standing::is_dispensable`].
    pub fn is_dispensable(&self, node: NodeNumber) -> bool {
        self.0.lock().standing.is_dispensable(node)
    }

    /// See [`Standing::tail`].
    pub fn tail(&self, node: NodeNumber) -> u64 {
        self.0.lock().standing.tail(node)
    }

    pub fn is_learner(&self, node: NodeNumber) -> bool {
        self.0.lock().standing.is_learner(node)
    }

    /// Resolves to the node that did what is waited for, if it is such a victim then. Of each node, what it did before
    /// it was asked for does not count, nor before it started last.
    pub fn wait_for(&self, trigger: Trigger, by: Victim) -> oneshot::Receiver<NodeNumber> {
        let (tell, told) = oneshot::channel();
        self.0.lock().ambushes.push(Ambush { trigger, by, counts: BTreeMap::new(), tell });
        told
    }

    pub fn close(&self) {
        self.0.lock().closed = true;
    }

    pub fn node(&self, node: NodeNumber, event: NodeEvent) {
        self.record(Event::Node { node, event });
    }

    /// What a node read off a clock is an event too: with it a run is explained by its inputs.
    pub fn time_read(&self, node: NodeNumber, nanos: u64) {
        self.0.lock().seam("time", node.0 as u64, &nanos);
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut Record) -> R) -> R {
        f(&mut self.0.lock())
    }

    /// As `with`; none if whoever holds the record does not give it up.
    pub fn try_with<R>(&self, patience: Duration, f: impl FnOnce(&mut Record) -> R) -> Option<R> {
        Some(f(&mut *self.0.try_lock_for(patience)?))
    }

    pub fn flush(&self) {
        if let Some(trace) = &mut self.0.lock().trace {
            trace.flush().expect("the trace file can be written");
        }
    }
}

impl Record {
    /// The run's hash so far, and how many events are in it.
    pub fn hash(&self) -> (u64, u64) {
        (self.hash.0, self.seam_events)
    }

    /// See [`Recorder::record`].
    fn record(&mut self, event: Event) {
        if self.closed {
            return;
        }
        let at = self.now();
        match &event {
            Event::Node { node, event } => {
                // Members are not known by name before the run is over: here they have their ids.
                if tracing::enabled!(target: "node", tracing::Level::DEBUG) {
                    tracing::debug!(target: "node", "{node} {}", Names::default().apply(&format!("{event:?}")));
                }
                self.standing.observe(*node, event);
                self.seam("node", node.0 as u64, event);
                self.come_to(*node, Point::Event(event.name()));
            }
            Event::Call { op, client, .. } => self.seam("call", op.0, client),
            Event::Return { op, .. } => self.seam("return", op.0, &()),
            Event::Watch { watcher, .. } => self.seam("watch", watcher.0, &()),
            Event::Started { node, member } => {
                self.standing.started(*node, *member);
                self.ambushes.iter_mut().for_each(|ambush| {
                    ambush.counts.remove(node);
                });
                self.seam("started", node.0 as u64, &());
            }
            Event::Tampered { node } => self.seam("tampered", node.0 as u64, &()),
            Event::Store { node, revision, content } => self.seam("store", node.0 as u64, &(revision, content)),
            Event::Killed { node, power_loss } => self.seam("killed", node.0 as u64, power_loss),
            Event::Ended { node, kind } => self.seam("ended", node.0 as u64, kind),
            Event::Unsynced { node, what, .. } => self.seam("unsynced", node.0 as u64, &**what),
            Event::Asked { change, what, .. } => self.seam("asked", *change, what),
            Event::Told { change, outcome } => self.seam("told", *change, outcome),
            Event::Fault { fault, on } => self.seam("fault", u64::from(*on), &**fault),
            Event::Delayed { until, .. } => self.seam("delayed", until.0, &()),
            Event::Phase(phase) => self.seam("phase", *phase as u64, &()),
        }
        if self.forgetful {
            return;
        }
        let sequence = self.history.len() as u64;
        let stamped = Stamped { at, sequence, event };
        self.judge.observe(&stamped);
        self.history.push(stamped);
    }

    fn now(&self) -> Nanos {
        let now = self.time.now().as_nanos() as u64;
        SIMULATED.store(now, Relaxed);
        Nanos(now)
    }

    /// A node came to a point: whoever waited for it is told.
    fn come_to(&mut self, node: NodeNumber, point: Point) {
        if self.ambushes.is_empty() {
            return;
        }
        let (leader, is_learner) = (self.standing.leader(), self.standing.is_learner(node));
        self.ambushes.retain(|ambush| !ambush.tell.is_canceled());
        let struck = |ambush: &mut Ambush| ambush.comes_to(node, point, leader, is_learner);
        let done: Vec<_> = self.ambushes.extract_if(.., struck).collect();
        for ambush in done {
            let _ = ambush.tell.send(node); // nobody waits any more: it was the last moment
        }
    }

    fn seam<T: Hash + Debug + ?Sized>(&mut self, kind: &'static str, number: u64, what: &T) {
        if self.closed {
            return;
        }
        let now = self.now();
        self.seam_events += 1;
        self.hash.write_u64(now.0);
        self.hash.write_u64(kind.len() as u64 ^ (kind.as_bytes()[0] as u64) << 8 ^ number << 16);
        what.hash(&mut self.hash);
        if let Some(trace) = &mut self.trace {
            let mut line = String::new();
            let _ = write!(line, "{now} {kind} {number} {what:?}"); // a String grows
            writeln!(trace, "{line}").expect("the trace file can be written");
        }
        if self.seam_events == self.next_checkpoint {
            self.next_checkpoint += CHECKPOINT_EVENTS;
            let draw = madsim::rand::random::<u64>();
            self.seam("checkpoint", self.seam_events, &draw);
        }
    }
}

impl Ambush {
    /// Whether that was it.
    fn comes_to(&mut self, node: NodeNumber, point: Point, leader: Option<NodeNumber>, is_learner: bool) -> bool {
        if !self.by.may_be(node, leader, is_learner) {
            return false;
        }
        let Some(count) = self.counts.get_mut(&node) else {
            match self.trigger.after {
                Some(after) if after != point => return false,
                Some(_) => drop(self.counts.insert(node, 0)),
                None => drop(self.counts.insert(node, u64::from(self.trigger.point == point))),
            }
            return self.counts[&node] == self.trigger.count;
        };
        *count += u64::from(self.trigger.point == point);
        *count == self.trigger.count
    }
}

impl NetObserver for Recorder {
    fn net(&self, what: NetOp) {
        let mut record = self.0.lock();
        match what {
            NetOp::Lost { from, to, until } => {
                let (from, to, until) = (host_of(from), host_of(to), Nanos(until.as_nanos() as u64));
                record.record(Event::Delayed { from, to, until });
            }
            NetOp::Connected { conn, from, to, port } => record.seam("connected", conn, &(from, to, port)),
            NetOp::Sent { conn, len, hash, .. } => record.seam("bytes", conn, &(len, hash)),
            NetOp::Delivered { conn, len, hash, .. } => record.seam("delivered", conn, &(len, hash)),
            NetOp::Shut { conn, from, .. } => record.seam("shut", conn, &from),
            NetOp::Failed { conn, at, kind } => record.seam("failed", conn, &(at, kind)),
        }
    }
}

impl DiskObserver for Recorder {
    fn disk(&self, node: u64, what: DiskOp) {
        let mut record = self.0.lock();
        match &what {
            DiskOp::SyncCalled { .. } => record.come_to(NodeNumber(node as usize), Point::SyncCalled),
            DiskOp::Synced { .. } => record.come_to(NodeNumber(node as usize), Point::Synced),
            _ => {}
        }
        match &what {
            DiskOp::Created { path } => record.seam("created", node, path),
            DiskOp::Written { path, offset, len, hash } => record.seam("written", node, &(path, offset, len, hash)),
            DiskOp::Resized { path, len } => record.seam("resized", node, &(path, len)),
            DiskOp::SyncCalled { path } => record.seam("sync_called", node, path),
            DiskOp::Synced { path } => record.seam("synced", node, path),
            DiskOp::DirsCreated { path } => record.seam("dirs_created", node, path),
            DiskOp::Renamed { from, to } => record.seam("renamed", node, &(from, to)),
            DiskOp::Removed { path } => record.seam("removed", node, path),
            DiskOp::DirSynced { path } => record.seam("dir_synced", node, path),
            DiskOp::Killed => record.seam("disk_killed", node, &()),
            DiskOp::PowerLost { sectors, entries } => record.seam("power_lost", node, &(sectors, entries)),
            DiskOp::SyncFailed { path } => record.seam("sync_failed", node, path),
            DiskOp::Crashed { point, before, step } => record.seam("disk_crashed", node, &(point, before, step)),
            DiskOp::Misdirected { path, offset, to, to_offset, len, hash } => {
                record.seam("misdirected", node, &(path, offset, to, to_offset, len, hash));
            }
            DiskOp::Damaged { path, offset, len, hash } => record.seam("damaged", node, &(path, offset, len, hash)),
            DiskOp::Truncated { path, len } => record.seam("truncated", node, &(path, len)),
            DiskOp::Vanished { path } => record.seam("vanished", node, path),
            DiskOp::Broken { path, offset, len } => record.seam("broken", node, &(path, offset, len)),
            DiskOp::Restored { digest } => record.seam("restored", node, digest),
        }
    }
}

/// A fast, stable hash: one multiplication a word.
struct RollingHash(u64);

impl Hasher for RollingHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.write_u64(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
