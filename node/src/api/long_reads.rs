//! Reads that may take long have threads of their own, which they share with the disk: no more of them run at a time than
//! there are processors, or the log would wait behind them.
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::background;

#[derive(Clone)]
pub struct LongReads(Arc<Semaphore>);

impl LongReads {
    pub fn new(at_once: usize) -> LongReads {
        LongReads(Arc::new(Semaphore::new(at_once)))
    }

    /// A place, if nobody waits for one.
    pub fn try_begin(&self) -> Option<Place> {
        self.0.clone().try_acquire_owned().ok().map(Place)
    }

    /// Waits for a place; who came first gets the first.
    pub async fn begin(&self) -> Place {
        Place(self.0.clone().acquire_owned().await.expect("it is never closed"))
    }
}

pub struct Place(OwnedSemaphorePermit);

impl Place {
    /// Runs the read. Its place is taken until it is done, though whoever wanted it may be gone by then. `None` when the
    /// node is about to end.
    pub async fn run<T: Send + 'static>(self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let reading = background::spawn(move || {
            let result = read();
            drop(self.0);
            result
        });
        reading.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn a_read_has_its_place_until_it_is_done() {
        let reads = LongReads::new(1);
        let (done, wait) = mpsc::channel();
        let mut cx = Context::from_waker(Waker::noop());
        {
            let first = pin!(reads.try_begin().expect("there is a place").run(move || wait.recv()));
            assert!(first.poll(&mut cx).is_pending());
        }
        // Who wanted it is gone, and it goes on.
        assert!(reads.try_begin().is_none());
        let mut second = pin!(reads.begin());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        done.send(()).unwrap();
        assert_eq!(second.await.run(|| 7).await, Some(7));
        assert!(matches!(pin!(reads.begin()).poll(&mut cx), Poll::Ready(_)));
    }
}
