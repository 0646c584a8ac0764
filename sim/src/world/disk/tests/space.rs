//! A disk that is full, or about to be.
use super::*;

const B: u64 = BLOCK;

#[track_caller]
fn is_full<T>(result: io::Result<T>) {
    let error = result.map(drop).expect_err("no space");
    assert_eq!((error.kind(), error.raw_os_error()), (io::ErrorKind::StorageFull, Some(libc::ENOSPC)));
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_freed_fits() {
    world(1, |bench| async move {
        let disk = bench.disk.fresh();
        let a = file(&*disk, "/d/a", &[1; 2 * BLOCK as usize]).await;
        bench.disk.set_capacity(Some(3 * B + 100));
        assert_eq!(bench.disk.used(), 2 * B);
        is_full(a.write_at(2 * B, vec![2; B as usize + 1]).await);
        a.write_at(2 * B, vec![2; B as usize]).await.expect("up to the last block");
        is_full(a.write_at(3 * B, vec![3]).await);
        is_full(disk.open(path("/d/b"), Open::Create).await);
        is_full(disk.create_dir_all(path("/d/e")).await);
        disk.create_dir_all(path("/d")).await.expect("it is there");
        a.write_at(100, vec![4; B as usize]).await.expect("nothing new is occupied");
        a.set_len(9 * B).await.expect("zeros occupy nothing");
        is_full(a.write_at(5 * B, vec![3]).await);
        assert_eq!(disk.list(path("/d")).await.unwrap(), ["a"]);
        a.set_len(B + 1).await.unwrap();
        assert_eq!(bench.disk.used(), 2 * B);
        let b = disk.open(path("/d/b"), Open::Create).await.unwrap();
        b.write_sync(7 * B, vec![5]).await.expect("where it stands does not matter");
        disk.remove(path("/d/a")).await.unwrap();
        assert_eq!(bench.disk.used(), 3 * B, "while it is open");
        drop(a);
        assert_eq!(bench.disk.used(), B);
        b.write_at(0, vec![6; 2 * B as usize]).await.unwrap();
        is_full(b.write_at(0, vec![6; 3 * B as usize]).await);
        bench.disk.set_capacity(None);
        b.write_at(0, vec![6; 99 * B as usize]).await.unwrap();
        assert_eq!(bench.disk.stats().full_ops, 6);
    });
}

#[test]
fn writing_into_reserved_space_never_fails() {
    world(2, |bench| async move {
        let disk = bench.disk.fresh();
        let (a, b) = (file(&*disk, "/d/a", b"a").await, file(&*disk, "/d/b", b"").await);
        bench.disk.set_capacity(Some(10 * B));
        is_full(a.allocate(10 * B + 1).await);
        assert_eq!((a.len().await.unwrap(), bench.disk.used()), (1, B), "all of it or nothing");
        a.allocate(8 * B - 5).await.unwrap();
        assert_eq!((a.len().await.unwrap(), bench.disk.used()), (8 * B - 5, 8 * B));
        b.write_at(0, vec![1; 2 * B as usize]).await.unwrap();
        is_full(b.write_at(2 * B, vec![1]).await);
        for offset in [0, 5 * B - 3, 7 * B - 5] {
            a.write_sync(offset, vec![2; B as usize]).await.unwrap();
        }
        is_full(a.write_at(8 * B - 5, vec![2; 6]).await);
        a.allocate(8 * B).await.expect("reserved as it is");
        a.set_len(B).await.unwrap();
        b.allocate(9 * B).await.unwrap();
        assert_eq!(bench.disk.used(), 10 * B);
        assert_eq!(a.len().await.unwrap(), B);
    });
}

#[test]
fn what_is_reserved_stays_so_after_a_power_loss_if_it_was_synced() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let used = world(seed, |mut bench| async move {
            let disk = bench.disk.fresh();
            let a = file(&*disk, "/d/a", b"").await;
            a.allocate(4 * B).await.unwrap();
            a.sync().await.unwrap();
            a.allocate(9 * B).await.unwrap();
            bench.disk.power_loss(&mut bench.rng);
            let used = bench.disk.used();
            assert_eq!(bench.disk.contents(path("/d/a")).unwrap().len() as u64, used);
            bench.disk.set_capacity(Some(used));
            let again = bench.disk.fresh().open(path("/d/a"), Open::Write).await.unwrap();
            again.write_sync(0, vec![1; used as usize]).await.unwrap();
            is_full(again.write_sync(used, vec![1]).await);
            used / B
        });
        outcomes.insert(used);
    }
    assert_eq!(Vec::from_iter(outcomes), [4, 9]);
}

#[test]
fn a_write_that_finds_no_space_may_be_there_in_part() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let written = world(seed, |bench| async move {
            let a = file(&*bench.disk.fresh(), "/d/a", &[1; BLOCK as usize - 600]).await;
            bench.disk.set_capacity(Some(B));
            is_full(a.write_sync(B - 600, vec![2; 2_000]).await);
            let bytes = a.read_at(0, usize::MAX).await.unwrap();
            assert!(bytes[B as usize - 600..].iter().all(|byte| *byte == 2));
            assert_eq!(bench.disk.used(), B);
            bytes.len() as u64 + 600 - B
        });
        outcomes.insert(written);
    }
    assert_eq!(Vec::from_iter(outcomes), [0, 88, 600]);
}

#[test]
fn what_is_in_flight_when_power_is_lost_does_not_outgrow_the_disk() {
    for seed in 0..40 {
        world(seed, |mut bench| async move {
            let a = file(&*bench.disk.fresh(), "/d/a", &[1; BLOCK as usize]).await;
            bench.disk.set_capacity(Some(2 * B));
            let in_flight = (a.write_at(B / 2, vec![2; 4 * B as usize]), a.allocate(9 * B));
            bench.disk.power_loss(&mut bench.rng);
            assert!(in_flight.0.await.is_err() && in_flight.1.await.is_err());
            assert!(bench.disk.used() <= 2 * B);
            assert!(bench.disk.contents(path("/d/a")).unwrap().len() as u64 <= 2 * B);
        });
    }
}
