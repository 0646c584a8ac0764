//! Runs that only show how fast the simulation is. Whoever measures looks at the processor time of this process.
use std::{sync::Arc, time::Instant};

use crate::{
    report::Summary,
    runner::{self, Plan},
    scenario::Scenario,
};

#[derive(clap::Args)]
pub struct Args {
    /// What the cluster is busy with.
    #[arg(value_enum)]
    load: Load,
    /// Simulated seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(60..=86_000))]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Load {
    /// Three members and nobody who wants anything of them.
    Idle,
    /// Three members, and clients that call a hundred times a second; with history and every law.
    Calls,
}

pub fn main(args: &Args) -> u8 {
    let plan = Plan { scenario: Arc::new(scenario(args)), seed: args.seed, plant: None, trace: None };
    let begun = Instant::now();
    let run = runner::run(&plan, &|_| {});
    let summary = Summary::new(&format!("{:?}", args.load).to_lowercase(), &plan, &run, begun.elapsed());
    println!("{}", serde_json::to_string(&summary).expect("a summary is plain data"));
    let code = match args.load {
        Load::Calls => summary.result.code(),
        // Laws have nothing to judge there, and say so.
        Load::Idle => u8::from(run.accident.is_some()),
    };
    std::mem::forget(run); // the process ends, and takes it all with it
    code
}

fn scenario(args: &Args) -> Scenario {
    let text = format!("claim = \"It runs.\"\nrun_ms = {}\nsettle_ms = 5_000", args.seconds * 1_000);
    let mut scenario = Scenario::parse("speed", &text).expect("our own scenario");
    if args.load == Load::Idle {
        (scenario.workload.clients, scenario.workload.watchers) = (0, 0);
    }
    scenario
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_cluster_is_the_one_the_figures_are_about() {
        let scenario = scenario(&Args { load: Load::Calls, seconds: 60, seed: 1 });
        let (cluster, workload) = (scenario.cluster, scenario.workload);
        assert_eq!((cluster.nodes, workload.ops_per_second, workload.watchers), (3, 100, 2));
        assert!(scenario.nemeses.is_empty());
    }
}
