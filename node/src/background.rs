//! Work that takes long, where nobody waits for the thread: never on the driver's.
use tokio::task::JoinHandle;

pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[allow(deprecated)] // by the simulated runtime, where it is a task like any other
    tokio::task::spawn_blocking(work)
}

pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn(work).await.expect("the work does not panic, and is awaited while the runtime runs")
}

/// Drops what may take long to.
pub fn discard<T: Send + 'static>(value: T) {
    drop(spawn(move || drop(value)));
}
