//! Schedules as values: drawn at random, and made smaller by leaving steps out.
use proptest::{
    prelude::*,
    strategy::{NewTree, ValueTree},
    test_runner::TestRunner,
};

use crate::{
    cluster::Cluster,
    laws::{Law, Tally, Violation},
    plants::Plant,
    steps::{Change, Fate, LEADER, Request, Setup, Step},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub setup: Setup,
    pub steps: Vec<Step>,
}

impl Schedule {
    /// Runs it, heals everything, and looks whether the cluster recovers.
    pub fn run(&self, plant: Option<Plant>, blind: &[Law]) -> Result<Tally, Violation> {
        let mut cluster = Cluster::new(self.setup, plant, blind.to_vec());
        self.steer(&mut cluster)?;
        Ok(cluster.tally())
    }

    /// Every output of every member, as text.
    pub fn trace(&self) -> Vec<String> {
        let mut cluster = Cluster::new(self.setup, None, Vec::new());
        cluster.trace = Some(Vec::new());
        self.steer(&mut cluster).unwrap_or_else(|violation| panic!("{violation}"));
        cluster.trace.expect("set above")
    }

    pub fn steer(&self, cluster: &mut Cluster) -> Result<(), Violation> {
        cluster.start_all()?;
        self.steps.iter().try_for_each(|step| cluster.step(*step))?;
        cluster.recover()
    }
}

fn setup() -> impl Strategy<Value = Setup> {
    let heartbeat_ms = prop_oneof![Just(100), Just(250), Just(500)];
    let tail_bytes = prop_oneof![1 => Just(1 << 20), 2 => 300u32..2_000, 3 => 0u32..300];
    let outputs_max = prop_oneof![2 => Just(16 << 10), 1 => 1u16..5, 1 => 5u16..100];
    (3u8..=5, 2u8..=4, heartbeat_ms, tail_bytes, outputs_max, any::<u64>()).prop_map(
        |(members, election_ticks, heartbeat_ms, tail_bytes, outputs_max, seed)| Setup {
            members,
            election_ticks,
            heartbeat_ms,
            tail_bytes,
            outputs_max,
            seed,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let byte = any::<u8>;
    prop_oneof![
        6 => byte().prop_map(|key| Request::Put { key }),
        2 => (byte(), byte()).prop_map(|(key, lease)| Request::Attach { key, lease }),
        2 => byte().prop_map(|key| Request::Delete { key }),
        1 => Just(Request::DeleteAll),
        3 => byte().prop_map(|key| Request::Toggle { key }),
        1 => Just(Request::Range),
        1 => byte().prop_map(|behind| Request::Compact { behind }),
        2 => byte().prop_map(|lease| Request::Grant { lease }),
        1 => byte().prop_map(|lease| Request::Revoke { lease }),
        1 => Just(Request::TooLarge),
    ]
}

/// How often what happens. Every schedule has its own temper: one is all crashes, another all delay.
#[derive(Debug, Clone, Copy)]
struct Temper {
    traffic: u32,
    time: u32,
    writes: u32,
    clients: u32,
    operators: u32,
    /// Among what operators ask for.
    additions: u32,
    removals: u32,
    files: u32,
    /// Many inputs in one turn.
    turns: u32,
    trouble: u32,
}

fn temper() -> impl Strategy<Value = Temper> {
    let operators = (1u32..20, 1u32..10, 1u32..10);
    let others = (10u32..60, 5u32..40, 5u32..50, 5u32..40, 1u32..15, 1u32..25, 1u32..20);
    (operators, others).prop_map(
        |((operators, additions, removals), (traffic, time, writes, clients, files, turns, trouble))| Temper {
            traffic,
            time,
            writes,
            clients,
            operators,
            additions,
            removals,
            files,
            turns,
            trouble,
        },
    )
}

fn member() -> impl Strategy<Value = u8> + Clone {
    0u8..60
}

fn victim() -> impl Strategy<Value = u8> {
    prop_oneof![member(), Just(LEADER)]
}

fn traffic() -> impl Strategy<Value = Step> {
    let at = any::<u16>;
    let fate = prop_oneof![
        5 => Just(Fate::Arrives),
        2 => Just(Fate::ArrivesTwice),
        1 => Just(Fate::ArrivesUntold),
        3 => Just(Fate::IsLost),
    ];
    prop_oneof![
        20 => (1u8..40).prop_map(|count| Step::Flow { count }),
        6 => at().prop_map(|at| Step::Deliver { at }),
        2 => at().prop_map(|at| Step::Double { at }),
        3 => at().prop_map(|at| Step::Drop { at }),
        2 => (victim(), member()).prop_map(|(from, to)| Step::Reset { from, to }),
        12 => (at(), fate).prop_map(|(at, fate)| Step::Parcel { at, fate }),
        8 => at().prop_map(|at| Step::Report { at }),
        6 => Just(Step::Rest),
    ]
}

fn operators(temper: Temper) -> impl Strategy<Value = Step> {
    let Temper { additions, removals, .. } = temper;
    let change = prop_oneof![
        additions => Just(Change::AddVoter),
        additions => Just(Change::AddLearner),
        2 * additions => member().prop_map(|who| Change::Promote { who }),
        removals => member().prop_map(|who| Change::Remove { who }),
        removals => Just(Change::Remove { who: LEADER }),
        2 => (member(), any::<u8>()).prop_map(|(who, url)| Change::Update { who, url }),
    ];
    let peers = || prop_oneof![4 => Just(u8::MAX), 1 => any::<u8>()];
    prop_oneof![
        8 => (victim(), change, peers(), peers())
            .prop_map(|(member, change, connected, healthy)| Step::Change { member, change, connected, healthy }),
        2 => (prop_oneof![1 => member(), 3 => Just(LEADER)], member())
            .prop_map(|(member, to)| Step::Transfer { member, to }),
        1 => (victim(), 0u8..6).prop_map(|(member, survived)| Step::Stop { member, survived }),
    ]
}

fn trouble() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (victim(), 0u8..4, 0u8..3).prop_map(|(member, survived, torn)| Step::Crash { member, survived, torn }),
        10 => member().prop_map(|member| Step::Restart { member }),
        4 => (victim(), prop_oneof![3 => 0u8..6, 1 => 6u8..25])
            .prop_map(|(member, writes)| Step::Isolate { member, writes }),
        3 => (victim(), member()).prop_map(|(from, to)| Step::Cut { from, to }),
        4 => Just(Step::Join),
        6 => (1u8..6).prop_map(|ticks| Step::Calm { ticks }),
    ]
}

fn step(temper: Temper) -> impl Strategy<Value = Step> {
    let time = prop_oneof![
        2 => member().prop_map(|member| Step::Tick { member }),
        2 => Just(Step::TickAll),
    ];
    let clients = prop_oneof![
        3 => (prop_oneof![2 => member(), 1 => Just(LEADER)], request())
            .prop_map(|(member, request)| Step::Propose { member, request }),
        2 => member().prop_map(|member| Step::Read { member }),
    ];
    let files = prop_oneof![
        4 => member().prop_map(|member| Step::Checkpoint { member }),
        1 => (member(), 0u8..20).prop_map(|(member, keep)| Step::Release { member, keep }),
    ];
    prop_oneof![
        temper.traffic => traffic(),
        temper.time => time,
        temper.writes => (member(), 1u8..6).prop_map(|(member, batches)| Step::Write { member, batches }),
        temper.clients => clients,
        temper.operators => operators(temper),
        temper.files => files,
        temper.turns => (victim(), 1u8..12).prop_map(|(member, inputs)| Step::Busy { member, inputs }),
        temper.trouble => trouble(),
    ]
}

/// Schedules of so many steps.
#[derive(Debug, Clone, Copy)]
pub struct Schedules(pub usize);

impl Strategy for Schedules {
    type Tree = Shrinking;
    type Value = Schedule;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let setup = setup().new_tree(runner)?.current();
        let step = step(temper().new_tree(runner)?.current());
        let steps = (0..self.0).map(|_| Ok(step.new_tree(runner)?.current()));
        let steps: Vec<_> = steps.collect::<Result<_, proptest::test_runner::Reason>>()?;
        let chunk = steps.len().div_ceil(2).max(1);
        Ok(Shrinking { schedule: Schedule { setup, steps }, chunk, at: 0, before: None })
    }
}

/// Leaves out ever smaller chunks, one after the other, and keeps out what is not needed to fail.
pub struct Shrinking {
    schedule: Schedule,
    chunk: usize,
    /// Where the next chunk begins.
    at: usize,
    /// The steps before the last chunk was left out.
    before: Option<Vec<Step>>,
}

impl Shrinking {
    fn leave_out(&mut self) -> bool {
        let steps = &mut self.schedule.steps;
        if self.at >= steps.len() {
            if self.chunk == 1 {
                return false;
            }
            (self.chunk, self.at) = (self.chunk.div_ceil(2), 0);
        }
        if steps.is_empty() {
            return false;
        }
        self.before = Some(steps.clone());
        steps.drain(self.at..(self.at + self.chunk).min(steps.len()));
        true
    }
}

impl ValueTree for Shrinking {
    type Value = Schedule;

    fn current(&self) -> Schedule {
        self.schedule.clone()
    }

    fn simplify(&mut self) -> bool {
        self.leave_out()
    }

    /// The chunk was needed: back with it, and on to the next.
    fn complicate(&mut self) -> bool {
        let Some(before) = self.before.take() else { return false };
        self.schedule.steps = before;
        self.at += self.chunk;
        self.leave_out()
    }
}
