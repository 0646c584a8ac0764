//! A world for tests of single parts: files in memory, and a clock that stands still.
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use detcd_core::{
    consensus::Message,
    event::NodeEvent,
    machine::{
        Machine,
        command::{Command, Put},
    },
    proto::raftpb::{self, MessageType},
    replica::{State, Status},
    types::{ClusterId, Index, LeaseId, MemberId, RequestId, Term},
};
use parking_lot::Mutex;
use prost::Message as _;

use crate::{
    host::{BoxFuture, Clock, Disk, File, Host, Io, Listener, Net, Open, Probe, Role, Sleep},
    inbox::Handle,
};

/// Files in memory. Everything is done at once, and nothing is ever lost.
#[derive(Default)]
pub struct Memory {
    pub files: Mutex<BTreeMap<PathBuf, Arc<Mutex<Vec<u8>>>>>,
    /// Where files were read.
    pub reads: Arc<Mutex<Vec<u64>>>,
    /// What is written to the log never gets there.
    pub stuck: Arc<AtomicBool>,
}

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
        let files = self.files.lock();
        let names = files.keys().filter(|path| path.parent() == Some(dir)).filter_map(|path| path.file_name());
        now(Ok(names.map(|name| name.to_string_lossy().into_owned()).collect()))
    }

    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        let mut files = self.files.lock();
        if how == Open::Create {
            assert!(!files.contains_key(path), "{} is somebody else's", path.display());
            files.insert(path.to_owned(), Arc::default());
        }
        now(files
            .get(path)
            .map(|bytes| {
                let (bytes, reads, stuck) = (bytes.clone(), self.reads.clone(), self.stuck.clone());
                Arc::new(MemoryFile { bytes, reads, stuck }) as Arc<dyn File>
            })
            .ok_or_else(missing))
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or_else(missing);
        now(file.map(|file| drop(files.insert(to.to_owned(), file))))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        now(self.files.lock().remove(path).map(drop).ok_or_else(missing))
    }

    fn sync_dir<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        now(Ok(()))
    }
}

struct MemoryFile {
    bytes: Arc<Mutex<Vec<u8>>>,
    reads: Arc<Mutex<Vec<u64>>>,
    stuck: Arc<AtomicBool>,
}

impl File for MemoryFile {
    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        now(Ok(self.bytes.lock().len() as u64))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        self.reads.lock().push(offset);
        let bytes = self.bytes.lock();
        let start = bytes.len().min(offset as usize);
        now(Ok(bytes[start..bytes.len().min(start + len)].to_vec()))
    }

    fn write_at(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        let (mut bytes, end) = (self.bytes.lock(), offset as usize + data.len());
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[offset as usize..end].copy_from_slice(&data);
        now(Ok(()))
    }

    fn set_len(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.bytes.lock().resize(len as usize, 0);
        now(Ok(()))
    }

    fn allocate(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.set_len(len)
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        now(Ok(()))
    }

    fn write_sync(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        if self.stuck.load(Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.write_at(offset, data)
    }
}

/// A state of so many puts.
pub fn state(index: u64) -> State {
    state_of((1..=index).map(|_| Bytes::from_static(b"value")))
}

/// A state with these values, each put to a key of its own.
pub fn state_of(values: impl IntoIterator<Item = Bytes>) -> State {
    let mut machine = Machine::default();
    for (index, value) in (1..).zip(values) {
        let put = Put {
            key: format!("key {index}").into(),
            value,
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
pub fn snapshot_message(index: u64) -> Message {
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

/// No time passes, whoever waits waits for ever, and nobody can be reached.
pub struct Nowhere;

impl Clock for Nowhere {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn wall(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(std::future::pending())
    }
}

impl Net for Nowhere {
    fn listen<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        now(Err(io::ErrorKind::AddrNotAvailable.into()))
    }

    fn connect<'a>(&'a self, _: Role, _: &'a str) -> BoxFuture<'a, io::Result<Io>> {
        now(Err(io::ErrorKind::ConnectionRefused.into()))
    }
}

/// What was noted.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<NodeEvent>>);

impl Probe for Notes {
    fn note(&self, event: NodeEvent) {
        self.0.lock().push(event);
    }
}

/// To a driver that there is not.
pub fn handle() -> Handle {
    let (term, none) = (Term(1), Index(0));
    let status = Status {
        term,
        leader: MemberId(0),
        committed: none,
        applied: none,
        watches: 0,
        is_learner: false,
        changes_are_durable: true,
        is_untold: false,
    };
    Handle::new(MemberId(1), ClusterId(1), status)
}

pub fn host() -> Host {
    Host {
        disk: Arc::<Memory>::default(),
        net: Arc::new(Nowhere),
        clock: Arc::new(Nowhere),
        probe: Arc::<Notes>::default(),
        seed: 1,
    }
}
