//! Files that real etcds wrote: what we make of them must be what they answered, to the last field and hash.
//!
//! `tests/etcd-files` says where they come from and what happened in them.
mod backends;
mod files;
mod logs;
mod snapshots;
