//! etcd's flags, and the environment variables that stand for them, as a node's configuration.
//!
//! As in etcd: `--name value`, `--name=value` and a single dash are the same; `ETCD_NAME` is the flag `--name`; a flag
//! given both ways is an error; an unknown `ETCD_` variable only earns a warning, since Kubernetes sets such.
mod foreign;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
    time::Duration,
};

use detcd_core::limits;
use detcd_node::config::{ClusterState, Config, Founder, KeepAlive, parse_url};
use tracing::Level;

use crate::{
    log::LogOptions,
    tls::TlsFlags,
    usage::{FLAGS, Flag, Kind},
};

#[derive(Debug)]
pub struct Flags {
    pub config: Config,
    pub tls: TlsFlags,
    pub log: LogOptions,
    /// For the log, once there is one.
    pub warnings: Vec<String>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Wanted {
    Run(Box<Flags>),
    Help,
    Version,
}

type Result<T> = std::result::Result<T, String>;

impl Flags {
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Wanted> {
        let (mut values, mut last) = (Values::default(), None::<String>);
        let mut args = args.into_iter().map(utf8);
        while let Some(arg) = args.next() {
            let arg = arg?;
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|name| !name.is_empty())
            else {
                return Err(not_a_flag(&arg, last.as_deref()));
            };
            last = Some(name.to_owned());
            match name {
                "help" | "h" => return Ok(Wanted::Help),
                "version" => return Ok(Wanted::Version),
                _ => values.flag(name, &mut args)?,
            }
        }
        for (key, value) in env {
            if let (Ok(key), Ok(value)) = (utf8(key), utf8(value)) {
                values.variable(&key, value)?;
            }
        }
        values.into_flags().map(|flags| Wanted::Run(Box::new(flags)))
    }
}

/// After a switch it may have been meant as its value.
fn not_a_flag(arg: &str, last: Option<&str>) -> String {
    match last.and_then(find_or_former) {
        Some(Flag { name, kind: Kind::Switch, .. }) if ["true", "false"].contains(&arg) => {
            format!("{arg:?} stands alone; write --{name}={arg}")
        }
        _ => format!("{arg:?} is not a flag; etcd takes flags only, see --help"),
    }
}

fn utf8(text: OsString) -> Result<String> {
    text.into_string().map_err(|text| format!("{text:?} is not valid UTF-8; flags and their values must be"))
}

/// Milliseconds of what Go writes as 90s or 1h30m0s.
fn parse_time(mut text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    if text == "0" {
        return Some(0);
    }
    loop {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let (unit, rest) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        if rest.is_empty() {
            return Some(total);
        }
        text = rest;
    }
}

/// What is wrong with a URL that cannot be used.
fn problem_of(url: &str) -> String {
    let example = "a URL such as http://127.0.0.1:2379";
    let Some((scheme, rest)) = url.split_once("://") else { return format!("is not {example}") };
    let port = rest.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    match port {
        _ if !["http", "https"].contains(&scheme) => format!("is of {scheme}; expected http or https"),
        _ if rest.contains('/') => format!("has a path; expected {example}"),
        None => format!("has no port; expected {example}"),
        Some(port) if port.parse::<u16>().is_err() => format!("has port {port:?}; expected a number up to 65535"),
        Some(_) => format!("has no host; expected {example}"),
    }
}

#[derive(Default)]
struct Values {
    given: BTreeMap<&'static str, String>,
    /// Those of `given` that the environment gave.
    variables: BTreeSet<&'static str>,
    warnings: Vec<String>,
}

fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Flags that were experiments once: as in etcd, they may still be called so.
const ONCE_EXPERIMENTAL: [&str; 2] = ["watch-progress-notify-interval", "peer-skip-client-san-verification"];

fn find_or_former(name: &str) -> Option<&'static Flag> {
    let former = || name.strip_prefix("experimental-").filter(|name| ONCE_EXPERIMENTAL.contains(name));
    find(name).or_else(|| find(former()?))
}

/// A flag that is etcd's only, or nobody's.
fn foreign_flag(name: &str, inline: Option<String>, rest: &mut dyn Iterator<Item = Result<String>>) -> Result<()> {
    let Some(default) = foreign::default_of(name) else {
        return Err(format!("unknown flag --{name}; --help lists those that there are"));
    };
    let value = match inline {
        Some(value) => value,
        None if ["true", "false"].contains(&default) => "true".into(),
        None => rest.next().ok_or_else(|| format!("--{name} needs a value"))??,
    };
    foreign::refuse(&format!("--{name}"), default, &value).map_or(Ok(()), Err)
}

impl Values {
    fn flag(&mut self, arg: &str, rest: &mut dyn Iterator<Item = Result<String>>) -> Result<()> {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg, None),
        };
        let Some(flag) = find_or_former(name) else { return foreign_flag(name, inline, rest) };
        let value = match (inline, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Switch) => "true".to_owned(),
            (None, _) => rest.next().ok_or_else(|| format!("--{name} needs a value: {}", flag.help))??,
        };
        self.given.insert(flag.name, value);
        Ok(())
    }

    fn variable(&mut self, key: &str, value: String) -> Result<()> {
        let Some(name) = key.strip_prefix("ETCD_") else { return Ok(()) };
        let name = name.to_lowercase().replace('_', "-");
        match find_or_former(&name) {
            Some(flag) if self.given.contains_key(flag.name) => Err(format!(
                "conflicting environment variable {key:?} is shadowed by the flag --{name}; unset one of them"
            )),
            Some(flag) if !value.is_empty() => {
                self.variables.insert(flag.name);
                self.given.insert(flag.name, value);
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                let warning = match foreign::default_of(&name) {
                    Some(_) if value.is_empty() => None,
                    Some(default) => foreign::refuse(key, default, &value).map(|what| format!("ignored: {what}")),
                    None => Some(format!("unrecognized environment variable {key}={value}")),
                };
                self.warnings.extend(warning);
                Ok(())
            }
        }
    }

    fn text(&self, name: &str) -> String {
        let flag = find(name).expect("only flags of the table are asked for");
        self.given.get(name).cloned().unwrap_or_else(|| flag.default.to_owned())
    }

    /// The flag as whoever set it knows it.
    fn shown(&self, name: &str) -> String {
        match self.variables.contains(name) {
            true => format!("ETCD_{}", name.to_uppercase().replace('-', "_")),
            false => format!("--{name}"),
        }
    }

    fn number(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        let text = self.text(name);
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("{}={text:?} is not a number from {least} to {most}", self.shown(name)))
    }

    fn switch(&self, name: &str) -> Result<bool> {
        match self.text(name).as_str() {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(true),
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
            other => Err(format!("{}={other:?} is neither true nor false", self.shown(name))),
        }
    }

    fn urls(&self, name: &str) -> Result<Vec<String>> {
        let (text, shown) = (self.text(name), self.shown(name));
        let urls = text.split(',').map(str::trim).map(|url| match parse_url(url) {
            Some(_) => Ok(url.to_owned()),
            None => Err(format!("{shown}: {url:?} {}", problem_of(url))),
        });
        urls.collect()
    }

    fn into_flags(mut self) -> Result<Flags> {
        self.refuse_unimplemented()?;
        let given = |name| self.given.contains_key(name);
        if given("listen-client-urls") && !given("advertise-client-urls") {
            return Err("--listen-client-urls needs --advertise-client-urls: where others reach this member".into());
        }
        let name = self.text("name");
        let data_dir = match self.text("data-dir") {
            dir if dir.is_empty() => format!("{name}.etcd"),
            dir => dir,
        };
        let wal_dir = Some(self.text("wal-dir")).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        self.check_listeners()?;
        let (heartbeat_ms, election_ms) = self.timing()?;
        let config = Config {
            data_dir: data_dir.into(),
            wal_dir,
            listen_client_urls: self.urls("listen-client-urls")?,
            listen_peer_urls: self.urls("listen-peer-urls")?,
            advertise_client_urls: self.urls("advertise-client-urls")?,
            advertise_peer_urls: self.urls("initial-advertise-peer-urls")?,
            initial_cluster: self.initial_cluster(&name)?,
            initial_cluster_token: self.text("initial-cluster-token"),
            heartbeat_ms,
            election_ms,
            request_bytes_max: self.number("max-request-bytes", 1, limits::GRPC_MESSAGE_BYTES_MAX as u64)? as usize,
            txn_ops_max: self.number("max-txn-ops", 1, 1 << 20)? as usize,
            watch_progress_ms: self.time("watch-progress-notify-interval", 100)?,
            keep_alive: self.keep_alive()?,
            long_reads: std::thread::available_parallelism().map_or(limits::LONG_READS, usize::from),
            initial_cluster_state: self.cluster_state()?,
            segment_bytes: limits::SEGMENT_BYTES,
            segments_kept: self.kept("max-wals")?,
            snapshots_kept: self.kept("max-snapshots")?,
            checkpoint_bytes: limits::CHECKPOINT_BYTES,
            checkpoint_entries: self.checkpoint_entries()?,
            tail_bytes: limits::TAIL_BYTES,
            outputs_max: limits::OUTPUTS_MAX,
            name,
        };
        let (tls, log) = (self.tls(&config)?, self.log()?);
        Ok(Flags { config, tls, log, warnings: self.warnings })
    }

    /// One address cannot be for both.
    fn check_listeners(&self) -> Result<()> {
        let (clients, peers) = (self.urls("listen-client-urls")?, self.urls("listen-peer-urls")?);
        match clients.iter().find(|url| peers.contains(url)) {
            Some(url) => {
                Err(format!("--listen-client-urls and --listen-peer-urls both have {url}; give one another port"))
            }
            None => Ok(()),
        }
    }

    fn timing(&self) -> Result<(u64, u64)> {
        let heartbeat = self.number("heartbeat-interval", 1, 50_000)?;
        let election = self.number("election-timeout", 1, 50_000)?;
        if election < 5 * heartbeat {
            return Err(format!(
                "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
            ));
        }
        Ok((heartbeat, election))
    }

    fn initial_cluster(&self, name: &str) -> Result<Vec<Founder>> {
        let text = match self.given.get("initial-cluster") {
            Some(text) => text.clone(),
            None => {
                let own = self.urls("initial-advertise-peer-urls")?;
                own.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",")
            }
        };
        let mut founders: Vec<Founder> = Vec::new();
        for part in text.split(',') {
            let parsed = part.trim().split_once('=').filter(|(_, url)| parse_url(url).is_some());
            let (name, url) = parsed
                .ok_or_else(|| format!("--initial-cluster: {part:?} is not of the form name=http://host:port"))?;
            match founders.iter_mut().find(|founder| founder.name == name) {
                Some(founder) => founder.peer_urls.push(url.to_owned()),
                None => founders.push(Founder { name: name.to_owned(), peer_urls: vec![url.to_owned()] }),
            }
        }
        founders.iter_mut().for_each(|founder| founder.peer_urls.sort());
        let urls: Vec<_> = founders.iter().flat_map(|founder| &founder.peer_urls).collect();
        let distinct: BTreeSet<_> = urls.iter().collect();
        if distinct.len() < urls.len() {
            return Err(format!("--initial-cluster={text} gives one URL twice; each belongs to one member"));
        }
        Ok(founders)
    }

    /// In milliseconds.
    fn time(&self, name: &str, least: u64) -> Result<u64> {
        let text = self.text(name);
        let wrong = || format!("{}={text:?} is not a time such as 5s or 10m, {least}ms at least", self.shown(name));
        parse_time(&text).filter(|ms| *ms >= least).ok_or_else(wrong)
    }

    fn keep_alive(&self) -> Result<KeepAlive> {
        let time = |name| self.time(name, 0).map(Duration::from_millis);
        let (interval, timeout) = (time("grpc-keepalive-interval")?, time("grpc-keepalive-timeout")?);
        // As in etcd, where zero leaves it to its gRPC library, whose defaults are the same; as is the least interval.
        if interval.is_zero() || timeout.is_zero() {
            return Ok(KeepAlive::DEFAULT);
        }
        Ok(KeepAlive { interval: interval.max(Duration::from_secs(1)), timeout })
    }

    fn log(&self) -> Result<LogOptions> {
        let level = match self.text("log-level").as_str() {
            "debug" => Level::DEBUG,
            "info" => Level::INFO,
            "warn" => Level::WARN,
            "error" | "panic" | "fatal" => Level::ERROR,
            other => return Err(format!("--log-level={other:?} is none of debug, info, warn, error, panic, fatal")),
        };
        let json = match self.text("log-format").as_str() {
            "json" => true,
            "console" => false,
            other => return Err(format!("--log-format={other:?} is neither json nor console")),
        };
        let stdout = match self.text("log-outputs").as_str() {
            "default" | "stderr" => false,
            "stdout" => true,
            other => {
                return Err(format!("--log-outputs={other:?}: only default, stderr and stdout are implemented yet"));
            }
        };
        match self.text("logger").as_str() {
            "zap" => Ok(LogOptions { level, json, stdout }),
            other => Err(format!("--logger={other:?}: as in etcd, only zap is accepted")),
        }
    }

    /// Flags that are known but not obeyed yet may say what is true anyway, and nothing else.
    fn cluster_state(&self) -> Result<ClusterState> {
        match self.text("initial-cluster-state").as_str() {
            "new" => Ok(ClusterState::New),
            "existing" => Ok(ClusterState::Existing),
            other => Err(format!("--initial-cluster-state={other:?} is neither new nor existing")),
        }
    }

    /// As in etcd, 0 keeps all.
    fn kept(&self, name: &str) -> Result<usize> {
        Ok(self.number(name, 0, u64::from(u32::MAX))? as usize)
    }

    /// None unless it is given: by default, bytes decide when a checkpoint is due.
    fn checkpoint_entries(&self) -> Result<Option<u64>> {
        let given = self.given.contains_key("snapshot-count");
        given.then(|| self.number("snapshot-count", 1, u64::MAX)).transpose()
    }

    /// Flags that are known but not obeyed yet may say what is true anyway, and nothing else.
    fn refuse_unimplemented(&self) -> Result<()> {
        for name in ["pre-vote", "strict-reconfig-check"] {
            if !self.switch(name)? {
                return Err(format!("--{name}=false is not implemented: it is always on"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
