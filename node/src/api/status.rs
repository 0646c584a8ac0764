//! Refusals as etcd's clients know them: a gRPC code and etcd's text.
use detcd_core::error::Refusal;
use tonic::{Code, Status};

pub fn status(refusal: Refusal) -> Status {
    Status::new(code(refusal), format!("etcdserver: {refusal}"))
}

fn code(refusal: Refusal) -> Code {
    use Refusal::*;
    match refusal {
        EmptyKey | KeyNotFound | ValueProvided | LeaseProvided | TooManyOps | DuplicateKey | InvalidSortOption
        | RequestTooLarge | BadMemberUrls => Code::InvalidArgument,
        Compacted | FutureRevision => Code::OutOfRange,
        // etcd returns these through its client's error type, which has no code of its own.
        TooManyRequests | NotEnoughStarted => Code::Unknown,
        LeaseNotFound | MemberNotFound => Code::NotFound,
        LeaseExists | MemberExists | PeerUrlExists | TooManyLearners | NotLearner | LearnerNotReady
        | NotForLearners | NotLeader | BadTransferee => Code::FailedPrecondition,
        UnhealthyCluster | NoLeader | LeaderChanged | Stopped | Timeout | TimeoutLeaderFailed => Code::Unavailable,
    }
}
