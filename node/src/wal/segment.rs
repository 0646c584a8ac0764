//! One segment's file: how it comes about, and how the last one is made whole again at a start.
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use detcd_core::{format::wal as format, types::Index};

use crate::{
    disk::failed,
    error::Failure,
    host::{Disk, File, Open},
};

/// At a time, of a segment that is written anew.
const WRITE_BYTES: usize = 1 << 20;

#[derive(Clone, Copy)]
pub struct Segment<'a> {
    pub disk: &'a dyn Disk,
    pub dir: &'a Path,
    pub sequence: u64,
    /// The index behind which it begins.
    pub first: Index,
    /// What is allocated, in bytes, if its content is not larger.
    pub size: u64,
}

impl Segment<'_> {
    pub fn path(&self) -> PathBuf {
        self.dir.join(format::segment_name(self.sequence, self.first))
    }

    fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{}.tmp", self.sequence % 2))
    }

    /// The segment under its name, beginning with `bytes`, durable when this returns.
    pub async fn create(&self, bytes: Vec<u8>) -> Result<Arc<dyn File>, Failure> {
        let file = self.write(&bytes).await?;
        self.place().await?;
        Ok(file)
    }

    /// The same for a segment that is there, of which `bytes` are all, up to `end` whole: nothing but zeros stays behind
    /// that. Without room for a new file the old one, `file`, must do; whether its name is on the disk nobody can tell then.
    pub async fn renew(&self, file: &Arc<dyn File>, bytes: &[u8], end: usize) -> Result<Arc<dyn File>, Failure> {
        match self.write(&bytes[..end]).await {
            Ok(again) => {
                self.place().await?;
                Ok(again)
            }
            Err(Failure::Disk { error, .. }) if is_full(&error) => {
                self.remove_temporary().await?;
                let path = self.path();
                self.repair(&**file, bytes, end).await.map_err(|error| failed("repair", &path, error))?;
                self.disk.sync_dir(self.dir).await.map_err(|error| failed("sync", self.dir, error))?;
                Ok(file.clone())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Durable, under a name that counts for nothing.
    async fn write(&self, bytes: &[u8]) -> Result<Arc<dyn File>, Failure> {
        self.remove_temporary().await?;
        let temporary = self.temporary();
        let fail = |action, error| failed(action, &temporary, error);
        let file = self.disk.open(&temporary, Open::Create).await.map_err(|error| fail("create", error))?;
        let length = self.size.max(bytes.len() as u64);
        file.allocate(length).await.map_err(|error| fail("allocate space for", error))?;
        let last = bytes.len().saturating_sub(1) / WRITE_BYTES * WRITE_BYTES;
        write_chunks(&*file, &bytes[..last]).await.map_err(|error| fail("write", error))?;
        file.write_sync(last as u64, bytes[last..].to_vec()).await.map_err(|error| fail("write", error))?;
        Ok(file)
    }

    async fn place(&self) -> Result<(), Failure> {
        let (temporary, path) = (self.temporary(), self.path());
        self.disk.rename(&temporary, &path).await.map_err(|error| failed("rename", &temporary, error))?;
        self.disk.sync_dir(self.dir).await.map_err(|error| failed("sync", self.dir, error))
    }

    async fn remove_temporary(&self) -> Result<(), Failure> {
        let temporary = self.temporary();
        match self.disk.remove(&temporary).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &temporary, error)),
            _ => Ok(()),
        }
    }

    /// Where it is. What stays is written once more, as it is.
    async fn repair(&self, file: &dyn File, bytes: &[u8], end: usize) -> io::Result<()> {
        let dirty = bytes[end..].iter().any(|byte| *byte != 0);
        if dirty {
            file.set_len(end as u64).await?;
            file.sync().await?;
        }
        if dirty || (bytes.len() as u64) < self.size {
            file.allocate(self.size.max(end as u64)).await?;
        }
        write_chunks(file, &bytes[..end]).await?;
        file.sync().await
    }
}

async fn write_chunks(file: &dyn File, bytes: &[u8]) -> io::Result<()> {
    for (at, chunk) in (0..).step_by(WRITE_BYTES).zip(bytes.chunks(WRITE_BYTES)) {
        file.write_at(at, chunk.to_vec()).await?;
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
