//! Clients that put unique values to a few keys, and know what a read may say afterwards: the load under which members
//! are killed and replaced.
use detcd_node::proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use detcd_tests::harness::{
    grpc::{Channel, origin},
    http::Site,
    ledger::{Ledger, Seen},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::{
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime::Runtime, sync::RwLock, time::timeout};
use tonic::Status;

const CLIENTS: usize = 8;
const KEYS: u64 = 12;
/// A client that hears nothing for this long does not know whether its write took effect.
const CALL_BOUND: Duration = Duration::from_secs(2);
/// A restarted member must answer a linearizable read within this: replay, an election, a busy machine.
pub const SERVE_BOUND: Duration = Duration::from_secs(20);

/// A run's choices, which `DETCD_SEED` repeats (not its timing: these are real processes).
pub struct Choices(ChaCha8Rng);

impl Choices {
    pub fn draw() -> Choices {
        let now = || SystemTime::UNIX_EPOCH.elapsed().expect("a clock past 1970").as_nanos() as u64;
        let seed = env::var("DETCD_SEED").map_or_else(|_| now(), |seed| seed.parse().expect("DETCD_SEED is a number"));
        println!("DETCD_SEED={seed}");
        Choices(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    /// Lets up to so many milliseconds pass.
    pub fn pause(&mut self, bound: u64) {
        sleep(Duration::from_millis(self.below(bound)));
    }
}

/// How long a run is: a variable, or a few rounds.
pub fn rounds(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |rounds| rounds.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The clients, and what they know.
pub struct Load {
    /// Where they find the members.
    sites: Mutex<Vec<Site>>,
    ledger: Mutex<Ledger>,
    /// What a server promised wrongly, while nobody read.
    broken: Mutex<Option<String>>,
    /// A client's call holds it shared; who needs quiet takes it alone.
    gate: RwLock<()>,
    stop: AtomicBool,
}

impl Load {
    pub fn start(runtime: &Runtime, sites: Vec<Site>) -> Arc<Load> {
        let load = Arc::new(Load {
            sites: Mutex::new(sites),
            ledger: Mutex::default(),
            broken: Mutex::default(),
            gate: RwLock::default(),
            stop: AtomicBool::new(false),
        });
        for client in 0..CLIENTS {
            runtime.spawn(load.clone().put_for_ever(client));
        }
        load
    }

    /// The members are others from now on. Who talks to one that left notices.
    pub fn know(&self, sites: Vec<Site>) {
        *self.sites.lock().expect("no client panicked") = sites;
    }

    pub fn sites(&self) -> Vec<Site> {
        self.sites.lock().expect("no client panicked").clone()
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// One client: a put after the other, to another member when one fails.
    async fn put_for_ever(self: Arc<Load>, client: usize) {
        let (mut home, mut connection) = (client, None);
        for number in 0u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let _open = self.gate.read().await;
            if connection.is_none() {
                let sites = self.sites();
                connection = connect(&sites[home % sites.len()]).await.ok();
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

    pub fn acknowledged(&self) -> usize {
        self.ledger.lock().expect("no client panicked").acknowledged_count()
    }

    pub fn figures(&self) -> String {
        let ledger = self.ledger.lock().expect("no client panicked");
        format!("{} writes acknowledged, {} unknown", ledger.acknowledged_count(), ledger.unknown_count())
    }

    /// Members that serve but take no writes would make the rest vacuous.
    pub fn await_progress(&self, before: usize) {
        let start = Instant::now();
        while self.acknowledged() == before {
            assert!(start.elapsed() < SERVE_BOUND, "no write was acknowledged for {SERVE_BOUND:?} after a restart");
            sleep(Duration::from_millis(5));
        }
    }

    /// Reads every key from every member, while nobody writes, and judges what is read.
    pub async fn check(&self) -> Result<(), String> {
        let _quiet = self.gate.write().await;
        for site in self.sites() {
            let read = read_all(&site).await?;
            let mut ledger = self.ledger.lock().expect("no client panicked");
            let keys: Vec<_> = ledger.keys().map(str::to_owned).collect();
            for key in keys {
                let seen = read.iter().find(|(name, _)| *name == key).map(|(_, seen)| seen);
                ledger.check(&key, seen).map_err(|why| format!("{}: {why}", site.address))?;
            }
        }
        self.broken.lock().expect("no client panicked").clone().map_or(Ok(()), Err)
    }
}

async fn connect(site: &Site) -> Result<KvClient<Channel>, Status> {
    let channel = timeout(CALL_BOUND, Channel::connect(site)).await;
    let channel = channel.map_err(|_| Status::deadline_exceeded("no connection"))?;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(KvClient::with_origin(channel, origin(site)))
}

/// All keys, linearizably, from one member; tries again while there is no leader.
pub async fn read_all(site: &Site) -> Result<Vec<(String, Seen)>, String> {
    let start = Instant::now();
    loop {
        let why = match read_once(site).await {
            Ok(read) => return Ok(read),
            Err(status) => status,
        };
        if start.elapsed() > SERVE_BOUND {
            let address = site.address;
            return Err(format!("{address} does not serve within {SERVE_BOUND:?}: {why}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn read_once(site: &Site) -> Result<Vec<(String, Seen)>, Status> {
    let mut kv = connect(site).await?;
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
