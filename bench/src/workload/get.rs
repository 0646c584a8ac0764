//! One get of one key, which must exist: an answer without the value would be measured as a fast one.
use detcd_node::proto::etcdserverpb::RangeRequest;
use tonic::Status;

use super::Data;
use crate::client::Connection;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    Linearizable,
    Serializable,
}

pub async fn call(
    connection: &mut Connection,
    data: &Data,
    number: u64,
    consistency: Consistency,
) -> Result<(), Status> {
    let serializable = consistency == Consistency::Serializable;
    let request = RangeRequest { key: data.key(number), serializable, ..Default::default() };
    let response = connection.kv.range(request).await?.into_inner();
    match &response.kvs[..] {
        [kv] if kv.value.len() == data.value_bytes => Ok(()),
        _ => Err(Status::data_loss("a get did not return the value that was put")),
    }
}
