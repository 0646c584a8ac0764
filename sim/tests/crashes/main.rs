//! Crashes at every step of the disk, enumerated: a log that is appended to, segments that follow each other, checkpoints
//! and received states that get into their places. What is found afterwards must be what a correct run could have left.
//!
//! `history.rs` is what a cluster agreed on, `script.rs` what a member does and what it may be found as, `process.rs`
//! does it with the node's own storage, `explore.rs` crashes it, `lies.rs` are bugs that must be noticed.
mod explore;
mod history;
mod lies;
mod process;
mod script;
mod scripts;

use std::time::Instant;

use madsim::runtime::Runtime;

use crate::{
    explore::{Counts, Wrong, explore, fail_each_sync},
    lies::Lie,
    script::Script,
};

fn run(script: &Script, lie: Option<Lie>) -> Result<Counts, Wrong> {
    Runtime::with_seed_and_config(1, Default::default()).block_on(explore(script, lie))
}

/// All hold, and it was no small matter.
#[track_caller]
fn check(scripts: &[Script], losses_min: u64) {
    let (begun, mut losses) = (Instant::now(), 0);
    for script in scripts {
        let begun = Instant::now();
        let counts = run(script, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        println!("{}: {counts}; {:.1?}", script.name, begun.elapsed());
        losses += counts.losses;
    }
    let took = begun.elapsed();
    println!("{losses} losses in {took:.1?}");
    assert!(losses >= losses_min, "only {losses} losses were tried");
}

#[test]
fn an_append_is_all_or_a_prefix() {
    check(&scripts::append(), 8_000);
}

#[test]
fn segments_follow_each_other_without_a_gap() {
    check(&scripts::rotate(), 12_000);
}

#[test]
fn a_checkpoint_is_the_old_state_or_the_new() {
    check(&scripts::checkpoint(), 60_000);
}

#[test]
fn an_installed_state_is_the_old_one_or_the_new() {
    check(&scripts::install(), 250_000);
}

#[test]
fn what_is_found_after_a_sync_failed_is_there_to_stay() {
    let scripts = [scripts::append(), scripts::rotate(), scripts::checkpoint(), scripts::install()];
    let mut failed = 0;
    for script in scripts.into_iter().flatten() {
        let run = async { fail_each_sync(&script).await };
        failed += Runtime::with_seed_and_config(1, Default::default())
            .block_on(run)
            .unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    assert!(failed > 100, "only {failed} syncs failed");
}

/// Then a start goes on with the segment that is there.
#[test]
fn without_room_for_a_new_segment_an_append_is_all_or_a_prefix() {
    for script in scripts::append() {
        run(&script, Some(Lie::NoRoom)).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

/// A disk that does not do what it is told is noticed, so a node that does not tell it would be.
#[test]
fn what_is_not_durable_in_time_is_noticed() {
    let table = [
        (Lie::NoSync("wal", ".tmp"), scripts::append()),
        (Lie::NoSync("wal", ".wal"), scripts::append()),
        (Lie::NoCut, scripts::append()),
        (Lie::NoDirSync("var"), scripts::append()),
        (Lie::NoDirSync("data"), scripts::append()),
        (Lie::NoDirSync("member"), scripts::append()),
        (Lie::NoDirSync("wal"), scripts::rotate()),
        (Lie::NoDirSync("snap"), scripts::checkpoint()),
        (Lie::NoSync("snap", ".db"), scripts::checkpoint()),
        (Lie::NoSync("snap", ".snap"), scripts::checkpoint()),
        (Lie::NoSync("snap", ".xxh3"), scripts::checkpoint()),
        (Lie::LateNames, scripts::checkpoint()),
        (Lie::EarlyRelease, scripts::checkpoint()),
        (Lie::NoDirSync("snap"), scripts::install()),
        (Lie::NoSync("snap", ".db"), scripts::install()),
        (Lie::NoSync("snap", ".snap"), scripts::install()),
    ];
    for (lie, scripts) in table {
        let noticed = scripts.iter().find_map(|script| run(script, Some(lie)).err());
        match noticed.unwrap_or_else(|| panic!("nobody noticed {lie:?}")) {
            Wrong::Left(what) => println!("{lie:?}: {}", what.lines().next().expect("it says what")),
            // A script that cannot be carried out proves nothing.
            Wrong::Script(what) => panic!("{lie:?}: {what}"),
        }
    }
}
