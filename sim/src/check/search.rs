//! Linearizability search: can the operations of a history be put in one legal order?
//!
//! The algorithm is Wing and Gong's with Lowe's memo of configurations. Calls and returns form a
//! linked list in time order. An operation may be placed next if its call stands before the first
//! return that is left; placing it lifts both its events out. Reaching a return means that its
//! operation is overdue: go back. The history is linearizable once the list is empty.
//!
//! An operation that never returned is *pending*: it may take effect at any time after its call, or
//! never. Pending operations stay outside the list, are tried only where nothing else leads on, and
//! need not be placed. This keeps them cheap:
//! - A configuration is (placed, pending ones taken, state). One that differs from a memorised one
//!   only by having taken *more* is dominated: it can reach nothing that the other cannot.
//! - A dead end is left with as few pending operations as will do, so that what would dominate a
//!   configuration is mostly memorised before it.
//! - Of two equal pending operations the one called first is taken first.
//!
//! Invariants:
//! - The verdict is a function of the arguments: no clock, no random hash, no thread.
//! - An order that was found is replayed from the definition before anyone hears of it.
//! - The culprit of a violation is the operation with the first return that no order gets past:
//!   without that return the history up to there is linearizable.
//!
//! What operations mean is the business of a [`Model`]; see `models.rs`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::hash::Hash;

use super::events::{Event, EventList};
use super::memo::{Bits, Memo};
use super::{Stuck, Verdict, Violation};

/// How many different states a violation lists for one operation.
const MET_MAX: usize = 8;

/// The sequential behaviour against which a history is checked.
pub trait Model {
    type State: Clone + Eq + Hash;
    /// A request together with the answer its client got, if it got one. Shown in violations.
    type Op: Eq + Display;

    fn initial(&self) -> Self::State;

    /// The state after `op`; `None` if `op` would have been answered differently in `state`.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// The part of the state that `op` touches, if no other part has a say in it. When all
    /// operations of a history have a key, each key is searched alone, from the initial state.
    fn key<'a>(&self, _op: &'a Self::Op) -> Option<&'a str> {
        None
    }

    /// How `op` would have been answered in `state`, for people.
    fn expected(&self, state: &Self::State, op: &Self::Op) -> String;
}

/// One operation of one client.
///
/// Invariant: `called_at <= returned_at`. Positions are event numbers, lines or times, all of one
/// kind. An operation comes before another if it returned at a smaller position than the other was
/// called at; at equal positions the two overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<O> {
    /// Whom to name in a report; the order of operations comes from the positions alone.
    pub client: u64,
    pub op: O,
    pub called_at: u64,
    /// `None`: pending.
    pub returned_at: Option<u64>,
    /// When it took effect, at a guess: of operations that may come next, which is tried first. A wrong guess costs time,
    /// and nothing else.
    pub guess: u64,
}

impl<O: Display> Display for Operation<O> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "client {}: {} @{}..", self.client, self.op, self.called_at)?;
        self.returned_at.map_or(Ok(()), |at| write!(f, "{at}"))
    }
}

/// How many configurations a search may look at before it gives up: those it tries, and those in
/// the memo it compares them with. Every key has the whole budget, so its verdict stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(pub u64);

impl Default for Budget {
    /// A few seconds and a few hundred megabytes at most; a healthy history takes far less.
    fn default() -> Self {
        Budget(1_000_000)
    }
}

/// Searches each key of `history`. The earliest violation wins; without one, what is unknown.
pub fn check_history<M: Model>(model: &M, history: &[Operation<M::Op>], budget: Budget) -> Verdict {
    let (mut violation, mut gave_up) = (None::<Violation>, None);
    for (key, part) in partition(model, history) {
        match Search::new(model, &part).run(budget) {
            Outcome::Placed(order) => assert_legal(model, &part, &order),
            Outcome::Refuted(found) => {
                if violation.as_ref().is_none_or(|first| found.at < first.at) {
                    violation = Some(Violation { key: key.map(str::to_owned), ..found });
                }
            }
            Outcome::Exhausted { at } => {
                let of_key = key.map_or_else(String::new, |key| format!(" of key {key}"));
                let configurations = budget.0;
                gave_up.get_or_insert_with(|| {
                    format!("gave up after {configurations} configurations{of_key}, at event {at}")
                });
            }
        }
    }
    match (violation, gave_up) {
        (Some(violation), _) => Verdict::Violation(violation),
        (None, Some(why)) => Verdict::Unknown { why },
        (None, None) => Verdict::Linearizable,
    }
}

/// What is searched at once, each list in call order.
struct Part<'a, O> {
    returned: Vec<&'a Operation<O>>,
    pending: Vec<&'a Operation<O>>,
}

type Parts<'a, O> = BTreeMap<Option<&'a str>, Part<'a, O>>;

fn partition<'a, M: Model>(model: &M, history: &'a [Operation<M::Op>]) -> Parts<'a, M::Op> {
    let independent = history.iter().all(|operation| model.key(&operation.op).is_some());
    let mut parts = Parts::new();
    for operation in history {
        assert!(operation.returned_at.is_none_or(|at| operation.called_at <= at));
        let key = model.key(&operation.op).filter(|_| independent);
        let empty = || Part { returned: Vec::new(), pending: Vec::new() };
        let part = parts.entry(key).or_insert_with(empty);
        let list = if operation.returned_at.is_some() { &mut part.returned } else { &mut part.pending };
        list.push(operation);
    }
    for part in parts.values_mut() {
        part.returned.sort_by_key(|operation| operation.called_at);
        part.pending.sort_by_key(|operation| operation.called_at);
    }
    parts
}

/// An operation of a [`Part`], by its place in one of the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Returned(usize),
    Pending(usize),
}

impl<'a, O> Part<'a, O> {
    fn at(&self, slot: Slot) -> &'a Operation<O> {
        match slot {
            Slot::Returned(op) => self.returned[op],
            Slot::Pending(op) => self.pending[op],
        }
    }
}

/// Checks a found order against the definition: all that returned is in it, nothing twice, no
/// operation after one that was called only once it had returned, and every answer is right.
fn assert_legal<M: Model>(model: &M, part: &Part<M::Op>, order: &[Slot]) {
    let mut state = model.initial();
    let mut latest_call = 0;
    let mut seen = [Bits::new(part.returned.len()), Bits::new(part.pending.len())];
    for &slot in order {
        let fresh = match slot {
            Slot::Returned(op) => seen[0].insert(op),
            Slot::Pending(op) => seen[1].insert(op),
        };
        assert!(fresh, "{slot:?} is placed twice");
        let operation = part.at(slot);
        assert!(operation.returned_at.is_none_or(|at| latest_call <= at), "{slot:?} is overdue");
        latest_call = latest_call.max(operation.called_at);
        state = model.step(&state, &operation.op).expect("every answer in a legal order is right");
    }
    assert!((0..part.returned.len()).all(|op| seen[0].contains(op)), "all that returned is placed");
}

enum Outcome {
    Placed(Vec<Slot>),
    Refuted(Violation),
    /// `at`: the first event that was still in the way.
    Exhausted {
        at: u64,
    },
}

/// Depth-first search. `placed` and `here` are the current configuration, and `moves` the way to it
/// from the initial one.
struct Search<'a, M: Model> {
    model: &'a M,
    part: &'a Part<'a, M::Op>,
    /// For each pending operation the latest equal one before it, which has to be taken first.
    twin_of: Vec<Option<usize>>,
    events: EventList,
    placed: Bits,
    here: Here<M::State>,
    moves: Vec<Move<M::State>>,
    detours: Vec<Detours<M::State>>,
    memo: Memo<M::State>,
    frontier: Frontier<M::State>,
}

/// What pending operations change of a configuration.
#[derive(Clone)]
struct Here<S> {
    state: S,
    taken: Bits,
}

/// Either one operation that returned, or the pending ones of a detour.
struct Move<S> {
    slots: Vec<Slot>,
    before: Here<S>,
    /// What to try after this move is undone.
    resume: Cursor,
}

/// What to try next in the current configuration.
#[derive(Clone, Copy)]
enum Cursor {
    Event(usize),
    /// Nothing in the list led on: the next of the latest detours.
    Detour,
}

/// Ways on from a dead end, by taking pending operations: those with the fewest first, and each
/// only when all before it have failed.
struct Detours<S> {
    /// The position of the overdue return; what was called later cannot help.
    until: u64,
    /// Where detours have led so far, and by which operations. The first is the dead end itself.
    reached: Vec<(Here<S>, Vec<Slot>)>,
    /// The next to try: going on from a place in `reached`, with a pending operation.
    from: usize,
    next: usize,
}

/// The first return that no configuration so far could get past, and what was met before it.
struct Frontier<S> {
    /// Its place in the event list; 0 before the first dead end.
    event: usize,
    met: Vec<S>,
    more_met: bool,
    /// The longest of the orders that end here, and how many moves it took.
    order: Vec<Slot>,
    moves: usize,
}

impl<S> Frontier<S> {
    fn new(event: usize) -> Self {
        Frontier { event, met: Vec::new(), more_met: false, order: Vec::new(), moves: 0 }
    }
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, part: &'a Part<'a, M::Op>) -> Self {
        let twin = |op: usize| (0..op).rfind(|&other| part.pending[other].op == part.pending[op].op);
        let placed = Bits::new(part.returned.len());
        let here = Here { state: model.initial(), taken: Bits::new(part.pending.len()) };
        let mut memo = Memo::default();
        assert!(memo.admit(&placed, &here.taken, &here.state));
        Search {
            model,
            part,
            twin_of: (0..part.pending.len()).map(twin).collect(),
            events: EventList::new(&part.returned),
            placed,
            here,
            moves: Vec::new(),
            detours: Vec::new(),
            memo,
            frontier: Frontier::new(0),
        }
    }

    fn run(mut self, budget: Budget) -> Outcome {
        let mut cursor = Cursor::Event(self.events.first());
        while !self.events.is_empty() {
            if self.memo.looked_at > budget.0 {
                let at = self.events.event(self.frontier.event.max(1)).at;
                return Outcome::Exhausted { at };
            }
            let next = match cursor {
                Cursor::Event(slot) => self.try_event(slot),
                Cursor::Detour => self.try_detour(),
            };
            match next {
                Some(next) => cursor = next,
                None => return Outcome::Refuted(self.explain()),
            }
        }
        Outcome::Placed(self.order())
    }

    /// Places the operation that is called here, if that is legal and leads to a new configuration.
    /// `None`, here and below, when everything has been tried.
    fn try_event(&mut self, slot: usize) -> Option<Cursor> {
        let Event { at, op, is_return, next, .. } = self.events.event(slot);
        if is_return {
            self.note_dead_end(slot);
            let on_detour = self.moves.last().is_some_and(|made| matches!(made.resume, Cursor::Detour));
            if on_detour {
                return self.undo(); // the detours that led here go on from here themselves
            }
            let reached = vec![(self.here.clone(), Vec::new())];
            self.detours.push(Detours { until: at, reached, from: 0, next: 0 });
            return Some(Cursor::Detour);
        }
        let resume = Cursor::Event(next);
        let Some(state) = self.model.step(&self.here.state, &self.part.returned[op].op) else {
            return Some(resume);
        };
        assert!(self.placed.insert(op));
        if !self.memo.admit(&self.placed, &self.here.taken, &state) {
            self.placed.remove(op);
            return Some(resume);
        }
        self.events.lift(op);
        let taken = self.here.taken.clone();
        Some(self.enter(vec![Slot::Returned(op)], Here { state, taken }, resume))
    }

    fn try_detour(&mut self) -> Option<Cursor> {
        let detours = self.detours.last_mut().expect("a dead end has detours");
        let Some((from, path)) = detours.reached.get(detours.from) else {
            self.detours.pop();
            return self.undo();
        };
        let op = detours.next;
        if self.part.pending.get(op).is_none_or(|pending| pending.called_at > detours.until) {
            detours.from += 1;
            detours.next = 0;
            return Some(Cursor::Detour);
        }
        detours.next += 1;
        let twin_waits = self.twin_of[op].is_some_and(|twin| !from.taken.contains(twin));
        if twin_waits || from.taken.contains(op) {
            return Some(Cursor::Detour);
        }
        let Some(state) = self.model.step(&from.state, &self.part.pending[op].op) else {
            return Some(Cursor::Detour);
        };
        let mut taken = from.taken.clone();
        assert!(taken.insert(op));
        if !self.memo.admit(&self.placed, &taken, &state) {
            return Some(Cursor::Detour);
        }
        let mut path = path.clone();
        path.push(Slot::Pending(op));
        let there = Here { state, taken };
        detours.reached.push((there.clone(), path.clone()));
        Some(self.enter(path, there, Cursor::Detour))
    }

    fn enter(&mut self, slots: Vec<Slot>, there: Here<M::State>, resume: Cursor) -> Cursor {
        let before = std::mem::replace(&mut self.here, there);
        self.moves.push(Move { slots, before, resume });
        Cursor::Event(self.events.first())
    }

    fn undo(&mut self) -> Option<Cursor> {
        let Move { slots, before, resume } = self.moves.pop()?;
        self.here = before;
        if let [Slot::Returned(op)] = slots[..] {
            self.placed.remove(op);
            self.events.unlift(op);
        }
        Some(resume)
    }

    fn order(&self) -> Vec<Slot> {
        self.moves.iter().flat_map(|made| &made.slots).copied().collect()
    }

    fn note_dead_end(&mut self, event: usize) {
        if event < self.frontier.event {
            return;
        }
        if event > self.frontier.event {
            self.frontier = Frontier::new(event);
        }
        if self.frontier.moves < self.moves.len() {
            self.frontier.moves = self.moves.len();
            self.frontier.order = self.order();
        }
        let frontier = &mut self.frontier;
        if !frontier.met.contains(&self.here.state) {
            if frontier.met.len() < MET_MAX {
                frontier.met.push(self.here.state.clone());
            } else {
                frontier.more_met = true;
            }
        }
    }

    fn explain(self) -> Violation {
        let Frontier { event, met, more_met, order, .. } = self.frontier;
        let Event { at, op: culprit, is_return, .. } = self.events.event(event);
        assert!(is_return, "a refuted search has met a return");
        let describe = |op: usize, states: &[M::State], more_expected| {
            let operation = self.part.returned[op];
            let mut expected = Vec::new();
            for state in states {
                let text = self.model.expected(state, &operation.op);
                if !expected.contains(&text) {
                    expected.push(text);
                }
            }
            Stuck { op: operation.to_string(), expected, more_expected }
        };
        let fits = |state| self.model.step(state, &self.part.returned[culprit].op).is_some();
        assert!(!met.iter().any(fits), "where it fits, the search has got past it");
        let mut stuck = vec![describe(culprit, &met, more_met)];
        // The others that could have come next in the longest order, but for their answers.
        let last = order.iter().fold(self.model.initial(), |state, &slot| {
            self.model.step(&state, &self.part.at(slot).op).expect("this order was reached")
        });
        for (op, operation) in self.part.returned.iter().enumerate() {
            let open = operation.called_at <= at && !order.contains(&Slot::Returned(op));
            if open && op != culprit && self.model.step(&last, &operation.op).is_none() {
                stuck.push(describe(op, std::slice::from_ref(&last), false));
            }
        }
        let order = order.iter().map(|&slot| self.part.at(slot).to_string()).collect();
        Violation { key: None, at, stuck, order }
    }
}
