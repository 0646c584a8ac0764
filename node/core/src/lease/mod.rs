//! Who holds which lease: the replicated part. When a lease ends is the leader's business, by its own clock.
use std::ops::Bound;

use imbl::{OrdMap, OrdSet};

use crate::{error::Refusal, mvcc::Key, types::LeaseId};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lease {
    /// Seconds, as granted.
    pub ttl: i64,
    /// The keys whose newest version names this lease.
    pub keys: OrdSet<Key>,
}

/// Invariants: a key is in the set of one lease at most; no lease is called 0, which means "none".
#[derive(Debug, Clone, Default)]
pub struct Leases {
    by_id: OrdMap<LeaseId, Lease>,
}

impl Leases {
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.by_id.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.by_id.iter().map(|(id, lease)| (*id, lease))
    }

    /// The leases after `id`, in the order of etcd's backend, whose keys are ids as big-endian bytes: negative ones last.
    pub fn after(&self, id: Option<LeaseId>) -> impl Iterator<Item = (LeaseId, &Lease)> {
        let first = id.map_or(Bound::Unbounded, Bound::Excluded);
        let (positive, negative) = match id {
            Some(LeaseId(..0)) => (None, self.by_id.range((first, Bound::Excluded(LeaseId(0))))),
            Some(_) => (Some(self.by_id.range((first, Bound::Unbounded))), self.by_id.range(..LeaseId(0))),
            None => (Some(self.by_id.range(LeaseId(0)..)), self.by_id.range(..LeaseId(0))),
        };
        positive.into_iter().flatten().chain(negative).map(|(id, lease)| (*id, lease))
    }

    /// Whether a put may name this lease: none, or one that exists.
    pub fn check(&self, id: LeaseId) -> Result<(), Refusal> {
        if id == LeaseId(0) || self.by_id.contains_key(&id) { Ok(()) } else { Err(Refusal::LeaseNotFound) }
    }

    pub fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<(), Refusal> {
        if id == LeaseId(0) {
            return Err(Refusal::LeaseNotFound); // etcd's answer: an id is chosen before a grant is replicated
        }
        if self.by_id.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        self.by_id.insert(id, Lease { ttl, keys: OrdSet::new() });
        Ok(())
    }

    /// Ends the lease; returns its keys, in order, for the store to delete.
    pub fn revoke(&mut self, id: LeaseId) -> Result<OrdSet<Key>, Refusal> {
        self.by_id.remove(&id).map(|lease| lease.keys).ok_or(Refusal::LeaseNotFound)
    }

    /// `key`, which no lease holds, goes to a lease, if there is one of that name.
    pub(crate) fn attach(&mut self, key: &[u8], to: LeaseId) {
        if let Some(lease) = self.by_id.get_mut(&to) {
            lease.keys.insert(Key::from(key));
        }
    }

    /// `key` goes over from one lease to another; either may be "none".
    pub fn move_key(&mut self, key: &[u8], from: LeaseId, to: LeaseId) {
        if from == to {
            return;
        }
        if let Some(lease) = self.by_id.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.by_id.get_mut(&to) {
            lease.keys.insert(Key::from(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_come_in_the_order_of_their_bytes() {
        let ids = [1, 5, i64::MAX, i64::MIN, -7, -1].map(LeaseId);
        let mut leases = Leases::default();
        for id in ids.iter().rev() {
            leases.grant(*id, 1).unwrap();
        }
        let after = |id| leases.after(id).map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(after(None), ids);
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(after(Some(*id)), ids[at + 1..]);
        }
        assert_eq!(after(Some(LeaseId(6))), ids[2..]); // one that is not there
        assert_eq!(after(Some(LeaseId(-9))), ids[4..]);
        assert!(ids.is_sorted_by_key(|id| id.0.to_be_bytes()));
    }
}
