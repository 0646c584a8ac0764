//! What the tests of the whole stand on: real processes, real `etcdctl`s, and a way to compare what they say.
//!
//! The tests themselves are the one integration binary `it`: `real/` runs the daemon, beside real etcds where there
//! are any (`peers/build.sh` makes them), and `tidy/` reads the tree.
pub mod harness;
