//! Images: all that is durable on a disk, to be kept, compared, and put back on this disk or on another.
use std::{collections::BTreeMap, sync::Arc};

use xxhash_rust::xxh3::Xxh3;

use super::{
    DiskOp, SimDisk,
    content::Content,
    layer::Layer,
    state::{Inode, State},
    tree::{Entry, FileId, Listing, Tree},
};

/// All that is durable on a disk. Copies of it, and the disk itself, share what none of them has changed.
#[derive(Clone, Default)]
pub struct Image(Arc<Durable>);

#[derive(Default)]
struct Durable {
    entries: Listing,
    /// Those that an entry leads to.
    files: BTreeMap<FileId, Layer>,
}

impl Image {
    pub(super) fn new<'a>(tree: &Tree, content: impl Fn(FileId) -> &'a Content) -> Image {
        let entries = tree.listing();
        let named = entries.values().flat_map(BTreeMap::values).filter_map(|entry| match entry {
            Entry::File(file) => Some(*file),
            Entry::Dir(_) => None,
        });
        let files = named.map(|file| (file, content(file).durable().clone())).collect();
        Image(Arc::new(Durable { entries, files }))
    }

    /// Equal for images of equal directories, names and bytes, whenever and wherever they were taken.
    pub fn digest(&self) -> u64 {
        self.digest_where(&|_| true)
    }

    /// The same, but only for the files whose name is one that `counts` do their bytes make a difference.
    pub fn digest_where(&self, counts: &dyn Fn(&str) -> bool) -> u64 {
        let mut hash = Xxh3::new();
        self.digest_dir(0, counts, &mut hash);
        hash.digest()
    }

    fn digest_dir(&self, dir: u64, counts: &dyn Fn(&str) -> bool, hash: &mut Xxh3) {
        for (name, entry) in self.0.entries.get(&dir).into_iter().flatten() {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            match entry {
                Entry::File(file) => {
                    hash.update(b"file");
                    if counts(name) {
                        self.0.files[file].digest(&mut |bytes| hash.update(bytes));
                    }
                }
                Entry::Dir(dir) => {
                    hash.update(b"dir");
                    self.digest_dir(*dir, counts, hash);
                    hash.update(b"end");
                }
            }
        }
    }
}

impl SimDisk {
    /// All that is durable now.
    pub fn image(&self) -> Image {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.image()
        })
    }

    /// From now on the disk holds what the image does, and nothing else: a machine that comes back with last week's
    /// disk. If a process still runs, it is dead.
    pub fn restore(&self, image: &Image) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.restore(image);
        });
    }

    /// A new, empty disk in place of the old one.
    pub fn wipe(&self) {
        self.restore(&Image::default());
    }
}

impl State {
    fn image(&self) -> Image {
        Image::new(&self.tree, |file| self.content(file))
    }

    fn restore(&mut self, image: &Image) {
        self.fence(|_| 0);
        self.crash.end();
        self.tree.restore(&image.0.entries);
        let file = |layer: &Layer| Inode { content: Content::new(layer.clone()), ..Inode::default() };
        self.files = image.0.files.iter().map(|(number, layer)| (*number, file(layer))).collect();
        self.name_files();
        // A number is never used twice, not even by a file that an image holds.
        self.last_file = self.last_file.max(self.files.last_key_value().map_or(0, |(file, _)| *file));
        self.stats.restores += 1;
        self.notes.push(DiskOp::Restored { digest: image.digest() });
    }
}
