//! Time: the simulation's own, and each node's distorted view of it.
//!
//! [`SimTime`] is the truth, shared by disks, links and schedules: a `Duration` since the world began. [`SimClock`] is
//! what a node may see of it: a monotonic clock that drifts but never goes back, and a wall clock that also jumps.
//!
//! Invariants:
//! - A node's monotonic clock is continuous: a change of drift bends it, it never jumps.
//! - Timers cannot be cancelled: one that outlives its purpose wakes a task for nothing, which costs time and harms nothing.
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use detcd_node::host::{Clock, Sleep};
use madsim::time::TimeHandle;
use parking_lot::Mutex;

use crate::seed::Rng;

/// A time that never comes.
pub const NEVER: Duration = Duration::MAX;
/// The shortest sleep of a node: tokio's timers have this granularity too, and a loop of empty sleeps must end.
const SLEEP_MIN: Duration = Duration::from_millis(1);
const MILLION: i64 = 1_000_000;
/// The slowest that a clock can go, in parts per million that it loses.
const DRIFT_PPM_MIN: i64 = 1 - MILLION;

/// The simulation's time, since the world began. Handles are cheap, and work outside of a task too.
#[derive(Clone)]
pub struct SimTime(TimeHandle);

impl SimTime {
    /// The time of the world that this thread is running. There must be one.
    pub fn current() -> SimTime {
        SimTime(TimeHandle::current())
    }

    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// Wakes at `at`, or now if that is past. It costs one timer and no task; [`NEVER`] costs nothing.
    pub fn wake_at(&self, at: Duration, waker: &Waker) {
        if at == NEVER {
            return;
        }
        let now = self.now();
        if at <= now {
            return waker.wake_by_ref();
        }
        // A timer outlives the sleep that set it; `reset` avoids the 1 ms that a sleep takes at least.
        let mut timer = self.0.sleep(Duration::ZERO);
        let mut timer = Pin::new(&mut timer);
        timer.as_mut().reset(self.0.now_instant() + (at - now));
        if timer.poll(&mut Context::from_waker(waker)).is_ready() {
            waker.wake_by_ref();
        }
    }

    pub fn sleep_until(&self, at: Duration) -> SleepUntil {
        SleepUntil { time: self.clone(), at, armed: None }
    }
}

/// Sets one timer for each task that polls it, however often it is polled.
pub struct SleepUntil {
    time: SimTime,
    at: Duration,
    armed: Option<Waker>,
}

impl Future for SleepUntil {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.armed.as_ref().is_some_and(|armed| armed.will_wake(cx.waker())) {
            self.armed = Some(cx.waker().clone());
            self.time.wake_at(self.at, cx.waker());
        }
        Poll::Pending
    }
}

/// How long something takes, in microseconds: never less than `min_us`, `mean_us` on average, with an exponential tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    pub min_us: u32,
    pub mean_us: u32,
}

impl Delay {
    pub const ZERO: Delay = Delay::new(0, 0);

    pub const fn new(min_us: u32, mean_us: u32) -> Delay {
        assert!(min_us <= mean_us);
        Delay { min_us, mean_us }
    }

    /// Takes one draw, whatever the parameters.
    pub fn draw(self, rng: &mut impl Rng) -> Duration {
        let tail_ns = u64::from(self.mean_us.saturating_sub(self.min_us)) * 1_000;
        Duration::from_nanos(u64::from(self.min_us) * 1_000 + exponential(tail_ns, rng.next_u64()))
    }
}

/// -ln(draw) times the mean, in integers: a library's logarithm may differ in its last bit from machine to machine.
fn exponential(mean: u64, draw: u64) -> u64 {
    let draw = draw | 1;
    let halvings = u64::from(draw.leading_zeros());
    // draw = 2^-(halvings + 1) * (1 + fraction); log2(1 + f) is f + 0.344 f (1 - f), to within a hundredth.
    let fraction = (draw << halvings << 1) >> 48;
    let log2 = fraction + ((fraction * (65_536 - fraction)) >> 16) * 344 / 1_000;
    let halvings = ((halvings + 1) << 16) - log2;
    // ln 2 = 45,426 / 65,536
    ((u128::from(mean) * u128::from(halvings) * 45_426) >> 32) as u64
}

/// A random real number against odds in parts per million. Takes one draw, whatever the odds.
pub fn happens(ppm: u32, rng: &mut impl Rng) -> bool {
    (u128::from(rng.next_u64()) * MILLION as u128) >> 64 < u128::from(ppm)
}

/// One machine's clocks; survives restarts of the processes on it.
#[derive(Clone)]
pub struct SimClock {
    time: SimTime,
    state: Arc<Mutex<ClockState>>,
}

struct ClockState {
    /// Where the rate changed last, in the world's time and in the node's.
    world: Duration,
    local: Duration,
    /// Parts per million that the node's clock gains on the world's by itself; negative if it loses.
    own_ppm: i64,
    /// And by the sum of all faults.
    bent_ppm: i64,
    /// Wall time at the monotonic clock's origin, in nanoseconds since the Unix epoch.
    wall_ns: i128,
    jumps: u64,
    reads: u64,
    wall_reads: u64,
}

impl SimClock {
    /// `wall` is the time since the Unix epoch when the world began.
    pub fn new(time: SimTime, wall: Duration, drift_ppm: i32) -> SimClock {
        let state = ClockState {
            world: Duration::ZERO,
            local: Duration::ZERO,
            own_ppm: 0,
            bent_ppm: 0,
            wall_ns: wall.as_nanos() as i128,
            jumps: 0,
            reads: 0,
            wall_reads: 0,
        };
        let clock = SimClock { time, state: Arc::new(Mutex::new(state)) };
        clock.set_drift(drift_ppm);
        clock
    }

    /// From now on the clock gains `ppm` microseconds a second. It may lose nearly all of a second, not stop.
    pub fn set_drift(&self, ppm: i32) {
        assert!(i64::from(ppm) > -MILLION, "a clock that stands still never wakes its sleepers");
        self.change_rate(|state| state.own_ppm = i64::from(ppm));
    }

    /// As `set_drift`, on top of what the clock has: taken back by the same with the other sign.
    pub fn bend(&self, ppm: i32) {
        self.change_rate(|state| state.bent_ppm += i64::from(ppm));
    }

    /// Takes back all bends.
    pub fn straighten(&self) {
        self.change_rate(|state| state.bent_ppm = 0);
    }

    fn change_rate(&self, change: impl FnOnce(&mut ClockState)) {
        let mut state = self.state.lock();
        let now = self.time.now();
        state.local = state.local_at(now);
        state.world = now;
        change(&mut state);
    }

    /// Moves wall time by this many milliseconds, back if negative; the monotonic clock does not notice.
    pub fn jump_wall(&self, delta_ms: i64) {
        let mut state = self.state.lock();
        state.wall_ns += i128::from(delta_ms) * i128::from(MILLION);
        state.jumps += 1;
    }

    pub fn drift_ppm(&self) -> i32 {
        self.state.lock().drift_ppm() as i32
    }

    /// How often it was read.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    pub fn wall_reads(&self) -> u64 {
        self.state.lock().wall_reads
    }

    /// How often wall time has jumped.
    pub fn jumps(&self) -> u64 {
        self.state.lock().jumps
    }
}

impl ClockState {
    /// However many bends there are, it goes on.
    fn drift_ppm(&self) -> i64 {
        (self.own_ppm + self.bent_ppm).max(DRIFT_PPM_MIN)
    }

    fn local_at(&self, world: Duration) -> Duration {
        let elapsed = (world - self.world).as_nanos() as u64;
        let scaled = u128::from(elapsed) * (MILLION + self.drift_ppm()) as u128 / MILLION as u128;
        self.local + Duration::from_nanos(scaled as u64)
    }

    /// How long the world waits while the node's clock counts `local`. Rounded up: nobody wakes early.
    fn world_span(&self, local: Duration) -> Duration {
        let scaled = (local.as_nanos() * MILLION as u128).div_ceil((MILLION + self.drift_ppm()) as u128);
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        let mut state = self.state.lock();
        state.reads += 1;
        state.local_at(self.time.now())
    }

    fn wall(&self) -> Duration {
        let mut state = self.state.lock();
        state.wall_reads += 1;
        let wall = state.wall_ns + state.local_at(self.time.now()).as_nanos() as i128;
        Duration::from_nanos(wall.clamp(0, i128::from(u64::MAX)) as u64)
    }

    /// A change of drift during the sleep does not reach it.
    fn sleep(&self, time: Duration) -> Sleep {
        let span = self.state.lock().world_span(time.max(SLEEP_MIN));
        Box::pin(self.time.sleep_until(self.time.now().saturating_add(span)))
    }
}

#[cfg(test)]
mod tests {
    use madsim::runtime::Runtime;

    use super::*;
    use crate::seed::Seed;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn clock(drift_ppm: i32) -> SimClock {
        SimClock::new(SimTime::current(), Duration::from_secs(1_700_000_000), drift_ppm)
    }

    async fn wait(time: Duration) {
        let sim = SimTime::current();
        sim.sleep_until(sim.now() + time).await;
    }

    #[test]
    fn a_fast_clock_gains_and_a_slow_one_loses() {
        Runtime::with_seed_and_config(1, Default::default()).block_on(async {
            #[track_caller]
            fn check(clock: &SimClock, expected: Duration) {
                let error = clock.now().abs_diff(expected);
                assert!(error < Duration::from_micros(10), "{:?} for {expected:?}", clock.now());
            }
            let started = SimTime::current().now();
            let (fast, slow) = (clock(100_000), clock(-100_000));
            wait(ms(1_000) - started).await;
            check(&fast, ms(1_100) - started / 10);
            check(&slow, ms(900) + started / 10);
            fast.set_drift(-100_000);
            wait(ms(1_000)).await;
            check(&fast, ms(2_000));
        });
    }

    #[test]
    fn bends_that_overlap_end_each_by_itself() {
        Runtime::with_seed_and_config(1, Default::default()).block_on(async {
            let clock = clock(100);
            clock.bend(1_000);
            clock.bend(-300);
            clock.bend(-1_000);
            assert_eq!(clock.drift_ppm(), -200);
            clock.bend(300);
            assert_eq!(clock.drift_ppm(), 100);
            (0..9).for_each(|_| clock.bend(-500_000));
            assert_eq!(clock.drift_ppm(), -999_999);
            clock.straighten();
            assert_eq!(clock.drift_ppm(), 100);
        });
    }

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        Runtime::with_seed_and_config(2, Default::default()).block_on(async {
            let (clock, mut rng) = (clock(0), Seed(2).rng());
            let mut last = clock.now();
            for _ in 0..1_000 {
                clock.set_drift((rng.next_u64() % 1_200_000) as i32 - 999_999);
                clock.jump_wall((rng.next_u64() % 20_000) as i64 - 10_000);
                assert!(clock.now() >= last);
                wait(Duration::from_micros(rng.next_u64() % 5_000)).await;
                assert!(clock.now() >= last);
                last = clock.now();
            }
            assert_eq!(clock.jumps(), 1_000);
        });
    }

    #[test]
    fn wall_time_jumps_and_stays_after_the_epoch() {
        Runtime::with_seed_and_config(3, Default::default()).block_on(async {
            let clock = clock(0);
            let (before, monotonic) = (clock.wall(), clock.now());
            clock.jump_wall(3_600_000);
            assert!(clock.wall() - before >= Duration::from_secs(3_600));
            clock.jump_wall(-7_200_000);
            assert!(before - clock.wall() >= Duration::from_secs(3_599));
            assert!(clock.now() - monotonic < ms(1));
            clock.jump_wall(i64::MIN);
            assert_eq!(clock.wall(), Duration::ZERO);
        });
    }

    #[test]
    fn sleeps_count_local_time() {
        Runtime::with_seed_and_config(4, Default::default()).block_on(async {
            for ppm in [-500_000, -200, 0, 200, 100_000, 1_000_000] {
                let clock = clock(ppm);
                let (started, time) = (clock.now(), SimTime::current());
                let world = time.now();
                clock.sleep(ms(100)).await;
                let slept = clock.now() - started;
                assert!(slept >= ms(100) && slept < ms(101), "{ppm} ppm: {slept:?}");
                let expected = 100_000_000 * 1_000_000 / (1_000_000 + i64::from(ppm)) as u64;
                let error = (time.now() - world).abs_diff(Duration::from_nanos(expected));
                assert!(error < ms(1), "{ppm} ppm: {error:?}");
            }
            let started = SimTime::current().now();
            clock(0).sleep(Duration::ZERO).await;
            assert!(SimTime::current().now() - started >= SLEEP_MIN);
        });
    }

    #[test]
    fn timers_are_exact_and_wake_the_last_poller() {
        Runtime::with_seed_and_config(5, Default::default()).block_on(async {
            let time = SimTime::current();
            let at = time.now() + Duration::from_micros(37);
            let mut sleep = Box::pin(time.sleep_until(at));
            // Polled by this task first, then moved to another.
            assert!(futures_poll_once(sleep.as_mut()).await.is_none());
            tokio::spawn(sleep).await.unwrap();
            assert!(time.now() >= at && time.now() - at < Duration::from_micros(5));
        });
    }

    async fn futures_poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn delays_have_their_minimum_and_their_mean() {
        let mut rng = Seed(6).rng();
        let (delay, mut sum, mut longest) = (Delay::new(100, 400), 0, Duration::ZERO);
        for _ in 0..100_000 {
            let drawn = delay.draw(&mut rng);
            assert!(drawn >= Duration::from_micros(100));
            sum += drawn.as_nanos();
            longest = longest.max(drawn);
        }
        let mean_us = sum as f64 / 1e8;
        assert!((390.0..410.0).contains(&mean_us), "{mean_us}");
        assert!(longest > Duration::from_micros(2_000), "no tail: {longest:?}");
        assert_eq!(Delay::new(5, 5).draw(&mut rng), Duration::from_micros(5));
        let hits = (0..100_000).filter(|_| happens(250_000, &mut rng)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        assert!(!happens(0, &mut rng) && happens(1_000_000, &mut rng));
    }
}
