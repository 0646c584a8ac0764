//! Faults of machines: power, processes, disks and clocks.
use std::{convert::Infallible, time::Duration};

use super::Inner;
use crate::{
    history::NodeNumber,
    seed::{Seed, TryRng},
    world::disk::DiskStats,
};

/// Draws nothing but zeros: a power loss that takes everything it may.
struct Zeros;

impl TryRng for Zeros {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(0)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(0)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0);
        Ok(())
    }
}

impl Inner {
    pub(super) async fn power_loss(&self, victims: &[NodeNumber], torn: bool, seed: Seed, end: Duration) -> u64 {
        for victim in victims {
            match torn {
                true => self.cluster.power_off(*victim, &mut seed.child("torn", victim.0 as u64).rng()),
                false => self.cluster.power_off(*victim, &mut Zeros),
            }
        }
        self.revive(victims, end).await
    }

    pub(super) async fn kill(&self, victims: &[NodeNumber], seed: Seed, end: Duration) -> u64 {
        victims.iter().for_each(|victim| self.cluster.kill(*victim, seed));
        self.revive(victims, end).await
    }

    async fn revive(&self, victims: &[NodeNumber], end: Duration) -> u64 {
        self.time.sleep_until(end).await;
        victims.iter().for_each(|victim| self.cluster.restart(*victim));
        victims.len() as u64
    }

    pub(super) async fn pause(&self, victims: &[NodeNumber], end: Duration) -> u64 {
        victims.iter().for_each(|victim| self.cluster.pause(*victim));
        self.time.sleep_until(end).await;
        let paused = victims.iter().filter(|victim| self.cluster.is_paused(**victim)).count();
        victims.iter().for_each(|victim| self.cluster.resume(*victim));
        paused as u64
    }

    pub(super) async fn slow_fsync(&self, victims: &[NodeNumber], extra: Duration, end: Duration) -> u64 {
        let slowed = |stats: DiskStats| stats.slowed_syncs;
        let before = self.disks(victims, slowed);
        victims.iter().for_each(|victim| self.cluster.node(*victim).machine.disk.slow_sync(1, extra));
        self.time.sleep_until(end).await;
        victims.iter().for_each(|victim| self.cluster.node(*victim).machine.disk.slow_sync(1, Duration::ZERO));
        self.disks(victims, slowed) - before
    }

    pub(super) async fn stall(&self, victims: &[NodeNumber], end: Duration) -> u64 {
        let stalled = |stats: DiskStats| stats.stalled_ops;
        let before = self.disks(victims, stalled);
        victims.iter().for_each(|victim| self.cluster.node(*victim).machine.disk.stall(end));
        self.time.sleep_until(end).await;
        self.disks(victims, stalled) - before
    }

    /// Of these machines' disks together.
    pub(super) fn disks(&self, victims: &[NodeNumber], of: impl Fn(DiskStats) -> u64) -> u64 {
        victims.iter().map(|victim| of(self.cluster.node(*victim).machine.disk.stats())).sum()
    }

    pub(super) async fn drift(&self, victims: &[NodeNumber], ppm: i32, end: Duration) -> u64 {
        let clocks = || victims.iter().map(|victim| &self.cluster.node(*victim).machine.clock);
        let before: Vec<_> = clocks().map(|clock| clock.drift_ppm()).collect();
        clocks().for_each(|clock| clock.set_drift(ppm));
        self.time.sleep_until(end).await;
        let drifted = clocks().zip(&before).filter(|(clock, before)| clock.drift_ppm() != **before).count();
        clocks().zip(before).for_each(|(clock, before)| clock.set_drift(before));
        drifted as u64
    }

    pub(super) async fn jump(&self, victims: &[NodeNumber], ms: i64, end: Duration) -> u64 {
        let clocks = || victims.iter().map(|victim| &self.cluster.node(*victim).machine.clock);
        clocks().for_each(|clock| clock.jump_wall(ms));
        self.time.sleep_until(end).await;
        clocks().for_each(|clock| clock.jump_wall(-ms));
        victims.len() as u64
    }
}
