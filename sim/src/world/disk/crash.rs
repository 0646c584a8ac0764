//! Crash points: power is lost right before or right after one step of a disk, and exactly what it takes is chosen.
//!
//! Whatever changes the medium is a step: a write, a resize, an allocation, a sync, a create, a rename, a remove. Each
//! disk numbers its steps from 1, in the order in which they take effect, tried ones that fail included; a `write_sync`
//! is two. The steps of a process that dies are not counted: it is not there to see the next.
//!
//! At a crash point the process is dead, what it had called and had not taken effect never will, and the step itself is
//! not acknowledged. The memory of the machine is still there to be looked at: [`SimDisk::pending`] lists what is not
//! durable, [`SimDisk::image_after_loss`] shows what a loss of some of it would leave, and [`SimDisk::lose_exactly`] or
//! [`SimDisk::power_loss`] does it. Or it was only the process that died, and [`SimDisk::lose_nothing`]. If nobody says
//! so before the next start, all of it is lost.
//!
//! A mask has a bit for each item that `pending` lists, set if the item is kept; bit 63 is for all items from the 64th
//! on. A sector is kept with all that was written to it: its earlier versions are met at earlier points.
use std::{collections::BTreeMap, io, sync::Arc};

use super::{
    DiskOp, SimDisk,
    content::Content,
    image::Image,
    layer::SECTOR,
    state::{State, fenced},
    tree::Tree,
};

/// What changes the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    Write,
    SetLen,
    Allocate,
    Sync,
    Create,
    CreateDir,
    Rename,
    Remove,
    SyncDir,
}

/// Something that is not durable yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsynced {
    /// A create has no `from`, a remove no `to`, a rename both.
    Entry { from: Option<Arc<str>>, to: Option<Arc<str>> },
    /// The length and the reserved space of a file. Sectors beyond a length that is kept are lost with it.
    Length { path: Arc<str>, from: u64, to: u64 },
    /// The bytes of one sector.
    Sector { path: Arc<str>, offset: u64 },
}

/// How many steps there were, and at which one power is lost.
#[derive(Default)]
pub struct Crash {
    steps: u64,
    armed: Option<Armed>,
    /// Power was lost at a crash point, and it was not yet said what that takes.
    undecided: bool,
}

struct Armed {
    point: u64,
    before: bool,
    then: Box<dyn FnOnce() + Send>,
}

impl Crash {
    /// What the last crash took is decided.
    pub fn end(&mut self) {
        self.undecided = false;
    }

    pub fn disarm(&mut self) {
        self.armed = None;
    }

    fn is_due(&self, before: bool) -> bool {
        self.armed.as_ref().is_some_and(|armed| armed.point == self.steps && armed.before == before)
    }
}

impl SimDisk {
    /// How many steps there were.
    pub fn points(&self) -> u64 {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.crash.steps
        })
    }

    /// Loses power right before or right after a step that is yet to come, and calls `then`, which may strike back, as
    /// an observer may. There is one such point at a time.
    pub fn crash_at(&self, point: u64, before: bool, then: impl FnOnce() + Send + 'static) {
        self.0.with(|state, now| {
            state.settle_all(now);
            let steps = state.crash.steps;
            assert!(point > steps, "crash point {point} has passed: there were {steps} steps");
            state.crash.armed = Some(Armed { point, before, then: Box::new(then) });
        });
    }

    /// All that is not durable: first the entries, in the order of their changes, then of each file, in the order of
    /// their creation, its length and its sectors.
    pub fn pending(&self) -> Vec<Unsynced> {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.pending()
        })
    }

    /// The first of the files and names that such a path leads to and a power loss could take.
    pub fn first_unsynced(&self, path: impl Fn(&str) -> bool) -> Option<Unsynced> {
        self.0.with(|state, now| {
            state.settle_all(now);
            if !state.has_pending() {
                return None;
            }
            state.pending().into_iter().find(|unsynced| match unsynced {
                Unsynced::Entry { to, .. } => to.as_deref().is_some_and(&path),
                Unsynced::Length { path: of, .. } | Unsynced::Sector { path: of, .. } => path(of),
            })
        })
    }

    /// The machine dies, and of what is `pending` exactly that survives which the mask says. An entry survives only if
    /// those it depends on do.
    pub fn lose_exactly(&self, mask: u64) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.lose_exactly(mask);
        });
    }

    /// Only the process died at the crash point, the machine goes on: whatever is pending stays so.
    pub fn lose_nothing(&self) {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.lose_nothing();
        });
    }

    /// What `lose_exactly` would leave.
    pub fn image_after_loss(&self, mask: u64) -> Image {
        self.0.with(|state, now| {
            state.settle_all(now);
            state.image_after_loss(mask)
        })
    }
}

impl State {
    /// Does one step, unless power is lost right before it or right after.
    pub fn step<R>(&mut self, step: Step, work: impl FnOnce(&mut State) -> io::Result<R>) -> io::Result<R> {
        if self.dying {
            return work(self);
        }
        self.crash.steps += 1;
        if self.crash.is_due(true) {
            self.crash_now(step);
            return Err(fenced());
        }
        let result = work(self);
        if self.crash.is_due(false) {
            self.crash_now(step);
            return Err(fenced());
        }
        result
    }

    fn crash_now(&mut self, step: Step) {
        let Armed { point, before, then } = self.crash.armed.take().expect("a crash is due");
        self.fence(|_| 0);
        self.crash.undecided = true;
        self.stats.crashes += 1;
        self.notes.push(DiskOp::Crashed { point, before, step });
        self.then.push(then);
    }

    /// A process starts. If it was never said what the last crash took, it was everything it could.
    pub fn decide_crash(&mut self) {
        if self.crash.undecided {
            self.lose_exactly(0);
        }
    }

    fn has_pending(&self) -> bool {
        self.tree.has_pending() || self.files.values().any(|inode| inode.content.has_pending())
    }

    fn pending(&mut self) -> Vec<Unsynced> {
        let named = self.tree.files();
        let shared = |path: Option<String>| path.map(Arc::from);
        let entries = self.tree.pending().into_iter();
        let mut all: Vec<_> =
            entries.map(|(from, to)| Unsynced::Entry { from: shared(from), to: shared(to) }).collect();
        for inode in self.files.iter().filter(|(file, _)| named.contains(file)).map(|(_, inode)| inode) {
            let (content, path) = (&inode.content, &inode.path);
            let from = content.durable().len();
            all.extend(content.pending_len().map(|to| Unsynced::Length { path: path.clone(), from, to }));
            let sectors = content.pending_sectors().into_iter();
            all.extend(sectors.map(|sector| Unsynced::Sector { path: path.clone(), offset: sector * SECTOR }));
        }
        all
    }

    fn lose_exactly(&mut self, mask: u64) {
        self.fence(|_| 0);
        let contents = self.files.values_mut().map(|inode| &mut inode.content);
        let (sectors, entries) = lose(&mut self.tree, contents, mask);
        self.power_lost(sectors, entries);
    }

    fn lose_nothing(&mut self) {
        self.fence(|_| 0);
        self.crash.end();
        self.stats.kills += 1;
        self.notes.push(DiskOp::Killed);
    }

    fn image_after_loss(&mut self, mask: u64) -> Image {
        let (mut tree, named) = (self.tree.clone(), self.tree.files());
        let files = self.files.iter().filter(|(file, _)| named.contains(file));
        let mut contents: BTreeMap<_, _> = files.map(|(file, inode)| (*file, inode.content.clone())).collect();
        lose(&mut tree, contents.values_mut(), mask);
        Image::new(&tree, |file| &contents[&file])
    }
}

/// Keeps what the mask says, in the order of [`State::pending`]. Returns how many sectors and entries are lost.
fn lose<'a>(tree: &mut Tree, contents: impl Iterator<Item = &'a mut Content>, mask: u64) -> (u64, u64) {
    let mut item = 0;
    let mut keep = || {
        let kept = mask >> item & 1 == 1;
        item = (item + 1).min(63);
        kept
    };
    let entries = tree.lose_exactly(&mut keep);
    let sectors = contents.map(|content| content.lose_exactly(&mut keep)).sum();
    (sectors, entries)
}
