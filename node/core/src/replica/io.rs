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
//! - Every [`Input::Propose`], [`Input::Change`], [`Input::Transfer`] and [`Input::Read`] is answered exactly once, at the
//!   latest when its time is up (ticks permitting) or when the replica stopped.
//! - Every [`Output::SendSnapshot`] is followed by one [`Input::SnapshotSent`], whatever became of it: until then the
//!   follower is sent nothing else.
//! - The state that comes with [`Input::Snapshot`] is durable already, in a file of its index's. The batch that takes it
//!   in ([`Persist::snapshot`]) puts that file into place; a state that is not needed is told by
//!   [`Output::DropSnapshot`]. Until one or the other is done, the shell refuses another state of the same index.
//! - After [`Output::Halt`], [`Output::Removed`] or [`Output::Stopped`] the replica must not be stepped again.
use raft::eraftpb::Entry;

use crate::{
    consensus::Message,
    error::Refusal,
    event::NodeEvent,
    format::wal::HardState,
    machine::{
        Machine, Response,
        command::Command,
        membership::{Configuration, Member},
    },
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
    /// An operator wants the membership changed.
    Change { ticket: Ticket, trace: TraceId, change: ChangeRequest, peers: Peers },
    /// An operator wants another member to lead. Answered once it does.
    Transfer { ticket: Ticket, to: MemberId },
    /// A leader's snapshot message, and the state it is about.
    Snapshot { message: Message, state: State },
    /// The snapshot for this member arrived there, or did not.
    SnapshotSent { to: MemberId, delivered: bool },
    /// A client wants to read what is current: answered once this member's state is.
    Read { ticket: Ticket },
    /// The disk holds this batch and all before it.
    Persisted(PersistId),
    /// From a client's watch stream.
    Watch { stream: StreamId, request: watch::Request },
    /// The inbox is empty: do what the inputs since the last one call for.
    Settle,
    /// The node is to go down: hand over leadership, refuse whoever waits, and say [`Output::Stopped`]. That takes two
    /// election timeouts at most.
    Stop,
}

/// What an operator wants of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeRequest {
    Add(Member),
    /// Only the leader can tell whether the learner is ready: others refuse with "not leader".
    Promote(MemberId),
    Remove(MemberId),
    UpdatePeers(MemberId, Vec<String>),
}

/// Which other members this one has a connection with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    /// At all.
    pub connected: Vec<MemberId>,
    /// For long enough to count on them.
    pub healthy: Vec<MemberId>,
}

/// A machine as a value to be passed on. Cheap to clone.
#[derive(Clone, Default)]
pub struct State(pub Box<Machine>);

/// By what it comes to: equal digests at one index are equal states.
impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        (self.0.applied(), self.0.digest()) == (other.0.applied(), other.0.digest())
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} {})", self.0.applied(), self.0.digest())
    }
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
    /// To the peer that the message names, with the machine's present state: as a stream of its own.
    SendSnapshot { message: Message, state: State },
    /// The state that arrived for this index is not needed.
    DropSnapshot { index: Index },
    /// To be dropped where nobody waits: it may be large.
    Discard(State),
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
    /// This member was removed from the cluster, for good, and nobody needs it any more. It stays until another member is
    /// known to know, at most [`limits::REMOVED_STAYS_MS`](crate::limits::REMOVED_STAYS_MS).
    Removed,
    /// This member is ready to go down.
    Stopped,
}

/// One batch for the log on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Persist {
    pub id: PersistId,
    /// Written after the entries, if it changed.
    pub hard_state: Option<HardState>,
    /// Replace what the log holds from the first one's index on.
    pub entries: Vec<Entry>,
    /// Comes before the entries: the state that arrived for it becomes this member's, and the log goes on after it.
    pub snapshot: Option<SnapshotMark>,
    /// Whether [`Input::Persisted`] is waited for.
    pub sync: bool,
}

/// Up to where a state stands in for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMark {
    pub index: Index,
    pub term: Term,
    /// Who had a say at that index.
    pub configuration: Configuration,
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
    /// Whether this member is one, as far as it knows.
    pub is_learner: bool,
    /// Whether it is durable that every change of the membership is committed that this member has applied. Before, nobody
    /// may be told of one: whoever was removed may then throw away what could be needed again.
    pub changes_are_durable: bool,
    /// Whether this member was removed, and nobody else may know.
    pub is_untold: bool,
}
