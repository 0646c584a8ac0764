//! What scripts rely on: exit codes, and errors of one line on stderr.
use std::process::Command;

#[track_caller]
fn check(arguments: &[&str], code: i32, stderr_start: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_detcd-bench")).args(arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with(stderr_start), "{stderr}");
    assert_eq!(stderr.lines().count(), usize::from(code != 0), "{stderr}");
}

#[test]
fn exit_codes_tell_usage_from_failure() {
    check(&["--help"], 0, "");
    check(&[], 64, "detcd-bench: no subcommand");
    check(&["load", "--workload", "put"], 64, "detcd-bench: the following required arguments were not provided");
    check(&["compare", "--competitor", "a=b", "--members", "0"], 64, "detcd-bench: invalid value '0' for '--members");
    check(
        &["load", "--workload", "put", "--endpoints", "127.0.0.1:1"],
        1,
        "detcd-bench: cannot connect to 127.0.0.1:1: Connection refused",
    );
}
