//! The laws: one a file, each a small machine that observes the history and can say which law broke, and where.
//!
//! Laws share no logic with the node. Each must be able to fail: its tests edit a good history until it does.
use crate::history::Stamped;

/// What a law found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It judged so many things, and all were right.
    Holds {
        judged: u64,
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

/// One law.
pub trait Law: Send {
    /// Its stable name, as scenarios and reports spell it.
    fn name(&self) -> &'static str;
    /// Takes in the next event. After a violation it may ignore the rest: the first one is the one to tell.
    fn observe(&mut self, event: &Stamped);
    /// The run is over.
    fn finish(&mut self) -> Verdict;
}
