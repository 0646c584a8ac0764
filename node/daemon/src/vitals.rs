//! How this process is, by what the kernel tells of it.
use std::{fs, io};

use detcd_node::host::Vitals;

pub fn read() -> io::Result<Vitals> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let limits = fs::read_to_string("/proc/self/limits")?;
    let system = fs::read_to_string("/proc/stat")?;
    // SAFETY: asks the system for constants of its own.
    let (page, tick) = unsafe { (libc::sysconf(libc::_SC_PAGESIZE), libc::sysconf(libc::_SC_CLK_TCK)) };
    let open_files = fs::read_dir("/proc/self/fd")?.count() as u64;
    parse(&stat, &limits, &system, page as f64, tick as f64)
        .map(|vitals| Vitals { open_files, ..vitals })
        .ok_or_else(|| io::Error::other("the kernel's tables look different"))
}

/// Lets this process have as many files open as the system would allow it, and says how many that is: many start
/// processes with less for the sake of programs that cannot deal with more.
pub fn raise_files_max() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given one limit, which they write or read.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if done { Ok(limit.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

/// `page` in bytes, `tick` in ticks a second.
fn parse(stat: &str, limits: &str, system: &str, page: f64, tick: f64) -> Option<Vitals> {
    // The name, in brackets, may hold anything; behind it stand numbers, the third field first.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let files_max = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Vitals {
        resident_bytes: (field(24)? * page) as u64,
        open_files: 0,
        files_max: files_max.split_whitespace().next()?.parse().unwrap_or(u64::MAX),
        cpu_seconds: (field(14)? + field(15)?) / tick,
        started: boot + field(22)? / tick,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 1000 5000 300 18446744073709551615";
        let limits =
            "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n";
        let vitals = parse(stat, limits, "cpu 1 2\nbtime 1700000000\n", 4096.0, 100.0).unwrap();
        assert_eq!((vitals.resident_bytes, vitals.files_max), (300 * 4096, 1024));
        assert_eq!((vitals.cpu_seconds, vitals.started), (3.0, 1_700_000_010.0));
    }

    #[test]
    fn this_process_is_alive() {
        let vitals = read().unwrap();
        assert!(vitals.resident_bytes > 1 << 16 && vitals.open_files >= 3 && vitals.started > 1e9);
    }
}
