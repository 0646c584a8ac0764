//! Spoilt watches.
use super::{History, breaks};
use crate::history::{Event, Watched, WatchedEvent, WatcherId};

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
        let what = Watched::Ended { reason: "compacted".into(), compacted: 3 };
        history.insert(at, Event::Watch { watcher, what });
        true
    });
}
