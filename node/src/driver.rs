//! The one task that owns the replica: drain the inbox, step, then start every output in order.
//!
//! The log is written beside it: while one batch is on its way to disk the next one gathers, so that an fsync covers
//! whatever came meanwhile. The driver knows no raft; what must wait for what is the replica's business.
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use detcd_core::{
    error::Refusal,
    event::NodeEvent,
    limits::CHECKPOINT_BACKLOG_MAX,
    machine::Machine,
    replica::{Answer, Halt, Input, Output, Persist, Proposal, Replica, Status},
    types::{Millis, PersistId, StreamId, Ticket},
};
use tokio::sync::oneshot;

use crate::{
    background,
    checkpoint::Checkpoints,
    error::{ExitReason, Failure},
    host::{BoxFuture, Host},
    inbox::{Handle, Item, View},
    metrics::Metrics,
    notices::NoticeQueue,
    peers::Peers,
    storage::{Storage, Wrote},
};

/// What the driver drives: a [`Replica`], or something around one that a test put there.
pub trait Step: Send + 'static {
    fn step(&mut self, input: Input, out: &mut Vec<Output>);
    fn machine(&self) -> &Machine;
    fn status(&self) -> Status;
    /// Whether to settle again soon, though nothing happened.
    fn has_work(&self) -> bool;
}

impl Step for Replica {
    fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        Replica::step(self, input, out);
    }

    fn machine(&self) -> &Machine {
        Replica::machine(self)
    }

    fn status(&self) -> Status {
        Replica::status(self)
    }

    fn has_work(&self) -> bool {
        Replica::has_work(self)
    }
}

enum Waiter {
    Proposal(oneshot::Sender<Answer>),
    Read(oneshot::Sender<Result<View, Refusal>>),
}

/// What is on its way to disk, and what it went with.
type Writing = BoxFuture<'static, (Storage, io::Result<Wrote>)>;

pub struct Driver {
    replica: Box<dyn Step>,
    host: Host,
    handle: Handle,
    peers: Peers,
    metrics: Arc<Metrics>,
    /// `None` while `writing` has it.
    storage: Option<Storage>,
    log_path: PathBuf,
    /// As of when `storage` was last here: while a member is busy it seldom is.
    log_bytes: u64,
    checkpoints: Checkpoints,
    writing: Option<Writing>,
    /// The newest batch in `writing` that is waited for.
    writing_until: Option<PersistId>,
    /// Not handed to the log yet.
    unwritten: Vec<Persist>,
    waiters: BTreeMap<Ticket, Waiter>,
    next_ticket: u64,
    streams: BTreeMap<StreamId, Arc<NoticeQueue>>,
    /// The view since the last step, if somebody wanted one. Kept no longer: a view that lives makes every write copy.
    view: Option<View>,
    exit: Option<ExitReason>,
    /// Whether, before an orderly exit, everything was handed to the disk.
    flushed: bool,
    items: Vec<Item>,
    outputs: Vec<Output>,
}

impl Driver {
    pub fn new(
        replica: Box<dyn Step>,
        storage: Storage,
        checkpoints: Checkpoints,
        host: Host,
        handle: Handle,
        peers: Peers,
        metrics: Arc<Metrics>,
    ) -> Driver {
        Driver {
            replica,
            host,
            handle,
            peers,
            metrics,
            log_path: storage.path().to_owned(),
            log_bytes: storage.log_bytes(),
            storage: Some(storage),
            checkpoints,
            writing: None,
            writing_until: None,
            unwritten: Vec::new(),
            waiters: BTreeMap::new(),
            next_ticket: 0,
            streams: BTreeMap::new(),
            view: None,
            exit: None,
            flushed: false,
            items: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// Takes all that happened, and does what that calls for.
    fn turn(&mut self, cx: &mut Context<'_>) {
        let mut items = std::mem::take(&mut self.items);
        self.handle.drain(cx, &mut items);
        for item in items.drain(..) {
            self.take(item);
        }
        self.items = items;
        self.settle();
    }

    fn step(&mut self, input: Input) {
        if self.exit.is_none() {
            // A view from before this step may be too old for a read that it confirms.
            self.view = None;
            self.replica.step(input, &mut self.outputs);
            self.perform();
        }
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Tick => {
                self.peers.tick(&self.handle);
                let now = Millis(self.host.clock.now().as_millis() as u64);
                self.step(Input::Tick { now });
                self.begin_checkpoint(now);
            }
            Item::Message(message) => {
                let (from, kind) = (message.from(), message.kind());
                let (term, index) = (message.term(), message.index());
                self.note(NodeEvent::Received { from, kind, term, index });
                self.step(Input::Message(message));
            }
            Item::Unreachable(member) => self.step(Input::Unreachable(member)),
            Item::Propose { command, trace, reply } => {
                let ticket = self.ticket(Waiter::Proposal(reply));
                self.step(Input::Propose(Proposal { ticket, trace, command }));
            }
            Item::Read { reply } => {
                let ticket = self.ticket(Waiter::Read(reply));
                self.step(Input::Read { ticket });
            }
            Item::View { reply } => {
                let view = self.view();
                let _ = reply.send(Ok(view)); // a client that is gone needs no answer
            }
            Item::OpenWatches { stream, notices } => {
                self.streams.insert(stream, notices);
            }
            Item::Watch { stream, request } => {
                if request == detcd_core::watch::Request::Close {
                    self.streams.remove(&stream);
                }
                self.step(Input::Watch { stream, request });
            }
            Item::Change { change, trace, reply } => {
                let ticket = self.ticket(Waiter::Proposal(reply));
                let peers = self.peers.connectivity(self.host.clock.now());
                self.step(Input::Change { ticket, trace, change, peers });
            }
            Item::Transfer { to, reply } => {
                let ticket = self.ticket(Waiter::Proposal(reply));
                self.step(Input::Transfer { ticket, to });
            }
            Item::Snapshot { message, state } => self.step(Input::Snapshot { message, state }),
            Item::SnapshotSent { to, delivered } => self.step(Input::SnapshotSent { to, delivered }),
            Item::Checkpoint { index, result } => {
                let now = Millis(self.host.clock.now().as_millis() as u64);
                if let Some(event) = self.checkpoints.written(index, result, now) {
                    self.note(event);
                }
            }
            Item::Removed => {
                self.note(NodeEvent::Removed);
                self.removed();
            }
            Item::Stop => self.step(Input::Stop),
        }
    }

    fn begin_checkpoint(&mut self, now: Millis) {
        let machine = self.replica.machine();
        let backlog = self.replica.status().committed.0.saturating_sub(machine.applied().0);
        if backlog <= CHECKPOINT_BACKLOG_MAX && self.checkpoints.is_due(self.log_bytes, machine, now) {
            let index = self.checkpoints.begin(machine, &self.handle);
            self.note(NodeEvent::CheckpointStarted { index });
        }
    }

    fn removed(&mut self) {
        let (member, cluster) = (self.handle.member, self.handle.cluster);
        self.exit.get_or_insert(ExitReason::Failed(Failure::Removed { member, cluster }));
    }

    fn ticket(&mut self, waiter: Waiter) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.waiters.insert(ticket, waiter);
        ticket
    }

    fn view(&mut self) -> View {
        self.view.get_or_insert_with(|| Arc::new(self.replica.machine().clone())).clone()
    }

    fn note(&self, event: NodeEvent) {
        self.metrics.observe(&event);
        self.host.probe.note(event);
    }

    /// Starts every output, in order.
    fn perform(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Note(event) => self.note(event),
                Output::Send(message) => {
                    let (to, kind) = (message.to(), message.kind());
                    self.note(NodeEvent::Sent { to, kind, term: message.term(), index: message.index() });
                    self.peers.send(&message);
                }
                Output::Persist(persist) => self.unwritten.push(persist),
                Output::Respond { ticket, answer } => {
                    if let Some(Waiter::Proposal(reply)) = self.waiters.remove(&ticket) {
                        let _ = reply.send(answer); // a client that is gone needs no answer
                    }
                }
                Output::ReadReady { ticket, result } => {
                    if let Some(Waiter::Read(reply)) = self.waiters.remove(&ticket) {
                        let view = result.map(|()| self.view());
                        let _ = reply.send(view);
                    }
                }
                Output::Notify(notice) => {
                    if let Some(notices) = self.streams.get(&notice.stream) {
                        notices.push(notice);
                    }
                }
                Output::SendSnapshot { message, state } => self.peers.send_snapshot(message, state),
                Output::DropSnapshot { index } => self.checkpoints.drop_received(index),
                Output::Discard(state) => background::discard(state),
                Output::Halt(halt) => self.halt(halt),
                Output::Removed => self.removed(),
                Output::Stopped => self.exit = Some(ExitReason::Stopped),
            }
        }
        self.outputs = outputs;
    }

    fn halt(&mut self, halt: Halt) {
        self.exit = Some(ExitReason::Failed(halt.into()));
    }

    fn settle(&mut self) {
        self.step(Input::Settle);
        self.view = None;
        let status = self.replica.status();
        // Whoever was removed learns of it from those that it asks.
        if status.changes_are_durable {
            self.peers.follow(&self.replica.machine().membership);
        }
        self.metrics.status(&status, self.replica.machine(), self.waiters.len());
        self.handle.set_status(status, &self.replica.machine().cluster_version);
    }

    /// Lets go of everything. What the replica holds may be much, and nobody is to wait for that.
    pub fn leave(self) {
        background::discard(self.replica);
    }

    /// Whether the run ends in good order, so that nothing is to be lost.
    fn is_leaving(&self) -> bool {
        matches!(self.exit, Some(ExitReason::Stopped | ExitReason::Failed(Failure::Removed { .. })))
    }

    fn start_writing(&mut self) {
        let stopping = self.is_leaving();
        let failed = self.exit.is_some() && !stopping;
        let last = stopping && !self.flushed;
        let nothing = self.unwritten.is_empty() && !last && (stopping || !self.checkpoints.has_written());
        if self.writing.is_some() || failed || nothing {
            return;
        }
        self.flushed |= last;
        let mut storage = self.storage.take().expect("it is here while nothing is written");
        let batches = std::mem::take(&mut self.unwritten);
        self.writing_until = batches.iter().rev().find(|batch| batch.sync).map(|batch| batch.id);
        let checkpoint = if stopping { None } else { self.checkpoints.take_written() };
        self.writing = Some(Box::pin(async move {
            let mut result = storage.append(&batches).await;
            if last && result.is_ok() {
                result = storage.flush().await.map(|()| Wrote::default());
            }
            if let (Some(checkpoint), Ok(wrote)) = (checkpoint, &mut result) {
                match storage.adopt(&checkpoint).await {
                    Ok(adopted) => wrote.extend(adopted),
                    Err(error) => result = Err(error),
                }
            }
            (storage, result)
        }));
    }

    /// Whether something became durable, so that there is more to do.
    fn poll_writing(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(writing) = &mut self.writing else { return false };
        let Poll::Ready((storage, result)) = writing.as_mut().poll(cx) else { return false };
        self.writing = None;
        (self.log_path, self.log_bytes) = (storage.path().to_owned(), storage.log_bytes());
        self.storage = Some(storage);
        match result {
            Ok(Wrote { events, superfluous }) => {
                for event in events {
                    self.checkpoints.observe(&event);
                    self.note(event);
                }
                self.checkpoints.remove(superfluous);
                if let Some(persist) = self.writing_until.take() {
                    self.note(NodeEvent::Persisted { persist });
                    self.step(Input::Persisted(persist));
                }
            }
            // What the disk holds now nobody knows, and asking it again would not tell: stop.
            Err(error) => {
                let failure = Failure::LogWrite { path: self.log_path.clone(), error };
                self.exit = Some(ExitReason::Failed(failure));
            }
        }
        true
    }

    /// The run is over once nothing is being written and, if all is well, nothing is left to be.
    fn take_exit(&mut self) -> Option<ExitReason> {
        let done = match &self.exit {
            None => false,
            Some(_) if self.is_leaving() => self.flushed && self.writing.is_none(),
            Some(_) => self.writing.is_none(),
        };
        let reason = self.exit.take_if(|_| done)?;
        let text = match &reason {
            ExitReason::Stopped => "asked to".to_owned(),
            ExitReason::Failed(failure) => failure.to_string(),
        };
        self.note(NodeEvent::Stopped { reason: text });
        Some(reason)
    }
}

impl Future for Driver {
    type Output = ExitReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ExitReason> {
        loop {
            if self.exit.is_none() {
                self.turn(cx);
            }
            self.start_writing();
            if !self.poll_writing(cx) {
                break;
            }
        }
        if self.exit.is_none() && self.replica.has_work() {
            cx.waker().wake_by_ref();
        }
        match self.take_exit() {
            Some(reason) => Poll::Ready(reason),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests;
