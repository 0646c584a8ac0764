//! Our side of a stream that we receive on: dial, ask, then read messages as long as they come.
use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use detcd_core::{
    consensus::Message,
    event::NodeEvent,
    limits::{PEER_MESSAGE_BYTES_MAX, PEER_READ_BYTES, PEER_REDIAL_MS},
};
use http::{Request, Response, StatusCode, request::Builder};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use super::{Context, MIN_CLUSTER_VERSION, Peer, RUN_HEADER, note, parse_version};
use crate::{
    config::{ETCD_VERSION, parse_url},
    host::{Io, Role},
    inbox::Item,
};

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{0:?} is no http:// or https:// URL with a port")]
    Url(String),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{}", with_causes(.0))]
    Http(#[from] hyper::Error),
    #[error("the peer says that this member was removed from the cluster")]
    Removed,
    #[error("the peer refuses with {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("the peer is of version {0:?}, which this one cannot talk to")]
    Version(String),
    #[error("nothing came for too long")]
    Silent,
    #[error("the stream is not made of messages: {0}")]
    Garbled(String),
}

/// hyper keeps to itself what went wrong below it, such as a refused certificate.
fn with_causes(error: &dyn Error) -> String {
    std::iter::successors(error.source(), |&error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Keeps a stream from `peer` open for as long as it is a member.
pub async fn keep_dialling(context: Context, peer: Arc<Peer>) {
    let mut attempt = 0;
    let mut complained = false;
    while !peer.gone.load(Relaxed) {
        match receive(&context, &peer, attempt).await {
            Ok(()) => complained = false,
            // By who knows: it has applied the removal, and no id ever comes back.
            Err(DialError::Removed) => return context.handle.push(Item::Removed),
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(target: "peers", peer = %peer.id, %error, "lost or failed to reach a peer; trying on");
            }
            Err(_) => {}
        }
        attempt += 1;
        context.host.clock.sleep(Duration::from_millis(PEER_REDIAL_MS)).await;
    }
}

pub async fn receive(context: &Context, peer: &Peer, attempt: usize) -> Result<(), DialError> {
    let url = peer.url(attempt);
    let Some((address, _)) = parse_url(&url) else { return Err(DialError::Url(url)) };
    let io = context.host.net.connect(Role::Peer, &url).await?;
    peer.incoming.cut.store(false, Relaxed);
    // It may have been removed meanwhile: then that was what cut the stream, and nobody will again.
    if peer.gone.load(Relaxed) {
        return Ok(());
    }
    peer.incoming.silent_ticks.store(0, Relaxed);
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(PEER_READ_BYTES).handshake(TokioIo::new(io)).await?;
    let mut connection = Connection { peer, driving: Some(Box::pin(connection)) };
    let response = connection.drive(sender.send_request(request(context, peer, address))).await??;
    let run = response.headers().get(RUN_HEADER).and_then(|run| run.to_str().ok()).map(Arc::from);
    let mut body = accept(response, &mut connection).await?;
    *peer.incoming.run.lock() = run;
    *peer.incoming.since.lock() = Some(context.host.clock.now());
    note(context, NodeEvent::PeerConnected { peer: peer.id });
    let result = read(context, peer, &mut body, &mut connection).await;
    *peer.incoming.since.lock() = None;
    note(context, NodeEvent::PeerLost { peer: peer.id });
    result
}

fn request(context: &Context, peer: &Peer, address: &str) -> Request<Empty<Bytes>> {
    let request = Request::builder().uri(format!("/raft/stream/message/{}", context.member));
    let request = introduce(context, request, address).header("X-Raft-To", peer.id.to_string());
    request.body(Empty::new()).expect("our own headers are valid")
}

/// What every request to a peer says of the one that asks.
pub fn introduce(context: &Context, request: Builder, address: &str) -> Builder {
    request
        .header("Host", address)
        .header("X-Server-From", context.member.to_string())
        .header("X-Server-Version", ETCD_VERSION)
        .header("X-Min-Cluster-Version", MIN_CLUSTER_VERSION)
        .header("X-Etcd-Cluster-ID", context.cluster.to_string())
        .header("X-PeerURLs", &*context.urls)
        .header(RUN_HEADER, &*context.run)
}

async fn accept(response: Response<Incoming>, connection: &mut Connection<'_>) -> Result<Incoming, DialError> {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::GONE => return Err(DialError::Removed),
        status => {
            let reason = connection.drive(response.into_body().collect()).await??.to_bytes();
            return Err(DialError::Refused { status, reason: String::from_utf8_lossy(&reason).trim().to_owned() });
        }
    }
    let version = response.headers().get("X-Server-Version").and_then(|value| value.to_str().ok());
    let version = version.unwrap_or("2.0.0");
    if parse_version(version) < parse_version(MIN_CLUSTER_VERSION) {
        return Err(DialError::Version(version.to_owned()));
    }
    Ok(response.into_body())
}

async fn read(
    context: &Context,
    peer: &Peer,
    body: &mut Incoming,
    connection: &mut Connection<'_>,
) -> Result<(), DialError> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = connection.drive(body.frame()).await? {
        let Ok(data) = frame?.into_data() else { continue };
        peer.incoming.heard.store(true, Relaxed);
        buffer.extend_from_slice(&data);
        let mut items = Vec::new();
        while let Some(message) = next_message(&mut buffer)? {
            // A keep-alive has done its work by arriving. Others speak for themselves only, and to us.
            if !message.is_keep_alive() && message.from() == peer.id && message.to() == context.member {
                items.push(Item::Message(message));
            }
        }
        context.handle.push_all(items);
    }
    Ok(())
}

/// Takes one whole message off the front; `None` if there is none yet.
fn next_message(buffer: &mut BytesMut) -> Result<Option<Message>, DialError> {
    let Some(length) = buffer.first_chunk::<8>() else { return Ok(None) };
    let length = u64::from_be_bytes(*length);
    if length > PEER_MESSAGE_BYTES_MAX as u64 {
        return Err(DialError::Garbled(format!("a message of {length} bytes")));
    }
    let end = 8 + length as usize;
    let Some(bytes) = buffer.get(8..end) else {
        buffer.reserve(end - buffer.len());
        return Ok(None);
    };
    let message = Message::decode(bytes).map_err(|error| DialError::Garbled(error.to_string()))?;
    buffer.advance(end);
    Ok(Some(message))
}

/// hyper's connection, which makes progress only while it is polled: here, beside whatever waits for it.
struct Connection<'a> {
    peer: &'a Peer,
    /// `None` once it ended.
    driving: Option<Driving>,
}

type Driving = Pin<Box<http1::Connection<TokioIo<Io>, Empty<Bytes>>>>;

impl Connection<'_> {
    /// Waits for `future`, unless the stream is cut meanwhile.
    async fn drive<F: Future>(&mut self, future: F) -> Result<F::Output, DialError> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            self.peer.incoming.waker.register(cx.waker());
            if self.peer.incoming.cut.load(Relaxed) {
                return Poll::Ready(Err(DialError::Silent));
            }
            self.poll_connection(cx);
            future.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    fn poll_connection(&mut self, cx: &mut TaskContext<'_>) {
        // How it ended shows in what waits for it.
        if let Some(driving) = &mut self.driving
            && driving.as_mut().poll(cx).is_ready()
        {
            self.driving = None;
        }
    }
}
