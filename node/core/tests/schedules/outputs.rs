//! What members say and do, and what becomes of it.
use detcd_core::{
    event::NodeEvent,
    proto::raftpb,
    replica::{Input, Output},
    types::{PersistId, Ticket},
};
use prost::Message as _;

use crate::{
    cluster::{Cluster, Flying, Parcel, id},
    laws::{Request, Verdict},
    plants::Plant,
};

/// What is to be done once all outputs of a turn are started.
#[derive(Default)]
struct Afterwards {
    /// Batches that are reported durable at once.
    early: Vec<PersistId>,
    watch: bool,
    /// The member said its last word.
    ended: bool,
}

impl Cluster {
    pub fn input(&mut self, at: usize, input: Input) -> Verdict {
        let member = &mut self.members[at];
        let Some(replica) = &mut member.replica else { return Ok(()) };
        if !std::mem::replace(&mut member.in_turn, true) {
            self.laws.turn(id(at));
        }
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

    /// Ends a member's turn.
    fn settle(&mut self, at: usize) -> Verdict {
        let member = &mut self.members[at];
        let Some(replica) = &mut member.replica else { return Ok(()) };
        // What a step leaves undone waits for the next one: other inputs may come first.
        replica.step(Input::Settle, &mut member.out);
        self.start_outputs(at)
    }

    /// A turn's outputs are started, in order.
    pub fn start_outputs(&mut self, at: usize) -> Verdict {
        let mut afterwards = Afterwards::default();
        self.members[at].in_turn = false;
        for output in std::mem::take(&mut self.members[at].out) {
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{} {output:?}", id(at)));
            }
            self.start_output(at, output, &mut afterwards)?;
        }
        self.laws.on_time(id(at))?;
        if afterwards.ended {
            self.laws.ended(id(at))?;
            self.crash(at, self.members[at].stops.unwrap_or(0), 0);
        }
        if afterwards.watch {
            self.watch(at)?;
        }
        for persist in afterwards.early {
            self.members[at].reported_early = Some(persist);
            self.input(at, Input::Persisted(persist))?;
        }
        Ok(())
    }

    fn start_output(&mut self, at: usize, output: Output, afterwards: &mut Afterwards) -> Verdict {
        let who = id(at);
        let replica = self.members[at].replica.as_ref().expect("it just stepped");
        match output {
            Output::Note(event) => {
                self.laws.note(who, &event, &self.disks)?;
                if let NodeEvent::ConfigurationApplied { .. } = event {
                    self.invite();
                }
            }
            Output::Send(message) => {
                let term = replica.status().term;
                let mut bytes = Vec::with_capacity(message.encoded_len());
                message.encode(&mut bytes);
                let sent = raftpb::Message::decode(&bytes[..]).expect("etcd could read it");
                self.laws.sent(who, &sent, term, &self.disks[at])?;
                let to = message.to().0 as usize - 1;
                let forged = self.plant.and_then(|plant| plant.forge(&bytes, message.to(), &self.laws));
                for bytes in [bytes].into_iter().chain(forged) {
                    self.send(Flying { from: at, to, bytes });
                }
            }
            Output::SendSnapshot { message, state } => {
                self.laws.same_state(who, &state.0)?;
                self.laws.tally.sent += 1;
                let (to, mut bytes) = (message.to().0 as usize - 1, Vec::new());
                message.encode(&mut bytes);
                self.post(Parcel { from: at, run: self.members[at].starts, to, bytes, state, reported: false });
            }
            Output::DropSnapshot { index } => {
                self.laws.tally.dropped += 1;
                self.disks[at].drop_received(index);
            }
            Output::Persist(mut persist) => {
                if let Some(plant) = self.plant {
                    plant.spoil_batch(&mut persist, self.disks[at].hard_state().commit);
                    if plant.reports_early(&persist) {
                        afterwards.early.push(persist.id);
                    }
                }
                let stamp = persist.snapshot.as_ref().map(|mark| self.laws.agreed_stamp(mark.index));
                self.disks[at].start(persist, stamp.map(Option::unwrap_or_default));
            }
            Output::Halt(halt) => self.laws.halted(who, &halt)?,
            Output::Removed => {
                self.laws.said_removed(who)?;
                afterwards.ended = true;
            }
            Output::Stopped => {
                self.laws.tally.stops += 1;
                afterwards.ended = true;
            }
            Output::Discard(_) => {}
            Output::Respond { .. } | Output::ReadReady { .. } | Output::Notify(_) => {
                self.tell_client(at, output, afterwards)?;
            }
        }
        Ok(())
    }

    fn tell_client(&mut self, at: usize, output: Output, afterwards: &mut Afterwards) -> Verdict {
        let who = id(at);
        let machine = self.members[at].replica.as_ref().expect("it just stepped").machine();
        match output {
            Output::Respond { ticket, answer } => {
                let newcomer = self.newcomers.remove(&(at, ticket));
                let definite = answer.result.as_ref().is_err_and(|refusal| refusal.is_definite());
                if let (Some(newcomer), true) = (newcomer, definite) {
                    self.members[newcomer].asked_for = false;
                }
                if self.is_swallowed(at, ticket, answer.result.is_err()) {
                    return Ok(());
                }
                if self.plant == Some(Plant::AnsweredTwice) && self.tickets.is_multiple_of(50) {
                    self.laws.answered(who, ticket, &answer)?;
                }
                self.laws.answered(who, ticket, &answer)
            }
            Output::ReadReady { result: Err(_), .. } if self.plant == Some(Plant::RefusalsSwallowed) => Ok(()),
            Output::ReadReady { ticket, result } => self.laws.read_ready(who, ticket, result, machine.applied()),
            Output::Notify(notice) => {
                let compacted = machine.store.compacted();
                if self.plant == Some(Plant::EventsSwallowed) && notice.revision.0 % 20 == 0 {
                    return Ok(());
                }
                afterwards.watch |= self.laws.notified(who, &notice, compacted)?;
                Ok(())
            }
            other => unreachable!("{other:?} is for no client"),
        }
    }

    /// Whoever is known as a member may start.
    fn invite(&mut self) {
        let known = self.laws.configuration();
        for id in known.voters.iter().chain(&known.learners) {
            self.members[id.0 as usize - 1].invited = true;
        }
    }

    /// Whether a bug that was planted keeps an answer from whoever waits.
    fn is_swallowed(&self, at: usize, ticket: Ticket, refused: bool) -> bool {
        match self.laws.waits_for(id(at), ticket) {
            Some(Request::Change(_)) => refused && self.plant == Some(Plant::ChangesSwallowed),
            Some(Request::Transfer(_)) => self.plant == Some(Plant::TransfersSwallowed),
            _ => false,
        }
    }
}
