//! Streams under random faults: in order and once, or an error, and never a wait for nothing.
use detcd_node::host::Io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    tests::{Bench, Pair, ip, ms, pair, world},
    *,
};
use crate::seed::Rng;

/// One stream under random faults: what arrives is a prefix of what was sent, and both ends come to an end.
async fn survive(bench: Bench, seed: u64) -> u64 {
    let Pair { near, far, server, client, listener } = pair(&bench.net).await;
    let pump = |mut stream: Io, name: &'static str| {
        let (time, mut rng) = (bench.time.clone(), Seed(seed).child(name, 0).rng());
        tokio::spawn(async move {
            let (mut sent, mut read) = (0u64, 0u64);
            let mut buffer = vec![0; 1_000];
            loop {
                let pause = time.sleep_until(time.now() + Duration::from_micros(rng.next_u64() % 200_000));
                tokio::select! {
                    biased;
                    len = stream.read(&mut buffer) => match len {
                        Ok(0) | Err(_) => return (sent, read),
                        Ok(len) => {
                            let expected = (read..).map(|number| number as u8);
                            assert!(buffer[..len].iter().copied().eq(expected.take(len)), "in order, and once");
                            read += len as u64;
                        }
                    },
                    () = pause => {
                        let len = 1 + rng.next_u64() % 500;
                        let bytes = Vec::from_iter((sent..sent + len).map(|number| number as u8));
                        if stream.write_all(&bytes).await.is_err() {
                            return (sent + len, read);
                        }
                        sent += len;
                    }
                }
            }
        })
    };
    let (near, far) = (pump(near, "near"), pump(far, "far"));
    let mut rng = Seed(seed).child("nemesis", 0).rng();
    for _ in 0..40 {
        bench.wait(Duration::from_micros(rng.next_u64() % 3_000_000)).await;
        let (from, to) = if rng.next_u64().is_multiple_of(2) { (ip(1), ip(2)) } else { (ip(2), ip(1)) };
        match rng.next_u64() % 40 {
            0..15 => bench.net.cut(from, to),
            15..32 => bench.net.heal(from, to),
            32..36 => bench.net.clog(from, to, ms(rng.next_u64() % 300)),
            36 => drop(bench.net.half_open(from, to)),
            37 => drop(bench.net.reset_connections(from, to)),
            38 => bench.net.kill(from),
            _ => bench.net.power_off(from),
        }
    }
    // The end: all is healed, and whoever still believes in the stream finds out within the time-out, or has its bytes.
    bench.net.heal_all();
    let alive = !near.is_finished() && !far.is_finished();
    bench.wait(ms(40_000)).await;
    assert_eq!(near.is_finished(), far.is_finished(), "both end or neither");
    assert!(near.is_finished() || alive);
    if near.is_finished() {
        let ((near_sent, near_read), (far_sent, far_read)) = (near.await.unwrap(), far.await.unwrap());
        assert!(near_read <= far_sent && far_read <= near_sent);
        drop((server, client, listener));
        assert_eq!(bench.net.connections(), 0);
    }
    bench.heard.0.lock().digest()
}

#[test]
fn streams_survive_faults_or_fail() {
    let params = NetParams { window: 2_000, ..NetParams::default() };
    let mut stats = (0, 0, 0);
    for seed in 0..300 {
        let run = || {
            world(seed, params, |bench| async move {
                let net = bench.net.clone();
                (survive(bench, seed).await, net.stats())
            })
        };
        let (hash, seen) = run();
        assert_eq!(hash, run().0, "same seed, same run");
        stats = (stats.0 + seen.streams_timed_out, stats.1 + seen.streams_reset, stats.2 + seen.cut_bytes_delayed);
    }
    assert!(stats.0 > 10 && stats.1 > 10 && stats.2 > 10_000, "{stats:?}");
}
