//! The parts, from the file system up: binaries, ports, certificates, processes, clusters; then those who talk to a cluster
//! (`etcdctl`, HTTP, gRPC); then those who judge what was said (scripts, masks, the ledger of writes).
pub mod binaries;
pub mod certificates;
pub mod cluster;
pub mod etcdctl;
pub mod files;
pub mod grpc;
pub mod http;
pub mod ledger;
pub mod mask;
pub mod ports;
pub mod process;
pub mod script;

pub use binaries::{Ctl, Kind, Peers};
pub use certificates::Certificates;
pub use cluster::Cluster;
pub use ports::{Address, Addresses};
