//! The core's behaviour as stories: scripts of commands, each with what the members do on it, in order.
//!
//! A script is a text of blocks; lines that begin with `#` are comments.
//!
//! ```text
//! propose 1 put a=1
//! read 2
//! ----
//! what comes of it, up to a blank line
//! ```
//!
//! `DETCD_REWRITE=1 cargo test -p detcd-core --test scripts` writes down what happens now: read the difference.
mod bench;
#[path = "../disk/mod.rs"]
mod disk;
mod show;
mod words;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use detcd_core::{limits, proto::raftpb, types::Index};

use self::{bench::Bench, words::Script};

fn scripts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let files = directory.read_dir().expect("the scripts lie beside this file").map(|entry| entry.unwrap().path());
    let mut scripts: Vec<_> = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "txt")).collect();
    scripts.sort();
    scripts
}

#[test]
fn scripts_tell_what_happens() {
    let rewrite = std::env::var_os("DETCD_REWRITE").is_some();
    let mut wrong = Vec::new();
    for path in scripts() {
        let expected = std::fs::read_to_string(&path).unwrap();
        let told = Script::run(&expected).told;
        if told == expected {
            continue;
        }
        if rewrite {
            #[expect(clippy::disallowed_methods, reason = "a script is rewritten by hand, not by the core")]
            std::fs::write(&path, told).unwrap();
            continue;
        }
        let same = told.lines().zip(expected.lines()).take_while(|(told, expected)| told == expected).count();
        let line = |text: &str| text.lines().nth(same).unwrap_or("(the end)").to_owned();
        let (expected, told) = (line(&expected), line(&told));
        wrong.push(format!("{}:{}\n  expected: {expected}\n  happened: {told}", path.display(), same + 1));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_inputs_give_the_same_outputs_byte_for_byte() {
    for path in scripts() {
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, second) = (Script::run(&text).record, Script::run(&text).record);
        assert!(!first.is_empty());
        assert!(first == second, "{}", path.display());
    }
}

#[test]
fn a_follower_far_behind_is_fed_in_messages_of_bounded_size() {
    let mut bench = Bench::new(3, limits::TAIL_BYTES);
    words::elect(&mut bench, 1);
    bench.isolate(2);
    let value = Bytes::from(vec![b'x'; 60_000]);
    for _ in 0..50 {
        bench.propose(1, words::put(Bytes::from_static(b"a"), value.clone()));
        bench.stabilize(&[1, 3]);
    }
    bench.join();
    bench.tick(1);
    bench.stabilize(&[1, 2, 3]);
    assert_eq!(bench.replica(1).unwrap().status(), bench.replica(2).unwrap().status());
    let bound = limits::APPEND_BYTES_MAX as usize + 1_000;
    assert!(bench.largest > value.len() * 10 && bench.largest <= bound, "{} bytes", bench.largest);
}

#[test]
fn a_state_that_is_not_what_its_message_says_is_dropped() {
    #[track_caller]
    fn check(spoil: impl Fn(&mut raftpb::SnapshotMetadata), taken_in: bool) {
        let mut bench = Bench::new(3, 0);
        words::elect(&mut bench, 1);
        bench.isolate(3);
        bench.propose(1, words::put(Bytes::from_static(b"a"), Bytes::from_static(b"1")));
        for _ in 0..20 {
            bench.tick(1);
            bench.tick(2);
            bench.stabilize(&[1, 2]);
        }
        bench.join();
        bench.tick(1);
        bench.stabilize_messages(&[1, 3]);
        bench.spoil_snapshots(|message| spoil(message.snapshot.as_mut().unwrap().metadata.as_mut().unwrap()));
        bench.story.clear();
        assert_eq!(bench.deliver_snapshots(1, 3, true), 1);
        assert_eq!(bench.story.contains("3 drops the state of 6"), !taken_in, "{}", bench.story);
        // Whatever came of it, the next one is good.
        bench.tick(1);
        bench.stabilize(&[1, 2, 3]);
        assert_eq!(bench.replica(3).unwrap().machine().applied(), Index(6));
    }
    check(|_| {}, true);
    check(|metadata| metadata.index = Some(7), false);
    check(|metadata| metadata.term = Some(1), false);
    check(|metadata| metadata.conf_state.as_mut().unwrap().voters.truncate(2), false);
    check(|metadata| metadata.conf_state.as_mut().unwrap().learners.push(4), false);
    check(|metadata| metadata.conf_state.as_mut().unwrap().voters_outgoing.push(3), false);
}
