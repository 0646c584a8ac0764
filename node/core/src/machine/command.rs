//! What is replicated: the commands of the log, between our words and etcd's `InternalRaftRequest`.
//!
//! Bytes from the log may have been written by a real etcd, any version from 3.5 on, so decoding follows its rule: an
//! entry is an `InternalRaftRequest`; what does not parse as one is a request of the old v2 API, of which only two
//! forms ever occur.
use bytes::Bytes;
use prost::{DecodeError, Message};

use crate::{
    error::Refusal,
    mvcc::{KeyRange, Order, RangeOptions, SortTarget},
    proto::{etcdserverpb as pb, membershippb},
    types::{LeaseId, MemberId, RequestId, Revision},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: LeaseId,
    pub previous: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub range: KeyRange,
    pub options: RangeOptions,
    pub keys_only: bool,
    /// Answered from local state, without asking the cluster whether it is current.
    pub serializable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    pub range: KeyRange,
    pub previous: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Txn),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// What of a key is compared, and with what. A key that does not exist has 0 for each number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Version(i64),
    Created(i64),
    Modified(i64),
    Lease(i64),
    /// Never true of a key that does not exist.
    Value(Bytes),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub range: KeyRange,
    pub relation: Relation,
    pub target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

/// A replicated command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Put(Put),
    /// A range that went through the log: reads only, but in its place.
    Range(Range),
    Delete(Delete),
    Txn(Txn),
    Compact {
        revision: Revision,
    },
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    MemberAttributes {
        member: MemberId,
        name: String,
        client_urls: Vec<String>,
    },
    ClusterVersion {
        version: String,
    },
    /// Nothing to do, whoever asked for it.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("neither an InternalRaftRequest ({0}) nor a v2 request ({1})")]
    Malformed(DecodeError, DecodeError),
    #[error("a v2 request to {method} {path}, which no supported etcd writes")]
    V2 { method: String, path: String },
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("a request of a kind this version does not know: {0}")]
    Unsupported(&'static str),
}

impl Command {
    /// Decodes an entry's data (never empty) and the id of the request.
    pub fn decode(data: Bytes) -> Result<(RequestId, Command), CommandError> {
        match pb::InternalRaftRequest::decode(data.clone()) {
            Ok(request) => from_internal(request),
            Err(error) => match pb::Request::decode(data) {
                Ok(request) => from_v2(request),
                Err(v2) => Err(CommandError::Malformed(error, v2)),
            },
        }
    }

    /// The bytes to replicate under this id.
    pub fn encode(self, id: RequestId) -> Vec<u8> {
        let mut request = pb::InternalRaftRequest {
            header: Some(pb::RequestHeader { id: id.0, ..Default::default() }),
            ..Default::default()
        };
        match self {
            Command::Put(put) => request.put = Some(put.into_proto()),
            Command::Range(range) => request.range = Some(range.into_proto()),
            Command::Delete(delete) => request.delete_range = Some(delete.into_proto()),
            Command::Txn(txn) => request.txn = Some(txn.into_proto()),
            Command::Compact { revision } => {
                request.compaction = Some(pb::CompactionRequest { revision: revision.0, physical: false });
            }
            Command::LeaseGrant { id, ttl } => {
                request.lease_grant = Some(pb::LeaseGrantRequest { ttl, id: id.0 });
            }
            Command::LeaseRevoke { id } => request.lease_revoke = Some(pb::LeaseRevokeRequest { id: id.0 }),
            Command::MemberAttributes { member, name, client_urls } => {
                request.cluster_member_attr_set = Some(membershippb::ClusterMemberAttrSetRequest {
                    member_id: member.0,
                    member_attributes: Some(membershippb::Attributes { name, client_urls }),
                });
            }
            Command::ClusterVersion { version } => {
                request.cluster_version_set = Some(membershippb::ClusterVersionSetRequest { ver: version });
            }
            Command::Nothing => unreachable!("nobody proposes nothing"),
        }
        request.encode_to_vec()
    }
}

fn from_internal(request: pb::InternalRaftRequest) -> Result<(RequestId, Command), CommandError> {
    let header = request.header.as_ref().map_or(0, |header| header.id);
    let id = RequestId(if request.id != 0 { request.id } else { header });
    let command = if let Some(put) = request.put {
        Command::Put(put.into())
    } else if let Some(range) = request.range {
        Command::Range(range.try_into()?)
    } else if let Some(delete) = request.delete_range {
        Command::Delete(delete.into())
    } else if let Some(txn) = request.txn {
        Command::Txn(txn.try_into()?)
    } else if let Some(compaction) = request.compaction {
        Command::Compact { revision: Revision(compaction.revision) }
    } else if let Some(grant) = request.lease_grant {
        Command::LeaseGrant { id: LeaseId(grant.id), ttl: grant.ttl }
    } else if let Some(revoke) = request.lease_revoke {
        Command::LeaseRevoke { id: LeaseId(revoke.id) }
    } else if let Some(set) = request.cluster_member_attr_set {
        let attributes = set.member_attributes.unwrap_or_default();
        Command::MemberAttributes {
            member: MemberId(set.member_id),
            name: attributes.name,
            client_urls: attributes.client_urls,
        }
    } else if let Some(set) = request.cluster_version_set {
        Command::ClusterVersion { version: set.ver }
    } else if request.alarm.is_some() {
        return Err(CommandError::Unsupported("alarm"));
    } else if request.lease_checkpoint.is_some() {
        // Remaining times are a matter of clocks, which are not replicated here.
        Command::Nothing
    } else if request.downgrade_info_set.is_some() {
        return Err(CommandError::Unsupported("downgrade"));
    } else {
        return Err(CommandError::Unsupported("authentication"));
    };
    // No client can ask for it, and the store takes it for granted.
    if matches!(&command, Command::Put(put) if put.key.is_empty())
        || matches!(&command, Command::Txn(txn) if txn.puts_empty_key())
    {
        return Err(Refusal::EmptyKey.into());
    }
    Ok((id, command))
}

/// etcd up to 3.5 publishes a member's attributes and the cluster's version as writes to its old store.
fn from_v2(request: pb::Request) -> Result<(RequestId, Command), CommandError> {
    let id = RequestId(request.id());
    let unknown = || CommandError::V2 { method: request.method().to_owned(), path: request.path().to_owned() };
    if request.method() != "PUT" {
        return Err(unknown());
    }
    if request.path() == "/0/version" {
        return Ok((id, Command::ClusterVersion { version: request.val().to_owned() }));
    }
    let member = request.path().strip_prefix("/0/members/").and_then(|path| path.strip_suffix("/attributes"));
    let member = member.and_then(|hex| u64::from_str_radix(hex, 16).ok()).ok_or_else(unknown)?;
    #[derive(serde::Deserialize)]
    struct Attributes {
        #[serde(default)]
        name: String,
        #[serde(default, rename = "clientURLs")]
        client_urls: Vec<String>,
    }
    let attributes: Attributes = serde_json::from_str(request.val()).map_err(|_| unknown())?;
    let (name, client_urls) = (attributes.name, attributes.client_urls);
    Ok((id, Command::MemberAttributes { member: MemberId(member), name, client_urls }))
}

impl From<pb::PutRequest> for Put {
    fn from(put: pb::PutRequest) -> Put {
        Put {
            key: put.key,
            value: put.value,
            lease: LeaseId(put.lease),
            previous: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }
    }
}

impl Put {
    fn into_proto(self) -> pb::PutRequest {
        pb::PutRequest {
            key: self.key,
            value: self.value,
            lease: self.lease.0,
            prev_kv: self.previous,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        }
    }
}

impl From<pb::DeleteRangeRequest> for Delete {
    fn from(delete: pb::DeleteRangeRequest) -> Delete {
        Delete { range: KeyRange::new(delete.key, delete.range_end), previous: delete.prev_kv }
    }
}

impl Delete {
    fn into_proto(self) -> pb::DeleteRangeRequest {
        let (key, range_end) = self.range.into_proto();
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.previous }
    }
}

impl KeyRange {
    fn into_proto(self) -> (Bytes, Bytes) {
        use crate::mvcc::RangeEnd;
        let end = match self.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::Before(end) => end,
            RangeEnd::Unbounded => Bytes::from_static(b"\0"),
        };
        (self.start, end)
    }
}

impl TryFrom<pb::RangeRequest> for Range {
    type Error = Refusal;

    fn try_from(range: pb::RangeRequest) -> Result<Range, Refusal> {
        use pb::range_request::{SortOrder, SortTarget as Target};
        let order = match SortOrder::try_from(range.sort_order) {
            Ok(SortOrder::None) => Order::Unspecified,
            Ok(SortOrder::Ascend) => Order::Ascending,
            Ok(SortOrder::Descend) => Order::Descending,
            Err(_) => return Err(Refusal::InvalidSortOption),
        };
        let target = match Target::try_from(range.sort_target) {
            Ok(Target::Key) => SortTarget::Key,
            Ok(Target::Version) => SortTarget::Version,
            Ok(Target::Create) => SortTarget::Created,
            Ok(Target::Mod) => SortTarget::Modified,
            Ok(Target::Value) => SortTarget::Value,
            Err(_) => return Err(Refusal::InvalidSortOption),
        };
        let options = RangeOptions {
            revision: Revision(range.revision),
            limit: range.limit,
            order,
            target,
            count_only: range.count_only,
            modified_min: range.min_mod_revision,
            modified_max: range.max_mod_revision,
            created_min: range.min_create_revision,
            created_max: range.max_create_revision,
        };
        Ok(Range {
            range: KeyRange::new(range.key, range.range_end),
            options,
            keys_only: range.keys_only,
            serializable: range.serializable,
        })
    }
}

impl Range {
    fn into_proto(self) -> pb::RangeRequest {
        let (key, range_end) = self.range.into_proto();
        let options = self.options;
        pb::RangeRequest {
            key,
            range_end,
            limit: options.limit,
            revision: options.revision.0,
            sort_order: options.order as i32,
            sort_target: options.target as i32,
            serializable: self.serializable,
            keys_only: self.keys_only,
            count_only: options.count_only,
            min_mod_revision: options.modified_min,
            max_mod_revision: options.modified_max,
            min_create_revision: options.created_min,
            max_create_revision: options.created_max,
        }
    }
}

impl TryFrom<pb::TxnRequest> for Txn {
    type Error = Refusal;

    fn try_from(txn: pb::TxnRequest) -> Result<Txn, Refusal> {
        let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(Op::try_from).collect::<Result<Vec<_>, _>>();
        Ok(Txn {
            compare: txn.compare.into_iter().map(Compare::from).collect(),
            success: ops(txn.success)?,
            failure: ops(txn.failure)?,
        })
    }
}

impl TryFrom<pb::RequestOp> for Op {
    type Error = Refusal;

    fn try_from(op: pb::RequestOp) -> Result<Op, Refusal> {
        use pb::request_op::Request;
        Ok(match op.request {
            Some(Request::RequestRange(range)) => Op::Range(range.try_into()?),
            Some(Request::RequestPut(put)) => Op::Put(put.into()),
            Some(Request::RequestDeleteRange(delete)) => Op::Delete(delete.into()),
            Some(Request::RequestTxn(txn)) => Op::Txn(txn.try_into()?),
            // etcd's answer to an operation without content, word for word.
            None => return Err(Refusal::KeyNotFound),
        })
    }
}

impl From<pb::Compare> for Compare {
    fn from(compare: pb::Compare) -> Compare {
        use pb::compare::{CompareTarget, TargetUnion};
        let number = match &compare.target_union {
            Some(TargetUnion::Version(n) | TargetUnion::CreateRevision(n)) => *n,
            Some(TargetUnion::ModRevision(n) | TargetUnion::Lease(n)) => *n,
            Some(TargetUnion::Value(_)) | None => 0,
        };
        let target = match compare.target() {
            CompareTarget::Version => Target::Version(number),
            CompareTarget::Create => Target::Created(number),
            CompareTarget::Mod => Target::Modified(number),
            CompareTarget::Lease => Target::Lease(number),
            CompareTarget::Value => match &compare.target_union {
                Some(TargetUnion::Value(value)) => Target::Value(value.clone()),
                _ => Target::Value(Bytes::new()),
            },
        };
        use pb::compare::CompareResult;
        let relation = match compare.result() {
            CompareResult::Equal => Relation::Equal,
            CompareResult::Greater => Relation::Greater,
            CompareResult::Less => Relation::Less,
            CompareResult::NotEqual => Relation::NotEqual,
        };
        Compare { range: KeyRange::new(compare.key, compare.range_end), relation, target }
    }
}

impl Txn {
    fn puts_empty_key(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|op| match op {
            Op::Put(put) => put.key.is_empty(),
            Op::Txn(txn) => txn.puts_empty_key(),
            Op::Range(_) | Op::Delete(_) => false,
        })
    }

    fn into_proto(self) -> pb::TxnRequest {
        let ops = |ops: Vec<Op>| ops.into_iter().map(Op::into_proto).collect();
        pb::TxnRequest {
            compare: self.compare.into_iter().map(Compare::into_proto).collect(),
            success: ops(self.success),
            failure: ops(self.failure),
        }
    }
}

impl Op {
    fn into_proto(self) -> pb::RequestOp {
        use pb::request_op::Request;
        let request = match self {
            Op::Range(range) => Request::RequestRange(range.into_proto()),
            Op::Put(put) => Request::RequestPut(put.into_proto()),
            Op::Delete(delete) => Request::RequestDeleteRange(delete.into_proto()),
            Op::Txn(txn) => Request::RequestTxn(txn.into_proto()),
        };
        pb::RequestOp { request: Some(request) }
    }
}

impl Compare {
    fn into_proto(self) -> pb::Compare {
        use pb::compare::{CompareTarget, TargetUnion};
        let (target, union) = match self.target {
            Target::Version(n) => (CompareTarget::Version, TargetUnion::Version(n)),
            Target::Created(n) => (CompareTarget::Create, TargetUnion::CreateRevision(n)),
            Target::Modified(n) => (CompareTarget::Mod, TargetUnion::ModRevision(n)),
            Target::Lease(n) => (CompareTarget::Lease, TargetUnion::Lease(n)),
            Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value)),
        };
        let (key, range_end) = self.range.into_proto();
        pb::Compare { result: self.relation as i32, target: target as i32, key, range_end, target_union: Some(union) }
    }
}
