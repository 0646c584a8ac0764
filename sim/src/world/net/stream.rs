//! One end of a connection, as a process holds it.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Shared, conn::Side, process::ConnId};

pub struct SimStream {
    pub shared: Arc<Shared>,
    pub conn: ConnId,
    pub side: Side,
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.with(|state| {
            let (conn, wire) = state.conn(self.conn);
            conn.poll_read(self.side, buffer, cx.waker(), wire)
        })
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.with(|state| {
            let (conn, wire) = state.conn(self.conn);
            conn.poll_write(self.side, data, cx.waker(), wire)
        })
    }

    /// What was written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.with(|state| {
            let (conn, wire) = state.conn(self.conn);
            conn.shut(self.side, wire);
        });
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.shared.with(|state| state.close(self.conn, self.side));
    }
}
