//! A node's run: recover or found, listen, then drive until it ends.
use std::{future::Future, sync::Arc, time::Duration};

use detcd_core::{
    event::NodeEvent,
    format::wal::Metadata,
    machine::membership::{Member, cluster_id},
    replica::{self, Recovered, Replica, founding_log},
    types::Index,
};

use crate::{
    api::{self, Api, Limits, LongReads},
    checkpoint::Checkpoints,
    config::{CLUSTER_VERSION, ClusterState, Config},
    driver::{Driver, Step},
    error::{ExitReason, Failure},
    host::{Host, Listener, Role},
    inbox::{Handle, Item},
    metrics::Metrics,
    peers::{self, Peers, find_cluster},
    storage::{self, Storage},
};

/// Resolves when the node is to stop in an orderly way.
pub type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a node until it is stopped or cannot go on.
pub async fn run(config: Config, host: Host, stop: Stop) -> ExitReason {
    run_with(config, host, stop, |replica| Box::new(replica)).await
}

/// As [`run`], with something put around the replica: a test's way to a node that breaks its promises.
pub async fn run_with(
    config: Config,
    host: Host,
    stop: Stop,
    wrap: impl FnOnce(Replica) -> Box<dyn Step>,
) -> ExitReason {
    match start(&config, &host, stop, wrap).await {
        Ok(mut driver) => {
            let reason = (&mut driver).await;
            driver.leave();
            reason
        }
        Err(failure) => {
            host.probe.note(NodeEvent::Stopped { reason: failure.to_string() });
            ExitReason::Failed(failure)
        }
    }
}

async fn start(
    config: &Config,
    host: &Host,
    stop: Stop,
    wrap: impl FnOnce(Replica) -> Box<dyn Step>,
) -> Result<Driver, Failure> {
    let clients = listen(host, Role::Client, &config.listen_client_urls).await?;
    let peers = listen(host, Role::Peer, &config.listen_peer_urls).await?;
    let Opened { mut storage, metadata, recovered, remotes } = open(config, host).await?;
    introduce(config, metadata, &recovered);
    host.probe.note(recovered.event());
    let applied = recovered.state.0.applied();
    let checkpoints = Checkpoints::new(config, host.clone(), storage.snapshots().clone(), applied);
    let replica = Replica::new(replica_config(config, host, metadata), recovered);
    let handle = Handle::new(metadata.member, metadata.cluster, replica.status());
    let metrics = Arc::new(Metrics::default());
    storage.time_syncs(host.clock.clone(), metrics.clone());
    let (urls, snapshots) = (&config.advertise_peer_urls, storage.snapshots().clone());
    let context = peers::Context::new(host.clone(), handle.clone(), urls, snapshots, metrics.clone());
    let driver_peers = Peers::new(context.clone(), config.heartbeat_ms);
    context.add_remotes(remotes.into_iter().map(|member| (member.id, member.peer_urls)));
    for listener in peers {
        tokio::spawn(peers::serve(context.clone(), listener));
    }
    let limits = Limits { txn_ops_max: config.txn_ops_max };
    let (metrics_of_api, long_reads) = (metrics.clone(), LongReads::new(config.long_reads));
    let api = Api { handle: handle.clone(), limits, metrics: metrics_of_api, host: host.clone(), long_reads };
    for listener in clients {
        tokio::spawn(api::serve(api.clone(), listener, config.keep_alive));
    }
    tokio::spawn(tick(host.clone(), handle.clone(), config.heartbeat_ms));
    tokio::spawn(announce(host.clone(), handle.clone()));
    let stopping = handle.clone();
    tokio::spawn(async move {
        stop.await;
        tracing::info!(target: "node", "stopping, as asked to");
        stopping.push(Item::Stop);
    });
    Ok(Driver::new(wrap(replica), storage, checkpoints, host.clone(), handle, driver_peers, metrics))
}

/// Who this is, and what an operator must know of its data.
fn introduce(config: &Config, metadata: Metadata, recovered: &Recovered) {
    let (member, cluster, data_dir) = (metadata.member, metadata.cluster, config.data_dir.display());
    let (listen_client_urls, listen_peer_urls) = (&config.listen_client_urls, &config.listen_peer_urls);
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(
        target: "node", version, name = config.name, %data_dir, %member, %cluster, ?listen_client_urls, ?listen_peer_urls,
        "this member"
    );
    let leases = recovered.state.0.leases.iter().count();
    if leases > 0 {
        let what = "leases are not implemented yet: those in the data, and the keys that hang on them, never expire";
        tracing::warn!(target: "node", leases, "{what}");
    }
}

async fn listen(host: &Host, role: Role, urls: &[String]) -> Result<Vec<Box<dyn Listener>>, Failure> {
    let (name, flag) = match role {
        Role::Client => ("clients", "--listen-client-urls"),
        Role::Peer => ("peers", "--listen-peer-urls"),
    };
    let mut listeners = Vec::new();
    for url in urls {
        let listener = host.net.listen(role, url).await;
        let failed = |error| Failure::Listen { role: name, flag, url: url.clone(), error };
        listeners.push(listener.map_err(failed)?);
    }
    Ok(listeners)
}

/// What a member starts with.
struct Opened {
    storage: Storage,
    metadata: Metadata,
    recovered: Recovered,
    /// Who else is in the cluster, as far as others told.
    remotes: Vec<Member>,
}

/// The data that is there, or new data: of a founding member, or of one that joins.
async fn open(config: &Config, host: &Host) -> Result<Opened, Failure> {
    if storage::exists(config, &*host.disk).await? {
        let (storage, metadata, recovered) = Storage::open(config, host.disk.clone()).await?;
        let heard_nothing = recovered.last() == Index(0);
        // It stopped before anybody had told it who is there.
        let remotes = if heard_nothing { find_cluster(config, host, true).await?.1 } else { Vec::new() };
        return Ok(Opened { storage, metadata, recovered, remotes });
    }
    let (metadata, recovered, remotes) = match config.initial_cluster_state {
        ClusterState::New => {
            let (metadata, founding) = found(config)?;
            (metadata, founding, Vec::new())
        }
        ClusterState::Existing => {
            let (metadata, members) = find_cluster(config, host, false).await?;
            (metadata, Recovered::default(), members)
        }
    };
    let storage = Storage::create(config, host.disk.clone(), metadata, &recovered).await?;
    Ok(Opened { storage, metadata, recovered, remotes })
}

fn found(config: &Config) -> Result<(Metadata, Recovered), Failure> {
    let founders = config.founders();
    let mut urls = config.advertise_peer_urls.clone();
    urls.sort();
    let own = config
        .initial_cluster
        .iter()
        .zip(&founders)
        .find(|(founder, member)| founder.name == config.name && member.peer_urls == urls);
    let Some((_, own)) = own else {
        return Err(Failure::NotInCluster { name: config.name.clone(), urls });
    };
    let metadata = Metadata { member: own.id, cluster: cluster_id(&founders) };
    Ok((metadata, founding_log(&founders)))
}

fn replica_config(config: &Config, host: &Host, metadata: Metadata) -> replica::Config {
    replica::Config {
        id: metadata.member,
        name: config.name.clone(),
        client_urls: config.advertise_client_urls.clone(),
        cluster_version: CLUSTER_VERSION.to_owned(),
        heartbeat_ms: config.heartbeat_ms,
        election_ms: config.election_ms,
        request_bytes_max: config.request_bytes_max,
        tail_bytes: config.tail_bytes,
        outputs_max: config.outputs_max,
        watch_progress_ms: config.watch_progress_ms,
        seed: host.seed,
    }
}

/// Ticks for as long as the node runs. After a pause there is one tick, not as many as were missed.
async fn tick(host: Host, handle: Handle, heartbeat_ms: u64) {
    let interval = Duration::from_millis(heartbeat_ms);
    let mut next = host.clock.now() + interval;
    loop {
        let now = host.clock.now();
        host.clock.sleep(next.saturating_sub(now)).await;
        handle.push(Item::Tick);
        let now = host.clock.now();
        next = if now > next + interval { now + interval } else { next + interval };
    }
}

/// Says so once this member can serve: a leader is known and reads work.
async fn announce(host: Host, handle: Handle) {
    while handle.read().await.is_err() {
        host.clock.sleep(Duration::from_millis(100)).await;
    }
    host.probe.note(NodeEvent::Serving);
}
