//! One version of one key, in one allocation: most of what a node holds is these.
//!
//! ```text
//! | references | position | previous | length of key | length of the rest | key | created, version, lease | value |
//! ```
//!
//! The three numbers are varints, of the revision of creation how far back it is: of most versions they take three
//! bytes. A version shares nothing with the request it came in, nor with other versions of its key: what it takes is
//! what it says, and it goes as a whole.
use std::fmt;

use bytes::Bytes;
use prost::encoding::{decode_varint, encode_varint};
use triomphe::{Arc, ThinArc};

use super::Position;
use crate::types::{LeaseId, Revision};

/// See the module's head. A clone is another reference to the same version. A deletion is a version too: a tombstone,
/// with `version` 0 and nothing but the key.
#[derive(Clone)]
pub struct Record(ThinArc<Head, u8>);

#[derive(Debug, Clone, Copy)]
struct Head {
    position: Position,
    previous: Position,
    key_bytes: u32,
}

/// What a version says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fields<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub position: Position,
    /// The revision at which this life of the key began.
    pub created: Revision,
    /// Puts since `created`, counting from 1; 0 for a tombstone.
    pub version: i64,
    pub lease: LeaseId,
    /// The version before this one; [`Position::default`] if there was none.
    pub previous: Position,
}

/// Most that three varints take.
const NUMBERS_BYTES_MAX: usize = 30;

impl Record {
    pub fn new(fields: &Fields<'_>) -> Record {
        let mut body = Vec::with_capacity(fields.key.len() + NUMBERS_BYTES_MAX + fields.value.len());
        body.extend_from_slice(fields.key);
        encode_varint(fields.position.main.wrapping_sub(fields.created.0) as u64, &mut body);
        encode_varint(fields.version as u64, &mut body);
        encode_varint(fields.lease.0 as u64, &mut body);
        body.extend_from_slice(fields.value);
        let key_bytes = u32::try_from(fields.key.len()).expect("keys are smaller than requests");
        let head = Head { position: fields.position, previous: fields.previous, key_bytes };
        Record(ThinArc::from_header_and_slice(head, &body))
    }

    pub fn fields(&self) -> Fields<'_> {
        let Head { position, previous, .. } = *self.head();
        let (key, mut rest) = self.0.slice.split_at(self.head().key_bytes as usize);
        let mut number = || decode_varint(&mut rest).expect("written by `new`") as i64;
        let [back, version, lease] = [number(), number(), number()];
        let created = Revision(position.main.wrapping_sub(back));
        Fields { key, value: rest, position, created, version, lease: LeaseId(lease), previous }
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    pub fn key(&self) -> &[u8] {
        &self.0.slice[..self.head().key_bytes as usize]
    }

    pub fn value(&self) -> &[u8] {
        self.fields().value
    }

    /// The value, which keeps the version alive.
    pub fn value_bytes(&self) -> Bytes {
        struct Value(Record);
        impl AsRef<[u8]> for Value {
            fn as_ref(&self) -> &[u8] {
                self.0.value()
            }
        }
        Bytes::from_owner(Value(self.clone()))
    }

    pub fn position(&self) -> &Position {
        &self.head().position
    }

    pub fn previous(&self) -> Position {
        self.head().previous
    }

    pub fn created(&self) -> Revision {
        self.fields().created
    }

    pub fn version(&self) -> i64 {
        self.fields().version
    }

    pub fn lease(&self) -> LeaseId {
        self.fields().lease
    }

    pub fn modified(&self) -> Revision {
        Revision(self.head().position.main)
    }

    pub fn is_tombstone(&self) -> bool {
        self.version() == 0 && !self.is_bump()
    }

    /// Whether it only moves the revision ahead: no client can write an empty key. See [`super::row`].
    pub(super) fn is_bump(&self) -> bool {
        self.head().key_bytes == 0
    }

    /// Bytes this version takes in etcd's backend, roughly: what a quota counts.
    pub(super) fn stored_bytes(&self) -> u64 {
        let Fields { key, value, .. } = self.fields();
        (key.len() + value.len() + 64) as u64
    }

    /// Of a version that nobody else refers to yet.
    pub(super) fn set_previous(&mut self, previous: Position) {
        self.0.with_arc_mut(|arc| {
            let record = Arc::get_mut(arc).expect("nobody else holds it before the store is built");
            record.header_mut().previous = previous;
        });
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        self.fields() == other.fields()
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.fields().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn position() -> impl Strategy<Value = Position> {
        (any::<i64>(), any::<u32>()).prop_map(|(main, sub)| Position { main, sub })
    }

    proptest! {
        #[test]
        fn a_record_says_what_it_was_told(
            (key, value) in (vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..300)),
            (position, previous, later) in (position(), position(), position()),
            [created, version, lease] in any::<[i64; 3]>(),
        ) {
            let (key, value) = (&key[..], &value[..]);
            let (created, lease) = (Revision(created), LeaseId(lease));
            let fields = Fields { key, value, position, created, version, lease, previous };
            let mut record = Record::new(&fields);
            prop_assert_eq!(record.fields(), fields);
            prop_assert_eq!((record.key(), record.value()), (key, value));
            prop_assert_eq!(record.clone().value_bytes(), value);
            record.set_previous(later);
            prop_assert_eq!(record.fields(), Fields { previous: later, ..fields });
        }
    }

    #[test]
    fn a_small_record_is_small() {
        assert_eq!(size_of::<Record>(), size_of::<usize>());
        assert_eq!(size_of::<Head>(), 28);
    }
}
