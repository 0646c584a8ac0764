//! Linearizable reads: held until a quorum confirmed the leader after they were asked, and this member has applied
//! all that was committed by then.
//!
//! A round confirms every read that waits when it begins. While one is under way reads gather for the next, which begins
//! when the last one is confirmed, or has not been for a while: what was asked may be lost, or the leader far away.
//!
//! Invariant: whoever confirms a round was asked after all reads of that round and of those before it, so its answer is
//! as good for these.
use std::{collections::VecDeque, mem::take};

use super::Output;
use crate::{
    error::Refusal,
    event::NodeEvent,
    limits::READS_WAITING_MAX,
    types::{Index, MemberId, Term, Ticket},
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
    /// The next round waits for so long for the one before it.
    retry_ticks: u64,
    next_id: u64,
    /// Not part of a round yet.
    waiting: Vec<Asked>,
    /// Under way, in the order in which they began. The first one has reads; what others may lack is in those before.
    rounds: VecDeque<Round>,
    /// Confirmed: may be served from this index on.
    confirmed: Vec<(Index, Vec<Asked>)>,
}

impl Reads {
    /// Ids are random, and so no other member's.
    pub fn new(member: MemberId, seed: u64, retry_ticks: u64) -> Reads {
        let next_id = crate::machine::hash_bytes(&[(!seed).to_le_bytes(), member.0.to_le_bytes()].concat());
        Reads { retry_ticks, next_id, waiting: Vec::new(), rounds: VecDeque::new(), confirmed: Vec::new() }
    }

    pub fn ask(&mut self, ticket: Ticket, deadline: u64, out: &mut Vec<Output>) {
        let asked = self.rounds.iter().map(|round| round.reads.len()).sum::<usize>();
        let confirmed = self.confirmed.iter().map(|(_, reads)| reads.len()).sum::<usize>();
        if self.waiting.len() + asked + confirmed >= READS_WAITING_MAX {
            return refuse(vec![Asked { ticket, deadline }], Refusal::TooManyRequests, out);
        }
        self.waiting.push(Asked { ticket, deadline });
    }

    /// The id of a round that begins now, if one should.
    pub fn next_round(&mut self, now: u64, may_ask: bool) -> Option<u64> {
        let is_due = match self.rounds.back() {
            Some(last) => now >= last.asked_at + self.retry_ticks,
            None => !self.waiting.is_empty(),
        };
        if !may_ask || !is_due {
            return None;
        }
        self.next_id = self.next_id.wrapping_add(1);
        self.rounds.push_back(Round { id: self.next_id, asked_at: now, reads: take(&mut self.waiting) });
        Some(self.next_id)
    }

    pub fn confirmed(&mut self, id: u64, index: Index, term: Term, out: &mut Vec<Output>) {
        if let Some(at) = self.rounds.iter().position(|round| round.id == id) {
            out.push(Output::Note(NodeEvent::ReadConfirmed { index, term }));
            self.confirmed.push((index, self.rounds.drain(..=at).flat_map(|round| round.reads).collect()));
            self.forget_rounds_for_nobody();
        }
    }

    fn forget_rounds_for_nobody(&mut self) {
        while self.rounds.pop_front_if(|round| round.reads.is_empty()).is_some() {}
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
        refuse(self.rounds.drain(..).flat_map(|round| round.reads).collect(), Refusal::LeaderChanged, out);
    }

    pub fn tick(&mut self, now: u64, out: &mut Vec<Output>) {
        let lists = [&mut self.waiting].into_iter();
        let lists = lists.chain(self.rounds.iter_mut().map(|round| &mut round.reads));
        let lists = lists.chain(self.confirmed.iter_mut().map(|(_, reads)| reads));
        for list in lists {
            let late = list.extract_if(.., |read| read.deadline <= now).collect();
            refuse(late, Refusal::Timeout, out);
        }
        self.forget_rounds_for_nobody();
        self.confirmed.retain(|(_, reads)| !reads.is_empty());
    }

    pub fn refuse_all(&mut self, refusal: Refusal, out: &mut Vec<Output>) {
        let rounds = self.rounds.drain(..).flat_map(|round| round.reads);
        let confirmed = take(&mut self.confirmed).into_iter().flat_map(|(_, reads)| reads);
        let all = take(&mut self.waiting).into_iter().chain(rounds).chain(confirmed).collect();
        refuse(all, refusal, out);
    }
}

fn refuse(reads: Vec<Asked>, refusal: Refusal, out: &mut Vec<Output>) {
    out.extend(reads.into_iter().map(|Asked { ticket, .. }| Output::ReadReady { ticket, result: Err(refusal) }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY_TICKS: u64 = 5;
    const DEADLINE: u64 = 70;

    struct Asker {
        reads: Reads,
        out: Vec<Output>,
    }

    impl Asker {
        fn new() -> Asker {
            Asker { reads: Reads::new(MemberId(1), 7, RETRY_TICKS), out: Vec::new() }
        }

        fn ask(&mut self, ticket: u64) {
            self.reads.ask(Ticket(ticket), DEADLINE, &mut self.out);
        }

        fn round(&mut self, now: u64) -> Option<u64> {
            self.reads.next_round(now, true)
        }

        /// Who is served once this round is confirmed, one number after another.
        fn confirm(&mut self, round: u64) -> String {
            self.reads.confirmed(round, Index(3), Term(1), &mut self.out);
            self.reads.serve(Index(3), &mut self.out);
            let ready = self.out.drain(..).filter_map(|output| match output {
                Output::ReadReady { ticket, result: Ok(()) } => Some(ticket.0.to_string()),
                Output::Note(_) => None,
                _ => panic!("nobody is refused"),
            });
            ready.collect()
        }
    }

    /// As it is if the leader is on another continent.
    #[test]
    fn answers_that_take_longer_than_a_retry_serve_what_was_asked_before_them() {
        let mut asker = Asker::new();
        asker.ask(1);
        let first = asker.round(0).expect("somebody waits");
        asker.ask(2);
        assert_eq!(asker.round(RETRY_TICKS - 1), None, "one round at a time");
        let second = asker.round(RETRY_TICKS).expect("the first takes too long");
        let third = asker.round(2 * RETRY_TICKS).expect("so does the second, and it may be lost");
        assert_eq!(asker.confirm(first), "1");
        asker.ask(3);
        assert_eq!(asker.confirm(third), "2");
        assert_eq!(asker.confirm(second), "", "a later one was as good");
        let fourth = asker.round(2 * RETRY_TICKS).expect("no round is under way");
        asker.round(3 * RETRY_TICKS).expect("it takes too long");
        assert_eq!(asker.confirm(fourth), "3");
        asker.ask(4);
        let sixth = asker.round(3 * RETRY_TICKS).expect("the fifth was for nobody");
        assert_eq!(asker.confirm(sixth), "4");
        assert_eq!(asker.round(9 * RETRY_TICKS), None, "nobody waits");
    }

    #[test]
    fn all_that_wait_count() {
        let mut asker = Asker::new();
        for at in 0..4 {
            (0..READS_WAITING_MAX as u64 / 4).for_each(|ticket| asker.ask(ticket));
            let round = (at < 3).then(|| asker.round(at * RETRY_TICKS).expect("the one before takes too long"));
            if at == 0 {
                asker.reads.confirmed(round.expect("the first"), Index(9), Term(1), &mut asker.out);
            }
        }
        asker.out.clear();
        asker.ask(7);
        let refused = Err(Refusal::TooManyRequests);
        assert!(matches!(asker.out[..], [Output::ReadReady { ticket: Ticket(7), result }] if result == refused));
    }

    #[test]
    fn rounds_whose_reads_are_all_gone_are_gone() {
        let mut asker = Asker::new();
        asker.ask(1);
        let rounds: Vec<_> = (0..).map_while(|at| asker.round(at * RETRY_TICKS).filter(|_| at < 9)).collect();
        assert_eq!(rounds.len(), 9);
        asker.reads.tick(DEADLINE, &mut asker.out);
        assert!(matches!(asker.out[..], [Output::ReadReady { ticket: Ticket(1), result: Err(Refusal::Timeout) }]));
        assert!(asker.reads.rounds.is_empty());
        asker.out.clear();
        assert_eq!(asker.confirm(rounds[8]), "");
        assert_eq!(asker.round(DEADLINE), None);
    }
}
