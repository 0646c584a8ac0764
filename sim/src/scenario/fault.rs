//! The faults: what can be done to a cluster, to whom, and what a partition cuts.
use std::{fmt, path::Path};

use crate::history::NodeNumber;

pub const PPM_PER_PERCENT: i64 = 10_000;
/// Nodes that a scenario's cluster may have.
pub const NODES_MAX: usize = 7;

/// What is done, from its start until its end. `N` is a range in a scenario, and a drawn number in a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault<N> {
    /// The machine is off, then starts again. What was not synced is lost: if `torn`, any part of it, sector by sector;
    /// otherwise all of it.
    PowerLoss { torn: bool },
    /// The process is dead, then starts again. The machine keeps what was written.
    Kill,
    /// The process stands still; its clocks go on.
    Pause,
    /// Links are cut as the shape says.
    Partition { shape: Shape, links: Links },
    /// As a partition that comes for `down_ms` and goes for `up_ms`, in turns.
    Flapping { shape: Shape, links: Links, down_ms: N, up_ms: N },
    /// All connections of the victim are reset, again every `period_ms`.
    ResetConnections { links: Links, period_ms: N },
    /// All connections of the victim fail at its end, and the other ends do not hear of it; again every `period_ms`.
    HalfOpen { links: Links, period_ms: N },
    /// All that the victim sends and receives takes so much longer.
    Latency { links: Links, extra_ms: N },
    /// So many of a million segments that the victim sends or receives are lost. Overrides the links' own loss.
    Loss { links: Links, ppm: N },
    /// A bit flips in states that are sent to the victim, on their way.
    GarbledState,
    /// Each sync takes so much longer.
    SlowFsync { extra_ms: N },
    /// No write and no sync is done.
    StalledFsync,
    /// The clock gains so many microseconds a second, then again what it gained before.
    ClockDrift { ppm: N },
    /// The wall clock jumps by so much, and back at the end.
    WallJump { ms: N },
    /// The next sync fails, and what it was to write is lost.
    FailedSync { files: Files },
    /// Everything of one kind fails on the disk.
    IoError { io: DiskIo, files: Files },
    /// Nothing more fits on the disk.
    DiskFull { files: Files },
    /// The machine is off, and bits of so many sectors flip; then it starts, and if it will not, it is replaced.
    Rot { sectors: N, files: Files },
    /// So many sectors cannot be read any more, unless they are written anew. Half of the time nobody may notice; then the
    /// machine starts again, and if it will not, it is replaced.
    LatentErrors { sectors: N, files: Files },
    /// The next write goes to another place. When the machine starts again it may refuse, and is replaced.
    Misdirected,
    /// The machine comes back with its disk as it was at the fault's start. If it notices, it is replaced.
    StaleDisk,
    /// The member is removed, and after a while an empty machine is added in its place.
    Replace { arrival: Arrival, keep_data: bool },
    /// A spare machine joins, and is removed at the end.
    Join { arrival: Arrival },
    /// The member is said to have one more peer URL, at which nobody listens; at the end not any more.
    Update,
    /// The leader is asked to hand over to this member.
    MoveLeader,
    /// Somebody asks to remove the member, again and again, and must be refused.
    RefusedRemoval,
}

/// How a member comes into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// As a learner, and stays one.
    Learner,
    /// As a learner that is promoted once it has caught up.
    Promoted,
    /// As a voter at once.
    Voter,
}

/// Which files a fault of a disk is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    Log,
    /// Checkpoints, and snapshots that come from others.
    State,
    All,
}

impl Files {
    pub fn contain(self, path: &str) -> bool {
        let is_under = |dir: &str| Path::new(path).starts_with(dir);
        match self {
            Files::Log => is_under("/data/member/wal"),
            Files::State => is_under("/data/member/snap"),
            Files::All => true,
        }
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Files::Log => "log",
            Files::State => "state",
            Files::All => "all files",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskIo {
    Read,
    Write,
    Sync,
    Entry,
}

impl<N: Copy> Fault<N> {
    /// Its stable name, as scenarios and reports spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::PowerLoss { .. } => "power_loss",
            Fault::Kill => "kill",
            Fault::Pause => "pause",
            Fault::Partition { .. } => "partition",
            Fault::Flapping { .. } => "flapping",
            Fault::ResetConnections { .. } => "reset_connections",
            Fault::HalfOpen { .. } => "half_open",
            Fault::Latency { .. } => "latency",
            Fault::Loss { .. } => "loss",
            Fault::GarbledState => "garbled_state",
            Fault::SlowFsync { .. } | Fault::StalledFsync => "slow_fsync",
            Fault::ClockDrift { .. } => "clock_drift",
            Fault::WallJump { .. } => "wall_jump",
            Fault::FailedSync { .. } => "failed_sync",
            Fault::IoError { .. } => "io_error",
            Fault::DiskFull { .. } => "disk_full",
            Fault::Rot { .. } => "rot",
            Fault::LatentErrors { .. } => "latent_errors",
            Fault::Misdirected => "misdirected",
            Fault::StaleDisk => "stale_disk",
            Fault::Replace { .. } => "replace",
            Fault::Join { .. } => "join",
            Fault::Update => "update",
            Fault::MoveLeader => "move_leader",
            Fault::RefusedRemoval => "refused_removal",
        }
    }

    /// The same fault with other numbers, which `f` makes in a fixed order.
    pub fn map<M>(&self, mut f: impl FnMut(N) -> M) -> Fault<M> {
        match *self {
            Fault::PowerLoss { torn } => Fault::PowerLoss { torn },
            Fault::Kill => Fault::Kill,
            Fault::Pause => Fault::Pause,
            Fault::Partition { shape, links } => Fault::Partition { shape, links },
            Fault::Flapping { shape, links, down_ms, up_ms } => {
                Fault::Flapping { shape, links, down_ms: f(down_ms), up_ms: f(up_ms) }
            }
            Fault::ResetConnections { links, period_ms } => Fault::ResetConnections { links, period_ms: f(period_ms) },
            Fault::HalfOpen { links, period_ms } => Fault::HalfOpen { links, period_ms: f(period_ms) },
            Fault::Latency { links, extra_ms } => Fault::Latency { links, extra_ms: f(extra_ms) },
            Fault::Loss { links, ppm } => Fault::Loss { links, ppm: f(ppm) },
            Fault::GarbledState => Fault::GarbledState,
            Fault::SlowFsync { extra_ms } => Fault::SlowFsync { extra_ms: f(extra_ms) },
            Fault::StalledFsync => Fault::StalledFsync,
            Fault::ClockDrift { ppm } => Fault::ClockDrift { ppm: f(ppm) },
            Fault::WallJump { ms } => Fault::WallJump { ms: f(ms) },
            Fault::FailedSync { files } => Fault::FailedSync { files },
            Fault::IoError { io, files } => Fault::IoError { io, files },
            Fault::DiskFull { files } => Fault::DiskFull { files },
            Fault::Rot { sectors, files } => Fault::Rot { sectors: f(sectors), files },
            Fault::LatentErrors { sectors, files } => Fault::LatentErrors { sectors: f(sectors), files },
            Fault::Misdirected => Fault::Misdirected,
            Fault::StaleDisk => Fault::StaleDisk,
            Fault::Replace { arrival, keep_data } => Fault::Replace { arrival, keep_data },
            Fault::Join { arrival } => Fault::Join { arrival },
            Fault::Update => Fault::Update,
            Fault::MoveLeader => Fault::MoveLeader,
            Fault::RefusedRemoval => Fault::RefusedRemoval,
        }
    }

    /// Whether the victim may do nothing for the cluster while it lasts.
    pub fn disables(&self) -> bool {
        match self {
            Fault::PowerLoss { .. } | Fault::Kill | Fault::Pause | Fault::StalledFsync => true,
            Fault::FailedSync { .. } | Fault::IoError { .. } | Fault::DiskFull { .. } => true,
            Fault::Replace { .. } => true,
            _ => self.may_ruin(),
        }
    }

    /// Whether it may take from the victim what it had promised to keep.
    pub fn may_ruin(&self) -> bool {
        matches!(self, Fault::Rot { .. } | Fault::LatentErrors { .. } | Fault::Misdirected | Fault::StaleDisk)
    }

    /// Whether members may come and go because of it.
    pub fn changes_members(&self) -> bool {
        matches!(self, Fault::Update) || self.moves_members()
    }

    /// Whether machines that it strikes may get another member, or none.
    pub fn moves_members(&self) -> bool {
        matches!(self, Fault::Replace { .. } | Fault::Join { .. }) || self.may_ruin()
    }

    /// What it cuts, if it cuts.
    pub fn partition(&self) -> Option<(Shape, Links)> {
        match *self {
            Fault::Partition { shape, links } | Fault::Flapping { shape, links, .. } => Some((shape, links)),
            _ => None,
        }
    }
}

impl Fault<i64> {
    /// What tells it from others of its kind, if anything: `torn`, `isolate, clients`, `+40 ms`.
    pub fn details(&self) -> String {
        match self {
            Fault::PowerLoss { torn: true } => "torn".into(),
            Fault::PowerLoss { torn: false } | Fault::Kill | Fault::Pause | Fault::GarbledState => String::new(),
            Fault::Partition { shape, links } => format!("{shape}{links}"),
            Fault::Flapping { shape, links, down_ms, up_ms } => {
                format!("{shape}{links}, {down_ms} ms down, {up_ms} ms up")
            }
            Fault::ResetConnections { links, period_ms } | Fault::HalfOpen { links, period_ms } => {
                format!("every {period_ms} ms{links}")
            }
            Fault::Latency { links, extra_ms } => format!("+{extra_ms} ms{links}"),
            Fault::Loss { links, ppm } => format!("{} %{links}", *ppm as f64 / PPM_PER_PERCENT as f64),
            Fault::SlowFsync { extra_ms } => format!("+{extra_ms} ms"),
            Fault::StalledFsync => "stalled".into(),
            Fault::ClockDrift { ppm } => format!("{ppm:+} ppm"),
            Fault::WallJump { ms } => format!("{ms:+} ms"),
            Fault::FailedSync { files } | Fault::DiskFull { files } => files.to_string(),
            Fault::IoError { io, files } => format!("{}, {files}", format!("{io:?}").to_lowercase()),
            Fault::Rot { sectors, files } | Fault::LatentErrors { sectors, files } => {
                format!("{sectors} sectors, {files}")
            }
            Fault::Misdirected | Fault::StaleDisk | Fault::Update | Fault::MoveLeader | Fault::RefusedRemoval => {
                String::new()
            }
            Fault::Replace { arrival, keep_data: true } => format!("comes back with its data, then as {arrival}"),
            Fault::Replace { arrival, .. } | Fault::Join { arrival } => format!("as {arrival}"),
        }
    }
}

/// Whom a nemesis strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    One(Victim),
    /// Each node in turn, one a time.
    Rolling,
}

/// Whom a fault strikes. Who that is shows when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Leader,
    /// A random node that does not lead.
    Follower,
    /// A random node.
    Any,
    /// A random node that is a learner.
    Learner,
    /// A random machine on which no member runs.
    Spare,
    Node(NodeNumber),
    /// Every node, at once.
    All,
}

impl Victim {
    /// Whether a node that runs may be the one that is meant.
    pub fn may_be(self, number: NodeNumber, leader: Option<NodeNumber>, is_learner: bool) -> bool {
        match self {
            Victim::Leader => leader == Some(number),
            Victim::Follower => leader.is_some_and(|leader| leader != number),
            Victim::Learner => is_learner,
            Victim::Node(node) => node == number,
            Victim::Any | Victim::All => true,
            Victim::Spare => false,
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Leader => f.write_str("leader"),
            Victim::Follower => f.write_str("follower"),
            Victim::Any => f.write_str("any"),
            Victim::Learner => f.write_str("learner"),
            Victim::Spare => f.write_str("spare"),
            Victim::Node(number) => number.fmt(f),
            Victim::All => f.write_str("all"),
        }
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arrival::Learner => "a learner",
            Arrival::Promoted => "a learner, then a voter",
            Arrival::Voter => "a voter",
        })
    }
}

/// Which of the victim's links a network fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// With the other nodes.
    Nodes,
    /// With the clients.
    Clients,
    All,
}

impl Links {
    pub fn nodes(self) -> bool {
        self != Links::Clients
    }

    pub fn clients(self) -> bool {
        self != Links::Nodes
    }
}

/// Follows other details; the usual goes without saying.
impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Links::Nodes => "",
            Links::Clients => ", clients",
            Links::All => ", nodes and clients",
        })
    }
}

/// How a partition divides the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The victim is cut off from the rest.
    Isolate,
    /// The victim and as many others as can be spared are cut off from the rest.
    Halves,
    /// Nothing gets in to the victim; what it sends arrives.
    OneWayIn,
    /// Nothing gets out of the victim; it hears the rest.
    OneWayOut,
    /// Two halves hear only the victim and themselves.
    Bridge,
    /// Each node hears a majority, another one each: its neighbours in a ring.
    Majorities,
}

impl Shape {
    /// How many nodes it takes.
    pub fn nodes_min(self) -> usize {
        match self {
            Shape::Isolate | Shape::Halves | Shape::OneWayIn | Shape::OneWayOut => 2,
            Shape::Bridge => 3,
            Shape::Majorities => 4,
        }
    }

    /// Whether it treats each of the others alike, so that they may as well be clients.
    pub fn is_all_around(self) -> bool {
        matches!(self, Shape::Isolate | Shape::OneWayIn | Shape::OneWayOut)
    }

    /// The links that it cuts, each (from, to). The others take sides in the order given.
    pub fn cuts<T: Copy>(self, victim: T, others: &[T]) -> Vec<(T, T)> {
        let nodes = others.len() + 1;
        match self {
            Shape::Isolate => between(&[victim], others),
            Shape::OneWayIn => others.iter().map(|&other| (other, victim)).collect(),
            Shape::OneWayOut => others.iter().map(|&other| (victim, other)).collect(),
            Shape::Halves => {
                let spared = (nodes - majority(nodes)).max(1);
                let (few, many) = others.split_at(spared - 1);
                between(&[&[victim], few].concat(), many)
            }
            Shape::Bridge => {
                let (left, right) = others.split_at(others.len() / 2);
                between(left, right)
            }
            Shape::Majorities => {
                let ring = [&[victim], others].concat();
                let reach = majority(nodes) / 2;
                let far = |a: usize, b: usize| a.abs_diff(b).min(nodes - a.abs_diff(b)) > reach;
                let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
                pairs.filter(|&(a, b)| far(a, b)).map(|(a, b)| (ring[a], ring[b])).collect()
            }
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shape::Isolate => "isolate",
            Shape::Halves => "halves",
            Shape::OneWayIn => "one_way_in",
            Shape::OneWayOut => "one_way_out",
            Shape::Bridge => "bridge",
            Shape::Majorities => "majorities",
        })
    }
}

/// Both ways.
fn between<T: Copy>(left: &[T], right: &[T]) -> Vec<(T, T)> {
    left.iter().flat_map(|&a| right.iter().flat_map(move |&b| [(a, b), (b, a)])).collect()
}

pub fn majority(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// Whether some voter that works can talk, both ways, with so many others that work that they are a majority.
pub fn quorum_remains(
    voters: &[NodeNumber],
    works: impl Fn(NodeNumber) -> bool,
    is_cut: impl Fn(NodeNumber, NodeNumber) -> bool,
) -> bool {
    let talk = |a, b| works(a) && works(b) && (a == b || (!is_cut(a, b) && !is_cut(b, a)));
    voters.iter().any(|&a| voters.iter().filter(|&&b| talk(a, b)).count() >= majority(voters.len()))
}

/// The nodes that a cluster of this size has.
pub fn numbers(nodes: usize) -> Vec<NodeNumber> {
    (1..=nodes).map(NodeNumber).collect()
}

/// A drawn order of up to seven things: one of 7! numbers, which every smaller factorial divides evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order(pub u16);

impl Order {
    pub const COUNT: u64 = 5_040;

    pub fn of<T: Copy>(self, things: &[T]) -> Vec<T> {
        assert!(things.len() <= NODES_MAX);
        let (mut left, mut draw) = (things.to_vec(), usize::from(self.0));
        let mut ordered = Vec::new();
        while !left.is_empty() {
            let choice = draw % left.len();
            draw /= left.len();
            ordered.push(left.remove(choice));
        }
        ordered
    }
}

const _: () = assert!(Order::COUNT == 7 * 6 * 5 * 4 * 3 * 2 && NODES_MAX == 7);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn shapes_cut_what_they_say() {
        #[track_caller]
        fn check(shape: Shape, nodes: usize, cut: &str) {
            let numbers: Vec<_> = (1..=nodes).collect();
            let mut cuts = shape.cuts(1, &numbers[1..]);
            cuts.sort();
            let text: Vec<_> = cuts.iter().map(|(from, to)| format!("{from}{to}")).collect();
            assert_eq!(text.join(" "), cut);
        }
        check(Shape::Isolate, 3, "12 13 21 31");
        check(Shape::OneWayIn, 3, "21 31");
        check(Shape::OneWayOut, 3, "12 13");
        check(Shape::Halves, 2, "12 21"); // nobody can be spared
        check(Shape::Halves, 4, "12 13 14 21 31 41");
        check(Shape::Halves, 5, "13 14 15 23 24 25 31 32 41 42 51 52");
        check(Shape::Bridge, 3, "23 32");
        check(Shape::Bridge, 5, "24 25 34 35 42 43 52 53");
        check(Shape::Majorities, 4, "13 24 31 42");
        check(Shape::Majorities, 5, "13 14 24 25 31 35 41 42 52 53");
    }

    /// But for two nodes in halves: neither has a majority.
    #[test]
    fn shapes_leave_a_quorum_and_rings_leave_one_to_each() {
        use Shape::*;
        for shape in [Isolate, Halves, OneWayIn, OneWayOut, Bridge, Majorities] {
            for nodes in shape.nodes_min().max(3)..=NODES_MAX {
                let others: Vec<_> = (2..=nodes).map(NodeNumber).collect();
                let cuts: BTreeSet<_> = shape.cuts(NodeNumber(1), &others).into_iter().collect();
                let is_cut = |from, to| cuts.contains(&(from, to));
                assert!(quorum_remains(&numbers(nodes), |_| true, is_cut), "{shape} of {nodes}");
                for a in (1..=nodes).map(NodeNumber).filter(|_| shape == Majorities) {
                    let heard = (1..=nodes).filter(|&b| !is_cut(NodeNumber(b), a)).count();
                    assert!(heard >= majority(nodes), "{a} of {nodes}");
                }
            }
        }
    }

    #[test]
    fn a_quorum_needs_a_majority_around_one_node() {
        let all = |_| true;
        assert!(quorum_remains(&numbers(3), |node| node.0 != 2, |_, _| false));
        assert!(!quorum_remains(&numbers(3), |node| node.0 == 2, |_, _| false));
        assert!(!quorum_remains(&numbers(4), |node| node.0 > 2, |_, _| false));
        assert!(!quorum_remains(&numbers(3), all, |from, _| from.0 != 1)); // one way is no way
        assert!(quorum_remains(&numbers(1), all, |_, _| true));
        assert!(!quorum_remains(&numbers(1), |_| false, |_, _| false));
    }

    #[test]
    fn every_order_comes_equally_often() {
        for count in 0..=NODES_MAX {
            let things: Vec<_> = (0..count).collect();
            let mut seen: BTreeMap<Vec<usize>, u64> = BTreeMap::new();
            for draw in 0..Order::COUNT as u16 {
                *seen.entry(Order(draw).of(&things)).or_default() += 1;
            }
            let orders: u64 = (1..=count as u64).product();
            assert_eq!(seen.len() as u64, orders);
            assert!(seen.values().all(|&times| times == Order::COUNT / orders));
        }
    }
}
