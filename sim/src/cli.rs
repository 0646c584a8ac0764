//! The command line.
use std::{
    fmt,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use tracing_subscriber::{EnvFilter, fmt::time::FormatTime};

use crate::{
    check::{self, Budget, Verdict},
    churn,
    plant::Plant,
    report::{self, Result as Outcome, Summary},
    runner::{self, Plan, Run},
    scenario::Scenario,
    speed, sweep, twice,
    world::recorder::SIMULATED,
};

/// The exit code of a command line, or a file it names, that makes no sense.
pub const USAGE: u8 = 64;

#[derive(Parser)]
#[command(name = "cargo sim", about = "Runs whole clusters from one seed, and judges what they did")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one scenario from one seed. Exit code 0: all laws hold; 1: one is violated; 2: unknown or vacuous.
    Run(RunArgs),
    /// Runs one seed in two processes, and a second time in one of them, and names the first event that differs.
    Twice(TwiceArgs),
    /// Runs scenarios over many seeds, a process each.
    Sweep(sweep::Args),
    /// Runs a cluster for as long as it is told, for whoever measures how fast that goes.
    Speed(speed::Args),
    /// Replaces members all the time for a month, and counts what there is at the end of each day. Exit code 1: it grew.
    Churn(churn::Args),
    /// Judges recorded histories: Jepsen's, Porcupine's, and those under reports/runs.
    Check {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(clap::Args, Clone)]
pub struct RunArgs {
    /// A scenario file.
    pub scenario: PathBuf,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Shows log lines on standard error, in simulated time: TARGET=LEVEL, such as node=debug. Targets: node, peers,
    /// snapshots, api, and libraries by their names; levels: error, warn, info, debug, trace.
    #[arg(long, value_name = "TARGET=LEVEL")]
    pub log: Vec<String>,
    /// Plants a bug, to see whether a law catches it.
    #[arg(long, value_enum)]
    pub plant: Option<Plant>,
    /// Prints one line of JSON instead of a report.
    #[arg(long)]
    pub json: bool,
    /// Writes a line for every event in the run's hash.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Prints the schedule of faults and does nothing.
    #[arg(long, conflicts_with_all = ["json", "trace", "save"])]
    pub schedule: bool,
    /// Keeps the run under reports/runs even if all laws hold.
    #[arg(long)]
    pub save: bool,
}

#[derive(clap::Args)]
pub struct TwiceArgs {
    pub scenario: PathBuf,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Plants a bug, to see whether the difference is found.
    #[arg(long, value_enum)]
    pub plant: Option<Plant>,
    /// Runs that many times in this process and writes FILE.1, FILE.2 and so on: what `twice` starts.
    #[arg(long, hide = true, value_name = "FILE")]
    pub record: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 1)]
    pub times: usize,
}

pub fn main() -> ExitCode {
    // Whoever reads our output may have seen enough: that is the end, and no failure of a run.
    // SAFETY: nobody else handles signals, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print(); // nobody listens
            return ExitCode::from(code);
        }
    };
    let code = match args.command {
        Command::Run(args) => run(&args),
        Command::Twice(args) => twice::main(&args),
        Command::Sweep(args) => sweep::main(&args),
        Command::Speed(args) => speed::main(&args),
        Command::Churn(args) => churn::main(&args),
        Command::Check { files } => check_files(&files),
    };
    ExitCode::from(code)
}

/// One line on standard error: what, where, what to do.
pub fn usage(error: impl fmt::Display) -> u8 {
    eprintln!("cargo sim: {error}");
    USAGE
}

pub fn load(path: &Path) -> Result<Scenario, u8> {
    Scenario::load(path).map_err(usage)
}

fn run(args: &RunArgs) -> u8 {
    let (scenario, drawn) = match load(&args.scenario) {
        Ok(scenario) => scenario.of_seed(args.seed),
        Err(code) => return code,
    };
    let (scenario, drawn) = (Arc::new(scenario), drawn.unwrap_or_default());
    if args.schedule {
        print!("{drawn}{}", if drawn.is_empty() { "" } else { "\n" });
        print!("{}", crate::schedule::Schedule::new(&scenario, crate::seed::Seed(args.seed)));
        return 0;
    }
    if let Err(error) = start_log(&args.log) {
        return usage(error);
    }
    if let Some(path) = &args.trace
        && let Err(error) = std::fs::File::create(path)
    {
        return usage(format!("--trace {}: the file cannot be written: {error}", path.display()));
    }
    let plan = Plan { scenario, seed: args.seed, plant: args.plant, trace: args.trace.clone() };
    let begun = Instant::now();
    let run = runner::run(&plan, &progress(&plan, args.json));
    let summary = Summary::new(&args.scenario.display().to_string(), &plan, &run, begun.elapsed());
    finish(args, &plan, &run, &summary, &drawn);
    let code = summary.result.code();
    if matches!(&run.accident, Some(accident) if accident.kind == "hang" || accident.kind == "memory") {
        std::process::exit(i32::from(code)); // the simulation's thread cannot be ended otherwise
    }
    std::mem::forget(run); // the process ends, and takes it all with it
    code
}

/// `drawn` is the scenario's text if it was drawn from the seed.
fn finish(args: &RunArgs, plan: &Plan, run: &Run, summary: &Summary, drawn: &str) {
    let mut text = report::print(summary, plan, run);
    if !drawn.is_empty() && summary.result != Outcome::Holds {
        text = format!("{text}\n{drawn}\n");
    }
    let saved = if summary.result != Outcome::Holds || args.save {
        match report::save(summary, &text, run) {
            Ok(dir) => format!("saved     {}\n", dir.display()),
            Err(error) => format!("saved     nothing: {error}\n"),
        }
    } else {
        String::new()
    };
    if args.json {
        println!("{}", serde_json::to_string(summary).expect("a summary is plain data"));
    } else {
        print!("{text}{saved}");
    }
}

/// Shows how far the run is, if somebody watches.
fn progress(plan: &Plan, quiet: bool) -> impl Fn(Duration) + use<> {
    let total = plan.scenario.run_ms + plan.scenario.settle_ms;
    let show = !quiet && std::io::stderr().is_terminal();
    move |now: Duration| {
        if show {
            let percent = (now.as_millis() as u64 * 100 / total).min(100);
            eprint!("\r{:6.1} s of {:.1} s simulated, {percent} %\r", now.as_secs_f64(), total as f64 / 1e3);
            let _ = std::io::stderr().flush(); // nobody listens
        }
    }
}

struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> fmt::Result {
        write!(out, "{:12.6}s", SIMULATED.load(Relaxed) as f64 / 1e9)
    }
}

fn start_log(directives: &[String]) -> Result<(), String> {
    if directives.is_empty() {
        return Ok(());
    }
    let mut filter = EnvFilter::new("off");
    for directive in directives {
        let parsed = directive.parse().ok().filter(|_| directive.contains('=')).ok_or_else(|| {
            format!(
                "--log {directive}: expected TARGET=LEVEL, such as node=debug; levels: error, warn, info, debug, trace"
            )
        })?;
        filter = filter.add_directive(parsed);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_timer(SimulatedTime).with_ansi(false);
    lines.with_writer(std::io::stderr).init();
    Ok(())
}

fn check_files(files: &[PathBuf]) -> u8 {
    let mut worst = 0;
    for path in files {
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return usage(format!("{name}: cannot be read: {error}")),
        };
        let (format, verdict) = match check::check_text(&name, &text, Budget::default()) {
            Ok(judged) => judged,
            Err(error) => return usage(error),
        };
        let code = match verdict {
            Verdict::Linearizable => {
                println!("{name}: linearizable ({format:?})");
                0
            }
            Verdict::Violation(violation) => {
                println!("{name}: VIOLATION ({format:?})\n{violation}");
                1
            }
            Verdict::Unknown { why } => {
                println!("{name}: UNKNOWN ({format:?}): {why}");
                2
            }
        };
        // A violation outweighs whatever is unknown.
        worst = if worst == 1 || code == 1 { 1 } else { worst.max(code) };
    }
    worst
}
