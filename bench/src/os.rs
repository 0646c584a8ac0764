//! The few words to the kernel that std does not have. All unsafe code of this crate is here.
use std::{io, mem::MaybeUninit, os::unix::process::CommandExt, process::Command, time::Duration};

/// The unit of the CPU times in `/proc/PID/stat`.
pub fn clock_ticks_per_second() -> u64 {
    // SAFETY: no memory is involved.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    assert!(ticks > 0, "POSIX demands a clock tick");
    ticks as u64
}

/// CPU time, user and system, of all children that were waited for.
pub fn cpu_of_children() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel fills the structure in; it cannot fail for children of one's own.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Asks a child to stop. The caller has not waited for it yet, so the id is still its own.
pub fn terminate(pid: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The child is killed when the thread that starts it ends, however that comes about.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let arrange = move || {
        // SAFETY: no memory is involved.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the call above.
        match std::os::unix::process::parent_id() == parent {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: between fork and exec only prctl and getppid are called, and nothing is allocated.
    unsafe { command.pre_exec(arrange) };
}
