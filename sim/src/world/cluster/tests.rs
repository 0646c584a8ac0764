//! Processes that end by themselves, and faults of machines that overlap.
use std::{
    future::Future,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use madsim::runtime::Runtime;

use super::*;
use crate::{
    runner::cluster_options,
    scenario::Scenario,
    world::disk::{Io, Lasting, Paths},
};

const SCENARIO: &str = r#"
claim = "One member is enough."
run_ms = 60_000
settle_ms = 5_000
cluster = { nodes = 1 }
"#;
const NODE: NodeNumber = NodeNumber(1);

struct Bench {
    cluster: Cluster,
    /// Counted by a task of the process that nobody waits for.
    count: Arc<AtomicU64>,
}

impl Bench {
    async fn wait(&self, ms: u64) {
        self.cluster.time.sleep_until(self.cluster.time.now() + Duration::from_millis(ms)).await;
    }

    fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Whether the process does anything, or is about to: its start reads all of a log.
    async fn lives(&self) -> bool {
        let before = self.count();
        self.wait(1_000).await;
        self.count() > before
    }
}

fn world<F: Future>(test: impl FnOnce(Bench) -> F) -> F::Output {
    Runtime::with_seed_and_config(1, Default::default()).block_on(async {
        let scenario = Scenario::parse("test", SCENARIO).unwrap();
        let recorder = Recorder::forgetful(SimTime::current());
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let wrap: Wrap = Arc::new(move |_, replica| {
            let counted = counted.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    counted.fetch_add(1, Relaxed);
                }
            });
            Box::new(replica)
        });
        let cluster = Cluster::start(&cluster_options(&scenario), Seed(1), &recorder, wrap);
        test(Bench { cluster, count }).await
    })
}

#[test]
fn a_process_that_ended_by_itself_does_nothing_any_more() {
    world(|bench| async move {
        let disk = bench.cluster.node(NODE).machine.disk.clone();
        assert!(bench.lives().await);
        bench.cluster.allow_exit(NODE, &[ExitKind::Disk]);
        let fault = disk.fail_io(Io::Sync, Lasting::Until(Duration::MAX), Paths::under("/data/member/wal"));
        bench.wait(20_000).await;
        assert_eq!(bench.cluster.exit(NODE).expect("it cannot write").kind, ExitKind::Disk);
        assert!(!bench.lives().await, "its tasks are gone");
        assert_eq!(disk.stats().kills, 1, "its disk is out of its reach");
        assert!(!bench.cluster.kill(NODE, Seed(1)), "who is dead is not killed");
        disk.disarm(fault);
        bench.cluster.restart_ended(NODE);
        bench.wait(100).await;
        assert!(bench.cluster.is_running(NODE) && bench.lives().await);
        assert!(disk.contents(Path::new("/data/member/wal/0000000000000000-0000000000000000.wal")).is_ok());
    });
}

#[test]
fn a_pause_ends_with_the_last_of_those_who_asked_for_it() {
    world(|bench| async move {
        let cluster = &bench.cluster;
        let [first, second] = [cluster.pause(NODE).unwrap(), cluster.pause(NODE).unwrap()];
        assert!(cluster.resume(NODE, first));
        assert!(cluster.is_paused(NODE) && !bench.lives().await);
        assert!(cluster.resume(NODE, second) && bench.lives().await);
        let third = cluster.pause(NODE).unwrap();
        assert!(cluster.kill(NODE, Seed(1)));
        assert_eq!(cluster.pause(NODE), None);
        cluster.restart(NODE);
        assert!(!cluster.resume(NODE, third) && bench.lives().await, "another process was never paused");
    });
}

#[test]
fn a_machine_that_is_kept_off_is_started_by_nobody() {
    world(|bench| async move {
        let cluster = &bench.cluster;
        for _ in 0..2 {
            cluster.hold(NODE);
        }
        assert!(cluster.power_off(NODE, &mut Seed(1).rng()));
        for _ in 0..2 {
            cluster.restart(NODE);
            assert!(!cluster.is_running(NODE) && !bench.lives().await);
            cluster.release(NODE);
        }
        cluster.restart(NODE);
        assert!(cluster.is_running(NODE) && bench.lives().await);
    });
}
