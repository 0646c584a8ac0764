//! The flags about TLS, and whether they fit together.
use detcd_node::config::{Config, parse_url};

use super::{Result, Values};
use crate::tls::{IdentityFiles, NamedFile, SideFlags, TlsFlags};

/// Known to etcd, not obeyed yet: these may say what is their default, and nothing else.
const NOT_IMPLEMENTED: &[&str] = &[
    "auto-tls",
    "peer-auto-tls",
    "self-signed-cert-validity",
    "client-crl-file",
    "peer-crl-file",
    "client-cert-file",
    "client-key-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "client-cert-allowed-hostname",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "cipher-suites",
    "tls-min-version",
    "tls-max-version",
];

/// The flags of one kind of listener.
struct Names {
    kind: &'static str,
    listen: &'static str,
    cert: &'static str,
    key: &'static str,
    trusted_ca: &'static str,
    cert_auth: &'static str,
}

const CLIENT: Names = Names {
    kind: "client",
    listen: "listen-client-urls",
    cert: "cert-file",
    key: "key-file",
    trusted_ca: "trusted-ca-file",
    cert_auth: "client-cert-auth",
};
const PEER: Names = Names {
    kind: "peer",
    listen: "listen-peer-urls",
    cert: "peer-cert-file",
    key: "peer-key-file",
    trusted_ca: "peer-trusted-ca-file",
    cert_auth: "peer-client-cert-auth",
};

fn is_https(url: &str) -> bool {
    parse_url(url).is_some_and(|(_, tls)| tls)
}

impl Values {
    pub fn tls(&mut self, config: &Config) -> Result<TlsFlags> {
        self.refuse_unimplemented_tls()?;
        let flags = TlsFlags {
            client: self.side(&CLIENT, &config.listen_client_urls)?,
            peer: self.side(&PEER, &config.listen_peer_urls)?,
            peers_from_anywhere: self.switch("peer-skip-client-san-verification")?,
        };
        let others = config.initial_cluster.iter().filter(|founder| founder.name != config.name);
        let dialled = others.flat_map(|founder| &founder.peer_urls).find(|url| is_https(url));
        match dialled {
            Some(url) if flags.peer.trusted_ca.is_none() => Err(format!(
                "--initial-cluster: the peer {url} can be verified only with --peer-trusted-ca-file: the file of the CA \
                 that signed its certificate"
            )),
            _ => Ok(flags),
        }
    }

    fn refuse_unimplemented_tls(&self) -> Result<()> {
        for name in NOT_IMPLEMENTED {
            let (given, default) = (self.text(name), super::find(name).expect("it is in the table").default);
            let same = if default == "false" { !self.switch(name)? } else { given == default };
            if !same {
                return Err(format!("{}={given} is not implemented yet; leave it out", self.shown(name)));
            }
        }
        Ok(())
    }

    fn side(&mut self, names: &Names, urls: &[String]) -> Result<SideFlags> {
        let side = SideFlags {
            listens: urls.iter().any(|url| is_https(url)),
            identity: self.identity(names)?,
            trusted_ca: self.file(names.trusted_ca),
        };
        let cert_auth = self.switch(names.cert_auth)?;
        if let Some(url) = urls.iter().find(|url| is_https(url) && side.identity.is_none()) {
            let Names { cert, key, .. } = names;
            return Err(format!("{}: {url} asks for TLS, which needs --{cert} and --{key}", self.shown(names.listen)));
        }
        if cert_auth && side.listens && side.trusted_ca.is_none() {
            return Err(format!(
                "{} needs --{}: etcd would trust the system's CAs, which anyone may get a certificate of; name your own",
                self.shown(names.cert_auth),
                names.trusted_ca
            ));
        }
        let (kind, flag) = (names.kind, self.shown(names.cert_auth));
        for url in urls.iter().filter(|url| !is_https(url)) {
            if side.identity.is_some() {
                self.warnings.push(format!(
                    "The scheme of {kind} url {url} is HTTP while key/cert files are presented. Ignored key/cert files."
                ));
            }
            if cert_auth {
                self.warnings.push(format!(
                    "The scheme of {kind} url {url} is HTTP while client cert auth ({flag}) is enabled. Ignored client \
                     cert auth for this url."
                ));
            }
        }
        Ok(side)
    }

    fn identity(&self, names: &Names) -> Result<Option<IdentityFiles>> {
        match (self.file(names.cert), self.file(names.key)) {
            (Some(cert), Some(key)) => Ok(Some(IdentityFiles { cert, key })),
            (None, None) => Ok(None),
            (Some(cert), None) => Err(format!("{} needs --{}: the certificate's key", cert.flag, names.key)),
            (None, Some(key)) => Err(format!("{} needs --{}: the key's certificate", key.flag, names.cert)),
        }
    }

    fn file(&self, name: &str) -> Option<NamedFile> {
        let path = self.text(name);
        (!path.is_empty()).then(|| NamedFile { flag: self.shown(name), path: path.into() })
    }
}
