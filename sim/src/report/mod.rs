//! What a run showed: one value, for people on the terminal, for machines as JSON, for later in a folder.
mod evidence;
mod save;
mod terminal;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{save::save, terminal::print};
use crate::{
    history::{Event, Stamped},
    names::Names,
    nemesis::Tally,
    oracle::{Verdict, Violation},
    runner::{Ops, Plan, Run},
    scenario::Scenario,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    Holds,
    Violated,
    /// Some law could not judge, or there was too little to judge.
    Unknown,
}

impl Result {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Result::Holds => 0,
            Result::Violated => 1,
            Result::Unknown => 2,
        }
    }
}

/// A run in short, as a sweep's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub scenario: String,
    pub seed: u64,
    pub plant: Option<String>,
    pub result: Result,
    /// Why it is not "holds": the laws broken, or what was missing.
    pub why: Vec<String>,
    pub hash: String,
    pub events: u64,
    pub ops: Ops,
    pub faults: Vec<Tally>,
    pub laws: Vec<LawRow>,
    pub simulated_ms: u64,
    pub wall_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LawRow {
    pub name: String,
    pub result: Result,
    pub judged: u64,
    /// What it was to judge besides, and could not.
    #[serde(default)]
    pub given_up: u64,
}

impl Summary {
    pub fn new(file: &str, plan: &Plan, run: &Run, wall: Duration) -> Summary {
        let rows = run.laws.iter().map(|(name, verdict)| law_row(name, verdict)).collect();
        let (result, why) = judge(&plan.scenario, run);
        Summary {
            scenario: file.to_owned(),
            seed: plan.seed,
            plant: plan.plant.map(|plant| plant.to_string()),
            result,
            why,
            hash: format!("{:016x}", run.hash),
            events: run.events,
            ops: run.ops,
            faults: run.faults.clone(),
            laws: rows,
            simulated_ms: run.simulated.as_millis() as u64,
            wall_ms: wall.as_millis() as u64,
        }
    }

    /// The command that does it again.
    pub fn replay(&self) -> String {
        let plant = self.plant.as_ref().map(|plant| format!(" --plant {plant}")).unwrap_or_default();
        format!("cargo sim run {} --seed {}{plant}", self.scenario, self.seed)
    }
}

fn law_row(name: &str, verdict: &Verdict) -> LawRow {
    let (result, judged, given_up) = match verdict {
        Verdict::Holds { judged, given_up } => (Result::Holds, *judged, *given_up),
        Verdict::Violated(_) => (Result::Violated, 0, 0),
        Verdict::Unknown { .. } => (Result::Unknown, 0, 0),
    };
    LawRow { name: name.to_owned(), result, judged, given_up }
}

/// A violation outweighs whatever is unknown; what showed nothing does not hold.
fn judge(scenario: &Scenario, run: &Run) -> (Result, Vec<String>) {
    let broken = run.laws.iter().filter_map(|(name, verdict)| match verdict {
        Verdict::Violated(Violation { subject, expected, got, .. }) => {
            Some(format!("{name}: {subject}: expected {expected}; got {got}"))
        }
        _ => None,
    });
    let accident = run.accident.iter().map(|accident| format!("{}: {}", accident.kind, accident.text));
    let violated: Vec<_> = accident.chain(broken).collect();
    if !violated.is_empty() {
        let names = Names::new(&run.history);
        return (Result::Violated, violated.iter().map(|why| names.apply(why)).collect());
    }
    let unknown = missing(scenario, run);
    if unknown.is_empty() { (Result::Holds, unknown) } else { (Result::Unknown, unknown) }
}

/// What would have had to come about for the run to show anything.
fn missing(scenario: &Scenario, run: &Run) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, verdict) in &run.laws {
        match verdict {
            Verdict::Unknown { why } => missing.push(format!("{name} cannot judge: {why}")),
            Verdict::Holds { judged: 0, .. } => missing.push(format!("{name} judged nothing")),
            _ => {}
        }
    }
    let expect = &scenario.expect;
    let mut at_least = |what: &str, got: u64, min: u64| {
        if got < min {
            missing.push(format!("{got} operations were {what}; the scenario wants {min}"));
        }
    };
    at_least("acknowledged", run.ops.acknowledged, expect.acknowledged_min);
    at_least("acknowledged while a fault was on", run.ops.under_fault, expect.under_fault_min);
    for name in &expect.must_fire {
        if !run.faults.iter().any(|tally| tally.nemesis == *name && tally.fired > 0) {
            missing.push(format!("no fault of {name} had an effect"));
        }
    }
    if !run.faults.is_empty() && run.faults.iter().all(|tally| tally.fired == 0) {
        missing.push("no fault at all had an effect".to_owned());
    }
    let noted = |name: &str| {
        let is_it = |stamped: &Stamped| matches!(&stamped.event, Event::Node { event, .. } if event.name() == name);
        run.history.iter().any(is_it)
    };
    for name in expect.must_reach.iter().filter(|name| !noted(name)) {
        missing.push(format!("no node ever noted {name}"));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_which_none_has_an_effect_show_nothing() {
        let text = "claim = 'Nothing.'\nrun_ms = 60_000\nsettle_ms = 5_000\ncluster = { nodes = 1 }\n\
                    expect = { acknowledged_min = 1, under_fault_min = 0, must_fire = [] }";
        let scenario = Scenario::parse("test", text).unwrap();
        let tally =
            |fired| Tally { nemesis: "kill".into(), kind: "kill".into(), planned: 3, struck: 2, fired, effects: fired };
        let run = |faults| Run {
            hash: 0,
            events: 0,
            simulated: Duration::ZERO,
            history: Vec::new(),
            faults,
            laws: Vec::new(),
            ops: Ops { acknowledged: 1, ..Ops::default() },
            accident: None,
        };
        assert!(missing(&scenario, &run(vec![])).is_empty());
        assert!(missing(&scenario, &run(vec![tally(0), tally(1)])).is_empty());
        assert_eq!(missing(&scenario, &run(vec![tally(0), tally(0)])).len(), 1);
    }
}
