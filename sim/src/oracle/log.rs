//! A node's log as its events tell it: in memory, on disk, and on its way there.
use std::collections::VecDeque;

/// What tells one entry from another.
///
/// With a term of 0 its content is not known, and it is taken for whatever it is compared with. With a chain of 0 it is
/// not known what stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub term: u64,
    pub hash: u64,
    /// What the whole log up to here comes to.
    pub chain: u64,
}

impl Stamp {
    const UNKNOWN: Stamp = Stamp { term: 0, hash: 0, chain: 0 };

    /// An entry that every member begins with; their content is not told.
    fn founding(index: u64) -> Stamp {
        Stamp { term: 0, hash: 0, chain: mix(index, 1) }
    }

    /// Whether both can be the same entry, whatever stands before them.
    pub fn agrees(self, other: Stamp) -> bool {
        self.term == 0 || other.term == 0 || (self.term, self.hash) == (other.term, other.hash)
    }
}

/// Never 0.
fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31) ^ b;
    (x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) | 1
}

/// Term, and the vote in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Promise {
    pub term: u64,
    pub vote: u64,
}

/// One member's log. Index 1 is at place 0.
///
/// Invariant: `durable` with `pending` on top is `memory`.
#[derive(Debug, Default)]
pub struct MemberLog {
    pub memory: Vec<Stamp>,
    pub durable: Vec<Stamp>,
    pub promised: Promise,
    /// Of `promised`, what is durable.
    pub kept: Promise,
    /// What was handed to the disk and not reported durable, in order. A failure keeps some first part of it.
    pending: VecDeque<Record>,
    /// Whether it ever started.
    known: bool,
    /// Somebody else wrote to its disk: whatever it reads back, there is nothing to compare that with.
    tampered: bool,
}

#[derive(Debug)]
enum Record {
    Entry { index: u64, stamp: Stamp },
    Restart { index: u64 },
    Batch { persist: u64, promise: Promise },
}

impl MemberLog {
    /// The stamp of an entry that would stand at `index`.
    pub fn stamp(&self, index: u64, term: u64, hash: u64) -> Stamp {
        let before = match index.checked_sub(2) {
            Some(at) => self.memory.get(at as usize).map_or(0, |stamp| stamp.chain),
            // Of what founders begin with nothing is told but that it is there; who joins is told the entries.
            None => 0,
        };
        let chain = if before == 0 { 0 } else { mix(mix(before, term), hash) };
        Stamp { term, hash, chain }
    }

    /// The entry replaces what stood at its index and after it.
    pub fn append(&mut self, index: u64, stamp: Stamp) {
        place(&mut self.memory, index, stamp);
        self.pending.push_back(Record::Entry { index, stamp });
    }

    /// A state stands in for the log up to here: what was committed there, whatever that was.
    pub fn restart(&mut self, index: u64) {
        self.memory = vec![Stamp::UNKNOWN; index as usize];
        self.pending.push_back(Record::Restart { index });
    }

    pub fn persist(&mut self, persist: u64, promise: Promise) {
        self.promised = promise;
        self.pending.push_back(Record::Batch { persist, promise });
    }

    pub fn persisted(&mut self, persist: u64) {
        let done = |record: &Record| matches!(record, Record::Batch { persist: of, .. } if *of <= persist);
        let Some(last) = self.pending.iter().rposition(done) else { return };
        for record in self.pending.drain(..=last) {
            redo(record, &mut self.durable, &mut self.kept);
        }
    }

    /// The member came back with so many entries and this promise. False if that is not what a failure can have left:
    /// what was durable, and some first part of what was on its way.
    pub fn recover(&mut self, promise: Promise, last: u64) -> bool {
        let found = if std::mem::take(&mut self.tampered) {
            Some(vec![Stamp::UNKNOWN; last as usize])
        } else if self.known {
            self.survivors(promise, last as usize)
        } else {
            Some((1..=last).map(Stamp::founding).collect())
        };
        let right = found.is_some();
        self.memory = found.unwrap_or_else(|| {
            let mut log = self.durable.clone();
            log.resize(last as usize, Stamp::UNKNOWN);
            log
        });
        self.durable = self.memory.clone();
        (self.promised, self.kept) = (promise, promise);
        self.pending.clear();
        self.known = true;
        right
    }

    /// What is on its disk is not what it put there.
    pub fn tamper(&mut self) {
        self.tampered = true;
    }

    /// The log that was left, as far as its length and the promise tell. Where more than one fits, what differs between
    /// them is not known.
    fn survivors(&mut self, promise: Promise, last: usize) -> Option<Vec<Stamp>> {
        let (mut log, mut kept) = (self.durable.clone(), self.kept);
        let mut found: Option<Vec<Stamp>> = None;
        let mut changed_from = usize::MAX;
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        loop {
            if kept == promise && log.len() == last {
                match &mut found {
                    None => found = Some(log.clone()),
                    Some(found) => {
                        let pairs = found.iter_mut().zip(&log).skip(changed_from);
                        pairs.filter(|(a, b)| a != b).for_each(|(a, _)| *a = Stamp::UNKNOWN);
                    }
                }
            }
            let Some(record) = pending.next() else { return found };
            match record {
                Record::Entry { index, .. } => changed_from = changed_from.min(index as usize - 1),
                Record::Restart { .. } => changed_from = 0,
                Record::Batch { .. } => {}
            }
            redo(record, &mut log, &mut kept);
        }
    }
}

fn redo(record: Record, log: &mut Vec<Stamp>, kept: &mut Promise) {
    match record {
        Record::Entry { index, stamp } => place(log, index, stamp),
        Record::Restart { index } => *log = vec![Stamp::UNKNOWN; index as usize],
        Record::Batch { promise, .. } => *kept = promise,
    }
}

fn place(log: &mut Vec<Stamp>, index: u64, stamp: Stamp) {
    log.resize(index as usize - 1, Stamp::UNKNOWN);
    log.push(stamp);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Promise = Promise { term: 1, vote: 0 };
    const SECOND: Promise = Promise { term: 2, vote: 7 };

    fn append(log: &mut MemberLog, index: u64, term: u64) {
        let stamp = log.stamp(index, term, index * 100 + term);
        log.append(index, stamp);
    }

    /// Three founding entries, 4 and 5 of term 1 durable; then in term 2 another 5, and 6, on their way.
    fn log() -> MemberLog {
        let mut log = MemberLog::default();
        assert!(log.recover(FIRST, 3));
        append(&mut log, 4, 1);
        append(&mut log, 5, 1);
        log.persist(1, FIRST);
        log.persisted(1);
        append(&mut log, 5, 2);
        append(&mut log, 6, 2);
        log.persist(2, SECOND);
        log
    }

    #[test]
    fn a_failure_leaves_some_first_part_of_what_was_on_its_way() {
        #[track_caller]
        fn check(promise: Promise, last: u64, terms: Option<&[u64]>) {
            let mut log = log();
            assert_eq!(log.durable.len(), 5);
            assert_eq!(log.recover(promise, last), terms.is_some());
            assert_eq!(log.memory.len(), last as usize);
            let known: Vec<_> = log.memory.iter().skip(3).map(|stamp| stamp.term).collect();
            assert!(terms.is_none_or(|terms| known == terms), "{known:?}");
        }
        check(SECOND, 6, Some(&[1, 2, 2]));
        check(FIRST, 6, Some(&[1, 2, 2])); // the batch's entries, but not its end
        check(FIRST, 5, Some(&[1, 0])); // the old entry or the new one: nobody knows
        check(SECOND, 5, None);
        check(FIRST, 4, None);
        check(Promise { term: 2, vote: 0 }, 6, None);
        check(Promise { term: 0, vote: 0 }, 0, None);
    }

    #[test]
    fn a_state_takes_the_logs_place_with_its_batch_or_not_at_all() {
        #[track_caller]
        fn check(promise: Promise, last: u64, fits: bool) {
            let mut log = log();
            log.restart(9);
            append(&mut log, 10, 3);
            log.persist(3, Promise { term: 3, vote: 0 });
            assert_eq!(log.recover(promise, last), fits);
        }
        check(SECOND, 6, true);
        check(Promise { term: 3, vote: 0 }, 10, true);
        check(Promise { term: 3, vote: 0 }, 6, false);
        check(SECOND, 4, false);
    }

    #[test]
    fn chains_tell_logs_apart() {
        let (mut one, mut other) = (log(), log());
        append(&mut one, 7, 3);
        append(&mut other, 5, 3);
        append(&mut other, 6, 2);
        append(&mut other, 7, 3);
        let (a, b) = (one.memory[6], other.memory[6]);
        assert!(a.agrees(b) && a.chain != b.chain && a.chain != 0);
        assert_eq!(one.memory[4], log().memory[4]);
    }
}
