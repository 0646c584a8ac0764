//! Election timeouts that a seed decides. raft-rs draws its own from the thread's generator, out of anyone's control,
//! whenever a member changes roles; here each is replaced before a tick can look at it.
use raft::{Raft, StateRole};

use super::{Timing, log::Log};
use crate::types::MemberId;

pub struct ElectionTimer {
    id: MemberId,
    seed: u64,
    election: usize,
    /// How often a timeout was due anew. Counted from what is visible and deterministic, never from raft-rs's draws.
    draws: u64,
    seen: (u64, StateRole),
}

impl ElectionTimer {
    pub fn new(id: MemberId, timing: &Timing) -> ElectionTimer {
        let seen = (0, StateRole::Follower);
        ElectionTimer { id, seed: timing.seed, election: timing.election, draws: 0, seen }
    }

    /// The least number of ticks of an election timeout.
    pub fn election(&self) -> usize {
        self.election
    }

    /// After a tick: a member that stood for election in it gets a new timeout, or two that tie would tie for ever.
    pub fn ticked(&mut self, raft: &Raft<Log>) {
        if raft.state != StateRole::Leader && raft.election_elapsed == 0 {
            self.draws += 1;
        }
    }

    /// After anything that may have changed the role: sets the timeout, between one and two election timeouts.
    pub fn draw(&mut self, raft: &mut Raft<Log>) {
        let now = (raft.term, raft.state);
        if now != self.seen {
            self.seen = now;
            self.draws += 1;
        }
        // Mixed apart: seeds that differ as the ids do must not make two members draw alike for ever.
        let drawn = mix(mix(self.seed ^ mix(self.id.0)) ^ mix(raft.term) ^ self.draws);
        raft.set_randomized_election_timeout(self.election + (drawn % self.election as u64) as usize);
    }
}

/// SplitMix64's finaliser.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
