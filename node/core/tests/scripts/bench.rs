//! A cluster that does nothing unless told: every tick, message and batch is moved by hand.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use detcd_core::{
    consensus::Message,
    limits,
    machine::{command::Command, membership::Member as Founder},
    proto::raftpb,
    replica::{ChangeRequest, Config, Input, Output, Peers, Proposal, Recovered, Replica, State, founding_log},
    types::{Index, MemberId, Millis, StreamId, Term, Ticket, TraceId},
    watch,
};

use crate::{
    disk::{Disk, Stamp},
    show::Names,
};

struct Member {
    replica: Option<Replica>,
    disk: Disk,
    now: u64,
    starts: u64,
}

pub struct Bench {
    members: BTreeMap<u64, Member>,
    links: BTreeMap<(u64, u64), VecDeque<Vec<u8>>>,
    /// Snapshots on their way.
    parcels: Vec<(u64, u64, Message, State)>,
    tail_bytes: u64,
    isolated: BTreeSet<u64>,
    stalled: BTreeSet<u64>,
    names: Names,
    tickets: u64,
    /// What happened, in words.
    pub story: String,
    /// What happened, to the last bit.
    pub record: Vec<String>,
    /// Bytes of the largest message sent.
    pub largest: usize,
}

impl Bench {
    /// A cluster that was just founded; its members are known by name already, and hold so much of the log.
    pub fn new(count: u64, tail_bytes: u64) -> Bench {
        let founders: Vec<_> = (1..=count).map(founder).collect();
        let log = founding_log(&founders);
        let member = |id| (id, Member { replica: None, disk: Disk::new(log.clone()), now: 0, starts: 0 });
        let mut bench = Bench {
            members: (1..=count).map(member).collect(),
            links: BTreeMap::new(),
            parcels: Vec::new(),
            tail_bytes,
            isolated: BTreeSet::new(),
            stalled: BTreeSet::new(),
            names: Names::default(),
            tickets: 0,
            story: String::new(),
            record: Vec::new(),
            largest: 0,
        };
        (1..=count).for_each(|id| bench.start(id));
        bench.story.clear();
        bench
    }

    pub fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap_or_else(|| panic!("there is no member {id}"))
    }

    pub fn replica(&self, id: u64) -> Option<&Replica> {
        self.members[&id].replica.as_ref()
    }

    /// The last entry that is durable there.
    pub fn durable(&self, id: u64) -> (Index, Term) {
        let log = self.members[&id].disk.log();
        (log.last(), log.stamp(log.last()).expect("it ends there").term)
    }

    /// Whoever is new starts with nothing.
    pub fn start(&mut self, id: u64) {
        let tail_bytes = self.tail_bytes;
        let nothing = || Member { replica: None, disk: Disk::new(Recovered::default()), now: 0, starts: 0 };
        let member = self.members.entry(id).or_insert_with(nothing);
        member.starts += 1;
        let Founder { name, client_urls, .. } = founder(id);
        let config = Config {
            id: MemberId(id),
            name,
            client_urls,
            cluster_version: "3.6.0".into(),
            heartbeat_ms: limits::HEARTBEAT_MS,
            election_ms: limits::ELECTION_MS,
            request_bytes_max: limits::REQUEST_BYTES_MAX,
            tail_bytes,
            outputs_max: limits::OUTPUTS_MAX,
            watch_progress_ms: limits::WATCH_PROGRESS_MS,
            seed: member.starts << 8 | id,
        };
        member.replica = Some(Replica::new(config, member.disk.durable()));
        self.input(id, Input::Settle);
    }

    /// The process ends and what its disk did not finish is lost, and `lost` durable entries with it.
    pub fn crash(&mut self, id: u64, lost: usize) {
        let member = self.member(id);
        member.replica = None;
        member.disk.fail(0, 0);
        member.disk.lose(lost);
    }

    pub fn isolate(&mut self, id: u64) {
        self.isolated.insert(id);
    }

    pub fn join(&mut self) {
        self.isolated.clear();
    }

    /// Until it is `heal`ed, nothing becomes durable there.
    pub fn stall(&mut self, id: u64) {
        self.stalled.insert(id);
    }

    pub fn heal(&mut self, id: u64) {
        self.stalled.remove(&id);
    }

    pub fn tick(&mut self, id: u64) {
        let member = self.member(id);
        member.now += limits::HEARTBEAT_MS;
        let now = Millis(member.now);
        self.input(id, Input::Tick { now });
    }

    pub fn propose(&mut self, id: u64, command: Command) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.input(id, Input::Propose(Proposal { ticket, trace: TraceId(0), command }));
    }

    pub fn read(&mut self, id: u64) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.input(id, Input::Read { ticket });
    }

    /// Everybody is connected with everybody.
    pub fn change(&mut self, id: u64, change: ChangeRequest) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let all: Vec<_> = self.members.keys().map(|id| MemberId(*id)).collect();
        self.input(
            id,
            Input::Change { ticket, trace: TraceId(0), change, peers: Peers { connected: all.clone(), healthy: all } },
        );
    }

    pub fn transfer(&mut self, id: u64, to: u64) {
        self.tickets += 1;
        self.input(id, Input::Transfer { ticket: Ticket(self.tickets), to: MemberId(to) });
    }

    pub fn watch(&mut self, id: u64, request: watch::Request) {
        self.input(id, Input::Watch { stream: StreamId(1), request });
    }

    pub fn stop(&mut self, id: u64) {
        self.input(id, Input::Stop);
    }

    /// The next `count` messages on their way from one to the other arrive.
    pub fn deliver(&mut self, from: u64, to: u64, count: usize) {
        for _ in 0..count {
            let Some(bytes) = self.links.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
            self.input(to, Input::Message(Message::decode(&bytes).expect("as it was encoded")));
        }
    }

    /// The first message on its way from one to the other will arrive twice.
    pub fn double(&mut self, from: u64, to: u64) {
        let link = self.links.get_mut(&(from, to)).expect("something is on its way");
        link.push_front(link.front().expect("something is on its way").clone());
    }

    /// The snapshots on their way from one to the other arrive, or are lost. Returns their number.
    pub fn deliver_snapshots(&mut self, from: u64, to: u64, delivered: bool) -> usize {
        let on_their_way = |parcel: &mut (u64, u64, Message, State)| (parcel.0, parcel.1) == (from, to);
        let parcels: Vec<_> = self.parcels.extract_if(.., on_their_way).collect();
        let count = parcels.len();
        for (_, _, message, state) in parcels {
            if delivered {
                assert!(self.member(to).disk.receive(&state), "one at a time");
                self.input(to, Input::Snapshot { message, state });
            }
            self.input(from, Input::SnapshotSent { to: MemberId(to), delivered });
        }
        count
    }

    /// Changes the messages that go with the states on their way.
    pub fn spoil_snapshots(&mut self, spoil: impl Fn(&mut raftpb::Message)) {
        for (_, _, message, _) in &mut self.parcels {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let mut spoilt = <raftpb::Message as prost::Message>::decode(&bytes[..]).expect("as it was encoded");
            spoil(&mut spoilt);
            *message = Message::decode(&prost::Message::encode_to_vec(&spoilt)).expect("it is a message still");
        }
    }

    /// All messages on their way from one to the other are lost. Returns their number.
    pub fn drop_messages(&mut self, from: u64, to: u64) -> usize {
        self.links.remove(&(from, to)).map_or(0, |messages| messages.len())
    }

    /// What is on its way, in words.
    pub fn in_flight(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((from, to), messages) in &self.links {
            for bytes in messages {
                let message = <raftpb::Message as prost::Message>::decode(&bytes[..]).expect("as it was encoded");
                lines.push(format!("{from} -> {to}: {}", self.names.message(&message)));
            }
        }
        let parcels = self.parcels.iter();
        lines.extend(parcels.map(|(from, to, _, state)| format!("{from} -> {to}: state of {}", state.0.applied())));
        lines
    }

    pub fn persist(&mut self, id: u64, count: usize) {
        if self.stalled.contains(&id) {
            return;
        }
        if let Some(persist) = self.member(id).disk.complete(count) {
            self.input(id, Input::Persisted(persist));
        }
    }

    /// All messages and states between `ids` arrive and all their batches become durable, until nothing is left to do.
    pub fn stabilize(&mut self, ids: &[u64]) {
        loop {
            self.stabilize_messages(ids);
            let parcels: BTreeSet<_> = self.parcels.iter().map(|(from, to, ..)| (*from, *to)).collect();
            let parcels: Vec<_> = parcels.into_iter().filter(|(_, to)| ids.contains(to)).collect();
            for (from, to) in &parcels {
                self.deliver_snapshots(*from, *to, true);
            }
            if parcels.is_empty() {
                return;
            }
        }
    }

    /// As `stabilize`, but states take longer.
    pub fn stabilize_messages(&mut self, ids: &[u64]) {
        loop {
            for id in ids {
                self.persist(*id, usize::MAX);
            }
            let busy = self.links.iter().filter(|(_, messages)| !messages.is_empty()).map(|(link, _)| *link);
            let busy: Vec<_> = busy.filter(|(from, to)| ids.contains(from) && ids.contains(to)).collect();
            for (from, to) in &busy {
                self.deliver(*from, *to, usize::MAX);
            }
            let written = |id: &u64| self.stalled.contains(id) || self.members[id].disk.waited_for() == 0;
            if busy.is_empty() && ids.iter().all(written) {
                return;
            }
        }
    }

    fn input(&mut self, id: u64, input: Input) {
        let Some(replica) = self.member(id).replica.as_mut() else { return };
        let mut out = Vec::new();
        replica.step(input, &mut out);
        let last_words = |output: &Output| matches!(output, Output::Halt(_) | Output::Removed | Output::Stopped);
        let ended = |out: &[Output]| out.iter().any(last_words);
        while !ended(&out) {
            replica.step(Input::Settle, &mut out);
            if !replica.has_work() {
                break;
            }
        }
        if ended(&out) {
            self.member(id).replica = None;
        }
        out.into_iter().for_each(|output| self.output(id, output));
    }

    fn output(&mut self, id: u64, output: Output) {
        if let Some(line) = self.names.output(&output) {
            self.story += &format!("{id} {line}\n");
        }
        self.record.push(format!("{id} {output:?}"));
        match output {
            Output::Send(message) => {
                assert_eq!(message.from(), MemberId(id), "nobody listens to who speaks for another");
                let (to, mut bytes) = (message.to().0, Vec::new());
                message.encode(&mut bytes);
                self.record.push(format!("{bytes:?}"));
                self.largest = self.largest.max(bytes.len());
                if !self.isolated.contains(&id) && !self.isolated.contains(&to) {
                    self.links.entry((id, to)).or_default().push_back(bytes);
                }
            }
            Output::SendSnapshot { message, state } => {
                let to = message.to().0;
                self.parcels.push((id, to, message, state));
            }
            Output::DropSnapshot { index } => self.member(id).disk.drop_received(index),
            Output::Persist(batch) => {
                let stamp = batch.snapshot.as_ref().map(|mark| Stamp { term: mark.term, chain: 0 });
                self.member(id).disk.start(batch, stamp);
            }
            _ => {}
        }
    }
}

pub fn founder(id: u64) -> Founder {
    let mut founder = Founder::founding(&format!("m{id}"), vec![format!("http://m{id}:2380")], "token");
    (founder.id, founder.client_urls) = (MemberId(id), vec![format!("http://m{id}:2379")]);
    founder
}
