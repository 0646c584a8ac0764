//! One node: the core that decides, wired to a world's files, peers and clients.
//!
//! [`host::Host`] is the only seam: the daemon and the simulator each build one and run the same code on it.
//!
//! [`storage`] and [`snapshots`] are open to tests, which crash them at every step.
pub mod api;
mod background;
mod checkpoint;
pub mod config;
mod disk;
pub mod driver;
pub mod error;
pub mod host;
mod http;
mod inbox;
mod metrics;
mod notices;
mod peers;
pub mod proto;
mod run;
pub mod snapshots;
pub mod storage;
#[cfg(test)]
mod testing;
mod timer;
mod wal;

pub use detcd_core::event;
pub use run::{Stop, run, run_with};
