//! Histories in which something comes too late, or never.
use detcd_core::{
    event::{NodeEvent, Role},
    types::{Index, MemberId},
};

use super::{CONFIG, Done, History, SEEDS, breaks, breaks_both, cluster, judge, traffic::State};
use crate::{
    history::{Event, Host, NO_ANSWER, Nanos, NodeNumber, Outcome, Phase, Stamped},
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

/// An operation in the calm is answered 100 ms late, and before its call the network says that it holds up bytes on some
/// ways until so many milliseconds after it. What the law finds in each history.
fn late_over_delays(for_ms: u64, ways: impl Fn(&Parties) -> Vec<(Host, Host)>) -> Vec<Verdict> {
    let verdicts = (0..SEEDS).filter_map(|seed| {
        let (events, states) = cluster::history(seed, 3);
        let mut history = History { events, states };
        let at = calm_return(&history)?;
        let done = history.done().into_iter().find(|done| done.at == at).expect("it is one of them");
        let late = Nanos(history.events[at].at.0 + 100 * cluster::MS);
        let event = Stamped { at: late, ..history.events.remove(at) };
        let to = history.events.iter().position(|event| event.at >= late).expect("the run goes on");
        history.events.insert(to, event);
        let until = Nanos(history.events[done.call].at.0 + for_ms * cluster::MS);
        for (from, to) in ways(&Parties::of(&history, &done)) {
            history.insert(done.call, Event::Delayed { from, to, until });
        }
        let mut verdicts = judge(&CONFIG, &history.events).into_iter();
        Some(verdicts.find(|(law, _)| *law == PROMPTNESS).expect("it is a law").1)
    });
    let verdicts: Vec<_> = verdicts.collect();
    assert!(!verdicts.is_empty(), "no history gave an occasion");
    verdicts
}

/// Who has to do with an operation.
struct Parties {
    client: Host,
    asked: Host,
    leader: Host,
    followers: Vec<Host>,
}

impl Parties {
    fn of(history: &History, done: &Done) -> Parties {
        let Event::Call { client, node, .. } = history.events[done.call].event else { unreachable!() };
        let leads =
            |event: &NodeEvent| matches!(event, NodeEvent::RoleChanged { role: Role::Leader, .. }).then_some(());
        let (_, leader, ()) = history.nodes(leads).rfind(|(at, ..)| *at < done.call).expect("somebody leads");
        let followers = (1..=3).map(NodeNumber).filter(|number| *number != leader);
        Parties {
            client: Host::Client(client),
            asked: Host::Node(node),
            leader: Host::Node(leader),
            followers: followers.map(Host::Node).collect(),
        }
    }
}

#[test]
fn what_the_network_holds_up_is_not_asked_of_the_store() {
    let holds = |verdict: &Verdict| matches!(verdict, Verdict::Holds { judged: 1.., given_up: 0 });
    let violated = |verdict: &Verdict| matches!(verdict, Verdict::Violated(_));
    // The way there, the way back, and the way to every quorum.
    let verdicts = late_over_delays(100, |who| vec![(who.client, who.asked)]);
    assert!(verdicts.iter().all(holds), "{verdicts:?}");
    let verdicts = late_over_delays(100, |who| vec![(who.asked, who.client)]);
    assert!(verdicts.iter().all(holds), "{verdicts:?}");
    let verdicts = late_over_delays(100, |who| who.followers.iter().map(|other| (*other, who.leader)).collect());
    assert!(verdicts.iter().all(holds), "{verdicts:?}");
    // Not for long enough; on another client's way; on that to one of two followers that does not ask.
    let verdicts = late_over_delays(20, |who| vec![(who.client, who.asked)]);
    assert!(verdicts.iter().all(violated), "{verdicts:?}");
    let verdicts = late_over_delays(100, |who| vec![(Host::Client(99), who.asked)]);
    assert!(verdicts.iter().all(violated), "{verdicts:?}");
    let verdicts = late_over_delays(100, |who| {
        let idle = who.followers.iter().find(|follower| **follower != who.asked);
        vec![(who.leader, *idle.expect("there are two"))]
    });
    assert!(verdicts.iter().all(violated), "{verdicts:?}");
}

#[test]
fn whoever_gives_up_had_enough_patience_but_for_the_network() {
    let verdict = |held_ms: u64| {
        let (mut events, states) = cluster::history(0, 3);
        let history = History { events: std::mem::take(&mut events), states };
        let at = calm_return(&history).expect("there is a calm");
        let call = history.done().into_iter().find(|done| done.at == at).expect("just seen").call;
        let mut history = history;
        let Event::Call { op, client, node, .. } = history.events[call].event else { unreachable!() };
        let given_up = Nanos(history.events[call].at.0 + 100 * cluster::MS);
        history.events.remove(at);
        let to = history.events.iter().position(|event| event.at >= given_up).expect("the run goes on");
        history.insert(to, Event::Return { op, outcome: Outcome::Unknown(NO_ANSWER.into()) });
        history.events[to].at = given_up;
        let (from, to) = (Host::Node(node), Host::Client(client));
        let until = Nanos(history.events[call].at.0 + held_ms * cluster::MS);
        history.insert(call, Event::Delayed { from, to, until });
        let mut verdicts = judge(&CONFIG, &history.events).into_iter();
        verdicts.find(|(law, _)| *law == PROMPTNESS).expect("it is a law").1
    };
    assert!(matches!(verdict(30), Verdict::Violated(_)));
    assert!(matches!(verdict(50), Verdict::Holds { given_up: 1, .. }));
}

/// An operation in the calm is refused, at a member that is a learner by then or has been until some time before.
#[test]
fn learners_may_refuse_what_is_not_for_them() {
    let verdict = |risen_ms_before: Option<u64>, why: &str| {
        let (events, states) = cluster::history(0, 3);
        let mut history = History { events, states };
        let at = calm_return(&history).expect("there is a calm");
        let done = history.done().into_iter().find(|done| done.at == at).expect("just seen");
        let Event::Return { outcome, .. } = &mut history.events[at].event else { unreachable!() };
        *outcome = Outcome::Failed(why.into());
        let member = history.member(done.node);
        let others: Vec<_> = (10..12).map(MemberId).collect();
        let called = history.events[done.call].at.0;
        let mut configure = |index: u64, before_ms: u64, voters: Vec<MemberId>, learners: Vec<MemberId>| {
            let at = Nanos(called - before_ms * cluster::MS);
            let event = NodeEvent::ConfigurationApplied { index: Index(index), voters, learners, valid: true };
            let place = history.events.iter().position(|event| event.at >= at).expect("the run goes on");
            history.insert(place, Event::Node { node: done.node, event });
            history.events[place].at = at;
        };
        configure(1_000_000, 3_000, others.clone(), vec![member]);
        if let Some(before_ms) = risen_ms_before {
            configure(1_000_001, before_ms, [others, vec![member]].concat(), vec![]);
        }
        let mut verdicts = judge(&CONFIG, &history.events).into_iter();
        verdicts.find(|(law, _)| *law == PROMPTNESS).expect("it is a law").1
    };
    let refused = "FailedPrecondition: etcdserver: rpc not supported for learner";
    assert!(matches!(verdict(None, refused), Verdict::Holds { .. }));
    assert!(matches!(verdict(Some(30), refused), Verdict::Holds { .. }));
    assert!(matches!(verdict(Some(1_000), refused), Verdict::Violated(_)));
    assert!(matches!(verdict(None, "Unavailable: etcdserver: no leader"), Verdict::Violated(_)));
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
