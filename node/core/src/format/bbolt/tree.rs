//! The way through one tree, from its first leaf to its last, and the checks on the way.
//!
//! Invariants:
//! - Every key is at or above the key under which its page hangs, and below the next one. With keys ascending in each
//!   page, they ascend in the whole tree.
//! - What elements point to lies in their order and without gaps, so no byte is handed out twice.
use std::ops::Range;

use bytes::Bytes;

use super::{
    Damage,
    page::{
        BRANCH, BUCKET, ELEMENT_BYTES, HEADER_BYTES, Header, KEY_BYTES_MAX, LEAF, PageId, VALUE_BYTES_MAX, u32_at,
        u64_at,
    },
};

/// How many pages lie between a root and a leaf at most. A tree of 2^64 rows needs fewer.
const DEPTH_MAX: usize = 64;

/// A page with its overflow, or a small bucket's leaf.
#[derive(Debug)]
pub(super) struct Page {
    pub bytes: Bytes,
    /// Where it begins in the file.
    pub offset: u64,
    /// Whether it is a leaf in a bucket's value, where it must fill the value.
    pub inline: bool,
}

/// What comes next in a tree.
#[derive(Debug)]
pub(super) enum Turn {
    /// This page, to be handed in by [`Tree::enter`].
    Page(Pointer),
    Element(Element),
    End,
}

/// Something in the file that refers to a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointer {
    /// Where it stands in the file.
    pub offset: u64,
    pub id: PageId,
}

/// An element of the leaf at hand, by its place in it.
#[derive(Debug)]
pub(super) struct Element {
    /// Where it stands in the file.
    pub offset: u64,
    pub is_bucket: bool,
    pub key: Range<usize>,
    pub value: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Tree {
    /// The root, until it is asked for.
    root: Option<Pointer>,
    /// From the root to the leaf at hand.
    branches: Vec<Branch>,
    leaf: Option<Leaf>,
}

#[derive(Debug)]
struct Branch {
    children: Vec<Child>,
    /// One past the child at hand.
    next: usize,
    bounds: Bounds,
}

#[derive(Debug)]
struct Child {
    key: Vec<u8>,
    page: Pointer,
}

/// Where the keys of a page lie.
#[derive(Debug, Clone, Default)]
struct Bounds {
    floor: Option<Vec<u8>>,
    ceiling: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Leaf {
    page: Page,
    count: usize,
    next: usize,
    /// Where the next element's key and value must begin.
    data: usize,
    last: Range<usize>,
    bounds: Bounds,
}

impl Tree {
    pub fn new(root: Pointer) -> Tree {
        Tree { root: Some(root), branches: Vec::new(), leaf: None }
    }

    /// A tree that is one leaf.
    pub fn inline(page: Page) -> Result<Tree, Damage> {
        let mut tree = Tree { root: None, branches: Vec::new(), leaf: None };
        let header = Header::parse(&page.bytes);
        if (header.id, header.flags, header.overflow) != (0, LEAF, 0) {
            return Err(Damage::new(page.offset, format!("{header:?} is no small bucket's leaf")));
        }
        tree.enter(page)?;
        Ok(tree)
    }

    pub fn turn(&mut self) -> Result<Turn, Damage> {
        if let Some(root) = self.root.take() {
            return Ok(Turn::Page(root));
        }
        if let Some(leaf) = &mut self.leaf {
            if let Some(element) = leaf.element()? {
                return Ok(Turn::Element(element));
            }
            self.leaf = None;
        }
        while let Some(branch) = self.branches.last_mut() {
            if let Some(child) = branch.children.get(branch.next) {
                branch.next += 1;
                return Ok(Turn::Page(child.page));
            }
            self.branches.pop();
        }
        Ok(Turn::End)
    }

    /// The bytes of the leaf at hand, to which elements refer.
    pub fn leaf(&self) -> &Bytes {
        &self.leaf.as_ref().expect("an element is of the leaf at hand").page.bytes
    }

    /// Where that leaf begins in the file.
    pub fn leaf_offset(&self) -> u64 {
        self.leaf.as_ref().expect("an element is of the leaf at hand").page.offset
    }

    /// Takes the page that was asked for, whole and with the header that its place demands.
    pub fn enter(&mut self, page: Page) -> Result<(), Damage> {
        let header = Header::parse(&page.bytes);
        let bounds = self.branches.last().map_or_else(Bounds::default, Branch::bounds);
        let (count, hangs) = (usize::from(header.count), !self.branches.is_empty());
        let data = HEADER_BYTES + count * ELEMENT_BYTES;
        if data > page.bytes.len() {
            return Err(Damage::new(page.offset, format!("{count} elements do not fit in the page")));
        }
        if count == 0 && (header.flags == BRANCH || hangs) {
            return Err(Damage::new(page.offset, "a page in the midst of a tree is empty"));
        }
        // bbolt leaves zeros behind what it writes.
        if count == 0 && page.bytes[data..].iter().take(ELEMENT_BYTES).any(|byte| *byte != 0) {
            return Err(Damage::new(page.offset, "a page has no elements, yet something follows"));
        }
        match header.flags {
            BRANCH if self.branches.len() == DEPTH_MAX => {
                Err(Damage::new(page.offset, format!("the tree is deeper than {DEPTH_MAX} pages")))
            }
            BRANCH => {
                self.branches.push(Branch::parse(&page, count, bounds)?);
                Ok(())
            }
            LEAF => {
                self.leaf = Some(Leaf { page, count, next: 0, data, last: 0..0, bounds });
                Ok(())
            }
            flags => Err(Damage::new(page.offset, format!("a page with flags {flags:#x} is no part of a tree"))),
        }
    }
}

impl Branch {
    fn parse(page: &Page, count: usize, bounds: Bounds) -> Result<Branch, Damage> {
        let mut data = HEADER_BYTES + count * ELEMENT_BYTES;
        let mut children: Vec<Child> = Vec::with_capacity(count);
        for at in (HEADER_BYTES..).step_by(ELEMENT_BYTES).take(count) {
            let offset = page.offset + at as u64;
            let damage = |reason: &str| Damage::new(offset, reason);
            let (pos, length) = (u32_at(&page.bytes, at), u32_at(&page.bytes, at + 4));
            let key = place(&page.bytes, at, pos, data, length as usize).map_err(damage)?;
            data = key.end;
            let key = &page.bytes[key];
            check_key(key, children.last().map(|child| &child.key[..]), &bounds).map_err(damage)?;
            children.push(Child { key: key.to_vec(), page: Pointer { offset, id: u64_at(&page.bytes, at + 8) } });
        }
        Ok(Branch { children, next: 0, bounds })
    }

    /// Of the child at hand.
    fn bounds(&self) -> Bounds {
        let ceiling = self.children.get(self.next).map(|child| child.key.clone());
        Bounds {
            floor: Some(self.children[self.next - 1].key.clone()),
            ceiling: ceiling.or_else(|| self.bounds.ceiling.clone()),
        }
    }
}

impl Leaf {
    fn element(&mut self) -> Result<Option<Element>, Damage> {
        let bytes = &self.page.bytes;
        if self.next == self.count {
            return match self.page.inline && self.data != bytes.len() {
                true => Err(Damage::new(self.page.offset, "a small bucket's leaf does not fill its value")),
                false => Ok(None),
            };
        }
        let at = HEADER_BYTES + self.next * ELEMENT_BYTES;
        let offset = self.page.offset + at as u64;
        let damage = |reason: &str| Damage::new(offset, reason);
        let [flags, pos, key_length, value_length] = [0, 4, 8, 12].map(|field| u32_at(bytes, at + field));
        if flags & !BUCKET != 0 {
            return Err(Damage::new(offset, format!("an element with flags {flags:#x}")));
        }
        let (key_length, value_length) = (key_length as usize, value_length as usize);
        if value_length > VALUE_BYTES_MAX {
            return Err(damage("a value is too long"));
        }
        let both = place(bytes, at, pos, self.data, key_length + value_length).map_err(damage)?;
        let (key, value) = (both.start..both.start + key_length, both.start + key_length..both.end);
        let last = Some(&bytes[self.last.clone()]).filter(|last| !last.is_empty());
        check_key(&bytes[key.clone()], last, &self.bounds).map_err(damage)?;
        (self.next, self.data, self.last) = (self.next + 1, both.end, key.clone());
        Ok(Some(Element { offset, is_bucket: flags == BUCKET, key, value }))
    }
}

/// Where the `length` bytes are that an element at `at` points to; they must begin at `expected`.
fn place(page: &[u8], at: usize, pos: u32, expected: usize, length: usize) -> Result<Range<usize>, &'static str> {
    if at + pos as usize != expected {
        return Err("an element does not point to where the one before it ends");
    }
    let place = expected..expected + length;
    if place.end > page.len() { Err("an element ends past its page") } else { Ok(place) }
}

fn check_key(key: &[u8], last: Option<&[u8]>, bounds: &Bounds) -> Result<(), &'static str> {
    if key.is_empty() {
        Err("a key is empty")
    } else if key.len() > KEY_BYTES_MAX {
        Err("a key is too long")
    } else if last.is_some_and(|last| last >= key) {
        Err("a key is not above the one before it")
    } else if last.is_none() && bounds.floor.as_deref().is_some_and(|floor| floor > key) {
        Err("a key is below the one under which its page hangs")
    } else if bounds.ceiling.as_deref().is_some_and(|ceiling| ceiling <= key) {
        Err("a key is not below the one under which the next page hangs")
    } else {
        Ok(())
    }
}
