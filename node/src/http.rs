//! What the client port answers to plain HTTP: health, version, metrics.
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use tonic::body::Body;

use crate::{config::ETCD_VERSION, host::Probe, inbox::Handle, metrics::Metrics};

const PLAIN: &str = "text/plain; charset=utf-8";

pub async fn respond<B>(handle: &Handle, metrics: &Metrics, probe: &dyn Probe, request: &Request<B>) -> Response<Body> {
    match request.uri().path() {
        "/health" | "/version" if request.method() != Method::GET => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "Method Not Allowed\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            response
        }
        "/health" => health(handle, request.uri().query().unwrap_or_default()).await,
        "/version" => text(StatusCode::OK, "application/json", version_json(handle)),
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4", metrics.render(handle.member, probe.vitals())),
        _ => text(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n".into()),
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
    text(status, PLAIN, body.to_string()) // not what it is, but what etcd says it is
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
