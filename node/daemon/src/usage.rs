//! The flags there are: one table, for the parser and for `--help`.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Value,
    /// May stand alone, meaning true.
    Switch,
}

#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub help: &'static str,
}

const fn value(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Value, default, help }
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Switch, default, help }
}

const LATER: &str = "known to etcd, not implemented yet: only the default is accepted";

pub const FLAGS: &[Flag] = &[
    value("name", "default", "this member's name; must be one of those in --initial-cluster"),
    value("data-dir", "", "where everything is kept; by default the name followed by .etcd"),
    value("wal-dir", "", "where the log is kept, if not in the data directory"),
    value("listen-client-urls", "http://localhost:2379", "where to listen for clients, separated by commas"),
    value("listen-peer-urls", "http://localhost:2380", "where to listen for the other members"),
    value("advertise-client-urls", "http://localhost:2379", "where clients reach this member"),
    value("initial-advertise-peer-urls", "http://localhost:2380", "where the other members reach this one"),
    value("initial-cluster", "", "the founding members, as name=url,name=url; by default this member alone"),
    value("initial-cluster-state", "new", "whether this member founds the cluster (new) or joins it (existing)"),
    value("initial-cluster-token", "etcd-cluster", "tells apart clusters that have the same URLs"),
    value("cert-file", "", "the certificate shown to clients, with its chain, as PEM; https:// URLs need it"),
    value("key-file", "", "its key"),
    value("trusted-ca-file", "", "clients must show a certificate of a CA in this file"),
    switch("client-cert-auth", "false", "clients must show a certificate; --trusted-ca-file alone says so, too"),
    value("peer-cert-file", "", "the certificate shown to peers, by who listens and who dials"),
    value("peer-key-file", "", "its key"),
    value("peer-trusted-ca-file", "", "peers must show a certificate of a CA in this file, whoever dials"),
    switch(
        "peer-client-cert-auth",
        "false",
        "peers must show a certificate; --peer-trusted-ca-file alone says so, too",
    ),
    switch("peer-skip-client-san-verification", "false", "peers may call from where their certificates do not name"),
    value("snapshot-count", "", "entries after which a checkpoint is written; by default their bytes decide"),
    value("max-snapshots", "5", "snapshot files to keep; 0 keeps all"),
    value("max-wals", "5", "log segments to keep although nothing needs them; 0 keeps all"),
    value("heartbeat-interval", "100", "time between a leader's heartbeats, in milliseconds"),
    value("election-timeout", "1000", "time without a leader before an election, in milliseconds"),
    value("max-request-bytes", "1572864", "the largest request, in bytes"),
    value("max-txn-ops", "128", "the most operations in a transaction"),
    value("watch-progress-notify-interval", "10m", "how often quiet watches are told how far they are"),
    value("grpc-keepalive-interval", "2h0m0s", "how long a client may be silent before it is asked to answer"),
    value("grpc-keepalive-timeout", "20s", "how long it may take to answer before its connection is closed"),
    switch("strict-reconfig-check", "true", "refuse membership changes that would cost the quorum"),
    switch("pre-vote", "true", "ask before standing for election"),
    value("logger", "zap", "accepted for etcd's sake"),
    value("log-level", "info", "debug, info, warn, error, panic or fatal"),
    value("log-outputs", "default", "default, stderr or stdout"),
    value("log-format", "json", "json, or console for people"),
    switch("auto-tls", "false", LATER),
    switch("peer-auto-tls", "false", LATER),
    value("self-signed-cert-validity", "1", LATER),
    value("client-crl-file", "", LATER),
    value("peer-crl-file", "", LATER),
    value("client-cert-file", "", LATER),
    value("client-key-file", "", LATER),
    value("peer-client-cert-file", "", LATER),
    value("peer-client-key-file", "", LATER),
    value("client-cert-allowed-hostname", "", LATER),
    value("peer-cert-allowed-cn", "", LATER),
    value("peer-cert-allowed-hostname", "", LATER),
    value("cipher-suites", "", LATER),
    value("tls-min-version", "TLS1.2", LATER),
    value("tls-max-version", "", LATER),
];

pub fn text() -> String {
    let mut text = String::from(
        "Usage: detcd [flags]\n\nA replicated key-value store that speaks etcd's v3 API. Every flag may be given as an \
         environment variable instead: ETCD_NAME for --name, and so on.\n\n",
    );
    for flag in FLAGS {
        let default = if flag.default.is_empty() { String::new() } else { format!(" ({})", flag.default) };
        text += &format!("  --{}{default}\n        {}\n", flag.name, flag.help);
    }
    text += "  --version\n        print the version and exit\n  --help\n        print this and exit\n";
    text
}
