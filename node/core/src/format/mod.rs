//! etcd's bytes, pure: what its files hold, and nothing about where they lie.
pub mod bbolt;
pub mod snap;
pub mod v2store;
pub mod wal;
