//! A fresh cluster of one binary on this machine: members as child processes, etcd's flags, loopback ports.
//!
//! A cluster that is dropped leaves nothing behind: its members are killed and its directory is removed. The members
//! also die with this process, whatever ends it.
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use detcd_node::proto::etcdserverpb::{MemberAddRequest, RangeRequest, StatusRequest};
use tempfile::TempDir;

use crate::{
    Failure,
    client::{Connection, Endpoint},
    os,
};

const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// With much data.
const RESTARTED_WITHIN: Duration = Duration::from_secs(600);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// One try to read from a member that may not serve yet.
const PROBE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// Below the ports that Linux picks for outgoing connections: a member that dials another must not take a third's.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

pub struct Cluster {
    // Dropped in this order: first the processes, then the files under them.
    members: Vec<Member>,
    dir: TempDir,
    binary: PathBuf,
    environment: Environment,
}

/// Settings that a competitor takes from its environment, as etcd does, and may not know.
type Environment = Vec<(&'static str, String)>;

impl Cluster {
    /// Starts the members in a new directory below `dir`, and returns once each of them serves linearizable reads.
    pub async fn start(binary: &Path, size: usize, dir: &Path) -> Result<Cluster, Failure> {
        Cluster::start_with(binary, size, dir, Vec::new()).await
    }

    pub async fn start_with(
        binary: &Path,
        size: usize,
        dir: &Path,
        environment: Environment,
    ) -> Result<Cluster, Failure> {
        let dir = tempfile::Builder::new().prefix("detcd-bench-").tempdir_in(dir).map_err(|error| {
            Failure::Run(format!("cannot make a directory in {}: {error}; give another --dir", dir.display()))
        })?;
        let all: Vec<_> =
            free_ports(size * 2)?.chunks(2).enumerate().map(|(i, ports)| Address::new(i, ports)).collect();
        let mut cluster = Cluster { members: Vec::new(), dir, binary: binary.to_owned(), environment };
        for address in &all {
            cluster.members.push(cluster.run(address, &all, "new")?);
        }
        for member in &mut cluster.members {
            member.wait_until_healthy(HEALTHY_WITHIN).await?;
        }
        Ok(cluster)
    }

    /// Starts the process of a member.
    fn run(&self, address: &Address, all: &[Address], state: &str) -> Result<Member, Failure> {
        let (binary, dir) = (&self.binary, self.dir.path());
        let log = dir.join(format!("{}.log", address.name));
        let failed = |error| Failure::Run(format!("cannot start {}: {error}; give a path that runs", binary.display()));
        let output = fs::File::create(&log).map_err(failed)?;
        let mut command = Command::new(binary);
        command.args(flags(address, all, state, dir)).stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(failed)?).stderr(output);
        // Both competitors take settings from there, and only what stands above and in `environment` may count.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        os::die_with_parent(&mut command);
        let process = command.spawn().map_err(failed)?;
        Ok(Member { address: address.clone(), process, log })
    }

    /// Ends the first member's process and starts it again on its data. How long it took to end, and to serve again.
    pub async fn restart(&mut self, end: End, environment: Environment) -> Result<(Duration, Duration), Failure> {
        self.check_running()?;
        self.environment = environment;
        let all: Vec<_> = self.members.iter().map(|member| member.address.clone()).collect();
        let begun = Instant::now();
        self.members[0].end(end).await?;
        let ended = Instant::now();
        self.members[0] = self.run(&all[0], &all, "new")?;
        self.members[0].wait_until_healthy(RESTARTED_WITHIN).await?;
        Ok((ended - begun, ended.elapsed()))
    }

    /// Adds a member that listens only, and returns how long it took to have what the others had when it began. It is
    /// gone when this returns, but for its place in the membership.
    pub async fn feed(&mut self) -> Result<Duration, Failure> {
        let mut first = Connection::open(&self.members[0].address.client()).await?;
        let address = Address::new(self.members.len(), &free_ports(2)?);
        let failed = |status: tonic::Status| Failure::Run(format!("cannot add a member: {}", status.message()));
        let peer_ur_ls = vec![format!("http://{}", address.peer())];
        let added = MemberAddRequest { peer_ur_ls, is_learner: true };
        first.cluster.member_add(added).await.map_err(failed)?;
        let reached = first.maintenance.status(StatusRequest {}).await.map_err(failed)?.into_inner().raft_applied_index;
        let mut all: Vec<_> = self.members.iter().map(|member| member.address.clone()).collect();
        all.push(address.clone());
        let begun = Instant::now();
        let mut member = self.run(&address, &all, "existing")?;
        loop {
            member.check_running()?;
            let applied = tokio::time::timeout(PROBE, applied(&address.client())).await;
            if matches!(applied, Ok(Ok(index)) if index >= reached) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > RESTARTED_WITHIN {
                let within = RESTARTED_WITHIN.as_secs();
                return Err(Failure::Run(format!("{} has not caught up after {within} s", address.name)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.members.iter().map(|member| member.address.client()).collect()
    }

    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.process.id()).collect()
    }

    /// An error if a member has stopped, with the end of its log.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        self.members.iter_mut().try_for_each(Member::check_running)
    }

    /// Asks the members to stop; those that do not in time are killed.
    pub async fn stop(mut self) -> Result<(), Failure> {
        self.check_running()?;
        for member in &self.members {
            os::terminate(member.process.id())
                .map_err(|error| Failure::Run(format!("cannot stop {}: {error}", member.address.name)))?;
        }
        let deadline = Instant::now() + STOPPED_WITHIN;
        while Instant::now() < deadline {
            if self.members.iter_mut().all(|member| member.exit_status().is_some()) {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// How a process comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is asked to.
    Stop,
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    name: String,
    client_port: u16,
    peer_port: u16,
}

impl Address {
    fn new(index: usize, ports: &[u16]) -> Address {
        Address { name: format!("m{}", index + 1), client_port: ports[0], peer_port: ports[1] }
    }

    fn client(&self) -> Endpoint {
        Endpoint::loopback(self.client_port)
    }

    fn peer(&self) -> Endpoint {
        Endpoint::loopback(self.peer_port)
    }
}

struct Member {
    address: Address,
    process: Child,
    log: PathBuf,
}

impl Member {
    async fn end(&mut self, how: End) -> Result<(), Failure> {
        let ask = match how {
            End::Stop => os::terminate(self.process.id()),
            End::Kill => self.process.kill(),
        };
        ask.map_err(|error| Failure::Run(format!("cannot end {}: {error}", self.address.name)))?;
        let deadline = Instant::now() + RESTARTED_WITHIN;
        while self.exit_status().is_none() {
            if Instant::now() >= deadline {
                return Err(Failure::Run(format!("{} does not end", self.address.name)));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn wait_until_healthy(&mut self, within: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + within;
        let endpoint = self.address.client();
        loop {
            self.check_running()?;
            let failure = match tokio::time::timeout(PROBE, probe(&endpoint)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Run(format!("no answer from {endpoint}")),
            };
            if Instant::now() >= deadline {
                let within = within.as_secs();
                let place = format!("{} is not healthy after {within} s", self.address.name);
                return Err(failure.at(place));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn check_running(&mut self) -> Result<(), Failure> {
        let Some(status) = self.exit_status() else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("nothing");
        Err(Failure::Run(format!("{} stopped with {status}; the end of its log: {last}", self.address.name)))
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("a child can be waited for")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn flags(member: &Address, all: &[Address], state: &str, dir: &Path) -> Vec<String> {
    let (client, peer) = (format!("http://{}", member.client()), format!("http://{}", member.peer()));
    let cluster: Vec<_> = all.iter().map(|member| format!("{}=http://{}", member.name, member.peer())).collect();
    let flags = [
        ("--name", member.name.clone()),
        ("--data-dir", dir.join(&member.name).display().to_string()),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer),
        ("--initial-cluster", cluster.join(",")),
        ("--initial-cluster-state", state.into()),
        ("--initial-cluster-token", "detcd-bench".into()),
        ("--log-level", "error".into()),
    ];
    flags.into_iter().flat_map(|(name, value)| [name.to_string(), value]).collect()
}

/// How far a member's state is.
async fn applied(endpoint: &Endpoint) -> Result<u64, Failure> {
    let mut connection = Connection::open(endpoint).await?;
    let status = connection.maintenance.status(StatusRequest {}).await;
    let status = status.map_err(|status| Failure::Run(format!("{endpoint} answers {}", status.message())))?;
    Ok(status.into_inner().raft_applied_index)
}

/// A linearizable read: there is a leader, and this member hears it.
async fn probe(endpoint: &Endpoint) -> Result<(), Failure> {
    let mut connection = Connection::open(endpoint).await?;
    let request = RangeRequest { key: "health".into(), ..Default::default() };
    let response = connection.kv.range(request).await;
    response.map(drop).map_err(|status| Failure::Run(format!("{endpoint} answers {}", status.message())))
}

/// Ports that nobody listens on. They are all held until the last is found, so they differ.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    // Where to begin is this process's own: two runs at a time do not try the same ports at once.
    let begin = std::process::id() as usize % PORTS.len();
    let candidates = PORTS.cycle().skip(begin).take(PORTS.len());
    let bound = candidates.filter_map(|port| Some((TcpListener::bind(("127.0.0.1", port)).ok()?, port)));
    let held: Vec<_> = bound.take(count).collect();
    if held.len() < count {
        return Err(Failure::Run(format!("no {count} free ports on 127.0.0.1 in {PORTS:?}; stop other servers")));
    }
    Ok(held.into_iter().map(|(_, port)| port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_get_etcds_flags() {
        let all = [Address::new(0, &[1, 2]), Address::new(1, &[3, 4])];
        let flags = flags(&all[1], &all, "new", Path::new("/data"));
        let lines: Vec<_> = flags.chunks(2).map(|pair| pair.join(" ")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        --name m2
        --data-dir /data/m2
        --listen-client-urls http://127.0.0.1:3
        --advertise-client-urls http://127.0.0.1:3
        --listen-peer-urls http://127.0.0.1:4
        --initial-advertise-peer-urls http://127.0.0.1:4
        --initial-cluster m1=http://127.0.0.1:2,m2=http://127.0.0.1:4
        --initial-cluster-state new
        --initial-cluster-token detcd-bench
        --log-level error
        ");
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(20).unwrap();
        assert!(ports.iter().all(|port| PORTS.contains(port)));
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[tokio::test]
    async fn a_member_that_stops_is_reported_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Cluster::start(Path::new("/bin/false"), 1, dir.path()).await.err().unwrap().to_string();
        assert_eq!(failure, "m1 stopped with exit status: 1; the end of its log: nothing");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
