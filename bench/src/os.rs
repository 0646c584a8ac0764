//! The few words to the kernel that std does not have. All unsafe code of this crate is here.
use std::{io, os::unix::process::CommandExt, process::Command};

/// The unit of the CPU times in `/proc/PID/stat`.
pub fn clock_ticks_per_second() -> u64 {
    // SAFETY: no memory is involved.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    assert!(ticks > 0, "POSIX demands a clock tick");
    ticks as u64
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
