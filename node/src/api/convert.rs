//! Core's answers as etcd's messages.
use bytes::Bytes;
use detcd_core::{
    machine::{OpResponse, Response},
    mvcc::{RangeResult, Record},
};

use crate::proto::{etcdserverpb as pb, mvccpb::KeyValue};

pub fn key_value(record: &Record) -> KeyValue {
    record.to_proto()
}

fn key_values(records: &[Record]) -> Vec<KeyValue> {
    records.iter().map(key_value).collect()
}

pub fn range(header: Option<pb::ResponseHeader>, result: RangeResult, keys_only: bool) -> pb::RangeResponse {
    let mut kvs = key_values(&result.records);
    if keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    pb::RangeResponse { header, kvs, more: result.more, count: result.count }
}

pub fn put(header: Option<pb::ResponseHeader>, previous: Option<Record>) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: previous.map(|record| key_value(&record)) }
}

pub fn delete(header: Option<pb::ResponseHeader>, deleted: i64, previous: Vec<Record>) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header, deleted, prev_kvs: key_values(&previous) }
}

pub fn txn(header: Option<pb::ResponseHeader>, succeeded: bool, responses: Vec<OpResponse>) -> pb::TxnResponse {
    pb::TxnResponse { header, succeeded, responses: responses.into_iter().map(op).collect() }
}

/// An operation's header carries the revision and nothing else.
fn op(response: OpResponse) -> pb::ResponseOp {
    use pb::response_op::Response as Wire;
    let header = Some(pb::ResponseHeader { revision: response.revision.0, ..Default::default() });
    let response = match response.response {
        Response::Range { result, keys_only } => Wire::ResponseRange(range(header, result, keys_only)),
        Response::Put { previous } => Wire::ResponsePut(put(header, previous)),
        Response::Delete { deleted, previous } => Wire::ResponseDeleteRange(delete(header, deleted, previous)),
        Response::Txn { succeeded, responses } => Wire::ResponseTxn(txn(header, succeeded, responses)),
        Response::LeaseGrant { .. } | Response::Members(_) | Response::Done => {
            unreachable!("no operation of a transaction")
        }
    };
    pb::ResponseOp { response: Some(response) }
}
