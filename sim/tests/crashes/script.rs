//! What a member does, and every state in which a correct one may be found after each part of it.
use std::sync::Arc;

use detcd_core::{format::wal::HardState, replica::Persist, types::Index};

use crate::history::{History, hash_entry};

pub struct Script {
    pub name: String,
    pub history: Arc<History>,
    pub segment_bytes: u64,
    pub actions: Vec<Action>,
}

/// What storage is told to do, one after the other. Numbers are indices of entries.
#[derive(Debug, Clone)]
pub enum Action {
    /// Batches for the log, written at once.
    Append(Vec<Persist>),
    /// Write what nobody waited for.
    Flush,
    /// Write a checkpoint, under names that mean nothing yet.
    Write(u64),
    /// Start from it from now on.
    Adopt(u64),
    /// A state comes from the leader.
    Receive(u64),
    /// It is not needed.
    Drop(u64),
}

/// A member as its files tell. What a log is made of is known by (index, term, hash).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub hard_state: HardState,
    /// The index and term of the state that the log confirms; entries up to it need not be there.
    pub start: (u64, u64),
    /// All entries after `start`.
    pub log: Vec<(u64, u64, u64)>,
    /// What `db` is of. It may be ahead of `start`.
    pub state: u64,
}

/// Every state that the member goes through, and where in these each action ends.
pub struct Course {
    pub members: Vec<Member>,
    ends: Vec<usize>,
}

/// What a crash may leave: one of these states, perhaps with a `db` that is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bounds {
    /// What was promised to be durable.
    pub least: usize,
    /// What was asked for.
    pub most: usize,
    /// What a checkpoint that is being adopted is of.
    pub rising: Option<u64>,
}

impl Member {
    pub fn last(&self) -> u64 {
        self.log.last().map_or(self.start.0, |(index, ..)| *index)
    }

    /// A member whose log was just founded.
    pub fn founded(history: &History) -> Member {
        let founding = history.founding();
        let log = founding.entries.iter().map(|entry| (entry.index, entry.term, hash_entry(entry))).collect();
        Member { hard_state: founding.hard_state, start: (0, 0), log, state: 0 }
    }

    fn put(&mut self, entry: (u64, u64, u64)) {
        assert!(entry.0 > self.start.0 && entry.0 <= self.last() + 1, "a correct run leaves no gap");
        self.log.retain(|(index, ..)| *index < entry.0);
        self.log.push(entry);
    }

    /// A state stands in for the log up to `mark`; if the log holds another entry there, all of it is void.
    fn start_from(&mut self, mark: (u64, u64)) {
        let agrees = self.log.iter().any(|(index, term, _)| (*index, *term) == mark);
        self.log.retain(|(index, ..)| agrees && *index > mark.0);
        self.start = mark;
        self.state = self.state.max(mark.0);
    }
}

impl Course {
    pub fn of(first: Member, actions: &[Action], history: &History) -> Course {
        let mut course = Course { members: vec![first], ends: Vec::new() };
        for action in actions {
            course.act(action, history);
            course.ends.push(course.members.len() - 1);
        }
        course
    }

    fn act(&mut self, action: &Action, history: &History) {
        match action {
            Action::Append(batches) => batches.iter().for_each(|batch| self.append(batch)),
            Action::Adopt(index) if *index > self.now().state => {
                self.then(|member| member.start_from((*index, history.term(*index))));
            }
            _ => {}
        }
    }

    fn append(&mut self, batch: &Persist) {
        if let Some(mark) = &batch.snapshot {
            let hard_state = batch.hard_state.expect("what is taken in is committed");
            self.then(|member| {
                member.start_from((mark.index.0, mark.term.0));
                (member.state, member.hard_state) = (mark.index.0, hard_state);
            });
        }
        for entry in &batch.entries {
            self.then(|member| member.put((entry.index, entry.term, hash_entry(entry))));
        }
        if let Some(hard_state) = batch.hard_state.filter(|_| batch.snapshot.is_none()) {
            self.then(|member| member.hard_state = hard_state);
        }
    }

    fn now(&self) -> &Member {
        self.members.last().expect("there is the first")
    }

    fn then(&mut self, change: impl FnOnce(&mut Member)) {
        let mut next = self.now().clone();
        change(&mut next);
        assert!(next.hard_state.commit <= Index(next.last()), "a correct run commits what it has");
        self.members.push(next);
    }

    /// Given how many actions were completed.
    pub fn bounds(&self, actions: &[Action], completed: usize) -> Bounds {
        let end = |count: usize| if count == 0 { 0 } else { self.ends[count - 1] };
        let kept = |action: &Action| match action {
            Action::Append(batches) => batches.iter().any(|batch| batch.sync),
            Action::Flush | Action::Adopt(_) => true,
            _ => false,
        };
        let least = actions[..completed].iter().rposition(kept).map_or(0, |at| end(at + 1));
        let rising = match actions.get(completed) {
            Some(Action::Adopt(index)) => Some(*index),
            _ => None,
        };
        Bounds { least, most: end((completed + 1).min(actions.len())), rising }
    }

    /// Whether a crash within these bounds may leave the member like this. If not: what could have been left.
    pub fn check(&self, found: &Member, bounds: Bounds) -> Result<(), String> {
        let Bounds { least, most, rising } = bounds;
        let fits = |member: &Member| {
            let ahead = rising.is_some_and(|index| found.state == index.max(member.state));
            *found == Member { state: if ahead { found.state } else { member.state }, ..member.clone() }
        };
        if self.members[least..=most].iter().any(fits) {
            return Ok(());
        }
        let could = self.members[least..=most].iter().map(|member| format!("\n      {member:?}")).collect::<String>();
        Err(format!("found {found:?}\n    which is none of{could}"))
    }
}
