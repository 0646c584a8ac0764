//! A machine from the rows of a backend. They may be anything: whatever does not go together is refused by name.
//!
//! What a row says is checked as it comes, what rows say of each other at the end. Buckets may come in any order, as
//! long as the rows of `key` come in theirs.
use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use prost::Message;

use super::{
    ALARM, AUTH, AUTH_ENABLED, AUTH_ROLES, AUTH_USERS, BackendError, CLUSTER, CLUSTER_VERSION, CONF_STATE,
    CONSISTENT_INDEX, ChangeError, DIGEST, FINISHED_COMPACTION, KEY, KeptRows, MEMBERS, META, SCHEDULED_COMPACTION,
    STORAGE_VERSION, TERM, minor_version,
};
use crate::{
    lease::Leases,
    machine::{
        Machine,
        membership::{Member, Membership},
    },
    mvcc::{KeyRange, Loader, RangeEnd, RowKey, Store},
    proto::leasepb,
    types::{Digest, Index, LeaseId, MemberId, Revision, Term},
};

#[derive(Debug, Default)]
pub struct Builder {
    versions: Loader,
    leases: Leases,
    members: Vec<Member>,
    removed: BTreeSet<MemberId>,
    cluster_version: Option<Arc<str>>,
    kept: KeptRows,
    index: Option<Index>,
    term: Term,
    /// The greatest of all compactions told.
    compacted: Revision,
    digest: Option<(Index, Digest)>,
}

impl Builder {
    pub fn row(&mut self, bucket: &[u8], key: &[u8], value: &[u8]) -> Result<(), BackendError> {
        let row = match bucket {
            b"key" => self.versions.row(key, value),
            b"lease" => self.lease(key, value),
            b"members" => self.member(key, value),
            b"members_removed" => member_id(key).map(|id| self.removed.extend([id])),
            b"cluster" => self.cluster(key, value),
            b"meta" => self.meta(key, value),
            b"auth" if key == AUTH_ENABLED && value == [1] => return Err(BackendError::AuthEnabled),
            b"auth" => self.keep(AUTH, key, value),
            b"alarm" => self.keep(ALARM, key, value),
            b"authUsers" => self.keep(AUTH_USERS, key, value),
            b"authRoles" => self.keep(AUTH_ROLES, key, value),
            _ => Err("a bucket that this version does not know".into()),
        };
        row.map_err(|reason| BackendError::Row {
            bucket: String::from_utf8_lossy(bucket).into_owned(),
            key: key.to_vec(),
            reason,
        })
    }

    /// The machine as of the last entry that the backend has seen. Takes long if there are many rows.
    pub fn finish(self) -> Result<Machine, BackendError> {
        let store = self.versions.finish(self.compacted).map_err(|misfit| BackendError::Row {
            bucket: KEY.into(),
            key: misfit.row.to_vec(),
            reason: misfit.reason,
        })?;
        // etcd writes no index before it has applied an entry.
        let nothing = store.history(Revision(0)).next().is_none() && self.leases.iter().next().is_none();
        let untouched = nothing && self.members.is_empty() && self.term == Term(0) && self.digest.is_none();
        let index = self.index.or(untouched.then_some(Index(0)));
        let reason = "entries were applied, yet there is no consistent_index";
        let index = index.ok_or_else(|| BackendError::Bucket { bucket: META, reason: reason.into() })?;
        let membership = Membership::restore(self.members, self.removed).map_err(|error| {
            let reason = match error {
                ChangeError::Removed(id) => format!("member {id} is in members_removed too"),
                error => error.to_string(),
            };
            BackendError::Bucket { bucket: MEMBERS, reason }
        })?;
        let known = self.digest.filter(|(at, _)| *at == index).map(|(_, digest)| digest);
        Ok(Machine {
            leases: attach(self.leases, &store),
            store,
            membership: Arc::new(membership),
            cluster_version: self.cluster_version,
            kept: Arc::new(self.kept),
            applied: index,
            applied_term: self.term,
            digest: known.unwrap_or_default(),
            digest_cut: known.is_none() && index != Index(0),
        })
    }

    fn lease(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let lease = leasepb::Lease::decode(value).map_err(|error| error.to_string())?;
        if key != lease.id.to_be_bytes() {
            return Err(format!("it holds lease {}", lease.id));
        }
        self.leases.grant(LeaseId(lease.id), lease.ttl).map_err(|refusal| refusal.to_string())
    }

    fn member(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let id = member_id(key)?;
        let member: Member = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        if member.id != id {
            return Err(format!("it holds member {}", member.id));
        }
        self.members.push(member);
        Ok(())
    }

    fn cluster(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if key != CLUSTER_VERSION {
            return self.keep(CLUSTER, key, value);
        }
        let version = str::from_utf8(value).ok().filter(|version| minor_version(version).is_some());
        self.cluster_version = Some(version.ok_or("no version")?.into());
        Ok(())
    }

    fn meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            CONSISTENT_INDEX => match number(value)? {
                0 => return Err("etcd never writes an index of 0".into()),
                index => self.index = Some(Index(index)),
            },
            TERM => self.term = Term(number(value)?),
            SCHEDULED_COMPACTION | FINISHED_COMPACTION => {
                let (position, _) = RowKey::parse(value)?;
                self.compacted = self.compacted.max(Revision(position.main));
            }
            DIGEST => {
                let (index, digest) = value.split_at_checked(8).ok_or("no index and digest")?;
                self.digest = Some((Index(number(index)?), Digest(number(digest)?)));
            }
            // What these say follows from the rest.
            CONF_STATE | STORAGE_VERSION => {}
            _ => return self.keep(META, key, value),
        }
        Ok(())
    }

    fn keep(&mut self, bucket: &'static str, key: &[u8], value: &[u8]) -> Result<(), String> {
        let value = Bytes::copy_from_slice(value);
        match self.kept.insert((bucket, Bytes::copy_from_slice(key)), value) {
            None => Ok(()),
            Some(_) => Err("it comes twice".into()),
        }
    }
}

/// Leases with the keys whose newest versions name them. etcd, too, lets a key live on whose lease is gone.
fn attach(mut leases: Leases, store: &Store) -> Leases {
    let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    for record in store.live(&everything).filter(|record| record.lease() != LeaseId(0)) {
        leases.attach(record.key(), record.lease());
    }
    leases
}

fn member_id(key: &[u8]) -> Result<MemberId, String> {
    let id = str::from_utf8(key).ok().and_then(|key| u64::from_str_radix(key, 16).ok()).map(MemberId);
    id.filter(|id| id.to_string().as_bytes() == key && id.0 != 0).ok_or_else(|| "no member's id".into())
}

fn number(value: &[u8]) -> Result<u64, String> {
    let bytes = value.try_into().map_err(|_| format!("{} bytes instead of 8", value.len()))?;
    Ok(u64::from_be_bytes(bytes))
}
