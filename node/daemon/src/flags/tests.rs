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
    assert_eq!(flags.config.listen_client, ["localhost:2379"]);
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
    check(&["--name"], "--name needs a value");
    check(&["--listen-client-urls=http://a:1"], "--advertise-client-urls");
    check(&["--listen-peer-urls=localhost:2380"], "is not a URL");
    check(&["--listen-peer-urls=https://localhost:2380"], "TLS");
    check(&["--initial-cluster=a"], "name=http://host:port");
    check(&["--initial-cluster=a=http://x:1,b=http://x:1"], "one URL twice");
    check(&["--heartbeat-interval=x"], "not a number");
    check(&["--heartbeat-interval=300"], "5 times");
    check(&["--initial-cluster-state=exiting"], "neither new nor existing");
    check(&["--log-level=loud"], "--log-level");
    check(&["--watch-progress-notify-interval=10"], "100ms at least");
}
