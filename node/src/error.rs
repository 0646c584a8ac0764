//! Why a node does not start, or stops: each says what, where and what to do, in one line.
use std::{io, path::PathBuf};

use detcd_core::{
    replica::Halt,
    types::{ClusterId, MemberId},
};

/// How a node's run ended.
#[derive(Debug)]
pub enum ExitReason {
    /// It was asked to stop.
    Stopped,
    Failed(Failure),
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot {action} {path}: {error}; check the directory, its owner and the space left")]
    Disk { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{path} is in use by another process; stop that one, or give this one its own --data-dir")]
    Locked { path: PathBuf },
    #[error(
        "the log is damaged: {path}, offset {offset}: {reason}; nothing was changed; restore the file, or remove this \
         member from the cluster and add it anew with an empty directory"
    )]
    Damaged { path: PathBuf, offset: u64, reason: String },
    #[error("the log in {path} makes no sense: {reason}; nothing was changed; restore the directory from a backup")]
    Log { path: PathBuf, reason: String },
    #[error(
        "the state is damaged: {path}, offset {offset}: {reason}; nothing was changed; restore the file, or remove this \
         member from the cluster and add it anew with an empty directory"
    )]
    DamagedState { path: PathBuf, offset: u64, reason: String },
    #[error("{path}: {reason}; nothing was changed")]
    Unsupported { path: PathBuf, reason: String },
    #[error(
        "{path} holds a state, but {wal} no log: they do not belong together; give back the log, or empty the data \
         directory"
    )]
    StrayState { path: PathBuf, wal: PathBuf },
    #[error(
        "cannot join the cluster: {reason}; check --initial-cluster, and that this member was added (etcdctl member \
         add) with the peer URLs {urls:?}"
    )]
    Join { reason: String, urls: Vec<String> },
    #[error("cannot listen on {url} for {role}: {error}; {} with {flag}", remedy(error))]
    Listen { role: &'static str, flag: &'static str, url: String, error: io::Error },
    #[error(
        "--initial-cluster has no member {name:?} with the peer URLs {urls:?}; it must list this member as --name and \
         --initial-advertise-peer-urls give it"
    )]
    NotInCluster { name: String, urls: Vec<String> },
    #[error("{0}; remove this member from the cluster and add it anew with an empty directory")]
    Halted(#[from] Halt),
    #[error(
        "the log could not be written: {path}: {error}; what was not acknowledged may be lost; check the disk, then \
         start again"
    )]
    LogWrite { path: PathBuf, error: io::Error },
    #[error("the cluster {cluster} removed member {member} for good; add a new member with an empty directory")]
    Removed { member: MemberId, cluster: ClusterId },
}

/// For an address at which nobody can listen.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "free the port, or choose another",
        io::ErrorKind::PermissionDenied => "choose a port that this user may have",
        _ => "give an address that this machine has",
    }
}
