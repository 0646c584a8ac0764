//! Everything a detcd node decides, and nothing it waits for.
//!
//! [`replica::Replica::step`] is the only way in: one event enters, the state changes, effects come out as values.
//! This crate has no async, no I/O, no clock and no entropy of its own; its `Cargo.toml` and `clippy.toml` keep it so.
//! The same inputs in the same order give the same outputs, byte for byte.
pub mod consensus;
pub mod error;
pub mod event;
pub mod format;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod mvcc;
pub mod replica;
pub mod types;
pub mod watch;

/// etcd's message types, generated from `node/proto`.
#[allow(clippy::all, clippy::disallowed_types)]
pub mod proto {
    pub mod mvccpb {
        include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
    }
    pub mod authpb {
        include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
    }
    pub mod etcdserverpb {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
    }
    pub mod membershippb {
        include!(concat!(env!("OUT_DIR"), "/membershippb.rs"));
    }
    pub mod leasepb {
        include!(concat!(env!("OUT_DIR"), "/leasepb.rs"));
    }
    pub mod walpb {
        include!(concat!(env!("OUT_DIR"), "/walpb.rs"));
    }
    pub mod snappb {
        include!(concat!(env!("OUT_DIR"), "/snappb.rs"));
    }
    pub mod raftpb {
        include!(concat!(env!("OUT_DIR"), "/raftpb.rs"));
    }
}
