//! The whole contract of a [`Replica`](super::Replica): what goes in, what comes out, and in which order.
//!
//! The shell drains its inbox into [`Replica::step`](super::Replica::step), ends the turn with [`Input::Settle`], and
//! then starts every [`Output`], in order, before the next input. It waits for none of them.
//!
//! - Nothing is sent, answered or noted before what it depends on is durable: the replica withholds it until the
//!   matching [`Input::Persisted`]. So a [`Output::Send`] may go out at once, even beside a [`Output::Persist`] that
//!   was started before it.
//! - [`Output::Persist`]s must become durable in order. Only those with `sync` are waited for; any other may stay in
//!   memory until the next that has it.
//! - A message may be dropped, doubled or delayed; if it is known to be dropped, [`Input::Unreachable`] says so. Only a
//!   forwarded proposal must not be doubled: it would be replicated twice.
//! - Every [`Input::Propose`] and [`Input::Read`] is answered exactly once, at the latest when its time is up
//!   (ticks permitting) or at [`Input::Stop`].
//! - After [`Output::Halt`] the replica must not be stepped again.
use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::{
    consensus::Message,
    error::Refusal,
    event::NodeEvent,
    format::wal::HardState,
    machine::{Response, command::Command},
    types::{Index, MemberId, Millis, PersistId, Revision, StreamId, Term, Ticket, TraceId},
    watch,
};

/// What happens to a node.
#[derive(Debug, Clone)]
pub enum Input {
    /// Time has come to `now`. However much passed, it is one raft tick: a node that was paused must not believe that
    /// everybody else was silent for as long.
    Tick { now: Millis },
    /// From a peer.
    Message(Message),
    /// Messages to this member were dropped, or it cannot be reached.
    Unreachable(MemberId),
    /// A client wants something replicated.
    Propose(Proposal),
    /// A client wants to read what is current: answered once this member's state is.
    Read { ticket: Ticket },
    /// The disk holds this batch and all before it.
    Persisted(PersistId),
    /// From a client's watch stream.
    Watch { stream: StreamId, request: watch::Request },
    /// The inbox is empty: do what the inputs since the last one call for.
    Settle,
    /// The node is going down: refuse whoever waits.
    Stop,
}

#[derive(Debug, Clone)]
pub struct Proposal {
    pub ticket: Ticket,
    pub trace: TraceId,
    pub command: Command,
}

/// What a node is to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// To the peer that [`Message::to`] names.
    Send(Message),
    /// To the log on disk.
    Persist(Persist),
    /// To the client that holds the ticket of a proposal.
    Respond { ticket: Ticket, answer: Answer },
    /// To the client that holds the ticket of a read: the machine, as it is now, is current enough.
    ReadReady { ticket: Ticket, result: Result<(), Refusal> },
    /// To a watch stream.
    Notify(watch::Notice),
    /// To the probe.
    Note(NodeEvent),
    /// This member cannot go on.
    Halt(Halt),
}

/// One batch for the log on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Persist {
    pub id: PersistId,
    /// Written after the entries, if it changed.
    pub hard_state: Option<HardState>,
    /// Replace what the log holds from the first one's index on.
    pub entries: Vec<Entry>,
    /// Whether [`Input::Persisted`] is waited for.
    pub sync: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub result: Result<Response, Refusal>,
    /// The store's revision right after the command, or now if there was none.
    pub revision: Revision,
    pub term: Term,
}

/// Why a replica cannot go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Halt {
    #[error(transparent)]
    Forgotten(#[from] crate::consensus::ForgottenEntries),
    #[error("entry {index} of the log cannot be applied: {reason}")]
    Entry { index: Index, reason: String },
}

/// How a node stands, for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub term: Term,
    /// 0 when none is known.
    pub leader: MemberId,
    pub committed: Index,
    pub applied: Index,
    /// Watches that clients have.
    pub watches: usize,
}

/// A context for a round of reads; unique over members and restarts.
pub(super) fn read_context(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

pub(super) fn parse_read_context(context: &Bytes) -> Option<u64> {
    Some(u64::from_be_bytes(context[..].try_into().ok()?))
}
