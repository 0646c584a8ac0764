//! The way to the other members: etcd's peer protocol over HTTP/1.1.
//!
//! Each member dials every other one and *receives* over the connection it dialled: the answer to its GET is a stream
//! without end, into which the other side writes raft messages. So a member has two streams with each peer, one a
//! direction, and a message never waits for another peer's.
//!
//! Bounds: what waits for a peer is held in [`Outgoing`] up to a number of bytes; beyond that, or while the peer has
//! no stream open, messages are dropped and the replica is told. Raft sends again what matters.
//!
//! Snapshots go their own way (`snapshot.rs`), one at a time to each peer. Who is not a member yet, or does not know yet
//! that it is one (`join.rs`), talks to *remotes*: peers that somebody told of, until the log does.
mod client;
mod dial;
mod join;
mod outgoing;
mod promote;
mod receiving;
mod serve;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use detcd_core::{
    consensus::Message,
    event::NodeEvent,
    limits::{HEALTHY_MS, PEER_SILENCE_MS, REMOTES_MAX},
    machine::membership::Membership,
    replica::{self, State},
    types::{ClusterId, MemberId},
};
use futures::{future::AbortHandle, task::AtomicWaker};
use parking_lot::Mutex;

pub use self::{join::find_cluster, promote::ask_to_promote, serve::serve};
use self::{outgoing::Outgoing, receiving::Receiving};
use crate::{
    host::Host,
    inbox::{Handle, Item},
    metrics::Metrics,
    snapshots::Snapshots,
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
    snapshots: Snapshots,
    metrics: Arc<Metrics>,
    receiving: Arc<Receiving>,
}

/// Who is in the cluster, and the way to each.
#[derive(Default)]
struct Directory {
    membership: Arc<Membership>,
    /// By id, with their URLs: whoever may be a member, as far as this one knows.
    remotes: BTreeMap<MemberId, Vec<String>>,
    peers: BTreeMap<MemberId, Arc<Peer>>,
}

/// One other member.
pub struct Peer {
    id: MemberId,
    urls: Mutex<Vec<String>>,
    outgoing: Outgoing,
    incoming: Incoming,
    /// Ends the last snapshot that was sent there: one at a time.
    sending: Mutex<Option<AbortHandle>>,
    /// Snapshots that did not arrive.
    snapshots_lost: AtomicUsize,
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
    /// The peer's run that the stream is from, or the last one was; none if the peer does not tell: only ours do.
    run: Mutex<Option<Arc<str>>>,
    /// Since when the stream has been up, by the node's clock.
    since: Mutex<Option<Duration>>,
}

impl Incoming {
    fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.waker.wake();
    }

    /// Whether the peer is not the one any more that it was in this run, at this time. One that does not tell its run is
    /// taken for another one when it was connected anew.
    fn is_another(&self, run: Option<&str>, then: Duration) -> bool {
        match (run, self.run.lock().as_deref()) {
            (Some(then), Some(now)) => then != now,
            (Some(_), None) => false,
            (None, _) => self.is_newer(then),
        }
    }

    /// Whether the stream came about after this time.
    fn is_newer(&self, then: Duration) -> bool {
        self.since.lock().is_some_and(|since| since > then)
    }

    /// The peer was heard to be in this run. A stream from an earlier one is dead, though nothing said so: its machine
    /// may have lost power, and we only read from it.
    fn peer_runs(&self, run: &str) {
        let is_up = self.since.lock().is_some();
        let stale = is_up && self.run.lock().as_deref().is_some_and(|streaming| streaming != run);
        if stale {
            self.cut();
        }
    }
}

/// In requests and answers: which run of a member speaks. etcd's members neither send it nor mind it.
const RUN_HEADER: &str = "X-Detcd-Run";

impl Context {
    pub fn new(host: Host, handle: Handle, urls: &[String], snapshots: Snapshots, metrics: Arc<Metrics>) -> Context {
        Context {
            member: handle.member,
            cluster: handle.cluster,
            handle,
            run: format!("{:016x}", host.seed).into(),
            host,
            urls: urls.join(",").into(),
            directory: Arc::default(),
            snapshots,
            metrics,
            receiving: Arc::default(),
        }
    }

    /// Peers that are, or may be, members though the log does not say so yet.
    pub fn add_remotes(&self, remotes: impl IntoIterator<Item = (MemberId, Vec<String>)>) {
        let mut directory = self.directory.lock();
        for (id, urls) in remotes.into_iter().filter(|(id, _)| *id != self.member) {
            let has_room = directory.remotes.len() < REMOTES_MAX || directory.remotes.contains_key(&id);
            if has_room && !directory.membership.is_removed(id) && directory.membership.get(id).is_none() {
                directory.remotes.insert(id, urls);
            }
        }
        self.connect(&mut directory);
    }

    /// Connects to who is new and parts from who is gone.
    fn connect(&self, directory: &mut Directory) {
        let Directory { membership, remotes, peers } = directory;
        remotes.retain(|id, _| membership.get(*id).is_none() && !membership.is_removed(*id));
        let members = membership.members().map(|member| (member.id, &member.peer_urls));
        let all = members.chain(remotes.iter().map(|(id, urls)| (*id, urls)));
        let wanted: BTreeMap<_, _> = all.filter(|(id, _)| *id != self.member).collect();
        for (_, peer) in peers.extract_if(.., |id, _| !wanted.contains_key(id)) {
            peer.gone.store(true, Relaxed);
            peer.outgoing.close();
            peer.incoming.cut();
        }
        for (id, urls) in wanted {
            match peers.get(&id) {
                Some(peer) => peer.urls.lock().clone_from(urls),
                None => {
                    let peer = Arc::new(Peer::new(id, urls.clone()));
                    peers.insert(id, peer.clone());
                    tokio::spawn(dial::keep_dialling(self.clone(), peer));
                }
            }
        }
    }

    fn peer(&self, id: MemberId) -> Option<Arc<Peer>> {
        self.directory.lock().peers.get(&id).cloned()
    }
}

impl Peer {
    fn new(id: MemberId, urls: Vec<String>) -> Peer {
        Peer {
            id,
            urls: Mutex::new(urls),
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            sending: Mutex::default(),
            snapshots_lost: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// Where to look for it after so many attempts that failed: any of its URLs may be out of order.
    fn url(&self, attempt: usize) -> String {
        let urls = self.urls.lock();
        urls.get(attempt % urls.len().max(1)).cloned().unwrap_or_default()
    }
}

/// The driver's side.
pub struct Peers {
    context: Context,
    membership: Arc<Membership>,
    silence_ticks: u64,
    /// Told to the replica at the next tick: at once, it would only send again.
    unreachable: Vec<MemberId>,
}

impl Peers {
    pub fn new(context: Context, heartbeat_ms: u64) -> Peers {
        let silence_ticks = (PEER_SILENCE_MS / heartbeat_ms).max(3);
        Peers { context, membership: Arc::default(), silence_ticks, unreachable: Vec::new() }
    }

    pub fn follow(&mut self, membership: &Arc<Membership>) {
        if Arc::ptr_eq(membership, &self.membership) {
            return;
        }
        self.membership = membership.clone();
        let mut directory = self.context.directory.lock();
        directory.membership = membership.clone();
        self.context.connect(&mut directory);
    }

    /// Which peers there is a connection with, and since long enough.
    pub fn connectivity(&self, now: Duration) -> replica::Peers {
        let directory = self.context.directory.lock();
        let since = |peer: &Peer| *peer.incoming.since.lock();
        let up = directory.peers.values().filter_map(|peer| Some((peer.id, now.saturating_sub(since(peer)?))));
        let up: Vec<_> = up.collect();
        let healthy = |(_, time): &&(MemberId, Duration)| time.as_millis() as u64 >= HEALTHY_MS;
        replica::Peers {
            connected: up.iter().map(|(id, _)| *id).collect(),
            healthy: up.iter().filter(healthy).map(|(id, _)| *id).collect(),
        }
    }

    /// Hands a snapshot over; what becomes of it is told in any case.
    pub fn send_snapshot(&self, message: Message, state: State) {
        tokio::spawn(snapshot::send(self.context.clone(), message, state));
    }

    /// Hands a message over, or drops it.
    pub fn send(&mut self, message: &Message) {
        let id = message.to();
        let sent = self.context.directory.lock().peers.get(&id).is_some_and(|peer| peer.outgoing.push(message));
        if !sent && !self.unreachable.contains(&id) {
            self.unreachable.push(id);
        }
    }

    /// Watches over the streams: keeps quiet ones alive, ends silent and stuck ones.
    pub fn tick(&mut self, handle: &Handle) {
        handle.push_all(self.unreachable.drain(..).map(Item::Unreachable));
        for peer in self.context.directory.lock().peers.values() {
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
    context.metrics.observe(&event);
    context.host.probe.note(event);
}
