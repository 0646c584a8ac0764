//! The rolling digest over what entries did. Not over the entries themselves: two members that disagree on an
//! entry's effect must be told apart at that entry.
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::membership::Membership;
use crate::{
    mvcc::{Fields, Record},
    types::{Digest, Index},
};

/// A stable 64-bit hash, for digests and comparisons between members; not for anything an enemy may choose.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

pub(super) struct Rolling(u64);

impl Rolling {
    pub fn after(digest: Digest, index: Index) -> Rolling {
        let mut rolling = Rolling(digest.0);
        rolling.number(index.0);
        rolling
    }

    pub fn number(&mut self, number: u64) -> &mut Rolling {
        // One round of a strong mix; order matters, zeros count.
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = (mixed ^ (mixed >> 32)).wrapping_add(0x632b_e59b_d9b4_e019);
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Rolling {
        self.0 = xxh3_64_with_seed(bytes, self.0);
        self
    }

    pub fn record(&mut self, record: &Record) {
        let Fields { key, value, position, created, version, lease, .. } = record.fields();
        self.number(position.main as u64)
            .number(position.sub as u64)
            .number(created.0 as u64)
            .number(version as u64)
            .number(lease.0 as u64)
            .bytes(key)
            .bytes(value);
    }

    pub fn membership(&mut self, membership: &Membership) {
        for member in membership.members() {
            self.number(member.id.0).number(u64::from(member.is_learner)).bytes(member.name.as_bytes());
            member.peer_urls.iter().chain(&member.client_urls).for_each(|url| {
                self.bytes(url.as_bytes());
            });
        }
        membership.removed().for_each(|id| {
            self.number(id.0);
        });
    }

    pub fn finish(self) -> Digest {
        Digest(self.0)
    }
}
