//! etcd's gRPC API: requests in, core types out. One file a service.
mod check;
mod cluster;
mod convert;
mod health;
mod kv;
mod long_reads;
mod maintenance;
mod serve;
mod status;
mod watch;

use std::sync::Arc;

use detcd_core::{
    error::Refusal,
    types::{Revision, Term, TraceId},
};
use tonic::{Status, metadata::MetadataMap};

pub use self::{long_reads::LongReads, serve::serve};
use crate::{host::Host, inbox::Handle, metrics::Metrics, proto::etcdserverpb::ResponseHeader};

/// The metadata key under which a caller may mark its request, to find it again in what the node notes.
pub const TRACE_KEY: &str = "detcd-trace";

/// What every service needs.
#[derive(Clone)]
pub struct Api {
    pub handle: Handle,
    pub limits: Limits,
    pub metrics: Arc<Metrics>,
    /// For deadlines, and for what other members must be asked.
    pub host: Host,
    pub long_reads: LongReads,
}

/// What a request may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub txn_ops_max: usize,
}

impl Api {
    fn header(&self, revision: Revision, term: Term) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.handle.cluster.0,
            member_id: self.handle.member.0,
            revision: revision.0,
            raft_term: term.0,
        })
    }

    /// A client may insist on a member that knows a leader.
    fn check_leader(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let wanted = metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        if wanted && self.handle.status().leader.0 == 0 {
            return Err(status::status(Refusal::NoLeader));
        }
        Ok(())
    }
}

fn trace(metadata: &MetadataMap) -> TraceId {
    let text = metadata.get(TRACE_KEY).and_then(|value| value.to_str().ok());
    TraceId(text.and_then(|text| text.parse().ok()).unwrap_or_default())
}
