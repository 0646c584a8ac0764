//! The same seed three times: in two processes, and a second time in one of them. Where they part is told in full.
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use crate::{
    cli::{self, TwiceArgs},
    runner::{self, Plan},
};

/// Events before the first one that differs that are shown.
const BEFORE: usize = 5;

pub fn main(args: &TwiceArgs) -> u8 {
    match &args.record {
        Some(file) => record(args, file),
        None => compare(args),
    }
}

/// Runs in this process, however often, and writes each run's trace.
fn record(args: &TwiceArgs, file: &Path) -> u8 {
    let scenario = match cli::load(&args.scenario) {
        Ok(scenario) => Arc::new(scenario.of_seed(args.seed).0),
        Err(code) => return code,
    };
    for time in 1..=args.times {
        let trace = Some(numbered(file, time));
        let plan = Plan { scenario: scenario.clone(), seed: args.seed, plant: args.plant, trace };
        let run = runner::run(&plan, &|_| {});
        println!("{:016x} {}", run.hash, run.events);
    }
    0
}

fn numbered(file: &Path, time: usize) -> PathBuf {
    PathBuf::from(format!("{}.{time}", file.display()))
}

fn compare(args: &TwiceArgs) -> u8 {
    if let Err(code) = cli::load(&args.scenario) {
        return code;
    }
    let dir = PathBuf::from(format!("reports/runs/twice-{}", std::process::id()));
    if let Err(error) = fs::create_dir_all(&dir) {
        return cli::usage(format!("{}: cannot be made: {error}", dir.display()));
    }
    let code = compare_in(&dir, args);
    if code == 0 {
        let _ = fs::remove_dir_all(&dir); // nothing to see in it
    } else {
        println!("traces    {}", dir.display());
    }
    code
}

fn compare_in(dir: &Path, args: &TwiceArgs) -> u8 {
    let (first, second) = (dir.join("one"), dir.join("two"));
    let mut hashes = Vec::new();
    for (file, times) in [(&first, 1), (&second, 2)] {
        match spawn(args, file, times) {
            Ok(lines) => hashes.extend(lines),
            Err(error) => return cli::usage(error),
        }
    }
    let traces = [
        ("in one process", numbered(&first, 1)),
        ("in another process", numbered(&second, 1)),
        ("a second time in that process", numbered(&second, 2)),
    ];
    judge(args, &hashes, &traces)
}

fn spawn(args: &TwiceArgs, file: &Path, times: usize) -> Result<Vec<String>, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut command = Command::new(program);
    command.arg("twice").arg(&args.scenario).args(["--seed", &args.seed.to_string()]);
    command.arg("--record").arg(file).args(["--times", &times.to_string()]);
    if let Some(plant) = args.plant {
        command.args(["--plant", &plant.to_string()]);
    }
    let output = command.output().map_err(|error| format!("a second process cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("a run failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn judge(args: &TwiceArgs, hashes: &[String], traces: &[(&str, PathBuf); 3]) -> u8 {
    let (file, seed) = (args.scenario.display(), args.seed);
    if hashes.len() == 3 && hashes.iter().all(|hash| *hash == hashes[0]) {
        println!("{file} seed {seed}: the same three times, hash and events {}", hashes[0]);
        return 0;
    }
    println!("{file} seed {seed}: DIFFERS");
    for ((how, _), hash) in traces.iter().zip(hashes) {
        println!("hash      {hash} {how}");
    }
    for (how, other) in &traces[1..] {
        match first_difference(&traces[0].1, other) {
            Ok(Some(difference)) => println!("first difference {how}:\n{difference}"),
            Ok(None) => println!("no event differs {how}"),
            Err(error) => println!("the traces cannot be compared: {error}"),
        }
    }
    1
}

/// The first line in which two traces differ, with what came before it.
fn first_difference(one: &Path, other: &Path) -> std::io::Result<Option<String>> {
    let mut lines = [BufReader::new(File::open(one)?).lines(), BufReader::new(File::open(other)?).lines()];
    let mut before: Vec<String> = Vec::new();
    for number in 1u64.. {
        let [left, right] = &mut lines;
        let (left, right) = (left.next().transpose()?, right.next().transpose()?);
        match (left, right) {
            (None, None) => return Ok(None),
            (Some(left), Some(right)) if left == right => {
                before.push(left);
                if before.len() > BEFORE {
                    before.remove(0);
                }
            }
            (left, right) => {
                let show = |line: Option<String>| line.unwrap_or_else(|| "(the end)".to_owned());
                let mut text = format!("  event {number}\n");
                before.iter().for_each(|line| text += &format!("    both   {line}\n"));
                text += &format!("    one    {}\n    other  {}", show(left), show(right));
                return Ok(Some(text));
            }
        }
    }
    Ok(None)
}
