//! A version as etcd's backend stores it: one row of the bucket `key`.
//!
//! ```text
//! key:   main: i64 BE | '_' | sub: i64 BE | 't' if it is a deletion
//! value: mvccpb.KeyValue; of a deletion, nothing but the key
//! ```
//!
//! Invariant: what is parsed encodes to the same bytes again, or is refused: HashKV is taken over these bytes.
//!
//! One row is like no other. A snapshot that is restored with `--bump-revision` gets a row without a value, which only
//! moves the revision ahead. It is held as the record of a key that no client can write, the empty one; so etcd does.
use std::ops::Deref;

use bytes::Bytes;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{Fields, Position, Record};
use crate::{
    proto::mvccpb,
    types::{LeaseId, Revision},
};

const PLAIN_BYTES: usize = 17;
const MARKED_BYTES: usize = 18;

/// The tags of mvccpb.KeyValue's fields, in their order.
const KEY: u8 = 0x0a;
const CREATED: u8 = 0x10;
const MODIFIED: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// A row's key, without an allocation.
#[derive(Debug, Clone, Copy)]
pub struct RowKey {
    bytes: [u8; MARKED_BYTES],
    length: usize,
}

impl Deref for RowKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl RowKey {
    pub fn new(position: Position, tombstone: bool) -> RowKey {
        let mut bytes = [b't'; MARKED_BYTES];
        bytes[..8].copy_from_slice(&{ position.main }.to_be_bytes());
        bytes[8] = b'_';
        bytes[9..PLAIN_BYTES].copy_from_slice(&i64::from(position.sub).to_be_bytes());
        RowKey { bytes, length: if tombstone { MARKED_BYTES } else { PLAIN_BYTES } }
    }

    /// The position, and whether the row is a deletion's.
    pub fn parse(key: &[u8]) -> Result<(Position, bool), String> {
        let tombstone = key.len() == MARKED_BYTES;
        if !(key.len() == PLAIN_BYTES || tombstone && key[PLAIN_BYTES] == b't') || key[8] != b'_' {
            return Err("no revision".into());
        }
        let number = |bytes: &[u8]| i64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        let (main, sub) = (number(&key[..8]), number(&key[9..PLAIN_BYTES]));
        match u32::try_from(sub) {
            Ok(sub) if main > 0 => Ok((Position { main, sub }, tombstone)),
            _ => Err(format!("the revision {main}, {sub} cannot be")),
        }
    }
}

impl Record {
    pub fn row_key(&self) -> RowKey {
        RowKey::new(*self.position(), self.is_tombstone())
    }

    pub fn row_value_len(&self) -> usize {
        let text = |bytes: &[u8]| if bytes.is_empty() { 0 } else { varint_field_len(bytes.len() as u64) + bytes.len() };
        if self.is_tombstone() {
            return text(self.key());
        }
        self.numbers().iter().map(|(_, number)| varint_field_len(*number)).sum::<usize>()
            + text(self.key())
            + text(self.value())
    }

    /// Appends what etcd's backend stores as the row's value.
    pub fn put_row_value(&self, out: &mut Vec<u8>) {
        put_text(KEY, self.key(), out);
        if self.is_tombstone() {
            return;
        }
        let [created, modified, version, lease] = self.numbers();
        [created, modified, version].into_iter().for_each(|field| put_number(field, out));
        put_text(VALUE, self.value(), out);
        put_number(lease, out);
    }

    fn numbers(&self) -> [(u8, u64); 4] {
        // The row that only moves the revision is empty.
        let modified = if self.is_bump() { 0 } else { self.modified().0 };
        let Fields { created, version, lease, .. } = self.fields();
        [(CREATED, created.0), (MODIFIED, modified), (VERSION, version), (LEASE, lease.0)]
            .map(|(tag, number)| (tag, number as u64))
    }

    pub fn to_proto(&self) -> mvccpb::KeyValue {
        let Fields { key, created, version, lease, .. } = self.fields();
        mvccpb::KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: created.0,
            mod_revision: self.modified().0,
            version,
            value: self.value_bytes(),
            lease: lease.0,
        }
    }
}

fn varint_field_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) }
}

fn put_number((tag, number): (u8, u64), out: &mut Vec<u8>) {
    if number != 0 {
        out.push(tag);
        encode_varint(number, out);
    }
}

fn put_text(tag: u8, text: &[u8], out: &mut Vec<u8>) {
    put_number((tag, text.len() as u64), out);
    out.extend_from_slice(text);
}

/// A row's value, still in the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowValue<'a> {
    pub key: &'a [u8],
    pub created: Revision,
    pub modified: Revision,
    pub version: i64,
    pub value: &'a [u8],
    pub lease: LeaseId,
}

impl<'a> RowValue<'a> {
    /// Of what protobuf allows only what etcd writes: every field once at most, in order, none that is zero.
    pub fn parse(mut bytes: &'a [u8]) -> Result<RowValue<'a>, String> {
        let rest = &mut bytes;
        let key = text(KEY, rest)?;
        let [created, modified, version] = [number(CREATED, rest)?, number(MODIFIED, rest)?, number(VERSION, rest)?];
        let (value, lease) = (text(VALUE, rest)?, LeaseId(number(LEASE, rest)?));
        match rest.first() {
            None => {
                Ok(RowValue { key, created: Revision(created), modified: Revision(modified), version, value, lease })
            }
            Some(tag) => Err(format!("a field {tag:#04x} out of place")),
        }
    }
}

fn number(tag: u8, rest: &mut &[u8]) -> Result<i64, String> {
    if rest.first() != Some(&tag) {
        return Ok(0);
    }
    let end = rest[1..].iter().position(|byte| *byte < 0x80).map(|last| last + 2);
    let digits = &rest[1..end.unwrap_or(rest.len())];
    let number = digits.iter().rev().try_fold(0u64, |number, byte| {
        let shifted = number.checked_mul(1 << 7)?;
        Some(shifted | u64::from(byte & 0x7f))
    });
    match (end, number) {
        (Some(end), Some(number)) if number != 0 && encoded_len_varint(number) == digits.len() => {
            *rest = &rest[end..];
            Ok(number as i64)
        }
        _ => Err(format!("field {tag:#04x} is no number as etcd writes it")),
    }
}

fn text<'a>(tag: u8, rest: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let length = number(tag, rest)?;
    match usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) {
        Some((text, after)) => {
            *rest = after;
            Ok(text)
        }
        None => Err(format!("field {tag:#04x} ends past the row")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use prost::Message;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let position = (1i64.., any::<u32>()).prop_map(|(main, sub)| Position { main, sub });
        let alive = (vec(any::<u8>(), 0..300), 1i64.., 1i64.., any::<i64>());
        let rest = prop_oneof![1 => Just(None), 3 => alive.prop_map(Some)];
        (vec(any::<u8>(), 1..200), position, rest).prop_map(|(key, position, rest)| {
            let (value, created, version, lease) = rest.unwrap_or_default();
            let (created, lease, previous) = (Revision(created), LeaseId(lease), Position::default());
            Record::new(&Fields { key: &key, value: &value, position, created, version, lease, previous })
        })
    }

    fn value_of(record: &Record) -> Vec<u8> {
        let mut value = Vec::new();
        record.put_row_value(&mut value);
        value
    }

    proptest! {
        #[test]
        fn rows_are_protobufs_and_are_read_back(record in record()) {
            let value = value_of(&record);
            let expected = match record.is_tombstone() {
                true => mvccpb::KeyValue { key: Bytes::copy_from_slice(record.key()), ..Default::default() },
                false => record.to_proto(),
            };
            prop_assert_eq!(&value, &expected.encode_to_vec());
            prop_assert_eq!(value.len(), record.row_value_len());
            let parsed = RowValue::parse(&value).unwrap();
            prop_assert_eq!((parsed.key, parsed.value), (&expected.key[..], &expected.value[..]));
            prop_assert_eq!((parsed.created.0, parsed.modified.0), (expected.create_revision, expected.mod_revision));
            prop_assert_eq!((parsed.version, parsed.lease.0), (expected.version, expected.lease));
            prop_assert_eq!(RowKey::parse(&record.row_key()), Ok((*record.position(), record.is_tombstone())));
        }

        #[test]
        fn what_is_accepted_encodes_to_the_same_bytes(record in record(), at in any::<usize>(), byte in any::<u8>()) {
            let mut value = value_of(&record);
            let at = at % value.len();
            value[at] = byte;
            if let Ok(RowValue { key, created, modified, version, value: text, lease }) = RowValue::parse(&value) {
                let (key, text) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(text));
                let (create_revision, mod_revision, lease) = (created.0, modified.0, lease.0);
                let again = mvccpb::KeyValue { key, create_revision, mod_revision, version, value: text, lease };
                prop_assert_eq!(again.encode_to_vec(), value);
            }
        }
    }

    #[test]
    fn keys_that_are_no_revision_are_refused() {
        #[track_caller]
        fn check(key: &[u8], expected: Option<(i64, u32, bool)>) {
            let parsed = RowKey::parse(key).ok().map(|(at, tombstone)| (at.main, at.sub, tombstone));
            assert_eq!(parsed, expected);
        }
        check(b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\x02", Some((5, 2, false)));
        check(b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\x02t", Some((5, 2, true)));
        check(b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\x02u", None);
        check(b"\0\0\0\0\0\0\0\x05-\0\0\0\0\0\0\0\x02", None);
        check(b"\0\0\0\0\0\0\0\0_\0\0\0\0\0\0\0\x02", None);
        check(b"\xff\0\0\0\0\0\0\0_\0\0\0\0\0\0\0\x02", None);
        check(b"\0\0\0\0\0\0\0\x05_\0\0\0\x01\0\0\0\0", None); // more changes in one transaction than can be
        check(b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0", None);
        check(b"", None);
    }
}
