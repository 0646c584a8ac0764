//! The disk against the dumbest description of one: plain bytes, and a list of what was done since.
//!
//! A model file is what is durable, and the events since its last good sync. What a process reads is all of them in a
//! row; what a power loss may leave of a sector is any number of its writes, together with any number of the file's
//! resizes, the same for all of its sectors.
use proptest::{collection::vec, prelude::*};

use super::*;

const S: usize = SECTOR as usize;
const B: usize = BLOCK as usize;
const NAMES: [&str; 2] = ["/d/a", "/d/b"];

#[derive(Debug, Clone)]
enum Op {
    Write {
        file: usize,
        offset: usize,
        len: usize,
        sync: bool,
    },
    SetLen {
        file: usize,
        len: usize,
    },
    Allocate {
        file: usize,
        len: usize,
    },
    Sync {
        file: usize,
    },
    FailSync {
        file: usize,
    },
    /// In blocks.
    Capacity(Option<u64>),
    Replace {
        file: usize,
    },
    Kill,
    PowerLoss,
    LoseExactly(u64),
    Restore,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (file, at, len) = (0..2usize, 0..3 * B, 1..B);
    let op = prop_oneof![
        8 => (file.clone(), at.clone(), len, any::<bool>())
            .prop_map(|(file, offset, len, sync)| Op::Write { file, offset, len, sync }),
        2 => (file.clone(), at.clone()).prop_map(|(file, len)| Op::SetLen { file, len }),
        2 => (file.clone(), at).prop_map(|(file, len)| Op::Allocate { file, len }),
        2 => file.clone().prop_map(|file| Op::Sync { file }),
        3 => file.clone().prop_map(|file| Op::FailSync { file }),
        2 => proptest::option::of(2..10u64).prop_map(Op::Capacity),
        1 => file.prop_map(|file| Op::Replace { file }),
        1 => Just(Op::Kill),
        2 => Just(Op::PowerLoss),
        1 => prop_oneof![Just(0), Just(u64::MAX), any::<u64>()].prop_map(Op::LoseExactly),
        1 => Just(Op::Restore),
    ];
    vec(op, 1..40)
}

#[derive(Debug, Clone)]
enum Event {
    Write { offset: usize, data: Vec<u8> },
    Resize { len: usize, reserves: bool },
}

#[derive(Debug, Clone, Default)]
struct ModelFile {
    durable: Vec<u8>,
    durable_blocks: BTreeSet<usize>,
    events: Vec<Event>,
    /// So many of the first events belong to a sync that failed.
    clean: usize,
}

impl ModelFile {
    fn seen(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for event in &self.events {
            match event {
                Event::Write { offset, data } => {
                    bytes.resize(bytes.len().max(offset + data.len()), 0);
                    bytes[*offset..offset + data.len()].copy_from_slice(data);
                }
                Event::Resize { len, .. } => bytes.resize(*len, 0),
            }
        }
        bytes
    }

    fn blocks(&self) -> BTreeSet<usize> {
        let mut blocks = self.durable_blocks.clone();
        for event in &self.events {
            match event {
                Event::Write { offset, data } => blocks.extend(offset / B..(offset + data.len()).div_ceil(B)),
                Event::Resize { len, reserves } => {
                    blocks.retain(|block| block * B < *len);
                    blocks.extend(0..if *reserves { len.div_ceil(B) } else { 0 });
                }
            }
        }
        blocks
    }

    /// The sectors that the events from this one on wrote to.
    fn written_since(&self, first: usize) -> BTreeSet<usize> {
        let writes = self.events[first..].iter().filter_map(|event| match event {
            Event::Write { offset, data } => Some(offset / S..(offset + data.len()).div_ceil(S)),
            Event::Resize { .. } => None,
        });
        writes.flatten().collect()
    }

    fn sync(&mut self) {
        if self.clean == self.events.len() {
            return;
        }
        let (seen, blocks, dirty) = (self.seen(), self.blocks(), self.written_since(self.clean));
        let mut left = Vec::new();
        for (number, event) in self.events[..self.clean].iter().enumerate() {
            let Event::Write { offset, data } = event else { continue };
            for (at, byte) in data.iter().enumerate().map(|(at, byte)| (offset + at, *byte)) {
                let cut =
                    self.events[number..].iter().any(|event| matches!(event, Event::Resize { len, .. } if *len <= at));
                if !cut && !dirty.contains(&(at / S)) {
                    left.push(Event::Write { offset: at, data: vec![byte] });
                }
            }
        }
        for event in &self.events {
            if let Event::Resize { len, .. } = event {
                self.durable.resize(*len, 0);
            }
        }
        self.durable.resize(seen.len(), 0);
        for at in (0..seen.len()).filter(|at| dirty.contains(&(at / S))) {
            self.durable[at] = seen[at];
        }
        self.durable_blocks = blocks;
        self.clean = left.len();
        self.events = left;
        assert!(self.seen() == seen);
    }

    /// What a sector holds if so many of its writes and so many of the events' lengths reached the medium.
    fn sector(&self, sector: usize, mut writes: usize, lengths: usize) -> Vec<u8> {
        let start = sector * S;
        let mut bytes = vec![0; S];
        for (at, byte) in self.durable.iter().enumerate().skip(start).take(S) {
            bytes[at - start] = *byte;
        }
        for (number, event) in self.events.iter().enumerate() {
            match event {
                Event::Write { offset, data } => {
                    let range = (*offset).max(start)..(offset + data.len()).min(start + S);
                    if !range.is_empty() && writes > 0 {
                        writes -= 1;
                        bytes[range.start - start..range.end - start]
                            .copy_from_slice(&data[range.start - offset..range.end - offset]);
                    }
                }
                Event::Resize { len, .. } if number < lengths => bytes[len.saturating_sub(start).min(S)..].fill(0),
                Event::Resize { .. } => {}
            }
        }
        bytes
    }

    /// Whether a power loss may leave this.
    fn may_become(&self, bytes: &[u8]) -> bool {
        (0..=self.events.len()).any(|lengths| {
            let until = ModelFile { events: self.events[..lengths].to_vec(), ..self.clone() };
            until.seen().len() == bytes.len()
                && (0..bytes.len().div_ceil(S)).all(|sector| {
                    let found = &bytes[sector * S..bytes.len().min((sector + 1) * S)];
                    (0..=self.events.len()).any(|writes| self.sector(sector, writes, lengths)[..found.len()] == *found)
                })
        })
    }
}

struct Model {
    disk: SimDisk,
    files: [ModelFile; 2],
    /// In blocks.
    capacity: Option<u64>,
    next_byte: u8,
}

impl Model {
    fn free(&self) -> usize {
        let used: usize = self.files.iter().map(|file| file.blocks().len()).sum();
        self.capacity.map_or(usize::MAX, |capacity| (capacity as usize).saturating_sub(used))
    }

    /// How many of these bytes find space.
    fn fitting(&self, file: usize, offset: usize, len: usize) -> usize {
        let (blocks, mut free) = (self.files[file].blocks(), self.free());
        for at in offset..offset + len {
            let new = !blocks.contains(&(at / B)) && (at == offset || at.is_multiple_of(B));
            if new && free == 0 {
                return at - offset;
            }
            free -= usize::from(new);
        }
        len
    }

    async fn write(&mut self, open: &dyn File, file: usize, offset: usize, len: usize, sync: bool) {
        self.next_byte = self.next_byte.wrapping_add(1).max(1);
        let (mut data, fitting) = (vec![self.next_byte; len], self.fitting(file, offset, len));
        let result = match sync {
            true => open.write_sync(offset as u64, data.clone()).await,
            false => open.write_at(offset as u64, data.clone()).await,
        };
        assert_eq!(result.is_ok(), fitting == len, "{result:?}");
        let model = &mut self.files[file];
        if let Err(error) = &result {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            let found = open.read_at(offset as u64, len).await.unwrap();
            let written = found.iter().take_while(|byte| **byte == self.next_byte).count();
            assert!(written <= fitting && (written == 0 || (offset + written).is_multiple_of(S)), "{written}");
            data.truncate(written);
        }
        if !data.is_empty() {
            model.events.push(Event::Write { offset, data });
        }
        if sync && result.is_ok() {
            model.sync();
        }
    }

    async fn allocate(&mut self, open: &dyn File, file: usize, len: usize) {
        let fits = self.fitting(file, 0, len) == len;
        let result = open.allocate(len as u64).await;
        assert_eq!(result.is_ok(), fits, "{result:?}");
        if fits {
            self.files[file].events.push(Event::Resize { len, reserves: true });
        }
    }

    async fn fail_sync(&mut self, open: &dyn File, file: usize) {
        let (before, clean) = (self.disk.stats(), self.files[file].clean);
        self.disk.fail_sync(1, Paths::under(NAMES[file]));
        assert_eq!(open.sync().await.unwrap_err().raw_os_error(), Some(libc::EIO));
        let after = self.disk.stats();
        assert_eq!(after.failed_syncs - before.failed_syncs, 1);
        let dropped = self.files[file].written_since(clean).len() as u64;
        assert_eq!(after.sectors_dropped - before.sectors_dropped, dropped);
        self.files[file].clean = self.files[file].events.len();
    }

    /// The machine comes back: whatever is left is durable, and it must be something that can be left.
    fn adopt(&mut self) {
        for (name, model) in NAMES.iter().zip(&mut self.files) {
            let bytes = self.disk.contents(path(name)).unwrap();
            assert!(model.may_become(&bytes), "{name}: {} bytes", bytes.len());
            let blocks = self.disk.0.with(|state, _| {
                let content = state.content(state.tree.file(path(name)).unwrap());
                assert_eq!(content.allocated(), content.durable().allocated());
                content.allocated().within(0..u64::MAX).flatten().map(|block| block as usize).collect::<BTreeSet<_>>()
            });
            let occupied = (0..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| at / B);
            assert!(occupied.collect::<BTreeSet<_>>().is_subset(&blocks));
            *model = ModelFile { durable: bytes, durable_blocks: blocks, ..ModelFile::default() };
        }
    }

    async fn check(&self, open: &[Arc<dyn File>]) {
        for (open, model) in open.iter().zip(&self.files) {
            let seen = model.seen();
            assert!(open.read_at(0, usize::MAX).await.unwrap() == seen, "a process reads what it wrote");
            assert_eq!(open.len().await.unwrap(), seen.len() as u64);
        }
        let blocks: usize = self.files.iter().map(|file| file.blocks().len()).sum();
        assert_eq!(self.disk.used(), (blocks * B) as u64);
    }
}

async fn open_all(disk: &SimDisk, how: Open) -> Vec<Arc<dyn File>> {
    let process = disk.fresh();
    let mut open = Vec::new();
    for name in NAMES {
        open.push(process.open(path(name), how).await.unwrap());
    }
    process.sync_dir(path("/d")).await.unwrap();
    open
}

async fn run(mut bench: Bench, ops: Vec<Op>) -> u64 {
    let mut open = open_all(&bench.disk, Open::Create).await;
    let mut model = Model { disk: bench.disk.clone(), files: Default::default(), capacity: None, next_byte: 0 };
    let mut kept = (bench.disk.image(), model.files.clone());
    for op in ops {
        match op {
            Op::Write { file, offset, len, sync } => model.write(&*open[file], file, offset, len, sync).await,
            Op::SetLen { file, len } => {
                open[file].set_len(len as u64).await.unwrap();
                model.files[file].events.push(Event::Resize { len, reserves: false });
            }
            Op::Allocate { file, len } => model.allocate(&*open[file], file, len).await,
            Op::Sync { file } => {
                open[file].sync().await.unwrap();
                model.files[file].sync();
            }
            Op::FailSync { file } => model.fail_sync(&*open[file], file).await,
            Op::Capacity(blocks) => {
                bench.disk.set_capacity(blocks.map(|blocks| blocks * BLOCK + 7));
                model.capacity = blocks;
            }
            Op::Replace { file } => {
                bench.disk.set_capacity(None);
                bench.disk.remove_file(path(NAMES[file])).unwrap();
                drop(bench.disk.fresh().open(path(NAMES[file]), Open::Create).await.unwrap());
                open = open_all(&bench.disk, Open::Write).await;
                (model.capacity, model.files[file]) = (None, ModelFile::default());
            }
            Op::Kill => {
                bench.disk.kill(&mut bench.rng);
                open = open_all(&bench.disk, Open::Write).await;
            }
            Op::PowerLoss | Op::LoseExactly(_) => {
                match op {
                    Op::LoseExactly(mask) => bench.disk.lose_exactly(mask),
                    _ => bench.disk.power_loss(&mut bench.rng),
                }
                model.adopt();
                kept = (bench.disk.image(), model.files.clone());
                open = open_all(&bench.disk, Open::Write).await;
            }
            Op::Restore => {
                bench.disk.restore(&kept.0);
                model.files = kept.1.clone();
                open = open_all(&bench.disk, Open::Write).await;
            }
        }
        model.check(&open).await;
    }
    bench.disk.power_loss(&mut bench.rng);
    model.adopt();
    bench.heard.0.lock().0.digest()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_agrees_with_the_model(seed in any::<u64>(), ops in ops()) {
        let first = world(seed, |bench| run(bench, ops.clone()));
        prop_assert_eq!(first, world(seed, |bench| run(bench, ops)), "the same seed gives the same run");
    }
}

/// Ops that once broke something, as few as it takes.
#[test]
fn what_was_cut_off_after_a_failed_sync_and_lies_before_what_is_written_is_a_hole() {
    let write = |offset, len, sync| Op::Write { file: 0, offset, len, sync };
    let cut = Op::SetLen { file: 0, len: 0 };
    let ops = [write(0, 1, false), Op::FailSync { file: 0 }, write(1_379, 2_718, false), cut, write(4_096, 1, true)];
    world(0, |bench| run(bench, ops.to_vec()));
}

/// The model must be able to say no.
#[test]
fn the_model_refuses_what_no_power_loss_leaves() {
    let letters = |text: &str| text.bytes().flat_map(|byte| [byte; S]).collect::<Vec<u8>>();
    let file = |events: &[Event], clean| ModelFile {
        durable: letters(".."),
        events: events.to_vec(),
        clean,
        ..ModelFile::default()
    };
    let write = |at: usize, text: &str| Event::Write { offset: at * S, data: letters(text) };
    let resize = |sectors: usize| Event::Resize { len: sectors * S, reserves: false };
    #[track_caller]
    fn check(file: &ModelFile, all: &[&str], letters: impl Fn(&str) -> Vec<u8>) {
        let alphabet = ['.', 'x', 'y', '\0'];
        let mut states = vec![String::new()];
        for from in 0.. {
            let Some(state) = states.get(from).cloned() else { break };
            let more = alphabet.iter().map(|letter| format!("{state}{letter}"));
            states.extend(more.filter(|state| state.len() <= 3));
        }
        states.retain(|state| file.may_become(&letters(state)));
        states.sort();
        assert_eq!(states, all);
    }
    check(&file(&[], 0), &[".."], letters);
    check(&file(&[write(0, "x")], 0), &["..", "x."], letters);
    check(&file(&[write(0, "x"), write(0, "yy")], 0), &["..", ".y", "x.", "xy", "y.", "yy"], letters);
    check(&file(&[write(2, "x")], 0), &["..", "..\0", "..x"], letters);
    check(&file(&[resize(1), resize(2)], 0), &[".", ".\0", ".."], letters);
    let mut synced = file(&[write(0, "xx"), write(1, "y")], 1);
    synced.sync();
    check(&synced, &[".y", "xy"], letters);
}
