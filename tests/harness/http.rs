//! HTTP/1.1, as a probe or a scraper speaks it: one request a connection, plain or over TLS.
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// Where somebody is asked, and, of TLS, whom to trust and what to show there.
#[derive(Debug, Clone)]
pub struct Site {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}

impl From<&Site> for Site {
    fn from(site: &Site) -> Site {
        site.clone()
    }
}

impl From<SocketAddr> for Site {
    fn from(address: SocketAddr) -> Site {
        Site { address, tls: None }
    }
}

pub fn get(site: impl Into<Site>, path: &str) -> io::Result<Response> {
    request(site, "GET", path)
}

pub fn request(site: impl Into<Site>, method: &str, path: &str) -> io::Result<Response> {
    let Site { address, tls } = site.into();
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let bytes = match tls {
        None => exchange(stream, &head)?,
        Some(config) => {
            let connection = ClientConnection::new(config, address.ip().into()).map_err(io::Error::other)?;
            exchange(StreamOwned::new(connection, stream), &head)?
        }
    };
    parse(&bytes).ok_or_else(|| io::Error::other("not an HTTP response"))
}

fn exchange(mut stream: impl Read + Write, head: &str) -> io::Result<Vec<u8>> {
    stream.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
    let body = if chunked { join_chunks(body)? } else { body.to_owned() };
    Some(Response { status, headers, body })
}

fn join_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}

/// The value of a metric without labels, or the sum over its labels, as `/metrics` tells it.
pub fn metric(site: impl Into<Site>, name: &str) -> Option<f64> {
    let text = get(site, "/metrics").ok()?.body;
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = if rest.starts_with('{') { rest.rsplit_once("} ")?.1 } else { rest.strip_prefix(' ')? };
        value.parse::<f64>().ok()
    });
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[test]
fn chunks_are_joined_and_nonsense_is_no_response() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let response = parse(chunked).unwrap();
    assert_eq!((response.status, response.body.as_str()), (200, "abcde"));
    assert_eq!(parse(b"HTTP/1.1 405 No\r\nAllow: GET\r\n\r\nno\n").unwrap().headers["allow"], "GET");
    assert_eq!(parse(b"\0\0\x06\x04"), None);
}
