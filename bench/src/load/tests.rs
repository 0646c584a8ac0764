//! The loop against a server in this process, which counts what arrives.
use std::{collections::BTreeMap, sync::atomic::AtomicU32};

use bytes::Bytes;
use detcd_node::proto::{
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeResponse, TxnRequest, TxnResponse,
        kv_server::{Kv, KvServer},
    },
    mvccpb::KeyValue,
};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tonic::{Request, Response, body::Body};
use tower::ServiceExt;

use super::*;

/// A key-value map that fails some puts.
#[derive(Default)]
struct Server {
    puts: Mutex<BTreeMap<Bytes, (Bytes, u32)>>,
    calls: AtomicU32,
    /// Fails every call whose number this divides; 0: none.
    fail_every: u32,
}

#[tonic::async_trait]
impl Kv for Server {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fail_every != 0 && call.is_multiple_of(self.fail_every) {
            return Err(Status::unavailable("etcdserver: leader changed"));
        }
        let PutRequest { key, value, .. } = request.into_inner();
        let mut puts = self.puts.lock().unwrap();
        let entry = puts.entry(key).or_default();
        *entry = (value, entry.1 + 1);
        Ok(Response::new(PutResponse::default()))
    }

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, range_end, count_only, .. } = request.into_inner();
        let puts = self.puts.lock().unwrap();
        let found =
            puts.iter().filter(|(k, _)| if range_end.is_empty() { **k == key } else { **k >= key && **k < range_end });
        let kvs: Vec<_> = found
            .map(|(k, (value, _))| KeyValue { key: k.clone(), value: value.clone(), ..Default::default() })
            .collect();
        let count = kvs.len() as i64;
        Ok(Response::new(RangeResponse { count, kvs: if count_only { vec![] } else { kvs }, ..Default::default() }))
    }

    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn serve(server: Arc<Server>) -> Endpoint {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::loopback(listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = KvServer::from_arc(server.clone());
            let service = service.map_request(|r: http::Request<hyper::body::Incoming>| r.map(Body::new));
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            tokio::spawn(connection);
        }
    });
    endpoint
}

fn plan(endpoint: Endpoint, workload: Workload, until: Until) -> Plan {
    Plan {
        endpoints: vec![endpoint],
        workload,
        clients: 7,
        connections: 3,
        until,
        warmup: Duration::ZERO,
        data: Data::new(500, KeyOrder::Sequential, 256),
        pids: vec![std::process::id()],
    }
}

#[tokio::test]
async fn a_total_is_exact_even_if_calls_fail() {
    let server = Arc::new(Server { fail_every: 200, ..Default::default() });
    let endpoint = serve(server.clone()).await;
    let figures = run(&plan(endpoint, Workload::Put, Until::Total(1_000))).await.unwrap();
    assert_eq!((figures.operations, figures.failed_calls), (1_000, 5));
    let puts = server.puts.lock().unwrap();
    assert_eq!(puts.len(), 500);
    assert!(puts.values().all(|(value, times)| value.len() == 256 && *times == 2));
}

#[tokio::test]
async fn gets_find_the_keys_written_before() {
    let server = Arc::new(Server::default());
    let endpoint = serve(server.clone()).await;
    for workload in [Workload::Get, Workload::SerializableGet] {
        let figures = run(&plan(endpoint.clone(), workload, Until::Total(100))).await.unwrap();
        assert_eq!((figures.operations, figures.failed_calls), (100, 0));
    }
    assert_eq!(server.calls.load(Ordering::Relaxed), 500, "the keys are written once");
    run(&plan(endpoint, Workload::Mixed, Until::Total(100))).await.unwrap();
    assert_eq!(server.calls.load(Ordering::Relaxed), 550);
}

#[tokio::test]
async fn a_timed_run_ends_in_time_and_measures_itself() {
    let endpoint = serve(Arc::default()).await;
    let figures = run(&plan(endpoint, Workload::Put, Until::Elapsed(Duration::from_millis(200)))).await.unwrap();
    assert!(figures.seconds >= 0.2 && figures.seconds < 20.0);
    assert!(figures.operations > 0 && figures.p50_ms > 0.0 && figures.p50_ms <= figures.p99_ms);
    assert!(figures.server.unwrap().resident_mb > 0.0);
}

#[tokio::test]
async fn a_run_that_mostly_fails_has_no_figures() {
    let endpoint = serve(Arc::new(Server { fail_every: 2, ..Default::default() })).await;
    let failure = run(&plan(endpoint, Workload::Put, Until::Total(20))).await.unwrap_err().to_string();
    assert!(
        failure.contains("20 succeeded: a call failed with Unavailable, \"etcdserver: leader changed\""),
        "{failure}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
    let failure = run(&plan(endpoint, Workload::Put, Until::Total(1))).await.unwrap_err().to_string();
    assert!(failure.starts_with("cannot connect to 127.0.0.1:1: Connection refused"), "{failure}");
    assert!(failure.ends_with("is a server running?"), "{failure}");
}

#[test]
fn connections_are_shared_out_evenly() {
    #[track_caller]
    fn check(connections: usize, clients: usize, expected: &[&[usize]]) {
        let numbers: Vec<_> = (0..connections).collect();
        let shares: Vec<_> = (0..clients).map(|client| share(client, clients, &numbers)).collect();
        assert_eq!(shares, expected);
    }
    check(3, 1, &[&[0, 1, 2]]);
    check(3, 2, &[&[0, 2], &[1]]);
    check(2, 2, &[&[0], &[1]]);
    check(2, 5, &[&[0], &[1], &[0], &[1], &[0]]);
}
