//! A run on the terminal.
use std::fmt::Write;

use super::{Result, Summary, evidence};
use crate::{
    oracle::Verdict,
    runner::{Plan, Run},
};

/// Everything a developer wants to see first.
pub fn print(summary: &Summary, plan: &Plan, run: &Run) -> String {
    let mut out = String::new();
    render(&mut out, summary, plan, run).expect("a String grows");
    out
}

fn render(out: &mut String, summary: &Summary, plan: &Plan, run: &Run) -> std::fmt::Result {
    let simulated = summary.simulated_ms as f64 / 1e3;
    let wall = (summary.wall_ms as f64 / 1e3).max(1e-3);
    writeln!(out, "claim     {}", plan.scenario.claim)?;
    writeln!(out, "seed      {} of {}", summary.seed, summary.scenario)?;
    writeln!(out, "time      {simulated:.1} s simulated in {wall:.2} s: {:.0} times as fast", simulated / wall)?;
    for tally in &summary.faults {
        let super::Tally { nemesis, kind, planned, struck, fired, effects } = tally;
        let kind = if nemesis == kind { String::new() } else { format!(" ({kind})") };
        writeln!(
            out,
            "fault     {nemesis}{kind}: {planned} planned, {struck} struck, {fired} fired, {effects} effects"
        )?;
    }
    let ops = summary.ops;
    writeln!(
        out,
        "calls     {} acknowledged, {} of them under a fault; {} failed, {} unknown",
        ops.acknowledged, ops.under_fault, ops.failed, ops.unknown
    )?;
    for (name, verdict) in &run.laws {
        match verdict {
            Verdict::Holds { judged, given_up: given_up @ 1.. } => {
                writeln!(out, "law       {name}: holds, {judged} judged, {given_up} given up")?;
            }
            Verdict::Holds { judged, .. } => writeln!(out, "law       {name}: holds, {judged} judged")?,
            Verdict::Violated(_) => writeln!(out, "law       {name}: VIOLATED")?,
            Verdict::Unknown { why } => writeln!(out, "law       {name}: UNKNOWN: {why}")?,
        }
    }
    writeln!(out, "hash      {} over {} events", summary.hash, summary.events)?;
    writeln!(out, "replay    {}", summary.replay())?;
    let verdict = match summary.result {
        Result::Holds => "holds",
        Result::Violated => "VIOLATED",
        Result::Unknown => "UNKNOWN",
    };
    writeln!(out, "verdict   {verdict}")?;
    if summary.result == Result::Unknown {
        summary.why.iter().try_for_each(|why| writeln!(out, "          {why}"))?;
    }
    if summary.result == Result::Violated {
        out.push_str(&evidence::render(run));
    }
    Ok(())
}
