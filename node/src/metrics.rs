//! What the node counts about itself, and how that reads to Prometheus, under etcd's names.
mod calls;

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use detcd_core::{
    event::{NodeEvent, Role},
    machine::Machine,
    replica::Status,
    types::MemberId,
};

pub use self::calls::{Call, Calls, Method};
use crate::{config::ETCD_VERSION, host::Vitals};

/// Upper bounds in seconds of etcd's histogram of log fsyncs: 1 ms doubling to 8.192 s.
const FSYNC_BUCKETS: usize = 14;

/// One node's; never shared between nodes of a process.
#[derive(Default)]
pub struct Metrics {
    has_leader: AtomicU64,
    is_leader: AtomicU64,
    leader: AtomicU64,
    leader_changes: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
    pending: AtomicU64,
    failed: AtomicU64,
    revision: AtomicU64,
    compacted: AtomicU64,
    store_bytes: AtomicU64,
    fsync: [AtomicU64; FSYNC_BUCKETS],
    fsync_count: AtomicU64,
    fsync_micros: AtomicU64,
    peers_connected: AtomicU64,
    watchers: AtomicU64,
    pub calls: Calls,
}

impl Metrics {
    pub fn observe(&self, event: &NodeEvent) {
        match event {
            NodeEvent::RoleChanged { role, leader, .. } => {
                self.is_leader.store(u64::from(*role == Role::Leader), Relaxed);
                let known = *leader != MemberId(0);
                self.has_leader.store(u64::from(known), Relaxed);
                if known && self.leader.swap(leader.0, Relaxed) != leader.0 {
                    self.leader_changes.fetch_add(1, Relaxed);
                }
            }
            NodeEvent::Refused { .. } => {
                self.failed.fetch_add(1, Relaxed);
            }
            NodeEvent::PeerConnected { .. } => {
                self.peers_connected.fetch_add(1, Relaxed);
            }
            NodeEvent::PeerLost { .. } => {
                self.peers_connected.fetch_sub(1, Relaxed);
            }
            _ => {}
        }
    }

    pub fn status(&self, status: &Status, machine: &Machine, pending: usize) {
        self.watchers.store(status.watches as u64, Relaxed);
        self.committed.store(status.committed.0, Relaxed);
        self.applied.store(status.applied.0, Relaxed);
        self.pending.store(pending as u64, Relaxed);
        self.revision.store(machine.store.revision().0 as u64, Relaxed);
        self.compacted.store(machine.store.compacted().0 as u64, Relaxed);
        self.store_bytes.store(machine.store.bytes(), Relaxed);
    }

    pub fn log_synced(&self, took: Duration) {
        let millis = took.as_secs_f64() * 1e3;
        let bucket = (0..FSYNC_BUCKETS).find(|n| millis <= f64::from(1u32 << n));
        if let Some(bucket) = bucket {
            self.fsync[bucket].fetch_add(1, Relaxed);
        }
        self.fsync_count.fetch_add(1, Relaxed);
        self.fsync_micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    /// Prometheus' text format.
    pub fn render(&self, member: MemberId, vitals: Option<Vitals>) -> String {
        let mut out = String::with_capacity(4096);
        let mut plain = |name: &str, kind: &str, help: &str, value: &AtomicU64| {
            let value = value.load(Relaxed);
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        plain("etcd_server_has_leader", "gauge", "Whether a leader is known: 1 if so.", &self.has_leader);
        plain("etcd_server_is_leader", "gauge", "Whether this member leads: 1 if so.", &self.is_leader);
        plain(
            "etcd_server_leader_changes_seen_total",
            "counter",
            "How often another leader came to be known.",
            &self.leader_changes,
        );
        plain("etcd_server_proposals_committed_total", "gauge", "The commit index.", &self.committed);
        plain("etcd_server_proposals_applied_total", "gauge", "The applied index.", &self.applied);
        plain("etcd_server_proposals_pending", "gauge", "Requests that wait for consensus.", &self.pending);
        plain("etcd_server_proposals_failed_total", "counter", "Requests that were refused.", &self.failed);
        plain("etcd_debugging_mvcc_current_revision", "gauge", "The store's revision.", &self.revision);
        plain("etcd_debugging_mvcc_compact_revision", "gauge", "The compacted revision.", &self.compacted);
        plain("etcd_mvcc_db_total_size_in_bytes", "gauge", "Bytes of all versions held.", &self.store_bytes);
        plain("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Bytes of all versions held.", &self.store_bytes);
        plain("etcd_debugging_mvcc_watcher_total", "gauge", "Watches that there are.", &self.watchers);
        plain("detcd_peers_connected", "gauge", "Peers that this member has a stream to.", &self.peers_connected);
        self.render_fsync(&mut out);
        self.calls.render(&mut out);
        if let Some(vitals) = vitals {
            render_vitals(&mut out, vitals);
        }
        let _ = write!(
            out,
            "# HELP etcd_server_id This member.\n# TYPE etcd_server_id gauge\netcd_server_id{{server_id=\"{member}\"}} 1\n\
             # HELP etcd_server_version The version.\n# TYPE etcd_server_version gauge\n\
             etcd_server_version{{server_version=\"{ETCD_VERSION}\"}} 1\n"
        );
        out
    }

    fn render_fsync(&self, out: &mut String) {
        let name = "etcd_disk_wal_fsync_duration_seconds";
        let _ = write!(out, "# HELP {name} How long the log's syncs took.\n# TYPE {name} histogram\n");
        let mut sum = 0;
        for (n, bucket) in self.fsync.iter().enumerate() {
            sum += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {sum}", f64::from(1u32 << n) / 1e3);
        }
        let (count, micros) = (self.fsync_count.load(Relaxed), self.fsync_micros.load(Relaxed));
        let _ = write!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {}\n{name}_count {count}\n",
            micros as f64 / 1e6
        );
    }
}

fn render_vitals(out: &mut String, vitals: Vitals) {
    let mut plain = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    plain("process_resident_memory_bytes", "gauge", "Resident memory.", vitals.resident_bytes as f64);
    plain("process_open_fds", "gauge", "Open files.", vitals.open_files as f64);
    plain("process_max_fds", "gauge", "Files that may be open.", vitals.files_max as f64);
    plain("process_cpu_seconds_total", "counter", "Processor time used.", vitals.cpu_seconds);
    plain("process_start_time_seconds", "gauge", "When the process started, since 1970.", vitals.started);
}
