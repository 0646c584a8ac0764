//! Spoilt answers to clients.
use detcd_core::{
    event::NodeEvent,
    types::{Digest, Index, RequestId, Revision, Term, TraceId},
};

use super::{Done, History, breaks, breaks_both, cluster, is_single, judge, reads_now};
use crate::{
    history::{Answer, Body, Event, KeyValue, Keys, NodeNumber, OpId, Outcome, Request, Stamped},
    oracle::Verdict,
};

const STRICT: &str = "strict_serializability";
const SECOND: &str = "second_opinion";
const SERIALIZABLE: &str = "serializable_reads";

/// The first read of one key that found something.
fn found(history: &mut History, serializable: bool) -> Option<Done> {
    let done = history.done().into_iter();
    let mut done = done.filter(|done| reads_now(&done.request, serializable) && is_single(&done.request));
    done.find(|done| matches!(&history.answer(done.at).body, Body::Range { kvs, .. } if !kvs.is_empty()))
}

/// A linearizable read becomes stale: it answers from before a write that had returned when it was called.
fn stale_read(history: &mut History) -> bool {
    let all = history.done();
    for read in all.iter().filter(|done| reads_now(&done.request, false) && is_single(&done.request)) {
        let Body::Range { kvs, .. } = &history.answer(read.at).body else { unreachable!() };
        let Some(modified) = kvs.first().map(|kv| kv.modified) else { continue };
        let is_write = |done: &&Done| done.request.writes() && done.at < read.call;
        if all.iter().filter(is_write).any(|write| history.revision(write.at) == modified) {
            history.answer_then(read, modified - 1);
            return true;
        }
    }
    false
}

fn change_value(history: &mut History, serializable: bool) -> bool {
    let Some(read) = found(history, serializable) else { return false };
    let Body::Range { kvs, .. } = &mut history.answer(read.at).body else { unreachable!() };
    kvs[0].value = "other".into();
    true
}

fn swap_reads(history: &mut History) -> bool {
    let reads = history.done().into_iter().filter(|done| reads_now(&done.request, false) && is_single(&done.request));
    let reads: Vec<_> = reads.collect();
    for pair in reads.windows(2).filter(|pair| pair[0].request == pair[1].request) {
        let bodies = [0, 1].map(|n| history.answer(pair[n].at).body.clone());
        if bodies[0] != bodies[1] {
            let [first, second] = bodies;
            history.answer(pair[0].at).body = second;
            history.answer(pair[1].at).body = first;
            return true;
        }
    }
    false
}

fn flip_comparison(history: &mut History) -> bool {
    for done in history.done() {
        if let Body::CompareAndSet { succeeded, read } = &mut history.answer(done.at).body {
            (*succeeded, *read) = (!*succeeded, None);
            return true;
        }
    }
    false
}

fn miscount_versions(history: &mut History) -> bool {
    for done in history.done() {
        if let Body::Put { previous: Some(previous) } = &mut history.answer(done.at).body {
            previous.version += 1;
            return true;
        }
    }
    false
}

fn deny_deletion(history: &mut History) -> bool {
    for done in history.done() {
        let Request::Delete { keys, .. } = &done.request else { continue };
        let single = keys.end.is_none();
        match &mut history.answer(done.at).body {
            Body::Delete { deleted: deleted @ 1, previous } if single => {
                (*deleted, *previous) = (0, Vec::new());
                return true;
            }
            _ => {}
        }
    }
    false
}

/// A write that was answered, and changed something, failed for good after all.
fn fail_what_happened(history: &mut History) -> bool {
    let Some(put) = history.done().into_iter().find(|done| matches!(done.request, Request::Put { .. })) else {
        return false;
    };
    history.events[put.at].event = Event::Return { op: put.op, outcome: Outcome::Failed("too many requests".into()) };
    true
}

/// All members apply something else at an index.
fn reapply(history: &mut History, index: u64, change: impl Fn(&mut RequestId, &mut Revision)) {
    for event in &mut history.events {
        if let Event::Node { event: NodeEvent::Applied { index: at, request, revision, .. }, .. } = &mut event.event
            && at.0 == index
        {
            change(request, revision);
        }
    }
}

fn first_request(history: &History) -> (u64, RequestId) {
    let applied = |event: &NodeEvent| match event {
        NodeEvent::Applied { index, request, .. } if request.0 != 0 => Some((index.0, *request)),
        _ => None,
    };
    history.nodes(applied).next().expect("clients write").2
}

#[test]
fn wrong_answers_break_strict_serializability() {
    breaks_both(STRICT, &[SECOND], |history| change_value(history, false));
    breaks_both(STRICT, &[SECOND], swap_reads);
    breaks_both(STRICT, &[SECOND], flip_comparison);
    breaks_both(STRICT, &[SECOND], miscount_versions);
    breaks_both(STRICT, &[SECOND], deny_deletion);
    breaks(STRICT, |history| {
        let Some(read) = history.done().into_iter().find(|done| reads_now(&done.request, false)) else { return false };
        history.answer(read.at).member += 1;
        true
    });
    breaks(STRICT, |history| {
        let done = history.done();
        let put = done.iter().find(|done| matches!(done.request, Request::Put { .. })).expect("there are puts");
        history.answer(put.at).revision += 1;
        true
    });
}

#[test]
fn stale_reads_break_strict_serializability() {
    breaks_both(STRICT, &[SECOND], stale_read);
    // Stale, though what it read had not changed: only its revision tells.
    breaks_both(STRICT, &[SECOND], |history| {
        let reads = history.done().into_iter().filter(|done| reads_now(&done.request, false)).collect::<Vec<_>>();
        let pairs = reads.iter().flat_map(|a| reads.iter().map(move |b| (a, b)));
        let mut pairs = pairs.filter(|(a, b)| a.at < b.call);
        let Some((first, second)) = pairs.find(|(a, b)| history.revision(a.at) == history.revision(b.at)) else {
            return false;
        };
        let revision = history.revision(first.at) - 1;
        history.answer_then(second, revision);
        true
    });
}

#[test]
fn lost_and_doubled_writes_break_strict_serializability() {
    // The log has it, but for nobody.
    breaks(STRICT, |history| {
        let (index, _) = first_request(history);
        reapply(history, index, |request, _| *request = RequestId(0));
        true
    });
    // No member ever applies it, but it is answered.
    breaks_both(STRICT, &[SECOND, SERIALIZABLE, "watch", "agreement", "recovery"], |history| {
        let (first, _) = first_request(history);
        history.events.retain(|event| {
            !matches!(&event.event, Event::Node { event: NodeEvent::Applied { index, .. }, .. } if index.0 >= first)
        });
        true
    });
    // Once more at the index of the last leader's first entry.
    breaks(STRICT, |history| {
        let (first, again) = first_request(history);
        let bare = |event: &NodeEvent| match event {
            NodeEvent::Applied { index, request: RequestId(0), .. } if index.0 > first => Some(index.0),
            _ => None,
        };
        let Some((.., index)) = history.nodes(bare).next() else { return false };
        reapply(history, index, |request, _| *request = again);
        true
    });
    breaks_both(STRICT, &[SECOND], fail_what_happened);
}

#[test]
fn a_log_that_contradicts_itself_breaks_strict_serializability() {
    // The store's revision leaps.
    breaks(STRICT, |history| {
        let (first, _) = first_request(history);
        for index in first..first + 1_000 {
            reapply(history, index, |_, revision| revision.0 += 1);
        }
        true
    });
    // A write is acknowledged with another's index.
    breaks(STRICT, |history| {
        let acknowledged = |event: &NodeEvent| matches!(event, NodeEvent::Acknowledged { .. }).then_some(());
        let (at, ..) = history.nodes(acknowledged).next().expect("there are some");
        let Event::Node { event: NodeEvent::Acknowledged { index, .. }, .. } = &mut history.events[at].event else {
            unreachable!()
        };
        *index = Index(index.0 - 1);
        true
    });
    // Its node refused it for good, and it is applied.
    breaks(STRICT, |history| {
        let proposed = |event: &NodeEvent| match event {
            NodeEvent::Proposed { request, .. } => Some(*request),
            _ => None,
        };
        let (_, wanted) = first_request(history);
        let (at, node, request) = history.nodes(proposed).find(|(.., request)| *request == wanted).expect("proposed");
        history.insert(at + 1, Event::Node { node, event: NodeEvent::Refused { request, definite: true } });
        true
    });
}

#[test]
fn wrong_answers_break_serializable_reads() {
    breaks(SERIALIZABLE, |history| change_value(history, true));
    breaks(SERIALIZABLE, |history| {
        let reads = history.done().into_iter().find(|done| reads_now(&done.request, true)).expect("there are some");
        let Body::Range { count, .. } = &mut history.answer(reads.at).body else { unreachable!() };
        *count += 1;
        true
    });
    // Back in time, on a member that did not restart in between.
    breaks(SERIALIZABLE, |history| {
        let done = history.done();
        for read in done.iter().filter(|done| reads_now(&done.request, true)) {
            let started = |event: &Stamped| matches!(event.event, Event::Started { node, .. } if node == read.node);
            let begins = history.events[..read.at].iter().rposition(started).expect("it runs");
            let earlier = |done: &&Done| done.node == read.node && done.call > begins && done.at < read.call;
            let floor = done.iter().filter(earlier).map(|done| history.revision(done.at)).max().unwrap_or(0);
            if floor > 1 {
                history.answer_then(read, floor - 1);
                return true;
            }
        }
        false
    });
    // Of a revision that its member has not applied yet.
    breaks(SERIALIZABLE, |history| {
        let done = history.done();
        for read in done.iter().filter(|done| reads_now(&done.request, true)) {
            let of_node = |event: &Stamped| match &event.event {
                Event::Node { node, event: NodeEvent::Applied { revision, .. } } if *node == read.node => {
                    Some(revision.0)
                }
                _ => None,
            };
            let applied = history.events[..read.at].iter().filter_map(of_node).max().unwrap_or(1);
            if applied + 1 < history.states.len() as i64 {
                history.answer_then(read, applied + 1);
                return true;
            }
        }
        false
    });
    // Refused as of the future, though the member had answered with that revision.
    breaks(SERIALIZABLE, |history| {
        let asks = |request: &Request| matches!(request, Request::Range { revision: 1.., serializable: true, .. });
        let Some(read) = history.done().into_iter().rfind(|done| asks(&done.request)) else { return false };
        let why = "etcdserver: mvcc: required revision is a future revision".into();
        history.events[read.at].event = Event::Return { op: read.op, outcome: Outcome::Failed(why) };
        true
    });
}

/// What the second opinion is when these happen before the first call of a good history.
fn second_opinion_after(before: Vec<Event>, spoil: impl Fn(&mut History) -> bool) -> Verdict {
    let (mut events, states) = cluster::history(0, 3);
    let first = events.iter().position(|event| matches!(event.event, Event::Call { .. })).expect("clients call");
    let at = events[first].at;
    events.splice(first..first, before.into_iter().map(|event| Stamped { at, sequence: 0, event }));
    let mut history = History { events, states };
    assert!(spoil(&mut history));
    history.events.iter_mut().zip(0..).for_each(|(event, number)| event.sequence = number);
    let mut verdicts = judge(&super::CONFIG, &history.events).into_iter();
    verdicts.find(|(law, _)| *law == SECOND).expect("it is a law").1
}

fn put(number: u64, key: &str) -> Event {
    let request = Request::Put { key: key.into(), value: format!("x{number}").into(), previous: false };
    Event::Call { op: OpId(1_000_000 + number), client: 1_000 + number, node: NodeNumber(1), request }
}

fn answer(number: u64, body: Body) -> Event {
    let answer = Answer { member: 1, revision: 2, term: 2, body };
    Event::Return { op: OpId(1_000_000 + number), outcome: Outcome::Ok(answer) }
}

/// On each key there is a call in flight at any time.
#[test]
fn the_second_opinion_needs_no_pause() {
    let puts = || ["k0", "k1", "k2"].into_iter().zip(0..).map(|(key, number)| put(number, key)).collect();
    let verdict = second_opinion_after(puts(), |_| true);
    assert!(matches!(verdict, Verdict::Holds { judged: 500.., given_up: 0 }), "{verdict:?}");
    let verdict = second_opinion_after(puts(), stale_read);
    assert!(matches!(verdict, Verdict::Violated(_)), "{verdict:?}");
}

/// With too much in flight on a key at a time there are too many orders: that it could not judge it, the law says, however
/// small a part of everything that is.
#[test]
fn a_second_opinion_on_not_everything_is_none() {
    let puts = 25;
    let mut before: Vec<_> = (0..puts).map(|number| put(number, "z")).collect();
    let keys = Keys { start: "z".into(), end: None };
    let (serializable, keys_only, count_only) = (false, false, false);
    let request = Request::Range { keys, revision: 0, limit: 0, serializable, keys_only, count_only };
    before.push(Event::Call { op: OpId(1_000_000 + puts), client: 1_000 + puts, node: NodeNumber(1), request });
    // None of them wrote what it sees.
    let kv = KeyValue { key: "z".into(), value: "y".into(), created: 2, modified: 3, version: 100 };
    before.push(answer(puts, Body::Range { kvs: vec![kv], count: 1, more: false }));
    before.extend((0..puts).map(|number| answer(number, Body::Put { previous: None })));
    let verdict = second_opinion_after(before, |_| true);
    assert!(matches!(&verdict, Verdict::Unknown { why } if why.contains("key \"z\"")), "{verdict:?}");
}

/// Of many writes, of none of which anybody heard, the first one was applied, was read, and then the others were.
fn read_amid_writes(seen: u64) -> Verdict {
    let puts = 40;
    let node = |event| Event::Node { node: NodeNumber(1), event };
    let applied = |number: u64| {
        node(NodeEvent::Applied {
            index: Index(1),
            term: Term(1),
            request: RequestId(2_000_000 + number),
            revision: Revision(1),
            digest: Digest(0),
        })
    };
    let mut before: Vec<_> = (0..puts).map(|number| put(number, "z")).collect();
    for number in 0..puts {
        let (trace, request) = (TraceId(1_000_000 + number), RequestId(2_000_000 + number));
        before.push(node(NodeEvent::Proposed { trace, request }));
        before.push(Event::Return { op: OpId(1_000_000 + number), outcome: Outcome::Unknown("no answer".into()) });
    }
    before.push(applied(0));
    let keys = Keys { start: "z".into(), end: None };
    let (serializable, keys_only, count_only) = (false, false, false);
    let request = Request::Range { keys, revision: 0, limit: 0, serializable, keys_only, count_only };
    before.push(Event::Call { op: OpId(1_000_000 + puts), client: 1_000 + puts, node: NodeNumber(1), request });
    let kv = KeyValue { key: "z".into(), value: format!("x{seen}").into(), created: 2, modified: 2, version: 1 };
    before.push(answer(puts, Body::Range { kvs: vec![kv], count: 1, more: false }));
    before.extend((1..puts).map(applied));
    second_opinion_after(before, |_| true)
}

#[test]
fn the_second_opinion_tries_first_what_nodes_applied_first() {
    assert!(matches!(read_amid_writes(0), Verdict::Holds { given_up: 0, .. }), "{:?}", read_amid_writes(0));
    assert!(!matches!(read_amid_writes(99), Verdict::Holds { .. }), "{:?}", read_amid_writes(99));
}

/// The second opinion sees calls and answers, and which writes were applied: it must do without the rest.
#[test]
fn the_second_opinion_needs_little() {
    type Spoil = fn(&mut History) -> bool;
    let spoils: [(&str, Spoil); 7] = [
        ("nothing", |_| true),
        ("a value", |history| change_value(history, false)),
        ("swapped reads", swap_reads),
        ("a stale read", stale_read),
        ("a comparison", flip_comparison),
        ("a version", miscount_versions),
        ("a deletion", deny_deletion),
    ];
    for (what, spoil) in spoils {
        let (mut judged, mut occasions) = (0, 0);
        for seed in 0..super::SEEDS {
            let (events, states) = cluster::history(seed, 3);
            let mut history = History { events, states };
            occasions += u64::from(spoil(&mut history));
            history.events.retain_mut(|event| match &mut event.event {
                Event::Call { .. } | Event::Return { .. } => true,
                Event::Node { event: NodeEvent::Proposed { .. }, .. } => true,
                Event::Node { event: NodeEvent::Applied { index, revision, .. }, .. } => {
                    (*index, *revision) = (Index(1), Revision(1));
                    true
                }
                _ => false,
            });
            let verdicts = judge(&super::CONFIG, &history.events);
            match &verdicts.iter().find(|(law, _)| *law == SECOND).expect("it is a law").1 {
                Verdict::Holds { judged, .. } => {
                    assert!(what == "nothing" && *judged > 500, "{what}, seed {seed}: {judged}")
                }
                Verdict::Violated(_) => judged += 1,
                Verdict::Unknown { why } => panic!("{what}, seed {seed}: {why}"),
            }
        }
        assert!(occasions > 0 && (what == "nothing" || judged == occasions), "{what}: {judged} of {occasions}");
    }
}
