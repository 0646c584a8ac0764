//! The daemon as users meet it: real processes, files and sockets, real clients.
mod transcript;
