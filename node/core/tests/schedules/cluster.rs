//! Replicas, their disks, and the messages between them, all in the hands of a schedule.
use std::collections::BTreeSet;

use bytes::Bytes;
use detcd_core::{
    consensus::Message,
    machine::{
        command::{Command, Put},
        membership::Member as Founder,
    },
    proto::raftpb,
    replica::{Config, Input, Output, Proposal, Recovered, Replica, founding_log},
    types::{MemberId, Millis, PersistId, Revision, Ticket, TraceId},
};

use crate::{
    disk::Disk,
    laws::{Law, Laws, Tally, Verdict, Violation},
    steps::{LEADER, REQUEST_BYTES_MAX, Request, Setup, Step},
};

/// Messages on their way at once; beyond it the oldest get lost.
const FLYING_MAX: usize = 300;

/// A bug put in on purpose, around a replica: a law must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Every batch is reported durable when it is handed over.
    PersistedEarly,
    /// Votes do not reach the disk.
    VotesForgotten,
    /// Reads are served from whatever state the member is in.
    ReadsUnconfirmed,
    /// One member reads an entry back from its disk with another value.
    OtherValueApplied,
    /// Answers come twice.
    AnsweredTwice,
    /// Refused reads are never answered.
    RefusalsSwallowed,
}

#[derive(Default)]
struct Member {
    replica: Option<Replica>,
    /// Of the turn that is not over.
    out: Vec<Output>,
    busy: u8,
    starts: u64,
    now: u64,
}

struct Flying {
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

pub struct Cluster {
    setup: Setup,
    plant: Option<Plant>,
    members: Vec<Member>,
    disks: Vec<Disk>,
    /// In the order of sending.
    flying: Vec<Flying>,
    cut: BTreeSet<(usize, usize)>,
    tickets: u64,
    laws: Laws,
    /// Every output, as text; kept if asked for.
    pub trace: Option<Vec<String>>,
}

fn id(at: usize) -> MemberId {
    MemberId(at as u64 + 1)
}

impl Cluster {
    pub fn new(setup: Setup, plant: Option<Plant>, blind: Vec<Law>) -> Cluster {
        let count = usize::from(setup.members);
        let founders: Vec<_> = (0..count).map(founder).collect();
        let log = founding_log(&founders);
        let disks: Vec<_> = (0..count).map(|_| Disk::new(log.clone())).collect();
        let mut cluster = Cluster {
            setup,
            plant,
            members: (0..count).map(|_| Member::default()).collect(),
            flying: Vec::new(),
            cut: BTreeSet::new(),
            tickets: 0,
            laws: Laws::new(count, &disks[0], blind),
            disks,
            trace: None,
        };
        (0..count).for_each(|at| cluster.start(at));
        cluster
    }

    pub fn tally(&self) -> Tally {
        self.laws.tally
    }

    fn start(&mut self, at: usize) {
        let (setup, member) = (self.setup, &mut self.members[at]);
        member.starts += 1;
        let heartbeat_ms = u64::from(setup.heartbeat_ms);
        let config = Config {
            id: id(at),
            name: format!("m{}", at + 1),
            client_urls: vec![format!("http://m{}:2379", at + 1)],
            cluster_version: "3.6.0".into(),
            heartbeat_ms,
            election_ms: heartbeat_ms * u64::from(setup.election_ticks),
            request_bytes_max: REQUEST_BYTES_MAX,
            watch_progress_ms: 600_000,
            seed: setup.seed.wrapping_mul(31).wrapping_add(member.starts << 8 | at as u64),
        };
        let mut recovered = self.disks[at].durable().clone();
        if self.plant == Some(Plant::OtherValueApplied) && at == 0 {
            change_a_value(&mut recovered);
        }
        self.laws.started(id(at), &self.disks[at]);
        (member.replica, member.busy) = (Some(Replica::new(config, recovered)), 0);
    }

    pub fn step(&mut self, step: Step) -> Verdict {
        let member = |number: u8| match number {
            LEADER => self.leader(),
            number => usize::from(number) % self.members.len(),
        };
        let message = |at: u16| usize::from(at) % self.flying.len().max(1);
        match step {
            Step::Tick { member: number } => self.tick(member(number)),
            Step::TickAll => (0..self.members.len()).try_for_each(|at| self.tick(at)),
            Step::Flow { count } => (0..count).try_for_each(|_| self.deliver(0, false)),
            Step::Deliver { at } => self.deliver(message(at), false),
            Step::Double { at } => self.deliver(message(at), true),
            Step::Drop { at } => {
                let at = message(at);
                (at < self.flying.len()).then(|| self.flying.remove(at));
                Ok(())
            }
            Step::Reset { from, to } => self.reset(member(from), member(to)),
            Step::Write { member: number, batches } => self.write(member(number), usize::from(batches)),
            Step::Propose { member: number, request } => self.propose(member(number), request),
            Step::Read { member: number } => self.read(member(number)),
            Step::Busy { member: number, inputs } => {
                let at = member(number);
                self.members[at].busy = inputs;
                Ok(())
            }
            Step::Crash { member: number, polite, survived, torn } => {
                self.crash(member(number), polite, usize::from(survived), usize::from(torn))
            }
            Step::Restart { member: number } => {
                let at = member(number);
                if self.members[at].replica.is_none() {
                    self.start(at);
                }
                Ok(())
            }
            Step::Isolate { member: number, writes } => {
                let at = member(number);
                let others = (0..self.members.len()).filter(|other| *other != at);
                self.cut.extend(others.flat_map(|other| [(at, other), (other, at)]));
                (0..writes).try_for_each(|key| self.propose(at, Request::Put { key }))
            }
            Step::Cut { from, to } => {
                let link = (member(from), member(to));
                self.cut.insert(link);
                Ok(())
            }
            Step::Join => {
                self.cut.clear();
                Ok(())
            }
            Step::Calm { ticks } => self.calm(usize::from(ticks)),
        }
    }

    /// Of those who lead or believe they do, the one of the latest term.
    fn leader(&self) -> usize {
        let term = |at: &usize| {
            let status = self.members[*at].replica.as_ref().map(Replica::status);
            status.filter(|status| status.leader == id(*at)).map(|status| status.term)
        };
        (0..self.members.len()).max_by_key(term).expect("there are members")
    }

    fn tick(&mut self, at: usize) -> Verdict {
        let now = self.members[at].now + u64::from(self.setup.heartbeat_ms);
        self.members[at].now = now;
        self.input(at, Input::Tick { now: Millis(now) })
    }

    fn deliver(&mut self, at: usize, again: bool) -> Verdict {
        if at >= self.flying.len() {
            return Ok(());
        }
        let flying = &self.flying[at];
        let (to, message) = (flying.to, Message::decode(&flying.bytes).expect("as it was encoded"));
        // A proposal that arrives twice is replicated twice.
        if !again || message.kind() == "propose" {
            self.flying.remove(at);
        }
        self.input(to, Input::Message(message))
    }

    fn reset(&mut self, from: usize, to: usize) -> Verdict {
        self.flying.retain(|flying| (flying.from, flying.to) != (from, to));
        if from == to { Ok(()) } else { self.input(from, Input::Unreachable(id(to))) }
    }

    fn write(&mut self, at: usize, batches: usize) -> Verdict {
        match self.disks[at].complete(batches) {
            // It was reported when it was handed over.
            Some(_) if self.plant == Some(Plant::PersistedEarly) => Ok(()),
            Some(persist) => self.input(at, Input::Persisted(persist)),
            None => Ok(()),
        }
    }

    fn propose(&mut self, at: usize, request: Request) -> Verdict {
        let Some(replica) = &self.members[at].replica else { return Ok(()) };
        self.tickets += 1;
        let command = request.command(self.tickets, replica.machine().store.revision());
        let ticket = Ticket(self.tickets);
        self.laws.asked_to_write(id(at), ticket);
        self.input(at, Input::Propose(Proposal { ticket, trace: TraceId(ticket.0), command }))
    }

    fn read(&mut self, at: usize) -> Verdict {
        let Some(replica) = &self.members[at].replica else { return Ok(()) };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.laws.asked_to_read(id(at), ticket);
        if self.plant == Some(Plant::ReadsUnconfirmed) {
            return self.laws.read_ready(id(at), ticket, true, replica.machine().applied());
        }
        self.input(at, Input::Read { ticket })
    }

    fn crash(&mut self, at: usize, polite: bool, survived: usize, torn: usize) -> Verdict {
        if self.members[at].replica.is_none() {
            return Ok(());
        }
        if polite {
            self.input(at, Input::Stop)?;
            self.settle(at)?;
            self.laws.stopped(id(at))?;
        }
        self.laws.crashed(id(at));
        self.disks[at].fail(survived, torn);
        (self.members[at].replica, self.members[at].out) = (None, Vec::new());
        Ok(())
    }

    fn input(&mut self, at: usize, input: Input) -> Verdict {
        let member = &mut self.members[at];
        let Some(replica) = &mut member.replica else { return Ok(()) };
        replica.step(input, &mut member.out);
        if let Some(Output::Halt(halt)) = member.out.last() {
            self.laws.halted(id(at), halt)?;
        }
        if member.busy > 0 {
            member.busy -= 1;
            return Ok(());
        }
        self.settle(at)
    }

    /// Ends a member's turn: its outputs are started, in order.
    fn settle(&mut self, at: usize) -> Verdict {
        let member = &mut self.members[at];
        let Some(replica) = &mut member.replica else { return Ok(()) };
        replica.step(Input::Settle, &mut member.out);
        let mut early = Vec::new();
        for output in std::mem::take(&mut member.out) {
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{} {output:?}", id(at)));
            }
            early.extend(self.start_output(at, output)?);
        }
        early.into_iter().try_for_each(|persist| self.input(at, Input::Persisted(persist)))
    }

    /// Returns a batch that is to be reported durable at once.
    fn start_output(&mut self, at: usize, output: Output) -> Result<Option<PersistId>, Violation> {
        let who = id(at);
        let replica = self.members[at].replica.as_ref().expect("it just stepped");
        match output {
            Output::Note(event) => self.laws.note(who, &event, &self.disks)?,
            Output::Send(message) => {
                let mut bytes = Vec::with_capacity(message.encoded_len());
                message.encode(&mut bytes);
                let sent = <raftpb::Message as prost::Message>::decode(&bytes[..]).expect("etcd could read it");
                self.laws.sent(who, &sent, replica.status().term, &self.disks[at])?;
                let to = message.to().0 as usize - 1;
                if !self.cut.contains(&(at, to)) {
                    self.flying.push(Flying { from: at, to, bytes });
                }
                if self.flying.len() > FLYING_MAX {
                    self.flying.remove(0);
                }
            }
            Output::Persist(mut persist) => {
                if let (Some(Plant::VotesForgotten), Some(state)) = (self.plant, &mut persist.hard_state) {
                    state.vote = MemberId(0);
                }
                let early = self.plant == Some(Plant::PersistedEarly) && persist.sync;
                let id = persist.id;
                self.disks[at].start(persist);
                return Ok(early.then_some(id));
            }
            Output::Respond { ticket, answer } => {
                if self.plant == Some(Plant::AnsweredTwice) && self.tickets.is_multiple_of(50) {
                    self.laws.answered(who, ticket, &answer)?;
                }
                self.laws.answered(who, ticket, &answer)?;
            }
            Output::ReadReady { ticket, result } => {
                if self.plant == Some(Plant::RefusalsSwallowed) && result.is_err() {
                    return Ok(None);
                }
                self.laws.read_ready(who, ticket, result.is_ok(), replica.machine().applied())?;
            }
            Output::Notify(notice) => panic!("nobody watches: {notice:?}"),
            Output::Halt(halt) => self.laws.halted(who, &halt)?,
        }
        Ok(None)
    }

    /// Everything works, for so many ticks of every member.
    fn calm(&mut self, ticks: usize) -> Verdict {
        self.cut.clear();
        for _ in 0..ticks {
            for at in 0..self.members.len() {
                if self.members[at].replica.is_none() {
                    self.start(at);
                }
                self.members[at].busy = 0;
                self.tick(at)?;
            }
            self.quieten()?;
        }
        Ok(())
    }

    /// All messages arrive and all batches become durable, until nothing is left to do.
    fn quieten(&mut self) -> Verdict {
        loop {
            for at in 0..self.members.len() {
                while self.disks[at].waited_for() > 0 {
                    self.write(at, usize::MAX)?;
                }
            }
            if self.flying.is_empty() {
                return Ok(());
            }
            for _ in 0..self.flying.len() {
                self.deliver(0, false)?;
            }
        }
    }

    /// Once all works again, the cluster must come to rest, and then serve.
    pub fn recover(&mut self) -> Verdict {
        let request_ticks = 5_000 / usize::from(self.setup.heartbeat_ms) + 2 * usize::from(self.setup.election_ticks);
        let enough = request_ticks + 20 * usize::from(self.setup.election_ticks);
        self.calm_until(enough)?;
        let asked = self.laws.tally;
        for at in 0..self.members.len() {
            self.propose(at, Request::Put { key: 0 })?;
            self.read(at)?;
        }
        self.calm_until(enough)?;
        let (count, tally) = (self.members.len(), self.laws.tally);
        let served =
            tally.acknowledged == asked.acknowledged + count && tally.reads_served == asked.reads_served + count;
        self.laws.require_recovered(served, || format!("not all are served: {asked:?}, then {tally:?}"))
    }

    fn calm_until(&mut self, enough: usize) -> Verdict {
        for _ in 0..enough {
            self.calm(1)?;
            if self.laws.all_answered() && self.at_rest().is_ok() {
                break;
            }
        }
        let rest = self.at_rest();
        self.laws.require_recovered(rest.is_ok(), || rest.unwrap_err())
    }

    /// One leads, all know, and all have applied and stored the same.
    fn at_rest(&self) -> Result<(), String> {
        let stand = |member: &Member| {
            let replica = member.replica.as_ref()?;
            let hash = replica.machine().store.hash(Revision(0)).expect("the present can be hashed");
            Some((replica.status(), replica.machine().digest(), hash))
        };
        let stands: Vec<_> = self.members.iter().map(stand).collect();
        let alike = stands.windows(2).all(|pair| pair[0] == pair[1]);
        match stands[0] {
            Some((status, ..)) if alike && status.leader != MemberId(0) && status.applied == status.committed => Ok(()),
            _ => Err(format!("the members stand at {stands:?}")),
        }
    }
}

fn founder(at: usize) -> Founder {
    let mut founder = Founder::founding("", vec![format!("http://m{}:2380", at + 1)], "token");
    founder.id = id(at);
    founder
}

fn change_a_value(recovered: &mut Recovered) {
    for entry in &mut recovered.entries {
        let Ok((request, Command::Put(put))) = Command::decode(entry.data.clone()) else { continue };
        entry.data = Command::Put(Put { value: Bytes::from_static(b"other"), ..put }).encode(request).into();
        return;
    }
}
