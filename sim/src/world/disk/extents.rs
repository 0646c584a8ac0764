//! A set of numbers, of sectors or of blocks, as ranges: what is written in a row is one of them, however long.
use std::{collections::BTreeMap, ops::Range};

/// Invariants: no range is empty, and no two overlap or touch; `count` is how many numbers there are in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    /// Each range's end, by its start.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Extents {
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&from, &to)) = self.ranges.range(..=end).next_back()
            && to >= start
        {
            self.ranges.remove(&from);
            self.count -= to - from;
            (start, end) = (start.min(from), end.max(to));
        }
        self.ranges.insert(start, end);
        self.count += end - start;
    }

    pub fn remove(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        if start >= end {
            return;
        }
        while let Some((&from, &to)) = self.ranges.range(..end).next_back()
            && to > start
        {
            self.ranges.remove(&from);
            self.count -= to - from;
            self.insert(from..start.max(from));
            self.insert(end.min(to)..to);
        }
    }

    /// The parts of `range` that are in the set, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        let meeting = self.ranges.range(first..range.end.max(first));
        let cut = move |(start, end): (&u64, &u64)| range.start.max(*start)..range.end.min(*end);
        meeting.map(cut).filter(|part| !part.is_empty())
    }

    /// How many numbers of `range` are not in the set.
    pub fn missing(&self, range: Range<u64>) -> u64 {
        let there: u64 = self.within(range.clone()).map(|part| part.end - part.start).sum();
        range.end.saturating_sub(range.start) - there
    }

    pub fn contains(&self, number: u64) -> bool {
        self.within(number..number + 1).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::seed::{Rng, Seed};

    #[test]
    fn agrees_with_a_plain_set() {
        let (mut rng, mut extents, mut plain) = (Seed(1).rng(), Extents::default(), BTreeSet::new());
        for _ in 0..5_000 {
            let start = rng.next_u64() % 40;
            let range = start..start + rng.next_u64() % 12;
            if rng.next_u64().is_multiple_of(2) {
                extents.insert(range.clone());
                plain.extend(range.clone());
            } else {
                extents.remove(range.clone());
                plain.retain(|number| !range.contains(number));
            }
            assert_eq!(extents.count(), plain.len() as u64);
            assert_eq!(extents.within(0..100).flatten().collect::<BTreeSet<_>>(), plain);
            let asked = rng.next_u64() % 40..rng.next_u64() % 50;
            let there = plain.iter().filter(|number| asked.contains(number)).count() as u64;
            assert_eq!(extents.within(asked.clone()).flatten().count() as u64, there);
            assert_eq!(extents.missing(asked.clone()), asked.end.saturating_sub(asked.start) - there);
            assert_eq!(extents.contains(start), plain.contains(&start));
            let ranges = Vec::from_iter(&extents.ranges);
            assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges touch: {ranges:?}");
        }
    }

    #[test]
    fn a_row_is_one_range() {
        let mut extents = Extents::default();
        (0..1_000).for_each(|number| extents.insert(number..number + 1));
        assert_eq!((extents.ranges.len(), extents.count()), (1, 1_000));
    }
}
