//! The schedule: every fault of a run as a value, made from the scenario and the seed before the run begins.
//!
//! Each fault draws from a seed of its own, named after its nemesis and counted within it. One fault fewer, or one
//! nemesis fewer, therefore changes nothing about the others.
//!
//! Invariants:
//! - Faults are in the order of their starts; of those that start at once, in the order of their nemeses.
//! - Faults of one nemesis are not planned to overlap.
//! - No fault is planned to start or end outside of the time that its nemesis was given.
use std::{fmt, time::Duration};

use crate::{
    history::NodeNumber,
    scenario::{
        Nemesis, Scenario, Span, Timing,
        fault::{Fault, Order, Target, Victim, numbers},
        trigger::Trigger,
    },
    seed::{Rng, Seed},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub faults: Vec<Planned>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub id: FaultId,
    pub start: Start,
    pub lasts: Duration,
    pub fault: Fault<i64>,
    pub victim: Victim,
    /// Decides among those who may be the victim, and who is on which side of a partition.
    pub order: Order,
    /// See [`Nemesis::keep_quorum`].
    pub keep_quorum: bool,
    /// For what shows only while it is on, as which sectors a power loss keeps.
    pub seed: Seed,
}

/// Says which fault it is, in every run of the scenario and the seed: `power_loss/3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId {
    pub nemesis: String,
    /// Counted from 1.
    pub number: u64,
}

/// Times are since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    At(Duration),
    /// When a node does this, within these times, and once the fault before it of the same nemesis is over. `by` says
    /// whose doing it is; `None`: of whom the fault strikes.
    When {
        trigger: Trigger,
        by: Option<Victim>,
        from: Duration,
        until: Duration,
    },
}

impl Start {
    /// Not before then.
    pub fn earliest(&self) -> Duration {
        match *self {
            Start::At(at) => at,
            Start::When { from, .. } => from,
        }
    }
}

impl Schedule {
    pub fn new(scenario: &Scenario, seed: Seed) -> Schedule {
        let nemeses = scenario.nemeses.iter();
        let mut faults: Vec<_> = nemeses.flat_map(|nemesis| plan(nemesis, scenario.cluster.nodes, seed)).collect();
        faults.sort_by_key(|planned| planned.start.earliest());
        Schedule { faults }
    }
}

/// A line each.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.faults.iter().try_for_each(|planned| writeln!(f, "{planned}"))
    }
}

fn plan(nemesis: &Nemesis, nodes: usize, seed: Seed) -> Vec<Planned> {
    let seed = seed.child(&format!("nemesis {}", nemesis.name), 0);
    let first_of_rolling = draw(seed.child("rolling", 0), Span { min: 0, max: nodes as i64 - 1 }) as usize;
    let plan = |(number, slot): (u64, Span)| {
        let seed = seed.child("fault", number);
        let lasts_ms = draw(seed.child("for", 0), nemesis.for_ms);
        let span = Span { min: slot.min, max: slot.max.max(slot.min + lasts_ms) - lasts_ms };
        let start = match nemesis.timing {
            Timing::When { trigger, by, from_ms, until_ms, .. } => {
                let [from, until] = [from_ms, until_ms].map(Duration::from_millis);
                Start::When { trigger, by, from, until }
            }
            _ => Start::At(Duration::from_millis(draw(seed.child("start", 0), span) as u64)),
        };
        let mut numbers = 0;
        let fault = nemesis.fault.map(|span| {
            numbers += 1;
            draw(seed.child("number", numbers), span)
        });
        let victim = match nemesis.on {
            Target::One(victim) => victim,
            Target::Rolling => Victim::Node(NodeNumber((first_of_rolling + number as usize) % nodes + 1)),
        };
        Planned {
            id: FaultId { nemesis: nemesis.name.clone(), number },
            start,
            lasts: Duration::from_millis(lasts_ms as u64),
            fault,
            victim,
            order: Order(draw(seed.child("order", 0), Span { min: 0, max: Order::COUNT as i64 - 1 }) as u16),
            keep_quorum: nemesis.keep_quorum,
            seed: seed.child("injection", 0),
        }
    };
    (1..).zip(slots(&nemesis.timing)).map(plan).collect()
}

/// The stretches of time, in milliseconds, of which each holds one fault. One without length fixes its start.
fn slots(timing: &Timing) -> Vec<Span> {
    match timing {
        Timing::Every { every_ms, from_ms, until_ms } => {
            let starts = (0..(until_ms - from_ms) / every_ms).map(|slot| (from_ms + slot * every_ms) as i64);
            starts.map(|start| Span { min: start, max: start + *every_ms as i64 }).collect()
        }
        Timing::At(times) => times.iter().map(|&time| Span::just(time as i64)).collect(),
        Timing::When { times, from_ms, .. } => (0..*times).map(|_| Span::just(*from_ms as i64)).collect(),
    }
}

fn draw(seed: Seed, span: Span) -> i64 {
    assert!(span.min <= span.max);
    let count = span.min.abs_diff(span.max) + 1;
    let offset = (u128::from(seed.rng().next_u64()) * u128::from(count)) >> 64;
    span.min + offset as i64
}

/// How things stand in the cluster when a fault is to strike.
#[derive(Debug, Clone, Default)]
pub struct Stand {
    /// Members that run.
    pub running: Vec<NodeNumber>,
    pub leader: Option<NodeNumber>,
    pub learners: Vec<NodeNumber>,
    /// Machines on which no member runs, nor is to.
    pub spares: Vec<NodeNumber>,
}

impl Planned {
    /// Whom it strikes, as things stand. Nobody: it cannot strike yet.
    pub fn victims(&self, stand: &Stand) -> Vec<NodeNumber> {
        let one_of = |candidates: Vec<NodeNumber>| self.order.of(&candidates).into_iter().take(1).collect();
        let leader = stand.leader.filter(|leader| stand.running.contains(leader));
        let may_be = |victim: Victim, number| victim.may_be(number, leader, stand.learners.contains(&number));
        match self.victim {
            Victim::All => stand.running.clone(),
            Victim::Spare => one_of(stand.spares.clone()),
            victim => one_of(stand.running.iter().copied().filter(|&number| may_be(victim, number)).collect()),
        }
    }

    /// The ways between nodes that it cuts if it strikes these, each (from, to); of a flapping link, while it is down.
    pub fn cuts(&self, victims: &[NodeNumber], nodes: usize) -> Vec<(NodeNumber, NodeNumber)> {
        let Some((shape, _)) = self.fault.partition().filter(|(_, links)| links.nodes()) else { return Vec::new() };
        let others = |victim| numbers(nodes).into_iter().filter(|&other| other != victim).collect::<Vec<_>>();
        victims.iter().flat_map(|&victim| shape.cuts(victim, &self.order.of(&others(victim)))).collect()
    }
}

/// `12.345s for 3.1s: power_loss on leader (torn)`; with the order, as in `any#17`, where it decides anything.
impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, victim, details) = (self.fault.kind(), self.victim, self.fault.details());
        match self.start {
            Start::At(at) => write!(f, "{:.3}s", at.as_secs_f64())?,
            Start::When { trigger, by, from, until } => {
                write!(f, "{:.3}s to {:.3}s, when {trigger}", from.as_secs_f64(), until.as_secs_f64())?;
                by.map_or(Ok(()), |by| write!(f, " by {by}"))?;
                f.write_str(",")?;
            }
        }
        write!(f, " for {:?}: {kind} on {victim}", self.lasts)?;
        let takes_sides = self.fault.partition().is_some_and(|(shape, _)| !shape.is_all_around());
        if takes_sides || matches!(victim, Victim::Follower | Victim::Any | Victim::Learner | Victim::Spare) {
            write!(f, "#{}", self.order.0)?;
        }
        if !details.is_empty() {
            write!(f, " ({details})")?;
        }
        if self.id.nemesis != kind { write!(f, ", as {}", self.id.nemesis) } else { Ok(()) }
    }
}

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.nemesis, self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::scenario::tests::{STANDARD, all_scenarios};

    fn scenario(nemeses: &str) -> Scenario {
        let text = format!("claim = \"Nothing.\"\ncluster.nodes = 5\n{nemeses}");
        Scenario::parse("test", &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn schedule(nemeses: &str, seed: u64) -> Schedule {
        Schedule::new(&scenario(nemeses), Seed(seed))
    }

    #[test]
    fn a_schedule_reads_like_a_list() {
        let nemeses = r#"
            nemesis = [
                { kind = "power_loss", on = "leader", every_ms = 20_000, for_ms = [2_000, 4_000] },
                { kind = "flapping", name = "links", on = "n2", at_ms = [7_000], for_ms = 99, down_ms = [50, 500], up_ms = 200 },
                { kind = "partition", shape = "bridge", at_ms = [7_000], for_ms = 100 },
                { kind = "partition", name = "deaf", shape = "one_way_in", links = "clients", at_ms = [8_000], for_ms = 9 },
                { kind = "loss", on = "all", percent = [0.5, 20], every_ms = 50_000, for_ms = 900, links = "all" },
                { kind = "slow_fsync", on = "rolling", stalled = true, every_ms = 15_000, for_ms = 900 },
                { kind = "clock_drift", on = "follower", ppm = [-500, 500], every_ms = 50_000, for_ms = 900 },
                { kind = "wall_jump", ms = 3_600_000, every_ms = 50_000, for_ms = 900 },
                { kind = "kill", every_ms = 50_000, for_ms = 900 },
                { kind = "half_open", every_ms = 50_000, for_ms = 900, period_ms = 90 },
            ]
        "#;
        insta::assert_snapshot!(schedule(nemeses, 7), @r"
        0.803s for 900ms: loss on all (11.3585 %, nodes and clients)
        7.000s for 99ms: flapping on n2 (isolate, 366 ms down, 200 ms up), as links
        7.000s for 100ms: partition on any#4595 (bridge)
        7.702s for 900ms: slow_fsync on n3 (stalled)
        8.000s for 9ms: partition on any#3458 (one_way_in, clients), as deaf
        9.344s for 900ms: half_open on any#3002 (every 90 ms)
        11.374s for 3.199s: power_loss on leader (torn)
        22.856s for 900ms: kill on any#2884
        24.767s for 900ms: clock_drift on follower#1353 (-51 ppm)
        25.316s for 900ms: slow_fsync on n4 (stalled)
        30.281s for 900ms: slow_fsync on n5 (stalled)
        32.022s for 2.676s: power_loss on leader (torn)
        37.657s for 900ms: wall_jump on any#1315 (+3600000 ms)
        48.919s for 3.905s: power_loss on leader (torn)
        54.805s for 900ms: slow_fsync on n1 (stalled)
        ");
    }
    fn at_ms(planned: &Planned) -> u64 {
        planned.start.earliest().as_millis() as u64
    }

    /// What is left of a schedule without a nemesis.
    fn without(mut schedule: Schedule, nemesis: &str) -> Schedule {
        schedule.faults.retain(|planned| planned.id.nemesis != nemesis);
        schedule
    }

    #[test]
    fn a_schedule_is_a_function_of_scenario_and_seed() {
        for (name, scenario) in all_scenarios().into_iter().filter(|(_, scenario)| !scenario.nemeses.is_empty()) {
            let schedules: Vec<_> = (0..50).map(|seed| Schedule::new(&scenario, Seed(seed))).collect();
            for (seed, schedule) in (0..).zip(&schedules) {
                assert_eq!(&Schedule::new(&scenario, Seed(seed)), schedule, "{name}");
            }
            // Of what waits for a node's doing, or has its time, all but what comes of it may be fixed.
            let is_drawn = |nemesis: &Nemesis| matches!(nemesis.timing, Timing::Every { .. });
            if !scenario.nemeses.iter().any(is_drawn) {
                continue;
            }
            let distinct: BTreeSet<_> = schedules.iter().map(|schedule| schedule.to_string()).collect();
            assert_eq!(distinct.len(), schedules.len(), "{name}: two seeds have one schedule");
        }
    }

    /// The standard scenarios must be able to come by what they expect: two faults of each nemesis, and faults for a
    /// sixth of the time or more.
    #[test]
    fn scenarios_have_faults_enough() {
        let standard = all_scenarios().into_iter().filter(|(name, _)| STANDARD.contains(&name.as_str()));
        for (name, scenario) in standard.filter(|(_, scenario)| !scenario.nemeses.is_empty()) {
            for seed in 0..50 {
                let schedule = Schedule::new(&scenario, Seed(seed));
                for nemesis in &scenario.nemeses {
                    let own = schedule.faults.iter().filter(|planned| planned.id.nemesis == nemesis.name);
                    assert!(own.count() >= 2, "{name}, seed {seed}: {}", nemesis.name);
                }
                let on: Duration = schedule.faults.iter().map(|planned| planned.lasts).sum();
                assert!(on.as_millis() as u64 > scenario.run_ms / 6, "{name}, seed {seed}: {on:?}");
            }
        }
    }

    fn planned_on(target: &str) -> Planned {
        let fields = "kind = \"pause\", at_ms = [5], for_ms = 1, keep_quorum = false";
        schedule(&format!("nemesis = [{{ {fields}, on = \"{target}\" }}]"), 3).faults.remove(0)
    }

    fn text(victims: &[NodeNumber]) -> String {
        victims.iter().map(NodeNumber::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_fault_strikes_whom_it_can() {
        #[track_caller]
        fn check(target: &str, running: &[usize], leader: Option<usize>, victims: &str) {
            let running = running.iter().copied().map(NodeNumber).collect();
            let stand = Stand { running, leader: leader.map(NodeNumber), ..Stand::default() };
            assert_eq!(text(&planned_on(target).victims(&stand)), victims);
        }
        check("leader", &[1, 2, 4], Some(2), "n2");
        check("leader", &[1, 2, 4], Some(3), ""); // it led, and is down
        check("leader", &[1, 2, 4], None, "");
        check("follower", &[2, 4], Some(2), "n4");
        check("follower", &[2, 4], None, "");
        check("any", &[4], None, "n4");
        check("n4", &[1, 2, 4], Some(2), "n4");
        check("n3", &[1, 2, 4], Some(2), "");
        check("all", &[1, 2, 4], Some(2), "n1 n2 n4");
        check("all", &[], None, "");
    }

    #[test]
    fn everyone_may_be_struck() {
        let running = [1, 2, 3].map(NodeNumber).to_vec();
        let stand = Stand { running, leader: Some(NodeNumber(2)), ..Stand::default() };
        for (target, all) in [("any", "n1 n2 n3"), ("follower", "n1 n3")] {
            let planned = planned_on(target);
            let struck = (0..Order::COUNT as u16)
                .flat_map(|draw| Planned { order: Order(draw), ..planned.clone() }.victims(&stand));
            let struck: BTreeSet<_> = struck.collect();
            assert_eq!(text(&struck.into_iter().collect::<Vec<_>>()), all, "{target}");
        }
    }

    #[test]
    fn rolling_strikes_each_in_turn() {
        let text = "nemesis = [{ kind = \"kill\", on = \"rolling\", every_ms = 6_000, for_ms = 1_000 }]";
        let victims = schedule(text, 4).faults.into_iter().map(|planned| planned.victim.to_string());
        assert_eq!(victims.collect::<Vec<_>>().join(" "), "n2 n3 n4 n5 n1 n2 n3 n4 n5 n1");
    }

    #[test]
    fn cuts_follow_shape_and_links() {
        #[track_caller]
        fn check(fields: &str, expected: &[(usize, usize)]) {
            let text = format!("nemesis = [{{ at_ms = [5], for_ms = 1, {fields} }}]");
            let planned = schedule(&text, 3).faults.remove(0);
            let mut cuts = planned.cuts(&[NodeNumber(2)], 3);
            cuts.sort();
            assert_eq!(cuts.iter().map(|(from, to)| (from.0, to.0)).collect::<Vec<_>>(), expected);
        }
        check("kind = \"partition\", shape = \"one_way_in\"", &[(1, 2), (3, 2)]);
        check("kind = \"partition\", shape = \"one_way_in\", links = \"all\"", &[(1, 2), (3, 2)]);
        check("kind = \"partition\", shape = \"one_way_in\", links = \"clients\"", &[]);
        check("kind = \"flapping\", shape = \"bridge\", down_ms = 5, up_ms = 5", &[(1, 3), (3, 1)]);
        check("kind = \"kill\"", &[]);
    }

    /// A nemesis as a scenario has it, but for its name.
    fn nemesis() -> impl Strategy<Value = String> {
        let faults = [
            "kind = \"kill\"",
            "kind = \"partition\", shape = \"halves\"",
            "kind = \"loss\", percent = [0.5, 20]",
            "kind = \"flapping\", down_ms = [1, 900], up_ms = [20, 30]",
            "kind = \"wall_jump\", ms = [-100, 100]",
        ];
        let times = (1..20_000u64, 1..20_000u64, 1..9_000u64, 0..20_000u64, 0..20_000u64);
        let on = ["leader", "follower", "any", "n2", "rolling"];
        let fault = prop::sample::select(faults.to_vec());
        let on = prop::sample::select(on.to_vec());
        (fault, on, times).prop_map(|(fault, on, (least, more, gap, from, until))| {
            let (most, until) = (least + more / 2, 60_000 - until);
            let every = (most + gap).min(until - from);
            let (least, most) = (least.min(every - 1), most.min(every - 1));
            let window = format!("from_ms = {from}, until_ms = {until}");
            format!("{fault}, on = \"{on}\", every_ms = {every}, for_ms = [{least}, {most}], {window}")
        })
    }

    fn check_bounds(nemesis: &Nemesis, faults: &[&Planned]) {
        let Timing::Every { every_ms, from_ms, until_ms } = nemesis.timing else { unreachable!("none has times") };
        assert_eq!(faults.len() as u64, (until_ms - from_ms) / every_ms);
        let within = |number: i64, span: Span| assert!((span.min..=span.max).contains(&number), "{number} of {span:?}");
        let mut free_from = from_ms;
        for planned in faults {
            let (at, lasts) = (at_ms(planned), planned.lasts.as_millis() as u64);
            assert!(at >= free_from, "{planned} overlaps");
            free_from = at + lasts;
            assert!(free_from <= until_ms, "{planned} is too long");
            within(lasts as i64, nemesis.for_ms);
            let (mut spans, mut numbers) = (Vec::new(), Vec::new());
            nemesis.fault.map(|span| spans.push(span));
            planned.fault.map(|number| numbers.push(number));
            numbers.into_iter().zip(spans).for_each(|(number, span)| within(number, span));
        }
    }

    proptest! {
        #[test]
        fn faults_keep_their_bounds_and_leave_others_alone(
            nemeses in vec(nemesis(), 1..5),
            seed: u64,
            dropped: prop::sample::Index,
        ) {
            let named = (0..).zip(&nemeses).map(|(number, fields)| format!("{{ name = \"n{number}\", {fields} }}"));
            let scenario = scenario(&format!("nemesis = [{}]", named.collect::<Vec<_>>().join(", ")));
            let schedule = Schedule::new(&scenario, Seed(seed));
            prop_assert!(schedule.faults.is_sorted_by_key(at_ms));
            for nemesis in &scenario.nemeses {
                let own = schedule.faults.iter().filter(|planned| planned.id.nemesis == nemesis.name);
                check_bounds(nemesis, &own.collect::<Vec<_>>());
            }
            let mut fewer = scenario.clone();
            let dropped = fewer.nemeses.remove(dropped.index(nemeses.len()));
            prop_assert_eq!(Schedule::new(&fewer, Seed(seed)), without(schedule, &dropped.name));
        }
    }
}
