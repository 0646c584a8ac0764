//! Laws of the membership.
use std::{cmp::Ordering, collections::BTreeSet};

use detcd_core::{
    machine::membership::Configuration,
    types::{Index, MemberId},
};

use super::{Law, Laws, Verdict, logs::quorum};

impl Laws {
    /// Who had a say when everything up to `index` was applied.
    pub fn configuration_at(&self, index: Index) -> Option<&Configuration> {
        self.configurations.range(..=index).next_back().map(|(_, configuration)| configuration)
    }

    /// Who has a say, as far as anybody knows.
    pub fn configuration(&self) -> &Configuration {
        self.configurations.values().next_back().expect("there are founders")
    }

    pub fn is_removed(&self, who: MemberId) -> bool {
        self.removed.contains_key(&who)
    }

    /// Whether `who` has applied the removal of `other`.
    pub fn knows_removal(&self, who: MemberId, other: MemberId) -> bool {
        let removed = self.removed.get(&other);
        removed.is_some_and(|removed| self.runs.get(&who).is_some_and(|run| run.applied >= *removed))
    }

    /// `who` applied the entry at `index`, which asked for a change.
    pub(super) fn configuration_applied(
        &mut self,
        who: MemberId,
        index: Index,
        after: Configuration,
        valid: bool,
    ) -> Verdict {
        let before = self.runs[&who].configuration.clone();
        self.require(Law::OneConfiguration, valid || before == after, || {
            format!("{who} goes from {before:?} to {after:?} with a change at {index} that makes no sense")
        })?;
        self.quorums_meet(index, &before, &after)?;
        if !self.configurations.contains_key(&index) {
            // The founders' own additions are nobody's doing.
            if index.0 > self.founders {
                self.count_change(who, &before, &after, valid);
            }
            for id in members(&before).difference(&members(&after)) {
                self.removed.insert(*id, index);
            }
            self.configurations.insert(index, after.clone());
        }
        self.knows(who, index, after)
    }

    /// `who` knows who has a say as of `index`.
    pub(super) fn knows(&mut self, who: MemberId, index: Index, configuration: Configuration) -> Verdict {
        let known = self.configuration_at(index);
        self.require(Law::OneConfiguration, known == Some(&configuration), || {
            format!("{who} knows {configuration:?} at {index}, another knows {known:?}")
        })?;
        let present = members(&configuration);
        let back = present.iter().find(|id| self.removed.get(id).is_some_and(|removed| *removed <= index));
        self.require(Law::NoReturn, back.is_none(), || format!("{back:?} is back at {index}, for {who}"))?;
        let removed = self.removed.get(&who).is_some_and(|removed| *removed <= index);
        let run = self.run(who);
        (run.configuration, run.removed) = (configuration, removed);
        Ok(())
    }

    fn quorums_meet(&self, index: Index, before: &Configuration, after: &Configuration) -> Verdict {
        let voters = |configuration: &Configuration| configuration.voters.iter().copied().collect::<BTreeSet<_>>();
        let (old, new) = (voters(before), voters(after));
        let meet = quorum(old.len()) + quorum(new.len()) > old.union(&new).count();
        let both = after.learners.iter().any(|learner| new.contains(learner));
        // The first founder finds nobody before it.
        self.require(Law::QuorumsMeet, (meet || old.is_empty()) && !both && !new.is_empty(), || {
            format!("from {before:?} to {after:?} at {index}")
        })
    }

    fn count_change(&mut self, who: MemberId, before: &Configuration, after: &Configuration, valid: bool) {
        let tally = &mut self.tally;
        let (voters, learners) = (after.voters.len(), after.learners.len());
        match (voters.cmp(&before.voters.len()), learners.cmp(&before.learners.len())) {
            _ if !valid => tally.invalid += 1,
            (Ordering::Greater, Ordering::Less) => tally.promoted += 1,
            (Ordering::Greater, _) => tally.voters_added += 1,
            (_, Ordering::Greater) => tally.learners_added += 1,
            (Ordering::Equal, Ordering::Equal) => tally.updated += 1,
            (voters, _) => {
                tally.removed += 1;
                tally.to_one += usize::from(voters.is_lt() && after.voters.len() == 1);
                let itself = !members(after).contains(&who) && self.runs[&who].leading.is_some();
                tally.removed_themselves += usize::from(itself);
            }
        }
    }
}

fn members(configuration: &Configuration) -> BTreeSet<MemberId> {
    configuration.voters.iter().chain(&configuration.learners).copied().collect()
}
