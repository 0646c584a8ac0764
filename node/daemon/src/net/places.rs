//! How many connections clients may have: as many as leave the node the files that it needs itself, or it could not go
//! on with its log. Beyond that clients wait to be accepted, as in etcd.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use detcd_core::limits::{FILES_RESERVED, HANDSHAKES_MAX};
use detcd_node::host::{BoxFuture, Io, Listener};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

pub struct Places(Arc<Semaphore>);

impl Places {
    pub fn for_files(files_max: u64) -> Places {
        let reserved = FILES_RESERVED + HANDSHAKES_MAX as u64;
        let clients = files_max.saturating_sub(reserved).max(files_max / 2);
        Places(Arc::new(Semaphore::new(
            usize::try_from(clients).map_or(Semaphore::MAX_PERMITS, |clients| clients.min(Semaphore::MAX_PERMITS)),
        )))
    }

    /// The same listener, with a place for each of its connections.
    pub fn guard(&self, listener: Box<dyn Listener>) -> Box<dyn Listener> {
        Box::new(Guarded { listener, places: self.0.clone() })
    }
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
    async fn a_crowd_of_clients_leaves_the_node_its_files() {
        let mut listener = Places::for_files(16).guard(Box::new(Crowd));
        let mut accepted = Vec::new();
        for _ in 0..8 {
            accepted.push(listener.accept().await.unwrap());
        }
        assert!(timeout(Duration::from_millis(20), listener.accept()).await.is_err(), "one too many");
        accepted.pop();
        listener.accept().await.unwrap();
    }
}
