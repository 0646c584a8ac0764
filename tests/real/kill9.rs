//! Law: no acknowledged write is lost to kill -9, and a killed member serves again.
//!
//! Clients put unique values to a few keys while members are killed at random times: one, or now and then all at once.
//! Every so often the clients pause and every key is read from every member. `DETCD_KILLS` says how often to kill
//! (10 without it), `DETCD_SEED` repeats a run's choices (not its timing: these are real processes).
use super::{
    load::{Choices, Load, read_all, rounds},
    runtime,
};
use detcd_tests::harness::Cluster;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

const KILLS_DEFAULT: usize = 10;
/// Every so many kills, and at the end, all keys are judged.
const KILLS_PER_CHECK: usize = 10;
/// One kill in so many takes all members at once.
const ALL_AT_ONCE: u64 = 5;

#[test]
fn one_member() {
    kill_under_load(1);
}

#[test]
fn three_members() {
    kill_under_load(3);
}

/// The planted violation: of a member that forgot its disk, this test must say so.
#[test]
fn a_wiped_member_is_noticed() {
    let mut cluster = Cluster::start(1);
    let runtime = runtime();
    let load = Load::start(&runtime, vec![cluster.member(0).site()]);
    load.await_progress(0);
    runtime.block_on(load.check()).expect("nothing is lost yet");
    cluster.member(0).kill9();
    std::fs::remove_dir_all(&cluster.member(0).data_dir).expect("the data directory goes");
    cluster.member(0).restart();
    runtime.block_on(load.check()).expect_err("a lost store is noticed");
}

fn kill_under_load(members: usize) {
    let kills = rounds("DETCD_KILLS", KILLS_DEFAULT);
    let mut choices = Choices::draw();
    let mut cluster = Cluster::start(members);
    let sites: Vec<_> = cluster.members.iter().map(|member| member.site()).collect();
    let runtime = runtime();
    let load = Load::start(&runtime, sites.clone());
    let mut slowest = Duration::ZERO;
    for kill in 1..=kills {
        sleep(Duration::from_millis(20 + choices.below(400)));
        let victim = choices.below(members as u64) as usize;
        let all = choices.below(ALL_AT_ONCE) == 0;
        let victims: Vec<_> = (0..members).filter(|&member| all || member == victim).collect();
        let before = load.acknowledged();
        victims.iter().for_each(|&member| cluster.member(member).kill9());
        choices.pause(300);
        let restarted = Instant::now();
        victims.iter().for_each(|&member| cluster.member(member).launch());
        for member in victims {
            cluster.member(member).wait_ready();
            runtime.block_on(read_all(&sites[member])).unwrap_or_else(|why| panic!("kill {kill}: {why}"));
        }
        slowest = slowest.max(restarted.elapsed());
        load.await_progress(before);
        if kill % KILLS_PER_CHECK == 0 || kill == kills {
            runtime.block_on(load.check()).unwrap_or_else(|why| panic!("after kill {kill}: {why}"));
        }
    }
    load.stop();
    println!("{members} member(s), {kills} kills: {}; slowest return {slowest:?}", load.figures());
}
