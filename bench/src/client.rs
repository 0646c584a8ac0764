//! Connections to an etcd endpoint: tonic's generated clients over hyper's HTTP/2, one task a connection.
//!
//! tonic's own transport is left out: it adds a buffer and a task hop to every call, and the load should be lean.
use std::{fmt, pin::Pin, str::FromStr, task};

use detcd_node::proto::etcdserverpb::{
    cluster_client::ClusterClient, kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;

use crate::Failure;

/// `host:port` of a server that speaks gRPC without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    pub fn loopback(port: u16) -> Endpoint {
        Endpoint(format!("127.0.0.1:{port}"))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        if text.starts_with("https://") {
            return Err("TLS is not supported, give a plain http:// endpoint".into());
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(Endpoint(address.into())),
            _ => Err("expected host:port".into()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One TCP connection. Clones share it. A workload that needs another of etcd's services adds its client here.
#[derive(Clone)]
pub struct Connection {
    pub kv: KvClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
}

impl Connection {
    pub async fn open(endpoint: &Endpoint) -> Result<Connection, Failure> {
        let failed = |what: String| Failure::Run(format!("cannot connect to {endpoint}: {what}; is a server running?"));
        let stream = TcpStream::connect(&endpoint.0).await.map_err(|error| failed(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(|error| failed(error.to_string()))?;
        // How the connection ends shows in the calls on it.
        tokio::spawn(async move { drop(driver.await) });
        let origin = http::Uri::builder().scheme("http").authority(endpoint.0.as_str()).path_and_query("/").build();
        let origin = origin.map_err(|error| failed(error.to_string()))?;
        let channel = Channel(sender);
        Ok(Connection {
            kv: KvClient::with_origin(channel.clone(), origin.clone()),
            cluster: ClusterClient::with_origin(channel.clone(), origin.clone()),
            maintenance: MaintenanceClient::with_origin(channel, origin),
        })
    }
}

/// hyper's request sender as the service that generated clients call.
#[derive(Clone)]
pub struct Channel(http2::SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_host_and_port() {
        #[track_caller]
        fn check(text: &str, expected: Result<&str, &str>) {
            let parsed = text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
            assert_eq!(parsed.as_deref().map_err(String::as_str), expected);
        }
        check("127.0.0.1:2379", Ok("127.0.0.1:2379"));
        check("http://localhost:2379/", Ok("localhost:2379"));
        check("http://[::1]:2379", Ok("[::1]:2379"));
        check("localhost", Err("expected host:port"));
        check(":2379", Err("expected host:port"));
        check("localhost:99999", Err("expected host:port"));
        check("https://localhost:2379", Err("TLS is not supported, give a plain http:// endpoint"));
    }
}
