//! Law: a watch is told every change in its range, once, in order, and whole revisions at a time.
//!
//! A watch begins at the revision that it asked for, or right after the one at which it was made, and has a cursor:
//! everything before it was told. A response must go on exactly there with the changes that the model has in the range,
//! all of a revision together, each as the model has it. So nothing is missed, repeated, split, out of order or made up,
//! also over resumes: a watcher asks again from its last cursor. Besides:
//! - Nothing is told before some member has applied it: it would not be committed.
//! - The header's revision is not before what was told, and never goes back within a watch.
//! - Progress up to a revision comes after everything up to there.
//! - In a calm a watch is made in time, is told in time what its member has applied, and goes on until its watcher has
//!   enough. It is calm when for some time no fault has been on and no member has come or gone: before, the way to the
//!   client may be broken. A learner is not watched, and says so; and while links bring lost bytes late, whoever is
//!   behind them is not told in time.
use std::collections::VecDeque;

use detcd_core::event::NodeEvent;

use super::{
    Law, Verdict, Violation,
    case::{Case, Finding},
    delays::Delays,
    of_node,
    replay::Replay,
    roster::Roster,
};
use crate::history::{
    Event, KeyValue, Keys, NO_ANSWER, Nanos, NodeNumber, Phase, Stamped, Text, Watched, WatchedEvent, WatcherId,
};

/// What is younger than this, in simulated nanoseconds, may still be on its way.
const GRACE_NS: u64 = 2_000_000_000;
/// How often the law looks whether something is late.
const LOOK_NS: u64 = 250_000_000;

#[derive(Default)]
pub struct Watch {
    case: Case,
    replay: Replay,
    /// The watch that each watcher has, or is asking for.
    watches: Vec<(WatcherId, Watching)>,
    members: Vec<Member>,
    faults_on: u64,
    /// When a fault last began or ended, or a member came or went.
    disturbed: Nanos,
    roster: Roster,
    delays: Delays,
    /// When the law last looked whether something is late.
    looked: Nanos,
}

struct Watching {
    node: NodeNumber,
    keys: Keys,
    previous: bool,
    asked: Nanos,
    /// Everything before this revision was told; 0 until that is known.
    cursor: i64,
    /// Whether the server said so.
    made: bool,
    /// The revision in the latest header.
    header: i64,
}

/// What a member has applied: the revisions of the last while, and the newest one before.
#[derive(Default)]
struct Member {
    started: Nanos,
    applied: VecDeque<(Nanos, i64)>,
}

impl Law for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn observe(&mut self, event: &Stamped) {
        if self.case.is_closed() {
            return;
        }
        if let Err(trouble) = self.replay.observe(event) {
            self.case.doubt(trouble.doubt());
        }
        let finding = self.look(event);
        self.case.take(finding);
        self.roster.observe(event);
        self.delays.observe(event);
    }

    fn finish(&mut self) -> Verdict {
        self.case.verdict()
    }
}

impl Watch {
    fn look(&mut self, event: &Stamped) -> Finding {
        // First of all: what is late by now became so in the calm before whatever this event is.
        if event.at.0 >= self.looked.0 + LOOK_NS || matches!(event.event, Event::Phase(Phase::Over)) {
            self.looked = event.at;
            self.late(event)?;
        }
        match &event.event {
            Event::Watch { watcher, what } => self.watched(event, *watcher, what),
            Event::Node {
                node,
                event:
                    NodeEvent::Applied { revision, .. }
                    | NodeEvent::SnapshotInstalled { revision, .. }
                    | NodeEvent::Recovered { revision, .. },
            } => {
                of_node(&mut self.members, *node).applied(event.at, revision.0);
                Ok(())
            }
            Event::Started { node, .. } => {
                *of_node(&mut self.members, *node) = Member { started: event.at, applied: VecDeque::new() };
                self.disturbed = event.at;
                Ok(())
            }
            Event::Killed { .. } | Event::Node { event: NodeEvent::Stopped { .. }, .. } => {
                self.disturbed = event.at;
                Ok(())
            }
            Event::Fault { on, .. } => {
                self.faults_on = if *on { self.faults_on + 1 } else { self.faults_on.saturating_sub(1) };
                self.disturbed = event.at;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn watched(&mut self, event: &Stamped, watcher: WatcherId, what: &Watched) -> Finding {
        let at = self.watches.iter().position(|(other, _)| *other == watcher);
        if let Watched::Asked { node, keys, start, previous } = what {
            let (node, keys, previous, asked) = (*node, keys.clone(), *previous, event.at);
            let watching = Watching { node, keys, previous, asked, cursor: *start, made: false, header: 0 };
            match at {
                Some(at) => self.watches[at].1 = watching,
                None => self.watches.push((watcher, watching)),
            }
            return Ok(());
        }
        let Some(at) = at else { return Ok(()) };
        let watching = &mut self.watches[at].1;
        let (replay, case) = (&self.replay, &mut self.case);
        match what {
            Watched::Asked { .. } => unreachable!("handled above"),
            Watched::Created { revision } => {
                watching.heard(event.sequence, watcher, replay, *revision)?;
                watching.made = true;
                if watching.cursor == 0 {
                    watching.cursor = revision + 1;
                }
            }
            Watched::Events { revision, events } => {
                watching.heard(event.sequence, watcher, replay, *revision)?;
                watching.told(event.sequence, watcher, replay, events)?;
                events.iter().for_each(|_| case.right());
            }
            Watched::Progress { revision } => {
                watching.heard(event.sequence, watcher, replay, *revision)?;
                watching.skip_to(event.sequence, watcher, replay, revision + 1)?;
                case.right();
            }
            Watched::Ended { reason, wanted, compacted } => {
                let (_, watching) = self.watches.swap_remove(at);
                if *compacted != 0 {
                    let (expected, got) = ("to go on: nobody compacted", format!("it is, up to {compacted}"));
                    return Err(Violation::new(event.sequence, watching.describe(watcher), expected, got));
                }
                let calm = self.calm_since().is_some_and(|calm| watching.asked >= calm);
                if !wanted && calm && !self.may_end(event.at, watcher, &watching, reason) {
                    let (expected, got) = ("to go on, as nothing is wrong", format!("over: {reason}"));
                    return Err(Violation::new(event.sequence, watching.describe(watcher), expected, got));
                }
            }
        }
        Ok(())
    }

    /// What is asked from here on is due, as long as it stays calm.
    fn calm_since(&self) -> Option<Nanos> {
        (self.faults_on == 0).then_some(Nanos(self.disturbed.0 + GRACE_NS))
    }

    /// Whether a watch may end like that although nothing is wrong.
    fn may_end(&self, now: Nanos, watcher: WatcherId, watching: &Watching, reason: &str) -> bool {
        // A member may not know yet that it is a learner no more.
        let lately = Nanos(watching.asked.0.saturating_sub(GRACE_NS));
        self.roster.may_refuse(watching.node, lately, reason)
            || reason == NO_ANSWER && self.delays.free_to(watcher, watching.node) > now
    }

    /// Whoever watches must have been told what its member had applied in time.
    fn late(&mut self, event: &Stamped) -> Finding {
        let settled = Nanos(event.at.0.saturating_sub(GRACE_NS));
        if self.faults_on > 0 || self.disturbed > settled {
            return Ok(());
        }
        for (watcher, watching) in &mut self.watches {
            let member = of_node(&mut self.members, watching.node);
            let free = self.delays.free_to(*watcher, watching.node);
            if watching.asked > settled || member.started > settled || free.0 + LOOK_NS > event.at.0 {
                continue;
            }
            if !watching.made {
                let (expected, got) = ("to be made in time", format!("asked at {}, no answer", watching.asked));
                return Err(Violation::new(event.sequence, watching.describe(*watcher), expected, got));
            }
            let applied = member.applied.iter().rfind(|(at, _)| *at <= settled).map_or(0, |(_, revision)| *revision);
            if let Some((revision, key)) = watching.next_change(&self.replay, applied + 1) {
                let expected =
                    format!("by now, the change of {key:?} at revision {revision}, applied before {settled}");
                let got = format!("no event from {} on; the last header said {}", watching.cursor, watching.header);
                let violation = Violation::new(event.sequence, watching.describe(*watcher), expected, got);
                return Err(violation.at_revision(revision));
            }
            self.case.right();
        }
        Ok(())
    }
}

impl Member {
    fn applied(&mut self, at: Nanos, revision: i64) {
        if self.applied.back().is_some_and(|(_, newest)| *newest >= revision) {
            return;
        }
        self.applied.push_back((at, revision));
        while self.applied.get(1).is_some_and(|(next, _)| next.0 + GRACE_NS <= at.0) {
            self.applied.pop_front();
        }
    }
}

impl Watching {
    fn describe(&self, watcher: WatcherId) -> String {
        let Keys { start, end } = &self.keys;
        let end = end.as_ref().map_or(String::new(), |end| format!("..{end:?}"));
        format!("watch {} at {} on {start:?}{end}", watcher.0, self.node)
    }

    fn violation(&self, sequence: u64, watcher: WatcherId, revision: i64, expected: String, got: String) -> Finding {
        Err(Violation::new(sequence, self.describe(watcher), expected, got).at_revision(revision))
    }

    /// A response came with this revision in its header.
    fn heard(&mut self, sequence: u64, watcher: WatcherId, replay: &Replay, revision: i64) -> Finding {
        let (before, now) = (self.header, replay.store.revision());
        if revision < before || revision > now {
            let expected =
                format!("a header between {before}, heard before, and {now}, the latest that any member applied");
            return self.violation(sequence, watcher, revision, expected, format!("revision {revision}"));
        }
        self.header = revision;
        Ok(())
    }

    /// The events of one response: they must go on at the cursor.
    fn told(&mut self, sequence: u64, watcher: WatcherId, replay: &Replay, events: &[WatchedEvent]) -> Finding {
        for batch in events.chunk_by(|a, b| a.kv.modified == b.kv.modified) {
            let revision = batch[0].kv.modified;
            let shown = || batch.iter().map(show).collect::<Vec<_>>().join("; ");
            if !self.made {
                return self.violation(sequence, watcher, revision, "to be made first".into(), shown());
            }
            if revision < self.cursor || revision > self.header {
                let expected = format!("revisions from {} up to {}, the header's", self.cursor, self.header);
                return self.violation(sequence, watcher, revision, expected, shown());
            }
            self.skip_to(sequence, watcher, replay, revision)?;
            let keys = replay.store.changes(revision).iter().filter(|key| self.keys.contains(key));
            let due: Vec<_> = keys.map(|key| self.due(replay, key, revision)).collect();
            if due != batch {
                let expected = due.iter().map(show).collect::<Vec<_>>().join("; ");
                let expected = format!("all of revision {revision}, together: {expected}");
                return self.violation(sequence, watcher, revision, expected, shown());
            }
            self.cursor = revision + 1;
        }
        Ok(())
    }

    /// Nothing in the range changed from the cursor up to before this revision.
    fn skip_to(&mut self, sequence: u64, watcher: WatcherId, replay: &Replay, revision: i64) -> Finding {
        if let Some((missed, key)) = self.next_change(replay, revision) {
            let expected = format!("the change of {key:?} at revision {missed} first");
            return self.violation(sequence, watcher, missed, expected, format!("what comes at {revision}"));
        }
        self.cursor = self.cursor.max(revision);
        Ok(())
    }

    /// The first change in the range from the cursor on and before this revision.
    fn next_change<'a>(&self, replay: &'a Replay, before: i64) -> Option<(i64, &'a str)> {
        if self.cursor == 0 {
            return None; // it does not know yet where it begins
        }
        (self.cursor..before).find_map(|revision| {
            let mut changes = replay.store.changes(revision).iter();
            changes.find(|key| self.keys.contains(key)).map(|key| (revision, &**key))
        })
    }

    /// The event that the model has of this key at this revision.
    fn due(&self, replay: &Replay, key: &Text, revision: i64) -> WatchedEvent {
        let store = &replay.store;
        let previous = if self.previous { store.get(key, revision - 1) } else { None };
        match store.get(key, revision) {
            Some(kv) => WatchedEvent { kv, deleted: false, previous },
            None => {
                let (key, value) = (key.clone(), "".into());
                let kv = KeyValue { key, value, created: 0, modified: revision, version: 0 };
                WatchedEvent { kv, deleted: true, previous }
            }
        }
    }
}

fn show(event: &WatchedEvent) -> String {
    let WatchedEvent { kv, deleted, previous } = event;
    let what = if *deleted { "deleted" } else { "put" };
    let previous = previous.as_ref().map_or(String::new(), |kv| format!(", previously {:?}", kv));
    format!("{what} {kv:?}{previous}")
}
