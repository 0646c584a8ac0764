//! The laws: one a file, each a small machine that observes the history and can say which law broke, and where.
//!
//! - `linearizable.rs`, `serializable.rs` and `watch.rs` judge what clients were told, against `model.rs`, which
//!   `replay.rs` leads along the applied log; `second_opinion.rs` judges it without looking at the nodes.
//! - `durability.rs`, `agreement.rs`, `election_safety.rs` and `log_matching.rs` judge what the nodes note of themselves;
//!   `log.rs` follows a node's log in memory and on disk for them.
//! - `membership.rs` judges who is a member, by what nodes note and what operators are told.
//! - `ending.rs` judges what stops or refuses, where that is expected.
//! - `recovery.rs` and `promptness.rs` judge that things happen in time: `delays.rs` knows what the network itself
//!   holds up, and `roster.rs` who has a say.
//!
//! Laws share no logic with the node. Each must be able to fail: its tests edit a good history until it does.
mod agreement;
mod case;
mod delays;
mod durability;
mod election_safety;
mod ending;
mod linearizable;
mod log;
mod log_matching;
mod membership;
mod model;
mod promptness;
mod recovery;
mod register;
mod replay;
mod roster;
mod second_opinion;
mod serializable;
#[cfg(test)]
mod tests;
mod watch;

use detcd_core::event::NodeEvent;

use crate::{
    history::{Event, NodeNumber, Stamped},
    scenario::Ending,
};

/// What a law found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It judged so many things, and all were right. So many more it gave up on.
    Holds {
        judged: u64,
        given_up: u64,
    },
    Violated(Violation),
    /// It could not judge: as loud as a violation.
    Unknown {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The event at which it showed, by its number in the history.
    pub sequence: u64,
    /// What was done or seen: the operation, the entry, the watch.
    pub subject: String,
    pub expected: String,
    pub got: String,
    /// Where in history, as far as it is known.
    pub index: Option<u64>,
    pub revision: Option<i64>,
}

impl Violation {
    fn new(sequence: u64, subject: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        let (subject, expected, got) = (subject.into(), expected.into(), got.into());
        Violation { sequence, subject, expected, got, index: None, revision: None }
    }

    fn at_index(self, index: u64) -> Self {
        Violation { index: Some(index), ..self }
    }

    fn at_revision(self, revision: i64) -> Self {
        Violation { revision: Some(revision), ..self }
    }
}

/// One law.
pub trait Law: Send {
    /// Its stable name, as scenarios and reports spell it.
    fn name(&self) -> &'static str;
    /// Takes in the next event. After a violation it may ignore the rest: the first one is the one to tell.
    fn observe(&mut self, event: &Stamped);
    /// The run is over.
    fn finish(&mut self) -> Verdict;
}

/// What the laws must be told of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LawConfig {
    /// Members of the cluster, all of them voters.
    pub nodes: usize,
    /// Within so many simulated milliseconds after the faults the cluster is itself again.
    pub recovery_bound_ms: u64,
    /// An operation takes no longer, in simulated milliseconds, while nothing is wrong.
    pub prompt_bound_ms: u64,
    /// What is to become of the cluster.
    pub ending: Ending,
}

/// Every law that can be asked of such a run, before the first event.
pub fn all(config: &LawConfig) -> Vec<Box<dyn Law>> {
    let mut laws: Vec<Box<dyn Law>> = vec![
        Box::new(linearizable::Linearizable::default()),
        Box::new(serializable::Serializable::default()),
        Box::new(second_opinion::SecondOpinion::default()),
        Box::new(durability::Durability::default()),
        Box::new(agreement::Agreement::default()),
        Box::new(election_safety::ElectionSafety::default()),
        Box::new(log_matching::LogMatching::default()),
        Box::new(membership::Membership::default()),
        Box::new(watch::Watch::default()),
        Box::new(promptness::Promptness::new(config.nodes, config.prompt_bound_ms)),
    ];
    if config.ending != Ending::Converges {
        laws.push(Box::new(ending::Ended::new(config.ending)));
    }
    if config.ending != Ending::Refuses {
        laws.push(Box::new(recovery::Recovery::new(config.nodes, config.recovery_bound_ms)));
    }
    laws
}

/// Some laws at once.
pub struct Judge {
    laws: Vec<Box<dyn Law>>,
}

impl Judge {
    pub fn new(laws: Vec<Box<dyn Law>>) -> Judge {
        Judge { laws }
    }

    pub fn observe(&mut self, event: &Stamped) {
        if is_judged(&event.event) {
            self.laws.iter_mut().for_each(|law| law.observe(event));
        }
    }

    /// The run is over: what each law found, by its name.
    pub fn finish(&mut self) -> Vec<(&'static str, Verdict)> {
        self.laws.iter_mut().map(|law| (law.name(), law.finish())).collect()
    }
}

/// Whether some law looks at such an event: at half of them none does.
fn is_judged(event: &Event) -> bool {
    let Event::Node { event, .. } = event else { return true };
    !matches!(event, NodeEvent::Sent { .. } | NodeEvent::Received { .. } | NodeEvent::ReadConfirmed { .. })
}

/// What a law knows of one member.
trait Resident: Default {
    fn id(&mut self) -> &mut u64;
}

/// A process starts on this node: if it is of another member than the last one, nothing is known of it.
fn moves_in<T: Resident>(list: &mut Vec<T>, node: NodeNumber, member: u64) {
    let own = of_node(list, node);
    if *own.id() != member {
        *own = T::default();
        *own.id() = member;
    }
}

/// A node's own place in a list that grows with the nodes seen.
fn of_node<T: Default>(list: &mut Vec<T>, node: NodeNumber) -> &mut T {
    if list.len() <= node.0 {
        list.resize_with(node.0 + 1, T::default);
    }
    &mut list[node.0]
}
