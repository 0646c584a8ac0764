//! One node: the core that decides, wired to a world's files, peers and clients.
//!
//! [`host::Host`] is the only seam: the daemon and the simulator each build one and run the same code on it.
pub mod host;
pub mod proto;

pub use detcd_core::event;
