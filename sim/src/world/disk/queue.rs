//! Operations in flight: called, and not yet done.
use std::{collections::VecDeque, io, sync::Arc, task::Waker, time::Duration};

use parking_lot::Mutex;

use super::{DiskStats, tree::FileId};

/// What an operation came to.
pub enum Answer {
    Done,
    Bytes(Vec<u8>),
    Length(u64),
    Names(Vec<String>),
    Opened(FileId, HandleId),
}

/// One open file of one process; never used twice.
pub type HandleId = u64;

/// Where the caller of an operation waits for it.
#[derive(Clone, Default)]
pub struct Ticket(Arc<Mutex<Waiting>>);

#[derive(Default)]
pub struct Waiting {
    pub answer: Option<io::Result<Answer>>,
    pub waker: Option<Waker>,
    /// When the operation is done. Moves only while it is queued.
    pub due: Duration,
    /// The time for which `waker` has a timer.
    pub armed: Option<Duration>,
    /// Nobody will ask any more.
    pub abandoned: bool,
}

impl Ticket {
    pub fn answered(answer: io::Result<Answer>) -> Ticket {
        let ticket = Ticket::default();
        ticket.0.lock().answer = Some(answer);
        ticket
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut Waiting) -> R) -> R {
        f(&mut self.0.lock())
    }
}

pub struct Job<W> {
    pub work: W,
    pub ticket: Ticket,
    /// When it takes effect.
    pub due: Duration,
    called: Duration,
    cost: Duration,
    /// Whether a stall holds such work up, and whether it did.
    stalls: bool,
    stalled: bool,
}

/// What an operation takes.
#[derive(Clone, Copy)]
pub struct Price {
    pub cost: Duration,
    /// Until when a stall holds it up; none for work that no stall concerns.
    pub stalled_until: Option<Duration>,
}

/// Done one at a time, in the order of the calls.
pub struct Queue<W> {
    jobs: VecDeque<Job<W>>,
    /// When all of them are done.
    free: Duration,
}

impl<W> Default for Queue<W> {
    fn default() -> Queue<W> {
        Queue { jobs: VecDeque::new(), free: Duration::ZERO }
    }
}

impl<W> Queue<W> {
    pub fn push(&mut self, work: W, now: Duration, price: Price, stats: &mut DiskStats) -> Ticket {
        let natural = self.free.max(now) + price.cost;
        let due = natural.max(price.stalled_until.unwrap_or_default());
        let ticket = Ticket::default();
        ticket.with(|waiting| waiting.due = due);
        let (stalls, stalled) = (price.stalled_until.is_some(), due > natural);
        self.jobs.push_back(Job { work, ticket: ticket.clone(), called: now, cost: price.cost, due, stalls, stalled });
        self.free = due;
        stats.stalled_ops += u64::from(stalled);
        ticket
    }

    pub fn pop_due(&mut self, now: Duration) -> Option<Job<W>> {
        self.jobs.pop_front_if(|job| job.due <= now)
    }

    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Everything in flight, in order.
    pub fn take(&mut self) -> VecDeque<Job<W>> {
        self.free = Duration::ZERO;
        std::mem::take(&mut self.jobs)
    }

    /// A stall began, changed or ended: everything in flight is due anew, and every waiter looks again.
    pub fn reschedule(&mut self, stalled_until: Duration, stats: &mut DiskStats) {
        self.free = Duration::ZERO;
        for job in &mut self.jobs {
            let natural = self.free.max(job.called) + job.cost;
            job.due = if job.stalls { natural.max(stalled_until) } else { natural };
            stats.stalled_ops += u64::from(job.due > natural && !job.stalled);
            job.stalled |= job.due > natural;
            self.free = job.due;
            job.ticket.with(|waiting| {
                waiting.due = job.due;
                if let Some(waker) = &waiting.waker {
                    waker.wake_by_ref();
                }
            });
        }
    }
}
