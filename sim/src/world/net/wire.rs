//! What connections see of the network around them: links, machines, time.
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    NetOp, NetParams, NetStats,
    link::{Link, LinkParams},
};
use crate::{seed::Seed, world::clock::SimTime};

/// A link's number; fixed once it was asked for.
pub type LinkId = usize;

#[derive(Default)]
pub struct Machine {
    /// Grows at each fence and at each start: a handle of another epoch is dead.
    pub epoch: u64,
    pub powered: bool,
}

pub struct Wire {
    pub time: SimTime,
    /// As of the operation under way.
    pub now: Duration,
    pub params: NetParams,
    pub stats: NetStats,
    /// What the observer has yet to hear.
    pub notes: Vec<NetOp>,
    pub machines: BTreeMap<IpAddr, Machine>,
    links: Vec<Link>,
    link_between: BTreeMap<(IpAddr, IpAddr), LinkId>,
    /// From whom to whom each link leads.
    ends: Vec<(IpAddr, IpAddr)>,
    seed: Seed,
}

impl Wire {
    pub fn new(time: SimTime, params: NetParams, seed: Seed) -> Wire {
        Wire {
            time,
            now: Duration::ZERO,
            params,
            stats: NetStats::default(),
            notes: Vec::new(),
            machines: BTreeMap::new(),
            links: Vec::new(),
            link_between: BTreeMap::new(),
            ends: Vec::new(),
            seed,
        }
    }

    pub fn link(&mut self, from: IpAddr, to: IpAddr) -> LinkId {
        let (links, ends, seed) = (&mut self.links, &mut self.ends, self.seed);
        *self.link_between.entry((from, to)).or_insert_with(|| {
            links.push(Link::new(from, to, seed));
            ends.push((from, to));
            links.len() - 1
        })
    }

    pub fn is_cut(&self, link: LinkId) -> bool {
        self.links[link].cut
    }

    /// Returns whether this changed anything.
    pub fn set_cut(&mut self, link: LinkId, cut: bool) -> bool {
        std::mem::replace(&mut self.links[link].cut, cut) != cut
    }

    pub fn cut_links(&self) -> Vec<LinkId> {
        (0..self.links.len()).filter(|link| self.links[*link].cut).collect()
    }

    pub fn faulty(&mut self, link: LinkId) -> &mut Link {
        &mut self.links[link]
    }

    /// No link is slow, loses or damages anything over a fault any more.
    pub fn clear(&mut self) {
        for link in &mut self.links {
            (link.extra, link.faulty_ppm, link.garbling) = (Duration::ZERO, 0, 0);
        }
    }

    /// If the link is cut, that held so much up.
    pub fn count_held(&mut self, link: LinkId, amount: usize) {
        let link = &mut self.links[link];
        link.stats.held += if link.cut { amount as u64 } else { 0 };
    }

    pub fn set_link(&mut self, link: LinkId, params: Option<LinkParams>) {
        self.links[link].params = params;
    }

    pub fn is_powered(&self, ip: IpAddr) -> bool {
        self.machines.get(&ip).is_some_and(|machine| machine.powered)
    }

    pub fn is_alive(&self, ip: IpAddr, epoch: u64) -> bool {
        self.machines.get(&ip).is_some_and(|machine| machine.epoch == epoch)
    }

    /// When a segment that is sent now arrives; the link must not be cut.
    pub fn arrival(&mut self, link: LinkId, len: usize) -> Duration {
        let default = self.default_of(link);
        let lost = self.stats.segments_lost;
        let arrival = self.links[link].arrival(self.now, len, default, &self.params, &mut self.stats);
        if self.stats.segments_lost > lost {
            let (from, to) = self.ends[link];
            self.notes.push(NetOp::Lost { from, to, until: arrival });
        }
        arrival
    }

    pub fn latency(&mut self, link: LinkId) -> Duration {
        let default = self.default_of(link);
        self.links[link].latency(default)
    }

    /// Whether a segment that is sent now does not get through at all.
    pub fn swallows(&mut self, link: LinkId) -> bool {
        let default = self.default_of(link);
        let lost = self.links[link].loses(default);
        self.stats.segments_lost += u64::from(lost);
        self.count_held(link, 1);
        lost || self.links[link].cut
    }

    /// When a writer that has had no acknowledgement since then tries again next.
    pub fn retransmission(&self, since: Duration) -> Duration {
        let (mut at, mut rto) = (since, self.params.rto);
        while at < self.now {
            at += rto;
            rto = (rto * 2).min(self.params.rto_max);
        }
        at
    }

    fn default_of(&self, link: LinkId) -> LinkParams {
        let (from, to) = self.ends[link];
        if from == to { self.params.loopback } else { self.params.link }
    }
}
