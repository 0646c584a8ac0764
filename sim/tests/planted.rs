//! Proof of power: every law catches a bug that was planted in the running system, within 100 seeds of the standard
//! scenarios. The runs are processes of the simulator's own program, as in a sweep.
use std::{fs, process::Command};

const SEEDS_MAX: u64 = 100;

/// The first seed that makes this law catch this plant, and of what it says then a part; and all laws that caught it.
fn seeds_to_detect(plant: &str, law: &str, says: &str, scenarios: &[&str]) -> (u64, Vec<String>) {
    for seed in 1..=SEEDS_MAX {
        for scenario in scenarios {
            let row = run(&["run", scenario, "--seed", &seed.to_string(), "--plant", plant, "--json"]);
            let laws = row["laws"].as_array().expect("a list of laws");
            let violated = laws.iter().filter(|law| law["result"] == "violated");
            let caught: Vec<_> = violated.filter_map(|law| law["name"].as_str()).map(str::to_owned).collect();
            let why = row["why"].as_array().expect("a list of reasons");
            let mut why = why.iter().filter_map(|why| why.as_str()?.strip_prefix(law)?.strip_prefix(": "));
            if let Some(why) = why.next() {
                assert!(why.contains(says), "{law} caught {plant} over something else: {why}");
                return (seed, caught);
            }
        }
    }
    panic!("{law} did not catch {plant} within {SEEDS_MAX} seeds of {scenarios:?}");
}

fn run(args: &[&str]) -> serde_json::Value {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(env!("CARGO_BIN_EXE_detcd-sim")).args(args).current_dir(root).output();
    let output = output.expect("the simulator starts");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).unwrap_or_else(|error| {
        panic!("{args:?}: {error}: {text}{}", String::from_utf8_lossy(&output.stderr));
    })
}

const CALM: &str = "scenarios/mixed/calm.toml";
const LEADER_POWER_LOSS: &str = "scenarios/crash/leader-power-loss.toml";
const EVERYONE: &str = "scenarios/crash/everyone-at-once.toml";
const ROLLING: &str = "scenarios/crash/rolling-power-loss.toml";
const BRIDGE: &str = "scenarios/network/bridge.toml";
const ISOLATED: &str = "scenarios/network/isolated-member-reads.toml";
const LEARNER: &str = "scenarios/membership/update-learner.toml";
const REPLACE_ALL: &str = "scenarios/membership/rolling-replace-all.toml";
const PAUSE: &str = "scenarios/clock/drift-and-pause.toml";

#[test]
fn every_law_catches_a_planted_bug() {
    let crashes = &[EVERYONE, LEADER_POWER_LOSS, ROLLING][..];
    let table: &[(&str, &str, &str, &[&str])] = &[
        ("stale-read", "strict_serializability", "op ", &[ISOLATED]),
        ("doubled-write", "strict_serializability", "op ", &[CALM]),
        ("stale-read", "second_opinion", "key ", &[ISOLATED]),
        ("old-view", "serializable_reads", "op ", &[CALM]),
        ("lying-disk", "durability", " durable: ", crashes),
        ("early-durable", "durability", "reads its log back", crashes),
        ("skipped-sync", "durability", " durable: ", &[CALM]),
        ("forgotten-vote", "election_safety", "", crashes),
        ("won-votes", "election_safety", "", &[EVERYONE, BRIDGE, PAUSE]),
        ("altered-entry", "agreement", "applied entry", &[CALM]),
        ("altered-entry", "log_matching", "appends entry", &[CALM]),
        ("lost-notice", "watch", "", &[CALM]),
        ("doubled-notice", "watch", "", &[CALM]),
        ("deaf-member", "recovery", "", &[CALM]),
        ("missed-wake", "promptness", "", &[CALM]),
        ("learner-as-voter", "membership", "", &[LEARNER]),
        ("altered-change", "membership", "applies a change", &[LEARNER]),
        ("early-change", "membership", "asked for", &[LEARNER]),
    ];
    for (plant, law, says, scenarios) in table {
        let (seed, caught) = seeds_to_detect(plant, law, says, scenarios);
        println!("{plant}: caught by {law} at seed {seed} (with {})", caught.join(", "));
    }
}

/// What no law would live to see ends the run with a verdict, its seed and the command that does it again.
#[test]
fn panics_hangs_and_exhausted_memory_are_violations() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let table = [
        ("panic", "panic: ", CALM),
        ("hang", "hang: ", CALM),
        ("hoard", "memory: ", CALM),
        ("stuck-change", "incomplete: ", REPLACE_ALL),
    ];
    for (plant, accident, scenario) in table {
        let mut command = Command::new(env!("CARGO_BIN_EXE_detcd-sim"));
        let output = command.args(["run", scenario, "--seed", "3", "--plant", plant]).current_dir(root).output();
        let output = output.expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{plant}: {text}");
        assert!(text.contains(accident), "{plant}: {text}");
        assert!(text.contains(&format!("cargo sim run {scenario} --seed 3 --plant {plant}")), "{plant}: {text}");
    }
}

#[test]
fn what_is_not_planted_is_not_caught() {
    for scenario in [CALM, EVERYONE, ISOLATED] {
        let row = run(&["run", scenario, "--seed", "1", "--json"]);
        assert_eq!(row["result"], "holds", "{row}");
    }
}

/// A counter of the process, and an order of addresses: each makes a second run differ, and is named.
#[test]
fn what_depends_on_the_process_is_caught_with_the_first_event_that_differs() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for plant in ["global-counter", "address-order"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_detcd-sim"));
        let output = command.args(["twice", CALM, "--plant", plant]).current_dir(root).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{plant}: {text}");
        assert!(text.contains("first difference") && text.contains("    other  "), "{plant}: {text}");
    }
}

#[test]
fn a_sweep_stops_at_the_first_violation() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_detcd-sim"));
    command.args(["sweep", CALM, "--plant", "panic", "--seeds", "1..3", "--stop"]);
    let output = command.current_dir(root).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("1 runs, 0 kept"), "{text}");
}

#[test]
fn a_row_that_was_cut_short_does_not_spoil_the_next() {
    let (root, rows) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/.."), concat!(env!("CARGO_TARGET_TMPDIR"), "/rows.jsonl"));
    let sweep = |seeds| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_detcd-sim"));
        command.args(["sweep", CALM, "--seeds", seeds, "--resume", rows]);
        let output = command.current_dir(root).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(rows).expect("it wrote them")
    };
    let _ = fs::remove_file(rows); // of an earlier test
    let two = sweep("1..2");
    fs::write(rows, &two[..two.len() - 10]).expect("it can be written");
    let three = sweep("3..3");
    let whole = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    assert_eq!((three.lines().count(), three.lines().filter(whole).count()), (3, 2), "{three}");
}

#[test]
fn mistakes_on_the_command_line_are_usage_errors() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let cases: &[&[&str]] = &[
        &["run", "scenarios/no/such.toml"],
        &["run", CALM, "--seed", "x"],
        &["run", CALM, "--log", "node=loud"],
        &["run", CALM, "--log", "node"],
        &["run", CALM, "--schedule", "--json"],
        &["sweep", CALM, "--seeds", "5..1"],
        &["sweep", CALM, "--jobs", "0"],
        &["sweep", CALM, "--resume", "README.md"],
        &["sweep", CALM, "--resume", "scenarios/schema.json"],
        &["sweep", CALM, "--resume", "tests/etcd-files/3.6.16/snapshot.db"],
        &["check", "tests/histories/README.md"],
        &["dance"],
    ];
    for args in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_detcd-sim")).args(*args).current_dir(root).output();
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?} says why");
    }
}
