//! Law: members come and go under load, and crash while they do: no acknowledged write is lost, every removed member is
//! gone for good, every added one serves.
//!
//! Three members with TLS everywhere; clients write all the time. In each round one member, which may lead, is removed:
//! alive, after a kill -9, or with a kill -9 of somebody on top; it must end by itself, and whenever it is started on its
//! old directory. Then one is added: a new one, or the old name and URLs on an empty directory; while it joins it is
//! killed, or another is, or nobody. `DETCD_ROUNDS` says how many rounds (3 without it), `DETCD_SEED` repeats a run's
//! choices (not its timing: these are real processes).
use super::{
    load::{Choices, Load, read_all, rounds},
    runtime,
};
use detcd_node::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberRemoveRequest, PutRequest, RangeRequest,
    cluster_client::ClusterClient, kv_client::KvClient,
};
use detcd_tests::harness::{
    Address, Addresses, Certificates, Cluster,
    binaries::{detcd, stands_in},
    grpc::{Channel, origin},
    http::{self, Site},
};
use std::{
    collections::BTreeSet,
    fs, slice,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, time::timeout};
use tonic::{Code, Status};

const ROUNDS_DEFAULT: usize = 3;
const MEMBERS: usize = 3;
/// More than a leader keeps of its log in memory: who joins is fed the state.
const BALLAST_COUNT: usize = 12;
const BALLAST_BYTES: usize = 1 << 20;
/// A change of the members waits until they are connected, for a leader, and for killed ones to come back.
const CHANGE_BOUND: Duration = Duration::from_secs(60);
/// One attempt at it.
const CALL_BOUND: Duration = Duration::from_secs(10);
/// A server gives up a request that was lost after 5 s at the least.
const LOST_TIME: Duration = Duration::from_secs(5);
/// Members must have been connected for 5 s before one that is alive may go; a change that is refused is nothing to kill
/// anybody amid.
const CALM: Duration = Duration::from_millis(5_500);
/// A removed member stays until it knows that another one knows.
const GONE_BOUND: Duration = Duration::from_secs(75);

#[test]
fn three_members_over_tls() {
    let rounds = rounds("DETCD_ROUNDS", ROUNDS_DEFAULT);
    let mut churn = Churn::start();
    for round in 0..rounds {
        churn.round(round);
    }
    let Churn { load, figures, .. } = &churn;
    load.stop();
    let Figures { kills, amid, led, fed, slowest_end, slowest_join } = figures;
    println!(
        "{rounds} rounds, {kills} kills, {amid} of them amid a removal, {led} removed while they led, {fed} fed a state: \
         {}; slowest to end {slowest_end:?}, slowest to join {slowest_join:?}",
        load.figures()
    );
    assert!(*fed > 0 || stands_in(), "nobody needed a state");
}

#[derive(Default)]
struct Figures {
    kills: usize,
    amid: usize,
    led: usize,
    fed: usize,
    slowest_end: Duration,
    slowest_join: Duration,
}

struct Churn {
    cluster: Cluster,
    /// Those in the cluster, by their place in the harness's list.
    present: Vec<usize>,
    removed: BTreeSet<u64>,
    runtime: Runtime,
    load: Arc<Load>,
    choices: Choices,
    /// When somebody was started last.
    started: Instant,
    /// From where on the choices that must all be made are gone through.
    first: usize,
    figures: Figures,
}

impl Churn {
    fn start() -> Churn {
        let mut choices = Choices::draw();
        let addresses = Addresses::reserve_tls(MEMBERS);
        let mut cluster = Cluster::prepare_tls(&detcd(), &addresses, &Certificates::make());
        cluster.members.iter_mut().for_each(|member| member.set("snapshot-count", "5000"));
        cluster.start_all();
        let sites: Vec<_> = cluster.members.iter().map(|member| member.site()).collect();
        let runtime = runtime();
        for number in 0..BALLAST_COUNT {
            let (key, value) = (format!("ballast{number}"), vec![b'x'; BALLAST_BYTES]);
            runtime.block_on(put(&sites[0], &key, value)).expect("a put");
        }
        let load = Load::start(&runtime, sites);
        let (present, first) = ((0..MEMBERS).collect(), choices.below(6) as usize);
        let (removed, figures) = (BTreeSet::new(), Figures::default());
        let started = Instant::now();
        Churn { cluster, present, removed, runtime, load, choices, started, first, figures }
    }

    fn round(&mut self, round: usize) {
        let before = self.load.acknowledged();
        let turn = self.first + round;
        let victim = self.choose_victim(turn);
        self.remove(victim, turn);
        if self.choices.below(3) == 0 {
            let other = self.any();
            self.crash(other);
        }
        let address = match turn % 2 {
            0 => self.cluster.members[victim].address.clone(),
            _ => Address::reserve(&format!("m{}", self.cluster.members.len()), true),
        };
        self.add(&address, turn);
        self.load.await_progress(before);
        let check = self.runtime.block_on(self.load.check());
        check.unwrap_or_else(|why| panic!("after round {round}: {why}"));
    }

    /// Most often whoever leads: always where nothing else happens.
    fn choose_victim(&mut self, turn: usize) -> usize {
        let leads = |member: &usize| http::metric(self.site(*member), "etcd_server_is_leader") == Some(1.0);
        let leader = self.present.iter().copied().find(leads);
        let victim = leader.filter(|_| turn % 2 == 1 || turn % 3 == 2).unwrap_or_else(|| self.any());
        self.figures.led += usize::from(Some(victim) == leader);
        victim
    }

    fn remove(&mut self, victim: usize, turn: usize) {
        let id = self.id_of(victim);
        if turn.is_multiple_of(3) {
            self.kill(victim);
        }
        self.present.retain(|member| *member != victim);
        self.load.know(self.sites());
        let (amid, calm) = (turn % 3 == 1, turn % 3 == 2);
        if amid || calm {
            thread::sleep((self.started + CALM).saturating_duration_since(Instant::now()));
        }
        let (sites, begun) = (self.sites(), Instant::now());
        let asked = thread::spawn(move || runtime().block_on(remove(&sites, id)));
        if amid {
            // Whoever goes, whoever was asked, or the third.
            self.choices.pause(30);
            self.figures.amid += usize::from(!asked.is_finished());
            match self.choices.below(MEMBERS as u64) {
                0 => self.kill(victim),
                _ => {
                    let other = self.any();
                    self.crash(other);
                }
            }
        }
        asked.join().expect("no panic").unwrap_or_else(|why| panic!("{id:x} stays a member: {why}"));
        assert!(!calm || begun.elapsed() < LOST_TIME, "an attempt to remove {id:x} was lost, though all were well");
        assert!(self.removed.insert(id), "ids are never given twice");
        let removed = Instant::now();
        self.ends(victim);
        self.figures.slowest_end = self.figures.slowest_end.max(removed.elapsed());
        // It ends again whenever it is started, until its disk is taken away.
        self.ends(victim);
        fs::remove_dir_all(&self.cluster.members[victim].data_dir).expect("the data directory goes");
    }

    /// A removed member, started if it is down, ends by itself and says why.
    fn ends(&mut self, victim: usize) {
        let member = self.cluster.member(victim);
        member.launch();
        let (name, ended) = (member.address.name.clone(), member.wait_ended(GONE_BOUND));
        let status = ended.unwrap_or_else(|| panic!("{name} was removed, and still runs after {GONE_BOUND:?}"));
        let log = member.log_text();
        assert!(status.code().is_some_and(|code| code != 0) || stands_in(), "{name} ended with {status}");
        assert!(log.contains("removed member") || stands_in(), "{name} does not say why it ended: {log}");
    }

    fn add(&mut self, address: &Address, turn: usize) {
        let members = self.runtime.block_on(add(&self.sites(), &address.peer_url()));
        let members = members.unwrap_or_else(|why| panic!("{} cannot be added: {why}", address.name));
        let joining = lines_for(address, &members);
        let newcomer = self.cluster.members.len();
        let member = self.cluster.add(address, &joining);
        member.set("snapshot-count", "5000");
        let log_before = fs::metadata(&member.log).map_or(0, |log| log.len() as usize);
        member.launch();
        let launched = Instant::now();
        self.started = launched;
        self.present.push(newcomer);
        match turn % 3 {
            0 => {
                self.choices.pause(600);
                self.crash(newcomer);
            }
            1 => {
                self.choices.pause(300);
                let other = self.any();
                self.crash(other);
            }
            _ => {}
        }
        self.cluster.member(newcomer).wait_ready();
        self.load.know(self.sites());
        self.serves(newcomer);
        self.figures.slowest_join = self.figures.slowest_join.max(launched.elapsed());
        let log = fs::read(&self.cluster.members[newcomer].log).expect("its log");
        let log = String::from_utf8_lossy(&log[log_before..]).into_owned();
        self.figures.fed += usize::from(log.contains("applied snapshot"));
    }

    /// It answers reads, its own too; it takes writes; and it knows who is a member.
    fn serves(&self, member: usize) {
        let (site, name) = (self.site(member), &self.cluster.members[member].address.name);
        self.runtime.block_on(async {
            read_all(&site).await.unwrap_or_else(|why| panic!("{name} was added: {why}"));
            let range = |serializable| RangeRequest {
                key: "ballast".into(),
                range_end: "ballasu".into(),
                count_only: true,
                serializable,
                ..Default::default()
            };
            let mut kv = kv(&site).await.expect("a connection");
            for serializable in [false, true] {
                let count = kv.range(range(serializable)).await.expect("an answer").into_inner().count;
                assert_eq!(count as usize, BALLAST_COUNT, "{name} lacks what was written before it came");
            }
            until_done(slice::from_ref(&site), async |site| put(site, &format!("by/{name}"), b"v".to_vec()).await)
                .await
                .unwrap_or_else(|why| panic!("{name} takes no write: {why}"));
            let members = until_done(slice::from_ref(&site), list).await.expect("a list");
            let expected: BTreeSet<_> = self.present.iter().map(|&m| &self.cluster.members[m].address.name).collect();
            assert_eq!(members.iter().map(|member| &member.name).collect::<BTreeSet<_>>(), expected);
            assert!(members.iter().all(|member| !self.removed.contains(&member.id)), "{members:?}");
        });
    }

    fn kill(&mut self, member: usize) {
        self.cluster.member(member).kill9();
        self.figures.kills += 1;
    }

    /// Kills it, and starts it again a little later.
    fn crash(&mut self, member: usize) {
        self.kill(member);
        self.choices.pause(300);
        self.cluster.member(member).launch();
        self.started = Instant::now();
    }

    fn any(&mut self) -> usize {
        self.present[self.choices.below(self.present.len() as u64) as usize]
    }

    fn id_of(&self, member: usize) -> u64 {
        let members = self.runtime.block_on(until_done(&self.sites(), list)).expect("a list");
        let url = self.cluster.members[member].address.peer_url();
        members.iter().find(|member| member.peer_ur_ls.contains(&url)).expect("it is a member").id
    }

    fn site(&self, member: usize) -> Site {
        self.cluster.members[member].site()
    }

    fn sites(&self) -> Vec<Site> {
        self.present.iter().map(|member| self.site(*member)).collect()
    }
}

/// What `etcdctl member add` would print for it.
fn lines_for(address: &Address, members: &[Member]) -> Vec<(String, String)> {
    let pair = |member: &Member| {
        let name = if member.peer_ur_ls.contains(&address.peer_url()) { &address.name } else { &member.name };
        format!("{name}={}", member.peer_ur_ls[0])
    };
    let lines = [
        ("ETCD_NAME", address.name.clone()),
        ("ETCD_INITIAL_CLUSTER", members.iter().map(pair).collect::<Vec<_>>().join(",")),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", address.peer_url()),
        ("ETCD_INITIAL_CLUSTER_STATE", "existing".to_owned()),
    ];
    lines.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

async fn kv(site: &Site) -> Result<KvClient<Channel>, Status> {
    Ok(KvClient::with_origin(connect(site).await?, origin(site)))
}

async fn connect(site: &Site) -> Result<Channel, Status> {
    Channel::connect(site).await.map_err(|error| Status::unavailable(error.to_string()))
}

async fn put(site: &Site, key: &str, value: Vec<u8>) -> Result<(), Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
    kv(site).await?.put(request).await.map(drop)
}

async fn list(site: &Site) -> Result<Vec<Member>, Status> {
    let mut cluster = ClusterClient::with_origin(connect(site).await?, origin(site));
    Ok(cluster.member_list(MemberListRequest { linearizable: true }).await?.into_inner().members)
}

/// An attempt whose outcome nobody knows may have removed it: then it is not found.
async fn remove(sites: &[Site], id: u64) -> Result<(), Status> {
    let once = async |site: &Site| {
        let mut cluster = ClusterClient::with_origin(connect(site).await?, origin(site));
        match cluster.member_remove(MemberRemoveRequest { id }).await {
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(()),
        }
    };
    until_done(sites, once).await
}

/// The members afterwards. An attempt whose outcome nobody knows may have added it: then its URL is taken.
async fn add(sites: &[Site], url: &str) -> Result<Vec<Member>, Status> {
    let once = async |site: &Site| {
        let mut cluster = ClusterClient::with_origin(connect(site).await?, origin(site));
        let request = MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner: false };
        match cluster.member_add(request).await {
            Err(status) if !status.message().contains("Peer URLs already exists") => Err(status),
            _ => list(site).await,
        }
    };
    until_done(sites, once).await
}

/// Asks one after the other until it is done. The error is the last one's.
async fn until_done<T>(sites: &[Site], once: impl AsyncFn(&Site) -> Result<T, Status>) -> Result<T, Status> {
    let start = Instant::now();
    let mut turns = sites.iter().cycle();
    loop {
        let site = turns.next().expect("somebody to ask");
        let answer = timeout(CALL_BOUND, once(site)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Err(status) if start.elapsed() > CHANGE_BOUND => return Err(status),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            done => return done,
        }
    }
}
