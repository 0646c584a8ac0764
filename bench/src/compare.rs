//! Competitors side by side: in every round each gets a fresh cluster and the same rows, in turns.
//!
//! The order turns with the rounds, so that whatever one competitor leaves behind (a warm cache, a busy disk, a slow
//! minute of the machine) meets each of them. What a row reports is the median of its rounds.
use std::{process::Command, time::Duration};

use crate::{
    Failure,
    cli::{CompareOptions, Competitor, Row},
    cluster::Cluster,
    load::{self, Figures, Plan, Until, default_connections},
    machine,
    process::Memory,
    report::{Measure, Reading, Report, ReportRow},
    workload::{Data, KeyOrder, Workload},
};

/// The memory row: so many puts, each to a key of its own, by so many clients.
const MEMORY_PUTS: u64 = 100_000;
const MEMORY_CLIENTS: u32 = 100;
/// Followers apply the last puts after they were answered.
const MEMORY_SETTLE: Duration = Duration::from_secs(1);

const OPS: Measure = Measure { name: "ops/s", decimals: 0, headline: true };
const P50: Measure = Measure { name: "p50, ms", decimals: 2, headline: true };
const P99: Measure = Measure { name: "p99, ms", decimals: 2, headline: true };
const CPU: Measure = Measure { name: "server CPU, µs/op", decimals: 1, headline: true };
const LOAD_CPU: Measure = Measure { name: "load CPU, µs/op", decimals: 1, headline: false };
const OTHERS: Measure = Measure { name: "CPU of others, cores", decimals: 2, headline: false };
const FAILED_CALLS: Measure = Measure { name: "failed calls", decimals: 0, headline: false };
const RESIDENT: Measure = Measure { name: "resident, MB", decimals: 1, headline: true };
const RESIDENT_MAX: Measure = Measure { name: "resident at its peak, MB", decimals: 1, headline: true };

/// The subcommand `compare`.
pub async fn command(options: &CompareOptions) -> Result<(), Failure> {
    let mut facts = vec![machine::describe(&options.dir)?];
    facts.extend(describe_setup(options));
    for competitor in &options.competitors {
        facts.push(format!("{}: {}", competitor.name, version(competitor)?));
    }
    let rows = measure(options).await?;
    let competitors = options.competitors.iter().map(|competitor| competitor.name.clone()).collect();
    Report { facts, competitors, rows }.publish(options.out.as_deref())
}

fn describe_setup(options: &CompareOptions) -> [String; 3] {
    let CompareOptions { members, rounds, seconds, warmup_seconds, value_size, keys, .. } = options;
    let connections = match options.connections {
        Some(connections) => format!("{connections} connections"),
        None => "one connection a client, at most 100".into(),
    };
    [
        format!(
            "{members} members on loopback, the load beside them in one thread; {rounds} rounds in turns, {seconds} s \
             a row after {warmup_seconds} s of warm-up"
        ),
        format!("{keys} keys of 8 bytes, values of {value_size} bytes; {connections}, spread over the members"),
        format!(
            "CPU and memory are those of all members together; memory after exactly {MEMORY_PUTS} puts to as many \
             keys on a fresh cluster"
        ),
    ]
}

/// What the binary says about itself: etcd's version, and on the second line whose build it is.
pub fn version(competitor: &Competitor) -> Result<String, Failure> {
    let Competitor { name, binary } = competitor;
    let failed = |what: String| Failure::Run(format!("{name}: '{} --version' {what}", binary.display()));
    let output = Command::new(binary).arg("--version").output();
    let output = output.map_err(|error| failed(format!("does not run: {error}; give a path that does")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().take(2).map(str::trim).collect();
    match output.status.success() && !lines.is_empty() {
        true => Ok(lines.join(", ")),
        false => Err(failed(format!("gives no version, {}; give an etcd or detcd binary", output.status))),
    }
}

/// Who goes when: indices of competitors.
pub fn turn_order(competitors: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..competitors).collect();
    order.rotate_left(round % competitors);
    order
}

async fn measure(options: &CompareOptions) -> Result<Vec<ReportRow>, Failure> {
    let competitors = options.competitors.len();
    let name_row = |row: &Row| ReportRow { name: row.to_string(), rounds: vec![Vec::new(); competitors] };
    let mut rows: Vec<_> = options.rows.iter().map(name_row).collect();
    for round in 0..options.rounds {
        for turn in turn_order(competitors, round) {
            let competitor = &options.competitors[turn];
            let place = format!("round {}/{}, {}", round + 1, options.rounds, competitor.name);
            let readings = run_round(options, competitor, &place).await.map_err(|failure| failure.at(&place))?;
            for (row, readings) in rows.iter_mut().zip(readings) {
                row.rounds[turn].push(readings);
            }
        }
    }
    Ok(rows)
}

/// One round of one competitor: the readings of each row. The load rows share a cluster, memory has its own.
async fn run_round(
    options: &CompareOptions,
    competitor: &Competitor,
    place: &str,
) -> Result<Vec<Vec<Reading>>, Failure> {
    let mut shared: Option<Cluster> = None;
    let mut rows = Vec::new();
    for row in &options.rows {
        let result = match *row {
            Row::Load { workload, clients } => {
                if shared.is_none() {
                    shared = Some(start(options, competitor).await?);
                }
                let cluster = shared.as_mut().expect("started above");
                run_load(options, cluster, workload, clients).await
            }
            Row::Memory => {
                // Two clusters at a time would share the cores.
                if let Some(cluster) = shared.take() {
                    cluster.stop().await?;
                }
                run_memory(options, start(options, competitor).await?).await
            }
        };
        let readings = result.map_err(|failure| failure.at(row))?;
        eprintln!("{place}, {row}: {}", show(&readings));
        rows.push(readings);
    }
    if let Some(cluster) = shared {
        cluster.stop().await?;
    }
    Ok(rows)
}

async fn start(options: &CompareOptions, competitor: &Competitor) -> Result<Cluster, Failure> {
    Cluster::start(&competitor.binary, options.members, &options.dir).await
}

fn show(readings: &[Reading]) -> String {
    let parts: Vec<_> = readings.iter().map(|(m, value)| format!("{} {value:.*}", m.name, m.decimals)).collect();
    parts.join("; ")
}

async fn run_load(
    options: &CompareOptions,
    cluster: &mut Cluster,
    workload: Workload,
    clients: u32,
) -> Result<Vec<Reading>, Failure> {
    let plan = Plan {
        endpoints: cluster.endpoints(),
        workload,
        clients,
        connections: options.connections.unwrap_or_else(|| default_connections(clients, options.members)),
        until: Until::Elapsed(Duration::from_secs(options.seconds)),
        warmup: Duration::from_secs(options.warmup_seconds),
        data: Data::new(options.keys, KeyOrder::Scattered, options.value_size as usize),
        pids: cluster.pids(),
    };
    let figures = explain(load::run(&plan).await, cluster)?;
    let server = figures.server.expect("a cluster has processes");
    Ok(vec![
        (OPS, figures.operations_per_second),
        (P50, figures.p50_ms),
        (P99, figures.p99_ms),
        (CPU, server.cpu_us_per_op),
        (LOAD_CPU, figures.load_cpu_us_per_op),
        (OTHERS, server.other_cores),
        (FAILED_CALLS, figures.failed_calls as f64),
    ])
}

async fn run_memory(options: &CompareOptions, mut cluster: Cluster) -> Result<Vec<Reading>, Failure> {
    let plan = Plan {
        endpoints: cluster.endpoints(),
        workload: Workload::Put,
        clients: MEMORY_CLIENTS,
        connections: options.connections.unwrap_or_else(|| default_connections(MEMORY_CLIENTS, options.members)),
        until: Until::Total(MEMORY_PUTS),
        warmup: Duration::ZERO,
        data: Data::new(MEMORY_PUTS, KeyOrder::Sequential, options.value_size as usize),
        pids: cluster.pids(),
    };
    let figures = explain(load::run(&plan).await, &mut cluster)?;
    tokio::time::sleep(MEMORY_SETTLE).await;
    let memory = Memory::of(&cluster.pids())?;
    cluster.stop().await?;
    Ok(vec![
        (RESIDENT, memory.resident_bytes as f64 / 1e6),
        (RESIDENT_MAX, memory.resident_bytes_max as f64 / 1e6),
        (FAILED_CALLS, figures.failed_calls as f64),
    ])
}

/// If a member has stopped, that is why calls failed.
fn explain(result: Result<Figures, Failure>, cluster: &mut Cluster) -> Result<Figures, Failure> {
    cluster.check_running()?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_goes_first_in_turn() {
        assert_eq!([0, 1, 2].map(|round| turn_order(2, round)), [[0, 1], [1, 0], [0, 1]]);
        assert_eq!([0, 1, 2].map(|round| turn_order(3, round)), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        assert_eq!(turn_order(1, 7), [0]);
    }

    #[test]
    fn a_binary_without_a_version_is_named() {
        let failure = |path: &str| {
            let competitor = Competitor { name: "x".into(), binary: path.into() };
            version(&competitor).unwrap_err().to_string()
        };
        let silent = failure("/bin/false");
        assert_eq!(silent, "x: '/bin/false --version' gives no version, exit status: 1; give an etcd or detcd binary");
        assert!(failure("/no/such/binary").starts_with("x: '/no/such/binary --version' does not run: No such file"));
    }
}
