//! Bugs put in on purpose: a disk that does not do all that it is told. Crashes must tell.
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use detcd_node::host::{BoxFuture, Disk, File, Open};
use parking_lot::Mutex;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// This directory is never synced.
    NoDirSync(&'static str),
    /// Nor are files below this directory that are opened under names with such an end. (Segments are, as such, only
    /// where there is no room for new ones.)
    NoSync(&'static str, &'static str),
    /// States get their names only after the log's next sync, which is the mark's.
    LateNames,
    /// The truth, but there is no room for another segment.
    NoRoom,
    /// Nor is a log's tail ever cut.
    NoCut,
    /// The log before a state goes as soon as the state has its name, before the mark.
    EarlyRelease,
}

impl Lie {
    fn leaves_room(self) -> bool {
        !matches!(self, Lie::NoRoom | Lie::NoCut | Lie::NoSync("wal", ".wal"))
    }
}

pub struct Liar {
    disk: Arc<dyn Disk>,
    lie: Lie,
    /// Renames that are yet to be done.
    held: Arc<Mutex<Vec<(PathBuf, PathBuf)>>>,
}

impl Liar {
    pub fn new(disk: Arc<dyn Disk>, lie: Lie) -> Liar {
        Liar { disk, lie, held: Arc::default() }
    }

    /// Removes all segments but the last.
    async fn release(&self, dir: &Path) -> io::Result<()> {
        let names = self.disk.list(dir).await?;
        let segments: Vec<_> = names.iter().filter(|name| name.ends_with(".wal")).collect();
        for name in &segments[..segments.len() - 1] {
            self.disk.remove(&dir.join(name)).await?;
        }
        Ok(())
    }
}

impl Disk for Liar {
    fn create_dir_all<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.disk.create_dir_all(dir)
    }

    fn list<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        self.disk.list(dir)
    }

    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        Box::pin(async move {
            let dir = path.parent().filter(|dir| dir.ends_with("wal") && how == Open::Create);
            if let Some(dir) = dir.filter(|_| !self.lie.leaves_room())
                && self.disk.list(dir).await?.iter().any(|name| name.ends_with(".wal"))
            {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let file = self.disk.open(path, how).await?;
            let (disk, lie, held) = (self.disk.clone(), self.lie, self.held.clone());
            Ok(Arc::new(LyingFile { file, disk, lie, held, path: path.to_owned() }) as Arc<dyn File>)
        })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let is_state =
            to.parent().is_some_and(|dir| dir.ends_with("snap")) && from.extension() != Some(OsStr::new("xxh3"));
        if self.lie == Lie::LateNames && is_state {
            self.held.lock().push((from.to_owned(), to.to_owned()));
            return Box::pin(async { Ok(()) });
        }
        Box::pin(async move {
            self.disk.rename(from, to).await?;
            if self.lie == Lie::EarlyRelease && to.ends_with("snap/db") {
                self.release(Path::new("/var/data/member/wal")).await?;
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.disk.remove(path)
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        match self.lie {
            Lie::NoDirSync(name) if dir.ends_with(name) => Box::pin(async { Ok(()) }),
            _ => self.disk.sync_dir(dir),
        }
    }
}

struct LyingFile {
    file: Arc<dyn File>,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    lie: Lie,
    held: Arc<Mutex<Vec<(PathBuf, PathBuf)>>>,
}

impl LyingFile {
    fn syncs(&self) -> bool {
        let Lie::NoSync(dir, end) = self.lie else { return true };
        !(self.path.parent().is_some_and(|parent| parent.ends_with(dir)) && self.path.to_string_lossy().ends_with(end))
    }
}

impl File for LyingFile {
    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        self.file.read_at(offset, len)
    }

    fn write_at(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.file.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        if self.lie == Lie::NoCut {
            return Box::pin(async { Ok(()) });
        }
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.file.allocate(len)
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        if self.syncs() { self.file.sync() } else { Box::pin(async { Ok(()) }) }
    }

    fn write_sync(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        if !self.syncs() {
            return self.file.write_at(offset, data);
        }
        Box::pin(async move {
            self.file.write_sync(offset, data).await?;
            let held = std::mem::take(&mut *self.held.lock());
            for (from, to) in held {
                self.disk.rename(&from, &to).await?;
            }
            Ok(())
        })
    }
}
