//! The files, and what etcd said of their content in the words of its answers.
use std::{io::Read, sync::LazyLock};

use bytes::Bytes;
use detcd_core::{
    format::snap,
    lease::Lease,
    machine::{Machine, membership::Member},
    mvcc::{KeyRange, RangeEnd, Record},
    types::{Index, LeaseId, MemberId, Revision, Term},
};
use serde_json::{Value, json};

/// What follows a snapshot's file.
const CHECKSUM_BYTES: usize = 32;

pub struct Files {
    pub version: &'static str,
    /// Of a member's data directory: its log of one segment,
    pub segment: Bytes,
    /// its backend,
    pub db: Bytes,
    /// and its snapshot.
    pub snap: Vec<u8>,
    pub snap_name: (Term, Index),
    /// From `etcdctl snapshot save`, without the checksum.
    pub snapshot: Bytes,
    pub status: Value,
    pub status_by_36: Value,
    pub keys: Value,
    pub leases: Value,
    pub members: Value,
    /// The member that was to be removed.
    pub asked_to_remove: String,
    pub hashkv: Value,
}

macro_rules! files {
    ($version:literal) => {{
        macro_rules! text {
            ($name:literal) => {
                value(include_str!(concat!("../../../../tests/etcd-files/", $version, "/", $name)))
            };
        }
        let archive = include_bytes!(concat!("../../../../tests/etcd-files/", $version, "/data-dir.tar.xz"));
        let snapshot = include_bytes!(concat!("../../../../tests/etcd-files/", $version, "/snapshot.db"));
        let [wal, snap, db] = unpack(archive);
        Files {
            version: $version,
            segment: wal.1.into(),
            db: db.1.into(),
            snap: snap.1,
            snap_name: snap::parse_name(&snap.0).expect("etcd names its snapshots"),
            snapshot: Bytes::from_static(&snapshot[..snapshot.len() - CHECKSUM_BYTES]),
            status: text!("snapshot.status.json"),
            status_by_36: text!("snapshot.status-by-3.6.json"),
            keys: text!("keys.json"),
            leases: sorted(text!("leases.json"), "id"),
            members: sorted(text!("members.json"), "id"),
            asked_to_remove: text!("removed.json")["removed"].as_str().expect("a member").to_owned(),
            hashkv: text!("hashkv.json"),
        }
    }};
}

pub static FILES: LazyLock<[Files; 3]> = LazyLock::new(|| [files!("3.5.1"), files!("3.6.16"), files!("3.7.3")]);

pub fn for_each_version(check: impl Fn(&Files)) {
    for files in FILES.iter() {
        println!("etcd {}", files.version);
        check(files);
    }
}

/// Names and content of the one segment, the one snapshot and the backend.
fn unpack(archive: &[u8]) -> [(String, Vec<u8>); 3] {
    let mut tar = Vec::new();
    lzma_rs::xz_decompress(&mut &archive[..], &mut tar).expect("an xz file");
    let mut found = [".wal", ".snap", "db"].map(|_| None);
    for file in tar::Archive::new(&tar[..]).entries().expect("a tar file") {
        let mut file = file.expect("a file");
        let path = file.path().expect("an ordinary name").into_owned();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if let Some(at) = [".wal", ".snap", "db"].iter().position(|end| name.ends_with(end)) {
            let mut content = Vec::new();
            file.read_to_end(&mut content).expect("the file is whole");
            assert!(found[at].replace((name, content)).is_none(), "one of each");
        }
    }
    found.map(|file| file.expect("one of each"))
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

impl Files {
    pub fn cluster_version(&self) -> String {
        let minor = self.version.split('.').nth(1).expect("a version has a minor");
        format!("3.{minor}.0")
    }

    /// In 3.7.3's cluster the removal never came about.
    pub fn removed(&self) -> Vec<String> {
        if self.version == "3.7.3" { vec![] } else { vec![self.asked_to_remove.clone()] }
    }
}

pub fn keys(machine: &Machine) -> Value {
    let all = KeyRange { start: b"\0"[..].into(), end: RangeEnd::Unbounded };
    let show = |record: &Record| {
        json!({
            "key": String::from_utf8_lossy(record.key()),
            "value_base64": base64(record.value()),
            "create_revision": record.created().0,
            "mod_revision": record.modified().0,
            "version": record.version(),
            "lease": record.lease().0,
        })
    };
    let kvs: Vec<_> = machine.store.live(&all).map(show).collect();
    json!({ "kvs": kvs, "revision": machine.store.revision().0 })
}

pub fn leases(machine: &Machine) -> Value {
    let show = |(id, lease): (LeaseId, &Lease)| {
        let keys: Vec<_> = lease.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        json!({ "id": id.0, "granted_ttl": lease.ttl, "keys": keys })
    };
    sorted(machine.leases.iter().map(show).collect(), "id")
}

pub fn members(machine: &Machine) -> Value {
    let show = |member: &Member| {
        assert!(!member.is_learner);
        json!({
            "id": hex(member.id),
            "name": member.name,
            "peer_urls": member.peer_urls,
            "client_urls": member.client_urls,
        })
    };
    sorted(machine.membership.members().map(show).collect(), "id")
}

pub fn hashkv(machine: &Machine) -> Value {
    let store = &machine.store;
    let hash = store.hash(Revision(0)).expect("the present can be hashed");
    json!({ "hash": hash, "compact_revision": store.compacted().0, "revision": store.revision().0 })
}

pub fn hex(id: MemberId) -> String {
    id.to_string()
}

fn sorted(mut list: Value, by: &str) -> Value {
    list.as_array_mut().expect("a list").sort_by_key(|item| item[by].to_string());
    list
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let quads = bytes.chunks(3).flat_map(|chunk| {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4).map(move |at| match at <= chunk.len() {
            true => DIGITS[(bits >> (18 - 6 * at)) as usize & 63] as char,
            false => '=',
        })
    });
    quads.collect()
}
