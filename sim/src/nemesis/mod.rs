//! The nemesis: carries the schedule out, each fault at its time, and proves of each that it had an effect.
//!
//! Symbolic victims are resolved when a fault strikes. A fault that may not strike (nobody to strike, no quorum would
//! remain and its scenario wants one to, or another fault moves the victim's members) is tried again until its time is
//! over.
//!
//! Invariants:
//! - Every fault that begins ends, at the latest when the phase of faults does.
//! - Faults that overlap are independent: none ends another, and each counts its own effects.
mod atlas;
mod disk;
mod membership;
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
    scenario::{
        Ending,
        fault::{Fault, Victim},
    },
    schedule::{Planned, Schedule, Stand, Start},
    seed::Seed,
    workload::Operator,
    world::{clock::SimTime, cluster::Cluster, recorder::Recorder},
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

/// By the nemesis's name, as it grows.
pub type Tallies = Arc<Mutex<BTreeMap<String, Tally>>>;

/// All of them, even of a run that did not come to its end.
pub fn tallies(tallies: &Tallies) -> Vec<Tally> {
    tallies.lock().values().cloned().collect()
}

pub struct Nemesis {
    pub tallies: Tallies,
    inner: Arc<Inner>,
    /// A fault by which members may have come and gone, if there is one.
    changes: Option<Planned>,
}

struct Inner {
    cluster: Cluster,
    recorder: Recorder,
    time: SimTime,
    operator: Operator,
    seed: Seed,
    /// How many nodes founded the cluster; the others are spare.
    founders: usize,
    /// Addresses of clients, for faults on their links.
    clients: Vec<IpAddr>,
    /// When the phase of faults ends.
    end: Duration,
    /// What is to become of the cluster.
    ending: Ending,
    tallies: Tallies,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whom a fault that is on keeps from doing anything for the cluster, and how many such faults there are.
    disabled: BTreeMap<NodeNumber, u32>,
    /// Ways that are cut, and by how many faults.
    cuts: BTreeMap<(IpAddr, IpAddr), u32>,
    active: BTreeSet<Text>,
    /// Machines whose members a fault that is on moves out or in: no other one does meanwhile.
    moving: BTreeSet<NodeNumber>,
    /// Machines whose disk nobody can go on with: they are to be replaced.
    ruined: BTreeSet<NodeNumber>,
    /// Machines whose disk was tampered with, and whose members have not noticed so far.
    suspects: BTreeSet<NodeNumber>,
}

/// What a nemesis needs of a run.
pub struct Setting {
    pub founders: usize,
    pub seed: Seed,
    pub operator: Operator,
    /// Addresses of clients.
    pub clients: Vec<IpAddr>,
    /// When the phase of faults ends.
    pub end: Duration,
    /// What is to become of the cluster.
    pub ending: Ending,
}

impl Nemesis {
    pub fn start(cluster: &Cluster, recorder: &Recorder, schedule: &Schedule, setting: Setting) -> Nemesis {
        let Setting { founders, seed, operator, clients, end, ending } = setting;
        let tallies = Tallies::default();
        for planned in &schedule.faults {
            let (nemesis, kind) = (planned.id.nemesis.clone(), planned.fault.kind().to_owned());
            let mut tallies = tallies.lock();
            let tally = tallies.entry(nemesis.clone());
            tally.or_insert(Tally { nemesis, kind, planned: 0, struck: 0, fired: 0, effects: 0 }).planned += 1;
        }
        let inner = Arc::new(Inner {
            cluster: cluster.clone(),
            recorder: recorder.clone(),
            time: SimTime::current(),
            operator,
            seed: seed.child("nemeses", 0),
            founders,
            clients,
            end,
            ending,
            tallies: tallies.clone(),
            state: Mutex::default(),
        });
        let mut waiting: BTreeMap<&str, Vec<Planned>> = BTreeMap::new();
        for planned in &schedule.faults {
            if let Start::When { .. } = planned.start {
                waiting.entry(&planned.id.nemesis).or_default().push(planned.clone());
            } else {
                let (inner, planned) = (inner.clone(), planned.clone());
                tokio::spawn(async move { inner.carry_out(&planned).await });
            }
        }
        for planned in waiting.into_values() {
            let inner = inner.clone();
            tokio::spawn(async move {
                for planned in planned {
                    inner.lie_in_wait(&planned).await;
                }
            });
        }
        Nemesis {
            tallies,
            inner,
            changes: schedule.faults.iter().find(|planned| planned.fault.changes_members()).cloned(),
        }
    }

    /// Waits for every fault's end, and mends whatever is left. Nobody may end by itself from then on. Returns the machines
    /// on which there is no member although there should be, or a guest who should be gone. Where all is to end with
    /// members that refuse to start, nobody can put things in order, nor is asked to.
    pub async fn heal(&self) -> Vec<NodeNumber> {
        let Inner { cluster, time, state, .. } = &*self.inner;
        while !state.lock().active.is_empty() {
            time.sleep_until(time.now() + Duration::from_millis(10)).await;
        }
        cluster.net.heal_all();
        for number in cluster.numbers() {
            let machine = &cluster.node(number).machine;
            machine.disk.disarm_all();
            machine.clock.straighten();
        }
        self.inner.confront().await;
        for number in cluster.numbers() {
            let ruined = state.lock().ruined.contains(&number);
            if !ruined && (self.changes.is_none() || self.inner.is_member(number)) {
                cluster.restart_ended(number);
                cluster.restart(number);
            }
        }
        let left = match &self.changes {
            Some(planned) if self.inner.ending != Ending::Refuses => self.inner.complete(planned).await,
            _ => Vec::new(),
        };
        cluster.numbers().for_each(|number| cluster.forbid_exits(number));
        left
    }
}

impl Inner {
    async fn carry_out(&self, planned: &Planned) {
        let Start::At(start) = planned.start else { unreachable!("it waits for something else") };
        let end = (start + planned.lasts).min(self.end);
        self.time.sleep_until(start).await;
        let victims = loop {
            let victims = planned.victims(&self.stand(planned));
            if !victims.is_empty() && self.may_strike(planned, &victims) {
                break victims;
            }
            let next = self.time.now() + RETRY;
            if next >= end {
                return;
            }
            self.time.sleep_until(next).await;
        };
        self.run(planned, &victims, end).await;
    }

    /// Strikes at the moment at which some node comes to the point, if it may; if not, at another such moment.
    async fn lie_in_wait(&self, planned: &Planned) {
        let Start::When { trigger, by, from, until } = planned.start else { unreachable!("it does not wait") };
        self.time.sleep_until(from).await;
        loop {
            let left = until.saturating_sub(self.time.now());
            let told = self.recorder.wait_for(trigger, by.unwrap_or(planned.victim));
            let Ok(Ok(node)) = madsim::time::timeout(left, told).await else { return };
            let victims = match by {
                None if planned.victim != Victim::All => vec![node],
                _ => planned.victims(&self.stand(planned)),
            };
            if !victims.is_empty()
                && victims.iter().all(|victim| self.works(*victim))
                && self.may_strike(planned, &victims)
            {
                let end = (self.time.now() + planned.lasts).min(self.end);
                return self.run(planned, &victims, end).await;
            }
        }
    }

    async fn run(&self, planned: &Planned, victims: &[NodeNumber], end: Duration) {
        let name: Text = Arc::from(self.name(planned, victims));
        self.begin(planned, victims, &name);
        let effects = self.strike(planned, victims, end).await;
        self.finish(planned, victims, &name, effects);
    }

    /// Among whom this fault may choose.
    fn stand(&self, planned: &Planned) -> Stand {
        let moving = if planned.fault.moves_members() { self.state.lock().moving.clone() } else { BTreeSet::new() };
        let (leader, all) = (self.recorder.leader(), self.cluster.numbers().filter(|number| !moving.contains(number)));
        let (running, idle): (Vec<_>, Vec<_>) = all.partition(|number| self.works(*number));
        Stand {
            leader,
            learners: running.iter().copied().filter(|number| self.recorder.is_learner(*number)).collect(),
            running,
            spares: idle.into_iter().filter(|number| number.0 > self.founders).collect(),
        }
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
        if planned.fault.moves_members() {
            state.moving.extend(victims);
        }
        if planned.fault.disables() {
            victims.iter().for_each(|victim| *state.disabled.entry(*victim).or_default() += 1);
        }
        drop(state);
        self.tallies.lock().get_mut(&planned.id.nemesis).expect("every nemesis has a tally").struck += 1;
        self.recorder.record(Event::Fault { fault: name.clone(), on: true });
    }

    fn finish(&self, planned: &Planned, victims: &[NodeNumber], name: &Text, effects: u64) {
        let mut state = self.state.lock();
        state.active.remove(name);
        if planned.fault.moves_members() {
            state.moving.retain(|number| !victims.contains(number));
        }
        if planned.fault.disables() {
            for victim in victims {
                let count = state.disabled.get_mut(victim).expect("counted at the beginning");
                *count -= 1;
                if *count == 0 {
                    state.disabled.remove(victim);
                }
            }
        }
        drop(state);
        let mut tallies = self.tallies.lock();
        let tally = tallies.get_mut(&planned.id.nemesis).expect("every nemesis has a tally");
        tally.fired += u64::from(effects > 0);
        tally.effects += effects;
        drop(tallies);
        // What is ruined for good is never over.
        if self.ending != Ending::Refuses || !planned.fault.may_ruin() {
            self.recorder.record(Event::Fault { fault: name.clone(), on: false });
        }
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
            Fault::GarbledState => self.garble(victims, end).await,
            Fault::FailedSync { files } => self.fail_sync(victims, files, end).await,
            Fault::IoError { io, files } => self.io_error(victims, io, files, end).await,
            Fault::DiskFull { files } => self.fill(victims, files, end).await,
            Fault::Rot { sectors, files } => self.rot(planned, victims[0], sectors as u64, files, end).await,
            Fault::LatentErrors { sectors, files } => {
                self.break_sectors(planned, victims[0], sectors as u64, files, end).await
            }
            Fault::Misdirected => self.misdirect(planned, victims[0], end).await,
            Fault::StaleDisk => self.stale_disk(planned, victims[0], end).await,
            Fault::Replace { arrival, keep_data } => self.replace(planned, victims[0], arrival, keep_data, end).await,
            Fault::Join { arrival } => self.join(planned, victims[0], arrival, end).await,
            Fault::Update => self.update(planned, victims[0], end).await,
            Fault::MoveLeader => self.move_leader(victims[0], end).await,
            Fault::RefusedRemoval => self.refused_removal(planned, victims[0], end).await,
        }
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms as u64)
}
