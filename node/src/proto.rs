//! The gRPC services, generated from `node/proto`; their messages come from the core.
#![allow(clippy::all)]
pub use detcd_core::proto::{authpb, mvccpb};

pub mod etcdserverpb {
    pub use detcd_core::proto::etcdserverpb::*;
    tonic::include_proto!("etcdserverpb");
}

pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
