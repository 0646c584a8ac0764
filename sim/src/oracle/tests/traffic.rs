//! The clients and watchers of the cluster in `cluster.rs`, and what a store has to tell them.
use std::collections::BTreeMap;

use detcd_core::{
    event::NodeEvent,
    types::{Index, RequestId, TraceId},
};

use super::cluster::{Act, Entry, FAULTS, MS, World, id};
use crate::history::{
    Answer, Body, Event, KeyValue, Keys, NodeNumber, OpId, Outcome, Request, Text, Watched, WatchedEvent, WatcherId,
};

const CHANGED_MIND: &str = "changed its mind";
/// A client gives up after so many milliseconds.
const PATIENCE_MS: u64 = 1_000;

/// A store, the dumbest way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    pub revision: i64,
    pub keys: BTreeMap<Text, KeyValue>,
}

pub struct Op {
    client: u64,
    /// Whom it was sent to, and the life of that member; 0 before it got there.
    pub at: usize,
    incarnation: u64,
    request: Request,
    /// Its id in the log.
    id: u64,
    done: bool,
}

pub struct Watcher {
    keys: Keys,
    previous: bool,
    at: usize,
    /// Counts its watches: what was under way for an older one is lost.
    epoch: u64,
    next: i64,
    /// What the member still has to tell begins here; 0 while it knows of no watch.
    cursor: i64,
    start: i64,
    told_at: u64,
}

/// What a member tells a watcher.
pub struct Tell(Watched);

impl State {
    /// The store after a request; without one, as it is.
    pub fn after(&self, request: Option<&Request>) -> State {
        let mut next = self.clone();
        let mut put = |key: &Text, value: &Text| {
            next.revision += 1;
            let modified = next.revision;
            let (created, version) = self.keys.get(key).map_or((modified, 1), |kv| (kv.created, kv.version + 1));
            let kv = KeyValue { key: key.clone(), value: value.clone(), created, modified, version };
            next.keys.insert(key.clone(), kv);
        };
        match request {
            Some(Request::Put { key, value, .. }) => put(key, value),
            Some(Request::CompareAndSet { key, expected, new }) => {
                if self.keys.get(key).map(|kv| &kv.value) == expected.as_ref() {
                    put(key, new);
                }
            }
            Some(Request::Delete { keys, .. }) => {
                next.keys.retain(|key, _| !keys.contains(key));
                next.revision += i64::from(next.keys.len() < self.keys.len());
            }
            Some(Request::Range { .. }) | None => {}
        }
        next
    }

    /// What `request` is answered here, if `past` is the store it asks about.
    pub fn answer(&self, past: &State, request: &Request) -> Body {
        let within = |keys: &Keys| -> Vec<KeyValue> {
            past.keys.values().filter(|kv| keys.contains(&kv.key)).cloned().collect()
        };
        match request {
            Request::Put { key, previous, .. } => {
                Body::Put { previous: self.keys.get(key).filter(|_| *previous).cloned() }
            }
            Request::Range { keys, limit, .. } => {
                let mut kvs = within(keys);
                let count = kvs.len();
                if *limit > 0 {
                    kvs.truncate(*limit as usize);
                }
                Body::Range { more: kvs.len() < count, count: count as i64, kvs }
            }
            Request::Delete { keys, previous } => {
                let dead = within(keys);
                Body::Delete { deleted: dead.len() as i64, previous: if *previous { dead } else { Vec::new() } }
            }
            Request::CompareAndSet { key, expected, .. } => {
                let read = self.keys.get(key);
                let succeeded = read.map(|kv| &kv.value) == expected.as_ref();
                Body::CompareAndSet { succeeded, read: read.filter(|_| !succeeded).cloned() }
            }
        }
    }

    /// What a watch on `keys` sees between this store and the next.
    pub fn events(&self, next: &State, keys: &Keys, previous: bool) -> Vec<WatchedEvent> {
        let mut all: Vec<_> = self.keys.keys().chain(next.keys.keys()).filter(|key| keys.contains(key)).collect();
        all.sort();
        all.dedup();
        all.retain(|key| self.keys.get(*key) != next.keys.get(*key));
        let event = |key: &Text| {
            let previous = self.keys.get(key).filter(|_| previous).cloned();
            let gone = KeyValue { key: key.clone(), value: "".into(), created: 0, modified: next.revision, version: 0 };
            let kv = next.keys.get(key).cloned();
            WatchedEvent { deleted: kv.is_none(), kv: kv.unwrap_or(gone), previous }
        };
        all.into_iter().map(event).collect()
    }
}

impl Watcher {
    pub fn new(number: usize) -> Watcher {
        let keys = [("k0", Some("l")), ("k1", Some("k3")), ("k2", None)][number % 3];
        let keys = Keys { start: keys.0.into(), end: keys.1.map(Into::into) };
        Watcher { keys, previous: number < 2, at: 0, epoch: 0, next: 0, cursor: 0, start: 0, told_at: 0 }
    }
}

impl World {
    pub fn traffic(&mut self, act: Act) {
        match act {
            Act::Next { client } => self.next(client),
            Act::Arrive { op } => self.arrive(op),
            Act::Propose { op } => self.propose(op),
            Act::AskIndex { op } => self.ask_index(op),
            Act::Serve { op, index } => self.serve(op, index),
            Act::Return { op, outcome } => self.give(op, outcome),
            Act::Ask { watcher } => self.ask(watcher),
            Act::Make { watcher, epoch } => self.make(watcher, epoch),
            Act::Tell { watcher, epoch, what } => self.hear(watcher, epoch, what),
            Act::Progress { watcher } => self.progress(watcher),
            _ => unreachable!("the cluster's own"),
        }
    }

    fn next(&mut self, client: u64) {
        if !self.clients_run() {
            return;
        }
        let at = self.below(self.members.len() as u64) as usize;
        let number = self.ops.len() as u64 + 1;
        let request = self.choose(number);
        self.ops.insert(number, Op { client, at, incarnation: 0, request: request.clone(), id: 0, done: false });
        self.emit(Event::Call { op: OpId(number), client, node: NodeNumber(at + 1), request });
        self.hop(Act::Arrive { op: number });
        let outcome = Outcome::Unknown("no answer in time".into());
        self.later(PATIENCE_MS, Act::Return { op: number, outcome });
    }

    fn choose(&mut self, number: u64) -> Request {
        let key: Text = format!("k{}", self.below(4)).into();
        let value: Text = format!("v{number}").into();
        let newest = self.states.last().expect("there is a first").clone();
        let one = || Keys { start: key.clone(), end: None };
        let span = || Keys { start: key.clone(), end: Some("k9".into()) };
        let previous = self.below(2) == 0;
        let serializable = self.below(4) == 0;
        let read = |keys, revision, limit| Request::Range {
            keys,
            revision,
            limit,
            serializable,
            keys_only: false,
            count_only: false,
        };
        match self.below(20) {
            0..=5 => Request::Put { key, value, previous },
            6..=11 => read(one(), 0, 0),
            12 | 13 => read(span(), 0, if previous { 2 } else { 0 }),
            14 => read(one(), 1 + self.below(newest.revision as u64) as i64, 0),
            15 => Request::Delete { keys: one(), previous },
            16 => Request::Delete { keys: span(), previous },
            _ => {
                let expected = newest.keys.get(&key).map(|kv| kv.value.clone()).filter(|_| previous);
                Request::CompareAndSet { key, expected, new: value }
            }
        }
    }

    /// The member that has the operation, if it lives.
    fn holder(&self, op: u64) -> Option<&Op> {
        let state = &self.ops[&op];
        let member = &self.members[state.at];
        (member.up && member.incarnation == state.incarnation && !state.done).then_some(state)
    }

    fn arrive(&mut self, number: u64) {
        let op = self.ops.get_mut(&number).expect("it was called");
        let member = &self.members[op.at];
        op.incarnation = member.incarnation;
        let (at, up, request) = (op.at, member.up, op.request.clone());
        if !up {
            return self.hop(Act::Return { op: number, outcome: Outcome::Unknown("refused".into()) });
        }
        match request {
            Request::Range { serializable: true, .. } => self.serve(number, 0),
            Request::Range { .. } => self.ask_index(number),
            _ => {
                self.requests += 1;
                let request = RequestId(self.requests);
                self.ops.get_mut(&number).expect("it was called").id = request.0;
                self.note(at, NodeEvent::Proposed { trace: TraceId(number), request });
                // Once the faults are over nothing may be refused.
                if self.below(30) == 0 && self.now < FAULTS.1 * MS {
                    self.note(at, NodeEvent::Refused { request, definite: true });
                    return self.hop(Act::Return { op: number, outcome: Outcome::Failed("too many requests".into()) });
                }
                self.propose(number);
            }
        }
    }

    fn propose(&mut self, number: u64) {
        let Some(op) = self.holder(number) else { return };
        let member = &self.members[op.at];
        let Some(leader) = member.leader else { return self.later(20, Act::Propose { op: number }) };
        let (term, hash) = (member.term, op.id * 7 + number);
        let entry = Entry { term, hash, command: Some((op.id, number, op.request.clone())) };
        let act = Act::AtLeader { op: number, leader, term, entry };
        if leader == op.at { self.later(0, act) } else { self.hop(act) }
    }

    /// A linearizable read learns from which index on it may be served.
    fn ask_index(&mut self, number: u64) {
        let Some(op) = self.holder(number) else { return };
        let asked = self.members[op.at].leader.filter(|leader| {
            let there = &self.members[*leader];
            let knows = there.commit > 0 && there.log[there.commit - 1].term == there.term;
            self.leader() == Some(*leader) && !self.apart(op.at, *leader) && knows
        });
        match asked {
            None => self.later(20, Act::AskIndex { op: number }),
            Some(leader) => {
                let index = self.members[leader].commit;
                self.hop(Act::Serve { op: number, index });
            }
        }
    }

    fn serve(&mut self, number: u64, index: usize) {
        let Some(op) = self.holder(number) else { return };
        let (at, member) = (op.at, &self.members[op.at]);
        if member.applied < index {
            return self.later(2, Act::Serve { op: number, index });
        }
        let (now, request) = (&self.states[member.applied], &op.request);
        let asked = if let Request::Range { revision, .. } = request { *revision } else { 0 };
        let past = self.states.iter().find(|state| state.revision == asked).filter(|_| asked > 0).unwrap_or(now);
        let outcome = if asked > now.revision {
            Outcome::Failed("etcdserver: mvcc: required revision is a future revision".into())
        } else {
            let (revision, body) = (now.revision, now.answer(past, request));
            Outcome::Ok(Answer { member: id(at), revision, term: member.term, body })
        };
        self.hop(Act::Return { op: number, outcome });
    }

    /// An operation's entry is applied; its member tells the client.
    pub fn applied(&mut self, at: usize, index: usize, number: u64, request: RequestId) {
        let Some(op) = self.holder(number) else { return };
        if op.at != at || op.id != request.0 {
            return;
        }
        let (before, after) = (&self.states[index - 1], &self.states[index]);
        let body = before.answer(before, &op.request);
        let answer = Answer { member: id(at), revision: after.revision, term: self.members[at].term, body };
        self.note(at, NodeEvent::Acknowledged { request, index: Index(index as u64) });
        self.hop(Act::Return { op: number, outcome: Outcome::Ok(answer) });
    }

    fn give(&mut self, number: u64, outcome: Outcome) {
        let op = self.ops.get_mut(&number).expect("it was called");
        if std::mem::replace(&mut op.done, true) {
            return;
        }
        let client = op.client;
        self.emit(Event::Return { op: OpId(number), outcome });
        let pause = self.below(40);
        self.later(pause, Act::Next { client });
    }

    /// A member died: its clients and watchers notice.
    pub fn broken(&mut self, at: usize) {
        let lost = self.ops.iter().filter(|(_, op)| op.at == at && !op.done && op.incarnation > 0);
        for op in lost.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.hop(Act::Return { op, outcome: Outcome::Unknown("connection reset".into()) });
        }
        for watcher in (0..self.watchers.len()).filter(|number| self.watchers[*number].at == at).collect::<Vec<_>>() {
            self.end(watcher, "connection reset");
        }
    }

    fn heard(&mut self, watcher: usize, what: Watched) {
        self.emit(Event::Watch { watcher: WatcherId(watcher as u64), what });
    }

    fn end(&mut self, watcher: usize, reason: &str) {
        let state = &mut self.watchers[watcher];
        (state.epoch, state.cursor) = (state.epoch + 1, 0);
        self.heard(watcher, Watched::Ended { reason: reason.into(), wanted: reason == CHANGED_MIND, compacted: 0 });
        self.later(50, Act::Ask { watcher });
    }

    fn ask(&mut self, watcher: usize) {
        let at = self.below(self.members.len() as u64) as usize;
        if !self.members[at].up {
            return self.later(50, Act::Ask { watcher });
        }
        let state = &mut self.watchers[watcher];
        (state.at, state.start) = (at, state.next);
        let (keys, start, previous, epoch) = (state.keys.clone(), state.next, state.previous, state.epoch);
        self.heard(watcher, Watched::Asked { node: NodeNumber(at + 1), keys, start, previous });
        self.hop(Act::Make { watcher, epoch });
        self.later(1_500, Act::Progress { watcher });
    }

    fn make(&mut self, watcher: usize, epoch: u64) {
        let state = &self.watchers[watcher];
        if state.epoch != epoch {
            return;
        }
        let revision = self.states[self.members[state.at].applied].revision;
        let start = if state.start == 0 { revision + 1 } else { state.start };
        self.watchers[watcher].cursor = start;
        self.send(watcher, Watched::Created { revision });
        let (mut events, step) = (Vec::new(), 1 + self.below(5) as i64);
        for past in start..=revision {
            events.extend(self.events(watcher, past));
            if past % step == 0 {
                self.send_events(watcher, revision, &mut events);
            }
        }
        self.send_events(watcher, revision, &mut events);
        self.watchers[watcher].cursor = start.max(revision + 1);
    }

    /// What a watcher sees of one revision.
    fn events(&self, watcher: usize, revision: i64) -> Vec<WatchedEvent> {
        let Watcher { keys, previous, .. } = &self.watchers[watcher];
        let at = self.states.partition_point(|state| state.revision < revision);
        self.states[at - 1].events(&self.states[at], keys, *previous)
    }

    /// A member applied an entry: its watchers hear of it.
    pub fn tell(&mut self, at: usize, index: usize) {
        let revision = self.states[index].revision;
        for watcher in 0..self.watchers.len() {
            let state = &self.watchers[watcher];
            if state.at == at && state.cursor > 0 && state.cursor == revision {
                let mut events = self.events(watcher, revision);
                self.send_events(watcher, revision, &mut events);
                self.watchers[watcher].cursor = revision + 1;
            }
        }
    }

    fn send_events(&mut self, watcher: usize, revision: i64, events: &mut Vec<WatchedEvent>) {
        if !events.is_empty() {
            self.send(watcher, Watched::Events { revision, events: std::mem::take(events) });
        }
    }

    /// What a member tells a watcher arrives in its order.
    fn send(&mut self, watcher: usize, what: Watched) {
        let hop = self.below(4 * MS);
        let state = &mut self.watchers[watcher];
        state.told_at = (self.now + hop).max(state.told_at + 1);
        let (at, epoch) = (state.told_at, state.epoch);
        self.schedule(at, Act::Tell { watcher, epoch, what: Tell(what) });
    }

    fn hear(&mut self, watcher: usize, epoch: u64, Tell(what): Tell) {
        let state = &mut self.watchers[watcher];
        if state.epoch != epoch {
            return;
        }
        state.next = match &what {
            Watched::Created { revision } if state.next == 0 => revision + 1,
            Watched::Events { events, .. } => events.last().expect("never empty").kv.modified + 1,
            Watched::Progress { revision } => state.next.max(revision + 1),
            _ => state.next,
        };
        self.heard(watcher, what);
    }

    /// Asks how far the watch is; now and then it goes elsewhere instead.
    fn progress(&mut self, watcher: usize) {
        let Watcher { at, cursor, .. } = self.watchers[watcher];
        let revision = self.states[self.members[at].applied].revision;
        if cursor == 0 {
            return;
        }
        if self.clients_run() && self.below(4) == 0 {
            return self.end(watcher, CHANGED_MIND);
        }
        if cursor == revision + 1 {
            self.send(watcher, Watched::Progress { revision });
        }
        self.later(1_500, Act::Progress { watcher });
    }
}
