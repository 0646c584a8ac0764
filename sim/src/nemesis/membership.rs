//! Changes of the membership, as an operator makes them: whoever is asked may not know, not answer, or be gone.
//!
//! What is to come about is asked for again and again, of one member after another, until it shows in the list of
//! members or time is up. Nothing is taken for done because somebody said so.
use std::{sync::Arc, time::Duration};

use super::Inner;
use crate::{
    history::{Change, ExitKind, NodeNumber, Peer, Text},
    scenario::fault::Arrival,
    schedule::Planned,
    world::addresses::peer_url,
};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a removed member has to hear of it before its machine is switched off.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long what has begun goes on at least: a member that is away comes back, a guest leaves. A cluster left half way
/// does without a voter that it could have, and no other fault may strike it.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long the cluster has to be complete again when the faults are over.
const COMPLETION: Duration = Duration::from_secs(60);
/// Of that, how long it is about one machine before it is about the next.
const TURN: Duration = Duration::from_secs(5);

/// With what a change is refused that would cost the quorum.
const UNSAFE: [&str; 2] = ["unhealthy cluster", "not enough started members"];

/// A member that was removed may say so, or find nobody who knows it.
const REMOVED: &[ExitKind] = &[ExitKind::Removed, ExitKind::Stranded];

impl Inner {
    /// Returns 1 if the member was removed and is back, and 1 more if it would not start with the data it had.
    pub(super) async fn replace(
        &self,
        planned: &Planned,
        victim: NodeNumber,
        arrival: Arrival,
        keep_data: bool,
        end: Duration,
    ) -> u64 {
        let member = self.cluster.member(victim);
        self.cluster.allow_exit(victim, REMOVED);
        let (mut effects, mut settled) = (0, false);
        if self.remove(planned, member, end).await {
            let away = end.saturating_sub(self.time.now()) / 2;
            let back = self.time.now() + away;
            self.await_exit(victim, back.min(self.time.now() + FAREWELL)).await;
            if keep_data && self.cluster.exit(victim).is_some() {
                self.cluster.restart_ended(victim);
                self.await_exit(victim, back).await;
                effects += u64::from(self.cluster.exit(victim).is_some_and(|exit| exit.kind == ExitKind::Removed));
            }
            self.time.sleep_until(back).await;
            settled = self.settle_in(victim, arrival, self.aftermath(end)).await;
            effects += u64::from(settled);
        }
        // What was asked for in vain may yet come about, until the cluster is completed.
        if settled {
            self.cluster.forbid_exit(victim, REMOVED);
        }
        effects
    }

    /// Returns 1 if the machine joined.
    pub(super) async fn join(&self, planned: &Planned, guest: NodeNumber, arrival: Arrival, end: Duration) -> u64 {
        self.cluster.allow_exit(guest, REMOVED);
        let leaves = self.time.now() + end.saturating_sub(self.time.now()) * 3 / 4;
        let joined = self.settle_in(guest, arrival, leaves).await;
        self.time.sleep_until(leaves).await;
        if self.see_off(planned, guest, self.aftermath(end)).await {
            self.cluster.forbid_exit(guest, REMOVED);
        }
        u64::from(joined)
    }

    /// Returns 1 if the member was given another URL, and 1 more if that was taken back.
    pub(super) async fn update(&self, planned: &Planned, victim: NodeNumber, end: Duration) -> u64 {
        let (member, own) = (self.cluster.member(victim), peer_url(victim));
        let alias = own.replace(":2380", ":2390");
        let urls = |urls: &[&str]| urls.iter().map(|url| Text::from(*url)).collect::<Vec<_>>();
        let back = self.time.now() + end.saturating_sub(self.time.now()) / 2;
        let more = Change::Update { member, urls: urls(&[&own, &alias]) };
        let first = self.achieve(planned, more, back).await;
        self.time.sleep_until(back).await;
        let second = self.achieve(planned, Change::Update { member, urls: urls(&[&own]) }, end).await;
        u64::from(first) + u64::from(second)
    }

    /// Returns 1 if the leader says that it handed over.
    pub(super) async fn move_leader(&self, victim: NodeNumber, end: Duration) -> u64 {
        let to = self.cluster.member(victim);
        while self.time.now() < end {
            if let Some(leader) = self.recorder.leader().filter(|leader| *leader != victim)
                && self.operator.ask(leader, Change::MoveLeader { to }).await.is_ok()
            {
                return 1;
            }
            self.wait_a_little().await;
        }
        0
    }

    /// Returns how often it was refused because of who is down. That it is done is a violation: the run ends there.
    pub(super) async fn refused_removal(&self, planned: &Planned, victim: NodeNumber, end: Duration) -> u64 {
        let member = self.cluster.member(victim);
        let (mut turn, mut refusals) = (0, 0);
        while self.time.now() < end {
            turn += 1;
            if let Some(node) = self.somebody(planned, turn, 0) {
                match self.operator.ask(node, Change::Remove { member }).await {
                    Ok(peers) => panic!("{victim} was removed, although no quorum is left then: {peers:?}"),
                    Err(refused) => refusals += u64::from(UNSAFE.iter().any(|text| refused.why.contains(text))),
                }
            }
            self.wait_a_little().await;
        }
        refusals
    }

    /// Whether the member is gone, by `until`. If an answer was lost the removal may yet be decided, and is waited for.
    pub(super) async fn remove(&self, planned: &Planned, member: u64, until: Duration) -> bool {
        let (mut turn, mut is_open) = (0usize, false);
        while self.time.now() < until {
            turn += 1;
            let Some(node) = self.somebody(planned, turn, member) else {
                self.wait_a_little().await;
                continue;
            };
            match self.operator.ask(node, Change::Remove { member }).await {
                Ok(_) => return true,
                Err(refused) if refused.why.contains("member not found") => return true,
                Err(refused) => {
                    is_open |= !refused.definite;
                    self.wait_a_little().await;
                }
            }
        }
        let decided = self.aftermath(until);
        while is_open && !self.is_gone(member) && self.time.now() < decided {
            self.wait_a_little().await;
        }
        is_open && self.is_gone(member)
    }

    /// Whether it was a member, and no longer is in the newest configuration that anybody applied.
    fn is_gone(&self, member: u64) -> bool {
        let members = self.recorder.members();
        !members.voters.is_empty() && !members.voters.contains(&member) && !members.learners.contains(&member)
    }

    async fn achieve(&self, planned: &Planned, change: Change, until: Duration) -> bool {
        let mut turn = 0usize;
        while self.time.now() < until {
            turn += 1;
            if let Some(node) = self.somebody(planned, turn, 0)
                && self.operator.ask(node, change.clone()).await.is_ok()
            {
                return true;
            }
            self.wait_a_little().await;
        }
        false
    }

    /// By when what has begun is over.
    pub(super) fn aftermath(&self, end: Duration) -> Duration {
        end.max((self.time.now() + AFTERMATH).min(self.end))
    }

    async fn wait_a_little(&self) {
        self.time.sleep_until(self.time.now() + PAUSE).await;
    }

    /// One after another of those who run, but this one.
    fn somebody(&self, planned: &Planned, turn: usize, but: u64) -> Option<NodeNumber> {
        let others: Vec<_> = self.members().into_iter().filter(|number| self.cluster.member(*number) != but).collect();
        let others = planned.order.of(&others);
        others.get(turn.checked_rem(others.len())?).copied()
    }

    /// The machines of those who are members, and run.
    fn members(&self) -> Vec<NodeNumber> {
        let running = self.cluster.numbers().filter(|number| self.works(*number));
        running.filter(|number| self.is_member(*number)).collect()
    }

    pub(super) fn is_member(&self, number: NodeNumber) -> bool {
        let (members, id) = (self.recorder.members(), self.cluster.member(number));
        members.voters.contains(&id) || members.learners.contains(&id)
    }

    async fn await_exit(&self, victim: NodeNumber, until: Duration) {
        while self.time.now() < until && self.cluster.exit(victim).is_none() {
            self.time.sleep_until((self.time.now() + Duration::from_millis(20)).min(until)).await;
        }
    }

    /// Does what is needed until this machine runs a member of this kind, by `until`. Whatever ran there before and is
    /// not a member any more goes, with its disk.
    pub(super) async fn settle_in(&self, number: NodeNumber, arrival: Arrival, until: Duration) -> bool {
        let url: Text = Arc::from(peer_url(number));
        let mut turn = 0usize;
        while self.time.now() < until {
            turn += 1;
            let candidates = self.members();
            let node = turn.checked_rem(candidates.len()).map(|at| candidates[at]);
            let Some((node, peers)) = self.peers(node, number).await else {
                self.wait_a_little().await;
                continue;
            };
            match peers.iter().find(|peer| peer.urls.contains(&url)) {
                None => {
                    self.vacate(number);
                    let learner = arrival != Arrival::Voter;
                    // Who adds a voter to a cluster of one must start it at once: there is no quorum without it.
                    match self.operator.ask(node, Change::Add { url: url.clone(), learner }).await {
                        Ok(peers) => {
                            if let Some(peer) = peers.iter().find(|peer| peer.urls.contains(&url)) {
                                self.move_in(number, peer, &peers);
                            }
                        }
                        Err(_) => self.wait_a_little().await,
                    }
                }
                Some(peer) if peer.member != self.cluster.member(number) => self.move_in(number, peer, &peers),
                Some(_) if !self.cluster.is_running(number) => {
                    self.cluster.restart_ended(number);
                    self.cluster.restart(number);
                    self.wait_a_little().await;
                }
                Some(peer) if peer.learner && arrival != Arrival::Learner => {
                    if self.operator.ask(node, Change::Promote { member: peer.member }).await.is_err() {
                        self.wait_a_little().await;
                    }
                }
                // Its name is its own word: it has caught up so far.
                Some(peer) if peer.name.is_empty() => self.wait_a_little().await,
                Some(_) => return true,
            }
        }
        false
    }

    /// The members as this node tells them; if no quorum does and the machine is empty, as it alone knows them: it may
    /// have been added, and be what is missing.
    async fn peers(&self, node: Option<NodeNumber>, number: NodeNumber) -> Option<(NodeNumber, Vec<Peer>)> {
        let node = node?;
        let peers = match self.operator.list(node, true).await {
            None if self.cluster.member(number) == 0 => self.operator.list(node, false).await,
            peers => peers,
        };
        Some((node, peers?))
    }

    fn move_in(&self, number: NodeNumber, peer: &Peer, peers: &[Peer]) {
        self.vacate(number);
        self.cluster.join(number, peer.member, peers);
    }

    /// Nobody lives on this machine any more.
    fn vacate(&self, number: NodeNumber) {
        self.cluster.kill(number, self.seed.child("vacated", number.0 as u64));
        self.cluster.wipe(number);
        self.acquit(number);
    }

    /// Whoever lives on this machine is removed, and the machine is empty then.
    async fn see_off(&self, planned: &Planned, number: NodeNumber, until: Duration) -> bool {
        let url: Text = Arc::from(peer_url(number));
        let mut turn = 0usize;
        while self.time.now() < until {
            turn += 1;
            let Some(node) = self.somebody(planned, turn, self.cluster.member(number)) else {
                self.wait_a_little().await;
                continue;
            };
            let Some(peers) = self.operator.list(node, true).await else {
                self.wait_a_little().await;
                continue;
            };
            match peers.iter().find(|peer| peer.urls.contains(&url)) {
                Some(peer) => drop(self.operator.ask(node, Change::Remove { member: peer.member }).await),
                None => {
                    self.await_exit(number, self.time.now() + FAREWELL).await;
                    self.vacate(number);
                    return true;
                }
            }
        }
        false
    }

    /// The faults are over: whoever is to be a member becomes one, and guests go. Returns on which machines that did not
    /// come about. One may have to wait for another, whichever is first: there is place for one learner at a time, and
    /// nobody is added or removed while too many are down. So each gets a turn, and another one if that was not enough.
    pub(super) async fn complete(&self, planned: &Planned) -> Vec<NodeNumber> {
        let until = self.time.now() + COMPLETION;
        let mut left: Vec<_> = self.cluster.numbers().collect();
        left.iter().for_each(|number| self.cluster.allow_exit(*number, REMOVED));
        // Whoever is down for good and whoever is not to stay may be in the way of the others.
        left.sort_by_key(|number| (!self.is_ruined(*number), self.is_founder(*number), number.0));
        while !left.is_empty() && self.time.now() < until {
            for number in std::mem::take(&mut left) {
                let turn = (self.time.now() + TURN).min(until);
                if !self.put_in_order(planned, number, turn).await {
                    left.push(number);
                }
            }
        }
        left
    }

    async fn put_in_order(&self, planned: &Planned, number: NodeNumber, until: Duration) -> bool {
        if self.is_ruined(number) {
            self.rebuild(planned, number, until).await
        } else if self.is_founder(number) {
            self.settle_in(number, Arrival::Promoted, until).await
        } else {
            self.see_off(planned, number, until).await
        }
    }

    fn is_ruined(&self, number: NodeNumber) -> bool {
        self.state.lock().ruined.contains(&number)
    }

    fn is_founder(&self, number: NodeNumber) -> bool {
        number.0 <= self.founders
    }
}
