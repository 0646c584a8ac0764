//! What a register and a key-value store would have answered, had they served one client at a time.
//!
//! - [`Register`]: one cell of integers: read, write, compare-and-set. It starts as nil.
//! - [`Kv`]: keys and text values: get, put, append, cas, delete. Keys are independent, so the
//!   search takes them one at a time and a state is the value of one key.
//!
//! An operation carries what its client was told, as an [`Answer`]. `None` is "never learnt": any
//! answer would do, so only the effect is left.

use std::fmt;

use super::search::Model;

/// What the client was told; `None` if it never learnt the answer.
pub type Answer<T> = Option<T>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOp {
    Read { saw: Answer<Option<i64>> },
    Write { value: i64 },
    Cas { from: i64, to: i64, swapped: Answer<bool> },
}

impl RegisterOp {
    /// The same operation before any answer to it came.
    pub fn asked(&self) -> RegisterOp {
        match *self {
            RegisterOp::Read { .. } => RegisterOp::Read { saw: None },
            RegisterOp::Write { value } => RegisterOp::Write { value },
            RegisterOp::Cas { from, to, .. } => RegisterOp::Cas { from, to, swapped: None },
        }
    }
}

impl fmt::Display for RegisterOp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            RegisterOp::Read { saw } => write!(f, "read -> {}", answer(saw, nil_or)),
            RegisterOp::Write { value } => write!(f, "write {value}"),
            RegisterOp::Cas { from, to, swapped } => {
                write!(f, "cas {from} to {to} -> {}", answer(swapped, swapped_text))
            }
        }
    }
}

/// One integer or nil; nil at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Register;

impl Model for Register {
    type State = Option<i64>;
    type Op = RegisterOp;

    fn initial(&self) -> Option<i64> {
        None
    }

    fn step(&self, state: &Option<i64>, op: &RegisterOp) -> Option<Option<i64>> {
        match *op {
            RegisterOp::Read { saw } => agrees(saw.as_ref(), state).then_some(*state),
            RegisterOp::Write { value } => Some(Some(value)),
            RegisterOp::Cas { from, to, swapped } => {
                let swaps = *state == Some(from);
                let next = if swaps { Some(to) } else { *state };
                agrees(swapped.as_ref(), &swaps).then_some(next)
            }
        }
    }

    fn expected(&self, state: &Option<i64>, op: &RegisterOp) -> String {
        match op {
            RegisterOp::Read { .. } | RegisterOp::Write { .. } => nil_or(state),
            RegisterOp::Cas { from, .. } => {
                let swaps = *state == Some(*from);
                format!("{}, as the value is {}", swapped_text(&swaps), nil_or(state))
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvOp {
    pub key: String,
    pub action: KvAction,
}

/// A value of `None` is a key that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvAction {
    Get {
        saw: Answer<Option<String>>,
    },
    Put {
        value: String,
    },
    /// A missing key is created.
    Append {
        value: String,
    },
    /// From nil: creates the key. To nil: deletes it.
    Cas {
        from: Option<String>,
        to: Option<String>,
        swapped: Answer<bool>,
    },
    Delete,
}

impl KvOp {
    /// The same operation before any answer to it came.
    pub fn asked(&self) -> KvOp {
        let mut asked = self.clone();
        match &mut asked.action {
            KvAction::Get { saw } => *saw = None,
            KvAction::Cas { swapped, .. } => *swapped = None,
            KvAction::Put { .. } | KvAction::Append { .. } | KvAction::Delete => {}
        }
        asked
    }
}

impl fmt::Display for KvOp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let key = &self.key;
        match &self.action {
            KvAction::Get { saw } => write!(f, "get {key} -> {}", answer(saw, quoted)),
            KvAction::Put { value } => write!(f, "put {key} {value:?}"),
            KvAction::Append { value } => write!(f, "append {key} {value:?}"),
            KvAction::Cas { from, to, swapped } => {
                let (from, to) = (quoted(from), quoted(to));
                write!(f, "cas {key} {from} to {to} -> {}", answer(swapped, swapped_text))
            }
            KvAction::Delete => write!(f, "delete {key}"),
        }
    }
}

/// Keys and text values. `initial` is what every key holds at first: nothing, or a text.
#[derive(Debug, Clone, Default)]
pub struct Kv {
    pub initial: Option<String>,
}

impl Model for Kv {
    type State = Option<String>;
    type Op = KvOp;

    fn initial(&self) -> Option<String> {
        self.initial.clone()
    }

    fn step(&self, state: &Option<String>, op: &KvOp) -> Option<Option<String>> {
        match &op.action {
            KvAction::Get { saw } => agrees(saw.as_ref(), state).then(|| state.clone()),
            KvAction::Put { value } => Some(Some(value.clone())),
            KvAction::Append { value } => Some(Some(state.clone().unwrap_or_default() + value)),
            KvAction::Cas { from, to, swapped } => {
                let swaps = state == from;
                let next = if swaps { to } else { state };
                agrees(swapped.as_ref(), &swaps).then(|| next.clone())
            }
            KvAction::Delete => Some(None),
        }
    }

    fn key<'a>(&self, op: &'a KvOp) -> Option<&'a str> {
        Some(&op.key)
    }

    fn expected(&self, state: &Option<String>, op: &KvOp) -> String {
        match &op.action {
            KvAction::Cas { from, .. } => {
                format!("{}, as the value is {}", swapped_text(&(state == from)), quoted(state))
            }
            _ => quoted(state),
        }
    }
}

/// An answer nobody got rules nothing out.
fn agrees<T: PartialEq>(told: Option<&T>, due: &T) -> bool {
    told.is_none_or(|told| told == due)
}

fn answer<T>(told: &Answer<T>, show: impl Fn(&T) -> String) -> String {
    told.as_ref().map_or_else(|| "unknown".to_owned(), show)
}

fn nil_or(value: &Option<i64>) -> String {
    value.map_or_else(|| "nil".to_owned(), |value| value.to_string())
}

fn quoted(value: &Option<String>) -> String {
    value.as_ref().map_or_else(|| "nil".to_owned(), |value| format!("{value:?}"))
}

fn swapped_text(swapped: &bool) -> String {
    if *swapped { "swapped" } else { "not swapped" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_answers() {
        #[track_caller]
        fn check(state: Option<i64>, op: RegisterOp, next: Option<Option<i64>>) {
            assert_eq!(Register.step(&state, &op), next, "{op}");
            let asked = Register.step(&state, &op.asked());
            assert!(asked.is_some(), "{op}: without an answer nothing can be wrong");
            assert!(next.is_none() || asked == next, "{op}: the effect does not depend on the answer");
        }
        use RegisterOp::{Cas, Read, Write};
        check(None, Read { saw: Some(None) }, Some(None));
        check(None, Read { saw: Some(Some(1)) }, None);
        check(Some(1), Read { saw: Some(Some(1)) }, Some(Some(1)));
        check(Some(1), Write { value: 2 }, Some(Some(2)));
        check(Some(1), Cas { from: 1, to: 2, swapped: Some(true) }, Some(Some(2)));
        check(Some(1), Cas { from: 1, to: 2, swapped: Some(false) }, None);
        check(Some(3), Cas { from: 1, to: 2, swapped: Some(false) }, Some(Some(3)));
        check(None, Cas { from: 1, to: 2, swapped: Some(true) }, None);
    }

    #[test]
    fn kv_answers() {
        #[track_caller]
        fn check(state: Option<&str>, action: KvAction, next: Option<Option<&str>>) {
            let op = KvOp { key: "a".into(), action };
            let model = Kv::default();
            let got = model.step(&state.map(Into::into), &op);
            assert_eq!(got.as_ref().map(|value| value.as_deref()), next, "{op}");
            assert!(model.step(&state.map(Into::into), &op.asked()).is_some(), "{op}");
        }
        use KvAction::{Append, Cas, Delete, Get, Put};
        let text = |value: &str| Some(value.to_owned());
        check(None, Get { saw: Some(None) }, Some(None));
        check(None, Get { saw: Some(text("")) }, None); // missing is not empty
        check(Some("x"), Get { saw: Some(text("x")) }, Some(Some("x")));
        check(Some("x"), Put { value: "y".into() }, Some(Some("y")));
        check(Some("x"), Append { value: "y".into() }, Some(Some("xy")));
        check(None, Append { value: "y".into() }, Some(Some("y")));
        check(Some("x"), Delete, Some(None));
        check(None, Cas { from: None, to: text("y"), swapped: Some(true) }, Some(Some("y")));
        check(Some("x"), Cas { from: None, to: text("y"), swapped: Some(true) }, None);
        check(Some("x"), Cas { from: text("x"), to: None, swapped: Some(true) }, Some(None));
        check(Some("x"), Cas { from: text("y"), to: None, swapped: Some(false) }, Some(Some("x")));
    }

    #[test]
    fn operations_and_expectations_read_well() {
        let cas = RegisterOp::Cas { from: 1, to: 2, swapped: Some(true) };
        assert_eq!(cas.to_string(), "cas 1 to 2 -> swapped");
        assert_eq!(cas.asked().to_string(), "cas 1 to 2 -> unknown");
        assert_eq!(Register.expected(&None, &cas), "not swapped, as the value is nil");
        let get = KvOp { key: "a".into(), action: KvAction::Get { saw: Some(Some("x".into())) } };
        assert_eq!(get.to_string(), r#"get a -> "x""#);
        assert_eq!(Kv::default().expected(&None, &get), "nil");
    }
}
