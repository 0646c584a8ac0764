//! Writing a whole file at once, strictly forward, from rows that come in order.
//!
//! The metas come first and name the root and the high-water mark, which are known last. So the rows are gone through
//! twice: first only measured, then written. Both passes take the same steps; the first one's pages have no bytes.
//!
//! ```text
//! meta | meta | leaf leaf leaf branch leaf leaf leaf branch branch | ... | directory
//! ```
//!
//! A branch is written as soon as it is full, so what is kept between pages is one unfinished page a level: neither
//! pass needs memory that grows with the file. The second can be stopped after any row, and its state, which owns the
//! source, be moved to another thread.
//!
//! Invariants:
//! - Equal sources give equal bytes, however they are cut into chunks.
//! - A source gives the same rows each time. If not, the writer panics rather than finish a file that is damaged.
use super::page::{
    BRANCH, BUCKET, BUCKET_BYTES, ELEMENT_BYTES, HEADER_BYTES, Header, KEY_BYTES_MAX, LEAF, Meta, PAGE_BYTES, PageId,
    VALUE_BYTES_MAX,
};

/// The size up to which a bucket's only leaf is kept in the directory, in bytes. bbolt's.
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// A leaf that is less full than this many sixteenths takes another page, as its overflow, rather than end: rows of
/// a third of a page would leave much of each page empty.
const FILL_SIXTEENTHS: usize = 15;
/// The size from which a leaf ends however full it is, in bytes.
const LEAF_BYTES: usize = 4 * PAGE_BYTES;
/// The transaction of the newer meta, by which a file is known that nobody has written to since: no file of bbolt's own
/// making gets there ("detcd", and a zero). Its page is the first, as it must be for an even number: the next transaction
/// then overwrites the other meta.
pub const TRANSACTION: u64 = u64::from_be_bytes(*b"\0\0detcd\0");

/// A row to be written.
pub trait Row {
    fn key(&self) -> &[u8];
    fn value_len(&self) -> usize;
    /// Appends the value.
    fn put_value(&self, out: &mut Vec<u8>);
}

pub type Rows<'a, R> = Box<dyn Iterator<Item = R> + 'a>;

/// Rows to be written, in the order of their keys; the same ones each time.
pub trait Source {
    type Row<'a>: Row
    where
        Self: 'a;

    /// The buckets' names, in ascending order.
    fn buckets(&self) -> &'static [&'static str];

    /// The rows of a bucket, from the first one above `after` on.
    fn rows<'a>(&'a self, bucket: &'static str, after: Option<&[u8]>) -> Rows<'a, Self::Row<'a>>;
}

/// See the module's head.
#[derive(Debug)]
pub struct Writer<S> {
    source: S,
    pages: Pages,
    /// The bucket to be written, by its place among the source's.
    bucket: usize,
    /// Its last row that was written.
    after: Option<Vec<u8>>,
    expected: Extent,
}

/// Where a file's directory begins and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    root: PageId,
    high_water: PageId,
}

impl<S: Source> Writer<S> {
    /// Measures the rows; takes as long as it takes to look at each.
    pub fn new(source: S) -> Writer<S> {
        let mut pages = Pages::new(None);
        for bucket in source.buckets() {
            source.rows(bucket, None).for_each(|row| pages.row(&row));
            pages.end_bucket(bucket);
        }
        let expected = pages.end();
        let Extent { root, high_water } = expected;
        let mut bytes = Vec::new();
        for id in 0..2 {
            let meta = Meta { page_bytes: PAGE_BYTES, root, freelist: None, high_water, transaction: TRANSACTION - id };
            meta.put(id, &mut bytes);
        }
        Writer { source, pages: Pages::new(Some(bytes)), bucket: 0, after: None, expected }
    }

    /// The file's size in bytes.
    pub fn total_len(&self) -> u64 {
        self.expected.high_water * PAGE_BYTES as u64
    }

    /// The next piece of the file, of so many bytes or a little more, or what is left of it; `None` after the last.
    pub fn next_chunk(&mut self, at_least: usize) -> Option<Vec<u8>> {
        while let Some(name) = self.source.buckets().get(self.bucket) {
            let after = self.after.take();
            for row in self.source.rows(name, after.as_deref()) {
                self.pages.row(&row);
                if self.pages.written() >= at_least.max(1) {
                    self.after = Some(row.key().to_vec());
                    return self.pages.take();
                }
            }
            self.pages.end_bucket(name);
            self.bucket += 1;
            if self.bucket == self.source.buckets().len() {
                assert_eq!(self.pages.end(), self.expected, "the source changed between the passes");
            }
        }
        self.pages.take()
    }
}

/// The pages of a file, one after the other.
#[derive(Debug)]
struct Pages {
    /// What is written and not taken yet; `None` if pages are only measured.
    out: Option<Vec<u8>>,
    next: PageId,
    leaf: Leaf,
    /// The unfinished branches above it, lowest first.
    branches: Vec<Branch>,
    directory: Leaf,
}

/// An unfinished leaf.
#[derive(Debug, Default)]
struct Leaf {
    count: usize,
    /// With header and elements.
    bytes: usize,
    first: Vec<u8>,
    /// Elements as in the file, but each `pos` counts from the first key.
    elements: Vec<u8>,
    data: Vec<u8>,
}

/// An unfinished branch.
#[derive(Debug, Default)]
struct Branch {
    children: Vec<PageId>,
    /// Where in `keys` each child's key ends.
    ends: Vec<usize>,
    keys: Vec<u8>,
}

impl Pages {
    fn new(out: Option<Vec<u8>>) -> Pages {
        Pages { out, next: 2, leaf: Leaf::default(), branches: Vec::new(), directory: Leaf::default() }
    }

    fn written(&self) -> usize {
        self.out.as_ref().map_or(0, Vec::len)
    }

    /// What is written, in exchange for room for as much.
    fn take(&mut self) -> Option<Vec<u8>> {
        let out = self.out.as_mut().filter(|out| !out.is_empty())?;
        let room = Vec::with_capacity(out.len());
        Some(std::mem::replace(out, room))
    }

    fn row(&mut self, row: &impl Row) {
        let value_len = row.value_len();
        if self.leaf.is_full(row.key().len() + value_len) {
            self.end_leaf();
        }
        self.leaf.push(0, row.key(), value_len, self.out.is_some().then_some(|out: &mut Vec<u8>| row.put_value(out)));
    }

    /// Ends the bucket whose rows came, and enters it into the directory.
    fn end_bucket(&mut self, name: &str) {
        let mut value = Vec::with_capacity(BUCKET_BYTES);
        if self.branches.is_empty() && self.leaf.count == 0 {
            self.leaf.bytes = HEADER_BYTES; // an empty leaf is a leaf
        }
        if self.branches.is_empty() && self.leaf.bytes <= INLINE_BYTES_MAX {
            let leaf = std::mem::take(&mut self.leaf);
            value.resize(BUCKET_BYTES, 0);
            match self.out {
                Some(_) => leaf.put(0, 0, &mut value),
                None => value.resize(BUCKET_BYTES + leaf.bytes, 0),
            }
        } else {
            let root = self.end_tree();
            value.extend_from_slice(&root.to_le_bytes());
            value.resize(BUCKET_BYTES, 0);
        }
        let put = self.out.is_some().then_some(|out: &mut Vec<u8>| out.extend_from_slice(&value));
        self.directory.push(BUCKET, name.as_bytes(), value.len(), put);
    }

    /// Ends the file.
    fn end(&mut self) -> Extent {
        let root = self.next;
        let directory = std::mem::take(&mut self.directory);
        self.put_leaf(&directory);
        Extent { root, high_water: self.next }
    }

    /// Ends all that is unfinished, and returns the root.
    fn end_tree(&mut self) -> PageId {
        if self.leaf.count > 0 {
            self.end_leaf();
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.branches.len();
            if let ([root], true) = (&self.branches[level].children[..], top) {
                let root = *root;
                self.branches.clear();
                return root;
            }
            if !self.branches[level].children.is_empty() {
                self.end_branch(level);
            }
            level += 1;
        }
    }

    fn end_leaf(&mut self) {
        let mut leaf = std::mem::take(&mut self.leaf);
        let id = self.put_leaf(&leaf);
        self.hang(0, &leaf.first, id);
        leaf.clear();
        self.leaf = leaf; // its memory serves the next one
    }

    fn put_leaf(&mut self, leaf: &Leaf) -> PageId {
        let (id, pages) = (self.next, leaf.bytes.max(1).div_ceil(PAGE_BYTES));
        if let Some(out) = &mut self.out {
            let end = out.len() + pages * PAGE_BYTES;
            leaf.put(id, pages as u32 - 1, out);
            out.resize(end, 0);
        }
        self.next += pages as u64;
        id
    }

    /// Hangs a page, whose first key is given, into the branch of this level.
    fn hang(&mut self, level: usize, first: &[u8], id: PageId) {
        if level == self.branches.len() {
            self.branches.push(Branch::default());
        }
        if self.branches[level].is_full(first.len()) {
            self.end_branch(level);
        }
        self.branches[level].push(first, id);
    }

    fn end_branch(&mut self, level: usize) {
        let branch = std::mem::take(&mut self.branches[level]);
        let (id, pages) = (self.next, branch.bytes().div_ceil(PAGE_BYTES));
        if let Some(out) = &mut self.out {
            let end = out.len() + pages * PAGE_BYTES;
            branch.put(id, pages as u32 - 1, out);
            out.resize(end, 0);
        }
        self.next += pages as u64;
        self.hang(level + 1, branch.first(), id);
    }
}

impl Leaf {
    /// Whether a key and a value of so many bytes belong in the next leaf.
    fn is_full(&self, more: usize) -> bool {
        let room = self.bytes.next_multiple_of(PAGE_BYTES);
        let fits = self.bytes + ELEMENT_BYTES + more <= room;
        let well_filled = self.bytes * 16 >= room * FILL_SIXTEENTHS || room >= LEAF_BYTES;
        self.count > 0 && !fits && well_filled
    }

    /// `put` appends the value, if it is to be written at all.
    fn push(&mut self, flags: u32, key: &[u8], value_len: usize, put: Option<impl FnOnce(&mut Vec<u8>)>) {
        assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of {} bytes", key.len());
        assert!(value_len <= VALUE_BYTES_MAX, "a value of {value_len} bytes");
        if self.count == 0 {
            self.bytes = HEADER_BYTES;
            self.first.extend_from_slice(key);
        }
        self.count += 1;
        self.bytes += ELEMENT_BYTES + key.len() + value_len;
        let Some(put) = put else { return };
        let pos = self.data.len();
        self.data.extend_from_slice(key);
        put(&mut self.data);
        assert_eq!(self.data.len(), pos + key.len() + value_len, "a value is as long as it said");
        for number in [flags, pos as u32, key.len() as u32, value_len as u32] {
            self.elements.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn clear(&mut self) {
        (self.count, self.bytes) = (0, 0);
        [&mut self.first, &mut self.elements, &mut self.data].into_iter().for_each(Vec::clear);
    }

    fn put(&self, id: PageId, overflow: u32, out: &mut Vec<u8>) {
        let count = u16::try_from(self.count).expect("a leaf ends long before");
        Header { id, flags: LEAF, count, overflow }.put(out);
        for (at, element) in self.elements.chunks_exact(ELEMENT_BYTES).enumerate() {
            let (flags, pos, lengths) = (&element[..4], &element[4..8], &element[8..]);
            let pos = u32::from_le_bytes(pos.try_into().expect("four bytes"));
            let elements_left = (self.count - at) * ELEMENT_BYTES;
            out.extend_from_slice(flags);
            out.extend_from_slice(&(pos + elements_left as u32).to_le_bytes());
            out.extend_from_slice(lengths);
        }
        out.extend_from_slice(&self.data);
    }
}

impl Branch {
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.children.len() * ELEMENT_BYTES + self.keys.len()
    }

    /// Two children at least, or the tree would never end in one root.
    fn is_full(&self, more: usize) -> bool {
        self.children.len() >= 2 && self.bytes() + ELEMENT_BYTES + more > PAGE_BYTES
    }

    fn push(&mut self, first: &[u8], id: PageId) {
        self.children.push(id);
        self.keys.extend_from_slice(first);
        self.ends.push(self.keys.len());
    }

    fn first(&self) -> &[u8] {
        &self.keys[..self.ends[0]]
    }

    fn put(&self, id: PageId, overflow: u32, out: &mut Vec<u8>) {
        let count = self.children.len();
        let header = Header { id, flags: BRANCH, count: count as u16, overflow };
        header.put(out);
        let mut start = 0;
        for (at, (child, end)) in self.children.iter().zip(&self.ends).enumerate() {
            let pos = (count - at) * ELEMENT_BYTES + start;
            out.extend_from_slice(&(pos as u32).to_le_bytes());
            out.extend_from_slice(&((end - start) as u32).to_le_bytes());
            out.extend_from_slice(&child.to_le_bytes());
            start = *end;
        }
        out.extend_from_slice(&self.keys);
    }
}
