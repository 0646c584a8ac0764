//! Law: what we write, etcd takes for its own. A snapshot file passes its checks and is restored; a whole data directory
//! is started from, by etcd 3.6 and by 3.5, and what it then serves is what we had.
use super::{put_keys, runtime};
use bytes::Bytes;
use detcd_core::{
    format::{
        bbolt::{Next, Reader, Totals, Writer},
        snap::{self, Snapshot},
        v2store,
        wal::{self, HardState, Metadata, SnapshotMark},
    },
    machine::{
        Machine,
        backend::{Builder, Status, StatusFold, View},
        command::{Command, Delete, Op, Put, Txn},
        membership::{Change, Member, cluster_id},
    },
    mvcc::{KeyRange, RangeEnd, RangeOptions, Record},
    types::{Index, LeaseId, RequestId, Revision, Term},
};
use detcd_node::proto::{
    etcdserverpb::{
        HashKvRequest, LeaseTimeToLiveRequest, MemberListRequest, RangeRequest, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    },
    mvccpb::KeyValue,
};
use detcd_tests::harness::{
    Addresses, Cluster, Peers,
    binaries::{detcd, stands_in},
    files,
    grpc::{Channel, origin},
    process::{self, Output},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command as Process,
    time::{Duration, Instant},
};

/// `member_args` starts members with it.
const TOKEN: &str = "detcd-tests";
const TOOL_BOUND: Duration = Duration::from_secs(30);
const LEASE: LeaseId = LeaseId(0x7000_0000_0000_0001);
const NEGATIVE_LEASE: LeaseId = LeaseId(-5);
const TERM: Term = Term(3);

/// A machine with some of everything, as the one member at `addresses` would have it.
fn machine(addresses: &Addresses, cluster_version: &str) -> Machine {
    let address = &addresses.members[0];
    let member = Member::founding(&address.name, vec![format!("http://{}", address.peer)], TOKEN);
    let mut machine = Machine::default();
    machine.apply_change(Index(1), Term(1), Change::Add(member.clone())).expect("the first member");
    let publish = Command::MemberAttributes {
        member: member.id,
        name: member.name,
        client_urls: vec![format!("http://{}", address.client)],
    };
    apply(&mut machine, publish);
    apply(&mut machine, Command::ClusterVersion { version: cluster_version.into() });
    for (id, ttl) in [(LEASE, 3_600), (NEGATIVE_LEASE, 7_200)] {
        apply(&mut machine, Command::LeaseGrant { id, ttl });
    }
    for round in 0..3 {
        for number in 0..400 {
            apply(&mut machine, put(&format!("/k/{number:04}"), vec![b'a' + round; (number % 50) * 20], LeaseId(0)));
        }
        apply(&mut machine, delete(&format!("/k/00{round}"), &format!("/k/00{round}9")));
    }
    apply(&mut machine, put("/large", vec![b'x'; 300_000], LeaseId(0)));
    apply(&mut machine, Command::Compact { revision: Revision(700) });
    for number in 0..30 {
        let lease = if number % 2 == 0 { LEASE } else { NEGATIVE_LEASE };
        apply(&mut machine, put(&format!("/leased/{number}"), b"x".to_vec(), lease));
    }
    let Command::Put(again) = put("/k/0399", b"again".to_vec(), LeaseId(0)) else { unreachable!("a put") };
    let Command::Delete(gone) = delete("/k/03", "/k/038") else { unreachable!("a deletion") };
    let txn = Txn { success: vec![Op::Delete(gone), Op::Put(again)], ..Txn::default() };
    apply(&mut machine, Command::Txn(txn));
    machine
}

fn apply(machine: &mut Machine, command: Command) {
    let index = Index(machine.applied().0 + 1);
    let outcome = machine.apply(index, TERM, command.encode(RequestId(index.0)).into(), |_| false);
    outcome.expect("a command that this version knows").result.expect("it is not refused");
}

fn put(key: &str, value: Vec<u8>, lease: LeaseId) -> Command {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), value.into());
    Command::Put(Put { key, value, lease, previous: false, ignore_value: false, ignore_lease: false })
}

fn delete(from: &str, to: &str) -> Command {
    let (start, end) = (Bytes::copy_from_slice(from.as_bytes()), Bytes::copy_from_slice(to.as_bytes()));
    Command::Delete(Delete { range: KeyRange { start, end: RangeEnd::Before(end) }, previous: false })
}

fn backend(machine: &Machine) -> Vec<u8> {
    let mut writer = Writer::new(View::new(machine.clone()));
    let mut file = Vec::with_capacity(writer.total_len() as usize);
    while let Some(chunk) = writer.next_chunk(1 << 20) {
        file.extend(chunk);
    }
    file
}

/// What is in a backend, what `snapshot status` should say of it, and what the file comes to.
pub fn read(file: Bytes) -> (Machine, Status, Totals) {
    let (mut reader, mut builder, mut status) =
        (Reader::new(file.len() as u64), Builder::default(), StatusFold::default());
    let totals = loop {
        match reader.pull().expect("an undamaged file") {
            Next::Bytes { offset, len } => reader.give(file.slice(offset as usize..offset as usize + len)),
            Next::Bucket(name) => status.bucket(name),
            Next::Row { bucket, key, value } => {
                status.row(bucket, key, value).expect("a sound row");
                builder.row(bucket, key, value).expect("a sound row");
            }
            Next::End(totals) => break totals,
        }
    };
    (builder.finish().expect("a sound backend"), status.finish(), totals)
}

/// What `etcdutl snapshot status` should say of a backend.
fn told(file: Bytes) -> Value {
    let (_, Status { hash, revision, live_keys, storage_version, .. }, totals) = read(file);
    json!({
        "hash": hash,
        "revision": revision.0,
        "totalKey": live_keys,
        "totalSize": totals.bytes,
        "version": storage_version,
    })
}

pub fn etcdutl(peers: &Peers, args: &[&str]) -> Output {
    let mut command = Process::new(peers.etcdutl());
    command.args(args);
    let output = process::run(command, "", TOOL_BOUND);
    assert_eq!(output.code, Some(0), "etcdutl {args:?}: {}", output.stderr);
    output
}

#[test]
fn etcd_takes_our_snapshot_for_its_own() {
    let Some(peers) = Peers::find() else { return };
    if stands_in() {
        return;
    }
    let addresses = Addresses::reserve(1);
    let machine = machine(&addresses, "3.6.0");
    let dir = files::temp_dir();
    let file = dir.path().join("snapshot.db");
    let mut bytes = backend(&machine);
    let expected = told(Bytes::copy_from_slice(&bytes));
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    fs::write(&file, &bytes).expect("the snapshot");
    let file = file.to_str().expect("a path in UTF-8");

    let status = etcdutl(&peers, &["snapshot", "status", file, "-w", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&status.stdout).expect("JSON"), expected);

    let mut cluster = Cluster::prepare(&peers.etcd(), &addresses);
    let address = &addresses.members[0];
    let restore = [
        ["--name", &address.name],
        ["--data-dir", cluster.members[0].data_dir.to_str().expect("a path in UTF-8")],
        ["--initial-cluster", &addresses.initial_cluster()],
        ["--initial-cluster-token", TOKEN],
        ["--initial-advertise-peer-urls", &format!("http://{}", address.peer)],
    ];
    etcdutl(&peers, &[&["snapshot", "restore", file], restore.as_flattened()].concat());
    cluster.start_all();
    serves(address.client, &machine, &[]);
    cluster.member(0).stop();
    holds(&cluster.members[0].data_dir, &machine);
}

/// A restored revision is moved ahead by a row that is like no other; see [`detcd_core::mvcc`].
#[test]
fn a_bumped_restore_is_read_as_etcd_reads_it() {
    let Some(peers) = Peers::find() else { return };
    if stands_in() {
        return;
    }
    let addresses = Addresses::reserve(1);
    let dir = files::temp_dir();
    let (file, data_dir) = (dir.path().join("snapshot.db"), dir.path().join("data"));
    let mut bytes = backend(&machine(&addresses, "3.6.0"));
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    fs::write(&file, &bytes).expect("the snapshot");
    let peer = format!("http://{}", addresses.members[0].peer);
    let (file, data) = (file.to_str().expect("UTF-8"), data_dir.to_str().expect("UTF-8"));
    let (name, initial) = (addresses.members[0].name.as_str(), addresses.initial_cluster());
    etcdutl(
        &peers,
        &[
            "snapshot",
            "restore",
            file,
            "--data-dir",
            data,
            "--name",
            name,
            "--initial-cluster",
            &initial,
            "--initial-cluster-token",
            TOKEN,
            "--initial-advertise-peer-urls",
            &peer,
            "--bump-revision",
            "1000000",
            "--mark-compacted",
        ],
    );
    let db = data_dir.join("member/snap/db");
    let backend = Bytes::from(fs::read(&db).expect("the backend"));
    let (bumped, ..) = read(backend.clone());
    assert!(bumped.store.revision() > Revision(1_000_000) && bumped.store.compacted() == bumped.store.revision());
    let status = etcdutl(&peers, &["snapshot", "status", db.to_str().expect("UTF-8"), "-w", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&status.stdout).expect("JSON"), told(backend));

    // The file that we make of it, too, is served with the same hash as before.
    let mut cluster = Cluster::prepare(&peers.etcd(), &addresses);
    data_directory(&cluster.members[0].data_dir, &bumped);
    cluster.start_all();
    serves(addresses.members[0].client, &bumped, &[]);
}

/// It writes the state anew while nobody runs: what we knew of the file's bytes does not hold any more.
#[test]
fn a_state_that_etcdutl_defragmented_is_no_damage() {
    let Some(peers) = Peers::find() else { return };
    if stands_in() {
        return;
    }
    let addresses = Addresses::reserve(1);
    let mut cluster = Cluster::prepare(&detcd(), &addresses);
    cluster.members[0].set("snapshot-count", "10");
    cluster.start_all();
    let (client, data_dir) = (addresses.members[0].client, cluster.members[0].data_dir.clone());
    put_keys(client, 40);
    let snap_dir = data_dir.join("member/snap");
    let is_sidecar = |name: &str| name.ends_with(".db.xxh3") && !name.starts_with("tmp");
    let names = || fs::read_dir(&snap_dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let has_checkpoint = || names().any(|name| is_sidecar(&name.to_string_lossy())) && snap_dir.join("db").exists();
    let deadline = Instant::now() + TOOL_BOUND;
    while !has_checkpoint() {
        assert!(Instant::now() < deadline, "no checkpoint: {:?}", names().collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.member(0).stop();
    let before = fs::read(snap_dir.join("db")).expect("the backend");
    etcdutl(&peers, &["defrag", "--data-dir", data_dir.to_str().expect("UTF-8")]);
    assert_ne!(fs::read(snap_dir.join("db")).expect("the backend"), before);
    cluster.start_all();
    put_keys(client, 1);
}

#[test]
fn etcd_starts_from_our_data_directory() {
    let Some(peers) = Peers::find() else { return };
    if stands_in() {
        return;
    }
    // 3.5.1 looks for leases from 0 up when it starts, and so forgets, of its own directories as of ours, negative ones.
    let versions: [(_, _, &[LeaseId]); 2] =
        [(peers.etcd(), "3.6.0", &[]), (peers.etcd_35(), "3.5.0", &[NEGATIVE_LEASE])];
    for (binary, cluster_version, forgotten) in versions {
        println!("{}", binary.display());
        let addresses = Addresses::reserve(1);
        let machine = machine(&addresses, cluster_version);
        let mut cluster = Cluster::prepare(&binary, &addresses);
        let data_dir = cluster.members[0].data_dir.clone();
        data_directory(&data_dir, &machine);
        cluster.start_all();
        serves(addresses.members[0].client, &machine, forgotten);
        cluster.member(0).stop();
        holds(&data_dir, &machine);
    }
}

/// A data directory from which the machine's one member goes on: backend, snapshot, and a log that begins after it.
fn data_directory(path: &Path, machine: &Machine) {
    let (index, term) = (machine.applied(), machine.applied_term());
    let (wal_dir, snap_dir) = (path.join("member/wal"), path.join("member/snap"));
    [&wal_dir, &snap_dir].into_iter().for_each(|dir| fs::create_dir_all(dir).expect("a directory"));
    fs::write(snap_dir.join("db"), backend(machine)).expect("the backend");
    let data = v2store::write(&machine.membership, machine.cluster_version.as_deref()).into();
    let conf_state = machine.membership.conf_state();
    let snapshot = Snapshot { index, term, conf_state: conf_state.clone(), data };
    fs::write(snap_dir.join(snap::name(term, index)), snapshot.encode()).expect("the snapshot");

    let members: Vec<_> = machine.membership.members().cloned().collect();
    let member = members[0].id;
    let (mut writer, mut log) = (wal::Writer::new(0), Vec::new());
    writer.begin(&mut log, Metadata { member, cluster: cluster_id(&members) }, None);
    writer.snapshot(&mut log, &SnapshotMark { index, term, conf_state: Some(conf_state) });
    writer.state(&mut log, HardState { term, vote: member, commit: index });
    fs::write(wal_dir.join(wal::segment_name(0, Index(0))), log).expect("the log");
}

/// etcd answers what the machine holds: keys at several revisions, hashes, leases but the `forgotten`, and members.
fn serves(client: SocketAddr, machine: &Machine, forgotten: &[LeaseId]) {
    let store = &machine.store;
    runtime().block_on(async {
        let channel = Channel::connect(client).await.expect("a connection");
        let mut kv = KvClient::with_origin(channel.clone(), origin(client)).max_decoding_message_size(64 << 20);
        let mut maintenance = MaintenanceClient::with_origin(channel.clone(), origin(client));
        let (first, last) = (store.compacted().0.max(2), store.revision().0);
        for revision in [first, (first + last) / 2, last - 1, last].into_iter().filter(|at| *at >= first) {
            let everything = Bytes::from_static(b"\0");
            let request =
                RangeRequest { key: everything.clone(), range_end: everything, revision, ..Default::default() };
            let response = kv.range(request).await.expect("a range").into_inner();
            assert_eq!(response.header.expect("a header").revision, last);
            assert_eq!(response.kvs, range(machine, revision), "at revision {revision}");
        }
        // Up to 3.5 the compacted revision itself is refused.
        for revision in [0, last - 1, last].into_iter().filter(|at| *at == 0 || *at > first) {
            let hash = maintenance.hash_kv(HashKvRequest { revision }).await.expect("a hash").into_inner();
            let expected = store.hash(Revision(revision)).expect("it is readable");
            assert_eq!((hash.hash, hash.compact_revision), (expected, store.compacted().0), "at revision {revision}");
        }
        let mut leases = LeaseClient::with_origin(channel.clone(), origin(client));
        for (id, lease) in machine.leases.iter() {
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut response = loop {
                let request = LeaseTimeToLiveRequest { id: id.0, keys: true };
                let response = leases.lease_time_to_live(request).await.expect("a lease").into_inner();
                // A leader that is new has no leases for a moment.
                if response.ttl >= 0 || forgotten.contains(&id) || Instant::now() > deadline {
                    break response;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            if forgotten.contains(&id) {
                assert_eq!(response.ttl, -1, "{id:?}");
                continue;
            }
            response.keys.sort();
            let keys: Vec<_> = lease.keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
            assert_eq!((response.granted_ttl, response.keys), (lease.ttl, keys));
        }
    });
    let members = runtime().block_on(async {
        use detcd_node::proto::etcdserverpb::cluster_client::ClusterClient;
        let channel = Channel::connect(client).await.expect("a connection");
        let mut cluster = ClusterClient::with_origin(channel, origin(client));
        cluster.member_list(MemberListRequest::default()).await.expect("members").into_inner().members
    });
    let expected: Vec<_> = machine.membership.members().map(|member| (member.id.0, member.name.clone())).collect();
    assert_eq!(members.into_iter().map(|member| (member.id, member.name)).collect::<Vec<_>>(), expected);
}

fn range(machine: &Machine, revision: i64) -> Vec<KeyValue> {
    let everything = KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded };
    let options = RangeOptions { revision: Revision(revision), ..RangeOptions::default() };
    let result = machine.store.range(&everything, &options).expect("it is readable");
    result.records.iter().map(Record::to_proto).collect()
}

/// After etcd ran on it, the directory holds for us what it held before, further on in the log.
fn holds(data_dir: &Path, machine: &Machine) {
    let db = fs::read(data_dir.join("member/snap/db")).expect("the backend");
    let (after, ..) = read(db.into());
    assert!(!after.digest_is_whole(), "etcd applied entries that our digest does not know");
    let (ours, theirs) = (&machine.store, &after.store);
    assert_eq!((theirs.revision(), theirs.compacted()), (ours.revision(), ours.compacted()));
    assert_eq!(theirs.hash(Revision(0)), ours.hash(Revision(0)));
    assert!(after.leases.iter().eq(machine.leases.iter()));
    assert_eq!(after.membership, machine.membership);
    assert_eq!(after.cluster_version, machine.cluster_version);
}
