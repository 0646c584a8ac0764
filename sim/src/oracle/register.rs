//! One key of an etcd, as its clients see it: what the search in `crate::check` needs to know of it.
//!
//! A register holds nothing, or a value and its version. Revisions are left out on purpose: this is for judging without
//! them.
use std::fmt;

use crate::{check::Model, history::Text};

/// What a key holds, or a client saw there.
pub type Seen = Option<(Text, i64)>;

/// An operation, with its answer as far as the client got one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Get { saw: Seen },
    Put { value: Text, previous: Option<Seen> },
    Delete { existed: Option<bool>, previous: Option<Seen> },
    CompareAndSet { expected: Option<Text>, new: Text, told: Option<Told> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Swapped,
    Kept { read: Seen },
}

/// A key that holds nothing at first.
pub struct Register;

impl Model for Register {
    type State = Seen;
    type Op = Operation;

    fn initial(&self) -> Seen {
        None
    }

    fn step(&self, state: &Seen, op: &Operation) -> Option<Seen> {
        let shows = |previous: &Option<Seen>| previous.as_ref().is_none_or(|seen| seen == state);
        let put = |value: &Text| Some((value.clone(), state.as_ref().map_or(0, |(_, version)| *version) + 1));
        match op {
            Operation::Get { saw } => (saw == state).then(|| state.clone()),
            Operation::Put { value, previous } => shows(previous).then(|| put(value)),
            Operation::Delete { existed, previous } => {
                let fits = existed.is_none_or(|existed| existed == state.is_some());
                (fits && shows(previous)).then_some(None)
            }
            Operation::CompareAndSet { expected, new, told } => {
                let holds = state.as_ref().map(|(value, _)| value) == expected.as_ref();
                match told {
                    Some(Told::Swapped) => holds.then(|| put(new)),
                    Some(Told::Kept { read }) => (!holds && read == state).then(|| state.clone()),
                    None if holds => Some(put(new)),
                    None => Some(state.clone()),
                }
            }
        }
    }

    fn expected(&self, state: &Seen, _: &Operation) -> String {
        format!("as it holds {}", show(state))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Get { saw } => write!(f, "get -> {}", show(saw)),
            Operation::Put { value, previous } => {
                write!(f, "put {value:?}")?;
                previous.as_ref().map_or(Ok(()), |seen| write!(f, " -> over {}", show(seen)))
            }
            Operation::Delete { existed, previous } => {
                write!(f, "delete")?;
                existed
                    .map_or(Ok(()), |existed| write!(f, " -> {}", if existed { "done" } else { "nothing there" }))?;
                previous.as_ref().map_or(Ok(()), |seen| write!(f, ", it was {}", show(seen)))
            }
            Operation::CompareAndSet { expected, new, told } => {
                let expected = expected.as_ref().map_or("nothing".into(), |value| format!("{value:?}"));
                write!(f, "set {expected} to {new:?}")?;
                match told {
                    None => Ok(()),
                    Some(Told::Swapped) => write!(f, " -> done"),
                    Some(Told::Kept { read }) => write!(f, " -> it is {}", show(read)),
                }
            }
        }
    }
}

fn show(seen: &Seen) -> String {
    seen.as_ref().map_or("nothing".into(), |(value, version)| format!("{value:?}, version {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_answers_as_a_key_does() {
        #[track_caller]
        fn check(state: Seen, op: Operation, next: Option<Seen>) {
            assert_eq!(Register.step(&state, &op), next, "{op} in {state:?}");
        }
        let seen = |text: &str, version| Some((Text::from(text), version));
        let cas = |expected: Option<&str>, told| {
            let (expected, new) = (expected.map(Text::from), "n".into());
            Operation::CompareAndSet { expected, new, told }
        };
        let kept = |read| Some(Told::Kept { read });
        let put = |previous| Operation::Put { value: "n".into(), previous };
        let delete = |existed, previous| Operation::Delete { existed, previous };
        check(None, Operation::Get { saw: None }, Some(None));
        check(None, Operation::Get { saw: seen("a", 1) }, None);
        check(seen("a", 2), Operation::Get { saw: seen("a", 2) }, Some(seen("a", 2)));
        check(seen("a", 2), Operation::Get { saw: seen("a", 3) }, None);
        check(seen("a", 2), Operation::Get { saw: None }, None);
        check(None, put(None), Some(seen("n", 1)));
        check(seen("a", 2), put(None), Some(seen("n", 3)));
        check(seen("a", 2), put(Some(seen("a", 2))), Some(seen("n", 3)));
        check(seen("a", 2), put(Some(None)), None);
        check(seen("a", 2), delete(Some(true), None), Some(None));
        check(seen("a", 2), delete(Some(false), None), None);
        check(seen("a", 2), delete(None, Some(seen("b", 2))), None);
        check(None, delete(None, None), Some(None));
        check(None, delete(Some(false), Some(None)), Some(None));
        check(seen("a", 2), cas(Some("a"), Some(Told::Swapped)), Some(seen("n", 3)));
        check(seen("b", 2), cas(Some("a"), Some(Told::Swapped)), None);
        check(None, cas(None, Some(Told::Swapped)), Some(seen("n", 1)));
        check(seen("b", 2), cas(Some("a"), kept(seen("b", 2))), Some(seen("b", 2)));
        check(seen("a", 2), cas(Some("a"), kept(seen("a", 2))), None);
        check(seen("a", 2), cas(Some("a"), None), Some(seen("n", 3)));
        check(seen("b", 2), cas(Some("a"), None), Some(seen("b", 2)));
    }
}
