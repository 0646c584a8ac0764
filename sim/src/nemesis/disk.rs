//! Faults of disks that a process may not survive, and those after which its machine must be replaced.
use std::time::Duration;

use super::Inner;
use crate::{
    history::{Event, ExitKind, NodeNumber},
    scenario::fault::{Arrival, DiskIo, Files},
    schedule::Planned,
    world::disk::{FaultId, Io, Lasting, Paths, Rot, SimDisk},
};

const NONE: &[ExitKind] = &[];
const FAILED: &[ExitKind] = &[ExitKind::Disk];
/// Of a member whose disk is not what it was.
const RUINED: &[ExitKind] =
    &[ExitKind::Damage, ExitKind::Halted, ExitKind::Disk, ExitKind::Removed, ExitKind::Stranded];
/// How long a machine is off for somebody to tamper with its disk.
const OFF: Duration = Duration::from_millis(300);
/// How long a member that starts from a tampered disk has to notice.
const NOTICE: Duration = Duration::from_secs(2);

impl Inner {
    pub(super) async fn fail_sync(&self, victims: &[NodeNumber], files: Files, end: Duration) -> u64 {
        self.broken(victims, files, end, |disk| disk.fail_sync(1, paths(files))).await
    }

    pub(super) async fn io_error(&self, victims: &[NodeNumber], io: DiskIo, files: Files, end: Duration) -> u64 {
        let io = match io {
            DiskIo::Read => Io::Read,
            DiskIo::Write => Io::Write,
            DiskIo::Sync => Io::Sync,
            DiskIo::Entry => Io::Entry,
        };
        self.broken(victims, files, end, |disk| disk.fail_io(io, Lasting::Until(end), paths(files))).await
    }

    /// With all files the disk is full; with some of them only they find no more space, as if on a volume of their own.
    pub(super) async fn fill(&self, victims: &[NodeNumber], files: Files, end: Duration) -> u64 {
        self.broken(victims, files, end, |disk| match files {
            Files::All => disk.limit(disk.used()),
            files => disk.fill(Lasting::Until(end), paths(files)),
        })
        .await
    }

    /// Until `end` something is wrong with these disks; then that is over, and whoever ended over it starts again. Nobody
    /// may end over the state's files: the log has what is in them.
    async fn broken(
        &self,
        victims: &[NodeNumber],
        files: Files,
        end: Duration,
        arm: impl Fn(&SimDisk) -> FaultId,
    ) -> u64 {
        let allowed = if files == Files::State { NONE } else { FAILED };
        let armed = victims.iter().map(|victim| {
            self.cluster.allow_exit(*victim, allowed);
            (*victim, arm(self.disk(*victim)))
        });
        let armed = armed.collect::<Vec<_>>();
        self.time.sleep_until(end).await;
        let struck = armed.into_iter().map(|(victim, fault)| {
            let struck = self.disk(victim).disarm(fault);
            self.cluster.restart_ended(victim);
            self.cluster.forbid_exit(victim, allowed);
            struck
        });
        struck.sum()
    }

    /// Returns how many sectors rotted.
    pub(super) async fn rot(
        &self,
        planned: &Planned,
        victim: NodeNumber,
        sectors: u64,
        files: Files,
        end: Duration,
    ) -> u64 {
        let rot = Rot { paths: paths(files), sectors, bits: 1 };
        let mut rotted = 0;
        let tamper = || rotted = self.disk(victim).rot(&rot, &mut planned.seed.child("rot", 0).rng()).len();
        self.tampered(planned, victim, end, tamper).await;
        rotted as u64
    }

    /// Returns how many sectors could not be read any more.
    pub(super) async fn break_sectors(
        &self,
        planned: &Planned,
        victim: NodeNumber,
        sectors: u64,
        files: Files,
        end: Duration,
    ) -> u64 {
        let mut rng = planned.seed.child("broken", 0).rng();
        let mut broken = 0;
        let harm = || broken = self.disk(victim).break_some(&paths(files), sectors, &mut rng);
        self.unnoticed(planned, victim, end, harm, |()| {}).await;
        broken
    }

    pub(super) async fn misdirect(&self, planned: &Planned, victim: NodeNumber, end: Duration) -> u64 {
        let mut rng = planned.seed.child("astray", 0).rng();
        let (disk, mut struck) = (self.disk(victim), 0);
        let harm = || disk.misdirect(1, paths(Files::Log), paths(Files::All), &mut rng);
        self.unnoticed(planned, victim, end, harm, |fault| struck = disk.disarm(fault)).await;
        struck
    }

    /// The disk is harmed while the process runs, which may notice at any time; after half of the time the machine starts
    /// again.
    async fn unnoticed<T>(
        &self,
        planned: &Planned,
        victim: NodeNumber,
        end: Duration,
        harm: impl FnOnce() -> T,
        before_start: impl FnOnce(T),
    ) {
        self.cluster.allow_exit(victim, RUINED);
        self.recorder.record(Event::Tampered { node: victim });
        let harmed = harm();
        let half = self.time.now() + end.saturating_sub(self.time.now()) / 2;
        self.time.sleep_until(half).await;
        self.tampered(planned, victim, end, || before_start(harmed)).await;
        self.cluster.forbid_exit(victim, RUINED);
    }

    /// The machine comes back with the disk of some time ago. Not before the others hold all that anybody has, for it
    /// may have been needed for that; and not while its forgotten votes may still decide an election. Returns 1 if it has forgotten anything.
    pub(super) async fn stale_disk(&self, planned: &Planned, victim: NodeNumber, end: Duration) -> u64 {
        let image = self.disk(victim).image();
        let third = end.saturating_sub(self.time.now()) / 3;
        self.time.sleep_until(self.time.now() + third).await;
        let latest = end.saturating_sub(third);
        while !self.recorder.is_dispensable(victim) || !self.cluster.is_running(victim) {
            if self.time.now() >= latest {
                return 0;
            }
            self.time.sleep_until(self.time.now() + Duration::from_millis(10)).await;
        }
        let mut differs = false;
        let restore = || {
            differs = self.disk(victim).image().digest() != image.digest();
            self.disk(victim).restore(&image);
        };
        self.tampered(planned, victim, end, restore).await;
        u64::from(differs)
    }

    /// The machine is off, somebody tampers with its disk, and it starts. If the member refuses to go on, or if the
    /// disk cannot be trusted any more, another machine takes its place. Until the end it may do so if it has not yet.
    async fn tampered(&self, planned: &Planned, victim: NodeNumber, end: Duration, tamper: impl FnOnce()) {
        self.acquit(victim);
        self.cluster.allow_exit(victim, RUINED);
        self.cluster.kill(victim, planned.seed.child("off", 0));
        tamper();
        self.recorder.record(Event::Tampered { node: victim });
        self.time.sleep_until((self.time.now() + OFF).min(end)).await;
        self.cluster.restart_ended(victim);
        self.cluster.restart(victim);
        let notice = (self.time.now() + NOTICE).min(end);
        while self.time.now() < notice && self.cluster.exit(victim).is_none() {
            self.time.sleep_until((self.time.now() + Duration::from_millis(20)).min(notice)).await;
        }
        if self.cluster.exit(victim).is_none() {
            // Whom other faults keep from the others may notice as late as these are over.
            self.state.lock().suspects.insert(victim);
            return;
        }
        self.state.lock().ruined.insert(victim);
        self.rebuild(planned, victim, end).await;
        self.cluster.forbid_exit(victim, RUINED);
    }

    /// This machine has another disk now, or one that was tampered with anew.
    pub(super) fn acquit(&self, number: NodeNumber) {
        if self.state.lock().suspects.remove(&number) {
            self.cluster.forbid_exit(number, RUINED);
        }
    }

    /// With all faults over, whoever has a disk that was tampered with has its last chance to notice.
    pub(super) async fn confront(&self) {
        let suspects = std::mem::take(&mut self.state.lock().suspects);
        if suspects.is_empty() {
            return;
        }
        suspects.iter().for_each(|suspect| self.cluster.restart(*suspect));
        self.time.sleep_until(self.time.now() + NOTICE).await;
        let noticed = suspects.into_iter().filter(|suspect| self.cluster.exit(*suspect).is_some());
        self.state.lock().ruined.extend(noticed);
    }

    /// Another machine takes the place of this one, whose disk nobody can go on with. Whether it did.
    pub(super) async fn rebuild(&self, planned: &Planned, victim: NodeNumber, until: Duration) -> bool {
        if !self.remove(planned, self.cluster.member(victim), until).await {
            return false;
        }
        self.state.lock().ruined.remove(&victim);
        self.settle_in(victim, Arrival::Promoted, self.aftermath(until)).await
    }

    pub(super) fn disk(&self, number: NodeNumber) -> &SimDisk {
        &self.cluster.node(number).machine.disk
    }
}

fn paths(files: Files) -> Paths {
    Paths::that(move |path| files.contain(path))
}
