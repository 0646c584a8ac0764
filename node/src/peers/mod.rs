//! The way to the other members: etcd's peer protocol over HTTP/1.1.
//!
//! Each member dials every other one and *receives* over the connection it dialled: the answer to its GET is a stream
//! without end, into which the other side writes raft messages. So a member has two streams with each peer, one a
//! direction, and a message never waits for another peer's.
//!
//! Bounds: what waits for a peer is held in [`Outgoing`] up to a number of bytes; beyond that, or while the peer has
//! no stream open, messages are dropped and the replica is told. Raft sends again what matters.
mod dial;
mod outgoing;
mod serve;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use detcd_core::{
    consensus::Message,
    event::NodeEvent,
    limits::PEER_SILENCE_MS,
    machine::membership::Membership,
    types::{ClusterId, MemberId},
};
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use self::outgoing::Outgoing;
pub use self::serve::serve;
use crate::{
    host::Host,
    inbox::{Handle, Item},
};

/// The oldest version of etcd this peer protocol understands.
const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// What the tasks around peers share.
#[derive(Clone)]
pub struct Context {
    pub host: Host,
    pub handle: Handle,
    pub member: MemberId,
    pub cluster: ClusterId,
    /// This member's own, as it tells its peers.
    pub urls: Arc<str>,
    /// Which run of this member it is: a peer that hears of another one parts from what is left of the run before.
    run: Arc<str>,
    directory: Arc<Mutex<Directory>>,
}

/// Who is in the cluster, and the way to each.
#[derive(Default)]
struct Directory {
    membership: Arc<Membership>,
    peers: BTreeMap<MemberId, Arc<Peer>>,
}

/// One other member.
pub struct Peer {
    id: MemberId,
    urls: Mutex<Vec<String>>,
    outgoing: Outgoing,
    incoming: Incoming,
    /// It is no longer a member: whatever is connected to it ends.
    gone: AtomicBool,
}

/// The stream from a peer to us, as far as it must be watched.
#[derive(Default)]
struct Incoming {
    /// Something came since the last tick.
    heard: AtomicBool,
    /// Ticks without a sign of life; counted while connected.
    silent_ticks: AtomicU64,
    /// The stream is to be closed and dialled anew.
    cut: AtomicBool,
    waker: AtomicWaker,
    /// The peer's run that the stream is from; none while there is no stream, or the peer does not tell.
    run: Mutex<Option<Arc<str>>>,
}

impl Incoming {
    fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.waker.wake();
    }

    /// The peer was heard to be in this run. A stream from an earlier one is dead, though nothing said so: its machine
    /// may have lost power, and we only read from it.
    fn peer_runs(&self, run: &str) {
        let stale = self.run.lock().as_deref().is_some_and(|streaming| streaming != run);
        if stale {
            self.cut();
        }
    }
}

/// In requests and answers: which run of a member speaks. etcd's members neither send it nor mind it.
const RUN_HEADER: &str = "X-Detcd-Run";

impl Context {
    pub fn new(host: Host, handle: Handle, urls: &[String]) -> Context {
        Context {
            member: handle.member,
            cluster: handle.cluster,
            handle,
            run: format!("{:016x}", host.seed).into(),
            host,
            urls: urls.join(",").into(),
            directory: Arc::default(),
        }
    }
}

/// The driver's side.
pub struct Peers {
    context: Context,
    membership: Arc<Membership>,
    peers: BTreeMap<MemberId, Arc<Peer>>,
    silence_ticks: u64,
    /// Told to the replica at the next tick: at once, it would only send again.
    unreachable: Vec<MemberId>,
}

impl Peers {
    pub fn new(context: Context, heartbeat_ms: u64) -> Peers {
        let silence_ticks = (PEER_SILENCE_MS / heartbeat_ms).max(3);
        Peers { context, membership: Arc::default(), peers: BTreeMap::new(), silence_ticks, unreachable: Vec::new() }
    }

    /// Connects to who is new and parts from who is gone.
    pub fn follow(&mut self, membership: &Arc<Membership>, handle: &Handle) {
        if Arc::ptr_eq(membership, &self.membership) {
            return;
        }
        self.membership = membership.clone();
        let stays = |id: &MemberId| membership.get(*id).is_some();
        for (_, peer) in self.peers.extract_if(.., |id, _| !stays(id)) {
            peer.gone.store(true, Relaxed);
            peer.outgoing.close();
            peer.incoming.cut();
        }
        for member in membership.members().filter(|member| member.id != handle.member) {
            match self.peers.get(&member.id) {
                Some(peer) => *peer.urls.lock() = member.peer_urls.clone(),
                None => {
                    let peer = Arc::new(Peer {
                        id: member.id,
                        urls: Mutex::new(member.peer_urls.clone()),
                        outgoing: Outgoing::default(),
                        incoming: Incoming::default(),
                        gone: AtomicBool::new(false),
                    });
                    self.peers.insert(member.id, peer.clone());
                    tokio::spawn(dial::keep_dialling(self.context.clone(), peer));
                }
            }
        }
        *self.context.directory.lock() = Directory { membership: membership.clone(), peers: self.peers.clone() };
    }

    /// Hands a message over, or drops it.
    pub fn send(&mut self, message: &Message) {
        let id = message.to();
        let sent = self.peers.get(&id).is_some_and(|peer| peer.outgoing.push(message));
        if !sent && !self.unreachable.contains(&id) {
            self.unreachable.push(id);
        }
    }

    /// Watches over the streams: keeps quiet ones alive, ends silent and stuck ones.
    pub fn tick(&mut self, handle: &Handle) {
        handle.push_all(self.unreachable.drain(..).map(Item::Unreachable));
        for peer in self.peers.values() {
            peer.outgoing.tick(self.silence_ticks);
            let incoming = &peer.incoming;
            if incoming.heard.swap(false, Relaxed) {
                incoming.silent_ticks.store(0, Relaxed);
            } else if incoming.silent_ticks.fetch_add(1, Relaxed) == self.silence_ticks {
                incoming.cut();
            }
        }
    }
}

/// A version's major and minor number.
fn parse_version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.split('.');
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next()?))
}

fn note(context: &Context, event: NodeEvent) {
    context.host.probe.note(event);
}
