//! What `snapshot status` tells of a backend, folded over its rows as they are read.
use std::collections::BTreeSet;

use super::{BackendError, KEY, META, STORAGE_VERSION};
use crate::{
    mvcc::{RowKey, RowValue},
    types::Revision,
};

/// The answers of `etcdutl snapshot status`; its total size is the file's, see [`crate::format::bbolt::Totals`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C over each bucket's name, key and value, in order.
    pub hash: u32,
    pub revision: Revision,
    /// "Total keys" as up to 3.5: the rows of all buckets.
    pub rows: u64,
    /// "Total keys" as from 3.6 on: the keys that live at `revision`.
    pub live_keys: u64,
    /// Empty up to 3.5.
    pub storage_version: String,
}

/// Takes buckets and rows in the order of the file. Keeps the live keys, but no values.
#[derive(Debug, Default)]
pub struct StatusFold {
    hash: u32,
    revision: Revision,
    rows: u64,
    live: BTreeSet<Box<[u8]>>,
    storage_version: String,
}

impl StatusFold {
    pub fn bucket(&mut self, name: &[u8]) {
        self.hash = crc32c::crc32c_append(self.hash, name);
    }

    pub fn row(&mut self, bucket: &[u8], key: &[u8], value: &[u8]) -> Result<(), BackendError> {
        self.hash = crc32c::crc32c_append(crc32c::crc32c_append(self.hash, key), value);
        self.rows += 1;
        if bucket == KEY.as_bytes() {
            let error = |reason| BackendError::Row { bucket: KEY.into(), key: key.to_vec(), reason };
            let (position, tombstone) = RowKey::parse(key).map_err(error)?;
            let row = RowValue::parse(value).map_err(error)?;
            self.revision = Revision(position.main);
            if tombstone {
                self.live.remove(row.key);
            } else if !self.live.contains(row.key) {
                self.live.insert(row.key.into());
            }
        } else if bucket == META.as_bytes() && key == STORAGE_VERSION {
            self.storage_version = String::from_utf8_lossy(value).into_owned();
        }
        Ok(())
    }

    pub fn finish(self) -> Status {
        Status {
            hash: self.hash,
            revision: self.revision,
            rows: self.rows,
            live_keys: self.live.len() as u64,
            storage_version: self.storage_version,
        }
    }
}
