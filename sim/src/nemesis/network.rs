//! Faults of the network: cuts, resets, half-open connections, latency, loss and damage.
use std::{net::IpAddr, time::Duration};

use super::Inner;
use crate::{
    history::NodeNumber,
    scenario::fault::{Links, Shape},
    schedule::Planned,
    world::{addresses::node_ip, net::LinkStats},
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
        let before = self.held(&ways);
        self.cut(&ways);
        self.time.sleep_until(end).await;
        self.mend(&ways);
        self.held(&ways) - before
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
        let before = self.held(&ways);
        let [down, up] = turns;
        while self.time.now() < end {
            self.cut(&ways);
            self.time.sleep_until((self.time.now() + down).min(end)).await;
            self.mend(&ways);
            self.time.sleep_until((self.time.now() + up).min(end)).await;
        }
        self.held(&ways) - before
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
        let (net, ways) = (&self.cluster.net, both(self.pairs(victims, links)));
        let before = self.link_stats(&ways, |stats| stats.clogged);
        ways.iter().for_each(|(from, to)| net.clog(*from, *to, extra));
        self.time.sleep_until(end).await;
        ways.iter().for_each(|(from, to)| net.unclog(*from, *to, extra));
        self.link_stats(&ways, |stats| stats.clogged) - before
    }

    pub(super) async fn lose(&self, victims: &[NodeNumber], links: Links, ppm: u32, end: Duration) -> u64 {
        let (net, ways) = (&self.cluster.net, both(self.pairs(victims, links)));
        let before = self.link_stats(&ways, |stats| stats.lost);
        ways.iter().for_each(|(from, to)| net.lose(*from, *to, ppm));
        self.time.sleep_until(end).await;
        ways.iter().for_each(|(from, to)| net.lose_less(*from, *to, ppm));
        self.link_stats(&ways, |stats| stats.lost) - before
    }

    pub(super) async fn garble(&self, victims: &[NodeNumber], end: Duration) -> u64 {
        let (net, pairs) = (&self.cluster.net, self.pairs(victims, Links::Nodes));
        let ways: Vec<_> = pairs.into_iter().map(|(victim, other)| (other, victim)).collect();
        let before = self.link_stats(&ways, |stats| stats.garbled);
        ways.iter().for_each(|(from, to)| net.garble(*from, *to));
        self.time.sleep_until(end).await;
        ways.iter().for_each(|(from, to)| net.garble_less(*from, *to));
        self.link_stats(&ways, |stats| stats.garbled) - before
    }

    /// Whatever a cut did to traffic on these ways.
    fn held(&self, ways: &[Way]) -> u64 {
        self.link_stats(ways, |stats| stats.held)
    }

    fn link_stats(&self, ways: &[Way], of: impl Fn(LinkStats) -> u64) -> u64 {
        ways.iter().map(|(from, to)| of(self.cluster.net.link_stats(*from, *to))).sum()
    }
}

/// There and back; no way twice.
fn both(pairs: Vec<Way>) -> Vec<Way> {
    let mut ways: Vec<_> = pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect();
    ways.sort();
    ways.dedup();
    ways
}
