//! The nemesis: carries the schedule out, each fault at its time, and proves of each that it had an effect.
//!
//! Symbolic victims are resolved when a fault strikes. A fault that may not strike (nobody to strike, or no quorum
//! would remain and its scenario wants one to) is tried again until its time is over.
//!
//! Invariants:
//! - Every fault that begins ends, at the latest when the phase of faults does.
//! - Ways that several faults cut are mended when the last of them ends.
mod network;
mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    history::{Event, NodeNumber, Text},
    scenario::fault::{Fault, quorum_remains},
    schedule::{Planned, Schedule, Start},
    world::{
        clock::SimTime,
        cluster::{Cluster, node_ip},
        net::LinkParams,
        recorder::Recorder,
    },
};

/// How long a fault that may not strike waits before it looks again.
const RETRY: Duration = Duration::from_millis(50);

/// What a scenario's nemesis came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// The nemesis's name, and the kind of its faults.
    pub nemesis: String,
    pub kind: String,
    pub planned: u64,
    /// Those that began.
    pub struck: u64,
    /// Those of which an effect was seen.
    pub fired: u64,
    /// Effects in all: kills, bytes held up, connections reset, and so on, as the kind has it.
    pub effects: u64,
}

pub struct Nemesis {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    recorder: Recorder,
    time: SimTime,
    /// Addresses of clients, for faults on their links.
    clients: Vec<IpAddr>,
    /// What links are like when no fault is on.
    node_link: LinkParams,
    client_link: LinkParams,
    /// When the phase of faults ends.
    end: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tallies: BTreeMap<String, Tally>,
    /// Whom a fault that is on keeps from doing anything for the cluster, and how many such faults there are.
    disabled: BTreeMap<NodeNumber, u32>,
    /// Ways that are cut, and by how many faults.
    cuts: BTreeMap<(IpAddr, IpAddr), u32>,
    active: BTreeSet<Text>,
}

impl Nemesis {
    pub fn start(
        cluster: &Cluster,
        recorder: &Recorder,
        schedule: &Schedule,
        clients: Vec<IpAddr>,
        [node_link, client_link]: [LinkParams; 2],
        end: Duration,
    ) -> Nemesis {
        let mut state = State::default();
        for planned in &schedule.faults {
            let (nemesis, kind) = (planned.id.nemesis.clone(), planned.fault.kind().to_owned());
            let tally = state.tallies.entry(nemesis.clone());
            tally.or_insert(Tally { nemesis, kind, planned: 0, struck: 0, fired: 0, effects: 0 }).planned += 1;
        }
        let inner = Arc::new(Inner {
            cluster: cluster.clone(),
            recorder: recorder.clone(),
            time: SimTime::current(),
            clients,
            node_link,
            client_link,
            end,
            state: Mutex::new(state),
        });
        for planned in &schedule.faults {
            let (inner, planned) = (inner.clone(), planned.clone());
            tokio::spawn(async move { inner.carry_out(&planned).await });
        }
        Nemesis { inner }
    }

    /// Waits for every fault's end, and mends whatever is left.
    pub async fn heal(&self) {
        let Inner { cluster, time, state, .. } = &*self.inner;
        while !state.lock().active.is_empty() {
            time.sleep_until(time.now() + Duration::from_millis(10)).await;
        }
        cluster.net.heal_all();
        for number in cluster.numbers() {
            cluster.resume(number);
            cluster.restart(number);
        }
    }

    pub fn tallies(&self) -> Vec<Tally> {
        self.inner.state.lock().tallies.values().cloned().collect()
    }
}

impl Inner {
    async fn carry_out(&self, planned: &Planned) {
        let Start::At(start) = planned.start;
        let end = (start + planned.lasts).min(self.end);
        self.time.sleep_until(start).await;
        let victims = loop {
            let victims = self.victims(planned);
            if !victims.is_empty() && self.may_strike(planned, &victims) {
                break victims;
            }
            let next = self.time.now() + RETRY;
            if next >= end {
                return;
            }
            self.time.sleep_until(next).await;
        };
        let name: Text = Arc::from(self.name(planned, &victims));
        self.begin(planned, &victims, &name);
        let effects = self.strike(planned, &victims, end).await;
        self.finish(planned, &victims, &name, effects);
    }

    fn victims(&self, planned: &Planned) -> Vec<NodeNumber> {
        let running: Vec<_> = self.cluster.numbers().filter(|number| self.works(*number)).collect();
        planned.victims(&running, self.recorder.leader())
    }

    fn works(&self, number: NodeNumber) -> bool {
        self.cluster.is_running(number) && !self.cluster.is_paused(number)
    }

    fn may_strike(&self, planned: &Planned, victims: &[NodeNumber]) -> bool {
        if !planned.keep_quorum {
            return true;
        }
        let nodes = self.cluster.nodes.len();
        let state = self.state.lock();
        let new_cuts = planned.cuts(victims, nodes);
        let works = |number: NodeNumber| {
            let struck = planned.fault.disables() && victims.contains(&number);
            !struck && !state.disabled.contains_key(&number) && self.works(number)
        };
        let is_cut = |a: NodeNumber, b: NodeNumber| {
            new_cuts.contains(&(a, b)) || state.cuts.contains_key(&(node_ip(a.0), node_ip(b.0)))
        };
        quorum_remains(nodes, works, is_cut)
    }

    /// `power_loss/3 on n2 (torn)`: which fault it is, and whom it struck.
    fn name(&self, planned: &Planned, victims: &[NodeNumber]) -> String {
        let victims: Vec<_> = victims.iter().map(NodeNumber::to_string).collect();
        let details = planned.fault.details();
        let details = if details.is_empty() { details } else { format!(" ({details})") };
        format!("{} on {}{details}", planned.id, victims.join(" "))
    }

    fn begin(&self, planned: &Planned, victims: &[NodeNumber], name: &Text) {
        let mut state = self.state.lock();
        state.active.insert(name.clone());
        if planned.fault.disables() {
            victims.iter().for_each(|victim| *state.disabled.entry(*victim).or_default() += 1);
        }
        state.tallies.get_mut(&planned.id.nemesis).expect("every nemesis has a tally").struck += 1;
        drop(state);
        self.recorder.record(Event::Fault { fault: name.clone(), on: true });
    }

    fn finish(&self, planned: &Planned, victims: &[NodeNumber], name: &Text, effects: u64) {
        let mut state = self.state.lock();
        state.active.remove(name);
        if planned.fault.disables() {
            for victim in victims {
                let count = state.disabled.get_mut(victim).expect("counted at the beginning");
                *count -= 1;
                if *count == 0 {
                    state.disabled.remove(victim);
                }
            }
        }
        let tally = state.tallies.get_mut(&planned.id.nemesis).expect("every nemesis has a tally");
        tally.fired += u64::from(effects > 0);
        tally.effects += effects;
        drop(state);
        self.recorder.record(Event::Fault { fault: name.clone(), on: false });
    }

    /// Does it, until `end`. Returns the effects seen.
    async fn strike(&self, planned: &Planned, victims: &[NodeNumber], end: Duration) -> u64 {
        match planned.fault {
            Fault::PowerLoss { torn } => self.power_loss(victims, torn, planned.seed, end).await,
            Fault::Kill => self.kill(victims, planned.seed, end).await,
            Fault::Pause => self.pause(victims, end).await,
            Fault::SlowFsync { extra_ms } => self.slow_fsync(victims, millis(extra_ms), end).await,
            Fault::StalledFsync => self.stall(victims, end).await,
            Fault::ClockDrift { ppm } => self.drift(victims, ppm as i32, end).await,
            Fault::WallJump { ms } => self.jump(victims, ms, end).await,
            Fault::Partition { links, .. } => self.partition(planned, victims, links, end).await,
            Fault::Flapping { links, down_ms, up_ms, .. } => {
                self.flap(planned, victims, links, [millis(down_ms), millis(up_ms)], end).await
            }
            Fault::ResetConnections { links, period_ms } => {
                self.reset_connections(victims, links, millis(period_ms), end).await
            }
            Fault::HalfOpen { links, period_ms } => self.half_open(victims, links, millis(period_ms), end).await,
            Fault::Latency { links, extra_ms } => self.clog(victims, links, millis(extra_ms), end).await,
            Fault::Loss { links, ppm } => self.lose(victims, links, ppm as u32, end).await,
        }
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms as u64)
}
