//! The seam between a node and its world: disk, net, clock, entropy, probe. Nothing else differs.
//!
//! A [`Host`] is built in two places only: by the daemon (files, sockets, the kernel's clock) and by the simulator
//! (values in memory, on simulated time). The node asks for everything else through these traits, so whatever it
//! does over them can be made to fail, to stall, or to happen again.
//!
//! Invariants the worlds keep:
//! - Bytes written are durable only after a later `sync` of that file returned `Ok`; a created, renamed or removed
//!   directory entry only after `sync_dir` of its directory.
//! - Operations on one [`File`] take effect in the order in which they were called, even if not awaited in between.
//! - After an error of `sync` nothing about the bytes since the last good one is known: the caller stops.
use std::{future::Future, io, path::Path, pin::Pin, sync::Arc, time::Duration};

use detcd_core::event::NodeEvent;
use tokio::io::{AsyncRead, AsyncWrite};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A timer. `Sync` because hyper holds timers in shared state.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// One node's world.
#[derive(Clone)]
pub struct Host {
    pub disk: Arc<dyn Disk>,
    pub net: Arc<dyn Net>,
    pub clock: Arc<dyn Clock>,
    pub probe: Arc<dyn Probe>,
    /// All of the node's randomness comes from here. Differs at every start of a node.
    pub seed: u64,
}

/// Files and directories.
pub trait Disk: Send + Sync + 'static {
    fn create_dir_all<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// The names in `dir`, sorted; [`io::ErrorKind::NotFound`] if there is no such directory.
    fn list<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>>;
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>>;
    /// Replaces `to` if it exists.
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;
    /// Makes the directory's entries durable.
    fn sync_dir<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Keeps other processes off a directory, or off a state as etcd does: [`io::ErrorKind::WouldBlock`] if one holds the
    /// lock. It stays with what it was taken on, whatever that is called later. A disk of one process needs none.
    fn lock<'a>(&'a self, _path: &'a Path) -> BoxFuture<'a, io::Result<Lock>> {
        Box::pin(async { Ok(Box::new(()) as Lock) })
    }
}

/// Given up when it is dropped.
pub type Lock = Box<dyn Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write. Locked: [`io::ErrorKind::WouldBlock`] if another process holds it.
    Write,
    /// A new, empty file, to read and write, locked as above; [`io::ErrorKind::AlreadyExists`] if there is one.
    Create,
}

/// An open file. Offsets and lengths in bytes. Dropping it closes it and gives up its lock.
#[allow(clippy::len_without_is_empty)]
pub trait File: Send + Sync + 'static {
    fn len(&self) -> BoxFuture<'_, io::Result<u64>>;
    /// Fewer than `len` bytes only at the end of the file.
    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Vec<u8>>>;
    fn write_at(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>>;
    /// Cuts the file, or extends it by zeros.
    fn set_len(&self, len: u64) -> BoxFuture<'_, io::Result<()>>;
    /// As `set_len`, and the space up to `len` is reserved: writing there cannot run out of space.
    fn allocate(&self, len: u64) -> BoxFuture<'_, io::Result<()>>;
    /// Makes the file's bytes and length durable.
    fn sync(&self) -> BoxFuture<'_, io::Result<()>>;
    /// `write_at`, then `sync`, as one operation: the log's hot path.
    fn write_sync(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>>;
}

/// A byte stream between two addresses.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}
pub type Io = Box<dyn Stream>;

/// Who is on the other side of a listener or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Client,
    Peer,
}

/// Connections. Where to is a URL, `http://host:port` or, in a world that has TLS, `https://host:port`. Certificates,
/// and whom to trust, are that world's business: a stream it hands over is open to whoever is meant to use it.
pub trait Net: Send + Sync + 'static {
    fn listen<'a>(&'a self, role: Role, url: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
    fn connect<'a>(&'a self, role: Role, url: &'a str) -> BoxFuture<'a, io::Result<Io>>;
}

pub trait Listener: Send + 'static {
    /// The next connection. Who is turned away, or never says a word, is none, and holds nobody up.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Io>>;
}

/// Time as this node sees it.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic, from an origin of its own; may run fast or slow, never back.
    fn now(&self) -> Duration;
    /// Since the Unix epoch; may jump.
    fn wall(&self) -> Duration;
    fn sleep(&self, time: Duration) -> Sleep;
}

/// Where a node notes every fact worth observing or triggering on.
pub trait Probe: Send + Sync + 'static {
    fn note(&self, event: NodeEvent);

    /// How the process is, if there is one to speak of.
    fn vitals(&self) -> Option<Vitals> {
        None
    }
}

/// A process, as its metrics tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vitals {
    pub resident_bytes: u64,
    pub open_files: u64,
    pub files_max: u64,
    pub cpu_seconds: f64,
    /// Since the Unix epoch, in seconds.
    pub started: f64,
}
