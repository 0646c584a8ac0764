//! One client's stream and the watches on it.
use std::collections::BTreeMap;

use super::{Create, Event, Filter};
use crate::{
    limits::{WATCH_CATCH_UP_REVISIONS, WATCH_STREAM_BYTES_MAX},
    mvcc::{KeyRange, Record, Store},
    types::{Revision, WatchId},
};

#[derive(Debug, Default)]
pub struct Stream {
    pub watches: BTreeMap<WatchId, Watch>,
    /// Bytes of events handed out and not yet passed on to the client.
    pub undelivered: usize,
    next_id: WatchId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Has got everything; wants nothing before `from`.
    Synced { from: Revision },
    /// Is owed everything from this revision on.
    Behind(Revision),
}

#[derive(Debug)]
pub struct Watch {
    pub range: KeyRange,
    filter: Filter,
    previous: bool,
    pub progress: bool,
    pub position: Position,
    /// Whether it got anything since the last sign of life.
    pub heard: bool,
}

impl Stream {
    /// Counts up from 0 and passes over what the client chose itself; an id is not given twice.
    pub fn free_id(&mut self) -> WatchId {
        while self.watches.contains_key(&self.next_id) {
            self.next_id.0 += 1;
        }
        let free = self.next_id;
        self.next_id.0 += 1;
        free
    }

    pub fn behind(&self) -> impl Iterator<Item = WatchId> {
        let behind = |watch: &Watch| matches!(watch.position, Position::Behind(_));
        self.watches.iter().filter(move |(_, watch)| behind(watch)).map(|(id, _)| *id)
    }

    pub fn is_behind(&self) -> bool {
        self.behind().next().is_some()
    }
}

impl Watch {
    pub fn new(create: Create, position: Position) -> Watch {
        let Create { range, filter, previous, progress, .. } = create;
        Watch { range, filter, previous, progress, position, heard: false }
    }

    /// What this watch sees of a change; `None` if nothing.
    pub fn event(&self, record: &Record, store: &Store) -> Option<Event> {
        let from = match self.position {
            Position::Synced { from } | Position::Behind(from) => from,
        };
        if record.modified() < from || !self.filter.admits(record) || !self.range.contains(record.key()) {
            return None;
        }
        let previous = if self.previous { store.before(record).cloned() } else { None };
        Some(Event { record: record.clone(), previous })
    }

    /// The next events it is owed, whole revisions, as many as fit; moves on behind them. The error is the revision
    /// up to which history was compacted away.
    pub fn next_slice(&mut self, store: &Store) -> Result<Vec<Event>, Revision> {
        let Position::Behind(cursor) = self.position else { unreachable!("only who is behind catches up") };
        if cursor < store.compacted() {
            return Err(store.compacted());
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        let (mut at, mut revisions) = (cursor, 0);
        for record in store.history(cursor) {
            if record.modified() != at {
                revisions += 1;
                if revisions > WATCH_CATCH_UP_REVISIONS || bytes >= WATCH_STREAM_BYTES_MAX / 4 {
                    self.position = Position::Behind(record.modified());
                    return Ok(events);
                }
                at = record.modified();
            }
            if let Some(event) = self.event(record, store) {
                bytes += event.bytes();
                events.push(event);
            }
        }
        self.position = Position::Synced { from: cursor };
        Ok(events)
    }
}
