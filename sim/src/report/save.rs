//! A run on disk, under `reports/runs/`: the report, every event as a line, and the calls as a history that
//! `cargo sim check` judges.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Names, Summary};
use crate::{
    history::{Answer, Body, Event, KeyValue, OpId, Outcome, Request, Stamped, Text},
    runner::Run,
};

/// Writes the folder and returns its path.
pub fn save(summary: &Summary, report: &str, run: &Run) -> io::Result<PathBuf> {
    let dir = folder(summary);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("report.txt"), report)?;
    let mut events = BufWriter::new(File::create(dir.join("events.txt"))?);
    let names = Names::new(&run.history);
    for Stamped { at, sequence, event } in &run.history {
        writeln!(events, "{sequence} {at} {}", names.apply(&format!("{event:?}")))?;
    }
    events.flush()?;
    let mut history = BufWriter::new(File::create(dir.join("history.jsonl"))?);
    write_calls(&mut history, &run.history)?;
    history.flush()?;
    Ok(dir)
}

fn folder(summary: &Summary) -> PathBuf {
    let name = summary.scenario.trim_start_matches("scenarios/").trim_end_matches(".toml").replace('/', "-");
    let plant = summary.plant.as_ref().map(|plant| format!("-{plant}")).unwrap_or_default();
    Path::new("reports/runs").join(format!("{name}-{}{plant}", summary.seed))
}

/// The calls on keys: a register a key, as the checker knows them. A deletion is a put of nothing, and one of a range is
/// one of each of its keys that anybody named.
fn write_calls(out: &mut impl Write, history: &[Stamped]) -> io::Result<()> {
    let keys = named_keys(history);
    let mut open = BTreeMap::new();
    for stamped in history {
        match &stamped.event {
            Event::Call { op, client, request, .. } => {
                let lines = calls(request, &keys);
                for (part, mut line) in lines.iter().cloned().enumerate() {
                    line["client"] = json!(client);
                    line["call"] = json!(number(*op, part));
                    writeln!(out, "{line}")?;
                }
                if !lines.is_empty() {
                    open.insert(*op, (request, lines.len()));
                }
            }
            Event::Return { op, outcome } => {
                let Some((request, parts)) = open.remove(op) else { continue };
                for part in 0..parts {
                    let mut line = returned(request, outcome);
                    line["return"] = json!(number(*op, part));
                    writeln!(out, "{line}")?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A call has one number in a file; an operation on several keys is several calls.
fn number(op: OpId, part: usize) -> u64 {
    op.0 + ((part as u64) << 48)
}

fn named_keys(history: &[Stamped]) -> BTreeSet<Text> {
    let calls = history.iter().filter_map(|stamped| match &stamped.event {
        Event::Call { request, .. } => Some(request),
        _ => None,
    });
    let named = calls.filter_map(|request| match request {
        Request::Put { key, .. } | Request::CompareAndSet { key, .. } => Some(key),
        Request::Range { keys, .. } | Request::Delete { keys, .. } => keys.end.is_none().then_some(&keys.start),
    });
    named.cloned().collect()
}

fn calls(request: &Request, keys: &BTreeSet<Text>) -> Vec<Value> {
    match request {
        Request::Delete { keys: range, .. } if range.end.is_some() => {
            let deleted = keys.iter().filter(|key| range.contains(key));
            deleted.map(|key| json!({ "op": "delete", "key": **key })).collect()
        }
        _ => call(request).into_iter().collect(),
    }
}

fn call(request: &Request) -> Option<Value> {
    match request {
        Request::Put { key, value, .. } => Some(json!({ "op": "put", "key": **key, "value": **value })),
        Request::Range { keys, revision: 0, serializable: false, keys_only: false, count_only: false, .. }
            if keys.end.is_none() =>
        {
            Some(json!({ "op": "get", "key": *keys.start }))
        }
        Request::Delete { keys, .. } if keys.end.is_none() => Some(json!({ "op": "delete", "key": *keys.start })),
        Request::CompareAndSet { key, expected, new } => {
            Some(json!({ "op": "cas", "key": **key, "from": expected.as_deref(), "to": **new }))
        }
        _ => None,
    }
}

fn returned(request: &Request, outcome: &Outcome) -> Value {
    let Outcome::Ok(Answer { body, .. }) = outcome else {
        let outcome = if matches!(outcome, Outcome::Failed(_)) { "fail" } else { "unknown" };
        return json!({ "outcome": outcome });
    };
    let value = |kv: Option<&KeyValue>| kv.map(|kv| Text::clone(&kv.value)).as_deref().map(str::to_owned);
    match (request, body) {
        (Request::Range { .. }, Body::Range { kvs, .. }) => json!({ "outcome": "ok", "value": value(kvs.first()) }),
        (_, Body::CompareAndSet { succeeded, .. }) => json!({ "outcome": "ok", "swapped": succeeded }),
        _ => json!({ "outcome": "ok" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Budget, Verdict, check_text},
        history::{Keys, Nanos, NodeNumber},
    };

    #[test]
    fn a_deletion_of_a_range_is_one_of_each_of_its_keys() {
        let keys = |start: &str, end: Option<&str>| Keys { start: start.into(), end: end.map(Into::into) };
        let put = |key: &str| Request::Put { key: key.into(), value: "v".into(), previous: false };
        let get = |key: &str| Request::Range {
            keys: keys(key, None),
            revision: 0,
            limit: 0,
            serializable: false,
            keys_only: false,
            count_only: false,
        };
        let delete = Request::Delete { keys: keys("a", Some("c")), previous: false };
        let nothing = Body::Range { kvs: vec![], count: 0, more: false };
        let kv = KeyValue { key: "c".into(), value: "v".into(), created: 1, modified: 1, version: 1 };
        let done = [
            (put("a"), Body::Put { previous: None }),
            (put("b"), Body::Put { previous: None }),
            (put("c"), Body::Put { previous: None }),
            (delete, Body::Delete { deleted: 2, previous: vec![] }),
            (get("a"), nothing.clone()),
            (get("b"), nothing),
            (get("c"), Body::Range { kvs: vec![kv], count: 1, more: false }),
        ];
        let verdict = |done: &[(Request, Body)]| {
            let events = (1..).zip(done).flat_map(|(number, (request, body))| {
                let (op, request) = (OpId(number), request.clone());
                let answer = Answer { member: 1, revision: 1, term: 1, body: body.clone() };
                let call = Event::Call { op, client: 1, node: NodeNumber(1), request };
                [call, Event::Return { op, outcome: Outcome::Ok(answer) }]
            });
            let history: Vec<_> = events.map(|event| Stamped { at: Nanos(0), sequence: 0, event }).collect();
            let mut text = Vec::new();
            write_calls(&mut text, &history).unwrap();
            check_text("history.jsonl", &String::from_utf8(text).unwrap(), Budget::default()).unwrap().1
        };
        assert!(matches!(verdict(&done), Verdict::Linearizable));
        // Without it the keys would still be there.
        assert!(matches!(verdict(&[&done[..3], &done[4..]].concat()), Verdict::Violation(_)));
    }
}
