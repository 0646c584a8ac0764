use raft::eraftpb::Entry;

use super::*;
use crate::machine::membership::Member;

fn config() -> Config {
    Config {
        id: MemberId(1),
        name: "n1".into(),
        client_urls: Vec::new(),
        cluster_version: "3.6.0".into(),
        heartbeat_ms: limits::HEARTBEAT_MS,
        election_ms: limits::ELECTION_MS,
        request_bytes_max: limits::REQUEST_BYTES_MAX,
        tail_bytes: limits::TAIL_BYTES,
        watch_progress_ms: limits::WATCH_PROGRESS_MS,
        seed: 1,
    }
}

/// Of three members, so that none campaigns by itself: a log of so many entries behind the founding ones, all committed.
fn recovered(entries: u64) -> Recovered {
    let founders = [1, 2, 3].map(|id| Member {
        id: MemberId(id),
        peer_urls: vec![format!("http://n{id}")],
        is_learner: false,
        name: format!("n{id}"),
        client_urls: Vec::new(),
    });
    let mut recovered = founding_log(&founders);
    let last = recovered.last().0 + entries;
    let command = Command::MemberAttributes { member: MemberId(2), name: "n".repeat(300), client_urls: Vec::new() };
    let data = bytes::Bytes::from(command.encode(RequestId(7)));
    let entry = |index| Entry { index, term: 1, data: data.clone(), ..Entry::default() };
    let more = (recovered.last().0 + 1..=last).map(entry);
    recovered.entries.extend(more);
    recovered.hard_state = HardState { term: Term(1), vote: MemberId(0), commit: Index(last) };
    recovered
}

#[test]
fn a_long_log_is_applied_in_several_steps() {
    let recovered = recovered(3 * limits::OUTPUTS_MAX as u64);
    let last = recovered.last();
    let (mut replica, mut steps) = (Replica::new(config(), recovered), 0);
    loop {
        let mut out = Vec::new();
        replica.step(Input::Settle, &mut out);
        assert!(out.len() < 2 * limits::OUTPUTS_MAX, "{} outputs at once", out.len());
        steps += 1;
        if !replica.has_work() {
            break;
        }
    }
    assert_eq!(replica.machine().applied(), last);
    assert!(steps >= 3, "{steps} steps");
}
