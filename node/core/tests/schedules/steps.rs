//! What a schedule is made of.
use bytes::Bytes;
use detcd_core::{
    machine::command::{Command, Compare, Delete, Op, Put, Range, Relation, Target, Txn},
    mvcc::{KeyRange, RangeEnd, RangeOptions},
    types::{LeaseId, Revision},
};

/// The number of whichever member leads, as far as one does.
pub const LEADER: u8 = u8::MAX;
/// The largest command, in bytes: small, so that some are too large.
pub const REQUEST_BYTES_MAX: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub members: u8,
    /// The least number of ticks of an election timeout.
    pub election_ticks: u8,
    pub heartbeat_ms: u16,
    /// Bytes of applied entries to keep in memory.
    pub tail_bytes: u32,
    /// Outputs of a step after which the rest waits for the next one.
    pub outputs_max: u16,
    pub seed: u64,
}

/// One thing that happens. A member or a message is named by a number that is taken modulo how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Tick {
        member: u8,
    },
    TickAll,
    /// The oldest messages arrive, in the order in which they were sent.
    Flow {
        count: u8,
    },
    /// Any message arrives.
    Deliver {
        at: u16,
    },
    /// Any message arrives, and will again.
    Double {
        at: u16,
    },
    /// Any message gets lost.
    Drop {
        at: u16,
    },
    /// All messages arrive and all writes become durable, and what comes of that, until nothing is left to do.
    Rest,
    /// A connection breaks: what is on its way there gets lost, and the sender learns of it.
    Reset {
        from: u8,
        to: u8,
    },
    /// A disk completes batches.
    Write {
        member: u8,
        batches: u8,
    },
    Propose {
        member: u8,
        request: Request,
    },
    Read {
        member: u8,
    },
    /// An operator asks a member, which has connections with the others whose bits are set.
    Change {
        member: u8,
        change: Change,
        connected: u8,
        healthy: u8,
    },
    Transfer {
        member: u8,
        to: u8,
    },
    /// A state on its way to a member.
    Parcel {
        at: u16,
        fate: Fate,
    },
    /// Who sent a state learns what became of it.
    Report {
        at: u16,
    },
    /// The member begins to write its state to a file, or if it did, that is done.
    Checkpoint {
        member: u8,
    },
    /// The log on disk before the member's state goes, but for so many entries.
    Release {
        member: u8,
        keep: u8,
    },
    /// The member's next inputs come in one turn.
    Busy {
        member: u8,
        inputs: u8,
    },
    /// The member's process ends. Of the writes under way some may have become durable, and some entries of the next.
    Crash {
        member: u8,
        survived: u8,
        torn: u8,
    },
    /// The member is asked to stop. Once it says that it did, it ends as in a crash.
    Stop {
        member: u8,
        survived: u8,
    },
    Restart {
        member: u8,
    },
    /// Nothing that this member sends or is sent arrives from now on; then clients ask it for so many writes.
    Isolate {
        member: u8,
        writes: u8,
    },
    /// Nothing that the one sends the other arrives from now on.
    Cut {
        from: u8,
        to: u8,
    },
    /// All can talk to all again.
    Join,
    /// For so many ticks everything works.
    Calm {
        ticks: u8,
    },
}

/// Members by number; whoever is added is a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    AddVoter,
    AddLearner,
    Promote { who: u8 },
    Remove { who: u8 },
    Update { who: u8, url: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    /// And will again.
    ArrivesTwice,
    /// But the sender does not learn of it.
    ArrivesUntold,
    IsLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Put { key: u8 },
    Attach { key: u8, lease: u8 },
    Delete { key: u8 },
    DeleteAll,
    Toggle { key: u8 },
    Range,
    Compact { behind: u8 },
    Grant { lease: u8 },
    Revoke { lease: u8 },
    TooLarge,
}

impl Request {
    /// `unique` makes it differ from any other; `revision` is about where the store stands.
    pub fn command(self, unique: u64, revision: Revision) -> Command {
        let all = KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded };
        let one = |number| KeyRange { start: key(number), end: RangeEnd::Single };
        match self {
            Request::Put { key } => Command::Put(put(key, unique, 0)),
            Request::Attach { key, lease } => Command::Put(put(key, unique, lease % 3 + 1)),
            Request::Delete { key } => Command::Delete(Delete { range: one(key), previous: true }),
            Request::DeleteAll => Command::Delete(Delete { range: all, previous: false }),
            Request::Toggle { key } => Command::Txn(Txn {
                compare: vec![Compare { range: one(key), relation: Relation::Equal, target: Target::Version(0) }],
                success: vec![Op::Put(put(key, unique, 0)), Op::Put(put(key.wrapping_add(1), unique, 0))],
                failure: vec![Op::Delete(Delete { range: one(key), previous: false })],
            }),
            Request::Range => {
                let options = RangeOptions::default();
                Command::Range(Range { range: all, options, keys_only: false, serializable: false })
            }
            Request::Compact { behind } => Command::Compact { revision: Revision(revision.0 - i64::from(behind % 8)) },
            Request::Grant { lease } => Command::LeaseGrant { id: LeaseId((lease % 3 + 1).into()), ttl: 60 },
            Request::Revoke { lease } => Command::LeaseRevoke { id: LeaseId((lease % 3 + 1).into()) },
            Request::TooLarge => {
                let value = Bytes::from_static(&[0; REQUEST_BYTES_MAX]);
                Command::Put(Put { value, ..put(0, unique, 0) })
            }
        }
    }
}

fn key(number: u8) -> Bytes {
    Bytes::from(vec![b'a' + number % 4])
}

fn put(number: u8, value: u64, lease: u8) -> Put {
    let (key, value) = (key(number), value.to_string().into());
    Put { key, value, lease: LeaseId(lease.into()), previous: false, ignore_value: false, ignore_lease: false }
}
