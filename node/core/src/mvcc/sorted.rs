//! Records in order: a persistent B-tree whose entries are the records themselves, a word and a byte each.
//!
//! The records stand in leaves of a few dozen, in order; branches lead to them by bounds. Appending leaves full leaves
//! behind. A clone shares every node; a write copies those on its way that are shared.
//!
//! A record is somewhere in memory, and looking at its key is most of what a search costs. So a leaf has a byte of each
//! key, its tag: what is there is found by looking at one record, seldom at another that has the same byte.
//!
//! Invariants:
//! - All leaves are equally deep. A branch has a child at least, and one more than bounds.
//! - Every record below a branch's child is at or above the bound before the child, and below the bound after it.
use std::{borrow::Borrow, collections::VecDeque, fmt::Debug, ops::Bound, sync::Arc};

use xxhash_rust::xxh3::xxh3_64;

use super::{Key, Position, Record};

/// The most records in a leaf, and children of a branch: what a write copies of each while a view is alive.
const FULL: usize = 32;
/// A node with less is merged with the one beside it, if they fit into one.
const SPARSE: usize = 8;
/// Room that a leaf gets at a time, in records.
const LEAF_STEP: usize = 8;

/// What records are in order of.
pub trait Order {
    type Key: Ord + ?Sized;
    /// A key that is kept. The default is the least there is.
    type Bound: Borrow<Self::Key> + Ord + Clone + Default + Debug;

    fn key(record: &Record) -> &Self::Key;
    fn bound(record: &Record) -> Self::Bound;
    /// A byte that tells most keys from one another.
    fn tag(key: &Self::Key) -> u8;

    fn key_of(bound: &Self::Bound) -> &Self::Key {
        bound.borrow()
    }
}

/// In the order of keys, a record for each.
#[derive(Debug, Clone)]
pub struct ByKey;

impl Order for ByKey {
    type Key = [u8];
    type Bound = Key;

    fn key(record: &Record) -> &[u8] {
        record.key()
    }

    fn bound(record: &Record) -> Key {
        Key::from(record.key())
    }

    fn tag(key: &[u8]) -> u8 {
        xxh3_64(key) as u8
    }
}

/// In the order of history.
#[derive(Debug, Clone)]
pub struct ByPosition;

impl Order for ByPosition {
    type Key = Position;
    type Bound = Position;

    fn key(record: &Record) -> &Position {
        record.position()
    }

    fn bound(record: &Record) -> Position {
        *record.position()
    }

    fn tag(position: &Position) -> u8 {
        (position.main as u8).wrapping_add(position.sub as u8)
    }
}

#[derive(Debug, Clone)]
pub struct Sorted<O: Order> {
    root: Node<O::Bound>,
    len: usize,
}

#[derive(Debug, Clone)]
enum Node<B> {
    Leaf(Arc<Leaf>),
    Branch(Arc<Branch<B>>),
}

#[derive(Debug, Clone, Default)]
struct Leaf {
    records: Vec<Record>,
    /// Of each record, the tag of its key.
    tags: [u8; FULL],
}

#[derive(Debug, Clone)]
struct Branch<B> {
    bounds: Vec<B>,
    children: Vec<Node<B>>,
}

impl<O: Order> Default for Sorted<O> {
    fn default() -> Self {
        Sorted { root: Node::Leaf(Arc::default()), len: 0 }
    }
}

impl<O: Order> Sorted<O> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, key: &O::Key) -> Option<&Record> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.find::<O>(key, O::tag(key)).map(|at| &leaf.records[at]),
                Node::Branch(branch) => node = &branch.children[branch.child::<O>(key)],
            }
        }
    }

    /// Puts the record into its place, and returns the one that had it.
    pub fn insert(&mut self, record: Record) -> Option<Record> {
        let (replaced, split) = self.root.insert::<O>(record);
        if let Some((bound, right)) = split {
            let left = std::mem::replace(&mut self.root, Node::Leaf(Arc::default()));
            self.root = Node::Branch(Arc::new(Branch { bounds: vec![bound], children: vec![left, right] }));
        }
        self.len += usize::from(replaced.is_none());
        replaced
    }

    pub fn remove(&mut self, key: &O::Key) -> Option<Record> {
        self.get(key)?; // what is not there is no reason to copy anything
        let removed = self.root.remove::<O>(key);
        while let Node::Branch(branch) = &self.root
            && let [only] = &branch.children[..]
        {
            self.root = only.clone();
        }
        self.len -= 1;
        Some(removed)
    }

    /// The records within bounds, the first of which is not above the second.
    pub fn range<K: Borrow<O::Key>>(&self, low: Bound<K>, high: Bound<K>) -> impl DoubleEndedIterator<Item = &Record> {
        let mut leaves = Leaves { nodes: VecDeque::new() };
        leaves.enter::<O>(&self.root, borrowed::<O, K>(&low), borrowed::<O, K>(&high));
        leaves.flat_map(move |leaf| within::<O>(leaf, borrowed::<O, K>(&low), borrowed::<O, K>(&high)).iter())
    }
}

/// Makes one of records that come in their order, faster than by insertion.
#[derive(Debug)]
pub struct Builder<O: Order> {
    /// The last one, not yet full.
    leaf: Leaf,
    /// Those before it, each with the bound before it.
    leaves: Vec<(O::Bound, Node<O::Bound>)>,
    len: usize,
}

impl<O: Order> Default for Builder<O> {
    fn default() -> Self {
        Builder { leaf: Leaf::default(), leaves: Vec::new(), len: 0 }
    }
}

impl<O: Order> Builder<O> {
    /// The next record, beyond all so far.
    pub fn push(&mut self, record: Record) {
        debug_assert!(self.leaf.records.last().is_none_or(|last| O::key(last) < O::key(&record)));
        if self.leaf.records.len() == FULL {
            self.end_leaf();
        }
        let tag = O::tag(O::key(&record));
        self.leaf.put(self.leaf.records.len(), tag, record);
        self.len += 1;
    }

    fn end_leaf(&mut self) {
        let records = Vec::with_capacity(FULL);
        let leaf = std::mem::replace(&mut self.leaf, Leaf { records, tags: [0; FULL] });
        self.leaves.push((O::bound(&leaf.records[0]), Node::Leaf(Arc::new(leaf))));
    }

    pub fn finish(mut self) -> Sorted<O> {
        if self.len > 0 {
            self.leaf.records.shrink_to_fit();
            self.end_leaf();
        }
        let mut nodes = self.leaves;
        while nodes.len() > 1 {
            let mut below = nodes.into_iter().peekable();
            nodes = Vec::new();
            while below.peek().is_some() {
                let (mut bounds, children): (Vec<_>, Vec<_>) = below.by_ref().take(FULL).unzip();
                let bound = bounds.remove(0);
                nodes.push((bound, Node::Branch(Arc::new(Branch { bounds, children }))));
            }
        }
        let root = nodes.pop().map_or_else(|| Node::Leaf(Arc::default()), |(_, root)| root);
        Sorted { root, len: self.len }
    }
}

/// What an insertion came to: the record replaced, and what was split off with the bound before it.
type Inserted<B> = (Option<Record>, Option<(B, Node<B>)>);

impl<B: Clone> Node<B> {
    /// Records or children.
    fn len(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.records.len(),
            Node::Branch(branch) => branch.children.len(),
        }
    }

    fn insert<O: Order<Bound = B>>(&mut self, record: Record) -> Inserted<B> {
        match self {
            Node::Leaf(leaf) => Arc::make_mut(leaf).insert::<O>(record),
            Node::Branch(branch) => Arc::make_mut(branch).insert::<O>(record),
        }
    }

    /// Removes the record with this key, which is there.
    fn remove<O: Order<Bound = B>>(&mut self, key: &O::Key) -> Record {
        match self {
            Node::Leaf(leaf) => {
                let at = leaf.find::<O>(key, O::tag(key)).expect("it is there");
                Arc::make_mut(leaf).remove(at)
            }
            Node::Branch(branch) => Arc::make_mut(branch).remove::<O>(key),
        }
    }

    /// Takes in what follows after `bound`, a node of the same depth.
    fn append(&mut self, bound: B, right: Node<B>) {
        match (self, right) {
            (Node::Leaf(left), Node::Leaf(right)) => Arc::make_mut(left).append(&right),
            (Node::Branch(left), Node::Branch(right)) => {
                let left = Arc::make_mut(left);
                left.bounds.push(bound);
                left.bounds.extend(right.bounds.iter().cloned());
                left.children.extend(right.children.iter().cloned());
            }
            _ => unreachable!("all leaves are equally deep"),
        }
    }
}

impl<B: Clone> Branch<B> {
    /// The place of the child that a key is below.
    fn child<O: Order<Bound = B>>(&self, key: &O::Key) -> usize {
        self.bounds.partition_point(|bound| O::key_of(bound) <= key)
    }

    fn insert<O: Order<Bound = B>>(&mut self, record: Record) -> Inserted<B> {
        let at = self.child::<O>(O::key(&record));
        let (replaced, split) = self.children[at].insert::<O>(record);
        let Some((bound, mut right)) = split else { return (replaced, None) };
        // Each key may come just before the last, behind a full leaf: then what is split off is one record every time.
        if let Some(next) = self.children.get(at + 1)
            && right.len() + next.len() <= FULL
        {
            right.append(self.bounds[at].clone(), next.clone());
            (self.bounds[at], self.children[at + 1]) = (bound, right);
            return (replaced, None);
        }
        self.bounds.insert(at, bound);
        self.children.insert(at + 1, right);
        if self.children.len() <= FULL {
            return (replaced, None);
        }
        let middle = if at + 2 == self.children.len() { FULL } else { FULL / 2 };
        let right = Branch { bounds: self.bounds.split_off(middle), children: self.children.split_off(middle) };
        let bound = self.bounds.pop().expect("there is one before each child but the first");
        (replaced, Some((bound, Node::Branch(Arc::new(right)))))
    }

    fn remove<O: Order<Bound = B>>(&mut self, key: &O::Key) -> Record {
        let at = self.child::<O>(key);
        let removed = self.children[at].remove::<O>(key);
        if self.children[at].len() < SPARSE {
            let fits = |left: &usize| self.children[*left].len() + self.children[*left + 1].len() <= FULL;
            let pairs = [at.checked_sub(1), Some(at).filter(|at| at + 1 < self.children.len())];
            if let Some(left) = pairs.into_iter().flatten().find(fits) {
                let (bound, right) = (self.bounds.remove(left), self.children.remove(left + 1));
                self.children[left].append(bound, right);
            }
        }
        removed
    }
}

impl Leaf {
    /// Where the record with this key is.
    fn find<O: Order>(&self, key: &O::Key, tag: u8) -> Option<usize> {
        (0..self.records.len()).find(|at| self.tags[*at] == tag && O::key(&self.records[*at]) == key)
    }

    fn insert<O: Order>(&mut self, record: Record) -> Inserted<O::Bound> {
        let (key, tag) = (O::key(&record), O::tag(O::key(&record)));
        if let Some(at) = self.find::<O>(key, tag) {
            return (Some(std::mem::replace(&mut self.records[at], record)), None);
        }
        let at = match self.records.last() {
            // Who appends need not look at any other.
            Some(last) if O::key(last) > key => self.records.partition_point(|other| O::key(other) < key),
            _ => self.records.len(),
        };
        if self.records.len() < FULL {
            self.put(at, tag, record);
            return (None, None);
        }
        // Whoever appends leaves full leaves behind.
        let middle = if at == FULL { FULL } else { FULL / 2 };
        let mut right = self.split_off(middle);
        match at.checked_sub(middle) {
            Some(at) => right.put(at, tag, record),
            None => self.put(at, tag, record),
        }
        self.records.shrink_to_fit();
        (None, Some((O::bound(&right.records[0]), Node::Leaf(Arc::new(right)))))
    }

    fn put(&mut self, at: usize, tag: u8, record: Record) {
        let len = self.records.len();
        if len == self.records.capacity() {
            self.records.reserve_exact(LEAF_STEP.min(FULL - len));
        }
        self.records.insert(at, record);
        self.tags.copy_within(at..len, at + 1);
        self.tags[at] = tag;
    }

    fn remove(&mut self, at: usize) -> Record {
        self.tags.copy_within(at + 1..self.records.len(), at);
        self.records.remove(at)
    }

    fn split_off(&mut self, middle: usize) -> Leaf {
        let mut right = Leaf { records: self.records.split_off(middle), tags: [0; FULL] };
        right.tags[..FULL - middle].copy_from_slice(&self.tags[middle..]);
        right
    }

    /// Takes in what follows; both together are no more than fit.
    fn append(&mut self, right: &Leaf) {
        let (len, more) = (self.records.len(), right.records.len());
        self.records.reserve_exact(more);
        self.records.extend(right.records.iter().cloned());
        self.tags[len..len + more].copy_from_slice(&right.tags[..more]);
    }
}

/// Leaves from either end; branches are opened when it is their turn.
struct Leaves<'a, B> {
    nodes: VecDeque<&'a Node<B>>,
}

impl<'a, B: Clone> Leaves<'a, B> {
    /// Adds what of a node can be within bounds.
    fn enter<O: Order<Bound = B>>(&mut self, node: &'a Node<B>, low: Bound<&O::Key>, high: Bound<&O::Key>) {
        let Node::Branch(branch) = node else { return self.nodes.push_back(node) };
        let child_of = |bound, unbounded| match bound {
            Bound::Included(key) | Bound::Excluded(key) => branch.child::<O>(key),
            Bound::Unbounded => unbounded,
        };
        let (first, last) = (child_of(low, 0), child_of(high, branch.children.len() - 1));
        if first == last {
            return self.enter::<O>(&branch.children[first], low, high);
        }
        self.enter::<O>(&branch.children[first], low, Bound::Unbounded);
        self.nodes.extend(branch.children.get(first + 1..last).into_iter().flatten());
        self.enter::<O>(&branch.children[last], Bound::Unbounded, high);
    }
}

impl<'a, B> Iterator for Leaves<'a, B> {
    type Item = &'a [Record];

    fn next(&mut self) -> Option<&'a [Record]> {
        loop {
            match self.nodes.pop_front()? {
                Node::Leaf(leaf) => return Some(&leaf.records),
                Node::Branch(branch) => branch.children.iter().rev().for_each(|child| self.nodes.push_front(child)),
            }
        }
    }
}

impl<B> DoubleEndedIterator for Leaves<'_, B> {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            match self.nodes.pop_back()? {
                Node::Leaf(leaf) => return Some(&leaf.records),
                Node::Branch(branch) => self.nodes.extend(&branch.children),
            }
        }
    }
}

fn borrowed<O: Order, K: Borrow<O::Key>>(bound: &Bound<K>) -> Bound<&O::Key> {
    match bound {
        Bound::Included(key) => Bound::Included(key.borrow()),
        Bound::Excluded(key) => Bound::Excluded(key.borrow()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

fn within<'a, O: Order>(leaf: &'a [Record], low: Bound<&O::Key>, high: Bound<&O::Key>) -> &'a [Record] {
    let below = |record: &Record| match low {
        Bound::Included(low) => O::key(record) < low,
        Bound::Excluded(low) => O::key(record) <= low,
        Bound::Unbounded => false,
    };
    let above = |record: &Record| match high {
        Bound::Included(high) => O::key(record) > high,
        Bound::Excluded(high) => O::key(record) >= high,
        Bound::Unbounded => false,
    };
    // Most leaves of a long range lie in it as a whole.
    let start = if leaf.first().is_some_and(below) { leaf.partition_point(below) } else { 0 };
    let leaf = &leaf[start..];
    let end = if leaf.last().is_some_and(above) { leaf.partition_point(|record| !above(record)) } else { leaf.len() };
    &leaf[..end]
}

#[cfg(test)]
impl<O: Order> Sorted<O> {
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Record> {
        Leaves { nodes: [&self.root].into() }.flatten()
    }

    /// Checks the invariants in the module's head.
    pub fn check(&self) {
        self.root.check::<O>(&O::Bound::default(), None);
        assert!(self.iter().is_sorted_by(|one, other| O::key(one) < O::key(other)));
        assert_eq!(self.iter().count(), self.len);
    }
}

#[cfg(test)]
impl<B: Ord + Clone> Node<B> {
    /// Everything is at or above one bound and below the other. How deep it goes.
    fn check<O: Order<Bound = B>>(&self, low: &B, high: Option<&B>) -> usize {
        assert!(self.len() <= FULL);
        match self {
            Node::Leaf(leaf) => {
                let inside = |key| O::key_of(low) <= key && high.is_none_or(|high| key < O::key_of(high));
                let tags = leaf.records.iter().map(|record| O::tag(O::key(record)));
                assert!(tags.eq(leaf.tags[..leaf.records.len()].iter().copied()));
                assert!(leaf.records.iter().all(|record| inside(O::key(record))));
                1
            }
            Node::Branch(branch) => {
                assert_eq!(branch.children.len(), branch.bounds.len() + 1);
                let lows = std::iter::once(low).chain(&branch.bounds);
                let highs = branch.bounds.iter().map(Some).chain([high]);
                let depths: Vec<_> = branch
                    .children
                    .iter()
                    .zip(lows.zip(highs))
                    .map(|(child, (low, high))| child.check::<O>(low, high))
                    .collect();
                assert!(depths.iter().all(|depth| *depth == depths[0]));
                depths[0] + 1
            }
        }
    }
}

#[cfg(test)]
mod tests;
