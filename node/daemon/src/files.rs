//! Files and directories. The log's writes have a thread of their own, on which nothing else ever waits for a disk;
//! everything else, which is rare, goes to the runtime's pool.
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use detcd_node::host::{BoxFuture, Disk, File, Lock, Open};
use tokio::sync::oneshot;

/// Writes of at least so many bytes are large files being written, see [`write_behind`].
const WRITE_BEHIND_BYTES_MIN: usize = 128 << 10;
/// So many bytes of a large file may wait for the disk: the log's next sync waits behind them.
const WRITE_BEHIND_BYTES_MAX: u64 = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;

pub struct Files {
    log: mpsc::Sender<Job>,
}

impl Files {
    pub fn new() -> Files {
        let (log, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || jobs.into_iter().for_each(|job| job()))
            .expect("the system has room for one more thread");
        Files { log }
    }
}

/// Runs a short blocking operation off the runtime's thread.
fn pooled<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> BoxFuture<'static, io::Result<T>> {
    Box::pin(async move { tokio::task::spawn_blocking(operation).await.map_err(io::Error::other)? })
}

impl Disk for Files {
    fn create_dir_all<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let dir = dir.to_owned();
        pooled(move || DirBuilder::new().recursive(true).mode(0o700).create(dir))
    }

    fn list<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        let dir = dir.to_owned();
        pooled(move || {
            let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
    }

    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        let (path, log) = (path.to_owned(), self.log.clone());
        pooled(move || {
            let mut options = OpenOptions::new();
            options.read(true).mode(0o600);
            match how {
                Open::Read => {}
                Open::Write => drop(options.write(true)),
                Open::Create => drop(options.write(true).create_new(true)),
            }
            let file = options.open(path)?;
            if how != Open::Read {
                lock(&file)?;
            }
            Ok(Arc::new(OpenFile { file: Arc::new(file), log }) as Arc<dyn File>)
        })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        pooled(move || fs::rename(from, to))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let path = path.to_owned();
        pooled(move || fs::remove_file(path))
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        // The parent of a relative path's first part is the empty path: where we are.
        let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_owned() };
        pooled(move || fs::File::open(dir)?.sync_all())
    }

    fn lock<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Lock>> {
        let path = path.to_owned();
        pooled(move || {
            // Network file systems want a file open for writing.
            let file = OpenOptions::new().read(true).write(!path.is_dir()).open(path)?;
            exclude(&file)?;
            Ok(Box::new(file) as Lock)
        })
    }
}

/// Takes the lock that etcd takes on its `db`. A file system without any has nothing to say of others.
fn exclude(file: &fs::File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(fs::TryLockError::Error(error)) => match error.raw_os_error() {
            Some(libc::EBADF | libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => Ok(()),
            _ => Err(error),
        },
    }
}

/// Takes the lock that etcd takes on its segments, so that the two keep each other out.
fn lock(file: &fs::File) -> io::Result<()> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel reads one `flock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            error => Err(error),
        },
    }
}

/// What a kernel, a file system or a sandbox without `sync_file_range` says.
const UNABLE: [i32; 4] = [libc::ENOSYS, libc::EINVAL, libc::ESPIPE, libc::EPERM];

/// Has the disk begin with what was just written, and waits until it has what was written well before: a large file
/// would otherwise gather in memory as a whole, and every sync of the log would wait for it. Promises nothing, but an
/// error that waiting meets is told here and by no later sync.
fn write_behind(file: &fs::File, offset: u64, len: u64) -> io::Result<()> {
    match sync_range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE) {
        // Not to be had here, or not allowed: the sync at the end does it all. Nothing was waited for, so no error of the
        // disk's is among these.
        Err(error) if error.raw_os_error().is_some_and(|error| UNABLE.contains(&error)) => return Ok(()),
        result => result?,
    }
    let due = due(offset, len);
    let and_wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // A length of 0 would mean all of the file.
    if due.is_empty() { Ok(()) } else { sync_range(file, due.start, due.end - due.start, and_wait) }
}

/// What must be on its disk after a write, of a file that is written from its beginning on and without gaps. The writes
/// before have waited for all that comes before it.
fn due(offset: u64, len: u64) -> Range<u64> {
    offset.saturating_sub(WRITE_BEHIND_BYTES_MAX)..(offset + len).saturating_sub(WRITE_BEHIND_BYTES_MAX)
}

fn sync_range(file: &fs::File, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let signed = |number: u64| libc::off64_t::try_from(number).map_err(io::Error::other);
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), signed(offset)?, signed(len)?, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads what follows in a file after `bytes`, which start at `offset`, until they are `len`; into memory that need not
/// be cleared before. Returns how many came.
fn append_from(file: &fs::File, bytes: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize> {
    let at = libc::off64_t::try_from(offset + bytes.len() as u64).map_err(io::Error::other)?;
    let missing = len - bytes.len();
    bytes.reserve_exact(missing);
    let room = &mut bytes.spare_capacity_mut()[..missing];
    // SAFETY: the descriptor is open, and the call writes no more than there is room for.
    let read = unsafe { libc::pread64(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), at) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the call has written so many bytes behind those that were there.
    unsafe { bytes.set_len(bytes.len() + read) };
    Ok(read)
}

struct OpenFile {
    file: Arc<fs::File>,
    log: mpsc::Sender<Job>,
}

impl OpenFile {
    fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let file = self.file.clone();
        pooled(move || operation(&file))
    }
}

impl File for OpenFile {
    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        self.run(|file| Ok(file.metadata()?.len()))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        // Allocated here: memory that another thread frees than the one that took it comes back late.
        let mut bytes = Vec::with_capacity(len);
        self.run(move |file| {
            while bytes.len() < len {
                match append_from(file, &mut bytes, len, offset) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(bytes)
        })
    }

    fn write_at(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.run(move |file| {
            file.write_all_at(&data, offset)?;
            if data.len() < WRITE_BEHIND_BYTES_MIN { Ok(()) } else { write_behind(file, offset, data.len() as u64) }
        })
    }

    fn set_len(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.run(move |file| file.set_len(len))
    }

    fn allocate(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.run(move |file| {
            let length = libc::off_t::try_from(len).map_err(io::Error::other)?;
            // SAFETY: the descriptor is open for writing; the call changes only the file.
            match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        })
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        self.run(|file| file.sync_all())
    }

    fn write_sync(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        let (file, (done, result)) = (self.file.clone(), oneshot::channel());
        let job: Job = Box::new(move || {
            let written = file.write_all_at(&data, offset).and_then(|()| file.sync_data());
            let _ = done.send(written); // whoever gave up waiting needs no answer
        });
        let queued = self.log.send(job);
        Box::pin(async move {
            queued.map_err(|_| io::Error::other("the log's thread is gone"))?;
            result.await.map_err(|_| io::Error::other("the log's thread is gone"))?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_may_wait_for_the_disk_and_no_more() {
        let (mut offset, mut settled) = (0, 0);
        for len in [1 << 20, 1 << 18, 3 << 20, 1 << 20, 9 << 20, 1 << 18].repeat(3) {
            let due = due(offset, len);
            assert_eq!(due.start, settled);
            offset += len;
            settled = due.end;
            assert_eq!(offset - settled, offset.min(WRITE_BEHIND_BYTES_MAX));
        }
    }

    #[tokio::test]
    async fn a_lock_keeps_others_out_whatever_its_file_is_called_later() {
        let dir = tempfile::tempdir().unwrap();
        let (new, db) = (dir.path().join("new"), dir.path().join("db"));
        fs::write(&new, "a state").unwrap();
        let files = Files::new();
        let blocked = async |path| files.lock(path).await.err().map(|error| error.kind());
        let locks = [files.lock(dir.path()).await.unwrap(), files.lock(&new).await.unwrap()];
        files.rename(&new, &db).await.unwrap();
        for path in [dir.path(), &db] {
            assert_eq!(blocked(path).await, Some(io::ErrorKind::WouldBlock), "{}", path.display());
        }
        // As etcd asks for it.
        let as_etcd = fs::File::options().read(true).write(true).open(&db).unwrap();
        assert!(matches!(as_etcd.try_lock(), Err(fs::TryLockError::WouldBlock)));
        drop(locks);
        for path in [dir.path(), &db] {
            assert_eq!(blocked(path).await, None, "{}", path.display());
        }
    }
}
