//! The peer listener: who asks for its stream is checked, then gets everything that is meant for it.
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use detcd_core::types::{ClusterId, MemberId};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{Context, MIN_CLUSTER_VERSION, RUN_HEADER, outgoing, outgoing::Outgoing, parse_version};
use crate::{config::ETCD_VERSION, host::Listener, http::version_json};

/// Accepts peers for as long as the node runs.
pub async fn serve(context: Context, mut listener: Box<dyn Listener>) {
    loop {
        match listener.accept().await {
            Ok(io) => {
                let context = context.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let response = respond(&context, &request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    // How a connection ends is the dialler's concern: it comes again.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
                });
            }
            Err(error) => {
                tracing::warn!(target: "peers", %error, "cannot accept a peer's connection; trying on");
                context.host.clock.sleep(std::time::Duration::from_millis(100)).await;
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

fn respond(context: &Context, request: &Request<Incoming>) -> Response<Answer> {
    let path = request.uri().path();
    let mut response = match path.strip_prefix("/raft/stream/message/") {
        Some(from) => match stream(context, request, from) {
            Ok(body) => Response::new(Answer::Stream(body)),
            Err((status, reason)) => text(status, reason),
        },
        None if path == "/version" => text(StatusCode::OK, version_json(&context.handle)),
        None => text(StatusCode::NOT_FOUND, "404 page not found\n".into()),
    };
    let headers = response.headers_mut();
    let cluster = context.cluster.to_string();
    headers.insert("X-Etcd-Cluster-ID", cluster.parse().expect("hexadecimal digits"));
    headers.insert("X-Server-Version", ETCD_VERSION.parse().expect("a version"));
    headers.insert(RUN_HEADER, context.run.parse().expect("hexadecimal digits"));
    response
}

fn text(status: StatusCode, text: String) -> Response<Answer> {
    let mut response = Response::new(Answer::Text(Full::new(text.into())));
    *response.status_mut() = status;
    response
}

/// The checks, in etcd's order.
fn stream(context: &Context, request: &Request<Incoming>, from: &str) -> Result<outgoing::Body, (StatusCode, String)> {
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".into()));
    }
    let headers = request.headers();
    check_version(headers)?;
    if hex(headers, "X-Etcd-Cluster-ID").map(ClusterId) != Some(context.cluster) {
        return Err((StatusCode::PRECONDITION_FAILED, "cluster ID mismatch\n".into()));
    }
    let not_found = || (StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
    let from = MemberId(u64::from_str_radix(from, 16).map_err(|_| not_found())?);
    let directory = context.directory.lock();
    if directory.membership.is_removed(from) {
        return Err((StatusCode::GONE, "the member has been permanently removed from the cluster\n".into()));
    }
    let peer =
        directory.peers.get(&from).ok_or_else(|| (StatusCode::NOT_FOUND, "error sender not found\n".to_owned()))?;
    if hex(headers, "X-Raft-To").map(MemberId) != Some(context.member) {
        return Err((StatusCode::PRECONDITION_FAILED, "to field mismatch\n".into()));
    }
    if let Some(run) = headers.get(RUN_HEADER).and_then(|run| run.to_str().ok()) {
        peer.incoming.peer_runs(run);
    }
    Ok(Outgoing::attach(&Arc::clone(peer)))
}

fn hex(headers: &HeaderMap, name: &str) -> Option<u64> {
    u64::from_str_radix(headers.get(name)?.to_str().ok()?, 16).ok()
}

/// Each side must be at least what the other one asks for; a header that is missing means 2.0.
fn check_version(headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
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
