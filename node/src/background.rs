//! Work that takes long, where nobody waits for the thread: never on the driver's.
#![allow(deprecated)] // `spawn_blocking` by the simulated runtime, where it is a task like any other

use tokio::task::spawn_blocking;

pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("the work does not panic, and is awaited while the runtime runs")
}

/// Drops what may take long to.
pub fn discard<T: Send + 'static>(value: T) {
    drop(spawn_blocking(move || drop(value)));
}
