//! The disk as a process and a nemesis see it, on simulated time.
mod crash;
mod damage;
mod faults;
mod model;
mod space;
mod torture;

use std::{collections::BTreeSet, future::Future};

use detcd_node::host::{File, Open};
use madsim::runtime::Runtime;
use xxhash_rust::xxh3::Xxh3;

use super::*;
use crate::seed::ChaCha8Rng;

/// Hashes and keeps what it hears.
#[derive(Default)]
struct Recorder(Mutex<(Xxh3, Vec<DiskOp>)>);

impl DiskObserver for Recorder {
    fn disk(&self, node: u64, what: DiskOp) {
        let mut heard = self.0.lock();
        heard.0.update(format!("{node} {what:?} {:?}", SimTime::current().now()).as_bytes());
        heard.1.push(what);
    }
}

struct Bench {
    disk: SimDisk,
    heard: Arc<Recorder>,
    rng: ChaCha8Rng,
    time: SimTime,
}

fn world<F: Future>(seed: u64, test: impl FnOnce(Bench) -> F) -> F::Output {
    Runtime::with_seed_and_config(seed, Default::default()).block_on(async {
        let (time, heard) = (SimTime::current(), Arc::new(Recorder::default()));
        let disk = SimDisk::new(1, time.clone(), DiskTiming::default(), Seed(seed), heard.clone());
        disk.prepare_dir(Path::new("/d")).unwrap();
        test(Bench { disk, heard, rng: Seed(seed).child("nemesis", 0).rng(), time }).await
    })
}

fn path(path: &str) -> &Path {
    Path::new(path)
}

/// A durable file, and a handle to it.
async fn file(disk: &dyn Disk, name: &str, data: &[u8]) -> Arc<dyn File> {
    let file = disk.open(path(name), Open::Create).await.unwrap();
    file.write_sync(0, data.to_vec()).await.unwrap();
    disk.sync_dir(path("/d")).await.unwrap();
    file
}

#[test]
fn a_process_reads_what_it_wrote() {
    world(1, |bench| async move {
        let disk = bench.disk.fresh();
        disk.create_dir_all(path("/d/e/f")).await.unwrap();
        let file = disk.open(path("/d/e/f/a"), Open::Create).await.unwrap();
        // Called in this order, awaited in another: the order of the calls counts.
        let (first, second, length) = (file.write_at(0, b"hello".into()), file.write_at(3, b"p!".into()), file.len());
        let (read, cut, after) = (file.read_at(1, 100), file.set_len(2), file.read_at(0, 100));
        assert_eq!(after.await.unwrap(), b"he");
        assert_eq!((read.await.unwrap(), length.await.unwrap()), (b"elp!".into(), 5));
        cut.await.unwrap();
        second.await.unwrap();
        first.await.unwrap();
        file.allocate(64 << 20).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 64 << 20);
        file.sync().await.unwrap();
        assert!(bench.disk.held() < 10_000, "{}", bench.disk.held());
        disk.rename(path("/d/e/f/a"), path("/d/b")).await.unwrap();
        assert_eq!(disk.list(path("/d")).await.unwrap(), ["b", "e"]);
        disk.remove(path("/d/b")).await.unwrap();
        assert_eq!(disk.open(path("/d/b"), Open::Read).await.err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(file.read_at(0, 2).await.unwrap(), b"he", "an open file outlives its name");
        let stats = bench.disk.stats();
        assert_eq!((stats.writes, stats.bytes_written, stats.reads, stats.syncs), (2, 7, 3, 1));
    });
}

#[test]
fn operations_take_time_and_one_timer_is_exact() {
    world(2, |bench| async move {
        let Bench { disk, time, .. } = &bench;
        let timing = DiskTiming { write: Delay::new(100, 100), sync: Delay::new(1_000, 1_000), ..Default::default() };
        disk.set_timing(timing);
        let file = file(&*disk.fresh(), "/d/a", b"").await;
        let started = time.now();
        file.write_sync(0, vec![1; 40_000]).await.unwrap();
        let took = time.now() - started;
        // 100 us to write, 100 us to move at 400 bytes a microsecond, 1 ms to sync.
        assert!(took >= Duration::from_micros(1_200) && took < Duration::from_micros(1_205), "{took:?}");
        let started = time.now();
        let (first, second) = (file.sync(), file.sync());
        second.await.unwrap();
        assert!(time.now() - started >= Duration::from_micros(2_000), "one at a time");
        first.await.unwrap();
        disk.slow_sync(3, Duration::from_micros(500));
        let started = time.now();
        file.sync().await.unwrap();
        let took = time.now() - started;
        assert!(took >= Duration::from_micros(3_500) && took < Duration::from_micros(3_505), "{took:?}");
        assert_eq!(disk.stats().slowed_syncs, 1);
    });
}

#[test]
fn a_written_file_is_locked() {
    world(3, |bench| async move {
        let disk = bench.disk.fresh();
        let blocked = |result: io::Result<_>| result.map(drop).unwrap_err().kind() == io::ErrorKind::WouldBlock;
        let first = disk.open(path("/d/a"), Open::Create).await.unwrap();
        assert!(blocked(disk.open(path("/d/a"), Open::Write).await));
        let reader = disk.open(path("/d/a"), Open::Read).await.unwrap();
        assert_eq!(reader.write_at(0, vec![1]).await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        drop(first);
        let second = disk.open(path("/d/a"), Open::Write).await.unwrap();
        assert!(blocked(disk.open(path("/d/a"), Open::Write).await));
        let other = bench.disk.fresh();
        other.open(path("/d/a"), Open::Write).await.expect("the dead hold no locks");
        drop(second);
        // Opened, but nobody waited for it.
        drop(other.open(path("/d/a"), Open::Write));
        bench.time.sleep_until(bench.time.now() + Duration::from_millis(10)).await;
        other.open(path("/d/a"), Open::Write).await.expect("an open that nobody took holds none either");
    });
}

#[test]
fn a_power_loss_takes_any_part_of_what_was_not_synced() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let outcome = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let a = file(&*disk, "/d/a", &[b'.'; 1024]).await;
            a.write_at(0, vec![b'x'; 1024]).await.unwrap();
            drop(disk.open(path("/d/b"), Open::Create).await.unwrap());
            bench.disk.power_loss(&mut bench.rng);
            assert!(a.sync().await.is_err() && disk.list(path("/d")).await.is_err());
            let disk = bench.disk.fresh();
            let read = disk.open(path("/d/a"), Open::Read).await.unwrap().read_at(0, 2_000).await.unwrap();
            assert_eq!(read.len(), 1024);
            let names = disk.list(path("/d")).await.unwrap().len();
            let stats = bench.disk.stats();
            let lost = u64::from(read[0] == b'.') + u64::from(read[512] == b'.');
            assert_eq!((stats.sectors_lost, stats.entries_lost, stats.power_losses), (lost, 2 - names as u64, 1));
            (read[0] as char, read[512] as char, names)
        });
        outcomes.insert(outcome);
    }
    assert_eq!(outcomes.len(), 8, "{outcomes:?}");
}

#[test]
fn what_was_acknowledged_survives_and_what_was_in_flight_is_not_acknowledged() {
    let (mut torn, mut whole, mut gone) = (0, 0, 0);
    for seed in 0..300 {
        let survived = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let file = file(&*disk, "/d/a", &[b'.'; 2048]).await;
            file.write_sync(0, vec![b'k'; 512]).await.unwrap();
            let in_flight = tokio::spawn({
                let file = file.clone();
                async move { file.write_sync(512, vec![b'x'; 1024]).await }
            });
            let behind = file.write_sync(1_536, vec![b'y'; 512]);
            bench.time.sleep_until(bench.time.now() + Duration::from_micros(1 + bench.rng.next_u64() % 140)).await;
            bench.disk.power_loss(&mut bench.rng);
            assert!(in_flight.await.unwrap().is_err() && behind.await.is_err());
            let bytes = bench.disk.contents(path("/d/a")).unwrap();
            assert!(bytes[..512].iter().all(|byte| *byte == b'k'), "acknowledged");
            assert_eq!((bytes.len(), bench.disk.stats().aborted_ops), (2_048, 2));
            (bytes[512], bytes[1024])
        });
        match survived {
            (b'x', b'x') => whole += 1,
            (b'.', b'.') => gone += 1,
            _ => torn += 1,
        }
    }
    assert!(torn > 30 && whole > 30 && gone > 30, "{torn} {whole} {gone}");
}

#[test]
fn a_kill_keeps_what_was_written_and_cuts_the_queue_somewhere() {
    let mut lengths = BTreeSet::new();
    for seed in 0..100 {
        let len = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let file = disk.open(path("/d/a"), Open::Create).await.unwrap();
            file.write_at(0, b"kept".into()).await.unwrap();
            let queued = (file.write_at(4, vec![1]), file.write_at(5, vec![2]));
            bench.disk.kill(&mut bench.rng);
            assert!(queued.0.await.is_err() && queued.1.await.is_err() && file.read_at(0, 1).await.is_err());
            let bytes = bench.disk.contents(path("/d/a")).unwrap();
            assert!(b"kept\x01\x02".starts_with(&bytes) && bytes.len() >= 4);
            // Written is not durable: the machine may still lose it.
            assert_eq!((bench.disk.stats().kills, bench.disk.stats().sectors_lost), (1, 0));
            bench.disk.power_loss(&mut bench.rng);
            (bytes.len(), bench.disk.contents(path("/d/a")).is_ok())
        });
        lengths.insert(len);
    }
    assert_eq!(lengths.len(), 6, "{lengths:?}");
}

#[test]
fn a_kill_leaves_some_first_pages_of_a_write() {
    let mut lengths = BTreeSet::new();
    for seed in 0..100 {
        lengths.insert(world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let file = disk.open(path("/d/a"), Open::Create).await.unwrap();
            file.write_at(0, vec![1; 100]).await.unwrap();
            let torn = file.write_at(100, vec![2; 10_000]);
            bench.disk.kill(&mut bench.rng);
            assert!(torn.await.is_err());
            bench.disk.contents(path("/d/a")).unwrap().len()
        }));
    }
    assert_eq!(lengths, [100, 4_096, 8_192, 10_100].into());
}

#[test]
fn a_stall_holds_writes_up_until_it_ends() {
    world(4, |bench| async move {
        let Bench { disk, time, .. } = &bench;
        let file = file(&*disk.fresh(), "/d/a", b"abc").await;
        let until = time.now() + Duration::from_secs(2);
        let in_flight = file.sync();
        disk.stall(until);
        in_flight.await.unwrap();
        assert!(time.now() >= until);
        let until = time.now() + Duration::from_secs(3_600);
        disk.stall(until);
        let waiting = tokio::spawn({
            let file = file.clone();
            async move { file.write_sync(0, vec![1]).await }
        });
        time.sleep_until(time.now() + Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        disk.stall(time.now());
        time.sleep_until(time.now() + Duration::from_secs(5)).await;
        assert!(!waiting.is_finished(), "a short stall does not end a long one");
        disk.disarm_all();
        waiting.await.unwrap().unwrap();
        assert!(time.now() < until, "lifted early");
        assert_eq!(disk.stats().stalled_ops, 2);
        let started = time.now();
        file.sync().await.unwrap();
        assert!(time.now() - started < Duration::from_millis(100));
    });
}

#[test]
fn whoever_waits_is_woken_in_time() {
    world(4, |mut bench| async move {
        let Bench { disk, time, .. } = &bench;
        let file = file(&*disk.fresh(), "/d/a", b"abc").await;
        // Polled by one task, awaited by another.
        let started = time.now();
        let moved = file.clone();
        let mut sync = Box::pin(async move { moved.sync().await });
        tokio::select! {
            biased;
            _ = &mut sync => panic!("it takes time"),
            () = std::future::ready(()) => {}
        }
        tokio::spawn(sync).await.unwrap().unwrap();
        assert!(time.now() - started < Duration::from_millis(10));
        // The fence wakes those whom a stall would have kept waiting.
        disk.stall(time.now() + Duration::from_secs(3_600));
        let waiting = tokio::spawn(async move { file.sync().await });
        time.sleep_until(time.now() + Duration::from_millis(1)).await;
        let struck = time.now();
        bench.disk.power_loss(&mut bench.rng);
        assert!(waiting.await.unwrap().is_err());
        assert!(bench.time.now() - struck < Duration::from_millis(1));
    });
}

#[test]
fn a_liar_loses_what_it_acknowledged() {
    let mut lost = 0;
    for seed in 0..50 {
        lost += world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let file = file(&*disk, "/d/a", b"old").await;
            bench.disk.lie(1);
            file.write_sync(0, b"new".into()).await.unwrap();
            disk.rename(path("/d/a"), path("/d/b")).await.unwrap();
            disk.sync_dir(path("/d")).await.unwrap();
            assert_eq!(bench.disk.stats().lied_syncs, 2);
            bench.disk.lie(0);
            bench.disk.power_loss(&mut bench.rng);
            let renamed = bench.disk.contents(path("/d/b"));
            u64::from(renamed.or_else(|_| bench.disk.contents(path("/d/a"))).unwrap() == b"old")
        });
    }
    assert!((10..40).contains(&lost), "{lost}");
}

#[test]
fn a_dead_process_changes_nothing() {
    world(5, |mut bench| async move {
        let disk = bench.disk.fresh();
        let old = file(&*disk, "/d/a", b"abc").await;
        for power in [false, true] {
            if power {
                bench.disk.power_loss(&mut bench.rng)
            } else {
                bench.disk.kill(&mut bench.rng)
            }
            let heard = bench.heard.0.lock().1.len();
            assert!(old.write_sync(0, b"xyz".into()).await.is_err());
            assert!(old.set_len(0).await.is_err() && old.len().await.is_err());
            assert!(disk.remove(path("/d/a")).await.is_err());
            assert!(disk.open(path("/d/b"), Open::Create).await.is_err());
            assert!(disk.create_dir_all(path("/e")).await.is_err());
            assert_eq!(bench.heard.0.lock().1.len(), heard);
        }
        let fresh = bench.disk.fresh();
        let new = fresh.open(path("/d/a"), Open::Write).await.unwrap();
        drop(old);
        assert!(fresh.open(path("/d/a"), Open::Write).await.is_err(), "a dead handle gives up no lock of a live one");
        assert_eq!(new.read_at(0, 10).await.unwrap(), b"abc");
    });
}

/// Pulls the plug at the very call of a sync, from within.
struct Striker(Mutex<Option<SimDisk>>);

impl DiskObserver for Striker {
    fn disk(&self, _: u64, what: DiskOp) {
        if let DiskOp::SyncCalled { .. } = what
            && let Some(disk) = self.0.lock().take()
        {
            disk.power_loss(&mut Seed(1).rng());
        }
    }
}

#[test]
fn an_observer_may_strike_back() {
    Runtime::with_seed_and_config(6, Default::default()).block_on(async {
        let striker = Arc::new(Striker(Mutex::new(None)));
        let disk = SimDisk::new(1, SimTime::current(), DiskTiming::default(), Seed(6), striker.clone());
        let process = disk.fresh();
        let file = process.open(path("/a"), Open::Create).await.unwrap();
        *striker.0.lock() = Some(disk.clone());
        assert!(file.write_sync(0, vec![1]).await.is_err());
        assert_eq!(disk.stats().power_losses, 1);
    });
}

/// Random work with random faults; returns the hash of all that was observed.
fn torture(seed: u64) -> u64 {
    world(seed, |mut bench| async move {
        let mut rng = Seed(seed).child("work", 0).rng();
        let (mut synced, mut slow) = (Vec::new(), 0);
        for _ in 0..20 {
            let disk = bench.disk.fresh();
            let how = if synced.is_empty() { Open::Create } else { Open::Write };
            let Ok(file) = disk.open(path("/d/log"), how).await else { continue };
            disk.sync_dir(path("/d")).await.unwrap();
            assert!(file.read_at(0, usize::MAX).await.unwrap().starts_with(&synced));
            for _ in 0..rng.next_u64() % 30 {
                let record = vec![rng.next_u64() as u8; 1 + (rng.next_u64() % 900) as usize];
                match rng.next_u64() % 8 {
                    0 => bench.disk.stall(bench.time.now() + Duration::from_micros(rng.next_u64() % 9_000)),
                    1 => {
                        bench.disk.disarm(slow);
                        slow = bench.disk.slow_sync(1 + (rng.next_u64() % 3) as u32, Duration::ZERO);
                    }
                    _ => {}
                }
                file.write_sync(synced.len() as u64, record.clone()).await.unwrap();
                synced.extend(record);
            }
            let torn = file.write_sync(synced.len() as u64, vec![0xff; 3_000]);
            bench.time.sleep_until(bench.time.now() + Duration::from_micros(rng.next_u64() % 800)).await;
            if rng.next_u64().is_multiple_of(2) {
                bench.disk.kill(&mut bench.rng);
            } else {
                bench.disk.power_loss(&mut bench.rng);
            }
            if torn.await.is_ok() {
                synced.extend([0xff; 3_000]);
            }
        }
        assert!(bench.disk.contents(path("/d/log")).unwrap().starts_with(&synced));
        bench.heard.0.lock().0.digest()
    })
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let hashes: Vec<u64> = (0..20).map(torture).collect();
    assert_eq!(hashes, (0..20).map(torture).collect::<Vec<_>>());
    assert_eq!(BTreeSet::from_iter(hashes).len(), 20);
}
