//! Transcripts: what to say to a cluster, as data. What comes back is never written down, the real etcd says it.
//!
//! One `etcdctl` command a line; words are split as a shell does, with '...' and "..." (in which \n is a line feed).
//!
//! ```text
//! # a comment
//! put k "two words"              sent to member 0
//! @1 get k                       to member 1 (of one member: to that)
//! @all endpoint health           to all
//! @none endpoint health          to an address where nobody listens
//! [3.6] get k --max-mod-rev 9    only with that release of etcdctl
//! txn                            the lines after it that begin with | are its input
//! | version("k") = "1"
//! settle                         wait until every member's storage has the cluster's version, which takes etcd seconds
//! start w1 watch k               in the background; goes on when the server has the watcher
//! finish w1 6                    it prints 6 lines on etcd; wait for as many, and compare its output here
//! ```
use super::{
    binaries::{Ctl, Peers},
    cluster::{Cluster, Member},
    etcdctl::{self, Background},
    http,
    mask::mask,
    process::Output,
};
use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

/// tcpmux, which nobody runs.
const NOBODY: &str = "127.0.0.1:1";
/// etcd counts its watchers here.
const WATCHERS_METRIC: &str = "etcd_debugging_mvcc_watcher_total";
/// A server that does not count gets this long to set up a watcher.
const WATCHER_BOUND: Duration = Duration::from_secs(3);
/// etcd looks every 4 s whether its storage's version is due.
const SETTLE_BOUND: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub line: usize,
    pub text: String,
    pub only: Option<Ctl>,
    pub target: Target,
    pub action: Action,
    pub stdin: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Member(usize),
    All,
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Run(Vec<String>),
    Settle,
    Start { name: String, args: Vec<String> },
    Finish { name: String, lines: usize },
}

/// What one step printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub line: usize,
    pub text: String,
    pub args: Vec<String>,
    pub output: Output,
    /// How many lines the transcript says that etcd prints.
    pub lines: Option<usize>,
}

/// Reads a transcript; the error names the line.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let at = |why: &str| format!("line {number}: {why}: {line}");
        if let Some(input) = line.strip_prefix('|') {
            let step = steps.last_mut().ok_or_else(|| at("input before any command"))?;
            step.stdin += &(input.strip_prefix(' ').unwrap_or(input).to_owned() + "\n");
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            steps.push(parse_step(number, line).map_err(|why| at(&why))?);
        }
    }
    Ok(steps)
}

fn parse_step(line: usize, text: &str) -> Result<Step, String> {
    let mut words = split(text)?;
    let only = match words[0].as_str() {
        "[3.5]" => Some(Ctl::V35),
        "[3.6]" => Some(Ctl::V36),
        _ => None,
    };
    words.drain(..usize::from(only.is_some()));
    let target = match words.first().and_then(|word| word.strip_prefix('@')) {
        None => Target::Member(0),
        Some("all") => Target::All,
        Some("none") => Target::Nobody,
        Some(number) => Target::Member(number.parse().map_err(|_| "no such member")?),
    };
    let targeted = words.first().is_some_and(|word| word.starts_with('@'));
    words.drain(..usize::from(targeted));
    let action = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => return Err("no command".to_owned()),
        ["settle"] => Action::Settle,
        ["start", name, _, ..] => Action::Start { name: name.to_owned(), args: words.split_off(2) },
        ["finish", name, lines] => {
            Action::Finish { name: name.to_owned(), lines: lines.parse().map_err(|_| "not a number of lines")? }
        }
        ["start" | "finish", ..] => return Err("an incomplete line".to_owned()),
        _ => Action::Run(words),
    };
    Ok(Step { line, text: text.to_owned(), only, target, action, stdin: String::new() })
}

fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote, mut chars) = (Vec::new(), None::<String>, None, text.chars());
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, ' ') => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if open == c => quote = None,
            (Some('"'), '\\') => match chars.next() {
                Some('n') => word.get_or_insert_default().push('\n'),
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err("ends in a backslash".to_owned()),
            },
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("an open quote".to_owned()) } else { Ok(words) }
}

/// Says the transcript to `cluster`, line by line.
pub fn play(steps: &[Step], peers: &Peers, ctl: Ctl, cluster: &Cluster) -> Vec<Outcome> {
    let (flags, mut watchers) = (cluster.ctl_flags(), BTreeMap::new());
    let with_flags = |args: &[String]| [&flags, args].concat();
    let mut outcomes = Vec::new();
    for step in steps.iter().filter(|step| step.only.is_none_or(|only| only == ctl)) {
        let endpoints = match step.target {
            Target::All => cluster.endpoints(),
            Target::Nobody => NOBODY.to_owned(),
            Target::Member(number) => cluster.members[number % cluster.members.len()].address.endpoint(),
        };
        let (args, output, lines) = match &step.action {
            Action::Run(args) => {
                (args.clone(), etcdctl::run(peers, ctl, &endpoints, &with_flags(args), &step.stdin), None)
            }
            Action::Settle => {
                cluster.members.iter().for_each(await_settled);
                continue;
            }
            Action::Start { name, args } => {
                let before = watcher_count(cluster);
                let watcher = Background::start(peers, ctl, &endpoints, &with_flags(args), &step.stdin);
                let expected = step.stdin.lines().filter(|line| line.starts_with("watch ")).count().max(1);
                await_watchers(cluster, before, expected);
                assert!(watchers.insert(name, (args.clone(), watcher)).is_none(), "{name} is started twice");
                continue;
            }
            Action::Finish { name, lines } => {
                let (args, watcher) = watchers.remove(name).unwrap_or_else(|| panic!("{name} was not started"));
                (args, watcher.finish(*lines), Some(*lines))
            }
        };
        outcomes.push(Outcome { line: step.line, text: step.text.clone(), args, output, lines });
    }
    outcomes
}

/// A server that never settles says so itself, in `endpoint status`.
pub fn await_settled(member: &Member) {
    let start = Instant::now();
    let settled = || {
        let body = http::get(member.site(), "/version").ok()?.body;
        let version: serde_json::Value = serde_json::from_str(&body).ok()?;
        Some(version["etcdcluster"] == version["storage"])
    };
    while settled() != Some(true) && start.elapsed() < SETTLE_BOUND {
        sleep(Duration::from_millis(50));
    }
}

fn watcher_count(cluster: &Cluster) -> Option<f64> {
    let counts = cluster.members.iter().map(|member| http::metric(member.site(), WATCHERS_METRIC));
    counts.sum()
}

/// `etcdctl watch` does not say when its watcher is set up; a write before that would be missed.
fn await_watchers(cluster: &Cluster, before: Option<f64>, expected: usize) {
    let start = Instant::now();
    let there = || before.zip(watcher_count(cluster)).is_some_and(|(before, now)| now >= before + expected as f64);
    while !there() && start.elapsed() < WATCHER_BOUND {
        sleep(Duration::from_millis(10));
    }
}

/// Every line to which the two servers said different things, as a report for people.
pub fn differences(expected: &[Outcome], got: &[Outcome]) -> Vec<String> {
    assert_eq!(expected.len(), got.len(), "one transcript, said twice");
    let pairs = expected.iter().zip(got);
    pairs.filter_map(|(expected, got)| difference(expected, got)).collect()
}

fn difference(expected: &Outcome, got: &Outcome) -> Option<String> {
    assert_eq!(expected.line, got.line);
    let printed = expected.output.stdout.lines().count();
    let wrong = match expected.lines {
        Some(lines) if lines != printed => format!("etcd printed {printed} lines: the number is wrong, or etcd slow"),
        None if expected.output.code.is_none() => {
            "beside etcd, etcdctl did not end: it needs start and finish".to_owned()
        }
        _ => String::new(),
    };
    if !wrong.is_empty() {
        let (line, text) = (expected.line, &expected.text);
        return Some(format!("line {line}: {text}: {wrong}\n{}", indent(&expected.output.stdout)));
    }
    let (etcd, ours) = (mask(&expected.args, &expected.output), mask(&got.args, &got.output));
    if etcd == ours {
        return None;
    }
    let mut report = format!("line {}: {}\n", expected.line, expected.text);
    for (name, etcd, ours) in [("stdout", &etcd.stdout, &ours.stdout), ("stderr", &etcd.stderr, &ours.stderr)] {
        if etcd != ours {
            report += &format!("  expected (etcd), {name}:\n{}  got (detcd), {name}:\n{}", indent(etcd), indent(ours));
        }
    }
    if etcd.code != ours.code {
        report += &format!("  expected (etcd) exit code {:?}, got (detcd) {:?}\n", etcd.code, ours.code);
    }
    Some(report)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(stdout: &str, stderr: &str, code: i32) -> Outcome {
        let output = Output { stdout: stdout.to_owned(), stderr: stderr.to_owned(), code: Some(code) };
        Outcome { line: 7, text: "get k".to_owned(), args: vec!["get".to_owned(), "k".to_owned()], output, lines: None }
    }

    #[test]
    fn any_planted_difference_is_reported() {
        #[track_caller]
        fn check(planted: Outcome, told: &str) {
            let right = outcome("k\nv\n", "{\"ts\":\"1\",\"code\":\"x\"}\n", 0);
            let reports = differences(&[right.clone(), right.clone()], &[right, planted]);
            assert_eq!(reports.len(), usize::from(!told.is_empty()), "{reports:?}");
            assert!(reports.iter().all(|report| report.starts_with("line 7: get k\n") && report.contains(told)));
        }
        check(outcome("k\nv\n", "{\"ts\":\"2\",\"code\":\"x\"}\n", 0), "");
        check(outcome("k\nw\n", "{\"ts\":\"2\",\"code\":\"x\"}\n", 0), "got (detcd), stdout:\n    k\n    w\n");
        check(outcome("k\nv\n", "{\"ts\":\"2\",\"code\":\"y\"}\n", 0), "got (detcd), stderr");
        check(outcome("k\nv\n", "{\"ts\":\"2\",\"code\":\"x\"}\n", 1), "got (detcd) Some(1)");
        check(outcome("k\nv", "{\"ts\":\"2\",\"code\":\"x\"}\n", 0), "expected (etcd), stdout");
    }

    #[test]
    fn transcripts_are_read() {
        let text =
            "# no\n\n[3.6] @2 get 'a b' \"c\\n\" ''\nstart w watch k\ntxn\n| x\n|\nfinish w 3\n@all endpoint health";
        let steps = parse(text).unwrap();
        assert_eq!(steps.len(), 5);
        assert_eq!((steps[0].line, steps[0].only, steps[0].target), (3, Some(Ctl::V36), Target::Member(2)));
        assert_eq!(steps[0].action, Action::Run(["get", "a b", "c\n", ""].map(str::to_owned).to_vec()));
        assert_eq!(steps[2].stdin, "x\n\n");
        assert_eq!(steps[3].action, Action::Finish { name: "w".to_owned(), lines: 3 });
        assert_eq!(steps[4].target, Target::All);
    }

    #[test]
    fn mistakes_name_their_line() {
        #[track_caller]
        fn check(text: &str, line: &str, why: &str) {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(line) && error.contains(why), "{error}");
        }
        check("get k\nget 'k", "line 2: ", "an open quote");
        check("| x", "line 1: ", "input before any command");
        check("finish w", "line 1: ", "incomplete");
        check("@x get k", "line 1: ", "no such member");
    }
}
