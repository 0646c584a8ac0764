//! The tests of the whole; see the library for what they stand on.
mod real;
mod tidy;
