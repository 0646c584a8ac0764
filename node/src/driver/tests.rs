use std::{pin::pin, sync::atomic::Ordering::Relaxed, task::Waker};

use detcd_core::{
    format::wal::{HardState, Metadata},
    replica::Recovered,
    types::{ClusterId, Index, MemberId, Term},
};

use super::*;
use crate::{
    config::Config,
    peers,
    testing::{self, Memory, Notes, state},
};

/// Has applied an entry, of so many, and has something to persist whenever somebody is out of reach.
struct Busy {
    machine: Machine,
    committed: Index,
}

impl Step for Busy {
    fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        if matches!(input, Input::Unreachable(_)) {
            let hard_state = HardState { term: Term(1), vote: MemberId(1), commit: Index(1) };
            let (hard_state, entries) = (Some(hard_state), Vec::new());
            out.push(Output::Persist(Persist { id: PersistId(1), hard_state, entries, snapshot: None, sync: true }));
        }
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn status(&self) -> Status {
        let (term, leader, applied) = (Term(1), MemberId(1), self.machine.applied());
        Status {
            term,
            leader,
            committed: self.committed,
            applied,
            watches: 0,
            is_learner: false,
            changes_are_durable: true,
            is_untold: false,
        }
    }

    fn has_work(&self) -> bool {
        false
    }
}

/// Whether a checkpoint that is due begins while the log is being written, with so much of it committed.
async fn begins_a_checkpoint(committed: Index) -> bool {
    let config = Config { checkpoint_entries: Some(0), ..Config::new("n1", "/data") };
    let (disk, notes) = (Arc::<Memory>::default(), Arc::<Notes>::default());
    let host = Host { disk: disk.clone(), probe: notes.clone(), ..testing::host() };
    let metadata = Metadata { member: MemberId(1), cluster: ClusterId(1) };
    let storage = Storage::create(&config, disk.clone(), metadata, &Recovered::default()).await.unwrap();
    let replica = Box::new(Busy { machine: *state(1).0, committed });
    let handle = Handle::new(metadata.member, metadata.cluster, replica.status());
    let (snapshots, metrics) = (storage.snapshots().clone(), Arc::<Metrics>::default());
    let checkpoints = Checkpoints::new(&config, host.clone(), snapshots.clone(), Index(0));
    let context = peers::Context::new(host.clone(), handle.clone(), &[], snapshots, metrics.clone());
    let peers = Peers::new(context, config.heartbeat_ms);
    let mut driver = pin!(Driver::new(replica, storage, checkpoints, host, handle.clone(), peers, metrics));
    let mut cx = Context::from_waker(Waker::noop());

    disk.stuck.store(true, Relaxed);
    for item in [Item::Unreachable(MemberId(2)), Item::Tick] {
        handle.push(item);
        assert!(driver.as_mut().poll(&mut cx).is_pending());
    }
    assert!(driver.storage.is_none(), "nothing is being written");
    let began = |event: &NodeEvent| matches!(event, NodeEvent::CheckpointStarted { index: Index(1) });
    notes.0.lock().iter().any(began)
}

#[tokio::test]
async fn a_checkpoint_that_is_due_begins_while_the_log_is_written() {
    assert!(begins_a_checkpoint(Index(1)).await);
}

#[tokio::test]
async fn no_checkpoint_begins_amid_the_log_that_a_restart_found() {
    assert!(begins_a_checkpoint(Index(1 + CHECKPOINT_BACKLOG_MAX)).await);
    assert!(!begins_a_checkpoint(Index(2 + CHECKPOINT_BACKLOG_MAX)).await);
}
