//! `cargo sim`: a whole cluster, its clients, disks, network and clocks, in one thread from one seed.
mod history;
mod oracle;
mod seed;
mod workload;
mod world;

use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    if !cfg!(madsim) {
        eprintln!("this simulator was built without `--cfg madsim`: start it by `cargo sim`");
        std::process::exit(64);
    }
    let args: Vec<String> = std::env::args().collect();
    let (seed, secs, rate): (u64, u64, f64) =
        (args[1].parse().unwrap(), args[2].parse().unwrap(), args[3].parse().unwrap());
    let wall = std::time::Instant::now();
    let (hash, events, history, acked) = std::thread::spawn(move || {
        madsim::runtime::Runtime::with_seed_and_config(seed, Default::default()).block_on(async move {
            let time = world::clock::SimTime::current();
            let recorder = world::recorder::Recorder::new(time.clone(), Vec::new(), None);
            let options = world::cluster::ClusterOptions {
                nodes: 3,
                net: Default::default(),
                disk: Default::default(),
                heartbeat_ms: 100,
                election_ms: 1000,
                segment_bytes: 1 << 20,
                drift_ppm_max: 100,
            };
            let s = seed::Seed(seed);
            let cluster =
                world::cluster::Cluster::start(&options, s, &recorder, std::sync::Arc::new(|_, r| Box::new(r)));
            let w = workload::WorkloadOptions {
                clients: 5,
                watchers: 2,
                keys: 8,
                ops_per_second: rate,
                timeout_ms: 2000,
                mix: workload::Mix {
                    put: 40,
                    get: 30,
                    range: 10,
                    delete: 5,
                    compare_and_set: 15,
                    serializable_percent: 20,
                },
            };
            let end = Duration::from_secs(secs);
            let seen = workload::Seen::default();
            if rate > 0.0 {
                for n in 0..w.watchers {
                    let net = cluster.net.host(world::cluster::client_ip(100 + n));
                    tokio::spawn(workload::Watcher::new(n, &w, 3, net, &recorder, s).run());
                }
                for n in 0..w.clients {
                    let net = cluster.net.host(world::cluster::client_ip(n));
                    tokio::spawn(workload::Client::new(n, &w, 3, net, &recorder, &seen, s).run(end));
                }
            }
            time.sleep_until(end + Duration::from_secs(1)).await;
            let (hash, events) = recorder.hash();
            let history = recorder.with(|r| std::mem::take(&mut r.history));
            let acked = history
                .iter()
                .filter(|e| matches!(&e.event, history::Event::Return { outcome: history::Outcome::Ok(_), .. }))
                .count();
            for e in history
                .iter()
                .filter(|e| {
                    matches!(
                        &e.event,
                        history::Event::Return { outcome: history::Outcome::Unknown(_), .. }
                            | history::Event::Return { outcome: history::Outcome::Failed(_), .. }
                    )
                })
                .take(5)
            {
                println!("{e:?}");
            }
            (hash, events, history.len(), acked)
        })
    })
    .join()
    .unwrap();
    let _ = Instant::now;
    let t = wall.elapsed().as_secs_f64();
    println!("hash {hash:016x} events {events} history {history} acked {acked} wall {t:.3}s = {:.0}x", secs as f64 / t);
}
