//! Faults of machines: power, processes, disks and clocks.
use std::{convert::Infallible, time::Duration};

use super::Inner;
use crate::{
    history::NodeNumber,
    seed::{Seed, TryRng},
    world::clock::SimClock,
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
        let off = |victim: NodeNumber| match torn {
            true => self.cluster.power_off(victim, &mut seed.child("torn", victim.0 as u64).rng()),
            false => self.cluster.power_off(victim, &mut Zeros),
        };
        self.down(victims, off, end).await
    }

    pub(super) async fn kill(&self, victims: &[NodeNumber], seed: Seed, end: Duration) -> u64 {
        self.down(victims, |victim| self.cluster.kill(victim, seed), end).await
    }

    /// Nobody starts these machines before `end`. Returns how many of them were struck down.
    async fn down(&self, victims: &[NodeNumber], strike: impl Fn(NodeNumber) -> bool, end: Duration) -> u64 {
        let struck = victims.iter().filter(|victim| {
            self.cluster.hold(**victim);
            strike(**victim)
        });
        let struck = struck.count();
        self.time.sleep_until(end).await;
        for victim in victims {
            self.cluster.release(*victim);
            self.cluster.restart(*victim);
        }
        struck as u64
    }

    pub(super) async fn pause(&self, victims: &[NodeNumber], end: Duration) -> u64 {
        let pauses: Vec<_> =
            victims.iter().filter_map(|victim| Some((*victim, self.cluster.pause(*victim)?))).collect();
        self.time.sleep_until(end).await;
        pauses.into_iter().filter(|(victim, pause)| self.cluster.resume(*victim, *pause)).count() as u64
    }

    pub(super) async fn slow_fsync(&self, victims: &[NodeNumber], extra: Duration, end: Duration) -> u64 {
        let slow = |victim: &NodeNumber| (*victim, self.disk(*victim).slow_sync(1, extra));
        let armed: Vec<_> = victims.iter().map(slow).collect();
        self.time.sleep_until(end).await;
        armed.into_iter().map(|(victim, fault)| self.disk(victim).disarm(fault)).sum()
    }

    pub(super) async fn stall(&self, victims: &[NodeNumber], end: Duration) -> u64 {
        let stalled = || victims.iter().map(|victim| self.disk(*victim).stats().stalled_ops).sum::<u64>();
        let before = stalled();
        victims.iter().for_each(|victim| self.disk(*victim).stall(end));
        self.time.sleep_until(end).await;
        stalled() - before
    }

    /// Returns how many clocks were read meanwhile.
    pub(super) async fn drift(&self, victims: &[NodeNumber], ppm: i32, end: Duration) -> u64 {
        let reads = |clock: &SimClock| clock.reads();
        self.distort(victims, |clock| clock.bend(ppm), |clock| clock.bend(-ppm), reads, end).await
    }

    /// Returns how many clocks were asked for wall time meanwhile.
    pub(super) async fn jump(&self, victims: &[NodeNumber], ms: i64, end: Duration) -> u64 {
        let reads = |clock: &SimClock| clock.wall_reads();
        self.distort(victims, |clock| clock.jump_wall(ms), |clock| clock.jump_wall(-ms), reads, end).await
    }

    async fn distort(
        &self,
        victims: &[NodeNumber],
        distort: impl Fn(&SimClock),
        restore: impl Fn(&SimClock),
        reads: impl Fn(&SimClock) -> u64,
        end: Duration,
    ) -> u64 {
        let clocks: Vec<_> = victims.iter().map(|victim| &self.cluster.node(*victim).machine.clock).collect();
        let before: Vec<_> = clocks.iter().map(|clock| reads(clock)).collect();
        clocks.iter().for_each(|clock| distort(clock));
        self.time.sleep_until(end).await;
        clocks.iter().for_each(|clock| restore(clock));
        clocks.iter().zip(before).filter(|(clock, before)| reads(clock) > *before).count() as u64
    }
}
