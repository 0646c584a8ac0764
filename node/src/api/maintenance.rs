//! etcdserverpb.Maintenance: how this member stands.
use bytes::Bytes;
use detcd_core::{machine::Machine, replica::State, types::MemberId};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tonic::{Request, Response, Status, async_trait};

use super::{Api, status::status};
use crate::{
    config::{CLUSTER_VERSION, ETCD_VERSION},
    proto::etcdserverpb::{
        AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo, DowngradeRequest,
        DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
        MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
        alarm_request::AlarmAction, maintenance_server::Maintenance,
    },
    snapshots::Image,
};

/// What clients are told the database may grow to, in bytes: etcd's default.
const QUOTA_BYTES: i64 = 2 << 30;
/// Bytes a database takes before anything is in it, so that nobody divides by zero.
const EMPTY_BYTES: i64 = 20_480;

/// Bytes of the file in one message: etcd's.
const PIECE_BYTES: usize = 32 << 10;

fn pieces(image: Image, version: String) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    struct Sending {
        image: Image,
        remaining: u64,
        ahead: Bytes,
        done: bool,
        version: String,
    }
    let start = Sending { remaining: image.total_len(), image, ahead: Bytes::new(), done: false, version };
    stream::unfold(start, |mut sending| async move {
        if sending.done {
            return None;
        }
        if sending.ahead.is_empty() {
            match sending.image.next().await {
                Some(chunk) => sending.ahead = chunk.into(),
                None => {
                    sending.done = true;
                    let sha256 = sending.image.sha256().expect("it was asked for");
                    let blob = Bytes::copy_from_slice(&sha256);
                    let version = sending.version.clone();
                    return Some((Ok(SnapshotResponse { remaining_bytes: 0, blob, version, header: None }), sending));
                }
            }
        }
        let blob = sending.ahead.split_to(PIECE_BYTES.min(sending.ahead.len()));
        sending.remaining -= blob.len() as u64;
        let (remaining_bytes, version) = (sending.remaining, sending.version.clone());
        Some((Ok(SnapshotResponse { remaining_bytes, blob, version, header: None }), sending))
    })
}

fn unimplemented<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{what} is not implemented yet")))
}

#[async_trait]
impl Maintenance for Api {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let view = self.handle.view().await.map_err(status)?;
        let now = self.handle.status();
        let size = EMPTY_BYTES + view.store.bytes() as i64;
        let errors = if now.leader.0 == 0 { vec!["etcdserver: no leader".to_owned()] } else { Vec::new() };
        Ok(Response::new(StatusResponse {
            header: self.header(view.store.revision(), now.term),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            leader: now.leader.0,
            raft_index: now.committed.0,
            raft_term: now.term.0,
            raft_applied_index: now.applied.0,
            errors,
            db_size_in_use: size,
            is_learner: view.membership.get(self.handle.member).is_some_and(|member| member.is_learner),
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: QUOTA_BYTES,
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// Nothing raises an alarm yet, so the list is empty.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        match AlarmAction::try_from(request.into_inner().action) {
            Ok(AlarmAction::Get) => {
                let view = self.handle.view().await.map_err(status)?;
                let header = self.header(view.store.revision(), self.handle.status().term);
                Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }))
            }
            _ => unimplemented("raising and disarming alarms"),
        }
    }

    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        unimplemented("defragmentation")
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        unimplemented("hashing the backend")
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        unimplemented("hashing the store")
    }

    type SnapshotStream = BoxStream<'static, Result<SnapshotResponse, Status>>;

    /// The state as of now, as a file: its bytes, then their SHA-256 as a message of its own.
    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let view = self.handle.view().await.map_err(status)?;
        let version = view.cluster_version.as_deref().unwrap_or_default().to_owned();
        let image = Image::with_sha256(State(Box::new(Machine::clone(&view)))).await;
        drop(view);
        Ok(Response::new(pieces(image, version).boxed()))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let to = MemberId(request.into_inner().target_id);
        self.handle.transfer(to).await.map_err(status)?;
        Ok(Response::new(MoveLeaderResponse { header: None })) // etcd gives none
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        unimplemented("downgrading")
    }
}
