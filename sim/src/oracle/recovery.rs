//! Law: once the faults are over, the cluster is itself again within a bound.
//!
//! Within the bound after [`Phase::Recovery`] begins: a running member leads, a write that was called since is
//! acknowledged, and every running member has applied what was applied anywhere at that moment. At [`Phase::Over`] all
//! have applied the same. While some fault is still on (a part may stay broken), a quorum is enough.
use detcd_core::event::{NodeEvent, Role};

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    of_node,
};
use crate::history::{Event, Nanos, NodeNumber, OpId, Outcome, Phase, Stamped};

pub struct Recovery {
    case: Case,
    voters: usize,
    bound_ms: u64,
    /// By node number; place 0 is nobody.
    members: Vec<Member>,
    faults_on: u64,
    /// When the faults were over.
    since: Option<Nanos>,
    led: bool,
    /// Writes called since then and not answered yet.
    called: Vec<OpId>,
    any_called: bool,
    /// What was applied anywhere when the first of them was acknowledged.
    target: Option<u64>,
    caught_up: bool,
    over: bool,
}

#[derive(Default)]
struct Member {
    running: bool,
    leads: bool,
    applied: u64,
}

impl Recovery {
    pub fn new(voters: usize, bound_ms: u64) -> Recovery {
        Recovery {
            case: Case::default(),
            voters,
            bound_ms,
            members: Vec::new(),
            faults_on: 0,
            since: None,
            led: false,
            called: Vec::new(),
            any_called: false,
            target: None,
            caught_up: false,
            over: false,
        }
    }
}

impl Law for Recovery {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() || self.over {
            return;
        }
        let late = self.late(event);
        self.case.take(late);
        self.look(event);
        if matches!(event.event, Event::Phase(Phase::Over)) {
            self.over = true;
            let finding = self.at_rest(event.sequence);
            self.case.take(finding);
        }
    }

    fn finish(&mut self) -> Verdict {
        if self.since.is_none() {
            self.case.doubt("the run had no recovery phase".into());
        } else if !self.over {
            self.case.doubt("the run ended before its recovery was over".into());
        } else if !self.is_recovered() {
            let missing = self.missing();
            self.case.doubt(format!("the run was over within {} ms: too early to ask for {missing}", self.bound_ms));
        }
        self.case.verdict()
    }
}

impl Recovery {
    fn look(&mut self, event: &Stamped) {
        match &event.event {
            Event::Started { node, .. } => {
                *of_node(&mut self.members, *node) = Member { running: true, leads: false, applied: 0 };
            }
            Event::Killed { node, .. } | Event::Node { node, event: NodeEvent::Stopped { .. } } => {
                let member = of_node(&mut self.members, *node);
                (member.running, member.leads) = (false, false);
            }
            Event::Node { node, event: NodeEvent::RoleChanged { role, .. } } => {
                of_node(&mut self.members, *node).leads = *role == Role::Leader;
            }
            Event::Node {
                node,
                event:
                    NodeEvent::Applied { index, .. }
                    | NodeEvent::SnapshotInstalled { index, .. }
                    | NodeEvent::Recovered { applied: index, .. },
            } => {
                of_node(&mut self.members, *node).applied = index.0;
            }
            Event::Node { event: NodeEvent::ConfigurationApplied { voters, valid: true, .. }, .. } => {
                self.voters = voters.len();
            }
            Event::Fault { on, .. } => {
                self.faults_on = if *on { self.faults_on + 1 } else { self.faults_on.saturating_sub(1) };
            }
            Event::Phase(Phase::Recovery) => self.since = Some(event.at),
            Event::Call { op, request, .. } if self.since.is_some() && self.target.is_none() && request.writes() => {
                self.called.push(*op);
                self.any_called = true;
            }
            Event::Return { op, outcome } if self.called.contains(op) => {
                self.called.retain(|called| called != op);
                if let Outcome::Ok(_) = outcome {
                    self.target = self.members.iter().map(|member| member.applied).max();
                    self.called.clear();
                    self.case.right();
                }
            }
            _ => return,
        }
        if self.since.is_some() {
            self.progress();
        }
    }

    fn progress(&mut self) {
        if !self.led && self.members.iter().any(|member| member.leads) {
            self.led = true;
            self.case.right();
        }
        if let Some(target) = self.target
            && !self.caught_up
            && self.enough(|member| member.applied >= target)
        {
            self.caught_up = true;
            self.case.right();
        }
    }

    /// Of the running members all, or a quorum while something is still broken.
    fn enough(&self, good: impl Fn(&Member) -> bool) -> bool {
        let running = self.members.iter().filter(|member| member.running);
        let all = running.clone().count();
        let needed = if self.faults_on > 0 { all.min(self.voters / 2 + 1) } else { all };
        needed > 0 && running.filter(|member| good(member)).count() >= needed
    }

    fn is_recovered(&self) -> bool {
        self.led && self.target.is_some() && self.caught_up
    }

    fn missing(&self) -> String {
        if !self.led {
            "a leader".into()
        } else if !self.any_called {
            "an acknowledged write, as none was called".into()
        } else if let Some(target) = self.target {
            format!("every running member at index {target}")
        } else {
            "a write that is called and acknowledged".into()
        }
    }

    /// Whether the bound has passed in vain before this event.
    fn late(&self, event: &Stamped) -> Finding {
        let Some(since) = self.since else { return Ok(()) };
        let bound = Nanos(since.0 + self.bound_ms * 1_000_000);
        if event.at <= bound || self.is_recovered() {
            return Ok(());
        }
        let (subject, expected) = (format!("the cluster, {} ms after the faults", self.bound_ms), self.missing());
        Err(Violation::new(event.sequence, subject, expected, self.show()).at_index(self.highest()))
    }

    fn at_rest(&mut self, sequence: u64) -> Finding {
        if self.since.is_none() {
            return Ok(());
        }
        let highest = self.highest();
        if !self.enough(|member| member.applied == highest) {
            let (subject, expected) = ("the members, at the end", format!("all have applied up to {highest}"));
            return Err(Violation::new(sequence, subject, expected, self.show()).at_index(highest));
        }
        self.case.right();
        Ok(())
    }

    fn highest(&self) -> u64 {
        self.members.iter().map(|member| member.applied).max().unwrap_or(0)
    }

    fn show(&self) -> String {
        let show = |(node, member): (usize, &Member)| {
            let state = match member {
                Member { running: false, .. } => "down, ",
                Member { leads: true, .. } => "leads, ",
                _ => "",
            };
            format!("{}: {state}applied {}", NodeNumber(node), member.applied)
        };
        self.members.iter().enumerate().skip(1).map(show).collect::<Vec<_>>().join("; ")
    }
}
