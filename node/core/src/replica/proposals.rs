//! Writes on their way: queued, then in raft's hands, then applied; and who waits for them.
use std::{
    collections::{BTreeMap, VecDeque},
    mem::take,
};

use raft::eraftpb::Entry;

use crate::{
    error::Refusal,
    limits::PROPOSALS_WAITING_MAX,
    types::{MemberId, RequestId, Term, Ticket},
};

/// Invariants: `by_deadline` and `by_long_deadline` list every waiting request (and some that no longer wait), each with
/// deadlines ascending.
pub struct Proposals {
    next_id: u64,
    queued: Vec<Entry>,
    /// The requests in `queued`, so that one that was never handed to raft can be refused for good.
    queued_ids: VecDeque<RequestId>,
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
            queued: Vec::new(),
            queued_ids: VecDeque::new(),
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
        self.waiting.len() >= PROPOSALS_WAITING_MAX
    }

    pub fn enqueue(&mut self, request: RequestId, entry: Entry) {
        self.queued.push(entry);
        self.queued_ids.push_back(request);
    }

    pub fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// All at once: one message to the leader of this term, one append, one fsync.
    pub fn take_queued(&mut self, term: Term) -> Vec<Entry> {
        for request in self.queued_ids.drain(..) {
            if let Some(waiting) = self.waiting.get_mut(&request) {
                waiting.handed_in = Some(term);
            }
        }
        take(&mut self.queued)
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
            let Some(Waiting { ticket, since_tick, .. }) = self.waiting.remove(&request) else { continue };
            let refusal = if self.forget_queued(request) {
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

    fn forget_queued(&mut self, request: RequestId) -> bool {
        let at = self.queued_ids.iter().position(|queued| *queued == request);
        if let Some(at) = at {
            self.queued_ids.remove(at);
            self.queued.remove(at);
        }
        at.is_some()
    }

    /// Everybody who waits. What is queued goes.
    pub fn drain(&mut self) -> Vec<(Ticket, RequestId)> {
        self.queued.clear();
        self.queued_ids.clear();
        self.by_deadline.clear();
        self.by_long_deadline.clear();
        take(&mut self.waiting).into_iter().map(|(request, waiting)| (waiting.ticket, request)).collect()
    }
}
