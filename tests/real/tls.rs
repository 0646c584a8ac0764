//! Law: over TLS everything is as it is without, for whoever has the right certificate; and nobody else gets in, or in
//! the way. Real etcds say what is right, as elsewhere.
use super::transcript::{Scene, compare};
use detcd_tests::harness::{
    Addresses, Certificates, Cluster, Ctl, Peers,
    binaries::{detcd, stands_in},
    certificates::Identity,
    etcdctl,
    http::{self, Site},
    ports::free_port,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Those that use every way through the server: unary calls, long streams, plain HTTP.
const TRANSCRIPTS: &[&str] = &["put-get-delete", "members", "watch"];
/// In this time a member that may join has joined many times over.
const JOIN_TIME: Duration = Duration::from_secs(5);
/// More bytes than sockets and TLS buffer on their way.
const BIG: usize = 1 << 20;

#[test]
fn etcdctl_35_cannot_tell_detcd_from_etcd() {
    compare(Ctl::V35, Scene { members: 3, tls: Some(Certificates::make()) }, TRANSCRIPTS);
}

#[test]
fn etcdctl_36_cannot_tell_detcd_from_etcd() {
    compare(Ctl::V36, Scene { members: 3, tls: Some(Certificates::make()) }, TRANSCRIPTS);
}

#[test]
fn big_values_get_through_whole() {
    let Some(peers) = Peers::find() else { return };
    let cluster = Cluster::start_tls(3, &Certificates::make());
    let value: String = ('a'..='z').cycle().take(BIG).collect();
    let say = |member: usize, words: &[&str], stdin: &str| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let args = [cluster.ctl_flags(), words].concat();
        etcdctl::run(&peers, Ctl::V36, &cluster.members[member].address.endpoint(), &args, stdin)
    };
    // To each member: it goes to the two others over their streams.
    for member in 0..3 {
        let output = say(member, &["put", &format!("big{member}")], &value);
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), "OK\n"), "{}", output.stderr);
    }
    for member in 0..3 {
        let key = format!("big{}", (member + 1) % 3);
        let output = say(member, &["get", &key, "--print-value-only"], "");
        assert!(output.stdout.trim_end() == value, "{} bytes: {}", output.stdout.len(), output.stderr);
    }
}

#[test]
fn strangers_get_in_nowhere_and_hold_nobody_up() {
    let Some(peers) = Peers::find() else { return };
    let certificates = Certificates::make();
    let mut cluster = Cluster::start_tls(1, &certificates);
    let (address, endpoint) = (cluster.member(0).address.clone(), cluster.member(0).address.endpoint());
    let put = |who: Option<&Identity>, ctl: Ctl| {
        let flags = certificates.ctl_flags(who);
        let words = ["--dial-timeout=2s", "--command-timeout=2s", "put", "k", "v"].map(str::to_owned);
        etcdctl::run(&peers, ctl, &endpoint, &[flags, words.to_vec()].concat(), "")
    };
    let served = |after: &str| {
        let output = put(Some(&certificates.client), Ctl::V36);
        assert_eq!(output.stdout, "OK\n", "after {after}: {}", output.stderr);
    };
    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(address.client).expect("a connection")).collect();
    served("many who say nothing");
    for ctl in [Ctl::V35, Ctl::V36] {
        for (who, name) in [(None, "none without a certificate"), (Some(&certificates.stranger), "one of another CA")] {
            let output = put(who, ctl);
            assert!(output.code.is_some_and(|code| code != 0), "{name}: {output:?}");
            served(name);
        }
    }
    // The same by hand, and at the peers' port too.
    for port in [address.client, address.peer] {
        for who in [None, Some(&certificates.stranger)] {
            let site = Site { address: port, tls: Some(certificates.show(who)) };
            let answer = http::get(site, "/version");
            assert!(answer.is_err(), "{who:?} gets {answer:?}");
        }
        let answer = say_plainly(port);
        assert!(!answer.contains("200 OK") && !answer.contains("etcdserver"), "{answer}");
        served("plain HTTP");
        let site = Site { address: port, tls: Some(certificates.show(Some(&certificates.member))) };
        assert_eq!(http::get(site, "/version").expect("members get in").status, 200);
    }
    drop(crowd);
    let log = cluster.member(0).log_text();
    for line in ["rejected connection on client endpoint", "rejected connection on peer endpoint"] {
        assert!(log.contains(line), "no {line:?} in the log");
    }
    // etcd has a line for each of the crowd.
    let lines = log.matches("rejected connection").count();
    assert!(lines < 40 || stands_in(), "{lines} lines flood the log");
}

/// What a port answers to HTTP without TLS.
fn say_plainly(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: n\r\n\r\n").expect("a socket");
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // it may be reset, or closed
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_peer_of_another_authority_does_not_join() {
    let Some(peers) = Peers::find() else { return };
    let certificates = Certificates::make();
    let mut cluster = Cluster::prepare_tls(&detcd(), &Addresses::reserve_tls(3), &certificates);
    let show = |cluster: &mut Cluster, Identity { cert, key }: &Identity| {
        cluster.member(2).set("peer-cert-file", &cert.display().to_string());
        cluster.member(2).set("peer-key-file", &key.display().to_string());
    };
    show(&mut cluster, &certificates.stranger);
    cluster.members.iter_mut().for_each(|member| member.launch());
    cluster.member(0).wait_ready();
    cluster.member(1).wait_ready();
    let why = cluster.member(2).try_wait_ready(JOIN_TIME).expect_err("it is nobody's peer");
    assert!(why.contains("ready"), "{why}");
    let log = cluster.member(0).log_text();
    assert!(log.contains("rejected connection on peer endpoint"), "it was never turned away");
    let list = |cluster: &Cluster| {
        let args = [cluster.ctl_flags(), vec!["member".to_owned(), "list".to_owned()]].concat();
        etcdctl::run(&peers, Ctl::V36, &cluster.members[0].address.endpoint(), &args, "").stdout
    };
    // A member that takes part tells the others where its clients find it.
    let url = cluster.member(2).address.client_url();
    assert!(!list(&cluster).contains(&url), "{}", list(&cluster));

    // The certificate was all that it lacked.
    cluster.member(2).kill9();
    show(&mut cluster, &certificates.member);
    cluster.member(2).restart();
    assert!(list(&cluster).contains(&url), "{}", list(&cluster));
}

#[test]
fn http_and_https_side_by_side() {
    let certificates = Certificates::make();
    let mut cluster = Cluster::prepare_tls(&detcd(), &Addresses::reserve_tls(1), &certificates);
    let (secure, plain) = (cluster.member(0).site(), free_port());
    let urls = format!("https://{},http://{plain}", secure.address);
    cluster.member(0).set("listen-client-urls", &urls);
    cluster.start_all();
    for (site, right) in [(secure.clone(), true), (plain.into(), true), (secure.address.into(), false)] {
        let answer = http::get(site.clone(), "/health");
        assert_eq!(answer.as_ref().is_ok_and(|answer| answer.status == 200), right, "{site:?}: {answer:?}");
    }
    let misled = Site { address: plain, ..secure };
    assert!(http::get(misled, "/health").is_err(), "TLS at a plain port");
    let words = if stands_in() { "ignoring key and cert files" } else { "Ignored key/cert files" };
    assert!(cluster.member(0).log_text().contains(words), "no word of {plain} going without");
}
