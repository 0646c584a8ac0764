//! Child processes that cannot outlive the test, and of which only our own are ever signalled.
use std::{
    env,
    fs::File,
    io::{self, Seek, Write},
    mem::MaybeUninit,
    os::unix::{fs::FileExt, process::CommandExt},
    process::{Child, Command, ExitStatus},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command` without the `ETCD_*` and `ETCDCTL_*` of our own environment; it dies when we do.
    pub fn spawn(mut command: Command) -> io::Result<Process> {
        let given: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") && !given.contains(&name) {
                command.env_remove(name);
            }
        }
        die_with_us(&mut command);
        // The kernel ties a child to the *thread* that started it, and a test's thread ends with the test.
        static SPAWNER: OnceLock<Sender<(Command, Sender<io::Result<Child>>)>> = OnceLock::new();
        let spawner = SPAWNER.get_or_init(|| {
            let (sender, jobs) = channel::<(Command, Sender<io::Result<Child>>)>();
            thread::spawn(move || jobs.into_iter().for_each(|(mut command, reply)| drop(reply.send(command.spawn()))));
            sender
        });
        let (reply, answer) = channel();
        spawner.send((command, reply)).expect("the spawner never ends");
        Ok(Process { child: answer.recv().expect("the spawner answers")? })
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, or `None` if it still runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    pub fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.ended() {
                Some(status) => return Some(status),
                None if start.elapsed() > bound => return None,
                None => thread::sleep(POLL),
            }
        }
    }

    pub fn signal(&mut self, signal: i32) {
        // Until it has been waited for, the pid is ours and cannot be another's.
        if self.ended().is_none() {
            // SAFETY: kill(2) takes two integers and touches no memory of ours.
            let result = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
            assert_eq!(result, 0, "kill: {}", io::Error::last_os_error());
        }
    }

    /// Stops it where it is, until `resume`; when this returns none of its threads runs, in the kernel neither.
    pub fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` is of the type that waitid(2) fills in, and outlives the call.
        let result = unsafe { libc::waitid(libc::P_PID, self.child.id(), info.as_mut_ptr(), libc::WSTOPPED) };
        assert_eq!(result, 0, "waitid: {}", io::Error::last_os_error());
    }

    pub fn resume(&mut self) {
        self.signal(libc::SIGCONT);
    }

    pub fn kill9(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().expect("our own child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// What a process printed, and its exit code: `None` when a signal ended it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output<Stdout = String> {
    pub stdout: Stdout,
    pub stderr: String,
    pub code: Option<i32>,
}

/// Runs `command` to its end, with `stdin` as its input; after `bound` it is killed.
pub fn run(command: Command, stdin: &str, bound: Duration) -> Output {
    let Output { stdout, stderr, code } = run_for_bytes(command, stdin, bound);
    Output { stdout: String::from_utf8_lossy(&stdout).into_owned(), stderr, code }
}

/// The same where what it prints may be no text.
pub fn run_for_bytes(mut command: Command, stdin: &str, bound: Duration) -> Output<Vec<u8>> {
    let (stdout, stderr, mut input) = (scratch(), scratch(), scratch());
    input.write_all(stdin.as_bytes()).and_then(|()| input.rewind()).expect("a scratch file");
    command.stdin(input).stdout(handle(&stdout)).stderr(handle(&stderr));
    let mut process = Process::spawn(command).expect("the binary starts");
    let code = process.wait(bound).and_then(|status| status.code());
    drop(process);
    Output { stdout: bytes(&stdout), stderr: text(&stderr), code }
}

pub fn scratch() -> File {
    tempfile::tempfile().expect("a scratch file")
}

pub fn handle(file: &File) -> File {
    file.try_clone().expect("a second handle")
}

pub fn text(file: &File) -> String {
    String::from_utf8_lossy(&bytes(file)).into_owned()
}

/// All that was written so far. The writer shares our handle's offset, so it is not moved.
fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("a scratch file").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("a scratch file");
    bytes
}

fn die_with_us(command: &mut Command) {
    let parent = std::process::id();
    let ask_kernel = move || {
        // SAFETY: both calls take integers only and are async-signal-safe, as required between fork and exec.
        let orphan =
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 || libc::getppid() as u32 != parent };
        if orphan { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(ask_kernel) };
}
