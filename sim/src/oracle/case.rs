//! What a law has found so far, and what that comes to.
use super::{Verdict, Violation};

/// What a law makes of one event.
pub type Finding = Result<(), Violation>;

/// Invariant: after the first violation or doubt nothing changes any more.
#[derive(Debug, Default)]
pub struct Case {
    judged: u64,
    given_up: u64,
    violation: Option<Violation>,
    doubt: Option<String>,
}

impl Case {
    /// One more thing was judged, and was right.
    pub fn right(&mut self) {
        self.judged += 1;
    }

    /// So many things cannot be judged.
    pub fn give_up(&mut self, count: usize) {
        self.given_up += count as u64;
    }

    /// Whether there is nothing more to find.
    pub fn is_closed(&self) -> bool {
        self.violation.is_some() || self.doubt.is_some()
    }

    pub fn take(&mut self, finding: Finding) {
        if let Err(violation) = finding
            && !self.is_closed()
        {
            self.violation = Some(violation);
        }
    }

    /// What the law judges by cannot be trusted: it must not judge on.
    pub fn doubt(&mut self, why: String) {
        if !self.is_closed() {
            self.doubt = Some(why);
        }
    }

    pub fn verdict(&self) -> Verdict {
        match (&self.violation, &self.doubt) {
            (Some(violation), _) => Verdict::Violated(violation.clone()),
            (None, Some(why)) => Verdict::Unknown { why: why.clone() },
            (None, None) => Verdict::Holds { judged: self.judged, given_up: self.given_up },
        }
    }
}
