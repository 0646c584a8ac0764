//! Every bound in the system, with its unit; what happens at the bound stands beside it.
//!
//! Sizes that a scenario must be able to reach are fields of a `Config` somewhere; these are their defaults.

/// The largest request a client may send, in bytes as replicated. etcd's default. Larger: "request is too large".
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// The largest gRPC message accepted, in bytes. Larger: ResourceExhausted, and nothing is decoded.
pub const GRPC_MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + (512 << 10);
/// The most compares, or operations in one branch, of a transaction. etcd's default. More: "too many operations".
pub const TXN_OPS_MAX: usize = 128;
/// How deep transactions may nest. Deeper requests are refused as malformed.
pub const TXN_DEPTH_MAX: usize = 16;

/// One raft tick, and the interval of heartbeats, in milliseconds.
pub const HEARTBEAT_MS: u64 = 100;
/// The least time without a leader before a member stands for election, in milliseconds.
pub const ELECTION_MS: u64 = 1_000;
/// What a request may wait for on top of two election timeouts, in milliseconds. etcd's constant.
pub const REQUEST_WAIT_MS: u64 = 5_000;
/// A linearizable read that heard nothing asks again after this many milliseconds: etcd's constant.
pub const READ_RETRY_MS: u64 = 500;

/// The most bytes of entries in one append message. One entry may exceed it alone.
pub const APPEND_BYTES_MAX: u64 = 1 << 20;
/// Append messages to one follower that may be on their way at once; then the leader waits for answers.
pub const APPENDS_IN_FLIGHT_MAX: usize = 256;
/// Bytes of entries that are proposed but not committed; beyond it proposals wait in the queue.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// The most bytes of committed entries applied in one go: keeps a step short.
pub const APPLY_BYTES_MAX: u64 = 1 << 20;
/// Messages with proposals that a member holds back, and bytes of their entries: as leader while it hands over, while a
/// change of the membership is not applied yet, or while too much is not committed. Beyond it they are lost.
pub const DEFERRED_MAX: usize = 1_000;
pub const DEFERRED_BYTES_MAX: u64 = 64 << 20;
/// Requests that may wait for consensus in one member, and bytes of those among them that were not handed to a leader
/// yet; one more is refused with "too many requests".
pub const PROPOSALS_WAITING_MAX: usize = 20_000;
pub const PROPOSALS_BYTES_MAX: usize = 64 << 20;
/// Linearizable reads that may wait in one member; one more is refused with "too many requests".
pub const READS_WAITING_MAX: usize = 100_000;
/// Bytes by which a follower tells its reads apart: the leader repeats them to everybody. etcd's and ours are eight.
pub const READ_CONTEXT_BYTES_MAX: usize = 64;
/// Bytes of entries that wait for a follower's disk; beyond it appends count as lost on the way.
pub const UNWRITTEN_BYTES_MAX: u64 = 64 << 20;

/// Bytes of applied entries that are kept in memory for followers a little behind. The rest of the log goes: who needs
/// more gets the state.
pub const TAIL_BYTES: u64 = 8 << 20;
/// Of a small state the tail is no more than one part in so many, though it may always have `TAIL_BYTES_MIN`: to send
/// the state is cheap then.
pub const TAIL_STATE_SHARE: u64 = 32;
pub const TAIL_BYTES_MIN: u64 = 512 << 10;
/// As leader, keep up to so many times as much for followers that are alive but not there yet: of a small state half as
/// much as the state itself.
pub const TAIL_HELD_FACTOR: u64 = 16;
/// Learners that a cluster may have. etcd's default. One more: "too many learner members".
pub const LEARNERS_MAX: usize = 1;
/// A learner is promoted once it has so many percent of the leader's log. etcd's.
pub const CAUGHT_UP_PERCENT: u64 = 90;
/// How long a change of the membership may wait for consensus, in milliseconds, if the caller does not give up before.
pub const CHANGE_WAIT_MS: u64 = 30_000;
/// A removed member that cannot tell whether the others know it yet stays for so long, in milliseconds: they may need its
/// vote to find out.
pub const REMOVED_STAYS_MS: u64 = 60_000;
/// A peer counts as connected once it has been for so long, in milliseconds. etcd's.
pub const HEALTHY_MS: u64 = 5_000;

/// Undelivered bytes of events on one watch stream; beyond it the stream's watches fall behind and catch up from
/// history at the pace at which the client reads.
pub const WATCH_STREAM_BYTES_MAX: usize = 4 << 20;
/// Notices that wait on one watch stream; beyond it the client's requests wait until it has read some.
pub const WATCH_NOTICES_MAX: usize = 1_000;
/// Requests of one watch stream that are passed on before their answers may come back.
pub const WATCH_REQUESTS_AT_ONCE: usize = 100;
/// Revisions looked through in one go when a watch catches up: keeps a step short.
pub const WATCH_CATCH_UP_REVISIONS: usize = 1_000;

/// How often a quiet watch that asks for it is told how far it is, in milliseconds. etcd's default.
pub const WATCH_PROGRESS_MS: u64 = 600_000;
/// How long a client's connection may be silent before it is asked whether it is still there, and how long it may take to
/// answer, in milliseconds; then it is closed. etcd's defaults.
pub const KEEP_ALIVE_MS: u64 = 2 * 3_600_000;
pub const KEEP_ALIVE_TIMEOUT_MS: u64 = 20_000;
/// How long a connection may be open before it says what it wants, or takes for the head of a request, in milliseconds;
/// then it is closed.
pub const FIRST_REQUEST_MS: u64 = 30_000;
/// Files that a member may need for itself; clients' connections may take up the rest of those that it may have open, and
/// half of all if that is more. etcd's.
pub const FILES_RESERVED: u64 = 150;
/// Connections that peers may have with a member: some of each, and of those who ask around. Beyond it they wait.
pub const PEER_CONNECTIONS_MAX: u64 = 256;
/// A peer stream over which nothing came for so long is closed and dialled anew, in milliseconds. etcd's.
pub const PEER_SILENCE_MS: u64 = 5_000;
/// Who is not a member yet, as far as a member knows, and is dialled all the same; one more is turned away. A newcomer's
/// first word may come before the log says that it was added.
pub const REMOTES_MAX: usize = 64;
/// The least time between two attempts to reach a peer, in milliseconds.
pub const PEER_REDIAL_MS: u64 = 100;

/// A TLS handshake that is not done after so long is given up, in milliseconds; so is a connection to a peer. etcd's.
pub const HANDSHAKE_MS: u64 = 10_000;
/// TLS handshakes that one listener has under way at once; beyond it callers wait to be accepted, until one is done or
/// the oldest has had its share.
pub const HANDSHAKES_MAX: usize = 500;
/// What a TLS handshake may take while others wait for its place, in milliseconds; after that it gives way.
pub const HANDSHAKE_SHARE_MS: u64 = 1_000;

/// The size at which the log goes over to a new segment, in bytes. etcd's.
pub const SEGMENT_BYTES: u64 = 64_000_000;
/// Log segments, and `.snap` files, to keep although nothing needs them any more. etcd's defaults.
pub const SEGMENTS_KEPT: usize = 5;
pub const SNAPSHOTS_KEPT: usize = 5;
/// Outputs of one step after which what is left to apply waits for the next step.
pub const OUTPUTS_MAX: usize = 16 << 10;
/// A checkpoint is due when the log since the last one is larger than this, in bytes, and than one part in
/// `CHECKPOINT_STATE_SHARE` of the state: so a busy node does not do nothing else, and a restart reads no more than
/// this or a quarter as much again as the state, and what came while that checkpoint was written.
pub const CHECKPOINT_BYTES: u64 = 256 << 20;
pub const CHECKPOINT_STATE_SHARE: u64 = 4;
/// Entries left to apply, beyond which no checkpoint begins: amid the log that a restart found, it would be of little use.
pub const CHECKPOINT_BACKLOG_MAX: u64 = OUTPUTS_MAX as u64;
/// How long a checkpoint that came to nothing is not tried again, in milliseconds.
pub const CHECKPOINT_RETRY_MS: u64 = 10_000;
/// How long a joining member asks around for the membership, in milliseconds.
pub const JOIN_MS: u64 = 30_000;
/// A snapshot that makes no headway for so long is given up, in milliseconds.
pub const SNAPSHOT_STALL_MS: u64 = 5_000;
/// The largest message before a snapshot, in bytes: it holds the membership. Larger: the snapshot is refused.
pub const SNAPSHOT_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How long a leader waits for a follower to check a snapshot that it got whole, in milliseconds.
pub const SNAPSHOT_ANSWER_MS: u64 = 120_000;
/// The largest record a log reader accepts, in bytes: larger is corruption, not data.
pub const RECORD_BYTES_MAX: usize = 64 << 20;
/// The largest raft message a peer may send, in bytes. Larger: the stream is closed.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The largest entry that is taken from a peer, in bytes: there must be room for it in a log record and in a message.
/// Larger: the message that brings it is dropped.
pub const ENTRY_BYTES_MAX: usize = 32 << 20;
/// Bytes that a connection with a peer reads at a time: beyond it the peer waits.
pub const PEER_READ_BYTES: usize = 64 << 10;
/// Bytes waiting for one peer; beyond it messages are dropped and the peer is reported unreachable.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Inputs waiting for the driver; beyond it requests are refused with "too many requests" (messages of peers are
/// bounded by their streams).
pub const INBOX_MAX: usize = 100_000;
/// A range in a store of more keys than this is read off the driver's thread.
pub const RANGE_INLINE_KEYS: usize = 5_000;
/// How many ranges are read so at a time, where the machine's number of processors is not known; more wait. They share
/// their threads with the disk.
pub const LONG_READS: usize = 4;

// An append message must fit through a peer's stream with room for its envelope.
const _: () = assert!((APPEND_BYTES_MAX as usize + REQUEST_BYTES_MAX) * 2 < PEER_MESSAGE_BYTES_MAX);
// A legal request must fit in one entry, and that in a log record and a message: entries are never split.
const _: () = assert!(GRPC_MESSAGE_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX + (1 << 10) < RECORD_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX + APPEND_BYTES_MAX as usize + (1 << 10) < PEER_MESSAGE_BYTES_MAX);
// A queue must hold at least what may be in flight to one follower when requests are small.
const _: () = assert!(PEER_QUEUE_BYTES_MAX as u64 > APPEND_BYTES_MAX * 4);
const _: () = assert!(TAIL_BYTES_MIN <= TAIL_BYTES);
const _: () = assert!(ELECTION_MS >= 5 * HEARTBEAT_MS);
const _: () = assert!(HANDSHAKE_SHARE_MS <= HANDSHAKE_MS);
