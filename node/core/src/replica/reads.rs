//! Linearizable reads: held until a quorum confirmed the leader after they were asked, and this member has applied
//! all that was committed by then.
//!
//! One round at a time confirms every read that waits when it begins. A round that hears nothing is asked again under
//! a new id: an answer to the old one may be of a leader long deposed.
use std::mem::take;

use bytes::Bytes;

use super::{
    Output,
    io::{parse_read_context, read_context},
};
use crate::{
    error::Refusal,
    event::NodeEvent,
    limits::READS_WAITING_MAX,
    types::{Index, Term, Ticket},
};

struct Asked {
    ticket: Ticket,
    deadline: u64,
}

struct Round {
    id: u64,
    asked_at: u64,
    reads: Vec<Asked>,
}

pub struct Reads {
    /// A round that heard nothing for so long is asked again.
    retry_ticks: u64,
    next_id: u64,
    /// Not part of a round yet.
    waiting: Vec<Asked>,
    round: Option<Round>,
    /// Confirmed: may be served from this index on.
    confirmed: Vec<(Index, Vec<Asked>)>,
}

impl Reads {
    pub fn new(seed: u64, retry_ticks: u64) -> Reads {
        let next_id = crate::machine::hash_bytes(&(!seed).to_le_bytes());
        Reads { retry_ticks, next_id, waiting: Vec::new(), round: None, confirmed: Vec::new() }
    }

    pub fn ask(&mut self, ticket: Ticket, deadline: u64, out: &mut Vec<Output>) {
        let asked = self.round.as_ref().map_or(0, |round| round.reads.len());
        let confirmed = self.confirmed.iter().map(|(_, reads)| reads.len()).sum::<usize>();
        if self.waiting.len() + asked + confirmed >= READS_WAITING_MAX {
            return refuse(vec![Asked { ticket, deadline }], Refusal::TooManyRequests, out);
        }
        self.waiting.push(Asked { ticket, deadline });
    }

    /// The context of a round that begins now, if one should.
    pub fn next_round(&mut self, now: u64, may_ask: bool) -> Option<Vec<u8>> {
        if !may_ask {
            return None;
        }
        let mut reads = match &mut self.round {
            Some(round) if now < round.asked_at + self.retry_ticks => return None,
            Some(_) => self.round.take().expect("just seen").reads,
            None => Vec::new(),
        };
        reads.append(&mut self.waiting);
        if reads.is_empty() {
            return None;
        }
        self.next_id = self.next_id.wrapping_add(1);
        self.round = Some(Round { id: self.next_id, asked_at: now, reads });
        Some(read_context(self.next_id))
    }

    pub fn confirmed(&mut self, context: &Bytes, index: Index, term: Term, out: &mut Vec<Output>) {
        let id = parse_read_context(context);
        if let Some(round) = self.round.take_if(|round| Some(round.id) == id) {
            out.push(Output::Note(NodeEvent::ReadConfirmed { index, term }));
            self.confirmed.push((index, round.reads));
        }
    }

    /// Serves what may be served now.
    pub fn serve(&mut self, applied: Index, out: &mut Vec<Output>) {
        self.confirmed.retain_mut(|(index, reads)| {
            if *index <= applied {
                let ready = reads.drain(..).map(|Asked { ticket, .. }| Output::ReadReady { ticket, result: Ok(()) });
                out.extend(ready);
            }
            !reads.is_empty()
        });
    }

    /// The leader that was asked is no longer the leader.
    pub fn leader_changed(&mut self, out: &mut Vec<Output>) {
        let round = self.round.take().map(|round| round.reads).unwrap_or_default();
        refuse(round, Refusal::LeaderChanged, out);
    }

    pub fn tick(&mut self, now: u64, out: &mut Vec<Output>) {
        let lists = [&mut self.waiting].into_iter();
        let lists = lists.chain(self.round.as_mut().map(|round| &mut round.reads));
        let lists = lists.chain(self.confirmed.iter_mut().map(|(_, reads)| reads));
        for list in lists {
            let late = list.extract_if(.., |read| read.deadline <= now).collect();
            refuse(late, Refusal::Timeout, out);
        }
        self.round.take_if(|round| round.reads.is_empty());
        self.confirmed.retain(|(_, reads)| !reads.is_empty());
    }

    pub fn refuse_all(&mut self, refusal: Refusal, out: &mut Vec<Output>) {
        let round = self.round.take().map(|round| round.reads).unwrap_or_default();
        let confirmed = take(&mut self.confirmed).into_iter().flat_map(|(_, reads)| reads);
        let all = take(&mut self.waiting).into_iter().chain(round).chain(confirmed).collect();
        refuse(all, refusal, out);
    }
}

fn refuse(reads: Vec<Asked>, refusal: Refusal, out: &mut Vec<Output>) {
    out.extend(reads.into_iter().map(|Asked { ticket, .. }| Output::ReadReady { ticket, result: Err(refusal) }));
}
