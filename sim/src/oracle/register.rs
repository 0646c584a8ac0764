//! One key of an etcd, as its clients see it: what the search in `crate::check` needs to know of it.
//!
//! A register holds nothing, or a value and its version. What it holds may also not be known, in whole or but for the
//! version: then whatever is answered next fits, and tells. Revisions are left out on purpose: this is for judging
//! without them.
use std::fmt;

use crate::{check::Model, history::Text};

/// What a client saw of a key.
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

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    Anything,
    Nothing,
    /// The version is `None` if it is not known.
    Value(Text, Option<i64>),
}

/// A register that begins in a given state.
pub struct Register(pub State);

impl Model for Register {
    type State = State;
    type Op = Operation;

    fn initial(&self) -> State {
        self.0.clone()
    }

    fn step(&self, state: &State, op: &Operation) -> Option<State> {
        match op {
            Operation::Get { saw } => state.shows(saw),
            Operation::Put { value, previous } => {
                let before = previous.as_ref().map_or_else(|| Some(state.clone()), |seen| state.shows(seen))?;
                Some(before.put(value))
            }
            Operation::Delete { existed, previous } => {
                let fits = match (existed, state) {
                    (None, _) | (_, State::Anything) => true,
                    (Some(existed), state) => *existed == (*state != State::Nothing),
                };
                let shows = previous.as_ref().is_none_or(|seen| state.shows(seen).is_some());
                (fits && shows).then_some(State::Nothing)
            }
            Operation::CompareAndSet { expected, new, told } => match told {
                Some(Told::Swapped) => state.may_hold(expected).then(|| state.put_over(expected, new)),
                Some(Told::Kept { read }) => {
                    let differs = read.as_ref().map(|(value, _)| value) != expected.as_ref();
                    differs.then(|| state.shows(read)).flatten()
                }
                None if *state == State::Anything => Some(State::Anything),
                None if state.may_hold(expected) => Some(state.put_over(expected, new)),
                None => Some(state.clone()),
            },
        }
    }

    fn expected(&self, state: &State, _: &Operation) -> String {
        match state {
            State::Anything => "anything".into(),
            State::Nothing => "as it holds nothing".into(),
            State::Value(value, Some(version)) => format!("as it holds {value:?}, version {version}"),
            State::Value(value, None) => format!("as it holds {value:?}"),
        }
    }
}

impl State {
    /// What is known once this was seen; `None` if it cannot be.
    fn shows(&self, seen: &Seen) -> Option<State> {
        let fits = match (self, seen) {
            (State::Anything, _) | (State::Nothing, None) => true,
            (State::Value(value, version), Some((saw, of))) => value == saw && version.is_none_or(|known| known == *of),
            (State::Nothing, Some(_)) | (State::Value(..), None) => false,
        };
        fits.then(|| {
            seen.as_ref().map_or(State::Nothing, |(value, version)| State::Value(value.clone(), Some(*version)))
        })
    }

    fn may_hold(&self, expected: &Option<Text>) -> bool {
        match (self, expected) {
            (State::Anything, _) | (State::Nothing, None) => true,
            (State::Value(value, _), Some(expected)) => value == expected,
            (State::Nothing, Some(_)) | (State::Value(..), None) => false,
        }
    }

    fn put(&self, value: &Text) -> State {
        let version = match self {
            State::Anything | State::Value(_, None) => None,
            State::Nothing => Some(1),
            State::Value(_, Some(version)) => Some(version + 1),
        };
        State::Value(value.clone(), version)
    }

    /// A put that found what it expected.
    fn put_over(&self, expected: &Option<Text>, new: &Text) -> State {
        if expected.is_none() { State::Nothing.put(new) } else { self.put(new) }
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

    fn value(text: &str, version: i64) -> State {
        State::Value(text.into(), Some(version))
    }

    #[test]
    fn a_register_answers_as_a_key_does() {
        #[track_caller]
        fn check(state: State, op: Operation, next: Option<State>) {
            assert_eq!(Register(state.clone()).step(&state, &op), next, "{op} in {state:?}");
        }
        let seen = |text: &str, version| Some((Text::from(text), version));
        let cas = |expected: Option<&str>, told| {
            let (expected, new) = (expected.map(Text::from), "n".into());
            Operation::CompareAndSet { expected, new, told }
        };
        let kept = |read| Some(Told::Kept { read });
        let put = |previous| Operation::Put { value: "n".into(), previous };
        check(State::Nothing, Operation::Get { saw: None }, Some(State::Nothing));
        check(State::Nothing, Operation::Get { saw: seen("a", 1) }, None);
        check(value("a", 2), Operation::Get { saw: seen("a", 2) }, Some(value("a", 2)));
        check(value("a", 2), Operation::Get { saw: seen("a", 3) }, None);
        check(value("a", 2), Operation::Get { saw: None }, None);
        check(State::Anything, Operation::Get { saw: seen("a", 3) }, Some(value("a", 3)));
        check(State::Value("a".into(), None), Operation::Get { saw: seen("a", 3) }, Some(value("a", 3)));
        check(value("a", 2), put(None), Some(value("n", 3)));
        check(State::Anything, put(None), Some(State::Value("n".into(), None)));
        check(State::Anything, put(Some(seen("a", 4))), Some(value("n", 5)));
        check(value("a", 2), put(Some(None)), None);
        check(value("a", 2), Operation::Delete { existed: Some(false), previous: None }, None);
        check(value("a", 2), Operation::Delete { existed: None, previous: Some(seen("b", 2)) }, None);
        check(State::Nothing, Operation::Delete { existed: None, previous: None }, Some(State::Nothing));
        check(value("a", 2), cas(Some("a"), Some(Told::Swapped)), Some(value("n", 3)));
        check(value("b", 2), cas(Some("a"), Some(Told::Swapped)), None);
        check(State::Nothing, cas(None, Some(Told::Swapped)), Some(value("n", 1)));
        check(State::Anything, cas(None, Some(Told::Swapped)), Some(value("n", 1)));
        check(value("b", 2), cas(Some("a"), kept(seen("b", 2))), Some(value("b", 2)));
        check(value("a", 2), cas(Some("a"), kept(seen("a", 2))), None);
        check(value("a", 2), cas(Some("a"), None), Some(value("n", 3)));
        check(value("b", 2), cas(Some("a"), None), Some(value("b", 2)));
        check(State::Anything, cas(Some("a"), None), Some(State::Anything));
    }
}
