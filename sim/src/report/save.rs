//! A run on disk, under `reports/runs/`: the report, every event as a line, and the calls as a history that
//! `cargo sim check` judges.
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::Summary;
use crate::{
    history::{Answer, Body, Event, KeyValue, Outcome, Request, Stamped, Text},
    runner::Run,
};

/// Writes the folder and returns its path.
pub fn save(summary: &Summary, report: &str, run: &Run) -> io::Result<PathBuf> {
    let dir = folder(summary);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("report.txt"), report)?;
    let mut events = BufWriter::new(File::create(dir.join("events.txt"))?);
    for Stamped { at, sequence, event } in &run.history {
        writeln!(events, "{sequence} {at} {event:?}")?;
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

/// The calls that concern one key each: a register a key, as the checker knows them. A deletion is a put of nothing.
fn write_calls(out: &mut impl Write, history: &[Stamped]) -> io::Result<()> {
    let mut open = std::collections::BTreeMap::new();
    for stamped in history {
        match &stamped.event {
            Event::Call { op, client, request, .. } => {
                if let Some(mut line) = call(request) {
                    line["client"] = json!(client);
                    line["call"] = json!(op.0);
                    open.insert(*op, request.clone());
                    writeln!(out, "{line}")?;
                }
            }
            Event::Return { op, outcome } => {
                if let Some(request) = open.remove(op) {
                    let mut line = returned(&request, outcome);
                    line["return"] = json!(op.0);
                    writeln!(out, "{line}")?;
                }
            }
            _ => {}
        }
    }
    Ok(())
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
