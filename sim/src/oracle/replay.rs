//! The applied log, replayed: which client's write took effect where, and what the store is then.
//!
//! An operation is tied to a request when a node proposes it, and a request to its place when the first node applies
//! it. That a later node applies the same is another law's business.
use std::collections::BTreeMap;

use detcd_core::event::NodeEvent;

use super::{Violation, model::Store};
use crate::history::{Body, Event, OpId, Request, Stamped};

/// etcd's words for a read of a revision that is not there yet.
pub const FUTURE_REVISION: &str = "required revision is a future revision";

#[derive(Default)]
pub struct Replay {
    pub store: Store,
    /// The last index replayed.
    index: u64,
    writes: BTreeMap<OpId, Write>,
    /// By the id in the log.
    requests: BTreeMap<u64, OpId>,
}

struct Write {
    /// Gone once it is applied.
    request: Option<Request>,
    /// 0 until it is applied.
    index: u64,
}

/// One entry took effect, here for the first time.
pub struct Step {
    pub index: u64,
    /// `None` if no client asked for it.
    pub write: Option<Answered>,
}

/// A client's write, and the answer that it calls for.
pub struct Answered {
    pub op: OpId,
    pub body: Body,
}

/// Why the replay cannot go on.
pub enum Trouble {
    /// What the nodes say cannot be so.
    Wrong(Violation),
    /// An entry is missing: what comes after it has no place.
    Gap(String),
}

impl Trouble {
    /// For those who only build on the log.
    pub fn doubt(self) -> String {
        match self {
            Trouble::Wrong(violation) => {
                format!("{}: expected {}, got {}", violation.subject, violation.expected, violation.got)
            }
            Trouble::Gap(why) => why,
        }
    }
}

impl Replay {
    pub fn observe(&mut self, event: &Stamped) -> Result<Option<Step>, Trouble> {
        match &event.event {
            Event::Call { op, request, .. } if request.writes() => {
                self.writes.insert(*op, Write { request: Some(request.clone()), index: 0 });
                Ok(None)
            }
            Event::Node { event: NodeEvent::Proposed { trace, request }, .. } => {
                if self.writes.contains_key(&OpId(trace.0)) {
                    self.requests.insert(request.0, OpId(trace.0));
                }
                Ok(None)
            }
            Event::Node { event: NodeEvent::Applied { index, request, revision, .. }, .. } if index.0 > self.index => {
                self.apply(event.sequence, index.0, request.0, revision.0).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn apply(&mut self, sequence: u64, index: u64, request: u64, revision: i64) -> Result<Step, Trouble> {
        if index != self.index + 1 {
            return Err(Trouble::Gap(format!("entry {index} is applied, but {} was not yet", self.index + 1)));
        }
        self.index = index;
        let wrong = |subject: String, expected: String, got: String| {
            Trouble::Wrong(Violation::new(sequence, subject, expected, got).at_index(index).at_revision(revision))
        };
        let before = self.store.revision();
        let Some(op) = self.requests.get(&request).copied() else {
            if revision == before {
                return Ok(Step { index, write: None });
            }
            let (expected, got) = (format!("revision {before}, as before"), format!("revision {revision}"));
            return Err(wrong(format!("entry {index}, which no client asked for"), expected, got));
        };
        let write = self.writes.get_mut(&op).expect("requests are of writes that were called");
        let first = std::mem::replace(&mut write.index, index);
        let Some(asked) = write.request.take() else {
            let (expected, got) = ("to be applied once".to_owned(), format!("applied at {first} and at {index}"));
            return Err(wrong(format!("op {op}, request {request:x}"), expected, got));
        };
        let body = self.store.apply(&asked);
        let after = self.store.revision();
        if revision != after {
            let subject = format!("entry {index}, op {op}, request {request:x}: {asked:?}");
            return Err(wrong(subject, format!("revision {after}, after {before}"), format!("revision {revision}")));
        }
        Ok(Step { index, write: Some(Answered { op, body }) })
    }

    /// What a range answers when the store is at `revision`; `None` if it asks for a later one.
    pub fn read(&self, request: &Request, revision: i64) -> Option<Body> {
        let Request::Range { keys, revision: asked, limit, keys_only, count_only, .. } = request else {
            unreachable!("only ranges read");
        };
        let at = if *asked <= 0 { revision } else { *asked };
        (at <= revision).then(|| self.store.range(keys, at, *limit, *keys_only, *count_only))
    }

    /// The client's operation behind a request.
    pub fn op(&self, request: u64) -> Option<OpId> {
        self.requests.get(&request).copied()
    }

    /// Where the write was applied.
    pub fn index(&self, op: OpId) -> Option<u64> {
        self.writes.get(&op).map(|write| write.index).filter(|index| *index > 0)
    }
}
