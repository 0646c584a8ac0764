//! Readers of other people's histories, and what all readers share.
//!
//! In all of them a line is an event and the order of lines is the order in time. The position of
//! an event in an [`Operation`] is its line number, from 1. Blank lines are skipped. A format is
//! recognised by the first line that is not blank. Our own format is in `json_lines.rs`.
//!
//! # Jepsen: one register
//!
//! Fields are separated by blanks: process, phase, function, value.
//!
//! ```text
//! INFO  jepsen.util - 3   :invoke :cas    [1 2]
//! INFO  jepsen.util - 3   :fail   :cas    [1 2]
//! ```
//!
//! - `:read` is called with `nil` and returns `nil` or a number; `:write` has a number, `:cas` the
//!   pair `[from to]`.
//! - `:info` is an unknown outcome, its value (`:timed-out`) says nothing: the operation stays
//!   pending and its process is retired.
//! - `:fail` did not happen. A `:cas` that failed *with its pair* was compared and did not match,
//!   which is an answer like any other; one that failed with `:timed-out` was not compared.
//!
//! # Porcupine: keys that start as empty texts
//!
//! ```text
//! {:process 0, :type :invoke, :f :append, :key "7", :value "x 0 0 y"}
//! {:process 0, :type :ok, :f :append, :key "7", :value "x 0 0 y"}
//! ```
//!
//! `:f` is `:get`, `:put` or `:append`, the fields stand in this order, and a `:get` is called with
//! the value `nil`. `:fail` and `:info` are as in Jepsen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use super::models::{KvAction, KvOp, RegisterOp};
use super::search::Operation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Jepsen,
    Porcupine,
    JsonLines,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{file}:{line}: expected {expected}, found `{found}`")]
pub struct ParseError {
    pub file: String,
    pub line: u64,
    pub expected: String,
    /// The whole line.
    pub found: String,
}

/// Names the format of `text`. `file` is for errors only, here and below.
pub fn recognise(file: &str, text: &str) -> Result<Format, ParseError> {
    let first = lines(file, text).next().unwrap_or(Line { file, number: 1, text: "" });
    match first.text {
        text if text.starts_with("INFO") => Ok(Format::Jepsen),
        text if text.starts_with("{:") => Ok(Format::Porcupine),
        text if text.starts_with('{') => Ok(Format::JsonLines),
        _ => Err(first.expected("a history: `INFO ...`, `{:process ...` or `{\"client\": ...`")),
    }
}

pub fn parse_jepsen(file: &str, text: &str) -> Result<Vec<Operation<RegisterOp>>, ParseError> {
    let mut recorder = Recorder::default();
    for line in lines(file, text) {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        let ["INFO", "jepsen.util", "-", process, phase, function, value @ ..] = words.as_slice() else {
            return Err(line.expected("`INFO jepsen.util - PROCESS PHASE FUNCTION VALUE`"));
        };
        let process: u64 = number(&line, process)?;
        let ending = match *phase {
            ":invoke" => {
                let op = jepsen_op(&line, function, value, None)?;
                recorder.call(&line, process, process, op)?;
                continue;
            }
            ":ok" => Ending::Answered(jepsen_op(&line, function, value, Some(true))?),
            ":fail" if *function == ":cas" && *value != [":timed-out"] => {
                Ending::Answered(jepsen_op(&line, function, value, Some(false))?)
            }
            ":fail" => Ending::Never,
            ":info" => Ending::Unknown,
            _ => return Err(line.expected("the phase :invoke, :ok, :fail or :info")),
        };
        recorder.end(&line, process, |called| same_call(&line, called, ending, RegisterOp::asked))?;
    }
    Ok(recorder.finish())
}

/// `succeeded` is `None` in a call.
fn jepsen_op(line: &Line, function: &str, value: &[&str], succeeded: Option<bool>) -> Result<RegisterOp, ParseError> {
    match (function, value) {
        (":read", ["nil"]) => Ok(RegisterOp::Read { saw: succeeded.map(|_| None) }),
        (":read", [value]) if succeeded.is_some() => Ok(RegisterOp::Read { saw: Some(Some(number(line, value)?)) }),
        (":write", [value]) => Ok(RegisterOp::Write { value: number(line, value)? }),
        (":cas", [from, to]) => {
            let from = from.strip_prefix('[').ok_or_else(|| line.expected("a pair `[from to]`"))?;
            let to = to.strip_suffix(']').ok_or_else(|| line.expected("a pair `[from to]`"))?;
            let (from, to) = (number(line, from)?, number(line, to)?);
            Ok(RegisterOp::Cas { from, to, swapped: succeeded })
        }
        _ => Err(line.expected("`:read nil`, `:write NUMBER` or `:cas [FROM TO]`")),
    }
}

pub fn parse_porcupine(file: &str, text: &str) -> Result<Vec<Operation<KvOp>>, ParseError> {
    let mut recorder = Recorder::default();
    for line in lines(file, text) {
        let [process, phase, function, key, value] = porcupine_fields(line.text)
            .ok_or_else(|| line.expected("`{:process N, :type PHASE, :f FUNCTION, :key TEXT, :value TEXT}`"))?;
        let process: u64 = number(&line, process)?;
        let key = quoted(&line, key)?;
        let action = match function {
            ":get" if phase == ":ok" => KvAction::Get { saw: Some(Some(quoted(&line, value)?)) },
            ":get" => KvAction::Get { saw: None },
            ":put" => KvAction::Put { value: quoted(&line, value)? },
            ":append" => KvAction::Append { value: quoted(&line, value)? },
            _ => return Err(line.expected("the function :get, :put or :append")),
        };
        let op = KvOp { key, action };
        let ending = match phase {
            ":invoke" => {
                recorder.call(&line, process, process, op)?;
                continue;
            }
            ":ok" => Ending::Answered(op),
            ":fail" => Ending::Never,
            ":info" => Ending::Unknown,
            _ => return Err(line.expected("the phase :invoke, :ok, :fail or :info")),
        };
        recorder.end(&line, process, |called| same_call(&line, called, ending, KvOp::asked))?;
    }
    Ok(recorder.finish())
}

fn porcupine_fields(line: &str) -> Option<[&str; 5]> {
    let rest = line.strip_prefix("{:process ")?.strip_suffix('}')?;
    let (process, rest) = rest.split_once(", :type ")?;
    let (phase, rest) = rest.split_once(", :f ")?;
    let (function, rest) = rest.split_once(", :key ")?;
    let (key, value) = rest.split_once(", :value ")?;
    Some([process, phase, function, key, value])
}

/// How an operation ended, as far as its client knows.
pub enum Ending<O> {
    Answered(O),
    Never,
    Unknown,
}

/// Joins calls and returns. An id ties them together: the number of a process, which has one call
/// open at a time and none after an unknown outcome, or the number of a call.
pub struct Recorder<O> {
    operations: Vec<Operation<O>>,
    open: BTreeMap<u64, usize>,
    /// Ids that must not be used again.
    spent: BTreeSet<u64>,
    /// Operations that did not happen.
    never: BTreeSet<usize>,
}

impl<O> Default for Recorder<O> {
    fn default() -> Self {
        let (operations, open) = (Vec::new(), BTreeMap::new());
        Recorder { operations, open, spent: BTreeSet::new(), never: BTreeSet::new() }
    }
}

impl<O> Recorder<O> {
    pub fn call(&mut self, line: &Line, id: u64, client: u64, op: O) -> Result<(), ParseError> {
        if self.spent.contains(&id) || self.open.insert(id, self.operations.len()).is_some() {
            return Err(line.expected(format!("no call of {id}: one is open, or it had its last")));
        }
        let called_at = line.number;
        self.operations.push(Operation { client, op, called_at, returned_at: None, guess: called_at });
        Ok(())
    }

    /// A call with an id that serves only once.
    pub fn call_once(&mut self, line: &Line, id: u64, client: u64, op: O) -> Result<(), ParseError> {
        self.call(line, id, client, op)?;
        assert!(self.spent.insert(id));
        Ok(())
    }

    /// Ends the open call of `id` as `ending` says, given what was called.
    pub fn end(
        &mut self,
        line: &Line,
        id: u64,
        ending: impl FnOnce(&O) -> Result<Ending<O>, ParseError>,
    ) -> Result<(), ParseError> {
        let open = self.open.remove(&id);
        let slot = open.ok_or_else(|| line.expected(format!("an open call of {id}")))?;
        let operation = &mut self.operations[slot];
        match ending(&operation.op)? {
            Ending::Answered(op) => {
                operation.op = op;
                operation.returned_at = Some(line.number);
            }
            Ending::Never => assert!(self.never.insert(slot)),
            Ending::Unknown => {
                self.spent.insert(id);
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Vec<Operation<O>> {
        let numbered = self.operations.into_iter().enumerate();
        let happened = numbered.filter(|(slot, _)| !self.never.contains(slot));
        happened.map(|(_, operation)| operation).collect()
    }
}

/// Where a return repeats its call: an answer to anything else is an error.
fn same_call<O: PartialEq + Display>(
    line: &Line,
    called: &O,
    ending: Ending<O>,
    asked: fn(&O) -> O,
) -> Result<Ending<O>, ParseError> {
    match ending {
        Ending::Answered(op) if asked(&op) != *called => Err(line.expected(format!("the end of `{called}`"))),
        ending => Ok(ending),
    }
}

#[derive(Clone, Copy)]
pub struct Line<'a> {
    file: &'a str,
    number: u64,
    pub text: &'a str,
}

impl Line<'_> {
    pub fn expected(&self, expected: impl Into<String>) -> ParseError {
        let (file, found) = (self.file.to_owned(), self.text.to_owned());
        ParseError { file, line: self.number, expected: expected.into(), found }
    }
}

/// The lines of `text` that are not blank.
pub fn lines<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Line<'a>> {
    let numbered = (1..).zip(text.lines().map(str::trim));
    let filled = numbered.filter(|(_, text)| !text.is_empty());
    filled.map(move |(number, text)| Line { file, number, text })
}

fn number<N: FromStr>(line: &Line, text: &str) -> Result<N, ParseError> {
    text.parse().map_err(|_| line.expected(format!("a number instead of `{text}`")))
}

/// An EDN text; the escapes in use are those of JSON.
fn quoted(line: &Line, text: &str) -> Result<String, ParseError> {
    serde_json::from_str(text).map_err(|_| line.expected(format!("a text instead of `{text}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JEPSEN: &str = "INFO  jepsen.util -";

    /// One operation a line: client, operation, called, returned.
    fn shown<O: Display>(history: &[Operation<O>]) -> String {
        let line = |operation: &Operation<O>| format!("{operation}\n");
        history.iter().map(line).collect()
    }

    #[test]
    fn jepsen_endings() {
        #[track_caller]
        fn check(call: &str, end: &str, history: &str) {
            let text = format!("{JEPSEN} 7\t:invoke\t{call}\n\n{JEPSEN} 7\t{end}\n");
            assert_eq!(recognise("h", &text), Ok(Format::Jepsen));
            assert_eq!(shown(&parse_jepsen("h", &text).unwrap()).trim_end(), history);
        }
        let (read, write, cas) = (":read\tnil", ":write\t4", ":cas\t[1 2]");
        check(read, ":ok\t:read\tnil", "client 7: read -> nil @1..3");
        check(read, ":ok\t:read\t-4", "client 7: read -> -4 @1..3");
        check(read, ":fail\t:read\t:timed-out", "");
        check(read, ":info\t:read\t:timed-out", "client 7: read -> unknown @1..");
        check(write, ":ok\t:write\t4", "client 7: write 4 @1..3");
        check(write, ":fail\t:write\t4", "");
        check(write, ":info\t:write\t:timed-out", "client 7: write 4 @1..");
        check(cas, ":ok\t:cas\t[1 2]", "client 7: cas 1 to 2 -> swapped @1..3");
        check(cas, ":fail\t:cas\t[1 2]", "client 7: cas 1 to 2 -> not swapped @1..3");
        check(cas, ":fail\t:cas\t:timed-out", "");
        check(cas, ":info\t:cas\t:timed-out", "client 7: cas 1 to 2 -> unknown @1..");
    }

    #[test]
    fn what_has_no_end_is_pending() {
        let text = format!("{JEPSEN} 0 :invoke :write 1\n{JEPSEN} 1 :invoke :write 2\n");
        let history = shown(&parse_jepsen("h", &text).unwrap());
        assert_eq!(history, "client 0: write 1 @1..\nclient 1: write 2 @2..\n");
    }

    #[test]
    fn porcupine_endings() {
        let text = r#"
{:process 0, :type :invoke, :f :append, :key "7", :value "a \"b\" }"}
{:process 1, :type :invoke, :f :get, :key "7", :value nil}
{:process 0, :type :ok, :f :append, :key "7", :value "a \"b\" }"}
{:process 1, :type :ok, :f :get, :key "7", :value ""}
{:process 1, :type :invoke, :f :put, :key "7", :value "c"}
{:process 0, :type :invoke, :f :put, :key "8", :value "d"}
{:process 0, :type :fail, :f :put, :key "8", :value "d"}
{:process 1, :type :info, :f :put, :key "7", :value "c"}
"#;
        let history = r#"client 0: append 7 "a \"b\" }" @2..4
client 1: get 7 -> "" @3..5
client 1: put 7 "c" @6..
"#;
        assert_eq!(recognise("h", text), Ok(Format::Porcupine));
        assert_eq!(shown(&parse_porcupine("h", text).unwrap()), history);
    }

    #[test]
    fn errors_name_file_line_and_what_was_expected() {
        #[track_caller]
        fn check(text: &str, message: &str) {
            let result = match recognise("h.log", text) {
                Ok(Format::Jepsen) => parse_jepsen("h.log", text).map(drop),
                Ok(_) => parse_porcupine("h.log", text).map(drop),
                Err(error) => Err(error),
            };
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(&format!("h.log:{message}")), "{error}");
        }
        check("", "1: expected a history");
        check("\nhello", "2: expected a history: `INFO ...`, `{:process ...`");
        check("INFO  jepsen.core - hello", "1: expected `INFO jepsen.util");
        check("{:process 0, :type :ok}", "1: expected `{:process N");
        let put = r#"{:process 0, :type :invoke, :f :put, :key "7", :value nil}"#;
        check(put, "1: expected a text instead of `nil`");
        check(&put.replace(":put", ":got"), "1: expected the function :get");

        let jepsen = |events: &[&str], message| {
            let lines = events.iter().map(|event| format!("{JEPSEN} {event}\n"));
            check(&lines.collect::<String>(), message);
        };
        let call = "0 :invoke :write 4";
        let lost = "0 :info :write :timed-out";
        jepsen(&["x :invoke :read nil"], "1: expected a number instead of `x`");
        jepsen(&["0 :invoke :read 4"], "1: expected `:read nil`");
        jepsen(&["0 :invoke :cas 4 5"], "1: expected a pair");
        jepsen(&[call, call], "2: expected no call of 0");
        jepsen(&[call, lost, call], "3: expected no call of 0");
        jepsen(&[call, "1 :ok :write 4"], "2: expected an open call of 1");
        jepsen(&[call, "0 :ok :write 5"], "2: expected the end of `write 4`");
        jepsen(&[call, "0 :ok :read 4"], "2: expected the end of `write 4`");
        jepsen(&[call, "0 :done :write 4"], "2: expected the phase");
    }
}
