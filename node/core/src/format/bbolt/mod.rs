//! bbolt's file format, in which etcd keeps its backend: buckets of rows, each a B+tree of pages.
//!
//! ```text
//! file:    page 0 | page 1 | ... | page high_water-1 | anything
//! page:    id: u64 | flags: u16 | count: u16 | overflow: u32 | body      and `overflow` more pages, all body
//!   meta:     pages 0 and 1; of the valid ones the newer counts
//!             magic: u32 | version: u32 | page size: u32 | 0: u32 | root: u64, 0: u64 | freelist: u64
//!             | high_water: u64 | transaction: u64 | FNV-1a of all this: u64
//!   branch:   count x (pos: u32 | key length: u32 | page: u64), then the keys
//!   leaf:     count x (flags: u32 | pos: u32 | key length: u32 | value length: u32), then keys and values
//!   freelist: count x page: u64; if count is 0xffff, a u64 before them is the count
//! ```
//!
//! All numbers are little-endian. A `pos` counts from its own element; what the elements point to lies in their order
//! and without gaps. The tree at the root, the directory, has an element for each bucket; its value is
//! `root: u64 | sequence: u64`, and if that root is 0, the bucket is small and its only leaf follows right there.
//!
//! etcd on Linux keeps no list of free pages (`freelist` is all ones): what no tree reaches is free.
//!
//! Only metas carry a checksum. So a reader checks whatever the structure tells twice; a changed byte in a key or in a
//! value may still pass here, and is for those who know the rows' meaning, and for a checksum over the file, to notice.
//!
//! Files, caches and locks belong to the shell; this module sees only bytes.
mod page;
mod reader;
mod tree;
mod writer;

#[cfg(test)]
mod tests;

pub use reader::{Next, Reader, Totals};
pub use writer::{Row, Rows, Source, TRANSACTION, Writer};

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset}: {reason}")]
pub struct Damage {
    /// Where in the file, in bytes: the element or the page that is wrong.
    pub offset: u64,
    pub reason: String,
}

impl Damage {
    fn new(offset: u64, reason: impl Into<String>) -> Damage {
        Damage { offset, reason: reason.into() }
    }
}
