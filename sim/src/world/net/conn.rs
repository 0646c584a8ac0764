//! One connection: two ends, a pipe each way, and what becomes of both when something breaks.
//!
//! Nothing here runs by itself. A segment has the time of its arrival written on it, and an end the time at which it
//! will fail, its doom; whoever looks (a reader, a writer, a fault) first lets happen what is due. Whoever waits has a
//! timer for the next such time, and a change of any such time renews the timers.
use std::{collections::VecDeque, io, net::IpAddr, task::Poll, task::Waker, time::Duration};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    NetOp,
    link::Passed,
    wire::{LinkId, Wire},
};
use crate::world::clock::NEVER;

/// Which end: 0 connected, 1 accepted. A pipe has the number of the end that writes into it.
pub type Side = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndState {
    Open,
    /// Its handle was dropped; what it had written is still delivered.
    Closed,
    /// The process finds this error.
    Failed(io::ErrorKind),
    /// The process is dead.
    Vanished,
}

#[derive(Clone, Copy)]
struct Doom {
    at: Duration,
    kind: io::ErrorKind,
}

struct End {
    host: IpAddr,
    epoch: u64,
    state: EndState,
    /// Somebody has a handle to it, or will get one from a listener.
    held: bool,
    doom: Option<Doom>,
    reader: Option<Waker>,
    /// The time for which `reader` has a timer.
    armed: Option<Duration>,
    writer: Option<Waker>,
}

struct Segment {
    /// [`NEVER`] while a cut holds it back.
    arrives: Duration,
    bytes: Bytes,
    hash: u64,
    fin: bool,
    noted: bool,
}

/// Invariant: the queue is in the order of arrival, and held back segments are at its end.
struct Pipe {
    link: LinkId,
    /// The link that acknowledgements travel.
    back: LinkId,
    queue: VecDeque<Segment>,
    /// Bytes that fill the window: sent, and not known to be read.
    unread: usize,
    /// Those of them that were read, and the writer cannot hear of it.
    unheard: usize,
    last_arrival: Duration,
    passed: Passed,
    /// The writer has shut it.
    shut: bool,
    /// Since when something is under way that cannot be acknowledged.
    stuck_since: Option<Duration>,
}

impl Pipe {
    fn new(link: LinkId, back: LinkId) -> Pipe {
        let last_arrival = Duration::ZERO;
        let (queue, passed) = (VecDeque::new(), Passed::default());
        Pipe { link, back, queue, unread: 0, unheard: 0, last_arrival, passed, shut: false, stuck_since: None }
    }

    fn next_arrival(&mut self, len: usize, wire: &mut Wire) -> Duration {
        self.last_arrival = wire.arrival(self.link, len).max(self.last_arrival);
        self.last_arrival
    }

    /// Forgets what would arrive after `now`. Returns how many segments with bytes.
    fn drop_after(&mut self, now: Duration) -> usize {
        let arrived = self.queue.partition_point(|segment| segment.arrives <= now);
        self.queue.drain(arrived..).filter(|segment| !segment.fin).count()
    }

    fn is_stuck(&self, wire: &Wire) -> bool {
        wire.is_cut(self.link) || wire.is_cut(self.back)
    }
}

pub struct Conn {
    pub number: u64,
    ends: [End; 2],
    pipes: [Pipe; 2],
}

impl Conn {
    /// Between two hosts, each with the epoch of its process.
    pub fn new(number: u64, hosts: [(IpAddr, u64); 2], wire: &mut Wire) -> Conn {
        let [from, to] = hosts.map(|(host, _)| host);
        let (there, back) = (wire.link(from, to), wire.link(to, from));
        let end = |(host, epoch)| End {
            host,
            epoch,
            state: EndState::Open,
            held: true,
            doom: None,
            reader: None,
            armed: None,
            writer: None,
        };
        Conn { number, ends: hosts.map(end), pipes: [Pipe::new(there, back), Pipe::new(back, there)] }
    }

    pub fn host(&self, side: Side) -> IpAddr {
        self.ends[side].host
    }

    pub fn is_between(&self, a: IpAddr, b: IpAddr) -> bool {
        let [x, y] = [self.host(0), self.host(1)];
        (x, y) == (a, b) || (x, y) == (b, a)
    }

    pub fn is_of(&self, side: Side, host: IpAddr, epoch: u64) -> bool {
        self.ends[side].host == host && self.ends[side].epoch == epoch
    }

    pub fn is_open(&self, side: Side) -> bool {
        self.ends[side].state == EndState::Open
    }

    pub fn is_closed(&self, side: Side) -> bool {
        self.ends[side].state == EndState::Closed
    }

    pub fn is_held(&self) -> bool {
        self.ends.iter().any(|end| end.held)
    }

    pub fn poll_read(
        &mut self,
        side: Side,
        buffer: &mut ReadBuf<'_>,
        waker: &Waker,
        wire: &mut Wire,
    ) -> Poll<io::Result<()>> {
        self.settle(wire);
        if self.ends[side].state == EndState::Vanished {
            return Poll::Ready(Err(fenced()));
        }
        let room = buffer.remaining();
        self.take_arrived(side, buffer, wire);
        let first = self.pipes[1 - side].queue.front();
        let ended = first.is_some_and(|segment| segment.fin && segment.arrives <= wire.now);
        if buffer.remaining() < room || room == 0 || ended {
            self.ends[side].reader = None;
            return Poll::Ready(Ok(()));
        }
        if let EndState::Failed(kind) = self.ends[side].state {
            return Poll::Ready(Err(kind.into()));
        }
        let end = &mut self.ends[side];
        if !end.reader.as_ref().is_some_and(|reader| reader.will_wake(waker)) {
            end.reader = Some(waker.clone());
            end.armed = None;
        }
        self.arm_reader(side, wire);
        Poll::Pending
    }

    /// Moves what has arrived to the reader, as far as there is room.
    fn take_arrived(&mut self, side: Side, buffer: &mut ReadBuf<'_>, wire: &mut Wire) {
        let (from, to, conn) = (self.ends[1 - side].host, self.ends[side].host, self.number);
        let pipe = &mut self.pipes[1 - side];
        let mut taken = 0;
        while let Some(segment) = pipe.queue.front_mut()
            && segment.arrives <= wire.now
            && !segment.fin
            && buffer.remaining() > 0
        {
            if !segment.noted {
                segment.noted = true;
                let (len, hash) = (segment.bytes.len(), segment.hash);
                wire.notes.push(NetOp::Delivered { conn, from, to, len, hash });
            }
            let len = segment.bytes.len().min(buffer.remaining());
            buffer.put_slice(&segment.bytes[..len]);
            segment.bytes.advance(len);
            taken += len;
            if segment.bytes.is_empty() {
                pipe.queue.pop_front();
            }
        }
        if taken == 0 {
            return;
        }
        if !wire.is_cut(pipe.back) {
            pipe.unread -= taken;
            return wake(&mut self.ends[1 - side].writer);
        }
        pipe.unheard += taken;
        wire.count_held(pipe.back, 1);
        if self.ends[1 - side].writer.is_some() {
            // It asks whether there is room again, and gets no answer.
            self.set_stuck(1 - side, wire);
        }
    }

    pub fn poll_write(&mut self, side: Side, data: &[u8], waker: &Waker, wire: &mut Wire) -> Poll<io::Result<usize>> {
        self.settle(wire);
        match self.ends[side].state {
            EndState::Open if self.pipes[side].shut => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            EndState::Open => {}
            EndState::Failed(kind) => return Poll::Ready(Err(kind.into())),
            EndState::Closed | EndState::Vanished => return Poll::Ready(Err(fenced())),
        }
        let room = wire.params.window.saturating_sub(self.pipes[side].unread);
        if room == 0 && !data.is_empty() {
            if let Some(doom) = self.ends[side].doom {
                wire.time.wake_at(doom.at, waker);
            }
            self.ends[side].writer = Some(waker.clone());
            return Poll::Pending;
        }
        let data = &data[..data.len().min(room)];
        if !data.is_empty() {
            self.pipes[side].unread += data.len();
            wire.stats.segments += 1;
            wire.stats.bytes += data.len() as u64;
            let (from, to, mut hash) = (self.ends[side].host, self.ends[1 - side].host, xxh3_64(data));
            wire.notes.push(NetOp::Sent { conn: self.number, from, to, len: data.len(), hash });
            let (mut bytes, pipe) = (data.to_vec(), &mut self.pipes[side]);
            if wire.faulty(pipe.link).garble(&mut pipe.passed, &mut bytes) {
                hash = xxh3_64(&bytes);
            }
            self.post(side, Segment { arrives: NEVER, bytes: bytes.into(), hash, fin: false, noted: false }, wire);
        }
        Poll::Ready(Ok(data.len()))
    }

    /// The writer at this side sends no more.
    pub fn shut(&mut self, side: Side, wire: &mut Wire) {
        self.settle(wire);
        if self.ends[side].state != EndState::Open || self.pipes[side].shut {
            return;
        }
        self.pipes[side].shut = true;
        let (from, to) = (self.ends[side].host, self.ends[1 - side].host);
        wire.notes.push(NetOp::Shut { conn: self.number, from, to });
        self.post(side, Segment { arrives: NEVER, bytes: Bytes::new(), hash: 0, fin: true, noted: true }, wire);
    }

    /// The handle at this side was dropped. With bytes unread that is a reset, otherwise a farewell.
    pub fn close(&mut self, side: Side, wire: &mut Wire) {
        self.settle(wire);
        self.ends[side].held = false;
        if self.ends[side].state != EndState::Open {
            return;
        }
        let unread = self.pipes[1 - side].queue.front().is_some_and(|first| first.arrives <= wire.now && !first.fin);
        if !unread {
            self.shut(side, wire);
        } else if !wire.is_cut(self.pipes[side].link) {
            let at = self.pipes[side].next_arrival(0, wire);
            self.set_doom(1 - side, at, io::ErrorKind::ConnectionReset, wire);
        }
        self.ends[side].state = EndState::Closed;
        self.orphan(side, wire);
    }

    /// This end is gone without a word: its process died, or only it.
    pub fn vanish(&mut self, side: Side, state: EndState, wire: &mut Wire) {
        self.settle(wire);
        if self.ends[side].state == EndState::Vanished {
            return;
        }
        self.end(side, state, wire);
    }

    /// A listener that would have handed this end out is gone.
    pub fn release(&mut self, side: Side) {
        self.ends[side].held = false;
    }

    pub fn reset(&mut self, wire: &mut Wire) {
        self.settle(wire);
        for side in [0, 1] {
            self.pipes[side].queue.clear();
            if self.is_open(side) {
                self.fail(side, io::ErrorKind::ConnectionReset, wire);
            }
        }
    }

    pub fn link_cut(&mut self, link: LinkId, wire: &mut Wire) {
        self.settle(wire);
        for side in [0, 1] {
            let pipe = &mut self.pipes[side];
            let (mut stuck, now) = (false, wire.now);
            if pipe.link == link {
                for segment in pipe.queue.iter_mut().rev().take_while(|segment| segment.arrives > now) {
                    segment.arrives = NEVER;
                    wire.stats.cut_bytes_delayed += segment.bytes.len() as u64;
                    wire.count_held(link, segment.bytes.len());
                }
            }
            if pipe.link == link || pipe.back == link {
                stuck |= pipe.queue.back().is_some_and(|last| last.arrives > wire.now);
            }
            if pipe.back == link {
                // A reset that is on its way is lost, and what it answers stays unacknowledged.
                let doom = &mut self.ends[side].doom;
                stuck |= doom.take_if(|doom| doom.kind == io::ErrorKind::ConnectionReset).is_some();
            }
            if stuck {
                self.set_stuck(side, wire);
            }
        }
    }

    /// Something was repaired: a link of this connection, or the machine at one end of it.
    pub fn mended(&mut self, wire: &mut Wire) {
        self.settle(wire);
        self.mend(0, wire);
        self.mend(1, wire);
    }

    fn mend(&mut self, side: Side, wire: &mut Wire) {
        let gone = !self.is_open(1 - side);
        let pipe = &mut self.pipes[side];
        let heard = !wire.is_cut(pipe.back);
        if heard && pipe.unheard > 0 {
            pipe.unread -= std::mem::take(&mut pipe.unheard);
            wake(&mut self.ends[side].writer);
        }
        let Some(since) = pipe.stuck_since else { return };
        if wire.is_cut(pipe.link) || (gone && !wire.is_powered(self.ends[1 - side].host)) {
            return;
        }
        let again = wire.retransmission(since);
        if again >= since + wire.params.unacked_timeout {
            return; // its doom comes first
        }
        let arrives = (again + wire.latency(pipe.link)).max(pipe.last_arrival);
        for segment in pipe.queue.iter_mut().rev().take_while(|segment| segment.arrives == NEVER) {
            segment.arrives = arrives;
            pipe.last_arrival = arrives;
        }
        if heard {
            pipe.stuck_since = None;
            self.ends[side].doom.take_if(|doom| doom.kind == io::ErrorKind::TimedOut);
            if gone {
                self.answer_by_reset(side, arrives, wire);
            }
        }
        self.arm_reader(1 - side, wire);
    }

    /// Lets happen what is due.
    fn settle(&mut self, wire: &mut Wire) {
        for side in [0, 1] {
            if let Some(doom) = self.ends[side].doom
                && doom.at <= wire.now
            {
                let noticed = u64::from(self.is_open(side));
                match doom.kind {
                    io::ErrorKind::TimedOut => wire.stats.streams_timed_out += noticed,
                    _ => wire.stats.streams_reset += noticed,
                }
                self.fail(side, doom.kind, wire);
            }
        }
    }

    fn fail(&mut self, side: Side, kind: io::ErrorKind, wire: &mut Wire) {
        if !self.is_open(side) {
            return self.end(side, self.ends[side].state, wire);
        }
        wire.notes.push(NetOp::Failed { conn: self.number, at: self.ends[side].host, kind });
        self.end(side, EndState::Failed(kind), wire);
    }

    /// This end is no more: it sends nothing again, and what is still on its way to it finds nobody.
    fn end(&mut self, side: Side, state: EndState, wire: &mut Wire) {
        let end = &mut self.ends[side];
        end.state = state;
        end.doom = None;
        wake(&mut end.reader);
        wake(&mut end.writer);
        let pipe = &mut self.pipes[side];
        while pipe.queue.pop_back_if(|segment| segment.arrives == NEVER).is_some() {}
        pipe.stuck_since = None;
        self.orphan(side, wire);
    }

    /// Whoever is still sending to this end, which is gone, learns of it; or of nothing at all.
    fn orphan(&mut self, side: Side, wire: &mut Wire) {
        let pipe = &mut self.pipes[1 - side];
        let missed = pipe.drop_after(wire.now);
        if !matches!(self.ends[side].state, EndState::Failed(_)) {
            pipe.queue.clear();
        }
        // A writer that waits for the window keeps asking.
        if missed > 0 || pipe.unread >= wire.params.window {
            self.knock(1 - side, wire);
        }
    }

    /// Puts a segment on its way.
    fn post(&mut self, side: Side, mut segment: Segment, wire: &mut Wire) {
        if !self.is_open(1 - side) {
            return self.knock(side, wire);
        }
        let pipe = &mut self.pipes[side];
        let held_back = pipe.queue.back().is_some_and(|last| last.arrives == NEVER);
        if wire.is_cut(pipe.link) || held_back {
            wire.stats.cut_bytes_delayed += segment.bytes.len() as u64;
            wire.count_held(pipe.link, segment.bytes.len());
        } else {
            segment.arrives = pipe.next_arrival(segment.bytes.len(), wire);
        }
        let stuck = pipe.is_stuck(wire);
        assert!(pipe.queue.back().is_none_or(|last| last.arrives <= segment.arrives));
        pipe.queue.push_back(segment);
        if stuck {
            self.set_stuck(side, wire);
        }
        self.arm_reader(1 - side, wire);
    }

    /// What this side sends finds nobody at the other end.
    fn knock(&mut self, side: Side, wire: &mut Wire) {
        if matches!(self.ends[side].state, EndState::Failed(_) | EndState::Vanished) {
            return;
        }
        let answered = wire.is_powered(self.ends[1 - side].host) && !self.pipes[side].is_stuck(wire);
        if answered {
            let arrives = self.pipes[side].next_arrival(0, wire);
            self.answer_by_reset(side, arrives, wire);
        } else {
            self.set_stuck(side, wire);
        }
    }

    /// The machine at the other end resets what reaches it then. A reset does not overtake what was sent before it.
    fn answer_by_reset(&mut self, side: Side, reached: Duration, wire: &mut Wire) {
        let at = (reached + wire.latency(self.pipes[side].back)).max(self.pipes[1 - side].last_arrival);
        self.set_doom(side, at, io::ErrorKind::ConnectionReset, wire);
    }

    /// Something of this side's is under way, and cannot be acknowledged.
    fn set_stuck(&mut self, side: Side, wire: &mut Wire) {
        let since = *self.pipes[side].stuck_since.get_or_insert(wire.now);
        self.set_doom(side, since + wire.params.unacked_timeout, io::ErrorKind::TimedOut, wire);
    }

    fn set_doom(&mut self, side: Side, at: Duration, kind: io::ErrorKind, wire: &mut Wire) {
        let ended = matches!(self.ends[side].state, EndState::Failed(_) | EndState::Vanished);
        if ended || self.ends[side].doom.is_some_and(|doom| doom.at <= at) {
            return;
        }
        self.ends[side].doom = Some(Doom { at, kind });
        if let Some(writer) = &self.ends[side].writer {
            wire.time.wake_at(at, writer);
        }
        // The other end's fate may depend on it: it looks too.
        self.arm_reader(side, wire);
        self.arm_reader(1 - side, wire);
    }

    /// Makes sure that a waiting reader is woken when there is something to see for it.
    fn arm_reader(&mut self, side: Side, wire: &Wire) {
        let dooms = self.ends.iter().filter_map(|end| Some(end.doom?.at));
        let arrival = self.pipes[1 - side].queue.front().map(|segment| segment.arrives);
        let Some(next) = dooms.chain(arrival).min().filter(|next| *next != NEVER) else { return };
        let end = &mut self.ends[side];
        if let Some(reader) = &end.reader
            && end.armed.is_none_or(|armed| armed <= wire.now || armed > next)
        {
            end.armed = Some(next);
            wire.time.wake_at(next, reader);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

pub fn fenced() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the process that opened this is dead")
}
