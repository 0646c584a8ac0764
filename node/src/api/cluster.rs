//! etcdserverpb.Cluster: who the members are, and changes of that.
use std::time::Duration;

use detcd_core::{
    error::Refusal,
    limits::REQUEST_WAIT_MS,
    machine::membership::{self, Membership},
    replica::{self, ChangeRequest},
    types::{MemberId, Revision, TraceId},
};
use tonic::{Request, Response, Status, async_trait};

use super::{Api, status::status, trace};
use crate::{
    config::parse_url,
    peers::ask_to_promote,
    proto::etcdserverpb::{
        Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
        MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
        ResponseHeader, cluster_server::Cluster,
    },
};

/// Between two looks whether changes of the membership are there to stay.
const SETTLING: Duration = Duration::from_millis(10);
/// Between two attempts to find a leader.
const RETRY: Duration = Duration::from_millis(100);

#[async_trait]
impl Cluster for Api {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let linearizable = request.into_inner().linearizable;
        let view = if linearizable { self.handle.read().await } else { self.handle.view().await };
        let view = view.map_err(status)?;
        self.settled().await?;
        Ok(Response::new(MemberListResponse { header: self.plain_header(), members: members(&view.membership) }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let trace = trace(request.metadata());
        let MemberAddRequest { peer_ur_ls: urls, is_learner } = request.into_inner();
        let urls = check_urls(urls)?;
        let member = membership::Member::added(urls, is_learner, self.host.clock.wall().as_secs());
        let id = member.id;
        let membership = self.handle.change(ChangeRequest::Add(member), trace).await.map_err(status)?;
        let member = membership.get(id).map(convert);
        Ok(Response::new(MemberAddResponse { header: self.plain_header(), member, members: members(&membership) }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let trace = trace(request.metadata());
        let id = MemberId(request.into_inner().id);
        let membership = self.handle.change(ChangeRequest::Remove(id), trace).await.map_err(status)?;
        Ok(Response::new(MemberRemoveResponse { header: self.plain_header(), members: members(&membership) }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let trace = trace(request.metadata());
        let MemberUpdateRequest { id, peer_ur_ls: urls } = request.into_inner();
        let change = ChangeRequest::UpdatePeers(MemberId(id), check_urls(urls)?);
        let membership = self.handle.change(change, trace).await.map_err(status)?;
        Ok(Response::new(MemberUpdateResponse { header: self.plain_header(), members: members(&membership) }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let trace = trace(request.metadata());
        let id = MemberId(request.into_inner().id);
        let members = self.promote(id, trace).await.map_err(status)?;
        Ok(Response::new(MemberPromoteResponse { header: self.plain_header(), members }))
    }
}

impl Api {
    /// etcd leaves the revision out of this service's headers.
    fn plain_header(&self) -> Option<ResponseHeader> {
        self.header(Revision(0), self.handle.status().term)
    }

    /// As whoever asked for a change, so others are told of it only when it can be taken back no more.
    async fn settled(&self) -> Result<(), Status> {
        let begun = self.host.clock.now();
        loop {
            let replica::Status { changes_are_durable, is_untold, .. } = self.handle.status();
            if changes_are_durable && !is_untold {
                return Ok(());
            }
            if self.host.clock.now().saturating_sub(begun).as_millis() as u64 >= REQUEST_WAIT_MS {
                return Err(status(Refusal::Timeout));
            }
            self.host.clock.sleep(SETTLING).await;
        }
    }

    /// Only the leader can tell whether the learner is ready; whoever else is asked asks it.
    async fn promote(&self, id: MemberId, trace: TraceId) -> Result<Vec<Member>, Refusal> {
        let begun = self.host.clock.now();
        loop {
            match self.handle.change(ChangeRequest::Promote(id), trace).await {
                Ok(membership) => return Ok(members(&membership)),
                Err(Refusal::NotLeader) => {}
                Err(refusal) => return Err(refusal),
            }
            let leader = self.handle.status().leader;
            let view = self.handle.view().await?;
            if let Some(leader) = view.membership.get(leader) {
                for url in &leader.peer_urls {
                    match ask_to_promote(&self.host, url, id).await {
                        Ok(list) => return Ok(list.iter().map(convert).collect()),
                        // Somebody else may lead by now.
                        Err(None) => {}
                        Err(Some(refusal)) => return Err(refusal),
                    }
                }
            }
            if self.host.clock.now().saturating_sub(begun).as_millis() as u64 >= REQUEST_WAIT_MS {
                return Err(Refusal::Timeout);
            }
            self.host.clock.sleep(RETRY).await;
        }
    }
}

/// As etcd wants them: some, each with a host and a port and nothing else.
fn check_urls(mut urls: Vec<String>) -> Result<Vec<String>, Status> {
    urls.sort();
    let valid = !urls.is_empty() && urls.iter().all(|url| parse_url(url).is_some());
    if valid { Ok(urls) } else { Err(status(Refusal::BadMemberUrls)) }
}

fn members(membership: &Membership) -> Vec<Member> {
    membership.members().map(convert).collect()
}

fn convert(member: &membership::Member) -> Member {
    Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}
