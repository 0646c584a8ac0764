//! One member of the cluster as a value: an input goes in, the state changes, outputs come out. See [`io`].
//!
//! `step` routes; what it routes to decides: [`Consensus`] what is agreed on, [`Machine`] what that does,
//! [`Hub`] who hears of it, [`Proposals`] and [`Reads`] who waits for it. `changes.rs` is about who is a member,
//! `leaving.rs` about giving up leadership and going away.
mod changes;
mod io;
mod leaving;
mod proposals;
mod reads;

use std::collections::VecDeque;

use raft::eraftpb::{Entry, EntryType};

use self::{changes::Decided, leaving::Leaving, proposals::Proposals, reads::Reads};
pub use self::{
    changes::founding_log,
    io::{Answer, ChangeRequest, Halt, Input, Output, Peers, Persist, Proposal, SnapshotMark, State, Status},
};
use crate::{
    consensus::{Consensus, Message, Start, Timing, hash_entry},
    error::Refusal,
    event::{Members, NodeEvent, Role},
    format::wal::HardState,
    limits,
    machine::{Machine, command::Command, membership::Configuration},
    types::{Index, MemberId, Millis, PersistId, RequestId, Term, Ticket},
    watch::Hub,
};

/// Who this member is and how it is timed.
#[derive(Debug, Clone)]
pub struct Config {
    pub id: MemberId,
    /// What it publishes about itself.
    pub name: String,
    pub client_urls: Vec<String>,
    /// The version a cluster founded by this member agrees on, such as "3.6.0".
    pub cluster_version: String,
    /// One raft tick, in milliseconds: the shell ticks at this interval.
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    /// The largest command, in bytes as replicated.
    pub request_bytes_max: usize,
    /// Bytes of applied entries to keep in memory, for followers that are a little behind; of a small state it is less.
    pub tail_bytes: u64,
    /// Outputs of one step after which what is left to apply waits for the next step.
    pub outputs_max: usize,
    /// How often quiet watches that ask for it are told how far they are, in milliseconds.
    pub watch_progress_ms: u64,
    /// Everything random comes from here. Differs at every start.
    pub seed: u64,
}

impl Config {
    fn election_ticks(&self) -> u64 {
        (self.election_ms / self.heartbeat_ms).max(2)
    }

    /// How long a removed member stays that cannot tell whether the others know.
    fn removed_ticks(&self) -> u64 {
        limits::REMOVED_STAYS_MS / self.heartbeat_ms
    }

    /// What a request may wait: etcd's 5 s and two election timeouts.
    fn request_ticks(&self) -> u64 {
        (limits::REQUEST_WAIT_MS + 2 * self.election_ms) / self.heartbeat_ms
    }
}

/// What a member's files held.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    pub hard_state: HardState,
    /// The position right before the first entry.
    pub before: (Index, Term),
    /// Contiguous.
    pub entries: Vec<Entry>,
    /// As of an entry among these, or of `before`.
    pub state: State,
}

impl Default for Recovered {
    /// Nothing: of a member that is yet to hear from its cluster.
    fn default() -> Recovered {
        let (before, state) = ((Index(0), Term(0)), State::default());
        Recovered { hard_state: HardState::default(), before, entries: Vec::new(), state }
    }
}

impl Recovered {
    pub fn last(&self) -> Index {
        self.entries.last().map_or(self.before.0, |entry| Index(entry.index))
    }

    /// The event that tells of it.
    pub fn event(&self) -> NodeEvent {
        let (state, machine) = (self.hard_state, &self.state.0);
        NodeEvent::Recovered {
            term: state.term,
            vote: state.vote,
            commit: state.commit,
            before: self.before.0,
            last: self.last(),
            entries: self.entries.iter().map(|entry| (Term(entry.term), hash_entry(entry))).collect(),
            applied: machine.applied(),
            revision: machine.store.revision(),
            digest: machine.digest(),
            members: members_of(machine),
        }
    }
}

pub struct Replica {
    config: Config,
    consensus: Consensus,
    machine: Machine,
    hub: Hub,
    proposals: Proposals,
    reads: Reads,
    leaving: Leaving,
    /// Changes that were applied, and are not answered yet.
    decided: Vec<Decided>,
    /// States that take the machine's place once their batch is durable.
    installs: VecDeque<(PersistId, State)>,
    ticks: u64,
    /// The tick at which the current leader was first known, and who it is.
    leader: (u64, MemberId),
    /// The tick at which this member last published what it has to say about itself or the cluster.
    published: Option<u64>,
    progress_sent: Millis,
    halted: bool,
    /// Whether the last step left something to do because it had done much.
    is_cut_short: bool,
}

fn members_of(machine: &Machine) -> Box<Members> {
    let Configuration { voters, learners } = machine.membership.configuration();
    Box::new(Members { voters, learners, removed: machine.membership.removed().collect() })
}

impl Replica {
    pub fn new(config: Config, recovered: Recovered) -> Replica {
        let election = config.election_ticks() as usize;
        let timing = Timing { heartbeat: 1, election, seed: config.seed };
        let Recovered { hard_state: state, before, entries, state: State(machine) } = recovered;
        let applied = (machine.applied(), machine.applied_term());
        let configuration = machine.membership.configuration();
        let removed = machine.membership.is_removed(config.id);
        let start = Start { state, before, entries, applied, configuration, removed };
        Replica {
            consensus: Consensus::new(config.id, &timing, start),
            leaving: Leaving::new(removed),
            machine: *machine,
            decided: Vec::new(),
            installs: VecDeque::new(),
            hub: Hub::default(),
            proposals: Proposals::new(config.id, config.seed),
            reads: Reads::new(config.id, config.seed, (limits::READ_RETRY_MS / config.heartbeat_ms).max(1)),
            ticks: 0,
            leader: (0, MemberId(0)),
            published: None,
            progress_sent: Millis(0),
            halted: false,
            is_cut_short: false,
            config,
        }
    }

    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        assert!(!self.halted, "a halted replica must not be stepped");
        match input {
            Input::Tick { now } => self.tick(now, out),
            Input::Message(message) => self.message(message, out),
            Input::Snapshot { message, state } => self.snapshot(message, state, out),
            Input::SnapshotSent { to, delivered } => {
                out.push(Output::Note(NodeEvent::SnapshotReported { to, delivered }));
                self.consensus.snapshot_sent(to, delivered);
            }
            Input::Unreachable(member) => self.consensus.unreachable(member),
            Input::Propose(proposal) => self.propose(proposal, out),
            Input::Change { ticket, trace, change, peers } => self.change(ticket, trace, change, &peers, out),
            Input::Transfer { ticket, to } => self.transfer(ticket, to, out),
            Input::Read { ticket } => self.reads.ask(ticket, self.ticks + self.config.request_ticks(), out),
            Input::Persisted(persist) => self.persisted(persist, out),
            Input::Watch { stream, request } => self.hub.handle(stream, request, &self.machine.store, out),
            Input::Settle => self.settle(out),
            Input::Stop => self.leaving.begin(self.ticks + 2 * self.config.election_ticks()),
        }
    }

    /// The machine as of the last input; a clone is a view.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn status(&self) -> Status {
        Status {
            term: self.consensus.term(),
            leader: self.consensus.leader(),
            committed: self.consensus.committed(),
            applied: self.machine.applied(),
            watches: self.hub.watches(),
            is_learner: self.machine.membership.get(self.config.id).is_some_and(|own| own.is_learner),
            changes_are_durable: self.consensus.changes_are_durable(),
            is_untold: self.consensus.is_untold(),
        }
    }

    /// Whether there is work left that was cut short to keep the step so: the shell settles again soon.
    pub fn has_work(&self) -> bool {
        !self.halted && (self.hub.has_work() || self.is_cut_short)
    }

    fn tick(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.ticks += 1;
        self.consensus.tick(out);
        let leader_since = self.leader.0;
        let spared = 2 * self.config.election_ticks();
        for (ticket, request, refusal) in self.proposals.expire(self.ticks, leader_since, spared) {
            self.refuse(ticket, request, refusal, out);
        }
        self.reads.tick(self.ticks, out);
        if now.0 >= self.progress_sent.0 + self.config.watch_progress_ms {
            self.progress_sent = now;
            self.hub.sign_of_life(&self.machine.store, out);
        }
    }

    fn message(&mut self, mut message: Message, out: &mut Vec<Output>) {
        if self.machine.membership.is_removed(message.from()) {
            return; // it may not know yet
        }
        // What no member could apply must not be replicated: every one of them would stop at it, for good.
        message.retain_proposals(is_applicable);
        if let Err(forgotten) = self.consensus.step(message) {
            self.halt(forgotten.into(), out);
        }
    }

    /// A state that stands in for the log up to some index. It takes the machine's place once that is durable.
    fn snapshot(&mut self, message: Message, state: State, out: &mut Vec<Output>) {
        let (from, index) = (message.from(), state.0.applied());
        out.push(Output::Note(NodeEvent::SnapshotReceived { from, index }));
        // What came before goes to the disk before.
        if !self.work_off(out) {
            return;
        }
        let fits = message.is_snapshot_of(index, state.0.applied_term(), &state.0.membership.configuration());
        let heard = fits && !self.machine.membership.is_removed(from);
        if heard && self.consensus.step_snapshot(message) && self.work_off(out) {
            let persist = self.consensus.installing().expect("a snapshot that was taken in is on its way to disk");
            self.installs.push_back((persist, state));
        } else {
            out.push(Output::DropSnapshot { index });
        }
    }

    fn persisted(&mut self, persist: PersistId, out: &mut Vec<Output>) {
        self.consensus.persisted(persist, out);
        while let Some((_, state)) = self.installs.pop_front_if(|(with, _)| *with <= persist) {
            self.install(state, out);
        }
    }

    fn install(&mut self, state: State, out: &mut Vec<Output>) {
        let old = std::mem::replace(&mut self.machine, *state.0);
        let (index, term) = (self.machine.applied(), self.machine.applied_term());
        assert!(index > old.applied(), "a snapshot of {index} for a machine at {}", old.applied());
        self.consensus.applied(index, term);
        self.hub.jump(old.store.revision());
        let (revision, digest) = (self.machine.store.revision(), self.machine.digest());
        let members = members_of(&self.machine);
        out.push(Output::Note(NodeEvent::SnapshotInstalled { index, term, revision, digest, members }));
        out.push(Output::Discard(State(Box::new(old))));
        self.give_up_on_terms_before(term, out);
    }

    fn propose(&mut self, proposal: Proposal, out: &mut Vec<Output>) {
        let Proposal { ticket, trace, command } = proposal;
        let request = self.proposals.next_id();
        out.push(Output::Note(NodeEvent::Proposed { trace, request }));
        let data = command.encode(request);
        if data.len() > self.config.request_bytes_max {
            self.refuse(ticket, request, Refusal::RequestTooLarge, out);
        } else if self.proposals.is_full() {
            self.refuse(ticket, request, Refusal::TooManyRequests, out);
        } else {
            let deadline = self.ticks + self.config.request_ticks();
            self.proposals.wait(request, ticket, self.ticks, deadline);
            self.proposals.enqueue(request, Entry { data: data.into(), ..Entry::default() });
        }
    }

    /// Moves everything on as far as it goes.
    fn settle(&mut self, out: &mut Vec<Output>) {
        self.hand_over();
        self.publish();
        if self.proposals.has_queued() && self.consensus.takes_proposals() {
            let queued = self.proposals.take_queued(self.consensus.term());
            self.consensus.propose(queued);
        }
        if !self.work_off(out) {
            return;
        }
        self.follow_leader(out);
        if let Some(id) = self.reads.next_round(self.ticks, self.may_ask_to_read()) {
            self.consensus.read_index(id);
            // A sole voter answers itself at once.
            if !self.work_off(out) {
                return;
            }
        }
        self.reads.serve(self.machine.applied(), out);
        self.hub.catch_up(&self.machine.store, out);
        self.cut_log(out);
        self.answer_decided(out);
        self.end_transfers(out);
        self.leave(out);
    }

    /// Does what raft has ready, all of it if that is not very much; false if this member cannot go on. However much is
    /// left, what raft had to write when this was called is on its way to the disk.
    fn work_off(&mut self, out: &mut Vec<Output>) -> bool {
        loop {
            let Some(progress) = self.consensus.advance(out) else {
                self.is_cut_short = false;
                return true;
            };
            for message in progress.snapshots {
                let (to, index) = (message.to(), self.machine.applied());
                assert_eq!(message.snapshot_position(), Some((index, self.machine.applied_term())));
                out.push(Output::Note(NodeEvent::SnapshotSent { to, index }));
                out.push(Output::SendSnapshot { message, state: State(Box::new(self.machine.clone())) });
            }
            for (id, index) in progress.reads {
                self.reads.confirmed(id, index, self.consensus.term(), out);
            }
            self.apply(progress.committed, out);
            if self.halted {
                return false;
            }
            // Not only at the end: what a restart finds in its log may be much, and is not to be held twice.
            self.cut_log(out);
            // Nobody takes the outputs before the step is over.
            self.is_cut_short = out.len() >= self.config.outputs_max;
            if self.is_cut_short {
                return true;
            }
        }
    }

    fn cut_log(&mut self, out: &mut Vec<Output>) {
        let share = self.machine.store.bytes() / limits::TAIL_STATE_SHARE;
        let tail = self.config.tail_bytes.min(share.max(limits::TAIL_BYTES_MIN));
        if let Some(before) = self.consensus.cut(tail, tail * limits::TAIL_HELD_FACTOR) {
            out.push(Output::Note(NodeEvent::LogCut { before }));
        }
    }

    fn may_ask_to_read(&self) -> bool {
        match self.consensus.role() {
            Role::Leader => self.consensus.leads_with_commit(),
            _ => self.consensus.leader() != MemberId(0),
        }
    }

    /// A new leader may not know of reads that the old one was asked for.
    fn follow_leader(&mut self, out: &mut Vec<Output>) {
        let leader = self.consensus.leader();
        if leader != MemberId(0) && leader != self.leader.1 {
            if self.leader.1 != MemberId(0) {
                self.reads.leader_changed(out);
            }
            self.leader = (self.ticks, leader);
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, out: &mut Vec<Output>) {
        let Some(last) = entries.last().map(|entry| (Index(entry.index), Term(entry.term))) else { return };
        for entry in entries {
            let index = Index(entry.index);
            let applied = match entry.entry_type {
                EntryType::EntryNormal => self.apply_command(entry, out),
                EntryType::EntryConfChange => self.apply_change(entry, out),
                EntryType::EntryConfChangeV2 => Err("a joint configuration change, which no etcd writes".to_owned()),
            };
            if let Err(reason) = applied {
                return self.halt(Halt::Entry { index, reason }, out);
            }
        }
        self.consensus.applied(last.0, last.1);
    }

    fn apply_command(&mut self, entry: Entry, out: &mut Vec<Output>) -> Result<(), String> {
        let (index, term) = (Index(entry.index), Term(entry.term));
        let new_term = term > self.machine.applied_term();
        let serving = |request| self.proposals.is_waiting(request);
        let outcome = self.machine.apply(index, term, entry.data, serving).map_err(|error| error.to_string())?;
        let (request, revision) = (outcome.request, outcome.revision);
        self.note_applied(index, term, request, out);
        if let Some(ticket) = self.proposals.done(request) {
            out.push(Output::Note(NodeEvent::Acknowledged { request, index }));
            let answer = Answer { result: outcome.result, revision, term: self.consensus.term() };
            out.push(Output::Respond { ticket, answer });
        }
        if new_term {
            self.give_up_on_terms_before(term, out);
        }
        if !outcome.changes.is_empty() {
            self.hub.applied(&outcome.changes, &self.machine.store, out);
        }
        Ok(())
    }

    fn give_up_on_terms_before(&mut self, term: Term, out: &mut Vec<Output>) {
        for (ticket, request) in self.proposals.leader_failed(term, self.ticks + self.config.request_ticks()) {
            self.refuse(ticket, request, Refusal::TimeoutLeaderFailed, out);
        }
    }

    fn note_applied(&self, index: Index, term: Term, request: RequestId, out: &mut Vec<Output>) {
        let (revision, digest) = (self.machine.store.revision(), self.machine.digest());
        out.push(Output::Note(NodeEvent::Applied { index, term, request, revision, digest }));
    }

    /// Says, until the log has it, what this member is called, and as leader what version the cluster is of.
    fn publish(&mut self) {
        let waited = |since: u64| self.ticks >= since + self.config.election_ticks();
        if !self.consensus.takes_proposals() || self.published.is_some_and(|since| !waited(since)) {
            return;
        }
        let Some(own) = self.machine.membership.get(self.config.id) else { return };
        let mut missing = Vec::new();
        if own.name != self.config.name || own.client_urls != self.config.client_urls {
            let (name, client_urls) = (self.config.name.clone(), self.config.client_urls.clone());
            missing.push(Command::MemberAttributes { member: self.config.id, name, client_urls });
        }
        if self.machine.cluster_version.is_none() && self.consensus.leads_with_commit() {
            missing.push(Command::ClusterVersion { version: self.config.cluster_version.clone() });
        }
        if missing.is_empty() {
            return;
        }
        self.published = Some(self.ticks);
        for command in missing {
            let request = self.proposals.next_id();
            self.proposals.enqueue(request, Entry { data: command.encode(request).into(), ..Entry::default() });
        }
    }

    fn refuse(&self, ticket: Ticket, request: RequestId, refusal: Refusal, out: &mut Vec<Output>) {
        out.push(Output::Note(NodeEvent::Refused { request, definite: refusal.is_definite() }));
        let (revision, term) = (self.machine.store.revision(), self.consensus.term());
        out.push(Output::Respond { ticket, answer: Answer { result: Err(refusal), revision, term } });
    }

    fn refuse_all(&mut self, out: &mut Vec<Output>) {
        for (ticket, request) in self.proposals.drain() {
            self.refuse(ticket, request, Refusal::Stopped, out);
        }
        self.refuse_transfers(Refusal::Stopped, out);
        self.reads.refuse_all(Refusal::Stopped, out);
    }

    fn halt(&mut self, halt: Halt, out: &mut Vec<Output>) {
        self.refuse_all(out);
        out.push(Output::Halt(halt));
        self.halted = true;
    }
}

/// Whether a member that is asked to replicate this can tell what it means.
fn is_applicable(entry: &Entry) -> bool {
    match entry.entry_type {
        EntryType::EntryNormal => entry.data.is_empty() || Command::decode(entry.data.clone()).is_ok(),
        EntryType::EntryConfChange => changes::parse_change(&entry.data).is_ok(),
        EntryType::EntryConfChangeV2 => false,
    }
}

#[cfg(test)]
mod tests;
