//! Everything that can go wrong, at random: nothing in the disk breaks, each fault fires, and it is the same again.
use super::*;

const NAMES: [&str; 3] = ["/d/a", "/d/b", "/d/c"];

async fn arm(bench: &mut Bench, rng: &mut ChaCha8Rng) {
    let (disk, nemesis) = (&bench.disk, &mut bench.rng);
    let paths = || Paths::under(NAMES[0]);
    let soon = bench.time.now() + Duration::from_micros(rng.next_u64() % 3_000);
    let (name, at) = (path(NAMES[(rng.next_u64() % 3) as usize]), rng.next_u64() % 20_000);
    match rng.next_u64() % 20 {
        0 => drop(disk.fail_sync(1, paths())),
        1 => drop(disk.fail_io(Io::Read, Lasting::Next(1), Paths::all())),
        2 => drop(disk.fail_io(Io::Write, Lasting::Until(soon), paths())),
        3 => drop(disk.fail_io(Io::Entry, Lasting::Next(1), Paths::all())),
        4 => drop(disk.misdirect(1, Paths::all(), paths(), nemesis)),
        5 => disk.set_capacity(Some(disk.used() + at)),
        6 => disk.set_capacity(None),
        7 => drop(disk.rot(&Rot { paths: Paths::all(), sectors: 2, bits: 3 }, nemesis)),
        // There may be no such file, or nothing where the harm is to be done.
        8 => drop(disk.flip_bit(name, at, 3)),
        9 => drop(disk.zero_range(name, at / 2..at)),
        10 => drop(disk.cut_tail(name, at)),
        11 => drop(disk.remove_file(name)),
        12 => drop(disk.break_sectors(name, at / SECTOR..at / SECTOR + 3)),
        13 => disk.crash_at(disk.points() + 1 + at % 5, at.is_multiple_of(2), || ()),
        14 => disk.lie(at % 2),
        15 => disk.stall(soon),
        16 => disk.disarm_all(),
        _ => {}
    }
}

/// Errors are to be expected, and none of them is a surprise to the disk.
async fn work(disk: &dyn Disk, rng: &mut ChaCha8Rng) -> io::Result<()> {
    let name = path(NAMES[(rng.next_u64() % 3) as usize]);
    let (at, len) = (rng.next_u64() % 20_000, (rng.next_u64() % 5_000) as usize);
    let how = if rng.next_u64().is_multiple_of(3) { Open::Create } else { Open::Write };
    let file = disk.open(name, how).await?;
    let in_flight = file.write_at(at, vec![rng.next_u64() as u8; len]);
    match rng.next_u64() % 8 {
        0 => file.set_len(at).await?,
        1 => file.allocate(at).await?,
        2 => drop(disk.rename(name, path(NAMES[(at % 3) as usize])).await?),
        3 => drop(disk.remove(name).await?),
        4 => drop(in_flight),
        _ => in_flight.await?,
    }
    file.write_sync(at, vec![7; len]).await?;
    file.read_at(at / 2, len).await?;
    disk.sync_dir(path("/d")).await
}

fn torture(seed: u64) -> (u64, DiskStats) {
    world(seed, |mut bench| async move {
        let mut rng = Seed(seed).child("work", 0).rng();
        let mut images = vec![bench.disk.image()];
        for _ in 0..12 {
            let disk = bench.disk.fresh();
            for _ in 0..rng.next_u64() % 20 {
                arm(&mut bench, &mut rng).await;
                let _ = work(&*disk, &mut rng).await; // it fails as it may
            }
            match rng.next_u64() % 6 {
                0 => bench.disk.kill(&mut bench.rng),
                1 => bench.disk.power_loss(&mut bench.rng),
                2 => {
                    let (pending, mask) = (bench.disk.pending().len(), rng.next_u64());
                    let image = bench.disk.image_after_loss(mask);
                    bench.disk.lose_exactly(mask);
                    assert_eq!(bench.disk.image().digest(), image.digest(), "{pending} items");
                }
                3 => bench.disk.restore(&images[(rng.next_u64() % images.len() as u64) as usize]),
                _ => {}
            }
            images.push(bench.disk.image());
        }
        assert_eq!(bench.disk.image().digest(), images[images.len() - 1].digest());
        let stats = bench.disk.stats();
        (bench.heard.0.lock().0.digest(), stats)
    })
}

type Counter = fn(&DiskStats) -> u64;

#[test]
fn every_fault_fires_and_the_same_seed_gives_the_same_run() {
    let runs: Vec<_> = (0..60).map(torture).collect();
    assert!(runs == (0..60).map(torture).collect::<Vec<_>>());
    assert_eq!(runs.iter().map(|(hash, _)| hash).collect::<BTreeSet<_>>().len(), 60);
    let fired = |of: Counter| runs.iter().filter(|(_, stats)| of(stats) > 0).count();
    let counters: [(&str, Counter); 15] = [
        ("failed reads", |stats| stats.failed_reads),
        ("failed writes", |stats| stats.failed_writes),
        ("failed syncs", |stats| stats.failed_syncs),
        ("failed entry operations", |stats| stats.failed_entry_ops),
        ("sectors dropped", |stats| stats.sectors_dropped),
        ("broken sectors met", |stats| stats.broken_ops),
        ("no space", |stats| stats.full_ops),
        ("misdirected writes", |stats| stats.misdirected_writes),
        ("sectors rotted", |stats| stats.sectors_rotted),
        ("sectors broken", |stats| stats.sectors_broken),
        ("damages", |stats| stats.damages),
        ("restores", |stats| stats.restores),
        ("crashes", |stats| stats.crashes),
        ("lied syncs", |stats| stats.lied_syncs),
        ("entries lost", |stats| stats.entries_lost),
    ];
    for (what, of) in counters {
        assert!(fired(of) > 5, "{what}: in {} runs of 60", fired(of));
    }
}
