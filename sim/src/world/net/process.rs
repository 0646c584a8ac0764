//! Processes on machines: who listens, who connects, who is dead.
use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    io,
    net::IpAddr,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use detcd_node::{
    config::parse_url,
    host::{BoxFuture, Io, Listener, Net, Role},
};

use super::{
    NetOp, Shared,
    conn::{Conn, EndState, Side, fenced},
    stream::SimStream,
    wire::{LinkId, Wire},
};

/// A connection's place in the list; used again when nobody holds either end.
pub type ConnId = usize;
const ACCEPTED: Side = 1;

/// A port on which a process waits for connections.
struct Port {
    /// Tells apart those who held the port one after the other.
    listener: u64,
    epoch: u64,
    backlog: VecDeque<(Duration, ConnId)>,
    waker: Option<Waker>,
}

pub struct State {
    pub wire: Wire,
    conns: Vec<Option<Conn>>,
    free: Vec<ConnId>,
    ports: BTreeMap<(IpAddr, u16), Port>,
    last_conn: u64,
    last_listener: u64,
}

impl State {
    pub fn new(wire: Wire) -> State {
        State { wire, conns: Vec::new(), free: Vec::new(), ports: BTreeMap::new(), last_conn: 0, last_listener: 0 }
    }

    pub fn conn(&mut self, conn: ConnId) -> (&mut Conn, &mut Wire) {
        (self.conns[conn].as_mut().expect("a held connection is there"), &mut self.wire)
    }

    pub fn connections(&self) -> usize {
        self.conns.iter().flatten().count()
    }

    pub fn close(&mut self, id: ConnId, side: Side) {
        let (conn, wire) = self.conn(id);
        conn.close(side, wire);
        self.forget(id);
    }

    fn forget(&mut self, id: ConnId) {
        if self.conns[id].take_if(|conn| !conn.is_held()).is_some() {
            self.free.push(id);
        }
    }

    fn each(&mut self, mut f: impl FnMut(&mut Conn, &mut Wire)) {
        self.conns.iter_mut().flatten().for_each(|conn| f(conn, &mut self.wire));
    }

    /// A new process. Returns its epoch.
    pub fn start(&mut self, ip: IpAddr) -> u64 {
        self.fence(ip, true);
        self.wire.machines[&ip].epoch
    }

    /// Ends the process on a machine, if there is one, and maybe the machine.
    pub fn fence(&mut self, ip: IpAddr, powered: bool) {
        let machine = self.wire.machines.entry(ip).or_default();
        machine.epoch += 1;
        machine.powered = powered;
        let ended = machine.epoch - 1;
        for at in Vec::from_iter(self.ports.range((ip, 0)..=(ip, u16::MAX)).map(|(at, _)| *at)) {
            self.unlisten(at);
        }
        self.each(|conn, wire| {
            for side in [0, 1] {
                // A machine that lives delivers what was left to it.
                if conn.is_of(side, ip, ended) && !(powered && conn.is_closed(side)) {
                    wire.stats.ends_fenced += u64::from(conn.is_open(side));
                    conn.vanish(side, EndState::Vanished, wire);
                }
            }
            if powered && (conn.host(0) == ip || conn.host(1) == ip) {
                conn.mended(wire);
            }
        });
    }

    pub fn cut(&mut self, from: IpAddr, to: IpAddr) {
        let link = self.wire.link(from, to);
        if self.wire.set_cut(link, true) {
            self.each(|conn, wire| conn.link_cut(link, wire));
        }
    }

    pub fn heal(&mut self, from: IpAddr, to: IpAddr) {
        let link = self.wire.link(from, to);
        self.mend(link);
    }

    pub fn heal_all(&mut self) {
        self.wire.clear();
        for link in self.wire.cut_links() {
            self.mend(link);
        }
    }

    fn mend(&mut self, link: LinkId) {
        if self.wire.set_cut(link, false) {
            self.each(|conn, wire| conn.mended(wire));
        }
    }

    pub fn reset_connections(&mut self, a: IpAddr, b: IpAddr) -> u64 {
        let before = self.wire.stats.resets;
        self.each(|conn, wire| {
            if conn.is_between(a, b) && (conn.is_open(0) || conn.is_open(1)) {
                conn.reset(wire);
                wire.stats.resets += 1;
            }
        });
        self.wire.stats.resets - before
    }

    pub fn half_open(&mut self, a: IpAddr, b: IpAddr) -> u64 {
        let before = self.wire.stats.half_opened;
        self.each(|conn, wire| {
            let side = usize::from(conn.host(0) != a);
            if conn.is_between(a, b) && conn.is_open(side) {
                conn.vanish(side, EndState::Failed(io::ErrorKind::ConnectionAborted), wire);
                wire.stats.half_opened += 1;
            }
        });
        self.wire.stats.half_opened - before
    }

    fn listen(&mut self, at: (IpAddr, u16), epoch: u64) -> io::Result<u64> {
        if !self.wire.is_alive(at.0, epoch) {
            return Err(fenced());
        }
        if self.ports.contains_key(&at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.last_listener += 1;
        let port = Port { listener: self.last_listener, epoch, backlog: VecDeque::new(), waker: None };
        self.ports.insert(at, port);
        Ok(self.last_listener)
    }

    /// Nobody will accept what waits here.
    fn unlisten(&mut self, at: (IpAddr, u16)) {
        let Some(port) = self.ports.remove(&at) else { return };
        if let Some(waker) = port.waker {
            waker.wake();
        }
        for (_, id) in port.backlog {
            let (conn, wire) = self.conn(id);
            conn.vanish(ACCEPTED, EndState::Vanished, wire);
            conn.release(ACCEPTED);
            self.forget(id);
        }
    }

    fn accept(&mut self, at: (IpAddr, u16), listener: u64, waker: &Waker) -> Poll<io::Result<ConnId>> {
        let port = self.ports.get_mut(&at).filter(|port| port.listener == listener);
        let Some(port) = port else { return Poll::Ready(Err(fenced())) };
        match port.backlog.front() {
            Some((ready, _)) if *ready <= self.wire.now => {
                port.waker = None;
                return Poll::Ready(Ok(port.backlog.pop_front().expect("it has a front").1));
            }
            Some((ready, _)) => self.wire.time.wake_at(*ready, waker),
            None => {}
        }
        port.waker = Some(waker.clone());
        Poll::Pending
    }

    /// A connect's first segment reaches its machine. None if that does not answer.
    fn knock(&mut self, at: (IpAddr, u16)) -> Option<Answer> {
        if !self.wire.is_powered(at.0) {
            return None;
        }
        match self.ports.get(&at) {
            Some(port) if port.backlog.len() >= self.wire.params.backlog => None,
            Some(_) => Some(Answer::Welcome),
            None => Some(Answer::Refused),
        }
    }

    /// The answer reached the one who connects: the stream is there. The other end gets it when that hears of it.
    fn establish(&mut self, me: (IpAddr, u64), at: (IpAddr, u16), link: LinkId) -> Option<ConnId> {
        let ready = self.wire.now + self.wire.latency(link);
        let port = self.ports.get_mut(&at)?;
        self.last_conn += 1;
        let conn = Conn::new(self.last_conn, [me, (at.0, port.epoch)], &mut self.wire);
        let id = self.free.pop().unwrap_or(self.conns.len());
        if id == self.conns.len() {
            self.conns.push(None);
        }
        self.conns[id] = Some(conn);
        // The first in line is the first that is ready.
        let ready = port.backlog.back().map_or(ready, |(last, _)| ready.max(*last));
        port.backlog.push_back((ready, id));
        if let Some(waker) = &port.waker {
            self.wire.time.wake_at(ready, waker);
        }
        self.wire.stats.connects += 1;
        self.wire.notes.push(NetOp::Connected { conn: self.last_conn, from: me.0, to: at.0, port: at.1 });
        Some(id)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Welcome,
    Refused,
}

/// The network, as one process sees it.
pub struct ProcessNet {
    pub shared: Arc<Shared>,
    pub ip: IpAddr,
    pub epoch: u64,
}

impl ProcessNet {
    /// `localhost` and the unspecified address are this machine.
    fn resolve(&self, url: &str) -> io::Result<(IpAddr, u16)> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("not a URL of this network: {url}"));
        let (address, tls) = parse_url(url).ok_or_else(invalid)?;
        if tls {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{url}: this network has no TLS")));
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?;
        if host == "localhost" {
            return Ok((self.ip, port));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let ip: IpAddr = host.parse().map_err(|_| invalid())?;
        Ok((if ip.is_loopback() || ip.is_unspecified() { self.ip } else { ip }, port))
    }

    /// Runs `f` for a process that is alive.
    fn alive<R>(&self, f: impl FnOnce(&mut State) -> R) -> io::Result<R> {
        self.shared.with(|state| if state.wire.is_alive(self.ip, self.epoch) { Ok(f(state)) } else { Err(fenced()) })
    }

    async fn connect_to(&self, at: (IpAddr, u16)) -> io::Result<Io> {
        let time = &self.shared.time;
        let params = self.alive(|state| state.wire.params)?;
        let mut attempt = time.now();
        let (deadline, mut rto) = (attempt + params.connect_timeout, params.connect_rto);
        loop {
            if let Some(stream) = self.try_connect(at, deadline).await? {
                return Ok(stream);
            }
            if rto == params.connect_rto {
                self.alive(|state| state.wire.stats.connects_delayed += 1)?;
            }
            let again = attempt + rto;
            time.sleep_until(again.min(deadline)).await;
            if again >= deadline || time.now() >= deadline {
                self.alive(|state| state.wire.stats.connects_timed_out += 1)?;
                return Err(io::ErrorKind::TimedOut.into());
            }
            (attempt, rto) = (again, rto * 2);
        }
    }

    /// One segment there and one back. None if either is lost, or too late.
    async fn try_connect(&self, at: (IpAddr, u16), deadline: Duration) -> io::Result<Option<Io>> {
        let (there, back) = self.alive(|state| (state.wire.link(self.ip, at.0), state.wire.link(at.0, self.ip)))?;
        if !self.pass(there, deadline).await? {
            return Ok(None);
        }
        let Some(answer) = self.alive(|state| state.knock(at))? else { return Ok(None) };
        if !self.pass(back, deadline).await? {
            return Ok(None);
        }
        let conn = match answer {
            Answer::Welcome => self.alive(|state| state.establish((self.ip, self.epoch), at, there))?,
            Answer::Refused => None,
        };
        let Some(conn) = conn else {
            self.alive(|state| state.wire.stats.connects_refused += 1)?;
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        Ok(Some(Box::new(SimStream { shared: self.shared.clone(), conn, side: 0 })))
    }

    /// Sends a segment without bytes over a link. Returns whether it got through in time.
    async fn pass(&self, link: LinkId, deadline: Duration) -> io::Result<bool> {
        let sent = |State { wire, .. }: &mut State| (!wire.swallows(link)).then(|| wire.now + wire.latency(link));
        let Some(arrives) = self.alive(sent)? else { return Ok(false) };
        self.shared.time.sleep_until(arrives.min(deadline)).await;
        let cut = self.alive(|state| {
            state.wire.count_held(link, 1);
            state.wire.is_cut(link)
        })?;
        Ok(arrives <= deadline && !cut)
    }
}

impl Net for ProcessNet {
    /// Roles make no difference here: there is no TLS.
    fn listen<'a>(&'a self, _: Role, url: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let at = self.resolve(url)?;
            if at.0 != self.ip {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            let listener = self.shared.with(|state| state.listen(at, self.epoch))?;
            Ok(Box::new(SimListener { shared: self.shared.clone(), at, listener }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, _: Role, url: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async move { self.connect_to(self.resolve(url)?).await })
    }
}

struct SimListener {
    shared: Arc<Shared>,
    at: (IpAddr, u16),
    listener: u64,
}

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>> {
        Box::pin(poll_fn(|cx| {
            let accepted = self.shared.with(|state| state.accept(self.at, self.listener, cx.waker()));
            accepted.map_ok(|conn| Box::new(SimStream { shared: self.shared.clone(), conn, side: ACCEPTED }) as Io)
        }))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.shared.with(|state| {
            if state.ports.get(&self.at).is_some_and(|port| port.listener == self.listener) {
                state.unlisten(self.at);
            }
        });
    }
}
