//! What waits for one peer, already in the stream's framing: a u64, big-endian, of bytes, then the message.
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use detcd_core::{consensus::Message, limits::PEER_QUEUE_BYTES_MAX};
use futures::task::AtomicWaker;
use http_body::Frame;
use parking_lot::Mutex;

use super::Peer;

#[derive(Default)]
pub struct Outgoing {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Which connection may take from the queue; 0 is none. A new one replaces the old.
    connection: u64,
    connections: u64,
    /// Something was queued, or taken, since the last tick.
    active: bool,
    quiet_ticks: u64,
}

impl Outgoing {
    /// Whether the message is on its way; if not, it is dropped.
    pub fn push(&self, message: &Message) -> bool {
        let mut queue = self.queue.lock();
        if queue.connection == 0 || queue.bytes.len() > PEER_QUEUE_BYTES_MAX {
            return false;
        }
        let was_empty = queue.bytes.is_empty();
        queue.bytes.extend_from_slice(&(message.encoded_len() as u64).to_be_bytes());
        message.encode(&mut queue.bytes);
        queue.active |= was_empty;
        drop(queue);
        if was_empty {
            self.waker.wake();
        }
        true
    }

    /// A new connection to this peer: whatever had it before ends.
    pub fn attach(peer: &Arc<Peer>) -> Body {
        let outgoing = &peer.outgoing;
        let connection = {
            let mut queue = outgoing.queue.lock();
            queue.connections += 1;
            queue.connection = queue.connections;
            queue.bytes.clear(); // meant for the connection before
            queue.quiet_ticks = 0;
            queue.connection
        };
        outgoing.waker.wake();
        Body { peer: peer.clone(), connection }
    }

    /// Ends the connection.
    pub fn close(&self) {
        {
            let mut queue = self.queue.lock();
            (queue.connection, queue.bytes) = (0, Vec::new());
        }
        self.waker.wake();
    }

    /// Sends a sign of life when a third of the bound passed in silence; gives the connection up when nothing was
    /// taken for all of it.
    pub fn tick(&self, silence_ticks: u64) {
        let mut queue = self.queue.lock();
        if queue.connection == 0 {
            return;
        }
        if std::mem::take(&mut queue.active) {
            queue.quiet_ticks = 0;
            return;
        }
        queue.quiet_ticks += 1;
        let stuck = !queue.bytes.is_empty();
        let quiet = queue.quiet_ticks;
        drop(queue);
        if stuck && quiet >= silence_ticks {
            self.close();
        } else if !stuck && quiet >= silence_ticks / 3 {
            self.push(&Message::keep_alive());
        }
    }
}

/// The endless answer to a peer's GET.
pub struct Body {
    peer: Arc<Peer>,
    connection: u64,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let outgoing = &self.peer.outgoing;
        let mut queue = outgoing.queue.lock();
        if queue.connection != self.connection {
            return Poll::Ready(None);
        }
        // Only whose turn it is registers, or the one that was replaced would be woken in its place.
        outgoing.waker.register(cx.waker());
        if queue.bytes.is_empty() {
            return Poll::Pending;
        }
        queue.active = true;
        let bytes = std::mem::take(&mut queue.bytes);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let mut queue = self.peer.outgoing.queue.lock();
        if queue.connection == self.connection {
            (queue.connection, queue.bytes) = (0, Vec::new());
        }
    }
}
