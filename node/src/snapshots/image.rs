//! A state as the bytes of a file, made piece by piece and never on the driver's thread.
use detcd_core::{format::bbolt::Writer, machine::backend::View, replica::State};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use crate::background;

/// Bytes of a piece: half a millisecond of work, since whoever has a core cannot be asked to leave it to a put.
const CHUNK_BYTES: usize = 256 << 10;
/// What tells a bit that flipped in a state, beside its file and on its way between members: bbolt's pages carry no
/// checksum. XXH3 with 128 bits, since it is for accidents, and a state is large.
#[derive(Default)]
pub struct Checksum(Xxh3);

impl Checksum {
    pub const BYTES: usize = 16;

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes so far, in the order in which `xxhsum` prints it.
    pub fn bytes(&self) -> [u8; Checksum::BYTES] {
        self.0.digest128().to_be_bytes()
    }
}

pub struct Image {
    /// `None` while a piece is being made.
    making: Option<Box<Making>>,
    total: u64,
}

struct Making {
    writer: Writer<View>,
    /// Of the pieces so far, for whoever wants it in the end.
    sha256: Option<Sha256>,
}

impl Image {
    pub async fn of(state: State) -> Image {
        Image::make(state, None).await
    }

    /// The same for a client, who expects the SHA-256 of it all at the end.
    pub async fn with_sha256(state: State) -> Image {
        Image::make(state, Some(Sha256::new())).await
    }

    async fn make(state: State, sha256: Option<Sha256>) -> Image {
        let making =
            background::run(move || Box::new(Making { writer: Writer::new(View::new(*state.0)), sha256 })).await;
        Image { total: making.writer.total_len(), making: Some(making) }
    }

    /// Bytes of the whole file.
    pub fn total_len(&self) -> u64 {
        self.total
    }

    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let mut making = self.making.take().expect("one piece at a time");
        let (making, chunk) = background::run(move || {
            let chunk = making.writer.next_chunk(CHUNK_BYTES);
            if let (Some(sha256), Some(chunk)) = (&mut making.sha256, &chunk) {
                sha256.update(chunk);
            }
            (making, chunk)
        })
        .await;
        self.making = Some(making);
        chunk
    }

    /// Of all pieces, if it was asked for.
    pub fn sha256(&mut self) -> Option<[u8; 32]> {
        let making = self.making.as_mut().expect("no piece is being made");
        making.sha256.take().map(|sha256| sha256.finalize().into())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What the view alone still holds may be much.
        if let Some(making) = self.making.take() {
            background::discard(making);
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String grows");
        text
    })
}
