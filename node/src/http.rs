//! What the client port answers to plain HTTP: health, version, metrics.
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use tonic::body::Body;

use crate::{config::ETCD_VERSION, inbox::Handle, metrics::Metrics};

pub async fn respond<B>(handle: &Handle, metrics: &Metrics, request: &Request<B>) -> Response<Body> {
    match request.uri().path() {
        "/health" if request.method() != Method::GET => {
            text(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "Method Not Allowed\n".into())
        }
        "/health" => health(handle, request.uri().query().unwrap_or_default()).await,
        "/version" => text(StatusCode::OK, "application/json", version_json(handle)),
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4", metrics.render(handle.member)),
        _ => text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".into()),
    }
}

/// A linearizable read works, or, if the query wants no more, this member can read what it has.
async fn health(handle: &Handle, query: &str) -> Response<Body> {
    let serializable = query.split('&').any(|pair| pair == "serializable=true");
    let reason = if serializable {
        handle.view().await.err().map(|refusal| format!("RANGE ERROR:etcdserver: {refusal}"))
    } else if handle.status().leader.0 == 0 {
        Some("RAFT NO LEADER".to_owned())
    } else {
        handle.read().await.err().map(|refusal| format!("RANGE ERROR:etcdserver: {refusal}"))
    };
    let (status, health) = match reason {
        None => (StatusCode::OK, "true"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false"),
    };
    let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
    text(status, "application/json", body.to_string())
}

pub fn version_json(handle: &Handle) -> String {
    let cluster = handle.cluster_version();
    let cluster = cluster.as_deref().unwrap_or("not_decided");
    serde_json::json!({ "etcdserver": ETCD_VERSION, "etcdcluster": cluster, "storage": cluster }).to_string()
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a media type"));
    response
}
