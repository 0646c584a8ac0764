//! Reading the store: ranges of keys, at any revision that is not compacted.
use std::{cmp::Ordering, ops::Bound};

use bytes::Bytes;

use super::{Position, Record, Store};
use crate::{error::Refusal, types::Revision};

/// Where a range of keys ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeEnd {
    /// It is one key.
    Single,
    /// Just before this key; at or below the start, the range is empty.
    Before(Bytes),
    /// It does not.
    Unbounded,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: RangeEnd,
}

impl KeyRange {
    /// etcd's encoding: no `range_end` is one key, a single zero byte is "everything from `key` on".
    pub fn new(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match &range_end[..] {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        KeyRange { start: key, end }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
            RangeEnd::Unbounded => key >= &self.start[..],
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    Unspecified,
    Ascending,
    Descending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Created,
    Modified,
    Value,
}

/// What to read. The default is everything, now, in the order of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeOptions {
    /// 0 or below: now.
    pub revision: Revision,
    /// 0 or below: no limit.
    pub limit: i64,
    pub order: Order,
    pub target: SortTarget,
    pub count_only: bool,
    /// Inclusive bounds, 0 is off: on the revision of the last change, then of the creation.
    pub modified_min: i64,
    pub modified_max: i64,
    pub created_min: i64,
    pub created_max: i64,
}

impl RangeOptions {
    fn filters(&self) -> bool {
        [self.modified_min, self.modified_max, self.created_min, self.created_max].iter().any(|bound| *bound != 0)
    }

    fn admits(&self, record: &Record) -> bool {
        let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
        within(record.modified().0, self.modified_min, self.modified_max)
            && within(record.created().0, self.created_min, self.created_max)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeResult {
    pub records: Vec<Record>,
    /// Keys in the range at that revision, whatever the limit and the filters.
    pub count: i64,
    /// Whether the limit cut something off.
    pub more: bool,
}

impl Store {
    /// The live keys in `range`, in order, as they are now.
    pub fn live(&self, range: &KeyRange) -> impl Iterator<Item = &Record> {
        self.newest(range).filter(|record| !record.is_tombstone())
    }

    /// The live keys in `range`, in order, as they were at `revision`, which [`Store::check_revision`] allows.
    fn live_at(&self, range: &KeyRange, revision: Revision) -> impl Iterator<Item = &Record> {
        let versions = self.newest(range).filter_map(move |newest| self.version_at(newest, revision));
        versions.filter(|record| !record.is_tombstone())
    }

    /// The newest version of every key in `range`, in the order of keys.
    fn newest(&self, range: &KeyRange) -> impl Iterator<Item = &Record> {
        let from = |end| Some(self.keys.range(Bound::Included(&range.start[..]), end));
        let (one, several) = match &range.end {
            // Faster than a range of one.
            RangeEnd::Single => (self.keys.get(&range.start), None),
            RangeEnd::Before(_) if range.is_empty() => (None, None),
            RangeEnd::Before(end) => (None, from(Bound::Excluded(&end[..]))),
            RangeEnd::Unbounded => (None, from(Bound::Unbounded)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    /// The version that held at `revision`. A key that changes often has a long chain of versions back to there, but its
    /// first change behind `revision` is near; with others it is the other way round. Both are tried in turns.
    fn version_at<'a>(&'a self, newest: &'a Record, revision: Revision) -> Option<&'a Record> {
        if newest.modified() <= revision {
            return Some(newest);
        }
        let key = newest.key();
        let mut later = self.versions_after(Position { main: revision.0, sub: u32::MAX });
        let mut record = newest;
        while record.modified() > revision {
            if let Some(changed) = later.next().filter(|later| later.key() == key) {
                return self.log.get(&changed.previous());
            }
            record = self.log.get(&record.previous())?;
        }
        Some(record)
    }

    pub fn range(&self, range: &KeyRange, options: &RangeOptions) -> Result<RangeResult, Refusal> {
        self.check_revision(options.revision)?;
        Ok(if options.revision.0 <= 0 {
            collect(self.live(range), options)
        } else {
            collect(self.live_at(range, options.revision), options)
        })
    }

    /// Whether the version at `position` is held; a position that was never used is not.
    pub fn holds(&self, position: Position) -> bool {
        self.log.get(&position).is_some()
    }
}

fn collect<'a>(live: impl Iterator<Item = &'a Record>, options: &RangeOptions) -> RangeResult {
    if options.count_only {
        return RangeResult { count: live.count() as i64, ..RangeResult::default() };
    }
    let limit = usize::try_from(options.limit).unwrap_or(0);
    // What is sorted or filtered must be looked at whole; otherwise one record past the limit tells that there is more.
    let whole = limit == 0 || options.filters() || options.order != Order::Unspecified;
    let kept = if whole { usize::MAX } else { limit + 1 };
    let mut result = RangeResult::default();
    for record in live {
        result.count += 1;
        if result.records.len() < kept && options.admits(record) {
            result.records.push(record.clone());
        }
    }
    sort(&mut result.records, options);
    if limit > 0 && result.records.len() > limit {
        result.records.truncate(limit);
        result.more = true;
    }
    result
}

/// Keys come in ascending order already. Another target without an order is sorted ascending, after the limit: a
/// quirk that etcd's clients see.
fn sort(records: &mut [Record], options: &RangeOptions) {
    let compare = |a: &Record, b: &Record| -> Ordering {
        match options.target {
            SortTarget::Key => a.key().cmp(b.key()),
            SortTarget::Version => a.version().cmp(&b.version()),
            SortTarget::Created => a.created().cmp(&b.created()),
            SortTarget::Modified => a.modified().cmp(&b.modified()),
            SortTarget::Value => a.value().cmp(b.value()),
        }
    };
    match (options.target, options.order) {
        (SortTarget::Key, Order::Unspecified | Order::Ascending) => {}
        (_, Order::Unspecified | Order::Ascending) => records.sort_by(|a, b| compare(a, b)),
        (_, Order::Descending) => records.sort_by(|a, b| compare(b, a)),
    }
}
