//! What a client does over and over. One file a workload, and the enum is the list of them.
//!
//! To add one: a variant, its file, its arms below. A workload gets a number and may use nothing else, so that every
//! competitor meets the same operations in nearly the same order.
mod get;
mod mixed;
mod put;

use bytes::Bytes;
use tonic::Status;

use crate::client::Connection;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Overwrites one key.
    Put,
    /// Reads one key, linearizably.
    Get,
    /// Reads one key from the member at hand.
    SerializableGet,
    /// Puts and gets by halves.
    Mixed,
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::SerializableGet => "serializable-get",
            Workload::Mixed => "mixed",
        }
    }

    /// Whether all keys of [`Data`] must exist before.
    pub fn needs_keys(self) -> bool {
        !matches!(self, Workload::Put)
    }

    /// Operation `number` of a run.
    pub async fn call(self, connection: &mut Connection, data: &Data, number: u64) -> Result<(), Status> {
        match self {
            Workload::Put => put::call(connection, data, number).await,
            Workload::Get => get::call(connection, data, number, get::Consistency::Linearizable).await,
            Workload::SerializableGet => get::call(connection, data, number, get::Consistency::Serializable).await,
            Workload::Mixed => mixed::call(connection, data, number).await,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    Sequential,
    /// All over the key space, in the same order every time.
    Scattered,
}

/// The keys and values of a run; both are functions of an operation's number.
#[derive(Debug, Clone)]
pub struct Data {
    pub keys: u64,
    pub order: KeyOrder,
    pub value_bytes: usize,
    /// Noise that every value is a piece of: values differ and cost no copy.
    noise: Bytes,
}

/// Eight digits: etcd's published figures are for keys of 8 bytes.
pub const KEYS_MAX: u64 = 100_000_000;
const VALUE_STARTS: usize = 4096;

impl Data {
    pub fn new(keys: u64, order: KeyOrder, value_bytes: usize) -> Data {
        assert!((1..=KEYS_MAX).contains(&keys));
        let words = (value_bytes + VALUE_STARTS).div_ceil(8) as u64;
        let noise = (0..words).flat_map(|word| scatter(word).to_le_bytes()).collect();
        Data { keys, order, value_bytes, noise }
    }

    pub fn in_order(&self, order: KeyOrder) -> Data {
        Data { order, ..self.clone() }
    }

    pub fn key(&self, number: u64) -> Bytes {
        let key = match self.order {
            KeyOrder::Sequential => number % self.keys,
            KeyOrder::Scattered => scatter(number) % self.keys,
        };
        Data::nth_key(key)
    }

    pub fn value(&self, number: u64) -> Bytes {
        let start = scatter(number) as usize % VALUE_STARTS;
        self.noise.slice(start..start + self.value_bytes)
    }

    /// The half-open range that holds all keys and nothing else.
    pub fn key_range(&self) -> (Bytes, Bytes) {
        // The last key with a zero byte appended is its successor.
        let end = [&Data::nth_key(self.keys - 1)[..], &[0]].concat();
        (Data::nth_key(0), end.into())
    }

    fn nth_key(key: u64) -> Bytes {
        format!("{key:08}").into()
    }
}

/// SplitMix64's finaliser: neighbours end up far apart.
fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn sequential_keys_are_each_used_once() {
        let data = Data::new(1_000, KeyOrder::Sequential, 1);
        let keys: BTreeSet<_> = (0..1_000).map(|number| data.key(number)).collect();
        assert_eq!(keys.len(), 1_000);
        let (first, end) = data.key_range();
        assert!(keys.iter().all(|key| key.len() == 8 && *key >= first && *key < end));
    }

    #[test]
    fn scattered_keys_stay_inside_and_cover_the_space() {
        let data = Data::new(100, KeyOrder::Scattered, 1);
        let keys: BTreeSet<_> = (0..2_000).map(|number| data.key(number)).collect();
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn values_have_the_size_asked_for_and_differ() {
        for value_bytes in [0, 1, 256, 100_000] {
            let data = Data::new(10, KeyOrder::Scattered, value_bytes);
            assert!((0..10_000).all(|number| data.value(number).len() == value_bytes));
        }
        let data = Data::new(10, KeyOrder::Scattered, 256);
        assert_ne!(data.value(1), data.value(2));
    }
}
