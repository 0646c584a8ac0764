//! Every class of mistake with its exact text, the scenarios that there are, and the schema.
use std::{collections::BTreeSet, fs, path::PathBuf};

use super::*;

/// What is said of this text in a file called `x.toml`.
fn mistakes(text: &str) -> String {
    match Scenario::parse("x.toml", text) {
        Ok(_) => panic!("nothing wrong with\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// Each text, and what is said of it if it comes after `prefix` and before `suffix`.
fn story(prefix: &str, texts: &[&str], suffix: &str) -> String {
    let tell = |text: &&str| format!("{text}\n{}\n\n", mistakes(&format!("{prefix}{text}{suffix}")));
    texts.iter().map(tell).collect()
}

const CLAIM: &str = "claim = \"It holds.\"\n";

#[test]
fn mistakes_of_the_language() {
    let no_toml = ["So it is.\n"; 8].concat();
    let texts =
        ["claim = \"It holds.\nrun_ms = 70_000", "run_ms = 70_000\nrun_ms = 80_000\n\n[cluster\nnodes = 3", &no_toml];
    insta::assert_snapshot!(story("", &texts, ""), @r#"
    claim = "It holds.
    run_ms = 70_000
    x.toml:1: invalid basic string, expected `"`

    run_ms = 70_000
    run_ms = 80_000

    [cluster
    nodes = 3
    x.toml:2: duplicate key
    x.toml:4: unclosed table, expected `]`

    So it is.
    So it is.
    So it is.
    So it is.
    So it is.
    So it is.
    So it is.
    So it is.

    x.toml:1: key with no value, expected `=`
    x.toml:2: key with no value, expected `=`
    x.toml:3: key with no value, expected `=`
    x.toml:4: key with no value, expected `=`
    x.toml:5: key with no value, expected `=`
    x.toml:6: and more, 8 mistakes in all; expected a scenario, in TOML
    "#);
}

#[test]
fn mistakes_of_a_claim() {
    let texts = ["", "claim = 'It holds'", "claim = 'It holds. So does that.'", "claim = 3"];
    insta::assert_snapshot!(story("", &texts, ""), @r"
    x.toml:1: claim: missing; expected a string: one sentence: what holds, whatever happens here

    claim = 'It holds'
    x.toml:1: claim = 'It holds': expected one sentence that ends with a full stop

    claim = 'It holds. So does that.'
    x.toml:1: claim = 'It holds. So does that.': expected one sentence that ends with a full stop

    claim = 3
    x.toml:1: claim = 3: expected a string
    ");
}

#[test]
fn mistakes_of_one_field() {
    let texts = [
        "colour = 'red'",
        "\n[cluster]\nnodes = 3\nnode = 4",
        "cluster.nodes = 8",
        "cluster.nodes = 'three'",
        "cluster.nodes = 3.0",
        "cluster.nodes = 99999999999999999999",
        "cluster = 3",
        "network.loss_percent = 50.1",
        "network.loss_percent = nan",
        "network.clients = { loss_percent = -1 }",
        "run_ms = 59_999\nworkload = { clients = 3, keys = 11 }",
        "workload.mix = { put = 1, cas = 1 }",
        "nemesis = { kind = 'kill' }",
        "expect.must_reach = 'disk_stalled'",
    ];
    insta::assert_snapshot!(story(CLAIM, &texts, ""), @"
    colour = 'red'
    x.toml:2: colour: unknown field; one of claim, swarm, run_ms, settle_ms, cluster, network, disk, clock, workload, nemesis, expect, laws


    [cluster]
    nodes = 3
    node = 4
    x.toml:5: cluster.node: unknown field; one of nodes, spares, heartbeat_ms, election_ms, segment_bytes, checkpoint_bytes, tail_bytes, outputs_max

    cluster.nodes = 8
    x.toml:2: cluster.nodes = 8: expected a whole number from 1 to 7

    cluster.nodes = 'three'
    x.toml:2: cluster.nodes = 'three': expected a whole number from 1 to 7

    cluster.nodes = 3.0
    x.toml:2: cluster.nodes = 3.0: expected a whole number from 1 to 7

    cluster.nodes = 99999999999999999999
    x.toml:2: cluster.nodes = 99999999999999999999: expected a whole number from 1 to 7

    cluster = 3
    x.toml:2: cluster = 3: expected a table

    network.loss_percent = 50.1
    x.toml:2: network.loss_percent = 50.1: expected a number from 0 to 50, in percent

    network.loss_percent = nan
    x.toml:2: network.loss_percent = nan: expected a number from 0 to 50, in percent

    network.clients = { loss_percent = -1 }
    x.toml:2: network.clients.loss_percent = -1: expected a number from 0 to 50, in percent

    run_ms = 59_999
    workload = { clients = 3, keys = 11 }
    x.toml:2: run_ms = 59_999: expected a whole number from 60000 to 86400000
    x.toml:3: workload.clients = 3: expected a whole number from 4 to 64
    x.toml:3: workload.keys = 11: expected a whole number from 1 to 10

    workload.mix = { put = 1, cas = 1 }
    x.toml:2: workload.mix.cas: unknown field; one of put, get, range, delete, compare_and_set

    nemesis = { kind = 'kill' }
    x.toml:2: nemesis = { kind = 'kill' }: expected a list of tables

    expect.must_reach = 'disk_stalled'
    x.toml:2: expect.must_reach = 'disk_stalled': expected a list of strings
    ");
}

#[test]
fn mistakes_that_take_two_fields() {
    let texts = [
        "cluster = { heartbeat_ms = 300 }",
        "settle_ms = 20_000\ncluster.election_ms = 5_000",
        "network = { latency_us_min = 2_000 }",
        "disk = { sync_us_min = 500, sync_us_mean = 100 }",
        "workload.mix = { put = 0 }",
        "workload.ops_per_second = 20",
        "expect.under_fault_min = 1",
        "expect.must_fire = ['kill']",
        "expect.outcome = 'stops'",
        "expect.must_reach = ['disc_stalled']",
        "laws.recovery_ms = 16_000",
    ];
    insta::assert_snapshot!(story(CLAIM, &texts, ""), @r#"
    cluster = { heartbeat_ms = 300 }
    x.toml:2: cluster.election_ms = 1000 (the default): expected at least 1500, 5 times heartbeat_ms

    settle_ms = 20_000
    cluster.election_ms = 5_000
    x.toml:2: settle_ms = 20_000: expected at least 25000, 5 times cluster.election_ms

    network = { latency_us_min = 2_000 }
    x.toml:2: network.latency_us_mean = 1000 (the default): expected at least latency_us_min = 2000

    disk = { sync_us_min = 500, sync_us_mean = 100 }
    x.toml:2: disk.sync_us_mean = 100: expected at least sync_us_min = 500

    workload.mix = { put = 0 }
    x.toml:2: workload.mix.put = 0: nothing would ever exist; expected more than 0

    workload.ops_per_second = 20
    x.toml:1: expect.acknowledged_min = 2000 (the default): clients call 1200 times in all; expected less, or more workload.ops_per_second

    expect.under_fault_min = 1
    x.toml:2: expect.under_fault_min = 1: there is no nemesis; expected 0

    expect.must_fire = ['kill']
    x.toml:2: expect.must_fire = ['kill']: there is no nemesis "kill"; expected nothing

    expect.outcome = 'stops'
    x.toml:2: expect.outcome = 'stops': a quorum always remains; expected converges, or a nemesis of keep_quorum = false

    expect.must_reach = ['disc_stalled']
    x.toml:2: expect.must_reach = ['disc_stalled']: there is no event "disc_stalled"; expected some of recovered, role_changed, proposed, appended, change_appended, persist_started, persisted, sent, received, committed, applied, acknowledged, refused, read_confirmed, segment_started, peer_connected, peer_lost, disk_stalled, serving, stopped, log_restarted, configuration_applied, snapshot_installed, snapshot_sent, snapshot_reported, snapshot_received, snapshot_rejected, log_cut, checkpoint_started, checkpoint_done, checkpoint_dropped, segment_removed, handing_over, removed

    laws.recovery_ms = 16_000
    x.toml:2: laws.recovery_ms = 16_000: expected at most settle_ms = 15000
    "#);
}

#[test]
fn mistakes_of_a_nemesis() {
    let texts = [
        "on = 'leader'",
        "kind = 'powerloss', on = 'leader', tron = true",
        "kind = 'kill'",
        "kind = 'kill', every_ms = 5_000, for_ms = 1_000, torn = true",
        "kind = 'kill', every_ms = 9_000, for_ms = 1, on = 'n8'",
        "kind = 'kill', every_ms = 9_000, for_ms = 1, on = 'n4'",
        "kind = 'kill', every_ms = 9_000, for_ms = 1, on = 'all'",
        "kind = 'kill', every_ms = 9_000, for_ms = 1 }, { kind = 'kill', every_ms = 9_000, for_ms = 1",
        "kind = 'kill', every_ms = 9_000, for_ms = 1 }, { kind = 'pause', name = 'kill', every_ms = 9_000, for_ms = 1",
        "kind = 'loss', every_ms = 9_000, for_ms = 1, percent = [1, 100]",
        "kind = 'slow_fsync', every_ms = 9_000, for_ms = 1, extra_ms = 9, stalled = true",
        "kind = 'rot', every_ms = 9_000, for_ms = 1, keep_quorum = false",
        "kind = 'rot', every_ms = 9_000, for_ms = 1, on = 'all', keep_quorum = false",
    ];
    let prefix = format!("{CLAIM}nemesis = [{{ ");
    insta::assert_snapshot!(story(&prefix, &texts, " }]"), @r#"
    on = 'leader'
    x.toml:2: nemesis.kind: missing; expected one of power_loss, kill, pause, partition, flapping, reset_connections, half_open, latency, loss, garbled_state, slow_fsync, clock_drift, wall_jump, failed_sync, io_error, disk_full, rot, latent_errors, misdirected, stale_disk, replace, join, update, move_leader, refused_removal: what is done

    kind = 'powerloss', on = 'leader', tron = true
    x.toml:2: nemesis.kind = 'powerloss': unknown; one of power_loss, kill, pause, partition, flapping, reset_connections, half_open, latency, loss, garbled_state, slow_fsync, clock_drift, wall_jump, failed_sync, io_error, disk_full, rot, latent_errors, misdirected, stale_disk, replace, join, update, move_leader, refused_removal

    kind = 'kill'
    x.toml:2: nemesis.for_ms: missing; expected a whole number from 1 to 3600000, or [least, most]: how long it lasts each time, in milliseconds
    x.toml:2: nemesis.every_ms: missing; expected every_ms = a whole number, or at_ms = a list of times

    kind = 'kill', every_ms = 5_000, for_ms = 1_000, torn = true
    x.toml:2: nemesis.torn: unknown field; one of kind, name, on, for_ms, keep_quorum, every_ms, from_ms, until_ms, at_ms, when, by, times

    kind = 'kill', every_ms = 9_000, for_ms = 1, on = 'n8'
    x.toml:2: nemesis.on = 'n8': unknown; one of leader, follower, any, all, rolling, learner, spare, n1, n2, n3, n4, n5, n6, n7

    kind = 'kill', every_ms = 9_000, for_ms = 1, on = 'n4'
    x.toml:2: nemesis.on = 'n4': expected a node of the cluster, up to n3

    kind = 'kill', every_ms = 9_000, for_ms = 1, on = 'all'
    x.toml:2: nemesis.keep_quorum = true (the default): no quorum of 3 can remain; expected false

    kind = 'kill', every_ms = 9_000, for_ms = 1 }, { kind = 'kill', every_ms = 9_000, for_ms = 1
    x.toml:2: nemesis.kind = 'kill': there is a nemesis "kill" already; expected another name

    kind = 'kill', every_ms = 9_000, for_ms = 1 }, { kind = 'pause', name = 'kill', every_ms = 9_000, for_ms = 1
    x.toml:2: nemesis.name = 'kill': there is a nemesis "kill" already; expected another name

    kind = 'loss', every_ms = 9_000, for_ms = 1, percent = [1, 100]
    x.toml:2: nemesis.percent = [1, 100]: expected a number from 0 to 90, in percent, or [least, most]

    kind = 'slow_fsync', every_ms = 9_000, for_ms = 1, extra_ms = 9, stalled = true
    x.toml:2: nemesis.extra_ms = 9: a stalled disk takes no time at all; expected either extra_ms or stalled = true

    kind = 'rot', every_ms = 9_000, for_ms = 1, keep_quorum = false
    x.toml:1: expect.outcome = "converges" (the default): rot may destroy what only a quorum has; expected refuses

    kind = 'rot', every_ms = 9_000, for_ms = 1, on = 'all', keep_quorum = false
    x.toml:1: expect.outcome = "converges" (the default): rot may destroy what only a quorum has; expected refuses
    x.toml:2: nemesis.on = 'all': expected one node
    "#);
}

#[test]
fn mistakes_of_time() {
    let texts = [
        "every_ms = 5_000, for_ms = [2_000, 1_000]",
        "every_ms = 5_000, for_ms = [1_000, 5_000]",
        "every_ms = 5_000, for_ms = [1_000]",
        "every_ms = 70_000, for_ms = 1",
        "every_ms = 1_000, from_ms = 60_000, for_ms = 1",
        "every_ms = 1_000, until_ms = 60_001, for_ms = 1",
        "at_ms = [], for_ms = 1",
        "at_ms = [-1], for_ms = 1",
        "at_ms = [1_000, 1_999], for_ms = [1, 1_000]",
        "at_ms = [59_001], for_ms = 1_000",
        "at_ms = [1], every_ms = 9, for_ms = 1",
    ];
    let prefix = format!("{CLAIM}nemesis = [{{ kind = 'kill', ");
    insta::assert_snapshot!(story(&prefix, &texts, " }]"), @r"
    every_ms = 5_000, for_ms = [2_000, 1_000]
    x.toml:2: nemesis.for_ms = [2_000, 1_000]: expected a whole number from 1 to 3600000, or [least, most]

    every_ms = 5_000, for_ms = [1_000, 5_000]
    x.toml:2: nemesis.for_ms = [1_000, 5_000]: expected less than every_ms = 5000

    every_ms = 5_000, for_ms = [1_000]
    x.toml:2: nemesis.for_ms = [1_000]: expected a whole number from 1 to 3600000, or [least, most]

    every_ms = 70_000, for_ms = 1
    x.toml:2: nemesis.every_ms = 70_000: it would never strike; expected at most 60000, from from_ms to until_ms

    every_ms = 1_000, from_ms = 60_000, for_ms = 1
    x.toml:2: nemesis.from_ms = 60_000: expected less than until_ms = 60000

    every_ms = 1_000, until_ms = 60_001, for_ms = 1
    x.toml:2: nemesis.until_ms = 60_001: expected at most run_ms = 60000

    at_ms = [], for_ms = 1
    x.toml:2: nemesis.at_ms = []: expected at least one time

    at_ms = [-1], for_ms = 1
    x.toml:2: nemesis.at_ms = [-1]: expected a list of whole numbers

    at_ms = [1_000, 1_999], for_ms = [1, 1_000]
    x.toml:2: nemesis.at_ms = [1_000, 1_999]: expected times in order, with room for for_ms = 1000 between 1000 and 1999

    at_ms = [59_001], for_ms = 1_000
    x.toml:2: nemesis.at_ms = [59_001]: expected the last to end, after for_ms = 1000, by run_ms = 60000

    at_ms = [1], every_ms = 9, for_ms = 1
    x.toml:2: nemesis.every_ms = 9: expected either this or at_ms
    ");
}

#[test]
fn mistakes_of_a_partition() {
    let texts = [
        "shape = 'ring' }]",
        "shape = 'majorities' }]",
        "shape = 'bridge', links = 'all' }]",
        "shape = 'one_way_in', on = 'all', keep_quorum = false }]",
        "on = 'leader', links = 'clients' }]\ncluster.nodes = 1",
        "shape = 'halves' }]\ncluster.nodes = 2",
    ];
    let prefix = format!("{CLAIM}nemesis = [{{ kind = 'partition', every_ms = 9_000, for_ms = 1_000, ");
    insta::assert_snapshot!(story(&prefix, &texts, ""), @r"
    shape = 'ring' }]
    x.toml:2: nemesis.shape = 'ring': unknown; one of isolate, halves, one_way_in, one_way_out, bridge, majorities

    shape = 'majorities' }]
    x.toml:2: nemesis.shape = 'majorities': expected a cluster of at least 4 nodes, not 3

    shape = 'bridge', links = 'all' }]
    x.toml:2: nemesis.links = 'all': clients take no sides; expected nodes, or a shape of isolate, one_way_in and one_way_out

    shape = 'one_way_in', on = 'all', keep_quorum = false }]
    x.toml:2: nemesis.shape = 'one_way_in': expected isolate, for all are struck at once

    on = 'leader', links = 'clients' }]
    cluster.nodes = 1
    x.toml:2: nemesis.on = 'leader': a cluster of one node has nobody to tell its leader from; expected any

    shape = 'halves' }]
    cluster.nodes = 2
    x.toml:2: nemesis.keep_quorum = true (the default): no quorum of 2 can remain; expected false
    ");
}

/// One run of the reader finds what several people may have got wrong; nothing is said twice.
#[test]
fn all_mistakes_are_told_at_once() {
    let text = r#"
        claim = "Whatever"
        run_ms = "long"

        [cluster]
        nodes = 9
        heart = true

        [[nemesis]]
        kind = "power_loss"
        on = "everyone"
        every_ms = 1_000
        for_ms = 0

        [[nemesis]]
        kind = "powerloss"

        [[nemesis]]
        kind = "latency"
        on = "n3"
        every_ms = "often"
        for_ms = 2_000
    "#;
    insta::assert_snapshot!(mistakes(text), @r#"
    x.toml:2: claim = "Whatever": expected one sentence that ends with a full stop
    x.toml:3: run_ms = "long": expected a whole number from 60000 to 86400000
    x.toml:6: cluster.nodes = 9: expected a whole number from 1 to 7
    x.toml:7: cluster.heart: unknown field; one of nodes, spares, heartbeat_ms, election_ms, segment_bytes, checkpoint_bytes, tail_bytes, outputs_max
    x.toml:11: nemesis.on = "everyone": unknown; one of leader, follower, any, all, rolling, learner, spare, n1, n2, n3, n4, n5, n6, n7
    x.toml:13: nemesis.for_ms = 0: expected a whole number from 1 to 3600000, or [least, most]
    x.toml:16: nemesis.kind = "powerloss": unknown; one of power_loss, kill, pause, partition, flapping, reset_connections, half_open, latency, loss, garbled_state, slow_fsync, clock_drift, wall_jump, failed_sync, io_error, disk_full, rot, latent_errors, misdirected, stale_disk, replace, join, update, move_leader, refused_removal
    x.toml:18: nemesis.extra_ms: missing; expected a whole number from 1 to 60000, or [least, most]: how much longer everything is under way, in milliseconds
    x.toml:21: nemesis.every_ms = "often": expected a whole number from 1 to 86400000
    "#);
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = Scenario::load(Path::new("nowhere/x.toml")).unwrap_err().to_string();
    assert!(error.starts_with("nowhere/x.toml: cannot be read: "), "{error}");
}

#[test]
fn a_claim_is_enough() {
    let scenario = Scenario::parse("x.toml", "claim = \"It holds.\"").unwrap();
    assert_eq!(scenario.network.clients, scenario.network.nodes);
    assert_eq!((scenario.expect.acknowledged_min, scenario.expect.under_fault_min), (2_000, 0));
    assert_eq!(scenario.laws, Laws { recovery_ms: scenario.settle_ms, prompt_ms: 500 });
}

#[test]
fn numbers_and_names_are_read() {
    let text = r#"
        claim = "It holds."
        network = { loss_percent = 0.25, clients = { latency_us_min = 5 } }
        nemesis = [
            { kind = "kill", every_ms = 9_000, for_ms = [10, 20] },
            { kind = "loss", name = "half", on = "n2", at_ms = [5], for_ms = 1, percent = [0, 50.5], links = "all" },
        ]
        expect.must_fire = ["half"]
    "#;
    let scenario = Scenario::parse("x.toml", text).unwrap();
    assert_eq!(scenario.network.nodes.loss_ppm, 2_500);
    assert_eq!(scenario.network.clients, Link { latency_us_min: 5, ..scenario.network.nodes });
    assert_eq!((scenario.expect.under_fault_min, scenario.expect.must_fire), (100, vec!["half".to_owned()]));
    let [kill, loss] = &scenario.nemeses[..] else { panic!("there are two") };
    assert_eq!((kill.name.as_str(), kill.for_ms, kill.keep_quorum), ("kill", Span { min: 10, max: 20 }, true));
    assert_eq!(loss.timing, Timing::At(vec![5]));
    insta::assert_debug_snapshot!(loss.fault, @r"
    Loss {
        links: All,
        ppm: Span {
            min: 0,
            max: 505000,
        },
    }
    ");
}

#[test]
fn events_are_those_of_the_node() {
    let source = include_str!("../../../node/core/src/event.rs");
    let names = source.lines().filter_map(|line| line.trim().strip_prefix("NodeEvent::")?.split('"').nth(1));
    assert_eq!(NODE_EVENTS.iter().copied().collect::<BTreeSet<_>>(), names.collect::<BTreeSet<_>>());
}

fn scenarios_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

/// All scenarios that there are, by their path from their directory without `.toml`.
pub fn all_scenarios() -> Vec<(String, Scenario)> {
    let list = |dir: PathBuf| {
        let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let files = list(scenarios_dir()).into_iter().filter(|path| path.is_dir()).flat_map(list);
    let scenarios = files.map(|path| {
        let name = path.strip_prefix(scenarios_dir()).unwrap().with_extension("");
        let scenario = Scenario::load(&path).unwrap_or_else(|error| panic!("{error}"));
        (name.to_str().unwrap().to_owned(), scenario)
    });
    scenarios.collect()
}

/// Those that every change is swept over.
pub const STANDARD: [&str; 11] = [
    "clock/drift-and-pause",
    "crash/everyone-at-once",
    "crash/leader-power-loss",
    "crash/rolling-power-loss",
    "disk/slow-fsync-leader",
    "mixed/calm",
    "network/bridge",
    "network/flapping",
    "network/isolated-member-reads",
    "network/one-way-leader",
    "network/resets-and-half-open",
];

#[test]
fn all_scenarios_are_valid() {
    let names: Vec<_> = all_scenarios().into_iter().map(|(name, _)| name).collect();
    for name in STANDARD {
        assert!(names.iter().any(|other| other == name), "{name} is missing");
    }
}

/// `scenarios/schema.json` is for editors. With UPDATE_SCHEMA=1 this test writes it.
#[test]
fn the_schema_is_fresh() {
    let path = scenarios_dir().join("schema.json");
    let fresh = serde_json::to_string_pretty(&Scenario::schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == fresh, "scenarios/schema.json is stale: run this test with UPDATE_SCHEMA=1");
}
