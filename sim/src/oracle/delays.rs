//! Where the network is late by itself: bytes that it lost come again, and whatever follows them waits.
//!
//! No store can answer before the bytes are there. An operation goes from its client to the member that it was asked of,
//! from there to the leader, from the leader to a quorum, and back. While that way is not free, its time does not count.
use std::collections::BTreeMap;

use super::roster::{Roster, is_for_learners};
use crate::history::{Event, Host, Nanos, NodeNumber, Request, Stamped, WATCHERS_FROM, WatcherId};

/// Of a machine that is not there.
const NEVER: Nanos = Nanos(u64::MAX);

#[derive(Default)]
pub struct Delays {
    /// Until when bytes are late between two hosts, whichever way they go.
    until: BTreeMap<(Host, Host), Nanos>,
}

impl Delays {
    pub fn observe(&mut self, event: &Stamped) {
        if let Event::Delayed { from, to, until } = &event.event {
            let known = self.until.entry(pair(*from, *to)).or_default();
            *known = (*known).max(*until);
        }
    }

    /// When the whole way of such an operation is free, by what is known so far.
    pub fn free_at(
        &self,
        client: u64,
        node: NodeNumber,
        request: &Request,
        leader: Option<NodeNumber>,
        roster: &Roster,
    ) -> Nanos {
        let asked = self.between(Host::Client(client), Host::Node(node));
        match leader {
            Some(leader) if !is_for_learners(request) => {
                asked.max(self.between(Host::Node(node), Host::Node(leader))).max(self.quorum(leader, roster))
            }
            _ => asked,
        }
    }

    /// When the way between a watcher and the member that it watches is free.
    pub fn free_to(&self, watcher: WatcherId, node: NodeNumber) -> Nanos {
        self.between(Host::Client(WATCHERS_FROM + watcher.0), Host::Node(node))
    }

    /// When the leader can talk with a quorum, itself included.
    fn quorum(&self, leader: NodeNumber, roster: &Roster) -> Nanos {
        let others = roster.voters().filter(|voter| *voter != Some(leader));
        let mut free: Vec<_> = others
            .map(|voter| voter.map_or(NEVER, |voter| self.between(Host::Node(leader), Host::Node(voter))))
            .collect();
        free.sort_unstable();
        let needed = roster.voters().len() / 2;
        needed.checked_sub(1).map_or(Nanos(0), |last| free[last])
    }

    fn between(&self, a: Host, b: Host) -> Nanos {
        self.until.get(&pair(a, b)).copied().unwrap_or_default()
    }
}

fn pair(a: Host, b: Host) -> (Host, Host) {
    (a.min(b), a.max(b))
}
