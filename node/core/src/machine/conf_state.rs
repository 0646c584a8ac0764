//! Who votes, as raft and etcd's files want to be told: the membership without addresses.
use raft::eraftpb;

use super::membership::Membership;
use crate::proto::raftpb;

impl Membership {
    /// Voters and learners, in ascending order. Nobody is ever on the way in or out: changes are single steps.
    pub fn conf_state(&self) -> raftpb::ConfState {
        let ids =
            |learners| self.members().filter(move |member| member.is_learner == learners).map(|member| member.id.0);
        raftpb::ConfState {
            voters: ids(false).collect(),
            learners: ids(true).collect(),
            auto_leave: Some(false),
            ..Default::default()
        }
    }
}

/// The same in raft-rs's words.
pub fn to_raft(state: &raftpb::ConfState) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave(),
        ..Default::default()
    }
}

/// etcd's JSON of it, as it stands in the backend: lists that are empty are left out.
pub(super) fn to_json(state: &raftpb::ConfState) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Json<'a> {
        #[serde(skip_serializing_if = "<[u64]>::is_empty")]
        voters: &'a [u64],
        #[serde(skip_serializing_if = "<[u64]>::is_empty")]
        learners: &'a [u64],
        auto_leave: bool,
    }
    let json = Json { voters: &state.voters, learners: &state.learners, auto_leave: state.auto_leave() };
    serde_json::to_vec(&json).expect("numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::membership::{Change, Member};

    #[test]
    fn voters_and_learners_are_told_apart_in_ascending_order() {
        let mut membership = Membership::default();
        let members = ["c", "a", "b"].map(|name| Member::founding(name, vec![format!("http://{name}:1")], "t"));
        let mut expected: Vec<_> = members.iter().map(|member| member.id.0).collect();
        for (member, is_learner) in members.into_iter().zip([true, false, false]) {
            membership.apply(Change::Add(Member { is_learner, ..member })).unwrap();
        }
        let learner = expected.remove(0);
        expected.sort();
        let state = membership.conf_state();
        assert_eq!((&state.voters, &state.learners), (&expected, &vec![learner]));
        let raft = to_raft(&state);
        assert_eq!((&raft.voters, &raft.learners, raft.auto_leave), (&expected, &vec![learner], false));
        let json =
            format!(r#"{{"voters":[{},{}],"learners":[{learner}],"auto_leave":false}}"#, expected[0], expected[1]);
        assert_eq!(to_json(&state), json.as_bytes());
        assert_eq!(to_json(&Membership::default().conf_state()), br#"{"auto_leave":false}"#);
    }
}
