//! gRPC over one HTTP/2 connection: the generated clients on hyper, as the simulated clients use them too.
use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::net::TcpStream;
use tonic::body::Body;

#[derive(Debug, Clone)]
pub struct Channel {
    requests: SendRequest<Body>,
}

impl Channel {
    pub async fn connect(address: SocketAddr) -> io::Result<Channel> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let builder = http2::Builder::new(TokioExecutor::new());
        let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends, in whatever way, when the requests' side is dropped or the peer is gone.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Channel { requests })
    }
}

/// What a generated client wants to know about where it talks to.
pub fn origin(address: SocketAddr) -> Uri {
    format!("http://{address}").parse().expect("an address makes a URI")
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
