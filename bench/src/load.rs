//! The closed loop: every client has one call on its way, and starts the next when the answer is there.
//!
//! A call that fails is tried again and its time is not recorded, so a run of `Until::Total(n)` ends after exactly
//! `n` calls that succeeded. Failures are counted, and end the run when they are no longer the exception.
//!
//! Latency at saturation is what a closed loop makes of it: clients that wait do not ask.
use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use detcd_node::proto::etcdserverpb::RangeRequest;
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::Status;

use crate::{
    Failure,
    client::{Connection, Endpoint},
    process::{CpuTime, Memory},
    stats::Latencies,
    workload::{Data, KeyOrder, Workload},
};

/// A run in which nothing succeeds for so long has failed.
const STALL: Duration = Duration::from_secs(30);
/// The pause of a client after a call that failed, so that an election is not met with a storm.
const PAUSE: Duration = Duration::from_millis(100);
/// Failures in a row that a client bears: about six seconds of them.
const FAILURES_IN_A_ROW_MAX: u32 = 60;
/// More failed calls than this part of all, and the figures say nothing.
const FAILED_SHARE_MAX: f64 = 0.01;
/// The longest that a load runs beside something.
const WORK_MAX: Duration = Duration::from_secs(3_600);
/// How many clients write the keys before the first read.
const FILL_CLIENTS: u32 = 100;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Until {
    /// Exactly so many calls have succeeded.
    Total(u64),
    Elapsed(Duration),
}

/// What is run, and against what.
#[derive(Debug, Clone)]
pub struct Plan {
    pub endpoints: Vec<Endpoint>,
    pub workload: Workload,
    pub clients: u32,
    /// Connection `i` leads to endpoint `i % endpoints`.
    pub connections: u32,
    pub until: Until,
    /// Not measured. Zero for none.
    pub warmup: Duration,
    pub data: Data,
    /// The servers, to see what they use.
    pub pids: Vec<u32>,
}

/// One connection a client up to 100 of them, as etcd's own benchmark is run; but never fewer than endpoints, so that
/// one client meets leader and followers in turns and not whichever its connection happens to lead to.
pub fn default_connections(clients: u32, endpoints: usize) -> u32 {
    clients.min(100).max(endpoints as u32)
}

/// What came out of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub workload: &'static str,
    pub clients: u32,
    pub connections: u32,
    pub operations: u64,
    pub failed_calls: u64,
    pub seconds: f64,
    pub operations_per_second: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// CPU time of the load itself: near `1e6 / operations_per_second` the load is the bottleneck.
    pub load_cpu_us_per_op: f64,
    /// Of all processes given.
    pub server: Option<ServerFigures>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerFigures {
    pub cpu_us_per_op: f64,
    /// Cores that were busy, yet neither with the servers nor with the load: the more, the less the figures say. The
    /// kernel's own work on packets and blocks is among it.
    pub other_cores: f64,
    pub resident_mb: f64,
    pub resident_mb_max: f64,
}

/// The subcommand `load`.
pub async fn command(plan: &Plan, json: bool) -> Result<(), Failure> {
    let figures = run(plan).await?;
    if json {
        println!("{}", serde_json::to_string(&figures).expect("figures are plain numbers"));
    } else {
        print!("{}", render(&figures));
    }
    Ok(())
}

/// Connects, writes the keys if they will be read, warms up, measures.
pub async fn run(plan: &Plan) -> Result<Figures, Failure> {
    let mut connections = Vec::new();
    for endpoint in plan.endpoints.iter().cycle().take(plan.connections as usize) {
        connections.push(Connection::open(endpoint).await?);
    }
    if plan.workload.needs_keys() {
        fill(&connections, &plan.data).await?;
    }
    let job = |until| Arc::new(Job::new(plan.workload, plan.data.clone(), until));
    if !plan.warmup.is_zero() {
        drive(job(Until::Elapsed(plan.warmup)), plan.clients, &connections).await?;
    }
    measure(plan, job(plan.until), &connections).await
}

/// Runs for as long as `work` takes, instead of what the plan says.
pub async fn run_beside<T>(
    plan: &Plan,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<(Figures, T), Failure> {
    let mut connections = Vec::new();
    for endpoint in plan.endpoints.iter().cycle().take(plan.connections as usize) {
        connections.push(Connection::open(endpoint).await?);
    }
    let job = Arc::new(Job::new(plan.workload, plan.data.clone(), Until::Elapsed(WORK_MAX)));
    let working = async {
        let result = work.await;
        job.over.store(true, Ordering::Relaxed);
        result
    };
    let (figures, result) = tokio::join!(measure(plan, job.clone(), &connections), working);
    let result = result?;
    Ok((figures?, result))
}

async fn measure(plan: &Plan, job: Arc<Job>, connections: &[Connection]) -> Result<Figures, Failure> {
    let (before, start) = (CpuUse::now(&plan.pids)?, Instant::now());
    let tally = drive(job, plan.clients, connections).await?;
    let (elapsed, after) = (start.elapsed(), CpuUse::now(&plan.pids)?);
    let operations = tally.latencies.count();
    let us_per_op = |cpu: Duration| cpu.as_secs_f64() * 1e6 / operations as f64;
    let (load, servers) = (after.load - before.load, after.servers - before.servers);
    let server = if plan.pids.is_empty() {
        None
    } else {
        let memory = Memory::of(&plan.pids)?;
        let others = (after.machine - before.machine).saturating_sub(load + servers);
        Some(ServerFigures {
            cpu_us_per_op: us_per_op(servers),
            other_cores: others.as_secs_f64() / elapsed.as_secs_f64(),
            resident_mb: memory.resident_bytes as f64 / 1e6,
            resident_mb_max: memory.resident_bytes_max as f64 / 1e6,
        })
    };
    Ok(Figures {
        workload: plan.workload.name(),
        clients: plan.clients,
        connections: plan.connections,
        operations,
        failed_calls: tally.failed_calls,
        seconds: elapsed.as_secs_f64(),
        operations_per_second: operations as f64 / elapsed.as_secs_f64(),
        p50_ms: tally.latencies.percentile_ms(50.0),
        p90_ms: tally.latencies.percentile_ms(90.0),
        p99_ms: tally.latencies.percentile_ms(99.0),
        max_ms: tally.latencies.max_ms(),
        load_cpu_us_per_op: us_per_op(load),
        server,
    })
}

struct CpuUse {
    servers: CpuTime,
    load: CpuTime,
    machine: CpuTime,
}

impl CpuUse {
    fn now(servers: &[u32]) -> Result<CpuUse, Failure> {
        let (servers, load) = (CpuTime::of(servers)?, CpuTime::of(&[std::process::id()])?);
        Ok(CpuUse { servers, load, machine: CpuTime::of_machine()? })
    }
}

/// Makes every key exist, unless all do.
async fn fill(connections: &[Connection], data: &Data) -> Result<(), Failure> {
    let (key, range_end) = data.key_range();
    let request = RangeRequest { key, range_end, count_only: true, ..Default::default() };
    let response = connections[0].clone().kv.range(request).await.map_err(|status| failed_call(&status))?;
    if response.into_inner().count < data.keys as i64 {
        let job = Job::new(Workload::Put, data.in_order(KeyOrder::Sequential), Until::Total(data.keys));
        drive(Arc::new(job), FILL_CLIENTS, connections).await.map_err(|failure| failure.at("writing the keys"))?;
    }
    Ok(())
}

/// What the clients of one run share. One thread runs them all: the lock is never contended.
struct Job {
    workload: Workload,
    data: Data,
    until: Until,
    start: Instant,
    next: AtomicU64,
    /// What it ran beside is done.
    over: AtomicBool,
    tally: Mutex<Tally>,
}

struct Tally {
    latencies: Latencies,
    failed_calls: u64,
    last_failure: Option<Status>,
}

impl Job {
    fn new(workload: Workload, data: Data, until: Until) -> Job {
        let tally = Tally { latencies: Latencies::new(), failed_calls: 0, last_failure: None };
        let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
        Job { workload, data, until, start: Instant::now(), next, over, tally: Mutex::new(tally) }
    }

    /// The number of the next operation; `None` if there is none left.
    fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let over = match self.until {
            Until::Total(total) => number >= total,
            Until::Elapsed(_) => self.time_is_up(),
        };
        (!over).then_some(number)
    }

    fn time_is_up(&self) -> bool {
        let elapsed = matches!(self.until, Until::Elapsed(time) if self.start.elapsed() >= time);
        elapsed || self.over.load(Ordering::Relaxed)
    }

    fn note_failure(&self, status: Status) {
        let mut tally = self.tally();
        tally.failed_calls += 1;
        tally.last_failure = Some(status);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("nothing panics while it holds the tally")
    }
}

/// Runs `job` with so many clients, each on its part of the connections.
async fn drive(job: Arc<Job>, clients: u32, connections: &[Connection]) -> Result<Tally, Failure> {
    let mut running = JoinSet::new();
    for client in 0..clients as usize {
        running.spawn(run_client(job.clone(), share(client, clients as usize, connections)));
    }
    let mut watchdog = tokio::time::interval(STALL);
    let mut seen = None;
    loop {
        tokio::select! {
            biased;
            ended = running.join_next() => match ended {
                Some(ended) => ended.expect("a client neither panics nor is cancelled")?,
                None => break,
            },
            _ = watchdog.tick() => {
                let count = job.tally().latencies.count();
                if seen == Some(count) {
                    let waited = STALL.as_secs();
                    return Err(Failure::Run(format!("no call succeeded within {waited} s; look at the servers' logs")));
                }
                seen = Some(count);
            }
        }
    }
    drop(running);
    let nothing = Tally { latencies: Latencies::new(), failed_calls: 0, last_failure: None };
    let tally = std::mem::replace(&mut *job.tally(), nothing);
    verdict(tally)
}

/// With more connections than clients, each client takes its own in turns; with fewer, clients share.
fn share<C: Clone>(client: usize, clients: usize, connections: &[C]) -> Vec<C> {
    connections.iter().skip(client % connections.len()).step_by(clients.min(connections.len())).cloned().collect()
}

async fn run_client(job: Arc<Job>, mut connections: Vec<Connection>) -> Result<(), Failure> {
    let (mut turn, mut failures_in_a_row) = (0, 0);
    let mut operation = job.take();
    while let Some(number) = operation {
        let connection = &mut connections[turn];
        let start = Instant::now();
        let result = job.workload.call(connection, &job.data, number).await;
        let latency = start.elapsed();
        turn = (turn + 1) % connections.len();
        match result {
            Ok(()) => {
                failures_in_a_row = 0;
                job.tally().latencies.record(latency);
                operation = job.take();
            }
            Err(status) => {
                failures_in_a_row += 1;
                if failures_in_a_row >= FAILURES_IN_A_ROW_MAX {
                    return Err(failed_call(&status).at(format!("{failures_in_a_row} times in a row")));
                }
                job.note_failure(status);
                if job.time_is_up() {
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

fn verdict(tally: Tally) -> Result<Tally, Failure> {
    let succeeded = tally.latencies.count();
    match &tally.last_failure {
        Some(status) if tally.failed_calls as f64 > succeeded as f64 * FAILED_SHARE_MAX => {
            Err(failed_call(status).at(format!("{} calls failed, {succeeded} succeeded", tally.failed_calls)))
        }
        _ if succeeded == 0 => Err(Failure::Run("no call ended in time; give the run more seconds".into())),
        _ => Ok(tally),
    }
}

fn failed_call(status: &Status) -> Failure {
    let (code, text) = (status.code(), status.message());
    Failure::Run(format!("a call failed with {code:?}, {text:?}; look at the servers' logs"))
}

fn render(figures: &Figures) -> String {
    let Figures { workload, clients, connections, operations, failed_calls, seconds, .. } = figures;
    let mut text = format!(
        "{workload}: {clients} clients, {connections} connections, {operations} operations in {seconds:.1} s, \
         {failed_calls} failed calls\n"
    );
    let mut line = |name: &str, value: f64, decimals: usize| text += &format!("{name:<20} {value:>10.decimals$}\n");
    line("ops/s", figures.operations_per_second, 0);
    line("p50, ms", figures.p50_ms, 2);
    line("p90, ms", figures.p90_ms, 2);
    line("p99, ms", figures.p99_ms, 2);
    line("max, ms", figures.max_ms, 2);
    line("load CPU, us/op", figures.load_cpu_us_per_op, 1);
    if let Some(server) = &figures.server {
        line("server CPU, us/op", server.cpu_us_per_op, 1);
        line("CPU of others, cores", server.other_cores, 2);
        line("resident, MB", server.resident_mb, 1);
        line("resident peak, MB", server.resident_mb_max, 1);
    }
    text
}

#[cfg(test)]
mod tests;
