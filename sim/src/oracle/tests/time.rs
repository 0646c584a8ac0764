//! Histories in which something comes too late, or never.
use detcd_core::event::{NodeEvent, Role};

use super::{CONFIG, History, breaks, breaks_both, cluster, judge, traffic::State};
use crate::{
    history::{Event, Nanos, Outcome, Phase, Stamped},
    oracle::{LawConfig, Verdict},
};

const RECOVERY: &str = "recovery";
const PROMPTNESS: &str = "promptness";

fn phase(history: &History, wanted: Phase) -> usize {
    let at = history.events.iter().position(|event| matches!(event.event, Event::Phase(phase) if phase == wanted));
    at.expect("runs have phases")
}

#[test]
fn a_cluster_that_does_not_recover_breaks_recovery() {
    // Nobody ever leads, so nobody commits.
    breaks_both(RECOVERY, &["durability"], |history| {
        for event in &mut history.events {
            if let Event::Node { event: NodeEvent::RoleChanged { role, .. }, .. } = &mut event.event
                && *role == Role::Leader
            {
                *role = Role::Candidate;
            }
        }
        true
    });
    // No write is acknowledged any more.
    breaks_both(RECOVERY, &[PROMPTNESS], |history| {
        let from = phase(history, Phase::Recovery);
        for done in history.done().into_iter().filter(|done| done.at > from && done.request.writes()) {
            let outcome = Outcome::Unknown("no answer in time".into());
            history.events[done.at].event = Event::Return { op: done.op, outcome };
        }
        true
    });
    // One member lacks the last entry in the end. If it read from it, that is wrong too.
    breaks_both(RECOVERY, &["serializable_reads"], |history| {
        let applied = |event: &NodeEvent| matches!(event, NodeEvent::Applied { .. }).then_some(());
        let (at, ..) = history.nodes(applied).next_back().expect("entries are applied");
        history.events.remove(at);
        true
    });
    // One member was started again, and never got anywhere.
    breaks(RECOVERY, |history| {
        let at = phase(history, Phase::Over) - 1;
        let started = |event: &Stamped| matches!(event.event, Event::Started { .. });
        let again = history.events.iter().find(|event| started(event)).expect("members start").event.clone();
        history.insert(at, again);
        true
    });
}

#[test]
fn recovery_is_due_within_its_bound() {
    let (events, _) = cluster::history(1, 3);
    let verdict = |bound: u64, events: &[Stamped]| {
        let verdicts = judge(&LawConfig { recovery_bound_ms: bound, ..CONFIG }, events);
        verdicts.into_iter().find(|(law, _)| *law == RECOVERY).expect("it is a law").1
    };
    assert!(matches!(verdict(4_000, &events), Verdict::Holds { judged: 4, .. }));
    assert!(matches!(verdict(1, &events), Verdict::Violated(_)));
    let without: Vec<_> = events.iter().filter(|event| event.event != Event::Phase(Phase::Recovery)).cloned().collect();
    assert!(matches!(verdict(4_000, &without), Verdict::Unknown { .. }));
    assert!(matches!(verdict(4_000, &events[..events.len() - 1]), Verdict::Unknown { .. }));
}

/// The place of a return in the calm at the end, after everything else in flight then.
fn calm_return(history: &History) -> Option<usize> {
    let calm = |at: usize| history.events[at].at >= Nanos(15_000 * cluster::MS);
    let linearizable = |request: &crate::history::Request| {
        !matches!(request, crate::history::Request::Range { serializable: true, .. })
    };
    history.done().into_iter().find(|done| calm(done.call) && linearizable(&done.request)).map(|done| done.at)
}

#[test]
fn a_late_answer_breaks_promptness() {
    // It comes 100 ms after it did.
    breaks(PROMPTNESS, |history| {
        let Some(at) = calm_return(history) else { return false };
        let late = Nanos(history.events[at].at.0 + 100 * cluster::MS);
        let mut event = history.events.remove(at);
        event.at = late;
        let to = history.events.iter().position(|event| event.at >= late).expect("the run goes on");
        history.events.insert(to, event);
        true
    });
    // It never comes.
    breaks(PROMPTNESS, |history| {
        let Some(at) = calm_return(history) else { return false };
        history.events.remove(at);
        true
    });
    // It is a refusal.
    breaks(PROMPTNESS, |history| {
        let Some(at) = calm_return(history) else { return false };
        let Event::Return { outcome, .. } = &mut history.events[at].event else { unreachable!() };
        *outcome = Outcome::Unknown("Unavailable: try another one".into());
        true
    });
    // It comes only as a fault begins.
    breaks_both(PROMPTNESS, &["durability"], |history| {
        let Some(at) = calm_return(history) else { return false };
        let late = Nanos(history.events[at].at.0 + 100 * cluster::MS);
        history.events.remove(at);
        history.events.retain(|event| event.at < Nanos(15_000 * cluster::MS) || event.at >= late || !is_tick(event));
        let to = history.events.iter().position(|event| event.at >= late).expect("the run goes on");
        history.insert(to, Event::Fault { fault: "late".into(), on: true });
        true
    });
}

fn is_tick(event: &Stamped) -> bool {
    matches!(&event.event, Event::Node { event: NodeEvent::Committed { .. }, .. })
}

#[test]
fn without_a_calm_nothing_is_judged() {
    let (mut events, states): (_, Vec<State>) = cluster::history(2, 3);
    assert!(states.len() > 100);
    let fault = Event::Fault { fault: "for ever".into(), on: true };
    events.insert(0, Stamped { at: Nanos(0), sequence: 0, event: fault });
    let verdicts = judge(&CONFIG, &events);
    assert!(verdicts.contains(&(PROMPTNESS, Verdict::Holds { judged: 0, given_up: 0 })), "{verdicts:?}");
}
