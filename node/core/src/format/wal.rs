//! etcd's write-ahead log: how records look in a segment.
//!
//! A segment is a run of frames, then zeros. Every frame starts at a multiple of 8.
//!
//! ```text
//! | length: u64 LE | record: protobuf | pad: 0..7 zero bytes |
//!   low 56 bits: bytes of the record; if padded, the top byte is 0x80 + bytes of the pad
//! record: type = 1, crc = 2, data = 3
//! ```
//!
//! The CRC-32C covers `data` only and chains over records and segments: each record's is the one before, continued.
//! A segment begins with a record of type "crc" that carries the chain over, so reading may begin at any segment.
//!
//! Invariants:
//! - A length of 0 is never written, so zeros are never mistaken for a frame.
//! - A reader never skips a bad frame. It says whether the frame looks torn: one of its 512-byte sectors is all zero,
//!   which a write interrupted by a power loss leaves behind, and damage to written data does not.
//! - A frame's length, which no checksum covers, follows from its record too, which tells how long its data is. If that
//!   record is whole, its frame was never torn, whatever the length says now.
//!
//! Files, offsets and fsync belong to the shell; this module sees only bytes.
use bytes::Bytes;
use prost::{Message, encoding::decode_varint};
use raft::eraftpb::{Entry, EntryType};

use crate::{
    limits::RECORD_BYTES_MAX,
    proto::{etcdserverpb, raftpb, walpb},
    types::{ClusterId, Index, MemberId, Term},
};

/// What a disk writes as one: a torn write leaves each sector old or new.
pub const SECTOR_BYTES: usize = 512;
const LENGTH_BYTES: usize = 8;

/// What must survive a crash besides the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    pub term: Term,
    /// Whom this member voted for in `term`; 0 is nobody.
    pub vote: MemberId,
    pub commit: Index,
}

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    pub member: MemberId,
    pub cluster: ClusterId,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Metadata(Metadata),
    Entry(Entry),
    State(HardState),
    /// The chain's value where the segment begins.
    Crc(u32),
    /// A snapshot of this index exists: the log may begin after it.
    Snapshot(SnapshotMark),
}

#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotMark {
    pub index: Index,
    pub term: Term,
    pub conf_state: Option<raftpb::ConfState>,
}

const METADATA: i64 = 1;
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CRC: i64 = 4;
const SNAPSHOT: i64 = 5;

/// A segment's file name: its place in the log, and the first index it may hold.
pub fn segment_name(sequence: u64, first: Index) -> String {
    format!("{sequence:016x}-{:016x}.wal", first.0)
}

pub fn parse_segment_name(name: &str) -> Option<(u64, Index)> {
    let (sequence, first) = name.strip_suffix(".wal")?.split_once('-')?;
    let hex = |digits: &str| (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    Some((hex(sequence)?, Index(hex(first)?)))
}

/// Makes frames, and carries the chain of CRCs along.
#[derive(Debug, Clone)]
pub struct Writer {
    crc: u32,
}

impl Writer {
    /// Continues a chain; a new log's starts at 0.
    pub fn new(crc: u32) -> Writer {
        Writer { crc }
    }

    /// The frames with which a segment begins. `state` is left out of a log's first segment.
    pub fn begin(&mut self, out: &mut Vec<u8>, metadata: Metadata, state: Option<HardState>) {
        self.frame(out, CRC, None);
        let Metadata { member, cluster } = metadata;
        let metadata = etcdserverpb::Metadata { node_id: Some(member.0), cluster_id: Some(cluster.0) };
        self.frame(out, METADATA, Some(&metadata.encode_to_vec()));
        match state {
            Some(state) if state == HardState::default() => {}
            Some(state) => self.state(out, state),
            None => self.snapshot(out, &SnapshotMark { index: Index(0), term: Term(0), conf_state: None }),
        }
    }

    pub fn entry(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        let kind = match entry.entry_type {
            EntryType::EntryNormal => raftpb::EntryType::EntryNormal,
            EntryType::EntryConfChange => raftpb::EntryType::EntryConfChange,
            EntryType::EntryConfChangeV2 => panic!("a joint change must never reach the log: etcd stops on it"),
        };
        let entry = raftpb::Entry {
            r#type: Some(kind as i32),
            term: Some(entry.term),
            index: Some(entry.index),
            data: (!entry.data.is_empty()).then(|| entry.data.clone()),
        };
        self.frame(out, ENTRY, Some(&entry.encode_to_vec()));
    }

    pub fn state(&mut self, out: &mut Vec<u8>, state: HardState) {
        let HardState { term, vote, commit } = state;
        let state = raftpb::HardState { term: Some(term.0), vote: Some(vote.0), commit: Some(commit.0) };
        self.frame(out, STATE, Some(&state.encode_to_vec()));
    }

    pub fn snapshot(&mut self, out: &mut Vec<u8>, mark: &SnapshotMark) {
        assert!(mark.index == Index(0) || mark.conf_state.is_some(), "etcd refuses a snapshot without its voters");
        let conf_state = mark.conf_state.clone();
        let mark = walpb::Snapshot { index: Some(mark.index.0), term: Some(mark.term.0), conf_state };
        self.frame(out, SNAPSHOT, Some(&mark.encode_to_vec()));
    }

    fn frame(&mut self, out: &mut Vec<u8>, kind: i64, data: Option<&[u8]>) {
        self.crc = crc32c::crc32c_append(self.crc, data.unwrap_or_default());
        let data = data.map(Bytes::copy_from_slice);
        let record = walpb::Record { r#type: Some(kind), crc: Some(self.crc), data };
        let length = record.encoded_len();
        assert!(length > 0 && length <= RECORD_BYTES_MAX, "a record of {length} bytes");
        let pad = length.wrapping_neg() % 8;
        let flag = if pad == 0 { 0 } else { (0x80 | pad as u64) << 56 };
        out.extend_from_slice(&(length as u64 | flag).to_le_bytes());
        record.encode(out).expect("a Vec grows");
        out.extend_from_slice(&[0; 7][..pad]);
    }
}

/// A frame that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Damage {
    /// Where the frame begins, in bytes from the segment's start.
    pub offset: usize,
    /// Whether an interrupted write explains it.
    pub torn: bool,
    pub reason: String,
}

/// Reads one segment's frames. The data of its entries are slices of the segment, which they keep alive.
#[derive(Debug)]
pub struct Reader<'a> {
    segment: &'a Bytes,
    offset: usize,
    /// What the records so far come to; unknown before a segment's first record, if it is where reading begins.
    crc: Option<u32>,
}

impl<'a> Reader<'a> {
    /// `crc` is where the segment before ended; `None` if reading begins here.
    pub fn new(segment: &'a Bytes, crc: Option<u32>) -> Reader<'a> {
        Reader { segment, offset: 0, crc }
    }

    /// Where the next frame begins: after an end or damage, where the log ends.
    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn crc(&self) -> Option<u32> {
        self.crc
    }

    /// The next record; `None` where zeros begin or the bytes end.
    pub fn read(&mut self) -> Result<Option<Record>, Damage> {
        let rest = &self.segment[self.offset..];
        let Some(length) = rest.first_chunk::<LENGTH_BYTES>() else {
            return match rest.iter().all(|byte| *byte == 0) {
                true => Ok(None),
                false => Err(self.damage(rest.len(), "the segment ends within a length".into())),
            };
        };
        let field = u64::from_le_bytes(*length);
        if field == 0 {
            // A torn write may have left out the sector that ends with this length, and not the next one.
            let alone = (self.offset + LENGTH_BYTES).is_multiple_of(SECTOR_BYTES);
            return match self.is_whole(&rest[LENGTH_BYTES..]) && !alone {
                true => Err(self.damage(LENGTH_BYTES, "a record stands behind a length of 0".into())),
                false => Ok(None),
            };
        }
        let length = (field & ((1 << 56) - 1)) as usize;
        let top = (field >> 56) as u8;
        let pad = if top & 0x80 != 0 { usize::from(top & 7) } else { 0 };
        if length == 0 || length > RECORD_BYTES_MAX || top & 0x78 != 0 || !(length + pad).is_multiple_of(8) {
            return Err(self.damage(LENGTH_BYTES, format!("{field:#018x} is no length of a record")));
        }
        let size = LENGTH_BYTES + length + pad;
        let Some(frame) = rest.get(..size) else {
            let (have, need) = (rest.len(), size);
            let reason = format!("a record of {need} bytes begins {have} bytes before the end");
            // The sectors that are missing are as good as zero: the write that would have made the file longer was cut.
            let torn = !self.is_whole(&rest[LENGTH_BYTES..]);
            return Err(Damage { torn, ..self.damage(have, reason) });
        };
        let record = self
            .decode(self.segment.slice_ref(&frame[LENGTH_BYTES..][..length]))
            .map_err(|reason| self.damage(size, reason))?;
        self.offset += size;
        Ok(Some(record))
    }

    fn decode(&mut self, bytes: Bytes) -> Result<Record, String> {
        let record = walpb::Record::decode(bytes).map_err(|error| format!("no record: {error}"))?;
        let (kind, stored) = (record.r#type(), record.crc());
        let data = record.data.unwrap_or_default();
        if kind == CRC {
            return match self.crc {
                Some(crc) if crc != stored => {
                    Err(format!("the segment continues from checksum {stored:08x}, the one before ends at {crc:08x}"))
                }
                _ => {
                    self.crc = Some(stored);
                    Ok(Record::Crc(stored))
                }
            };
        }
        let crc = self.crc.ok_or("the segment does not begin with its checksum")?;
        let computed = crc32c::crc32c_append(crc, &data);
        if computed != stored {
            return Err(format!("checksum {stored:08x} is stored, {computed:08x} computed"));
        }
        let record = parse(kind, data)?;
        self.crc = Some(computed);
        Ok(record)
    }

    /// Judges a bad frame of `size` bytes by its sectors. A write may be cut at any sector of the file; the length
    /// itself lies in one sector, and is there.
    fn damage(&self, size: usize, reason: String) -> Damage {
        let end = (self.offset + size).min(self.segment.len());
        let mut at = (self.offset + LENGTH_BYTES).min(end);
        let mut torn = false;
        while at < end {
            let next = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
            torn |= self.segment[at..next.min(end)].iter().all(|byte| *byte == 0);
            at = next;
        }
        torn = torn && !self.is_whole(&self.segment[self.offset + LENGTH_BYTES..]);
        Damage { offset: self.offset, torn, reason }
    }

    /// Whether these bytes begin with a whole record that continues the chain, by what it says itself.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some((kind, stored, data)) = parse_head(bytes) else { return false };
        match self.crc {
            Some(crc) if kind == CRC => crc == stored,
            Some(crc) => crc32c::crc32c_append(crc, data) == stored,
            None => kind == CRC,
        }
    }
}

/// A record at the front of these bytes: its type, its checksum and its data. It and its pad must be there.
fn parse_head(bytes: &[u8]) -> Option<(i64, u32, &[u8])> {
    let field = |tag: u8, rest: &mut &[u8]| {
        *rest = rest.strip_prefix(&[tag])?;
        decode_varint(rest).ok()
    };
    let mut rest = bytes;
    let kind = field(0x08, &mut rest)?;
    let crc = u32::try_from(field(0x10, &mut rest)?).ok()?;
    let length = if rest.first() == Some(&0x1a) { field(0x1a, &mut rest)? } else { 0 };
    let (data, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let pad = (bytes.len() - rest.len()).wrapping_neg() % 8;
    (rest.len() >= pad).then_some((kind as i64, crc, data))
}

fn parse(kind: i64, data: Bytes) -> Result<Record, String> {
    let no = |what: &'static str| move |error: prost::DecodeError| format!("no {what}: {error}");
    Ok(match kind {
        METADATA => {
            let metadata = etcdserverpb::Metadata::decode(data).map_err(no("metadata"))?;
            let (member, cluster) = (MemberId(metadata.node_id()), ClusterId(metadata.cluster_id()));
            Record::Metadata(Metadata { member, cluster })
        }
        ENTRY => Record::Entry(parse_entry(raftpb::Entry::decode(data).map_err(no("entry"))?)?),
        STATE => {
            let state = raftpb::HardState::decode(data).map_err(no("state"))?;
            let (term, vote) = (Term(state.term()), MemberId(state.vote()));
            Record::State(HardState { term, vote, commit: Index(state.commit()) })
        }
        SNAPSHOT => {
            let mark = walpb::Snapshot::decode(data).map_err(no("snapshot mark"))?;
            let (index, term) = (Index(mark.index()), Term(mark.term()));
            Record::Snapshot(SnapshotMark { index, term, conf_state: mark.conf_state })
        }
        _ => return Err(format!("a record of unknown type {kind}")),
    })
}

fn parse_entry(entry: raftpb::Entry) -> Result<Entry, String> {
    let kind = match entry.r#type.unwrap_or(0) {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        other => return Err(format!("entry {} has the unsupported type {other}", entry.index())),
    };
    let mut parsed = Entry::default();
    parsed.set_entry_type(kind);
    (parsed.term, parsed.index) = (entry.term(), entry.index());
    parsed.data = entry.data.unwrap_or_default();
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, data: &'static [u8]) -> Entry {
        let mut entry = Entry::default();
        (entry.index, entry.term, entry.data) = (index, 2, Bytes::from_static(data));
        entry
    }

    fn log() -> (Vec<u8>, Vec<Record>) {
        let metadata = Metadata { member: MemberId(7), cluster: ClusterId(9) };
        let state = HardState { term: Term(2), vote: MemberId(7), commit: Index(1) };
        let (mut writer, mut out) = (Writer::new(0), Vec::new());
        writer.begin(&mut out, metadata, None);
        writer.entry(&mut out, &entry(1, b"put k v"));
        writer.entry(&mut out, &entry(2, b""));
        writer.state(&mut out, state);
        let records = vec![
            Record::Crc(0),
            Record::Metadata(metadata),
            Record::Snapshot(SnapshotMark { index: Index(0), term: Term(0), conf_state: None }),
            Record::Entry(entry(1, b"put k v")),
            Record::Entry(entry(2, b"")),
            Record::State(state),
        ];
        (out, records)
    }

    fn read_all(bytes: &[u8]) -> (Vec<Record>, Result<(), Damage>) {
        let bytes = Bytes::copy_from_slice(bytes);
        let (mut reader, mut records) = (Reader::new(&bytes, None), Vec::new());
        loop {
            match reader.read() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => return (records, Ok(())),
                Err(damage) => return (records, Err(damage)),
            }
        }
    }

    #[test]
    fn what_is_written_is_read_and_zeros_end_it() {
        let (mut bytes, records) = log();
        assert_eq!(read_all(&bytes), (records.clone(), Ok(())));
        bytes.extend_from_slice(&[0; 1000]);
        assert_eq!(read_all(&bytes), (records, Ok(())));
    }

    #[test]
    fn the_frame_is_etcds() {
        let (bytes, _) = log();
        // crc record: 4 bytes, padded by 4; metadata: a record of 10 bytes, padded by 6.
        assert_eq!(&bytes[..12], [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 0x10, 0]);
        assert_eq!(bytes[16..24], [14, 0, 0, 0, 0, 0, 0, 0x82]);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let (bytes, records) = log();
        for cut in 1..bytes.len() {
            let (read, end) = read_all(&bytes[..cut]);
            assert!(records.starts_with(&read));
            assert!(end.is_err() || read.len() < records.len(), "cut at {cut}");
        }
        // etcd's checksum does not cover a record's type: that byte, the tenth of a frame, is left out here.
        let mut types = Vec::new();
        let segment = Bytes::copy_from_slice(&bytes);
        let mut reader = Reader::new(&segment, None);
        loop {
            types.push(reader.offset() + LENGTH_BYTES + 1);
            if reader.read().unwrap().is_none() {
                break;
            }
        }
        for bit in (0..bytes.len() * 8).filter(|bit| !types.contains(&(bit / 8))) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (read, end) = read_all(&bad);
            let without_effect = end.is_ok() && read == records; // in a pad
            assert!(end.is_err() || without_effect || read.len() < records.len(), "bit {bit}");
        }
    }

    #[test]
    fn a_zero_sector_makes_a_bad_record_torn_and_nothing_else_does() {
        let (mut writer, mut bytes) = (Writer::new(0), Vec::new());
        writer.begin(&mut bytes, Metadata { member: MemberId(1), cluster: ClusterId(1) }, None);
        let start = bytes.len();
        static LARGE: [u8; 3000] = [0xaa; 3000];
        writer.entry(&mut bytes, &entry(1, &LARGE));
        for sector in 0..bytes.len() / SECTOR_BYTES {
            let range = (sector * SECTOR_BYTES).max(start + LENGTH_BYTES)..(sector + 1) * SECTOR_BYTES;
            let mut torn = bytes.clone();
            torn[range.clone()].fill(0);
            assert!(read_all(&torn).1.unwrap_err().torn);
            let mut rotten = bytes.clone();
            rotten[range.start + 10] ^= 1;
            assert!(!read_all(&rotten).1.unwrap_err().torn);
        }
    }

    /// A length may then reach into the zeros behind the log, past the file's end, or be gone.
    #[test]
    fn a_flipped_bit_of_a_length_is_no_torn_write() {
        let (mut writer, mut bytes) = (Writer::new(0), Vec::new());
        writer.begin(&mut bytes, Metadata { member: MemberId(1), cluster: ClusterId(1) }, None);
        static ZEROS: [u8; 2_000] = [0; 2_000];
        static LARGE: [u8; 3_000] = [0xaa; 3_000];
        // The records' sizes are all the remainders, and a power of two among them.
        (1..20).for_each(|size| writer.entry(&mut bytes, &entry(size, &LARGE[..size as usize])));
        writer.entry(&mut bytes, &entry(20, &LARGE));
        writer.entry(&mut bytes, &entry(21, &ZEROS));
        writer.entry(&mut bytes, &entry(22, &LARGE[..600]));
        let segment = Bytes::copy_from_slice(&bytes);
        let (mut reader, mut starts) = (Reader::new(&segment, None), vec![0]);
        while reader.read().unwrap().is_some() {
            starts.push(reader.offset());
        }
        starts.pop();
        for zeros in [0, 512, 20_000] {
            let mut preallocated = bytes.clone();
            preallocated.extend_from_slice(&vec![0; zeros]);
            for bit in starts.iter().flat_map(|start| start * 8..(start + LENGTH_BYTES) * 8) {
                let mut bad = preallocated.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let (records, end) = read_all(&bad);
                let Err(damage) = end else {
                    // A number of bytes to pad with, without the flag that it is one.
                    assert_eq!((records.len(), bit % 64 / 8), (starts.len(), 7));
                    continue;
                };
                let start = bit / 8 / LENGTH_BYTES * LENGTH_BYTES;
                assert_eq!((damage.offset, damage.torn), (start, false), "bit {}: {damage}", bit - start * 8);
            }
        }
    }

    #[test]
    fn a_length_in_a_sector_that_was_not_written_ends_the_log() {
        let (mut writer, mut bytes) = (Writer::new(0), Vec::new());
        writer.begin(&mut bytes, Metadata { member: MemberId(1), cluster: ClusterId(1) }, None);
        static FILL: [u8; SECTOR_BYTES] = [0xaa; SECTOR_BYTES];
        let room = SECTOR_BYTES - LENGTH_BYTES - bytes.len();
        let fitting = (0..room).find(|size| {
            let (mut writer, mut frame) = (writer.clone(), Vec::new());
            writer.entry(&mut frame, &entry(1, &FILL[..*size]));
            frame.len() == room
        });
        writer.entry(&mut bytes, &entry(1, &FILL[..fitting.expect("frames come in steps of 8")]));
        let end = bytes.len();
        assert_eq!(end, SECTOR_BYTES - LENGTH_BYTES);
        writer.entry(&mut bytes, &entry(2, b"put k v"));
        bytes[end..SECTOR_BYTES].fill(0);
        let (records, result) = read_all(&bytes);
        assert_eq!((records.len(), result), (4, Ok(())));
    }

    #[test]
    fn a_record_that_the_files_end_cuts_is_torn() {
        let bytes = Bytes::from(log().0);
        let (mut reader, mut starts) = (Reader::new(&bytes, None), Vec::new());
        while reader.read().unwrap().is_some() {
            starts.push(reader.offset());
        }
        let last = starts[starts.len() - 2];
        for cut in last + LENGTH_BYTES..bytes.len() {
            assert!(read_all(&bytes[..cut]).1.unwrap_err().torn, "cut at {cut}");
        }
    }

    #[test]
    fn names_are_etcds() {
        let name = segment_name(1, Index(0x79));
        assert_eq!(name, "0000000000000001-0000000000000079.wal");
        assert_eq!(parse_segment_name(&name), Some((1, Index(0x79))));
        assert_eq!(parse_segment_name("0.tmp"), None);
    }
}
