//! What a process sees of its disk: the host's [`Disk`] and [`File`].
use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use detcd_node::host::{BoxFuture, Disk, File, Open};

use super::{
    Shared,
    queue::{Answer, HandleId, Ticket},
    state::fenced,
    tree::FileId,
    work::{EntryWork, FileWork},
};

/// One process's disk.
pub struct DiskHandle {
    pub shared: Arc<Shared>,
    pub epoch: u64,
}

impl DiskHandle {
    fn call(&self, work: EntryWork) -> Operation {
        let ticket = self.shared.with(|state, now| {
            if state.epoch == self.epoch { state.call_entry(work, now) } else { Ticket::answered(Err(fenced())) }
        });
        Operation { shared: self.shared.clone(), epoch: self.epoch, file: None, ticket }
    }

    fn change(&self, work: EntryWork) -> BoxFuture<'_, io::Result<()>> {
        let operation = self.call(work);
        Box::pin(async { operation.await.map(drop) })
    }
}

impl Disk for DiskHandle {
    fn create_dir_all<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change(EntryWork::CreateDirAll(dir.into()))
    }

    fn list<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        let operation = self.call(EntryWork::List(dir.into()));
        Box::pin(async {
            match operation.await? {
                Answer::Names(names) => Ok(names),
                _ => unreachable!("a list answers names"),
            }
        })
    }

    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        let operation = self.call(EntryWork::Open(path.into(), how));
        Box::pin(async move {
            let Answer::Opened(file, handle) = operation.await? else { unreachable!("an open answers a file") };
            let shared = self.shared.clone();
            Ok(Arc::new(FileHandle { shared, epoch: self.epoch, file, handle, how }) as Arc<dyn File>)
        })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change(EntryWork::Rename(from.into(), to.into()))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change(EntryWork::Remove(path.into()))
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change(EntryWork::SyncDir(dir.into()))
    }
}

/// One open file of one process.
struct FileHandle {
    shared: Arc<Shared>,
    epoch: u64,
    file: FileId,
    handle: HandleId,
    how: Open,
}

impl FileHandle {
    fn call(&self, work: FileWork) -> Operation {
        let writes = !matches!(work, FileWork::Len | FileWork::Read { .. } | FileWork::Sync);
        let ticket = self.shared.with(|state, now| {
            if state.epoch != self.epoch {
                Ticket::answered(Err(fenced()))
            } else if writes && self.how == Open::Read {
                Ticket::answered(Err(io::ErrorKind::PermissionDenied.into()))
            } else {
                state.call_file(self.file, work, now)
            }
        });
        Operation { shared: self.shared.clone(), epoch: self.epoch, file: Some(self.file), ticket }
    }

    fn change(&self, work: FileWork) -> BoxFuture<'_, io::Result<()>> {
        let operation = self.call(work);
        Box::pin(async { operation.await.map(drop) })
    }
}

impl File for FileHandle {
    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        let operation = self.call(FileWork::Len);
        Box::pin(async {
            match operation.await? {
                Answer::Length(len) => Ok(len),
                _ => unreachable!("a file answers its length"),
            }
        })
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        let operation = self.call(FileWork::Read { offset, len });
        Box::pin(async {
            match operation.await? {
                Answer::Bytes(bytes) => Ok(bytes),
                _ => unreachable!("a read answers bytes"),
            }
        })
    }

    fn write_at(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.change(FileWork::Write { offset, data, sync: false })
    }

    fn set_len(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.change(FileWork::SetLen { len })
    }

    fn allocate(&self, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.change(FileWork::Allocate { len })
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        self.change(FileWork::Sync)
    }

    fn write_sync(&self, offset: u64, data: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.change(FileWork::Write { offset, data, sync: true })
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        self.shared.with(|state, _| {
            if state.epoch == self.epoch {
                state.close(self.file, self.handle);
            }
        });
    }
}

/// An operation in flight. Dropping it does not recall it.
struct Operation {
    shared: Arc<Shared>,
    epoch: u64,
    /// The queue it is in: a file's or, if none, the directories'.
    file: Option<FileId>,
    ticket: Ticket,
}

impl Future for Operation {
    type Output = io::Result<Answer>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Answer>> {
        let this = &*self;
        this.shared.with(|state, now| {
            match this.file {
                Some(file) => state.settle_file(file, now),
                None => state.settle_entries(now),
            }
            this.ticket.with(|waiting| {
                if let Some(answer) = waiting.answer.take() {
                    return Poll::Ready(answer);
                }
                if !waiting.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    waiting.waker = Some(cx.waker().clone());
                    waiting.armed = None;
                }
                if waiting.armed != Some(waiting.due) {
                    waiting.armed = Some(waiting.due);
                    this.shared.time.wake_at(waiting.due, cx.waker());
                }
                Poll::Pending
            })
        })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.file.is_some() {
            return;
        }
        // An open that nobody took must not keep its lock.
        self.shared.with(|state, _| {
            let answer = self.ticket.with(|waiting| {
                waiting.abandoned = true;
                waiting.answer.take()
            });
            if let Some(Ok(Answer::Opened(file, handle))) = answer
                && state.epoch == self.epoch
            {
                state.close(file, handle);
            }
        });
    }
}
