//! Who has which address: node 3 is 10.0.0.3, client 7 is 10.0.1.7.
use std::net::{IpAddr, Ipv4Addr};

use crate::history::{Host, NodeNumber};

pub fn node_ip(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number as u8))
}

pub fn client_ip(client: u64) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 1, client as u8))
}

/// Whose address this is.
pub fn host_of(ip: IpAddr) -> Host {
    let IpAddr::V4(ip) = ip else { unreachable!("all addresses are of version 4") };
    match ip.octets() {
        [.., 0, node] => Host::Node(NodeNumber(node.into())),
        [.., client] => Host::Client(client.into()),
    }
}

pub fn client_url(number: NodeNumber) -> String {
    format!("http://{}:2379", node_ip(number.0))
}

pub fn peer_url(number: NodeNumber) -> String {
    format!("http://{}:2380", node_ip(number.0))
}
