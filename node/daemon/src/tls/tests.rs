//! Files, handshakes and who gets in, over real sockets on loopback.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use detcd_node::host::{Io, Listener, Net};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::net::Sockets;

/// Nothing here takes as long, unless it hangs.
const SOON: Duration = Duration::from_secs(20);

/// A CA that signs what it is asked to.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `NAME.pem` and `NAME-key.pem`, for `hosts`.
    fn issue(&self, name: &str, hosts: &[&str]) -> IdentityFiles {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_path, key_path) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}-key.pem")));
        fs::write(&cert_path, certificate.pem()).unwrap();
        fs::write(&key_path, key.serialize_pem()).unwrap();
        IdentityFiles { cert: named("--cert", cert_path), key: named("--key", key_path) }
    }

    /// What a member of this CA's cluster would be given, for both kinds of listeners.
    fn member(&self, name: &str, hosts: &[&str]) -> TlsFlags {
        let side = SideFlags {
            listens: true,
            identity: Some(self.issue(name, hosts)),
            trusted_ca: Some(named("--ca", self.path("ca.pem"))),
        };
        TlsFlags { client: side.clone(), peer: side, peers_from_anywhere: false }
    }
}

fn named(flag: &str, path: impl AsRef<Path>) -> NamedFile {
    NamedFile { flag: flag.to_owned(), path: path.as_ref().to_owned() }
}

const PATIENT: Bounds = Bounds { under_way: 100, share: SOON, time: SOON };

async fn listen(tls: &Tls, role: Role, bounds: Bounds) -> (Handshakes, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (Handshakes::new(listener, tls, role, bounds).unwrap(), address)
}

/// Answers everyone who gets in with what it says, for ever.
async fn echo(tls: &Tls, role: Role, bounds: Bounds) -> SocketAddr {
    let (mut listener, address) = listen(tls, role, bounds).await;
    tokio::spawn(async move {
        loop {
            let io = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(io);
                let _ = tokio::io::copy(&mut read, &mut write).await; // until the caller goes
            });
        }
    });
    address
}

/// Whether somebody is there and answers.
async fn talk(io: &mut Io) -> io::Result<()> {
    io.write_all(b"hello").await?;
    io.flush().await?;
    let mut answer = [0; 5];
    io.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

async fn dial(tls: Tls, url: &str) -> io::Result<()> {
    let sockets = Sockets::new(tls, 1_024);
    let result = timeout(SOON, async { talk(&mut sockets.connect(Role::Peer, url).await?).await });
    result.await.expect("an answer, or a refusal")
}

#[test]
fn wrong_files_are_told_in_a_line_with_flag_and_path() {
    let authority = Authority::new("ours");
    let good = authority.member("good", &["127.0.0.1"]);
    let other = authority.issue("other", &["127.0.0.1"]);
    Tls::load(&good).unwrap();
    let check = |spoil: &dyn Fn(&mut SideFlags), words: &[&str]| {
        let mut flags = good.clone();
        spoil(&mut flags.peer);
        let error = Tls::load(&flags).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
    };
    let file = |name: &str, content: &str| {
        fs::write(authority.path(name), content).unwrap();
        named("--spoilt", authority.path(name))
    };
    let (missing, prose) = (named("--spoilt", authority.path("missing.pem")), file("prose.pem", "no PEM at all\n"));
    let hollow = file("hollow.pem", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n");
    let cut = file("cut.pem", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n");
    for (wrong, part) in
        [(&missing, "cannot read"), (&prose, "no certificate"), (&hollow, "cannot be used"), (&cut, "cannot be used")]
    {
        let name = wrong.path.file_name().unwrap().to_str().unwrap();
        check(&|side| side.identity.as_mut().unwrap().cert = wrong.clone(), &["--spoilt", name, part]);
        check(&|side| side.trusted_ca = Some(wrong.clone()), &["--spoilt", name, part]);
    }
    for (wrong, part) in
        [(&missing, "cannot read"), (&prose, "no unencrypted private key"), (&hollow, "no unencrypted")]
    {
        check(&|side| side.identity.as_mut().unwrap().key = wrong.clone(), &["--spoilt", part]);
    }
    let foreign = |side: &mut SideFlags| side.identity.as_mut().unwrap().key = other.key.clone();
    check(&foreign, &["other-key.pem", "good.pem", "does not belong"]);
    // Nobody asks for what nobody uses.
    let mut plain = good.clone();
    plain.client = SideFlags {
        listens: false,
        identity: Some(IdentityFiles { cert: missing.clone(), key: missing }),
        ..good.client
    };
    Tls::load(&plain).unwrap();
}

#[tokio::test]
async fn peers_of_one_authority_reach_each_other_and_nobody_else_does() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let member = ours.member("m1", &["127.0.0.1", "localhost"]);
    let load = |flags: &TlsFlags| Tls::load(flags).unwrap();
    let port = echo(&load(&member), Role::Peer, PATIENT).await.port();
    let url = format!("https://127.0.0.1:{port}");
    dial(load(&member), &url).await.unwrap();
    dial(load(&member), &format!("https://localhost:{port}")).await.unwrap();

    let refused = async |flags: TlsFlags, part: &str| {
        let error = dial(load(&flags), &url).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(theirs.member("m1", &["127.0.0.1"]), "UnknownIssuer").await;
    refused(Authority::new("ours").member("m1", &["127.0.0.1"]), "BadSignature").await;
    // Right about us, wrong in what it shows.
    let mut stranger = member.clone();
    stranger.peer.identity = Some(theirs.issue("m2", &["127.0.0.1"]));
    refused(stranger, "UnknownCA").await;
    let mut nobody = member.clone();
    (nobody.peer.identity, nobody.peer.listens) = (None, false);
    refused(nobody.clone(), "CertificateRequired").await;
    nobody.peer.trusted_ca = None;
    refused(nobody, "--peer-trusted-ca-file").await;
    // It calls from where its certificate does not say that it is; that is found out only when TLS stands.
    refused(ours.member("far", &["10.0.0.9"]), "").await;
    dial(load(&member), &url).await.unwrap();

    // A peer that is not who its URL says.
    let far = load(&ours.member("far", &["10.0.0.9"]));
    let port = echo(&far, Role::Peer, PATIENT).await.port();
    let error = dial(load(&member), &format!("https://127.0.0.1:{port}")).await.unwrap_err().to_string();
    assert!(error.contains("only valid for IpAddress(10.0.0.9)"), "{error}");
}

#[tokio::test]
async fn peers_may_call_from_anywhere_if_told_so() {
    let authority = Authority::new("ours");
    let mut flags = authority.member("m1", &["127.0.0.1"]);
    flags.peers_from_anywhere = true;
    let port = echo(&Tls::load(&flags).unwrap(), Role::Peer, PATIENT).await.port();
    let far = Tls::load(&authority.member("far", &["10.0.0.9"])).unwrap();
    dial(far, &format!("https://127.0.0.1:{port}")).await.unwrap();
}

#[tokio::test]
async fn clients_get_in_with_either_version_and_hear_what_to_speak() {
    let authority = Authority::new("ours");
    let tls = Tls::load(&authority.member("m1", &["localhost"])).unwrap();
    let check = async |role: Role, version: &'static rustls::SupportedProtocolVersion, offer: &str, spoken: &str| {
        let address = echo(&tls, role, PATIENT).await;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(trusted(&named("", authority.path("ca.pem"))).unwrap())
            .with_client_cert_resolver(identity(&authority.issue("c", &["localhost"]), &provider).unwrap());
        config.alpn_protocols = offer.split_whitespace().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol().unwrap_or_default(), spoken.as_bytes(), "{role:?} {offer}");
        timeout(SOON, talk(&mut (Box::new(stream) as Io))).await.unwrap().unwrap();
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        check(Role::Client, version, "h2", "h2").await;
        check(Role::Client, version, "http/1.1 h2", "h2").await;
        check(Role::Client, version, "http/1.1", "http/1.1").await;
        check(Role::Client, version, "", "").await;
        check(Role::Peer, version, "h2", "").await;
    }
}

/// A connection that says nothing, until it is closed.
async fn silent(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

async fn closed(mut stream: TcpStream) {
    // Either end may be the first to notice; but there is an end.
    let _ = timeout(SOON, stream.read_u8()).await.expect("closed by the other side");
}

#[tokio::test]
async fn the_silent_hold_nobody_up() {
    let authority = Authority::new("ours");
    let flags = authority.member("m1", &["127.0.0.1"]);
    let load = || Tls::load(&flags).unwrap();

    // Within the bound: beside each other.
    let address = echo(&load(), Role::Peer, PATIENT).await;
    let crowd: Vec<_> = crowd_of(50, address).await;
    dial(load(), &format!("https://{address}")).await.unwrap();
    drop(crowd);

    // At the bound: the oldest give way, a few at a time.
    let bounds = Bounds { under_way: 4, share: Duration::from_millis(20), time: SOON };
    let address = echo(&load(), Role::Peer, bounds).await;
    let mut crowd = crowd_of(20, address).await;
    dial(load(), &format!("https://{address}")).await.unwrap();
    closed(crowd.swap_remove(0)).await;

    // Alone: until its time is over.
    let bounds = Bounds { under_way: 4, share: SOON, time: Duration::from_millis(50) };
    let address = echo(&load(), Role::Peer, bounds).await;
    closed(silent(address).await).await;
}

async fn crowd_of(count: usize, address: SocketAddr) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(silent(address).await);
    }
    streams
}

#[tokio::test]
async fn plain_http_gets_in_nowhere() {
    let authority = Authority::new("ours");
    let flags = authority.member("m1", &["127.0.0.1"]);
    let address = echo(&Tls::load(&flags).unwrap(), Role::Client, PATIENT).await;
    let mut plain = silent(address).await;
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, plain.read_to_end(&mut answer)).await.expect("closed by the other side");
    assert!(answer.len() < 16 && !answer.starts_with(b"GET"), "no more than an alert: {answer:?}");
}

/// What was written and flushed arrives, though the writer never touches the stream again.
#[tokio::test]
async fn flushed_bytes_need_no_further_push() {
    const BYTES: usize = 8 << 20;
    let authority = Authority::new("ours");
    let flags = authority.member("m1", &["127.0.0.1"]);
    let (mut listener, address) = listen(&Tls::load(&flags).unwrap(), Role::Peer, PATIENT).await;
    let writer = tokio::spawn(async move {
        let mut io = listener.accept().await.unwrap();
        io.write_all(&vec![7; BYTES]).await.unwrap();
        io.flush().await.unwrap();
        io
    });
    let sockets = Sockets::new(Tls::load(&flags).unwrap(), 1_024);
    let mut reader = sockets.connect(Role::Peer, &format!("https://{address}")).await.unwrap();
    let mut bytes = vec![0; BYTES];
    timeout(SOON, reader.read_exact(&mut bytes)).await.expect("all of it").unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    drop(writer.await.unwrap());
}
