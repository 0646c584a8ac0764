//! What is crashed. Entries 1 to 3 are the founders'.
use std::sync::Arc;

use detcd_core::{
    format::wal::{SECTOR_BYTES as SECTOR, SnapshotMark, Writer},
    proto::raftpb,
    replica::Persist,
};

use crate::{
    history::{History, batch, hard_state, lazy, stray},
    script::{Action, Script},
};

use Action::*;

fn script(name: &str, history: &Arc<History>, segment_bytes: u64, actions: Vec<Action>) -> Script {
    Script { name: name.to_owned(), history: history.clone(), segment_bytes, actions }
}

/// The batch that takes a state in, as the leader of this term has it.
fn take_in(history: &History, index: u64, term: u64) -> Persist {
    Persist { snapshot: Some(history.mark(index)), ..batch(Vec::new(), Some(hard_state(term, index))) }
}

pub fn append() -> Vec<Script> {
    // Up to six sectors in a batch, and one that is part of a sector that was written before.
    let history = Arc::new(History::new(&[(2, 40), (2, 700), (2, 30), (2, 900), (3, 400), (3, 500), (3, 450)]));
    let of = |indices: std::ops::RangeInclusive<u64>| history.entries(indices);
    let large = 1 << 14;
    vec![
        script(
            "batches of some sectors",
            &history,
            large,
            vec![
                Append(vec![batch(of(4..=4), Some(hard_state(2, 3)))]),
                Append(vec![batch(of(5..=7), None), lazy(hard_state(2, 4))]),
                Append(vec![lazy(hard_state(2, 5))]),
                Append(vec![lazy(hard_state(2, 7))]),
                Append(vec![batch(of(8..=8), Some(hard_state(3, 7))), batch(of(9..=10), Some(hard_state(3, 8)))]),
                Append(vec![batch(Vec::new(), Some(hard_state(4, 8)))]),
                Append(vec![lazy(hard_state(4, 10))]),
                Flush,
            ],
        ),
        script(
            "a tail that conflicts and is replaced",
            &history,
            large,
            vec![
                Append(vec![batch(of(4..=5), Some(hard_state(2, 4)))]),
                Append(vec![batch(vec![stray(6, 2, 600), stray(7, 2, 20), stray(8, 2, 900)], None)]),
                Append(vec![batch(of(6..=6), Some(hard_state(3, 5)))]),
                Append(vec![batch(vec![stray(7, 3, 300), stray(8, 3, 300)], None), batch(of(7..=8), None)]),
                Append(vec![batch(of(9..=10), Some(hard_state(4, 9)))]),
            ],
        ),
    ]
}

pub fn rotate() -> Vec<Script> {
    let history = Arc::new(History::new(&[(2, 500), (2, 700), (2, 30), (2, 900), (3, 2600), (3, 500), (3, 50)]));
    let of = |indices: std::ops::RangeInclusive<u64>| history.entries(indices);
    vec![
        script(
            "batches across the segment's end",
            &history,
            2_048,
            vec![
                Append(vec![batch(of(4..=4), Some(hard_state(2, 3)))]),
                Append(vec![batch(of(5..=7), Some(hard_state(2, 4)))]),
                Append(vec![lazy(hard_state(2, 7))]),
                Append(vec![batch(of(8..=8), None)]),
                Append(vec![batch(of(9..=10), Some(hard_state(3, 8)))]),
            ],
        ),
        script(
            "a conflicting tail across the segment's end",
            &history,
            1_536,
            vec![
                Append(vec![batch(of(4..=4), Some(hard_state(2, 4)))]),
                Append(vec![batch(vec![stray(5, 2, 600), stray(6, 2, 500)], None)]),
                Append(vec![batch(of(5..=5), Some(hard_state(3, 4)))]),
                Append(vec![batch(vec![stray(6, 3, 900)], None), lazy(hard_state(3, 5))]),
                Append(vec![batch(of(6..=10), Some(hard_state(4, 9)))]),
            ],
        ),
    ]
}

pub fn checkpoint() -> Vec<Script> {
    let history = Arc::new(History::new(&[(2, 500), (2, 700), (2, 30), (2, 900), (3, 600), (3, 500), (3, 50)]));
    let of = |indices: std::ops::RangeInclusive<u64>| history.entries(indices);
    vec![
        script(
            "a checkpoint, and another",
            &history,
            2_048,
            vec![
                Append(vec![batch(of(4..=5), Some(hard_state(2, 5)))]),
                Write(5),
                Append(vec![batch(of(6..=7), None), lazy(hard_state(2, 6))]),
                Adopt(5),
                Append(vec![batch(of(8..=8), Some(hard_state(3, 8)))]),
                Write(8),
                Adopt(8),
                Append(vec![batch(of(9..=9), None)]),
            ],
        ),
        script(
            "a checkpoint of what is committed and not on record as such",
            &history,
            4_096,
            vec![
                Append(vec![batch(of(4..=7), Some(hard_state(2, 4)))]),
                Append(vec![lazy(hard_state(2, 7))]),
                Write(7),
                Adopt(7),
            ],
        ),
    ]
}

fn installing(history: &Arc<History>) -> Vec<Script> {
    let of = |indices: std::ops::RangeInclusive<u64>| history.entries(indices);
    vec![
        script(
            "a state for a member that is behind",
            history,
            3_072,
            vec![
                Append(vec![batch(of(4..=5), Some(hard_state(2, 4)))]),
                Receive(8),
                Append(vec![take_in(history, 8, 3)]),
                Append(vec![batch(of(9..=9), Some(hard_state(3, 9)))]),
            ],
        ),
        script(
            "a state over a tail that conflicts",
            history,
            4_096,
            vec![
                Append(vec![batch(of(4..=4), Some(hard_state(2, 4)))]),
                Append(vec![batch((5..=9).map(|index| stray(index, 2, 200)).collect(), None)]),
                Receive(8),
                Append(vec![take_in(history, 8, 3), batch(of(9..=10), None)]),
            ],
        ),
        script(
            "a state of what the log holds",
            history,
            4_096,
            vec![
                Append(vec![batch(of(4..=8), Some(hard_state(3, 4)))]),
                Receive(7),
                Append(vec![take_in(history, 7, 3)]),
                Append(vec![lazy(hard_state(3, 8))]),
            ],
        ),
        script(
            "two states, a checkpoint that came too late, and one that did not",
            history,
            4_096,
            vec![
                Append(vec![batch(of(4..=5), Some(hard_state(2, 5)))]),
                Write(5),
                Receive(7),
                Append(vec![take_in(history, 7, 3)]),
                Adopt(5),
                Receive(8),
                Drop(8),
                Receive(9),
                Append(vec![
                    lazy(hard_state(4, 7)),
                    take_in(history, 9, 4),
                    batch(of(10..=10), Some(hard_state(4, 10))),
                ]),
                Write(10),
                Adopt(10),
            ],
        ),
    ]
}

pub fn install() -> Vec<Script> {
    let of_size = |size| Arc::new(History::new(&[(2, size), (2, 700), (2, 30), (2, 400), (3, 600), (3, 500), (3, 50)]));
    let mut scripts = installing(&of_size(300));
    // A sector ends between a mark and the commit index that makes it count, or within the latter.
    for script in 0..3 {
        let of_size = |size| installing(&of_size(size)).swap_remove(script);
        for into_state in [0, 8, 16, 24] {
            let ends_there = |script: &Script| (mark_end(script) + into_state).is_multiple_of(SECTOR);
            let script = (300..).step_by(8).map(of_size).find(ends_there).expect("some size does");
            scripts
                .push(Script { name: format!("{}, {into_state} bytes before a sector's end", script.name), ..script });
        }
    }
    scripts
}

/// Where the first mark ends, in bytes, in a log of one segment.
fn mark_end(script: &Script) -> usize {
    let (mut writer, mut bytes, founding) = (Writer::new(0), Vec::new(), script.history.founding());
    writer.begin(&mut bytes, script.history.metadata(), None);
    founding.entries.iter().for_each(|entry| writer.entry(&mut bytes, entry));
    writer.state(&mut bytes, founding.hard_state);
    let appended = script.actions.iter().filter_map(|action| match action {
        Append(batches) => Some(batches),
        _ => None,
    });
    for batch in appended.flatten() {
        if let Some(mark) = &batch.snapshot {
            let voters = mark.configuration.voters.iter().map(|id| id.0).collect();
            let conf_state = raftpb::ConfState { voters, auto_leave: Some(false), ..Default::default() };
            let (index, term) = (mark.index, mark.term);
            writer.snapshot(&mut bytes, &SnapshotMark { index, term, conf_state: Some(conf_state) });
            return bytes.len();
        }
        batch.entries.iter().for_each(|entry| writer.entry(&mut bytes, entry));
        batch.hard_state.into_iter().for_each(|state| writer.state(&mut bytes, state));
    }
    unreachable!("it takes a state in")
}
