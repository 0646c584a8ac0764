//! etcd's snapshot files: `TERM-INDEX.snap`, from which a member starts.
//!
//! ```text
//! file:     crc = 1: CRC-32C of data | data = 2: raftpb.Snapshot
//! snapshot: data = 1: the old store, see [`super::v2store`] | metadata = 2: configuration, index, term
//! ```
//!
//! The keys are not in it: they lie beside it in the backend, `db`, or, while a snapshot is on its way from another
//! member, in `INDEX.snap.db`. A snapshot file counts only if the log has a record of the same index and term.
use bytes::Bytes;
use prost::Message;

use crate::{
    proto::{raftpb, snappb},
    types::{Index, Term},
};

#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub index: Index,
    pub term: Term,
    /// Who voted as of `index`.
    pub conf_state: raftpb::ConfState,
    /// The old store: members and cluster version as of `index`. Without it no etcd starts.
    pub data: Bytes,
}

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapError {
    /// As a crash may leave it behind, for it is written under its own name.
    #[error("the snapshot file is empty")]
    Empty,
    #[error("the snapshot file is no protobuf: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("checksum {stored:08x} of the snapshot file is stored, {computed:08x} computed")]
    Checksum { stored: u32, computed: u32 },
    #[error("the snapshot has no index, term and voters")]
    NoMetadata,
}

/// Names sort as etcd chooses: the newest snapshot's is the greatest.
pub fn name(term: Term, index: Index) -> String {
    format!("{:016x}-{:016x}.snap", term.0, index.0)
}

pub fn parse_name(name: &str) -> Option<(Term, Index)> {
    let (term, index) = name.strip_suffix(".snap")?.split_once('-')?;
    Some((Term(hex(term)?), Index(hex(index)?)))
}

/// The name of a backend that was received and is not in its place yet.
pub fn db_name(index: Index) -> String {
    format!("{:016x}.snap.db", index.0)
}

pub fn parse_db_name(name: &str) -> Option<Index> {
    name.strip_suffix(".snap.db").and_then(hex).map(Index)
}

fn hex(digits: &str) -> Option<u64> {
    let plain = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

impl Snapshot {
    pub fn encode(&self) -> Vec<u8> {
        assert!(!self.data.is_empty(), "etcd stops on a snapshot without its old store");
        let metadata = raftpb::SnapshotMetadata {
            conf_state: Some(self.conf_state.clone()),
            index: Some(self.index.0),
            term: Some(self.term.0),
        };
        let data = raftpb::Snapshot { data: Some(self.data.clone()), metadata: Some(metadata) }.encode_to_vec();
        snappb::Snapshot { crc: Some(crc32c::crc32c(&data)), data: Some(data.into()) }.encode_to_vec()
    }

    pub fn decode(file: &[u8]) -> Result<Snapshot, SnapError> {
        let file = snappb::Snapshot::decode(file)?;
        let (stored, data) = (file.crc(), file.data.unwrap_or_default());
        if data.is_empty() || stored == 0 {
            return Err(SnapError::Empty);
        }
        let computed = crc32c::crc32c(&data);
        if computed != stored {
            return Err(SnapError::Checksum { stored, computed });
        }
        let snapshot = raftpb::Snapshot::decode(data)?;
        let metadata = snapshot.metadata.ok_or(SnapError::NoMetadata)?;
        let (index, term) = (Index(metadata.index()), Term(metadata.term()));
        let conf_state = metadata.conf_state.filter(|_| index != Index(0) && term != Term(0));
        let conf_state = conf_state.ok_or(SnapError::NoMetadata)?;
        Ok(Snapshot { index, term, conf_state, data: snapshot.data.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let conf_state = raftpb::ConfState { voters: vec![1, 1 << 63], auto_leave: Some(false), ..Default::default() };
        Snapshot { index: Index(0x79), term: Term(2), conf_state, data: Bytes::from_static(b"{\"Root\":{}}") }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Snapshot::decode(&snapshot().encode()), Ok(snapshot()));
    }

    #[test]
    fn no_cut_and_no_flipped_bit_reads_as_another_snapshot() {
        let file = snapshot().encode();
        for cut in 0..file.len() {
            assert!(Snapshot::decode(&file[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..file.len() * 8 {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Protobuf ignores what a checksum's number has beyond its 32 bits.
            assert!(Snapshot::decode(&bad).ok().is_none_or(|read| read == snapshot()), "bit {bit}");
        }
    }

    #[test]
    fn names_are_etcds() {
        assert_eq!(name(Term(2), Index(0x79)), "0000000000000002-0000000000000079.snap");
        assert_eq!(parse_name("0000000000000002-0000000000000079.snap"), Some((Term(2), Index(0x79))));
        assert_eq!(db_name(Index(0xabc)), "0000000000000abc.snap.db");
        assert_eq!(parse_db_name("0000000000000abc.snap.db"), Some(Index(0xabc)));
        for name in [
            "db",
            "2-79.snap",
            "0000000000000002-0000000000000079.snap.broken",
            "+000000000000002-0000000000000079.snap",
        ] {
            assert_eq!((parse_name(name), parse_db_name(name)), (None, None), "{name}");
        }
        assert_eq!(parse_name("0000000000000abc.snap.db"), None);
    }
}
