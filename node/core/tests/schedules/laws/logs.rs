//! Laws of elections and logs.
use detcd_core::{
    event::Role,
    proto::raftpb,
    types::{Index, MemberId, Term},
};

use super::{Agreed, Law, Laws, Verdict};
use crate::disk::{Disk, Log, Stamp};

/// More than half of them.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

impl Laws {
    pub(super) fn role_changed(&mut self, who: MemberId, role: Role, term: Term, disk_at_rest: bool) -> Verdict {
        let run = self.run(who);
        run.candid = role == Role::PreCandidate && disk_at_rest;
        run.leading = (role == Role::Leader).then_some(term);
        if role != Role::Leader {
            return Ok(());
        }
        self.tally.leaders += 1;
        let leader = *self.leaders.entry(term).or_insert(who);
        self.require(Law::OneLeader, leader == who, || format!("{leader} and {who} both lead in term {term}"))?;
        let run = &self.runs[&who];
        let voters = &run.configuration.voters;
        self.require(Law::VoterLeads, voters.contains(&who) && !run.removed, || {
            format!("{who} leads in term {term}; it knows {:?}", run.configuration)
        })?;
        let votes = |voter: &&MemberId| **voter == who || self.votes.get(&(**voter, term)) == Some(&who);
        let votes: Vec<_> = voters.iter().filter(votes).collect();
        self.require(Law::Elected, votes.len() >= quorum(voters.len()), || {
            format!("{who} leads in term {term} with the votes of {votes:?}, the voters are {voters:?}")
        })?;
        let agreed = Index(run.agreed as u64);
        let stamp = self.agreed_stamp(agreed);
        self.require(Law::LeaderHasAll, run.log.before() > agreed || run.log.stamp(agreed) == stamp.as_ref(), || {
            format!("{who} leads in term {term} and lacks entry {agreed}")
        })
    }

    pub(super) fn appended(&mut self, who: MemberId, index: Index, term: Term, hash: u64) -> Verdict {
        let run = self.run(who);
        run.candid = false;
        let replaced = run.log.put(index, term, hash);
        let (stamp, leads) = (*run.log.stamp(index).expect("just put there"), run.leading == Some(term));
        self.tally.truncated += replaced;
        self.require(Law::LeaderAppends, !leads || replaced == 0, || format!("{who} leads and changes entry {index}"))?;
        let first = *self.stamps.entry((index, term)).or_insert(stamp);
        self.require(Law::LogsMatch, first == stamp, || format!("{who} has another entry {index} of term {term}"))
    }

    /// A state that came stands in for the log from here on.
    pub(super) fn taken_in(&mut self, who: MemberId, index: Index, term: Term) -> Verdict {
        let agreed = self.agreed_stamp(index);
        self.require(Law::CommitDurable, agreed.is_some_and(|agreed| agreed.term == term), || {
            format!("{who} takes in a state of {index}/{term}, where there is {agreed:?}")
        })?;
        let run = self.run(who);
        (run.log, run.candid) = (Log::after(index, agreed.unwrap_or_default()), false);
        Ok(())
    }

    /// What stands on a disk is what others know too.
    pub fn logs_match(&self, who: MemberId, disk: &Disk) -> Verdict {
        disk.log().stamps().try_for_each(|(index, stamp)| {
            let first = self.stamps.get(&(index, stamp.term));
            self.require(Law::LogsMatch, first == Some(stamp), || {
                format!("{who} has another entry {index} of term {} on its disk", stamp.term)
            })
        })
    }

    pub fn agreed_stamp(&self, index: Index) -> Option<Stamp> {
        Some(self.agreed.get((index.0 as usize).checked_sub(1)?)?.stamp)
    }

    pub(super) fn committed(&mut self, who: MemberId, index: Index, disks: &[Disk]) -> Verdict {
        while (self.agreed.len() as u64) < index.0 {
            let (run, next) = (&self.runs[&who], Index(self.agreed.len() as u64 + 1));
            let Some(stamp) = run.log.stamp(next).copied() else { break };
            // Who had a say is whom the first to know, its leader, then knew.
            let voters = run.configuration.voters.clone();
            self.agreed.push(Agreed { stamp, voters });
            self.tally.committed += 1;
            self.require_durable(Law::CommitDurable, next, disks)?;
        }
        let (own, agreed) = (self.runs[&who].log.stamp(index).copied(), self.agreed_stamp(index));
        self.require(Law::CommitDurable, own == agreed && own.is_some(), || {
            format!("{who} commits another entry {index} than was agreed on")
        })
    }

    pub(super) fn require_durable(&self, law: Law, index: Index, disks: &[Disk]) -> Verdict {
        let Some(Agreed { stamp, voters }) = (index.0 as usize).checked_sub(1).and_then(|at| self.agreed.get(at))
        else {
            return self.require(law, false, || format!("nothing was agreed on at {index}"));
        };
        let holders = voters.iter().filter(|voter| disks[voter.0 as usize - 1].holds(index, stamp)).count();
        self.require(law, holders >= quorum(voters.len()), || {
            format!("entry {index} is durable on {holders} of {voters:?}")
        })
    }

    /// A message leaves `who`. `now` is the member's term.
    pub fn sent(&mut self, who: MemberId, message: &raftpb::Message, now: Term, disk: &Disk) -> Verdict {
        use raftpb::MessageType::*;
        let from = MemberId(message.from());
        self.require(Law::OwnName, from == who, || {
            format!("{who} sends {:?} in the name of {from}", message.r#type())
        })?;
        let (kind, term, state) = (message.r#type(), Term(message.term()), disk.hard_state());
        let run = &self.runs[&who];
        if kind == MsgPreVote && run.candid {
            let (index, log_term) = (Index(message.index()), Term(message.log_term()));
            let last = run.log.last();
            let ends = (last, run.log.stamp(last).map(|stamp| stamp.term));
            self.require(Law::TailTold, ends == (index, Some(log_term)), || {
                format!("{who} says its log ends at {index}/{log_term}, it ends at {ends:?}")
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
                // In the term in which it is promised, an entry stays as it is; in a later one it may be replaced.
                let stamp = match now == term {
                    true if index < run.log.before() => self.agreed_stamp(index),
                    true => run.log.stamp(index).copied(),
                    false => disk.log().stamp(index).copied(),
                };
                let stands_in = index <= disk.state().0.applied();
                let replaced = now > term && state.term > term;
                let held = stands_in || replaced || stamp.is_some_and(|stamp| disk.holds(index, &stamp));
                state.term >= term && held
            }
            _ => state.term >= term,
        };
        self.require(Law::PromiseDurable, kept, || {
            let (index, last) = (message.index(), disk.log().last());
            format!("{who} sent {kind:?} of term {term}, index {index}; its disk has {state:?}, log to {last}")
        })
    }
}
