//! Changing the store: one transaction, one revision.
use super::{Fields, KeyRange, Position, Record, Store};
use crate::types::{LeaseId, Revision};

/// One transaction under way. All its changes share a revision; if it changes nothing, none is used up.
///
/// Reads of the store see the changes made so far. Dropping the writer without [`Writer::finish`] would leave changes
/// beyond the store's revision: whatever may fail is checked before the first change.
#[must_use]
pub struct Writer<'a> {
    store: &'a mut Store,
    changes: Vec<Record>,
}

impl Store {
    pub fn write(&mut self) -> Writer<'_> {
        Writer { store: self, changes: Vec::new() }
    }
}

impl Writer<'_> {
    pub fn store(&self) -> &Store {
        self.store
    }

    /// The store's revision if the transaction ended now.
    pub fn revision(&self) -> Revision {
        Revision(self.store.revision.0 + i64::from(!self.changes.is_empty()))
    }

    /// Writes a version of `key` and returns the one it replaces.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId) -> Option<Record> {
        assert!(!key.is_empty(), "an empty key is refused before it gets here");
        let position = self.next();
        let newest = self.store.keys.get(key);
        let previous = newest.map_or(Position::default(), |record| *record.position());
        let replaced = newest.filter(|record| !record.is_tombstone()).cloned();
        let (created, version) = match &replaced {
            Some(record) => (record.created(), record.version() + 1),
            None => (Revision(position.main), 1),
        };
        self.push(&Fields { key, value, position, created, version, lease, previous });
        replaced
    }

    /// Deletes every key in `range`, each with a tombstone, and returns what was there, in the order of keys.
    pub fn delete(&mut self, range: &KeyRange) -> Vec<Record> {
        let dead: Vec<_> = self.store.live(range).cloned().collect();
        for record in &dead {
            let position = self.next();
            self.push(&Fields { key: record.key(), position, previous: *record.position(), ..Fields::default() });
        }
        dead
    }

    /// Ends the transaction; returns its changes in order.
    pub fn finish(self) -> Vec<Record> {
        self.store.revision = self.revision();
        self.changes
    }

    fn next(&self) -> Position {
        Position { main: self.store.revision.0 + 1, sub: self.changes.len() as u32 }
    }

    fn push(&mut self, version: &Fields<'_>) {
        let record = Record::new(version);
        self.store.bytes += record.stored_bytes();
        self.store.keys.insert(record.clone());
        self.store.log.insert(record.clone());
        self.changes.push(record);
    }
}
