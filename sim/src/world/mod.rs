//! A cluster on the simulated machine: disks, network, clocks, processes.
pub mod addresses;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod host;
pub mod net;
pub mod recorder;
pub mod standing;
