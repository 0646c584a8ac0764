//! Short questions to a peer, each over a connection of its own.
use std::{io, time::Duration};

use bytes::Bytes;
use futures::future::{Either, select};
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::host::{Host, Role};

/// Bytes of an answer that are read at most.
const ANSWER_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("cannot reach it: {0}")]
    Connect(#[from] io::Error),
    #[error("the connection failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer cannot be read: {0}")]
    Answer(String),
    #[error("no answer in time")]
    Late,
}

/// Sends a request to `url`'s host and reads the whole answer.
pub async fn ask<B>(host: &Host, url: &str, request: Request<B>, within: Duration) -> Result<Response<Bytes>, AskError>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let late = host.clock.sleep(within);
    let answer = Box::pin(exchange(host, url, request));
    match select(answer, late).await {
        Either::Left((answer, _)) => answer,
        Either::Right(..) => Err(AskError::Late),
    }
}

async fn exchange<B>(host: &Host, url: &str, request: Request<B>) -> Result<Response<Bytes>, AskError>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let io = host.net.connect(Role::Peer, url).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let talk = Box::pin(async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| AskError::Answer(error.to_string()))?.to_bytes();
        Ok(Response::from_parts(head, body))
    });
    match select(talk, connection).await {
        Either::Left((answer, _)) => answer,
        // What the connection still brought is in the other's hands.
        Either::Right((_, talk)) => talk.await,
    }
}
