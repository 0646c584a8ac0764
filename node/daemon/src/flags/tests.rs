use super::*;

fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Flags> {
    let env = env.iter().map(|(key, value)| (key.into(), value.into()));
    match Flags::parse(args.iter().map(OsString::from), env)? {
        Wanted::Run(flags) => Ok(*flags),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_given_is_etcds_default() {
    let flags = parse(&[], &[]).unwrap();
    assert_eq!(flags.config.data_dir, PathBuf::from("default.etcd"));
    assert_eq!(flags.config.listen_client_urls, ["http://localhost:2379"]);
    assert_eq!(flags.config.initial_cluster[0].peer_urls, ["http://localhost:2380"]);
    assert_eq!((flags.config.heartbeat_ms, flags.config.election_ms), (100, 1_000));
    assert_eq!(flags.config.watch_progress_ms, 600_000);
}

#[test]
fn flags_are_read_in_all_of_gos_forms() {
    let flags = parse(&["--name", "a", "-data-dir=d", "--pre-vote", "--strict-reconfig-check=true"], &[]).unwrap();
    assert_eq!((flags.config.name.as_str(), flags.config.data_dir.to_str()), ("a", Some("d")));
    assert_eq!(flags.config.initial_cluster[0].name, "a");
}

#[test]
fn the_environment_stands_in_for_flags_but_may_not_contradict_them() {
    let flags = parse(&[], &[("ETCD_NAME", "b"), ("ETCD_PORT", "tcp://1.2.3.4"), ("HOME", "x")]).unwrap();
    assert_eq!(flags.config.name, "b");
    assert_eq!(flags.warnings, ["unrecognized environment variable ETCD_PORT=tcp://1.2.3.4"]);
    let error = parse(&["--name=a"], &[("ETCD_NAME", "b")]).unwrap_err();
    assert!(error.contains("ETCD_NAME") && error.contains("shadowed"), "{error}");
}

/// In the environment what is not known is ignored, as by etcd; on the command line it is refused.
#[test]
fn flags_that_only_etcd_has_are_called_so() {
    let error = parse(&["--quota-backend-bytes", "8589934592"], &[]).unwrap_err();
    assert!(error.contains("--quota-backend-bytes=\"8589934592\"") && error.contains("etcd has this flag"), "{error}");
    assert!(parse(&["--force-new-cluster"], &[]).unwrap_err().contains("--force-new-cluster=\"true\""));
    // Defaults go without saying.
    let same = ["--quota-backend-bytes=0", "--metrics", "basic", "--force-new-cluster=false", "--name=a"];
    assert_eq!(parse(&same, &[]).unwrap().config.name, "a");
    let flags = parse(&[], &[("ETCD_AUTO_COMPACTION_RETENTION", "1h"), ("ETCD_METRICS", "basic")]).unwrap();
    let [warning] = &flags.warnings[..] else { panic!("{:?}", flags.warnings) };
    assert!(warning.contains("ETCD_AUTO_COMPACTION_RETENTION=\"1h\"") && warning.contains("ignored"), "{warning}");
    let former = parse(&["--experimental-watch-progress-notify-interval=5s"], &[]).unwrap();
    assert_eq!(former.config.watch_progress_ms, 5_000);
    assert!(parse(&["--experimental-name=a"], &[]).unwrap_err().contains("unknown flag"));
}

#[test]
fn a_cluster_may_give_several_urls_for_a_name() {
    let cluster = "a=http://x:1,b=http://y:1,a=http://w:2";
    let flags = parse(&["--name=a", "--initial-cluster", cluster], &[]).unwrap();
    assert_eq!(flags.config.initial_cluster[0].peer_urls, ["http://w:2", "http://x:1"]);
}

#[test]
fn mistakes_are_named() {
    #[track_caller]
    fn check(args: &[&str], part: &str) {
        let error = parse(args, &[]).unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains('\n'));
    }
    check(&["--nmae=a"], "unknown flag --nmae");
    check(&["start"], "\"start\" is not a flag");
    check(&["--pre-vote", "false"], "write --pre-vote=false");
    let both =
        ["--listen-client-urls=http://x:1", "--advertise-client-urls=http://x:1", "--listen-peer-urls=http://x:1"];
    check(&both, "both have http://x:1");
    check(&["--name"], "--name needs a value");
    check(&["--listen-client-urls=http://a:1"], "--advertise-client-urls");
    check(&["--listen-peer-urls=localhost:2380"], "is not a URL");
    check(&["--listen-peer-urls=http://127.0.0.1"], "has no port");
    check(&["--listen-peer-urls=http://[::1]"], "has no port");
    check(&["--listen-peer-urls=http://127.0.0.1:99999"], "has port \"99999\"");
    check(&["--listen-peer-urls=unix://x:1"], "is of unix");
    check(&["--listen-peer-urls=http://x:1/y"], "has a path");
    check(&["--listen-peer-urls=http://:1"], "has no host");
    check(&["--initial-cluster=a"], "name=http://host:port");
    check(&["--initial-cluster=a=http://x:1,b=http://x:1"], "one URL twice");
    check(&["--heartbeat-interval=x"], "not a number");
    check(&["--heartbeat-interval=300"], "5 times");
    check(&["--initial-cluster-state=exiting"], "neither new nor existing");
    check(&["--log-level=loud"], "--log-level");
    check(&["--watch-progress-notify-interval=10"], "100ms at least");
}

/// What makes a member that uses TLS everywhere, unless `without` is among it.
fn secured(without: &[&str], more: &[&str]) -> Result<Flags> {
    let all = [
        "--name=a",
        "--listen-client-urls=https://127.0.0.1:1",
        "--advertise-client-urls=https://a:1",
        "--listen-peer-urls=https://127.0.0.1:2",
        "--initial-advertise-peer-urls=https://a:2",
        "--initial-cluster=a=https://a:2,b=https://b:2",
        "--cert-file=c.pem",
        "--key-file=k.pem",
        "--trusted-ca-file=ca.pem",
        "--peer-cert-file=pc.pem",
        "--peer-key-file=pk.pem",
        "--peer-trusted-ca-file=pca.pem",
    ];
    let kept = all.iter().filter(|arg| !without.iter().any(|name| arg.starts_with(&format!("--{name}="))));
    parse(&kept.chain(more).copied().collect::<Vec<_>>(), &[])
}

#[test]
fn tls_is_as_its_flags_say() {
    let flags = secured(&[], &["--client-cert-auth", "--peer-client-cert-auth=true"]).unwrap();
    assert_eq!(flags.config.listen_peer_urls, ["https://127.0.0.1:2"]);
    assert_eq!(flags.config.initial_cluster[1].peer_urls, ["https://b:2"]);
    let (client, peer) = (&flags.tls.client, &flags.tls.peer);
    assert!(client.listens && peer.listens && !flags.tls.peers_from_anywhere && flags.warnings.is_empty());
    let identity = client.identity.as_ref().unwrap();
    assert_eq!((identity.cert.flag.as_str(), identity.cert.path.to_str()), ("--cert-file", Some("c.pem")));
    assert_eq!(peer.trusted_ca.as_ref().unwrap().path.to_str(), Some("pca.pem"));
    assert!(secured(&[], &["--peer-skip-client-san-verification"]).unwrap().tls.peers_from_anywhere);

    let named = parse(&[], &[("ETCD_TRUSTED_CA_FILE", "ca.pem")]).unwrap().tls;
    assert_eq!(named.client.trusted_ca.unwrap().flag, "ETCD_TRUSTED_CA_FILE");
    assert_eq!(parse(&[], &[]).unwrap().tls, TlsFlags::default());
}

#[test]
fn times_are_written_as_in_go() {
    let keep_alive = |interval: &str, timeout: &str| {
        let [interval, timeout] = [("interval", interval), ("timeout", timeout)]
            .map(|(name, time)| format!("--grpc-keepalive-{name}={time}"));
        parse(&[&interval, &timeout], &[]).map(|flags| flags.config.keep_alive)
    };
    let [hours, seconds] = [|hours| Duration::from_secs(hours * 3_600), Duration::from_secs];
    assert_eq!(parse(&[], &[]).unwrap().config.keep_alive, KeepAlive { interval: hours(2), timeout: seconds(20) });
    let custom = KeepAlive { interval: seconds(5_430), timeout: Duration::from_millis(1_500) };
    assert_eq!(keep_alive("1h30m30s", "1s500ms"), Ok(custom));
    assert_eq!(keep_alive("0", "1s"), Ok(KeepAlive::DEFAULT));
    for wrong in ["", "5", "s", "1h2", "1x", "-1s", "99999999999999999999s"] {
        let error = keep_alive(wrong, "1s").unwrap_err();
        assert!(error.contains("--grpc-keepalive-interval"), "{error}");
    }
}

#[test]
fn what_etcd_knows_of_tls_and_we_do_not_may_say_its_default() {
    let defaults =
        ["--auto-tls=false", "--tls-min-version=TLS1.2", "--tls-max-version=", "--self-signed-cert-validity=1"];
    parse(&defaults, &[]).unwrap();
}

#[test]
fn plain_urls_beside_certificates_are_warned_of() {
    let plain =
        ["--listen-client-urls=https://127.0.0.1:1,http://127.0.0.1:3", "--listen-peer-urls=http://127.0.0.1:2"];
    let more = [&plain[..], &["--client-cert-auth"]].concat();
    let flags = secured(&["listen-client-urls", "listen-peer-urls"], &more).unwrap();
    assert!(flags.tls.client.listens && !flags.tls.peer.listens);
    let warned = flags.warnings.iter().map(|warning| warning.rsplit(". ").next().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        warned,
        ["Ignored key/cert files.", "Ignored client cert auth for this url.", "Ignored key/cert files."],
        "{:?}",
        flags.warnings
    );
    assert!(flags.warnings[..2].iter().all(|warning| warning.contains("client url http://127.0.0.1:3 is HTTP")));
    assert!(flags.warnings[2].contains("peer url http://127.0.0.1:2 is HTTP"));
}

#[test]
fn tls_flags_that_do_not_fit_are_named() {
    #[track_caller]
    fn check(without: &[&str], more: &[&str], parts: &[&str]) {
        let error = secured(without, more).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
    }
    check(&["cert-file"], &[], &["--key-file needs --cert-file"]);
    check(&["peer-key-file"], &[], &["--peer-cert-file needs --peer-key-file"]);
    check(&["cert-file", "key-file"], &[], &["--listen-client-urls: https://127.0.0.1:1", "--cert-file", "--key-file"]);
    check(&["peer-cert-file", "peer-key-file"], &[], &["--listen-peer-urls", "--peer-cert-file"]);
    check(&["trusted-ca-file"], &["--client-cert-auth"], &["--client-cert-auth needs --trusted-ca-file"]);
    check(&["peer-trusted-ca-file"], &["--peer-client-cert-auth"], &["needs --peer-trusted-ca-file"]);
    check(&["peer-trusted-ca-file"], &[], &["the peer https://b:2", "--peer-trusted-ca-file"]);
    check(&[], &["--client-cert-auth=maybe"], &["--client-cert-auth", "neither true nor false"]);
    for refused in ["--auto-tls", "--peer-cert-allowed-cn=a", "--tls-min-version=TLS1.3", "--client-crl-file=x"] {
        check(&[], &[refused], &[refused.split('=').next().unwrap(), "not implemented yet"]);
    }
}
