//! The law of watches. Every member has one client that watches everything, over the member's restarts: it goes on
//! where it was.
use detcd_core::{
    machine::hash_bytes,
    types::{MemberId, Revision},
    watch::{Canceled, Event, Notice, What},
};

use super::{Law, Laws, Verdict, Violation};

#[derive(Debug, Default)]
pub(super) struct Watcher {
    /// The revision it is owed next; 0 before its first watch.
    next: Revision,
}

impl Laws {
    /// The revision from which the client of this member watches; 0 is from the next one on.
    pub fn watches_from(&mut self, who: MemberId) -> Revision {
        self.watchers.entry(who).or_default().next
    }

    /// Returns whether the watch is gone, and its client asks for another. `compacted` is where the member's history
    /// begins.
    pub fn notified(&mut self, who: MemberId, notice: &Notice, compacted: Revision) -> Result<bool, Violation> {
        let watcher = self.watchers.get_mut(&who).expect("it watches");
        let next = watcher.next;
        match &notice.what {
            What::Created if next == Revision(0) => watcher.next = Revision(notice.revision.0 + 1),
            What::Created | What::Progress => {}
            What::Events(events) => {
                for events in events.chunk_by(|one, other| one.record.modified() == other.record.modified()) {
                    self.told(who, events)?;
                }
            }
            What::Canceled(Canceled::Compacted(revision)) => {
                watcher.next = *revision;
                self.tally.watches_canceled += 1;
                let fair = next < *revision && *revision <= compacted;
                self.require(Law::WatchComplete, fair, || {
                    format!("{who} cancels a watch that is at {next}: compacted up to {revision}, says it")
                })?;
                return Ok(true);
            }
            What::Canceled(why) => self.require(Law::WatchComplete, false, || format!("{who} cancels: {why:?}"))?,
        }
        Ok(false)
    }

    /// All events of one revision.
    fn told(&mut self, who: MemberId, events: &[Event]) -> Verdict {
        self.tally.events_watched += events.len();
        let revision = events[0].record.modified();
        let watcher = self.watchers.get_mut(&who).expect("it watches");
        let next = std::mem::replace(&mut watcher.next, Revision(revision.0 + 1));
        self.require(Law::WatchComplete, revision == next, || format!("{who} tells {revision} where {next} is next"))?;
        let hash = |event: &Event| {
            let record = &event.record;
            hash_bytes(&[record.key(), record.value(), &record.version().to_le_bytes()].concat())
        };
        let told = events.iter().fold(0, |before: u64, event| before.rotate_left(7) ^ hash(event));
        let first = *self.history.entry(revision).or_insert(told);
        self.require(Law::WatchComplete, first == told, || {
            format!("{who} tells another {revision} than was told first")
        })
    }

    /// Nothing is on its way: the client knows all that the member does.
    pub fn watched_all(&self, who: MemberId, revision: Revision) -> Verdict {
        let next = self.watchers.get(&who).map_or(Revision(0), |watcher| watcher.next);
        self.require(Law::WatchComplete, next > revision, || {
            format!("{who} is at {revision}, who watches waits for {next}")
        })
    }
}
