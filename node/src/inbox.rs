//! The way to the driver: what happens is put in here, and the driver takes all of it at once.
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
};

use detcd_core::{
    consensus::Message,
    error::Refusal,
    limits::INBOX_MAX,
    machine::{Machine, Response, command::Command, membership::Membership},
    replica::{Answer, ChangeRequest, State, Status},
    types::{ClusterId, Index, MemberId, StreamId, TraceId},
    watch,
};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{notices::NoticeQueue, snapshots::Written};

/// A machine as it was at some moment. Reading it keeps nobody waiting.
pub type View = Arc<Machine>;

pub enum Item {
    Tick,
    Message(Message),
    /// Messages to this member were dropped.
    Unreachable(MemberId),
    Propose {
        command: Command,
        trace: TraceId,
        reply: oneshot::Sender<Answer>,
    },
    /// Wants a view that is current.
    Read {
        reply: oneshot::Sender<Result<View, Refusal>>,
    },
    /// Wants a view, however old.
    View {
        reply: oneshot::Sender<Result<View, Refusal>>,
    },
    OpenWatches {
        stream: StreamId,
        notices: Arc<NoticeQueue>,
    },
    Watch {
        stream: StreamId,
        request: watch::Request,
    },
    /// Wants the membership changed.
    Change {
        change: ChangeRequest,
        trace: TraceId,
        reply: oneshot::Sender<Answer>,
    },
    /// Wants another member to lead.
    Transfer {
        to: MemberId,
        reply: oneshot::Sender<Answer>,
    },
    /// A leader's state arrived, durable and checked.
    Snapshot {
        message: Message,
        state: State,
    },
    SnapshotSent {
        to: MemberId,
        delivered: bool,
    },
    /// A checkpoint's file is written, or could not be.
    Checkpoint {
        index: Index,
        result: io::Result<Written>,
    },
    /// A peer says that this member was removed.
    Removed,
    Stop,
}

#[derive(Default)]
struct Inbox {
    items: Mutex<Vec<Item>>,
    waker: AtomicWaker,
}

/// What everybody in a node shares: the way to the driver, and what the driver last said of itself.
#[derive(Clone)]
pub struct Handle {
    inbox: Arc<Inbox>,
    status: Arc<Mutex<Status>>,
    cluster_version: Arc<Mutex<Option<Arc<str>>>>,
    streams: Arc<AtomicU64>,
    pub member: MemberId,
    pub cluster: ClusterId,
}

impl Handle {
    pub fn new(member: MemberId, cluster: ClusterId, status: Status) -> Handle {
        Handle {
            inbox: Arc::default(),
            status: Arc::new(Mutex::new(status)),
            cluster_version: Arc::default(),
            streams: Arc::new(AtomicU64::new(1)),
            member,
            cluster,
        }
    }

    /// How the node stood after the driver's last turn.
    pub fn status(&self) -> Status {
        *self.status.lock()
    }

    /// What the cluster's members agreed to behave as, if they did already.
    pub fn cluster_version(&self) -> Option<Arc<str>> {
        self.cluster_version.lock().clone()
    }

    pub(crate) fn set_status(&self, status: Status, cluster_version: &Option<Arc<str>>) {
        *self.status.lock() = status;
        let mut known = self.cluster_version.lock();
        if *known != *cluster_version {
            known.clone_from(cluster_version);
        }
    }

    pub fn new_stream(&self) -> StreamId {
        StreamId(self.streams.fetch_add(1, Ordering::Relaxed))
    }

    pub fn push(&self, item: Item) {
        self.push_all([item]);
    }

    /// Wakes the driver if it may be asleep: it is awake while the inbox is not empty.
    pub fn push_all(&self, new: impl IntoIterator<Item = Item>) {
        let was_empty = {
            let mut items = self.inbox.items.lock();
            let was_empty = items.is_empty();
            items.extend(new);
            was_empty && !items.is_empty()
        };
        if was_empty {
            self.inbox.waker.wake();
        }
    }

    /// Registers the driver, then takes everything: what comes later wakes it.
    pub(crate) fn drain(&self, cx: &mut Context<'_>, into: &mut Vec<Item>) {
        self.inbox.waker.register(cx.waker());
        std::mem::swap(&mut *self.inbox.items.lock(), into);
    }

    fn is_full(&self) -> bool {
        self.inbox.items.lock().len() >= INBOX_MAX
    }

    pub async fn propose(&self, command: Command, trace: TraceId) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        if self.is_full() {
            return Err(Refusal::TooManyRequests);
        }
        self.push(Item::Propose { command, trace, reply });
        answer.await.map_err(|_| Refusal::Stopped)
    }

    /// Changes the membership; returns what it is then.
    pub async fn change(&self, change: ChangeRequest, trace: TraceId) -> Result<Arc<Membership>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.push(Item::Change { change, trace, reply });
        match answer.await.map_err(|_| Refusal::Stopped)?.result? {
            Response::Members(membership) => Ok(membership),
            other => unreachable!("a change is answered with the membership, not with {other:?}"),
        }
    }

    /// Returns once the member leads.
    pub async fn transfer(&self, to: MemberId) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.push(Item::Transfer { to, reply });
        answer.await.map_err(|_| Refusal::Stopped)?.result.map(drop)
    }

    /// A view in which every write is visible that was acknowledged, by any member, before this call.
    pub async fn read(&self) -> Result<View, Refusal> {
        let (reply, view) = oneshot::channel();
        if self.is_full() {
            return Err(Refusal::TooManyRequests);
        }
        self.push(Item::Read { reply });
        view.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// This member's own state, however far behind.
    pub async fn view(&self) -> Result<View, Refusal> {
        let (reply, view) = oneshot::channel();
        self.push(Item::View { reply });
        view.await.unwrap_or(Err(Refusal::Stopped))
    }
}
