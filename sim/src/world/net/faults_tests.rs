//! The network as programs see it when something is broken.
use detcd_node::host::{Io, Listener, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::{
    tests::{Bench, PORT, Pair, accept, exact, ip, ms, pair, took, world},
    *,
};

/// What a stream fails with, reading.
async fn failure(stream: &mut Io) -> io::ErrorKind {
    stream.read(&mut [0; 10]).await.unwrap_err().kind()
}

#[test]
fn a_cut_link_delivers_after_it_heals() {
    world(1, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 14];
            far.read_exact(&mut buffer).await.unwrap();
            (far, buffer)
        });
        bench.wait(ms(10)).await;
        near.write_all(b"in flight").await.unwrap();
        let cut = bench.time.now();
        bench.net.cut(ip(2), ip(1));
        near.write_all(b"later").await.unwrap();
        bench.wait(ms(1_000)).await;
        assert!(!reader.is_finished());
        assert!(bench.net.is_cut(ip(2), ip(1)));
        bench.net.heal(ip(2), ip(1));
        let (_far, buffer) = reader.await.unwrap();
        assert_eq!(&buffer, b"in flightlater");
        // Sent again 200, 600 and 1,400 ms after the first try.
        took(&bench, cut, ms(1_401));
        assert_eq!(bench.net.stats().cut_bytes_delayed, 14);
        bench.wait(ms(60_000)).await;
        near.write_all(b"x").await.expect("all was acknowledged in time");
    });
}

#[test]
fn what_is_in_flight_when_a_link_is_cut_times_out_too() {
    for (from, to) in [(1, 2), (2, 1)] {
        world(1, exact(), |bench| async move {
            let Pair { mut near, far: _far, .. } = pair(&bench.net).await;
            near.write_all(b"x").await.unwrap();
            let started = bench.time.now();
            bench.net.cut(ip(from), ip(to));
            assert_eq!(failure(&mut near).await, io::ErrorKind::TimedOut);
            took(&bench, started, ms(15_000));
        });
    }
}

#[test]
fn a_cut_holds_one_direction_only() {
    world(2, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        bench.net.cut(ip(2), ip(1));
        let started = bench.time.now();
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        took(&bench, started, ms(1));
        // But what arrives is not acknowledged.
        assert_eq!(failure(&mut far).await, io::ErrorKind::TimedOut);
        took(&bench, started, ms(15_000));
        assert_eq!(far.write(b"y").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(bench.net.stats().streams_timed_out, 1);
        // The other end never hears of it, until it writes and the reset gets through.
        bench.net.heal_all();
        bench.wait(ms(60_000)).await;
        let started = bench.time.now();
        near.write_all(b"anybody").await.unwrap();
        assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
        took(&bench, started, ms(2));
    });
}

#[test]
fn unacknowledged_bytes_time_a_writer_out() {
    for healed_after in [14_000, 16_000] {
        world(3, exact(), |bench| async move {
            let Pair { near, mut far, .. } = pair(&bench.net).await;
            bench.net.cut(ip(2), ip(1));
            let started = bench.time.now();
            let (mut read, mut write) = tokio::io::split(near);
            write.write_all(b"x").await.unwrap();
            let reader = tokio::spawn(async move { read.read(&mut [0; 10]).await });
            bench.wait(ms(healed_after)).await;
            // Sent again 200, 600, 1,400, 3,000, 6,200, 9,400, 12,600 and 15,800 ms later: that is too late.
            bench.net.heal(ip(2), ip(1));
            let _ = write.write(b"y").await;
            assert_eq!(reader.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
            let expected = ms(15_000.max(healed_after));
            took(&bench, started, expected);
            let nothing = tokio::time::timeout(ms(60_000), far.read(&mut [0; 10])).await;
            assert!(nothing.is_err(), "what timed out is not sent again");
        });
    }
}

/// A writer that fills the window of 100 bytes, and waits.
async fn blocked(bench: &Bench) -> (Others, JoinHandle<io::Result<Io>>) {
    let Pair { server, client, listener, mut near, far } = pair(&bench.net).await;
    let writer = tokio::spawn(async move { near.write_all(&[0; 300]).await.map(|()| near) });
    bench.wait(ms(5)).await;
    assert!(!writer.is_finished());
    (Others { _kept: (server, client, listener), far }, writer)
}

struct Others {
    _kept: (Arc<dyn Net>, Arc<dyn Net>, Box<dyn Listener>),
    far: Io,
}

#[test]
fn a_blocked_writer_fails_in_time() {
    let narrow = NetParams { window: 100, ..exact() };
    let check = |strike: fn(&Bench, Others) -> Option<Others>, kind: io::ErrorKind, after: Duration| {
        world(4, narrow, |bench| async move {
            let (other, writer) = blocked(&bench).await;
            let started = bench.time.now();
            let _other = strike(&bench, other);
            assert_eq!(writer.await.unwrap().err().unwrap().kind(), kind);
            took(&bench, started, after);
        });
    };
    let power_off = |bench: &Bench, other| {
        bench.net.power_off(ip(1));
        Some(other)
    };
    check(power_off, io::ErrorKind::TimedOut, ms(15_000));
    let kill = |bench: &Bench, other| {
        bench.net.kill(ip(1));
        Some(other)
    };
    check(kill, io::ErrorKind::ConnectionReset, ms(2));
    let reset = |bench: &Bench, other| {
        bench.net.reset_connections(ip(1), ip(2));
        Some(other)
    };
    check(reset, io::ErrorKind::ConnectionReset, ms(0));
    check(|_, _| None, io::ErrorKind::ConnectionReset, ms(1));
    world(4, narrow, |bench| async move {
        let Pair { mut near, far: _far, .. } = pair(&bench.net).await;
        bench.net.cut(ip(2), ip(1));
        let started = bench.time.now();
        assert_eq!(near.write_all(&[0; 300]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        took(&bench, started, ms(15_000));
    });
}

#[test]
fn a_writer_that_cannot_hear_of_the_room_it_has_waits_for_it() {
    for heals in [true, false] {
        world(4, NetParams { window: 100, ..exact() }, |bench| async move {
            let (mut other, writer) = blocked(&bench).await;
            bench.net.cut(ip(1), ip(2));
            let read = bench.time.now();
            other.far.read_exact(&mut [0; 100]).await.unwrap();
            bench.wait(ms(5_000)).await;
            assert!(!writer.is_finished());
            if heals {
                let healed = bench.time.now();
                bench.net.heal(ip(1), ip(2));
                other.far.read_exact(&mut [0; 200]).await.unwrap();
                took(&bench, healed, ms(2));
                writer.await.unwrap().unwrap();
            } else {
                assert_eq!(writer.await.unwrap().err().unwrap().kind(), io::ErrorKind::TimedOut);
                took(&bench, read, ms(15_000));
            }
        });
    }
}

#[test]
fn an_end_learns_that_the_other_failed_while_bytes_were_on_their_way_to_it() {
    world(4, exact(), |bench| async move {
        let Pair { mut near, far, .. } = pair(&bench.net).await;
        let (mut read, mut write) = tokio::io::split(far);
        let reader = tokio::spawn(async move { read.read(&mut [0; 10]).await });
        bench.wait(ms(1)).await;
        let started = bench.time.now();
        bench.net.cut(ip(2), ip(1));
        near.write_all(b"x").await.unwrap();
        bench.wait(ms(14_000)).await;
        // Too late for the one end; the other has bytes under way to it when it fails, and nobody looks.
        bench.net.heal(ip(2), ip(1));
        bench.net.clog(ip(1), ip(2), ms(3_000));
        write.write_all(b"y").await.unwrap();
        bench.net.heal_all();
        assert_eq!(reader.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        took(&bench, started, ms(17_002));
    });
}

#[test]
fn a_connect_over_a_cut_link_times_out() {
    for (from, to) in [(1, 2), (2, 1)] {
        world(5, exact(), |bench| async move {
            let (server, client) = (bench.net.host(ip(1)), bench.net.host(ip(2)));
            let mut listener = server.listen(Role::Peer, PORT).await.unwrap();
            bench.net.cut(ip(from), ip(to));
            let started = bench.time.now();
            let failed = client.connect(Role::Peer, PORT).await.err().unwrap();
            assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
            took(&bench, started, ms(3_000));
            // One that is under way when the link heals gets through at its next try.
            let started = bench.time.now();
            let connecting = tokio::spawn(async move { client.connect(Role::Peer, PORT).await });
            bench.wait(ms(500)).await;
            bench.net.heal(ip(from), ip(to));
            let _near = connecting.await.unwrap().unwrap();
            took(&bench, started, ms(1_002));
            accept(&mut listener).await;
            let stats = bench.net.stats();
            assert_eq!((stats.connects_timed_out, stats.connects_delayed, stats.connects), (1, 2, 1));
        });
    }
}

#[test]
fn a_machine_that_is_off_does_not_answer() {
    world(6, exact(), |bench| async move {
        let client = bench.net.host(ip(2));
        let connect = async || client.connect(Role::Peer, PORT).await.map(drop).unwrap_err().kind();
        assert_eq!(connect().await, io::ErrorKind::TimedOut, "never started");
        let server = bench.net.host(ip(1));
        assert_eq!(connect().await, io::ErrorKind::ConnectionRefused, "on, and nobody listens");
        let mut listener = server.listen(Role::Peer, PORT).await.unwrap();
        let accepting = tokio::spawn(async move { listener.accept().await.is_err() });
        bench.wait(ms(5)).await;
        bench.net.kill(ip(1));
        assert!(accepting.await.unwrap());
        assert_eq!(connect().await, io::ErrorKind::ConnectionRefused, "on, and nobody lives");
        bench.net.power_off(ip(1));
        assert_eq!(connect().await, io::ErrorKind::TimedOut, "off");
        assert!(server.listen(Role::Peer, PORT).await.is_err(), "a dead process does nothing");
        assert!(server.connect(Role::Peer, PORT).await.is_err());
    });
}

#[test]
fn the_dead_say_no_farewell() {
    for power_off in [false, true] {
        world(7, exact(), |bench| async move {
            let Pair { mut near, mut far, listener, .. } = pair(&bench.net).await;
            far.write_all(b"last").await.unwrap();
            if power_off {
                bench.net.power_off(ip(1))
            } else {
                bench.net.kill(ip(1))
            }
            // Destructors still run, and must not be heard.
            assert!(far.write(b"ghost").await.is_err() && far.read(&mut [0; 1]).await.is_err());
            far.shutdown().await.unwrap();
            drop((far, listener));
            let mut buffer = [0; 10];
            assert_eq!(near.read(&mut buffer).await.unwrap(), 4, "what was on its way arrives");
            let silence = tokio::time::timeout(ms(3_600_000), near.read(&mut buffer)).await;
            assert!(silence.is_err(), "half-open");
            let started = bench.time.now();
            near.write_all(b"anybody").await.unwrap();
            if power_off {
                // Nobody is there to answer, whatever happens to the links.
                bench.wait(ms(1_000)).await;
                bench.net.cut(ip(1), ip(2));
                bench.net.heal(ip(1), ip(2));
                assert_eq!(failure(&mut near).await, io::ErrorKind::TimedOut);
                took(&bench, started, ms(15_000));
            } else {
                assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
                took(&bench, started, ms(2));
            }
            assert_eq!(bench.net.stats().ends_fenced, 1);
            drop(near);
            assert_eq!(bench.net.connections(), 0);
        });
    }
}

#[test]
fn what_is_on_its_way_to_the_dead_is_answered_by_a_reset() {
    world(7, exact(), |bench| async move {
        let Pair { mut near, far: _far, .. } = pair(&bench.net).await;
        near.write_all(b"x").await.unwrap();
        let started = bench.time.now();
        bench.net.kill(ip(1));
        assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
        took(&bench, started, ms(2));
    });
}

#[test]
fn a_reset_does_not_overtake_bytes() {
    world(7, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        bench.net.clog(ip(1), ip(2), ms(700));
        let started = bench.time.now();
        far.write_all(b"last").await.unwrap();
        bench.net.heal_all();
        bench.net.kill(ip(1));
        near.write_all(b"x").await.unwrap();
        assert_eq!(near.read(&mut [0; 10]).await.unwrap(), 4);
        took(&bench, started, ms(701));
        assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
        took(&bench, started, ms(701));
    });
}

#[test]
fn a_reset_can_be_lost() {
    for heals in [true, false] {
        world(7, exact(), |bench| async move {
            let Pair { mut near, far: _far, .. } = pair(&bench.net).await;
            bench.net.kill(ip(1));
            near.write_all(b"x").await.unwrap();
            bench.wait(Duration::from_micros(1_500)).await;
            let cut = bench.time.now();
            bench.net.cut(ip(1), ip(2));
            bench.wait(ms(500)).await;
            if heals {
                bench.net.heal(ip(1), ip(2));
                assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
                took(&bench, cut, ms(602));
            } else {
                assert_eq!(failure(&mut near).await, io::ErrorKind::TimedOut);
                took(&bench, cut, ms(15_000));
            }
        });
    }
}

#[test]
fn a_machine_that_is_back_resets_old_connections() {
    world(8, exact(), |bench| async move {
        let Pair { mut near, far, .. } = pair(&bench.net).await;
        bench.net.power_off(ip(1));
        drop(far);
        let started = bench.time.now();
        near.write_all(b"anybody").await.unwrap();
        let reader = tokio::spawn(async move { failure(&mut near).await });
        bench.wait(ms(5_000)).await;
        assert!(!reader.is_finished());
        let _server = bench.net.host(ip(1));
        assert_eq!(reader.await.unwrap(), io::ErrorKind::ConnectionReset);
        took(&bench, started, ms(6_202));
        assert_eq!(bench.net.stats().streams_reset, 1);
    });
}

#[test]
fn half_open_connections_look_alive_at_one_end() {
    world(9, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        assert_eq!(bench.net.half_open(ip(1), ip(2)), 1);
        assert_eq!(failure(&mut far).await, io::ErrorKind::ConnectionAborted);
        drop(far);
        let silence = tokio::time::timeout(ms(3_600_000), near.read(&mut [0; 1])).await;
        assert!(silence.is_err());
        near.write_all(b"x").await.unwrap();
        assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
        assert_eq!(bench.net.half_open(ip(1), ip(2)), 0);
        assert_eq!(bench.net.stats().half_opened, 1);
    });
}

#[test]
fn a_reset_reaches_both_ends() {
    world(10, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        near.write_all(b"lost").await.unwrap();
        let reader = tokio::spawn(async move { failure(&mut near).await });
        bench.wait(ms(5)).await;
        assert_eq!(bench.net.reset_connections(ip(2), ip(1)), 1);
        assert_eq!(reader.await.unwrap(), io::ErrorKind::ConnectionReset);
        assert_eq!(failure(&mut far).await, io::ErrorKind::ConnectionReset);
        assert_eq!(far.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!((bench.net.reset_connections(ip(1), ip(2)), bench.net.stats().resets), (0, 1));
    });
}

#[test]
fn closing_with_unread_bytes_resets() {
    world(11, exact(), |bench| async move {
        let Pair { mut near, mut far, .. } = pair(&bench.net).await;
        near.write_all(b"unread").await.unwrap();
        far.write_all(b"read this first").await.unwrap();
        bench.wait(ms(5)).await;
        drop(far);
        let mut buffer = [0; 100];
        assert_eq!(near.read(&mut buffer).await.unwrap(), 15);
        assert_eq!(failure(&mut near).await, io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn bytes_that_reach_a_closed_end_reset() {
    world(11, exact(), |bench| async move {
        let Pair { mut near, far, .. } = pair(&bench.net).await;
        near.write_all(b"on its way").await.unwrap();
        drop(far);
        assert_eq!(near.read(&mut [0; 10]).await.unwrap(), 0, "a farewell, at first");
        bench.wait(ms(5)).await;
        assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_machine_delivers_what_a_closed_stream_left_to_it() {
    for power_off in [false, true] {
        world(11, exact(), |bench| async move {
            let Pair { mut near, mut far, .. } = pair(&bench.net).await;
            bench.net.cut(ip(1), ip(2));
            far.write_all(b"last").await.unwrap();
            drop(far);
            if power_off {
                bench.net.power_off(ip(1))
            } else {
                bench.net.kill(ip(1))
            }
            bench.net.heal(ip(1), ip(2));
            let mut rest = Vec::new();
            let read = tokio::time::timeout(ms(60_000), near.read_to_end(&mut rest)).await;
            assert_eq!((read.is_err(), rest.len()), if power_off { (true, 0) } else { (false, 4) });
        });
    }
}

#[test]
fn a_clogged_link_is_slow() {
    world(12, exact(), |bench| async move {
        let Pair { mut near, mut far, client, .. } = pair(&bench.net).await;
        bench.net.clog(ip(2), ip(1), ms(700));
        let started = bench.time.now();
        near.write_all(b"x").await.unwrap();
        far.read_u8().await.unwrap();
        took(&bench, started, ms(701));
        bench.net.clog(ip(2), ip(1), ms(4_300));
        let started = bench.time.now();
        let failed = client.connect(Role::Peer, PORT).await.err().unwrap();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        took(&bench, started, ms(3_000));
        bench.net.heal_all();
        let started = bench.time.now();
        near.write_all(b"x").await.unwrap();
        far.read_u8().await.unwrap();
        took(&bench, started, ms(1));
        assert_eq!(bench.net.stats().segments_clogged, 1);
    });
}

#[test]
fn a_full_backlog_loses_connects() {
    world(13, NetParams { backlog: 2, ..exact() }, |bench| async move {
        let (server, client) = (bench.net.host(ip(1)), bench.net.host(ip(2)));
        let mut listener = server.listen(Role::Peer, PORT).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..2 {
            waiting.push(client.connect(Role::Peer, PORT).await.unwrap());
        }
        assert_eq!(client.connect(Role::Peer, PORT).await.err().unwrap().kind(), io::ErrorKind::TimedOut);
        accept(&mut listener).await;
        waiting.push(client.connect(Role::Peer, PORT).await.unwrap());
        drop(listener);
        // Those that nobody accepted are gone without a word.
        let mut last = waiting.pop().unwrap();
        last.write_all(b"x").await.unwrap();
        assert_eq!(failure(&mut last).await, io::ErrorKind::ConnectionReset);
        drop((waiting, last));
        assert_eq!(bench.net.connections(), 0);
    });
}

#[test]
fn faults_of_links_that_overlap_end_each_by_itself_and_count_where_they_are() {
    world(14, exact(), |bench| async move {
        let Pair { mut near, mut far, client, .. } = pair(&bench.net).await;
        let stats = |from, to| bench.net.link_stats(ip(from), ip(to));
        bench.net.clog(ip(2), ip(1), ms(300));
        bench.net.clog(ip(2), ip(1), ms(50));
        bench.net.unclog(ip(2), ip(1), ms(300));
        let started = bench.time.now();
        near.write_all(b"x").await.unwrap();
        far.read_u8().await.unwrap();
        took(&bench, started, ms(51));
        assert_eq!((stats(2, 1).clogged, stats(1, 2).clogged), (1, 0));
        bench.net.unclog(ip(2), ip(1), ms(50));
        bench.net.lose(ip(2), ip(1), 1_000_000);
        bench.net.lose(ip(2), ip(1), 10);
        bench.net.lose_less(ip(2), ip(1), 10);
        near.write_all(b"x").await.unwrap();
        far.read_u8().await.unwrap();
        assert!(stats(2, 1).lost > 0);
        bench.net.heal_all();
        let LinkStats { lost, .. } = stats(2, 1);
        // What a link loses by itself is nobody's doing, and that a machine is off is not the link's.
        bench.net.set_link(ip(2), ip(1), Some(LinkParams { loss_ppm: 1_000_000, ..exact().link }));
        near.write_all(b"x").await.unwrap();
        bench.net.set_link(ip(2), ip(1), None);
        bench.net.power_off(ip(1));
        assert!(client.connect(Role::Peer, PORT).await.is_err());
        assert_eq!((stats(2, 1).lost, stats(2, 1).held, stats(1, 2).held), (lost, 0, 0));
        bench.net.cut(ip(2), ip(1));
        assert!(client.connect(Role::Peer, PORT).await.is_err());
        assert!(stats(2, 1).held > 0 && stats(1, 2).held == 0);
    });
}
