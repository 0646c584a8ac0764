//! One member of the cluster as a value: an input goes in, the state changes, outputs come out. See [`io`].
//!
//! `step` routes; what it routes to decides: [`Consensus`] what is agreed on, [`Machine`] what that does,
//! [`Hub`] who hears of it, [`Proposals`] and [`Reads`] who waits for it.
mod io;
mod proposals;
mod reads;

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType};

pub use self::io::{Answer, Halt, Input, Output, Persist, Proposal, Status};
use self::{proposals::Proposals, reads::Reads};
use crate::{
    consensus::{Consensus, Timing},
    error::Refusal,
    event::{NodeEvent, Role},
    format::wal::HardState,
    limits,
    machine::{
        Machine,
        command::Command,
        membership::{Change, Member},
    },
    types::{Index, MemberId, Millis, RequestId, Term},
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
    /// How often quiet watches that ask for it are told how far they are, in milliseconds.
    pub watch_progress_ms: u64,
    /// Everything random comes from here. Differs at every start.
    pub seed: u64,
}

impl Config {
    fn election_ticks(&self) -> u64 {
        (self.election_ms / self.heartbeat_ms).max(2)
    }

    /// What a request may wait: etcd's 5 s and two election timeouts.
    fn request_ticks(&self) -> u64 {
        (limits::REQUEST_WAIT_MS + 2 * self.election_ms) / self.heartbeat_ms
    }
}

/// What a log on disk held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    pub hard_state: HardState,
    /// From index 1 on, contiguous.
    pub entries: Vec<Entry>,
}

pub struct Replica {
    config: Config,
    consensus: Consensus,
    machine: Machine,
    hub: Hub,
    proposals: Proposals,
    reads: Reads,
    ticks: u64,
    /// The tick at which the current leader was first known, and who it is.
    leader: (u64, MemberId),
    /// The tick at which this member last published what it has to say about itself or the cluster.
    published: Option<u64>,
    progress_sent: Millis,
    halted: bool,
}

impl Replica {
    pub fn new(config: Config, recovered: Recovered) -> Replica {
        let election = config.election_ticks() as usize;
        let timing = Timing { heartbeat: 1, election, seed: config.seed };
        let Recovered { hard_state, entries } = recovered;
        Replica {
            consensus: Consensus::new(config.id, &timing, hard_state, entries),
            machine: Machine::default(),
            hub: Hub::default(),
            proposals: Proposals::new(config.id, config.seed),
            reads: Reads::new(config.seed, (limits::READ_RETRY_MS / config.heartbeat_ms).max(1)),
            ticks: 0,
            leader: (0, MemberId(0)),
            published: None,
            progress_sent: Millis(0),
            halted: false,
            config,
        }
    }

    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        assert!(!self.halted, "a halted replica must not be stepped");
        match input {
            Input::Tick { now } => self.tick(now, out),
            Input::Message(message) => match self.consensus.step(message) {
                Ok(()) => {}
                Err(forgotten) => self.halt(forgotten.into(), out),
            },
            Input::Unreachable(member) => self.consensus.unreachable(member),
            Input::Propose(proposal) => self.propose(proposal, out),
            Input::Read { ticket } => self.reads.ask(ticket, self.ticks + self.config.request_ticks()),
            Input::Persisted(persist) => self.consensus.persisted(persist, out),
            Input::Watch { stream, request } => self.hub.handle(stream, request, &self.machine.store, out),
            Input::Settle => self.settle(out),
            Input::Stop => self.stop(out),
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
        }
    }

    /// Whether there is work left that was cut short to keep the step so: the shell settles again soon.
    pub fn has_work(&self) -> bool {
        !self.halted && self.hub.has_work()
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
            self.proposals.enqueue(request, data);
        }
    }

    /// Moves everything on as far as it goes.
    fn settle(&mut self, out: &mut Vec<Output>) {
        self.publish();
        if self.proposals.has_queued() && self.consensus.takes_proposals() {
            let queued = self.proposals.take_queued(self.consensus.term());
            self.consensus.propose(queued);
        }
        if !self.work_off(out) {
            return;
        }
        self.follow_leader(out);
        if let Some(context) = self.reads.next_round(self.ticks, self.may_ask_to_read()) {
            self.consensus.read_index(context);
            // A sole voter answers itself at once.
            if !self.work_off(out) {
                return;
            }
        }
        self.reads.serve(self.machine.applied(), out);
        self.hub.catch_up(&self.machine.store, out);
    }

    /// Does all that raft has ready; false if this member cannot go on.
    fn work_off(&mut self, out: &mut Vec<Output>) -> bool {
        while let Some(progress) = self.consensus.advance(out) {
            for (context, index) in progress.reads {
                self.reads.confirmed(&context, index, self.consensus.term(), out);
            }
            self.apply(progress.committed, out);
            if self.halted {
                return false;
            }
        }
        true
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
        let Some(last) = entries.last().map(|entry| Index(entry.index)) else { return };
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
        self.consensus.applied(last);
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
            for (ticket, request) in self.proposals.leader_failed(term) {
                self.refuse(ticket, request, Refusal::TimeoutLeaderFailed, out);
            }
        }
        if !outcome.changes.is_empty() {
            self.hub.applied(&outcome.changes, &self.machine.store, out);
        }
        Ok(())
    }

    fn apply_change(&mut self, entry: Entry, out: &mut Vec<Output>) -> Result<(), String> {
        let (index, term) = (Index(entry.index), Term(entry.term));
        let change = parse_change(&entry.data)?;
        // One that the machine refuses changes nothing, here as in raft, on every member alike.
        let valid = self.machine.apply_change(index, term, change.clone()).is_ok();
        self.consensus.change_applied(valid.then_some(&change));
        self.note_applied(index, term, RequestId(0), out);
        Ok(())
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
            self.proposals.enqueue(request, command.encode(request));
        }
    }

    fn refuse(&self, ticket: crate::types::Ticket, request: RequestId, refusal: Refusal, out: &mut Vec<Output>) {
        out.push(Output::Note(NodeEvent::Refused { request, definite: refusal.is_definite() }));
        let (revision, term) = (self.machine.store.revision(), self.consensus.term());
        out.push(Output::Respond { ticket, answer: Answer { result: Err(refusal), revision, term } });
    }

    fn stop(&mut self, out: &mut Vec<Output>) {
        for (ticket, request) in self.proposals.drain() {
            self.refuse(ticket, request, Refusal::Stopped, out);
        }
        self.reads.refuse_all(Refusal::Stopped, out);
    }

    fn halt(&mut self, halt: Halt, out: &mut Vec<Output>) {
        self.stop(out);
        out.push(Output::Halt(halt));
        self.halted = true;
    }
}

/// etcd's configuration entry: a `ConfChange` whose context is the member in JSON.
fn parse_change(data: &Bytes) -> Result<Change, String> {
    use crate::proto::raftpb;
    use protobuf::Message as _;
    // raft-rs's own type cannot tell an update from a learner's addition: their numbers clash.
    let change = <raftpb::ConfChange as prost::Message>::decode(data.clone());
    let change = change.map_err(|error| format!("no configuration change: {error}"))?;
    debug_assert!(ConfChange::parse_from_bytes(data).is_ok());
    let id = MemberId(change.node_id());
    let context = change.context();
    #[derive(serde::Deserialize)]
    struct Context {
        #[serde(flatten)]
        member: Member,
        #[serde(default, rename = "isPromote")]
        promote: bool,
    }
    let kind = raftpb::ConfChangeType::try_from(change.r#type.unwrap_or(0)).map_err(|error| error.to_string())?;
    if kind == raftpb::ConfChangeType::ConfChangeRemoveNode {
        return Ok(Change::Remove(id));
    }
    let context: Context = serde_json::from_slice(context).map_err(|error| format!("no member: {error}"))?;
    if context.member.id != id {
        return Err(format!("a change of member {id} that describes member {}", context.member.id));
    }
    use raftpb::ConfChangeType::{
        ConfChangeAddLearnerNode, ConfChangeAddNode, ConfChangeRemoveNode, ConfChangeUpdateNode,
    };
    Ok(match kind {
        ConfChangeAddNode if context.promote => Change::Promote(id),
        ConfChangeAddNode => Change::Add(context.member),
        ConfChangeAddLearnerNode => Change::Add(Member { is_learner: true, ..context.member }),
        ConfChangeUpdateNode => Change::UpdatePeers(id, context.member.peer_urls),
        ConfChangeRemoveNode => unreachable!("handled above"),
    })
}

/// The log with which a founding member begins: every founder's addition, committed in term 1, as etcd writes it.
pub fn founding_log(founders: &[Member]) -> Recovered {
    let mut founders: Vec<_> = founders.to_vec();
    founders.sort_by_key(|member| member.id);
    let entries = founders.iter().zip(1..).map(|(member, index)| {
        let mut change = ConfChange::default();
        change.set_change_type(ConfChangeType::AddNode);
        change.node_id = member.id.0;
        change.context = serde_json::to_vec(member).expect("a member is plain data").into();
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChange);
        (entry.term, entry.index) = (1, index);
        entry.data = protobuf::Message::write_to_bytes(&change).expect("a Vec grows").into();
        entry
    });
    let entries: Vec<_> = entries.collect();
    let commit = Index(entries.len() as u64);
    Recovered { hard_state: HardState { term: Term(1), vote: MemberId(0), commit }, entries }
}
