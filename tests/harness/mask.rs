//! Hides what two right servers may print differently, and nothing else.
//!
//! Both servers run on the same ports, so endpoints, member ids and cluster ids must be equal and stay visible, as do
//! revisions, versions, values and counts. Hidden: times, sizes, raft terms and indexes, which member leads (that
//! exactly one does stays visible) and the server's version. A value is hidden only if it has the shape of one, so an
//! empty or missing one still shows. Tables are reduced to their cells: column widths follow from the hidden values.
use super::process::Output;
use regex::Regex;
use std::sync::LazyLock;

/// Pattern and replacement, anywhere in any output.
const EVERYWHERE: &[(&str, &str)] = &[
    (r#""raft_term":\d+"#, r#""raft_term":TERM"#),
    (r#""RaftTerm" : \d+"#, r#""RaftTerm" : TERM"#),
    // etcdctl's own log lines on stderr.
    (r#""ts":("[^"]+"|[0-9.]+)"#, r#""ts":TIME"#),
    (r"etcd-endpoints://0x[0-9a-f]+/", "etcd-endpoints://POINTER/"),
    (r"LocalAddr: '[^']+'", "LocalAddr: PORT"),
];

/// Of `endpoint status` and `endpoint health` only.
const ENDPOINT: &[(&str, &str)] = &[
    (r"took = [0-9.]+[mµn]?s", "took = TIME"),
    (r#""took":"[0-9.]+[mµn]?s""#, r#""took":TIME"#),
    (r#""Took" : "[0-9.]+[mµn]?s""#, r#""Took" : TIME"#),
    (r#""(dbSize|dbSizeInUse)":\d+"#, r#""$1":BYTES"#),
    (r#""(DBSize|DBSizeInUse)" : \d+"#, r#""$1" : BYTES"#),
    (r#""(raftIndex|raftAppliedIndex|raftTerm)":\d+"#, r#""$1":INDEX"#),
    (r#""(RaftIndex|RaftAppliedIndex)" : \d+"#, r#""$1" : INDEX"#),
    (r#""version":"\d+\.\d+\.\d+""#, r#""version":VERSION"#),
    (r#""Version" : "\d+\.\d+\.\d+""#, r#""Version" : VERSION"#),
    (r#""leader":[1-9]\d*"#, r#""leader":ID"#),
    (r#""Leader" : [1-9]\d*"#, r#""Leader" : ID"#),
];

/// Of `snapshot save` only.
const SNAPSHOT: &[(&str, &str)] =
    &[(r#""size":"\d+(\.\d+)? [kM]?B""#, r#""size":BYTES"#), (r#""took":"[^"]+""#, r#""took":TIME"#)];

/// Columns of `endpoint status`, `endpoint health` and `snapshot status`, and the shape in which they are hidden.
const COLUMNS: &[(&str, &str)] = &[
    ("VERSION", r"^\d+\.\d+\.\d+$"),
    ("DB SIZE", r"^\d+(\.\d+)? [kM]?B$"),
    ("IN USE", r"^\d+(\.\d+)? [kM]?B$"),
    ("PERCENTAGE NOT IN USE", r"^\d+%$"),
    ("IS LEADER", r"^(true|false)$"),
    ("RAFT TERM", r"^\d+$"),
    ("RAFT INDEX", r"^\d+$"),
    ("RAFT APPLIED INDEX", r"^\d+$"),
    ("TOOK", r"^[0-9.]+[mµn]?s$"),
    // Of the whole file, in which raft's index and term are.
    ("HASH", r"^[0-9a-f]{1,8}$"),
    ("TOTAL SIZE", r"^\d+(\.\d+)? [kM]?B$"),
];

/// What the simple format of `endpoint status` means by its columns, in etcdctl 3.5 and 3.6.
const STATUS_35: &str =
    "ENDPOINT|ID|VERSION|DB SIZE|IS LEADER|IS LEARNER|RAFT TERM|RAFT INDEX|RAFT APPLIED INDEX|ERRORS";
const STATUS_36: &str = "ENDPOINT|ID|VERSION|STORAGE VERSION|DB SIZE|IN USE|PERCENTAGE NOT IN USE|QUOTA|IS LEADER|\
     IS LEARNER|RAFT TERM|RAFT INDEX|RAFT APPLIED INDEX|ERRORS|DOWNGRADE TARGET VERSION|DOWNGRADE ENABLED";

/// `output` of `etcdctl args`, ready to be compared.
pub fn mask(args: &[String], output: &Output) -> Output {
    let format = format_of(args);
    let words: Vec<_> = args.iter().map(String::as_str).filter(|word| !word.starts_with('-')).take(2).collect();
    let mut masked = Output {
        stdout: replace(&output.stdout, &GENERAL),
        stderr: replace(&output.stderr, &GENERAL),
        code: output.code,
    };
    if format == "table" {
        masked.stdout = cells_of_table(&masked.stdout);
    }
    if words.first() == Some(&"endpoint") {
        masked.stdout = replace(&masked.stdout, &SPECIAL);
        masked.stderr = replace(&masked.stderr, &SPECIAL);
        masked.stdout = match (words.get(1).copied(), format) {
            (_, "table") => hide_columns(&masked.stdout),
            (Some("status"), "simple") => hide_columns(&name_columns(&masked.stdout)),
            // Endpoints are asked at the same time and printed as they answer.
            (Some("health"), "simple") => sort_lines(&masked.stdout),
            (Some("health"), "json") => sort_objects(&masked.stdout),
            _ => masked.stdout,
        };
        masked.stderr = sort_lines(&masked.stderr);
    }
    if words.first() == Some(&"snapshot") {
        masked.stderr = replace(&masked.stderr, &SAVING);
        masked.stdout = if format == "table" { hide_columns(&masked.stdout) } else { masked.stdout };
    }
    masked
}

type Rules = LazyLock<Vec<(Regex, &'static str)>>;
static GENERAL: Rules = LazyLock::new(|| compile(EVERYWHERE));
static SPECIAL: Rules = LazyLock::new(|| compile(ENDPOINT));
static SAVING: Rules = LazyLock::new(|| compile(SNAPSHOT));
static SHAPES: Rules = LazyLock::new(|| COLUMNS.iter().map(|(name, shape)| (regex(shape), *name)).collect());

fn compile(rules: &[(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    rules.iter().map(|(pattern, replacement)| (regex(pattern), *replacement)).collect()
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("our own pattern")
}

fn replace(text: &str, rules: &[(Regex, &str)]) -> String {
    rules.iter().fold(text.to_owned(), |text, (regex, with)| regex.replace_all(&text, *with).into_owned())
}

fn format_of(args: &[String]) -> &str {
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        if let Some(format) = arg.strip_prefix("--write-out=") {
            return format;
        }
        if arg == "-w" || arg == "--write-out" {
            return args.next().unwrap_or("simple");
        }
    }
    "simple"
}

/// `| a | b |` and borders to lines `a|b`.
fn cells_of_table(text: &str) -> String {
    let rows = text.lines().filter(|line| !line.starts_with("+-"));
    let cells = |row: &str| match row.strip_prefix('|').and_then(|row| row.strip_suffix('|')) {
        Some(inner) => inner.split('|').map(str::trim).collect::<Vec<_>>().join("|"),
        None => row.to_owned(),
    };
    rows.map(|row| cells(row) + "\n").collect()
}

/// The rows of the simple format under their table's header.
fn name_columns(text: &str) -> String {
    let width = text.lines().next().map_or(0, |line| line.split(", ").count());
    let header = [STATUS_35, STATUS_36].into_iter().find(|header| header.split('|').count() == width);
    let Some(header) = header else { return text.to_owned() };
    let rows = text.lines().map(|line| line.split(", ").map(str::trim).collect::<Vec<_>>().join("|") + "\n");
    format!("{header}\n{}", rows.collect::<String>())
}

/// Cells under a name of [`COLUMNS`] become that name; how many members lead is told below.
fn hide_columns(text: &str) -> String {
    let mut lines = text.lines();
    let header: Vec<_> = lines.next().unwrap_or_default().split('|').collect();
    let (mut out, mut leaders) = (header.join("|") + "\n", 0);
    for line in lines {
        let mut cells: Vec<_> = line.split('|').collect();
        for (cell, name) in cells.iter_mut().zip(&header) {
            leaders += usize::from(*name == "IS LEADER" && *cell == "true");
            if let Some((_, name)) = SHAPES.iter().find(|(shape, column)| column == name && shape.is_match(cell)) {
                *cell = name;
            }
        }
        out += &(cells.join("|") + "\n");
    }
    if header.contains(&"IS LEADER") { out + &format!("leaders: {leaders}\n") } else { sort_lines(&out) }
}

fn sort_lines(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The flat objects of a JSON array in one line, sorted.
fn sort_objects(text: &str) -> String {
    sort_lines(&text.trim().trim_matches(['[', ']']).replace("},{", "}\n{"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(command: &str, stdout: &str) -> String {
        let args: Vec<_> = command.split(' ').map(str::to_owned).collect();
        mask(&args, &Output { stdout: stdout.to_owned(), stderr: String::new(), code: Some(0) }).stdout
    }

    #[test]
    fn what_may_differ_is_hidden() {
        #[track_caller]
        fn check(command: &str, one: &str, other: &str) {
            assert_eq!(masked(command, one), masked(command, other));
        }
        check("get a -w json", r#"{"raft_term":2},"count":1"#, r#"{"raft_term":31},"count":1"#);
        check(
            "endpoint status",
            "127.0.0.1:1, a7, 3.6.16, 3.6.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 5, 5, , , false\n",
            "127.0.0.1:1, a7, 3.6.9, 3.6.0, 1.2 MB, 16 kB, 0%, 2.1 GB, true, false, 3, 15, 15, , , false\n",
        );
        check(
            "snapshot status f -w table",
            "| HASH | REVISION | TOTAL SIZE |\n| 12ab | 7 | 20 kB |\n",
            "| HASH | REVISION | TOTAL SIZE |\n| cd12ab34 | 7 | 1.2 MB |\n",
        );
        check("endpoint health", "a is healthy: took = 1.5ms\nb is bad\n", "b is bad\na is healthy: took = 900µs\n");
        check(
            "endpoint status -w table",
            "+--+\n| ENDPOINT | IS LEADER |\n+--+\n| a | true |\n| b | false |\n",
            "+-----+\n| ENDPOINT | IS LEADER |\n+----+\n| a |   false |\n| b | true |\n",
        );
        check(
            "endpoint health -w json",
            r#"[{"endpoint":"a","took":"2ms"},{"endpoint":"b","took":"1ms"}]"#,
            r#"[{"endpoint":"b","took":"2ms"},{"endpoint":"a","took":"1ms"}]"#,
        );
    }

    #[test]
    fn what_must_agree_stays_visible() {
        #[track_caller]
        fn check(command: &str, one: &str, other: &str) {
            assert_ne!(masked(command, one), masked(command, other));
        }
        check("get a -w json", r#"{"revision":2}"#, r#"{"revision":3}"#);
        check("get a -w json", r#"{"cluster_id":2}"#, r#"{"cluster_id":3}"#);
        check("get a -w json", r#""mod_revision":2,"version":1"#, r#""mod_revision":2,"version":2"#);
        check("get a -w json", r#"{"raft_term":2}"#, "{}");
        check("get version", "version\n3.6.1\n", "version\n3.6.2\n");
        check("put a 1 took", "took = 1ms\n", "took = 2ms\n");
        let status = "127.0.0.1:1, a7, 3.6.16, 20 kB, true, false, 2, 5, 5, \n";
        check("endpoint status", status, "127.0.0.1:1, a8, 3.6.16, 20 kB, true, false, 2, 5, 5, \n");
        check("endpoint status", status, "127.0.0.1:1, a7, , 20 kB, true, false, 2, 5, 5, \n");
        check("endpoint status", status, "127.0.0.1:1, a7, 3.6.16, 20 kB, false, false, 2, 5, 5, \n");
        check("endpoint status", status, "127.0.0.1:1, a7, 3.6.16, 20 kB, true, false, 2, 5, 5, no leader\n");
        let saved = "| HASH | REVISION | TOTAL SIZE |\n| 12ab | 7 | 20 kB |\n";
        check("snapshot status f -w table", saved, "| HASH | REVISION | TOTAL SIZE |\n| 12ab | 8 | 20 kB |\n");
        check("snapshot status f -w table", saved, "| HASH | REVISION | TOTAL SIZE |\n| | 7 | 20 kB |\n");
        check("endpoint status -w json", r#""leader":7"#, r#""leader":0"#);
        check("member list", "1, started, a, b, c, false\n", "1, started, a, b, c, true\n");
    }
}
