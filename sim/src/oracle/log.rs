//! A node's log as its events tell it: in memory, on disk, and on its way there.
use std::collections::VecDeque;

use detcd_core::types::{Index, MemberId, Term};

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

    /// Whether both can be the same entry, whatever stands before them.
    pub fn agrees(self, other: Stamp) -> bool {
        self.term == 0 || other.term == 0 || (self.term, self.hash) == (other.term, other.hash)
    }
}

/// The chain before the first entry.
const ROOT: u64 = 1;

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

/// What a member read back: its log from behind `before` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub promise: Promise,
    pub before: u64,
    /// Term and hash of each entry.
    pub entries: Vec<(u64, u64)>,
}

impl Found {
    pub fn new(term: Term, vote: MemberId, before: Index, entries: &[(Term, u64)]) -> Found {
        let entries = entries.iter().map(|(term, hash)| (term.0, *hash)).collect();
        Found { promise: Promise { term: term.0, vote: vote.0 }, before: before.0, entries }
    }

    pub fn last(&self) -> usize {
        self.before as usize + self.entries.len()
    }

    /// Whether this log may be what was found.
    fn is(&self, log: &[Stamp], kept: Promise) -> bool {
        let pairs = || log[self.before as usize..].iter().zip(&self.entries);
        let same = |(stamp, (term, hash)): (&Stamp, &(u64, u64))| {
            stamp.term == 0 || (stamp.term, stamp.hash) == (*term, *hash)
        };
        kept == self.promise && log.len() == self.last() && pairs().all(same)
    }
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
            None => ROOT,
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

    /// The member came back with this. False if that is not what a failure can have left: what was durable, and some
    /// first part of what was on its way.
    pub fn recover(&mut self, found: &Found) -> bool {
        let survivor = if std::mem::take(&mut self.tampered) || !self.known {
            Some(vec![Stamp::UNKNOWN; found.before as usize])
        } else {
            self.survivor(found)
        };
        let right = survivor.is_some();
        self.memory = survivor.unwrap_or_else(|| self.durable.clone());
        self.memory.resize(found.before as usize, Stamp::UNKNOWN);
        for (index, (term, hash)) in (found.before + 1..).zip(&found.entries) {
            let stamp = self.stamp(index, *term, *hash);
            self.memory.push(stamp);
        }
        self.durable = self.memory.clone();
        (self.promised, self.kept) = (found.promise, found.promise);
        self.pending.clear();
        self.known = true;
        right
    }

    /// What is on its disk is not what it put there.
    pub fn tamper(&mut self) {
        self.tampered = true;
    }

    /// The log that was left. Where more than one fits, what differs between them is not known.
    fn survivor(&mut self, found: &Found) -> Option<Vec<Stamp>> {
        let (mut log, mut kept) = (self.durable.clone(), self.kept);
        let mut left: Option<Vec<Stamp>> = None;
        let mut changed_from = usize::MAX;
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        loop {
            if found.is(&log, kept) {
                match &mut left {
                    None => left = Some(log.clone()),
                    Some(left) => {
                        let pairs = left.iter_mut().zip(&log).skip(changed_from);
                        pairs.filter(|(a, b)| a != b).for_each(|(a, _)| *a = Stamp::UNKNOWN);
                    }
                }
            }
            let Some(record) = pending.next() else { return left };
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

    fn entry(index: u64, term: u64) -> (u64, u64) {
        (term, index * 100 + term)
    }

    fn append(log: &mut MemberLog, index: u64, term: u64) {
        let (term, hash) = entry(index, term);
        let stamp = log.stamp(index, term, hash);
        log.append(index, stamp);
    }

    /// A log from behind `before` on, by the terms of its entries.
    fn found(promise: Promise, before: u64, terms: &[u64]) -> Found {
        let entries = (before + 1..).zip(terms).map(|(index, term)| entry(index, *term)).collect();
        Found { promise, before, entries }
    }

    /// Three founding entries, 4 and 5 of term 1 durable; then in term 2 another 5, and 6, on their way.
    fn log() -> MemberLog {
        let mut log = MemberLog::default();
        assert!(log.recover(&found(FIRST, 0, &[1, 1, 1])));
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
        fn check(promise: Promise, terms: &[u64], fits: bool) {
            let mut log = log();
            assert_eq!(log.durable.len(), 5);
            assert_eq!(log.recover(&found(promise, 0, terms)), fits);
            assert_eq!(log.memory.iter().map(|stamp| stamp.term).collect::<Vec<_>>(), terms);
        }
        check(SECOND, &[1, 1, 1, 1, 2, 2], true);
        check(FIRST, &[1, 1, 1, 1, 2, 2], true); // the batch's entries, but not its end
        check(FIRST, &[1, 1, 1, 1, 2], true);
        check(FIRST, &[1, 1, 1, 1, 1], true);
        check(SECOND, &[1, 1, 1, 1, 2], false);
        check(FIRST, &[1, 1, 1, 1], false);
        check(Promise { term: 2, vote: 0 }, &[1, 1, 1, 1, 2, 2], false);
        check(Promise { term: 0, vote: 0 }, &[], false);
        // As long as it should be, but not what it should be.
        check(SECOND, &[1, 1, 1, 1, 1, 2], false);
        check(FIRST, &[1, 1, 1, 2, 1], false);
    }

    #[test]
    fn what_a_state_stands_in_for_stays_as_it_was() {
        let mut log = log();
        log.persisted(2);
        assert!(log.recover(&found(SECOND, 4, &[2, 2])));
        assert_eq!(log.memory, {
            let mut log = self::log();
            log.persisted(2);
            log.durable
        });
        log.tamper();
        assert!(log.recover(&found(SECOND, 5, &[3])));
        assert_eq!(log.memory.iter().map(|stamp| stamp.term).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn a_state_takes_the_logs_place_with_its_batch_or_not_at_all() {
        #[track_caller]
        fn check(found: Found, fits: bool) {
            let mut log = log();
            log.restart(9);
            append(&mut log, 10, 3);
            log.persist(3, Promise { term: 3, vote: 0 });
            assert_eq!(log.recover(&found), fits);
        }
        check(found(SECOND, 0, &[1, 1, 1, 1, 2, 2]), true);
        check(found(Promise { term: 3, vote: 0 }, 9, &[3]), true);
        check(found(Promise { term: 3, vote: 0 }, 9, &[2]), false);
        check(found(Promise { term: 3, vote: 0 }, 0, &[1, 1, 1, 1, 2, 2]), false);
        check(found(SECOND, 0, &[1, 1, 1, 1]), false);
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
