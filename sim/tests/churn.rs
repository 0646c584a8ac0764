//! Members come and go for a week.
use std::process::Command;

/// A week in which hundreds of members come and go leaves the cluster as small as it was. (A month: `--days 30`.)
#[test]
fn a_cluster_whose_members_come_and_go_does_not_grow() {
    let output = Command::new(env!("CARGO_BIN_EXE_detcd-sim")).args(["churn", "--days", "7"]).output();
    let output = output.expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 8, "a line a day: {text}");
}
