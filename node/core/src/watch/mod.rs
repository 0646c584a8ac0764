//! Who watches which keys, and what each is owed.
//!
//! A watch is *synced* or *behind*. A synced one gets every event as it is applied. One that starts in the past, or
//! whose stream has more undelivered bytes than it may, is behind: it is owed everything from its cursor on and
//! catches up from the store's history, a slice at a time, whenever its stream has room.
//!
//! Invariants:
//! - A watch gets each matching event once, in order; a revision's events come together.
//! - A synced watch has got everything up to the store's revision; one that is behind, everything before its cursor.
//! - A watch is in the index of synced watches exactly if it is synced.
//! - Undelivered bytes of a stream exceed the bound by one delivery at most.
mod index;
mod stream;

use std::collections::BTreeMap;

use self::{
    index::Index,
    stream::{Position, Stream, Watch},
};
use crate::{
    limits::WATCH_STREAM_BYTES_MAX,
    mvcc::{KeyRange, RangeEnd, Record, Store},
    replica::Output,
    types::{Revision, StreamId, WatchId},
};

/// What a client asks of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Create(Create),
    /// Unknown ids are ignored, as etcd does.
    Cancel(WatchId),
    /// Answered once all watches of the stream are synced at this moment; else not at all, and the client asks again.
    Progress,
    /// The stream passed this many bytes of events on: there is room again.
    Delivered(usize),
    /// The stream is gone.
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// 0: the lowest free one.
    pub id: WatchId,
    pub range: KeyRange,
    /// 0: from the next revision on. May lie in the future.
    pub start: Revision,
    pub filter: Filter,
    /// Whether each event comes with the version before it.
    pub previous: bool,
    /// Whether to send a sign of life, with the revision reached, when nothing happens.
    pub progress: bool,
}

/// Which events to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    pub no_puts: bool,
    pub no_deletes: bool,
}

impl Filter {
    fn admits(self, record: &Record) -> bool {
        !(if record.is_tombstone() { self.no_deletes } else { self.no_puts })
    }
}

/// One change of one key, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub record: Record,
    pub previous: Option<Record>,
}

impl Event {
    /// Bytes on the wire, closely enough for bounds.
    pub fn bytes(&self) -> usize {
        let of = |record: &Record| record.key().len() + record.value().len() + 32;
        of(&self.record) + self.previous.as_ref().map_or(0, of)
    }
}

/// What goes out on a stream, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub stream: StreamId,
    /// -1 where a notice is not of one watch.
    pub watch: WatchId,
    /// The store's revision: no later event is before it.
    pub revision: Revision,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Created,
    /// Whole revisions, in order.
    Events(Vec<Event>),
    /// Everything up to the notice's revision has been sent.
    Progress,
    Canceled(Canceled),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canceled {
    /// The client wanted it so.
    Asked,
    /// What the watch is owed was compacted away, up to this revision.
    Compacted(Revision),
    /// The request made no sense, and no watch came to be.
    Refused(&'static str),
}

#[derive(Debug, Default)]
pub struct Hub {
    streams: BTreeMap<StreamId, Stream>,
    synced: Index,
    /// Streams with watches that are behind and room to catch up.
    hungry: std::collections::BTreeSet<StreamId>,
    /// Watches of all streams.
    count: usize,
}

impl Hub {
    pub fn handle(&mut self, stream: StreamId, request: Request, store: &Store, out: &mut Vec<Output>) {
        match request {
            Request::Create(create) => self.create(stream, create, store, out),
            Request::Cancel(id) => self.cancel(stream, id, store, out),
            Request::Progress => self.progress(stream, store, out),
            Request::Delivered(bytes) => self.delivered(stream, bytes),
            Request::Close => self.close(stream),
        }
    }

    fn create(&mut self, id: StreamId, create: Create, store: &Store, out: &mut Vec<Output>) {
        let stream = self.streams.entry(id).or_default();
        let refused = if create.start.0 < 0 {
            Some("etcdserver: mvcc: required revision has been compacted")
        } else if create.range.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if create.id.0 != 0 && stream.watches.contains_key(&create.id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        let mut notice = |watch, what| {
            out.push(Output::Notify(Notice { stream: id, watch, revision: store.revision(), what }));
        };
        if let Some(reason) = refused {
            // etcd answers this with both `created` and `canceled`; the shell words it so.
            notice(WatchId(-1), What::Canceled(Canceled::Refused(reason)));
            return;
        }
        let watch = if create.id.0 == 0 { stream.free_id() } else { create.id };
        notice(watch, What::Created);
        let next = Revision(store.revision().0 + 1);
        let behind = create.start.0 != 0 && create.start < next;
        let position = if behind {
            self.hungry.insert(id);
            Position::Behind(create.start)
        } else {
            self.synced.insert(&create.range, (id, watch));
            Position::Synced { from: create.start }
        };
        stream.watches.insert(watch, Watch::new(create, position));
        self.count += 1;
    }

    fn cancel(&mut self, id: StreamId, watch: WatchId, store: &Store, out: &mut Vec<Output>) {
        if self.remove(id, watch) {
            let what = What::Canceled(Canceled::Asked);
            out.push(Output::Notify(Notice { stream: id, watch, revision: store.revision(), what }));
        }
    }

    fn remove(&mut self, id: StreamId, watch: WatchId) -> bool {
        let removed = self.streams.get_mut(&id).and_then(|stream| stream.watches.remove(&watch));
        if let Some(removed) = &removed {
            self.count -= 1;
            self.synced.remove(&removed.range, (id, watch));
        }
        removed.is_some()
    }

    fn close(&mut self, id: StreamId) {
        self.hungry.remove(&id);
        for (watch, closed) in self.streams.remove(&id).unwrap_or_default().watches {
            self.count -= 1;
            self.synced.remove(&closed.range, (id, watch));
        }
    }

    fn delivered(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.undelivered = stream.undelivered.saturating_sub(bytes);
        if stream.undelivered < WATCH_STREAM_BYTES_MAX && stream.is_behind() {
            self.hungry.insert(id);
        }
    }

    fn progress(&mut self, id: StreamId, store: &Store, out: &mut Vec<Output>) {
        let Some(stream) = self.streams.get(&id) else { return };
        let revision = store.revision();
        let reached = |watch: &Watch| matches!(watch.position, Position::Synced { from } if from <= revision);
        if stream.watches.values().all(reached) {
            out.push(Output::Notify(Notice { stream: id, watch: WatchId(-1), revision, what: What::Progress }));
        }
    }

    /// Tells every watch that wants to know, and had nothing to hear since the last call, how far it got.
    pub fn sign_of_life(&mut self, store: &Store, out: &mut Vec<Output>) {
        let revision = store.revision();
        for (id, stream) in &mut self.streams {
            for (watch, state) in &mut stream.watches {
                let quiet = !std::mem::take(&mut state.heard);
                let synced = matches!(state.position, Position::Synced { from } if from <= revision);
                if state.progress && quiet && synced {
                    out.push(Output::Notify(Notice { stream: *id, watch: *watch, revision, what: What::Progress }));
                }
            }
        }
    }

    /// Passes one revision's changes on to all who are synced.
    pub fn applied(&mut self, changes: &[Record], store: &Store, out: &mut Vec<Output>) {
        if self.synced.is_empty() {
            return;
        }
        let mut owed: BTreeMap<(StreamId, WatchId), Vec<Event>> = BTreeMap::new();
        for record in changes {
            self.synced.matching(record.key(), |who| {
                let watch = &self.streams[&who.0].watches[&who.1];
                if let Some(event) = watch.event(record, store) {
                    owed.entry(who).or_default().push(event);
                }
            });
        }
        for ((id, watch), events) in owed {
            let stream = self.streams.get_mut(&id).expect("indexed watches have a stream");
            let state = stream.watches.get_mut(&watch).expect("indexed watches exist");
            if stream.undelivered >= WATCH_STREAM_BYTES_MAX {
                state.position = Position::Behind(store.revision());
                self.synced.remove(&state.range, (id, watch));
                continue; // it is owed this revision, and gets it from history
            }
            stream.undelivered += events.iter().map(Event::bytes).sum::<usize>();
            state.heard = true;
            let what = What::Events(events);
            out.push(Output::Notify(Notice { stream: id, watch, revision: store.revision(), what }));
        }
    }

    /// The store's history jumps: it was at `revision`, and what came since was never passed on. Whoever was synced
    /// catches up from there.
    pub fn jump(&mut self, revision: Revision) {
        let next = Revision(revision.0 + 1);
        for (id, stream) in &mut self.streams {
            for (watch, state) in &mut stream.watches {
                if let Position::Synced { from } = state.position {
                    self.synced.remove(&state.range, (*id, *watch));
                    state.position = Position::Behind(from.max(next));
                }
            }
            if stream.undelivered < WATCH_STREAM_BYTES_MAX && stream.is_behind() {
                self.hungry.insert(*id);
            }
        }
    }

    /// How many there are.
    pub fn watches(&self) -> usize {
        self.count
    }

    /// Whether some watch could catch up further: the driver calls again soon.
    pub fn has_work(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Lets every hungry stream catch up by one slice of history.
    pub fn catch_up(&mut self, store: &Store, out: &mut Vec<Output>) {
        for id in std::mem::take(&mut self.hungry) {
            let stream = self.streams.get_mut(&id).expect("hungry streams exist");
            let behind: Vec<_> = stream.behind().collect();
            for watch in behind {
                if stream.undelivered >= WATCH_STREAM_BYTES_MAX {
                    break;
                }
                let state = stream.watches.get_mut(&watch).expect("just listed");
                let slice = state.next_slice(store);
                let notice = |what| Output::Notify(Notice { stream: id, watch, revision: store.revision(), what });
                match slice {
                    Err(compacted) => {
                        stream.watches.remove(&watch);
                        self.count -= 1;
                        out.push(notice(What::Canceled(Canceled::Compacted(compacted))));
                    }
                    Ok(events) => {
                        if matches!(state.position, Position::Synced { .. }) {
                            self.synced.insert(&state.range, (id, watch));
                        }
                        if !events.is_empty() {
                            state.heard = true;
                            stream.undelivered += events.iter().map(Event::bytes).sum::<usize>();
                            out.push(notice(What::Events(events)));
                        }
                    }
                }
            }
            if stream.undelivered < WATCH_STREAM_BYTES_MAX && stream.is_behind() {
                self.hungry.insert(id);
            }
        }
    }

    /// Checks the invariants in the module's head; for tests.
    #[cfg(test)]
    fn check(&self) {
        let synced = self.streams.iter().flat_map(|(id, stream)| {
            let synced = stream.watches.iter().filter(|(_, watch)| matches!(watch.position, Position::Synced { .. }));
            synced.map(|(watch, _)| (*id, *watch))
        });
        assert_eq!(synced.collect::<Vec<_>>(), self.synced.all());
        assert_eq!(self.streams.values().map(|stream| stream.watches.len()).sum::<usize>(), self.count);
    }
}

/// A watch's key may be empty: it means "from the first key on".
pub fn range_of_watch(key: bytes::Bytes, range_end: bytes::Bytes) -> KeyRange {
    let key = if key.is_empty() { bytes::Bytes::from_static(b"\0") } else { key };
    let range = KeyRange::new(key, range_end);
    debug_assert!(range.end != RangeEnd::Single || !range.start.is_empty());
    range
}

#[cfg(test)]
mod tests;
