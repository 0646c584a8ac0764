//! Who belongs to the cluster: the one source of truth, changed only by applying the log.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::{
    limits::LEARNERS_MAX,
    types::{ClusterId, MemberId},
};

/// A member, in etcd's JSON form: as it stands in configuration entries and in etcd's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    #[serde(with = "id")]
    pub id: MemberId,
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    pub is_learner: bool,
    /// Empty until the member has published itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

mod id {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::MemberId;

    pub fn serialize<S: Serializer>(id: &MemberId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(id.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MemberId, D::Error> {
        u64::deserialize(deserializer).map(MemberId)
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Member {
    /// A member added to a running cluster: its id follows from its URLs and the time, in seconds since 1970.
    pub fn added(mut peer_urls: Vec<String>, is_learner: bool, unix_seconds: u64) -> Member {
        peer_urls.sort();
        let mut hash = Sha1::new();
        peer_urls.iter().for_each(|url| hash.update(url));
        hash.update(unix_seconds.to_string());
        let id = MemberId(first_eight(hash));
        Member { id, peer_urls, is_learner, name: String::new(), client_urls: Vec::new() }
    }

    /// Whether it has ever published itself.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// A founding member: its id follows from its URLs and the cluster's token, so all members derive the same.
    pub fn founding(name: &str, mut peer_urls: Vec<String>, token: &str) -> Member {
        peer_urls.sort();
        let mut hash = Sha1::new();
        peer_urls.iter().for_each(|url| hash.update(url));
        hash.update(token);
        Member {
            id: MemberId(first_eight(hash)),
            peer_urls,
            is_learner: false,
            name: name.to_owned(),
            client_urls: Vec::new(),
        }
    }
}

/// A cluster's id follows from its founding members'.
pub fn cluster_id(founders: &[Member]) -> ClusterId {
    let ids: BTreeSet<_> = founders.iter().map(|member| member.id).collect();
    let mut hash = Sha1::new();
    ids.iter().for_each(|id| hash.update(id.0.to_be_bytes()));
    ClusterId(first_eight(hash))
}

fn first_eight(hash: Sha1) -> u64 {
    let bytes = hash.finalize();
    u64::from_be_bytes(bytes[..8].try_into().expect("a SHA-1 has 20 bytes"))
}

/// Who has a say, and who only listens. Ids ascend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Configuration {
    pub voters: Vec<MemberId>,
    pub learners: Vec<MemberId>,
}

/// What a configuration entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Add(Member),
    Promote(MemberId),
    Remove(MemberId),
    UpdatePeers(MemberId, Vec<String>),
}

/// Why an entry's change does not apply; the cluster goes on as if it had been empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("member {0} was removed and may never come back")]
    Removed(MemberId),
    #[error("member {0} exists already")]
    Exists(MemberId),
    #[error("member {0} is not in the cluster")]
    Unknown(MemberId),
    #[error("peer URL {0} is in use")]
    UrlInUse(String),
    #[error("member {0} is no learner")]
    NotLearner(MemberId),
    #[error("there are as many learners as there may be")]
    TooManyLearners,
    #[error("there must be a voter left")]
    LastVoter,
}

/// Invariants: no id is both a member and removed; ids are never 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
}

impl Membership {
    /// As it stands in etcd's files, which may hold anything.
    pub fn restore(members: Vec<Member>, removed: BTreeSet<MemberId>) -> Result<Membership, ChangeError> {
        let mut membership = Membership { members: BTreeMap::new(), removed };
        for member in members {
            let id = member.id;
            if id == MemberId(0) {
                return Err(ChangeError::Unknown(id));
            } else if membership.removed.contains(&id) {
                return Err(ChangeError::Removed(id));
            } else if membership.members.insert(id, member).is_some() {
                return Err(ChangeError::Exists(id));
            }
        }
        Ok(membership)
    }

    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    pub fn removed(&self) -> impl Iterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    pub fn configuration(&self) -> Configuration {
        let (learners, voters): (Vec<_>, Vec<_>) = self.members.values().partition(|member| member.is_learner);
        let ids = |members: Vec<&Member>| members.into_iter().map(|member| member.id).collect();
        Configuration { voters: ids(voters), learners: ids(learners) }
    }

    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| !member.is_learner)
    }

    /// Whether enough voters have started to form a quorum once there is one more that has not. From one to two is
    /// let through: there is no other way to grow.
    pub fn could_gain_voter(&self) -> bool {
        let (voters, started) = (self.voters().count(), self.voters().filter(|member| member.is_started()).count());
        (voters, started) == (1, 1) || started > voters.div_ceil(2)
    }

    /// As [`Membership::could_gain_voter`], with a learner that becomes one: it counts as started.
    pub fn could_promote(&self) -> bool {
        let (voters, started) = (self.voters().count(), self.voters().filter(|member| member.is_started()).count());
        started + 1 > voters.div_ceil(2)
    }

    /// Whether enough voters have started to form a quorum without this one. Never without the last.
    pub fn could_lose_voter(&self, id: MemberId) -> bool {
        let rest = || self.voters().filter(|member| member.id != id);
        let (voters, started) = (rest().count(), rest().filter(|member| member.is_started()).count());
        started > voters / 2
    }

    pub fn apply(&mut self, change: Change) -> Result<(), ChangeError> {
        let known = |id: MemberId| {
            if self.removed.contains(&id) {
                Err(ChangeError::Removed(id))
            } else if self.members.contains_key(&id) {
                Ok(())
            } else {
                Err(ChangeError::Unknown(id))
            }
        };
        match change {
            Change::Add(member) => {
                if member.id == MemberId(0) {
                    return Err(ChangeError::Unknown(member.id));
                }
                if self.removed.contains(&member.id) {
                    return Err(ChangeError::Removed(member.id));
                }
                if self.members.contains_key(&member.id) {
                    return Err(ChangeError::Exists(member.id));
                }
                self.check_urls(member.id, &member.peer_urls)?;
                let learners = self.members.values().filter(|member| member.is_learner).count();
                if member.is_learner && learners >= LEARNERS_MAX {
                    return Err(ChangeError::TooManyLearners);
                }
                self.members.insert(member.id, member);
            }
            Change::Promote(id) => {
                known(id)?;
                let member = self.members.get_mut(&id).expect("known");
                if !member.is_learner {
                    return Err(ChangeError::NotLearner(id));
                }
                member.is_learner = false;
            }
            Change::Remove(id) => {
                known(id)?;
                if !self.voters().any(|member| member.id != id) {
                    return Err(ChangeError::LastVoter);
                }
                self.members.remove(&id);
                self.removed.insert(id);
            }
            Change::UpdatePeers(id, urls) => {
                known(id)?;
                self.check_urls(id, &urls)?;
                self.members.get_mut(&id).expect("known").peer_urls = urls;
            }
        }
        Ok(())
    }

    fn check_urls(&self, id: MemberId, urls: &[String]) -> Result<(), ChangeError> {
        let others = self.members.values().filter(|member| member.id != id);
        match others.flat_map(|member| &member.peer_urls).find(|url| urls.contains(url)) {
            Some(url) => Err(ChangeError::UrlInUse(url.clone())),
            None => Ok(()),
        }
    }

    /// Members whose client URLs are missing here get name and client URLs from `other`: etcd 3.5 may keep what a
    /// member published in its old store only. Of who belongs to the cluster nothing changes.
    pub fn fill_attributes(&mut self, other: &Membership) {
        for member in self.members.values_mut().filter(|member| member.client_urls.is_empty()) {
            if let Some(other) = other.get(member.id).filter(|other| !other.client_urls.is_empty()) {
                (member.name, member.client_urls) = (other.name.clone(), other.client_urls.clone());
            }
        }
    }

    /// A member published itself. One that was removed meanwhile stays unknown. Returns whether something changed.
    pub fn publish(&mut self, id: MemberId, name: String, client_urls: Vec<String>) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let changed = member.name != name || member.client_urls != client_urls;
        (member.name, member.client_urls) = (name, client_urls);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_etcd() {
        // What etcd 3.6 logs for `--initial-cluster n1=http://127.0.0.1:12380 --initial-cluster-token etcd-cluster`.
        let member = Member::founding("default", vec!["http://localhost:2380".into()], "etcd-cluster");
        assert_eq!(member.id.to_string(), "8e9e05c52164694d");
        assert_eq!(cluster_id(&[member]).0, 0xcdf8_1819_4e3a_8c32);
    }

    #[test]
    fn members_are_read_and_written_as_etcd_does() {
        let json = r#"{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"name":"default"}"#;
        let member: Member = serde_json::from_str(json).unwrap();
        assert_eq!(member.id, MemberId(0x8e9e_05c5_2164_694d));
        assert_eq!(serde_json::to_string(&member).unwrap(), json);
        let promote: Member = serde_json::from_str(r#"{"id":7,"peerURLs":null,"isPromote":true}"#).unwrap();
        assert!(promote.peer_urls.is_empty());
    }

    #[test]
    fn removed_ids_never_return_and_updates_keep_the_learner_flag() {
        let mut membership = Membership::default();
        let mut member = Member::founding("a", vec!["http://a:1".into()], "t");
        member.is_learner = true;
        let id = member.id;
        membership.apply(Change::Add(member.clone())).unwrap();
        assert_eq!(membership.apply(Change::Add(member.clone())), Err(ChangeError::Exists(id)));
        membership.apply(Change::UpdatePeers(id, vec!["http://a:2".into()])).unwrap();
        assert!(membership.get(id).unwrap().is_learner);
        membership.apply(Change::Promote(id)).unwrap();
        assert_eq!(membership.apply(Change::Promote(id)), Err(ChangeError::NotLearner(id)));
        assert_eq!(membership.apply(Change::Remove(id)), Err(ChangeError::LastVoter));
        let other = Member::founding("b", vec!["http://b:1".into()], "t");
        membership.apply(Change::Add(other)).unwrap();
        membership.apply(Change::Remove(id)).unwrap();
        let nameless = Member { id: MemberId(0), ..member.clone() };
        assert_eq!(membership.apply(Change::Add(nameless)), Err(ChangeError::Unknown(MemberId(0))));
        assert_eq!(membership.apply(Change::Add(member)), Err(ChangeError::Removed(id)));
        assert_eq!(membership.apply(Change::Remove(id)), Err(ChangeError::Removed(id)));
    }

    #[test]
    fn a_quorum_of_started_voters_is_kept() {
        /// Voters that have started, voters that have not, and a learner that has.
        #[track_caller]
        fn check(started: u64, unstarted: u64, gain: bool, lose_started: bool) {
            let mut membership = Membership::default();
            for number in 1..=started + unstarted {
                let mut member = Member::founding("", vec![format!("http://m{number}:1")], "t");
                member.id = MemberId(number);
                member.name = if number <= started { "up".into() } else { String::new() };
                membership.apply(Change::Add(member)).unwrap();
            }
            let mut learner = Member::added(vec!["http://learner:1".into()], true, 1_700_000_000);
            (learner.id, learner.name) = (MemberId(99), "learner".into());
            membership.apply(Change::Add(learner.clone())).unwrap();
            learner.id = MemberId(100);
            learner.peer_urls = vec!["http://other:1".into()];
            assert_eq!(membership.apply(Change::Add(learner)), Err(ChangeError::TooManyLearners));
            assert_eq!(membership.could_gain_voter(), gain);
            assert!(membership.could_promote());
            assert_eq!(membership.could_lose_voter(MemberId(1)), lose_started);
        }
        check(1, 0, true, false); // the last voter stays
        check(1, 1, false, false);
        check(2, 0, true, true);
        check(2, 1, false, false);
        check(3, 0, true, true);
        check(3, 1, true, true);
        check(3, 2, false, false);
    }

    #[test]
    fn an_added_members_id_depends_on_its_urls_and_the_time() {
        let id = |seconds| Member::added(vec!["http://b:1".into(), "http://a:1".into()], false, seconds).id;
        assert_eq!(id(7), Member::added(vec!["http://a:1".into(), "http://b:1".into()], true, 7).id);
        assert_ne!(id(7), id(8));
    }
}
