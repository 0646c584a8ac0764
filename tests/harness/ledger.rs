//! What clients were told about their writes, and whether a read agrees with it.
//!
//! Law: a key's value, read linearizably, is the last acknowledged one or an unknown one written after it; versions and
//! revisions of a key never go back. Keys are only ever put, each value is written once.
use std::collections::{BTreeMap, BTreeSet};

/// A key as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub mod_revision: i64,
    pub version: i64,
    pub value: String,
}

#[derive(Debug, Default)]
pub struct Ledger {
    keys: BTreeMap<String, Key>,
    /// A put has a revision of its own, whatever its key.
    acknowledged_revisions: BTreeSet<i64>,
}

/// Invariant: `last` has the highest acknowledged revision.
#[derive(Debug, Default)]
struct Key {
    acknowledged: i64,
    last: Option<(i64, String)>,
    /// Sent, and never answered with success: each may take effect at any time from then on, or never.
    unknown: BTreeSet<String>,
    seen: Option<Seen>,
}

impl Ledger {
    /// A write is about to be sent: until it is acknowledged its outcome is unknown.
    pub fn sent(&mut self, key: &str, value: &str) {
        let fresh = self.keys.entry(key.to_owned()).or_default().unknown.insert(value.to_owned());
        assert!(fresh, "each value is written once");
    }

    pub fn acknowledged(&mut self, key: &str, value: &str, revision: i64) -> Result<(), String> {
        let state = self.keys.get_mut(key).expect("it was sent");
        assert!(state.unknown.remove(value), "it was sent, and is acknowledged once");
        state.acknowledged += 1;
        if state.last.as_ref().is_none_or(|(last, _)| *last < revision) {
            state.last = Some((revision, value.to_owned()));
        }
        if !self.acknowledged_revisions.insert(revision) {
            return Err(format!("revision {revision} was acknowledged twice, now for {key} = {value}"));
        }
        Ok(())
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged_revisions.len()
    }

    pub fn unknown_count(&self) -> usize {
        self.keys.values().map(|key| key.unknown.len()).sum()
    }

    /// Judges a read of `key` that began after the last acknowledgement and ended before the next write.
    pub fn check(&mut self, key: &str, read: Option<&Seen>) -> Result<(), String> {
        let state = self.keys.get_mut(key).expect("only keys that were written are judged");
        state.check(read).map_err(|why| format!("{key}: {why}; read {read:?}, known {state:?}"))
    }
}

impl Key {
    fn check(&mut self, read: Option<&Seen>) -> Result<(), &'static str> {
        let Some(read) = read else {
            let written = self.last.is_some() || self.seen.is_some();
            return if written { Err("an acknowledged write is lost: no such key") } else { Ok(()) };
        };
        let (last_revision, last_value) = self.last.clone().unwrap_or_default();
        if read.mod_revision < last_revision {
            return Err("an acknowledged write is lost: an older one is read");
        }
        if read.mod_revision == last_revision && read.value != last_value {
            return Err("the value is not the one acknowledged at its revision");
        }
        if read.mod_revision > last_revision && !self.unknown.contains(&read.value) {
            return Err("the value was never written at a later revision");
        }
        if let Some(seen) = &self.seen {
            if (read.mod_revision, read.version) < (seen.mod_revision, seen.version) || read.version < seen.version {
                return Err("version or revision went back");
            }
            if read.mod_revision == seen.mod_revision && read != seen {
                return Err("one revision was read with two contents");
            }
        }
        if !(self.acknowledged..=self.acknowledged + self.unknown.len() as i64).contains(&read.version) {
            return Err("the version does not count the writes");
        }
        self.seen = Some(read.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// a1 and a2 acknowledged at revisions 2 and 3; x1 unknown; a2 was read.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for (value, revision) in [("a1", 2), ("a2", 3)] {
            ledger.sent("k", value);
            ledger.acknowledged("k", value, revision).unwrap();
        }
        ledger.sent("k", "x1");
        ledger.check("k", Some(&seen(3, 2, "a2"))).unwrap();
        ledger
    }

    fn seen(mod_revision: i64, version: i64, value: &str) -> Seen {
        Seen { mod_revision, version, value: value.to_owned() }
    }

    #[test]
    fn every_planted_loss_is_caught() {
        #[track_caller]
        fn check(read: Option<Seen>, verdict: &str) {
            let result = ledger().check("k", read.as_ref());
            match verdict {
                "" => assert_eq!(result, Ok(())),
                _ => assert!(result.as_ref().is_err_and(|why| why.contains(verdict)), "{result:?}"),
            }
        }
        check(Some(seen(3, 2, "a2")), "");
        check(Some(seen(9, 3, "x1")), ""); // the unknown write took effect after all
        check(None, "lost: no such key");
        check(Some(seen(2, 1, "a1")), "lost: an older one");
        check(Some(seen(3, 2, "x1")), "not the one acknowledged");
        check(Some(seen(9, 3, "a1")), "never written at a later revision");
        check(Some(seen(9, 1, "x1")), "went back");
        check(Some(seen(9, 5, "x1")), "does not count");
        check(Some(seen(3, 3, "a2")), "two contents");
    }

    #[test]
    fn a_revision_is_acknowledged_once() {
        let mut ledger = ledger();
        ledger.sent("j", "b1");
        assert!(ledger.acknowledged("j", "b1", 3).is_err());
    }

    #[test]
    fn a_key_that_only_unknown_writes_touched_may_be_absent_until_seen() {
        let mut ledger = Ledger::default();
        ledger.sent("k", "x1");
        assert_eq!(ledger.check("k", None), Ok(()));
        assert_eq!(ledger.check("k", Some(&seen(2, 1, "x1"))), Ok(()));
        assert!(ledger.check("k", None).is_err());
    }
}
