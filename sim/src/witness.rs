//! Looks at all that a node's store holds when it did not come about entry by entry: at the start, and when a state was
//! taken over. The node says what it should be; this is what it is.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use detcd_core::{
    event::NodeEvent,
    machine::Machine,
    mvcc::Fields,
    replica::{Input, Output, Status},
    types::Revision,
};
use detcd_node::driver::Step;

use crate::{
    history::{Content, Event, NodeNumber},
    world::{cluster::Wrap, recorder::Recorder},
};

/// Whose replica takes a step right now, by its node's number; 0 is nobody's.
static STEPPING: AtomicUsize = AtomicUsize::new(0);

/// Who is at it: of a panic or a hang, whose it is.
pub fn stepping() -> Option<NodeNumber> {
    Some(NodeNumber(STEPPING.load(Relaxed))).filter(|node| node.0 > 0)
}

struct Witness {
    node: NodeNumber,
    replica: Box<dyn Step>,
    recorder: Recorder,
}

/// Goes around whatever else does.
pub fn wrap(recorder: &Recorder, inner: Wrap) -> Wrap {
    let recorder = recorder.clone();
    Arc::new(move |node, replica| {
        let witness = Witness { node, replica: inner(node, replica), recorder: recorder.clone() };
        witness.tell();
        Box::new(witness)
    })
}

impl Witness {
    fn tell(&self) {
        let (store, mut content) = (&self.replica.machine().store, Content::default());
        for record in store.history(Revision(0)) {
            let Fields { key, value, position, created, version, .. } = record.fields();
            let alive = (!record.is_tombstone()).then_some((value, created.0, version));
            content.add(key, position.main, alive);
        }
        self.recorder.record(Event::Store { node: self.node, revision: store.revision().0, content });
    }
}

impl Step for Witness {
    fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        let before = out.len();
        STEPPING.store(self.node.0, Relaxed);
        self.replica.step(input, out);
        STEPPING.store(0, Relaxed);
        let installs = |output: &Output| matches!(output, Output::Note(NodeEvent::SnapshotInstalled { .. }));
        if out[before..].iter().any(installs) {
            self.tell();
        }
    }

    fn machine(&self) -> &Machine {
        self.replica.machine()
    }

    fn status(&self) -> Status {
        self.replica.status()
    }

    fn has_work(&self) -> bool {
        self.replica.has_work()
    }
}
