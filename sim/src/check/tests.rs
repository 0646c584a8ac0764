//! Tests of the checker as a whole: recorded histories with known verdicts, the same histories
//! spoilt, small ones by hand, and the search against a plain enumeration of all orders.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::formats::{parse_jepsen, parse_porcupine};
use super::*;

fn fixture(path: &str) -> String {
    let histories = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/histories"));
    let path = histories.join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Linearizable => "linearizable",
        Verdict::Violation(_) => "violation",
        Verdict::Unknown { .. } => "unknown",
    }
}

/// A fiftieth of the default: what good and recorded histories take, with room to spare.
const TIGHT: Budget = Budget(20_000);

#[test]
fn jepsen_histories_have_the_known_verdicts() {
    let expected = fixture("jepsen-etcd/expected.tsv");
    for (file, expected) in expected.lines().map(|line| line.split_once('\t').unwrap()) {
        let text = fixture(&format!("jepsen-etcd/{file}"));
        let (format, verdict) = check_text(file, &text, TIGHT).unwrap();
        assert_eq!(format, Format::Jepsen);
        assert_eq!(name(&verdict), expected, "{file}: {verdict:?}");
    }
    assert_eq!(expected.lines().count(), 60);
}

#[test]
fn key_value_histories_have_the_known_verdicts() {
    let expected = [
        ("c01-ok.txt", "linearizable"),
        ("c01-bad.txt", "violation"),
        ("c10-ok.txt", "linearizable"),
        ("c10-bad.txt", "violation"),
    ];
    for (file, expected) in expected {
        let (format, verdict) = check_text(file, &fixture(&format!("kv/{file}")), TIGHT).unwrap();
        assert_eq!(format, Format::Porcupine);
        assert_eq!(name(&verdict), expected, "{file}: {verdict:?}");
    }
}

/// The good key-value history with ten clients, without the keys to which some value was written
/// twice. What is left never holds again what it held before.
fn good() -> Vec<Operation<KvOp>> {
    let mut history = parse_porcupine("c10-ok.txt", &fixture("kv/c10-ok.txt")).unwrap();
    let (mut written, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for KvOp { key, action } in history.iter().map(|operation| operation.op.clone()) {
        if let KvAction::Put { value } | KvAction::Append { value } = action
            && !written.insert((key.clone(), value))
        {
            twice.insert(key);
        }
    }
    history.retain(|operation| !twice.contains(&operation.op.key));
    history
}

fn assert_violation(history: &[Operation<KvOp>], what: &str) {
    let verdict = check_history(&Kv { initial: Some(String::new()) }, history, TIGHT);
    assert_eq!(name(&verdict), "violation", "{what}");
}

fn seen(operation: &Operation<KvOp>) -> Option<&str> {
    match &operation.op.action {
        KvAction::Get { saw } => saw.as_ref()?.as_deref(),
        _ => None,
    }
}

/// Gets of one key, the second called after the first had returned, between which something was
/// appended: there is no order in which the second value comes before the first.
fn changes(history: &[Operation<KvOp>]) -> Vec<(usize, usize)> {
    let mut changes = Vec::new();
    for (second, late) in history.iter().enumerate() {
        let before = history[..second].iter().rposition(|early| {
            let grown = |(old, new): (&str, &str)| new.len() > old.len() && new.starts_with(old);
            early.op.key == late.op.key
                && early.returned_at.is_some_and(|at| at < late.called_at)
                && seen(early).zip(seen(late)).is_some_and(grown)
        });
        changes.extend(before.map(|first| (first, second)));
    }
    changes
}

#[test]
fn swapped_and_stale_reads_are_noticed() {
    let good = good();
    let changes = changes(&good);
    assert!(changes.len() > 30, "only {} reads saw a change", changes.len());
    for &(first, second) in &changes {
        let mut swapped = good.clone();
        swapped[first].op = good[second].op.clone();
        swapped[second].op = good[first].op.clone();
        assert_violation(&swapped, &format!("swapped {} and {}", good[first], good[second]));
    }
    let mut stale_reads = 0;
    for &(first, second) in &changes {
        let after = |&&(before, _): &&(usize, usize)| before == second;
        for &(_, third) in changes.iter().filter(after) {
            let mut stale = good.clone();
            stale[third].op = good[first].op.clone();
            assert_violation(&stale, &format!("{} saw {}", good[third], good[first]));
            stale_reads += 1;
        }
    }
    assert!(stale_reads > 20, "only {stale_reads} stale reads tried");
}

#[test]
fn lost_writes_are_noticed() {
    let good = good();
    let mut lost_writes = 0;
    for (slot, write) in good.iter().enumerate() {
        let (KvAction::Put { value } | KvAction::Append { value }) = &write.op.action else {
            continue;
        };
        let of_key = |get: &&Operation<KvOp>| get.op.key == write.op.key;
        if good.iter().filter(of_key).filter_map(seen).any(|seen| seen.contains(value)) {
            let mut lost = good.clone();
            lost.remove(slot);
            assert_violation(&lost, &format!("lost {write}"));
            lost_writes += 1;
        }
    }
    assert!(lost_writes > 50, "only {lost_writes} writes were seen");
}

#[test]
fn values_out_of_thin_air_are_noticed_where_they_are_read() {
    let good = parse_jepsen("h", &fixture("jepsen-etcd/etcd_002.log")).unwrap();
    let mut reads = 0;
    for slot in 0..good.len() {
        if matches!(good[slot].op, RegisterOp::Read { .. }) {
            let mut bad = good.clone();
            bad[slot].op = RegisterOp::Read { saw: Some(Some(99)) };
            let Verdict::Violation(violation) = check_history(&Register, &bad, TIGHT) else {
                panic!("nobody wrote what {} saw", bad[slot]);
            };
            assert_eq!(Some(violation.at), bad[slot].returned_at);
            assert_eq!(violation.stuck[0].op, bad[slot].to_string());
            reads += 1;
        }
    }
    assert!(reads > 10, "only {reads} reads");
}

/// Writes, reads and a pending write: what happens, in the order of the lines.
///
/// `w1 (` calls a write of 1, `w1 )` ends it; likewise `r1` for a read that sees 1. An operation
/// that is not ended is pending.
fn by_hand(events: &str) -> Vec<Operation<RegisterOp>> {
    let mut history: Vec<Operation<RegisterOp>> = Vec::new();
    for (at, event) in (1..).zip(events.split(", ")) {
        let (op, phase) = event.split_once(' ').unwrap();
        let value = op[1..].parse().unwrap();
        let op = match &op[..1] {
            "w" => RegisterOp::Write { value },
            _ => RegisterOp::Read { saw: Some(Some(value)) },
        };
        if phase == "(" {
            history.push(Operation { client: at, op, called_at: at, returned_at: None, guess: 0 });
        } else {
            let open = history.iter_mut().find(|o| o.op == op && o.returned_at.is_none());
            open.unwrap().returned_at = Some(at);
        }
    }
    history
}

#[test]
fn pending_writes_happen_late_or_never() {
    #[track_caller]
    fn check_events(events: &str, expected: &str) {
        let verdict = check_history(&Register, &by_hand(events), TIGHT);
        assert_eq!(name(&verdict), expected, "{verdict:?}");
    }
    check_events("w1 (, w1 ), w2 (, r2 (, r2 )", "linearizable"); // seen
    check_events("w1 (, w1 ), w2 (, r1 (, r1 )", "linearizable"); // never seen
    check_events("w1 (, w1 ), w2 (, r1 (, r1 ), r2 (, r2 )", "linearizable"); // seen late
    check_events("w1 (, w1 ), w2 (, r2 (, r2 ), r1 (, r1 )", "violation"); // and gone again
    check_events("w1 (, w1 ), r2 (, r2 ), w2 (", "violation"); // seen before it was called
    check_events("w1 (, w1 ), w2 (, w2 (, r2 (, r2 ), w1 (, w1 ), r2 (, r2 )", "linearizable");
    check_events("w1 (, w1 ), w2 (, r2 (, r2 ), w1 (, w1 ), r2 (, r2 )", "violation"); // seen twice
    check_events("w2 (, r1 (", "linearizable"); // nothing returned, nothing to explain
}

#[test]
fn many_pending_writes_are_cheap() {
    // Sixty writes nobody heard of again, and a client that sees every third of them.
    let mut events: Vec<String> = (1..=60).map(|value| format!("w{value} (")).collect();
    for value in (1..=60).step_by(3) {
        events.extend([format!("r{value} ("), format!("r{value} )")]);
    }
    assert_eq!(check_history(&Register, &by_hand(&events.join(", ")), TIGHT), Verdict::Linearizable);
    events.extend(["r4 (".to_owned(), "r4 )".to_owned()]); // its only write is used up
    let verdict = check_history(&Register, &by_hand(&events.join(", ")), Budget(150_000));
    assert_eq!(name(&verdict), "violation");
}

#[test]
fn events_at_one_position_overlap() {
    let write =
        Operation { client: 1, op: RegisterOp::Write { value: 1 }, called_at: 1, returned_at: Some(5), guess: 0 };
    let read = |called_at| Operation {
        client: 2,
        op: RegisterOp::Read { saw: Some(None) },
        called_at,
        returned_at: Some(9),
        guess: 0,
    };
    assert_eq!(check_history(&Register, &[write.clone(), read(5)], TIGHT), Verdict::Linearizable);
    assert_eq!(name(&check_history(&Register, &[write, read(6)], TIGHT)), "violation");
}

/// Cells by name, where only setting one is independent of the others.
struct Cells;

#[derive(PartialEq, Eq)]
enum CellsOp {
    Set(&'static str),
    Count(usize),
}

impl fmt::Display for CellsOp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            CellsOp::Set(name) => write!(f, "set {name}"),
            CellsOp::Count(count) => write!(f, "count -> {count}"),
        }
    }
}

impl Model for Cells {
    type State = BTreeSet<&'static str>;
    type Op = CellsOp;

    fn initial(&self) -> Self::State {
        BTreeSet::new()
    }

    fn step(&self, state: &Self::State, op: &CellsOp) -> Option<Self::State> {
        match op {
            CellsOp::Set(name) => Some(state.iter().copied().chain([*name]).collect()),
            CellsOp::Count(count) => (*count == state.len()).then(|| state.clone()),
        }
    }

    fn key<'a>(&self, op: &'a CellsOp) -> Option<&'a str> {
        match op {
            CellsOp::Set(name) => Some(name),
            CellsOp::Count(_) => None,
        }
    }

    fn expected(&self, state: &Self::State, _: &CellsOp) -> String {
        state.len().to_string()
    }
}

#[test]
fn one_operation_without_a_key_joins_all_keys() {
    #[track_caller]
    fn check(ops: Vec<CellsOp>, expected: &str) {
        let timed = (1..).zip(ops).map(|(at, op)| Operation {
            client: at,
            op,
            called_at: at * 2,
            returned_at: Some(at * 2 + 1),
            guess: 0,
        });
        let verdict = check_history(&Cells, &timed.collect::<Vec<_>>(), TIGHT);
        assert_eq!(name(&verdict), expected, "{verdict:?}");
    }
    use CellsOp::{Count, Set};
    check(vec![Set("a"), Set("b")], "linearizable");
    check(vec![Set("a"), Set("b"), Count(2)], "linearizable");
    check(vec![Set("a"), Set("b"), Count(1)], "violation");
}

#[test]
fn a_violation_is_explained() {
    let text = r#"
{"client":1,"call":1,"op":"put","key":"a","value":"x"}
{"return":1,"outcome":"ok"}
{"client":2,"call":2,"op":"put","key":"a","value":"y"}
{"client":3,"call":3,"op":"get","key":"a"}
{"client":4,"call":4,"op":"cas","key":"a","from":"q","to":"r"}
{"return":3,"outcome":"ok","value":null}
{"return":4,"outcome":"ok","swapped":true}
"#;
    let (format, verdict) = check_text("h", text, TIGHT).unwrap();
    assert_eq!(format, Format::JsonLines);
    let Verdict::Violation(violation) = verdict else { panic!("{verdict:?}") };
    let explanation = r#"no legal order of key a explains event 7
  does not fit: client 3: get a -> nil @5..7, expected "x" or "y"
  does not fit: client 4: cas a "q" to "r" -> swapped @6..8, expected not swapped, as the value is "y"
  placed before: 2 operations
    client 1: put a "x" @2..3
    client 2: put a "y" @4.."#;
    assert_eq!(violation.to_string(), explanation);
}

#[test]
fn the_budget_ends_a_search_but_hides_no_violation() {
    let text = fixture("kv/c10-bad.txt");
    let (_, verdict) = check_text("h", &text, Budget(1)).unwrap();
    assert_eq!(name(&verdict), "unknown");
    // Key a is too much for the budget, key b is wrong at once.
    let mut lines: Vec<String> =
        (1..=20).map(|n| format!(r#"{{"client":1,"call":{n},"op":"append","key":"a","value":"{n}"}}"#)).collect();
    lines.push(r#"{"client":1,"call":21,"op":"get","key":"a"}"#.into());
    lines.push(r#"{"return":21,"outcome":"ok","value":"none of it"}"#.into());
    let (_, verdict) = check_text("h", &lines.join("\n"), TIGHT).unwrap();
    let why = "gave up after 20000 configurations of key a, at event 22".to_owned();
    assert_eq!(verdict, Verdict::Unknown { why });
    lines.push(r#"{"client":1,"call":22,"op":"get","key":"b"}"#.into());
    lines.push(r#"{"return":22,"outcome":"ok","value":"c"}"#.into());
    let (_, verdict) = check_text("h", &lines.join("\n"), TIGHT).unwrap();
    let Verdict::Violation(violation) = verdict else { panic!("{verdict:?}") };
    assert_eq!((violation.key.as_deref(), violation.at), (Some("b"), 24));
}

/// Linearizable by definition: some order of all that returned, and of any that are pending, has
/// only right answers and no operation after one that began when it was over. Tries all orders.
fn brute<S, O>(
    history: &[Operation<O>],
    step: &impl Fn(&S, &O) -> Option<S>,
    state: &S,
    order: &mut Vec<usize>,
) -> bool {
    let too_late = |(place, &early): (usize, &usize)| {
        let later = &order[place + 1..];
        later.iter().any(|&op| history[op].returned_at.is_some_and(|at| at < history[early].called_at))
    };
    let all = (0..history.len()).all(|op| history[op].returned_at.is_none() || order.contains(&op));
    if all && !order.iter().enumerate().any(too_late) {
        return true;
    }
    (0..history.len()).any(|op| {
        if order.contains(&op) {
            return false;
        }
        step(state, &history[op].op).is_some_and(|next| {
            order.push(op);
            let found = brute(history, step, &next, order);
            order.pop();
            found
        })
    })
}

/// What was known just before event `end`.
fn prefix<O: Clone>(history: &[Operation<O>], end: u64) -> Vec<Operation<O>> {
    let begun = history.iter().filter(|operation| operation.called_at < end).cloned();
    let cut =
        |operation: Operation<O>| Operation { returned_at: operation.returned_at.filter(|&at| at < end), ..operation };
    begun.map(cut).collect()
}

/// An operation of a random history.
#[derive(Debug, Clone)]
struct Plan<O> {
    operation: Operation<O>,
    /// When a real store would serve it.
    served_at: u64,
    /// Whether its client is told what that store would tell it. Else `operation` has a random answer.
    honest: bool,
}

/// Two to six operations whose events stand in any order; one in three never returns.
fn plans<O: Clone + fmt::Debug + 'static>(ops: impl Strategy<Value = O>) -> impl Strategy<Value = Vec<Plan<O>>> {
    let rows = vec((ops, 0..3, 0u64..12, any::<bool>()), 2..=6);
    let placed = rows.prop_flat_map(|rows| {
        let slots: Vec<u64> = (1..=rows.len() as u64 * 2).collect();
        (Just(rows), Just(slots).prop_shuffle())
    });
    placed.prop_map(|(rows, slots)| {
        let pairs = slots.chunks(2).map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])));
        let plan = |((op, luck, delay, honest), (called_at, end)): ((O, i32, u64, bool), (u64, u64))| {
            let returned_at = Some(end).filter(|_| luck > 0);
            let served_at = called_at + returned_at.map_or(delay, |end| delay % (end - called_at));
            // Good guesses, and bad ones: no verdict depends on them.
            let guess = if luck == 1 { served_at } else { 100 - served_at };
            let operation = Operation { client: called_at, op, called_at, returned_at, guess };
            Plan { operation, served_at, honest }
        };
        rows.into_iter().zip(pairs).map(plan).collect()
    })
}

/// What a random test needs to know of a store, as a whole and not key by key.
struct Store<S, O> {
    initial: S,
    step: fn(&S, &O) -> Option<S>,
    /// The operation with the answer that is due in a state, or with none.
    told: fn(&O, Option<&S>) -> O,
}

impl<S: Clone, O: Clone> Store<S, O> {
    fn serve(&self, mut plans: Vec<Plan<O>>) -> Vec<Operation<O>> {
        plans.sort_by_key(|plan| plan.served_at);
        let mut state = self.initial.clone();
        for Plan { operation, honest, .. } in &mut plans {
            let due = (self.told)(&operation.op, Some(&state));
            state = (self.step)(&state, &due).expect("this answer is due");
            match operation.returned_at {
                None => operation.op = (self.told)(&operation.op, None),
                Some(_) if *honest => operation.op = due,
                Some(_) => {}
            }
        }
        plans.into_iter().map(|plan| plan.operation).collect()
    }
}

/// Compares verdicts and culprits on random histories.
fn compare<M: Model, S: Clone>(model: &M, ops: impl Strategy<Value = M::Op>, store: Store<S, M::Op>)
where
    M::Op: Clone + fmt::Debug + 'static,
{
    const CASES: u32 = 3000;
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let violations = Cell::new(0);
    let compared = TestRunner::new_with_rng(config, rng).run(&plans(ops), |plans| {
        let history = store.serve(plans);
        let brute = |history: &[Operation<M::Op>]| brute(history, &store.step, &store.initial, &mut Vec::new());
        match check_history(model, &history, Budget::default()) {
            Verdict::Linearizable => prop_assert!(brute(&history), "{}", shown(&history)),
            Verdict::Violation(Violation { at, .. }) => {
                prop_assert!(brute(&prefix(&history, at)), "before {at}: {}", shown(&history));
                prop_assert!(!brute(&prefix(&history, at + 1)), "at {at}: {}", shown(&history));
                violations.set(violations.get() + 1);
            }
            Verdict::Unknown { why } => prop_assert!(false, "{why}"),
        }
        Ok(())
    });
    compared.unwrap_or_else(|error| panic!("{error}"));
    let violations = violations.get();
    assert!((CASES / 6..CASES * 5 / 6).contains(&violations), "{violations} violations");
}

fn shown<O: fmt::Display>(history: &[Operation<O>]) -> String {
    history.iter().map(|operation| format!("\n{operation}")).collect()
}

#[test]
fn the_search_agrees_with_all_orders_of_a_register() {
    let value = || prop_oneof![Just(None), Just(Some(1)), Just(Some(2))];
    let cas = |(from, to, swapped)| RegisterOp::Cas { from, to, swapped };
    let ops = prop_oneof![
        value().prop_map(|saw| RegisterOp::Read { saw: Some(saw) }),
        (1i64..3).prop_map(|value| RegisterOp::Write { value }),
        (1i64..3, 1i64..3, proptest::option::of(any::<bool>())).prop_map(cas),
    ];
    let told = |op: &RegisterOp, state: Option<&Option<i64>>| match *op {
        RegisterOp::Read { .. } => RegisterOp::Read { saw: state.copied() },
        RegisterOp::Write { value } => RegisterOp::Write { value },
        RegisterOp::Cas { from, to, .. } => {
            let swapped = state.map(|state| *state == Some(from));
            RegisterOp::Cas { from, to, swapped }
        }
    };
    let store = Store { initial: None, step: |state, op| Register.step(state, op), told };
    compare(&Register, ops, store);
}

#[test]
fn the_search_agrees_with_all_orders_of_a_store() {
    type State = BTreeMap<String, Option<String>>;
    fn of_key(state: &State, key: &str) -> Option<String> {
        state.get(key).cloned().flatten()
    }
    let text = || prop_oneof![Just("x".to_owned()), Just("xy".to_owned())];
    let action = prop_oneof![
        3 => proptest::option::of(text()).prop_map(|saw| KvAction::Get { saw: Some(saw) }),
        2 => text().prop_map(|value| KvAction::Put { value }),
        1 => Just(KvAction::Append { value: "y".into() }),
        1 => Just(KvAction::Delete),
    ];
    let key = prop_oneof![3 => Just("a".to_owned()), 1 => Just("b".to_owned())];
    let ops = (key, action).prop_map(|(key, action)| KvOp { key, action });
    // One state for both keys: that they can be searched alone is for the search to show.
    let step = |state: &State, op: &KvOp| {
        let next = Kv::default().step(&of_key(state, &op.key), op)?;
        let mut state = state.clone();
        state.insert(op.key.clone(), next);
        Some(state)
    };
    let told = |op: &KvOp, state: Option<&State>| {
        let mut told = op.clone();
        if let KvAction::Get { saw } = &mut told.action {
            *saw = state.map(|state| of_key(state, &op.key));
        }
        told
    };
    compare(&Kv::default(), ops, Store { initial: State::new(), step, told });
}
