//! A month in which members come and go all the time: whatever grows with it shows.
//!
//! There is hardly anything to do: three members, a write now and then, and every few minutes one of them is removed
//! and an empty machine takes its place. At the end of each day it is counted what there is.
use std::{fmt, sync::Arc, time::Duration};

use detcd_node::{host::Net, proto::etcdserverpb as pb};
use parking_lot::Mutex;

use crate::{
    history::NodeNumber,
    memory,
    nemesis::{self, Nemesis},
    plant::Plant,
    runner::cluster_options,
    scenario::Scenario,
    schedule::{Schedule, Start},
    seed::Seed,
    workload::{Channel, Operator},
    world::{addresses::client_ip, clock::SimTime, cluster::Cluster, recorder::Recorder},
};

const DAY: Duration = Duration::from_secs(86_400);
const SCENARIO: &str = r#"
claim = "A cluster whose members come and go for a month is as small at its end as at its beginning."
run_ms = 86_400_000
settle_ms = 60_000
cluster = { nodes = 3, heartbeat_ms = 1_000, election_ms = 10_000, segment_bytes = 65_536, checkpoint_bytes = 65_536, tail_bytes = 65_536 }
nemesis = [{ kind = "replace", on = "any", every_ms = 300_000, for_ms = [100_000, 200_000] }]
"#;
/// About a thousand a month.
const WRITES_PER_DAY: u32 = 34;
/// How long a member has to answer before another one is asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// The cluster has found its size by then.
const GROWN_UP: usize = 3;
/// What a removed id may cost a member for ever, in bytes, in memory and on disk each.
const REMOVED_ID_BYTES: u64 = 200;

#[derive(clap::Args)]
pub struct Args {
    /// Simulated days.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(4..=366))]
    days: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What there is at the end of a day, of all members together.
#[derive(Debug, Clone, Copy)]
struct Sample {
    day: u64,
    /// Members removed so far.
    removed: u64,
    tasks: usize,
    files: usize,
    disk_bytes: u64,
    /// Entries that are held in memory.
    tail: u64,
    /// Of the whole simulation, but for what is on its disks.
    memory_bytes: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { day, removed, tasks, files, disk_bytes, tail, memory_bytes } = self;
        write!(f, "{day:>4} {removed:>8} {tasks:>6} {files:>6} {disk_bytes:>11} {tail:>6} {memory_bytes:>13}")
    }
}

/// Exit code 0 if nothing grew.
pub fn main(args: &Args) -> u8 {
    println!(" day  removed  tasks  files  disk bytes   tail  memory bytes");
    let samples = Arc::new(Mutex::new(Vec::new()));
    let (days, seed, kept) = (args.days, args.seed, samples.clone());
    let mut runtime = madsim::runtime::Runtime::with_seed_and_config(seed, madsim::Config::default());
    runtime.set_allow_system_thread(false);
    runtime.block_on(live(days, Seed(seed), kept));
    drop(runtime);
    let samples = samples.lock();
    match growth(&samples) {
        None => 0,
        Some(growth) => {
            println!("{growth}");
            1
        }
    }
}

/// What is larger at the end than a cluster of some days has any reason to be.
fn growth(samples: &[Sample]) -> Option<String> {
    let (first, last) = (samples[GROWN_UP - 1], *samples.last()?);
    let more = last.removed - first.removed;
    if more < (samples.len() - GROWN_UP) as u64 * 100 {
        return Some(format!("only {more} members were removed after day {GROWN_UP}: that shows nothing"));
    }
    let ids = more * REMOVED_ID_BYTES * 3;
    // A sample may find a checkpoint under way, or a member on its way in or out.
    let bounds = [
        ("tasks", last.tasks as u64, first.tasks as u64 + 30),
        ("files", last.files as u64, first.files as u64 + 12),
        ("bytes on disk", last.disk_bytes, first.disk_bytes + ids + (1 << 20)),
        ("entries in memory", last.tail, first.tail + 2_000),
        ("bytes in memory", last.memory_bytes, first.memory_bytes + ids + (1 << 20)),
    ];
    let grown = bounds.iter().find(|(_, now, bound)| now > bound)?;
    Some(format!("{} are {} after {} days, more than {}", grown.0, grown.1, samples.len(), grown.2))
}

async fn live(days: u64, seed: Seed, samples: Arc<Mutex<Vec<Sample>>>) {
    let time = SimTime::current();
    let scenario = Scenario::parse("churn", SCENARIO).expect("our own scenario");
    let recorder = Recorder::forgetful(time.clone());
    let cluster = Cluster::start(&cluster_options(&scenario), seed, &recorder, Plant::wrap(None, seed));
    tokio::spawn(write(cluster.clone()));
    let mut removed = 0;
    for day in 1..=days {
        // The executor remembers every task of a machine until that is killed: those of a day go with it.
        let operators = madsim::runtime::Handle::current().create_node().name("operators").build();
        let begin = DAY * (day as u32 - 1);
        let mut schedule = Schedule::new(&scenario, seed.child("day", day));
        for planned in &mut schedule.faults {
            if let Start::At(at) = &mut planned.start {
                *at += begin;
            }
        }
        let setting = nemesis::Setting {
            founders: scenario.cluster.nodes,
            seed: seed.child("nemesis of day", day),
            operator: Operator::new(cluster.net.host(client_ip(0)), &recorder),
            clients: Vec::new(),
            end: begin + DAY - Duration::from_secs(600),
            ending: scenario.expect.outcome,
        };
        let replaced = {
            let (cluster, recorder, time, end) = (cluster.clone(), recorder.clone(), time.clone(), setting.end);
            operators.spawn(async move {
                let nemesis = Nemesis::start(&cluster, &recorder, &schedule, setting);
                time.sleep_until(end).await;
                let left = nemesis.heal().await;
                assert!(
                    left.is_empty(),
                    "at the end of day {day} these machines are not what they should be: {left:?}"
                );
                nemesis::tallies(&nemesis.tallies).iter().map(|tally| tally.fired).sum::<u64>()
            })
        };
        removed += replaced.await.expect("operators live through the day");
        madsim::runtime::Handle::current().kill(operators.id());
        time.sleep_until(begin + DAY).await;
        let sample = count(day, removed, &cluster, &recorder);
        println!("{sample}");
        samples.lock().push(sample);
    }
    recorder.close();
    for number in cluster.numbers() {
        cluster.kill(number, seed.child("end", number.0 as u64));
    }
    time.sleep_until(time.now() + Duration::from_millis(1)).await;
}

fn count(day: u64, removed: u64, cluster: &Cluster, recorder: &Recorder) -> Sample {
    let tasks = madsim::runtime::Handle::current().metrics().num_tasks_by_node();
    let of = |number: NodeNumber| tasks.get(&number.to_string()).copied().unwrap_or(0);
    let disks = || cluster.nodes.iter().map(|node| &node.machine.disk);
    Sample {
        day,
        removed,
        tasks: cluster.numbers().map(of).sum(),
        files: disks().map(|disk| disk.files()).sum(),
        disk_bytes: disks().map(|disk| disk.used()).sum(),
        tail: cluster.numbers().map(|number| recorder.tail(number)).sum(),
        memory_bytes: memory::used() as u64 - disks().map(|disk| disk.held()).sum::<u64>(),
    }
}

/// A write every now and then, to whoever takes it.
async fn write(cluster: Cluster) {
    let net = cluster.net.host(client_ip(1));
    for count in 0u64.. {
        cluster.time.sleep_until(cluster.time.now() + DAY / WRITES_PER_DAY).await;
        for number in cluster.numbers() {
            let write = put(&*net, number, format!("k{}", count % 10), format!("v{count}"));
            if madsim::time::timeout(PATIENCE, write).await.unwrap_or(false) {
                break;
            }
        }
    }
}

/// Whether this node took it.
async fn put(net: &dyn Net, node: NodeNumber, key: String, value: String) -> bool {
    let Ok(channel) = Channel::connect(net, node, PATIENCE).await else { return false };
    let request = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    pb::kv_client::KvClient::with_origin(channel, Channel::origin(node)).put(request).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(day: u64) -> Sample {
        let removed = day * 280;
        Sample { day, removed, tasks: 90, files: 30, disk_bytes: 1 << 20, tail: 900, memory_bytes: 30 << 20 }
    }

    #[test]
    fn growth_is_noticed() {
        let month = || (1..=30).map(sample).collect::<Vec<_>>();
        assert_eq!(growth(&month()), None);
        let spoilt = |spoil: fn(&mut Sample)| {
            let mut month = month();
            spoil(month.last_mut().expect("a month has days"));
            growth(&month).expect("it grew")
        };
        assert!(spoilt(|last| last.tasks += 100).contains("tasks"));
        assert!(spoilt(|last| last.files += 100).contains("files"));
        assert!(spoilt(|last| last.disk_bytes += 10 << 20).contains("disk"));
        assert!(spoilt(|last| last.tail += 10_000).contains("entries"));
        assert!(spoilt(|last| last.memory_bytes += 10 << 20).contains("memory"));
        assert!(spoilt(|last| last.removed = 900).contains("shows nothing"));
    }
}
