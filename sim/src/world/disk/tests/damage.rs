//! Rot, harm done by name, writes that go astray, and disks that are swapped.
use super::*;

const S: usize = SECTOR as usize;

fn contents(disk: &SimDisk, name: &str) -> Vec<u8> {
    disk.contents(path(name)).unwrap()
}

/// The first byte of each sector.
fn letters(disk: &SimDisk, name: &str) -> String {
    contents(disk, name).chunks(S).map(|sector| sector[0] as char).collect()
}

fn heard(bench: &Bench, of: impl Fn(&DiskOp) -> bool) -> usize {
    bench.heard.0.lock().1.iter().filter(|op| of(op)).count()
}

/// Where two contents differ.
fn differences(old: &[u8], new: &[u8]) -> Vec<u64> {
    assert_eq!(old.len(), new.len());
    (0..old.len()).filter(|at| old[*at] != new[*at]).map(|at| at as u64).collect()
}

#[test]
fn bits_rot_in_durable_data_and_nowhere_else() {
    let mut places = BTreeSet::new();
    for seed in 0..80 {
        let sector = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let a = file(&*disk, "/d/a", &[7; 2 * S + 10]).await;
            a.allocate(20 * SECTOR).await.unwrap();
            a.write_sync(12 * SECTOR, vec![1]).await.unwrap();
            a.write_at(SECTOR, vec![7; 5]).await.unwrap();
            drop(file(&*disk, "/d/b", &[7; S]).await);
            let old = contents(&bench.disk, "/d/a");
            let rot = Rot { paths: Paths::under("/d/a"), sectors: 1, bits: 3 };
            let rotted = bench.disk.rot(&rot, &mut bench.rng);
            let new = contents(&bench.disk, "/d/a");
            assert_eq!(old.iter().zip(&new).map(|(old, new)| (old ^ new).count_ones()).sum::<u32>(), 3);
            let places = differences(&old, &new);
            let (first, last) = (places[0], places[places.len() - 1]);
            assert_eq!(rotted, [Rotted { path: "/d/a".into(), offset: first, len: last + 1 - first }]);
            assert_eq!(contents(&bench.disk, "/d/b"), [7; S]);
            assert_eq!(bench.disk.stats().sectors_rotted, 1);
            assert_eq!(heard(&bench, |op| matches!(op, DiskOp::Damaged { .. })), 1);
            bench.disk.power_loss(&mut bench.rng);
            assert_eq!(contents(&bench.disk, "/d/a"), new, "what is durable rots");
            first / SECTOR
        });
        places.insert(sector);
    }
    // Not the sector that is about to be written, nor those that are only reserved.
    assert_eq!(Vec::from_iter(places), [0, 2, 12]);
}

#[test]
fn no_sector_rots_twice_and_no_more_than_there_are() {
    world(1, |mut bench| async move {
        let disk = bench.disk.fresh();
        for name in ["/d/a", "/d/b", "/d/c"] {
            drop(file(&*disk, name, &[0; 4 * S - 30]).await);
        }
        let paths = Paths::that(|path| path != "/d/b");
        assert_eq!(bench.disk.rot(&Rot { paths: paths.clone(), sectors: 0, bits: 1 }, &mut bench.rng), []);
        assert_eq!(bench.disk.rot(&Rot { paths: paths.clone(), sectors: 5, bits: 0 }, &mut bench.rng), []);
        let some = bench.disk.rot(&Rot { paths: paths.clone(), sectors: 5, bits: 1 }, &mut bench.rng);
        let sectors: BTreeSet<_> = some.iter().map(|rotted| (&rotted.path, rotted.offset / SECTOR)).collect();
        assert_eq!((some.len(), sectors.len()), (5, 5));
        // Every bit there is, those beyond the end excluded.
        let all = bench.disk.rot(&Rot { paths, sectors: 99, bits: 99_999 }, &mut bench.rng);
        assert_eq!(all.iter().map(|rotted| rotted.len).sum::<u64>(), 2 * (4 * SECTOR - 30));
        let ones = |name: &str| contents(&bench.disk, name).iter().map(|byte| byte.count_ones()).sum::<u32>();
        assert_eq!(ones("/d/a") + ones("/d/c"), 2 * (4 * S as u32 - 30) * 8 - 5);
        assert_eq!((ones("/d/b"), bench.disk.stats().sectors_rotted), (0, 13));
    });
}

#[test]
fn a_file_is_damaged_by_name() {
    world(2, |mut bench| async move {
        let disk = bench.disk.fresh();
        let a = file(&*disk, "/d/a", &[b'.'; 3 * S]).await;
        let bench_disk = bench.disk.clone();
        bench_disk.flip_bit(path("/d/a"), 700, 0).unwrap();
        assert_eq!(contents(&bench_disk, "/d/a")[699..702], *b"./.");
        assert_eq!(bench_disk.flip_bit(path("/d/a"), 3 * SECTOR, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(bench_disk.zero_range(path("/d/a"), 10..20).unwrap());
        assert!(!bench_disk.zero_range(path("/d/a"), 12..19).unwrap(), "zeros already");
        assert!(!bench_disk.zero_range(path("/d/a"), 9_999..99_999).unwrap(), "nothing there");
        assert!(!bench_disk.cut_tail(path("/d/a"), 3 * SECTOR).unwrap());
        assert!(bench_disk.cut_tail(path("/d/a"), 1_000).unwrap());
        assert_eq!(a.len().await.unwrap(), 1_000, "a process sees it at once");
        let missing = [bench_disk.flip_bit(path("/d/b"), 0, 0).err(), bench_disk.remove_file(path("/d/b")).err()];
        assert!(missing.iter().all(|error| error.as_ref().unwrap().kind() == io::ErrorKind::NotFound));
        bench_disk.power_loss(&mut bench.rng);
        let bytes = contents(&bench_disk, "/d/a");
        assert_eq!((bytes.len(), &bytes[8..22], bytes[700]), (1_000, &b"..\0\0\0\0\0\0\0\0\0\0.."[..], b'/'));
        bench_disk.remove_file(path("/d/a")).unwrap();
        bench_disk.power_loss(&mut bench.rng);
        assert_eq!(bench_disk.contents(path("/d/a")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(bench_disk.stats().damages, 4);
        assert_eq!(heard(&bench, |op| matches!(op, DiskOp::Damaged { .. })), 2);
        assert_eq!(heard(&bench, |op| *op == DiskOp::Truncated { path: "/d/a".into(), len: 1_000 }), 1);
        assert_eq!(heard(&bench, |op| *op == DiskOp::Vanished { path: "/d/a".into() }), 1);
    });
}

#[test]
fn what_was_written_since_buries_the_damage() {
    world(3, |bench| async move {
        let a = file(&*bench.disk.fresh(), "/d/a", &[b'.'; 2 * S]).await;
        a.write_at(0, vec![b'x'; 10]).await.unwrap();
        a.write_at(SECTOR * 2, vec![b'y'; S]).await.unwrap();
        bench.disk.zero_range(path("/d/a"), 0..20).unwrap();
        bench.disk.cut_tail(path("/d/a"), SECTOR).unwrap();
        assert_eq!(contents(&bench.disk, "/d/a")[..21], *b"xxxxxxxxxx\0\0\0\0\0\0\0\0\0\0.");
        assert_eq!(letters(&bench.disk, "/d/a"), "x\0y");
        a.sync().await.unwrap();
        assert_eq!(letters(&bench.disk, "/d/a"), "x\0y");
    });
}

#[test]
fn a_removed_file_is_gone_whatever_is_pending_of_its_name() {
    for seed in 0..20 {
        world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let a = file(&*disk, "/d/a", b"old").await;
            disk.rename(path("/d/a"), path("/d/b")).await.unwrap();
            drop(disk.open(path("/d/c"), Open::Create).await.unwrap());
            bench.disk.remove_file(path("/d/b")).unwrap();
            a.write_sync(0, b"new".into()).await.expect("whoever has it open goes on");
            bench.disk.power_loss(&mut bench.rng);
            let names = bench.disk.fresh().list(path("/d")).await.unwrap().join("");
            assert!(["", "c"].contains(&&*names), "{names}");
        });
    }
}

#[test]
fn a_misdirected_write_destroys_other_data_and_keeps_what_it_should_have_replaced() {
    world(3, |mut bench| async move {
        let disk = bench.disk.fresh();
        let a = file(&*disk, "/d/a", &[b'a'; 3 * S]).await;
        drop(file(&*disk, "/d/b", &[b'b'; 2 * S]).await);
        bench.disk.misdirect(1, Paths::under("/d/a"), Paths::all(), &mut bench.rng);
        a.write_sync(SECTOR + 7, vec![b'x'; S]).await.unwrap();
        let stats = bench.disk.stats();
        assert_eq!((stats.misdirected_writes, stats.writes), (1, 3));
        // Both sectors move, with all that should stand in them, and there is one place for two.
        let moved = [&[b'a'; 7][..], &[b'x'; S], &[b'a'; S - 7]].concat();
        let stands = || contents(&bench.disk, "/d/a") == [b'a'; 3 * S] && contents(&bench.disk, "/d/b") == moved;
        assert!(stands());
        bench.disk.power_loss(&mut bench.rng);
        assert!(stands(), "it is on the medium");
        let (path_of, len) = (|name: &str| Arc::from(name), 2 * SECTOR);
        let (offset, to_offset, hash) = (SECTOR, 0, xxhash_rust::xxh3::xxh3_64(&moved));
        let op = DiskOp::Misdirected { path: path_of("/d/a"), offset, to: path_of("/d/b"), to_offset, len, hash };
        assert_eq!(heard(&bench, |heard| *heard == op), 1);
        let again = bench.disk.fresh().open(path("/d/a"), Open::Write).await.unwrap();
        again.write_sync(0, b"y".into()).await.unwrap();
        assert_eq!(contents(&bench.disk, "/d/a")[0], b'y', "only the next one");
    });
}

#[test]
fn a_misdirected_write_finds_any_place_with_data() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..120 {
        let outcome = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let a = file(&*disk, "/d/a", &[b'a'; 3 * S]).await;
            let b = file(&*disk, "/d/b", &[b'b'; 2 * S - 10]).await;
            b.write_at(0, vec![b'p'; 1]).await.unwrap();
            a.allocate(64 * SECTOR).await.unwrap();
            a.sync().await.unwrap();
            bench.disk.misdirect(1, Paths::all(), Paths::all(), &mut bench.rng);
            a.write_sync(SECTOR, vec![b'x'; S]).await.unwrap();
            assert_eq!(contents(&bench.disk, "/d/b").len(), 2 * S - 10, "a length is not the medium's business");
            format!("{} {}", &letters(&bench.disk, "/d/a")[..4], letters(&bench.disk, "/d/b"))
        });
        outcomes.insert(outcome);
    }
    let expected = ["aaa\0 px", "aax\0 pb", "xaa\0 pb"];
    assert_eq!(Vec::from_iter(outcomes), expected);
}

#[test]
fn an_append_that_goes_astray_leaves_a_hole() {
    world(4, |mut bench| async move {
        let disk = bench.disk.fresh();
        let a = file(&*disk, "/d/a", &[b'a'; S]).await;
        bench.disk.misdirect(1, Paths::all(), Paths::under("/d/b"), &mut bench.rng);
        a.write_sync(0, vec![b'A'; S]).await.unwrap();
        assert_eq!(letters(&bench.disk, "/d/a"), "A", "there is no place yet, so it goes where it should");
        let b = file(&*disk, "/d/b", b"").await;
        b.allocate(3 * SECTOR).await.unwrap();
        b.sync().await.unwrap();
        a.write_sync(SECTOR, vec![b'x'; 10]).await.unwrap();
        bench.disk.power_loss(&mut bench.rng);
        assert_eq!(contents(&bench.disk, "/d/a")[S..], [0; 10]);
        assert_eq!(letters(&bench.disk, "/d/b").replace('\0', ""), "x", "reserved space will do");
        assert_eq!(bench.disk.used(), 2 * BLOCK);
        assert_eq!(bench.disk.stats().misdirected_writes, 1);
    });
}

#[test]
fn an_image_is_what_a_power_loss_cannot_take() {
    world(5, |mut bench| async move {
        let disk = bench.disk.fresh();
        let a = file(&*disk, "/d/a", b"last week").await;
        disk.create_dir_all(path("/d/sub")).await.unwrap();
        disk.sync_dir(path("/d")).await.unwrap();
        a.write_at(0, b"LAST".into()).await.unwrap();
        drop(disk.open(path("/d/sub/pending"), Open::Create).await.unwrap());
        let image = bench.disk.image();
        assert_eq!(bench.disk.image().digest(), image.digest());
        a.write_sync(0, b"this week".into()).await.unwrap();
        drop(file(&*disk, "/d/b", b"new").await);
        disk.rename(path("/d/a"), path("/d/c")).await.unwrap();
        assert_ne!(bench.disk.image().digest(), image.digest());
        bench.disk.restore(&image);
        assert!(a.len().await.is_err() && disk.list(path("/d")).await.is_err(), "a process that ran is dead");
        assert_eq!(bench.disk.image().digest(), image.digest());
        bench.disk.power_loss(&mut bench.rng);
        let disk = bench.disk.fresh();
        assert_eq!(disk.list(path("/d")).await.unwrap(), ["a", "sub"]);
        assert!(disk.list(path("/d/sub")).await.unwrap().is_empty());
        let a = disk.open(path("/d/a"), Open::Write).await.unwrap();
        assert_eq!(a.read_at(0, 99).await.unwrap(), b"last week");
        // The image is not changed by what happens to the disk that it was put on.
        a.write_sync(0, b"next".into()).await.unwrap();
        drop(file(&*disk, "/d/d", b"").await);
        bench.disk.restore(&image);
        assert_eq!(bench.disk.image().digest(), image.digest());
        assert_eq!(bench.disk.stats().restores, 2);
        assert_eq!(heard(&bench, |op| *op == DiskOp::Restored { digest: image.digest() }), 2);
    });
}

#[test]
fn an_image_fits_another_disk_and_an_empty_one_is_a_wiped_disk() {
    world(6, |bench| async move {
        let disk = bench.disk.fresh();
        for name in ["/d/a", "/d/b"] {
            let file = file(&*disk, name, &[1; 3 * BLOCK as usize]).await;
            file.allocate(5 * BLOCK).await.unwrap();
            file.sync().await.unwrap();
        }
        bench.disk.break_sectors(path("/d/a"), 0..1).unwrap();
        let image = bench.disk.image();
        let other = SimDisk::new(2, bench.time.clone(), DiskTiming::default(), Seed(1), Arc::new(()));
        drop(other.fresh().open(path("/x"), Open::Create).await.unwrap());
        other.restore(&image);
        assert_eq!((other.image().digest(), other.used()), (image.digest(), 10 * BLOCK));
        let process = other.fresh();
        assert!(process.open(path("/x"), Open::Read).await.is_err());
        let a = process.open(path("/d/a"), Open::Write).await.unwrap();
        assert!(a.read_at(0, 1).await.is_err(), "broken sectors are the medium's");
        drop(file(&*process, "/d/c", b"a new file beside the old ones").await);
        assert_eq!(contents(&other, "/d/b").len(), 5 * BLOCK as usize);
        other.wipe();
        let process = other.fresh();
        assert!(process.list(path("/")).await.unwrap().is_empty());
        assert_eq!((other.used(), other.held(), other.stats().restores), (0, 0, 2));
        process.create_dir_all(path("/d")).await.unwrap();
        drop(file(&*process, "/d/a", b"new").await);
        assert_eq!(contents(&other, "/d/a"), b"new");
        assert_eq!(contents(&bench.disk, "/d/a").len(), 5 * BLOCK as usize, "the first disk has its own");
    });
}
