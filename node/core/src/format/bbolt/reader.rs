//! Reading a file that may hold anything: it is pulled through, piece by piece, and need not lie in memory.
//!
//! ```text
//! loop {
//!     match reader.pull()? {
//!         Next::Bytes { offset, len } => reader.give(bytes of the file from `offset` on, `len` of them),
//!         Next::Bucket(name) => ...,       buckets in order, the empty ones too
//!         Next::Row { bucket, key, value } => ...,
//!         Next::End(totals) => break,
//!     }
//! }
//! ```
//!
//! Pages are asked for one by one, mostly in the order of the file if it was written in one go, but anywhere in a file
//! that etcd wrote. So the shell reads ahead in large chunks, keeps some of them, and hands out slices.
//!
//! Invariants:
//! - A page is reached once; in the end every page below the high-water mark was reached, or is free, and not both.
//! - Whatever the bytes are, reading ends: each turn takes an element, or a page that was not taken before.
//! - What memory is taken follows from bytes that are there, not from numbers in them.
use bytes::Bytes;

use super::{
    Damage,
    page::{
        BUCKET_BYTES, FREELIST, HEADER_BYTES, Header, META_BYTES, Meta, PAGE_BYTES_MAX, PAGE_BYTES_MIN, PageId,
        PageSet, u64_at,
    },
    tree::{Element, Page, Pointer, Tree, Turn},
};

/// What comes next in a file.
#[derive(Debug)]
pub enum Next<'a> {
    /// These bytes of the file are needed, and go to [`Reader::give`].
    Bytes {
        offset: u64,
        len: usize,
    },
    /// A bucket begins.
    Bucket(&'a [u8]),
    Row {
        bucket: &'a [u8],
        key: &'a [u8],
        value: &'a [u8],
    },
    /// The whole file was read and checked.
    End(Totals),
}

/// What a file comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub buckets: u64,
    /// Of all buckets.
    pub rows: u64,
    /// Bytes below the high-water mark: the file's size as etcd tells it.
    pub bytes: u64,
    /// Pages that no tree reaches. A file that we wrote in one go has none: then some means that a root was damaged.
    pub free_pages: u64,
    /// Of how many transactions it is the outcome: it tells whether somebody wrote to a file since it was made.
    pub transaction: u64,
}

#[derive(Debug)]
pub struct Reader {
    file_bytes: u64,
    want: Option<Want>,
    given: Option<Bytes>,
    /// The first meta, while the second is looked for.
    first: Result<Meta, Damage>,
    meta: Meta,
    reached: PageSet,
    /// As the freelist says, if there is one.
    free: Option<PageSet>,
    directory: Tree,
    bucket: Option<Bucket>,
    totals: Totals,
}

#[derive(Debug)]
struct Bucket {
    name: Bytes,
    tree: Tree,
}

#[derive(Debug, Clone, Copy)]
struct Want {
    offset: u64,
    len: usize,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    FirstMeta,
    /// If the first is unusable, it is looked for at every size that pages may have.
    SecondMeta {
        page_bytes: usize,
    },
    /// A page of a tree or of the freelist: first one page, which tells how many follow, then all of them.
    Page {
        id: PageId,
        whole: bool,
    },
}

/// [`Next`], without what it borrows.
enum Step {
    Bytes { offset: u64, len: usize },
    Bucket,
    Row(Element),
    End(Totals),
}

impl Reader {
    /// For a file of so many bytes. A checksum that follows a snapshot's file is not part of it.
    pub fn new(file_bytes: u64) -> Reader {
        Reader {
            file_bytes,
            want: Some(Want { offset: 0, len: META_BYTES, what: What::FirstMeta }),
            given: None,
            first: Err(Damage::new(0, "meta page 0 was not read")),
            meta: Meta { page_bytes: PAGE_BYTES_MIN, root: 0, freelist: None, high_water: 0, transaction: 0 },
            reached: PageSet::default(),
            free: None,
            directory: Tree::new(Pointer { offset: 0, id: 0 }),
            bucket: None,
            totals: Totals::default(),
        }
    }

    /// The bytes last asked for. Without them, [`Reader::pull`] asks again.
    ///
    /// # Panics
    /// If nothing was asked for, or if they are more or fewer.
    pub fn give(&mut self, bytes: Bytes) {
        let want = self.want.expect("bytes are given when they were asked for");
        assert_eq!(bytes.len(), want.len, "bytes at {}", want.offset);
        self.given = Some(bytes);
    }

    /// What comes next. After an error or the end there is nothing more to ask for.
    pub fn pull(&mut self) -> Result<Next<'_>, Damage> {
        Ok(match self.step()? {
            Step::Bytes { offset, len } => Next::Bytes { offset, len },
            Step::Bucket => Next::Bucket(&self.bucket().name),
            Step::Row(element) => {
                let Bucket { name, tree } = self.bucket();
                let leaf = tree.leaf();
                Next::Row { bucket: name, key: &leaf[element.key], value: &leaf[element.value] }
            }
            Step::End(totals) => Next::End(totals),
        })
    }

    fn bucket(&self) -> &Bucket {
        self.bucket.as_ref().expect("a bucket is at hand")
    }

    fn step(&mut self) -> Result<Step, Damage> {
        loop {
            if let Some(Want { offset, len, what }) = self.want {
                if offset.checked_add(len as u64).is_none_or(|end| end > self.file_bytes) {
                    let reason = format!("the file ends at {} of {len} bytes that are needed", self.file_bytes);
                    return Err(Damage::new(offset, reason));
                }
                let Some(bytes) = self.given.take() else { return Ok(Step::Bytes { offset, len }) };
                self.want = None;
                self.take(what, offset, bytes)?;
            } else if let Some(bucket) = &mut self.bucket {
                match bucket.tree.turn()? {
                    Turn::Page(page) => self.ask_for(page)?,
                    Turn::Element(element) if element.is_bucket => {
                        return Err(Damage::new(element.offset, "a bucket in a bucket"));
                    }
                    Turn::Element(element) => {
                        self.totals.rows += 1;
                        return Ok(Step::Row(element));
                    }
                    Turn::End => self.bucket = None,
                }
            } else {
                match self.directory.turn()? {
                    Turn::Page(page) => self.ask_for(page)?,
                    Turn::Element(element) => {
                        self.bucket = Some(self.open(element)?);
                        self.totals.buckets += 1;
                        return Ok(Step::Bucket);
                    }
                    Turn::End => return self.finish().map(Step::End),
                }
            }
        }
    }

    /// Takes bytes that were asked for.
    fn take(&mut self, what: What, offset: u64, bytes: Bytes) -> Result<(), Damage> {
        match what {
            What::FirstMeta => {
                self.first = Meta::parse(&bytes, 0, 0);
                let page_bytes = self.first.as_ref().map_or(PAGE_BYTES_MIN, |meta| meta.page_bytes);
                self.ask_for_second_meta(page_bytes)
            }
            What::SecondMeta { page_bytes } => {
                let second = Meta::parse(&bytes, 1, offset).and_then(|meta| match meta.page_bytes == page_bytes {
                    true => Ok(meta),
                    false => Err(Damage::new(offset, "meta page 1: it is not where its page size says")),
                });
                match (self.first.clone(), second) {
                    (Ok(first), Ok(second)) if second.transaction > first.transaction => self.begin(second, offset),
                    (Ok(first), _) => self.begin(first, 0),
                    (Err(_), Ok(second)) => self.begin(second, offset),
                    (Err(_), Err(_)) => self.ask_for_second_meta(page_bytes * 2),
                }
            }
            What::Page { id, whole } => self.take_page(id, whole, offset, bytes),
        }
    }

    fn ask_for_second_meta(&mut self, page_bytes: usize) -> Result<(), Damage> {
        let offset = page_bytes as u64;
        let there = page_bytes <= PAGE_BYTES_MAX && offset + META_BYTES as u64 <= self.file_bytes;
        match &self.first {
            Err(first) if !there => Err(Damage::new(0, format!("no meta page is valid: {}", first.reason))),
            _ => {
                self.want = Some(Want { offset, len: META_BYTES, what: What::SecondMeta { page_bytes } });
                Ok(())
            }
        }
    }

    /// Goes on from the meta at `offset`.
    fn begin(&mut self, meta: Meta, offset: u64) -> Result<(), Damage> {
        let file_pages = self.file_bytes / meta.page_bytes as u64;
        if meta.high_water > file_pages {
            let reason = format!("{} pages should be there, the file has {file_pages}", meta.high_water);
            return Err(Damage::new(offset, reason));
        }
        if meta.high_water < 3 {
            return Err(Damage::new(offset, format!("a file of {} pages has no room for a tree", meta.high_water)));
        }
        self.meta = meta;
        self.reached = PageSet::new(meta.high_water);
        self.totals.bytes = meta.high_water * meta.page_bytes as u64;
        self.reached.insert(0);
        self.reached.insert(1);
        self.directory = Tree::new(Pointer { offset, id: meta.root });
        match meta.freelist {
            Some(id) => self.ask_for(Pointer { offset, id }),
            None => Ok(()),
        }
    }

    fn ask_for(&mut self, Pointer { offset, id }: Pointer) -> Result<(), Damage> {
        let page_bytes = self.meta.page_bytes;
        if id < 2 || id >= self.meta.high_water {
            return Err(Damage::new(offset, format!("page {id} is pointed to, of {} pages", self.meta.high_water)));
        }
        let what = What::Page { id, whole: false };
        self.want = Some(Want { offset: id * page_bytes as u64, len: page_bytes, what });
        Ok(())
    }

    fn take_page(&mut self, id: PageId, whole: bool, offset: u64, bytes: Bytes) -> Result<(), Damage> {
        let header = Header::parse(&bytes);
        if !whole {
            self.reach(id, &header, offset)?;
            if header.overflow > 0 {
                let len = (header.overflow as usize + 1) * self.meta.page_bytes;
                self.want = Some(Want { offset, len, what: What::Page { id, whole: true } });
                return Ok(());
            }
        }
        if self.meta.freelist == Some(id) {
            return self.take_freelist(&header, offset, &bytes);
        }
        let page = Page { bytes, offset, inline: false };
        match &mut self.bucket {
            Some(bucket) => bucket.tree.enter(page),
            None => self.directory.enter(page),
        }
    }

    /// Marks a page and what follows it as reached.
    fn reach(&mut self, id: PageId, header: &Header, offset: u64) -> Result<(), Damage> {
        if header.id != id {
            return Err(Damage::new(offset, format!("page {id} says that it is page {}", header.id)));
        }
        let end = id + u64::from(header.overflow) + 1;
        if end > self.meta.high_water {
            let reason = format!("page {id} has {} more, of {} pages", header.overflow, self.meta.high_water);
            return Err(Damage::new(offset, reason));
        }
        for part in id..end {
            if !self.reached.insert(part) {
                return Err(Damage::new(offset, format!("page {part} is reached twice")));
            }
            if self.free.as_ref().is_some_and(|free| free.contains(part)) {
                return Err(Damage::new(offset, format!("page {part} is in use and free")));
            }
        }
        Ok(())
    }

    fn take_freelist(&mut self, header: &Header, offset: u64, page: &[u8]) -> Result<(), Damage> {
        let damage = |at: usize, reason: String| Damage::new(offset + at as u64, reason);
        if header.flags != FREELIST {
            return Err(damage(0, format!("a page with flags {:#x} is no freelist", header.flags)));
        }
        let room = (page.len() - HEADER_BYTES) / 8;
        let (start, count) = match header.count {
            u16::MAX => (HEADER_BYTES + 8, u64_at(page, HEADER_BYTES)),
            count => (HEADER_BYTES, u64::from(count)),
        };
        let room = room - (start - HEADER_BYTES) / 8;
        let count = usize::try_from(count).ok().filter(|count| *count <= room);
        let count = count.ok_or_else(|| damage(0, "the freelist does not fit in its page".into()))?;
        let mut free = PageSet::new(self.meta.high_water);
        for at in (start..).step_by(8).take(count) {
            let id = u64_at(page, at);
            if id < 2 || id >= self.meta.high_water {
                return Err(damage(at, format!("page {id} is free, of {} pages", self.meta.high_water)));
            }
            if !free.insert(id) {
                return Err(damage(at, format!("page {id} is free twice")));
            }
            if self.reached.contains(id) {
                return Err(damage(at, format!("page {id} is the freelist's own, and free")));
            }
        }
        self.free = Some(free);
        Ok(())
    }

    /// Opens the bucket that an element of the directory names.
    fn open(&self, element: Element) -> Result<Bucket, Damage> {
        let damage = |reason: &str| Err(Damage::new(element.offset, reason));
        if !element.is_bucket {
            return damage("a row outside of all buckets");
        }
        let leaf = self.directory.leaf();
        let (name, value) = (leaf.slice(element.key), leaf.slice(element.value.clone()));
        if value.len() < BUCKET_BYTES {
            return damage("a bucket without a root");
        }
        let tree = match u64_at(&value, 0) {
            0 if value.len() < BUCKET_BYTES + HEADER_BYTES => return damage("a small bucket without its leaf"),
            0 => {
                let offset = self.directory.leaf_offset() + (element.value.start + BUCKET_BYTES) as u64;
                Tree::inline(Page { bytes: value.slice(BUCKET_BYTES..), offset, inline: true })?
            }
            id if value.len() == BUCKET_BYTES => Tree::new(Pointer { offset: element.offset, id }),
            _ => return damage("a bucket with a root and a leaf"),
        };
        Ok(Bucket { name, tree })
    }

    /// Accounts for every page.
    fn finish(&mut self) -> Result<Totals, Damage> {
        let high_water = self.meta.high_water;
        if let Some(free) = &self.free {
            let lost = (2..high_water).find(|id| !self.reached.contains(*id) && !free.contains(*id));
            if let Some(id) = lost {
                let offset = id * self.meta.page_bytes as u64;
                return Err(Damage::new(offset, format!("page {id} is neither in use nor free")));
            }
        }
        self.totals.free_pages = high_water - self.reached.len();
        self.totals.transaction = self.meta.transaction;
        Ok(self.totals)
    }
}
