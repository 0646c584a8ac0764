use std::{
    io,
    path::Path,
    pin::pin,
    task::{Context as TaskContext, Poll, Waker},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    host::{BoxFuture, Io, Listener, Net, Role},
    metrics::Metrics,
    testing::{self, state},
};

/// Everybody can be reached, and a peer is removed while it is.
struct Removes(Arc<Peer>);

impl Net for Removes {
    fn listen<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        unreachable!("nobody listens")
    }

    fn connect<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async {
            self.0.gone.store(true, Relaxed);
            self.0.incoming.cut();
            // The other end stays open, and says nothing.
            let (near, far) = tokio::io::duplex(1_024);
            std::mem::forget(far);
            Ok(Box::new(near) as Io)
        })
    }
}

/// Asks nobody, and remembers whom it was to.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl Net for Asked {
    fn listen<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        unreachable!("nobody listens")
    }

    fn connect<'a>(&'a self, _: Role, url: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        self.0.lock().push(url.to_owned());
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

async fn context(net: Arc<dyn Net>) -> Context {
    let host = Host { net, ..testing::host() };
    let (snapshots, _) = Snapshots::open(host.disk.clone(), Path::new("/snap"), 5).await.unwrap();
    Context::new(host, testing::handle(), &["http://n1:2380".to_owned()], snapshots, Arc::<Metrics>::default())
}

fn urls(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("http://n2-{number}:2380")).collect()
}

#[tokio::test]
async fn who_is_removed_while_it_is_dialled_is_not_listened_to() {
    let peer = Arc::new(Peer::new(MemberId(2), urls(1)));
    let context = context(Arc::new(Removes(peer.clone()))).await;
    let polled = pin!(dial::receive(&context, &peer, 0)).poll(&mut TaskContext::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Ok(()))), "it waits for a word of who is gone");
}

#[tokio::test]
async fn snapshots_try_one_url_after_the_other() {
    let asked = Arc::<Asked>::default();
    let context = context(asked.clone()).await;
    let peer = Arc::new(Peer::new(MemberId(2), urls(3)));
    context.directory.lock().peers.insert(MemberId(1), peer); // whom the message is to
    for _ in 0..4 {
        snapshot::send(context.clone(), testing::snapshot_message(1), state(1)).await;
    }
    let [first, second, third] = [0, 1, 2].map(|number| urls(3)[number].clone());
    assert_eq!(*asked.0.lock(), [first.clone(), second, third, first]);
}

/// The first connection never comes about, the others are refused.
#[derive(Default)]
struct FirstHangs(AtomicUsize);

impl Net for FirstHangs {
    fn listen<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        unreachable!("nobody listens")
    }

    fn connect<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        match self.0.fetch_add(1, Relaxed) {
            0 => Box::pin(std::future::pending()),
            _ => Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }),
        }
    }
}

/// The answer to the first one may have been lost; the follower waits for the second.
#[tokio::test]
async fn a_snapshot_that_raft_asks_for_ends_the_one_before() {
    let net = Arc::<FirstHangs>::default();
    let context = context(net.clone()).await;
    context.directory.lock().peers.insert(MemberId(1), Arc::new(Peer::new(MemberId(2), urls(1))));
    let first = tokio::spawn(snapshot::send(context.clone(), testing::snapshot_message(1), state(1)));
    while net.0.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!first.is_finished());
    snapshot::send(context.clone(), testing::snapshot_message(1), state(1)).await;
    first.await.unwrap();
    assert_eq!(net.0.load(Relaxed), 2);
    // Of the first one raft hears nothing: it would take that for the second's end.
    let mut told = Vec::new();
    context.handle.drain(&mut TaskContext::from_waker(Waker::noop()), &mut told);
    assert!(matches!(told[..], [Item::SnapshotSent { delivered: false, .. }]), "told {} times", told.len());
}

/// One connection, and then none.
struct Once(Option<Io>);

impl Listener for Once {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>> {
        match self.0.take() {
            Some(io) => Box::pin(async { Ok(io) }),
            None => Box::pin(std::future::pending()),
        }
    }
}

#[tokio::test]
async fn a_state_with_a_checksum_of_another_kind_is_refused_by_its_name() {
    let context = context(Arc::new(testing::Nowhere)).await;
    let cluster = context.cluster;
    let (mut near, far) = tokio::io::duplex(4_096);
    let mut serving = pin!(serve::serve(context, Box::new(Once(Some(Box::new(far))))));
    let request = format!(
        "POST /raft/snapshot HTTP/1.1\r\nHost: n1\r\nConnection: close\r\nX-Etcd-Cluster-ID: {cluster}\r\n\
         X-Server-Version: 3.6.0\r\nX-Min-Cluster-Version: 3.0.0\r\nX-Detcd-Checksum: sha256\r\nContent-Length: 0\r\n\r\n"
    );
    near.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::select! {
        _ = &mut serving => unreachable!("it serves for as long as it is asked"),
        read = near.read_to_string(&mut answer) => drop(read.unwrap()),
    }
    assert!(answer.starts_with("HTTP/1.1 412"), "{answer}");
    assert!(answer.contains("\"sha256\"") && answer.contains("xxh3-128"), "{answer}");
}

#[tokio::test]
async fn invented_members_are_bounded() {
    let context = context(Arc::new(testing::Nowhere)).await;
    for id in 2..2 + 2 * REMOTES_MAX as u64 {
        context.add_remotes([(MemberId(id), urls(1))]);
    }
    let directory = context.directory.lock();
    assert_eq!((directory.remotes.len(), directory.peers.len()), (REMOTES_MAX, REMOTES_MAX));
}
