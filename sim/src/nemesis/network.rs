//! Faults of the network: cuts, resets, half-open connections, latency and loss.
use std::{net::IpAddr, time::Duration};

use super::Inner;
use crate::{
    history::NodeNumber,
    scenario::fault::{Links, Shape},
    schedule::Planned,
    world::{
        cluster::node_ip,
        net::{LinkParams, NetStats},
    },
};

type Way = (IpAddr, IpAddr);

impl Inner {
    pub(super) async fn partition(
        &self,
        planned: &Planned,
        victims: &[NodeNumber],
        links: Links,
        end: Duration,
    ) -> u64 {
        let ways = self.ways(planned, victims, links);
        let before = held_up(self.cluster.net.stats());
        self.cut(&ways);
        self.time.sleep_until(end).await;
        self.mend(&ways);
        held_up(self.cluster.net.stats()) - before
    }

    /// Down, up, down, up, for so long each.
    pub(super) async fn flap(
        &self,
        planned: &Planned,
        victims: &[NodeNumber],
        links: Links,
        turns: [Duration; 2],
        end: Duration,
    ) -> u64 {
        let ways = self.ways(planned, victims, links);
        let before = held_up(self.cluster.net.stats());
        let [down, up] = turns;
        while self.time.now() < end {
            self.cut(&ways);
            self.time.sleep_until((self.time.now() + down).min(end)).await;
            self.mend(&ways);
            self.time.sleep_until((self.time.now() + up).min(end)).await;
        }
        held_up(self.cluster.net.stats()) - before
    }

    fn ways(&self, planned: &Planned, victims: &[NodeNumber], links: Links) -> Vec<Way> {
        let between_nodes = planned.cuts(victims, self.cluster.nodes.len());
        let mut ways: Vec<_> = between_nodes.iter().map(|(from, to)| (node_ip(from.0), node_ip(to.0))).collect();
        if links.clients() {
            let shape = planned.fault.partition().map_or(Shape::Isolate, |(shape, _)| shape);
            for victim in victims {
                ways.extend(shape.cuts(node_ip(victim.0), &self.clients));
            }
        }
        ways
    }

    fn cut(&self, ways: &[Way]) {
        let mut state = self.state.lock();
        for way in ways {
            let count = state.cuts.entry(*way).or_default();
            *count += 1;
            if *count == 1 {
                self.cluster.net.cut(way.0, way.1);
            }
        }
    }

    fn mend(&self, ways: &[Way]) {
        let mut state = self.state.lock();
        for way in ways {
            let count = state.cuts.get_mut(way).expect("only what was cut is mended");
            *count -= 1;
            if *count == 0 {
                state.cuts.remove(way);
                self.cluster.net.heal(way.0, way.1);
            }
        }
    }

    pub(super) async fn reset_connections(
        &self,
        victims: &[NodeNumber],
        links: Links,
        period: Duration,
        end: Duration,
    ) -> u64 {
        self.again_and_again(victims, links, period, end, |a, b| self.cluster.net.reset_connections(a, b)).await
    }

    pub(super) async fn half_open(&self, victims: &[NodeNumber], links: Links, period: Duration, end: Duration) -> u64 {
        self.again_and_again(victims, links, period, end, |a, b| self.cluster.net.half_open(a, b)).await
    }

    async fn again_and_again(
        &self,
        victims: &[NodeNumber],
        links: Links,
        period: Duration,
        end: Duration,
        strike: impl Fn(IpAddr, IpAddr) -> u64,
    ) -> u64 {
        let mut effects = 0;
        while self.time.now() < end {
            effects += self.pairs(victims, links).into_iter().map(|(a, b)| strike(a, b)).sum::<u64>();
            self.time.sleep_until((self.time.now() + period).min(end)).await;
        }
        effects
    }

    /// Each victim with each machine at the other end of the links in question.
    fn pairs(&self, victims: &[NodeNumber], links: Links) -> Vec<Way> {
        let mut pairs = Vec::new();
        for victim in victims {
            let own = node_ip(victim.0);
            if links.nodes() {
                let others = self.cluster.numbers().filter(|other| other != victim);
                pairs.extend(others.map(|other| (own, node_ip(other.0))));
            }
            if links.clients() {
                pairs.extend(self.clients.iter().map(|client| (own, *client)));
            }
        }
        pairs
    }

    pub(super) async fn clog(&self, victims: &[NodeNumber], links: Links, extra: Duration, end: Duration) -> u64 {
        let net = &self.cluster.net;
        let set = |extra| {
            for (a, b) in self.pairs(victims, links) {
                net.clog(a, b, extra);
                net.clog(b, a, extra);
            }
        };
        let before = net.stats().segments_clogged;
        set(extra);
        self.time.sleep_until(end).await;
        set(Duration::ZERO);
        net.stats().segments_clogged - before
    }

    pub(super) async fn lose(&self, victims: &[NodeNumber], links: Links, loss_ppm: u32, end: Duration) -> u64 {
        let net = &self.cluster.net;
        let set = |loss: Option<u32>| {
            for (a, b) in self.pairs(victims, links) {
                let usual = if self.clients.contains(&b) { self.client_link } else { self.node_link };
                let params = LinkParams { loss_ppm: loss.unwrap_or(usual.loss_ppm), ..usual };
                net.set_link(a, b, Some(params));
                net.set_link(b, a, Some(params));
            }
        };
        let before = net.stats().segments_lost;
        set(Some(loss_ppm));
        self.time.sleep_until(end).await;
        set(None);
        net.stats().segments_lost - before
    }
}

/// Whatever a cut does to traffic.
fn held_up(stats: NetStats) -> u64 {
    stats.cut_bytes_delayed + stats.connects_timed_out + stats.connects_delayed + stats.streams_timed_out
}
