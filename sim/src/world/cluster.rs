//! The cluster's machines and the processes on them: start, kill, power loss, pause.
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use detcd_core::{
    event::{NodeEvent, Role},
    machine::membership::Member,
    replica::Replica,
};
use detcd_node::{
    config::{Config, Founder},
    driver::Step,
    error::ExitReason,
};
use madsim::{
    runtime::{Handle, NodeHandle},
    task::NodeId,
};
use parking_lot::Mutex;

use super::{
    clock::{SimClock, SimTime},
    disk::{DiskTiming, SimDisk},
    host::Machine,
    net::{NetParams, SimNet},
    recorder::Recorder,
};
use crate::{
    history::{Event, NodeNumber},
    seed::{Rng, Seed},
};

/// How to build a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    pub nodes: usize,
    pub net: NetParams,
    pub disk: DiskTiming,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    pub segment_bytes: u64,
    pub checkpoint_bytes: u64,
    pub tail_bytes: u64,
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
    pub member: u64,
    process: NodeHandle,
    state: Arc<Mutex<ProcessState>>,
}

#[derive(Debug, Default)]
struct ProcessState {
    incarnation: u64,
    running: bool,
    paused: bool,
    /// Why the process ended by itself, if it did.
    exited: Option<String>,
}

pub fn node_ip(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number as u8))
}

pub fn client_ip(client: u64) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 1, client as u8))
}

pub fn client_url(number: NodeNumber) -> String {
    format!("http://{}:2379", node_ip(number.0))
}

impl Cluster {
    /// Builds the machines and starts a process on each. Called within the simulation.
    pub fn start(options: &ClusterOptions, seed: Seed, recorder: &Recorder, wrap: Wrap) -> Cluster {
        let time = SimTime::current();
        let observer = Arc::new(recorder.clone());
        let net = SimNet::new(time.clone(), options.net, seed.child("net", 0), observer.clone());
        let numbers = (1..=options.nodes).map(NodeNumber);
        let founders: Vec<_> = numbers.clone().map(founder).collect();
        let nodes = numbers.map(|number| {
            let seed = seed.child("node", number.0 as u64);
            let disk =
                SimDisk::new(number.0 as u64, time.clone(), options.disk, seed.child("disk", 0), observer.clone());
            let clock = SimClock::new(time.clone(), EPOCH, drift(seed, options.drift_ppm_max));
            let ip = node_ip(number.0);
            let machine = Machine { number, ip, disk, clock, net: net.clone(), recorder: recorder.clone(), seed };
            Node::build(machine, config(number, options, &founders), wrap.clone())
        });
        let cluster = Cluster { nodes: Arc::new(nodes.collect()), net, time, recorder: recorder.clone() };
        for node in cluster.nodes.iter() {
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
        state.running && state.exited.is_none()
    }

    pub fn is_paused(&self, number: NodeNumber) -> bool {
        self.node(number).state.lock().paused
    }

    /// The nodes whose process ended by itself, and why.
    pub fn exits(&self) -> Vec<(NodeNumber, String)> {
        let exits = self.nodes.iter().filter_map(|node| {
            let reason = node.state.lock().exited.clone()?;
            Some((node.machine.number, reason))
        });
        exits.collect()
    }

    /// The process dies; the machine keeps what was written.
    pub fn kill(&self, number: NodeNumber, seed: Seed) {
        self.end(number, false, |machine| {
            machine.net.kill(machine.ip);
            machine.disk.kill(&mut seed.rng());
        });
    }

    /// The machine dies: what was not synced may be gone, as `rng` decides.
    pub fn power_off(&self, number: NodeNumber, rng: &mut impl Rng) {
        self.end(number, true, |machine| {
            machine.net.power_off(machine.ip);
            machine.disk.power_loss(rng);
        });
    }

    fn end(&self, number: NodeNumber, power_loss: bool, fence: impl FnOnce(&Machine)) {
        let node = self.node(number);
        {
            let mut state = node.state.lock();
            if !state.running {
                return;
            }
            (state.running, state.paused) = (false, false);
        }
        // The fences fall before the tasks are dropped: destructors run, but nothing they do gets out.
        fence(&node.machine);
        let handle = Handle::current();
        handle.resume(node.process.id());
        handle.kill(node.process.id());
        self.recorder.record(Event::Killed { node: number, power_loss });
    }

    pub fn restart(&self, number: NodeNumber) {
        let node = self.node(number);
        if std::mem::replace(&mut node.state.lock().running, true) {
            return;
        }
        self.note_start(node);
        Handle::current().restart(node.process.id());
    }

    fn note_start(&self, node: &Node) {
        self.recorder.record(Event::Started { node: node.machine.number, member: node.member });
    }

    pub fn pause(&self, number: NodeNumber) {
        self.set_paused(number, true, Handle::pause);
    }

    pub fn resume(&self, number: NodeNumber) {
        self.set_paused(number, false, Handle::resume);
    }

    fn set_paused(&self, number: NodeNumber, paused: bool, act: impl Fn(&Handle, NodeId)) {
        let node = self.node(number);
        let mut state = node.state.lock();
        if state.running && state.paused != paused {
            state.paused = paused;
            act(&Handle::current(), node.process.id());
        }
    }
}

/// Follows who leads, by what the nodes note of themselves.
#[derive(Debug, Default)]
pub struct Leadership {
    /// The highest term in which somebody led, and who.
    newest: Option<(u64, NodeNumber)>,
}

impl Leadership {
    pub fn observe(&mut self, node: NodeNumber, event: &NodeEvent) {
        if let NodeEvent::RoleChanged { role: Role::Leader, term, .. } = event
            && self.newest.is_none_or(|(newest, _)| newest <= term.0)
        {
            self.newest = Some((term.0, node));
        }
    }

    pub fn leader(&self) -> Option<NodeNumber> {
        self.newest.map(|(_, node)| node)
    }
}

fn founder(number: NodeNumber) -> Founder {
    Founder { name: number.to_string(), peer_urls: vec![format!("http://{}:2380", node_ip(number.0))] }
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
        ..Config::new(&number.to_string(), "/data")
    }
}

/// Between -max and +max, by the machine's seed.
fn drift(seed: Seed, max: u32) -> i32 {
    let draw = seed.child("drift", 0).rng().next_u64();
    let max = i64::from(max);
    (draw as i64).rem_euclid(2 * max + 1).saturating_sub(max) as i32
}

impl Node {
    fn build(machine: Machine, config: Config, wrap: Wrap) -> Node {
        let own = config.initial_cluster.iter().find(|founder| founder.name == config.name);
        let own = own.expect("every node is a founder");
        let member = Member::founding(&own.name, own.peer_urls.clone(), &config.initial_cluster_token);
        let state = Arc::new(Mutex::new(ProcessState { running: true, ..ProcessState::default() }));
        let number = machine.number;
        machine.disk.prepare_dir(std::path::Path::new("/")).expect("an empty disk takes a directory");
        let process = {
            let (machine, state) = (machine.clone(), state.clone());
            Handle::current()
                .create_node()
                .name(number.to_string())
                .init(move || {
                    let incarnation = {
                        let mut state = state.lock();
                        state.incarnation += 1;
                        state.incarnation
                    };
                    let (host, config) = (machine.host(incarnation), config.clone());
                    let (wrap, state) = (wrap.clone(), state.clone());
                    async move {
                        let never = Box::pin(std::future::pending());
                        let wrap = move |replica| wrap(number, replica);
                        let reason = match detcd_node::run_with(config, host, never, wrap).await {
                            ExitReason::Stopped => "asked to stop".to_owned(),
                            ExitReason::Failed(failure) => failure.to_string(),
                        };
                        state.lock().exited = Some(reason);
                    }
                })
                .build()
        };
        Node { machine, member: member.id.0, process, state }
    }
}
