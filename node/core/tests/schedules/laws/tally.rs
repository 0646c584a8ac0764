//! How much happened, so that a run which tested nothing cannot pass for a good one.
use std::ops::Add;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Tally {
            $($(#[$doc])* pub $name: usize,)*
        }

        impl Add for Tally {
            type Output = Tally;

            fn add(self, other: Tally) -> Tally {
                Tally { $($name: self.$name + other.$name,)* }
            }
        }
    };
}

tally! {
    leaders,
    committed,
    truncated,
    acknowledged,
    refused,
    reads_served,
    reads_refused,
    starts,
    stalls,
    /// States on their way to a member.
    sent,
    /// States that took the machine's place.
    installs,
    /// States that came and were not needed.
    dropped,
    /// States that did not arrive, or whose arrival was not told.
    lost,
    /// Times that a log in memory was cut.
    cuts,
    checkpoints,
    /// Entries that went from a disk because a state stands in for them.
    released,
    voters_added,
    learners_added,
    promoted,
    removed,
    updated,
    /// Changes that made no sense when they were applied.
    invalid,
    /// Changes that whoever asked was told are done.
    changed,
    /// Changes refused before they were proposed, or not known to be done in time.
    unchanged,
    /// Removals of the member that led when it was asked for.
    leaders_removed,
    /// Removals that the removed one applied while it led.
    removed_themselves,
    /// Removals that left a single voter.
    to_one,
    transfers,
    transfers_failed,
    stops,
    /// Members that said that they were removed.
    said_removed,
    /// Removed members that started again with what their disk held.
    removed_started,
    /// Members that began with nothing and came to serve.
    joined,
    events_watched,
    watches_canceled,
}
