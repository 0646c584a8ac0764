//! Replicas, their disks, and the messages between them, all in the hands of a schedule.
//!
//! Members have the ids 1, 2 and so on: the founders, then whoever was ever asked to be added. A newcomer may start
//! once some member knows it.
use std::collections::{BTreeMap, BTreeSet};

use detcd_core::{
    consensus::Message,
    machine::membership::Member as Founder,
    replica::{Config, Input, Output, Proposal, Recovered, Replica, State, founding_log},
    types::{MemberId, Millis, PersistId, StreamId, Ticket, TraceId, WatchId},
    watch::{Create, Filter, Request as WatchRequest, range_of_watch},
};

use crate::{
    disk::Disk,
    laws::{self, Law, Laws, Tally, Verdict},
    plants::Plant,
    steps::{Fate, LEADER, REQUEST_BYTES_MAX, Request, Setup, Step},
};

/// Messages on their way at once; beyond it the oldest get lost.
const FLYING_MAX: usize = 300;
/// States on their way at once.
const PARCELS_MAX: usize = 12;
/// Members that there ever are.
pub const MEMBERS_MAX: usize = 12;

#[derive(Default)]
pub struct Member {
    pub replica: Option<Replica>,
    /// Of the turn that is not over.
    pub out: Vec<Output>,
    pub in_turn: bool,
    pub busy: u8,
    pub starts: u64,
    pub now: u64,
    /// It is or was a member, so that it may start.
    pub invited: bool,
    /// Its addition was asked for, and may yet come about.
    pub asked_for: bool,
    /// It was asked to stop, and of the writes that are under way when it does so many become durable.
    pub stops: Option<usize>,
    /// The last batch that a bug reported durable when it was handed over.
    pub reported_early: Option<PersistId>,
}

pub struct Flying {
    pub from: usize,
    pub to: usize,
    pub bytes: Vec<u8>,
}

/// A snapshot: a message, and the state it is about.
#[derive(Clone)]
pub struct Parcel {
    pub from: usize,
    /// The sender's run.
    pub run: u64,
    pub to: usize,
    pub bytes: Vec<u8>,
    pub state: State,
    pub reported: bool,
}

/// What became of a parcel, on its way to who sent it.
pub struct Report {
    pub from: usize,
    pub run: u64,
    pub to: usize,
    pub delivered: bool,
}

pub struct Cluster {
    pub setup: Setup,
    pub plant: Option<Plant>,
    pub members: Vec<Member>,
    pub disks: Vec<Disk>,
    /// In the order of sending.
    pub flying: Vec<Flying>,
    pub parcels: Vec<Parcel>,
    pub reports: Vec<Report>,
    pub cut: BTreeSet<(usize, usize)>,
    pub tickets: u64,
    /// Whose addition somebody waits for.
    pub newcomers: BTreeMap<(usize, Ticket), usize>,
    pub laws: Laws,
    /// Whoever was removed, and is needed no more, is gone for good.
    pub recovering: bool,
    /// Every output, as text; kept if asked for.
    pub trace: Option<Vec<String>>,
}

pub fn id(at: usize) -> MemberId {
    MemberId(at as u64 + 1)
}

impl Cluster {
    pub fn new(setup: Setup, plant: Option<Plant>, blind: Vec<Law>) -> Cluster {
        let count = usize::from(setup.members);
        let founders: Vec<_> = (0..count).map(founder).collect();
        let log = founding_log(&founders);
        let mut cluster = Cluster {
            setup,
            plant,
            members: Vec::new(),
            disks: Vec::new(),
            flying: Vec::new(),
            parcels: Vec::new(),
            reports: Vec::new(),
            cut: BTreeSet::new(),
            tickets: 0,
            newcomers: BTreeMap::new(),
            laws: Laws::new(&Disk::new(log.clone()), blind),
            recovering: false,
            trace: None,
        };
        for _ in 0..count {
            cluster.add_member(log.clone());
        }
        cluster.members.iter_mut().for_each(|member| member.invited = true);
        cluster
    }

    pub fn add_member(&mut self, founding: Recovered) {
        let mut disk = Disk::new(founding);
        disk.keeps_conflicts = self.plant == Some(Plant::ConflictsKept);
        self.disks.push(disk);
        self.members.push(Member::default());
    }

    pub fn tally(&self) -> Tally {
        self.laws.tally
    }

    /// Starts whoever is a member and does not run.
    pub fn start_all(&mut self) -> Verdict {
        (0..self.members.len()).try_for_each(|at| if self.is_to_run(at) { self.start(at) } else { Ok(()) })
    }

    fn is_to_run(&self, at: usize) -> bool {
        self.members[at].invited && self.members[at].replica.is_none() && !self.laws.is_dismissed(id(at))
    }

    pub fn start(&mut self, at: usize) -> Verdict {
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
            tail_bytes: setup.tail_bytes.into(),
            outputs_max: setup.outputs_max.into(),
            watch_progress_ms: 600_000,
            seed: setup.seed.wrapping_mul(31).wrapping_add(member.starts << 8 | at as u64),
        };
        let mut recovered = self.disks[at].durable();
        if let Some(plant) = self.plant
            && at == 0
        {
            plant.spoil_files(&mut recovered);
        }
        self.laws.started(id(at), &self.disks[at])?;
        self.laws.tally.removed_started += usize::from(self.laws.is_removed(id(at)));
        let (mut replica, mut out) = (Replica::new(config, recovered), Vec::new());
        replica.step(Input::Settle, &mut out);
        let loud = out.iter().find(|output| !matches!(output, Output::Note(_) | Output::Removed));
        self.laws.require(Law::StartsQuiet, loud.is_none(), || format!("{} starts with {loud:?}", id(at)))?;
        (member.replica, member.busy, member.out, member.reported_early) = (Some(replica), 0, out, None);
        self.start_outputs(at)?;
        self.watch(at)
    }

    /// The member's client watches everything, from where it was.
    pub fn watch(&mut self, at: usize) -> Verdict {
        let range = range_of_watch(b"\0"[..].into(), b"\0"[..].into());
        let start = self.laws.watches_from(id(at));
        let create =
            Create { id: WatchId(0), range, start, filter: Filter::default(), previous: false, progress: false };
        self.input(at, Input::Watch { stream: StreamId(1), request: WatchRequest::Create(create) })
    }

    pub fn step(&mut self, step: Step) -> Verdict {
        self.take(step)?;
        // Some newcomers start as soon as they may.
        let eager = |member: &Member| member.invited && member.starts == 0;
        let eager = (0..self.members.len()).find(|at| at % 2 == 1 && eager(&self.members[*at]));
        eager.map_or(Ok(()), |at| self.start(at))
    }

    fn take(&mut self, step: Step) -> Verdict {
        let member = |number: u8| self.member(number);
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
            Step::Rest => self.rest(),
            Step::Reset { from, to } => self.reset(member(from), member(to)),
            Step::Parcel { at, fate } => self.parcel(usize::from(at) % self.parcels.len().max(1), fate),
            Step::Report { at } => self.report(usize::from(at) % self.reports.len().max(1)),
            Step::Write { member: number, batches } => self.write(member(number), usize::from(batches)),
            Step::Checkpoint { member: number } => self.checkpoint(member(number)),
            Step::Release { member: number, keep } => {
                let at = member(number);
                self.laws.tally.released += self.disks[at].release(keep.into());
                Ok(())
            }
            Step::Propose { member: number, request } => self.propose(member(number), request),
            Step::Read { member: number } => self.read(member(number)),
            Step::Change { member: number, change, connected, healthy } => {
                self.change(member(number), change, connected, healthy)
            }
            Step::Transfer { member: number, to } => self.transfer(member(number), member(to)),
            Step::Busy { member: number, inputs } => {
                let at = member(number);
                self.members[at].busy = inputs;
                Ok(())
            }
            _ => self.trouble(step),
        }
    }

    fn trouble(&mut self, step: Step) -> Verdict {
        let member = |number: u8| self.member(number);
        match step {
            Step::Crash { member: number, survived, torn } => {
                self.crash(member(number), survived.into(), torn.into());
            }
            Step::Stop { member: number, survived } => {
                let at = member(number);
                self.members[at].stops = self.members[at].replica.as_ref().map(|_| survived.into());
                self.input(at, Input::Stop)?;
            }
            Step::Restart { member: number } => {
                let at = member(number);
                if self.members[at].invited && self.members[at].replica.is_none() {
                    self.start(at)?;
                }
            }
            Step::Isolate { member: number, writes } => {
                let at = member(number);
                let others = (0..MEMBERS_MAX).filter(|other| *other != at);
                self.cut.extend(others.flat_map(|other| [(at, other), (other, at)]));
                (0..writes).try_for_each(|key| self.propose(at, Request::Put { key }))?;
            }
            Step::Cut { from, to } => {
                let link = (member(from), member(to));
                self.cut.insert(link);
            }
            Step::Join => self.cut.clear(),
            Step::Calm { ticks } => self.calm(ticks.into())?,
            other => unreachable!("{other:?} is no trouble"),
        }
        Ok(())
    }

    pub fn member(&self, number: u8) -> usize {
        if number == LEADER { self.leader() } else { usize::from(number) % self.members.len() }
    }

    /// Of those who lead or believe they do, the one of the latest term.
    fn leader(&self) -> usize {
        let term = |at: &usize| {
            let status = self.members[*at].replica.as_ref().map(Replica::status);
            status.filter(|status| status.leader == id(*at)).map(|status| status.term)
        };
        (0..self.members.len()).max_by_key(term).expect("there are members")
    }

    pub fn tick(&mut self, at: usize) -> Verdict {
        if self.members[at].replica.is_none() {
            return Ok(());
        }
        self.laws.ticked(id(at));
        let now = self.members[at].now + u64::from(self.setup.heartbeat_ms);
        self.members[at].now = now;
        self.input(at, Input::Tick { now: Millis(now) })
    }

    pub fn deliver(&mut self, at: usize, again: bool) -> Verdict {
        if at >= self.flying.len() {
            return Ok(());
        }
        let Flying { to, bytes, .. } = &self.flying[at];
        let (to, message) = (*to, Message::decode(bytes).expect("as it was encoded"));
        // A proposal that arrives twice is replicated twice.
        if !again || message.kind() == "propose" {
            self.flying.remove(at);
        }
        let from = message.from();
        self.input_from(to, from, Input::Message(message))
    }

    /// The sender's word counts for nothing if the receiver knows that it was removed.
    fn input_from(&mut self, at: usize, from: MemberId, input: Input) -> Verdict {
        let Some(replica) = self.members[at].replica.as_ref() else { return Ok(()) };
        if !self.laws.knows_removal(id(at), from) {
            return self.input(at, input);
        }
        let state = if let Input::Snapshot { state, .. } = &input { Some(state.0.applied()) } else { None };
        let (status, told) = (replica.status(), self.members[at].out.len());
        self.members[at].busy = self.members[at].busy.max(1);
        self.input(at, input)?;
        let member = &self.members[at];
        let ignored = match state {
            // What came before in the turn is worked off first.
            Some(index) => member.out.last() == Some(&Output::DropSnapshot { index }),
            None => member.out.len() == told && member.replica.as_ref().map(Replica::status) == Some(status),
        };
        self.laws.require(Law::RemovedIgnored, ignored, || format!("{} listens to {from}", id(at)))
    }

    fn reset(&mut self, from: usize, to: usize) -> Verdict {
        self.flying.retain(|flying| (flying.from, flying.to) != (from, to));
        if from == to { Ok(()) } else { self.input(from, Input::Unreachable(id(to))) }
    }

    pub fn parcel(&mut self, at: usize, fate: Fate) -> Verdict {
        if at >= self.parcels.len() {
            return Ok(());
        }
        let mut parcel = self.parcels.remove(at);
        let Parcel { from, run, to, reported, .. } = parcel;
        let comes = fate != Fate::IsLost && !self.cut.contains(&(from, to)) && self.members[to].replica.is_some();
        let arrives = comes && self.disks[to].receive(&parcel.state);
        if arrives {
            let message = Message::decode(&parcel.bytes).expect("as it was encoded");
            let state = parcel.state.clone();
            self.input_from(to, message.from(), Input::Snapshot { message, state })?;
        }
        let delivered = arrives && fate != Fate::ArrivesUntold;
        if !reported {
            self.reports.push(Report { from, run, to, delivered });
        }
        if arrives && fate == Fate::ArrivesTwice {
            parcel.reported = true;
            self.parcels.push(parcel);
        }
        Ok(())
    }

    pub fn report(&mut self, at: usize) -> Verdict {
        if at >= self.reports.len() {
            return Ok(());
        }
        let Report { from, run, to, delivered } = self.reports.remove(at);
        self.laws.tally.lost += usize::from(!delivered);
        // Who sent it may have ended since.
        if self.members[from].starts != run || (!delivered && self.plant == Some(Plant::LossesSwallowed)) {
            return Ok(());
        }
        self.input(from, Input::SnapshotSent { to: id(to), delivered })
    }

    pub fn post(&mut self, parcel: Parcel) {
        self.parcels.push(parcel);
        if self.parcels.len() > PARCELS_MAX {
            let Parcel { from, run, to, reported, .. } = self.parcels.remove(0);
            if !reported {
                self.reports.push(Report { from, run, to, delivered: false });
            }
        }
    }

    pub fn send(&mut self, flying: Flying) {
        if !self.cut.contains(&(flying.from, flying.to)) {
            self.flying.push(flying);
        }
        if self.flying.len() > FLYING_MAX {
            self.flying.remove(0);
        }
    }

    pub fn write(&mut self, at: usize, batches: usize) -> Verdict {
        let before = self.disks[at].state().0.applied();
        let persisted = self.disks[at].complete(batches);
        if self.disks[at].state().0.applied() > before {
            self.laws.tally.checkpoints += 1;
            self.laws.logs_match(id(at), &self.disks[at])?;
        }
        match persisted {
            // It was reported when it was handed over.
            Some(persist) if self.members[at].reported_early >= Some(persist) => Ok(()),
            Some(persist) => self.input(at, Input::Persisted(persist)),
            None => Ok(()),
        }
    }

    fn checkpoint(&mut self, at: usize) -> Verdict {
        let member = &self.members[at];
        // Amid a turn the disk does not know yet what was decided in it: the shell hands that over first.
        let Some(replica) = member.replica.as_ref().filter(|_| !member.in_turn) else { return Ok(()) };
        let state = State(Box::new(replica.machine().clone()));
        if state.0.applied().0 == 0 {
            return Ok(());
        }
        self.laws.same_state(id(at), &state.0)?;
        let covered = self.disks[at].covers(&state);
        self.laws.require(Law::StateCommitted, covered, || format!("{} is at {state:?}, its disk is not", id(at)))?;
        self.disks[at].checkpoint(state);
        Ok(())
    }

    pub fn propose(&mut self, at: usize, request: Request) -> Verdict {
        let Some(replica) = &self.members[at].replica else { return Ok(()) };
        self.tickets += 1;
        let command = request.command(self.tickets, replica.machine().store.revision());
        let ticket = Ticket(self.tickets);
        self.laws.asked(id(at), ticket, laws::Request::Write, self.request_ticks());
        self.input(at, Input::Propose(Proposal { ticket, trace: TraceId(ticket.0), command }))
    }

    pub fn read(&mut self, at: usize) -> Verdict {
        let Some(replica) = &self.members[at].replica else { return Ok(()) };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let applied = replica.machine().applied();
        self.laws.asked(id(at), ticket, laws::Request::Read, self.request_ticks());
        if self.plant == Some(Plant::ReadsUnconfirmed) {
            return self.laws.read_ready(id(at), ticket, Ok(()), applied);
        }
        self.input(at, Input::Read { ticket })
    }

    /// How long a request may wait, in ticks.
    pub fn request_ticks(&self) -> u64 {
        let heartbeat_ms = u64::from(self.setup.heartbeat_ms);
        5_000 / heartbeat_ms + 2 * u64::from(self.setup.election_ticks)
    }

    pub fn crash(&mut self, at: usize, survived: usize, torn: usize) {
        if self.members[at].replica.is_some() {
            self.disks[at].fail(survived, torn);
            self.laws.crashed(id(at), &self.disks[at]);
            let member = &mut self.members[at];
            (member.replica, member.out, member.in_turn, member.stops) = (None, Vec::new(), false, None);
        }
    }
}

pub fn founder(at: usize) -> Founder {
    let mut founder = Founder::founding("", vec![format!("http://m{}:2380", at + 1)], "token");
    founder.id = id(at);
    founder
}
