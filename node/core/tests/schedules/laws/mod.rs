//! What must hold whatever happens: a watcher that hears of every event and names the law that broke.
//!
//! Nothing here is taken from the core but its events: logs, quorums, members and clients are kept a second time,
//! plainly. Each file is about some of the laws.
mod clients;
mod logs;
mod members;
mod tally;
mod watches;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use detcd_core::{
    event::{Members, NodeEvent},
    machine::{Machine, membership::Configuration},
    types::{Digest, Index, MemberId, RequestId, Revision, Term, Ticket},
};

pub use self::{clients::Request, tally::Tally};
use self::{clients::Waiting, watches::Watcher};
use crate::disk::{Disk, Log, Stamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// A term has one leader at most.
    OneLeader,
    /// Who leads has the votes of a quorum of its configuration.
    Elected,
    /// Who leads is a voter, and was not removed.
    VoterLeads,
    /// A leader's log holds all that was agreed on before.
    LeaderHasAll,
    /// A leader appends to its log and changes nothing in it.
    LeaderAppends,
    /// Logs with the same term at the same index are the same up to there.
    LogsMatch,
    /// What is committed is durable on a quorum, and never differs.
    CommitDurable,
    /// A state on disk holds nothing that the log there does not know to be committed.
    StateCommitted,
    /// At the same applied index all members are in the same state.
    OneState,
    /// A member applies entry after entry, or goes forward to a state it was sent.
    AppliedForward,
    /// A request is applied at one index at most.
    AppliedOnce,
    /// What was refused for good is never applied.
    RefusedForGood,
    /// What a client is told is done is durable on a quorum, and as it was told.
    AckDurable,
    /// A member votes once in a term, also across restarts.
    OneVote,
    /// A term, a vote and an entry are durable before a message that promises them leaves.
    PromiseDurable,
    /// A message names who sent it, wherever it came from: a peer takes no other.
    OwnName,
    /// Who would stand for election says truly where its log ends.
    TailTold,
    /// At the same index all members know the same configuration.
    OneConfiguration,
    /// Of two configurations, one after the other, any two quorums share a member.
    QuorumsMeet,
    /// A log on disk holds one change at most that is not known to be committed: or quorums two changes apart could meet.
    OneOpenChange,
    /// Who was removed never returns.
    NoReturn,
    /// Who knows that a member was removed does not listen to it.
    RemovedIgnored,
    /// A change, or a hand-over, that somebody is told is done has been made.
    ToldTrue,
    /// A read sees what was acknowledged, or read, before it was asked.
    ReadFresh,
    /// A ticket is answered at most once.
    AnsweredOnce,
    /// A ticket is answered, in time or when the member stops.
    Answered,
    /// Who watches everything gets every revision once, in order, unless it was compacted away.
    WatchComplete,
    /// What starts from its files tells nobody anything and writes nothing, until something happens.
    StartsQuiet,
    /// Once all works again, one leads, all catch up, and clients are served.
    Recovers,
    /// No member stops for good.
    Lives,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub law: Law,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.law, self.what)
    }
}

pub type Verdict = Result<(), Violation>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    term: Term,
    /// 0 if it is not known: the member took over a state of this index.
    request: RequestId,
    revision: Revision,
    digest: Digest,
}

/// What is known of a member's present run.
#[derive(Debug, Default)]
struct Run {
    /// Its log in memory, or what that was before it was cut.
    log: Log,
    leading: Option<Term>,
    /// It would stand for election, and its log is at rest since before.
    candid: bool,
    applied: Index,
    configuration: Configuration,
    /// It knows that it was removed.
    removed: bool,
    /// What the next answer says that it acknowledged.
    acknowledged: Option<Index>,
    ticks: u64,
    /// So many entries were agreed on when its present turn began: what it does in the turn is noted at its end.
    agreed: usize,
}

/// What was agreed on at an index, and who had a say.
#[derive(Debug, Clone)]
struct Agreed {
    stamp: Stamp,
    voters: Vec<MemberId>,
}

pub struct Laws {
    /// Laws that are not looked at: a planted bug may have to get past one to prove the next.
    blind: Vec<Law>,
    /// As many entries every founder begins with.
    founders: u64,
    runs: BTreeMap<MemberId, Run>,
    leaders: BTreeMap<Term, MemberId>,
    stamps: BTreeMap<(Index, Term), Stamp>,
    agreed: Vec<Agreed>,
    states: Vec<State>,
    applied_at: BTreeMap<RequestId, Index>,
    refused_for_good: BTreeSet<RequestId>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// By the index of the entry that made them.
    configurations: BTreeMap<Index, Configuration>,
    removed: BTreeMap<MemberId, Index>,
    /// Whoever asked for their removal was told that it is done, or they said so: nobody may need them any more.
    dismissed: BTreeSet<MemberId>,
    waiting: BTreeMap<(MemberId, Ticket), Waiting>,
    /// Everything up to here some client knows of.
    known: Index,
    watchers: BTreeMap<MemberId, Watcher>,
    /// The events of each revision, as the first watcher got them.
    history: BTreeMap<Revision, u64>,
    pub tally: Tally,
}

impl Laws {
    /// `founding` is the log that every founder begins with, all of it agreed on.
    pub fn new(founding: &Disk, blind: Vec<Law>) -> Laws {
        let stamps = founding.log().stamps();
        Laws {
            blind,
            founders: founding.log().last().0,
            runs: BTreeMap::new(),
            leaders: BTreeMap::new(),
            stamps: stamps.clone().map(|(index, stamp)| ((index, stamp.term), *stamp)).collect(),
            agreed: stamps.map(|(_, stamp)| Agreed { stamp: *stamp, voters: Vec::new() }).collect(),
            states: Vec::new(),
            applied_at: BTreeMap::new(),
            refused_for_good: BTreeSet::new(),
            votes: BTreeMap::new(),
            configurations: BTreeMap::new(),
            removed: BTreeMap::new(),
            dismissed: BTreeSet::new(),
            waiting: BTreeMap::new(),
            known: Index(0),
            watchers: BTreeMap::new(),
            history: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    pub fn require(&self, law: Law, holds: bool, what: impl FnOnce() -> String) -> Verdict {
        if holds || self.blind.contains(&law) { Ok(()) } else { Err(Violation { law, what: what() }) }
    }

    fn run(&mut self, who: MemberId) -> &mut Run {
        self.runs.get_mut(&who).expect("it started")
    }

    /// A member starts from what its disk holds.
    pub fn started(&mut self, who: MemberId, disk: &Disk) -> Verdict {
        self.tally.starts += 1;
        let machine = &disk.state().0;
        let (configuration, removed) = (machine.membership.configuration(), machine.membership.is_removed(who));
        let (log, applied, open) = (disk.log().clone(), machine.applied(), disk.open_changes());
        self.require(Law::OneOpenChange, open <= 1, || format!("{who} finds {open} changes that are open in its log"))?;
        self.logs_match(who, disk)?;
        if applied > Index(0) {
            self.same_state(who, machine)?;
        }
        let agreed = self.agreed.len();
        self.runs.insert(who, Run { log, applied, configuration, removed, agreed, ..Run::default() });
        Ok(())
    }

    /// A turn begins.
    pub fn turn(&mut self, who: MemberId) {
        self.run(who).agreed = self.agreed.len();
    }

    /// Whoever waits there waits in vain: they know nothing. Nor does anybody know of a term that did not reach the
    /// disk: a sole voter may lead in it, and then once more.
    pub fn crashed(&mut self, who: MemberId, disk: &Disk) {
        self.waiting.retain(|(member, _), _| *member != who);
        let term = disk.hard_state().term;
        let forgotten: BTreeSet<_> = self.leaders.extract_if(.., |t, leader| *t > term && *leader == who).collect();
        self.stamps.retain(|(index, term), stamp| {
            !forgotten.contains(&(*term, who)) || disk.log().stamp(*index) == Some(&*stamp)
        });
    }

    /// It said its last word.
    pub fn ended(&mut self, who: MemberId) -> Verdict {
        let left = self.waiting.keys().filter(|(member, _)| *member == who).count();
        self.require(Law::Answered, left == 0, || format!("{who} ended and left {left} tickets unanswered"))
    }

    pub fn halted(&self, who: MemberId, why: &dyn fmt::Display) -> Verdict {
        self.require(Law::Lives, false, || format!("{who} halted: {why}"))
    }

    pub fn note(&mut self, who: MemberId, event: &NodeEvent, disks: &[Disk]) -> Verdict {
        match event {
            NodeEvent::RoleChanged { role, term, .. } => {
                let at_rest = disks[who.0 as usize - 1].waited_for() == 0;
                self.role_changed(who, *role, *term, at_rest)
            }
            NodeEvent::Appended { index, term, hash } => self.appended(who, *index, *term, *hash),
            NodeEvent::Committed { index } => self.committed(who, *index, disks),
            NodeEvent::Applied { index, term, request, revision, digest } => {
                let state = State { term: *term, request: *request, revision: *revision, digest: *digest };
                self.applied(who, *index, state)
            }
            NodeEvent::ConfigurationApplied { index, voters, learners, valid } => {
                let configuration = Configuration { voters: voters.clone(), learners: learners.clone() };
                self.configuration_applied(who, *index, configuration, *valid)
            }
            NodeEvent::PersistStarted { snapshot: Some((index, term)), .. } => self.taken_in(who, *index, *term),
            NodeEvent::SnapshotInstalled { index, members, .. } => {
                let Members { voters, learners, .. } = &**members;
                let configuration = Configuration { voters: voters.clone(), learners: learners.clone() };
                self.installed(who, *index, configuration)
            }
            NodeEvent::Acknowledged { request, index } => self.acknowledged(who, *request, *index, disks),
            NodeEvent::Refused { request, definite: true } => {
                self.refused_for_good.insert(*request);
                let applied = self.applied_at.get(request).copied();
                self.require(Law::RefusedForGood, applied.is_none(), || format!("{request} is applied at {applied:?}"))
            }
            NodeEvent::DiskStalled { .. } => {
                self.tally.stalls += 1;
                Ok(())
            }
            NodeEvent::LogCut { .. } => {
                self.tally.cuts += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn applied(&mut self, who: MemberId, index: Index, state: State) -> Verdict {
        let before = std::mem::replace(&mut self.run(who).applied, index);
        self.require(Law::AppliedForward, index.0 == before.0 + 1, || format!("{who}: {index} after {before}"))?;
        let at = index.0 as usize - 1;
        if at == self.states.len() {
            self.states.push(state);
        }
        let first = self.states[at];
        self.require(Law::OneState, first == state, || format!("{who} at {index}: {state:?}, before it: {first:?}"))?;
        let request = state.request;
        if request == RequestId(0) {
            return Ok(());
        }
        let first = *self.applied_at.entry(request).or_insert(index);
        self.require(Law::AppliedOnce, first == index, || format!("{request} is applied at {first} and {index}"))?;
        let refused = self.refused_for_good.contains(&request);
        self.require(Law::RefusedForGood, !refused, || format!("{request} was refused and is applied at {index}"))
    }

    /// A state that took a machine's place.
    fn installed(&mut self, who: MemberId, index: Index, configuration: Configuration) -> Verdict {
        self.tally.installs += 1;
        let before = std::mem::replace(&mut self.run(who).applied, index);
        self.require(Law::AppliedForward, index > before, || {
            format!("{who} goes from {before} to a state of {index}")
        })?;
        self.knows(who, index, configuration)
    }

    /// A state that is passed on, kept, or started from, is the one that all had at its index.
    pub fn same_state(&self, who: MemberId, machine: &Machine) -> Verdict {
        let (term, revision, digest) = (machine.applied_term(), machine.store.revision(), machine.digest());
        let index = machine.applied();
        let first = self.states.get(index.0 as usize - 1).map(|state| (state.term, state.revision, state.digest));
        self.require(Law::OneState, first == Some((term, revision, digest)), || {
            format!("{who} has a state of {index}: {term}, {revision}, {digest}; it was {first:?}")
        })?;
        let (configuration, known) = (machine.membership.configuration(), self.configuration_at(index));
        self.require(Law::OneConfiguration, known == Some(&configuration), || {
            format!("{who} has a state of {index} with {configuration:?}; it was {known:?}")
        })
    }
}
