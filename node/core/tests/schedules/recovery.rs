//! Times when everything works, and what must come of the last one.
use detcd_core::{
    replica::Status,
    types::{MemberId, Revision},
};

use crate::{
    cluster::{Cluster, id},
    laws::{Law, Tally, Verdict, Violation},
    steps::{Fate, Request},
};

impl Cluster {
    /// Everything works, for so many ticks of every member.
    pub fn calm(&mut self, ticks: usize) -> Verdict {
        self.cut.clear();
        for _ in 0..ticks {
            if self.recovering {
                self.bury();
            }
            self.start_all()?;
            for at in 0..self.members.len() {
                self.members[at].busy = 0;
                self.tick(at)?;
            }
            while !self.is_quiet() {
                self.rest()?;
                for _ in 0..self.parcels.len() {
                    self.parcel(0, Fate::Arrives)?;
                }
                for _ in 0..self.reports.len() {
                    self.report(0)?;
                }
            }
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        let written = self.disks.iter().all(|disk| disk.waited_for() == 0);
        written && self.flying.is_empty() && self.parcels.is_empty() && self.reports.is_empty()
    }

    /// Whoever was removed goes for good, once somebody was told that it is.
    fn bury(&mut self) {
        for at in 0..self.members.len() {
            if self.laws.is_dismissed(id(at)) {
                self.crash(at, 0, 0);
            }
        }
    }

    /// All messages arrive and all batches become durable, until nothing is left to do. States take their time.
    pub fn rest(&mut self) -> Verdict {
        loop {
            for at in 0..self.members.len() {
                while self.disks[at].waited_for() > 0 {
                    self.write(at, usize::MAX)?;
                }
            }
            if self.flying.is_empty() {
                return Ok(());
            }
            for _ in 0..self.flying.len() {
                self.deliver(0, false)?;
            }
        }
    }

    /// Once all works again, the cluster must come to rest, and then serve.
    pub fn recover(&mut self) -> Verdict {
        self.recovering = true;
        let enough = self.request_ticks().max(self.change_ticks()) + 20 * u64::from(self.setup.election_ticks);
        self.calm_until(enough)?;
        let members = self.current();
        // With the tiniest of tails some are fed a state in place of what they asked for, and cannot tell what became
        // of it. Where nobody else writes, all can.
        if !self.serves(&members, enough)? {
            for at in &members {
                let before = self.laws.tally;
                let served = self.serves(&[*at], enough)?;
                let after = self.laws.tally;
                let why = || format!("{} is not served: {before:?}, then {after:?}", id(*at));
                self.laws.require_recovered(served, why)?;
            }
        }
        self.laws.tally.joined += members.iter().filter(|at| **at >= usize::from(self.setup.members)).count();
        members.iter().try_for_each(|at| self.is_complete(*at))
    }

    /// Whether these members' clients, all at once, can write and read.
    fn serves(&mut self, members: &[usize], enough: u64) -> Result<bool, Violation> {
        let before = self.laws.tally;
        for at in members {
            self.propose(*at, Request::Put { key: 0 })?;
            self.read(*at)?;
        }
        self.calm_until(enough)?;
        let Tally { acknowledged, reads_served, .. } = self.laws.tally;
        let (wrote, read) = (acknowledged - before.acknowledged, reads_served - before.reads_served);
        Ok((wrote, read) == (members.len(), members.len()))
    }

    /// What a member that serves has to show.
    fn is_complete(&self, at: usize) -> Verdict {
        let machine = self.members[at].replica.as_ref().expect("it serves").machine();
        self.laws.watched_all(id(at), machine.store.revision())?;
        let left = self.disks[at].received();
        self.laws.require(Law::Recovers, left == 0, || format!("{} keeps {left} states for nothing", id(at)))
    }

    fn calm_until(&mut self, enough: u64) -> Verdict {
        for _ in 0..enough {
            self.calm(1)?;
            if self.laws.all_answered() && self.at_rest().is_ok() {
                break;
            }
        }
        let rest = self.at_rest();
        self.laws.require_recovered(rest.is_ok(), || rest.unwrap_err())
    }

    /// Those who are members now.
    fn current(&self) -> Vec<usize> {
        let configuration = self.laws.configuration();
        let ids = configuration.voters.iter().chain(&configuration.learners);
        ids.map(|id| id.0 as usize - 1).collect()
    }

    /// One leads, all know, and all have applied and stored the same.
    fn at_rest(&self) -> Result<(), String> {
        let stand = |at: usize| {
            let replica = self.members[at].replica.as_ref().filter(|_| self.members[at].stops.is_none())?;
            let hash = replica.machine().store.hash(Revision(0)).expect("the present can be hashed");
            let Status { term, leader, committed, applied, .. } = replica.status();
            Some((term, leader, committed, applied, replica.machine().digest(), hash))
        };
        let stands: Vec<_> = self.current().into_iter().map(|at| (id(at), stand(at))).collect();
        let alike = stands.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let leads = |leader: &MemberId| self.laws.configuration().voters.contains(leader);
        match &stands[0].1 {
            Some((_, leader, committed, applied, ..)) if alike && leads(leader) && applied == committed => Ok(()),
            _ => Err(format!("the members stand at {stands:?}")),
        }
    }
}
