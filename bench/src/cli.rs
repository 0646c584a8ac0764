//! The command line. What comes out of here is valid; what is wrong becomes one line and exit code 64.
use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    Failure,
    client::Endpoint,
    load::{Plan, Until, default_connections},
    workload::{Data, KEYS_MAX, KeyOrder, Workload},
};

/// What a user asked for. A new subcommand is a variant here, one in [`Arguments`], and an arm of `dispatch`.
#[derive(Debug)]
pub enum Command {
    Help(String),
    Load(LoadOptions),
    Compare(CompareOptions),
    Large(LargeOptions),
    Sim(SimOptions),
}

#[derive(Debug)]
pub struct LoadOptions {
    pub plan: Plan,
    pub json: bool,
}

#[derive(Debug, Clone)]
pub struct CompareOptions {
    pub competitors: Vec<Competitor>,
    pub members: usize,
    pub rounds: usize,
    pub rows: Vec<Row>,
    pub seconds: u64,
    pub warmup_seconds: u64,
    pub value_size: u32,
    pub keys: u64,
    /// Overrides [`default_connections`].
    pub connections: Option<u32>,
    pub dir: PathBuf,
    pub out: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct LargeOptions {
    pub competitors: Vec<Competitor>,
    pub rounds: usize,
    /// Bytes of all values together, in millions.
    pub data_mb: u64,
    pub value_size: u32,
    pub clients: u32,
    pub seconds: u64,
    pub dir: PathBuf,
    pub out: Option<PathBuf>,
}

impl LargeOptions {
    pub fn keys(&self) -> u64 {
        (self.data_mb * 1_000_000 / u64::from(self.value_size)).clamp(1, KEYS_MAX)
    }
}

#[derive(Debug, Clone)]
pub struct SimOptions {
    pub simulator: PathBuf,
    pub rounds: usize,
    pub out: Option<PathBuf>,
}

/// A binary that takes etcd's flags, and what the table calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Competitor {
    pub name: String,
    pub binary: PathBuf,
}

/// One measurement of a comparison: `put-100`, or `memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Load {
        workload: Workload,
        clients: u32,
    },
    /// What is resident after a fixed number of puts on a fresh cluster.
    Memory,
}

#[derive(Parser)]
#[command(name = "detcd-bench", version, about = "Measures any etcd endpoint, competitors in turns", long_about = None)]
struct Cli {
    #[command(subcommand)]
    arguments: Arguments,
}

#[derive(Subcommand)]
enum Arguments {
    /// Runs a closed loop of clients against servers that are up
    Load(LoadArguments),
    /// Starts clusters of several binaries in turns and prints how they compare
    Compare(CompareArguments),
    /// Measures one member with much data: restarts, checkpoints, snapshots, memory
    Large(LargeArguments),
    /// Measures how fast the simulator simulates
    Sim(SimArguments),
}

#[derive(Args)]
struct LoadArguments {
    /// The servers' client addresses; connections are spread over them
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true)]
    endpoints: Vec<Endpoint>,
    /// What each client does over and over
    #[arg(long, value_enum)]
    workload: Workload,
    /// How many calls are on their way at any time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Default: one a client up to 100, and at least one an endpoint
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,
    /// How long to measure
    #[arg(
        long,
        default_value_t = 5,
        conflicts_with = "total",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    seconds: u64,
    /// Measure exactly so many calls instead
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    total: Option<u64>,
    /// How long to run before measuring; with --total the default is 0
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3600))]
    warmup_seconds: Option<u64>,
    #[command(flatten)]
    data: DataArguments,
    /// Use every key in turn instead of one at random
    #[arg(long)]
    sequential: bool,
    /// The servers' processes, whose CPU time and memory are reported
    #[arg(long = "pid", num_args = 1.., value_delimiter = ',')]
    pids: Vec<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct CompareArguments {
    /// A binary with etcd's flags; give it several times, the first is compared with each other
    #[arg(long = "competitor", value_name = "NAME=PATH", required = true)]
    competitors: Vec<Competitor>,
    /// Members of a cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    members: u32,
    /// The table shows medians of so many rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// What to measure: WORKLOAD-CLIENTS or memory
    #[arg(
        long,
        value_name = "ROW,...",
        value_delimiter = ',',
        default_value = "put-1,put-100,put-1000,get-1,get-100,get-1000,memory"
    )]
    rows: Vec<Row>,
    /// How long to measure a row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How long to run a row before measuring it
    #[arg(long, default_value_t = 1, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3600))]
    warmup_seconds: u64,
    #[command(flatten)]
    data: DataArguments,
    /// Default: one a client up to 100, and at least one a member
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,
    /// Where the clusters' data goes, on a disk; default: the system's directory for temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the table there as well
    #[arg(long, value_name = "FILE.md")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct LargeArguments {
    /// A binary with etcd's flags; give it several times, the first is compared with each other
    #[arg(long = "competitor", value_name = "NAME=PATH", required = true)]
    competitors: Vec<Competitor>,
    /// The table shows medians of so many rounds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Bytes of all values together, in millions
    #[arg(long, default_value_t = 2_000, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    data_mb: u64,
    /// Bytes of a value
    #[arg(
        long,
        default_value_t = 1_024,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(1..=1_048_576)
    )]
    value_size: u32,
    /// How many clients put beside what is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// How long a load is that nothing else ends
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Where the data goes, on a disk; default: the system's directory for temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the table there as well
    #[arg(long, value_name = "FILE.md")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct SimArguments {
    /// The simulator's binary, as `cargo sim` builds it
    #[arg(long, default_value = "target/sim/detcd-sim")]
    simulator: PathBuf,
    /// The table shows medians of so many rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Write the table there as well
    #[arg(long, value_name = "FILE.md")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct DataArguments {
    /// Bytes of a value
    #[arg(
        long,
        default_value_t = 256,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(1..=1_048_576)
    )]
    value_size: u32,
    /// How many keys there are
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,
}

pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    match Cli::try_parse_from(arguments) {
        Ok(Cli { arguments: Arguments::Load(arguments) }) => Ok(Command::Load(arguments.into())),
        Ok(Cli { arguments: Arguments::Compare(arguments) }) => Ok(Command::Compare(arguments.try_into()?)),
        Ok(Cli { arguments: Arguments::Large(arguments) }) => Ok(Command::Large(arguments.try_into()?)),
        Ok(Cli { arguments: Arguments::Sim(SimArguments { simulator, rounds, out }) }) => {
            Ok(Command::Sim(SimOptions { simulator, rounds: rounds as usize, out }))
        }
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Command::Help(error.to_string())),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
                Err(Failure::Usage("no subcommand; see 'detcd-bench --help'".into()))
            }
            _ => Err(Failure::Usage(one_line(&error.to_string()))),
        },
    }
}

/// clap explains over several lines and repeats the usage; the first paragraph says it all.
fn one_line(error: &str) -> String {
    let paragraph = error.split("\n\n").next().unwrap_or(error);
    let words: Vec<_> = paragraph.strip_prefix("error: ").unwrap_or(paragraph).split_whitespace().collect();
    format!("{}; see 'detcd-bench --help'", words.join(" "))
}

impl From<LoadArguments> for LoadOptions {
    fn from(arguments: LoadArguments) -> LoadOptions {
        let endpoints = arguments.endpoints.len();
        let order = if arguments.sequential { KeyOrder::Sequential } else { KeyOrder::Scattered };
        let until = match arguments.total {
            Some(total) => Until::Total(total),
            None => Until::Elapsed(Duration::from_secs(arguments.seconds)),
        };
        let warmup = arguments.warmup_seconds.unwrap_or(if arguments.total.is_some() { 0 } else { 1 });
        let plan = Plan {
            endpoints: arguments.endpoints,
            workload: arguments.workload,
            clients: arguments.clients,
            connections: arguments.connections.unwrap_or_else(|| default_connections(arguments.clients, endpoints)),
            until,
            warmup: Duration::from_secs(warmup),
            data: Data::new(arguments.data.keys, order, arguments.data.value_size as usize),
            pids: arguments.pids,
        };
        LoadOptions { plan, json: arguments.json }
    }
}

impl TryFrom<CompareArguments> for CompareOptions {
    type Error = Failure;

    fn try_from(arguments: CompareArguments) -> Result<CompareOptions, Failure> {
        check_names(&arguments.competitors)?;
        if let Some(row) = repeated(arguments.rows.iter().map(Row::to_string)) {
            return Err(Failure::Usage(format!("--rows has '{row}' twice; leave one out")));
        }
        Ok(CompareOptions {
            competitors: arguments.competitors,
            members: arguments.members as usize,
            rounds: arguments.rounds as usize,
            rows: arguments.rows,
            seconds: arguments.seconds,
            warmup_seconds: arguments.warmup_seconds,
            value_size: arguments.data.value_size,
            keys: arguments.data.keys,
            connections: arguments.connections,
            dir: arguments.dir.unwrap_or_else(std::env::temp_dir),
            out: arguments.out,
        })
    }
}

impl TryFrom<LargeArguments> for LargeOptions {
    type Error = Failure;

    fn try_from(arguments: LargeArguments) -> Result<LargeOptions, Failure> {
        check_names(&arguments.competitors)?;
        let LargeArguments { competitors, rounds, data_mb, value_size, clients, seconds, dir, out } = arguments;
        let (rounds, dir) = (rounds as usize, dir.unwrap_or_else(std::env::temp_dir));
        Ok(LargeOptions { competitors, rounds, data_mb, value_size, clients, seconds, dir, out })
    }
}

fn check_names(competitors: &[Competitor]) -> Result<(), Failure> {
    match repeated(competitors.iter().map(|competitor| competitor.name.clone())) {
        Some(name) => {
            Err(Failure::Usage(format!("two competitors are named '{name}'; give each --competitor its own")))
        }
        None => Ok(()),
    }
}

fn repeated(names: impl Iterator<Item = String>) -> Option<String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone())
}

impl FromStr for Competitor {
    type Err = String;

    fn from_str(text: &str) -> Result<Competitor, String> {
        match text.split_once('=') {
            // The name becomes a cell of a Markdown table.
            Some((name, path)) if !name.is_empty() && !path.is_empty() && !name.contains(['|', '\n']) => {
                Ok(Competitor { name: name.into(), binary: path.into() })
            }
            _ => Err("expected NAME=PATH".into()),
        }
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Row, String> {
        if text == "memory" {
            return Ok(Row::Memory);
        }
        let (workload, clients) = text.rsplit_once('-').ok_or("expected WORKLOAD-CLIENTS or memory")?;
        let workload = Workload::from_str(workload, false).map_err(|_| format!("there is no workload '{workload}'"))?;
        match clients.parse() {
            Ok(clients @ 1..=100_000) => Ok(Row::Load { workload, clients }),
            _ => Err(format!("'{clients}' is not a number of clients")),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Row::Load { workload, clients } => write!(f, "{}-{clients}", workload.name()),
            Row::Memory => f.write_str("memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Command, Failure> {
        parse(std::iter::once("detcd-bench").chain(words.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn a_wrong_command_line_is_one_line() {
        #[track_caller]
        fn check(words: &str, expected: &str) {
            match parse_words(words) {
                Err(Failure::Usage(line)) => assert_eq!(line, format!("{expected}; see 'detcd-bench --help'")),
                other => panic!("{other:?}"),
            }
        }
        check("", "no subcommand");
        check("race", "unrecognized subcommand 'race'");
        check("load --workload put", "the following required arguments were not provided: --endpoints <HOST:PORT,...>");
        check(
            "load --workload put --endpoints a:1 --total 5 --seconds 5",
            "the argument '--total <TOTAL>' cannot be used with '--seconds <SECONDS>'",
        );
        check(
            "load --workload sit --endpoints a:1",
            "invalid value 'sit' for '--workload <WORKLOAD>' [possible values: put, get, serializable-get, mixed]",
        );
        check(
            "load --workload put --endpoints nowhere",
            "invalid value 'nowhere' for '--endpoints <HOST:PORT,...>': expected host:port",
        );
        check(
            "load --workload put --endpoints a:1 --clients 0",
            "invalid value '0' for '--clients <CLIENTS>': 0 is not in 1..=100000",
        );
        check("compare", "the following required arguments were not provided: --competitor <NAME=PATH>");
        check("compare --competitor etcd", "invalid value 'etcd' for '--competitor <NAME=PATH>': expected NAME=PATH");
        check(
            "compare --competitor a=b --rows put-many",
            "invalid value 'put-many' for '--rows <ROW,...>': 'many' is not a number of clients",
        );
    }

    #[test]
    fn what_is_given_twice_is_an_error() {
        let same_name = parse_words("compare --competitor a=b --competitor a=c").unwrap_err().to_string();
        assert_eq!(same_name, "two competitors are named 'a'; give each --competitor its own");
        let same_row = parse_words("compare --competitor a=b --rows put-1,put-1").unwrap_err().to_string();
        assert_eq!(same_row, "--rows has 'put-1' twice; leave one out");
    }

    #[test]
    fn rows_are_read_as_they_are_printed() {
        #[track_caller]
        fn check(text: &str, expected: Result<Row, &str>) {
            assert_eq!(text.parse::<Row>().as_ref().map_err(String::as_str), expected.as_ref().map_err(|line| *line));
            if let Ok(row) = expected {
                assert_eq!(row.to_string(), text);
            }
        }
        check("memory", Ok(Row::Memory));
        check("put-1000", Ok(Row::Load { workload: Workload::Put, clients: 1000 }));
        check("serializable-get-1", Ok(Row::Load { workload: Workload::SerializableGet, clients: 1 }));
        check("put", Err("expected WORKLOAD-CLIENTS or memory"));
        check("fly-1", Err("there is no workload 'fly'"));
        check("put-0", Err("'0' is not a number of clients"));
    }

    #[test]
    fn connections_follow_the_clients() {
        #[track_caller]
        fn check(words: &str, expected: u32) {
            match parse_words(&format!("load --workload put --endpoints a:1,b:1,c:1 {words}")) {
                Ok(Command::Load(options)) => assert_eq!(options.plan.connections, expected),
                other => panic!("{other:?}"),
            }
        }
        check("--clients 1", 3);
        check("--clients 50", 50);
        check("--clients 1000", 100);
        check("--clients 1000 --connections 7", 7);
    }

    #[test]
    fn a_run_of_a_fixed_total_has_no_warm_up_unless_asked() {
        #[track_caller]
        fn check(words: &str, until: Until, warmup_s: u64) {
            match parse_words(&format!("load --workload put --endpoints a:1 {words}")) {
                Ok(Command::Load(options)) => {
                    assert_eq!(options.plan.until, until);
                    assert_eq!(options.plan.warmup.as_secs(), warmup_s);
                }
                other => panic!("{other:?}"),
            }
        }
        check("", Until::Elapsed(Duration::from_secs(5)), 1);
        check("--total 9", Until::Total(9), 0);
        check("--total 9 --warmup-seconds 2", Until::Total(9), 2);
    }

    #[test]
    fn help_is_not_an_error() {
        assert!(matches!(parse_words("--help"), Ok(Command::Help(text)) if text.contains("compare")));
        assert!(matches!(parse_words("load --help"), Ok(Command::Help(text)) if text.contains("--endpoints")));
    }
}
