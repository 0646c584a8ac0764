//! The facts about this machine without which a figure means nothing.
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::Instant,
};

use crate::{Failure, stats::Latencies};

/// What a log writes at a time, about.
const SYNC_BYTES: usize = 4096;
const SYNCS: usize = 200;

/// One line for people: cores, CPU, kernel, file system, disk.
pub fn describe(dir: &Path) -> Result<String, Failure> {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| parse_cpu_model(&text).map(String::from));
    let cpu = cpu.unwrap_or("unknown CPU".into());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or("unknown".into());
    let filesystem = filesystem(dir)?;
    let sync_ms = sync_p50_ms(dir).map_err(|error| {
        Failure::Run(format!("cannot measure fdatasync in {}: {error}; give another --dir", dir.display()))
    })?;
    Ok(format!(
        "{cores} cores ({cpu}), Linux {}, {filesystem}, fdatasync of {SYNC_BYTES} appended bytes p50 {sync_ms:.2} ms",
        kernel.trim()
    ))
}

/// The type of the file system that holds `dir`. It must be on a disk, or durability costs nothing.
fn filesystem(dir: &Path) -> Result<String, Failure> {
    let failed = |what: String| {
        Failure::Run(format!("cannot tell the file system of {}: {what}; give another --dir", dir.display()))
    };
    let dir = dir.canonicalize().map_err(|error| failed(error.to_string()))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| failed(error.to_string()))?;
    match parse_filesystem(&mounts, &dir) {
        Some(memory @ ("tmpfs" | "ramfs")) => {
            let dir = dir.display();
            Err(Failure::Run(format!("{dir} is on {memory}, where syncing costs nothing; give a --dir on a disk")))
        }
        Some(filesystem) => Ok(filesystem.into()),
        None => Err(failed("no mount holds it".into())),
    }
}

fn parse_cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// Of the mounts above `dir` the deepest, and of those at one place the last.
fn parse_filesystem<'a>(mountinfo: &'a str, dir: &Path) -> Option<&'a str> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        dir.starts_with(&point).then_some((point.len(), filesystem.split(' ').next()?))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, filesystem)| filesystem)
}

fn sync_p50_ms(dir: &Path) -> io::Result<f64> {
    let path = dir.join("fdatasync");
    let mut file = File::create(&path)?;
    let mut latencies = Latencies::new();
    for _ in 0..SYNCS {
        file.write_all(&[0x5a; SYNC_BYTES])?;
        let start = Instant::now();
        file.sync_data()?;
        latencies.record(start.elapsed());
    }
    fs::remove_file(path)?;
    Ok(latencies.percentile_ms(50.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_above_a_directory_holds_it() {
        let mounts = "\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
23 22 0:21 / /tmp rw shared:5 - tmpfs tmpfs rw
24 23 254:1 / /tmp/a\\040disk rw - xfs /dev/vdb rw
25 22 0:22 / /var rw - ext4 /dev/vdc rw
26 22 0:23 / /var rw - btrfs /dev/vdd rw
";
        #[track_caller]
        fn check(mounts: &str, dir: &str, expected: Option<&str>) {
            assert_eq!(parse_filesystem(mounts, Path::new(dir)), expected);
        }
        check(mounts, "/home/x", Some("ext4"));
        check(mounts, "/tmp/x", Some("tmpfs"));
        check(mounts, "/tmpx", Some("ext4"));
        check(mounts, "/tmp/a disk/x", Some("xfs"));
        check(mounts, "/var/lib", Some("btrfs"));
        check("", "/", None);
    }

    #[test]
    fn the_cpu_model_is_the_first_named() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Fast CPU @ 3 GHz\n\nmodel name\t: Other\n";
        assert_eq!(parse_cpu_model(cpuinfo), Some("Fast CPU @ 3 GHz"));
        assert_eq!(parse_cpu_model("processor : 0\n"), None);
    }
}
