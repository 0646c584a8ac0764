//! What is written is read; nothing else reads as it; whatever the bytes are, reading ends.
use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{collection, prelude::*};

use super::{
    page::{FREELIST, HEADER_BYTES, Header, Meta, PAGE_BYTES},
    *,
};

/// Rows by bucket: what a source has, and what a reader tells.
type Content = BTreeMap<Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>>;

const NAMES: &[&str] = &["alarm", "key", "lease", "meta"];

#[derive(Debug, Clone, Default)]
struct Plain(BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>);

impl Source for Plain {
    type Row<'a> = (&'a Vec<u8>, &'a Vec<u8>);

    fn buckets(&self) -> &'static [&'static str] {
        NAMES
    }

    fn rows<'a>(&'a self, bucket: &'static str, after: Option<&[u8]>) -> Rows<'a, Self::Row<'a>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let bounds = (after.map_or(Unbounded, Excluded), Unbounded);
        Box::new(self.0.get(bucket).map(|rows| rows.range::<[u8], _>(bounds)).into_iter().flatten())
    }
}

impl Row for (&Vec<u8>, &Vec<u8>) {
    fn key(&self) -> &[u8] {
        self.0
    }

    fn value_len(&self) -> usize {
        self.1.len()
    }

    fn put_value(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.1);
    }
}

impl Plain {
    fn put(mut self, bucket: &'static str, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Plain {
        self.0.entry(bucket).or_default().insert(key.into(), value.into());
        self
    }

    fn content(&self) -> Content {
        let rows =
            |name: &&'static str| self.rows(name, None).map(|(key, value)| (key.clone(), value.clone())).collect();
        NAMES.iter().map(|name| (name.as_bytes().to_vec(), rows(name))).collect()
    }

    fn file(&self) -> Vec<u8> {
        write(self.clone(), usize::MAX)
    }
}

fn write(source: Plain, chunk: usize) -> Vec<u8> {
    let mut writer = Writer::new(source);
    let mut file = Vec::new();
    while let Some(bytes) = writer.next_chunk(chunk) {
        file.extend(bytes);
    }
    assert_eq!(file.len() as u64, writer.total_len());
    file
}

/// Few rows in every bucket: they all lie in the directory.
fn little() -> Plain {
    let plain = Plain::default().put("alarm", "full", "").put("key", "a", "first").put("key", "b", "second");
    plain.put("meta", "index", vec![7; 8]).put("meta", "term", vec![2; 8])
}

/// A tree with branches of two levels, for its keys are long, and with pages that overflow.
fn large() -> Plain {
    let rows = (0..150u32).map(|n| (n.to_be_bytes().repeat(100), vec![n as u8; if n % 40 == 7 { 9_000 } else { 9 }]));
    Plain(BTreeMap::from([("key", rows.collect())])).put("meta", "index", vec![7; 8])
}

fn read(file: &[u8]) -> Result<(Content, Totals), Damage> {
    let file = Bytes::copy_from_slice(file);
    let mut reader = Reader::new(file.len() as u64);
    let mut content = Content::new();
    // An element or a page a turn, with one more of each for its end.
    for _ in 0..file.len() + 1_000 {
        match reader.pull()? {
            Next::Bytes { offset, len } => reader.give(file.slice(offset as usize..offset as usize + len)),
            Next::Bucket(name) => drop(content.insert(name.to_vec(), Vec::new())),
            Next::Row { bucket, key, value } => {
                content.get_mut(bucket).expect("its bucket began").push((key.to_vec(), value.to_vec()));
            }
            Next::End(totals) => return Ok((content, totals)),
        }
    }
    panic!("reading does not end");
}

#[test]
fn what_is_written_is_read() {
    for plain in [Plain::default(), little(), large()] {
        let file = plain.file();
        let (content, totals) = read(&file).unwrap();
        assert_eq!(content, plain.content());
        let rows = content.values().map(|rows| rows.len() as u64).sum();
        assert_eq!(
            totals,
            Totals { buckets: 4, rows, bytes: file.len() as u64, free_pages: 0, transaction: TRANSACTION }
        );
    }
}

#[test]
fn pages_are_well_filled() {
    // Rows like etcd's for values of 1 KB: three to a page would leave a fifth of it empty.
    let rows = (0..1_000u64).map(|n| (n.to_be_bytes().to_vec(), vec![1; 1_070])).collect();
    let file = Plain(BTreeMap::from([("key", rows)])).file();
    assert!(file.len() < 1_000 * (1_070 + 24) * 108 / 100, "{} bytes", file.len());
}

proptest! {
    #[test]
    fn chunks_do_not_matter(rows in rows(), chunk in 0usize..30_000) {
        let plain = Plain(BTreeMap::from([("key", rows.clone()), ("lease", rows)]));
        let file = plain.file();
        prop_assert_eq!(&write(plain.clone(), chunk), &file);
        prop_assert_eq!(read(&file).unwrap().0, plain.content());
    }
}

fn rows() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let length = prop_oneof![8 => 0usize..200, 2 => 0usize..5_000, 1 => 0usize..40_000];
    let key = prop_oneof![20 => collection::vec(any::<u8>(), 1..30), 1 => collection::vec(any::<u8>(), 1..6_000)];
    collection::btree_map(key, length.prop_map(|length| vec![length as u8; length]), 0..60)
}

#[test]
fn every_cut_is_noticed() {
    let file = little().file();
    for cut in 0..file.len() {
        assert!(read(&file[..cut]).is_err(), "cut at {cut}");
    }
    let file = large().file();
    for cut in (0..file.len()).step_by(61) {
        assert!(read(&file[..cut]).is_err(), "cut at {cut}");
    }
}

/// Pages carry no checksum. So a flipped bit may go unnoticed, but only where it changes one name, key or value, the
/// length of the last value in a page, or nothing at all; or where a bucket's root becomes a page of its own tree. Then
/// the rest of the tree is free, and a file that we wrote has no free pages.
#[test]
fn a_flipped_bit_changes_one_row_or_frees_pages() {
    let little = little().file();
    check_flips(&little, (0..little.len() * 8).filter(|bit| little[bit / 8] != 0 || bit % 8 == 3));
    // The beginning of each page, where it tells of itself and of others.
    let large = large().file();
    check_flips(&large, (0..large.len() * 8).filter(|bit| bit / 8 % PAGE_BYTES < HEADER_BYTES + 160));
}

fn check_flips(file: &[u8], bits: impl Iterator<Item = usize>) {
    let (whole, totals) = read(file).unwrap();
    let (mut noticed, mut changed) = (0, 0);
    let mut bad = file.to_vec();
    for bit in bits {
        bad[bit / 8] ^= 1 << (bit % 8);
        match read(&bad) {
            Err(_) => noticed += 1,
            Ok((_, others)) if others.free_pages > 0 => noticed += 1,
            Ok((content, others)) => {
                // Of the other meta the transaction is the one before.
                assert_eq!(Totals { transaction: totals.transaction, ..others }, totals, "bit {bit}");
                let differences = differences(&whole, &content);
                assert!(differences <= 1, "bit {bit} changes {differences} rows");
                changed += differences;
            }
        }
        bad[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(noticed > 0 && changed > 0, "{noticed} noticed, {changed} changed");
}

/// In how many rows, or names of empty buckets, two contents of as many rows differ.
fn differences(a: &Content, b: &Content) -> usize {
    let flat = |content: &Content| -> Vec<(Vec<u8>, Vec<u8>)> { content.values().flatten().cloned().collect() };
    let (a_rows, b_rows) = (flat(a), flat(b));
    assert_eq!(a_rows.len(), b_rows.len());
    let rows = a_rows.iter().zip(&b_rows).filter(|(a, b)| a != b).count();
    let names = a.keys().zip(b.keys()).filter(|(a, b)| a != b).count();
    assert!(rows == 0 || names == 0);
    rows + names
}

#[test]
fn the_newer_valid_meta_counts() {
    let file = little().file();
    let content = little().content();
    let [mut older, mut newer] = [file.clone(), file.clone()];
    newer[HEADER_BYTES] ^= 1; // the magic number on page 0, of the newer transaction
    older[PAGE_BYTES + HEADER_BYTES] ^= 1;
    assert_eq!(read(&newer).unwrap().0, content);
    assert_eq!(read(&older).unwrap().0, content);
    let both: Vec<u8> = newer[..PAGE_BYTES].iter().chain(&older[PAGE_BYTES..]).copied().collect();
    let error = read(&both).unwrap_err();
    assert!(error.reason.contains("no meta page is valid") && error.reason.contains("magic"), "{error}");
}

/// A file as bbolt writes it where it keeps a list of free pages: `little`'s, with a freelist and free pages behind it.
fn with_freelist(free: &[u64], more_pages: u64) -> Vec<u8> {
    let mut file = little().file();
    let (list, high_water) = (file.len() as u64 / PAGE_BYTES as u64, file.len() as u64 / PAGE_BYTES as u64 + 1);
    let mut meta = Meta::parse(&file, 0, 0).unwrap();
    (meta.freelist, meta.high_water) = (Some(list), high_water + more_pages);
    let mut metas = Vec::new();
    (0..2).for_each(|id| meta.put(id, &mut metas));
    file[..metas.len()].copy_from_slice(&metas);
    Header { id: list, flags: FREELIST, count: free.len() as u16, overflow: 0 }.put(&mut file);
    free.iter().for_each(|id| file.extend(id.to_le_bytes()));
    file.resize((meta.high_water as usize) * PAGE_BYTES, 0);
    file
}

#[test]
fn every_page_is_in_use_or_free_if_a_freelist_says_so() {
    #[track_caller]
    fn check(free: &[u64], more_pages: u64, expected: Result<u64, &str>) {
        match (read(&with_freelist(free, more_pages)), expected) {
            (Ok((content, totals)), Ok(free_pages)) => {
                assert_eq!((content, totals.free_pages), (little().content(), free_pages));
            }
            (Err(error), Err(part)) => assert!(error.reason.contains(part), "{error}"),
            (read, _) => panic!("{read:?}"),
        }
    }
    check(&[], 0, Ok(0)); // pages: metas, the directory, the freelist
    check(&[4, 5], 2, Ok(2));
    check(&[5, 4], 2, Ok(2));
    check(&[4], 2, Err("page 5 is neither"));
    check(&[4, 4], 2, Err("page 4 is free twice"));
    check(&[2, 4, 5], 2, Err("page 2 is in use and free"));
    check(&[3, 4, 5], 2, Err("page 3 is the freelist's own"));
    check(&[4, 5, 6], 2, Err("page 6 is free, of 6 pages"));
    check(&[1, 4, 5], 2, Err("page 1 is free"));
}

/// Numbers that cannot be, in places of their own: each is told with what is wrong and where.
#[test]
fn what_cannot_be_is_told() {
    #[track_caller]
    fn check(spoil: impl FnOnce(&mut [u8]), offset: usize, part: &str) {
        let mut file = large().file();
        spoil(&mut file);
        let error = read(&file).unwrap_err();
        assert_eq!((error.offset, error.reason.contains(part)), (offset as u64, true), "{error}");
    }
    let file = large().file();
    let header = |page: usize| Header::parse(&file[page * PAGE_BYTES..]);
    let root = Meta::parse(&file, 0, 0).unwrap().root as usize;
    let pages = file.len() / PAGE_BYTES;
    let branch = (2..pages).find(|page| header(*page).flags == page::BRANCH && header(*page).id == *page as u64);
    let (first, branch) = (2 * PAGE_BYTES, branch.expect("the tree has branches") * PAGE_BYTES);
    check(|file| file[root * PAGE_BYTES] ^= 1, root * PAGE_BYTES, "says that it is page");
    check(|file| file[first + 8] = 4, first, "flags");
    check(|file| file[first + 10..first + 12].fill(0), first, "empty");
    check(|file| file[root * PAGE_BYTES + 10] = 0, root * PAGE_BYTES, "has no elements, yet something follows");
    check(|file| file[first + 11] = 0xff, first, "do not fit");
    check(|file| file[first + 15] = 1, first, "more, of");
    check(|file| file[first + HEADER_BYTES] = 2, first + HEADER_BYTES, "an element with flags");
    check(|file| file[first + HEADER_BYTES] = 1, first + HEADER_BYTES, "a bucket in a bucket");
    check(|file| file[first + HEADER_BYTES + 4] ^= 1, first + HEADER_BYTES, "does not point to");
    check(|file| file[first + HEADER_BYTES + 8..first + HEADER_BYTES + 12].fill(0), first + HEADER_BYTES, "empty");
    check(|file| file[first + HEADER_BYTES + 15] = 0x80, first + HEADER_BYTES, "too long");
    let element = branch + HEADER_BYTES;
    check(|file| file[element + 8..element + 16].copy_from_slice(&[0xff; 8]), element, "is pointed to");
    let second = element + 16;
    let next = u64::from_le_bytes(file[second + 8..second + 16].try_into().unwrap()) as usize * PAGE_BYTES;
    check(|file| file[first + 12] = 9, next, "reached twice");
    let twice = u64::from_le_bytes(file[element + 8..element + 16].try_into().unwrap()) as usize * PAGE_BYTES;
    check(|file| file.copy_within(element + 8..element + 16, second + 8), twice, "reached twice");
}

/// A directory that points to itself, and to a page of another bucket.
#[test]
fn no_page_is_walked_twice() {
    let file = large().file();
    let root = Meta::parse(&file, 0, 0).unwrap().root;
    let at = root as usize * PAGE_BYTES;
    let key = (0..4).map(|n| at + HEADER_BYTES + n * 16).find(|element| {
        let pos = u32::from_le_bytes(file[element + 4..element + 8].try_into().unwrap()) as usize;
        file[element + pos..].starts_with(b"key")
    });
    let key = key.expect("the bucket is there");
    let value = key + u32::from_le_bytes(file[key + 4..key + 8].try_into().unwrap()) as usize + 3;
    let mut bad = file.clone();
    bad[value..value + 8].copy_from_slice(&root.to_le_bytes());
    let error = read(&bad).unwrap_err();
    assert!(error.reason.contains("reached twice"), "{error}");
}
