//! Law: what the daemon cannot do it refuses with one line on stderr that says what, where and what to do, a non-zero
//! exit code, and nothing touched: not a byte, not a file, not a mode in the data directory.
use super::put_keys;
use detcd_tests::harness::{
    Addresses, Certificates, Cluster,
    binaries::{Ctl, Peers, detcd, stands_in},
    cluster::member_args,
    etcdctl,
    files::{self, Entry},
    process::{self, Output},
};
use std::{fs, net::TcpListener, path::PathBuf, process::Command, time::Duration};
use tempfile::TempDir;

/// A refusal is immediate; this is for a busy machine.
const REFUSE_BOUND: Duration = Duration::from_secs(15);

/// A daemon that is started to fail: one member's right arguments, to be spoilt.
struct Attempt {
    addresses: Addresses,
    args: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
    data_dir: PathBuf,
    /// Where `data_dir` is, if it is ours.
    _dir: Option<TempDir>,
}

impl Attempt {
    /// On a data directory that does not exist yet.
    fn fresh() -> Attempt {
        let dir = files::temp_dir();
        let data_dir = dir.path().join("m0.data");
        Attempt { _dir: Some(dir), ..Attempt::at(data_dir) }
    }

    fn at(data_dir: PathBuf) -> Attempt {
        let addresses = Addresses::reserve(1);
        let args = member_args(&addresses.members[0], &addresses, &data_dir);
        Attempt { addresses, args, env: Vec::new(), data_dir, _dir: None }
    }

    /// With `--flag=value`, in place of what it had.
    fn with(self, flag: &str, value: &str) -> Attempt {
        self.without(flag).and(&format!("--{flag}={value}"))
    }

    fn without(mut self, flag: &str) -> Attempt {
        let start = format!("--{flag}=");
        self.args.retain(|arg| !arg.starts_with(&start));
        self
    }

    fn and(mut self, arg: &str) -> Attempt {
        self.args.push(arg.to_owned());
        self
    }

    fn with_env(mut self, name: &'static str, value: &'static str) -> Attempt {
        self.env.push((name, value));
        self
    }

    /// It must be refused, in a line that has all `words`, and leave the data directory as it was.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let before = files::digest(&self.data_dir);
        let mut command = Command::new(detcd());
        command.args(&self.args).envs(self.env.iter().copied());
        let output = process::run(command, "", REFUSE_BOUND);
        let last_line = output.stderr.lines().last();
        assert!(output.code.is_some_and(|code| code != 0), "exit code {:?}, at last {last_line:?}", output.code);
        // etcd logs a page before it gives up, and leaves what it made.
        if !stands_in() {
            says_it_in_one_line(&output, words);
            untouched(&before, &files::digest(&self.data_dir));
        }
    }
}

#[track_caller]
fn says_it_in_one_line(output: &Output, words: &[&str]) {
    let line = output.stderr.strip_suffix('\n').unwrap_or(&output.stderr);
    assert!(!line.is_empty() && !line.contains('\n'), "not one line: {:?}", output.stderr);
    let missing: Vec<_> = words.iter().filter(|word| !line.contains(*word)).collect();
    assert!(missing.is_empty(), "no word of {missing:?}: {line}");
    assert!(!line.contains("panicked"), "{line}");
}

#[track_caller]
fn untouched(before: &[Entry], after: &[Entry]) {
    let changed: Vec<_> = after.iter().filter(|entry| !before.contains(entry)).collect();
    let gone: Vec<_> = before.iter().filter(|entry| !after.contains(entry)).collect();
    assert!(changed.is_empty() && gone.is_empty(), "changed or new: {changed:?}; changed or gone: {gone:?}");
}

#[test]
fn wrong_flags() {
    Attempt::fresh().with("no-such-flag", "1").refused(&["no-such-flag"]);
    Attempt::fresh().with("heartbeat-interval", "soon").refused(&["heartbeat-interval", "soon"]);
    Attempt::fresh().with("listen-client-urls", "nonsense").refused(&["listen-client-urls", "nonsense"]);
    Attempt::fresh().with("initial-cluster-state", "maybe").refused(&["initial-cluster-state", "maybe"]);
    Attempt::fresh().and("serve").refused(&["serve"]);
}

#[test]
fn flags_that_contradict_each_other() {
    Attempt::fresh().with("name", "stranger").refused(&["stranger", "initial-cluster"]);
    Attempt::fresh().without("advertise-client-urls").refused(&["advertise-client-urls"]);
    Attempt::fresh().with("election-timeout", "200").refused(&["election-timeout"]);
    let elsewhere = Attempt::fresh().with("initial-advertise-peer-urls", "http://127.0.0.1:1");
    elsewhere.refused(&["initial-advertise-peer-urls"]);
}

/// One member's right arguments for TLS, on the files of `certificates`.
fn secured(certificates: &Certificates) -> Attempt {
    let mut attempt = Attempt::at(certificates.ca.with_file_name("m0.data"));
    attempt.addresses = Addresses::reserve_tls(1);
    attempt.args = member_args(&attempt.addresses.members[0], &attempt.addresses, &attempt.data_dir);
    attempt.args.extend(certificates.member_flags());
    attempt
}

#[test]
fn tls_flags_that_do_not_fit_together() {
    let certificates = Certificates::make();
    let fresh = || secured(&certificates);
    fresh().without("cert-file").refused(&["--key-file", "--cert-file"]);
    fresh().without("peer-key-file").refused(&["--peer-cert-file", "--peer-key-file"]);
    fresh().without("cert-file").without("key-file").refused(&["--listen-client-urls", "--cert-file", "--key-file"]);
    let bare = fresh().without("peer-cert-file").without("peer-key-file");
    bare.refused(&["--listen-peer-urls", "--peer-cert-file", "--peer-key-file"]);
    // etcd does these.
    if !stands_in() {
        let trusting = fresh().without("trusted-ca-file").and("--client-cert-auth");
        trusting.refused(&["--client-cert-auth", "--trusted-ca-file"]);
        let blind = fresh().without("peer-trusted-ca-file");
        let members = blind.addresses.initial_cluster() + ",m1=https://127.0.0.1:1";
        blind.with("initial-cluster", &members).refused(&["https://127.0.0.1:1", "--peer-trusted-ca-file"]);
        fresh().with("tls-min-version", "TLS1.3").refused(&["--tls-min-version", "not implemented"]);
        fresh().and("--auto-tls").refused(&["--auto-tls", "not implemented"]);
    }
}

#[test]
fn tls_files_that_are_of_no_use() {
    let certificates = Certificates::make();
    let fresh = || secured(&certificates);
    let prose = certificates.ca.with_file_name("prose.txt");
    fs::write(&prose, "no certificate").expect("a file");
    let stranger = certificates.stranger.key.display().to_string();
    for side in ["", "peer-"] {
        for file in ["cert-file", "key-file", "trusted-ca-file"] {
            let flag = format!("{side}{file}");
            fresh().with(&flag, "no-such-file.pem").refused(&[&flag, "no-such-file.pem"]);
            // etcd is content with a CA file that holds nothing, and then trusts nobody.
            if !stands_in() || file != "trusted-ca-file" {
                fresh().with(&flag, &prose.display().to_string()).refused(&[&flag, "prose.txt", "PEM"]);
            }
        }
        let foreign = fresh().with(&format!("{side}key-file"), &stranger);
        foreign.refused(&[&format!("--{side}key-file"), "stranger-key.pem", "member.pem", "does not belong"]);
    }
}

#[test]
fn variable_that_contradicts_a_flag() {
    Attempt::fresh().with_env("ETCD_NAME", "other").refused(&["ETCD_NAME", "name"]);
}

#[test]
fn variable_with_a_wrong_value() {
    Attempt::fresh().with_env("ETCD_HEARTBEAT_INTERVAL", "soon").refused(&["ETCD_HEARTBEAT_INTERVAL", "soon"]);
}

#[test]
fn port_in_use() {
    let used = [Attempt::fresh(), Attempt::fresh()];
    for (attempt, port) in used.iter().zip([used[0].addresses.members[0].client, used[1].addresses.members[0].peer]) {
        let _holder = TcpListener::bind(port).expect("a reserved port");
        attempt.refused(&[&port.to_string()]);
    }
    // The same with a data directory that is there already.
    let (_cluster, attempt) = stopped_member(1);
    let port = attempt.addresses.members[0].client;
    let _holder = TcpListener::bind(port).expect("a reserved port");
    attempt.refused(&[&port.to_string()]);
}

#[test]
fn data_directory_in_use() {
    // etcd waits for the other to go away; we say so and end.
    if stands_in() {
        return;
    }
    let mut cluster = Cluster::start(1);
    let data_dir = cluster.members[0].data_dir.clone();
    // What it writes itself, just started, is not to be taken for the other's.
    cluster.member(0).pause();
    // As if a checkpoint were being written.
    fs::write(data_dir.join("member/snap/tmp-0000000000000005.db"), "half a state").expect("a file");
    Attempt::at(data_dir.clone()).refused(&[&data_dir.display().to_string()]);
    let elsewhere = files::temp_dir();
    let wal_dir = elsewhere.path().join("wal").display().to_string();
    Attempt::at(data_dir.clone()).with("wal-dir", &wal_dir).refused(&[&data_dir.display().to_string()]);
    assert_eq!(files::digest(elsewhere.path()).len(), 1, "it made something in {wal_dir}");
    cluster.member(0).resume();
    put_keys(cluster.members[0].address.client, 1);
}

#[test]
fn data_directory_that_cannot_be_made() {
    let dir = files::temp_dir();
    let file = dir.path().join("a-file");
    fs::write(&file, "in the way").expect("a file");
    // Modes would not stop root; a file where a directory should be stops everyone.
    for data_dir in [file.join("m0.data"), file.clone()] {
        Attempt::at(data_dir).refused(&["a-file"]);
    }
    assert_eq!(fs::read_to_string(&file).expect("the file"), "in the way");
}

#[test]
fn corrupt_record() {
    // The middle of a record's bytes, far from the torn end that a crash may leave.
    check_corruption(|segment, records| {
        let (offset, length) = records[records.len() / 2];
        segment[offset + length / 2] ^= 0xff;
    });
}

#[test]
fn corrupt_first_record() {
    check_corruption(|segment, records| segment[records[1].0 + 2] ^= 0x01);
}

#[test]
fn corrupt_length_of_a_record() {
    // etcd takes it for a torn end, cuts half of the log off, and never serves again.
    if stands_in() {
        return;
    }
    check_corruption(|segment, records| segment[records[records.len() / 2].0 - 3] ^= 0x40);
}

#[test]
fn data_that_needs_what_is_not_there() {
    let Some(peers) = Peers::find() else { return };
    if stands_in() {
        return;
    }
    let addresses = Addresses::reserve(1);
    let mut cluster = Cluster::prepare(&peers.etcd(), &addresses);
    let endpoint = addresses.members[0].client.to_string();
    let etcdctl = |args: &[&str]| {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let output = etcdctl::run(&peers, Ctl::V36, &endpoint, &args, "");
        assert_eq!(output.code, Some(0), "{args:?}: {}", output.stderr);
        output.stdout
    };
    cluster.start_all();
    let granted = etcdctl(&["lease", "grant", "3600"]);
    let lease = granted.split(' ').nth(1).expect("lease ID granted with TTL").to_owned();
    etcdctl(&["put", "--lease", &lease, "leased", "v"]);
    cluster.member(0).stop();

    // Leases stay, and whoever starts is told what that means.
    let (data_dir, args) = (cluster.members[0].data_dir.clone(), cluster.members[0].args().to_vec());
    let mut ours = Command::new(detcd());
    let log = process::scratch();
    ours.args(&args).stderr(process::handle(&log));
    let mut ours = process::Process::spawn(ours).expect("the daemon starts");
    let told = |words: &str| (0..150).any(|_| process::text(&log).contains(words) || pause());
    assert!(told("ready to serve"), "{}", process::text(&log));
    assert!(process::text(&log).contains("never expire"), "{}", process::text(&log));
    ours.signal(libc::SIGTERM);
    ours.wait(REFUSE_BOUND).expect("it stops");

    // Without users and passwords it would serve everyone: refused, and etcd goes on as if nothing had been.
    cluster.member(0).launch();
    cluster.member(0).wait_ready();
    etcdctl(&["user", "add", "root:secret"]);
    etcdctl(&["auth", "enable"]);
    cluster.member(0).stop();
    let attempt = Attempt { addresses, args, env: Vec::new(), data_dir, _dir: None };
    attempt.refused(&["authentication is enabled", "etcdctl auth disable", "nothing was changed"]);
}

fn pause() -> bool {
    std::thread::sleep(Duration::from_millis(100));
    false
}

/// Spoils the log of a member that wrote for a while; it must be refused with the name of the file and an offset.
fn check_corruption(spoil: impl Fn(&mut [u8], &[(usize, usize)])) {
    let (_cluster, attempt) = stopped_member(40);
    let path = files::with_extension(&attempt.data_dir.join("member/wal"), "wal").pop().expect("a segment");
    let mut segment = fs::read(&path).expect("the segment");
    let records = files::wal_records(&segment);
    assert!(records.len() > 40, "{} records are no log", records.len());
    spoil(&mut segment, &records);
    fs::write(&path, segment).expect("the segment");
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    attempt.refused(&[&name, "offset"]);
}

/// A member that wrote `puts` keys and stopped, and an attempt to start it again. The directory goes with the cluster.
fn stopped_member(puts: usize) -> (Cluster, Attempt) {
    let addresses = Addresses::reserve(1);
    let mut cluster = Cluster::prepare(&detcd(), &addresses);
    cluster.start_all();
    put_keys(addresses.members[0].client, puts);
    cluster.member(0).stop();
    let (data_dir, args) = (cluster.members[0].data_dir.clone(), cluster.members[0].args().to_vec());
    (cluster, Attempt { addresses, args, env: Vec::new(), data_dir, _dir: None })
}
