//! A gRPC channel over a simulated byte stream: tonic's generated clients on hyper's HTTP/2 connection.
use std::{
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use detcd_node::host::{Net, Role};
use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tonic::body::Body;

use crate::{history::NodeNumber, world::addresses::client_url};

pub type ChannelError = Box<dyn Error + Send + Sync>;

#[derive(Clone)]
pub struct Channel {
    sender: http2::SendRequest<Body>,
}

impl Channel {
    pub async fn connect(net: &dyn Net, node: NodeNumber, within: Duration) -> Result<Channel, ChannelError> {
        let connect = async {
            let io = net.connect(Role::Client, &client_url(node)).await?;
            let (sender, connection) = http2::Builder::new(Spawner).handshake(TokioIo::new(io)).await?;
            Ok::<_, ChannelError>((sender, connection))
        };
        let (sender, connection) = madsim::time::timeout(within, connect).await??;
        tokio::spawn(async move {
            let _ = connection.await; // its end shows in the calls
        });
        Ok(Channel { sender })
    }

    pub fn origin(node: NodeNumber) -> http::Uri {
        client_url(node).parse().expect("a URL")
    }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = ChannelError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let response = self.sender.send_request(request);
        Box::pin(async move { Ok(response.await?.map(Body::new)) })
    }
}

/// What is done at once never becomes a task.
#[derive(Clone, Copy)]
struct Spawner;

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::spawn(future);
        }
    }
}
