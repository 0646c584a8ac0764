//! What stands at the beginning of pages: headers and metas.
use super::Damage;

/// A page's number; its place in the file is this times the size of a page.
pub(super) type PageId = u64;

/// The size of the pages we write, in bytes. Others are read as well.
pub(super) const PAGE_BYTES: usize = 4096;
/// The sizes that pages may have: powers of two from here to there.
pub(super) const PAGE_BYTES_MIN: usize = 1 << 10;
pub(super) const PAGE_BYTES_MAX: usize = 1 << 16;
pub(super) const HEADER_BYTES: usize = 16;
/// Of a branch and of a leaf alike.
pub(super) const ELEMENT_BYTES: usize = 16;
/// A meta with its page's header.
pub(super) const META_BYTES: usize = HEADER_BYTES + 64;
/// The head of a bucket's value.
pub(super) const BUCKET_BYTES: usize = 16;
/// The longest key that bbolt accepts, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 32_768;
/// The longest value that bbolt accepts, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const META: u16 = 0x04;
pub(super) const FREELIST: u16 = 0x10;
/// Flag of a leaf's element: it is a bucket.
pub(super) const BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
const NO_FREELIST: PageId = u64::MAX;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub id: PageId,
    pub flags: u16,
    pub count: u16,
    /// How many pages follow that belong to this one.
    pub overflow: u32,
}

impl Header {
    /// `page` has a header's bytes at least.
    pub fn parse(page: &[u8]) -> Header {
        Header { id: u64_at(page, 0), flags: u16_at(page, 8), count: u16_at(page, 10), overflow: u32_at(page, 12) }
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.overflow.to_le_bytes());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub page_bytes: usize,
    pub root: PageId,
    pub freelist: Option<PageId>,
    /// The first page that was never used.
    pub high_water: PageId,
    pub transaction: u64,
}

impl Meta {
    /// `page` has a meta's bytes at least; it is page `id`, at `offset` in the file.
    pub fn parse(page: &[u8], id: PageId, offset: u64) -> Result<Meta, Damage> {
        let damage = |reason: String| Damage::new(offset, format!("meta page {id}: {reason}"));
        let (header, meta) = (Header::parse(page), &page[HEADER_BYTES..META_BYTES]);
        if header.id != id || header.flags != META {
            return Err(damage(format!("its header says page {} with flags {:#x}", header.id, header.flags)));
        }
        let (magic, version) = (u32_at(meta, 0), u32_at(meta, 4));
        if magic != MAGIC {
            return Err(damage(format!("magic number {magic:#010x}, this is no bbolt file")));
        }
        if version != VERSION {
            return Err(damage(format!("format version {version}")));
        }
        let (stored, computed) = (u64_at(meta, 56), fnv1a(&meta[..56]));
        if stored != computed {
            return Err(damage(format!("checksum {stored:016x} is stored, {computed:016x} computed")));
        }
        let page_bytes = u32_at(meta, 8) as usize;
        if !page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes) {
            return Err(damage(format!("pages of {page_bytes} bytes")));
        }
        let freelist = Some(u64_at(meta, 32)).filter(|id| *id != NO_FREELIST);
        let (root, high_water, transaction) = (u64_at(meta, 16), u64_at(meta, 40), u64_at(meta, 48));
        Ok(Meta { page_bytes, root, freelist, high_water, transaction })
    }

    /// The meta as page `id`, padded to a page.
    pub fn put(&self, id: PageId, out: &mut Vec<u8>) {
        let end = out.len() + self.page_bytes;
        Header { id, flags: META, count: 0, overflow: 0 }.put(out);
        let start = out.len();
        for number in [MAGIC, VERSION, self.page_bytes as u32, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let freelist = self.freelist.unwrap_or(NO_FREELIST);
        for number in [self.root, 0, freelist, self.high_water, self.transaction] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = fnv1a(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.resize(end, 0);
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A set of pages, a bit each.
#[derive(Debug, Default)]
pub(super) struct PageSet {
    bits: Vec<u64>,
}

impl PageSet {
    /// For pages below `high_water`.
    pub fn new(high_water: PageId) -> PageSet {
        PageSet { bits: vec![0; high_water.div_ceil(64) as usize] }
    }

    /// Whether the page is new in the set.
    pub fn insert(&mut self, id: PageId) -> bool {
        let (word, bit) = (&mut self.bits[(id / 64) as usize], 1 << (id % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub fn contains(&self, id: PageId) -> bool {
        self.bits[(id / 64) as usize] & (1 << (id % 64)) != 0
    }

    pub fn len(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}
