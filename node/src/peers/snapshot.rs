//! Snapshots between members: a leader's state as the body of a request, etcd's way.
//!
//! ```text
//! POST /raft/snapshot: | length: u64 BE | raftpb.Message: a snapshot without its state | the state: a bbolt file |
//! ```
//!
//! Between two of our own the state's checksum follows ([`CHECKSUM_HEADER`]): nothing else would tell a bit that flipped
//! in a value. The answer comes once the state is durable and checked.
//!
//! Bounds: one snapshot at a time to a peer, and one at a time from whoever leads (`receiving.rs`). Either side gives up
//! when nothing moves for some seconds, or when the peer starts anew; the leader's replica is told in any case.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use detcd_core::{
    consensus::Message,
    event::NodeEvent,
    format::v2store,
    limits::{SNAPSHOT_ANSWER_MS, SNAPSHOT_MESSAGE_BYTES_MAX, SNAPSHOT_STALL_MS},
    replica::State,
};
use futures::{
    future::{AbortHandle, Abortable, Either, select},
    stream,
};
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;

use super::{
    Context, Peer,
    client::{self, AskError},
    dial::introduce,
    note,
    receiving::Turn,
};
use crate::{
    config::parse_url,
    inbox::Item,
    snapshots::{Checksum, Image, Pieces, ReceiveError, receive},
};

/// Says that the state is followed by its checksum, and by which.
pub const CHECKSUM_HEADER: &str = "X-Detcd-Checksum";
pub const CHECKSUM_KIND: &str = "xxh3-128";

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("it is no peer any more")]
    Gone,
    #[error("{0:?} is no URL")]
    Url(String),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("it makes no headway")]
    Stalled,
    #[error("the peer started anew meanwhile")]
    Restarted,
    #[error("the peer refuses with {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
}

/// Raft asks for the next one when it knows that the one before arrived, though we may not have been told, or when it has
/// given that one up: it is ended, and nobody waits to hear of it any more.
pub async fn send(context: Context, message: Message, state: State) {
    let to = message.to();
    let result = match context.peer(to) {
        None => Err(SendError::Gone),
        Some(peer) => {
            let (handle, registration) = AbortHandle::new_pair();
            if let Some(earlier) = peer.sending.lock().replace(handle) {
                earlier.abort();
            }
            let sending = Abortable::new(send_to(&context, &peer, message, state), registration);
            let Ok(result) = sending.await else { return };
            if result.is_err() {
                peer.snapshots_lost.fetch_add(1, Relaxed);
            }
            result
        }
    };
    if let Err(error) = &result {
        tracing::warn!(target: "peers", peer = %to, %error, "a snapshot did not arrive");
    }
    context.handle.push(Item::SnapshotSent { to, delivered: result.is_ok() });
}

async fn send_to(context: &Context, peer: &Peer, mut message: Message, state: State) -> Result<(), SendError> {
    let url = peer.url(peer.snapshots_lost.load(Relaxed));
    let Some((address, _)) = parse_url(&url) else { return Err(SendError::Url(url)) };
    message.set_snapshot_data(v2store::write(&state.0.membership, state.0.cluster_version.as_deref()));
    let mut head = (message.encoded_len() as u64).to_be_bytes().to_vec();
    message.encode(&mut head);
    // Whoever tells its run is one of ours.
    let checksum = peer.incoming.run.lock().is_some();
    let moved = Arc::new(AtomicU64::new(0));
    let body = body(head, Image::of(state).await, checksum, moved.clone());
    let request = Request::post("/raft/snapshot").header("Content-Type", "application/octet-stream");
    let mut request = introduce(context, request, address).header("X-Raft-To", peer.id.to_string());
    if checksum {
        request = request.header(CHECKSUM_HEADER, CHECKSUM_KIND);
    }
    let request = request.body(body).expect("our own headers are valid");
    let within = Duration::from_secs(24 * 3_600); // as long as it moves
    let ask = Box::pin(client::ask(&context.host, &url, request, within));
    let answer = match select(ask, Box::pin(hopeless(context, peer, &moved))).await {
        Either::Left((answer, _)) => answer?,
        Either::Right((error, _)) => return Err(error),
    };
    if answer.status().is_success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(answer.body()).trim().to_owned();
    Err(SendError::Refused { status: answer.status(), reason })
}

/// The whole of it went out.
const ALL: u64 = u64::MAX;
/// How often the sender looks whether there is still hope.
const LOOK: Duration = Duration::from_millis(500);

/// Ends when there is no hope for an answer: nothing moved for too long (with all of it out, the peer gets time to check
/// it), or the peer started anew. The latter does not show on the connection if its machine lost power when all was out;
/// nor does a break that took the answer away, so with the peer connected anew since then it gets no more time.
async fn hopeless(context: &Context, peer: &Peer, moved: &AtomicU64) -> SendError {
    let clock = &context.host.clock;
    let (run, start) = (peer.incoming.run.lock().clone(), clock.now());
    let (mut seen, mut still, mut last_moved) = (0, Duration::ZERO, start);
    loop {
        clock.sleep(LOOK).await;
        if peer.incoming.is_another(run.as_deref(), start) {
            return SendError::Restarted;
        }
        let now = moved.load(Relaxed);
        still = if now == seen { still + LOOK } else { Duration::ZERO };
        if now != seen {
            (seen, last_moved) = (now, clock.now());
        }
        let is_whole = seen == ALL && !peer.incoming.is_newer(last_moved);
        let patience = if is_whole { SNAPSHOT_ANSWER_MS } else { SNAPSHOT_STALL_MS };
        if still.as_millis() as u64 >= patience {
            return SendError::Stalled;
        }
    }
}

type Outgoing = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

fn body(head: Vec<u8>, image: Image, checksum: bool, moved: Arc<AtomicU64>) -> Outgoing {
    struct Sending {
        head: Option<Vec<u8>>,
        image: Option<Image>,
        /// Of the pieces so far, if it is to follow.
        checksum: Option<Checksum>,
        moved: Arc<AtomicU64>,
    }
    let checksum = checksum.then(Checksum::default);
    let start = Sending { head: Some(head), image: Some(image), checksum, moved };
    let pieces = stream::unfold(start, |mut sending| async move {
        if let Some(head) = sending.head.take() {
            return Some((Ok(Frame::data(Bytes::from(head))), sending));
        }
        let Some(chunk) = sending.image.as_mut()?.next().await else {
            sending.image = None;
            sending.moved.store(ALL, Relaxed);
            let end = sending.checksum.take()?.bytes();
            return Some((Ok(Frame::data(Bytes::copy_from_slice(&end))), sending));
        };
        if let Some(checksum) = &mut sending.checksum {
            checksum.update(&chunk);
        }
        sending.moved.fetch_add(1, Relaxed);
        Some((Ok(Frame::data(Bytes::from(chunk))), sending))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Takes a snapshot in and hands it to the replica. The answer for the leader.
pub async fn take(context: &Context, body: Incoming, checksum: bool) -> (StatusCode, String) {
    // In a task of its own: when its connection breaks a request is dropped wherever it stands, and this would receive
    // for ever, and leave its file behind.
    let own = context.clone();
    let taking = tokio::spawn(async move {
        let result = take_in(&own, body, checksum).await;
        answer(&own, result)
    });
    taking.await.unwrap_or_else(|_| (StatusCode::INTERNAL_SERVER_ERROR, "the member is about to end\n".into()))
}

fn answer(context: &Context, result: Result<(Message, State), ReceiveError>) -> (StatusCode, String) {
    match result {
        Ok((message, state)) => {
            context.handle.push(Item::Snapshot { message, state });
            (StatusCode::NO_CONTENT, String::new())
        }
        Err(error @ ReceiveError::Another) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        Err(error) => {
            tracing::warn!(target: "peers", %error, "a snapshot that came is not usable");
            note(context, NodeEvent::SnapshotRejected { reason: error.to_string() });
            let status = match error {
                ReceiveError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
                ReceiveError::Disk(_) | ReceiveError::State(_) => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::BAD_REQUEST,
            };
            (status, format!("{error}\n"))
        }
    }
}

async fn take_in(context: &Context, body: Incoming, checksum: bool) -> Result<(Message, State), ReceiveError> {
    let mut source = Source { context, body, ahead: BytesMut::new(), turn: None };
    let length = u64::from_be_bytes(source.exactly(8).await?[..].try_into().expect("eight bytes"));
    if length > SNAPSHOT_MESSAGE_BYTES_MAX as u64 {
        return Err(ReceiveError::Cut(format!("a message of {length} bytes")));
    }
    let bytes = source.exactly(length as usize).await?;
    let message = Message::decode(&bytes).map_err(|error| ReceiveError::Cut(error.to_string()))?;
    if message.to() != context.member {
        return Err(ReceiveError::NoSnapshot);
    }
    let turn = context.receiving.begin(message.term()).ok_or(ReceiveError::Another)?;
    let number = turn.number();
    source.turn = Some(turn);
    let state = receive(&context.snapshots, &message, &mut source, checksum).await;
    context.receiving.end(number);
    Ok((message, state?))
}

/// A request's body, piece by piece.
struct Source<'a> {
    context: &'a Context,
    body: Incoming,
    /// Came, and was not taken yet.
    ahead: BytesMut,
    /// `None` while it is not known whose snapshot it is.
    turn: Option<Turn>,
}

impl Source<'_> {
    async fn exactly(&mut self, len: usize) -> Result<Bytes, ReceiveError> {
        while self.ahead.len() < len {
            match self.frame().await {
                Some(Ok(bytes)) => self.ahead.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(ReceiveError::Cut(error)),
                None => return Err(ReceiveError::Cut("it ends within its message".into())),
            }
        }
        let bytes = self.ahead.split_to(len).freeze();
        Ok(bytes)
    }

    async fn frame(&mut self) -> Option<Result<Bytes, String>> {
        loop {
            let silence = self.context.host.clock.sleep(Duration::from_millis(SNAPSHOT_STALL_MS));
            let over = async {
                match &mut self.turn {
                    Some(turn) => drop((&mut turn.over).await),
                    None => std::future::pending().await,
                }
            };
            match select(self.body.frame(), select(silence, std::pin::pin!(over))).await {
                Either::Left((None, _)) => return None,
                Either::Left((Some(Err(error)), _)) => return Some(Err(error.to_string())),
                Either::Left((Some(Ok(frame)), _)) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Either::Right((Either::Left(..), _)) => return Some(Err("nothing came for too long".into())),
                Either::Right((Either::Right(..), _)) => return Some(Err("a later leader sends its own".into())),
            }
        }
    }
}

impl Pieces for Source<'_> {
    async fn next(&mut self) -> Option<Result<Bytes, String>> {
        if self.ahead.has_remaining() {
            return Some(Ok(self.ahead.split().freeze()));
        }
        self.frame().await
    }
}
