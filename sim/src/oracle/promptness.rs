//! Law: while nothing is wrong, an operation is done, and does not take long.
//!
//! A wake-up that is missed does not stop a cluster: it hides as latency until the next tick. So an operation that is
//! called in a calm is due within a bound, as long as the calm lasts. It is calm when for some time all nodes have been
//! up, no fault has been on, and leader and terms have been as they are. A refusal is no answer then, but that a revision
//! is not there yet: whether it is, other laws judge; and a learner's, who refuses what is not for learners.
//!
//! Links may lose bytes by themselves, calm or not, and bring them late. The bound is for the time in which the
//! operation's way was free ([`Delays`]): that is the store's time. So a client that gave up is a violation unless the
//! network took so much of its patience that less than the bound was left.
use std::collections::VecDeque;

use detcd_core::event::{NodeEvent, Role};

use super::{
    Law, Verdict, Violation,
    case::Case,
    delays::Delays,
    of_node,
    replay::FUTURE_REVISION,
    roster::{Roster, is_for_learners},
};
use crate::history::{Event, NO_ANSWER, Nanos, NodeNumber, OpId, Outcome, Request, Stamped};

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
    /// Who led last, and in which term.
    leader: Option<(u64, NodeNumber)>,
    roster: Roster,
    delays: Delays,
    /// Operations that were called in this calm and have not returned, in the order of their calls.
    due: VecDeque<Due>,
}

struct Due {
    op: OpId,
    client: u64,
    node: NodeNumber,
    request: Request,
    called: Nanos,
    /// The time that counts, in nanoseconds, up to `counted`.
    free_ns: u64,
    counted: Nanos,
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
            leader: None,
            roster: Roster::default(),
            delays: Delays::default(),
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
                let (called, counted) = (event.at, event.at);
                self.due.push_back(Due { op, client, node, request, called, free_ns: 0, counted });
            }
            Event::Return { op, outcome } => {
                self.count(event.at);
                if let Some(at) = self.due.iter().position(|due| due.op == *op) {
                    let due = self.due.remove(at).expect("just seen");
                    self.returned(event, &due, outcome);
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
            Event::Node { node, event: NodeEvent::RoleChanged { role, term, .. } } => {
                if *role == Role::Leader && self.leader.is_none_or(|(known, _)| known <= term.0) {
                    self.leader = Some((term.0, *node));
                }
                self.disturb(event.at);
            }
            Event::Node { event: NodeEvent::DiskStalled { .. }, .. } => self.disturb(event.at),
            // Of which way time counts changes here: up to now it was the old one.
            Event::Delayed { .. } | Event::Node { event: NodeEvent::ConfigurationApplied { .. }, .. } => {
                self.count(event.at);
            }
            _ => {}
        }
        self.roster.observe(event);
        self.delays.observe(event);
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

    /// Counts the time up to now, as far as the way of each operation was free.
    fn count(&mut self, now: Nanos) {
        let Promptness { due, delays, roster, leader, .. } = self;
        for due in due {
            let leader = leader.map(|(_, node)| node);
            let free = delays.free_at(due.client, due.node, &due.request, leader, roster).max(due.counted);
            due.free_ns += now.0.saturating_sub(free.0);
            due.counted = now;
        }
    }

    fn judge(&mut self, event: &Stamped) {
        let late = |due: &Due| event.at.0 > due.called.0 + self.bound_ns;
        if !self.due.front().is_some_and(late) {
            return;
        }
        self.count(event.at);
        if let Some(due) = self.due.iter().find(|due| due.free_ns > self.bound_ns) {
            let expected = format!("an answer within {} ms", self.bound_ns / 1_000_000);
            self.case.take(Err(due.violation(event, &expected, format!("none by {}", event.at))));
        }
    }

    fn returned(&mut self, event: &Stamped, due: &Due, outcome: &Outcome) {
        match outcome.trouble() {
            None => self.case.right(),
            Some(why) if self.may_be_refused(due, why) => self.case.right(),
            // The network took of its patience: what was left may have been too little.
            Some(NO_ANSWER) if due.free_ns < self.bound_ns => self.case.give_up(1),
            Some(why) => self.case.take(Err(due.violation(event, "it to be done", why.to_owned()))),
        }
    }

    fn may_be_refused(&self, due: &Due, why: &str) -> bool {
        let future = matches!(due.request, Request::Range { revision: 1.., .. }) && why.contains(FUTURE_REVISION);
        // A member may not know yet that it is a learner no more.
        let lately = Nanos(due.called.0.saturating_sub(self.bound_ns));
        future || !is_for_learners(&due.request) && self.roster.may_refuse(due.node, lately, why)
    }
}

impl Due {
    fn violation(&self, event: &Stamped, expected: &str, got: String) -> Violation {
        let Due { op, node, request, called, free_ns, .. } = self;
        let subject = format!("op {op} at {node}, called at {called}: {request:?}");
        let got = format!("{got}, with the way free for {} ms", free_ns / 1_000_000);
        Violation::new(event.sequence, subject, format!("{expected}, as nothing is wrong"), got)
    }
}
