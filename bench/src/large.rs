//! Much data in one member, competitors one after the other: what it takes in memory, how long until it serves again,
//! and what puts feel while the state is written to a file, sent to a new member, or saved by a client.
//!
//! The load is the same in every row: a few clients that overwrite keys at random. Beside it one thing happens at a
//! time. A competitor writes checkpoints when it wants to; `--snapshot-count` of a few entries makes it write one after
//! the other, so that a load of some seconds is sure to meet them.
use std::time::{Duration, Instant};

use detcd_node::proto::etcdserverpb::SnapshotRequest;

use crate::{
    Failure,
    cli::{Competitor, LargeOptions},
    client::Connection,
    cluster::{Cluster, End},
    compare::{turn_order, version},
    load::{self, Figures, Plan, Until},
    machine,
    process::{CpuTime, Memory},
    report::{Measure, Reading, Report, ReportRow},
    workload::{Data, KeyOrder, Workload},
};

const FILL_CLIENTS: u32 = 100;
/// What a competitor still has to do by itself, a checkpoint say, belongs to no row: before one begins, it must have been
/// at rest for so long, in which it used no more than a twentieth of a core. It is given some time for that.
const REST: Duration = Duration::from_secs(2);
const RESTS_WITHIN: Duration = Duration::from_secs(60);
/// Entries after which a checkpoint is written where it is to happen all the time.
const CHECKPOINT_ENTRIES: u64 = 1_000;
/// What each second of the loads before is worth to who is killed with as much data as the others.
const LEVEL_PUTS_A_SECOND: u64 = 30_000;
/// etcd refuses writes beyond it.
const QUOTA_BYTES: u64 = 32 << 30;

const OPS: Measure = Measure { name: "puts/s", decimals: 0, headline: true };
const SO_FAR: Measure = Measure { name: "puts so far", decimals: 0, headline: false };
const RESIDENT: Measure = Measure { name: "resident, MB", decimals: 0, headline: true };
/// Nothing is compacted, so the data is all that was ever put.
const PEAK: Measure = Measure { name: "peak resident so far / data", decimals: 2, headline: true };
const P50: Measure = Measure { name: "puts' p50, ms", decimals: 2, headline: false };
const P99: Measure = Measure { name: "puts' p99, ms", decimals: 2, headline: true };
const QUIET: Measure = Measure { name: "puts' p99 / without", decimals: 2, headline: true };
const MAX: Measure = Measure { name: "longest put, ms", decimals: 1, headline: false };
const ENDED: Measure = Measure { name: "until it ended, s", decimals: 2, headline: true };
const SERVING: Measure = Measure { name: "until it serves, s", decimals: 2, headline: true };
const FED: Measure = Measure { name: "until it had caught up, s", decimals: 2, headline: true };
const SAVED: Measure = Measure { name: "until it was saved, s", decimals: 2, headline: true };
const SAVED_MB: Measure = Measure { name: "size, MB", decimals: 0, headline: false };

const ROWS: [&str; 7] = [
    "fill",
    "restart after a stop",
    "load",
    "load during checkpoints",
    "load during snapshot save",
    "load while a member is fed",
    "restart after kill -9",
];

/// The subcommand `large`.
pub async fn command(options: &LargeOptions) -> Result<(), Failure> {
    let mut facts = vec![machine::describe(&options.dir)?];
    facts.extend(describe_setup(options));
    for competitor in &options.competitors {
        facts.push(format!("{}: {}", competitor.name, version(competitor)?));
    }
    let mut rows: Vec<_> = ROWS.iter().map(|name| row(name, options.competitors.len())).collect();
    for round in 0..options.rounds {
        for turn in turn_order(options.competitors.len(), round) {
            let competitor = &options.competitors[turn];
            let place = format!("round {}/{}, {}", round + 1, options.rounds, competitor.name);
            let readings = run_round(options, competitor, &place).await.map_err(|failure| failure.at(&place))?;
            for (row, readings) in rows.iter_mut().zip(readings) {
                row.rounds[turn].push(readings);
            }
        }
    }
    let competitors = options.competitors.iter().map(|competitor| competitor.name.clone()).collect();
    Report { facts, competitors, rows }.publish(options.out.as_deref())
}

fn row(name: &str, competitors: usize) -> ReportRow {
    ReportRow { name: name.into(), rounds: vec![Vec::new(); competitors] }
}

/// Puts that every competitor has had before it is killed: more than most manage in the rows before.
fn level_puts(options: &LargeOptions) -> u64 {
    options.keys() + options.seconds * LEVEL_PUTS_A_SECOND
}

fn describe_setup(options: &LargeOptions) -> [String; 3] {
    let LargeOptions { data_mb, value_size, clients, seconds, rounds, .. } = options;
    let keys = options.keys();
    [
        format!("one member on loopback, the load beside it in one thread; {rounds} rounds in turns"),
        format!("{data_mb} MB: {keys} keys of 8 bytes, values of {value_size} bytes"),
        format!(
            "the load: {clients} clients overwrite keys at random, for {seconds} s where nothing else ends it; \
             checkpoints: every {CHECKPOINT_ENTRIES} entries, so that one follows the other; killed after {} puts at least",
            level_puts(options)
        ),
    ]
}

/// One competitor's round: the readings of each of [`ROWS`].
async fn run_round(options: &LargeOptions, competitor: &Competitor, place: &str) -> Result<Vec<Vec<Reading>>, Failure> {
    let cluster = Cluster::start_with(&competitor.binary, 1, &options.dir, environment(None)).await?;
    let mut round = Round { options, cluster, peak: 0, put: 0, quiet: 0.0 };
    let mut rows = Vec::new();
    for name in ROWS {
        let readings = round.row(name).await.map_err(|failure| failure.at(name))?;
        let parts: Vec<_> = readings.iter().map(|(m, value)| format!("{} {value:.*}", m.name, m.decimals)).collect();
        eprintln!("{place}, {name}: {}", parts.join("; "));
        rows.push(readings);
    }
    round.cluster.stop().await?;
    Ok(rows)
}

/// Settings by environment: not every competitor knows a flag for each.
fn environment(checkpoint_entries: Option<u64>) -> Vec<(&'static str, String)> {
    let mut environment = vec![("ETCD_QUOTA_BACKEND_BYTES", QUOTA_BYTES.to_string())];
    environment.extend(checkpoint_entries.map(|entries| ("ETCD_SNAPSHOT_COUNT", entries.to_string())));
    environment
}

struct Round<'a> {
    options: &'a LargeOptions,
    cluster: Cluster,
    /// The most that was resident in any of the member's processes, in bytes.
    peak: u64,
    /// Values that were put so far.
    put: u64,
    /// The p99 of the load by itself, in milliseconds.
    quiet: f64,
}

impl Round<'_> {
    async fn row(&mut self, name: &str) -> Result<Vec<Reading>, Failure> {
        match name {
            "fill" => self.fill().await,
            "restart after a stop" => self.restart(End::Stop, None).await,
            "load" => self.load().await,
            "load during checkpoints" => self.checkpoints().await,
            "load during snapshot save" => self.save().await,
            "load while a member is fed" => self.feed().await,
            "restart after kill -9" => {
                self.level().await?;
                let readings = self.restart(End::Kill, None).await?;
                Ok([(SO_FAR, self.put as f64)].into_iter().chain(readings).collect())
            }
            _ => unreachable!("the rows are known"),
        }
    }

    fn plan(&self, order: KeyOrder, clients: u32, until: Until) -> Plan {
        Plan {
            endpoints: self.cluster.endpoints(),
            workload: Workload::Put,
            clients,
            connections: clients.min(100),
            until,
            warmup: Duration::ZERO,
            data: Data::new(self.options.keys(), order, self.options.value_size as usize),
            pids: self.cluster.pids(),
        }
    }

    fn scattered(&self) -> Plan {
        let until = Until::Elapsed(Duration::from_secs(self.options.seconds));
        self.plan(KeyOrder::Scattered, self.options.clients, until)
    }

    /// What is resident now, and the most so far in relation to the data.
    fn memory(&mut self) -> Result<[Reading; 2], Failure> {
        let memory = Memory::of(&self.cluster.pids())?;
        self.peak = self.peak.max(memory.resident_bytes_max);
        let data = (self.put * u64::from(self.options.value_size)) as f64;
        Ok([(RESIDENT, memory.resident_bytes as f64 / 1e6), (PEAK, self.peak as f64 / data)])
    }

    async fn fill(&mut self) -> Result<Vec<Reading>, Failure> {
        let plan = self.plan(KeyOrder::Sequential, FILL_CLIENTS, Until::Total(self.options.keys()));
        let figures = load::run(&plan).await?;
        self.put += figures.operations;
        self.rest().await?;
        Ok([(OPS, figures.operations_per_second)].into_iter().chain(self.memory()?).collect())
    }

    async fn restart(&mut self, end: End, checkpoint_entries: Option<u64>) -> Result<Vec<Reading>, Failure> {
        self.memory()?; // the process is about to take its peak with it
        let (ended, serving) = self.cluster.restart(end, environment(checkpoint_entries)).await?;
        let times = [(ENDED, ended.as_secs_f64()), (SERVING, serving.as_secs_f64())];
        let readings = times.into_iter().chain(self.memory()?).collect();
        self.rest().await?;
        Ok(readings)
    }

    /// Whoever was faster has more data by now: the others catch up.
    async fn level(&mut self) -> Result<(), Failure> {
        let missing = level_puts(self.options).saturating_sub(self.put);
        if missing > 0 {
            let plan = self.plan(KeyOrder::Scattered, FILL_CLIENTS, Until::Total(missing));
            self.put += load::run(&plan).await?.operations;
        }
        self.rest().await
    }

    async fn rest(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + RESTS_WITHIN;
        loop {
            let before = CpuTime::of(&self.cluster.pids())?;
            tokio::time::sleep(REST).await;
            let used = CpuTime::of(&self.cluster.pids())? - before;
            if used < REST / 20 || Instant::now() > deadline {
                return Ok(());
            }
        }
    }

    async fn load(&mut self) -> Result<Vec<Reading>, Failure> {
        let figures = load::run(&self.scattered()).await?;
        self.quiet = figures.p99_ms;
        self.readings(&figures, [])
    }

    async fn checkpoints(&mut self) -> Result<Vec<Reading>, Failure> {
        self.restart(End::Stop, Some(CHECKPOINT_ENTRIES)).await?;
        let figures = load::run(&self.scattered()).await?;
        let readings = self.readings(&figures, [])?;
        self.restart(End::Stop, None).await?;
        Ok(readings)
    }

    async fn save(&mut self) -> Result<Vec<Reading>, Failure> {
        let endpoint = self.cluster.endpoints().remove(0);
        let saving = async {
            let begun = Instant::now();
            let failed = |status: tonic::Status| Failure::Run(format!("the snapshot ended: {}", status.message()));
            let mut connection = Connection::open(&endpoint).await?;
            let mut stream = connection.maintenance.snapshot(SnapshotRequest {}).await.map_err(failed)?.into_inner();
            let mut bytes = 0;
            while let Some(piece) = stream.message().await.map_err(failed)? {
                bytes += piece.blob.len();
            }
            Ok((begun.elapsed(), bytes))
        };
        let (figures, (time, bytes)) = load::run_beside(&self.scattered(), saving).await?;
        self.readings(&figures, [(SAVED, time.as_secs_f64()), (SAVED_MB, bytes as f64 / 1e6)])
    }

    async fn feed(&mut self) -> Result<Vec<Reading>, Failure> {
        let plan = self.scattered();
        let (figures, time) = load::run_beside(&plan, self.cluster.feed()).await?;
        self.readings(&figures, [(FED, time.as_secs_f64())])
    }

    fn readings<const N: usize>(&mut self, figures: &Figures, first: [Reading; N]) -> Result<Vec<Reading>, Failure> {
        self.put += figures.operations;
        let quiet = figures.p99_ms / self.quiet;
        let puts = [(OPS, figures.operations_per_second), (P50, figures.p50_ms), (P99, figures.p99_ms), (QUIET, quiet)];
        let rest = [(MAX, figures.max_ms)].into_iter().chain(self.memory()?);
        Ok(first.into_iter().chain(puts).chain(rest).collect())
    }
}
