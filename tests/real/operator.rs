//! Law: an operator's day is the same on detcd as on etcd. Three members with TLS everywhere hold a registry as Kubernetes
//! keeps one; a member is removed, another added in its place and started on what `etcdctl member add` printed; a
//! snapshot is saved, looked at, and restored by etcd's own tools; strangers are turned away. The same is said to both
//! servers on the same ports, and stdout, stderr and exit codes are compared as in [`super::transcript`].
use super::{
    formats::{etcdutl, read},
    runtime,
};
use bytes::Bytes;
use detcd_core::types::Revision;
use detcd_node::proto::{
    etcdserverpb::{
        DeleteRangeRequest, HashKvRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, kv_client::KvClient,
        maintenance_client::MaintenanceClient, request_op::Request,
    },
    mvccpb::KeyValue,
};
use detcd_tests::harness::{
    Address, Addresses, Certificates, Cluster, Ctl, Kind, Peers,
    binaries::stands_in,
    etcdctl, files,
    grpc::{Channel, origin},
    http::Site,
    process::{self, Output},
    script::{self, Outcome},
};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    thread::{scope, sleep},
    time::{Duration, Instant},
};

const KEYS: usize = 10_000;
/// Writes in one transaction: what a server takes by default is a little more.
const BATCH: usize = 100;
/// Members must have been connected for 5 s before they are changed.
const HEALTHY_BOUND: Duration = Duration::from_secs(30);
/// A removed member must have ended by itself within this.
const GONE_BOUND: Duration = Duration::from_secs(30);
const TOOL_BOUND: Duration = Duration::from_secs(30);
/// The most bytes a client takes in one answer: all keys must fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[test]
fn etcdctl_35_over_tls() {
    compare(Ctl::V35);
}

#[test]
fn etcdctl_36_over_tls() {
    compare(Ctl::V36);
}

fn compare(ctl: Ctl) {
    let Some(peers) = Peers::find() else { return };
    let (certificates, founders) = (Certificates::make(), Addresses::reserve_tls(3));
    let newcomer = Address::reserve("m3", true);
    let [etcd, detcd] = [Kind::Etcd36, Kind::Detcd].map(|kind| {
        let mut cluster = Cluster::prepare_tls(&peers.server(kind), &founders, &certificates);
        // A checkpoint now and then; and who joins must be fed a state, because the log before it is gone.
        cluster.members.iter_mut().for_each(|member| member.set("snapshot-count", "20"));
        cluster.start_all();
        let certificates = &certificates;
        let mut day = Day { kind, peers: &peers, ctl, certificates, cluster, added: None, told: Vec::new() };
        day.fill();
        day.look_around();
        day.replace_a_member(&newcomer);
        let hash = day.save_and_restore();
        day.strangers();
        (day.told, hash)
    });
    let differences = script::differences(&etcd.0, &detcd.0);
    let count = etcd.0.len();
    assert!(differences.is_empty(), "{} of {count} differ\n{}", differences.len(), differences.join("\n"));
    assert_eq!(etcd.1, detcd.1, "the hash of the keys, in etcd and in detcd");
}

/// One server's day.
struct Day<'a> {
    kind: Kind,
    peers: &'a Peers,
    ctl: Ctl,
    certificates: &'a Arc<Certificates>,
    cluster: Cluster,
    /// The id of the member that was added: it depends on when.
    added: Option<u64>,
    told: Vec<Outcome>,
}

impl Day<'_> {
    /// The registry, then some of it written again, and some deleted: revisions, versions and keys all differ.
    fn fill(&self) {
        let put = |number: usize, round: usize| {
            Request::RequestPut(PutRequest {
                key: key(number),
                value: value(number, round).into(),
                ..Default::default()
            })
        };
        let delete =
            |number: usize| Request::RequestDeleteRange(DeleteRangeRequest { key: key(number), ..Default::default() });
        let again = (0..KEYS).filter(|number| number % 31 == 0).map(|number| put(number, 1));
        let gone = (KEYS..KEYS + BATCH).map(delete);
        let writes: Vec<_> = (0..KEYS + BATCH).map(|number| put(number, 0)).chain(again).chain(gone).collect();
        runtime().block_on(async {
            let mut kv = kv(self.site(0)).await;
            for batch in writes.chunks(BATCH) {
                let success = batch.iter().map(|write| RequestOp { request: Some(write.clone()) }).collect();
                kv.txn(TxnRequest { success, ..Default::default() }).await.expect("a transaction");
            }
        });
    }

    fn look_around(&mut self) {
        self.say(&[0], "member list");
        self.say(&[0], "member list -w table");
        self.say(&[0, 1, 2], "endpoint health");
        self.settle();
        self.say(&[0, 1, 2], "endpoint status -w table");
        self.read(0);
    }

    /// What an API server's operator looks at, at this member.
    fn read(&mut self, member: usize) {
        let keys = self.say(&[member], "get / --prefix --keys-only").stdout;
        // Each is followed by an empty line.
        assert_eq!(keys.lines().filter(|line| line.starts_with("/registry/")).count(), KEYS);
        for number in [0, 31, KEYS - 1] {
            let key = String::from_utf8(key(number).to_vec()).expect("keys are text");
            let args = [self.cluster.ctl_flags(), vec!["get".to_owned(), key.clone()]].concat();
            let output = etcdctl::run_for_bytes(self.peers, self.ctl, &self.endpoints(&[member]), &args);
            let expected = [key.as_bytes(), b"\n", &value(number, usize::from(number % 31 == 0)), b"\n"].concat();
            assert!(output.stdout == expected, "{key}: {:?} {}", output.code, output.stderr);
            self.say(&[member], &format!("get {key} -w json"));
        }
    }

    fn replace_a_member(&mut self, newcomer: &Address) {
        const GOES: usize = 2;
        let list = self.say(&[0], "member list").stdout;
        let id_of = |member: usize| {
            let url = self.cluster.members[member].address.peer_url();
            let row = list.lines().find(|row| row.contains(&url)).expect("every member has a row");
            row.split(", ").next().expect("ids come first").to_owned()
        };
        // One that leads must go as well as one that follows.
        let (id, leader) = (id_of(GOES), id_of(if self.ctl == Ctl::V35 { GOES } else { 1 }));
        let moved = self.run(&[0, 1, 2], &format!("move-leader {leader}"));
        assert_eq!(moved.code, Some(0), "{moved:?}");
        let words = format!("member remove {id}");
        let output = self.run_when_connected(&words);
        self.note(&words, output);
        let ended = self.cluster.member(GOES).wait_ended(GONE_BOUND);
        assert!(ended.is_some(), "the removed member still runs after {GONE_BOUND:?}: {:?}", self.told.last());
        // Without a leader etcd loses what is asked for.
        self.run_until(&[0, 1], "endpoint health", |output| output.code == Some(0));
        self.say(&[1], "member list");
        self.say(&[0], &words);
        self.say(&[0, 1], "endpoint health");
        self.say(&[0, 1], "endpoint status -w table");

        let added = self.add(newcomer);
        self.say(&[1], "member list");
        self.say(&[1], "member list -w table");
        // A second one that never started would cost the quorum.
        self.say(&[0], "member add m4 --peer-urls=https://127.0.0.1:1");
        let joining: Vec<_> = added.lines().filter_map(|line| line.split_once('=')).collect();
        assert_eq!(joining.len(), 4, "{added}");
        let unquoted = |(name, value): (&str, &str)| (name.to_owned(), value.trim_matches('"').to_owned());
        let joining: Vec<_> = joining.into_iter().map(unquoted).collect();
        self.cluster.add(newcomer, &joining).restart();
        self.caught_up(3);
        self.say(&[0, 1, 3], "endpoint health");
        self.say(&[3], "member list");
        self.say(&[3], "member list -w table");
        self.settle();
        self.say(&[0, 1, 3], "endpoint status -w table");
        self.read(3);
        self.say(&[3], "put /registry/last-word said-by-the-newcomer");
        self.say(&[0], "get /registry/last-word");
        self.say(&[0], "del /registry/last-word");
    }

    /// What is printed for the newcomer.
    fn add(&mut self, newcomer: &Address) -> String {
        let words = format!("member add {} --peer-urls={}", newcomer.name, newcomer.peer_url());
        let mut output = self.run_when_connected(&words);
        let printed = output.stdout.clone();
        let id = printed.strip_prefix("Member").and_then(|rest| rest.split("added").next()).map(str::trim);
        let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
        self.added = Some(id.unwrap_or_else(|| panic!("no member was added: {output:?}")));
        // Members are listed by id, wherever that puts the new one.
        output.stdout = output.stdout.lines().map(|line| sort_members(line) + "\n").collect();
        self.note(&words, output);
        printed
    }

    /// Members are changed only once all have been connected for a while.
    fn run_when_connected(&self, words: &str) -> Output {
        self.run_until(&[0], words, |output| !output.stderr.contains("unhealthy cluster"))
    }

    fn run_until(&self, members: &[usize], words: &str, done: impl Fn(&Output) -> bool) -> Output {
        let start = Instant::now();
        loop {
            let output = self.run(members, words);
            if done(&output) || start.elapsed() > HEALTHY_BOUND {
                return output;
            }
            sleep(Duration::from_millis(200));
        }
    }

    /// The newcomer itself, without asking a leader, has what the others have.
    fn caught_up(&self, member: usize) {
        let all = |member: usize, serializable: bool| {
            runtime().block_on(everything(self.site(member), serializable)).expect("an answer")
        };
        let there = all(0, false);
        let start = Instant::now();
        while all(member, true) != there {
            assert!(start.elapsed() < HEALTHY_BOUND, "the newcomer lags behind");
            sleep(Duration::from_millis(50));
        }
        // etcd keeps more of its log.
        let fed = self.cluster.members[member].log_text().contains("applied snapshot");
        assert!(fed || self.kind == Kind::Etcd36 || stands_in(), "the newcomer got by without a state");
    }

    /// Saves a snapshot, has it judged, and restores a real etcd from it; tells the hash of its keys.
    fn save_and_restore(&mut self) -> u32 {
        let dir = files::temp_dir();
        let file = dir.path().join("saved.db");
        // From the newcomer: what was fed to it is what is saved.
        let args = ["snapshot", "save", file.to_str().expect("UTF-8")].map(str::to_owned);
        let mut output = self.run_args(&[3], &args);
        // The path is another each time.
        for text in [&mut output.stdout, &mut output.stderr] {
            *text = text.replace(file.to_str().expect("UTF-8"), "FILE");
        }
        self.note("snapshot save FILE", output);
        let bytes = Bytes::from(fs::read(&file).unwrap_or_else(|e| panic!("nothing was saved: {e}")));
        let (machine, status, _) = read(bytes);
        self.snapshot_status(&file, status.hash, |ctl| match ctl {
            Ctl::V35 => (status.revision, status.rows),
            Ctl::V36 => (status.revision, status.live_keys),
        });
        assert_eq!(status.live_keys as usize, KEYS);

        let (mut restored, site) = self.restored(&file);
        restored.start_all();
        let hash = machine.store.hash(Revision(0)).expect("it is readable");
        runtime().block_on(async {
            let there = everything(self.site(0), false).await.expect("an answer");
            let here = everything(site.clone(), false).await.expect("an answer");
            assert_eq!(here.0, there.0, "the revision");
            assert!(here.1 == there.1, "{} keys restored of {}", here.1.len(), there.1.len());
            let channel = Channel::connect(&site).await.expect("a connection");
            let mut maintenance = MaintenanceClient::with_origin(channel, origin(&site));
            let told = maintenance.hash_kv(HashKvRequest { revision: 0 }).await.expect("a hash").into_inner();
            assert_eq!(told.hash, hash, "etcd's hash of what is in the file, and ours");
        });
        hash
    }

    /// Has both releases' tools look at the file: what they print is compared with the other server's, and here with
    /// what our own reader makes of it.
    fn snapshot_status(&mut self, file: &Path, hash: u32, expected: impl Fn(Ctl) -> (Revision, u64)) {
        let words = ["snapshot", "status", file.to_str().expect("UTF-8"), "-w", "table"];
        for ctl in [Ctl::V35, Ctl::V36] {
            let tool = match ctl {
                Ctl::V35 => self.peers.etcdctl(ctl),
                Ctl::V36 => self.peers.etcdutl(),
            };
            let mut command = Command::new(tool);
            command.args(words);
            let output = process::run(command, "", TOOL_BOUND);
            let mut rows = output.stdout.lines().filter(|line| line.starts_with('|'));
            let row = rows.next_back().unwrap_or_else(|| panic!("no table: {output:?}"));
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let (revision, keys) = expected(ctl);
            assert_eq!(cells[..3], [format!("{hash:x}"), revision.0.to_string(), keys.to_string()], "{ctl:?}");
            self.note("snapshot status FILE -w table", output);
        }
    }

    /// A real etcd on what `etcdutl snapshot restore` makes of the file, not started yet.
    fn restored(&self, file: &Path) -> (Cluster, Site) {
        let addresses = Addresses::reserve(1);
        let cluster = Cluster::prepare(&self.peers.etcd(), &addresses);
        let address = &addresses.members[0];
        let flags = [
            ["--name", &address.name],
            ["--data-dir", cluster.members[0].data_dir.to_str().expect("UTF-8")],
            ["--initial-cluster", &addresses.initial_cluster()],
            ["--initial-cluster-token", "detcd-tests"],
            ["--initial-advertise-peer-urls", &address.peer_url()],
        ];
        let restore = ["snapshot", "restore", file.to_str().expect("UTF-8")];
        etcdutl(self.peers, &[&restore[..], flags.as_flattened()].concat());
        (cluster, address.client.into())
    }

    /// Whoever has no certificate, one of another authority, or speaks without TLS: each of them is turned away by each
    /// member, whatever is asked for.
    fn strangers(&mut self) {
        let manners = [
            ("no certificate", self.certificates.ctl_flags(None), "https"),
            ("a stranger's", self.certificates.ctl_flags(Some(&self.certificates.stranger)), "https"),
            ("no TLS", Vec::new(), "http"),
        ];
        let asked = ["member list", "put /registry/stranger x", "get / --prefix --keys-only", "endpoint health"];
        let mut outputs = Vec::new();
        scope(|scope| {
            let mut runs = Vec::new();
            for (who, flags, scheme) in &manners {
                for (member, words) in [0, 1, 3].into_iter().flat_map(|member| asked.map(|words| (member, words))) {
                    let endpoint = format!("{scheme}://{}", self.cluster.members[member].address.client);
                    let bounds = ["--dial-timeout=1s", "--command-timeout=1s"].map(str::to_owned);
                    let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
                    let args = [flags.clone(), bounds.to_vec(), words.clone()].concat();
                    let (peers, ctl) = (self.peers, self.ctl);
                    let run = scope.spawn(move || etcdctl::run(peers, ctl, &endpoint, &args, ""));
                    runs.push((format!("as {who}, @{member} {}", words.join(" ")), words, run));
                }
            }
            for (text, words, run) in runs {
                outputs.push((text, words, run.join().expect("no panic")));
            }
        });
        for (text, args, mut output) in outputs {
            assert!(output.code.is_some_and(|code| code != 0), "{text}: {output:?}");
            assert!(!output.stdout.contains("/registry/"), "{text}: {output:?}");
            // Log lines tell how the last of many connections broke, which is a race between an alert and a close.
            output.stderr = output.stderr.lines().filter(|line| !line.starts_with('{')).map(str::to_owned).collect();
            self.told.push(Outcome { line: self.told.len(), text, args, output, lines: None });
        }
        self.say(&[0], "get /registry/stranger");
    }

    fn site(&self, member: usize) -> Site {
        self.cluster.members[member].site()
    }

    fn endpoints(&self, members: &[usize]) -> String {
        members.iter().map(|&member| self.cluster.members[member].address.endpoint()).collect::<Vec<_>>().join(",")
    }

    /// Says so to these members, and keeps what they answer.
    fn say(&mut self, members: &[usize], words: &str) -> Output {
        let output = self.run(members, words);
        self.note(words, output.clone());
        output
    }

    fn run(&self, members: &[usize], words: &str) -> Output {
        let args: Vec<_> = words.split(' ').map(str::to_owned).collect();
        self.run_args(members, &args)
    }

    fn run_args(&self, members: &[usize], args: &[String]) -> Output {
        let args = [self.cluster.ctl_flags(), args.to_vec()].concat();
        etcdctl::run(self.peers, self.ctl, &self.endpoints(members), &args, "")
    }

    fn note(&mut self, words: &str, mut output: Output) {
        if let Some(id) = self.added {
            for text in [&mut output.stdout, &mut output.stderr] {
                let hidden = [format!("{id:16x}"), format!("{id:x}"), id.to_string()];
                *text = hidden.iter().fold(text.clone(), |text, id| text.replace(id, "ADDED"));
            }
            if words.starts_with("member list") {
                let mut lines: Vec<_> = output.stdout.lines().collect();
                lines.sort_unstable();
                output.stdout = lines.iter().map(|line| format!("{line}\n")).collect();
            }
        }
        let args = words.split(' ').map(str::to_owned).collect();
        self.told.push(Outcome { line: self.told.len(), text: words.to_owned(), args, output, lines: None });
    }

    fn settle(&self) {
        [0, 1].into_iter().for_each(|member| script::await_settled(&self.cluster.members[member]));
    }
}

/// `ETCD_INITIAL_CLUSTER="b=1,a=2"` in the order of names.
fn sort_members(line: &str) -> String {
    let Some(list) = line.strip_prefix("ETCD_INITIAL_CLUSTER=") else { return line.to_owned() };
    let mut members: Vec<_> = list.trim_matches('"').split(',').collect();
    members.sort_unstable();
    format!("ETCD_INITIAL_CLUSTER=\"{}\"", members.join(","))
}

async fn kv(site: Site) -> KvClient<Channel> {
    let channel = Channel::connect(&site).await.expect("a connection");
    KvClient::with_origin(channel, origin(&site)).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The revision and all keys.
async fn everything(site: Site, serializable: bool) -> Result<(i64, Vec<KeyValue>), tonic::Status> {
    let all = Bytes::from_static(b"\0");
    let request = RangeRequest { key: all.clone(), range_end: all, serializable, ..Default::default() };
    let response = kv(site).await.range(request).await?.into_inner();
    Ok((response.header.expect("a header").revision, response.kvs))
}

/// Keys as an API server makes them: by kind, and most in a namespace.
fn key(number: usize) -> Bytes {
    const KINDS: [&str; 9] = [
        "pods",
        "configmaps",
        "secrets",
        "events",
        "leases",
        "services/specs",
        "services/endpoints",
        "replicasets",
        "minions",
    ];
    let kind = KINDS[number % KINDS.len()];
    let namespace = if kind == "minions" { String::new() } else { format!("namespace-{}/", number % 37) };
    format!("/registry/{kind}/{namespace}{kind}-{:x}-{number}", number * 2_654_435_761 % 1_048_576).into()
}

/// Values as an API server stores them: a magic, then protobuf: `{1: {1: version, 2: kind}, 2: the object}`. The
/// object's bytes are of all kinds, line feeds and what is no UTF-8 among them.
fn value(number: usize, round: usize) -> Vec<u8> {
    let kind = field(1, &[field(1, b"v1"), field(2, b"Pod")].concat());
    let bytes = (0..200 + number * 7 % 1_500).map(|at| ((at * (number + 3) + round) ^ (at >> 3)) as u8);
    [b"k8s\0".as_slice(), &kind, &field(2, &bytes.collect::<Vec<_>>())].concat()
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encode_length_delimiter(bytes.len(), &mut out).expect("a vector grows");
    out.extend(bytes);
    out
}
