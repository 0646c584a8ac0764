//! Generates the message types from our .proto files, without `protoc`. The services are the shell's (`node/build.rs`).
use std::{env, error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = ["mvcc", "auth", "rpc", "membership", "lease", "internal", "legacy", "wal", "snap", "raft"];
    let files = files.map(|name| root.join("etcd").join(name).with_extension("proto"));
    let descriptors = protox::compile(files, [root])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
