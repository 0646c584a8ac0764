//! One run: build the cluster, let the clients and the nemesis at it, heal it, and judge.
use std::{
    fs::File,
    net::IpAddr,
    panic,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    history::{Event, NodeNumber, Outcome, Phase, Stamped, WATCHERS_FROM},
    memory::{self, MEMORY_BYTES_MAX},
    nemesis::{self, Nemesis, Tallies, Tally},
    oracle::{self, Judge, LawConfig, Verdict},
    plant::Plant,
    scenario::{Link, Scenario},
    schedule::Schedule,
    seed::Seed,
    witness,
    workload::{Client, End, Operator, Seen, Watcher},
    world::{
        addresses::client_ip,
        clock::{Delay, SimTime},
        cluster::{Cluster, ClusterOptions},
        disk::DiskTiming,
        net::{LinkParams, NetParams},
        recorder::{Recorder, SIMULATED},
    },
};

/// A run that gets nowhere in this much of real time hangs.
const HANG: Duration = Duration::from_secs(30);
/// How long what a run recorded may be out of reach.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the watchdog looks.
const WATCH: Duration = Duration::from_millis(100);
const OPERATOR_NUMBER: u64 = 200;

/// What to run, and how to watch it.
#[derive(Clone)]
pub struct Plan {
    pub scenario: Arc<Scenario>,
    pub seed: u64,
    /// A bug to plant, to see whether a law catches it.
    pub plant: Option<Plant>,
    /// Gets a line for every event in the run's hash.
    pub trace: Option<PathBuf>,
}

/// What came of a run.
pub struct Run {
    pub hash: u64,
    pub events: u64,
    pub simulated: Duration,
    pub history: Vec<Stamped>,
    pub faults: Vec<Tally>,
    pub laws: Vec<(&'static str, Verdict)>,
    pub ops: Ops,
    /// What ended the run before its time: a panic, a hang, exhausted memory, a node that gave up.
    pub accident: Option<Accident>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accident {
    /// "panic", "hang", "memory", "exit" or "incomplete".
    pub kind: &'static str,
    pub text: String,
}

/// Operations by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ops {
    pub acknowledged: u64,
    /// Of these, those that returned while a fault was on.
    pub under_fault: u64,
    pub failed: u64,
    pub unknown: u64,
}

impl Ops {
    fn count(history: &[Stamped]) -> Ops {
        let (mut ops, mut on) = (Ops::default(), 0u64);
        for stamped in history {
            match &stamped.event {
                Event::Fault { on: true, .. } => on += 1,
                Event::Fault { on: false, .. } => on = on.saturating_sub(1),
                Event::Return { outcome: Outcome::Ok(_), .. } => {
                    ops.acknowledged += 1;
                    ops.under_fault += u64::from(on > 0);
                }
                Event::Return { outcome: Outcome::Failed(_), .. } => ops.failed += 1,
                Event::Return { outcome: Outcome::Unknown(_), .. } => ops.unknown += 1,
                _ => {}
            }
        }
        ops
    }
}

/// What the simulation's thread leaves behind, even if it does not come to an end.
#[derive(Default)]
struct Shared {
    recorder: Option<Recorder>,
    faults: Tallies,
    exits: Vec<(NodeNumber, String)>,
    /// Machines whose members did not come back, or did not go.
    incomplete: Vec<NodeNumber>,
}

static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs a plan in a thread of its own: the executor's state, and the keys of hash maps, are a thread's.
pub fn run(plan: &Plan, progress: &dyn Fn(Duration)) -> Run {
    SIMULATED.store(0, Relaxed);
    *PANIC.lock() = None;
    panic::set_hook(Box::new(note_panic));
    let shared = Arc::new(Mutex::new(Shared::default()));
    let (done, ended) = mpsc::channel();
    let abandoned = Arc::new(AtomicBool::new(false));
    let thread = {
        let (plan, shared, abandoned) = (plan.clone(), shared.clone(), abandoned.clone());
        std::thread::Builder::new()
            .name("simulation".into())
            .stack_size(16 << 20)
            .spawn(move || {
                let result = panic::catch_unwind(panic::AssertUnwindSafe(|| {
                    let config = madsim::Config::default();
                    let mut runtime = madsim::runtime::Runtime::with_seed_and_config(plan.seed, config);
                    runtime.set_allow_system_thread(false);
                    runtime.block_on(simulate(plan, shared));
                    if abandoned.load(Relaxed) {
                        std::mem::forget(runtime);
                    }
                }));
                let _ = done.send(result.is_ok()); // the watchdog may have given up
            })
            .expect("the system has room for a thread")
    };
    let accident = watch(&ended, progress);
    if matches!(&accident, Some(Accident { kind: "hang" | "memory", .. })) {
        abandoned.store(true, Relaxed); // its thread cannot be ended; the process will be
    } else {
        let _ = thread.join(); // whatever it had to say, it has sent
    }
    drop(panic::take_hook());
    collect(&shared.lock(), accident)
}

fn note_panic(info: &panic::PanicHookInfo<'_>) {
    let backtrace = std::backtrace::Backtrace::force_capture().to_string();
    let frames: Vec<_> = backtrace.lines().filter(|line| line.contains("detcd")).take(12).collect();
    let mut panic = PANIC.lock();
    if panic.is_none() {
        *panic = Some(format!("{}{info}\n{}", whose(), frames.join("\n")));
    }
}

/// `in a step of n2: `, if some node is at it.
fn whose() -> String {
    witness::stepping().map(|node| format!("in a step of {node}: ")).unwrap_or_default()
}

/// Waits for the simulation's end, and ends it if it gets nowhere or grows too large.
fn watch(ended: &mpsc::Receiver<bool>, progress: &dyn Fn(Duration)) -> Option<Accident> {
    let (mut seen, mut still) = (0, Duration::ZERO);
    loop {
        match ended.recv_timeout(WATCH) {
            Ok(true) => return None,
            Ok(false) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                let text = PANIC.lock().take().unwrap_or_else(|| "the simulation's thread ended".into());
                return Some(Accident { kind: "panic", text });
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now = SIMULATED.load(Relaxed);
        progress(Duration::from_nanos(now));
        still = if now == seen { still + WATCH } else { Duration::ZERO };
        seen = now;
        if still >= HANG {
            let text = format!("{}simulated time stood still for {} s of real time", whose(), HANG.as_secs());
            return Some(Accident { kind: "hang", text });
        }
        if memory::used() > MEMORY_BYTES_MAX {
            let text = format!("{}the run holds more than {} MiB", whose(), MEMORY_BYTES_MAX >> 20);
            return Some(Accident { kind: "memory", text });
        }
    }
}

fn collect(shared: &Shared, mut accident: Option<Accident>) -> Run {
    let recorder = shared.recorder.as_ref();
    if accident.is_none()
        && let Some((node, reason)) = shared.exits.first()
    {
        accident = Some(Accident { kind: "exit", text: format!("{node} stopped by itself: {reason}") });
    }
    if accident.is_none() && !shared.incomplete.is_empty() {
        let machines = shared.incomplete.iter().map(NodeNumber::to_string).collect::<Vec<_>>().join(" ");
        let text = format!("with all faults over, these machines did not become members, or did not leave: {machines}");
        accident = Some(Accident { kind: "incomplete", text });
    }
    // Whoever hangs may hold the record: then there is nothing to tell but that.
    let told = recorder.and_then(|recorder| {
        recorder.try_with(PATIENCE, |record| {
            let history = std::mem::take(&mut record.history);
            (record.hash(), history, record.judge.finish())
        })
    });
    let ((hash, events), history, laws) = told.unwrap_or_default();
    Run {
        hash,
        events,
        simulated: Duration::from_nanos(SIMULATED.load(Relaxed)),
        ops: Ops::count(&history),
        history,
        faults: nemesis::tallies(&shared.faults),
        laws,
        accident,
    }
}

/// The whole run, within the simulation.
async fn simulate(plan: Plan, shared: Arc<Mutex<Shared>>) {
    let time = SimTime::current();
    let (scenario, seed) = (plan.scenario.clone(), Seed(plan.seed));
    let trace = plan.trace.as_ref().map(|path| File::create(path).expect("the trace file can be created"));
    let judge = Judge::new(oracle::all(&law_config(&scenario)));
    let recorder = Recorder::new(time.clone(), judge, trace);
    shared.lock().recorder = Some(recorder.clone());
    recorder.record(Event::Phase(Phase::Safety));
    let wrap = witness::wrap(&recorder, Plant::wrap(plan.plant, seed));
    let cluster = Cluster::start(&cluster_options(&scenario), seed, &recorder, wrap);
    let clients = client_addresses(&scenario);
    let operator = client_ip(OPERATOR_NUMBER);
    join_clients(&cluster, &clients, link(scenario.network.clients));
    join_clients(&cluster, &[operator], link(scenario.network.clients));
    if let Some(plant) = plan.plant {
        plant.strike(&cluster);
    }
    let safety_ends = Duration::from_millis(scenario.run_ms);
    // Clients go on in the second phase: what recovers must serve.
    let end = End::default();
    start_clients(&scenario, &cluster, &recorder, seed, &end);
    let schedule = Schedule::new(&scenario, seed);
    let operator = Operator::new(cluster.net.host(operator), &recorder);
    let founders = scenario.cluster.nodes;
    let ending = scenario.expect.outcome;
    let setting = nemesis::Setting { founders, seed, operator, clients, end: safety_ends, ending };
    let nemesis = Nemesis::start(&cluster, &recorder, &schedule, setting);
    shared.lock().faults = nemesis.tallies.clone();
    time.sleep_until(safety_ends).await;
    let incomplete = nemesis.heal().await;
    {
        let mut shared = shared.lock();
        shared.incomplete = incomplete;
    }
    recorder.record(Event::Phase(Phase::Recovery));
    let recovery_ends = time.now() + Duration::from_millis(scenario.settle_ms);
    end.set(recovery_ends);
    // A little quiet at the end, in which what is under way comes to an end.
    time.sleep_until(recovery_ends + Duration::from_secs(3)).await;
    recorder.record(Event::Phase(Phase::Over));
    shared.lock().exits = cluster.exits();
    recorder.flush();
    // Whatever is left of the nodes must go before the executor does, which cannot drop what still waits.
    recorder.close();
    for number in cluster.numbers() {
        cluster.kill(number, seed.child("end", number.0 as u64));
    }
    time.sleep_until(time.now() + Duration::from_millis(1)).await;
}

fn start_clients(scenario: &Scenario, cluster: &Cluster, recorder: &Recorder, seed: Seed, end: &End) {
    let (options, nodes) = (&scenario.workload, cluster.nodes.len());
    for number in 0..options.watchers {
        let net = cluster.net.host(client_ip(WATCHERS_FROM + number));
        tokio::spawn(Watcher::new(number, options, nodes, net, recorder, seed).run());
    }
    let seen = Seen::default();
    for number in 0..options.clients {
        let net = cluster.net.host(client_ip(number));
        tokio::spawn(Client::new(number, options, nodes, net, recorder, &seen, seed).run(end.clone()));
    }
}

fn law_config(scenario: &Scenario) -> LawConfig {
    LawConfig {
        nodes: scenario.cluster.nodes,
        recovery_bound_ms: scenario.laws.recovery_ms,
        prompt_bound_ms: scenario.laws.prompt_ms,
        ending: scenario.expect.outcome,
    }
}

pub(crate) fn cluster_options(scenario: &Scenario) -> ClusterOptions {
    let default = DiskTiming::default();
    ClusterOptions {
        nodes: scenario.cluster.nodes,
        spares: scenario.cluster.spares,
        net: NetParams { link: link(scenario.network.nodes), ..NetParams::default() },
        disk: DiskTiming { sync: Delay::new(scenario.disk.sync_us_min, scenario.disk.sync_us_mean), ..default },
        heartbeat_ms: scenario.cluster.heartbeat_ms,
        election_ms: scenario.cluster.election_ms,
        segment_bytes: scenario.cluster.segment_bytes,
        checkpoint_bytes: scenario.cluster.checkpoint_bytes,
        tail_bytes: scenario.cluster.tail_bytes,
        outputs_max: scenario.cluster.outputs_max,
        drift_ppm_max: scenario.clock.drift_ppm_max,
    }
}

pub(crate) fn link(link: Link) -> LinkParams {
    let latency = Delay::new(link.latency_us_min, link.latency_us_mean);
    LinkParams { latency, loss_ppm: link.loss_ppm, bytes_per_us: 0 }
}

fn client_addresses(scenario: &Scenario) -> Vec<IpAddr> {
    let watchers = (0..scenario.workload.watchers).map(|number| WATCHERS_FROM + number);
    (0..scenario.workload.clients).chain(watchers).map(client_ip).collect()
}

/// Links between clients and nodes have parameters of their own.
fn join_clients(cluster: &Cluster, clients: &[IpAddr], link: LinkParams) {
    for client in clients {
        for node in cluster.nodes.iter() {
            cluster.net.set_link(*client, node.machine.ip, Some(link));
            cluster.net.set_link(node.machine.ip, *client, Some(link));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_with_the_record_in_hand_is_told_of_all_the_same() {
        let runtime = madsim::runtime::Runtime::with_seed_and_config(1, madsim::Config::default());
        let recorder = runtime.block_on(async { Recorder::new(SimTime::current(), Judge::new(Vec::new()), None) });
        let (held, is_held) = mpsc::channel();
        let (let_go, may_go) = mpsc::channel::<()>();
        let holder = {
            let recorder = recorder.clone();
            std::thread::spawn(move || {
                recorder.with(|_| {
                    held.send(()).unwrap();
                    may_go.recv().unwrap();
                });
            })
        };
        is_held.recv().unwrap();
        let shared = Shared { recorder: Some(recorder), ..Shared::default() };
        let accident = Accident { kind: "hang", text: String::new() };
        assert_eq!(collect(&shared, Some(accident.clone())).accident, Some(accident));
        let_go.send(()).unwrap();
        holder.join().unwrap();
    }
}
