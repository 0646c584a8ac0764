//! The replicated state machine: `apply(entry) -> (response, changes)`, the same on every member.
//!
//! The machine is a value. Cloning it costs a few pointers, and a clone is a consistent view for readers: of the
//! store, the leases and the membership as of one applied index.
//!
//! Invariants:
//! - Entries are applied once each, in order, without a gap.
//! - A command that is refused changes nothing, and is refused alike on every member.
//! - `digest` depends on the effects of all entries so far and on nothing else: two members with the same applied
//!   index have the same digest, or one of them is broken.
pub mod backend;
pub mod command;
mod conf_state;
mod digest;
pub mod membership;
mod txn;

use std::sync::Arc;

use bytes::Bytes;

use self::{
    backend::KeptRows,
    command::{Command, CommandError},
    digest::Rolling,
    membership::{Change, ChangeError, Membership},
    txn::Apply,
};
pub use self::{
    conf_state::to_raft,
    digest::hash_bytes,
    txn::{OpResponse, Response},
};
use crate::{
    error::Refusal,
    lease::Leases,
    mvcc::{KeyRange, RangeEnd, Record, Store},
    types::{Digest, Index, LeaseId, MemberId, RequestId, Revision, Term},
};

#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub store: Store,
    pub leases: Leases,
    pub membership: Arc<Membership>,
    /// The version all members agreed to behave as, such as "3.6.0"; not set in a cluster just founded.
    pub cluster_version: Option<Arc<str>>,
    /// Rows of etcd's backend that mean nothing to this version, and go back into its files as they came.
    kept: Arc<KeptRows>,
    applied: Index,
    applied_term: Term,
    digest: Digest,
    /// Whether `digest` lacks the beginning of history: the machine was loaded from a file without a digest.
    digest_cut: bool,
}

/// What applying one entry came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub request: RequestId,
    pub result: Result<Response, Refusal>,
    /// The store's revision after it.
    pub revision: Revision,
    /// What it changed in the store, in order: at most one revision's worth.
    pub changes: Vec<Record>,
}

impl Machine {
    /// The last entry applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    pub fn applied_term(&self) -> Term {
        self.applied_term
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the digest covers history from the first entry on. If not, as after starting from a file that etcd
    /// wrote, it covers what was applied since, and may only be compared with one that was cut at the same index.
    pub fn digest_is_whole(&self) -> bool {
        !self.digest_cut
    }

    /// Applies a normal entry. `serving` tells whether a given request is this member's to answer: only then need
    /// its reads be collected. An error means that this build cannot go on: the entry is not applied.
    pub fn apply(
        &mut self,
        index: Index,
        term: Term,
        data: Bytes,
        serving: impl FnOnce(RequestId) -> bool,
    ) -> Result<Outcome, CommandError> {
        let (request, command) = if data.is_empty() {
            (RequestId(0), Ok(Command::Nothing)) // a new leader's first entry
        } else {
            match Command::decode(data) {
                Ok((request, command)) => (request, Ok(command)),
                Err(CommandError::Refused(refusal)) => (RequestId(0), Err(refusal)),
                Err(error) => return Err(error),
            }
        };
        let mut rolling = self.advance(index, term);
        let mut changes = Vec::new();
        let result = match command {
            Ok(command) => self.run(command, serving(request), &mut changes, &mut rolling),
            Err(refusal) => Err(refusal),
        };
        changes.iter().for_each(|record| rolling.record(record));
        self.digest = rolling.finish();
        Ok(Outcome { request, result, revision: self.store.revision(), changes })
    }

    /// Applies a configuration entry; on an error nothing but the position changes.
    pub fn apply_change(&mut self, index: Index, term: Term, change: Change) -> Result<(), ChangeError> {
        let mut rolling = self.advance(index, term);
        let result = Arc::make_mut(&mut self.membership).apply(change);
        if result.is_ok() {
            rolling.membership(&self.membership);
        }
        self.digest = rolling.finish();
        result
    }

    /// Evaluates a transaction that only reads.
    pub fn read_txn(&self, txn: &command::Txn) -> Result<Response, Refusal> {
        let mut scratch = self.clone();
        let mut apply = Apply { writer: scratch.store.write(), leases: &mut scratch.leases, serving: true };
        let result = apply.txn(txn);
        assert!(apply.writer.finish().is_empty(), "a transaction that only reads changed something");
        result
    }

    fn advance(&mut self, index: Index, term: Term) -> Rolling {
        assert_eq!(index.0, self.applied.0 + 1, "entries are applied in order, without a gap");
        assert!(term >= self.applied_term, "terms never go back in a log");
        (self.applied, self.applied_term) = (index, term);
        Rolling::after(self.digest, index)
    }

    fn run(
        &mut self,
        command: Command,
        serving: bool,
        changes: &mut Vec<Record>,
        rolling: &mut Rolling,
    ) -> Result<Response, Refusal> {
        match command {
            Command::Put(put) => self.write(serving, changes, |apply| apply.put(&put)),
            Command::Range(range) => self.write(serving, changes, |apply| apply.range(&range)),
            Command::Delete(delete) => self.write(serving, changes, |apply| Ok(apply.delete(&delete))),
            Command::Txn(txn) => self.write(serving, changes, |apply| apply.txn(&txn)),
            Command::Compact { revision } => {
                self.store.compact(revision)?;
                rolling.number(revision.0 as u64);
                Ok(Response::Done)
            }
            Command::LeaseGrant { id, ttl } => {
                self.leases.grant(id, ttl)?;
                rolling.number(id.0 as u64).number(ttl as u64);
                Ok(Response::LeaseGrant { id, ttl })
            }
            Command::LeaseRevoke { id } => {
                rolling.number(id.0 as u64);
                self.revoke(id, changes)
            }
            Command::MemberAttributes { member, name, client_urls } => {
                self.publish(member, name, client_urls, rolling);
                Ok(Response::Done)
            }
            Command::ClusterVersion { version } => {
                rolling.bytes(version.as_bytes());
                self.cluster_version = Some(version.into());
                Ok(Response::Done)
            }
            Command::Nothing => Ok(Response::Done),
        }
    }

    fn write(
        &mut self,
        serving: bool,
        changes: &mut Vec<Record>,
        run: impl FnOnce(&mut Apply<'_>) -> Result<Response, Refusal>,
    ) -> Result<Response, Refusal> {
        let mut apply = Apply { writer: self.store.write(), leases: &mut self.leases, serving };
        let result = run(&mut apply);
        *changes = apply.writer.finish();
        assert!(result.is_ok() || changes.is_empty(), "a refused command changes nothing");
        result
    }

    /// The lease's keys die in one revision, in order.
    fn revoke(&mut self, id: LeaseId, changes: &mut Vec<Record>) -> Result<Response, Refusal> {
        let keys = self.leases.revoke(id)?;
        let mut writer = self.store.write();
        for key in keys {
            let start = Bytes::copy_from_slice(&key);
            writer.delete(&KeyRange { start, end: RangeEnd::Single });
        }
        *changes = writer.finish();
        Ok(Response::Done)
    }

    fn publish(&mut self, id: MemberId, name: String, client_urls: Vec<String>, rolling: &mut Rolling) {
        if Arc::make_mut(&mut self.membership).publish(id, name, client_urls) {
            rolling.membership(&self.membership);
        }
    }
}

#[cfg(test)]
mod tests;
