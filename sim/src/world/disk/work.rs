//! What each operation does when its time has come.
use std::{
    io,
    path::{Path, PathBuf},
};

use detcd_node::host::Open;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    DiskOp,
    crash::Step,
    faults::{Io, broken},
    layer::{BLOCK, SECTOR, sectors, units},
    queue::{Answer, HandleId},
    state::{Inode, State, shown},
    tree::FileId,
};
use crate::seed::Rng;

/// Work on one file.
pub enum FileWork {
    Len,
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Vec<u8>, sync: bool },
    SetLen { len: u64 },
    Allocate { len: u64 },
    Sync,
}

/// Work on directory entries.
pub enum EntryWork {
    CreateDirAll(PathBuf),
    List(PathBuf),
    Open(PathBuf, Open),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

impl State {
    pub fn do_file_work(&mut self, file: FileId, work: FileWork) -> io::Result<Answer> {
        match work {
            FileWork::Len => return Ok(Answer::Length(self.content(file).len())),
            FileWork::Read { offset, len } => return self.read(file, offset, len).map(Answer::Bytes),
            FileWork::Write { offset, data, sync } => {
                self.step(Step::Write, |state| state.write(file, offset, data))?;
                if sync {
                    self.step(Step::Sync, |state| state.sync(file))?;
                }
            }
            FileWork::SetLen { len } => self.step(Step::SetLen, |state| state.set_len(file, len))?,
            FileWork::Allocate { len } => self.step(Step::Allocate, |state| state.allocate(file, len))?,
            FileWork::Sync => self.step(Step::Sync, |state| state.sync(file))?,
        }
        Ok(Answer::Done)
    }

    pub fn do_entry_work(&mut self, work: EntryWork) -> io::Result<Answer> {
        match work {
            EntryWork::List(path) => {
                self.check(Io::Entry, &[&shown(&path)])?;
                return Ok(Answer::Names(self.tree.list(&path)?));
            }
            EntryWork::Open(path, how) => {
                if how != Open::Create {
                    self.check(Io::Entry, &[&shown(&path)])?;
                    let file = self.tree.file(&path)?;
                    return self.open(file, how);
                }
                let file = self.step(Step::Create, |state| state.create(&path))?;
                return self.open(file, how);
            }
            EntryWork::SyncDir(path) => self.step(Step::SyncDir, |state| state.sync_dir(&path))?,
            EntryWork::CreateDirAll(path) => self.step(Step::CreateDir, |state| state.create_dir_all(&path))?,
            EntryWork::Rename(from, to) => self.step(Step::Rename, |state| state.rename(&from, &to))?,
            EntryWork::Remove(path) => self.step(Step::Remove, |state| {
                state.check(Io::Entry, &[&shown(&path)])?;
                state.tree.remove(&path)?;
                state.notes.push(DiskOp::Removed { path: shown(&path) });
                Ok(())
            })?,
        }
        Ok(Answer::Done)
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.check(Io::Read, &[&self.path(file)])?;
        let content = self.content(file);
        if content.is_broken(offset..offset.saturating_add(len as u64)) {
            self.stats.broken_ops += 1;
            return Err(broken());
        }
        let bytes = content.read(offset, len);
        self.stats.reads += 1;
        self.stats.bytes_read += bytes.len() as u64;
        Ok(bytes)
    }

    fn write(&mut self, file: FileId, offset: u64, data: Vec<u8>) -> io::Result<()> {
        let range = offset..offset + data.len() as u64;
        let fitting = self.fitting(file, range.clone());
        if let Err(error) = self.check(Io::Write, &[&self.path(file)]) {
            self.write_part(file, offset, data, fitting);
            return Err(error);
        }
        // A sector that is not replaced as a whole is read first.
        let content = self.content(file);
        let around = [range.start / SECTOR * SECTOR..range.start, range.end..range.end.next_multiple_of(SECTOR)];
        if !data.is_empty() && around.into_iter().any(|kept| content.is_broken(kept)) {
            self.stats.broken_ops += 1;
            return Err(broken());
        }
        if fitting < data.len() as u64 {
            self.write_part(file, offset, data, fitting);
            return Err(self.no_space());
        }
        if !self.misdirect(file, offset, &data) {
            self.stats.writes += 1;
            self.stats.bytes_written += data.len() as u64;
            self.land(file, offset, data);
        }
        Ok(())
    }

    /// A write failed: some of its first sectors may be written all the same, as far as they find space.
    fn write_part(&mut self, file: FileId, offset: u64, mut data: Vec<u8>, fitting: u64) {
        let ends = sectors(offset, &data).map(|(_, at, part)| at - offset + part.len() as u64);
        let ends: Vec<u64> = [0].into_iter().chain(ends.filter(|end| *end <= fitting)).collect();
        data.truncate(ends[(self.fault_rng.next_u64() % ends.len() as u64) as usize] as usize);
        if !data.is_empty() {
            self.stats.bytes_written += data.len() as u64;
            self.land(file, offset, data);
        }
    }

    /// Bytes get to where they should.
    pub fn land(&mut self, file: FileId, offset: u64, data: Vec<u8>) {
        let (path, len, hash) = (self.path(file), data.len() as u64, xxh3_64(&data));
        self.notes.push(DiskOp::Written { path, offset, len, hash });
        self.inode(file).content.write(offset, data);
    }

    fn set_len(&mut self, file: FileId, len: u64) -> io::Result<()> {
        self.check(Io::Write, &[&self.path(file)])?;
        self.notes.push(DiskOp::Resized { path: self.path(file), len });
        self.inode(file).content.set_len(len);
        Ok(())
    }

    fn allocate(&mut self, file: FileId, len: u64) -> io::Result<()> {
        self.check(Io::Write, &[&self.path(file)])?;
        if self.fitting(file, 0..len) < len {
            return Err(self.no_space());
        }
        self.notes.push(DiskOp::Resized { path: self.path(file), len });
        self.inode(file).content.resize(len, units(&(0..len), BLOCK));
        Ok(())
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        let path = self.path(file);
        if let Err(error) = self.check(Io::Sync, &[&path]) {
            let dropped = self.inode(file).content.drop_dirty();
            self.stats.sectors_dropped += dropped;
            self.notes.push(DiskOp::SyncFailed { path });
            return Err(error);
        }
        if self.faults.lies() {
            self.stats.lied_syncs += 1;
        } else {
            self.inode(file).content.sync();
        }
        self.stats.syncs += 1;
        self.notes.push(DiskOp::Synced { path });
        Ok(())
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let dir = self.tree.dir(path)?;
        if let Err(error) = self.check(Io::Sync, &[&shown(path)]) {
            self.tree.drop_dirty(dir);
            self.notes.push(DiskOp::SyncFailed { path: shown(path) });
            return Err(error);
        }
        let lying = self.faults.lies();
        self.tree.sync_dir(path, !lying)?;
        self.stats.lied_syncs += u64::from(lying);
        self.stats.syncs += 1;
        self.notes.push(DiskOp::DirSynced { path: shown(path) });
        self.collect();
        Ok(())
    }

    fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        self.check(Io::Entry, &[&shown(path)])?;
        if self.tree.dir(path).is_err() {
            self.check_entry_space()?;
        }
        self.tree.create_dir_all(path)?;
        self.notes.push(DiskOp::DirsCreated { path: shown(path) });
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Io::Entry, &[&shown(from), &shown(to)])?;
        match self.tree.rename(from, to)? {
            Some(file) => self.inode(file).path = shown(to),
            None => self.name_files(),
        }
        self.notes.push(DiskOp::Renamed { from: shown(from), to: shown(to) });
        Ok(())
    }

    fn create(&mut self, path: &Path) -> io::Result<FileId> {
        self.check(Io::Entry, &[&shown(path)])?;
        if self.tree.file(path).is_err() {
            self.check_entry_space()?;
        }
        self.tree.create(path, self.last_file + 1)?;
        self.last_file += 1;
        self.files.insert(self.last_file, Inode { path: shown(path), ..Inode::default() });
        self.notes.push(DiskOp::Created { path: shown(path) });
        Ok(self.last_file)
    }

    fn open(&mut self, file: FileId, how: Open) -> io::Result<Answer> {
        self.last_handle += 1;
        let handle = self.last_handle;
        let inode = self.inode(file);
        if how != Open::Read {
            if inode.lock.is_some() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            inode.lock = Some(handle);
        }
        inode.handles += 1;
        Ok(Answer::Opened(file, handle))
    }

    pub fn close(&mut self, file: FileId, handle: HandleId) {
        let inode = self.inode(file);
        inode.handles -= 1;
        inode.lock.take_if(|holder| *holder == handle);
        if inode.handles == 0 {
            self.collect();
        }
    }
}
