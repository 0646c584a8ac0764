//! History checker: is what the clients saw possible for a store that serves one request at a time?
//!
//! - `formats.rs` and `json_lines.rs` read a recorded history,
//! - `models.rs` says what each operation does and answers,
//! - `search.rs` looks for an order of the operations that explains all answers; `events.rs` and
//!   `memo.rs` are its list and its memory.
//!
//! The checker knows nothing of the cluster and trusts nothing it reports, revisions least of all:
//! it is an independent witness. The price is a search that is exponential in the operations in
//! flight at a time, so it has a budget. The length of a history costs little.

mod events;
mod formats;
mod json_lines;
mod memo;
mod models;
mod search;
#[cfg(test)]
mod tests;

use std::fmt;

pub use formats::{Format, ParseError};
pub use models::{Answer, Kv, KvAction, KvOp, Register, RegisterOp};
pub use search::{Budget, Model, Operation, check_history};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violation(Violation),
    /// The budget ran out first.
    Unknown {
        why: String,
    },
}

/// Why there is no legal order. What returned before event `at` still has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The key whose operations contradict each other, if keys were searched alone.
    pub key: Option<String>,
    /// The first return that cannot be explained.
    pub at: u64,
    /// First the operation that returned at `at`, with what every order would have answered it;
    /// then the others that did not fit at the end of `order`. Never empty.
    pub stuck: Vec<Stuck>,
    /// The longest order that was found of what was called before `at`.
    pub order: Vec<String>,
}

/// An operation that fits nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Client, operation, observed answer, and the events at which it was called and returned.
    pub op: String,
    /// What it would have been answered in the states that it met.
    pub expected: Vec<String>,
    /// There were more such states than are listed.
    pub more_expected: bool,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let more = if self.more_expected { " or others" } else { "" };
        write!(f, "{}, expected {}{more}", self.op, self.expected.join(" or "))
    }
}

/// How many of the operations placed last are shown.
const ORDER_SHOWN: usize = 5;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let key = self.key.as_ref().map_or_else(String::new, |key| format!(" of key {key}"));
        writeln!(f, "no legal order{key} explains event {}", self.at)?;
        for stuck in &self.stuck {
            writeln!(f, "  does not fit: {stuck}")?;
        }
        let shown = &self.order[self.order.len().saturating_sub(ORDER_SHOWN)..];
        write!(f, "  placed before: {} operations", self.order.len())?;
        for op in shown {
            write!(f, "\n    {op}")?;
        }
        Ok(())
    }
}

/// Recognises the format of a history, reads it and searches it. `name` is for errors.
pub fn check_text(name: &str, text: &str, budget: Budget) -> Result<(Format, Verdict), ParseError> {
    let format = formats::recognise(name, text)?;
    let verdict = match format {
        Format::Jepsen => check_history(&Register, &formats::parse_jepsen(name, text)?, budget),
        Format::Porcupine => {
            let model = Kv { initial: Some(String::new()) };
            check_history(&model, &formats::parse_porcupine(name, text)?, budget)
        }
        Format::JsonLines => check_history(&Kv::default(), &json_lines::parse_json_lines(name, text)?, budget),
    };
    Ok((format, verdict))
}
