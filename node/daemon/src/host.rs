//! The real world: one of the two places that build a [`Host`].
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use detcd_node::{
    event::{NodeEvent, Role},
    host::{Clock, Host, Probe, Sleep, Vitals},
};

use crate::{files::Files, net::Sockets, tls::Tls, vitals};

/// `files_max`: how many files may be open.
pub fn real(tls: Tls, files_max: u64) -> Host {
    Host {
        disk: Arc::new(Files::new()),
        net: Arc::new(Sockets::new(tls, files_max)),
        clock: Arc::new(SystemClock { origin: Instant::now() }),
        probe: Arc::new(Logger),
        // The standard library's hash keys are the kernel's randomness.
        seed: RandomState::new().build_hasher().finish(),
    }
}

struct SystemClock {
    origin: Instant,
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(time))
    }
}

/// Facts an operator looks for, in the words in which etcd's tools look for them.
struct Logger;

impl Probe for Logger {
    fn vitals(&self) -> Option<Vitals> {
        vitals::read().ok()
    }

    fn note(&self, event: NodeEvent) {
        match event {
            NodeEvent::Recovered { term, commit, last, .. } => {
                tracing::info!(%term, %commit, %last, "starting member");
            }
            NodeEvent::RoleChanged { role: Role::Leader, term, .. } => tracing::info!(%term, "became leader"),
            NodeEvent::RoleChanged { role: Role::Follower, term, leader } if leader.0 != 0 => {
                tracing::info!(%term, %leader, "following a leader");
            }
            NodeEvent::RoleChanged { term, leader, .. } if leader.0 == 0 => tracing::info!(%term, "lost the leader"),
            NodeEvent::PeerConnected { peer } => tracing::info!(%peer, "peer became active"),
            NodeEvent::PeerLost { peer } => tracing::warn!(%peer, "peer became inactive"),
            NodeEvent::SegmentStarted { sequence, first } => {
                tracing::info!(sequence, %first, "created a new WAL segment");
            }
            NodeEvent::CheckpointDone { index } => tracing::info!(%index, "saved snapshot"),
            NodeEvent::SegmentRemoved { sequence } => tracing::info!(sequence, "purged a WAL segment"),
            NodeEvent::SnapshotSent { to, index } => tracing::info!(%to, %index, "sending database snapshot"),
            NodeEvent::SnapshotReported { to, delivered: true } => tracing::info!(%to, "sent database snapshot"),
            NodeEvent::SnapshotInstalled { index, revision, .. } => {
                tracing::info!(%index, %revision, "applied snapshot");
            }
            NodeEvent::ConfigurationApplied { index, voters, learners, valid: true } => {
                tracing::info!(%index, ?voters, ?learners, "applied a configuration change");
            }
            NodeEvent::HandingOver { to } => tracing::info!(%to, "leadership transfer starting"),
            NodeEvent::Removed => tracing::warn!("the member has been permanently removed from the cluster"),
            NodeEvent::DiskStalled { since_ms } => {
                tracing::error!(since_ms, "the disk does not answer; gave up leadership");
            }
            NodeEvent::Serving => tracing::info!("ready to serve client requests"),
            // Why a run failed is told on its last line, once.
            NodeEvent::Stopped { .. } => {}
            _ => {}
        }
    }
}
