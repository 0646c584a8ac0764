//! The memory of the search: which configurations it has entered, and the sets they are made of.
//!
//! The hasher has no random seed and nobody iterates over the map: a search takes the same way
//! through the same history every time.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};

/// The configurations entered: for what is placed and the state, the pending operations taken.
///
/// Invariant: of the sets of one entry none contains another.
pub struct Memo<S> {
    taken_at: HashMap<(Span, S), Vec<Bits>, BuildHasherDefault<DefaultHasher>>,
    /// Configurations tried, and memorised ones compared with them.
    pub looked_at: u64,
}

impl<S> Default for Memo<S> {
    fn default() -> Self {
        Memo { taken_at: HashMap::default(), looked_at: 0 }
    }
}

impl<S: Clone + Eq + Hash> Memo<S> {
    /// Remembers the configuration; false if it, or one that dominates it, is known already.
    pub fn admit(&mut self, placed: &Bits, taken: &Bits, state: &S) -> bool {
        let known = self.taken_at.entry((placed.span(), state.clone())).or_default();
        self.looked_at += 1 + known.len() as u64;
        if known.iter().any(|fewer| fewer.is_subset(taken)) {
            return false;
        }
        known.retain(|more| !taken.is_subset(more));
        known.push(taken.clone());
        true
    }
}

/// A set of small numbers, of fixed capacity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bits(Box<[u64]>);

impl Bits {
    pub fn new(capacity: usize) -> Self {
        Bits(vec![0; capacity.div_ceil(64)].into())
    }

    /// False if it was in already.
    pub fn insert(&mut self, number: usize) -> bool {
        let fresh = !self.contains(number);
        self.0[number / 64] |= 1 << (number % 64);
        fresh
    }

    pub fn remove(&mut self, number: usize) {
        self.0[number / 64] &= !(1 << (number % 64));
    }

    /// The set in few words: most of what is placed is all up to somewhere, with some gaps and some more behind.
    fn span(&self) -> Span {
        let full = self.0.iter().take_while(|word| **word == u64::MAX).count();
        let rest = &self.0[full..];
        let end = rest.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        Span { full, rest: rest[..end].into() }
    }

    pub fn contains(&self, number: usize) -> bool {
        self.0[number / 64] >> (number % 64) & 1 == 1
    }

    pub fn is_subset(&self, of: &Bits) -> bool {
        self.0.iter().zip(&of.0).all(|(mine, theirs)| mine & !theirs == 0)
    }
}

/// A set that has all of the first `full` words, then these, and nothing more.
#[derive(PartialEq, Eq, Hash)]
struct Span {
    full: usize,
    rest: Box<[u64]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> Bits {
        let mut bits = Bits::new(130);
        assert!(numbers.iter().all(|&number| bits.insert(number)));
        bits
    }

    #[test]
    fn only_what_took_no_superset_is_new() {
        let mut memo = Memo::default();
        let mut admit = |placed: &[usize], taken: &[usize], state: char| memo.admit(&set(placed), &set(taken), &state);
        assert!(admit(&[0, 129], &[1, 64], 'a'));
        assert!(!admit(&[0, 129], &[1, 64], 'a'));
        assert!(!admit(&[0, 129], &[1, 64, 65], 'a'));
        assert!(admit(&[0, 129], &[1, 65], 'a'));
        assert!(admit(&[0, 129], &[1], 'a')); // replaces both
        assert!(!admit(&[0, 129], &[1, 65], 'a'));
        assert!(admit(&[0, 129], &[1], 'b'));
        assert!(admit(&[0], &[1], 'a'));
    }

    #[test]
    fn a_set_in_few_words_is_told_from_every_other() {
        let all: Vec<usize> = (0..128).collect();
        let sets = [&all[..64], &all, &all[64..], &all[..63], &[0], &[129], &[], &[&all[..], &[129]].concat()];
        for (number, one) in sets.iter().enumerate() {
            let same = sets.iter().map(|other| set(one).span() == set(other).span());
            assert!(same.enumerate().all(|(other, same)| same == (other == number)), "{one:?}");
        }
    }

    #[test]
    fn bits_come_and_go() {
        let mut bits = set(&[0, 63, 64]);
        assert!(!bits.insert(63));
        bits.remove(63);
        assert_eq!(bits, set(&[0, 64]));
        assert!(bits.contains(64) && !bits.contains(63) && !bits.contains(128));
        assert!(set(&[]).is_subset(&bits) && !bits.is_subset(&set(&[0, 65])));
    }
}
