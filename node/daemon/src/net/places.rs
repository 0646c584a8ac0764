//! How many connections others may have: as many as leave the node the files that it needs itself, or it could not go on
//! with its log. Beyond that they wait to be accepted, as clients do in etcd.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use detcd_core::limits::{FILES_RESERVED, HANDSHAKES_MAX, PEER_CONNECTIONS_MAX};
use detcd_node::host::{BoxFuture, Io, Listener, Role};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

pub struct Places {
    clients: Arc<Semaphore>,
    peers: Arc<Semaphore>,
}

impl Places {
    pub fn for_files(files_max: u64) -> Places {
        let peers = PEER_CONNECTIONS_MAX.min(files_max / 8);
        // Handshakes that are under way have no places yet; clients and peers have a listener each.
        let reserved = FILES_RESERVED + peers + 2 * HANDSHAKES_MAX as u64;
        let clients = files_max.saturating_sub(reserved).max(files_max / 2);
        Places { clients: places(clients), peers: places(peers) }
    }

    /// The same listener, with a place for each of its connections.
    pub fn guard(&self, role: Role, listener: Box<dyn Listener>) -> Box<dyn Listener> {
        let places = match role {
            Role::Client => self.clients.clone(),
            Role::Peer => self.peers.clone(),
        };
        Box::new(Guarded { listener, places })
    }
}

fn places(count: u64) -> Arc<Semaphore> {
    let count = usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}

struct Guarded {
    listener: Box<dyn Listener>,
    places: Arc<Semaphore>,
}

impl Listener for Guarded {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>> {
        Box::pin(async move {
            let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let io = self.listener.accept().await?;
            Ok(Box::new(Placed { io, _place: place }) as Io)
        })
    }
}

/// A connection, and its place for as long as it lasts.
struct Placed {
    io: Io,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::duplex, time::timeout};

    use super::*;

    struct Crowd;

    impl Listener for Crowd {
        fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>> {
            Box::pin(async { Ok(Box::new(duplex(1).0) as Io) })
        }
    }

    #[tokio::test]
    async fn a_crowd_leaves_the_node_its_files() {
        let places = Places::for_files(16);
        for (role, most) in [(Role::Client, 8), (Role::Peer, 2)] {
            let mut listener = places.guard(role, Box::new(Crowd));
            let mut accepted = Vec::new();
            for _ in 0..most {
                accepted.push(listener.accept().await.unwrap());
            }
            assert!(timeout(Duration::from_millis(20), listener.accept()).await.is_err(), "one too many");
            accepted.pop();
            listener.accept().await.unwrap();
        }
    }
}
