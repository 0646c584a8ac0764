//! Our own history format: JSON lines, an event a line. Keys start as missing.
//!
//! ```text
//! {"client":3,"call":17,"op":"put","key":"a","value":"b"}
//! {"return":17,"outcome":"ok"}
//! ```
//!
//! A call has these fields and no others:
//! - `client`: a number to name in reports. A client may have several calls open.
//! - `call`: a number no other call of the file has.
//! - `op`: `get`, `put`, `append`, `cas` or `delete`; and `key`, a text.
//! - `value`, a text: with `put` and `append`.
//! - `from` and `to`, each a text or null: with `cas`. Null is a missing key.
//!
//! A return has these, and a call without one is pending:
//! - `return`: the number of the call.
//! - `outcome`: `ok`; `fail`: certainly did not happen; `unknown`: pending for ever.
//! - `value`, a text or null: with an `ok` `get`.
//! - `swapped`, true or false: with an `ok` `cas`. One that found another value is `ok`.

use serde_json::{Map, Value};

use super::formats::{Ending, Line, ParseError, Recorder, lines};
use super::models::{KvAction, KvOp};
use super::search::Operation;

pub fn parse_json_lines(file: &str, text: &str) -> Result<Vec<Operation<KvOp>>, ParseError> {
    let mut recorder = Recorder::default();
    for line in lines(file, text) {
        let Ok(Value::Object(fields)) = serde_json::from_str(line.text) else {
            return Err(line.expected("a JSON object"));
        };
        let mut fields = Fields { line, fields };
        if fields.fields.contains_key("call") {
            let (client, call) = (fields.number("client")?, fields.number("call")?);
            let op = KvOp { key: fields.text("key")?, action: fields.action()? };
            fields.finish()?;
            recorder.call_once(&line, call, client, op)?;
        } else {
            let call = fields.number("return")?;
            recorder.end(&line, call, |asked| {
                let ending = fields.ending(asked)?;
                fields.finish()?;
                Ok(ending)
            })?;
        }
    }
    Ok(recorder.finish())
}

/// What is left to read of a JSON line.
struct Fields<'a> {
    line: Line<'a>,
    fields: Map<String, Value>,
}

impl Fields<'_> {
    fn action(&mut self) -> Result<KvAction, ParseError> {
        match self.text("op")?.as_str() {
            "get" => Ok(KvAction::Get { saw: None }),
            "put" => Ok(KvAction::Put { value: self.text("value")? }),
            "append" => Ok(KvAction::Append { value: self.text("value")? }),
            "cas" => {
                let (from, to) = (self.text_or_null("from")?, self.text_or_null("to")?);
                Ok(KvAction::Cas { from, to, swapped: None })
            }
            "delete" => Ok(KvAction::Delete),
            _ => Err(self.line.expected("the op get, put, append, cas or delete")),
        }
    }

    fn ending(&mut self, asked: &KvOp) -> Result<Ending<KvOp>, ParseError> {
        match self.text("outcome")?.as_str() {
            "ok" => {
                let mut answered = asked.clone();
                match &mut answered.action {
                    KvAction::Get { saw } => *saw = Some(self.text_or_null("value")?),
                    KvAction::Cas { swapped, .. } => *swapped = Some(self.boolean("swapped")?),
                    KvAction::Put { .. } | KvAction::Append { .. } | KvAction::Delete => {}
                }
                Ok(Ending::Answered(answered))
            }
            "fail" => Ok(Ending::Never),
            "unknown" => Ok(Ending::Unknown),
            _ => Err(self.line.expected("the outcome ok, fail or unknown")),
        }
    }

    fn number(&mut self, name: &str) -> Result<u64, ParseError> {
        let value = self.fields.remove(name).and_then(|value| value.as_u64());
        value.ok_or_else(|| self.line.expected(format!("a number in the field `{name}`")))
    }

    fn boolean(&mut self, name: &str) -> Result<bool, ParseError> {
        let value = self.fields.remove(name).and_then(|value| value.as_bool());
        value.ok_or_else(|| self.line.expected(format!("true or false in the field `{name}`")))
    }

    fn text(&mut self, name: &str) -> Result<String, ParseError> {
        match self.fields.remove(name) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(self.line.expected(format!("a text in the field `{name}`"))),
        }
    }

    fn text_or_null(&mut self, name: &str) -> Result<Option<String>, ParseError> {
        match self.fields.remove(name) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Null) => Ok(None),
            _ => Err(self.line.expected(format!("a text or null in the field `{name}`"))),
        }
    }

    fn finish(self) -> Result<(), ParseError> {
        match self.fields.keys().next() {
            Some(name) => Err(self.line.expected(format!("no field `{name}` here"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending() {
        let text = r#"
{"client":3,"call":17,"op":"put","key":"a","value":"b\n"}
{"client":3,"call":18,"op":"get","key":"a"}
{"client":4,"call":19,"op":"cas","key":"a","from":null,"to":"c"}
{"return":18,"outcome":"ok","value":null}
{"return":17,"outcome":"unknown"}
{"return":19,"outcome":"ok","swapped":false}
{"client":4,"call":20,"op":"delete","key":"a"}
{"client":5,"call":21,"op":"append","key":"a","value":"x"}
{"client":6,"call":22,"op":"get","key":"a"}
{"return":20,"outcome":"fail"}
{"return":21,"outcome":"ok"}
"#;
        let history = r#"client 3: put a "b\n" @2..
client 3: get a -> nil @3..5
client 4: cas a nil to "c" -> not swapped @4..7
client 5: append a "x" @9..12
client 6: get a -> unknown @10..
"#;
        let parsed = parse_json_lines("h", text).unwrap();
        let shown: String = parsed.iter().map(|operation| format!("{operation}\n")).collect();
        assert_eq!(shown, history);
    }

    #[test]
    fn errors() {
        #[track_caller]
        fn check(lines: &[&str], message: &str) {
            let error = parse_json_lines("h", &lines.join("\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("h:{message}")), "{error}");
        }
        let get = r#"{"client":1,"call":1,"op":"get","key":"a"}"#;
        let end = r#"{"return":1,"outcome":"ok","value":null}"#;
        check(&["{"], "1: expected a JSON object");
        check(&[r#"{"client":1}"#], "1: expected a number in the field `return`");
        check(&[&get.replace(":1", ":-1")], "1: expected a number in the field `client`");
        check(&[&get.replace("get", "put")], "1: expected a text in the field `value`");
        check(&[&get.replace("get", "cas")], "1: expected a text or null in the field `from`");
        check(&[&get.replace("get", "got")], "1: expected the op get, put");
        check(&[&get.replace('}', r#","rev":1}"#)], "1: expected no field `rev` here");
        check(&[get, get], "2: expected no call of 1");
        check(&[get, end, get], "3: expected no call of 1");
        check(&[end], "1: expected an open call of 1");
        check(&[get, end, end], "3: expected an open call of 1");
        check(&[get, &end.replace("ok", "maybe")], "2: expected the outcome ok, fail or unknown");
        check(&[get, &end.replace("ok", "fail")], "2: expected no field `value` here");
        check(&[get, r#"{"return":1,"outcome":"ok"}"#], "2: expected a text or null");
    }
}
