//! TLS: the files that the flags name, as configurations for the sockets. They are read once, before anything starts.
//!
//! As in etcd:
//! - a trusted CA alone makes a listener demand certificates of it, and refuse whoever has none;
//! - who dials a peer shows the peer listener's certificate, and checks the peer's against the same CA and the URL's host;
//! - a peer's certificate must also name where it calls from ([`names`]), unless told otherwise;
//! - clients may speak HTTP/2 or HTTP/1.1, which Go's gRPC insists on hearing from ALPN; peers hear nothing of ALPN.
//!
//! TLS 1.2 and 1.3. Sessions are not resumed: every connection's certificate is verified anew.
mod handshakes;
mod names;
mod pem;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc};

use detcd_node::host::Role;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

pub use self::handshakes::{Bounds, Handshakes};

type Result<T> = std::result::Result<T, String>;

/// What the flags say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFlags {
    pub client: SideFlags,
    pub peer: SideFlags,
    /// Peers may call from elsewhere than their certificates say.
    pub peers_from_anywhere: bool,
}

/// What the flags say of one kind of listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SideFlags {
    /// One of its URLs is https; then `identity` is there.
    pub listens: bool,
    pub identity: Option<IdentityFiles>,
    pub trusted_ca: Option<NamedFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    pub cert: NamedFile,
    pub key: NamedFile,
}

/// A file, and the flag or variable that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    pub flag: String,
    pub path: PathBuf,
}

/// TLS, as far as the flags ask for it.
#[derive(Debug, Default)]
pub struct Tls {
    clients: Option<Arc<ServerConfig>>,
    peers: Option<Arc<ServerConfig>>,
    dial: Option<Arc<ClientConfig>>,
    peers_from_anywhere: bool,
}

impl Tls {
    pub fn load(flags: &TlsFlags) -> Result<Tls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = Tls { peers_from_anywhere: flags.peers_from_anywhere, ..Tls::default() };
        if flags.client.listens {
            let client = Loaded::read(&flags.client, &provider)?;
            tls.clients = Some(Arc::new(client.server(&[b"h2", b"http/1.1"])?));
        }
        // Peers may be dialled over TLS though this member listens without.
        let peer = Loaded::read(&flags.peer, &provider)?;
        if flags.peer.listens {
            tls.peers = Some(Arc::new(peer.server(&[])?));
        }
        tls.dial = peer.client()?.map(Arc::new);
        Ok(tls)
    }

    fn server(&self, role: Role) -> io::Result<Arc<ServerConfig>> {
        let (config, flags) = match role {
            Role::Client => (&self.clients, "--cert-file and --key-file"),
            Role::Peer => (&self.peers, "--peer-cert-file and --peer-key-file"),
        };
        config.clone().ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, format!("TLS needs {flags}")))
    }

    /// How a peer is dialled: nobody else is.
    pub fn dial(&self) -> io::Result<Arc<ClientConfig>> {
        let lacking = || {
            let text = "an https:// peer can be verified only with --peer-trusted-ca-file";
            io::Error::new(io::ErrorKind::Unsupported, text)
        };
        self.dial.clone().ok_or_else(lacking)
    }
}

/// What one side's files hold.
struct Loaded {
    identity: Option<Arc<SingleCertAndKey>>,
    trusted: Option<Arc<RootCertStore>>,
    provider: Arc<CryptoProvider>,
}

impl Loaded {
    fn read(flags: &SideFlags, provider: &Arc<CryptoProvider>) -> Result<Loaded> {
        let identity = flags.identity.as_ref().map(|files| identity(files, provider)).transpose()?;
        let trusted = flags.trusted_ca.as_ref().map(trusted).transpose()?;
        Ok(Loaded { identity, trusted: trusted.map(Arc::new), provider: provider.clone() })
    }

    fn server(&self, protocols: &[&[u8]]) -> Result<ServerConfig> {
        let identity = self.identity.clone().expect("who listens with TLS has an identity: the flags were checked");
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let builder = match &self.trusted {
            Some(trusted) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(trusted.clone(), self.provider.clone())
                    .build()
                    .map_err(|error| format!("the trusted CA cannot be used: {error}"))?,
            ),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(identity);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// `None` if nobody could be verified.
    fn client(&self) -> Result<Option<ClientConfig>> {
        let Some(trusted) = &self.trusted else { return Ok(None) };
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(trusted.clone());
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(identity.clone()),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Some(config))
    }
}

/// A certificate with its chain, and its key.
fn identity(files: &IdentityFiles, provider: &CryptoProvider) -> Result<Arc<SingleCertAndKey>> {
    let (chain, key) = (pem::certificates(&files.cert)?, pem::private_key(&files.key)?);
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let (cert, key) = (&files.cert, &files.key);
        match error {
            rustls::Error::InconsistentKeys(_) => format!(
                "{}: the key in {} does not belong to the certificate in {}; give the two that were made together",
                key.flag,
                key.path.display(),
                cert.path.display()
            ),
            rustls::Error::InvalidCertificate(_) => pem::unusable(cert, &error),
            _ => format!("{}; RSA, ECDSA with P-256 or P-384, and Ed25519 work", pem::unusable(key, &error)),
        }
    })?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn trusted(file: &NamedFile) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in pem::certificates(file)? {
        store.add(certificate).map_err(|error| pem::unusable(file, &error))?;
    }
    Ok(store)
}
