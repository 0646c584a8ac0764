//! A small cluster that does everything right: the source of good histories.
//!
//! It is timed and seeded. Members replicate a log to each other, write it to disks that take their time, elect
//! leaders, are killed, isolated and restarted; what is known of the whole cluster is used freely where that is
//! simpler than a protocol. It notes what a real one would note, in the same order.
use std::collections::{BTreeMap, VecDeque};

use detcd_core::{
    event::{NodeEvent, Role},
    types::{Digest, Index, MemberId, PersistId, RequestId, Revision, Term},
};

use super::traffic::{Op, State, Tell, Watcher};
use crate::{
    history::{Content, Event, Nanos, NodeNumber, Phase, Request, Stamped, Text},
    seed::{ChaCha8Rng, Rng, Seed},
};

pub const MS: u64 = 1_000_000;
/// Simulated time, in milliseconds: faults begin and end, clients end, the run ends.
pub const FAULTS: (u64, u64) = (2_000, 8_000);
const RECOVERY: u64 = 9_500;
const CLIENTS_END: u64 = 19_000;
const OVER: u64 = 22_000;

pub struct World {
    pub now: u64,
    pub rng: ChaCha8Rng,
    pub out: Vec<Stamped>,
    pub members: Vec<Member>,
    /// The store after each index.
    pub states: Vec<State>,
    pub ops: BTreeMap<u64, Op>,
    pub watchers: Vec<Watcher>,
    isolated: Option<usize>,
    queue: BTreeMap<(u64, u64), Act>,
    acts: u64,
    pub requests: u64,
}

#[derive(Default)]
pub struct Member {
    pub up: bool,
    pub incarnation: u64,
    pub term: u64,
    vote: u64,
    pub leads: bool,
    pub leader: Option<usize>,
    pub log: Vec<Entry>,
    pub commit: usize,
    pub applied: usize,
    /// What is on its disk: the log, term and vote, and the commit index.
    durable: (Vec<Entry>, u64, u64, usize),
    pending: VecDeque<Batch>,
    persists: u64,
    /// As leader: how much of its log each member holds durably.
    matched: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub term: u64,
    pub hash: u64,
    /// The request's id, the operation and what it asks for.
    pub command: Option<(u64, u64, Request)>,
}

struct Batch {
    persist: u64,
    first: usize,
    entries: Vec<Entry>,
    term: u64,
    vote: u64,
    commit: usize,
}

/// What is due at some time. Members are named with the incarnation that it is for.
pub enum Act {
    Next { client: u64 },
    Arrive { op: u64 },
    Propose { op: u64 },
    AtLeader { op: u64, leader: usize, term: u64, entry: Entry },
    AskIndex { op: u64 },
    Serve { op: u64, index: usize },
    Return { op: u64, outcome: crate::history::Outcome },
    Persisted { member: usize, incarnation: u64, persist: u64 },
    Sync { from: usize, to: usize, term: u64 },
    Ack { from: usize, to: usize, term: u64 },
    Beat { leader: usize, term: u64 },
    Elect,
    Win { candidate: usize, term: u64, voters: Vec<(usize, u64)> },
    Trouble,
    Restart { member: usize, fault: Text },
    Join { fault: Text },
    Ask { watcher: usize },
    Make { watcher: usize, epoch: u64 },
    Tell { watcher: usize, epoch: u64, what: Tell },
    Progress { watcher: usize },
    Phase(Phase),
}

/// A good history, and the store after each revision.
pub fn history(seed: u64, members: usize) -> (Vec<Stamped>, Vec<State>) {
    let mut world = World::new(seed, members);
    while let Some(((at, _), act)) = world.queue.pop_first() {
        if at > (OVER + 1) * MS {
            break;
        }
        world.now = at;
        world.perform(act);
    }
    let mut states: Vec<State> = vec![State::default(); 2];
    for state in &world.states {
        if state.revision as usize == states.len() {
            states.push(state.clone());
        }
    }
    (world.out, states)
}

impl World {
    fn new(seed: u64, members: usize) -> World {
        let mut world = World {
            now: 0,
            rng: Seed(seed).child("cluster", 0).rng(),
            out: Vec::new(),
            members: (0..members).map(|_| Member::default()).collect(),
            states: vec![State { revision: 1, keys: BTreeMap::new() }],
            ops: BTreeMap::new(),
            watchers: (0..3).map(Watcher::new).collect(),
            isolated: None,
            queue: BTreeMap::new(),
            acts: 0,
            requests: 1_000,
        };
        world.emit(Event::Phase(Phase::Safety));
        let founding = Entry { term: 1, hash: 7, command: None };
        for member in 0..members {
            world.members[member].durable = (vec![founding.clone(); members], 1, 0, members);
            world.start(member);
        }
        world.later(100, Act::Elect);
        (0..4).for_each(|client| world.later(300 + client, Act::Next { client }));
        (0..3).for_each(|watcher| world.later(200 + 50 * watcher as u64, Act::Ask { watcher }));
        world.later(FAULTS.0, Act::Trouble);
        world.later(RECOVERY, Act::Phase(Phase::Recovery));
        world.later(OVER, Act::Phase(Phase::Over));
        world
    }

    pub fn emit(&mut self, event: Event) {
        let (at, sequence) = (Nanos(self.now), self.out.len() as u64);
        self.out.push(Stamped { at, sequence, event });
    }

    pub fn note(&mut self, member: usize, event: NodeEvent) {
        self.emit(Event::Node { node: NodeNumber(member + 1), event });
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// In so many milliseconds, and some part of one.
    pub fn later(&mut self, ms: u64, act: Act) {
        let at = self.now + ms * MS + self.below(MS);
        self.schedule(at, act);
    }

    pub fn schedule(&mut self, at: u64, act: Act) {
        self.acts += 1;
        self.queue.insert((at, self.acts), act);
    }

    /// One way over the network.
    pub fn hop(&mut self, act: Act) {
        let ms = self.below(4);
        self.later(ms, act);
    }

    pub fn clients_run(&self) -> bool {
        self.now < CLIENTS_END * MS
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Persisted { member, incarnation, persist } => self.persisted(member, incarnation, persist),
            Act::Sync { from, to, term } => self.sync(from, to, term),
            Act::Ack { from, to, term } => self.ack(from, to, term),
            Act::Beat { leader, term } => self.beat(leader, term),
            Act::AtLeader { op, leader, term, entry } => self.at_leader(op, leader, term, entry),
            Act::Elect => self.elect(),
            Act::Win { candidate, term, voters } => self.win(candidate, term, &voters),
            Act::Trouble => self.trouble(),
            Act::Restart { member, fault } => {
                self.start(member);
                self.emit(Event::Fault { fault, on: false });
            }
            Act::Join { fault } => {
                self.isolated = None;
                self.emit(Event::Fault { fault, on: false });
            }
            Act::Phase(phase) => self.emit(Event::Phase(phase)),
            act => self.traffic(act),
        }
    }

    pub fn apart(&self, a: usize, b: usize) -> bool {
        a != b && (self.isolated == Some(a) || self.isolated == Some(b))
    }

    /// Who leads for most, if somebody does.
    pub fn leader(&self) -> Option<usize> {
        let leads = |at: &usize| self.members[*at].up && self.members[*at].leads && self.isolated != Some(*at);
        (0..self.members.len()).filter(leads).max_by_key(|at| self.members[*at].term)
    }

    fn start(&mut self, at: usize) {
        let event = Event::Started { node: NodeNumber(at + 1), member: id(at) };
        self.emit(event);
        let member = &mut self.members[at];
        let (log, term, vote, commit) = member.durable.clone();
        let (incarnation, durable) = (member.incarnation + 1, std::mem::take(&mut member.durable));
        *member = Member { up: true, incarnation, term, vote, log, commit, durable, ..Member::default() };
        let last = Index(member.log.len() as u64);
        let entries = member.log.iter().map(|entry| (Term(entry.term), entry.hash)).collect();
        let (term, vote, commit) = (Term(term), MemberId(vote), Index(commit as u64));
        // Without checkpoints, it applies its log from the first entry on.
        let (before, applied, revision, digest) = (Index(0), Index(0), Revision(1), Digest(0));
        self.note(
            at,
            NodeEvent::Recovered {
                term,
                vote,
                commit,
                before,
                last,
                entries,
                applied,
                revision,
                digest,
                members: Box::default(),
            },
        );
        self.emit(Event::Store { node: NodeNumber(at + 1), revision: 1, content: Content::default() });
        self.apply(at);
    }

    /// Puts entries into a member's log, at a place, and on their way to its disk.
    fn append(&mut self, at: usize, first: usize, entries: Vec<Entry>) {
        self.members[at].log.truncate(first);
        for entry in &entries {
            self.members[at].log.push(entry.clone());
            let (index, term) = (Index(self.members[at].log.len() as u64), Term(entry.term));
            self.note(at, NodeEvent::Appended { index, term, hash: entry.hash });
        }
        self.persist(at, first, entries);
    }

    fn persist(&mut self, at: usize, first: usize, entries: Vec<Entry>) {
        let member = &mut self.members[at];
        member.persists += 1;
        let (persist, term, vote) = (member.persists, member.term, member.vote);
        let last = entries.last().map(|entry| (Index((first + entries.len()) as u64), Term(entry.term)));
        let (incarnation, commit) = (member.incarnation, member.commit);
        member.pending.push_back(Batch { persist, first, entries, term, vote, commit });
        let (persist_id, term, vote) = (PersistId(persist), Term(term), MemberId(vote));
        let started = NodeEvent::PersistStarted { persist: persist_id, term, vote, last, snapshot: None };
        self.note(at, started);
        let ms = 1 + self.below(3);
        self.later(ms, Act::Persisted { member: at, incarnation, persist });
    }

    fn persisted(&mut self, at: usize, incarnation: u64, persist: u64) {
        let member = &mut self.members[at];
        let first = member.pending.front().map(|batch| batch.persist);
        if member.incarnation != incarnation || !member.up || first.is_none_or(|first| first > persist) {
            return;
        }
        while let Some(batch) = member.pending.pop_front_if(|batch| batch.persist <= persist) {
            write(&mut member.durable, batch, usize::MAX);
        }
        let (leader, term) = (member.leader, member.term);
        self.note(at, NodeEvent::Persisted { persist: PersistId(persist) });
        match leader {
            Some(leader) if leader == at => self.ack(at, at, term),
            Some(leader) => self.hop(Act::Ack { from: at, to: leader, term }),
            None => {}
        }
    }

    /// A follower's log becomes the leader's.
    fn sync(&mut self, from: usize, to: usize, term: u64) {
        let leads = self.members[from].up && self.members[from].leads && self.members[from].term == term;
        if !leads || !self.members[to].up || self.apart(from, to) || self.members[to].term > term {
            return;
        }
        self.follow(to, term, Some(from));
        let (leader, follower) = (&self.members[from], &self.members[to]);
        let common = common(&leader.log, &follower.log);
        let (entries, commit) = (leader.log[common..].to_vec(), leader.commit);
        if !entries.is_empty() {
            self.append(to, common, entries);
        }
        self.commit(to, commit);
    }

    fn follow(&mut self, at: usize, term: u64, leader: Option<usize>) {
        let member = &mut self.members[at];
        if (member.term, member.leader) == (term, leader) {
            return;
        }
        if member.term < term {
            member.vote = 0;
        }
        (member.term, member.leader, member.leads) = (term, leader, false);
        let leader = MemberId(leader.map_or(0, id));
        self.note(at, NodeEvent::RoleChanged { role: Role::Follower, term: Term(term), leader });
    }

    fn ack(&mut self, from: usize, to: usize, term: u64) {
        let leader = &self.members[to];
        if !leader.leads || !leader.up || leader.term != term || self.apart(from, to) {
            return;
        }
        let held = common(&leader.log, &self.members[from].durable.0);
        let leader = &mut self.members[to];
        leader.matched[from] = leader.matched[from].max(held);
        let mut matched = leader.matched.clone();
        matched.sort_unstable();
        let agreed = matched[(matched.len() - 1) / 2];
        if agreed > leader.commit && leader.log[agreed - 1].term == term {
            self.commit(to, agreed);
            self.spread(to, term);
        }
    }

    fn commit(&mut self, at: usize, index: usize) {
        if index > self.members[at].commit {
            self.members[at].commit = index;
            self.note(at, NodeEvent::Committed { index: Index(index as u64) });
            self.apply(at);
        }
    }

    fn apply(&mut self, at: usize) {
        for index in self.members[at].applied + 1..=self.members[at].commit {
            let Entry { term, command, .. } = self.members[at].log[index - 1].clone();
            if self.states.len() == index {
                let next = self.states[index - 1].after(command.as_ref().map(|(_, _, request)| request));
                self.states.push(next);
            }
            self.members[at].applied = index;
            let (request, revision) = (command.as_ref().map_or(0, |command| command.0), self.states[index].revision);
            let digest = Digest(index as u64 * 0x9e37_79b9 + revision as u64);
            let (index_, term) = (Index(index as u64), Term(term));
            let (request, revision) = (RequestId(request), Revision(revision));
            self.note(at, NodeEvent::Applied { index: index_, term, request, revision, digest });
            if index <= self.members.len() {
                // Those who founded the cluster, one after another.
                let voters = (0..index).map(|at| MemberId(id(at))).collect();
                self.note(at, NodeEvent::ConfigurationApplied { index: index_, voters, learners: vec![], valid: true });
            }
            if let Some((_, op, _)) = command {
                self.applied(at, index, op, request);
            }
            self.tell(at, index);
        }
    }

    fn spread(&mut self, leader: usize, term: u64) {
        for to in (0..self.members.len()).filter(|to| *to != leader) {
            self.hop(Act::Sync { from: leader, to, term });
        }
    }

    fn beat(&mut self, leader: usize, term: u64) {
        let member = &self.members[leader];
        if member.up && member.leads && member.term == term {
            self.spread(leader, term);
            self.later(100, Act::Beat { leader, term });
        }
    }

    fn at_leader(&mut self, op: u64, leader: usize, term: u64, entry: Entry) {
        let (member, from) = (&self.members[leader], self.ops[&op].at);
        if member.up && member.leads && member.term == term && !self.apart(from, leader) {
            let first = member.log.len();
            self.append(leader, first, vec![entry]);
            self.spread(leader, term);
        }
    }

    /// Whoever has the best log of those that can talk to each other stands for election, if nobody leads them.
    fn elect(&mut self) {
        self.later(300, Act::Elect);
        let can = |at: &usize| self.members[*at].up && self.isolated != Some(*at);
        let voters: Vec<_> = (0..self.members.len()).filter(can).collect();
        if self.leader().is_some() || voters.len() <= self.members.len() / 2 {
            return;
        }
        let best = |at: &usize| (self.members[*at].log.last().map(|entry| entry.term), self.members[*at].log.len());
        let candidate = voters.iter().copied().max_by_key(best).expect("there are voters");
        let term = self.members.iter().map(|member| member.term).max().expect("there are members") + 1;
        for voter in &voters {
            let member = &mut self.members[*voter];
            (member.term, member.vote, member.leader, member.leads) = (term, id(candidate), None, false);
            let role = if *voter == candidate { Role::Candidate } else { Role::Follower };
            self.persist(*voter, 0, Vec::new());
            self.note(*voter, NodeEvent::RoleChanged { role, term: Term(term), leader: MemberId(0) });
        }
        let voters = voters.iter().map(|at| (*at, self.members[*at].incarnation)).collect();
        self.later(30, Act::Win { candidate, term, voters });
    }

    fn win(&mut self, candidate: usize, term: u64, voters: &[(usize, u64)]) {
        let keeps = |(at, incarnation): &(usize, u64)| {
            let member = &self.members[*at];
            member.up && member.incarnation == *incarnation && member.term == term && member.durable.1 == term
        };
        if !voters.iter().all(keeps) || self.isolated.is_some_and(|at| voters.iter().any(|(voter, _)| *voter == at)) {
            return;
        }
        let count = self.members.len();
        let leader = &mut self.members[candidate];
        (leader.leads, leader.leader, leader.matched) = (true, Some(candidate), vec![0; count]);
        let first = leader.log.len();
        self.append(candidate, first, vec![Entry { term, hash: term * 31, command: None }]);
        let leader = MemberId(id(candidate));
        self.note(candidate, NodeEvent::RoleChanged { role: Role::Leader, term: Term(term), leader });
        self.beat(candidate, term);
    }

    /// Kills or isolates somebody, mostly the leader, and mends it later.
    fn trouble(&mut self) {
        if self.now >= FAULTS.1 * MS {
            return;
        }
        let pause = 1_500 + self.below(1_500);
        self.later(pause, Act::Trouble);
        let anyone = self.below(self.members.len() as u64) as usize;
        let victim = if self.below(3) > 0 { self.leader().unwrap_or(anyone) } else { anyone };
        if !self.members[victim].up || self.isolated.is_some() {
            return;
        }
        let lasts = 600 + self.below(800);
        if self.below(3) == 0 {
            let fault: Text = format!("isolate n{}", victim + 1).into();
            self.emit(Event::Fault { fault: fault.clone(), on: true });
            self.isolated = Some(victim);
            self.later(lasts, Act::Join { fault });
        } else {
            let fault: Text = format!("kill n{}", victim + 1).into();
            self.emit(Event::Fault { fault: fault.clone(), on: true });
            self.kill(victim);
            self.later(lasts, Act::Restart { member: victim, fault });
        }
    }

    /// Of what was on its way to disk some first part survives.
    fn kill(&mut self, at: usize) {
        let power_loss = self.below(2) == 0;
        let (batches, entries) = (self.below(3), self.below(3) as usize);
        let member = &mut self.members[at];
        (member.up, member.leads) = (false, false);
        for number in 0..=batches {
            let Some(batch) = member.pending.pop_front() else { break };
            write(&mut member.durable, batch, if number == batches { entries } else { usize::MAX });
        }
        member.pending.clear();
        self.emit(Event::Killed { node: NodeNumber(at + 1), power_loss });
        self.broken(at);
    }
}

/// So many entries of a batch reach the disk; if all do, its promise too.
fn write(disk: &mut (Vec<Entry>, u64, u64, usize), batch: Batch, entries: usize) {
    let whole = entries >= batch.entries.len();
    if !batch.entries.is_empty() && entries > 0 {
        disk.0.truncate(batch.first);
        disk.0.extend(batch.entries.into_iter().take(entries));
    }
    if whole && entries > 0 {
        (disk.1, disk.2, disk.3) = (batch.term, batch.vote, batch.commit);
    }
}

fn common(a: &[Entry], b: &[Entry]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

pub fn id(at: usize) -> u64 {
    100 + at as u64
}
