//! The daemon as users meet it: real processes, files and sockets, real clients.
mod churn;
mod daemon;
mod formats;
mod kill9;
mod load;
mod operator;
mod refusals;
mod tls;
mod transcript;

use detcd_node::proto::etcdserverpb::{PutRequest, kv_client::KvClient};
use detcd_tests::harness::grpc::{Channel, origin};
use std::net::SocketAddr;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Puts k0, k1 and so on, one after the other.
fn put_keys(member: SocketAddr, count: usize) {
    runtime().block_on(async {
        let channel = Channel::connect(member).await.expect("a connection");
        let mut kv = KvClient::with_origin(channel, origin(member));
        for number in 0..count {
            let request = PutRequest { key: format!("k{number}").into(), value: "v".into(), ..Default::default() };
            kv.put(request).await.expect("a put");
        }
    });
}
