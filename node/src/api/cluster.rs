//! etcdserverpb.Cluster: who the members are.
use detcd_core::types::Revision;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, status::status};
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    cluster_server::Cluster,
};

fn unimplemented<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("changing the membership is not implemented yet"))
}

#[async_trait]
impl Cluster for Api {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let linearizable = request.into_inner().linearizable;
        let view = if linearizable { self.handle.read().await } else { self.handle.view().await };
        let view = view.map_err(status)?;
        let members = view.membership.members().map(|member| Member {
            id: member.id.0,
            name: member.name.clone(),
            peer_ur_ls: member.peer_urls.clone(),
            client_ur_ls: member.client_urls.clone(),
            is_learner: member.is_learner,
        });
        // etcd leaves the revision out of this service's headers.
        let header = self.header(Revision(0), self.handle.status().term);
        Ok(Response::new(MemberListResponse { header, members: members.collect() }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        unimplemented()
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        unimplemented()
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        unimplemented()
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        unimplemented()
    }
}
