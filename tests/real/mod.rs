//! The daemon as users meet it: real processes, files and sockets, real clients.
mod daemon;
mod kill9;
mod refusals;
mod transcript;
