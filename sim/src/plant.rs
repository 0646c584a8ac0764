//! Planted bugs: proof that each law can catch something in a running system, and how soon.
//!
//! A bug is a disk that lies, or something wrapped around a replica that breaks its contract. Nothing of this is ever
//! part of a node; `cargo sim run FILE --plant NAME` shows what a law makes of it.
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use detcd_core::{
    consensus::Message,
    machine::{Machine, Response, membership::Member},
    proto::raftpb::{self, ConfChangeType, EntryType},
    replica::{Answer, ChangeRequest, Input, Output, Proposal, Replica, Status},
    types::Ticket,
    watch::What,
};
use detcd_node::driver::Step;
use prost::Message as _;

use crate::{
    history::NodeNumber,
    seed::Seed,
    world::cluster::{Cluster, Wrap},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// Every disk says "synced" and syncs nothing.
    LyingDisk,
    /// One in some syncs does nothing: the next one of that file makes up for it.
    SkippedSync,
    /// A batch counts as durable as soon as it is handed to the disk.
    EarlyDurable,
    /// Linearizable reads are served without asking anybody.
    StaleRead,
    /// Now and then a read sees the machine as it was long ago.
    OldView,
    /// A candidate takes a refused vote for a granted one.
    WonVotes,
    /// The vote never gets to the disk.
    ForgottenVote,
    /// One member changes what it is sent before it stores it.
    AlteredEntry,
    /// One in some watch notices gets lost.
    LostNotice,
    /// One in some watch notices comes twice.
    DoubledNotice,
    /// One in some writes is proposed twice.
    DoubledWrite,
    /// From some time on one member takes no entries any more.
    DeafMember,
    /// Answers wait for the next tick, as if somebody forgot to wake whom they are for.
    MissedWake,
    /// Whoever is added as a learner is added as a voter.
    LearnerAsVoter,
    /// One member takes every change that adds a learner for one that adds a voter.
    AlteredChange,
    /// A member answers at once that a change is done, and then asks for it.
    EarlyChange,
    /// Once somebody was removed nobody is added any more.
    StuckChange,
    /// One member panics.
    Panic,
    /// One member computes for ever.
    Hang,
    /// One member keeps more and more memory.
    Hoard,
    /// What is sent depends on a counter that all of the process shares.
    GlobalCounter,
    /// What is sent first depends on where things lie in memory.
    AddressOrder,
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use clap::ValueEnum;
        f.write_str(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// Counts over all runs of the process: what no simulated node may depend on.
static GLOBAL: AtomicU64 = AtomicU64::new(0);

impl Plant {
    /// What goes around each node's replica.
    pub fn wrap(plant: Option<Plant>, seed: Seed) -> Wrap {
        Arc::new(move |node, replica| match plant {
            None | Some(Plant::LyingDisk | Plant::SkippedSync) => Box::new(replica),
            Some(plant) => Box::new(Broken {
                replica,
                plant,
                node,
                old: None,
                hoard: Vec::new(),
                held: Vec::new(),
                outputs: Vec::new(),
                ticks: 0,
                count: seed.child("plant", node.0 as u64).0 % 16,
                next_ticket: 1 << 60,
            }),
        })
    }

    /// What is not the replica's doing.
    pub fn strike(self, cluster: &Cluster) {
        let one_in = match self {
            Plant::LyingDisk => 1,
            Plant::SkippedSync => 20,
            _ => return,
        };
        cluster.nodes.iter().for_each(|node| node.machine.disk.lie(one_in));
    }
}

/// A replica that breaks its contract in one way.
struct Broken {
    replica: Replica,
    plant: Plant,
    node: NodeNumber,
    /// A view of long ago.
    old: Option<Machine>,
    hoard: Vec<Vec<u8>>,
    /// Outputs held back until the next tick.
    held: Vec<Output>,
    outputs: Vec<Output>,
    ticks: u64,
    /// Counts whatever the bug picks one of.
    count: u64,
    next_ticket: u64,
}

impl Broken {
    /// Whether this is the one in `n` that the bug picks.
    fn picks(&mut self, n: u64) -> bool {
        self.count += 1;
        self.count.is_multiple_of(n)
    }

    /// What takes the whole run down with it.
    fn run_wild(&mut self) {
        if self.node.0 != 2 || self.ticks <= 200 {
            return;
        }
        match self.plant {
            Plant::Panic => panic!("planted"),
            Plant::Hang => loop {
                std::hint::spin_loop();
            },
            // Touched, so that it is really there; grows past the bound within some simulated seconds.
            Plant::Hoard => self.hoard.push(vec![1; 64 << 20]),
            _ => {}
        }
    }

    /// What the replica gets to see instead of `input`.
    fn tamper(&mut self, input: Input, out: &mut Vec<Output>) -> Option<Input> {
        match (self.plant, input) {
            (Plant::StaleRead, Input::Read { ticket }) => {
                out.push(Output::ReadReady { ticket, result: Ok(()) });
                None
            }
            (Plant::WonVotes, Input::Message(message)) if message.kind().ends_with("vote_response") => {
                Some(Input::Message(altered(&message, |message| message.reject = Some(false))))
            }
            (Plant::AlteredEntry, Input::Message(message))
                if self.node.0 == 2 && message.kind() == "append" && self.picks(50) =>
            {
                Some(Input::Message(altered(&message, alter_values)))
            }
            (Plant::DeafMember, Input::Message(message))
                if self.node.0 == 3 && message.kind() == "append" && self.ticks > 300 =>
            {
                None
            }
            (Plant::DoubledWrite, Input::Propose(proposal)) if self.picks(100) => {
                self.next_ticket += 1;
                let again = Proposal { ticket: Ticket(self.next_ticket), ..proposal.clone() };
                self.replica.step(Input::Propose(again), out);
                Some(Input::Propose(proposal))
            }
            (Plant::LearnerAsVoter, Input::Change { ticket, trace, change: ChangeRequest::Add(member), peers }) => {
                let change = ChangeRequest::Add(Member { is_learner: false, ..member });
                Some(Input::Change { ticket, trace, change, peers })
            }
            (Plant::AlteredChange, Input::Message(message)) if self.node.0 == 2 && message.kind() == "append" => {
                Some(Input::Message(altered(&message, learners_to_voters)))
            }
            (Plant::EarlyChange, Input::Change { ticket, trace, change, peers }) => {
                let (machine, term) = (self.replica.machine(), self.replica.status().term);
                let response = Response::Members(machine.membership.clone());
                let answer = Answer { result: Ok(response), revision: machine.store.revision(), term };
                out.push(Output::Respond { ticket, answer });
                self.next_ticket += 1;
                Some(Input::Change { ticket: Ticket(self.next_ticket), trace, change, peers })
            }
            (Plant::StuckChange, Input::Change { change: ChangeRequest::Add(_), .. })
                if self.replica.machine().membership.removed().next().is_some() =>
            {
                None
            }
            (_, input) => Some(input),
        }
    }

    /// What the driver gets to see instead of the replica's outputs.
    fn spoil(&mut self, outputs: &mut Vec<Output>, out: &mut Vec<Output>) {
        if self.plant == Plant::GlobalCounter && GLOBAL.fetch_add(1, Relaxed) % 1_000 == 999 {
            outputs.retain(|output| !matches!(output, Output::Send(_)));
        }
        if self.plant == Plant::AddressOrder {
            by_address(outputs);
        }
        for output in outputs.drain(..) {
            match (self.plant, output) {
                (Plant::EarlyDurable, Output::Persist(persist)) => {
                    let (id, sync) = (persist.id, persist.sync);
                    // The disk still gets it, but nobody waits.
                    out.push(Output::Persist(detcd_core::replica::Persist { sync: false, ..persist }));
                    if sync {
                        self.replica.step(Input::Persisted(id), out);
                        out.push(Output::Note(detcd_core::event::NodeEvent::Persisted { persist: id }));
                    }
                }
                (Plant::ForgottenVote, Output::Persist(mut persist)) => {
                    if let Some(state) = &mut persist.hard_state {
                        state.vote = detcd_core::types::MemberId(0);
                    }
                    out.push(Output::Persist(persist));
                }
                (Plant::LostNotice, Output::Notify(notice)) => {
                    let lost = matches!(notice.what, What::Events(_)) && self.picks(40);
                    if !lost {
                        out.push(Output::Notify(notice));
                    }
                }
                (Plant::DoubledNotice, Output::Notify(notice)) => {
                    if matches!(notice.what, What::Events(_)) && self.picks(40) {
                        out.push(Output::Notify(notice.clone()));
                    }
                    out.push(Output::Notify(notice));
                }
                (Plant::MissedWake, output @ (Output::Respond { .. } | Output::ReadReady { .. })) if self.picks(10) => {
                    self.held.push(output);
                }
                (_, output) => out.push(output),
            }
        }
    }
}

impl Step for Broken {
    fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        if let Input::Tick { .. } = input {
            self.ticks += 1;
            self.run_wild();
            out.append(&mut self.held);
            if self.ticks.is_multiple_of(20) {
                self.old = Some(self.replica.machine().clone());
            }
        }
        let Some(input) = self.tamper(input, out) else { return };
        let mut outputs = std::mem::take(&mut self.outputs);
        self.replica.step(input, &mut outputs);
        self.spoil(&mut outputs, out);
        self.outputs = outputs;
    }

    fn machine(&self) -> &Machine {
        match &self.old {
            Some(old) if self.plant == Plant::OldView && self.replica.machine().applied().0.is_multiple_of(8) => old,
            _ => self.replica.machine(),
        }
    }

    fn status(&self) -> Status {
        self.replica.status()
    }

    fn has_work(&self) -> bool {
        self.replica.has_work()
    }
}

/// The message with something else in it.
fn altered(message: &Message, alter: impl FnOnce(&mut raftpb::Message)) -> Message {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    let mut message = raftpb::Message::decode(&bytes[..]).expect("our own bytes");
    alter(&mut message);
    Message::decode(&message.encode_to_vec()).expect("a valid message")
}

/// Changes the last byte of what a put writes, so that the entry still makes sense.
fn alter_values(message: &mut raftpb::Message) {
    for entry in &mut message.entries {
        let Some(data) = &entry.data else { continue };
        let Ok(mut request) = detcd_core::proto::etcdserverpb::InternalRaftRequest::decode(data.clone()) else {
            continue;
        };
        if let Some(put) = &mut request.put {
            put.value = [&put.value[..], b"!"].concat().into();
            entry.data = Some(request.encode_to_vec().into());
        }
    }
}

/// Adds as voters whoever is to be added as a learner.
fn learners_to_voters(message: &mut raftpb::Message) {
    for entry in message.entries.iter_mut().filter(|entry| entry.r#type() == EntryType::EntryConfChange) {
        let Some(data) = &entry.data else { continue };
        let Ok(mut change) = raftpb::ConfChange::decode(data.clone()) else { continue };
        if let (ConfChangeType::ConfChangeAddLearnerNode, Some(context)) = (change.r#type(), &change.context) {
            let text = String::from_utf8_lossy(context).replace("\"isLearner\":true", "\"isLearner\":false");
            change.context = Some(text.into_bytes().into());
            change.set_type(ConfChangeType::ConfChangeAddNode);
            entry.data = Some(change.encode_to_vec().into());
        }
    }
}

/// Sends in the order of addresses: as if somebody had iterated over a map keyed by pointers.
fn by_address(outputs: &mut [Output]) {
    let (mut places, mut sends) = (Vec::new(), BTreeMap::new());
    for (place, output) in outputs.iter().enumerate() {
        if let Output::Send(message) = output {
            places.push(place);
            let boxed = Box::new(message.clone());
            // Leaked on purpose: an address that is used again would come out the same.
            let address = std::ptr::from_ref(Box::leak(boxed)) as usize;
            sends.insert(address.rotate_left(40), message.clone());
        }
    }
    for (place, message) in places.into_iter().zip(sends.into_values()) {
        outputs[place] = Output::Send(message);
    }
}
