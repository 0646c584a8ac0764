//! Errors: what fails, how often, and what is left of it.
use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const S: usize = SECTOR as usize;

fn is_eio(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

#[track_caller]
fn fails<T>(result: io::Result<T>) {
    let error = result.map(drop).expect_err("an I/O error");
    assert!(is_eio(&error), "{error}");
}

/// The first byte of each sector.
fn letters(disk: &SimDisk, name: &str) -> String {
    disk.contents(path(name)).unwrap().chunks(S).map(|sector| sector[0] as char).collect()
}

#[test]
fn bytes_whose_sync_failed_are_read_and_never_made_durable() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let left = world(seed, |mut bench| async move {
            let file = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 3 * S]).await;
            bench.disk.fail_sync(1, Paths::all());
            file.write_at(0, vec![b'x'; 2 * S]).await.unwrap();
            fails(file.sync().await);
            for _ in 0..3 {
                file.sync().await.expect("the kernel believes that all is written");
                assert_eq!(file.read_at(0, 2 * S).await.unwrap(), [b'x'; 2 * S]);
            }
            let stats = bench.disk.stats();
            assert_eq!((stats.failed_syncs, stats.sectors_dropped, stats.syncs), (1, 2, 5));
            let failed = DiskOp::SyncFailed { path: "/d/a".into() };
            assert_eq!(bench.heard.0.lock().1.iter().filter(|op| **op == failed).count(), 1);
            bench.disk.power_loss(&mut bench.rng);
            let left = letters(&bench.disk, "/d/a");
            assert_eq!(bench.disk.stats().sectors_lost, left[..2].matches('.').count() as u64);
            left
        });
        outcomes.insert(left);
    }
    assert_eq!(Vec::from_iter(outcomes).join(" "), "... .x. x.. xx.");
}

#[test]
fn a_sector_written_again_is_dirty_as_a_whole() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let left = world(seed, |mut bench| async move {
            let file = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 2 * S]).await;
            bench.disk.fail_sync(1, Paths::all());
            fails(file.write_sync(0, vec![b'x'; 3 * S]).await);
            assert_eq!(bench.disk.stats().writes, 2, "it is written, in memory");
            file.write_sync(S as u64 + 7, b"y".into()).await.unwrap();
            bench.disk.power_loss(&mut bench.rng);
            let bytes = bench.disk.contents(path("/d/a")).unwrap();
            assert_eq!((bytes[S], bytes[S + 7], bytes[2 * S - 1]), (b'x', b'y', b'x'), "what was clean there too");
            letters(&bench.disk, "/d/a")
        });
        outcomes.insert(left);
    }
    // The length is durable with the second sync; what stands at the end may be none of what was written.
    assert_eq!(Vec::from_iter(outcomes).join(" "), ".x\0 .xx xx\0 xxx");
}

#[test]
fn what_is_cut_after_a_failed_sync_does_not_come_back() {
    for seed in 0..60 {
        world(seed, |mut bench| async move {
            let file = file(&*bench.disk.fresh(), "/d/a", &[b'.'; S]).await;
            bench.disk.fail_sync(1, Paths::all());
            fails(file.write_sync(S as u64, vec![b'x'; 2 * S]).await);
            file.set_len(S as u64 + 10).await.unwrap();
            file.set_len(3 * S as u64).await.unwrap();
            file.sync().await.unwrap();
            bench.disk.power_loss(&mut bench.rng);
            let bytes = bench.disk.contents(path("/d/a")).unwrap();
            assert_eq!(bytes.len(), 3 * S);
            assert!(bytes[S + 10..].iter().all(|byte| *byte == 0));
            assert!([[0; 10], [b'x'; 10]].contains(bytes[S..].first_chunk().unwrap()));
        });
    }
}

#[test]
fn only_so_many_syncs_of_such_paths_fail() {
    world(1, |bench| async move {
        let disk = bench.disk.fresh();
        disk.create_dir_all(path("/d/wal")).await.unwrap();
        let (a, b) = (file(&*disk, "/d/wal/a", b"").await, file(&*disk, "/d/wall", b"").await);
        bench.disk.fail_sync(2, Paths::under("/d/wal"));
        b.sync().await.expect("another path");
        disk.sync_dir(path("/d")).await.expect("another path");
        fails(a.sync().await);
        fails(disk.sync_dir(path("/d/wal")).await);
        a.sync().await.expect("that was all");
        bench.disk.fail_sync(2, Paths::that(|path| path.ends_with('l')));
        fails(b.sync().await);
        bench.disk.disarm_all();
        b.sync().await.unwrap();
        assert_eq!(bench.disk.stats().failed_syncs, 3);
    });
}

#[test]
fn a_file_is_known_by_the_name_it_has_now() {
    world(1, |bench| async move {
        let disk = bench.disk.fresh();
        drop(file(&*disk, "d/a", b"").await);
        disk.rename(path("/d/a"), path("/d/b")).await.unwrap();
        bench.disk.lose_exactly(0);
        let disk = bench.disk.fresh();
        let a = disk.open(path("d/./a"), Open::Write).await.unwrap();
        bench.disk.fail_sync(1, Paths::under("/d/a"));
        fails(a.sync().await);
        disk.create_dir_all(path("e")).await.unwrap();
        disk.rename(path("/d"), path("e/f")).await.unwrap();
        bench.disk.fail_sync(1, Paths::under("/e/f/a"));
        fails(a.sync().await);
        let image = bench.disk.image();
        bench.disk.restore(&image);
        let a = bench.disk.fresh().open(path("/d/a"), Open::Write).await.unwrap();
        bench.disk.fail_sync(1, Paths::under("/d"));
        fails(a.sync().await);
    });
}

#[test]
fn entries_whose_sync_failed_are_never_made_durable_alone() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let names = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            for name in ["/d/a", "/d/b"] {
                drop(disk.open(path(name), Open::Create).await.unwrap());
            }
            bench.disk.fail_sync(1, Paths::all());
            fails(disk.sync_dir(path("/d")).await);
            disk.sync_dir(path("/d")).await.unwrap();
            drop(disk.open(path("/d/c"), Open::Create).await.unwrap());
            disk.rename(path("/d/b"), path("/d/e")).await.unwrap();
            disk.sync_dir(path("/d")).await.unwrap();
            bench.disk.power_loss(&mut bench.rng);
            bench.disk.fresh().list(path("/d")).await.unwrap().join("")
        });
        outcomes.insert(names);
    }
    // The rename needs the create that it depends on.
    assert_eq!(Vec::from_iter(outcomes).join(" "), "ace ce");
}

#[test]
fn a_failed_read_or_write_is_told() {
    world(2, |bench| async move {
        let file = file(&*bench.disk.fresh(), "/d/a", b"abc").await;
        bench.disk.fail_io(Io::Read, Lasting::Next(1), Paths::all());
        assert_eq!(file.len().await.unwrap(), 3, "the length is known without reading");
        fails(file.read_at(0, 3).await);
        assert_eq!(file.read_at(0, 3).await.unwrap(), b"abc");
        bench.disk.fail_io(Io::Write, Lasting::Next(3), Paths::all());
        fails(file.write_sync(0, b"x".into()).await);
        fails(file.set_len(1).await);
        fails(file.allocate(9).await);
        file.write_sync(2, b"z".into()).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 3);
        let until = bench.time.now() + Duration::from_millis(10);
        bench.disk.fail_io(Io::Read, Lasting::Until(until), Paths::all());
        while bench.time.now() + Duration::from_micros(200) < until {
            fails(file.read_at(0, 1).await);
        }
        bench.time.sleep_until(until).await;
        assert_eq!(file.read_at(2, 9).await.unwrap(), b"z");
        let stats = bench.disk.stats();
        assert!(stats.failed_reads > 40 && stats.failed_writes == 3 && stats.failed_syncs == 0, "{stats:?}");
    });
}

#[test]
fn a_fault_meets_what_takes_effect_while_it_is_armed() {
    world(3, |bench| async move {
        let file = file(&*bench.disk.fresh(), "/d/a", b"abc").await;
        let (early, late) = (bench.time.now() + Duration::from_millis(5), bench.time.now() + Duration::from_secs(1));
        bench.disk.fail_io(Io::Read, Lasting::Until(early), Paths::all());
        // Done before the end, looked at after it; and done before the fault was armed, looked at later.
        let within = file.read_at(0, 1);
        bench.time.sleep_until(early).await;
        fails(within.await);
        let before = file.read_at(0, 1);
        bench.time.sleep_until(bench.time.now() + Duration::from_millis(5)).await;
        bench.disk.fail_io(Io::Read, Lasting::Until(late), Paths::all());
        before.await.unwrap();
        let lie = file.write_sync(0, b"x".into());
        bench.time.sleep_until(bench.time.now() + Duration::from_millis(5)).await;
        bench.disk.lie(1);
        lie.await.unwrap();
        assert_eq!((bench.disk.stats().lied_syncs, bench.disk.stats().failed_reads), (0, 1));
    });
}

#[test]
fn a_failed_write_may_have_written_some_of_its_first_sectors() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let left = world(seed, |bench| async move {
            let file = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 4 * S]).await;
            bench.disk.fail_io(Io::Write, Lasting::Next(1), Paths::all());
            fails(file.write_sync(S as u64 / 2, vec![b'x'; 2 * S]).await);
            let bytes = file.read_at(0, 4 * S).await.unwrap();
            let written = bytes.iter().filter(|byte| **byte == b'x').count();
            assert!(bytes[S / 2..][..written].iter().all(|byte| *byte == b'x'));
            written
        });
        outcomes.insert(left);
    }
    assert_eq!(Vec::from_iter(outcomes), [0, S / 2, 3 * S / 2, 2 * S]);
}

#[test]
fn a_failed_change_of_entries_has_done_nothing() {
    world(4, |bench| async move {
        let disk = bench.disk.fresh();
        drop(file(&*disk, "/d/a", b"abc").await);
        bench.disk.fail_io(Io::Entry, Lasting::Next(7), Paths::all());
        fails(disk.list(path("/d")).await);
        fails(disk.open(path("/d/a"), Open::Read).await);
        fails(disk.open(path("/d/a"), Open::Write).await);
        fails(disk.open(path("/d/b"), Open::Create).await);
        fails(disk.rename(path("/d/a"), path("/d/b")).await);
        fails(disk.remove(path("/d/a")).await);
        fails(disk.create_dir_all(path("/d/e")).await);
        assert_eq!(disk.list(path("/d")).await.unwrap(), ["a"]);
        bench.disk.fail_io(Io::Entry, Lasting::Next(1), Paths::under("/d/new"));
        fails(disk.rename(path("/d/a"), path("/d/new")).await);
        disk.open(path("/d/a"), Open::Write).await.expect("not locked by the one that failed");
        assert_eq!(bench.disk.stats().failed_entry_ops, 8);
    });
}

#[test]
fn a_fault_is_not_spent_on_the_dying() {
    for seed in 0..40 {
        world(seed, |mut bench| async move {
            let file = file(&*bench.disk.fresh(), "/d/a", b"abc").await;
            bench.disk.fail_sync(1, Paths::all());
            bench.disk.misdirect(1, Paths::all(), Paths::all(), &mut bench.rng);
            let in_flight = (file.write_sync(0, b"x".into()), file.sync());
            bench.disk.kill(&mut bench.rng);
            assert!(in_flight.0.await.is_err() && in_flight.1.await.is_err());
            let stats = bench.disk.stats();
            assert_eq!((stats.failed_syncs, stats.misdirected_writes), (0, 0));
            let again = bench.disk.fresh().open(path("/d/a"), Open::Write).await.unwrap();
            fails(again.sync().await);
        });
    }
}

#[test]
fn a_broken_sector_is_read_again_once_it_is_written_as_a_whole() {
    world(5, |bench| async move {
        let file = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 4 * S + 9]).await;
        let sector = |number: usize| (number * S) as u64;
        assert_eq!(bench.disk.break_sectors(path("/d/a"), 1..3).unwrap(), 2);
        assert_eq!(bench.disk.break_sectors(path("/d/a"), 2..99).unwrap(), 2);
        for number in 1..5 {
            fails(file.read_at(sector(number), 1).await);
        }
        fails(file.read_at(0, usize::MAX).await);
        assert_eq!(file.read_at(0, S).await.unwrap().len(), S);
        assert!(file.read_at(sector(5), 1).await.unwrap().is_empty());
        // A part of a sector, at its front, at its back, and what follows its last byte.
        fails(file.write_at(sector(1), b"x".into()).await);
        fails(file.write_at(sector(2) - 1, b"x".into()).await);
        fails(file.write_at(sector(4) + 9, b"x".into()).await);
        file.write_at(sector(1), vec![b'x'; S]).await.unwrap();
        assert_eq!(file.read_at(0, 2 * S).await.unwrap().len(), 2 * S);
        file.write_at(sector(1) + 5, b"y".into()).await.expect("it is in memory");
        file.write_at(sector(4), b"0123456789".into()).await.expect("all that the file has of it");
        file.set_len(sector(3)).await.unwrap();
        file.set_len(sector(4)).await.unwrap();
        assert_eq!(file.read_at(sector(3), S).await.unwrap(), [0; S]);
        fails(file.read_at(sector(2), S).await);
        let stats = bench.disk.stats();
        assert_eq!((stats.broken_ops, stats.sectors_broken), (9, 4));
        assert_eq!((stats.failed_reads, stats.failed_writes), (0, 0));
    });
}

#[test]
fn a_sector_stays_broken_if_what_healed_it_is_lost() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let healed = world(seed, |mut bench| async move {
            let old = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 2 * S]).await;
            bench.disk.break_sectors(path("/d/a"), 0..2).unwrap();
            old.write_sync(0, vec![b'k'; S]).await.unwrap();
            old.write_at(S as u64, vec![b'x'; S]).await.unwrap();
            bench.disk.power_loss(&mut bench.rng);
            let new = bench.disk.fresh().open(path("/d/a"), Open::Read).await.unwrap();
            assert_eq!(new.read_at(0, S).await.unwrap(), [b'k'; S]);
            new.read_at(S as u64, S).await.is_ok()
        });
        outcomes.insert(healed);
    }
    assert_eq!(outcomes.len(), 2);
}

#[test]
fn faults_that_overlap_end_each_by_itself_and_count_each_its_own() {
    world(9, |bench| async move {
        let (disk, until) = (bench.disk.fresh(), Duration::MAX);
        let file = file(&*disk, "/d/a", b"abc").await;
        let writes = bench.disk.fail_io(Io::Write, Lasting::Until(until), Paths::all());
        let again = bench.disk.fail_io(Io::Write, Lasting::Until(until), Paths::all());
        let syncs = bench.disk.fail_io(Io::Sync, Lasting::Until(until), Paths::all());
        let (slow, slower) = (bench.disk.slow_sync(1, ms(100)), bench.disk.slow_sync(1, ms(1_000)));
        let (wide, narrow) = (bench.disk.limit(8 * BLOCK), bench.disk.limit(BLOCK));
        assert!(file.write_at(0, vec![1]).await.is_err() && file.sync().await.is_err());
        assert_eq!(bench.disk.disarm(writes), 1);
        assert!(file.write_at(0, vec![1]).await.is_err() && file.sync().await.is_err());
        assert_eq!(bench.disk.disarm(again), 2, "what both concerned both struck");
        file.write_at(0, vec![1]).await.unwrap();
        assert!(file.write_at(2 * BLOCK, vec![1]).await.is_err());
        assert_eq!((bench.disk.disarm(narrow), bench.disk.disarm(syncs)), (1, 2));
        file.write_at(2 * BLOCK, vec![1]).await.unwrap();
        assert!(file.allocate(9 * BLOCK).await.is_err());
        assert_eq!(bench.disk.disarm(wide), 1);
        assert_eq!(bench.disk.disarm(slower), 2);
        let started = bench.time.now();
        file.sync().await.unwrap();
        let took = bench.time.now() - started;
        assert!(took >= ms(100) && took < ms(900), "{took:?}");
        assert_eq!((bench.disk.disarm(slow), bench.disk.disarm(slow)), (3, 0));
    });
}

#[test]
fn what_is_not_on_the_disk_is_told() {
    world(10, |bench| async move {
        let disk = bench.disk.fresh();
        let unsynced = || bench.disk.first_unsynced(|path| path.ends_with(".wal"));
        let wal = file(&*disk, "/d/a.wal", b"abc").await;
        let _other = disk.open(path("/d/b"), Open::Create).await.unwrap();
        assert_eq!(unsynced(), None);
        wal.write_at(0, vec![1]).await.unwrap();
        assert!(matches!(unsynced(), Some(Unsynced::Sector { offset: 0, .. })));
        wal.sync().await.unwrap();
        wal.allocate(BLOCK).await.unwrap();
        assert!(matches!(unsynced(), Some(Unsynced::Length { .. })));
        wal.sync().await.unwrap();
        disk.rename(path("/d/b"), path("/d/b.wal")).await.unwrap();
        assert!(matches!(unsynced(), Some(Unsynced::Entry { .. })));
        disk.sync_dir(path("/d")).await.unwrap();
        disk.remove(path("/d/b.wal")).await.unwrap();
        assert_eq!(unsynced(), None, "it was to go");
        bench.disk.lie(2);
        wal.write_sync(0, vec![1]).await.unwrap();
        assert_eq!(unsynced(), None);
        wal.write_sync(0, vec![2]).await.unwrap();
        assert!(unsynced().is_some());
    });
}

#[test]
fn what_a_failed_sync_left_clean_is_forgotten_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        seen.insert(world(seed, |mut bench| async move {
            let file = file(&*bench.disk.fresh(), "/d/a", b"old").await;
            bench.disk.fail_sync(1, Paths::all());
            assert!(file.write_sync(0, b"newer".into()).await.is_err());
            bench.disk.kill(&mut bench.rng);
            bench.disk.evict(&mut bench.rng);
            let disk = bench.disk.fresh();
            let file = disk.open(path("/d/a"), Open::Write).await.unwrap();
            let bytes = file.read_at(0, 9).await.unwrap();
            // What is written from then on is written, and what the file holds of the rest stays as it was read.
            file.write_sync(4, b"!".into()).await.unwrap();
            bench.disk.power_loss(&mut bench.rng);
            assert_eq!(bench.disk.contents(path("/d/a")).unwrap()[..4], bytes[..4]);
            (bytes, bench.disk.stats().evictions)
        }));
    }
    assert_eq!(seen, [(b"newer".to_vec(), 0), (b"old\0\0".to_vec(), 1)].into());
}
