//! gRPC over one HTTP/2 connection, plain or over TLS: the generated clients on hyper, as the simulated clients use them
//! too.
use super::http::Site;
use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::body::Body;

#[derive(Debug, Clone)]
pub struct Channel {
    requests: SendRequest<Body>,
}

impl Channel {
    pub async fn connect(site: impl Into<Site>) -> io::Result<Channel> {
        let Site { address, tls } = site.into();
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Channel::on(stream).await };
        // Go's gRPC insists on hearing it.
        let mut tls = rustls::ClientConfig::clone(&tls);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TlsConnector::from(Arc::new(tls)).connect(address.ip().into(), stream).await?;
        Channel::on(stream).await
    }

    async fn on(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Channel> {
        let builder = http2::Builder::new(TokioExecutor::new());
        let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends, in whatever way, when the requests' side is dropped or the peer is gone.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Channel { requests })
    }
}

/// What a generated client wants to know about where it talks to.
pub fn origin(site: impl Into<Site>) -> Uri {
    let Site { address, tls } = site.into();
    let scheme = if tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{address}").parse().expect("an address makes a URI")
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
