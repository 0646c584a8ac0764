//! States on their way to the same place must not take each other's files.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use detcd_core::types::Index;
use parking_lot::Mutex;

use super::{Image, Pieces, REST_MAX, ReceiveError, Snapshots, receive};
use crate::{
    error::Failure,
    host::{Clock, Sleep},
    testing::{Memory, Nowhere, snapshot_message as message, state},
};

struct Stream(Vec<Result<Bytes, String>>);

impl Stream {
    async fn whole(index: u64) -> Stream {
        let mut image = Image::of(state(index)).await;
        let mut pieces = Vec::new();
        while let Some(piece) = image.next().await {
            pieces.insert(0, Ok(piece.into()));
        }
        Stream(pieces)
    }

    fn cut() -> Stream {
        Stream(vec![Err("the connection broke".into())])
    }
}

impl Pieces for Stream {
    async fn next(&mut self) -> Option<Result<Bytes, String>> {
        self.0.pop()
    }
}

async fn open() -> (Arc<Memory>, Snapshots) {
    let disk = Arc::<Memory>::default();
    let (snapshots, _) = Snapshots::open(disk.clone(), Path::new("/snap"), 5).await.unwrap();
    (disk, snapshots)
}

#[tokio::test]
async fn a_state_on_its_way_into_place_is_safe_from_the_next_of_its_index() {
    let (_, mut snapshots) = open().await;
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    // Its connection broke before the leader heard of it, so it comes again, and that may break too.
    for mut again in [Stream::cut(), Stream::whole(5).await] {
        let refused = receive(&snapshots, &message(5), &mut again, false).await;
        assert!(matches!(refused, Err(ReceiveError::Busy(Index(5)))), "{:?}", refused.map(drop));
    }
    // Those of other indexes are no danger, and one that breaks leaves nothing.
    assert!(receive(&snapshots, &message(7), &mut Stream::cut(), false).await.is_err());
    receive(&snapshots, &message(7), &mut Stream::whole(7).await, false).await.unwrap();
    snapshots.place_received(Index(5)).await.unwrap();
    snapshots.drop_received(Index(7)).await.unwrap();
    assert_eq!(snapshots.read(Index(5), None).await.unwrap().applied(), Index(5));
    snapshots.settle(Index(5), Index(5)).await.unwrap();
    // The way is free again.
    for index in [5, 7] {
        receive(&snapshots, &message(index), &mut Stream::whole(index).await, false).await.unwrap();
    }
}

#[tokio::test]
async fn a_checkpoint_is_safe_from_a_received_state_of_its_index() {
    let (_, mut snapshots) = open().await;
    let written = snapshots.write_checkpoint(state(5), &Nowhere).await.unwrap();
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    snapshots.drop_received(Index(5)).await.unwrap();
    assert!(snapshots.place_checkpoint(&written).await.unwrap());
    assert_eq!(snapshots.read(Index(5), None).await.unwrap().applied(), Index(5));
    snapshots.settle(Index(5), Index(5)).await.unwrap();
}

#[tokio::test]
async fn a_state_that_does_not_arrive_leaves_nothing() {
    let (disk, snapshots) = open().await;
    assert!(receive(&snapshots, &message(5), &mut Stream::cut(), false).await.is_err());
    assert!(receive(&snapshots, &message(6), &mut Stream::whole(5).await, false).await.is_err());
    let left: Vec<_> = disk.files.lock().keys().cloned().collect();
    assert_eq!(left, [] as [PathBuf; 0]);
}

/// Until the member's own next checkpoint nothing else would tell.
#[tokio::test]
async fn rot_in_a_state_that_came_from_a_leader_is_noticed() {
    let (disk, mut snapshots) = open().await;
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    snapshots.place_received(Index(5)).await.unwrap();
    snapshots.purge().await.unwrap();
    assert_eq!(snapshots.read(Index(5), None).await.unwrap().applied(), Index(5));
    let db = disk.files.lock()[Path::new("/snap/db")].clone();
    let place = db.lock().windows(5).position(|bytes| bytes == b"value").expect("its puts are in it");
    db.lock()[place] ^= 1;
    let damaged = snapshots.read(Index(5), None).await.map(|machine| machine.applied());
    assert!(matches!(damaged, Err(Failure::DamagedState { .. })), "{damaged:?}");
}

/// Its leader may not have heard that it arrived. The second one is not needed, or does not come whole.
#[tokio::test]
async fn a_state_in_force_that_comes_once_more_keeps_its_checksum() {
    let (disk, mut snapshots) = open().await;
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    snapshots.place_received(Index(5)).await.unwrap();
    let sidecar = Path::new("/snap/0000000000000005.received.db.xxh3");
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    snapshots.drop_received(Index(5)).await.unwrap();
    assert!(disk.files.lock().contains_key(sidecar), "the second one was dropped");
    assert!(receive(&snapshots, &message(5), &mut Stream::cut(), false).await.is_err());
    assert!(disk.files.lock().contains_key(sidecar), "the third one broke off");
    // Its bytes may be others, and a crash may come before its own name does: both sums count.
    *disk.files.lock()[sidecar].lock() = b"of other bytes".to_vec();
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    let sums = String::from_utf8(disk.files.lock()[sidecar].lock().clone()).unwrap();
    assert!(sums.lines().count() == 2 && sums.lines().any(|line| line == "of other bytes"), "{sums}");
}

/// One was written here when another one came: their bytes may differ.
#[tokio::test]
async fn either_file_of_one_index_may_be_the_one_in_force() {
    let (disk, snapshots) = open().await;
    receive(&snapshots, &message(5), &mut Stream::whole(5).await, false).await.unwrap();
    snapshots.write_checkpoint(state(5), &Nowhere).await.unwrap();
    for (other, is_fine) in [("0000000000000005.db.xxh3", true), ("0000000000000005.received.db.xxh3", false)] {
        let sidecar = disk.files.lock()[&Path::new("/snap").join(other)].clone();
        *sidecar.lock() = b"of other bytes".to_vec();
        let found = snapshots.read(Index(5), None).await.map(|machine| machine.applied());
        assert_eq!(found.is_ok(), is_fine, "{found:?}");
    }
    snapshots.drop_received(Index(5)).await.unwrap();
    assert!(!disk.files.lock().keys().any(|path| path.display().to_string().contains("received")));
}

/// Each look at it takes a minute or a millisecond. Nobody waits for it.
struct Ticking {
    step: Duration,
    now: Mutex<Duration>,
    rests: Mutex<Vec<Duration>>,
}

impl Clock for Ticking {
    fn now(&self) -> Duration {
        let mut now = self.now.lock();
        *now += self.step;
        *now
    }

    fn wall(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.rests.lock().push(time);
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn a_checkpoint_rests_after_each_piece_for_as_long_as_that_took() {
    let rests = async |index: u64, step: Duration| {
        let (_, snapshots) = open().await;
        let clock = Ticking { step, now: Mutex::default(), rests: Mutex::default() };
        snapshots.write_checkpoint(state(index), &clock).await.unwrap();
        clock.rests.into_inner()
    };
    let millisecond = Duration::from_millis(1);
    let large = rests(20_000, millisecond).await;
    assert!(large.len() >= 2 && large.iter().all(|rest| *rest == millisecond), "{large:?}");
    // One piece, and nothing comes after it.
    assert!(rests(5, millisecond).await.is_empty());
    // The disk stood still meanwhile: there is no need to make up for all of that.
    assert!(rests(20_000, Duration::from_secs(60)).await.iter().all(|rest| *rest == REST_MAX));
}
