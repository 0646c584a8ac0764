//! Spoilt watches.
use detcd_core::{
    event::NodeEvent,
    types::{Index, MemberId},
};

use super::{
    CONFIG, History, SEEDS, breaks,
    cluster::{self, MS},
    judge,
};
use crate::{
    history::{Event, Host, NO_ANSWER, Nanos, NodeNumber, WATCHERS_FROM, Watched, WatchedEvent, WatcherId},
    oracle::Verdict,
};

const WATCH: &str = "watch";

impl History {
    /// Responses with events: their places, watchers and the events.
    fn responses(&self) -> Vec<(usize, WatcherId, Vec<WatchedEvent>)> {
        let responses = self.events.iter().enumerate().filter_map(|(at, event)| match &event.event {
            Event::Watch { watcher, what: Watched::Events { events, .. } } => Some((at, *watcher, events.clone())),
            _ => None,
        });
        responses.collect()
    }

    fn watched(&mut self, at: usize) -> (&mut i64, &mut Vec<WatchedEvent>) {
        match &mut self.events[at].event {
            Event::Watch { what: Watched::Events { revision, events }, .. } => (revision, events),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn missing_events_break_watch() {
    // One response in the middle.
    breaks(WATCH, |history| {
        let responses = history.responses();
        history.events.remove(responses[responses.len() / 2].0);
        true
    });
    // One revision of several in a response.
    breaks(WATCH, |history| {
        let Some((at, _, events)) = history
            .responses()
            .into_iter()
            .find(|(_, _, events)| events[0].kv.modified != events[events.len() - 1].kv.modified)
        else {
            return false;
        };
        let first = events[0].kv.modified;
        history.watched(at).1.retain(|event| event.kv.modified != first);
        true
    });
    // All that a watch would have heard at its end.
    breaks(WATCH, |history| {
        let (_, watcher, _) = history.responses().pop().expect("there are some");
        let last_asked = history.events.iter().rposition(
            |event| matches!(&event.event, Event::Watch { watcher: of, what: Watched::Asked { .. } } if *of == watcher),
        );
        let (from, mut place) = (last_asked.expect("it asked"), 0);
        history.events.retain(|event| {
            place += 1;
            let late = place > from + 1 && matches!(&event.event, Event::Watch { watcher: of, .. } if *of == watcher);
            !late || matches!(&event.event, Event::Watch { what: Watched::Created { .. }, .. })
        });
        true
    });
    // The answer to the request for it.
    breaks(WATCH, |history| {
        let created = history
            .events
            .iter()
            .rposition(|event| matches!(&event.event, Event::Watch { what: Watched::Created { .. }, .. }));
        let at = created.expect("watches are made");
        let Event::Watch { watcher, .. } = history.events[at].event else { unreachable!() };
        let mut place = 0;
        history.events.retain(|event| {
            place += 1;
            place <= at || !matches!(&event.event, Event::Watch { watcher: of, .. } if *of == watcher)
        });
        true
    });
}

#[test]
fn events_in_the_wrong_place_break_watch() {
    // Twice.
    breaks(WATCH, |history| {
        let (at, ..) = history.responses()[3];
        let copy = history.events[at].event.clone();
        history.insert(at + 1, copy);
        true
    });
    // Two responses in the other order.
    breaks(WATCH, |history| {
        let responses = history.responses();
        let pair = responses.windows(2).find(|pair| pair[0].1 == pair[1].1).expect("two of one watch");
        let first = history.events[pair[0].0].event.clone();
        history.events[pair[0].0].event = std::mem::replace(&mut history.events[pair[1].0].event, first);
        true
    });
    // A revision in two responses.
    breaks(WATCH, |history| {
        let all = history.responses();
        let Some((at, watcher, events)) =
            all.into_iter().find(|(_, _, events)| events.len() == 2 && events[0].kv.modified == events[1].kv.modified)
        else {
            return false;
        };
        let (revision, first) = history.watched(at);
        let (revision, rest) = (*revision, first.split_off(1));
        assert_eq!(rest, events[1..]);
        history.insert(at + 1, Event::Watch { watcher, what: Watched::Events { revision, events: rest } });
        true
    });
    // From before what was asked for.
    breaks(WATCH, |history| {
        let (at, watcher, events) = history.responses()[5].clone();
        let asked = history.events[..at].iter().rposition(
            |event| matches!(&event.event, Event::Watch { watcher: of, what: Watched::Asked { .. } } if *of == watcher),
        );
        let Event::Watch { what: Watched::Asked { start, .. }, .. } =
            &mut history.events[asked.expect("it asked")].event
        else {
            unreachable!()
        };
        *start = events[0].kv.modified + 1;
        true
    });
    // Before any member has applied it.
    breaks(WATCH, |history| {
        let (at, _, events) = history.responses()[10].clone();
        let applied = history.nodes(|event| match event {
            detcd_core::event::NodeEvent::Applied { revision, .. } => Some(revision.0),
            _ => None,
        });
        let first = applied.filter(|(.., revision)| *revision == events[0].kv.modified).map(|(at, ..)| at).next();
        let early = history.events.remove(at);
        history.events.insert(first.expect("it is applied"), early);
        true
    });
}

#[test]
fn wrong_events_break_watch() {
    breaks(WATCH, |history| {
        let (at, ..) = history.responses()[7];
        history.watched(at).1[0].kv.value = "other".into();
        true
    });
    breaks(WATCH, |history| {
        let (at, ..) = history.responses()[7];
        history.watched(at).1[0].kv.version += 1;
        true
    });
    breaks(WATCH, |history| {
        let with_previous = |events: &[WatchedEvent]| events[0].previous.is_some();
        let Some((at, ..)) = history.responses().into_iter().find(|(.., events)| with_previous(events)) else {
            return false;
        };
        history.watched(at).1[0].previous = None;
        true
    });
    breaks(WATCH, |history| {
        let (at, ..) = history.responses()[7];
        history.watched(at).1[0].deleted ^= true;
        true
    });
}

#[test]
fn wrong_headers_and_progress_break_watch() {
    breaks(WATCH, |history| {
        let (at, ..) = history.responses()[7];
        *history.watched(at).0 -= 1;
        true
    });
    breaks(WATCH, |history| {
        let (at, ..) = history.responses()[7];
        *history.watched(at).0 += 1_000;
        true
    });
    // Progress up to what is told only then.
    breaks(WATCH, |history| {
        let (at, watcher, events) = history.responses()[9].clone();
        let revision = events[0].kv.modified;
        history.insert(at, Event::Watch { watcher, what: Watched::Progress { revision } });
        true
    });
    breaks(WATCH, |history| {
        let (at, watcher, _) = history.responses()[9].clone();
        let what = Watched::Ended { reason: "compacted".into(), wanted: false, compacted: 3 };
        history.insert(at, Event::Watch { watcher, what });
        true
    });
}

/// Watches that begin and end in the calm at the end: whose, and where they were asked for and ended.
fn calm_watches(history: &History) -> Vec<(WatcherId, usize, usize)> {
    let (mut asked, mut watches) = (std::collections::BTreeMap::new(), Vec::new());
    for (at, event) in history.events.iter().enumerate() {
        match &event.event {
            Event::Watch { watcher, what: Watched::Asked { .. } } => drop(asked.insert(*watcher, at)),
            Event::Watch { watcher, what: Watched::Ended { wanted: true, .. } } => {
                let begun = asked[watcher];
                if history.events[begun].at >= Nanos(12_000 * MS) {
                    watches.push((*watcher, begun, at));
                }
            }
            _ => {}
        }
    }
    watches
}

/// A watch in the calm, on its way to an end that its watcher did not want. What the law finds in each history, if
/// something else happened before it was asked for.
fn ended(reason: &str, before: impl Fn(&mut History, WatcherId, NodeNumber, usize)) -> Vec<Verdict> {
    let verdicts = (0..SEEDS).filter_map(|seed| {
        let (events, states) = cluster::history(seed, 3);
        let mut history = History { events, states };
        let (watcher, asked, ended) = calm_watches(&history).pop()?;
        let what = Watched::Ended { reason: reason.into(), wanted: false, compacted: 0 };
        history.events[ended].event = Event::Watch { watcher, what };
        let Event::Watch { what: Watched::Asked { node, .. }, .. } = history.events[asked].event else {
            unreachable!()
        };
        before(&mut history, watcher, node, asked);
        let mut verdicts = judge(&CONFIG, &history.events).into_iter();
        Some(verdicts.find(|(law, _)| *law == WATCH).expect("it is a law").1)
    });
    let verdicts: Vec<_> = verdicts.collect();
    assert!(!verdicts.is_empty(), "no history gave an occasion");
    verdicts
}

#[test]
fn learners_are_not_watched() {
    let refused = "FailedPrecondition: etcdserver: rpc not supported for learner";
    let a_learner = |history: &mut History, _: WatcherId, node: NodeNumber, asked: usize| {
        let (learners, voters) = (vec![history.member(node)], vec![MemberId(10), MemberId(11)]);
        let event = NodeEvent::ConfigurationApplied { index: Index(1_000_000), voters, learners, valid: true };
        history.insert(asked, Event::Node { node, event });
    };
    let holds = |verdict: &Verdict| matches!(verdict, Verdict::Holds { .. });
    let verdicts = ended(refused, a_learner);
    assert!(verdicts.iter().all(holds), "{verdicts:?}");
    // A voter says so; a learner that says something else.
    for verdicts in [ended(refused, |_, _, _, _| ()), ended("the stream ended", a_learner)] {
        assert!(!verdicts.iter().any(holds), "{verdicts:?}");
    }
}

#[test]
fn who_gives_up_while_bytes_are_late_breaks_nothing() {
    let late = |of: u64, until: u64| {
        move |history: &mut History, watcher: WatcherId, node: NodeNumber, asked: usize| {
            let (from, to) = (Host::Node(node), Host::Client(WATCHERS_FROM + watcher.0 + of));
            history.insert(asked, Event::Delayed { from, to, until: Nanos(until * MS) });
        }
    };
    let holds = |verdict: &Verdict| matches!(verdict, Verdict::Holds { .. });
    let verdicts = ended(NO_ANSWER, late(0, 60_000));
    assert!(verdicts.iter().all(holds), "{verdicts:?}");
    // Another watcher's way; not late any more; another end.
    for verdicts in
        [ended(NO_ANSWER, late(1, 60_000)), ended(NO_ANSWER, late(0, 1)), ended("the stream ended", late(0, 60_000))]
    {
        assert!(!verdicts.iter().any(holds), "{verdicts:?}");
    }
}

#[test]
fn what_is_late_in_a_calm_breaks_watch() {
    // A watch that its watcher did not give up.
    breaks(WATCH, |history| {
        let Some((.., ended)) = calm_watches(history).pop() else { return false };
        let Event::Watch { what: Watched::Ended { wanted, .. }, .. } = &mut history.events[ended].event else {
            unreachable!()
        };
        *wanted = false;
        true
    });
    // It is made and hears of nothing, until its watcher changes its mind and hears of the rest elsewhere.
    breaks(WATCH, |history| {
        let watches = calm_watches(history);
        let Some((of, asked, _)) = watches.first().copied() else { return false };
        let (_, _, ended) = watches.into_iter().rfind(|(watcher, ..)| *watcher == of).expect("just seen");
        let (mut place, mut made) = (0, false);
        let long = history.events[ended].at.0 - history.events[asked].at.0 > 4_000 * MS;
        history.events.retain(|event| {
            place += 1;
            let Event::Watch { watcher, what } = &event.event else { return true };
            let within = *watcher == of && place > asked + 1 && place <= ended;
            let first = within && !made && matches!(what, Watched::Created { .. });
            made |= first;
            !within || first
        });
        long
    });
}
