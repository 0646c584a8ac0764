//! hyper's timers, on the node's clock; and a bound on how long a connection may keep to itself what it wants.
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::host::{Clock, Io, Sleep};

#[derive(Clone)]
pub struct NodeTimer(pub Arc<dyn Clock>);

struct NodeSleep(Sleep);

impl Future for NodeSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl hyper::rt::Sleep for NodeSleep {}

impl hyper::rt::Timer for NodeTimer {
    fn sleep(&self, time: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(NodeSleep(self.0.sleep(time)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(deadline.saturating_duration_since(Instant::now()))
    }
}

/// How HTTP/2 begins; nothing of HTTP/1 begins like it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection that fails if it has not said in time whether it speaks HTTP/2: hyper waits for that without a
/// bound, and whatever comes later has bounds of its own.
pub struct Introduced {
    io: Io,
    /// Bytes of the preface that came.
    came: usize,
    /// Until it is known.
    patience: Option<Sleep>,
}

impl Introduced {
    pub fn new(io: Io, patience: Sleep) -> Introduced {
        Introduced { io, came: 0, patience: Some(patience) }
    }

    fn see(&mut self, bytes: &[u8]) {
        let expected = &PREFACE[self.came..];
        let len = bytes.len().min(expected.len());
        self.came += len;
        if bytes[..len] != expected[..len] || self.came == PREFACE.len() {
            self.patience = None;
        }
    }
}

impl AsyncRead for Introduced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.patience.is_none() {
            return read;
        }
        self.see(&buf.filled()[before..]);
        if let Some(patience) = &mut self.patience
            && read.is_pending()
            && patience.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Introduced {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Whether somebody who said this, and no more, is waited for although the time is up.
    async fn is_waited_for(words: &[u8]) -> bool {
        let (mut client, server) = duplex(1_024);
        let mut server = Introduced::new(Box::new(server), Box::pin(std::future::ready(())));
        let mut heard = vec![0; words.len()];
        for (byte, heard) in words.iter().zip(heard.chunks_mut(1)) {
            client.write_all(&[*byte]).await.unwrap();
            server.read_exact(heard).await.unwrap();
        }
        assert_eq!(heard, words);
        let mut buffer = [0; 1];
        match std::pin::pin!(server.read(&mut buffer)).poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(read) => {
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
                false
            }
            Poll::Pending => true,
        }
    }

    #[tokio::test]
    async fn who_does_not_say_what_it_speaks_is_not_waited_for() {
        for words in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            assert!(!is_waited_for(words.as_bytes()).await, "{words:?}");
        }
        for words in ["G", "PUT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n+"] {
            assert!(is_waited_for(words.as_bytes()).await, "{words:?}");
        }
    }
}
