//! TCP, and TLS on it where a URL says https.
use std::{io, sync::Arc, time::Duration};

use detcd_core::limits::HANDSHAKE_MS;
use detcd_node::{
    config::parse_url,
    host::{BoxFuture, Io, Listener, Net, Role},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::tls::{Bounds, Handshakes, Tls};

pub struct Sockets {
    pub tls: Tls,
}

impl Net for Sockets {
    fn listen<'a>(&'a self, role: Role, url: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (address, tls) = split(url)?;
            let listener = TcpListener::bind(address).await?;
            Ok(match tls {
                true => Box::new(Handshakes::new(listener, &self.tls, role, Bounds::DEFAULT)?) as Box<dyn Listener>,
                false => Box::new(Accepting(listener)),
            })
        })
    }

    fn connect<'a>(&'a self, _: Role, url: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async move {
            let (address, tls) = split(url)?;
            let config = if tls { Some(self.tls.dial()?) } else { None };
            let time = Duration::from_millis(HANDSHAKE_MS);
            timeout(time, dial(address, config)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    }
}

fn split(url: &str) -> io::Result<(&str, bool)> {
    parse_url(url).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{url:?} is not a URL")))
}

async fn dial(address: &str, tls: Option<Arc<ClientConfig>>) -> io::Result<Io> {
    let stream = TcpStream::connect(address).await?;
    let Some(config) = tls else { return ready(stream) };
    stream.set_nodelay(true)?;
    Ok(Box::new(TlsConnector::from(config).connect(name(address)?, stream).await?))
}

/// What the certificate of whoever listens there must say: a host name, or an address.
fn name(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_verified_by_its_urls_host() {
        #[track_caller]
        fn check(address: &str, expected: &str) {
            assert_eq!(name(address).unwrap().to_str(), expected);
        }
        check("n1.example:2380", "n1.example");
        check("127.0.0.1:2380", "127.0.0.1");
        check("[fd00::1]:2380", "fd00::1");
        assert!(name("not a host:2380").is_err());
    }
}
