//! A certificate authority of the test's own, and what it signs; made at run time, in a directory that goes with it.
use super::files;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// Everybody's papers.
#[derive(Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    /// A member's, for both its listeners: it serves on loopback, and dials.
    pub member: Identity,
    /// Good for nothing but to call.
    pub client: Identity,
    /// Like a member's in all but who signed it.
    pub stranger: Identity,
    _dir: TempDir,
}

/// A certificate and its key, in PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    pub fn make() -> Arc<Certificates> {
        let dir = files::temp_dir();
        let path = dir.path();
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let ca = path.join("ca.pem");
        fs::write(&ca, ours.pem()).expect("a file");
        let (serve, call) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        let member = issue(path, "member", &ours, &["127.0.0.1", "localhost"], vec![serve.clone(), call.clone()]);
        let client = issue(path, "client", &ours, &[], vec![call.clone()]);
        let stranger = issue(path, "stranger", &theirs, &["127.0.0.1", "localhost"], vec![serve, call]);
        Arc::new(Certificates { ca, member, client, stranger, _dir: dir })
    }

    /// The flags of a member that shows its papers everywhere, and asks everybody for theirs.
    pub fn member_flags(&self) -> Vec<String> {
        let Identity { cert, key } = &self.member;
        let flags = ["", "peer-"].map(|side| {
            [("cert-file", cert), ("key-file", key), ("trusted-ca-file", &self.ca)]
                .map(|(flag, path)| format!("--{side}{flag}={}", path.display()))
        });
        flags.concat()
    }

    /// The flags of an `etcdctl` that shows these papers.
    pub fn ctl_flags(&self, who: Option<&Identity>) -> Vec<String> {
        let own = who.into_iter().flat_map(|who| [("cert", &who.cert), ("key", &who.key)]);
        let flags = [("cacert", &self.ca)].into_iter().chain(own);
        flags.map(|(flag, path)| format!("--{flag}={}", path.display())).collect()
    }

    /// The same for a client of our own.
    pub fn show(&self, who: Option<&Identity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        certificates(&self.ca).into_iter().for_each(|ca| roots.add(ca).expect("our own certificate"));
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match who {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let key = PrivateKeyDer::from_pem_file(key).expect("our own key");
                builder.with_client_auth_cert(certificates(cert), key).expect("they belong together")
            }
        };
        Arc::new(config)
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).expect("no names to be wrong");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("entropy")).expect("a certificate")
}

fn issue(
    dir: &Path,
    name: &str,
    authority: &CertifiedIssuer<'static, KeyPair>,
    hosts: &[&str],
    usages: Vec<ExtendedKeyUsagePurpose>,
) -> Identity {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("hosts and addresses");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = usages;
    let key = KeyPair::generate().expect("entropy");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let identity = Identity { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}-key.pem")) };
    fs::write(&identity.cert, certificate.pem()).expect("a file");
    fs::write(&identity.key, key.serialize_pem()).expect("a file");
    identity
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(path).expect("our own file");
    certificates.map(|certificate| certificate.expect("our own certificate")).collect()
}
