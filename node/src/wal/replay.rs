//! Puts the records of a log's segments together.
use detcd_core::{
    consensus::Entry,
    format::wal::{Damage, HardState, Metadata, Reader, Record, SnapshotMark},
    replica::Recovered,
    types::{Index, Term},
};

/// Invariants: entries are contiguous and follow `before`, once either is known.
#[derive(Default)]
pub struct Replay {
    metadata: Option<Metadata>,
    hard_state: HardState,
    /// Where the entries begin, if a mark or the first entry told: the index right before them.
    before: Option<Index>,
    entries: Vec<Entry>,
    /// Every mark that there is.
    marks: Vec<(Index, Term)>,
    /// What a mark made void, until it is known to count: a write that was cut short may have left the mark alone.
    void: Option<Void>,
    pub crc: u32,
    read_any: bool,
}

struct Void {
    mark: Index,
    before: Option<Index>,
    entries: Vec<Entry>,
}

impl Replay {
    /// Returns where the segment's records end. In the last segment a torn record ends the log.
    pub fn segment(&mut self, bytes: &[u8], is_last: bool) -> Result<usize, Damage> {
        let mut reader = Reader::new(bytes, self.read_any.then_some(self.crc));
        self.read_any = true;
        loop {
            let offset = reader.offset();
            match reader.read() {
                Ok(Some(record)) => {
                    self.record(record).map_err(|reason| Damage { offset, torn: false, reason })?;
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
        Ok(reader.offset())
    }

    fn last(&self) -> Option<Index> {
        self.entries.last().map(|entry| Index(entry.index)).or(self.before)
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
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
                self.void.take_if(|void| void.mark <= state.commit);
            }
            Record::Snapshot(mark) => self.mark(&mark),
            Record::Crc(_) => {}
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), String> {
        if self.void.is_some() {
            return Err(format!("entry {} follows a mark that nothing says is committed", entry.index));
        }
        let before = *self.before.get_or_insert(Index(entry.index.saturating_sub(1)));
        let last = self.last().expect("known by now");
        if entry.index <= before.0 || entry.index > last.0 + 1 {
            return Err(format!("entry {} follows entry {last}", entry.index));
        }
        // A later write of an index replaces what stood there and after it.
        self.entries.truncate((entry.index - before.0) as usize - 1);
        self.entries.push(entry);
        Ok(())
    }

    fn mark(&mut self, mark: &SnapshotMark) {
        self.marks.push((mark.index, mark.term));
        let known = self.before.and_then(|before| {
            let at = mark.index.0.checked_sub(before.0 + 1)?;
            self.entries.get(at as usize).map(|entry| Term(entry.term))
        });
        // Where reading begins, a mark may be of what comes before.
        let of_before = self.last().is_none_or(|last| mark.index < last) && known.is_none();
        if mark.index == Index(0) {
            self.before = Some(Index(0));
        } else if known != Some(mark.term) && !of_before {
            let before = self.before.replace(mark.index);
            let void = Void { mark: mark.index, before, entries: std::mem::take(&mut self.entries) };
            self.void = (mark.index > self.hard_state.commit).then_some(void);
        }
    }

    /// The log from behind `start`; `None` if no mark that counts is of it.
    pub fn finish(&mut self, start: (Index, Term)) -> Result<Option<(Metadata, Recovered)>, String> {
        let metadata = self.metadata.ok_or("it does not say whose it is")?;
        if let Some(void) = self.void.take() {
            // The mark does not count, so nothing is void.
            (self.before, self.entries) = (void.before, void.entries);
        }
        let hard_state = self.hard_state;
        if !self.marks.contains(&start) || start.0 > hard_state.commit {
            return Ok(None);
        }
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| entry.index > start.0.0);
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
