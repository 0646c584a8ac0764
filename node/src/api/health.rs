//! grpc.health.v1: as in etcd, the server as a whole is healthy while it runs, and nothing else is known.
use futures::{StreamExt, stream};
use tonic::{Request, Response, Status, async_trait};

use super::Api;
use crate::proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

#[async_trait]
impl Health for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" => Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving as i32 })),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = stream::BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().service.is_empty();
        let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let first = stream::iter([Ok(HealthCheckResponse { status: status as i32 })]);
        Ok(Response::new(first.chain(stream::pending()).boxed()))
    }
}
