//! How long a failed event waits for its next attempt.

/// Wait before the second attempt, in seconds.
pub const BASE_SECONDS: f64 = 2.0;
/// Each further attempt waits so many times longer.
pub const FACTOR: f64 = 2.0;
/// No wait is longer than this, in seconds.
pub const CAP_SECONDS: f64 = 3_600.0;
/// The share of the wait that is random, so that events that failed together do not return together.
pub const JITTER: f64 = 0.25;

/// Seconds to wait after the given attempt (1 is the first) has failed; `random` is in 0..1.
///
/// Exponential, capped, and spread evenly over ±12.5 % by `random`.
pub fn retry_delay_seconds(attempt: i32, random: f64) -> f64 {
    let exponent = f64::from(attempt.clamp(1, 1_000) - 1);
    let wait = (BASE_SECONDS * FACTOR.powf(exponent)).min(CAP_SECONDS);
    let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.5 };
    wait * (1.0 + JITTER * (random - 0.5))
}
