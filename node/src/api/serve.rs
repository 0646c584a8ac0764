//! The client port: gRPC over HTTP/2 and plain HTTP/1.1 on one listener, over whatever streams the world gives.
//!
//! tonic's generated services run on hyper's connections directly, so that the same bytes flow in both worlds. What
//! tonic's own transport would have done is done here: deadlines, limits, and the wording of what is too large.
use std::{
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use detcd_core::{
    error::Refusal,
    limits::{FIRST_REQUEST_MS, GRPC_MESSAGE_BYTES_MAX},
};
use http::{HeaderMap, Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{Api, status::status};
use crate::{
    config::KeepAlive,
    host::Listener,
    http as plain,
    metrics::{Call, Method},
    proto::{
        etcdserverpb::{
            cluster_server::ClusterServer, kv_server::KvServer, maintenance_server::MaintenanceServer,
            watch_server::WatchServer,
        },
        health::health_server::HealthServer,
    },
    timer::{Introduced, NodeTimer},
};

/// Streams a client may reset before the server has looked at them; kube-apiserver cancels in storms.
const PENDING_RESETS_MAX: usize = 1_000;

/// What a member that only listens answers. (Of ranges, the serializable ones; see `kv.rs`.)
const FOR_LEARNERS: [&str; 3] =
    ["/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"];

/// Accepts clients for as long as the node runs. Whoever says nothing, or is gone without a word, is parted from.
pub async fn serve(api: Api, mut listener: Box<dyn Listener>, keep_alive: KeepAlive) {
    let (clock, patience) = (api.host.clock.clone(), Duration::from_millis(FIRST_REQUEST_MS));
    let services = Services::new(api);
    let mut builder = auto::Builder::new(Spawner);
    builder
        .http2()
        .timer(NodeTimer(clock.clone()))
        .keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout)
        .auto_date_header(false)
        .max_concurrent_streams(None)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_header_list_size(64 << 10);
    builder.http1().timer(NodeTimer(clock.clone())).header_read_timeout(patience);
    let builder = Arc::new(builder);
    loop {
        match listener.accept().await {
            Ok(io) => {
                let io = Introduced::new(io, clock.sleep(patience));
                let (builder, services) = (builder.clone(), services.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| services.clone().respond(request));
                    // How a client's connection ends is its own business.
                    let _ = builder.serve_connection(TokioIo::new(io), service).await;
                });
            }
            Err(error) => {
                tracing::warn!(target: "api", %error, "cannot accept a client's connection; trying on");
                clock.sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[derive(Clone)]
struct Services {
    kv: KvServer<Api>,
    watch: WatchServer<Api>,
    cluster: ClusterServer<Api>,
    maintenance: MaintenanceServer<Api>,
    health: HealthServer<Api>,
    api: Api,
}

impl Services {
    fn new(api: Api) -> Services {
        let shared = Arc::new(api.clone());
        Services {
            kv: KvServer::from_arc(shared.clone()).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX),
            watch: WatchServer::from_arc(shared.clone()).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX),
            cluster: ClusterServer::from_arc(shared.clone()),
            maintenance: MaintenanceServer::from_arc(shared.clone()),
            health: HealthServer::from_arc(shared),
            api,
        }
    }

    async fn respond(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc {
            return Ok(plain::respond(&self.api.handle, &self.api.metrics, &*self.api.host.probe, &request).await);
        }
        let metrics = self.api.metrics.clone();
        let call = Method::of(request.uri().path()).map(|method| Call::begin(metrics, method));
        let deadline = deadline(request.headers());
        let request = request.map(Body::new);
        let path = request.uri().path();
        let response = match service_of(path) {
            _ if self.api.handle.status().is_learner && !FOR_LEARNERS.contains(&path) => {
                status(Refusal::NotForLearners).into_http()
            }
            "etcdserverpb.KV" => self.within(deadline, |services| services.kv.call(request)).await,
            "etcdserverpb.Watch" => self.within(deadline, |services| services.watch.call(request)).await,
            "etcdserverpb.Cluster" => self.within(deadline, |services| services.cluster.call(request)).await,
            "etcdserverpb.Maintenance" => self.within(deadline, |services| services.maintenance.call(request)).await,
            "grpc.health.v1.Health" => self.within(deadline, |services| services.health.call(request)).await,
            "etcdserverpb.Lease" => Status::unimplemented("leases are not implemented yet").into_http(),
            "etcdserverpb.Auth" => Status::unimplemented("users and roles are not implemented yet").into_http(),
            "v3lockpb.Lock" | "v3electionpb.Election" => {
                Status::unimplemented("locks and elections need leases, which are not implemented yet").into_http()
            }
            service => Status::unimplemented(format!("unknown service {service}")).into_http(),
        };
        let response = reword_too_large(response);
        Ok(match call {
            Some(call) => call.answer(response),
            None => response,
        })
    }

    /// Gives up when the client's time is up, as it does itself.
    async fn within<F>(&mut self, deadline: Option<Duration>, call: impl FnOnce(&mut Self) -> F) -> Response<Body>
    where
        F: Future<Output = Result<Response<Body>, Infallible>>,
    {
        let late = deadline.map(|deadline| self.api.host.clock.sleep(deadline));
        let call = call(self);
        let Some(late) = late else { return always(call.await) };
        futures::pin_mut!(call);
        match futures::future::select(call, late).await {
            futures::future::Either::Left((response, _)) => always(response),
            futures::future::Either::Right(..) => Status::deadline_exceeded("context deadline exceeded").into_http(),
        }
    }
}

fn always<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// `/package.Service/Method` without the method.
fn service_of(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

/// `grpc-timeout`: up to eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// tonic calls a request over the limit OutOfRange; Go's gRPC, which clients know, ResourceExhausted.
fn reword_too_large(mut response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    let Some(sizes) = status.message().strip_prefix("Error, decoded message length too large: found ") else {
        return response;
    };
    if status.code() == Code::OutOfRange {
        let mut numbers = sizes.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
        let text = format!("grpc: received message larger than max ({found} vs. {limit})");
        response = Status::resource_exhausted(text).into_http();
    }
    response
}

/// hyper's tasks, on whatever runtime the world has. A request that is answered at once never becomes a task.
#[derive(Clone, Copy)]
struct Spawner;

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        // Its own task polls it again, with a waker that counts.
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_defines_them() {
        #[track_caller]
        fn check(text: &str, expected: Option<Duration>) {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(deadline(&headers), expected);
        }
        check("5S", Some(Duration::from_secs(5)));
        check("4999872u", Some(Duration::from_micros(4_999_872)));
        check("1H", Some(Duration::from_secs(3_600)));
        check("123456789m", None);
        check("S", None);
        check("5x", None);
    }
}
