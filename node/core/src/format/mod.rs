//! etcd's bytes, pure: what its files hold, and nothing about where they lie.
pub mod wal;
