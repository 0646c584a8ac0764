//! Writes on their way: queued, then in raft's hands, then applied; and who waits for them.
use std::{
    collections::{BTreeMap, VecDeque},
    mem::take,
};

use raft::eraftpb::Entry;

use crate::{
    error::Refusal,
    limits::{PROPOSALS_BYTES_MAX, PROPOSALS_WAITING_MAX},
    types::{MemberId, RequestId, Term, Ticket},
};

/// Invariants: `by_deadline` and `by_long_deadline` list every waiting request (and some that no longer wait), each with
/// deadlines ascending.
pub struct Proposals {
    next_id: u64,
    /// With their ids, so that one that was never handed to raft can be refused for good.
    queued: VecDeque<(RequestId, Entry)>,
    /// Bytes of what is queued.
    queued_bytes: usize,
    waiting: BTreeMap<RequestId, Waiting>,
    by_deadline: VecDeque<(u64, RequestId)>,
    by_long_deadline: VecDeque<(u64, RequestId)>,
}

struct Waiting {
    ticket: Ticket,
    since_tick: u64,
    /// The term in which it was handed to raft; none while it is queued.
    handed_in: Option<Term>,
    /// It may take longer, and survive its leader.
    long: bool,
}

impl Proposals {
    /// etcd's ids: 16 bits of the member, then a counter. Its start is random, so that no id of an earlier run of
    /// this member, still on its way somewhere, is ever taken for one of this run.
    pub fn new(id: MemberId, seed: u64) -> Proposals {
        let start = crate::machine::hash_bytes(&seed.to_le_bytes()) & 0x0000_ffff_ffff_ffff;
        Proposals {
            next_id: id.0 << 48 | start,
            queued: VecDeque::new(),
            queued_bytes: 0,
            waiting: BTreeMap::new(),
            by_deadline: VecDeque::new(),
            by_long_deadline: VecDeque::new(),
        }
    }

    pub fn next_id(&mut self) -> RequestId {
        let (member, counter) = (self.next_id & !0x0000_ffff_ffff_ffff, self.next_id.wrapping_add(1));
        self.next_id = member | counter & 0x0000_ffff_ffff_ffff;
        RequestId(self.next_id)
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= PROPOSALS_WAITING_MAX || self.queued_bytes >= PROPOSALS_BYTES_MAX
    }

    pub fn enqueue(&mut self, request: RequestId, entry: Entry) {
        self.queued_bytes += entry.data.len();
        self.queued.push_back((request, entry));
    }

    pub fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// All at once: one message to the leader of this term, one append, one fsync.
    pub fn take_queued(&mut self, term: Term) -> Vec<Entry> {
        self.queued_bytes = 0;
        let hand_in = |(request, entry)| {
            if let Some(waiting) = self.waiting.get_mut(&request) {
                waiting.handed_in = Some(term);
            }
            entry
        };
        take(&mut self.queued).into_iter().map(hand_in).collect()
    }

    /// An entry of this term was applied, and none of it before: what was handed to a leader of an earlier term, and
    /// was not applied by now, is lost, unless it still wanders about as a forwarded message. Whoever waits for it
    /// learns at once that nobody knows. Only what may take longer is often passed on to the next leader: it has until
    /// `soon`, a tick no earlier than any given here before.
    pub fn leader_failed(&mut self, term: Term, soon: u64) -> Vec<(Ticket, RequestId)> {
        for (request, waiting) in self.waiting.iter_mut().filter(|(_, waiting)| waiting.long) {
            if waiting.handed_in.is_some_and(|handed| handed < term) {
                waiting.handed_in = Some(term);
                self.by_deadline.push_back((soon, *request));
            }
        }
        let lost = self.waiting.extract_if(.., |_, waiting| waiting.handed_in.is_some_and(|handed| handed < term));
        lost.map(|(request, waiting)| (waiting.ticket, request)).collect()
    }

    pub fn wait(&mut self, request: RequestId, ticket: Ticket, now: u64, deadline: u64) {
        self.waiting.insert(request, Waiting { ticket, since_tick: now, handed_in: None, long: false });
        self.by_deadline.push_back((deadline, request));
    }

    /// As `wait`, for requests that may take longer: all of these alike.
    pub fn wait_long(&mut self, request: RequestId, ticket: Ticket, now: u64, deadline: u64) {
        self.waiting.insert(request, Waiting { ticket, since_tick: now, handed_in: None, long: true });
        self.by_long_deadline.push_back((deadline, request));
    }

    pub fn is_waiting(&self, request: RequestId) -> bool {
        self.waiting.contains_key(&request)
    }

    /// The request was applied: who waits for it?
    pub fn done(&mut self, request: RequestId) -> Option<Ticket> {
        self.waiting.remove(&request).map(|waiting| waiting.ticket)
    }

    /// Those whose time is up at tick `now`, and what to tell them. `leader_since` is when the present leader became
    /// known; requests made up to `spared` ticks before that probably failed with the one before.
    pub fn expire(&mut self, now: u64, leader_since: u64, spared: u64) -> Vec<(Ticket, RequestId, Refusal)> {
        let mut expired = Vec::new();
        let due = |(deadline, _): &mut (u64, RequestId)| *deadline <= now;
        while let Some((_, request)) =
            self.by_deadline.pop_front_if(due).or_else(|| self.by_long_deadline.pop_front_if(due))
        {
            let Some(Waiting { ticket, since_tick, handed_in, .. }) = self.waiting.remove(&request) else { continue };
            let refusal = if handed_in.is_none() {
                self.forget_queued(request);
                Refusal::NoLeader // it never left this member
            } else if since_tick < leader_since && since_tick + spared > leader_since {
                Refusal::TimeoutLeaderFailed
            } else {
                Refusal::Timeout
            };
            expired.push((ticket, request, refusal));
        }
        expired
    }

    /// Those that expire are mostly the first in the queue: to find one and to take it out costs little.
    fn forget_queued(&mut self, request: RequestId) {
        let at = self.queued.iter().position(|(queued, _)| *queued == request);
        let (_, entry) = at.and_then(|at| self.queued.remove(at)).expect("what is not handed in is queued");
        self.queued_bytes -= entry.data.len();
    }

    /// Everybody who waits. What is queued goes.
    pub fn drain(&mut self) -> Vec<(Ticket, RequestId)> {
        self.queued.clear();
        self.queued_bytes = 0;
        self.by_deadline.clear();
        self.by_long_deadline.clear();
        take(&mut self.waiting).into_iter().map(|(request, waiting)| (waiting.ticket, request)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(request: RequestId) -> Entry {
        Entry { data: request.0.to_be_bytes().to_vec().into(), ..Entry::default() }
    }

    fn enqueue(proposals: &mut Proposals, deadline: u64) -> RequestId {
        let request = proposals.next_id();
        proposals.wait(request, Ticket(request.0), 0, deadline);
        proposals.enqueue(request, entry(request));
        request
    }

    #[test]
    fn what_expires_leaves_the_queue_and_the_rest_keeps_its_order() {
        let mut proposals = Proposals::new(MemberId(1), 7);
        let handed_in = enqueue(&mut proposals, 1);
        assert_eq!(proposals.take_queued(Term(2)), [entry(handed_in)]);
        let change = proposals.next_id();
        proposals.wait_long(change, Ticket(0), 0, 2);
        proposals.enqueue(change, entry(change));
        let expiring: Vec<_> = (0..PROPOSALS_WAITING_MAX - 3).map(|_| enqueue(&mut proposals, 1)).collect();
        let last = enqueue(&mut proposals, 3);
        assert!(proposals.is_full());
        let refused = |expired: Vec<(Ticket, RequestId, Refusal)>| -> Vec<_> {
            expired.into_iter().map(|(_, request, refusal)| (request, refusal)).collect()
        };
        let expected: Vec<_> = expiring.iter().map(|request| (*request, Refusal::NoLeader)).collect();
        let expired = refused(proposals.expire(1, 0, 0));
        assert_eq!((expired[0], &expired[1..]), ((handed_in, Refusal::Timeout), &expected[..]));
        assert_eq!(refused(proposals.expire(2, 0, 0)), [(change, Refusal::NoLeader)]);
        assert_eq!(proposals.take_queued(Term(2)), [entry(last)]);
        assert_eq!(refused(proposals.expire(3, 0, 0)), [(last, Refusal::Timeout)]);
    }

    #[test]
    fn what_is_queued_has_a_bound_in_bytes() {
        let mut proposals = Proposals::new(MemberId(1), 7);
        let large = |proposals: &mut Proposals, deadline| {
            let request = proposals.next_id();
            proposals.wait(request, Ticket(request.0), 0, deadline);
            proposals.enqueue(request, Entry { data: vec![0; PROPOSALS_BYTES_MAX / 2].into(), ..Entry::default() });
            proposals.is_full()
        };
        assert_eq!([1, 2].map(|deadline| large(&mut proposals, deadline)), [false, true]);
        proposals.expire(1, 0, 0);
        assert!(!proposals.is_full());
        assert!(large(&mut proposals, 3));
        proposals.take_queued(Term(2));
        assert!(!proposals.is_full());
        assert!(!large(&mut proposals, 4) && large(&mut proposals, 5));
        proposals.drain();
        assert!(!proposals.is_full());
    }
}
