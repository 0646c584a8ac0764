//! What waits to go out on one watch stream. The bytes of its events are bounded by the hub, which stops when the stream is
//! full; the number of answers by who takes in requests, and takes none while too much waits.
use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use detcd_core::watch::Notice;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

#[derive(Default)]
pub struct NoticeQueue {
    notices: Mutex<VecDeque<Notice>>,
    waker: AtomicWaker,
}

impl NoticeQueue {
    pub fn push(&self, notice: Notice) {
        self.notices.lock().push_back(notice);
        self.waker.wake();
    }

    /// How many wait to be sent.
    pub fn waiting(&self) -> usize {
        self.notices.lock().len()
    }

    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Notice> {
        self.waker.register(cx.waker());
        match self.notices.lock().pop_front() {
            Some(notice) => Poll::Ready(notice),
            None => Poll::Pending,
        }
    }
}
