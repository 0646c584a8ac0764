//! Puts the records of a log's segments together.
use bytes::Bytes;
use detcd_core::{
    consensus::Entry,
    format::wal::{Damage, HardState, Metadata, Reader, Record, SnapshotMark},
    limits::TAIL_BYTES,
    replica::Recovered,
    types::{Index, Term},
};

/// Invariants: entries are contiguous and follow `before`, once either is known.
#[derive(Default)]
pub struct Replay {
    metadata: Option<Metadata>,
    hard_state: HardState,
    /// Where the entries begin, once it is known.
    before: Option<Before>,
    entries: Vec<Entry>,
    /// Every mark that counts.
    marks: Vec<(Index, Term)>,
    /// The last mark, while nothing says that what it stands for is committed.
    open: Option<OpenMark>,
    pub crc: u32,
    read_any: bool,
}

/// The index right before the entries.
#[derive(Debug, Clone, Copy)]
struct Before {
    index: Index,
    /// No mark told it, but the first entry: the segment that reading begins with may itself begin in the middle of a
    /// history that was taken back later, further than to its own beginning.
    is_guessed: bool,
}

/// A mark counts once a commit index has reached it. The two are written at once: if a crash has left the mark alone,
/// the log is what it was before, and goes on from there as if the mark had never been.
struct OpenMark {
    mark: (Index, Term),
    /// Where its record begins if it is in the last segment, and the checksum up to there.
    place: Option<(usize, u32)>,
    /// What it makes void: the log before it, if that is of another history.
    void: Option<(Option<Before>, Vec<Entry>)>,
}

impl Replay {
    /// Returns where the segment's records end. In the last segment a torn record ends the log, and so does a mark that
    /// was to be followed by a commit index, and is not.
    pub fn segment(&mut self, bytes: &Bytes, is_last: bool) -> Result<usize, Damage> {
        let mut reader = Reader::new(bytes, self.read_any.then_some(self.crc));
        self.read_any = true;
        loop {
            let (offset, crc) = (reader.offset(), reader.crc());
            match reader.read() {
                Ok(Some(record)) => {
                    let place = crc.filter(|_| is_last).map(|crc| (offset, crc));
                    self.record(record, place).map_err(|reason| Damage { offset, torn: false, reason })?;
                }
                Ok(None) => break,
                Err(damage) if damage.torn && is_last => break,
                Err(damage) => return Err(damage),
            }
        }
        self.crc = reader.crc().ok_or_else(|| Damage {
            offset: 0,
            torn: false,
            reason: "the segment does not begin with its checksum".into(),
        })?;
        let Some((end, crc)) = self.open.as_ref().and_then(|open| open.place) else { return Ok(reader.offset()) };
        self.crc = crc;
        Ok(end)
    }

    fn last(&self) -> Option<Index> {
        self.entries.last().map(|entry| Index(entry.index)).or(self.before.map(|before| before.index))
    }

    fn record(&mut self, record: Record, place: Option<(usize, u32)>) -> Result<(), String> {
        match record {
            Record::Metadata(metadata) => match self.metadata {
                Some(known) if known != metadata => {
                    return Err(format!("the segment is of member {}, the log of {}", metadata.member, known.member));
                }
                _ => self.metadata = Some(metadata),
            },
            Record::Entry(entry) => self.entry(entry)?,
            Record::State(state) => {
                self.hard_state = state;
                self.marks.extend(self.open.take_if(|open| open.mark.0 <= state.commit).map(|open| open.mark));
            }
            Record::Snapshot(mark) => self.mark(&mark, place),
            Record::Crc(_) => {}
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), String> {
        // etcd leaves a mark where it is, and goes on as if it were not.
        if self.open.as_ref().is_some_and(|open| entry.index <= open.mark.0.0) {
            self.forget_open_mark();
        }
        let open = entry.index > self.hard_state.commit.0;
        let goes_back = |before: Before| before.is_guessed && open && entry.index <= before.index.0;
        if self.before.is_none_or(goes_back) {
            self.before = Some(Before { index: Index(entry.index.saturating_sub(1)), is_guessed: true });
            self.entries.clear();
        }
        let before = self.before.expect("known by now").index;
        let last = self.last().expect("known by now");
        if entry.index <= before.0 || entry.index > last.0 + 1 {
            return Err(format!("entry {} follows entry {last}", entry.index));
        }
        // A later write of an index replaces what stood there and after it.
        self.entries.truncate((entry.index - before.0) as usize - 1);
        self.entries.push(entry);
        Ok(())
    }

    fn mark(&mut self, mark: &SnapshotMark, place: Option<(usize, u32)>) {
        self.forget_open_mark();
        let known = self.before.and_then(|before| {
            let at = mark.index.0.checked_sub(before.index.0 + 1)?;
            self.entries.get(at as usize).map(|entry| Term(entry.term))
        });
        // Where reading begins, a mark may be of what comes before.
        let of_before = self.last().is_none_or(|last| mark.index < last) && known.is_none();
        let mut void = None;
        let told = Before { index: mark.index, is_guessed: false };
        if mark.index == Index(0) {
            self.before = Some(told);
        } else if known != Some(mark.term) && !of_before {
            void = Some((self.before.replace(told), std::mem::take(&mut self.entries)));
        }
        let mark = (mark.index, mark.term);
        if mark.0 <= self.hard_state.commit {
            self.marks.push(mark);
        } else {
            self.open = Some(OpenMark { mark, place, void });
        }
    }

    /// It does not count, so nothing is void.
    fn forget_open_mark(&mut self) {
        if let Some(void) = self.open.take().and_then(|open| open.void) {
            (self.before, self.entries) = void;
        }
    }

    /// The log from behind `start`; `None` if no mark that counts is of it.
    pub fn finish(&mut self, start: (Index, Term)) -> Result<Option<(Metadata, Recovered)>, String> {
        let metadata = self.metadata.ok_or("it does not say whose it is")?;
        self.forget_open_mark();
        let hard_state = self.hard_state;
        if !self.marks.contains(&start) || start.0 > hard_state.commit {
            return Ok(None);
        }
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| entry.index > start.0.0);
        detach(&mut entries);
        let first = entries.first().map_or(start.0.0 + 1, |entry| entry.index);
        if first != start.0.0 + 1 {
            return Err(format!("entries {} to {} are missing", start.0.0 + 1, first - 1));
        }
        let recovered = Recovered { hard_state, before: start, entries, ..Recovered::default() };
        let (commit, last) = (hard_state.commit, recovered.last());
        if commit > last {
            return Err(format!("entry {commit} was committed, but the log ends at {last}"));
        }
        Ok(Some((metadata, recovered)))
    }
}

/// Copies what is going to stay in memory off the segments, which would stay with it.
fn detach(entries: &mut [Entry]) {
    let mut bytes = 0;
    for entry in entries.iter_mut().rev() {
        bytes += entry.data.len() as u64;
        if bytes > 2 * TAIL_BYTES {
            break;
        }
        entry.data = Bytes::copy_from_slice(&entry.data);
    }
}

#[cfg(test)]
mod tests {
    use detcd_core::{
        format::wal::Writer,
        types::{ClusterId, MemberId},
    };

    use super::*;

    /// A log of entries 1 to 3, all committed, and what `more` writes behind it.
    fn log(more: impl FnOnce(&mut Writer, &mut Vec<u8>)) -> Bytes {
        let (mut writer, mut bytes) = (Writer::new(0), Vec::new());
        writer.begin(&mut bytes, Metadata { member: MemberId(1), cluster: ClusterId(2) }, None);
        (1..=3).for_each(|index| writer.entry(&mut bytes, &entry(index)));
        writer.state(&mut bytes, state(3));
        more(&mut writer, &mut bytes);
        bytes.into()
    }

    fn entry(index: u64) -> Entry {
        let mut entry = Entry::default();
        (entry.index, entry.term) = (index, 2);
        entry
    }

    fn state(commit: u64) -> HardState {
        HardState { term: Term(2), vote: MemberId(0), commit: Index(commit) }
    }

    fn mark(index: u64) -> SnapshotMark {
        SnapshotMark { index: Index(index), term: Term(2), conf_state: Some(Default::default()) }
    }

    /// From where the log is read, its entries, and how many bytes of it stay.
    fn read(bytes: &Bytes, start: u64) -> Option<(u64, Vec<u64>, usize)> {
        let mut replay = Replay::default();
        let end = replay.segment(bytes, true).unwrap();
        let term = Term(if start == 0 { 0 } else { 2 });
        let (_, recovered) = replay.finish((Index(start), term)).unwrap()?;
        let entries = recovered.entries.iter().map(|entry| entry.index).collect();
        Some((recovered.before.0.0, entries, end))
    }

    #[test]
    fn a_mark_counts_together_with_a_commit_index() {
        let before = log(|_, _| ());
        let marked = log(|writer, bytes| writer.snapshot(bytes, &mark(9)));
        assert_eq!(read(&marked, 9), None);
        assert_eq!(read(&marked, 0), Some((0, vec![1, 2, 3], before.len())), "cut where the mark begins");
        let counts = log(|writer, bytes| {
            writer.snapshot(bytes, &mark(9));
            writer.state(bytes, state(9));
            writer.entry(bytes, &entry(10));
        });
        assert_eq!(read(&counts, 9), Some((9, vec![10], counts.len())));
    }

    #[test]
    fn a_history_that_was_taken_back_may_begin_before_the_segment() {
        // What is read begins at 9; another leader wrote 8 anew, and a state stands in for all of it.
        let mut bytes = Vec::new();
        let mut writer = Writer::new(0);
        writer.begin(&mut bytes, Metadata { member: MemberId(1), cluster: ClusterId(2) }, Some(state(6)));
        [9, 10, 8, 9].map(entry).iter().for_each(|entry| writer.entry(&mut bytes, entry));
        let damaged = {
            let (mut writer, mut bytes) = (writer.clone(), bytes.clone());
            writer.entry(&mut bytes, &entry(6)); // that was committed
            Bytes::from(bytes)
        };
        writer.snapshot(&mut bytes, &mark(20));
        // A mark that a torn write left alone changes nothing about that.
        let torn = {
            let (mut writer, mut bytes) = (writer.clone(), bytes.clone());
            [7, 8].map(entry).iter().for_each(|entry| writer.entry(&mut bytes, entry));
            Bytes::from(bytes)
        };
        writer.state(&mut bytes, state(20));
        let bytes = Bytes::from(bytes);
        assert_eq!(read(&bytes, 20), Some((20, vec![], bytes.len())));
        assert!(Replay::default().segment(&torn, true).is_ok());
        assert!(Replay::default().segment(&damaged, true).is_err());
    }

    #[test]
    fn what_is_cut_off_leaves_no_trace_in_the_checksum() {
        let marked = log(|writer, bytes| writer.snapshot(bytes, &mark(9)));
        let mut replay = Replay::default();
        let end = replay.segment(&marked, true).unwrap();
        let mut bytes = marked[..end].to_vec();
        Writer::new(replay.crc).entry(&mut bytes, &entry(4));
        let bytes = Bytes::from(bytes);
        assert_eq!(read(&bytes, 0), Some((0, vec![1, 2, 3, 4], bytes.len())));
    }

    #[test]
    fn etcd_goes_on_behind_a_mark_that_does_not_count() {
        let log = log(|writer, bytes| {
            writer.snapshot(bytes, &mark(9));
            writer.state(bytes, state(3));
            (4..=9).for_each(|index| writer.entry(bytes, &entry(index)));
            writer.state(bytes, state(9));
        });
        assert_eq!(read(&log, 9), None, "the state that was to come with it is gone");
        assert_eq!(read(&log, 0), Some((0, (1..=9).collect(), log.len())));
    }
}
