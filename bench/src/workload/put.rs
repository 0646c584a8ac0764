//! One put of one key.
use detcd_node::proto::etcdserverpb::PutRequest;
use tonic::Status;

use super::Data;
use crate::client::Connection;

pub async fn call(connection: &mut Connection, data: &Data, number: u64) -> Result<(), Status> {
    let request = PutRequest { key: data.key(number), value: data.value(number), ..Default::default() };
    connection.kv.put(request).await?;
    Ok(())
}
