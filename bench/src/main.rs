//! `detcd-bench`: measures any etcd endpoint, and competitors side by side.
//!
//! ```text
//! detcd-bench load     a closed loop of clients against running servers
//! detcd-bench compare  clusters of several binaries, started in turns on this machine, as one table
//! detcd-bench large    what much data takes, competitors in turns, as one table
//! detcd-bench sim      how fast the simulator simulates
//! ```
//!
//! The code: `cli` reads the arguments, `load` is the closed loop, `workload` what its clients do, `cluster` starts
//! and stops members, `compare` takes turns, `large` does so with
//! much data in one member, `report` renders; `simulation` runs the
//! simulator. `process` and `machine` read `/proc`.
//!
//! Exit codes: 0, 1 for a failure, 64 for a wrong command line. An error is one line on stderr.
mod cli;
mod client;
mod cluster;
mod compare;
mod large;
mod load;
mod machine;
mod os;
mod process;
mod report;
mod simulation;
mod stats;
mod workload;

use std::{io, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Command;

// Load and servers share the machine: what the load saves, the servers may use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Run(String),
}

impl Failure {
    /// Says where it happened.
    fn at(self, place: impl std::fmt::Display) -> Failure {
        match self {
            Failure::Usage(what) => Failure::Usage(format!("{place}: {what}")),
            Failure::Run(what) => Failure::Run(format!("{place}: {what}")),
        }
    }
}

fn main() -> ExitCode {
    let result = match cli::parse(std::env::args_os()) {
        Ok(Command::Help(text)) => {
            print!("{text}");
            Ok(())
        }
        Ok(command) => run(command),
        Err(failure) => Err(failure),
    };
    let Err(failure) = result else { return ExitCode::SUCCESS };
    eprintln!("detcd-bench: {failure}");
    match failure {
        Failure::Usage(_) => ExitCode::from(64),
        Failure::Run(_) => ExitCode::FAILURE,
    }
}

/// One thread for everything: a second one would take a core from the servers, and children die with the thread that
/// started them.
fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Run(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        tokio::select! {
            biased;
            stopped = stop_signal() => {
                stopped.map_err(|error| Failure::Run(format!("cannot listen for signals: {error}")))?;
                // Dropping the other branch kills the members and removes their directories.
                Err(Failure::Run("stopped by a signal, nothing was written".into()))
            }
            result = dispatch(command) => result,
        }
    })
}

async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Help(_) => unreachable!("answered by main"),
        Command::Load(options) => load::command(&options.plan, options.json).await,
        Command::Compare(options) => compare::command(&options).await,
        Command::Large(options) => large::command(&options).await,
        Command::Sim(options) => simulation::command(&options),
    }
}

async fn stop_signal() -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
