//! Seeded clients over the real gRPC client.
mod channel;
mod client;
mod operator;
mod watcher;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

pub use self::{channel::Channel, client::Client, operator::Operator, watcher::Watcher};
use crate::history::{NodeNumber, Text};

/// The value of each key that some client saw last.
pub type Seen = Arc<Mutex<BTreeMap<Text, Text>>>;

/// When clients stop calling; it shows only in the course of the run.
#[derive(Clone, Default)]
pub struct End(Arc<Mutex<Option<Duration>>>);

impl End {
    pub fn set(&self, end: Duration) {
        *self.0.lock() = Some(end);
    }

    fn is_by(&self, time: Duration) -> bool {
        self.0.lock().is_some_and(|end| end <= time)
    }
}

fn key(number: u64) -> Text {
    Arc::from(format!("k{number}"))
}

/// Behind the last key that there can be.
fn keys_end() -> Text {
    Arc::from("l")
}

/// Goes from node to node.
#[derive(Debug, Clone)]
struct Endpoints {
    nodes: usize,
    current: usize,
}

impl Endpoints {
    fn new(nodes: usize, start: u64) -> Endpoints {
        Endpoints { nodes, current: (start % nodes as u64) as usize }
    }

    fn current(&self) -> NodeNumber {
        NodeNumber(self.current + 1)
    }

    /// Another one, as `draw` decides: clients that left a node together must not all meet at the next.
    fn leave(&mut self, draw: u64) {
        let others = (self.nodes as u64 - 1).max(1);
        self.current = (self.current + 1 + (draw % others) as usize) % self.nodes;
    }
}
