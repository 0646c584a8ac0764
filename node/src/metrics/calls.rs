//! Counts gRPC calls by method and outcome, as etcd's metrics do.
use std::{
    fmt::Write,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use tonic::{Code, Status, body::Body};

use super::Metrics;

/// gRPC's codes, 0 to 16, as metrics spell them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Path and kind of every method, sorted by path.
const METHODS: &[(&str, &str)] = &[
    ("/etcdserverpb.Cluster/MemberAdd", "unary"),
    ("/etcdserverpb.Cluster/MemberList", "unary"),
    ("/etcdserverpb.Cluster/MemberPromote", "unary"),
    ("/etcdserverpb.Cluster/MemberRemove", "unary"),
    ("/etcdserverpb.Cluster/MemberUpdate", "unary"),
    ("/etcdserverpb.KV/Compact", "unary"),
    ("/etcdserverpb.KV/DeleteRange", "unary"),
    ("/etcdserverpb.KV/Put", "unary"),
    ("/etcdserverpb.KV/Range", "unary"),
    ("/etcdserverpb.KV/Txn", "unary"),
    ("/etcdserverpb.Maintenance/Alarm", "unary"),
    ("/etcdserverpb.Maintenance/Defragment", "unary"),
    ("/etcdserverpb.Maintenance/Downgrade", "unary"),
    ("/etcdserverpb.Maintenance/Hash", "unary"),
    ("/etcdserverpb.Maintenance/HashKV", "unary"),
    ("/etcdserverpb.Maintenance/MoveLeader", "unary"),
    ("/etcdserverpb.Maintenance/Snapshot", "server_stream"),
    ("/etcdserverpb.Maintenance/Status", "unary"),
    ("/etcdserverpb.Watch/Watch", "bidi_stream"),
    ("/grpc.health.v1.Health/Check", "unary"),
    ("/grpc.health.v1.Health/Watch", "server_stream"),
];

/// A known method, by its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(usize);

impl Method {
    pub fn of(path: &str) -> Option<Method> {
        METHODS.binary_search_by_key(&path, |(path, _)| path).ok().map(Method)
    }

    /// Whether its answer is one message: then the call is over with it.
    pub fn is_unary(self) -> bool {
        METHODS[self.0].1 == "unary"
    }
}

/// A call under way. Whoever drops it before its end canceled it.
pub struct Call {
    metrics: Arc<Metrics>,
    /// `None` once it ended.
    method: Option<Method>,
}

impl Call {
    pub fn begin(metrics: Arc<Metrics>, method: Method) -> Call {
        metrics.calls.started(method);
        Call { metrics, method: Some(method) }
    }

    pub fn end(&mut self, code: Code) {
        if let Some(method) = self.method.take() {
            self.metrics.calls.handled(method, code);
        }
    }

    /// The answer has begun. That of a stream is over with its body.
    pub fn answer(mut self, response: http::Response<Body>) -> http::Response<Body> {
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        if code == Code::Ok && self.method.is_some_and(|method| !method.is_unary()) {
            return response.map(|body| Body::new(Streamed { body, call: self }));
        }
        self.end(code);
        response
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// What a stream sends, until it tells in its trailers how it went.
struct Streamed {
    body: Body,
    call: Call,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let code = match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                frame.trailers_ref().and_then(Status::from_header_map).map(|status| status.code())
            }
            Poll::Ready(Some(Err(status))) => Some(status.code()),
            Poll::Ready(None) => Some(Code::Ok),
            Poll::Pending => None,
        };
        if let Some(code) = code {
            self.call.end(code);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[derive(Default)]
pub struct Calls {
    started: [AtomicU64; METHODS.len()],
    handled: [[AtomicU64; CODES.len()]; METHODS.len()],
}

impl Calls {
    fn started(&self, method: Method) {
        self.started[method.0].fetch_add(1, Relaxed);
    }

    fn handled(&self, method: Method, code: Code) {
        self.handled[method.0][code as usize].fetch_add(1, Relaxed);
    }

    pub fn render(&self, out: &mut String) {
        let labels = |(path, kind): &(&str, &str)| {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
            format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
        };
        let _ =
            writeln!(out, "# HELP grpc_server_started_total Calls begun.\n# TYPE grpc_server_started_total counter");
        for (method, started) in METHODS.iter().zip(&self.started) {
            let _ = writeln!(out, "grpc_server_started_total{{{}}} {}", labels(method), started.load(Relaxed));
        }
        let _ =
            writeln!(out, "# HELP grpc_server_handled_total Calls ended.\n# TYPE grpc_server_handled_total counter");
        for (method, handled) in METHODS.iter().zip(&self.handled) {
            for (code, count) in CODES.iter().zip(handled) {
                // Successes are told from the start, so that rates are known; the rest once it happens.
                let count = count.load(Relaxed);
                if count > 0 || *code == "OK" {
                    let _ =
                        writeln!(out, "grpc_server_handled_total{{grpc_code=\"{code}\",{}}} {count}", labels(method));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path() {
        assert!(METHODS.is_sorted());
        for (place, (path, _)) in METHODS.iter().enumerate() {
            assert_eq!(Method::of(path), Some(Method(place)));
        }
        assert_eq!(Method::of("/etcdserverpb.KV/Nothing"), None);
    }

    #[tokio::test]
    async fn every_call_is_counted_when_it_is_over() {
        use http_body_util::{BodyExt, Full, StreamBody};

        let metrics = Arc::<Metrics>::default();
        let begin = |path| Call::begin(metrics.clone(), Method::of(path).unwrap());
        let count = |path, code: Code| metrics.calls.handled[Method::of(path).unwrap().0][code as usize].load(Relaxed);
        let (put, snapshot) = ("/etcdserverpb.KV/Put", "/etcdserverpb.Maintenance/Snapshot");
        drop(begin(put));
        begin(put).answer(http::Response::new(Body::new(Full::from("an answer"))));
        begin(put).answer(Status::unavailable("no leader").into_http());
        assert_eq!([Code::Cancelled, Code::Ok, Code::Unavailable].map(|code| count(put, code)), [1, 1, 1]);

        let stream = |end: Status| {
            let mut trailers = http::HeaderMap::new();
            end.add_header(&mut trailers).unwrap();
            let frames = [Frame::data(Bytes::from("piece")), Frame::trailers(trailers)];
            let frames = futures::stream::iter(frames.map(Ok::<_, Status>));
            begin(snapshot).answer(http::Response::new(Body::new(StreamBody::new(frames))))
        };
        let under_way = stream(Status::new(Code::Ok, ""));
        assert_eq!(count(snapshot, Code::Ok), 0);
        under_way.into_body().collect().await.unwrap();
        stream(Status::data_loss("a bad disk")).into_body().collect().await.unwrap();
        drop(stream(Status::new(Code::Ok, "")));
        let codes = [Code::Ok, Code::DataLoss, Code::Cancelled];
        assert_eq!(codes.map(|code| count(snapshot, code)), [1, 1, 1]);
    }

    #[test]
    fn calls_are_told_by_code() {
        let calls = Calls::default();
        let put = Method::of("/etcdserverpb.KV/Put").unwrap();
        calls.started(put);
        calls.handled(put, Code::Unavailable);
        let mut text = String::new();
        calls.render(&mut text);
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        assert!(text.contains(&format!("grpc_server_started_total{{{labels}}} 1\n")));
        assert!(text.contains(&format!("grpc_server_handled_total{{grpc_code=\"Unavailable\",{labels}}} 1\n")));
    }
}
