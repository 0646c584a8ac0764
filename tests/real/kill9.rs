//! Law: no acknowledged write is lost to kill -9, and a killed member serves again.
//!
//! Clients put unique values to a few keys while members are killed at random times: one, or now and then all at once.
//! Every so often the clients pause and every key is read from every member. `DETCD_KILLS` says how often to kill
//! (10 without it), `DETCD_SEED` repeats a run's choices (not its timing: these are real processes).
use super::runtime;
use detcd_node::proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use detcd_tests::harness::{
    Cluster,
    grpc::{Channel, origin},
    ledger::{Ledger, Seen},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime::Runtime, sync::RwLock, time::timeout};
use tonic::Status;

const KILLS_DEFAULT: usize = 10;
const CLIENTS: usize = 8;
const KEYS: u64 = 12;
/// A client that hears nothing for this long does not know whether its write took effect.
const CALL_BOUND: Duration = Duration::from_secs(2);
/// A restarted member must answer a linearizable read within this: replay, an election, a busy machine.
const SERVE_BOUND: Duration = Duration::from_secs(20);
/// Every so many kills, and at the end, all keys are judged.
const KILLS_PER_CHECK: usize = 10;
/// One kill in so many takes all members at once.
const ALL_AT_ONCE: u64 = 5;

#[test]
fn one_member() {
    kill_under_load(1);
}

#[test]
fn three_members() {
    kill_under_load(3);
}

/// The planted violation: of a member that forgot its disk, this test must say so.
#[test]
fn a_wiped_member_is_noticed() {
    let mut cluster = Cluster::start(1);
    let addresses = [cluster.member(0).address.client];
    let runtime = runtime();
    let load = Load::start(&runtime, &addresses);
    load.await_progress(0);
    runtime.block_on(load.check(&addresses)).expect("nothing is lost yet");
    cluster.member(0).kill9();
    std::fs::remove_dir_all(&cluster.member(0).data_dir).expect("the data directory goes");
    cluster.member(0).restart();
    runtime.block_on(load.check(&addresses)).expect_err("a lost store is noticed");
}

fn kill_under_load(members: usize) {
    let kills = env::var("DETCD_KILLS").map_or(KILLS_DEFAULT, |kills| kills.parse().expect("DETCD_KILLS is a number"));
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let mut below = |bound: u64| random.next_u64() % bound;
    let mut cluster = Cluster::start(members);
    let addresses: Vec<_> = cluster.members.iter().map(|member| member.address.client).collect();
    let runtime = runtime();
    let load = Load::start(&runtime, &addresses);
    let mut slowest = Duration::ZERO;
    for kill in 1..=kills {
        sleep(Duration::from_millis(20 + below(400)));
        let victim = below(members as u64) as usize;
        let all = below(ALL_AT_ONCE) == 0;
        let victims: Vec<_> = (0..members).filter(|&member| all || member == victim).collect();
        let before = load.acknowledged();
        victims.iter().for_each(|&member| cluster.member(member).kill9());
        sleep(Duration::from_millis(below(300)));
        let restarted = Instant::now();
        victims.iter().for_each(|&member| cluster.member(member).launch());
        for member in victims {
            cluster.member(member).wait_ready();
            runtime.block_on(read_all(addresses[member])).unwrap_or_else(|why| panic!("kill {kill}: {why}"));
        }
        slowest = slowest.max(restarted.elapsed());
        load.await_progress(before);
        if kill % KILLS_PER_CHECK == 0 || kill == kills {
            runtime.block_on(load.check(&addresses)).unwrap_or_else(|why| panic!("after kill {kill}: {why}"));
        }
    }
    load.stop.store(true, Ordering::Relaxed);
    let ledger = load.ledger.lock().expect("no client panicked");
    println!(
        "{members} member(s), {kills} kills: {} writes acknowledged, {} unknown; slowest return {slowest:?}",
        ledger.acknowledged_count(),
        ledger.unknown_count()
    );
}

fn seed() -> u64 {
    let now = || SystemTime::UNIX_EPOCH.elapsed().expect("a clock past 1970").as_nanos() as u64;
    let seed = env::var("DETCD_SEED").map_or_else(|_| now(), |seed| seed.parse().expect("DETCD_SEED is a number"));
    println!("DETCD_SEED={seed}");
    seed
}

/// The clients, and what they know.
struct Load {
    ledger: Mutex<Ledger>,
    /// What a server promised wrongly, while nobody read.
    broken: Mutex<Option<String>>,
    /// A client's call holds it shared; who needs quiet takes it alone.
    gate: RwLock<()>,
    stop: AtomicBool,
}

impl Load {
    fn start(runtime: &Runtime, addresses: &[SocketAddr]) -> Arc<Load> {
        let load = Arc::new(Load {
            ledger: Mutex::default(),
            broken: Mutex::default(),
            gate: RwLock::default(),
            stop: AtomicBool::new(false),
        });
        for client in 0..CLIENTS {
            runtime.spawn(load.clone().put_for_ever(client, addresses.to_vec()));
        }
        load
    }

    /// One client: a put after the other, to another member when one fails.
    async fn put_for_ever(self: Arc<Load>, client: usize, addresses: Vec<SocketAddr>) {
        let (mut home, mut connection) = (client, None);
        for number in 0u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let _open = self.gate.read().await;
            let address = addresses[home % addresses.len()];
            if connection.is_none() {
                connection = connect(address).await.ok();
            }
            let (key, value) = (format!("k{}", (number * 7 + client as u64) % KEYS), format!("c{client}-{number}"));
            let done = match &mut connection {
                Some(kv) => self.put(kv, &key, &value).await,
                None => false,
            };
            if !done {
                (home, connection) = (home + 1, None);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn put(&self, kv: &mut KvClient<Channel>, key: &str, value: &str) -> bool {
        self.ledger.lock().expect("no client panicked").sent(key, value);
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let Ok(Ok(response)) = timeout(CALL_BOUND, kv.put(request)).await else { return false };
        let revision = response.into_inner().header.expect("etcd always sends a header").revision;
        let mut ledger = self.ledger.lock().expect("no client panicked");
        if let Err(why) = ledger.acknowledged(key, value, revision) {
            self.broken.lock().expect("no client panicked").get_or_insert(why);
        }
        true
    }

    fn acknowledged(&self) -> usize {
        self.ledger.lock().expect("no client panicked").acknowledged_count()
    }

    /// Members that serve but take no writes would make the rest vacuous.
    fn await_progress(&self, before: usize) {
        let start = Instant::now();
        while self.acknowledged() == before {
            assert!(start.elapsed() < SERVE_BOUND, "no write was acknowledged for {SERVE_BOUND:?} after a restart");
            sleep(Duration::from_millis(5));
        }
    }

    /// Reads every key from every member, while nobody writes, and judges what is read.
    async fn check(&self, addresses: &[SocketAddr]) -> Result<(), String> {
        let _quiet = self.gate.write().await;
        for &address in addresses {
            let read = read_all(address).await?;
            let mut ledger = self.ledger.lock().expect("no client panicked");
            let keys: Vec<_> = ledger.keys().map(str::to_owned).collect();
            for key in keys {
                let seen = read.iter().find(|(name, _)| *name == key).map(|(_, seen)| seen);
                ledger.check(&key, seen).map_err(|why| format!("{address}: {why}"))?;
            }
        }
        self.broken.lock().expect("no client panicked").clone().map_or(Ok(()), Err)
    }
}

async fn connect(address: SocketAddr) -> Result<KvClient<Channel>, Status> {
    let channel = timeout(CALL_BOUND, Channel::connect(address)).await;
    let channel = channel.map_err(|_| Status::deadline_exceeded("no connection"))?;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(KvClient::with_origin(channel, origin(address)))
}

/// All keys, linearizably, from one member; tries again while there is no leader.
async fn read_all(address: SocketAddr) -> Result<Vec<(String, Seen)>, String> {
    let start = Instant::now();
    loop {
        let why = match read_once(address).await {
            Ok(read) => return Ok(read),
            Err(status) => status,
        };
        if start.elapsed() > SERVE_BOUND {
            return Err(format!("{address} does not serve within {SERVE_BOUND:?}: {why}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn read_once(address: SocketAddr) -> Result<Vec<(String, Seen)>, Status> {
    let mut kv = connect(address).await?;
    let request = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let answer = timeout(CALL_BOUND, kv.range(request)).await;
    let response = answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let seen = |kv: &detcd_node::proto::mvccpb::KeyValue| Seen {
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: text(&kv.value),
    };
    Ok(response.kvs.iter().map(|kv| (text(&kv.key), seen(kv))).collect())
}
