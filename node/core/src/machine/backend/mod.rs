//! The machine as etcd keeps it on disk: rows in ten buckets, and back.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | revision, see [`crate::mvcc`] | mvccpb.KeyValue |
//! | `lease` | id: i64 BE | leasepb.Lease |
//! | `members` | id in hexadecimal | JSON of a member |
//! | `members_removed` | id in hexadecimal | `removed` |
//! | `cluster` | `clusterVersion` | text |
//! | `meta` | `consistent_index`, `term` | u64 BE: the last entry applied |
//! | `meta` | `confState` | JSON: who votes |
//! | `meta` | `scheduledCompactRev`, `finishedCompactRev` | a row key of `key`: the last compaction |
//! | `meta` | `storageVersion` | text, from 3.6 on |
//! | `meta` | `detcdDigest` | u64 BE: an index; u64 BE: the digest after it |
//!
//! The last row is ours; etcd ignores it, and leaves it behind when it goes on: so it counts only at its index. It is
//! written only if the digest covers all of history.
//!
//! Rows that mean nothing to this version (`alarm`, the three of authentication, whatever else is in `cluster` and
//! `meta`) stay in the machine and go back into its files unchanged. Authentication that is switched on is refused
//! instead: to serve without it would open the data to everyone.
//!
//! Not kept: how much of a lease's time was left, which is a matter of clocks, and `confState`, which follows from the
//! members.
mod builder;
mod status;
mod view;

use std::{collections::BTreeMap, fmt::Write};

use bytes::Bytes;

pub use self::{
    builder::Builder,
    status::{Status, StatusFold},
    view::{Row, View},
};
use crate::machine::membership::ChangeError;
#[cfg(test)]
use crate::mvcc::RowKey;

const KEY: &str = "key";
const LEASE: &str = "lease";
const MEMBERS: &str = "members";
const MEMBERS_REMOVED: &str = "members_removed";
const CLUSTER: &str = "cluster";
const META: &str = "meta";
const AUTH: &str = "auth";
const ALARM: &str = "alarm";
const AUTH_ROLES: &str = "authRoles";
const AUTH_USERS: &str = "authUsers";

/// In ascending order. etcd expects all of them, even if they are empty.
const BUCKETS: &[&str] = &[ALARM, AUTH, AUTH_ROLES, AUTH_USERS, CLUSTER, KEY, LEASE, MEMBERS, MEMBERS_REMOVED, META];

const CLUSTER_VERSION: &[u8] = b"clusterVersion";
const CONSISTENT_INDEX: &[u8] = b"consistent_index";
const TERM: &[u8] = b"term";
const CONF_STATE: &[u8] = b"confState";
const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
const STORAGE_VERSION: &[u8] = b"storageVersion";
const DIGEST: &[u8] = b"detcdDigest";
const AUTH_ENABLED: &[u8] = b"authEnabled";

/// Rows that mean nothing to this version, by bucket and key.
pub(super) type KeptRows = BTreeMap<(&'static str, Bytes), Bytes>;

/// A backend that this version cannot go on from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    #[error("row {} of bucket {bucket}: {reason}", hex(key))]
    Row { bucket: String, key: Vec<u8>, reason: String },
    /// All rows are there, and do not go together.
    #[error("bucket {bucket}: {reason}")]
    Bucket { bucket: &'static str, reason: String },
    #[error(
        "authentication is enabled, which this version does not have: it would serve everyone. \
         Disable it with etcd (`etcdctl auth disable`) first"
    )]
    AuthEnabled,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String grows");
        text
    })
}

/// Major and minor of a cluster's version.
fn minor_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The first version whose backend says which version it is of.
const STORAGE_VERSIONED: (u32, u32) = (3, 6);

#[cfg(test)]
mod tests;
