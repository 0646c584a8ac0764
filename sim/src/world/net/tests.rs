//! The network as programs see it when nothing is broken: streams, windows, wakes, time.
use std::{collections::BTreeSet, future::Future};

use detcd_node::host::{Io, Listener, Role};
use madsim::runtime::Runtime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xxhash_rust::xxh3::Xxh3;

use super::*;
use crate::seed::Rng;

/// Hashes what it hears, and when.
#[derive(Default)]
pub struct Recorder(pub Mutex<Xxh3>);

impl NetObserver for Recorder {
    fn net(&self, what: NetOp) {
        self.0.lock().update(format!("{what:?} {:?}", SimTime::current().now()).as_bytes());
    }
}

pub struct Bench {
    pub net: SimNet,
    pub time: SimTime,
    pub heard: Arc<Recorder>,
}

impl Bench {
    pub async fn wait(&self, time: Duration) {
        self.time.sleep_until(self.time.now() + time).await;
    }
}

pub fn ip(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

pub const PORT: &str = "http://10.0.0.1:2380";

/// Latency is exactly 1 ms, and nothing is lost.
pub fn exact() -> NetParams {
    let link = LinkParams { latency: Delay::new(1_000, 1_000), loss_ppm: 0, bytes_per_us: 0 };
    NetParams { link, ..NetParams::default() }
}

pub fn world<F: Future>(seed: u64, params: NetParams, test: impl FnOnce(Bench) -> F) -> F::Output {
    Runtime::with_seed_and_config(seed, Default::default()).block_on(async {
        let (time, heard) = (SimTime::current(), Arc::new(Recorder::default()));
        let net = SimNet::new(time.clone(), params, Seed(seed), heard.clone());
        test(Bench { net, time, heard }).await
    })
}

pub async fn accept(listener: &mut Box<dyn Listener>) -> Io {
    listener.accept().await.unwrap()
}

/// A connection from host 2 to host 1, with the processes and the listener it came through.
pub struct Pair {
    pub server: Arc<dyn Net>,
    pub client: Arc<dyn Net>,
    pub listener: Box<dyn Listener>,
    pub near: Io,
    pub far: Io,
}

pub async fn pair(net: &SimNet) -> Pair {
    let (server, client) = (net.host(ip(1)), net.host(ip(2)));
    let mut listener = server.listen(Role::Peer, PORT).await.unwrap();
    let near = client.connect(Role::Peer, PORT).await.unwrap();
    let far = accept(&mut listener).await;
    Pair { server, client, listener, near, far }
}

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Within 10 us: time passes a little with every poll.
#[track_caller]
pub fn took(bench: &Bench, since: Duration, expected: Duration) {
    let took = bench.time.now() - since;
    assert!(took >= expected && took < expected + Duration::from_micros(10), "{took:?}, not {expected:?}");
}

#[test]
fn bytes_arrive_after_the_latency_and_a_farewell_after_them() {
    world(1, exact(), |bench| async move {
        let started = bench.time.now();
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        // The stream is there after a round trip, and its other end hears of it half a round trip later.
        took(&bench, started, ms(3));
        let mut buffer = [0; 100];
        let started = bench.time.now();
        near.write_all(b"hello").await.unwrap();
        assert_eq!(far.read(&mut buffer).await.unwrap(), 5);
        took(&bench, started, ms(1));
        far.write_all(b"bye").await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(far.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bye");
        took(&bench, started, ms(2));
        near.write_all(b"still").await.unwrap();
        drop(near);
        rest.clear();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&rest[..], far.read(&mut buffer).await.unwrap()), (&b"still"[..], 0));
        drop(far);
        assert_eq!(bench.net.connections(), 0);
    });
}

#[test]
fn addresses_are_checked() {
    world(2, exact(), |bench| async move {
        let (server, client) = (bench.net.host(ip(1)), bench.net.host(ip(2)));
        let kind = |result: io::Result<Box<dyn Listener>>| result.map(drop).unwrap_err().kind();
        let _held = server.listen(Role::Peer, "http://0.0.0.0:2380").await.unwrap();
        assert_eq!(kind(server.listen(Role::Client, PORT).await), io::ErrorKind::AddrInUse);
        assert_eq!(kind(client.listen(Role::Client, PORT).await), io::ErrorKind::AddrNotAvailable);
        for bad in ["", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:70000", "nobody:1"] {
            let bad = format!("http://{bad}");
            assert_eq!(kind(server.listen(Role::Client, &bad).await), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert_eq!(kind(server.listen(Role::Client, "10.0.0.1:1").await), io::ErrorKind::InvalidInput);
        assert_eq!(kind(server.listen(Role::Client, "https://10.0.0.1:1").await), io::ErrorKind::Unsupported);
        server.connect(Role::Peer, "http://localhost:2380").await.unwrap();
        server.connect(Role::Peer, "http://[::1]:2380").await.unwrap();
        client.connect(Role::Peer, PORT).await.unwrap();
        let started = bench.time.now();
        let refused = client.connect(Role::Peer, "http://10.0.0.1:1").await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        took(&bench, started, ms(2));
        let stats = bench.net.stats();
        assert_eq!((stats.connects, stats.connects_refused), (3, 1));
    });
}

#[test]
fn a_full_window_blocks_the_writer_until_the_reader_reads() {
    let params = NetParams { window: 1_000, ..exact() };
    world(3, params, |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        let writer = tokio::spawn(async move {
            near.write_all(&[7; 5_000]).await.unwrap();
            near
        });
        bench.wait(ms(100)).await;
        assert!(!writer.is_finished());
        assert_eq!(bench.net.stats().bytes, 1_000);
        let mut buffer = vec![0; 5_000];
        let started = bench.time.now();
        far.read_exact(&mut buffer).await.unwrap();
        took(&bench, started, ms(4));
        writer.await.unwrap();
        assert_eq!(buffer, [7; 5_000]);
    });
}

#[test]
fn bandwidth_is_shared_by_all_streams_of_a_link() {
    world(4, exact(), |bench| async move {
        let Pair { client, mut listener, mut near, mut far, .. } = pair(&bench.net).await;
        let mut other = client.connect(Role::Peer, PORT).await.unwrap();
        let mut other_far = accept(&mut listener).await;
        let slow = LinkParams { bytes_per_us: 1, ..exact().link };
        bench.net.set_link(ip(2), ip(1), Some(slow));
        let started = bench.time.now();
        near.write_all(&[1; 5_000]).await.unwrap();
        other.write_all(&[2; 5_000]).await.unwrap();
        let mut buffer = [0; 5_000];
        far.read_exact(&mut buffer).await.unwrap();
        took(&bench, started, ms(6));
        other_far.read_exact(&mut buffer).await.unwrap();
        took(&bench, started, ms(11));
    });
}

#[test]
fn a_lost_segment_holds_up_what_is_behind_it() {
    world(5, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        let mut buffer = [0; 10];
        // Everything is lost until it gets through at last.
        bench.net.set_link(ip(2), ip(1), Some(LinkParams { loss_ppm: 1_000_000, ..exact().link }));
        let started = bench.time.now();
        near.write_all(b"first").await.unwrap();
        bench.net.set_link(ip(2), ip(1), None);
        near.write_all(b"next").await.unwrap();
        let len = far.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"firstnext");
        took(&bench, started, ms(1 + 200 + 400 + 800 + 1_600 + 3_200 + 3_200));
        assert_eq!(bench.net.stats().segments_lost, 6);
        // The other direction does not mind.
        let started = bench.time.now();
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut buffer[..1]).await.unwrap();
        took(&bench, started, ms(1));
    });
}

#[test]
fn a_reader_may_move_to_another_task() {
    world(6, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        for _ in 0..20 {
            // One task polls and is cancelled, before or after the bytes are sent; another takes over.
            let poll_once = async {
                let mut byte = [0];
                tokio::select! {
                    biased;
                    _ = far.read_exact(&mut byte) => panic!("nothing can have arrived"),
                    () = std::future::ready(()) => {}
                }
            };
            poll_once.await;
            let started = bench.time.now();
            near.write_all(b"x").await.unwrap();
            far = tokio::spawn(async move {
                let mut byte = [0];
                far.read_exact(&mut byte).await.unwrap();
                far
            })
            .await
            .unwrap();
            took(&bench, started, ms(1));
        }
    });
}

/// When the first record was sent, and how long it is, if it is all there.
fn first_record(buffer: &[u8]) -> Option<(Duration, usize)> {
    let (sent, rest) = buffer.split_first_chunk()?;
    let len = 9 + usize::from(*rest.first()?);
    (buffer.len() >= len).then(|| (Duration::from_nanos(u64::from_le_bytes(*sent)), len))
}

/// With a constant latency every byte has its exact time: a wake that is missed would show as a late one.
#[test]
fn no_wake_is_missed() {
    for seed in 0..30 {
        world(seed, NetParams { window: 300, ..exact() }, |bench| async move {
            let Pair { near, far, .. } = pair(&bench.net).await;
            let (near_read, near_write) = tokio::io::split(near);
            let (far_read, far_write) = tokio::io::split(far);
            let time = bench.time.clone();
            let pump = |mut write: tokio::io::WriteHalf<Io>, name: &'static str| {
                let (time, mut rng) = (time.clone(), Seed(seed).child(name, 0).rng());
                tokio::spawn(async move {
                    for _ in 0..400 {
                        let sent = (time.now().as_nanos() as u64).to_le_bytes();
                        // Fits into the window, or blocks: then it is the reader's time that counts.
                        let padding = vec![0; (rng.next_u64() % 200) as usize];
                        let record = [&sent[..], &[padding.len() as u8], &padding].concat();
                        write.write_all(&record).await.unwrap();
                        match rng.next_u64() % 3 {
                            0 => {}
                            1 => tokio::task::yield_now().await,
                            _ => time.sleep_until(time.now() + Duration::from_micros(rng.next_u64() % 3_000)).await,
                        }
                    }
                    write
                })
            };
            let check = |mut read: tokio::io::ReadHalf<Io>, name: &'static str| {
                let (time, mut rng) = (time.clone(), Seed(seed).child(name, 0).rng());
                tokio::spawn(async move {
                    let (mut buffer, mut records) = (Vec::new(), 0);
                    while records < 400 {
                        if rng.next_u64().is_multiple_of(2) {
                            // Polled by one task, cancelled, and then by another.
                            tokio::select! {
                                biased;
                                len = read.read_buf(&mut buffer) => drop(len.unwrap()),
                                () = tokio::task::yield_now() => {}
                            }
                        }
                        while let Some((sent, len)) = first_record(&buffer) {
                            let late = time.now() - sent;
                            // At most two windows have to be read before the last byte of a record may be sent.
                            assert!(late >= ms(1) && late < Duration::from_micros(2_050), "{late:?}");
                            buffer.drain(..len);
                            records += 1;
                        }
                        if records < 400 {
                            let reading = tokio::spawn(async move {
                                read.read_buf(&mut buffer).await.unwrap();
                                (read, buffer)
                            });
                            (read, buffer) = reading.await.unwrap();
                        }
                    }
                    read
                })
            };
            let tasks = (
                pump(near_write, "near"),
                pump(far_write, "far"),
                check(near_read, "from far"),
                check(far_read, "from near"),
            );
            let _ = (tasks.0.await.unwrap(), tasks.1.await.unwrap(), tasks.2.await.unwrap(), tasks.3.await.unwrap());
        });
    }
}

/// Wakers lead to tasks, tasks to streams, streams to wakers: a killed node must break the circle.
#[test]
fn nothing_is_left_of_dead_nodes() {
    world(7, exact(), |bench| async move {
        let handle = madsim::runtime::Handle::current();
        let nodes = [1, 2].map(|number| {
            let (net, node) = (bench.net.clone(), handle.create_node().build());
            node.spawn(async move {
                let process = net.host(ip(number));
                let mut stream = if number == 1 {
                    accept(&mut process.listen(Role::Peer, PORT).await.unwrap()).await
                } else {
                    madsim::time::sleep(ms(1)).await;
                    process.connect(Role::Peer, PORT).await.unwrap()
                };
                stream.read_u8().await.unwrap();
            });
            node.id()
        });
        bench.wait(ms(100)).await;
        assert_eq!(bench.net.connections(), 1);
        for (number, node) in (1..).zip(nodes) {
            bench.net.kill(ip(number));
            handle.kill(node);
        }
        bench.wait(ms(1)).await;
        assert_eq!((bench.net.connections(), Arc::strong_count(&bench.net.0)), (0, 1));
    });
}

/// Random streams over a random network; returns the hash of all that was observed.
fn traffic(seed: u64) -> u64 {
    let link = LinkParams { latency: Delay::new(100, 1_000), loss_ppm: 30_000, bytes_per_us: 50 };
    world(seed, NetParams { link, window: 2_000, ..NetParams::default() }, |bench| async move {
        let server = bench.net.host(ip(1));
        let mut listener = server.listen(Role::Client, PORT).await.unwrap();
        tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                });
            }
        });
        let clients = (2..6).map(|number| {
            let client = bench.net.host(ip(number));
            tokio::spawn(async move {
                let mut rng = Seed(seed).child("client", u64::from(number)).rng();
                let (mut read, mut write) = tokio::io::split(client.connect(Role::Client, PORT).await.unwrap());
                let sent: Vec<u8> = (0..20_000).map(|_| rng.next_u32() as u8).collect();
                let expected = sent.clone();
                tokio::spawn(async move {
                    for part in sent.chunks(777) {
                        write.write_all(part).await.unwrap();
                    }
                    write.shutdown().await.unwrap();
                });
                let mut back = Vec::new();
                read.read_to_end(&mut back).await.unwrap();
                assert!(back == expected, "bytes arrive once and in order");
            })
        });
        for client in Vec::from_iter(clients) {
            client.await.unwrap();
        }
        assert!(bench.net.stats().segments_lost > 0);
        bench.heard.0.lock().digest()
    })
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let hashes: Vec<u64> = (0..10).map(traffic).collect();
    assert_eq!(hashes, (0..10).map(traffic).collect::<Vec<_>>());
    assert_eq!(BTreeSet::from_iter(hashes).len(), 10);
}
