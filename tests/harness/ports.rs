//! Loopback ports and names for clusters.
//!
//! Ports come from below the kernel's ephemeral range, so no outgoing connection takes one between two runs on the
//! same addresses. A port is handed out once in a process; processes start at different places and try before they take.
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

const PORT_FIRST: u16 = 20_000;
const PORT_COUNT: u16 = 10_000;
const _: () = assert!(PORT_FIRST + PORT_COUNT < 32_768, "the ephemeral range begins here");

/// Where the members of a cluster are found: the same names and ports give the same member ids, on etcd and detcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub members: Vec<Address>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub name: String,
    pub tls: bool,
    pub client: SocketAddr,
    pub peer: SocketAddr,
}

impl Addresses {
    pub fn reserve(members: usize) -> Addresses {
        assert!(members > 0);
        Addresses { members: (0..members).map(|i| Address::reserve(&format!("m{i}"), false)).collect() }
    }

    /// As `reserve`, with https everywhere.
    pub fn reserve_tls(members: usize) -> Addresses {
        assert!(members > 0);
        Addresses { members: (0..members).map(|i| Address::reserve(&format!("m{i}"), true)).collect() }
    }

    /// The value of `--initial-cluster`.
    pub fn initial_cluster(&self) -> String {
        let member = |a: &Address| format!("{}={}", a.name, a.peer_url());
        self.members.iter().map(member).collect::<Vec<_>>().join(",")
    }
}

impl Address {
    pub fn reserve(name: &str, tls: bool) -> Address {
        Address { name: name.to_owned(), tls, client: free_port(), peer: free_port() }
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    pub fn client_url(&self) -> String {
        format!("{}://{}", self.scheme(), self.client)
    }

    pub fn peer_url(&self) -> String {
        format!("{}://{}", self.scheme(), self.peer)
    }

    /// As it is given to `etcdctl`, which needs no scheme to speak plainly.
    pub fn endpoint(&self) -> String {
        if self.tls { self.client_url() } else { self.client.to_string() }
    }
}

pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Far apart for neighbouring pids, which test processes started together have.
    let start = (std::process::id().wrapping_mul(617) % u32::from(PORT_COUNT)) as u16;
    for _ in 0..PORT_COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORT_FIRST + (start + offset % PORT_COUNT) % PORT_COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port in {PORT_FIRST}..{}", PORT_FIRST + PORT_COUNT);
}
