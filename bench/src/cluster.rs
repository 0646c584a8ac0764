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

use detcd_node::proto::etcdserverpb::RangeRequest;
use tempfile::TempDir;

use crate::{
    Failure,
    client::{Connection, Endpoint},
    os,
};

const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// One try to read from a member that may not serve yet.
const PROBE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// Below the ports that Linux picks for outgoing connections: a member that dials another must not take a third's.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

pub struct Cluster {
    // Dropped in this order: first the processes, then the files under them.
    members: Vec<Member>,
    _dir: TempDir,
}

impl Cluster {
    /// Starts the members in a new directory below `dir`, and returns once each of them serves linearizable reads.
    pub async fn start(binary: &Path, size: usize, dir: &Path) -> Result<Cluster, Failure> {
        let dir = tempfile::Builder::new().prefix("detcd-bench-").tempdir_in(dir).map_err(|error| {
            Failure::Run(format!("cannot make a directory in {}: {error}; give another --dir", dir.display()))
        })?;
        let members = free_ports(size * 2)?.chunks(2).enumerate().map(|(i, ports)| Address::new(i, ports)).collect();
        let members = start_members(binary, members, dir.path())?;
        let mut cluster = Cluster { members, _dir: dir };
        for member in &mut cluster.members {
            member.wait_until_healthy().await?;
        }
        Ok(cluster)
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
    async fn wait_until_healthy(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + HEALTHY_WITHIN;
        let endpoint = self.address.client();
        loop {
            self.check_running()?;
            let failure = match tokio::time::timeout(PROBE, probe(&endpoint)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Run(format!("no answer from {endpoint}")),
            };
            if Instant::now() >= deadline {
                let within = HEALTHY_WITHIN.as_secs();
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

fn start_members(binary: &Path, addresses: Vec<Address>, dir: &Path) -> Result<Vec<Member>, Failure> {
    let all = addresses.clone();
    let start = |address: Address| {
        let log = dir.join(format!("{}.log", address.name));
        let failed = |error| Failure::Run(format!("cannot start {}: {error}; give a path that runs", binary.display()));
        let output = fs::File::create(&log).map_err(failed)?;
        let mut command = Command::new(binary);
        command.args(flags(&address, &all, dir)).stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(failed)?).stderr(output);
        // Both competitors take settings from there, and only what stands above may count.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(name);
        }
        os::die_with_parent(&mut command);
        let process = command.spawn().map_err(failed)?;
        Ok(Member { address, process, log })
    };
    addresses.into_iter().map(start).collect()
}

fn flags(member: &Address, all: &[Address], dir: &Path) -> Vec<String> {
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
        ("--initial-cluster-state", "new".into()),
        ("--initial-cluster-token", "detcd-bench".into()),
        ("--log-level", "error".into()),
    ];
    flags.into_iter().flat_map(|(name, value)| [name.to_string(), value]).collect()
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
        let flags = flags(&all[1], &all, Path::new("/data"));
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
