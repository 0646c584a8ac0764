//! The swarm: a scenario of which only the claim is written down, and all else is drawn from the seed.
//!
//! What is drawn is written as any scenario is, and read the same way: `cargo sim run scenarios/mixed/swarm.toml --seed N
//! --schedule` shows it. Faults that may take somebody's promises away do not come together with others that take
//! machines away, for nobody promises to live through that.
use std::fmt::Write as _;

use crate::seed::{ChaCha8Rng, Rng, Seed};

struct Draw(ChaCha8Rng);

impl Draw {
    /// Between the two, both included.
    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.next_u64() % (most - least + 1)
    }

    fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.between(0, things.len() as u64 - 1) as usize]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.between(1, 100) <= percent
    }
}

/// A scenario's text, without its claim.
pub fn draw(seed: u64) -> String {
    let mut draw = Draw(Seed(seed).child("swarm", 0).rng());
    let draw = &mut draw;
    let nodes = draw.one_of(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]);
    let spares = draw.between(0, 2).min(7 - nodes);
    let mut text = String::from("run_ms = 60_000\nsettle_ms = 20_000\n");
    let election = draw.one_of(&[500, 1_000, 1_000, 2_000]);
    let sizes = draw.one_of(&[4_096, 8_192, 65_536]);
    let tail = draw.one_of(&[64, 1_024, 8_192, 1_048_576]);
    let checkpoint = draw.one_of(&[2_048, 8_192, 65_536]);
    // A stream of its own: what comes after is drawn as before.
    let outputs = Draw(Seed(seed).child("outputs", 0).rng()).one_of(&[1, 8, 64, 16_384, 16_384]);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "cluster = {{ nodes = {nodes}, spares = {spares}, heartbeat_ms = {}, election_ms = {election}, \
         segment_bytes = {sizes}, checkpoint_bytes = {checkpoint}, tail_bytes = {tail}, \
         outputs_max = {outputs} }}",
        election / 10
    );
    let (latency, loss) = (draw.one_of(&[400, 1_000, 5_000]), draw.one_of(&["0", "0", "0.5", "2"]));
    let _ = writeln!(text, "network = {{ latency_us_min = 300, latency_us_mean = {latency}, loss_percent = {loss} }}");
    let sync = draw.one_of(&[400, 2_000, 10_000]);
    let _ = writeln!(text, "disk = {{ sync_us_min = 150, sync_us_mean = {sync} }}");
    let (clients, watchers, keys) = (draw.between(4, 10), draw.between(1, 4), draw.between(1, 10));
    let ops = draw.one_of(&[50, 100, 100, 200]);
    let _ = writeln!(
        text,
        "workload = {{ clients = {clients}, watchers = {watchers}, keys = {keys}, ops_per_second = {ops}, \
         timeout_ms = 1_000, serializable_percent = {} }}",
        draw.between(5, 50)
    );
    let faults = faults(draw, nodes, spares);
    let _ = writeln!(text, "nemesis = [\n{}\n]", faults.join(",\n"));
    // What comes of so much trouble cannot be told in advance: a little must, if somebody is left meanwhile.
    let under_fault_min = u8::from(!faults.is_empty() && nodes >= 3);
    let _ =
        writeln!(text, "expect = {{ acknowledged_min = 300, under_fault_min = {under_fault_min}, must_fire = [] }}");
    text
}

/// The kinds that a swarm mixes, in three groups: whatever else happens, with others gone, and alone.
const GENTLE: [&str; 8] = [
    "kind = 'latency', extra_ms = [5, 500]",
    "kind = 'loss', percent = [1, 20]",
    "kind = 'slow_fsync', extra_ms = [5, 300]",
    "kind = 'clock_drift', ppm = [-100_000, 100_000]",
    "kind = 'wall_jump', ms = [-3_600_000, 3_600_000]",
    "kind = 'reset_connections', links = 'all', period_ms = [50, 1_000]",
    "kind = 'half_open', period_ms = [300, 2_000]",
    "kind = 'garbled_state'",
];
const HARSH: [&str; 10] = [
    "kind = 'power_loss'",
    "kind = 'power_loss', torn = false",
    "kind = 'kill'",
    "kind = 'pause'",
    "kind = 'partition', shape = 'isolate'",
    "kind = 'partition', shape = 'one_way_in'",
    "kind = 'partition', shape = 'one_way_out'",
    "kind = 'failed_sync', files = 'log'",
    "kind = 'disk_full', files = 'all'",
    "kind = 'io_error', io = 'write', files = 'all'",
];
const OPERATORS: [&str; 4] =
    ["kind = 'replace'", "kind = 'replace', as = 'voter'", "kind = 'update'", "kind = 'move_leader'"];
const RUINOUS: [&str; 4] = [
    "kind = 'rot', files = 'all', sectors = [1, 3]",
    "kind = 'latent_errors', files = 'all', sectors = [1, 5]",
    "kind = 'stale_disk'",
    "kind = 'misdirected'",
];

/// When a power loss comes at the worst moment.
const MOMENTS: [&str; 8] = [
    "before fsync after change_appended",
    "before fsync after role_changed",
    "before fsync 2 after segment_started",
    "before fsync after snapshot_received",
    "configuration_applied 2",
    "checkpoint_started",
    "checkpoint_done",
    "snapshot_installed",
];

fn faults(draw: &mut Draw, nodes: u64, spares: u64) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    let on = |draw: &mut Draw| match nodes {
        1 => "any",
        _ => draw.one_of(&["any", "leader", "follower", "rolling"]),
    };
    let timed = |draw: &mut Draw, fault: &str, on: &str, most: u64| {
        let every = draw.between(most + 2_000, most + 12_000).min(50_000);
        format!("{fault}, on = '{on}', every_ms = {every}, for_ms = [{}, {most}]", most / 4)
    };
    for _ in 0..draw.between(0, 2) {
        let (fault, on, most) = (draw.one_of(&GENTLE), on(draw), draw.between(1_000, 8_000));
        faults.push(timed(draw, fault, on, most));
    }
    if nodes >= 3 && draw.chance(25) {
        let (fault, on, most) =
            (draw.one_of(&RUINOUS), draw.one_of(&["any", "follower"]), draw.between(12_000, 16_000));
        // A leader's disk is never one that the others can do without.
        let on = if fault.contains("'stale_disk'") { "follower" } else { on };
        faults.push(timed(draw, fault, on, most));
    } else {
        for _ in 0..draw.between(1, 3) {
            let (fault, on, most) = (draw.one_of(&HARSH), on(draw), draw.between(500, 5_000));
            // Where there is nobody on the other side, something else is to happen.
            let fault = if nodes == 1 && fault.contains("partition") { "kind = 'kill'" } else { fault };
            let fault = if nodes < 3 { format!("{fault}, keep_quorum = false") } else { fault.to_owned() };
            faults.push(timed(draw, &fault, on, most));
        }
        if draw.chance(50) {
            let (moment, times) = (draw.one_of(&MOMENTS), draw.between(1, 10));
            faults.push(format!(
                "kind = 'power_loss', on = 'any', when = '{moment}', times = {times}, for_ms = [50, 2_000], \
                 keep_quorum = {}",
                nodes >= 3
            ));
        }
        if nodes >= 2 && draw.chance(50) {
            let (fault, on, most) = (draw.one_of(&OPERATORS), draw.one_of(&["any", "leader", "follower"]), 20_000);
            let fault = if nodes < 3 { format!("{fault}, keep_quorum = false") } else { fault.to_owned() };
            faults.push(timed(draw, &fault, on, most));
        }
        if spares > 0 && draw.chance(50) {
            let arrival = draw.one_of(&["learner", "promoted", "voter"]);
            faults.push(timed(draw, &format!("kind = 'join', as = '{arrival}'"), "spare", 20_000));
        }
    }
    let named = faults.into_iter().enumerate();
    named.map(|(number, fault)| format!("  {{ name = 'f{}', {fault} }}", number + 1)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn whatever_is_drawn_is_a_scenario() {
        let mut texts = BTreeSet::new();
        for seed in 0..2_000 {
            let text = format!("claim = \"Nothing.\"\n{}", draw(seed));
            if let Err(error) = Scenario::parse("swarm", &text) {
                panic!("seed {seed}: {error}\n{text}");
            }
            texts.insert(text);
        }
        assert_eq!(texts.len(), 2_000, "two seeds draw the same");
    }

    #[test]
    fn who_is_alone_has_faults_of_its_own() {
        let needs_others = |line: &&str| {
            ["'latency'", "'loss'", "'garbled_state'", "'partition'"].iter().any(|kind| line.contains(kind))
        };
        let alone: Vec<_> = (0..2_000).map(draw).filter(|text| text.contains("{ nodes = 1,")).collect();
        assert!(alone.len() > 100);
        for text in alone {
            let mut faults = text.lines().filter(|line| line.contains("name = 'f"));
            assert!(!faults.all(|line| needs_others(&line)), "{text}");
        }
    }

    #[test]
    fn old_disks_are_given_to_followers() {
        let all: String = (0..500).map(draw).collect();
        assert!(all.lines().filter(|line| line.contains("'stale_disk'")).all(|line| line.contains("on = 'follower'")));
    }

    #[test]
    fn every_kind_of_fault_is_drawn() {
        let all: String = (0..500).map(draw).collect();
        for fault in GENTLE.iter().chain(&HARSH).chain(&OPERATORS).chain(&RUINOUS).chain(&MOMENTS) {
            assert!(all.contains(fault), "{fault} is never drawn");
        }
    }
}
