//! An operator: changes the membership by hand, over the real gRPC client, as `etcdctl member` does.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use detcd_node::{api::TRACE_KEY, host::Net, proto::etcdserverpb as pb};
use tonic::{Code, Status};

use super::Channel;
use crate::{
    history::{CHANGE_TRACE, Change, Event, NodeNumber, Peer, Refused, Text},
    world::recorder::Recorder,
};

/// As long as `etcdctl` waits.
const PATIENCE: Duration = Duration::from_secs(5);

type ClusterClient = pb::cluster_client::ClusterClient<Channel>;
type MaintenanceClient = pb::maintenance_client::MaintenanceClient<Channel>;

pub struct Operator {
    net: Arc<dyn Net>,
    recorder: Recorder,
    /// Of what was asked so far.
    count: AtomicU64,
}

impl Operator {
    pub fn new(net: Arc<dyn Net>, recorder: &Recorder) -> Operator {
        Operator { net, recorder: recorder.clone(), count: AtomicU64::new(0) }
    }

    /// Asks this node. Answers with the members as they are then; nothing is told of them when leadership moves.
    pub async fn ask(&self, node: NodeNumber, what: Change) -> Result<Vec<Peer>, Refused> {
        let change = self.count.fetch_add(1, Relaxed) + 1;
        self.recorder.record(Event::Asked { change, node, what: what.clone() });
        let answer = within(self.send(change, node, what)).await;
        let outcome = answer.map_err(|status| Refused {
            definite: is_definite(&status),
            why: Arc::from(format!("{:?}: {}", status.code(), status.message())),
        });
        self.recorder.record(Event::Told { change, outcome: outcome.clone() });
        outcome
    }

    /// Who is in the cluster, as this node knows it, and if it is asked for linearizably a quorum.
    pub async fn list(&self, node: NodeNumber, linearizable: bool) -> Option<Vec<Peer>> {
        let request = pb::MemberListRequest { linearizable };
        let list = async { Ok(self.cluster(node).await?.member_list(request).await?.into_inner().members) };
        Some(within(list).await.ok()?.into_iter().map(peer).collect())
    }

    async fn send(&self, change: u64, node: NodeNumber, what: Change) -> Result<Vec<Peer>, Status> {
        let own = |urls: Vec<Text>| urls.iter().map(|url| url.to_string()).collect();
        let members = match what {
            Change::MoveLeader { to } => {
                let channel = self.connect(node).await?;
                let mut maintenance = MaintenanceClient::with_origin(channel, Channel::origin(node));
                maintenance.move_leader(pb::MoveLeaderRequest { target_id: to }).await?;
                return Ok(Vec::new());
            }
            Change::Add { url, learner } => {
                let request = pb::MemberAddRequest { peer_ur_ls: own(vec![url]), is_learner: learner };
                self.cluster(node).await?.member_add(marked(change, request)).await?.into_inner().members
            }
            Change::Promote { member } => {
                let request = pb::MemberPromoteRequest { id: member };
                self.cluster(node).await?.member_promote(marked(change, request)).await?.into_inner().members
            }
            Change::Remove { member } => {
                let request = pb::MemberRemoveRequest { id: member };
                self.cluster(node).await?.member_remove(marked(change, request)).await?.into_inner().members
            }
            Change::Update { member, urls } => {
                let request = pb::MemberUpdateRequest { id: member, peer_ur_ls: own(urls) };
                self.cluster(node).await?.member_update(marked(change, request)).await?.into_inner().members
            }
        };
        Ok(members.into_iter().map(peer).collect())
    }

    async fn cluster(&self, node: NodeNumber) -> Result<ClusterClient, Status> {
        Ok(ClusterClient::with_origin(self.connect(node).await?, Channel::origin(node)))
    }

    async fn connect(&self, node: NodeNumber) -> Result<Channel, Status> {
        let channel = Channel::connect(&*self.net, node, PATIENCE).await;
        channel.map_err(|error| Status::failed_precondition(format!("nobody was asked: {error}")))
    }
}

fn marked<T>(change: u64, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(TRACE_KEY, (CHANGE_TRACE | change).into());
    request
}

async fn within<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let silence = || Status::deadline_exceeded("no answer in time");
    madsim::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(silence()))
}

/// Whether what was asked for certainly never takes effect.
fn is_definite(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists => true,
        Code::ResourceExhausted | Code::Unimplemented => true,
        Code::Unavailable => status.message() == "etcdserver: unhealthy cluster",
        _ => false,
    }
}

fn peer(member: pb::Member) -> Peer {
    let urls = member.peer_ur_ls.iter().map(|url| Arc::from(url.as_str())).collect();
    Peer { member: member.id, name: Arc::from(member.name), urls, learner: member.is_learner }
}
