//! Law: a real `etcdctl` cannot tell detcd from etcd. The same transcript is said to both, on the same ports one after
//! the other, and stdout, stderr and exit codes are compared.
//!
//! To add a case, add a line to a file under `transcripts/`; `TRANSCRIPT=name` runs one file only.
use detcd_tests::harness::{
    Addresses, Cluster, Ctl, Kind, Peers, files,
    script::{self, Step},
};
use std::{env, fs, path::Path, thread};

/// Transcripts played at the same time: starting a cluster is mostly waiting.
const AT_ONCE: usize = 3;

#[test]
fn etcdctl_35_one_member() {
    compare(Ctl::V35, 1);
}

#[test]
fn etcdctl_36_one_member() {
    compare(Ctl::V36, 1);
}

#[test]
fn etcdctl_35_three_members() {
    compare(Ctl::V35, 3);
}

#[test]
fn etcdctl_36_three_members() {
    compare(Ctl::V36, 3);
}

fn compare(ctl: Ctl, members: usize) {
    let Some(peers) = Peers::find() else { return };
    let (mut commands, mut reports) = (0, Vec::new());
    for some in transcripts().chunks(AT_ONCE) {
        thread::scope(|scope| {
            let runs: Vec<_> = some.iter().map(|one| scope.spawn(|| say_to_both(one, &peers, ctl, members))).collect();
            for (count, differences) in runs.into_iter().map(|run| run.join().expect("no panic in a transcript")) {
                commands += count;
                reports.extend(differences);
            }
        });
    }
    let scene = format!("etcdctl {}, {members} member(s), {commands} commands", ctl.release());
    assert!(commands > 0, "{scene}: nothing was compared");
    assert!(reports.is_empty(), "{scene}: {} differ\n{}", reports.len(), reports.join("\n"));
}

/// The number of commands, and a report of each on which the servers differ.
fn say_to_both((name, steps): &(String, Vec<Step>), peers: &Peers, ctl: Ctl, members: usize) -> (usize, Vec<String>) {
    // Each transcript on a fresh store: revisions in it can be written down.
    let addresses = Addresses::reserve(members);
    let [etcd, detcd] = [Kind::Etcd36, Kind::Detcd].map(|kind| {
        let cluster = Cluster::start_kind(kind, peers, &addresses);
        script::play(steps, peers, ctl, &cluster)
    });
    let differences = script::differences(&etcd, &detcd);
    (etcd.len(), differences.iter().map(|report| format!("{name}, {report}")).collect())
}

fn transcripts() -> Vec<(String, Vec<Step>)> {
    let wanted = env::var("TRANSCRIPT").ok();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("real/transcripts");
    let read = |path: &Path| {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a transcript is text");
        let steps = script::parse(&text).unwrap_or_else(|why| panic!("{}, {why}", path.display()));
        (name, steps)
    };
    let all = files::with_extension(&dir, "txt").into_iter().map(|path| read(&path));
    all.filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name)).collect()
}
