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
        | RequestTooLarge => Code::InvalidArgument,
        Compacted | FutureRevision => Code::OutOfRange,
        // etcd returns this one through its client's error type, which has no code of its own.
        TooManyRequests => Code::Unknown,
        LeaseNotFound | MemberNotFound => Code::NotFound,
        LeaseExists => Code::FailedPrecondition,
        NoLeader | LeaderChanged | Stopped | Timeout | TimeoutLeaderFailed => Code::Unavailable,
    }
}
