//! Directories: which names are durable, which are only there, and what a power loss leaves of them.
//!
//! A change of entries (create, rename, remove) is pending until its directory is synced. A rename is one change: done
//! or not done. It lies in two directories, and syncing either of them makes it durable, as a journal does.
//! A change whose sync failed is clean: no later sync makes it durable by itself, only with one that depends on it.
//!
//! Invariant: `live` is `durable` with all pending changes applied, in order. A change depends on every earlier one
//! that touches a name of its own: it is never durable, nor survives a power loss, without them.
use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    path::{Component, Path},
};

use crate::seed::Rng;

pub type FileId = u64;
pub type DirId = u64;
const ROOT: DirId = 0;
/// An entry's place: a directory and a name in it.
type Place = (DirId, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    File(FileId),
    Dir(DirId),
}

#[derive(Clone, Default)]
struct Dir {
    live: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
}

/// A create has only `link`, a remove only `unlink`, a rename both.
#[derive(Clone)]
struct Change {
    unlink: Option<Place>,
    link: Option<(Place, Entry)>,
    /// A sync of it failed.
    clean: bool,
}

/// The entries of directories, by their numbers.
pub type Listing = BTreeMap<DirId, BTreeMap<String, Entry>>;

impl Change {
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.unlink.iter().chain(self.link.iter().map(|(place, _)| place))
    }
}

#[derive(Clone)]
pub struct Tree {
    dirs: BTreeMap<DirId, Dir>,
    pending: Vec<Change>,
    last_dir: DirId,
}

impl Tree {
    pub fn new() -> Tree {
        Tree { dirs: BTreeMap::from([(ROOT, Dir::default())]), pending: Vec::new(), last_dir: ROOT }
    }

    /// All that is durable.
    pub fn listing(&self) -> Listing {
        let (mut listing, mut next) = (Listing::new(), vec![ROOT]);
        while let Some(dir) = next.pop() {
            let entries = self.dirs[&dir].durable.clone();
            next.extend(entries.values().filter_map(|entry| match entry {
                Entry::Dir(dir) => Some(*dir),
                Entry::File(_) => None,
            }));
            listing.insert(dir, entries);
        }
        listing
    }

    /// From now on there is what `listing` says, and all of it is durable.
    pub fn restore(&mut self, listing: &Listing) {
        self.pending.clear();
        let dir = |entries: &BTreeMap<String, Entry>| Dir { live: entries.clone(), durable: entries.clone() };
        self.dirs = listing.iter().map(|(id, entries)| (*id, dir(entries))).collect();
        self.dirs.entry(ROOT).or_default();
        // A number is never used twice, not even by a directory that an image holds.
        self.last_dir = self.last_dir.max(*self.dirs.last_key_value().expect("there is a root").0);
    }

    /// Every file that a process can find, by its path, in the order of the paths' names.
    pub fn walk(&self) -> Vec<(String, FileId)> {
        let mut found = Vec::new();
        self.walk_from(ROOT, "", &mut |path, entry| {
            if let Entry::File(file) = entry {
                found.push((path, file));
            }
        });
        found
    }

    fn walk_from(&self, dir: DirId, path: &str, visit: &mut impl FnMut(String, Entry)) {
        for (name, entry) in &self.dirs[&dir].live {
            let path = format!("{path}/{name}");
            visit(path.clone(), *entry);
            if let Entry::Dir(dir) = entry {
                self.walk_from(*dir, &path, visit);
            }
        }
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What the pending changes take away and what they enter, in order.
    pub fn pending(&self) -> Vec<(Option<String>, Option<String>)> {
        let mut paths = BTreeMap::from([(ROOT, String::new())]);
        self.walk_from(ROOT, "", &mut |path, entry| {
            if let Entry::Dir(dir) = entry {
                paths.insert(dir, path);
            }
        });
        // A directory that was replaced has no path any more.
        let path = |(dir, name): &Place| format!("{}/{name}", paths.get(dir).map_or("?", |path| path));
        let change = |change: &Change| (change.unlink.as_ref().map(path), change.link.as_ref().map(|(at, _)| path(at)));
        self.pending.iter().map(change).collect()
    }

    pub fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut dir = ROOT;
        for name in names(path)? {
            dir = match self.dirs[&dir].live.get(name) {
                Some(Entry::Dir(inner)) => *inner,
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    self.last_dir += 1;
                    self.dirs.insert(self.last_dir, Dir::default());
                    self.change(None, Some(((dir, name.into()), Entry::Dir(self.last_dir))));
                    self.last_dir
                }
            };
        }
        Ok(())
    }

    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Ok(self.dirs[&self.dir(path)?].live.keys().cloned().collect())
    }

    pub fn file(&self, path: &Path) -> io::Result<FileId> {
        match self.entry(path)?.1 {
            Entry::File(file) => Ok(file),
            Entry::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Enters a new file.
    pub fn create(&mut self, path: &Path, file: FileId) -> io::Result<()> {
        let place = self.place(path)?;
        if self.dirs[&place.0].live.contains_key(&place.1) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(None, Some((place, Entry::File(file))));
        Ok(())
    }

    /// Returns the file that got a new name, if it was one.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<Option<FileId>> {
        let (source, entry) = self.entry(from)?;
        let target = self.place(to)?;
        let replaced = self.dirs[&target.0].live.get(&target.1).copied();
        match (entry, replaced) {
            (_, Some(same)) if same == entry => return Ok(None),
            (_, None) | (Entry::File(_), Some(Entry::File(_))) => {}
            (Entry::File(_), Some(Entry::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (Entry::Dir(_), Some(Entry::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
            (Entry::Dir(_), Some(Entry::Dir(dir))) if self.dirs[&dir].live.is_empty() => {}
            (Entry::Dir(_), Some(Entry::Dir(_))) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
        self.change(Some(source), Some((target, entry)));
        Ok(match entry {
            Entry::File(file) => Some(file),
            Entry::Dir(_) => None,
        })
    }

    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        match self.entry(path)? {
            (place, Entry::File(_)) => self.change(Some(place), None),
            (_, Entry::Dir(_)) => return Err(io::ErrorKind::IsADirectory.into()),
        }
        Ok(())
    }

    /// Removes a file from where it durably is, too. What is pending of its name goes with it.
    pub fn remove_durably(&mut self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?;
        self.remove(path)?;
        self.commit(|change| change.places().any(|of| *of == place));
        Ok(())
    }

    /// Whether there is such a directory; makes its changes durable if `honest`.
    pub fn sync_dir(&mut self, path: &Path, honest: bool) -> io::Result<()> {
        let dir = self.dir(path)?;
        if honest {
            self.commit(|change| !change.clean && change.places().any(|(of, _)| *of == dir));
        }
        Ok(())
    }

    /// A sync of this directory failed: its changes are clean from now on.
    pub fn drop_dirty(&mut self, dir: DirId) {
        for change in &mut self.pending {
            let lies_here = change.places().any(|(of, _)| *of == dir);
            change.clean |= lies_here;
        }
    }

    pub fn sync_all(&mut self) {
        self.commit(|_| true);
    }

    /// Each pending change survives or not, by chance. Returns how many did not.
    pub fn lose(&mut self, rng: &mut impl Rng) -> u64 {
        self.lose_exactly(&mut || rng.next_u64() >> 63 == 1)
    }

    /// As `keep` says, each pending change survives or not, in order; but none without those it depends on.
    pub fn lose_exactly(&mut self, keep: &mut impl FnMut() -> bool) -> u64 {
        let (mut lost, mut uprooted) = (0, BTreeSet::new());
        for change in mem::take(&mut self.pending) {
            if keep() && !change.places().any(|place| uprooted.contains(place)) {
                apply(&mut self.dirs, change, |dir| &mut dir.durable);
            } else {
                uprooted.extend(change.places().cloned());
                lost += 1;
            }
        }
        for dir in self.dirs.values_mut() {
            dir.live.clone_from(&dir.durable);
        }
        lost
    }

    /// Every file that a name leads to, now or after some power loss. Forgets the directories that none leads to.
    pub fn files(&mut self) -> BTreeSet<FileId> {
        let places = self.pending.iter().flat_map(Change::places);
        let mut dirs: BTreeSet<DirId> = places.map(|(dir, _)| *dir).chain([ROOT]).collect();
        let (mut files, mut next) = (BTreeSet::new(), Vec::from_iter(dirs.iter().copied()));
        let pending: Vec<Entry> = self.pending.iter().filter_map(|change| Some(change.link.as_ref()?.1)).collect();
        let mut visit = |entry: &Entry, next: &mut Vec<DirId>| match *entry {
            Entry::File(file) => drop(files.insert(file)),
            Entry::Dir(dir) if dirs.insert(dir) => next.push(dir),
            Entry::Dir(_) => {}
        };
        pending.iter().for_each(|entry| visit(entry, &mut next));
        while let Some(dir) = next.pop() {
            let dir = &self.dirs[&dir];
            dir.live.values().chain(dir.durable.values()).for_each(|entry| visit(entry, &mut next));
        }
        self.dirs.retain(|dir, _| dirs.contains(dir));
        files
    }

    fn change(&mut self, unlink: Option<Place>, link: Option<(Place, Entry)>) {
        let change = Change { unlink, link, clean: false };
        apply(&mut self.dirs, change.clone(), |dir| &mut dir.live);
        self.pending.push(change);
    }

    /// Makes the chosen changes durable, and those they depend on.
    fn commit(&mut self, chosen: impl Fn(&Change) -> bool) {
        let mut needed = BTreeSet::new();
        let mut marks = vec![false; self.pending.len()];
        for (mark, change) in marks.iter_mut().zip(&self.pending).rev() {
            if chosen(change) || change.places().any(|place| needed.contains(place)) {
                needed.extend(change.places().cloned());
                *mark = true;
            }
        }
        for (mark, change) in marks.into_iter().zip(mem::take(&mut self.pending)) {
            if mark {
                apply(&mut self.dirs, change, |dir| &mut dir.durable);
            } else {
                self.pending.push(change);
            }
        }
    }

    pub fn dir(&self, path: &Path) -> io::Result<DirId> {
        names(path)?.into_iter().try_fold(ROOT, |dir, name| match self.dirs[&dir].live.get(name) {
            Some(Entry::Dir(inner)) => Ok(*inner),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let Some(name) = names(path)?.pop() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let parent = self.dir(path.parent().unwrap_or(Path::new("")))?;
        Ok((parent, name.to_owned()))
    }

    fn entry(&self, path: &Path) -> io::Result<(Place, Entry)> {
        let place = self.place(path)?;
        let entry = self.dirs[&place.0].live.get(&place.1).copied();
        Ok((place, entry.ok_or(io::ErrorKind::NotFound)?))
    }
}

fn apply(dirs: &mut BTreeMap<DirId, Dir>, change: Change, side: impl Fn(&mut Dir) -> &mut BTreeMap<String, Entry>) {
    const KEPT: &str = "a directory lives as long as its changes";
    if let Some((of, name)) = change.unlink {
        side(dirs.get_mut(&of).expect(KEPT)).remove(&name);
    }
    if let Some(((of, name), entry)) = change.link {
        side(dirs.get_mut(&of).expect(KEPT)).insert(name, entry);
    }
}

/// A path's names from the root on; a relative path starts there too.
fn names(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?),
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn path(path: &str) -> &Path {
        Path::new(path)
    }

    /// `/d` and `/e`, durable, the first with these files.
    fn tree(files: &[(&str, FileId)]) -> Tree {
        let mut tree = Tree::new();
        tree.create_dir_all(path("/d")).unwrap();
        tree.create_dir_all(path("/e")).unwrap();
        for (name, file) in files {
            tree.create(&path("/d").join(name), *file).unwrap();
        }
        tree.sync_all();
        tree
    }

    /// `a1 b2 /c1`: files in `/d` with their ids, then those in `/e`.
    fn show(tree: &Tree) -> String {
        let Ok(list) = tree.list(path("/d")) else { return "gone".into() };
        let of = |dir: &str, name: &String| format!("{name}{}", tree.file(&path(dir).join(name)).unwrap());
        let inside = list.iter().map(|name| of("/d", name));
        let outside = tree.list(path("/e")).into_iter().flatten().map(|name| format!("/{}", of("/e", &name)));
        inside.chain(outside).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(files: &[(&str, FileId)], changes: impl Fn(&mut Tree), outcomes: &[&str]) {
        let lose = |seed| {
            let mut tree = tree(files);
            changes(&mut tree);
            tree.lose(&mut Seed(seed).rng());
            tree.files();
            show(&tree)
        };
        let found: BTreeSet<String> = (0..300).map(lose).collect();
        assert_eq!(found, outcomes.iter().map(|outcome| outcome.to_string()).collect());
    }

    #[test]
    fn any_subset_of_unsynced_entries_survives() {
        let create =
            |name: &'static str, file| move |tree: &mut Tree| tree.create(&path("/d").join(name), file).unwrap();
        check(&[], |tree| create("a", 1)(tree), &["", "a1"]);
        check(
            &[],
            |tree| {
                create("a", 1)(tree);
                create("b", 2)(tree);
            },
            &["", "a1", "b2", "a1 b2"],
        );
        check(&[("a", 1)], |tree| tree.remove(path("/d/a")).unwrap(), &["", "a1"]);
    }

    #[test]
    fn a_rename_is_done_or_not_done() {
        let rename = |from: &'static str, to: &'static str| {
            move |tree: &mut Tree| assert!(tree.rename(path(from), path(to)).is_ok())
        };
        check(&[("a", 1)], rename("/d/a", "/d/b"), &["a1", "b1"]);
        check(&[("a", 1), ("b", 2)], rename("/d/a", "/d/b"), &["a1 b2", "b1"]);
        check(&[("a", 1)], rename("/d/a", "/e/a"), &["a1", "/a1"]);
        check(&[("a", 1)], rename("/d/a", "/d/a"), &["a1"]);
        check(&[("a", 1)], rename("/d", "/f"), &["a1", "gone"]);
    }

    #[test]
    fn what_depends_on_a_lost_change_is_lost() {
        let create_and_rename = |tree: &mut Tree| {
            tree.create(path("/d/tmp"), 2).unwrap();
            tree.rename(path("/d/tmp"), path("/d/a")).unwrap();
        };
        check(&[("a", 1)], create_and_rename, &["a1", "a1 tmp2", "a2"]);
        check(
            &[("a", 1)],
            |tree| {
                create_and_rename(tree);
                tree.remove(path("/d/a")).unwrap();
            },
            &["a1", "a1 tmp2", "a2", ""],
        );
    }

    #[test]
    fn a_synced_directory_loses_nothing() {
        check(
            &[("a", 1)],
            |tree| {
                tree.create(path("/d/tmp"), 2).unwrap();
                tree.rename(path("/d/tmp"), path("/d/b")).unwrap();
                tree.remove(path("/d/a")).unwrap();
                tree.sync_dir(path("/d"), true).unwrap();
                tree.create(path("/d/c"), 3).unwrap();
            },
            &["b2", "b2 c3"],
        );
        check(
            &[],
            |tree| tree.create(path("/d/a"), 1).and_then(|()| tree.sync_dir(path("/d"), false)).unwrap(),
            &["", "a1"],
        );
    }

    #[test]
    fn syncing_one_directory_of_a_rename_is_enough() {
        for dir in ["/d", "/e"] {
            check(
                &[],
                |tree| {
                    tree.create(path("/d/a"), 1).unwrap();
                    tree.rename(path("/d/a"), path("/e/b")).unwrap();
                    tree.create(path("/d/c"), 2).unwrap();
                    tree.sync_dir(path(dir), true).unwrap();
                },
                if dir == "/d" { &["c2 /b1"] } else { &["/b1", "c2 /b1"] },
            );
        }
    }

    #[test]
    fn a_lost_directory_takes_its_files_along() {
        let mut gone = 0;
        for seed in 0..100 {
            let mut tree = tree(&[]);
            tree.create_dir_all(path("/new/inner")).unwrap();
            tree.create(path("/new/inner/a"), 1).unwrap();
            tree.sync_dir(path("/new/inner"), true).unwrap();
            tree.sync_dir(path("/new"), true).unwrap();
            tree.lose(&mut Seed(seed).rng());
            let lost = tree.file(path("/new/inner/a")).is_err();
            assert_eq!(tree.files().is_empty(), lost);
            gone += u64::from(lost);
        }
        assert!((20..80).contains(&gone), "{gone}");
    }

    #[test]
    fn errors_are_those_of_a_file_system() {
        let mut tree = tree(&[("a", 1)]);
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(tree.create(path("/d/a"), 2)), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(tree.create(path("/x/a"), 2)), io::ErrorKind::NotFound);
        assert_eq!(kind(tree.create(path("/d/a/b"), 2)), io::ErrorKind::NotADirectory);
        assert_eq!(kind(tree.create_dir_all(path("/d/a/b"))), io::ErrorKind::NotADirectory);
        assert_eq!(kind(tree.remove(path("/d"))), io::ErrorKind::IsADirectory);
        assert_eq!(kind(tree.remove(path("/d/b"))), io::ErrorKind::NotFound);
        assert_eq!(kind(tree.rename(path("/e"), path("/d")).map(drop)), io::ErrorKind::DirectoryNotEmpty);
        assert_eq!(kind(tree.rename(path("/d/a"), path("/e")).map(drop)), io::ErrorKind::IsADirectory);
        assert_eq!(kind(tree.sync_dir(path("/x"), true)), io::ErrorKind::NotFound);
        assert_eq!(kind(tree.list(path("/d/../e")).map(drop)), io::ErrorKind::InvalidInput);
    }
}
