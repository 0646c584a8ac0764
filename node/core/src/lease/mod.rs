//! Who holds which lease: the replicated part. When a lease ends is the leader's business, by its own clock.
use imbl::{OrdMap, OrdSet};

use crate::{error::Refusal, mvcc::Key, types::LeaseId};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lease {
    /// Seconds, as granted.
    pub ttl: i64,
    /// The keys whose newest version names this lease.
    pub keys: OrdSet<Key>,
}

/// Invariant: a key is in the set of one lease at most.
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

    /// Whether a put may name this lease: none, or one that exists.
    pub fn check(&self, id: LeaseId) -> Result<(), Refusal> {
        if id == LeaseId(0) || self.by_id.contains_key(&id) { Ok(()) } else { Err(Refusal::LeaseNotFound) }
    }

    pub fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<(), Refusal> {
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
