//! States on their way to the same place must not take each other's files.
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use detcd_core::{
    consensus::Message,
    machine::{
        Machine,
        command::{Command, Put},
    },
    proto::raftpb::{self, MessageType},
    replica::State,
    types::{Index, LeaseId, RequestId, Term},
};
use parking_lot::Mutex;
use prost::Message as _;

use super::{Image, Pieces, ReceiveError, Snapshots, receive};
use crate::host::{BoxFuture, Disk, File, Open};

/// Files in memory. Everything is done at once, and nothing is ever lost.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<PathBuf, Arc<Mutex<Vec<u8>>>>>);

fn now<T: Send + 'static>(result: io::Result<T>) -> BoxFuture<'static, io::Result<T>> {
    Box::pin(async move { result })
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Memory {
    fn create_dir_all<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        now(Ok(()))
    }

    fn list<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        let files = self.0.lock();
        let names = files.keys().filter(|path| path.parent() == Some(dir)).filter_map(|path| path.file_name());
        now(Ok(names.map(|name| name.to_string_lossy().into_owned()).collect()))
    }

    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        let mut files = self.0.lock();
        if how == Open::Create {
            assert!(!files.contains_key(path), "{} is somebody else's", path.display());
            files.insert(path.to_owned(), Arc::default());
        }
        now(files.get(path).map(|bytes| Arc::new(MemoryFile(bytes.clone())) as Arc<dyn File>).ok_or_else(missing))
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let mut files = self.0.lock();
        let file = files.remove(from).ok_or_else(missing);
        now(file.map(|file| drop(files.insert(to.to_owned(), file))))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        now(self.0.lock().remove(path).map(drop).ok_or_else(missing))
    }

    fn sync_dir<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        now(Ok(()))
    }
}

struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl File for MemoryFile {
    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        now(Ok(self.0.lock().len() as u64))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        now(Ok(self.0.lock().iter().skip(offset as usize).take(len).copied().collect()))
    }

    fn write_at(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        let (mut bytes, end) = (self.0.lock(), offset as usize + data.len());
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[offset as usize..end].copy_from_slice(&data);
        now(Ok(()))
    }

    fn set_len(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.0.lock().resize(len as usize, 0);
        now(Ok(()))
    }

    fn allocate(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.set_len(len)
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        now(Ok(()))
    }

    fn write_sync(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.write_at(offset, data)
    }
}

fn state(index: u64) -> State {
    let mut machine = Machine::default();
    for index in 1..=index {
        let put = Put {
            key: format!("key {index}").into(),
            value: Bytes::from_static(b"value"),
            lease: LeaseId(0),
            previous: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let data = Command::Put(put).encode(RequestId(index));
        machine.apply(Index(index), Term(1), data.into(), |_| false).unwrap();
    }
    State(Box::new(machine))
}

/// The leader's message that comes before the state of an index.
fn message(index: u64) -> Message {
    let metadata = raftpb::SnapshotMetadata { index: Some(index), term: Some(1), ..Default::default() };
    let message = raftpb::Message {
        r#type: Some(MessageType::MsgSnap as i32),
        to: Some(1),
        from: Some(2),
        term: Some(1),
        snapshot: Some(raftpb::Snapshot { data: None, metadata: Some(metadata) }),
        ..Default::default()
    };
    Message::decode(&message.encode_to_vec()).unwrap()
}

struct Stream(Vec<Result<Bytes, String>>);

impl Stream {
    async fn whole(index: u64) -> Stream {
        let mut image = Image::of(state(index)).await;
        let mut pieces = Vec::new();
        while let Some(piece) = image.next().await {
            pieces.insert(0, Ok(piece.into()));
        }
        Stream(pieces)
    }

    fn cut() -> Stream {
        Stream(vec![Err("the connection broke".into())])
    }
}

impl Pieces for Stream {
    async fn next(&mut self) -> Option<Result<Bytes, String>> {
        self.0.pop()
    }
}

async fn open() -> (Arc<Memory>, Snapshots) {
    let disk = Arc::<Memory>::default();
    let (snapshots, _) = Snapshots::open(disk.clone(), Path::new("/snap"), 5).await.unwrap();
    (disk, snapshots)
}

#[tokio::test]
async fn a_state_on_its_way_into_place_is_safe_from_the_next_of_its_index() {
    let (_, mut snapshots) = open().await;
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    // Its connection broke before the leader heard of it, so it comes again, and that may break too.
    for mut again in [Stream::cut(), Stream::whole(5).await] {
        let refused = receive(&snapshots, &message(5), &mut again, false).await;
        assert!(matches!(refused, Err(ReceiveError::Busy(Index(5)))), "{:?}", refused.map(drop));
    }
    // Those of other indexes are no danger, and one that breaks leaves nothing.
    assert!(receive(&snapshots, &message(7), &mut Stream::cut(), false).await.is_err());
    receive(&snapshots, &message(7), &mut Stream::whole(7).await, false).await.unwrap();
    snapshots.place_received(Index(5)).await.unwrap();
    snapshots.drop_received(Index(7)).await.unwrap();
    assert_eq!(snapshots.recover(Index(5)).await.unwrap().applied(), Index(5));
    // The way is free again.
    for index in [5, 7] {
        receive(&snapshots, &message(index), &mut Stream::whole(index).await, false).await.unwrap();
    }
}

#[tokio::test]
async fn a_checkpoint_is_safe_from_a_received_state_of_its_index() {
    let (_, mut snapshots) = open().await;
    let written = snapshots.write_checkpoint(state(5)).await.unwrap();
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    snapshots.drop_received(Index(5)).await.unwrap();
    assert!(snapshots.place_checkpoint(&written).await.unwrap());
    assert_eq!(snapshots.recover(Index(5)).await.unwrap().applied(), Index(5));
}

#[tokio::test]
async fn a_state_that_does_not_arrive_leaves_nothing() {
    let (disk, snapshots) = open().await;
    assert!(receive(&snapshots, &message(5), &mut Stream::cut(), false).await.is_err());
    assert!(receive(&snapshots, &message(6), &mut Stream::whole(5).await, false).await.is_err());
    let left: Vec<_> = disk.0.lock().keys().cloned().collect();
    assert_eq!(left, [] as [PathBuf; 0]);
}
