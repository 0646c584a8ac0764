//! What a node is told at its start. The daemon makes it of flags, the simulator of a scenario.
use std::{path::PathBuf, time::Duration};

use detcd_core::{limits, machine::membership::Member};

/// The etcd whose behaviour this is, as reported to clients and peers, who act on it.
pub const ETCD_VERSION: &str = "3.6.16";
/// What a cluster founded by this version agrees on.
pub const CLUSTER_VERSION: &str = "3.6.0";

#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    /// `member/wal` in the data directory, unless told otherwise.
    pub wal_dir: Option<PathBuf>,
    /// URLs, as the world's network takes them.
    pub listen_client_urls: Vec<String>,
    pub listen_peer_urls: Vec<String>,
    /// URLs, as told to others.
    pub advertise_client_urls: Vec<String>,
    pub advertise_peer_urls: Vec<String>,
    /// The founding members, or some of those to ask; looked at only while there is no data.
    pub initial_cluster: Vec<Founder>,
    pub initial_cluster_state: ClusterState,
    pub initial_cluster_token: String,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    pub segment_bytes: u64,
    /// Log segments to keep although a checkpoint made them superfluous; 0 keeps all.
    pub segments_kept: usize,
    /// `.snap` files to keep; 0 keeps all.
    pub snapshots_kept: usize,
    /// A checkpoint is due when the log since the last one is larger than this, and than a quarter of the state, in bytes.
    pub checkpoint_bytes: u64,
    /// Or when so many entries were applied since, if that is asked for.
    pub checkpoint_entries: Option<u64>,
    /// Bytes of applied entries to keep in memory, for followers that are a little behind.
    pub tail_bytes: u64,
    /// Outputs of one step of the core after which the rest waits for the next one.
    pub outputs_max: usize,
    pub request_bytes_max: usize,
    pub txn_ops_max: usize,
    pub watch_progress_ms: u64,
    pub keep_alive: KeepAlive,
    /// Long reads that run at a time; more wait.
    pub long_reads: usize,
}

/// When a client that is silent is asked whether it is still there, and how long it may take to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    pub interval: Duration,
    pub timeout: Duration,
}

impl KeepAlive {
    pub const DEFAULT: KeepAlive = KeepAlive {
        interval: Duration::from_millis(limits::KEEP_ALIVE_MS),
        timeout: Duration::from_millis(limits::KEEP_ALIVE_TIMEOUT_MS),
    };
}

/// Whether a member without data founds its cluster or joins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    New,
    Existing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    pub name: String,
    pub peer_urls: Vec<String>,
}

impl Config {
    /// A node called `name` that is a cluster of its own on etcd's default ports.
    pub fn new(name: &str, data_dir: impl Into<PathBuf>) -> Config {
        let (client_url, peer_url) = ("http://localhost:2379".to_owned(), "http://localhost:2380".to_owned());
        Config {
            name: name.to_owned(),
            data_dir: data_dir.into(),
            wal_dir: None,
            listen_client_urls: vec![client_url.clone()],
            listen_peer_urls: vec![peer_url.clone()],
            advertise_client_urls: vec![client_url],
            advertise_peer_urls: vec![peer_url.clone()],
            initial_cluster: vec![Founder { name: name.to_owned(), peer_urls: vec![peer_url] }],
            initial_cluster_state: ClusterState::New,
            initial_cluster_token: "etcd-cluster".into(),
            heartbeat_ms: limits::HEARTBEAT_MS,
            election_ms: limits::ELECTION_MS,
            segment_bytes: limits::SEGMENT_BYTES,
            segments_kept: limits::SEGMENTS_KEPT,
            snapshots_kept: limits::SNAPSHOTS_KEPT,
            checkpoint_bytes: limits::CHECKPOINT_BYTES,
            checkpoint_entries: None,
            tail_bytes: limits::TAIL_BYTES,
            outputs_max: limits::OUTPUTS_MAX,
            request_bytes_max: limits::REQUEST_BYTES_MAX,
            txn_ops_max: limits::TXN_OPS_MAX,
            watch_progress_ms: limits::WATCH_PROGRESS_MS,
            keep_alive: KeepAlive::DEFAULT,
            long_reads: limits::LONG_READS,
        }
    }

    pub fn wal_dir(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.data_dir.join("member/wal"))
    }

    pub fn snap_dir(&self) -> PathBuf {
        self.data_dir.join("member/snap")
    }

    /// The founding members with their ids.
    pub fn founders(&self) -> Vec<Member> {
        let member =
            |founder: &Founder| Member::founding(&founder.name, founder.peer_urls.clone(), &self.initial_cluster_token);
        self.initial_cluster.iter().map(member).collect()
    }
}

/// `http://host:port` without its scheme, and whether the scheme, then `https`, asks for TLS.
pub fn parse_url(url: &str) -> Option<(&str, bool)> {
    let (rest, tls) = match url.split_once("://")? {
        ("http", rest) => (rest, false),
        ("https", rest) => (rest, true),
        _ => return None,
    };
    let (host, port) = rest.rsplit_once(':')?;
    (!host.is_empty() && !rest.contains('/') && port.parse::<u16>().is_ok()).then_some((rest, tls))
}
