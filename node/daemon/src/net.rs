//! TCP.
use std::io;

use detcd_node::host::{BoxFuture, Io, Listener, Net, Role};
use tokio::net::{TcpListener, TcpStream};

pub struct Tcp;

impl Net for Tcp {
    fn listen<'a>(&'a self, _: Role, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            Ok(Box::new(Accepting(listener)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, _: Role, address: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async move { ready(TcpStream::connect(address).await?) })
    }
}

struct Accepting(TcpListener);

impl Listener for Accepting {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>> {
        Box::pin(async move {
            let (stream, _) = self.0.accept().await?;
            ready(stream)
        })
    }
}

/// Small messages must not wait for company.
fn ready(stream: TcpStream) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}
