//! `detcd`: one node as a process, in etcd's place.
//!
//! Flags become a [`Config`](detcd_node::config::Config), the machine's files, sockets and clock a
//! [`Host`](detcd_node::host::Host); the rest is the node's. One thread runs everything but the log's writes (a
//! thread of their own) and long reads (a small pool): fewer wake-ups are worth more than a second core.
mod files;
mod flags;
mod host;
mod log;
mod net;
mod tls;
mod usage;
mod vitals;

use std::{
    future::Future,
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    process::ExitCode,
};

use detcd_node::{config::ETCD_VERSION, error::ExitReason};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    flags::{Flags, Wanted},
    tls::Tls,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What any system lets a process have open.
const FILES_MAX_LEAST: u64 = 1_024;

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os().skip(1), std::env::vars_os()) {
        Ok(Wanted::Run(flags)) => flags,
        Ok(Wanted::Help) => return print(&usage::text()),
        Ok(Wanted::Version) => return print(&version()),
        Err(error) => return fail(&error),
    };
    let tls = match Tls::load(&flags.tls) {
        Ok(tls) => tls,
        Err(error) => return fail(&error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&format!("cannot start the runtime: {error}; check the limits on threads and files"));
        }
    };
    let (reason, signal) = runtime.block_on(run(*flags, tls));
    // Long reads that nobody waits for any more are not worth waiting for.
    runtime.shutdown_background();
    match reason {
        ExitReason::Failed(failure) => fail(&failure),
        ExitReason::Stopped => exit_by(signal),
    }
}

async fn run(flags: Flags, tls: Tls) -> (ExitReason, i32) {
    log::start(&flags.log);
    flags.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let files_max = vitals::raise_files_max().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit on open files");
        FILES_MAX_LEAST
    });
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        let signal = terminated().await;
        let _ = stopping.send(signal); // the run may have ended by itself
    };
    let reason = detcd_node::run(flags.config, host::real(tls, files_max), Box::pin(stop)).await;
    let signal = match &reason {
        ExitReason::Stopped => stopped.await.unwrap_or(libc::SIGTERM),
        // Nobody asked, and nobody may ever.
        ExitReason::Failed(_) => libc::SIGTERM,
    };
    (reason, signal)
}

/// Resolves to the signal that asks the process to stop.
fn terminated() -> impl Future<Output = i32> {
    let listen = |kind: SignalKind| signal(kind).expect("the runtime drives signals");
    let (mut term, mut int) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    async move {
        tokio::select! {
            biased;
            _ = term.recv() => libc::SIGTERM,
            _ = int.recv() => libc::SIGINT,
        }
    }
}

/// One line: what, where, what to do.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    let line = error.to_string().replace('\n', " ");
    // It fails all the same where nobody can be told.
    let _ = writeln!(io::stderr(), "detcd: {line}");
    ExitCode::FAILURE
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Ends as etcd does: by the signal that asked for it, so that whoever waits sees that it was heeded.
fn exit_by(signal: i32) -> ExitCode {
    let status = std::process::ExitStatus::from_raw(signal);
    debug_assert_eq!(status.signal(), Some(signal));
    // SAFETY: resets a signal's action and raises it: both are defined for any signal number.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

/// Tools read the first line; the others are there because etcd prints four.
fn version() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: detcd-{}\nGo Version: none, this is Rust\nGo OS/Arch: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}
