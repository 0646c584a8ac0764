//! Which binaries are tested, and with which they are compared.
//!
//! | what | where |
//! |---|---|
//! | the daemon under test | `DETCD_BIN`, else `detcd` in the target directory that this test was built into |
//! | real etcds | `DETCD_PEERS`, else `tests/peers/bin`: `3.6/{etcd,etcdctl,etcdutl}`, `3.5/{etcd,etcdctl}` |
use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A server that the harness can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The daemon under test.
    Detcd,
    /// The real etcd 3.6, which says what is right.
    Etcd36,
}

/// A release of the real `etcdctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ctl {
    V35,
    V36,
}

impl Ctl {
    pub fn release(self) -> &'static str {
        match self {
            Ctl::V35 => "3.5",
            Ctl::V36 => "3.6",
        }
    }
}

/// The daemon under test.
///
/// # Panics
/// When there is none: a test of the daemon without a daemon has failed.
pub fn detcd() -> PathBuf {
    if let Some(path) = env::var_os("DETCD_BIN") {
        return PathBuf::from(path);
    }
    let test = env::current_exe().expect("the path of the running test");
    // target/debug/deps/it-0123456789abcdef -> target/debug/detcd
    let path = test.ancestors().nth(2).expect("a test is two levels below its target directory").join("detcd");
    assert!(path.is_file(), "no daemon at {}: run `cargo build` first, or set DETCD_BIN", path.display());
    path
}

/// Whether a real etcd stands in for the daemon: then its manners, where ours are better, are not judged.
pub fn stands_in() -> bool {
    detcd().file_name().is_some_and(|name| name == "etcd")
}

/// The real etcds.
#[derive(Debug, Clone)]
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// The peers, or `None` after saying loudly that the calling test was skipped.
    ///
    /// # Panics
    /// Without peers when `CI` is `true`: a check that nobody ran is not a passed one.
    pub fn find() -> Option<Peers> {
        let root = match env::var_os("DETCD_PEERS") {
            Some(root) => PathBuf::from(root),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/bin"),
        };
        let needed = ["3.6/etcd", "3.6/etcdctl", "3.6/etcdutl", "3.5/etcd", "3.5/etcdctl"].map(|name| root.join(name));
        let Some(missing) = needed.iter().find(|path| !path.is_file()) else { return Some(Peers { root }) };
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let notice = format!("SKIPPED: {test}: no {} (run tests/peers/build.sh)", missing.display());
        assert!(env::var("CI").as_deref() != Ok("true"), "{notice}");
        // Not `eprintln!`: of a test that passes, that would be swallowed.
        writeln!(io::stderr(), "\n{notice}").expect("stderr is open");
        None
    }

    pub fn etcd(&self) -> PathBuf {
        self.root.join("3.6/etcd")
    }

    /// The real etcd 3.5, which must be able to take over as well.
    pub fn etcd_35(&self) -> PathBuf {
        self.root.join("3.5/etcd")
    }

    /// What works on files without a server.
    pub fn etcdutl(&self) -> PathBuf {
        self.root.join("3.6/etcdutl")
    }

    pub fn etcdctl(&self, ctl: Ctl) -> PathBuf {
        self.root.join(ctl.release()).join("etcdctl")
    }

    pub fn server(&self, kind: Kind) -> PathBuf {
        match kind {
            Kind::Detcd => detcd(),
            Kind::Etcd36 => self.etcd(),
        }
    }
}
