//! Latencies of one run, and the middle of several.
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer calls count as this long. A run that stalls for less is stopped (`load::STALL`).
const LATENCY_MAX: Duration = Duration::from_secs(120);

/// A histogram of latencies, precise to 0.1 %.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    pub fn new() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3).expect("the bounds are valid"))
    }

    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `percent` of the calls did not exceed; 0 if there were none.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e6
    }

    pub fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e6
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "no median of nothing");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_of_the_sorted_values() {
        #[track_caller]
        fn check(values: &[f64], expected: f64) {
            assert_eq!(median(values), expected);
        }
        check(&[7.0], 7.0);
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.5);
        check(&[5.0, 1e9, 4.0, 6.0, 0.0], 5.0); // one outlier moves nothing
    }

    #[test]
    fn percentiles_agree_with_a_sorted_list() {
        let mut latencies = Latencies::new();
        for ms in (1..=1_000).rev() {
            latencies.record(Duration::from_millis(ms));
        }
        for (percent, expected_ms) in [(0.1, 1.0), (50.0, 500.0), (99.0, 990.0), (100.0, 1_000.0)] {
            let ms = latencies.percentile_ms(percent);
            assert!((ms / expected_ms - 1.0).abs() < 0.001, "p{percent} is {ms} ms, not {expected_ms}");
        }
        assert_eq!(latencies.count(), 1_000);
    }

    #[test]
    fn extremes_are_recorded_too() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentile_ms(50.0), 0.0);
        latencies.record(Duration::ZERO);
        latencies.record(LATENCY_MAX * 2);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.max_ms() >= LATENCY_MAX.as_secs_f64() * 1e3);
    }
}
