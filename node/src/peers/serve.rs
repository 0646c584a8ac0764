//! The peer listener: who asks for its stream is checked, then gets everything that is meant for it; and what else
//! members ask of each other.
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::Bytes;
use detcd_core::{
    error::Refusal,
    limits::{FIRST_REQUEST_MS, PEER_READ_BYTES},
    machine::membership::Membership,
    replica::ChangeRequest,
    types::{ClusterId, MemberId, TraceId},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{Context, MIN_CLUSTER_VERSION, RUN_HEADER, outgoing, outgoing::Outgoing, parse_version, snapshot};
use crate::{config::ETCD_VERSION, host::Listener, http::version_json, timer::NodeTimer};

/// Accepts peers for as long as the node runs.
pub async fn serve(context: Context, mut listener: Box<dyn Listener>) {
    loop {
        match listener.accept().await {
            Ok(io) => {
                let (context, timer) = (context.clone(), NodeTimer(context.host.clock.clone()));
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let context = context.clone();
                        async move { Ok::<_, Infallible>(respond(&context, request).await) }
                    });
                    // How a connection ends is the dialler's concern: it comes again.
                    let _ = http1::Builder::new()
                        .timer(timer)
                        .header_read_timeout(Duration::from_millis(FIRST_REQUEST_MS))
                        .max_buf_size(PEER_READ_BYTES)
                        .serve_connection(TokioIo::new(io), service)
                        .await;
                });
            }
            Err(error) => {
                tracing::warn!(target: "peers", %error, "cannot accept a peer's connection; trying on");
                context.host.clock.sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What a peer gets: its stream, or a few words.
pub enum Answer {
    Stream(outgoing::Body),
    Text(Full<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Answer::Stream(body) => Pin::new(body).poll_frame(cx),
            Answer::Text(text) => Pin::new(text).poll_frame(cx),
        }
    }
}

async fn respond(context: &Context, request: Request<Incoming>) -> Response<Answer> {
    let mut response = match answer(context, request).await {
        Ok(answer) => Response::new(answer),
        Err((status, reason)) => text(status, reason),
    };
    let headers = response.headers_mut();
    let cluster = context.cluster.to_string();
    headers.insert("X-Etcd-Cluster-ID", cluster.parse().expect("hexadecimal digits"));
    headers.insert("X-Server-Version", ETCD_VERSION.parse().expect("a version"));
    headers.insert(RUN_HEADER, context.run.parse().expect("hexadecimal digits"));
    response
}

type Refused = (StatusCode, String);

async fn answer(context: &Context, request: Request<Incoming>) -> Result<Answer, Refused> {
    let path = request.uri().path();
    if let Some(from) = path.strip_prefix("/raft/stream/message/") {
        return stream(context, &request, from).map(Answer::Stream);
    }
    if let Some(learner) = path.strip_prefix("/members/promote/") {
        method(&request, Method::POST)?;
        let learner = learner.parse().map_err(|_| (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()))?;
        return promote(context, MemberId(learner)).await;
    }
    match path {
        "/raft/snapshot" => snapshot(context, request).await,
        "/members" => {
            method(&request, Method::GET)?;
            Ok(Answer::json(members(&context.directory.lock().membership)))
        }
        "/version" => Ok(Answer::json(version_json(&context.handle))),
        _ => Err((StatusCode::NOT_FOUND, "404 page not found\n".into())),
    }
}

impl Answer {
    fn json(text: String) -> Answer {
        Answer::Text(Full::new(text.into()))
    }
}

/// As etcd lists them: a JSON array.
fn members(membership: &Membership) -> String {
    let members: Vec<_> = membership.members().collect();
    serde_json::to_string(&members).expect("members are plain data")
}

fn method(request: &Request<Incoming>, method: Method) -> Result<(), Refused> {
    let fits = request.method() == method;
    if fits { Ok(()) } else { Err((StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".into())) }
}

async fn snapshot(context: &Context, request: Request<Incoming>) -> Result<Answer, Refused> {
    method(&request, Method::POST)?;
    check_cluster(context, request.headers())?;
    let from = hex(request.headers(), "X-Server-From").map(MemberId);
    if from.is_some_and(|from| context.directory.lock().membership.is_removed(from)) {
        return Err(gone());
    }
    let checksum = match request.headers().get(snapshot::CHECKSUM_HEADER) {
        None => false,
        Some(kind) if kind == snapshot::CHECKSUM_KIND => true,
        Some(kind) => {
            let (known, kind) = (snapshot::CHECKSUM_KIND, String::from_utf8_lossy(kind.as_bytes()));
            let reason = format!("the state comes with a checksum of the kind {kind:?}; known here is {known}\n");
            return Err((StatusCode::PRECONDITION_FAILED, reason));
        }
    };
    match snapshot::take(context, request.into_body(), checksum).await {
        (StatusCode::NO_CONTENT, _) => Err((StatusCode::NO_CONTENT, String::new())),
        refused => Err(refused),
    }
}

/// What another member asks on behalf of its client, since only the leader knows how far a learner is.
async fn promote(context: &Context, learner: MemberId) -> Result<Answer, Refused> {
    match context.handle.change(ChangeRequest::Promote(learner), TraceId(0)).await {
        Ok(membership) => Ok(Answer::json(members(&membership))),
        Err(refusal) => {
            let status = match refusal {
                Refusal::MemberNotFound => StatusCode::NOT_FOUND,
                Refusal::NotLearner | Refusal::LearnerNotReady => StatusCode::PRECONDITION_FAILED,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Err((status, format!("etcdserver: {refusal}\n")))
        }
    }
}

fn gone() -> Refused {
    (StatusCode::GONE, "the member has been permanently removed from the cluster\n".into())
}

fn text(status: StatusCode, text: String) -> Response<Answer> {
    let mut response = Response::new(Answer::Text(Full::new(text.into())));
    *response.status_mut() = status;
    response
}

/// The checks, in etcd's order.
fn stream(context: &Context, request: &Request<Incoming>, from: &str) -> Result<outgoing::Body, Refused> {
    method(request, Method::GET)?;
    let headers = request.headers();
    check_cluster(context, headers)?;
    let not_found = || (StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
    let from = MemberId(u64::from_str_radix(from, 16).map_err(|_| not_found())?);
    if context.directory.lock().membership.is_removed(from) {
        return Err(gone());
    }
    let peer = match context.peer(from) {
        Some(peer) => peer,
        None => {
            // It may have been added without our knowing yet.
            let urls = headers.get("X-PeerURLs").and_then(|urls| urls.to_str().ok());
            let urls = urls.filter(|urls| !urls.is_empty());
            let urls: Vec<_> = urls.into_iter().flat_map(|urls| urls.split(',')).map(str::to_owned).collect();
            if urls.is_empty() {
                return Err((StatusCode::NOT_FOUND, "error sender not found\n".into()));
            }
            context.add_remotes([(from, urls)]);
            context.peer(from).ok_or_else(not_found)?
        }
    };
    if hex(headers, "X-Raft-To").map(MemberId) != Some(context.member) {
        return Err((StatusCode::PRECONDITION_FAILED, "to field mismatch\n".into()));
    }
    if let Some(run) = headers.get(RUN_HEADER).and_then(|run| run.to_str().ok()) {
        peer.incoming.peer_runs(run);
    }
    Ok(Outgoing::attach(&peer))
}

fn hex(headers: &HeaderMap, name: &str) -> Option<u64> {
    u64::from_str_radix(headers.get(name)?.to_str().ok()?, 16).ok()
}

fn check_cluster(context: &Context, headers: &HeaderMap) -> Result<(), Refused> {
    check_version(headers)?;
    let fits = hex(headers, "X-Etcd-Cluster-ID").map(ClusterId) == Some(context.cluster);
    if fits { Ok(()) } else { Err((StatusCode::PRECONDITION_FAILED, "cluster ID mismatch\n".into())) }
}

/// Each side must be at least what the other one asks for; a header that is missing means 2.0.
fn check_version(headers: &HeaderMap) -> Result<(), Refused> {
    let version = |name| {
        let text = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("2.0.0");
        parse_version(text)
    };
    let fits = version("X-Server-Version") >= parse_version(MIN_CLUSTER_VERSION)
        && version("X-Min-Cluster-Version").is_some_and(|min| Some(min) <= parse_version(ETCD_VERSION));
    match fits {
        true => Ok(()),
        false => Err((StatusCode::PRECONDITION_FAILED, "incompatible version\n".into())),
    }
}
