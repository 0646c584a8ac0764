//! A nemesis: one fault that strikes again and again.
use super::{
    DAY_MS, Span,
    fault::{Arrival, DiskIo, Fault, Files, Links, NODES_MAX, Shape, Target, Victim, numbers, quorum_remains},
    fields::Fields,
    trigger::Trigger,
};
use crate::history::NodeNumber;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nemesis {
    /// Unlike any other in the scenario. Its draws come from a seed of this name.
    pub name: String,
    pub fault: Fault<Span>,
    pub on: Target,
    pub timing: Timing,
    /// How long a fault lasts, in milliseconds. It ends before the next of this nemesis begins, unless it is one that must
    /// be brought to its end: whoever was removed comes back.
    pub for_ms: Span,
    /// A rule for whoever injects: a fault after which no quorum would remain (`quorum_remains`, counting all other
    /// faults that are on) does not begin. Like one that finds no victim, it is tried again until it has worked or the
    /// time at which it would have ended has come.
    pub keep_quorum: bool,
}

/// When a nemesis strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timing {
    /// Once in each stretch of `every_ms` from `from_ms` on, at a random moment; the last one is to end by `until_ms`.
    Every { every_ms: u64, from_ms: u64, until_ms: u64 },
    /// At these times exactly, in milliseconds since the run began.
    At(Vec<u64>),
    /// When a node does this, up to so many times, one after another, within these times.
    When { trigger: Trigger, by: Option<Victim>, times: u64, from_ms: u64, until_ms: u64 },
}

/// What a nemesis must agree with.
pub struct Setting {
    pub nodes: usize,
    pub spares: usize,
    pub run_ms: u64,
}

const KINDS: [&str; 25] = [
    "power_loss",
    "kill",
    "pause",
    "partition",
    "flapping",
    "reset_connections",
    "half_open",
    "latency",
    "loss",
    "garbled_state",
    "slow_fsync",
    "clock_drift",
    "wall_jump",
    "failed_sync",
    "io_error",
    "disk_full",
    "rot",
    "latent_errors",
    "misdirected",
    "stale_disk",
    "replace",
    "join",
    "update",
    "move_leader",
    "refused_removal",
];

/// Those that strike one node, each time.
const ONE_AT_A_TIME: [&str; 8] =
    ["rot", "latent_errors", "misdirected", "stale_disk", "replace", "update", "move_leader", "refused_removal"];

const ARRIVALS: [(&str, Arrival); 3] =
    [("promoted", Arrival::Promoted), ("voter", Arrival::Voter), ("learner", Arrival::Learner)];

const FILES: [(&str, Files); 3] = [("log", Files::Log), ("state", Files::State), ("all", Files::All)];

const DISK_IO: [(&str, DiskIo); 4] =
    [("write", DiskIo::Write), ("sync", DiskIo::Sync), ("entry", DiskIo::Entry), ("read", DiskIo::Read)];

const SHAPES: [(&str, Shape); 6] = [
    ("isolate", Shape::Isolate),
    ("halves", Shape::Halves),
    ("one_way_in", Shape::OneWayIn),
    ("one_way_out", Shape::OneWayOut),
    ("bridge", Shape::Bridge),
    ("majorities", Shape::Majorities),
];

const LINKS: [(&str, Links); 3] = [("nodes", Links::Nodes), ("clients", Links::Clients), ("all", Links::All)];

const TARGETS: [(&str, Target); 14] = [
    ("leader", Target::One(Victim::Leader)),
    ("follower", Target::One(Victim::Follower)),
    ("any", Target::One(Victim::Any)),
    ("all", Target::One(Victim::All)),
    ("rolling", Target::Rolling),
    ("learner", Target::One(Victim::Learner)),
    ("spare", Target::One(Victim::Spare)),
    ("n1", node(1)),
    ("n2", node(2)),
    ("n3", node(3)),
    ("n4", node(4)),
    ("n5", node(5)),
    ("n6", node(6)),
    ("n7", node(7)),
];

const ON_DEFAULT: usize = 2;
const SPARE: usize = 6;
const HOUR_MS: i64 = 3_600_000;

const fn node(number: usize) -> Target {
    Target::One(Victim::Node(NodeNumber(number)))
}

impl Nemesis {
    /// How many variants of its table there are.
    pub const VARIANTS: usize = KINDS.len();

    /// `taken` are the names of those before it.
    pub fn read(fields: &mut Fields, setting: &Setting, taken: &[String]) -> Option<Nemesis> {
        let kind = fields.variant("kind", "what is done", &KINDS)?;
        let name =
            fields.text("name", "its name in reports and in must_fire, unlike any other; the kind by default", false);
        let on_doc = "whom it strikes; rolling is each node in turn, spare a machine without a member";
        let on_default = if kind == "join" { SPARE } else { ON_DEFAULT };
        let on = fields.choice("on", on_doc, &TARGETS, on_default);
        check_target(fields, kind, on, setting);
        let for_ms = fields.span("for_ms", "how long it lasts each time, in milliseconds", 1..=HOUR_MS, None);
        let fault = read_fault(fields, kind);
        let keep_quorum = fields.flag("keep_quorum", "not to strike while that would leave no quorum", true);
        check_partition(fields, &fault, on, setting);
        if keep_quorum && !leaves_quorum(&fault, on, setting.nodes) {
            let expected = format!("no quorum of {} can remain; expected false", setting.nodes);
            fields.wrong("keep_quorum", expected);
        }
        let timing = read_timing(fields, for_ms, setting);
        let name = name.unwrap_or(kind.to_owned());
        if taken.contains(&name) {
            let field = if fields.is_set("name") { "name" } else { "kind" };
            fields.wrong(field, format!("there is a nemesis {name:?} already; expected another name"));
        }
        Some(Nemesis { name, fault, on, timing, for_ms, keep_quorum })
    }
}

fn read_fault(fields: &mut Fields, kind: &str) -> Fault<Span> {
    match kind {
        "power_loss" => {
            let doc = "whether any part of what was not synced may survive, sector by sector; if not, none of it does";
            Fault::PowerLoss { torn: fields.flag("torn", doc, true) }
        }
        "kill" => Fault::Kill,
        "pause" => Fault::Pause,
        "partition" => Fault::Partition { shape: read_shape(fields), links: read_links(fields) },
        "flapping" => Fault::Flapping {
            shape: read_shape(fields),
            links: read_links(fields),
            down_ms: fields.span("down_ms", "how long the links are cut at a time, in milliseconds", 1..=HOUR_MS, None),
            up_ms: fields.span("up_ms", "how long they are whole in between, in milliseconds", 1..=HOUR_MS, None),
        },
        "reset_connections" => Fault::ResetConnections { links: read_links(fields), period_ms: read_period(fields) },
        "half_open" => Fault::HalfOpen { links: read_links(fields), period_ms: read_period(fields) },
        "latency" => {
            let doc = "how much longer everything is under way, in milliseconds";
            Fault::Latency { links: read_links(fields), extra_ms: fields.span("extra_ms", doc, 1..=60_000, None) }
        }
        "loss" => {
            let ppm = fields.percent_span("percent", "how much is lost, and sent again", 90);
            Fault::Loss { links: read_links(fields), ppm }
        }
        "garbled_state" => Fault::GarbledState,
        "slow_fsync" => read_slow_fsync(fields),
        "clock_drift" => {
            let doc = "microseconds that the clock gains a second";
            Fault::ClockDrift { ppm: fields.span("ppm", doc, -500_000..=500_000, None) }
        }
        "wall_jump" => {
            let doc = "by how much the wall clock jumps, in milliseconds";
            Fault::WallJump { ms: fields.span("ms", doc, -10_000 * HOUR_MS..=10_000 * HOUR_MS, None) }
        }
        "failed_sync" => Fault::FailedSync { files: read_files(fields) },
        "io_error" => {
            let io = fields.choice("io", "what fails: entry is opening, listing and renaming", &DISK_IO, 0);
            Fault::IoError { io, files: read_files(fields) }
        }
        "disk_full" => Fault::DiskFull { files: read_files(fields) },
        "rot" => {
            let sectors = fields.span("sectors", "how many sectors rot", 1..=1_000, Some(1));
            Fault::Rot { sectors, files: read_files(fields) }
        }
        "latent_errors" => {
            let sectors = fields.span("sectors", "how many sectors cannot be read any more", 1..=1_000, Some(1));
            Fault::LatentErrors { sectors, files: read_files(fields) }
        }
        "misdirected" => Fault::Misdirected,
        "stale_disk" => Fault::StaleDisk,
        "replace" => {
            let doc = "whether the removed member is started again first, with the data it has";
            Fault::Replace { arrival: read_arrival(fields), keep_data: fields.flag("keep_data", doc, false) }
        }
        "join" => Fault::Join { arrival: read_arrival(fields) },
        "update" => Fault::Update,
        "move_leader" => Fault::MoveLeader,
        "refused_removal" => Fault::RefusedRemoval,
        other => unreachable!("{other} is not in KINDS"),
    }
}

fn read_files(fields: &mut Fields) -> Files {
    fields.choice("files", "which files: of the log, of the state (checkpoints and snapshots), or all", &FILES, 0)
}

fn read_arrival(fields: &mut Fields) -> Arrival {
    fields.choice("as", "what it is added as; promoted is a learner first, then a voter", &ARRIVALS, 0)
}

fn read_shape(fields: &mut Fields) -> Shape {
    fields.choice("shape", "how the cluster is divided, as seen from whom it strikes", &SHAPES, 0)
}

fn read_links(fields: &mut Fields) -> Links {
    fields.choice("links", "which links of whom it strikes: with the other nodes, with clients, or all", &LINKS, 0)
}

fn read_period(fields: &mut Fields) -> Span {
    fields.span("period_ms", "how long until it is done again, in milliseconds", 1..=HOUR_MS, None)
}

fn read_slow_fsync(fields: &mut Fields) -> Fault<Span> {
    let stalled = fields.flag("stalled", "whether nothing is written and synced at all", false);
    let extra_ms = fields.span("extra_ms", "how much longer each sync takes, in milliseconds", 1..=60_000, Some(50));
    if stalled && fields.is_set("extra_ms") {
        fields.wrong("extra_ms", "a stalled disk takes no time at all; expected either extra_ms or stalled = true");
    }
    if stalled { Fault::StalledFsync } else { Fault::SlowFsync { extra_ms } }
}

fn read_timing(fields: &mut Fields, for_ms: Span, setting: &Setting) -> Timing {
    let run_ms = setting.run_ms;
    let every_ms = fields.optional_number("every_ms", "it strikes once in so many milliseconds", 1..=DAY_MS, None);
    let from_ms = fields.number("from_ms", "when the first such stretch begins, in milliseconds", 0..=DAY_MS, 0);
    let until_doc = "when the last such stretch ends, in milliseconds; by default run_ms";
    let until_ms = fields.optional_number("until_ms", until_doc, 0..=DAY_MS, None).unwrap_or(run_ms);
    let at_ms = fields.numbers("at_ms", "when it strikes, in milliseconds since the run began, instead of every_ms");
    let doc = "what it waits for a node to do, instead of every_ms: [before|after] POINT [COUNT] [after POINT]";
    let when = fields.text("when", doc, false);
    let by_doc = "of whom the point of when is; by default of whom it strikes, at that very moment";
    let by = fields.choice("by", by_doc, &TARGETS, ON_DEFAULT);
    let times = fields.number("times", "how often it strikes at most, with when", 1..=1_000, 1);
    if let Some(when) = when {
        return read_when(fields, &when, by, times, [from_ms, until_ms], run_ms);
    }
    for name in ["by", "times"].into_iter().filter(|name| fields.is_set(name)) {
        fields.wrong(name, "expected together with when");
    }
    if fields.is_set("at_ms") {
        if let Some(other) = ["every_ms", "from_ms", "until_ms"].into_iter().find(|name| fields.is_set(name)) {
            fields.wrong(other, "expected either this or at_ms");
        }
        let times = at_ms.unwrap_or_default();
        if let Some(problem) = problem_of_times(&times, for_ms, run_ms) {
            fields.wrong("at_ms", problem);
        }
        return Timing::At(times);
    }
    let Some(every_ms) = every_ms else {
        fields.wrong("every_ms", "missing; expected every_ms = a whole number, or at_ms = a list of times");
        return Timing::At(Vec::new());
    };
    if until_ms > run_ms {
        fields.wrong("until_ms", format!("expected at most run_ms = {run_ms}"));
    } else if from_ms >= until_ms {
        fields.wrong("from_ms", format!("expected less than until_ms = {until_ms}"));
    } else if every_ms > until_ms - from_ms {
        let expected =
            format!("it would never strike; expected at most {}, from from_ms to until_ms", until_ms - from_ms);
        fields.wrong("every_ms", expected);
    } else if for_ms.max as u64 >= every_ms {
        fields.wrong("for_ms", format!("expected less than every_ms = {every_ms}"));
    }
    Timing::Every { every_ms, from_ms, until_ms }
}

fn read_when(fields: &Fields, when: &str, by: Target, times: u64, window: [u64; 2], run_ms: u64) -> Timing {
    if let Some(other) = ["every_ms", "at_ms"].into_iter().find(|name| fields.is_set(name)) {
        fields.wrong(other, "expected either this or when");
    }
    let [from_ms, until_ms] = window;
    if until_ms > run_ms {
        fields.wrong("until_ms", format!("expected at most run_ms = {run_ms}"));
    } else if from_ms >= until_ms {
        fields.wrong("from_ms", format!("expected less than until_ms = {until_ms}"));
    }
    let by = match by {
        Target::One(victim) => Some(victim),
        Target::Rolling => {
            fields.wrong("by", "expected one node");
            None
        }
    };
    match Trigger::parse(when) {
        Ok(trigger) => Timing::When { trigger, by: by.filter(|_| fields.is_set("by")), times, from_ms, until_ms },
        Err(problem) => {
            fields.wrong("when", problem);
            Timing::At(Vec::new())
        }
    }
}

fn problem_of_times(times: &[u64], for_ms: Span, run_ms: u64) -> Option<String> {
    let for_ms = for_ms.max as u64;
    let Some(last) = times.last() else { return Some("expected at least one time".into()) };
    if let Some(pair) = times.windows(2).find(|pair| pair[0].saturating_add(for_ms) > pair[1]) {
        let gap = format!("{} and {}", pair[0], pair[1]);
        return Some(format!("expected times in order, with room for for_ms = {for_ms} between {gap}"));
    }
    let is_late = last.saturating_add(for_ms) > run_ms;
    is_late.then(|| format!("expected the last to end, after for_ms = {for_ms}, by run_ms = {run_ms}"))
}

fn check_target(fields: &Fields, kind: &str, on: Target, setting: &Setting) {
    let is_spare = on == Target::One(Victim::Spare);
    match on {
        Target::One(Victim::Node(number)) if number.0 > setting.nodes => {
            fields.wrong("on", format!("expected a node of the cluster, up to n{}", setting.nodes));
        }
        Target::One(Victim::Leader | Victim::Follower) if setting.nodes == 1 => {
            fields.wrong("on", "a cluster of one node has nobody to tell its leader from; expected any");
        }
        _ if is_spare != (kind == "join") => {
            fields.wrong("on", "spare machines are for join, and for nothing else");
        }
        Target::One(Victim::Spare) if setting.spares == 0 => {
            fields.wrong("on", "there is none; expected cluster.spares = 1 or more");
        }
        Target::One(Victim::All) if ONE_AT_A_TIME.contains(&kind) => {
            fields.wrong("on", "expected one node");
        }
        _ => {}
    }
}

fn check_partition(fields: &Fields, fault: &Fault<Span>, on: Target, setting: &Setting) {
    let Some((shape, links)) = fault.partition() else { return };
    if links.nodes() && setting.nodes < shape.nodes_min() {
        let expected = format!("expected a cluster of at least {} nodes, not {}", shape.nodes_min(), setting.nodes);
        fields.wrong("shape", expected);
    }
    if links.clients() && !shape.is_all_around() {
        fields
            .wrong("links", "clients take no sides; expected nodes, or a shape of isolate, one_way_in and one_way_out");
    }
    if on == Target::One(Victim::All) && shape != Shape::Isolate {
        fields.wrong("shape", "expected isolate, for all are struck at once");
    }
}

/// Whether a quorum remains when this fault is on, and no other.
fn leaves_quorum(fault: &Fault<Span>, on: Target, nodes: usize) -> bool {
    let numbers = numbers(nodes.min(NODES_MAX));
    let struck = if on == Target::One(Victim::All) { &numbers[..] } else { &numbers[..1] };
    let cuts = match fault.partition() {
        Some((shape, links)) if links.nodes() && nodes >= shape.nodes_min() => {
            let others = |victim| numbers.iter().copied().filter(|&other| other != victim).collect::<Vec<_>>();
            struck.iter().flat_map(|&victim| shape.cuts(victim, &others(victim))).collect()
        }
        _ => Vec::new(),
    };
    quorum_remains(
        &numbers,
        |number| !(fault.disables() && struck.contains(&number)),
        |from, to| cuts.contains(&(from, to)),
    )
}
