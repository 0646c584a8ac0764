//! Snapshots that real etcds wrote beside their backends.
use detcd_core::{
    format::{
        snap::{self, Snapshot},
        v2store,
        wal::Record,
    },
    types::Index,
};

use super::{
    files::{self, for_each_version},
    logs::Log,
};

#[test]
fn we_write_what_they_wrote() {
    for_each_version(|files| {
        let snapshot = Snapshot::decode(&files.snap).unwrap();
        assert_eq!((snapshot.term, snapshot.index), files.snap_name);
        assert_eq!(snap::parse_name(&snap::name(snapshot.term, snapshot.index)), Some(files.snap_name));
        assert_eq!(snapshot.encode(), files.snap);
    });
}

#[test]
fn the_log_knows_the_snapshot() {
    for_each_version(|files| {
        let snapshot = Snapshot::decode(&files.snap).unwrap();
        let log = Log::of(files);
        let marks = log.records.iter().filter_map(|record| match record {
            Record::Snapshot(mark) if mark.index != Index(0) => Some(mark),
            _ => None,
        });
        let mark = marks.last().expect("it was taken while the log was written");
        assert_eq!((mark.index, mark.term), (snapshot.index, snapshot.term));
        assert_eq!(mark.conf_state.as_ref(), Some(&snapshot.conf_state));
    });
}

/// It was taken before one member was removed and another one added.
#[test]
fn its_tree_has_the_members_of_then() {
    for_each_version(|files| {
        let snapshot = Snapshot::decode(&files.snap).unwrap();
        let (membership, version) = v2store::read(&snapshot.data).unwrap();
        assert_eq!(version.as_deref(), Some(files.cluster_version().as_str()));
        assert_eq!(membership.conf_state(), snapshot.conf_state);
        let names: Vec<_> = membership.members().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["n2", "n1", "n3"], "by id");
        assert!(membership.members().all(|member| member.client_urls.len() == 1 && !member.is_learner));
        assert!(membership.members().any(|member| files::hex(member.id) == files.asked_to_remove));
        assert_eq!(membership.removed().count(), 0);
        let ours = v2store::write(&membership, version.as_deref());
        assert_eq!(v2store::read(&ours).unwrap(), (membership, version));
    });
}

/// Node by node our tree has what theirs has; only the counters of reads and writes differ, and what goes without saying
/// ours does not say.
#[test]
fn our_tree_is_built_like_theirs() {
    fn nodes(node: &serde_json::Value, found: &mut Vec<(String, String, bool)>) {
        let text = |name: &str| node[name].as_str().expect("every node has it").to_owned();
        assert!(node.get("ExpireTime").is_none_or(|time| time == "0001-01-01T00:00:00Z"));
        assert!(node["CreatedIndex"].is_u64() && node["ModifiedIndex"].is_u64());
        let children = node["Children"].as_object();
        found.push((text("Path"), text("Value"), children.is_some()));
        children.into_iter().flatten().for_each(|(_, child)| nodes(child, found));
    }
    for_each_version(|files| {
        let snapshot = Snapshot::decode(&files.snap).unwrap();
        let (membership, version) = v2store::read(&snapshot.data).unwrap();
        let ours = v2store::write(&membership, version.as_deref());
        let [ours, theirs] = [&ours[..], &snapshot.data[..]].map(|data| {
            let tree: serde_json::Value = serde_json::from_slice(data).unwrap();
            let mut found = Vec::new();
            nodes(&tree["Root"], &mut found);
            (found, tree["CurrentIndex"].as_u64(), tree["CurrentVersion"].as_u64())
        });
        assert_eq!(ours, theirs);
    });
}
