//! Scenarios: what cluster, what load, what goes wrong, and what must hold. Data only, read from TOML.
//!
//! `scenarios/FAMILY/NAME.toml` holds one claim. Everything in it that is not set has a default; everything that is set
//! must be known and make sense, and all mistakes of a file are told at once, each with its line. What a scenario says
//! is checked here, and nowhere else: whoever is handed a [`Scenario`] may rely on it.
//!
//! - `fields.rs` reads TOML tables, words mistakes and makes the JSON Schema,
//! - `fault.rs` says what faults there are, `nemesis.rs` how they are written down, `trigger.rs` what they wait for,
//! - `swarm.rs` makes one up.
pub mod fault;
mod fields;
mod nemesis;
mod swarm;
#[cfg(test)]
pub(crate) mod tests;
pub mod trigger;

use std::{fs, io, path::Path};

use detcd_core::limits::{CHECKPOINT_BYTES, OUTPUTS_MAX, TAIL_BYTES};
use toml::de::DeTable;

use self::{
    fault::NODES_MAX,
    fields::{Fields, Source},
    nemesis::Setting,
};
pub use self::{
    fields::Mistake,
    nemesis::{Nemesis, Timing},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// One sentence: what holds, whatever happens here.
    pub claim: String,
    /// Everything but the claim is drawn from the seed: see [`Scenario::of_seed`].
    pub swarm: bool,
    /// How long faults happen.
    pub run_ms: u64,
    /// How long the cluster has afterwards, healed as far as it is.
    pub settle_ms: u64,
    pub cluster: Cluster,
    pub network: Network,
    pub disk: Disk,
    pub clock: Clock,
    pub workload: Workload,
    pub nemeses: Vec<Nemesis>,
    pub expect: Expect,
    pub laws: Laws,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub nodes: usize,
    /// Machines on which no member runs at first.
    pub spares: usize,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    pub segment_bytes: u64,
    /// See [`detcd_node::config::Config::checkpoint_bytes`].
    pub checkpoint_bytes: u64,
    /// See [`detcd_node::config::Config::tail_bytes`].
    pub tail_bytes: u64,
    /// See [`detcd_node::config::Config::outputs_max`].
    pub outputs_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Between nodes.
    pub nodes: Link,
    /// Between a client and a node.
    pub clients: Link,
}

/// One way between two machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub latency_us_min: u32,
    pub latency_us_mean: u32,
    /// Segments lost, in parts per million.
    pub loss_ppm: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub sync_us_min: u32,
    pub sync_us_mean: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    /// Each node's clock gains or loses up to so many microseconds a second.
    pub drift_ppm_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub clients: u64,
    pub watchers: u64,
    pub keys: u64,
    /// Of all clients together.
    pub ops_per_second: u64,
    /// How long a client waits for an answer.
    pub timeout_ms: u64,
    /// Of gets and ranges.
    pub serializable_percent: u32,
    pub mix: Mix,
}

/// Weights of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    pub put: u32,
    pub get: u32,
    pub range: u32,
    pub delete: u32,
    pub compare_and_set: u32,
}

/// What becomes of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Once the faults are over it is itself again.
    Converges,
    /// For a while there is no quorum, since members stopped over their disks; once those are well, it converges.
    Stops,
    /// In the end there is no quorum, since members will not start from what their disks hold, and there will be none.
    Refuses,
}

const ENDINGS: [(&str, Ending); 3] =
    [("converges", Ending::Converges), ("stops", Ending::Stops), ("refuses", Ending::Refuses)];

/// What must have come about, or the run has shown nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    pub outcome: Ending,
    /// Operations acknowledged.
    pub acknowledged_min: u64,
    /// Of these, between the start and the end of some fault.
    pub under_fault_min: u64,
    /// Nemeses, by name, of which at least one fault must have had an effect.
    pub must_fire: Vec<String>,
    /// Node events, by name, that must have happened.
    pub must_reach: Vec<String>,
}

/// Every law judges every run. These are what a scenario may ask of some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laws {
    /// After healing, the cluster is well again in this time.
    pub recovery_ms: u64,
    /// While nothing is wrong, a call is answered in this time.
    pub prompt_ms: u64,
}

/// A number, or what it is drawn from: both bounds are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub min: i64,
    pub max: i64,
}

impl Span {
    pub const fn just(number: i64) -> Span {
        Span { min: number, max: number }
    }
}

/// Why a file is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{file}: cannot be read: {error}")]
    Unreadable { file: String, error: io::Error },
    /// All of them, in the order of the file.
    #[error("{}", lines(file, mistakes))]
    Mistakes { file: String, mistakes: Vec<Mistake> },
}

fn lines(file: &str, mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("{file}:{}: {mistake}", mistake.line)).collect::<Vec<_>>().join("\n")
}

/// Every name of a node event.
const NODE_EVENTS: &[&str] = &[
    "recovered",
    "role_changed",
    "proposed",
    "appended",
    "change_appended",
    "persist_started",
    "persisted",
    "sent",
    "received",
    "committed",
    "applied",
    "acknowledged",
    "refused",
    "read_confirmed",
    "segment_started",
    "peer_connected",
    "peer_lost",
    "disk_stalled",
    "serving",
    "stopped",
    "log_restarted",
    "configuration_applied",
    "snapshot_installed",
    "snapshot_sent",
    "snapshot_reported",
    "snapshot_received",
    "snapshot_rejected",
    "log_cut",
    "checkpoint_started",
    "checkpoint_done",
    "checkpoint_dropped",
    "segment_removed",
    "handing_over",
    "removed",
];

/// What a swarm draws.
const REST: [&str; 10] =
    ["run_ms", "settle_ms", "cluster", "network", "disk", "clock", "workload", "nemesis", "expect", "laws"];

/// Of a file that is no TOML each line may be a mistake: so many are told.
const LANGUAGE_MISTAKES_MAX: usize = 5;
const COUNT_MAX: u64 = 1_000_000_000;
const DAY_MS: u64 = 86_400_000;
/// What a call may take while nothing is wrong: some times what it takes with the slowest disks and links that scenarios
/// have, and half of what clients wait.
const PROMPT_MS: u64 = 500;
/// A sane cluster is well again after so many election timeouts.
const SETTLE_ELECTIONS_MIN: u64 = 5;
/// A leader must be able to lose a heartbeat or two.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 5;

impl Scenario {
    pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
        let file = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => Scenario::parse(&file, &text),
            Err(error) => Err(ScenarioError::Unreadable { file, error }),
        }
    }

    /// What is run from this seed, and if it was drawn, its text.
    pub fn of_seed(&self, seed: u64) -> (Scenario, Option<String>) {
        if !self.swarm {
            return (self.clone(), None);
        }
        let text = format!("claim = {:?}\n{}", self.claim, swarm::draw(seed));
        let drawn = Scenario::parse("swarm", &text).expect("what is drawn is a scenario");
        (drawn, Some(text))
    }

    /// `file` is its name in mistakes.
    pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
        let failed =
            |source: Source| ScenarioError::Mistakes { file: file.to_owned(), mistakes: source.into_mistakes() };
        let source = Source::new(text);
        let (document, errors) = DeTable::parse_recoverable(text);
        let note = |error: &toml::de::Error, text| source.note(error.span().unwrap_or(0..0), String::new(), None, text);
        errors.iter().take(LANGUAGE_MISTAKES_MAX).for_each(|error| note(error, error.message().to_owned()));
        if let Some(error) = errors.get(LANGUAGE_MISTAKES_MAX) {
            note(error, format!("and more, {} mistakes in all; expected a scenario, in TOML", errors.len()));
        }
        // What follows from a mistake in the language itself is not worth telling.
        if !errors.is_empty() {
            return Err(failed(source));
        }
        let mut fields = Fields::root(&source, document.get_ref());
        let scenario = Scenario::read(&mut fields);
        fields.finish();
        if source.is_clean() { Ok(scenario) } else { Err(failed(source)) }
    }

    /// The format's JSON Schema, for editors. Tests keep `scenarios/schema.json` up to it.
    #[cfg(test)]
    pub fn schema() -> serde_json::Value {
        let (source, empty) = (Source::new(""), DeTable::new());
        let mut fields = Fields::root(&source, &empty).describing();
        Scenario::read(&mut fields);
        let mut schema = fields.finish();
        schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        schema["title"] = "A scenario of the simulator".into();
        schema
    }

    fn read(fields: &mut Fields) -> Scenario {
        let claim = fields.text("claim", "one sentence: what holds, whatever happens here", true);
        let is_sentence =
            |claim: &str| claim.ends_with('.') && !claim.contains(['\n', '!', '?']) && !claim.contains(". ");
        if !claim.as_deref().is_none_or(is_sentence) {
            fields.wrong("claim", "expected one sentence that ends with a full stop");
        }
        let swarm = fields.flag("swarm", "whether everything else is drawn from the seed", false);
        let run_ms = fields.number("run_ms", "how long faults happen, in milliseconds", 60_000..=DAY_MS, 60_000);
        let settle_doc = "how long the cluster has to recover afterwards, in milliseconds";
        let settle_ms = fields.number("settle_ms", settle_doc, 1_000..=DAY_MS, 15_000);
        let cluster = fields.table("cluster", "the nodes", Cluster::read);
        let settle_ms_min = SETTLE_ELECTIONS_MIN * cluster.election_ms;
        if settle_ms < settle_ms_min {
            let expected =
                format!("expected at least {settle_ms_min}, {SETTLE_ELECTIONS_MIN} times cluster.election_ms");
            fields.wrong("settle_ms", expected);
        }
        let network = fields.table("network", "the links between nodes", Network::read);
        let disk = fields.table("disk", "how long operations of disks take", Disk::read);
        let clock = fields.table("clock", "the nodes' clocks", Clock::read);
        let workload = fields.table("workload", "what clients do", Workload::read);
        let setting = Setting { nodes: cluster.nodes, spares: cluster.spares, run_ms };
        let mut names = Vec::new();
        let nemeses = fields.tables("nemesis", "what goes wrong", Nemesis::VARIANTS, |fields| {
            let nemesis = Nemesis::read(fields, &setting, &names)?;
            names.push(nemesis.name.clone());
            Some(nemesis)
        });
        let operations = run_ms / 1_000 * workload.ops_per_second;
        let expect =
            fields.table("expect", "what must have come about", |fields| Expect::read(fields, &nemeses, operations));
        let laws = fields.table("laws", "what is asked of laws", |fields| Laws::read(fields, settle_ms));
        for name in REST.into_iter().filter(|name| swarm && fields.is_set(name)) {
            fields.wrong(name, "a swarm draws it from the seed; expected nothing");
        }
        Scenario {
            claim: claim.unwrap_or_default(),
            swarm,
            run_ms,
            settle_ms,
            cluster,
            network,
            disk,
            clock,
            workload,
            nemeses,
            expect,
            laws,
        }
    }
}

impl Cluster {
    fn read(fields: &mut Fields) -> Cluster {
        let nodes = fields.number("nodes", "how many there are", 1..=NODES_MAX, 3);
        let spares_max = NODES_MAX - nodes.min(NODES_MAX);
        let spares = fields.number("spares", "machines on which no member runs at first", 0..=NODES_MAX, 0);
        if spares > spares_max {
            fields.wrong("spares", format!("expected at most {spares_max}: {NODES_MAX} machines in all"));
        }
        let heartbeat_doc = "the interval of the leader's heartbeats, in milliseconds";
        let heartbeat_ms = fields.number("heartbeat_ms", heartbeat_doc, 10..=10_000, 100);
        let election_doc = "the least time without a leader before an election, in milliseconds";
        let election_ms = fields.number("election_ms", election_doc, 50..=50_000, 1_000);
        let election_ms_min = HEARTBEATS_PER_ELECTION_MIN * heartbeat_ms;
        if election_ms < election_ms_min {
            let expected =
                format!("expected at least {election_ms_min}, {HEARTBEATS_PER_ELECTION_MIN} times heartbeat_ms");
            fields.wrong("election_ms", expected);
        }
        let segment_doc = "the size at which the log goes over to a new segment, in bytes";
        let segment_bytes = fields.number("segment_bytes", segment_doc, 4_096..=64_000_000, 64_000_000);
        let checkpoint_doc = "a checkpoint is due when the log since the last one is larger than this and than a quarter of the state, in bytes";
        let checkpoint_bytes =
            fields.number("checkpoint_bytes", checkpoint_doc, 512..=CHECKPOINT_BYTES, CHECKPOINT_BYTES);
        let tail_doc = "applied entries that are kept in memory for followers a little behind, in bytes";
        let tail_bytes = fields.number("tail_bytes", tail_doc, 64..=TAIL_BYTES, TAIL_BYTES);
        let outputs_doc = "outputs of one step of a node after which the rest waits for the next step";
        let outputs_max = fields.number("outputs_max", outputs_doc, 1..=OUTPUTS_MAX, OUTPUTS_MAX);
        Cluster { nodes, spares, heartbeat_ms, election_ms, segment_bytes, checkpoint_bytes, tail_bytes, outputs_max }
    }
}

impl Network {
    fn read(fields: &mut Fields) -> Network {
        let nodes = Link::read(fields, Link { latency_us_min: 300, latency_us_mean: 1_000, loss_ppm: 0 });
        let doc = "the links between clients and nodes; by default as between nodes";
        let has_own = fields.is_set("clients");
        let clients = fields.table("clients", doc, |fields| Link::read(fields, nodes));
        Network { nodes, clients: if has_own { clients } else { nodes } }
    }
}

impl Link {
    fn read(fields: &mut Fields, default: Link) -> Link {
        let doc = "the least time that a segment is under way, in microseconds";
        let min = fields.number("latency_us_min", doc, 0..=1_000_000, default.latency_us_min);
        let doc = "the mean time that a segment is under way, in microseconds";
        let mean = fields.number("latency_us_mean", doc, 0..=1_000_000, default.latency_us_mean);
        if mean < min {
            fields.wrong("latency_us_mean", format!("expected at least latency_us_min = {min}"));
        }
        let loss_ppm = fields.percent("loss_percent", "segments that are lost and sent again", 50, default.loss_ppm);
        Link { latency_us_min: min, latency_us_mean: mean.max(min), loss_ppm }
    }
}

impl Disk {
    fn read(fields: &mut Fields) -> Disk {
        let sync_us_min = fields.number("sync_us_min", "the least time of a sync, in microseconds", 0..=1_000_000, 150);
        let sync_us_mean =
            fields.number("sync_us_mean", "the mean time of a sync, in microseconds", 0..=1_000_000, 400);
        if sync_us_mean < sync_us_min {
            fields.wrong("sync_us_mean", format!("expected at least sync_us_min = {sync_us_min}"));
        }
        Disk { sync_us_min, sync_us_mean }
    }
}

impl Clock {
    fn read(fields: &mut Fields) -> Clock {
        let doc = "how many microseconds each node's clock may gain or lose a second";
        Clock { drift_ppm_max: fields.number("drift_ppm_max", doc, 0..=100_000, 100) }
    }
}

impl Workload {
    fn read(fields: &mut Fields) -> Workload {
        Workload {
            clients: fields.number("clients", "how many read and write, each one call at a time", 4..=64, 6),
            watchers: fields.number("watchers", "how many watch", 0..=16, 2),
            keys: fields.number("keys", "how many keys there are", 1..=10, 5),
            ops_per_second: fields.number("ops_per_second", "calls of all clients together, a second", 1..=10_000, 100),
            timeout_ms: fields.number("timeout_ms", "how long a client waits for an answer", 100..=60_000, 3_000),
            serializable_percent: fields.number("serializable_percent", "gets and ranges at any member", 0..=100, 20),
            mix: fields.table("mix", "the weights of the operations", Mix::read),
        }
    }
}

impl Mix {
    fn read(fields: &mut Fields) -> Mix {
        let mix = Mix {
            put: fields.number("put", "writes of a key", 0..=1_000, 35),
            get: fields.number("get", "reads of a key", 0..=1_000, 30),
            range: fields.number("range", "reads of many keys", 0..=1_000, 10),
            delete: fields.number("delete", "deletions of a key or many", 0..=1_000, 5),
            compare_and_set: fields.number("compare_and_set", "writes of a key if it holds what it did", 0..=1_000, 20),
        };
        if mix.put == 0 {
            fields.wrong("put", "nothing would ever exist; expected more than 0");
        }
        mix
    }
}

impl Expect {
    /// `operations` is what clients call at most.
    fn read(fields: &mut Fields, nemeses: &[Nemesis], operations: u64) -> Expect {
        let outcome = Expect::read_outcome(fields, nemeses);
        let nemeses: Vec<_> = nemeses.iter().map(|nemesis| nemesis.name.clone()).collect();
        let doc = "operations that must be acknowledged";
        let acknowledged_min = fields.number("acknowledged_min", doc, 1..=COUNT_MAX, 2_000);
        if acknowledged_min > operations {
            let expected =
                format!("clients call {operations} times in all; expected less, or more workload.ops_per_second");
            fields.wrong("acknowledged_min", expected);
        }
        let under_default = if nemeses.is_empty() { 0 } else { 100 };
        let doc =
            "operations that must be acknowledged while a fault is on; by default 100, or 0 if there is no nemesis";
        let under_fault_min =
            fields.optional_number("under_fault_min", doc, 0..=COUNT_MAX, None).unwrap_or(under_default);
        if nemeses.is_empty() && under_fault_min > 0 {
            fields.wrong("under_fault_min", "there is no nemesis; expected 0");
        }
        let must_fire = fields.texts("must_fire", "nemeses that must have an effect, by name; by default all");
        for name in must_fire.iter().flatten().filter(|name| !nemeses.contains(name)) {
            let some = if nemeses.is_empty() { "nothing".into() } else { format!("some of {}", nemeses.join(", ")) };
            fields.wrong("must_fire", format!("there is no nemesis {name:?}; expected {some}"));
        }
        let must_reach = fields.texts("must_reach", "node events that must happen, by name").unwrap_or_default();
        for name in must_reach.iter().filter(|name| !NODE_EVENTS.contains(&name.as_str())) {
            let expected = format!("there is no event {name:?}; expected some of {}", NODE_EVENTS.join(", "));
            fields.wrong("must_reach", expected);
        }
        Expect { outcome, acknowledged_min, under_fault_min, must_fire: must_fire.unwrap_or(nemeses), must_reach }
    }

    /// No scenario but one that expects it may take from the cluster what it cannot do without.
    fn read_outcome(fields: &mut Fields, nemeses: &[Nemesis]) -> Ending {
        let doc = "how it ends: it converges; or it stops, for lack of a quorum, over disks that fail, and converges once \
                   they are well; or it refuses for good to go on from disks that cannot be trusted";
        let outcome = fields.choice("outcome", doc, &ENDINGS, 0);
        let mut costly = nemeses.iter().filter(|nemesis| !nemesis.keep_quorum);
        if outcome != Ending::Converges && costly.clone().next().is_none() {
            fields.wrong("outcome", "a quorum always remains; expected converges, or a nemesis of keep_quorum = false");
        }
        if let Some(nemesis) = costly.find(|nemesis| nemesis.fault.may_ruin() && outcome != Ending::Refuses) {
            let expected = format!("{} may destroy what only a quorum has; expected refuses", nemesis.name);
            fields.wrong("outcome", expected);
        }
        outcome
    }
}

impl Laws {
    fn read(fields: &mut Fields, settle_ms: u64) -> Laws {
        let doc = "how long the cluster may take to recover, in milliseconds; by default settle_ms";
        let recovery_ms = fields.optional_number("recovery_ms", doc, 1..=DAY_MS, None).unwrap_or(settle_ms);
        if recovery_ms > settle_ms {
            fields.wrong("recovery_ms", format!("expected at most settle_ms = {settle_ms}"));
        }
        let doc = "how long a call may take while nothing is wrong, in milliseconds, what links lose not counted; by \
                   default 500";
        Laws { recovery_ms, prompt_ms: fields.optional_number("prompt_ms", doc, 1..=DAY_MS, None).unwrap_or(PROMPT_MS) }
    }
}
