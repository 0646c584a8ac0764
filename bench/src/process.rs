//! What servers cost: CPU time and memory of processes, from `/proc`.
use std::{fs, ops::Sub, time::Duration};

use crate::{Failure, os};

/// CPU time used so far, user and system, all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime(Duration);

impl CpuTime {
    pub fn of(pids: &[u32]) -> Result<CpuTime, Failure> {
        let ticks = read_all(pids, "stat", parse_cpu_ticks)?.iter().sum::<u64>();
        Ok(CpuTime::from_ticks(ticks))
    }

    /// Everything that kept this machine from idling, time stolen by its host included.
    pub fn of_machine() -> Result<CpuTime, Failure> {
        let path = "/proc/stat";
        let text = fs::read_to_string(path).map_err(|error| Failure::Run(format!("cannot read {path}: {error}")))?;
        let ticks = parse_machine_ticks(&text);
        ticks.map(CpuTime::from_ticks).ok_or_else(|| Failure::Run(format!("cannot understand {path}")))
    }

    fn from_ticks(ticks: u64) -> CpuTime {
        CpuTime(Duration::from_secs(ticks) / os::clock_ticks_per_second() as u32)
    }
}

impl Sub for CpuTime {
    type Output = Duration;

    fn sub(self, earlier: CpuTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Memory of several processes together. Pages that they share count once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub resident_bytes: u64,
    /// The sum of each process's own highest.
    pub resident_bytes_max: u64,
}

impl Memory {
    pub fn of(pids: &[u32]) -> Result<Memory, Failure> {
        let each = read_all(pids, "status", |status| {
            Some((parse_status_bytes(status, "VmRSS")?, parse_status_bytes(status, "VmHWM")?))
        })?;
        let (resident_bytes, resident_bytes_max) =
            each.into_iter().fold((0, 0), |sum, process| (sum.0 + process.0, sum.1 + process.1));
        Ok(Memory { resident_bytes, resident_bytes_max })
    }
}

fn read_all<T>(pids: &[u32], file: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Failure> {
    let read = |pid: &u32| {
        let path = format!("/proc/{pid}/{file}");
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::Run(format!("cannot read {path}: {error}; is process {pid} still running?")))?;
        parse(&text).ok_or_else(|| Failure::Run(format!("cannot understand {path}; this needs a Linux /proc")))
    };
    pids.iter().map(read).collect()
}

/// `utime` + `stime`, fields 14 and 15. Field 2, the name in parentheses, may hold spaces and parentheses.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(14 - 3);
    let user = fields.next()?.parse::<u64>().ok()?;
    let system = fields.next()?.parse::<u64>().ok()?;
    Some(user + system)
}

/// The first line: `cpu user nice system idle iowait irq softirq steal ...`; what follows is counted in `user` already.
fn parse_machine_ticks(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let fields: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else { return None };
    Some(user + nice + system + irq + softirq + steal)
}

fn parse_status_bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib = line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_found_behind_any_name() {
        #[track_caller]
        fn check(stat: &str, expected: Option<u64>) {
            assert_eq!(parse_cpu_ticks(stat), expected);
        }
        check("7 (etcd) S 1 7 7 0 -1 4194560 900 0 3 0 120 34 0 0 20 0 9 0 55 1 2", Some(154));
        check("7 (a b) c) (d) S 1 7 7 0 -1 4194560 900 0 3 0 1 2 0 0 20 0 9 0", Some(3));
        check("7 (etcd) S 1 7 7 0 -1 4194560 900 0 3 0 120", None);
        check("7 (etcd) S 1 7 7 0 -1 4194560 900 0 3 0 x 34 0", None);
        check("", None);
    }

    #[test]
    fn a_machine_is_busy_when_it_is_neither_idle_nor_waiting() {
        #[track_caller]
        fn check(stat: &str, expected: Option<u64>) {
            assert_eq!(parse_machine_ticks(stat), expected);
        }
        check("cpu  1 2 4 1000 2000 8 16 32 5000 6000\ncpu0 9 9 9 9 9 9 9 9 9 9\n", Some(63));
        check("cpu  1 2 4 1000", None);
        check("intr 5\n", None);
    }

    #[test]
    fn memory_fields_are_kibibytes() {
        let status = "Name:\tetcd\nVmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t9\n";
        assert_eq!(parse_status_bytes(status, "VmRSS"), Some(1 << 20));
        assert_eq!(parse_status_bytes(status, "VmHWM"), Some(2 << 20));
        assert_eq!(parse_status_bytes(status, "VmSwap"), None);
        assert_eq!(parse_status_bytes(status, "Threads"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let pids = [std::process::id()];
        let before = CpuTime::of(&pids).unwrap();
        assert!(CpuTime::of(&pids).unwrap() - before < Duration::from_secs(60));
        let memory = Memory::of(&pids).unwrap();
        assert!(memory.resident_bytes > 0);
        assert!(memory.resident_bytes <= memory.resident_bytes_max);
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let failure = CpuTime::of(&[u32::MAX]).unwrap_err().to_string();
        assert!(failure.contains("is process 4294967295 still running?"), "{failure}");
    }
}
