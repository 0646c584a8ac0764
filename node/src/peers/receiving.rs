//! Whose snapshot is being received: one at a time, but a leader does not wait for what one of an earlier term still sends.
use detcd_core::types::Term;
use parking_lot::Mutex;
use tokio::sync::oneshot;

#[derive(Default)]
pub struct Receiving(Mutex<State>);

#[derive(Default)]
struct State {
    /// Turns so far.
    turns: u64,
    current: Option<Current>,
}

struct Current {
    turn: u64,
    term: Term,
    /// Tells, by being dropped, that the turn is over.
    _over: oneshot::Sender<()>,
}

/// Somebody's turn, until somebody else's.
pub struct Turn {
    number: u64,
    pub over: oneshot::Receiver<()>,
}

impl Receiving {
    pub fn begin(&self, term: Term) -> Option<Turn> {
        let mut state = self.0.lock();
        if state.current.as_ref().is_some_and(|current| current.term >= term) {
            return None;
        }
        let (sender, over) = oneshot::channel();
        state.turns += 1;
        let number = state.turns;
        state.current = Some(Current { turn: number, term, _over: sender });
        Some(Turn { number, over })
    }

    pub fn end(&self, turn: u64) {
        let mut state = self.0.lock();
        state.current.take_if(|current| current.turn == turn);
    }
}

impl Turn {
    pub fn number(&self) -> u64 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_does_not_wait_for_an_earlier_one() {
        let receiving = Receiving::default();
        let mut first = receiving.begin(Term(2)).unwrap();
        for term in [1, 2] {
            assert!(receiving.begin(Term(term)).is_none());
        }
        assert_eq!(first.over.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        let second = receiving.begin(Term(3)).unwrap();
        assert_eq!(first.over.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        receiving.end(first.number()); // it is not its turn any more
        assert!(receiving.begin(Term(3)).is_none());
        receiving.end(second.number());
        assert!(receiving.begin(Term(1)).is_some());
    }
}
