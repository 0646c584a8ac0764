//! Crashes a script everywhere, in every way, and judges what is found afterwards.
//!
//! - Power is lost right before and right after each step of the disk; of what is not durable then, every choice of what
//!   is kept is tried ([`choices`]).
//! - Or only the process dies: the next one starts on a disk that still holds everything, and power is lost right before
//!   each step of its start, or after all of them. What it found may be answered for from then on, so it must last.
//! - From every disk that any of this leaves, a member starts: it must find what the script allows ([`Course::check`]).
//! - That start is crashed right before each of its steps in the same two ways, and so is the start after that, until
//!   there is no disk left that was not seen before ([`digest`]): all of them must find the same. A start after one that
//!   went well changes nothing.
//! - From there the member goes on as its leader wants, over whatever its log holds that is not committed, and is crashed
//!   again at each step of that. So nothing that was cut off may rise again.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use detcd_node::host::Disk;
use detcd_sim::{
    seed::Seed,
    world::{
        clock::{Delay, SimTime},
        disk::{DiskObserver, DiskOp, DiskTiming, Image, Paths, SimDisk, Unsynced},
    },
};
use parking_lot::Mutex;

use crate::{
    history::{batch, hard_state},
    lies::{Liar, Lie},
    process::Process,
    script::{Action, Bounds, Course, Member, Script},
};

/// Of so many sectors, and of so many names and lengths, every subset is tried.
const EVERY_SUBSET_MAX: usize = 8;

/// How much was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps of the disk at which something died: the script, the starts, and what came after.
    pub points: u64,
    /// Choices of what a power loss takes, over all points.
    pub losses: u64,
    /// Different disks from which a member started.
    pub disks: u64,
    pub starts: u64,
    /// Different disks from which a member went on.
    pub went_on: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { points, losses, disks, starts, went_on } = self;
        write!(f, "{points} crash points, {losses} losses, {disks} disks, {starts} starts, {went_on} went on")
    }
}

/// What is not all right.
#[derive(Debug)]
pub enum Wrong {
    /// The script was not carried out, or a crash did not come: nothing was tried.
    Script(String),
    /// What a crash left is not what the script allows, or no member starts from it.
    Left(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Wrong::Script(what) | Wrong::Left(what)) = self;
        f.write_str(what)
    }
}

/// Every way in which a member that does what the script says can crash. The error is the first one that is not all right.
pub async fn explore(script: &Script, lie: Option<Lie>) -> Result<Counts, Wrong> {
    let course = Course::of(Member::founded(&script.history), &script.actions, &script.history);
    let mut explorer = Explorer::new(script, lie);
    let result = match explorer.crash_everywhere(&course).await {
        Ok(()) => explorer.go_on_everywhere().await,
        error => error,
    };
    match result {
        Ok(()) => Ok(explorer.counts),
        Err(what) if explorer.astray => Err(Wrong::Script(what)),
        Err(what) => Err(Wrong::Left(what)),
    }
}

/// A script in which each sync fails, one at a time. The process stops over it, and the next one goes on in a later term:
/// what it found and that term are there after a power loss, too. Not so while a log is founded: a directory whose sync
/// failed has a name that nobody can give it once more. Returns how many syncs that were.
pub async fn fail_each_sync(script: &Script) -> Result<u64, String> {
    let mut explorer = Explorer::new(script, None);
    let founded = {
        let disk = explorer.disk(&Image::default());
        explorer.start(&disk).await?;
        disk.image()
    };
    for failing in 0.. {
        let (disk, counted) = (explorer.disk(&founded), AtomicU64::new(0));
        disk.fail_sync(1, Paths::that(move |_| counted.fetch_add(1, Relaxed) == failing));
        if explorer.run(&disk, &script.actions).await.result.is_ok() {
            return Ok(failing);
        }
        disk.disarm_all();
        let tell = |error: String| format!("{}, sync {failing} failed: {error}", script.name);
        let (mut process, found) = explorer.start(&disk).await.map_err(tell)?;
        let term = hard_state(found.hard_state.term.0 + 1, found.hard_state.commit.0);
        process.act(&Action::Append(vec![batch(Vec::new(), Some(term))])).await.map_err(tell)?;
        // An image is what is durable.
        let durable = explorer.disk(&disk.image());
        let (_, left) = explorer.start(&durable).await.map_err(tell)?;
        // A state may be an older one, if the log goes on from there.
        let ends = |member: &Member| member.log.last().map_or(member.start, |(index, term, _)| (*index, *term));
        if left.hard_state != term || ends(&left) != ends(&found) {
            return Err(tell(format!("a start found {found:?}, and after a power loss {left:?}")));
        }
    }
    unreachable!("a script has an end")
}

/// Tells disks apart, as far as a start does: what a file holds that has only a temporary name is nothing to it. So of the
/// disks that differ in no more than that, one is started from, whichever comes first.
fn digest(image: &Image) -> u64 {
    image.digest_where(&|name| !name.ends_with(".tmp"))
}

struct Explorer<'a> {
    script: &'a Script,
    lie: Option<Lie>,
    time: SimTime,
    witness: Arc<Witness>,
    counts: Counts,
    /// What a start finds, by the digest of its disk.
    starts: BTreeMap<u64, Start>,
    /// What a disk holds after a start that went well, and what that found, by the disk's digest.
    settled: BTreeMap<u64, (Image, Member)>,
    /// The script was not carried out as it is, or a crash did not come.
    astray: bool,
}

#[derive(Clone)]
struct Start {
    found: Member,
    /// The digest of what it leaves.
    leaves: u64,
}

/// Remembers what a disk did last.
#[derive(Default)]
struct Witness(Mutex<Vec<DiskOp>>);

impl DiskObserver for Witness {
    fn disk(&self, _: u64, what: DiskOp) {
        let mut seen = self.0.lock();
        if matches!(what, DiskOp::Restored { .. }) {
            seen.clear();
        }
        seen.push(what);
    }
}

/// How far a run came.
struct Run {
    /// The disk's steps at the end of the start and of each action.
    steps: Vec<u64>,
    result: Result<(), String>,
}

impl Explorer<'_> {
    fn new(script: &Script, lie: Option<Lie>) -> Explorer<'_> {
        Explorer {
            script,
            lie,
            time: SimTime::current(),
            witness: Arc::new(Witness::default()),
            counts: Counts::default(),
            starts: BTreeMap::new(),
            settled: BTreeMap::new(),
            astray: false,
        }
    }

    fn disk(&self, image: &Image) -> SimDisk {
        let at_once = Delay::new(0, 0);
        let timing =
            DiskTiming { read: at_once, write: at_once, sync: at_once, entry: at_once, bytes_per_us: u32::MAX };
        let disk = SimDisk::new(1, self.time.clone(), timing, Seed(1), self.witness.clone());
        disk.restore(image);
        disk
    }

    async fn start(&mut self, disk: &SimDisk) -> Result<(Process, Member), String> {
        self.counts.starts += 1;
        let fresh: Arc<dyn Disk> = disk.fresh();
        let fresh = match self.lie {
            Some(lie) => Arc::new(Liar::new(fresh, lie)),
            None => fresh,
        };
        Process::start(self.script, fresh).await
    }

    async fn run(&mut self, disk: &SimDisk, actions: &[Action]) -> Run {
        let mut run = Run { steps: Vec::new(), result: Ok(()) };
        let mut process = match self.start(disk).await {
            Ok((process, _)) => process,
            Err(error) => return Run { result: Err(error), ..run },
        };
        run.steps.push(disk.points());
        for action in actions {
            run.result = process.act(action).await;
            if run.result.is_err() {
                break;
            }
            run.steps.push(disk.points());
        }
        run
    }

    async fn crash_everywhere(&mut self, course: &Course) -> Result<(), String> {
        let disk = self.disk(&Image::default());
        let run = self.run(&disk, &self.script.actions).await;
        self.astray = run.result.is_err();
        run.result?;
        for point in 1..=disk.points() {
            for before in [true, false] {
                self.crash(course, point, before).await.map_err(|error| self.tell(point, before, &error))?;
            }
            self.kill(course, point).await.map_err(|error| self.tell(point, true, &error))?;
        }
        Ok(())
    }

    fn tell(&self, point: u64, before: bool, error: &str) -> String {
        let side = if before { "before" } else { "after" };
        format!("{}, crashed {side} step {point}: {error}", self.script.name)
    }

    /// The script up to a crash. What that may leave.
    async fn run_into(&mut self, disk: &SimDisk, course: &Course, point: u64, before: bool) -> Result<Bounds, String> {
        disk.crash_at(point, before, || ());
        let run = self.run(disk, &self.script.actions).await;
        self.counts.points += 1;
        // A step that fails for a reason of its own is one all the same, and the caller may not mind.
        self.astray = disk.stats().crashes != 1;
        if self.astray {
            return Err(format!("there was no crash, but {:?}", run.result));
        }
        Ok(match run.steps.len() {
            0 => Bounds { least: 0, most: 0, rising: None },
            begun => course.bounds(&self.script.actions, begun - 1),
        })
    }

    async fn crash(&mut self, course: &Course, point: u64, before: bool) -> Result<(), String> {
        let disk = self.disk(&Image::default());
        let bounds = self.run_into(&disk, course, point, before).await?;
        let what = self.what();
        for mask in choices(&disk.pending()) {
            let told = |error: String| format!("{what}; {}: {error}", kept(&disk, mask));
            let image = self.after_loss(&disk, mask);
            let found = self.recover(image).await.map_err(told)?;
            course.check(&found, bounds).map_err(told)?;
        }
        Ok(())
    }

    /// The process dies, the machine does not; the machine dies in the start of the next process, or after it.
    async fn kill(&mut self, course: &Course, point: u64) -> Result<(), String> {
        let disk = self.disk(&Image::default());
        let bounds = self.run_into(&disk, course, point, true).await?;
        let what = self.what();
        disk.lose_nothing();
        let before = disk.points();
        let (process, found) = self.start(&disk).await?;
        let steps = disk.points() - before;
        course.check(&found, bounds).map_err(|error| format!("{what}; killed: {error}"))?;
        for mask in choices(&disk.pending()) {
            let told = |error: String| format!("{what}; killed, started again; {}: {error}", kept(&disk, mask));
            let image = self.after_loss(&disk, mask);
            same(&self.recover(image).await.map_err(told)?, &found).map_err(told)?;
        }
        let told = |error| format!("{what}; killed, started again, going on from {found:?}; {error}");
        self.lose_later(process, &disk, &found).await.map_err(told)?;
        for step in 1..=steps {
            let disk = self.disk(&Image::default());
            self.run_into(&disk, course, point, true).await?;
            disk.lose_nothing();
            self.start_into(&disk, step).await?;
            for mask in choices(&disk.pending()) {
                let told = |error: String| format!("{what}; killed, then step {step}; {}: {error}", kept(&disk, mask));
                let image = self.after_loss(&disk, mask);
                let found = self.recover(image).await.map_err(told)?;
                course.check(&found, bounds).map_err(told)?;
            }
        }
        Ok(())
    }

    /// A process goes on, and power is lost after each part of that.
    async fn lose_later(&mut self, mut process: Process, disk: &SimDisk, found: &Member) -> Result<(), String> {
        let actions = self.further(found);
        let course = Course::of(found.clone(), &actions, &self.script.history);
        for (number, action) in actions.iter().enumerate() {
            process.act(action).await?;
            let bounds = course.bounds(&actions, number + 1);
            for mask in choices(&disk.pending()) {
                let told = |error: String| format!("{}: {error}", kept(disk, mask));
                self.restart(disk, mask, &course, bounds).await.map_err(told)?;
            }
        }
        Ok(())
    }

    /// What the script did last.
    fn what(&self) -> String {
        let seen = self.witness.0.lock();
        let last = seen.iter().rev().take(3).rev().map(|op| format!("{op:?}"));
        last.collect::<Vec<_>>().join(", ")
    }

    fn after_loss(&mut self, disk: &SimDisk, mask: u64) -> Image {
        self.counts.losses += 1;
        disk.image_after_loss(mask)
    }

    /// A start that is crashed right before one of its steps.
    async fn start_into(&mut self, disk: &SimDisk, step: u64) -> Result<(), String> {
        self.counts.points += 1;
        let before = disk.stats().crashes;
        disk.crash_at(disk.points() + step, true, || ());
        let started = self.start(disk).await.map(drop);
        // An error of its own is no crash.
        self.astray = disk.stats().crashes == before;
        if self.astray { Err(format!("step {step} of a start did not come, but {started:?}")) } else { Ok(()) }
    }

    /// What a start finds, however often it is interrupted.
    async fn recover(&mut self, image: Image) -> Result<Member, String> {
        let first = digest(&image);
        let (mut queue, mut new) = (vec![(image, None::<Member>)], Vec::new());
        while let Some((image, expected)) = queue.pop() {
            let digest = digest(&image);
            if !self.starts.contains_key(&digest) {
                self.counts.disks += 1;
                let (start, disks) = self.start_from(&image).await?;
                queue.extend(disks.into_iter().map(|image| (image, Some(start.found.clone()))));
                self.starts.insert(digest, start);
                new.push(digest);
            }
            if let Some(expected) = expected {
                let again = |error| format!("a start after a start that was interrupted: {error}");
                same(&self.starts[&digest].found, &expected).map_err(again)?;
            }
        }
        for digest in new {
            let leaves = self.starts[&digest].leaves;
            if self.starts[&leaves].leaves != leaves {
                return Err("a second start changed the disk once more".to_owned());
            }
        }
        Ok(self.starts[&first].found.clone())
    }

    /// What a start finds, and every disk that it can leave when it is interrupted, or when power is lost after it.
    async fn start_from(&mut self, image: &Image) -> Result<(Start, Vec<Image>), String> {
        let disk = self.disk(image);
        let (process, found) = self.start(&disk).await?;
        let steps = disk.points();
        let left = disk.image_after_loss(u64::MAX);
        let leaves = digest(&left);
        self.settled.entry(leaves).or_insert_with(|| (left.clone(), found.clone()));
        let mut disks: BTreeMap<u64, Image> = [(leaves, left)].into();
        self.collect(&disk, &mut disks);
        drop(process);
        for step in 1..=steps {
            let disk = self.disk(image);
            self.start_into(&disk, step).await?;
            self.collect(&disk, &mut disks);
            disk.lose_nothing();
            let (_process, again) = self.start(&disk).await?;
            same(&again, &found).map_err(|error| format!("a start that was killed before step {step}: {error}"))?;
            self.collect(&disk, &mut disks);
        }
        Ok((Start { found, leaves }, disks.into_values().collect()))
    }

    fn collect(&mut self, disk: &SimDisk, disks: &mut BTreeMap<u64, Image>) {
        for mask in choices(&disk.pending()) {
            let image = self.after_loss(disk, mask);
            disks.entry(digest(&image)).or_insert(image);
        }
    }

    async fn go_on_everywhere(&mut self) -> Result<(), String> {
        for (image, found) in std::mem::take(&mut self.settled).into_values() {
            self.counts.went_on += 1;
            let told = |error| format!("{}, going on from {found:?}: {error}", self.script.name);
            self.go_on(&image, &found).await.map_err(told)?;
        }
        Ok(())
    }

    /// What a member's leader has it do next: append all that was agreed on. And it writes a checkpoint of that.
    fn further(&self, found: &Member) -> Vec<Action> {
        let history = &self.script.history;
        let (last, known) = (history.last(), found.hard_state.commit.0.max(found.state));
        let state = hard_state(found.hard_state.term.0 + 1, last);
        let mut actions = vec![Action::Append(vec![batch(history.entries(known + 1..=last), Some(state))])];
        if found.state < last {
            actions.extend([Action::Write(last), Action::Adopt(last)]);
        }
        actions
    }

    /// Crashes meet a member when it goes on.
    async fn go_on(&mut self, image: &Image, found: &Member) -> Result<(), String> {
        let actions = self.further(found);
        let course = Course::of(found.clone(), &actions, &self.script.history);
        let disk = self.disk(image);
        let run = self.run(&disk, &actions).await;
        run.result?;
        for mask in [0, u64::MAX] {
            let bounds = course.bounds(&actions, actions.len());
            self.restart(&disk, mask, &course, bounds).await.map_err(|error| format!("all of it: {error}"))?;
        }
        for point in run.steps[0] + 1..=run.steps[actions.len()] {
            let disk = self.disk(image);
            disk.crash_at(point, true, || ());
            self.counts.points += 1;
            let run = self.run(&disk, &actions).await;
            self.astray = disk.stats().crashes != 1;
            if self.astray {
                return Err(format!("step {point} did not come, but {:?}", run.result));
            }
            let (what, bounds) = (self.what(), course.bounds(&actions, run.steps.len() - 1));
            for mask in choices(&disk.pending()) {
                let told = |error: String| format!("{what}; {}: {error}", kept(&disk, mask));
                self.restart(&disk, mask, &course, bounds).await.map_err(told)?;
            }
        }
        Ok(())
    }

    async fn restart(&mut self, disk: &SimDisk, mask: u64, course: &Course, bounds: Bounds) -> Result<(), String> {
        let image = self.after_loss(disk, mask);
        let disk = self.disk(&image);
        let (_process, found) = self.start(&disk).await?;
        course.check(&found, bounds)
    }
}

fn same(found: &Member, expected: &Member) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("found {found:?}\n    instead of {expected:?}")) }
}

/// What a power loss may keep, as masks: of names and lengths, and of sectors, every subset; of too many all, none, each
/// one alone and all but each one.
fn choices(pending: &[Unsynced]) -> BTreeSet<u64> {
    let bits = |sectors: bool| {
        let of_kind = pending.iter().enumerate();
        let of_kind = of_kind.filter(move |(_, item)| matches!(item, Unsynced::Sector { .. }) == sectors);
        of_kind.map(|(item, _)| 1 << item.min(63)).collect::<Vec<u64>>()
    };
    let (names, sectors) = (subsets(&bits(false)), subsets(&bits(true)));
    names.iter().flat_map(|names| sectors.iter().map(move |sectors| names | sectors)).collect()
}

fn subsets(bits: &[u64]) -> Vec<u64> {
    if bits.len() <= EVERY_SUBSET_MAX {
        let chosen = |mask: u64| bits.iter().enumerate().filter(move |(bit, _)| mask >> bit & 1 == 1);
        return (0..1 << bits.len()).map(|mask| chosen(mask).fold(0, |all, (_, bit)| all | bit)).collect();
    }
    let all = bits.iter().fold(0, |all, bit| all | bit);
    [0, all].into_iter().chain(bits.iter().flat_map(|bit| [*bit, all & !bit])).collect()
}

/// What a loss keeps, for whoever reads of it.
fn kept(disk: &SimDisk, mask: u64) -> String {
    let pending = disk.pending();
    let show = |item: &Unsynced| match item {
        Unsynced::Entry { from, to } => format!("{} -> {}", from.as_deref().unwrap_or(""), to.as_deref().unwrap_or("")),
        Unsynced::Length { path, from, to } => format!("{path} {from} -> {to} bytes"),
        Unsynced::Sector { path, offset } => format!("{path} @{offset}"),
    };
    let is_kept = |number: usize| mask >> number.min(63) & 1 == 1;
    let part = |wanted: bool| {
        let part = pending.iter().enumerate().filter(|(number, _)| is_kept(*number) == wanted);
        part.map(|(_, item)| show(item)).collect::<Vec<_>>().join(", ")
    };
    format!("kept [{}], lost [{}]", part(true), part(false))
}
