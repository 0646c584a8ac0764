//! A state as the bytes of a file, made piece by piece and never on the driver's thread.
use detcd_core::{format::bbolt::Writer, machine::backend::View, replica::State};

/// Bytes of a piece: some milliseconds of work.
const CHUNK_BYTES: usize = 1 << 20;
/// Of the SHA-256 that follows a state where it may not be taken on trust.
pub const CHECKSUM_BYTES: usize = 32;

pub struct Image {
    /// `None` while a piece is being made.
    writer: Option<Box<Writer<View>>>,
    total: u64,
}

impl Image {
    pub async fn of(state: State) -> Image {
        let writer = off_thread(move || Box::new(Writer::new(View::new(*state.0)))).await;
        Image { total: writer.total_len(), writer: Some(writer) }
    }

    /// Bytes of the whole file.
    pub fn total_len(&self) -> u64 {
        self.total
    }

    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let mut writer = self.writer.take().expect("one piece at a time");
        let (writer, chunk) = off_thread(move || {
            let chunk = writer.next_chunk(CHUNK_BYTES);
            (writer, chunk)
        })
        .await;
        self.writer = Some(writer);
        chunk
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What the view alone still holds may be much.
        if let Some(writer) = self.writer.take() {
            discard(writer);
        }
    }
}

/// Runs what takes long where nobody waits for the thread.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[allow(deprecated)] // by the simulated runtime, where it is a task like any other
    tokio::task::spawn_blocking(work).await.expect("the work does not panic, and is awaited while the runtime runs")
}

/// Drops what may take long to.
pub fn discard<T: Send + 'static>(value: T) {
    #[allow(deprecated)] // as above
    drop(tokio::task::spawn_blocking(move || drop(value)));
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String grows");
        text
    })
}
