//! Names for numbers: where two integers could be swapped, the compiler keeps them apart.
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta] $name:ident($inner:ty);)*) => {$(
        #[$doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

number! {
    /// A raft term.
    Term(u64);
    /// A position in the raft log. 0 means "before the first entry".
    Index(u64);
    /// A position in the store's history: one for each transaction that changed something. An empty store is at 1.
    Revision(i64);
    /// A lease, chosen by the client or by the server. 0 means "none"; any other value is legal.
    LeaseId(i64);
    /// One request of one client, unique in the cluster and over restarts; the id in the replicated command.
    RequestId(u64);
    /// What a client waits for: one write or one linearizable read, unique in one run of one node.
    Ticket(u64);
    /// One batch handed to the disk; numbered from 1 in one run of one node.
    PersistId(u64);
    /// A client stream on which watches are multiplexed; unique in one run of one node.
    StreamId(u64);
    /// A watch on its stream, as the client knows it.
    WatchId(i64);
    /// A caller's own mark on a request, for whoever traces it; 0 means "none".
    TraceId(u64);
    /// Milliseconds on a node's monotonic clock; meaningless on any other node.
    Millis(u64);
}

/// A member of the cluster. 0 means "nobody". Shown in hexadecimal, as etcd does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MemberId(pub u64);

/// A cluster, fixed when it is founded. Shown in hexadecimal, as etcd does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub u64);

/// What a machine's whole history comes to; equal on all members at equal applied index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(pub u64);

macro_rules! shown_in_hex {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    )*};
}

shown_in_hex!(MemberId ClusterId Digest);
