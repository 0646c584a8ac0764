//! The simulated world: the other of the two places that build a [`Host`].
use std::{net::IpAddr, sync::Arc, time::Duration};

use detcd_node::{
    event::NodeEvent,
    host::{Clock, Host, Probe, Sleep},
};

use super::{clock::SimClock, disk::SimDisk, net::SimNet, recorder::Recorder};
use crate::{
    history::{Event, NodeNumber},
    seed::Seed,
};

/// One machine of the cluster. What is in here outlives the processes that run on it.
#[derive(Clone)]
pub struct Machine {
    pub number: NodeNumber,
    pub ip: IpAddr,
    pub disk: SimDisk,
    pub clock: SimClock,
    pub net: SimNet,
    pub recorder: Recorder,
    pub seed: Seed,
}

impl Machine {
    /// A process's world. Whatever an earlier process of this machine holds is dead from here on.
    pub fn host(&self, incarnation: u64) -> Host {
        self.disk.evict(&mut self.seed.child("evicted", incarnation).rng());
        Host {
            disk: self.disk.fresh(),
            net: self.net.host(self.ip),
            clock: Arc::new(ObservedClock { machine: self.clone() }),
            probe: Arc::new(NodeProbe { recorder: self.recorder.clone(), node: self.number, disk: self.disk.clone() }),
            seed: self.seed.child("process", incarnation).0,
        }
    }
}

struct NodeProbe {
    recorder: Recorder,
    node: NodeNumber,
    disk: SimDisk,
}

impl Probe for NodeProbe {
    fn note(&self, event: NodeEvent) {
        // Its word is not taken for it: a segment that exists is read by the next start, so all of it must be there.
        // What a process removes it has no need of.
        if let NodeEvent::Persisted { persist } = event
            && let Some(unsynced) = self.disk.first_unsynced(|path| path.ends_with(".wal"))
        {
            let what = format!("{unsynced:?}").into();
            self.recorder.record(Event::Unsynced { node: self.node, persist: persist.0, what });
        }
        self.recorder.node(self.node, event);
    }
}

/// The machine's clock; what a process reads off it is recorded.
struct ObservedClock {
    machine: Machine,
}

impl Clock for ObservedClock {
    fn now(&self) -> Duration {
        let now = self.machine.clock.now();
        self.machine.recorder.time_read(self.machine.number, now.as_nanos() as u64);
        now
    }

    fn wall(&self) -> Duration {
        let now = self.machine.clock.wall();
        self.machine.recorder.time_read(self.machine.number, now.as_nanos() as u64);
        now
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.machine.clock.sleep(time)
    }
}
