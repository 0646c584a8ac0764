//! The linked list of the search: calls and returns in time order. Operations are lifted out of it
//! and put back in the opposite order, so that a lifted event still knows its place.

use super::search::Operation;

/// A ring of events. Slot 0 is its head and no event. The order of slots is the order in time,
/// whether or not they are linked.
pub struct EventList {
    events: Vec<Event>,
    call_of: Vec<usize>,
    return_of: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub at: u64,
    pub op: usize,
    pub is_return: bool,
    /// The slot of the next event that is not lifted.
    pub next: usize,
    prev: usize,
}

impl EventList {
    pub fn new<O>(operations: &[&Operation<O>]) -> Self {
        let mut sorted = Vec::new();
        for (op, operation) in operations.iter().enumerate() {
            let returned_at = operation.returned_at.expect("only what returned is in the list");
            sorted.extend([(operation.called_at, false, op), (returned_at, true, op)]);
        }
        sorted.sort_unstable(); // at one position calls come first: they overlap the returns
        // Calls with no return between them may come in any order.
        for calls in sorted.split_mut(|(_, is_return, _)| *is_return) {
            calls.sort_by_key(|(at, _, op)| (operations[*op].guess, *at, *op));
        }
        let count = sorted.len() + 1;
        let head = Event { at: 0, op: 0, is_return: false, prev: count - 1, next: 1 % count };
        let (mut call_of, mut return_of) = (vec![0; operations.len()], vec![0; operations.len()]);
        let mut events = vec![head];
        for (at, is_return, op) in sorted {
            let slot = events.len();
            if is_return {
                return_of[op] = slot;
            } else {
                call_of[op] = slot;
            }
            events.push(Event { at, op, is_return, prev: slot - 1, next: (slot + 1) % count });
        }
        EventList { events, call_of, return_of }
    }

    pub fn event(&self, slot: usize) -> Event {
        assert!(slot > 0, "the head is no event");
        self.events[slot]
    }

    /// The slot of the first event that is not lifted.
    pub fn first(&self) -> usize {
        self.events[0].next
    }

    pub fn is_empty(&self) -> bool {
        self.first() == 0
    }

    /// Takes the call and the return of `op` out.
    pub fn lift(&mut self, op: usize) {
        for slot in [self.call_of[op], self.return_of[op]] {
            let Event { prev, next, .. } = self.events[slot];
            self.events[prev].next = next;
            self.events[next].prev = prev;
        }
    }

    /// Undoes the latest `lift` that is not undone yet.
    pub fn unlift(&mut self, op: usize) {
        for slot in [self.return_of[op], self.call_of[op]] {
            let Event { prev, next, .. } = self.events[slot];
            assert!(self.events[prev].next == next && self.events[next].prev == prev);
            self.events[prev].next = slot;
            self.events[next].prev = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifted_operations_come_back_to_their_places() {
        let operation = |called_at, returned_at| Operation {
            client: 0,
            op: (),
            called_at,
            returned_at: Some(returned_at),
            guess: 0,
        };
        let operations = [operation(1, 4), operation(2, 3), operation(4, 5)];
        let mut list = EventList::new(&operations.iter().collect::<Vec<_>>());
        let shown = |list: &EventList| {
            let (mut slot, mut shown) = (list.first(), Vec::new());
            while slot != 0 {
                let event = list.event(slot);
                shown.push((event.op, event.is_return));
                slot = event.next;
            }
            shown
        };
        let whole = shown(&list);
        // Of the two events at 4 the call comes first.
        let calls_and_returns = [(0, false), (1, false), (1, true), (2, false), (0, true), (2, true)];
        assert_eq!(whole, calls_and_returns);
        list.lift(1);
        assert_eq!(shown(&list), [(0, false), (2, false), (0, true), (2, true)]);
        list.lift(2);
        list.lift(0);
        assert!(list.is_empty());
        for op in [0, 2, 1] {
            list.unlift(op);
        }
        assert_eq!(shown(&list), whole);
    }
}
