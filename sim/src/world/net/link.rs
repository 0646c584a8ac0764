//! One direction between two hosts: how long a segment is under way.
use std::{net::IpAddr, time::Duration};

use super::{NetParams, NetStats};
use crate::{
    seed::{ChaCha8Rng, Rng as _, Seed},
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
    /// Bits that flipped.
    pub garbled: u64,
}

/// How a stream begins that carries a state from one member to another. Only what is in these is checked end to end by
/// its reader: elsewhere a flipped bit is for TCP's and TLS's own sums to notice.
const STATE_HEAD: &[u8] = b"POST /raft/snapshot ";
/// Behind the request's head and the leader's message.
const STATE_FROM: u64 = 16 << 10;
/// In how many of a million segments of a state a bit flips, until one of the stream's has.
const GARBLED_PPM: u32 = 500_000;

/// Invariant: `extra`, `faulty_ppm` and `garbling` are the sums of all faults that are on.
pub struct Link {
    pub params: Option<LinkParams>,
    pub cut: bool,
    pub extra: Duration,
    /// What the link loses on top of what it does by itself.
    pub faulty_ppm: u32,
    /// Whether states that pass are damaged.
    pub garbling: u32,
    pub stats: LinkStats,
    /// When all bytes so far have left the sender.
    busy_until: Duration,
    latency: ChaCha8Rng,
    loss: ChaCha8Rng,
    faulty: ChaCha8Rng,
    garble: ChaCha8Rng,
}

/// What passed on a stream, one way, as far as its damage goes.
#[derive(Default)]
pub struct Passed {
    bytes: u64,
    is_state: bool,
    is_garbled: bool,
}

impl Link {
    pub fn new(from: IpAddr, to: IpAddr, seed: Seed) -> Link {
        let stream = |what| seed.child(&format!("{what} {from} {to}"), 0).rng();
        Link {
            params: None,
            cut: false,
            extra: Duration::ZERO,
            faulty_ppm: 0,
            garbling: 0,
            stats: LinkStats::default(),
            busy_until: Duration::ZERO,
            latency: stream("latency"),
            loss: stream("loss"),
            faulty: stream("faulty"),
            garble: stream("garble"),
        }
    }

    /// Flips a bit of a segment of a state, now and then; of each state one at most. Whether it did.
    pub fn garble(&mut self, passed: &mut Passed, segment: &mut [u8]) -> bool {
        if passed.bytes == 0 {
            passed.is_state = segment.starts_with(STATE_HEAD);
        }
        let first = usize::try_from(STATE_FROM.saturating_sub(passed.bytes)).unwrap_or(usize::MAX);
        passed.bytes += segment.len() as u64;
        let may_be = self.garbling > 0 && passed.is_state && !passed.is_garbled && first < segment.len();
        if !may_be || !happens(GARBLED_PPM, &mut self.garble) {
            return false;
        }
        let at = first + self.garble.next_u64() as usize % (segment.len() - first);
        segment[at] ^= 1 << (self.garble.next_u64() % 8);
        passed.is_garbled = true;
        self.stats.garbled += 1;
        true
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bits flipped in so many bytes that are sent in segments, and where the first one did.
    fn garbled(garbling: u32, head: &[u8], bytes: usize) -> (u32, Option<usize>) {
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let (mut link, mut passed) = (Link::new(ip(1), ip(2), Seed(1)), Passed::default());
        link.garbling = garbling;
        let mut sent = head.to_vec();
        sent.resize(bytes, 0);
        let mut arrived = sent.clone();
        let flipped =
            arrived.chunks_mut(5_000).filter_map(|segment| link.garble(&mut passed, segment).then_some(())).count();
        let differ = || arrived.iter().zip(&sent).map(|(a, b)| (a ^ b).count_ones());
        assert_eq!((u64::from(differ().sum::<u32>()), flipped as u64), (link.stats.garbled, link.stats.garbled));
        (differ().sum(), differ().position(|bits| bits > 0))
    }

    #[test]
    fn one_bit_of_a_state_flips_behind_its_head_and_none_of_anything_else() {
        let head = b"POST /raft/snapshot HTTP/1.1\r\n";
        let (bits, first) = garbled(1, head, 1 << 20);
        assert_eq!(bits, 1);
        assert!(first >= Some(16 << 10), "{first:?}");
        assert_eq!(garbled(1, head, 16 << 10), (0, None));
        assert_eq!(garbled(0, head, 1 << 20), (0, None));
        assert_eq!(garbled(1, b"GET /raft/stream/message/1 HTTP/1.1\r\n", 1 << 20), (0, None));
    }
}
