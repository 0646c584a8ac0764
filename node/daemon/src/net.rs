//! TCP, and TLS on it where a URL says https.
mod places;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

use detcd_core::limits::HANDSHAKE_MS;
use detcd_node::{
    config::parse_url,
    host::{BoxFuture, Io, Listener, Net, Role},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpListener, TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use self::places::Places;
use crate::tls::{Bounds, Handshakes, Tls};

/// How long a connection may be quiet before the kernel asks whether the other side is still there, and again, in
/// seconds: etcd's.
const PROBE_SECONDS: libc::c_int = 30;

pub struct Sockets {
    tls: Tls,
    /// For who connects.
    places: Places,
}

impl Sockets {
    pub fn new(tls: Tls, files_max: u64) -> Sockets {
        Sockets { tls, places: Places::for_files(files_max) }
    }
}

impl Net for Sockets {
    fn listen<'a>(&'a self, role: Role, url: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (address, tls) = split(url)?;
            let listener = TcpListener::bind(preferred(lookup_host(address).await?)?).await?;
            let listener = match tls {
                true => Box::new(Handshakes::new(listener, &self.tls, role, Bounds::DEFAULT)?) as Box<dyn Listener>,
                false => Box::new(Accepting(listener)),
            };
            Ok(self.places.guard(role, listener))
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

/// Of a name's addresses the one that etcd would listen on: `localhost` is found at 127.0.0.1 by whoever looks there.
fn preferred(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<SocketAddr> {
    let first = addresses.min_by_key(|address| address.is_ipv6());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

async fn dial(address: &str, tls: Option<Arc<ClientConfig>>) -> io::Result<Io> {
    let stream = TcpStream::connect(address).await?;
    let Some(config) = tls else { return ready(stream) };
    prepare(&stream)?;
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

fn ready(stream: TcpStream) -> io::Result<Io> {
    prepare(&stream)?;
    Ok(Box::new(stream))
}

/// Small messages must not wait for company, and who is gone without a word must be found out.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, PROBE_SECONDS)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, PROBE_SECONDS)
}

fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let (descriptor, length) = (socket.as_fd().as_raw_fd(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: the descriptor is open, and the kernel reads one integer.
    match unsafe { libc::setsockopt(descriptor, level, option, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

    #[test]
    fn a_name_with_addresses_of_both_kinds_is_listened_on_by_ipv4() {
        let [v4, v6] = ["127.0.0.1:2379", "[::1]:2379"].map(|address| address.parse::<SocketAddr>().unwrap());
        assert_eq!(preferred([v6, v4].into_iter()).unwrap(), v4);
        assert_eq!(preferred([v6].into_iter()).unwrap(), v6);
        assert!(preferred([].into_iter()).is_err());
    }

    #[tokio::test]
    async fn the_kernel_watches_over_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        for stream in [dialled.unwrap(), accepted.unwrap().0] {
            prepare(&stream).unwrap();
            for (level, option, expected) in [
                (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
                (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, PROBE_SECONDS),
                (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, PROBE_SECONDS),
            ] {
                let (mut value, mut length) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
                // SAFETY: the descriptor is open, and the kernel writes one integer and its length.
                let result = unsafe {
                    let value = (&raw mut value).cast();
                    libc::getsockopt(stream.as_raw_fd(), level, option, value, &raw mut length)
                };
                assert_eq!((result, value), (0, expected), "option {option} of level {level}");
            }
        }
    }
}
