//! Counts gRPC calls by method and outcome, as etcd's metrics do.
use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tonic::Code;

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
    pub const WATCH: Method = Method(18);

    pub fn of(path: &str) -> Option<Method> {
        METHODS.binary_search_by_key(&path, |(path, _)| path).ok().map(Method)
    }

    /// Whether its answer is one message: then the call is over with it.
    pub fn is_unary(self) -> bool {
        METHODS[self.0].1 == "unary"
    }
}

#[derive(Default)]
pub struct Calls {
    started: [AtomicU64; METHODS.len()],
    handled: [[AtomicU64; CODES.len()]; METHODS.len()],
}

impl Calls {
    pub fn started(&self, method: Method) {
        self.started[method.0].fetch_add(1, Relaxed);
    }

    pub fn handled(&self, method: Method, code: Code) {
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
        assert_eq!(Method::of("/etcdserverpb.Watch/Watch"), Some(Method::WATCH));
        assert_eq!(Method::of("/etcdserverpb.KV/Nothing"), None);
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
