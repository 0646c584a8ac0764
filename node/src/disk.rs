//! What the log and the states both do with a [`Disk`], and how they tell what went wrong.
use std::{io, path::Path};

use crate::{
    error::Failure,
    host::{Disk, File},
};

/// Makes the directory and whatever is missing above it, durably: a log in a directory that is forgotten is forgotten.
/// Each is durable before there is anything in it.
pub async fn create_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Failure> {
    let (mut missing, mut lowest) = (Vec::new(), None);
    for ancestor in dir.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        match disk.list(ancestor).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            _ => {
                lowest = Some(ancestor);
                break;
            }
        }
    }
    // Only the lowest that is there may have been made by a process that was killed before it was durable.
    if let Some(parent) = lowest.and_then(Path::parent) {
        match disk.sync_dir(parent).await {
            // Where we may not look we have made nothing.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result.map_err(|error| failed("sync", parent, error))?,
        }
    }
    for missing in missing.into_iter().rev() {
        disk.create_dir_all(missing).await.map_err(|error| failed("create", dir, error))?;
        if let Some(parent) = missing.parent() {
            disk.sync_dir(parent).await.map_err(|error| failed("sync", parent, error))?;
        }
    }
    disk.create_dir_all(dir).await.map_err(|error| failed("create", dir, error))
}

pub async fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let length = file.len().await?;
    file.read_at(0, usize::try_from(length).map_err(io::Error::other)?).await
}

pub fn failed(action: &'static str, path: &Path, error: io::Error) -> Failure {
    Failure::Disk { action, path: path.to_owned(), error }
}

pub fn open_failed(path: &Path, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock => Failure::Locked { path: path.to_owned() },
        _ => failed("open", path, error),
    }
}
