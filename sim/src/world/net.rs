//! The network: byte streams between hosts, over links that can be slow, lossy, clogged or cut, each way on its own.
//!
//! One [`SimNet`] is the whole network. Each start of a process takes its [`SimNet::host`] handle; the fence falls with
//! `kill`, `power_off` or the next `host`. Nothing says farewell then: the streams of a dead process become half-open at
//! the other end, until that end writes and is answered by a reset, or by nothing at all and times out.
//!
//! Streams behave as TCP does, as far as a program can tell:
//! - What is lost comes later (retransmission), and all behind it waits (head-of-line blocking).
//! - What a cut link holds back is sent again after it heals, with back-off, unless the connection timed out before.
//! - Acknowledgements travel the other way: a writer times out if that way alone is cut.
//! - A writer blocks when the window is full, in flight and unread together.
//! - Bytes that reach an end that is gone are answered by a reset, if the machine is up and the way back is open.
//!
//! Invariants:
//! - Bytes arrive once and in order, or the stream fails.
//! - Whoever waits is woken when what it waits for comes about, whatever faults begin or end in between.
//! - The observer is called with no lock held, so it may strike back at once.
mod conn;
#[cfg(test)]
mod faults_tests;
mod link;
mod process;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torture_tests;
mod wire;

use std::{io, mem, net::IpAddr, sync::Arc, time::Duration};

use detcd_node::host::Net;
use parking_lot::Mutex;

pub use self::link::{LinkParams, LinkStats};
use self::{
    link::Link,
    process::{ProcessNet, State},
    wire::Wire,
};
use super::clock::{Delay, SimTime};
use crate::seed::Seed;

/// What all connections share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetParams {
    /// Every link that has no parameters of its own.
    pub link: LinkParams,
    /// From a host to itself.
    pub loopback: LinkParams,
    /// After so long without an answer, a connect fails.
    pub connect_timeout: Duration,
    /// After so long without an acknowledgement, a stream fails at its writer.
    pub unacked_timeout: Duration,
    /// What is lost is sent again after this time, then after twice that, and so on up to `rto_max`.
    pub rto: Duration,
    pub rto_max: Duration,
    /// As `rto`, for the first segment of a connect.
    pub connect_rto: Duration,
    /// What one direction of a stream holds, in flight and unread, in bytes.
    pub window: usize,
    /// How many connections wait for an accept; what comes on top is lost.
    pub backlog: usize,
}

impl Default for NetParams {
    fn default() -> NetParams {
        NetParams {
            link: LinkParams { latency: Delay::new(100, 300), loss_ppm: 0, bytes_per_us: 0 },
            loopback: LinkParams { latency: Delay::new(10, 20), loss_ppm: 0, bytes_per_us: 0 },
            connect_timeout: Duration::from_secs(3),
            unacked_timeout: Duration::from_secs(15),
            rto: Duration::from_millis(200),
            rto_max: Duration::from_millis(3_200),
            connect_rto: Duration::from_secs(1),
            window: 128 << 10,
            backlog: 128,
        }
    }
}

/// What the network did. Every fault counts here, so that a run can prove that it fired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetStats {
    pub segments: u64,
    pub bytes: u64,
    pub connects: u64,
    pub connects_refused: u64,
    pub connects_timed_out: u64,
    /// Connects of which a segment was lost, or met a cut or a machine that is off.
    pub connects_delayed: u64,
    /// Retransmissions: a segment lost twice counts twice.
    pub segments_lost: u64,
    pub segments_clogged: u64,
    /// Bytes that a cut link held back.
    pub cut_bytes_delayed: u64,
    /// Streams that failed for want of acknowledgements.
    pub streams_timed_out: u64,
    /// Streams that failed because the other end was gone.
    pub streams_reset: u64,
    /// Connections that `reset_connections` reset.
    pub resets: u64,
    /// Connections that `half_open` tore at one end.
    pub half_opened: u64,
    /// Ends of streams that died with their process.
    pub ends_fenced: u64,
}

/// What happened on the network. `conn` numbers connections from 1; `hash` is the xxh3 of the segment's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetOp {
    Connected {
        conn: u64,
        from: IpAddr,
        to: IpAddr,
        port: u16,
    },
    Sent {
        conn: u64,
        from: IpAddr,
        to: IpAddr,
        len: usize,
        hash: u64,
    },
    /// A segment was lost, and will arrive only then.
    Lost {
        from: IpAddr,
        to: IpAddr,
        until: Duration,
    },
    /// The reader took the segment's first byte.
    Delivered {
        conn: u64,
        from: IpAddr,
        to: IpAddr,
        len: usize,
        hash: u64,
    },
    /// `from` sends no more.
    Shut {
        conn: u64,
        from: IpAddr,
        to: IpAddr,
    },
    /// The stream failed at this end.
    Failed {
        conn: u64,
        at: IpAddr,
        kind: io::ErrorKind,
    },
}

pub trait NetObserver: Send + Sync + 'static {
    fn net(&self, what: NetOp);
}

/// For whoever does not want to know.
impl NetObserver for () {
    fn net(&self, _: NetOp) {}
}

/// The whole network. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimNet(Arc<Shared>);

struct Shared {
    time: SimTime,
    observer: Arc<dyn NetObserver>,
    state: Mutex<State>,
}

impl Shared {
    /// Runs `f` on the state as of now, then tells the observer what came of it.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let (result, notes) = {
            let mut state = self.state.lock();
            state.wire.now = self.time.now();
            let result = f(&mut state);
            (result, mem::take(&mut state.wire.notes))
        };
        for note in notes {
            self.observer.net(note);
        }
        result
    }
}

impl SimNet {
    /// `seed` decides latencies and losses, each link's on its own, and nothing else.
    pub fn new(time: SimTime, params: NetParams, seed: Seed, observer: Arc<dyn NetObserver>) -> SimNet {
        let state = Mutex::new(State::new(Wire::new(time.clone(), params, seed)));
        SimNet(Arc::new(Shared { time, observer, state }))
    }

    /// The network for a new process on this machine, which is powered on if it was not. An earlier process is dead.
    pub fn host(&self, ip: IpAddr) -> Arc<dyn Net> {
        let epoch = self.0.with(|state| state.start(ip));
        Arc::new(ProcessNet { shared: self.0.clone(), ip, epoch })
    }

    /// The process dies, the machine does not: connects are refused, and bytes for the dead are answered by a reset.
    pub fn kill(&self, ip: IpAddr) {
        self.0.with(|state| state.fence(ip, true));
    }

    /// The machine dies: nothing is answered until the next [`SimNet::host`].
    pub fn power_off(&self, ip: IpAddr) {
        self.0.with(|state| state.fence(ip, false));
    }

    /// From now on nothing gets from `from` to `to`, neither bytes nor acknowledgements.
    pub fn cut(&self, from: IpAddr, to: IpAddr) {
        self.0.with(|state| state.cut(from, to));
    }

    /// Ends a cut. What it held back is sent again at the next retransmission.
    pub fn heal(&self, from: IpAddr, to: IpAddr) {
        self.0.with(|state| state.heal(from, to));
    }

    /// Ends all cuts, clogs, losses and damage.
    pub fn heal_all(&self) {
        self.0.with(State::heal_all);
    }

    pub fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.0.with(|state| {
            let link = state.wire.link(from, to);
            state.wire.is_cut(link)
        })
    }

    /// What is sent from now on takes so much longer, whatever else makes it slow.
    pub fn clog(&self, from: IpAddr, to: IpAddr, extra: Duration) {
        self.on_link(from, to, |link| link.extra += extra);
    }

    /// Takes one such clog back.
    pub fn unclog(&self, from: IpAddr, to: IpAddr, extra: Duration) {
        self.on_link(from, to, |link| link.extra = link.extra.saturating_sub(extra));
    }

    /// Of a million segments that are sent from now on so many more are lost.
    pub fn lose(&self, from: IpAddr, to: IpAddr, ppm: u32) {
        self.on_link(from, to, |link| link.faulty_ppm += ppm);
    }

    /// Takes one such loss back.
    pub fn lose_less(&self, from: IpAddr, to: IpAddr, ppm: u32) {
        self.on_link(from, to, |link| link.faulty_ppm = link.faulty_ppm.saturating_sub(ppm));
    }

    /// Of states that are sent from now on a bit may flip.
    pub fn garble(&self, from: IpAddr, to: IpAddr) {
        self.on_link(from, to, |link| link.garbling += 1);
    }

    /// Takes one such fault back.
    pub fn garble_less(&self, from: IpAddr, to: IpAddr) {
        self.on_link(from, to, |link| link.garbling = link.garbling.saturating_sub(1));
    }

    pub fn link_stats(&self, from: IpAddr, to: IpAddr) -> LinkStats {
        self.on_link(from, to, |link| link.stats)
    }

    fn on_link<R>(&self, from: IpAddr, to: IpAddr, f: impl FnOnce(&mut Link) -> R) -> R {
        self.0.with(|state| {
            let link = state.wire.link(from, to);
            f(state.wire.faulty(link))
        })
    }

    /// Both ends of every connection between these hosts get [`io::ErrorKind::ConnectionReset`]. Returns how many.
    pub fn reset_connections(&self, a: IpAddr, b: IpAddr) -> u64 {
        self.0.with(|state| state.reset_connections(a, b))
    }

    /// Every connection that `a` has with `b` fails at `a`, and `b` does not hear of it. Returns how many.
    pub fn half_open(&self, a: IpAddr, b: IpAddr) -> u64 {
        self.0.with(|state| state.half_open(a, b))
    }

    /// What is sent from now on follows these; none means those of all links.
    pub fn set_link(&self, from: IpAddr, to: IpAddr, params: Option<LinkParams>) {
        self.0.with(|state| {
            let link = state.wire.link(from, to);
            state.wire.set_link(link, params);
        });
    }

    /// The parameters of all links that have none of their own.
    pub fn set_links(&self, params: LinkParams) {
        self.0.with(|state| state.wire.params.link = params);
    }

    pub fn stats(&self) -> NetStats {
        self.0.with(|state| state.wire.stats)
    }

    /// Connections of which somebody holds an end.
    pub fn connections(&self) -> usize {
        self.0.with(|state| state.connections())
    }
}
