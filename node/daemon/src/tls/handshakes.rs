//! A TLS listener. A connection comes out of it when its handshake is done.
//!
//! Every handshake is a task of its own with a time limit, so whoever is slow, silent or no TLS client at all waits and
//! fails alone. When as many are under way as may be, callers wait to be accepted until one is done; but after its share
//! of time the oldest gives way, so that a crowd of silent ones cannot keep the others out.
//!
//! Refused connections are told in etcd's words. After a few in a row only one now and then is, with the number of those
//! that were not: a peer with a wrong certificate comes again ten times a second.
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use detcd_core::limits::{HANDSHAKE_MS, HANDSHAKE_SHARE_MS, HANDSHAKES_MAX};
use detcd_node::host::{BoxFuture, Io, Listener, Role};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{Tls, names};
use crate::net::prepare;

pub struct Handshakes {
    listener: TcpListener,
    handshake: Handshake,
    role: Role,
    bounds: Bounds,
    /// Holds a task until its outcome is taken.
    tasks: JoinSet<Outcome>,
    /// Those that are neither done nor gave way, oldest first.
    under_way: BTreeMap<u64, UnderWay>,
    started: u64,
    complaints: Complaints,
}

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub under_way: usize,
    pub share: Duration,
    pub time: Duration,
}

impl Bounds {
    pub const DEFAULT: Bounds = Bounds {
        under_way: HANDSHAKES_MAX,
        share: Duration::from_millis(HANDSHAKE_SHARE_MS),
        time: Duration::from_millis(HANDSHAKE_MS),
    };
}

struct UnderWay {
    since: Instant,
    from: SocketAddr,
    task: AbortHandle,
}

struct Outcome {
    number: u64,
    from: SocketAddr,
    result: io::Result<Io>,
}

impl Handshakes {
    pub fn new(listener: TcpListener, tls: &Tls, role: Role, bounds: Bounds) -> io::Result<Handshakes> {
        let check_names = role == Role::Peer && !tls.peers_from_anywhere;
        let handshake = Handshake { acceptor: tls.server(role)?.into(), check_names };
        Ok(Handshakes {
            listener,
            handshake,
            role,
            bounds,
            tasks: JoinSet::new(),
            under_way: BTreeMap::new(),
            started: 0,
            complaints: Complaints::new(Instant::now()),
        })
    }

    fn start(&mut self, stream: TcpStream, from: SocketAddr) {
        let (number, since) = (self.started, Instant::now());
        self.started += 1;
        let work = timeout(self.bounds.time, self.handshake.clone().run(stream, from.ip()));
        let task = self.tasks.spawn(async move {
            let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"));
            Outcome { number, from, result: work.await.unwrap_or_else(late) }
        });
        self.under_way.insert(number, UnderWay { since, from, task });
        assert!(self.under_way.len() <= self.bounds.under_way);
    }

    /// The connection, if it came to be one.
    fn end(&mut self, outcome: Result<Outcome, JoinError>) -> Option<Io> {
        // An error is that of a task that gave way, and was dealt with then: none of ours panics and lives on.
        let Outcome { number, from, result } = outcome.ok()?;
        self.under_way.remove(&number)?;
        result.map_err(|error| self.refuse(from, &error)).ok()
    }

    fn give_way(&mut self) {
        let (_, oldest) = self.under_way.pop_first().expect("there are as many as may be");
        oldest.task.abort();
        self.refuse(oldest.from, &io::Error::new(io::ErrorKind::TimedOut, "the handshake gave way to others"));
    }

    fn refuse(&mut self, from: SocketAddr, error: &io::Error) {
        // Those who only look whether the port is open are not worth a line.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            tracing::debug!("remote-addr" = %from, "a connection ended before its handshake");
            return;
        }
        let Some(untold) = self.complaints.tell(Instant::now()) else { return };
        match self.role {
            Role::Client => {
                tracing::warn!("remote-addr" = %from, %error, untold, "rejected connection on client endpoint");
            }
            Role::Peer => tracing::warn!("remote-addr" = %from, %error, untold, "rejected connection on peer endpoint"),
        }
    }
}

impl Listener for Handshakes {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>> {
        Box::pin(async move {
            loop {
                let full = self.under_way.len() >= self.bounds.under_way;
                let share_ends =
                    self.under_way.values().next().map_or_else(Instant::now, |oldest| oldest.since) + self.bounds.share;
                tokio::select! {
                    biased;
                    Some(outcome) = self.tasks.join_next() => {
                        if let Some(io) = self.end(outcome) {
                            return Ok(io);
                        }
                    }
                    accepted = self.listener.accept(), if !full => {
                        let (stream, from) = accepted?;
                        self.start(stream, from);
                    }
                    () = sleep_until(share_ends), if full => self.give_way(),
                }
            }
        })
    }
}

#[derive(Clone)]
struct Handshake {
    acceptor: TlsAcceptor,
    check_names: bool,
}

impl Handshake {
    async fn run(self, stream: TcpStream, from: IpAddr) -> io::Result<Io> {
        prepare(&stream)?;
        let stream = self.acceptor.accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        if let Some(certificate) = certificate.filter(|_| self.check_names) {
            names::check(&certificate, from).await?;
        }
        Ok(Box::new(stream))
    }
}

/// Lets a few lines pass in a row, then one every so often.
struct Complaints {
    left: u32,
    /// Up to then `left` was counted up.
    counted: Instant,
    untold: u64,
}

impl Complaints {
    const IN_A_ROW: u32 = 10;
    const INTERVAL: Duration = Duration::from_secs(10);

    fn new(now: Instant) -> Complaints {
        Complaints { left: Self::IN_A_ROW, counted: now, untold: 0 }
    }

    /// Whether to tell; if so, how many were not told before.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        while self.left < Self::IN_A_ROW && self.counted + Self::INTERVAL <= now {
            (self.left, self.counted) = (self.left + 1, self.counted + Self::INTERVAL);
        }
        if self.left == Self::IN_A_ROW {
            self.counted = now;
        }
        if self.left == 0 {
            self.untold += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_a_few_in_a_row_then_now_and_then() {
        let start = Instant::now();
        let mut complaints = Complaints::new(start);
        let mut told = |seconds: u64| complaints.tell(start + Duration::from_secs(seconds));
        let mut in_a_row = 0;
        while told(5).is_some() {
            in_a_row += 1;
        }
        assert_eq!(in_a_row, Complaints::IN_A_ROW);
        assert_eq!((told(14), told(15), told(15)), (None, Some(2), None));
        assert_eq!((told(46), told(46), told(46), told(46)), (Some(1), Some(0), Some(0), None));
        in_a_row = 0;
        while told(100_000).is_some() {
            in_a_row += 1;
        }
        assert_eq!(in_a_row, Complaints::IN_A_ROW, "never more, however long it was quiet");
    }
}
