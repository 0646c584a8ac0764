//! `cargo sim`: a whole cluster, its clients, disks, network and clocks, in one thread from one seed.
//!
//! - `world` is the machine room: disks, network, clocks, processes; nothing in it knows what a test is.
//! - `scenario` says what to do to it, `schedule` when exactly, `nemesis` does it, `workload` are the clients.
//! - `history` is what happened; `oracle` judges it; `check` judges histories of anybody's; `report` tells.
//! - `runner` makes a run of all that; `twice` and `sweep` make many.
pub mod check;
mod churn;
pub mod cli;
pub mod history;
pub mod memory;
mod names;
pub mod nemesis;
pub mod oracle;
pub mod plant;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod schedule;
pub mod seed;
mod speed;
mod sweep;
mod twice;
mod witness;
pub mod workload;
pub mod world;
