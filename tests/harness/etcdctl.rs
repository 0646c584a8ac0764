//! Runs a real `etcdctl`: once, or in the background as a watcher.
use super::{
    binaries::{Ctl, Peers},
    process::{self, Output, Process, handle, scratch, text},
};
use std::{
    fs::File,
    io::Write,
    process::{ChildStdin, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// `etcdctl` gives up by itself after 5 s; this is for when it does not.
const RUN_BOUND: Duration = Duration::from_secs(20);
/// How long a watcher may take to print what it should.
const LINES_BOUND: Duration = Duration::from_secs(10);
/// How long it is then given to print what it should not.
const GRACE: Duration = Duration::from_millis(100);

/// Runs `etcdctl --endpoints=... args`, with `stdin` as its input, to its end.
pub fn run(peers: &Peers, ctl: Ctl, endpoints: &str, args: &[String], stdin: &str) -> Output {
    process::run(command(peers, ctl, endpoints, args), stdin, RUN_BOUND)
}

/// The same where what it prints may be no text.
pub fn run_for_bytes(peers: &Peers, ctl: Ctl, endpoints: &str, args: &[String]) -> Output<Vec<u8>> {
    process::run_for_bytes(command(peers, ctl, endpoints, args), "", RUN_BOUND)
}

/// An `etcdctl` that runs on, its input open: without one it would stop.
#[derive(Debug)]
pub struct Background {
    process: Process,
    stdin: ChildStdin,
    stdout: File,
    stderr: File,
}

impl Background {
    pub fn start(peers: &Peers, ctl: Ctl, endpoints: &str, args: &[String], stdin: &str) -> Background {
        let (stdout, stderr) = (scratch(), scratch());
        let mut command = command(peers, ctl, endpoints, args);
        command.stdin(Stdio::piped()).stdout(handle(&stdout)).stderr(handle(&stderr));
        let mut process = Process::spawn(command).expect("etcdctl starts");
        let mut input = process.child().stdin.take().expect("stdin is a pipe");
        input.write_all(stdin.as_bytes()).expect("etcdctl reads its input");
        Background { process, stdin: input, stdout, stderr }
    }

    /// Waits for `lines` lines of output, or its end, and says what it printed and, if it ended by itself, its code.
    pub fn finish(mut self, lines: usize) -> Output {
        let start = Instant::now();
        while text(&self.stdout).lines().count() < lines && start.elapsed() < LINES_BOUND {
            sleep(Duration::from_millis(10));
        }
        let code = self.process.wait(GRACE).and_then(|status| status.code());
        self.process.kill9();
        drop(self.stdin);
        Output { stdout: text(&self.stdout), stderr: text(&self.stderr), code }
    }
}

fn command(peers: &Peers, ctl: Ctl, endpoints: &str, args: &[String]) -> Command {
    let mut command = Command::new(peers.etcdctl(ctl));
    command.arg(format!("--endpoints={endpoints}")).args(args);
    command
}
