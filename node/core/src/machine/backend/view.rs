//! A machine's rows, for [`crate::format::bbolt::Writer`].
use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::{
    BUCKETS, CLUSTER, CLUSTER_VERSION, CONF_STATE, CONSISTENT_INDEX, DIGEST, FINISHED_COMPACTION, KEY, LEASE, MEMBERS,
    MEMBERS_REMOVED, META, SCHEDULED_COMPACTION, STORAGE_VERSION, STORAGE_VERSIONED, TERM, minor_version,
};
use crate::{
    format::bbolt,
    machine::{Machine, conf_state},
    mvcc::{Position, Record, RowKey},
    proto::leasepb,
    types::LeaseId,
};

/// A machine as of one index. Versions and leases, which may be many, become rows as they are asked for; the rest is
/// little and is made at once.
#[derive(Debug, Clone)]
pub struct View {
    machine: Machine,
    /// By bucket.
    rows: BTreeMap<&'static str, BTreeMap<Bytes, Bytes>>,
}

#[derive(Debug)]
pub enum Row<'a> {
    Version { key: RowKey, record: &'a Record },
    Lease { key: [u8; 8], lease: leasepb::Lease },
    Plain { key: &'a [u8], value: &'a [u8] },
}

impl View {
    pub fn new(machine: Machine) -> View {
        let mut rows: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for ((bucket, key), value) in &*machine.kept {
            rows.entry(*bucket).or_default().insert(key.clone(), value.clone());
        }
        let mut put = |bucket, key: &[u8], value: &[u8]| {
            let row = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            rows.entry(bucket).or_default().extend([row]);
        };
        for member in machine.membership.members() {
            let json = serde_json::to_vec(member).expect("a member is JSON");
            put(MEMBERS, member.id.to_string().as_bytes(), &json);
        }
        for id in machine.membership.removed() {
            put(MEMBERS_REMOVED, id.to_string().as_bytes(), b"removed");
        }
        if let Some(version) = &machine.cluster_version {
            put(CLUSTER, CLUSTER_VERSION, version.as_bytes());
            if minor_version(version).is_some_and(|version| version >= STORAGE_VERSIONED) {
                put(META, STORAGE_VERSION, version.as_bytes());
            }
        }
        let (index, term) = (machine.applied.0, machine.applied_term.0);
        if index > 0 {
            put(META, CONSISTENT_INDEX, &index.to_be_bytes());
            put(META, TERM, &term.to_be_bytes());
            put(META, CONF_STATE, &conf_state::to_json(&machine.membership.conf_state()));
            if machine.digest_is_whole() {
                put(META, DIGEST, &[index.to_be_bytes(), machine.digest.0.to_be_bytes()].concat());
            }
        }
        if machine.store.compacted().0 > 0 {
            let revision = RowKey::new(Position::start_of(machine.store.compacted()), false);
            put(META, SCHEDULED_COMPACTION, &revision);
            put(META, FINISHED_COMPACTION, &revision);
        }
        View { machine, rows }
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn versions<'a>(&'a self, after: Option<&[u8]>) -> impl Iterator<Item = Row<'a>> + use<'a> {
        let after = after.map_or_else(Position::default, |key| RowKey::parse(key).expect("a row that was given").0);
        let records = self.machine.store.versions_after(after);
        records.map(|record| Row::Version { key: record.row_key(), record })
    }

    fn leases<'a>(&'a self, after: Option<&[u8]>) -> impl Iterator<Item = Row<'a>> + use<'a> {
        let after = after.map(|key| LeaseId(i64::from_be_bytes(key.try_into().expect("a row that was given"))));
        self.machine.leases.after(after).map(|(id, lease)| {
            let lease = leasepb::Lease { id: id.0, ttl: lease.ttl, remaining_ttl: 0 };
            Row::Lease { key: id.0.to_be_bytes(), lease }
        })
    }

    fn plain<'a>(&'a self, bucket: &str, after: Option<&[u8]>) -> impl Iterator<Item = Row<'a>> + use<'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        let bounds = (after.map_or(Unbounded, Excluded), Unbounded);
        let rows = self.rows.get(bucket).map(|rows| rows.range::<[u8], _>(bounds));
        rows.into_iter().flatten().map(|(key, value)| Row::Plain { key, value })
    }
}

impl bbolt::Source for View {
    type Row<'a> = Row<'a>;

    fn buckets(&self) -> &'static [&'static str] {
        BUCKETS
    }

    fn rows<'a>(&'a self, bucket: &'static str, after: Option<&[u8]>) -> bbolt::Rows<'a, Row<'a>> {
        match bucket {
            KEY => Box::new(self.versions(after)),
            LEASE => Box::new(self.leases(after)),
            _ => Box::new(self.plain(bucket, after)),
        }
    }
}

impl bbolt::Row for Row<'_> {
    fn key(&self) -> &[u8] {
        match self {
            Row::Version { key, .. } => key,
            Row::Lease { key, .. } => key,
            Row::Plain { key, .. } => key,
        }
    }

    fn value_len(&self) -> usize {
        match self {
            Row::Version { record, .. } => record.row_value_len(),
            Row::Lease { lease, .. } => lease.encoded_len(),
            Row::Plain { value, .. } => value.len(),
        }
    }

    fn put_value(&self, out: &mut Vec<u8>) {
        match self {
            Row::Version { record, .. } => record.put_row_value(out),
            Row::Lease { lease, .. } => lease.encode(out).expect("a Vec grows"),
            Row::Plain { value, .. } => out.extend_from_slice(value),
        }
    }
}
