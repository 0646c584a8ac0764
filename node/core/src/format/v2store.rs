//! etcd's old store, as its snapshots carry it: a JSON tree of which only membership and cluster version are left.
//!
//! ```text
//! /0/members/ID/raftAttributes   {"peerURLs":[...],"isLearner":true}
//! /0/members/ID/attributes       {"name":"...","clientURLs":[...]}; not there before the member published itself
//! /0/removed_members/ID
//! /0/version                     3.6.0
//! /1                             where keys were once; empty
//! ```
//!
//! etcd 3.5 takes its membership from here, and 3.6 checks changes against it. So it is written complete, and as of
//! exactly the snapshot's index; of a tree that was read, what is missing counts as empty. The statistics and the
//! events that etcd keeps beside the tree mean nothing and are left out.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    machine::membership::{ChangeError, Member, Membership},
    types::MemberId,
};

/// A time that never comes, in the words of etcd's JSON.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// The version of the tree itself.
const TREE_VERSION: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("the old store is no JSON: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("{path} in the old store: {reason}")]
    Node { path: String, reason: String },
    #[error("the old store has a membership that cannot be: {0}")]
    Membership(#[from] ChangeError),
}

#[derive(Debug, Serialize, Deserialize)]
struct Store {
    #[serde(rename = "Root")]
    root: Node,
    #[serde(rename = "CurrentIndex", default)]
    index: u64,
    #[serde(rename = "CurrentVersion", default)]
    version: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    path: String,
    #[serde(default)]
    created_index: u64,
    #[serde(default)]
    modified_index: u64,
    /// There is one for each member that was ever removed, so what goes without saying is left out.
    #[serde(default = "never", skip_serializing_if = "is_never")]
    expire_time: String,
    #[serde(default)]
    value: String,
    /// A file has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    children: Option<BTreeMap<String, Node>>,
}

fn never() -> String {
    NEVER.to_owned()
}

fn is_never(time: &str) -> bool {
    time == NEVER
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RaftAttributes {
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Attributes {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", skip_serializing_if = "Option::is_none")]
    client_urls: Option<Vec<String>>,
}

/// The tree for a snapshot taken with this membership and cluster version.
pub fn write(membership: &Membership, cluster_version: Option<&str>) -> Vec<u8> {
    let mut tree = Tree { index: 0 };
    let members = membership.members().map(|member| (member.id.to_string(), tree.member(member)));
    let members = members.collect();
    let removed = membership.removed().map(|id| {
        let path = format!("/0/removed_members/{id}");
        (id.to_string(), tree.file(path, String::new()))
    });
    let removed: BTreeMap<_, _> = removed.collect();
    let mut cluster = BTreeMap::from([("members".to_owned(), tree.directory("/0/members", members))]);
    if !removed.is_empty() {
        cluster.insert("removed_members".to_owned(), tree.directory("/0/removed_members", removed));
    }
    if let Some(version) = cluster_version {
        cluster.insert("version".to_owned(), tree.file("/0/version".to_owned(), version.to_owned()));
    }
    let top = BTreeMap::from([
        ("0".to_owned(), tree.directory("/0", cluster)),
        ("1".to_owned(), tree.directory("/1", BTreeMap::new())),
    ]);
    let store = Store { root: tree.directory("/", top), index: tree.index, version: TREE_VERSION };
    serde_json::to_vec(&store).expect("a tree of text is JSON")
}

/// Makes nodes, each at an index of its own, as if each had been written once.
struct Tree {
    index: u64,
}

impl Tree {
    fn member(&mut self, member: &Member) -> Node {
        let path = format!("/0/members/{}", member.id);
        let raft = RaftAttributes { peer_urls: Some(member.peer_urls.clone()), is_learner: member.is_learner };
        let client_urls = Some(member.client_urls.clone()).filter(|urls| !urls.is_empty());
        let attributes = Attributes { name: member.name.clone(), client_urls };
        let mut children =
            BTreeMap::from([("raftAttributes".to_owned(), self.json(format!("{path}/raftAttributes"), &raft))]);
        if !attributes.name.is_empty() || attributes.client_urls.is_some() {
            children.insert("attributes".to_owned(), self.json(format!("{path}/attributes"), &attributes));
        }
        self.directory(&path, children)
    }

    fn json(&mut self, path: String, value: &impl Serialize) -> Node {
        self.file(path, serde_json::to_string(value).expect("text is JSON"))
    }

    fn file(&mut self, path: String, value: String) -> Node {
        self.index += 1;
        let (created_index, modified_index) = (self.index, self.index);
        Node { path, created_index, modified_index, expire_time: never(), value, children: None }
    }

    fn directory(&self, path: &str, children: BTreeMap<String, Node>) -> Node {
        // The root and its children were never written; the others came with their first child.
        let first = children.values().map(|child| child.created_index).min();
        let index = first.filter(|_| path.matches('/').count() > 1).unwrap_or(0);
        Node {
            path: path.to_owned(),
            created_index: index,
            modified_index: index,
            expire_time: never(),
            value: String::new(),
            children: Some(children),
        }
    }
}

/// What a snapshot's tree says of the cluster.
pub fn read(data: &[u8]) -> Result<(Membership, Option<Arc<str>>), TreeError> {
    let store: Store = serde_json::from_slice(data)?;
    let cluster = store.root.child("0");
    let mut members = Vec::new();
    for (name, node) in children(cluster.and_then(|node| node.child("members"))) {
        members.push(member(name, node)?);
    }
    let mut removed = BTreeSet::new();
    for (name, _) in children(cluster.and_then(|node| node.child("removed_members"))) {
        removed.insert(member_id("/0/removed_members", name)?);
    }
    let version = cluster.and_then(|node| node.child("version")).map(|node| node.value.as_str().into());
    Ok((Membership::restore(members, removed)?, version))
}

impl Node {
    fn child(&self, name: &str) -> Option<&Node> {
        self.children.as_ref()?.get(name)
    }
}

fn children(node: Option<&Node>) -> impl Iterator<Item = (&str, &Node)> {
    let children = node.and_then(|node| node.children.as_ref()).into_iter().flatten();
    children.map(|(name, node)| (name.as_str(), node))
}

fn member_id(parent: &str, name: &str) -> Result<MemberId, TreeError> {
    let plain = name.bytes().all(|digit| digit.is_ascii_hexdigit());
    let id = plain.then(|| u64::from_str_radix(name, 16).ok()).flatten();
    let reason = || TreeError::Node { path: format!("{parent}/{name}"), reason: "no member's id".into() };
    id.map(MemberId).ok_or_else(reason)
}

fn member(name: &str, node: &Node) -> Result<Member, TreeError> {
    let id = member_id("/0/members", name)?;
    let raft = node.child("raftAttributes");
    let raft: RaftAttributes = attributes(id, "raftAttributes", raft.map_or("", |raft| &raft.value))?;
    // A member is there before it publishes its attributes.
    let published = node.child("attributes");
    let published: Attributes = match published {
        Some(node) => attributes(id, "attributes", &node.value)?,
        None => Attributes::default(),
    };
    Ok(Member {
        id,
        peer_urls: raft.peer_urls.unwrap_or_default(),
        is_learner: raft.is_learner,
        name: published.name,
        client_urls: published.client_urls.unwrap_or_default(),
    })
}

fn attributes<'a, T: Deserialize<'a>>(id: MemberId, name: &str, value: &'a str) -> Result<T, TreeError> {
    serde_json::from_str(value)
        .map_err(|error| TreeError::Node { path: format!("/0/members/{id}/{name}"), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let mut members = ["a", "b", "c"].map(|name| Member::founding(name, vec![format!("http://{name}:1")], "t"));
        members[0].client_urls = vec!["http://a:2".into(), "http://a:3".into()];
        members[1].is_learner = true;
        members[2].name = String::new();
        Membership::restore(members.to_vec(), [MemberId(7), MemberId(u64::MAX)].into()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let (read, version) = read(&write(&membership(), Some("3.6.0"))).unwrap();
        assert_eq!((read, version.as_deref()), (membership(), Some("3.6.0")));
        let (read, version) = super::read(&write(&Membership::default(), None)).unwrap();
        assert_eq!((read, version), (Membership::default(), None));
    }

    /// They are remembered for ever, in each snapshot.
    #[test]
    fn a_removed_member_takes_little_room() {
        let bytes = |removed: u64| {
            let removed = (0..removed).map(|number| MemberId(u64::MAX - number)).collect();
            write(&Membership::restore(Vec::new(), removed).unwrap(), None).len()
        };
        let each = (bytes(2_000) - bytes(1_000)) / 1_000;
        assert!(each <= 130, "{each} bytes");
    }

    #[test]
    fn what_is_missing_is_empty_and_what_is_wrong_is_named() {
        #[track_caller]
        fn check(data: &str, expected: Result<usize, &str>) {
            match (read(data.as_bytes()), expected) {
                (Ok((membership, _)), Ok(members)) => assert_eq!(membership.members().len(), members),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (read, _) => panic!("{read:?}"),
            }
        }
        let members = |members: &str| {
            format!(r#"{{"Root":{{"Children":{{"0":{{"Children":{{"members":{{"Children":{members}}}}}}}}}}}}}"#)
        };
        check(r#"{"Root":{}}"#, Ok(0));
        check(r#"{"Root":{"Children":null}}"#, Ok(0));
        check(&members("{}"), Ok(0));
        check(&members(r#"{"a1":{"Children":{"raftAttributes":{"Value":"{\"peerURLs\":null}"}}}}"#), Ok(1));
        check(&members(r#"{"a1":{"Children":{"attributes":{"Value":"{}"}}}}"#), Err("/0/members/a1/raftAttributes"));
        check(&members(r#"{"+a":{"Children":{}}}"#), Err("/0/members/+a"));
        check("", Err("no JSON"));
        check("{}", Err("no JSON"));
    }
}
