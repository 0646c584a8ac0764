//! Certificates and keys in PEM files. Each error is one line: the flag, the file, what is wrong and what to do.
use std::{fmt::Display, fs};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{NamedFile, Result};

/// All certificates of a file; there is at least one.
pub fn certificates(file: &NamedFile) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(file)?;
    let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(nothing(file, "certificate", "BEGIN CERTIFICATE")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(file, &error)),
    }
}

/// The first private key of a file.
pub fn private_key(file: &NamedFile) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|error| match error {
        pem::Error::NoItemsFound => nothing(file, "unencrypted private key", "BEGIN PRIVATE KEY"),
        error => unusable(file, &error),
    })
}

fn read(file: &NamedFile) -> Result<Vec<u8>> {
    let NamedFile { flag, path } = file;
    let failed =
        |error| format!("{flag}: cannot read {}: {error}; check the path, and who may read it", path.display());
    fs::read(path).map_err(failed)
}

fn nothing(file: &NamedFile, what: &str, section: &str) -> String {
    let NamedFile { flag, path } = file;
    format!("{flag}: {} holds no {what} in PEM form; it must have a section that says {section}", path.display())
}

pub fn unusable(file: &NamedFile, error: &dyn Display) -> String {
    format!("{}: {} cannot be used: {error}; put a good file in its place", file.flag, file.path.display())
}
