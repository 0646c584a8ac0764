//! What must hold whatever happens: a watcher that hears of every event and names the law that broke.
//!
//! Nothing here is taken from the core but its events: logs, quorums and clients are kept a second time, plainly.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Add,
};

use detcd_core::{
    event::{NodeEvent, Role},
    proto::raftpb,
    replica::Answer,
    types::{Digest, Index, MemberId, RequestId, Revision, Term, Ticket},
};

use crate::disk::{Disk, Stamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// A term has one leader at most.
    OneLeader,
    /// A leader's log holds all that was agreed on before.
    LeaderHasAll,
    /// A leader appends to its log and changes nothing in it.
    LeaderAppends,
    /// Logs with the same term at the same index are the same up to there.
    LogsMatch,
    /// What is committed is durable on a quorum, and never differs.
    CommitDurable,
    /// At the same applied index all members are in the same state.
    OneState,
    /// A member applies entry after entry.
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
    /// Who would stand for election says truly where its log ends.
    TailTold,
    /// A read sees what was acknowledged, or read, before it was asked.
    ReadFresh,
    /// A ticket is answered at most once.
    AnsweredOnce,
    /// A ticket is answered, in time or when the member stops.
    Answered,
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

/// How much happened, so that a run which tested nothing cannot pass for a good one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub leaders: usize,
    pub committed: usize,
    pub truncated: usize,
    pub acknowledged: usize,
    pub refused: usize,
    pub reads_served: usize,
    pub reads_refused: usize,
    pub starts: usize,
    pub stalls: usize,
}

impl Add for Tally {
    type Output = Tally;

    fn add(self, other: Tally) -> Tally {
        Tally {
            leaders: self.leaders + other.leaders,
            committed: self.committed + other.committed,
            truncated: self.truncated + other.truncated,
            acknowledged: self.acknowledged + other.acknowledged,
            refused: self.refused + other.refused,
            reads_served: self.reads_served + other.reads_served,
            reads_refused: self.reads_refused + other.reads_refused,
            starts: self.starts + other.starts,
            stalls: self.stalls + other.stalls,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    term: Term,
    request: RequestId,
    revision: Revision,
    digest: Digest,
}

/// Whoever waits for an answer, and what a read must at least have seen.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    Write,
    Read { floor: Index },
}

pub struct Laws {
    /// Laws that are not looked at: a planted bug may have to get past one to prove the next.
    blind: Vec<Law>,
    quorum: usize,
    leaders: BTreeMap<Term, MemberId>,
    stamps: BTreeMap<(Index, Term), Stamp>,
    /// Every member's log in memory, and the terms it leads in.
    logs: BTreeMap<MemberId, Vec<Stamp>>,
    leading: BTreeMap<MemberId, Term>,
    /// Members that would stand for election, and whose log is at rest since before.
    candid: BTreeSet<MemberId>,
    agreed: Vec<Stamp>,
    states: Vec<State>,
    applied: BTreeMap<MemberId, Index>,
    applied_at: BTreeMap<RequestId, Index>,
    refused_for_good: BTreeSet<RequestId>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    waiting: BTreeMap<(MemberId, Ticket), Waiting>,
    /// What the next answer says that a member acknowledged.
    acknowledged: BTreeMap<MemberId, Index>,
    /// Everything up to here some client knows of.
    known: Index,
    pub tally: Tally,
}

impl Laws {
    /// `founding` is the log that every member begins with, all of it agreed on.
    pub fn new(members: usize, founding: &Disk, blind: Vec<Law>) -> Laws {
        let stamps = founding.stamps().iter().zip(1..);
        Laws {
            blind,
            quorum: members / 2 + 1,
            leaders: BTreeMap::new(),
            stamps: stamps.map(|(stamp, index)| ((Index(index), stamp.term), *stamp)).collect(),
            logs: BTreeMap::new(),
            leading: BTreeMap::new(),
            candid: BTreeSet::new(),
            agreed: founding.stamps().to_vec(),
            states: Vec::new(),
            applied: BTreeMap::new(),
            applied_at: BTreeMap::new(),
            refused_for_good: BTreeSet::new(),
            votes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            known: Index(0),
            tally: Tally::default(),
        }
    }

    fn require(&self, law: Law, holds: bool, what: impl FnOnce() -> String) -> Verdict {
        if holds || self.blind.contains(&law) { Ok(()) } else { Err(Violation { law, what: what() }) }
    }

    pub fn started(&mut self, who: MemberId, disk: &Disk) {
        self.tally.starts += 1;
        self.logs.insert(who, disk.stamps().to_vec());
        self.applied.insert(who, Index(0));
        self.leading.remove(&who);
        self.candid.remove(&who);
    }

    /// Whoever waits there waits in vain: they know nothing.
    pub fn crashed(&mut self, who: MemberId) {
        self.waiting.retain(|(member, _), _| *member != who);
    }

    pub fn stopped(&mut self, who: MemberId) -> Verdict {
        let left = self.waiting.keys().filter(|(member, _)| *member == who).count();
        self.require(Law::Answered, left == 0, || format!("{who} stopped and left {left} tickets unanswered"))
    }

    pub fn asked_to_write(&mut self, who: MemberId, ticket: Ticket) {
        self.waiting.insert((who, ticket), Waiting::Write);
    }

    pub fn asked_to_read(&mut self, who: MemberId, ticket: Ticket) {
        self.waiting.insert((who, ticket), Waiting::Read { floor: self.known });
    }

    pub fn all_answered(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn require_recovered(&self, recovered: bool, what: impl FnOnce() -> String) -> Verdict {
        let waiting = &self.waiting;
        self.require(Law::Answered, self.all_answered(), || format!("{waiting:?} are never answered"))?;
        self.require(Law::Recovers, recovered, what)
    }

    pub fn halted(&self, who: MemberId, why: &dyn fmt::Display) -> Verdict {
        self.require(Law::Lives, false, || format!("{who} halted: {why}"))
    }

    pub fn note(&mut self, who: MemberId, event: &NodeEvent, disks: &[Disk]) -> Verdict {
        match *event {
            NodeEvent::RoleChanged { role, term, .. } => {
                self.candid.remove(&who);
                if role == Role::PreCandidate && disks[who.0 as usize - 1].waited_for() == 0 {
                    self.candid.insert(who);
                }
                self.role_changed(who, role, term)
            }
            NodeEvent::Appended { index, term, hash } => self.appended(who, index, term, hash),
            NodeEvent::Committed { index } => self.committed(who, index, disks),
            NodeEvent::Applied { index, term, request, revision, digest } => {
                self.applied(who, index, State { term, request, revision, digest })
            }
            NodeEvent::Acknowledged { request, index } => self.acknowledged(who, request, index, disks),
            NodeEvent::Refused { request, definite: true } => {
                self.refused_for_good.insert(request);
                let applied = self.applied_at.get(&request).copied();
                self.require(Law::RefusedForGood, applied.is_none(), || format!("{request} is applied at {applied:?}"))
            }
            NodeEvent::DiskStalled { .. } => {
                self.tally.stalls += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn role_changed(&mut self, who: MemberId, role: Role, term: Term) -> Verdict {
        if role != Role::Leader {
            self.leading.remove(&who);
            return Ok(());
        }
        self.tally.leaders += 1;
        self.leading.insert(who, term);
        let leader = *self.leaders.entry(term).or_insert(who);
        self.require(Law::OneLeader, leader == who, || format!("{leader} and {who} both lead in term {term}"))?;
        let (log, agreed) = (&self.logs[&who], self.agreed.len());
        let has_all = log.get(agreed - 1) == self.agreed.last();
        self.require(Law::LeaderHasAll, has_all, || format!("{who} leads in term {term} and lacks entry {agreed}"))
    }

    fn appended(&mut self, who: MemberId, index: Index, term: Term, hash: u64) -> Verdict {
        self.candid.remove(&who);
        let log = self.logs.get_mut(&who).expect("it started");
        let (at, len) = (index.0 as usize - 1, log.len());
        assert!(at <= len, "entry {index} leaves a gap in the log of {who}");
        log.truncate(at);
        let stamp = Stamp::after(log.last(), term, hash);
        log.push(stamp);
        self.tally.truncated += len - at;
        let leads = self.leading.get(&who) == Some(&term);
        self.require(Law::LeaderAppends, !leads || at == len, || format!("{who} leads and changes entry {index}"))?;
        let first = *self.stamps.entry((index, term)).or_insert(stamp);
        self.require(Law::LogsMatch, first == stamp, || format!("{who} has another entry {index} of term {term}"))
    }

    fn committed(&mut self, who: MemberId, index: Index, disks: &[Disk]) -> Verdict {
        let log = self.logs[&who].clone();
        for stamp in log.iter().take(index.0 as usize).skip(self.agreed.len()) {
            self.agreed.push(*stamp);
            self.tally.committed += 1;
            self.require_durable(Law::CommitDurable, Index(self.agreed.len() as u64), disks)?;
        }
        let at = index.0 as usize - 1;
        self.require(Law::CommitDurable, log.get(at) == self.agreed.get(at), || {
            format!("{who} commits another entry {index} than was agreed on")
        })
    }

    fn require_durable(&self, law: Law, index: Index, disks: &[Disk]) -> Verdict {
        let agreed = self.agreed.get(index.0 as usize - 1);
        let holders = disks.iter().filter(|disk| agreed.is_some() && disk.stamp(index) == agreed).count();
        self.require(law, holders >= self.quorum, || {
            format!("entry {index} is durable on {holders} members, a quorum is {}", self.quorum)
        })
    }

    fn applied(&mut self, who: MemberId, index: Index, state: State) -> Verdict {
        let before = self.applied.insert(who, index).expect("it started");
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

    fn acknowledged(&mut self, who: MemberId, request: RequestId, index: Index, disks: &[Disk]) -> Verdict {
        self.known = self.known.max(index);
        self.acknowledged.insert(who, index);
        let applied = self.applied_at.get(&request).copied();
        self.require(Law::AckDurable, applied == Some(index), || {
            format!("{request} is acknowledged at {index} and applied at {applied:?}")
        })?;
        self.require_durable(Law::AckDurable, index, disks)
    }

    pub fn answered(&mut self, who: MemberId, ticket: Ticket, answer: &Answer) -> Verdict {
        let waiting = self.waiting.remove(&(who, ticket));
        let once = matches!(waiting, Some(Waiting::Write));
        self.require(Law::AnsweredOnce, once, || format!("{who} answers write {ticket}, which waits as {waiting:?}"))?;
        let Some(index) = self.acknowledged.remove(&who) else {
            self.tally.refused += 1;
            return self.require(Law::AckDurable, answer.result.is_err(), || format!("{who} made up {answer:?}"));
        };
        self.tally.acknowledged += 1;
        let revision = self.states[index.0 as usize - 1].revision;
        self.require(Law::AckDurable, answer.revision == revision, || {
            format!("{who} answers {ticket} with revision {}, at {index} it was {revision}", answer.revision)
        })
    }

    /// `applied` is where the machine stands from which the read is served.
    pub fn read_ready(&mut self, who: MemberId, ticket: Ticket, served: bool, applied: Index) -> Verdict {
        let waiting = self.waiting.remove(&(who, ticket));
        let Some(Waiting::Read { floor }) = waiting else {
            return self.require(Law::AnsweredOnce, false, || format!("{who} answers read {ticket}: {waiting:?}"));
        };
        if !served {
            self.tally.reads_refused += 1;
            return Ok(());
        }
        self.tally.reads_served += 1;
        self.known = self.known.max(applied);
        self.require(Law::ReadFresh, applied >= floor, || {
            format!("{who} serves read {ticket} at {applied}, but {floor} was known before it was asked")
        })
    }

    /// A message leaves `who`. `now` is the member's term.
    pub fn sent(&mut self, who: MemberId, message: &raftpb::Message, now: Term, disk: &Disk) -> Verdict {
        use raftpb::MessageType::*;
        let (kind, term, state) = (message.r#type(), Term(message.term()), disk.durable().hard_state);
        if kind == MsgPreVote && self.candid.contains(&who) {
            let (index, log_term) = (message.index(), Term(message.log_term()));
            let log = &self.logs[&who];
            let ends = (log.len() as u64, log.last().map_or(Term(0), |stamp| stamp.term));
            self.require(Law::TailTold, ends == (index, log_term), || {
                format!("{who} says its log ends at {index}/{log_term}, it ends at {}/{}", ends.0, ends.1)
            })?;
        }
        let voted_for = |candidate: MemberId| state.term > term || (state.term, state.vote) == (term, candidate);
        let kept = match kind {
            // These promise no term: they have none, or one that the sender did not enter yet.
            MsgProp | MsgReadIndex | MsgPreVote | MsgPreVoteResp => true,
            MsgVote => voted_for(who),
            MsgVoteResp if !message.reject() => {
                let candidate = MemberId(message.to());
                let first = *self.votes.entry((who, term)).or_insert(candidate);
                self.require(Law::OneVote, first == candidate, || {
                    format!("{who} voted for {first} and {candidate} in term {term}")
                })?;
                voted_for(candidate)
            }
            // With index 0 it only tells a leader of old that there is a newer term.
            MsgAppResp if !message.reject() && message.index() > 0 => {
                let index = Index(message.index());
                // In the term in which it is promised, an entry stays as it is; later another leader may replace it.
                let as_promised = || disk.stamp(index) == self.logs[&who].get(index.0 as usize - 1);
                state.term >= term && disk.stamp(index).is_some() && (now != term || as_promised())
            }
            _ => state.term >= term,
        };
        self.require(Law::PromiseDurable, kept, || {
            let index = message.index();
            format!(
                "{who} sent {kind:?} of term {term}, index {index}; its disk has {state:?}, log {:?}",
                disk.stamps().len()
            )
        })
    }
}
