//! Which copies of the data there are, and who may be struck without destroying the last good one.
//!
//! A member that lost anything does not go on from the rest: it stops, and is replaced by what the others hold. So the
//! copies that the protocol needs are whole members, and it needs a quorum of them: whatever was acknowledged is with
//! one of any quorum. A fault may strike if a quorum of the voters remains that run, hear each other and lost nothing,
//! counting every other fault that is on. Of a member that will not notice what it lost (it got an old disk) more is
//! asked: [`Standing::is_dispensable`](crate::world::standing::Standing::is_dispensable). Only a scenario that expects
//! the cluster to refuse may have faults that destroy more.
use super::Inner;
use crate::{
    history::NodeNumber,
    scenario::fault::{numbers, quorum_remains},
    schedule::Planned,
    world::addresses::node_ip,
};

impl Inner {
    /// The machines of the voters; until anybody told, of the founders. A voter that was added and has no machine yet
    /// counts as one that is down.
    fn voters(&self) -> Vec<NodeNumber> {
        let ids = self.recorder.members().voters;
        if ids.is_empty() {
            return numbers(self.founders);
        }
        let machine = |id: &u64| self.cluster.numbers().find(|number| self.cluster.member(*number) == *id);
        ids.iter().map(|id| machine(id).unwrap_or(NodeNumber(0))).collect()
    }

    pub(super) fn works(&self, number: NodeNumber) -> bool {
        self.cluster.is_running(number) && !self.cluster.is_paused(number)
    }

    pub(super) fn may_strike(&self, planned: &Planned, victims: &[NodeNumber]) -> bool {
        let (voters, state) = (self.voters(), self.state.lock());
        if planned.fault.moves_members() && victims.iter().any(|victim| state.moving.contains(victim)) {
            return false;
        }
        if !planned.keep_quorum {
            return true;
        }
        let new_cuts = planned.cuts(victims, self.cluster.nodes.len());
        let works = |number: NodeNumber| {
            let struck = planned.fault.disables() && victims.contains(&number);
            number.0 > 0 && !struck && !state.disabled.contains_key(&number) && self.works(number)
        };
        let is_cut = |a: NodeNumber, b: NodeNumber| {
            new_cuts.contains(&(a, b)) || state.cuts.contains_key(&(node_ip(a.0), node_ip(b.0)))
        };
        quorum_remains(&voters, works, is_cut)
    }
}
