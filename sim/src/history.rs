//! What happened in a run: one ordered stream of events, from the clients, the nodes and the nemesis.
//!
//! Laws observe it as it grows; reports and checkers read it afterwards. Requests and answers are written here in the
//! simulator's own words, not in the node's, so that a law never depends on what it judges.
use std::{fmt, sync::Arc};

use detcd_core::event::NodeEvent;

/// Nanoseconds of simulated time since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.0 as f64 / 1e9)
    }
}

/// A node's place in the cluster, counting from 1. Survives restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNumber(pub usize);

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who sends and receives bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    Node(NodeNumber),
    Client(u64),
}

/// Watchers have the clients' numbers from here on.
pub const WATCHERS_FROM: u64 = 100;

/// One call of one client. Travels with the request as its trace id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

impl OpId {
    /// `call` counts the client's calls.
    pub fn new(client: u64, call: u64) -> OpId {
        OpId(client << 32 | call)
    }
}

/// `c4#6`: the sixth call of client 4.
impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}#{}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Changes of the membership travel with their number and this in their trace id, apart from operations.
pub const CHANGE_TRACE: u64 = 1 << 63;

pub type Text = Arc<str>;

/// From `start` on, before `end`; without an end it is the one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub start: Text,
    pub end: Option<Text>,
}

impl Keys {
    pub fn contains(&self, key: &str) -> bool {
        match &self.end {
            None => key == &*self.start,
            Some(end) => key >= &*self.start && key < &**end,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Put {
        key: Text,
        value: Text,
        previous: bool,
    },
    /// `revision` 0 is now; `limit` 0 is none.
    Range {
        keys: Keys,
        revision: i64,
        limit: i64,
        serializable: bool,
        keys_only: bool,
        count_only: bool,
    },
    Delete {
        keys: Keys,
        previous: bool,
    },
    /// If the key's value is `expected` (`None`: if it does not exist), put `new`; otherwise read the key.
    CompareAndSet {
        key: Text,
        expected: Option<Text>,
        new: Text,
    },
}

impl Request {
    /// Whether it can change the store.
    pub fn writes(&self) -> bool {
        !matches!(self, Request::Range { .. })
    }
}

/// A version of a key, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Text,
    pub value: Text,
    pub created: i64,
    pub modified: i64,
    pub version: i64,
}

/// What versions come to, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Content(pub u64);

impl Content {
    /// Of a deletion only `key` and `modified` count.
    pub fn add(&mut self, key: &[u8], modified: i64, alive: Option<(&[u8], i64, i64)>) {
        let (value, created, version) = alive.unwrap_or_default();
        let numbers = [modified, created, version, i64::from(alive.is_some()), key.len() as i64];
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).chain(key.iter().chain(value).copied());
        let hash =
            bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        self.0 = self.0.wrapping_add(hash ^ hash >> 29);
    }
}

/// What a successful answer says: who answered, the store's revision there, and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub member: u64,
    pub revision: i64,
    pub term: u64,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Put {
        previous: Option<KeyValue>,
    },
    Range {
        kvs: Vec<KeyValue>,
        count: i64,
        more: bool,
    },
    Delete {
        deleted: i64,
        previous: Vec<KeyValue>,
    },
    /// `read` is what the key held, if the comparison failed and it existed.
    CompareAndSet {
        succeeded: bool,
        read: Option<KeyValue>,
    },
}

/// What a client says of a call that it gave up.
pub const NO_ANSWER: &str = "no answer in time";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(Answer),
    /// It certainly never takes effect: refused before it was proposed, or refused for good.
    Failed(String),
    /// It may have taken effect, or may still: time-outs and broken connections.
    Unknown(String),
}

impl Outcome {
    /// Why it was not done.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Outcome::Ok(_) => None,
            Outcome::Failed(why) | Outcome::Unknown(why) => Some(why),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedEvent {
    /// A deletion has an empty value, and 0 for `created` and `version`.
    pub kv: KeyValue,
    pub deleted: bool,
    pub previous: Option<KeyValue>,
}

/// A watcher lives through many watches: when one ends it resumes where it was, at any member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatcherId(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// The watcher asks `node` for everything from `start` on (0: from now on).
    Asked { node: NodeNumber, keys: Keys, start: i64, previous: bool },
    /// The server made the watch at this revision.
    Created { revision: i64 },
    /// One response: all events of one or more revisions. `revision` is the header's.
    Events { revision: i64, events: Vec<WatchedEvent> },
    /// Everything up to this revision has been sent.
    Progress { revision: i64 },
    /// The watch is over, as the watcher wanted or not; it asks again. `compacted` is set if the server says that history
    /// is gone.
    Ended { reason: String, wanted: bool, compacted: i64 },
}

/// What operators ask for. Members are named by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    Add { url: Text, learner: bool },
    Promote { member: u64 },
    Remove { member: u64 },
    Update { member: u64, urls: Vec<Text> },
    MoveLeader { to: u64 },
}

/// A member, as the cluster tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    pub member: u64,
    pub name: Text,
    pub urls: Vec<Text>,
    pub learner: bool,
}

/// Why an operator does not get what it asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refused {
    /// It certainly never takes effect.
    pub definite: bool,
    pub why: Text,
}

/// In which way a process ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitKind {
    /// The cluster removed this member.
    Removed,
    /// It found nobody who knows it.
    Stranded,
    /// The disk failed: an error, or no space.
    Disk,
    /// What is on the disk cannot be right.
    Damage,
    /// What others say and what this member knows cannot both be right.
    Halted,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Faults happen; nothing wrong may be answered.
    Safety,
    /// Faults are over, and a quorum is well: the cluster must recover.
    Recovery,
    /// The run is over: everything that will happen has.
    Over,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A client calls `node`.
    Call {
        op: OpId,
        client: u64,
        node: NodeNumber,
        request: Request,
    },
    Return {
        op: OpId,
        outcome: Outcome,
    },
    Watch {
        watcher: WatcherId,
        what: Watched,
    },
    Node {
        node: NodeNumber,
        event: NodeEvent,
    },
    /// A node's process was started; `member` is its id in the cluster.
    Started {
        node: NodeNumber,
        member: u64,
    },
    /// A node's process was killed, and whether its machine lost power.
    Killed {
        node: NodeNumber,
        power_loss: bool,
    },
    /// A node's process ended by itself. Why, it noted itself.
    Ended {
        node: NodeNumber,
        kind: ExitKind,
    },
    /// What is on this node's disk is not what it put there: nothing that it promised can be asked of it any more.
    Tampered {
        node: NodeNumber,
    },
    /// This node reports a batch durable, and what it needs for it is not on the disk.
    Unsynced {
        node: NodeNumber,
        persist: u64,
        what: Text,
    },
    /// All that a node's store holds now, at every revision: what it started from, or took over. `content` is the sum of
    /// what [`Content`] makes of each version, up to and with `revision`.
    Store {
        node: NodeNumber,
        revision: i64,
        content: Content,
    },
    /// An operator asks `node` for a change of the membership, or for another leader.
    Asked {
        change: u64,
        node: NodeNumber,
        what: Change,
    },
    /// What came of it: the cluster's members then, or why not.
    Told {
        change: u64,
        outcome: Result<Vec<Peer>, Refused>,
    },
    /// A fault begins or ends. `fault` names it in a few words, the same at both.
    Fault {
        fault: Text,
        on: bool,
    },
    /// The network lost bytes on their way: they come late, at `until`, and with them all that follows.
    Delayed {
        from: Host,
        to: Host,
        until: Nanos,
    },
    Phase(Phase),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Stamped {
    pub at: Nanos,
    /// Counts all events of the run.
    pub sequence: u64,
    pub event: Event,
}
