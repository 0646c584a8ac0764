//! Power lost at every step, with every choice of what it takes.
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::*;

const S: usize = SECTOR as usize;

/// Replaces a file as one should, or not: `synced` says whether the bytes are durable before the name is.
async fn replace(disk: &dyn Disk, data: Vec<u8>, synced: bool) -> io::Result<()> {
    let file = disk.open(path("/d/tmp"), Open::Create).await?;
    file.allocate(3 * SECTOR).await?;
    file.write_at(0, data).await?;
    if synced {
        file.sync().await?;
    }
    disk.rename(path("/d/tmp"), path("/d/a")).await?;
    disk.sync_dir(path("/d")).await
}

/// Every state that a crash in `replace` can leave of the file: its letters, or `-`. And how many states of the disk.
fn states(synced: bool) -> (BTreeSet<String>, usize) {
    world(1, |bench| async move {
        drop(file(&*bench.disk.fresh(), "/d/a", &[b'o'; 2 * S]).await);
        let (start, first) = (bench.disk.image(), bench.disk.points());
        replace(&*bench.disk.fresh(), vec![b'n'; 3 * S], synced).await.unwrap();
        let steps = bench.disk.points() - first;
        assert_eq!(steps, 5 + u64::from(synced));
        let (mut letters, mut images) = (BTreeSet::new(), BTreeMap::new());
        for step in 1..=steps {
            for before in [true, false] {
                bench.disk.restore(&start);
                bench.disk.crash_at(bench.disk.points() + step, before, || ());
                assert!(replace(&*bench.disk.fresh(), vec![b'n'; 3 * S], synced).await.is_err());
                let pending = bench.disk.pending().len();
                assert!(pending <= 8, "{:?}", bench.disk.pending());
                for mask in 0..1 << pending {
                    let image = bench.disk.image_after_loss(mask);
                    images.insert(image.digest(), image);
                }
            }
        }
        for image in images.values() {
            bench.disk.restore(image);
            let bytes = bench.disk.contents(path("/d/a"));
            letters.insert(bytes.map_or("-".into(), |bytes| {
                bytes.chunks(S).map(|sector| if sector[0] == 0 { '0' } else { sector[0] as char }).collect()
            }));
        }
        (letters, images.len())
    })
}

#[test]
fn every_crash_of_a_replacement_leaves_the_old_or_the_new() {
    let (letters, images) = states(true);
    assert_eq!(letters, ["oo", "nnn"].map(String::from).into());
    // The old file; beside it a temporary one, empty, or of three sectors of which any are new; the new file.
    assert_eq!(images, 1 + 1 + 8 + 1);
}

#[test]
fn a_forgotten_sync_is_found_by_crashing_everywhere() {
    let (letters, _) = states(false);
    let torn = ["", "000", "00n", "0n0", "0nn", "n00", "n0n", "nn0"].map(String::from);
    assert!(torn.iter().all(|state| letters.contains(state)), "{letters:?}");
    assert_eq!(letters.len(), torn.len() + 2);
}

#[test]
fn steps_are_counted_and_power_is_lost_where_it_was_said() {
    use Step::*;
    let steps = [CreateDir, Create, Allocate, Write, Write, Sync, SetLen, Sync, SyncDir, Rename, Remove, SyncDir];
    for (number, step) in steps.into_iter().enumerate() {
        for before in [true, false] {
            world(7, |bench| async move {
                let point = number as u64 + 1;
                let called = Arc::new(AtomicU64::new(0));
                let then = called.clone();
                bench.disk.crash_at(point, before, move || then.store(1, Relaxed));
                let work = async {
                    let disk = bench.disk.fresh();
                    disk.create_dir_all(path("/d/e")).await?;
                    let a = disk.open(path("/d/e/a"), Open::Create).await?;
                    a.allocate(9).await?;
                    a.write_at(0, vec![1]).await?;
                    a.write_sync(5, vec![2]).await?;
                    a.set_len(7).await?;
                    a.sync().await?;
                    disk.sync_dir(path("/d/e")).await?;
                    disk.rename(path("/d/e/a"), path("/d/e/b")).await?;
                    disk.remove(path("/d/e/b")).await?;
                    disk.sync_dir(path("/d/e")).await
                };
                assert!(work.await.is_err());
                assert_eq!((bench.disk.points(), called.load(Relaxed), bench.disk.stats().crashes), (point, 1, 1));
                let last = bench.heard.0.lock().1.last().cloned();
                assert_eq!(last, Some(DiskOp::Crashed { point, before, step }));
                let done = bench.heard.0.lock().1.iter().filter(|op| matches!(op, DiskOp::Written { .. })).count();
                let writes = steps[..number + usize::from(!before)].iter().filter(|step| **step == Write).count();
                assert_eq!(done, writes);
            });
        }
    }
}

#[test]
fn what_is_pending_is_listed_and_exactly_the_chosen_part_is_kept() {
    let work = |bench: &Bench| {
        let disk = bench.disk.fresh();
        async move {
            let a = file(&*disk, "/d/a", &[b'.'; 2 * S]).await;
            drop(disk.open(path("/d/b"), Open::Create).await.unwrap());
            disk.rename(path("/d/b"), path("/d/c")).await.unwrap();
            a.write_at(SECTOR - 1, vec![b'x'; 2]).await.unwrap();
            a.write_at(SECTOR - 1, vec![b'y'; 1]).await.unwrap();
            a.write_at(3 * SECTOR, vec![b'z'; 5]).await.unwrap();
            // Nobody can reach it after a power loss, so it is not listed.
            let gone = disk.open(path("/d/gone"), Open::Create).await.unwrap();
            disk.remove(path("/d/gone")).await.unwrap();
            disk.sync_dir(path("/d")).await.unwrap();
            disk.remove(path("/d/c")).await.unwrap();
            gone.write_at(0, vec![1]).await.unwrap();
            (a, gone)
        }
    };
    for mask in 0..32u64 {
        world(8, |bench| async move {
            let open = work(&bench).await;
            let path_of = |name: &str| Some(Arc::from(name));
            let sector = |offset| Unsynced::Sector { path: "/d/a".into(), offset };
            let length = Unsynced::Length { path: "/d/a".into(), from: 2 * SECTOR, to: 3 * SECTOR + 5 };
            let removed = Unsynced::Entry { from: path_of("/d/c"), to: None };
            assert_eq!(bench.disk.pending(), [removed, length, sector(0), sector(SECTOR), sector(3 * SECTOR)]);
            let (image, aborted) = (bench.disk.image_after_loss(mask), open.0.write_at(0, b"in flight".into()));
            bench.disk.lose_exactly(mask);
            assert!(aborted.await.is_err());
            assert_eq!(bench.disk.image().digest(), image.digest());
            let kept = |item: u32| mask >> item & 1 == 1;
            assert_eq!(bench.disk.contents(path("/d/c")).is_err(), kept(0));
            let bytes = bench.disk.contents(path("/d/a")).unwrap();
            assert_eq!(bytes.len(), if kept(1) { 3 * S + 5 } else { 2 * S });
            assert_eq!(bytes[S - 1], if kept(2) { b'y' } else { b'.' }, "as it was written last");
            assert_eq!(bytes[S], if kept(3) { b'x' } else { b'.' });
            assert_eq!(bytes.get(3 * S), kept(1).then_some(if kept(4) { &b'z' } else { &0 }));
            let stats = bench.disk.stats();
            let lost = [2, 3, 4].into_iter().filter(|item| !kept(*item)).count() as u64;
            assert_eq!((stats.entries_lost, stats.sectors_lost), (u64::from(!kept(0)), lost));
            assert_eq!((stats.power_losses, stats.aborted_ops), (1, 1));
            assert!(bench.disk.pending().is_empty());
        });
    }
}

#[test]
fn an_entry_is_kept_only_with_those_it_depends_on() {
    for (mask, names) in [(0, ""), (0b01, "a"), (0b10, ""), (0b11, "b")] {
        world(9, |bench| async move {
            let disk = bench.disk.fresh();
            drop(disk.open(path("/d/a"), Open::Create).await.unwrap());
            disk.rename(path("/d/a"), path("/d/b")).await.unwrap();
            assert_eq!(bench.disk.pending().len(), 2);
            bench.disk.lose_exactly(mask);
            assert_eq!(bench.disk.fresh().list(path("/d")).await.unwrap().join(""), names);
        });
    }
}

#[test]
fn the_last_bit_stands_for_all_that_follow() {
    for (mask, kept) in [(0, 0), (u64::MAX, 100), (1 << 63, 37), (u64::MAX >> 1, 63)] {
        world(10, |bench| async move {
            let a = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 100 * S]).await;
            a.write_at(0, vec![b'x'; 100 * S]).await.unwrap();
            bench.disk.lose_exactly(mask);
            let bytes = bench.disk.contents(path("/d/a")).unwrap();
            assert_eq!(bytes.chunks(S).filter(|sector| sector[0] == b'x').count(), kept);
        });
    }
}

#[test]
fn a_crash_that_nobody_decides_takes_all_and_one_that_chance_decides_takes_some() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        for decided in [false, true] {
            let left = world(seed, |mut bench| async move {
                let a = file(&*bench.disk.fresh(), "/d/a", &[b'.'; S]).await;
                bench.disk.crash_at(bench.disk.points() + 2, true, || ());
                assert!(a.write_sync(0, vec![b'x'; S]).await.is_err());
                assert!(a.read_at(0, 1).await.is_err(), "the process is dead");
                if decided {
                    bench.disk.power_loss(&mut bench.rng);
                }
                drop(bench.disk.fresh());
                let stats = bench.disk.stats();
                assert_eq!((stats.crashes, stats.power_losses), (1, 1));
                bench.disk.contents(path("/d/a")).unwrap()[0] as char
            });
            outcomes.insert((decided, left));
        }
    }
    assert_eq!(Vec::from_iter(outcomes), [(false, '.'), (true, '.'), (true, 'x')]);
}

#[test]
fn whoever_is_called_at_a_crash_may_strike_back() {
    world(11, |bench| async move {
        let a = file(&*bench.disk.fresh(), "/d/a", b"old").await;
        let disk = bench.disk.clone();
        bench.disk.crash_at(bench.disk.points() + 1, false, move || disk.lose_exactly(u64::MAX));
        assert!(a.write_at(0, b"new".into()).await.is_err());
        assert_eq!(bench.disk.contents(path("/d/a")).unwrap(), b"new");
        assert_eq!(bench.disk.stats().power_losses, 1);
    });
}

#[test]
fn a_process_that_died_alone_takes_nothing_with_it() {
    world(12, |bench| async move {
        let a = file(&*bench.disk.fresh(), "/d/a", b"old").await;
        bench.disk.crash_at(bench.disk.points() + 1, false, || ());
        assert!(a.write_at(0, b"new".into()).await.is_err());
        bench.disk.lose_nothing();
        let b = bench.disk.fresh().open(path("/d/a"), Open::Write).await.unwrap();
        assert_eq!((b.read_at(0, 3).await.unwrap(), bench.disk.pending().len()), (b"new".into(), 1));
        let stats = bench.disk.stats();
        assert_eq!((stats.crashes, stats.kills, stats.power_losses), (1, 1, 0));
        bench.disk.lose_exactly(0);
        assert_eq!(bench.disk.contents(path("/d/a")).unwrap(), b"old");
    });
}
