//! etcdserverpb.KV: put, range, delete and transactions.
use detcd_core::{
    error::Refusal,
    limits::RANGE_INLINE_KEYS,
    machine::{
        Response as Outcome,
        command::{self, Command, Op, Txn},
    },
    mvcc::{RangeEnd, RangeResult},
    replica::Answer,
    types::{Revision, Term, TraceId},
};
use tonic::{Request, Response, Status, async_trait};

use super::{Api, check, convert, status::status, trace};
use crate::{
    inbox::View,
    proto::etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_server::Kv,
    },
};

#[async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.check_leader(request.metadata())?;
        let range = command::Range::try_from(request.into_inner()).map_err(status)?;
        check::range(&range).map_err(status)?;
        if !range.serializable && self.handle.status().is_learner {
            return Err(status(Refusal::NotForLearners));
        }
        let keys_only = range.keys_only;
        let (revision, term, result) = self.read(range).await.map_err(status)?;
        Ok(Response::new(convert::range(self.header(revision, term), result, keys_only)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.check_leader(request.metadata())?;
        let trace = trace(request.metadata());
        let put = command::Put::from(request.into_inner());
        check::put(&put).map_err(status)?;
        let answer = self.propose(Command::Put(put), trace).await?;
        let header = self.header(answer.revision, answer.term);
        match answer.result.map_err(status)? {
            Outcome::Put { previous } => Ok(Response::new(convert::put(header, previous))),
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.check_leader(request.metadata())?;
        let trace = trace(request.metadata());
        let delete = command::Delete::from(request.into_inner());
        check::delete(&delete).map_err(status)?;
        let answer = self.propose(Command::Delete(delete), trace).await?;
        let header = self.header(answer.revision, answer.term);
        match answer.result.map_err(status)? {
            Outcome::Delete { deleted, previous } => Ok(Response::new(convert::delete(header, deleted, previous))),
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.check_leader(request.metadata())?;
        let trace = trace(request.metadata());
        let txn = Txn::try_from(request.into_inner()).map_err(status)?;
        check::txn(&txn, self.limits.txn_ops_max).map_err(status)?;
        let (outcome, header) = match reads_only(&txn) {
            Some(serializable) => {
                let view = self.current(serializable).await.map_err(status)?;
                let header = self.header(view.store.revision(), self.handle.status().term);
                (view.read_txn(&txn).map_err(status)?, header)
            }
            None => {
                let answer = self.propose(Command::Txn(txn), trace).await?;
                let header = self.header(answer.revision, answer.term);
                (answer.result.map_err(status)?, header)
            }
        };
        match outcome {
            Outcome::Txn { succeeded, responses } => Ok(Response::new(convert::txn(header, succeeded, responses))),
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented("compaction is not implemented yet"))
    }
}

impl Api {
    async fn propose(&self, command: Command, trace: TraceId) -> Result<Answer, Status> {
        self.handle.propose(command, trace).await.map_err(status)
    }

    async fn current(&self, serializable: bool) -> Result<View, Refusal> {
        if serializable { self.handle.view().await } else { self.handle.read().await }
    }

    /// Reads off a view, and off this thread if it may take long. The store's revision and the term then.
    async fn read(&self, range: command::Range) -> Result<(Revision, Term, RangeResult), Refusal> {
        let mut view = self.current(range.serializable).await?;
        let mut term = self.handle.status().term;
        if range.range.end == RangeEnd::Single || view.store.keys() <= RANGE_INLINE_KEYS {
            let result = view.store.range(&range.range, &range.options)?;
            return Ok((view.store.revision(), term, result));
        }
        let place = match self.long_reads.try_begin() {
            Some(place) => place,
            None => {
                // A view that lives makes every write copy, so none is held in the queue. A later one is as current.
                drop(view);
                let place = self.long_reads.begin().await;
                view = self.handle.view().await?;
                term = self.handle.status().term;
                place
            }
        };
        let read = place.run(move || (view.store.revision(), view.store.range(&range.range, &range.options)));
        let (revision, result) = read.await.ok_or(Refusal::Stopped)?;
        Ok((revision, term, result?))
    }
}

/// Transactions without writes need no log: `Some(whether local state will do)`. A nested one always counts as a write.
fn reads_only(txn: &Txn) -> Option<bool> {
    let mut serializable = true;
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(range) => serializable &= range.serializable,
            Op::Put(_) | Op::Delete(_) | Op::Txn(_) => return None,
        }
    }
    Some(serializable)
}

fn unexpected(outcome: &Outcome) -> Status {
    unreachable!("the machine answers each command in kind, not with {outcome:?}")
}
