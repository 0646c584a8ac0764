//! Many seeds of many scenarios, a process each: what one run leaves behind in a process can hide nothing from the next.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    cli,
    plant::Plant,
    report::{Result as Outcome, Summary},
};

#[derive(clap::Args)]
pub struct Args {
    /// Scenario files.
    #[arg(required = true)]
    scenarios: Vec<PathBuf>,
    /// The seeds, FIRST..=LAST or FIRST..LAST, both included.
    #[arg(long, default_value = "1..100")]
    seeds: String,
    /// Processes at once.
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// Prints each run's summary as a line of JSON.
    #[arg(long)]
    json: bool,
    /// Keeps the rows in this file; what it has already from the same commit counts, and is not run again. Of a tree that
    /// was changed since its commit everything is run.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Plants a bug, to see after how many seeds a law catches it.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Stops at the first violation, when the runs that other jobs have begun are over.
    #[arg(long)]
    stop: bool,
}

/// One run, and of what it was one.
#[derive(Serialize, Deserialize)]
struct Row {
    commit: String,
    #[serde(flatten)]
    summary: Summary,
}

/// Stands for a commit where there is none, and behind one of which something was changed.
const UNKNOWN: &str = "unknown";
const CHANGED: &str = "+";

pub fn main(args: &Args) -> u8 {
    let Some(seeds) = parse_seeds(&args.seeds) else {
        return cli::usage(format!("--seeds {}: expected FIRST..LAST, such as 1..200", args.seeds));
    };
    for scenario in &args.scenarios {
        if let Err(code) = cli::load(scenario) {
            return code;
        }
    }
    let commit = commit(&args.scenarios);
    let kept = args.resume.as_deref().map(|path| known(path, &commit, args.plant)).transpose();
    let mut kept = match kept {
        Ok(kept) => kept.unwrap_or_default(),
        Err(error) => return cli::usage(format!("--resume: {error}")),
    };
    let mut tally = Tally::default();
    let all = seeds.flat_map(|seed| args.scenarios.iter().map(move |scenario| (scenario.clone(), seed)));
    let is_new = |(scenario, seed): &(PathBuf, u64)| match kept.remove(&(scenario.display().to_string(), *seed)) {
        Some(summary) => {
            tally.keep(summary);
            false
        }
        None => true,
    };
    let todo: Vec<_> = all.filter(is_new).collect();
    tally.todo = todo.len();
    let path = args.resume.as_deref().unwrap_or(Path::new("")).display();
    let cannot_write = |error| cli::usage(format!("--resume: {path}: rows cannot be written: {error}"));
    let mut file = match args.resume.as_deref().map(append).transpose() {
        Ok(file) => file,
        Err(error) => return cannot_write(error),
    };
    let mut unwritten = None;
    run_all(args, &todo, &mut |result| {
        match &result {
            Ok(summary) => {
                let row = Row { commit: commit.clone(), summary: summary.clone() };
                let line = serde_json::to_string(&row).expect("a row is plain data");
                // Nothing comes after a row of which a part may be there.
                if let Some(file) = file.as_mut().filter(|_| unwritten.is_none()) {
                    unwritten = file.write_all(format!("{line}\n").as_bytes()).err();
                }
                if args.json {
                    println!("{line}");
                }
            }
            Err(error) => eprintln!("cargo sim: {error}"),
        }
        tally.add(result);
        tally.show();
        unwritten.is_none() && (!args.stop || tally.violated.is_empty())
    });
    let code = tally.finish(args.json);
    // A violation outweighs that.
    unwritten.map(cannot_write).filter(|_| code != 1).unwrap_or(code)
}

fn parse_seeds(text: &str) -> Option<std::ops::RangeInclusive<u64>> {
    let (first, last) = text.split_once("..")?;
    let (first, last) = (first.parse().ok()?, last.trim_start_matches('=').parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// Which commit this is, and whether it was changed since. A scenario that is in no commit is a change.
fn commit(scenarios: &[PathBuf]) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).stderr(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let is_tracked = |scenario: &PathBuf| {
        let mut command = Command::new("git");
        command.args(["ls-files", "--error-unmatch", "--"]).arg(scenario).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]).filter(|commit| !commit.is_empty());
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|status| !status.is_empty())
        || !scenarios.iter().all(is_tracked);
    commit.unwrap_or_else(|| UNKNOWN.into()) + if changed { CHANGED } else { "" }
}

/// What a file of rows has from this commit. What was changed since a commit is none, nor is what has none.
fn known(path: &Path, commit: &str, plant: Option<Plant>) -> Result<BTreeMap<(String, u64), Summary>, String> {
    let is_clean = !commit.ends_with(CHANGED) && commit != UNKNOWN;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let mut lines = BufReader::new(file).split(b'\n').map_while(Result::ok).peekable();
    // Even the first one may have been cut short.
    let is_row = |line: &Vec<u8>| line.starts_with(br#"{"commit":"#);
    if lines.peek().is_some_and(|first| !is_row(first)) {
        return Err(format!("{}:1: no row of a sweep; name a file that sweeps alone write", path.display()));
    }
    Ok(if is_clean { kept(lines, commit, plant) } else { BTreeMap::new() })
}

fn kept(lines: impl Iterator<Item = Vec<u8>>, commit: &str, plant: Option<Plant>) -> BTreeMap<(String, u64), Summary> {
    let rows = lines.filter_map(|line| serde_json::from_slice::<Row>(&line).ok());
    let plant = plant.map(|plant| plant.to_string());
    let same = rows.filter(|row| row.commit == commit && row.summary.plant == plant).map(|row| row.summary);
    same.map(|summary| ((summary.scenario.clone(), summary.seed), summary)).collect()
}

/// Whatever cut the file's last row short shall not spoil the next one.
fn append(path: &Path) -> std::io::Result<File> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Runs everything, `--jobs` at once; `each` says whether to go on, before its job takes the next.
fn run_all(args: &Args, todo: &[(PathBuf, u64)], each: &mut (dyn FnMut(Result<Summary, String>) -> bool + Send)) {
    let (next, each) = (AtomicUsize::new(0), Mutex::new(each));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.get() {
            scope.spawn(|| {
                while let Some((scenario, seed)) = todo.get(next.fetch_add(1, Relaxed)) {
                    let result = run_one(scenario, *seed, args.plant);
                    if !(each.lock().expect("no job panics"))(result) {
                        next.store(todo.len(), Relaxed);
                    }
                }
            });
        }
    });
}

fn run_one(scenario: &Path, seed: u64, plant: Option<Plant>) -> Result<Summary, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut command = Command::new(program);
    command.arg("run").arg(scenario).args(["--seed", &seed.to_string(), "--json"]);
    if let Some(plant) = plant {
        command.args(["--plant", &plant.to_string()]);
    }
    let name = format!("{} seed {seed}", scenario.display());
    let output = command.output().map_err(|error| format!("{name}: cannot be started: {error}"))?;
    let line = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(line.trim()).map_err(|_| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("{name}: died without a verdict ({}): {}", output.status, errors.trim())
    })
}

#[derive(Default)]
struct Tally {
    todo: usize,
    /// Rows of an earlier sweep.
    kept: usize,
    done: usize,
    acknowledged: u64,
    simulated_ms: u64,
    violated: Vec<String>,
    unknown: Vec<String>,
    died: usize,
}

impl Tally {
    fn add(&mut self, result: Result<Summary, String>) {
        self.done += 1;
        match result {
            Ok(summary) => self.count(&summary),
            Err(_) => self.died += 1,
        }
    }

    fn keep(&mut self, summary: Summary) {
        self.kept += 1;
        self.count(&summary);
    }

    fn count(&mut self, summary: &Summary) {
        self.acknowledged += summary.ops.acknowledged;
        self.simulated_ms += summary.simulated_ms;
        let line = format!("{}: {}", summary.replay(), summary.why.join("; "));
        match summary.result {
            Outcome::Holds => {}
            Outcome::Violated => self.violated.push(line),
            Outcome::Unknown => self.unknown.push(line),
        }
    }

    /// A bar, if somebody watches.
    fn show(&self) {
        if std::io::stderr().is_terminal() {
            let filled = self.done * 40 / self.todo.max(1);
            let bar = "#".repeat(filled) + &".".repeat(40 - filled);
            let (violated, unknown) = (self.violated.len() + self.died, self.unknown.len());
            eprint!("\r[{bar}] {}/{}, {violated} violated, {unknown} unknown\r", self.done, self.todo);
        }
    }

    fn finish(&self, quiet: bool) -> u8 {
        let violated = self.violated.len() + self.died;
        if !quiet {
            println!(
                "{} runs, {} kept; {} s simulated, {} calls acknowledged; {} hold, {violated} violated, {} unknown",
                self.done,
                self.kept,
                self.simulated_ms / 1_000,
                self.acknowledged,
                self.done + self.kept - violated - self.unknown.len(),
                self.unknown.len()
            );
            self.violated.iter().for_each(|line| println!("VIOLATED {line}"));
            self.unknown.iter().for_each(|line| println!("UNKNOWN  {line}"));
        }
        match (violated, self.unknown.len()) {
            (0, 0) => 0,
            (0, _) => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(commit: &str, seed: u64, plant: Option<&str>, result: Outcome) -> Vec<u8> {
        let summary = Summary {
            scenario: "calm.toml".into(),
            seed,
            plant: plant.map(str::to_owned),
            result,
            why: Vec::new(),
            hash: String::new(),
            events: 0,
            ops: Default::default(),
            faults: Vec::new(),
            laws: Vec::new(),
            simulated_ms: 0,
            wall_ms: 0,
        };
        serde_json::to_vec(&Row { commit: commit.into(), summary }).unwrap()
    }

    #[test]
    fn rows_of_an_earlier_sweep_count_as_if_they_were_run_again() {
        let rows = [
            row("abc", 1, None, Outcome::Holds),
            row("abc", 2, None, Outcome::Violated),
            row("abc", 3, Some("hang"), Outcome::Holds),
            row("old", 4, None, Outcome::Holds),
        ];
        let kept = |plant| kept(rows.iter().cloned(), "abc", plant);
        let seeds = |rows: &BTreeMap<(String, u64), Summary>| rows.keys().map(|(_, seed)| *seed).collect::<Vec<_>>();
        assert_eq!(seeds(&kept(None)), [1, 2]);
        assert_eq!(seeds(&kept(Some(Plant::Hang))), [3]);
        let mut tally = Tally::default();
        kept(None).into_values().for_each(|summary| tally.keep(summary));
        assert_eq!((tally.kept, tally.done, tally.violated.len()), (2, 0, 1));
        assert_eq!(tally.finish(true), 1);
    }
}
