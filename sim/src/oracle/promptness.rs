//! Law: while nothing is wrong, an operation is done, and does not take long.
//!
//! A wake-up that is missed does not stop a cluster: it hides as latency until the next tick. So an operation that is
//! called in a calm is due within a bound, as long as the calm lasts. It is calm when for some time all nodes have been
//! up, no fault has been on, and leader and terms have been as they are. A refusal is no answer then, but that a revision
//! is not there yet: whether it is, other laws judge.
use std::collections::VecDeque;

use detcd_core::event::NodeEvent;

use super::{Law, Verdict, Violation, case::Case, of_node, replay::FUTURE_REVISION};
use crate::history::{Event, Nanos, NodeNumber, OpId, Request, Stamped};

/// How long nothing must have been wrong, in simulated nanoseconds.
const CALM_NS: u64 = 5_000_000_000;

pub struct Promptness {
    case: Case,
    nodes: usize,
    bound_ns: u64,
    running: Vec<bool>,
    faults_on: u64,
    /// When something was last wrong, or changed.
    disturbed: Nanos,
    /// Operations that were called in this calm and have not returned, in the order of their calls.
    due: VecDeque<Due>,
}

struct Due {
    op: OpId,
    client: u64,
    node: NodeNumber,
    request: Request,
    called: Nanos,
}

impl Promptness {
    pub fn new(nodes: usize, bound_ms: u64) -> Promptness {
        Promptness {
            case: Case::default(),
            nodes,
            bound_ns: bound_ms * 1_000_000,
            running: Vec::new(),
            faults_on: 0,
            disturbed: Nanos(0),
            due: VecDeque::new(),
        }
    }
}

impl Law for Promptness {
    fn name(&self) -> &'static str {
        "promptness"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        // First of all: whatever this event is, what is overdue by now became so in the calm before it.
        self.judge(event);
        match &event.event {
            Event::Call { op, client, node, request } if self.is_calm(event.at) => {
                let (op, client, node, request) = (*op, *client, *node, request.clone());
                self.due.push_back(Due { op, client, node, request, called: event.at });
            }
            Event::Return { op, outcome } => {
                if let Some(at) = self.due.iter().position(|due| due.op == *op) {
                    let due = self.due.remove(at).expect("just seen");
                    match outcome.trouble().filter(|why| !due.may_be_refused(why)) {
                        Some(why) => self.case.take(Err(due.violation(event, "it to be done", why.to_owned()))),
                        None => self.case.right(),
                    }
                }
            }
            Event::Started { node, .. } => {
                *of_node(&mut self.running, *node) = true;
                self.disturb(event.at);
            }
            Event::Killed { node, .. } | Event::Node { node, event: NodeEvent::Stopped { .. } } => {
                *of_node(&mut self.running, *node) = false;
                self.disturb(event.at);
            }
            Event::Fault { on, .. } => {
                self.faults_on = if *on { self.faults_on + 1 } else { self.faults_on.saturating_sub(1) };
                self.disturb(event.at);
            }
            Event::Node { event: NodeEvent::RoleChanged { .. } | NodeEvent::DiskStalled { .. }, .. } => {
                self.disturb(event.at);
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Promptness {
    fn is_calm(&self, now: Nanos) -> bool {
        let running = self.running.iter().filter(|running| **running).count();
        self.faults_on == 0 && running == self.nodes && now.0 >= self.disturbed.0 + CALM_NS
    }

    /// The calm is over: nobody is due any more.
    fn disturb(&mut self, now: Nanos) {
        self.disturbed = now;
        self.due.clear();
    }

    fn judge(&mut self, event: &Stamped) {
        if let Some(due) = self.due.front()
            && event.at.0 > due.called.0 + self.bound_ns
        {
            let expected = format!("an answer within {} ms", self.bound_ns / 1_000_000);
            self.case.take(Err(due.violation(event, &expected, format!("none by {}", event.at))));
        }
    }
}

impl Due {
    fn may_be_refused(&self, why: &str) -> bool {
        matches!(self.request, Request::Range { revision: 1.., .. }) && why.contains(FUTURE_REVISION)
    }

    fn violation(&self, event: &Stamped, expected: &str, got: String) -> Violation {
        let Due { op, client, node, request, called } = self;
        let subject = format!("op {} of client {client} at {node}, called at {called}: {request:?}", op.0);
        Violation::new(event.sequence, subject, format!("{expected}, as nothing is wrong"), got)
    }
}
