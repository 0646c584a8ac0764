//! `cargo sim`, built by the alias of that name: see the library.
use std::process::ExitCode;

use detcd_sim::{cli, memory};

#[global_allocator]
static ALLOCATOR: memory::Counted = memory::Counted(mimalloc::MiMalloc);

fn main() -> ExitCode {
    if !cfg!(madsim) {
        eprintln!("this simulator was built without its flag: start it by `cargo sim`, and with RUSTFLAGS unset");
        return ExitCode::from(cli::USAGE);
    }
    cli::main()
}
