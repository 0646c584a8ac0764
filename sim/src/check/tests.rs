//! Tests of the checker as a whole: recorded histories with known verdicts, the same histories
//! spoilt, small ones by hand, and the search against a plain enumeration of all orders.

use std::cell::Cell;
use std::collections::BTreeMap;
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

/// The good key-value history with ten clients. All values written are different, so a key never
/// holds again what it held before.
fn good() -> Vec<Operation<KvOp>> {
    parse_porcupine("c10-ok.txt", &fixture("kv/c10-ok.txt")).unwrap()
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
    assert!(changes.len() > 50, "only {} reads saw a change", changes.len());
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
            history.push(Operation { client: at, op, called_at: at, returned_at: None });
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

/// One to six operations whose events stand in any order; one in four never returns.
fn histories<O: Clone + fmt::Debug + 'static>(
    ops: impl Strategy<Value = O>,
) -> impl Strategy<Value = Vec<Operation<O>>> {
    let rows = vec((ops, 0..4), 1..=6);
    let placed = rows.prop_flat_map(|rows| {
        let slots: Vec<u64> = (1..=rows.len() as u64 * 2).collect();
        (Just(rows), Just(slots).prop_shuffle())
    });
    placed.prop_map(|(rows, slots)| {
        let pairs = slots.chunks(2).map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])));
        let operation = |((op, luck), (called_at, end)): ((O, i32), (u64, u64))| Operation {
            client: called_at,
            op,
            called_at,
            returned_at: Some(end).filter(|_| luck > 0),
        };
        rows.into_iter().zip(pairs).map(operation).collect()
    })
}

/// Compares verdicts and culprits on random histories; `state` and `step` treat the whole store.
fn compare<M: Model, S>(model: &M, ops: impl Strategy<Value = M::Op>, state: S, step: impl Fn(&S, &M::Op) -> Option<S>)
where
    M::Op: Clone + fmt::Debug + 'static,
{
    const CASES: u32 = 1500;
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let violations = Cell::new(0);
    let compared = TestRunner::new_with_rng(config, rng).run(&histories(ops), |history| {
        let brute = |history: &[Operation<M::Op>]| brute(history, &step, &state, &mut Vec::new());
        match check_history(model, &history, Budget::default()) {
            Verdict::Linearizable => prop_assert!(brute(&history)),
            Verdict::Violation(Violation { at, .. }) => {
                prop_assert!(brute(&prefix(&history, at)), "already before {at}");
                prop_assert!(!brute(&prefix(&history, at + 1)), "not yet at {at}");
                violations.set(violations.get() + 1);
            }
            Verdict::Unknown { why } => prop_assert!(false, "{why}"),
        }
        Ok(())
    });
    compared.unwrap_or_else(|error| panic!("{error}"));
    let violations = violations.get();
    assert!((CASES / 4..CASES * 3 / 4).contains(&violations), "{violations} violations");
}

#[test]
fn the_search_agrees_with_all_orders_of_a_register() {
    let value = || prop_oneof![Just(None), Just(Some(1)), Just(Some(2))];
    let ops = prop_oneof![
        value().prop_map(|saw| RegisterOp::Read { saw: Some(saw) }),
        (1i64..3).prop_map(|value| RegisterOp::Write { value }),
        (1i64..3, 1i64..3, proptest::option::of(any::<bool>())).prop_map(|(from, to, swapped)| RegisterOp::Cas {
            from,
            to,
            swapped
        }),
    ];
    compare(&Register, ops, None, |state, op| Register.step(state, op));
}

#[test]
fn the_search_agrees_with_all_orders_of_a_store() {
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
    let step = |state: &BTreeMap<String, Option<String>>, op: &KvOp| {
        let of_key = state.get(&op.key).cloned().unwrap_or_default();
        let next = Kv::default().step(&of_key, op)?;
        let mut state = state.clone();
        state.insert(op.key.clone(), next);
        Some(state)
    };
    compare(&Kv::default(), ops, BTreeMap::new(), step);
}
