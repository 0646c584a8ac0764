//! How fast the simulator is: simulated seconds in a second of one core's time, idle and under load.
use std::{path::Path, process::Command};

use serde::Deserialize;

use crate::{
    Failure,
    cli::SimOptions,
    machine, os,
    report::{Measure, Reading, Report, ReportRow},
};

const SPEED: Measure = Measure { name: "simulated s per CPU s", decimals: 0, headline: true };
const CPU: Measure = Measure { name: "CPU, s", decimals: 2, headline: false };
const PER_CALL: Measure = Measure { name: "CPU, µs/call", decimals: 1, headline: true };
const EVENTS: Measure = Measure { name: "events a simulated s", decimals: 0, headline: true };

/// Rows, with what the simulator calls them and for how many simulated seconds they run.
const ROWS: [(&str, &str, u64); 2] = [("idle", "idle", 20_000), ("100 calls/s", "calls", 600)];

/// What the simulator tells of a run, as far as it is of interest here.
#[derive(Debug, Deserialize)]
struct Summary {
    simulated_ms: u64,
    events: u64,
    ops: Ops,
}

#[derive(Debug, Deserialize)]
struct Ops {
    acknowledged: u64,
}

pub fn command(options: &SimOptions) -> Result<(), Failure> {
    let mut rows: Vec<_> =
        ROWS.iter().map(|(name, ..)| ReportRow { name: (*name).to_owned(), rounds: vec![Vec::new()] }).collect();
    for round in 1..=options.rounds {
        for (row, (name, load, seconds)) in rows.iter_mut().zip(ROWS) {
            eprintln!("round {round}/{}, {name}", options.rounds);
            row.rounds[0].push(run(&options.simulator, load, seconds)?);
        }
    }
    let facts = vec![
        machine::describe(&std::env::temp_dir())?,
        "three members; one process, one thread; the clients, the history and every law in the same process".into(),
        format!("{} rounds; idle: nobody calls; {} and {} simulated seconds", options.rounds, ROWS[0].2, ROWS[1].2),
    ];
    Report { facts, competitors: vec!["cargo sim".into()], rows }.publish(options.out.as_deref())
}

fn run(simulator: &Path, load: &str, seconds: u64) -> Result<Vec<Reading>, Failure> {
    let shown = simulator.display();
    let before = os::cpu_of_children();
    let output = Command::new(simulator).args(["speed", load, "--seconds", &seconds.to_string()]).output();
    let output = output.map_err(|error| {
        Failure::Run(format!("{shown} does not run: {error}; build it by `cargo sim --help`, or give --simulator"))
    })?;
    let cpu = (os::cpu_of_children() - before).as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout);
    let summary: Summary = serde_json::from_str(text.trim()).map_err(|_| {
        let errors = String::from_utf8_lossy(&output.stderr);
        Failure::Run(format!("{shown} speed {load} gives no summary, {}: {}", output.status, errors.trim()))
    })?;
    if !output.status.success() {
        return Err(Failure::Run(format!("{shown} speed {load} does not hold: {}", text.trim())));
    }
    let simulated = summary.simulated_ms as f64 / 1e3;
    let calls = summary.ops.acknowledged;
    Ok(vec![
        (SPEED, simulated / cpu),
        (CPU, cpu),
        (PER_CALL, if calls == 0 { 0.0 } else { cpu * 1e6 / calls as f64 }),
        (EVENTS, summary.events as f64 / simulated),
    ])
}
