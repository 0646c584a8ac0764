//! Puts and linearizable gets by halves, evenly interleaved.
use tonic::Status;

use super::{Data, get, put};
use crate::client::Connection;

pub async fn call(connection: &mut Connection, data: &Data, number: u64) -> Result<(), Status> {
    if number.is_multiple_of(2) {
        put::call(connection, data, number).await
    } else {
        get::call(connection, data, number, get::Consistency::Linearizable).await
    }
}
