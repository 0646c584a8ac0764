//! One direction between two hosts: how long a segment is under way.
use std::{net::IpAddr, time::Duration};

use super::{NetParams, NetStats};
use crate::{
    seed::{ChaCha8Rng, Seed},
    world::clock::{Delay, happens},
};

/// A segment lost so often in a row gets through: more would be a cut.
const LOSSES_MAX: u32 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkParams {
    /// Drawn for each segment. Segments of one stream do not overtake each other.
    pub latency: Delay,
    /// Of a million segments, how many are lost and come later.
    pub loss_ppm: u32,
    /// Bytes in a microsecond, that is megabytes a second, for all streams on the link together; 0 is no limit.
    pub bytes_per_us: u32,
}

/// What faults did on one link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    pub clogged: u64,
    /// Segments that were lost, but for those that the link loses by itself.
    pub lost: u64,
    /// Bytes, acknowledgements and connects that a cut held up.
    pub held: u64,
}

/// Invariant: `extra` and `faulty_ppm` are the sums of all faults that are on.
pub struct Link {
    pub params: Option<LinkParams>,
    pub cut: bool,
    pub extra: Duration,
    /// What the link loses on top of what it does by itself.
    pub faulty_ppm: u32,
    pub stats: LinkStats,
    /// When all bytes so far have left the sender.
    busy_until: Duration,
    latency: ChaCha8Rng,
    loss: ChaCha8Rng,
    faulty: ChaCha8Rng,
}

impl Link {
    pub fn new(from: IpAddr, to: IpAddr, seed: Seed) -> Link {
        let stream = |what| seed.child(&format!("{what} {from} {to}"), 0).rng();
        Link {
            params: None,
            cut: false,
            extra: Duration::ZERO,
            faulty_ppm: 0,
            stats: LinkStats::default(),
            busy_until: Duration::ZERO,
            latency: stream("latency"),
            loss: stream("loss"),
            faulty: stream("faulty"),
        }
    }

    /// How long a segment without bytes takes.
    pub fn latency(&mut self, default: LinkParams) -> Duration {
        self.params.unwrap_or(default).latency.draw(&mut self.latency) + self.extra
    }

    pub fn loses(&mut self, default: LinkParams) -> bool {
        let ppm = self.params.unwrap_or(default).loss_ppm;
        let by_itself = ppm > 0 && happens(ppm, &mut self.loss);
        let by_fault = self.faulty_ppm > 0 && happens(self.faulty_ppm, &mut self.faulty);
        self.stats.lost += u64::from(by_fault);
        by_itself || by_fault
    }

    /// When a segment that is sent now arrives, retransmissions included.
    pub fn arrival(
        &mut self,
        now: Duration,
        len: usize,
        default: LinkParams,
        net: &NetParams,
        stats: &mut NetStats,
    ) -> Duration {
        let params = self.params.unwrap_or(default);
        let mut at = now;
        if params.bytes_per_us > 0 {
            let sending = Duration::from_nanos(len as u64 * 1_000 / u64::from(params.bytes_per_us));
            self.busy_until = self.busy_until.max(now) + sending;
            at = self.busy_until;
        }
        at += self.latency(default);
        let clogged = u64::from(self.extra > Duration::ZERO);
        stats.segments_clogged += clogged;
        self.stats.clogged += clogged;
        let mut rto = net.rto;
        for _ in 0..LOSSES_MAX {
            if !self.loses(default) {
                break;
            }
            stats.segments_lost += 1;
            at += rto;
            rto = (rto * 2).min(net.rto_max);
        }
        at
    }
}
