//! Generates the gRPC services from our .proto files, without `protoc`. Their messages are the core's.
use std::{env, error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let messages = ["mvccpb", "authpb", "etcdserverpb"];
    let builder = tonic_prost_build::configure().bytes(".").build_transport(false);
    let builder = messages
        .iter()
        .fold(builder, |builder, name| builder.extern_path(format!(".{name}"), format!("::detcd_core::proto::{name}")));
    builder.compile_fds(protox::compile([root.join("etcd/rpc.proto"), root.join("health.proto")], [&root])?)?;
    Ok(())
}
