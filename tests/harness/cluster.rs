//! Clusters of real processes on loopback, in a temporary directory that goes with them.
//!
//! A member is ready when it logged etcd's line "ready to serve client requests" since its last start and says that it
//! is healthy. When a test fails, the end of each member's log goes to stderr; with `DETCD_KEEP` set the files stay.
use super::{
    binaries::{Kind, Peers, detcd},
    certificates::Certificates,
    files,
    http::{self, Site},
    ports::{Address, Addresses},
    process::Process,
};
use std::{
    env,
    fs::{File, OpenOptions, read_to_string},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    thread::{panicking, sleep},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Within this a started member must serve, on a machine that is busy with other tests too.
pub const READY_BOUND: Duration = Duration::from_secs(30);
/// etcd hands leadership over first, which may take its request timeout.
pub const STOP_BOUND: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_LINES: usize = 12;

#[derive(Debug)]
pub struct Cluster {
    pub members: Vec<Member>,
    binary: PathBuf,
    certificates: Option<Arc<Certificates>>,
    // Dropped after the members: fields drop in order.
    dir: TempDir,
}

#[derive(Debug)]
pub struct Member {
    pub address: Address,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// Where its health is asked for.
    site: Site,
    /// Where in the log the latest start begins.
    log_start: u64,
    process: Option<Process>,
}

impl Cluster {
    /// `members` daemons under test, serving.
    pub fn start(members: usize) -> Cluster {
        Cluster::start_on(&detcd(), &Addresses::reserve(members))
    }

    /// The same with TLS everywhere.
    pub fn start_tls(members: usize, certificates: &Arc<Certificates>) -> Cluster {
        let mut cluster = Cluster::prepare_tls(&detcd(), &Addresses::reserve_tls(members), certificates);
        cluster.start_all();
        cluster
    }

    /// A cluster of either kind on given addresses: so that two, one after the other, have the same member ids.
    pub fn start_kind(kind: Kind, peers: &Peers, addresses: &Addresses) -> Cluster {
        Cluster::start_on(&peers.server(kind), addresses)
    }

    fn start_on(binary: &Path, addresses: &Addresses) -> Cluster {
        let mut cluster = Cluster::prepare(binary, addresses);
        cluster.start_all();
        cluster
    }

    /// The members, with nothing started yet.
    pub fn prepare(binary: &Path, addresses: &Addresses) -> Cluster {
        Cluster::build(binary, addresses, None)
    }

    pub fn prepare_tls(binary: &Path, addresses: &Addresses, certificates: &Arc<Certificates>) -> Cluster {
        Cluster::build(binary, addresses, Some(certificates.clone()))
    }

    fn build(binary: &Path, addresses: &Addresses, certificates: Option<Arc<Certificates>>) -> Cluster {
        let dir = files::temp_dir();
        let mut cluster = Cluster { members: Vec::new(), binary: binary.to_owned(), certificates, dir };
        for address in &addresses.members {
            let args = |data_dir: &Path| member_args(address, addresses, data_dir);
            cluster.members.push(cluster.build_member(address, args));
        }
        cluster
    }

    fn build_member(&self, address: &Address, args: impl FnOnce(&Path) -> Vec<String>) -> Member {
        let path = |kind: &str| self.dir.path().join(format!("{}.{kind}", address.name));
        let (data_dir, log) = (path("data"), path("log"));
        let certificates = self.certificates.as_deref();
        let own = args(&data_dir);
        let secure = certificates.map_or_else(Vec::new, Certificates::member_flags);
        let tls = certificates.map(|certificates| certificates.show(Some(&certificates.client)));
        Member {
            address: address.clone(),
            args: [own, secure].concat(),
            env: Vec::new(),
            site: Site { address: address.client, tls },
            data_dir,
            log,
            binary: self.binary.clone(),
            log_start: 0,
            process: None,
        }
    }

    /// One more member, not started yet, that learns from its environment, as `etcdctl member add` prints it, whom it
    /// joins.
    pub fn add(&mut self, address: &Address, joining: &[(String, String)]) -> &mut Member {
        let mut member = self.build_member(address, |data_dir| place_args(address, data_dir).to_vec());
        joining.iter().for_each(|(name, value)| member.add_env(name, value));
        self.members.push(member);
        self.members.last_mut().expect("just added")
    }

    /// Starts every member that is down, then waits until all serve: alone, the first could not.
    pub fn start_all(&mut self) {
        self.members.iter_mut().for_each(Member::launch);
        self.members.iter_mut().for_each(Member::wait_ready);
    }

    pub fn endpoints(&self) -> String {
        self.members.iter().map(|m| m.address.endpoint()).collect::<Vec<_>>().join(",")
    }

    /// What an `etcdctl` needs to get in.
    pub fn ctl_flags(&self) -> Vec<String> {
        let certificates = self.certificates.as_ref();
        certificates.map_or_else(Vec::new, |certificates| certificates.ctl_flags(Some(&certificates.client)))
    }

    pub fn member(&mut self, number: usize) -> &mut Member {
        &mut self.members[number]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if panicking() {
            self.members.iter().for_each(Member::show_log);
        }
        if env::var_os("DETCD_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir.path().display());
        }
    }
}

impl Member {
    pub fn add_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// With `--flag=value`, in place of what it had.
    pub fn set(&mut self, flag: &str, value: &str) {
        let start = format!("--{flag}=");
        self.args.retain(|arg| !arg.starts_with(&start));
        self.args.push(start + value);
    }

    pub fn site(&self) -> Site {
        self.site.clone()
    }

    /// Starts the process, if it is down; does not wait for it.
    pub fn launch(&mut self) {
        if self.process.is_some() {
            return;
        }
        let log = self.open_log().expect("the log opens");
        self.log_start = log.metadata().expect("the log's size").len();
        let mut command = Command::new(&self.binary);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("the log's handle")).stderr(log);
        let process = Process::spawn(command);
        self.process = Some(process.unwrap_or_else(|e| panic!("{} does not start: {e}", self.binary.display())));
    }

    #[track_caller]
    pub fn wait_ready(&mut self) {
        if let Err(why) = self.try_wait_ready(READY_BOUND) {
            self.show_log();
            panic!("{} does not serve: {why}", self.address.name);
        }
    }

    /// Waits until the member serves; the error says what it lacks.
    pub fn try_wait_ready(&mut self, bound: Duration) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let lacks = match self.process.as_mut().map(Process::ended) {
                None => return Err("it was not started".to_owned()),
                Some(Some(status)) => return Err(format!("it ended: {status}")),
                Some(None) if !self.log_text().contains("ready to serve client requests") => "no ready line",
                Some(None) if !self.healthy() => "not healthy",
                Some(None) => return Ok(()),
            };
            if start.elapsed() > bound {
                return Err(format!("{lacks} after {bound:?}"));
            }
            sleep(POLL);
        }
    }

    fn healthy(&self) -> bool {
        http::get(self.site(), "/health").is_ok_and(|response| response.status == 200)
    }

    /// What it logged since its latest start.
    pub fn log_text(&self) -> String {
        let text = read_to_string(&self.log).unwrap_or_default();
        text.get(self.log_start as usize..).unwrap_or_default().to_owned()
    }

    pub fn kill9(&mut self) {
        self.process.take().expect("a running member").kill9();
    }

    /// Stops it where it is, as it holds its locks and ports, until `resume`.
    pub fn pause(&mut self) {
        self.process.as_mut().expect("a running member").pause();
    }

    pub fn resume(&mut self) {
        self.process.as_mut().expect("a paused member").resume();
    }

    pub fn restart(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Asks it to stop with SIGTERM, and says how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.stop_with(libc::SIGTERM)
    }

    pub fn stop_with(&mut self, signal: i32) -> ExitStatus {
        let mut process = self.process.take().expect("a running member");
        process.signal(signal);
        process.wait(STOP_BOUND).unwrap_or_else(|| panic!("{} ignores signal {signal}", self.address.name))
    }

    /// How it ended by itself.
    pub fn wait_ended(&mut self, bound: Duration) -> Option<ExitStatus> {
        let status = self.process.as_mut().expect("a started member").wait(bound);
        self.process.take_if(|_| status.is_some());
        status
    }

    fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.log)
    }

    fn show_log(&self) {
        let text = self.log_text();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- the end of {}'s log", self.address.name);
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].iter().for_each(|line| eprintln!("{line}"));
    }
}

/// The flags that make a member of a static cluster.
pub fn member_args(address: &Address, addresses: &Addresses, data_dir: &Path) -> Vec<String> {
    let founding = [
        ("name", address.name.clone()),
        ("initial-advertise-peer-urls", address.peer_url()),
        ("initial-cluster", addresses.initial_cluster()),
        ("initial-cluster-state", "new".to_owned()),
        ("initial-cluster-token", "detcd-tests".to_owned()),
    ];
    [&place_args(address, data_dir)[..], &founding.map(flag)].concat()
}

/// Where a member is, on disk and on the network.
fn place_args(address: &Address, data_dir: &Path) -> [String; 4] {
    let client = address.client_url();
    [
        ("data-dir", data_dir.display().to_string()),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", address.peer_url()),
    ]
    .map(flag)
}

fn flag((name, value): (&str, String)) -> String {
    format!("--{name}={value}")
}
