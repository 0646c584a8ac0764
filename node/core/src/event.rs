//! Every fact about a node that is worth observing or triggering on: one list, with stable names.
//!
//! Laws, triggers, metrics and logs feed on these. A fact is noted when it is true, in the order in which it became so.
use crate::types::{Digest, Index, MemberId, PersistId, RequestId, Revision, Term, TraceId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// Who belongs to a state, and who was ever removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Members {
    pub voters: Vec<MemberId>,
    pub learners: Vec<MemberId>,
    pub removed: Vec<MemberId>,
}

/// What comes often is small: an output of the core is as large as the largest of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeEvent {
    /// The node read its files back and is about to take part. The log goes from behind `before` to `last`, and
    /// `entries` has term and hash of each, as `Appended` has; the machine holds everything up to `applied`; what that
    /// came to is told by `revision`, `digest` and the members.
    Recovered {
        term: Term,
        vote: MemberId,
        commit: Index,
        before: Index,
        last: Index,
        entries: Box<[(Term, u64)]>,
        applied: Index,
        revision: Revision,
        digest: Digest,
        members: Box<Members>,
    },
    /// Role, term or known leader changed. `leader` is 0 when unknown.
    RoleChanged {
        role: Role,
        term: Term,
        leader: MemberId,
    },
    /// A client's request got its id and is about to be proposed.
    Proposed {
        trace: TraceId,
        request: RequestId,
    },
    /// An entry entered this member's log, in memory; what stood at this index and after it before is gone.
    /// `hash` is of the entry's type and data.
    Appended {
        index: Index,
        term: Term,
        hash: u64,
    },
    /// That entry is a change of the membership.
    ChangeAppended {
        index: Index,
    },
    /// A state that arrived stands in for this member's whole log up to here; what the log held is gone. In memory, as
    /// `Appended` is.
    LogRestarted {
        index: Index,
        term: Term,
    },
    /// A batch was handed to the disk: `last` is the log's last index in it, if it holds entries; `snapshot` the state
    /// with which it makes the log begin anew.
    PersistStarted {
        persist: PersistId,
        term: Term,
        vote: MemberId,
        last: Option<(Index, Term)>,
        snapshot: Option<(Index, Term)>,
    },
    /// That batch, and all before it, is durable.
    Persisted {
        persist: PersistId,
    },
    /// A raft message was handed to the transport.
    Sent {
        to: MemberId,
        kind: &'static str,
        term: Term,
        index: Index,
    },
    /// A raft message arrived.
    Received {
        from: MemberId,
        kind: &'static str,
        term: Term,
        index: Index,
    },
    /// The commit index moved.
    Committed {
        index: Index,
    },
    /// The machine applied an entry. `request` is 0 for what no client asked for.
    Applied {
        index: Index,
        term: Term,
        request: RequestId,
        revision: Revision,
        digest: Digest,
    },
    /// The machine applied a change of the membership, valid or not: these have a say from here on.
    ConfigurationApplied {
        index: Index,
        voters: Vec<MemberId>,
        learners: Vec<MemberId>,
        valid: bool,
    },
    /// A snapshot's state took the place of the machine's.
    SnapshotInstalled {
        index: Index,
        term: Term,
        revision: Revision,
        digest: Digest,
        members: Box<Members>,
    },
    /// A snapshot of this index was handed to the transport.
    SnapshotSent {
        to: MemberId,
        index: Index,
    },
    /// The transport told what became of it.
    SnapshotReported {
        to: MemberId,
        delivered: bool,
    },
    /// A snapshot arrived whole and was found good; it may yet turn out not to be needed.
    SnapshotReceived {
        from: MemberId,
        index: Index,
    },
    /// A snapshot arrived broken, or could not be kept.
    SnapshotRejected {
        reason: String,
    },
    /// The log in memory begins behind this index now.
    LogCut {
        before: Index,
    },
    /// The state as of this index is being written to a file.
    CheckpointStarted {
        index: Index,
    },
    /// It is durable, and what it replaces may go.
    CheckpointDone {
        index: Index,
    },
    /// It came to nothing, and will be tried again.
    CheckpointDropped {
        index: Index,
        reason: String,
    },
    /// A segment of the log is not needed any more, and was removed.
    SegmentRemoved {
        sequence: u64,
    },
    /// This member is on its way out of the leader's role, to this one.
    HandingOver {
        to: MemberId,
    },
    /// This member was removed from the cluster.
    Removed,
    /// A client is told that its write is done.
    Acknowledged {
        request: RequestId,
        index: Index,
    },
    /// A client is told that its request failed and, if `definite`, that it never takes effect.
    Refused {
        request: RequestId,
        definite: bool,
    },
    /// Reads that waited when a round of confirmation began may be served from `index` on.
    ReadConfirmed {
        index: Index,
        term: Term,
    },
    /// The log went over to a new segment.
    SegmentStarted {
        sequence: u64,
        first: Index,
    },
    /// A stream from this member to a peer came up or went away.
    PeerConnected {
        peer: MemberId,
    },
    PeerLost {
        peer: MemberId,
    },
    /// The leader gave up its role because its disk had not answered for an election timeout.
    DiskStalled {
        since_ms: u64,
    },
    /// The node serves clients.
    Serving,
    /// The node stopped, and why.
    Stopped {
        reason: String,
    },
}

impl NodeEvent {
    /// The event's stable name, as scenarios and reports spell it.
    pub fn name(&self) -> &'static str {
        match self {
            NodeEvent::Recovered { .. } => "recovered",
            NodeEvent::RoleChanged { .. } => "role_changed",
            NodeEvent::Proposed { .. } => "proposed",
            NodeEvent::Appended { .. } => "appended",
            NodeEvent::ChangeAppended { .. } => "change_appended",
            NodeEvent::LogRestarted { .. } => "log_restarted",
            NodeEvent::PersistStarted { .. } => "persist_started",
            NodeEvent::Persisted { .. } => "persisted",
            NodeEvent::Sent { .. } => "sent",
            NodeEvent::Received { .. } => "received",
            NodeEvent::Committed { .. } => "committed",
            NodeEvent::Applied { .. } => "applied",
            NodeEvent::ConfigurationApplied { .. } => "configuration_applied",
            NodeEvent::SnapshotInstalled { .. } => "snapshot_installed",
            NodeEvent::SnapshotSent { .. } => "snapshot_sent",
            NodeEvent::SnapshotReported { .. } => "snapshot_reported",
            NodeEvent::SnapshotReceived { .. } => "snapshot_received",
            NodeEvent::SnapshotRejected { .. } => "snapshot_rejected",
            NodeEvent::LogCut { .. } => "log_cut",
            NodeEvent::CheckpointStarted { .. } => "checkpoint_started",
            NodeEvent::CheckpointDone { .. } => "checkpoint_done",
            NodeEvent::CheckpointDropped { .. } => "checkpoint_dropped",
            NodeEvent::SegmentRemoved { .. } => "segment_removed",
            NodeEvent::HandingOver { .. } => "handing_over",
            NodeEvent::Removed => "removed",
            NodeEvent::Acknowledged { .. } => "acknowledged",
            NodeEvent::Refused { .. } => "refused",
            NodeEvent::ReadConfirmed { .. } => "read_confirmed",
            NodeEvent::SegmentStarted { .. } => "segment_started",
            NodeEvent::PeerConnected { .. } => "peer_connected",
            NodeEvent::PeerLost { .. } => "peer_lost",
            NodeEvent::DiskStalled { .. } => "disk_stalled",
            NodeEvent::Serving => "serving",
            NodeEvent::Stopped { .. } => "stopped",
        }
    }
}
