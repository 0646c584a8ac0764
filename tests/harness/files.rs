//! Temporary directories, digests of whole directories, and where an etcd WAL keeps its records.
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

pub fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("detcd-test-").tempdir().expect("a temporary directory")
}

/// What a file or directory is: equal lines before and after mean that nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub path: PathBuf,
    /// Another file under the same name is another one, even with the same bytes.
    pub inode: u64,
    pub mode: u32,
    pub bytes: u64,
    pub crc: u32,
}

/// Every entry below `root`, sorted; empty when `root` does not exist.
pub fn digest(root: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    if root.exists() {
        walk(root, &mut entries).unwrap_or_else(|e| panic!("cannot read {}: {e}", root.display()));
    }
    entries.sort();
    entries
}

fn walk(path: &Path, entries: &mut Vec<Entry>) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let (mut bytes, mut crc) = (0, 0);
    if metadata.is_dir() {
        for child in fs::read_dir(path)? {
            walk(&child?.path(), entries)?;
        }
    } else {
        (bytes, crc) = (metadata.len(), file_crc(path)?);
    }
    entries.push(Entry { path: path.to_owned(), inode: metadata.ino(), mode: metadata.mode(), bytes, crc });
    Ok(())
}

fn file_crc(path: &Path) -> io::Result<u32> {
    let (mut file, mut buffer, mut crc) = (fs::File::open(path)?, vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            n => crc = crc32c::crc32c_append(crc, &buffer[..n]),
        }
    }
}

/// Offset and length of every record's bytes in an etcd WAL segment.
///
/// ```text
/// | length: u56 LE, bytes | 0x80 + pad: u8, or 0 | record: length bytes | pad: zeros up to 8-byte alignment |
/// ```
/// A zero length ends the log.
pub fn wal_records(segment: &[u8]) -> Vec<(usize, usize)> {
    let (mut records, mut offset) = (Vec::new(), 0);
    while let Some(header) = segment.get(offset..).and_then(|rest| rest.first_chunk::<8>()) {
        let field = u64::from_le_bytes(*header);
        let length = (field & ((1 << 56) - 1)) as usize;
        if length == 0 {
            break;
        }
        records.push((offset + 8, length));
        offset += 8 + length.next_multiple_of(8);
    }
    records
}

/// The files of a directory with this extension, sorted by name.
pub fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let list = fs::read_dir(dir).unwrap_or_else(|e| panic!("cannot list {}: {e}", dir.display()));
    let paths = list.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    paths.sort();
    paths
}
