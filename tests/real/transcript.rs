//! Law: a real `etcdctl` cannot tell detcd from etcd. The same transcript is said to both, on the same ports one after
//! the other, and stdout, stderr and exit codes are compared.
//!
//! To add a case, add a line to a file under `transcripts/`; `TRANSCRIPT=name` runs one file only.
use detcd_tests::harness::{
    Addresses, Certificates, Cluster, Ctl, Kind, Peers, files,
    script::{self, Step},
};
use std::{env, fs, path::Path, sync::Arc, thread};

/// Transcripts played at the same time: starting a cluster is mostly waiting.
const AT_ONCE: usize = 3;

#[test]
fn etcdctl_35_one_member() {
    compare(Ctl::V35, Scene::plain(1), &[]);
}

#[test]
fn etcdctl_36_one_member() {
    compare(Ctl::V36, Scene::plain(1), &[]);
}

#[test]
fn etcdctl_35_three_members() {
    compare(Ctl::V35, Scene::plain(3), &[]);
}

#[test]
fn etcdctl_36_three_members() {
    compare(Ctl::V36, Scene::plain(3), &[]);
}

/// What kind of cluster a transcript is said to.
#[derive(Debug, Clone)]
pub struct Scene {
    pub members: usize,
    pub tls: Option<Arc<Certificates>>,
}

impl Scene {
    fn plain(members: usize) -> Scene {
        Scene { members, tls: None }
    }

    fn addresses(&self) -> Addresses {
        if self.tls.is_some() { Addresses::reserve_tls(self.members) } else { Addresses::reserve(self.members) }
    }

    fn start(&self, kind: Kind, peers: &Peers, addresses: &Addresses) -> Cluster {
        let Some(certificates) = &self.tls else { return Cluster::start_kind(kind, peers, addresses) };
        let mut cluster = Cluster::prepare_tls(&peers.server(kind), addresses, certificates);
        cluster.start_all();
        cluster
    }
}

/// Says the transcripts of these names, or all there are, to both servers.
pub fn compare(ctl: Ctl, scene: Scene, only: &[&str]) {
    let Some(peers) = Peers::find() else { return };
    let (mut commands, mut reports) = (0, Vec::new());
    for some in transcripts(only).chunks(AT_ONCE) {
        thread::scope(|scope| {
            let runs: Vec<_> = some.iter().map(|one| scope.spawn(|| say_to_both(one, &peers, ctl, &scene))).collect();
            for (count, differences) in runs.into_iter().map(|run| run.join().expect("no panic in a transcript")) {
                commands += count;
                reports.extend(differences);
            }
        });
    }
    let Scene { members, tls } = scene;
    let manner = if tls.is_some() { " over TLS" } else { "" };
    let scene = format!("etcdctl {}, {members} member(s){manner}, {commands} commands", ctl.release());
    assert!(commands > 0, "{scene}: nothing was compared");
    assert!(reports.is_empty(), "{scene}: {} differ\n{}", reports.len(), reports.join("\n"));
}

/// The number of commands, and a report of each on which the servers differ.
fn say_to_both((name, steps): &(String, Vec<Step>), peers: &Peers, ctl: Ctl, scene: &Scene) -> (usize, Vec<String>) {
    // Each transcript on a fresh store: revisions in it can be written down.
    let addresses = scene.addresses();
    let [etcd, detcd] = [Kind::Etcd36, Kind::Detcd].map(|kind| {
        let cluster = scene.start(kind, peers, &addresses);
        script::play(steps, peers, ctl, &cluster)
    });
    let differences = script::differences(&etcd, &detcd);
    (etcd.len(), differences.iter().map(|report| format!("{name}, {report}")).collect())
}

fn transcripts(only: &[&str]) -> Vec<(String, Vec<Step>)> {
    let wanted = env::var("TRANSCRIPT").ok();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("real/transcripts");
    let read = |path: &Path| {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a transcript is text");
        let steps = script::parse(&text).unwrap_or_else(|why| panic!("{}, {why}", path.display()));
        (name, steps)
    };
    let all = files::with_extension(&dir, "txt").into_iter().map(|path| read(&path));
    let asked_for = |name: &str| only.is_empty() || only.contains(&name);
    all.filter(|(name, _)| wanted.as_ref().map_or(asked_for(name), |wanted| wanted == name)).collect()
}
