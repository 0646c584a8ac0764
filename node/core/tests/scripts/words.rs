//! The words of a script.
//!
//! | command | what it does |
//! |---|---|
//! | `add-nodes N [tail B]` | founds a cluster of members 1 to N, which hold B bytes of applied log in memory |
//! | `elect M` | makes M the leader and lets all come to rest; what happens is not told |
//! | `tick M [N]` | lets time pass at M |
//! | `campaign M` | lets time pass at M until its role changes |
//! | `deliver A B [N]` | messages from A to B arrive: N of them, or all |
//! | `double A B` | the first message from A to B will arrive twice |
//! | `drop A B` | messages from A to B are lost |
//! | `in-flight` | shows the messages on their way |
//! | `persist M [N]` | M's disk completes N batches, or all |
//! | `stabilize [M...]` | messages arrive and batches are completed, among these members or all, until nothing is left |
//! | `pass N [M...]` | N times: every member, or each of these, ticks, and all comes to rest among them |
//! | `propose M put K=V`, `propose M delete K` | a client of M writes |
//! | `read M` | a client of M reads |
//! | `watch M K [from R]`, `cancel M W` | a client of M watches a key, or no longer |
//! | `add M X`, `add-learner M X`, `promote M X`, `remove M X` | an operator asks M for a change of the membership |
//! | `transfer M X` | an operator asks M that X leads |
//! | `deliver-snapshot A B`, `lose-snapshot A B` | the states on their way from A to B arrive, or get lost |
//! | `isolate M`, `join` | nothing that M sends, or is sent, arrives; all can talk again |
//! | `stall M`, `heal M` | M's disk completes nothing; it works again |
//! | `crash M [losing N]` | M ends as in a power failure; its disk loses N durable entries besides |
//! | `stop M`, `start M` | M is told to stop; M starts (again, or if it is new, with nothing) |
//! | `status` | how the members stand |
//!
//! A command after `quietly` is done, and what happens is not told; after `only WORD|WORD`, only lines with such a
//! word are.
use bytes::Bytes;
use detcd_core::{
    limits,
    machine::{
        command::{Command, Delete, Put},
        membership::Member as Founder,
    },
    mvcc::{KeyRange, RangeEnd},
    replica::ChangeRequest,
    types::{LeaseId, MemberId, Revision, WatchId},
    watch::{Create, Filter, Request},
};

use crate::bench::{Bench, founder};

/// A script that was run: with what happened in place of what was expected.
pub struct Script {
    pub told: String,
    pub record: Vec<String>,
}

impl Script {
    pub fn run(text: &str) -> Script {
        let mut bench = Bench::new(0, limits::TAIL_BYTES);
        let mut told = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            told += line;
            told.push('\n');
            if line == "----" {
                told += &std::mem::take(&mut bench.story);
                // What was expected ends at a blank line.
                if lines.by_ref().any(|line| line.is_empty()) {
                    told.push('\n');
                }
            } else if !line.is_empty() && !line.starts_with('#') {
                run(&mut bench, line);
            }
        }
        Script { told, record: bench.record }
    }
}

fn run(bench: &mut Bench, line: &str) {
    if let Some(command) = line.strip_prefix("quietly ") {
        let told = bench.story.len();
        run(bench, command);
        return bench.story.truncate(told);
    }
    if let Some((kept, command)) = line.strip_prefix("only ").and_then(|rest| rest.split_once(' ')) {
        let told = bench.story.len();
        run(bench, command);
        let lines = bench.story.split_off(told);
        let kept = |line: &&str| kept.split('|').any(|word| line.split([' ', ',', ':']).any(|other| other == word));
        bench.story.extend(lines.lines().filter(kept).flat_map(|line| [line, "\n"]));
        return;
    }
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |at: usize| -> u64 { words[at].parse().unwrap_or_else(|_| panic!("{line}: a number is missing")) };
    let count = |at: usize| words.get(at).map_or(usize::MAX, |_| number(at) as usize);
    match words[0] {
        "add-nodes" => *bench = Bench::new(number(1), if words.len() > 2 { number(3) } else { limits::TAIL_BYTES }),
        "add" | "add-learner" | "promote" | "remove" => bench.change(number(1), change(words[0], number(2))),
        "transfer" => bench.transfer(number(1), number(2)),
        "deliver-snapshot" => assert!(bench.deliver_snapshots(number(1), number(2), true) > 0, "{line}: there is none"),
        "lose-snapshot" => assert!(bench.deliver_snapshots(number(1), number(2), false) > 0, "{line}: there is none"),
        "elect" => elect(bench, number(1)),
        "tick" => (0..words.get(2).map_or(1, |_| number(2))).for_each(|_| bench.tick(number(1))),
        "pass" => {
            let ids = if words.len() > 2 { (2..words.len()).map(number).collect() } else { bench.ids() };
            (0..number(1)).for_each(|_| pass(bench, &ids));
        }
        "stall" => bench.stall(number(1)),
        "heal" => bench.heal(number(1)),
        "campaign" => campaign(bench, number(1)),
        "deliver" => bench.deliver(number(1), number(2), count(3)),
        "double" => bench.double(number(1), number(2)),
        "drop" => {
            let lost = bench.drop_messages(number(1), number(2));
            bench.story += &format!("messages lost: {lost}\n");
        }
        "in-flight" => {
            let lines = bench.in_flight();
            bench.story.extend(lines.into_iter().map(|line| line + "\n"));
        }
        "persist" => bench.persist(number(1), count(2)),
        "stabilize" => {
            let ids = if words.len() > 1 { (1..words.len()).map(number).collect() } else { bench.ids() };
            bench.stabilize(&ids);
        }
        "propose" => bench.propose(number(1), command(&words[2..])),
        "read" => bench.read(number(1)),
        "watch" => {
            let start = if words.len() > 3 { number(4) } else { 0 };
            bench.watch(number(1), Request::Create(create(words[2], Revision(start as i64))));
        }
        "cancel" => bench.watch(number(1), Request::Cancel(WatchId(number(2) as i64))),
        "isolate" => bench.isolate(number(1)),
        "join" => bench.join(),
        "crash" => bench.crash(number(1), if words.len() > 2 { number(3) as usize } else { 0 }),
        "stop" => bench.stop(number(1)),
        "start" => bench.start(number(1)),
        "status" => status(bench),
        other => panic!("{other} is no command"),
    }
}

fn pass(bench: &mut Bench, ids: &[u64]) {
    ids.iter().for_each(|id| bench.tick(*id));
    bench.stabilize(ids);
}

fn campaign(bench: &mut Bench, id: u64) {
    let role = |bench: &Bench| bench.replica(id).map(|replica| (replica.status().leader, replica.status().term));
    let before = bench.story.len();
    assert!(role(bench).is_some(), "{id} does not run");
    while bench.story.len() == before {
        bench.tick(id);
    }
}

pub fn elect(bench: &mut Bench, id: u64) {
    let told = bench.story.len();
    campaign(bench, id);
    let ids = bench.ids();
    bench.stabilize(&ids);
    assert_eq!(bench.replica(id).map(|replica| replica.status().leader.0), Some(id), "{id} was not elected");
    // All learn of the last commit by a heartbeat, and for an election timeout nobody asks for another.
    bench.tick(id);
    bench.stabilize(&ids);
    bench.story.truncate(told);
}

fn status(bench: &mut Bench) {
    for id in bench.ids() {
        let line = match bench.replica(id) {
            Some(replica) => {
                let (status, revision) = (replica.status(), replica.machine().store.revision());
                let leader = if status.leader.0 == 0 { "nobody".into() } else { status.leader.to_string() };
                let ((last, last_term), term) = (bench.durable(id), status.term);
                let position = format!("commit {}, applied {}, revision {revision}", status.committed, status.applied);
                format!("{id}: term {term}, leader {leader}, {position}, on disk to {last}/{last_term}\n")
            }
            None => format!("{id}: does not run\n"),
        };
        bench.story += &line;
    }
}

fn change(word: &str, id: u64) -> ChangeRequest {
    let nameless = || Founder { name: String::new(), client_urls: Vec::new(), ..founder(id) };
    match word {
        "add" => ChangeRequest::Add(nameless()),
        "add-learner" => ChangeRequest::Add(Founder { is_learner: true, ..nameless() }),
        "promote" => ChangeRequest::Promote(MemberId(id)),
        "remove" => ChangeRequest::Remove(MemberId(id)),
        _ => unreachable!("{word} is no change"),
    }
}

fn command(words: &[&str]) -> Command {
    match words {
        ["put", assignment] => {
            let (key, value) = assignment.split_once('=').expect("put key=value");
            put(bytes(key), bytes(value))
        }
        ["delete", key] => Command::Delete(Delete { range: one(key), previous: false }),
        _ => panic!("{words:?} is no command"),
    }
}

pub fn put(key: Bytes, value: Bytes) -> Command {
    let lease = LeaseId(0);
    Command::Put(Put { key, value, lease, previous: false, ignore_value: false, ignore_lease: false })
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn one(key: &str) -> KeyRange {
    KeyRange { start: bytes(key), end: RangeEnd::Single }
}

fn create(key: &str, start: Revision) -> Create {
    Create { id: WatchId(0), range: one(key), start, filter: Filter::default(), previous: false, progress: false }
}
