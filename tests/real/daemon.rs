//! The daemon between start and stop: what it says of itself, over HTTP and gRPC, and how it ends.
use super::{put_keys, runtime};
use detcd_node::proto::{
    etcdserverpb::{WatchCreateRequest, WatchRequest, watch_client::WatchClient, watch_request::RequestUnion},
    health::{HealthCheckRequest, health_client::HealthClient},
};
use detcd_tests::harness::{
    Addresses, Cluster, Kind, Peers, binaries,
    cluster::READY_BOUND,
    grpc::{Channel, origin},
    http::{self, Response},
    process::{self, Process},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tonic::codegen::tokio_stream;

/// What the usual alerts and dashboards ask for, as far as one member has it.
const METRICS: &[&str] = &[
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_failed_total",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_disk_wal_fsync_duration_seconds_count",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_server_version",
    "grpc_server_handled_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_open_fds",
];

#[test]
fn signals_stop_it_cleanly_and_nothing_is_lost() {
    let mut cluster = Cluster::start(1);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let status = cluster.member(0).stop_with(signal);
        assert!(clean(status, signal), "after signal {signal}: {status}");
        cluster.member(0).restart();
    }
    let mut three = Cluster::start(3);
    for number in 0..3 {
        let status = three.member(number).stop();
        assert!(clean(status, libc::SIGTERM), "member {number}: {status}");
    }
    three.start_all();
}

/// etcd ends by the signal that it got, raised once more; where a shell stands between, that shows as 128 more.
fn clean(status: ExitStatus, signal: i32) -> bool {
    status.signal() == Some(signal) || status.code().is_some_and(|code| code == 0 || code == 128 + signal)
}

#[test]
fn unknown_variables_only_warn() {
    let mut cluster = Cluster::prepare(&binaries::detcd(), &Addresses::reserve(1));
    // Kubernetes sets such ones for any service that is named etcd.
    cluster.member(0).add_env("ETCD_PORT", "tcp://10.0.0.1:2379");
    cluster.member(0).add_env("ETCD_SERVICE_HOST", "10.0.0.1");
    cluster.start_all();
    let log = cluster.member(0).log_text();
    for name in ["ETCD_PORT", "ETCD_SERVICE_HOST"] {
        assert!(log.contains(name), "no word of {name} in the log");
    }
}

#[test]
fn version_has_the_shape_that_tools_parse() {
    let mut command = Command::new(binaries::detcd());
    command.arg("--version");
    let output = process::run(command, "", Duration::from_secs(10));
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = output.stdout.lines().collect();
    let names = ["etcd Version: ", "Git SHA: ", "Go Version: ", "Go OS/Arch: "];
    assert_eq!(lines.len(), names.len(), "{output:?}");
    for (line, name) in lines.iter().zip(names) {
        assert!(line.strip_prefix(name).is_some_and(|value| !value.is_empty()), "{line:?} is no {name:?}");
    }
    let version: Vec<_> = lines[0][names[0].len()..].split('.').map(str::parse::<u32>).collect();
    // Clients judge a server by its minor version.
    assert!(matches!(version[..], [Ok(3), Ok(6), Ok(_)]), "{}", lines[0]);
}

#[test]
fn http_answers_are_etcds() {
    let Some(peers) = Peers::find() else { return };
    let requests = [
        ("GET", "/health"),
        ("GET", "/health?serializable=true"),
        ("GET", "/health?exclude=NOSPACE"),
        ("POST", "/health"),
        ("GET", "/version"),
        ("POST", "/version"),
        ("GET", "/nothing-here"),
    ];
    let addresses = Addresses::reserve(1);
    let [etcd, detcd] = [Kind::Etcd36, Kind::Detcd].map(|kind| {
        let cluster = Cluster::start_kind(kind, &peers, &addresses);
        let client = cluster.members[0].address.client;
        requests.map(|(method, path)| http::request(client, method, path).map(essence).map_err(|e| e.to_string()))
    });
    let all = requests.iter().zip(etcd.iter().zip(&detcd));
    let different: Vec<_> = all.filter(|(_, (etcd, detcd))| etcd != detcd).collect();
    assert!(different.is_empty(), "request, (expected of etcd, got of detcd): {different:#?}");
}

/// Status, the headers that a client acts on, and the body; of JSON only its names, where values may be our own.
fn essence(response: Response) -> (u16, Vec<Option<String>>, String) {
    let header = |name: &str| response.headers.get(name).cloned();
    let body = match serde_json::from_str::<BTreeMap<String, String>>(&response.body) {
        Ok(mut object) if object.contains_key("etcdserver") => {
            // Ours, and what the cluster agrees on only after a while.
            ["etcdserver", "etcdcluster", "storage"].into_iter().for_each(|name| {
                object.entry(name.to_owned()).and_modify(|version| version.clear());
            });
            format!("{object:?}")
        }
        _ => response.body.clone(),
    };
    (response.status, vec![header("content-type"), header("allow")], body)
}

#[test]
fn metrics_are_there_and_well_formed() {
    let mut cluster = Cluster::start(1);
    let client = cluster.member(0).address.client;
    let response = http::get(client, "/metrics").expect("an answer");
    assert_eq!(response.status, 200);
    assert!(response.headers["content-type"].starts_with("text/plain"), "{:?}", response.headers);
    let mut names = BTreeSet::new();
    for line in response.body.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        assert!(value.parse::<f64>().is_ok(), "no number: {line}");
        let labelled = sample.split_once('{').is_none_or(|(_, labels)| labels.ends_with('}'));
        assert!(labelled, "open labels: {line}");
        names.insert(sample.split('{').next().expect("a name"));
    }
    let missing: Vec<_> = METRICS.iter().filter(|name| !names.contains(*name)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    for (name, value) in [("etcd_server_has_leader", 1.0), ("etcd_server_is_leader", 1.0)] {
        assert_eq!(http::metric(client, name), Some(value), "{name}");
    }
}

#[test]
fn grpc_health_is_serving() {
    const SERVING: i32 = 1;
    let mut cluster = Cluster::start(1);
    let client = cluster.member(0).address.client;
    let runtime = runtime();
    assert_eq!(runtime.block_on(health(client, "")).expect("an answer"), SERVING);
    let unknown = runtime.block_on(health(client, "no.such.Service")).expect_err("an unknown service");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}

async fn health(client: SocketAddr, service: &str) -> Result<i32, tonic::Status> {
    let channel = Channel::connect(client).await.expect("a connection");
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::with_origin(channel, origin(client)).check(request).await?.into_inner().status)
}

/// A member of its own, serving, whose process was started in a way that only the caller knows.
fn serve_alone(prepare: impl FnOnce(&mut Command)) -> (Cluster, Process) {
    let cluster = Cluster::prepare(&binaries::detcd(), &Addresses::reserve(1));
    let mut command = Command::new(binaries::detcd());
    command.args(cluster.members[0].args()).stderr(process::scratch());
    prepare(&mut command);
    let mut process = Process::spawn(command).expect("the binary starts");
    let start = Instant::now();
    while !http::get(cluster.members[0].address.client, "/health").is_ok_and(|response| response.status == 200) {
        assert_eq!(process.ended(), None, "it ended");
        assert!(start.elapsed() < READY_BOUND, "it does not serve");
        sleep(Duration::from_millis(10));
    }
    (cluster, process)
}

#[test]
fn a_log_that_cannot_be_written_does_not_stop_it() {
    let full = File::options().write(true).open("/dev/full").expect("a device that is always full");
    let (cluster, mut process) = serve_alone(|command| {
        command.stderr(full);
    });
    put_keys(cluster.members[0].address.client, 10);
    assert_eq!(process.ended(), None, "it ended");
}

#[test]
fn as_many_files_may_be_open_as_the_system_allows() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one limit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    let few = libc::rlimit { rlim_cur: 100, ..limit };
    // SAFETY: the closure makes one call, which reads one limit.
    let lower = move || match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &few) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let (cluster, _process) = serve_alone(|command| {
        // SAFETY: the closure allocates nothing and takes no lock.
        unsafe { command.pre_exec(lower) };
    });
    let files_max = http::metric(cluster.members[0].address.client, "process_max_fds");
    assert_eq!(files_max, Some(limit.rlim_max as f64));
}

#[test]
fn a_client_that_does_not_answer_any_more_is_parted_from() {
    let mut cluster = Cluster::prepare(&binaries::detcd(), &Addresses::reserve(1));
    cluster.member(0).set("grpc-keepalive-interval", "1s");
    cluster.member(0).set("grpc-keepalive-timeout", "1s");
    cluster.start_all();
    let mut silent = TcpStream::connect(cluster.member(0).address.client).expect("a connection");
    silent.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    // HTTP/2's preface, and settings that say nothing.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("a connection");
    let end = silent.read_to_end(&mut Vec::new());
    let timed_out = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    assert!(!end.as_ref().is_err_and(timed_out), "it is still waited for: {end:?}");
}

#[test]
fn a_watch_goes_on_when_its_client_has_nothing_more_to_ask() {
    let mut cluster = Cluster::start(1);
    let (client, runtime) = (cluster.member(0).address.client, runtime());
    let mut notices = runtime.block_on(async {
        let channel = Channel::connect(client).await.expect("a connection");
        let create = WatchCreateRequest { key: "k0".into(), ..Default::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let answer = WatchClient::with_origin(channel, origin(client)).watch(tokio_stream::iter([request])).await;
        answer.expect("a stream").into_inner()
    });
    let mut next = || runtime.block_on(async { timeout(Duration::from_secs(10), notices.message()).await });
    assert!(next().expect("in time").expect("no error").expect("no end").created);
    put_keys(client, 1);
    assert_eq!(next().expect("in time").expect("no error").expect("no end").events.len(), 1);
}

/// Clients that never speak must not keep a stop from ending.
#[test]
fn a_stop_does_not_wait_for_idle_clients() {
    // etcd waits for longer than anybody would.
    if binaries::stands_in() {
        return;
    }
    let mut cluster = Cluster::start(1);
    let idle = TcpStream::connect(cluster.member(0).address.client).expect("a connection");
    let status = cluster.member(0).stop();
    assert!(clean(status, libc::SIGTERM), "{status}");
    drop(idle);
}
