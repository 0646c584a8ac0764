//! The cluster's machines and the processes on them: start, kill, power loss, pause.
//!
//! A process that ends by itself is as dead as one that was killed: nothing that it had under way gets out any more.
use std::{sync::Arc, time::Duration};

use detcd_core::{machine::membership::Member, replica::Replica};
use detcd_node::{
    config::{ClusterState, Config, Founder},
    driver::Step,
    error::{ExitReason, Failure},
};
use madsim::runtime::{Handle, NodeHandle};
use parking_lot::Mutex;

use super::{
    addresses::{client_url, node_ip, peer_url},
    clock::{SimClock, SimTime},
    disk::{DiskTiming, SimDisk},
    host::Machine,
    net::{NetParams, SimNet},
    recorder::Recorder,
};
use crate::{
    history::{Event, ExitKind, NodeNumber, Peer},
    seed::{Rng, Seed},
};

/// How to build a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    pub nodes: usize,
    /// Machines on which no member runs at first.
    pub spares: usize,
    pub net: NetParams,
    pub disk: DiskTiming,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    pub segment_bytes: u64,
    pub checkpoint_bytes: u64,
    pub tail_bytes: u64,
    pub outputs_max: usize,
    pub drift_ppm_max: u32,
}

/// Puts something around a node's replica: how a bug is planted. By default nothing.
pub type Wrap = Arc<dyn Fn(NodeNumber, Replica) -> Box<dyn Step> + Send + Sync>;

/// The time when the world begins, since the Unix epoch: any will do, but the same always.
const EPOCH: Duration = Duration::from_secs(1_790_000_000);

#[derive(Clone)]
pub struct Cluster {
    pub nodes: Arc<Vec<Node>>,
    pub net: SimNet,
    pub time: SimTime,
    recorder: Recorder,
}

/// One machine and the process on it.
pub struct Node {
    pub machine: Machine,
    process: NodeHandle,
    state: Arc<Mutex<ProcessState>>,
}

struct ProcessState {
    /// What the next process starts with.
    config: Config,
    /// The member that it is; 0 is none.
    member: u64,
    incarnation: u64,
    running: bool,
    /// Why it stands still; it goes on when the last of these is taken back.
    pauses: Vec<PauseId>,
    last_pause: PauseId,
    /// How many faults keep the machine off.
    held: u32,
    /// How the process ended by itself, if it did.
    exit: Option<Exit>,
    /// How it may end by itself, as long as some fault is on: once for each such fault.
    allowed: Vec<&'static [ExitKind]>,
}

/// One pause of one process.
pub type PauseId = u64;

/// A process that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub kind: ExitKind,
    pub reason: String,
    /// A fault that was on may have this effect.
    pub allowed: bool,
}

fn exit_kind(failure: &Failure) -> ExitKind {
    match failure {
        Failure::Removed { .. } => ExitKind::Removed,
        Failure::Join { .. } => ExitKind::Stranded,
        Failure::Disk { .. } | Failure::LogWrite { .. } => ExitKind::Disk,
        Failure::Damaged { .. } | Failure::Log { .. } | Failure::DamagedState { .. } | Failure::StrayState { .. } => {
            ExitKind::Damage
        }
        Failure::Halted(_) => ExitKind::Halted,
        Failure::Locked { .. }
        | Failure::Listen { .. }
        | Failure::NotInCluster { .. }
        | Failure::Unsupported { .. } => ExitKind::Other,
    }
}

impl Cluster {
    /// Builds the machines and starts a process on each. Called within the simulation.
    pub fn start(options: &ClusterOptions, seed: Seed, recorder: &Recorder, wrap: Wrap) -> Cluster {
        let time = SimTime::current();
        let observer = Arc::new(recorder.clone());
        let net = SimNet::new(time.clone(), options.net, seed.child("net", 0), observer.clone());
        let founders: Vec<_> = (1..=options.nodes).map(NodeNumber).map(founder).collect();
        let nodes = (1..=options.nodes + options.spares).map(NodeNumber).map(|number| {
            let seed = seed.child("node", number.0 as u64);
            let disk =
                SimDisk::new(number.0 as u64, time.clone(), options.disk, seed.child("disk", 0), observer.clone());
            let clock = SimClock::new(time.clone(), EPOCH, drift(seed, options.drift_ppm_max));
            let ip = node_ip(number.0);
            let machine = Machine { number, ip, disk, clock, net: net.clone(), recorder: recorder.clone(), seed };
            Node::build(machine, config(number, options, &founders), wrap.clone())
        });
        let cluster = Cluster { nodes: Arc::new(nodes.collect()), net, time, recorder: recorder.clone() };
        for node in &cluster.nodes[..options.nodes] {
            cluster.note_start(node);
        }
        cluster
    }

    pub fn node(&self, number: NodeNumber) -> &Node {
        &self.nodes[number.0 - 1]
    }

    pub fn numbers(&self) -> impl Iterator<Item = NodeNumber> + use<> {
        (1..=self.nodes.len()).map(NodeNumber)
    }

    pub fn is_running(&self, number: NodeNumber) -> bool {
        let state = self.node(number).state.lock();
        state.running && state.exit.is_none()
    }

    /// The id of the member that this machine is, or was last.
    pub fn member(&self, number: NodeNumber) -> u64 {
        self.node(number).state.lock().member
    }

    pub fn is_paused(&self, number: NodeNumber) -> bool {
        !self.node(number).state.lock().pauses.is_empty()
    }

    /// The nodes whose process ended by itself although no fault explains it, and why.
    pub fn exits(&self) -> Vec<(NodeNumber, String)> {
        let exits = self.nodes.iter().filter_map(|node| {
            let exit = node.state.lock().exit.clone().filter(|exit| !exit.allowed)?;
            Some((node.machine.number, exit.reason))
        });
        exits.collect()
    }

    /// How the process ended by itself, if it did.
    pub fn exit(&self, number: NodeNumber) -> Option<Exit> {
        self.node(number).state.lock().exit.clone()
    }

    /// From now on the process may end by itself in such a way, until [`Cluster::forbid_exit`] is called as often.
    pub fn allow_exit(&self, number: NodeNumber, kinds: &'static [ExitKind]) {
        self.node(number).state.lock().allowed.push(kinds);
    }

    pub fn forbid_exit(&self, number: NodeNumber, kinds: &'static [ExitKind]) {
        let mut state = self.node(number).state.lock();
        let at = state.allowed.iter().position(|allowed| *allowed == kinds).expect("it was allowed before");
        state.allowed.remove(at);
    }

    /// No process of this machine may end by itself any more, whatever was allowed.
    pub fn forbid_exits(&self, number: NodeNumber) {
        self.node(number).state.lock().allowed.clear();
    }

    /// Starts the process again if it ended by itself, as it may.
    pub fn restart_ended(&self, number: NodeNumber) {
        {
            let mut state = self.node(number).state.lock();
            if state.exit.take_if(|exit| exit.allowed).is_none() {
                return;
            }
            state.running = false;
        }
        self.restart(number);
    }

    /// Another disk, an empty one. The process must not run.
    pub fn wipe(&self, number: NodeNumber) {
        let node = self.node(number);
        let mut state = node.state.lock();
        let ended = state.exit.is_some();
        assert!(ended || !state.running, "{number} runs on the disk that is taken away");
        // What no fault explains stays to be told.
        state.exit.take_if(|exit| exit.allowed);
        (state.running, state.member) = (false, 0);
        node.machine.disk.wipe();
        prepare(&node.machine);
    }

    /// Starts a process that is to join as this member. The members are told to it as an operator would, by name.
    pub fn join(&self, number: NodeNumber, member: u64, members: &[Peer]) {
        let node = self.node(number);
        {
            let mut state = node.state.lock();
            let name = |peer: &Peer| if peer.member == member { number.to_string() } else { peer.name.to_string() };
            let founder = |peer: &Peer| Founder {
                name: name(peer),
                peer_urls: peer.urls.iter().map(|url| url.to_string()).collect(),
            };
            state.config.initial_cluster = members.iter().map(founder).collect();
            state.config.initial_cluster_state = ClusterState::Existing;
            state.member = member;
        }
        self.restart(number);
    }

    /// The process dies; the machine keeps what was written. Returns whether there was one.
    pub fn kill(&self, number: NodeNumber, seed: Seed) -> bool {
        self.end(number, false, |machine| {
            machine.net.kill(machine.ip);
            machine.disk.kill(&mut seed.rng());
        })
    }

    /// The machine dies: what was not synced may be gone, as `rng` decides. Returns whether a process ran on it.
    pub fn power_off(&self, number: NodeNumber, rng: &mut impl Rng) -> bool {
        self.end(number, true, |machine| {
            machine.net.power_off(machine.ip);
            machine.disk.power_loss(rng);
        })
    }

    fn end(&self, number: NodeNumber, power_loss: bool, fence: impl FnOnce(&Machine)) -> bool {
        let node = self.node(number);
        {
            let mut state = node.state.lock();
            if !state.running || state.exit.is_some() {
                return false;
            }
            state.running = false;
            state.pauses.clear();
        }
        // The fences fall before the tasks are dropped: destructors run, but nothing they do gets out.
        fence(&node.machine);
        let handle = Handle::current();
        handle.resume(node.process.id());
        handle.kill(node.process.id());
        self.recorder.record(Event::Killed { node: number, power_loss });
        true
    }

    /// From now on nobody can start a process on this machine, until [`Cluster::release`] is called as often.
    pub fn hold(&self, number: NodeNumber) {
        self.node(number).state.lock().held += 1;
    }

    pub fn release(&self, number: NodeNumber) {
        self.node(number).state.lock().held -= 1;
    }

    pub fn restart(&self, number: NodeNumber) {
        let node = self.node(number);
        {
            let mut state = node.state.lock();
            // Nobody lives on a spare machine.
            if state.running || state.member == 0 || state.held > 0 {
                return;
            }
            state.running = true;
        }
        self.note_start(node);
        Handle::current().restart(node.process.id());
    }

    fn note_start(&self, node: &Node) {
        let member = node.state.lock().member;
        self.recorder.record(Event::Started { node: node.machine.number, member });
    }

    /// The process stands still until [`Cluster::resume`] is called with this; none if there is no process.
    pub fn pause(&self, number: NodeNumber) -> Option<PauseId> {
        let node = self.node(number);
        let mut state = node.state.lock();
        if !state.running || state.exit.is_some() {
            return None;
        }
        state.last_pause += 1;
        let id = state.last_pause;
        state.pauses.push(id);
        if state.pauses.len() == 1 {
            Handle::current().pause(node.process.id());
        }
        Some(id)
    }

    /// Takes a pause back. Returns whether it lasted until now: the process may have been killed since.
    pub fn resume(&self, number: NodeNumber, pause: PauseId) -> bool {
        let node = self.node(number);
        let mut state = node.state.lock();
        let Some(at) = state.pauses.iter().position(|id| *id == pause) else { return false };
        state.pauses.remove(at);
        if state.pauses.is_empty() {
            Handle::current().resume(node.process.id());
        }
        true
    }
}

fn founder(number: NodeNumber) -> Founder {
    Founder { name: number.to_string(), peer_urls: vec![peer_url(number)] }
}

fn config(number: NodeNumber, options: &ClusterOptions, founders: &[Founder]) -> Config {
    Config {
        listen_client_urls: vec![client_url(number)],
        listen_peer_urls: founder(number).peer_urls,
        advertise_client_urls: vec![client_url(number)],
        advertise_peer_urls: founder(number).peer_urls,
        initial_cluster: founders.to_vec(),
        heartbeat_ms: options.heartbeat_ms,
        election_ms: options.election_ms,
        segment_bytes: options.segment_bytes,
        checkpoint_bytes: options.checkpoint_bytes,
        tail_bytes: options.tail_bytes,
        outputs_max: options.outputs_max,
        ..Config::new(&number.to_string(), "/data")
    }
}

/// Between -max and +max, by the machine's seed.
fn drift(seed: Seed, max: u32) -> i32 {
    let draw = seed.child("drift", 0).rng().next_u64();
    let max = i64::from(max);
    (draw as i64).rem_euclid(2 * max + 1).saturating_sub(max) as i32
}

fn prepare(machine: &Machine) {
    machine.disk.prepare_dir(std::path::Path::new("/")).expect("an empty disk takes a directory");
}

impl Node {
    /// A founder's process starts at once.
    fn build(machine: Machine, config: Config, wrap: Wrap) -> Node {
        let own = config.initial_cluster.iter().find(|founder| founder.name == config.name);
        let founding =
            |own: &Founder| Member::founding(&own.name, own.peer_urls.clone(), &config.initial_cluster_token);
        let member = own.map(founding).map_or(0, |member| member.id.0);
        let state = ProcessState {
            config,
            member,
            incarnation: 0,
            running: member != 0,
            pauses: Vec::new(),
            last_pause: 0,
            held: 0,
            exit: None,
            allowed: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        prepare(&machine);
        let process = {
            let (machine, state) = (machine.clone(), state.clone());
            Handle::current()
                .create_node()
                .name(machine.number.to_string())
                .init(move || live(machine.clone(), state.clone(), wrap.clone()))
                .build()
        };
        Node { machine, process, state }
    }
}

/// A process's life.
async fn live(machine: Machine, state: Arc<Mutex<ProcessState>>, wrap: Wrap) {
    let (incarnation, config) = {
        let mut state = state.lock();
        if !state.running {
            return;
        }
        state.incarnation += 1;
        (state.incarnation, state.config.clone())
    };
    let (number, never) = (machine.number, Box::pin(std::future::pending()));
    let wrap = move |replica| wrap(number, replica);
    let (kind, reason) = match detcd_node::run_with(config, machine.host(incarnation), never, wrap).await {
        ExitReason::Stopped => (ExitKind::Other, "asked to stop".to_owned()),
        ExitReason::Failed(failure) => (exit_kind(&failure), failure.to_string()),
    };
    // Nothing of it outlives it: not what it left with the disk, and not the tasks that it started and nobody waits for.
    machine.net.kill(machine.ip);
    machine.disk.kill(&mut machine.seed.child("exit", incarnation).rng());
    machine.recorder.record(Event::Ended { node: number, kind });
    {
        let mut state = state.lock();
        let allowed = state.allowed.iter().any(|kinds| kinds.contains(&kind));
        state.exit = Some(Exit { kind, reason, allowed });
    }
    Handle::current().kill(madsim::plugin::node());
}

#[cfg(test)]
mod tests;
