//! What broke, and what everybody was doing when it did.
use std::{collections::BTreeMap, fmt::Write};

use detcd_core::event::NodeEvent;

use super::Names;
use crate::{
    history::{Event, NodeNumber, Outcome, Stamped},
    oracle::{Verdict, Violation},
    runner::Run,
};

/// Events of each node that are shown.
const LAST_EVENTS: usize = 8;
/// Calls that are shown.
const LAST_CALLS: usize = 6;

pub fn render(run: &Run) -> String {
    let (names, mut out) = (Names::new(&run.history), String::new());
    if let Some(accident) = &run.accident {
        let _ = writeln!(out, "\n{}: {}", accident.kind, accident.text);
        context(&mut out, &run.history);
    }
    for (name, verdict) in &run.laws {
        if let Verdict::Violated(violation) = verdict {
            violated(&mut out, name, violation);
            let end = run.history.partition_point(|stamped| stamped.sequence <= violation.sequence);
            context(&mut out, &run.history[..end]);
        }
    }
    format!("\nmembers   {}\n{}", names.legend(), names.apply(&out))
}

fn violated(out: &mut String, name: &str, violation: &Violation) {
    let Violation { sequence, subject, expected, got, index, revision } = violation;
    let _ = writeln!(out, "\n{name} is violated");
    let _ = writeln!(out, "  what      {subject}");
    let _ = writeln!(out, "  expected  {expected}");
    let _ = writeln!(out, "  got       {got}");
    if let Some(index) = index {
        let _ = writeln!(out, "  index     {index}");
    }
    if let Some(revision) = revision {
        let _ = writeln!(out, "  revision  {revision}");
    }
    let _ = writeln!(out, "  event     {sequence}");
}

/// The state of the world at the end of `history`.
fn context(out: &mut String, history: &[Stamped]) {
    let Some(last) = history.last() else { return };
    let _ = writeln!(out, "  time      {}", last.at);
    let _ = writeln!(out, "  leader    {}", leader(history));
    let faults = faults(history);
    let _ = writeln!(out, "  faults    {}", if faults.is_empty() { "none".into() } else { faults.join("; ") });
    for line in calls(history) {
        let _ = writeln!(out, "  call      {line}");
    }
    for (node, lines) in last_events(history) {
        let _ = writeln!(out, "  {node}");
        for line in lines {
            let _ = writeln!(out, "            {line}");
        }
    }
}

fn leader(history: &[Stamped]) -> String {
    use detcd_core::event::Role;
    let led = history.iter().rev().find_map(|stamped| match &stamped.event {
        Event::Node { node, event: NodeEvent::RoleChanged { role: Role::Leader, term, .. } } => {
            Some(format!("{node} since {} in term {term}", stamped.at))
        }
        _ => None,
    });
    led.unwrap_or_else(|| "nobody yet".into())
}

fn faults(history: &[Stamped]) -> Vec<String> {
    let mut on = BTreeMap::new();
    for stamped in history {
        if let Event::Fault { fault, on: begins } = &stamped.event {
            if *begins {
                on.insert(fault.clone(), stamped.at)
            } else {
                on.remove(fault)
            };
        }
    }
    on.into_iter().map(|(fault, since)| format!("{fault} since {since}")).collect()
}

/// The last calls that returned.
fn calls(history: &[Stamped]) -> Vec<String> {
    let returned = history.iter().rev().filter_map(|stamped| match &stamped.event {
        Event::Return { op, outcome } => Some((stamped.at, op, outcome)),
        _ => None,
    });
    let mut lines: Vec<_> = returned
        .take(LAST_CALLS)
        .map(|(at, op, outcome)| {
            let call = history.iter().rev().find_map(|stamped| match &stamped.event {
                Event::Call { op: other, node, request, .. } if other == op => {
                    Some(format!("at {node}, called {}: {request:?}", stamped.at))
                }
                _ => None,
            });
            let outcome = match outcome {
                Outcome::Ok(answer) => format!("{:?} at revision {}", answer.body, answer.revision),
                other => format!("{other:?}"),
            };
            format!("{at} {op} {} -> {outcome}", call.unwrap_or_default())
        })
        .collect();
    lines.reverse();
    lines
}

fn last_events(history: &[Stamped]) -> BTreeMap<NodeNumber, Vec<String>> {
    let mut lines: BTreeMap<NodeNumber, Vec<String>> = BTreeMap::new();
    let nodes = history.iter().filter_map(|stamped| match stamped.event {
        Event::Started { node, .. } => Some(node),
        _ => None,
    });
    lines.extend(nodes.map(|node| (node, Vec::new())));
    let mut full = 0;
    for stamped in history.iter().rev() {
        let (node, text) = match &stamped.event {
            // Messages come and go all the time and would push out everything else.
            Event::Node { event: NodeEvent::Sent { kind, .. } | NodeEvent::Received { kind, .. }, .. }
                if kind.starts_with("heartbeat") =>
            {
                continue;
            }
            Event::Node { node, event } => (*node, format!("{event:?}")),
            Event::Started { node, .. } => (*node, "started".to_owned()),
            Event::Killed { node, power_loss: true } => (*node, "lost power".to_owned()),
            Event::Killed { node, power_loss: false } => (*node, "killed".to_owned()),
            _ => continue,
        };
        let entry = lines.entry(node).or_default();
        if entry.len() < LAST_EVENTS {
            entry.push(format!("{} {text}", stamped.at));
            full += usize::from(entry.len() == LAST_EVENTS);
        }
        if full == lines.len() {
            break;
        }
    }
    lines.values_mut().for_each(|lines| lines.reverse());
    lines
}
